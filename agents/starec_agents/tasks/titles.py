"""Items' text: how prompts show it as harmless data, and how answers that name it are matched exactly."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from functools import lru_cache

from starec_env.types import Candidates, Item

MAX_TITLE = 200
"""Characters of a title that prompts show."""
MAX_ATTRIBUTE = 100
"""Characters of an attribute that prompts show."""

_HARMLESS = str.maketrans({"<": "‹", ">": "›", "[": "(", "]": ")", "|": "/"})
_FOLDED = str.maketrans(
    {char: "" for char in "\"'“”‘’‚„«»‹›<>[]{}*_`´"} | {char: "-" for char in "‐‑‒–−"} | {"—": " - "}
)
_CLOSED = re.compile(r"([\"”»*_`\]])\s?[:,](?=\s)")  # ends a quoted, bold or bracketed title: "Heat": because ...
_BOUNDARY = re.compile(r" [-|]+ |(?<=\))[:,](?= )|(?<=\)) (?=\()")
_PAUSE = re.compile(r"\s?[*_\"”»`\]]{0,3}(?: [-–—|]+ |[—:,] | (?=\())")
_YEAR = re.compile(r"(.+?) (\(\d{4}\))")
_ARTICLE = re.compile(r"(.+), (the|an?|les?|las?|l|los|el|il|lo|i|gli|der|die|das|den|de|det|en|ett?|ein|eine|une?|o)")
_EDGES = " .,:;-|"
_SELF_EXPLAINING = frozenset(("genres", "genre", "category", "categories", "artist", "band", "brand"))


def visible(text: str) -> str:
    """Text on one line, white space collapsed, without control, direction and other invisible characters."""
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " if char.isspace() else "" for char in text)
    return " ".join(text.split())


def clean(text: str, most: int = MAX_TITLE) -> str:
    """Data made harmless for a prompt: visible, at most `most` characters, and unable to forge a tag or a column.

    Angle brackets become ‹ and › (no title can close a thought or open a role), square ones round, and | becomes /.
    """
    text = visible(text).translate(_HARMLESS)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


_cached = lru_cache(maxsize=2**16)


@_cached
def title_key(title: str) -> str:
    """What two writings of one title have in common: NFKC, caseless, without quotes, brackets, bold and edge marks."""
    return _fold(title).strip(_EDGES)


@_cached
def item_title(item: Item) -> str:
    """An item's title for a prompt, with the year where the data has one and the title doesn't tell it."""
    title, year = clean(item.title) or "untitled", clean(item.attributes.get("year", ""))
    return title if not year or f"({year})" in title else f"{title} ({year})"


def item_line(item: Item, title: str) -> str:
    """An item as a line of a prompt: the title and the other attributes, e.g. "Heat (1995) | Action/Crime"."""
    return title + _attributes(item)


@_cached
def _attributes(item: Item) -> str:
    named = [(name, clean(value, MAX_ATTRIBUTE)) for name, value in item.attributes.items() if name != "year"]
    texts = [text if name in _SELF_EXPLAINING else f"{clean(name)}: {text}" for name, text in named if text]
    return "".join(f" | {text}" for text in texts)


def candidate_titles(candidates: Candidates) -> list[str]:
    """The candidates' titles as shown, in the order shown; those that look alike are told apart by " [id]"."""
    titles = [item_title(item) for item in candidates]
    for _ in range(2):  # twice: the first round's ids could make a title look like another
        keys = [title_key(title) for title in titles]
        owners = Counter(keys)
        if all(keys) and len(owners) == len(keys):
            break
        titles = [
            title if key and owners[key] == 1 else f"{title} [{clean(str(item.id))}]"
            for title, key, item in zip(titles, keys, candidates, strict=True)
        ]
    return titles


def title_table(candidates: Candidates) -> dict[str, int]:
    """Candidate position by title key: each shown title, and each alias that one candidate alone can go by."""
    owners: dict[str, set[int]] = defaultdict(set)
    aliases: dict[str, set[int]] = defaultdict(set)
    for position, (title, item) in enumerate(zip(candidate_titles(candidates), candidates, strict=True)):
        owners[title_key(title)].add(position)
        for alias in _aliases(title_key(item_title(item))):
            aliases[alias].add(position)
    table = {alias: min(have) for alias, have in aliases.items() if alias and len(have) == 1 and alias not in owners}
    return table | {key: min(have) for key, have in owners.items() if len(have) == 1 and key}


def find_title(text: str, table: dict[str, int]) -> int | None:
    """The candidate that a line names: its longest beginning, up to a boundary, that is a title; None if none is.

    Boundaries are the end, a dash or | between spaces, and what follows a closing bracket, quote or bold mark, so
    that a title's explanation is cut off, but "Alien: Resurrection" is never taken for "Alien".
    """
    text = _fold(text)
    for end in (len(text), *reversed([match.start() for match in _BOUNDARY.finditer(text)])):
        if (key := text[:end].strip(_EDGES)) in table:
            return table[key]
    return None


def rest_of(text: str, table: dict[str, int]) -> str:
    """What a line that names a candidate says after the title, e.g. its explanation; "" if nothing."""
    text = visible(text)
    if title_key(text) in table:
        return ""
    ends = [mark.end() for mark in _PAUSE.finditer(text) if title_key(text[: mark.start()]) in table]
    return text[ends[-1] :].strip() if ends else ""


def _fold(text: str) -> str:
    text = _CLOSED.sub(r"\1 | ", unicodedata.normalize("NFKC", visible(text)))
    return " ".join(text.casefold().translate(_FOLDED).split())


@_cached
def _aliases(key: str) -> tuple[str, ...]:
    """Other names of a title: without the year or a bracketed remark, and with a trailing article put first."""
    match = _YEAR.fullmatch(key)
    name, year = match.groups() if match else (key, "")
    bare, remark = (part.strip() for part in (*name.split(" (", 1), "")[:2])
    names = {name, bare, _article_first(name), moved := _article_first(bare)}
    names.add(f"{moved} ({remark}" if remark else moved)
    return tuple(title_key(alias) for name in names for alias in (name, f"{name} {year}"))


def _article_first(name: str) -> str:
    article = _ARTICLE.fullmatch(name)
    return ("" if article[2] == "l" else " ").join(article.group(2, 1)) if article else name
