"""Chat models: one client of one or many OpenAI-compatible servers, LangChain's models, and scripted ones."""

from typing import TYPE_CHECKING, Any

from starec_agents.llm.base import Call, ChatModel, Completion, Endpoint, Message, Usage, kind_of_status
from starec_agents.llm.langchain import LangChainChat
from starec_agents.llm.scripted import Reply, ScriptedChat, scripted_user

if TYPE_CHECKING:
    from starec_agents.llm.client import OpenAIChat as OpenAIChat

__all__ = [
    "Call",
    "ChatModel",
    "Completion",
    "Endpoint",
    "LangChainChat",
    "Message",
    "OpenAIChat",
    "Reply",
    "ScriptedChat",
    "Usage",
    "kind_of_status",
    "scripted_user",
]


def __getattr__(name: str) -> Any:
    if name == "OpenAIChat":  # aiohttp loads when it is needed
        from starec_agents.llm.client import OpenAIChat

        return OpenAIChat
    raise AttributeError(f"module 'starec_agents.llm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
