"""RecBole's atomic files: tab-separated `.inter`, `.item` and `.user` with typed headers, e.g. `item_id:token`.

Interactions come whole (`X.inter`) or split (`X.train.inter`, `X.valid.inter`, `X.test.inter`), as rows of user and
item or as sequences (`item_id_list:token_seq`), which are joined again. All may be gzipped (`X.inter.gz`). The files
of a split must have the same columns of feedback and time, since rows with and without times have no common order.
The whole catalogue is kept. Of the items, `title` (or a field that ends in it) is the title and every other field an
attribute under its own name, a `release_year` as "year". Ids that are all whole numbers become ints. Without ratings
`label`, 0 or 1, is the feedback, and ratings above 0 are likes; without either every interaction counts as liked.
Without timestamps train comes before valid and valid before test, and within a file its order is the time.

Zhao et al. 2021. RecBole. doi 10.1145/3459637.3482016
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from starec_env.data.build import Rows, build, catalogue_of, people_of
from starec_env.data.files import Line, byte_lines, is_folder, listed
from starec_env.data.ids import text_ids
from starec_env.data.rows import BadRows, bad_line, clock, field_rows, finite, printable, text_id
from starec_env.data.text import clean_text, clean_title, count_notes, guess_domain
from starec_env.errors import DataError
from starec_env.types import Dataset, Id, Item

_TYPES = ("token", "token_seq", "float", "float_seq")
_SPLITS = ("train", "valid", "test")
_ALIKE = ("rating", "label", "timestamp", "item_id_list")
_WANTED = {
    "user_id": "a user_id",
    "item_id": "an item_id",
    "rating": "a number as rating",
    "label": "0 or 1 as label",
    "timestamp": "a timestamp",
}
_Columns = tuple[list[str], list[str], NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None]
"""Users, items, ratings, times and parts, as `Rows` has them."""


class _Table(NamedTuple):
    """An open atomic file."""

    file: Path
    header: str
    names: list[str]
    """The fields' names, without their types."""
    lines: Iterator[Line]
    """What follows the header."""

    def rows(self, bad: BadRows, *, strict: bool) -> Iterator[tuple[int, list[str]]]:
        """Yield (1-based line number, fields); `strict` as for `field_rows`."""
        return field_rows(self.lines, "\t", self.header, bad, strict=strict)


def load_recbole(name: str, path: Path, domain: str | None = None, liked_above: float | None = None) -> Dataset:
    """Load a data set in atomic files.

    Args:
        name: The data set's name.
        path: A folder, or one `.inter` file in it where the folder holds several data sets.
        domain: What an item is called; None guesses it from the names of the file and its folders.
        liked_above: Ratings above this are likes; None means 3, or 0 where `label` is the feedback.

    Raises:
        DataError: Files are missing, several, empty or malformed, more than 1 % of a file's rows are, or the files of
            a split differ in their columns of feedback and time.
    """
    notes: list[str] = []
    base, files = _locate(path, notes)
    tables = [_open(file, "user_id", "item_id") for file in files]
    _check_alike(tables)
    names = tables[0].names
    read = _sequences if "item_id_list" in names else _interactions
    users, items, ratings, times, parts = read(tables, notes)
    if liked_above is None and "label" in names and not {"rating", "item_id_list"} & set(names):
        liked_above = 0.0
    catalogue: dict[Id, Item] = {}
    people: dict[Id, dict[str, str]] | None = None
    if table := _beside(files[0], base, ".item"):
        catalogue = _items(table, notes)
    else:
        notes.append(f"no {base}.item: no titles")
    if table := _beside(files[0], base, ".user"):
        words = ((user, {name: text for name, text in row.items() if text}) for user, row in _side_rows(table, notes))
        people = people_of(words, notes, "rows of the user file")
    user_ids, item_ids, *sides = text_ids(users, items, [*map(str, catalogue)], [*map(str, people or {})])
    of_items, of_people = (side.tolist() if isinstance(side, np.ndarray) else side for side in sides)
    rows = Rows(user_ids, item_ids, ratings, times, f"{files[0]}, timestamp", parts)
    catalogue = dict(zip(of_items, catalogue.values(), strict=True))
    people = None if people is None else dict(zip(of_people, people.values(), strict=True))
    domain = domain or guess_domain(base, *files[0].resolve().parts[-3:-1])
    return build(name, domain, rows, catalogue, demographics=people, notes=notes, liked_above=liked_above)


