"""The twin before a recommender: many users at once, one answer to a slate a step, in NumPy alone.

    look   a prefix of the slate: who looks at a place looks at the next one too with chance `look`
    take   whether and which by `Twin`, among the places looked at; what was met is never taken again
    rate   mean + beta mood + deviation * normal, put on the scale; the mood follows what was unexpected
    leave  by the step's place in the sitting, the likelier the worse the mood
    return within a day, by the log's share of such sittings, the likelier the better the mood

Each number drawn is a hash of (seed, user, visit, step) and of what it is for, so that an answer is a function of those
and of the slates shown before.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from starec_env.dataset import Dataset
from starec_env.recommend.calibrate import Calibration
from starec_env.recommend.met import Met
from starec_env.recommend.responses import NOTHING, Responses
from starec_env.recommend.twin import Twin, spans
from starec_env.splitmix import GOLDEN, STEP, seed_word, splitmix64, visit_words

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
F = np.float32

_SALTS = (np.arange(1, 6, dtype=np.uint64) * GOLDEN)[:, None]
"""One for each number of a step: looking, taking, two for the stars, leaving."""
_BACK = np.uint64(7 * int(GOLDEN) % 2**64)
"""The seventh: whether a user whose visit has ended comes back; the sixth is `Mixed`'s."""
_AHEAD = 32
"""Steps of a single user whose numbers are drawn together."""
_NEVER = F(-1e4)
"""Utility of an item that can't be taken; its odds are 0 exactly."""
_MOST = F(80)
"""No exponent is greater, so that no exponential overflows."""
_BLOCK = 512
"""Users whose slates' vectors are gathered together, so that they stay in the processor's cache."""


class Fitted(Protocol):
    """What `Steps` asks of a fitted model."""

    @property
    def dataset(self) -> Dataset:
        """Whose users and catalogue are meant."""
        ...

    @property
    def stops(self) -> Ints:
        """(n_users,) the row before which each user's history ends."""
        ...

    @property
    def calibration(self) -> Calibration:
        """What turns utilities into chances."""
        ...

    @property
    def returning(self) -> float:
        """Chance that a user in an even mood comes back within a day."""
        ...


