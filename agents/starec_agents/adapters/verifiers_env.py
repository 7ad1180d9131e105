"""Users as a verifiers taskset, the agent's graph as its harness: verifiers 0.4 and later (`verifiers.v1`).

verifiers imports an environment by a module's name, so name one of yours and put into it:

    from starec_agents.adapters.verifiers_env import AgentHarness, UserEnv, Users

    __all__ = ["AgentHarness", "UserEnv", "Users"]

Each prompt is a branch of the trace, and so a sample of its own to train on: the memory may be rewritten.
"""

from collections.abc import Iterator
from typing import Any

import verifiers.v1 as vf

from starec_agents.adapters import Episodes
from starec_agents.llm import Endpoint, OpenAIChat
from starec_env.types import Id


class UsersConfig(vf.TasksetConfig, Episodes):
    """Options: `--env.taskset.turns 2 --env.taskset.agent planner`."""


class UserData(vf.TaskData):
    """A user, and the options."""

    user_id: Id
    episodes: Episodes


class UserTask(vf.Task[UserData]):
    """A user's episode; the agent records its mean reward."""


class Users(vf.Taskset[UserTask, UsersConfig]):
    """The users."""

    def load(self) -> Iterator[UserTask]:
        """A task a user."""
        episodes = Episodes(**{name: getattr(self.config, name) for name in Episodes.model_fields})
        for user in episodes.user_ids:
            yield UserTask(UserData(prompt=f"User {user}", user_id=user, episodes=episodes), self.config.task)


class AgentHarness(vf.Harness[vf.HarnessConfig]):
    """The agent, in this process; its requests go through verifiers' interception."""

    EXECUTES_CODE, NEEDS_CONTAINER = False, False

    async def launch(
        self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, mcp_urls: Any, data: Any
    ) -> Any:
        """Go through the user's turns."""
        authorized = {"Authorization": f"Bearer {secret}"}
        async with OpenAIChat(Endpoint(base_url=endpoint, model=ctx.model, headers=authorized)) as llm:
            episode = data.episodes.episode(data.user_id)
            await episode.play(llm)
        trace.record_reward("reward", episode.mean_reward)
        return vf.ProgramResult(0, "", "")


class UserEnvConfig(vf.SingleAgentEnvConfig):
    """One agent, on this machine."""

    agent: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())


class UserEnv(vf.SingleAgentEnv, vf.Env[UserEnvConfig]):
    """A user's agent alone."""
