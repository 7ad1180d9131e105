"""The ranking task (paper 4.1.2, Table 1): its prompt, and the formats of its answer, writer and reader side by side.

Answers are read strictly, in linear time, and never by guess. What is wrong with one is in `Ranking.report`. Of several
lists the last that ranks every candidate counts: what comes before it is a draft.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

from starec_agents.llm import Message
from starec_agents.memory import Memory
from starec_agents.tasks.answers import Pairs, json_values, read_answer, with_thought
from starec_agents.tasks.prompts import AS_DATA, MAX_HISTORY, about, conversation, nouns_of
from starec_agents.tasks.titles import candidate_titles, find_title, item_line, rest_of, title_table, visible
from starec_env.errors import InvalidOption, check_choice
from starec_env.types import Candidates, Query, Ranking

MAX_LINES = 10_000
"""Lines of an answer that are read."""

_MAX_LINE = 500
_NUMBERED = re.compile(r"[\s>*_#\-•\"'(\[]{0,8}(\d{1,5})[*_]{0,3}[.)\]](?!\d)")
_OWN_NUMBER = re.compile(r"\s*[*_(\[]{0,3}(\d{1,5})[.)\]]\s+")
_BULLETED = re.compile(r"[-*+•–] ")
_LEAD_IN = re.compile(r"(?:the )?(?:final )?(?:answer|ranking|order|labels)(?: is)? ?: ?", re.IGNORECASE)
_SEPARATORS = re.compile(r"->|[\s,;>|/→]+")
_PLACE = re.compile(r"\d{1,3}[.)]")
_ANNOTATED = re.compile(
    r"(?:[-*•] )?(?:\d{1,3}[.)] )?[*_(\[]{0,3}([A-Z])(?:[*_\]]{0,3}[.)][*_]{0,3} |[*_)\]]{0,3} [-–—] )"
)
_OBJECT = re.compile(r"\{\s*\"")
_WRAPPING = "[](){}\"'`*_.:"

_Entry = int | None
"""An entry's candidate position; None for an invented one."""
_Found = tuple[list[_Entry], int]
"""The entries that count, and how many of them are tied."""

FormatName = Literal["paper", "labels", "scores"]


@dataclass(frozen=True)
class RankingFormat:
    """A format of rankings: how it is asked for, written, enforced and read."""

    name: FormatName
    rules: str
    """What the system message says of it."""

    @property
    def thinks(self) -> bool:
        """Whether a thought and reasons are asked for."""
        return self.name == "paper"

    def instructions(self) -> str:
        """How an answer is to be written, and that what follows is data: the end of a task's system message."""
        return f"{self.rules}\n{AS_DATA[self.thinks]}"

    def lines(self, candidates: Candidates) -> list[str]:
        """The candidates as a prompt lists them: numbered, or labelled where the answer names labels."""
        n = len(candidates)
        return listed(map(str, range(1, n + 1)) if self.thinks else labels(n), candidates)

    def render(
        self, candidates: Candidates, order: Sequence[int], reasons: Mapping[int, str] | None = None, thought: str = ""
    ) -> str:
        """Write an answer as a model should.

        Args:
            candidates: What is ranked.
            order: 0-based candidate positions, best first.
            reasons: An explanation for each position; in the paper's format alone.
            thought: Goes before the answer, in any format.
        """
        names, why = labels(len(candidates)), reasons or {}
        if self.name == "scores":
            answer = json.dumps({names[position]: 99 - place for place, position in enumerate(order[:100])})
        elif self.name == "labels":
            answer = " ".join(names[position] for position in order)
        else:
            titles = candidate_titles(candidates)
            ends = {position: f" - {why[position]}" if position in why else "" for position in order}
            answer = "\n".join(f"{place}. {titles[each]}{ends[each]}" for place, each in enumerate(order, 1))
        return with_thought(thought, answer)

    def schema(self, n: int) -> dict[str, Any] | None:
        """JSON schema for the server to enforce on rankings of n candidates; None where the format is free text."""
        return ranking_schema(n) if self.name == "scores" else None

    def parse(self, text: str, candidates: Candidates, cut_off: bool = False) -> Ranking:
        """Read a ranking.

        Args:
            text: The whole answer, with its thought (`Call.answer`).
            candidates: What was to be ranked, as the prompt showed it.
            cut_off: Whether the answer ended at the most tokens allowed; then it ranks nothing.

        Returns:
            The ranking; `text` is kept in it, cut to MAX_CHARS.
        """
        answer = read_answer(text, cut_off)
        lines = answer.text.splitlines()
        read = _titles if self.thinks else _labels
        entries, tied = read(lines[:MAX_LINES], candidates)
        known = [entry for entry in entries if entry is not None]
        order = tuple(dict.fromkeys(known))
        report = answer.report(
            bool(entries),
            too_long=answer.too_long or len(lines) > MAX_LINES,
            missing=len(candidates) - len(order) if entries else 0,
            repeated=len(known) - len(order),
            invented=len(entries) - len(known),
            tied=tied,
        )
        return Ranking(order=order, text=answer.kept, report=report)

    def reason(self, ranking: Ranking, candidates: Candidates, position: int) -> str:
        """What a ranking's answer says of a candidate: the explanation on its line; "" if it gives none."""
        if not self.thinks or position not in ranking.order:
            return ""
        lines = [line for line, _ in _entry_lines(read_answer(ranking.text).text.splitlines()[:MAX_LINES])]
        table, found = title_table(candidates) if lines else {}, ""
        for line in lines:
            if _entry(line, table) == position:
                found = rest_of(_unnumbered(line, table), table) or found
        return found


