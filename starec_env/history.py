"""What is shown at a turn: a user's history and the candidates, views that pickle without the data set they are of."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from starec_env.dataset import Dataset, Id, Indices, Interaction, Item, User
from starec_env.errors import InvalidOption


class _Items(Protocol):
    def __getitem__(self, index: int, /) -> Item: ...


_JSON = b"["
_SMALL = 1300


class _Shown:
    """Items by catalogue index as a pickle carries them: packed until the first is asked for."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    @cached_property
    def _items(self) -> dict[int, Item]:
        packed = self._packed if self._packed[:1] == _JSON else zlib.decompress(self._packed)
        indices, *columns = json.loads(packed)
        return dict(zip(indices, map(Item, *columns), strict=True))

    def __getitem__(self, index: int, /) -> Item:
        return self._items[index]


def _pack(items: _Items, indices: Indices) -> bytes:
    # As columns: half the bytes that the objects take. Compressing them costs more time than all else, so only many.
    places = indices.tolist()
    shown = [items[index] for index in places]
    attributes = [i.attributes if type(i.attributes) is dict else dict(i.attributes) for i in shown]
    columns = places, [i.id for i in shown], [i.title for i in shown], attributes
    packed = json.dumps(columns, separators=(",", ":")).encode()
    return packed if len(packed) <= _SMALL else zlib.compress(packed, 1)


@dataclass(frozen=True, eq=False)
class _Events:
    """One user's interactions apart from any data set, with the columns that a History reads of a Dataset."""

    owner: User
    items: _Items
    item_indices: Indices
    ratings: NDArray[np.float32]
    liked: NDArray[np.bool_]
    timestamps: NDArray[np.int64]

    def user(self, _: int) -> User:
        return self.owner


_EVENT_COLUMNS = {"item_indices": np.int32, "ratings": np.float32, "liked": np.bool_, "timestamps": np.int64}


class History(Sequence[Interaction]):
    """What a user has done before a turn, oldest first: an immutable sequence that makes Interactions only when asked.

    Array users read `item_indices`, `ratings`, `liked` and `timestamps`, all of shape (length,). Two histories are
    equal if their users, interactions and items are. One pickles as its own interactions and items, without the data
    set that it is a view of.
    """

    __slots__ = ("_source", "_user", "_first", "_stop")

    def __init__(self, source: Dataset | _Events, user: int, first: int, stop: int) -> None:
        self._source, self._user, self._first, self._stop = source, user, first, stop

    @property
    def item_indices(self) -> Indices:
        """(length,) catalogue indices."""
        return self._source.item_indices[self._first : self._stop]

    @property
    def ratings(self) -> NDArray[np.float32]:
        """(length,) ratings."""
        return self._source.ratings[self._first : self._stop]

    @property
    def liked(self) -> NDArray[np.bool_]:
        """(length,) whether each was liked."""
        return self._source.liked[self._first : self._stop]

    @property
    def timestamps(self) -> NDArray[np.int64]:
        """(length,) seconds since 1970."""
        return self._source.timestamps[self._first : self._stop]

    @property
    def items(self) -> list[Item]:
        """The items, oldest first."""
        return [self._source.items[index] for index in self.item_indices.tolist()]

    def extended(self, item_indices: Any, ratings: Any, liked: Any, timestamps: Any) -> History:
        """A history in which more interactions follow, e.g. simulated ones; this one stays as it is.

        Args:
            item_indices: (n,) catalogue indices.
            ratings: (n,).
            liked: (n,) whether each was liked.
            timestamps: (n,) seconds since 1970.

        Raises:
            InvalidOption: If the columns aren't equally long, or an item isn't known: an unpickled history knows only
                its own items, not the catalogue.
        """
        more = dict(zip(_EVENT_COLUMNS, (item_indices, ratings, liked, timestamps), strict=True))
        if len({len(column) for column in more.values()}) != 1:
            lengths = ", ".join(f"{len(column)} {name}" for name, column in more.items())
            raise InvalidOption(f"a history can't be extended by {lengths}: give as many of each")
        _check_known(self._source.items, item_indices)
        columns = {
            name: np.concatenate([getattr(self, name), np.asarray(more[name], kind)])
            for name, kind in _EVENT_COLUMNS.items()
        }
        return _history(self._source.user(self._user), self._source.items, columns)

    def __len__(self) -> int:
        return self._stop - self._first

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, History):
            return NotImplemented
        return self._place() == other._place() or (
            self._source.user(self._user).id == other._source.user(other._user).id
            and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in _EVENT_COLUMNS)
            and (self._source.items is other._source.items or self.items == other.items)
        )

    def __hash__(self) -> int:
        return hash((self._source.user(self._user).id, self.item_indices.tobytes()))

    def __repr__(self) -> str:
        if not self:
            return "History(no interactions)"
        last, taste = self._source.items[int(self.item_indices[-1])], "liked" if self.liked[-1] else "disliked"
        return f"History({len(self)} interactions, the last {taste} {last.title!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        columns = {name: getattr(self, name).tobytes() for name in _EVENT_COLUMNS}
        return _unpickle_history, (
            self._source.user(self._user).id,
            _pack(self._source.items, self.item_indices),
            *columns.values(),
        )

    def __copy__(self) -> History:
        return self

    def __deepcopy__(self, memo: object) -> History:
        return self

    def _place(self) -> tuple[Dataset | _Events, int, int, int]:
        return self._source, self._user, self._first, self._stop

    @overload
    def __getitem__(self, index: int) -> Interaction: ...
    @overload
    def __getitem__(self, index: slice) -> list[Interaction]: ...
    def __getitem__(self, index: int | slice) -> Interaction | list[Interaction]:
        rows = range(self._first, self._stop)[index]
        return [*map(self._interaction, rows)] if isinstance(rows, range) else self._interaction(rows)

    def __iter__(self) -> Iterator[Interaction]:
        return map(self._interaction, range(self._first, self._stop))

    def _interaction(self, row: int) -> Interaction:
        source = self._source
        return Interaction(
            source.user(self._user).id,
            source.items[int(source.item_indices[row])].id,
            float(source.ratings[row]),
            int(source.timestamps[row]),
            bool(source.liked[row]),
        )


