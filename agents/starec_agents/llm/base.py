"""What every chat model is: the protocol, where it is asked and how, and the answer that it returns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from starec_env.types import ParseReport

Message = Mapping[str, str]
"""A prompt's message: "role" ("system", "user" or "assistant") and "content"."""

TASK: ContextVar[str] = ContextVar("starec_task", default="")
"""What the request that is being made is for, e.g. "rank"; "" where no node of a graph makes it."""

MAX_COUNT = 2**31 - 1
"""Largest token count or token id that is believed."""
MAX_TEXT = 1_000_000
"""Longest text, in characters, where max_tokens is unknown."""


class Endpoint(BaseModel):
    """An OpenAI-compatible server and how to ask it. It holds the *names* of keys' variables, never a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    base_url: str
    """E.g. "http://localhost:8000/v1", or "https://HOST/openai/deployments/NAME?api-version=...": a query goes behind
    the path of each request. A "user:password@" in it is sent in place of the key."""
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; an unset one sends a placeholder, which local servers accept."""
    headers: Mapping[str, str] = Field(default_factory=dict)
    """More headers of each request. A value "env:NAME" is read from the environment variable NAME, so that a key stays
    out of records: {"api-key": "env:AZURE_KEY"}."""
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=2048, ge=1)
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds for one attempt."""
    max_retries: int = Field(default=5, ge=0)
    """Attempts after the first, for faults that can pass (connection, time-out, 5xx)."""
    max_wait_s: float = Field(default=1800.0, ge=0)
    """Seconds for which a call waits for rate limits (429), from the first refusal on; that costs no retries."""
    concurrency: int = Field(default=64, ge=1)
    """Most requests in flight; the adaptive limit moves below it."""
    extra_body: Mapping[str, Any] = Field(default_factory=dict)
    """Server-specific request fields, e.g. {"top_k": 0} for vLLM; None removes a field of ours."""


_Count = Annotated[int, Field(ge=0, lt=2**63)]


class Usage(BaseModel):
    """Tokens that a call cost."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0
    cached_tokens: _Count = 0
    """Prompt tokens that the server says it took from its prefix cache."""


class Completion(BaseModel):
    """A chat model's answer to one prompt."""

    model_config = ConfigDict(frozen=True)

    text: str
    reasoning: str | None = None
    """Thoughts that the server returned apart from the answer."""
    finish_reason: str | None = None
    """As the server gave it, but "length" wherever the answer was cut off."""
    usage: Usage = Usage()
    latency: float = 0.0
    """Seconds from sending the first attempt to the answer."""
    model: str = ""
    token_ids: tuple[int, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    """Natural-log probability of each token, all finite; None if not asked for, or unusable as given."""
    stepped_down: tuple[str, ...] = ()
    """What the server had refused, and so was left out of or changed in the request; see `refusals`."""

    @property
    def cut_off(self) -> bool:
        """Whether the answer ended at max_tokens: an unfinished answer is none, whatever can be read in it."""
        return self.finish_reason == "length"

    @property
    def answer(self) -> str:
        """The whole answer, with thoughts that came apart put before it between <think> tags."""
        return whole_answer(self.text, self.reasoning)

    @property
    def only_thought(self) -> bool:
        """Whether all of the text came as reasoning: it never ended, or the server's reasoning parser erred."""
        return bool(self.reasoning) and not self.text.strip()


class Call(BaseModel):
    """One request to a chat model, and its answer."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    kind: str
    """Which task asked: "rank" or "reflect" in our graphs; a user's graph may name its own."""
    messages: tuple[Mapping[str, str], ...]
    """The prompt: mappings with "role" and "content"."""
    completion: str
    reasoning: str | None = None
    """Thoughts that the server returned apart from the answer."""
    finish_reason: str | None = None
    usage: Usage = Usage()
    latency: float = 0.0
    """Seconds from first attempt to answer."""
    token_ids: tuple[_Count, ...] | None = None
    prompt_token_ids: tuple[_Count, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    """Natural-log probability of each completion token, where the server gives them."""
    stepped_down: tuple[str, ...] = ()
    """What the server had refused, and so was left out of or changed in the request."""
    report: ParseReport | None = None
    """How a memory update was read; None for other calls. A ranking's report is with the ranking."""

    @property
    def cut_off(self) -> bool:
        """Whether the answer ended at the most tokens allowed."""
        return self.finish_reason == "length"

    @property
    def answer(self) -> str:
        """The whole answer, with thoughts that came apart put before it between <think> tags."""
        return whole_answer(self.completion, self.reasoning)


def whole_answer(text: str, reasoning: str | None) -> str:
    """An answer with thoughts that came apart put before it, between <think> tags."""
    return f"<think>\n{reasoning}\n</think>\n{text}" if reasoning else text


class ChatModel(Protocol):
    """Whatever can answer a list of messages; any object with this method will do."""

    async def complete(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        """Answer a prompt.

        Args:
            messages: The prompt.
            sampling: Any of temperature, top_p, max_tokens, seed, stop, `logprobs`: True to ask for token ids and their
                log-probabilities, and `schema`: a JSON schema that the answer must fit, for servers with structured
                output. A model may ignore what it can't do.

        Raises:
            EndpointError: No usable answer could be had.
        """
        ...


def model_name(llm: ChatModel) -> str:
    """What a chat model's endpoint or provider calls the model; its class where it has no name."""
    for holder in (getattr(llm, "endpoint", None), llm, getattr(llm, "model", None)):
        for attribute in ("model", "model_name"):
            if isinstance(name := getattr(holder, attribute, None), str):
                return name
    return type(llm).__name__


def kind_of_status(status: int) -> str:
    """The EndpointError kind that an HTTP error status (300 to 599) stands for."""
    named = {401: "auth", 403: "auth", 404: "not_found", 408: "timeout", 429: "rate_limit"}
    return named.get(status, "server" if status >= 500 else "bad_request")


def count(value: object) -> int:
    """A token count as a server gave it; 0 where it is none, or out of all proportion."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT else 0


def logprobs_of(given: object) -> tuple[float, ...] | None:
    """Log-probabilities of an answer's tokens as OpenAI's API has them; None where they are none, or not all finite."""
    tokens = given.get("content") if isinstance(given, dict) else None
    try:
        values = tuple([float(token["logprob"]) for token in tokens or ()])
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    return values if values and all(map(math.isfinite, values)) else None


def longest_text(max_tokens: object) -> int:
    """The most characters of an answer of so many tokens that are kept: 16 a token, and some."""
    known = isinstance(max_tokens, int) and max_tokens > 0
    return min(MAX_TEXT, 16 * max_tokens + 4096) if known else MAX_TEXT  # type: ignore[operator]


def bounded(text: str, reasoning: str | None, finish_reason: object, most: int) -> dict[str, Any]:
    """Those three fields of a Completion, none of them longer than a model could have made it.

    A text or reasoning of more than `most` characters is cut there, and then marked as cut off.
    """
    reason = finish_reason[:50] if isinstance(finish_reason, str) else None
    if len(text) > most or len(reasoning or "") > most or (reason or "").lower() in _CUT_OFF:
        reason = "length"
    return {"text": text[:most], "reasoning": reasoning[:most] if reasoning else None, "finish_reason": reason}


_CUT_OFF = ("length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded")
