"""A population of graph agents beside a bare AsyncOpenAI loop that makes the same calls.

A server in another process answers every request after a fixed time. The population runs first and is recorded; the
bare loop (same transport, no graph, no parsing, no record) then sends the recorded prompts at the same concurrency.

    python eval/benchmarks/population.py --users 2048 --turns 2 --latency 1.0 --concurrency 256
"""

import argparse
import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path

from openai import AsyncOpenAI, DefaultAioHttpClient

from starec_agents.agent import UserAgent
from starec_agents.openai_chat import OpenAIChat
from starec_agents.population import run_population
from starec_agents.store import read_steps
from starec_env import load_dataset, prepare
from starec_env.types import Dataset, Endpoint

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from fake_endpoint import spawn  # noqa: E402

WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def population(base_url: str, dataset: Dataset, args: argparse.Namespace, out: Path) -> tuple[float, float]:
    llm = OpenAIChat(Endpoint(base_url=base_url, model="fake", concurrency=args.concurrency))
    agent = UserAgent.factory(llm, answer_format="compact")
    wall, cpu = time.perf_counter(), cpu_time()
    run_population(
        dataset, agent, users=args.users, turns=args.turns, out=out, concurrency=args.concurrency, workers=args.workers,
        progress=False,
    )  # fmt: skip
    return time.perf_counter() - wall, cpu_time() - cpu


def cpu_time() -> float:
    """Seconds of CPU that this process and its ended workers have used."""
    return sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime for who in WHO)


async def bare(base_url: str, prompts: list[list[dict[str, str]]], concurrency: int) -> None:
    waiting = iter(prompts)
    async with AsyncOpenAI(base_url=base_url, api_key="none", http_client=DefaultAioHttpClient()) as client:

        async def worker() -> None:
            for messages in waiting:
                await client.chat.completions.create(model="fake", messages=messages, temperature=0, max_tokens=2048)

        await asyncio.gather(*(worker() for _ in range(concurrency)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=512)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--latency", type=float, default=1.0, help="seconds")
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    dataset = prepare(load_dataset("ml-latest-small"))
    print(f"{args.users} users x {args.turns} turns, {args.concurrency} in flight, {args.workers} workers")
    with spawn("--scripted", "--latency", str(args.latency)) as base_url:
        for _ in range(args.repeats):
            with tempfile.TemporaryDirectory() as folder:
                wall, cpu = population(base_url, dataset, args, Path(folder))
                prompts = [[dict(m) for m in call.messages] for step in read_steps(folder) for call in step.calls]
            start, start_cpu = time.perf_counter(), time.process_time()
            asyncio.run(bare(base_url, prompts, args.concurrency))
            bare_wall, bare_cpu = time.perf_counter() - start, time.process_time() - start_cpu
            turns, calls = args.users * args.turns, len(prompts)
            print(
                f"population {calls / wall:7.1f} calls/s, {1000 * cpu / turns:.2f} ms CPU a turn of "
                f"{calls / turns:.1f} calls | bare loop {calls / bare_wall:7.1f} calls/s, "
                f"{1000 * bare_cpu / calls:.2f} ms CPU a call | ratio of throughput {bare_wall / wall:.2f}"
            )


if __name__ == "__main__":
    main()
