"""The samples behind best-of-N (5.3.4): many answers to each user's held-out list, in one recorded pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_agents.agent import UserAgent
from starec_agents.graphs import rank_only
from starec_agents.llm import ChatModel
from starec_agents.runs.config import Purpose
from starec_agents.runs.reading import read_steps
from starec_env.types import Turn
from starec_eval.protocol import Protocol
from starec_eval.rankers.recorded import CaseTurns, run_turns
from starec_eval.report.analysis import BEST_OF


class _Samples:
    """Each user's first case, again and again: a turn's number is the sample's."""

    def __init__(self, protocol: Protocol, n: int) -> None:
        self._turns, self._n = CaseTurns(protocol), n

    @property
    def users(self) -> NDArray[np.int64]:
        return self._turns.users

    def turns(self, user: int) -> list[Turn]:
        turn = self._turns.turns(user)[0]
        return [replace(turn, number=number) for number in range(self._n)]


async def sample(
    protocol: Protocol,
    llm: ChatModel,
    warmed_up: str | Path,
    *,
    out: str | Path,
    samples: int = max(BEST_OF),
    temperature: float = 1.0,
    concurrency: int = 64,
    **options: Any,
) -> None:
    """Sample rankings of the first repetition's lists with the memories of a warm-up; goes on with what `out` holds.

    Samples are independent, so the requests have no seed; the record keeps them. `analysis.sampled_ndcg` and
    `analysis.best_of` read it.

    Args:
        protocol: Whose lists.
        llm: The model to sample from.
        warmed_up: Folder of the agent's run on the first repetition (`METHOD/0`), for the memories.
        out: The samples' run.
        samples: Answers a user; the largest N.
        temperature: The paper samples at 1.
        concurrency: Users in flight.
        options: Of `UserAgent`.

    Raises:
        RunError: Users failed, or a folder holds no run, or another.
    """
    memories = {step.user_id: step.memory_before for step in read_steps(warmed_up)}
    agent = UserAgent.factory(llm, graph=rank_only(), temperature=temperature, **options)
    purpose = Purpose(method="best-of", samples=samples)
    await run_turns(protocol, agent, _Samples(protocol, samples), out, purpose, memories, concurrency)
