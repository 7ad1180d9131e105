"""A chat model behind any OpenAI-compatible server (vLLM, llama.cpp, a hosted one), or behind several of them.

Requests go out over aiohttp. What stands here is what a run of a day needs beyond that: one retry loop that obeys the
servers, a limit of requests in flight that follows what each bears, a failing server left alone while others answer,
and an EndpointError with a plain reason for all that goes wrong.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from starec_agents.llm.base import Completion, Message
from starec_agents.llm.cache import AnswerCache
from starec_agents.llm.faults import EXPECTED, Fault, understand
from starec_agents.llm.pool import Limit, NoServer, Pool
from starec_agents.llm.redaction import read_address
from starec_agents.llm.server import Server, allow_files
from starec_env.errors import EndpointError, InvalidOption, unknown
from starec_env.types import Endpoint, Usage

FIRST_WAIT_S = 0.5
"""Wait before the first retry; each later one is 4 times as long, give or take a quarter, up to MAX_WAIT_S.

Five retries so span 77 to 128 s: enough for a server that is killed, started again and loads its weights.
"""
MAX_WAIT_S = 60.0
"""Longest wait before a request is sent again, also where the server asks for more."""
LIMIT_WAIT_S = 15.0
"""Longest wait after a rate limit's refusal that doesn't say how long to wait; the first is FIRST_WAIT_S."""
DOWN_S = 5.0
"""How long servers that outlasted two calls' patience are left alone; requests in that time fail at once."""
FAULTS_IN_A_ROW = 3
"""Passing faults (5xx, time-outs, garbled answers) in a row that take a server out of use where there is another."""
PROBE_S = 30.0
"""Longest wait between two tests of a server that is out of use; DOWN_S while no other is in use."""
STEADY = 100
"""Answers after which a server's earlier times out of use are forgotten."""
MOST_TOLD = 3
"""How often it is logged that a server goes out of use, before it has been steady again."""
MOST_NAMES = 10
"""How many different names of the answering model are counted apart."""

_OPTIONS = ("temperature", "top_p", "max_tokens", "seed", "stop", "logprobs", "schema")
_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_open_sessions: dict[int, AsyncGenerator[_Session, None]] = {}
"""What closes sessions at the end of their event loops, for models that are dropped without `aclose`."""


@dataclass(slots=True)
class _Session:
    """What belongs to one event loop."""

    servers: list[Server]
    pool: Pool
    by_limit: Mapping[Limit, Server]
    in_use: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a server is taken into use again."""
    probes: set[asyncio.Task[None]] = field(default_factory=set)
    asking: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    """Held while the answer to a request is had, by the cache's key."""
    closed: bool = False


@dataclass(slots=True)
class _Call:
    """What one call has been through."""

    retries: int
    """Most retries after faults that can pass."""
    answers: int
    """The pool's when it began."""
    started: float = 0.0
    attempt: int = 0
    limited: int = 0
    limited_at: float = 0.0
    """When a rate limit first refused it, in the event loop's time."""
    failed: dict[Limit, Fault] = field(default_factory=dict)
    """Its faults since the last wait, and refusals that won't pass, by server."""


