"""What every loader ends with: raw columns and a catalogue become a Dataset, and what was met becomes notes."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from starec_env.data.ids import id_column, is_whole
from starec_env.data.ties import follows_ids, hashed_order
from starec_env.data.times import split_times
from starec_env.errors import DataError
from starec_env.types import LIKED_ABOVE, Dataset, Id, Indices, Item, check_liked_above

LIKED = 5.0
"""The rating of interactions whose files give none: they happened, and count as liked."""
_MARKUP = re.compile(r"<(?=[a-zA-Z/!])")
_EDGE = re.compile(r'[\s"]*')
_YEAR = re.compile(r"\(([0-9]{4})(?:[-\u2013][0-9]{0,4})?\)\s*$")
_PASSES = 8
_LONGEST_ENTITY = 34
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
        domain: "movie", "music" or "item".
        rows: The interactions.
        catalogue: Items by id, in order; an empty title means none.
        demographics: Mappings by user id, or None where there are none.
        notes: What the loader met.
        liked_above: Ratings above this are likes; None means 3, for scales of 1 to 5. Without ratings all are liked.

    Raises:
        DataError: There are no interactions, ids or times aren't any, or no id of a side table is met.
        InvalidOption: `liked_above` isn't a finite number.
    """
    found = list(notes)
    threshold = check_liked_above(LIKED_ABOVE if liked_above is None else liked_above)
    if not len(rows.users):
        raise DataError(f"{name}: the files hold no interactions")
    user_ids, users = _codes(rows.users, f"{name}: user ids")
    met, met_items = _codes(rows.items, f"{name}: item ids")
    items = _catalogue(_matched(catalogue, met, name, "items", found), met, found)
    people = None if demographics is None else _matched(demographics, user_ids, name, "users", found)
    place = {item.id: index for index, item in enumerate(items)}
    item_indices = np.array([place[i] for i in met], np.int32)[met_items]
    if idle := len(items) - len(met):
        found.append(f"{counted(idle, 'item')} of the catalogue {'has' if idle == 1 else 'have'} no interaction")
    seconds, nanoseconds = _times(rows, rows.where or f"{name}: times", found)
    order = _by_time(users, seconds, nanoseconds)
    order = _without_repeats(order, users, met_items, len(met), found)
    tied = _tied(order, users, seconds, nanoseconds, rows.parts)
    file_order = _order_ties(order, tied, (users, met_items), (user_ids, met), seconds is None, found)
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


def _codes(ids: NDArray[Any] | Sequence[Id], where: str) -> tuple[list[Id], Indices]:
    """The sorted distinct ids, and for each row the place of its id among them."""
    if not isinstance(ids, np.ndarray) and not isinstance(ids[0], str):
        ids = np.fromiter(ids, object, len(ids))
    given = id_column(ids, where) if isinstance(ids, np.ndarray) else ids
    if isinstance(given, np.ndarray):
        numbers, codes = _codes_of_numbers(given)
        return [*numbers], codes
    table: dict[Id, int] = {}  # a dict is several times faster than sorting a million strings
    first_seen = np.fromiter((table.setdefault(i, len(table)) for i in given), np.int32, len(given))
    _check_readable(table, where)
    ordered = sorted(table)
    rank = np.empty(len(table), np.int32)
    rank[[table[i] for i in ordered]] = np.arange(len(table))
    return ordered, rank[first_seen]


def _codes_of_numbers(ids: NDArray[np.int64]) -> tuple[list[int], Indices]:
    least, span = int(ids.min()), int(ids.max()) - int(ids.min()) + 1
    if span > 4 * len(ids) + 1_000_000:
        distinct, codes = np.unique(ids, return_inverse=True)
        return distinct.tolist(), codes.astype(np.int32)
    place = ids - least
    there = np.zeros(span, np.bool_)  # a table of the ids' range spares sorting
    there[place] = True
    rank = there.cumsum(dtype=np.int32)
    rank -= 1
    return (np.flatnonzero(there) + least).tolist(), rank[place]


def _matched(
    table: Mapping[Id, _Value], ids: Sequence[Id], name: str, what: str, notes: list[str]
) -> Mapping[Id, _Value]:
    """A side table by the interactions' ids, which it may have as text where they have numbers, or the reverse."""
    if not table:
        return table
    matched = {_same_kind(i, table, ids): value for i, value in table.items()}
    if not isinstance(ids[0], str) and (odd := [i for i in matched if isinstance(i, str)]) and len(odd) < len(matched):
        notes.append(f"{counted(len(odd), 'id')} of the table of {what} no whole number, left out: {_some(odd)}")
        matched = {i: value for i, value in matched.items() if not isinstance(i, str)}
    if matched.keys() != table.keys():
        kinds = ("numbers", "text") if isinstance(ids[0], str) else ("text", "numbers")
        notes.append(f"the table of {what} has ids as {kinds[0]} where the interactions have {kinds[1]}: matched")
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


def _same_kind(given: Id, table: Mapping[Id, Any], ids: Sequence[Id]) -> Id:
    other: Id = given
    if isinstance(ids[0], str):
        other = str(given)
    elif isinstance(given, str) and is_whole(given):
        other = int(given)
    return given if other in table else other  # where both are there each is itself


