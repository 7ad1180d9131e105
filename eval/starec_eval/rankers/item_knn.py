"""Item-based nearest neighbours with recency."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from starec_eval.rankers.pair_counts import PairScorer
from starec_eval.rankers.scorer import Scores


@dataclass
class ItemKNN(PairScorer):
    """Score of c: the sum over history items h of `decay^age(h) * n_ch / (sqrt(n_c n_h) + shrinkage)`.

    n_ch counts the sequences that hold both, at most `window` places apart, n_c those that hold c, and the newest
    history item has age 0 (Sarwar et al. 2001, "Item-based collaborative filtering"; shrinkage as in Ferrari Dacrema
    et al. 2019).
    """

    name: ClassVar[str] = "item-knn"

    def similarity(self, candidates: NDArray[np.integer], history: NDArray[np.integer]) -> Scores:
        """The shrunk cosine."""
        norms = np.sqrt(self.counts[candidates]) * np.sqrt(self.counts[history])
        cosine: Scores = self.pairs(candidates, history) / (norms + self.shrinkage)
        return cosine
