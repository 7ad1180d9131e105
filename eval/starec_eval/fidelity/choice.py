"""What is chosen next of 20, and whether the same is chosen again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from starec_env.data.cut import Ints
from starec_env.metrics import CUTOFFS, ndcg
from starec_eval.fidelity.answers import Answers, Columns, Floats, each, log_choice
from starec_eval.fidelity.asked import Asked
from starec_eval.fidelity.card import MODEL, Measure, Section, errors_of, measured

_ASKED_AGAIN = 200
"""Lists."""
_SHUFFLE = 0x5348

_ABOUT = (
    "Which of {n} items is the next that the user likes: {lists:,} held-out lists, 1 real item and {others} that the "
    "user never met. NDCG as in `starec eval`, of the very same lists; a uniform guess has log-likelihood "
    "{uniform:.2f}. The floor of a calibration error is that of outcomes drawn from the model's own probabilities, as "
    "if lists were independent; those of one user share the target."
)
_ABOUT_AGAIN = (
    "{lists:,} of the lists once more, as they were and with their candidates in another order. A model of numbers is "
    "steady by nature; a language model at temperature 0 should be under the first, and often isn't under the second."
)


def choice(asked: Asked, columns: Columns) -> Section:
    """Ranks and probabilities of the real items."""
    users, groups, n = asked.lists.users, asked.groups, asked.lists.candidates.shape[1]
    ranks, found = each(columns, lambda a: a.ranks), []
    for k in CUTOFFS:
        values = {column: ndcg(of, k) for column, of in ranks.items()}
        found.append(measured(f"ndcg@{k}", f"NDCG@{k}", "percent", values, users, groups))
    likelihood = each(columns, lambda a: a.log_likelihood)
    drawn = {column: np.exp(values) for column, values in likelihood.items()}
    likeliest, all_of_them = each(columns, _likeliest), each(columns, _all_of_them)
    found += [
        measured("log_likelihood", "log-likelihood", "nats", likelihood, users, groups),
        measured("drawn", "the real item is drawn", "percent", drawn, users),
        errors_of("choice_ece", "calibration error of the likeliest", likeliest, users, asked.seed),
        errors_of("choice_ece_all", "calibration error of all", all_of_them, np.repeat(users, n), asked.seed),
    ]
    about = _ABOUT.format(n=n, others=n - 1, lists=len(users), uniform=-np.log(n))
    return Section(key="choice", title="What is chosen next", about=about, measures=found)


def _likeliest(answers: Answers) -> tuple[Floats, NDArray[np.bool_]]:
    said = answers.log_choice
    return np.exp(said.max(1)), said.argmax(1) == answers.asked.lists.targets


def _all_of_them(answers: Answers) -> tuple[Floats, NDArray[np.bool_]]:
    said = answers.log_choice
    real = np.arange(said.shape[1]) == answers.asked.lists.targets[:, None]
    return np.exp(said).ravel(), real.ravel()


def consistency(asked: Asked, columns: Columns) -> Section:
    """The same answer to the same question, and in another order."""
    first = np.flatnonzero(asked.lists.repetition == 0)[:_ASKED_AGAIN]
    users, said = asked.lists.users[first], np.exp(columns[MODEL].log_choice[first])
    model, cases = columns[MODEL].of_lists, asked.lists.select(first)
    rng = np.random.default_rng((asked.seed, _SHUFFLE))
    order = rng.permuted(np.tile(np.arange(said.shape[1]), (len(said), 1)), axis=1)
    places = (order == cases.targets[:, None]).argmax(1)
    moved = replace(cases, candidates=np.take_along_axis(cases.candidates, order, 1), targets=places)
    back = np.empty_like(said)
    np.put_along_axis(back, order, np.exp(log_choice(model, moved)), 1)
    found = _same("asked_again", "asked again", said, np.exp(log_choice(model, cases)), users)
    found += _same("reordered", "candidates in another order", said, back, users)
    about = _ABOUT_AGAIN.format(lists=len(cases))
    return Section(key="consistency", title="Consistency", about=about, measures=found)


def _same(key: str, name: str, said: Floats, other: Floats, users: Ints) -> list[Measure]:
    same = {MODEL: said.argmax(1) == other.argmax(1)}
    apart = {MODEL: np.abs(said - other).sum(1) / 2}
    return [
        measured(f"{key}_top", f"{name}: the same first choice", "percent", same, users),
        measured(f"{key}_tv", f"{name}: total variation", "percent", apart, users),
    ]
