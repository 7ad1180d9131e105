"""Walk a straight graph without LangGraph's executor: the same states, for a fraction of the time and the memory.

The executor is made for checkpoints, interrupts, parallel branches, retries and callbacks, and costs milliseconds a
turn where none of them is used. A graph is straight if each node has one successor or one branch and none of them is
asked for. It is then walked node after node, over the compiled graph's own nodes, channels (with their reducers), edges
and branches. Whatever is not understood here is `NotStraight`. The parts are LangGraph's private ones: `_executor` does
without this module where it can't be imported.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph._internal._config import DEFAULT_RECURSION_LIMIT  # noqa: PLC2701
from langgraph._internal._constants import CONF, CONFIG_KEY_RUNTIME, TASKS  # noqa: PLC2701
from langgraph._internal._runnable import RunnableCallable  # noqa: PLC2701
from langgraph._internal._typing import MISSING  # noqa: PLC2701
from langgraph.channels.base import BaseChannel
from langgraph.channels.binop import BinaryOperatorAggregate
from langgraph.channels.ephemeral_value import EphemeralValue
from langgraph.channels.last_value import LastValue
from langgraph.constants import END, START
from langgraph.errors import (
    ErrorCode,
    GraphBubbleUp,
    GraphRecursionError,
    NodeCancelledError,
    create_error_message,
)
from langgraph.graph._branch import BranchSpec  # noqa: PLC2701
from langgraph.graph.state import CompiledStateGraph
from langgraph.pregel._read import PregelNode  # noqa: PLC2701
from langgraph.pregel._write import ChannelWrite, ChannelWriteEntry, ChannelWriteTupleEntry  # noqa: PLC2701
from langgraph.runtime import Runtime
from langgraph.types import Command, Send

from starec_agents._executor import NotStraight

_log = logging.getLogger(__name__)

_TO = "branch:to:"
Channel = BaseChannel[Any, Any, Any]

# What the executor is needed for, where it is set. An attribute that is in neither list is unknown, and needs it too.
GRAPH_POLICIES = (
    "cache", "cache_policy", "checkpointer", "debug", "interrupt_after_nodes", "interrupt_before_nodes",
    "node_error_handler_map", "retry_policy", "step_timeout", "store",
)  # fmt: skip
GRAPH_PARTS = (
    "builder", "channels", "config", "context_schema", "input_channels", "name", "nodes", "output_channels",
    "schema_to_mapper", "stream_channels", "stream_eager", "stream_mode", "stream_transformers", "trigger_to_nodes",
    "__orig_class__", "_output_mapper", "_serde_allowlist", "_state_mapper",
)  # fmt: skip
NODE_POLICIES = (
    "cache_policy", "error_handler_node", "is_error_handler", "retry_policy", "subgraphs", "timeout", "trace_policy",
)  # fmt: skip
NODE_PARTS = (
    "bound", "channels", "flat_writers", "input_cache_key", "mapper", "metadata", "node", "tags", "triggers", "writers",
)  # fmt: skip


class _Config(dict[str, Any]):
    """What `get_config()` gives a node: the runtime alone, and what else is asked for needs the executor."""

    def __missing__(self, key: str) -> NoReturn:
        raise NotStraight(f"a node asks for {key!r} of its config")


@dataclass(frozen=True, slots=True)
class _Call:
    """A node's or a branch's function, and what it reads of the state."""

    function: Callable[..., Awaitable[Any]]
    keys: Sequence[str]
    mapper: Callable[[dict[str, Any]], Any] | None
    wants_runtime: bool

    @classmethod
    def of(cls, name: str, runnable: object, keys: object, mapper: Any) -> _Call:
        if type(runnable) is not RunnableCallable or runnable.afunc is None or runnable.explode_args or runnable.kwargs:
            raise NotStraight(f"{name} is a {type(runnable).__name__}, not a function")
        if others := set(runnable.func_accepts) - {"runtime"}:
            raise NotStraight(f"{name} takes {', '.join(sorted(others))}")
        if not isinstance(keys, list):
            raise NotStraight(f"{name} reads a state without keys")
        return cls(runnable.afunc, keys, mapper, "runtime" in runnable.func_accepts)

    def read(self, cells: Mapping[str, Channel]) -> Any:
        values = {key: cells[key].get() for key in self.keys if cells[key].is_available()}
        return values if self.mapper is None else self.mapper(values)

    def __call__(self, state: Any, runtime: Runtime[Any]) -> Awaitable[Any]:
        return self.function(state, runtime=runtime) if self.wants_runtime else self.function(state)


def _plain(result: Any) -> Any:
    """A function's result, unless it says what is to run instead of what to write."""
    if type(result) is not dict:
        parts = result if isinstance(result, (list, tuple)) else (result,)
        if any(isinstance(part, (Command, Send, Runnable)) for part in parts):
            raise NotStraight(f"a function returned a {type(result).__name__}")
    return result


