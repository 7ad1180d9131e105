"""One OpenAI-compatible server, as one event loop asks it: its connections, its key, and what it refuses."""

from __future__ import annotations

import json
import logging
import os
import ssl
import time
import zlib
from asyncio import timeout
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from starec_agents.llm.base import Completion, Endpoint, Message
from starec_agents.llm.faults import EXPECTED, Fault, Refused, understand
from starec_agents.llm.pool import Limit
from starec_agents.llm.redaction import Address, Secrets, public, read_address, short
from starec_agents.llm.refusals import STATUSES, changed, next_change
from starec_agents.llm.wire import read_completion, read_models, read_refusal
from starec_env.errors import EndpointError, unknown

CONNECT_S = 10.0
"""Longest wait for a connection, TLS included."""
MAX_BODY = 2**20
"""Longest answer that is read, in bytes once decompressed; BODY_A_TOKEN more for each token asked for."""
BODY_A_TOKEN = 1024
MAX_ANY_BODY = 32 * 2**20
"""Bound on that, and what is read where max_tokens is unknown: a quarter of it."""
KEEP_ALIVE_S = 4.0
"""How long an idle connection is kept: less than uvicorn's (so vLLM's) 5 s, which would close it under a request."""

FILES_BESIDE = 256
"""Files that may be open beside the connections."""
LONGEST_TOKEN = 32
"""Characters a token above which a prompt is taken for cut: English has 4, but starec-nano's tokenizer, which knows the
prompts' own sentences, up to 21."""

_MOST_HOPS = 3
_log = logging.getLogger(__name__)


