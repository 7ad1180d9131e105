"""What a card asks, all of it about what real users did later than anything that the user model saw."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.cases import Cases
from starec_env.data.cut import Ints, rows_only
from starec_env.dataset import Dataset, Indices
from starec_env.errors import InvalidOption, check_whole
from starec_eval.protocol import Protocol

RATIOS = (1, 2, 3, 9)
"""m of Agent4Rec's 1:m: items never touched for each that was."""
OFFERED = 20
"""Most items of an offer."""
HELD_OUT = 0.1
"""The last share of each user's rows that ratings and offers are about."""
_OFFERS, _UNTOUCHED, _ROWS = 0x4F46, 0x554E, 0x524F
_FEWEST, _MOST_VALUES = 20, 10


@dataclass(frozen=True)
class Offers:
    """Items that users are asked yes or no about."""

    cases: Cases
    touched: NDArray[np.bool_]
    """(cases, n) which of them the user took later."""


@dataclass(frozen=True)
class Asked:
    """The questions of a card.

    Attributes:
        protocol: The held-out lists, and what recommenders train on.
        seed: Of all that is drawn.
        everybody: Whether ratings are asked of all users, or only of the tested ones.
        most_rows: Most ratings that are asked for, drawn at random; None for all.
    """

    protocol: Protocol
    seed: int = 0
    everybody: bool = True
    most_rows: int | None = None

    def __post_init__(self) -> None:
        if self.most_rows is not None:
            check_whole("most_ratings", self.most_rows)

    @property
    def dataset(self) -> Dataset:
        """As prepared, with everything that users did."""
        return self.protocol.dataset

    @cached_property
    def log(self) -> Dataset:
        """The same without windows: a user's past is all of it."""
        return replace(self.dataset, window=None)

    @cached_property
    def users(self) -> Ints:
        """(tested,) ascending indices of the users of the held-out lists."""
        return np.unique(self.protocol.cases.users)

    @cached_property
    def seen_of_lists(self) -> Dataset:
        """All users' rows, those of tested users before their targets: what a model sees that is asked about lists."""
        return rows_only(self.dataset, self.dataset.indptr[:-1], self.protocol.stops)

    @cached_property
    def lists(self) -> Cases:
        """The protocol's lists, in front of users' whole histories; nothing later is in `source`."""
        return self._from_the_end(self.seen_of_lists, self.protocol.cases)

    @cached_property
    def tenths(self) -> Ints:
        """(users,) the row where each user's held-out tenth begins; of a user of one row none is held out."""
        lengths = np.diff(self.dataset.indptr)
        held = np.where(lengths > 1, np.maximum(1, (HELD_OUT * lengths).astype(np.int64)), 0)
        return self.dataset.indptr[1:] - held

    @cached_property
    def seen_of_tenths(self) -> Dataset:
        """What a model sees that is asked about the last tenth of each user's rows."""
        return rows_only(self.dataset, self.dataset.indptr[:-1], self.tenths)

    @cached_property
    def rows(self) -> Ints:
        """(ratings,) ascending rows of `dataset` whose ratings are asked for."""
        owner = self.dataset.owner
        asked = np.arange(len(owner)) >= self.tenths[owner]
        if not self.everybody:
            asked &= np.isin(owner, self.users)
        rows = np.flatnonzero(asked)
        if self.most_rows is None or len(rows) <= self.most_rows:
            return rows
        return np.sort(np.random.default_rng((self.seed, _ROWS)).choice(rows, self.most_rows, replace=False))

    @cached_property
    def owners(self) -> Ints:
        """(ratings,) whose each is."""
        return np.searchsorted(self.dataset.indptr, self.rows, side="right") - 1

    @cached_property
    def offers(self) -> dict[int, list[Offers]]:
        """By m, what users are asked yes or no about."""
        return {ratio: self._of_ratio(ratio) for ratio in RATIOS}

    def _of_ratio(self, ratio: int) -> list[Offers]:
        """Offers of Agent4Rec's protocol, one a tested user, together by their length.

        Each is `20 // (ratio + 1)` items that the user takes later and `ratio` times as many that the user never
        touches, in random order; fewer where fewer are held out, as theirs.
        """
        rng = np.random.default_rng((self.seed, _OFFERS, ratio))
        found: dict[int, list[tuple[int, Indices, NDArray[np.bool_]]]] = {}
        for user in self.users.tolist():
            later = self.dataset.item_indices[self.tenths[user] : self.dataset.indptr[user + 1]]
            n = min(len(later), OFFERED // (ratio + 1))
            if not n:
                continue
            items = np.append(rng.permutation(later)[:n], self.never_met(user, n * ratio, rng)).astype(np.int32)
            order = rng.permutation(len(items))
            found.setdefault(n, []).append((user, items[order], order < n))
        return [self._offers(found[n]) for n in sorted(found)]

    def never_met(self, user: int, n: int, rng: np.random.Generator) -> Indices:
        """(n,) distinct items that a user never met, then or later, drawn alike."""
        met = np.zeros(self.dataset.n_items, np.bool_)
        met[self.dataset.item_indices[self.dataset.indptr[user] : self.dataset.indptr[user + 1]]] = True
        free = np.flatnonzero(~met)
        if len(free) < n:
            raise InvalidOption(
                f"user {self.dataset.user(user).id!r} never met only {len(free):,} items of {self.dataset.name}, "
                f"wanted {n:,} to ask about"
            )
        return rng.choice(free, n, replace=False).astype(np.int32)

    @cached_property
    def untouched(self) -> tuple[Dataset, Ints, Ints]:
        """Users' rows before their tenths and then one item they never touched, those items' rows, and the users."""
        users = np.arange(self.dataset.n_users) if self.everybody else self.users
        rng = np.random.default_rng((self.seed, _UNTOUCHED))
        items = np.concatenate([self.never_met(user, 1, rng) for user in users.tolist()])
        dataset, rows = appended(self.seen_of_tenths, users, items)
        return dataset, rows, users

    @cached_property
    def groups(self) -> dict[str, NDArray[np.bool_]]:
        """(users,) masks by name: thirds by activity, and demographics that 20 tested users share."""
        lengths = np.diff(self.seen_of_lists.indptr)
        cuts = np.quantile(lengths[self.users], [1 / 3, 2 / 3])
        third = np.searchsorted(cuts, lengths)
        names = (f"at most {cuts[0]:.0f} rows", f"{cuts[0]:.0f} to {cuts[1]:.0f} rows", f"more than {cuts[1]:.0f} rows")
        return {name: third == place for place, name in enumerate(names)} | self._demographics()

    def _demographics(self) -> dict[str, NDArray[np.bool_]]:
        people = self.dataset.demographics or []
        found: dict[str, NDArray[np.bool_]] = {}
        for key in sorted({key for person in people for key in person}):
            values = np.array([person.get(key, "") for person in people], dtype=object)
            counts = {value: int((values[self.users] == value).sum()) for value in sorted(set(values.tolist()))}
            if len(counts) <= _MOST_VALUES:
                found |= {f"{key} {value}": values == value for value, n in counts.items() if value and n >= _FEWEST}
        return found

    def _offers(self, rows: list[tuple[int, Indices, NDArray[np.bool_]]]) -> Offers:
        users, items, touched = (np.stack(column) for column in zip(*rows, strict=True))
        cases = cases_of(self.seen_of_tenths, users.astype(np.int64), items, touched.argmax(1))
        return Offers(cases, touched)

    @staticmethod
    def _from_the_end(seen: Dataset, cases: Cases) -> Cases:
        first, stop = seen.indptr[cases.users], seen.indptr[cases.users + 1]
        return replace(cases, source=seen, first=first, stop=stop)


def cases_of(seen: Dataset, users: Ints, candidates: Indices, targets: Ints | None = None) -> Cases:
    """Cases of users after all their rows of a data set; targets are 0 where none is meant."""
    n = len(users)
    zeros = np.zeros(n, np.int64)
    places = zeros if targets is None else targets
    liked = np.ones(n, np.bool_)
    return Cases(seen, zeros, users, zeros, seen.indptr[users], seen.indptr[users + 1], places, candidates, liked)


def appended(
    dataset: Dataset, users: NDArray[np.integer[Any]], items: NDArray[np.integer[Any]], ratings: Any = None
) -> tuple[Dataset, Ints]:
    """A data set in which (n,) distinct users have one row more, and (n,) those rows.

    Args:
        dataset: Whose rows.
        users: (n,) ascending.
        items: (n,) catalogue indices.
        ratings: (n,); None for the lowest rating of the data set, where a rating isn't to be read.
    """
    at = dataset.indptr[users + 1]
    given = np.full(len(users), dataset.ratings.min(initial=0)) if ratings is None else ratings
    last = np.maximum(at - 1, dataset.indptr[users])
    when = dataset.timestamps[np.minimum(last, len(dataset.timestamps) - 1)] if dataset.n_interactions else 0
    lengths = np.diff(dataset.indptr) + np.bincount(users, minlength=dataset.n_users)
    made = replace(
        dataset,
        indptr=np.append(0, lengths.cumsum()),
        item_indices=np.insert(dataset.item_indices, at, items),
        ratings=np.insert(dataset.ratings, at, given),
        timestamps=np.insert(dataset.timestamps, at, when),
        nanoseconds=None,
        file_order=None,
        window=None,
        source=None,
    )
    return made, made.indptr[users + 1] - 1
