"""Trajectories become training rows: one a model call, each with what is needed to score any answer to it.

A row is a *state snapshot*: the prompt that a node of the agent graph saw, and what the environment knows about that
moment. GRPO samples a group of answers to one such prompt. Supervised training takes the recorded answer.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from starec_agents.llm import Message
from starec_agents.llm.base import Call, whole_answer
from starec_agents.memory import Event, Memory
from starec_agents.runs.reading import read_run, read_steps
from starec_agents.runs.records import Turns
from starec_agents.runs.steps import Step
from starec_agents.runs.store import write_text
from starec_agents.tasks import MAX_HISTORY, parse_ranking, rank_messages, ranking_format, split_thought, thought_of
from starec_env.data.splits import Split
from starec_env.data.ties import as_recorded
from starec_env.errors import InvalidOption, TrainingError
from starec_env.replay.stream import Stream
from starec_env.types import Candidates, Dataset, History, Id, Item, Query, Ranking, Turn, User
from starec_training.rendering import encode as _length  # noqa: F401  # as is the next, an old home for one release
from starec_training.rendering import fitting as fitting

if TYPE_CHECKING:
    import datasets

Task = Literal["rank", "reflect"]
"""The two tasks of 4.2.2 by the names that the graph gives its calls: ranking, and memory update."""

TASKS: tuple[Task, ...] = ("rank", "reflect")


class Shown(BaseModel):
    """Candidates in the order shown, and which of them the user really took."""

    model_config = ConfigDict(frozen=True)

    candidates: tuple[Item, ...]
    target: int
    """0-based candidate position of the target."""

    @model_validator(mode="after")
    def _positive_is_among_them(self) -> Shown:
        ids = [item.id for item in self.candidates]
        if len(set(ids)) < len(ids):
            raise ValueError("a candidate is listed twice")
        if not 0 <= self.target < len(ids):
            raise ValueError(f"the positive is not among the candidates: target {self.target} of {len(ids)}")
        return self

    @classmethod
    def of(cls, turn: Turn) -> Shown:
        """What a turn showed."""
        return cls(candidates=tuple(turn.query.candidates), target=turn.target)

    def parse(self, text: str, answer_format: str, cut_off: bool = False) -> Ranking:
        """Read a ranking of these candidates from a model's whole answer; one that was cut off ranks nothing."""
        candidates = Candidates(self.candidates, np.arange(len(self.candidates), dtype=np.int32))
        return parse_ranking(text, candidates, answer_format, cut_off)

    def rank(self, text: str, answer_format: str, cut_off: bool = False) -> int | None:
        """1-based rank that an answer gives to the target; None if it doesn't rank it."""
        return self.parse(text, answer_format, cut_off).rank_of(self.target)


class Case(Shown):
    """A whole turn: all that a ranker may see, and the answer. A follow-up ranking is made from it."""

    user: User
    history: tuple[tuple[Item, float], ...]
    """What the user had done before, oldest first, with ratings."""
    domain: str

    @classmethod
    def of(cls, turn: Turn) -> Case:
        """The case that a turn is."""
        query = turn.query
        return cls(
            candidates=tuple(query.candidates),
            target=turn.target,
            user=query.user,
            history=tuple(zip(query.history.items, query.history.ratings.tolist(), strict=True)),
            domain=query.domain,
        )

    def query(self) -> Query:
        """The query as it was: `rank_messages` makes the same prompt of it."""
        items = [item for item, _ in self.history] + list(self.candidates)
        n = len(self.history)
        stream = Dataset(
            name="case",
            domain=self.domain,
            items=items,
            user_ids=np.array([self.user.id]),
            indptr=np.array([0, n]),
            item_indices=np.arange(n, dtype=np.int32),
            ratings=np.array([rating for _, rating in self.history], np.float32),
            timestamps=np.zeros(n, np.int64),
            demographics=[self.user.demographics],
        )
        shown = Candidates(items, np.arange(n, len(items), dtype=np.int32))
        return Query(self.user, History(stream, 0, 0, n), shown, self.domain)


class Snapshot(BaseModel):
    """What the environment knows of the moment a prompt was made: it suffices to score any answer."""

    model_config = ConfigDict(frozen=True)

    task: Task
    user_id: Id
    turn: int
    """0-based number of the turn in the user's whole stream."""
    shown: Shown
    answer_format: str = "paper"
    max_history: int = MAX_HISTORY
    memory: Memory = Memory()
    """As it was when the prompt was made."""
    event: Event | str | None = None
    """Memory update: what the turn added to the memory's history."""
    follow_ups: tuple[Case, ...] = ()
    """Memory update: the user's next turns, which the new profile is to help with."""

    @model_validator(mode="before")
    @classmethod
    def _old_names(cls, given: Any) -> Any:
        return formats_of(given) if isinstance(given, Mapping) else given

    @property
    def key(self) -> tuple[str, Id, int]:
        """What tells this prompt from the others of its population."""
        return self.task, self.user_id, self.turn

    def follow_up_prompts(self, profile: str | None) -> list[list[Message]]:
        """The ranking prompts of the follow-ups, with a new profile in the memory (4.2.2); None keeps the old one."""
        memory = self.memory.updated(profile=profile, event=self.event)
        return [rank_messages(case.query(), memory, self.answer_format, self.max_history) for case in self.follow_ups]


