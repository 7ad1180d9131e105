"""MovieLens in GroupLens's own formats: ml-1m (`::`, latin-1), ml-100k (u.data, u.item) and the CSV editions.

All keep the whole catalogue and give the domain "movie". A title stays as in the file, "Toy Story (1995)", with the
year also among the attributes: {"year": "1995", "genres": "Comedy, Drama"}. Demographics are spelled out in words;
zip codes are left out. The ratings may be those of a subset of the users; the others are left out and counted.

F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. doi 10.1145/2827872
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.data.build import Rows, add_item, build, count_notes, movie
from starec_env.data.files import LATEST, Line, byte_lines, decode, read_members
from starec_env.data.ids import is_whole
from starec_env.data.rows import BadRows, bad_line, csv_fields, csv_rows, field_rows, printable
from starec_env.errors import DataError
from starec_env.types import Dataset, Id, Item

_DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?")
_TIME = re.compile(r"-?[0-9]{1,15}")

People = dict[Id, Mapping[str, str]]
"""Demographics by user id."""

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


def load_ml_1m(name: str, path: Path, liked_above: float | None = None) -> Dataset:
    """Load MovieLens 1M (or 10M, which has the same format but no users.dat) from its folder or zip.

    Args:
        name: The data set's name.
        path: The folder or zip; files in it may be gzipped.
        liked_above: Ratings above this are likes; None means 3.

    Raises:
        DataError: A file is missing, empty or malformed, or more than 1 % of its rows are.
    """
    found = read_members(path, ["ratings.dat", "movies.dat"], ["users.dat"])
    notes: list[str] = []
    bad, wanted = BadRows(f"{path}/movies.dat"), "MovieID::Title::Genres"
    rows = field_rows(_latin_lines(found["movies.dat"], bad.where, notes), "::", wanted, bad)
    films = ((number, item, title, _genres(genres)) for number, (item, title, genres) in rows)
    catalogue = _catalogue(films, bad, notes)
    people = _users_1m(found["users.dat"], f"{path}/users.dat", notes) if "users.dat" in found else None
    if people is None:
        notes.append("no users.dat: no demographics")
    ratings = _ratings(
        found.pop("ratings.dat"), f"{path}/ratings.dat", "::", "UserID::MovieID::Rating::Timestamp", notes
    )
    return build(name, "movie", ratings, catalogue, demographics=people, notes=notes, liked_above=liked_above)


def _users_1m(raw: bytes, where: str, notes: list[str]) -> People:
    bad, wanted = BadRows(where), "UserID::Gender::Age::Occupation::Zip-code"
    rows = field_rows(_latin_lines(raw, where, notes), "::", wanted, bad)
    return _people(_words_1m(rows, f"{wanted} with the codes of the README", bad), bad, notes)


def _words_1m(
    rows: Iterable[tuple[int, list[str]]], wanted: str, bad: BadRows
) -> Iterator[tuple[int, str, Mapping[str, str]]]:
    for number, parts in rows:
        user, gender, age, job, _ = parts
        try:
            words = {"gender": _GENDERS[gender], "age": _AGES[age], "occupation": _OCCUPATIONS[job]}
        except KeyError:
            bad.add(number, "::".join(parts), wanted)
            continue
        yield number, user, words


def load_ml_100k(name: str, path: Path, liked_above: float | None = None) -> Dataset:
    """Load MovieLens 100K from its folder or zip. The one film called "unknown" there counts as untitled.

    Args:
        name: The data set's name.
        path: The folder or zip; files in it may be gzipped.
        liked_above: Ratings above this are likes; None means 3.

    Raises:
        DataError: A file is missing, empty or malformed, or more than 1 % of its rows are.
    """
    found = read_members(path, ["u.data", "u.item"], ["u.user"])
    notes: list[str] = []
    wanted = "|".join(["movie id|title|release date|video release date|IMDb URL", *["0 or 1"] * len(_GENRES_100K)])
    bad = BadRows(f"{path}/u.item")
    rows = field_rows(_latin_lines(found["u.item"], bad.where, notes), "|", wanted, bad)
    films = ((number, item, _title_100k(title), _genres_100k(rest[3:])) for number, (item, title, *rest) in rows)
    catalogue = _catalogue(films, bad, notes)
    people = _users_100k(found["u.user"], f"{path}/u.user", notes) if "u.user" in found else None
    if people is None:
        notes.append("no u.user: no demographics")
    ratings = _ratings(found.pop("u.data"), f"{path}/u.data", "\t", "user id\titem id\trating\ttimestamp", notes)
    return build(name, "movie", ratings, catalogue, demographics=people, notes=notes, liked_above=liked_above)


def _title_100k(title: str) -> str:
    return "" if title == "unknown" else title


def _genres_100k(flags: Sequence[str]) -> list[str]:
    return [genre for genre, flag in zip(_GENRES_100K, flags, strict=True) if genre and flag == "1"]


def _users_100k(raw: bytes, where: str, notes: list[str]) -> People:
    bad, wanted = BadRows(where), "user id|age|gender|occupation|zip code"
    rows = field_rows(_latin_lines(raw, where, notes), "|", wanted, bad)
    people = (
        (number, user, {"gender": _GENDERS.get(gender, gender), "age": age, "occupation": occupation})
        for number, (user, age, gender, occupation, _) in rows
    )
    return _people(people, bad, notes)


def load_ml_csv(name: str, path: Path, liked_above: float | None = None) -> Dataset:
    """Load ratings.csv and movies.csv of ml-latest-small, or of any edition from 20M on, from its folder or zip.

    Args:
        name: The data set's name.
        path: The folder or zip; files in it may be gzipped.
        liked_above: Ratings above this are likes; None means 3.

    Raises:
        DataError: A file is missing, empty or malformed, or more than 1 % of its rows are.
    """
    found = read_members(path, ["ratings.csv", "movies.csv"])
    notes: list[str] = []
    bad, names = BadRows(f"{path}/movies.csv"), ["movieId", "title", "genres"]
    lines = byte_lines(found["movies.csv"], bad.where)
    first, header = next(lines)
    if [name.strip() for name in csv_fields(header)] != names:
        raise bad_line(bad.where, first, printable(header), ",".join(names))
    rows = csv_rows(lines, names, bad)
    films = ((number, item, title, _genres(genres)) for number, (item, title, genres) in rows)
    catalogue = _catalogue(films, bad, notes)
    where = f"{path}/ratings.csv"
    ratings = _ratings(found.pop("ratings.csv"), where, ",", "userId,movieId,rating,timestamp", notes, header=True)
    return build(name, "movie", ratings, catalogue, notes=notes, liked_above=liked_above)


def _latin_lines(raw: bytes, where: str, notes: list[str]) -> Iterator[Line]:
    """The lines of a file whose official encoding is latin-1, in UTF-8 as those of all other files."""
    text, note = decode(raw, where, "latin-1")
    notes.extend([note] if note else [])
    return byte_lines(text.encode(), where)


def _catalogue(films: Iterable[tuple[int, str, str, list[str]]], bad: BadRows, notes: list[str]) -> dict[Id, Item]:
    """Items by id of (line number, id, title, genres); what was met in the file is added to the notes."""
    catalogue: dict[Id, Item] = {}
    repeated = 0
    for number, text, title, genres in films:
        if (item_id := _id(text, number, bad)) is not None:
            repeated += add_item(catalogue, movie(item_id, title, genres))
    notes += [*count_notes({"catalogue rows that repeat an id, the first with a title kept": repeated}), *bad.notes()]
    return catalogue


def _people(rows: Iterable[tuple[int, str, Mapping[str, str]]], bad: BadRows, notes: list[str]) -> People:
    """Demographics by id of (line number, id, words); what was met in the file is added to the notes."""
    people: dict[Id, Mapping[str, str]] = {}
    repeated = 0
    for number, text, words in rows:
        if (user_id := _id(text, number, bad)) is not None:
            repeated += people.setdefault(user_id, words) is not words
    notes += [*count_notes({"rows of the user file that repeat an id, the first kept": repeated}), *bad.notes()]
    return people


def _id(text: str, number: int, bad: BadRows) -> int | None:
    """An id as int(); None, and a bad row, where it isn't written as int() would print it or exceeds 64 bits."""
    if is_whole(text := text.strip()):
        return int(text)
    bad.add(number, text, "a whole number of at most 64 bits as id")
    return None


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
    try:
        return _parsed(raw, separator, skip=number if header else 0)
    except ValueError:
        try:
            kept = _good_lines(raw, where, separator, wanted, notes, header)
        except DataError:
            with suppress(ValueError):
                return _finer(raw, separator, number if header else 0)
            raise
    try:
        return _parsed(kept, separator)
    except ValueError as fault:
        raise DataError(f"{where}: {fault}; wanted {wanted}") from fault


