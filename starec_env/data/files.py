"""Reading files that may be damaged or hostile: folders, zips, gzip streams, encodings; every fault names its place."""

from __future__ import annotations

import gzip
import stat
import zipfile
import zlib
from collections.abc import Container, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from starec_env.errors import DataError

LATEST = 1e15
"""Times since 1970, in seconds or milliseconds, are below this."""
_LONGEST_LINE = 1 << 26
_MOST_BYTES = 2 << 30
_MOST_RATIO = 200  # text deflates 4 to 10 times; a zip bomb a thousand times


def read_members(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, bytes]:
    """Read files by their base names from a folder (or its one sub-folder that holds them) or a zip, into memory.

    Nothing is ever unpacked to disk, so a zip's member names can't lead anywhere; those that try are refused all
    the same.

    Raises:
        DataError: `path` doesn't exist, is no zip, lacks a required file, or is a zip with unsafe members.
    """
    if path.is_dir():
        found = {name: file for name in (*required, *optional) if (file := _in_folder(path, name))}
        _check_required(path, required, found)
        return {name: _read(file) for name, file in found.items()}
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; wanted one that holds {', '.join(required)}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = _safe_members(path, archive, (*required, *optional))
            _check_required(path, required, members)
            return {name: archive.read(member) for name, member in members.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as fault:
        raise DataError(
            f"{path}: not a whole zip file ({fault}); wanted a folder or the zip as published: download it again"
        ) from fault
    except OSError as fault:
        raise DataError(f"{path}: can't be read: {fault}") from fault


def _in_folder(folder: Path, name: str) -> Path | None:
    places = [folder / name, *sorted(folder.glob(f"*/{name}"))]
    return next((file for file in places if file.is_file()), None)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as fault:
        raise DataError(f"{file}: can't be read: {fault}") from fault


def _check_required(path: Path, required: Sequence[str], found: Container[str]) -> None:
    if missing := [name for name in required if name not in found]:
        raise DataError(f"{path}: holds no {' and no '.join(missing)}; give the folder or zip as published")


def _safe_members(path: Path, archive: zipfile.ZipFile, names: Sequence[str]) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        inner = PurePosixPath(info.filename)
        if inner.is_absolute() or PureWindowsPath(info.filename).drive or ".." in inner.parts or "\\" in info.filename:
            raise DataError(f"{path}: member {info.filename!r} points outside the archive: not a published data set")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{path}: member {info.filename!r} is a link: not a published data set")
        if inner.name not in names:
            continue
        if inner.name in found:
            raise DataError(
                f"{path}: holds two files named {inner.name}: {found[inner.name].filename}, {info.filename}"
            )
        if info.flag_bits & 1:
            raise DataError(f"{path}: member {info.filename!r} is encrypted: unpack it and give the folder")
        if info.file_size > _MOST_BYTES or info.file_size > _MOST_RATIO * max(info.compress_size, 4096):
            raise DataError(
                f"{path}: member {info.filename!r} claims {info.file_size:,} bytes from {info.compress_size:,}: "
                "an absurd size for a data set; if it is real, unpack it and give the folder"
            )
        found[inner.name] = info
    return found


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
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in raw[:1024]:
        raise DataError(f"{where}, line 1: UTF-16 or binary data; wanted {official} text: save it as UTF-8")
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


def fields(text: str, separator: str, wanted: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (1-based line number, fields) of each line that isn't blank.

    Args:
        text: The file's text.
        separator: What stands between fields.
        wanted: The fields' names joined by the separator; their number is checked and the error shows them.
        where: The file's name for messages.

    Raises:
        DataError: A line has another number of fields.
    """
    expected = wanted.count(separator) + 1
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also break at latin-1's \x85
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        parts = line.split(separator)
        if len(parts) != expected:
            raise bad_line(where, number, line, wanted)
        yield number, parts


def bad_line(where: str, number: int, got: object, wanted: str) -> DataError:
    """Build the error for a line that can't be read: where it is, what it holds, what it should hold."""
    shown = got if isinstance(got, str) else repr(got)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return DataError(f"{where}, line {number}: got {shown!r}, wanted {wanted}: mend or remove the line")


def moment(value: Any) -> float:
    """A time since 1970 as a number; raises ValueError or OverflowError where it is none."""
    if not abs(number := float(value)) < LATEST:
        raise ValueError(value)
    return number


def byte_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (1-based line number, line) of each line that isn't blank of a plain or gzipped file, told by its bytes.

    Raises:
        DataError: The file can't be read, or its gzip stream is cut short or damaged.
    """
    number = 0
    try:
        with path.open("rb") as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            stream = gzip.open(file) if packed else file
            for number, line in enumerate(iter(partial(stream.readline, _LONGEST_LINE), b""), 1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as fault:
        raise DataError(
            f"{path}, after line {number}: the file is cut short or damaged ({fault}): download it again"
        ) from fault
