"""What turns a twin's scores into probabilities, fitted on interactions that the rest of it hasn't seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, ndtr

from starec_env.recommend.choice import decayed

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
F = np.float32

SITTING = 1800
"""Seconds without an interaction after which a new sitting begins."""
_SIZES = (1, 2, 5, 10, 19)
_DECAYS = (0.7, 0.8, 0.9, 0.95)
_DAY = 86400
_STEPS, _FEWEST = 200, 100
_LEVELS = 100
_DECLARED = 0.05
"""Chance to leave after a step where the log can't tell: 20 steps in the mean."""
_RETURN_DECLARED = 0.2
"""Share of users who come back within a day where the log can't tell; of MovieLens' sittings it is 0.20 to 0.24."""


@dataclass(frozen=True)
class Calibration:
    """The few numbers that turn scores into probabilities, fitted on interactions that the rest hasn't seen.

    Attributes:
        temperature: t, of utilities.
        near: a, the weight of what the last items add.
        outside: How much speaks for taking nothing.
        slope: What a slate's log sum of exp(utility) counts against that.
        size: What the log of the slate's length does: more items at hand are taken from no more often in themselves.
        level: What the state's squared length does: how high a user's utilities are for any item.
        look: Chance that who looks at a place of a slate looks at the next one too; declared, not fitted.
        mood_decay: What remains of a mood after a rating: mood <- decay mood + (1 - decay) (stars - mean).
        mood_stars: Stars that the next rating moves by for one star of mood.
        leave: (steps,) chance that a sitting ends after its first, second, .. step; the last holds for all later ones.
        leave_declared: Whether `leave` is declared, because the log's times can't tell; else it is the log's, with
            30 minutes between sittings.
        mood_leaves: Leaving's odds are exp(-mood_leaves * mood) as large, and those of coming back exp(mood_leaves *
            mood); declared: logs of ratings show no such thing.
        levels: (levels,) the ratings of the scale, ascending.
        cuts: (levels - 1,) where one level ends and the next begins.
        liked_above: Ratings above this are likes.
    """

    temperature: float
    near: float
    outside: float
    slope: float
    size: float
    level: float
    mood_decay: float
    mood_stars: float
    leave: Floats
    leave_declared: bool
    levels: Floats
    cuts: Floats
    liked_above: float
    look: float = 0.95
    mood_leaves: float = 0.4

    @property
    def like_cut(self) -> float:
        """What a rating before it is put on the scale must exceed to be a like."""
        above = int(np.searchsorted(self.levels, self.liked_above, side="right"))
        return float(np.concatenate([[-np.inf], self.cuts, [np.inf]])[above])

    def on_scale(self, values: Floats) -> Floats:
        """(...) the ratings of the scale that numbers before they are put on it become."""
        found: Floats = self.levels[self.cuts.searchsorted(values)]
        return found

    def sitting_lengths(self, n: int, seed: int) -> Ints:
        """(n,) steps from coming to leaving, drawn from the chances of leaving in an even mood."""
        leave = self.leave.astype(np.float64)
        stays = np.cumsum(np.log1p(-leave.clip(max=1 - 1e-9)))
        drawn = np.log(np.random.default_rng(seed).random(n))
        within = np.searchsorted(-stays, -drawn) + 1
        beyond = np.ceil((drawn - stays[-1]) / np.log1p(-leave[-1].clip(1e-9, 1 - 1e-9))).astype(np.int64)
        return np.where(drawn < stays[-1], len(leave) + np.maximum(beyond, 0), within)


def weights(raw: Floats, near: Floats, log_like: Floats) -> tuple[float, float]:
    """Temperature and weight of `near` that make held-out liked items likeliest.

    Args:
        raw: (n, k) utilities; the item that was taken and liked is in column 0.
        near: (n, k) of `Followers.near`.
        log_like: (n, k) logs of the chances that the items are liked; their weight is 1.
    """

    def loss(p: NDArray[np.float64]) -> float:
        scores = p[0] * raw + p[1] * near + log_like
        return float((logsumexp(scores, axis=1) - scores[:, 0]).mean())

    found = _least(loss, [1.0, 0.1])
    return float(found[0]), float(found[1])


