"""Methods by name: baselines, LLM rankers, and LLM rankers at a named endpoint ("starec@teacher")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from starec_agents.llm import ChatModel
from starec_agents.llm.base import Endpoint
from starec_agents.llm.client import OpenAIChat
from starec_env.errors import InvalidOption, unknown
from starec_eval.baselines import BASELINES, Scorer, build
from starec_eval.llm_rankers import LLM_METHODS, LLMRanker, build_llm


def split(method: str) -> tuple[str, str]:
    """The method and the endpoint of "method@endpoint"; "" for an endpoint that isn't named."""
    name, _, endpoint = method.partition("@")
    return name, endpoint


def build_methods(
    methods: Iterable[str],
    endpoints: Mapping[str, Endpoint],
    *,
    seed: int = 0,
    model_cards: Mapping[str, str | Path] | None = None,
    **options: Any,
) -> list[Scorer | LLMRanker]:
    """Methods in the order named, each once.

    Args:
        methods: Names of `BASELINES` ("-full" for training on all users), "ensemble", or of `LLM_METHODS`, the latter
            with "@" and an endpoint's name if it isn't the one called "".
        endpoints: By name; one client is made for each that is used.
        seed: Of the baselines.
        model_cards: By endpoint the folder of its model, for its card.
        options: Of `build_llm`: warmup, answer_format, structured, max_history and sampling.

    Raises:
        UnknownName: There is no such method or endpoint; with the nearest that there is.
        InvalidOption: An LLM method has no endpoint.
    """
    wanted = list(dict.fromkeys(methods))
    is_llm = {method: split(method)[0] in LLM_METHODS for method in wanted}
    for method in wanted:
        if not is_llm[method] and split(method)[0].removesuffix("-full") not in (*BASELINES, "ensemble"):
            raise unknown("method", method, [*BASELINES, "ensemble", *LLM_METHODS])
    scorers = iter(build([method for method in wanted if not is_llm[method]], seed))
    chats: dict[str, ChatModel] = {}
    made: list[Scorer | LLMRanker] = []
    for method in wanted:
        if not is_llm[method]:
            made.append(next(scorers))
            continue
        name, endpoint = split(method)
        if endpoint not in endpoints:
            if not endpoint:
                raise InvalidOption(f"method {method} asks a model: give --base-url and --model")
            raise unknown("endpoint", endpoint, [known for known in endpoints if known])
        chat = chats.setdefault(endpoint, OpenAIChat(endpoints[endpoint]))
        ranker = build_llm(name, chat, name=method, **options)
        made.append(replace(ranker, model_card=(model_cards or {}).get(endpoint)))
    return made
