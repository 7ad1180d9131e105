import asyncio
import json
import operator
from dataclasses import replace
from typing import Annotated, Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.store.memory import InMemoryStore
from support import make_dataset, record
from typing_extensions import TypedDict

import starec_agents
from starec_agents import ScriptedChat, UserAgent, build_graph, check_graph, graphs, run_population, scripted_user
from starec_agents.graph import Context, State, call_model, fast_rank, update_memory
from starec_agents.memory import Memory
from starec_agents.planner import planner
from starec_agents.runs.reading import read_run, read_steps
from starec_agents.tasks import Prompts, start_memory
from starec_env.errors import EndpointError, InvalidOption, StarecWarning, UnknownName
from starec_env.replay.stream import Stream, judge
from starec_env.types import Item, Ranker, Ranking

FORMATS = (
    {},
    {"answer_format": "compact"},
    {"answer_format": "compact", "structured": True},
)


def catalogue(domain, n=60):
    by_domain = {
        "movie": lambda i: Item(
            i, f"Film, The: Part {i} - Again ({1900 + i})", {"year": str(1900 + i), "genres": "Drama"}
        ),
        "music": lambda i: Item(f"B{i}", "Greatest Hits", {"artist": f"Band {i // 2}"}),
        "item": lambda i: Item(f"A{i}", f'{i} mm "Bolt" [steel] <b>{i}</b>', {"brand": "Acme", "price": f"{i}.99"}),
    }
    return [by_domain[domain](i) for i in range(n)]


@pytest.fixture
def turns():
    return Stream(make_dataset()).turns(0)


def agent_of(reply=None, **options):
    return UserAgent(ScriptedChat(reply or scripted_user()), **options)


@pytest.mark.parametrize("domain", ["movie", "music", "item"])
@pytest.mark.parametrize("options", FORMATS)
def test_every_format_goes_round_in_every_domain(domain, options):
    stream = Stream(replace(make_dataset(), domain=domain, items=catalogue(domain)))
    agent = agent_of(**options)
    for turn in stream.turns(0):
        ranking = agent.rank(turn.query)
        assert ranking.problems == ()
        assert sorted(ranking.order) == list(range(20))
        memory = agent.learn(judge(turn, ranking)[0])
        assert memory.profile.startswith("Has moods")
        assert [call.kind for call in agent.calls] == ["rank", "reflect"]
    assert len(agent.memory.history) == len(stream.turns(0))


async def test_an_agent_steps_through_its_stream(turns):
    agent = agent_of()
    assert agent.memory is None
    first = await agent.arank(turns[0].query)
    assert agent.memory == start_memory(turns[0].query)
    learned = await agent.alearn(judge(turns[0], first)[0])
    assert agent.memory is learned
    await agent.arank(turns[1].query)
    assert [call.kind for call in agent.calls] == ["rank"]
    assert learned.profile in agent.calls[0].messages[1]["content"]
    shown = f" - liked (you predicted: {learned.history[0].prediction})"
    (line,) = [line for line in agent.calls[0].messages[1]["content"].split("\n") if line.endswith(shown)]
    assert line.startswith(learned.history[0].title)


async def test_sync_calls_work_inside_a_running_loop_and_share_one_loop(turns):
    loops = []

    class Chat(ScriptedChat):
        async def complete(self, messages, **sampling):
            loops.append(asyncio.get_running_loop())
            return await super().complete(messages, **sampling)

    agents = [UserAgent(Chat(scripted_user())) for _ in range(2)]
    rankings = [agent.rank(turns[0].query) for agent in agents]
    agents[0].learn(judge(turns[0], rankings[0])[0])
    assert len(set(loops)) == 1
    assert loops[0] is not asyncio.get_running_loop()
    assert rankings[0] == await agent_of().arank(turns[0].query)


def test_an_agent_is_a_ranker():
    assert isinstance(agent_of(), Ranker)


def test_a_given_memory_is_gone_on_from(turns):
    memory = Memory(profile="Given.", history=("earlier",))
    agent = agent_of(memory=memory, graph=graphs.append_history())
    agent.learn(judge(turns[0], agent.rank(turns[0].query))[0])
    assert agent.memory.profile == "Given."
    assert agent.memory.history[0] == "earlier"
    assert memory.history == ("earlier",)


def test_learning_needs_a_ranking_and_happens_once(turns):
    agent = agent_of()
    feedback = judge(turns[0], Ranking(order=()))[0]
    with pytest.raises(InvalidOption, match="without a ranking before it"):
        agent.learn(feedback)
    agent.rank(turns[0].query)
    agent.learn(feedback)
    with pytest.raises(InvalidOption, match="without a ranking before it"):
        agent.learn(feedback)


