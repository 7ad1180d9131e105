"""`starec simulate`, `starec show` and `starec export`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from starec_agents import graphs
from starec_agents.agent import UserAgent
from starec_agents.llm import OpenAIChat
from starec_agents.llm.options import chats, endpoint_options, model_card_option
from starec_agents.planner import planner
from starec_agents.runs.export import Formats, export_runs
from starec_agents.runs.plan import (
    Factory,
    check_writable,
    plan_options,
    plan_text,
    plan_turns,
    probe,
    refuse_without_plan,
)
from starec_agents.runs.population import resolve, run_population
from starec_agents.runs.reading import read_index
from starec_agents.runs.show import metrics_table, overview, trace
from starec_agents.runs.store import check_folder
from starec_agents.serving.card import ModelCard, find_card, say_seen
from starec_agents.tasks import MAX_HISTORY
from starec_agents.tasks.options import format_options
from starec_env.completion import names_completer
from starec_env.data.options import data_options, refuse, split_option
from starec_env.data.spec import DataSpec
from starec_env.data.splits import Split, read_users
from starec_env.errors import InvalidOption, unknown
from starec_env.named import load_function
from starec_env.renamed import RenamingCommand
from starec_env.replay.stream import Stream
from starec_env.types import Dataset, Id

GRAPHS = {
    "starec": graphs.reflect_always,
    "rank-only": graphs.rank_only,
    "append-history": graphs.append_history,
    "reflect-on-mismatch": graphs.reflect_on_mismatch,
    "planner": planner,
}
"""--agent names -> functions that build a graph."""

HELDOUT = "heldout"
"""What --users-file takes in place of a file: the users that the model's card keeps for tests."""

INCOMPLETE = 3
"""Exit status of a run in which users failed."""


def load_graph(name: str) -> Any:
    """The function that makes the graph that --agent names: a variant of ours, or MODULE:FUNCTION."""
    if ":" not in name:
        if name not in GRAPHS:
            raise unknown("agent", name, [*GRAPHS, "MODULE:FUNCTION"])
        return GRAPHS[name]
    return load_function(name, "--agent")


