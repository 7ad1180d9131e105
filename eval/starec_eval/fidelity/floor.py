"""The floor that a card shows beside every user model: popularity for what is chosen, a user's own mean for stars."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.cases import Cases
from starec_env.dataset import Dataset
from starec_env.metrics import Relevant
from starec_eval.fidelity.measures import sitting_lengths

Floats = NDArray[np.floating[Any]]

_PRIOR = 5.0
"""Rows that the overall share of likes counts as beside a user's own."""


class PopularityUser:
    """Knows how often each item was taken and liked, and a user's mean rating so far; a `UserModel`.

    Args:
        seen: The rows that it may see.
        seed: Not used; every `UserModelMaker` is given one.
    """

    def __init__(self, seen: Dataset, seed: int = 0) -> None:
        taken, liked = seen.item_indices, seen.item_indices[seen.liked]
        self.counts = {
            "taken": np.bincount(taken, minlength=seen.n_items).astype(np.float64),
            "liked": np.bincount(liked, minlength=seen.n_items).astype(np.float64),
        }
        self.mean = float(seen.ratings.mean()) if seen.n_interactions else seen.liked_above
        self.sittings = sitting_lengths(seen.owner, seen.timestamps)
        self.like_rate = float(seen.liked.mean()) if seen.n_interactions else 0.5

    def log_choice(self, cases: Cases, relevant: Relevant = "liked") -> Floats:
        """By count plus 1."""
        odds = self.counts[relevant][cases.candidates] + 1
        found: Floats = np.log(odds / odds.sum(1, keepdims=True))
        return found

    def accepts(self, cases: Cases) -> Floats:
        """Count over count plus mean count: that of an item which is as likely of the log as of the catalogue."""
        counts = self.counts["taken"]
        found: Floats = counts[cases.candidates] / (counts[cases.candidates] + max(counts.mean(), 1e-9))
        return found

    def rate(self, dataset: Dataset, rows: NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
        """The mean of the user's earlier rows, and their share of likes drawn to the overall one."""
        first = first_rows(dataset, rows)
        n = rows - first
        stars, likes = (
            (total := np.append(0.0, column.astype(np.float64).cumsum()))[rows] - total[first]
            for column in (dataset.ratings, dataset.liked)
        )
        means = np.where(n > 0, stars / np.maximum(n, 1), self.mean)
        return means, (likes + _PRIOR * self.like_rate) / (n + _PRIOR)

    def draw_stars(self, dataset: Dataset, rows: NDArray[np.integer[Any]], seed: int) -> Floats:
        """Any of the user's earlier ratings; of a user without one the mean rating."""
        first = first_rows(dataset, rows)
        drawn = first + (np.random.default_rng(seed).random(len(rows)) * (rows - first)).astype(np.int64)
        return np.where(rows > first, dataset.ratings[drawn], self.mean)

    def sitting_lengths(self, n: int, seed: int) -> NDArray[np.int64]:
        """Any of the sittings seen."""
        found: NDArray[np.int64] = np.random.default_rng(seed).choice(self.sittings, n)
        return found


def first_rows(dataset: Dataset, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """(n,) the first row of the user of each of (n,) rows."""
    found: NDArray[np.int64] = dataset.indptr[np.searchsorted(dataset.indptr, rows, side="right") - 1]
    return found
