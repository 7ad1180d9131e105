"""A file of one's own as a data set: CSV, TSV, JSON lines or Parquet, gzipped or not, with any names of columns.

What kind of file it is, and whether it is gzipped, is seen by its first bytes. A row that can't be read is left out,
counted and reported with its line; many such rows are an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.data.files import byte_lines, is_folder
from starec_env.data.frame import from_frame
from starec_env.data.ids import text_ids
from starec_env.data.rows import NO_VALUE, BadRows, bad_line, clock, csv_fields, csv_rows, finite, json_rows, printable
from starec_env.data.text import counted, guess_domain, whole_text
from starec_env.data.times import date_time, is_number
from starec_env.errors import DataError
from starec_env.types import Dataset

ROLES = ("user", "item", "rating", "time", "title")
"""What a column can be: the keys of `columns`."""
_ALIASES = {
    "user": "userid user uid reviewerid customerid memberid accountid",
    "item": "itemid item iid movieid parentasin asin productid bookid isbn trackid songid artistid gameid businessid",
    "rating": "rating ratings score stars starrating overall",
    "time": "timestamp time datetime date unixreviewtime unixtime createdat ts",
    "title": "title itemname itemtitle movietitle booktitle producttitle productname",
}
"""Names that are understood without `columns`, the first that is there; case, hyphens and underscores don't count."""
_SEPARATORS = "\t,;|"
_OBJECT = "a JSON object"


def read_table(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    items: str | Path | None = None,
    domain: str | None = None,
    liked_above: float | None = None,
) -> Dataset:
    """Load a file of interactions, a row each.

    Ids stay text unless all of a kind are whole numbers. Ratings and times may be missing as columns: then every
    interaction counts as liked, and the order of the rows is the time.

    Args:
        path: A file; "CSV" is any text with a header and columns between commas, tabs, semicolons or bars.
        columns: Names of columns by role, of ROLES; others are looked for by their usual names (user_id, asin, ...).
        items: A file of the same kinds with an item a row: its id, title, and any attributes.
        domain: What an item is called in prompts; None guesses by the file's name.
        liked_above: Ratings above this are likes; None as `from_frame`.

    Raises:
        DataError: A file can't be read, has no such column, or more than 1 % of its rows are bad.
    """
    named = dict(columns or {})
    file = _File.at(Path(path))
    found = {role: file.column(role, named) for role in ROLES[:4]}
    title = None if items else file.column("title", named)
    file.needs({role: found[role] for role in ("user", "item")})
    frame, notes = _interactions(file, {**found, "title": title})
    table: dict[str, Any] | None = None
    if items:
        table, more = _items(_File.at(Path(items)), named, str(found["item"]))
        notes += more
        frame["item"], table["item"] = text_ids(frame["item"], table["item"])
    else:
        (frame["item"],) = text_ids(frame["item"])
    (frame["user"],) = text_ids(frame["user"])
    dataset = from_frame(
        frame,
        name=file.path.name.removesuffix(".gz").rpartition(".")[0] or file.path.name,
        domain=domain or guess_domain(file.path.name, Path(items).name if items else ""),
        items=table,
        user="user",
        item="item",
        timestamp="time",
        liked_above=liked_above,
    )
    used = ", ".join(f"{role}={name}" if name else f"no {role}" for role, name in found.items())
    notes.insert(0, f"columns of {file.path.name}: {used}; others can be named (--columns)")
    return replace(dataset, notes=(*notes, *dataset.notes))


def _interactions(file: _File, columns: Mapping[str, str | None]) -> tuple[dict[str, Any], list[str]]:
    """The columns by role, ids still as text, and notes; a role without a column has none."""
    names = {role: name for role, name in columns.items() if name}
    kept: dict[str, list[Any]] = {role: [] for role in names}
    bad = BadRows(str(file.path))
    reads = [_READ[role] if role == "time" else _Remembering(_READ[role]) for role in names]
    for line, values in file.rows(list(names.values()), bad):
        try:
            row = [read(value) for read, value in zip(reads, values, strict=True)]
        except NO_VALUE:
            bad.add(line, *_fault(names, values))
            continue
        for column, value in zip(kept.values(), row, strict=True):
            column.append(value)
    bad.check(len(kept["user"]) + bad.count)
    if not kept["user"]:
        raise DataError(f"{file.path}: the file holds no interactions, only its header")
    notes = bad.notes()
    for role in ("user", "item"):
        if odd := sorted(i for i in set(kept[role]) if i != i.strip()):
            ids = counted(len(odd), f"{role} id")
            notes.append(f"{ids} with spaces at an end, e.g. {odd[0]!r}: kept apart from those without")
    frame: dict[str, Any] = dict(kept)
    if "rating" in kept:
        frame["rating"] = np.array(kept["rating"], np.float64)
    if "time" in kept:
        frame["time"] = _numbers(kept["time"], file.units.get(names["time"]))
    return frame, notes


