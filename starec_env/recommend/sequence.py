"""A second simulated user, unrelated to the twin: what follows what is counted, and stars are means.

    utility    a log(count_j + 1) + b log(1 + 100 sum_h .8^age(h) n_jh / (n_h + 20))     h: the last 20 items
    stars      mean + (user's mean, drawn to it) + (item's mean, drawn to it), one deviation for all

It shares the twin's outside option, scale and sittings, fitted on its own utilities, and nothing of its vectors; a
recommender that is good before both isn't merely akin to one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp, ndtr

from starec_env.cases import Cases
from starec_env.dataset import Dataset
from starec_env.errors import DataError
from starec_env.metrics import Relevant
from starec_env.pairs import PairCounts
from starec_env.recommend import calibrate
from starec_env.recommend.calibrate import Calibration
from starec_env.recommend.responses import Visits, check_stops
from starec_env.recommend.twin import last_liked, seen, spans
from starec_env.recommend.visits import Steps

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
F = np.float32

_RECENT, _FADES, _GAIN = 20, 0.8, 100.0
_WINDOW, _SHRINK, _PRIOR = 10, 20.0, 5.0
_NEGATIVES, _MOST, _FEWEST = 19, 5_000, 20
_CELLS, _DENSE = 1 << 16, 1 << 22


@dataclass(frozen=True, eq=False)
class SequenceUser:
    """A fitted second user model; fulfils `Responder` and `UserModel`.

    Attributes:
        dataset: Whose users and catalogue are meant.
        stops: (n_users,) the row before which each user's rows end that the fit saw.
        pairs: How often two items stand at most ten places apart.
        counts: (n_items,) interactions of each.
        offset: The mean rating.
        item_stars: (n_items,) what an item gets above it.
        deviation: Of a rating around its mean.
        calibration: As the twin's; `temperature` weighs popularity, `near` what follows.
    """

    dataset: Dataset
    stops: Ints
    pairs: PairCounts
    counts: NDArray[np.float64]
    offset: float
    item_stars: Floats
    deviation: float
    calibration: Calibration

    @classmethod
    def fit(cls, dataset: Dataset, *, stops: Ints | None = None, seed: int = 0) -> Self:
        """Count, and calibrate on each user's last liked item of the rows that may be seen.

        Args:
            dataset: As prepared.
            stops: (n_users,) as for `Twin.fit`.
            seed: Of who calibrates, and of the items that weren't taken.

        Raises:
            DataError: There is too little.
        """
        stops = last_liked(dataset, dataset.indptr[1:]) if stops is None else check_stops(dataset, stops)
        held = last_liked(dataset, stops)
        rng = np.random.default_rng(seed)
        able = np.flatnonzero((held < stops) & (held - dataset.indptr[:-1] >= 3))
        able = able[dataset.liked[held[able]]]
        if len(able) < _FEWEST:
            raise DataError(
                f"{dataset.name} is too small: {len(able)} users like an item after 3 others, wanted {_FEWEST}"
            )
        who = np.sort(rng.permutation(able)[:_MOST])
        early = stops.copy()
        early[who] = held[who]
        model = cls._counted(dataset, early)
        return replace(
            model._calibrated(dataset, who, held, stops, rng, seed),
            **{name: getattr(cls._counted(dataset, stops), name) for name in ("stops", "pairs", "counts")},
        )

    @classmethod
    def _counted(cls, dataset: Dataset, stops: Ints) -> Self:
        users, items, rows = seen(dataset, stops)
        counted = dataset.with_rows(rows, indptr=np.append(0, (stops - dataset.indptr[:-1]).cumsum()), window=None)
        ratings = dataset.ratings[rows].astype(np.float64)
        offset = float(ratings.mean())
        counts = np.bincount(items, minlength=dataset.n_items).astype(np.float64)
        of_items = np.bincount(items, ratings - offset, dataset.n_items) / (counts + _PRIOR)
        of_users = np.bincount(users, ratings - offset - of_items[items], dataset.n_users)
        of_users = of_users / (np.bincount(users, minlength=dataset.n_users) + _PRIOR)
        left = ratings - offset - of_items[items] - of_users[users]
        levels = calibrate.scale(dataset.ratings[rows])
        known = Calibration(1, 1, 0, 1, 0, 0, 0.9, 0, np.ones(1, F), True, levels, levels[1:], dataset.liked_above)
        pairs = PairCounts.of(counted, _WINDOW)
        return cls(dataset, stops, pairs, counts, offset, of_items.astype(F), float(left.std()), known)

    def _calibrated(
        self, dataset: Dataset, who: Ints, held: Ints, stops: Ints, rng: np.random.Generator, seed: int
    ) -> Self:
        may = zip(dataset.indptr[who].tolist(), stops[who].tolist(), strict=True)
        met = [set(dataset.item_indices[first:stop].tolist()) for first, stop in may]
        unmet = np.stack([_drawn(rng, dataset.n_items, mine) for mine in met])
        shown = np.concatenate([dataset.item_indices[held[who], None].astype(np.int64), unmet], axis=1)
        recent = self._recent(dataset, dataset.indptr[who], held[who])
        popular, near = self._features(recent, shown)
        mean = self._means(self._levels(dataset, dataset.indptr[who], held[who]), shown)
        owner, items, rows = seen(dataset, self.stops)
        levels_of = self._levels(dataset, dataset.indptr[:-1], self.stops)
        means = self._means(levels_of[owner], items[:, None])[:, 0]
        deviations = np.full(len(means), self.deviation, F)
        cuts = calibrate.cuts(means, deviations, dataset.ratings[rows], self.calibration.levels)
        leave, declared = calibrate.leaving(owner, dataset.timestamps[rows])
        known = replace(self.calibration, cuts=cuts, leave=leave, leave_declared=declared)
        log_like = np.log(np.maximum(ndtr((mean - F(known.like_cut)) / F(self.deviation)), F(1e-6)))
        temperature, weight = calibrate.weights(popular, near, log_like)
        z = F(temperature) * popular + F(weight) * near
        outside, slope, size, _ = calibrate.outside(z, np.zeros(len(z), F), seed)
        known = replace(known, temperature=temperature, near=weight, outside=outside, slope=slope, size=size)
        return replace(self, calibration=known)

    @cached_property
    def returning(self) -> float:
        """Share of sittings that another follows within a day; see `calibrate.returning`."""
        users, _, rows = seen(self.dataset, self.stops)
        return calibrate.returning(users, self.dataset.timestamps[rows])

    def open(self, n: int, seed: int = 0) -> Visits:
        """Room for n users at once."""
        return _SequenceVisits(self, n, seed)

    # What it knows of users ------------------------------------------------------------------------------------------

    def _recent(self, dataset: Dataset, first: Ints, stops: Ints) -> Ints:
        """(n, 20) last items before stops, newest first, -1 where there are none."""
        rows = stops[:, None] - 1 - np.arange(_RECENT)
        return np.where(rows >= first[:, None], dataset.item_indices.take(rows, mode="clip").astype(np.int64), -1)

    def _levels(self, dataset: Dataset, first: Ints, stops: Ints) -> Floats:
        """(n,) what users give above the items' means."""
        owners, rows = spans(first, stops)
        rest = dataset.ratings[rows] - F(self.offset) - self.item_stars[dataset.item_indices[rows]]
        total = np.bincount(owners, rest, len(first)) / (stops - first + _PRIOR)
        return total.astype(F)

    def _means(self, levels: Floats, items: NDArray[np.integer[Any]]) -> Floats:
        found: Floats = self.item_stars[items] + levels[:, None] + F(self.offset)
        return found

    def _features(self, recent: Ints, shown: NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
        """(n, k) logs of popularity, and of what follows the last items."""
        popular = np.log1p(self.counts[shown]).astype(F)
        near = self._near_all if shown.shape[1] * recent.shape[1] > self.dataset.n_items else self._near
        return popular, np.log1p(_GAIN * near(recent, shown)).astype(F)

    def _near(self, recent: Ints, shown: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """(n, k) faded shares, pair by pair."""
        near = np.zeros(shown.shape)
        step = max(1, _CELLS // shown.shape[1])
        for age in range(recent.shape[1]):
            before = recent[:, age, None]
            for part in (slice(at, at + step) for at in range(0, len(shown), step)):
                share = self.pairs(before[part], shown[part]) / (self.counts[np.maximum(before[part], 0)] + _SHRINK)
                near[part] += _FADES**age * share
        return near

    def _near_all(self, recent: Ints, shown: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """The same by one sparse product with all items: faster where much of the catalogue is shown."""
        from scipy.sparse import csr_array

        known, fades = recent >= 0, np.broadcast_to(_FADES ** np.arange(recent.shape[1]), recent.shape)
        weights = csr_array(
            (fades[known], recent[known], np.append(0, known.sum(1).cumsum())), (len(recent), self.dataset.n_items)
        )
        near, step = np.empty(shown.shape), max(1, _DENSE // self.dataset.n_items)
        for part in (slice(at, at + step) for at in range(0, len(shown), step)):
            dense = (weights[part] @ self._shares).toarray()
            near[part] = np.take_along_axis(dense, shown[part].astype(np.int64), axis=1)
        return near

    @cached_property
    def _shares(self) -> Any:
        """(items, items) sparse: of an item's rows the share with another near them."""
        from scipy.sparse import csr_array, diags_array, triu

        upper = csr_array(
            (self.pairs.counts.astype(np.float64), self.pairs.highs, self.pairs.indptr), (self.dataset.n_items,) * 2
        )
        return diags_array(1 / (self.counts + _SHRINK)) @ (upper + triu(upper, 1).T).tocsr()

    def utilities(self, recent: Ints, shown: NDArray[np.integer[Any]]) -> Floats:
        """(n, k) utilities of what is shown after (n, 20) last items."""
        popular, near = self._features(recent, shown)
        found: Floats = F(self.calibration.temperature) * popular + F(self.calibration.near) * near
        return found

    # The card's questions --------------------------------------------------------------------------------------------

    @classmethod
    def made(cls, seen_rows: Dataset, seed: int = 0) -> Self:
        """Fit on all rows of a data set."""
        return cls.fit(seen_rows, stops=seen_rows.indptr[1:], seed=seed)

    def log_choice(self, cases: Cases, relevant: Relevant = "liked") -> Floats:
        """See `UserModel`."""
        scores = self.utilities(self._recent(cases.source, cases.first, cases.stop), cases.candidates)
        if relevant == "liked":
            levels = self._levels(cases.source, cases.first, cases.stop)
            scores += np.log(np.maximum(self._p_like(self._means(levels, cases.candidates)), F(1e-6)))
        found: Floats = scores - logsumexp(scores, axis=1, keepdims=True)
        return found

    def accepts(self, cases: Cases) -> Floats:
        """Chances that each candidate would be taken were it shown alone."""
        z = self.utilities(self._recent(cases.source, cases.first, cases.stop), cases.candidates)
        found: Floats = expit(F(self.calibration.slope) * z - F(self.calibration.outside))
        return found

    def rate(self, dataset: Dataset, rows: NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
        """See `UserModel`."""
        mean = self._before(dataset, rows)
        return self._expected(mean), self._p_like(mean)

    def draw_stars(self, dataset: Dataset, rows: NDArray[np.integer[Any]], seed: int) -> Floats:
        """See `DrawsStars`."""
        normal = np.random.default_rng(seed).standard_normal(len(rows), F)
        return self.calibration.on_scale(self._before(dataset, rows) + F(self.deviation) * normal)

    def sitting_lengths(self, n: int, seed: int) -> Ints:
        """See `HasSittings`."""
        return self.calibration.sitting_lengths(n, seed)

    def _before(self, dataset: Dataset, rows: NDArray[np.integer[Any]]) -> Floats:
        """(n,) means from each user's rows before the first one asked about, as `Visits` keep what they began with."""
        owners = np.searchsorted(dataset.indptr, rows, side="right") - 1
        users, first, place = np.unique(owners, return_index=True, return_inverse=True)
        levels = self._levels(dataset, dataset.indptr[users], np.asarray(rows[first], np.int64))
        return self._means(levels[place], dataset.item_indices[rows, None].astype(np.int64))[:, 0]

    def _expected(self, means: Floats) -> Floats:
        levels, cuts = self.calibration.levels, self.calibration.cuts
        above = ndtr((means[None] - cuts[:, None]) / F(self.deviation))
        found: Floats = (levels[0] + (np.diff(levels)[:, None] * above).sum(0)).astype(F)
        return found

    def _p_like(self, means: Floats) -> Floats:
        found: Floats = ndtr((means - F(self.calibration.like_cut)) / F(self.deviation))
        return found


class _SequenceVisits(Steps):
    def __init__(self, model: SequenceUser, n: int, seed: int) -> None:
        super().__init__(model, n, seed)
        self._user = model
        self._recent = np.full((n, _RECENT), -1)
        self._levels = np.zeros(n, F)

    def _restart(self, rows: Ints, users: Ints) -> None:
        super()._restart(rows, users)
        first, stops = self._dataset.indptr[users], self._stops[users]
        self._recent[rows] = self._user._recent(self._dataset, first, stops)
        self._levels[rows] = self._user._levels(self._dataset, first, stops)

    def _utilities(self, rows: NDArray[Any], slates: NDArray[Any]) -> Floats:
        return self._user.utilities(self._recent[rows], slates)

    def _ratings(self, rows: NDArray[Any], items: Ints) -> tuple[Floats, Floats]:
        means = self._user._means(self._levels[rows], items[:, None])[:, 0]
        return means, np.full(len(rows), self._user.deviation, F)

    def _move(self, rows: NDArray[Any], items: Ints) -> None:
        self._recent[rows, 1:] = self._recent[rows, :-1]
        self._recent[rows, 0] = items


def _drawn(rng: np.random.Generator, n_items: int, met: set[int]) -> Ints:
    """19 distinct items that weren't met, as far as there are any."""
    drawn = [item for item in rng.permutation(n_items)[: _NEGATIVES + len(met)].tolist() if item not in met]
    return np.array((drawn * _NEGATIVES)[:_NEGATIVES], np.int64)
