"""`starec train teach|sft|grpo`: thin entry points; every field of TRL's configs can be set in --config or after it.

starec train teach --dataset ml-1m --data-dir data/ml-1m --n-train 1000 --out runs/taught
starec train sft --config sft.yaml --model smollm2 --rows runs/taught --out runs/sft
accelerate launch -m starec_env.cli train grpo --config grpo.yaml --model runs/sft/final --out runs/rl

Flags are those of the other commands (--turns, --n-candidates, --out, ...). One can't be: --seed of sft and grpo is
TRL's, the training's own, and so is --data-seed; what is drawn from the data set follows --sample-seed there.
"""

from __future__ import annotations

import os
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from starec_env.data.options import HELP, data_spec
from starec_env.data.spec import DataSpec
from starec_env.data.splits import apart_from, read_users
from starec_env.errors import InvalidOption, MissingExtra, TrainingError, check_choice, unknown
from starec_env.metrics import ndcg
from starec_env.renamed import renamed
from starec_env.replay.rewards import LIKED_CUTOFF
from starec_env.types import Dataset, Endpoint, Id
from starec_training.miniature.commands import miniature
from starec_training.tiny import tiny

UNFINISHED = 3
"""Exit status when the minutes ran out before the training: call again to go on."""

TEACHERS = ("blind", "hindsight", "llm")


@dataclass
class DataArguments:
    """Which data, users, turns and prompts; the first eight are the fields of `DataSpec`."""

    dataset: str = field(default="ml-latest-small", metadata={"help": HELP["dataset"]})
    data_dir: str | None = field(default=None, metadata={"help": HELP["data_dir"]})
    columns: str | None = field(default=None, metadata={"help": HELP["columns"]})
    items: str | None = field(default=None, metadata={"help": HELP["items"]})
    domain: str | None = field(default=None, metadata={"help": HELP["domain"]})
    liked_above: float | None = field(default=None, metadata={"help": HELP["liked_above"]})
    min_interactions: int = field(default=10, metadata={"help": HELP["min_interactions"]})
    max_length: int = field(default=40, metadata={"help": HELP["max_length"]})
    users_file: str | None = field(default=None, metadata={"help": "users.json of an earlier stage: the same users."})
    heldout: str | None = field(
        default=None,
        metadata={
            "help": "Users kept for testing: a file with an id a line, or the candidates.parquet of an "
            "evaluation. Without it, half of all users."
        },
    )
    n_train: int | None = field(default=None, metadata={"help": "Most training users, sampled  [default: all others]"})
    turns: int | None = field(default=None, metadata={"help": "The last so many turns of each user."})
    answer_format: str = field(default="paper", metadata={"help": "paper, labels or scores"})
    structured: bool = field(default=False, metadata={"help": "With compact, labels' old name: scores."})
    max_history: int = field(default=40, metadata={"help": "Interactions shown in prompts."})
    sample_seed: int = field(default=0, metadata={"help": "Of users, negatives and prompts."})


@dataclass
class TeachArguments(DataArguments):
    """The teacher's trajectories as screened rows: OUT/rows.jsonl, with users.json and report.json."""

    out: str = field(default="runs/taught", metadata={"help": "Folder of the rows."})
    teacher: str = field(default="blind", metadata={"help": "blind, hindsight, or llm (with --base-url)"})
    thinks: bool = field(default=False, metadata={"help": "compact: the blind teacher gives its thought too."})
    n_candidates: int = field(default=20, metadata={"help": "Items to rank."})
    min_ndcg: float = field(default=float(ndcg(LIKED_CUTOFF, 10)), metadata={"help": "Least NDCG@10 of a sample."})
    rethinks: int = field(default=2, metadata={"help": "llm: most times that a flawed sample goes back."})
    base_url: str | None = field(default=None, metadata={"help": "llm: e.g. http://localhost:8000/v1"})
    model: str | None = field(default=None, metadata={"help": "llm: the model's name there."})
    api_key_env: str = field(default="OPENAI_API_KEY", metadata={"help": "llm: variable that holds the API key."})
    max_tokens: int = field(default=4096, metadata={"help": "llm: most tokens of an answer."})
    timeout: float = field(default=120.0, metadata={"help": "llm: seconds."})
    max_retries: int = field(default=5, metadata={"help": "llm: for faults that pass."})
    concurrency: int = field(default=64, metadata={"help": "Users in flight."})
    sample_seed: int = field(default=0, metadata={"help": "Of users, negatives and prompts.", "aliases": ["--seed"]})


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


