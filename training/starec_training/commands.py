"""`starec train teach|sft|grpo`: thin entry points; every field of TRL's configs can be set in --config or after it.

starec train teach --dataset ml-1m --data-dir data/ml-1m --n-train 1000 --out runs/taught
starec train sft --config sft.yaml --model smollm2 --rows runs/taught --out runs/sft
accelerate launch -m starec_env.cli train grpo --config grpo.yaml --model runs/sft/final --out runs/rl

Flags are those of the other commands (--turns, --n-candidates, --out, ...). One can't be: --seed of sft and grpo is
TRL's, the training's own, and so is --data-seed; what is drawn from the data set follows --sample-seed there.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial, wraps
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from starec_agents.commands import load_graph
from starec_agents.llm.options import endpoint
from starec_agents.runs.plan import check_writable
from starec_env.data.options import data_spec
from starec_env.data.spec import DataSpec
from starec_env.data.splits import Split, apart_from, read_users
from starec_env.errors import InvalidOption, MissingExtra, TrainingError, check_choice, unknown
from starec_env.reading import READINGS, Reading
from starec_env.renamed import renamed
from starec_env.types import Dataset, Id
from starec_training.arguments import (
    OF_LLM,
    OF_ROUNDS,
    OF_SPLIT,
    PACE,
    TEACHERS,
    BatchArguments,
    DataArguments,
    GrpoArguments,
    ModelArguments,
    SftArguments,
    TeachArguments,
)
from starec_training.tiny import tiny

UNFINISHED = 3
"""Exit status when the minutes ran out before the training: call again to go on."""


@click.group()
def train() -> None:
    """Train the agent: a teacher's rows, SFT on them, and reinforcement training in rounds.

    Example: starec train teach --dataset ml-latest-small --out runs/taught
    """


train.add_command(tiny)


_OUT = {"--out": "--output-dir"}  # TRL's name for what every other command calls --out
OPTIONS = {"teach": TeachArguments, "sft": SftArguments, "grpo": GrpoArguments}
"""By stage, our own options beside TRL's."""
_RENAMED = {
    "teach": {"user_turns": "turns", "sample_seed": "seed", "served_model": "model"},
    "sft": {},
    "grpo": {"user_turns": "turns"},
}
"""By stage, new names of our own options by their old ones; old spellings are taken for one release."""