PAPER = RankingFormat(
    "paper",
    "First think, between <think> and </think>. After that write one line for each candidate, best first:\n"
    "1. Title - brief explanation\n"
    "Copy each title exactly as it is listed, without its number in the list. Rank every candidate once, and nothing "
    "else.",
)
"""Numbered titles with explanations, after a thought (Table 1)."""
LABELS = RankingFormat(
    "labels", "Answer with the candidates' labels alone, best first, separated by spaces. Give every label once."
)
"""The candidates' labels in order: few tokens."""
SCORES = RankingFormat(
    "scores", "Answer with a JSON object that gives every candidate's label a score from 0 to 99, best highest."
)
"""A score for each label, which a server can enforce by a JSON schema."""

FORMATS = {each.name: each for each in (PAPER, LABELS, SCORES)}
ANSWER_FORMATS = tuple(FORMATS)
"""Names of the answer formats."""


def ranking_format(name: str, structured: bool = False) -> RankingFormat:
    """The format of that name.

    Args:
        name: One of ANSWER_FORMATS; "compact", the old name of "labels", is known too.
        structured: With "compact": "scores".

    Raises:
        InvalidOption: There is no such format, or `structured` contradicts it.
    """
    check_choice("answer_format", name, (*ANSWER_FORMATS, "compact"))
    if structured and name not in ("compact", "scores"):
        raise InvalidOption(
            "structured=True enforces the compact format: add answer_format='compact', or say answer_format='scores'"
        )
    if name == "compact":
        return SCORES if structured else LABELS
    return FORMATS[name]  # type: ignore[index]


def rank_messages(
    query: Query, memory: Memory, answer_format: str = "paper", max_history: int = MAX_HISTORY
) -> list[Message]:
    """The ranking task's prompt (paper 4.1.2, Table 1).

    Args:
        query: The turn.
        memory: The agent's memory.
        answer_format: One of ANSWER_FORMATS.
        max_history: Show the last so many interactions, or a few less: the window moves on in strides of a quarter, so
            that prompts of a long history still share a prefix.
    """
    form, nouns = ranking_format(answer_format), nouns_of(query.domain)
    system = (
        f"You are a {nouns.kind} recommendation system. Rank the candidate {nouns.many} by how well they fit this "
        f"user's profile, history and preferences, the one the user would choose next first.\n"
        f"{form.instructions()}"
    )
    lines = form.lines(query.candidates)
    listed = "\n".join([f"Candidate {nouns.many}:", *lines])
    request = f"Rank all {len(lines)} {nouns.many}."
    request += " Write them best first, in the format asked for." if form.thinks else ""
    return conversation(system, *about(query, memory, max_history, form.thinks), listed, request)


