"""Which items soon follow which: the pairs that a low rank forgets, in one hash table of 48 bits a place.

    share(h, j) = sum over rows of h with j at most 10 rows later, 1 / lag each, over (count of h + 20)

The greatest 64 shares of each h are kept, with the precision of float16. A place holds 16 bits of the key, and the
share; a look-up reads one place, and where two pairs want the same one the greater share has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.splitmix import GOLDEN

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
F = np.float32

RECENT = 3
"""How many of the last items are looked up."""
_WEIGHTS = (100.0 * 0.85 ** np.arange(RECENT)).astype(F)
_KEPT, _WINDOW, _SHRINK, _SPARE = 64, 10, 20.0, 4
_TAG = np.uint64(16)
_CELLS = 1 << 14
"""Pairs looked up together, which stay in the processor's cache."""


@dataclass(frozen=True)
class Followers:
    """Shares of pairs of items, by one probe.

    Attributes:
        kept: (2**bits,) shares, 0 where there is none.
        tags: (2**bits,) 16 bits of each pair's key.
        n_items: Items in the catalogue.
    """

    kept: Floats
    tags: NDArray[np.uint16]
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
        size = 1 << max(4, int(np.ceil(np.log2(max(1, len(share)) * _SPARE))))
        made = cls(np.zeros(size, F), np.zeros(size, np.uint16), n_items)
        order = np.argsort(share, kind="stable")  # of equal places the last one written stays: the greatest
        places, tags = made._hashed(before[order], after[order])
        made.kept[places], made.tags[places] = share[order].astype(np.float16), tags
        return made

    @cached_property
    def _factors(self) -> tuple[np.uint64, np.uint64]:
        """What the earlier item is multiplied by, and by how much a key is shifted for its place."""
        return np.uint64(self.n_items * int(GOLDEN) % 2**64), np.uint64(65 - len(self.kept).bit_length())

    def _hashed(self, before: NDArray[Any], after: NDArray[Any]) -> tuple[Ints, NDArray[np.uint16]]:
        # (before n + after) golden, modulo 2**64; the products are of items, of which there are fewer than pairs
        factor, shift = self._factors
        key = before.view(np.uint64) * factor + after.view(np.uint64) * GOLDEN
        return (key >> shift).view(np.int64), (key >> _TAG).astype(np.uint16)

    def shares(self, before: Ints, after: Ints) -> Floats:
        """(...) shares of pairs, broadcast together; 0 for a pair that isn't kept."""
        places, tags = self._hashed(before, after)
        found: Floats = self.kept.take(places)
        found *= self.tags.take(places) == tags
        return found

    def near(self, recent: Ints, candidates: NDArray[np.integer[Any]]) -> Floats:
        """(n, k) log(1 + 100 sum_l 0.85^l share(recent_l, candidate)): what the last items add to a utility.

        Args:
            recent: (n, m) catalogue indices, newest first, -1 where there is none.
            candidates: (n, k) catalogue indices.
        """
        found, after = np.empty(candidates.shape, F), candidates.astype(np.int64, copy=False)
        weights = _WEIGHTS[: recent.shape[1]] * (recent >= 0)
        step = max(1, _CELLS // max(1, recent.shape[1] * after.shape[1]))
        for part in (slice(at, at + step) for at in range(0, len(after), step)):
            shares = self.shares(recent[part, :, None], after[part, None])
            found[part] = np.matmul(weights[part, None], shares)[:, 0]
        return np.log1p(found, out=found)
