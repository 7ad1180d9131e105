import asyncio
import gzip
import json
import logging
import re
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fake_endpoint import FAULTS, FakeEndpoint, completion, refusal

from starec_agents.llm import Completion, session
from starec_agents.llm.base import Endpoint, Usage
from starec_agents.llm.client import OpenAIChat
from starec_agents.llm.server import FILES_BESIDE, allow_files
from starec_env.errors import EndpointError, InvalidOption, UnknownName

HI = [{"role": "user", "content": "Hi there"}]
KEY = "sk-very-secret"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", "")


@pytest.fixture
def server() -> Iterator[FakeEndpoint]:
    with FakeEndpoint() as running:
        yield running


def chat(server: FakeEndpoint, cache_dir: Path | None = None, **options: Any) -> OpenAIChat:
    return OpenAIChat(Endpoint(**{"base_url": server.url, "model": "fake", **options}), cache_dir=cache_dir)


async def ask(llm: OpenAIChat, text: str = "Hi there", **sampling: Any) -> Completion:
    return await llm.complete([{"role": "user", "content": text}], **sampling)


async def fails(llm: OpenAIChat) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        await ask(llm)
    assert llm.in_flight == 0
    return caught.value


async def test_an_answer_brings_text_usage_and_model(server: FakeEndpoint) -> None:
    async with chat(server) as llm:
        answer = await ask(llm)
        assert (answer.text, answer.finish_reason, answer.model) == ("Hello.", "stop", "fake")
        assert answer.usage == Usage(prompt_tokens=2, completion_tokens=1, cached_tokens=1)
        assert answer.latency > 0
        await ask(llm)
        assert llm.usage == Usage(prompt_tokens=4, completion_tokens=2, cached_tokens=2)
        assert (llm.requests, llm.retries, dict(llm.models)) == (2, 0, {"fake": 2})


async def test_sampling_is_always_sent_explicitly(server: FakeEndpoint) -> None:
    async with chat(server, temperature=0.6, top_p=0.9, max_tokens=77) as llm:
        await ask(llm)
        await ask(llm, temperature=0.0, top_p=1.0, max_tokens=5, seed=3, stop=["\n"])
    plain, given = server.bodies
    assert plain == {"model": "fake", "messages": HI, "temperature": 0.6, "top_p": 0.9, "max_tokens": 77}
    assert given == {**plain, "temperature": 0.0, "top_p": 1.0, "max_tokens": 5, "seed": 3, "stop": ["\n"]}


async def test_extra_body_adds_fields_and_none_removes_them(server: FakeEndpoint) -> None:
    extra = {"top_k": 0, "max_tokens": None, "max_completion_tokens": 9}
    async with chat(server, extra_body=extra) as llm:
        await ask(llm, max_tokens=5)
    assert {"top_k": 0, "max_completion_tokens": 9}.items() <= server.bodies[0].items()
    assert "max_tokens" not in server.bodies[0]


async def test_an_unknown_sampling_option_is_refused_with_the_nearest(server: FakeEndpoint) -> None:
    with pytest.raises(UnknownName, match="did you mean 'temperature'"):
        await ask(chat(server), temprature=0.0)


async def test_a_schema_becomes_the_response_format(server: FakeEndpoint) -> None:
    schema = {"type": "object"}
    async with chat(server) as llm:
        await ask(llm, schema=schema)
    sent = server.bodies[0]["response_format"]
    assert (sent["type"], sent["json_schema"]["schema"]) == ("json_schema", schema)


async def test_token_ids_and_logprobs_come_only_when_asked_for() -> None:
    def reply(body: dict[str, Any]) -> dict[str, Any]:
        said = completion("3 1")
        if body.get("return_token_ids"):
            said["prompt_token_ids"] = [1, 2, 3]
            said["choices"][0]["token_ids"] = [7, 8]
        if body.get("logprobs"):
            said["choices"][0]["logprobs"] = {"content": [{"token": "3", "logprob": -0.5}, {"logprob": -1}]}
        return said

    with FakeEndpoint(reply) as server:
        async with chat(server) as llm:
            plain, asked = await ask(llm), await ask(llm, logprobs=True)
    assert (plain.token_ids, plain.logprobs) == (None, None)
    assert (asked.prompt_token_ids, asked.token_ids, asked.logprobs) == ((1, 2, 3), (7, 8), (-0.5, -1.0))


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("400", "bad_request"), ("422", "bad_request"), ("401", "auth"), ("403", "auth"), ("404", "not_found")],
)
async def test_a_fault_that_cannot_pass_fails_at_once(fault: str, kind: str) -> None:
    with FakeEndpoint(faults=[fault]) as server:
        async with chat(server) as llm:
            error = await fails(llm)
        assert (error.kind, server.requests) == (kind, 1)
        assert server.url in str(error)


