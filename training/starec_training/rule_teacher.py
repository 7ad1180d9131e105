"""A teacher that needs no LLM: it ranks by collaborative evidence, without the answer, and says why in true facts.

It runs as an ordinary agent: the graph's own nodes make the prompts and read the answers, and only what a model would
have said is written here. So its trajectories become rows like any other's, and it stands in tables like any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from starec_agents.agent import UserAgent
from starec_agents.graph import Context, Graph, State, compare, fast_rank, reflect, update_memory
from starec_agents.llm import ScriptedChat
from starec_agents.memory import Memory
from starec_agents.tasks import profile_format, ranking_format, target_position
from starec_agents.tasks.titles import candidate_titles, item_title
from starec_env.errors import InvalidOption
from starec_env.types import Feedback, Item, Query, Ranking, SlateFeedback
from starec_training.features import Evidence, genres_of

_RECENT = 3
_SUPPORT = 2
_OTHERS = 4


class _Named(ScriptedChat):
    """Stands where an agent's model stands, for its name."""

    def __init__(self, model: str, reply: str = "") -> None:
        super().__init__(reply)
        self.model = model


class RuleTeacher:
    """Ranks by evidence of training users, and writes rationales and memories from true facts (4.2.1).

    Args:
        evidence: What training users' streams and the catalogue say.
        thinks: Whether its answers in the compact format have a thought too; those in the paper's always have.

    It is a Ranker itself (`rank`), which is its row in a table without the text.
    """

    name = "rule-based teacher"

    def __init__(self, evidence: Evidence, *, thinks: bool = False) -> None:
        self.evidence, self.thinks = evidence, thinks

    def order(self, query: Query) -> list[int]:
        """0-based candidate positions, best first."""
        return list(self.evidence.rank(query).order)

    def rank(self, query: Query) -> Ranking:
        """Rank the candidates, without a word."""
        return Ranking(order=tuple(self.order(query)))

    def agent(self, **options: Any) -> Callable[[], UserAgent]:
        """What `run_population` makes its agents with; options are UserAgent's, e.g. answer_format."""
        return UserAgent.factory(_Named(self.name), graph=self.graph(), **options)

    def graph(self) -> Graph:
        """The agent's graph with this teacher in the model's place."""

        async def rank(state: State, runtime: Runtime[Context]) -> State:
            context = runtime.context
            said = self.ranking(state["query"], state["memory"], context.answer_format)
            return await fast_rank(state, self._saying(runtime, said))

        async def learn(state: State, runtime: Runtime[Context]) -> State:
            feedback = state["feedback"]
            if isinstance(feedback, SlateFeedback):
                raise InvalidOption("the rule-based teacher reflects on rankings, not on visits to a recommender")
            said = self.reflection(state["query"], state["ranking"], feedback, runtime.context.answer_format)
            return await reflect(state, self._saying(runtime, said))

        graph = StateGraph(State, context_schema=Context)
        graph.add_node("fast_rank", rank)
        graph.add_node("compare", compare)
        graph.add_node("reflect", learn)
        graph.add_node("update_memory", update_memory)
        graph.add_conditional_edges(
            START, lambda state: "compare" if state.get("feedback") else "fast_rank", ["compare", "fast_rank"]
        )
        graph.add_edge("fast_rank", END)
        graph.add_edge("compare", "reflect")
        graph.add_edge("reflect", "update_memory")
        graph.add_edge("update_memory", END)
        return graph.compile(name=self.name.replace(" ", "-"))

    def _saying(self, runtime: Runtime[Context], text: str) -> Runtime[Context]:
        return runtime.override(context=replace(runtime.context, llm=_Named(self.name, text)))

    # The ranking task ------------------------------------------------------------------------------------------------

    def ranking(self, query: Query, memory: Memory, answer_format: str = "paper") -> str:
        """What it answers to the ranking prompt, in any of the formats."""
        order = self.order(query)
        form = ranking_format(answer_format)
        thinks = form.thinks or (self.thinks and form.name != "scores")  # a schema leaves no room for a thought
        thought = self._thought(query, memory, order) if thinks else ""
        return form.render(query.candidates, order, self._reasons(query, order) if form.thinks else None, thought)

    def _thought(self, query: Query, memory: Memory, order: Sequence[int]) -> str:
        liked = _liked(query)
        said = [f"Of {len(query.history)} taken so far, {len(liked)} were liked."]
        if genres := Counter(genre for item in liked for genre in genres_of(item)).most_common(3):
            said.append(f"Liked most often: {', '.join(f'{genre} ({count})' for genre, count in genres)}.")
        if liked:
            said.append(f"Liked last: {_listed(liked[-_RECENT:])}.")
        if memory.history:
            said.append(f"The last turn: {memory.history[-1]}.")
        titles, reasons = candidate_titles(query.candidates), self._reasons(query, order[:_RECENT])
        said += [f"{titles[position]}: {reasons[position]}." for position in order[:_RECENT]]
        return " ".join(said)

    def _reasons(self, query: Query, positions: Sequence[int]) -> dict[int, str]:
        """Why each of some candidates stands where it stands: the strongest fact that is known of it."""
        evidence, batch = self.evidence, self.evidence.batch([query])
        asked = batch.candidates[:, list(positions)]
        counts = evidence.together(batch.users, asked, batch.history)[0]
        weight = counts / np.sqrt(evidence.counts[batch.history[0].clip(0)] + 1.0)
        takers = evidence.counts[asked[0]] - (evidence.places(batch.users, asked)[0] >= 0)
        liked = Counter(genre for item in _liked(query) for genre in genres_of(item))
        reasons = {}
        for place, position in enumerate(positions):
            columns = [c for c in np.argsort(-weight[place], kind="stable")[:_SUPPORT].tolist() if counts[place, c] > 1]
            genres = [genre for genre in genres_of(query.candidates[position]) if liked[genre]]
            if columns:
                with_ = " and ".join(
                    f"{counts[place, c]} who took {item_title(evidence.dataset.items[batch.history[0, c]])}"
                    for c in columns
                )
                reasons[position] = f"also taken by {with_}"
            elif genres:
                reasons[position] = f"{genres[0]}, liked {liked[genres[0]]} times before"
            else:
                reasons[position] = f"taken by {takers[place]} others, none of them near this history"
        return reasons

    # The memory update -----------------------------------------------------------------------------------------------

    def reflection(self, query: Query, ranking: Ranking, feedback: Feedback, answer_format: str = "paper") -> str:
        """What it answers to the reflection prompt."""
        target = query.candidates[target_position(query.candidates, feedback)]
        place = "not ranked" if feedback.rank is None else f"ranked {feedback.rank} of {len(query.candidates)}"
        outcome = f"{item_title(target)} was {place} and {'liked' if feedback.liked else 'disliked'}."
        lesson = self._lesson(target, feedback)
        thought = f"{outcome} {lesson or 'The prediction held.'}"
        profile = " ".join([*self._profile(query, target, feedback), lesson]).strip()
        form = profile_format(answer_format)
        return form.render(profile, thought if form.thinks or self.thinks else "")

    def _lesson(self, target: Item, feedback: Feedback) -> str:
        if feedback.agrees:
            return ""
        genres = " and ".join(genres_of(target)[:2])
        about = f" {'more' if feedback.liked else 'less'} {genres}" if genres else " its like deserve another place"
        surprise = f"in spite of place {feedback.rank}" if feedback.rank else "though it was not ranked"
        return f"{item_title(target)} was {'liked' if feedback.liked else 'disliked'} {surprise}:{about}."

    def _profile(self, query: Query, target: Item, feedback: Feedback) -> list[str]:
        taken = [*query.history.items, target]
        verdicts = [*query.history.liked.tolist(), feedback.liked]
        all_, good = Counter[str](), Counter[str]()
        for item, verdict in zip(taken, verdicts, strict=True):
            all_.update(genres_of(item))
            good.update(genres_of(item) if verdict else ())
        liked = [item for item, verdict in zip(taken, verdicts, strict=True) if verdict]
        said = []
        if best := good.most_common(3):
            said.append(f"Likes {', '.join(f'{genre} ({n} of {all_[genre]})' for genre, n in best)}.")
        if poor := [genre for genre, n in all_.most_common() if n >= 3 and good[genre] <= 0.4 * n][:2]:
            said.append(f"Seldom likes {', '.join(f'{genre} ({good[genre]} of {all_[genre]})' for genre in poor)}.")
        if liked:
            said.append(f"Recently liked: {_listed(liked[: -_RECENT - 1 : -1])}.")
        if others := self._others(query, target):
            said.append(f"People alike also took: {_listed(others)}.")
        return said

    def _others(self, query: Query, target: Item) -> list[Item]:
        """What other training users took together with the newest items, and this user had not taken yet."""
        items, n = self.evidence.dataset.items, Counter[int]()
        user = int(self.evidence.batch([query]).users[0])
        known = {*query.history.item_indices.tolist(), (now := self.evidence.dataset.item_index(target.id))}
        for item in [now, *query.history.item_indices[-_RECENT:].tolist()]:
            near, counts = self.evidence.neighbours(user, item)
            for index, count in zip(near[:20].tolist(), counts[:20].tolist(), strict=True):
                n[index] += 0 if index in known else count
        return [items[index] for index, count in n.most_common(_OTHERS) if count]


BlindTeacher = RuleTeacher
"""Its name of the first edition; kept for one release."""


def _liked(query: Query) -> list[Item]:
    return [item for item, liked in zip(query.history.items, query.history.liked.tolist(), strict=True) if liked]


def _listed(items: Sequence[Item]) -> str:
    return "; ".join(item_title(item) for item in items)
