"""What OpenAIChat costs beside a bare AsyncOpenAI loop with the same transport.

    python eval/benchmarks/client.py [--requests 4000] [--rounds 3]

A server in another process (eval/benchmarks/canned.py) answers at once, or after 200 ms. The same number of workers
asks it through either client, the two taking turns in the same run, on one core. Figures are medians over the rounds:
CPU time of this process a request, and requests a second. The prompt is 800 words, as a ranking turn's is.
"""

import argparse
import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable

import httpx2
import openai
from canned import spawn
from rich.console import Console
from rich.table import Table

from starec_agents.llm.base import Endpoint
from starec_agents.llm.client import OpenAIChat

PROMPT = "word " * 800
Ask = Callable[[list[dict[str, str]]], Awaitable[object]]


async def measure(ask: Ask, requests: int, in_flight: int) -> tuple[float, float]:
    """CPU milliseconds a request, and requests a second."""
    numbers = iter(range(requests))

    async def worker() -> None:
        for number in numbers:
            await ask([{"role": "system", "content": PROMPT}, {"role": "user", "content": str(number)}])

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return 1e3 * cpu / requests, requests / wall


async def bare(url: str, requests: int, in_flight: int) -> tuple[float, float]:
    limits = httpx2.Limits(max_connections=in_flight)
    transport = openai.DefaultAioHttpClient(limits=limits)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", http_client=transport, max_retries=0) as client:

        async def ask(messages: list[dict[str, str]]) -> object:
            return await client.chat.completions.create(
                model="fake",
                messages=messages,  # type: ignore[arg-type]
                temperature=0.0,
                top_p=1.0,
                max_tokens=2048,
            )

        await measure(ask, in_flight, in_flight)
        return await measure(ask, requests, in_flight)


async def ours(url: str, requests: int, in_flight: int) -> tuple[float, float]:
    async with OpenAIChat(Endpoint(base_url=url, model="fake", concurrency=in_flight)) as llm:
        await measure(llm.complete, in_flight, in_flight)
        result = await measure(llm.complete, requests, in_flight)
        assert llm.retries == 0
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    columns = ("latency", "in flight", "bare ms", "ours ms", "ratio", "bare req/s", "ours req/s", "ratio")
    table = Table(*columns, title=f"CPU a request and throughput, {given.requests:,} requests, {given.rounds} rounds")
    for latency, in_flight in itertools.product((0.0, 0.2), (64, 256, 512)):
        with spawn(latency) as url:
            rounds = [
                [asyncio.run(client(url, given.requests, in_flight)) for client in (bare, ours)]
                for _ in range(given.rounds)
            ]
        cpu = [statistics.median(pair[i][0] for pair in rounds) for i in (0, 1)]
        rate = [statistics.median(pair[i][1] for pair in rounds) for i in (0, 1)]
        figures = (*cpu, statistics.median(pair[1][0] / pair[0][0] for pair in rounds))
        table.add_row(
            f"{latency:g} s",
            str(in_flight),
            *(f"{figure:.2f}" for figure in figures),
            *(f"{figure:.0f}" for figure in rate),
            f"{statistics.median(pair[1][1] / pair[0][1] for pair in rounds):.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
