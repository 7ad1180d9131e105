"""How many stars a user gives: Bayesian matrix factorisation by Gibbs sampling (Salakhutdinov and Mnih 2008).

    mean(u, j) = offset + level_u + items_j + U_u . V_j        variance(u, j) = noise + spread_u * item_spread_j

The posterior's mean over the samples is folded back to a small rank, so that a rating costs one dot product, and the
samples' spread is kept as a product of a user's and an item's. Only the items' part is kept: a user's level and vector
are those that the user's own ratings make likeliest, given all items' and how users differ, so that a history that
goes on, or one of somebody new, has them as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
F = np.float32

_CELLS = 200_000
"""Cells (user, item) at which the spread of the posterior is watched."""
_PRIOR = 0.7
"""How much of the spread of users' levels and vectors is taken for how users differ: held-out errors of two data sets
change by 0.2 % between a half and one."""
_LEAST = 1e-4
"""Added to the variance among users: where they hardly differ, no float16 would hold the precision."""
_ROWS = 2**18
_BLOCK = 4096
"""Users whose vectors are solved for together."""


@dataclass(frozen=True)
class Raters:
    """What ratings say of n users.

    Attributes:
        level: (n,) what each gives above the mean rating of an item.
        vectors: (n, rank).
        spread: (n,) how unsure both are, as a variance's factor.
    """

    level: Floats
    vectors: Floats
    spread: Floats

    def __getitem__(self, rows: NDArray[Any] | slice) -> Raters:
        return Raters(self.level[rows], self.vectors[rows], self.spread[rows])


@dataclass(frozen=True)
class Stars:
    """A fitted model of ratings.

    Attributes:
        offset: The mean rating.
        items: (n_items,) what an item gets above it.
        vectors: (n_items, rank) of items.
        spread: (n_items,) how unsure they are, as a variance's factor.
        noise: Variance of a rating around its mean, were that known.
        prior: (rank + 2, rank + 1) of users' levels and vectors: their mean, then their precision.
        of_spread: (2,) intercept and slope of the log of a user's spread on that of the posterior's variance.
    """

    offset: float
    items: Floats
    vectors: Floats
    spread: Floats
    noise: float
    prior: Floats
    of_spread: Floats

    def raters(self, owners: Ints, items: Ints, ratings: Floats, n: int) -> Raters:
        """Posterior means of users' levels and vectors.

        Args:
            owners: (rows,) 0-based user of each row, ascending.
            items: (rows,) catalogue indices.
            ratings: (rows,).
            n: How many users; one without rows gets the mean user's.
        """
        found = np.zeros((n, self.vectors.shape[1] + 1))
        variances = np.zeros(n)
        for users, known, pull in self._blocks(owners, items, ratings, n):
            covariance = np.linalg.inv(known)
            found[users] = (covariance @ pull[:, :, None])[:, :, 0]
            variances[users] = np.einsum("nab,ab->n", covariance, self._square)
        spread = np.exp(self.of_spread[0] + self.of_spread[1] * np.log(variances))
        return Raters(found[:, 0].astype(F), found[:, 1:].astype(F), spread.astype(F))

    @property
    def _square(self) -> NDArray[np.float64]:
        design = self._design
        mean: NDArray[np.float64] = design.T @ design / len(design)
        return mean

    @property
    def _design(self) -> NDArray[np.float64]:
        return np.concatenate([np.ones((len(self.items), 1)), self.vectors], axis=1, dtype=np.float64)

    def _blocks(
        self, owners: Ints, items: Ints, ratings: Floats, n: int
    ) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.float64]]]:
        """Blocks of users: who, and the precision and its product with the mean of what is known of them."""
        from scipy.sparse import csr_matrix

        design, mean, precision = self._design, self.prior[0].astype(np.float64), self.prior[1:].astype(np.float64)
        k = design.shape[1]
        upper = np.triu_indices(k)
        weight = 1 / (self.noise + self.spread.astype(np.float64))  # of a rating by a user of spread 1, the mean
        products = (design[:, upper[0]] * design[:, upper[1]] * weight[:, None]).astype(F)
        pulls = design * weight[:, None]
        place = np.zeros((k, k), np.int64)
        place[upper] = np.arange(len(upper[0]))
        place = np.maximum(place, place.T)
        rest = ratings - F(self.offset) - self.items[items]
        bounds = np.searchsorted(owners, np.arange(n + 1))
        for first in range(0, n, _BLOCK):
            stop = min(n, first + _BLOCK)
            rows = slice(bounds[first], bounds[stop])
            layout = items[rows], bounds[first : stop + 1] - bounds[first]
            shape = (stop - first, len(self.items))
            ones = csr_matrix((np.ones(len(layout[0]), F), *layout), shape)
            values = csr_matrix((rest[rows], *layout), shape)
            known = (ones @ products).astype(np.float64)[:, place] + precision
            yield slice(first, stop), known, values @ pulls + precision @ mean

    def mean(self, raters: Raters, items: NDArray[np.integer[Any]]) -> Floats:
        """(n, k) expected ratings of (n, k) items by n users, before they are put on the scale."""
        match = np.einsum("nkr,nr->nk", self.vectors[items], raters.vectors)
        found: Floats = match + self.items[items] + (raters.level + F(self.offset))[:, None]
        return found

    def mean_rows(self, raters: Raters, owners: Ints, items: Ints) -> Floats:
        """(rows,) what `mean` gives for (rows,) items by the raters at (rows,) places, in bounded memory."""
        parts = [slice(at, at + _ROWS) for at in range(0, len(items), _ROWS)]
        found = [self.mean(raters[owners[part]], items[part, None])[:, 0] for part in parts]
        return np.concatenate([np.empty(0, F), *found])

    def deviation(self, raters: Raters, items: NDArray[np.integer[Any]]) -> Floats:
        """(n, k) standard deviations of ratings around their means."""
        found: Floats = np.sqrt(F(self.noise) + raters.spread[:, None] * self.spread[items])
        return found


def fit_stars(
    users: Ints,
    items: Ints,
    ratings: Floats,
    n_users: int,
    n_items: int,
    *,
    factors: int = 12,
    rank: int = 16,
    burn: int = 40,
    samples: int = 80,
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> Stars:
    """Fit the model by Gibbs sampling.

    Args:
        users: (rows,) 0-based user of each row, ascending.
        items: (rows,) catalogue indices.
        ratings: (rows,).
        n_users: Users.
        n_items: Items in the catalogue.
        factors: Length of the vectors while sampling.
        rank: Length of the vectors that are kept.
        burn: Sweeps before the first that counts.
        samples: Sweeps that count.
        seed: Of all that is drawn.
        report: Called with sweeps done and in all.
    """
    chain = _Chain(np.random.default_rng(seed), users, items, ratings, n_users, n_items, factors)
    mean = _Mean(chain.rng, n_users, n_items)
    for sweep in range(burn + samples):
        chain.sweep()
        if sweep >= burn:
            mean.add(chain, vectors=sweep % 2 == 0)
        if report:
            report(sweep + 1, burn + samples)
    user_vectors, item_vectors = _folded(mean, chain.by_user.counts, chain.by_item.counts, rank)
    user_spread, item_spread = mean.spreads()
    of_users = np.concatenate([(mean.users / samples)[:, None], user_vectors], axis=1)
    unit = user_spread.mean()
    made = Stars(
        chain.offset,
        (mean.items / samples).astype(F),
        item_vectors,
        item_spread * unit,
        1 / chain.precision,
        _prior_of(of_users),
        np.array([0, 1], F),
    )
    found = np.log(made.raters(users, items, ratings, n_users).spread)
    slope, intercept = np.polyfit(found, np.log(user_spread / unit), 1)
    return replace(made, of_spread=np.array([intercept, slope], F))


def _prior_of(users: NDArray[np.float64]) -> Floats:
    spread = _PRIOR * np.cov(users.T) + _LEAST * np.eye(users.shape[1])
    return np.concatenate([users.mean(0)[None], np.linalg.inv(spread)]).astype(F)


class _Side:
    """Users or items: each one's rows of the other side, in the order of this side."""

    def __init__(self, mine: Ints, others: Ints, n_mine: int, n_others: int) -> None:
        from scipy.sparse import csr_matrix

        self.order = np.argsort(mine, kind="stable")
        self.counts = np.bincount(mine, minlength=n_mine)
        shape, bounds = (n_mine, n_others), np.append(0, self.counts.cumsum())
        columns = others[self.order]
        self.ones = csr_matrix((np.ones(len(mine), F), columns, bounds), shape)
        self.values = csr_matrix((np.zeros(len(mine), F), columns, bounds), shape)


