"""The action space: orders of candidate positions, alone (`Rankings`) and for many environments at once."""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from functools import lru_cache
from numbers import Integral
from typing import Any

import numpy as np
from gymnasium.spaces import Space
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from starec_env.errors import InvalidRanking

Positions = NDArray[np.int64]
_INT = {int}


class Rankings(Space[Positions]):
    """Distinct candidate positions, best first; may be partial, even empty.

    An element is a list, a tuple or a 1-D integer array of at most n distinct positions, each 0 to n - 1. With `rows`,
    it is one such ranking a row, short ones padded by -1 on the right: an integer array of shape (rows, n).

    `sample` gives full permutations, uniformly; a mask of shape (n,) ranks only the positions where it isn't 0.

    Args:
        n: How many candidates there are.
        seed: Of the samples.
        rows: Rankings in an element, where it holds those of many environments; None for a single ranking.
    """

    def __init__(self, n: int, seed: int | np.random.Generator | None = None, rows: int | None = None) -> None:
        self.n, self.rows = n, rows
        super().__init__((n,) if rows is None else (rows, n), np.int64, seed)

    @property
    def is_np_flattenable(self) -> bool:
        """False: a partial ranking has no fixed length."""
        return False

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> Positions:
        """A full permutation, or one for each row; `mask` leaves positions out, `probability` isn't supported."""
        if probability is not None:
            raise ValueError("Rankings.sample can't take probabilities: pass a mask, or sample by your own policy")
        allowed = np.arange(self.n) if mask is None else np.flatnonzero(mask)
        if self.rows is None:
            return self.np_random.permutation(allowed)
        sampled = np.full((self.rows, self.n), -1)
        sampled[:, : len(allowed)] = self.np_random.permuted(np.tile(allowed, (self.rows, 1)), axis=1)
        return sampled

    def contains(self, x: Any) -> bool:
        """Whether x is such a ranking, or such an array of them."""
        try:
            check_ranking(x, self.n) if self.rows is None else ranks_of(x, self.n, self.rows)
        except InvalidRanking:
            return False
        return True

    def to_jsonable(self, sample_n: Iterable[Any]) -> list[list[int]]:
        """The samples as lists of ints."""
        return [np.asarray(sample).tolist() for sample in sample_n]

    def from_jsonable(self, sample_n: list[Any]) -> list[Positions]:
        """The samples back from lists of ints."""
        return [np.asarray(sample, np.int64) for sample in sample_n]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rankings) and (other.n, other.rows) == (self.n, self.rows)

    def __repr__(self) -> str:
        return f"Rankings({self.n})" if self.rows is None else f"Rankings({self.n}, rows={self.rows})"


def check_ranking(action: Any, n: int) -> list[int]:
    """The positions of a ranking as a list of ints.

    Args:
        action: A list, a tuple or a 1-D integer array.
        n: How many candidates there are.

    Raises:
        InvalidRanking: If it isn't at most n distinct positions, each 0 to n - 1; the message says why.
    """
    if type(action) is np.ndarray:
        if action.ndim != 1 or action.dtype.kind not in "iu":
            raise _invalid(action, n, f"it is an array of shape {action.shape} and type {action.dtype}")
        order: list[int] = action.tolist()
    elif isinstance(action, (list, tuple)):
        order = list(action)
        if not {*map(type, order)} <= _INT:
            order = [_position(given, action, n) for given in order]
    else:
        raise _invalid(action, n, f"it is a {type(action).__name__}")
    positions = {*order}
    if len(positions) != len(order):
        again = next(p for i, p in enumerate(order) if p in order[:i])
        raise _invalid(action, n, f"position {again} is in it more than once")
    if not positions <= _all_positions(n):
        raise _invalid(action, n, f"there is no position {next(p for p in order if not 0 <= p < n)}")
    return order


@lru_cache(maxsize=16)
def _all_positions(n: int) -> frozenset[int]:
    return frozenset(range(n))


