"""What one recommender has recorded of its users: a world of its own, in which no other recommender acts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.cases import PAD
from starec_env.data.cut import rows_only, with_events
from starec_env.errors import InvalidOption
from starec_env.recommend.responses import NOTHING, Responses
from starec_env.types import Dataset, History, Id
from starec_eval.recommenders import Recommender, Request

Ints = NDArray[np.int64]

ROUND_S, STEP_S = 86_400, 60
"""Seconds of simulated time from one round to the next, and from one slate to the next: a visit a day."""


class World:
    """The data set before the loop, and the events since then.

    Args:
        dataset: As the responder has it.
        stops: (n_users,) the row before which each user's history ends when the loop begins.
        users: (n,) indices of those who visit; row r of everything below is user `users[r]`.
        most: Most items that a user can take in all rounds.
    """

    def __init__(self, dataset: Dataset, stops: Ints, users: Ints, most: int) -> None:
        first = dataset.starts
        self.before = rows_only(dataset, first, np.maximum(stops, first))
        self.users = users
        self.ids: list[Id] = dataset.user_ids[users].tolist()
        self._begun = int(dataset.timestamps.max(initial=0))
        lengths = np.diff(self.before.indptr)[users]
        self._length = lengths.copy()
        self._history = np.full((len(users), int(lengths.max(initial=0)) + most), PAD, np.int32)
        rows, at = _within(lengths)
        self._history[rows, at] = self.before.item_indices[self.before.indptr[users][rows] + at]
        self.met = met_before(dataset, stops, users)
        self.allowed = ~self.met
        self._events: list[tuple[Ints, Ints, NDArray[np.float32], int]] = []

    def begin(self, rows: Ints) -> None:
        """Let users at rows begin a visit, in which nothing was shown yet."""
        self.allowed[rows] = ~self.met[rows]

    def slates(self, recommender: Recommender, name: str, rows: Ints, k: int) -> Ints:
        """(n, k) slates that a recommender shows to the users at (n,) rows.

        Raises:
            InvalidOption: It shows something else than k distinct allowed items to each.
        """
        longest = max(1, int(self._length[rows].max()))
        begins = self._length[rows, None] - longest + np.arange(longest)
        history = np.where(begins >= 0, self._history[rows[:, None], np.maximum(begins, 0)], PAD)
        ids = [self.ids[row] for row in rows.tolist()]
        asked = Request(ids, history, self.allowed[rows], partial(self._past, rows))
        slates = _as_array(recommender.recommend(asked, k))
        _check_slates(slates, asked, k, name)
        return slates.astype(np.int64)

    def note(self, rows: Ints, round_: int, step: int, slates: Ints, given: Responses) -> None:
        """Record what users at rows answered to slates."""
        self.allowed[rows[:, None], slates] = False
        took = np.flatnonzero(given.taken != NOTHING)
        who, items = rows[took], slates[took, given.taken[took]]
        self._history[who, self._length[who]] = items
        self._length[who] += 1
        self.met[who, items] = True
        ratings = self._ratings(given.stars[took], given.liked[took])
        self._events.append((who, items, ratings, self._begun + ROUND_S * round_ + STEP_S * step))

    def recorded(self) -> Dataset:
        """The data set as it is now."""
        who, items, ratings, times = self._columns()
        return with_events(self.before, self.users[who], items, ratings, times)

    def _ratings(self, stars: NDArray[np.float32], liked: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Stars; where none were given, such as make the event count as liked or not."""
        silent = self.before.liked_above + liked.astype(np.float32)
        return np.where(np.isnan(stars), silent, stars).astype(np.float32)

    def _columns(self) -> tuple[Ints, Ints, NDArray[np.float32], Ints]:
        if not self._events:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64)
        who, items, ratings = (np.concatenate([event[n] for event in self._events]) for n in range(3))
        times = np.concatenate([np.full(len(event[0]), event[3], np.int64) for event in self._events])
        return who, items, ratings, times

    def _past(self, rows: Ints, place: int) -> History:
        row = int(rows[place])
        user, before = int(self.users[row]), self.before
        history = History(before, user, int(before.indptr[user]), int(before.indptr[user + 1]))
        who, items, ratings, times = self._columns()
        own = who == row
        return history.extended(items[own], ratings[own], ratings[own] > before.liked_above, times[own])


def met_before(dataset: Dataset, stops: Ints, users: Ints) -> NDArray[np.bool_]:
    """(n, n_items) what each of (n,) users has met before the loop, outside the window of the sequence too."""
    first = dataset.indptr[users]
    rows, at = _within(np.maximum(stops[users] - first, 0))
    met = np.zeros((len(users), dataset.n_items), np.bool_)
    met[rows, dataset.item_indices[first[rows] + at]] = True
    return met


def _within(lengths: Ints) -> tuple[Ints, Ints]:
    """Row and 0-based place of each cell of rows of these lengths."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.arange(len(rows)) - np.repeat(lengths.cumsum() - lengths, lengths)


def _as_array(slates: Any) -> NDArray[Any]:
    try:
        return np.asarray(slates)
    except ValueError:  # its rows aren't equally long
        return np.asarray(None)


def _check_slates(slates: NDArray[Any], asked: Request, k: int, name: str) -> None:
    n, n_items = asked.allowed.shape
    if slates.shape != (n, k) or slates.dtype.kind not in "iu":
        raise InvalidOption(
            f"recommender {name} gave slates of shape {slates.shape} and type {slates.dtype}: wanted ({n}, {k}) "
            "catalogue indices"
        )
    outside = (slates < 0) | (slates >= n_items)
    met = ~outside & ~np.take_along_axis(asked.allowed, np.where(outside, 0, slates), axis=1)
    ordered = np.sort(slates, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    for wrong, why in ((outside.any(axis=1), "an item that isn't in the catalogue"), (twice, "an item twice")):
        _refuse(wrong, slates, asked.users, name, why)
    _refuse(met.any(axis=1), slates, asked.users, name, "an item that isn't allowed: met, or shown in this visit")


def _refuse(wrong: NDArray[np.bool_], slates: NDArray[Any], users: Sequence[Id], name: str, why: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise InvalidOption(f"recommender {name} showed user {users[row]!r} {slates[row].tolist()}, which has {why}")
