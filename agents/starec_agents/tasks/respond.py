"""The third task: a recommender shows a slate, and the agent answers as its user would; prompt, writer and reader.

An answer is read strictly, and whole or not at all: one that takes what was not shown, rates what it didn't take or
contradicts the scale takes nothing, and its report says why. Models are agreeable users: they take and praise what they
are shown. So the prompt says how often this user gave each rating, and what was passed over in this visit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from starec_agents.llm import Message
from starec_agents.memory import Memory
from starec_agents.tasks.answers import Pairs, json_values, read_answer, with_thought
from starec_agents.tasks.prompts import AS_DATA, MAX_HISTORY, about, conversation, nouns_of
from starec_agents.tasks.rank import labels, listed, ranking_format
from starec_agents.tasks.titles import visible
from starec_env.types import Candidates, ParseReport, Query

MAX_SAID = 200
"""Characters kept of what a user says to the recommender."""

_KEYS = ("seen", "take", "stars", "leave")
"""What every answer has; "say" may be left out."""
_ALL_KEYS = (*_KEYS, "say")


class Visit(BaseModel):
    """What a user knows of a visit beside the slate, which is the query's candidates."""

    model_config = ConfigDict(frozen=True)

    levels: tuple[float, ...]
    """The ratings there are, ascending."""
    counts: tuple[int, ...]
    """How often the user really gave each of them, simulated answers left out."""
    page: int = 1
    """1-based number of the slate in this visit."""
    passed: int = 0
    """Items that earlier slates of this visit showed and the user didn't take."""
    taken: bool = False
    """Whether the user has already taken the one item of the slate, and is only to rate it."""

    @property
    def mean(self) -> float | None:
        """The user's mean rating; None where the user has rated nothing."""
        total = sum(self.counts)
        return sum(n * level for n, level in zip(self.counts, self.levels, strict=True)) / total if total else None


class Response(BaseModel):
    """An agent's answer to a slate, read; one with problems sees, takes, leaves and says nothing."""

    model_config = ConfigDict(frozen=True)

    seen: tuple[int, ...] = ()
    """0-based places that were looked at, ascending; the one taken is among them."""
    taken: int | None = None
    """0-based place of the item taken."""
    stars: float | None = None
    """Its rating, one of the visit's levels."""
    leaves: bool = False
    says: str = ""
    """What the user tells the recommender: one line of at most MAX_SAID characters."""
    text: str = ""
    """The answer it was read from."""
    report: ParseReport = ParseReport()


@dataclass(frozen=True)
class ResponseFormat:
    """A format of responses: a JSON object, after a thought or alone."""

    thinks: bool
    """Whether a thought is asked for."""
    enforced: bool
    """Whether the server is given the schema."""

    def instructions(self, levels: Sequence[float]) -> str:
        """How an answer is to be written, and that what follows is data: the end of the task's system message.

        Args:
            levels: The ratings there are, ascending.
        """
        first = "First think, between <think> and </think>. After that answer" if self.thinks else "Answer"
        return (
            f"{first} with a JSON object and nothing else, with these keys:\n"
            '"seen": a list of the labels that the user looks at\n'
            '"take": the label of the one that the user takes now, or null for none\n'
            f'"stars": the rating of the one taken, one of {", ".join(f"{level:g}" for level in levels)}; null if none '
            "is taken\n"
            '"leave": true if the user leaves now, else false\n'
            '"say": what the user tells the recommender when displeased, in at most 30 words, else ""\n'
            f"{AS_DATA[True]}"
        )

    def lines(self, slate: Candidates) -> list[str]:
        """The slate as a prompt lists it, labelled."""
        return listed(labels(len(slate)), slate)

    def render(self, response: Response, n: int, thought: str = "") -> str:
        """Write an answer to a slate of n items as a model should; a thought goes before it, in any format."""
        names = labels(n)
        answer = {
            "seen": [names[place] for place in response.seen],
            "take": None if response.taken is None else names[response.taken],
            "stars": response.stars,
            "leave": response.leaves,
            "say": response.says,
        }
        return with_thought(thought, json.dumps(answer, ensure_ascii=False))

    def schema(self, n: int, visit: Visit) -> dict[str, Any] | None:
        """JSON schema for the server to enforce on answers to a slate of n items; None where the format is free text.

        What two keys say together, a schema for today's servers can't hold: `parse` does.
        """
        if not self.enforced:
            return None
        names, none = labels(n), [] if visit.taken else [None]
        properties = {
            "seen": {"type": "array", "items": {"enum": names}, "maxItems": n},
            "take": {"enum": [*names, *none]},
            "stars": {"enum": [*map(_number, visit.levels), *none]},
            "leave": {"type": "boolean"},
            "say": {"type": "string", "maxLength": MAX_SAID},
        }
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def parse(self, text: str, n: int, visit: Visit, cut_off: bool = False) -> Response:
        """Read an answer to a slate of n items; the last JSON object that has one of the keys counts.

        Taking an item implies looking at it; nothing else is implied.

        Args:
            text: The whole answer, with its thought (`Call.answer`).
            n: Items shown.
            visit: What was asked.
            cut_off: Whether the answer ended at the most tokens allowed; then it is none.
        """
        answer = read_answer(text, cut_off)
        objects = [value for value in json_values(answer.text) if isinstance(value, Pairs)]
        found = [pairs for pairs in objects if any(key in _ALL_KEYS for key, _ in pairs)]
        if not found:
            return Response(text=answer.kept, report=answer.report(False))
        response, report = _read(found[-1], n, visit)
        report = report.model_copy(update={"too_long": answer.too_long})
        kept = response if report.valid else Response()
        return kept.model_copy(update={"text": answer.kept, "report": report})


