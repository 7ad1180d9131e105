"""Rows of text files, one line after another; those that can't be read are left out, counted and shown.

`field_rows`, `csv_rows` and `json_rows` make rows of the lines of `starec_env.data.files.byte_lines`, `BadRows`
counts what is no row, and `text_id`, `finite` and `clock` read the values.
"""

from __future__ import annotations

import ast
import csv
import json
import reprlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any

from pydantic_core import from_json

from starec_env.data.files import Line
from starec_env.data.text import whole_text
from starec_env.data.times import time_number
from starec_env.errors import DataError

MOST_BAD = 0.01
"""The share of a file's rows that may be bad: beyond it the file is refused."""
NO_VALUE = (KeyError, TypeError, ValueError, OverflowError)
"""What reading a value raises where it is none."""
_MOST_CSV_LINES = 8
_MOST = 3.4028234663852886e38
"""The largest float32."""


class BadRows:
    """The rows of a file that can't be read: they are left out and counted, and the first is kept to be shown.

    Examples:
        >>> bad = BadRows("ratings.csv")
        >>> bad.add(5, "1,x", "userId,movieId,rating,timestamp")
        >>> bad.check(1000)
        >>> bad.notes()[0][:82]
        '1 of 1,000 rows of ratings.csv could not be read and were left out, first line 5: '
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.count = 0
        self._first = ""
        self._rows = 0

    def add(self, number: int, got: object, wanted: str) -> None:
        """Count a bad row.

        Args:
            number: Its 1-based line.
            got: What it holds: its text, or the values in question.
            wanted: What it should hold.

        Raises:
            DataError: It is one of a thousand, and so is every second line up to it: this is no file of that format.
        """
        if not self.count:
            self._first = f"line {number}: got {_shown(got)}, wanted {wanted}"
        self.count += 1
        if self.count % 1000 == 0 and 2 * self.count > number:
            self.check(number)

    def check(self, n_rows: int) -> None:
        """Take note of how many rows the file has, bad ones included; raises DataError if more than 1 % are bad."""
        self._rows = n_rows
        if self.count > MOST_BAD * n_rows:
            raise DataError(
                f"{self.where}, {self._first}: correct or remove it ({self.count:,} of {n_rows:,} rows can't be read, "
                f"and at most {MOST_BAD * 100:g} % may be left out)"
            )

    def notes(self) -> list[str]:
        """A note that counts the bad rows and shows the first; none where there are none."""
        if not self.count:
            return []
        count = f"{self.count:,} of {self._rows:,} rows of {self.where}"
        return [f"{count} could not be read and were left out, first {self._first}"]


def bad_line(where: str, number: int, got: object, wanted: str) -> DataError:
    """Build the error for a line without which nothing can be read, e.g. a header."""
    return DataError(f"{where}, line {number}: got {_shown(got)}, wanted {wanted}: correct or remove the line")


def _shown(got: object) -> str:
    """At most 80 characters of text, or the repr of anything else with its parts cut short."""
    if isinstance(got, str):
        return repr(got if len(got) <= 80 else got[:77] + "...")
    try:
        return reprlib.repr(got)
    except ValueError:  # an int of more digits than Python prints
        return f"a huge {type(got).__name__}"


def printable(line: bytes) -> str:
    """A line for a message, whatever bytes it holds."""
    return line[:400].decode(errors="replace")


def field_rows(
    lines: Iterable[Line], separator: str, wanted: str, bad: BadRows, *, strict: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """Yield (1-based line number, fields) of lines of fields that are never quoted; `bad` is checked at the end.

    Args:
        lines: The lines.
        separator: What stands between fields.
        wanted: The fields' names joined by the separator: a line with another number of fields is bad.
        bad: Collects the lines that can't be read.
        strict: Whether a line that holds NUL or is no UTF-8 is bad. Else such bytes, which may be in a field that
            nobody reads, become lone surrogates.
    """
    n_rows, n_separators = 0, wanted.count(separator)
    for number, line in lines:
        n_rows += 1
        text = _text(line, strict)
        if text is not None and text.count(separator) == n_separators:
            yield number, text.split(separator)
        else:
            _add_line(bad, number, line, wanted)
    bad.check(n_rows)


def _text(line: bytes, strict: bool) -> str | None:
    if not strict:
        return line.decode(errors="surrogateescape")
    try:
        return None if b"\0" in line else line.decode()
    except UnicodeDecodeError:
        return None


def _add_line(bad: BadRows, number: int, line: bytes, wanted: str) -> None:
    bad.add(number, printable(line), wanted if _text(line, strict=True) else f"{wanted}, in UTF-8 and without NUL")


def csv_rows(
    lines: Iterable[Line], names: Sequence[str], bad: BadRows, *, separator: str = ",", strict: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """Yield (1-based number of the first line, fields) of the rows of a CSV file; `bad` is checked at the end.

    A quoted field may hold line breaks. Where a quote isn't closed within 8 lines, the line that opens it is bad and
    those after it are read for themselves, so that it takes no others with it.

    Args:
        lines: The lines after the header.
        names: The header's names: a row with another number of fields is bad.
        bad: Collects the rows that can't be read.
        separator: The character between fields.
        strict: As for `field_rows`.
    """
    n_rows = 0
    stream, ahead = iter(lines), deque[Line]()
    while first := ahead.popleft() if ahead else next(stream, None):
        n_rows += 1
        number, line = first
        parts = csv_fields(line, separator, strict=strict)
        if not parts and b'"' in line:
            ahead.extend(islice(stream, _MOST_CSV_LINES - len(ahead)))
            parts, used = _joined(line, ahead, separator, strict)
            for _ in range(used):
                ahead.popleft()
        if len(parts) == len(names):
            yield number, parts
        else:
            hint = " (is a quote not closed?)" if b'"' in line else ""
            _add_line(bad, number, line, f"{separator.join(names)}{hint}")
    bad.check(n_rows)


def csv_fields(line: bytes, separator: str = ",", *, strict: bool = True) -> list[str]:
    """The fields of one row of CSV; none where it can't be read."""
    if (text := _text(line, strict)) is None:
        return []
    try:
        return next(csv.reader([text], delimiter=separator, strict=True)) if '"' in text else text.split(separator)
    except csv.Error:
        return []


