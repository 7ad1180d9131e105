"""Which items soon follow which: the pairs that a low rank forgets, in one hash table of 32 bits a place.

    share(h, j) = sum over rows of h with j at most 10 rows later, 1 / lag each, over (count of h + 20)

The greatest 64 shares of each h are kept. A place holds 16 bits of the key and the share as a float16; a look-up reads
one place, and where two pairs want the same one the greater share has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.splitmix import GOLDEN

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
F = np.float32

RECENT = 3
"""How many of the last items are looked up."""
_FADES = 0.85
_GAIN = 100.0
_KEPT, _WINDOW, _SHRINK, _SPARE = 64, 10, 20.0, 4
_PLACE = np.dtype([("share", np.float16), ("tag", np.uint16)])
_CELLS = 1 << 14
"""Pairs looked up together, which stay in the processor's cache."""


@dataclass(frozen=True)
class Followers:
    """Shares of pairs of items, by one probe.

    Attributes:
        table: (2**bits,) of "share", 0 where there is none, and "tag", 16 bits of the key.
        n_items: Items in the catalogue.
    """

    table: NDArray[Any]
    n_items: int

    @classmethod
    def of(cls, users: Ints, items: Ints, n_items: int) -> Followers:
        """Count the pairs of sequences.

        Args:
            users: (rows,) 0-based user of each row, ascending.
            items: (rows,) catalogue indices, a user's oldest first.
            n_items: Items in the catalogue.
        """
        from scipy.sparse import csr_matrix

        near: Any = csr_matrix((n_items, n_items), dtype=F)
        for lag in range(1, _WINDOW + 1):
            same = users[lag:] == users[:-lag]
            pairs = items[:-lag][same], items[lag:][same]
            near = near + csr_matrix((np.full(len(pairs[0]), F(1 / lag)), pairs), (n_items, n_items))
        counts = np.bincount(items, minlength=n_items)
        row = np.repeat(np.arange(n_items), np.diff(near.indptr))
        share = near.data / (counts[row] + F(_SHRINK))
        order = np.lexsort((-share, row))
        best = order[np.arange(len(order)) - near.indptr[row[order]] < _KEPT]
        return cls._packed(row[best], near.indices[best].astype(np.int64), share[best].astype(F), n_items)

    @classmethod
    def _packed(cls, before: Ints, after: Ints, share: Floats, n_items: int) -> Followers:
        table = np.zeros(1 << max(4, int(np.ceil(np.log2(max(1, len(share)) * _SPARE)))), _PLACE)
        made = cls(table, n_items)
        order = np.argsort(share, kind="stable")  # of equal places the last one written stays: the greatest
        places, tags = made._hashed(before[order], after[order])
        table["share"][places], table["tag"][places] = share[order], tags
        return made

    def _hashed(self, before: NDArray[Any], after: NDArray[Any]) -> tuple[Ints, NDArray[np.uint16]]:
        key = (before * self.n_items + after).view(np.uint64)
        key *= GOLDEN
        places = (key >> np.uint64(65 - len(self.table).bit_length())).view(np.int64)
        key >>= np.uint64(16)
        return places, key.astype(np.uint16)

    def shares(self, before: Ints, after: Ints) -> Floats:
        """(...) shares of pairs, broadcast together; 0 for a pair that isn't kept."""
        places, tags = self._hashed(before, after)
        words = self.table.take(places)
        found: Floats = words["share"].astype(F)
        found *= words["tag"] == tags
        return found

    def near(self, recent: Ints, candidates: NDArray[np.integer[Any]]) -> Floats:
        """(n, k) log(1 + 100 sum_l 0.85^l share(recent_l, candidate)): what the last items add to a utility.

        Args:
            recent: (n, m) catalogue indices, newest first, -1 where there is none.
            candidates: (n, k) catalogue indices.
        """
        found, after = np.empty(candidates.shape, F), candidates.astype(np.int64, copy=False)
        weights = np.where(recent < 0, F(0), (_GAIN * _FADES ** np.arange(recent.shape[1])).astype(F))
        before = np.maximum(recent, 0)
        step = max(1, _CELLS // max(1, recent.shape[1] * after.shape[1]))
        for part in (slice(at, at + step) for at in range(0, len(after), step)):
            shares = self.shares(before[part, :, None], after[part, None])
            found[part] = np.matmul(weights[part, None], shares)[:, 0]
        return np.log1p(found, out=found)
