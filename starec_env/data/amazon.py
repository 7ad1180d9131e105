"""Amazon reviews as published in 2014 and 2018 (JSON lines), and 2023 (JSON lines, or CSV of ratings); gzipped or not.

A folder holds one category: the reviews, and the metadata in a file whose name starts with "meta". Metadata spans
the whole shop, so only items with a review enter the catalogue. Titles were scraped: HTML entities are decoded,
leftover markup is cut off, and a title that is nothing but markup counts as none. Attributes are "artist" for music
(the brand or store of the metadata; else "brand") and "categories", without the shop's own top category.

2014: He and McAuley, doi 10.1145/2872427.2883037. 2018: Ni, Li and McAuley, doi 10.18653/v1/D19-1018. 2023: Hou et
al., arXiv 2403.03952.
"""

from __future__ import annotations

import ast
import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import from_json

from starec_env.data.build import Rows, add_item, build, clean_text, clean_title, count_notes, guess_domain
from starec_env.data.files import bad_line, byte_lines, moment
from starec_env.errors import DataError
from starec_env.types import Dataset, Id, Item

_SUFFIXES = (".json", ".jsonl", ".csv", ".json.gz", ".jsonl.gz", ".csv.gz")
_SPLITS = ("train", "valid", "test")
_FORMAT = re.compile(r"\s*\bFormat:.*")  # 2023's store reads "Nirvana   Format: Audio CD"
_USER, _ITEM = ("user_id", "reviewerID"), ("parent_asin", "asin")
_RATING, _TIME = ("rating", "overall"), ("timestamp", "unixReviewTime")
_REVIEW = "an object with reviewerID, asin, overall and unixReviewTime (2023: user_id, parent_asin, rating, timestamp)"


def load_amazon(name: str, path: Path, domain: str | None = None, liked_above: float | None = None) -> Dataset:
    """Load one category from its folder, or from its file of reviews with the metadata beside it.

    Reviews without a user, an item, a time or a rating from 0 to 5 are left out and counted.

    Args:
        name: The data set's name.
        path: The folder or file.
        domain: What an item is called; None guesses it from the names of the files and folders ("music" for CDs).
        liked_above: Ratings above this are likes; None means 3.

    Raises:
        DataError: No or several files of reviews, or one that is empty, damaged or malformed.
    """
    reviews, metadata = _locate(path)
    counts: Counter[str] = Counter()
    rows = _reviews(reviews, counts)
    if domain is None:
        domain = guess_domain(*(file.name for file in reviews), *path.resolve().parts[-2:])
    catalogue: dict[Id, Item] = {}
    notes: list[str] = []
    if metadata is None:
        notes.append(f"no metadata beside {reviews[0].name} (a file named meta*): no titles")
    else:
        catalogue = _metadata(metadata, set(rows.items), "artist" if domain == "music" else "brand", counts)
    return build(name, domain, rows, catalogue, notes=[*notes, *count_notes(counts)], liked_above=liked_above)