def _old_flags(stage: str) -> dict[str, str]:
    """New flags by old: those of renamed options, and our own with underscores."""
    ours = fields(OPTIONS[stage])
    names = {each.name: each.name for each in ours} | _RENAMED[stage]
    names |= {f"no_{each.name}": f"no_{each.name}" for each in ours if each.default is True}
    pairs = {f"--{spelled}": _flag(new) for old, new in names.items() for spelled in (old, old.replace("_", "-"))}
    return {old: new for old, new in pairs.items() if old != new}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class _Stage(click.Command):
    """A command that reads its arguments by itself; a shell completes our own options, not the hundreds of TRL's."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(flag) for flag in _own_flags(str(ctx.info_name)) if flag.startswith(incomplete)]


def _own_flags(stage: str) -> list[str]:
    return [*(_flag(each.name) for each in fields(OPTIONS[stage])), *([] if stage == "teach" else _OUT)]


def _stage(function: Any) -> Any:
    options = {"ignore_unknown_options": True, "help_option_names": []}

    @wraps(function)
    def called(args: Sequence[str]) -> Any:
        return function(renamed(args, _old_flags(function.__name__)))

    return train.command(cls=_Stage, context_settings=options)(
        click.argument("args", nargs=-1, type=click.UNPROCESSED)(called)
    )


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
    more = "" if stage == "teach" else "Fields of TRL's config can be set too: --help-trl shows all."
    parser = Parser(
        classes, prog=f"starec train {stage}", usage=f"starec train {stage} [OPTIONS]", description=about,
        epilog=more, add_help=not partly,
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


def _show_help(args: Sequence[str], ours: type, stage: str) -> list[str]:
    """Show our own options where help is asked for, without TRL's; --help-trl is the help of all."""
    if {"-h", "--help"} & set(args):
        _parse(["--help"], (ours,), stage, {})  # exits
    return ["--help" if arg == "--help-trl" else arg for arg in args]


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

    Example: starec train teach --split-file split.json --out runs/taught
    """
    from starec_training.dataset import save_report
    from starec_training.screening import Screening
    from starec_training.teaching import check_claim, claim, teach_population

    (given,) = _parse(args, (TeachArguments,), "teach", {})
    given.teacher = _teacher_name(given.teacher)
    if given.teacher == "llm":
        _refuse(given, ["thinks"], "with --teacher llm, which thinks as its model does")
    else:
        _refuse(given, OF_LLM, "without --teacher llm")
    _check_users(given)
    out, llm = Path(given.out), _server(given) if given.teacher == "llm" else None
    screening = Screening(min_ndcg=given.min_ndcg, min_gain=given.min_gain)
    split, data = _split(given)
    settings = {f.name: getattr(given, f.name) for f in fields(given) if f.name not in PACE}
    settings |= {"split": split.hash, "reading": str(split.reading), "data_hash": data.hash}
    agent = _teacher(given, data, split.train)
    if given.dry_run:
        from starec_training.plan import teaching

        check_writable(out)
        check_claim(out, settings)
        return _say_plan(teaching(data, split, agent, llm, given), out)
    claim(out, settings)
    split.save(out / "split.json")
    save_report(out / "users.json", {"train": split.train, "heldout": [*split.validation, *split.test]})
    names = ("turns", "n_candidates", "follow_ups", "concurrency")
    options = {name: getattr(given, name) for name in names} | {"seed": given.sample_seed, "screening": screening}
    if llm:
        options |= {"samples": given.samples, "rethinks": given.rethinks}

    async def run() -> Any:
        try:
            return await teach_population(
                data, split, agent(llm), out, llm=llm, say=partial(click.echo, err=True), **options
            )
        finally:
            if llm:
                await llm.aclose()

    rows, report = asyncio.run(run())
    click.echo(f"{report}\n{rows}\n{out / 'rows.jsonl'}")


def _say_plan(lines: Iterable[str], out: str | Path) -> None:
    """Print what a stage would do, in the first process alone."""
    if int(os.environ.get("RANK", "0")) == 0:
        click.echo("\n".join([*lines, f"nothing was written to {out}: leave --dry-run out to begin"]))


def _teacher_name(name: str) -> str:
    if name == "blind":
        click.echo("starec: --teacher blind is --teacher rules now: the old name goes with the next release", err=True)
        return "rules"
    if name == "hindsight":
        raise InvalidOption("--teacher hindsight is gone: rows written by one who knows the answer teach to assert it")
    check_choice("teacher", name, TEACHERS)
    return name


def _split(given: TeachArguments) -> tuple[Split, Dataset]:
    """Who trains and who is held out, and the data, by a split file or as drawn here."""
    if given.split_file is None:
        data = _data(given)
        train_users, heldout = chosen_users(data, given)
        return Split.of(data, train=train_users, test=heldout), data
    _refuse(given, OF_SPLIT, "with --split-file, which says who trains, on which data")
    split = Split.load(given.split_file)
    places = {name: getattr(given, name) for name in ("data_dir", "items") if getattr(given, name)}
    data = split.load_dataset(DataSpec.of(**places) if places else None)
    return split.model_copy(update={"train": split.train[: given.n_train]}) if given.n_train else split, data


def _teacher(given: TeachArguments, data: Dataset, train_users: Collection[Id]) -> Callable[[Any], Callable[[], Any]]:
    """What makes the factory of the teacher's agents of its client, which the rule-based teacher has no use for."""
    from starec_agents.agent import UserAgent
    from starec_training.features import Evidence
    from starec_training.rule_teacher import RuleTeacher

    agent = {name: getattr(given, name) for name in ("answer_format", "structured", "max_history")}
    if given.teacher == "llm":  # with a seed answers are kept, and asked once
        return partial(UserAgent.factory, seed=given.sample_seed, **agent)
    ruled = RuleTeacher(Evidence(data, train_users, seed=given.sample_seed), thinks=given.thinks).agent(**agent)
    return lambda _: ruled