@dataclass(frozen=True, slots=True)
class _Branch:
    spec: BranchSpec
    call: _Call

    async def choose(
        self, cells: Mapping[str, Channel], updates: Sequence[tuple[str, Any]], result: Any, runtime: Runtime[Any]
    ) -> list[Any]:
        """Where to go on, seeing the state as the updates make it, and what else the node returned."""
        fresh = {key: _updated(cells[key], new) for key, new in updates if key in self.call.keys}
        value = self.call.read({**cells, **fresh})
        if self.spec.input_schema is None and isinstance(value, dict) and isinstance(result, dict):
            value = {**result, **value}
        chosen: list[Any] = []

        def keep(places: Sequence[Any], static: bool) -> list[Any]:
            chosen.extend(places)
            return []

        self.spec._finish(keep, result, _plain(await self.call(value, runtime)), {})
        return chosen


def _updated(cell: Channel, value: Any) -> Channel:
    cell = cell.copy()
    cell.update((value,))
    return cell


@dataclass(frozen=True, slots=True)
class _Place:
    """A node, or START, which has no function."""

    call: _Call | None
    updates: Callable[[Any], Sequence[tuple[str, Any]] | None]
    leave: str | _Branch | None


class Walk:
    """A straight graph's parts, and the walk over them.

    Raises:
        NotStraight: The graph needs the executor.
    """

    def __init__(self, graph: Any) -> None:
        if type(graph) is not CompiledStateGraph:
            raise NotStraight(f"it is a {type(graph).__name__}, not a compiled StateGraph")
        _check_policies("the graph", graph, GRAPH_POLICIES, GRAPH_PARTS)
        config: dict[str, Any] = {key: value for key, value in (graph.config or {}).items() if value}
        self.limit = int(config.pop("recursion_limit", DEFAULT_RECURSION_LIMIT))
        if config or self.limit < 1:
            raise NotStraight(f"it is configured ({', '.join(config) or 'recursion_limit'})")
        if isinstance(graph.output_channels, str):
            raise NotStraight("its state has no keys")
        self.output = tuple(graph.output_channels)
        self.places = {name: _place(name, node) for name, node in graph.nodes.items()}
        self.channels = _state_channels(graph)

    async def walk(self, state: Mapping[str, Any], context: Any) -> dict[str, Any] | None:
        """What the executor's `ainvoke` returns: None if no node wrote a key of the output."""
        cells = {key: channel.from_checkpoint(MISSING) for key, channel in self.channels.items()}
        runtime = Runtime(context=context)
        token = var_child_runnable_config.set(_config(runtime))
        try:
            written = await self._steps(state, cells, runtime)
        finally:
            var_child_runnable_config.reset(token)
        if written.isdisjoint(self.output):
            return None
        return {key: cells[key].get() for key in self.output if cells[key].is_available()}

    async def _steps(self, state: Any, cells: Mapping[str, Channel], runtime: Runtime[Any]) -> set[str]:
        name: str | None = START
        result, step, written = state, 0, set[str]()
        while name is not None:
            place = self.places[name]
            given = place.call and place.call.read(cells)
            try:
                if place.call is not None:
                    result = _plain(await place.call(given, runtime))
                updates = place.updates(result) or ()
                following = await self._next(name, place.leave, (cells, updates, result, runtime))
            except GraphBubbleUp as error:
                raise NotStraight(f"{name} raised {type(error).__name__}") from error
            except asyncio.CancelledError as error:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
                raise NodeCancelledError(name) from error  # nobody cancelled it: the node itself raised it
            except Exception as error:
                error.add_note(f"During task with name {name!r}")
                raise
            for key, value in updates:
                cells[key].update((value,))
                written.add(key)
            if step >= self.limit:
                raise _out_of_steps(self.limit)
            name, step = following, step + 1
        return written

    async def _next(self, name: str, leave: str | _Branch | None, seen: tuple[Any, ...]) -> str | None:
        if not isinstance(leave, _Branch):
            return leave
        places = {str(place) for place in await leave.choose(*seen) if place != END}
        if len(places) > 1:
            raise NotStraight(f"{name} went on to {len(places)} nodes at once")
        for place in places & self.places.keys():
            return place
        for place in places:
            _log.warning("%s went on to %r, which is no node: the graph ends there", name, place)
        return None


