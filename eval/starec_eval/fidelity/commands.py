"""`starec fidelity`: a report card of simulated users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from starec_agents.agent_options import NANO_FORMAT, NANO_HISTORY, agent_model, agent_options
from starec_agents.llm.options import named_models
from starec_agents.runs.config import hash_of
from starec_agents.serving.card import CARD as MODEL_CARD
from starec_agents.serving.card import NANO, find_card, say_seen
from starec_agents.tasks import MAX_HISTORY
from starec_env.data import cache_dir
from starec_env.data.options import data_options, read_reading, split_option
from starec_env.data.spec import DataSpec
from starec_env.data.splits import Split
from starec_env.dataset import Dataset, Id
from starec_env.errors import InvalidOption, unknown
from starec_env.named import load_function
from starec_env.recommend.model import UserModelMaker
from starec_env.recommend.sequence import SequenceUser
from starec_env.recommend.twin_model import TwinModel
from starec_eval.fidelity.floor import PopularityUser
from starec_eval.fidelity.make import fidelity
from starec_eval.fidelity.order import RECOMMENDERS
from starec_eval.fidelity.page import tables
from starec_eval.fidelity.synthetic import TRAINED
from starec_eval.rankers import BASELINES
from starec_eval.report.page import CARD

AGENT = "agent"
USERS: dict[str, UserModelMaker] = {
    "twin": TwinModel.made,
    "sequence": SequenceUser.made,
    "popularity": PopularityUser,
}
"""User models by name, besides agents."""


def maker(user: str, options: Mapping[str, Any]) -> UserModelMaker:
    """Makes the user model of a name, or of MODULE:FUNCTION, which takes a data set and a seed.

    Args:
        user: The name.
        options: Of the command, for agents.

    Raises:
        UnknownName: With the nearest name that exists.
        InvalidOption: There is no such function.
    """
    if user == AGENT:
        return agent_model(options)
    if ":" in user:
        made: UserModelMaker = load_function(user, "--user", ("the data set", "a seed"))
        return made
    if user not in USERS:
        raise unknown("user model", user, [*USERS, AGENT, "MODULE:FUNCTION"])
    return USERS[user]


_KEPT = ("seed", "repetitions", "most_ratings", "quick", "out", "resume")
_OF_AGENTS = (
    *("model", "agent", "answers", "temperature", "top_p", "max_tokens"),
    *("extra_body", "raw_stars", "traits"),
)


def settings_of_agents(options: Mapping[str, Any]) -> dict[str, Any]:
    """What makes agents of a command's options themselves, starec-nano's own format and history included."""
    nano, file = named_models(options["model"])[0] == NANO, options["calibration"]
    return {
        **{name: options[name] for name in _OF_AGENTS},
        "calibration": file and hash_of(file.read_text(encoding="utf-8")),
        "answer_format": NANO_FORMAT if nano else options["answer_format"],
        "max_history": options["max_history"] or (NANO_HISTORY if nano else MAX_HISTORY),
    }


def _refuse_trained(options: Mapping[str, Any], dataset: Dataset, users: Sequence[Id]) -> None:
    model, _ = named_models(options["model"])
    if seen := say_seen(find_card(model), model, dataset.name, users):
        raise InvalidOption(
            f"{seen}: a card is about users that it never saw; its folder's {MODEL_CARD} says who they are: "
            f"--split-file FOLDER/{MODEL_CARD}"
        )


@click.command("fidelity")
@data_options
@split_option
@click.option(
    "--user", default="twin", show_default=True, help=f"{', '.join([*USERS, AGENT])}; MODULE:FUNCTION for your own."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Another gives fresh lists.")
@click.option("--users", type=click.IntRange(min=2), help="Tested users  [default: 1000, or half; and ratings of all]")
@click.option("--repetitions", type=click.IntRange(min=1), default=3, show_default=True, help="Lists of each user.")
@click.option("--ratings", "most_ratings", type=click.IntRange(min=1), help="Most ratings to ask for  [default: all]")
@click.option("--quick", is_flag=True, help="Leave out the order of recommenders and training on simulated logs.")
@agent_options
@click.option("--recommenders", default=",".join(RECOMMENDERS), show_default=True, help="Whose order is compared.")
@click.option("--trained", default=",".join(TRAINED), show_default=True, help="Which are trained on simulated logs.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of card.json, card.md, card.html.")
@click.option("--resume", is_flag=True, help="Go on with the card in --out.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def fidelity_command(data: DataSpec, split_file: Split | None, **options: Any) -> None:
    """Measure how faithful simulated users are to held-out real ones: a report card.

    Example: starec fidelity --dataset ml-latest-small --user twin --quick --out runs/card
    """
    names = {key: [name.strip() for name in options[key].split(",")] for key in ("recommenders", "trained")}
    for name in (name for each in names.values() for name in each):
        if name.removesuffix("-full") not in BASELINES:
            raise unknown("recommender", name, BASELINES)
    made, dataset = maker(options["user"], options), data.read()
    reading = split_file.reading if split_file else read_reading("default", (), data)
    tested = split_file.test[: options["users"]] if split_file else options["users"]
    if options["user"] == AGENT:
        _refuse_trained(options, dataset, tested if split_file else dataset.user_ids.tolist())
    with Progress(transient=True, disable=options["quiet"], console=Console(stderr=True)) as progress:
        task = progress.add_task("asking", total=None)

        def report(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        card = fidelity(
            dataset,
            made,
            name=options["user"],
            reading=reading,
            users=tested,
            train_users=split_file.train if split_file else None,
            settings=settings_of_agents(options) if options["user"] == AGENT else {},
            cache=cache_dir() / "fits",
            report=report,
            recommenders=names["recommenders"],
            trained=names["trained"],
            **{key: options[key] for key in _KEPT},
        )
    for table in tables(card):
        Console().print(table)
    click.echo(f"written to {options['out']}: {CARD}, card.md, card.html")
