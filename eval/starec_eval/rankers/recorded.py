"""LLM rankers under the protocol: each repetition is a recorded run of a population over the protocol's own lists."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_agents.memory import Memory
from starec_agents.runs.config import Purpose
from starec_agents.runs.population import arun_population
from starec_agents.runs.reading import read_steps
from starec_agents.runs.records import Turns
from starec_agents.runs.rollout import Agent
from starec_agents.runs.steps import Step
from starec_agents.serving.card import CARD, find_card, say_seen
from starec_env.errors import InvalidOption, RunError
from starec_env.replay.stream import Seen, Stream
from starec_env.types import Id, Ranking, Turn
from starec_eval.protocol import Protocol

NOTHING = "Nothing is known of this user yet."
MOST_WARMUP = 39
"""Turns that can precede the held-out one in a sequence of 40 (5.1.1)."""


class CaseTurns:
    """A repetition's cases as the last turns of their users, after turns to warm up on.

    Warm-up turns are those that the environment shows: the last `warmup` interactions of the case's history, disliked
    ones too (4.1.3), each with negatives that its user never met. They end before the case's target, whatever file the
    case is from.

    Args:
        protocol: Whose cases.
        repetition: Which of the protocol's repetitions.
        warmup: Turns before the cases, at most; 0 to 39.
        known: Users whose agents were warmed up already, by id.
    """

    def __init__(
        self, protocol: Protocol, repetition: int = 0, warmup: int = 0, known: Mapping[Id, Memory] | None = None
    ) -> None:
        cases = self.cases = protocol.cases
        self.dataset = protocol.dataset
        chosen = np.flatnonzero(cases.repetition == repetition)
        chosen = chosen[np.lexsort((cases.turns[chosen], cases.users[chosen]))]
        self.users, firsts = np.unique(cases.users[chosen], return_index=True)
        self._cases = dict(zip(self.users.tolist(), np.split(chosen, firsts[1:]), strict=True))
        self._of_step: dict[tuple[Id, int], int] = {}
        fresh = [user not in (known or {}) for user in self.dataset.user_ids[self.users].tolist()]
        self._warm = _warmup_stream(protocol, chosen[firsts][fresh], warmup) if warmup and any(fresh) else None

    def turns(self, user: int) -> list[Turn]:
        """A user's warm-up turns, then the repetition's cases in order of their numbers."""
        turns = self.warmups(user)
        for case in self._cases[user].tolist():
            number = max(int(self.cases.turns[case]), turns[-1].number + 1 if turns else 0)
            target, query = int(self.cases.targets[case]), self.cases.query(case)
            self._of_step[query.user.id, number] = case
            turns.append(Turn(query, target, bool(self.cases.liked[case]), number))
        return turns

    def warmups(self, user: int) -> list[Turn]:
        """A user's warm-up turns alone."""
        return self._warm.turns(user) if self._warm else []

    def case_of(self, step: Step) -> int | None:
        """The case that a step answers; None for a warm-up step."""
        return self._of_step.get((step.user_id, step.turn))

    def __len__(self) -> int:
        """Steps of all users."""
        warm = 0 if self._warm is None else int((self._warm.end - self._warm.begin).clip(min=0)[self.users].sum())
        return warm + sum(map(len, self._cases.values()))


def _warmup_stream(protocol: Protocol, cases: NDArray[np.integer], warmup: int) -> Stream:
    source, reading, users = protocol.cases.source, protocol.reading, protocol.cases.users[cases]
    window = source.starts.copy()
    window[users] = protocol.cases.first[cases]
    stream = Stream(
        replace(source, window=window),
        n_candidates=protocol.cases.candidates.shape[1],
        seed=protocol.seed,
        targets="all",
        min_history=reading.min_history,
    )
    stream.seen = Seen(protocol.dataset)
    stream.seen.check(users, stream.n_candidates - 1)
    end = stream.begin.copy()  # nobody else has a turn
    end[users] = np.searchsorted(stream.rows, protocol.cases.stop[cases])
    stream.begin, stream.end = np.maximum(stream.begin, end - warmup), end
    return stream


Prepare = Callable[[Protocol, Path, int], Awaitable[Mapping[Id, Memory]]]
"""Awaited before the first repetition with the protocol, the method's folder and the users in flight; returns the
memories that agents begin with."""


