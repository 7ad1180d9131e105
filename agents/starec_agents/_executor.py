"""What a graph runs on: the walk of `_walk` where the graph is straight, LangGraph's executor where it isn't."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.callbacks import AsyncCallbackManager
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.channels.binop import BinaryOperatorAggregate
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Overwrite

if TYPE_CHECKING:
    from starec_agents._walk import Walk

_log = logging.getLogger(__name__)


class NotStraight(Exception):
    """Raised for what only LangGraph's executor can do; the text says what it is."""


class Executor:
    """What a graph runs on: walked directly where that is possible, else LangGraph's executor.

    Attributes:
        why: Why the graph is not walked; None where it is.
    """

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.why: str | None = None
        self._walk: Walk | None = None
        try:
            from starec_agents._walk import Walk

            self._walk = Walk(graph)
        except NotStraight as reason:
            self.why = str(reason)
        except Exception as error:  # another LangGraph than the tests know
            self.why = f"its parts can't be read ({type(error).__name__}: {error})"

    @property
    def name(self) -> Literal["direct", "langgraph"]:
        """What an invocation would now run on."""
        return "langgraph" if self._walk is None or _is_listened_to() else "direct"

    async def ainvoke(self, state: Mapping[str, Any], context: Any, *, direct: bool = True) -> dict[str, Any]:
        """Run the graph, directly where that is wanted and possible; returns the state it ended with."""
        if direct and self._walk is not None and self.name == "direct":
            try:
                return await self._walk.walk(state, context) or {}
            except NotStraight as reason:
                self.why, self._walk = str(reason), None
                _log.warning("%s: runs again, and from now on, on LangGraph's executor", reason)
        return await self.graph.ainvoke(state, context=context) or {}

    def again(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Values of an earlier invocation as the input of the next, past the reducers that made them."""
        channels = getattr(self.graph, "channels", {})
        return {key: Overwrite(value) if _reduces(channels.get(key)) else value for key, value in state.items()}


def executor_of(graph: Any) -> Executor:
    """The executor of a graph, made once for a compiled one."""
    return _executor_of(graph) if type(graph) is CompiledStateGraph else Executor(graph)


_executor_of = lru_cache(maxsize=64)(Executor)


def _reduces(channel: object) -> bool:
    # A reducer whose type has no default takes the first value as it is, and an Overwrite would stay one.
    return isinstance(channel, BinaryOperatorAggregate) and channel.is_available()


@contextmanager
def unheard() -> Iterator[None]:
    """Within, no tracer hears of a straight graph: what is tried by script is no part of a run's trace."""
    token = _UNHEARD.set(True)
    try:
        yield
    finally:
        _UNHEARD.reset(token)


_UNHEARD = ContextVar("unheard", default=False)


def _is_listened_to() -> bool:
    """Whether callbacks or tracers want to hear of each node, or the call comes from a node of another graph."""
    if _UNHEARD.get():
        return False
    return var_child_runnable_config.get() is not None or bool(AsyncCallbackManager.configure().handlers)
