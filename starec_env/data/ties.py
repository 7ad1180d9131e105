"""Order among a user's rows of one time, where the order of the file says more about item ids than about time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.data.text import counted
from starec_env.splitmix import GOLDEN, splitmix64
from starec_env.types import Dataset, Id, Indices

_FEWEST_PAIRS = 20
_SHARE = 2 / 3
_KEY = b"starec ties"
"""The seed of the order by hash; a constant, so that a data set is the same wherever it is loaded."""


def order_ties(
    order: NDArray[np.int64],
    codes: tuple[Indices, Indices],
    ids: tuple[Sequence[Id], Sequence[Id]],
    times: Sequence[NDArray[Any] | None],
    notes: list[str],
) -> Indices | None:
    """Put a user's rows of equal time, in place, in an order that says nothing of item ids (`hashed_order`).

    Args:
        order: (rows,) rows by user and time; changed.
        codes: (all rows,) the index of each row's user, and of its item.
        ids: The ids, sorted, of the users and of the items.
        times: Columns that are all equal in rows of one time: seconds, nanoseconds, parts; None has no say, and None
            for seconds means that there are no times.
        notes: Gets what was found.

    Returns:
        (rows,) the order of the file, or None where that has nothing to do with ids (`follows_ids`) and is kept.
    """
    tied = _tied(order, codes[0], *times)
    second, items = np.flatnonzero(tied), codes[1]
    share = follows_ids(items[order[second - 1]], items[order[second]], ids[1]) if len(second) else None
    notes += _notes(len(second), share, timeless=times[0] is None)
    if share is None:
        return None
    alike = tied.copy()
    alike[second - 1] = True
    at = np.flatnonzero(alike)
    rows = order[at]
    group = np.cumsum(~tied[at], dtype=np.uint64)
    bits = np.uint64(int(group[-1]).bit_length())
    key = hashed_order(codes[0][rows], items[rows], *ids) >> bits
    key |= group << (np.uint64(64) - bits)  # groups in their order; one key sorts faster than two
    order[at] = rows[np.argsort(key, kind="stable")]
    return order.astype(np.int32)


def _tied(order: NDArray[np.int64], *columns: NDArray[Any] | None) -> NDArray[np.bool_]:
    """(rows,) whether each row, in order, has all that the row before it has in some columns."""
    tied = np.zeros(len(order), np.bool_)
    tied[1:] = True
    for column in columns:
        if column is not None:
            ordered = column[order]
            tied[1:] &= ordered[1:] == ordered[:-1]
    return tied


def _notes(n: int, share: float | None, timeless: bool) -> list[str]:
    if share is None and timeless:
        return ["no timestamps: the order of the rows is the time"]
    if not n:
        return []
    rows = f"{counted(n, 'row')} share user and time with the row before"
    if share is None:
        return [f"{rows}: file order decides"]
    by_id = f"{max(share, 1 - share):.0%} {'ascend' if share > 0.5 else 'descend'} by item id"
    start = f"no timestamps, and of each user's neighbouring rows {by_id}" if timeless else f"{rows}, {by_id}"
    return [f"{start}: a hash orders them, not the file"]


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
    """(rows,) by which rows of equal time can be sorted: a hash of each row's user id and item id alone.

    `users` and `items`, (rows,), index the ids. Being no function of other rows, the order is the same for any part of
    the data, from any file. Each user has another order, so that none can be learned. splitmix64 (Steele, Lea, Flood
    2014) mixes the two ids' BLAKE2 hashes.
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


def as_recorded(dataset: Dataset, recorded: str) -> Dataset:
    """The data set with the hash `recorded`, if only the order among equal times differs; else as it is.

    Starec 0.1 kept the order of the file in its runs.
    """
    if dataset.file_order is None or dataset.hash == recorded:
        return dataset
    by_file = dataset.with_rows(file_rows(dataset), file_order=None)
    return by_file if by_file.hash == recorded else dataset
