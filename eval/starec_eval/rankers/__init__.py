"""Everything that ranks: a small file a method, one registry of their names, and room for one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from langgraph.graph import StateGraph
from langgraph.graph.state import CompiledStateGraph

from starec_agents.agent import UserAgent
from starec_agents.llm import ChatModel
from starec_agents.llm.base import Endpoint
from starec_agents.llm.client import OpenAIChat
from starec_env.cases import Batch
from starec_env.errors import InvalidOption, unknown
from starec_env.named import load_function
from starec_eval.rankers.agentcf import agentcf
from starec_eval.rankers.bpr import BPR
from starec_eval.rankers.ease import EASE
from starec_eval.rankers.ensemble import Ensemble
from starec_eval.rankers.gru4rec import GRU4Rec
from starec_eval.rankers.item_knn import ItemKNN
from starec_eval.rankers.llmrank import LLMRank
from starec_eval.rankers.markov import Markov
from starec_eval.rankers.next_id import NextId
from starec_eval.rankers.pop import Pop
from starec_eval.rankers.random import Random
from starec_eval.rankers.recorded import CaseTurns, LLMRanker
from starec_eval.rankers.sasrec import SASRec
from starec_eval.rankers.scorer import Scorer
from starec_eval.rankers.starec import GRAPHS, starec
from starec_eval.rankers.twin import TwinChoice

BASELINES: dict[str, Callable[..., Scorer]] = {
    "random": Random,
    "next-id": NextId,
    "pop": Pop,
    "item-knn": ItemKNN,
    "markov": Markov,
    "ease": EASE,
    "bpr": BPR,
    "gru4rec": GRU4Rec,
    "sasrec": SASRec,
    "twin": TwinChoice,
}
"""Scorers by name; "random" and "next-id" are controls, which learn nothing. "NAME-full" trains on all users."""


def _llmrank(llm: ChatModel, prompt: str, *, name: str, warmup: int, **options: Any) -> LLMRanker:
    return LLMRanker(name, partial(LLMRank, llm, prompt, **options))


ASKING: dict[str, Callable[..., LLMRanker]] = {
    **{graph: partial(starec, graph=graph) for graph in GRAPHS},
    "llmrank": partial(_llmrank, prompt="sequential"),
    "llmrank-recency": partial(_llmrank, prompt="recency"),
    "llmrank-in-context": partial(_llmrank, prompt="in-context"),
    "agentcf-like": agentcf,
}
"""Makers of the methods that ask a model, by name."""
LLM_METHODS = tuple(ASKING)


def split(method: str) -> tuple[str, str]:
    """The method and the endpoint of "method@endpoint"; "" for an endpoint that isn't named."""
    name, _, endpoint = method.partition("@")
    return name, endpoint


def asks(method: str) -> bool:
    """Whether a method of that name asks a model; of one's own this reads the function."""
    name = split(method)[0]
    if ":" not in name:
        return name in ASKING
    made = load_function(name, "--methods")
    if not callable(made):
        raise InvalidOption(f"--methods {name}: a {type(made).__name__} makes no ranker: wanted MODULE:FUNCTION")
    return bool(signature(made).parameters)


def build_llm(method: str, llm: ChatModel, *, name: str | None = None, warmup: int = 10, **options: Any) -> LLMRanker:
    """A method that asks a model.

    Args:
        method: One of `LLM_METHODS`.
        llm: Answers its prompts.
        name: In tables; None for the method's.
        warmup: Turns that agents learn from before the held-out one; LLMRank and rank-only have none, the others at
            least one.
        options: answer_format, structured, max_history and sampling.

    Raises:
        UnknownName: With the nearest name that exists.
        InvalidOption: A number is out of its range.
    """
    known = split(method)[0]
    if known not in ASKING:
        raise unknown("LLM method", method, LLM_METHODS)
    return ASKING[known](llm, name=name or method, warmup=warmup, **options)


def build(names: Iterable[str], seed: int = 0) -> list[Scorer]:
    """Scorers from names; "-full" after a name trains it on all users instead of the sampled ones.

    "ensemble" averages the others that are named and learn, or all that learn if none is; "ensemble-full" likewise
    those trained on all users.

    Raises:
        UnknownName: With the nearest name that exists.
    """
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name.removesuffix("-full") not in (*BASELINES, "ensemble"):
            raise unknown("method", name, [*BASELINES, "ensemble"])
    made = {name: _one(name, seed) for name in wanted if not name.startswith("ensemble")}
    return [made[name] if name in made else _ensemble(name, made, seed) for name in wanted]


