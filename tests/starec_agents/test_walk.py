import asyncio
import operator
import re
import sys
from copy import deepcopy
from dataclasses import dataclass, field, fields
from inspect import signature
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.callbacks.usage import get_usage_metadata_callback
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tracers.context import collect_runs
from langgraph.cache.memory import InMemoryCache
from langgraph.channels import EphemeralValue, Topic
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_config, get_store, get_stream_writer
from langgraph.errors import GraphRecursionError
from langgraph.graph import END, START, StateGraph
from langgraph.graph._branch import BranchSpec  # noqa: PLC2701
from langgraph.graph.state import CompiledStateGraph
from langgraph.managed import RemainingSteps
from langgraph.runtime import Runtime, get_runtime
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import CachePolicy, Command, Overwrite, RetryPolicy, Send, StreamWriter, interrupt
from pydantic import BaseModel
from support import make_dataset
from typing_extensions import TypedDict

from starec_agents import ScriptedChat, _walk, build_graph, graphs, scripted_user  # noqa: PLC2701
from starec_agents._executor import Executor  # noqa: PLC2701
from starec_agents.graph import Context
from starec_agents.planner import planner
from starec_agents.tasks import start_memory
from starec_env.replay.stream import Stream, judge
from starec_env.types import Ranking
from starec_training.features import Evidence
from starec_training.rule_teacher import RuleTeacher

TURN = Stream(make_dataset()).turns(0)[0]


def extend_in_place(old: list[int], new: list[int]) -> list[int]:
    old.extend(new)
    return old


def larger(old: int, new: int) -> int:
    return max(old, new)


class State(TypedDict, total=False):
    count: int
    text: str
    items: Annotated[list[int], operator.add]
    total: Annotated[int, operator.add]
    best: Annotated[int, larger]
    either: Annotated[int | str, lambda old, new: f"{old}{new}"]  # a type without a default
    grown: Annotated[list[int], extend_in_place]


class Narrow(TypedDict, total=False):
    count: int
    items: Annotated[list[int], operator.add]


class Private(TypedDict, total=False):
    count: int
    secret: int


SCHEMAS = {None: None, "narrow": Narrow, "private": Private}
LISTS = ("items", "grown")


# --- graphs made up by hypothesis, run both ways ---


def updates() -> st.SearchStrategy[Any]:
    numbers, lists = st.integers(-3, 3), st.lists(st.integers(-3, 3), max_size=2)
    keys = {key: lists if key in LISTS else numbers for key in (*State.__annotations__, "secret", "unknown")}
    partial = st.fixed_dictionaries({}, optional=keys)
    overwritten = st.sampled_from(list(State.__annotations__)).flatmap(
        lambda key: st.builds(lambda value: {key: Overwrite(value)}, keys[key])
    )
    return st.one_of(
        partial, partial, partial, st.none(), overwritten, st.sampled_from([5, "text", [], [("count", 1)]])
    )


@st.composite
def node_specs(draw: st.DrawFn, n: int) -> dict[str, Any]:
    targets = st.sampled_from([*(f"n{i}" for i in range(n)), END])
    odd = st.sampled_from(["nowhere", None, START, [], 1])
    one_list = targets.map(lambda target: [target, target])
    return {
        "updates": draw(updates()),
        "raises": draw(st.sampled_from([None] * 9 + [ValueError, asyncio.CancelledError])),
        "counts": draw(st.booleans()),
        "is_async": draw(st.booleans()),
        "wants_runtime": draw(st.booleans()),
        "schema": draw(st.sampled_from([None, None, *SCHEMAS])),
        "leave": draw(st.sampled_from(["edge", "edge", "branch", "branch", "nothing"])),
        "targets": draw(st.lists(st.one_of(targets, targets, targets, one_list, odd), min_size=1, max_size=3)),
        "mapped": draw(st.booleans()),
        "typed": draw(st.booleans()),
    }


