"""The table: a row a method, in the terminal, Markdown, LaTeX, JSON and Parquet, with errors and what made it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console, RenderableType

from starec_env.cases import Cases
from starec_env.errors import unknown
from starec_env.metrics import (
    CUTOFFS,
    METRICS,
    SHOWN,
    Difference,
    Floats,
    estimate,
    holm,
    paired_difference,
    per_user,
    scored,
)
from starec_eval.report.tables import TableData, results_table


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
    prompts: str | None = None
    """A digest of the prompts that asked a model for the rankings."""


@dataclass
class Results:
    """The methods' ranks on the same cases; printing it prints the table."""

    settings: Mapping[str, Any]
    """`Protocol.describe()`."""
    cases: Cases
    methods: list[Scored] = field(default_factory=list)
    against: str | None = None
    """The method, named in advance, that the notes compare all others with."""
    shown: Sequence[str] = SHOWN
    """The metrics that printed tables show; files hold all of `METRICS`."""

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A dict a method: each metric in percent with `_se` over users, what it cost, and what went wrong.

        Keys: `method`, each of `METRICS` and its `_se`, `users` and `cases` that are scored, `seconds`, `missing`
        (share of targets not ranked), `violations` (how many), `error`, and `same_prompts_as`, the other methods that
        asked a model the very same. The metrics of a failed method, or of one
        without a scored case, are None.
        """
        return [self._row(method) for method in self.methods]

    def _row(self, method: Scored) -> dict[str, Any]:
        row: dict[str, Any] = {"method": method.method}
        for name in METRICS:
            found = estimate(name, self.values(method, name), self.cases.users)
            row[name] = None if method.error or not found.n else round(100 * found.mean, 3)
            row[f"{name}_se"] = None if method.error or found.n < 2 else round(100 * found.se, 3)
        return row | {
            "users": len(np.unique(self.cases.users[self._is_scored])),
            "cases": int(self._is_scored.sum()),
            "seconds": round(method.seconds, 3),
            "missing": None if method.error else float(np.isnan(method.ranks).mean()),
            "violations": len(method.violations),
            "error": method.error,
            "same_prompts_as": self._twins(method),
        }

    def _twins(self, method: Scored) -> list[str]:
        """Other methods that sent the very prompts of one, so that the two are the same experiment."""
        others = [other for other in self.methods if other is not method and method.prompts]
        return [other.method for other in others if other.prompts == method.prompts]

    def values(self, method: Scored, metric: str) -> Floats:
        """(cases,) a metric of a method, nan where the reading leaves a disliked target unscored."""
        return scored(METRICS[metric](method.ranks), self._is_scored)

    @cached_property
    def _is_scored(self) -> NDArray[np.bool_]:
        taken = self.settings["reading"].get("relevant") == "taken"
        return np.ones(len(self.cases), np.bool_) if taken else self.cases.liked

    def compare(self, against: str, metric: str = "ndcg@10") -> dict[str, Difference]:
        """How far each other method is above one, paired over users; `holm` corrects their p-values for being several.

        Raises:
            UnknownName: There is no such method, or it failed.
        """
        able = {method.method: self.values(method, metric) for method in self.methods if not method.error}
        if against not in able:
            raise unknown("evaluated method", against, able)
        base = able.pop(against)
        return {name: paired_difference(values, base, self.cases.users) for name, values in able.items()}

    def per_user(self) -> pa.Table:
        """A row a user and method, with all metrics as shares; nan for a user without a scored case."""
        ids = self.cases.source.user_ids[np.unique(self.cases.users)].tolist()
        parts = [
            pa.table(
                {"method": [method.method] * len(ids), "user_id": ids}
                | {name: per_user(self.values(method, name), self.cases.users) for name in METRICS}
            )
            for method in self.methods
            if not method.error
        ]
        return pa.concat_tables(parts) if parts else pa.table({"method": pa.array([], pa.string())})

    def write(self, out: str | Path) -> None:
        """Write results.json, table.md, table.tex, per_user.parquet, per_user.csv and candidates.parquet."""
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        write_table(folder, {**self.settings, "rows": self.rows}, self.data)
        pq.write_table(self.per_user(), folder / "per_user.parquet")
        pa_csv.write_csv(self.per_user(), folder / "per_user.csv")
        self.cases.write(folder / "candidates.parquet")
        violations = [f"{method.method}: {text}\n" for method in self.methods for text in method.violations]
        (folder / "violations.txt").write_text("".join(violations), encoding="utf-8")

    @property
    def data(self) -> TableData:
        """The table as texts: metrics with errors, best and second marked, and seconds."""
        return results_table(f"{self.settings['dataset']}, percent", self.rows, self.shown, self.notes())

    def to_markdown(self) -> str:
        """A Markdown table, best bold and second underlined, with its notes."""
        return self.data.to_markdown()

    def to_latex(self) -> str:
        """A booktabs table as the paper's Table 4, best bold and second underlined."""
        return self.data.without("seconds").to_latex()

    def __rich__(self) -> RenderableType:
        return self.data.__rich__()

    def __str__(self) -> str:
        console = Console(width=120)
        with console.capture() as captured:
            console.print(self)
        return captured.get()

    def notes(self) -> list[str]:
        """What the table was made of, how methods compare with the one named in advance, and what went wrong."""
        good = [method.method for method in self.methods if not method.error]
        made, faults = self.facts()
        return [*made, "± is the standard error over users", *gap_notes(self.against, good, self.compare), *faults]

    def facts(self) -> tuple[list[str], list[str]]:
        """Of the notes, what the table was made of and what went wrong."""
        about = self.settings
        reading = ", ".join(f"{name}={value}" for name, value in about["reading"].items())
        made = [
            f"reading: {reading}",
            f"seed {about['seed']}, candidates {about['candidates']}: {about['test_users']:,} users, "
            f"{about['cases']:,} lists of {about['n_candidates']}",
            *(_count_note(counts) for counts in about["counts"]),
        ]
        if about["n_candidates"] < max(CUTOFFS):
            made.append(f"NDCG@{max(CUTOFFS)} covers the whole list of {about['n_candidates']}")
        if unscored := len(self.cases) - int(self._is_scored.sum()):
            made.append(f"{unscored:,} lists whose target the user disliked are not scored")
        return [*made, *about.get("notes", ())], list(self._faults())

    def _faults(self) -> Iterator[str]:
        for method in self.methods:
            if method.error:
                yield f"{method.method} failed: {method.error}"
            if method.violations:
                yield f"{method.method}: {len(method.violations):,} rankings not valid, first {method.violations[0]}"
        groups = {tuple(sorted([method.method, *twins])) for method in self.methods if (twins := self._twins(method))}
        for group in sorted(groups):
            yield f"{' and '.join(group)} sent the same prompts: they are one experiment, not {len(group)}"


