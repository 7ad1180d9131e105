"""Metrics of a ranking with one relevant item, and their errors over users.

A *rank* is the 1-based place of the positive; nan means that the ranking doesn't hold it, which scores 0. All
functions take rank arrays of any shape. Values are shares (0 to 1); tables print them in percent.

Standard errors and intervals are over users: a user's repetitions (or turns) are averaged first, because three
rankings for one user are not three independent samples. The users are the sample, n is their number.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starec_env.errors import InvalidOption, StarecWarning
from starec_env.scoring import CUTOFFS

Floats = NDArray[np.float64]


def as_ranks(ranks: ArrayLike | Sequence[int | None]) -> Floats:
    """Ranks as floats, None as nan; raises InvalidOption for a rank below 1, which no ranking has."""
    array = np.asarray(ranks, dtype=np.float64)
    if (array < 1).any():
        raise InvalidOption(f"rank {array[array < 1][0]:g}: ranks are 1-based, and nan (or None) where missing")
    return array


def ndcg(ranks: ArrayLike, k: int) -> Floats:
    """NDCG@k, `1 / log2(1 + rank)` up to rank k and 0 beyond: the ideal DCG of one positive is 1 (paper 5.1.2)."""
    array, kept = _within(ranks, k)
    return np.where(kept, 1.0 / np.log2(1.0 + array), 0.0)


def hit_rate(ranks: ArrayLike, k: int) -> Floats:
    """HR@k, 1 where the positive is among the first k."""
    return _within(ranks, k)[1].astype(np.float64)


def reciprocal_rank(ranks: ArrayLike) -> Floats:
    """`1 / rank`, 0 where missing; its mean is MRR."""
    return np.nan_to_num(1.0 / as_ranks(ranks), nan=0.0)


def _within(ranks: ArrayLike, k: int) -> tuple[Floats, NDArray[np.bool_]]:
    if k < 1:
        raise InvalidOption(f"k={k}: a cut-off is at least 1")
    array = as_ranks(ranks)
    return array, array <= k  # nan <= k is False


METRICS: dict[str, Callable[[ArrayLike], Floats]] = {
    **{f"ndcg@{k}": partial(ndcg, k=k) for k in CUTOFFS},
    **{f"hr@{k}": partial(hit_rate, k=k) for k in CUTOFFS},
    "mrr": reciprocal_rank,
}
"""Every metric that is reported, by name. HR@1 equals NDCG@1, and HR@20 of 20 candidates is the share ranked."""


def per_user(values: ArrayLike, users: ArrayLike) -> Floats:
    """Mean of each user's values, in the order of `np.unique(users)`.

    Args:
        values: (cases,) one metric's values.
        users: (cases,) the user each belongs to.
    """
    _, inverse, counts = np.unique(np.asarray(users), return_inverse=True, return_counts=True)
    return np.bincount(inverse, weights=np.asarray(values, dtype=np.float64)) / counts


def mean_and_se(values: ArrayLike, users: ArrayLike) -> tuple[float, float]:
    """Mean over users and its standard error, `std(user means, ddof=1) / sqrt(users)`; nan for a single user."""
    means = per_user(values, users)
    if not len(means):
        return float("nan"), float("nan")
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else float("nan")


@dataclass(frozen=True)
class Difference:
    """How far one method is above another on the same cases, in the metric's own unit."""

    gap: float
    se: float
    """Standard error of the paired differences over users."""
    low: float
    high: float
    """95 % bootstrap interval over users."""
    users: int

    @property
    def settled(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0

    def check(self, claim: str) -> None:
        """Warn (StarecWarning) if the gap is smaller than its error: the interval holds zero."""
        if not self.settled:
            warnings.warn(
                f"{claim}: the gap of {100 * self.gap:.1f} points is smaller than its error "
                f"(95 % interval {100 * self.low:.1f} to {100 * self.high:.1f} over {self.users:,} users)",
                StarecWarning,
                stacklevel=2,
            )


def paired_difference(
    first: ArrayLike, second: ArrayLike, users: ArrayLike, *, samples: int = 2000, seed: int = 0
) -> Difference:
    """Mean of `first - second` over users, with its error and a percentile bootstrap interval.

    Args:
        first: (cases,) a metric's values of one method.
        second: (cases,) the same of another, on the same cases in the same order.
        users: (cases,) the user of each case.
        samples: Bootstrap resamples of the users.
        seed: Of the resampling.
    """
    gaps = per_user(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64), users)
    n = len(gaps)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=samples)
    low, high = np.quantile(drawn @ gaps / n, [0.025, 0.975])
    se = gaps.std(ddof=1) / np.sqrt(n) if n > 1 else float("nan")
    return Difference(float(gaps.mean()), float(se), float(low), float(high), n)
