"""Reading files that may be damaged or hostile: the one place where bytes are opened, and rows are read of them.

Every reader of text goes the same way: `byte_lines` opens a plain or gzipped file, `field_rows`, `csv_rows` or
`json_rows` make rows of its lines, and `BadRows` counts the rows that can't be read.
"""

from __future__ import annotations

import ast
import csv
import gzip
import json
import math
import os
import re
import reprlib
import stat
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from io import BufferedReader, BytesIO, TextIOWrapper
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from pydantic_core import from_json

from starec_env.data.times import time_number
from starec_env.errors import DataError

Line = tuple[int, bytes]
"""A line's 1-based number in its file, and the line."""

LATEST = 1e15
"""Times since 1970, in seconds or milliseconds, are below this."""
MOST_BAD = 0.01
"""The share of a file's rows that may be bad: beyond it the file is refused."""
_LONGEST_LINE = 1 << 26
_MOST_BLANK = 1 << 24
_MOST_BYTES = 2 << 30
_MOST_RATIO = 200  # text deflates 4 to 10 times; a zip bomb a thousand times
_MOST_CSV_LINES = 8
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_BUFFER = 1 << 16
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


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
        """Take note of how many rows the file has, bad ones included.

        Raises:
            DataError: More than 1 % of them are bad.
        """
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


def is_folder(path: Path, wanted: str) -> bool:
    """Whether a path is a folder rather than a regular file, links followed.

    Raises:
        DataError: It is neither, e.g. a named pipe, or isn't there.
    """
    return stat.S_ISDIR(_status(path, wanted).st_mode)


def _status(path: Path, wanted: str) -> os.stat_result:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as fault:
        raise DataError(f"{path}: no such file or folder; wanted {wanted}") from fault
    except (OSError, ValueError) as fault:
        raise DataError(f"{path}: can't be read: {fault}") from fault
    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no regular file')}; wanted {wanted}")
    return status


def listed(folder: Path) -> list[Path]:
    """What a folder holds, sorted.

    Raises:
        DataError: It can't be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as fault:
        raise DataError(f"{folder}: can't be read: {fault}") from fault


def _size(file: Path) -> int:
    """The size of a regular file; anything else, which might never end, is refused before it is opened."""
    status = _status(file, "a file")
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{file}: is a folder; wanted a file")
    return status.st_size


def read_members(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, bytes]:
    """Read files by their base names from a folder (or its one sub-folder that holds them) or a zip, into memory.

    A file may be gzipped, with ".gz" after its name or without. A byte order mark is cut off, and the line ends of
    old Macs become line feeds. Nothing is ever unpacked to disk, so a zip's member names can't lead anywhere; those
    that try are refused all the same.

    Raises:
        DataError: `path` doesn't exist, is no zip, lacks a required file, or holds unsafe, damaged or huge ones.
    """
    names = (*required, *optional)
    held = f"one that holds {', '.join(required)}"
    raw = _from_folder(path, names) if is_folder(path, f"a folder or zip, {held}") else _from_zip(path, names)
    if missing := [name for name in required if name not in raw]:
        raise DataError(f"{path}: holds no {' and no '.join(missing)}; give the folder or zip as published")
    left, found = _MOST_BYTES, {}
    for name, content in raw.items():
        found[name] = _plain(content, f"{path}/{name}", left)
        left -= len(found[name])
    return found


def _from_folder(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    found, left = {}, _MOST_BYTES
    for name in names:
        places = [
            place for file in (name, f"{name}.gz") for place in (folder / file, *sorted(folder.glob(f"*/{file}")))
        ]
        places = [place for place in places if os.path.lexists(place)]
        if not places:
            continue
        file = next((place for place in places if os.path.isfile(place)), places[0])
        if (left := left - _size(file)) < 0:
            raise DataError(f"{file}: more than {_MOST_BYTES:,} bytes, an absurd size for a data set")
        found[name] = _read(file)
    return found


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as fault:
        raise DataError(f"{file}: can't be read: {fault}") from fault


def _from_zip(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(member) for name, member in _safe_members(path, archive, names).items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OverflowError, struct.error) as fault:
        raise DataError(
            f"{path}: not a whole zip file ({fault}); wanted a folder or the zip as published: download it again"
        ) from fault
    except OSError as fault:
        raise DataError(f"{path}: can't be read: {fault}") from fault


def _safe_members(path: Path, archive: zipfile.ZipFile, names: Sequence[str]) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        inner = PurePosixPath(info.filename)
        if inner.is_absolute() or PureWindowsPath(info.filename).drive or ".." in inner.parts or "\\" in info.filename:
            raise DataError(f"{path}: member {info.filename!r} points outside the archive: not a published data set")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{path}: member {info.filename!r} is a link: not a published data set")
        if (name := inner.name.removesuffix(".gz")) not in names or info.is_dir():
            continue
        if name in found:
            raise DataError(f"{path}: holds two files named {name}: {found[name].filename}, {info.filename}")
        _check_member(path, info)
        found[name] = info
    if sum(info.file_size for info in found.values()) > _MOST_BYTES:
        raise DataError(f"{path}: claims more than {_MOST_BYTES:,} bytes, an absurd size for a data set")
    return found


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
    if info.flag_bits & 1:
        raise DataError(f"{path}: member {info.filename!r} is encrypted: unpack it and give the folder")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}: member {info.filename!r} is packed in an unusual way: unpack it and give the folder")
    if info.file_size > _MOST_RATIO * max(info.compress_size, 4096):
        raise DataError(
            f"{path}: member {info.filename!r} claims {info.file_size:,} bytes from {info.compress_size:,}: "
            "an absurd size for a data set; if it is real, unpack it and give the folder"
        )


def _plain(raw: bytes, where: str, most: int) -> bytes:
    """A member's bytes, inflated where they are gzipped, without byte order mark; line feeds end its lines."""
    if raw.startswith(_GZIP):
        most = min(most, _MOST_RATIO * max(len(raw), 4096))
        try:
            raw = gzip.open(BytesIO(raw)).read(most + 1)
        except (OSError, EOFError, zlib.error) as fault:
            raise _cut(where, 0, fault) from fault
        if len(raw) > most:
            raise DataError(f"{where}: its gzip stream holds more than {most:,} bytes, an absurd size for a data set")
    raw = raw.removeprefix(_BOM)
    if not re.search(rb"\S", raw):
        raise DataError(f"{where}: the file is empty")
    _check_text(raw[:1024], where)
    return raw if b"\n" in raw else raw.replace(b"\r", b"\n")


