"""How a twin is fitted: items' parameters on most rows, then a few numbers on those that were left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.dataset import Dataset
from starec_env.errors import DataError
from starec_env.recommend import calibrate
from starec_env.recommend.calibrate import Calibration
from starec_env.recommend.choice import Choice, fit_choice
from starec_env.recommend.stars import Stars, fit_stars
from starec_env.recommend.twin import Report, Twin, last_liked, seen, spans

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
F = np.float32

_NEGATIVES = 19
_FEWEST_ROWS, _FEWEST_USERS = 3, 20
_LEAST = 0.05
"""Smallest deviation of a rating, in stars."""
_GREATEST = 1000.0
"""Rating: vectors are kept as float16, whose steps are half a star beyond it."""
_MOST_USERS = 20_000
"""Users who calibrate: more would add nothing to a dozen numbers."""


def fit_parts(
    dataset: Dataset, stops: Ints, rank: int, seed: int, report: Report | None
) -> tuple[Choice, Stars, Calibration]:
    """The parts of `Twin.fit`, of the rows before (n_users,) stops."""
    _check_scale(dataset)
    held = _Held.of(dataset, stops, seed)
    n, m = dataset.n_users, dataset.n_items
    users, items, _ = seen(dataset, held.targets)
    choice = rounded(fit_choice(users, items, n, m, rank=rank, seed=seed, report=_of(report, "what is taken")))
    users, items, rows = seen(dataset, held.tenths)
    ratings = dataset.ratings[rows]
    stars = rounded(fit_stars(users, items, ratings, n, m, seed=seed, report=_of(report, "how it is rated")))
    return _calibrated(dataset, held, choice, stars, seed)


def _check_scale(dataset: Dataset) -> None:
    """Raise DataError for ratings that float16 can't hold, or that lie as near each other as `_LEAST`."""
    if not dataset.n_interactions:
        return
    low, high = float(dataset.ratings.min()), float(dataset.ratings.max())
    if max(-low, high) > _GREATEST or 0 < high - low < 10 * _LEAST:
        raise DataError(
            f"ratings of {dataset.name} run from {low:g} to {high:g}: a twin needs a scale that is at least "
            f"{10 * _LEAST:g} wide and within {_GREATEST:g} of zero; put them on one such as 1 to 5"
        )


def rounded(part: Any) -> Any:
    """A part with its vectors as they are when saved, as float16."""
    kept = {name: value for name, value in vars(part).items() if isinstance(value, np.ndarray) and value.dtype == F}
    return replace(part, **{name: value.astype(np.float16).astype(F) for name, value in kept.items()})


def _of(report: Report | None, what: str) -> Callable[[int, int], None] | None:
    return report and partial(report, what)


