"""What a user takes next: a log-bilinear model whose state is a few decayed sums of what was taken before.

    utility(j) = bias_j + items_j . x      x = sum_d s_d      s_d <- decay_d s_d + taken_d[i]   for the taken item i

A user is a history: there is no vector of the user. It is fitted by sampled softmax over uniform items that the user
never met, so that among uniform items exp(utility) are the odds of the choice. The cost of a candidate is one dot
product; nothing of size items x items is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
F = np.float32

DECAYS = (0.5, 0.85, 0.97, 0.995)
"""Weights that an interaction keeps from one step to the next: from moods of a few items to who the user is."""
_LONGEST = 400
"""Rows of a history that count; the slowest sum has then forgotten 87 %, and histories beyond are rare."""
_MET = 3 * 10**8
"""Cells of a users x items table that is still kept while fitting, as bytes."""


@dataclass(frozen=True)
class Choice:
    """A fitted model of what is taken next.

    Attributes:
        items: (n_items, r) what an item wants of a state.
        bias: (n_items,) utility of an item in any state; near the log of its popularity.
        taken: (n_items, decays, r) what taking an item adds to each sum.
        decays: Of the sums.
    """

    items: Floats
    bias: Floats
    taken: Floats
    decays: tuple[float, ...] = DECAYS

    def states(self, users: Ints, items: Ints, n_users: int) -> Floats:
        """The sums after whole histories.

        Args:
            users: (rows,) 0-based user of each row, ascending.
            items: (rows,) catalogue indices, a user's oldest first.
            n_users: How many users there are, those without rows included: their sums are 0.

        Returns:
            (n_users, decays, r).
        """
        from scipy.sparse import csr_matrix

        stops = np.searchsorted(users, np.arange(n_users) + 1)
        age = stops[users] - 1 - np.arange(len(users))
        recent = age < _LONGEST
        place = (users[recent], items[recent])
        shape = (n_users, len(self.items))
        sums = [
            csr_matrix(((decay ** age[recent]).astype(F), place), shape) @ self.taken[:, d]
            for d, decay in enumerate(self.decays)
        ]
        return np.stack(sums, axis=1)

    def utilities(self, states: Floats, candidates: NDArray[np.integer[Any]]) -> Floats:
        """(n, k) utilities of (n, k) candidates in (n, decays, r) states."""
        found: Floats = np.einsum("nkr,nr->nk", self.items[candidates], states.sum(1)) + self.bias[candidates]
        return found


def fit_choice(
    users: Ints,
    items: Ints,
    n_users: int,
    n_items: int,
    *,
    rank: int = 48,
    decays: tuple[float, ...] = DECAYS,
    epochs: int = 8,
    negatives: int = 256,
    batch: int = 2048,
    rate: float = 8e-3,
    dropout: float = 0.15,
    l2: float = 1e-5,
    popularity: float = 0.8,
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> Choice:
    """Fit the model to each user's items from the second on.

    Args:
        users: (rows,) 0-based user of each row, ascending.
        items: (rows,) catalogue indices, a user's oldest first.
        n_users: Users.
        n_items: Items in the catalogue.
        rank: r, the length of an item's vectors.
        decays: Of the sums.
        epochs: Passes over the rows.
        negatives: Items drawn for a batch; those that a user has met are left out of that user's choice.
        batch: About so many rows are stepped at once; they are of whole users.
        rate: Of Adam, falling to 0.
        dropout: Share of a state's numbers that are left out.
        l2: Weight of the vectors' squares.
        popularity: What the bias begins at, in logs of an item's count.
        seed: Of all that is drawn.
        report: Called with batches done and in all.

    Returns:
        The model.
    """
    rng = np.random.default_rng(seed)
    bounds = np.searchsorted(users, np.arange(n_users + 1))
    fit = _Fit(rng, items, n_items, rank, decays, rate, l2, popularity)
    met = _Met(users, items, n_users, n_items)
    batches = epochs * max(1, len(users) // batch)
    for number, part in enumerate(_batches(rng, bounds, batch, epochs)):
        lengths = bounds[part + 1] - bounds[part]
        drawn = rng.integers(n_items, size=negatives)
        scale = max(0.02, 1 - number / batches) * min(1.0, (number + 1) / 50)
        fit.step(items[_rows(bounds, part)], lengths, drawn, met.among(part, drawn), dropout, F(scale))
        if report:
            report(min(number + 1, batches), batches)
    return fit.model()


def _batches(rng: np.random.Generator, bounds: Ints, batch: int, epochs: int) -> Iterator[Ints]:
    """Users in parts of about `batch` rows, in a new order each epoch; users of one row say nothing of a next one."""
    lengths = np.diff(bounds)
    for _ in range(epochs):
        order = rng.permutation(np.flatnonzero(lengths > 1))
        cuts = np.flatnonzero(np.diff(lengths[order].cumsum() // batch)) + 1
        yield from np.split(order, cuts)


def _rows(bounds: Ints, users: Ints) -> Ints:
    lengths = bounds[users + 1] - bounds[users]
    ends = lengths.cumsum()
    found: Ints = np.arange(lengths.sum()) + np.repeat(bounds[users + 1] - ends, lengths)
    return found


class _Met:
    """Which items a user has met in the rows, for drawing items that the user hasn't."""

    def __init__(self, users: Ints, items: Ints, n_users: int, n_items: int) -> None:
        self._table = np.zeros((n_users, n_items), np.bool_) if n_users * n_items < _MET else None
        if self._table is not None:
            self._table[users, items] = True

    def among(self, users: Ints, drawn: Ints) -> NDArray[np.bool_] | None:
        """(users, drawn) flags; None where the table would be too large, and meeting one by chance is rare."""
        return None if self._table is None else self._table[users][:, drawn]


