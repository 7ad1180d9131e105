"""The next id: a control."""

from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np

from starec_env.cases import Batch
from starec_env.types import Dataset, Indices
from starec_eval.rankers.scorer import Scorer, Scores


@dataclass
class NextId(Scorer):
    """The candidates above the last item's id come first, the nearest first; then those below, the nearest first.

    A control that knows ids alone: what it scores above chance (22.7 NDCG@10 of 20 candidates) is what the ids say. On
    ml-latest-small, whose ids follow films' years, that is 37; but 43 where rows of equal time stand in order of item
    id, as in its files, and then their order leaks the answer. Numbers are compared as numbers, other ids as text.
    """

    name: ClassVar[str] = "next-id"
    learns: ClassVar[bool] = False
    place: Indices = field(init=False, repr=False)
    """(items,) each catalogue index's place in the order of ids."""

    def fit(self, train: Dataset) -> Self:
        """Order the catalogue by id."""
        ids = np.array([item.id for item in train.items])
        self.place = np.argsort(np.argsort(ids, kind="stable"), kind="stable").astype(np.int32)
        return self

    def scores(self, batch: Batch) -> Scores:
        """Nearness above the newest history item, and nearness below after all that are above."""
        apart = self.place[batch.candidates] - self.place[batch.history[:, -1:]]
        return np.where(apart > 0, -apart, apart - len(self.place)).astype(np.float64)