def formats_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the answer format under its present name; "compact" and `structured` are the old ones."""
    rest = {name: value for name, value in given.items() if name != "structured"}
    if "answer_format" in rest:
        rest["answer_format"] = ranking_format(rest["answer_format"], bool(given.get("structured"))).name
    return rest


@lru_cache(maxsize=4096)
def read_snapshot(text: str) -> Snapshot:
    """A snapshot from its JSON text; the completions of a group share one text, so it is parsed once."""
    return Snapshot.model_validate_json(text)


class Row(BaseModel):
    """A training row: a prompt, the answer that was recorded, and the snapshot."""

    model_config = ConfigDict(frozen=True)

    prompt: tuple[Mapping[str, str], ...]
    completion: str
    """The answer after its thought, which stands between a pair of <think> tags (`whole_thought`)."""
    snapshot: Snapshot
    lineage: Mapping[str, Any] = Field(default_factory=dict)
    """Where the answer came from: model, graph, and what screening and rethinking did to it."""

    @property
    def task(self) -> Task:
        """Which task the prompt sets."""
        return self.snapshot.task

    @property
    def thought(self) -> str:
        """The thought without its tags, "" if there is none; chat templates that have a place for it take it apart."""
        return thought_of(self.completion)

    @property
    def answer(self) -> str:
        """What follows the thought."""
        return split_thought(self.completion)[0].strip() if self.thought else self.completion


def whole_thought(text: str) -> str:
    """An answer whose closed thought has both tags: servers may return only what follows an opening tag of theirs.

    vLLM without a reasoning parser gives DeepSeek-R1's text that way, since its chat template writes `<think>` itself.
    """
    thought = thought_of(text)
    return whole_answer(split_thought(text)[0].strip(), thought) if thought else text


@dataclass
class Rows:
    """Rows, and why others were left out."""

    rows: list[Row] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> how many."""

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __str__(self) -> str:
        kept = Counter(row.task for row in self.rows)
        parts = [f"{len(self.rows):,} rows"] + [f"{task} {kept[task]:,}" for task in TASKS]
        return ", ".join(parts + [f"dropped ({reason}) {count:,}" for reason, count in self.dropped.items()])

    def kept(self, choose: Mapping[int, str]) -> Rows:
        """These rows without some; `choose` gives a row's place and the reason why it goes."""
        rows = [row for place, row in enumerate(self.rows) if place not in choose]
        return Rows(rows, self.dropped + Counter(choose.values()))

    def split(self, users: int) -> tuple[Rows, Rows]:
        """The rows of all users but so many, and of those: never one user in both."""
        known = sorted({str(row.snapshot.user_id) for row in self.rows})
        if not 0 < users < len(known):
            raise InvalidOption(f"{users} of the rows' {len(known)} users kept apart: wanted 1 to {len(known) - 1}")
        apart = set(random.Random(0).sample(known, users))
        parts: tuple[Rows, Rows] = Rows(), Rows()
        for row in self.rows:
            parts[str(row.snapshot.user_id) in apart].rows.append(row)
        return parts


