"""Users who answer only what the log knows, and a mixture of two kinds of users."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from starec_env.dataset import Dataset
from starec_env.errors import InvalidOption, check_choice
from starec_env.recommend.responses import NOTHING, Follows, Responder, Responses, Visits, check_stops
from starec_env.splitmix import GOLDEN, STEP, seed_word, splitmix64, visit_words

Ints = NDArray[np.int64]

_WHO = np.uint64(6 * int(GOLDEN) % 2**64)
"""Of a step's numbers the sixth says who answers; the twin draws the first five."""


class Replay:
    """Users who take, of a slate, what they really took next, and nothing else; for off-policy checks.

    A user who is shown several of the items that the log has after `stops` takes the one that came first, with the
    rating of the log. Nothing is drawn. A user leaves when all of them are taken. What a user would have made of an
    item that the log doesn't have, nobody knows, and such an item is passed: takes are counted too low, the more so the
    less a recommender resembles the one that made the log (Li et al. 2011, "Unbiased offline evaluation of
    contextual-bandit-based news article recommendation algorithms").

    Args:
        dataset: The log.
        stops: (n_users,) the row before which each user's history ends; None: in the middle of the user's sequence.

    Raises:
        InvalidOption: `stops` isn't one of each user's rows.
    """

    def __init__(self, dataset: Dataset, stops: Ints | None = None) -> None:
        if stops is None:
            stops = (dataset.starts + dataset.indptr[1:]) // 2
        self.dataset, self.stops = dataset, check_stops(dataset, stops)

    def open(self, n: int, seed: int = 0) -> Visits:
        """Room for n users at once; the seed has no effect."""
        return _ReplayVisits(self, n)


class _ReplayVisits:
    def __init__(self, replay: Replay, n: int) -> None:
        self._replay = replay
        self._users = np.full(n, -1)
        self._left: list[dict[int, int]] = [{} for _ in range(n)]

    def begin(self, rows: NDArray[Any], users: NDArray[Any], visits: NDArray[Any], anew: bool = False) -> None:
        """See `Visits`."""
        data, stops = self._replay.dataset, self._replay.stops
        for row, user in zip(rows.tolist(), users.tolist(), strict=True):
            if self._users[row] == user and not anew:
                continue
            self._users[row] = user
            known = set(data.item_indices[data.indptr[user] : stops[user]].tolist())
            later = range(int(data.indptr[user + 1]) - 1, int(stops[user]) - 1, -1)  # of an item twice, the first row
            self._left[row] = {i: at for at in later if (i := int(data.item_indices[at])) not in known}

    def respond(self, rows: NDArray[Any], slates: NDArray[Any]) -> Responses:
        """See `Visits`."""
        data, n = self._replay.dataset, len(rows)
        taken, stars = np.full(n, NOTHING), np.full(n, np.nan, np.float32)
        for at, (row, slate) in enumerate(zip(rows.tolist(), slates.tolist(), strict=True)):
            found = [(self._left[row][item], place) for place, item in enumerate(slate) if item in self._left[row]]
            if found:
                log_row, taken[at] = min(found)
                stars[at] = data.ratings[log_row]
                del self._left[row][slate[taken[at]]]
        left = np.array([not self._left[row] for row in rows.tolist()], np.bool_)
        return Responses(np.ones(slates.shape, np.bool_), taken, stars, stars > data.liked_above, left)

    async def arespond(self, rows: NDArray[Any], slates: NDArray[Any]) -> Responses:
        """See `Visits`."""
        return self.respond(rows, slates)

    def follow(self, rows: NDArray[Any], slates: NDArray[Any], given: Responses) -> None:
        """See `Follows`."""
        for row, slate, taken in zip(rows.tolist(), slates.tolist(), given.taken.tolist(), strict=True):
            if taken != NOTHING:
                self._left[row].pop(slate[taken], None)

    async def afollow(self, rows: NDArray[Any], slates: NDArray[Any], given: Responses) -> None:
        """See `Follows`."""
        self.follow(rows, slates, given)


class Mixed:
    """Two kinds of users: a share of the users, or of all steps, is of the first kind.

    Who is of which kind, or who answers a step, is drawn: a function of the seed and the user, and by steps of the
    visit and the step, too. By steps a user is one, whoever answers: the other kind goes on as if the answer had been
    its own.

    Args:
        first: Some users, e.g. agents.
        second: The others, e.g. the twin; of the same data set and stops.
        share: Of the first kind, 0 to 1.
        by: Whether a share of the users is meant, or of the steps.

    Raises:
        InvalidOption: The two are of other data, the share is out of range, or one can't go on from another's answers.
    """

    def __init__(
        self, first: Responder, second: Responder, share: float, by: Literal["users", "steps"] = "users"
    ) -> None:
        if not 0 <= share <= 1:
            raise InvalidOption(f"share={share}: wanted a number from 0 to 1")
        check_choice("by", by, ["users", "steps"])
        if first.dataset.hash != second.dataset.hash or not np.array_equal(first.stops, second.stops):
            raise InvalidOption("the two kinds of users are of other data, or their histories end elsewhere")
        self.first, self.second, self.share, self.by = first, second, share, by
        self.dataset, self.stops = first.dataset, first.stops

    def open(self, n: int, seed: int = 0) -> Visits:
        """Room for n users at once."""
        kinds = self.first.open(n, seed), self.second.open(n, seed)
        if self.by == "users":
            return _MixedVisits(kinds, self.share, n, seed)
        for kind in kinds:
            if not hasattr(kind, "follow"):
                raise InvalidOption(
                    f"{type(kind).__name__} can't go on from another's answers, as it has no `follow`: mix by users"
                )
        return _MixedSteps(cast(tuple[Follows, Follows], kinds), self.share, n, seed)