def _check_known(items: _Items, indices: Any) -> None:
    for index in map(int, indices):
        try:
            known = index >= 0 and items[index] is not None
        except (IndexError, KeyError):
            known = False
        if not known:
            raise InvalidOption(
                f"a history can't be extended by the item of index {index}, which isn't among those it knows: an "
                "unpickled history has only its own items, so extend the one of the data set, and pickle that"
            )


def _history(owner: User, items: _Items, columns: Mapping[str, NDArray[Any]]) -> History:
    for column in columns.values():
        column.flags.writeable = False
    return History(_Events(owner, items, **columns), 0, 0, len(columns["item_indices"]))


def _unpickle_history(user_id: Id, items: bytes, *columns: bytes) -> History:
    arrays: dict[str, NDArray[Any]] = {}
    for (name, kind), data in zip(_EVENT_COLUMNS.items(), columns, strict=True):
        arrays[name] = np.frombuffer(data, kind)
    return _history(User(user_id), _Shown(items), arrays)


class Candidates(Sequence[Item]):
    """The items to rank at a turn, in the order shown; `indices` has their catalogue indices, shape (n,).

    Two are equal if they show the same items in the same order. One pickles as the items that it shows.
    """

    __slots__ = ("_items", "indices")

    def __init__(self, items: _Items, indices: Indices) -> None:
        if indices.flags.writeable:
            indices = indices.view()
            indices.flags.writeable = False
        self._items, self.indices = items, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Candidates):
            return NotImplemented
        return np.array_equal(self.indices, other.indices) and (self._items is other._items or [*self] == [*other])

    def __hash__(self) -> int:
        return hash(self.indices.astype(np.int32, copy=False).tobytes())

    def __repr__(self) -> str:
        titles = [repr(item.title) for item in self[:3]] + ["..."] * (len(self) > 3)
        return f"Candidates({len(self)} items: {', '.join(titles)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle_candidates, (_pack(self._items, self.indices), self.indices.astype(np.int32).tobytes())

    def __copy__(self) -> Candidates:
        return self

    def __deepcopy__(self, memo: object) -> Candidates:
        return self

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self._items[i] for i in self.indices[index].tolist()]
        return self._items[int(self.indices[index])]

    def __iter__(self) -> Iterator[Item]:
        return (self._items[index] for index in self.indices.tolist())


def _unpickle_candidates(items: bytes, indices: bytes) -> Candidates:
    return Candidates(_Shown(items), np.frombuffer(indices, np.int32))
