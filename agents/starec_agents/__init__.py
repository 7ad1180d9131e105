"""LLM user agents: prompts, parsing, graphs, chat models and populations of agents. Names load when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starec_agents import graphs as graphs
    from starec_agents._trial import check_graph as check_graph
    from starec_agents.agent import UserAgent as UserAgent
    from starec_agents.calibration import Calibration as Calibration
    from starec_agents.graph import Context as Context
    from starec_agents.graph import State as State
    from starec_agents.graph import build_graph as build_graph
    from starec_agents.graphs import append_history as append_history
    from starec_agents.graphs import rank_only as rank_only
    from starec_agents.graphs import reflect_always as reflect_always
    from starec_agents.graphs import reflect_on_mismatch as reflect_on_mismatch
    from starec_agents.llm import LangChainChat as LangChainChat
    from starec_agents.llm import ScriptedChat as ScriptedChat
    from starec_agents.llm import scripted_user as scripted_user
    from starec_agents.llm.base import Endpoint as Endpoint
    from starec_agents.llm.client import Balanced as Balanced
    from starec_agents.llm.client import OpenAIChat as OpenAIChat
    from starec_agents.outside import Session as Session
    from starec_agents.outside import play_turns as play_turns
    from starec_agents.outside import play_visit as play_visit
    from starec_agents.responder import AgentResponder as AgentResponder
    from starec_agents.runs.population import arun_population as arun_population
    from starec_agents.runs.population import run_population as run_population
    from starec_agents.runs.reading import read_steps as read_steps
    from starec_agents.runs.reading import read_trajectories as read_trajectories
    from starec_agents.user_model import AgentModel as AgentModel
    from starec_agents.user_model import calibrate as calibrate

_HOMES = {
    "check_graph": "_trial",
    "UserAgent": "agent",
    "AgentModel": "user_model",
    "AgentResponder": "responder",
    "Calibration": "calibration",
    "calibrate": "user_model",
    "Balanced": "llm.client",
    "Context": "graph",
    "Session": "outside",
    "play_turns": "outside",
    "play_visit": "outside",
    "State": "graph",
    "build_graph": "graph",
    "LangChainChat": "llm",
    "ScriptedChat": "llm",
    "OpenAIChat": "llm.client",
    "arun_population": "runs.population",
    "run_population": "runs.population",
    "scripted_user": "llm",
    "read_steps": "runs.reading",
    "read_trajectories": "runs.reading",
    "append_history": "graphs",
    "rank_only": "graphs",
    "reflect_always": "graphs",
    "reflect_on_mismatch": "graphs",
}
__all__ = [*_HOMES, "Endpoint", "graphs"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name == "graphs":
        return import_module("starec_agents.graphs")
    if name == "Endpoint":
        return import_module("starec_agents.llm.base").Endpoint
    if name in _HOMES:
        return getattr(import_module(f"starec_agents.{_HOMES[name]}"), name)
    import_module("starec_env._moved")  # modules at their former names are then found as submodules
    raise AttributeError(f"module 'starec_agents' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
