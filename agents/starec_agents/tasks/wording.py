"""Prompts as functions that an agent can be given, and what tells one wording from another in a record."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

import numpy as np

from starec_agents.llm import Message
from starec_agents.memory import Event, Memory
from starec_agents.tasks.rank import rank_messages
from starec_agents.tasks.reflect import reflect_messages, visit_messages
from starec_agents.tasks.respond import Visit, respond_messages
from starec_env.replay.stream import Stream, judge
from starec_env.types import Dataset, Feedback, Item, Query, Ranking, Shown, SlateFeedback, Turn


@dataclass(frozen=True)
class Prompts:
    """The wording of all tasks. Give functions of your own, at a module's level where a run has workers.

    They must list the candidates as `candidate_lines` does, or the answers can't be read, and ask for the answer format
    (`ranking_format(name).instructions()`, `profile_format(name).instructions()`); a slate as
    `response_format(name).lines` does.
    """

    rank: Callable[[Query, Memory, str, int], list[Message]] = rank_messages
    """Of (query, memory, answer format's name, most interactions to show)."""
    reflect: Callable[[Query, Memory, Ranking, Feedback, str, int], list[Message]] = reflect_messages
    """Of (query, memory, ranking, feedback, answer format's name, most interactions to show)."""
    respond: Callable[[Query, Memory, Visit, str, int], list[Message]] = respond_messages
    """Of (query, memory, visit, answer format's name, most interactions to show)."""
    reflect_visit: Callable[[Query, Memory, SlateFeedback, str, int], list[Message]] = visit_messages
    """Of (query, memory, feedback, answer format's name, most interactions to show)."""

    def fingerprint(self, answer_format: str, max_history: int) -> str:
        """16 hex digits over what `rank` and `reflect` write of a made-up turn: equal for equal wording, for a record.

        Args:
            answer_format: One of ANSWER_FORMATS.
            max_history: Most interactions to show.
        """
        return _fingerprint(self, answer_format, max_history)

    def visit_fingerprint(self, answer_format: str, max_history: int) -> str:
        """The same over what `respond` and `reflect_visit` write of a made-up visit."""
        return _visit_fingerprint(self, answer_format, max_history)


@cache
def _fingerprint(prompts: Prompts, answer_format: str, max_history: int) -> str:
    turn, memory = made_up_turn(), _made_up_memory()
    ranking = Ranking(order=(1, 0), text="1. Film 1 (1999) - so")
    asked = answer_format, max_history
    written = [
        prompts.rank(turn.query, memory, *asked),
        prompts.reflect(turn.query, memory, ranking, judge(turn, ranking)[0], *asked),
    ]
    return _digest(written)


@cache
def _visit_fingerprint(prompts: Prompts, answer_format: str, max_history: int) -> str:
    query, memory = made_up_turn().query, _made_up_memory()
    visit = Visit(levels=(1, 2, 3, 4, 5), counts=(0, 0, 1, 2, 3), page=2, passed=2)
    first, second = query.candidates
    shown = Shown(item=first, taken=True, liked=True, rating=4.0), Shown(item=second)
    asked = answer_format, max_history
    return _digest(
        [
            prompts.respond(query, memory, visit, *asked),
            prompts.reflect_visit(query, memory, SlateFeedback(shown=shown, left=True), *asked),
        ]
    )


def _digest(written: Sequence[Sequence[Message]]) -> str:
    text = json.dumps([[dict(message) for message in messages] for messages in written])
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _made_up_memory() -> Memory:
    return Memory(profile="Likes drama.", history=(Event(item_id=2, title="Film 2 (1999)", liked=True, rank=1, of=2),))


@cache
def made_up_turn() -> Turn:
    """A turn of a few made-up films."""
    n = 8
    films = [Item(number, f"Film {number}", {"year": "1999", "genres": "Drama"}) for number in range(1, n + 1)]
    rows = np.arange(n - 1)
    dataset = Dataset(
        name="made up", domain="movie", items=films, user_ids=np.array([1]), indptr=np.array([0, n - 1]),
        item_indices=rows.astype(np.int32), ratings=np.full(n - 1, 5, np.float32), timestamps=rows,
    )  # fmt: skip
    return Stream(dataset, n_candidates=2, min_history=1).turns(0)[-1]
