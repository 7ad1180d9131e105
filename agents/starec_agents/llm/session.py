"""The servers of one client as one event loop asks them: the retry loop, and which of them are in use."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import WeakValueDictionary

from starec_agents.llm.faults import EXPECTED, Fault, understand
from starec_agents.llm.pool import Limit, NoServer, Pool
from starec_agents.llm.server import Server, allow_files, trial_body
from starec_env.errors import EndpointError

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
MOST_LOGGED = 3
"""How often it is logged that a server goes out of use, before it has been steady again."""

_LASTING = ("auth", "not_found", "bad_request")
"""Kinds of faults that don't pass by waiting."""
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(slots=True)
class _Call:
    """What one call has been through."""

    answers: int
    """The pool's when it began."""
    started: float = 0.0
    """When its first attempt was sent, by time.perf_counter."""
    attempt: int = 0
    """Retries used up."""
    limited: int = 0
    """Refusals by rate limits."""
    limited_at: float = 0.0
    """When the first of them came, in the event loop's time."""
    failed: dict[Limit, Fault] = field(default_factory=dict)
    """Its faults since the last wait, and refusals that won't pass, by server."""


class Session:
    """The servers, and a place in their queue for each call; it belongs to one event loop.

    Args:
        servers: One or more.
        out: Number of a server -> why it is out of use; shared among sessions, so that a new one begins with it.
        counts: "retries" is counted up.

    Attributes:
        asking: Locks held while the answer to a request is had, by the cache's key.
    """

    def __init__(self, servers: Sequence[Server], out: dict[int, EndpointError], counts: Counter[str]) -> None:
        self.servers, self.counts = servers, counts
        self.pool = Pool([server.limit for server in servers])
        self.asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.closed = False
        self._by_limit: Mapping[Limit, Server] = {server.limit: server for server in servers}
        self._out = out
        self._in_use = asyncio.Event()
        self._probes: set[asyncio.Task[None]] = set()
        self._endpoint = servers[0].endpoint
        for server in servers:
            server.open()
        allow_files(sum(server.endpoint.concurrency for server in servers))
        for number, cause in list(out.items()):
            self.take_out(servers[number], cause)

    async def send(self, ask: Callable[[Server, float], Awaitable[_T]]) -> _T:
        """Send a request until it is answered, its fault can't pass, or its patience is at an end."""
        pool, call = self.pool, _Call(self.pool.answers)
        while True:
            limit, ticket = await self._place(call)
            server = self._by_limit[limit]
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
                self._note_answer(server, call)
                return answer
            await self._after(server, call, await server.explained(fault))
            self.counts["retries"] += 1

    async def _place(self, call: _Call) -> tuple[Limit, int]:
        """A place at a server that hasn't just failed this call; waits while none is in use."""
        while True:
            try:
                return await self.pool.acquire(again=call.started > 0, avoid=call.failed)
            except NoServer:
                error = self.all_fail([server.cause for server in self.servers])
                if self.closed or all(server.cause.kind in _LASTING for server in self.servers):
                    raise error from None
                self._use_up(call, error)
            self._in_use.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._in_use.wait(), _wait(call.attempt))

    async def _after(self, server: Server, call: _Call, fault: Fault) -> None:
        """After a fault: return at once if another server can be tried, wait if that may help, else raise."""
        if self.closed or fault.whose == "caller":
            raise fault.error
        self._note_fault(server, fault)
        call.failed[server.limit] = fault
        if any(limit.usable and limit not in call.failed for limit in self.pool.limits):
            return
        passing = [one for one in call.failed.values() if one.retries]
        if not passing:
            refused = next((one.error for one in call.failed.values() if one.whose == "request"), None)
            if not refused and any(one.cause.kind not in _LASTING for one in self.servers if not one.limit.usable):
                return  # another server may come back
            raise refused or fault.error
        if all(one.limited for one in passing):
            wait = self._limit_wait(call, fault)
        else:
            last = next(one for one in reversed(passing) if not one.limited)
            self._use_up(call, last.error, last.retries)
            wait = max(_wait(call.attempt), _advised(last))
        call.failed = {limit: one for limit, one in call.failed.items() if not one.retries or limit is server.limit}
        await asyncio.sleep(wait)

    def _limit_wait(self, call: _Call, fault: Fault) -> float:
        """Seconds to wait for a rate limit; raises if the call has waited too long for limits."""
        now = asyncio.get_running_loop().time()
        call.limited_at = call.limited_at or now
        if now - call.limited_at > self._endpoint.max_wait_s:
            text = f"{fault.error}; it waited for rate limits for max_wait_s={self._endpoint.max_wait_s:g} and gives up"
            error = EndpointError(text, fault.error.kind)
            self.pool.give_up(error, call.answers, DOWN_S)
            raise error
        call.limited += 1
        return max(min(_wait(call.limited), LIMIT_WAIT_S), _advised(fault))

    def _use_up(self, call: _Call, error: EndpointError, retries: float = math.inf) -> None:
        """Count one retry more; raise the error if there is none left."""
        if call.attempt >= min(self._endpoint.max_retries, retries):
            if call.attempt and retries > 1:
                self.pool.give_up(error, call.answers, DOWN_S)
            raise error
        call.attempt += 1

    def _note_answer(self, server: Server, call: _Call) -> None:
        server.faults = 0
        if server.outs:
            server.steady += 1
            server.outs = 0 if server.steady >= STEADY else server.outs
        for limit, fault in call.failed.items():  # what another server answers isn't a bad request
            if fault.whose == "request" and limit is not server.limit:
                self.take_out(self._by_limit[limit], fault.error)

    def _note_fault(self, server: Server, fault: Fault) -> None:
        if fault.limited or fault.whose == "request":
            return
        server.faults += 1
        if fault.down or server.faults >= FAULTS_IN_A_ROW:
            self.take_out(server, fault.error)

    def take_out(self, server: Server, cause: EndpointError) -> None:
        """Take a server out of use until it answers a test, if there are others at all."""
        if len(self.servers) == 1 or not server.limit.usable or self.closed:
            return
        number = self.servers.index(server)
        if number not in self._out and server.outs < MOST_LOGGED:
            _log.warning("a server is out of use until it answers a test: %s", cause)
        server.cause = self._out[number] = cause
        server.outs, server.steady = server.outs + 1, 0
        self.pool.use(server.limit, False)
        probe = asyncio.get_running_loop().create_task(self._probe(server))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    async def _probe(self, server: Server) -> None:
        """Test a server that is out of use with requests of our own, after growing waits, until it answers one."""
        tests = server.outs
        while True:
            idle = not any(limit.usable for limit in self.pool.limits)
            wait = min(FIRST_WAIT_S * 2.0 ** min(tests, 20), DOWN_S if idle else PROBE_S)
            await asyncio.sleep(wait * random.uniform(0.75, 1.25))
            tests += 1
            try:
                await server.chat(trial_body(server.endpoint), time.perf_counter())
            except EXPECTED as error:
                server.cause = (await server.explained(understand(error, server))).error
                continue
            if server.outs <= MOST_LOGGED:
                _log.warning("%s answers again and is back in use", server.where)
            server.faults = 0
            self._out.pop(self.servers.index(server), None)
            self.pool.use(server.limit, True)
            self._in_use.set()
            return

    async def check(self, server: Server) -> dict[str, str] | EndpointError:
        """The models that a server lists, as `read_models` has them, or why it can't be used."""
        for attempt in range(3):
            try:
                return await server.check(trial_body(server.endpoint))
            except EXPECTED as error:
                fault = await server.explained(understand(error, server))
            if attempt >= min(2, self._endpoint.max_retries, fault.retries):
                break
            await asyncio.sleep(max(_wait(attempt + 1), _advised(fault)))
        return fault.error

    async def close(self) -> None:
        """Close the connections; who waits or is being answered gets an EndpointError."""
        self.closed = True
        where = ", ".join(server.where for server in self.servers)
        text = f"the client of {where} was closed while a request waited"
        self.pool.fail_queue(lambda: EndpointError(text, "connection"))
        for probe in list(self._probes):
            probe.cancel()
        for server in self.servers:
            await server.http.close()

    def all_fail(self, causes: Sequence[EndpointError]) -> EndpointError:
        """The error of servers that can't be used, each with its cause."""
        if len(causes) == 1:
            return EndpointError(str(causes[0]), causes[0].kind)
        text = f"none of {len(causes)} servers can be used: {'; '.join(map(str, causes))}"
        return EndpointError(text, causes[0].kind)


def _wait(number: int) -> float:
    """Seconds before the retry of that number, 1-based."""
    return min(FIRST_WAIT_S * 4.0 ** min(max(number - 1, 0), 20), MAX_WAIT_S) * random.uniform(0.75, 1.25)


def _advised(fault: Fault) -> float:
    """Seconds that a server asked to wait, as far as they are waited."""
    return min(fault.pause or 0.0, MAX_WAIT_S) * random.uniform(1.0, 1.1)
