"""What happens to agents' memories: how long they grow, how they change, repeat, drift, and contradict the history."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from starec_agents.runs.steps import Step
from starec_env.types import Id
from starec_eval.analysis import Estimate, estimate

FEWEST_RATINGS = 3
"""Ratings of a genre that a claim about it is held against."""

_WORD = re.compile(r"[\w'&-]+")
_QUOTED = re.compile(r'"[^"]*"|“[^”]*”')
_CLAUSE = re.compile(r"[.;!?\n]|,? but | over | while | although | though | whereas | however,? ", re.IGNORECASE)
_LIKING = (
    r"(?:like[sd]?|liking|enjoy\w*|lov(?:e|es|ed|ing)|prefer\w*|favou?r\w*|fond|fans?|drawn|appreciat\w*"
    r"|interest\w*|keen)"
)
_LIKES = re.compile(rf"\b{_LIKING}\b", re.IGNORECASE)
_DISLIKES = re.compile(
    r"\b(?:dis(?:like[sd]?|liking|interest\w*)|hat(?:e|es|ed)|avoid\w*|avers\w+|reject\w*|except|other than)\b"
    rf"|(?:\b(?:not(?! only)|never|no longer)|n't)\b(?:[^,]{{0,30}}?\b{_LIKING}\b)?"
    rf"|\b(?:less|little|rarely|seldom|lacks?)\b[^,]{{0,30}}?\b{_LIKING}\b",
    re.IGNORECASE,
)


def by_turn(steps: Iterable[Step]) -> Iterator[tuple[int, Step, list[str]]]:
    """Each step that was learned from, how many such its user had before, and the user's profiles so far.

    The first profile is the one that the run began with, the last the one after the step. A step that left the whole
    memory as it was, e.g. the last of an evaluation, taught nothing and is left out.
    """
    profiles: dict[Id, list[str]] = defaultdict(list)
    for step in sorted(steps, key=lambda step: step.turn):
        if step.memory == step.memory_before:
            continue
        mine = profiles[step.user_id]
        if not mine:
            mine.append(step.memory_before.profile)
        mine.append(step.memory.profile)
        yield len(mine) - 2, step, mine


@dataclass(frozen=True)
class MemoryCurves:
    """How memories go, against the turn of the run."""

    length: list[Estimate]
    """Words of the profile after the turn."""
    change: list[Estimate]
    """Share of the words that the turn changed: 1 - similarity to the profile before it."""
    drift: list[Estimate]
    """1 - similarity to the profile that the run began with."""
    repetition: list[Estimate]
    """Share of the profile's runs of three words that stood in it before."""


def memory_curves(steps: Iterable[Step]) -> MemoryCurves:
    """Length, change from turn to turn, drift from the start, and repetition, each by turn.

    Similarity is `difflib`'s ratio over words, 1 for equal texts and 0 for texts without a word in common.
    """
    rows: dict[int, list[tuple[Id, float, float, float, float]]] = defaultdict(list)
    for turn, step, profiles in by_turn(steps):
        words = [profile.casefold().split() for profile in (profiles[0], profiles[-2], profiles[-1])]
        far = (1 - similarity(words[1], words[2]), 1 - similarity(words[0], words[2]))
        rows[turn].append((step.user_id, float(len(words[2])), *far, repetition(profiles[-1])))
    curves = [
        [estimate(turn + 1, [row[column] for row in rows[turn]], [row[0] for row in rows[turn]]) for turn in rows]
        for column in range(1, 5)
    ]
    return MemoryCurves(*curves)


def similarity(first: Sequence[str], second: Sequence[str]) -> float:
    """Ratio of words in common, in order."""
    return 1.0 if first == second else SequenceMatcher(a=first, b=second, autojunk=False).ratio()


def repetition(text: str) -> float:
    """Share of a text's runs of three words that stood in it before; 0 for fewer than four words."""
    words = [word.casefold() for word in _WORD.findall(text)]
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


@dataclass(frozen=True)
class Claim:
    """That the user likes or dislikes an attribute, as a profile says."""

    attribute: str
    likes: bool
    clause: str


def claims(profile: str, vocabulary: Iterable[str]) -> list[Claim]:
    """What a profile says of attributes: in each clause, those named, with the last verb before them, or else the next.

    A plain reader of words, in English alone: it knows "not a fan of horror", and no irony. Quoted titles are no
    claims, as a film's name tells nothing of its genre, and what one clause says twice is one claim.

    Args:
        profile: The text.
        vocabulary: Attribute values in lower case, e.g. genres; their plurals are known, too.
    """
    forms = {form: name for name in vocabulary for form in (name, f"{name}s", re.sub("y$", "ies", name))}
    if not forms:
        return []
    longest_first = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
    named = re.compile(rf"(?<!\w)(?:{longest_first})(?!\w)", re.IGNORECASE)
    found = []
    for clause in _CLAUSE.split(_QUOTED.sub(" ", profile)):
        verbs = [(*match.span(), False) for match in _DISLIKES.finditer(clause)]
        likes = [(*match.span(), True) for match in _LIKES.finditer(clause)]
        verbs += [verb for verb in likes if not any(start <= verb[0] < end for start, end, _ in verbs)]
        for match in named.finditer(clause):
            before = [verb for verb in verbs if verb[0] < match.start()]
            if verbs:
                verb = max(before) if before else min(verbs)
                found.append(Claim(forms[match[0].casefold()], verb[2], clause.strip()))
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Contradictions:
    """How a run's last profiles stand to what their users did."""

    users: int
    claims: int
    """Claims about attributes."""
    testable: int
    """Of them, those about an attribute with at least three ratings in the user's history."""
    contradicted: int
    """Of them, those that like what was liked a third of the times or less, or dislike what was liked two thirds."""
    examples: tuple[tuple[Id, Claim, int, int], ...]
    """User, claim, and how many ratings of how many were likes."""

    @property
    def share(self) -> float:
        """Contradicted share of the testable claims; nan without any."""
        return self.contradicted / self.testable if self.testable else float("nan")


def contradictions(
    profiles: Mapping[Id, str],
    histories: Mapping[Id, Sequence[tuple[Id, bool]]],
    attributes: Mapping[Id, frozenset[str]],
    most_examples: int = 20,
) -> Contradictions:
    """Whether profiles say "likes horror" of someone who rates horror 1.

    Args:
        profiles: A profile a user.
        histories: A user's items, and whether each was liked.
        attributes: Attribute values of items in lower case.
        most_examples: So many are kept.
    """
    vocabulary = frozenset().union(*attributes.values()) if attributes else frozenset()
    total = testable = 0
    wrong: list[tuple[Id, Claim, int, int]] = []
    for user, profile in profiles.items():
        tallies: dict[str, list[bool]] = defaultdict(list)
        for item, liked in histories.get(user, ()):
            for attribute in attributes.get(item, ()):
                tallies[attribute].append(liked)
        for claim in claims(profile, vocabulary):
            total += 1
            rated = tallies[claim.attribute]
            if len(rated) < FEWEST_RATINGS:
                continue
            testable += 1
            share = sum(rated) / len(rated)
            if share <= 1 / 3 if claim.likes else share >= 2 / 3:
                wrong.append((user, claim, sum(rated), len(rated)))
    return Contradictions(len(profiles), total, testable, len(wrong), tuple(wrong[:most_examples]))