def read_rows(path: str | Path) -> Rows:
    """Rows from a JSONL file.

    Raises:
        TrainingError: A line isn't a row; says which and why, e.g. that its positive is not among its candidates.
    """
    rows = Rows()
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TrainingError(f"can't read rows from {path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            rows.rows.append(Row.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise TrainingError(f"{path}, line {number} is no training row: {where}: {first['msg']}") from None
    if not rows.rows:
        raise TrainingError(f"{path} holds no rows: collect or teach first")
    return rows


def write_rows(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows as JSONL; the file appears when it is complete."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(path), "".join(row.model_dump_json() + "\n" for row in rows))


def to_dataset(rows: Iterable[Row]) -> datasets.Dataset:
    """Rows as a Hugging Face data set that TRL's trainers take.

    Columns: `prompt` and `completion` (conversations), `task`, and `snapshot` (JSON text).
    """
    import datasets

    columns: dict[str, list[Any]] = {"prompt": [], "completion": [], "task": [], "snapshot": []}
    for row in rows:
        columns["prompt"].append([dict(message) for message in row.prompt])
        columns["completion"].append([{"role": "assistant", "content": row.completion}])
        columns["task"].append(row.task)
        columns["snapshot"].append(row.snapshot.model_dump_json())
    return datasets.Dataset.from_dict(columns)


def run_rows(
    out: str | Path,
    dataset: Dataset,
    *,
    heldout: Collection[Id] = (),
    follow_ups: int = 1,
    stream: Turns | None = None,
) -> Rows:
    """Training rows from a population's run, in the order of users and turns, whatever the order of the record.

    Args:
        out: The run's folder.
        dataset: The prepared data set that it ran on.
        heldout: Users kept for testing: none of them may be in the run.
        follow_ups: How many of the user's next turns pay a memory update; one that no turn follows is dropped. The
            paper's "a relevant candidate set" (4.2.2) could also mean the turn's own, which would pay for merely
            repeating the answer in the profile.
        stream: The turns that the run was given; None for those that its settings draw.

    Raises:
        TrainingError: The run was made on other data, or a held-out user is in it.
        RunError: The folder holds no run.
    """
    if follow_ups < 1:
        raise InvalidOption(f"follow_ups={follow_ups}: a memory update is paid by at least one follow-up ranking")
    run = read_run(out)
    dataset = as_recorded(dataset, run["dataset"]["hash"])
    if run["dataset"]["hash"] != dataset.hash:
        raise TrainingError(
            f"{out} ran on other data than {dataset!r} (hash {run['dataset']['hash']}, not {dataset.hash}): load and "
            "prepare the data set as that run did"
        )
    settings = ("n_candidates", "seed", "split", "targets", "turns", "min_history")
    stream = stream or Stream(dataset, **{name: run[name] for name in settings})
    formats = ("answer_format", "structured", "max_history")
    common = formats_of({name: run[name] for name in formats if name in run})
    lineage = {"run": Path(out).name, "model": run["model"], "graph": run["graph"]}
    rows = Rows()
    for user_id, steps in sorted(_by_user(read_steps(out)), key=lambda found: dataset.user_index(found[0])):
        check_apart([user_id], heldout)
        turns = {turn.number: turn for turn in stream.turns(dataset.user_index(user_id))}
        for step in steps:
            turn = turns[step.turn]
            if step.candidates != tuple(item.id for item in turn.query.candidates):
                raise TrainingError(f"{out}: user {user_id!r}, turn {step.turn} showed other candidates than {dataset}")
            later = [turn for number, turn in turns.items() if number > step.turn and turn.liked][:follow_ups]
            for call in step.calls:
                _add(rows, call, step, turn, later, common, lineage)
    return rows


def _by_user(steps: Iterable[Step]) -> Iterator[tuple[Id, list[Step]]]:
    users: dict[Id, dict[int, Step]] = {}
    for step in steps:
        users.setdefault(step.user_id, {})[step.turn] = step  # a resumed run's later record of a turn wins
    return ((user_id, [found[turn] for turn in sorted(found)]) for user_id, found in users.items())


def _add(
    rows: Rows,
    call: Call,
    step: Step,
    turn: Turn,
    later: Sequence[Turn],
    common: Mapping[str, Any],
    lineage: Mapping[str, Any],
) -> None:
    if call.kind not in TASKS:
        rows.dropped[f"another kind of call: {call.kind}"] += 1
    elif call.kind == "rank" and not turn.liked:
        rows.dropped["no target: it was disliked"] += 1
    elif call.kind == "reflect" and not later:
        rows.dropped["no turn follows the memory update"] += 1
    else:
        updates = call.kind == "reflect"
        snapshot = Snapshot(
            task="reflect" if updates else "rank",
            user_id=step.user_id,
            turn=step.turn,
            shown=Shown.of(turn),
            memory=step.memory_before,
            event=next(iter(step.memory.history[len(step.memory_before.history) :]), None) if updates else None,
            follow_ups=tuple(map(Case.of, later)) if updates else (),
            **common,
        )
        marked = {**lineage, "cut_off": True} if call.cut_off else lineage  # no answer to learn, but a prompt to try
        answer = whole_thought(call.answer)
        rows.rows.append(Row(prompt=call.messages, completion=answer, snapshot=snapshot, lineage=marked))


def check_apart(training: Iterable[Id], heldout: Collection[Id]) -> None:
    """Raise TrainingError if a held-out user is among the training users; 7 and "7" are the same user."""
    test = {str(user) for user in heldout}
    mixed = sorted({str(user) for user in training} & test)
    if mixed:
        raise TrainingError(
            f"{len(mixed):,} held-out users are among the training rows, e.g. {', '.join(mixed[:3])}: leave them out "
            "of the population that training learns from"
        )


def kept_apart(split: Split | None) -> tuple[Id, ...]:
    """Users of a split whom nothing may be trained on: those who choose and those who are tested."""
    return () if split is None else (*split.validation, *split.test)


def with_turns(dataset: Dataset, users: Iterable[Id], **stream: Any) -> list[Id]:
    """Those users that have a turn under some settings of Stream; a population refuses the others by name."""
    able = set(Stream(dataset, **stream).users.tolist())
    return [user for user in users if dataset.user_index(user) in able]


def save_report(path: str | Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON; the file appears when it is complete."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(path), json.dumps(report, indent=1, ensure_ascii=False) + "\n")
