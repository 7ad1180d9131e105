"""The paper's preparation of a data set (5.1.1): k-core filter, order of time, the last interactions of each user."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from starec_env.data.text import counted
from starec_env.errors import DataError, InvalidOption
from starec_env.types import Dataset

_Counts = NDArray[np.int64]


def prepare(dataset: Dataset, *, min_interactions: int = 10, max_length: int | None = 40) -> Dataset:
    """Drop rare users and items until none is left, and keep each user's last interactions as the sequence.

    Follows the paper's 5.1.1. The filter goes on until every user and every item has `min_interactions`, since
    each round can make others rare. A user's interactions are already in order of time. Those
    before the last `max_length` stay in the data set outside the user's `window`: they are no turns and no history,
    but things the user has met, which must not be drawn as negatives.

    Args:
        dataset: Any data set; it is not changed.
        min_interactions: Fewest interactions of a user and of an item, at least 1. With 1 only items that nobody
            met go.
        max_length: Length of the longest sequence, at least 2 (a history and a target); None keeps all.

    Returns:
        A new data set with `window` set; its notes say what was dropped and cut.

    Raises:
        DataError: Nobody is left.
        InvalidOption: A number is out of its range.
    """
    if min_interactions < 1:
        raise InvalidOption(f"min_interactions={min_interactions}: wanted at least 1")
    if max_length is not None and max_length < 2:
        raise InvalidOption(f"max_length={max_length}: wanted at least 2, or None for all")
    kept, of_user, of_item = _core(dataset, min_interactions)
    if not kept.any():
        raise DataError(
            f"{dataset.name}: no user and item with {min_interactions} interactions is left: lower min_interactions"
        )
    user_kept, item_kept = of_user > 0, of_item > 0
    renumbered = np.cumsum(item_kept, dtype=np.int32) - 1
    indptr = np.concatenate(([0], np.cumsum(of_user[user_kept]))).astype(np.int64)
    window = indptr[:-1] if max_length is None else np.maximum(indptr[:-1], indptr[1:] - max_length)
    people, source = dataset.demographics, dataset.source
    if source is not None:  # what was prepared before can't be made again by one preparation
        raw = source["min_interactions"] is None
        source = {**source, "min_interactions": min_interactions, "max_length": max_length} if raw else None
    return replace(
        dataset.with_rows(kept, indptr=indptr, window=window, user_ids=dataset.user_ids[user_kept]),
        item_indices=renumbered[dataset.item_indices[kept]],
        items=tuple(item for item, stays in zip(dataset.items, item_kept, strict=True) if stays),
        source=source,
        demographics=None if people is None else [people[u] for u in np.flatnonzero(user_kept).tolist()],
        notes=(
            *dataset.notes,
            f"{min_interactions}-core: dropped {counted(int(np.sum(~user_kept)), 'user')}, "
            f"{counted(int(np.sum(~item_kept)), 'item')}, {counted(int(np.sum(~kept)), 'interaction')}",
            f"sequences of at most {max_length}: {counted(int(np.sum(window > indptr[:-1])), 'user')} had more; "
            f"{counted(int(np.sum(window - indptr[:-1])), 'earlier interaction')} kept for exclusion only"
            if max_length
            else "sequences keep all interactions",
        ),
    )


def _core(dataset: Dataset, least: int) -> tuple[NDArray[np.bool_], _Counts, _Counts]:
    """Which rows the filter leaves, and how many each user and each item then has."""
    users = np.repeat(np.arange(dataset.n_users, dtype=np.int32), np.diff(dataset.indptr))
    items = dataset.item_indices
    of_user, of_item = np.diff(dataset.indptr), np.bincount(items, minlength=dataset.n_items)
    kept = np.ones(len(items), np.bool_)
    while True:
        rare = kept & ((of_user < least)[users] | (of_item < least)[items])
        if not rare.any():
            return kept, of_user, of_item
        kept &= ~rare
        of_user = of_user - np.bincount(users[rare], minlength=dataset.n_users)
        of_item = of_item - np.bincount(items[rare], minlength=dataset.n_items)
