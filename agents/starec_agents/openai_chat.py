"""A chat model behind any OpenAI-compatible server (vLLM, llama.cpp, a hosted one).

The openai package sends the requests, over aiohttp: with its default transport, CPU time a request doubles between 64
and 512 in flight. What stands here is what a run of a day needs beyond that: retries that obey the server, a limit of
requests in flight that follows what the server bears, and an EndpointError with a plain reason for all that goes wrong.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import openai

from starec_agents.cache import AnswerCache
from starec_agents.limiter import Pool
from starec_agents.llm import Completion, Message
from starec_agents.wire import EXPECTED, public, read_completion, read_models, understand
from starec_env.errors import EndpointError, InvalidOption, unknown
from starec_env.types import Endpoint, Usage

FIRST_WAIT_S = 0.5
"""Wait before the first retry; each later one is 4 times as long, give or take a quarter, up to MAX_WAIT_S.

Five retries so span 77 to 128 s: enough for a server that is killed, started again and loads its weights.
"""
MAX_WAIT_S = 60.0
"""Longest wait before a retry, also where the server's Retry-After asks for more."""
CONNECT_S = 10.0
"""Longest wait for a connection."""
DOWN_S = 5.0
"""How long an endpoint that outlasted two calls' patience is left alone; requests in that time fail at once."""
MAX_BODY = 32 * 2**20
"""Longest answer that is read, in bytes."""
KEEP_ALIVE_S = 4.0
"""How long an idle connection is kept: less than uvicorn's (so vLLM's) 5 s, which would close it under a request."""

_OPTIONS = ("temperature", "top_p", "max_tokens", "seed", "stop", "logprobs", "schema")
_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_open_clients: dict[openai.AsyncOpenAI, AsyncGenerator[openai.AsyncOpenAI, None]] = {}
"""Clients and what closes them at the end of their event loops, for models that are dropped without `aclose`."""


@dataclass(frozen=True, slots=True)
class _Session:
    """What belongs to one event loop."""

    client: openai.AsyncOpenAI
    pool: Pool
    keeper: AsyncGenerator[openai.AsyncOpenAI, None]
    key: str | None = field(repr=False)