@dataclass(frozen=True)
class _Held:
    """What is held out of the fit to calibrate it."""

    stops: Ints
    """(n_users,) the row before which the rows end that may be seen."""
    targets: Ints
    """(n_users,) of those who calibrate the last liked of these rows; of the others `stops`."""
    tenths: Ints
    """(n_users,) of those who calibrate the row where the last tenth begins, or the last liked one if earlier."""
    users: Ints
    """Those who calibrate and liked something, after a few rows."""

    @classmethod
    def of(cls, dataset: Dataset, stops: Ints, seed: int) -> _Held:
        n, first = dataset.n_users, dataset.indptr[:-1]
        chosen = np.random.default_rng(seed).permutation(n) < min(n // 2, _MOST_USERS)
        last = last_liked(dataset, stops)
        targets = np.where(chosen, last, stops)
        tenths = np.where(chosen, np.minimum(first + (0.9 * (stops - first)).astype(np.int64), last), stops)
        users = np.flatnonzero(chosen & (last - first >= _FEWEST_ROWS) & (last < stops))
        users = users[dataset.liked[last[users]]]
        if len(users) < _FEWEST_USERS:
            raise DataError(
                f"{dataset.name} is too small for a twin: {len(users)} of half of its users like an item after "
                f"{_FEWEST_ROWS} others, wanted {_FEWEST_USERS} of them to calibrate by"
            )
        return cls(stops, targets, tenths, users)


def _calibrated(
    dataset: Dataset, held: _Held, choice: Choice, stars: Stars, seed: int
) -> tuple[Choice, Stars, Calibration]:
    stars, found = _of_stars(dataset, held, stars)
    users, _, rows = seen(dataset, held.stops)
    leave, declared = calibrate.leaving(users, dataset.timestamps[rows])
    known = Calibration(
        1, 0, 0, 1, 0, 0, **found, leave=leave, leave_declared=declared, liked_above=dataset.liked_above
    )
    twin = Twin(choice, stars, known, dataset, held.targets)  # whose followers haven't seen the held-out items either
    return choice, stars, replace(known, **_of_choice(twin, held, seed))


def _of_stars(dataset: Dataset, held: _Held, stars: Stars) -> tuple[Stars, dict[str, Any]]:
    """Stars whose deviations are those of held-out ratings; mood, levels and cuts."""
    who = np.flatnonzero(held.tenths < held.stops)
    first = dataset.indptr[who]
    owners, rows = spans(first, held.tenths[who])
    items, ratings = dataset.item_indices.astype(np.int64), dataset.ratings
    raters = stars.raters(owners, items[rows], ratings[rows], len(who))
    owners, rows = spans(first, held.stops[who])
    places, out = rows - first[owners], rows >= held.tenths[who][owners]
    means = stars.mean_rows(raters, owners, items[rows])
    residuals = ratings[rows] - means
    decay, slope = calibrate.mood(residuals, places, out)
    means = (means + F(slope) * calibrate.moods(residuals, places, decay))[out]
    owners, rows = owners[out], rows[out]
    deviations = np.maximum(stars.deviation(raters[owners], items[rows, None])[:, 0], F(_LEAST))
    factor = float((((ratings[rows] - means) / deviations) ** 2).mean())
    noise = max(stars.noise * factor, _LEAST**2)  # a log without ratings has none
    stars = rounded(replace(stars, noise=noise, spread=stars.spread * F(factor)))
    deviations = stars.deviation(raters[owners], items[rows, None])[:, 0]
    levels = calibrate.scale(dataset.ratings[seen(dataset, held.stops)[2]])
    cuts = calibrate.cuts(means, deviations, ratings[rows], levels)
    return stars, {"mood_decay": decay, "mood_stars": slope, "levels": levels, "cuts": cuts}


def _of_choice(twin: Twin, held: _Held, seed: int) -> dict[str, Any]:
    """Temperature, weight of the last items, and the outside option."""
    data, users = twin.dataset, held.users
    states = twin.states_at(data, users, held.targets[users])
    drawn = _unmet(data, users, held.stops[users], np.random.default_rng((seed, 1)))
    candidates = np.column_stack([data.item_indices[held.targets[users]], drawn])
    raw = twin.choice.utilities(states.sums, candidates)
    near = twin.followers.near(states.recent, candidates)
    log_like = twin.log_like(states, candidates)
    temperature, weight = calibrate.weights(raw, near, log_like)
    x = states.sums.sum(1)
    square = np.einsum("nr,nr->n", x, x)
    constant, slope, size, level = calibrate.outside(F(temperature) * raw + F(weight) * near, square, seed)
    against = {"outside": constant, "slope": slope, "size": size, "level": level}
    return {"temperature": temperature, "near": weight, **against}


def _unmet(dataset: Dataset, users: Ints, stops: Ints, rng: np.random.Generator) -> Ints:
    """(n, 19) distinct items that (n,) users haven't met before (n,) rows, as held-out lists have them."""
    found = np.empty((len(users), _NEGATIVES), np.int64)
    for row, (first, stop) in enumerate(zip(dataset.indptr[users].tolist(), stops.tolist(), strict=True)):
        met = dataset.item_indices[first:stop]
        few = dataset.n_items - len(met) < 8 * _NEGATIVES
        pool = np.arange(dataset.n_items) if few else rng.integers(dataset.n_items, size=4 * _NEGATIVES)
        free = np.setdiff1d(pool, met)
        if len(free) < _NEGATIVES:
            free = np.setdiff1d(np.arange(dataset.n_items), met)
        found[row] = rng.choice(free, _NEGATIVES, replace=len(free) < _NEGATIVES)
    return found
