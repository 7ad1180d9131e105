import asyncio
import json
from dataclasses import replace

import pytest
from support import make_dataset

from starec_agents.agent import UserAgent
from starec_agents.graph import Context, build_graph
from starec_agents.graphs import append_history, rank_only, reflect_always, reflect_on_mismatch
from starec_agents.llm import Completion, ScriptedChat
from starec_agents.llm.base import Usage
from starec_agents.llm.scripted import scripted_user
from starec_agents.memory import Event, Memory
from starec_agents.planner import planner
from starec_agents.studio import make_graph
from starec_agents.tasks import ranking_schema
from starec_env.errors import EndpointError, InvalidOption
from starec_env.replay.stream import Stream, judge
from starec_env.types import ParseReport

MEMORY = Memory(profile="Old.", history=("before",))
TURN = Stream(make_dataset()).turns(0)[0]
FIRST = "1. " + TURN.target_item.title
REFLECTION = "<think>so</think>Updated User description: New."


async def run_turn(graph, *replies, turn=TURN, **context):
    """Both halves with scripted replies; returns the states they end with."""
    said = iter(replies)
    context = Context(ScriptedChat(lambda messages, sampling: next(said)), **context)
    ranked = await graph.ainvoke({"query": turn.query, "memory": MEMORY}, context=context)
    feedback = judge(turn, ranked["ranking"])[0]
    given = {key: ranked[key] for key in ("query", "memory", "ranking")}
    return ranked, await graph.ainvoke({**given, "feedback": feedback}, context=context)


async def test_the_fast_half_ranks_and_leaves_the_memory_alone():
    ranked, _ = await run_turn(reflect_always(), FIRST, REFLECTION)
    assert ranked["ranking"].order == (TURN.target,)
    assert ranked["memory"] == MEMORY
    assert [call.kind for call in ranked["calls"]] == ["rank"]
    assert "agrees" not in ranked


async def test_the_slow_half_compares_reflects_and_updates_the_memory():
    _, learned = await run_turn(reflect_always(), FIRST, REFLECTION)
    assert learned["agrees"]
    item = TURN.target_item
    event = Event(item_id=item.id, title=item.title, liked=True, rating=TURN.rating, rank=1, of=20)
    assert event.rating and str(event) == f"{item.title}: ranked 1 of 20, liked"
    assert learned["memory"] == Memory(profile="New.", history=("before", event))
    assert [call.kind for call in learned["calls"]] == ["reflect"]


async def test_a_reflection_that_says_nothing_keeps_the_profile_and_is_seen_in_the_calls():
    _, learned = await run_turn(reflect_always(), "no ranking", "Updated User description: []")
    assert learned["memory"].profile == "Old."
    assert str(learned["memory"].history[-1]) == f"{TURN.target_item.title}: not ranked, liked"
    assert learned["profile"] is None
    assert learned["calls"][0].completion == "Updated User description: []"


@pytest.mark.parametrize(
    ("graph", "answer", "calls", "profile", "events"),
    [
        (reflect_always, FIRST, 1, "New.", 2),
        (reflect_always, "nothing", 1, "New.", 2),
        (reflect_on_mismatch, FIRST, 0, "Old.", 2),
        (reflect_on_mismatch, "nothing", 1, "New.", 2),
        (append_history, FIRST, 0, "Old.", 2),
        (append_history, "nothing", 0, "Old.", 2),
        (rank_only, FIRST, 0, "Old.", 1),
        (rank_only, "nothing", 0, "Old.", 1),
    ],
)
async def test_each_variant_learns_its_own_way(graph, answer, calls, profile, events):
    _, learned = await run_turn(graph(), answer, REFLECTION)
    assert len(learned.get("calls", ())) == calls
    assert (learned["memory"].profile, len(learned["memory"].history)) == (profile, events)


