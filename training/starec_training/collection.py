"""How the rows of a round are collected: the current policy runs the agent graph over training users' turns (4.2.2)."""

from __future__ import annotations

import random
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from trl import GRPOConfig

from starec_agents.agent import UserAgent
from starec_agents.llm import ChatModel
from starec_agents.runs.config import Purpose
from starec_agents.runs.population import run_population
from starec_agents.runs.records import Turns
from starec_agents.tasks import profile_format
from starec_env.errors import InvalidOption, StarecWarning, TrainingError
from starec_env.replay.stream import Stream
from starec_env.types import Dataset, Id
from starec_training.checkpoints import (
    load_policy,
)
from starec_training.dataset import (
    Row,
    Rows,
    read_rows,
    run_rows,
    with_turns,
    write_rows,
)
from starec_training.features import Evidence
from starec_training.generation import LocalChat, outside_loop
from starec_training.negatives import HarderTurns
from starec_training.vllm_server import hand_over, holds_policy, server_chat

T = TypeVar("T")


@dataclass(frozen=True)
class Rounds:
    """How training data are collected, round by round."""

    rounds: int = 1
    users: int | Sequence[Id] | None = None
    """Training users of each round: ids, or how many to sample (another sample each round); None takes all."""
    turns: int | None = None
    """The last so many turns of each user."""
    candidates: Sequence[int] = (20,)
    """Candidates of each round's lists; the last holds for further rounds. Growing numbers make a curriculum."""
    hard: Sequence[float] = (0.0,)
    """Share of each round's negatives that are harder than the environment's, likewise; growing shares make another."""
    hard_kind: str = "popular"
    """What the harder ones are like: popular, or near to the target (`negatives.HarderTurns`)."""
    prompts: int | None = None
    """Most prompts a round, sampled; None takes all."""
    tasks: Sequence[str] = ("rank", "reflect")
    """Which of the two tasks train."""
    follow_ups: int = 1
    """Next turns that pay a memory update."""
    stream: dict[str, Any] = field(default_factory=dict)
    """Further options of Stream: a reading's, `Reading.stream`."""
    agent: dict[str, Any] = field(default_factory=dict)
    """Options of UserAgent: graph, answer_format, max_history and so on."""
    batch_size: int = 32
    """Prompts at a time of a policy in this process."""
    rehearsal: bool = False
    """Whether to train where no answer can be read, which teaches nothing, instead of stopping."""
    seed: int = 0


