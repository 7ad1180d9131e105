"""All of starec's usual names in one place; each package loads when one of its names is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starec_agents import LangChainChat as LangChainChat
    from starec_agents import OpenAIChat as OpenAIChat
    from starec_agents import ScriptedChat as ScriptedChat
    from starec_agents import UserAgent as UserAgent
    from starec_agents import arun_population as arun_population
    from starec_agents import build_graph as build_graph
    from starec_agents import read_steps as read_steps
    from starec_agents import run_population as run_population
    from starec_agents.llm.base import Endpoint as Endpoint
    from starec_env import Dataset as Dataset
    from starec_env import DataSpec as DataSpec
    from starec_env import from_frame as from_frame
    from starec_env import load_dataset as load_dataset
    from starec_env import prepare as prepare
    from starec_eval.evaluate import evaluate as evaluate
    from starec_eval.protocol import Protocol as Protocol
    from starec_eval.rankers import build_methods as build_methods

_NAMES = {
    "starec_env": "DataSpec Dataset from_frame load_dataset prepare",
    "starec_agents.llm": "Endpoint",
    "starec_agents": "LangChainChat OpenAIChat ScriptedChat UserAgent arun_population build_graph read_steps "
    "run_population",
    "starec_eval.evaluate": "evaluate",
    "starec_eval.rankers": "build_methods",
    "starec_eval.protocol": "Protocol",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}
__all__ = [*_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'starec' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
