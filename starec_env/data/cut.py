"""Data sets with some of their rows alone, and where training must stop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from starec_env.types import Dataset

Ints = NDArray[np.int64]


def rows_only(dataset: Dataset, first: NDArray[np.integer], stop: NDArray[np.integer]) -> Dataset:
    """The data set with only some rows of each user, all of them in the user's window.

    Args:
        dataset: Whose rows.
        first: (users,) the first row to keep of each user.
        stop: (users,) the row after the last.
    """
    lengths = stop - first
    indptr = np.append(0, lengths.cumsum())
    rows = np.arange(indptr[-1]) - np.repeat(indptr[:-1] - first, lengths)
    return dataset.with_rows(rows, indptr=indptr, window=None)


def windows_only(dataset: Dataset) -> Dataset:
    """The data set without the rows that precede the users' windows."""
    return rows_only(dataset, dataset.starts, dataset.indptr[1:])


def catalogue_only(dataset: Dataset) -> Dataset:
    """The data set without any interaction: users and items alone."""
    return rows_only(dataset, dataset.indptr[:-1], dataset.indptr[:-1])


def without_empty_users(dataset: Dataset) -> Dataset:
    """The data set without users who have no row."""
    there = np.flatnonzero(np.diff(dataset.indptr))
    people = dataset.demographics
    return replace(
        dataset,
        user_ids=dataset.user_ids[there],
        indptr=np.append(0, np.diff(dataset.indptr)[there].cumsum()),
        window=None if dataset.window is None else dataset.window[there],
        demographics=None if people is None else [people[user] for user in there.tolist()],
    )


def target_rows(dataset: Dataset, users: NDArray[np.integer], items: NDArray[np.integer]) -> Ints:
    """The row of each user's interaction with an item, -1 where there is none.

    Args:
        dataset: Whose rows.
        users: (n,) user indices.
        items: (n,) catalogue indices.
    """
    if not dataset.n_interactions:
        return np.full(len(users), -1)
    keys = dataset.owner * dataset.n_items + dataset.item_indices
    order = np.argsort(keys, kind="stable")
    wanted = users.astype(np.int64) * dataset.n_items + items
    at = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(order) - 1)]
    rows: Ints = np.where(keys[at] == wanted, at, -1)
    return rows


def stops_before(dataset: Dataset, users: NDArray[np.integer], targets: NDArray[np.integer]) -> Ints:
    """(users,) the row before which each user's training rows end: the first target, or the very end.

    Args:
        dataset: Whose rows.
        users: (cases,) the tested users.
        targets: (cases,) the row of each case's target; of one that isn't in the data set (-1) nothing is known, so
            its user has no training rows at all.
    """
    stops = dataset.indptr[1:].copy()
    np.minimum.at(stops, users, np.where(targets >= 0, targets, dataset.starts[users]))
    return stops


def earlier(dataset: Dataset, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(interactions,) whether each interaction is earlier than the earliest of some rows."""
    seconds = dataset.timestamps
    first = seconds[rows].min()
    if dataset.nanoseconds is None:
        return np.asarray(seconds < first)
    within = dataset.nanoseconds[rows[seconds[rows] == first]].min()
    return np.asarray((seconds < first) | ((seconds == first) & (dataset.nanoseconds < within)))


def with_events(
    dataset: Dataset,
    users: NDArray[np.integer],
    items: NDArray[np.integer],
    ratings: NDArray[np.floating],
    timestamps: NDArray[np.integer],
) -> Dataset:
    """The data set with more interactions, e.g. simulated ones, each user's after those that are there.

    Args:
        dataset: Whose users and catalogue; it is not changed.
        users: (n,) user indices.
        items: (n,) catalogue indices.
        ratings: (n,).
        timestamps: (n,) seconds since 1970; of one user ascending, and none before the user's last.
    """
    owner = np.concatenate([dataset.owner, users])
    order = np.argsort(owner, kind="stable")
    indptr = np.append(0, np.bincount(owner, minlength=dataset.n_users).cumsum())
    fractions = dataset.nanoseconds
    if fractions is not None:
        fractions = np.concatenate([fractions, np.zeros(len(users), np.int32)])[order]
    return replace(
        dataset,
        indptr=indptr,
        item_indices=np.concatenate([dataset.item_indices, items]).astype(np.int32)[order],
        ratings=np.concatenate([dataset.ratings, ratings]).astype(np.float32)[order],
        timestamps=np.concatenate([dataset.timestamps, timestamps]).astype(np.int64)[order],
        nanoseconds=fractions,
        file_order=None,
        window=indptr[:-1] + dataset.starts - dataset.indptr[:-1],
        source=None,
    )
