"""What an agent does as one LangGraph graph: fast thinking before the environment's answer, slow thinking after it.

    START -> fast_rank -> END                                      with neither of these in the state
    START -> respond -> END                                        with a visit
    START -> compare -> (reflect ->) update_memory -> END          with feedback

The environment stands between. Nothing is checkpointed: a run's record already is the checkpoint. These graphs
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
from starec_agents.llm.base import Call
from starec_agents.memory import Event, Memory
from starec_agents.tasks import (
    MAX_HISTORY,
    ProfileFormat,
    Prompts,
    RankingFormat,
    Response,
    ResponseFormat,
    Visit,
    event_of,
    profile_format,
    ranking_format,
    response_format,
    target_position,
)
from starec_agents.tasks.titles import item_title
from starec_env.errors import unknown
from starec_env.types import Candidates, Feedback, Query, Ranking, SlateFeedback

_OPAQUE = GetPydanticSchema(lambda *_: core_schema.any_schema())  # live objects, which JSON schemas leave open


class State(TypedDict, total=False):
    """What the nodes read and write; a graph of your own with these keys drops in."""

    query: Annotated[Query, _OPAQUE]
    memory: Memory
    visit: Visit
    """Present where a slate is to be answered; a graph that doesn't look at it ranks the slate."""
    feedback: Feedback | SlateFeedback
    """Present in the slow half only; on a slate's items where a visit has ended."""
    ranking: Ranking
    response: Response
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
    """One of ANSWER_FORMATS: "paper", "labels" or "scores"."""
    max_history: int = MAX_HISTORY
    sampling: Mapping[str, Any] = field(default_factory=dict)
    models: Annotated[Mapping[str, ChatModel], _OPAQUE] = field(default_factory=dict)
    """Chat models by name, for nodes that ask another than `llm`."""
    prompts: Annotated[Prompts, _OPAQUE] = field(default_factory=Prompts)
    """The wording of all tasks."""

    @property
    def ranking_format(self) -> RankingFormat:
        """The format of rankings."""
        return ranking_format(self.answer_format)

    @property
    def profile_format(self) -> ProfileFormat:
        """The format of new profiles."""
        return profile_format(self.answer_format)

    @property
    def response_format(self) -> ResponseFormat:
        """The format of answers to slates."""
        return response_format(self.answer_format)

    def rank_messages(self, query: Query, memory: Memory) -> list[Message]:
        """The ranking task's prompt."""
        return self.prompts.rank(query, memory, self.answer_format, self.max_history)

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
    if schema := context.ranking_format.schema(len(candidates)):
        sampling = {"schema": schema, **sampling}
    call = await call_model(context, "rank", messages, model=model, **sampling)
    return context.ranking_format.parse(call.answer, candidates, call.cut_off), call


async def fast_rank(state: State, runtime: Runtime[Context]) -> State:
    """Rank the candidates by the memory (4.1.2)."""
    context, query = runtime.context, state["query"]
    ranking, call = await ask_ranking(context, query.candidates, context.rank_messages(query, state["memory"]))
    return {"ranking": ranking, "calls": (call,)}


async def respond(state: State, runtime: Runtime[Context]) -> State:
    """Answer the slate as the user would."""
    context, query, visit = runtime.context, state["query"], state["visit"]
    form, n = context.response_format, len(query.candidates)
    messages = context.prompts.respond(query, state["memory"], visit, context.answer_format, context.max_history)
    enforced: dict[str, Any] = {"schema": schema} if (schema := form.schema(n, visit)) else {}
    call = await call_model(context, "respond", messages, **enforced)
    return {"response": form.parse(call.answer, n, visit, call.cut_off), "calls": (call,)}


async def compare(state: State) -> State:
    """Compare what the ranking predicted with what the user did (4.1.3, behaviour analysis)."""
    return {"agrees": state["feedback"].agrees}


async def reflect(state: State, runtime: Runtime[Context]) -> State:
    """Have the model rewrite the profile (4.1.3, self-reflection)."""
    context, feedback = runtime.context, state["feedback"]
    known, asked = (state["query"], state["memory"]), (context.answer_format, context.max_history)
    if isinstance(feedback, SlateFeedback):
        messages = context.prompts.reflect_visit(*known, feedback, *asked)
    else:
        messages = context.prompts.reflect(*known, state["ranking"], feedback, *asked)
    call = await call_model(context, "reflect", messages)
    profile = context.profile_format.parse(call.answer, call.cut_off)
    return {"profile": profile.text, "calls": (call.model_copy(update={"report": profile.report}),)}


async def update_memory(state: State) -> State:
    """Put the new profile, if there is one, and what happened into the memory (4.1.3, last sentence)."""
    query, feedback = state["query"], state["feedback"]
    if isinstance(feedback, SlateFeedback):
        return {"memory": _after_visit(state["memory"].updated(profile=state.get("profile")), feedback)}
    target, ranked = target_position(query.candidates, feedback), state.get("ranking", Ranking(order=()))
    event = event_of(query, feedback, ranking_format("paper").reason(ranked, query.candidates, target))
    return {"memory": state["memory"].updated(profile=state.get("profile"), event=event)}


def _after_visit(memory: Memory, feedback: SlateFeedback) -> Memory:
    for shown in feedback.shown:
        if shown.taken:
            title, rating = item_title(shown.item), shown.rating
            memory = memory.updated(event=Event(item_id=shown.item.id, title=title, liked=shown.liked, rating=rating))
    return memory


# The routes are async too: LangGraph sends synchronous ones through a thread pool.
async def _half(state: State) -> str:
    if state.get("feedback") is not None:
        return "compare"
    return "fast_rank" if state.get("visit") is None else "respond"


async def _unless_agreed(state: State) -> str:
    return "update_memory" if state["agrees"] else "reflect"


def build_graph(name: str = "reflect-always", reflects: Literal["always", "on mismatch", "never"] = "always") -> Graph:
    """Build and compile the graph.

    Args:
        name: Is recorded with each run.
        reflects: When the model is asked to rewrite the profile.
    """
    graph = StateGraph(State, context_schema=Context)
    for node in (fast_rank, respond, compare, update_memory):
        graph.add_node(node)
    graph.add_conditional_edges(START, _half, ["fast_rank", "respond", "compare"])
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
    graph.add_edge("respond", END)
    return graph.compile(name=name)