@pytest.mark.parametrize("fault", ["429", "429-after", "429-date", "500", "503", "502-html", "cut", "cut-body"])
async def test_a_fault_that_can_pass_is_tried_again(fault: str) -> None:
    with FakeEndpoint(faults=[fault], retry_after=0.01) as server:
        async with chat(server) as llm:
            assert (await ask(llm)).text == "Hello."
        assert (server.requests, llm.requests, llm.retries) == (2, 2, 1)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("error-200", "server"), ("500", "server"), ("503", "server"), ("cut", "connection"), ("cut-body", "connection")],
)
async def test_a_fault_that_stays_fails_once_the_retries_are_used_up(fault: str, kind: str) -> None:
    with FakeEndpoint(faults={fault: 1}) as server:
        async with chat(server, max_retries=2) as llm:
            assert (await fails(llm)).kind == kind
        assert server.requests == 3


@pytest.mark.parametrize("fault", ["slow", "endless"])
async def test_an_answer_that_does_not_end_times_out_and_is_asked_again(fault: str) -> None:
    with FakeEndpoint(faults=[fault]) as server:
        async with chat(server, timeout_s=0.3) as llm:
            assert (await ask(llm)).text == "Hello."
    with FakeEndpoint(faults={fault: 1}) as server:
        async with chat(server, timeout_s=0.3, max_retries=0) as llm:
            error = await fails(llm)
    assert error.kind == "timeout"
    assert "timeout_s=0.3" in str(error)


async def test_an_answer_that_floods_is_cut_off() -> None:
    with FakeEndpoint(faults={"flood": 1}) as server:
        async with chat(server, max_retries=0, max_tokens=1024) as llm:
            error = await fails(llm)
    assert error.kind == "bad_answer"
    assert "more than 2,097,152 bytes" in str(error)


GARBAGE = "nothing half-json html deep list empty null number surrogate no-http no-gzip".split()


@pytest.mark.parametrize("fault", GARBAGE)
async def test_a_garbled_answer_is_asked_for_once_more_and_then_is_an_error(fault: str) -> None:
    with FakeEndpoint(faults={fault: 1}) as server:
        async with chat(server) as llm:
            error = await fails(llm)
        assert (error.kind, server.requests) == ("bad_answer", 2)
        assert server.url in str(error)
        assert len(str(error)) < 500
        assert str(error).isprintable()


async def test_odd_answers_are_answers() -> None:
    faults = ["wrong-type", "reasoning", "length", "no-usage", "huge"]
    with FakeEndpoint(faults=faults) as server:
        async with chat(server) as llm:
            plain, thought, cut, free, huge = [await ask(llm) for _ in faults]
    assert plain.text == "Hello."
    assert (thought.text, thought.reasoning, thought.finish_reason) == ("", "Let me see.", "stop")
    assert (cut.text, cut.finish_reason) == ("Hello.", "length")
    assert free.usage == Usage()
    assert (len(huge.text), huge.finish_reason) == (16 * 2048 + 4096, "length")  # no model says more in 2,048 tokens
    assert llm.retries == 0


async def test_a_model_that_is_changed_under_the_run_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    with FakeEndpoint(faults=["ok", "renamed"]) as server:
        async with chat(server) as llm:
            assert [(await ask(llm)).model for _ in range(2)] == ["fake", "another"]
    assert dict(llm.models) == {"fake": 1, "another": 1}
    assert "now answers as 'another', before as fake" in caplog.text


@pytest.mark.parametrize(
    ("base_url", "reason"),
    [
        ("http://127.0.0.1:1/v1", "nothing listens there"),
        ("http://localhost:1/v1", "nothing listens there"),
        ("http://no-such-host.invalid/v1", "host name is unknown"),
        ("https://127.0.0.1:{port}/v1", "TLS failed"),
    ],
)
async def test_an_endpoint_that_cannot_be_reached_says_why(server: FakeEndpoint, base_url: str, reason: str) -> None:
    base_url = base_url.format(port=server.port)
    async with chat(server, base_url=base_url, max_retries=1) as llm:
        error = await fails(llm)
    assert error.kind == "connection"
    assert base_url in str(error)
    assert reason in str(error)