_OF_LLM = ("base_url", "model", "api_key_env", "max_tokens", "timeout", "max_retries", "rethinks")
_OF_ROUNDS = tuple(
    each.name
    for each in fields(GrpoArguments)
    if each.name not in {"rows", "users_file", "algorithm", "reward", "max_prompt", "anchor"}
    and each.name not in {own.name for own in fields(ModelArguments)}
)


@click.group()
def train() -> None:
    """Train the agent: a teacher's rows, SFT on them, and reinforcement training in rounds.

    Example: starec train teach --dataset ml-latest-small --out runs/taught
    """


train.add_command(miniature)
train.add_command(tiny)


_OUT = {"--out": "--output-dir"}  # TRL's name for what every other command calls --out
_RENAMED = {
    "teach": {"user_turns": "turns", "sample_seed": "seed", "served_model": "model"},
    "sft": {},
    "grpo": {"user_turns": "turns"},
}
"""By stage, new names of our own options by their old ones; old spellings are taken for one release."""


def _old_flags(stage: str) -> dict[str, str]:
    """New flags by old: those of renamed options, and our own with underscores."""
    ours = fields({"teach": TeachArguments, "sft": SftArguments, "grpo": GrpoArguments}[stage])
    names = {each.name: each.name for each in ours} | _RENAMED[stage]
    names |= {f"no_{each.name}": f"no_{each.name}" for each in ours if each.default is True}
    pairs = {f"--{spelled}": _flag(new) for old, new in names.items() for spelled in (old, old.replace("_", "-"))}
    return {old: new for old, new in pairs.items() if old != new}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _stage(function: Any) -> Any:
    options = {"ignore_unknown_options": True, "help_option_names": []}

    @wraps(function)
    def called(args: Sequence[str]) -> Any:
        return function(renamed(args, _old_flags(function.__name__)))

    return train.command(context_settings=options)(click.argument("args", nargs=-1, type=click.UNPROCESSED)(called))


def _parse(
    args: Sequence[str], classes: tuple[type, ...], stage: str, settings: dict[str, Any], *, partly: bool = False
) -> tuple[Any, ...]:
    """Our arguments and TRL's; `settings` are the defaults. Partly: leave what these classes don't know."""
    try:
        from trl import TrlParser
    except ImportError:
        raise MissingExtra(f"starec train {stage}", "train") from None

    class Parser(TrlParser):  # type: ignore[misc]
        def set_defaults_with_config(self, **given: Any) -> Any:
            """Take the settings of a file under their old names too, and with hyphens."""
            return super().set_defaults_with_config(**_fields(given, stage))

    if stage != "teach":
        args = [_OUT.get(flag, flag) + equals + value for flag, equals, value in (arg.partition("=") for arg in args)]
    about = (train.commands[stage].help or "").strip()
    parser = Parser(
        classes, prog=f"starec train {stage}", usage=f"starec train {stage} [OPTIONS]", description=about,
        add_help=not partly,
    )  # fmt: skip
    for action in parser._actions:  # shown with hyphens alone; argparse takes both
        known = [flag for flag in action.option_strings if "_" not in flag and flag not in _old_flags(stage)]
        action.option_strings = known or action.option_strings
    parser.set_defaults_with_config(**settings)
    try:
        *found, left = parser.parse_args_and_config(args, return_remaining_strings=True)
    except (ValueError, OSError) as error:
        raise TrainingError(f"starec train {stage}: {error}") from None
    if left and not partly:
        known = [flag for action in parser._actions for flag in action.option_strings]
        raise unknown(f"option of starec train {stage}", left[0].partition("=")[0], known)
    return tuple(found)


