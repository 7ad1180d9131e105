"""`starec demo`: the whole cycle in one command, on this machine, with a real (small) model and real users.

It serves a model on loopback, runs a small population of user agents on the bundled ml-latest-small, prints the
table beside random, popularity and item-kNN on the same candidates, shows one user's trace, and stops the server.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from starec_agents.agent import UserAgent
from starec_agents.llm.client import OpenAIChat
from starec_agents.runs.population import run_population
from starec_agents.runs.reading import read_steps
from starec_agents.runs.show import metrics_table, trace
from starec_agents.serving.serve import local_server
from starec_agents.serving.weights import NANO, SMOLLM2, nano_users
from starec_env import load_dataset, prepare

_SAMPLING = {NANO: {"max_tokens": 250}}
_LOOPING = {"temperature": 0.7, "seed": 0, "max_tokens": 250}
"""A small model that wasn't trained for the task loops at temperature 0, and would fill its context if it were let."""


@click.command()
@click.option("--model", default=NANO, show_default=True, help="What to serve; see starec serve.")
@click.option(
    "--users", type=click.IntRange(min=1), help="[default: 100 that starec-nano never saw; 6 with another model]"
)
@click.option("--turns", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder  [default: a new one under runs/]")
def demo(model: str, users: int | None, turns: int, out: Path | None) -> None:
    """Serve a small model, run a population of user agents, print its table and one user's trace.

    Example: starec demo --users 4 --turns 2
    """
    from starec_eval.commands import compare_run

    console = Console()
    if out is None:
        Path("runs").mkdir(exist_ok=True)
        out = Path(tempfile.mkdtemp(prefix="demo-", dir="runs"))
    dataset = prepare(load_dataset("ml-latest-small"))
    chosen = nano_users()["test"][: users or 100] if model == NANO else users or 6
    count = len(chosen) if isinstance(chosen, list) else chosen
    console.print(f"Serving {model} on loopback ...")
    with local_server(model=model) as endpoint:
        console.print(f"{count} users of {dataset.name}, {turns} turns each, against {endpoint.base_url}")
        agent = UserAgent.factory(OpenAIChat(endpoint), answer_format="scores", **_SAMPLING.get(model, _LOOPING))
        options: dict[str, Any] = {"turns": turns, "targets": "liked", "concurrency": endpoint.concurrency}
        run = run_population(dataset, agent, users=chosen, out=out, **options)  # each turn is a score of the table
    console.print(metrics_table(run.metrics, run.out))
    if model == SMOLLM2:
        console.print("(SmolLM2-135M was never taught this task: its rankings are no better than chance.)")
    console.print(compare_run(run.out, dataset))
    first = next(read_steps(run.out), None)
    for panel in trace(run.out, str(first.user_id)) if first else ():
        console.print(panel)
