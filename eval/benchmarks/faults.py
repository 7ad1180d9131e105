"""Populations against an endpoint that misbehaves, each kind of fault in turn.

    python eval/benchmarks/faults.py [--users 2500] [--only slower HTML]

Each mix runs a population of two-turn, two-call users (2,500 of them: 10,000 requests and the retries) against a fake
server in this process, with short waits and a short time-out. It then lets the server recover and resumes. For every
mix it is checked, not only shown, that

- every user ends with all its steps, or with a recorded failure;
- the resumed run redoes the failed users alone, and asks nothing whose answer was recorded;
- the record is then the same as that of a run without faults;
- no request is sent more than 1 + max_retries times in a session, and no more are in flight than allowed;
- the limit of requests in flight recovers with the server.

Shown are requests, retries, failed users, the most in flight, the limit that the client settled at and, after 2,000
answers from the recovered server, what it has come back to.
"""

import argparse
import asyncio
import logging
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from starec_agents.agent import UserAgent
from starec_agents.llm import session
from starec_agents.llm.base import Endpoint
from starec_agents.llm.client import OpenAIChat
from starec_agents.runs.population import arun_population
from starec_agents.runs.reading import read_failures, read_steps
from starec_env.types import Dataset

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from fake_endpoint import FakeEndpoint, scripted  # noqa: E402
from support import make_dataset  # noqa: E402

MIXES: dict[str, dict[str, float]] = {
    "429": {"429": 0.05},
    "429 heavy": {"429": 0.3},
    "429 with Retry-After": {"429-after": 0.05},
    "429 with a skewed clock": {"429-date": 0.05},
    "500": {"500": 0.05},
    "503": {"503": 0.05},
    "cut before the body": {"cut": 0.05},
    "cut in the body": {"cut-body": 0.05},
    "slower than the time-out": {"slow": 0.01},
    "half JSON": {"half-json": 0.05},
    "wrong content type": {"wrong-type": 0.05},
    "HTML error pages": {"502-html": 0.03, "html": 0.03},
    "empty choices": {"empty": 0.05},
    "content null": {"null": 0.05},
    "reasoning alone": {"reasoning": 0.05},
    "finish_reason length": {"length": 0.05},
    "1 MB answers": {"huge": 0.01},
    "changed model name": {"renamed": 0.05},
    "all of them": {
        **dict.fromkeys(("429", "429-after", "429-date", "500", "503", "cut", "cut-body", "half-json"), 0.01),
        **dict.fromkeys(("wrong-type", "502-html", "html", "empty", "null", "reasoning", "length", "renamed"), 0.01),
        "slow": 0.002,
        "huge": 0.002,
    },
}
CHANGES_ANSWERS = {"reasoning", "huge", "length"}
"""Faults that are answers: the client has to take them, so the record differs from a faultless one's."""
MAX_RETRIES = 5


class Counting(FakeEndpoint):
    """Counts how often each prompt was asked, in all and since the last `forget`."""

    def __init__(self, **options: object) -> None:
        super().__init__(scripted(), **options)  # type: ignore[arg-type]
        self.asked: Counter[int] = Counter()

    async def _chat(self, request):  # type: ignore[no-untyped-def]
        self.asked[hash(await request.read())] += 1
        return await super()._chat(request)


def record(out: Path) -> str:
    return re.sub(r'"latency":[0-9.e-]+', '"latency":0', "".join(step.model_dump_json() for step in read_steps(out)))


async def check_mix(faults: dict[str, float], dataset: Dataset, users: int, out: Path, truth: str | None) -> list[str]:
    """Run one mix, resume it on a recovered server, and return its figures; raises AssertionError."""
    started = time.perf_counter()
    with Counting(latency=0.02, faults=faults, seed=1, retry_after=0.2) as server:
        endpoint = Endpoint(
            base_url=server.url, model="fake", concurrency=128, timeout_s=5 if "slow" in faults else 60,
            max_retries=MAX_RETRIES,
        )  # fmt: skip
        async with OpenAIChat(endpoint) as llm:
            agent = UserAgent.factory(llm, answer_format="labels")

            async def run(resume: bool) -> None:
                await arun_population(
                    dataset, agent, out=out, users=users, turns=2, concurrency=128, resume=resume, progress=False
                )

            await run(resume=False)
            (limit,) = llm._sessions[asyncio.get_running_loop()].pool.limits  # noqa: SLF001
            first, retries, settled = server.requests, llm.retries, limit.limit
            failures, steps = read_failures(out), list(read_steps(out))
            done = Counter(step.user_id for step in steps)
            failed = {failure.user_id for failure in failures}
            assert len(done | Counter(failed)) == users and all(done[user] == 2 or user in failed for user in done)
            # Two users may be asked the same, so a prompt's count may exceed the retries by its number of askers.
            limited = any(name.startswith("429") for name in faults)  # waiting for a rate limit burns no retries
            assert limited or max(server.asked.values()) <= 1 + MAX_RETRIES, max(server.asked.values())
            assert server.peak <= 128, server.peak
            recorded = {hash_of(call.messages) for step in steps for call in step.calls}

            server.faults, server.asked = {}, Counter()
            server.bodies.clear()
            await run(resume=True)
            assert not read_failures(out)
            again = server.requests - first
            assert not recorded & {hash_of(body["messages"]) for body in server.bodies}
            assert again <= 4 * len(failed)
            if truth is not None and not CHANGES_ANSWERS & set(faults):
                assert record(out) == truth, "the record differs from a run without faults"
            await recover(llm)
            assert limit.limit >= 64, limit.limit
            return [
                f"{first:,}", f"{retries:,}", str(len(failed)), f"{again:,}", str(server.peak), f"{settled:.0f}",
                f"{limit.limit:.0f}", f"{time.perf_counter() - started:.0f} s",
            ]  # fmt: skip


async def recover(llm: OpenAIChat) -> None:
    numbers = iter(range(2000))

    async def worker() -> None:
        for number in numbers:
            await llm.complete([{"role": "user", "content": f"{number}"}])

    await asyncio.gather(*(worker() for _ in range(128)))


def hash_of(messages: object) -> int:
    return hash(str([dict(message) for message in messages]))  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=2500)
    parser.add_argument("--only", nargs="*", help="words of the mixes to run")
    args = parser.parse_args()
    logging.disable()
    warnings.simplefilter("error", RuntimeWarning)
    session.FIRST_WAIT_S, session.MAX_WAIT_S = 0.02, 0.5
    dataset = make_dataset(n_users=int(args.users * 1.1), n_items=200, length=40)
    columns = ("mix", "requests", "retries", "failed users", "asked on resuming", "peak", "limit", "recovered", "took")
    table = Table(*columns, title=f"{args.users:,} users x 2 turns x 2 calls under faults")
    with tempfile.TemporaryDirectory() as folder:
        truth = None
        for number, (name, faults) in enumerate({"none": {}, **MIXES}.items()):
            if args.only and name != "none" and not any(word in name for word in args.only):
                continue
            out = Path(folder) / str(number)
            figures = asyncio.run(check_mix(faults, dataset, args.users, out, truth))
            truth = truth or record(out)
            table.add_row(name, *figures)
            print(name, *figures, flush=True)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
