"""A chat model behind any OpenAI-compatible server (vLLM, llama.cpp, a hosted one), or behind several of them.

Requests go out over aiohttp; `session` has the retry loop and knows which servers are in use, `server` asks one of
them, `pool` bounds the requests in flight, `faults` and `wire` read what comes back, `refusals` adapts requests to
servers that refuse a part of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from starec_agents.llm.base import Completion, Endpoint, Message, Usage
from starec_agents.llm.cache import AnswerCache
from starec_agents.llm.redaction import read_address
from starec_agents.llm.server import Server, request_body
from starec_agents.llm.session import Session
from starec_env.errors import EndpointError, InvalidOption, unknown

MOST_NAMES = 10
"""How many different names of the answering model are counted apart."""

_OPTIONS = ("temperature", "top_p", "max_tokens", "seed", "stop", "logprobs", "schema")
_log = logging.getLogger(__name__)
_open_sessions: dict[Session, AsyncGenerator[Session, None]] = {}
"""What closes sessions at the end of their event loops, for models that are dropped without `aclose`."""


class OpenAIChat:
    """A model on one OpenAI-compatible server, or on several.

    Requests in flight are bounded by a limit a server that adapts (`pool.Limit`), in the order of the calls; the least
    busy server gets the next. A fault that can pass (connection, time-out, 5xx; once, a garbled answer) is tried on
    another server at once, and when all have been tried, again after a growing jittered wait, `max_retries` times.
    Waiting for rate limits (429) costs no retry, but at most `Endpoint.max_wait_s` in all; what the server advises is
    obeyed, up to a minute each time. What can't pass (a wrong key or model) fails at once if no other server has it.

    A server of several that is unreachable, refuses the key or the model, or fails three times in a row, is taken out
    of use, which is logged once; requests of one token of our own then find out when it is healthy again. So is one
    that refuses a request that another answers. While none is in use, calls wait as long as their retries would last.

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
        cache_hits: Answers that came from the cache.
        models: Answers by the model name that the server gave. More than one name means that the model was changed
            under the run; that is logged as a warning, too. From the eleventh on they are counted as "others".
        roots: Once `check` was awaited, by model the path or hub id that the servers say they loaded it from, or "".

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
        self.cache_hits = 0
        self.models: Counter[str] = Counter()
        self.roots: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._cache = AnswerCache(cache_dir) if cache_dir is not None else None
        self._cache_dir = cache_dir
        self._changes: list[list[str]] = [[] for _ in self.endpoints]
        self._out: dict[int, EndpointError] = {}
        self._sessions: dict[asyncio.AbstractEventLoop, Session] = {}

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
    def retries(self) -> int:
        """How many of them were sent again after a fault."""
        return self._counts["retries"]

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
        body = request_body(self.endpoint, messages, sampling)
        if body.get("temperature") != 0 and "seed" not in body:
            return await self._ask(messages, sampling)
        urls = [one.base_url for one in self.endpoints]
        kept = json.dumps([urls[0] if len(urls) == 1 else sorted(urls), body], sort_keys=True, default=repr)
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
        found = await asyncio.gather(*(session.check(server) for server in session.servers))
        faults = [one for one in found if isinstance(one, EndpointError)]
        if len(faults) == len(found):
            raise session.all_fail(faults)
        for server, one in zip(session.servers, found, strict=True):
            if isinstance(one, EndpointError):
                session.take_out(server, one)
        for models in found:
            if isinstance(models, dict):
                self.roots.update(models)
        return list(self.roots)

    async def aclose(self) -> None:
        """Close the running event loop's connections; a later call opens others."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await _open_sessions[session].aclose()

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
            return server.chat(request_body(server.endpoint, messages, sampling), started)

        answer = await (await self._session()).send(ask)
        self._tokens.update(
            prompt_tokens=answer.usage.prompt_tokens,
            completion_tokens=answer.usage.completion_tokens,
            cached_tokens=answer.usage.cached_tokens,
        )
        self._note_model(answer.model)
        return answer

    async def _session(self) -> Session:
        loop = asyncio.get_running_loop()
        if session := self._sessions.get(loop):
            return session
        learned = [32.0] * len(self.endpoints)
        for other in [other for other in self._sessions if other.is_closed()]:
            learned = [server.limit.limit for server in self._sessions.pop(other).servers]
        parts = zip(self.endpoints, self._changes, learned, strict=True)
        servers = [Server(endpoint, self._counts, changes, limit) for endpoint, changes, limit in parts]
        session = self._sessions[loop] = Session(servers, self._out, self._counts)
        keeper = _open_sessions[session] = _kept(session)
        return await anext(keeper)

    def _note_model(self, name: str) -> None:
        if name not in self.models and len(self.models) >= MOST_NAMES:
            name = "others"
        if self.models and name not in self.models:
            before = next(reversed(self.models))
            _log.warning("%s now answers as %r, before as %s", self._where, name, before)
        self.models[name] += 1


Balanced = OpenAIChat
"""The first edition's name of a client of several servers; kept for one release."""


async def _kept(session: Session) -> AsyncGenerator[Session, None]:
    """Yield a session, and close it when the generator is closed.

    An event loop that ends closes the generators begun in it (asyncio.run does so): the only moment when connections
    that their user forgot to close still can be.
    """
    try:
        yield session
    finally:
        _open_sessions.pop(session, None)
        await session.close()
