"""Scores from counts of item pairs: what item-kNN and the Markov chain share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from starec_env.cases import PAD, Batch
from starec_env.pairs import PairCounts
from starec_env.types import Dataset, Id, Indices
from starec_eval.rankers.scorer import Scorer, Scores

_CHUNK = 1 << 20


@dataclass
class PairScorer(Scorer):
    """Score of c: the sum over history items h of `decay^age(h) * similarity(c, h)`; the newest item has age 0."""

    shrinkage: float = 20.0
    decay: float = 0.8
    window: int = 40
    pairs: PairCounts = field(init=False, repr=False)
    counts: Scores = field(init=False, repr=False)
    """(items,) interactions of each item."""
    _table: Any = field(default=None, init=False, repr=False)

    def similarity(self, candidates: NDArray[np.integer], history: NDArray[np.integer]) -> Scores:
        """Of two broadcastable arrays of catalogue indices; 0 at PAD, and for pairs that were never met."""
        raise NotImplementedError

    def fit(self, train: Dataset) -> Self:
        """Count pairs within the window."""
        self.pairs = PairCounts.of(train, self.window)
        self.counts = np.bincount(train.item_indices, minlength=train.n_items).astype(np.float64)
        self._table = None
        return self

    def scores(self, batch: Batch) -> Scores:
        """The decayed sums, in bounded memory."""
        step = max(1, _CHUNK // max(1, batch.candidates.shape[1] * batch.history.shape[1]))
        sums = [
            self.similarity(part.candidates[:, :, None], part.history[:, None, :]) @ self.decay**part.ages
            for part in (batch[at : at + step] for at in range(0, len(batch), step))
        ]
        return np.concatenate(sums)

    def every_score(self, users: Sequence[Id], history: Indices, n_items: int) -> Scores:
        """The same of the whole catalogue, by a sparse table."""
        from scipy.sparse import csr_array

        if self._table is None:
            self._table = self._similarities()
        rows, places = np.nonzero(history != PAD)
        weights = self.decay ** np.arange(history.shape[1])[::-1]
        weighed = csr_array((weights[places], (rows, history[rows, places])), shape=(len(history), n_items))
        sums: Scores = (weighed @ self._table).toarray()
        return sums

    def _similarities(self) -> Any:
        # (items, items) sparse, a row a history item.
        from scipy.sparse import csr_array

        n = len(self.counts)
        low, high = np.repeat(np.arange(n), np.diff(self.pairs.indptr)), self.pairs.highs.astype(np.int64)
        apart = low != high
        history, candidates = np.append(low, high[apart]), np.append(high, low[apart])
        return csr_array((self.similarity(candidates, history), (history, candidates)), shape=(n, n))