class Server:
    """A server; `open` it before it is asked, and close its `http` in the end.

    Args:
        endpoint: Where it is and how to ask it.
        counts: "requests" is counted up.
        changes: Names of the changes that it was found to want (see `refusals`); more are added.
        learned: The limit of requests in flight to start with.

    Attributes:
        where: Its URL as errors may show it.
        limit: Requests in flight.
        faults: How many requests failed in a row.
        outs: How often it was taken out of use, not long after it was taken into use.
        steady: Answers since it was last out of use.
        cause: Why it is out of use.

    Raises:
        EndpointError: Its key, or another header, can't be had or sent.
    """

    def __init__(self, endpoint: Endpoint, counts: Counter[str], changes: list[str], learned: float = 32.0) -> None:
        address = read_address(endpoint.base_url)
        self.endpoint, self.counts, self.changes = endpoint, counts, changes
        self.where = address.shown
        self.key = _read_variable(endpoint.api_key_env, f"the key in ${endpoint.api_key_env}") or None
        headers, hidden = _headers(endpoint, address, self.key)
        self.secrets = Secrets([self.key or "", *address.secrets, *hidden])
        self._proxy, self.route = _proxy(address.base)
        self._chat, self._models = address.url("/chat/completions"), address.url("/models")
        self.limit = Limit(endpoint.concurrency, learned)
        self.faults = self.outs = self.steady = 0
        self.cause = EndpointError("")
        self._odd_usage = _OddUsage(self.where)
        self._headers, self._secure = headers, address.base.startswith("https:")

    def open(self) -> None:
        """Make the connections possible; call it in the event loop that is to have them."""
        connector = aiohttp.TCPConnector(
            limit=0,  # the pool has one
            keepalive_timeout=KEEP_ALIVE_S,
            ssl=_trusted() if self._secure else True,
        )
        self.http = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=min(CONNECT_S, self.endpoint.timeout_s)),
        )

    async def chat(self, body: dict[str, Any], started: float) -> Completion:
        """Ask for a completion, once; again with a change only if the server refuses a part of the request.

        Args:
            body: The request.
            started: When the call began, by time.perf_counter: for the answer's latency.

        Raises:
            Exception: One of `faults.EXPECTED`.
        """
        async with timeout(self.endpoint.timeout_s):
            while True:
                names = tuple(self.changes)
                sent = changed(body, names) if names else body
                tokens = sent.get("max_tokens") or sent.get("max_completion_tokens")
                data = json.dumps(sent, ensure_ascii=False, allow_nan=False).encode()
                try:
                    kind, answer = await self._request("POST", self._chat, data, _most(tokens))
                    latency = time.perf_counter() - started
                    read = read_completion(answer, kind, self.secrets, max_tokens=tokens, latency=latency)
                except Refused as refused:
                    if not self._change(sent, refused):
                        raise
                else:
                    self._odd_usage.look(body["messages"], read.usage.prompt_tokens)
                    return read.model_copy(update={"stepped_down": names}) if names else read

    async def models(self) -> dict[str, str]:
        """The models that it lists, as `read_models` has them; raises one of `faults.EXPECTED`."""
        async with timeout(self.endpoint.timeout_s):
            return read_models((await self._request("GET", self._models, None, MAX_ANY_BODY // 4))[1], self.secrets)

    async def check(self, body: dict[str, Any]) -> dict[str, str]:
        """Make sure that it has the model: by its list, else with `body`, as some servers list less than they serve.

        Returns:
            The models that it lists, as `read_models` has them.
        """
        try:
            models = await self.models()
        except (Refused, EndpointError) as error:  # some servers have no such list
            if understand(error, self).error.kind not in ("not_found", "bad_request", "bad_answer"):
                raise
            models = {}
        if self.endpoint.model not in models:
            await self.chat(body, time.perf_counter())
            if models:  # llama.cpp answers to any name
                _log.warning(
                    "%s answers to the model name %r, which it doesn't list (%s): see that this is the model you mean",
                    self.where,
                    self.endpoint.model,
                    ", ".join(list(models)[:5]),
                )
        return models

    async def explained(self, fault: Fault) -> Fault:
        """A fault; if it is of a model or an API that isn't there, with what the server does have."""
        if fault.error.kind != "not_found" or fault.redirected:
            return fault
        text = f"{fault.error}; {await self._what_is_served()}"
        return replace(fault, error=EndpointError(text, "not_found"))

    async def _what_is_served(self) -> str:
        try:
            models = await self.models()
        except EXPECTED:
            return "nor does it list its models: does base_url lack its /v1?"
        if self.endpoint.model in models:
            return "yet it lists that model: perhaps one that can't chat"
        return str(unknown("model", self.endpoint.model, models)) if models else "it lists no model at all"

    async def _request(self, method: str, url: str, data: bytes | None, most: int) -> tuple[str, bytes]:
        """Send one request; returns the body and its content type."""
        for _ in range(_MOST_HOPS):
            if self.http.closed:
                raise EndpointError(f"the client of {self.where} was closed while a request waited", "connection")
            self.counts["requests"] += 1
            async with self.http.request(method, url, data=data, allow_redirects=False, proxy=self._proxy) as response:
                body = await _read(response, most)
                if response.status < 300:
                    return response.headers.get("content-type", ""), body
                if response.status < 400:
                    url = self._next_hop(response, method)
                else:
                    raise read_refusal(response.status, body, response.headers)
        raise Refused(310, "it redirects in a circle")

    def _next_hop(self, response: aiohttp.ClientResponse, method: str) -> str:
        """Where a redirect leads; one to another host isn't followed: the prompt is for the host that was named."""
        target = urljoin(str(response.url), response.headers.get("location", ""))
        here, there = urlsplit(str(response.url)), urlsplit(target)
        same = here.hostname == there.hostname and (here.scheme, here.port) == (there.scheme, there.port)
        if same and (response.status in (307, 308) or method == "GET"):
            return target
        where = public(target.removesuffix("/chat/completions").removesuffix("/models"))
        raise Refused(response.status, f"it redirects to {where}, which isn't followed: if you trust it, give that URL")

    def _change(self, sent: Mapping[str, Any], refused: Refused) -> bool:
        name = next_change(dict(sent), refused.said) if refused.status in STATUSES else None
        if name is not None and name not in self.changes:
            said = short(self.secrets.hide(refused.said))
            _log.warning("%s refuses a part of the request (%s): from now on %s", self.where, said, name)
            self.changes.append(name)
        return name is not None


class _OddUsage:
    """Notices, by the token counts, a server that cuts prompts in silence; says so once."""

    def __init__(self, where: str) -> None:
        self._where, self._warned = where, False
        self._tokens = self._shortest = self._longest = 0

    def look(self, messages: Any, tokens: int) -> None:
        """Compare a prompt's characters with the tokens that the server counted."""
        if self._warned or not tokens:
            return
        length = sum([len(message["content"]) for message in messages])
        if tokens != self._tokens:
            self._tokens, self._shortest, self._longest = tokens, length, length
        self._shortest, self._longest = min(self._shortest, length), max(self._longest, length)
        alike = tokens >= 128 and self._longest > 1.3 * self._shortest
        if alike or (length > 2000 and LONGEST_TOKEN * tokens < length):
            self._warned = True
            what = f"{self._shortest:,} to {self._longest:,}" if alike else f"{length:,}"
            advice = "raise its context length, or lower max_history"
            message = "%s counted %s prompt tokens in %s characters: it may cut prompts to its context in silence; %s"
            _log.warning(message, self._where, f"{tokens:,}", what, advice)


def _most(tokens: object) -> int:
    known = isinstance(tokens, int) and tokens > 0
    return min(MAX_ANY_BODY, MAX_BODY + BODY_A_TOKEN * tokens) if known else MAX_ANY_BODY // 4  # type: ignore[operator]


def request_body(endpoint: Endpoint, messages: Sequence[Message], sampling: Mapping[str, Any]) -> dict[str, Any]:
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


def trial_body(endpoint: Endpoint) -> dict[str, Any]:
    """A request of one token, to find out whether a server answers at all."""
    body = request_body(endpoint, [{"role": "user", "content": "Hi"}], {})
    return {**body, **{name: 1 for name in ("max_tokens", "max_completion_tokens") if name in body}}


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, decompressed here so that `most` bounds what it becomes."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        unpack = None
    elif encoding in ("gzip", "x-gzip", "deflate"):
        unpack = zlib.decompressobj(wbits=47)
    else:
        raise EndpointError(f"gave an answer in content-encoding {short(encoding)!r}, unasked", "bad_answer")
    body = bytearray()
    try:
        async for chunk in response.content.iter_any():
            body += unpack.decompress(chunk, most - len(body) + 1) if unpack else chunk
            if len(body) > most:
                raise EndpointError(f"gave an answer of more than {most:,} bytes", "bad_answer")
    except zlib.error as error:
        raise EndpointError(
            f"gave an answer that isn't the {encoding} that it claims to be ({error})", "bad_answer"
        ) from None
    return bytes(body)


def _headers(endpoint: Endpoint, address: Address, key: str | None) -> tuple[dict[str, str], list[str]]:
    """The headers of each request, and which of their values are secret."""
    hidden = []
    given: dict[str, str] = {}
    for name, value in endpoint.headers.items():
        if value.startswith("env:"):
            variable = value.removeprefix("env:")
            value = _read_variable(variable, f"header {name}, from ${variable},")
            if not value:
                raise EndpointError(f"header {name} is to come from ${variable}, which is unset or empty", "auth")
            hidden += [value, value.rpartition(" ")[2]]
        given[name] = value
    headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    # Compressed answers are too short to gain by it.
    headers |= {"accept-encoding": "identity", "user-agent": "starec"}
    if address.login:
        user, _, password = address.login.partition(":")
        headers["authorization"] = aiohttp.encode_basic_auth(user, password)
    elif key or not hidden:
        headers["authorization"] = f"Bearer {key or 'EMPTY'}"
    names = {name.lower() for name in given}
    return {name: value for name, value in headers.items() if name not in names} | given, hidden


def _read_variable(name: str, what: str) -> str:
    value = os.environ.get(name, "").strip()
    if not (value.isascii() and value.isprintable()):
        raise EndpointError(f"{what} has characters that can't be sent", "auth")
    return value


def _proxy(base: str) -> tuple[str | None, str]:
    """The proxy that the environment names for a URL, None without one; and what errors say of it."""
    scheme, host = urlsplit(base).scheme, urlsplit(base).netloc
    proxies = getproxies()
    name = scheme if scheme in proxies else "all"
    if name not in proxies or proxy_bypass(host):
        return None, ""
    proxy = proxies[name] if "://" in proxies[name] else f"http://{proxies[name]}"
    variable = f"${name.upper()}_PROXY"
    if proxy.startswith(("http://", "https://")):
        return proxy, f" through the proxy {public(proxy)} ({variable})"
    return None, f" ({variable} is {public(proxy)}, which isn't used: only http proxies are)"


def _trusted() -> ssl.SSLContext:
    """The machine's certificates (or SSL_CERT_FILE's), and certifi's where it is installed."""
    context = ssl.create_default_context()
    if not (os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")) and find_spec("certifi"):
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def allow_files(connections: int) -> None:
    """Raise this process's limit of open files to what so many connections need, as far as it may; warn if not."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + FILES_BESIDE
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if (now := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) < wanted:
        advice = "raise the limit (ulimit -n), or lower the concurrency"
        _log.warning("%d connections need more files than the %d that may be open: %s", connections, now, advice)
