"""The twin before a recommender: many users at once, one answer to a slate a step, in NumPy alone.

    look   a prefix of the slate: who looks at a place looks at the next one too with chance `look`
    take   whether and which by `Twin`, among the places looked at; what was met is never taken again
    rate   mean + beta mood + deviation * normal, put on the scale; the mood follows what was unexpected
    leave  by the step's place in the sitting, the likelier the worse the mood

Each number drawn is a hash of (seed, user, visit, step) and of what it is for, so that an answer is a function of those
and of the slates shown before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.dataset import Dataset
from starec_env.recommend.met import Met
from starec_env.recommend.responses import NOTHING, Responses
from starec_env.recommend.twin import Calibration, Twin, spans
from starec_env.splitmix import GOLDEN, seed_word, splitmix64

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
F = np.float32

_SALTS = (np.arange(1, 6, dtype=np.uint64) * GOLDEN)[:, None]
"""One for each number of a step: looking, taking, two for the stars, leaving."""
_NEXT = GOLDEN << np.uint64(3)
"""From a step's key to the next's."""
_NEVER = F(-1e4)
"""Utility of an item that can't be taken; its odds are 0 exactly."""
_BLOCK = 512
"""Users whose slates' vectors are gathered together, so that they stay in the processor's cache."""


class Steps:
    """How simulated users of a statistical model step; what they find useful and how they rate is a subclass's.

    Args:
        dataset: Whose users and catalogue are meant.
        stops: (n_users,) the row before which each user's history ends.
        calibration: What turns utilities into chances.
        n: Rows.
        seed: Of all that is drawn.
    """

    def __init__(self, dataset: Dataset, stops: Ints, calibration: Calibration, n: int, seed: int) -> None:
        self._dataset, self._stops, self._known = dataset, stops, calibration
        self._seed = seed_word(seed)
        self._sizes = F(calibration.outside) + F(calibration.size) * np.log(np.arange(1, dataset.n_items + 1, dtype=F))
        self._users, self._step = np.full(n, -1), np.zeros(n, np.int64)
        self._key = np.zeros(n, np.uint64)
        self._level, self._mood = np.zeros(n, F), np.zeros(n, F)
        self._met = Met(n, dataset.n_items)

    def begin(self, rows: NDArray[Any], users: NDArray[Any], visits: NDArray[Any], anew: bool = False) -> None:
        """See `Visits`."""
        rows, users, visits = (np.asarray(each, np.int64) for each in (rows, users, visits))
        key = splitmix64(users.astype(np.uint64) * GOLDEN + self._seed)
        key += visits.astype(np.uint64) * GOLDEN
        self._key[rows], self._step[rows] = splitmix64(key), 0
        other = (self._users[rows] != users) | anew
        if other.any():
            self._restart(rows[other], users[other])

    def _restart(self, rows: Ints, users: Ints) -> None:
        """Give rows the state of users at `stops`."""
        self._users[rows], self._mood[rows] = users, 0
        self._met.clear(rows)
        owners, met = spans(self._dataset.indptr[users], self._stops[users])
        self._met.add(rows[owners], self._dataset.item_indices[met].astype(np.int64))

    def respond(self, rows: NDArray[Any], slates: NDArray[Any]) -> Responses:
        """See `Visits`."""
        key = self._key[rows]
        self._key[rows] = key + _NEXT
        look, take, radius, angle, leave = _uniform(key)
        looked = self._looked(look, slates.shape[1])
        seen = np.arange(slates.shape[1]) < looked[:, None]
        taken = self._take(take, rows, slates, looked, seen)
        stars = np.full(len(rows), np.nan, F)
        who = np.flatnonzero(taken >= 0)
        if len(who):
            at, items = rows[who], slates[who, taken[who]]
            stars[who] = self._rate(_normal(radius[who], angle[who]), at, items)
            self._move(at, items)
            self._met.add(at, items)
        left = self._leave(leave, rows)
        self._step[rows] += 1
        return Responses(seen, taken, stars, stars > self._known.liked_above, left)

    async def arespond(self, rows: NDArray[Any], slates: NDArray[Any]) -> Responses:
        """See `Visits`; a statistical model answers at once."""
        return self.respond(rows, slates)

    def _looked(self, drawn: Floats, k: int) -> Ints:
        """(n,) how many places of a slate of k each user looks at, at least one."""
        look = self._known.look
        if look >= 1:
            return np.full(len(drawn), k)
        return 1 + np.minimum(np.log(drawn) / F(np.log(look)), k - 1).astype(np.int64)

    def _take(
        self, drawn: Floats, rows: NDArray[Any], slates: NDArray[Any], looked: Ints, seen: NDArray[np.bool_]
    ) -> Ints:
        """(n,) places of what is taken, NOTHING where nothing is."""
        z = self._utilities(rows, slates)
        z[self._met.has(rows, slates) | ~seen] = _NEVER
        top = z.max(axis=1)
        odds = np.exp(z - top[:, None], out=z).cumsum(axis=1)
        inclusive = np.log(odds[:, -1]) + top
        against = self._sizes[looked - 1] + self._level[rows]
        against -= F(self._known.slope) * inclusive
        # One number says whether, and if so which: u < p, and then u / p is uniform again.
        which = drawn * (1 + np.exp(np.minimum(against, F(80))))
        place = (odds <= (which * odds[:, -1])[:, None]).sum(axis=1)
        return np.where((which < 1) & (top > _NEVER), np.minimum(place, looked - 1), NOTHING)

    def _rate(self, normal: Floats, rows: NDArray[Any], items: Ints) -> Floats:
        """(n,) stars for items taken; the moods move."""
        known, mood = self._known, self._mood[rows]
        mean, deviation = self._ratings(rows, items)
        given = known.on_scale(mean + F(known.mood_stars) * mood + deviation * normal)
        self._mood[rows] = F(known.mood_decay) * mood + F(1 - known.mood_decay) * (given - mean)
        return given

    def _leave(self, drawn: Floats, rows: NDArray[Any]) -> NDArray[np.bool_]:
        known = self._known
        chance = known.leave[np.minimum(self._step[rows], len(known.leave) - 1)]
        odds = chance * np.exp(F(-known.mood_leaves) * self._mood[rows])
        left: NDArray[np.bool_] = drawn * (1 - chance + odds) < odds
        return left

    def _utilities(self, rows: NDArray[Any], slates: NDArray[Any]) -> Floats:
        """(n, k) utilities of what is shown."""
        raise NotImplementedError

    def _ratings(self, rows: NDArray[Any], items: Ints) -> tuple[Floats, Floats]:
        """(n,) means and deviations of ratings of items taken, mood apart."""
        raise NotImplementedError

    def _move(self, rows: NDArray[Any], items: Ints) -> None:
        """Let states follow what was taken."""
        raise NotImplementedError


