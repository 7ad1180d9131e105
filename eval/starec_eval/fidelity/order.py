"""Are recommenders ordered as on real lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.cases import Cases
from starec_env.data.cut import Ints
from starec_env.dataset import Dataset
from starec_env.errors import InvalidOption
from starec_env.metrics import Relevant, ndcg
from starec_env.ranks import tie_keys
from starec_env.recommend.model import UserModel
from starec_eval.evaluate import score_ranks
from starec_eval.fidelity import measures
from starec_eval.fidelity.answers import Columns, Floats, over_catalogue
from starec_eval.fidelity.asked import Asked
from starec_eval.fidelity.card import REAL, Measure, Section, Unit, measured, plain
from starec_eval.rankers import build
from starec_eval.rankers.scorer import Scorer, check_scores

RECOMMENDERS = (
    *("random", "pop", "bpr", "ease", "item-knn", "markov", "gru4rec", "sasrec"),
    *("ease-full", "item-knn-full", "markov-full"),
)
"""Whose order is compared."""
K = 10
"""Of NDCG@K."""
_LISTS, _NEGATIVES = 0x4C49, 0x4E45

_ABOUT = (
    "{recommenders} recommenders trained on real rows, by NDCG@10 on real lists and on lists whose target the model "
    "drew from all unmet items by its chances of what is liked next. Expected: on the real lists, in the mean over the "
    "model's chances of which candidate is the target; free of draws, but those lists hold the real target, which "
    "flatters. Errors are bootstrapped over users. Recommenders within an error of each other change places by chance: "
    "pairs that real lists tell apart differ by over two standard errors of their paired difference. The floor is real "
    "lists of half the users against those of the other half."
)

_COMPARED: tuple[tuple[str, str, Unit], ...] = (
    ("tau", "Kendall's tau", "share"),
    ("told_apart", "of pairs that real lists tell apart", "share"),
    ("gap", "mean gap", "percent"),
)

Report = Callable[[str, int, int], None]
"""Called with what goes on, steps done and in all."""


@dataclass(frozen=True)
class Recommenders:
    """Recommenders fitted on real rows, and what they make of lists.

    Attributes:
        asked: Whose protocol says what they are trained on.
        names: Of `starec_eval.rankers.BASELINES`.
        cache: Folder of earlier fits.
        report: Told of progress.
    """

    asked: Asked
    names: Sequence[str]
    cache: Path | None = None
    report: Report | None = None

    @cached_property
    def fitted(self) -> list[Scorer]:
        """In the order of the names."""
        protocol, made = self.asked.protocol, build(self.names, self.asked.seed)
        for number, scorer in enumerate(made):
            if self.report:
                self.report(f"fitting {scorer.label}", number, len(made))
            scorer.fitted(protocol.training(scorer.train or protocol.reading.popularity), self.cache)
        return made

    def ndcg(self, cases: Cases) -> Floats:
        """(recommenders, cases) NDCG@10 of the cases' targets."""
        return np.stack([ndcg(score_ranks(scorer, cases), K) for scorer in self.fitted])

    def expected(self, cases: Cases, log_choice: Floats) -> Floats:
        """(recommenders, cases) NDCG@10 in the mean over which candidate is the target, by (cases, n) chances."""
        batch, found = cases.batch(), []
        for scorer in self.fitted:
            ties = tie_keys(cases.user_ids, cases.stop - cases.first, cases.candidates.shape[1], scorer.seed)
            ranks = places(check_scores(scorer.scores(batch), batch, scorer.label), ties)
            found.append((np.exp(log_choice) * ndcg(ranks, K)).sum(1))
        return np.stack(found)


def places(scores: NDArray[Any], ties: NDArray[Any]) -> Floats:
    """(cases, n) 1-based ranks of all candidates by (cases, n) scores; of equal ones the lower tie key comes first."""
    found = np.empty(scores.shape)
    best_first = np.lexsort((ties, -scores))
    np.put_along_axis(found, best_first, np.arange(1.0, scores.shape[1] + 1)[None, :], axis=1)
    return found


