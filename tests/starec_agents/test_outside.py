"""Graphs that are driven from outside: a foreign loop gives the answers, and the record is the same."""

import asyncio
import gc
import operator
import re
import threading
from functools import partial
from pathlib import Path
from typing import Annotated

import pytest
from langgraph.graph import END, START, StateGraph
from support import make_dataset

from starec_agents import (
    Context,
    ScriptedChat,
    Session,
    State,
    UserAgent,
    graphs,
    play_turns,
    play_visit,
    scripted_user,
)
from starec_agents.adapters import Episodes, Player
from starec_agents.graph import call_model
from starec_agents.planner import planner
from starec_env.errors import EndpointError, InvalidOption
from starec_env.recommend.env import RecommendEnv
from starec_env.recommend.twin import twin_of
from starec_env.replay.env import open_dataset
from starec_env.replay.stream import Stream

TURNS = Stream(make_dataset(), turns=3).turns(0)
GRAPHS = {"default": graphs.reflect_always, "planner": planner, "rank only": graphs.rank_only}
ASKED = {
    "default": ["rank", "reflect"],
    "planner": ["planner", "rank", "critic", "rank", "reflect"],  # a scripted critic never accepts
    "rank only": ["rank"],
}


def directly(agent):
    """The steps to which the scripted user's answers lead without anything between."""
    steps = []
    asyncio.run(play_turns(TURNS, agent, on_step=steps.append).play(ScriptedChat(scripted_user())))
    return steps


def driven(episode):
    """Answer from a plain loop; returns what each request was for."""
    sampler, tasks = ScriptedChat(scripted_user()), []
    request = episode.start()
    while request is not None:
        tasks.append(request.task)
        request = episode.answer(asyncio.run(sampler.complete(request.messages, **request.sampling)))
    return tasks


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("answer_format", ["paper", "scores"])
def test_the_record_is_that_of_the_same_answers_given_directly(graph, answer_format):
    agent = partial(UserAgent, graph=GRAPHS[graph], answer_format=answer_format)
    steps = []
    episode = play_turns(TURNS, agent, on_step=steps.append)
    assert driven(episode) == ASKED[graph] * len(TURNS)
    assert steps == directly(agent)
    assert episode.rewards == [step.reward for step in steps]


def test_the_executor_of_langgraph_makes_the_same_requests():
    agent = partial(UserAgent, graph=planner, executor="langgraph")
    steps = []
    assert driven(play_turns(TURNS, agent, on_step=steps.append)) == ASKED["planner"] * len(TURNS)
    assert steps == directly(partial(UserAgent, graph=planner))


def test_a_reward_is_there_before_its_reflection_is_asked():
    episode = play_turns(TURNS)
    assert (episode.start().task, episode.rewards) == ("rank", [])
    assert episode.answer("1. none of them").task == "reflect"
    assert episode.rewards == [-1.0]
    assert episode.mean_reward == -1.0
    episode.close()
    assert episode.ended


def test_a_request_has_the_rewritten_memory_and_no_earlier_request():
    episode = play_turns(TURNS, partial(UserAgent, answer_format="labels"))
    episode.start()
    episode.answer("A B C")
    again = episode.answer("Updated User description: Dotes on westerns.")
    assert again.task == "rank" and len(again.messages) == 2
    assert "Dotes on westerns." in again.messages[1]["content"] and "A B C" not in again.messages[1]["content"]
    episode.close()


async def test_it_runs_in_a_foreign_event_loop():
    async def one():
        steps, sampler = [], ScriptedChat(scripted_user())
        episode = play_turns(TURNS, on_step=steps.append)
        request = await episode.astart()
        while request is not None:
            request = await episode.aanswer(await sampler.complete(request.messages, **request.sampling))
        return steps

    several = await asyncio.gather(*(one() for _ in range(3)))
    assert several[0] == several[1] == several[2] and len(several[0]) == 3


