"""Several servers as one: the load is shared; one that fails costs no user, and has its share back when healthy."""

import asyncio
import logging
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint, refusal, scripted
from support import make_dataset

from starec_agents.agent import UserAgent
from starec_agents.llm import OpenAIChat, session
from starec_agents.llm.base import Endpoint
from starec_agents.runs.population import run_population
from starec_env.errors import EndpointError, InvalidOption


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "")


def several(*servers: FakeEndpoint | str, **options: Any) -> OpenAIChat:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    return OpenAIChat([Endpoint(**{"base_url": url, "model": "fake", **options}) for url in urls])


async def ask(llm: OpenAIChat, n: int, concurrency: int = 8) -> None:
    numbers = iter(range(n))

    async def worker() -> None:
        for number in numbers:
            await llm.complete([{"role": "user", "content": f"Question {number}"}])

    await asyncio.gather(*(worker() for _ in range(concurrency)))


def questions(server: FakeEndpoint) -> int:
    """How many of a user's requests a server got."""
    return sum(body["messages"][0]["content"].startswith("Question") for body in server.bodies)


async def until(condition: Callable[[], bool], work: Callable[[], Any]) -> None:
    stop = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < stop
        await work()


async def test_the_faster_server_gets_more() -> None:
    with FakeEndpoint(latency=0.01) as fast, FakeEndpoint(latency=0.1) as slow:
        async with several(fast, slow) as llm:
            await ask(llm, 200)
        assert fast.requests + slow.requests == 200
        assert fast.requests > 2 * slow.requests > 0


async def test_one_call_at_a_time_is_shared_too() -> None:
    with FakeEndpoint() as one, FakeEndpoint() as two:
        async with several(one, two) as llm:
            await ask(llm, 20, concurrency=1)
        assert one.requests == two.requests == 10


BAD = {"401": "auth", "403": "auth", "404": "not_found", "400": "bad_request", "422": "bad_request"}
BAD |= {"500": "server", "503": "server", "502-html": "server", "cut": "connection", "no-http": "bad_answer"}
BAD |= {"error-200": "server", "nothing": "bad_answer"}


@pytest.mark.parametrize("concurrency", [1, 16])
@pytest.mark.parametrize("fault", BAD)
async def test_a_server_that_fails_in_any_way_costs_no_call_and_is_then_left_alone(
    fault: str, concurrency: int, caplog: pytest.LogCaptureFixture
) -> None:
    with FakeEndpoint(latency=0.005) as good, FakeEndpoint(faults={fault: 1.0}) as bad:
        async with several(bad, good) as llm:
            await ask(llm, 150, concurrency)
            assert questions(good) == 150
            assert questions(bad) <= 16 + 2
    out = [record for record in caplog.records if "out of use" in record.message and bad.url in record.message]
    assert len(out) == 1 and out[0].levelno == logging.WARNING


@pytest.mark.parametrize("concurrency", [1, 16])
async def test_a_dead_server_costs_no_call_even_without_retries(concurrency: int) -> None:
    with FakeEndpoint() as good:
        async with several("http://127.0.0.1:1/v1", good, max_retries=0) as llm:
            await ask(llm, 30, concurrency)
        assert good.requests == 30


async def test_a_server_that_lacks_the_model_or_wants_another_key_costs_no_call() -> None:
    with FakeEndpoint() as good, FakeEndpoint(models=["other"]) as other, FakeEndpoint(key="another") as locked:
        async with several(good, other, locked) as llm:
            await ask(llm, 60)
            assert questions(good) == 60


async def test_a_server_that_hangs_costs_a_timeout_and_no_call() -> None:
    with FakeEndpoint() as good, FakeEndpoint(faults={"slow": 1.0}) as hung:
        async with several(hung, good, timeout_s=0.3, max_retries=0) as llm:
            await ask(llm, 100, concurrency=4)
            assert questions(good) == 100
            assert questions(hung) <= 6


async def test_a_rate_limit_of_one_server_moves_its_load() -> None:
    limited = FakeEndpoint(faults={"429-after": 1.0}, retry_after=30.0)
    with FakeEndpoint() as good, limited:
        async with several(limited, good, max_retries=0) as llm:
            await ask(llm, 100)
        assert questions(good) == 100


async def test_a_bad_request_is_one_only_if_every_server_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def picky(body: dict[str, Any]) -> Any:
        return refusal(400, "too long for me") if "Question 3" in str(body) else "Hello."

    def worse(body: dict[str, Any]) -> Any:
        return refusal(400, "I know no such thing") if "Question" in str(body) else "Hello."

    with FakeEndpoint(picky) as one, FakeEndpoint(picky) as two:
        async with several(one, two) as llm:
            with pytest.raises(EndpointError, match="too long for me") as caught:
                await llm.complete([{"role": "user", "content": "Question 3"}])
            assert caught.value.kind == "bad_request"
            assert one.requests == two.requests == 1
            assert not caplog.records  # nothing is wrong with the servers
    with FakeEndpoint() as one, FakeEndpoint(worse) as two:
        async with several(one, two) as llm:
            await ask(llm, 20)
    assert f"{two.url} answered with status 400" in caplog.text


