"""MovieLens in GroupLens's own formats: ml-1m (`::`, latin-1), ml-100k (u.data, u.item) and the CSV editions.

All keep the whole catalogue and give the domain "movie". A title stays as in the file, "Toy Story (1995)", with the
year also among the attributes: {"year": "1995", "genres": "Comedy, Drama"}. Demographics are spelled out in words;
zip codes are left out. The ratings may be those of a subset of the users; the others are left out and counted.

F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. doi 10.1145/2827872
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.data.build import Rows, build, catalogue_of, people_of
from starec_env.data.files import LATEST, byte_lines, decode, read_members
from starec_env.data.ids import is_whole
from starec_env.data.rows import BadRows, bad_line, csv_fields, csv_rows, field_rows, printable
from starec_env.errors import DataError
from starec_env.types import Dataset, Id, Item

_DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?")
_TIME = re.compile(r"-?[0-9]{1,15}")
_YEAR = re.compile(r"\(([0-9]{4})(?:[-\u2013][0-9]{0,4})?\)\s*$")
_SECONDS = ("int64", -LATEST, LATEST)
"""Arrow's type and the range of times in seconds or milliseconds."""
_FINER = (("int64", LATEST / 10, math.inf), ("float64", -LATEST, LATEST))
"""The same of microseconds or nanoseconds, and of times with a fraction."""
_Rows = Iterator[tuple[int, Sequence[Any]]]
"""Rows with their 1-based lines."""

