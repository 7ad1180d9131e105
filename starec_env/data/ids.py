"""Ids as data sets write them: whole numbers or text, never rounded, wrapped, merged or turned into another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.data.text import whole_text
from starec_env.errors import DataError
from starec_env.types import Id, Indices

_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}")


def is_whole(text: str) -> bool:
    """Whether text is a whole number as int() would print it again, and fits 64 bits: not "007", "1_0" or "２"."""
    return _WHOLE.fullmatch(text) is not None and (len(text) < 19 or -(2**63) <= int(text) < 2**63)


def text_ids(*columns: Sequence[str]) -> list[NDArray[Any] | list[str]]:
    """Columns of ids read from text: all become ints if each id of each is a whole number, else all stay text."""
    distinct = set().union(*columns)
    if not all(map(is_whole, distinct)):
        return [list(column) for column in columns]
    return [np.fromiter(map(int, column), np.int64, len(column)) for column in columns]


def id_column(column: NDArray[Any], where: str) -> NDArray[np.int64] | list[str]:
    """A column of ids of any type as plain ids: int64 if all are whole numbers, else text.

    Args:
        column: (rows,) ints, whole floats below 2**53, strings, or objects of these; text stays text.
        where: Names the column in errors.

    Raises:
        DataError: An id is missing, is neither, is too large to be told from its neighbours, or numbers and text are
            mixed; rows are counted from 0.
    """
    if column.dtype.kind == "i" or (column.dtype.kind == "u" and column.max(initial=0) < 2**63):
        return column.astype(np.int64, copy=False)
    if column.dtype.kind == "f":
        return _from_floats(column, where)
    values = [value.item() if isinstance(value, np.generic) else value for value in column.tolist()]
    if values and isinstance(values[0], str):
        return [_text(value, where, row) for row, value in enumerate(values)]
    return np.fromiter((_number(value, where, row) for row, value in enumerate(values)), np.int64, len(values))


def _from_floats(column: NDArray[Any], where: str) -> NDArray[np.int64]:
    exact = 2.0 ** min(np.finfo(column.dtype).nmant + 1, 53)
    fine = (np.abs(column) < exact) & (column == np.floor(column))
    if not fine.all():
        row = int(fine.argmin())
        _number(column[row : row + 1].tolist()[0], where, row, exact)
    return column.astype(np.int64)


def _text(value: Any, where: str, row: int) -> str:
    if not isinstance(value, str) or not value:
        raise _no_id(where, row, value)
    return str.__str__(value)


def _number(value: Any, where: str, row: int, exact: float = 2.0**53) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or value % 1:
        raise _no_id(where, row, value)
    if isinstance(value, float) and abs(value) >= exact:
        raise DataError(
            f"{where}, row {row}: got {value!r}, a float too large to be exact: give such ids as ints or text"
        )
    if not -(2**63) <= value < 2**63:
        raise DataError(f"{where}, row {row}: got {value!r}, more than 64 bits hold: give such ids as text")
    return int(value)


def _no_id(where: str, row: int, got: Any) -> DataError:
    return DataError(f"{where}, row {row}: got {got!r}; wanted ids, all ints or all strings")


def codes(ids: NDArray[Any] | Sequence[Id], where: str) -> tuple[list[Id], Indices]:
    """The sorted distinct ids, and (rows,) the place of each row's id among them.

    Args:
        ids: As `id_column` takes or gives them.
        where: Names them in errors.

    Raises:
        DataError: As `id_column`, or an id holds half a character.
    """
    if not isinstance(ids, np.ndarray) and not isinstance(ids[0], str):
        ids = np.fromiter(ids, object, len(ids))
    given = id_column(ids, where) if isinstance(ids, np.ndarray) else ids
    if isinstance(given, np.ndarray):
        numbers, places = _codes_of_numbers(given)
        return [*numbers], places
    table: dict[Id, int] = {}  # a dict is several times faster than sorting a million strings
    first_seen = np.fromiter((table.setdefault(i, len(table)) for i in given), np.int32, len(given))
    check_readable(table, where)
    ordered = sorted(table)
    rank = np.empty(len(table), np.int32)
    rank[[table[i] for i in ordered]] = np.arange(len(table))
    return ordered, rank[first_seen]


def _codes_of_numbers(ids: NDArray[np.int64]) -> tuple[list[int], Indices]:
    least, span = int(ids.min()), int(ids.max()) - int(ids.min()) + 1
    if span > 4 * len(ids) + 1_000_000:
        distinct, places = np.unique(ids, return_inverse=True)
        return distinct.tolist(), places.astype(np.int32)
    place = ids - least
    there = np.zeros(span, np.bool_)  # a table of the ids' range spares sorting
    there[place] = True
    rank = there.cumsum(dtype=np.int32)
    rank -= 1
    return (np.flatnonzero(there) + least).tolist(), rank[place]


def check_readable(ids: Iterable[Id], where: str) -> None:
    """Raise DataError for an id that can't be written as UTF-8."""
    for i in ids:
        if isinstance(i, str) and whole_text(i) != i:
            raise DataError(f"{where}: got {i!r}, which holds half a character (a lone surrogate): write such ids anew")
