"""The statistical twin's choice model as a ranker: how well the simulated user itself predicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np

from starec_env.cases import PAD, Batch
from starec_env.recommend.twin import Twin
from starec_env.types import Dataset
from starec_eval.rankers.scorer import Scorer, Scores


@dataclass
class TwinChoice(Scorer):
    """Score of a candidate: log-odds that it is the next liked item, by `starec_env.recommend.twin`.

    What a user's ratings say is left out, since a batch has none: of P(like) only the items' part remains.
    """

    name: ClassVar[str] = "twin"
    twin: Twin = field(init=False, repr=False)

    def fit(self, train: Dataset) -> Self:
        """Fit the twin on all rows."""
        self.twin = Twin.fit(train, stops=train.indptr[1:], seed=self.seed)
        return self

    def scores(self, batch: Batch) -> Scores:
        """Utility plus log P(like) by a user of whose ratings nothing is known."""
        histories, place = batch.distinct_histories()
        owners, columns = np.nonzero(histories != PAD)
        items = histories[owners, columns].astype(np.int64)
        mean = self.twin.stars.items[items] + np.float32(self.twin.stars.offset)
        states = self.twin.states(owners, items, mean, len(histories))
        return self.twin.log_choice(states[place], batch.candidates)
