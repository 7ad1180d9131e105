"""The options of `--user agent`, the same for every command that puts agents before a recommender."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress

from starec_agents._trial import answers_slates
from starec_agents.agent import UserAgent, wait_for
from starec_agents.calibration import Calibration
from starec_agents.commands import load_graph
from starec_agents.llm.options import chats, endpoint_options
from starec_agents.responder import AgentResponder, Through
from starec_agents.runs.config import hash_of
from starec_agents.runs.store import temporary
from starec_agents.serving.card import NANO, NANO_FOLDER, find_card
from starec_agents.tasks import MAX_HISTORY
from starec_agents.tasks.options import format_options
from starec_agents.traits import traits_in_words
from starec_agents.user_model import AgentModel, calibrate
from starec_env.data import cache_dir
from starec_env.errors import InvalidOption
from starec_env.types import Dataset, Id

NANO_CALIBRATION = NANO_FOLDER / "calibration.json"
"""starec-nano's, fitted on its validation users of ml-latest-small."""
NANO_FORMAT, NANO_HISTORY = "scores", 12
"""What starec-nano was taught to answer, and to be shown."""

_CALIBRATED_ON = 60
"""Users."""
_ANSWERS = ("auto", "response", "ranking")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--agent", {"default": "starec", "help": "As for starec simulate."}),
    ("--max-history", {"type": click.IntRange(min=1), "help": f"Shown in prompts  [default: {MAX_HISTORY}]"}),
    (
        "--answers",
        {
            "type": click.Choice(_ANSWERS),
            "default": "auto",
            "help": f"What agents answer slates by; auto: {NANO}, and graphs that only rank, by ranking; others by a "
            "response.",
        },
    ),
    ("--calibration", {"type": _FILE, "help": "A file of starec_agents.calibrate()  [default: fitted and kept]"}),
    ("--raw-stars", {"is_flag": True, "help": "Leave the stars that agents give as they are, not calibrated."}),
    ("--reflect/--no-reflect", {"default": True, "help": "Whether agents learn from a visit at its end."}),
    ("--traits/--no-traits", {"default": False, "help": "Whether agents begin with what sets their user apart."}),
    ("--concurrency", {"type": click.IntRange(min=1), "default": 64, "help": "Requests in flight."}),
)


def agent_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command the options that `agent_responder` reads."""
    for flag, settings in reversed(_OPTIONS):
        command = click.option(flag, show_default="default" in settings, **settings)(command)
    command = partial(endpoint_options, several=True)(format_options(command))
    address: dict[str, Any] = {
        "multiple": True,
        "help": "Where --user agent is answered, http://localhost:8000/v1; one a server.",
    }
    return click.option("--base-url", "urls", **address)(command)


def agent_responder(
    dataset: Dataset, options: Mapping[str, Any], *, needs_calibration: bool = False, seed: int = 0, **more: Any
) -> AgentResponder:
    """The agents of a command's options, once their server has answered that it has the model.

    Without --calibration, one is fitted on some of the data set's users whom the model wasn't trained on, and kept in
    the cache folder; with --raw-stars only where it is needed for more than stars.

    Args:
        dataset: Whose users they are.
        options: As `agent_options` gives them to the command.
        needs_calibration: Whether one is needed whatever the agents answer by, as for the card.
        seed: Of the users to calibrate on.
        more: Further arguments of `AgentResponder`, as stops.

    Raises:
        InvalidOption: An option is missing or wrong, or there are too few users to calibrate on.
        EndpointError: The server can't be reached, or lacks the model.
    """
    if not options["urls"]:
        raise InvalidOption("--user agent asks a model: give --base-url and --model (starec serve starts a server)")
    model, llm, models = chats(options)
    for each in (llm, *models.values()):
        wait_for(each.check())
        if context := click.get_current_context(silent=True):
            context.call_on_close(lambda llm=each: wait_for(llm.aclose()))
    agent = UserAgent.factory(
        llm,
        graph=load_graph(options["agent"]),
        answer_format=NANO_FORMAT if model == NANO else options["answer_format"],
        max_history=options["max_history"] or (NANO_HISTORY if model == NANO else MAX_HISTORY),
        models=models,
    )
    through = _through(model, agent(), options["answers"])
    known = NANO_CALIBRATION if options["calibration"] is None and model == NANO else options["calibration"]
    calibration, raw = known and Calibration.load(known), options["raw_stars"]
    if calibration is None and (needs_calibration or through == "ranking" or not raw):
        users = _unseen(dataset, model, seed)
        asked = {name: options[name] for name in ("temperature", "top_p", "max_tokens", "extra_body")}
        calibration = _fitted(agent, dataset, users, "ranking" if raw else through, {"model": model, **asked})
    if calibration and raw:
        calibration = calibration.model_copy(update={"by_response": None})
    traits = traits_in_words(dataset, more.get("stops")) if options["traits"] else None
    given = {"calibration": calibration, "reflects": options["reflect"], "traits": traits, **more}
    return AgentResponder(agent, dataset, through=through, **given)


def agent_model(options: Mapping[str, Any]) -> Callable[[Dataset, int], AgentModel]:
    """What makes the report card's model of a command's options: of a data set and a seed."""

    def make(dataset: Dataset, seed: int) -> AgentModel:
        return AgentModel(agent_responder(dataset, options, needs_calibration=True, seed=seed), seed=seed)

    return make


def _unseen(dataset: Dataset, model: str, seed: int) -> list[Id]:
    """Some users whom the model wasn't trained on, as far as its card says."""
    card = find_card(model)
    ids: list[Id] = np.random.default_rng(seed).permutation(dataset.user_ids[np.diff(dataset.indptr) > 0]).tolist()
    seen = set(card.seen(dataset.name, ids, choosing=True)) if card else set()
    return [user for user in ids if str(user) not in seen][:_CALIBRATED_ON]


def _through(model: str, agent: UserAgent, given: str) -> Through:
    if given == "ranking" or (given == "auto" and model == NANO):
        return "ranking"
    if wait_for(answers_slates(agent)):
        return "response"
    if given == "auto":
        return "ranking"
    raise InvalidOption(
        f"--answers response: graph {agent.graph_name!r} ranks slates and doesn't answer them: give it a branch for "
        "the state's 'visit' that sets 'response', or say --answers ranking"
    )


def _fitted(
    agent: Callable[[], UserAgent], dataset: Dataset, users: Sequence[Id], through: Through, asked: dict[str, Any]
) -> Calibration:
    made_from = {**agent().settings, **asked, "dataset": dataset.name, "data_hash": dataset.hash, "through": through}
    path = cache_dir() / "calibrations" / f"{hash_of([made_from, users])}.json"
    if path.exists():
        return Calibration.load(path)
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        bar = progress.add_task("calibrating the agents", total=None)

        def report(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        calibration = calibrate(agent, dataset, users, through=through, made_from=made_from, report=report)
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary(path) as new:
        calibration.save(new)
    return calibration