async def test_a_server_that_is_killed_and_started_again_loses_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FIRST_WAIT_S", 0.02)
    server = FakeEndpoint(latency=0.05).start()
    async with chat(server) as llm:
        asked = [asyncio.create_task(ask(llm, str(number))) for number in range(20)]
        await asyncio.sleep(0.03)
        await asyncio.to_thread(server.stop)
        await asyncio.sleep(0.05)
        server.start()
        answers = await asyncio.gather(*asked)
    server.stop()
    assert [answer.text for answer in answers] == ["Hello."] * 20
    assert llm.retries >= 20


@pytest.mark.parametrize("base_url", ["localhost:8000/v1", "", "http://", "ftp://host/v1", "http://[::1/v1"])
def test_a_base_url_that_is_none_is_refused(base_url: str) -> None:
    with pytest.raises(InvalidOption, match="isn't a URL"):
        OpenAIChat(Endpoint(base_url=base_url, model="fake"))


async def test_what_cannot_be_sent_is_a_bad_request(server: FakeEndpoint) -> None:
    async with chat(server) as llm:
        for content in ("\ud800", object()):
            with pytest.raises(EndpointError) as caught:
                await llm.complete([{"role": "user", "content": content}])  # type: ignore[dict-item]
            assert caught.value.kind == "bad_request"
    assert server.requests == 0


async def test_an_absurd_retry_after_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_WAIT_S", 0.01)
    with FakeEndpoint(faults=["429-after", "429-date"], retry_after=1e9) as server:
        async with chat(server) as llm:
            assert (await ask(llm)).text == "Hello."


async def test_cancelling_a_call_passes_through_and_frees_its_place() -> None:
    with FakeEndpoint(faults=["slow"]) as server:
        async with chat(server, concurrency=1) as llm:
            first = asyncio.create_task(ask(llm))
            waiting = asyncio.create_task(ask(llm))
            while not server.requests:
                await asyncio.sleep(0.01)
            waiting.cancel()
            first.cancel()
            for task in (first, waiting):
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert llm.in_flight == 0
            assert (await ask(llm)).text == "Hello."


async def test_requests_are_sent_in_the_order_they_came(server: FakeEndpoint) -> None:
    async with chat(server, concurrency=1) as llm:
        await asyncio.gather(*(ask(llm, str(number)) for number in range(30)))
    assert [int(body["messages"][0]["content"]) for body in server.bodies] == list(range(30))


async def test_concurrency_is_never_exceeded() -> None:
    with FakeEndpoint(latency=0.01) as server:
        async with chat(server, concurrency=7) as llm:
            await asyncio.gather(*(ask(llm, str(number)) for number in range(60)))
    assert server.peak == 7


async def test_the_limit_settles_on_what_the_server_bears_without_a_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FIRST_WAIT_S", 0.1)
    with FakeEndpoint(capacity=8, latency=0.025) as server:
        async with chat(server, concurrency=256) as llm:
            answers = await asyncio.gather(*(ask(llm, str(number)) for number in range(400)))
    assert len(answers) == 400
    assert server.peak <= 32
    assert llm.retries < 400  # fewer than one a request, on a busy machine too; a storm asks each again and again


async def test_a_dead_endpoint_costs_one_patience_and_not_one_for_each_who_waits() -> None:
    with FakeEndpoint(faults={"slow": 1}) as server:
        async with chat(server, concurrency=4, timeout_s=0.2, max_retries=1) as llm:
            outcomes = await asyncio.gather(*(ask(llm, str(n)) for n in range(100)), return_exceptions=True)
        assert {outcome.kind for outcome in outcomes if isinstance(outcome, EndpointError)} == {"timeout"}
        assert all(isinstance(outcome, EndpointError) for outcome in outcomes)
        assert server.requests < 30


async def test_every_call_ends_in_an_answer_or_an_endpoint_error_under_every_fault_at_once() -> None:
    shares = {name: 0.4 / len(FAULTS) for name in FAULTS if name != "flood"}
    with FakeEndpoint(faults=shares, retry_after=0.001) as server:
        async with chat(server, timeout_s=0.3) as llm:
            asked = (ask(llm, str(number)) for number in range(400))
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
    answers = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
    assert all(isinstance(outcome, (Completion, EndpointError)) for outcome in outcomes)
    odd = ("ok", "wrong-type", "reasoning", "length", "no-usage", "huge", "renamed")
    assert 300 <= len(answers) <= sum(server.faulted[name] for name in odd)
    assert len(set(server.faulted)) > 25