class Steps:
    """How simulated users of a statistical model step; what they find useful and how they rate is a subclass's.

    Args:
        model: The twin, or another.
        n: Rows.
        seed: Of all that is drawn.
    """

    def __init__(self, model: Fitted, n: int, seed: int) -> None:
        dataset, calibration = model.dataset, model.calibration
        self._model, self._dataset, self._stops, self._known = model, dataset, model.stops, calibration
        self._seed, self._drawn_from = seed_word(seed), -1
        sizes = F(calibration.outside) + F(calibration.size) * np.log(np.arange(1, dataset.n_items + 1, dtype=F))
        self._sizes = np.append(F(0), sizes)
        """(n_items + 1,) what speaks against taking any of so many items."""
        self._slope, self._mood_leaves = F(calibration.slope), F(-calibration.mood_leaves)
        self._users, self._step = np.full(n, -1), np.zeros(n, np.int64)
        self._key = np.zeros(n, np.uint64)
        self._level, self._mood = np.zeros(n, F), np.zeros(n, F)
        self._met = Met(n, dataset.n_items)

    def begin(self, rows: NDArray[Any], users: NDArray[Any], visits: NDArray[Any], anew: bool = False) -> None:
        """See `Visits`."""
        rows, users, visits = (np.asarray(each, np.int64) for each in (rows, users, visits))
        self._key[rows], self._step[rows], self._drawn_from = visit_words(self._seed, users, visits), 0, -1
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
        looked, take, normal, leave = self._numbers(rows)
        looked = np.minimum(looked, slates.shape[1])
        seen = np.arange(slates.shape[1]) < looked[:, None]
        taken, stars = np.empty(len(rows), np.int64), np.empty(len(rows), F)
        taken.fill(NOTHING)
        stars.fill(np.nan)
        who, places = self._take(take, rows, slates, looked, seen)
        if len(who):
            at, items = rows[who], slates[who, places]
            taken[who], (stars[who], surprise) = places, self._rate(normal[who], at, items)
            self._take_in(at, items, surprise)
        left = self._leave(leave, rows)
        self._step[rows] += 1
        return Responses(seen, taken, stars, stars > self._known.liked_above, left)

    def follow(self, rows: NDArray[Any], slates: NDArray[Any], given: Responses) -> None:
        """See `Follows`."""
        who = np.flatnonzero(given.taken >= 0)
        at, items = rows[who], slates[who, given.taken[who]]
        self._take_in(at, items, np.nan_to_num(given.stars[who] - self._ratings(at, items)[0]))
        self._step[rows] += 1

    async def afollow(self, rows: NDArray[Any], slates: NDArray[Any], given: Responses) -> None:
        """See `Follows`."""
        self.follow(rows, slates, given)

    def _take_in(self, rows: NDArray[Any], items: Ints, surprise: Floats) -> None:
        """Let moods and states follow what was taken, and the stars that it got above their mean."""
        decay = self._known.mood_decay
        self._mood[rows] = F(decay) * self._mood[rows] + F(1 - decay) * surprise
        self._move(rows, items)
        self._met.add(rows, items)

    async def arespond(self, rows: NDArray[Any], slates: NDArray[Any]) -> Responses:
        """See `Visits`; a statistical model answers at once."""
        return self.respond(rows, slates)

    def _numbers(self, rows: NDArray[Any]) -> tuple[Ints, Floats, Floats, Floats]:
        """(n,) of a step: places looked at, and the numbers to take, to rate (a normal one) and to leave by."""
        step = self._step[rows]
        if len(self._key) > 1:
            return self._drawn(self._key[rows] + step.astype(np.uint64) * STEP)
        # Of one user many steps at once: what a number costs is then no more than where there are many users.
        first, at = divmod(int(step[0]), _AHEAD)
        if first != self._drawn_from:
            steps = np.arange(first * _AHEAD, (first + 1) * _AHEAD, dtype=np.uint64)
            self._drawn_from, self._ahead = first, self._drawn(self._key + steps * STEP)
        looked, take, normal, leave = self._ahead
        return looked[at : at + 1], take[at : at + 1], normal[at : at + 1], leave[at : at + 1]

    def _drawn(self, key: Words) -> tuple[Ints, Floats, Floats, Floats]:
        look, take, radius, angle, leave = _uniform(key)
        if self._known.look < 1:
            looked = 1 + (np.log(look) / F(np.log(self._known.look))).astype(np.int64)
        else:
            looked = np.full(len(key), self._dataset.n_items)
        return looked, take, _normal(radius, angle), leave

    def _take(
        self, drawn: Floats, rows: NDArray[Any], slates: NDArray[Any], looked: Ints, seen: NDArray[np.bool_]
    ) -> tuple[Ints, Ints]:
        """Who of the n takes something, and from which place."""
        z = self._utilities(rows, slates)
        np.putmask(z, self._met.has(rows, slates) | ~seen, _NEVER)
        top = z.T.copy().max(axis=0)  # ten times as fast as along short rows
        odds = np.exp(z - top[:, None], out=z).cumsum(axis=1)
        inclusive = np.log(odds[:, -1]) + top
        against = self._sizes[looked] + self._level[rows]
        against -= self._slope * inclusive
        # One number says whether, and if so which: u < p, and then u / p is uniform again.
        which = drawn * (1 + np.exp(np.minimum(against, _MOST)))
        who = ((which < 1) & (top > _NEVER)).nonzero()[0]
        if not len(who):
            return who, who
        odds = odds[who]
        places = (odds <= (which[who] * odds[:, -1])[:, None]).sum(axis=1)
        return who, np.minimum(places, looked[who] - 1)

    def _rate(self, normal: Floats, rows: NDArray[Any], items: Ints) -> tuple[Floats, Floats]:
        """(n,) stars for items taken, and how many more they are than their means, mood apart."""
        mean, deviation = self._ratings(rows, items)
        given = self._known.on_scale(mean + F(self._known.mood_stars) * self._mood[rows] + deviation * normal)
        return given, given - mean

    def _leave(self, drawn: Floats, rows: NDArray[Any]) -> NDArray[np.bool_]:
        chance = self._known.leave.take(self._step[rows], mode="clip")
        odds = chance * np.exp(self._mood_leaves * self._mood[rows])
        left: NDArray[np.bool_] = drawn * (1 - chance + odds) < odds
        return left

    def returns(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """See `Returns`: the likelier the better the mood at the end; drawn as all numbers of the step are."""
        words = splitmix64(self._key[rows] + self._step[rows].astype(np.uint64) * STEP + _BACK)
        chance = F(self._model.returning)
        odds = chance * np.exp(-self._mood_leaves * self._mood[rows])
        back: NDArray[np.bool_] = _unit(words) * (1 - chance + odds) < odds
        return back

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
        super().__init__(twin, n, seed)
        self._twin, choice, start = twin, twin.choice, twin.start
        self._near = F(self._known.near)
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
        if len(rows) > _BLOCK:
            parts = [slice(first, first + _BLOCK) for first in range(0, len(rows), _BLOCK)]
            return np.concatenate([self._utilities(rows[part], slates[part]) for part in parts])
        z: Floats = np.matmul(self._items.take(slates, axis=0), self._x[rows, :, None])[:, :, 0]
        if self._near:
            z += self._near * self._twin.followers.near(self._recent[rows], slates)
        return z

    def _ratings(self, rows: NDArray[Any], items: Ints) -> tuple[Floats, Floats]:
        stars, raters = self._twin.stars, self._twin.start.raters[self._users[rows]]
        return stars.mean(raters, items[:, None])[:, 0], stars.deviation(raters, items[:, None])[:, 0]

    def _move(self, rows: NDArray[Any], items: Ints) -> None:
        sums = self._sums[rows]
        sums *= self._decays
        sums += self._twin.choice.taken[items]
        self._sums[rows] = sums
        self._sum_up(rows, sums)
        self._recent[rows, 1:] = self._recent[rows, :-1]
        self._recent[rows, 0] = items


def _uniform(key: Words) -> Floats:
    """(5, n) numbers in (0, 1), of a step of n users."""
    return _unit(splitmix64(key + _SALTS))


def _unit(words: Words) -> Floats:
    return ((words >> np.uint64(40)).astype(F) + F(0.5)) * F(2**-24)


def _normal(radius: Floats, angle: Floats) -> Floats:
    """Standard normal numbers of two uniform ones each (Box and Muller 1958)."""
    found: Floats = np.sqrt(F(-2) * np.log(radius)) * np.cos(F(2 * np.pi) * angle)
    return found
