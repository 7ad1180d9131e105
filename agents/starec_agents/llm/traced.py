"""A model's requests as spans, where somebody traces: through LangChain's callbacks, as LangGraph tells of its nodes.

So whatever listens to these sees both, prompts, answers and tokens included: LangSmith, MLflow
(`mlflow.langchain.autolog()`), OpenTelemetry's instrumentations of LangChain, or a callback handler of one's own.
Where nobody listens, nothing is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager
from langchain_core.messages import AIMessage, convert_to_messages
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import var_child_runnable_config

from starec_agents.llm.base import ChatModel, Completion, Message, model_name


async def complete(llm: ChatModel, task: str, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Completion:
    """A model's answer, with a span of that task's name if the node that asks is listened to; see ChatModel."""
    listeners = None if getattr(llm, "traces_itself", False) else _listeners(_about(llm, sampling))
    if listeners is None:
        return await llm.complete(messages, **sampling)
    (span,) = await listeners.on_chat_model_start(
        {"name": type(llm).__name__, "id": ["starec", type(llm).__name__], "kwargs": {"model": model_name(llm)}},
        [convert_to_messages([dict(message) for message in messages])],
        name=task,
        invocation_params={"model": model_name(llm), **_sampling(llm, sampling)},
    )
    try:
        answer = await llm.complete(messages, **sampling)
    except BaseException as error:
        await span.on_llm_error(error)
        raise
    await span.on_llm_end(_result(answer))
    return answer


def _listeners(about: Mapping[str, Any]) -> AsyncCallbackManager | None:
    config = var_child_runnable_config.get()
    given = config.get("callbacks") if config else None
    if not isinstance(given, AsyncCallbackManager) or not given.handlers:
        return None
    return AsyncCallbackManager.configure(given, local_metadata=dict(about))


def _sampling(llm: ChatModel, sampling: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: getattr(getattr(llm, "endpoint", None), name, None) for name in ("temperature", "top_p", "max_tokens")}
    return {name: value for name, value in {**own, **sampling}.items() if value is not None}


def _about(llm: ChatModel, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """What LangSmith's tracers look for in a chat model's metadata."""
    known = {f"ls_{name}": value for name, value in _sampling(llm, sampling).items() if name in _PARAMETERS}
    return {"ls_provider": "openai", "ls_model_type": "chat", "ls_model_name": model_name(llm), **known}


_PARAMETERS = ("temperature", "max_tokens", "stop")


def _result(answer: Completion) -> LLMResult:
    used = answer.usage
    message = AIMessage(
        answer.text,
        additional_kwargs={"reasoning_content": answer.reasoning} if answer.reasoning else {},
        response_metadata={"finish_reason": answer.finish_reason, "model_name": answer.model},
        usage_metadata={
            "input_tokens": used.prompt_tokens,
            "output_tokens": used.completion_tokens,
            "total_tokens": used.prompt_tokens + used.completion_tokens,
            "input_token_details": {"cache_read": used.cached_tokens},
        },
    )
    generation = ChatGeneration(message=message, generation_info={"finish_reason": answer.finish_reason})
    tokens = {"prompt_tokens": used.prompt_tokens, "completion_tokens": used.completion_tokens}
    return LLMResult(
        generations=[[generation]],
        llm_output={"token_usage": {**tokens, "total_tokens": sum(tokens.values())}, "model_name": answer.model},
    )