class _Fit:
    """Parameters in training."""

    def __init__(
        self,
        rng: np.random.Generator,
        items: Ints,
        n_items: int,
        rank: int,
        decays: tuple[float, ...],
        rate: float,
        l2: float,
        popularity: float,
    ) -> None:
        spread = 0.3 * rank**-0.5
        bias = popularity * np.log(np.bincount(items, minlength=n_items) + 0.5)
        self.rng, self.decays = rng, decays
        self.items = rng.normal(0, spread, (n_items, rank)).astype(F)
        self.bias = (bias - bias.mean()).astype(F)
        self.taken = [rng.normal(0, spread, (n_items, rank)).astype(F) for _ in decays]
        self.size = [F((1 - decay) ** 0.5) for decay in decays]  # so that all sums are of one size
        self._items, self._bias = _Adam(self.items, rate, l2), _Adam(self.bias, rate)
        self._taken = [_Adam(each, rate, l2) for each in self.taken]

    def step(
        self,
        items: Ints,
        lengths: Ints,
        drawn: Ints,
        met: NDArray[np.bool_] | None,
        dropout: float,
        scale: np.float32,
    ) -> None:
        """One step on whole histories laid end to end."""
        place = np.arange(len(items)) - np.repeat(lengths.cumsum() - lengths, lengths)
        left = np.repeat(lengths, lengths) - 1 - place
        asked = np.flatnonzero(place > 0)  # row t is told from the rows before it
        target = items[asked]
        state = np.zeros((len(asked), self.items.shape[1]), F)
        for taken, size, decay in zip(self.taken, self.size, self.decays, strict=True):
            state += decayed(taken[items] * size, place, decay)[asked - 1]
        kept = (self.rng.random(state.shape, F) >= dropout).astype(F) / F(1 - dropout)
        state *= kept
        odds = state @ self.items[drawn].T + self.bias[drawn]
        if met is None:
            odds[target[:, None] == drawn] = -60
        else:
            odds -= (F(60) * met)[np.repeat(np.arange(len(lengths)), lengths - 1)]
        wrong, right = _softmax(odds, (state * self.items[target]).sum(1) + self.bias[target])
        back = (wrong @ self.items[drawn] + right[:, None] * self.items[target]) * kept
        rows = np.concatenate([drawn, target])
        self._items.step(rows, np.concatenate([wrong.T @ state, right[:, None] * state]), scale)
        self._bias.step(rows, np.concatenate([wrong.sum(0), right])[:, None], scale)
        for adam, size, decay in zip(self._taken, self.size, self.decays, strict=True):
            earlier = np.zeros((len(items), back.shape[1]), F)
            earlier[asked - 1] = back
            adam.step(items, _decayed_back(earlier, left, decay) * size, scale)

    def model(self) -> Choice:
        sized = [taken * size for taken, size in zip(self.taken, self.size, strict=True)]
        return Choice(self.items, self.bias, np.stack(sized, axis=1), self.decays)


def _softmax(odds: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Gradients of the mean log-loss to the drawn items' utilities and to the target's, from those utilities."""
    top = np.maximum(odds.max(1), right)
    np.exp(odds - top[:, None], out=odds)
    chosen = np.exp(right - top)
    share = F(1 / len(right)) / (odds.sum(1) + chosen)
    return odds * share[:, None], chosen * share - F(1 / len(right))


class _Adam:
    """Adam over the rows that a step touches (Kingma and Ba 2015; rows that aren't touched keep their moments)."""

    def __init__(self, values: Floats, rate: float, l2: float = 0.0) -> None:
        self.values = values.reshape(len(values), -1)
        self.first, self.second = np.zeros_like(self.values), np.zeros_like(self.values)
        self.rate, self.l2, self.steps = rate, F(l2), 0

    def step(self, rows: Ints, gradients: Floats, scale: np.float32) -> None:
        from scipy.sparse import csr_matrix

        self.steps += 1
        touched, owner = np.unique(rows, return_inverse=True)
        ones = np.ones(len(rows), F)
        summed = csr_matrix((ones, (owner, np.arange(len(rows)))), (len(touched), len(rows))) @ gradients
        gradient = summed + self.l2 * self.values[touched]
        first = F(0.9) * self.first[touched] + F(0.1) * gradient
        second = F(0.99) * self.second[touched] + F(0.01) * gradient * gradient
        self.first[touched], self.second[touched] = first, second
        step = F(self.rate / (1 - 0.9**self.steps)) * scale
        self.values[touched] -= step * first / (np.sqrt(second) * F((1 - 0.99**self.steps) ** -0.5) + F(1e-8))


def decayed(values: Floats, place: Ints, decay: float) -> Floats:
    """(rows, r) y[t] = values[t] + decay * y[t - 1] within each user, by doubling the distance summed over.

    Args:
        values: (rows, r) of users laid end to end.
        place: (rows,) 0-based place within the user.
        decay: Between 0 and 1; what would weigh less than 0.003 is left out.
    """
    summed, distance, weight = values.copy(), 1, decay
    while weight > 3e-3 and distance < len(values):
        inside = (place[distance:] >= distance).astype(F)[:, None] * F(weight)
        summed[distance:] += inside * summed[:-distance]
        distance, weight = 2 * distance, weight * weight
    return summed


def _decayed_back(values: Floats, left: Ints, decay: float) -> Floats:
    """The transpose of `decayed`; left: how many of the user's rows follow."""
    summed, distance, weight = values.copy(), 1, decay
    while weight > 3e-3 and distance < len(values):
        inside = (left[:-distance] >= distance).astype(F)[:, None] * F(weight)
        summed[:-distance] += inside * summed[distance:]
        distance, weight = 2 * distance, weight * weight
    return summed
