"""Ranks from scores, by one rule for equal scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from starec_env.splitmix import GOLDEN, splitmix64
from starec_env.types import Id


def ranks_of(scores: NDArray[Any], targets: NDArray[np.integer], ties: NDArray[Any]) -> NDArray[np.int64]:
    """1-based ranks of targets when candidates are sorted by score, highest first.

    Args:
        scores: (..., n) of the candidates.
        targets: (...,) 0-based candidate positions.
        ties: (..., n), or (n,) for all alike: of equal scores the one with the lower key comes first.
    """
    at = targets[..., None]
    mine = np.take_along_axis(scores, at, axis=-1)
    key = np.take_along_axis(np.broadcast_to(ties, scores.shape), at, axis=-1)
    above = (scores > mine) | ((scores == mine) & (ties < key))
    return np.asarray(1 + above.sum(axis=-1))


def tie_keys(users: Sequence[Id], lengths: NDArray[np.integer], n: int, seed: int) -> NDArray[np.uint64]:
    """(queries, n) random order of equal scores: a pure function of seed, user, history length and place shown.

    The target's place is itself random, so the place decides nothing on average; and one query ranks as it does in a
    batch, whatever indices a catalogue gives the items.

    Args:
        users: (queries,) ids.
        lengths: (queries,) lengths of the histories.
        n: Candidates of a query.
        seed: Of the order.
    """
    hashed = np.array([crc32(str(user).encode()) for user in users], dtype=np.uint64)
    keys = _mix(_mix(hashed * np.uint64(2**20) + lengths.astype(np.uint64)) + np.uint64(seed % 2**64))
    return _mix(np.add(keys[:, None], np.arange(n, dtype=np.uint64), dtype=np.uint64))


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):  # it wraps round by design
        return splitmix64(words + GOLDEN)