def _one(name: str, seed: int) -> Scorer:
    base = name.removesuffix("-full")
    return BASELINES[base](seed=seed) if base == name else BASELINES[base](seed=seed, train="full")


def _ensemble(name: str, made: Mapping[str, Scorer], seed: int) -> Ensemble:
    full = name.removeprefix("ensemble")
    learners = [f"{learner}{full}" for learner in BASELINES if learner not in ("random", "next-id", "pop")]
    named = [made[learner] for learner in learners if learner in made]
    members = named or [_one(learner, seed) for learner in learners]
    return Ensemble(members=members, train="full" if full else "sample", seed=seed)


def build_methods(
    methods: Iterable[str],
    endpoints: Mapping[str, Endpoint],
    *,
    seed: int = 0,
    model_cards: Mapping[str, str | Path] | None = None,
    **options: Any,
) -> list[Any]:
    """Methods in the order named, each once, as `evaluate` takes them.

    Args:
        methods: Names of `BASELINES` ("-full" for training on all users), "ensemble", `LLM_METHODS`, or MODULE:FUNCTION
            for one's own: a function without parameters that returns a ranker, or one that takes a chat model and
            returns a ranker or an agent's graph. Those that ask a model have "@" and an endpoint's name if it isn't
            the one called "".
        endpoints: By name; one client is made for each that is used.
        seed: Of the baselines.
        model_cards: By endpoint the folder of its model, for its card.
        options: Of `build_llm`: warmup, answer_format, structured, max_history and sampling.

    Raises:
        UnknownName: There is no such method or endpoint; with the nearest that there is.
        InvalidOption: A method that asks a model has no endpoint, or a function isn't there.
    """
    wanted = list(dict.fromkeys(methods))
    for method in wanted:
        name = split(method)[0]
        if ":" not in name and name not in ASKING and name.removesuffix("-full") not in (*BASELINES, "ensemble"):
            raise unknown("method", method, [*BASELINES, "ensemble", *LLM_METHODS, "MODULE:FUNCTION"])
    scorers = iter(build([name for name in wanted if ":" not in name and not asks(name)], seed))
    chats: dict[str, ChatModel] = {}
    made: list[Any] = []
    for method in wanted:
        name, endpoint = split(method)
        if not asks(method):
            made.append((method, load_function(name, "--methods")()) if ":" in name else next(scorers))
            continue
        if endpoint not in endpoints:
            if not endpoint:
                raise InvalidOption(f"method {method} asks a model: give --base-url and --model")
            raise unknown("endpoint", endpoint, [known for known in endpoints if known])
        chat = chats.setdefault(endpoint, OpenAIChat(endpoints[endpoint]))
        ranker = ask(method, chat, **options)
        if isinstance(ranker, LLMRanker):
            ranker = replace(ranker, model_card=(model_cards or {}).get(endpoint))
        made.append(ranker if isinstance(ranker, LLMRanker) else (method, ranker))
    return made


def ask(method: str, llm: ChatModel, *, warmup: int = 10, **options: Any) -> Any:
    """A method that asks a model, of ours (`build_llm`) or MODULE:FUNCTION; a graph's agents learn on warm-up turns."""
    name = split(method)[0]
    if ":" not in name:
        return build_llm(name, llm, name=method, warmup=warmup, **options)
    made = load_function(name, "--methods")(llm)
    if isinstance(made, StateGraph | CompiledStateGraph):
        return LLMRanker(method, UserAgent.factory(llm, graph=made, **options), warmup)
    return made


__all__ = [
    "ASKING",
    "BASELINES",
    "BPR",
    "EASE",
    "GRAPHS",
    "LLM_METHODS",
    "Batch",
    "CaseTurns",
    "Ensemble",
    "GRU4Rec",
    "ItemKNN",
    "LLMRank",
    "LLMRanker",
    "Markov",
    "NextId",
    "Pop",
    "Random",
    "SASRec",
    "Scorer",
    "TwinChoice",
    "agentcf",
    "ask",
    "asks",
    "build",
    "build_llm",
    "build_methods",
    "split",
    "starec",
]