class OpenAIChat:
    """A model on an OpenAI-compatible server.

    Requests in flight are bounded by one adaptive pool (`limiter.Pool`), in the order of the calls. Faults that can
    pass (connection, time-out, 429, 5xx; once, a garbled answer) are retried after growing jittered waits, or after
    the server's Retry-After, which the whole pool then obeys; the others fail at once. So one call takes at most
    (max_retries + 1) * timeout_s of asking and max_retries * 75 s of waiting, its turns in the queue apart. When two
    calls have used that up and none was answered meanwhile, the whole queue fails with them.

    One object serves any number of event loops, with a client and a pool each, closed when the loop ends or by
    `aclose`. The key is read from its environment variable when a client is made, and shown in no error or repr.

    Args:
        endpoint: The server and how to ask it. `extra_body` is merged into each request last, and a None in it removes
            a field: `{"max_tokens": None, "max_completion_tokens": 500}` for models that want it so.
        cache_dir: A folder to keep answers in, so that the same request is never paid twice. Only requests at
            temperature 0 or with a seed are kept or looked up (others are meant to vary), and never a failure. A hit
            costs no request and adds nothing to `usage`, but the Completion shows what it cost when it was made.

    Attributes:
        requests: Requests sent, retries included.
        retries: How many of them were retries.
        cache_hits: Answers that came from the cache.
        models: Answers by the model name that the server gave. More than one name means that the model was changed
            under the run; that is logged as a warning, too.

    Raises:
        InvalidOption: base_url isn't a URL.
    """

    def __init__(self, endpoint: Endpoint, *, cache_dir: str | Path | None = None) -> None:
        self._where = public(endpoint.base_url)
        if not self._where.startswith(("http://", "https://")) or self._where.endswith("//"):
            raise InvalidOption(f"base_url={endpoint.base_url!r} isn't a URL like 'http://localhost:8000/v1'")
        self.endpoint = endpoint
        self.requests = self.retries = self.cache_hits = 0
        self.models: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._cache = AnswerCache(cache_dir) if cache_dir is not None else None
        self._cache_dir = cache_dir
        self._sessions: dict[asyncio.AbstractEventLoop, _Session] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # To another process goes what makes it, without its connections and counts.
        return partial(type(self), cache_dir=self._cache_dir), (self.endpoint,)

    def __repr__(self) -> str:
        return f"OpenAIChat({self.endpoint.model!r} at {self._where})"

    @property
    def usage(self) -> Usage:
        """Tokens of all the answers so far."""
        return Usage(**self._tokens)

    @property
    def in_flight(self) -> int:
        """Requests that the server now works on."""
        return sum(session.pool.in_flight for session in self._sessions.values())

    async def complete(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        """Answer a prompt; see ChatModel.

        temperature, top_p and max_tokens default to the endpoint's and are always sent, as servers have defaults of
        their own. `logprobs=True` also asks for vLLM's token ids (`extra_body={"return_token_ids": None}` doesn't,
        for servers that refuse unknown fields). An answer that is all thought has the text "".

        Raises:
            EndpointError: No usable answer could be had.
            UnknownName: A sampling option doesn't exist.
        """
        body = self._body(messages, sampling)
        if self._cache is None or (body.get("temperature") != 0 and "seed" not in body):
            return await self._ask(body, self.endpoint.max_retries)
        kept = json.dumps([self.endpoint.base_url, body], sort_keys=True)
        key = blake2b(kept.encode(), digest_size=20).hexdigest()
        answer = self._cache.get(key)
        if answer is None:
            answer = await self._ask(body, self.endpoint.max_retries)
            self._cache.put(key, answer)
        else:
            self.cache_hits += 1
        return answer

    async def check(self) -> list[str]:
        """Make sure that the endpoint answers, takes the key and has the model: cheap, for the start of a long run.

        A model that isn't in the server's list is tried with one token: some servers list less than they serve.

        Returns:
            The names of the models that the server lists.

        Raises:
            EndpointError: With the reason, and the models that the server does list if this one isn't among them.
        """
        retries = min(2, self.endpoint.max_retries)
        try:
            models = await self._persist(self._list, retries)
        except EndpointError as error:
            if error.kind not in ("not_found", "bad_request"):  # some servers have no such list
                raise
            models = []
        if self.endpoint.model not in models:
            await self._ask(self._body([{"role": "user", "content": "Hi"}], {"max_tokens": 1}), retries)
        return models

    async def aclose(self) -> None:
        """Close the running event loop's client; a later call opens another."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            session.pool.fail_queue(EndpointError(f"{self!r} was closed while a request waited", "connection"))
            await session.keeper.aclose()

    async def __aenter__(self) -> OpenAIChat:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _body(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> dict[str, Any]:
        for name in sampling:
            if name not in _OPTIONS:
                raise unknown("sampling option", name, _OPTIONS)
        given = {name: value for name, value in sampling.items() if value is not None}
        schema, logprobs = given.pop("schema", None), given.pop("logprobs", False)
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": [dict(message) for message in messages],
            "temperature": self.endpoint.temperature,
            "top_p": self.endpoint.top_p,
            "max_tokens": self.endpoint.max_tokens,
            **given,
        }
        if logprobs:
            body |= {"logprobs": True, "return_token_ids": True}
        if schema is not None:
            wrapped = {"name": "answer", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": wrapped}
        body |= self.endpoint.extra_body
        return {name: value for name, value in body.items() if value is not None}

    async def _ask(self, body: dict[str, Any], retries: int) -> Completion:
        started = time.perf_counter()

        async def post(client: openai.AsyncOpenAI) -> Completion:
            # The raw response: openai's own types cost as much CPU again, and take half an answer for a whole one.
            response = await client.post("/chat/completions", cast_to=httpx2.Response, body=body)
            return read_completion(response, time.perf_counter() - started)

        try:
            answer = await self._persist(post, retries)
        except EndpointError as error:
            if error.kind != "not_found":
                raise
            raise EndpointError(f"{error}; {await self._what_is_served()}", "not_found") from None
        self._tokens.update(answer.usage.model_dump())
        if self.models and answer.model not in self.models:
            _log.warning("%s now answers as %r, before as %s", self._where, answer.model, ", ".join(self.models))
        self.models[answer.model] += 1
        return answer

    async def _persist(self, request: Callable[[openai.AsyncOpenAI], Awaitable[_T]], retries: int) -> _T:
        """Send a request until it is answered, its fault can't pass, or its retries are used up."""
        session = await self._session()
        pool, attempt = session.pool, 0
        answers_before = pool.answers
        while True:
            ticket = await pool.acquire(again=attempt > 0)
            try:
                self.requests += 1
                self.retries += attempt > 0
                async with asyncio.timeout(self.endpoint.timeout_s):
                    answer = await request(session.client)
            except EXPECTED as error:
                fault = understand(error, self.endpoint, session.key)
                pause = None if fault.pause is None else min(fault.pause, MAX_WAIT_S)
                pool.release(ticket, congested=fault.congested, pause=pause)
            except BaseException:  # cancellation
                pool.release(ticket)
                raise
            else:
                pool.release(ticket, answered=True)
                return answer
            if attempt >= min(retries, fault.retries):
                if attempt and math.isinf(fault.retries):
                    pool.give_up(fault.error, answers_before, DOWN_S)
                raise fault.error
            wait = min(FIRST_WAIT_S * 4.0**attempt, MAX_WAIT_S) * random.uniform(0.75, 1.25)
            attempt += 1
            await asyncio.sleep(max(wait, (pause or 0.0) * random.uniform(1.0, 1.25)))

    async def _session(self) -> _Session:
        loop = asyncio.get_running_loop()
        if loop not in self._sessions:
            learned = 32.0
            for other in [other for other in self._sessions if other.is_closed()]:
                learned = self._sessions.pop(other).pool.limit
            key = _read_key(self.endpoint)
            keeper = _open(self.endpoint, key)
            client = await anext(keeper)  # doesn't give way to other tasks, so there is no second session
            _open_clients[client] = keeper
            self._sessions[loop] = _Session(client, Pool(self.endpoint.concurrency, learned), keeper, key)
        return self._sessions[loop]

    async def _list(self, client: openai.AsyncOpenAI) -> list[str]:
        return read_models(await client.get("/models", cast_to=httpx2.Response))

    async def _what_is_served(self) -> str:
        try:
            models = await self._persist(self._list, 0)
        except EndpointError:
            return "nor does it list its models: does base_url lack its /v1?"
        if self.endpoint.model in models:
            return "yet it lists that model: perhaps one that can't chat"
        return unknown("model", self.endpoint.model, models).args[0] if models else "it lists no model at all"


async def _open(endpoint: Endpoint, key: str | None) -> AsyncGenerator[openai.AsyncOpenAI, None]:
    """Yield a client, and close it when the generator is closed.

    An event loop that ends closes the generators begun in it (asyncio.run does so): the only moment when a client that
    its user forgot to close still can be.
    """
    client = openai.AsyncOpenAI(
        api_key=key or "EMPTY",
        base_url=endpoint.base_url,
        max_retries=0,
        timeout=httpx2.Timeout(None, connect=min(CONNECT_S, endpoint.timeout_s)),
        http_client=openai.DefaultAioHttpClient(
            limits=httpx2.Limits(max_connections=endpoint.concurrency, keepalive_expiry=KEEP_ALIVE_S),
            headers={"accept-encoding": "identity"},  # so that MAX_BODY holds; answers are too short to gain by it
            event_hooks={"response": [_bound]},
        ),
    )
    try:
        yield client
    finally:
        _open_clients.pop(client, None)
        await client.close()


async def _bound(response: httpx2.Response) -> None:
    # A length that is announced is also kept to, by aiohttp; only what is too long, or says no length, needs a look.
    length = response.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > MAX_BODY:
        response.stream = _Bounded(response.stream, public(str(response.request.url)))


class _Bounded(httpx2.AsyncByteStream):
    """A body that is cut off with an error once it exceeds MAX_BODY."""

    def __init__(self, stream: Any, where: str) -> None:
        self._stream, self._where = stream, where

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > MAX_BODY:
                raise EndpointError(f"{self._where} gave an answer of more than {MAX_BODY:,} bytes", "bad_answer")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def _read_key(endpoint: Endpoint) -> str | None:
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise EndpointError(f"the key in ${endpoint.api_key_env} has characters that can't be sent", "auth")
    return key or None
