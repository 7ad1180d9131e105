"""Make a card: ask, measure, keep what is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from starec_agents.runs.config import ids_hash
from starec_agents.runs.store import locked
from starec_env.dataset import Dataset, Id
from starec_env.errors import RunError
from starec_env.reading import Reading
from starec_env.recommend.model import UserModelMaker
from starec_eval.fidelity import choice, distances, offers, ratings, sittings
from starec_eval.fidelity.answers import Answers, Columns
from starec_eval.fidelity.asked import HELD_OUT, Asked
from starec_eval.fidelity.card import FLOOR, MODEL, Card, Section
from starec_eval.fidelity.floor import PopularityUser
from starec_eval.fidelity.order import RECOMMENDERS, Recommenders, Report, order
from starec_eval.fidelity.page import write
from starec_eval.fidelity.synthetic import TRAINED, trained_on_simulated
from starec_eval.protocol import Protocol
from starec_eval.rankers import build
from starec_eval.report.page import CARD

QUICK: dict[str, Callable[[Asked, Columns], Section | str]] = {
    "choice": choice.choice,
    "offers": offers.offers,
    "ratings": ratings.ratings,
    "agreeableness": ratings.agreeableness,
    "distances": distances.distances,
    "consistency": choice.consistency,
    "sittings": sittings.sittings,
}
"""Sections by key that take seconds, once the model is made."""
_QUICK = "it is slow, and a quick card was asked for"

Step = Callable[[], Section | str]
"""Makes a section, or says why there is none."""


def fidelity(
    dataset: Dataset,
    maker: UserModelMaker,
    *,
    name: str,
    out: str | Path,
    reading: Reading | None = None,
    seed: int = 0,
    users: int | Sequence[Id] | None = None,
    train_users: Sequence[Id] | None = None,
    repetitions: int = 3,
    most_ratings: int | None = None,
    quick: bool = False,
    recommenders: Sequence[str] = RECOMMENDERS,
    trained: Sequence[str] = TRAINED,
    settings: dict[str, Any] | None = None,
    cache: Path | None = None,
    resume: bool = False,
    report: Report | None = None,
) -> Card:
    """Measure a user model on held-out real data, and write card.json, card.md and card.html.

    The model is made twice, from what may be seen before the held-out lists and from all but the last tenth of each
    user's rows, and asked only about what came later.

    Args:
        dataset: As loaded.
        maker: Makes the model from the rows that it may see.
        name: Of the model, in the card.
        out: Folder; the card is kept there as its sections are done.
        reading: Decides filter, sequences and lists; the default one unless given.
        seed: Of lists, offers and draws: another gives fresh ones.
        users: How many users are tested, or their ids; None for 1,000, or half where there are fewer. Given, ratings
            too are asked of these alone.
        train_users: Ids of those whom recommenders train on; None for 1,000 of the others.
        repetitions: Lists of each.
        most_ratings: Most ratings that are asked for, drawn at random; None for all.
        quick: Leave out the slow sections: the order of recommenders, and training on simulated logs.
        recommenders: Whose order is compared.
        trained: Which are trained on simulated logs.
        settings: Of the model, for the card.
        cache: Folder of fitted recommenders.
        resume: Go on with the card in `out`.
        report: Called with what goes on, steps done and in all.

    Raises:
        RunError: `out` holds a card of something else, or any and `resume` is False; or it is in use.
        InvalidOption: A number is out of range, or the model's answers aren't what they must be.
    """
    protocol = Protocol(
        dataset, reading or Reading(), seed=seed, users=users, train_users=train_users, repetitions=repetitions
    )
    asked = Asked(protocol, seed, users is None, most_ratings)
    card = _begun(asked, name, {**(settings or {}), "recommenders": list(recommenders), "trained": list(trained)})
    path = Path(out) / CARD
    build([*recommenders, *trained], seed)
    with locked(path.parent):
        if path.exists():
            card = _resumed(path, card, resume)
        _ = asked.offers, asked.untouched  # what can't be asked is refused before a model is made
        columns: dict[str, Answers] = {MODEL: Answers(maker, asked), FLOOR: Answers(PopularityUser, asked)}
        steps: dict[str, Step] = {key: partial(section, asked, columns) for key, section in QUICK.items()}
        fitted = Recommenders(asked, recommenders, cache, report)
        slow: dict[str, Step] = {
            "order": lambda: order(asked, columns, fitted, report),
            "tstr": lambda: trained_on_simulated(asked, columns, trained, report),
        }
        steps |= dict.fromkeys(slow, lambda: _QUICK) if quick else slow
        for number, (key, step) in enumerate(steps.items()):
            if report:
                report(key, number, len(steps))
            card = _with(card, key, step)
            card = card.model_copy(update=_had(card, columns[MODEL]))
            card.write(path)
        write(card, path.parent)
    return card


def _begun(asked: Asked, name: str, settings: dict[str, Any]) -> Card:
    cases = asked.protocol.cases
    counted = {
        "tested_users": len(asked.users),
        "lists": len(cases),
        "n_candidates": int(cases.candidates.shape[1]),
        "ratings": len(asked.rows),
        "held_out": HELD_OUT,
        "train_users": ids_hash(asked.dataset.user_ids[asked.protocol.train_users].tolist()),
        "reading": str(asked.protocol.reading),
    }
    return Card(
        starec=version("starec"),
        dataset=asked.protocol.loaded.name,
        data_hash=asked.dataset.hash,
        candidates=cases.hash,
        user=name,
        seed=asked.seed,
        settings={**counted, **settings},
        notes=[
            f"{asked.dataset.n_users:,} users, {asked.dataset.n_items:,} items, {asked.dataset.n_interactions:,} "
            f"interactions as prepared; ratings run from {asked.dataset.ratings.min():g} to "
            f"{asked.dataset.ratings.max():g}, and above {asked.dataset.liked_above:g} are likes",
            *asked.protocol.notes,
        ],
    )


def _resumed(path: Path, card: Card, resume: bool) -> Card:
    if not resume:
        raise RunError(f"{path} is there already: pass resume=True (--resume) or choose another folder")
    there = Card.read(path)
    if there.identity != card.identity:
        different = [key for key, value in card.identity.items() if there.identity[key] != value]
        raise RunError(f"{path} is of another {', '.join(different)}: choose another folder")
    return there


def _with(card: Card, key: str, step: Step) -> Card:
    """The card with a section more, or with the reason why not; as it is if the section is there."""
    if any(section.key == key for section in card.sections):
        return card
    begun = perf_counter()
    found = step()
    left_out = {name: why for name, why in card.left_out.items() if name != key}
    if isinstance(found, str):
        return card.model_copy(update={"left_out": {**left_out, key: found}})
    seconds = {**card.seconds, key: round(perf_counter() - begun, 2)}
    return card.model_copy(update={"sections": [*card.sections, found], "left_out": left_out, "seconds": seconds})


def _had(card: Card, answers: Answers) -> dict[str, Any]:
    """What a section's answers took and what was wrong with them."""
    seconds = {f"fit for {part}": round(value, 2) for part, value in answers.seconds.items()}
    return {"seconds": {**card.seconds, **seconds}, "problems": {**card.problems, **answers.problems}}
