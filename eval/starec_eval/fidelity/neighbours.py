"""A user of another family than the twin: takes what others took near what it took last; no vectors are learned.

    near(c)    = sum over the last items h of decay^age(h) n_ch / (n_h + shrinkage)          as the ranker "markov"
    P(c next)  ~ (near(c) + floor)^a (count(c) + 1)^b       times P(like c) for the next liked item
    stars      = mean + item + user so far, both drawn towards 0;  P(like) by a normal of one spread

A recommender that a simulated user of its own kind favours is seen by comparing its gaps under two families.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, ndtr

from starec_env.cases import Cases
from starec_env.data.cut import rows_only
from starec_env.dataset import Dataset
from starec_env.metrics import Relevant
from starec_env.pairs import PairCounts
from starec_env.recommend.twin import last_liked
from starec_eval.fidelity.asked import cases_of
from starec_eval.fidelity.floor import PopularityUser, first_rows

Floats = NDArray[np.float64]

WINDOW, DECAY, SHRINKAGE, RECENT = 10, 0.8, 20.0, 40
"""As the ranker "markov" has them, and how many of the last rows count."""
_FLOOR = 1e-3
_USER_PRIOR, _ITEM_PRIOR = 10.0, 5.0
_CALIBRATED_ON, _NEGATIVES = 1000, 19
_CELLS = 1 << 22


class NeighboursUser(PopularityUser):
    """Fulfils `UserModel`.

    Args:
        seen: The rows that it may see.
        seed: Of the users and items that its two weights are fitted on.
    """

    def __init__(self, seen: Dataset, seed: int = 0) -> None:
        super().__init__(seen, seed)
        self._fit_stars(seen)
        self.weights = self._fit_weights(seen, np.random.default_rng(seed))
        self.shares, self.taken = _shares(seen), _counts(seen)

    def _fit_weights(self, seen: Dataset, rng: np.random.Generator) -> Floats:
        """The two exponents, by how much nearness and popularity say of the item that some users liked last."""
        last = last_liked(seen, seen.indptr[1:])
        able = np.flatnonzero((last > seen.indptr[:-1]) & (last < seen.indptr[1:]))
        users = np.sort(rng.permutation(able)[:_CALIBRATED_ON])
        stops = seen.indptr[1:].copy()
        stops[users] = last[users]
        before = rows_only(seen, seen.indptr[:-1], stops)
        self.shares, self.taken = _shares(before), _counts(before)
        others = rng.integers(seen.n_items, size=(len(users), _NEGATIVES))
        items = np.column_stack([seen.item_indices[last[users]], others]).astype(np.int32)
        cases = cases_of(before, users, items)
        spans = zip(items, seen.indptr[users], seen.indptr[users + 1], strict=True)
        met = np.array([np.isin(shown, seen.item_indices[first:stop]) for shown, first, stop in spans])
        met = met.reshape(items.shape)
        met[:, 0] = False
        return _weights(*self._features(cases), np.where(met, -np.inf, self._log_like(cases)))

    def log_choice(self, cases: Cases, relevant: Relevant = "liked") -> Floats:
        """See `UserModel`."""
        scores = self._utilities(cases)
        if relevant == "liked":
            scores += self._log_like(cases)
        found: Floats = scores - logsumexp(scores, axis=1, keepdims=True)
        return found

    def accepts(self, cases: Cases) -> Floats:
        """P(next) over P(next) plus a random item's chance: whether it is rather a taken than an untouched item."""
        found = np.empty(cases.candidates.shape)
        step = max(1, _CELLS // len(self.items))
        for part in (slice(at, at + step) for at in range(0, len(found), step)):
            chance = self._of_unmet(cases.select(np.arange(len(found))[part]))
            chosen = np.take_along_axis(chance, cases.candidates[part].astype(np.int64), 1)
            found[part] = chosen / (chosen + 1 / len(self.items))
        return found

    def _of_unmet(self, cases: Cases) -> Floats:
        """(cases, items) chances to be taken next, 0 for what was met."""
        everything = np.broadcast_to(np.arange(len(self.items), dtype=np.int32), (len(cases), len(self.items)))
        scores = self._utilities(replace(cases, candidates=everything))
        for row, (first, stop) in enumerate(zip(cases.first, cases.stop, strict=True)):
            scores[row, cases.source.item_indices[first:stop]] = -np.inf
        found: Floats = np.exp(scores - logsumexp(scores, axis=1, keepdims=True))
        return found

    def rate(self, dataset: Dataset, rows: NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
        """See `UserModel`."""
        means = self.mean + self._levels(dataset, rows) + self.items[dataset.item_indices[rows]]
        return np.clip(means, *self.scale[[0, -1]]), self._likes(means)

    def draw_stars(self, dataset: Dataset, rows: NDArray[np.integer[Any]], seed: int) -> Floats:
        """Nearest ratings of the scale to normal draws."""
        drawn = self.rate(dataset, rows)[0] + self.spread * np.random.default_rng(seed).standard_normal(len(rows))
        found: Floats = self.scale[np.abs(drawn[:, None] - self.scale).argmin(1)]
        return found

    def _fit_stars(self, seen: Dataset) -> None:
        rest = seen.ratings - self.mean
        self.items = np.bincount(seen.item_indices, rest, seen.n_items) / (_counts(seen) + _ITEM_PRIOR)
        self.scale = np.unique(seen.ratings).astype(np.float64)
        rows = np.arange(seen.n_interactions)
        left = rest - self._levels(seen, rows) - self.items[seen.item_indices]
        self.spread = float(left.std()) if len(left) else 1.0
        above = int(np.searchsorted(self.scale, seen.liked_above, side="right"))
        ends = self.scale[[max(above - 1, 0), min(above, len(self.scale) - 1)]]
        self.cut = float(ends.mean())

    def _levels(self, dataset: Dataset, rows: NDArray[np.integer[Any]]) -> Floats:
        """(n,) how much more than others the users of (n,) rows gave before them."""
        left = np.append(0.0, (dataset.ratings - self.mean - self.items[dataset.item_indices]).cumsum())
        first = first_rows(dataset, rows)
        found: Floats = (left[rows] - left[first]) / (rows - first + _USER_PRIOR)
        return found

    def _likes(self, means: Floats) -> Floats:
        found: Floats = ndtr((means - self.cut) / self.spread)
        return found

    def _log_like(self, cases: Cases) -> Floats:
        means = self.mean + self._levels(cases.source, cases.stop)[:, None] + self.items[cases.candidates]
        found: Floats = np.log(np.maximum(self._likes(means), 1e-6))
        return found

    def _utilities(self, cases: Cases) -> Floats:
        near, popular = self._features(cases)
        found: Floats = self.weights[0] * near + self.weights[1] * popular
        return found

    def _features(self, cases: Cases) -> tuple[Floats, Floats]:
        """(cases, n) logs of nearness and of counts."""
        near = (_recent(cases) @ self.shares).toarray()
        chosen: Floats = np.take_along_axis(near, cases.candidates.astype(np.int64), 1)
        return np.log(chosen + _FLOOR), np.log(self.taken[cases.candidates] + 1)


def _counts(seen: Dataset) -> Floats:
    found: Floats = np.bincount(seen.item_indices, minlength=seen.n_items).astype(np.float64)
    return found


def _shares(seen: Dataset) -> Any:
    """(items, items) sparse: of each item's rows the share with another near them."""
    from scipy.sparse import csr_matrix, diags_array

    pairs = PairCounts.of(seen, WINDOW)
    upper = csr_matrix((pairs.counts.astype(np.float64), pairs.highs, pairs.indptr), (seen.n_items, seen.n_items))
    return (diags_array(1 / (_counts(seen) + SHRINKAGE)) @ (upper + upper.T)).tocsr()


def _recent(cases: Cases) -> Any:
    """(cases, items) sparse: decayed weights of each history's last items."""
    from scipy.sparse import csr_matrix

    ages = np.arange(RECENT)
    rows = cases.stop[:, None] - 1 - ages
    inside = rows >= cases.first[:, None]
    items = cases.source.item_indices[rows[inside]]
    weights = np.broadcast_to(DECAY**ages, rows.shape)[inside]
    bounds = np.append(0, inside.sum(1).cumsum())
    return csr_matrix((weights, items, bounds), (len(cases), cases.source.n_items))


def _weights(near: Floats, popular: Floats, known: Floats) -> Floats:
    """The exponents under which the items in column 0 are likeliest, with (cases, n) logs of what else is known."""
    from scipy.optimize import minimize

    def loss(w: Floats) -> float:
        scores = w[0] * near + w[1] * popular + known
        return float((logsumexp(scores, axis=1) - scores[:, 0]).mean()) if len(scores) else 0.0

    found: Floats = minimize(loss, np.array([1.0, 0.1]), method="Nelder-Mead").x
    return found