@st.composite
def graph_specs(draw: st.DrawFn) -> dict[str, Any]:
    n = draw(st.integers(1, 4))
    return {
        "nodes": [draw(node_specs(n)) for _ in range(n)],
        "input": draw(st.sampled_from([None, None, Narrow])),
        "output": draw(st.sampled_from([None, None, Narrow])),
        "start": draw(node_specs(n)),
        "limit": draw(st.integers(1, 9)),
        "given": draw(updates().filter(lambda value: isinstance(value, dict))),
    }


def node_of(name: str, spec: dict[str, Any], trace: list[Any]) -> Any:
    def body(state: Any, context: object) -> Any:
        trace.append((name, deepcopy(state), context))
        if spec["raises"]:
            raise spec["raises"](name)
        update = deepcopy(spec["updates"])
        if spec["counts"] and isinstance(update, dict):
            update["count"] = state.get("count", 0) + 1
        return update

    async def plain(state: Any) -> Any:
        return body(state, None)

    async def with_runtime(state: Any, runtime: Runtime[Any]) -> Any:
        return body(state, runtime.context)

    def plain_sync(state: Any) -> Any:
        return body(state, None)

    def sync_with_runtime(state: Any, *, runtime: Runtime[Any]) -> Any:
        return body(state, runtime.context)

    chosen = (plain_sync, sync_with_runtime, plain, with_runtime)
    return chosen[2 * spec["is_async"] + spec["wants_runtime"]]


def route_of(name: str, spec: dict[str, Any], trace: list[Any]) -> Any:
    def choose(state: Any) -> Any:
        trace.append((f"after {name}", deepcopy(state)))
        return spec["targets"][state.get("count", 0) % len(spec["targets"])]

    async def typed(state: Narrow) -> Any:
        return choose(state)

    return typed if spec["typed"] else choose


def build(spec: dict[str, Any], trace: list[Any]) -> CompiledStateGraph:
    graph = StateGraph(State, Context, input_schema=spec["input"], output_schema=spec["output"])
    for number, node in enumerate(spec["nodes"]):
        name = f"n{number}"
        graph.add_node(name, node_of(name, node, trace), input_schema=SCHEMAS[node["schema"]])
    for name, node in ((START, spec["start"]), *((f"n{i}", node) for i, node in enumerate(spec["nodes"]))):
        known = [target for target in node["targets"] if target in [*graph.nodes, END][: None if name != START else -1]]
        if node["leave"] == "branch":
            ends = [*graph.nodes, END] if node["mapped"] else None
            graph.add_conditional_edges(name, route_of(name, node, trace), ends)
        elif known and node["leave"] == "edge":
            graph.add_edge(name, known[0])
        elif name == START:
            graph.add_edge(START, "n0")
    return graph.compile().with_config(recursion_limit=spec["limit"])


async def outcome(running: Any) -> Any:
    try:
        return await running or {}
    except Exception as error:
        return type(error), str(error)


async def both(graph: Any, state: Any, context: object = "context") -> tuple[Any, Any]:
    """What the walk and LangGraph's executor make of an input; the graph must be straight."""
    executor = Executor(graph)
    assert executor.why is None
    again = {key: deepcopy(value) if isinstance(value, (list, Overwrite)) else value for key, value in state.items()}
    walked = await outcome(executor.ainvoke(state, context))
    assert executor.why is None
    return walked, await outcome(graph.ainvoke(again, context=context))