_FORMATS = {
    "paper": ResponseFormat(thinks=True, enforced=False),
    "labels": ResponseFormat(thinks=False, enforced=False),
    "scores": ResponseFormat(thinks=False, enforced=True),
}


def response_format(answer_format: str) -> ResponseFormat:
    """The format of responses that goes with a format of rankings, by name."""
    return _FORMATS[ranking_format(answer_format).name]


def respond_messages(
    query: Query, memory: Memory, visit: Visit, answer_format: str = "paper", max_history: int = MAX_HISTORY
) -> list[Message]:
    """The prompt of a response.

    Args:
        query: The user, what the user did before, and the slate as candidates.
        memory: The agent's memory.
        visit: What else the user knows.
        answer_format: One of ANSWER_FORMATS: "paper" asks for a thought first.
        max_history: As for `rank_messages`.
    """
    form, nouns = response_format(answer_format), nouns_of(query.domain)
    system = (
        f"You play a user before a recommender, which shows a page of {nouns.many}. Answer as this very user would, "
        f"no kinder: people pass over most of what they are shown, take one of the {nouns.many} only if they "
        "want it now, leave when a visit bores them, and rate as their own ratings show, low ones included.\n"
        f"{form.instructions(visit.levels)}"
    )
    lines = [f"{nouns.many.capitalize()} shown:", *form.lines(query.candidates)]
    known = about(query, memory, max_history, words=True, stars=True)
    return conversation(system, _anchors(visit), *known, "\n".join(lines), _request(visit, nouns.one))


def _anchors(visit: Visit) -> str:
    if visit.mean is None:
        return "Own ratings: none yet."
    total = sum(visit.counts)
    shares = zip(visit.levels, visit.counts, strict=True)
    histogram = ", ".join(f"{level:g}: {n / total:.0%}" for level, n in shares)
    return f"Own ratings: {total}, mean {visit.mean:.2f} ({histogram})."


def _request(visit: Visit, one: str) -> str:
    if visit.taken:
        return f"The user has taken this {one}. Answer with its rating."
    before = f", after {visit.passed} passed over without interest" if visit.passed else ""
    return f"This is page {visit.page} of the visit{before}. Answer as this user."


# Reading -------------------------------------------------------------------------------------------------------------


def _read(pairs: Pairs, n: int, visit: Visit) -> tuple[Response, ParseReport]:
    """What an object says, and what is wrong with it."""
    keys = [key for key, _ in pairs if key in _ALL_KEYS]
    given: Mapping[str, Any] = dict(pairs)
    table = {label: place for place, label in enumerate(labels(n))}
    seen = given["seen"] if isinstance(given.get("seen"), list) else []
    places = [_place(label, table) for label in seen]
    take = given.get("take")
    taken = None if take is None else _place(take, table)
    stars = _level(given.get("stars"), visit.levels)
    wrong = [*_wrong_types(given), *_contradictions(given, taken, stars, visit)]
    report = ParseReport(
        missing=sum(key not in given for key in _KEYS),
        repeated=len(keys) - len(set(keys)),
        invented=places.count(None) + (take is not None and taken is None),
        other="; ".join(wrong),
    )
    looked = {place for place in (*places, taken) if place is not None}
    says = visible(given["say"])[:MAX_SAID] if isinstance(given.get("say"), str) else ""
    leaves = given.get("leave") is True
    return Response(seen=tuple(sorted(looked)), taken=taken, stars=stars, leaves=leaves, says=says), report


def _wrong_types(given: Mapping[str, Any]) -> list[str]:
    """Keys whose values are of another kind than asked for."""
    return [f"{key} is no {name}" for key, kind, name in _KINDS if key in given and not isinstance(given[key], kind)]


_KINDS: tuple[tuple[str, Any, str], ...] = (
    ("seen", list, "list"),
    ("leave", bool, "truth value"),
    ("say", str | None, "text"),
)


def _contradictions(given: Mapping[str, Any], taken: int | None, stars: float | None, visit: Visit) -> list[str]:
    wrong = []
    rated = given.get("stars") is not None
    if rated and stars is None:
        wrong.append(f"stars off the scale of {visit.levels[0]:g} to {visit.levels[-1]:g}")
    if rated and "take" in given and given["take"] is None:
        wrong.append("rates what it did not take")
    if taken is not None and "stars" in given and not rated:
        wrong.append("does not rate what it took")
    if visit.taken and taken is None:
        wrong.append("does not take what it took")
    return wrong


def _place(label: object, table: Mapping[str, int]) -> int | None:
    named = isinstance(label, str | int) and not isinstance(label, bool)
    return table.get(str(label).strip().upper()) if named else None


def _level(stars: object, levels: Sequence[float]) -> float | None:
    """The level that a number is; None if it is none."""
    if isinstance(stars, bool) or not isinstance(stars, int | float) or abs(stars) > 1e9:
        return None
    return next((level for level in levels if math.isclose(stars, level, abs_tol=1e-6)), None)


def _number(level: float) -> float:
    return int(level) if level == int(level) else level