def test_one_model_serves_several_event_loops_and_leaves_nothing_open(server: FakeEndpoint) -> None:
    program = f"""
import asyncio
from starec_agents.llm.client import OpenAIChat
from starec_agents.llm.base import Endpoint

llm = OpenAIChat(Endpoint(base_url={server.url!r}, model="fake"))

async def ask(model):
    return (await model.complete([dict(role="user", content="Hi")])).text

async def forgetful():
    return await ask(OpenAIChat(llm.endpoint))

async def closing():
    async with llm:
        await ask(llm)
    return await ask(llm)

for task in (ask(llm), ask(llm), forgetful(), closing()):
    assert asyncio.run(task) == "Hello."
"""
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.requests == 5


async def test_a_call_that_waits_when_the_model_is_closed_fails_plainly() -> None:
    with FakeEndpoint(faults=["slow"]) as server:
        llm = chat(server, concurrency=1, max_retries=0)
        asked = [asyncio.create_task(ask(llm)) for _ in range(2)]
        while not server.requests:
            await asyncio.sleep(0.01)
        await llm.aclose()
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(outcome, EndpointError)
            assert outcome.kind == "connection"


async def test_the_key_is_sent_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with FakeEndpoint(key=KEY) as server:
        monkeypatch.setenv("MY_KEY", f" {KEY}\n")
        async with chat(server, api_key_env="MY_KEY") as llm:
            assert (await ask(llm)).text == "Hello."
            assert KEY not in repr(llm) + repr(vars(llm)) + caplog.text
    with FakeEndpoint(key="another") as server:  # its refusal quotes the key that it got
        async with chat(server, api_key_env="MY_KEY") as llm:
            error = await fails(llm)
    assert error.kind == "auth"
    assert "MY_KEY holds a key that it refuses" in str(error)
    assert KEY not in str(error) + caplog.text
    assert error.__cause__ is None


async def test_without_a_key_a_placeholder_is_sent_and_a_refusal_names_the_variable() -> None:
    with FakeEndpoint(key="EMPTY") as server:
        async with chat(server, api_key_env="NO_SUCH_KEY") as llm:
            assert (await ask(llm)).text == "Hello."
    with FakeEndpoint(key=KEY) as server:
        async with chat(server, api_key_env="NO_SUCH_KEY") as llm:
            assert "NO_SUCH_KEY is unset" in str(await fails(llm))


async def test_a_key_that_no_header_can_carry_is_an_auth_error(
    server: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "clé")
    error = await fails(chat(server))
    assert error.kind == "auth"
    assert "clé" not in str(error)


async def test_secrets_in_the_base_url_are_not_shown(server: FakeEndpoint) -> None:
    async with chat(server, base_url=f"http://me:pa55@127.0.0.1:{server.port}/v2", max_retries=0) as llm:
        error = await fails(llm)
    assert "pa55" not in str(error) + repr(llm)


async def test_check_lists_the_models_of_a_good_endpoint(server: FakeEndpoint) -> None:
    async with chat(server) as llm:
        assert await llm.check() == ["fake"]
    assert server.requests == 0


async def test_check_raises_early_for_a_model_that_is_not_served_and_names_the_nearest() -> None:
    with FakeEndpoint(models=["Qwen2.5-7B", "Llama-3-8B"]) as server:
        async with chat(server, model="Qwen2.5-7b") as llm:
            with pytest.raises(EndpointError, match=r"did you mean 'Qwen2\.5-7B'") as caught:
                await llm.check()
    assert caught.value.kind == "not_found"


async def test_check_raises_early_for_a_dead_endpoint_a_wrong_key_and_a_wrong_path(server: FakeEndpoint) -> None:
    for options, kind in (
        ({"base_url": "http://127.0.0.1:1/v1"}, "connection"),
        ({"base_url": server.url.removesuffix("/v1")}, "not_found"),
    ):
        async with chat(server, **options) as llm:
            with pytest.raises(EndpointError) as caught:
                await llm.check()
        assert caught.value.kind == kind
    assert "does base_url lack its /v1?" in str(caught.value)
    with FakeEndpoint(key=KEY) as locked:
        async with chat(locked) as llm:
            with pytest.raises(EndpointError) as caught:
                await llm.check()
    assert caught.value.kind == "auth"


