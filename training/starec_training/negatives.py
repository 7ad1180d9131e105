"""Harder negatives, a curriculum beside the number of candidates; training users alone say what is hard."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from starec_env.errors import InvalidOption, check_choice
from starec_env.replay.stream import Stream
from starec_env.types import Candidates, Turn
from starec_training.features import Evidence

KINDS = ("popular", "near")
_NEAREST = 100


class HarderTurns:
    """A stream's turns, with a share of each turn's negatives drawn anew among harder items.

    As the stream's own, they are a function of (seed, user, turn), and never items that the user interacted with. Where
    too few harder items are left, the stream's stay.

    Args:
        stream: Gives the turns.
        evidence: Counts of the training users.
        kind: "popular": drawn by how many training users took them; "near": among the 100 that training users, this
            one apart, most took together with the target.
        share: Of the negatives, 0 to 1.

    Raises:
        InvalidOption: The kind isn't known, or the share out of range.
    """

    def __init__(self, stream: Stream, evidence: Evidence, kind: str, share: float) -> None:
        check_choice("hard_kind", kind, KINDS)
        if not 0 <= share <= 1:
            raise InvalidOption(f"hard={share}: wanted a share of the negatives, 0 to 1")
        self.stream, self.evidence, self.kind, self.share = stream, evidence, kind, share

    @property
    def users(self) -> NDArray[np.integer]:
        """0-based indices of the users who have a turn."""
        return self.stream.users

    def turns(self, user: int) -> list[Turn]:
        """A user's turns in order."""
        return [self._harder(user, turn) for turn in self.stream.turns(user)]

    def _harder(self, user: int, turn: Turn) -> Turn:
        shown = np.array(turn.query.candidates.indices)
        rng = np.random.default_rng([self.stream.seed, user, turn.number])
        negatives = rng.permutation(np.delete(np.arange(len(shown)), turn.target))
        goes = negatives[: round(self.share * len(negatives))]
        items, weights = self._pool(user, int(shown[turn.target]))
        new = ~self.stream.seen.contains(np.array([user]), items[None])[0] & ~np.isin(items, shown) & (weights > 0)
        items, weights = items[new], weights[new]
        goes = goes[: len(items)]
        shown[goes] = rng.choice(items, len(goes), replace=False, p=weights / weights.sum()) if len(goes) else 0
        query = replace(turn.query, candidates=Candidates(self.stream.dataset.items, shown))
        return replace(turn, query=query)

    def _pool(self, user: int, target: int) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
        if self.kind == "popular":
            return np.arange(self.stream.dataset.n_items), self.evidence.counts.astype(float)
        items, counts = self.evidence.neighbours(user, target)
        return items[:_NEAREST], counts[:_NEAREST].astype(float)
