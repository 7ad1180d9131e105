"""Yes or no to items taken later and items never touched, after Agent4Rec (arXiv 2310.10108)."""

from __future__ import annotations

import numpy as np

from starec_eval.fidelity import measures
from starec_eval.fidelity.answers import Columns, Floats
from starec_eval.fidelity.asked import RATIOS, Asked, Offers
from starec_eval.fidelity.card import Measure, Section, aucs, measured

YES = 0.5
"""A yes-probability that is a yes."""

_ABOUT = (
    "Yes or no to items that the user took later, of any rating, and m times as many never touched: accuracy, "
    "precision, recall and F1 of a user's answers, and means over users, after Agent4Rec (arXiv 2310.10108). The model "
    "isn't told m; yes is a probability of at least one half. Yes to all has an accuracy of 1 / (1 + m), no to all of "
    "m / (1 + m). AUC is over all pairs, whatever the threshold."
)


def offers(asked: Asked, columns: Columns) -> Section:
    """For each m."""
    found = [measure for ratio in RATIOS if asked.offers[ratio] for measure in _of_ratio(asked, columns, ratio)]
    return Section(key="offers", title="Yes or no, 1:m", about=_ABOUT, measures=found)


def _of_ratio(asked: Asked, columns: Columns, ratio: int) -> list[Measure]:
    parts, groups = asked.offers[ratio], asked.groups if ratio == 1 else None
    said = {column: answers.accepts(ratio) for column, answers in columns.items()}
    scores = {column: _scores(yes, parts) for column, yes in said.items()}
    users = np.concatenate([part.cases.users for part in parts])
    found = []
    for name in ("accuracy", "precision", "recall", "F1"):
        values = {column: of[name] for column, of in scores.items()}
        found.append(measured(f"{name.lower()}@1:{ratio}", f"1:{ratio} {name}", "percent", values, users, groups))
    touched = np.concatenate([part.touched.ravel() for part in parts])
    owners = np.concatenate([np.repeat(part.cases.users, part.touched.shape[1]) for part in parts])
    flat = {column: np.concatenate([yes.ravel() for yes in each]) for column, each in said.items()}
    return [*found, aucs(f"auc@1:{ratio}", f"1:{ratio} AUC", touched, flat, owners)]


def _scores(said: list[Floats], parts: list[Offers]) -> dict[str, Floats]:
    """(cases,) values by name, of all parts one after the other."""
    found = [measures.yes_no(yes >= YES, part.touched) for yes, part in zip(said, parts, strict=True)]
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}
