"""Held-out users' last turns, as the evaluation protocol shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from starec_agents.memory import Memory
from starec_agents.tasks import event_of, parse_profile, rank_messages, reflect_messages, start_memory
from starec_env.replay.stream import Stream, judge
from starec_env.types import Dataset, Feedback, Id, Ranking, Turn
from starec_training.miniature.data import MAX_HISTORY, Descriptions, Encoder, Example
from starec_training.miniature.decode import decode
from starec_training.miniature.train import scored

Keeps = Literal["text", "events", "the teacher's text"]
"""What a memory keeps of a turn: the model's own text and the event, the event alone, the teacher's text and the event.
"""

EARLIER = 3


@dataclass(frozen=True)
class Case:
    """A held-out turn, and up to `EARLIER` turns before it, oldest first."""

    user: Id
    turn: Turn
    before: tuple[Turn, ...]


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
        stream = Stream(dataset, seed=int(drawn) if repetition else seed, turns=EARLIER + 1)
        for user in users:
            *before, last = stream.turns(dataset.user_index(user))
            found.append(Case(user, last, tuple(before)))
    return found


def asked(turn: Turn, memory: Memory | None = None) -> Example:
    """The ranking prompt of a turn: of an agent that starts there, or that has a memory already."""
    query = turn.query
    messages = rank_messages(query, memory or start_memory(query), "scores", MAX_HISTORY)
    return Example(messages, "", np.zeros(len(query.candidates)), turn.target, query.candidates.indices)


def remembering(
    model: Any, encoder: Encoder, found: Sequence[Case], keeps: Keeps, teacher: Descriptions | None = None
) -> list[Memory]:
    """The memories that cases' earlier turns leave, each turn ranked by the model with the memory of before.

    Args:
        model: Ranks, and writes the texts.
        encoder: Of its tokenizer.
        found: Cases.
        keeps: What of.
        teacher: Writes "the teacher's text".
    """
    memories = [start_memory((*case.before, case.turn)[0].query) for case in found]
    for back in range(EARLIER, 0, -1):
        places = [place for place, case in enumerate(found) if len(case.before) >= back]
        turns = [found[place].before[-back] for place in places]
        examples = [asked(turn, memories[place]) for turn, place in zip(turns, places, strict=True)]
        orders = np.argsort(-scored(model, encoder, encoder.encode(examples)), axis=1, kind="stable").tolist()
        rankings = [Ranking(order=tuple(order)) for order in orders]
        heard: list[Feedback] = [judge(turn, ranking)[0] for turn, ranking in zip(turns, rankings, strict=True)]
        profiles: list[str | None] = [None] * len(places)
        if keeps == "text":
            updates = [
                Example(reflect_messages(turn.query, memories[place], ranking, feedback, "labels", MAX_HISTORY), "")
                for turn, place, ranking, feedback in zip(turns, places, rankings, heard, strict=True)
            ]
            prompts = [example.ids[: example.begin] for example in encoder.encode(updates)]
            answers = [ids for (ids,) in decode(model, prompts, encoder.end, most=96)]
            texts = encoder.tokenizer.batch_decode(answers, skip_special_tokens=True)
            profiles = [parse_profile(text) for text in texts]
        elif keeps == "the teacher's text" and teacher:
            pairs = zip(turns, heard, strict=True)
            profiles = [teacher.describe(turn.query.history, turn.query, feedback) for turn, feedback in pairs]
        for place, turn, feedback, profile in zip(places, turns, heard, profiles, strict=True):
            memories[place] = memories[place].updated(profile=profile, event=event_of(turn.query, feedback))
    return memories
