"""Item-based nearest neighbours with recency."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from starec_env.cases import Batch
from starec_env.pairs import PairCounts
from starec_env.types import Dataset, Id, Indices
from starec_eval.rankers.scorer import Scorer, Scores, TrainOn, every_sum, history_sums, similarity_table


@dataclass
class ItemKNN(Scorer):
    """Score of c: the sum over history items h of `decay^age(h) * n_ch / (sqrt(n_c n_h) + shrinkage)`.

    n_ch counts the sequences that hold both, at most `window` places apart, n_c those that hold c, and the newest
    history item has age 0 (Sarwar et al. 2001, "Item-based collaborative filtering"; shrinkage as in Ferrari Dacrema
    et al. 2019).
    """

    name: ClassVar[str] = "item-knn"
    shrinkage: float = 20.0
    decay: float = 0.8
    window: int = 40
    train: TrainOn = "sample"
    seed: int = 0
    pairs: PairCounts = field(init=False, repr=False)
    _table: Any = field(default=None, init=False, repr=False)
    roots: Scores = field(init=False, repr=False)

    def fit(self, train: Dataset) -> Self:
        """Count pairs."""
        self.pairs = PairCounts.of(train, self.window)
        self.roots = np.sqrt(np.bincount(train.item_indices, minlength=train.n_items))
        self._table = None
        return self

    def scores(self, batch: Batch) -> Scores:
        """The decayed sums of similarities."""
        return history_sums(batch, self.decay**batch.ages, self._similarity)

    def every_score(self, users: Sequence[Id], history: Indices, n_items: int) -> Scores:
        """The same of the whole catalogue, by a sparse table."""
        if self._table is None:
            self._table = similarity_table(self.pairs, self._similarity)
        ages = np.arange(history.shape[1])[::-1]
        return every_sum(history, self.decay**ages, self._table)

    def _similarity(self, a: NDArray[np.integer], b: NDArray[np.integer]) -> Scores:
        cosine: Scores = self.pairs(a, b) / (self.roots[a] * self.roots[b] + self.shrinkage)
        return cosine
