"""The action space: slates of distinct items, alone and for many environments at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium.spaces import Space
from gymnasium.vector.utils import batch_space, iterate
from numpy.typing import NDArray

from starec_env.errors import InvalidSlate

Items = NDArray[np.int64]


class Slates(Space[Items]):
    """k distinct catalogue indices, best first; an element is an integer array of shape (k,), or (rows, k).

    `sample` draws uniformly among the allowed items; a mask of shape (n_items,) leaves out those where it is 0.

    Args:
        n_items: Items in the catalogue.
        k: Items of a slate.
        allowed: (n_items,) whether each item may be shown; None: all.
        seed: Of the samples.
        rows: Slates in an element, where it holds those of many environments; None for a single one.
    """

    def __init__(
        self,
        n_items: int,
        k: int,
        allowed: NDArray[np.bool_] | None = None,
        seed: int | np.random.Generator | None = None,
        rows: int | None = None,
    ) -> None:
        self.n_items, self.k, self.allowed, self.rows = n_items, k, allowed, rows
        super().__init__((k,) if rows is None else (rows, k), np.int64, seed)

    @property
    def is_np_flattenable(self) -> bool:
        """False: indices of items are no numbers to compute with."""
        return False

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> Items:
        """A slate, or one for each row; `probability` isn't supported."""
        if probability is not None:
            raise ValueError("Slates.sample can't take probabilities: pass a mask, or sample by your own policy")
        known = np.ones(self.n_items, np.bool_) if self.allowed is None else self.allowed
        if mask is not None and np.shape(mask) != (self.n_items,):
            raise ValueError(f"the mask has shape {np.shape(mask)}: wanted ({self.n_items},), a number for each item")
        items = np.flatnonzero(known if mask is None else known & np.asarray(mask, np.bool_))
        if len(items) < self.k:
            raise ValueError(f"{len(items)} items are left for a slate of {self.k}")
        drawn = [self.np_random.choice(items, self.k, replace=False) for _ in range(self.rows or 1)]
        return drawn[0] if self.rows is None else np.stack(drawn)

    def contains(self, x: Any) -> bool:
        """Whether x is such a slate, or such an array of them."""
        try:
            self.check(x)
        except InvalidSlate:
            return False
        return True

    def check(self, x: Any, skip: NDArray[np.bool_] | None = None) -> Items:
        """The slates as an integer array of shape (rows, k); a single one is one row.

        Args:
            x: A list, a tuple or an integer array; for slates of one item also the item's index alone.
            skip: (rows,) slates that aren't looked at.

        Raises:
            InvalidSlate: It isn't k distinct items of the catalogue that may be shown; the message says why.
        """
        try:
            slates = np.asarray(x)
        except ValueError:
            raise self._invalid(x, "its rows aren't equally long") from None
        if slates.dtype.kind not in "iu":
            raise self._invalid(x, f"it is of type {slates.dtype}")
        if not isinstance(x, np.ndarray) and any(
            isinstance(each, bool | np.bool_) for each in np.asarray(x, object).ravel()
        ):
            raise self._invalid(x, "a truth value is no index")  # NumPy would take True for item 1
        if self.rows is None and slates.shape in ((self.k,), ()) or self.k == 1 and slates.shape == (self.rows,):
            slates = slates.reshape(-1, 1) if self.k == 1 else slates[None]
        if slates.shape != (self.rows or 1, self.k):
            raise self._invalid(x, f"it has shape {slates.shape}")
        slates = slates.astype(np.int64, copy=False)
        looked = slates if skip is None or not skip.any() else slates[~skip]
        if len(looked) == 1 or not self._all_good(looked):
            for row, slate in enumerate(looked.tolist()):
                if why := self._fault(slate):
                    at = row if skip is None else int(np.flatnonzero(~skip)[row])
                    raise self._invalid(x if self.rows is None else slate, why, at)
        return slates

    def _all_good(self, slates: Items) -> bool:
        """Whether none of many slates has a fault."""
        if not slates.size:
            return True
        if slates.min() < 0 or slates.max() >= self.n_items:
            return False
        ordered = np.sort(slates, axis=1)
        return bool((ordered[:, 1:] != ordered[:, :-1]).all() and (self.allowed is None or self.allowed[slates].all()))

    def _fault(self, slate: list[int]) -> str:
        """What is wrong with one slate, "" for nothing."""
        if min(slate) < 0 or max(slate) >= self.n_items:
            return f"there is no item {next(item for item in slate if not 0 <= item < self.n_items)}"
        if self.allowed is not None and not self.allowed[slate].all():
            return f"item {next(item for item in slate if not self.allowed[item])} isn't among the candidates allowed"
        if len(set(slate)) < len(slate):
            return f"item {next(item for item in slate if slate.count(item) > 1)} is in it more than once"
        return ""

    def _invalid(self, x: Any, why: str, row: int = 0) -> InvalidSlate:
        shown = " ".join(repr(x).split())
        shown = shown if len(shown) <= 100 else f"{shown[:97]}..."
        where = "" if self.rows is None else f"environment {row}: "
        of = "" if self.rows is None else f" for each of {self.rows} environments"
        return InvalidSlate(
            f"{where}{shown} is no slate, as {why}; wanted {self.k} distinct catalogue indices from 0 to "
            f"{self.n_items - 1}{of}"
        )

    def to_jsonable(self, sample_n: Iterable[Any]) -> list[Any]:
        """The samples as lists of ints."""
        return [np.asarray(sample).tolist() for sample in sample_n]

    def from_jsonable(self, sample_n: list[Any]) -> list[Items]:
        """The samples back from lists of ints."""
        return [np.asarray(sample, np.int64) for sample in sample_n]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Slates)
            and (other.n_items, other.k, other.rows) == (self.n_items, self.k, self.rows)
            and np.array_equal(self._allowed(), other._allowed())
        )

    def _allowed(self) -> NDArray[np.bool_]:
        return np.ones(self.n_items, np.bool_) if self.allowed is None else self.allowed

    def __repr__(self) -> str:
        few = "" if self.allowed is None else f", {int(self.allowed.sum())} allowed"
        return f"Slates({self.n_items}, k={self.k}{few}" + (")" if self.rows is None else f", rows={self.rows})")


@batch_space.register(Slates)
def _batch(space: Slates, n: int = 1) -> Slates:
    return Slates(space.n_items, space.k, space.allowed, deepcopy(space.np_random), rows=n)


@iterate.register(Slates)
def _iterate(space: Slates, items: Any) -> Iterator[Any]:  # type: ignore[misc]
    return iter(items)
