"""The nouns of the environment: a turn, what is asked at it, a ranking, and what the user really did."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from starec_env.dataset import LIKED_ABOVE as LIKED_ABOVE
from starec_env.dataset import Dataset as Dataset
from starec_env.dataset import Id as Id
from starec_env.dataset import Indices as Indices
from starec_env.dataset import Interaction as Interaction
from starec_env.dataset import Item as Item
from starec_env.dataset import User as User
from starec_env.dataset import check_liked_above as check_liked_above
from starec_env.history import Candidates as Candidates
from starec_env.history import History as History


@dataclass(frozen=True, slots=True)
class Query:
    """All that a ranker may see at a turn: never the target, never the future."""

    user: User
    history: History
    candidates: Candidates
    domain: str = "item"

    def __reduce__(self) -> tuple[Any, ...]:
        # Half the time that a frozen dataclass with slots takes to be unpickled.
        return Query, (self.user, self.history, self.candidates, self.domain)


@dataclass(frozen=True, slots=True)
class Turn:
    """What the environment and the scorer hold: the query, the candidate position of the truth, and if it was liked."""

    query: Query
    target: int
    """0-based candidate position of the item the user really took next."""
    liked: bool
    number: int
    """0-based place in the user's whole stream of turns; negatives are a function of (seed, user, number)."""
    rating: float | None = None
    """What the user rated the item; None where that isn't known."""

    @property
    def target_item(self) -> Item:
        """The item the user really took next."""
        return self.query.candidates[self.target]


class ParseReport(BaseModel):
    """What was wrong with a model's answer, a ranking or a new profile. Ties are noted, not wrong."""

    model_config = ConfigDict(frozen=True)

    cut_off: bool = False
    """It ended at the most tokens allowed, or within its thought: an unfinished answer is none."""
    empty: bool = False
    """There is no text, or none beside the thought."""
    no_answer: bool = False
    """There is text, but nothing in it that could be an entry of a ranking, or a profile."""
    too_long: bool = False
    """Only the beginning was read."""
    missing: int = 0
    """Candidates that it doesn't rank; 0 where it ranks none at all."""
    repeated: int = 0
    """Entries that name a candidate once more; the first counts."""
    invented: int = 0
    """Entries that name no candidate."""
    tied: int = 0
    """Candidates whose score equals an earlier one's; they are in the order shown."""
    other: str = ""
    """What else was wrong, in words."""

    @property
    def valid(self) -> bool:
        """Whether nothing was wrong."""
        return not any(value for name, value in self if name != "tied")

    @property
    def kinds(self) -> list[str]:
        """Names of what was found, ties included."""
        return [name for name, value in self if value]

    @property
    def problems(self) -> tuple[str, ...]:
        """What was found, in words: "cut off", "missing: 3"."""
        found = ((name.replace("_", " "), value) for name, value in self if value and name != "other")
        counted = (name if value is True else f"{name}: {value}" for name, value in found)
        return (*counted, self.other) if self.other else tuple(counted)


class Ranking(BaseModel):
    """Candidate positions, best first; may be partial."""

    model_config = ConfigDict(frozen=True)

    order: tuple[int, ...]
    """Distinct 0-based candidate positions, best first."""
    text: str = ""
    """The answer it was read from, rationale included; empty for rankers that don't write."""
    report: ParseReport = ParseReport()
    """What was wrong with the answer."""

    def rank_of(self, position: int) -> int | None:
        """1-based rank of a candidate position; None when the ranking doesn't hold it."""
        try:
            return self.order.index(position) + 1
        except ValueError:
            return None

    @property
    def problems(self) -> tuple[str, ...]:
        """What was wrong with the answer, in words, e.g. "missing: 3", "repeated: 1"; see `report`."""
        return self.report.problems

    @property
    def valid(self) -> bool:
        """Whether the answer ranked each candidate exactly once and nothing else."""
        return self.report.valid


class Feedback(BaseModel):
    """What the user really did, beside what the ranking predicted (paper 4.1.3)."""

    model_config = ConfigDict(frozen=True)

    item_id: Id
    rank: int | None
    """1-based rank that the target was given; None when it was not ranked."""
    predicted_liked: bool
    liked: bool
    rating: float | None = None
    """What the user rated the item; None where that isn't known."""

    @property
    def agrees(self) -> bool:
        """Whether prediction and behaviour agree."""
        return self.predicted_liked == self.liked


class Shown(BaseModel):
    """An item that a user was shown, and what the user made of it."""

    model_config = ConfigDict(frozen=True)

    item: Item
    taken: bool = False
    liked: bool = False
    """Whether it was taken and liked."""
    rating: float | None = None
    """What the user rated it; None where it wasn't taken, or that isn't known."""


class SlateFeedback(BaseModel):
    """What a user did with the slates of one visit."""

    model_config = ConfigDict(frozen=True)

    shown: tuple[Shown, ...]
    """Slate after slate, in the order shown."""
    left: bool
    """Whether the user left, rather than being shown no more."""

    @property
    def agrees(self) -> bool:
        """Whether the user found something to like, and took nothing that was not liked."""
        taken = [shown for shown in self.shown if shown.taken]
        return bool(taken) and all(shown.liked for shown in taken)


@runtime_checkable
class Ranker(Protocol):
    """Anything that orders a query's candidates: a baseline, or an agent."""

    def rank(self, query: Query) -> Ranking:
        """Rank the candidates of a query, best first."""
        ...


_MOVED = {
    "Memory": "starec_agents.memory",
    **dict.fromkeys(("Call", "Endpoint", "Usage", "whole_answer"), "starec_agents.llm.base"),
    **dict.fromkeys(("Step", "Trajectory"), "starec_agents.runs.steps"),
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Names that were here in the first edition; kept for one release."""
        if name not in _MOVED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        warnings.warn(f"{__name__}.{name} is in {_MOVED[name]} now", DeprecationWarning, stacklevel=2)
        return getattr(import_module(_MOVED[name]), name)
