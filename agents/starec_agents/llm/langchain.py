"""Any LangChain chat model as a ChatModel."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, SecretStr

from starec_agents.llm.base import (
    Completion,
    Message,
    Usage,
    bounded,
    count,
    kind_of_status,
    logprobs_of,
    longest_text,
)
from starec_agents.llm.redaction import Secrets
from starec_env.errors import EndpointError, StarecError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage
    from langchain_core.runnables import Runnable

_SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD")


class LangChainChat:
    """Any LangChain chat model as a ChatModel.

    It never streams: streamed answers lose token counts, and LangGraph's `stream_mode="messages"` would turn streaming
    on. temperature, top_p, max_tokens, seed and stop go to the model as given, so give only what its provider knows;
    `schema` and `logprobs` have no common name and are not sent: bind them to the model first (`model.bind(...)`).
    Retries, time-outs and concurrency are the wrapped model's own.

    Args:
        model: The LangChain model, bound arguments included. It isn't changed: a shallow copy with streaming off is
            what is called.
    """

    traces_itself = True  # LangChain tells the callbacks of its own models' calls

    def __init__(self, model: BaseChatModel | Runnable[Any, Any]) -> None:
        self.model: Any = _without_streaming(model)

    def __repr__(self) -> str:
        return f"LangChainChat({_chat_model(self.model)})"

    async def complete(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        """Answer a prompt; whatever the wrapped model raises becomes an EndpointError. See ChatModel."""
        known = {name: sampling[name] for name in sampling if name not in ("schema", "logprobs")}
        started = time.perf_counter()
        try:
            message = await self.model.ainvoke([dict(message) for message in messages], **known)
        except StarecError:
            raise
        except Exception as error:
            secrets = Secrets([*_secrets(self.model), *_secrets_of_environment()])
            said = f"{_chat_model(self.model)} failed: {type(error).__name__}: {error}"
            shown = secrets.hide(said)
            cause = error if shown == said else None  # a traceback shows the cause's text, too
            raise EndpointError(shown[:500], _kind_of(error)) from cause
        limit = longest_text(known.get("max_tokens"))
        return _completion(message, time.perf_counter() - started, limit, Secrets(_secrets(self.model)))


def _without_streaming(model: Any) -> Any:
    if hasattr(model, "bound"):
        return model.model_copy(update={"bound": _without_streaming(model.bound)})
    known = "disable_streaming" in getattr(type(model), "model_fields", ())
    return model.model_copy(update={"disable_streaming": True}) if known else model


def _chat_model(model: Any) -> str:
    return _chat_model(model.bound) if hasattr(model, "bound") else type(model).__name__


def _secrets(model: Any) -> Iterator[str]:
    """The keys that a model, or one that it wraps, holds as pydantic secrets."""
    if isinstance(model, BaseModel):
        for name in type(model).model_fields:
            value = getattr(model, name, None)
            if isinstance(value, SecretStr):
                yield value.get_secret_value()
    if hasattr(model, "bound"):
        yield from _secrets(model.bound)


def _secrets_of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if name.upper().endswith(_SECRET_NAMES) and len(value) >= 8:
            yield value


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


def _completion(message: AIMessage, latency: float, limit: int, secrets: Secrets) -> Completion:
    used: Mapping[str, Any] = message.usage_metadata or {}
    about = message.response_metadata
    return Completion(
        **bounded(
            secrets.hide_in_answer(str(message.text)),
            secrets.hide_in_answer(_reasoning(message)) or None,
            about.get("finish_reason") or about.get("stop_reason"),
            limit,
        ),
        usage=Usage(
            prompt_tokens=count(used.get("input_tokens")),
            completion_tokens=count(used.get("output_tokens")),
            cached_tokens=count((used.get("input_token_details") or {}).get("cache_read")),
        ),
        latency=latency,
        model=str(about.get("model_name") or "")[:200],
        logprobs=logprobs_of(about.get("logprobs")),
    )


def _reasoning(message: AIMessage) -> str:
    thoughts = [str(block.get("reasoning", "")) for block in message.content_blocks if block["type"] == "reasoning"]
    apart = message.additional_kwargs.get("reasoning_content") or message.additional_kwargs.get("reasoning")
    return "\n".join(thoughts) or (apart if isinstance(apart, str) else "")