def _config(runtime: Runtime[Any]) -> RunnableConfig:
    return _Config({CONF: _Config({CONFIG_KEY_RUNTIME: runtime})})  # type: ignore[return-value]


def _out_of_steps(limit: int) -> GraphRecursionError:
    message = (
        f"Recursion limit of {limit} reached without hitting a stop condition. You can increase the limit by setting "
        "the `recursion_limit` config key."
    )
    return GraphRecursionError(create_error_message(message=message, error_code=ErrorCode.GRAPH_RECURSION_LIMIT))


def _check_policies(what: str, thing: object, policies: Sequence[str], parts: Sequence[str]) -> None:
    for attribute, value in vars(thing).items():
        if attribute in policies and value not in (None, False, (), [], {}):
            raise NotStraight(f"{what} has {attribute}")
        if attribute not in policies and attribute not in parts:
            raise NotStraight(f"{what} has {attribute}, which is not known")


def _state_channels(graph: Any) -> dict[str, Channel]:
    inner = {START, TASKS, *(_TO + name for name in graph.nodes)}
    channels = {key: channel for key, channel in graph.channels.items() if key not in inner}
    for key, channel in channels.items():
        if type(channel) not in (LastValue, BinaryOperatorAggregate):
            kind = getattr(channel, "__name__", type(channel).__name__)
            raise NotStraight(f"its key {key!r} is a {kind}")
    for name in graph.nodes:
        if name != START and type(graph.channels[_TO + name]) is not EphemeralValue:
            raise NotStraight(f"{name} is deferred")
    return channels


def _place(name: str, node: PregelNode) -> _Place:
    _check_policies(name, node, NODE_POLICIES, NODE_PARTS)
    write, *leaving = node.writers
    if not isinstance(write, ChannelWrite):
        raise NotStraight(f"{name} writes by a {type(write).__name__}")
    update, control = write.writes
    if not isinstance(update, ChannelWriteTupleEntry) or not isinstance(control, ChannelWriteTupleEntry):
        raise NotStraight(f"{name} writes in a way that is not known")
    if control.static:
        raise NotStraight(f"{name} chooses its successors by Command")
    if len(leaving) > 1:
        raise NotStraight(f"{name} has {len(leaving)} successors")
    call = None if name == START else _Call.of(name, node.bound, node.channels, node.mapper)
    return _Place(call, update.mapper, _leave(name, leaving[0]) if leaving else None)


def _leave(name: str, writer: Any) -> str | _Branch:
    if isinstance(writer, ChannelWrite):
        (entry,) = writer.writes
        if isinstance(entry, ChannelWriteEntry) and entry.channel.startswith(_TO):
            return entry.channel.removeprefix(_TO)
        raise NotStraight(f"{name} leads to a node that waits for several")
    spec, reader = writer.afunc.__self__, writer.kwargs["reader"].keywords
    return _Branch(spec, _Call.of(f"the branch after {name}", spec.path, reader["select"], reader["mapper"]))