@_stage
def sft(args: Sequence[str]) -> int:
    """Train a model on a teacher's rows by TRL's SFTTrainer, with the paper's settings by default.

    Example: starec train sft --model smollm2 --lora-rank 16 --rows runs/taught --out runs/sft
    """
    args = _show_help(args, SftArguments, "sft")
    given = _parse(args, (SftArguments,), "sft", {}, partly=True)[0]
    switches = _switches(given.template_switches)
    rows: Any = None if "--help" in args else _rows(given.rows)
    try:
        from trl import SFTConfig

        from starec_training.sft import paper_settings, train_sft
    except ImportError:
        raise MissingExtra("starec train sft", "train") from None
    watch = {"eval_strategy": "steps", "eval_steps": 50} if given.eval_users else {}
    given, config = _parse(args, (SftArguments, SFTConfig), "sft", {**paper_settings(given.size), **watch})
    options = {"adapter": _lora(given), "minutes": given.minutes, "chat_template_kwargs": switches, **_apart(given)}
    if given.eval_users:
        rows, options["eval_rows"] = rows.split(given.eval_users)
    if given.dry_run:
        from starec_training.plan import supervised

        check_writable(Path(config.output_dir))
        _say_plan(supervised(given.model, rows, config, **options), config.output_dir)
        return 0
    return _end(train_sft(given.model, rows, config, **options))


@_stage
def grpo(args: Sequence[str]) -> int:
    """Train by reinforcement (GRPO or Reinforce++), in rounds of collecting with the current policy and training.

    Example: starec train grpo --model runs/sft/final --dataset ml-1m --data-dir data/ml-1m --rounds 2 --out runs/rl
    """
    args = _show_help(args, GrpoArguments, "grpo")
    _check_grpo(_parse(args, (GrpoArguments,), "grpo", {}, partly=True)[0])  # before what takes seconds to import
    given, config = grpo_settings(args)
    from starec_training.collection import Rounds
    from starec_training.grpo import train_grpo, train_rounds

    names = ("algorithm", "reward", "reward_funcs", "refill", "max_prompt", "follow_up_tokens", "minutes")
    options = {name: getattr(given, name) for name in names} | {"adapter": _lora(given)}
    if given.dry_run:
        check_writable(Path(config.output_dir))
    if given.rows:
        rows, apart = _rows([given.rows]), _apart(given)
        if given.dry_run:
            from starec_training.plan import reinforcement

            _say_plan(reinforcement(given.model, rows, config, **apart, **options), config.output_dir)
            return 0
        return _end(train_grpo(given.model, rows, config, **apart, **options))
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
        stream=_reading(given).stream,
        agent={"graph": load_graph(given.agent)} | {name: getattr(given, name) for name in _OF_AGENT},
        batch_size=given.collect_batch,
        rehearsal=given.rehearsal,
        seed=given.sample_seed,
    )
    options |= {"split": Split.load(given.split_file) if given.split_file else None, "heldout": heldout}
    if given.dry_run:
        from starec_training.plan import in_rounds

        _say_plan(in_rounds(given.model, data, train_users, config, rounds, **options), config.output_dir)
        return 0
    return _end(train_rounds(given.model, data, train_users, config, rounds, **options))


def grpo_settings(args: Sequence[str]) -> tuple[GrpoArguments, Any]:
    """Our options of `starec train grpo` and TRL's GRPOConfig: the paper's but for what is given."""
    try:
        from trl import GRPOConfig

        from starec_training.grpo import paper_settings
    except ImportError:
        raise MissingExtra("starec train grpo", "train") from None
    given, batch = _parse(args, (GrpoArguments, BatchArguments), "grpo", {}, partly=True)
    sizes = {"generations": batch.num_generations, "at_once": batch.per_device_train_batch_size}
    sizes = {} if batch.gradient_accumulation_steps else {"prompts": given.prompts_per_step, **sizes}
    ours, config = _parse(args, (GrpoArguments, GRPOConfig), "grpo", paper_settings(**sizes))
    return ours, config


_OF_AGENT = ("answer_format", "structured", "max_history")


