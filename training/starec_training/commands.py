"""`starec train teach|sft|grpo`: thin entry points; every field of TRL's configs can be set in --config or after it.

starec train teach --dataset ml-1m --data_dir data/ml-1m --n_train 1000 --out runs/taught
starec train sft --config sft.yaml --model smollm2 --rows runs/taught --output_dir runs/sft
accelerate launch -m starec_env.cli train grpo --config grpo.yaml --model runs/sft/final --output_dir runs/rl
"""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from starec_env import load_dataset, prepare
from starec_env.data.splits import apart_from, read_users
from starec_env.errors import InvalidOption, MissingExtra, TrainingError, check_choice
from starec_env.metrics import ndcg
from starec_env.replay.rewards import LIKED_CUTOFF
from starec_env.types import Dataset, Endpoint, Id
from starec_training.miniature.commands import miniature

UNFINISHED = 3
"""Exit status when the minutes ran out before the training: call again to go on."""

TEACHERS = ("blind", "hindsight", "llm")


@dataclass
class DataArguments:
    """Which users, turns and prompts."""

    dataset: str = field(default="ml-latest-small", metadata={"help": "A data set's name: starec data list."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder or file of the data set."})
    users_file: str | None = field(default=None, metadata={"help": "users.json of an earlier stage: the same users."})
    heldout: str | None = field(
        default=None,
        metadata={
            "help": "Users kept for testing: a file with an id a line, or the candidates.parquet of an "
            "evaluation. Without it, half of all users."
        },
    )
    n_train: int | None = field(default=None, metadata={"help": "Most training users, sampled  [default: all others]"})
    user_turns: int | None = field(default=None, metadata={"help": "The last so many turns of each user."})
    answer_format: str = field(default="paper", metadata={"help": "paper or compact"})
    structured: bool = field(default=False, metadata={"help": "compact: answers as a JSON object of scores."})
    max_history: int = field(default=40, metadata={"help": "Interactions shown in prompts."})
    sample_seed: int = field(default=0, metadata={"help": "Of users, negatives and prompts."})


@dataclass
class TeachArguments(DataArguments):
    """The teacher's trajectories as screened rows: OUT/rows.jsonl, with users.json and report.json."""

    out: str = field(default="runs/taught", metadata={"help": "Folder of the rows."})
    teacher: str = field(default="blind", metadata={"help": "blind, hindsight, or llm (with --base_url)"})
    thinks: bool = field(default=False, metadata={"help": "compact: the blind teacher gives its thought too."})
    n_candidates: int = field(default=20, metadata={"help": "Items to rank."})
    min_ndcg: float = field(default=float(ndcg(LIKED_CUTOFF, 10)), metadata={"help": "Least NDCG@10 of a sample."})
    rethinks: int = field(default=2, metadata={"help": "llm: most times that a flawed sample goes back."})
    base_url: str | None = field(default=None, metadata={"help": "llm: e.g. http://localhost:8000/v1"})
    served_model: str | None = field(default=None, metadata={"help": "llm: the model's name there."})
    api_key_env: str = field(default="OPENAI_API_KEY", metadata={"help": "llm: variable that holds the API key."})
    max_tokens: int = field(default=4096, metadata={"help": "llm: most tokens of an answer."})


@dataclass
class ModelArguments:
    """What is trained."""

    model: str = field(default="smollm2", metadata={"help": "A folder (also an adapter's), a hub id, or smollm2."})
    lora_rank: int = field(default=0, metadata={"help": "Rank of a new LoRA; 0 trains what the model has trainable."})
    lora_alpha: int | None = field(default=None, metadata={"help": "[default: twice the rank]"})
    minutes: float | None = field(default=None, metadata={"help": "Stop with a checkpoint after so long."})


@dataclass
class SftArguments(ModelArguments):
    """Supervised training on a teacher's rows; fields of TRL's SFTConfig follow."""

    rows: list[str] = field(default_factory=list, metadata={"help": "Folders of `teach`, or JSONL files."})
    users_file: str | None = field(default=None, metadata={"help": "users.json whose held-out users must not occur."})
    size: str = field(default="0.5B", metadata={"help": "0.5B, 1.5B or 7B: the paper's settings for it."})
    eval_users: int = field(default=0, metadata={"help": "Users of the rows kept apart, to watch for overfit."})


@dataclass
class GrpoArguments(ModelArguments, DataArguments):
    """Reinforcement training in rounds; fields of TRL's GRPOConfig follow."""

    rows: str | None = field(default=None, metadata={"help": "Train once on these rows instead of collecting."})
    rounds: int = field(default=1, metadata={"help": "Times to collect and train."})
    round_users: int | None = field(default=None, metadata={"help": "Users sampled each round  [default: all]"})
    n_candidates: list[int] = field(default_factory=lambda: [20], metadata={"help": "Of each round: 5 10 20"})
    hard: list[float] = field(
        default_factory=lambda: [0.0], metadata={"help": "Share of hard negatives of each round: 0 0.5 1"}
    )
    hard_kind: str = field(default="popular", metadata={"help": "popular, or near (to the target)"})
    prompts: int | None = field(default=None, metadata={"help": "Most prompts a round."})
    collect_batch: int = field(default=32, metadata={"help": "Prompts at a time when the policy here is asked."})
    tasks: list[str] = field(default_factory=lambda: ["rank", "reflect"], metadata={"help": "Which tasks train."})
    follow_ups: int = field(default=1, metadata={"help": "Next turns that pay a memory update."})
    algorithm: str = field(default="grpo", metadata={"help": "grpo or reinforce++"})
    reward: str = field(default="position", metadata={"help": "position (the paper's) or ndcg"})
    max_prompt: int = field(default=4096, metadata={"help": "Longer prompts are dropped and counted."})
    anchor: bool = field(default=True, metadata={"help": "False: direct RL, without KL to the model it starts from."})


@click.group()
def train() -> None:
    """Train the agent: a teacher's rows, SFT on them, and reinforcement training in rounds.

    Example: starec train teach --dataset ml-latest-small --out runs/taught
    """


train.add_command(miniature)


def _stage(function: Any) -> Any:
    options = {"ignore_unknown_options": True, "help_option_names": []}
    return train.command(context_settings=options)(click.argument("args", nargs=-1, type=click.UNPROCESSED)(function))


def _parse(
    args: Sequence[str], classes: tuple[type, ...], stage: str, settings: dict[str, Any], *, partly: bool = False
) -> tuple[Any, ...]:
    """Our arguments and TRL's; `settings` are the defaults. Partly: leave what these classes don't know."""
    try:
        from trl import TrlParser
    except ImportError:
        raise MissingExtra(f"starec train {stage}", "train") from None
    parser = TrlParser(classes, prog=f"starec train {stage}", add_help=not partly)
    parser.set_defaults_with_config(**settings)
    try:
        found: tuple[Any, ...] = parser.parse_args_and_config(list(args), return_remaining_strings=partly)
    except (ValueError, OSError) as error:
        raise TrainingError(f"starec train {stage}: {error}") from None
    return found


@_stage
def teach(args: Sequence[str]) -> None:
    """Run a teacher as a population, screen its answers, and write training rows.

    Example: starec train teach --dataset ml-1m --data_dir data/ml-1m --n_train 1000 --out runs/taught
    """
    from starec_training.rows import run_rows, save_report, with_turns, write_rows
    from starec_training.teacher import Screening
    from starec_training.teacher import teach as screen

    (given,) = _parse(args, (TeachArguments,), "teach", {})
    check_choice("teacher", given.teacher, TEACHERS)
    out, data = Path(given.out), _data(given)
    train_users, heldout = chosen_users(data, given)
    save_report(out / "users.json", {"train": train_users, "heldout": heldout})
    options = {"turns": given.user_turns, "n_candidates": given.n_candidates, "seed": given.sample_seed}
    options["split"] = "train"
    users = with_turns(data, train_users, **options)
    agent, llm = _teacher(given, data, train_users)
    from starec_agents.population import run_population

    run = out / "population"
    run_population(data, agent, out=run, users=users, resume=(run / "run.json").exists(), **options)
    rows, report = screen(
        run_rows(run, data, heldout=heldout), llm, Screening(min_ndcg=given.min_ndcg), rethinks=given.rethinks
    )
    write_rows(out / "rows.jsonl", rows)
    save_report(out / "report.json", {**report.model_dump(), "dropped": dict(rows.dropped)})
    click.echo(f"{report}\n{rows}\n{out / 'rows.jsonl'}")


def _teacher(given: TeachArguments, data: Dataset, train_users: Collection[Id]) -> tuple[Any, Any]:
    from starec_agents.agent import UserAgent
    from starec_training.blind import BlindTeacher, HindsightTeacher
    from starec_training.evidence import Evidence

    agent = {name: getattr(given, name) for name in ("answer_format", "structured", "max_history")}
    if given.teacher == "llm":
        cache = Path(given.out) / "answers"  # a killed run asks nothing twice
        llm = _server(given, cache)
        return UserAgent.factory(llm, **agent), _server(given, cache)
    made = BlindTeacher if given.teacher == "blind" else HindsightTeacher
    return made(Evidence(data, train_users, seed=given.sample_seed), thinks=given.thinks).agent(**agent), None


@_stage
def sft(args: Sequence[str]) -> int:
    """Train a model on a teacher's rows by TRL's SFTTrainer, with the paper's settings unless told otherwise.

    Example: starec train sft --model smollm2 --lora_rank 16 --rows runs/taught --output_dir runs/sft
    """
    try:
        from trl import SFTConfig

        from starec_training.sft import paper_settings, train_sft
    except ImportError:
        raise MissingExtra("starec train sft", "train") from None
    given = _parse(args, (SftArguments,), "sft", {}, partly=True)[0]
    watch = {"eval_strategy": "steps", "eval_steps": 50} if given.eval_users else {}
    given, config = _parse(args, (SftArguments, SFTConfig), "sft", {**paper_settings(given.size), **watch})
    rows = _rows(given.rows)
    options = {"adapter": _lora(given), "minutes": given.minutes}
    if given.eval_users:
        rows, options["eval_rows"] = rows.split(given.eval_users)
    options["heldout"] = read_users(given.users_file)["heldout"] if given.users_file else []
    return _end(train_sft(given.model, rows, config, **options))


@_stage
def grpo(args: Sequence[str]) -> int:
    """Train by reinforcement (GRPO or Reinforce++), in rounds of collecting with the current policy and training.

    Example: starec train grpo --model runs/sft/final --dataset ml-1m --data_dir data/ml-1m --rounds 2 --output_dir
    runs/rl
    """
    try:
        from trl import GRPOConfig

        from starec_training.grpo import Rounds, paper_settings, train_grpo, train_rounds
    except ImportError:
        raise MissingExtra("starec train grpo", "train") from None

    given, config = _parse(args, (GrpoArguments, GRPOConfig), "grpo", paper_settings())
    if not given.anchor:
        config.beta = 0.0
    options = {name: getattr(given, name) for name in ("algorithm", "reward", "max_prompt", "minutes")}
    options |= {"adapter": _lora(given)}
    if given.rows:
        heldout = read_users(given.users_file)["heldout"] if given.users_file else []
        return _end(train_grpo(given.model, _rows([given.rows]), config, heldout=heldout, **options))
    data = _data(given)
    train_users, heldout = chosen_users(data, given)
    rounds = Rounds(
        rounds=given.rounds,
        users=given.round_users,
        turns=given.user_turns,
        candidates=given.n_candidates,
        hard=given.hard,
        hard_kind=given.hard_kind,
        prompts=given.prompts,
        tasks=given.tasks,
        follow_ups=given.follow_ups,
        agent={name: getattr(given, name) for name in ("answer_format", "structured", "max_history")},
        batch_size=given.collect_batch,
        seed=given.sample_seed,
    )
    return _end(train_rounds(given.model, data, train_users, config, rounds, heldout=heldout, **options))


def _end(final: Path | None) -> int:
    if int(os.environ.get("RANK", "0")) == 0:
        click.echo(f"trained: {final}" if final else "the time is up: call again to go on from the last checkpoint")
    return 0 if final else UNFINISHED


def _data(given: DataArguments) -> Dataset:
    return prepare(load_dataset(given.dataset, given.data_dir))


def _rows(paths: Sequence[str]) -> Any:
    from starec_training.rows import Rows, read_rows

    if not paths:
        raise TrainingError("there is nothing to learn from: give --rows, the folder of `starec train teach`")
    files = [Path(path) / "rows.jsonl" if Path(path).is_dir() else Path(path) for path in paths]
    return Rows([row for file in files for row in read_rows(file)])


def _lora(given: ModelArguments) -> Any:
    from starec_training.sft import lora

    return lora(given.lora_rank, given.lora_alpha) if given.lora_rank else None


def _server(given: TeachArguments, cache: Path) -> Any:
    from starec_agents.openai_chat import OpenAIChat

    if given.base_url is None or given.served_model is None:
        raise TrainingError("an LLM teacher needs --base_url and --served_model")
    endpoint = Endpoint(
        base_url=given.base_url, model=given.served_model, api_key_env=given.api_key_env, max_tokens=given.max_tokens
    )
    return OpenAIChat(endpoint, cache_dir=cache)


def chosen_users(dataset: Dataset, given: DataArguments) -> tuple[list[Id], list[Id]]:
    """Training users and held-out users, by the arguments: never one in both.

    Raises:
        DataError: A file of users can't be read.
        InvalidOption: Nobody is left to train on.
    """
    if given.users_file:
        users = read_users(given.users_file)
        return users["train"], users["heldout"]
    everyone = dataset.user_ids.tolist()
    shuffled = random.Random(given.sample_seed).sample(everyone, len(everyone))
    heldout = read_users(given.heldout)["heldout"] if given.heldout else shuffled[: len(shuffled) // 2]
    train_users = apart_from(shuffled, heldout)[: given.n_train]
    if not train_users:
        raise InvalidOption("every user is held out: nobody is left to train on")
    return train_users, heldout