def test_feedback_on_another_turn_is_refused_and_nothing_is_learned(turns):
    agent = agent_of(graph=graphs.append_history())
    agent.rank(turns[0].query)
    foreign = judge(turns[0], Ranking(order=()))[0].model_copy(update={"item_id": "no such item"})
    with pytest.raises(InvalidOption, match="not among the candidates"):
        agent.learn(foreign)
    assert agent.memory == start_memory(turns[0].query)


def test_a_failed_endpoint_leaves_the_agent_as_it_was(turns):
    failing = True

    def reply(messages, sampling):
        if failing:
            raise EndpointError("down", "connection")
        return scripted_user()(messages, sampling)

    agent = agent_of(reply)
    with pytest.raises(EndpointError, match="down"):
        agent.rank(turns[0].query)
    failing = False
    ranking = agent.rank(turns[0].query)
    before, failing = agent.memory, True
    with pytest.raises(EndpointError, match="down"):
        agent.learn(judge(turns[0], ranking)[0])
    assert agent.memory == before
    failing = False
    assert len(agent.learn(judge(turns[0], ranking)[0]).history) == 1
    assert [call.kind for call in agent.calls] == ["rank", "reflect"]


def test_a_graph_of_ones_own_drops_in(turns):
    async def by_position(state: State) -> State:
        return {"ranking": Ranking(order=tuple(range(len(state["query"].candidates))))}

    async def note(state: State) -> State:
        return {"memory": state["memory"].updated(event=f"saw {state['feedback'].item_id}")}

    graph = StateGraph(State, context_schema=Context)
    graph.add_node(by_position)
    graph.add_node(note)
    graph.add_conditional_edges(START, lambda state: "note" if "feedback" in state else "by_position")
    graph.add_edge("by_position", END)
    graph.add_edge("note", END)
    agent = agent_of(graph=graph.compile(name="by-position"))
    ranking = agent.rank(turns[0].query)
    assert ranking.order == tuple(range(20))
    agent.learn(judge(turns[0], ranking)[0])
    assert agent.memory.history == (f"saw {turns[0].target_item.id}",)
    assert agent.calls == []
    assert agent.graph_name == "by-position"


async def half(state: State) -> str:
    return "rank" if state.get("feedback") is None else "learn"


def two_halves(rank: Any, learn: Any, schema: Any = State, **options: Any) -> Any:
    """A graph of one node a half."""
    graph = StateGraph(schema, context_schema=Context).add_node("rank", rank).add_node("learn", learn)
    return graph.add_conditional_edges(START, half, ["rank", "learn"]).compile(**options)


def in_order(state: State) -> Ranking:
    return Ranking(order=tuple(range(len(state["query"].candidates))))


def one_more(old: int, new: int) -> int:
    return old + new + 1


class Noting(State, total=False):
    plan: str
    notes: Annotated[tuple[str, ...], operator.add]
    changes: Annotated[int, one_more]
    either: Annotated[int | str, lambda old, new: f"{old}{new}"]  # a type without a default


@pytest.mark.parametrize("executor", ["direct", "langgraph"])
def test_a_graphs_own_keys_are_carried_to_learning_and_to_the_next_turn(turns, executor):
    seen = []

    def look(state):
        seen.append({key: state.get(key) for key in ("plan", "notes", "changes", "either")} | {"calls": state["calls"]})

    async def rank(state: Noting) -> Noting:
        look(state)
        return {"ranking": in_order(state), "plan": "ranked", "notes": ("r",), "changes": 1, "either": 1}

    async def learn(state: Noting) -> Noting:
        look(state)
        return {"plan": "learned", "notes": ("l",), "memory": state["memory"].updated(event="e")}

    agent = agent_of(graph=two_halves(rank, learn, Noting), executor=executor)
    for turn in turns[:2]:
        agent.learn(judge(turn, agent.rank(turn.query))[0])
    assert seen == [
        {"plan": None, "notes": (), "changes": 0, "either": None, "calls": ()},
        {"plan": "ranked", "notes": ("r",), "changes": 2, "either": 1, "calls": ()},
        {"plan": "learned", "notes": ("r", "l"), "changes": 2, "either": 1, "calls": ()},
        {"plan": "ranked", "notes": ("r", "l", "r"), "changes": 4, "either": "11", "calls": ()},
    ]
    assert len(agent.memory.history) == 2


def test_a_ranking_alone_changes_nothing_that_is_kept(turns):
    seen = []

    async def rank(state: Noting) -> Noting:
        seen.append(state["notes"])
        return {"ranking": in_order(state), "notes": ("r",)}

    async def learn(state: Noting) -> Noting:
        raise EndpointError("down", "connection")

    agent = agent_of(graph=two_halves(rank, learn, Noting))
    ranking = agent.rank(turns[0].query)
    with pytest.raises(EndpointError):
        agent.learn(judge(turns[0], ranking)[0])
    agent.rank(turns[0].query)
    assert seen == [(), ()]


