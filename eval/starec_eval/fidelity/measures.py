"""The quantities of the report card, as pure functions of arrays; docs/fidelity.md has them in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starec_env.metrics import Estimate, Floats, per_user
from starec_env.recommend.calibrate import SITTING

BINS = 10
"""Bins of equal width that calibration errors are taken over."""
HALVINGS = 20
"""Of the users, for a floor."""
_RESAMPLES = 200
_PARTS = 20
_FEWEST = 20


# Errors over users ----------------------------------------------------------------------------------------------------


def pooled(values: ArrayLike, users: ArrayLike, label: str = "") -> Estimate:
    """Mean over rows of (rows,) values, with a standard error over (rows,) users: that of a ratio of sums.

    Unlike `metrics.estimate` it weighs a user by the rows, as the usual RMSE and MAE do. Rows of nan are left out.
    """
    array, owner = np.asarray(values, np.float64), np.asarray(users)
    known = ~np.isnan(array)
    unique, inverse = np.unique(owner[known], return_inverse=True)
    rows, sums = np.bincount(inverse), np.bincount(inverse, array[known])
    n = len(unique)
    if not n:
        return Estimate(label, np.nan, np.nan, 0)
    mean = float(sums.sum() / rows.sum())
    left = ((sums - mean * rows) ** 2).sum()
    return Estimate(label, mean, float(np.sqrt(left * n / (n - 1)) / rows.sum()) if n > 1 else np.nan, n)


def jackknifed(
    statistic: Callable[[NDArray[np.intp]], float], users: ArrayLike, label: str = "", parts: int = _PARTS
) -> Estimate:
    """A statistic of all rows, with its standard error by leaving out one of several parts of the users in turn.

    The delete-a-group jackknife: `sqrt((g - 1) / g * sum((theta_-i - mean)^2))` over g groups (Quenouille 1956,
    Tukey 1958). Users are put into parts by their order, turn by turn.

    Args:
        statistic: Of row numbers.
        users: (rows,).
        label: Of the estimate.
        parts: Most parts.
    """
    unique, inverse = np.unique(np.asarray(users), return_inverse=True)
    rows, n = np.arange(len(inverse)), len(unique)
    if not n:
        return Estimate(label, np.nan, np.nan, 0)
    groups = min(parts, n)
    whole = statistic(rows)
    if groups < 2:
        return Estimate(label, whole, np.nan, n)
    without = np.array([statistic(rows[inverse % groups != part]) for part in range(groups)])
    spread = ((without - without.mean()) ** 2).sum() * (groups - 1) / groups
    return Estimate(label, whole, float(np.sqrt(spread)), n)


def root(found: Estimate) -> Estimate:
    """The square root of an estimate, its error by the delta method: RMSE of a mean squared error."""
    value = float(np.sqrt(found.mean))
    return Estimate(found.label, value, found.se / (2 * value) if value else np.nan, found.n)


# Probabilities against what happened ----------------------------------------------------------------------------------


def calibration_error(probabilities: ArrayLike, happened: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error: `sum_b n_b / n |mean probability - share that happened|` over bins of equal width.

    Naeini et al. 2015. Both arguments are (n,); nan of none.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(happened, np.float64)
    if not len(p):
        return np.nan
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    gaps = np.abs(np.bincount(place, p, bins) - np.bincount(place, y, bins))
    return float(gaps.sum() / len(p))


def calibration_floor(probabilities: ArrayLike, seed: int = 0, draws: int = 20, bins: int = BINS) -> float:
    """The calibration error that perfect probabilities have by chance: of outcomes drawn from them, in the mean."""
    p, rng = np.asarray(probabilities, np.float64), np.random.default_rng(seed)
    return float(np.mean([calibration_error(p, rng.random(len(p)) < p, bins) for _ in range(draws)]))


def auc(happened: ArrayLike, scores: ArrayLike) -> float:
    """Chance that a row that happened scores above one that didn't, ties counting half (Mann and Whitney 1947)."""
    from scipy.stats import rankdata

    y = np.asarray(happened, np.bool_)
    positives, negatives = int(y.sum()), int((~y).sum())
    if not positives or not negatives:
        return np.nan
    above = rankdata(np.asarray(scores))[y].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def yes_no(said: NDArray[np.bool_], true: NDArray[np.bool_]) -> dict[str, Floats]:
    """Accuracy, precision, recall and F1 of each row of (cases, n) answers, as Agent4Rec's code has them.

    A row without a yes has precision 0, where theirs divides by zero.
    """
    both, yes, real = (said & true).sum(1), said.sum(1), true.sum(1)
    precision, recall = both / np.maximum(yes, 1), both / np.maximum(real, 1)
    total = precision + recall
    f1 = 2 * precision * recall / np.where(total > 0, total, 1.0)
    return {"accuracy": (said == true).mean(1), "precision": precision, "recall": recall, "F1": f1}


