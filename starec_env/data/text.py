"""Text of data sets: scraped titles made readable, halves of characters, and the wording of notes."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from starec_env.types import Id

_MARKUP = re.compile(r"<(?=[a-zA-Z/!])")
_EDGE = re.compile(r'[\s"]*')
_PASSES = 8
_LONGEST_ENTITY = 34


def whole_text(text: str) -> str:
    """Text that can be written as UTF-8: halves of a surrogate pair are joined, and one alone becomes U+FFFD."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def clean_text(raw: str) -> str:
    """Plain text from a scraped one: entities decoded, leftover markup and scripts cut off, spaces collapsed.

    Examples:
        >>> clean_text("Andy &amp; His  Grandmother")
        'Andy & His Grandmother'
        >>> clean_text('"<span class=""a-size-medium"')
        ''
    """
    text = _decoded(raw)
    if "getTime" in text:  # a page's script in place of the title, which the 2018 edition's authors advise to drop
        return ""
    cut = text
    if markup := _MARKUP.search(text):
        cut = text[: markup.start()].rstrip('"').rstrip()
    bare = _bare_end(cut)
    if bare.endswith("/>"):
        cut = _bare_end(bare[:-2])
    if cut != text:
        cut = cut.removeprefix('"')
    return " ".join(cut.split())


def _bare_end(text: str) -> str:
    edge = _EDGE.match(text[::-1])  # from the end: in linear time
    return text[: len(text) - edge.end()] if edge else text


def _decoded(text: str) -> str:
    """Text without entities, also where it is escaped several times."""
    for _ in range(_PASSES):
        decoded = html.unescape(text)
        if decoded == text:
            return text
        text = decoded
    return _decoded_deep(re.sub("&(?:amp;)+", "&", text))


def _decoded_deep(text: str) -> str:
    # Escaped dozens of times, by malice: one pass a level would take time by the square. From the right, what follows
    # an entity is decoded already, and each step looks at one entity.
    first, *parts = text.split("&")
    done: list[str] = []  # characters, the last first
    for part in reversed(parts):
        done += part[::-1] + "&"
        while done and done[-1] == "&":
            entity = "".join(done[: -_LONGEST_ENTITY - 1 : -1])
            entity = entity[: entity.find("&", 1)] if "&" in entity[1:] else entity
            decoded = html.unescape(entity)
            if decoded == entity:
                break
            del done[-len(entity) :]
            done += decoded[::-1]
    return first + "".join(reversed(done))


def clean_title(raw: str, counts: Counter[str]) -> str:
    """A scraped title as plain text, empty where it holds nothing but markup; what was done is counted."""
    title = clean_text(raw)
    if raw.strip() and not title:
        counts["titles that are nothing but page markup, taken as none"] += 1
    elif title != raw.strip():
        counts["titles cleaned of HTML entities, markup or spaces"] += 1
    return title


def guess_domain(*texts: str) -> str:
    """What items are called, guessed from the names of files and folders: "movie", "music" or "item"."""
    text = " ".join(texts).lower()
    if re.search(r"music|(?<![a-z])(cds?|vinyl|albums?|lastfm)(?![a-z])", text):
        return "music"
    return "movie" if re.search(r"movie|film|(?<![a-z])ml-?\d", text) else "item"


def count_notes(counts: Mapping[str, int]) -> list[str]:
    """Notes from counters, e.g. "reviews without a rating, left out: 3"; those at zero say nothing."""
    return [f"{what}: {n:,}" for what, n in counts.items() if n]


def counted(n: int, noun: str) -> str:
    """A number and its noun, e.g. "1 item" or "5,000 items"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def some(ids: Sequence[Id]) -> str:
    """The first three ids."""
    return ", ".join(map(str, ids[:3])) + (", ..." if len(ids) > 3 else "")
