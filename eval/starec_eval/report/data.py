"""Recorded runs as a report reads them: steps without prompts, items, histories and what training cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from starec_agents.llm.base import Call
from starec_agents.runs.reading import read_run, read_steps
from starec_agents.runs.steps import Step
from starec_env.errors import RunError
from starec_env.metrics import Relevant
from starec_env.types import Id
from starec_eval.report.analysis import attribute_words, step_ndcg

MAX_ANSWER = 2000
"""Characters of a model's answer that timelines show."""


@dataclass(frozen=True)
class Run:
    """A recorded run, or a method's runs on the repetitions of one evaluation."""

    name: str
    config: Mapping[str, Any]
    """`run.json` of the first repetition."""
    folders: tuple[Path, ...]

    @cached_property
    def repetitions(self) -> list[list[Step]]:
        """Each repetition's steps, without their prompts."""
        return [list(_without_prompts(read_steps(folder))) for folder in self.folders]

    @property
    def first(self) -> list[Step]:
        """The steps of the first repetition; an evaluation's warm-up turns are in it alone."""
        return self.repetitions[0]

    @property
    def steps(self) -> list[Step]:
        """The steps of all repetitions."""
        return list(chain.from_iterable(self.repetitions))

    @property
    def profiles(self) -> dict[Id, str]:
        """Each user's last profile."""
        return {step.user_id: step.memory.profile for step in self.first}

    @property
    def relevant(self) -> Relevant:
        """Which targets the run's evaluation scores: those liked, unless its reading differs."""
        return "taken" if "relevant=taken" in self.config.get("reading", "") else "liked"

    @property
    def last_ndcg(self) -> tuple[NDArray[np.float64], list[Id]]:
        """NDCG@10 at each user's last turn of each repetition, nan where the target isn't scored, and the users."""
        last = [step for steps in self.repetitions for step in {step.user_id: step for step in steps}.values()]
        return step_ndcg(last, 10, self.relevant), [step.user_id for step in last]

    @property
    def is_sampled(self) -> bool:
        """Whether it is a best-of-N pass, whose steps are samples of one turn."""
        return self.config.get("method") == "best-of"

    @cached_property
    def training(self) -> list[Call]:
        """Calls made before the first step, without their prompts; AgentCF has such."""
        path = self.folders[0].parent / "training.jsonl"
        if "repetition" not in self.config or not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
        calls = (call for line in lines for call in json.loads(line)["calls"])
        return [Call.model_validate({**call, "messages": (), "completion": ""}) for call in calls]

    @cached_property
    def _items(self) -> list[dict[str, Any]]:
        return [row for folder in self.folders for row in pq.read_table(folder / "items.parquet").to_pylist()]

    @cached_property
    def titles(self) -> dict[Id, str]:
        """Titles of all items shown."""
        return {row["id"]: row["title"] for row in self._items}

    @cached_property
    def attributes(self) -> dict[Id, frozenset[str]]:
        """Attribute values of all items shown."""
        return {row["id"]: attribute_words(dict(row.get("attributes") or ())) for row in self._items}

    @cached_property
    def histories(self) -> dict[Id, list[tuple[Id, bool]]]:
        """Each user's items before the last turn, oldest first, and whether each was liked."""
        table = pq.read_table(self.folders[0] / "candidates.parquet")
        if "history_liked" not in table.column_names:
            return {}
        last = {user: row for row, user in enumerate(table["user_id"].to_pylist())}
        rows = table.take(list(last.values())).to_pylist()
        return {row["user_id"]: list(zip(row["history"], row["history_liked"], strict=True)) for row in rows}


def _without_prompts(steps: Iterable[Step]) -> Iterator[Step]:
    unread: dict[str, Any] = {"messages": (), "token_ids": None, "prompt_token_ids": None, "logprobs": None}
    for step in steps:
        calls = tuple(
            call.model_copy(
                update=unread
                | {"completion": call.completion[:MAX_ANSWER], "reasoning": (call.reasoning or "")[:MAX_ANSWER]}
            )
            for call in step.calls
        )
        yield step.model_copy(update={"calls": calls, "ranking": step.ranking.model_copy(update={"text": ""})})


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """All runs in some folders: a run's own, an evaluation's, or one that holds several of them.

    Raises:
        RunError: A folder holds neither a run nor an evaluation.
    """
    found: list[Run] = []
    for folder in folders:
        inside = sorted(path.parent for path in folder.rglob("run.json") if list(path.parent.glob("steps*.jsonl")))
        if not inside and not any(list(folder.rglob(name)) for name in ("results.json", "loop.json", "card.json")):
            raise RunError(
                f"{folder} holds no run (run.json), no evaluation (results.json), no loop (loop.json) and no report "
                "card (card.json): nothing to report"
            )
        methods: dict[Path, list[Path]] = {}
        for path in inside:
            methods.setdefault(path.parent if "repetition" in read_run(path) else path, []).append(path)
        for path, runs in methods.items():
            config = read_run(runs[0])
            found.append(Run(_name(config, path, folder), config, tuple(runs)))
    several = len({run.config["dataset"]["name"] for run in found}) > 1
    names = [f"{run.name} on {run.config['dataset']['name']}" if several else run.name for run in found]
    return [
        replace(run, name=name if names.count(name) == 1 else f"{name} #{names[: place + 1].count(name)}")
        for place, (run, name) in enumerate(zip(found, names, strict=True))
    ]


def _name(config: Mapping[str, Any], path: Path, folder: Path) -> str:
    name = config.get("method") or f"{config.get('graph', 'agent')} {path.name if path != folder else folder.name}"
    return f"best of {config['samples']}: {path.name}" if name == "best-of" else str(name)