_GENDERS = {"F": "female", "M": "male"}
_AGES = {"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "56+"}
_JOBS = (
    "other or not specified|academic/educator|artist|clerical/admin|college/grad student|customer service|"
    "doctor/health care|executive/managerial|farmer|homemaker|K-12 student|lawyer|programmer|retired|sales/marketing|"
    "scientist|self-employed|technician/engineer|tradesman/craftsman|unemployed|writer"
).split("|")
_OCCUPATIONS = {str(code): job for code, job in enumerate(_JOBS)}
_GENRES_100K = (
    "|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|"
    "Mystery|Romance|Sci-Fi|Thriller|War|Western"
).split("|")  # the first is "unknown"
_USER_1M = "UserID::Gender::Age::Occupation::Zip-code"
_ITEM_100K = "|".join(["movie id|title|release date|video release date|IMDb URL", *["0 or 1"] * len(_GENRES_100K)])


def load_ml_1m(name: str, path: Path, liked_above: float | None = None) -> Dataset:
    """Load MovieLens 1M (or 10M, which has the same format but no users.dat); as `load_ml_csv`."""
    files = _Files(path, ["ratings.dat", "movies.dat"], "users.dat")
    catalogue = files.catalogue(*files.rows("movies.dat", "::", "MovieID::Title::Genres"))
    people = None
    if "users.dat" in files.raw:
        rows, bad = files.rows("users.dat", "::", _USER_1M)
        people = files.people(_words_1m(rows, bad), bad)
    ratings = files.ratings("ratings.dat", "::", "UserID::MovieID::Rating::Timestamp")
    return build(name, "movie", ratings, catalogue, demographics=people, notes=files.notes, liked_above=liked_above)


def _words_1m(rows: _Rows, bad: BadRows) -> _Rows:
    for number, fields in rows:
        user, gender, age, job, _ = fields
        try:
            words = {"gender": _GENDERS[gender], "age": _AGES[age], "occupation": _OCCUPATIONS[job]}
        except KeyError:
            bad.add(number, "::".join(fields), f"{_USER_1M} with the codes of the README")
            continue
        yield number, (user, words)


def load_ml_100k(name: str, path: Path, liked_above: float | None = None) -> Dataset:
    """Load MovieLens 100K; as `load_ml_csv`. The one film called "unknown" there counts as untitled."""
    files = _Files(path, ["u.data", "u.item"], "u.user")
    rows, bad = files.rows("u.item", "|", _ITEM_100K)
    catalogue = files.catalogue(((number, _film_100k(*fields)) for number, fields in rows), bad)
    people = None
    if "u.user" in files.raw:
        rows, bad = files.rows("u.user", "|", "user id|age|gender|occupation|zip code")
        people = files.people(((number, _words_100k(*fields)) for number, fields in rows), bad)
    ratings = files.ratings("u.data", "\t", "user id\titem id\trating\ttimestamp")
    return build(name, "movie", ratings, catalogue, demographics=people, notes=files.notes, liked_above=liked_above)


def _film_100k(item: str, title: str, _date: str, _video: str, _url: str, *flags: str) -> tuple[str, str, str]:
    genres = [genre for genre, flag in zip(_GENRES_100K, flags, strict=True) if flag == "1"]
    return item, "" if title == "unknown" else title, "|".join(genres)


def _words_100k(user: str, age: str, gender: str, job: str, _zip: str) -> tuple[str, dict[str, str]]:
    return user, {"gender": _GENDERS.get(gender, gender), "age": age, "occupation": job}


def load_ml_csv(name: str, path: Path, liked_above: float | None = None) -> Dataset:
    """Load ratings.csv and movies.csv of ml-latest-small, or of any edition from 20M on.

    Args:
        name: The data set's name.
        path: Its folder or zip; files in it may be gzipped.
        liked_above: Ratings above this are likes; None means 3.

    Raises:
        DataError: A file is missing, empty or malformed, or more than 1 % of its rows are.
    """
    files = _Files(path, ["ratings.csv", "movies.csv"])
    bad, names = BadRows(f"{path}/movies.csv"), ["movieId", "title", "genres"]
    lines = byte_lines(files.raw["movies.csv"], bad.where)
    first, header = next(lines)
    if [name.strip() for name in csv_fields(header)] != names:
        raise bad_line(bad.where, first, printable(header), ",".join(names))
    catalogue = files.catalogue(csv_rows(lines, names, bad), bad)
    ratings = files.ratings("ratings.csv", ",", "userId,movieId,rating,timestamp", header=True)
    return build(name, "movie", ratings, catalogue, notes=files.notes, liked_above=liked_above)


class _Files:
    """The files of a folder or zip by name, and what was met in them."""

    def __init__(self, path: Path, required: Sequence[str], users: str = "") -> None:
        self.path = path
        self.raw = read_members(path, required, [users] if users else [])
        self.notes = [f"no {users}: no demographics"] if users and users not in self.raw else []

    def rows(self, file: str, separator: str, wanted: str) -> tuple[_Rows, BadRows]:
        """The rows of a file whose official encoding is latin-1, and where bad ones go."""
        bad = BadRows(f"{self.path}/{file}")
        text, note = decode(self.raw[file], bad.where, "latin-1")
        self.notes += [note] if note else []
        return field_rows(byte_lines(text.encode(), bad.where), separator, wanted, bad), bad

    def catalogue(self, rows: _Rows, bad: BadRows) -> dict[Id, Item]:
        """Items by id, of rows of id, title and genres."""
        items = (_movie(*film) for film in _with_ids(rows, bad))
        catalogue = catalogue_of(items, self.notes, "catalogue rows")
        self.notes += bad.notes()
        return catalogue

    def people(self, rows: _Rows, bad: BadRows) -> dict[Id, dict[str, str]]:
        """Demographics by id, of rows of id and words."""
        people = people_of(_with_ids(rows, bad), self.notes, "rows of the user file")
        self.notes += bad.notes()
        return people

    def ratings(self, file: str, separator: str, wanted: str, header: bool = False) -> Rows:
        """The rows of the file of ratings, which is then let go."""
        return _ratings(self.raw.pop(file), f"{self.path}/{file}", separator, wanted, self.notes, header)


def _with_ids(rows: _Rows, bad: BadRows) -> Iterator[Any]:
    """The rows whose id is written as int() would print it, within 64 bits."""
    for number, (text, *others) in rows:
        if is_whole(text := text.strip()):
            yield int(text), *others
        else:
            bad.add(number, text, "a whole number of at most 64 bits as id")


def _movie(item_id: Id, title: str, genres: str) -> Item:
    title = title.strip()
    year = _YEAR.search(title)
    attributes = {"year": year[1]} if year else {}
    if known := [genre for genre in genres.strip().split("|") if genre and genre != "(no genres listed)"]:
        attributes["genres"] = ", ".join(known)
    return Item(item_id, title, attributes)


def _ratings(raw: bytes, where: str, separator: str, wanted: str, notes: list[str], header: bool = False) -> Rows:
    """Parse a table of ratings with Arrow's reader; only where that fails are the lines looked at one by one.

    Args:
        raw: The file's bytes.
        where: Its name for messages.
        separator: What stands between fields.
        wanted: The fields' names joined by the separator.
        notes: Gets the bad rows, which are left out.
        header: Whether the first line has the names.

    Raises:
        DataError: The file is empty, has another header, or more than 1 % of its rows are bad.
    """
    number, first = next(byte_lines(raw, where))
    if header and printable(first).strip() != wanted:
        raise bad_line(where, number, printable(first), wanted)
    skip = number if header else 0
    with suppress(ValueError):
        return _parsed(raw, separator, skip, *_SECONDS)
    try:
        kept = _good_lines(raw, where, separator, wanted, notes, header)
    except DataError:
        for times in _FINER:
            with suppress(ValueError):
                return _parsed(raw, separator, skip, *times)
        raise
    try:
        return _parsed(kept, separator, 0, *_SECONDS)
    except ValueError as fault:
        raise DataError(f"{where}: {fault}; wanted {wanted}") from fault


def _parsed(raw: bytes | bytearray, separator: str, skip: int, times_as: str, low: float, high: float) -> Rows:
    """The columns of a table of ratings; raises ValueError where one of its rows isn't as it should be.

    Args:
        raw: The table.
        separator: What stands between fields.
        skip: Lines to leave out at the top.
        times_as: Arrow's name of the type of times.
        low: All times are above it.
        high: All times are below it.
    """
    import pyarrow as pa
    from pyarrow import csv

    if len(separator) > 1:  # Arrow's are single characters
        if b"\t" in raw:
            raise ValueError("a tab in a file without tabs")
        raw, separator = raw.replace(separator.encode(), b"\t"), "\t"
    ids = pa.dictionary(pa.int32(), pa.string())  # each id is looked at once, as text: 007 isn't 7
    types = {"user": ids, "item": ids, "rating": pa.float32(), "time": pa.type_for_alias(times_as)}
    table = csv.read_csv(
        pa.py_buffer(raw),
        csv.ReadOptions(use_threads=False, block_size=1 << 24, column_names=[*types], skip_rows=skip),
        csv.ParseOptions(delimiter=separator, quote_char=False),
        csv.ConvertOptions(check_utf8=False, column_types=types, null_values=[]),
    )
    ratings, times = _numbers(table["rating"]), _numbers(table["time"])
    if not (ratings.min() >= 0.5 and ratings.max() <= 5):
        raise ValueError("a rating is out of its range")
    if not (low < times.min() and times.max() < high):
        raise ValueError("a time is out of its range")
    return Rows(_whole(table["user"]), _whole(table["item"]), ratings, times)


def _numbers(column: Any) -> NDArray[Any]:
    """Arrow's column of numbers; its own `to_numpy` imports pandas wherever that is installed."""
    return np.concatenate([np.from_dlpack(chunk) for chunk in column.chunks])


def _whole(column: Any) -> NDArray[np.int64]:
    """Arrow's column of distinct texts and places among them, as whole numbers; raises ValueError where one isn't."""
    parts = []
    for chunk in column.chunks:
        texts = [text.strip() for text in chunk.dictionary.to_pylist()]
        if not all(map(is_whole, texts)):
            raise ValueError("an id is no whole number")
        parts.append(np.fromiter(map(int, texts), np.int64, len(texts))[np.from_dlpack(chunk.indices)])
    return np.concatenate(parts)


def _good_lines(raw: bytes, where: str, separator: str, wanted: str, notes: list[str], header: bool) -> bytearray:
    """The lines of a table of ratings that can be read, without its header; the others are counted in the notes."""
    bad, kept = BadRows(where), bytearray()
    lines = byte_lines(raw, where)
    if header:
        next(lines)
    rows = field_rows(lines, separator, wanted, bad)
    if separator == ",":  # whose fields may be quoted
        rows = csv_rows(lines, wanted.split(","), bad)
    for number, parts in rows:
        line = separator.join(parts)
        if _is_rating(*parts):
            kept += line.encode() + b"\n"
        else:
            bad.add(number, line, f"{wanted} (whole numbers; a rating from 0.5 to 5)")
    if not kept:
        raise DataError(f"{where}: the file holds no ratings{', only its header' if header else ''}")
    notes += bad.notes()
    return kept


def _is_rating(user: str, item: str, rating: str, time: str) -> bool:
    return (
        is_whole(user.strip())
        and is_whole(item.strip())
        and _DECIMAL.fullmatch(rating.strip()) is not None
        and 0.5 <= float(rating) <= 5
        and _TIME.fullmatch(time.strip()) is not None
    )