def outside(utilities: Floats, square: Floats, seed: int) -> tuple[float, float, float, float]:
    """Constant, slope, weights of the slate's size and of the state's square, of the chance that an item is taken.

    A log says what was taken and not what was passed. Declared: half of the slates hold what was taken next, whether
    they are of one item or of many.

    Args:
        utilities: (n, k) of items of which those in column 0 were taken.
        square: (n,) squared lengths of the states.
        seed: Of which item gives its place to the one taken.
    """
    sizes = sorted({min(size, utilities.shape[1] - 1) for size in _SIZES})
    shown, held = zip(*(slates(utilities[:, : size + 1], seed) for size in sizes), strict=True)
    inclusive = np.concatenate([logsumexp(part, axis=1) for part in shown])
    sign, square = np.where(np.concatenate(held), 1, -1), np.tile(square, len(sizes))
    size = np.repeat(np.log(sizes), len(utilities))

    def loss(p: NDArray[np.float64]) -> float:
        against = p[0] - p[1] * inclusive + p[2] * size + p[3] * square
        return float(np.logaddexp(0, sign * against).mean())

    constant, slope, of_size, level = _least(loss, [2.0, 1.0, 0.5, 0.0]).tolist()
    return constant, slope, of_size, level


def slates(utilities: Floats, seed: int) -> tuple[Floats, Flags]:
    """Utilities of slates of k - 1 items, and which slates hold the item that was taken.

    Args:
        utilities: (n, k) of items of which those in column 0 were taken; in every second row it replaces another.
        seed: Of which it replaces.
    """
    shown, held = utilities[:, 1:].copy(), np.arange(len(utilities)) % 2 == 0
    place = np.random.default_rng(seed).integers(shown.shape[1], size=len(shown))
    shown[held, place[held]] = utilities[held, 0]
    return shown, held


def moods(residuals: Floats, places: Ints, decay: float) -> Floats:
    """(rows,) mood before each row: a decayed mean of the residuals of the user's rows before it.

    Args:
        residuals: (rows,) ratings less their means, of users laid end to end.
        places: (rows,) 0-based place within the user.
        decay: What remains of a mood after a rating.
    """
    after = decayed((F(1 - decay) * residuals).astype(F)[:, None], places, decay)[:, 0]
    before = np.append(F(0), after[:-1])
    before[places == 0] = 0
    return before


def mood(residuals: Floats, places: Ints, held: Flags) -> tuple[float, float]:
    """Decay, and stars that the next rating moves by, that leave the least squares of held-out residuals."""

    def left(decay: float) -> tuple[float, float, float]:
        before = moods(residuals, places, decay)[held].astype(np.float64)
        slope = float((before * residuals[held]).sum() / max((before**2).sum(), 1e-9))
        return float(((residuals[held] - slope * before) ** 2).sum()), decay, slope

    _, decay, slope = min(left(decay) for decay in _DECAYS)
    return decay, slope


def scale(ratings: Floats) -> Floats:
    """(levels,) the ratings that can be given: those that were, those between on an even scale, at most 100."""
    found = np.unique(ratings)
    if len(found) > _LEVELS:
        return np.unique(np.quantile(ratings, np.linspace(0, 1, _LEVELS), method="nearest"))
    steps = (found - found[0]) / (np.diff(found).min() if len(found) > 1 else 1)
    even = np.allclose(steps, steps.round(), atol=1e-3) and steps[-1] < _LEVELS
    return np.linspace(found[0], found[-1], round(float(steps[-1])) + 1, dtype=F) if even else found


