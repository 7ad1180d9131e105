"""`starec eval`: compare rankers on the same saved candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from starec_agents.store import read_run
from starec_env.datasets import load_dataset, prepare
from starec_env.types import Dataset
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
    "--methods", help=f"{', '.join(BASELINES)}, ensemble; NAME-full trains on all users  [default: {RUN_METHODS}]"
)
@click.option("--run", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Compare a finished run.")
@click.option("--users", type=click.IntRange(min=1), help="Test users, sampled by --seed  [default: 1000, or half]")
@click.option("--train-users", type=_File, help="A file of user ids to train on, one a line.")
@click.option("--candidates", type=_File, help="Score these lists instead of drawing: a Parquet file.")
@click.option("--reading", type=click.Choice(list(READINGS)), default="default", show_default=True)
@click.option("--repetitions", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results.json, the tables and the ranks.")
@click.option("--resume", is_flag=True, help="Go on with the evaluation in --out.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def eval_command(**options: Any) -> int:
    """Compare rankers on the same saved candidates, leave-one-out, with errors over users.

    Example: starec eval --dataset ml-latest-small --methods random,pop,item-knn,markov,ease --out runs/table
    """
    run, methods = options["run"], (options["methods"] or RUN_METHODS).split(",")
    rankers = build([method.strip() for method in methods], options["seed"])
    name = options["dataset_name"] or (read_run(run)["dataset"]["name"] if run else "ml-latest-small")
    dataset = load_dataset(name, options["data_dir"])
    with Progress(transient=True, disable=options["quiet"], console=Console(stderr=True)) as progress:
        task = progress.add_task("evaluating", total=None)

        def report(method: str, done: int, total: int) -> None:
            progress.update(task, description=method, completed=done, total=total)

        if run:
            results = evaluate_run(run, prepare(dataset), rankers, report=report)
        else:
            taken = ("reading", "seed", "users", "train_users", "candidates", "repetitions")
            protocol = Protocol(dataset, **{key: options[key] for key in taken})
            results = evaluate(rankers, protocol, out=options["out"], resume=options["resume"], report=report)
    Console().print(results)
    if options["out"]:
        results.write(options["out"])
        click.echo(f"written to {options['out']}: results.json, table.md, table.tex, per_user.parquet and more")
    return FAILED if any(scored.error for scored in results.methods) else 0
