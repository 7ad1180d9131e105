"""The LLM rankers, a small file each, and their names on the command line."""

from __future__ import annotations

from functools import partial
from typing import Any

from starec_agents.llm import ChatModel
from starec_env.errors import unknown
from starec_eval.llm_rankers.agentcf import agentcf
from starec_eval.llm_rankers.llmrank import LLMRank
from starec_eval.llm_rankers.recorded import CaseTurns, LLMRanker
from starec_eval.llm_rankers.starec import GRAPHS, starec

LLMRANK = {"llmrank": "sequential", "llmrank-recency": "recency", "llmrank-in-context": "in-context"}
"""Names of LLMRank's three prompts."""
LLM_METHODS = (*GRAPHS, *LLMRANK, "agentcf")
"""All names."""


def build_llm(method: str, llm: ChatModel, *, name: str | None = None, warmup: int = 10, **options: Any) -> LLMRanker:
    """An LLM ranker by name.

    Args:
        method: One of `LLM_METHODS`.
        llm: Answers its prompts.
        name: In tables; None for the method's.
        warmup: Turns that agents learn from before the held-out one; LLMRank and rank-only have none, the others at
            least one.
        options: answer_format, structured, max_history (AgentCF's prompts tell no history) and sampling.

    Raises:
        UnknownName: With the nearest name that exists.
    """
    name = name or method
    if method in GRAPHS:
        return starec(llm, method, name=name, warmup=warmup, **options)
    if method in LLMRANK:
        return LLMRanker(name, partial(LLMRank, llm, LLMRANK[method], **options))
    if method == "agentcf":
        options.pop("max_history", None)
        return agentcf(llm, name=name, warmup=warmup, **options)
    raise unknown("LLM method", method, LLM_METHODS)


__all__ = ["GRAPHS", "LLM_METHODS", "CaseTurns", "LLMRank", "LLMRanker", "agentcf", "build_llm", "starec"]
