"""A smoothed chain of nearby items."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from starec_eval.rankers.pair_counts import PairScorer
from starec_eval.rankers.scorer import Scores


@dataclass
class Markov(PairScorer):
    """Score of c: the sum over history items h of `decay^age(h) * n_ch / (n_h + shrinkage)`.

    n_ch is symmetric within a window. A first-order Markov chain (Rendle et al. 2010, "Factorizing personalized Markov
    chains", without factors) whose counts take in every pair at most `window` places apart, in both directions: with
    40,000 interactions the counts of immediate successors are nearly all zero.
    """

    name: ClassVar[str] = "markov"
    window: int = 10

    def similarity(self, candidates: NDArray[np.integer], history: NDArray[np.integer]) -> Scores:
        """The shrunk share of transitions."""
        share: Scores = self.pairs(candidates, history) / (self.counts[history] + self.shrinkage)
        return share