def parse_ranking(text: str, candidates: Candidates, answer_format: str = "paper", cut_off: bool = False) -> Ranking:
    """Read a ranking in the format of that name; see `RankingFormat.parse`."""
    return ranking_format(answer_format).parse(text, candidates, cut_off)


def candidate_lines(candidates: Candidates, answer_format: str) -> list[str]:
    """The candidates as a prompt lists them and `parse_ranking` knows them."""
    return ranking_format(answer_format).lines(candidates)


def listed(names: Iterable[str], candidates: Candidates) -> list[str]:
    """Candidates as lines of a prompt, each behind its number or label."""
    triples = zip(names, candidates, candidate_titles(candidates), strict=True)
    return [f"{name}. {item_line(item, title)}" for name, item, title in triples]


def labels(n: int) -> list[str]:
    """Labels of n candidates: A to Z, or numbers from 1 if there are more than 26."""
    return list(ascii_uppercase[:n]) if n <= len(ascii_uppercase) else [str(number) for number in range(1, n + 1)]


def ranking_schema(n: int) -> dict[str, Any]:
    """JSON schema of a ranking of n candidates by scores: a score for each label.

    A schema can't make the entries of a list distinct; an object's keys are, and all of them can be required.
    """
    score = {"type": "integer", "minimum": 0, "maximum": 99}
    return {
        "type": "object",
        "properties": dict.fromkeys(labels(n), score),
        "required": labels(n),
        "additionalProperties": False,
    }


# Reading titles ------------------------------------------------------------------------------------------------------


def _entry_lines(lines: Iterable[str]) -> Iterator[tuple[str, int | None]]:
    """What follows the marker of each numbered or bulleted line, and its number, None for a bullet."""
    for line in (visible(line[:_MAX_LINE]) for line in lines):
        if marker := _NUMBERED.match(line):
            yield line[marker.end() :], int(marker[1])
        elif marker := _BULLETED.match(line):
            yield line[marker.end() :], None


def _titles(lines: Iterable[str], candidates: Candidates) -> _Found:
    table = title_table(candidates)
    numbered: list[list[_Entry]] = []
    bulleted: list[list[_Entry]] = []
    for text, number in _entry_lines(lines):
        if number is None:
            bulleted.append([_entry(text, table)])
        elif number == 1 or not numbered:
            numbered.append([_entry(text, table)])
        else:
            numbered[-1].append(_entry(text, table))
    bullets = not _any_known(numbered) and _any_known(bulleted)
    entries = _final(bulleted if bullets else numbered, len(candidates))
    return ([] if _recited(entries, lines, candidates) else entries), 0


def _entry(text: str, table: dict[str, int]) -> _Entry:
    return find_title(_unnumbered(text, table), table)


def _unnumbered(text: str, table: dict[str, int]) -> str:
    """The text without the candidate's own number in the list, where it is that ("1. 7. Heat" for the seventh)."""
    own = _OWN_NUMBER.match(text)
    if own and find_title(text, table) is None and find_title(text[own.end() :], table) == int(own[1]) - 1:
        return text[own.end() :]
    return text


def _recited(entries: Sequence[_Entry], lines: Iterable[str], candidates: Candidates) -> bool:
    """Whether an answer is the list as shown, line by line, and so no answer to it."""
    if len(candidates) <= 4 or list(entries) != list(range(len(candidates))):
        return False
    return {visible(line) for line in PAPER.lines(candidates)} <= {visible(line[:_MAX_LINE]) for line in lines}


# Reading labels and scores -------------------------------------------------------------------------------------------


