"""An OpenAI-compatible server on loopback that answers as told and misbehaves as told.

    with FakeEndpoint("3 1 2", latency=0.2, faults={"429": 0.05, "cut": 0.01}) as server:
        OpenAIChat(Endpoint(base_url=server.url, model="fake"))

It runs in a thread of its own, so it serves synchronous and asynchronous tests alike.
"""

import asyncio
import email.utils
import hashlib
import json
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from aiohttp import web

Reply = str | Callable[[dict[str, Any]], "str | dict[str, Any] | web.Response"]

SLOW_S = 30.0
"""How long "slow" and "endless" go on: longer than any test's time-out."""


def completion(text: str | None, model: str = "fake", prompt: str = "", **message: Any) -> dict[str, Any]:
    """A chat completion's JSON, its usage counted in words; `message` adds fields to the message."""
    used = {"prompt_tokens": len(prompt.split()), "completion_tokens": len((text or "").split())}
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text, **message}}
        ],
        "usage": {**used, "total_tokens": sum(used.values()), "prompt_tokens_details": {"cached_tokens": 1}},
    }


class FakeEndpoint:
    """The server; use it as a context manager, or `start()` and `stop()` it, on the same port again if need be.

    Args:
        reply: The answer's text, or a function of the request's body that returns the text, a whole completion, or a
            response of any status, which no fault changes.
        latency: Seconds to every answer.
        faults: {name: share of requests}, or a sequence of names for the first requests in turn ("ok" is none). With
            shares, a request's fault is a function of (seed, prompt, how often it was asked), at any concurrency.
            Names: see `FAULTS` below, and "ok".
        seed: Of the faults.
        models: What /v1/models lists, with the `root` of each if it is a mapping; None means that there is no such
            list. Another model's name gets a 404.
        key: If given, the key that requests must carry.
        capacity: More requests in flight than that get a 429.
        retry_after: Seconds in the Retry-After of the faults "429-after" and "429-date".
        port: 0 takes a free one.
        path: Where the API is.

    Attributes:
        url: Its base_url.
        requests: Chat requests received. `faulted` counts them by fault, `peak` is the most in flight at once.
        bodies: The last 10,000 chat requests' bodies; `headers` their headers, `urls` their paths and queries.
    """

    def __init__(
        self,
        reply: Reply = "Hello.",
        *,
        latency: float = 0.0,
        faults: Mapping[str, float] | Sequence[str] = (),
        seed: int = 0,
        models: Collection[str] | None = ("fake",),
        key: str | None = None,
        capacity: int | None = None,
        retry_after: float = 1.0,
        port: int = 0,
        path: str = "/v1",
    ) -> None:
        self.reply, self.latency, self.faults, self.seed, self.models = reply, latency, faults, seed, models
        self.key, self.capacity, self.retry_after, self.port, self.path = key, capacity, retry_after, port, path
        self.requests = self.in_flight = self.peak = 0
        self.faulted: Counter[str] = Counter()
        self.bodies: deque[dict[str, Any]] = deque(maxlen=10_000)
        self.headers: deque[Mapping[str, str]] = deque(maxlen=10_000)
        self.urls: deque[str] = deque(maxlen=10_000)
        self._asked: Counter[bytes] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"

    def __enter__(self) -> "FakeEndpoint":
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> "FakeEndpoint":
        """Serve in a thread of its own; returns once the port is open."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self

    def stop(self) -> None:
        """Close the port and cut what is in flight, as a killed server would."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _open(self) -> None:
        self._runner = web.ServerRunner(
            web.Server(self._handle, handler_cancellation=True),  # a request whose client hung up is none in flight
            access_log=None,
            shutdown_timeout=0.01,
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, backlog=4096, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        await self._runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _listed(self) -> list[dict[str, str]]:
        roots = self.models if isinstance(self.models, Mapping) else {}
        return [{"id": name, **({"root": roots[name]} if name in roots else {})} for name in self.models or ()]

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return refusal(401, f"Incorrect API key provided: {request.headers.get('authorization')}")
        if request.path == f"{self.path}/models" and self.models is not None:
            return web.json_response({"object": "list", "data": self._listed()})
        if request.path != f"{self.path}/chat/completions":
            return refusal(404, "Not Found")
        self.requests += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            return await self._chat(request)
        except ConnectionError:  # the client hung up
            return web.Response()
        finally:
            self.in_flight -= 1

    async def _chat(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        self.bodies.append(body)
        self.headers.append(request.headers)
        self.urls.append(request.path_qs)
        fault = self._fault(raw)
        self.faulted[fault] += 1
        if self.capacity is not None and self.in_flight > self.capacity:
            return refusal(429, "too many requests in flight")
        if self.latency:
            await asyncio.sleep(self.latency)
        if self.models is not None and body["model"] not in self.models:
            return refusal(404, f"The model `{body['model']}` does not exist.")
        said = self.reply(body) if callable(self.reply) else self.reply
        if isinstance(said, web.Response):
            return said
        if isinstance(said, str):
            said = completion(said, body["model"], " ".join(message["content"] for message in body["messages"]))
        return web.json_response(said) if fault == "ok" else await FAULTS[fault](self, request, said)

    def _fault(self, raw: bytes) -> str:
        if not isinstance(self.faults, Mapping):
            return self.faults[self.requests - 1] if self.requests <= len(self.faults) else "ok"
        if not self.faults:
            return "ok"
        prompt = hashlib.blake2b(raw, digest_size=8).digest()
        self._asked[prompt] += 1
        drawn = random.Random(f"{self.seed} {prompt.hex()} {self._asked[prompt]}").random()
        for name, share in self.faults.items():
            drawn -= share
            if drawn < 0:
                return name
        return "ok"


def refusal(status: int, message: str, **headers: str) -> web.Response:
    """An error as servers send it; an underscore in a header's name stands for a dash."""
    error = {"error": {"message": message, "type": "fake", "code": status}}
    return web.json_response(error, status=status, headers={name.replace("_", "-"): headers[name] for name in headers})


def _status(status: int, message: str = "as told") -> Any:
    async def act(server: FakeEndpoint, request: web.BaseRequest, said: dict[str, Any]) -> web.StreamResponse:
        return refusal(status, message)

    return act


def _body(text: Callable[[str], str], content_type: str = "application/json", status: int = 200) -> Any:
    async def act(server: FakeEndpoint, request: web.BaseRequest, said: dict[str, Any]) -> web.StreamResponse:
        return web.Response(text=text(json.dumps(said)), content_type=content_type, status=status)

    return act


def _altered(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Any:
    async def act(server: FakeEndpoint, request: web.BaseRequest, said: dict[str, Any]) -> web.StreamResponse:
        change(said, said["choices"][0]["message"])
        return web.json_response(said)

    return act


async def _after(server: FakeEndpoint, request: web.BaseRequest, said: dict[str, Any]) -> web.StreamResponse:
    return refusal(429, "slow down", Retry_After=f"{server.retry_after:g}")


async def _date(server: FakeEndpoint, request: web.BaseRequest, said: dict[str, Any]) -> web.StreamResponse:
    now = time.time() - 7200  # a server whose clock is two hours slow
    dates = {"Date": email.utils.formatdate(now, usegmt=True)}
    return refusal(429, "later", Retry_After=email.utils.formatdate(now + server.retry_after, usegmt=True), **dates)


async def _cut(server: FakeEndpoint, request: web.BaseRequest, said: dict[str, Any]) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _no_http(server: FakeEndpoint, request: web.BaseRequest, said: dict[str, Any]) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
        request.transport.close()
    return web.Response()


async def _no_gzip(server: FakeEndpoint, request: web.BaseRequest, said: dict[str, Any]) -> web.StreamResponse:
    return web.Response(body=b"not gzip", headers={"content-encoding": "gzip"})


async def _cut_body(server: FakeEndpoint, request: web.BaseRequest, said: dict[str, Any]) -> web.StreamResponse:
    whole = json.dumps(said).encode()
    response = web.StreamResponse(headers={"content-type": "application/json", "content-length": str(len(whole))})
    await response.prepare(request)
    await response.write(whole[: len(whole) // 2])
    return await _cut(server, request, said)


async def _slow(server: FakeEndpoint, request: web.BaseRequest, said: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(SLOW_S)
    return web.json_response(said)


def _endless(pause: float, piece: bytes) -> Any:
    async def act(server: FakeEndpoint, request: web.BaseRequest, said: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        stop = time.monotonic() + SLOW_S
        while time.monotonic() < stop:
            await response.write(piece)
            await asyncio.sleep(pause)
        return response

    return act


FAULTS: dict[str, Any] = {  # name: an async function of (server, request, the answer it would have given)
    "400": _status(400, "This model's maximum context length is 4096 tokens."),
    "401": _status(401),
    "403": _status(403),
    "404": _status(404),
    "422": _status(422),
    "429": _status(429),
    "429-after": _after,
    "429-date": _date,
    "500": _status(500),
    "503": _status(503),
    "502-html": _body(lambda said: "<html><h1>502 Bad Gateway</h1></html>", "text/html", 502),
    "cut": _cut,
    "cut-body": _cut_body,
    "slow": _slow,
    "endless": _endless(0.01, b" "),
    "flood": _endless(0.0, b" " * 2**20),
    "no-http": _no_http,
    "no-gzip": _no_gzip,
    "nothing": _body(lambda said: ""),
    "half-json": _body(lambda said: said[: len(said) // 2]),
    "html": _body(lambda said: "<!DOCTYPE html><title>Sign in</title>" + "<p>" * 1000, "text/html"),
    "wrong-type": _body(lambda said: said, "text/plain"),
    "deep": _body(lambda said: "[" * 100_000),
    "list": _body(lambda said: "[1, 2]"),
    "error-200": _body(lambda said: '{"error": {"message": "upstream failed", "code": 502}}'),
    "empty": _altered(lambda said, message: said.update(choices=[])),
    "null": _altered(lambda said, message: message.update(content=None)),
    "surrogate": _altered(lambda said, message: message.update(content="\ud800")),
    "number": _altered(lambda said, message: message.update(content=7)),
    "reasoning": _altered(lambda said, message: message.update(content=None, reasoning="Let me see.")),
    "length": _altered(lambda said, message: said["choices"][0].update(finish_reason="length")),
    "no-usage": _altered(lambda said, message: said.pop("usage")),
    "huge": _altered(lambda said, message: message.update(content="x" * 2**20)),
    "renamed": _altered(lambda said, message: said.update(model="another")),
}


def scripted() -> Reply:
    """A reply that answers our agents' prompts as `scripted_user` does: a valid ranking, or a short profile."""
    from starec_agents.llm.scripted import scripted_user

    answer = scripted_user()
    return lambda body: answer(body["messages"], {**body, **({"schema": {}} if "response_format" in body else {})})