async def test_a_disliked_item_that_was_ranked_high_is_a_mismatch():
    turn = replace(TURN, liked=False)
    _, learned = await run_turn(reflect_on_mismatch(), FIRST, REFLECTION, turn=turn)
    assert not learned["agrees"]
    assert "predicted liked" in learned["calls"][0].messages[1]["content"]
    assert str(learned["memory"].history[-1]).endswith("ranked 1 of 20, disliked")


def test_a_variant_is_named_and_compiled_once():
    names = ["reflect-always", "reflect-on-mismatch", "append-history", "rank-only"]
    variants = (reflect_always, reflect_on_mismatch, append_history, rank_only)
    assert [variant().name for variant in variants] == names
    assert all(variant() is variant() for variant in variants)
    assert build_graph("mine").name == "mine"


async def test_a_call_keeps_all_that_the_model_returned():
    answer = Completion(
        text=FIRST,
        reasoning="hm",
        finish_reason="stop",
        usage=Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1),
        latency=0.5,
        model="m",
        token_ids=(1, 2),
        prompt_token_ids=(3,),
        logprobs=(-0.1, -0.2),
    )
    context = Context(ScriptedChat(lambda messages, sampling: answer))
    ranked = await reflect_always().ainvoke({"query": TURN.query, "memory": MEMORY}, context=context)
    call = ranked["calls"][0]
    assert call.completion == FIRST
    ours, theirs = {"kind", "messages", "completion", "report"}, {"text", "model"}
    assert call.model_dump(exclude=ours) == answer.model_dump(exclude=theirs)
    assert [message["role"] for message in call.messages] == ["system", "user"]
    assert ranked["ranking"].text == f"<think>\nhm\n</think>\n{FIRST}"
    assert ranked["ranking"].order == (TURN.target,)


async def test_a_ranking_in_the_servers_reasoning_is_no_answer():
    context = Context(ScriptedChat(lambda messages, sampling: Completion(text="", reasoning=FIRST)))
    ranked = await reflect_always().ainvoke({"query": TURN.query, "memory": MEMORY}, context=context)
    assert (ranked["ranking"].order, ranked["ranking"].problems) == ((), ("empty",))


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
@pytest.mark.parametrize(("text", "reasoning"), [(f"hm</think>{FIRST}", None), (FIRST, "hm"), (FIRST, None)])
async def test_an_answer_that_was_cut_off_is_none_wherever_its_thought_is(text, reasoning, finish_reason):
    said = Completion(text=text, reasoning=reasoning, finish_reason=finish_reason)
    ranked, learned = await run_turn(reflect_always(), said, Completion(text="", finish_reason="stop"))
    cut = finish_reason == "length"
    assert ranked["ranking"].order == (() if cut else (TURN.target,))
    assert (ranked["ranking"].report.cut_off, ranked["ranking"].report.missing) == (cut, 0 if cut else 19)
    assert learned["calls"][0].report == ParseReport(empty=True)


@pytest.mark.parametrize(
    ("text", "reasoning"), [("<think>hm</think>\nNew.", None), ("hm\n</think>\nNew.", None), ("\nNew.", "hm")]
)
async def test_a_reflection_is_read_alike_however_the_server_hands_over_its_thought(text, reasoning):
    for finish_reason, profile in (("stop", "New."), ("length", "Old.")):
        said = Completion(text=text, reasoning=reasoning, finish_reason=finish_reason)
        _, learned = await run_turn(reflect_always(), FIRST, said)
        assert learned["memory"].profile == profile
        assert learned["calls"][0].report == ParseReport(cut_off=finish_reason == "length")


async def test_the_agents_own_reason_is_shown_to_its_reflection_and_kept():
    _, learned = await run_turn(reflect_always(), f"{FIRST} - it is tense", REFLECTION)
    assert (
        "ranked 1 of 20, so predicted liked. Reason given: it is tense." in learned["calls"][0].messages[1]["content"]
    )
    assert learned["memory"].history[-1].reason == "it is tense"
    assert str(learned["memory"].history[-1]) == f'{TURN.target_item.title}: ranked 1 of 20 ("it is tense"), liked'


