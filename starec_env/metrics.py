"""Metrics of a ranking with one relevant item, and means, errors and comparisons of them over users.

A *rank* is the 1-based place of the target; nan means that the ranking doesn't hold it, which scores 0. A *value* of
nan means that there is nothing to score, e.g. since the user disliked the target: it is left out of every mean, and a
user without any other value drops out. Functions take rank arrays of any shape. Values are shares (0 to 1); tables
print them in percent.

Standard errors, intervals and p-values are over users: a user's repetitions (or turns) are averaged first, because
three rankings for one user are not three independent samples. The users are the sample, n is their number.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starec_env.errors import InvalidOption, StarecWarning

Floats = NDArray[np.float64]
Ranks = ArrayLike | Sequence[int | None] | None

Relevant = Literal["liked", "taken"]
"""Which targets are scored: those that the user liked, or all that the user interacted with."""

CUTOFFS = (1, 5, 10, 20)
"""The k of every metric@k that is reported (paper 5.1.2)."""

_EXACT_USERS, _CELLS = 12, 2**22


def as_ranks(ranks: Ranks) -> Floats:
    """Ranks as floats, None as nan; raises InvalidOption for a rank below 1, which no ranking has."""
    array = np.asarray(ranks, dtype=np.float64)
    if (array < 1).any():
        raise InvalidOption(f"rank {array[array < 1][0]:g}: ranks are 1-based, and nan (or None) where missing")
    return array


def ndcg(ranks: Ranks, k: int) -> Floats:
    """NDCG@k, `1 / log2(1 + rank)` up to rank k and 0 beyond: the ideal DCG of one relevant item is 1 (paper 5.1.2)."""
    array, kept = _within(ranks, k)
    return np.where(kept, 1.0 / np.log2(1.0 + array), 0.0)


def hit_rate(ranks: Ranks, k: int) -> Floats:
    """HR@k, 1 where the target is among the first k."""
    return _within(ranks, k)[1].astype(np.float64)


def reciprocal_rank(ranks: Ranks) -> Floats:
    """`1 / rank`, 0 where missing; its mean is MRR."""
    return np.nan_to_num(1.0 / as_ranks(ranks), nan=0.0)


def _within(ranks: Ranks, k: int) -> tuple[Floats, NDArray[np.bool_]]:
    if k < 1:
        raise InvalidOption(f"k={k}: a cut-off is at least 1")
    array = as_ranks(ranks)
    return array, array <= k  # nan <= k is False


Metric = Callable[[ArrayLike], Floats]

METRICS: Mapping[str, Metric] = {
    **{f"ndcg@{k}": partial(ndcg, k=k) for k in CUTOFFS},
    **{f"hr@{k}": partial(hit_rate, k=k) for k in CUTOFFS},
    "mrr": reciprocal_rank,
}
"""Every metric that is reported, by name. HR@1 equals NDCG@1, and HR@20 of 20 candidates is the share ranked."""
SHOWN = tuple(f"ndcg@{k}" for k in CUTOFFS)
"""The metrics that printed tables show; files hold all."""


def scored(values: ArrayLike, liked: ArrayLike, relevant: Relevant = "liked") -> Floats:
    """A metric's (cases,) values, nan where the target was not liked; `relevant` "taken" scores all."""
    array = np.asarray(values, dtype=np.float64)
    return array if relevant == "taken" else np.where(np.asarray(liked, dtype=np.bool_), array, np.nan)


# Means over users -----------------------------------------------------------------------------------------------------