@dataclass(frozen=True)
class Collected:
    """How rounds are collected; the fields are the arguments of `train_rounds`."""

    dataset: Dataset
    train_users: Sequence[Id]
    config: GRPOConfig
    rounds: Rounds
    llm: ChatModel | None
    heldout: Collection[Id]

    def rows(self, folder: Path, policy: str | Path, number: int) -> Rows:
        """A round's rows, of all processes; what has been collected isn't collected again."""
        state = PartialState()
        parts = [folder / f"rows-{place}.jsonl" for place in range(state.num_processes)]
        todo = not all(part.exists() for part in parts)
        state.wait_for_everyone()
        if todo and self.llm is None and holds_policy(self.config):
            if state.is_main_process:
                hand_over(self.config, policy)
            state.wait_for_everyone()
        if not parts[state.process_index].exists():
            write_rows(parts[state.process_index], self._collected(folder, policy, number))
        state.wait_for_everyone()
        return Rows([row for part in parts for row in read_rows(part)])

    def _collected(self, folder: Path, policy: str | Path, number: int) -> Rows:
        state, rounds = PartialState(), self.rounds
        out = folder / f"population-{state.process_index}" if state.num_processes > 1 else folder / "population"
        stream, hard = self.stream(number)
        users = self.users(number)[state.process_index :: state.num_processes]
        settings = self.settings(number)
        agent = UserAgent.factory(
            self._asked(policy, number),
            **rounds.agent,
            temperature=self.config.temperature,
            max_tokens=self.config.max_completion_length,
        )
        outside_loop(
            run_population,
            self.dataset,
            agent,
            out=out,
            users=users,
            **{name: value for name, value in settings.items() if name != "negatives"},
            stream=stream,
            purpose=Purpose(hard=hard, hard_kind=rounds.hard_kind) if hard else None,
            concurrency=max(64, 2 * rounds.batch_size),
            resume=(out / "run.json").exists(),
            progress=state.is_main_process,
        )
        return run_rows(out, self.dataset, heldout=self.heldout, follow_ups=rounds.follow_ups, stream=stream)

    def settings(self, number: int) -> dict[str, Any]:
        """A round's options of Stream."""
        seed, n_candidates = self.rounds.seed + number, _of_round(self.rounds.candidates, number)
        own = {"turns": self.rounds.turns, "n_candidates": n_candidates, "seed": seed, "split": "train"}
        return {"targets": "liked", **self.rounds.stream, **own}  # a disliked target has no reward

    def stream(self, number: int) -> tuple[Turns, float]:
        """A round's turns, and the share of their negatives that are harder."""
        uniform, hard = Stream(self.dataset, **self.settings(number)), _of_round(self.rounds.hard, number)
        if not hard:
            return uniform, hard
        return HarderTurns(uniform, Evidence(self.dataset, self.train_users), self.rounds.hard_kind, hard), hard

    def users(self, number: int) -> list[Id]:
        """A round's users."""
        able, wanted = with_turns(self.dataset, self.train_users, **self.settings(number)), self.rounds.users
        if isinstance(wanted, Sequence):
            return list(wanted)
        if wanted is not None and not 1 <= wanted <= len(able):
            raise InvalidOption(f"users={wanted}: there are {len(able)} training users")
        return random.Random(self.rounds.seed + number).sample(able, wanted or len(able))

    def _asked(self, policy: str | Path, number: int) -> ChatModel:
        if self.llm is not None:
            return self.llm
        if holds_policy(self.config):
            return server_chat(self.config)
        network, tokenizer = load_policy(policy, self.config.chat_template_kwargs)
        network.to(PartialState().device)
        names = ("top_p", "top_k", "min_p", "repetition_penalty")  # as TRL draws the groups
        drawn = {name: getattr(self.config, name) for name in names}
        how = {"batch_size": self.rounds.batch_size, "seed": self.rounds.seed + number, **drawn}
        return LocalChat(network, tokenizer, model=f"round {number}", **how)

    def chosen(self, rows: Rows, number: int) -> Rows:
        """The rows to train on: of the tasks that train, and no more than the round's number of prompts.

        Raises:
            TrainingError: No ranking can be read, or nothing at all, so no group would differ in reward, and this is
                no rehearsal.
        """
        rounds = self.rounds
        others = {place: row.task for place, row in enumerate(rows) if row.task not in rounds.tasks}
        rows = rows.kept({place: f"task {task} doesn't train" for place, task in others.items()})
        for task in rounds.tasks:
            answered = [row for row in rows if row.task == task]
            if not answered or any(map(readable, answered)):
                continue
            cut_off = sum(bool(row.lineage.get("cut_off")) for row in answered)
            seen = (
                f"round {number}: none of the policy's {len(answered)} answers to task {task!r} can be read "
                f"({cut_off} were cut off), so nothing is learned from them: train it by `starec train sft` first, ask "
                "for a simpler answer_format (labels), raise max_completion_length, or leave the task out"
            )
            if not rounds.rehearsal and (task == "rank" or len(rounds.tasks) == 1):  # rankings pay memory updates too
                raise TrainingError(seen)
            warnings.warn(seen, StarecWarning, stacklevel=2)
        if rounds.prompts is not None and len(rows) > rounds.prompts:
            places = random.Random(rounds.seed + number).sample(range(len(rows)), len(rows) - rounds.prompts)
            rows = rows.kept(dict.fromkeys(places, "over the round's number of prompts"))
        return rows


def readable(row: Row) -> bool:
    """Whether a row's answer ranks anything, or holds a profile."""
    state, cut_off = row.snapshot, bool(row.lineage.get("cut_off"))
    if row.task == "rank":
        return bool(state.shown.parse(row.completion, state.answer_format, cut_off).order)
    return profile_format(state.answer_format).parse(row.completion, cut_off).text is not None


def _of_round(values: Sequence[T], number: int) -> T:
    return values[min(number, len(values) - 1)]
