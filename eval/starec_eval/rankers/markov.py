"""A smoothed chain of nearby items."""

from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from starec_env.cases import Batch
from starec_env.pairs import PairCounts
from starec_env.types import Dataset
from starec_eval.rankers.scorer import Scorer, Scores, TrainOn, history_sums


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
    counts: Scores = field(init=False, repr=False)

    def fit(self, train: Dataset) -> Self:
        """Count pairs within the window."""
        self.pairs = PairCounts.of(train, self.window)
        self.counts = np.bincount(train.item_indices, minlength=train.n_items).astype(np.float64)
        return self

    def scores(self, batch: Batch) -> Scores:
        """The decayed sums of transition shares."""
        return history_sums(batch, self.decay**batch.ages, self._transition)

    def _transition(self, a: NDArray[np.integer], b: NDArray[np.integer]) -> Scores:
        share: Scores = self.pairs(a, b) / (self.counts[b] + self.shrinkage)
        return share
