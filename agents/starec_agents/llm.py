"""Chat models: the protocol, and the models that need no server."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from starec_env.types import Usage

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
            sampling: Any of temperature, top_p, max_tokens, seed, stop, and `schema`: a JSON schema that the answer
                must fit, for servers with structured output. A model may ignore what it can't do.

        Raises:
            EndpointError: No usable answer could be had.
        """
        ...
