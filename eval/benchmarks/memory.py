"""Memory of a population as it grows, and of one user in flight.

    python eval/benchmarks/memory.py [--users 1000 10000 100000] [--data PATH]

Each size runs in a process of its own: ml-1m (its 6,040 users repeated under new ids to as many as wanted, a turn
each), the scripted model, 256 users in flight. Shown are the peak of the process's resident memory, what of it was
there before the run (packages and data set), and the time. Then as many users as given are held in flight at once, each
waiting for its answer, to see what one costs beyond its prompt's text, with the graph walked directly and on
LangGraph's executor, and beside it as many invocations of the least LangGraph graph: one node, which waits. Last comes
the vector environment with as many environments as given, stepped three times, over ml-1m as it is and over as many
users as environments: what the data set's arrays take, and what the environment adds.
"""

import argparse
import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from langgraph.graph import StateGraph

from starec_agents import ScriptedChat, UserAgent, arun_population, run_population
from starec_agents.llm import Completion, Message
from starec_agents.llm.scripted import scripted_user
from starec_env import load_dataset, prepare
from starec_env.replay.stream import Stream
from starec_env.replay.vector_env import UserFeedbackVectorEnv
from starec_env.types import Dataset, Indices

DATA = Path(__file__).parents[3] / "shared" / "data" / "ml-1m"


def repeated(dataset: Dataset, n_users: int) -> Dataset:
    """The data set with its users repeated, under ids from 1, to n_users; only their windows are kept."""
    users = np.resize(Stream(dataset).users, n_users)
    lengths = (dataset.indptr[1:] - dataset.starts)[users]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.arange(indptr[-1]) + np.repeat(dataset.starts[users] - indptr[:-1], lengths)
    items: Indices = dataset.item_indices[rows]
    return Dataset(
        name=f"{dataset.name} x {n_users:,}", domain=dataset.domain, items=dataset.items,
        user_ids=np.arange(1, n_users + 1), indptr=indptr, item_indices=items, ratings=dataset.ratings[rows],
        timestamps=dataset.timestamps[rows],
    )  # fmt: skip


def peak() -> float:
    """Most resident memory so far, or since `forget_peak`, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def now() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def run(dataset: Dataset, users: int) -> None:
    before, started = now(), time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        agent = UserAgent.factory(ScriptedChat(scripted_user()), answer_format="labels")
        metrics = run_population(dataset, agent, turns=1, concurrency=256, out=out, progress=False).metrics
        disk = sum(path.stat().st_size for path in Path(out).iterdir()) / 2**20
    assert metrics["users"] == metrics["steps"] == users, metrics
    print(
        f"{users:,} users: peak {peak():.0f} MiB, {before:.0f} MiB of it before the run, {disk:.0f} MiB on disk, "
        f"{time.perf_counter() - started:.0f} s",
        flush=True,
    )


class Waiting:
    """Answers nobody before all are there."""

    def __init__(self, n: int) -> None:
        self.model, self.n, self.text, self.all_here = "waiting", n, 0, asyncio.Event()

    async def complete(self, messages: Sequence[Message], **sampling: object) -> Completion:
        """Wait for the others; see ChatModel."""
        self.text += sum(len(message["content"]) for message in messages)
        self.n -= 1
        if not self.n:
            self.full = now()
            self.all_here.set()
        await self.all_here.wait()
        return Completion(text="A")


async def in_flight(dataset: Dataset, n: int, executor: str) -> None:
    llm = Waiting(n)
    agent = UserAgent.factory(llm, answer_format="labels", executor=executor)
    with tempfile.TemporaryDirectory() as out:
        await arun_population(dataset, agent, turns=1, users=n, concurrency=n, out=out, progress=False)
    print(llm.full, llm.text / n / 1024, flush=True)


async def least_graphs(n: int) -> None:
    all_here, here = asyncio.Event(), 0

    async def wait(state: dict[str, int]) -> dict[str, int]:
        nonlocal here
        here += 1
        if here == n:
            print(now(), 0.0, flush=True)
            all_here.set()
        await all_here.wait()
        return {"x": 1}

    builder = StateGraph(TypedDict("State", {"x": int}))
    builder.add_node(wait)
    builder.set_entry_point("wait")
    graph = builder.compile()
    await asyncio.gather(*(graph.ainvoke({"x": 0}) for _ in range(n)))


def environments(dataset: Dataset, n: int) -> None:
    columns = (dataset.indptr, dataset.item_indices, dataset.ratings, dataset.timestamps, dataset.user_ids)
    data, before = sum(column.nbytes for column in columns) / 2**20, now()
    forget_peak()
    envs = UserFeedbackVectorEnv(n, dataset=dataset)
    made, made_peak = now(), peak()
    forget_peak()
    started = time.perf_counter()
    envs.reset(seed=0)
    order = np.tile(np.arange(20), (n, 1))
    for _ in range(3):
        envs.step(order)
    print(
        f"{n:,} environments: data set of {dataset.n_users:,} users {data:.0f} MiB; the environment adds "
        f"{made - before:.0f} MiB when made (peak {made_peak - before:.0f}) and {peak() - made:.0f} MiB at most while "
        f"stepped, {1e6 * (time.perf_counter() - started) / 4 / n:.1f} us a step; peak of the process {peak():.0f} MiB",
        flush=True,
    )


def child(kind: str, n: int, data: Path) -> str:
    command = [sys.executable, __file__, "--child", kind, str(n), "--data", str(data)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--in-flight", type=int, nargs=2, default=[1_000, 4_000], help="what differs is shown")
    parser.add_argument("--envs", type=int, nargs="*", default=[1_000, 1_000_000])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.child:
        for n in args.users:
            print(child("run", n, args.data), flush=True)
        few, many = args.in_flight
        for kind, what in (
            ("direct", "users"), ("langgraph", "users on LangGraph's executor"), ("graphs", "one-node LangGraph graphs")
        ):  # fmt: skip
            (low, _), (high, text) = (map(float, child(kind, n, args.data).split()) for n in (few, many))
            each = (high - low) * 1024 / (many - few)
            print(f"{many:,} {what} in flight: {each:.1f} KiB each, {text:.1f} KiB of it prompt text", flush=True)
        for n in args.envs:
            print(child("envs", n, args.data), flush=True)
            print(child("envs of their own", n, args.data), flush=True)
        return
    kind, n = args.child[0], int(args.child[1])
    if kind == "graphs":
        return asyncio.run(least_graphs(n))
    dataset = prepare(load_dataset("ml-1m", args.data))
    if kind == "run":
        run(repeated(dataset, n), n)
    elif kind in ("direct", "langgraph"):
        asyncio.run(in_flight(repeated(dataset, n), n, kind))
    else:
        environments(repeated(dataset, n) if "own" in kind else dataset, n)


if __name__ == "__main__":
    main()