def simulated_lists(model: UserModel, asked: Asked, report: Report | None = None) -> Cases:
    """The protocol's lists with the next liked item as the model draws it from all unmet items, as people chose.

    Users, histories and sizes are those of the real lists; the other items are drawn anew, as real lists' are.
    """
    cases = asked.protocol.cases
    rng = np.random.default_rng((asked.seed, _LISTS))
    picks = np.empty(len(cases), np.int64)
    for repetition in np.unique(cases.repetition).tolist():
        rows = np.flatnonzero(cases.repetition == repetition)
        picks[rows] = drawn(model, asked.seen_of_lists, cases.users[rows], "liked", rng)
        if report:
            report("drawing lists", int(rows[-1]) + 1, len(cases))
    n = cases.candidates.shape[1]
    rng = np.random.default_rng((asked.seed, _NEGATIVES))
    shown = np.empty((len(cases), n), np.int32)
    targets = rng.integers(n, size=len(cases))
    for row, (user, pick) in enumerate(zip(cases.users.tolist(), picks.tolist(), strict=True)):
        others = asked.never_met(user, n, rng)
        shown[row] = np.insert(others[others != pick][: n - 1], targets[row], pick)
    return replace(cases, candidates=shown, targets=targets)


def drawn(model: UserModel, seen: Dataset, users: Ints, relevant: Relevant, rng: np.random.Generator) -> Ints:
    """(n,) the item that each user takes next, of those that the user hasn't in `seen`.

    Args:
        model: Says the chances.
        seen: Users' rows so far.
        users: (n,).
        relevant: "liked" or "taken".
        rng: Of the draws.
    """
    parts = []
    for part, log_choice in over_catalogue(model, seen, users, relevant):
        scores = log_choice + rng.gumbel(size=log_choice.shape)
        for row, user in enumerate(part.tolist()):
            scores[row, seen.item_indices[seen.indptr[user] : seen.indptr[user + 1]]] = -np.inf
        if not np.isfinite(scores.max(1)).all():
            raise InvalidOption("the user model gives every unmet item a chance of 0: nothing can be drawn")
        parts.append(scores.argmax(1))
    return np.concatenate(parts)


def order(asked: Asked, columns: Columns, recommenders: Recommenders, report: Report | None) -> Section:
    """Recommenders on real and on simulated lists; a model that can't choose from all items has expected ones alone."""
    lists, users = asked.protocol.cases, asked.protocol.cases.users
    real = recommenders.ndcg(lists)
    able = [column for column, answers in columns.items() if answers.most_candidates >= asked.dataset.n_items]
    drawn = {column: simulated_lists(columns[column].of_lists, asked, report) for column in able}
    simulated = {column: recommenders.ndcg(cases) for column, cases in drawn.items()}
    expected = {column: recommenders.expected(lists, answers.log_choice) for column, answers in columns.items()}
    found = [
        *_compared("", "simulated lists", real, simulated, users),
        *_compared("expected_", "expected on real lists", real, expected, users),
    ]
    for number, scorer in enumerate(recommenders.fitted):
        values = {REAL: real[number], **{column: made[number] for column, made in simulated.items()}}
        values |= {f"{column}, expected": made[number] for column, made in expected.items()}
        found.append(measured(f"order:{scorer.label}", f"NDCG@10 of {scorer.label}", "percent", values, users))
    about = _ABOUT.format(recommenders=len(recommenders.fitted))
    return Section(key="order", title="Order of recommenders", about=about, measures=found)


def _compared(key: str, name: str, real: Floats, made: Mapping[str, Floats], users: Ints) -> list[Measure]:
    """Kendall's tau, of all pairs and of those told apart, and the mean gap, by column."""
    one = measures.by_user(real, users)
    found = {column: measures.order(one, measures.by_user(each, users)) for column, each in made.items()}
    found["floor"] = measures.order_floor(one)
    return [
        plain(f"{key}{what}", f"{words}, {name}", unit, **{c: of[what] for c, of in found.items() if what in of})
        for what, words, unit in _COMPARED
    ]
