"""What every chat model is: the protocol, and the answer that it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from starec_env.types import Usage, whole_answer

Message = Mapping[str, str]
"""A prompt's message: "role" ("system", "user" or "assistant") and "content"."""

MAX_COUNT = 2**31 - 1
"""Largest token count or token id that is believed."""
MAX_TEXT = 1_000_000
"""Longest text, in characters, where max_tokens is unknown."""


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


def kind_of_status(status: int) -> str:
    """The EndpointError kind that an HTTP error status (300 to 599) stands for."""
    named = {401: "auth", 403: "auth", 404: "not_found", 408: "timeout", 429: "rate_limit"}
    return named.get(status, "server" if status >= 500 else "bad_request")


def count(value: object) -> int:
    """A token count as a server gave it; 0 where it is none, or out of all proportion."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT else 0


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
