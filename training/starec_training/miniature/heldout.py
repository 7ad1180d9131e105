"""Held-out users' last turns, as the evaluation protocol shows them, and differences between models on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_agents.parsing import parse_profile
from starec_agents.prompts import event_line, rank_messages, reflect_messages, start_memory
from starec_env.scoring import ndcg
from starec_env.stream import Stream, judge
from starec_env.types import Dataset, Feedback, Id, Memory, Ranking, Turn
from starec_training.miniature.data import MAX_HISTORY, Encoder, Example
from starec_training.policy import generate

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A held-out turn, and the one before it (None if the user has only one)."""

    user: Id
    turn: Turn
    before: Turn | None


def cases(dataset: Dataset, users: Sequence[Id], repetitions: int = 3, seed: int = 0) -> list[Case]:
    """Each user's held-out turn, with the candidates that the protocol of `starec eval` draws under the same seed.

    Args:
        dataset: Prepared, with its windows.
        users: Whom to test.
        repetitions: Candidate lists a user.
        seed: Of the candidates.
    """
    found = []
    for repetition in range(repetitions):
        drawn = np.random.SeedSequence([seed, repetition]).generate_state(1, np.uint64)[0]
        stream = Stream(dataset, seed=int(drawn) if repetition else seed, turns=2)
        for user in users:
            *before, last = stream.turns(dataset.user_index(user))
            found.append(Case(user, last, before[0] if before else None))
    return found


def asked(case: Case, memory: Memory | None = None) -> Example:
    """The ranking prompt of a case: of an agent that starts there, or that has a memory already."""
    query = case.turn.query
    messages = rank_messages(query, memory or start_memory(query), "compact", True, MAX_HISTORY)
    return Example(messages, "", np.zeros(len(query.candidates)), case.turn.target, query.candidates.indices)


def remembering(model: Any, encoder: Encoder, found: Sequence[Case], orders: Sequence[Sequence[int]]) -> list[Memory]:
    """The memory that a model writes of each case's turn before, after it ranked it so; a start where there is none.

    Args:
        model: Writes.
        encoder: Of its tokenizer.
        found: Cases.
        orders: Candidate positions of the turns before, best first.
    """
    prompts, kept, memories = [], [], [start_memory((case.before or case.turn).query) for case in found]
    for place, (case, order) in enumerate(zip(found, orders, strict=True)):
        if case.before is not None:
            ranking = Ranking(order=tuple(order))
            feedback: Feedback = judge(case.before, ranking)[0]
            query, memory = case.before.query, memories[place]
            prompts.append(reflect_messages(query, memory, ranking, feedback, "compact", MAX_HISTORY))
            kept.append((place, event_line(query, feedback)))
    answers = generate(model, encoder.tokenizer, prompts, max_tokens=96, batch_size=64)
    for (place, event), answer in zip(kept, answers, strict=True):
        memories[place] = memories[place].updated(profile=parse_profile(answer.text), event=event)
    return memories


def by_user(ranks: NDArray[np.int64], found: Sequence[Case], k: int = 10) -> Floats:
    """(users,) mean NDCG@k of each user's cases, in percent."""
    values = np.array([100 * ndcg(int(rank), k) for rank in ranks])
    _, owner = np.unique([str(case.user) for case in found], return_inverse=True)
    means: Floats = np.bincount(owner, weights=values) / np.bincount(owner)
    return means


def told(values: Floats) -> str:
    """A mean with its standard error over users, e.g. "61.2 ± 2.4"."""
    return f"{values.mean():.1f} ± {values.std(ddof=1) / np.sqrt(len(values)):.1f}"


def interval(gaps: Floats, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval over users of a mean paired difference."""
    drawn = np.random.default_rng(seed).integers(0, len(gaps), (2000, len(gaps)))
    low, high = np.quantile(gaps[drawn].mean(1), [0.025, 0.975])
    return float(low), float(high)