class _Remembering(dict[Any, Any]):
    """A reader that reads each distinct value once, and gives one object for all that are equal."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        super().__init__()
        self.read = read

    def __missing__(self, key: Any) -> Any:
        found = self[key] = self.read(key if isinstance(key, str) else key[1])
        return found

    def __call__(self, value: Any) -> Any:
        return self[value if type(value) is str else (type(value), value)]  # True is no 1


def _fault(roles: Iterable[str], values: Iterable[Any]) -> tuple[Any, str]:
    """The first value of a row that can't be read, and what it should be."""
    for role, value in zip(roles, values, strict=True):
        try:
            _READ[role](value)
        except NO_VALUE:
            return value, _WANTED[role]
    raise AssertionError("each value can be read")


def _items(file: _File, named: Mapping[str, str], item: str) -> tuple[dict[str, Any], list[str]]:
    """A table of items as text, with the columns "item" and "title" and the others by name; and notes."""
    key = item if item in file.names else file.column("item", {}, also="id")
    key, title = file.needs({"item": key, "title": file.column("title", named, also="name")}).values()
    others = [name for name in file.names if name not in (key, title)]
    renamed = [f"{name}_" if name in ("item", "title") else name for name in others]
    table: dict[str, Any] = {name: [] for name in ("item", "title", *renamed)}
    bad, lost = BadRows(str(file.path)), 0
    for line, (item_id, *words) in file.rows([key, title, *others], bad):
        try:
            row = [_id(item_id), *map(_text, words)]
        except ValueError:
            bad.add(line, item_id, _WANTED["item"])
            continue
        lost += whole_text(str(words[0])) != str(words[0])
        for column, value in zip(table.values(), row, strict=True):
            column.append(value)
    bad.check(len(table["item"]) + bad.count)
    notes = bad.notes()
    if lost:
        notes.append(f"{file.path.name}: {counted(lost, 'title')} with bytes that are no UTF-8: shown as \ufffd")
    return table, notes


@dataclass(frozen=True)
class _File:
    """A table on disk: its kind and the names of its columns, known before its rows are read."""

    path: Path
    names: tuple[str, ...]
    rows: Callable[[Sequence[str], BadRows], Iterator[tuple[int, Sequence[Any]]]]
    """(names of columns, where bad rows go) -> line and values of each good one."""
    units: Mapping[str, str]
    """Of columns that hold datetimes: "s", "ms", "us" or "ns"."""

    @staticmethod
    def at(path: Path) -> _File:
        """Look at a file; raises DataError if it is none, or none of the kinds."""
        if is_folder(path, "a file that holds a table"):
            raise DataError(f"{path}: is a folder; wanted a file that holds a table")
        with path.open("rb") as raw:
            if raw.read(4) == b"PAR1":
                return _parquet(path)
        _, first = next(byte_lines(path))
        start = first.lstrip()[:1]
        if start == b"[":
            raise DataError(f"{path}: one JSON array; wanted JSON lines, an object a line")
        return _json_lines(path) if start == b"{" else _delimited(path)

    def column(self, role: str, named: Mapping[str, str], also: str = "") -> str | None:
        """The column of a role: as named, or the first usual name; None where there may be none."""
        if role in named:
            if named[role] not in self.names:
                near = get_close_matches(named[role], self.names, n=1, cutoff=0.5) or self.names or ["NAME"]
                raise self.lacks([role], f"{role}={near[0]}", named[role])
            return named[role]
        plain = {re.sub(r"[\W_]", "", name).lower(): name for name in reversed(self.names)}
        return next((plain[alias] for alias in f"{_ALIASES[role]} {also}".split() if alias in plain), None)

    def needs(self, columns: Mapping[str, str | None]) -> dict[str, str]:
        """The columns by role; raises DataError unless all are there."""
        if lacking := [role for role, name in columns.items() if name is None]:
            known = {name for name in columns.values() if name}
            free = [name for name in self.names if name not in known] + ["NAME"] * len(lacking)
            raise self.lacks(lacking, ",".join(map("=".join, zip(lacking, free, strict=False))))
        return {role: str(name) for role, name in columns.items()}

    def lacks(self, roles: Sequence[str], example: str, name: str = "") -> DataError:
        """The error for columns that aren't there, with those that are and the option to give."""
        if any(":" in name for name in self.names):
            return DataError(f"{self.path} is one of RecBole's files: give --dataset recbole --data-dir {self.path}")
        what = f"column {name!r}" if name else f"column that is known as {' or '.join(roles)}"
        columns = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
        return DataError(
            f"{self.path}: there is no {what}, but {columns}: say which is which, as --columns {quote(example)} "
            "(the first line must name the columns)"
        )


