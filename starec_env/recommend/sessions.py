"""Visits as environments see them: what was shown, taken and rated, and what a recommender may know of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from starec_env.dataset import Dataset
from starec_env.recommend.responses import Responder, Responses

Ints = NDArray[np.int64]
F = np.float32

REWARDS = ("clicks", "likes", "stars", "stay", "return")
"""What a step is rewarded for; all of them are in an environment's info."""

_BEFORE = np.int32(2**30)
"""The step of what was taken before the visit."""


class Sessions:
    """n users before a recommender, with the events that it knows of.

    Args:
        responder: Who answers.
        n: Rows.
        seed: Of the answers.
        width: Most events in an observation.
        k: Items of a slate.
    """

    def __init__(self, responder: Responder, n: int, seed: int, width: int, k: int) -> None:
        self.dataset, self.stops = responder.dataset, responder.stops
        self.visits = responder.open(n, seed)
        self.users, self.step = np.zeros(n, np.int64), np.zeros(n, np.int32)
        self._length = np.zeros(n, np.int64)
        self._events = np.full((n, 4, width), -1, np.int32)
        self._history, self._places, self._when, self._ratings = _columns(self._events)
        self._slate, self._taken = np.full((n, k), -1, np.int64), np.full(n, -1, np.int64)

    def begin(self, rows: Ints, users: Ints, visits: Ints) -> None:
        """Begin visits of users with the data set's history."""
        if not len(rows):
            return
        self.visits.begin(rows, users, visits, anew=True)
        self.users[rows], self.step[rows] = users, 0
        self._slate[rows], self._taken[rows] = -1, -1
        first, stop = self.dataset.starts[users], self.stops[users]
        width = self._history.shape[1]
        shown = np.maximum(first, stop - width)[:, None] + np.arange(width)
        inside = shown < stop[:, None]
        shown = np.where(inside, shown, 0)
        self._history[rows] = np.where(inside, self.dataset.item_indices[shown], -1)
        self._ratings[rows] = np.where(inside, self.dataset.ratings[shown], 0)
        self._places[rows], self._when[rows], self._length[rows] = -1, _BEFORE, inside.sum(axis=1)

    def show(self, rows: Ints, slates: Ints) -> Responses:
        """Show (m, k) slates at (m,) rows; of none nobody is asked."""
        given = self.visits.respond(rows, slates) if len(rows) else nothing(slates.shape[1])
        self._slate[rows], self._taken[rows] = slates, given.taken
        who = (given.taken >= 0).nonzero()[0]
        if len(who):
            at, places = rows[who], given.taken[who]
            self._note(at, slates[who, places], given.stars[who], places)
        self.step[rows] += 1
        return given

    def _note(self, rows: Ints, items: Ints, stars: NDArray[np.float32], places: Ints) -> None:
        full = rows[self._length[rows] == self._history.shape[1]]
        if len(full):
            self._events[full, :, :-1] = self._events[full, :, 1:]
            self._length[full] -= 1
        event = np.empty((len(rows), 4, 1), np.int32)
        item, place, when, rating = _columns(event)
        item[:, 0], place[:, 0], when[:, 0], rating[:, 0] = items, places, self.step[rows], stars
        rating[np.isnan(stars)] = 0
        self._events[rows, :, self._length[rows]] = event[:, :, 0]
        self._length[rows] += 1

    def rewards(self, given: Responses, over: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(rewards, n) what the last answers of all rows are worth, in the order of `REWARDS`.

        Args:
            given: The answers.
            over: (n,) whether the visit ended with it.
        """
        found = np.zeros((len(REWARDS), len(over)))
        found[0], found[1], found[2], found[3] = given.taken >= 0, given.liked, given.stars, ~given.left
        found[2, np.isnan(given.stars)] = 0
        ended = over.nonzero()[0]
        if len(ended):
            visits: Any = self.visits
            found[4, ended] = visits.returns(ended) if hasattr(visits, "returns") else np.nan
        return found

    def observe(self) -> dict[str, NDArray[Any]]:
        """What a recommender could know, one row a user; see `RecommendEnv`. No arrays are shared with later ones."""
        history, places, when, ratings = _columns(self._events.copy())
        return {
            "user": self.users.copy(),
            "history": history,
            "ratings": ratings,
            "places": places,
            "ages": np.maximum(self.step[:, None] - when, np.int32(-1)),
            "slate": self._slate.copy(),
            "taken": self._taken.copy(),
            "step": self.step.astype(np.int64),
        }


def nothing(k: int) -> Responses:
    """The answers of nobody to slates of k items."""
    flags = np.zeros(0, np.bool_)
    return Responses(flags.reshape(0, k), np.zeros(0, np.int64), np.zeros(0, F), flags, flags)


def _columns(events: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Views of (n, 4, width) events: items, places, steps, and ratings, which are the bits of float32."""
    return events[:, 0], events[:, 1], events[:, 2], events[:, 3].view(F)


def observation_space(dataset: Dataset, width: int, k: int, horizon: int) -> spaces.Dict:
    """The space of one row of what `Sessions.observe` gives."""
    last = dataset.n_items - 1
    return spaces.Dict(
        {
            "user": spaces.Discrete(dataset.n_users),
            "history": spaces.Box(-1, last, (width,), np.int32),
            "ratings": spaces.Box(min(0, dataset.ratings.min()), dataset.ratings.max(), (width,), F),
            "places": spaces.Box(-1, k - 1, (width,), np.int32),
            "ages": spaces.Box(-1, horizon, (width,), np.int32),
            "slate": spaces.Box(-1, last, (k,), np.int64),
            "taken": spaces.Discrete(k + 1, start=-1),
            "step": spaces.Discrete(horizon + 1),
        }
    )
