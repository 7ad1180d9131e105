"""A smoothed chain of nearby items."""

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
class Markov(Scorer):
    """Score of c: the sum over history items h of `decay^age(h) * n_ch / n_h`, with n_ch symmetric within a window.

    A first-order Markov chain (Rendle et al. 2010, "Factorizing personalized Markov chains", without factors) whose
    counts take in every pair at most `window` places apart, in both directions: with 40,000 interactions the counts
    of immediate successors are nearly all zero.
    """

    name: ClassVar[str] = "markov"
    window: int = 10
    decay: float = 0.8
    shrinkage: float = 20.0
    train: TrainOn = "sample"
    seed: int = 0
    pairs: PairCounts = field(init=False, repr=False)
    _table: Any = field(default=None, init=False, repr=False)
    counts: Scores = field(init=False, repr=False)

    def fit(self, train: Dataset) -> Self:
        """Count pairs within the window."""
        self.pairs = PairCounts.of(train, self.window)
        self.counts = np.bincount(train.item_indices, minlength=train.n_items).astype(np.float64)
        self._table = None
        return self

    def scores(self, batch: Batch) -> Scores:
        """The decayed sums of transition shares."""
        return history_sums(batch, self.decay**batch.ages, self._transition)

    def every_score(self, users: Sequence[Id], history: Indices, n_items: int) -> Scores:
        """The same of the whole catalogue, by a sparse table."""
        if self._table is None:
            self._table = similarity_table(self.pairs, self._transition)
        ages = np.arange(history.shape[1])[::-1]
        return every_sum(history, self.decay**ages, self._table)

    def _transition(self, a: NDArray[np.integer], b: NDArray[np.integer]) -> Scores:
        share: Scores = self.pairs(a, b) / (self.counts[b] + self.shrinkage)
        return share
