"""One evaluation under several seeds, each a run in its own folder, and one table over seeds and users."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType

from starec_env.errors import InvalidOption, RunError
from starec_env.metrics import METRICS, SHOWN, Difference, Floats, difference, interval, per_user, resampled_means
from starec_eval.evaluate import AnyRanker, Report, evaluate
from starec_eval.protocol import Protocol
from starec_eval.report.tables import TableData, results_table
from starec_eval.table import Results, gap_notes, write_table

Made = Callable[[int], tuple[Iterable[AnyRanker | tuple[str, AnyRanker]], Protocol]]
"""Makes a seed's rankers and its protocol."""


def evaluate_seeds(
    make: Made,
    seeds: Sequence[int],
    *,
    out: str | Path | None = None,
    resume: bool = False,
    against: str | None = None,
    report: Report | None = None,
    **options: Any,
) -> SeedResults:
    """Evaluate the same methods under each seed, one after the other.

    Args:
        make: Called with each seed.
        seeds: Two or more, each once.
        out: Receives a folder a seed, `seed-0` and the like, with all that an evaluation of that seed alone has.
        resume: Go on with the seeds in `out`; others may be added.
        against: The method, named in advance, that the others are compared with.
        report: As `evaluate` takes it; the method is named with its seed.
        options: Of `evaluate`: concurrency and cache.

    Raises:
        InvalidOption: There are fewer than two seeds, or one is given twice.
        RunError: `out` holds ranks of other settings, or of any and `resume` is False.
    """
    if len(set(seeds)) < max(2, len(seeds)):
        given = ", ".join(map(str, seeds))
        raise InvalidOption(f"seeds {given}: give at least two, each once; for a single one there is seed (--seed)")
    check_folder(out, resume)
    found: dict[int, Results] = {}
    for seed in seeds:
        rankers, protocol = make(seed)
        folder = Path(out) / f"seed-{seed}" if out else None
        named = _named(report, seed) if report else None
        found[seed] = evaluate(rankers, protocol, out=folder, resume=resume, report=named, **options)
        found[seed].against = against
        if folder:
            found[seed].write(folder)
    return SeedResults(found, against)


def check_folder(out: str | Path | None, resume: bool) -> None:
    """Raise RunError if a folder holds an evaluation of one seed, or of several and `resume` is False."""
    if out and (Path(out) / "ranks").exists():
        raise RunError(f"{out} holds the evaluation of a single seed: choose another folder for several")
    if out and not resume and any(Path(out).glob("seed-*/ranks")):
        raise RunError(f"{out} holds ranks already: pass resume=True (--resume) or choose another folder")


def _named(report: Report, seed: int) -> Report:
    return lambda method, done, total: report(f"seed {seed}: {method}", done, total)


@dataclass
class SeedResults:
    """The same methods under several seeds; printing it prints the table."""

    by_seed: Mapping[int, Results]
    against: str | None = None
    """The method, named in advance, that the notes compare all others with."""
    shown: Sequence[str] = SHOWN
    """The metrics that printed tables show; files hold all of `METRICS`."""

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A dict a method, with the keys of `Results.rows`; metrics are in percent, over seeds and users.

        A metric has `_se`, `_low` and `_high` beside it, the standard error and the ends of the 95 % interval of
        `starec_env.metrics.resampled_means`, and `_by_seed`, each seed's own mean. `users` counts each once, `cases`,
        `seconds` and `violations` are sums. A method that failed under a seed has failed.
        """
        return [self._row(method.method) for method in self._first.methods]

    @property
    def _first(self) -> Results:
        return next(iter(self.by_seed.values()))

    def _row(self, method: str) -> dict[str, Any]:
        parts = [next(row for row in part.rows if row["method"] == method) for part in self.by_seed.values()]
        failed = (
            f"seed {seed}: {part['error']}" for seed, part in zip(self.by_seed, parts, strict=True) if part["error"]
        )
        error = next(failed, None)
        row: dict[str, Any] = {"method": method}
        for name in METRICS:
            values = self.values(method, name)
            drawn = resampled_means(values) if values.size else np.array([np.nan, np.nan])
            found = (np.nanmean(values) if values.size else np.nan, np.nanstd(drawn, ddof=1), *interval(values))
            for of, value in zip(("", "_se", "_low", "_high"), found, strict=True):
                row[f"{name}{of}"] = None if error or np.isnan(value) else round(100 * float(value), 3)
            row[f"{name}_by_seed"] = [part[name] for part in parts]
        sums = {name: sum(part[name] for part in parts) for name in ("cases", "seconds", "violations")}
        missing = None if error else float(np.mean([part["missing"] for part in parts]))
        users, same = self.values(method, "mrr").shape[1], parts[0]["same_prompts_as"]
        return row | sums | {"users": users, "missing": missing, "error": error, "same_prompts_as": same}

    def values(self, method: str, metric: str) -> Floats:
        """(seeds, users) each user's mean of a metric, of all users with a value; nan where a seed gives none."""
        found = np.full((len(self.by_seed), self._first.cases.source.n_users), np.nan)
        for mine, results in zip(found, self.by_seed.values(), strict=True):
            scored = next(each for each in results.methods if each.method == method)
            mine[np.unique(results.cases.users)] = per_user(results.values(scored, metric), results.cases.users)
        return found[:, ~np.isnan(found).all(axis=0)]

    def compare(self, against: str, metric: str = "ndcg@10") -> dict[str, Difference]:
        """How far each other method is above one, paired over seeds and users; those that failed are left out."""
        base = self.values(against, metric)
        others = [row["method"] for row in self.rows if not row["error"] and row["method"] != against]
        return {name: difference(self.values(name, metric) - base) for name in others}

    @property
    def data(self) -> TableData:
        """The table as texts: metrics with intervals, best and second marked, and seconds."""
        return results_table(f"{self._first.settings['dataset']}, percent", self.rows, self.shown, self.notes())

    def notes(self) -> list[str]:
        """What the table was made of under all seeds and each, how methods compare, and what went wrong."""
        good = [row["method"] for row in self.rows if not row["error"]]
        by_seed = (f"{row['method']} {_listed(row['ndcg@10_by_seed'])}" for row in self.rows)
        return [
            *self._facts(0),
            f"NDCG@10 by seed {', '.join(map(str, self.by_seed))}: {'; '.join(by_seed)}",
            "in brackets 95 % intervals over seeds and users, both resampled",
            *gap_notes(self.against, good, self.compare, "the bootstrap over seeds and users"),
            *self._facts(1),
        ]

    def _facts(self, which: int) -> Iterator[str]:
        # What all seeds' notes say once, and what each alone says with its seed.
        found = {seed: results.facts()[which] for seed, results in self.by_seed.items()}
        shared = [note for note in found[next(iter(found))] if all(note in notes for notes in found.values())]
        yield from shared
        for seed, notes in found.items():
            said = f"seed {seed}"
            yield from (note if note.startswith(said) else f"{said}: {note}" for note in notes if note not in shared)

    def write(self, out: str | Path) -> None:
        """Write results.json, table.md and table.tex; what a seed alone has is in its own folder."""
        about = {key: value for key, value in self._first.settings.items() if key not in ("seed", "notes", "counts")}
        lists = {str(seed): results.cases.hash for seed, results in self.by_seed.items()}
        made = {"seeds": list(self.by_seed), "candidates": lists, "rows": self.rows}
        write_table(Path(out), {**about, **made}, self.data)

    def __rich__(self) -> RenderableType:
        return self.data.__rich__()


def _listed(values: Sequence[float | None]) -> str:
    return ", ".join("none" if value is None else f"{value:.1f}" for value in values)
