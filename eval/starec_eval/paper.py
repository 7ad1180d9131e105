"""The whole of the paper's section 5 from one configuration file: Tables 4 to 6, Figures 2a and 2b.

    users = 1000
    warmup = 10
    [endpoints.sft-7b]
    base_url = "http://localhost:8000/v1"
    model = "starec-sft-7b"
    [model_cards]                   # folders of models whose name and server don't say where they lie
    sft-7b = "runs/sft/final"
    [datasets.ml-1m]
    path = "data/ml-1m"
    split_file = "split.json"       # who is tested: starec data split
    [datasets.ml-1m.endpoints.rl-7b]  # a model of this data set's own
    base_url = "http://localhost:8001/v1"
    model = "starec-rl-7b"
    [tables.4]                      # rows: label = "method" or "method@endpoint"
    Pop = "pop"
    "STARec-SFT sample" = "starec@sft-7b"
    [figures.2b]                    # best of N of one model beside one answer of another
    sampled = "starec@sft-7b"
    against = "starec@rl-7b"

Each method is evaluated once for each data set, however many tables it stands in.
"""

from __future__ import annotations

import asyncio
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from starec_agents.llm.base import Endpoint
from starec_agents.llm.client import OpenAIChat
from starec_agents.runs.reading import read_steps
from starec_agents.tasks import MAX_HISTORY
from starec_env import load_dataset
from starec_env.data.splits import Split
from starec_env.errors import InvalidOption, unknown
from starec_env.metrics import Estimate
from starec_eval.evaluate import Report, evaluate, file_name
from starec_eval.protocol import READINGS, Protocol
from starec_eval.rankers import build_methods, split
from starec_eval.rankers.best_of import sample
from starec_eval.report import analysis
from starec_eval.report.figures import FigureData, score_point
from starec_eval.report.tables import TableData, score_cells
from starec_eval.table import Results

TABLES = {
    "4": ("Table 4: performance", ("ndcg@1", "ndcg@5", "ndcg@10", "ndcg@20")),
    "5": ("Table 5: ablations", ("ndcg@1", "ndcg@10")),
    "6": ("Table 6: model scales", ("ndcg@1", "ndcg@10")),
}
FIGURES = ("2a", "2b")
_SIZE = re.compile(r"(.*?)[-\s]*(\d+(?:\.\d+)?)B$")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Data(_Strict):
    """A data set of the section."""

    path: Path | None = None
    reading: str = "default"
    settings: list[str] = []
    """"name=value" pairs that change the reading."""
    users: int | None = None
    """Instead of the section's."""
    candidates: Path | None = None
    train_users: Path | None = None
    split_file: Path | None = None
    """Who trains and who is tested, under which reading (`starec data split`)."""
    endpoints: dict[str, Endpoint] = {}
    """This data set's own models, in place of the section's of the same names: the paper trains one a data set."""
    model_cards: dict[str, Path] = {}
    """Likewise."""


class Section(_Strict):
    """What a configuration file says."""

    datasets: dict[str, Data] = {}
    endpoints: dict[str, Endpoint] = {}
    model_cards: dict[str, Path] = {}
    """By endpoint the folder of its model, for the card that says whom it was trained on."""
    tables: dict[str, dict[str, str]] = {}
    figures: dict[str, dict[str, str | int]] = {}
    users: int | None = None
    seed: int = 0
    repetitions: int = 3
    warmup: int = Field(default=10, ge=0, le=39)
    answer_format: str = "paper"
    structured: bool = False
    max_history: int = Field(default=MAX_HISTORY, ge=1)
    concurrency: int = Field(default=64, ge=1)

    def of(self, dataset: str) -> dict[str, Endpoint]:
        """The endpoints of a data set, its own first."""
        return {**self.endpoints, **self.datasets[dataset].endpoints}


def read_config(path: str | Path) -> Section:
    """Read a configuration file; raises InvalidOption that names what is wrong in it."""
    try:
        return Section.model_validate(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise InvalidOption(f"{path} isn't TOML: {error}") from None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()[:3])
        raise InvalidOption(f"{path}: {wrong}") from None


