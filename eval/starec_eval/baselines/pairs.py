"""How often two items stand near each other in a sequence, for catalogues of any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starec_env.types import Dataset
from starec_eval.baselines.scorer import PAD, Batch, Scores

_CHUNK = 1 << 20


@dataclass(frozen=True)
class PairCounts:
    """Symmetric counts of item pairs as sorted keys: memory grows with the pairs that occur, not with items squared."""

    n_items: int
    keys: NDArray[np.int64]
    """(pairs,) sorted `low * n_items + high`."""
    values: NDArray[np.float64]
    """(pairs,) their counts."""

    @classmethod
    def of(cls, train: Dataset, window: int) -> PairCounts:
        """Count the pairs at most `window` places apart."""
        items, n = train.item_indices.astype(np.int64), train.n_items
        owner = np.repeat(np.arange(train.n_users), np.diff(train.indptr))
        found: list[NDArray[np.int64]] = []
        for lag in range(1, min(window, train.longest - 1) + 1):
            same = owner[lag:] == owner[:-lag]
            a, b = items[:-lag][same], items[lag:][same]
            found.append(np.minimum(a, b) * n + np.maximum(a, b))
        keys, counts = np.unique(np.concatenate(found) if found else np.empty(0, np.int64), return_counts=True)
        return cls(n, keys, counts.astype(np.float64))

    def __call__(self, a: NDArray[np.integer], b: NDArray[np.integer]) -> Scores:
        """Counts of the pairs (a, b), broadcast together; 0 where a pair never occurred or an index is PAD."""
        low, high = np.minimum(a, b).astype(np.int64), np.maximum(a, b).astype(np.int64)
        wanted = np.where(low == PAD, -1, low * self.n_items + high)
        if not len(self.keys):
            return np.zeros(wanted.shape)
        at = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        return np.where(self.keys[at] == wanted, self.values[at], 0.0)


Similarity = Callable[[NDArray[np.integer], NDArray[np.integer]], Scores]


def history_sums(batch: Batch, weights: Scores, similarity: Similarity) -> Scores:
    """(queries, n) weighted sums of `similarity(candidate, history item)` over the history, in bounded memory.

    Args:
        batch: The queries.
        weights: (longest,) weight of each history column.
        similarity: Of two broadcastable index arrays, candidate and history item; 0 at PAD.
    """
    step = max(1, _CHUNK // max(1, batch.candidates.shape[1] * batch.history.shape[1]))
    sums = [
        similarity(part.candidates[:, :, None], part.history[:, None, :]) @ weights
        for part in (batch[at : at + step] for at in range(0, len(batch), step))
    ]
    return np.concatenate(sums)