async def test_what_cannot_be_sent_is_not_tried_elsewhere() -> None:
    with FakeEndpoint() as one, FakeEndpoint() as two:
        async with several(one, two) as llm:
            with pytest.raises(EndpointError, match="can't be sent"):
                await llm.complete([{"role": "user", "content": "\ud800"}])
        assert one.requests == two.requests == 0


async def test_a_dying_server_moves_its_load_and_has_it_back_after_a_test(caplog: pytest.LogCaptureFixture) -> None:
    with FakeEndpoint(latency=0.01) as steady, FakeEndpoint(latency=0.01) as other:
        async with several(steady, other) as llm:
            await ask(llm, 40)
            assert questions(other) >= 10
            other.stop()
            before = questions(steady)
            await ask(llm, 100)
            assert questions(steady) - before == 100
            asked = questions(other)
            other.start()
            await until(lambda: questions(other) > asked + 10, lambda: ask(llm, 20))
    assert {"role": "user", "content": "Hi"} in [body["messages"][0] for body in other.bodies]
    assert f"{other.url} answers again" in caplog.text


async def test_calls_wait_while_all_servers_are_down_and_go_on_when_one_is_back() -> None:
    with FakeEndpoint() as one, FakeEndpoint() as two:
        async with several(one, two) as llm:
            await ask(llm, 4)
            one.stop()
            two.stop()
            asked = asyncio.create_task(ask(llm, 20))
            await asyncio.sleep(0.1)
            assert not asked.done()
            two.start()
            await asked
            one.start()


async def test_when_all_stay_down_calls_fail_after_their_patience_with_every_reason() -> None:
    with FakeEndpoint(faults={"503": 1.0}) as one, FakeEndpoint(faults={"500": 1.0}) as two:
        async with several(one, two, max_retries=2) as llm:
            results = await asyncio.gather(*(ask(llm, 1, 1) for _ in range(50)), return_exceptions=True)
        assert all(isinstance(result, EndpointError) for result in results)
        assert questions(one) + questions(two) < 150
        assert any(one.url in str(result) and two.url in str(result) for result in results)


async def test_a_server_that_restarts_is_waited_for_although_the_other_refuses_the_key() -> None:
    with FakeEndpoint() as one, FakeEndpoint(key="another") as two:
        async with several(one, two) as llm:
            await ask(llm, 4)
            one.stop()
            asked = asyncio.create_task(ask(llm, 20))
            await asyncio.sleep(0.1)
            one.start()
            await asked


async def test_when_all_refuse_the_key_calls_fail_at_once() -> None:
    with FakeEndpoint(key="another") as one, FakeEndpoint(key="another") as two:
        async with several(one, two) as llm:
            for _ in range(10):
                with pytest.raises(EndpointError) as caught:
                    await ask(llm, 1, 1)
                assert caught.value.kind == "auth"


async def test_check_leaves_out_what_fails_and_refuses_if_nothing_is_left(caplog: pytest.LogCaptureFixture) -> None:
    with FakeEndpoint() as up, FakeEndpoint(models=["other"]) as other, FakeEndpoint() as down:
        down.stop()
        async with several(other, up, down, max_retries=0) as llm:
            assert await llm.check() == ["fake"]
            assert sum("out of use" in record.message for record in caplog.records) == 2
            await ask(llm, 10)
        assert questions(up) == 10 and not questions(other)
        up.stop()
        async with several(up, other, down, max_retries=0) as llm:
            with pytest.raises(EndpointError, match=r"none of 3 servers can be used: .*nothing listens.*from other"):
                await llm.check()
        up.start()
        down.start()


def test_what_check_found_holds_in_the_next_event_loop() -> None:
    with FakeEndpoint() as good, FakeEndpoint(models=["other"]) as other:
        llm = several(good, other)
        asyncio.run(llm.check())
        asyncio.run(ask(llm, 10))
        assert questions(good) == 10 and not questions(other)


def test_endpoints_must_serve_one_model_alike() -> None:
    for options in ({"model": "b"}, {"temperature": 0.5}):
        endpoints = [
            Endpoint(base_url="http://a/v1", model="a"),
            Endpoint(base_url="http://b/v1", **{"model": "a", **options}),
        ]
        with pytest.raises(InvalidOption, match="all of the same model"):
            OpenAIChat(endpoints)
    with pytest.raises(InvalidOption, match="one endpoint or more"):
        OpenAIChat([])


def test_a_population_runs_over_two_servers_and_the_model_can_be_sent_to_workers(tmp_path: Path) -> None:
    with FakeEndpoint(scripted()) as one, FakeEndpoint(scripted()) as two:
        llm = pickle.loads(pickle.dumps(several(one, two)))
        run = run_population(make_dataset(), UserAgent.factory(llm), out=tmp_path, turns=2, progress=False)
        assert run.metrics["failures"] == 0 and one.requests > 5 < two.requests


def test_a_population_loses_no_user_to_one_server_of_two_that_fails(tmp_path: Path) -> None:
    with FakeEndpoint(scripted()) as one, FakeEndpoint(faults={"404": 1.0}) as two:
        agent = UserAgent.factory(several(one, two))
        run = run_population(make_dataset(), agent, out=tmp_path, turns=2, progress=False, concurrency=1)
        assert run.metrics["failures"] == 0
