"""`starec demo`: the whole cycle in one command, on this machine, with a real (small) model and real users.

It serves a model on loopback, runs a small population of user agents on the bundled ml-latest-small, prints a table
beside random, popularity and item-kNN on the same candidates and a turn of one user, and stops the server. Then
recommenders act before simulated users, whose faithfulness is measured. What it prints is for people who have not
read the paper.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from starec_agents.agent import UserAgent
from starec_agents.llm.base import Endpoint
from starec_agents.llm.client import OpenAIChat
from starec_agents.runs.population import Run, run_population
from starec_agents.runs.reading import read_steps
from starec_agents.runs.records import read_titles
from starec_agents.runs.show import step_panel
from starec_agents.serving.serve import local_server
from starec_agents.serving.weights import NANO, SMOLLM2, nano_users
from starec_env import load_dataset, prepare
from starec_env.completion import names_completer
from starec_env.recommend.twin import twin_of
from starec_env.types import Dataset, Id
from starec_eval.table import Results

_SAMPLING = {NANO: {"max_tokens": 250}}
_LOOPING = {"temperature": 0.7, "seed": 0, "max_tokens": 250}
"""A small model that wasn't trained for the task loops at temperature 0, and would fill its context if it were let."""

_ABOUT = {
    NANO: "A language model of 2.4 million parameters, which comes with the package.",
    SMOLLM2: "A language model of 135 million parameters that was never taught this task: expect chance.",
}
_METHODS = {
    "random": "a random order",
    "pop": "the most watched first",
    "item-knn": "the most similar first",
}
_SHOWN = {"hr@1": "ranked first", "hr@5": "in the first 5", "ndcg@10": "NDCG@10"}

_CARD = (
    ("choice", "ndcg@10", "the film chosen next, of 20: NDCG@10"),
    ("offers", "accuracy@1:1", "watched later or never: share right"),
    ("ratings", "rmse", "stars: error (RMSE)"),
)
"""Section and key of the card's figures that are shown, and what a newcomer is told that they are."""


