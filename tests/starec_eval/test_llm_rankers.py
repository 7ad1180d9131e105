"""LLM rankers under the protocol: oracles at both ends, recording, resuming, failing, and what each method asks."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from fake_endpoint import FakeEndpoint
from support import make_dataset

from starec_agents.llm import ScriptedChat
from starec_agents.llm.base import Endpoint
from starec_agents.llm.client import OpenAIChat
from starec_agents.llm.scripted import scripted_user
from starec_agents.runs.reading import read_run, read_steps
from starec_env.errors import EndpointError, InvalidOption, UnknownName
from starec_env.replay.stream import Stream
from starec_env.types import ParseReport, Ranking
from starec_eval.evaluate import evaluate
from starec_eval.protocol import Protocol, Reading
from starec_eval.rankers import LLM_METHODS, CaseTurns, LLMRank, LLMRanker, ask, build_llm, build_methods
from starec_eval.rankers.llmrank import llmrank_messages, merge

READING = Reading(min_interactions=2)


@pytest.fixture(scope="module")
def protocol():
    return Protocol(make_dataset(n_users=24, n_items=80, length=20), READING, users=6)


def answer(messages, sampling=()):
    """Well-formed answers to every prompt of every method, by chance but always alike."""
    system = messages[0]["content"]
    if "'Choice: A'" in system:
        return "Choice: B\nReason: it suits me."
    said = scripted_user()(messages, dict(sampling))
    return said.replace("Updated User", "Updated item") if "Updated item" in system else said


class Oracle:
    """Answers compact prompts with the target at a 1-based place; it knows the cases, as no real model can."""

    def __init__(self, protocol, place):
        self.place, cases = place, protocol.cases
        titles = [item.title for item in cases.source.items]
        self.targets = {
            frozenset(titles[i] for i in row): titles[row[target]]
            for row, target in zip(cases.candidates.tolist(), cases.targets, strict=True)
        }

    def __call__(self, messages, sampling):
        listed = re.findall(r"^([A-T])\. ([^|\n]+?) \|", messages[-1]["content"], re.MULTILINE)
        target = self.targets.get(frozenset(title for _, title in listed))
        if target is None:
            return answer(messages)
        order = [label for label, title in listed if title != target]
        order.insert(self.place - 1, next(label for label, title in listed if title == target))
        return " ".join(order)


@pytest.mark.parametrize("method", LLM_METHODS)
def test_a_scripted_oracle_scores_a_hundred_and_a_reverse_oracle_the_floor(method, protocol, tmp_path):
    made = {
        place: build_llm(
            method, ScriptedChat(Oracle(protocol, place)), name=str(place), warmup=2, answer_format="compact"
        )
        for place in (1, 20)
    }
    best, worst = evaluate(made.values(), protocol, out=tmp_path).rows
    assert best["error"] is None and worst["error"] is None
    assert all(best[f"ndcg@{k}"] == 100 for k in (1, 5, 10, 20)) and best["violations"] == 0
    assert all(worst[f"ndcg@{k}"] == 0 for k in (1, 5, 10))
    assert worst["ndcg@20"] == pytest.approx(100 / np.log2(21), abs=1e-3)


def test_each_repetition_is_a_run_on_the_protocols_own_lists(protocol, tmp_path):
    llm = ScriptedChat(answer)
    row = evaluate([build_llm("starec", llm, warmup=3)], protocol, out=tmp_path).rows[0]
    assert row["cases"] == 18 and row["error"] is None and row["violations"] == 0
    ids = [item.id for item in protocol.dataset.items]
    for repetition in range(3):
        steps = list(read_steps(tmp_path / "runs" / "starec" / str(repetition)))
        assert len(steps) == 6 * (4 if repetition == 0 else 1)
        last = {step.user_id: step for step in steps}
        for case in np.flatnonzero(protocol.cases.repetition == repetition):
            step = last[protocol.cases.user_ids[case]]
            assert step.candidates == tuple(ids[i] for i in protocol.cases.candidates[case])
            assert step.target == protocol.cases.targets[case] and step.memory == step.memory_before
    assert read_run(tmp_path / "runs" / "starec" / "0")["protocol"] == protocol.cases.hash
    assert llm.requests == 6 * (3 * 2 + 3)


def test_repetitions_rank_with_the_memory_of_one_warm_up_and_never_learn_from_a_case(protocol, tmp_path):
    evaluate([build_llm("starec", ScriptedChat(answer), warmup=2)], protocol, out=tmp_path)
    runs = [list(read_steps(tmp_path / "runs" / "starec" / str(repetition))) for repetition in range(3)]
    learned = {step.user_id: step.memory for step in runs[0]}
    for steps in runs[1:]:
        assert all(step.memory_before == learned[step.user_id] for step in steps)
    assert all(len(memory.history) == 2 for memory in learned.values())


def test_warm_up_turns_are_the_environments_and_end_before_the_target(protocol):
    turns, liked = CaseTurns(protocol, warmup=5), Stream(protocol.dataset, seed=protocol.seed)
    everything = Stream(protocol.dataset, seed=protocol.seed, split="train", targets="all")
    disliked = 0
    for user in turns.users.tolist():
        *warm, case = turns.turns(user)
        assert warm == everything.turns(user)[-5:]  # whatever came before the target, disliked too
        disliked += sum(not turn.liked for turn in warm)
        assert case.query == liked.turns(user)[-1].query and case.number > (warm or [case])[-1].number - (not warm)
    assert disliked > 5
    assert len(turns) == sum(len(turns.turns(user)) for user in turns.users.tolist())


def test_foreign_lists_are_warmed_up_on_their_own_histories(protocol, tmp_path):
    cases = protocol.cases
    cases.write(tmp_path / "lists.parquet")
    foreign = Protocol(protocol.loaded, READING, candidates=tmp_path / "lists.parquet")
    own, theirs = CaseTurns(protocol, warmup=4), CaseTurns(foreign, warmup=4)
    for user in np.unique(cases.user_ids).tolist():
        first, second = own.turns(protocol.dataset.user_index(user)), theirs.turns(foreign.dataset.user_index(user))
        assert [(t.number, t.target_item.id, t.liked) for t in first] == [
            (t.number, t.target_item.id, t.liked) for t in second
        ]


def test_a_stopped_method_goes_on_and_asks_nothing_twice(protocol, tmp_path):
    left = 25

    def broken(messages, sampling):
        nonlocal left
        left -= 1
        if left < 0:
            raise EndpointError("gone", "connection")
        return answer(messages)

    for method in ("starec", "agentcf-like"):
        whole = ScriptedChat(answer)
        expected = evaluate([build_llm(method, whole, warmup=2)], protocol)
        left = 25
        stopped = evaluate([build_llm(method, ScriptedChat(broken), warmup=2)], protocol, out=tmp_path)
        assert "gone" in stopped.rows[0]["error"] or "failed" in stopped.rows[0]["error"]
        rest = ScriptedChat(answer)
        resumed = evaluate([build_llm(method, rest, warmup=2)], protocol, out=tmp_path, resume=True)
        assert np.array_equal(resumed.methods[0].ranks, expected.methods[0].ranks)
        assert whole.requests - 25 <= rest.requests <= whole.requests - 25 + 6
        again = ScriptedChat(answer)
        evaluate([build_llm(method, again, warmup=2)], protocol, out=tmp_path, resume=True)
        assert again.requests == 0


def test_a_method_whose_endpoint_is_gone_says_so_in_its_row_and_the_others_go_on(protocol, tmp_path):
    dead = OpenAIChat(Endpoint(base_url="http://127.0.0.1:9/v1", model="m", max_retries=0))
    made = [build_llm("llmrank", dead), build_llm("rank-only", ScriptedChat(answer))]
    llmrank, rank_only = evaluate(made, protocol, out=tmp_path).rows
    assert "127.0.0.1:9" in llmrank["error"] and llmrank["ndcg@10"] is None
    assert rank_only["error"] is None


@pytest.mark.parametrize("method", LLM_METHODS)
@pytest.mark.parametrize("options", [{}, {"answer_format": "compact", "structured": True}])
def test_every_method_runs_against_an_endpoint_in_both_formats(method, options, protocol, tmp_path):
    def reply(body):
        return answer(body["messages"], {"schema": 1} if "response_format" in body else {})

    with FakeEndpoint(reply) as server:
        llm = OpenAIChat(Endpoint(base_url=server.url, model="fake", max_retries=0))
        results = evaluate([build_llm(method, llm, warmup=1, **options)], protocol, out=tmp_path, concurrency=4)
        assert server.peak <= 12
    row = results.rows[0]
    assert row["error"] is None and row["violations"] == 0 and row["ndcg@20"] > 20
    steps = list(read_steps(tmp_path / "runs" / method / "1"))
    assert len(steps) == 6 and all(call.usage.prompt_tokens for step in steps for call in step.calls)


def test_llmranks_three_prompts_tell_the_history_each_in_their_way(protocol):
    query, agent = protocol.cases.query(0), LLMRank(ScriptedChat(answer))
    asked = {
        prompt: llmrank_messages(query, query.candidates, prompt, agent.context)[1]["content"]
        for prompt in ("sequential", "recency", "in-context")
    }
    titles = [item.title for item in query.history.items]
    places = [asked["sequential"].index(title) for title in titles]
    assert places == sorted(places)
    assert [asked[prompt].count(titles[-1]) for prompt in asked] == [1, 2, 1]
    assert "most recently" in asked["recency"] and "good recommendation" in asked["in-context"]
    for text in asked.values():
        assert all(item.title in text for item in query.candidates)


async def test_bootstrapping_undoes_a_model_that_answers_in_the_order_shown(protocol):
    def as_shown(messages, sampling):
        return " ".join("ABCDEFGHIJKLMNOPQRST")

    llm = ScriptedChat(as_shown)
    query = protocol.cases.query(0)
    once = await LLMRank(llm, bootstrap=1, answer_format="compact").arank(query)
    assert once.order == tuple(range(20))
    agent = LLMRank(llm, bootstrap=8, answer_format="compact")
    often = await agent.arank(query)
    assert len(agent.calls) == 8 and len({call.messages[1]["content"] for call in agent.calls}) == 8
    assert sorted(often.order) == list(range(20)) and often.valid
    assert abs(np.corrcoef(often.order, range(20))[0, 1]) < 0.75
    assert often == await LLMRank(llm, bootstrap=8, answer_format="compact").arank(query)


def test_answers_are_merged_by_mean_place_and_what_none_names_is_missing():
    orders = [[0, 1, 2, 3], [3, 2, 1, 0]]
    merged = merge([Ranking(order=(0, 1)), Ranking(order=(3, 2), report=ParseReport(missing=2, invented=1))], orders)
    assert merged.order == (0, 1) and merged.problems == ("missing: 2", "invented: 1")
    assert merge([Ranking(order=(2, 0, 1, 3))], [[0, 1, 2, 3]]).order == (2, 0, 1, 3)


def test_agentcf_lets_users_and_items_learn_and_shows_both_memories(protocol, tmp_path):
    evaluate([build_llm("agentcf-like", ScriptedChat(answer), warmup=2)], protocol, out=tmp_path)
    folder = tmp_path / "runs" / "agentcf-like"
    head, *lines = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    users = [line for line in lines if line["key"][0] == "user"]
    items = [line for line in lines if line["key"][0] == "item"]
    assert head["rounds"] == 2 and len(users) == 12 and items
    assert {call["kind"] for line in users for call in line["calls"]} == {"choose", "reflect"}
    last = {line["key"][2]: line["memory"] for line in users}
    of_item = {line["key"][2]: line["memory"] for line in items}
    shown = 0
    for step in read_steps(folder / "0"):
        prompt = step.calls[0].messages[-1]["content"]
        assert last[step.user_id] in prompt and step.memory_before.profile == last[step.user_id]
        shown += sum(of_item[item] in prompt for item in step.candidates if item in of_item)
    assert shown
    target_titles = {protocol.dataset.items[i].title for i in protocol.cases.target_items.tolist()}
    for line in users:  # nothing of the held-out turn is learned from
        truth = re.search(r"You really chose: (.+?), and left", line["calls"][1]["messages"][1]["content"])[1]
        held = protocol.cases.target_items[protocol.cases.user_ids.index(line["key"][2])]
        assert truth != protocol.dataset.items[held].title and truth and target_titles


def test_agentcf_and_agents_end_alike_at_any_concurrency(protocol):
    for method in ("agentcf-like", "starec"):
        ranks = [
            evaluate([build_llm(method, ScriptedChat(answer), warmup=2)], protocol, concurrency=n).methods[0].ranks
            for n in (1, 16)
        ]
        assert np.array_equal(*ranks)


def test_ablations_differ_in_what_they_ask(protocol, tmp_path):
    asked = {}
    for method in ("starec", "append-history", "reflect-on-mismatch", "rank-only"):
        llm = ScriptedChat(answer)
        evaluate([build_llm(method, llm, warmup=3)], protocol, out=tmp_path)
        asked[method] = llm.requests
    assert asked["rank-only"] == 18 < asked["append-history"] == 6 * 3 + 18
    assert asked["append-history"] < asked["reflect-on-mismatch"] < asked["starec"] == 6 * 6 + 18


def test_wrong_names_and_warm_ups_are_refused():
    with pytest.raises(UnknownName, match="did you mean 'llmrank'"):
        build_llm("llmrnk", ScriptedChat("x"))
    for method in ("starec", "append-history", "reflect-on-mismatch"):
        with pytest.raises(InvalidOption, match=f"{method} learns .* warmup=0 leaves none.*--warmup 10.*rank-only"):
            build_llm(method, ScriptedChat("x"), warmup=0)
    with pytest.raises(InvalidOption, match="1 to 39"):
        build_llm("agentcf-like", ScriptedChat("x"), warmup=0)
    assert build_llm("starec", ScriptedChat("x")).warmup == 10 == Reading().warmup
    for warmup in (-1, 40):
        with pytest.raises(InvalidOption, match="0 to 39"):
            build_llm("starec", ScriptedChat("x"), warmup=warmup)
    with pytest.raises(InvalidOption, match="bootstrap=0"):
        LLMRank(ScriptedChat("x"), bootstrap=0)
    assert isinstance(build_llm("llmrank", ScriptedChat("x")), LLMRanker)


def test_methods_that_sent_the_same_prompts_are_named_and_others_are_not(protocol, tmp_path):
    """With nothing to learn, an agent that reflects asks what one without a memory asks."""
    starec = build_llm("starec", ScriptedChat(scripted_user()), warmup=2)
    rank_only = build_llm("rank-only", ScriptedChat(scripted_user()))
    methods = [replace(starec, warmup=0), rank_only, replace(starec, name="warm")]
    for _ in range(2):  # the second time from what is kept
        results = evaluate(methods, protocol, out=tmp_path, resume=True)
        assert [row["same_prompts_as"] for row in results.rows] == [["rank-only"], ["starec"], []]
        said = [note for note in results.notes() if "same prompts" in note]
        assert said == ["rank-only and starec sent the same prompts: they are one experiment, not 2"]


def test_agents_begin_with_what_the_reading_says(tmp_path):
    data = make_dataset(n_users=24, n_items=80, length=20)
    for memory, begins in (("history", "A user"), ("empty", "Nothing is known")):
        protocol = Protocol(data, replace(READING, memory=memory), users=2, repetitions=1)
        ranker = build_llm("rank-only", ScriptedChat(scripted_user()), name=memory)
        evaluate([ranker], protocol, out=tmp_path)
        (first, *_) = read_steps(tmp_path / "runs" / memory / "0")
        assert first.memory_before.profile.startswith(begins)


OWN = """
from starec_agents.graphs import reflect_always
from starec_env.types import Ranking

class Backwards:
    def rank(self, query):
        return Ranking(order=tuple(reversed(range(len(query.candidates)))))

def backwards():
    return Backwards()

def graph(llm):
    return reflect_always()
"""


def test_ones_own_ranker_and_agent_are_methods_by_module_and_function(protocol, tmp_path, monkeypatch):
    (tmp_path / "my_rankers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    here = {"": Endpoint(base_url="http://localhost:1/v1", model="m")}
    (name, ranker), agent = build_methods(["my_rankers:backwards", "my_rankers:graph"], here, warmup=3)
    assert name == "my_rankers:backwards" and agent.name == "my_rankers:graph" and agent.warmup == 3
    row = evaluate([(name, ranker)], protocol).rows[0]
    assert row["error"] is None and row["method"] == name and row["violations"] == 0
    mine = ask("my_rankers:graph", ScriptedChat(scripted_user()), warmup=2, answer_format="labels")
    assert evaluate([mine], protocol, out=tmp_path / "out").rows[0]["error"] is None
    with pytest.raises(InvalidOption, match="my_rankers:none.*wanted MODULE:FUNCTION"):
        build_methods(["my_rankers:none"], here)
