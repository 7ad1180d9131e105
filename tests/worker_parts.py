"""Parts of agents for tests with several processes, which find them here by name."""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starec_agents.llm import Completion, Message, ScriptedChat
from starec_agents.llm.scripted import scripted_user
from starec_env.errors import EndpointError


class Deadly(ScriptedChat):
    """Kills its own process at its tenth request, as long as `lives` deaths are not yet noted in the folder."""

    def __init__(self, folder: Path, lives: int, at: int = 10) -> None:
        super().__init__(scripted_user(), latency=0.01)
        self.folder, self.lives, self.at = folder, lives, at

    async def complete(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        if self.requests >= self.at and len(list(self.folder.iterdir())) < self.lives:
            (self.folder / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().complete(messages, **sampling)


class Refusing(ScriptedChat):
    """Fails every request."""

    async def complete(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        await asyncio.sleep(0.01)
        raise EndpointError("nobody is here", kind="connection")
