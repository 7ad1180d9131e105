"""Tables already in memory: pandas, Polars, PyArrow, or a mapping of columns, without importing any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.data.build import Rows, build
from starec_env.data.files import LATEST
from starec_env.errors import DataError
from starec_env.types import Dataset, Id, Item

_LIKED = 5.0


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
            Wanted are the columns of user and item ids. Without ratings every interaction counts as liked; without
            timestamps (seconds or milliseconds since 1970, or datetimes) the order of the rows is the time.
        name: The data set's name.
        domain: What an item is called in prompts: "movie", "music" or "item".
        items: A table of items with their ids and titles; every other column becomes an attribute. Without it the
            titles are taken from `frame` where that has them.
        users: A table of users with their ids; every other column becomes a demographic.
        user: Column of user ids, in `frame` and `users`.
        item: Column of item ids, in `frame` and `items`.
        rating: Column of ratings.
        timestamp: Column of times.
        title: Column of titles, in `items` or `frame`.
        liked_above: Ratings above this are likes; None for 3, which fits a scale of 1 to 5.

    Raises:
        DataError: A column is missing, or holds values that can't be what it should; rows are counted from 0.

    Examples:
        >>> from_frame({"user_id": ["ann", "ann"], "item_id": [7, 8], "title": ["Up", "Alien"]}, domain="movie")
        Dataset('table', 1 users, 2 items, 2 interactions)
    """
    columns = _columns(frame, [user, item])
    user_ids, item_ids = _ids(columns[user], user), _ids(columns[item], item)
    notes = []
    if rating not in columns:
        notes.append(f"no column {rating!r}: every interaction counts as liked (rating {_LIKED:g})")
    if timestamp not in columns:
        notes.append(f"no column {timestamp!r}: the order of the rows is the time")
    n = len(user_ids)
    rows = Rows(
        user_ids,
        item_ids,
        _finite(columns[rating], rating) if rating in columns else np.full(n, _LIKED),
        _times(columns[timestamp], timestamp) if timestamp in columns else np.arange(n),
    )
    catalogue: dict[Id, Item] = {}
    if items is not None:
        for item_id, words in _described(items, item).items():
            catalogue[item_id] = Item(item_id, words.pop(title, "").strip(), words)
    elif title in columns:
        for item_id, text in zip(item_ids.tolist(), columns[title].tolist(), strict=True):
            catalogue.setdefault(item_id, Item(item_id, _text(text).strip()))
    else:
        notes.append(f"no column {title!r} and no items=: no titles")
    people = None if users is None else _described(users, user)
    built = build(name, domain, rows, catalogue, demographics=people, notes=notes)
    return built if liked_above is None else replace(built, liked_above=liked_above)


def _columns(frame: Any, wanted: list[str]) -> dict[str, NDArray[Any]]:
    """The columns as arrays of equal length."""
    if hasattr(frame, "collect_schema") and not hasattr(frame, "to_numpy"):
        raise DataError(f"got a lazy {type(frame).__name__}: give its .collect()")
    names = getattr(frame, "column_names", None) or getattr(frame, "columns", None)
    if names is None and isinstance(frame, Mapping):
        names = list(frame)
    if names is None:
        raise DataError(f"got a {type(frame).__name__}; wanted a pandas, Polars or PyArrow table or a mapping")
    if missing := [name for name in wanted if name not in list(names)]:
        raise DataError(
            f"the table has no column {' and no '.join(map(repr, missing))}, but {', '.join(map(str, names))}"
        )
    columns = {str(name): np.asarray(frame[name]) for name in names}
    if len({column.shape for column in columns.values()}) > 1:
        raise DataError(f"the table's columns differ in shape: { {n: c.shape for n, c in columns.items()} }")
    return columns


def _ids(column: NDArray[Any], name: str) -> NDArray[Any]:
    if column.dtype.kind in "iuU" or not len(column):
        return column
    if column.dtype.kind == "f":  # whole numbers, unless some are missing
        fine = np.isfinite(column) & (column == np.floor(column))
        numbers = column.astype(np.int64) if fine.all() else column
    else:
        kind = Integral if isinstance(column[0], Integral) else str
        fine = np.array([isinstance(value, kind) for value in column])
        numbers = column.astype(np.int64) if fine.all() and kind is Integral else column
    if not fine.all():
        row = int(np.argmin(fine))
        raise DataError(
            f"column {name!r}, row {row}: got {column.tolist()[row]!r}; wanted ids, all ints or all strings"
        )
    return numbers


def _finite(column: NDArray[Any], name: str, limit: float = np.inf) -> NDArray[Any]:
    try:
        numbers = column.astype(np.float64)
    except (TypeError, ValueError) as fault:
        raise DataError(f"column {name!r}: got {column.dtype} values; wanted numbers ({fault})") from fault
    if not (fine := np.abs(numbers) < limit).all():
        row = int(np.argmin(fine))
        raise DataError(
            f"column {name!r}, row {row}: got {column.tolist()[row]!r}; wanted a number: mend or drop such rows"
        )
    return numbers


def _times(column: NDArray[Any], name: str) -> NDArray[Any]:
    if column.dtype.kind in "iuf":
        return _finite(column, name, LATEST)
    zoned = [getattr(value, "tzinfo", None) is not None for value in column]
    if any(zoned):  # such datetimes come as objects; all others are in universal time
        seconds = [value.timestamp() if zone else np.nan for value, zone in zip(column, zoned, strict=True)]
        return _finite(np.array(seconds), name, LATEST)
    try:
        times = column.astype("datetime64[s]")
    except (TypeError, ValueError) as fault:
        raise DataError(f"column {name!r}: wanted seconds since 1970 or datetimes ({fault})") from fault
    return _finite(np.where(np.isnat(times), np.nan, times.astype(np.int64)), name, LATEST)


def _described(frame: Any, key: str) -> dict[Id, dict[str, str]]:
    """The rows of a table by id, each as text by column, without what is missing."""
    columns = _columns(frame, [key])
    ids = _ids(columns.pop(key), key).tolist()
    texts = {name: [_text(value) for value in column.tolist()] for name, column in columns.items()}
    return {i: {name: text[row] for name, text in texts.items() if text[row]} for row, i in enumerate(ids)}


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple, np.ndarray)):
        return ", ".join(map(str, value))
    missing = value is None or value != value or str(value) == "<NA>"  # NaN and NaT differ from themselves
    return "" if missing else str(value)