# Distributions --------------------------------------------------------------------------------------------------------


def total_variation(one: ArrayLike, other: ArrayLike) -> float:
    """Half the summed differences of two histograms' shares: 0 for equal ones, 1 for ones that share nothing."""
    p, q = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(np.abs(p / p.sum() - q / q.sum()).sum() / 2)


def earth_mover(one: ArrayLike, other: ArrayLike, at: ArrayLike) -> float:
    """Wasserstein-1 distance of two histograms over the same ascending places, in the places' unit."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(np.asarray(at), np.asarray(at), np.asarray(one), np.asarray(other)))


def beside_floor(
    simulated: NDArray[np.integer[Any]],
    real: NDArray[np.integer[Any]],
    users: NDArray[np.integer[Any]],
    distance: Callable[[Floats, Floats], float],
    n_bins: int,
    seed: int = 0,
) -> tuple[Estimate, Estimate]:
    """A distance of simulated from real histograms, and of real from real: the floor that no simulation can pass.

    Users are halved at random many times; what is simulated for one half is compared with what is real of the other,
    and so is what is real, so that both distances hold the same noise of sampling.

    Args:
        simulated: (rows,) bins of what was simulated.
        real: (rows,) bins of what was real.
        users: (rows,) whose rows they are.
        distance: Of two histograms.
        n_bins: How many bins there are.
        seed: Of the halves.

    Returns:
        The two means over the halvings, and the standard deviations over halvings in place of standard errors.
    """
    rng, (unique, inverse) = np.random.default_rng(seed), np.unique(users, return_inverse=True)
    found: list[tuple[float, float]] = []
    for _ in range(HALVINGS if len(unique) > 1 else 0):
        half = (rng.permutation(len(unique)) < len(unique) // 2)[inverse]
        there = np.bincount(real[~half], minlength=n_bins).astype(np.float64)
        here = (np.bincount(each[half], minlength=n_bins).astype(np.float64) for each in (simulated, real))
        found.append(tuple(distance(each, there) for each in here))  # type: ignore[arg-type]
    values = np.array(found).reshape(-1, 2)
    if not len(values):
        return Estimate("", np.nan, np.nan, 0), Estimate("", np.nan, np.nan, 0)
    made, floor = (Estimate("", float(v.mean()), float(v.std(ddof=1)), len(unique)) for v in values.T)
    return made, floor


# Orders of recommenders -----------------------------------------------------------------------------------------------


def kendall(one: ArrayLike, other: ArrayLike) -> float:
    """Kendall's tau-b of two lists of scores: pairs in the same order less pairs in the other, over all (1945)."""
    from scipy.stats import kendalltau

    return float(kendalltau(one, other).statistic)


def order(real: Floats, simulated: Floats) -> dict[str, Estimate]:
    """How far recommenders' means on simulated lists are from those on real ones, with bootstrap errors over users.

    Args:
        real: (recommenders, users) each user's mean of a metric on real lists.
        simulated: (recommenders, users) on simulated ones.

    Returns:
        "tau", Kendall's over all pairs; "told_apart", Kendall's over the pairs that real lists tell apart, i.e. whose
        mean paired difference is over two of its standard errors; and "gap", the mean absolute difference of means.
    """
    n, apart = real.shape[1], _told_apart(real)

    def all_three(weights: Floats) -> tuple[float, float, float]:
        one, other = real @ weights, simulated @ weights
        signs = (_signs(one) * _signs(other))[apart]
        return kendall(one, other), float(signs.mean()) if len(signs) else np.nan, float(np.abs(one - other).mean())

    whole = all_three(np.full(n, 1 / n))
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n
    spread = np.array([all_three(weights) for weights in drawn]).std(axis=0, ddof=1)
    names = ("tau", "told_apart", "gap")
    return {name: Estimate("", value, se, n) for name, value, se in zip(names, whole, spread.tolist(), strict=True)}