def _joined(line: bytes, following: Iterable[Line], separator: str, strict: bool) -> tuple[list[str], int]:
    """The fields of a row whose quotes close in a later line, and how many later lines it takes."""
    pieces, quotes = [line], line.count(b'"')
    for used, (_, more) in enumerate(following, 1):
        pieces.append(more)
        quotes += more.count(b'"')
        if quotes % 2 == 0 and (parts := csv_fields(b"\n".join(pieces), separator, strict=strict)):
            return parts, used
    return [], 0


def json_rows(lines: Iterable[Line], wanted: str, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (1-based line number, object) of JSON lines; `bad` is checked at the end.

    Read is whatever writers of JSON write: halves of surrogate pairs, raw tabs in strings, NaN, and lines printed by
    Python, `{'asin': ...}`, as the metadata of 2014 are. Bytes that are no UTF-8 become lone surrogates too.

    Args:
        lines: The lines.
        wanted: What a line should hold, for messages.
        bad: Collects the lines that can't be read.
    """
    n_rows = 0
    for number, line in lines:
        n_rows += 1
        try:
            row = from_json(line)
        except ValueError:
            row = _lenient_json(line.strip())
        if isinstance(row, dict):
            yield number, row
        else:
            bad.add(number, printable(line), wanted)
    bad.check(n_rows)


def _lenient_json(line: bytes) -> Any:
    try:
        if line.startswith(b"{'"):
            return ast.literal_eval(line.decode(errors="replace"))
        return json.loads(line.decode(errors="surrogateescape"), strict=False)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):  # TypeError: {'a': {[]: 1}}
        return None


def text_id(value: Any) -> str:
    """An id as text; raises ValueError where it is blank, no text or whole number, or has a character that is lost."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or "\0" in value or "\ufffd" in whole_text(value):
        raise ValueError(value)
    return whole_text(value)


def finite(value: Any) -> float:
    """A number that a data set's float32 can hold, or text that is one in ASCII digits; else raises one of NO_VALUE."""
    if isinstance(value, str) and (not value.isascii() or "_" in value):
        raise ValueError(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        raise ValueError(value)
    if not abs(number := float(value)) <= _MOST:
        raise ValueError(value)
    return number


def clock(value: Any) -> int | float:
    """A time as `time_number` reads it, in any unit and within 64 bits; else raises one of NO_VALUE."""
    if abs(number := time_number(value)) >= 2**63:
        raise ValueError(value)
    return number