def _locate(path: Path) -> tuple[list[Path], Path | None]:
    """The files of reviews (several only as train, valid and test), and the metadata."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; wanted a folder with a file of reviews and one named meta*")
    folder = path if path.is_dir() else path.parent
    files = sorted(file for file in folder.iterdir() if file.name.endswith(_SUFFIXES))
    metadata = [file for file in files if file.name.startswith("meta")]
    if path.is_file():
        category = re.sub(r"^reviews_|_5$", "", path.name.split(".")[0])
        metadata = [file for file in metadata if len(metadata) == 1 or category in file.name]
        return [path], metadata[0] if metadata else None
    reviews = [file for file in files if file not in metadata]
    by_split = [file for split in _SPLITS for file in reviews if f".{split}." in file.name]
    if len(reviews) > 1 and (len(by_split) != len(reviews) or len({file.name.split(".")[0] for file in reviews}) > 1):
        raise DataError(f"{path}: several files of reviews ({', '.join(f.name for f in reviews)}): give one as path")
    if not reviews:
        raise DataError(f"{path}: no file of reviews ending in {', '.join(_SUFFIXES)}")
    if len(metadata) > 1:
        raise DataError(f"{path}: several files of metadata ({', '.join(f.name for f in metadata)}): keep one")
    return by_split or reviews, metadata[0] if metadata else None


def _reviews(files: list[Path], counts: Counter[str]) -> Rows:
    users: list[Id] = []
    items: list[Id] = []
    ratings: list[float] = []
    times: list[float] = []
    for file in files:
        read = _csv_rows if ".csv" in file.name else _json_rows
        for number, row in read(file, _REVIEW):
            user, item, rating, time = (_first(row, keys) for keys in (_USER, _ITEM, _RATING, _TIME))
            try:
                if user is None or item is None or rating is None or time is None:
                    counts["reviews without a user, item, rating or time, left out"] += 1
                elif not 0 <= float(rating) <= 5:
                    counts["reviews with a rating outside 0 to 5, left out"] += 1
                else:
                    times.append(moment(time))
                    users.append(str(user))
                    items.append(str(item))
                    ratings.append(float(rating))
            except (TypeError, ValueError, OverflowError):
                raise bad_line(str(file), number, dict(row), _REVIEW) from None
    if not ratings:
        raise DataError(f"{files[0]}: the file holds no reviews; wanted on each line {_REVIEW}")
    return Rows(users, items, np.array(ratings), np.array(times))


def _metadata(file: Path, wanted: set[Id], maker: str, counts: Counter[str]) -> dict[Id, Item]:
    catalogue: dict[Id, Item] = {}
    for _, row in _json_rows(file, "an object with asin or parent_asin, and title"):
        item_id = _first(row, _ITEM)
        if item_id not in wanted:
            counts["metadata of items without a review, left out"] += 1
            continue
        raw = row.get("title") if isinstance(row.get("title"), str) else ""
        title = clean_title(raw or "", counts)
        repeated = add_item(catalogue, Item(item_id, title, _attributes(row, maker)))
        counts["metadata that repeat an id, the first kept"] += repeated
    return catalogue


def _attributes(row: Mapping[str, Any], maker: str) -> dict[str, str]:
    found = {}
    by = row.get("brand") or row.get("store")
    if isinstance(by, str) and (text := _FORMAT.sub("", clean_text(by))):
        found[maker] = text
    given = row.get("categories") or row.get("category")
    paths = (
        given if isinstance(given, list) and given and isinstance(given[0], list) else [given]
    )  # 2014 has several paths, each from the top
    names = dict.fromkeys(
        clean_text(part) for path in paths if isinstance(path, list) for part in path[1:] if isinstance(part, str)
    )
    if text := ", ".join(part for part in names if part):
        found["categories"] = text
    return found


def _first(row: Mapping[str, Any], keys: tuple[str, str]) -> Any:
    return next((row[key] for key in keys if row.get(key) not in (None, "")), None)


def _json_rows(file: Path, wanted: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in byte_lines(file):
        try:
            row = from_json(line)
        except ValueError:
            row = _python_literal(line)  # the metadata of 2014 was printed by Python: {'asin': ...}
        if not isinstance(row, dict):
            raise bad_line(str(file), number, line.decode(errors="replace").strip(), wanted)
        yield number, row


def _python_literal(line: bytes) -> Any:
    try:
        return ast.literal_eval(line.decode()) if line.lstrip().startswith(b"{'") else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _csv_rows(file: Path, wanted: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    wanted = "a header and rows of user_id,parent_asin,rating,timestamp"
    lines = byte_lines(file)
    first, header = next(lines, (1, b""))
    names = header.decode(errors="replace").removeprefix("\ufeff").strip().split(",")
    if not {"user_id", "rating", "timestamp"} <= set(names) or not set(_ITEM) & set(names):
        raise bad_line(str(file), first, ",".join(names), f"{wanted} (the 2023 edition's; use JSON lines of the older)")
    for number, line in lines:
        try:
            values = next(csv.reader([line.decode()]))
        except (UnicodeDecodeError, csv.Error):
            values = []
        if len(values) != len(names):
            raise bad_line(str(file), number, line.decode(errors="replace").strip(), wanted)
        yield number, dict(zip(names, values, strict=True))
