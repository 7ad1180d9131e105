"""Order among a user's rows of one time, where the order of the file says more about item ids than about time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from starec_env.splitmix import GOLDEN, splitmix64
from starec_env.types import Dataset, Id, Indices

_FEWEST_PAIRS = 20
_SHARE = 2 / 3
_KEY = b"starec ties"
"""The seed of the order by hash; a constant, so that a data set is the same wherever it is loaded."""


def follows_ids(before: Indices, after: Indices, ids: Sequence[Id]) -> float | None:
    """The share of neighbouring rows of equal time that ascend by item id, where that is the order of the file.

    It is where more than two thirds of at least 20 pairs ascend, or descend; by chance half would. A model could then
    tell the next item from ids alone, which is no preference. Text ids are compared as text and with the numbers in
    them as numbers.

    Args:
        before: (pairs,) index among `ids` of the first row's item.
        after: (pairs,) of the second's, another item.
        ids: The items' ids, sorted.

    Returns:
        The share that ascends, or None where the file's order has nothing to do with ids.
    """
    if len(before) < _FEWEST_PAIRS:
        return None
    shares = [float(np.mean(after > before))]
    if isinstance(ids[0], str):
        ranks = np.empty(len(ids), np.int32)
        ranks[sorted(range(len(ids)), key=lambda index: _by_numbers(str(ids[index])))] = np.arange(len(ids))
        shares.append(float(np.mean(ranks[after] > ranks[before])))
    share = max(shares, key=lambda value: abs(value - 0.5))
    return share if share > _SHARE or share < 1 - _SHARE else None


def _by_numbers(text: str) -> list[tuple[str, int]]:
    # "item9" before "item10": text and the number after it, in turn.
    return [(words, int(digits or -1)) for words, digits in re.findall(r"([^0-9]*)([0-9]{0,18})", text)]


def hashed_order(users: Indices, items: Indices, user_ids: Sequence[Id], item_ids: Sequence[Id]) -> NDArray[np.uint64]:
    """A number for each row by which rows of equal time can be sorted: a hash of its user's and its item's id alone.

    Being no function of other rows, the order is the same for any part of the data, from any file. Each user has
    another order, so that none can be learned. splitmix64 (Steele, Lea, Flood 2014) mixes the two ids' BLAKE2 hashes.

    Args:
        users: (rows,) index among `user_ids`.
        items: (rows,) index among `item_ids`.
        user_ids: The users' ids.
        item_ids: The items' ids.
    """
    words = _words(user_ids)[users]
    words *= GOLDEN
    words += _words(item_ids)[items]
    return splitmix64(words)


def _words(ids: Sequence[Id]) -> NDArray[np.uint64]:
    hashes = (blake2b(str(i).encode(), digest_size=8, key=_KEY).digest() for i in ids)
    return np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64)


def file_rows(dataset: Dataset) -> NDArray[np.intp]:
    """(interactions,) row indices that put rows of equal time in the order of the file; all in place if they are."""
    if dataset.file_order is None:
        return np.arange(dataset.n_interactions)
    within = np.zeros(dataset.n_interactions, np.int8) if dataset.nanoseconds is None else dataset.nanoseconds
    return np.lexsort((dataset.file_order, within, dataset.timestamps, dataset.owner))
