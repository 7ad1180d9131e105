"""Tables already in memory: pandas, Polars, PyArrow, or a mapping of columns, without importing any of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.data.build import Rows, build, catalogue_of, people_of
from starec_env.data.ids import id_column
from starec_env.data.text import counted
from starec_env.data.times import time_column
from starec_env.errors import DataError
from starec_env.types import Dataset, Id, Item


def from_frame(
    frame: Any,
    *,
    name: str = "table",
    domain: str = "item",
    items: Any = None,
    users: Any = None,
    user: str = "user_id",
    item: str = "item_id",
    rating: str = "rating",
    timestamp: str = "timestamp",
    title: str = "title",
    liked_above: float | None = None,
) -> Dataset:
    """Make a Dataset of a table of interactions.

    Args:
        frame: Interactions, a row each: a pandas or Polars DataFrame, a PyArrow Table, or a mapping of columns.
            Wanted are the columns of user and item ids, ints or text; no id is rounded or merged with another. Without
            ratings every interaction counts as liked; without timestamps (numbers of seconds, milliseconds,
            microseconds or nanoseconds since 1970, their text, datetimes or ISO dates, in universal time where they
            have no zone) the order of the rows is the time.
        name: The data set's name.
        domain: What an item is called in prompts: "movie", "music" or "item".
        items: A table of items with their ids and titles; every other column becomes an attribute. Without it the
            titles are taken from `frame` where that has them. Of rows that repeat an id the first with a title counts.
        users: A table of users with their ids; every other column becomes a demographic. The first row of an id counts.
        user: Column of user ids, in `frame` and `users`.
        item: Column of item ids, in `frame` and `items`.
        rating: Column of ratings.
        timestamp: Column of times.
        title: Column of titles, in `items` or `frame`.
        liked_above: Ratings above this are likes. None means 3, for scales of 1 to 5; the notes say where that doesn't
            fit the ratings given.

    Raises:
        DataError: A column is missing, or holds values that can't be what it should; rows are counted from 0. Or no id
            of `items` or `users` is in `frame`.
        InvalidOption: `liked_above` isn't a finite number.

    Examples:
        >>> from_frame({"user_id": ["ann", "ann"], "item_id": [7, 8], "title": ["Up", "Alien"]}, domain="movie")
        Dataset('table', 1 users, 2 items, 2 interactions)
    """
    columns = _columns(frame, [user, item], [rating, timestamp, title])
    notes = [f"no column {name!r}" for name in (rating, timestamp) if name not in columns]
    item_ids = id_column(columns[item], f"column {item!r}")
    rows = Rows(
        id_column(columns[user], f"column {user!r}"),
        item_ids,
        _numbers(columns[rating], f"column {rating!r}") if rating in columns else None,
        time_column(columns[timestamp], f"column {timestamp!r}") if timestamp in columns else None,
        f"column {timestamp!r}",
    )
    if items is not None:
        described = (Item(i, words.pop(title, "").strip(), words) for i, words in _described(items, item))
        catalogue = catalogue_of(described, notes, "rows of the table of items")
    elif title in columns:
        catalogue = _titles(item_ids, columns[title], f"column {title!r}", notes)
    else:
        catalogue = {}
        notes.append(f"no column {title!r} and no items=: no titles")
    people = None
    if users is not None:
        people = people_of(_described(users, user), notes, "rows of the table of users")
    return build(name, domain, rows, catalogue, demographics=people, notes=notes, liked_above=liked_above)


def _columns(frame: Any, wanted: Sequence[str], others: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """The columns wanted, and those of `others` that are there (None: all others), as arrays of equal length."""
    given = _names(frame)
    names = [str(name) for name in given]
    if missing := [name for name in wanted if name not in names]:
        raise DataError(f"the table has no column {' and no '.join(map(repr, missing))}, but {', '.join(names)}")
    taken = [place for place, name in enumerate(names) if others is None or name in wanted or name in others]
    if twice := [names[place] for place in taken if names.count(names[place]) > 1]:
        raise DataError(f"the table has two columns named {twice[0]!r}: rename or drop one")
    columns = {names[place]: _array(frame[given[place]], names[place]) for place in taken}
    if len({len(column) for column in columns.values()}) > 1:
        raise DataError(f"the table's columns differ in length: { {n: len(c) for n, c in columns.items()} }")
    return columns


def _names(frame: Any) -> list[Any]:
    if hasattr(frame, "collect_schema") and not hasattr(frame, "to_numpy"):
        raise DataError(f"got a lazy {type(frame).__name__}: give its .collect()")
    names = getattr(frame, "column_names", None)
    names = getattr(frame, "columns", None) if names is None else names
    if names is None and isinstance(frame, Mapping):
        names = list(frame)
    if names is None:
        raise DataError(f"got a {type(frame).__name__}; wanted a pandas, Polars or PyArrow table or a mapping")
    return list(names)


def _array(column: Any, name: str) -> NDArray[Any]:
    """A column as an array that has each value as it was given."""
    kind = getattr(column, "dtype", None)
    if isinstance(column, np.ma.MaskedArray):
        array = np.asarray(column.astype(object))
        array[np.ma.getmaskarray(column)] = None
    elif isinstance(column, list | tuple):
        array = _plain(np.fromiter(column, object, len(column)))  # NumPy would round large ints among floats
    elif getattr(kind, "tz", None) is not None:  # pandas' times with a zone would come as objects
        array = np.asarray(column, f"datetime64[{getattr(kind, 'unit', 'ns')}]")
    else:
        array = np.asarray(column)
    if array.ndim != 1:
        raise DataError(f"column {name!r} has {array.ndim} dimensions: wanted one value a row")
    return array


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """Objects as numbers where all are ints that fit, or all floats."""
    kinds = set(map(type, values))
    if kinds not in ({int}, {float}):
        return values
    try:
        return np.array(values, np.int64 if kinds == {int} else np.float64)
    except OverflowError:
        return values


def _numbers(column: NDArray[Any], where: str) -> NDArray[np.float32]:
    if column.dtype.kind not in "biuf":
        column = np.fromiter(_each_number(column.tolist(), where), np.float64, len(column))
    with np.errstate(over="ignore"):
        numbers = column.astype(np.float32)
    if not (fine := np.isfinite(numbers)).all():
        row = int(fine.argmin())
        raise _no_number(where, row, column[row : row + 1].tolist()[0])
    return numbers


def _each_number(values: list[Any], where: str) -> Iterator[float]:
    for row, value in enumerate(values):
        try:
            yield math.nan if isinstance(value, str) and (not value.isascii() or "_" in value) else float(value)
        except (TypeError, ValueError, OverflowError):
            raise _no_number(where, row, value) from None


def _no_number(where: str, row: int, got: Any) -> DataError:
    return DataError(f"{where}, row {row}: got {got!r}; wanted numbers: fill in or leave out such rows")


def _titles(
    item_ids: NDArray[np.int64] | list[str], titles: NDArray[Any], where: str, notes: list[str]
) -> dict[Id, Item]:
    """The items that the interactions name, each with the first title that one of its rows has."""
    found: dict[Id, str] = {}
    unlike: set[Id] = set()
    ids = item_ids if isinstance(item_ids, list) else item_ids.tolist()
    for row, (item_id, value) in enumerate(zip(ids, titles.tolist(), strict=True)):
        text = _text(value, where, row).strip()
        known = found.setdefault(item_id, text)
        if text and not known:
            found[item_id] = text
        elif text and text != known:
            unlike.add(item_id)
    if unlike:
        notes.append(f"{counted(len(unlike), 'item')} with several titles in the rows: the first is kept")
    return {item_id: Item(item_id, text) for item_id, text in found.items()}


def _described(frame: Any, key: str) -> Iterator[tuple[Id, dict[str, str]]]:
    """The id of each row of a table, and its other columns as text, without what is missing."""
    columns = _columns(frame, [key])
    ids = id_column(columns.pop(key), f"column {key!r}")
    texts = {
        name: [_text(value, f"column {name!r}", row) for row, value in enumerate(column.tolist())]
        for name, column in columns.items()
    }
    for row, i in enumerate(ids if isinstance(ids, list) else ids.tolist()):
        yield i, {name: text[row] for name, text in texts.items() if text[row]}


def _text(value: Any, where: str, row: int) -> str:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "to_list"):
        value = value.tolist() if hasattr(value, "tolist") else value.to_list()
    if isinstance(value, list | tuple):
        return ", ".join(text for part in value if (text := _text(part, where, row)))
    if isinstance(value, dict | bytes | complex):
        raise DataError(f"{where}, row {row}: got {value!r}; wanted text: write it as text, or drop the column")
    if value is None or str(value) in ("<NA>", "NaT") or value != value:
        return ""
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return str(int(value) if whole else value)  # whole numbers with gaps come as floats
