"""STARec's agent and its ablations as methods of the protocol."""

from __future__ import annotations

from typing import Any

from starec_agents import graphs
from starec_agents.agent import UserAgent
from starec_agents.llm import ChatModel
from starec_env.errors import InvalidOption
from starec_eval.rankers.recorded import LLMRanker

GRAPHS = {
    "starec": graphs.reflect_always,
    "append-history": graphs.append_history,
    "reflect-on-mismatch": graphs.reflect_on_mismatch,
    "rank-only": graphs.rank_only,
}
"""The agent, and its ablations (5.3.1): without self-reflection, reflecting only on a mismatch, without a memory."""


def starec(
    llm: ChatModel, graph: str = "starec", *, name: str | None = None, warmup: int = 10, **options: Any
) -> LLMRanker:
    """An agent that learns on its user's last `warmup` turns before it ranks the protocol's lists.

    The teacher of Table 4 is this agent at the teacher's endpoint.

    Args:
        llm: Answers the prompts.
        graph: One of `GRAPHS`; "rank-only" has nothing to learn with and is never warmed up.
        name: In tables; None for the graph's.
        warmup: Turns to learn from, 1 to 39; at 0 all graphs would send the prompts of "rank-only".
        options: Of `UserAgent`: answer_format, structured, max_history and sampling.

    Raises:
        InvalidOption: `warmup` is 0 for a graph that learns, or out of its range.
    """
    if graph != "rank-only" and not warmup:
        raise InvalidOption(
            f"{name or graph} learns from turns before the held-out one, and warmup=0 leaves none: its prompts would "
            "be those of rank-only. Give --warmup 10, as the default is, or evaluate rank-only"
        )
    agent = UserAgent.factory(llm, graph=GRAPHS[graph](), **options)
    return LLMRanker(name or graph, agent, 0 if graph == "rank-only" else warmup)
