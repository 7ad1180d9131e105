"""A data set: its items, its users, and their interactions as arrays.

Two kinds of number name an item or a user. An *id* is what the data set's own files say (an int for MovieLens, a
string for Amazon) and stands in everything a person reads. An *index* is the 0-based row in the catalogue, dense,
and stands in arrays and observations. `dataset.items[index].id` and `dataset.item_index(id)` lead from one to
the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.errors import InvalidOption, UnknownName, unknown

Id = int | str
"""An item's or a user's id in the data set's own files."""

LIKED_ABOVE = 3.0
"""Ratings above this are likes where a data set doesn't say otherwise (paper 5.1.1, for scales of 1 to 5)."""

Indices = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Item:
    """An item of the catalogue: its id, its title and its other attributes (e.g. year, genres) as text."""

    id: Id
    title: str
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class User:
    """A user: the id and, where the data set has them, demographics (e.g. gender, age, occupation) as text."""

    id: Id
    demographics: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Interaction:
    """One user's rating of one item at one time (seconds since 1970)."""

    user_id: Id
    item_id: Id
    rating: float
    timestamp: int
    liked: bool
    """Whether the rating exceeds the data set's `liked_above`."""


_COLUMNS = ("item_indices", "ratings", "timestamps", "nanoseconds", "file_order")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A catalogue, its users and their interactions, held as arrays in CSR order by user.

    User u's interactions are rows `indptr[u]:indptr[u + 1]` of the columns, oldest first. Rows from `window[u]` on are
    the user's sequence; rows before it were cut off by `prepare(max_length=...)` and count only as things the user
    has met, so that they are never drawn as negatives. Arrays are read-only.
    """

    name: str
    domain: str
    """What an item is called in prompts: "movie", "music", "item" or any other noun."""
    items: Sequence[Item]
    user_ids: NDArray[Any]
    """(users,) ids: int64, or strings as objects, which keep any length and character."""
    indptr: NDArray[np.int64]
    """(users + 1,) where each user's rows begin and end."""
    item_indices: Indices
    """(interactions,) 0-based catalogue index of each row's item."""
    ratings: NDArray[np.float32]
    """(interactions,)."""
    timestamps: NDArray[np.int64]
    """(interactions,) seconds since 1970."""
    demographics: Sequence[Mapping[str, str]] | None = None
    """A mapping a user, or None where the data set has none."""
    window: NDArray[np.int64] | None = None
    """(users,) first row of each user's sequence; None means all rows."""
    notes: tuple[str, ...] = ()
    """What the loader and the preparation met and did, e.g. "5 items have no title"."""
    liked_above: float = LIKED_ABOVE
    """Ratings above this are likes: a property of the data's scale."""
    nanoseconds: NDArray[np.int32] | None = None
    """(interactions,) nanoseconds after `timestamps`, 0 to 999,999,999; None where times are whole seconds."""
    file_order: NDArray[np.int32] | None = None
    """(interactions,) ascending as in the data's own files, by which a user's rows of equal time can be put in that
    order again; None where they are in it."""
    source: Mapping[str, Any] | None = None
    """How to load and prepare it again, as `DataSpec` has it; None for a table in memory."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "liked_above", check_liked_above(self.liked_above))
        self._freeze()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__.pop("liked", None)
        self._freeze()  # NumPy's arrays forget in a pickle that they are read-only

    def _freeze(self) -> None:
        for name in ("user_ids", "indptr", "window", *_COLUMNS):
            if (array := getattr(self, name)) is not None:
                frozen = array.view()
                frozen.flags.writeable = False
                object.__setattr__(self, name, frozen)

    def with_rows(self, rows: NDArray[Any], **changes: Any) -> Dataset:
        """A data set with other rows: all columns at an index array or mask, and whatever else changes with them.

        Its `source` is None unless given, since loading the source gives the old rows.

        Args:
            rows: Rows to keep, in their new order.
            changes: Fields to replace besides, above all `indptr` and `window` where users' rows move.
        """
        columns = {name: column[rows] for name in _COLUMNS if (column := getattr(self, name)) is not None}
        return replace(self, **{"source": None, **columns, **changes})

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        """Number of items in the catalogue."""
        return len(self.items)

    @property
    def n_interactions(self) -> int:
        """Number of interactions, those outside the users' windows included."""
        return len(self.item_indices)

    @cached_property
    def liked(self) -> NDArray[np.bool_]:
        """(interactions,) whether each row's rating exceeds `liked_above`."""
        liked = self.ratings > self.liked_above
        liked.flags.writeable = False
        return liked

    @property
    def owner(self) -> NDArray[np.int64]:
        """(interactions,) the user index of each row; made anew each time, as it is large."""
        return np.repeat(np.arange(self.n_users), np.diff(self.indptr))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(users,) first row of each user's sequence."""
        return self.indptr[:-1] if self.window is None else self.window

    @cached_property
    def longest(self) -> int:
        """Length of the longest sequence."""
        return int((self.indptr[1:] - self.starts).max(initial=0))

    @cached_property
    def _user_index(self) -> dict[Id, int]:
        return {uid: index for index, uid in enumerate(self.user_ids.tolist())}

    @cached_property
    def _item_index(self) -> dict[Id, int]:
        return {item.id: index for index, item in enumerate(self.items)}

    def user(self, index: int) -> User:
        """The user at a 0-based index."""
        user_id = self.user_ids[index]
        return User(
            user_id.item() if isinstance(user_id, np.generic) else user_id,
            self.demographics[index] if self.demographics else {},
        )

    def user_index(self, user_id: Id) -> int:
        """The 0-based index of a user's id; raises UnknownName with the nearest id that exists."""
        return _find(self._user_index, user_id, "user")

    def item_index(self, item_id: Id) -> int:
        """The 0-based catalogue index of an item's id; raises UnknownName with the nearest id that exists."""
        return _find(self._item_index, item_id, "item")

    def interaction(self, user: int, row: int) -> Interaction:
        """The interaction at a row of user index `user`."""
        return Interaction(
            self.user(user).id,
            self.items[self.item_indices[row]].id,
            float(self.ratings[row]),
            int(self.timestamps[row]),
            bool(self.ratings[row] > self.liked_above),
        )

    @cached_property
    def hash(self) -> str:
        """16 hex digits that change when an interaction, an id, a window or what counts as liked does."""
        digest = blake2b(digest_size=8)
        for column in (self.indptr, self.item_indices, self.ratings, self.timestamps, self.starts):
            digest.update(np.ascontiguousarray(column).tobytes())
        if self.liked_above != LIKED_ABOVE:
            digest.update(f"liked_above {self.liked_above!r}".encode())
        if self.nanoseconds is not None:
            digest.update(np.ascontiguousarray(self.nanoseconds).tobytes())
        digest.update("\0".join(map(str, self.user_ids.tolist())).encode())
        digest.update("\0".join(f"{item.id}\t{item.title}" for item in self.items).encode())
        return digest.hexdigest()

    def __deepcopy__(self, memo: object) -> Dataset:
        return self  # it never changes, and Gymnasium copies an environment's arguments with its spec

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, {self.n_users:,} users, {self.n_items:,} items, "
            f"{self.n_interactions:,} interactions)"
        )


