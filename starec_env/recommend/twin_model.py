"""A twin as the fidelity card asks it: what real users took and how they rated it."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

from starec_env.cases import Cases
from starec_env.dataset import Dataset
from starec_env.metrics import Relevant
from starec_env.recommend import calibrate
from starec_env.recommend.twin import Report, States, Twin, spans

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
F = np.float32

_CELLS = 1 << 21
"""Candidates looked at together."""


class TwinModel:
    """Fulfils `UserModel`: the very model that `starec/Recommend-v0` steps, on the histories that it is asked about.

    Args:
        twin: The twin.
    """

    def __init__(self, twin: Twin) -> None:
        self.twin = twin

    @classmethod
    def made(cls, seen: Dataset, seed: int = 0, report: Report | None = None) -> Self:
        """Fit a twin on all rows of a data set."""
        return cls(Twin.fit(seen, stops=seen.indptr[1:], seed=seed, report=report))

    def log_choice(self, cases: Cases, relevant: Relevant = "liked") -> Floats:
        """See `UserModel`."""
        states, place = self._states(cases)
        found: Floats = np.empty(cases.candidates.shape, F)
        for part in _parts(len(found), cases.candidates.shape[1]):
            some, shown = states[place[part]], cases.candidates[part]
            if relevant == "liked":
                found[part] = self.twin.log_choice(some, shown)
            else:
                scores = self.twin.utilities(some, shown)
                found[part] = scores - logsumexp(scores, axis=1, keepdims=True)
        return found

    def accepts(self, cases: Cases) -> Floats:
        """Chances that each candidate would be taken were it shown alone."""
        states, place = self._states(cases)
        found: Floats = np.empty(cases.candidates.shape, F)
        slope = F(self.twin.calibration.slope)
        for part in _parts(len(found), cases.candidates.shape[1]):
            some = states[place[part]]
            utilities = self.twin.utilities(some, cases.candidates[part])
            found[part] = expit(slope * utilities - self.twin.reluctance(some, 1)[:, None])
        return found

    def rate(self, dataset: Dataset, rows: NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
        """See `UserModel`.

        What a user's ratings say is that of the rows before the first one asked about; the mood goes on row by row.
        """
        states, items = self._before(dataset, rows)
        mean, like = np.empty(len(rows), F), np.empty(len(rows), F)
        for part in _parts(len(rows), 1):
            some, shown = states[part], items[part, None]
            mean[part], like[part] = self.twin.mean_stars(some, shown)[:, 0], self.twin.p_like(some, shown)[:, 0]
        return mean, like

    def draw_stars(self, dataset: Dataset, rows: NDArray[np.integer[Any]], seed: int) -> Floats:
        """See `DrawsStars`."""
        states, items = self._before(dataset, rows)
        mean, deviation = self.twin.ratings(states, items[:, None])
        normal = np.random.default_rng(seed).standard_normal(len(rows), F)
        return self.twin.calibration.on_scale(mean[:, 0] + deviation[:, 0] * normal)

    def sitting_lengths(self, n: int, seed: int) -> Ints:
        """See `HasSittings`."""
        return self.twin.calibration.sitting_lengths(n, seed)

    def _states(self, cases: Cases) -> tuple[States, Ints]:
        """States of the different histories, and which of them each case has."""
        histories, place = np.unique(np.stack([cases.first, cases.stop]), axis=1, return_inverse=True)
        owners, rows = spans(histories[0], histories[1])
        source = cases.source
        items, ratings = source.item_indices[rows].astype(np.int64), source.ratings[rows]
        return self.twin.states(owners, items, ratings, histories.shape[1]), place.ravel()

    def _before(self, dataset: Dataset, rows: NDArray[np.integer[Any]]) -> tuple[States, Ints]:
        """(n,) states as far as ratings go just before (n,) rows, and the rows' items."""
        rows, items = np.asarray(rows, np.int64), dataset.item_indices.astype(np.int64)
        users, first, place = np.unique(
            np.searchsorted(dataset.indptr, rows, side="right") - 1, return_index=True, return_inverse=True
        )
        begins = dataset.indptr[users]
        owners, known = spans(begins, rows[first])
        raters = self.twin.stars.raters(owners, items[known], dataset.ratings[known], len(users))
        last = np.zeros(len(users), np.int64)
        np.maximum.at(last, place, rows)
        owners, known = spans(begins, last)
        residuals = dataset.ratings[known] - self.twin.stars.mean_rows(raters, owners, items[known])
        known = np.concatenate([known, last])  # the mood before a user's last row is asked for too
        order = np.argsort(known, kind="stable")
        residuals = np.concatenate([residuals, np.zeros(len(last), F)])[order]
        known, owners = known[order], np.concatenate([owners, np.arange(len(last))])[order]
        moods = calibrate.moods(residuals, known - begins[owners], self.twin.calibration.mood_decay)
        at = moods[np.searchsorted(known, rows)]
        none = np.zeros((len(rows), 0), F)
        return States(none, none.astype(np.int64), raters[place], at), items[rows]


def _parts(n: int, k: int) -> list[slice]:
    step = max(1, _CELLS // max(1, k))
    return [slice(at, at + step) for at in range(0, n, step)]
