"""Does training on simulated logs carry over to real lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from starec_env.data.cut import Ints, rows_only
from starec_env.dataset import Dataset
from starec_env.metrics import Estimate, ndcg
from starec_env.recommend.model import UserModel
from starec_eval.evaluate import score_ranks
from starec_eval.fidelity import measures
from starec_eval.fidelity.answers import Columns, Floats, each, rate
from starec_eval.fidelity.asked import Asked, appended
from starec_eval.fidelity.card import MODEL, REAL, Section, measured, plain
from starec_eval.fidelity.order import K, Report, drawn
from starec_eval.rankers import build

TRAINED = ("pop", "item-knn", "markov", "ease", "bpr")
"""Which recommenders are trained on simulated logs."""
SHUFFLED = "shuffled items"
"""Column of the control."""
_REAL_ROWS = 5
_LOGS = 0x4C4F

_ABOUT = (
    "Recommenders trained on {users:,} users' sequences, tested on the real lists: sequences as they are, simulated "
    "from their first {rows} items on, and with items shuffled among users, which keeps only how popular each is. "
    "Chance is a random order's. Popularity alone is most of what is above chance, so the second share is the one that "
    "says what order and company the model carries. The model has seen these users' own rows."
)


def trained_on_simulated(asked: Asked, columns: Columns, names: Sequence[str], report: Report | None) -> Section | str:
    """Recommenders trained on simulated, real and shuffled logs, on the real lists; or why there can be none."""
    if (most := columns[MODEL].most_candidates) < asked.dataset.n_items:
        return f"the user model chooses among {most:,} items at most, not from all {asked.dataset.n_items:,}"
    lists, real = asked.protocol.cases, asked.protocol.training("sample")
    logs = each(columns, lambda a: simulated_log(a.of_lists, asked, real, report))
    logs |= {REAL: real, SHUFFLED: shuffled(real, asked.seed)}
    values: dict[str, dict[str, Floats]] = {}
    for number, name in enumerate(names):
        if report:
            report(f"training {name} on simulated logs", number, len(names))
        values[name] = {column: _tested(name, asked, log) for column, log in logs.items()}
    found = [measured(f"tstr:{name}", f"NDCG@10 of {name}", "percent", of, lists.users) for name, of in values.items()]
    by_column = {
        column: np.stack([measures.by_user(of[column], lists.users) for of in values.values()]) for column in logs
    }
    chance = np.full_like(by_column[REAL], measures.chance_ndcg(K, lists.candidates.shape[1]))
    above = {column: _share(by_column, column, chance) for column in (*columns, SHUFFLED)}
    carried = {column: _share(by_column, column, by_column[SHUFFLED]) for column in columns}
    shares = [
        plain("tstr_share", "share of what is above chance", "share", **above),
        plain("tstr_carried", "share of what is above shuffled items", "share", **carried),
    ]
    about = _ABOUT.format(users=real.n_users, rows=_REAL_ROWS)
    return Section(key="tstr", title="Train on simulated, test on real", about=about, measures=[*shares, *found])


def _tested(name: str, asked: Asked, log: Dataset) -> Floats:
    return ndcg(score_ranks(build([name], asked.seed)[0].fit(log), asked.protocol.cases), K)


def _share(values: dict[str, Floats], column: str, floor: Floats) -> Estimate:
    """Mean over recommenders of a column's share of the way to the real log, of (recommenders, users) values."""

    def statistic(rows: NDArray[np.intp]) -> float:
        means = zip(*(each[:, rows].mean(1) for each in (values[column], floor, values[REAL])), strict=True)
        found = np.array([measures.share_above(*map(float, each)) for each in means])
        known = found[~np.isnan(found)]  # popularity carries nothing beyond what shuffling keeps
        return float(known.mean()) if len(known) else np.nan

    return measures.jackknifed(statistic, np.arange(floor.shape[1]))


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


def with_stars(model: UserModel, log: Dataset, users: Ints, items: Ints) -> Dataset:
    """A log in which users took one more item each, rated by the stars that the model expects."""
    longer, rows = appended(log, users, items)
    ratings = longer.ratings.copy()
    ratings[rows] = rate(model, longer, rows)[0]
    return replace(longer, ratings=ratings)