class TwinVisits(Steps):
    """`Visits` of a twin's users; see the module.

    What a user's ratings say (`Raters`) is that of the history when the user was first put at the row.

    Args:
        twin: Who answers.
        n: Rows.
        seed: Of all that is drawn.
    """

    def __init__(self, twin: Twin, n: int, seed: int) -> None:
        super().__init__(twin.dataset, twin.stops, twin.calibration, n, seed)
        self._twin, choice, start = twin, twin.choice, twin.start
        self._rank = choice.items.shape[1]
        # One gather and one product with [x, 1] give a utility; rows are padded to whole vectors of the processor.
        columns = np.concatenate([choice.items, choice.bias[:, None]], axis=1) * F(self._known.temperature)
        self._items = np.ascontiguousarray(np.pad(columns, ((0, 0), (0, -columns.shape[1] % 4))))
        self._decays = np.array(choice.decays, F)[None, :, None]
        self._sums = np.zeros((n, *start.sums.shape[1:]), F)
        self._x = np.zeros((n, self._items.shape[1]), F)
        self._x[:, self._rank] = 1
        self._recent = np.full((n, start.recent.shape[1]), -1)

    def _restart(self, rows: Ints, users: Ints) -> None:
        super()._restart(rows, users)
        start = self._twin.start
        self._sums[rows], self._recent[rows] = start.sums[users], start.recent[users]
        self._mood[rows] = start.mood[users]
        self._sum_up(rows, start.sums[users])

    def _sum_up(self, rows: Ints, sums: Floats) -> None:
        x = sums.sum(1)
        self._x[rows, : self._rank] = x
        self._level[rows] = F(self._known.level) * np.einsum("nr,nr->n", x, x)

    def _utilities(self, rows: NDArray[Any], slates: NDArray[Any]) -> Floats:
        z, near = np.empty(slates.shape, F), F(self._known.near)
        for first in range(0, len(rows), _BLOCK):
            part = slice(first, first + _BLOCK)
            some = slates[part]
            z[part] = np.matmul(self._items.take(some, axis=0), self._x[rows[part], :, None])[:, :, 0]
            if near:
                z[part] += near * self._twin.followers.near(self._recent[rows[part]], some)
        return z

    def _ratings(self, rows: NDArray[Any], items: Ints) -> tuple[Floats, Floats]:
        stars, raters = self._twin.stars, self._twin.start.raters[self._users[rows]]
        return stars.mean(raters, items[:, None])[:, 0], stars.deviation(raters, items[:, None])[:, 0]

    def _move(self, rows: NDArray[Any], items: Ints) -> None:
        sums = self._sums[rows] * self._decays + self._twin.choice.taken[items]
        self._sums[rows] = sums
        self._sum_up(rows, sums)
        self._recent[rows, 1:] = self._recent[rows, :-1]
        self._recent[rows, 0] = items


def _uniform(key: Words) -> Floats:
    """(5, n) numbers in (0, 1), of a step of n users."""
    words = splitmix64(key + _SALTS)
    return ((words >> np.uint64(40)).astype(F) + F(0.5)) * F(2**-24)


def _normal(radius: Floats, angle: Floats) -> Floats:
    """Standard normal numbers of two uniform ones each (Box and Muller 1958)."""
    found: Floats = np.sqrt(F(-2) * np.log(radius)) * np.cos(F(2 * np.pi) * angle)
    return found
