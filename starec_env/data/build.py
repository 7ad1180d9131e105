"""What every loader ends with: raw columns and a catalogue become a Dataset, and what was met becomes notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from starec_env.data.ids import check_readable, codes, is_whole
from starec_env.data.text import clean_text as clean_text
from starec_env.data.text import count_notes, counted, some, whole_text
from starec_env.data.text import guess_domain as guess_domain
from starec_env.data.ties import order_ties
from starec_env.data.times import split_times
from starec_env.errors import DataError
from starec_env.types import LIKED_ABOVE, Dataset, Id, Indices, Item, check_liked_above

LIKED = 5.0
"""The rating of interactions whose files give none: they happened, and count as liked."""
_Value = TypeVar("_Value")


@dataclass
class Rows:
    """Interactions as columns of equal length, in file order; ids are all ints or all strings."""

    users: NDArray[Any] | Sequence[Id]
    items: NDArray[Any] | Sequence[Id]
    ratings: NDArray[Any] | None
    """None where the data have none: every interaction then counts as liked."""
    timestamps: NDArray[Any] | None
    """Since 1970 in any one unit, int64, finite float64 or datetime64; None where the order of the rows is the time."""
    where: str = ""
    """Names the column of times in errors; the data set's name where empty."""
    parts: NDArray[Any] | None = None
    """The place of each row's file among those of a split, ascending: test never comes before training of one time."""


def build(
    name: str,
    domain: str,
    rows: Rows,
    catalogue: Mapping[Id, Item],
    *,
    demographics: Mapping[Id, Mapping[str, str]] | None = None,
    notes: Iterable[str] = (),
    liked_above: float | None = None,
) -> Dataset:
    """Make a Dataset: users sorted by id, rows by time at the resolution given, items in the catalogue's order.

    Rows of one user and one time keep the order of the file, unless that follows item ids (`follows_ids`): then a
    hash of user and item orders them (`hashed_order`), and `file_order` can restore the file's. A user's repeated
    interactions with an item are reduced to the earliest: a target that is already in the history would be no next
    item. The ids of the side tables are matched as number or as text, as the interactions have them. Items that only
    the interactions name are appended, and titled by their id, as are those without a title. Each of these is in the
    notes, with ratings that `liked_above` doesn't fit.

    Args:
        name: The data set's name.
        domain: What an item is called in prompts.
        rows: The interactions.
        catalogue: Items by id, in order; an empty title means none.
        demographics: Mappings by user id, or None where there are none.
        notes: What the loader met.
        liked_above: Ratings above this are likes; None means 3, for scales of 1 to 5. Without ratings all are liked.

    Raises:
        DataError: There are no interactions, ids or times aren't any, or no id of a side table is met.
        InvalidOption: `liked_above` isn't a finite number.

    Examples:
        >>> build("plays", "music", Rows(["ann", "ann"], ["b", "a"], None, None), {"a": Item("a", "Alba")})
        Dataset('plays', 1 users, 2 items, 2 interactions)
    """
    found = list(notes)
    threshold = check_liked_above(LIKED_ABOVE if liked_above is None else liked_above)
    if not len(rows.users):
        raise DataError(f"{name}: the files hold no interactions")
    user_ids, users = codes(rows.users, f"{name}: user ids")
    met, met_items = codes(rows.items, f"{name}: item ids")
    items = _catalogue(_matched(catalogue, met, name, "items", found), met, found)
    people = None if demographics is None else _matched(demographics, user_ids, name, "users", found)
    place = {item.id: index for index, item in enumerate(items)}
    item_indices = np.array([place[i] for i in met], np.int32)[met_items]
    if idle := len(items) - len(met):
        found.append(f"{counted(idle, 'item')} of the catalogue {'has' if idle == 1 else 'have'} no interaction")
    seconds, nanoseconds = _times(rows, rows.where or f"{name}: times", found)
    order = _by_time(users, seconds, nanoseconds)
    order = _without_repeats(order, users, met_items, len(met), found)
    times = (seconds, nanoseconds, rows.parts)
    file_order = order_ties(order, (users, met_items), (user_ids, met), times, found)
    if seconds is None:
        seconds = np.arange(len(users)) if file_order is None else np.zeros(len(users), np.int64)
    ratings, threshold = _ratings(rows.ratings, len(users), threshold, liked_above is None, found)
    return Dataset(
        name=name,
        domain=domain,
        items=items,
        user_ids=np.array(user_ids, object if isinstance(user_ids[0], str) else np.int64),
        indptr=np.concatenate(([0], np.cumsum(np.bincount(users[order], minlength=len(user_ids))))).astype(np.int64),
        item_indices=item_indices[order],
        ratings=ratings[order],
        timestamps=seconds[order],
        demographics=None if people is None else _demographics(people, user_ids, found),
        notes=tuple(dict.fromkeys(found)),
        liked_above=threshold,
        nanoseconds=None if nanoseconds is None else nanoseconds[order],
        file_order=file_order,
    )


