"""What thoughts give away: whether a scorer tells from a thought alone that its writer had been told something.

Two figures. The scorer is a linear classifier of words, cross-validated over users, of thoughts that were written after
a remark on an earlier answer (told) and thoughts on the same prompts before it (untold): an area under the ROC curve of
50 % is chance, more than that is a trace that a student would learn. And a thought that reasons names what speaks for
an item before the item; one that knows the answer names the target first: how many do, beside the other candidates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from starec_env.types import Id
from starec_training.dataset import Row
from starec_training.hints import mask_titles

FOLDS, COLUMNS, PENALTY, RESAMPLES = 5, 2**11, 1.0, 200
LEAST_USERS = 2 * FOLDS
"""Fewest users with thoughts of each kind that are compared."""

Floats = NDArray[np.floating]
_WORD = re.compile(r"[A-Za-z']+")


@dataclass(frozen=True)
class Thought:
    """A thought as the judge sees it: candidates' titles are masked, and so can't be learned."""

    user: Id
    words: tuple[str, ...]
    told: bool

    @classmethod
    def of(cls, row: Row, told: bool) -> Thought:
        """The thought of a row's answer, or the answer where there is none."""
        text = mask_titles(row.thought or row.completion, row.snapshot.shown.candidates)
        return cls(row.snapshot.user_id, tuple(word.lower() for word in _WORD.findall(text)), told)


class Judgement(BaseModel):
    """What the thoughts of a teacher's rows give away."""

    told: int
    untold: int
    """Thoughts compared."""
    auc: float | None = None
    """Chance that the scorer puts a told thought above an untold one, 0 to 1; None where too few are there."""
    auc_se: float | None = None
    """Its standard error over users."""
    thoughts: int
    """Thoughts of kept rankings."""
    target_first: float | None = None
    """Share of them that name the target before anything of the history or any attribute."""
    others_first: float | None = None
    """The same of the other candidates together."""

    def __str__(self) -> str:
        compared = f"{self.told} thoughts after a remark, {self.untold} before"
        if self.auc is None or self.auc_se is None:
            trace = f"too few to compare ({compared}; wanted {LEAST_USERS} users of each)"
        else:
            trace = f"told from untold with AUC {100 * self.auc:.1f} ± {100 * self.auc_se:.1f} ({compared}; chance 50)"
        if self.target_first is None or self.others_first is None:
            return f"judge: {trace}"
        return (
            f"judge: {trace}; the target is named before any evidence in {100 * self.target_first:.1f} % of "
            f"{self.thoughts} thoughts, another candidate in {100 * self.others_first:.1f} %"
        )


def judge(thoughts: Sequence[Thought], kept: Iterable[Row], seed: int = 0) -> Judgement:
    """Measure what thoughts give away.

    Args:
        thoughts: Told and untold ones, best of the same prompts.
        kept: The rows that teach.
        seed: Of the folds and resamples.
    """
    firsts = [first for row in kept if (first := named_first(row)) is not None]
    told = sum(thought.told for thought in thoughts)
    found = Judgement(told=told, untold=len(thoughts) - told, thoughts=len(firsts))
    if firsts:
        found.target_first = float(np.mean([first == "target" for first in firsts]))
        found.others_first = float(np.mean([first == "another" for first in firsts]))
    users = [len({thought.user for thought in thoughts if thought.told == told}) for told in (True, False)]
    if min(users) >= LEAST_USERS:
        found.auc, found.auc_se = told_from_untold(thoughts, seed)
    return found


# Told from untold -----------------------------------------------------------------------------------------------------


def told_from_untold(thoughts: Sequence[Thought], seed: int = 0) -> tuple[float, float]:
    """The scorer's area under the ROC curve on users that it wasn't fitted to, and its standard error over users.

    A ridge regression (penalty 1) on log counts of words and pairs of words (hashed), on five folds of users; the error
    is that of 200 bootstrap samples of users. Labels drawn at random gave figures that spread by 2.0 points where it
    stated 1.7: it leaves out that the weights would differ, too.
    """
    rng = np.random.default_rng(seed)
    names, user = np.unique([str(thought.user) for thought in thoughts], return_inverse=True)
    told = np.array([thought.told for thought in thoughts])
    scores = _held_out_scores(_counts(thoughts), told, rng.permutation(len(names))[user] % FOLDS)
    of_user = [np.flatnonzero(user == each) for each in range(len(names))]
    draws = (np.concatenate([of_user[u] for u in rng.integers(0, len(names), len(names))]) for _ in range(RESAMPLES))
    return auc(scores, told), float(np.nanstd([auc(scores[rows], told[rows]) for rows in draws], ddof=1))


def auc(scores: Floats, told: NDArray[np.bool_]) -> float:
    """Chance that a told one scores above an untold one, ties half (Mann and Whitney 1947); nan without one of each."""
    ones, others = scores[told], np.sort(scores[~told])
    below = np.searchsorted(others, ones) + np.searchsorted(others, ones, side="right")
    return float(below.mean() / (2 * len(others))) if len(ones) and len(others) else float("nan")


def _counts(thoughts: Sequence[Thought]) -> Floats:
    """(thoughts, COLUMNS) log counts of words and pairs of words, each row of length 1."""
    x: Floats = np.empty((len(thoughts), COLUMNS), np.float32)
    for row, thought in zip(x, thoughts, strict=True):
        words = [*thought.words, *map(" ".join, zip(thought.words, thought.words[1:], strict=False))]
        row[:] = np.log1p(np.bincount([crc32(word.encode()) % COLUMNS for word in words] or [0], minlength=COLUMNS))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def _held_out_scores(x: Floats, told: NDArray[np.bool_], fold: NDArray[np.integer]) -> Floats:
    """(thoughts,) each scored by weights that were fitted to the other folds."""
    scores, whole = np.zeros(len(x)), x.T @ x
    for held in range(FOLDS):
        test, train = x[fold == held], x[fold != held]
        wanted = told[fold != held] - told[fold != held].mean()
        gram = whole - test.T @ test + PENALTY * np.eye(COLUMNS, dtype=x.dtype)
        scores[fold == held] = test @ np.linalg.solve(gram, train.T @ wanted)
    return scores


# Before any evidence --------------------------------------------------------------------------------------------------


_TARGET, _ANOTHER = "\N{WHITE STAR}", "\N{BLACK STAR}"


def named_first(row: Row) -> str | None:
    """What the thought of a ranking names first: "target", "another" (candidate) or "evidence"; None without a thought.

    Evidence is what several candidates have in common, an attribute's value such as a genre, and any dated title that
    isn't a candidate's.
    """
    if row.task != "rank" or not row.thought:
        return None
    candidates, target = row.snapshot.shown.candidates, row.snapshot.shown.target
    others = [item for place, item in enumerate(candidates) if place != target]
    text = mask_titles(mask_titles(row.thought, [candidates[target]], _TARGET), others, _ANOTHER)
    names = {part.strip() for item in candidates for part in re.split(r"[|,/;]", ";".join(item.attributes.values()))}
    known = [re.escape(name) for name in sorted(names) if len(name) > 2 and not name.isdecimal()]
    first = re.search("|".join([_TARGET, _ANOTHER, r"\(\d{4}\)", *known]), text, re.IGNORECASE)
    named = first[0] if first else ""
    return {_TARGET: "target", _ANOTHER: "another"}.get(named, "evidence")
