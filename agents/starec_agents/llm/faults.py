"""What goes wrong with a request, in plain words, and what it means for the next one."""

from __future__ import annotations

import errno
import math
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal, Protocol

import aiohttp

from starec_agents.llm.base import Endpoint, kind_of_status
from starec_agents.llm.redaction import Secrets, short
from starec_env.errors import EndpointError


class Refused(Exception):
    """A server's error: a status of 300 or more, or one inside an answer of status 200.

    Attributes:
        status: The HTTP status, or the one that the error in the body names.
        said: The reason given, whole and with whatever it echoes; show it through `Secrets.hide` alone.
        codes: The error's own code and type.
        headers: Of the response.
    """

    def __init__(self, status: int, said: str, codes: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.said, self.codes, self.headers = status, said, codes, headers or {}


EXPECTED = (
    EndpointError,
    Refused,
    aiohttp.ClientError,
    OSError,  # holds TimeoutError
    ValueError,  # holds text that has no UTF-8
    TypeError,  # a message that isn't JSON
    RecursionError,
)
"""All that a request can raise, but cancellation."""


class Asked(Protocol):
    """What of a server its errors speak of."""

    endpoint: Endpoint
    where: str
    key: str | None
    secrets: Secrets
    route: str
    """" through the proxy ...", or ""."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong with one request, and what it means for the next."""

    error: EndpointError
    retries: float = 0
    """Most times to ask again."""
    congested: bool = False
    """Whether the server shows that it has more requests than it bears."""
    pause: float | None = None
    """Seconds after which the server wants to be asked again; may be absurd."""
    whose: Literal["caller", "request", "server"] = "server"
    """"caller": it can't be sent anywhere; "request": refused, perhaps by this one alone; "server": its own fault."""
    down: bool = False
    """Whether one such fault is enough to take the server out of use, where there is another."""

    redirected: bool = False

    @property
    def limited(self) -> bool:
        """Whether waiting is all that is asked for."""
        return self.error.kind == "rate_limit" and self.retries > 0


def understand(error: Exception, server: Asked) -> Fault:
    """Put an exception of EXPECTED into plain words, without secrets."""

    def fault(text: str, kind: str, retries: float = math.inf, **more: object) -> Fault:
        return Fault(EndpointError(server.secrets.hide(text), kind), retries, **more)  # type: ignore[arg-type]

    where, roots = server.where, list(_causes(error))
    if isinstance(error, EndpointError):  # once: a garbled answer may be a proxy's slip, the same twice is a habit
        bad = error.kind == "bad_answer"
        return fault(f"{where} {error}" if bad else str(error), error.kind, retries=1 if bad else 0)
    if isinstance(error, Refused):
        return _refusal(error, server)
    if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
        advice = "raise it, or lower concurrency or max_tokens"
        text = f"{where} gave no whole answer within timeout_s={server.endpoint.timeout_s:g}: {advice}"
        return fault(text, "timeout", congested=True)
    connecting = isinstance(error, aiohttp.ClientConnectorError)  # a certificate's error is a ValueError, too
    if isinstance(error, (ValueError, TypeError, RecursionError)) and not connecting:  # and so is an invalid URL
        text = f"the request to {where} can't be sent: {_words(error, server)}"
        return fault(text, "bad_request", retries=0, whose="caller")
    if isinstance(error, aiohttp.ClientResponseError):
        what = (
            "the proxy refused" if isinstance(error, aiohttp.ClientHttpProxyError) else "it doesn't speak proper HTTP"
        )
        said = short(server.secrets.hide(f"{error.status} {error.message}"))
        return fault(f"no answer from {where}{server.route}: {what}: {said}", "bad_answer", retries=1)
    text = f"no answer from {where}{server.route}: {_why_unreachable(roots, server)}"
    return fault(text, "connection", down=any(isinstance(root, _NEVER_REACHED) for root in roots))


def _refusal(refused: Refused, server: Asked) -> Fault:
    status, kind, where = refused.status, kind_of_status(refused.status), server.where
    said = short(server.secrets.hide(refused.said)) or "without a reason"
    if kind == "auth":
        name = server.endpoint.api_key_env
        state = f"{name} holds a key that it refuses" if server.key else f"{name} is unset or empty"
        text = f"{where} wants a valid key (status {status}: {said}): {state}"
    elif kind == "not_found":
        text = f"{where} has no model {server.endpoint.model!r}, or no chat API (status 404: {said})"
    elif status < 400:
        text = f"{where} answered with status {status}: {said}"
        return Fault(EndpointError(server.secrets.hide(text), "not_found"), down=True, redirected=True)
    else:
        text = f"{where} answered with status {status}: {said}"
    spent = "insufficient_quota" in refused.codes  # OpenAI's 429 for an empty account
    passes = kind in ("rate_limit", "server", "timeout") and not spent
    return Fault(
        EndpointError(server.secrets.hide(text), kind),
        retries=math.inf if passes else 0,
        congested=status in (408, 429, 503, 529),
        pause=advised_wait(refused.headers, refused.said) if passes else None,
        whose="request" if kind == "bad_request" else "server",
        down=not passes and kind != "bad_request",
    )


def advised_wait(headers: Mapping[str, str], said: str = "") -> float | None:
    """Seconds that a server asks to wait, None where it doesn't say; 0 or more, may be absurdly large.

    Read are retry-after-ms, x-ms-retry-after-ms, Retry-After (seconds or a date) and x-ratelimit-reset-requests and
    -tokens ("20ms", "1s", "6m0s", or seconds): of the last two the one of which nothing remains, else the longer. With
    none of them, the error's own words: "try again in 20s".
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if (milliseconds := _number(headers.get(name, ""))) is not None:
            return milliseconds / 1000
    asked = retry_after(headers)
    if asked is not None:
        return asked
    resets = {
        what: seconds
        for what in ("requests", "tokens")
        if (seconds := duration(headers.get(f"x-ratelimit-reset-{what}", ""))) is not None
    }
    spent = [resets[what] for what in resets if _number(headers.get(f"x-ratelimit-remaining-{what}", "")) == 0]
    in_words = _IN_WORDS.search(said[:2000])
    return max(spent or resets.values(), default=duration(in_words[1]) if in_words else None)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After header asks to wait, None without a readable one.

    A date is compared with the response's own Date, so that a clock that is wrong on either side does no harm.
    """
    said = headers.get("retry-after", "").strip()
    if (seconds := _number(said)) is not None:
        return seconds
    try:
        now = headers.get("date")
        since = parsedate_to_datetime(now).timestamp() if now else time.time()
        return max(0.0, parsedate_to_datetime(said).timestamp() - since)
    except (ValueError, OverflowError, TypeError):
        return None


def duration(text: str) -> float | None:
    """Seconds in "20ms", "1s", "6m0s", "1h2m3.5s" or "12"; None for anything else."""
    if _DURATION.fullmatch(text.strip()):
        return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    return _number(text)


_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")
_IN_WORDS = re.compile(
    r"(?:try again|retry)\w*\s+(?:in|after)\s+((?:\d+(?:\.\d+)?(?:ms|[smhd](?![a-z])))+|\d+(?:\.\d+)?(?=\s*sec))", re.I
)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else max(0.0, number)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _words(error: BaseException, server: Asked) -> str:
    return short(server.secrets.hide(f"{type(error).__name__}: {error}"))


_NEVER_REACHED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_REASONS: list[tuple[type[BaseException], str]] = [
    (socket.gaierror, "its host name is unknown: check base_url, or this machine's network"),
    (ConnectionRefusedError, "nothing listens there: is the server running, and the port right?"),
    (ssl.SSLError, "TLS failed: is it http rather than https, or its certificate unknown to this machine?"),
    (aiohttp.ConnectionTimeoutError, "it doesn't respond: wrong host or port, a firewall, or an overloaded server"),
    (aiohttp.ServerDisconnectedError, "it closed the connection before it answered"),
    (aiohttp.ClientPayloadError, "it closed the connection in the middle of the answer"),
]


def _why_unreachable(roots: list[BaseException], server: Asked) -> str:
    if any(isinstance(root, OSError) and root.errno in (errno.EMFILE, errno.ENFILE) for root in roots):
        return "too many files are open: raise the limit (ulimit -n), or lower the concurrency"
    for kind, reason in _REASONS:
        if any(isinstance(root, kind) for root in roots):
            return reason
    return _words(roots[0], server)
