"""Tables that travel: runs' steps and calls with fixed schemas, so that several load together in any reader.

Ids are text, whatever a data set's own are; every row names its run, model, graph and seed; a column is there, and of
the same type, where all of its values are null.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from starec_agents.llm.base import Call
from starec_agents.runs.reading import in_order, read_index, read_run
from starec_agents.runs.records import read_titles
from starec_agents.runs.steps import Step
from starec_agents.runs.store import temporary, write_text, writing
from starec_env.errors import InvalidOption, check_choice
from starec_env.types import Id

Formats = Literal["hf", "parquet", "csv"]
Row = dict[str, Any]
Titles = Mapping[Id, str]
Write = Callable[[list[Row]], object]
"""Appends rows to a table."""

RUN = ("run", "model", "graph", "answer_format", "dataset", "dataset_hash")
"""The columns that tell runs apart: the run's id, its model and its graph; then `seed`."""

_AT_ONCE = 1_000
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def schemas() -> dict[str, Any]:
    """The Arrow schema of each table, "steps" (a row a turn) and "calls" (a row a request)."""
    import pyarrow as pa

    text, texts, whole, real, truth = pa.string(), pa.list_(pa.string()), pa.int64(), pa.float64(), pa.bool_()
    key = [*((name, text) for name in RUN), ("seed", whole), ("user_id", text), ("turn", whole)]
    message = pa.struct([("role", text), ("content", text)])
    ranks = [("order", pa.list_(whole)), ("rank", whole), ("valid", truth), ("problems", texts), ("answer", text)]
    feedback = [("predicted_liked", truth), ("liked", truth), ("rating", real), ("reward", real)]
    tokens = [(name, whole) for name in ("prompt_tokens", "completion_tokens")]
    shown = [("candidates", texts), ("titles", texts), ("target", whole), ("target_title", text)]
    memory = [("profile_before", text), ("profile", text), ("events", texts), ("memory", text), ("state", text)]
    answer = [(name, text) for name in ("completion", "reasoning", "finish_reason")]
    more = [("cached_tokens", whole), ("latency", real), ("valid", truth), ("problems", texts), ("stepped_down", texts)]
    ids = [("token_ids", pa.list_(whole)), ("prompt_token_ids", pa.list_(whole)), ("logprobs", pa.list_(real))]
    return {
        "steps": pa.schema([*key, *shown, *ranks, *feedback, *memory, ("calls", whole), *tokens]),
        "calls": pa.schema(
            [*key, ("call", whole), ("kind", text), ("messages", pa.list_(message)), *answer, *tokens, *more, *ids]
        ),
    }


def export_runs(
    runs: Sequence[str | Path], out: str | Path, to: Formats = "parquet", progress: Callable[[int], object] = int
) -> list[Path]:
    """Write runs' steps and calls as tables, with a README.md that says what they are and whose terms hold.

    Nothing is sent anywhere. A running or broken-off run is exported as far as it is recorded.

    Args:
        runs: Folders of runs.
        out: A new or empty folder.
        to: "parquet"; "hf", the same with a README.md that is a data set card, for the Hub and for
            `datasets.load_dataset(out, "steps")`; or "csv", with lists as JSON and nothing that a spreadsheet would
            take for a formula.
        progress: Called with the number of steps written since it was called last.

    Returns:
        The files written.

    Raises:
        RunError: A folder holds no run, or one that can't be read, or `out` can't be written.
        InvalidOption: `out` holds files already, or a run is given twice.
    """
    check_choice("to", to, get_args(Formats))
    folder, described = Path(out), {Path(run): read_run(run) for run in runs}
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidOption(f"{folder} holds something already: choose another folder")
    ids = [run.get("id") for run in described.values()]
    if len(set(ids)) < len(runs):
        raise InvalidOption(f"{', '.join(map(str, runs))} name a run twice: leave one of them out")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        suffix = "csv" if to == "csv" else "parquet"
        files = {name: folder / f"{name}.{suffix}" for name in schemas()}
        with ExitStack() as stack:
            places = {name: stack.enter_context(temporary(path)) for name, path in files.items()}
            tables = {
                name: stack.enter_context(_WRITERS[suffix](path, schemas()[name])) for name, path in places.items()
            }
            for path, run in described.items():
                for steps, calls in _rows(path, run):
                    tables["steps"](steps)
                    tables["calls"](calls)
                    progress(len(steps))
        write_text(folder / "README.md", card(list(described.values()), to))
    return [*files.values(), folder / "README.md"]


def _rows(path: Path, run: Mapping[str, Any]) -> Iterator[tuple[list[Row], list[Row]]]:
    """A run's rows of both tables, a thousand turns or so at a time."""
    index, titles, key = read_index(path), read_titles(path), _key(run)
    steps: list[Row] = []
    calls: list[Row] = []
    for user in in_order(path, index):
        for step, _ in index.steps(user):
            of = {**key, "user_id": str(user), "turn": step.turn}
            steps.append({**of, **_step(step, titles)})
            calls.extend({**of, "call": number, **_call(call)} for number, call in enumerate(step.calls))
        if len(steps) >= _AT_ONCE:
            yield steps, calls
            steps, calls = [], []
    yield steps, calls


def _key(run: Mapping[str, Any]) -> Row:
    data = run.get("dataset") or {}
    found = {
        "run": run.get("id") or run.get("settings_hash"),
        "dataset": data.get("name"),
        "dataset_hash": data.get("hash"),
    }
    return {**{name: run.get(name) for name in RUN}, **found, "seed": run.get("seed")}


