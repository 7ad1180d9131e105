"""Run a population of user agents through their feedback streams: async, recorded as it goes, resumable.

Users don't wait for one another: each stream runs on as its own answers come, `concurrency` users at a time. A user
that fails is recorded and the others go on; only an endpoint that fails user after user stops the run.
"""

from __future__ import annotations

import asyncio
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from starec_agents.progress import RunProgress
from starec_agents.records import Turns, finish, write_candidates
from starec_agents.store import Failure, RunStore
from starec_env.errors import EndpointError, InvalidOption, RunError, StarecWarning
from starec_env.stream import Stream, judge
from starec_env.types import Call, Dataset, Feedback, Id, Memory, Query, Ranking, Step


class Agent(Protocol):
    """What a population needs of an agent; `UserAgent` has it, and so may any class of yours."""

    memory: Memory | None
    """None until the first ranking."""
    calls: list[Call]
    """Requests made for the current turn."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What makes the agent itself: at least "model" and "graph"; recorded, and compared on resuming."""
        ...

    async def arank(self, query: Query) -> Ranking:
        """Rank the candidates (fast thinking)."""
        ...

    async def alearn(self, feedback: Feedback) -> Memory:
        """Learn from what the user really did (slow thinking); returns the new memory."""
        ...


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and what it measured."""

    out: Path
    metrics: Mapping[str, Any]
    """`ndcg@k` in 0..1 with `_se` over users, `valid_share`, `steps`, `failures`, tokens and `wall_s`."""

    def __str__(self) -> str:
        from starec_agents.story import metrics_text

        return metrics_text(self.metrics, self.out)


def run_population(dataset: Dataset, agent: Callable[[], Agent], **options: Any) -> Run:
    """Run a population and return when it is done; `arun_population` has the options.

    From a notebook or other running event loop, `await arun_population(...)` instead.
    """

    async def run() -> Run:
        try:
            return await arun_population(dataset, agent, **options)
        finally:
            await _close(agent)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(run())
    raise InvalidOption("run_population was called in a running event loop: use `await arun_population(...)` there")


async def _close(agent: Callable[[], Agent]) -> None:
    # A client belongs to one event loop, and this one ends.
    close = getattr(getattr(agent(), "llm", None), "aclose", None)
    if close is not None:
        await close()


async def arun_population(
    dataset: Dataset,
    agent: Callable[[], Agent],
    *,
    out: str | Path,
    users: int | Sequence[Id] | None = None,
    turns: int | None = None,
    seed: int = 0,
    n_candidates: int = 20,
    targets: str = "liked",
    split: str = "test",
    min_history: int = 5,
    concurrency: int = 64,
    resume: bool = False,
    progress: bool = True,
    stream: Turns | None = None,
    about: Mapping[str, Any] | None = None,
    memories: Mapping[Id, Memory] | None = None,
    learn_last: bool = True,
    on_step: Callable[[Step], object] | None = None,
) -> Run:
    """Run user agents through their streams and record every step.

    Args:
        dataset: A prepared data set (`prepare`).
        agent: Makes one user's agent, e.g. `UserAgent.factory(llm)`.
        out: The run's folder; `starec_agents.store` says what it holds.
        users: How many users, sampled by `seed`, or their ids; None for all that have a turn.
        turns: The last so many turns of each user's stream; None for all.
        seed: Fixes the sample of users, their negatives and the order of candidates.
        n_candidates: Items to rank a turn: the true one and `n_candidates - 1` negatives.
        targets: "liked" or "all": which interactions are turns.
        split: "test" ends with the leave-one-out turn, "train" stops before it.
        min_history: Interactions that precede a user's first turn.
        concurrency: Users in flight.
        resume: Go on with the run in `out`: finished steps are kept, failed users are tried again.
        progress: Show a progress bar on stderr.
        stream: Turns to use instead of drawing them; `turns`, `n_candidates`, `targets`, `split` and `min_history`
            then only describe.
        about: More that makes this run itself (JSON types): recorded, and compared on resuming.
        memories: Memories to begin with, by user id; users without one start their own.
        learn_last: Whether agents learn from their last turn too, which no later ranking can gain from.
        on_step: Called with each finished step.

    Raises:
        InvalidOption: An option is out of range.
        RunError: The folder can't be used, or the endpoint failed for `concurrency` users (at least 8) in a row.
    """
    if concurrency < 1:
        raise InvalidOption(f"concurrency={concurrency}: at least one user must be in flight")
    stream = stream or Stream(
        dataset,
        n_candidates=n_candidates,
        seed=seed,
        split=split,
        targets=targets,
        turns=turns,
        min_history=min_history,
    )
    chosen = _choose(dataset, stream, users, seed)
    settings = {
        "starec": version("starec"),
        "dataset": {"name": dataset.name, **_counts(dataset), "hash": dataset.hash},
        "users": len(chosen),
        "users_from": "ids" if isinstance(users, Sequence) else "seed",
        "turns": turns,
        "seed": seed,
        "n_candidates": n_candidates,
        "targets": targets,
        "split": split,
        "min_history": min_history,
        **agent().settings,
        **(about or {}),
    }
    store = RunStore(out, settings, resume=resume)
    if store.damaged:
        warnings.warn(
            f"{store.steps_path}: line {', '.join(map(str, store.damaged))} could not be read; they were moved to "
            "steps.damaged and their steps are done again",
            StarecWarning,
            stacklevel=2,
        )
    store.run["sessions"][-1] |= {"python": platform.python_version(), "concurrency": concurrency}
    fields: dict[str, Any] = {}
    try:
        if "candidates_hash" not in store.run:
            fields |= await asyncio.to_thread(write_candidates, store.out, dataset, stream, chosen)
        with RunProgress(total=len(chosen), visible=progress, store=store) as shown:
            population = _Population(stream, agent, store, shown, concurrency, memories or {}, learn_last, on_step)
            await population.run(chosen)
        metrics = await asyncio.to_thread(finish, store, dataset, chosen)
        return Run(store.out, metrics)
    finally:
        store.close(**fields)


@dataclass
class _Population:
    """The users in flight, and the count of failures that stops a run whose endpoint is gone."""

    stream: Turns
    agent: Callable[[], Agent]
    store: RunStore
    shown: RunProgress
    concurrency: int
    memories: Mapping[Id, Memory]
    learn_last: bool
    on_step: Callable[[Step], object] | None
    failed_in_a_row: int = 0

    async def run(self, users: Sequence[int]) -> None:
        """Run all users, `concurrency` at a time; the first error that isn't a user's own ends all."""
        waiting = iter(users)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.concurrency, len(users))):
                    group.create_task(self._worker(waiting))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _worker(self, waiting: Iterator[int]) -> None:
        for user in waiting:
            await self._run_user(user)

    async def _run_user(self, user: int) -> None:
        turns = self.stream.turns(user)
        user_id = turns[0].query.user.id
        done, memory = self.store.done(user_id, [turn.number for turn in turns])
        agent = self.agent()
        agent.memory = memory or self.memories.get(user_id)
        turn = turns[0]
        try:
            for turn in turns[done:]:
                ranking = await agent.arank(turn.query)
                before = agent.memory or Memory()
                feedback, reward = judge(turn, ranking)
                learns = self.learn_last or turn is not turns[-1]
                after = await agent.alearn(feedback) if learns else before
                step = Step(
                    user_id=user_id,
                    turn=turn.number,
                    candidates=tuple(item.id for item in turn.query.candidates),
                    target=turn.target,
                    ranking=ranking,
                    feedback=feedback,
                    reward=reward,
                    calls=tuple(agent.calls),
                    memory_before=before,
                    memory=after,
                )
                self.store.append(step)
                self.failed_in_a_row = 0
                self.shown.step(step)
                if self.on_step:
                    self.on_step(step)
        except RunError:
            raise
        except Exception as error:
            self._fail(user_id, turn.number, error)
        self.shown.user()

    def _fail(self, user_id: Id, turn: int, error: Exception) -> None:
        kind = error.kind if isinstance(error, EndpointError) else "agent"
        text = str(error) if isinstance(error, EndpointError) else f"{type(error).__name__}: {error}"
        self.store.fail(Failure(user_id=user_id, turn=turn, kind=kind, message=text))
        self.failed_in_a_row += 1
        if self.failed_in_a_row >= max(8, self.concurrency):
            raise RunError(
                f"{self.failed_in_a_row} users in a row failed, the last with: {text}. "
                f"What was done is kept in {self.store.out}; mend the cause and go on with resume=True (--resume)"
            )


def _choose(dataset: Dataset, stream: Turns, users: int | Sequence[Id] | None, seed: int) -> list[int]:
    """User indices in the order they are run: as given, or a sample by seed."""
    able = stream.users
    if isinstance(users, Sequence):
        chosen = [dataset.user_index(user_id) for user_id in users]
        unable = set(chosen) - set(able.tolist())
        if unable:
            user_id = dataset.user(unable.pop()).id
            raise InvalidOption(
                f"user {user_id!r} has no turn with these settings: leave them out, or lower min_history"
            )
        return list(dict.fromkeys(chosen))
    if len(able) == 0:
        raise InvalidOption("no user has a turn with these settings: lower min_history, or use targets='all'")
    if users is not None and not 1 <= users <= len(able):
        raise InvalidOption(f"users={users}: {dataset.name} has {len(able)} users with a turn")
    order = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0x5553])))  # "US": apart from negatives
    return [int(user) for user in order.permutation(able)[:users]]


def _counts(dataset: Dataset) -> dict[str, int]:
    return {"n_users": dataset.n_users, "n_items": dataset.n_items, "n_interactions": dataset.n_interactions}
