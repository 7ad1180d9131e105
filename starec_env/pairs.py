"""How often two items stand near each other in a sequence, for catalogues of any size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from starec_env.types import Dataset

_BLOCK = 2**16
"""Fewest neighbours that are looked at together: what counting needs beside the counts, at some 15 bytes each."""

_AT_ONCE = 2**14
"""Pairs looked up together, few enough for a processor's cache."""


@dataclass(frozen=True)
class PairCounts:
    """Symmetric counts of item pairs, each kept once: six bytes a pair that occurs, eight where a count is large.

    An upper triangular matrix in compressed rows (CSR). Counting goes item by item over the neighbours of its
    occurrences, a block of items at a time, so that it needs little more memory than what is kept.
    """

    indptr: NDArray[np.int64]
    """(items + 1,) where each item's row begins in `highs`."""
    highs: NDArray[np.int32]
    """(pairs,) the pair's higher catalogue index, ascending within a row; the row is the lower one."""
    counts: NDArray[np.unsignedinteger]
    """(pairs,) how often they stand near each other."""

    @classmethod
    def of(cls, train: Dataset, window: int | None = None) -> PairCounts:
        """Count the pairs at most `window` places apart in a user's rows; None for any distance."""
        lengths = np.zeros(train.n_items + 1, np.int64)
        highs, counts = np.empty(0, np.int32), np.empty(0, np.uint16)
        filled = 0
        for first, keys in _blocks(train, window):
            begins = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
            found = np.diff(begins, append=len(keys))
            if found.max(initial=0) > np.iinfo(counts.dtype).max:
                counts = counts.astype(np.uint32)
            low = keys[begins] // np.int32(train.n_items)
            high = keys[begins] - low * np.int32(train.n_items)
            lengths[first + 1 : first + 2 + low.max(initial=-1)] = np.bincount(low)
            for column in (highs, counts):  # in place: two columns side by side would double the peak
                column.resize(filled + len(begins), refcheck=False)
            highs[filled:], counts[filled:] = high, found
            filled += len(begins)
        return cls(lengths.cumsum(), highs, counts)

    def __call__(self, a: NDArray[np.integer], b: NDArray[np.integer]) -> NDArray[np.int64]:
        """Counts of the pairs (a, b), broadcast together; 0 where a pair never occurred or an index is negative."""
        low, high = np.minimum(a, b), np.maximum(a, b)
        found = np.zeros(low.shape, np.int64)
        flat, lows, highs = found.ravel(), low.ravel(), high.ravel()
        known = np.flatnonzero(lows >= 0) if len(self.highs) else np.empty(0, np.int64)
        for first in range(0, len(known), _AT_ONCE):
            part = known[first : first + _AT_ONCE]
            flat[part] = self._look_up(lows[part], highs[part])
        return found

    def _look_up(self, low: NDArray[np.integer], high: NDArray[np.integer]) -> NDArray[np.int64]:
        # A binary search in all rows at once, in strides that halve.
        at, stop = self.indptr[low] - 1, self.indptr[low + 1]  # the last place known to be below
        for power in range(self._longest_row.bit_length() - 1, -1, -1):
            probe = at + (1 << power)
            below = self.highs.take(probe, mode="clip") < high
            below &= probe < stop
            np.copyto(at, probe, where=below)
        at += 1
        hit = (at < stop) & (self.highs.take(at, mode="clip") == high)
        return np.where(hit, self.counts.take(at, mode="clip"), 0).astype(np.int64)

    @cached_property
    def _longest_row(self) -> int:
        return int(np.diff(self.indptr).max(initial=0))

    def near(self, item: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The items ever near one, ascending, and how often each was."""
        order, begins = self._columns
        above = order[begins[item] : begins[item + 1]]  # pairs of which the item is the higher one
        row = slice(*self.indptr[item : item + 2].tolist())
        below = np.searchsorted(self.indptr, above, side="right") - 1
        own = int(len(below) and below[-1] == item)  # a pair with itself stands in both
        items = np.concatenate([below, self.highs[row][own:]])
        return items, np.concatenate([self.counts[above], self.counts[row][own:]]).astype(np.int64)

    @cached_property
    def _columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.highs, kind="stable")
        ends = np.bincount(self.highs, minlength=len(self.indptr) - 1).cumsum()
        return order, np.append(0, ends)


def _blocks(train: Dataset, window: int | None) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Blocks of items, ascending: the first item, and sorted keys `(low - first) * n_items + high`, one a pair met."""
    items, n = train.item_indices, train.n_items
    longest = int(np.diff(train.indptr).max(initial=0))
    window = min(longest if window is None else window, longest - 1)
    if window < 1:
        return
    occurrences = np.append(0, np.bincount(items, minlength=n).cumsum())
    small: type[np.integer] = np.int32 if len(items) < 2**31 else np.int64
    order: NDArray[np.integer] = np.argsort(items, kind="stable").astype(small)
    around = sliding_window_view(np.pad(items, window), 2 * window + 1)  # each row's item, and `window` on either side
    first, block = 0, max(_BLOCK, len(items) // 4)
    while first < n:
        most = occurrences[first] + block // (2 * window + 1)
        stop = max(first + 1, int(np.searchsorted(occurrences, most, side="right")) - 1)
        stop = min(stop, n, first + max(1, (2**31 - 1) // n))  # keys fit 32 bits
        rows = order[occurrences[first] : occurrences[stop]]
        yield first, _keys(train, rows, around[rows], first, window)
        first = stop


def _keys(
    train: Dataset, rows: NDArray[np.integer], near: NDArray[np.int32], first: int, window: int
) -> NDArray[np.int32]:
    # A pair is met from either side, and kept from its lower item's; of equal items from the earlier one's.
    lows = train.item_indices[rows][:, None]
    owner = np.searchsorted(train.indptr, rows, side="right") - 1
    before = (rows - train.indptr[owner]).clip(max=window)[:, None].astype(np.int16 if window < 2**15 else np.int64)
    after = (train.indptr[owner + 1] - 1 - rows).clip(max=window)[:, None].astype(before.dtype)
    lags = np.arange(1, window + 1, dtype=before.dtype)
    wanted = np.zeros(near.shape, np.bool_)
    np.greater(near[:, :window], lows, out=wanted[:, :window])
    wanted[:, :window] &= lags[::-1] <= before
    np.greater_equal(near[:, window + 1 :], lows, out=wanted[:, window + 1 :])
    wanted[:, window + 1 :] &= lags <= after
    near += (lows - np.int32(first)) * np.int32(train.n_items)
    keys: NDArray[np.int32] = near[wanted]
    keys.sort()
    return keys
