"""The nouns of the project: what a data set, a turn, a ranking, a memory and a step are.

Two kinds of number name an item or a user. An *id* is what the data set's own files say (an int for MovieLens, a
string for Amazon) and stands in everything a person reads. An *index* is the 0-based row in the catalogue, dense,
and stands in arrays and observations. `dataset.items[index].id` and `dataset.item_index(id)` lead from one to
the other.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from typing import Annotated, Any, Protocol, Self, overload, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

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


@dataclass(frozen=True, slots=True)
class Query:
    """All that a ranker may see at a turn: never the target, never the future."""

    user: User
    history: History
    candidates: Candidates
    domain: str = "item"

    def __reduce__(self) -> tuple[Any, ...]:
        # Half the time that a frozen dataclass with slots takes to be unpickled.
        return Query, (self.user, self.history, self.candidates, self.domain)


@dataclass(frozen=True, slots=True)
class Turn:
    """What the environment and the scorer hold: the query, the candidate position of the truth, and if it was liked."""

    query: Query
    target: int
    """0-based candidate position of the item the user really took next."""
    liked: bool
    number: int
    """0-based place in the user's whole stream of turns; negatives are a function of (seed, user, number)."""

    @property
    def target_item(self) -> Item:
        """The item the user really took next."""
        return self.query.candidates[self.target]


class ParseReport(BaseModel):
    """What was wrong with a model's answer, a ranking or a new profile. Ties are noted, not wrong."""

    model_config = ConfigDict(frozen=True)

    cut_off: bool = False
    """It ended at the most tokens allowed, or within its thought: an unfinished answer is none."""
    empty: bool = False
    """There is no text, or none beside the thought."""
    no_answer: bool = False
    """There is text, but nothing in it that could be an entry of a ranking, or a profile."""
    too_long: bool = False
    """Only the beginning was read."""
    missing: int = 0
    """Candidates that it doesn't rank; 0 where it ranks none at all."""
    repeated: int = 0
    """Entries that name a candidate once more; the first counts."""
    invented: int = 0
    """Entries that name no candidate."""
    tied: int = 0
    """Candidates whose score equals an earlier one's; they are in the order shown."""
    other: str = ""
    """What else was wrong, in words."""

    @property
    def valid(self) -> bool:
        """Whether nothing was wrong."""
        return not any(value for name, value in self if name != "tied")

    @property
    def kinds(self) -> list[str]:
        """Names of what was found, ties included."""
        return [name for name, value in self if value]

    @property
    def problems(self) -> tuple[str, ...]:
        """What was found, in words: "cut off", "missing: 3"."""
        found = ((name.replace("_", " "), value) for name, value in self if value and name != "other")
        counted = (name if value is True else f"{name}: {value}" for name, value in found)
        return (*counted, self.other) if self.other else tuple(counted)


class Ranking(BaseModel):
    """Candidate positions, best first; may be partial."""

    model_config = ConfigDict(frozen=True)

    order: tuple[int, ...]
    """Distinct 0-based candidate positions, best first."""
    text: str = ""
    """The answer it was read from, rationale included; empty for rankers that don't write."""
    report: ParseReport = ParseReport()
    """What was wrong with the answer."""

    def rank_of(self, position: int) -> int | None:
        """1-based rank of a candidate position; None when the ranking doesn't hold it."""
        try:
            return self.order.index(position) + 1
        except ValueError:
            return None

    @property
    def problems(self) -> tuple[str, ...]:
        """What was wrong with the answer, in words, e.g. "missing: 3", "repeated: 1"; see `report`."""
        return self.report.problems

    @property
    def valid(self) -> bool:
        """Whether the answer ranked each candidate exactly once and nothing else."""
        return self.report.valid


class Feedback(BaseModel):
    """What the user really did, beside what the ranking predicted (paper 4.1.3)."""

    model_config = ConfigDict(frozen=True)

    item_id: Id
    rank: int | None
    """1-based rank that the target was given; None when it was not ranked."""
    predicted_liked: bool
    liked: bool

    @property
    def agrees(self) -> bool:
        """Whether prediction and behaviour agree."""
        return self.predicted_liked == self.liked


