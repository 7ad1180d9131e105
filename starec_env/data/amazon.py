"""Amazon reviews as published in 2014 and 2018 (JSON lines), and 2023 (JSON lines, or CSV of ratings); gzipped or not.

A folder holds one category: the reviews, and the metadata in a file whose name starts with "meta". Metadata spans
the whole shop, so only items with a review enter the catalogue. Titles were scraped: HTML entities are decoded,
leftover markup is cut off, and a title that is nothing but markup counts as none. Attributes are "artist" for music
(the brand or store of the metadata; else "brand") and "categories", without the shop's own top category.

2014: He and McAuley, doi 10.1145/2872427.2883037. 2018: Ni, Li and McAuley, doi 10.18653/v1/D19-1018. 2023: Hou et
al., arXiv 2403.03952.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from starec_env.data.build import Rows, build, catalogue_of
from starec_env.data.files import byte_lines, is_folder, listed
from starec_env.data.rows import BadRows, bad_line, clock, csv_fields, csv_rows, finite, json_rows, printable, text_id
from starec_env.data.text import clean_text, clean_title, count_notes, guess_domain
from starec_env.errors import DataError
from starec_env.types import Dataset, Id, Item

_SUFFIXES = (".json", ".jsonl", ".csv", ".json.gz", ".jsonl.gz", ".csv.gz")
_SPLITS = ("train", "valid", "test")
_FORMAT = re.compile(r"\s*\bFormat:.*")  # 2023's store reads "Nirvana   Format: Audio CD"
_FIELDS = {
    "user": ("user_id", "reviewerID"),
    "item": ("parent_asin", "asin"),
    "rating": ("rating", "overall"),
    "time": ("timestamp", "unixReviewTime"),
}
_CSV = "a header and rows of user_id,parent_asin,rating,timestamp"
_REVIEW = "an object with reviewerID, asin, overall and unixReviewTime (2023: user_id, parent_asin, rating, timestamp)"


def load_amazon(name: str, path: Path, domain: str | None = None, liked_above: float | None = None) -> Dataset:
    """Load one category from its folder, or from its file of reviews with the metadata beside it.

    Reviews that lack a user, an item, a time or a rating are no faults of the file: they are left out and counted
    in a note, however many, as are ratings outside 0 to 5. Lines that can't be read as they should are bad rows.

    Args:
        name: The data set's name.
        path: The folder or file.
        domain: What an item is called; None guesses it from the names of the files and folders ("music" for CDs).
        liked_above: Ratings above this are likes; None means 3.

    Raises:
        DataError: No or several files of reviews, or one that is empty or damaged, or of which more than 1 % of the
            rows are malformed; or metadata of other items.
    """
    reviews, metadata = _locate(path)
    counts: Counter[str] = Counter()
    notes: list[str] = []
    rows = _reviews(reviews, counts, notes)
    if domain is None:
        domain = guess_domain(*(file.name for file in reviews), *path.resolve().parts[-2:])
    catalogue: dict[Id, Item] = {}
    if metadata is None:
        notes.append(f"no metadata beside {reviews[0].name} (a file named meta*): no titles")
    else:
        maker = "artist" if domain == "music" else "brand"
        catalogue = _metadata(metadata, set(rows.items), maker, counts, notes)
        if not catalogue:
            raise DataError(
                f"{metadata}: none of its items has a review in {reviews[0].name}: give the metadata of that category, "
                "or move the file away"
            )
    return build(name, domain, rows, catalogue, notes=[*notes, *count_notes(counts)], liked_above=liked_above)


def _locate(path: Path) -> tuple[list[Path], Path | None]:
    """The files of reviews (several only as train, valid and test), and the metadata."""
    folder = path if is_folder(path, "a folder with a file of reviews and one named meta*, or a file") else path.parent
    files = [file for file in listed(folder) if file.name.endswith(_SUFFIXES)]
    metadata = [file for file in files if file.name.startswith("meta")]
    if folder != path:
        category = re.sub(r"^reviews_|_5$", "", path.name.split(".")[0])
        metadata = [file for file in metadata if len(metadata) == 1 or category in file.name]
        return [path], metadata[0] if metadata else None
    reviews = [file for file in files if file not in metadata]
    by_split = [file for split in _SPLITS for file in reviews if f".{split}." in file.name]
    plain = {file.name.removesuffix(".gz") for file in by_split}
    if len(reviews) > 1 and (len(plain) < len(reviews) or len({name.split(".")[0] for name in plain}) > 1):
        raise DataError(f"{path}: several files of reviews ({', '.join(f.name for f in reviews)}): give one as path")
    if not reviews:
        raise DataError(f"{path}: no file of reviews ending in {', '.join(_SUFFIXES)}")
    if len(metadata) > 1:
        raise DataError(f"{path}: several files of metadata ({', '.join(f.name for f in metadata)}): keep one")
    return by_split or reviews, metadata[0] if metadata else None


def _reviews(files: list[Path], counts: Counter[str], notes: list[str]) -> Rows:
    users: list[Id] = []
    items: list[Id] = []
    ratings: list[float] = []
    times: list[int | float] = []
    parts: list[int] = []
    for part, file in enumerate(files):
        bad = BadRows(str(file))
        is_csv = file.name.removesuffix(".gz").endswith(".csv")
        for number, row in _csv_reviews(file, bad) if is_csv else json_rows(byte_lines(file), _REVIEW, bad):
            user, item, rating, time = given = [_first(row, keys) for keys in _FIELDS.values()]
            try:
                if None in given:
                    counts["reviews without a user, item, rating or time, left out"] += 1
                elif not 0 <= (stars := finite(rating)) <= 5:
                    counts["reviews with a rating outside 0 to 5, left out"] += 1
                else:
                    who, what, when = text_id(user), text_id(item), clock(time)
                    users.append(who)
                    items.append(what)
                    ratings.append(stars)
                    times.append(when)
                    parts.append(part)
            except (TypeError, ValueError, OverflowError):
                bad.add(number, dict(zip(_FIELDS, given, strict=True)), _CSV if is_csv else _REVIEW)
        notes += bad.notes()
    if not ratings:
        raise DataError(f"{files[0]}: the file holds no reviews; wanted on each line {_REVIEW}")
    return Rows(users, items, np.array(ratings), np.array(times), f"{files[0]}, times", np.array(parts, np.int8))


def _csv_reviews(file: Path, bad: BadRows) -> Iterator[tuple[int, Mapping[str, Any]]]:
    lines = byte_lines(file)
    number, header = next(lines)
    names = [name.strip() for name in csv_fields(header)]
    if not {"user_id", "rating", "timestamp"} <= set(names) or not set(_FIELDS["item"]) & set(names):
        wanted = f"{_CSV} (the 2023 edition's; use JSON lines of the older)"
        raise bad_line(str(file), number, printable(header), wanted)
    for number, values in csv_rows(lines, names, bad, strict=False):
        yield number, dict(zip(names, values, strict=True))


def _metadata(file: Path, wanted: set[Id], maker: str, counts: Counter[str], notes: list[str]) -> dict[Id, Item]:
    bad, form = BadRows(str(file)), "an object with asin or parent_asin, and title"

    def items() -> Iterator[Item]:
        for number, row in json_rows(byte_lines(file), form, bad):
            given = _first(row, _FIELDS["item"])
            try:
                item_id = None if given is None else text_id(given)
            except ValueError:
                bad.add(number, {"asin": given}, form)
                continue
            if item_id in wanted:
                raw = row.get("title")
                title = clean_title(raw, counts) if isinstance(raw, str) else ""
                yield Item(item_id, title, _attributes(row, maker))
            else:
                counts["metadata of items without a review, left out"] += 1

    catalogue = catalogue_of(items(), notes, "metadata")
    notes += bad.notes()
    return catalogue


def _attributes(row: Mapping[str, Any], maker: str) -> dict[str, str]:
    found = {}
    by = row.get("brand") or row.get("store")
    if isinstance(by, str) and (text := _FORMAT.sub("", clean_text(by))):
        found[maker] = text
    given = row.get("categories") or row.get("category")
    if isinstance(given, list):
        paths = given if given and isinstance(given[0], list) else [given]  # 2014 has several, each from the top
        parts = [part for path in paths if isinstance(path, list) for part in path[1:] if isinstance(part, str)]
        if text := ", ".join(filter(None, dict.fromkeys(map(clean_text, parts)))):
            found["categories"] = text
    return found


def _first(row: Mapping[str, Any], keys: tuple[str, str]) -> Any:
    return next((row[key] for key in keys if row.get(key) not in (None, "")), None)