def run_section5(
    config: Section,
    *,
    out: str | Path,
    tables: Sequence[str] = tuple(TABLES),
    figures: Sequence[str] = FIGURES,
    resume: bool = False,
    report: Report | None = None,
) -> tuple[list[TableData], list[FigureData]]:
    """Evaluate what the tables and figures need, and write them.

    Args:
        config: From `read_config`.
        out: Receives `section5.json`, `table4.md` and the like, and a folder a data set with its evaluation.
        tables: Of "4", "5" and "6".
        figures: Of "2a" and "2b".
        resume: Go on with what `out` holds.
        report: Called with progress.

    Raises:
        UnknownName: A table, figure, method, endpoint or data set isn't known or isn't in the configuration.
        RunError: `out` holds another evaluation, or one and `resume` is False.
    """
    methods = _needed(config, tables, figures)
    asking = {name: getattr(config, name) for name in ("answer_format", "structured", "max_history")}
    done: dict[str, tuple[Protocol, Results]] = {}
    for name, data in config.datasets.items():
        cards = {**config.model_cards, **data.model_cards}
        rankers = build_methods(
            methods, config.of(name), seed=config.seed, model_cards=cards, warmup=config.warmup, **asking
        )
        split_file = Split.load(data.split_file) if data.split_file else None
        reading = split_file.reading if split_file else READINGS[data.reading].with_settings(data.settings)
        protocol = Protocol(
            load_dataset(name, data.path),
            replace(reading, warmup=config.warmup),
            seed=config.seed,
            users=data.users or config.users,
            repetitions=config.repetitions,
            candidates=data.candidates,
            train_users=data.train_users,
            split=split_file,
        )
        folder = Path(out) / file_name(name)
        results = evaluate(rankers, protocol, out=folder, resume=resume, concurrency=config.concurrency, report=report)
        results.write(folder)
        done[name] = protocol, results
    made = [
        _table(number, config.tables[number], {n: results for n, (_, results) in done.items()}) for number in tables
    ]
    drawn = [_scales(config.tables["6"], done)] if "6" in tables else []
    drawn += [_activity(config.figures["2a"], done)] if "2a" in figures else []
    drawn += [_best_of(config, done, Path(out), asking)] if "2b" in figures else []
    _write(Path(out), dict(zip(tables, made, strict=True)), drawn)
    return made, drawn


def _needed(config: Section, tables: Sequence[str], figures: Sequence[str]) -> list[str]:
    for kind, asked, known, given in (
        ("table", tables, TABLES, config.tables),
        ("figure", figures, FIGURES, config.figures),
    ):
        for name in asked:
            if name not in known or name not in given:
                raise unknown(f"{kind} in the configuration", name, [each for each in known if each in given])
    if not config.datasets:
        raise InvalidOption("the configuration names no data set: add [datasets.ml-1m] or another")
    for name, data in config.datasets.items():
        if data.reading not in READINGS:
            raise unknown(f"reading (of {name})", data.reading, READINGS)
        beside = [key for key in ("reading", "settings", "users", "train_users") if key in data.model_fields_set]
        if data.split_file and beside:
            raise InvalidOption(f"datasets.{name}: {', '.join(beside)} beside split_file, which says it: leave it out")
    if "2b" in figures:
        _, endpoint = split(str(config.figures["2b"].get("sampled", "")))
        if any(endpoint not in config.of(name) for name in config.datasets) or "against" not in config.figures["2b"]:
            raise InvalidOption(
                "figures.2b needs sampled = 'method@endpoint', with an endpoint of the file, and against"
            )
    rows = [method for table in tables for method in config.tables[table].values()]
    rows += [m for figure in figures for key, m in config.figures[figure].items() if isinstance(m, str)]
    return list(dict.fromkeys(rows))