class _Chain:
    """One state of the sampler."""

    def __init__(
        self, rng: np.random.Generator, users: Ints, items: Ints, ratings: Floats, n_users: int, n_items: int, k: int
    ) -> None:
        self.rng, self.row_users, self.row_items = rng, users, items
        self.ratings = ratings.astype(np.float64)
        self.offset = float(self.ratings.mean())
        self.by_user, self.by_item = _Side(users, items, n_users, n_items), _Side(items, users, n_items, n_users)
        self.users, self.items = np.zeros(n_users), np.zeros(n_items)
        self.user_vectors = 0.1 * rng.standard_normal((n_users, k))
        self.item_vectors = 0.1 * rng.standard_normal((n_items, k))
        self.precision, self.ridge = 1.4, np.array([5.0, 3.0])
        upper = np.triu_indices(k)
        self._upper = upper
        square = np.zeros((k, k), np.int64)
        square[upper] = np.arange(len(upper[0]))
        self._square = np.maximum(square, square.T)  # where a square matrix's entries lie among its upper triangle's

    def sweep(self) -> None:
        rest = self.ratings - self.offset - self._match()
        self.users = self._level(self.by_user, self.row_users, rest - self.items[self.row_items], self.ridge[0])
        self.items = self._level(self.by_item, self.row_items, rest - self.users[self.row_users], self.ridge[1])
        self.ridge = np.array([self._ridge(self.users), self._ridge(self.items)])
        rest = self.ratings - self.offset - self.users[self.row_users] - self.items[self.row_items]
        self._vectors(self.by_user, self.user_vectors, self.item_vectors, rest)
        self._vectors(self.by_item, self.item_vectors, self.user_vectors, rest)
        errors = rest - self._match()
        self.precision = self.rng.gamma(1 + len(errors) / 2, 1 / (0.5 + (errors**2).sum() / 2))

    def _match(self) -> NDArray[np.float64]:
        users, items = self.user_vectors.astype(F), self.item_vectors.astype(F)
        found: NDArray[np.float64] = np.einsum("nk,nk->n", users[self.row_users], items[self.row_items]).astype(
            np.float64
        )
        return found

    def _level(self, side: _Side, rows: Ints, rest: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
        known = self.precision * side.counts + ridge
        mean = np.bincount(rows, rest, len(side.counts)) * self.precision / known
        drawn: NDArray[np.float64] = mean + self.rng.standard_normal(len(known)) / np.sqrt(known)
        return drawn

    def _ridge(self, levels: NDArray[np.float64]) -> float:
        return float(self.rng.gamma(1 + len(levels) / 2, 1 / (1e-3 + (levels**2).sum() / 2)))

    def _vectors(
        self, side: _Side, mine: NDArray[np.float64], others: NDArray[np.float64], rest: NDArray[np.float64]
    ) -> None:
        """Draw all vectors of one side, given the other's, in place."""
        mean, known = self._prior(mine)
        other = others.astype(F)
        side.values.data = rest[side.order].astype(F)
        products = other[:, self._upper[0]] * other[:, self._upper[1]]
        precision = self.precision * (side.ones @ products).astype(np.float64)[:, self._square] + known
        lower = np.linalg.cholesky(precision)
        pull = (self.precision * (side.values @ other) + known @ mean)[:, :, None]
        half = np.linalg.solve(lower, pull) + self.rng.standard_normal((len(mine), mine.shape[1], 1))
        mine[:] = np.linalg.solve(lower.transpose(0, 2, 1), half)[:, :, 0]

    def _prior(self, vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and precision of one side's vectors, drawn from the normal-Wishart posterior."""
        n, k = vectors.shape
        mean = vectors.mean(0)
        spread = n * np.cov(vectors.T, bias=True) + n / (n + 2) * np.outer(mean, mean)
        scale = np.linalg.inv(np.eye(k) + spread)
        wishart = np.tril(self.rng.standard_normal((k, k)), -1)
        wishart[np.diag_indices(k)] = np.sqrt(self.rng.chisquare(n + k - np.arange(k)))
        root = np.linalg.cholesky((scale + scale.T) / 2) @ wishart
        known = root @ root.T
        lower = np.linalg.cholesky((n + 2) * known)
        return n * mean / (n + 2) + np.linalg.solve(lower.T, self.rng.standard_normal(k)), known


class _Mean:
    """The samples that count: their sums, their vectors, and their spread at some cells."""

    def __init__(self, rng: np.random.Generator, n_users: int, n_items: int) -> None:
        self.samples = 0
        self.users: Any = 0.0
        self.items: Any = 0.0
        self.user_vectors: list[Floats] = []
        self.item_vectors: list[Floats] = []
        self._cells = rng.integers(n_users, size=_CELLS), rng.integers(n_items, size=_CELLS)
        self._shape = n_users, n_items
        self._sum, self._squares = np.zeros(_CELLS), np.zeros(_CELLS)

    def add(self, chain: _Chain, vectors: bool) -> None:
        users, items = self._cells
        self.users, self.items = self.users + chain.users, self.items + chain.items
        self.samples += 1
        if vectors:  # of every second sample: those in between say little more, and all are folded at once
            self.user_vectors.append(chain.user_vectors.astype(F))
            self.item_vectors.append(chain.item_vectors.astype(F))
        match = np.einsum("nk,nk->n", chain.user_vectors[users], chain.item_vectors[items])
        value = chain.users[users] + chain.items[items] + match
        self._sum += value
        self._squares += value**2

    def spreads(self) -> tuple[Floats, Floats]:
        """Factors whose product is nearest to the cells' variances, by logs."""
        (users, items), n = self._cells, self.samples
        logs = np.log(np.maximum(self._squares / n - (self._sum / n) ** 2, 1e-6))
        of_users, of_items = np.full(self._shape[0], logs.mean()), np.zeros(self._shape[1])
        seen_users, seen_items = (
            np.bincount(each, minlength=size) for each, size in zip(self._cells, self._shape, strict=True)
        )
        for _ in range(3):
            of_items = np.bincount(items, logs - of_users[users], self._shape[1]) / (seen_items + 1)
            rest = np.bincount(users, logs - of_items[items], self._shape[0]) + logs.mean()
            of_users = rest / (seen_users + 1)
        return np.exp(of_users).astype(F), np.exp(of_items).astype(F)


def _folded(mean: _Mean, user_counts: Ints, item_counts: Ints, rank: int) -> tuple[Floats, Floats]:
    """Vectors of a small rank whose products are nearest to the samples' mean product, rows weighted by their counts.

    By QR of the samples side by side, so that no users x items matrix is made.
    """
    by_user = np.sqrt(user_counts + 5.0).astype(F)[:, None]
    by_item = np.sqrt(item_counts + 5.0).astype(F)[:, None]
    of_users, left = np.linalg.qr(by_user * np.concatenate(mean.user_vectors, 1))
    of_items, right = np.linalg.qr(by_item * np.concatenate(mean.item_vectors, 1))
    a, sizes, b = np.linalg.svd(left @ right.T / len(mean.user_vectors))
    root = np.sqrt(sizes[:rank])
    users: Floats = (of_users @ (a[:, :rank] * root) / by_user).astype(F)
    items: Floats = (of_items @ (b[:rank].T * root) / by_item).astype(F)
    return users, items