class _MixedVisits:
    def __init__(self, kinds: tuple[Visits, Visits], share: float, n: int, seed: int) -> None:
        self._kinds, self._share, self._seed = kinds, share, seed_word(seed)
        self._users = np.zeros(n, np.int64)

    def _words(self, rows: NDArray[Any]) -> NDArray[np.uint64]:
        users: NDArray[np.int64] = self._users[rows]
        return users.astype(np.uint64) * GOLDEN + self._seed

    def _parts(self, rows: NDArray[Any]) -> list[tuple[int, Ints]]:
        """Which kind answers, and at which of the rows."""
        first = (splitmix64(self._words(rows)) >> np.uint64(11)).astype(np.float64) * 2.0**-53 < self._share
        return [(kind, at) for kind, at in enumerate((np.flatnonzero(first), np.flatnonzero(~first))) if len(at)]

    def begin(self, rows: NDArray[Any], users: NDArray[Any], visits: NDArray[Any], anew: bool = False) -> None:
        """See `Visits`."""
        self._users[rows] = users
        for kind, at in self._parts(rows):
            self._kinds[kind].begin(rows[at], users[at], visits[at], anew)

    def respond(self, rows: NDArray[Any], slates: NDArray[Any]) -> Responses:
        """See `Visits`."""
        return _joined([(at, self._kinds[kind].respond(rows[at], slates[at])) for kind, at in self._parts(rows)])

    async def arespond(self, rows: NDArray[Any], slates: NDArray[Any]) -> Responses:
        """See `Visits`."""
        given = [(at, await self._kinds[kind].arespond(rows[at], slates[at])) for kind, at in self._parts(rows)]
        return _joined(given)


class _MixedSteps(_MixedVisits):
    _kinds: tuple[Follows, Follows]

    def __init__(self, kinds: tuple[Follows, Follows], share: float, n: int, seed: int) -> None:
        super().__init__(kinds, share, n, seed)
        self._visits, self._step = np.zeros(n, np.int64), np.zeros(n, np.int64)

    def _words(self, rows: NDArray[Any]) -> NDArray[np.uint64]:
        step: NDArray[np.int64] = self._step[rows]
        return visit_words(self._seed, self._users[rows], self._visits[rows]) + step.astype(np.uint64) * STEP + _WHO

    def begin(self, rows: NDArray[Any], users: NDArray[Any], visits: NDArray[Any], anew: bool = False) -> None:
        """See `Visits`."""
        self._users[rows], self._visits[rows], self._step[rows] = users, visits, 0
        for kind in self._kinds:
            kind.begin(rows, users, visits, anew)

    def respond(self, rows: NDArray[Any], slates: NDArray[Any]) -> Responses:
        """See `Visits`."""
        found = []
        for kind, at in self._parts(rows):
            given = self._kinds[kind].respond(rows[at], slates[at])
            self._kinds[1 - kind].follow(rows[at], slates[at], given)
            found.append((at, given))
        self._step[rows] += 1
        return _joined(found)

    async def arespond(self, rows: NDArray[Any], slates: NDArray[Any]) -> Responses:
        """See `Visits`."""
        found = []
        for kind, at in self._parts(rows):
            given = await self._kinds[kind].arespond(rows[at], slates[at])
            await self._kinds[1 - kind].afollow(rows[at], slates[at], given)
            found.append((at, given))
        self._step[rows] += 1
        return _joined(found)


def _joined(parts: list[tuple[Ints, Responses]]) -> Responses:
    """Answers at places put together in their order."""
    order = np.argsort(np.concatenate([at for at, _ in parts]))

    def column(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(given, name) for _, given in parts])[order]

    def texts(name: str) -> tuple[str, ...]:
        if not any(getattr(given, name) for _, given in parts):
            return ()
        found = [getattr(given, name) or ("",) * len(at) for at, given in parts]
        return tuple(np.concatenate([np.array(part, object) for part in found])[order].tolist())

    return Responses(
        column("seen"),
        column("taken"),
        column("stars"),
        column("liked"),
        column("left"),
        texts("said"),
        texts("problems"),
    )
