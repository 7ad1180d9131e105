"""MovieLens in GroupLens's own formats: ml-1m (`::`, latin-1), ml-100k (u.data, u.item) and the CSV editions.

All keep the whole catalogue and give the domain "movie". A title stays as in the file, "Toy Story (1995)", with the
year also among the attributes: {"year": "1995", "genres": "Comedy, Drama"}. Demographics are spelled out in words;
zip codes are left out. The ratings may be those of a subset of the users; the others are left out and counted.

F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. doi 10.1145/2827872
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np

from starec_env.data.build import Rows, add_item, build, count_notes, movie
from starec_env.data.files import LATEST, bad_line, decode, fields, read_members
from starec_env.errors import DataError
from starec_env.types import Dataset, Id, Item

_ROW = np.dtype([("user", "i8"), ("item", "i8"), ("rating", "f8"), ("time", "i8")])

_GENDERS = {"F": "female", "M": "male"}
_AGES = {"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "56+"}
_OCCUPATIONS = (
    "other or not specified|academic/educator|artist|clerical/admin|college/grad student|customer service|"
    "doctor/health care|executive/managerial|farmer|homemaker|K-12 student|lawyer|programmer|retired|sales/marketing|"
    "scientist|self-employed|technician/engineer|tradesman/craftsman|unemployed|writer"
).split("|")
_GENRES_100K = (
    "|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|"
    "Mystery|Romance|Sci-Fi|Thriller|War|Western"
).split("|")  # the first is "unknown"


def load_ml_1m(name: str, path: Path, liked_above: float | None = None) -> Dataset:
    """Load MovieLens 1M (or 10M, which has the same format but no users.dat) from its folder or zip.

    Raises:
        DataError: A file is missing, empty or malformed.
    """
    found = read_members(path, ["ratings.dat", "movies.dat"], ["users.dat"])
    notes: list[str] = []
    text = _text(found["movies.dat"], path, "movies.dat", "latin-1", notes)
    catalogue: dict[Id, Item] = {}
    repeated = 0
    for number, (item, title, genres) in fields(text, "::", "MovieID::Title::Genres", f"{path}/movies.dat"):
        item_id = _int(item, f"{path}/movies.dat", number)
        repeated += add_item(catalogue, movie(item_id, title, _genres(genres)))
    people = _users_1m(found.get("users.dat"), path, notes)
    rows = _ratings(found["ratings.dat"], f"{path}/ratings.dat", "::", "UserID::MovieID::Rating::Timestamp")
    return build(
        name,
        "movie",
        rows,
        catalogue,
        demographics=people,
        notes=[*notes, *_repeated(repeated)],
        liked_above=liked_above,
    )


def _users_1m(raw: bytes | None, path: Path, notes: list[str]) -> Mapping[Id, Mapping[str, str]] | None:
    if raw is None:
        notes.append("no users.dat: no demographics")
        return None
    where, wanted = f"{path}/users.dat", "UserID::Gender::Age::Occupation::Zip-code"
    people: dict[Id, Mapping[str, str]] = {}
    for number, parts in fields(_text(raw, path, "users.dat", "latin-1", notes), "::", wanted, where):
        user, gender, age, occupation, _ = parts
        try:
            words = {"gender": _GENDERS[gender], "age": _AGES[age], "occupation": _OCCUPATIONS[int(occupation)]}
        except (KeyError, ValueError, IndexError):
            raise bad_line(where, number, "::".join(parts), f"{wanted} with the codes of the README") from None
        people[_int(user, where, number)] = words
    return people


def load_ml_100k(name: str, path: Path, liked_above: float | None = None) -> Dataset:
    """Load MovieLens 100K from its folder or zip. The one film called "unknown" there counts as untitled.

    Raises:
        DataError: A file is missing, empty or malformed.
    """
    found = read_members(path, ["u.data", "u.item"], ["u.user"])
    notes: list[str] = []
    catalogue: dict[Id, Item] = {}
    repeated = 0
    wanted = "|".join(["movie id|title|release date|video release date|IMDb URL", *["0 or 1"] * len(_GENRES_100K)])
    text = _text(found["u.item"], path, "u.item", "latin-1", notes)
    for number, parts in fields(text, "|", wanted, f"{path}/u.item"):
        genres = [genre for genre, flag in zip(_GENRES_100K, parts[5:], strict=True) if genre and flag == "1"]
        title = "" if parts[1] == "unknown" else parts[1]
        repeated += add_item(catalogue, movie(_int(parts[0], f"{path}/u.item", number), title, genres))
    people: dict[Id, Mapping[str, str]] | None = None
    if "u.user" in found:
        text = _text(found["u.user"], path, "u.user", "latin-1", notes)
        people = {
            _int(user, f"{path}/u.user", number): {
                "gender": _GENDERS.get(gender, gender),
                "age": age,
                "occupation": occupation,
            }
            for number, (user, age, gender, occupation, _) in fields(
                text, "|", "user id|age|gender|occupation|zip code", f"{path}/u.user"
            )
        }
    else:
        notes.append("no u.user: no demographics")
    rows = _ratings(found["u.data"], f"{path}/u.data", "\t", "user id\titem id\trating\ttimestamp")
    return build(
        name,
        "movie",
        rows,
        catalogue,
        demographics=people,
        notes=[*notes, *_repeated(repeated)],
        liked_above=liked_above,
    )


def load_ml_csv(name: str, path: Path, liked_above: float | None = None) -> Dataset:
    """Load ratings.csv and movies.csv of ml-latest-small, or of any edition from 20M on, from its folder or zip.

    Raises:
        DataError: A file is missing, empty or malformed.
    """
    found = read_members(path, ["ratings.csv", "movies.csv"])
    where, wanted = f"{path}/movies.csv", "movieId,title,genres"
    text, _ = decode(found["movies.csv"], where)
    lines = csv.reader(StringIO(text, newline=""), strict=True)
    catalogue: dict[Id, Item] = {}
    repeated = 0
    try:
        if (header := ",".join(next(lines))) != wanted:
            raise bad_line(where, 1, header, wanted)
        for parts in lines:
            if len(parts) != 3:
                raise bad_line(where, lines.line_num, ",".join(parts), wanted)
            genres = [] if parts[2] == "(no genres listed)" else _genres(parts[2])
            repeated += add_item(catalogue, movie(_int(parts[0], where, lines.line_num), parts[1], genres))
    except csv.Error as fault:
        raise DataError(f"{where}, line {lines.line_num}: {fault}; wanted {wanted}") from fault
    rows = _ratings(found["ratings.csv"], f"{path}/ratings.csv", ",", "userId,movieId,rating,timestamp", header=True)
    return build(name, "movie", rows, catalogue, notes=_repeated(repeated), liked_above=liked_above)


def _ratings(raw: bytes, where: str, separator: str, wanted: str, header: bool = False) -> Rows:
    """Parse a table of ratings with NumPy's C reader; only when that fails look for the line at fault."""
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    if not raw.strip():
        raise DataError(f"{where}: the file is empty")
    if header and (got := raw.split(b"\n", 1)[0].decode("latin-1").strip()) != wanted:
        raise bad_line(where, 1, got, wanted)
    plain = raw.replace(separator.encode(), b"\t")
    if not plain.split(b"\n", 1)[-1].strip() and header:
        raise DataError(f"{where}: the file holds no ratings, only its header")
    try:
        table = np.loadtxt(
            BytesIO(plain), _ROW, comments=None, delimiter="\t", skiprows=int(header), ndmin=1, encoding="latin-1"
        )
    except ValueError as fault:
        raise _first_bad_line(raw, where, separator, wanted, header) or DataError(f"{where}: {fault}") from fault
    if not ((table["rating"] >= 0.5) & (table["rating"] <= 5) & (np.abs(table["time"]) < LATEST)).all():
        raise _first_bad_line(raw, where, separator, wanted, header) or DataError(
            f"{where}: a rating or time is out of its range"
        )
    return Rows(table["user"], table["item"], table["rating"], table["time"])


def _first_bad_line(raw: bytes, where: str, separator: str, wanted: str, header: bool) -> DataError | None:
    try:
        for number, (user, item, rating, time) in fields(raw.decode("latin-1"), separator, wanted, where):
            if header and number == 1:
                continue
            try:
                fine = (
                    0.5 <= float(rating) <= 5
                    and max(abs(int(n)) for n in (user, item)) < 2**63
                    and abs(int(time)) < LATEST
                )
            except ValueError:
                fine = False
            if not fine:
                line = separator.join((user, item, rating, time))
                return bad_line(where, number, line, f"{wanted} (whole numbers; a rating from 0.5 to 5)")
    except DataError as fault:
        return fault
    return None


def _text(raw: bytes, path: Path, file: str, official: str, notes: list[str]) -> str:
    text, note = decode(raw, f"{path}/{file}", official)
    notes.extend([note] if note else [])
    return text


def _genres(text: str) -> list[str]:
    return [genre for genre in text.strip().split("|") if genre]


def _int(text: str, where: str, number: int) -> int:
    try:
        return int(text)
    except ValueError:
        raise bad_line(where, number, text, "a whole number as id") from None


def _repeated(n: int) -> list[str]:
    return count_notes({"catalogue rows that repeat an id, the first kept": n})
