"""One turn of the default agent as a graph for LangGraph's own tools (`langgraph dev`, Studio): names in, JSON out.

    START -> fast_rank -> judge -> compare -> reflect -> update_memory -> END

Such a server takes and keeps JSON. So the state names a turn, by user and number, where the agent's own holds it. The
environment's answer is a node, and the other nodes are the agent's own. `graph` asks the scripted model about the
bundled data; put `graph = make_graph(llm, stream)` into a module of yours, and name that in `langgraph.json`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from starec_agents.graph import Context, compare, fast_rank, reflect, update_memory
from starec_agents.llm import ChatModel, ScriptedChat
from starec_agents.llm.base import Call
from starec_agents.llm.scripted import scripted_user
from starec_agents.memory import Memory
from starec_agents.tasks import start_memory
from starec_env import load_dataset, prepare
from starec_env.errors import InvalidOption
from starec_env.replay.stream import Stream, judge
from starec_env.types import Feedback, Ranking, Turn


class StudioInput(TypedDict):
    """What names a turn."""

    user: str
    turn: int
    """0-based, in the user's stream."""


def _joined(old: Sequence[Call], new: Sequence[Call]) -> list[Call]:
    return [*old, *new]  # what a server kept of a tuple is a list


class StudioState(StudioInput, total=False):
    """The turn as it goes on; a memory to begin with may be given."""

    memory: Memory
    ranking: Ranking
    feedback: Feedback
    reward: float
    agrees: bool
    profile: str | None
    calls: Annotated[list[Call], _joined]
    """All of a thread's, if turns go on in one."""


@dataclass(frozen=True)
class StudioContext:
    """What a run may choose."""

    answer_format: str = "paper"


def make_graph(llm: ChatModel | None = None, stream: Stream | None = None) -> Any:
    """Compile the graph.

    Args:
        llm: Answers the prompts; None for the scripted model.
        stream: Has the turns; None for those of ml-latest-small.
    """
    model = llm or ScriptedChat(scripted_user())

    async def turn_of(state: StudioState) -> Turn:
        return await asyncio.to_thread(_turn, stream, state["user"], state["turn"])

    def as_here(node: Callable[..., Awaitable[Any]], *, asks: bool = False) -> Any:
        """The agent's node, given what it knows from a state and a context that are JSON."""

        async def see(state: StudioState, runtime: Runtime[StudioContext]) -> Any:
            query, chosen = (await turn_of(state)).query, runtime.context or StudioContext()
            memory = Memory.model_validate(state.get("memory") or start_memory(query))
            context = Context(model, chosen.answer_format)
            rest: tuple[Any, ...] = (Runtime(context=context),) if asks else ()
            return await node({**state, "query": query, "memory": memory}, *rest)

        return see

    async def judge_ranking(state: StudioState) -> dict[str, Any]:
        feedback, reward = judge(await turn_of(state), state["ranking"])
        return {"feedback": feedback, "reward": reward}

    graph = StateGraph(StudioState, StudioContext)
    graph.add_node("fast_rank", as_here(fast_rank, asks=True))
    graph.add_node("judge", judge_ranking)
    graph.add_node("compare", as_here(compare))
    graph.add_node("reflect", as_here(reflect, asks=True))
    graph.add_node("update_memory", as_here(update_memory))
    names = [START, *graph.nodes, END]
    for start, end in zip(names, names[1:], strict=False):
        graph.add_edge(start, end)
    return graph.compile(name="turn")


@cache
def _bundled() -> Stream:
    return Stream(prepare(load_dataset("ml-latest-small")))


def _turn(stream: Stream | None, user: str, number: int) -> Turn:
    stream = stream or _bundled()
    turns = stream.turns(stream.dataset.user_index(user))
    if not 0 <= number < len(turns):
        raise InvalidOption(f"turn={number}: user {user!r} has the turns 0 to {len(turns) - 1}")
    return turns[number]


graph = make_graph()