class _UsersFile(click.Path):
    """A file, or the word for the users that the model's card keeps for tests."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == HELDOUT else super().convert(value, param, ctx)


@click.command(cls=RenamingCommand, old={"--candidates": "--n-candidates"})
@data_options
@split_option
@click.option("--users", type=click.IntRange(min=1), help="How many users, sampled by --seed  [default: all]")
@click.option("--turns", type=click.IntRange(min=1), help="The last T turns of each user's stream  [default: all]")
@click.option("--base-url", "urls", required=True, multiple=True, help="As http://localhost:8000/v1; one a server.")
@partial(endpoint_options, several=True)
@click.option(
    "--agent",
    default="starec",
    show_default=True,
    help=f"{', '.join(GRAPHS)} or MODULE:FUNCTION",
    shell_complete=names_completer(GRAPHS),
)
@click.option(
    "--executor",
    type=click.Choice(["auto", "direct", "langgraph"]),
    default="auto",
    show_default=True,
    help="What graphs run on: auto walks straight ones directly.",
)
@format_options
@click.option(
    "--targets",
    type=click.Choice(["all", "liked"]),
    default="all",
    show_default=True,
    help="What to learn from; liked ones alone are scored.",
)
@click.option("--n-candidates", type=click.IntRange(min=2), default=20, show_default=True, help="Items to rank a turn.")
@click.option(
    "--split", type=click.Choice(["train", "test"]), default="test", show_default=True, help="Of each stream."
)
@click.option("--min-history", type=click.IntRange(min=0), default=5, show_default=True, help="Before the first turn.")
@click.option(
    "--max-history", type=click.IntRange(min=1), default=MAX_HISTORY, show_default=True, help="Shown in prompts."
)
@click.option(
    "--users-file",
    type=_UsersFile(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE|heldout",
    help="Ids of the users, one a line; heldout: those that the model's card keeps for tests.",
)
@model_card_option
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--concurrency", type=click.IntRange(min=1), default=64, show_default=True, help="Users in flight.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes  [default: 1; on Ray, one a CPU]")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option(
    "--ray-address", help="A Ray cluster, e.g. auto or ray://host:10001  [default: RAY_ADDRESS, or a new one]"
)
@click.option("--cache", type=click.Path(path_type=Path), help="Folder that keeps answers for the next run.")
@plan_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def simulate(data: DataSpec, split_file: Split | None, **options: Any) -> int:
    """Run a population of user agents through their feedback streams.

    Example: starec simulate --dataset ml-latest-small --users 100 --turns 5 --base-url http://localhost:8000/v1
    --model Qwen/Qwen2.5-7B-Instruct --out runs/first
    """
    data.check()
    if options["engine"] != "ray":
        refuse(["ray_address"], "without --engine ray")
    refuse_without_plan(options)
    graph = load_graph(options["agent"])
    if len(options["urls"]) > 1 and options["cache"]:
        raise InvalidOption("--cache keeps the answers of one server: leave it out, or give one --base-url")
    options["model"], llm, models = chats(options, None if options["dry_run"] else options["cache"])
    asyncio.run(_check([llm, *models.values()]))
    card = find_card(options["model_card"], options["model"], llm.roots.get(options["model"]))
    dataset = split_file.load_dataset(data) if split_file else data.load()
    stream = Stream(dataset, **{key: options[key] for key in ("seed", *_STREAM_OPTIONS)})
    users = _users(options, dataset, stream, card, split_file)
    factory = partial(
        UserAgent.factory,
        graph=graph,
        answer_format=options["answer_format"],
        max_history=options["max_history"],
        models=models,
        executor=options["executor"],
    )
    if options["dry_run"]:
        asyncio.run(_plan(dataset, factory, llm, stream, users, card, options))
        return 0
    run = run_population(
        dataset,
        factory(llm),
        stream=stream,
        users=users,
        progress=not options["quiet"],
        **{key: options[key] for key in (*_STREAM_OPTIONS, *_RUN_OPTIONS)},
    )
    Console().print(metrics_table(run.metrics, run.out))
    _say_if_seen(card, options, dataset, json.loads((run.out / "users.json").read_text(encoding="utf-8")))
    if not run.metrics["failures"]:
        return 0
    failed = f"{run.metrics['failures']} users failed (see {run.out / 'failures.jsonl'})"
    click.echo(f"starec: {failed}; try them again with --resume", err=True)
    return INCOMPLETE


_STREAM_OPTIONS = ("turns", "n_candidates", "targets", "split", "min_history")
_RUN_OPTIONS = ("out", "seed", "concurrency", "resume", "workers", "engine", "ray_address")


async def _plan(
    dataset: Dataset,
    factory: Factory,
    llm: OpenAIChat,
    stream: Stream,
    users: int | list[Id] | None,
    card: ModelCard | None,
    options: dict[str, Any],
) -> None:
    """Print what a run would ask, having checked all that can be checked before its first user."""
    settings = {key: options[key] for key in ("seed", *_STREAM_OPTIONS)}
    agent, out = factory(llm), options["out"]
    chosen, config = await resolve(dataset, agent(), stream, users, learn_last=True, **settings)
    check_writable(out)
    check_folder(out, config.record(), options["resume"])
    turns = int((stream.end - stream.begin)[chosen].sum())
    plan = await plan_turns(factory, stream, chosen, turns, learn_last=True)
    async with llm:
        calls = await probe(agent, stream, chosen, options["probe"] or 0, options["concurrency"])
    click.echo(plan_text(f"{config.graph} at {config.model}", [plan], calls, options))
    _say_if_seen(card, options, dataset, dataset.user_ids[chosen].tolist())
    click.echo(f"nothing was written to {out}: leave --dry-run out to begin")


def _users(
    options: dict[str, Any], dataset: Dataset, stream: Stream, card: ModelCard | None, split: Split | None
) -> int | list[Id] | None:
    """How many users, or who; of a split, of a card or of a users.json those that are kept for tests."""
    if split is not None:
        refuse(["users", "users_file"], "with --split-file, whose test users are run")
        return list(split.test)
    if not options["users_file"]:
        users: int | None = options["users"]
        return users
    refuse(["users"], "with --users-file, which says who")
    if options["users_file"] != HELDOUT:
        return read_users(options["users_file"])["heldout"]
    if card is None:
        raise InvalidOption(
            f"--users-file {HELDOUT}: no card here says whom {options['model']} keeps for tests; give its folder as "
            "--model-card, or a file of ids"
        )
    if dataset.name != card.split.dataset:
        raise InvalidOption(
            f"--users-file {HELDOUT} names users of {card.split.dataset}, which {options['model']} was trained on; "
            f"this is {dataset.name}: give a file of ids"
        )
    unseen = set(map(str, card.split.test))
    return [user for user in dataset.user_ids[stream.users].tolist() if str(user) in unseen]


def _say_if_seen(card: ModelCard | None, options: dict[str, Any], dataset: Dataset, users: Collection[Id]) -> None:
    if said := say_seen(card, options["model"], dataset.name, users):
        click.echo(f"starec: {said}: --users-file {HELDOUT} takes the others", err=True)


async def _check(llms: Iterable[OpenAIChat]) -> None:
    for llm in llms:
        async with llm:
            await llm.check()


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--user", help="A user's id  [default: list the users]")
def show(run: Path, user: str | None) -> None:
    """Print one user's trace: ranking, feedback, reflection, memory before and after.

    Example: starec show runs/first --user 42
    """
    console = Console()
    for part in overview(run) if user is None else trace(run, user):
        console.print(part)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--to", type=click.Choice(["hf", "parquet", "csv"]), default="parquet", show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new folder.")
def export(runs: tuple[Path, ...], to: Formats, out: Path) -> None:
    """Write runs' steps and calls as tables that load together, with a card that names the data's terms.

    parquet: two Parquet files. hf: the same with a Hugging Face data set card; nothing is uploaded. csv: for
    spreadsheets, in which nothing that a model or a title says is taken for a formula.

    Example: starec export runs/first runs/second --to parquet --out tables
    """
    steps = sum(read_index(run).n_steps for run in runs)
    with click.progressbar(length=steps, label="steps", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        files = export_runs(runs, out, to, bar.update)
    click.echo(f"{steps:,} steps of {len(runs)} runs are in {', '.join(map(str, files))}")