def _matched(
    table: Mapping[Id, _Value], ids: Sequence[Id], name: str, what: str, notes: list[str]
) -> Mapping[Id, _Value]:
    """A side table by the interactions' ids, which it may have as text where they have numbers, or the reverse."""
    if not table:
        return table
    text = isinstance(ids[0], str)
    matched = {}
    for i, value in table.items():
        other: Id = str(i) if text else int(i) if isinstance(i, str) and is_whole(i) else i
        matched[i if other in table else other] = value  # where both are there each is itself
    if not text and (odd := [i for i in matched if isinstance(i, str)]) and len(odd) < len(matched):
        notes.append(f"{counted(len(odd), 'id')} of the table of {what} no whole number, left out: {some(odd)}")
        matched = {i: value for i, value in matched.items() if not isinstance(i, str)}
    if matched.keys() != table.keys():
        kinds = "numbers where the interactions have text" if text else "text where the interactions have numbers"
        notes.append(f"the table of {what} has ids as {kinds}: matched")
    found = sum(i in matched for i in ids)
    if not found:
        raise DataError(
            f"{name}: none of the {counted(len(ids), what[:-1])} of the interactions (e.g. {ids[0]!r}) is in the table "
            f"of {what} (e.g. {next(iter(table))!r}): give tables of one data set, and their columns of ids"
        )
    if found < len(ids) / 2:
        notes.append(
            f"only {found:,} of the {counted(len(ids), what[:-1])} of the interactions are in the table of {what}: "
            "check that they are of one data set"
        )
    return matched


def _catalogue(catalogue: Mapping[Id, Item], met: Sequence[Id], notes: list[str]) -> tuple[Item, ...]:
    """All items, each with a title and text that can be written: those of the catalogue, then others that were met."""
    check_readable(catalogue, "the table of items")
    items = [Item(i, whole_text(item.title), _whole_words(item.attributes)) for i, item in catalogue.items()]
    changed = sum(
        (old.title, old.attributes) != (new.title, new.attributes)
        for old, new in zip(catalogue.values(), items, strict=True)
    )
    unknown = [i for i in met if i not in catalogue]
    if unknown and catalogue:
        notes.append(f"{counted(len(unknown), 'item')} of the interactions missing from the catalogue: {some(unknown)}")
    if changed:
        notes.append(f"{counted(changed, 'item')} with half characters (lone surrogates) in the text: shown as \ufffd")
    items += [Item(i, "") for i in unknown]
    untitled = [index for index, item in enumerate(items) if not item.title]
    for index in untitled:
        items[index] = replace(items[index], title=f"Untitled item {items[index].id}")
    if untitled:
        verb = "has no title" if len(untitled) == 1 else "have no title"
        notes.append(f"{counted(len(untitled), 'item')} {verb}: shown as {items[untitled[0]].title!r} and so on")
    shared = {title: n for title, n in Counter(item.title for item in items).items() if n > 1}
    if shared:
        most = max(shared, key=lambda title: shared[title])
        notes.append(
            f"{counted(len(shared), 'title')} shared by {sum(shared.values()):,} items, most by {most!r} "
            f"({shared[most]}): kept, told apart by id"
        )
    return tuple(items)


def _whole_words(words: Mapping[str, str]) -> dict[str, str]:
    return {whole_text(key): whole_text(text) for key, text in words.items()}


def _times(rows: Rows, where: str, notes: list[str]) -> tuple[NDArray[np.int64] | None, NDArray[np.int32] | None]:
    if rows.timestamps is None:
        return None, None
    seconds, nanoseconds, unit = split_times(rows.timestamps, where)
    if unit not in ("seconds", "datetimes"):
        notes.append(f"times are in {unit}: turned into seconds, in order of the {unit}")
    return seconds, nanoseconds


