"""What every loader ends with: raw columns and a catalogue become a Dataset, and what was met becomes notes."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.errors import DataError
from starec_env.types import LIKED_ABOVE, Dataset, Id, Item

_MILLISECONDS = 10**11
"""A median time above this is in milliseconds: as seconds it would lie beyond the year 5000."""
_TAG = re.compile(r'\s*"*<(?=[a-zA-Z/!]).*', re.DOTALL)
_LEFTOVER = re.compile(r'[\s"]*/>[\s"]*$')
_YEAR = re.compile(r"\((\d{4})(?:[-\u2013]\d{0,4})?\)\s*$")


@dataclass
class Rows:
    """Interactions as columns of equal length, in file order; ids are all ints or all strings."""

    users: NDArray[Any] | Sequence[Id]
    items: NDArray[Any] | Sequence[Id]
    ratings: NDArray[Any]
    timestamps: NDArray[Any]
    """Seconds or milliseconds since 1970."""


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
    """Make a Dataset: users sorted by id, rows by time then file order, items in the catalogue's order.

    A user's repeated interactions with an item are reduced to the earliest: a target that already stands in the
    history would be no next item. Items that only the interactions name are appended, and titled by their id, as
    are those without a title. Each of these is counted in the notes.

    Args:
        name: The data set's name.
        domain: "movie", "music" or "item".
        rows: The interactions.
        catalogue: Items by id, in order; an empty title means none.
        demographics: Mappings by user id, or None where there are none.
        notes: What the loader met.
        liked_above: Ratings above this are likes; None means 3.

    Raises:
        DataError: There are no interactions.
    """
    found = list(notes)
    if not len(rows.ratings):
        raise DataError(f"{name}: the files hold no interactions")
    user_ids, users = _codes(rows.users)
    met, codes = _codes(rows.items)
    items = _catalogue(catalogue, met, found)
    place = {item.id: index for index, item in enumerate(items)}
    indices = np.array([place[i] for i in met], dtype=np.int32)[codes]
    if idle := len(items) - len(met):
        found.append(f"{counted(idle, 'item')} of the catalogue {'has' if idle == 1 else 'have'} no interaction")
    times = _seconds(rows.timestamps, found)
    order = np.lexsort((times, users))
    order = _without_repeats(order, users, indices, len(items), found)
    users, times = users[order], times[order]
    if ties := int(np.count_nonzero((users[1:] == users[:-1]) & (times[1:] == times[:-1]))):
        found.append(f"{counted(ties, 'row')} share user and time with the row before: file order decides")
    return Dataset(
        name=name,
        domain=domain,
        items=items,
        user_ids=np.array(user_ids),
        indptr=np.concatenate(([0], np.cumsum(np.bincount(users, minlength=len(user_ids))))).astype(np.int64),
        item_indices=indices[order],
        ratings=np.asarray(rows.ratings, dtype=np.float32)[order],
        timestamps=times,
        demographics=_demographics(demographics, user_ids, found),
        notes=tuple(found),
        liked_above=LIKED_ABOVE if liked_above is None else liked_above,
    )


def _codes(ids: NDArray[Any] | Sequence[Id]) -> tuple[list[Id], NDArray[np.int64]]:
    """The sorted distinct ids, and for each row the place of its id among them."""
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu":
        distinct, codes = np.unique(ids, return_inverse=True)
        return distinct.tolist(), codes.astype(np.int64)
    table: dict[Id, int] = {}  # a dict is several times faster than sorting a million strings
    first_seen = np.fromiter((table.setdefault(i, len(table)) for i in ids), np.int64, len(ids))
    ordered = sorted(table, key=lambda i: (isinstance(i, str), i))
    rank = np.empty(len(table), np.int64)
    rank[[table[i] for i in ordered]] = np.arange(len(table))
    return ordered, rank[first_seen]


def _catalogue(catalogue: Mapping[Id, Item], met: Sequence[Id], notes: list[str]) -> tuple[Item, ...]:
    unknown = [i for i in met if i not in catalogue]
    if unknown:
        notes.append(
            f"{counted(len(unknown), 'item')} of the interactions missing from the catalogue: {_some(unknown)}"
        )
    items = [*catalogue.values(), *(Item(i, "") for i in unknown)]
    untitled = [index for index, item in enumerate(items) if not item.title]
    for index in untitled:
        items[index] = Item(items[index].id, f"Untitled item {items[index].id}", items[index].attributes)
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


def _seconds(given: NDArray[Any], notes: list[str]) -> NDArray[np.int64]:
    times = np.asarray(given).astype(np.int64)
    if np.median(times) > _MILLISECONDS:
        notes.append("times are in milliseconds: turned into seconds")
        times = times // 1000
    return times


def _without_repeats(
    order: NDArray[np.int64], users: NDArray[np.int64], items: NDArray[Any], n_items: int, notes: list[str]
) -> NDArray[np.int64]:
    pairs = users[order] * n_items + items[order]
    _, first = np.unique(pairs, return_index=True)  # index of the first, thus the earliest, of each pair
    if dropped := len(pairs) - len(first):
        notes.append(f"{counted(dropped, 'repeated interaction')} with the same item dropped: the earliest is kept")
    return order[np.sort(first)]


def _demographics(
    given: Mapping[Id, Mapping[str, str]] | None, user_ids: Sequence[Id], notes: list[str]
) -> list[Mapping[str, str]] | None:
    if given is None:
        return None
    if lacking := sum(user not in given for user in user_ids):
        notes.append(f"{counted(lacking, 'user')} without demographics")
    if idle := len(given) - len(user_ids) + lacking:
        notes.append(f"{counted(idle, 'user')} of the user file without interactions: left out")
    return [given.get(user, {}) for user in user_ids]


def add_item(catalogue: dict[Id, Item], item: Item) -> int:
    """Add an item unless its id is there already; returns 1 if it was, for the loader to count."""
    return 0 if catalogue.setdefault(item.id, item) is item else 1


def movie(item_id: Id, title: str, genres: Iterable[str]) -> Item:
    """A MovieLens item: the title as in the file, "(1995)" included; attributes "year" and "genres" where known."""
    title = title.strip()
    year = _YEAR.search(title)
    attributes = {"year": year[1]} if year else {}
    if text := ", ".join(genres):
        attributes["genres"] = text
    return Item(item_id, title, attributes)


def clean_text(raw: str) -> str:
    """Plain text from a scraped one: entities decoded, leftover markup and scripts cut off, spaces collapsed.

    Examples:
        >>> clean_text("Andy &amp; His  Grandmother")
        'Andy & His Grandmother'
        >>> clean_text('"<span class=""a-size-medium"')
        ''
    """
    text = raw
    while (decoded := html.unescape(text)) != text:  # some are escaped twice
        text = decoded
    if "getTime" in text:  # a page's script in place of the title, which the 2018 edition's authors advise to drop
        return ""
    cut = _LEFTOVER.sub("", _TAG.sub("", text))
    if cut != text:
        cut = cut.removeprefix('"')
    return " ".join(cut.split())


def clean_title(raw: str, counts: Counter[str]) -> str:
    """A scraped title as plain text, empty where it holds nothing but markup; what was done is counted."""
    title = clean_text(raw)
    if raw.strip() and not title:
        counts["titles that are nothing but page markup, taken as none"] += 1
    elif title != raw.strip():
        counts["titles cleaned of HTML entities, markup or spaces"] += 1
    return title


def guess_domain(*texts: str) -> str:
    """What items are called, guessed from the names of files and folders: "movie", "music" or "item"."""
    text = " ".join(texts).lower()
    if re.search(r"music|(?<![a-z])(cds?|vinyl|albums?|lastfm)(?![a-z])", text):
        return "music"
    return "movie" if re.search(r"movie|film|(?<![a-z])ml-?\d", text) else "item"


def count_notes(counts: Mapping[str, int]) -> list[str]:
    """Notes from counters, e.g. "reviews without a rating, left out: 3"; those at zero say nothing."""
    return [f"{what}: {n:,}" for what, n in counts.items() if n]


def counted(n: int, noun: str) -> str:
    """A number and its noun, e.g. "1 item" or "5,000 items"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _some(ids: Sequence[Id]) -> str:
    return ", ".join(map(str, ids[:3])) + (", ..." if len(ids) > 3 else "")
