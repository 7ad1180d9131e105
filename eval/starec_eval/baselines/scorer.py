"""What a baseline is: something that scores candidates; ranks follow from scores by one rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from starec_env.errors import InvalidOption
from starec_env.types import Dataset, Id, Indices, Query, Ranking

Scores = NDArray[Any]
TrainOn = Literal["sample", "full"]

PAD = -1
"""Stands where a history is shorter than the longest one in its batch."""


@dataclass(frozen=True)
class Batch:
    """Queries as arrays: all that a scorer may see of them."""

    users: Sequence[Id]
    history: Indices
    """(queries, longest) catalogue indices, newest last, PAD on the left."""
    candidates: Indices
    """(queries, n) catalogue indices in the order shown."""

    @classmethod
    def of(cls, query: Query) -> Batch:
        """A batch of one query."""
        return cls((query.user.id,), query.history.item_indices[None, :], query.candidates.indices[None, :])

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.users[rows], self.history[rows], self.candidates[rows])

    def __len__(self) -> int:
        return len(self.candidates)

    def distinct_histories(self) -> tuple[Indices, NDArray[np.intp]]:
        """The different histories, and (queries,) each query's place among them: repetitions share one."""
        histories, place = np.unique(self.history, axis=0, return_inverse=True)
        return histories, place.ravel()

    @property
    def ages(self) -> NDArray[np.int64]:
        """(longest,) how many interactions ago each history column is: 0 for the newest."""
        return np.arange(self.history.shape[1])[::-1]


class Scorer:
    """Base of the baselines: `fit` on training sequences, then `scores` of candidates; also a `Ranker`.

    Subclasses are dataclasses whose fields are the method's settings.
    """

    name: ClassVar[str]
    train: TrainOn | None = "sample"
    """Which users the protocol fits it on: the sampled training users, or all (Table 4's "full"). None: those that
    the reading's `popularity` names."""
    seed: int = 0
    """Breaks ties, and drives what is random in training."""
    _fitted_on: Dataset | None = None

    @property
    def label(self) -> str:
        """The method's name in tables, e.g. "sasrec-full"."""
        return f"{self.name}-full" if self.train == "full" else self.name

    def fit(self, train: Dataset) -> Self:
        """Learn from the sequences of a data set, none of which holds a test user's target. Returns self."""
        return self

    def fitted(self, train: Dataset) -> Self:
        """Fit unless it was fitted on this very data set already, as an ensemble's member may have been."""
        if self._fitted_on is not train:
            self.fit(train)
            self._fitted_on = train
        return self

    def scores(self, batch: Batch) -> Scores:
        """(queries, n) scores of the candidates, higher is better; any finite numbers, infinities included."""
        raise NotImplementedError

    def rank(self, query: Query) -> Ranking:
        """Rank one query's candidates by score, ties broken by the seed."""
        batch = Batch.of(query)
        scores = check_scores(self.scores(batch), batch, self.label)
        order = np.lexsort((tie_keys(batch, self.seed)[0], -scores[0]))
        return Ranking(order=tuple(order.tolist()))


def check_scores(scores: Scores, batch: Batch, method: str) -> Scores:
    """Return the scores; raises InvalidOption naming user and method if one is NaN or the shape is wrong."""
    if scores.shape != batch.candidates.shape:
        raise InvalidOption(f"{method} gave scores of shape {scores.shape}, wanted {batch.candidates.shape}")
    if np.isnan(scores).any():
        row = int(np.isnan(scores).any(axis=1).argmax())
        raise InvalidOption(f"{method} gave user {batch.users[row]!r} a NaN score: nothing can be ranked by it")
    return scores


def ranks_of(scores: Scores, targets: NDArray[np.integer], batch: Batch, seed: int) -> NDArray[np.float64]:
    """1-based ranks of the targets when candidates are sorted by score, ties broken by the seed.

    Args:
        scores: (queries, n) from `check_scores`.
        targets: (queries,) 0-based candidate positions.
        batch: The queries.
        seed: Of the ties.
    """
    keys, rows = tie_keys(batch, seed), np.arange(len(targets))
    mine, key = scores[rows, targets][:, None], keys[rows, targets][:, None]
    above = (scores > mine) | ((scores == mine) & (keys < key))
    ranks: NDArray[np.float64] = 1.0 + above.sum(axis=1)
    return ranks


def tie_keys(batch: Batch, seed: int) -> NDArray[np.uint64]:
    """(queries, n) random order of equal scores: a pure function of seed, user, history length and place shown.

    The target's place is itself random, so the place decides nothing on average; and one query ranks as it does in a
    batch, whatever indices a catalogue gives the items.
    """
    users = np.array([crc32(str(user).encode()) for user in batch.users], dtype=np.uint64)
    lengths = (batch.history != PAD).sum(axis=1).astype(np.uint64)
    keys = _mix(_mix(users * np.uint64(2**20) + lengths) + np.uint64(seed % 2**64))
    places = np.arange(batch.candidates.shape[1], dtype=np.uint64)
    return _mix(np.add(keys[:, None], places, dtype=np.uint64))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # The finaliser of SplitMix64 (Steele, Lea and Flood 2014), which wraps round by design.
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