def order_floor(real: Floats, seed: int = 0) -> dict[str, Estimate]:
    """The same of real lists against real ones: means over halvings of the users, with their standard deviations.

    Half the users tell less apart than all of them, so that this is a low bar, not what could be reached.
    """
    rng, n = np.random.default_rng(seed), real.shape[1]
    found = []
    for _ in range(HALVINGS):
        half = rng.permutation(n) < n // 2
        one, other = real[:, half].mean(1), real[:, ~half].mean(1)
        found.append((kendall(one, other), np.abs(one - other).mean()))
    values = np.array(found)
    return {
        name: Estimate("", float(of.mean()), float(of.std(ddof=1)), n)
        for name, of in zip(("tau", "gap"), values.T, strict=True)
    }


def _signs(means: Floats) -> Floats:
    """(pairs,) which of two recommenders is ahead."""
    first, second = np.triu_indices(len(means), 1)
    return np.sign(means[first] - means[second])


def _told_apart(values: Floats) -> NDArray[np.bool_]:
    """(pairs,) whether (recommenders, users) values differ by over two standard errors of the paired difference."""
    first, second = np.triu_indices(len(values), 1)
    gaps = values[first] - values[second]
    found: NDArray[np.bool_] = np.abs(gaps.mean(1)) > 2 * gaps.std(1, ddof=1) / np.sqrt(gaps.shape[1])
    return found


def share_above(value: float, floor: float, top: float) -> float:
    """How much of the way from a floor to the top a value is: 1 at the top, nan where there is no way."""
    return (value - floor) / (top - floor) if top > floor else np.nan


def chance_ndcg(k: int, n: int) -> float:
    """NDCG@k of a random order of n candidates, one relevant: `sum_{r <= k} 1 / log2(1 + r) / n`."""
    return float((1 / np.log2(1 + np.arange(1, min(k, n) + 1))).sum() / n)


def by_user(values: ArrayLike, users: ArrayLike) -> Floats:
    """(users,) means of (cases,) values, or (recommenders, users) of (recommenders, cases) ones."""
    array = np.asarray(values, np.float64)
    return per_user(array, users) if array.ndim == 1 else np.stack([per_user(row, users) for row in array])


def sitting_lengths(owners: ArrayLike, seconds: ArrayLike, gap: int = SITTING) -> NDArray[np.int64]:
    """(sittings,) interactions of each sitting: rows of one user without a pause longer than `gap` seconds.

    Args:
        owners: (rows,) users, ascending.
        seconds: (rows,) times, ascending within a user.
        gap: Seconds.
    """
    who, when = np.asarray(owners), np.asarray(seconds)
    if not len(who):
        return np.zeros(0, np.int64)
    begins = np.flatnonzero(np.append(True, (who[1:] != who[:-1]) | (np.diff(when) > gap)))
    return np.diff(np.append(begins, len(who)))


def sitting_steps(owners: ArrayLike, seconds: ArrayLike, gap: int = SITTING) -> tuple[NDArray[np.int64], Floats]:
    """(rows,) which step of its sitting each row is, from 1, and (rows,) 1 where the sitting ends after it, else 0.

    nan for a user's last row, after which the log says nothing. Arguments as of `sitting_lengths`.
    """
    who, lengths = np.asarray(owners), sitting_lengths(owners, seconds, gap)
    ends = lengths.cumsum()
    steps = np.arange(1, len(who) + 1) - np.repeat(ends - lengths, lengths)
    left = np.zeros(len(who))
    left[ends - 1] = 1
    last = np.append(who[1:] != who[:-1], True)[: len(who)]
    return steps, np.where(last, np.nan, left)


def leaving_chances(lengths: ArrayLike, steps: ArrayLike) -> Floats:
    """(rows,) chances that a sitting which lasted for (rows,) steps ends there, of (sittings,) lengths.

    That is the share of sittings at least as long that are no longer; nan where fewer than 20 are as long.
    """
    found, asked = np.sort(np.asarray(lengths)), np.asarray(steps)
    longer = len(found) - np.searchsorted(found, asked, side="right")
    alive = len(found) - np.searchsorted(found, asked, side="left")
    return np.where(alive >= _FEWEST, 1 - longer / np.maximum(alive, 1), np.nan)
