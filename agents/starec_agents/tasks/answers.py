"""What any answer has: a thought that isn't part of it, an end that it may not have reached, and bounds."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from starec_env.types import ParseReport

MAX_CHARS = 1_000_000
"""Characters of an answer that are read."""

_MAX_VALUES = 20
_THINK = re.compile(r"<(/?)(?:seed:)?(?:think|thinking|thought|reasoning)>|\[(/?)THINK\]", re.IGNORECASE)


class Answer(NamedTuple):
    """An answer without its thought."""

    text: str
    """What follows the last closed thought; "" if the answer is cut off."""
    kept: str
    """The whole answer as far as it was read."""
    thought: bool
    """Whether a thought was closed."""
    cut_off: bool
    """Whether the answer ended at the most tokens allowed, or a thought is left open: then it is none."""
    too_long: bool

    def report(self, found: bool, **more: Any) -> ParseReport:
        """What is wrong with it.

        Args:
            found: Whether its text holds what was asked for.
            more: What is wrong with that; further fields of `ParseReport`.
        """
        blank = not self.text.strip()
        faults = {"too_long": self.too_long, **more}
        return ParseReport(
            cut_off=self.cut_off, empty=blank and not self.cut_off, no_answer=not found and not blank, **faults
        )


def with_thought(thought: str, answer: str) -> str:
    """An answer as a model should write it, behind its thought where there is one."""
    return f"<think>\n{thought}\n</think>\n{answer}" if thought else answer


def read_answer(text: str, cut_off: bool = False) -> Answer:
    """Take an answer apart.

    Args:
        text: The whole answer: thoughts that came apart between <think> tags (`Call.answer`). A thought may lack its
            opening tag, which many chat templates write themselves.
        cut_off: Whether it ended at the most tokens allowed.
    """
    kept = text[:MAX_CHARS].encode(errors="replace").decode()
    answer, unfinished = split_thought(kept)
    cut_off = cut_off or unfinished
    return Answer("" if cut_off else answer, kept, len(answer) < len(kept), cut_off, len(text) > MAX_CHARS)


def split_thought(text: str) -> tuple[str, bool]:
    """The answer that follows the last closed thought, and whether another thought is left open after it."""
    start = 0
    opened = None
    for tag in _THINK.finditer(text):
        if tag[1] or tag[2]:
            start, opened = tag.end(), None
        elif opened is None:
            opened = tag.start()
    return text[start:opened], opened is not None


def thought_of(text: str) -> str:
    """What precedes the answer, without its tags; "" where no thought was closed, or another is left open."""
    answer, unfinished = split_thought(text)
    return "" if unfinished else _THINK.sub(" ", text[: len(text) - len(answer)]).strip()


class Pairs(list[tuple[str, Any]]):
    """A JSON object, repeated keys included."""


_DECODER = json.JSONDecoder(object_pairs_hook=Pairs)
_OPENING = re.compile(r"[{\[]")


def json_values(text: str) -> list[Any]:
    """The JSON objects and lists in a text, up to a few; reading ends at the first that is none."""
    values, end = list[Any](), 0
    while len(values) < _MAX_VALUES and (start := _OPENING.search(text, end)):
        try:
            value, end = _DECODER.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            break
        values.append(value)
    return values
