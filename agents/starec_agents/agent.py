"""A user agent: a compiled graph, a chat model and a memory."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import cache, partial
from typing import Any, Literal, TypeVar, get_args

from starec_agents._executor import executor_of
from starec_agents._own_state import own_state_of
from starec_agents.graph import Context, Graph, State
from starec_agents.graphs import reflect_always
from starec_agents.llm import ChatModel
from starec_agents.llm.base import Call
from starec_agents.llm.base import model_name as model_name
from starec_agents.memory import Memory
from starec_agents.tasks import MAX_HISTORY, Prompts, Response, Visit, ranking_format, start_memory
from starec_env.errors import InvalidOption, check_choice
from starec_env.types import Feedback, Query, Ranking, SlateFeedback

_T = TypeVar("_T")

Executors = Literal["auto", "direct", "langgraph"]
OWN_KEYS = frozenset(State.__annotations__)
"""Keys that the agent itself puts into the state; any other is a graph's own, and is kept."""


class UserAgent:
    """One user's agent: it ranks by its memory, and learns from what the user then really did (paper 4.1).

    Before a recommender it plays the user: it responds to slates, and learns from the visit at its end.

    Keys that a graph adds to `State` are carried: what ranking ended with goes into learning, and what learning ended
    with into the next ranking, past their reducers. They live as long as the agent; a run records those that JSON can
    hold beside the memory (`own_state`), and goes on with them.

    Args:
        llm: Answers the prompts.
        graph: A compiled graph over `starec_agents.graph.State`: one of `graphs`, or your own; or a function that
            makes one, called once a process, which an agent needs that is sent to workers. None for `reflect_always`.
        answer_format: "paper": numbered titles with explanations after a thought; "labels": candidates' labels alone;
            "scores": a JSON object of scores, which the server enforces. "compact" is the old name of "labels".
        structured: With "compact": "scores".
        memory: The memory to begin with; None starts one from the first query (`start_memory`).
        max_history: Interactions shown in prompts.
        models: Chat models by name, for nodes that ask another than `llm`.
        prompts: The wording, as functions; None for that of `starec_agents.tasks`.
        executor: "auto" walks a straight graph directly and runs any other on LangGraph's executor; the result is the
            same. "langgraph" always uses that executor; "direct" refuses a graph that isn't straight.
        sampling: Goes with every request: temperature, top_p, max_tokens, seed, stop, logprobs.

    Attributes:
        context: What the graph's nodes work with.
        memory: The memory; None until the first ranking.
        calls: Requests made for the current turn; `rank` and `respond` begin anew.

    Raises:
        InvalidOption: An option is out of its range, contradicts another, or the graph has a checkpointer.
    """

    def __init__(
        self,
        llm: ChatModel,
        graph: Graph | Callable[[], Graph] | None = None,
        *,
        answer_format: str = "paper",
        structured: bool = False,
        memory: Memory | None = None,
        max_history: int = MAX_HISTORY,
        models: Mapping[str, ChatModel] | None = None,
        prompts: Prompts | None = None,
        executor: Executors = "auto",
        **sampling: Any,
    ) -> None:
        answer_format = ranking_format(answer_format, structured).name
        check_choice("executor", executor, get_args(Executors))
        if max_history < 1:
            raise InvalidOption(f"max_history={max_history}: at least one interaction must be shown")
        made: Any = graph if hasattr(graph, "ainvoke") else _made(graph or reflect_always)
        if not hasattr(made, "ainvoke"):
            raise InvalidOption(f"graph is a {type(made).__name__}: give a compiled graph, graph.compile()")
        if getattr(made, "checkpointer", None):
            raise InvalidOption(
                "the graph has a checkpointer, which would mix users and count calls twice: compile it without; an "
                "agent's memory and own state keys are kept from turn to turn, and a run's record is its checkpoint"
            )
        self.graph: Graph = made
        self.memory = memory
        self.calls: list[Call] = []
        self.context = Context(llm, answer_format, max_history, sampling, models or {}, prompts or Prompts())
        self._executor = executor_of(made)
        self._direct = executor != "langgraph"
        if executor == "direct" and self._executor.why:
            raise InvalidOption(
                f"executor='direct', but graph {self.graph_name!r} is not straight: {self._executor.why}"
            )
        self._own = own_state_of(made, OWN_KEYS)
        self._kept: dict[str, Any] = {}
        self._ranked: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.graph_name!r}, {self.llm!r})"

    @classmethod
    def factory(cls, llm: ChatModel, **options: Any) -> Callable[[], UserAgent]:
        """What a population makes its agents with: a function that gives a new agent with these options each time.

        Raises:
            InvalidOption: As the constructor does, at once.
        """
        cls(llm, **options)
        return partial(cls, llm, **options)

    @property
    def llm(self) -> ChatModel:
        """The chat model."""
        return self.context.llm

    @property
    def models(self) -> Mapping[str, ChatModel]:
        """The chat models that nodes ask by name."""
        return self.context.models

    @property
    def executor(self) -> Literal["direct", "langgraph"]:
        """What an invocation of the graph runs on now: LangGraph's executor too where callbacks or tracers listen."""
        return self._executor.name if self._direct else "langgraph"

    @property
    def own_keys(self) -> tuple[str, ...]:
        """State keys of the graph's own, which are kept from turn to turn."""
        return self._own.keys

    @property
    def own_state(self) -> Mapping[str, Any]:
        """The values of `own_keys` that the next ranking goes on with, as JSON types: recorded with each step.

        Set it to go on from a record.
        """
        return self._own.dump(self._kept)

    @own_state.setter
    def own_state(self, recorded: Mapping[str, Any]) -> None:
        self._kept = self._own.load(recorded)

    @property
    def unrecorded_keys(self) -> tuple[str, ...]:
        """Those of `own_keys` whose values JSON can't hold, as far as is known by now: a resumed run has them not."""
        return tuple(key for key in self.own_keys if key in self._own.unrecorded)

    @property
    def graph_name(self) -> str:
        """The compiled graph's name."""
        return str(getattr(self.graph, "name", type(self.graph).__name__))

    @property
    def settings(self) -> Mapping[str, Any]:
        """What makes this agent itself, as JSON types: a run records it, and a resumed run must match it."""
        context = self.context
        return {
            "model": model_name(context.llm),
            "models": {name: model_name(llm) for name, llm in sorted(context.models.items())},
            "graph": self.graph_name,
            "answer_format": context.answer_format,
            "prompts": context.prompts.fingerprint(context.answer_format, context.max_history),
            "max_history": context.max_history,
            "sampling": dict(context.sampling),
        }

    async def arank(self, query: Query) -> Ranking:
        """Rank a query's candidates by the memory (fast thinking).

        Raises:
            EndpointError: The model gave no usable answer; the memory is as it was.
            InvalidOption: The graph ended without a ranking.
        """
        state = await self._think(query)
        ranking = state.get("ranking")
        if not isinstance(ranking, Ranking):
            raise InvalidOption(f"graph {self.graph_name!r} ended without a ranking: set 'ranking' in its state")
        self._ranked = {**_own(state), "query": query, "ranking": ranking}
        return ranking

    async def arespond(self, query: Query, visit: Visit) -> Response | Ranking:
        """Answer a slate, the query's candidates, as the user would; a graph that has no such half ranks it instead.

        Raises:
            EndpointError: The model gave no usable answer; the memory is as it was.
            InvalidOption: The graph ended with neither.
        """
        state = await self._think(query, visit=visit)
        for key, kind in (("response", Response), ("ranking", Ranking)):
            if isinstance(answer := state.get(key), kind):
                self._ranked = {**_own(state), "query": query, key: answer}
                return answer
        raise InvalidOption(
            f"graph {self.graph_name!r} ended without a response and without a ranking: set one of them in its state"
        )

    async def alearn(self, feedback: Feedback | SlateFeedback, about: tuple[Query, Ranking] | None = None) -> Memory:
        """Learn from the feedback on a ranking, or on a visit's slates (slow thinking); returns the new memory.

        Args:
            feedback: What the user did.
            about: The query and the ranking that it is on; None for the last, from which can be learned once.

        Raises:
            EndpointError: The model gave no usable answer; the memory is as it was, and learning can be tried again.
            InvalidOption: There is no ranking to learn about, or the feedback is on another query's item.
        """
        turn = (
            self._ranked if about is None else {**(self._ranked or self._kept), "query": about[0], "ranking": about[1]}
        )
        if turn is None:
            raise InvalidOption("learn() was called without a ranking before it: call rank() first, once for each")
        self.memory = self.memory or start_memory(turn["query"])
        self._kept = _own(await self._invoke({**turn, "feedback": feedback}))
        self._ranked = None
        return self.memory

    def rank(self, query: Query) -> Ranking:
        """`arank` from synchronous code, in a notebook too."""
        return wait_for(self.arank(query))

    def respond(self, query: Query, visit: Visit) -> Response | Ranking:
        """`arespond` from synchronous code, in a notebook too."""
        return wait_for(self.arespond(query, visit))

    def learn(self, feedback: Feedback | SlateFeedback) -> Memory:
        """`alearn` from synchronous code, in a notebook too."""
        return wait_for(self.alearn(feedback))

    async def _think(self, query: Query, **given: Any) -> dict[str, Any]:
        if self.memory is None:
            self.memory = start_memory(query)
        self.calls, self._ranked = [], None
        return await self._invoke({**self._kept, "query": query, **given})

    async def _invoke(self, given: Mapping[str, Any]) -> dict[str, Any]:
        state = self._executor.again({**given, "memory": self.memory})
        ended = await self._executor.ainvoke(state, self.context, direct=self._direct)
        self.calls.extend(ended.get("calls", ()))
        self.memory = ended.get("memory", self.memory)
        return ended


def _own(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key not in OWN_KEYS}


@cache
def _made(graph: Any) -> Any:
    return graph() if callable(graph) else graph


@cache
def _loop() -> asyncio.AbstractEventLoop:
    # One loop for all synchronous calls: a client's connections belong to the loop they were opened in.
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="starec-agents", daemon=True).start()
    return loop


if hasattr(os, "register_at_fork"):  # not on Windows, which doesn't fork
    os.register_at_fork(after_in_child=_loop.cache_clear)  # a fork copies the loop, but not its thread


async def all_of(asked: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """The results of coroutines that run at once; the first error ends them all, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in asked]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def wait_for(work: Coroutine[Any, Any, _T]) -> _T:
    """A coroutine's result, from synchronous code, in a notebook too."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
