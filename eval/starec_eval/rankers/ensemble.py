"""An ensemble of scorers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np

from starec_env.cases import Batch
from starec_env.types import Dataset
from starec_eval.rankers.scorer import Scorer, Scores, check_scores


@dataclass
class Ensemble(Scorer):
    """Score of c: the mean over members of its standardised score, or of its negated rank, within the list.

    Standardising within each list puts counts and log-probabilities on one scale (Fox and Shaw 1994, CombSUM; by
    rank it is Borda's count).
    """

    name: ClassVar[str] = "ensemble"
    members: Sequence[Scorer] = field(default_factory=list)
    by: Literal["score", "rank"] = "score"

    def fitted(self, train: Dataset, cache: Path | None = None) -> Self:
        """Fit the members."""
        for member in self.members:
            member.fitted(train, cache)
        return self

    def fit(self, train: Dataset) -> Self:
        """Fit the members."""
        return self.fitted(train)

    def scores(self, batch: Batch) -> Scores:
        """The members' mean."""
        parts = [check_scores(member.scores(batch), batch, member.label) for member in self.members]
        mean: Scores = np.mean([_ranks(part) if self.by == "rank" else _standardised(part) for part in parts], axis=0)
        return mean


def _standardised(scores: Scores) -> Scores:
    spread = scores.std(axis=1, keepdims=True)
    scaled: Scores = (scores - scores.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    return scaled


def _ranks(scores: Scores) -> Scores:
    from scipy.stats import rankdata

    # Equal scores share the mean of their places.
    negated: Scores = 1.0 - rankdata(-scores, axis=1)
    return negated
