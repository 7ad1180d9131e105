"""The report card as data: what `card.json` holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from starec_agents.runs.store import write_text, writing
from starec_env.errors import RunError
from starec_env.metrics import Estimate, estimate
from starec_eval.fidelity import measures

VERSION = 1
"""Of the file's form."""
MODEL, FLOOR, REAL = "model", "popularity", "real"
"""Columns that most measures have; docs/fidelity.md names the others."""

Unit = Literal["percent", "stars", "nats", "share", "points", "items", "rows"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Value(_Part):
    """A number, how sure it is, and how many users it is of."""

    mean: float | None
    """None where nothing could be measured."""
    se: float | None = None
    """Standard error over users; None where there is none."""
    n: int = 0

    @classmethod
    def of(cls, found: Estimate | float) -> Value:
        """From an estimate, or from a number without error."""
        if not isinstance(found, Estimate):
            return cls(mean=_finite(found))
        return cls(mean=_finite(found.mean), se=_finite(found.se), n=found.n)


class Measure(_Part):
    """One quantity of the user model, and beside it of whatever it is to be compared with."""

    key: str
    """Short name that doesn't change, e.g. "ndcg@10"."""
    name: str
    unit: Unit
    values: dict[str, Value]
    """By column: "model", "popularity", "real", "floor" and others."""
    groups: dict[str, dict[str, Value]] = {}
    """The same by group of users."""


class Section(_Part):
    """Measures that answer one question."""

    key: str
    title: str
    about: str
    """What was asked, and what the numbers may not be taken for."""
    measures: list[Measure]

    def value(self, key: str, column: str = MODEL) -> Value:
        """A number by its measure's key; raises KeyError where there is none."""
        return {measure.key: measure for measure in self.measures}[key].values[column]


class Card(_Part):
    """How faithful a user model is to held-out real users."""

    version: int = VERSION
    starec: str
    dataset: str
    data_hash: str
    """`Dataset.hash` as prepared."""
    candidates: str
    """The lists' hash, as `starec eval` prints it."""
    user: str
    """The user model's name."""
    seed: int
    settings: dict[str, Any]
    """What was asked of whom; with the same a card is made anew to the same numbers."""
    notes: list[str] = []
    problems: dict[str, int] = {}
    """What was wrong with the model's answers, and how often."""
    left_out: dict[str, str] = {}
    """Sections that aren't there, and why."""
    seconds: dict[str, float] = {}
    """Wall-clock time of each fit and section; no part of what identifies a card."""
    sections: list[Section] = []

    def section(self, key: str) -> Section:
        """A section by key; raises KeyError where it was left out."""
        return {section.key: section for section in self.sections}[key]

    @property
    def identity(self) -> dict[str, Any]:
        """All that a card's numbers follow from."""
        return self.model_dump(
            mode="json", include={"version", "starec", "dataset", "data_hash", "candidates", "user", "seed", "settings"}
        )

    def write(self, path: Path) -> None:
        """Write card.json, whole or not at all."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> Card:
        """Read card.json.

        Raises:
            RunError: It isn't there, or isn't a card of this version.
        """
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path} is no report card that can be read: {str(error).partition(chr(10))[0]}") from None


How = Callable[[NDArray[Any], NDArray[Any]], Estimate]


def measured(
    key: str,
    name: str,
    unit: Unit,
    columns: Mapping[str, ArrayLike],
    users: NDArray[np.integer[Any]],
    groups: Mapping[str, NDArray[np.bool_]] | None = None,
    how: How | None = None,
) -> Measure:
    """A measure from one value a row.

    Args:
        key: Short name.
        name: In tables.
        unit: Of the values; shares are multiplied to percent where the unit says so.
        columns: (rows,) values by column.
        users: (rows,) user indices.
        groups: (users,) masks by name.
        how: Takes values and users to an estimate; `metrics.estimate` unless given, the mean over users' means.
    """
    scale = 100.0 if unit == "percent" else 1.0
    arrays = {column: scale * np.asarray(values, np.float64) for column, values in columns.items()}

    def of(rows: NDArray[np.bool_]) -> dict[str, Value]:
        take = how or (lambda values, owners: estimate("", values, owners))
        return {column: Value.of(take(values[rows], users[rows])) for column, values in arrays.items()}

    by_group = {group: of(mask[users]) for group, mask in (groups or {}).items()}
    return Measure(key=key, name=name, unit=unit, values=of(np.ones(len(users), np.bool_)), groups=by_group)


def plain(key: str, name: str, unit: Unit, **columns: Estimate | float) -> Measure:
    """A measure from estimates or numbers by column; underscores in a column's name are spaces."""
    scale = 100.0 if unit == "percent" else 1.0
    return Measure(
        key=key,
        name=name,
        unit=unit,
        values={column.replace("_", " "): Value.of(scaled(found, scale)) for column, found in columns.items()},
    )


def errors_of(
    key: str, name: str, pairs: Mapping[str, tuple[Any, Any]], owners: NDArray[np.integer[Any]], seed: int
) -> Measure:
    """Calibration errors by column, and the floor of the model's own.

    Args:
        key: Short name.
        name: In tables.
        pairs: By column (rows,) probabilities and what happened.
        owners: (rows,) user indices.
        seed: Of the floor's draws.
    """
    found: dict[str, Estimate | float] = {
        column: measures.jackknifed(partial(_of_rows, measures.calibration_error, *pair), owners)
        for column, pair in pairs.items()
    }
    found["floor"] = measures.calibration_floor(pairs[MODEL][0], seed)
    return plain(key, name, "share", **found)


def aucs(
    key: str, name: str, happened: NDArray[np.bool_], scores: Mapping[str, Any], owners: NDArray[np.integer[Any]]
) -> Measure:
    """Areas under the curve by column, of (rows,) scores, in percent."""
    found = {
        column: measures.jackknifed(partial(_of_rows, measures.auc, happened, of), owners)
        for column, of in scores.items()
    }
    return plain(key, name, "percent", **found)


def _of_rows(statistic: Callable[[Any, Any], float], one: Any, other: Any, rows: NDArray[np.intp]) -> float:
    return statistic(one[rows], other[rows])


def scaled(found: Estimate | float, scale: float) -> Estimate | float:
    """A number or an estimate times a factor."""
    if not isinstance(found, Estimate):
        return scale * found
    return Estimate(found.label, scale * found.mean, scale * found.se, found.n)


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None
