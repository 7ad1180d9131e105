"""The table: a row a method, in the terminal, Markdown, LaTeX, JSON and Parquet, with errors and what made it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console, RenderableType

from starec_env.errors import unknown
from starec_env.scoring import CUTOFFS
from starec_eval.cases import Cases
from starec_eval.figures import TableData, score_cells
from starec_eval.metrics import METRICS, Difference, mean_and_se, paired_difference, per_user

SHOWN = tuple(f"ndcg@{k}" for k in CUTOFFS)
"""The metrics that printed tables show; results.json and the per-user files hold all."""


@dataclass
class Scored:
    """What one method did on every case."""

    method: str
    ranks: NDArray[np.float64]
    """(cases,) 1-based ranks of the targets, nan where missing."""
    seconds: float = 0.0
    """Training and ranking."""
    violations: Sequence[str] = ()
    """Rankings that were partial or wrong, naming user and cause."""
    error: str | None = None
    """Why the method has no ranks at all."""


@dataclass
class Results:
    """The methods' ranks on the same cases; printing it prints the table."""

    settings: Mapping[str, Any]
    """`Protocol.describe()`."""
    cases: Cases
    methods: list[Scored] = field(default_factory=list)
    against: str | None = None
    """The method whose paired differences to all others the notes tell."""

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A dict a method: each metric in percent with `_se` over users, what it cost, and what went wrong.

        Keys: `method`, `ndcg@1` ... `mrr` and their `_se`, `users`, `cases`, `seconds`, `missing` (share of positives
        not ranked), `violations` (how many) and `error`. A failed method's metrics are None.
        """
        return [self._row(scored) for scored in self.methods]

    def _row(self, scored: Scored) -> dict[str, Any]:
        row: dict[str, Any] = {"method": scored.method}
        for name, metric in METRICS.items():
            mean, se = mean_and_se(metric(scored.ranks), self.cases.users)
            row[name] = None if scored.error else round(100 * mean, 3)
            row[f"{name}_se"] = None if scored.error or np.isnan(se) else round(100 * se, 3)
        return row | {
            "users": len(np.unique(self.cases.users)),
            "cases": len(self.cases),
            "seconds": round(scored.seconds, 3),
            "missing": None if scored.error else float(np.isnan(scored.ranks).mean()),
            "violations": len(scored.violations),
            "error": scored.error,
        }

    def compare(self, against: str, metric: str = "ndcg@10") -> dict[str, Difference]:
        """How far each other method is above one, paired over users; `Difference.check` warns of an unsettled gap.

        Raises:
            UnknownName: There is no such method, or it failed.
        """
        able = {scored.method: METRICS[metric](scored.ranks) for scored in self.methods if not scored.error}
        if against not in able:
            raise unknown("evaluated method", against, able)
        return {
            name: paired_difference(values, able[against], self.cases.users)
            for name, values in able.items()
            if name != against
        }

    def per_user(self) -> pa.Table:
        """A row a user and method, with all metrics as shares."""
        ids = self.cases.source.user_ids[np.unique(self.cases.users)].tolist()
        parts = [
            pa.table(
                {"method": [scored.method] * len(ids), "user_id": ids}
                | {name: per_user(metric(scored.ranks), self.cases.users) for name, metric in METRICS.items()}
            )
            for scored in self.methods
            if not scored.error
        ]
        return pa.concat_tables(parts) if parts else pa.table({"method": pa.array([], pa.string())})

    def write(self, out: str | Path) -> None:
        """Write results.json, table.md, table.tex, per_user.parquet, per_user.csv and candidates.parquet."""
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        whole = {**self.settings, "notes": self.notes(), "rows": self.rows}
        texts = {"results.json": json.dumps(whole, indent=1, default=str) + "\n", "table.md": self.to_markdown()}
        for name, text in (texts | {"table.tex": self.to_latex()}).items():
            (folder / name).write_text(text, encoding="utf-8")
        pq.write_table(self.per_user(), folder / "per_user.parquet")
        pa_csv.write_csv(self.per_user(), folder / "per_user.csv")
        self.cases.write(folder / "candidates.parquet")
        violations = [f"{scored.method}: {text}\n" for scored in self.methods for text in scored.violations]
        (folder / "violations.txt").write_text("".join(violations), encoding="utf-8")

    @property
    def data(self) -> TableData:
        """The table as texts: NDCG with errors, best and second marked, and seconds."""
        columns = [score_cells(self.rows, name) for name in SHOWN]
        cells = [
            [row["method"], *scores, f"{row['seconds']:.1f}"] for row, *scores in zip(self.rows, *columns, strict=True)
        ]
        head = ["method", *(name.upper() for name in SHOWN), "seconds"]
        return TableData(f"{self.settings['dataset']}, NDCG in percent", head, cells, self.notes())

    def to_markdown(self) -> str:
        """A Markdown table, best bold and second underlined, with its notes."""
        return self.data.to_markdown()

    def to_latex(self) -> str:
        """A booktabs table as the paper's Table 4, best bold and second underlined."""
        data = self.data
        return replace(data, head=data.head[:-1], rows=[row[:-1] for row in data.rows]).to_latex()

    def __rich__(self) -> RenderableType:
        return self.data.__rich__()

    def __str__(self) -> str:
        console = Console(width=120)
        with console.capture() as captured:
            console.print(self)
        return captured.get()

    def notes(self) -> list[str]:
        """What the table was made of, which gaps are not settled, and what went wrong."""
        about = self.settings
        reading = ", ".join(f"{name}={value}" for name, value in about["reading"].items())
        notes = [
            f"reading: {reading}",
            f"seed {about['seed']}, candidates {about['candidates']}: {about['test_users']:,} users, "
            f"{about['cases']:,} lists of {about['n_candidates']}; ± is the standard error over users",
            *(_count_note(counts) for counts in about["counts"]),
        ]
        if about["n_candidates"] < max(CUTOFFS):
            notes.append(f"NDCG@{max(CUTOFFS)} covers the whole list of {about['n_candidates']}")
        return [*notes, *about.get("notes", ()), *self._gaps(), *self._faults()]

    def _gaps(self) -> Iterator[str]:
        good = sorted((row for row in self.rows if not row["error"]), key=lambda row: -row["ndcg@10"])
        if self.against and self.against in [row["method"] for row in good]:
            told = (f"{name} {_points(gap)}" for name, gap in self.compare(self.against).items())
            yield f"against {self.against} at NDCG@10, points with 95 % intervals: {', '.join(told)}"
        if len(good) < 2:
            return
        best = good[0]["method"]
        gaps = {name: gap for name, gap in self.compare(best).items() if not gap.settled}
        if gaps:
            told = (f"{name} {_points(gap, -1)}" for name, gap in gaps.items())
            yield f"gaps of {best} at NDCG@10 smaller than their errors, with 95 % intervals: {', '.join(told)}"

    def _faults(self) -> Iterator[str]:
        for scored in self.methods:
            if scored.error:
                yield f"{scored.method} failed: {scored.error}"
            if scored.violations:
                yield f"{scored.method}: {len(scored.violations):,} rankings not valid, first {scored.violations[0]}"


def _points(gap: Difference, sign: int = 1) -> str:
    low, high = sorted((sign * 100 * gap.low, sign * 100 * gap.high))
    return f"{sign * 100 * gap.gap:+.1f} ({low:+.1f} to {high:+.1f})"


def _count_note(counts: Mapping[str, Any]) -> str:
    return (
        f"{counts['data']}: {counts['users']:,} users, {counts['items']:,} items, {counts['interactions']:,} "
        f"interactions, sparsity {100 * counts['sparsity']:.2f} %"
    )
