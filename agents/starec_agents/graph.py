"""The agent's two halves as one LangGraph graph: fast thinking before the environment's answer, slow thinking after it.

    START -> fast_rank -> END                                      without feedback in the state
    START -> compare -> (reflect ->) update_memory -> END          with it

The environment stands between the two. Nothing is checkpointed: a run's record already is the checkpoint. These graphs
are straight, so that `UserAgent` walks them directly.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from pydantic import GetPydanticSchema
from pydantic_core import core_schema
from typing_extensions import TypedDict

from starec_agents.llm import ChatModel, Message
from starec_agents.parsing import parse_profile, parse_ranking
from starec_agents.prompts import MAX_HISTORY, event_line, rank_messages, ranking_schema, reflect_messages
from starec_env.errors import unknown
from starec_env.types import Call, Candidates, Feedback, Memory, Query, Ranking

_OPAQUE = GetPydanticSchema(lambda *_: core_schema.any_schema())  # live objects, which JSON schemas leave open


class State(TypedDict, total=False):
    """What the nodes read and write; a graph of your own with these keys drops in."""

    query: Annotated[Query, _OPAQUE]
    memory: Memory
    feedback: Feedback
    """Present in the slow half only."""
    ranking: Ranking
    agrees: bool
    """Whether the prediction agrees with the feedback."""
    profile: str | None
    """What a reflection wrote, for update_memory; None if it wrote nothing usable."""
    calls: Annotated[tuple[Call, ...], operator.add]
    """Requests made; a node returns its own alone."""


@dataclass(frozen=True)
class Context:
    """What the nodes work with and never change: `runtime.context`."""

    llm: Annotated[ChatModel, _OPAQUE]
    answer_format: str = "paper"
    structured: bool = False
    max_history: int = MAX_HISTORY
    sampling: Mapping[str, Any] = field(default_factory=dict)
    models: Annotated[Mapping[str, ChatModel], _OPAQUE] = field(default_factory=dict)
    """Chat models by name, for nodes that ask another than `llm`."""

    @property
    def asks_scores(self) -> bool:
        """Whether the answer is a JSON object of scores that the server enforces."""
        return self.structured and self.answer_format == "compact"

    def chat(self, model: str | None = None) -> ChatModel:
        """The chat model of that name, or `llm` without one.

        Raises:
            UnknownName: There is no such model.
        """
        if model is None:
            return self.llm
        if model not in self.models:
            raise unknown("model for nodes", model, self.models)
        return self.models[model]


Graph = CompiledStateGraph[State, Context, State, State]


async def call_model(
    context: Context, kind: str, messages: Sequence[Message], *, model: str | None = None, **sampling: Any
) -> Call:
    """Ask a model, and keep question and answer.

    Args:
        context: Has the models and the sampling options.
        kind: What the call is for, e.g. "rank".
        messages: The prompt.
        model: Which of the context's models; None for its `llm`.
        sampling: Options for this call, over those of the context.

    Raises:
        EndpointError: No usable answer could be had.
        UnknownName: The context has no model of that name.
    """
    answer = await context.chat(model).complete(messages, **{**context.sampling, **sampling})
    return Call(
        kind=kind, messages=tuple(messages), completion=answer.text, **answer.model_dump(exclude={"text", "model"})
    )


async def ask_ranking(
    context: Context, candidates: Candidates, messages: Sequence[Message], *, model: str | None = None, **sampling: Any
) -> tuple[Ranking, Call]:
    """Have a model answer a ranking prompt, and read the answer.

    Args:
        context: Has the models, the answer format and the sampling options.
        candidates: What is to be ranked, in the order that the prompt shows.
        messages: The prompt.
        model: Which of the context's models; None for its `llm`.
        sampling: Options for this call, over those of the context.

    Raises:
        EndpointError: No usable answer could be had.
        UnknownName: The context has no model of that name.
    """
    if context.asks_scores:
        sampling = {"schema": ranking_schema(len(candidates)), **sampling}
    call = await call_model(context, "rank", messages, model=model, **sampling)
    ranking = parse_ranking(call.completion, candidates, context.answer_format)
    if call.reasoning:
        ranking = ranking.model_copy(update={"text": f"<think>\n{call.reasoning}\n</think>\n{ranking.text}"})
    return ranking, call


async def fast_rank(state: State, runtime: Runtime[Context]) -> State:
    """Rank the candidates by the memory (4.1.2)."""
    context, query = runtime.context, state["query"]
    messages = rank_messages(query, state["memory"], context.answer_format, context.asks_scores, context.max_history)
    ranking, call = await ask_ranking(context, query.candidates, messages)
    return {"ranking": ranking, "calls": (call,)}


async def compare(state: State) -> State:
    """Compare what the ranking predicted with what the user did (4.1.3, behaviour analysis)."""
    return {"agrees": state["feedback"].agrees}


async def reflect(state: State, runtime: Runtime[Context]) -> State:
    """Have the model rewrite the profile (4.1.3, self-reflection)."""
    context = runtime.context
    asked = (state["query"], state["memory"], state["ranking"], state["feedback"])
    messages = reflect_messages(*asked, context.answer_format, context.max_history)
    call = await call_model(context, "reflect", messages)
    return {"profile": parse_profile(call.completion), "calls": (call,)}


async def update_memory(state: State) -> State:
    """Put the new profile, if there is one, and the turn's line into the memory (4.1.3, last sentence)."""
    event = event_line(state["query"], state["feedback"])
    return {"memory": state["memory"].updated(profile=state.get("profile"), event=event)}


# The routes are async too: LangGraph sends synchronous ones through a thread pool.
async def _half(state: State) -> str:
    return "fast_rank" if state.get("feedback") is None else "compare"


async def _unless_agreed(state: State) -> str:
    return "update_memory" if state["agrees"] else "reflect"


def build_graph(name: str = "reflect-always", reflects: Literal["always", "on mismatch", "never"] = "always") -> Graph:
    """Build and compile the graph.

    Args:
        name: Is recorded with each run.
        reflects: When the model is asked to rewrite the profile.
    """
    graph = StateGraph(State, context_schema=Context)
    graph.add_node(fast_rank)
    graph.add_node(compare)
    graph.add_node(update_memory)
    graph.add_conditional_edges(START, _half, ["fast_rank", "compare"])
    if reflects == "never":
        graph.add_edge("compare", "update_memory")
    else:
        graph.add_node(reflect)
        graph.add_edge("reflect", "update_memory")
        if reflects == "always":
            graph.add_edge("compare", "reflect")
        else:
            graph.add_conditional_edges("compare", _unless_agreed, ["reflect", "update_memory"])
    graph.add_edge("update_memory", END)
    graph.add_edge("fast_rank", END)
    return graph.compile(name=name)