def _cut(where: str, number: int, fault: Exception) -> DataError:
    return DataError(f"{where}, after line {number}: the file is cut short or damaged ({fault}): download it again")


def decode(raw: bytes, where: str, official: str = "utf-8") -> tuple[str, str | None]:
    """Turn a file's bytes into text, and say so when the encoding isn't the official one.

    Text that holds non-ASCII characters and is valid UTF-8 is UTF-8 whatever the format says: accented latin-1 text
    is hardly ever valid UTF-8 by chance, and read as latin-1 it would show "MisÃ©rables".

    Args:
        raw: The file's bytes.
        where: The file's name for messages.
        official: "utf-8", or "latin-1" where the format has that.

    Returns:
        The text, and a note or None.

    Raises:
        DataError: The file is empty, or is neither UTF-8 nor `official`.
    """
    if not raw.strip():
        raise DataError(f"{where}: the file is empty")
    _check_text(raw[:1024], where)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        if official == "latin-1":
            return raw.decode("latin-1"), None
        line = raw.count(b"\n", 0, fault.start) + 1
        raise DataError(
            f"{where}, line {line}: byte 0x{raw[fault.start]:02x} isn't UTF-8: save the file as UTF-8"
        ) from fault
    return text, None if official == "utf-8" or text.isascii() else f"{where} is UTF-8, not the official {official}"


def _check_text(head: bytes, where: str) -> None:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head.count(0) > len(head) // 16:
        raise DataError(f"{where}, line 1: UTF-16 or binary data; wanted text: save it as UTF-8")