def test_a_graph_recommends_to_a_simulated_user_and_learns_from_what_is_taken():
    twin = twin_of(open_dataset("ml-latest-small", None))

    def visit(agent):
        env = RecommendEnv(twin.dataset, responder=twin, slate_size=5, horizon=6)
        return play_visit(env, 42, agent, n_candidates=12)

    for agent, asked in ((UserAgent, ASKED["default"]), (partial(UserAgent, graph=planner), ASKED["planner"])):
        episode, again = visit(agent), visit(agent)
        tasks = driven(episode)
        assert 1 <= len(episode.rewards) <= 6 and set(episode.rewards) <= {0.0, 1.0}
        assert tasks.count("reflect") >= sum(episode.rewards)  # what is taken is learned from, liked or not
        assert tasks.count(asked[0]) >= len(episode.rewards)
        asyncio.run(again.play(ScriptedChat(scripted_user())))
        assert episode.rewards == again.rewards
        assert episode.mean_reward == sum(episode.rewards) / 6


def test_a_visit_wants_as_many_candidates_as_a_slate():
    twin = twin_of(open_dataset("ml-latest-small", None))
    with pytest.raises(InvalidOption, match="a slate of 5"):
        play_visit(RecommendEnv(twin.dataset, responder=twin, slate_size=5), 42, n_candidates=4)


def test_the_code_of_the_page_on_neighbours_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "neighbours.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/neighbours.md", "exec", dont_inherit=True), {"__name__": "docs"})
    assert len(eval(capsys.readouterr().out)) == 2


class Opinions(State, total=False):
    opinions: Annotated[list[str], operator.add]


def test_requests_of_parallel_branches_come_in_turn():
    async def ask(kind, state, runtime):
        call = await call_model(runtime.context, kind, [{"role": "user", "content": kind}])
        return {"opinions": [call.completion]}

    graph = StateGraph(Opinions, context_schema=Context)
    for kind in ("first", "second"):
        graph.add_node(kind, partial(ask, kind))
        graph.add_edge(START, kind)
        graph.add_edge(kind, END)
    compiled = graph.compile()
    session = Session(lambda llm: compiled.ainvoke({"opinions": []}, context=Context(llm)))
    first = session.start()
    second = session.answer(f"to {first.task}")
    assert {first.task, second.task} == {"first", "second"}
    assert session.answer(f"to {second.task}") is None
    assert session.result["opinions"] == ["to first", "to second"]


def test_what_the_work_raises_comes_out_of_the_answer():
    async def work(llm):
        await llm.complete([{"role": "user", "content": "hello"}])
        raise EndpointError("no more", "server")

    session = Session(work)
    assert session.start().task == ""
    with pytest.raises(EndpointError, match="no more"):
        session.answer("hi")
    with pytest.raises(EndpointError, match="no more"):
        _ = session.result
    with pytest.raises(InvalidOption, match="it has ended"):
        session.answer("hi")


def test_answers_out_of_turn_are_refused():
    episode = play_turns(TURNS)
    with pytest.raises(InvalidOption, match="call start"):
        episode.answer("hi")
    with pytest.raises(InvalidOption, match="no result yet"):
        _ = episode.result
    episode.start()
    with pytest.raises(InvalidOption, match="has begun"):
        episode.start()
    episode.close()
    episode.close()


@pytest.mark.filterwarnings("error")
def test_a_session_that_is_dropped_is_given_up_without_a_word(caplog):
    episode, ended = play_turns(TURNS), threading.Event()
    episode.start()
    episode._task.add_done_callback(lambda task: ended.set())
    del episode
    gc.collect()
    assert ended.wait(10) and not caplog.records


def test_a_player_begins_anew_and_says_what_an_answer_earned():
    player = Player(Episodes(turns=2, agent="planner"))
    with pytest.raises(InvalidOption, match="reset first"):
        player.answer("1")
    first, again, other = (player.reset(seed=seed).messages for seed in (3, 3, 4))
    assert first == again != other
    request, earned, say = player.reset(user_id=42), [], scripted_user()
    while request is not None:
        asked = request
        request, reward = player.answer(say(asked.messages, asked.sampling))
        earned += [(asked.task, reward)] if reward else []
    assert len(earned) == 2 and {task for task, _ in earned} == {"rank"}
    assert [reward for _, reward in earned] == player.episode.rewards


def test_an_option_that_no_episode_has_is_refused():
    with pytest.raises(ValueError, match="agnet"):
        Episodes(agnet="planner")