def _locate(path: Path, notes: list[str]) -> tuple[str, list[Path]]:
    """The base name, and the interaction files in the order train, valid, test."""
    folder = path if is_folder(path, "a folder with .inter and .item files, or a .inter file") else path.parent
    bases: dict[str, dict[str, Path]] = {}
    spare: list[str] = []
    for file in sorted(listed(folder), key=lambda file: file != path):
        stem = _plain(file).removesuffix(".inter")
        if stem == _plain(file):
            continue
        base, _, split = stem.rpartition(".")
        base, split = (base, split) if split in _SPLITS else (stem, "")
        if bases.setdefault(base, {}).setdefault(split, file) is not file:
            spare.append(file.name)  # packed beside unpacked
    if folder != path:
        bases = {base: group for base, group in bases.items() if path in group.values()}
    if len(bases) != 1:
        held = f"several data sets ({', '.join(bases)})" if bases else "no .inter file"
        raise DataError(f"{path}: {held}: give the .inter file of one as path")
    base, group = next(iter(bases.items()))
    whole = "" in group and path in (folder, group[""])
    read = [group.pop(split) for split in ([""] if whole else _SPLITS) if split in group]
    if left := [*(file.name for file in group.values()), *spare]:
        notes.append(f"{read[0].name} is read, and what stands beside it is not: {', '.join(left)}")
    return base, read


def _plain(file: Path) -> str:
    return file.name.removesuffix(".gz")


def _beside(inter: Path, base: str, suffix: str) -> Path | None:
    """The side table of a data set: named like it, or the only one of its folder."""
    tables = {_plain(file): file for file in reversed(listed(inter.parent)) if _plain(file).endswith(suffix)}
    return tables.get(f"{base}{suffix}") or (next(iter(tables.values())) if len(tables) == 1 else None)


def _open(file: Path, *needed: str) -> _Table:
    """Open a file and check its header; names are those of the header without their types."""
    lines = byte_lines(file)
    number, first = next(lines)
    header = first.decode(errors="replace")
    typed = [name.strip().rpartition(":") for name in header.split("\t")]
    names = [name for name, _, _ in typed]
    if any(kind not in _TYPES or not name for name, _, kind in typed):
        wanted = f"fields as name:type, tab-separated, each type of {', '.join(_TYPES)}"
        raise bad_line(str(file), number, printable(first), wanted)
    if not set(needed) <= set(names) or len(set(names)) < len(names):
        raise bad_line(str(file), number, printable(first), f"{' and '.join(needed)}, and no name twice")
    return _Table(file, header, names, lines)


def _check_alike(tables: Sequence[_Table]) -> None:
    for name in _ALIKE:
        having = [table.file for table in tables if name in table.names]
        lacking = [table.file.name for table in tables if name not in table.names]
        if having and lacking:
            raise DataError(
                f"{having[0]}: has the column {name}, and {', '.join(lacking)} of the same split "
                f"{'has' if len(lacking) == 1 else 'have'} not: nothing could say how their rows compare; add it "
                "there, or remove it everywhere (without timestamps train comes before valid, and test last)"
            )


def _interactions(tables: Sequence[_Table], notes: list[str]) -> _Columns:
    users: list[str] = []
    items: list[str] = []
    feedback: list[float] = []
    times: list[int | float] = []
    parts: list[int] = []
    names = tables[0].names
    rated = next((name for name in ("rating", "label") if name in names), None)
    number_of = _label if rated == "label" else finite
    wanted = [_WANTED[name] for name in ("user_id", "item_id", rated, "timestamp") if name in names]
    for split, table in enumerate(tables):
        bad = BadRows(str(table.file))
        at_user, at_item = (table.names.index(name) for name in ("user_id", "item_id"))
        at_rating, at_time = (table.names.index(name) if name in names else None for name in (rated, "timestamp"))
        for number, row in table.rows(bad, strict=False):
            try:
                user, item = text_id(row[at_user].strip()), text_id(row[at_item].strip())
                rating = 0.0 if at_rating is None else number_of(row[at_rating])
                time = split if at_time is None else clock(row[at_time])
            except (ValueError, OverflowError):
                bad.add(number, "\t".join(row), f"{', '.join(wanted[:-1])} and {wanted[-1]}")
                continue
            users.append(user)
            items.append(item)
            feedback.append(rating)
            times.append(time)
            parts.append(split)
        notes += bad.notes()
    if not users:
        raise DataError(f"{tables[0].file}: the file holds no interactions, only its header")
    notes += _column_notes(tables)
    ratings = np.array(feedback) if rated else None
    timed = "timestamp" in names or len(tables) > 1
    return users, items, ratings, np.array(times) if timed else None, np.array(parts, np.int8)


