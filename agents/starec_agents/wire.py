"""What OpenAI-compatible servers send: answers read strictly, faults put into plain words."""

from __future__ import annotations

import math
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp
import httpx2
import openai
from pydantic import BaseModel, ValidationError

from starec_agents.llm import Completion, kind_of_status
from starec_env.errors import EndpointError
from starec_env.types import Endpoint, Usage

EXPECTED = (
    EndpointError,
    openai.OpenAIError,
    httpx2.HTTPError,
    httpx2.InvalidURL,
    httpx2.StreamError,
    aiohttp.ClientError,
    OSError,  # holds TimeoutError
    ValueError,  # holds text that has no UTF-8
    TypeError,  # a message that isn't JSON
    RecursionError,
)
"""All that a request can raise, but cancellation."""


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Token(BaseModel):
    logprob: float


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: tuple[int, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None


class _Details(BaseModel):
    cached_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Answer(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None
    model: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


_Shape = TypeVar("_Shape", bound=BaseModel)


def read_completion(response: httpx2.Response, latency: float) -> Completion:
    """Read a chat completion.

    Args:
        response: A response of status 2xx, its body read.
        latency: Seconds, to be noted in the completion.

    Raises:
        EndpointError: kind "bad_answer": the body isn't a chat completion, has no choice, or says nothing.
    """
    answer = _parsed(_Answer, response)
    if not answer.choices:
        raise _bad("an answer without choices", response)
    choice = answer.choices[0]
    message = choice.message
    text = message.refusal if message.content is None else message.content
    reasoning = message.reasoning or message.reasoning_content
    if text is None and reasoning is None and choice.finish_reason in (None, "stop"):
        raise _bad("an answer with neither content nor reasoning", response)
    used = answer.usage or _Usage()
    tokens = choice.logprobs and choice.logprobs.content
    return Completion(
        text=text or "",
        reasoning=reasoning,
        finish_reason=choice.finish_reason,
        usage=Usage(
            prompt_tokens=used.prompt_tokens or 0,
            completion_tokens=used.completion_tokens or 0,
            cached_tokens=(used.prompt_tokens_details and used.prompt_tokens_details.cached_tokens) or 0,
        ),
        latency=latency,
        model=answer.model or "",
        token_ids=choice.token_ids,
        prompt_token_ids=answer.prompt_token_ids or choice.prompt_token_ids,
        logprobs=tuple([token.logprob for token in tokens]) if tokens else None,
    )


def read_models(response: httpx2.Response) -> list[str]:
    """Read the names in a list of models; raises EndpointError of kind "bad_answer" if it is none."""
    return [model.id for model in _parsed(_Models, response).data]


def _parsed(shape: type[_Shape], response: httpx2.Response) -> _Shape:
    try:
        return shape.model_validate_json(response.content)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, wrong["loc"])) or "the body"
        kind = response.headers.get("content-type", "no content type")
        raise _bad(f"something else than the JSON wanted ({kind}; {place}: {wrong['msg']})", response) from None


