"""A user's interactions as turns: what is asked, among which candidates, and what the answer is worth.

Everything random here is a pure function of (seed, user, turn number), so a turn is the same in any process, at any
concurrency and after any resume, whoever asks for it: the environments, a population of agents, or a baseline.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from starec_env.data.cut import windows_only
from starec_env.errors import InvalidOption, check_choice
from starec_env.replay.rewards import LIKED_CUTOFF, position_reward
from starec_env.splitmix import GOLDEN, splitmix64
from starec_env.types import Candidates, Dataset, Feedback, History, Id, Indices, Query, Ranking, Turn

Reward = Callable[[int | None], float]
"""What a 1-based rank is worth; None means the target was not ranked."""
Negatives = Literal["history", "truncated", "target"]
"""What negatives exclude: all that the user ever met, the sequence (the data set's window) alone, or the target alone.
"""
Met = Callable[[NDArray[np.int64], NDArray[Any]], NDArray[np.bool_]]
"""Whether items are excluded: (rows,) of whom or of what turn, and (rows, k) items, give (rows, k)."""

_ROWS_AT_ONCE = 2**15
_Words = NDArray[np.uint64]
_DELTA = np.uint64(0xD1B54A32D192ED03)


class Stream:
    """The turns of every user of a data set.

    A turn is an interaction of the user's sequence (the data set's window) that has at least `min_history` others
    before it, and that was liked, unless `targets` is "all". The last liked one is held out, whatever `targets` are
    (leave-one-out, paper 5.1.1), with what follows it: only `split="test"` goes on to them. Turns are
    numbered from 0 in the user's whole stream, whatever part is stepped.

    Args:
        dataset: Whose interactions to replay.
        n_candidates: Items to rank at a turn: the true one, and negatives.
        seed: Decides the negatives and where the true item stands among them; any non-negative integer.
        split: "train" stops before each user's held-out turn; "test" goes on to the last.
        targets: "liked" makes turns of liked interactions only (the others still enter the history); "all" of all.
        turns: Keep only the last so many turns of each user; None keeps all.
        min_history: Interactions that come before the first turn; an agent starts its memory from them.
        negatives: What a user's negatives exclude: "history", all that the user ever met, rows before the window
            included; "truncated", the window alone; "target", only the turn's own target.

    A user for whom too few items are left as negatives has no turn, which `notes` tell; `require` refuses one by name.

    Attributes:
        rows: The row of the data set that each turn asks for, user after user; held-out turns included.
        begin: (n_users,) index into `rows` of each user's first turn.
        end: (n_users,) index into `rows` after each user's last turn.
        held_out: (n_users,) the row that "train" stops before: the last liked turn's, the last's where none is liked,
            -1 where there is no turn.
        users: 0-based indices of the users who have a turn, ascending.
        notes: Who is left out, and why; empty if nobody is.
        liked: (n_interactions,) 1 or 0 for each row of the data set.
        seed: May be set anew at any time.

    Raises:
        InvalidOption: If an option is out of its range, or no user has a turn for which there are enough negatives.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        n_candidates: int = 20,
        seed: int = 0,
        split: str = "test",
        targets: str = "liked",
        turns: int | None = None,
        min_history: int = 5,
        negatives: Negatives = "history",
    ) -> None:
        check_choice("split", split, ("train", "test"))
        check_choice("targets", targets, ("liked", "all"))
        check_choice("negatives", negatives, ("history", "truncated", "target"))
        for name, value, least in (
            ("n_candidates", n_candidates, 2),
            ("turns", turns, 1),
            ("min_history", min_history, 0),
        ):
            if value is not None and value < least:
                raise InvalidOption(f"{name} is {value}: it must be at least {least}")
        self.dataset, self.n_candidates, self.seed = dataset, n_candidates, seed
        self.seen = Seen(windows_only(dataset)) if negatives == "truncated" else _seen(dataset)
        self._min_history, self._negatives = min_history, negatives
        self.liked = dataset.liked.view(np.int8)
        firsts = np.repeat(dataset.starts + min_history, np.diff(dataset.indptr))
        asked = np.arange(dataset.n_interactions) >= firsts
        self.rows = np.flatnonzero(asked & self.liked.view(np.bool_) if targets == "liked" else asked)
        bounds = np.searchsorted(self.rows, dataset.indptr)
        self._numbered_from = bounds[:-1]
        self.held_out = self._held_out(bounds)
        stops = np.searchsorted(self.rows, self.held_out)
        self.end = bounds[1:] if split == "test" else np.maximum(bounds[:-1], stops)
        self.begin = bounds[:-1] if turns is None else np.maximum(bounds[:-1], self.end - turns)
        having = self.end > self.begin
        if not having.any():
            raise InvalidOption(
                f"no user of {dataset!r} has a turn with split={split!r}, targets={targets!r} and "
                f"min_history={min_history}: {_advice(dataset, targets)}"
            )
        self._left = self.seen.unseen if negatives != "target" else np.full(dataset.n_users, dataset.n_items - 1)
        self.end = np.where(self._left < n_candidates - 1, self.begin, self.end)
        self.users = np.flatnonzero(self.end > self.begin)
        self.notes = self._left_out(np.flatnonzero(having & (self.end == self.begin)))

    def _held_out(self, bounds: NDArray[np.int64]) -> NDArray[np.int64]:
        likes = np.append(-1, self.rows[self.liked[self.rows] > 0])
        last = likes[np.searchsorted(likes, self.dataset.indptr[1:]) - 1]
        rows = np.append(self.rows, -1)
        last = np.where(last >= self.dataset.indptr[:-1], last, rows[bounds[1:] - 1])
        return np.where(bounds[1:] > bounds[:-1], last, -1)

    def _left_out(self, dense: NDArray[np.int64]) -> tuple[str, ...]:
        if not len(dense):
            return ()
        wanted, items, most = self.n_candidates - 1, self.dataset.n_items, int(self._left[dense].max())
        if not len(self.users):
            raise InvalidOption(
                f"nobody is left to ask: none of the {len(dense):,} users with a turn has {wanted} of the {items:,} "
                f"items left as negatives, {most} at most: {_fewer(most)}"
            )
        first = int(dense[0])
        note = (
            f"{len(dense):,} of {len(dense) + len(self.users):,} users are left out, as fewer than {wanted} of the "
            f"{items:,} items are left as their negatives (user {self.dataset.user(first).id!r}: {self._left[first]})"
        )
        return (f"{note}: {_fewer(most)} to ask more of them" if most else note,)

    def __repr__(self) -> str:
        return f"Stream({self.dataset!r}, {len(self.users):,} users with a turn)"

    def require(self, users: NDArray[np.integer]) -> None:
        """Raise InvalidOption, naming the first, if one of users of (n,) 0-based indices can't be asked.

        That is one without a turn, or with too few items left as negatives.
        """
        unable = users[self.end[users] == self.begin[users]]
        if not len(unable):
            return
        user, wanted = int(unable[0]), self.n_candidates - 1
        if self._left[user] < wanted:
            raise _too_few(self.dataset.user(user).id, int(self._left[user]), self.dataset.n_items, wanted)
        raise InvalidOption(
            f"user {self.dataset.user(user).id!r} has no turn with these options, which {len(self.users):,} of "
            f"{self.dataset.n_users:,} users have: lower min_history (now {self._min_history}), or leave the user out"
        )

    def turns(self, user: int) -> list[Turn]:
        """The turns of the user of a 0-based index, in order; empty if there are none."""
        return self.turns_of(np.array([user]))[0]

    def turns_of(self, users: NDArray[np.int64]) -> list[list[Turn]]:
        """The turns of users of (n,) 0-based indices; one call for many is faster than many calls."""
        lengths = self.end[users] - self.begin[users]
        who, stops = np.repeat(users, lengths), np.cumsum(lengths)
        index = np.arange(len(who)) + np.repeat(self.end[users] - stops, lengths)
        shown, places = self.candidates(who, index)
        shown.flags.writeable = False
        rows = self.rows[index]
        liked, numbers = self.liked[rows].view(np.bool_), self.numbers(who, index)
        ratings = self.dataset.ratings[rows].tolist()
        columns = zip(rows.tolist(), shown, places.tolist(), liked.tolist(), numbers.tolist(), ratings, strict=True)
        return [self._turns(*each, columns) for each in zip(users.tolist(), lengths.tolist(), strict=True)]

    def _turns(self, user: int, n: int, columns: Iterator[tuple[int, Indices, int, bool, int, float]]) -> list[Turn]:
        data, who, first = self.dataset, self.dataset.user(user), int(self.dataset.starts[user])
        return [
            Turn(
                Query(who, History(data, user, first, row), Candidates(data.items, shown), data.domain),
                at,
                liked,
                number,
                rating,
            )
            for row, shown, at, liked, number, rating in islice(columns, n)
        ]

    def numbers(self, users: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place of turns in their users' whole streams, from 0; both arguments and the result have shape (n,)."""
        return index - self._numbered_from[users]

    def candidates(self, users: NDArray[np.int64], index: NDArray[np.int64]) -> tuple[Indices, NDArray[np.int64]]:
        """What is shown at some turns.

        Args:
            users: (n,) each turn's user.
            index: (n,) each turn's index into `rows`.

        Returns:
            Catalogue indices of the candidates in the order shown, shape (n, n_candidates), and the position among
            them of the true item, shape (n,), uniform over the positions.
        """
        met: Met = self._is_target if self._negatives == "target" else self.seen.contains
        asked = index if self._negatives == "target" else users
        shown = np.empty((len(index), self.n_candidates), np.int32)
        places = np.empty(len(index), np.int64)
        for part in _parts(len(index)):
            keys = _keys(self.seed, users[part], self.numbers(users[part], index[part]))
            shown[part, :-1] = _negatives(keys, asked[part], self.n_candidates - 1, self.dataset.n_items, met)
            places[part] = _below(keys >> np.uint64(32), self.n_candidates)
        each = np.arange(len(index))
        shown[:, -1] = shown[each, places]
        shown[each, places] = self.dataset.item_indices[self.rows[index]]
        return shown, places

    def _is_target(self, index: NDArray[np.int64], items: NDArray[Any]) -> NDArray[np.bool_]:
        same: NDArray[np.bool_] = items == self.dataset.item_indices[self.rows[index]][:, None]
        return same

    def histories(
        self, users: NDArray[np.int64], stops: NDArray[np.int64], length: int
    ) -> tuple[Indices, NDArray[np.int8]]:
        """The last `length` interactions before some rows, oldest first, padded by -1 on the right.

        Args:
            users: (n,) whose history.
            stops: (n,) the row of the data set before which each history ends.
            length: Columns of the result.

        Returns:
            Catalogue indices, shape (n, length), and 1 where liked, 0 where not, shape (n, length).
        """
        columns = np.arange(length, dtype=np.int32)
        items, liked = np.empty((len(users), length), np.int32), np.empty((len(users), length), np.int8)
        for part in _parts(len(users)):
            firsts = np.maximum(self.dataset.starts[users[part]], stops[part] - length)
            items[part] = _rows_from(self.dataset.item_indices, firsts, length)
            liked[part] = _rows_from(self.liked, firsts, length)
            outside = columns >= (stops[part] - firsts).astype(np.int32)[:, None]
            # All bits set are -1.
            items[part] |= -outside.view(np.int8)
            liked[part] |= -outside.view(np.int8)
        return items, liked


def _advice(dataset: Dataset, targets: str) -> str:
    if targets == "liked" and dataset.n_interactions and not dataset.liked.any():
        return (
            f"no interaction is liked, as no rating exceeds liked_above={dataset.liked_above:g} (the highest is "
            f"{dataset.ratings.max():g}): load the data with a lower liked_above, or ask for targets='all'"
        )
    return "lower min_history, or prepare the data with more interactions a user"


def _rows_from(column: NDArray[Any], firsts: NDArray[np.int64], length: int) -> NDArray[Any]:
    # As windows, which copies rows whole: half the time of an index array. Beyond the column's end comes anything.
    last = len(column) - length
    rows: NDArray[Any] = sliding_window_view(column, length)[np.minimum(firsts, last)]
    for late in np.flatnonzero(firsts > last):
        rows[late, : len(column) - firsts[late]] = column[firsts[late] :]
    return rows


def _parts(n: int) -> Iterator[slice]:
    """Slices of n rows, so that the work arrays stay small however many there are."""
    return (slice(first, first + _ROWS_AT_ONCE) for first in range(0, n, _ROWS_AT_ONCE))


def judge(turn: Turn, ranking: Ranking, reward: Reward = position_reward) -> tuple[Feedback, float]:
    """What the user did at a turn beside what a ranking predicted (paper 4.1.3), and the ranking's reward (4.2.2).

    A target within the first LIKED_CUTOFF places counts as predicted liked. A target that the user disliked earns
    nothing wherever it was ranked.
    """
    return verdict(turn, ranking.rank_of(turn.target), reward)


def verdict(turn: Turn, rank: int | None, reward: Reward) -> tuple[Feedback, float]:
    """`judge`, for a target whose 1-based rank is known; None if it was not ranked."""
    feedback = feedback_on(turn.target_item.id, rank, turn.liked, turn.rating)
    return feedback, reward(rank) if turn.liked else 0.0


def feedback_on(item_id: Id, rank: int | None, liked: bool, rating: float | None) -> Feedback:
    """What the user did with a target, beside what its 1-based rank predicted."""
    predicted = rank is not None and rank <= LIKED_CUTOFF
    return Feedback(item_id=item_id, rank=rank, predicted_liked=predicted, liked=liked, rating=rating)


def sample_negatives(
    seed: int, users: NDArray[np.int64], turns: NDArray[np.int64], n: int, seen: "Seen"
) -> NDArray[np.int64]:
    """Draw distinct items that each user never interacted with, uniformly: a pure function of (seed, user, turn).

    Each row has an endless stream of draws from the catalogue, and gets the first n distinct unseen items of it.
    Draw i is a splitmix64 hash (Steele, Lea, Flood 2014) of (seed, user, turn, i): counter-based like Philox, so a row
    needs no state and depends on no other row, but a few array operations for all rows at once, where setting up one
    Philox generator a turn costs 10-20 us.

    Args:
        seed: Any non-negative integer.
        users: (rows,) 0-based user indices.
        turns: (rows,) numbers of the turns in their users' whole streams.
        n: How many for each row.
        seen: Which items the users have met.

    Returns:
        Catalogue indices, shape (rows, n).

    Raises:
        InvalidOption: If a user has fewer than n unseen items.
    """
    seen.check(users, n)
    return _negatives(_keys(seed, users, turns), users, n, seen.n_items, seen.contains)


def _negatives(
    keys: _Words, rows: NDArray[np.int64], n: int, n_items: int, met: Met, width: int | None = None
) -> NDArray[np.int64]:
    # How many draws are looked at, the width, doesn't change which are chosen.
    width = width or n + n // 4 + 2
    draws = _draws(keys, width, n_items)
    fresh = ~met(rows, draws)
    _drop_repeats(draws, fresh)
    count = fresh.cumsum(axis=1, dtype=np.int32)
    wanted, enough = fresh & (count <= n), count[:, -1] >= n
    if enough.all():
        return draws[wanted].reshape(-1, n)
    chosen = np.empty((len(rows), n), np.int64)
    chosen[enough] = draws[wanted & enough[:, None]].reshape(-1, n)
    chosen[~enough] = _negatives(keys[~enough], rows[~enough], n, n_items, met, 2 * width)
    return chosen


def _drop_repeats(draws: NDArray[np.int64], fresh: NDArray[np.bool_]) -> None:
    ordered = np.sort(draws, axis=1)
    rows = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    if not len(rows):
        return
    order = np.argsort(draws[rows], axis=1, kind="stable")
    ordered = ordered[rows]
    r, c = np.nonzero(ordered[:, 1:] == ordered[:, :-1])
    fresh[rows[r], order[r, c + 1]] = False


@lru_cache(maxsize=64)
def _seed_word(seed: int) -> np.uint64:
    word: np.uint64 = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    return word


def _keys(seed: int, users: NDArray[np.int64], turns: NDArray[np.int64]) -> _Words:
    # Two odd multipliers: no two (user, turn) of any size met in practice have the same sum.
    return splitmix64(_seed_word(seed) + GOLDEN * users.astype(np.uint64) + _DELTA * turns.astype(np.uint64))


def _draws(keys: _Words, width: int, below: int) -> NDArray[np.int64]:
    # Two draws a word, the low half first on any machine.
    words = splitmix64(keys[:, None] + GOLDEN * np.arange(1, width // 2 + 2, dtype=np.uint64))
    return _below(words.astype("<u8", copy=False).view("<u4")[:, :width], below)


def _below(halves: NDArray[Any], n: int) -> NDArray[np.int64]:
    # 32 random bits to 0 .. n - 1, uniform to within n / 2**32.
    return ((halves * np.uint64(n)) >> np.uint64(32)).view(np.int64)


class Seen:
    """Which items each user ever interacted with, rows outside the user's window included.

    A table of bytes has one for each user and item. Where that would exceed `most_bytes`, a smaller table indexed by a
    hash answers "never" at once, and only its other answers are looked up among the sorted interactions.

    Attributes:
        n_items: Size of the catalogue.
        unseen: (n_users,) how many items each user never met.
    """

    def __init__(self, dataset: Dataset, most_bytes: int = 256 * 2**20) -> None:
        self.n_items, self._user_ids = dataset.n_items, dataset.user_ids
        keys = dataset.owner * self.n_items + dataset.item_indices
        keys.sort()  # NumPy 2.4's np.unique hashes: 60 times as long, and more memory
        self._keys = keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]
        self.unseen = self.n_items - np.bincount(self._keys // self.n_items, minlength=dataset.n_users)
        cells = dataset.n_users * self.n_items
        self._dense = cells <= most_bytes
        bits = min(most_bytes, 16 * len(self._keys)).bit_length() - 1
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(cells if self._dense else 2**bits, np.bool_)
        self._table[self._keys if self._dense else self._slots(self._keys)] = True

    def contains(self, users: NDArray[np.int64], items: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each user met the items of its row: (n,) users and (n, k) items give (n, k)."""
        keys = users[:, None] * self.n_items + items
        met: NDArray[np.bool_] = self._table.take(keys if self._dense else self._slots(keys))
        if not self._dense:
            asked = keys[met]
            met[met] = self._keys.take(np.searchsorted(self._keys, asked), mode="clip") == asked
        return met

    def _slots(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        # Fibonacci hashing: the product's high bits.
        return ((keys.view(np.uint64) * GOLDEN) >> self._shift).view(np.int64)

    def check(self, users: NDArray[np.int64], n: int) -> None:
        """Raise InvalidOption, naming the user, if one of them has fewer than n items left unseen."""
        short = self.unseen[users] < n
        if short.any():
            user = int(users[short.argmax()])
            raise _too_few(self._user_ids[user], int(self.unseen[user]), self.n_items, n)


def _too_few(user_id: Any, left: int, n_items: int, n: int) -> InvalidOption:
    return InvalidOption(
        f"user {user_id} leaves only {left} of the {n_items:,} items as negatives, too few for {n}: "
        f"{f'{_fewer(left)}, or ' if left else ''}leave the user out"
    )


def _fewer(left: int) -> str:
    return f"lower n_candidates to {left + 1} or less" if left else "there is no item that could be a negative"


_SEEN: WeakKeyDictionary[Dataset, Seen] = WeakKeyDictionary()


def _seen(dataset: Dataset) -> Seen:
    # Many environments of one process stand on one data set; its table is made once and goes when the data set goes.
    if dataset not in _SEEN:
        _SEEN[dataset] = Seen(dataset)
    return _SEEN[dataset]
