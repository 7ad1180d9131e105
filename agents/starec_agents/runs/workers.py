"""Many processes for one run: spawned on this machine, or as actors of a Ray cluster.

Each runs the loop of `rollout` over its share of the users and writes its own file of steps. One that dies is replaced
by one that goes on from that file; the run's own process alone writes all else.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from starec_agents.agent import all_of
from starec_agents.memory import Memory
from starec_agents.runs.rollout import News, Rollout, Share, close
from starec_agents.runs.store import RunStore
from starec_env.errors import InvalidOption, MissingExtra, RunError, StarecError
from starec_env.types import Dataset, Id

_NEWS_EVERY_S = 0.5
_IDLE_DEATHS = 3
"""Deaths of one share's workers, without a step between them, that end the run."""

Tell = Callable[[News], object]
RunShare = Callable[[Share, Tell], Coroutine[Any, Any, None]]
"""Runs a share in another process; raises WorkerDied when that ends before the share does."""

_log = logging.getLogger(__name__)


class WorkerDied(Exception):
    """Raised when a worker is gone before its share is done."""


async def run_shares(
    run_share: RunShare,
    n: int,
    dataset: Dataset,
    users: Sequence[int],
    memories: Mapping[Id, Memory],
    store: RunStore,
    tell: Tell,
) -> None:
    """Deal the users to n workers and see each share through.

    Raises:
        RunError: A worker says so, or one share's workers die again and again.
    """

    async def see_through(left: Sequence[int]) -> None:
        idle = 0
        while idle < _IDLE_DEATHS:
            ids = [dataset.user(user).id for user in left]
            known = {user: memories[user] for user in ids if user in memories}
            share, finished = Share(left, store.new_shard(), store.recorded.only(ids), known), 0

            def pass_on(news: News) -> None:
                nonlocal finished
                finished += news.users
                tell(news)

            try:
                return await run_share(share, pass_on)
            except WorkerDied as death:
                _log.warning("a worker died (%s); another goes on with its users", death)
                idle = 0 if store.adopt(share.path) else idle + 1
                left = [user for user in left if dataset.user(user).id not in store.failures]
                tell(News(users=len(ids) - len(left) - finished))  # the others are counted again
        raise RunError(f"workers died {idle} times without finishing a step: is there memory enough for {n}?")

    await all_of(see_through(users[first::n]) for first in range(min(n, len(users))))


@asynccontextmanager
async def start_engine(
    engine: str, rollout: Rollout, workers: int | None, ray_address: str | None
) -> AsyncIterator[tuple[RunShare, int]]:
    """Start what runs the workers.

    Yields:
        What runs a share in a worker, and the number of workers.

    Raises:
        InvalidOption: The agent can't be sent to a worker.
        MissingExtra: Ray isn't installed.
    """
    if engine == "ray":
        async with _ray(rollout, workers, ray_address) as started:
            yield started
        return
    n = workers or 1
    part = replace(rollout, concurrency=-(-rollout.concurrency // n))
    try:
        ForkingPickler.dumps(part)
    except Exception as error:
        raise InvalidOption(
            f"the agent can't be sent to worker processes ({error}): make its parts from classes and functions at the "
            "top of a module, and give UserAgent a function that makes its graph, e.g. graph=append_history"
        ) from None
    yield partial(_in_process, part), n


async def _in_process(rollout: Rollout, share: Share, tell: Tell) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, rollout, share), daemon=True)
    process.start()
    theirs.close()
    began = False
    try:
        while (message := await _receive(ours)) is not None:
            if isinstance(message, str):
                raise RunError(message)
            began = True
            tell(message)
    except (EOFError, ConnectionError):
        await asyncio.to_thread(process.join)
        if not began:
            raise RunError(
                f"a worker process ended with exit code {process.exitcode} before it began; a script that uses workers "
                "must guard its entry: if __name__ == '__main__':"
            ) from None
        raise WorkerDied(f"exit code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        ours.close()


async def _receive(connection: Connection) -> Any:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection.fileno())
    return connection.recv()


def _serve(connection: Connection, rollout: Rollout, share: Share) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the run's process too, and it ends its workers

    async def run() -> None:
        # Nothing is ever sent this way: when the pipe can be read, the run's process is gone.
        asyncio.get_running_loop().add_reader(connection.fileno(), os._exit, 1)
        connection.send(News())
        try:
            await rollout.run(share, connection.send)
        finally:
            await close(rollout.agent)

    try:
        asyncio.run(run())
        connection.send(None)
    except Exception as error:
        connection.send(_described(error))


def _described(error: Exception) -> str:
    if isinstance(error, StarecError):
        return str(error)
    return f"a worker failed:\n{''.join(traceback.format_exception(error))}"


@asynccontextmanager
async def _ray(rollout: Rollout, workers: int | None, address: str | None) -> AsyncIterator[tuple[RunShare, int]]:
    try:
        import ray
    except ImportError:
        raise MissingExtra("engine='ray'", "ray") from None
    ours = not ray.is_initialized()
    if ours:
        local = {"num_cpus": workers, "include_dashboard": False}
        ray.init(address=address, **({} if address or "RAY_ADDRESS" in os.environ else local))
    try:
        n = workers or max(1, int(ray.cluster_resources()["CPU"]))
        part = ray.put(replace(rollout, concurrency=-(-rollout.concurrency // n)))
        actor = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_Actor)
        yield partial(_in_actor, actor, part), n
    finally:
        if ours:
            ray.shutdown()


class _Actor:
    def __init__(self, path: Sequence[str]) -> None:
        sys.path += [folder for folder in path if folder not in sys.path]  # modules of the user's own
        self._news: list[News] = []

    async def run(self, rollout: Rollout, share: Share) -> str | None:
        if not share.path.exists():
            return f"a worker of the cluster doesn't see {share.path}: put the run's folder where all nodes share it"
        try:
            await rollout.run(share, self._news.append)
        except Exception as error:
            return _described(error)
        finally:
            await close(rollout.agent)
        return None

    async def news(self) -> list[News]:
        news, self._news = self._news, []
        return news


async def _in_actor(actor: Any, rollout: Any, share: Share, tell: Tell) -> None:
    import ray

    worker = actor.remote(sys.path)
    running = asyncio.wrap_future(worker.run.remote(rollout, share).future())
    try:
        ended = False
        while not ended:
            ended = bool((await asyncio.wait({running}, timeout=_NEWS_EVERY_S))[0])
            for news in await worker.news.remote():
                tell(news)
        if message := await running:
            raise RunError(message)
    except ray.exceptions.RayActorError as error:
        raise WorkerDied(str(error).splitlines()[0]) from None
    finally:
        running.cancel()
        ray.kill(worker)
