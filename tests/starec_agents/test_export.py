"""Exported tables: fixed schemas, several runs together, nothing that a spreadsheet would run, and a card."""

import csv
import json
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from support import make_dataset

from starec_agents import ScriptedChat, UserAgent, read_steps, run_population, scripted_user
from starec_agents.commands import export
from starec_agents.llm import Completion
from starec_agents.llm.base import Usage
from starec_agents.runs.export import cell, export_runs, schemas
from starec_agents.runs.reading import read_run
from starec_env import from_frame
from starec_env.errors import InvalidOption, RunError


def rich_answer(messages, sampling):
    """An answer as another server gives it: with reasoning, token ids and log-probabilities."""
    more = {"token_ids": (1, 2), "prompt_token_ids": (3,), "logprobs": (-0.5, -1.0), "reasoning": "hm"}
    return Completion(text=scripted_user()(messages, sampling), usage=Usage(cached_tokens=3), **more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of unlike servers, graphs and ids: numbers here, texts there."""
    folder = tmp_path_factory.mktemp("runs")
    plain = UserAgent.factory(ScriptedChat(scripted_user()))
    run_population(make_dataset(), plain, out=folder / "a", turns=2, users=3, progress=False)
    frame = pd.DataFrame(
        [(f"u{u}", f"i{i}", 5 - i % 3, i, f"=Film {i}") for u in range(3) for i in range(u, u + 12)],
        columns=["user_id", "item_id", "rating", "timestamp", "title"],
    )
    others = UserAgent.factory(ScriptedChat(rich_answer), answer_format="labels")
    run_population(
        from_frame(frame),
        others, out=folder / "b", turns=1, n_candidates=2, targets="liked", progress=False, seed=7,
    )  # fmt: skip
    return [folder / "a", folder / "b"]


def test_runs_of_unlike_servers_and_ids_are_one_table(runs, tmp_path):
    steps_file, calls_file, _ = export_runs(runs, tmp_path / "out")
    steps, calls = pd.read_parquet(steps_file), pl.read_parquet(calls_file)
    recorded = [(run, step) for run in runs for step in read_steps(run)]
    assert len(steps) == len(recorded) and len(calls) == sum(len(step.calls) for _, step in recorded)
    for row, (run, step) in zip(steps.to_dict("records"), recorded, strict=True):
        described = read_run(run)
        assert (row["run"], row["model"], row["seed"]) == (described["id"], "ScriptedChat", described["seed"])
        assert (row["user_id"], row["turn"], row["reward"]) == (str(step.user_id), step.turn, step.reward)
        assert row["candidates"].tolist() == list(map(str, step.candidates))
        assert row["target_title"] == row["titles"][step.target]
        assert row["order"].tolist() == list(step.ranking.order) and row["profile"] == step.memory.profile
        assert row["calls"] == len(step.calls) and row["valid"] == step.ranking.valid
        assert json.loads(row["memory"])["profile"] == row["profile"]
    asked = [call for _, step in recorded for call in step.calls]
    assert [[dict(m) for m in messages] for messages in calls["messages"]] == [
        list(map(dict, c.messages)) for c in asked
    ]
    assert calls["completion"].to_list() == [call.completion for call in asked]
    assert calls["logprobs"].to_list() == [call.logprobs and list(call.logprobs) for call in asked]
    assert set(calls.filter(pl.col("kind") == "reflect")["valid"]) == {True}
    assert len(calls.join(pl.read_parquet(steps_file), on=["run", "user_id", "turn"])) == len(calls)


def test_the_schema_is_the_same_whatever_was_recorded(runs, tmp_path):
    for number, run in enumerate(runs):
        for path in export_runs([run], tmp_path / str(number))[:2]:
            assert pq.read_schema(path).equals(schemas()[path.stem])
    assert all(pa.types.is_string(schema.field("user_id").type) for schema in schemas().values())


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\r=1", "\n=1"])
def test_a_text_that_a_spreadsheet_would_run_is_kept_from_it(text):
    assert cell(text) == f"'{text}"


def test_numbers_and_other_texts_are_as_they_were():
    assert [cell(value) for value in (-0.5, None, True, "a=b", "")] == [-0.5, None, True, "a=b", ""]
    assert cell(["=1"]) == '["=1"]'


def test_csv_has_the_same_rows_and_no_formulas(runs, tmp_path):
    csv_file, parquet = export_runs(runs, tmp_path / "csv", "csv")[0], export_runs(runs, tmp_path / "parquet")[0]
    with open(csv_file, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = pq.read_table(parquet).to_pylist()
    assert len(rows) == len(expected)
    assert [json.loads(row["titles"]) for row in rows] == [row["titles"] for row in expected]
    assert [float(row["reward"]) for row in rows] == [row["reward"] for row in expected]
    assert {row["target_title"][:2] for row in rows if row["seed"] == "7"} == {"'="}
    assert not any(value[:1] in ("=", "+", "@") for row in rows for value in row.values())


def test_the_card_names_the_runs_and_the_terms(runs, tmp_path):
    path = export_runs(runs, tmp_path / "hf", "hf")[-1]
    head, text = path.read_text().removeprefix("---\n").split("---\n", 1)
    assert "config_name: calls" in head and "license: other" in head
    for run in runs:
        assert read_run(run)["id"] in text
    assert "**tiny**: not a data set that starec knows" in text
    described = tmp_path / "ml"
    described.mkdir()
    for name in ("run.json", "items.parquet", "users.json", "steps.jsonl", "prompts.jsonl"):
        (described / name).write_bytes((runs[0] / name).read_bytes())
    run = json.loads((described / "run.json").read_text())
    (described / "run.json").write_text(json.dumps({**run, "dataset": {**run["dataset"], "name": "ml-1m"}}))
    assert "GroupLens" in export_runs([described], tmp_path / "named", "hf")[-1].read_text()


def test_what_cannot_be_is_refused_before_anything_is_written(runs, tmp_path):
    with pytest.raises(InvalidOption, match="twice"):
        export_runs([runs[0], runs[0]], tmp_path / "out")
    with pytest.raises(RunError, match="holds no run"):
        export_runs([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(InvalidOption, match="holds something already"):
        export_runs(runs, tmp_path)


def test_the_command_says_what_it_wrote(runs, tmp_path):
    done = CliRunner().invoke(export, [*map(str, runs), "--to", "csv", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0 and done.output.startswith("9 steps of 2 runs are in ")
    assert {Path(name).name for name in done.output.split(" are in ")[1].strip().split(", ")} == {
        "steps.csv", "calls.csv", "README.md",
    }  # fmt: skip
