"""`starec eval`: compare rankers on the same saved candidates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress

from starec_agents.llm import ChatModel
from starec_agents.llm.base import Endpoint
from starec_agents.llm.options import ENDPOINT_OPTIONS, endpoint, endpoint_options, model_card_option
from starec_agents.memory import Memory
from starec_agents.runs.plan import (
    PLAN_OPTIONS,
    check_writable,
    plan_options,
    plan_text,
    plan_turns,
    probe,
    refuse_without_plan,
)
from starec_agents.runs.rollout import Agent
from starec_agents.tasks import MAX_HISTORY
from starec_agents.tasks.options import format_options
from starec_env.completion import names_completer
from starec_env.data import cache_dir
from starec_env.data.options import data_options, explicit, reading_options, refuse, split_option
from starec_env.data.spec import DataSpec
from starec_env.data.splits import Split
from starec_env.errors import InvalidOption, RunError, check_choice, unknown
from starec_env.metrics import METRICS, SHOWN
from starec_env.renamed import RenamingCommand
from starec_env.types import Dataset
from starec_eval.evaluate import Report, evaluate
from starec_eval.paper import read_config, run_section5
from starec_eval.protocol import Protocol, Reading
from starec_eval.rankers import BASELINES, LLM_METHODS, CaseTurns, LLMRanker, ask, asks, build, build_methods, split
from starec_eval.runs import FinishedRun, evaluate_run, evaluate_runs, open_runs, run_spec, shared_protocol
from starec_eval.seeds import SeedResults, check_folder, evaluate_seeds
from starec_eval.table import Results

FAILED = 3
"""Exit status when a method failed."""
RUN_METHODS = "random,pop,item-knn"
"""What a run is compared with unless --methods says."""

_METHODS = (*BASELINES, "ensemble", *(f"{name}-full" for name in BASELINES), "ensemble-full", *LLM_METHODS)

_File = click.Path(exists=True, dir_okay=False, path_type=Path)


def compare_run(run: str | Path, dataset: Dataset) -> Results:
    """A finished run's agent beside random, popularity and item-kNN on the same turns; rich can print it."""
    return evaluate_run(run, dataset, build(RUN_METHODS.split(",")))