def _step(step: Step, titles: Titles) -> Row:
    ids, report, feedback = step.candidates, step.ranking.report, step.feedback
    named = [titles.get(item) for item in ids]
    return {
        "candidates": list(map(str, ids)),
        "titles": named,
        "target": step.target,
        "target_title": named[step.target],
        "order": list(step.ranking.order),
        "answer": step.ranking.text,
        "valid": report.valid,
        "problems": list(report.problems),
        **feedback.model_dump(include={"rank", "predicted_liked", "liked", "rating"}),
        "reward": step.reward,
        "profile_before": step.memory_before.profile,
        "profile": step.memory.profile,
        "events": list(map(str, step.memory.history)),
        "memory": step.memory.model_dump_json(),
        "state": json.dumps(step.state),
        "calls": len(step.calls),
        "prompt_tokens": sum(call.usage.prompt_tokens for call in step.calls),
        "completion_tokens": sum(call.usage.completion_tokens for call in step.calls),
    }


def _call(call: Call) -> Row:
    plain = call.model_dump(exclude={"usage", "report", "messages", "kind"})
    report = call.report
    judged = {"valid": report and report.valid, "problems": list(report.problems) if report else None}
    return {"kind": call.kind, "messages": list(map(dict, call.messages)), **plain, **call.usage.model_dump(), **judged}


@contextmanager
def _parquet(path: Path, schema: Any) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        yield lambda rows: file.write_table(pa.Table.from_pylist(rows, schema=schema))


@contextmanager
def _csv(path: Path, schema: Any) -> Iterator[Write]:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(schema.names)
        yield lambda rows: writer.writerows([cell(row[name]) for name in schema.names] for row in rows)


_WRITERS = {"parquet": _parquet, "csv": _csv}


def cell(value: object) -> object:
    """A value as a CSV file has it: lists as JSON, and a text that would run in a spreadsheet behind an apostrophe.

    Spreadsheets take texts that begin with one of = + - @, a tab or a line break for formulas (OWASP, "CSV Injection"),
    and titles and answers are others' words.
    """
    if isinstance(value, (list, tuple)):
        return json.dumps(value, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA) else value


def card(runs: Sequence[Mapping[str, Any]], to: Formats) -> str:
    """The README.md of exported runs: what they are, what the columns are, and whose terms hold."""
    keys = [_key(run) for run in runs]
    rows = [
        f"| {_plain(key['run'])} | {_plain(key['model'])} | {_plain(key['graph'])} | {_plain(key['dataset'])} "
        f"| {_plain(key['seed'])} | {run.get('users', '')} | {_plain(run.get('starec'))} |"
        for key, run in zip(keys, runs, strict=True)
    ]
    names = list(dict.fromkeys(str(key["dataset"]) for key in keys))
    terms = "\n".join(f"- **{_plain(name)}**: {_terms(name)}" for name in names)
    return f"{_YAML if to == 'hf' else ''}{_CARD}".replace("{rows}", "\n".join(rows)).replace("{terms}", terms)


def _plain(value: object) -> str:
    """A name within a table's cell, whatever is in it."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")[:200]


def _terms(dataset: str) -> str:
    if dataset.startswith("ml-"):
        return (
            "MovieLens data of GroupLens, University of Minnesota. Research use; acknowledge it (Harper and Konstan, "
            "2015, doi 10.1145/2827872); no commercial use without GroupLens's permission; pass it on under the same "
            "conditions only, and only where the README of that edition allows it at all: that of ML-1M and ML-100K "
            "does not without permission. The binding text is https://files.grouplens.org/datasets/movielens/ ."
        )
    if dataset.startswith("amazon"):
        return (
            "Amazon reviews collected by McAuley Lab, University of California San Diego (He and McAuley, 2016; Ni et "
            "al., 2019; Hou et al., 2024). Published for research; the reviews are their authors'. Ask the page that "
            "you had them from before you pass rows on."
        )
    return "not a data set that starec knows: whoever made it says what may be done with its rows."


_YAML = """---
pretty_name: Recorded runs of simulated users
license: other
tags:
- recommender-systems
- user-simulation
- llm-agents
configs:
- config_name: steps
  data_files: steps.parquet
  default: true
- config_name: calls
  data_files: calls.parquet
---
"""

_CARD = """# Recorded runs of simulated users

Agents of starec (a simulator of recommenders' users after STARec, arXiv 2508.18812) went through real users' feedback
streams. At each turn a language model ranked candidates, was shown what the user did, and rewrote its memory of the
user.

| run | model | graph | data set | seed | users | starec |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

`steps` has a row a turn: `candidates` (ids in the order shown) and their `titles`, `target` (0-based place of the item
that the user really took next), `order` (0-based places, best first), `rank` (1-based, of the target; null if not
ranked), what the user did (`liked`, `rating`), `reward` (the paper's, of the rank; 0 for a disliked target), and the
memory before and after. `calls` has a row a request to the model, with the whole prompt and answer, tokens, and
log-probabilities where the server gave them. `run` tells runs apart; (`run`, `user_id`, `turn`) joins the two. Ids are
text; `memory` and `state` are JSON.

## Terms

The rankings, profiles and reasons were written by a language model, whose licence may say how they can be used. The
rows also hold users' ids, histories and ratings and items' titles of the data sets that were replayed, and their terms
hold for those:

{terms}

Nothing in these tables is from a person who answered for this: the users are those of the data sets, and what an agent
writes of one is a model's guess.
"""
