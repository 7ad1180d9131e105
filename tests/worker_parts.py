"""Parts of agents for tests with several processes, which find them here by name."""

import asyncio
import os
import signal
from collections.abc import Sequence
from operator import or_
from pathlib import Path
from typing import Annotated, Any

from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel

from starec_agents.graph import Context, State, fast_rank, update_memory
from starec_agents.llm import Completion, Message, ScriptedChat
from starec_agents.llm.scripted import scripted_user
from starec_agents.memory import Memory
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


class Facts(Memory):
    """A memory with a field of its own."""

    facts: tuple[str, ...] = ()


class Mood(BaseModel):
    """A value of a state key of one's own."""

    words: str
    turns: int


class DiaryState(State, total=False):
    """A state with keys of one's own: a model, a text, and a set with a reducer."""

    mood: Mood
    diary: str
    taken: Annotated[set[int], or_]


async def write_diary(state: DiaryState) -> dict[str, Any]:
    """Carry everything on from the last turn."""
    item, before = int(state["feedback"].item_id), state.get("mood", Mood(words="calm", turns=0))
    memory = state["memory"]
    known = memory.facts if isinstance(memory, Facts) else ()
    return {
        "memory": Facts(profile=memory.profile, history=memory.history, facts=(*known, f"took {item}")),
        "mood": Mood(words=f"{before.words}, then {item}", turns=before.turns + 1),
        "diary": f"{state.get('diary', '')}Took {item}.\n",
        "taken": {item},
    }


async def _half(state: DiaryState) -> str:
    return "fast_rank" if state.get("feedback") is None else "update_memory"


def diary() -> Any:
    """A graph that keeps a diary in its state, and facts in its memory."""
    graph = StateGraph(DiaryState, context_schema=Context)
    for node in (fast_rank, update_memory, write_diary):
        graph.add_node(node)
    graph.add_conditional_edges(START, _half, ["fast_rank", "update_memory"])
    graph.add_edge("fast_rank", END)
    graph.add_edge("update_memory", "write_diary")
    graph.add_edge("write_diary", END)
    return graph.compile(name="diary")
