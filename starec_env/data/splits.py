"""Who trains and who is tested, and which rows training may see."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starec_env.errors import DataError, InvalidOption
from starec_env.types import Dataset, Id

Ints = NDArray[np.int64]


# Users ----------------------------------------------------------------------------------------------------------------


def sample(users: Ints, n: int, seed: int | Sequence[int]) -> Ints:
    """N of some users, drawn without replacement, in random order; all of them where n is as many or more."""
    chosen: Ints = np.random.default_rng(seed).permutation(users)[:n]
    return chosen


@dataclass(frozen=True)
class Split:
    """Ids of users by what they are for; no user is in two parts."""

    train: tuple[Id, ...]
    validation: tuple[Id, ...]
    """For choosing recipes and checkpoints."""
    test: tuple[Id, ...]
    """Looked at once, when all is chosen."""


def split_users(users: Sequence[Id], *, test: int, validation: int = 0, seed: int = 0) -> Split:
    """Split users at random.

    Args:
        users: Their ids.
        test: How many are tested.
        validation: How many are for validation.
        seed: Decides who.

    Returns:
        The parts, each in the random order; who is neither tested nor for validation trains.

    Raises:
        InvalidOption: Nobody is left to train on.
    """
    if test + validation >= len(users):
        raise InvalidOption(
            f"{test:,} test and {validation:,} validation users of {len(users):,}: nobody is left to train on"
        )
    order = [users[place] for place in np.random.default_rng(seed).permutation(len(users)).tolist()]
    return Split(tuple(order[test + validation :]), tuple(order[test : test + validation]), tuple(order[:test]))


def apart_from(users: Sequence[Id], heldout: Collection[Id]) -> list[Id]:
    """The users that are not held out, in their order; ids as text and as numbers are the same."""
    apart = {str(user) for user in heldout}
    return [user for user in users if str(user) not in apart]


def read_users(path: str | Path, *, alone: str = "heldout") -> dict[str, list[Id]]:
    """Training and held-out users of a file.

    Args:
        path: A users.json with the keys "train" and "heldout", a text file with an id a line, or a candidates file
            (Parquet, with a column `user_id`).
        alone: What a file that names users of one kind names: "heldout" or "train".

    Returns:
        Ids under "train" and "heldout".

    Raises:
        DataError: The file can't be read, or is none of these.
    """
    path = Path(path)
    try:
        if path.suffix == ".json":
            found: dict[str, list[Id]] = json.loads(path.read_text(encoding="utf-8-sig"))
            return {"train": found["train"], "heldout": found["heldout"]}
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            column = pq.read_table(path, columns=["user_id"])["user_id"]
            return {"train": [], "heldout": [], alone: list(dict.fromkeys(column.to_pylist()))}
        return {"train": [], "heldout": [], alone: list(path.read_text(encoding="utf-8-sig").split())}
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = str(error).partition("\n")[0]
        raise DataError(
            f"{path} is no file of users ({why}): wanted a users.json with train and heldout, a text file with an id "
            "a line, or a candidates.parquet"
        ) from None


# Rows -----------------------------------------------------------------------------------------------------------------


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
