"""One user on a visit to a recommender: what the agent goes on from, what is recorded of it, and its snapshot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_agents.agent import UserAgent
from starec_agents.llm.base import Call
from starec_agents.memory import Memory
from starec_env.errors import DataError
from starec_env.recommend.responses import NOTHING, Responses
from starec_env.types import Candidates, Dataset, Feedback, History, Id, Query, Ranking, Shown


@dataclass(frozen=True)
class Given:
    """An answer as the environment sees it, for one user."""

    seen: tuple[int, ...] = ()
    taken: int = NOTHING
    stars: float = math.nan
    raw: float = math.nan
    """Stars as the agent gave them, before calibration."""
    liked: bool = False
    left: bool = False
    said: str = ""
    problem: str = ""


@dataclass
class Visitor:
    """One user on a visit."""

    user: int
    """0-based index."""
    user_id: Id
    agent: UserAgent
    history: History
    real: int
    """Interactions of the history that the data set has."""
    visit: int = 0
    page: int = 0
    """Slates shown in this visit."""
    shown: list[Shown] = field(default_factory=list)
    left: bool = False
    query: Query | None = None
    """The last slate's."""
    turn: tuple[Query, Ranking, Feedback] | None = None
    """The last ranking of this visit from which something was taken."""
    lines: list[dict[str, Any]] = field(default_factory=list)
    """What isn't recorded yet."""

    @property
    def passed(self) -> int:
        return sum(not shown.taken for shown in self.shown)

    @property
    def head(self) -> dict[str, Any]:
        """What a line of the record begins with."""
        return {"user": self.user_id, "visit": self.visit, "step": self.page}

    def query_of(self, dataset: Dataset, items: NDArray[np.integer[Any]], history: History | None = None) -> Query:
        """Items as candidates, after the history as it is now or was."""
        shown = Candidates(dataset.items, items.astype(np.int32))
        return Query(dataset.user(self.user), history or self.history, shown, dataset.domain)

    def move_on(self, dataset: Dataset, slate: NDArray[np.integer[Any]], given: Given) -> None:
        """Put an answer into the history, into what is to be reflected on, and into the record."""
        items = [dataset.items[index] for index in slate.tolist()]
        taken, rating = given.taken, None if math.isnan(given.stars) else given.stars
        answered = Shown(item=items[taken], taken=True, liked=given.liked, rating=rating)
        self.shown += [answered if place == taken else Shown(item=item) for place, item in enumerate(items)]
        if taken != NOTHING:
            self.history = after(self.history, int(slate[taken]), given.stars, given.liked)
        self.left = given.left
        self.lines.append(
            {
                **self.head,
                "slate": [item.id for item in items],
                "seen": list(given.seen),
                "taken": None if taken == NOTHING else taken,
                "stars": rating,
                "raw_stars": None if math.isnan(given.raw) else given.raw,
                "liked": given.liked,
                "left": given.left,
                "said": given.said,
                "problem": given.problem,
                "calls": recorded(self.agent.calls),
            }
        )
        self.page += 1

    def snapshot(self) -> dict[str, Any]:
        """All that the user goes on from, as JSON types."""
        history, memory = self.history, self.agent.memory
        lived = slice(self.real, None)
        columns = history.item_indices[lived], history.ratings[lived], history.liked[lived]
        turn = self.turn and {
            "history": len(self.turn[0].history) - self.real,
            "candidates": self.turn[0].candidates.indices.tolist(),
            "ranking": self.turn[1].model_dump(mode="json"),
            "feedback": self.turn[2].model_dump(mode="json"),
        }
        return {
            "user": self.user_id,
            "visit": self.visit,
            "page": self.page,
            "left": self.left,
            "taken": [list(event) for event in zip(*(column.tolist() for column in columns), strict=True)],
            "shown": [shown.model_dump(mode="json") for shown in self.shown],
            "turn": turn,
            "slate": self.query and self.query.candidates.indices.tolist(),
            "memory": memory and memory.model_dump(mode="json"),
            "state": dict(self.agent.own_state),
        }

    def restore(self, state: Mapping[str, Any], dataset: Dataset) -> None:
        """Go on from a snapshot of the same user.

        Raises:
            DataError: It is none.
        """
        try:
            lived = [self.history]
            for item, stars, liked in state["taken"]:
                lived.append(after(lived[-1], item, stars, liked))
            self.history, self.visit, self.page, self.left = lived[-1], state["visit"], state["page"], state["left"]
            self.shown = [Shown.model_validate(shown) for shown in state["shown"]]
            if state["slate"] is not None:
                self.query = self.query_of(dataset, np.array(state["slate"]))
            if turn := state["turn"]:
                query = self.query_of(dataset, np.array(turn["candidates"]), lived[turn["history"]])
                feedback = Feedback.model_validate(turn["feedback"])
                self.turn = query, Ranking.model_validate(turn["ranking"]), feedback
            if state["memory"] is not None:
                self.agent.memory = type(self.agent.memory or Memory()).model_validate(state["memory"])
            self.agent.own_state = state["state"]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"that is no snapshot of user {self.user_id!r}: {type(error).__name__}: {error}") from error


def after(history: History, item: int, stars: float, liked: bool) -> History:
    """The history with what was taken; a simulated second passes."""
    last = int(history.timestamps[-1]) if len(history) else 0
    return history.extended([item], [stars], [liked], [last + 1])


def recorded(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Calls as JSON types."""
    return [call.model_dump(mode="json", exclude_defaults=True) for call in calls]


def without_prompts(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the record whose calls have no prompts."""
    if "reflection" in line:
        return {**line, "reflection": without_prompts(line["reflection"])}
    return {**line, "calls": [{k: v for k, v in call.items() if k != "messages"} for call in line["calls"]]}


def together(given: Sequence[Given], k: int) -> Responses:
    """Answers to slates of k items, one a user, as arrays."""
    seen = np.zeros((len(given), k), bool)
    for row, one in enumerate(given):
        seen[row, list(one.seen)] = True
    return Responses(
        seen=seen,
        taken=np.array([one.taken for one in given], np.int64),
        stars=np.array([one.stars for one in given], np.float32),
        liked=np.array([one.liked for one in given], bool),
        left=np.array([one.left for one in given], bool),
        said=tuple(one.said for one in given),
        problems=tuple(one.problem for one in given),
    )


def apart(given: Responses) -> list[Given]:
    """Answers as arrays, one a user; the inverse of `together`."""
    n = len(given.taken)
    columns = given.taken.tolist(), given.stars.tolist(), given.liked.tolist(), given.left.tolist()
    texts = given.said or ("",) * n, given.problems or ("",) * n
    return [
        Given(tuple(np.flatnonzero(seen).tolist()), taken, stars, math.nan, liked, left, said, problem)
        for seen, taken, stars, liked, left, said, problem in zip(given.seen, *columns, *texts, strict=True)
    ]
