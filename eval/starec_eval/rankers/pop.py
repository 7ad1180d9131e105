"""Popularity."""

from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np

from starec_env.cases import Batch
from starec_env.types import Dataset
from starec_eval.rankers.scorer import Scorer, Scores, TrainOn


@dataclass
class Pop(Scorer):
    """Score of an item: the interactions it has in the training sequences (paper 5.1.3).

    Training sequences end before a test user's target, so no user's own target counts: on sparse data counting it
    adds up to 11 points. Whom it counts is the reading's `popularity`, unless `train` says.
    """

    name: ClassVar[str] = "pop"
    train: TrainOn | None = None
    counts: Scores = field(init=False, repr=False)

    def fit(self, train: Dataset) -> Self:
        """Count."""
        self.counts = np.bincount(train.item_indices, minlength=train.n_items).astype(np.float64)
        return self

    def scores(self, batch: Batch) -> Scores:
        """The candidates' counts."""
        counts: Scores = self.counts[batch.candidates]
        return counts