async def test_check_tries_the_model_where_the_server_has_no_list() -> None:
    with FakeEndpoint(models=None) as server:
        async with chat(server) as llm:
            assert await llm.check() == []
        assert server.requests == 1


async def test_the_cache_answers_only_what_is_meant_to_repeat(server: FakeEndpoint, tmp_path: Path) -> None:
    async with chat(server, tmp_path) as llm:
        first = await ask(llm)
        again = await ask(llm)
        assert again == first.model_copy(update={"latency": 0.0})
        assert (server.requests, llm.cache_hits) == (1, 1)
        assert llm.usage == first.usage
        for _ in range(2):
            await ask(llm, temperature=0.7, seed=1)
        assert server.requests == 2
        for _ in range(2):
            await ask(llm, temperature=0.7)
        assert server.requests == 4
    async with chat(server, tmp_path) as llm:
        assert await ask(llm) == again
        await ask(llm, max_tokens=3)
    assert server.requests == 5


async def test_the_cache_keeps_no_failure(tmp_path: Path) -> None:
    with FakeEndpoint(faults=["400"]) as server:
        async with chat(server, tmp_path) as llm:
            await fails(llm)
            assert (await ask(llm)).text == "Hello."
        assert server.requests == 2


async def test_calls_at_once_share_one_cache(server: FakeEndpoint, tmp_path: Path) -> None:
    async with chat(server, tmp_path) as one, chat(server, tmp_path) as two:
        for _ in range(2):
            asked = (ask(llm, str(number)) for llm in (one, two) for number in range(50))
            assert {answer.text for answer in await asyncio.gather(*asked)} == {"Hello."}
    assert one.cache_hits + two.cache_hits >= 100


def refusing(times: int, **headers: str) -> Callable[[dict[str, Any]], Any]:
    """A reply that refuses so many requests with status 429 and these headers, then answers."""
    left = iter(range(times))
    return lambda body: "Hello." if next(left, None) is None else refusal(429, "slow down", **headers)


async def test_waiting_for_a_rate_limit_burns_no_retries() -> None:
    with FakeEndpoint(refusing(12)) as server:
        async with chat(server, max_retries=1) as llm:
            assert (await ask(llm)).text == "Hello."
        assert server.requests == 13


async def test_a_rate_limit_that_stays_fails_after_the_longest_wait_and_says_so() -> None:
    with FakeEndpoint(faults={"429": 1}) as server:
        async with chat(server, max_wait_s=0.2) as llm:
            error = await fails(llm)
    assert error.kind == "rate_limit"
    assert "status 429" in str(error) and "max_wait_s=0.2" in str(error)


@pytest.mark.parametrize(
    "headers",
    [
        {"retry_after": "0.3"},
        {"retry_after_ms": "300"},
        {"x_ms_retry_after_ms": "300"},
        {"x_ratelimit_reset_tokens": "300ms", "x_ratelimit_remaining_tokens": "0"},
        {"x_ratelimit_reset_requests": "0m0.3s"},
    ],
)
async def test_what_the_server_advises_is_waited(headers: dict[str, str]) -> None:
    with FakeEndpoint(refusing(1, **headers)) as server:
        async with chat(server) as llm:
            answer = await ask(llm)
        assert server.requests == 2
    assert answer.latency >= 0.3


async def test_a_limit_of_tokens_a_minute_that_only_its_reset_headers_tell_fails_no_call() -> None:
    window = {"began": time.monotonic(), "left": 24.0}

    def reply(body: dict[str, Any]) -> Any:
        if time.monotonic() - window["began"] > 0.5:
            window.update(began=time.monotonic(), left=24)
        window["left"] -= 1
        reset = f"{max(0.0, 0.5 - (time.monotonic() - window['began'])):.3f}s"
        return "Hello." if window["left"] >= 0 else refusal(429, "tokens per min", x_ratelimit_reset_tokens=reset)

    with FakeEndpoint(reply) as server:
        async with chat(server) as llm:
            answers = await asyncio.gather(*(ask(llm, str(number)) for number in range(100)))
        assert len(answers) == 100
        assert server.requests < 250


async def test_an_empty_account_is_no_limit_to_wait_for() -> None:
    spent = {"error": {"message": "You exceeded your current quota", "type": "insufficient_quota"}}
    with FakeEndpoint(lambda body: web.json_response(spent, status=429)) as server:
        async with chat(server) as llm:
            assert (await fails(llm)).kind == "rate_limit"
        assert server.requests == 1