def _parsed(raw: bytes | bytearray, separator: str, skip: int = 0) -> Rows:
    """The columns of a table of ratings; raises ValueError where one of its rows isn't as it should be."""
    rows = _columns(raw, separator, skip, "int64")
    times = rows.timestamps
    if times is None or not (-LATEST < times.min() and times.max() < LATEST):
        raise ValueError("a time is out of its range")
    return rows


def _finer(raw: bytes, separator: str, skip: int) -> Rows:
    """As `_parsed`, where all times are in microseconds or nanoseconds, or have a fraction."""
    try:
        rows = _columns(raw, separator, skip, "int64")
        low, high = LATEST / 10, math.inf
    except ValueError:
        rows = _columns(raw, separator, skip, "float64")
        low, high = -LATEST, LATEST
    if rows.timestamps is None or not (low < rows.timestamps.min() and rows.timestamps.max() < high):
        raise ValueError("a time is out of its range")
    return rows


def _columns(raw: bytes | bytearray, separator: str, skip: int, times_as: str) -> Rows:
    import pyarrow as pa
    from pyarrow import csv

    if len(separator) > 1:  # Arrow's are single characters
        if b"\t" in raw:
            raise ValueError("a tab in a file without tabs")
        raw = raw.replace(separator.encode(), b"\t")
    ids = pa.dictionary(pa.int32(), pa.string())  # each id is looked at once, as text: 007 isn't 7
    types = {"user": ids, "item": ids, "rating": pa.float32(), "time": pa.type_for_alias(times_as)}
    table = csv.read_csv(
        pa.py_buffer(raw),
        csv.ReadOptions(use_threads=False, block_size=1 << 24, column_names=[*types], skip_rows=skip),
        csv.ParseOptions(delimiter=separator if len(separator) == 1 else "\t", quote_char=False),
        csv.ConvertOptions(check_utf8=False, column_types=types, null_values=[]),
    )
    ratings, times = table["rating"].to_numpy(), table["time"].to_numpy()
    if not (ratings.min() >= 0.5 and ratings.max() <= 5):
        raise ValueError("a rating is out of its range")
    return Rows(_whole(table["user"]), _whole(table["item"]), ratings, times)


def _whole(column: Any) -> NDArray[np.int64]:
    """Arrow's column of distinct texts and places among them, as whole numbers; raises ValueError where one isn't."""
    parts = []
    for chunk in column.chunks:
        texts = [text.strip() for text in chunk.dictionary.to_pylist()]
        if not all(map(is_whole, texts)):
            raise ValueError("an id is no whole number")
        parts.append(np.fromiter(map(int, texts), np.int64, len(texts))[chunk.indices.to_numpy()])
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


def _genres(text: str) -> list[str]:
    return [genre for genre in text.strip().split("|") if genre and genre != "(no genres listed)"]
