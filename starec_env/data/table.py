"""A file of one's own as a data set: CSV, TSV, JSON lines or Parquet, gzipped or not, with any names of columns.

What kind of file it is, and whether it is gzipped, is seen by its first bytes. A row that can't be read is left out,
counted and reported with its line; many such rows are an error.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from starec_env.data.build import counted, guess_domain
from starec_env.data.frame import from_frame
from starec_env.data.ids import text_ids
from starec_env.data.times import time_number
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
_WANTED = {
    "user": "a user's id: text or a whole number",
    "item": "an item's id: text or a whole number",
    "rating": "a finite number as rating",
    "time": "a time: a number since 1970, or a date such as 2018-09-21 13:05",
}
_SEPARATORS = "\t,;|"
_LOST = re.compile("[\ud800-\udfff]")
"""Bytes that are no UTF-8, and halves of characters that JSON writers leave."""


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
        columns: Names of columns by role: "user", "item", "rating", "time" and "title". Those not given are looked
            for by their usual names (user_id, movieId, asin, score, date, ...).
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
    user, item = file.needs({role: found[role] for role in ("user", "item")}).values()
    frame, notes = _interactions(file, {**found, "title": title})
    table: dict[str, Any] | None = None
    if items:
        table, title, more = _items(_File.at(Path(items)), named, item)
        notes += more
        frame[item], table[item] = text_ids(frame[item], table[item])
    else:
        (frame[item],) = text_ids(frame[item])
    (frame[user],) = text_ids(frame[user])
    dataset = from_frame(
        frame,
        name=file.path.name.removesuffix(".gz").rpartition(".")[0] or file.path.name,
        domain=domain or guess_domain(file.path.name, Path(items).name if items else ""),
        items=table,
        user=user,
        item=item,
        rating=found["rating"] or "rating",
        timestamp=found["time"] or "timestamp",
        title=title or "title",
        liked_above=liked_above,
    )
    used = ", ".join(f"{role}={name}" if name else f"no {role}" for role, name in found.items())
    notes.insert(0, f"columns of {file.path.name}: {used}; others can be named (--columns)")
    return replace(dataset, notes=(*notes, *dataset.notes))


def _interactions(file: _File, columns: Mapping[str, str | None]) -> tuple[dict[str, Any], list[str]]:
    """The columns by name, ids still as text, and notes; a role without a column has none."""
    names = {role: name for role, name in columns.items() if name}
    kept: dict[str, list[Any]] = {role: [] for role in names}
    bad = _BadRows(str(file.path))
    reads = [_READ[role] if role == "time" else _Remembering(_READ[role]) for role in names]
    for line, values in file.rows(list(names.values()), bad):
        try:
            row = [read(value) for read, value in zip(reads, values, strict=True)]
        except (ValueError, TypeError, OverflowError):
            role, value = next(wrong for wrong in zip(names, values, strict=True) if not _readable(*wrong))
            bad.add(line, value, _WANTED[role])
            continue
        for column, value in zip(kept.values(), row, strict=True):
            column.append(value)
    bad.check(len(kept["user"]) + bad.count)
    if not kept["user"]:
        raise DataError(f"{file.path}: the file holds no interactions, only its header")
    frame: dict[str, Any] = {name: kept[role] for role, name in names.items()}
    if "rating" in names:
        frame[names["rating"]] = np.array(kept["rating"], np.float64)
    if "time" in names:
        frame[names["time"]] = _numbers(kept["time"], file.units.get(names["time"]))
    return frame, bad.notes()


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


def _readable(role: str, value: Any) -> bool:
    try:
        _READ[role](value)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _items(file: _File, named: Mapping[str, str], item: str) -> tuple[dict[str, Any], str, list[str]]:
    """A table of items as text, its ids under the name `item`; the name of its titles; and notes."""
    key = item if item in file.names else file.column("item", {}, also="id")
    key, title = file.needs({"item": key, "title": file.column("title", named, also="name")}).values()
    names = [title, *(name for name in file.names if name not in (key, title))]
    table: dict[str, Any] = {name: [] for name in (item, *names)}
    bad, lost = _BadRows(str(file.path)), 0
    for line, (item_id, *words) in file.rows([key, *names], bad):
        try:
            row = [_id(item_id), *map(_text, words)]
        except ValueError:
            bad.add(line, item_id, _WANTED["item"])
            continue
        lost += _LOST.search(str(words[0])) is not None
        for column, value in zip(table.values(), row, strict=True):
            column.append(value)
    bad.check(len(table[item]) + bad.count)
    notes = bad.notes()
    if lost:
        notes.append(f"{file.path.name}: {counted(lost, 'title')} with bytes that are no UTF-8: shown as \ufffd")
    return table, title, notes


@dataclass(frozen=True)
class _File:
    """A table on disk: its kind and the names of its columns, known before its rows are read."""

    path: Path
    names: tuple[str, ...]
    rows: Callable[[Sequence[str], _BadRows], Iterator[tuple[int, Sequence[Any]]]]
    """(names of columns, where bad rows go) -> line and values of each good one."""
    units: Mapping[str, str]
    """Of columns that hold datetimes: "s", "ms", "us" or "ns"."""

    @staticmethod
    def at(path: Path) -> _File:
        """Look at a file; raises DataError if it is none, or none of the kinds."""
        if not path.is_file():
            raise DataError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}; wanted a table")
        with path.open("rb") as raw:
            if raw.read(4) == b"PAR1":
                return _parquet(path)
        with _opened(path) as text:
            start = text.read(1 << 16).lstrip()
        if not start or "\0" in start[:1024]:
            raise DataError(f"{path}: {'binary data or UTF-16' if start else 'the file is empty'}; wanted UTF-8 text")
        if start[0] == "[":
            raise DataError(f"{path}: one JSON array; wanted JSON lines, an object a line")
        return _json_lines(path) if start[0] == "{" else _delimited(path)

    def column(self, role: str, named: Mapping[str, str], also: str = "") -> str | None:
        """The column of a role: as named, or the first usual name; None where there may be none."""
        if role in named:
            if named[role] not in self.names:
                raise self.lacks([role], f"{role}={self.names[0]}", named[role])
            return named[role]
        plain = {re.sub(r"[\W_]", "", name).lower(): name for name in reversed(self.names)}
        return next((plain[alias] for alias in f"{_ALIASES[role]} {also}".split() if alias in plain), None)

    def needs(self, columns: Mapping[str, str | None]) -> dict[str, str]:
        """The columns by role, all of which must be there."""
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
            f"{self.path}: there is no {what}, but {columns}: say which is which, as --columns {example} "
            "(the first line must name the columns)"
        )


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """A plain or gzipped file as text; bytes that are no UTF-8 become lone surrogates."""
    try:
        with path.open("rb") as raw:
            stream: Any = gzip.open(raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            with TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="") as text:
                yield text
    except (OSError, EOFError, zlib.error) as fault:
        raise DataError(f"{path}: the file is cut short, damaged or can't be read ({fault})") from fault


def _delimited(path: Path) -> _File:
    with _opened(path) as text:
        head = text.readline(1 << 20)
    separator = max(_SEPARATORS, key=head.count)

    def records() -> Iterator[tuple[int, list[str]]]:
        with _opened(path) as text:
            reader = csv.reader(text, delimiter=separator)
            line = 1
            try:
                for record in reader:
                    if any(map(str.strip, record)):
                        yield line, record
                    line = reader.line_num + 1
            except csv.Error as fault:
                raise DataError(f"{path}, line {line}: {fault}: is a quote not closed there?") from None

    names = tuple(name.strip() for name in next(records())[1])
    if repeated := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{path}, line 1: two columns are called {min(repeated)!r}: each needs a name of its own")

    def rows(wanted: Sequence[str], bad: _BadRows) -> Iterator[tuple[int, Sequence[Any]]]:
        places = [names.index(name) for name in wanted]
        every = records()
        next(every)
        for line, record in every:
            if len(record) == len(names):
                yield line, [record[place] for place in places]
            else:
                bad.add(line, separator.join(record), f"{len(names)} fields")

    return _File(path, names, rows, {})


def _json_lines(path: Path) -> _File:
    def records() -> Iterator[tuple[int, str, dict[str, Any] | None]]:
        with _opened(path) as text:
            for line, raw in enumerate(text, 1):
                if raw.strip():
                    try:
                        record = json.loads(raw)
                    except (ValueError, RecursionError):
                        record = None
                    yield line, raw.strip(), record if isinstance(record, dict) else None

    first = [record for _, (_, _, record) in zip(range(1000), records(), strict=False) if record]
    names = tuple(dict.fromkeys(name for record in first for name in record))

    def rows(wanted: Sequence[str], bad: _BadRows) -> Iterator[tuple[int, Sequence[Any]]]:
        for line, raw, record in records():
            if record is None:
                bad.add(line, raw, "a JSON object")
            else:
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

    def rows(wanted: Sequence[str], bad: _BadRows) -> Iterator[tuple[int, Sequence[Any]]]:
        line = 0
        try:
            for batch in pq.ParquetFile(path).iter_batches(columns=list(wanted)):
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
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(value)
    text = str(value)
    if not text.strip() or "\0" in text or _LOST.search(text):
        raise ValueError(value)
    return text


def _rating(value: Any) -> float:
    if isinstance(value, str) and (not value.isascii() or "_" in value):
        raise ValueError(value)  # float() takes 1_0 for 10
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _time(value: Any) -> int | float:
    number = time_number(value)
    if abs(number) >= 2**63:
        raise ValueError(value)
    return number


def _text(value: Any) -> str:
    """A title or an attribute on one line: lists with commas between, nothing for what is missing."""
    if value is None or value != value:
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53  # a year beside missing ones
    return _LOST.sub("\ufffd", " ".join(str(int(value) if whole else value).split()))


_READ: dict[str, Callable[[Any], Any]] = {
    "user": _id,
    "item": _id,
    "rating": _rating,
    "time": _time,
    "title": _text,
}


def _numbers(times: list[int | float], unit: str | None) -> NDArray[Any]:
    """Times as int64, as float64 where any has a fraction, or as datetimes of a unit."""
    if not all(isinstance(time, int) for time in times):
        return np.array(times, np.float64)
    numbers = np.array(times, np.int64)
    return numbers.astype(f"datetime64[{unit}]") if unit else numbers


class _BadRows:
    """Rows of a file that can't be read, counted, the first remembered."""

    def __init__(self, where: str) -> None:
        self.where, self.count, self.total, self.first = where, 0, 0, ""

    def add(self, line: int, got: object, wanted: str) -> None:
        shown = got if isinstance(got, str) else repr(got)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        self.first = self.first or f"line {line}: got {shown!r}, wanted {wanted}"
        self.count += 1

    def check(self, n_rows: int) -> None:
        self.total = max(n_rows, self.count)
        if self.count > 0.01 * self.total:
            raise DataError(
                f"{self.where}: {self.count:,} of {self.total:,} rows can't be read, the first in {self.first}: "
                "correct the file, or name its columns (--columns)"
            )

    def notes(self) -> list[str]:
        if not self.count:
            return []
        rows = "row could" if self.count == 1 else "rows could"
        return [f"{self.count:,} of {self.total:,} {rows} not be read and left out of {self.where}, first {self.first}"]