class Facts(Memory):
    facts: tuple[str, ...] = ()


@pytest.mark.parametrize("executor", ["direct", "langgraph"])
def test_a_memory_of_ones_own_class_stays_of_that_class(turns, executor):
    agent = agent_of(memory=Facts(profile="Given.", facts=("likes noir",)), executor=executor)
    agent.learn(judge(turns[0], agent.rank(turns[0].query))[0])
    assert type(agent.memory) is Facts
    assert agent.memory.facts == ("likes noir",)
    assert agent.memory.profile.startswith("Has moods")


async def rank_by_planner(state: State, runtime: Runtime[Context]) -> State:
    plan = await call_model(runtime.context, "plan", [{"role": "user", "content": "plan"}], model="planner")
    return {"ranking": in_order(state), "calls": (plan,)}


def test_nodes_ask_models_by_name_and_a_run_records_them(turns):
    agent = agent_of(graph=two_halves(rank_by_planner, update_memory), models={"planner": ScriptedChat("my plan")})
    agent.rank(turns[0].query)
    assert [call.completion for call in agent.calls] == ["my plan"]
    assert agent.settings["models"] == {"planner": "ScriptedChat"}
    misnamed = agent_of(graph=agent.graph, models={"planer": ScriptedChat("my plan")})
    with pytest.raises(UnknownName, match="no model for nodes 'planner': did you mean 'planer'"):
        misnamed.rank(turns[0].query)


def test_a_checkpointer_is_refused_at_once():
    graph = two_halves(rank_by_planner, update_memory, checkpointer=InMemorySaver())
    with pytest.raises(InvalidOption, match="the graph has a checkpointer.*compile it without"):
        agent_of(graph=graph)
    assert agent_of(graph=two_halves(rank_by_planner, update_memory, checkpointer=False)).executor == "direct"


def test_a_store_works_on_langgraphs_executor(turns):
    async def rank(state: State, runtime: Runtime[Context]) -> State:
        await runtime.store.aput(("users",), "1", {"seen": True})
        return {"ranking": in_order(state)}

    async def learn(state: State, runtime: Runtime[Context]) -> State:
        item = await runtime.store.aget(("users",), "1")
        return {"memory": state["memory"].updated(event=str(item.value))}

    agent = agent_of(graph=two_halves(rank, learn, store=InMemoryStore()))
    assert agent.executor == "langgraph"
    agent.learn(judge(turns[0], agent.rank(turns[0].query))[0])
    assert agent.memory.history == ("{'seen': True}",)


def test_a_graph_inside_a_runnable_of_langchains_works(turns):
    agent = agent_of(graph=graphs.append_history().with_retry())
    ranking = agent.rank(turns[0].query)
    assert agent.executor == "langgraph"
    assert ranking == agent_of().rank(turns[0].query)


def test_the_executor_can_be_chosen(turns):
    assert [agent_of(executor=executor).executor for executor in ("auto", "direct", "langgraph")] == [
        "direct",
        "direct",
        "langgraph",
    ]
    rankings = [agent_of(executor=executor).rank(turns[0].query) for executor in ("direct", "langgraph")]
    assert rankings[0] == rankings[1]
    with pytest.raises(InvalidOption, match="executor='direct', but graph 'LangGraph' is not straight: .* has store"):
        agent_of(graph=two_halves(rank_by_planner, update_memory, store=InMemoryStore()), executor="direct")
    with pytest.raises(InvalidOption, match="executor='drect'.*did you mean 'direct'"):
        agent_of(executor="drect")


# --- the trial before a run ---


async def never_ranks(state: State) -> State:
    return {"agrees": True}


async def reads_feedback(state: State) -> State:
    return {"agrees": state["feedback"].agrees, "ranking": in_order(state)}


async def reads_json(state: State, runtime: Runtime[Context]) -> State:
    call = await call_model(runtime.context, "rank", [{"role": "user", "content": "answer in JSON"}])
    return {"ranking": Ranking(order=tuple(json.loads(call.completion))), "calls": (call,)}


async def asks_for_ever(state: State, runtime: Runtime[Context]) -> State:
    while True:
        await call_model(runtime.context, "rank", [{"role": "user", "content": "are you sure?"}])


@pytest.mark.parametrize("graph", [graphs.reflect_always, graphs.rank_only, planner])
async def test_a_trial_leaves_a_graph_that_ranks_alone(turns, graph):
    memory, llm = Memory(profile="Given."), ScriptedChat("x")
    agent = UserAgent(llm, graph, memory=memory)
    await check_graph(agent)
    await check_graph(agent, turns[0].query)
    assert (llm.requests, agent.memory, agent.calls) == (0, memory, [])