def per_user(values: ArrayLike, users: ArrayLike) -> Floats:
    """Mean of each user's values, in the order of `np.unique(users)`; nan for a user who has none but nan.

    Both arguments are (cases,); raises InvalidOption unless there are as many users as values.
    """
    array = np.asarray(values, dtype=np.float64)
    unique, inverse = np.unique(np.asarray(users), return_inverse=True)
    if array.shape != inverse.shape:
        raise InvalidOption(f"values of shape {array.shape} for users of shape {inverse.shape}: give one for each")
    known = ~np.isnan(array)
    counts = np.bincount(inverse[known], minlength=len(unique))
    sums = np.bincount(inverse[known], weights=array[known], minlength=len(unique))
    means = np.full(len(unique), np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


@dataclass(frozen=True)
class Estimate:
    """A mean over users, and how sure it is."""

    label: str
    """Which group, or the x value as text."""
    mean: float
    """nan where nobody is in the group."""
    se: float
    """Standard error over users, `std(user means, ddof=1) / sqrt(n)`; nan below two."""
    n: int
    """Users with a value."""


def estimate(label: object, values: ArrayLike, users: ArrayLike) -> Estimate:
    """Mean over users of (cases,) values of (cases,) users; values that are nan are left out."""
    return of_means(label, per_user(values, users))


def of_means(label: object, means: Floats) -> Estimate:
    """Mean of (users,) means from `per_user`, those that are nan left out."""
    known = means[~np.isnan(means)]
    n = len(known)
    mean = float(known.mean()) if n else float("nan")
    return Estimate(str(label), mean, float(known.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan"), n)


def mean_and_se(values: ArrayLike, users: ArrayLike) -> tuple[float, float]:
    """`estimate` without label and number: the mean over users and its standard error."""
    found = estimate("", values, users)
    return found.mean, found.se


# Comparisons ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How far one method is above another on the same cases, in the metric's own unit."""

    gap: float
    se: float
    """Standard error of the paired differences over users."""
    low: float
    high: float
    """95 % bootstrap interval over users, and over trainings where there are several."""
    p: float
    """Two-sided p-value, of `sign_flip_p` or, of several trainings, of the bootstrap; of this comparison alone, so
    correct several by `holm`."""
    users: int

    @property
    def significant(self) -> bool:
        """Whether the 95 % interval leaves zero out: a statement about one comparison that was chosen beforehand."""
        return self.low > 0 or self.high < 0

    def check(self, claim: str) -> None:
        """Warn (StarecWarning) if the gap is not significant: the 95 % interval holds zero."""
        if not self.significant:
            warnings.warn(
                f"{claim}: the gap of {100 * self.gap:.1f} points is not significant: its 95 % interval, "
                f"{100 * self.low:.1f} to {100 * self.high:.1f} over {self.users:,} users, holds zero",
                StarecWarning,
                stacklevel=2,
            )


def paired_difference(
    first: ArrayLike, second: ArrayLike, users: ArrayLike, *, samples: int = 2000, seed: int = 0
) -> Difference:
    """Mean of `first - second` over users, with its error, a percentile bootstrap interval and a p-value.

    Args:
        first: (cases,) a metric's values of one method.
        second: (cases,) the same of another, on the same cases in the same order.
        users: (cases,) the user of each case.
        samples: Bootstrap resamples of the users.
        seed: Of the resampling.

    Returns:
        The difference over the users who have a value in both; all nan where there are none.

    Raises:
        InvalidOption: The two and the users aren't equally many.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != other.shape:  # NumPy would repeat a single value
        raise InvalidOption(f"values of shapes {one.shape} and {other.shape}: give both methods' on the same cases")
    return difference(per_user(one - other, users), samples=samples, seed=seed)


def difference(gaps: Floats, *, samples: int = 2000, seed: int = 0) -> Difference:
    """The same from each user's own difference.

    Args:
        gaps: (users,) of one training or (seeds, users) of several; nan where a user has none. Of several, error and
            p-value are the bootstrap's of `interval`, so that they hold what trainings differ by, too.
        samples: Bootstrap resamples.
        seed: Of the resampling.
    """
    table = np.atleast_2d(gaps)
    table = table[:, ~np.isnan(table).all(axis=0)]
    ends = interval(table, samples, seed)
    if len(table) == 1 or not table.size:
        found = of_means("", table[0])
        return Difference(found.mean, found.se, *ends, sign_flip_p(table[0], seed=seed), found.n)
    drawn = resampled_means(table, samples, seed)
    below, above = (drawn <= 0).sum(), (drawn >= 0).sum()
    p = min(1.0, 2 * float(1 + min(below, above)) / (samples + 1))
    return Difference(float(np.nanmean(table)), float(np.nanstd(drawn, ddof=1)), *ends, p, table.shape[1])


def interval(values: Floats, samples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean over users, and over trainings where there are several.

    Args:
        values: As `resampled_means` takes them.
        samples: Resamples.
        seed: Of the resampling.

    Returns:
        The lower and the upper end; nan without any user.
    """
    if not np.size(values):
        return float("nan"), float("nan")
    low, high = np.nanquantile(resampled_means(values, samples, seed), [0.025, 0.975])
    return float(low), float(high)


def resampled_means(values: Floats, samples: int = 2000, seed: int = 0) -> Floats:
    """(samples,) means of resampled users, and trainings where there are several; nan where a resample has no value.

    Trainings and users are resampled apart, each training with the same users (a crossed two-level bootstrap, Owen
    2007, "The pigeonhole bootstrap"). Of s trainings the resampled variance is (s - 1) / s of theirs, so that two or
    three still give too narrow an interval: show each training's mean beside it. Where trainings have users of their
    own, those users' variance is in both levels, and the interval rather too wide.

    Args:
        values: (users,) means of one training or (seeds, users) of several; nan where a training has no such user.
        samples: Resamples.
        seed: Of the resampling.
    """
    table = np.atleast_2d(values)
    known = ~np.isnan(table)
    seeds, users = _resamples(*table.shape, samples, seed)
    total, weight = (((users @ each.T) * seeds).sum(axis=1) for each in (np.where(known, table, 0.0), known + 0.0))
    means = np.full(samples, np.nan)
    np.divide(total, weight, out=means, where=weight > 0)
    return means


@lru_cache(maxsize=1)  # a table's comparisons are of the same users
def _resamples(trainings: int, n: int, samples: int, seed: int) -> tuple[Floats, Floats]:
    # (samples, seeds) and (samples, users): how often each is drawn.
    rng = np.random.default_rng(seed)
    users = rng.multinomial(n, np.full(n, 1.0 / n), size=samples).astype(np.float64)
    return rng.multinomial(trainings, np.full(trainings, 1.0 / trainings), size=samples).astype(np.float64), users


def sign_flip_p(gaps: Floats, samples: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value of a mean paired difference, by flipping the signs of users' differences (Fisher 1935).

    If the two methods are exchangeable, each user's difference is as likely to have the other sign. The value is the
    share of sign patterns whose mean is at least as far from zero: of all patterns up to 12 users, else of `samples`
    random ones and the one observed (Phipson and Smyth 2010), so it is never 0.

    Args:
        gaps: (users,) differences; nan for none.
        samples: Random patterns.
        seed: Of the patterns.
    """
    n = len(gaps)
    if not n:
        return float("nan")
    if n <= _EXACT_USERS:
        signs = np.arange(2**n)[:, None] >> np.arange(n) & 1
        return float(_as_far(signs, gaps).mean())
    rng, far, rows = np.random.default_rng(seed), 1, max(1, _CELLS // n)
    for first in range(0, samples, rows):
        signs = rng.integers(0, 2, (min(rows, samples - first), n), dtype=np.int8)
        far += int(_as_far(signs, gaps).sum())
    return far / (samples + 1)


def _as_far(flipped: NDArray[np.integer], gaps: Floats) -> NDArray[np.bool_]:
    # Whether flipping those signs leaves a sum at least as far from zero, to within rounding.
    total = float(gaps.sum())
    as_far: NDArray[np.bool_] = abs(total - 2 * (flipped @ gaps)) >= abs(total) - 1e-12 * float(abs(gaps).sum())
    return as_far


def holm(p_values: ArrayLike) -> Floats:
    """Adjust p-values of several comparisons, so that the chance of any false claim stays below the level (Holm 1979).

    Args:
        p_values: (n,) of one family of comparisons; nan ones are left out and stay nan.

    Returns:
        (n,) adjusted values, in the order given: the i-th smallest of m is multiplied by m - i + 1, and none is below
        a smaller one's or above 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")[: int((~np.isnan(p)).sum())]
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)).clip(max=1.0)
    return adjusted


# Of counts ------------------------------------------------------------------------------------------------------------


def gini(counts: ArrayLike) -> float:
    """Gini index of (items,) counts: 0 where all are equal, near 1 where one has them all; nan without any."""
    ordered = np.sort(np.asarray(counts, dtype=np.float64))
    n, total = len(ordered), ordered.sum()
    if not total:
        return float("nan")
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * total))


def entropy(counts: ArrayLike) -> Floats:
    """(...) entropy in bits of the shares in (..., kinds) counts: 0 where all are of one kind; nan without any."""
    array = np.asarray(counts, dtype=np.float64)
    total = array.sum(axis=-1, keepdims=True)
    shares = np.divide(array, total, out=np.full(array.shape, np.nan), where=total > 0)
    logs = np.log2(shares, out=np.zeros(array.shape), where=shares > 0)
    return np.asarray(-(shares * logs).sum(axis=-1))