async def test_errors_inside_a_good_status_are_retried_as_their_status_says() -> None:
    told: list[dict[str, Any]] = [{"error": {"message": "Rate limit", "code": 429}}] * 8
    broken = completion("")
    broken["choices"][0] |= {"finish_reason": "error", "error": {"code": 502, "message": "upstream broke off"}}
    told += [broken] * 2
    replies = iter(told)
    with FakeEndpoint(lambda body: next(replies, completion("Hello."))) as server:
        async with chat(server, max_retries=2) as llm:
            assert (await ask(llm)).text == "Hello."
        assert server.requests == 11
    with FakeEndpoint(lambda body: {"error": {"message": "no such key", "code": 401}}) as server:
        async with chat(server) as llm:
            assert (await fails(llm)).kind == "auth"
        assert server.requests == 1


async def test_a_query_goes_behind_the_path_and_headers_are_sent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_AZURE_KEY", KEY)
    headers = {"api-key": "env:MY_AZURE_KEY", "X-Title": "starec"}
    with FakeEndpoint(path="/openai/deployments/m", models=None) as server:
        url = f" {server.url}/chat/completions?api-version=1 "
        async with chat(server, base_url=url, headers=headers) as llm:
            assert (await ask(llm)).text == "Hello."
            assert KEY not in repr(llm) + repr(llm.endpoint) + llm.endpoint.model_dump_json()
        assert list(server.urls) == ["/openai/deployments/m/chat/completions?api-version=1"]
        sent = server.headers[0]
    assert (sent["api-key"], sent["x-title"], sent.get("authorization")) == (KEY, "starec", None)
    assert "/chat/completions is added to it" in caplog.text and KEY not in caplog.text


async def test_a_header_whose_variable_is_unset_is_named(server: FakeEndpoint) -> None:
    async with chat(server, headers={"api-key": "env:NO_SUCH_KEY"}) as llm:
        error = await fails(llm)
    assert error.kind == "auth" and "header api-key is to come from $NO_SUCH_KEY" in str(error)


async def test_a_login_in_the_url_is_sent_in_place_of_the_key(server: FakeEndpoint) -> None:
    async with chat(server, base_url=f"http://me:pa55@127.0.0.1:{server.port}/v1") as llm:
        assert (await ask(llm)).text == "Hello."
    assert server.headers[0]["authorization"] == "Basic bWU6cGE1NQ=="


async def test_no_cookie_is_kept() -> None:
    def reply(body: dict[str, Any]) -> Any:
        return web.json_response(completion("Hello."), headers={"set-cookie": f"a{body['messages'][0]['content']}=b"})

    with FakeEndpoint(reply) as server:
        async with chat(server) as llm:
            for number in range(3):
                await ask(llm, str(number))
        assert not any("cookie" in headers for headers in server.headers)


async def test_a_redirect_is_followed_on_its_host_alone() -> None:
    with FakeEndpoint() as other:

        def reply(body: dict[str, Any]) -> Any:
            same = body["messages"][0]["content"] == "same"
            if same and len(server.urls) > 1:
                return "Hello."
            return web.Response(status=307, headers={"location": "/v1/chat/completions?again" if same else other.url})

        with FakeEndpoint(reply) as server:
            async with chat(server) as llm:
                assert (await ask(llm, "same")).text == "Hello."
                with pytest.raises(EndpointError, match=rf"redirects to {other.url}, which isn't followed"):
                    await ask(llm, "other")
        assert other.requests == 0


async def test_a_body_is_bounded_by_what_it_becomes_when_it_is_unpacked() -> None:
    bomb = gzip.compress(b'{"x": "' + b" " * (200 * 2**20))

    def reply(body: dict[str, Any]) -> Any:
        packed = bomb if "bomb" in str(body) else gzip.compress(json.dumps(completion("Hello.")).encode())
        return web.Response(body=packed, headers={"content-encoding": "gzip"}, content_type="application/json")

    with FakeEndpoint(reply) as server:
        async with chat(server, max_retries=0) as llm:
            assert (await ask(llm)).text == "Hello."
            tracemalloc.start()
            with pytest.raises(EndpointError, match="an answer of more than 3,145,728 bytes"):
                await ask(llm, "bomb")
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 30 * 2**20
        assert server.headers[0]["accept-encoding"] == "identity"