@pytest.mark.parametrize(("answer_format", "structured"), [("paper", False), ("labels", False), ("scores", True)])
async def test_sampling_goes_with_every_call_and_a_schema_with_structured_rankings_alone(answer_format, structured):
    seen = []

    def reply(messages, sampling):
        seen.append(dict(sampling))
        return REFLECTION

    context = Context(ScriptedChat(reply), answer_format, sampling={"temperature": 0.7, "seed": 3})
    graph = reflect_always()
    state = {"query": TURN.query, "memory": MEMORY}
    ranked = await graph.ainvoke(state, context=context)
    await graph.ainvoke(
        {**state, "ranking": ranked["ranking"], "feedback": judge(TURN, ranked["ranking"])[0]}, context=context
    )
    schema = {"schema": ranking_schema(20)} if structured else {}
    assert seen == [{"temperature": 0.7, "seed": 3, **schema}, {"temperature": 0.7, "seed": 3}]


async def test_an_endpoints_error_comes_through_as_it_is():
    def reply(messages, sampling):
        raise EndpointError("down", "connection")

    with pytest.raises(EndpointError, match="down") as caught:
        await reflect_always().ainvoke({"query": TURN.query, "memory": MEMORY}, context=Context(ScriptedChat(reply)))
    assert caught.value.kind == "connection"


async def test_users_in_flight_on_one_graph_do_not_mix(tiny_dataset):
    stream = Stream(tiny_dataset)
    turns = [turn for user in stream.users.tolist() for turn in stream.turns(user)][:40]

    async def ranks(latency):
        context = Context(ScriptedChat(scripted_user(), latency=latency))
        states = ({"query": turn.query, "memory": Memory(profile=str(i))} for i, turn in enumerate(turns))
        jobs = (reflect_always().ainvoke(state, context=context) for state in states)
        done = await asyncio.gather(*jobs) if latency else [await job for job in jobs]
        return [(state["ranking"], state["memory"], len(state["calls"])) for state in done]

    assert await ranks(0.001) == await ranks(0)


@pytest.mark.parametrize("graph", [reflect_always, rank_only, planner])
def test_langgraphs_tools_can_describe_and_draw_a_graph(graph):
    given, ended = graph().get_input_jsonschema(), graph().get_output_jsonschema()
    assert given["properties"].keys() >= {"query", "memory", "feedback", "ranking", "agrees", "profile", "calls"}
    assert ended["properties"].keys() == given["properties"].keys()
    assert given["$defs"]["Memory"]["properties"].keys() == {"profile", "history"}
    context = graph().get_context_jsonschema()
    assert context["required"] == ["llm"]
    assert context["properties"]["answer_format"]["default"] == "paper"
    assert json.loads(json.dumps([given, ended, context])) == [given, ended, context]
    assert "fast_rank" in graph().get_graph().draw_mermaid() or graph is planner


async def test_a_turn_goes_through_the_graph_for_langgraphs_server_as_json():
    stream = Stream(make_dataset())
    graph = make_graph(ScriptedChat(scripted_user()), stream)
    json.dumps([graph.get_input_jsonschema(), graph.get_output_jsonschema(), graph.get_context_jsonschema()])
    ended = await graph.ainvoke({"user": "1", "turn": 0}, context={"answer_format": "compact"})
    agent = UserAgent(ScriptedChat(scripted_user()), answer_format="compact")
    turn = stream.turns(0)[0]
    ranking = await agent.arank(turn.query)
    feedback, reward = judge(turn, ranking)
    assert (ended["ranking"], ended["feedback"], ended["reward"]) == (ranking, feedback, reward)
    assert (ended["memory"], ended["calls"]) == (await agent.alearn(feedback), agent.calls)
    given = await graph.ainvoke({"user": "1", "turn": 1, "memory": {"profile": "Given.", "history": ["before"]}})
    assert given["memory"].history[0] == "before"
    with pytest.raises(InvalidOption, match="turn=99: user '1' has the turns 0 to"):
        await graph.ainvoke({"user": "1", "turn": 99})