class Memory(BaseModel):
    """An agent's memory (paper 4.1.1): the profile text, and what happened turn by turn. Updates return a new one."""

    model_config = ConfigDict(frozen=True)

    profile: str = ""
    history: tuple[str, ...] = ()
    """One line a turn learned from, oldest first."""

    def updated(self, *, profile: str | None = None, event: str | None = None) -> Self:
        """A new memory, of the same class, with the profile replaced, an event appended, or both."""
        changes: dict[str, Any] = {} if profile is None else {"profile": profile}
        if event is not None:
            changes["history"] = (*self.history, event)
        return self.model_copy(update=changes)


_Count = Annotated[int, Field(ge=0, lt=2**63)]


class Usage(BaseModel):
    """Tokens that a call cost."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0
    cached_tokens: _Count = 0
    """Prompt tokens that the server says it took from its prefix cache."""


class Call(BaseModel):
    """One request to a chat model, and its answer."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    kind: str
    """Which task asked: "rank" or "reflect" in our graphs; a user's graph may name its own."""
    messages: tuple[Mapping[str, str], ...]
    """The prompt: mappings with "role" and "content"."""
    completion: str
    reasoning: str | None = None
    """Thoughts that the server returned apart from the answer."""
    finish_reason: str | None = None
    usage: Usage = Usage()
    latency: float = 0.0
    """Seconds from first attempt to answer."""
    token_ids: tuple[_Count, ...] | None = None
    prompt_token_ids: tuple[_Count, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    """Natural-log probability of each completion token, where the server gives them."""
    stepped_down: tuple[str, ...] = ()
    """What the server had refused, and so was left out of or changed in the request."""
    report: ParseReport | None = None
    """How a memory update was read; None for other calls. A ranking's report is with the ranking."""

    @property
    def cut_off(self) -> bool:
        """Whether the answer ended at the most tokens allowed."""
        return self.finish_reason == "length"

    @property
    def answer(self) -> str:
        """The whole answer, with thoughts that came apart put before it between <think> tags."""
        return whole_answer(self.completion, self.reasoning)


def whole_answer(text: str, reasoning: str | None) -> str:
    """An answer with thoughts that came apart put before it, between <think> tags."""
    return f"<think>\n{reasoning}\n</think>\n{text}" if reasoning else text


class Step(BaseModel):
    """One finished turn of one user, with ids as in the data set's own files."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    user_id: Id
    turn: int
    """0-based number of the turn in the user's whole stream."""
    candidates: tuple[Id, ...]
    """Item ids in the order shown."""
    target: int
    """0-based candidate position of the true item."""
    ranking: Ranking
    feedback: Feedback
    reward: float
    calls: tuple[Call, ...] = ()
    memory_before: Memory = Memory()
    memory: Memory = Memory()
    """The memory after learning from the feedback."""


class Trajectory(BaseModel):
    """One user's steps in order, with what made them."""

    model_config = ConfigDict(frozen=True)

    user_id: Id
    steps: tuple[Step, ...]
    model: str
    graph: str
    seed: int


class Endpoint(BaseModel):
    """An OpenAI-compatible server and how to ask it. It holds the *names* of keys' variables, never a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    base_url: str
    """E.g. "http://localhost:8000/v1", or "https://HOST/openai/deployments/NAME?api-version=...": a query goes behind
    the path of each request. A "user:password@" in it is sent in place of the key."""
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; an unset one sends a placeholder, which local servers accept."""
    headers: Mapping[str, str] = Field(default_factory=dict)
    """More headers of each request. A value "env:NAME" is read from the environment variable NAME, so that a key stays
    out of records: {"api-key": "env:AZURE_KEY"}."""
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=2048, ge=1)
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds for one attempt."""
    max_retries: int = Field(default=5, ge=0)
    """Attempts after the first, for faults that can pass (connection, time-out, 5xx)."""
    max_wait_s: float = Field(default=1800.0, ge=0)
    """Seconds for which a call waits for rate limits (429), from the first refusal on; that costs no retries."""
    concurrency: int = Field(default=64, ge=1)
    """Most requests in flight; the adaptive limit moves below it."""
    extra_body: Mapping[str, Any] = Field(default_factory=dict)
    """Server-specific request fields, e.g. {"top_k": 0} for vLLM; None removes a field of ours."""


@runtime_checkable
class Ranker(Protocol):
    """Anything that orders a query's candidates: a baseline, or an agent."""

    def rank(self, query: Query) -> Ranking:
        """Rank the candidates of a query, best first."""
        ...