@given(graph_specs())
@settings(max_examples=300, deadline=None)
def test_a_walk_ends_as_langgraphs_executor_does(spec):
    async def run() -> None:
        trace: list[Any] = []
        walked, ran = await both(build(spec, trace), deepcopy(spec["given"]))
        assert walked == ran
        assert trace[: len(trace) // 2] == trace[len(trace) // 2 :]

    asyncio.run(run())


# --- graphs of ours ---


def shipped() -> list[Any]:
    made = [graphs.reflect_always, graphs.reflect_on_mismatch, graphs.append_history, graphs.rank_only, planner]
    teacher = RuleTeacher(Evidence(make_dataset(), range(1, 11), fit_turns=20))
    return [*(make() for make in made), teacher.graph(), build_graph("mine")]


@pytest.mark.parametrize("graph", shipped(), ids=lambda graph: graph.name)
@pytest.mark.parametrize("options", [{}, {"answer_format": "scores"}])
async def test_every_graph_that_we_ship_is_walked_with_the_same_states(graph, options):
    context = Context(ScriptedChat(scripted_user()), **options)
    state = {"query": TURN.query, "memory": start_memory(TURN.query)}
    ranked, same = await both(graph, state, context)
    assert ranked == same
    assert isinstance(ranked["ranking"], Ranking)
    learned, same = await both(graph, {**ranked, "feedback": judge(TURN, ranked["ranking"])[0]}, context)
    assert learned == same
    assert "memory" in learned


# --- states that are no TypedDict, and what nodes get ---


@dataclass
class DataState:
    count: int = 0
    items: Annotated[list[int], operator.add] = field(default_factory=list)


class ModelState(BaseModel):
    count: int = 0
    items: Annotated[list[int], operator.add] = []


@pytest.mark.parametrize("schema", [DataState, ModelState])
@pytest.mark.parametrize("given", [{}, {"count": 2, "items": [1]}])
async def test_states_that_are_dataclasses_or_models_are_walked(schema, given):
    async def whole(state: Any) -> Any:
        return schema(count=state.count + 1, items=[state.count])

    async def partial(state: Any) -> Any:
        return {"items": [state.count]}

    graph = StateGraph(schema).add_node(whole).add_node(partial).add_edge(START, "whole")
    graph.add_conditional_edges("whole", lambda state: "whole" if state.count < 3 else "partial", ["whole", "partial"])
    walked, ran = await both(graph.compile(), given)
    assert walked == ran
    assert walked["count"] == 3


async def test_a_model_state_that_is_not_valid_fails_alike():
    async def idle(state: ModelState) -> dict[str, Any]:
        return {}

    graph = StateGraph(ModelState).add_node(idle).add_edge(START, "idle").compile()
    (walked, text), (ran, same) = await both(graph, {"count": "many"})
    assert (walked, text) == (ran, same)
    assert walked.__name__ == "ValidationError"


async def test_what_langgraph_offers_inside_a_node_is_there():
    seen: list[Any] = []

    async def look(state: State, runtime: Runtime[Any]) -> State:
        get_stream_writer()("a word")
        runtime.stream_writer("a word")
        runtime.heartbeat()
        seen.append((get_runtime().context, runtime.context, get_store(), runtime.store, runtime.previous))
        seen[-1] += (runtime.drain_requested, runtime.server_info)
        return {"count": 1}

    graph = StateGraph(State, Context).add_node(look).add_edge(START, "look").compile()
    walked, ran = await both(graph, {"count": 0}, context=(context := Context(ScriptedChat("x"))))
    assert walked == ran
    assert seen == [(context, context, None, None, None, False, None)] * 2
    with pytest.raises(RuntimeError, match="outside of a runnable context"):
        get_config()


@pytest.mark.parametrize("route", [END, [], [END, "second"], ["second", "second"]])
async def test_a_branch_may_name_the_end_and_one_node(route, caplog):
    walked, ran = await both(branched(lambda state: route).compile(), {})
    assert walked == ran
    assert caplog.messages == []


async def test_a_reducer_that_changes_its_argument_does_so_as_often_as_on_the_executor():
    async def grow(state: State) -> State:
        return {"grown": [1]}

    async def narrow(state: Narrow) -> str:
        return "second"

    for route, length in ((narrow, 1), (lambda state: "second", 2)):  # the executor's own view of it, too
        graph = StateGraph(State).add_node(grow).add_node(second).add_edge(START, "grow")
        walked, ran = await both(graph.add_conditional_edges("grow", route).compile(), {})
        assert walked == ran
        assert walked["grown"] == [1] * length


async def test_errors_come_through_as_they_are_and_name_the_node():
    class Mine(Exception):
        pass

    error = Mine("as it is")

    async def fail(state: State) -> State:
        raise error

    with pytest.raises(Mine) as caught:
        await Executor(line(fail).compile()).ainvoke({}, None)
    assert caught.value is error
    assert error.__notes__ == ["During task with name 'fail'"]


async def test_a_cancelled_walk_is_cancelled():
    async def wait(state: State) -> State:
        await asyncio.sleep(60)
        return {}

    walking = asyncio.create_task(Executor(line(wait).compile()).ainvoke({}, None))
    await asyncio.sleep(0)
    walking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await walking


async def test_users_in_flight_share_no_state():
    async def grow(state: State) -> State:
        await asyncio.sleep(0)
        return {"grown": [state["count"]]}

    executor = Executor(line(grow).compile())
    ended = await asyncio.gather(*(executor.ainvoke({"count": number}, None) for number in range(20)))
    assert [state["grown"] for state in ended] == [[number] for number in range(20)]


async def test_a_loop_ends_at_langgraphs_own_limit():
    async def again(state: State) -> State:
        return {"count": state.get("count", 0) + 1}

    graph = line(again).add_edge("again", "again").compile()
    with pytest.raises(GraphRecursionError, match="Recursion limit of 10007"):
        await Executor(graph).ainvoke({}, None)


# --- what runs on the executor ---


async def first(state: State) -> State:
    return {"count": 1}


async def second(state: State) -> State:
    return {"items": [state.get("count", 0)]}


def line(*nodes: Any, schema: Any = State, **options: Any) -> StateGraph:
    graph = StateGraph(schema, Context)
    for node in nodes:
        graph.add_node(node, **options)
    names = [node.__name__ for node in nodes]
    for start, end in zip([START, *names], names, strict=False):
        graph.add_edge(start, end)
    return graph


def fanned() -> StateGraph:
    return line(first, second).add_edge(START, "second")


def joined() -> StateGraph:
    return StateGraph(State).add_node(first).add_node(second).add_edge(START, "first").add_edge(["first"], "second")


def twice_branched() -> StateGraph:
    graph = line(first, second)
    return graph.add_conditional_edges("first", lambda state: END)


def subgraph() -> StateGraph:
    return StateGraph(State).add_node("inner", line(first).compile()).add_edge(START, "inner")


async def wants_config(state: State, config: RunnableConfig) -> State:
    return {"text": str(config["metadata"]["langgraph_node"])}


async def wants_writer(state: State, writer: StreamWriter) -> State:
    return {}


async def wants_store(state: State, store: BaseStore) -> State:
    return {}


async def commands(state: State) -> Command[Literal["second"]]:
    return Command(goto="second", update={"count": 5})


def commanding() -> StateGraph:
    return StateGraph(State).add_node(commands).add_node(second).add_edge(START, "commands")


class Managed(State):
    left: RemainingSteps


class Ephemeral(State):
    passing: Annotated[int, EphemeralValue]


class Gathering(State):
    gathered: Annotated[list[int], Topic(int, True)]


async def handle(state: State) -> State:
    return {}


NEEDS_EXECUTOR = {
    "checkpointer": lambda: line(first).compile(checkpointer=InMemorySaver()),
    "store": lambda: line(first).compile(store=InMemoryStore()),
    "cache": lambda: line(first).compile(cache=InMemoryCache()),
    "interrupt_before_nodes": lambda: line(first).compile(interrupt_before=["first"]),
    "interrupt_after_nodes": lambda: line(first).compile(interrupt_after="*"),
    "debug": lambda: line(first).compile(debug=True),
    "retry_policy": lambda: line(first, retry_policy=RetryPolicy()).compile(),
    "cache_policy": lambda: line(first, cache_policy=CachePolicy()).compile(),
    "timeout": lambda: line(first, timeout=5).compile(),
    "error_handler": lambda: line(first, error_handler=handle).compile(),
    "deferred": lambda: line(first, defer=True).compile(),
    "2 successors": lambda: fanned().compile(),
    "first has 2 successors": lambda: twice_branched().compile(),
    "waits for several": lambda: joined().compile(),
    "subgraphs": lambda: subgraph().compile(),
    "takes config": lambda: line(wants_config).compile(),
    "takes writer": lambda: line(wants_writer).compile(),
    "takes store": lambda: line(wants_store).compile(),
    "by Command": lambda: commanding().compile(),
    "RemainingSteps": lambda: line(first, schema=Managed).compile(),
    "EphemeralValue": lambda: line(first, schema=Ephemeral).compile(),
    "Topic": lambda: line(first, schema=Gathering).compile(),
    "without keys|has no keys": lambda: line(wants_number, schema=int).compile(),
    "is a RunnableLambda": lambda: (
        StateGraph(State).add_node("x", RunnableLambda(first)).add_edge(START, "x").compile()
    ),
    r"configured \(tags": lambda: line(first).compile().with_config(tags=["mine"]),
    r"configured \(callbacks": lambda: line(first).compile().with_config(callbacks=[AsyncCallbackHandler()]),
    r"configured \(configurable": lambda: line(first).compile().with_config(configurable={"thread_id": "1"}),
    "it is a RunnableRetry": lambda: line(first).compile().with_retry(),
}


async def wants_number(state: int) -> int:
    return state + 1


@pytest.mark.parametrize("reason", NEEDS_EXECUTOR)
def test_a_graph_that_is_not_straight_runs_on_langgraphs_executor(reason):
    executor = Executor(NEEDS_EXECUTOR[reason]())
    assert executor.name == "langgraph"
    assert re.search(reason, executor.why)


@pytest.mark.parametrize(
    "make", [fanned, joined, commanding, subgraph, lambda: line(wants_config), lambda: line(first, defer=True)]
)
async def test_what_langgraphs_executor_makes_of_it_is_what_comes_back(make):
    graph = make().compile()
    assert await Executor(graph).ainvoke({"count": 1}, None) == await graph.ainvoke({"count": 1})


async def commands_unannounced(state: State):
    return Command(update={"count": 5}, goto="second")


async def sends(state: State) -> Any:
    return [Send("second", {"count": 7}), Send("second", {"count": 8})]


async def returns_a_runnable(state: State) -> Any:
    return RunnableLambda(lambda state: {"count": 6})


async def reads_config(state: State) -> State:
    return {"text": get_config()["metadata"]["langgraph_node"]}


async def reads_thread(state: State) -> State:
    return {"text": str(get_config()["configurable"]["checkpoint_ns"])[:12]}


async def interrupts(state: State) -> State:
    interrupt("may I?")
    return {"count": 9}


def branched(route: Any) -> StateGraph:
    graph = StateGraph(State).add_node(first).add_node(second).add_edge(START, "first")
    return graph.add_conditional_edges("first", route)


async def everywhere(state: State) -> Any:
    return ["first", "second"] if state["count"] == 0 else ["second", END]


UNFORESEEN = {
    "a Command": lambda: StateGraph(State).add_node("x", commands_unannounced).add_node(second).add_edge(START, "x"),
    "Send": lambda: branched(sends),
    "a Runnable": lambda: line(returns_a_runnable),
    "its config": lambda: line(reads_config),
    "its configurable": lambda: line(reads_thread),
    "an interrupt": lambda: line(interrupts),
    "several at once": lambda: branched(lambda state: ["second", "first"] if not state.get("items") else END),
}


@pytest.mark.parametrize("kind", UNFORESEEN)
async def test_what_a_walk_meets_and_does_not_know_is_done_again_on_the_executor(kind, caplog):
    graph = UNFORESEEN[kind]().compile()
    executor = Executor(graph)
    assert executor.name == "direct"
    with caplog.at_level("WARNING", "starec_agents"):
        walked = await executor.ainvoke({"count": 0}, None)
    ran = await graph.ainvoke({"count": 0})
    for state in (walked, ran):  # an interrupt's id is drawn by chance
        state["__interrupt__"] = [asked.value for asked in state.get("__interrupt__", ())]
    assert walked == ran
    assert executor.name == "langgraph"
    assert "on LangGraph's executor" in caplog.text


async def test_callbacks_and_tracers_hear_of_every_node():
    executor = Executor(line(first).compile())
    assert executor.name == "direct"
    with get_usage_metadata_callback():
        assert executor.name == "langgraph"
    with collect_runs() as runs:
        await executor.ainvoke({}, None)
    assert [run.name for run in runs.traced_runs] == ["LangGraph"]
    assert executor.name == "direct"


async def test_a_graph_inside_a_node_of_another_runs_on_the_executor():
    inner, names = Executor(line(first).compile()), []

    async def outer(state: State) -> State:
        names.append(inner.name)
        return await inner.ainvoke(state, None)

    assert await line(outer).compile().ainvoke({"count": 0}) == await line(first).compile().ainvoke({"count": 0})
    assert names == ["langgraph"]


# --- what it reads of LangGraph ---


def test_langgraph_has_no_part_that_a_walk_does_not_know():
    graph = line(first).compile()
    assert graph.nodes["first"].node  # a cached property is an attribute once it was read
    assert vars(graph).keys() <= {*_walk.GRAPH_POLICIES, *_walk.GRAPH_PARTS}
    assert vars(graph.nodes["first"]).keys() <= {*_walk.NODE_POLICIES, *_walk.NODE_PARTS}
    assert {*_walk.GRAPH_POLICIES} <= vars(graph).keys()
    assert {*_walk.NODE_POLICIES} <= vars(graph.nodes["first"]).keys()
    runtime = "context store stream_writer heartbeat previous execution_info server_info control"
    assert [field.name for field in fields(Runtime)] == runtime.split()
    assert set(signature(StateGraph.add_node).parameters) == {
        "self", "node", "action", "defer", "metadata", "input_schema", "retry_policy", "cache_policy", "error_handler",
        "destinations", "timeout", "trace_policy", "kwargs",
    }  # fmt: skip
    assert set(signature(StateGraph.compile).parameters) == {
        "self", "checkpointer", "cache", "store", "interrupt_before", "interrupt_after", "debug", "name",
        "transformers",
    }  # fmt: skip
    assert BranchSpec._fields == ("path", "ends", "input_schema")
    assert list(signature(BranchSpec._finish).parameters) == ["self", "writer", "input", "result", "config"]


def test_a_part_that_is_not_known_is_left_to_the_executor():
    graph = line(first).compile()
    graph.new_feature = None
    assert Executor(graph).why == "the graph has new_feature, which is not known"
    graph = line(first).compile()
    graph.nodes["first"].new_policy = None
    assert Executor(graph).why == "first has new_policy, which is not known"
    graph = line(first).compile()
    graph.nodes["first"].writers = None
    assert "its parts can't be read" in Executor(graph).why
    assert Executor(graph).name == "langgraph"


async def test_without_the_parts_that_a_walk_reads_every_graph_runs_on_the_executor(monkeypatch):
    monkeypatch.setitem(sys.modules, "starec_agents._walk", None)
    graph = line(first).compile()
    executor = Executor(graph)
    assert (executor.name, "ModuleNotFoundError" in executor.why) == ("langgraph", True)
    assert await executor.ainvoke({}, None) == await graph.ainvoke({})
