"""Run a population of user agents through their feedback streams: async, recorded as it goes, resumable.

Users don't wait for one another: each stream runs on as its own answers come, `concurrency` users at a time. A user
that fails is recorded and the others go on; only an endpoint that fails user after user stops the run.
"""

from __future__ import annotations

import asyncio
import platform
import warnings
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any, Literal, ParamSpec

import numpy as np

from starec_agents._trial import check_graph
from starec_agents.agent import UserAgent
from starec_agents.memory import Memory
from starec_agents.runs.config import DataConfig, Purpose, RunConfig, endpoints_of, ids_hash, memories_hash, versions
from starec_agents.runs.progress import RunProgress
from starec_agents.runs.records import Turns, finish, write_candidates
from starec_agents.runs.rollout import Agent as Agent
from starec_agents.runs.rollout import Rollout, Share, close
from starec_agents.runs.steps import Step
from starec_agents.runs.store import RunStore, writing
from starec_agents.runs.workers import run_shares, start_engine
from starec_env.errors import InvalidOption, StarecWarning, check_choice
from starec_env.replay.stream import Stream
from starec_env.types import Dataset, Id

P = ParamSpec("P")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and what it measured."""

    out: Path
    metrics: Mapping[str, Any]
    """All of `starec_env.metrics.METRICS` in 0..1 with `_se` over users, of liked targets alone; `users`,
    `scored_users` (those with a liked target), `valid_share`, `steps`, `failures`, tokens and `wall_s`."""

    def __str__(self) -> str:
        from starec_agents.runs.show import metrics_text

        return metrics_text(self.metrics, self.out)


async def arun_population(
    dataset: Dataset,
    agent: Callable[[], Agent],
    *,
    out: str | Path,
    users: int | Sequence[Id] | None = None,
    turns: int | None = None,
    seed: int = 0,
    n_candidates: int = 20,
    targets: Literal["liked", "all"] = "all",
    split: Literal["test", "train"] = "test",
    min_history: int = 5,
    concurrency: int = 64,
    resume: bool = False,
    progress: bool = True,
    stream: Turns | None = None,
    purpose: Purpose | None = None,
    memories: Mapping[Id, Memory] | None = None,
    learn_last: bool = True,
    on_step: Callable[[Step], object] | None = None,
    workers: int | None = None,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
) -> Run:
    """Run user agents through their streams and record every step.

    Args:
        dataset: A prepared data set (`prepare`).
        agent: Makes one user's agent, e.g. `UserAgent.factory(llm)`.
        out: The run's folder; `starec_agents.runs.store` says what it holds.
        users: How many users, sampled by `seed`, or their ids; None for all that have a turn.
        turns: The last so many turns of each user's stream; None for all.
        seed: Fixes the sample of users, their negatives and the order of candidates.
        n_candidates: Items to rank a turn: the true one and `n_candidates - 1` negatives.
        targets: "all": agents learn from every interaction in order, from what the user disliked too (4.1.3), and
            metrics score the liked ones; "liked": these alone are turns.
        split: "test" ends with the leave-one-out turn, "train" stops before it.
        min_history: Interactions that precede a user's first turn.
        concurrency: Users in flight, over all workers.
        resume: Go on with the run in `out`: finished steps are kept, failed users are tried again.
        progress: Show a progress bar on stderr.
        stream: Turns to use instead of drawing them; `turns`, `n_candidates`, `targets`, `split` and `min_history`
            then only describe.
        purpose: Which part of a larger job this run is: recorded, and compared on resuming.
        memories: Memories to begin with, by user id; users without one start their own.
        learn_last: Whether agents learn from their last turn too, which no later ranking can gain from.
        on_step: Called with each finished step; not with several workers.
        workers: Processes that share the users; None for 1, or on Ray for one a CPU of the cluster. The result is the
            same for any number. They are spawned, so a script must guard its entry (`if __name__ == "__main__":`)
            and the agent's parts must be defined at the top of a module; give `UserAgent` a function for its graph.
        engine: "local", or "ray": workers are actors of a Ray cluster whose nodes share the folder `out`.
        ray_address: The cluster; None for the one around this process, or a new one on this machine.

    Raises:
        InvalidOption: An option is out of range, the agent's graph doesn't rank, or it can't be sent to workers.
        RunError: The folder can't be used, a worker can't be kept alive, or the endpoint failed for all the users in
            flight in a worker (at least 8) in a row.
    """
    check_choice("engine", engine, ("local", "ray"))
    for name, least in {"concurrency": concurrency, "workers": workers}.items():
        if least is not None and least < 1:
            raise InvalidOption(f"{name}={least}: it must be at least 1")
    alone = engine == "local" and workers in (None, 1)
    if on_step and not alone:
        raise InvalidOption("on_step is called in this process alone: leave it out, or run with one local worker")
    drawn: dict[str, Any] = {
        "turns": turns,
        "seed": seed,
        "n_candidates": n_candidates,
        "targets": targets,
        "split": split,
        "min_history": min_history,
    }
    stream = stream or Stream(dataset, **drawn)
    first = agent()
    kept: dict[str, Any] = {**drawn, "learn_last": learn_last, "purpose": purpose or Purpose()}
    chosen, config = await resolve(dataset, first, stream, users, memories, **kept)
    ids = [dataset.user(user).id for user in chosen]
    store = RunStore(out, config.record(), resume=resume, data=dataset.source, users=ids)
    try:
        if store.damaged:
            _warn_of_damage(store)
        if lost := getattr(first, "unrecorded_keys", ()):
            warnings.warn(
                f"{store.out}: the graph's state keys {', '.join(lost)} can't be recorded, as JSON can't hold them: if "
                "the run is stopped and resumed, users that are under way begin anew with them",
                StarecWarning,
                stacklevel=2,
            )
        store.run["sessions"][-1] |= {
            "python": platform.python_version(),
            "concurrency": concurrency,
            "executor": getattr(first, "executor", None),
        }
        plan = await asyncio.to_thread(write_candidates, store, dataset, stream, chosen)
        rollout = Rollout(stream, agent, concurrency, learn_last, on_step)
        with RunProgress(total=len(chosen), visible=progress, store=store) as shown:
            if alone:
                await rollout.run(Share(chosen, store.own_shard(), store.recorded, memories or {}), shown.add)
            else:
                async with start_engine(engine, rollout, workers, ray_address) as (run_share, n):
                    await run_shares(run_share, n, dataset, chosen, memories or {}, store, shown.add)
        with writing(store.out):
            return Run(store.out, await asyncio.to_thread(finish, store, plan))
    finally:
        store.close()


async def resolve(
    dataset: Dataset,
    agent: Agent,
    stream: Turns,
    users: int | Sequence[Id] | None,
    memories: Mapping[Id, Memory] | None = None,
    *,
    seed: int,
    **settings: Any,
) -> tuple[list[int], RunConfig]:
    """Settle who runs, try the agent's graph once by script, and describe the run; nothing is asked or written.

    Args:
        dataset: A prepared data set.
        agent: One of its agents.
        stream: Turns.
        users: How many users, or their ids; None for all that have a turn.
        memories: Memories to begin with.
        seed: Of the sample of users.
        settings: The other fields of `RunConfig` that are options of a run.

    Returns:
        0-based indices of the users in the order they are run, and what makes the run itself.

    Raises:
        InvalidOption: A user has no turn, or the graph doesn't rank.
    """
    chosen = _choose(dataset, stream, users, seed)
    if isinstance(agent, UserAgent):
        await check_graph(agent, stream.turns(chosen[0])[0].query)
    said = dict(agent.settings)
    return chosen, RunConfig(
        **{**versions(), "starec": version("starec"), **settings},
        dataset=DataConfig.of(dataset),
        users=len(chosen),
        users_from="ids" if isinstance(users, Sequence) else "seed",
        users_hash=ids_hash([dataset.user(user).id for user in chosen]),
        memories_hash=memories_hash(memories),
        seed=seed,
        model=said.pop("model"),
        graph=said.pop("graph"),
        agent=said,
        endpoints=endpoints_of(_models(agent)),
    )


def _warn_of_damage(store: RunStore) -> None:
    some = ", ".join(store.damaged[:10]) + (f" and {len(store.damaged) - 10:,} more" if store.damaged[10:] else "")
    warnings.warn(
        f"{store.out}: {some} could not be read; moved to steps.damaged, to be done again", StarecWarning, stacklevel=3
    )


def _models(agent: Agent) -> dict[str, object]:
    """The chat models of an agent, its own as "llm"."""
    return {**getattr(agent, "models", {}), "llm": getattr(agent, "llm", None)}


def _waits(run: Callable[P, Coroutine[Any, Any, Run]]) -> Callable[P, Run]:
    """A coroutine function's twin that runs it to its end, in an event loop of its own."""
    made = signature(run)

    def run_population(*args: P.args, **options: P.kwargs) -> Run:
        agent = made.bind(*args, **options).arguments["agent"]

        async def whole() -> Run:
            try:
                return await run(*args, **options)
            finally:
                await close(agent)

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(whole())
        raise InvalidOption("run_population was called in a running event loop: use `await arun_population(...)` there")

    run_population.__doc__ = (
        "Run a population and return when it is done; `arun_population` has the options.\n\n"
        "From a notebook or other running event loop, `await arun_population(...)` instead."
    )
    run_population.__qualname__ = "run_population"
    run_population.__signature__ = made.replace(return_annotation="Run")  # type: ignore[attr-defined]
    return run_population


run_population = _waits(arun_population)


def _choose(dataset: Dataset, stream: Turns, users: int | Sequence[Id] | None, seed: int) -> list[int]:
    """User indices in the order they are run: as given, or a sample by seed."""
    able = stream.users
    if isinstance(users, Sequence):
        chosen = [dataset.user_index(user_id) for user_id in users]
        if isinstance(stream, Stream):
            stream.require(np.array(chosen, np.int64))
        elif unable := set(chosen) - set(able.tolist()):
            raise InvalidOption(f"user {dataset.user(unable.pop()).id!r} has no turn in the stream given: leave it out")
        return list(dict.fromkeys(chosen))
    if len(able) == 0:
        raise InvalidOption("no user has a turn with these settings: lower min_history, or use targets='all'")
    if users is not None and not 1 <= users <= len(able):
        raise InvalidOption(f"users={users}: {dataset.name} has {len(able)} users with a turn")
    order = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0x5553])))  # "US": apart from negatives
    return [int(user) for user in order.permutation(able)[:users]]