async def test_many_names_of_the_model_are_neither_kept_nor_logged(caplog: pytest.LogCaptureFixture) -> None:
    numbers = iter(range(300))
    with FakeEndpoint(lambda body: completion("Hello.", model=f"model-{next(numbers)}-{'y' * 500}")) as server:
        async with chat(server) as llm:
            for number in range(300):
                await ask(llm, str(number))
    assert len(llm.models) == 11 and llm.models["others"] == 290
    assert len(caplog.text) < 10_000


def picky(*fields: str) -> Callable[[dict[str, Any]], Any]:
    """A reply that refuses requests with these fields, or with a system message where "system" is among them."""

    def reply(body: dict[str, Any]) -> Any:
        if "system" in fields and body["messages"][0]["role"] == "system":
            return refusal(400, "System role not supported")
        for name in fields:
            if name in body:
                return refusal(400, f"Unsupported parameter: '{name}' is not supported with this model.")
        return "Hello."

    return reply


async def test_a_model_that_refuses_parts_of_the_request_is_asked_without_them_and_that_is_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with FakeEndpoint(picky("system", "max_tokens", "temperature", "top_p", "seed")) as server:
        async with chat(server) as llm:
            messages = [{"role": "system", "content": "Be kind."}, *HI]
            first = await llm.complete(messages, seed=3)
            again = await llm.complete(messages)
        sent = server.bodies[-1]
    assert sent == {
        "model": "fake",
        "messages": [{"role": "user", "content": "Be kind.\n\nHi there"}],
        "max_completion_tokens": 2048,
    }
    assert server.requests == 7  # one more for each part, once
    assert set(first.stepped_down) == {
        "system message in the user message",
        "max_completion_tokens for max_tokens",
        "no temperature",
        "no top_p",
        "no seed",
    }
    assert again.stepped_down == first.stepped_down
    assert llm.stepped_down == {server.url: list(first.stepped_down)}
    assert len(caplog.records) == 5 and llm.retries == 0


async def test_a_schema_steps_down_to_json_and_then_to_none() -> None:
    def reply(body: dict[str, Any]) -> Any:
        if kind := body.get("response_format", {}).get("type"):
            return refusal(400, f"response_format {kind} is unavailable now")
        return "{}"

    with FakeEndpoint(reply) as server:
        async with chat(server) as llm:
            answer = await ask(llm, schema={"type": "object"})
        kinds = [body.get("response_format", {}).get("type") for body in server.bodies]
    assert kinds == ["json_schema", "json_object", None]
    assert answer.stepped_down == ("json_object for json_schema", "no response_format")


async def test_a_refusal_met_by_many_calls_at_once_is_learned_once(caplog: pytest.LogCaptureFixture) -> None:
    with FakeEndpoint(picky("temperature"), latency=0.02) as server:
        async with chat(server) as llm:
            answers = await asyncio.gather(*(ask(llm, str(number)) for number in range(20)))
    assert {answer.stepped_down for answer in answers} == {("no temperature",)}
    assert len(caplog.records) == 1


async def test_a_response_format_of_ones_own_goes_with_a_schema_alone(server: FakeEndpoint) -> None:
    async with chat(server, extra_body={"response_format": {"type": "json_object"}}) as llm:
        await ask(llm)
        await ask(llm, schema={"type": "object"})
    assert [body.get("response_format") for body in server.bodies] == [None, {"type": "json_object"}]


async def test_template_switches_reach_the_server(server: FakeEndpoint) -> None:
    switches = {"chat_template_kwargs": {"enable_thinking": False}}
    async with chat(server, extra_body=switches) as llm:
        await ask(llm)
    assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}


async def test_a_gateway_that_only_streams_is_understood() -> None:
    def reply(body: dict[str, Any]) -> Any:
        if not body.get("stream"):
            return refusal(400, "This model only supports streaming: set stream=true")
        parts: list[Any] = [{"choices": [{"delta": {"content": text}}], "model": "fake"} for text in ("Hel", "lo.")]
        parts += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": {"prompt_tokens": 2}}]
        text = "".join(f"data: {json.dumps(part)}\n\n" for part in parts) + "data: [DONE]\n\n"
        return web.Response(text=text, content_type="text/event-stream")

    with FakeEndpoint(reply) as server:
        async with chat(server) as llm:
            answer = await ask(llm)
            await ask(llm)
        assert server.requests == 3
    assert (answer.text, answer.finish_reason, answer.usage) == ("Hello.", "stop", Usage(prompt_tokens=2))