def _table(number: str, rows: Mapping[str, str], results: Mapping[str, Results]) -> TableData:
    title, metrics = TABLES[number]
    results = {
        name: replace(result, methods=[scored for scored in result.methods if scored.method in rows.values()])
        for name, result in results.items()
    }
    found = {name: {row["method"]: row for row in result.rows} for name, result in results.items()}
    columns = [(name, metric) for name in results for metric in metrics]
    scores = [score_cells([found[name][method] for method in rows.values()], metric) for name, metric in columns]
    cells = [[label, *row] for label, *row in zip(rows, *scores, strict=True)]
    notes = [f"{name}: {note}" for name, result in results.items() for note in result.notes()]
    notes.append("; ".join(f"{label}: {method}" for label, method in rows.items()))
    several = len(results) > 1
    head = ["method", *(f"{name} {metric.upper()}" if several else metric.upper() for name, metric in columns)]
    title = title if several else f"{title} on {next(iter(results))}"
    return TableData(f"{title}, percent ± standard error over users", head, cells, notes)


def _scales(rows: Mapping[str, str], done: Mapping[str, tuple[Protocol, Results]]) -> FigureData:
    series: dict[str, list[Estimate]] = {}
    for name, (_, results) in done.items():
        found = {row["method"]: row for row in results.rows}
        for label, method in rows.items():
            row, sized = found[method], _SIZE.match(label)
            if sized and row["ndcg@10"] is not None:
                series.setdefault(f"{sized[1] or 'model'}, {name}", []).append(score_point(sized[2], row))
    note = "NDCG@10 by model size, in billions of parameters, as the rows' labels end."
    return FigureData("Model scales (Table 6)", note, "billion parameters", "NDCG@10, %", series)


def _activity(rows: Mapping[str, str | int], done: Mapping[str, tuple[Protocol, Results]]) -> FigureData:
    series = {}
    for name, (_, results) in done.items():
        cases = results.cases
        lengths = dict(zip(cases.user_ids, (cases.stop - cases.first + 1).tolist(), strict=True))
        for label, method in rows.items():
            scored = next(scored for scored in results.methods if scored.method == method)
            if not scored.error:
                values, bounds = results.values(scored, "ndcg@10"), analysis.activity_bounds(name)
                series[f"{label}, {name}"] = analysis.activity_groups(lengths, values, cases.user_ids, bounds)
    note = "NDCG@10 by interactions in the user's sequence (5.3.3)."
    return FigureData("Activity groups (Figure 2a)", note, "", "NDCG@10", series, bars=True)


def _best_of(
    config: Section, done: Mapping[str, tuple[Protocol, Results]], out: Path, asking: Mapping[str, Any]
) -> FigureData:
    figure = config.figures["2b"]
    sampled, against = str(figure["sampled"]), str(figure["against"])
    series, levels = {}, {}
    for name, (protocol, results) in done.items():
        found = {row["method"]: row for row in results.rows}
        if found[sampled]["error"] is None:
            folder, samples = out / file_name(name), out / file_name(name) / "samples"
            asyncio.run(
                sample(
                    protocol,
                    OpenAIChat(config.of(name)[split(sampled)[1]]),
                    folder / "runs" / file_name(sampled) / "0",
                    out=samples,
                    samples=int(figure.get("samples", max(analysis.BEST_OF))),
                    concurrency=config.concurrency,
                    **asking,
                )
            )
            values = analysis.sampled_ndcg(read_steps(samples), 10, protocol.reading.relevant)
            series[f"{sampled}, {name}"] = analysis.best_of(values)
        if found[against]["ndcg@10"] is not None:
            levels[f"{against}, N = 1, {name}"] = found[against]["ndcg@10"] / 100
    note = "NDCG@10 of the best of N answers at temperature 1, beside one answer of the other model (5.3.4)."
    return FigureData("Best of N (Figure 2b)", note, "N", "NDCG@10", series, lines=levels)


def _write(out: Path, tables: Mapping[str, TableData], figures: Iterable[FigureData]) -> None:
    whole = {
        "tables": [asdict(table) for table in tables.values()],
        "figures": [figure.to_json() for figure in figures],
    }
    (out / "section5.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    for number, table in tables.items():
        (out / f"table{number}.md").write_text(table.to_markdown(), encoding="utf-8")
        (out / f"table{number}.tex").write_text(table.to_latex(), encoding="utf-8")