@pytest.mark.parametrize(
    ("node", "error", "message"),
    [
        (never_ranks, InvalidOption, "ended without a ranking"),
        (reads_feedback, InvalidOption, "reads 'feedback' while ranking.*branch at START"),
        (rank_by_planner, UnknownName, "no model for nodes 'planner'"),
    ],
)
async def test_a_trial_finds_what_would_fail_every_user(node, error, message, tmp_path):
    graph = StateGraph(State, context_schema=Context).add_node("rank", node).add_edge(START, "rank").compile()
    with pytest.raises(error, match=message):
        await check_graph(agent_of(graph=graph))
    make = UserAgent.factory(llm := ScriptedChat("x"), graph=graph)
    with pytest.raises(error, match=message):
        await starec_agents.arun_population(make_dataset(), make, out=tmp_path / "run", progress=False)
    assert llm.requests == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("node", [reads_json, asks_for_ever])
async def test_a_trial_lets_pass_what_only_real_answers_decide(node):
    await check_graph(agent_of(graph=two_halves(node, update_memory)))


def test_a_run_says_at_once_which_state_keys_it_cannot_record(tmp_path):
    class Odd(State, total=False):
        lock: BaseException
        anything: Any
        number: int

    async def learn(state: Odd) -> dict[str, Any]:
        return {"lock": None, "anything": object(), "number": 3}

    make = UserAgent.factory(ScriptedChat(scripted_user()), graph=two_halves(fast_rank, learn, Odd))
    with pytest.warns(StarecWarning, match="state keys lock, anything can't be recorded"):
        run_population(make_dataset(), make, out=tmp_path, users=1, turns=1, progress=False)
    assert [step.state for step in read_steps(tmp_path)] == [{"number": 3}]


def test_a_run_says_what_its_graph_ran_on(tmp_path):
    for executor, out in (("auto", tmp_path / "direct"), ("langgraph", tmp_path / "langgraph")):
        make = UserAgent.factory(ScriptedChat(scripted_user()), executor=executor)
        run_population(make_dataset(), make, out=out, users=2, turns=1, progress=False)
        assert read_run(out)["sessions"][0]["executor"] == out.name
    assert record(tmp_path / "direct") == record(tmp_path / "langgraph")


def test_a_graph_that_does_not_rank_is_told_so(turns):
    class Empty(TypedDict, total=False):
        query: object

    async def idle(state: Empty) -> Empty:
        return {}

    graph = StateGraph(Empty).add_node(idle).add_edge(START, "idle")
    with pytest.raises(InvalidOption, match=r"graph is a StateGraph: give a compiled graph"):
        agent_of(graph=graph)
    with pytest.raises(InvalidOption, match="graph 'idle' ended without a ranking"):
        agent_of(graph=graph.compile(name="idle")).rank(turns[0].query)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answer_format": "compct"}, "did you mean 'compact'"),
        ({"structured": True}, "add answer_format='compact'"),
        ({"max_history": 0}, "max_history=0"),
    ],
)
def test_wrong_options_are_refused_at_once(options, message):
    with pytest.raises(InvalidOption, match=message):
        agent_of(**options)
    with pytest.raises(InvalidOption, match=message):
        UserAgent.factory(ScriptedChat("x"), **options)


def test_a_factory_gives_each_user_an_agent_of_its_own(turns):
    make = UserAgent.factory(ScriptedChat(scripted_user()), answer_format="compact", temperature=0.5)
    one, other = make(), make()
    one.rank(turns[0].query)
    assert other.memory is None
    assert one.graph is other.graph
    assert one.settings == other.settings


def test_settings_tell_an_agent_in_json():
    agent = agent_of(answer_format="compact", graph=build_graph("mine"), temperature=0.5, max_tokens=9)
    assert json.loads(json.dumps(agent.settings)) == {
        "model": "ScriptedChat",
        "models": {},
        "graph": "mine",
        "answer_format": "labels",
        "prompts": Prompts().fingerprint("labels", 40),
        "max_history": 40,
        "sampling": {"temperature": 0.5, "max_tokens": 9},
    }


def test_a_scripted_user_depends_on_seed_and_prompt_alone(turns):
    orders = [agent_of(scripted_user(seed)).rank(turns[turn].query).order for seed in (0, 0, 1) for turn in (0, 1)]
    assert orders[:2] == orders[2:4]
    assert len(set(orders)) == 4


def test_exports_are_there_and_completed():
    for name in starec_agents.__all__:
        assert getattr(starec_agents, name)
    assert [name for name in dir(starec_agents) if not name.startswith("__")] == sorted(starec_agents.__all__)
    with pytest.raises(AttributeError, match="starec_agents attribute nonsense"):
        _ = starec_agents.nonsense
