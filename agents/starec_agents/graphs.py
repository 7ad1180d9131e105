"""Ready graphs that differ in how they learn; each is compiled once and shared, since a graph holds no state."""

from __future__ import annotations

from functools import cache

from langgraph.graph import END, START, StateGraph

from starec_agents.graph import Context, Graph, State, build_graph, fast_rank


@cache
def reflect_always() -> Graph:
    """The paper's agent, and the default: every feedback is reflected on.

    4.1.3 is read so: Table 2's task is given prediction and feedback and is itself to find "any discrepancies", a
    target at rank 5 counts as predicted liked and still can be learned from, and 4.2.2 trains and rewards an update
    for each feedback.
    """
    return build_graph("reflect-always")


@cache
def reflect_on_mismatch() -> Graph:
    """Reflect only where prediction and feedback disagree; otherwise the turn's line is appended. Fewer calls."""
    return build_graph("reflect-on-mismatch", reflects="on mismatch")


@cache
def append_history() -> Graph:
    """The paper's "w/o Self-Reflection" (5.3.1): the turn's line is appended to the memory, and no model is asked."""
    return build_graph("append-history", reflects="never")


@cache
def rank_only() -> Graph:
    """Fast thinking alone: the memory stays as it began."""
    graph = StateGraph(State, context_schema=Context)
    graph.add_node(fast_rank)
    graph.add_conditional_edges(START, _unless_feedback, [END, "fast_rank"])
    graph.add_edge("fast_rank", END)
    return graph.compile(name="rank-only")


async def _unless_feedback(state: State) -> str:
    return END if state.get("feedback") else "fast_rank"
