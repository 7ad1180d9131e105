"""`starec loop`: recommenders act, simulated users answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress

from starec_agents.agent_options import agent_options, agent_responder
from starec_agents.llm.options import named_models
from starec_agents.serving.card import find_card
from starec_env.data.options import data_options, refuse
from starec_env.data.spec import DataSpec
from starec_env.data.splits import read_users, sample
from starec_env.errors import InvalidOption, unknown
from starec_env.named import load_function
from starec_env.recommend.responses import Responder, check_responder
from starec_env.recommend.sequence import SequenceUser
from starec_env.recommend.twin import twin_of
from starec_env.types import Dataset, Id
from starec_eval.loop.record import check_folder
from starec_eval.loop.run import Report, reference_of, run_loop
from starec_eval.rankers import BASELINES
from starec_eval.recommenders import build_recommenders
from starec_eval.report.page import LOOP

RECOMMENDERS = "random,pop,item-knn"
USERS = ("twin", "sequence", "agent")
_SIZES = ("rounds", "slate_size", "horizon", "seed", "against", "resume", "concurrency")


@click.command("loop")
@data_options
@click.option(
    "--recommenders",
    default=RECOMMENDERS,
    show_default=True,
    help=f"Of {', '.join(BASELINES)}; MODULE:FUNCTION for your own: a function without parameters that returns one.",
)
@click.option(
    "--user",
    default="twin",
    show_default=True,
    help="Who answers: twin; sequence, a statistical user of another kind; agent, at --base-url; MODULE:FUNCTION for "
    "your own: a function of the data set.",
)
@click.option("--users", type=click.IntRange(min=1), default=100, show_default=True, help="Sampled by --seed.")
@click.option(
    "--users-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Their ids instead, one a line."
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Visits of each user.")
@click.option("--slate-size", type=click.IntRange(min=1), default=10, show_default=True, help="Items of a slate.")
@click.option("--horizon", type=click.IntRange(min=1), default=20, show_default=True, help="Most slates of a visit.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--against", metavar="NAME", help="Compare the others with this recommender  [default: pop, else the first]"
)
@agent_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the record.")
@click.option("--resume", is_flag=True, help="Go on with the loop in --out.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def loop_command(data: DataSpec, **options: Any) -> None:
    """Let recommenders recommend to simulated users, learn from what these answer, and recommend again.

    Each recommender has a world of its own, with the same users; all that they answer is recorded, and a loop that was
    interrupted goes on with --resume to the same record.

    Example: starec loop --recommenders random,pop,item-knn --user twin --users 200 --rounds 3 --out runs/loop
    """
    if options["user"] != "agent":
        others = {parameter.name for parameter in click.get_current_context().command.params} - _OWN
        refuse(sorted(filter(None, others - set(DataSpec.model_fields))), "unless --user is agent")
    if options["users_file"]:
        refuse(["users"], "with --users-file, which says who")
    names = [name.strip() for name in options["recommenders"].split(",")]
    recommenders = build_recommenders(names, options["seed"])
    reference_of(recommenders, options["against"])
    check_folder(options["out"], options["resume"])
    dataset = data.load()
    with Progress(transient=True, disable=options["quiet"], console=Console(stderr=True)) as progress:
        task = progress.add_task("loop", total=None)

        def report(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total or None)

        responder = _responder(dataset, options, report)
        results = run_loop(
            responder,
            recommenders,
            out=options["out"],
            users=_users(options, dataset),
            user=options["user"],
            data=data.model_dump(mode="json"),
            report=report,
            **{name: options[name] for name in _SIZES},
        )
    Console().print(results)
    pages = results.write_pages(options["out"])
    files = ", ".join(["run.json", "a file a recommender and round", LOOP, *pages])
    click.echo(f"written to {options['out']}: {files}")


_OWN = {
    *("recommenders", "user", "users", "users_file", "rounds", "slate_size", "horizon", "seed", "against", "out"),
    *("resume", "quiet", "concurrency", "data"),
}


def _responder(dataset: Dataset, options: dict[str, Any], report: Report) -> Responder:
    user = options["user"]
    if user == "twin":
        return twin_of(dataset, report)
    if user == "sequence":
        report("fitting the sequence user", 0, 0)
        return SequenceUser.fit(dataset)
    if user == "agent":
        return agent_responder(dataset, options)
    if ":" not in user:
        raise unknown("user", user, [*USERS, "MODULE:FUNCTION"])
    made: Responder = load_function(user, "--user", ("the data set",))(dataset)
    check_responder(made)
    return made


def _users(options: dict[str, Any], dataset: Dataset) -> int | Sequence[Id]:
    """Who visits; agents' users are such as their model wasn't trained on, unless a file says who."""
    if options["users_file"]:
        return read_users(options["users_file"])["heldout"]
    number: int = options["users"]
    if options["user"] != "agent":
        return number
    card = find_card(named_models(options["model"])[0])
    if card is None:
        return number
    ids: list[Id] = dataset.user_ids.tolist()
    seen = set(card.seen(dataset.name, ids))
    unseen = [user for user in ids if str(user) not in seen]
    if len(unseen) < number:
        raise InvalidOption(
            f"--users {number}: the model was trained on or chosen by all but {len(unseen):,} users of {dataset.name}"
        )
    return [unseen[place] for place in sample(np.arange(len(unseen)), number, options["seed"]).tolist()]
