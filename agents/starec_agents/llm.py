"""Chat models: the protocol, and the models that need no server of their own; `openai_chat` has the one that does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict

from starec_env.errors import EndpointError, StarecError
from starec_env.types import Usage

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage

Message = Mapping[str, str]
"""A prompt's message: "role" ("system", "user" or "assistant") and "content"."""


class Completion(BaseModel):
    """A chat model's answer to one prompt."""

    model_config = ConfigDict(frozen=True)

    text: str
    reasoning: str | None = None
    """Thoughts that the server returned apart from the answer."""
    finish_reason: str | None = None
    usage: Usage = Usage()
    latency: float = 0.0
    """Seconds from the first attempt to the answer."""
    model: str = ""
    token_ids: tuple[int, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None


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


Reply = str | Sequence[str] | Callable[[Sequence[Message], Mapping[str, Any]], "str | Completion"]
"""What a ScriptedChat says: always the same, one text after another, or a function of (messages, sampling)."""


class ScriptedChat:
    """A chat model that says what it is told to: for tests, dry runs and measuring everything but the model.

    Args:
        reply: A text; a sequence of texts, said in the order of the calls and then from the start again; or a function
            of (messages, sampling) that returns a text or a Completion, or raises EndpointError to act a fault. Only
            a text or a pure function gives the same answers at any concurrency and after a resume.
        latency: Seconds to sleep before each answer.

    Usage is counted in words, prompt and answer apart. `requests` counts the calls.
    """

    def __init__(self, reply: Reply, *, latency: float = 0.0) -> None:
        self.reply, self.latency, self.requests = reply, latency, 0

    async def complete(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        """Answer as scripted; see ChatModel."""
        number, self.requests = self.requests, self.requests + 1
        if self.latency:
            await asyncio.sleep(self.latency)
        said: str | Completion
        if callable(self.reply):
            said = self.reply(messages, sampling)
        else:
            said = self.reply if isinstance(self.reply, str) else self.reply[number % len(self.reply)]
        if isinstance(said, Completion):
            return said
        words = sum(len(message["content"].split()) for message in messages)
        usage = Usage(prompt_tokens=words, completion_tokens=len(said.split()))
        return Completion(text=said, finish_reason="stop", usage=usage, latency=self.latency, model="scripted")


class LangChainChat:
    """Any LangChain chat model as a ChatModel.

    It never streams: streamed answers lose token counts, and LangGraph's `stream_mode="messages"` would turn streaming
    on. temperature, top_p, max_tokens, seed and stop go to the model as given, so give only what its provider knows;
    `schema` and `logprobs` have no common name and are not sent: bind them to the model first where it has them.
    Retries, time-outs and concurrency are the wrapped model's own.

    Args:
        model: The LangChain model. It isn't changed: a shallow copy with streaming off is what is called.
    """

    def __init__(self, model: BaseChatModel) -> None:
        self.model = model.model_copy(update={"disable_streaming": True})

    async def complete(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        """Answer a prompt; whatever the wrapped model raises becomes an EndpointError. See ChatModel."""
        known = {name: sampling[name] for name in sampling if name not in ("schema", "logprobs")}
        started = time.perf_counter()
        try:
            message = await self.model.ainvoke([dict(message) for message in messages], **known)
        except StarecError:
            raise
        except Exception as error:
            name = type(self.model).__name__
            kind = _kind_of(error)
            raise EndpointError(f"{name} failed: {type(error).__name__}: {error}"[:500], kind) from error
        return _from_langchain(message, time.perf_counter() - started)


def kind_of_status(status: int) -> str:
    """The EndpointError kind that an HTTP error status (300 to 599) stands for."""
    named = {401: "auth", 403: "auth", 404: "not_found", 408: "timeout", 429: "rate_limit"}
    return named.get(status, "server" if status >= 500 else "bad_request")


def _kind_of(error: Exception) -> str:
    # Providers' errors share no base class, but most carry the HTTP status, and all name time-outs so.
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return kind_of_status(status)
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "timeout"
    if isinstance(error, ConnectionError) or "Connect" in type(error).__name__:
        return "connection"
    return "bad_request" if isinstance(error, (TypeError, ValueError)) else "server"


def _from_langchain(message: AIMessage, latency: float) -> Completion:
    used: Mapping[str, Any] = message.usage_metadata or {}
    about = message.response_metadata
    thoughts = [block["reasoning"] for block in message.content_blocks if block["type"] == "reasoning"]
    tokens = (about.get("logprobs") or {}).get("content") or []
    return Completion(
        text=str(message.text),
        reasoning="\n".join(thoughts) or message.additional_kwargs.get("reasoning_content"),
        finish_reason=about.get("finish_reason") or about.get("stop_reason"),
        usage=Usage(
            prompt_tokens=used.get("input_tokens", 0),
            completion_tokens=used.get("output_tokens", 0),
            cached_tokens=used.get("input_token_details", {}).get("cache_read", 0),
        ),
        latency=latency,
        model=about.get("model_name") or "",
        logprobs=tuple(token["logprob"] for token in tokens) or None,
    )