def check_liked_above(value: Any) -> float:
    """The threshold of likes as a plain float; raises InvalidOption unless it is a finite number."""
    try:
        number = float(value) if isinstance(value, int | float | np.number) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidOption(f"liked_above={value!r}: wanted a finite number; ratings above it are likes")
    return number


_MOST_NEIGHBOURS = 20_000


def _find(table: Mapping[Id, int], given: Id, kind: str) -> int:
    # A command line gives "42" where the data set says 42; either is the same id if only one exists.
    from starec_env.data.ids import is_whole  # data sets are made of these types

    key = given.item() if isinstance(given, np.generic) else given
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise UnknownName(f"there is no {kind} {given!r}: wanted one id, an int or a string")
    for same in (key, str(key), int(key) if is_whole(str(key)) else key):
        if same in table:
            return table[same]
    numbers = [int(known) for known in table if isinstance(known, int) or is_whole(known)]
    if len(numbers) == len(table) > 0:  # a number that is spelled alike is no neighbour
        ids = f"{len(numbers):,} numbers from {min(numbers)} to {max(numbers)}"
        raise UnknownName(f"there is no {kind} {given!r}: the ids are {ids}")
    raise unknown(kind, given, table if len(table) <= _MOST_NEIGHBOURS else list(table)[:_MOST_NEIGHBOURS])
