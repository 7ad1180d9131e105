"""How agents' memories evolve: their length, change, drift and repetition, and what they claim against the history."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from starec_agents.runs.steps import Step
from starec_env.types import Id
from starec_eval.report.analysis import Estimate, estimates, to_frame

if TYPE_CHECKING:
    from pandas import DataFrame

MEMORY_CURVES = {
    "length": ("words", "Words of the profile after each turn."),
    "change": (
        "share changed",
        "Share of the profile's words that each turn changed: 1 - similarity to the one before.",
    ),
    "drift": ("share changed", "1 - similarity to the profile that the run began with."),
    "repetition": ("share repeated", "Share of the profile's word trigrams that occur in it before."),
}
"""What `memory_curves` measures: unit and definition."""
MIN_RATINGS = 3
"""Ratings of an attribute that a claim about it needs to be tested."""

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


def _profiles(steps: Iterable[Step]) -> Iterator[tuple[int, Id, list[str]]]:
    # For each step that was learned from: its number among the user's, the user, and the profiles up to it, the run's
    # first one included. A step that left the whole memory as it was, as an evaluation's last does, is left out.
    profiles: dict[Id, list[str]] = defaultdict(list)
    for step in sorted(steps, key=lambda step: step.turn):
        if step.memory != step.memory_before:
            mine = profiles[step.user_id] = profiles[step.user_id] or [step.memory_before.profile]
            mine.append(step.memory.profile)
            yield len(mine) - 1, step.user_id, mine


def memory_curves(steps: Iterable[Step]) -> dict[str, list[Estimate]]:
    """The `MEMORY_CURVES` by number of turns learned from, means over users.

    Similarity is `difflib`'s ratio over words, 1 for equal texts and 0 for texts without a word in common.
    """
    rows = []
    for turn, user, profiles in _profiles(steps):
        start, before, after = (profile.casefold().split() for profile in (profiles[0], profiles[-2], profiles[-1]))
        change, drift = 1 - similarity(before, after), 1 - similarity(start, after)
        rows.append((turn, user, len(after), change, drift, repetition(profiles[-1])))
    frame = to_frame(rows, " ".join(("turn", "user", *MEMORY_CURVES))).sort_values("turn", kind="stable")
    return {name: estimates(frame, "turn", name) for name in MEMORY_CURVES}


def similarity(first: Sequence[str], second: Sequence[str]) -> float:
    """Ratio of words in common, in order."""
    return 1.0 if first == second else SequenceMatcher(a=first, b=second, autojunk=False).ratio()


def repetition(text: str) -> float:
    """Share of a text's word trigrams that occur in it before; 0 for fewer than four words."""
    words = [word.casefold() for word in _WORD.findall(text)]
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


@dataclass(frozen=True)
class Claim:
    """A profile's statement that the user likes or dislikes an attribute."""

    attribute: str
    likes: bool
    clause: str


def claims(profile: str, vocabulary: Iterable[str]) -> list[Claim]:
    """A profile's claims about attributes: those named in a clause, with the last verb before them, or else the next.

    Word patterns, in English alone: they match "not a fan of horror", and no irony. Quoted titles are no claims, as a
    film's name says nothing of its genre, and repetitions within a clause are one claim.

    Args:
        profile: The text.
        vocabulary: Attribute values in lower case, e.g. genres; their plurals are matched, too.
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


def check_claims(
    profiles: Mapping[Id, str],
    histories: Mapping[Id, Sequence[tuple[Id, bool]]],
    attributes: Mapping[Id, frozenset[str]],
) -> DataFrame:
    """Profiles' claims beside their users' own ratings.

    Args:
        profiles: A profile a user.
        histories: A user's items, and whether each was liked.
        attributes: Attribute values of items in lower case.

    Returns:
        A row a claim: `user`, `attribute`, `likes`, `clause`; `liked` of `ratings` of items with that attribute;
        `testable`, with `MIN_RATINGS` or more; and `contradicted`: what is said to be liked was liked in at most a
        third of them, or what is said to be disliked in at least two thirds.
    """
    vocabulary = frozenset().union(*attributes.values())
    said = [(u, c.attribute, c.likes, c.clause) for u, text in profiles.items() for c in claims(text, vocabulary)]
    rated = [
        (user, attribute, liked)
        for user in profiles
        for item, liked in histories.get(user, ())
        for attribute in attributes.get(item, ())
    ]
    counts = to_frame(rated, "user attribute liked").groupby(["user", "attribute"])["liked"].agg(["sum", "count"])
    counts.columns = ["liked", "ratings"]
    frame = to_frame(said, "user attribute likes clause").join(counts, on=["user", "attribute"])
    frame = frame.fillna({"liked": 0, "ratings": 0}).astype({"likes": bool, "liked": int, "ratings": int})
    opposed = (3 * frame["liked"] <= frame["ratings"]).where(frame["likes"], 3 * frame["liked"] >= 2 * frame["ratings"])
    testable = frame["ratings"] >= MIN_RATINGS
    return frame.assign(testable=testable, contradicted=testable & opposed)