@pytest.mark.parametrize("lengths", [[20_000], [3000, 4000]])
async def test_a_server_that_cuts_prompts_in_silence_is_noticed_once(
    lengths: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    def reply(body: dict[str, Any]) -> Any:
        return {**completion("Hello."), "usage": {"prompt_tokens": 512, "completion_tokens": 1}}

    with FakeEndpoint(reply) as server:
        async with chat(server) as llm:
            for length in lengths * 3:
                await ask(llm, "x" * length)
    assert len(caplog.records) == 1
    assert "512 prompt tokens" in caplog.text and "it may cut prompts" in caplog.text


async def test_prompts_that_are_counted_as_they_are_raise_no_suspicion(caplog: pytest.LogCaptureFixture) -> None:
    with FakeEndpoint() as server:
        async with chat(server) as llm:
            for number in range(20):
                await ask(llm, "word " * 50 * number)
    assert not caplog.records


async def test_latency_counts_from_the_first_attempt_and_not_from_the_queue() -> None:
    with FakeEndpoint(latency=0.05) as server:
        async with chat(server, concurrency=1) as llm:
            answers = await asyncio.gather(*(ask(llm, str(number)) for number in range(10)))
    assert max(answer.latency for answer in answers) < 0.25


async def test_a_call_in_flight_when_the_model_is_closed_fails_plainly() -> None:
    with FakeEndpoint(faults={"slow": 1}) as server:
        llm = chat(server)
        asked = asyncio.create_task(ask(llm))
        while not server.requests:
            await asyncio.sleep(0.01)
        await llm.aclose()
        with pytest.raises(EndpointError) as caught:
            await asked
    assert caught.value.kind == "connection"


async def test_a_proxy_is_used_and_named_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    seen = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readline())
        said = json.dumps(completion("By proxy.")).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(said), said))
        writer.close()

    listening = await asyncio.start_server(proxy, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    endpoint = Endpoint(base_url="http://far.example/v1", model="fake", max_retries=0)
    async with listening:
        for variable in ("HTTP_PROXY", "ALL_PROXY"):
            with monkeypatch.context() as patch:
                patch.setenv(variable, f"http://me:pa55word@127.0.0.1:{port}")
                async with OpenAIChat(endpoint) as llm:
                    assert (await ask(llm)).text == "By proxy."
    assert seen[0].startswith(b"POST http://far.example/v1/chat/completions")
    monkeypatch.setenv("HTTP_PROXY", "http://me:pa55word@127.0.0.1:1")
    async with OpenAIChat(endpoint) as llm:
        error = str(await fails(llm))
    assert "through the proxy http://127.0.0.1:1 ($HTTP_PROXY)" in error and "pa55word" not in error


async def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, server: FakeEndpoint) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    async with chat(server) as llm:
        assert (await ask(llm)).text == "Hello."
    async with chat(server, base_url="http://127.0.0.1:1/v1", max_retries=0) as llm:
        assert "$ALL_PROXY is socks5://127.0.0.1:9, which isn't used" in str(await fails(llm))


def test_the_limit_of_open_files_is_raised_to_what_the_concurrency_needs(caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        for connections in (400, 10):
            allow_files(connections)
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 400 + FILES_BESIDE
        allow_files(hard)
        assert "raise the limit (ulimit -n), or lower the concurrency" in caplog.text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_more_in_flight_than_files_names_the_limit(server: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "allow_files", lambda connections: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with chat(server, max_retries=0) as llm:
        await ask(llm)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 4, hard))
            outcomes = await asyncio.gather(*(ask(llm, str(n)) for n in range(30)), return_exceptions=True)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    errors = [outcome for outcome in outcomes if isinstance(outcome, EndpointError)]
    assert errors and all(isinstance(outcome, (Completion, EndpointError)) for outcome in outcomes)
    assert any("raise the limit (ulimit -n)" in str(error) for error in errors)


async def test_equal_calls_at_once_are_one_request(server: FakeEndpoint, tmp_path: Path) -> None:
    server.latency = 0.05
    async with chat(server, tmp_path) as llm:
        answers = await asyncio.gather(*(ask(llm) for _ in range(5)))
        assert (server.requests, llm.cache_hits) == (1, 4)
    assert {answer.text for answer in answers} == {"Hello."}


def test_the_endpoints_of_the_docs_are_what_the_client_takes() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "servers.md").read_text(), flags=re.DOTALL)
    made: dict[str, Any] = {}
    exec(code, made)
    assert len(made["llm"].endpoints) == 2
