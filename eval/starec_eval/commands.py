"""`starec eval`: compare rankers on the same saved candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from starec_agents.agent import UserAgent
from starec_agents.commands import GRAPHS, load_graph
from starec_agents.openai_chat import OpenAIChat
from starec_agents.prompts import ANSWER_FORMATS
from starec_agents.store import read_run
from starec_env.datasets import load_dataset, prepare
from starec_env.errors import InvalidOption
from starec_env.types import Dataset, Endpoint
from starec_eval.agents import Agents
from starec_eval.baselines import BASELINES, build
from starec_eval.evaluate import evaluate
from starec_eval.protocol import READINGS, Protocol
from starec_eval.runs import evaluate_run
from starec_eval.table import Results

FAILED = 3
"""Exit status when a method failed."""
RUN_METHODS = "random,pop,item-knn"
"""What a run is compared with unless --methods says."""

_File = click.Path(exists=True, dir_okay=False, path_type=Path)


def compare_run(run: str | Path, dataset: Dataset) -> Results:
    """A finished run's agent beside random, popularity and item-kNN on the same turns; rich can print it."""
    return evaluate_run(run, dataset, build(RUN_METHODS.split(",")))


@click.command("eval")
@click.option("--dataset", "dataset_name", help="See starec data list  [default: ml-latest-small, or the run's]")
@click.option("--data-dir", type=click.Path(exists=True, path_type=Path), help="Folder or file of the data set.")
@click.option(
    "--methods",
    help=f"{', '.join(BASELINES)}, ensemble; NAME-full trains on all users; agents: {', '.join(GRAPHS)}  "
    f"[default: {RUN_METHODS}]",
)
@click.option("--run", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Compare a finished run.")
@click.option("--users", type=click.IntRange(min=1), help="Test users, sampled by --seed  [default: 1000, or half]")
@click.option("--train-users", type=_File, help="A file of user ids to train on, one a line.")
@click.option("--candidates", type=_File, help="Score these lists instead of drawing: a Parquet file.")
@click.option("--reading", type=click.Choice(list(READINGS)), default="default", show_default=True)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Change one setting of the reading.")
@click.option("--repetitions", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--base-url", help="An OpenAI-compatible endpoint, for the agents.")
@click.option("--model", help="The model's name at the endpoint.")
@click.option("--api-key-env", default="OPENAI_API_KEY", show_default=True, help="Variable that holds the API key.")
@click.option("--answer-format", type=click.Choice(ANSWER_FORMATS), default="paper", show_default=True)
@click.option("--structured/--free", default=False, show_default=True, help="Hold compact answers to a JSON schema.")
@click.option(
    "--warmup", type=click.IntRange(min=0), default=0, show_default=True, help="Turns agents learn from first."
)
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=120.0, show_default=True, help="Seconds."
)
@click.option("--retries", type=click.IntRange(min=0), default=5, show_default=True, help="Of a request that failed.")
@click.option("--concurrency", type=click.IntRange(min=1), default=64, show_default=True, help="Requests in flight.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results.json, the tables and the ranks.")
@click.option("--resume", is_flag=True, help="Go on with the evaluation in --out.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def eval_command(**options: Any) -> int:
    """Compare rankers on the same saved candidates, leave-one-out, with errors over users.

    Example: starec eval --dataset ml-latest-small --methods random,pop,item-knn,markov,ease --out runs/table
    """
    run, methods = options["run"], [name.strip() for name in (options["methods"] or RUN_METHODS).split(",")]
    scorers = iter(build([name for name in methods if name not in GRAPHS], options["seed"]))
    rankers = [_agents(name, options) if name in GRAPHS else next(scorers) for name in dict.fromkeys(methods)]
    name = options["dataset_name"] or (read_run(run)["dataset"]["name"] if run else "ml-latest-small")
    dataset = load_dataset(name, options["data_dir"])
    with Progress(transient=True, disable=options["quiet"], console=Console(stderr=True)) as progress:
        task = progress.add_task("evaluating", total=None)

        def report(method: str, done: int, total: int) -> None:
            progress.update(task, description=method, completed=done, total=total)

        if run:
            results = evaluate_run(run, prepare(dataset), rankers, report=report)
        else:
            taken = ("seed", "users", "train_users", "candidates", "repetitions")
            reading = READINGS[options["reading"]].with_settings(options["settings"])
            protocol = Protocol(dataset, reading, **{key: options[key] for key in taken})
            kept = {key: options[key] for key in ("out", "resume", "concurrency")}
            results = evaluate(rankers, protocol, **kept, report=report)
    Console().print(results)
    if options["out"]:
        results.write(options["out"])
        click.echo(f"written to {options['out']}: results.json, table.md, table.tex, per_user.parquet and more")
    return FAILED if any(scored.error for scored in results.methods) else 0


def _agents(name: str, options: dict[str, Any]) -> Agents:
    if not (options["base_url"] and options["model"]):
        raise InvalidOption(f"method {name} is an agent: give --base-url and --model")
    if options["warmup"] and not options["out"]:
        raise InvalidOption(f"--warmup {options['warmup']} is recorded: give --out")
    endpoint = Endpoint(
        base_url=options["base_url"],
        model=options["model"],
        api_key_env=options["api_key_env"],
        timeout_s=options["timeout"],
        max_retries=options["retries"],
        concurrency=options["concurrency"],
    )
    agent = UserAgent.factory(
        OpenAIChat(endpoint),
        graph=load_graph(name),
        answer_format=options["answer_format"],
        structured=options["structured"],
    )
    out = options["out"] / "warmup" / name if options["warmup"] else None
    return Agents(agent, name=name, warmup=options["warmup"], out=out, concurrency=options["concurrency"])
