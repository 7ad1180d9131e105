"""Several servers as one: the load is shared, a dying server loses it, and has it back when it answers again."""

import asyncio
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_endpoint import FakeEndpoint, scripted
from support import make_dataset

from starec_agents import balance
from starec_agents.agent import UserAgent
from starec_agents.llm.client import Balanced
from starec_agents.population import run_population
from starec_env.errors import EndpointError, InvalidOption
from starec_env.types import Endpoint


def balanced(*servers: FakeEndpoint, **options: object) -> Balanced:
    return Balanced([Endpoint(base_url=server.url, model="fake", **options) for server in servers])  # type: ignore[arg-type]


async def ask(llm: Balanced, n: int, concurrency: int = 8) -> None:
    numbers = iter(range(n))

    async def worker() -> None:
        for number in numbers:
            await llm.complete([{"role": "user", "content": str(number)}])

    await asyncio.gather(*(worker() for _ in range(concurrency)))


async def test_the_faster_server_gets_more() -> None:
    with FakeEndpoint(latency=0.01) as fast, FakeEndpoint(latency=0.1) as slow:
        async with balanced(fast, slow) as llm:
            await ask(llm, 200)
        assert fast.requests + slow.requests == 200
        assert fast.requests > 2 * slow.requests > 0


async def test_a_dying_server_moves_its_load_and_is_noticed_when_it_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(balance, "FIRST_WAIT_S", 0.05)
    with FakeEndpoint(latency=0.01) as steady, FakeEndpoint(latency=0.01) as other:
        async with balanced(steady, other) as llm:
            await ask(llm, 40)
            assert other.requests >= 10
            other.stop()
            before = steady.requests
            await ask(llm, 100)
            assert steady.requests - before == 100
            other.start()
            back = other.requests
            await _until(lambda: other.requests > back + 10, lambda: ask(llm, 20))


async def _until(condition: Callable[[], bool], work: Callable[[], object]) -> None:
    stop = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < stop
        await work()  # type: ignore[misc]


async def test_an_ill_server_is_asked_by_single_requests() -> None:
    with FakeEndpoint(latency=0.01) as well, FakeEndpoint(faults={"500": 1.0}) as ill:
        async with balanced(well, ill) as llm:
            await ask(llm, 300, concurrency=16)
        assert well.requests == 300
        assert ill.requests <= 16 + 5


async def test_when_all_are_gone_calls_fail_after_their_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "FIRST_WAIT_S", 0.01)
    with FakeEndpoint(faults={"503": 1.0}) as one, FakeEndpoint(faults={"500": 1.0}) as two:
        async with balanced(one, two, max_retries=2) as llm:
            results = await asyncio.gather(*(ask(llm, 1, 1) for _ in range(50)), return_exceptions=True)
        assert all(isinstance(result, EndpointError) for result in results)
        assert one.requests + two.requests < 150


async def test_what_cannot_pass_is_raised_at_once() -> None:
    with FakeEndpoint(faults={"400": 1.0}) as one, FakeEndpoint(faults={"400": 1.0}) as two:
        async with balanced(one, two) as llm:
            with pytest.raises(EndpointError, match="status 400"):
                await ask(llm, 1, 1)
        assert one.requests + two.requests == 1


async def test_check_is_content_with_one_server_that_answers() -> None:
    with FakeEndpoint() as up, FakeEndpoint() as down:
        down.stop()
        async with balanced(up, down, max_retries=0) as llm:
            assert await llm.check() == ["fake"]
        up.stop()
        async with balanced(up, down, max_retries=0) as llm:
            with pytest.raises(EndpointError, match="nothing listens"):
                await llm.check()
        up.start()
        down.start()


def test_endpoints_must_serve_one_model() -> None:
    with pytest.raises(InvalidOption, match="same model"):
        Balanced([Endpoint(base_url="http://a/v1", model=name) for name in "ab"])
    with pytest.raises(InvalidOption, match="one endpoint or more"):
        Balanced([])


def test_a_population_runs_over_two_servers_and_the_model_can_be_sent_to_workers(tmp_path: Path) -> None:
    with FakeEndpoint(scripted()) as one, FakeEndpoint(scripted()) as two:
        llm = pickle.loads(pickle.dumps(balanced(one, two)))
        run = run_population(make_dataset(), UserAgent.factory(llm), out=tmp_path, turns=2, progress=False)
        assert run.metrics["failures"] == 0 and one.requests > 5 < two.requests
