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
        self._packed = n * n_items > _MOST_BYTES
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