def _label(text: str) -> float:
    if (number := finite(text)) not in (0, 1):
        raise ValueError(text)
    return number


def _column_notes(tables: Sequence[_Table]) -> list[str]:
    names, notes = tables[0].names, []
    if "label" in names:
        used = "label is not used: rating" if "rating" in names else "no ratings: label, 0 or 1,"
        notes.append(f"{used} is the feedback")
    if "timestamp" not in names and len(tables) > 1:
        files = ", then ".join(table.file.name for table in tables)
        notes.append(f"no timestamps: {files}, and within each file its order is the time")
    return notes


def _sequences(tables: Sequence[_Table], notes: list[str]) -> _Columns:
    """The joined sequences of all users, who are kept in the order in which they come."""
    sequences: dict[str, list[str]] = {}
    for table in tables:
        bad = BadRows(str(table.file))
        at_user, at_past, at_item = (table.names.index(name) for name in ("user_id", "item_id_list", "item_id"))
        for number, row in table.rows(bad, strict=True):
            try:
                user, past, item = text_id(row[at_user].strip()), row[at_past].split(), text_id(row[at_item].strip())
            except ValueError:
                bad.add(number, "\t".join(row), "a user_id, an item_id_list and an item_id")
                continue
            if not _extended(sequences.setdefault(user, past), past, item):
                bad.add(number, "\t".join(row), f"a history that continues the rows before of user {user}")
        notes += bad.notes()
    if not sequences:
        raise DataError(f"{tables[0].file}: the file holds no interactions, only its header")
    unused = [name for name in ("rating", "label", "timestamp") if name in tables[0].names]
    if unused:
        notes.append(f"{' and '.join(unused)} not used: of a sequence only the last item has one")
    notes.append("no timestamps: the order in the sequences is the time")
    users, items = [u for u, s in sequences.items() for _ in s], [i for s in sequences.values() for i in s]
    return users, items, None, np.arange(len(items)), None


def _extended(known: list[str], past: list[str], item: str) -> bool:
    """Join a row's history and next item to what is known of the user, whose rows repeat a growing sequence."""
    if known[-len(past) :] == past:  # the usual case, also where a history was cut to its last items
        known.append(item)
        return True
    return [*past, item] == known[: len(past) + 1]


def _items(file: Path, notes: list[str]) -> dict[Id, Item]:
    counts: Counter[str] = Counter()

    def item(item_id: str, row: dict[str, str]) -> Item:
        named = next((field for field in row if field == "title" or field.endswith("_title")), None)
        title = clean_title(row.pop(named), counts) if named else ""
        attributes = {("year" if f == "release_year" else f): clean_text(text) for f, text in row.items() if text}
        return Item(item_id, title, attributes)

    catalogue = catalogue_of((item(*row) for row in _side_rows(file, notes)), notes, "catalogue rows")
    notes += count_notes(counts)
    return catalogue


def _side_rows(file: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the id and the other fields by name of the rows of a side table."""
    key = f"{_plain(file).rpartition('.')[2]}_id"
    table, bad = _open(file, key), BadRows(str(file))
    for number, parts in table.rows(bad, strict=True):
        row = dict(zip(table.names, (part.strip() for part in parts), strict=True))
        if row[key]:
            yield row.pop(key), row
        else:
            bad.add(number, "\t".join(parts), f"a row with its {key}")
    notes += bad.notes()