def _catalogue(catalogue: Mapping[Id, Item], met: Sequence[Id], notes: list[str]) -> tuple[Item, ...]:
    unknown = [i for i in met if i not in catalogue]
    if unknown and catalogue:
        notes.append(
            f"{counted(len(unknown), 'item')} of the interactions missing from the catalogue: {_some(unknown)}"
        )
    items = [item if item.id == i else replace(item, id=i) for i, item in catalogue.items()]
    items = _readable_items(items, notes) + [Item(i, "") for i in unknown]
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


def _readable_items(items: list[Item], notes: list[str]) -> list[Item]:
    _check_readable([item.id for item in items], "the table of items")
    better = [Item(item.id, whole_text(item.title), _whole_words(item.attributes)) for item in items]
    if changed := sum(old != new for old, new in zip(items, better, strict=True)):
        notes.append(f"{counted(changed, 'item')} with half characters (lone surrogates) in the text: shown as \ufffd")
    return better


def whole_text(text: str) -> str:
    """Text that can be written as UTF-8: halves of a surrogate pair are joined, and one alone becomes U+FFFD."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _whole_words(words: Mapping[str, str]) -> dict[str, str]:
    return {whole_text(key): whole_text(text) for key, text in words.items()}


def _check_readable(ids: Iterable[Id], where: str) -> None:
    for i in ids:
        if isinstance(i, str) and whole_text(i) != i:
            raise DataError(f"{where}: got {i!r}, which holds half a character (a lone surrogate): write such ids anew")


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


def _tied(order: NDArray[np.int64], *columns: NDArray[Any] | None) -> NDArray[np.bool_]:
    """(rows,) whether each row, in order, has the user, the time and the part of a split of the row before it."""
    tied = np.zeros(len(order), np.bool_)
    tied[1:] = True
    for column in columns:
        if column is not None:
            ordered = column[order]
            tied[1:] &= ordered[1:] == ordered[:-1]
    return tied


def _order_ties(
    order: NDArray[np.int64],
    tied: NDArray[np.bool_],
    codes: tuple[Indices, Indices],
    ids: tuple[Sequence[Id], Sequence[Id]],
    timeless: bool,
    notes: list[str],
) -> Indices | None:
    """Put rows of equal time, in place, in an order that says nothing of ids; the file's order where that changed."""
    second = np.flatnonzero(tied)
    items = codes[1]
    share = follows_ids(items[order[second - 1]], items[order[second]], ids[1]) if len(second) else None
    notes.extend(_tie_notes(len(second), share, timeless))
    if share is None:
        return None
    alike = tied.copy()
    alike[second - 1] = True
    at = np.flatnonzero(alike)
    rows = order[at]
    group = np.cumsum(~tied[at], dtype=np.uint64)
    bits = np.uint64(int(group[-1]).bit_length())
    key = hashed_order(codes[0][rows], items[rows], *ids) >> bits
    key |= group << (np.uint64(64) - bits)  # groups in their order; one key sorts faster than two
    order[at] = rows[np.argsort(key, kind="stable")]
    return order.astype(np.int32)


def _tie_notes(n: int, share: float | None, timeless: bool) -> list[str]:
    if share is None and timeless:
        return ["no timestamps: the order of the rows is the time"]
    if not n:
        return []
    rows = f"{counted(n, 'row')} share user and time with the row before"
    if share is None:
        return [f"{rows}: file order decides"]
    by_id = f"{max(share, 1 - share):.0%} {'ascend' if share > 0.5 else 'descend'} by item id"
    if timeless:
        return [f"no timestamps, and of each user's neighbouring rows {by_id}: a hash orders them, not the file"]
    return [f"{rows}, {by_id}: a hash orders them, not the file"]


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
    text = _decoded(raw)
    if "getTime" in text:  # a page's script in place of the title, which the 2018 edition's authors advise to drop
        return ""
    cut = text
    if markup := _MARKUP.search(text):
        cut = text[: markup.start()].rstrip('"').rstrip()
    bare = _bare_end(cut)
    if bare.endswith("/>"):
        cut = _bare_end(bare[:-2])
    if cut != text:
        cut = cut.removeprefix('"')
    return " ".join(cut.split())


def _bare_end(text: str) -> str:
    edge = _EDGE.match(text[::-1])  # from the end: in linear time
    return text[: len(text) - edge.end()] if edge else text


def _decoded(text: str) -> str:
    """Text without entities, also where it is escaped several times."""
    for _ in range(_PASSES):
        decoded = html.unescape(text)
        if decoded == text:
            return text
        text = decoded
    return _decoded_deep(re.sub("&(?:amp;)+", "&", text))


def _decoded_deep(text: str) -> str:
    # Escaped dozens of times, by malice: one pass a level would take time by the square. From the right, what follows
    # an entity is decoded already, and each step looks at one entity.
    first, *parts = text.split("&")
    done: list[str] = []  # characters, the last first
    for part in reversed(parts):
        done += part[::-1] + "&"
        while done and done[-1] == "&":
            entity = "".join(done[: -_LONGEST_ENTITY - 1 : -1])
            entity = entity[: entity.find("&", 1)] if "&" in entity[1:] else entity
            decoded = html.unescape(entity)
            if decoded == entity:
                break
            del done[-len(entity) :]
            done += decoded[::-1]
    return first + "".join(reversed(done))


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
