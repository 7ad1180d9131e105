"""RecBole's atomic files: tab-separated `.inter`, `.item` and `.user` with typed headers, e.g. `item_id:token`.

Interactions come whole (`X.inter`) or split (`X.train.inter`, `X.valid.inter`, `X.test.inter`), as rows of user and
item or as sequences (`item_id_list:token_seq`), which are joined again. The whole catalogue is kept. Of the items,
`title` (or a field that ends in it) is the title and every other field an attribute under its own name, a
`release_year` as "year". Ids that are all whole numbers become ints. Without ratings every interaction counts as
liked; without timestamps the order in the file is the time.

Zhao et al. 2021. RecBole. doi 10.1145/3459637.3482016
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from starec_env.data.build import Rows, add_item, build, clean_text, clean_title, count_notes, guess_domain
from starec_env.data.files import bad_line, decode, fields, moment
from starec_env.errors import DataError
from starec_env.types import Dataset, Id, Item

_TYPES = ("token", "token_seq", "float", "float_seq")
_SPLITS = ("train", "valid", "test")
LIKED = 5.0
"""The rating of an interaction whose file gives none."""


def load_recbole(name: str, path: Path, domain: str | None = None, liked_above: float | None = None) -> Dataset:
    """Load a data set in atomic files.

    Args:
        name: The data set's name.
        path: A folder, or one `.inter` file in it where the folder holds several data sets.
        domain: What an item is called; None guesses it from the names of the file and its folders.
        liked_above: Ratings above this are likes; None means 3.

    Raises:
        DataError: Files are missing, several, empty or malformed.
    """
    base, interactions = _locate(path)
    notes: list[str] = []
    rows = _interactions(interactions, notes)
    table = _beside(interactions[0], base, ".item")
    catalogue = _items(table, notes) if table else {}
    if not table:
        notes.append(f"no {base}.item: no titles")
    people = _beside(interactions[0], base, ".user")
    demographics = _people(people) if people else None
    ids: list[Id] = [*rows.users, *rows.items, *catalogue, *(demographics or {})]
    if all(isinstance(i, str) and re.fullmatch("0|[1-9][0-9]{0,17}", i) for i in ids):
        rows.users, rows.items = (np.array(list(map(int, column))) for column in (rows.users, rows.items))
        catalogue = {int(i): Item(int(i), item.title, item.attributes) for i, item in catalogue.items()}
        demographics = {int(i): words for i, words in demographics.items()} if demographics is not None else None
    domain = domain or guess_domain(base, *interactions[0].resolve().parts[-3:-1])
    return build(name, domain, rows, catalogue, demographics=demographics, notes=notes, liked_above=liked_above)


def _locate(path: Path) -> tuple[str, list[Path]]:
    """The base name, and the interaction files in the order train, valid, test."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; wanted a folder with .inter and .item files")
    files = sorted(path.glob("*.inter")) if path.is_dir() else sorted(path.parent.glob("*.inter"))
    bases: dict[str, list[Path]] = {}
    for file in files:
        base, _, split = file.stem.rpartition(".")
        bases.setdefault(base if split in _SPLITS else file.stem, []).append(file)
    if path.is_file():
        bases = {base: group for base, group in bases.items() if path in group}
    if len(bases) != 1:
        held = f"several data sets ({', '.join(bases)})" if bases else "no .inter file"
        raise DataError(f"{path}: {held}: give the .inter file of one as path")
    base, group = next(iter(bases.items()))
    whole = [file for file in group if file.stem == base]
    return base, whole or sorted(group, key=lambda file: _SPLITS.index(file.stem.rpartition(".")[2]))


def _beside(inter: Path, base: str, suffix: str) -> Path | None:
    exact = inter.parent / f"{base}{suffix}"
    others = sorted(inter.parent.glob(f"*{suffix}"))
    return exact if exact.exists() else others[0] if len(others) == 1 else None


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, values by field name); the names are those of the header without their types."""
    try:
        text, _ = decode(file.read_bytes(), str(file))
    except OSError as fault:
        raise DataError(f"{file}: can't be read: {fault}") from fault
    header = text.split("\n", 1)[0].removesuffix("\r")
    names = [name.rpartition(":") for name in header.split("\t")]
    if any(kind not in _TYPES or not name for name, _, kind in names):
        raise bad_line(str(file), 1, header, f"fields as name:type, tab-separated, each type of {', '.join(_TYPES)}")
    for number, parts in fields(text, "\t", header, str(file)):
        if number > 1:
            yield number, dict(zip((name for name, _, _ in names), (part.strip() for part in parts), strict=True))


def _interactions(files: list[Path], notes: list[str]) -> Rows:
    users: list[Id] = []
    items: list[Id] = []
    ratings: list[float] = []
    times: list[float] = []
    sequences: dict[str, list[str]] = {}
    for file in files:
        for number, row in _rows(file):
            if not row.get("user_id") or not row.get("item_id"):
                raise bad_line(str(file), number, row, "user_id and item_id")
            if "item_id_list" in row:
                _extend(sequences, row, file, number)
                continue
            try:
                users.append(row["user_id"])
                items.append(row["item_id"])
                ratings.append(moment(row.get("rating", LIKED)))
                times.append(moment(row.get("timestamp", len(times))))
            except ValueError:
                raise bad_line(str(file), number, row, "numbers as rating and timestamp") from None
    if not users and not sequences:
        raise DataError(f"{files[0]}: the file holds no interactions, only its header")
    if sequences:
        users, items = [u for u, s in sequences.items() for _ in s], [i for s in sequences.values() for i in s]
        ratings, times = [LIKED] * len(items), list(range(len(items)))
    if sequences or "rating" not in row:
        notes.append(f"no ratings: every interaction counts as liked (rating {LIKED:g})")
    if sequences or "timestamp" not in row:
        notes.append("no timestamps: the order in the file is the time")
    return Rows(users, items, np.array(ratings), np.array(times))


def _extend(sequences: dict[str, list[str]], row: dict[str, str], file: Path, number: int) -> None:
    """Join a row's history and next item to what is known of the user, whose rows repeat a growing sequence."""
    past, item = row["item_id_list"].split(), row["item_id"]
    known = sequences.setdefault(row["user_id"], past)
    if known[-len(past) :] == past:  # the usual case, also where a history was cut to its last items
        known.append(item)
    elif [*past, item] != known[: len(past) + 1]:
        raise bad_line(str(file), number, row, f"a history that continues the rows before of user {row['user_id']}")


def _items(file: Path, notes: list[str]) -> dict[Id, Item]:
    catalogue: dict[Id, Item] = {}
    counts: Counter[str] = Counter()
    for number, row in _rows(file):
        if not (item_id := row.pop("item_id", "")):
            raise bad_line(str(file), number, row, "an item_id")
        named = next((field for field in row if field == "title" or field.endswith("_title")), None)
        title = clean_title(row.pop(named), counts) if named else ""
        attributes = {("year" if f == "release_year" else f): clean_text(v) for f, v in row.items() if v}
        counts["catalogue rows that repeat an id, the first kept"] += add_item(
            catalogue, Item(item_id, title, attributes)
        )
    notes += count_notes(counts)
    return catalogue


def _people(file: Path) -> dict[Id, Mapping[str, str]]:
    people: dict[Id, Mapping[str, str]] = {}
    for number, row in _rows(file):
        if not (user_id := row.pop("user_id", "")):
            raise bad_line(str(file), number, row, "a user_id")
        people[user_id] = {field: value for field, value in row.items() if value}
    return people