def _delimited(path: Path) -> _File:
    number, head = next(byte_lines(path))
    separator = max(_SEPARATORS, key=head.decode(errors="replace").count)
    names = tuple(whole_text(name.strip()) for name in csv_fields(head, separator, strict=False))
    if not names:
        raise bad_line(str(path), number, printable(head), "the names of the columns, with every quote closed")
    if repeated := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{path}, line {number}: two columns are called {min(repeated)!r}: each needs its own name")

    def rows(wanted: Sequence[str], bad: BadRows) -> Iterator[tuple[int, Sequence[Any]]]:
        places = [names.index(name) for name in wanted]
        lines = byte_lines(path)
        next(lines)
        for line, record in csv_rows(lines, names, bad, separator=separator, strict=False):
            if any(map(str.strip, record)):  # spreadsheets write blank rows as separators alone
                yield line, [record[place] for place in places]

    return _File(path, names, rows, {})


def _json_lines(path: Path) -> _File:
    first = islice(json_rows(byte_lines(path), _OBJECT, BadRows(str(path))), 1000)
    names = tuple(dict.fromkeys(name for _, record in first for name in record))

    def rows(wanted: Sequence[str], bad: BadRows) -> Iterator[tuple[int, Sequence[Any]]]:
        for line, record in json_rows(byte_lines(path), _OBJECT, bad):
            yield line, [record.get(name) for name in wanted]

    return _File(path, names, rows, {})


def _parquet(path: Path) -> _File:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as fault:
        raise DataError(f"{path}: not a whole Parquet file ({fault})") from None
    dates = {field.name: field.type for field in schema if pa.types.is_temporal(field.type)}
    units = {name: "s" if pa.types.is_date(kind) else getattr(kind, "unit", "s") for name, kind in dates.items()}

    def rows(wanted: Sequence[str], bad: BadRows) -> Iterator[tuple[int, Sequence[Any]]]:
        line = 0
        try:
            for batch in pq.ParquetFile(path).iter_batches(columns=list(dict.fromkeys(wanted))):
                columns = [batch.column(name) for name in wanted]
                for place, name in enumerate(wanted):
                    if name in units:
                        columns[place] = columns[place].cast(pa.timestamp(units[name])).cast(pa.int64())
                for row in zip(*(column.to_pylist() for column in columns), strict=True):
                    line += 1
                    yield line, row
        except (OSError, pa.ArrowException) as fault:
            raise DataError(f"{path}, after row {line}: can't be read ({fault})") from None

    return _File(path, tuple(schema.names), rows, units)


def _id(value: Any) -> str:
    """An id as text, never another's; raises ValueError for what is none."""
    if _is_whole(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(value)
    text = str(value)
    if not text.strip() or "\0" in text or whole_text(text) != text:
        raise ValueError(value)
    return text


def _text(value: Any) -> str:
    """A title or an attribute on one line: lists with commas between, nothing for what is missing."""
    if value is None or value != value:
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    whole = int(value) if _is_whole(value) else value  # a year beside missing ones
    return whole_text(" ".join(str(whole).split()))


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer() and abs(value) < 2**53


def _time(value: Any) -> int | float | np.datetime64:
    return date_time(value) if isinstance(value, str) and not is_number(value) else clock(value)


_READ: dict[str, Callable[[Any], Any]] = {"user": _id, "item": _id, "rating": finite, "time": _time, "title": _text}
_WANTED = {
    "user": "a user's id: text or a whole number",
    "item": "an item's id: text or a whole number",
    "rating": "a finite number as rating",
    "time": "a time: a number since 1970, or a date such as 2018-09-21 13:05",
}


def _numbers(times: list[Any], unit: str | None) -> NDArray[Any]:
    """Times as int64, as float64 where any has a fraction, or as datetimes of a unit."""
    dates = {isinstance(time, np.datetime64) for time in times}
    if dates == {True}:
        return np.array(times, "datetime64[ns]")
    if True in dates:
        times = [time.astype(np.int64).item() / 1e9 if isinstance(time, np.datetime64) else time for time in times]
    if not all(isinstance(time, int) for time in times):
        return np.array(times, np.float64)
    numbers = np.array(times, np.int64)
    return numbers.astype(f"datetime64[{unit}]") if unit else numbers