def write_table(folder: Path, whole: Mapping[str, Any], data: TableData) -> None:
    """Write results.json, with the table's notes, table.md and table.tex."""
    texts = {
        "results.json": json.dumps({**whole, "notes": data.notes}, indent=1, default=str) + "\n",
        "table.md": data.to_markdown(),
        "table.tex": data.without("seconds").to_latex(),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def gap_notes(
    against: str | None,
    good: Sequence[str],
    compare: Callable[[str], Mapping[str, Difference]],
    p_by: str = "sign flips",
) -> Iterator[str]:
    """How methods compare with the one named in advance, p-values corrected by Holm; or that none was named.

    Args:
        against: That method's name.
        good: The methods that did not fail.
        compare: Paired differences of the others to one.
        p_by: What the p-values are of.
    """
    if against is not None and against in good and len(good) > 1:
        gaps = compare(against)
        adjusted = holm([gap.p for gap in gaps.values()])
        listed = (f"{name} {_points(gap, p)}" for (name, gap), p in zip(gaps.items(), adjusted, strict=True))
        yield (
            f"against {against} at NDCG@10, points with 95 % intervals, p of {p_by} after Holm: " + ", ".join(listed)
        )
    elif len(good) > 1:
        yield "no gap was tested: name a method in advance (against, --against) to compare the others with"


def _points(gap: Difference, p: float) -> str:
    if not gap.users:
        return "no user to compare"
    return f"{100 * gap.gap:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f}) {_p(p)}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _count_note(counts: Mapping[str, Any]) -> str:
    return (
        f"{counts['data']}: {counts['users']:,} users, {counts['items']:,} items, {counts['interactions']:,} "
        f"interactions, sparsity {100 * counts['sparsity']:.2f} %"
    )
