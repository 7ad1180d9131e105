"""Users' stories as compressed chunks of JSON that a page unpacks one by one, when a story is opened."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from typing import Any

from starec_agents.runs.steps import Step
from starec_env.metrics import estimate
from starec_env.types import Id
from starec_eval.analysis import step_ndcg
from starec_eval.told import Told

STORIES_A_CHUNK = 50
"""A story more or less costs a page nothing, but a chunk is unpacked as a whole."""
MOST_SEARCHED = 600
"""Characters of a last memory that the search looks through."""


def pack(data: Any) -> str:
    """JSON, compressed, as base64: text that can stand anywhere in HTML."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="replace")
    return base64.b64encode(gzip.compress(text, 9, mtime=0)).decode()


def story_chunks(runs: Sequence[Told]) -> tuple[str, list[str]]:
    """The index of all stories, and their chunks; each packed.

    The index has `runs` (names) and a row a story: user id, run, chunk, place in the chunk, mean NDCG@10 of the scored
    steps (None without any) and the text to search: titles taken and the last memory. A chunk has the titles its
    stories speak of, and the stories.
    """
    index: list[list[Any]] = []
    chunks: list[str] = []
    for number, told in enumerate(runs):
        all_stories = list(_stories(told).items())
        for first in range(0, len(all_stories), STORIES_A_CHUNK):
            batch, titles = all_stories[first : first + STORIES_A_CHUNK], _Titles(told)
            stories = []
            for place, (user, steps) in enumerate(batch):
                values = step_ndcg([step for _, step in steps], 10, told.relevant)
                score = estimate("", values, [user] * len(steps))
                taken = " ".join(told.items[step.candidates[step.target]][0] for _, step in steps)
                text = f"{user} {taken} {steps[-1][1].memory.profile[:MOST_SEARCHED]}".casefold()
                index.append([str(user), number, len(chunks), place, round(score.mean, 4) if score.n else None, text])
                stories.append([_step(step, repetition, titles) for repetition, step in steps])
            chunks.append(pack({"titles": titles.texts, "stories": stories}))
    return pack({"runs": [told.name for told in runs], "stories": index}), chunks


def _stories(told: Told) -> dict[Id, list[tuple[int, Step]]]:
    users: dict[Id, list[tuple[int, Step]]] = {}
    for repetition, steps in enumerate([told.steps, *told.repeated]):
        for step in steps:
            users.setdefault(step.user_id, []).append((repetition, step))
    return users


class _Titles:
    """Numbers for titles, so that a chunk tells each once."""

    def __init__(self, told: Told) -> None:
        self._told, self._places = told, dict[Id, int]()
        self.texts: list[str] = []

    def __getitem__(self, item: Id) -> int:
        if item not in self._places:
            self._places[item] = len(self.texts)
            self.texts.append(self._told.items[item][0])
        return self._places[item]


def _step(step: Step, repetition: int, titles: _Titles) -> dict[str, Any]:
    return {
        "turn": step.turn,
        "list": repetition + 1,
        "target": titles[step.candidates[step.target]],
        "order": [titles[step.candidates[position]] for position in step.ranking.order],
        "left": [titles[item] for place, item in enumerate(step.candidates) if place not in step.ranking.order],
        "rank": step.feedback.rank,
        "liked": step.feedback.liked,
        "predicted": step.feedback.predicted_liked,
        "reward": step.reward,
        "problems": step.ranking.problems,
        "answers": [[call.kind, "\n".join(filter(None, (call.reasoning, call.completion)))] for call in step.calls],
        "before": step.memory_before.profile,
        "after": step.memory.profile,
        "events": [*map(str, step.memory.history[len(step.memory_before.history) :])],
    }