class OpenAIChat:
    """A model on one OpenAI-compatible server, or on several.

    Requests in flight are bounded by a limit a server that adapts (`pool.Limit`), in the order of the calls; the least
    busy server gets the next. A fault that can pass (connection, time-out, 5xx; once, a garbled answer) is tried on
    another server at once, and when all have been tried, again after a growing jittered wait, `max_retries` times.
    Waiting for rate limits (429) costs no retry, but at most `Endpoint.max_wait_s` in all; what the server advises is
    obeyed, up to a minute each time. What can't pass (a wrong key or model) fails at once if no other server has it.

    A server of several that is unreachable, refuses the key or the model, or fails three times in a row, is taken out
    of use, which is logged once; requests of one token of our own then find out when it is well again. So is one that
    refuses a request that another answers. While none is in use, calls wait as long as their retries would last.

    One object serves any number of event loops, each with its own connections, closed when the loop ends or by
    `aclose`. Keys are read from their environment variables when the connections are made, and shown in no error, log
    or answer. HTTP_PROXY, HTTPS_PROXY, ALL_PROXY (http proxies) and NO_PROXY are obeyed; redirects to other hosts
    aren't followed, and cookies not kept.

    Args:
        endpoint: The server and how to ask it, or several of the same model and sampling. `extra_body` is merged into
            each request last, and a None in it removes a field: `{"max_tokens": None, "max_completion_tokens": 500}`.
            Its response_format goes with calls that have a schema, in place of json_schema.
        cache_dir: A folder to keep answers in, so that the same request is never paid twice. Only requests at
            temperature 0 or with a seed are kept or looked up (others are meant to vary), and never a failure. A hit
            costs no request and adds nothing to `usage`, but the Completion shows what it cost when it was made.

    Attributes:
        endpoints: The servers; `endpoint` is the first.
        retries: Requests that were sent again.
        cache_hits: Answers that came from the cache.
        models: Answers by the model name that the server gave. More than one name means that the model was changed
            under the run; that is logged as a warning, too. From the eleventh on they are counted as "others".

    Raises:
        InvalidOption: A base_url isn't a URL, or the endpoints are none, or not of one model and sampling.
    """

    def __init__(self, endpoint: Endpoint | Sequence[Endpoint], *, cache_dir: str | Path | None = None) -> None:
        self.endpoints = [endpoint] if isinstance(endpoint, Endpoint) else list(endpoint)
        if len({(one.model, one.temperature, one.top_p, one.max_tokens) for one in self.endpoints}) != 1:
            raise InvalidOption("give one endpoint or more, all of the same model, temperature, top_p and max_tokens")
        addresses = [read_address(one.base_url) for one in self.endpoints]
        for address in addresses:
            if address.with_path:
                _log.warning("base_url %s: /chat/completions is added to it, so leave that out", address.shown)
        self._where = ", ".join(address.shown for address in addresses)
        self.endpoint = self.endpoints[0]
        self.retries = self.cache_hits = 0
        self.models: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._cache = AnswerCache(cache_dir) if cache_dir is not None else None
        self._cache_dir = cache_dir
        self._changes: list[list[str]] = [[] for _ in self.endpoints]
        self._out: dict[int, EndpointError] = {}
        self._sessions: dict[asyncio.AbstractEventLoop, _Session] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # To another process goes what makes it, without its connections and counts.
        return partial(type(self), cache_dir=self._cache_dir), (self.endpoints,)

    def __repr__(self) -> str:
        return f"OpenAIChat({self.endpoint.model!r} at {self._where})"

    @property
    def requests(self) -> int:
        """Requests sent: retries, tests of servers and lists of models included."""
        return self._counts["requests"]

    @property
    def usage(self) -> Usage:
        """Tokens of all the answers so far."""
        return Usage(**self._tokens)

    @property
    def in_flight(self) -> int:
        """Requests that the servers now work on."""
        return sum(session.pool.in_flight for session in self._sessions.values())

    @property
    def stepped_down(self) -> dict[str, list[str]]:
        """What each server was found to refuse, by its base_url (as it may be shown); see `refusals`."""
        shown = [read_address(one.base_url).shown for one in self.endpoints]
        return {where: list(names) for where, names in zip(shown, self._changes, strict=True) if names}

    async def complete(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        """Answer a prompt; see ChatModel.

        temperature, top_p and max_tokens default to the endpoint's and are always sent, as servers have defaults of
        their own. `logprobs=True` also asks for vLLM's token ids (`extra_body={"return_token_ids": None}` doesn't,
        for servers that refuse unknown fields). An answer that is all thought has the text "".

        Raises:
            EndpointError: No usable answer could be had.
            UnknownName: A sampling option doesn't exist.
        """
        for name in sampling:
            if name not in _OPTIONS:
                raise unknown("sampling option", name, _OPTIONS)
        if self._cache is None:
            return await self._ask(messages, sampling)
        body = _body(self.endpoint, messages, sampling)
        if body.get("temperature") != 0 and "seed" not in body:
            return await self._ask(messages, sampling)
        urls = [one.base_url for one in self.endpoints]
        kept = json.dumps([urls[0] if len(urls) == 1 else sorted(urls), body], sort_keys=True)
        return await self._cached(blake2b(kept.encode(), digest_size=20).hexdigest(), messages, sampling)

    async def check(self) -> list[str]:
        """Make sure that a server answers, takes the key and has the model: cheap, for the start of a long run.

        A model that isn't in a server's list is tried with one token: some servers list less than they serve. Of
        several servers, those that fail are left out, with a warning each.

        Returns:
            The names of the models that the servers list.

        Raises:
            EndpointError: No server can be used: with the reason, and the models that there are if this one isn't.
        """
        session = await self._session()
        found = await asyncio.gather(*(self._check(server) for server in session.servers))
        faults = [one for one in found if isinstance(one, EndpointError)]
        if len(faults) == len(found):
            raise _all_fail(session.servers, faults)
        for server, one in zip(session.servers, found, strict=True):
            if isinstance(one, EndpointError):
                self._take_out(session, server, one)
        return list(dict.fromkeys(name for names in found if isinstance(names, list) for name in names))

    async def aclose(self) -> None:
        """Close the running event loop's connections; a later call opens others."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await _open_sessions[id(session)].aclose()

    async def __aenter__(self) -> OpenAIChat:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def _cached(self, key: str, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Completion:
        assert self._cache
        asking = (await self._session()).asking
        async with asking.setdefault(key, asyncio.Lock()):  # equal calls at once are one request
            if answer := self._cache.get(key):
                self.cache_hits += 1
                return answer
            answer = await self._ask(messages, sampling)
            self._cache.put(key, answer)
            return answer

    async def _ask(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Completion:
        def ask(server: Server, started: float) -> Awaitable[Completion]:
            return server.chat(_body(server.endpoint, messages, sampling), started)

        answer = await self._send(ask)
        self._tokens.update(
            prompt_tokens=answer.usage.prompt_tokens,
            completion_tokens=answer.usage.completion_tokens,
            cached_tokens=answer.usage.cached_tokens,
        )
        self._note_model(answer.model)
        return answer

    async def _send(self, ask: Callable[[Server, float], Awaitable[_T]]) -> _T:
        """Send a request until it is answered, its fault can't pass, or its patience is at an end."""
        session = await self._session()
        pool = session.pool
        call = _Call(self.endpoint.max_retries, pool.answers)
        while True:
            limit, ticket = await self._place(session, call)
            server = session.by_limit[limit]
            call.started = call.started or time.perf_counter()
            try:
                answer = await ask(server, call.started)
            except EXPECTED as error:
                fault = understand(error, server)
                pause = None if fault.pause is None else min(fault.pause, MAX_WAIT_S)
                pool.release((limit, ticket), congested=fault.congested, pause=pause)
            except BaseException:  # cancellation
                pool.release((limit, ticket))
                raise
            else:
                pool.release((limit, ticket), answered=True)
                self._note_answer(session, server, call)
                return answer
            await self._after(session, server, call, await server.explained(fault))
            self.retries += 1

    async def _place(self, session: _Session, call: _Call) -> tuple[Limit, int]:
        """A place at a server that hasn't just failed this call; waits while none is in use."""
        while True:
            try:
                return await session.pool.acquire(again=call.started > 0, avoid=call.failed)
            except NoServer:
                error = _all_fail(session.servers, [server.cause for server in session.servers])
                if session.closed or all(server.cause.kind in _LASTING for server in session.servers):
                    raise error from None
                self._use_up(session, call, error)
            session.in_use.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(session.in_use.wait(), _wait(call.attempt))

    async def _after(self, session: _Session, server: Server, call: _Call, fault: Fault) -> None:
        """After a fault: return at once if another server can be tried, wait if that may help, else raise."""
        if session.closed or fault.whose == "caller":
            raise fault.error
        self._note_fault(session, server, fault)
        call.failed[server.limit] = fault
        if any(limit.usable and limit not in call.failed for limit in session.pool.limits):
            return
        passing = [one for one in call.failed.values() if one.retries]
        if not passing:
            raise next((one.error for one in call.failed.values() if one.whose == "request"), fault.error)
        if all(one.limited for one in passing):
            wait = self._limit_wait(session, call, fault)
        else:
            last = next(one for one in reversed(passing) if not one.limited)
            self._use_up(session, call, last.error, last.retries)
            wait = max(_wait(call.attempt), _advised(last))
        call.failed = {limit: one for limit, one in call.failed.items() if not one.retries or limit is server.limit}
        await asyncio.sleep(wait)

    def _limit_wait(self, session: _Session, call: _Call, fault: Fault) -> float:
        """Seconds to wait for a rate limit; raises if the call has waited too long for limits."""
        now = asyncio.get_running_loop().time()
        call.limited_at = call.limited_at or now
        if now - call.limited_at > self.endpoint.max_wait_s:
            text = f"{fault.error}; it waited for rate limits for max_wait_s={self.endpoint.max_wait_s:g} and gives up"
            error = EndpointError(text, fault.error.kind)
            session.pool.give_up(error, call.answers, DOWN_S)
            raise error
        call.limited += 1
        own = min(FIRST_WAIT_S * 2.0 ** min(call.limited - 1, 20), LIMIT_WAIT_S) * random.uniform(0.75, 1.25)
        return max(own, _advised(fault))

    def _use_up(self, session: _Session, call: _Call, error: EndpointError, retries: float = float("inf")) -> None:
        """Count one retry more; raise the error if there is none left."""
        if call.attempt >= min(call.retries, retries):
            if call.attempt and retries > 1:
                session.pool.give_up(error, call.answers, DOWN_S)
            raise error
        call.attempt += 1

    def _note_answer(self, session: _Session, server: Server, call: _Call) -> None:
        server.faults = 0
        if server.outs:
            server.steady += 1
            server.outs = 0 if server.steady >= STEADY else server.outs
        for limit, fault in call.failed.items():  # what another server answers isn't a bad request
            if fault.whose == "request" and limit is not server.limit:
                self._take_out(session, session.by_limit[limit], fault.error)

    def _note_fault(self, session: _Session, server: Server, fault: Fault) -> None:
        if fault.limited or fault.whose == "request":
            return
        server.faults += 1
        if fault.down or server.faults >= FAULTS_IN_A_ROW:
            self._take_out(session, server, fault.error)

    def _take_out(self, session: _Session, server: Server, cause: EndpointError) -> None:
        """Take a server out of use until it answers a test, if there are others at all."""
        if len(session.servers) == 1 or not server.limit.usable or session.closed:
            return
        number = session.servers.index(server)
        if number not in self._out and server.outs < MOST_TOLD:
            _log.warning("a server is out of use until it answers a test: %s", cause)
        server.cause = self._out[number] = cause
        server.outs, server.steady = server.outs + 1, 0
        session.pool.use(server.limit, False)
        probe = asyncio.get_running_loop().create_task(self._probe(session, server))
        session.probes.add(probe)
        probe.add_done_callback(session.probes.discard)

    async def _probe(self, session: _Session, server: Server) -> None:
        """Test a server that is out of use with requests of our own, after growing waits, until it answers one."""
        tests = server.outs
        while True:
            idle = not any(limit.usable for limit in session.pool.limits)
            wait = min(FIRST_WAIT_S * 2.0 ** min(tests, 20), DOWN_S if idle else PROBE_S)
            await asyncio.sleep(wait * random.uniform(0.75, 1.25))
            tests += 1
            try:
                await server.chat(_test(server.endpoint), time.perf_counter())
            except EXPECTED as error:
                server.cause = (await server.explained(understand(error, server))).error
                continue
            if server.outs <= MOST_TOLD:
                _log.warning("%s answers again and is back in use", server.where)
            server.faults = 0
            self._out.pop(session.servers.index(server), None)
            session.pool.use(server.limit, True)
            session.in_use.set()
            return

    async def _check(self, server: Server) -> list[str] | EndpointError:
        for attempt in range(3):
            try:
                return await server.check(_test(server.endpoint))
            except EXPECTED as error:
                fault = await server.explained(understand(error, server))
            if attempt >= min(2, self.endpoint.max_retries, fault.retries):
                break
            await asyncio.sleep(max(_wait(attempt + 1), _advised(fault)))
        return fault.error

    async def _session(self) -> _Session:
        loop = asyncio.get_running_loop()
        if session := self._sessions.get(loop):
            return session
        learned = [32.0] * len(self.endpoints)
        for other in [other for other in self._sessions if other.is_closed()]:
            learned = [server.limit.limit for server in self._sessions.pop(other).servers]
        keeper = _open(zip(self.endpoints, self._changes, learned, strict=True), self._counts)
        session = await anext(keeper)  # doesn't give way to other tasks, so there is no second session
        _open_sessions[id(session)] = keeper
        self._sessions[loop] = session
        for number, cause in list(self._out.items()):
            self._take_out(session, session.servers[number], cause)
        return session

    def _note_model(self, name: str) -> None:
        if name not in self.models and len(self.models) >= MOST_NAMES:
            name = "others"
        if self.models and name not in self.models:
            before = next(reversed(self.models))
            _log.warning("%s now answers as %r, before as %s", self._where, name, before)
        self.models[name] += 1


Balanced = OpenAIChat
"""The first edition's name of a client of several servers; kept for one release."""

_LASTING = ("auth", "not_found", "bad_request")
"""Kinds of faults that don't pass by waiting."""


async def _open(
    parts: Iterable[tuple[Endpoint, list[str], float]], counts: Counter[str]
) -> AsyncGenerator[_Session, None]:
    """Yield a session, and close it when the generator is closed.

    An event loop that ends closes the generators begun in it (asyncio.run does so): the only moment when connections
    that their user forgot to close still can be.
    """
    servers = [Server(endpoint, counts, changes, learned) for endpoint, changes, learned in parts]
    for server in servers:
        server.open()
    allow_files(sum(server.endpoint.concurrency for server in servers))
    pool = Pool([server.limit for server in servers])
    session = _Session(servers, pool, {server.limit: server for server in servers})
    try:
        yield session
    finally:
        session.closed = True
        _open_sessions.pop(id(session), None)
        where = ", ".join(server.where for server in servers)
        pool.fail_queue(lambda: EndpointError(f"the client of {where} was closed while a request waited", "connection"))
        for probe in list(session.probes):
            probe.cancel()
        for server in servers:
            await server.http.close()


def _body(endpoint: Endpoint, messages: Sequence[Message], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The request's JSON."""
    given = {name: value for name, value in sampling.items() if value is not None}
    schema, logprobs = given.pop("schema", None), given.pop("logprobs", False)
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [dict(message) for message in messages],
        "temperature": endpoint.temperature,
        "top_p": endpoint.top_p,
        "max_tokens": endpoint.max_tokens,
        **given,
    }
    if logprobs:
        body |= {"logprobs": True, "return_token_ids": True}
    body |= endpoint.extra_body
    if schema is None:
        body.pop("response_format", None)
    elif "response_format" not in body:
        wrapped = {"name": "answer", "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": wrapped}
    return {name: value for name, value in body.items() if value is not None}


def _test(endpoint: Endpoint) -> dict[str, Any]:
    """A request of one token, to find out whether a server answers at all."""
    body = _body(endpoint, [{"role": "user", "content": "Hi"}], {})
    return {**body, **{name: 1 for name in ("max_tokens", "max_completion_tokens") if name in body}}


def _wait(number: int) -> float:
    """Seconds before the retry of that number, 1-based."""
    return min(FIRST_WAIT_S * 4.0 ** max(number - 1, 0), MAX_WAIT_S) * random.uniform(0.75, 1.25)


def _advised(fault: Fault) -> float:
    """Seconds that a server asked to wait, as far as they are waited."""
    return min(fault.pause or 0.0, MAX_WAIT_S) * random.uniform(1.0, 1.1)


def _all_fail(servers: Sequence[Server], causes: Sequence[EndpointError]) -> EndpointError:
    if len(servers) == 1:
        return EndpointError(str(causes[0]), causes[0].kind)
    return EndpointError(f"none of {len(servers)} servers can be used: {'; '.join(map(str, causes))}", causes[0].kind)