def _check_grpo(given: GrpoArguments) -> None:
    """Raise what is wrong with the options alone."""
    from starec_training.rewards import check_rewards, reward_functions

    check_choice("algorithm", given.algorithm, ("grpo", "reinforce++"))
    check_rewards(given.reward, given.reward_funcs, None)
    reward_functions(given.reward_funcs)
    if given.rows:
        _refuse(given, OF_ROUNDS, "with --rows, which are there already")
    _check_users(given)
    load_graph(given.agent)


def _switches(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidOption(f'--template-switches {text}: wanted JSON, as {{"enable_thinking": false}}')
    return found


def _apart(given: Any) -> dict[str, Any]:
    """Who must not be among rows that are there already."""
    heldout = read_users(given.users_file)["heldout"] if given.users_file else []
    return {"heldout": heldout, "split": Split.load(given.split_file) if given.split_file else None}


def _reading(given: DataArguments) -> Reading:
    if given.split_file:
        return Split.load(given.split_file).reading
    sizes = [f"{name}={getattr(given, name)}" for name in ("min_interactions", "max_length")]
    return READINGS[given.reading].with_settings([*sizes, *given.set])


def _end(final: Path | None) -> int:
    if int(os.environ.get("RANK", "0")) == 0:
        click.echo(f"trained: {final}" if final else "the time is up: call again to go on from the last checkpoint")
    return 0 if final else UNFINISHED


def _data(given: DataArguments) -> Dataset:
    known = {name: getattr(given, name) for name in DataSpec.model_fields}
    if given.split_file:
        places = {name: known[name] for name in ("data_dir", "items") if known[name] is not None}
        split = Split.load(given.split_file)
        return split.load_dataset(DataSpec.of(dataset=split.spec().dataset, **places) if places else None)
    spec = data_spec(**known)
    return spec.load() if given.reading == "default" and not given.set else _reading(given).prepare(spec.read())


def _check_users(given: DataArguments) -> None:
    if given.users_file:
        _refuse(given, ["heldout", "n_train"], "with --users-file, which says who trains and who is held out")
    if given.split_file:
        of_data = ("dataset", "columns", "domain", "liked_above", "min_interactions", "max_length", "reading", "set")
        names = (*of_data, "users_file", "heldout", "n_train")
        _refuse(given, names, "with --split-file, which says what the data are, who trains and who is tested")


def _rows(paths: Sequence[str]) -> Any:
    from starec_training.dataset import Rows, read_rows

    if not paths:
        raise TrainingError("there is nothing to learn from: give --rows, the folder of `starec train teach`")
    files = [Path(path) / "rows.jsonl" if Path(path).is_dir() else Path(path) for path in paths]
    return Rows([row for file in files for row in read_rows(file)])


def _lora(given: ModelArguments) -> Any:
    from starec_training.sft import lora

    return lora(given.lora_rank, given.lora_alpha) if given.lora_rank else None


def _server(given: TeachArguments) -> Any:
    """The teacher's client, which keeps answers in OUT/answers; raises unless the model is served."""
    from starec_agents.llm.client import OpenAIChat

    if given.base_url is None or given.model is None:
        raise TrainingError("an LLM teacher needs --base-url and --model")
    try:
        asked = endpoint(given.base_url, given.model, vars(given))
    except ValueError as error:
        raise InvalidOption(f"the teacher's options: {error}") from None
    if given.samples < 1 or given.rethinks < 0 or given.follow_ups < 1 or given.concurrency < 1:
        raise InvalidOption("--samples, --follow-ups and --concurrency are at least 1, --rethinks at least 0")
    llm = OpenAIChat(asked, cache_dir=None if given.dry_run else Path(given.out) / "answers")

    async def check() -> None:
        async with llm:
            await llm.check()

    asyncio.run(check())
    return llm


def chosen_users(dataset: Dataset, given: DataArguments) -> tuple[list[Id], list[Id]]:
    """Training users and held-out users, by the arguments: never one in both.

    Raises:
        DataError: A file of users can't be read.
        InvalidOption: Nobody is left to train on.
    """
    if given.split_file:
        split = Split.load(given.split_file)
        return list(split.train), [*split.validation, *split.test]
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
