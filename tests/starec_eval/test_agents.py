"""User agents under the protocol: they warm up on earlier turns and rank the same lists as everyone."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from fake_endpoint import FakeEndpoint
from support import make_dataset

from starec_agents.agent import UserAgent
from starec_agents.llm import ScriptedChat
from starec_agents.scripted import scripted_user
from starec_agents.store import read_steps
from starec_env.errors import InvalidOption
from starec_eval.agents import Agents
from starec_eval.commands import eval_command
from starec_eval.evaluate import evaluate
from starec_eval.protocol import Protocol, Reading


def starec_eval(*args, code=0):
    result = CliRunner().invoke(eval_command, [*map(str, args), "--quiet"], standalone_mode=False)
    if result.exception:
        raise result.exception
    assert result.return_value == code, result.output


READING = Reading(min_interactions=2)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(n_users=40, n_items=80, length=20)


def agents(**options):
    return Agents(UserAgent.factory(ScriptedChat(scripted_user()), answer_format="compact"), **options)


def test_agents_rank_every_list_with_the_memory_of_their_warmup(dataset, tmp_path):
    protocol = Protocol(dataset, READING, users=10)
    ranker = agents(warmup=2, out=tmp_path / "warm")
    row = evaluate([ranker], protocol, out=tmp_path / "eval").rows[0]
    assert row["error"] is None and row["violations"] == 0 and row["method"] == "starec"
    steps = list(read_steps(tmp_path / "warm"))
    assert 10 < len(steps) <= 20 and {step.user_id for step in steps} <= set(protocol.cases.user_ids)
    held_out = {user: item for user, item in zip(protocol.cases.user_ids, protocol.cases.target_items, strict=True)}
    for step in steps:
        assert step.candidates[step.target] != protocol.dataset.items[held_out[step.user_id]].id
    assert ranker._memories[steps[-1].user_id] == steps[-1].memory != steps[-1].memory_before


def test_warming_up_changes_the_answers_and_is_not_done_twice(dataset, tmp_path):
    protocol = Protocol(dataset, READING, users=10)
    cold, warm = agents(name="cold"), agents(name="warm", warmup=2, out=tmp_path / "warm")
    first = evaluate([cold, warm], protocol)
    assert (first.methods[0].ranks != first.methods[1].ranks).any()
    before = (tmp_path / "warm" / "steps.jsonl").read_bytes()
    again = evaluate([agents(warmup=2, out=tmp_path / "warm")], protocol)
    assert (tmp_path / "warm" / "steps.jsonl").read_bytes() == before
    assert np.array_equal(again.methods[0].ranks, first.methods[1].ranks)


def test_a_warmup_that_would_see_a_target_is_refused(dataset, tmp_path):
    protocol = Protocol(dataset, READING, users=10)
    rows = protocol.cases.stop - 1
    earlier = protocol.dataset.item_indices[rows]
    moved = protocol.cases.candidates.copy()
    moved[np.arange(len(moved)), protocol.cases.targets] = earlier
    protocol.cases.candidates[:] = moved
    row = evaluate([agents(warmup=2, out=tmp_path / "warm")], protocol).rows[0]
    assert "use warmup=0" in row["error"] and not (tmp_path / "warm").exists()


def test_a_warmup_needs_a_folder():
    with pytest.raises(InvalidOption, match="out="):
        agents(warmup=3)


def test_the_command_evaluates_an_agent_against_an_endpoint(tmp_path):
    def reply(body):
        return scripted_user()(body["messages"], {})

    with FakeEndpoint(reply) as server:
        args = ("--users", 6, "--methods", "pop,starec,rank-only", "--base-url", server.url, "--model", "fake")
        starec_eval(*args, "--answer-format", "compact", "--warmup", 1, "--out", tmp_path)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["pop", "starec", "rank-only"]
    assert all(row["error"] is None and row["users"] == 6 and row["cases"] == 18 for row in rows)
    with pytest.raises(InvalidOption, match="--base-url and --model"):
        starec_eval("--methods", "starec")


def test_an_endpoint_that_is_gone_fails_its_own_row_only(tmp_path):
    args = ("--users", 3, "--methods", "starec,pop", "--base-url", "http://127.0.0.1:9/v1", "--model", "m")
    starec_eval(*args, "--set", "min_history=6", "--timeout", 1, "--retries", 0, "--out", tmp_path, code=3)
    starec, pop = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert "9 of 9 cases failed" in starec["error"] and pop["error"] is None


def test_settings_of_a_reading_change_by_name(tmp_path):
    starec_eval(
        "--users", 5, "--methods", "pop", "--set", "negatives=target", "--set", "max_length=30", "--out", tmp_path
    )
    reading = json.loads((tmp_path / "results.json").read_text())["reading"]
    assert (reading["negatives"], reading["max_length"], reading["sequences"]) == ("target", 30, "all")
    with pytest.raises(KeyError, match="did you mean 'negatives'"):
        starec_eval("--set", "negative=target")
    for wrong in ("negatives=none", "max_length=many", "transductive=perhaps"):
        with pytest.raises(InvalidOption, match=wrong.split("=")[0]):
            starec_eval("--set", wrong)
