"""`starec fidelity`: a report card of simulated users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from starec_env.data import cache_dir
from starec_env.data.options import data_options, read_reading
from starec_env.data.spec import DataSpec
from starec_env.errors import unknown
from starec_env.named import load_function
from starec_env.recommend.model import UserModelMaker
from starec_eval.fidelity.floor import PopularityUser
from starec_eval.fidelity.make import CARD, fidelity
from starec_eval.fidelity.order import RECOMMENDERS, TRAINED
from starec_eval.fidelity.page import tables
from starec_eval.rankers import BASELINES

USERS: dict[str, UserModelMaker] = {"popularity": PopularityUser}
"""User models by name."""


def maker(user: str) -> UserModelMaker:
    """Makes the user model of a name, or of MODULE:FUNCTION, which takes a data set and a seed.

    Raises:
        UnknownName: With the nearest name that exists.
        InvalidOption: There is no such function.
    """
    if ":" in user:
        made: UserModelMaker = load_function(user, "--user")
        return made
    if user not in USERS:
        raise unknown("user model", user, [*USERS, "MODULE:FUNCTION"])
    return USERS[user]


_KEPT = ("seed", "users", "repetitions", "ratings", "quick", "out", "resume")


@click.command("fidelity")
@data_options
@click.option("--user", default="twin", show_default=True, help=f"{', '.join(USERS)}; MODULE:FUNCTION for your own.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another gives fresh lists.")
@click.option("--users", type=click.IntRange(min=2), help="Tested users  [default: 1000, or half; and ratings of all]")
@click.option("--repetitions", type=click.IntRange(min=1), default=3, show_default=True, help="Lists of each user.")
@click.option("--ratings", type=click.IntRange(min=1), help="Most ratings to ask for  [default: all]")
@click.option("--quick", is_flag=True, help="Leave out the order of recommenders and training on simulated logs.")
@click.option("--recommenders", default=",".join(RECOMMENDERS), show_default=True, help="Whose order is compared.")
@click.option("--trained", default=",".join(TRAINED), show_default=True, help="Which are trained on simulated logs.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of card.json, card.md, card.html.")
@click.option("--resume", is_flag=True, help="Go on with the card in --out.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def fidelity_command(data: DataSpec, **options: Any) -> None:
    """Measure how faithful simulated users are to held-out real ones: a report card.

    Example: starec fidelity --dataset ml-latest-small --user twin --quick --out runs/card
    """
    names = {key: [name.strip() for name in options[key].split(",")] for key in ("recommenders", "trained")}
    for name in (name for each in names.values() for name in each):
        if name.removesuffix("-full") not in BASELINES:
            raise unknown("recommender", name, BASELINES)
    made = maker(options["user"])
    with Progress(transient=True, disable=options["quiet"], console=Console(stderr=True)) as progress:
        task = progress.add_task("asking", total=None)

        def report(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        card = fidelity(
            data.read(),
            made,
            name=options["user"],
            reading=read_reading("default", (), data),
            cache=cache_dir() / "fits",
            report=report,
            recommenders=names["recommenders"],
            trained=names["trained"],
            **{key: options[key] for key in _KEPT},
        )
    for table in tables(card):
        Console().print(table)
    click.echo(f"written to {options['out']}: {CARD}, card.md, card.html")