def _bad(what: str, response: httpx2.Response) -> EndpointError:
    where = public(str(response.request.url))
    text = response.content[:1000].decode(errors="replace")
    return EndpointError(f"{where} gave {what}: {_short(text)!r}", "bad_answer")


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong with one request, and what it means for the next."""

    error: EndpointError
    retries: float = 0
    """How often at most it is worth asking again."""
    congested: bool = False
    """Whether the endpoint shows that it has more requests than it bears."""
    pause: float | None = None
    """Seconds after which the endpoint wants to be asked again; may be absurd."""


def understand(error: Exception, endpoint: Endpoint, key: str | None) -> Fault:
    """Put an exception of EXPECTED into plain words, without the key, and say if it can pass."""
    where = public(endpoint.base_url)

    def fault(text: str, kind: str, retries: float = math.inf, congested: bool = False) -> Fault:
        return Fault(EndpointError(text.replace(key, "***") if key else text, kind), retries, congested)

    if isinstance(error, EndpointError):  # once: a garbled answer may be a proxy's slip, the same twice is a habit
        return fault(str(error), error.kind, retries=1)
    if isinstance(error, openai.APIStatusError):
        return _status_fault(error, endpoint, key)
    if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
        mend = "raise it, or lower concurrency or max_tokens"
        text = f"{where} gave no whole answer within timeout_s={endpoint.timeout_s:g}: {mend}"
        return fault(text, "timeout", congested=True)
    if isinstance(error, (ValueError, TypeError, RecursionError)):
        return fault(f"the request to {where} can't be sent: {_short(str(error))}", "bad_request", retries=0)
    roots = list(_causes(error))
    if any(isinstance(root, (aiohttp.ClientResponseError, httpx2.DecodingError)) for root in roots):
        return fault(f"{where} doesn't speak proper HTTP: {_short(str(roots[-1]))}", "bad_answer", retries=1)
    return fault(f"no answer from {where}: {_why_unreachable(roots)}", "connection")


def _status_fault(error: openai.APIStatusError, endpoint: Endpoint, key: str | None) -> Fault:
    status, kind, where = error.status_code, kind_of_status(error.status_code), public(endpoint.base_url)
    said = _short(error.message.partition(" - ")[2]) or "without a reason"
    if kind == "auth":
        state = "holds a key that it refuses" if key else "is unset or empty"
        text = f"{where} wants a valid key (status {status}: {said}): {endpoint.api_key_env} {state}"
    elif kind == "not_found":
        text = f"{where} has no model {endpoint.model!r}, or no chat API (status 404: {said})"
    else:
        text = f"{where} answered with status {status}: {said}"
    spent = "insufficient_quota" in (error.code, error.type)  # OpenAI's 429 for an empty account
    passes = kind in ("rate_limit", "server", "timeout") and not spent
    return Fault(
        EndpointError(text.replace(key, "***") if key else text, kind),
        retries=math.inf if passes else 0,
        congested=status in (408, 429, 503, 529),
        pause=retry_after(error.response.headers) if passes else None,
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks to wait, None without a readable one; 0 or more, may be absurdly large.

    A date is compared with the response's own Date, so that a clock that is wrong on either side does no harm.
    """
    said = headers.get("retry-after", "").strip()
    try:
        seconds = float(said)
    except ValueError:
        try:
            now = headers.get("date")
            since = parsedate_to_datetime(now).timestamp() if now else time.time()
            seconds = parsedate_to_datetime(said).timestamp() - since
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if not math.isnan(seconds) else None


def public(url: str) -> str:
    """A URL without what may be secret in it: user, password, query."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    except ValueError:
        return "<not a URL>"
    return f"{parts.scheme}://{host or ''}{port}{parts.path}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _why_unreachable(roots: list[BaseException]) -> str:
    reasons: list[tuple[type[BaseException], str]] = [
        (socket.gaierror, "its host name is unknown: check base_url, or this machine's network"),
        (ConnectionRefusedError, "nothing listens there: is the server running, and the port right?"),
        (ssl.SSLError, "TLS failed: is it http rather than https, or its certificate unknown to this machine?"),
        (aiohttp.ConnectionTimeoutError, "it doesn't respond: wrong host or port, a firewall, or an overloaded server"),
        (aiohttp.ServerDisconnectedError, "it closed the connection before it answered"),
        (aiohttp.ClientPayloadError, "it closed the connection in the middle of the answer"),
    ]
    for kind, reason in reasons:
        if any(isinstance(root, kind) for root in roots):
            return reason
    return _short(f"{type(roots[-1]).__name__}: {roots[-1]}")


def _short(text: str, most: int = 200) -> str:
    """Text of unknown origin, fit for one line of an error message."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 5 * most]).split())
    return line if len(line) <= most else line[: most - 3] + "..."
