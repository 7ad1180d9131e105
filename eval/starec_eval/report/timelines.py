"""Users' timelines as compressed chunks of JSON that a page unpacks one by one, when a timeline is opened."""

from __future__ import annotations

import base64
import gzip
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from starec_agents.runs.steps import Step
from starec_env.metrics import estimate
from starec_env.types import Id
from starec_eval.report.analysis import step_ndcg
from starec_eval.report.data import Run

USERS_A_CHUNK = 50
"""A chunk is unpacked as a whole, and compressed the better the larger it is."""
MAX_SEARCHED = 600
"""Characters of a last memory that the search looks through."""


def pack(data: Any) -> str:
    """JSON, compressed, as base64: text that can be anywhere in HTML."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="replace")
    return base64.b64encode(gzip.compress(text, 9, mtime=0)).decode()


def timeline_chunks(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """The index of all timelines, and their chunks; each packed.

    The index has `runs` (names) and a row a timeline: user id, run, chunk, place in the chunk, mean NDCG@10 of the
    scored steps (None without any) and the text to search: the targets' titles and the last memory. A chunk has the
    titles that its timelines refer to by number, and the timelines.
    """
    index: list[list[Any]] = []
    chunks: list[str] = []
    for number, run in enumerate(runs):
        users: dict[Id, list[tuple[int, Step]]] = defaultdict(list)
        for repetition, steps in enumerate(run.repetitions, 1):
            for step in steps:
                users[step.user_id].append((repetition, step))
        for first in range(0, len(users), USERS_A_CHUNK):
            numbers: dict[Id, int] = {}
            timelines = []
            for place, (user, mine) in enumerate(list(users.items())[first : first + USERS_A_CHUNK]):
                index.append([str(user), number, len(chunks), place, *_found_by(run, user, [step for _, step in mine])])
                timelines.append([_step(step, repetition, numbers) for repetition, step in mine])
            chunks.append(pack({"titles": [run.titles[item] for item in numbers], "timelines": timelines}))
    return pack({"runs": [run.name for run in runs], "timelines": index}), chunks


def _found_by(run: Run, user: Id, steps: Sequence[Step]) -> tuple[float | None, str]:
    score = estimate("", step_ndcg(steps, 10, run.relevant), [user] * len(steps))
    targets = " ".join(run.titles[step.candidates[step.target]] for step in steps)
    text = f"{user} {targets} {steps[-1].memory.profile[:MAX_SEARCHED]}".casefold()
    return round(score.mean, 4) if score.n else None, text


def _step(step: Step, repetition: int, numbers: dict[Id, int]) -> dict[str, Any]:
    # `numbers` gives each item its place among the chunk's titles, and grows.
    shown = [numbers.setdefault(item, len(numbers)) for item in step.candidates]
    return {
        "turn": step.turn,
        "list": repetition,
        "target": shown[step.target],
        "ranking": [shown[position] for position in step.ranking.order],
        "unranked": [title for position, title in enumerate(shown) if position not in step.ranking.order],
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
