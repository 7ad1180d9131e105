"""A population of graph agents beside a bare AsyncOpenAI loop that sends the same messages.

    python eval/benchmarks/population.py [--concurrency 64 256 512] [--latency 0.2] [--workers 1]
    python eval/benchmarks/population.py --scripted

A server in another process (eval/benchmarks/canned.py) answers every request after a fixed time. The population runs
first and is recorded, start and final tables included; the bare loop (same transport, no graph, no parsing, no record)
then sends the recorded prompts at the same concurrency. Users have equally many turns, and are as many as the largest
concurrency or a multiple of it, so that no tail of a few long users is measured.

At a few hundred calls a second either is bound by the CPU time of its one core, not by the server. So beside the ratio
of throughputs stands what one core's CPU time a call would let the population reach, at most what the bare loop does,
and the share of it that was reached. Each is measured with the graph walked directly and on LangGraph's executor.

With --scripted no server is asked: what is left is what a turn of two calls costs apart from the client.
"""

import argparse
import asyncio
import resource
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from canned import cpu_of, spawn
from memory import repeated
from openai import AsyncOpenAI, DefaultAioHttpClient
from rich.console import Console
from rich.table import Table

from starec_agents import OpenAIChat, ScriptedChat, UserAgent, read_steps, run_population, scripted_user
from starec_agents.llm.base import Endpoint
from starec_env import load_dataset, prepare
from starec_env.replay.stream import Stream
from starec_env.types import Dataset, Id

WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
EXECUTORS = ("direct", "langgraph")
COLUMNS = (
    "in flight", "executor", "calls/s", "bare calls/s", "ratio", "of one core's limit", "CPU ms/turn", "CPU ms/call",
    "bare", "server",
)  # fmt: skip


def cpu_time() -> float:
    """Seconds of CPU that this process and its ended workers have used."""
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, WHO))


def population(
    url: str, dataset: Dataset, users: list[Id], turns: int, concurrency: int, executor: str, workers: int, out: Path
) -> None:
    llm = OpenAIChat(Endpoint(base_url=url, model="fake", concurrency=concurrency))
    agent = UserAgent.factory(llm, answer_format="labels", executor=executor)
    run_population(
        dataset, agent, users=users, turns=turns, out=out, concurrency=concurrency, workers=workers, progress=False
    )


async def bare(url: str, prompts: Iterable[list[dict[str, str]]], concurrency: int) -> None:
    waiting = iter(prompts)
    async with AsyncOpenAI(base_url=url, api_key="none", http_client=DefaultAioHttpClient()) as client:

        async def worker() -> None:
            for messages in waiting:
                await client.chat.completions.create(model="fake", messages=messages, temperature=0, max_tokens=2048)  # type: ignore[arg-type]

        await asyncio.gather(*(worker() for _ in range(concurrency)))


def measure(
    url: str, dataset: Dataset, users: list[Id], turns: int, concurrency: int, executor: str, workers: int
) -> list[float]:
    """One round of both; returns the figures of COLUMNS but the first two."""
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu, served = time.perf_counter(), cpu_time(), cpu_of(url)
        population(url, dataset, users, turns, concurrency, executor, workers, Path(folder))
        wall, cpu, served = time.perf_counter() - wall, cpu_time() - cpu, cpu_of(url) - served
        prompts = [[dict(m) for m in call.messages] for step in read_steps(folder) for call in step.calls]
    calls, n = len(prompts), len(users) * turns
    assert calls == 2 * n
    bare_wall, bare_cpu = time.perf_counter(), time.process_time()
    asyncio.run(bare(url, prompts, concurrency))
    bare_wall, bare_cpu = time.perf_counter() - bare_wall, time.process_time() - bare_cpu
    rate, bare_rate = calls / wall, calls / bare_wall
    limit = min(bare_rate, workers * calls / cpu)
    return [
        rate, bare_rate, rate / bare_rate, rate / limit, 1e3 * cpu / n, 1e3 * cpu / calls, 1e3 * bare_cpu / calls,
        1e3 * served / calls,
    ]  # fmt: skip


def scripted(dataset: Dataset, users: list[Id], turns: int, executor: str) -> float:
    """CPU milliseconds of a turn of two calls to the scripted model, 256 users in flight, record included."""
    agent = UserAgent.factory(ScriptedChat(scripted_user()), answer_format="labels", executor=executor)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        run_population(dataset, agent, users=users, turns=turns, out=folder, concurrency=256, progress=False)
        return 1e3 * (time.process_time() - began) / (len(users) * turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=512)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="medians of which are shown")
    parser.add_argument("--scripted", action="store_true", help="no server: the scripted model")
    args = parser.parse_args()
    dataset = repeated(prepare(load_dataset("ml-latest-small")), 3 * args.users)
    stream = Stream(dataset, turns=args.turns)
    long_enough = np.flatnonzero(stream.end - stream.begin == args.turns)
    users = [dataset.user(int(user)).id for user in long_enough[: args.users]]
    if args.scripted:
        rounds = [
            [scripted(dataset, users, args.turns, executor) for executor in EXECUTORS] for _ in range(args.rounds)
        ]
        for executor, figures in zip(EXECUTORS, zip(*rounds, strict=True), strict=True):
            print(f"{executor}: {statistics.median(figures):.2f} ms of CPU a turn ({min(figures):.2f} at least)")
        return
    workers = f"{args.workers} worker{'s' * (args.workers > 1)}"
    title = f"{len(users)} users x {args.turns} turns x 2 calls, answers after {args.latency:g} s, {workers}"
    table = Table(*COLUMNS, title=title)
    with spawn(args.latency) as url:
        for concurrency in args.concurrency:
            for executor in EXECUTORS:
                setting = url, dataset, users, args.turns, concurrency, executor, args.workers
                rounds = [measure(*setting) for _ in range(args.rounds)]
                rate, bare_rate, *others = map(statistics.median, zip(*rounds, strict=True))
                shown = (f"{rate:.0f}", f"{bare_rate:.0f}", *(f"{other:.2f}" for other in others))
                table.add_row(str(concurrency), executor, *shown)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