@click.command("eval", cls=RenamingCommand, old={"--retries": "--max-retries"})
@data_options
@reading_options
@split_option
@click.option(
    "--methods",
    help=f"{', '.join(BASELINES)}, ensemble; NAME-full trains on all users; at an endpoint: {', '.join(LLM_METHODS)}; "
    f"METHOD@NAME at one of --config's; MODULE:FUNCTION for your own  [default: {RUN_METHODS}]",
    shell_complete=names_completer(_METHODS, several=True),
)
@click.option(
    "--run",
    "runs",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Compare a finished run, on its own data and turns; of several, on the turns that all finished.",
)
@click.option("--users", type=click.IntRange(min=1), help="Test users, sampled by --seed  [default: 1000, or half]")
@click.option("--train-users", type=_File, help="A file of user ids to train on, one a line.")
@click.option("--candidates", type=_File, help="Score these lists instead of drawing: a Parquet file.")
@click.option("--n-candidates", type=click.IntRange(min=2), default=20, show_default=True, help="Items in a list.")
@click.option(
    "--part",
    type=click.Choice(["test", "validation"]),
    default="test",
    show_default=True,
    help="Of --split-file: whom to test, or to choose by.",
)
@click.option("--repetitions", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--seeds",
    metavar="N,N,...",
    callback=lambda context, param, given: _seeds(given),
    help="Evaluate under each, and give intervals over seeds and users.",
)
@click.option("--base-url", help="An OpenAI-compatible endpoint, for the agents.")
@endpoint_options
@model_card_option
@format_options
@click.option(
    "--warmup", type=click.IntRange(0, 39), help="Turns that agents learn from first  [default: the reading's, 10]"
)
@click.option("--concurrency", type=click.IntRange(min=1), default=64, show_default=True, help="Requests in flight.")
@click.option(
    "--max-history", type=click.IntRange(min=1), default=MAX_HISTORY, show_default=True, help="Shown in prompts."
)
@click.option(
    "--metrics",
    default=",".join(SHOWN),
    show_default=True,
    help=f"Columns of the printed table, of {', '.join(METRICS)}; files hold all.",
    shell_complete=names_completer(METRICS, several=True),
)
@click.option(
    "--against",
    metavar="METHOD|RUN",
    help="Tell the paired difference of each other row to this one; a run by its folder's name  [default: the first "
    "run]",
)
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Folder of fitted baselines  [default: fits in STAREC_CACHE]"
)
@click.option("--config", type=_File, help="TOML with named endpoints, and for --tables and --figures all the rest.")
@click.option("--tables", help="Of the paper's section 5: 4,5,6. Needs --config.")
@click.option("--figures", help="Of the paper's section 5: 2a,2b. Needs --config.")
@plan_options
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results.json, the tables and the ranks.")
@click.option("--resume", is_flag=True, help="Go on with the evaluation in --out.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def eval_command(data: DataSpec, split_file: Split | None, reading: Reading, **options: Any) -> int:
    """Compare rankers on the same saved candidates, leave-one-out, with errors over users; or finished runs.

    Example: starec eval --dataset ml-latest-small --methods random,pop,item-knn,markov,ease --out runs/table
    """
    if options["warmup"] is None:
        options["warmup"] = reading.warmup
    reading = replace(reading, warmup=options["warmup"])
    methods = [name.strip() for name in (options["methods"] or RUN_METHODS).split(",")]
    shown = [name.strip() for name in options["metrics"].split(",")]
    for name in shown:
        check_choice("metric", name, list(METRICS))
    _refuse_what_has_no_effect(options, methods)
    refuse_without_plan(options)
    with Progress(transient=True, disable=options["quiet"], console=Console(stderr=True)) as progress:
        task = progress.add_task("evaluating", total=None)

        def report(method: str, done: int, total: int) -> None:
            progress.update(task, description=method, completed=done, total=total)

        if options["tables"] or options["figures"]:
            return _section5(options, report)
        runs = open_runs(options["runs"], options["model_card"]) if options["runs"] else []
        against = _row(options["against"], methods, runs)
        kept = {key: options[key] for key in ("out", "resume", "concurrency")}
        kept |= {"cache": options["cache"] or cache_dir() / "fits", "report": report}
        made = partial(_rankers, methods, _endpoints(options), options)
        rankers = made(options["seed"])
        dataset = _spec_of(runs, data).load() if runs else data.read()
        protocol = partial(_protocol, dataset, split_file, reading, options)
        first, *more = options["seeds"] or [options["seed"]]
        if options["dry_run"]:
            asyncio.run(_plan(shared_protocol(runs, dataset)[0] if runs else protocol(first), rankers, options))
            if more:
                click.echo(f"that is of seed {first}, and the others ask as much each: {', '.join(map(str, more))}")
            return 0
        results: Results | SeedResults
        if runs:
            results = evaluate_runs(runs, dataset, rankers, **kept)
        elif options["seeds"]:
            seeds = options["seeds"]
            results = evaluate_seeds(lambda seed: (made(seed), protocol(seed)), seeds, against=against, **kept)
        else:
            results = evaluate(rankers, protocol(first), **kept)
    results.against, results.shown = against or results.against, shown
    Console().print(results)
    if options["out"]:
        results.write(options["out"])
        more_there = "a folder a seed" if options["seeds"] else "per_user.parquet and more"
        click.echo(f"written to {options['out']}: results.json, table.md, table.tex, {more_there}")
    return FAILED if any(row["error"] for row in results.rows) else 0


def _seeds(given: str | None) -> list[int]:
    parts = [part.strip() for part in (given or "").split(",") if part.strip()]
    if wrong := [part for part in parts if not part.isdecimal()]:
        raise InvalidOption(f"--seeds {given}: {wrong[0]!r} is no whole number from 0; give such as --seeds 0,1,2")
    return list(map(int, parts))


def _rankers(
    methods: Sequence[str], endpoints: Mapping[str, Endpoint], options: Mapping[str, Any], seed: int
) -> list[Any]:
    asking = {key: options[key] for key in ("warmup", "answer_format", "max_history")}
    cards = {"": options["model_card"]} if options["model_card"] else {}
    return build_methods(methods, endpoints, model_cards=cards, seed=seed, **asking)


async def _plan(protocol: Protocol, rankers: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Print what the LLM methods would ask, having checked all that can be checked before their first case."""
    if out := options["out"]:
        check_writable(out)
        if options["seeds"]:
            check_folder(out, options["resume"])
        elif (out / "ranks").exists() and not options["resume"]:
            raise RunError(f"{out} holds ranks already: pass --resume or choose another folder")
    asking = {key: options[key] for key in ("warmup", "answer_format", "max_history")}
    for ranker in rankers:
        if isinstance(ranker, LLMRanker):
            factory = partial(_agent, ranker.name, asking)
            parts = [CaseTurns(protocol, 0, ranker.warmup)]
            known = dict.fromkeys(protocol.dataset.user_ids[parts[0].users].tolist(), Memory())
            again = np.unique(protocol.cases.repetition).tolist()[1:]
            parts += [CaseTurns(protocol, repetition, ranker.warmup, known) for repetition in again]
            plans = [
                await plan_turns(factory, part, part.users.tolist(), len(part), learn_last=False) for part in parts
            ]
            asked: Any = ranker.agent()
            async with asked.llm as llm:
                await llm.check()
                users = parts[0].users.tolist()
                calls = await probe(ranker.agent, parts[0], users, options["probe"] or 0, options["concurrency"])
            click.echo(plan_text(ranker.name, plans, calls, {**options, "max_tokens": llm.endpoint.max_tokens}))
            if ranker.prepare:
                click.echo(f"{ranker.name}: its rounds of learning come before that, and are not counted")
    click.echo("nothing was written: leave --dry-run out to begin")


def _agent(method: str, asking: Mapping[str, Any], llm: ChatModel) -> Callable[[], Agent]:
    made: LLMRanker = ask(method, llm, **asking)
    return made.agent


_DRAWING = (
    *("users", "train_users", "candidates", "n_candidates", "reading", "settings", "repetitions", "seed"),
    *("seeds", "split_file", "part"),
)
_PREPARING = ("columns", "domain", "liked_above", "min_interactions", "max_length")
_AGENTS = ("answer_format", "warmup", "max_history", "concurrency", *PLAN_OPTIONS)
_ENDPOINT = ("base_url", *ENDPOINT_OPTIONS)
_OF_SECTION5 = ("tables", "figures", "config", "out", "resume", "quiet")


def _refuse_what_has_no_effect(options: Mapping[str, Any], methods: Sequence[str]) -> None:
    if options["tables"] or options["figures"]:
        others = (param.name for param in click.get_current_context().command.params if param.name)
        refuse([name for name in others if name not in _OF_SECTION5], "with --tables and --figures: --config says all")
        return
    at = [split(method)[1] for method in methods if asks(method)]
    if not at and not options["runs"]:
        refuse(["model_card"], "unless one of --methods asks a model, or with --run")
    if not at:
        refuse(_AGENTS, "unless one of --methods asks a model")
    if "" not in at:
        refuse(_ENDPOINT, "unless one of --methods asks the model there (METHOD@NAME asks one of --config's)")
    if not any(at):
        refuse(["config"], "without METHOD@NAME among --methods, or --tables or --figures")
    if not options["out"]:
        refuse(["resume"], "without --out")
    if options["seeds"]:
        refuse(["seed"], "with --seeds")
    if options["candidates"]:
        refuse(["users", "repetitions"], "with --candidates, which has its own")
    if explicit(["split_file"]):
        refuse(["users", "train_users"], "with --split-file, which says who")
    else:
        refuse(["part"], "without --split-file")
    if options["runs"]:
        refuse(_DRAWING, "with --run: its turns and candidates are the run's own")


def _row(against: str | None, methods: Sequence[str], runs: Sequence[FinishedRun]) -> str | None:
    """The row that --against names: a method's, or a run's by its label."""
    rows = {run.label: run.row for run in runs} | {name: name for name in (*methods, *(run.row for run in runs))}
    if against is not None and against not in rows:
        raise unknown("method or run to compare against", against, rows)
    return rows[against] if against else None


def _spec_of(runs: Sequence[FinishedRun], given: DataSpec) -> DataSpec:
    """The runs' own data; of what is given, only where the files are now counts."""
    specs = [spec for run in runs if (spec := run_spec(run))]
    if not specs:
        if not explicit(["dataset"]):
            raise InvalidOption(
                f"{runs[0].folder} was run on a table in memory: give it as --dataset FILE, with --columns, --items "
                "and --min-interactions as it was read and prepared"
            )
        return given
    refuse(_PREPARING, "with --run, which remembers how its data were read and prepared")
    moved = {name: getattr(given, name) for name in explicit(["dataset", "data_dir", "items"])}
    spec = DataSpec.of(**{**specs[0].model_dump(), **moved})
    for name in ("dataset", "data_dir", "items"):
        path = Path(getattr(spec, name) or "")
        if path.is_absolute() and not path.exists():
            raise RunError(f"the run's {path} isn't there: --{name.replace('_', '-')} says where it is now")
    return spec


def _protocol(
    dataset: Dataset, split: Split | None, reading: Reading, options: Mapping[str, Any], seed: int
) -> Protocol:
    taken = ("users", "train_users", "candidates", "n_candidates", "repetitions", "part")
    return Protocol(dataset, reading, split=split, seed=seed, **{key: options[key] for key in taken})


def _section5(options: dict[str, Any], report: Report) -> int:
    if not options["config"] or not options["out"]:
        raise InvalidOption("--tables and --figures need --config and --out")
    config = read_config(options["config"])
    chosen = {key: [part.strip() for part in options[key].split(",")] for key in ("tables", "figures") if options[key]}
    tables, figures = chosen.get("tables", []), chosen.get("figures", [])
    made, _ = run_section5(
        config, out=options["out"], tables=tables, figures=figures, resume=options["resume"], report=report
    )
    for table in made:
        Console().print(table)
    click.echo(f"written to {options['out']}: see it with starec report {options['out']}")
    return FAILED if any("failed" in row for table in made for row in table.rows) else 0


def _endpoints(options: dict[str, Any]) -> dict[str, Endpoint]:
    named = read_config(options["config"]).endpoints if options["config"] else {}
    if not (options["base_url"] and options["model"]):
        return named
    own = endpoint(options["base_url"], options["model"], options)
    return {**named, "": own}