def _fields(given: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Settings of a file by the fields that they set; old names are warned of."""
    names = {name: name.replace("-", "_") for name in given}
    for name, old in names.items():
        if old in _RENAMED[stage]:
            names[name] = _RENAMED[stage][old]
            message = f"in --config, {name} is {names[name]} now: the old name goes with the next release"
            click.echo(f"starec: {message}", err=True)
    own = {"seed": "sample_seed"} if stage == "teach" else {"out": "output_dir"}
    return {own.get(names[name], names[name]): value for name, value in given.items()}


def _refuse(given: Any, names: Iterable[str], why: str) -> None:
    """Raise InvalidOption, which names them, if any of these isn't at its default: it has no effect."""
    defaults = {each.name: each.default_factory() if callable(each.default_factory) else each.default
                for each in fields(given)}  # fmt: skip
    if changed := [name for name in names if getattr(given, name) != defaults[name]]:
        verb = "have" if len(changed) > 1 else "has"
        raise InvalidOption(f"{', '.join(map(_flag, changed))} {verb} no effect {why}: leave it out")


@_stage
def teach(args: Sequence[str]) -> None:
    """Run a teacher as a population, screen its answers, and write training rows.

    Example: starec train teach --dataset ml-1m --data-dir data/ml-1m --n-train 1000 --out runs/taught
    """
    from starec_training.dataset import run_rows, save_report, with_turns, write_rows
    from starec_training.teacher import Screening
    from starec_training.teacher import teach as screen

    (given,) = _parse(args, (TeachArguments,), "teach", {})
    check_choice("teacher", given.teacher, TEACHERS)
    if given.teacher == "llm":
        _refuse(given, ["thinks"], "with --teacher llm, which thinks as its model does")
    else:
        _refuse(given, _OF_LLM, "without --teacher llm")
    _check_users(given)
    out, data = Path(given.out), _data(given)
    train_users, heldout = chosen_users(data, given)
    save_report(out / "users.json", {"train": train_users, "heldout": heldout})
    options = {"turns": given.turns, "n_candidates": given.n_candidates, "seed": given.sample_seed}
    options["split"] = "train"
    users = with_turns(data, train_users, **options)
    agent, llm = _teacher(given, data, train_users)
    from starec_agents.runs.population import run_population

    run = out / "population"
    run_population(
        data, agent, out=run, users=users, resume=(run / "run.json").exists(), concurrency=given.concurrency, **options
    )
    rows, report = screen(
        run_rows(run, data, heldout=heldout), llm, Screening(min_ndcg=given.min_ndcg), rethinks=given.rethinks
    )
    write_rows(out / "rows.jsonl", rows)
    save_report(out / "report.json", {**report.model_dump(), "dropped": dict(rows.dropped)})
    click.echo(f"{report}\n{rows}\n{out / 'rows.jsonl'}")


def _teacher(given: TeachArguments, data: Dataset, train_users: Collection[Id]) -> tuple[Any, Any]:
    from starec_agents.agent import UserAgent
    from starec_training.features import Evidence
    from starec_training.rule_teacher import BlindTeacher, HindsightTeacher

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

    Example: starec train sft --model smollm2 --lora-rank 16 --rows runs/taught --out runs/sft
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

    Example: starec train grpo --model runs/sft/final --dataset ml-1m --data-dir data/ml-1m --rounds 2 --out runs/rl
    """
    try:
        from trl import GRPOConfig

        from starec_training.grpo import ALGORITHMS, Rounds, paper_settings, train_grpo, train_rounds
        from starec_training.rewards import REWARDS
    except ImportError:
        raise MissingExtra("starec train grpo", "train") from None

    given, config = _parse(args, (GrpoArguments, GRPOConfig), "grpo", paper_settings())
    if not given.anchor:
        config.beta = 0.0
    options = {name: getattr(given, name) for name in ("algorithm", "reward", "max_prompt", "minutes")}
    options |= {"adapter": _lora(given)}
    check_choice("algorithm", given.algorithm, ALGORITHMS)
    check_choice("reward", given.reward, list(REWARDS))
    if given.rows:
        _refuse(given, _OF_ROUNDS, "with --rows, which are there already")
        heldout = read_users(given.users_file)["heldout"] if given.users_file else []
        return _end(train_grpo(given.model, _rows([given.rows]), config, heldout=heldout, **options))
    _check_users(given)
    data = _data(given)
    train_users, heldout = chosen_users(data, given)
    rounds = Rounds(
        rounds=given.rounds,
        users=given.round_users,
        turns=given.turns,
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
    return data_spec(**{name: getattr(given, name) for name in DataSpec.model_fields}).load()


def _check_users(given: DataArguments) -> None:
    if given.users_file:
        _refuse(given, ["heldout", "n_train"], "with --users-file, which says who trains and who is held out")


def _rows(paths: Sequence[str]) -> Any:
    from starec_training.dataset import Rows, read_rows

    if not paths:
        raise TrainingError("there is nothing to learn from: give --rows, the folder of `starec train teach`")
    files = [Path(path) / "rows.jsonl" if Path(path).is_dir() else Path(path) for path in paths]
    return Rows([row for file in files for row in read_rows(file)])


def _lora(given: ModelArguments) -> Any:
    from starec_training.sft import lora

    return lora(given.lora_rank, given.lora_alpha) if given.lora_rank else None


def _server(given: TeachArguments, cache: Path) -> Any:
    from starec_agents.llm.client import OpenAIChat

    if given.base_url is None or given.model is None:
        raise TrainingError("an LLM teacher needs --base-url and --model")
    endpoint = Endpoint(
        base_url=given.base_url,
        model=given.model,
        api_key_env=given.api_key_env,
        max_tokens=given.max_tokens,
        timeout_s=given.timeout,
        max_retries=given.max_retries,
        concurrency=given.concurrency,
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
