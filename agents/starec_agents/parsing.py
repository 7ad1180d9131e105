"""From a model's text to a ranking or a profile: strict, in linear time, and never by guess.

What is missing, repeated or invented is said in `Ranking.problems` and changes nothing else. Of the problems, "tied" is
a remark and the others make the answer invalid:

    no answer            nothing that could be an entry was found
    unfinished thought   a <think> is not closed, so what follows it is no answer
    too long             only the first MAX_CHARS characters and MAX_LINES lines were read
    missing: N           candidates that the answer doesn't rank
    repeated: N          entries that name a candidate once more; the first counts
    invented: N          entries that name no candidate
    tied: N              candidates whose score equals an earlier one's; they stand in the order shown
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from starec_agents.prompts import MAX_PROFILE, labels
from starec_agents.titles import find_title, title_key, title_table, visible
from starec_env.types import Candidates, Ranking

MAX_CHARS = 1_000_000
MAX_LINES = 10_000

_MAX_LINE = 500
_THINK = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_NUMBERED = re.compile(r"[\s>*_#\-•\"'(\[]{0,8}\d{1,5}[*_]{0,3}[.)\]](?!\d)")
_BULLETED = re.compile(r"[-*+•–] ")
_PROFILE = re.compile(r"updated\s+user\s+description[\"*_ ]*:", re.IGNORECASE)
_LEAD_IN = re.compile(r"(?:the )?(?:final )?(?:answer|ranking|order|labels)(?: is)? ?: ?", re.IGNORECASE)
_SEPARATORS = re.compile(r"->|[\s,;>|/→]+")
_PLACE = re.compile(r"\d{1,3}[.)]")
_ANNOTATED = re.compile(
    r"(?:[-*•] )?(?:\d{1,3}[.)] )?[*_(\[]{0,3}([A-Z])(?:[*_\]]{0,3}[.)][*_]{0,3} |[*_)\]]{0,3} [-–—] )"
)
_OBJECT = re.compile(r"\{\s*\"")
_WRAPPING = "[](){}\"'`*_.:"

_Found = tuple[list[int | None], int]
"""Each entry's candidate position, None for an invented one; and how many are tied."""


def parse_ranking(text: str, candidates: Candidates, answer_format: str = "paper") -> Ranking:
    """Read a ranking.

    Args:
        text: The model's answer, with or without its thought.
        candidates: What was to be ranked, as the prompt showed it.
        answer_format: "paper": numbered lines (or, if none of them names a candidate, bulleted ones) that begin with a
            title; "compact": labels in order, or a JSON list of them, or a JSON object of scores.

    Returns:
        The ranking; `text` is kept in it, cut to MAX_CHARS.
    """
    kept = text[:MAX_CHARS].encode(errors="replace").decode()
    answer, unfinished = split_thought(kept)
    lines = answer.splitlines()
    read = _labels if answer_format == "compact" else _titles
    entries, tied = read(lines[:MAX_LINES], candidates)
    known = [entry for entry in entries if entry is not None]
    order = tuple(dict.fromkeys(known))
    counts = {
        "missing": len(candidates) - len(order) if entries else 0,
        "repeated": len(known) - len(order),
        "invented": len(entries) - len(known),
        "tied": tied,
    }
    problems = [f"{problem}: {count}" for problem, count in counts.items() if count]
    if len(text) > MAX_CHARS or len(lines) > MAX_LINES:
        problems.insert(0, "too long")
    if unfinished or not entries:
        problems.insert(0, "unfinished thought" if unfinished else "no answer")
    return Ranking(order=order, text=kept, problems=tuple(problems))


def parse_profile(text: str) -> str | None:
    """Read the new profile of a reflection: what follows "Updated User description:", else what follows the thought.

    Returns:
        One line of at most MAX_PROFILE characters; None if the answer holds none, an echoed template included.
    """
    kept = text[:MAX_CHARS].encode(errors="replace").decode()
    answer, unfinished = split_thought(kept)
    thought = len(answer) < len(kept) and not unfinished
    unmarked, *marked = _PROFILE.split(answer)
    for part in marked or ([unmarked] if thought else []):
        profile = visible(part).strip(" []{}*_\"'`")
        if any(char.isalpha() for char in profile) and title_key(profile) != "updated user description":
            return profile[:MAX_PROFILE].rstrip()
    return None


