"""The memory update (paper 4.1.3, Table 2): its prompt, and the formats of its answer, writer beside reader."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from starec_agents.llm import Message
from starec_agents.memory import Memory
from starec_agents.tasks.answers import read_answer, with_thought
from starec_agents.tasks.prompts import (
    AS_DATA,
    MAX_HISTORY,
    MAX_PROFILE,
    MAX_REASON,
    about,
    conversation,
    nouns_of,
    place_of,
    target_position,
    verb,
)
from starec_agents.tasks.rank import ranking_format
from starec_agents.tasks.titles import candidate_titles, clean, item_line, item_title, title_key, visible
from starec_env.types import Feedback, ParseReport, Query, Ranking, Shown, SlateFeedback

_MAX_SHOWN = 60
"""Items of a visit that its reflection is shown, the latest."""

_MARK = re.compile(r"<(/?)description>", re.IGNORECASE)
_COUNT = r"(?:\(\d+ words\)[ \t*_]*)?"
_HEADING = re.compile(
    rf"updated\s+user\s+description[\"*_ \t]*{_COUNT}:"
    rf"|^[#*_> \t]*(?:the[ \t]+)?updated[ \t]+user[ \t]+description[*_ \t]*{_COUNT}$",
    re.IGNORECASE | re.MULTILINE,
)
_AFTERWARDS = re.compile(
    r"(?:^|[\n.!?])[\s*_#]*(?:explanations?|reason(?:s|ing)?|rationale|notes?|(?:key )?changes(?: made)?|justification)"
    r"(?: (?:of|for|on) [^\n:]{1,40})?[*_]*:",
    re.IGNORECASE,
)


class Profile(NamedTuple):
    """A reflection's answer, read."""

    text: str | None
    """The new profile, on one line of at most MAX_PROFILE characters; None if the answer holds none."""
    report: ParseReport


@dataclass(frozen=True)
class ProfileFormat:
    """A format of new profiles: how it is asked for, written and read."""

    thinks: bool
    """Whether a thought is asked for, and the profile between marks; else it follows a heading."""

    def instructions(self) -> str:
        """How an answer is to be written, and that what follows is data: the end of the task's system message."""
        if self.thinks:
            return (
                "First think, between <think> and </think>. After that write the whole new description, in at most 100 "
                f"words, between <description> and </description>, and nothing else.\n{AS_DATA[True]}"
            )
        return (
            f"{AS_DATA[False]}\nWrite the whole new description, in at most 100 words, after:\n"
            "Updated User description:"  # the last words, so that an echo of them describes nothing
        )

    def render(self, profile: str, thought: str = "") -> str:
        """Write an answer as a model should; a thought goes before it, in any format."""
        answer = f"<description>{profile}</description>" if self.thinks else f"{_HEADED} {profile}"
        return with_thought(thought, answer)

    def parse(self, text: str, cut_off: bool = False) -> Profile:
        """Read a new profile in either format, or what follows a thought where it has neither marks nor heading.

        The last description counts. What follows its closing mark, or an "Explanation of changes:", is cut.

        Args:
            text: The whole answer, with its thought (`Call.answer`).
            cut_off: Whether the answer ended at the most tokens allowed; then it holds no profile.
        """
        answer = read_answer(text, cut_off)
        profile = next(filter(None, map(_profile, _parts(answer.text, answer.thought))), None)
        return Profile(profile, answer.report(profile is not None))


_HEADED = "Updated User description:"
_FORMATS = {thinks: ProfileFormat(thinks) for thinks in (True, False)}


def profile_format(answer_format: str) -> ProfileFormat:
    """The format of new profiles that goes with a format of rankings, by name."""
    return _FORMATS[ranking_format(answer_format).thinks]


def parse_profile(text: str, cut_off: bool = False) -> str | None:
    """Read a new profile; see `ProfileFormat.parse`, which also says what was wrong."""
    return _FORMATS[True].parse(text, cut_off).text


def _parts(answer: str, thought: bool) -> Iterator[str]:
    """Where the profile may be, likeliest first."""
    yield from reversed(_between_marks(answer))
    before, *headed = _HEADING.split(answer)
    yield from reversed(headed)
    if thought and not headed:
        yield before