def cuts(means: Floats, deviations: Floats, ratings: Floats, levels: Floats) -> Floats:
    """(levels - 1,) cuts at which ratings drawn for held-out rows would have the held-out rows' histogram.

    Args:
        means: (rows,) before a rating is put on the scale.
        deviations: (rows,).
        ratings: (rows,) real ones.
        levels: (levels,) of the scale.
    """
    from scipy.optimize import brentq

    n, found = len(ratings), []
    low, high = float(levels[0]) - 20 * float(deviations.max()), float(levels[-1]) + 20 * float(deviations.max())
    for level in levels[:-1]:
        share = (np.count_nonzero(ratings <= level) + 0.5) / (n + 1)
        found.append(brentq(lambda cut, share=share: ndtr((cut - means) / deviations).mean() - share, low, high))
    return np.array(found, F)


def leaving(owners: Ints, timestamps: Ints) -> tuple[Floats, bool]:
    """Chance that a sitting ends after its first, second, .. interaction, and whether that is declared.

    A user's last sitting may be cut off where the rows end: that it ends isn't counted.

    Args:
        owners: (rows,) user of each row, ascending.
        timestamps: (rows,) seconds.
    """
    begins, whole = _sittings(owners, timestamps)
    lengths = np.diff(np.append(begins, len(owners)))
    if not len(owners) or not (timestamps % _DAY).any() or whole.sum() < _FEWEST:
        return np.array([_DECLARED], F), True
    steps = np.arange(1, _STEPS + 1)
    alive = len(lengths) - np.searchsorted(np.sort(lengths), steps)
    alive -= np.bincount(lengths[~whole].clip(max=_STEPS + 1), minlength=_STEPS + 2)[1:-1]
    ends = np.bincount(lengths[whole].clip(max=_STEPS + 1), minlength=_STEPS + 2)[1:-1]
    return _smoothed(ends, alive), False


def returning(owners: Ints, timestamps: Ints) -> float:
    """Share of sittings that another one follows within a day; declared where there are too few, or no times of day.

    A user's last sitting isn't counted, since nobody knows whether it was the last or the rows end: who never came back
    is missing, and the share is too high.

    Args:
        owners: (rows,) user of each row, ascending.
        timestamps: (rows,) seconds.
    """
    begins, whole = _sittings(owners, timestamps)
    again = begins[1:][whole[:-1]]
    if len(again) < _FEWEST or not (timestamps % _DAY).any():
        return _RETURN_DECLARED
    return float((timestamps[again] - timestamps[again - 1] <= _DAY).mean())


def _sittings(owners: Ints, timestamps: Ints) -> tuple[Ints, Flags]:
    """Rows at which sittings begin, and whether another one of the same user follows each."""
    new = (owners[1:] != owners[:-1]) | (np.diff(timestamps) > SITTING)
    begins = np.flatnonzero(np.append(True, new))
    return begins, np.append(owners[begins[1:]] == owners[begins[:-1]], False)


def _smoothed(ends: Ints, alive: Ints) -> Floats:
    """Shares of sums over windows that widen with the step: of steps a quarter apart, from the tenth on."""
    steps = np.arange(len(ends))
    reach = np.where(steps < 9, 0, steps // 4)
    first, stop = (steps - reach).clip(min=0), (steps + reach + 1).clip(max=len(ends))
    total = [np.append(0, counts.cumsum()) for counts in (ends, alive)]
    known = int(np.count_nonzero(alive >= _FEWEST // 4))  # the chance at the last of these holds for longer sittings
    found: Floats = ((total[0][stop] - total[0][first]) / (total[1][stop] - total[1][first]).clip(min=1)).astype(F)
    return found[: max(1, known)].clip(1e-4, 1)


def _least(loss: Any, start: list[float]) -> NDArray[np.float64]:
    from scipy.optimize import minimize

    found: NDArray[np.float64] = minimize(loss, start, method="Nelder-Mead", options={"maxiter": 2000}).x
    return found