@click.command()
@click.option(
    "--model",
    default=NANO,
    show_default=True,
    help="What to serve; see starec serve.",
    shell_complete=names_completer([NANO, SMOLLM2], files=True),
)
@click.option(
    "--users", type=click.IntRange(min=1), help="[default: 100 that starec-nano never saw; 6 with another model]"
)
@click.option("--turns", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--card/--no-card", default=True, help="Measure how faithful the simulated users are; takes longest.")
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder  [default: a new one under runs/]")
def demo(model: str, users: int | None, turns: int, card: bool, out: Path | None) -> None:
    """Serve a small model, run a population of user agents, print its table and a turn of one user.

    Example: starec demo --users 4 --turns 2
    """
    from starec_eval.commands import compare_run

    console = Console()
    if out is None:
        Path("runs").mkdir(exist_ok=True)
        out = Path(tempfile.mkdtemp(prefix="demo-", dir="runs"))
    dataset = prepare(load_dataset("ml-latest-small"))
    chosen = nano_users()["test"][: users or 100] if model == NANO else users or 6
    _step(console, 1, f"Serving {model} on this machine", _ABOUT.get(model, ""))
    with local_server(model=model) as endpoint:
        _say(console, f"Ready at {endpoint.base_url} (starec serve gives you the same).")
        run = _run(console, model, endpoint, dataset, chosen, turns, out)
    _show_table(console, compare_run(run.out, dataset), model)
    user = _show_turn(console, run.out)
    _show_loop(console, dataset, out / "loop")
    if card:
        _show_card(console, out / "card")
    _say_next(console, run.out, user)


def _step(console: Console, number: int, title: str, text: str = "") -> None:
    console.print(f"\n[bold]{number} of 6  {title}[/bold]", highlight=False)
    _say(console, text)


def _say(console: Console, text: str) -> None:
    console.print(Padding(Text(text), (0, 0, 0, 3), expand=False))


def _run(
    console: Console, model: str, endpoint: Endpoint, dataset: Dataset, users: int | list[Id], turns: int, out: Path
) -> Run:
    count = len(users) if isinstance(users, list) else users
    unseen = " whom the model never saw" if model == NANO else ""
    _step(
        console,
        2,
        f"{count} people of MovieLens{unseen}, {turns} turns each",
        "A turn: an agent is shown what one person has watched and liked so far, and 20 films, of which the person "
        "really watched one next. It ranks them, then sees which it was, and rewrites what it knows of the person.",
    )
    agent = UserAgent.factory(OpenAIChat(endpoint), answer_format="scores", **_SAMPLING.get(model, _LOOPING))
    options: dict[str, Any] = {"turns": turns, "targets": "liked", "concurrency": endpoint.concurrency}
    run = run_population(dataset, agent, users=users, out=out, **options)  # each turn is a score of the table
    found = run.metrics
    _say(
        console,
        f"Done: {found['steps']:,} turns in {found['wall_s']:.0f} s, {found['failures']} people failed; "
        f"{found['prompt_tokens']:,} tokens read, {found['completion_tokens']:,} written. All is in {run.out}.",
    )
    return run


def _show_table(console: Console, results: Results, model: str) -> None:
    _step(console, 3, "How often did it know?", "The same lists, ranked by methods without a language model too:")
    table = Table("who ranks", *(f"{name}, %" for name in _SHOWN.values()))
    for row in results.rows:
        cells = (
            f"{row[name]:.0f} ± {row[f'{name}_se']:.0f}" if row[f"{name}_se"] is not None else "-" for name in _SHOWN
        )
        table.add_row(_METHODS.get(row["method"], f"the agents, with {model}"), *cells)
    console.print(Padding(table, (0, 0, 0, 3), expand=False))
    row = results.rows[0]
    _say(
        console,
        f"Of {row['cases']} lists; ± is the standard error over {row['users']} people, so a gap of one or two of it is "
        "noise. NDCG@10 is 100 where the film is always ranked first, 63 for second, 0 beyond tenth. The last two rows "
        "look up what everybody watched (most similar: together with this person's films); the agents read one "
        "person's record, with what the model has learned.",
    )


def _show_turn(console: Console, out: Path) -> Id:
    step = next(iter(read_steps(out)))
    _step(
        console,
        4,
        "A turn of one person",
        "The ranking, with the film really watched in green; the model's answers; what it then knows of the person. "
        "This model answers with scores alone; larger ones give their reasons, and they stand here.",
    )
    console.print(step_panel(step, read_titles(out)))
    return step.user_id


def _show_loop(console: Console, dataset: Dataset, out: Path) -> None:
    from starec_eval.loop.run import run_loop
    from starec_eval.recommenders import build_recommenders

    _step(
        console,
        5,
        "Recommenders before simulated users",
        "The other way round: a recommender shows slates of ten films, and 100 simulated people, a statistical model "
        "fitted on MovieLens's ratings, take one or none, rate it, and stay or leave.",
    )
    results = run_loop(twin_of(dataset), build_recommenders(["random", "pop"]), out=out, users=100, rounds=1)
    table = Table("who recommends", "taken in a visit", "liked of these", "slates seen")
    for name, found in results.overall.items():
        cells = (f"{found[key].mean:.1f} ± {found[key].se:.1f}" for key in ("clicks", "likes", "slates"))
        table.add_row(_METHODS[name], *cells)
    console.print(Padding(table, (0, 0, 0, 3), expand=False))


def _show_card(console: Console, out: Path) -> None:
    from starec_eval.fidelity.commands import maker
    from starec_eval.fidelity.make import fidelity

    _step(
        console,
        6,
        "How far can these simulated people be trusted?",
        "Fitted again without what 100 real people did later, they are asked about it (half a minute or more) ...",
    )
    raw = load_dataset("ml-latest-small")
    card = fidelity(raw, maker("twin", {}), name="twin", out=out, users=100, quick=True)
    table = Table("asked of held-out people", "simulated", "popularity alone")
    for section, key, name in _CARD:
        values = (card.section(section).value(key, column) for column in ("model", "popularity"))
        table.add_row(name, *(f"{value.mean:.2f} ± {value.se:.2f}" for value in values))
    console.print(Padding(table, (0, 0, 0, 3), expand=False))
    page = next(path for path in (out / "card.html", out / "card.md") if path.exists())
    _say(console, f"The whole card is {page}.")


def _say_next(console: Console, out: Path, user: Id) -> None:
    console.print("\n[bold]The server is stopped; nothing is left running. To try next:[/bold]")
    starec = "starec" if shutil.which("starec") else f"{os.path.relpath(sys.executable)} -m starec"
    for command, why in (
        (f"show {out} --user {user}", "all turns of this person"),
        (f"report {out} --out report.html", "the run as one page; needs the extra report"),
        ("loop --recommenders random,pop,item-knn --out runs/loop", "recommenders that learn, over five rounds"),
    ):
        console.print(f"   {starec} {command}  [dim]# {why}[/dim]", highlight=False, soft_wrap=True)
