import asyncio
import json
from dataclasses import replace
from typing import TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from support import make_dataset

import starec_agents
from starec_agents import ScriptedChat, UserAgent, build_graph, scripted_user, variants
from starec_agents.graph import Context, State
from starec_agents.prompts import start_memory
from starec_env.errors import EndpointError, InvalidOption
from starec_env.replay.stream import Stream, judge
from starec_env.types import Item, Memory, Ranker, Ranking

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
    assert learned.history[0] in agent.calls[0].messages[1]["content"]


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
    agent = agent_of(memory=memory, graph=variants.append_history())
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
    agent = agent_of(graph=variants.append_history())
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
        "answer_format": "compact",
        "structured": False,
        "max_history": 40,
        "sampling": {"temperature": 0.5, "max_tokens": 9},
    }


def test_a_scripted_user_depends_on_seed_and_prompt_alone(turns):
    orders = [agent_of(scripted_user(seed)).rank(turns[turn].query).order for seed in (0, 0, 1) for turn in (0, 1)]
    assert orders[:2] == orders[2:4]
    assert len(set(orders)) == 4


def test_exports_are_there():
    for name in starec_agents.__all__:
        assert getattr(starec_agents, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = starec_agents.nonsense
