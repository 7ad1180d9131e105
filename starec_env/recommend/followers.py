"""Which items soon follow which: the pairs that a low rank forgets, in one hash table of 32-bit words.

    share(h, j) = sum over rows of h with j at most 10 rows later, 1 / lag each, over (count of h + 20)

The greatest 64 shares of each h are kept. A word holds 16 bits of the key and the share as a float16; a look-up reads
one word, and where two pairs want the same word the greater share has it.
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


@dataclass(frozen=True)
class Followers:
    """Shares of pairs of items, by one probe.

    Attributes:
        table: (2**bits,) words: 16 bits of the key, then the share as float16 bits; 0 where there is none.
        n_items: Items in the catalogue.
    """

    table: NDArray[np.uint32]
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
        table = np.zeros(1 << max(4, int(np.ceil(np.log2(max(1, len(share)) * _SPARE)))), np.uint32)
        made = cls(table, n_items)
        order = np.argsort(share, kind="stable")  # of equal places the last one written stays: the greatest
        places, tags = made._hashed(before[order], after[order])
        table[places] = (tags << np.uint32(16)) | share[order].astype(np.float16).view(np.uint16)
        return made

    def _hashed(self, before: NDArray[Any], after: NDArray[Any]) -> tuple[Ints, NDArray[np.uint32]]:
        key = before.astype(np.uint64) * np.uint64(self.n_items) + after.astype(np.uint64)
        key *= GOLDEN
        places = (key >> np.uint64(64 - (len(self.table).bit_length() - 1))).view(np.int64)
        return places, (key >> np.uint64(16)).astype(np.uint32) & np.uint32(0xFFFF)

    def shares(self, before: NDArray[np.integer[Any]], after: NDArray[np.integer[Any]]) -> Floats:
        """(...) shares of pairs, broadcast together; 0 for a pair that isn't kept."""
        places, tags = self._hashed(before, after)
        words = self.table[places]
        found = (words & np.uint32(0xFFFF)).astype(np.uint16).view(np.float16).astype(F)
        found *= (words >> np.uint32(16)) == tags
        return found

    def near(self, recent: NDArray[np.integer[Any]], candidates: NDArray[np.integer[Any]]) -> Floats:
        """(n, k) log(1 + 100 sum_l 0.85^l share(recent_l, candidate)): what the last items add to a utility.

        Args:
            recent: (n, m) catalogue indices, newest first, -1 where there is none.
            candidates: (n, k) catalogue indices.
        """
        found = np.zeros(candidates.shape, F)
        for age in range(recent.shape[1]):
            before = recent[:, age, None]
            weight = np.where(before < 0, F(0), F(_GAIN * _FADES**age))
            found += weight * self.shares(np.maximum(before, 0), candidates)
        return np.log1p(found, out=found)
