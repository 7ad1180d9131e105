"""User agents as a ranker: each lives through some turns of its user's stream, then ranks the held-out lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from starec_agents.population import Agent, arun_population
from starec_agents.store import read_steps
from starec_env.errors import InvalidOption, RunError
from starec_env.stream import Stream
from starec_env.types import Id, Memory, Query, Ranking
from starec_eval.protocol import Protocol


class Agents:
    """Evaluates an agent leave-one-out: warm up by a recorded population, then rank each of the user's lists.

    The agent learns from the last `warmup` turns before the held-out one, and ranks all repetitions with the memory
    it then has. What it warmed up on is a run like any other, to be read with `starec show`.

    Args:
        agent: Makes one user's agent, e.g. `UserAgent.factory(llm)`.
        name: The method's name in tables.
        warmup: Turns to learn from, 0 to 39; with 0 the memory is the one it starts with.
        out: The warm-up run's folder, resumed if it is there; needed where `warmup` isn't 0.
        concurrency: Users in flight while warming up.
    """

    def __init__(
        self,
        agent: Callable[[], Agent],
        *,
        name: str = "starec",
        warmup: int = 0,
        out: str | Path | None = None,
        concurrency: int = 64,
    ) -> None:
        if warmup < 0 or (warmup and out is None):
            raise InvalidOption(f"warmup={warmup}: wanted 0, or more together with out=, the folder of the warm-up run")
        self.agent, self.name, self.warmup, self.concurrency = agent, name, warmup, concurrency
        self.out = Path(out) if out else None
        self._memories: dict[Id, Memory] = {}

    @property
    def settings(self) -> Mapping[str, Any]:
        """What makes it itself."""
        return {**self.agent().settings, "warmup": self.warmup}

    async def abegin(self, protocol: Protocol) -> None:
        """Warm up on the protocol's users, or read what an earlier warm-up left.

        Raises:
            InvalidOption: A target isn't its user's held-out turn, so that the warm-up would see it.
            RunError: Users failed; evaluate again to go on.
        """
        if not self.warmup or self.out is None:
            return
        dataset, reading = protocol.dataset, protocol.reading
        options: dict[str, Any] = {
            "seed": protocol.seed,
            "n_candidates": protocol.n_candidates,
            "targets": reading.targets,
            "min_history": reading.min_history,
        }
        whole, before = (Stream(dataset, **options, split=split) for split in ("test", "train"))
        users = np.unique(protocol.cases.users)
        if (whole.rows[whole.end[users] - 1] != protocol.stops[users]).any():
            raise InvalidOption("these candidates' targets aren't the users' held-out turns: use warmup=0 with them")
        able = [dataset.user(user).id for user in np.intersect1d(users, before.users).tolist()]
        run = await arun_population(
            dataset,
            self.agent,
            **options,
            users=able,
            turns=self.warmup,
            split="train",
            out=self.out,
            resume=(self.out / "run.json").exists(),
            concurrency=self.concurrency,
            progress=False,
        )
        if failures := run.metrics["failures"]:
            raise RunError(f"{failures} users failed while warming up (see {self.out}): resume to try them again")
        self._memories = {step.user_id: step.memory for step in read_steps(self.out)}

    async def arank(self, query: Query) -> Ranking:
        """Rank with the memory that the user's agent has after its warm-up."""
        agent = self.agent()
        agent.memory = self._memories.get(query.user.id)
        return await agent.arank(query)

    async def aclose(self) -> None:
        """Close the client, which belongs to the event loop that ends."""
        close = getattr(getattr(self.agent(), "llm", None), "aclose", None)
        if close is not None:
            await close()