def split_thought(text: str) -> tuple[str, bool]:
    """The answer that follows the last closed thought, and whether another thought is left open after it."""
    start = 0
    opened = None
    for tag in _THINK.finditer(text):
        if tag[1]:
            start, opened = tag.end(), None
        elif opened is None:
            opened = tag.start()
    return text[start:opened], opened is not None


def _titles(lines: Iterable[str], candidates: Candidates) -> _Found:
    table = title_table(candidates)
    numbered: list[int | None] = []
    bulleted: list[int | None] = []
    for line in (visible(line[:_MAX_LINE]) for line in lines):
        if marker := _NUMBERED.match(line):
            numbered.append(find_title(line[marker.end() :], table))
        elif marker := _BULLETED.match(line):
            bulleted.append(find_title(line[marker.end() :], table))
    bullets = all(entry is None for entry in numbered) and any(entry is not None for entry in bulleted)
    return (bulleted if bullets else numbered), 0


def _labels(lines: Sequence[str], candidates: Candidates) -> _Found:
    table = {label: position for position, label in enumerate(labels(len(candidates)))}
    answer = "\n".join(lines)
    value = _json_value(answer)
    if isinstance(value, _Pairs):
        return _by_score(value, table)
    if isinstance(value, list):
        entries = [_position(entry, table) for entry in value]
        if any(entry is not None for entry in entries):
            return entries, 0
    return ([] if _OBJECT.search(answer) else _by_label(lines, table)), 0


class _Pairs(list[tuple[str, Any]]):
    """A JSON object, repeated keys included."""


def _json_value(text: str) -> Any:
    start = min((place for place in (text.find("{"), text.find("[")) if place >= 0), default=-1)
    try:
        value, _ = _DECODER.raw_decode(text, start) if start >= 0 else (None, 0)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, _Pairs) and len(value) == 1 and isinstance(value[0][1], list):
        return value[0][1]  # {"ranking": [...]}
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_Pairs)


def _by_score(pairs: _Pairs, table: Mapping[str, int]) -> _Found:
    scored: list[tuple[float, int]] = []
    strangers: list[int | None] = []
    for label, score in pairs:
        position = _position(label, table)
        if position is None:
            strangers.append(None)
        elif isinstance(score, int | float) and not isinstance(score, bool) and abs(score) < float("inf"):
            scored.append((-score, position))
    scored.sort()
    return [position for _, position in scored] + strangers, len(scored) - len({score for score, _ in scored})


def _by_label(lines: Iterable[str], table: Mapping[str, int]) -> list[int | None]:
    """Entries of the lines that hold labels alone; if there are none, of lines that explain a letter ("C. Heat")."""
    plain: list[int | None] = []
    explained: list[int | None] = []
    lettered = "A" in table
    for line in map(visible, lines):
        tokens = _tokens(_LEAD_IN.sub("", line, count=1))
        if tokens and all(_is_label(token, lettered, alone=len(tokens) == 1) for token in tokens):
            plain.extend(_position(token, table) for token in tokens)
        elif lettered and (start := _ANNOTATED.match(line)):
            explained.append(table.get(start[1]))
    recited = len(table) > 4 and explained == list(range(len(table)))  # the list as shown, not an answer to it
    return plain or ([] if recited else explained)


def _tokens(line: str) -> list[str]:
    *tokens, last = _SEPARATORS.split(line.strip())
    kept = [token for token in tokens if not _PLACE.fullmatch(token)]  # "1. C": the place, not a label
    return [bare for token in (*kept, last) if (bare := token.strip(_WRAPPING))]


def _is_label(token: str, lettered: bool, alone: bool) -> bool:
    if not lettered:
        return token.isdecimal() and len(token) <= 3
    return len(token) == 1 and token.isascii() and (token.isupper() if alone else token.isalpha())


def _position(label: object, table: Mapping[str, int]) -> int | None:
    return table.get(str(label).strip(_WRAPPING + " ").upper()) if isinstance(label, str | int) else None