def ranks_of(actions: Any, n: int, rows: int, ignore: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """The 1-based rank of each position in each of many rankings.

    Args:
        actions: An integer array of shape (rows, n or fewer) padded by -1 on the right, or a sequence of rankings.
        n: How many candidates there are.
        rows: How many rankings there must be.
        ignore: (rows,) rankings to take as empty whatever they hold; None takes all as given.

    Returns:
        Ranks, shape (rows, n + 1); 0 where a position isn't ranked. The last column has no meaning.

    Raises:
        InvalidRanking: If a row isn't a ranking; the message says which and why.
    """
    if not isinstance(actions, np.ndarray):
        actions = _padded(actions, n, rows)
    if actions.dtype.kind not in "iu" or actions.ndim != 2 or len(actions) != rows or actions.shape[1] > n:
        wanted = f"an integer array of shape ({rows}, {n}), short rankings padded by -1"
        raise InvalidRanking(f"got an array of shape {actions.shape} and type {actions.dtype}; wanted {wanted}")
    if ignore is not None and ignore.any():
        actions = np.where(ignore[:, None], -1, actions)
    ranked = actions >= 0
    if actions.size and (actions.max() >= n or actions.min() < -1 or (ranked[:, 1:] & ~ranked[:, :-1]).any()):
        raise _first_fault(actions, n)
    # Padding, -1, lands in the last column of the row before.
    flat = np.zeros(rows * (n + 1), np.int64)
    flat[np.arange(0, len(flat), n + 1)[:, None] + actions] = np.arange(1, actions.shape[1] + 1)
    ranks = flat.reshape(rows, n + 1)
    if np.count_nonzero(ranks[:, :n]) != np.count_nonzero(ranked):
        raise _first_fault(actions, n)
    return ranks


def _padded(actions: Any, n: int, rows: int) -> NDArray[np.int64]:
    if not isinstance(actions, Sequence) or len(actions) != rows:
        what = f"{len(actions)} rankings" if isinstance(actions, Sequence) else f"a {type(actions).__name__}"
        raise InvalidRanking(f"got {what}; wanted one ranking of {n} candidates for each of {rows} environments")
    padded = np.full((rows, n), -1)
    for row, action in enumerate(actions):
        order = check_ranking(action, n)
        padded[row, : len(order)] = order
    return padded


def _first_fault(actions: NDArray[Any], n: int) -> InvalidRanking:
    for row, action in enumerate(actions):
        try:
            check_ranking(_unpadded(action), n)
        except InvalidRanking as error:
            return InvalidRanking(f"environment {row}: {error}")
    raise AssertionError("no row is at fault")


def _unpadded(row: NDArray[Any]) -> NDArray[Any]:
    return row if not len(row) or row[-1] >= 0 else row[: len(np.trim_zeros(row + 1, "b"))]


def _position(given: object, action: object, n: int) -> int:
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise _invalid(action, n, f"{given!r} in it is a {type(given).__name__}")
    return int(given)


def _invalid(action: object, n: int, why: str) -> InvalidRanking:
    shown = " ".join(repr(action).split())
    shown = shown if len(shown) <= 100 else f"{shown[:97]}..."
    return InvalidRanking(f"{shown} is no ranking, as {why}; wanted at most {n} distinct positions from 0 to {n - 1}")


@batch_space.register(Rankings)
def _batch(space: Rankings, n: int = 1) -> Rankings:
    return Rankings(space.n, deepcopy(space.np_random), rows=n)


@iterate.register(Rankings)
def _iterate(space: Rankings, items: Any) -> Iterator[Any]:  # type: ignore[misc]
    return (_unpadded(row) if isinstance(row, np.ndarray) else row for row in items)


@create_empty_array.register(Rankings)
def _create_empty(space: Rankings, n: int = 1, fn: Any = np.zeros) -> NDArray[np.int64]:
    return np.full((n, space.n), -1)


@concatenate.register(Rankings)
def _concatenate(space: Rankings, items: Iterable[Any], out: NDArray[np.int64]) -> NDArray[np.int64]:
    out[:] = _padded([*items], space.n, len(out))
    return out
