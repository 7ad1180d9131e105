"""The slow sections: are recommenders ordered as on real lists, and does training on simulated logs carry over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.cases import Cases
from starec_env.data.cut import Ints, rows_only
from starec_env.dataset import Dataset, Indices
from starec_env.errors import InvalidOption
from starec_env.metrics import Estimate, Relevant, estimate, ndcg
from starec_env.ranks import tie_keys
from starec_env.recommend.model import UserModel
from starec_eval.evaluate import score_ranks
from starec_eval.fidelity import measures
from starec_eval.fidelity.answers import Answers, Floats, over_catalogue, rate
from starec_eval.fidelity.asked import Asked, appended
from starec_eval.fidelity.card import MODEL, REAL, Measure, Section, plain
from starec_eval.rankers import build
from starec_eval.rankers.scorer import Scorer, check_scores

RECOMMENDERS = (
    "random",
    "pop",
    "bpr",
    "ease",
    "item-knn",
    "markov",
    "gru4rec",
    "sasrec",
    "ease-full",
    "item-knn-full",
    "markov-full",
)
"""Whose order is compared."""
TRAINED = ("pop", "item-knn", "markov", "ease", "bpr")
"""Which are trained on simulated logs."""
K = 10
"""Of NDCG@K."""
_REAL_ROWS = 5
_LISTS, _LOGS, _NEGATIVES = 0x4C49, 0x4C4F, 0x4E45

Columns = Mapping[str, Answers]
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
    lists = asked.protocol.cases
    real = recommenders.ndcg(lists)
    users = lists.users
    simulated, expected = {}, {}
    for column, answers in columns.items():
        if answers.most_candidates >= asked.dataset.n_items:
            simulated[column] = recommenders.ndcg(simulated_lists(answers.of_lists, asked, report))
        expected[column] = recommenders.expected(lists, answers.log_choice)
    found: list[Measure] = []
    taus: dict[str, dict[str, Estimate]] = {"tau": {}, "gap": {}, "expected_tau": {}, "expected_gap": {}}
    for prefix, made in (("", simulated), ("expected_", expected)):
        for column, scores in made.items():
            tau, gap = measures.order(measures.by_user(real, users), measures.by_user(scores, users))
            taus[f"{prefix}tau"][column], taus[f"{prefix}gap"][column] = tau, gap
    found += [
        plain("tau", "Kendall's tau, simulated lists", "share", **taus["tau"]),
        plain("gap", "mean gap in NDCG@10, simulated lists", "percent", **taus["gap"]),
        plain("expected_tau", "Kendall's tau, expected on real lists", "share", **taus["expected_tau"]),
        plain("expected_gap", "mean gap in NDCG@10, expected on real lists", "percent", **taus["expected_gap"]),
    ]
    for number, scorer in enumerate(recommenders.fitted):
        values: dict[str, Estimate | float] = {REAL: estimate("", real[number], users)}
        values |= {column: estimate("", made[number], users) for column, made in simulated.items()}
        values |= {f"{column}, expected": estimate("", made[number], users) for column, made in expected.items()}
        found.append(plain(f"order:{scorer.label}", f"NDCG@10 of {scorer.label}", "percent", **values))
    about = (
        f"{len(recommenders.fitted)} recommenders trained on real rows, on the real lists and on lists whose target "
        "the model drew from all unmet items by its chances of what is liked next. Expected: on the real lists, in the "
        "mean over the model's chances of which candidate is the target; free of draws, but those lists hold the real "
        "target, which flatters. Errors of tau and gap are bootstrapped over users; recommenders within an error of "
        "each other change places by chance."
    )
    return Section(key="order", title="Order of recommenders", about=about, measures=found)


def trained_on_simulated(asked: Asked, columns: Columns, names: Sequence[str], report: Report | None) -> Section | str:
    """Recommenders trained on simulated, real and shuffled logs, on the real lists; or why there can be none."""
    if (most := columns[MODEL].most_candidates) < asked.dataset.n_items:
        return f"the user model chooses among {most:,} items at most, not from all {asked.dataset.n_items:,}"
    protocol, lists = asked.protocol, asked.protocol.cases
    real = protocol.training("sample")
    logs = {REAL: real, "shuffled items": shuffled(real, asked.seed)}
    for column, answers in columns.items():
        logs[column] = simulated_log(answers.of_lists, asked, real, report)
    chance = measures.chance_ndcg(K, lists.candidates.shape[1])
    found: list[Measure] = []
    shares: dict[str, list[Floats]] = {}
    for number, name in enumerate(names):
        if report:
            report(f"training {name} on simulated logs", number, len(names))
        values = {
            column: ndcg(score_ranks(build([name], asked.seed)[0].fit(log), lists), K) for column, log in logs.items()
        }
        found.append(
            plain(
                f"tstr:{name}",
                f"NDCG@10 of {name}",
                "percent",
                **{c: estimate("", v, lists.users) for c, v in values.items()},
            )
        )
        by_user = {column: measures.by_user(v, lists.users) for column, v in values.items()}
        for column in (*columns, "shuffled items"):
            shares.setdefault(column, []).append(np.stack([by_user[column], by_user[REAL], by_user["shuffled items"]]))
    above = {
        c: _share(np.stack(each), lambda sim, true, mixed: measures.share_above(sim, chance, true))
        for c, each in shares.items()
    }
    carried = {
        c: _share(np.stack(each), lambda sim, true, mixed: measures.share_above(sim, mixed, true))
        for c, each in shares.items()
        if c in columns
    }
    found = [
        plain("tstr_share", "share of what is above chance, mean of all", "share", **above),
        plain("tstr_carried", "share of what is above shuffled items, mean of all", "share", **carried),
        *found,
    ]
    about = (
        f"Recommenders trained on {real.n_users:,} users' sequences, tested on the real lists: sequences as they are, "
        f"simulated from their first {_REAL_ROWS} items on, and with items shuffled among users, which keeps only how "
        "popular each is. Chance is a random order's. Popularity alone is most of what is above chance, so the second "
        "share is the one that says what order and company the model carries. The model has seen these users' own rows."
    )
    return Section(key="tstr", title="Train on simulated, test on real", about=about, measures=found)


def _share(values: Floats, of: Callable[[float, float, float], float]) -> Estimate:
    """Mean share over recommenders, with a jackknife error over users, of (recommenders, 3, users) values."""
    users = np.arange(values.shape[2])

    def statistic(rows: NDArray[np.intp]) -> float:
        means = values[:, :, rows].mean(2)
        found = np.array([of(*row) for row in means.tolist()])
        known = found[~np.isnan(found)]  # popularity carries nothing beyond what shuffling keeps
        return float(known.mean()) if len(known) else np.nan

    return measures.jackknifed(statistic, users)


def shuffled(log: Dataset, seed: int) -> Dataset:
    """The control: the same items, each as often, dealt to all rows at random."""
    items = np.random.default_rng((seed, _LOGS)).permutation(log.item_indices)
    return replace(log, item_indices=items)


def simulated_log(model: UserModel, asked: Asked, real: Dataset, report: Report | None = None) -> Dataset:
    """Sequences of the same users and lengths, of which the first five rows are real and the model draws the rest.

    It draws what is taken next from all unmet items, and rates it, so that the next draw knows the row.

    Args:
        model: Draws.
        asked: Whose `seen_of_lists` has the users' rows before their sequences.
        real: The sequences, users as in `Protocol.training`.
        report: Told of progress.
    """
    users, lengths = np.array([asked.dataset.user_index(user) for user in real.user_ids.tolist()]), np.diff(real.indptr)
    kept = np.minimum(lengths, _REAL_ROWS)
    whole = asked.seen_of_lists
    stops = whole.indptr[:-1].copy()
    stops[users] = whole.indptr[1:][users] - (lengths - kept)
    log = rows_only(whole, whole.indptr[:-1], stops)
    rng, items = np.random.default_rng((asked.seed, _LOGS)), real.item_indices.copy()
    steps = int((lengths - kept).max(initial=0))
    for step in range(steps):
        if report:
            report("drawing logs", step, steps)
        going = np.flatnonzero(kept + step < lengths)
        taken = drawn(model, log, users[going], "taken", rng)
        log = with_stars(model, log, users[going], taken)
        items[real.indptr[going] + kept[going] + step] = taken
    return replace(real, item_indices=items.astype(np.int32))


def with_stars(model: UserModel, log: Dataset, users: Ints, items: Indices | Ints) -> Dataset:
    """A log in which users took one more item each, rated by the stars that the model expects."""
    longer, rows = appended(log, users, items)
    ratings = longer.ratings.copy()
    ratings[rows] = rate(model, longer, rows)[0]
    return replace(longer, ratings=ratings)