def _by_time(
    users: Indices, seconds: NDArray[np.int64] | None, nanoseconds: NDArray[np.int32] | None
) -> NDArray[np.int64]:
    """Rows by user, then time, then place in the file."""
    if seconds is None:
        return np.argsort(users, kind="stable")
    least, span = int(seconds.min()), int(seconds.max()) - int(seconds.min()) + 1
    if nanoseconds is not None or span * (int(users.max()) + 1) >= 2**63:
        return np.lexsort((seconds, users) if nanoseconds is None else (nanoseconds, seconds, users))
    key = users.astype(np.int64)
    key *= span
    key += seconds
    key -= least
    return np.argsort(key, kind="stable")  # one key of both takes half the time of two


def _without_repeats(
    order: NDArray[np.int64], users: Indices, items: Indices, n_items: int, notes: list[str]
) -> NDArray[np.int64]:
    pairs = users.astype(np.int64)
    pairs *= n_items
    pairs += items
    ordered = np.sort(pairs)
    if not (ordered[1:] == ordered[:-1]).any():
        return order
    del ordered
    _, first = np.unique(pairs[order], return_index=True)  # index of the first, thus the earliest, of each pair
    notes.append(
        f"{counted(len(order) - len(first), 'repeated interaction')} with the same item dropped: the earliest is kept"
    )
    return order[np.sort(first)]


def _ratings(
    given: NDArray[Any] | None, n: int, threshold: float, by_default: bool, notes: list[str]
) -> tuple[NDArray[np.float32], float]:
    """The ratings and what counts as liked; a scale that this doesn't fit is noted."""
    if given is None:
        notes.append(f"no ratings: every interaction counts as liked (rating {LIKED:g})")
        if not by_default and threshold != LIKED_ABOVE:
            notes.append(f"liked_above={threshold:g} is left aside: there are no ratings")
        return np.full(n, LIKED, np.float32), LIKED_ABOVE
    ratings = np.asarray(given, np.float32)
    notes.extend(_scale_notes(ratings, threshold, by_default))
    return ratings, threshold


def _scale_notes(ratings: NDArray[np.float32], threshold: float, by_default: bool) -> list[str]:
    low, high = float(ratings.min()), float(ratings.max())
    liked = float(np.mean(ratings > threshold))
    if low == high:
        return [
            f"all ratings are {low:g}: they don't tell likes from dislikes, and {'every' if liked else 'no'} "
            "interaction counts as liked; if an interaction is itself the like, leave the ratings out"
        ]
    if 0 < liked < 1 and (not by_default or (low >= 0 and high <= 5)):
        return []
    rule = f"liked_above={threshold:g}{', the default for scales of 1 to 5,' if by_default else ''}"
    fit = 0.6 * high if high > 1 and 0 <= low <= 0.6 * high else (low + high) / 2
    return [
        f"ratings run from {low:g} to {high:g}: {rule} makes {liked:.0%} of them likes; give e.g. liked_above={fit:g}"
    ]


def _demographics(
    given: Mapping[Id, Mapping[str, str]], user_ids: Sequence[Id], notes: list[str]
) -> list[Mapping[str, str]]:
    if lacking := sum(user not in given for user in user_ids):
        notes.append(f"{counted(lacking, 'user')} without demographics")
    if idle := len(given) - len(user_ids) + lacking:
        notes.append(f"{counted(idle, 'user')} of the user file without interactions: left out")
    return [_whole_words(given.get(user, {})) for user in user_ids]


def add_item(catalogue: dict[Id, Item], item: Item) -> int:
    """Add an item unless its id is there with a title; returns 1 if it was there, for the loader to count."""
    known = catalogue.setdefault(item.id, item)
    if item.title and not known.title:
        catalogue[item.id] = item
    return 0 if known is item else 1


def catalogue_of(items: Iterable[Item], notes: list[str], what: str) -> dict[Id, Item]:
    """Items by id; `notes` get how many `what`, rows of a file, repeat an id."""
    catalogue: dict[Id, Item] = {}
    repeated = sum(add_item(catalogue, item) for item in items)
    notes += count_notes({f"{what} that repeat an id, the first with a title kept": repeated})
    return catalogue


def people_of(rows: Iterable[tuple[Id, dict[str, str]]], notes: list[str], what: str) -> dict[Id, dict[str, str]]:
    """Demographics by user id; `notes` get how many `what`, rows of a file, repeat an id."""
    people: dict[Id, dict[str, str]] = {}
    repeated = sum(people.setdefault(user, words) is not words for user, words in rows)
    notes += count_notes({f"{what} that repeat an id, the first kept": repeated})
    return people