def byte_lines(source: Path | bytes, where: str | None = None) -> Iterator[Line]:
    r"""Yield each line that isn't blank of a plain or gzipped file, told by its bytes.

    Lines come without their ends ("\n", "\r\n", or "\r" in a file that has no others) and without a byte order
    mark.

    Args:
        source: The file, or its content.
        where: Its name for messages; None is the path.

    Raises:
        DataError: It is no regular file, can't be read, is empty or binary, its gzip stream is cut short or damaged,
            a line is longer than 64 MiB, 16 MiB in a row are blank, or gzip has packed it beyond all reason.
    """
    where = where or str(source)
    size = len(source) if isinstance(source, bytes) else _size(source)
    number = blank = total = 0
    seen = False
    try:
        with BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            packed, read_line = _reader(file, where)
            most = _MOST_RATIO * max(size, 4096) if packed else math.inf
            for number, line in enumerate(iter(partial(read_line, _LONGEST_LINE), b""), 1):
                total += len(line)
                if len(line) >= _LONGEST_LINE or total > most:
                    absurd = f"{total:,} bytes up to it" + (f" of {size:,} gzipped ones" if packed else "")
                    raise DataError(f"{where}, line {number}: an absurd size for a data set: {absurd}")
                line = line.removeprefix(_BOM).rstrip(b"\r\n")  # files put together have marks within
                if line.strip():
                    blank, seen = 0, True
                    yield number, line
                elif (blank := blank + len(line) + 1) > _MOST_BLANK:
                    raise DataError(f"{where}, line {number}: nothing but blank lines for {blank:,} bytes")
    except (OSError, EOFError, zlib.error) as fault:
        raise _cut(where, number, fault) from fault
    if not seen:
        raise DataError(f"{where}: the file is empty")


def _reader(file: IO[bytes], where: str) -> tuple[bool, Callable[[int], bytes]]:
    """Whether a stream is gzipped, and what reads a line of it, of at most so many bytes."""
    plain = BufferedReader(file, _BUFFER)  # type: ignore[type-var]
    packed = plain.peek(2)[:2] == _GZIP
    stream = BufferedReader(gzip.open(plain), _BUFFER) if packed else plain
    head = stream.peek(_BUFFER)
    _check_text(head[:1024], where)
    if b"\r" not in head or b"\n" in head:
        return packed, stream.readline
    text = TextIOWrapper(stream, "latin-1", newline=None)  # turns each "\r" into "\n" and keeps all other bytes
    return packed, lambda most: text.readline(most).encode("latin-1")


def check_gzip(file: Path, where: str) -> None:
    """Read a gzipped file through to its last checksum.

    Raises:
        DataError: It isn't gzipped, is cut short or damaged, or packed beyond all reason; the message names `where`
            it comes from.
    """
    total, most = 0, _MOST_RATIO * max(_size(file), 4096)
    try:
        with gzip.open(file) as stream:
            while chunk := stream.read(_BUFFER):
                if (total := total + len(chunk)) > most:
                    raise DataError(f"{where}: its gzip stream holds more than {most:,} bytes: no data set")
    except (OSError, EOFError, zlib.error) as fault:
        raise DataError(
            f"{where}: not a whole gzip file ({fault}): it was cut off, or something on the way (a login page, a "
            "proxy) answered instead: fetch it again"
        ) from fault


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
    width = wanted.count(separator) + 1
    n_rows = 0
    for number, line in lines:
        n_rows += 1
        text = _text(line, strict)
        if text is not None and text.count(separator) == width - 1:
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


def printable(line: bytes) -> str:
    """A line for a message, whatever bytes it holds."""
    return line[:400].decode(errors="replace")


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
            _add_line(bad, number, line, separator.join(names))
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


def whole_text(text: str) -> str:
    """Text that can be written as UTF-8: halves of a surrogate pair are joined, and one alone becomes U+FFFD."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def text_id(value: Any) -> str:
    """An id as text; raises ValueError where it is blank, no text or whole number, or has a character that is lost."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or "\0" in value or "\ufffd" in whole_text(value):
        raise ValueError(value)
    return whole_text(value)


def finite(value: Any) -> float:
    """A number, or text that is one in ASCII digits; raises ValueError or OverflowError where it is none."""
    if isinstance(value, str) and (not value.isascii() or "_" in value):
        raise ValueError(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not math.isfinite(number := float(value)):
        raise ValueError(value)
    return number


def clock(value: Any) -> int | float:
    """A time as `time_number` reads it, in any unit; raises ValueError, TypeError or OverflowError beyond 64 bits."""
    if abs(number := time_number(value)) >= 2**63:
        raise ValueError(value)
    return number
