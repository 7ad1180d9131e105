"""LLMRank: zero-shot ranking with three ways to ask, and bootstrapping against position bias."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from starec_agents.agent import model_name
from starec_agents.graph import Context, ask_ranking
from starec_agents.llm import ChatModel, Message
from starec_agents.llm.base import Call
from starec_agents.memory import Memory
from starec_agents.tasks import MAX_HISTORY, nouns_of, ranking_format
from starec_agents.tasks.titles import item_title
from starec_env.errors import InvalidOption, check_choice
from starec_env.types import Candidates, Feedback, ParseReport, Query, Ranking

PROMPTS = ("sequential", "recency", "in-context")
"""What the paper calls sequential prompting, recency-focused prompting and in-context learning."""


class LLMRank:
    """A zero-shot ranker without a memory, as an agent of a population.

    After Hou et al., "Large Language Models are Zero-Shot Rankers for Recommender Systems", ECIR 2024; the wording is
    ours.

    All interactions are shown in order, liked or not, as that paper does. `bootstrap` answers are had, the first to
    the candidates as shown and the others to shuffles of them, and candidates are sorted by their mean place; one
    that an answer leaves out stands last in that answer, and one that no answer names isn't ranked.

    Args:
        llm: Answers the prompts.
        prompt: "sequential": the history in order; "recency": and its last item named once more; "in-context": the
            history but for its last item, that item as the example of a right recommendation, and the task after it.
        bootstrap: Answers for each query.
        answer_format: "paper", "labels" or "scores".
        structured: With "compact", the old name of "labels": "scores".
        max_history: Interactions shown.
        seed: Of the shuffles.
        sampling: Goes with every request.

    Raises:
        InvalidOption: An option is out of its range.
    """

    def __init__(
        self,
        llm: ChatModel,
        prompt: str = "sequential",
        *,
        bootstrap: int = 3,
        answer_format: str = "paper",
        structured: bool = False,
        max_history: int = MAX_HISTORY,
        seed: int = 0,
        **sampling: Any,
    ) -> None:
        check_choice("prompt", prompt, PROMPTS)
        if bootstrap < 1:
            raise InvalidOption(f"bootstrap={bootstrap}: at least one answer is needed")
        self.llm, self.prompt, self.bootstrap, self.seed = llm, prompt, bootstrap, seed
        self.context = Context(llm, ranking_format(answer_format, structured).name, max_history, sampling)
        self.memory: Memory | None = None
        self.calls: list[Call] = []

    @property
    def settings(self) -> Mapping[str, Any]:
        """What makes it itself."""
        return {
            "model": model_name(self.llm),
            "graph": f"llmrank-{self.prompt}",
            "bootstrap": self.bootstrap,
            "answer_format": self.context.answer_format,
            "max_history": self.context.max_history,
            "sampling": dict(self.context.sampling),
        }

    async def arank(self, query: Query) -> Ranking:
        """Rank by the mean place over the bootstrap's answers."""
        orders = [_shuffle(query, self.seed, number) for number in range(self.bootstrap)]
        answers = await asyncio.gather(*(self._ask(query, order) for order in orders))
        self.calls = [call for _, call in answers]
        return merge([ranking for ranking, _ in answers], orders)

    async def alearn(self, feedback: Feedback) -> Memory:
        """Learn nothing."""
        return Memory()

    async def _ask(self, query: Query, order: Sequence[int]) -> tuple[Ranking, Call]:
        shown = Candidates([query.candidates[place] for place in order], np.arange(len(order), dtype=np.int32))
        return await ask_ranking(self.context, shown, llmrank_messages(query, shown, self.prompt, self.context))


def llmrank_messages(query: Query, shown: Candidates, prompt: str, context: Context) -> list[Message]:
    """LLMRank's prompt for candidates in the order `shown`."""
    nouns = nouns_of(query.domain)
    titles = [item_title(item) for item in query.history.items[-context.max_history :]]
    chosen, last = titles, titles[-1] if titles else ""
    if prompt == "in-context":
        chosen = titles[:-1]
    parts = ["\n".join([f"The {nouns.many} I have chosen so far, in order, oldest first:", *chosen])]
    if prompt == "recency" and last:
        parts.append(f"Note that the {nouns.one} I chose most recently is {last}.")
    elif prompt == "in-context" and last:
        parts.append(f"After those, a good recommendation for me was {last}, and I have chosen it now.")
    parts.append("\n".join([f"Candidate {nouns.many}:", *context.ranking_format.lines(shown)]))
    parts.append(f"Rank all {len(shown)} of them by how likely I am to choose them next.")
    system = (
        f"You are a {nouns.kind} recommender. Judge from what the user chose so far, and in which order.\n"
        f"{context.ranking_format.instructions()}"
    )
    return [{"role": "system", "content": system}, {"role": "user", "content": "\n\n".join(parts)}]


def merge(answers: Sequence[Ranking], orders: Sequence[Sequence[int]]) -> Ranking:
    """One ranking from answers to several orders of the same candidates, by mean place.

    Args:
        answers: Rankings of positions as shown in each answer's order.
        orders: For each answer, the (n,) original positions in the order shown.

    Returns:
        A ranking of original positions; equal means go by the best single place, then by the place shown first.
        The report sums those of all answers, but for `missing`, which counts candidates that none ranked.
    """
    n = len(orders[0])
    places = np.full((len(answers), n), float(n))
    for row, (answer, order) in enumerate(zip(answers, orders, strict=True)):
        for place, position in enumerate(answer.order):
            places[row, order[position]] = place
    ranked = np.lexsort((np.arange(n), places.min(axis=0), places.mean(axis=0)))
    kept = tuple(int(position) for position in ranked if places[:, position].min() < n)
    reports = [answer.report.model_dump() for answer in answers]
    found: dict[str, Any] = {name: sum(report[name] for report in reports) for name in _COUNTS}
    found |= {name: any(report[name] for report in reports) for name in _FAULTS}
    report = ParseReport(**found, missing=n - len(kept))
    return Ranking(order=kept, text="\n\n".join(answer.text for answer in answers), report=report)


_COUNTS = ("repeated", "invented", "tied")
_FAULTS = ("cut_off", "empty", "no_answer", "too_long")


def _shuffle(query: Query, seed: int, number: int) -> list[int]:
    n = len(query.candidates)
    if number == 0:
        return list(range(n))
    asked = f"{seed} {number} {query.user.id} {[item.id for item in query.candidates]}"
    word = int.from_bytes(blake2b(asked.encode(), digest_size=8).digest(), "big")
    order: list[int] = np.random.default_rng(word).permutation(n).tolist()
    return order