def _labels(lines: Sequence[str], candidates: Candidates) -> _Found:
    table = {label: position for position, label in enumerate(labels(len(candidates)))}
    answer = "\n".join(lines)
    found = [each for each in (_from_json(value, table) for value in json_values(answer)) if each]
    if not found:
        return ([] if _OBJECT.search(answer) else _by_label(lines, table)), 0
    whole = [each for each in found if _whole(each[0], len(table))]
    return (whole or found)[-1]


def _from_json(value: Any, table: Mapping[str, int]) -> _Found | None:
    if isinstance(value, Pairs) and len(value) == 1 and isinstance(value[0][1], list):
        value = list(value[0][1])  # {"ranking": [...]}
    if isinstance(value, Pairs):
        return _by_score(value, table)
    entries = [_position(entry, table) for entry in value]
    return (entries, 0) if _any_known([entries]) else None


def _by_score(pairs: Pairs, table: Mapping[str, int]) -> _Found:
    scored: list[tuple[float, int]] = []
    strangers: list[_Entry] = []
    for label, score in pairs:
        position = _position(label, table)
        if position is None:
            strangers.append(None)
        elif isinstance(score, int | float) and not isinstance(score, bool) and abs(score) < float("inf"):
            scored.append((-score, position))
    scored.sort()
    return [position for _, position in scored] + strangers, len(scored) - len({score for score, _ in scored})


def _by_label(lines: Iterable[str], table: Mapping[str, int]) -> list[_Entry]:
    """Entries of the lines that hold labels alone; if there are none, of lines that explain a letter ("C. Heat")."""
    plain: list[list[_Entry]] = []
    explained: list[list[_Entry]] = []
    lettered = "A" in table
    for line in map(visible, lines):
        tokens = _tokens(_LEAD_IN.sub("", line, count=1))
        if tokens and all(_is_label(token, lettered, alone=len(tokens) == 1) for token in tokens):
            plain.append([_position(token, table) for token in tokens])
        elif lettered and (start := _ANNOTATED.match(line)):
            explained.append([table.get(start[1])])
    entries = _final(plain or explained, len(table))
    recited = not plain and len(table) > 4 and entries == list(range(len(table)))  # the list as shown, no answer to it
    return [] if recited else entries


def _tokens(line: str) -> list[str]:
    *tokens, last = _SEPARATORS.split(line.strip())
    kept = [token for token in tokens if not _PLACE.fullmatch(token)]  # "1. C": the place, not a label
    return [bare for token in (*kept, last) if (bare := token.strip(_WRAPPING))]


def _is_label(token: str, lettered: bool, alone: bool) -> bool:
    if not lettered:
        return token.isdecimal() and len(token) <= 3
    return len(token) == 1 and token.isascii() and (token.isupper() if alone else token.isalpha())


def _position(label: object, table: Mapping[str, int]) -> _Entry:
    return table.get(str(label).strip(_WRAPPING + " ").upper()) if isinstance(label, str | int) else None


# Which list counts ---------------------------------------------------------------------------------------------------


def _final(lists: Sequence[list[_Entry]], n: int) -> list[_Entry]:
    """The last list that ranks all n candidates, else the shortest run of lists at the end that does; else all."""
    for entries in reversed(lists):
        if _whole(entries, n):
            return entries
    taken = known = 0
    seen = set[int]()
    for entries in reversed(lists):
        ranked = [entry for entry in entries if entry is not None]
        taken, known = taken + 1, known + len(ranked)
        seen.update(ranked)
        if len(seen) == n or known > n:
            break
    first = len(lists) - taken if len(seen) == n == known else 0
    return [entry for entries in lists[first:] for entry in entries]


def _whole(entries: Sequence[_Entry], n: int) -> bool:
    return len({entry for entry in entries if entry is not None}) == n


def _any_known(lists: Iterable[Iterable[_Entry]]) -> bool:
    return any(entry is not None for entries in lists for entry in entries)
