"""`starec eval`, on the bundled data and beside a run."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from starec_agents.agent import UserAgent
from starec_agents.llm import ScriptedChat
from starec_agents.llm.scripted import scripted_user
from starec_agents.runs.population import run_population
from starec_agents.runs.reading import read_steps
from starec_env.data import load_dataset, prepare
from starec_env.data.ties import file_rows
from starec_env.errors import InvalidOption, RunError, UnknownName
from starec_env.metrics import ndcg
from starec_eval.commands import compare_run, eval_command
from starec_eval.evaluate import evaluate
from starec_eval.protocol import Protocol
from starec_eval.rankers import ItemKNN, Pop, Scorer
from starec_eval.runs import evaluate_run, evaluate_runs, open_runs
from starec_training.dataset import run_rows


def starec_eval(*args, code=0):
    result = CliRunner().invoke(eval_command, [*map(str, args), "--quiet"], standalone_mode=False)
    if result.exception:
        raise result.exception
    assert result.return_value == code
    return result.output


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    dataset = prepare(load_dataset("ml-latest-small"))
    agent = UserAgent.factory(ScriptedChat(scripted_user()), answer_format="compact")
    run_population(dataset, agent, users=8, turns=3, targets="liked", out=out, progress=False)
    return out


def test_eval_writes_the_table_and_goes_on_with_resume(tmp_path):
    args = ("--users", 50, "--methods", "random, pop,item-knn", "--out", tmp_path / "t")
    output = starec_eval(*args)
    rows = {row["method"]: row for row in json.loads((tmp_path / "t" / "results.json").read_text())["rows"]}
    assert list(rows) == ["random", "pop", "item-knn"]
    assert rows["item-knn"]["ndcg@10"] > rows["pop"]["ndcg@10"] > rows["random"]["ndcg@10"]
    assert f"{rows['pop']['ndcg@10']:.1f} ± {rows['pop']['ndcg@10_se']:.1f}" in output
    with pytest.raises(RunError, match="--resume"):
        starec_eval(*args)
    assert starec_eval(*args, "--resume").splitlines()[:8] == output.splitlines()[:8]


def test_the_lists_of_one_evaluation_score_in_another(tmp_path):
    starec_eval("--users", 50, "--reading", "paper", "--methods", "pop", "--out", tmp_path / "a")
    saved = tmp_path / "a" / "candidates.parquet"
    starec_eval("--reading", "paper", "--candidates", saved, "--methods", "pop", "--out", tmp_path / "b")
    a, b = (json.loads((tmp_path / name / "results.json").read_text()) for name in "ab")
    assert a["candidates"] == b["candidates"] and a["rows"][0]["ndcg@10"] == b["rows"][0]["ndcg@10"]


def test_any_metric_can_be_a_column_of_the_printed_table(tmp_path):
    output = starec_eval("--users", 20, "--methods", "pop", "--metrics", "hr@5,mrr", "--out", tmp_path)
    assert "HR@5" in output and "MRR" in output and "NDCG@10" not in output
    assert (tmp_path / "table.md").read_text().splitlines()[2] == "| method | HR@5 | MRR | seconds |"
    with pytest.raises(InvalidOption, match="did you mean 'ndcg@10'"):
        starec_eval("--metrics", "ndgc@10")


def test_an_unknown_method_is_named_before_anything_runs():
    with pytest.raises(UnknownName, match="did you mean 'item-knn'"):
        starec_eval("--methods", "item-kn")


def test_a_run_is_compared_on_exactly_its_own_turns(run):
    results = compare_run(run, prepare(load_dataset("ml-latest-small")))
    steps = {(step.user_id, step.turn): step for step in read_steps(run)}
    assert len(results.cases) == len(steps)
    for user, turn, shown, target in zip(
        results.cases.user_ids, results.cases.turns, results.cases.candidates, results.cases.targets, strict=True
    ):
        step = steps[user, int(turn)]
        assert tuple(results.cases.source.items[i].id for i in shown) == step.candidates and target == step.target
    per_user = {user: [] for user, _ in steps}
    for (user, _), step in steps.items():
        if step.feedback.liked:  # a disliked target is a turn that isn't scored
            per_user[user].append(ndcg(step.feedback.rank, 10))
    agent = results.rows[0]
    assert agent["method"].startswith("reflect-always (ScriptedChat")
    assert agent["ndcg@10"] == pytest.approx(100 * np.mean([np.mean(v) for v in per_user.values() if v]), abs=1e-3)
    assert [row["method"] for row in results.rows[1:]] == ["random", "pop", "item-knn"]


class Remembering(Scorer):
    name = "remembering"

    def fit(self, train):
        self.data = train
        return self

    def scores(self, batch):
        return np.zeros(batch.candidates.shape)


def test_baselines_of_a_run_never_saw_its_targets_or_anything_later(run):
    dataset = prepare(load_dataset("ml-latest-small"))
    ranker = Remembering()
    results = evaluate_run(run, dataset, [ranker])
    table = pq.read_table(run / "candidates.parquet").to_pylist()
    first = {}
    for row in table:
        first.setdefault(row["user_id"], row)
    train = ranker.data
    assert train.n_users == dataset.n_users and not results.rows[1]["error"]
    for user, row in first.items():
        index = train.user_index(user)
        known = [train.items[i].id for i in train.item_indices[train.indptr[index] : train.indptr[index + 1]]]
        assert known[-len(row["history"]) :] == row["history"]
        targets = {other["target"] for other in table if other["user_id"] == user}
        assert not targets & set(known)


def test_unfinished_turns_are_left_out_for_all_and_said(run, tmp_path):
    for name in ("run.json", "candidates.parquet"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    lines = (run / "steps.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "steps.jsonl").write_text("".join(lines[:-4]))
    results = compare_run(tmp_path, prepare(load_dataset("ml-latest-small")))
    assert len(results.cases) == len(lines) - 4
    assert any("4 unfinished turns left out" in note for note in results.notes())
    (tmp_path / "steps.jsonl").write_text("")
    with pytest.raises(RunError, match="no finished step"):
        compare_run(tmp_path, prepare(load_dataset("ml-latest-small")))


def test_a_run_is_never_compared_on_another_data_set(run):
    dataset = prepare(load_dataset("ml-latest-small"))
    other = replace(dataset, ratings=np.minimum(dataset.ratings, 4))
    with pytest.raises(RunError, match=f"made on other data: ml-latest-small.*{dataset.hash}.*{other.hash}.*--dataset"):
        compare_run(run, other)


def test_a_run_recorded_before_equal_times_were_put_in_another_order_is_compared_by_the_files_order(tmp_path):
    dataset = prepare(load_dataset("ml-latest-small"))
    by_file = dataset.with_rows(file_rows(dataset), file_order=None)
    assert by_file.hash == "a3e07d55f406e629"  # what starec 0.1.0 recorded of its runs on these data
    agent = UserAgent.factory(ScriptedChat(scripted_user()), answer_format="labels")
    run_population(by_file, agent, users=8, turns=3, out=tmp_path / "old", progress=False)
    about = json.loads((tmp_path / "old" / "run.json").read_text())
    del about["data"]
    (tmp_path / "old" / "run.json").write_text(json.dumps(about))
    assert "order of the file, as they were in the run" in starec_eval("--run", tmp_path / "old", "--methods", "pop")
    rows = run_rows(tmp_path / "old", dataset)  # and makes the same training rows from it as from the data of then
    assert len(rows) and rows.rows == run_rows(tmp_path / "old", by_file).rows
    run_population(dataset, agent, users=8, turns=3, out=tmp_path / "new", progress=False)
    with pytest.raises(RunError, match="old has rows of equal time in the order of the file.*new in the order of a"):
        evaluate_runs(open_runs([tmp_path / "old", tmp_path / "new"]), dataset, [])


def test_eval_prints_a_run_from_the_command_line(run):
    output = starec_eval("--run", run, "--methods", "pop")
    assert "reflect" in output and "pop" in output and "item-knn" not in output


def test_a_run_recorded_before_runs_remembered_their_data_is_found_by_name(run, tmp_path):
    for name in ("candidates.parquet", "steps.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    about = json.loads((run / "run.json").read_text())
    assert about.pop("data")["dataset"] == "ml-latest-small"
    (tmp_path / "run.json").write_text(json.dumps(about))
    assert "pop" in starec_eval("--run", tmp_path, "--methods", "pop")


def test_item_knn_beats_popularity_beats_chance_on_the_bundled_data():
    protocol = Protocol(load_dataset("ml-latest-small"), users=200)
    knn, pop = ItemKNN(), Pop()
    found = [row["ndcg@10"] for row in evaluate([knn, pop], protocol).rows]
    assert found[0] > found[1] > 35