def _between_marks(answer: str) -> list[str]:
    found, opened = list[str](), None
    for mark in _MARK.finditer(answer):
        if not mark[1]:
            opened = mark.end()
        elif opened is not None:
            found.append(answer[opened : mark.start()])
            opened = None
    return found if opened is None else [*found, answer[opened:]]


def _profile(part: str) -> str | None:
    part = _HEADING.split(part)[-1]
    said = _AFTERWARDS.search(part)
    end = said.start() + 1 if said and part[: said.start()].strip() else len(part)
    profile = visible(_MARK.sub(" ", part[:end])).strip(" []{}*_#\"'`")
    if any(char.isalpha() for char in profile) and title_key(profile) != "updated user description":
        return profile[:MAX_PROFILE].rstrip()
    return None


def reflect_messages(
    query: Query,
    memory: Memory,
    ranking: Ranking,
    feedback: Feedback,
    answer_format: str = "paper",
    max_history: int = MAX_HISTORY,
) -> list[Message]:
    """The memory update's prompt (paper 4.1.3, Table 2): memory, target item, prediction, actual feedback.

    Args:
        query: The turn that was ranked.
        memory: The agent's memory.
        ranking: What the agent predicted; its own reason for the target is shown in the paper's format.
        feedback: What the user really did.
        answer_format: "paper" asks for a thought first, the others don't.
        max_history: As for `rank_messages`.

    Raises:
        InvalidOption: The feedback is on an item that isn't among the candidates.
    """
    nouns, thinks = nouns_of(query.domain), ranking_format(answer_format).thinks
    system = _analyst(
        query,
        answer_format,
        f"what was predicted of one {nouns.one} beforehand and the user's actual feedback afterwards. "
        "Learn from any discrepancy between the two",
    )
    titles = candidate_titles(query.candidates)
    target = target_position(query.candidates, feedback)
    first = "; ".join(titles[position] for position in ranking.order[:3]) or "nothing"
    reason = clean(ranking_format(answer_format).reason(ranking, query.candidates, target), MAX_REASON)
    why = f" Reason given: {reason.rstrip('.')}." if reason else ""
    outcome = (
        f"Target {nouns.one}: {item_line(query.candidates[target], titles[target])}",
        f"Prediction: {place_of(query, feedback)}, so predicted {verb(feedback.predicted_liked)}.{why} "
        f"Ranked first: {first}.",
        f"Actual feedback: {verb(feedback.liked)}.",
    )
    return conversation(system, *about(query, memory, max_history, thinks), "\n".join(outcome), _REQUEST[thinks])


def visit_messages(
    query: Query, memory: Memory, feedback: SlateFeedback, answer_format: str = "paper", max_history: int = MAX_HISTORY
) -> list[Message]:
    """The memory update's prompt at the end of a visit: what was shown, taken, rated and passed over.

    Args:
        query: The last slate.
        memory: The agent's memory.
        feedback: What the user did.
        answer_format: "paper" asks for a thought first, the others don't.
        max_history: As for `rank_messages`.
    """
    nouns, thinks = nouns_of(query.domain), ranking_format(answer_format).thinks
    system = _analyst(
        query,
        answer_format,
        f"what a recommender showed the user in one visit and which of these {nouns.many} the user took, rated or "
        "passed over. Learn from that",
    )
    lines = ["Shown in this visit:", *(_shown_line(shown) for shown in feedback.shown[-_MAX_SHOWN:])]
    lines.append("Then the user left." if feedback.left else "Then the visit ended.")
    return conversation(system, *about(query, memory, max_history, thinks), "\n".join(lines), _REQUEST[thinks])


_REQUEST = {True: "Write the whole new description of this user, in the format asked for.", False: ""}


def _analyst(query: Query, answer_format: str, given: str) -> str:
    return (
        f"You are a {nouns_of(query.domain).kind} preference analyst. You keep the description of a user's likes and "
        f"dislikes accurate. You are given {given}: keep what still holds, correct what was wrong, add what is new.\n"
        f"{profile_format(answer_format).instructions()}"
    )


def _shown_line(shown: Shown) -> str:
    rated = "" if shown.rating is None else f", rated {shown.rating:g}"
    verdict = f"taken{rated}, {verb(shown.liked)}" if shown.taken else "passed over"
    return f"{item_line(shown.item, item_title(shown.item))} - {verdict}"
