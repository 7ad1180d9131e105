"""`starec eval`: compare rankers on the same saved candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from starec_agents.prompts import ANSWER_FORMATS, MAX_HISTORY
from starec_agents.store import read_run
from starec_env.data import load_dataset, prepare
from starec_env.errors import InvalidOption, unknown
from starec_env.types import Dataset, Endpoint
from starec_eval.baselines import BASELINES, build
from starec_eval.evaluate import Report, evaluate
from starec_eval.llm_rankers import LLM_METHODS
from starec_eval.methods import build_methods
from starec_eval.protocol import READINGS, Protocol
from starec_eval.runs import evaluate_run
from starec_eval.section5 import read_config, run_section5
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
    help=f"{', '.join(BASELINES)}, ensemble; NAME-full trains on all users; at an endpoint: {', '.join(LLM_METHODS)}; "
    f"METHOD@NAME at one of --config's  [default: {RUN_METHODS}]",
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
    "--warmup", type=click.IntRange(0, 39), default=0, show_default=True, help="Turns agents learn from first."
)
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=120.0, show_default=True, help="Seconds."
)
@click.option("--retries", type=click.IntRange(min=0), default=5, show_default=True, help="Of a request that failed.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=2048, show_default=True, help="Per answer.")
@click.option("--concurrency", type=click.IntRange(min=1), default=64, show_default=True, help="Requests in flight.")
@click.option(
    "--max-history", type=click.IntRange(min=1), default=MAX_HISTORY, show_default=True, help="Told in prompts."
)
@click.option("--against", metavar="METHOD", help="Tell each other method's paired difference to this one.")
@click.option("--config", type=_File, help="TOML with named endpoints, and for --tables and --figures all the rest.")
@click.option("--tables", help="Of the paper's section 5: 4,5,6. Needs --config.")
@click.option("--figures", help="Of the paper's section 5: 2a,2b. Needs --config.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results.json, the tables and the ranks.")
@click.option("--resume", is_flag=True, help="Go on with the evaluation in --out.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def eval_command(**options: Any) -> int:
    """Compare rankers on the same saved candidates, leave-one-out, with errors over users.

    Example: starec eval --dataset ml-latest-small --methods random,pop,item-knn,markov,ease --out runs/table
    """
    with Progress(transient=True, disable=options["quiet"], console=Console(stderr=True)) as progress:
        task = progress.add_task("evaluating", total=None)

        def report(method: str, done: int, total: int) -> None:
            progress.update(task, description=method, completed=done, total=total)

        if options["tables"] or options["figures"]:
            return _section5(options, report)
        run, methods = options["run"], [name.strip() for name in (options["methods"] or RUN_METHODS).split(",")]
        asking = {key: options[key] for key in ("seed", "warmup", "answer_format", "structured", "max_history")}
        rankers = build_methods(methods, _endpoints(options), **asking)
        if (against := options["against"]) and against not in methods:
            raise unknown("method to compare against", against, methods)
        name = options["dataset_name"] or (read_run(run)["dataset"]["name"] if run else "ml-latest-small")
        dataset = load_dataset(name, options["data_dir"])
        if run:
            results = evaluate_run(run, prepare(dataset), rankers, report=report)
        else:
            taken = ("seed", "users", "train_users", "candidates", "repetitions")
            reading = READINGS[options["reading"]].with_settings(options["settings"])
            protocol = Protocol(dataset, reading, **{key: options[key] for key in taken})
            kept = {key: options[key] for key in ("out", "resume", "concurrency")}
            results = evaluate(rankers, protocol, **kept, report=report)
    results.against = against
    Console().print(results)
    if options["out"]:
        results.write(options["out"])
        click.echo(f"written to {options['out']}: results.json, table.md, table.tex, per_user.parquet and more")
    return FAILED if any(scored.error for scored in results.methods) else 0


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
    own = Endpoint(
        base_url=options["base_url"],
        model=options["model"],
        api_key_env=options["api_key_env"],
        max_tokens=options["max_tokens"],
        timeout_s=options["timeout"],
        max_retries=options["retries"],
        concurrency=options["concurrency"],
    )
    return {**named, "": own}
