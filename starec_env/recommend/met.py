"""Which items each of many users has met: a table of bytes, or of bits where bytes would be many."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_MOST_BYTES = 1 << 28


class Met:
    """Items met at n rows.

    Args:
        n: Rows.
        n_items: Items in the catalogue.
    """

    def __init__(self, n: int, n_items: int) -> None:
        self._packed, self._n_items = n * n_items > _MOST_BYTES, n_items
        self._width = -(-n_items // 8) if self._packed else n_items
        self._table = np.zeros(n * self._width, np.uint8)

    def clear(self, rows: NDArray[Any]) -> None:
        """Forget what was met at (m,) rows."""
        self._table.reshape(-1, self._width)[rows] = 0

    def add(self, rows: NDArray[Any], items: NDArray[Any]) -> None:
        """Note that the item of each of (m,) catalogue indices is met at each of (m,) rows."""
        if self._packed:
            bits = (1 << (items & 7)).astype(np.uint8)
            np.bitwise_or.at(self._table, rows * self._width + (items >> 3), bits)
        else:
            self._table[rows * self._width + items] = 1

    def has(self, rows: NDArray[Any], items: NDArray[Any]) -> NDArray[np.bool_]:
        """(m, k) whether (m, k) items were met at (m,) rows."""
        first = (rows * self._width)[:, None]
        if self._packed:
            found = self._table.take(first + (items >> 3)) >> (items & 7).astype(np.uint8) & np.uint8(1)
        else:
            found = self._table.take(first + items)
        met: NDArray[np.bool_] = found.view(np.bool_)
        return met

    def mask(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """(m, n_items) whether each item was met at (m,) rows."""
        found = self._table.reshape(-1, self._width)[rows]
        if self._packed:
            found = np.unpackbits(found, axis=1, count=self._n_items, bitorder="little")
        met: NDArray[np.bool_] = found.view(np.bool_)
        return met
