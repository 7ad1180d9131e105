"""Random order."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from starec_env.cases import Batch
from starec_eval.rankers.scorer import Scorer, Scores


@dataclass
class Random(Scorer):
    """All candidates score the same, and the tie rule shuffles them by the seed.

    Of 20 candidates the expected NDCG@{1,5,10,20} is 5.0 / 14.7 / 22.7 / 35.2 percent.
    """

    name: ClassVar[str] = "random"
    learns: ClassVar[bool] = False

    def scores(self, batch: Batch) -> Scores:
        """Zeros."""
        return np.zeros(batch.candidates.shape)