@dataclass(frozen=True)
class LLMRanker:
    """A method whose agents answer the protocol's cases; everything asked and answered is recorded.

    Agents learn on the warm-up turns once, and rank each repetition's list with the memory they have just before the
    held-out turn; nothing is learned from a case before another repetition of it is ranked. Each repetition is a run
    of its own (`starec show`, `starec report`), and goes on where it was stopped.

    Raises:
        InvalidOption: `warmup` is out of its range.
    """

    name: str
    """In tables."""
    agent: Callable[[], Agent]
    """Makes one user's agent."""
    warmup: int = 0
    """Turns to learn from before the held-out one, 0 to 39."""
    prepare: Prepare | None = None
    """What must be done before the first user ranks, for methods whose users aren't apart from each other."""
    model_card: str | Path | None = None
    """Folder of the model, for its card, where neither its name nor the server says it."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= MOST_WARMUP:
            raise InvalidOption(f"warmup={self.warmup}: wanted 0 to {MOST_WARMUP}")

    @property
    def settings(self) -> Mapping[str, Any]:
        """What makes it itself."""
        return {**self.agent().settings, "warmup": self.warmup}

    def refuse_trained(self, protocol: Protocol) -> None:
        """Raise InvalidOption, with whom to test instead, if the model's card names a user who is to be tested."""
        llm: Any = getattr(self.agent(), "llm", None)
        model = getattr(getattr(llm, "endpoint", None), "model", "")
        card = find_card(self.model_card, model, getattr(llm, "roots", {}).get(model))
        name, users = protocol.loaded.name, protocol.cases.user_ids
        if card and card.seen(name, users, choosing=protocol.choosing):
            raise InvalidOption(
                f"{self.name}: {say_seen(card, model, name, users)}: test users that it never saw. Its folder's "
                f"{CARD} says who they are: --split-file FOLDER/{CARD}"
            )

    async def rank_cases(
        self,
        protocol: Protocol,
        out: Path,
        *,
        concurrency: int = 64,
        report: Callable[[int, int], object] = lambda done, total: None,
    ) -> tuple[dict[int, Ranking], str]:
        """Rank every case of a protocol, going on with what `out` holds.

        Args:
            protocol: Holds the cases.
            out: The method's folder, with a run for each repetition in `out/0`, `out/1`, ...
            concurrency: Users in flight.
            report: Called with steps done and steps in all of the present repetition.

        Returns:
            The rankings by case, and a digest of all prompts that asked for them.

        Raises:
            RunError: Users failed, or the folder holds other settings.
            EndpointError: The endpoint, its key or its model aren't there.
            InvalidOption: The model was trained on users who are to be tested.
        """
        llm: Any = getattr(self.agent(), "llm", None)
        try:
            if hasattr(llm, "check"):
                await llm.check()
            self.refuse_trained(protocol)
            memories = dict(await self.prepare(protocol, out, concurrency)) if self.prepare else {}
            rankings: dict[int, Ranking] = {}
            prompts: list[str] = []
            empty = {id_: Memory(profile=NOTHING) for id_ in protocol.dataset.user_ids.tolist()}
            known = empty if protocol.reading.memory == "empty" and not self.prepare else {}
            for repetition in np.unique(protocol.cases.repetition).tolist():
                turns = CaseTurns(protocol, repetition, self.warmup, memories)
                purpose = Purpose(method=self.name, warmup=self.warmup, repetition=repetition)
                counted = _counted(len(turns), report)
                folder = out / str(repetition)
                await run_turns(protocol, self.agent, turns, folder, purpose, known | memories, concurrency, counted)
                for step in read_steps(folder):
                    if (case := turns.case_of(step)) is not None:
                        rankings[case] = step.ranking
                        prompts.append(json.dumps([case, [call.messages for call in step.calls]]))
                        memories.setdefault(step.user_id, step.memory_before)
            return rankings, blake2b("".join(sorted(prompts)).encode(), digest_size=8).hexdigest()
        finally:
            if hasattr(llm, "aclose"):
                await llm.aclose()


def _counted(total: int, report: Callable[[int, int], object]) -> Callable[[Step], object]:
    done = count(1)
    return lambda step: report(next(done), total)


async def run_turns(
    protocol: Protocol,
    agent: Callable[[], Agent],
    turns: Turns,
    out: str | Path,
    purpose: Purpose,
    memories: Mapping[Id, Memory],
    concurrency: int,
    on_step: Callable[[Step], object] | None = None,
) -> None:
    """Run agents through a protocol's turns as a recorded population, going on with what `out` holds.

    Args:
        protocol: What the turns are of; it is described in the record.
        agent: Makes one user's agent.
        turns: The turns; nothing is learned from each user's last.
        out: The run's folder.
        purpose: What the turns are for.
        memories: Memories to begin with, by user id.
        concurrency: Users in flight.
        on_step: Called with each finished step.

    Raises:
        RunError: Users failed, or the folder holds another run.
    """
    run = await arun_population(
        protocol.dataset,
        agent,
        stream=turns,
        purpose=purpose.model_copy(update={"protocol": protocol.cases.hash, "reading": str(protocol.reading)}),
        memories=memories,
        learn_last=False,
        on_step=on_step,
        out=out,
        seed=protocol.seed,
        n_candidates=protocol.cases.candidates.shape[1],
        targets=protocol.reading.targets,
        min_history=protocol.reading.min_history,
        concurrency=concurrency,
        resume=True,
        progress=False,
    )
    if failures := run.metrics["failures"]:
        raise RunError(f"{failures} of {len(turns.users)} users failed (see {out}/failures.jsonl): resume to retry")
