"""Opening files that may be damaged or hostile: folders, zips and gzip streams, whole or line by line.

Every reader of text goes the same way: `byte_lines` opens a plain or gzipped file here, `starec_env.data.rows` makes
rows of its lines.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BufferedReader, BytesIO, TextIOWrapper
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from starec_env.errors import DataError

Line = tuple[int, bytes]
"""A line's 1-based number in its file, and the line."""

LATEST = 1e15
"""Times since 1970, in seconds or milliseconds, are below this."""
_LONGEST_LINE = 1 << 26
_MOST_BLANK = 1 << 24
_MOST_BYTES = 2 << 30
_MOST_RATIO = 200  # text deflates 4 to 10 times; a zip bomb a thousand times
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_BUFFER = 1 << 16
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


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
        spelled = (name, f"{name}.gz")
        places = [place for file in spelled for place in (folder / file, *sorted(folder.glob(f"*/{file}")))]
        if not (places := [place for place in places if os.path.lexists(place)]):
            continue
        file = next((place for place in places if os.path.isfile(place)), places[0])
        if (left := left - _size(file)) < 0:
            raise DataError(f"{file}: more than {_MOST_BYTES:,} bytes, an absurd size for a data set")
        try:
            found[name] = file.read_bytes()
        except OSError as fault:
            raise DataError(f"{file}: can't be read: {fault}") from fault
    return found


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
