"""The sections of the card that take seconds: what is chosen, accepted and rated, and how steadily."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.data.cut import Ints
from starec_env.metrics import CUTOFFS, Estimate, ndcg
from starec_eval.fidelity import measures
from starec_eval.fidelity.answers import Answers, Floats, levels_of, log_choice
from starec_eval.fidelity.asked import RATIOS, Asked, Offers
from starec_eval.fidelity.card import FLOOR, MODEL, REAL, Measure, Section, Unit, measured, plain

Columns = Mapping[str, Answers]
"""The user model's answers, and the popularity floor's, by column."""

_STEADY = 200
"""Lists that are asked again."""
_DECILES = 10
_PICKS, _SHUFFLE = 0x5049, 0x5348
_DAY_SECONDS = 86_400
_SITTINGS = 20_000
_EVER = 10**9
_STEPS = ((1, 1), (2, 5), (6, 20), (21, 60), (61, _EVER))
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def choice(asked: Asked, columns: Columns) -> Section:
    """What is chosen next of 20."""
    users, groups = asked.lists.users, asked.groups
    found = [
        measured(f"ndcg@{k}", f"NDCG@{k}", "percent", _each(columns, lambda a, k=k: ndcg(a.ranks, k)), users, groups)
        for k in CUTOFFS
    ]
    chosen = _each(columns, lambda a: np.exp(a.log_likelihood))
    found += [
        measured("log_likelihood", "log-likelihood", "nats", _each(columns, lambda a: a.log_likelihood), users, groups),
        measured("drawn", "the real item is drawn", "percent", chosen, users),
        *_calibration("choice_ece", "calibration error of the likeliest", columns, users, asked.seed, _likeliest),
        *_calibration("choice_ece_all", "calibration error of all", columns, users, asked.seed, _all_candidates),
    ]
    n = asked.lists.candidates.shape[1]
    about = (
        f"Which of {n} items is the next that the user likes: {len(users):,} held-out lists, 1 real item and {n - 1} "
        "that the user never met. NDCG as in `starec eval`, of the very same lists; a uniform guess has "
        f"log-likelihood {-np.log(n):.2f}. The floor of a calibration error is that of outcomes drawn from the "
        "model's own probabilities, as if lists were independent; those of one user share the target."
    )
    return Section(key="choice", title="What is chosen next", about=about, measures=found)


def offers(asked: Asked, columns: Columns) -> Section:
    """Yes or no to items touched later and never touched, Agent4Rec's protocol."""
    found: list[Measure] = []
    for ratio in RATIOS:
        found += _of_ratio(asked, columns, ratio)
    about = (
        "Yes or no to items that the user took later, of any rating, and m times as many never touched: accuracy, "
        "precision, recall and F1 of a user's answers, and means over users, after Agent4Rec (arXiv 2310.10108). "
        "The model isn't told m; yes is a probability of at least one half. Yes to all has an accuracy of 1 / (1 + m), "
        "no to all of m / (1 + m). AUC is over all pairs, whatever the threshold."
    )
    return Section(key="offers", title="Yes or no, 1:m", about=about, measures=found)


def _of_ratio(asked: Asked, columns: Columns, ratio: int) -> list[Measure]:
    parts = asked.offers[ratio]
    if not parts:
        return []
    users = np.concatenate([part.cases.users for part in parts])
    said = {column: answers.accepts(ratio) for column, answers in columns.items()}
    scores: dict[str, dict[str, Floats]] = {}
    for column, each in said.items():
        rows = [measures.yes_no(yes >= 0.5, part.touched) for yes, part in zip(each, parts, strict=True)]
        scores[column] = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    groups = asked.groups if ratio == 1 else None
    made = [
        measured(
            f"{name.lower()}@1:{ratio}",
            f"1:{ratio} {name}",
            "percent",
            {c: scores[c][name] for c in columns},
            users,
            groups,
        )
        for name in ("accuracy", "precision", "recall", "F1")
    ]
    touched = np.concatenate([part.touched.ravel() for part in parts])
    owners = np.concatenate([np.repeat(part.cases.users, part.touched.shape[1]) for part in parts])
    found = {}
    for column, each in said.items():
        yes = np.concatenate([part.ravel() for part in each])
        found[column] = measures.jackknifed(partial(_auc_of, touched, yes), owners)
    return [*made, plain(f"auc@1:{ratio}", f"1:{ratio} AUC", "percent", **found)]


def ratings(asked: Asked, columns: Columns) -> Section:
    """Stars of held-out rows."""
    stars, liked, owners = (
        asked.dataset.ratings[asked.rows].astype(np.float64),
        asked.dataset.liked[asked.rows],
        asked.owners,
    )
    means = {**_each(columns, lambda a: a.rated[0]), **_means(asked)}
    about = (
        f"Stars of each user's last tenth of rows, {len(stars):,} of {len(np.unique(owners)):,} users, each from all "
        "that came before it. `popularity` says a user's mean so far; `user mean`, `item mean` and `user + item` are "
        "of what the model was fitted on (the last with means drawn towards 0 as if 10 and 5 rows more were average). "
        "RMSE, MAE and errors weigh rows alike; standard errors are over users. AUC tells liked from not liked rows."
    )
    squares = {column: (said - stars) ** 2 for column, said in means.items()}
    sizes = {column: np.abs(said - stars) for column, said in means.items()}
    scores = {**_each(columns, lambda a: a.rated[1]), **_means(asked)}
    found = [
        measured(
            "rmse", "RMSE", "stars", squares, owners, asked.groups, lambda v, u: measures.root(measures.pooled(v, u))
        ),
        measured("mae", "MAE", "stars", sizes, owners, asked.groups, measures.pooled),
        plain(
            "like_auc",
            "AUC of likes",
            "percent",
            **{c: measures.jackknifed(partial(_auc_of, liked, s), owners) for c, s in scores.items()},
        ),
        measured(
            "like_rate",
            "like rate",
            "percent",
            {**_each(columns, lambda a: a.rated[1]), REAL: liked},
            owners,
            asked.groups,
            measures.pooled,
        ),
        *_calibration(
            "like_ece", "calibration error of likes", columns, owners, asked.seed, lambda _, a: (a.rated[1], liked)
        ),
    ]
    return Section(key="ratings", title="How it is rated", about=about, measures=found)


def agreeableness(asked: Asked, columns: Columns) -> Section:
    """Whether the user is kinder than real ones."""
    stars, owners = asked.dataset.ratings[asked.rows].astype(np.float64), asked.owners
    surplus = _each(columns, lambda a: a.rated[0] - stars)
    _, rows, users = asked.untouched
    touched = measures.pooled(stars, owners)
    unmet = {column: measures.pooled(answers.untouched, users) for column, answers in columns.items()}
    parts = asked.offers[RATIOS[-1]]
    found = [
        measured(
            "surplus", "stars above the real ones, same items", "stars", surplus, owners, asked.groups, measures.pooled
        ),
        plain(
            "drawn_surplus",
            "the same of drawn stars",
            "stars",
            **{c: measures.pooled(a.drawn - stars, owners) for c, a in columns.items()},
        ),
        plain("untouched_stars", "stars of items never touched", "stars", **unmet, real_touched=touched),
    ]
    if parts:
        asked_of = np.concatenate([part.cases.users for part in parts])
        for key, name, which in (
            ("yes_untouched", "yes to items never touched", False),
            ("yes_touched", "yes to items taken later", True),
        ):
            said = {
                column: _yes_rates(answers.accepts(RATIOS[-1]), parts, which) for column, answers in columns.items()
            }
            found.append(measured(key, name, "percent", said, asked_of))
    about = (
        "Language models as users tend to please. On rows that people rated there is a truth: expected stars less real "
        f"ones. Of the {len(rows):,} items that users never touched there is none, and people rate what they expect to "
        "like, so stars given there should be lower than the real ones of touched items and the yes-rate low; how much "
        "lower the log can't say (exposure bias)."
    )
    return Section(key="agreeableness", title="Agreeableness", about=about, measures=found)


def distances(asked: Asked, columns: Columns) -> Section:
    """Histograms of stars and of the popularity of what is chosen."""
    levels = levels_of(asked.dataset)
    real = _level(asked.dataset.ratings[asked.rows], levels)
    far = partial(measures.earth_mover, at=levels)
    found = [
        _distance(
            "stars_tv",
            "stars, total variation",
            "percent",
            columns,
            lambda a: _level(a.drawn, levels),
            real,
            asked.owners,
            measures.total_variation,
            len(levels),
            asked.seed,
        ),
        _distance(
            "stars_emd",
            "stars, earth mover's",
            "stars",
            columns,
            lambda a: _level(a.drawn, levels),
            real,
            asked.owners,
            far,
            len(levels),
            asked.seed,
        ),
    ]
    deciles, lists = _popularity_deciles(asked), asked.lists
    found.append(
        _distance(
            "popularity_tv",
            "popularity of the chosen, total variation",
            "percent",
            columns,
            lambda a: deciles[_picked(asked, a)],
            deciles[lists.target_items],
            lists.users,
            measures.total_variation,
            _DECILES,
            asked.seed,
        )
    )
    undrawn = [column for column, answers in columns.items() if not answers.draws]
    means = f" Stars of {' and '.join(undrawn)} are means put on the scale, which spread less than draws."
    about = (
        "Distances of simulated histograms from real ones, beside those of real from real (`floor`): users are halved "
        f"at random {measures.HALVINGS} times, what is simulated for one half against what the other really did. ± is "
        "the spread over halvings. Popularity is by tenths of what was taken in the log, of the item that the model "
        "takes from each held-out list." + (means if undrawn else "")
    )
    return Section(key="distances", title="Distributions", about=about, measures=found)


def consistency(asked: Asked, columns: Columns) -> Section:
    """The same answer to the same question, and in another order."""
    first = np.flatnonzero(asked.lists.repetition == 0)[:_STEADY]
    cases, model = asked.lists.select(first), columns[MODEL].of_lists
    rng = np.random.default_rng((asked.seed, _SHUFFLE))
    shuffled = rng.permuted(np.tile(np.arange(cases.candidates.shape[1]), (len(cases), 1)), axis=1)
    moved = replace(
        cases,
        candidates=np.take_along_axis(cases.candidates, shuffled, 1),
        targets=(shuffled == cases.targets[:, None]).argmax(1),
    )
    said = np.exp(columns[MODEL].log_choice[first])
    again = np.exp(log_choice(model, cases))
    back = np.empty_like(said)
    np.put_along_axis(back, shuffled, np.exp(log_choice(model, moved)), 1)
    found: list[Measure] = []
    for key, name, other in (("asked_again", "asked again", again), ("reordered", "candidates in another order", back)):
        same = said.argmax(1) == other.argmax(1)
        apart = np.abs(said - other).sum(1) / 2
        found += [
            measured(f"{key}_top", f"{name}: the same first choice", "percent", {MODEL: same}, cases.users),
            measured(f"{key}_tv", f"{name}: total variation", "percent", {MODEL: apart}, cases.users),
        ]
    about = (
        f"{len(cases):,} of the lists once more, as they were and with their candidates in another order. A model of "
        "numbers is steady by nature; a language model at temperature 0 should be under the first, and often isn't "
        "under the second. Draws that are meant to differ are no fault here."
    )
    return Section(key="consistency", title="Consistency", about=about, measures=found)


def sittings(asked: Asked, columns: Columns) -> Section | str:
    """How long people stay, or why that can't be told."""
    model: Any = columns[MODEL].of_tenths
    if not (asked.dataset.timestamps % _DAY_SECONDS).any():
        return f"times of {asked.dataset.name} are whole days, so its sittings can't be told apart"
    if not hasattr(model, "sitting_lengths"):
        return "the user model doesn't say how long it stays (`sitting_lengths`)"
    made = np.asarray(model.sitting_lengths(_SITTINGS, asked.seed))
    seen = asked.seen_of_tenths
    before = measures.sitting_lengths(seen.owner, seen.timestamps)
    found = [
        plain(
            f"sitting_q{100 * q:.0f}",
            f"{100 * q:.0f} % last no longer than",
            "rows",
            **{MODEL: float(np.quantile(made, q)), "seen": float(np.quantile(before, q))},
        )
        for q in _QUANTILES
    ]
    found += _leaving(asked, made)
    about = (
        f"A sitting ends before a pause of {measures.SITTING_SECONDS // 60} minutes. Quantiles are of {_SITTINGS:,} "
        "simulated sittings and of those in the rows that were seen; a log ends somewhere, which cuts sittings short. "
        "Leaving is asked of the held-out tenths: after how many of the rows that were a sitting's first, second to "
        "fifth, .. did it end, and after how many should it have by the simulated sittings. In a closed loop leaving "
        "also depends on what is recommended, of which logs say nothing."
    )
    return Section(key="sittings", title="Sittings", about=about, measures=found)


def _leaving(asked: Asked, made: NDArray[Any]) -> list[Measure]:
    """Chances to leave by step: real ones of held-out rows, the model's at the same steps, and those seen."""
    data, seen, held = asked.dataset, asked.seen_of_tenths, np.zeros(asked.dataset.n_interactions, np.bool_)
    held[asked.rows] = True
    steps, left = measures.sitting_steps(data.owner, data.timestamps)
    earlier, earlier_left = measures.sitting_steps(seen.owner, seen.timestamps)
    found = []
    for first, last in _STEPS:
        of = held & (steps >= first) & (steps <= last) & ~np.isnan(left)
        before = (earlier >= first) & (earlier <= last)
        name = (
            f"step {first}" if first == last else f"steps {first} to {last}" if last < _EVER else f"from step {first}"
        )
        chances = {
            MODEL: measures.pooled(measures.leaving_chances(made, steps[of]), data.owner[of]),
            REAL: measures.pooled(left[of], data.owner[of]),
            "seen": measures.pooled(earlier_left[before], seen.owner[before]),
        }
        found.append(plain(f"leave@{first}", f"leaves after {name}", "percent", **chances))
    return found


def _each(columns: Columns, of: Any) -> dict[str, Any]:
    return {column: of(answers) for column, answers in columns.items()}


def _likeliest(asked_of: Any, answers: Answers) -> tuple[Floats, NDArray[np.bool_]]:
    said = answers.log_choice
    return np.exp(said.max(1)), said.argmax(1) == answers.asked.lists.targets


def _all_candidates(asked_of: Any, answers: Answers) -> tuple[Floats, NDArray[np.bool_]]:
    said = answers.log_choice
    real = np.arange(said.shape[1]) == answers.asked.lists.targets[:, None]
    return np.exp(said).ravel(), real.ravel()


def _calibration(key: str, name: str, columns: Columns, users: Ints, seed: int, pairs: Any) -> list[Measure]:
    found: dict[str, Estimate | float] = {}
    for column, answers in columns.items():
        p, y = pairs(None, answers)
        owners = np.repeat(users, len(p) // len(users))
        found[column] = measures.jackknifed(partial(_ece_of, p, y), owners)
        if column == MODEL:
            found["floor"] = measures.calibration_floor(p, seed)
    return [plain(key, name, "share", **found)]


def _ece_of(p: Floats, y: NDArray[np.bool_], rows: NDArray[np.intp]) -> float:
    return measures.calibration_error(p[rows], y[rows])


def _auc_of(y: NDArray[np.bool_], scores: Floats, rows: NDArray[np.intp]) -> float:
    return measures.auc(y[rows], scores[rows])


def _means(asked: Asked) -> dict[str, Floats]:
    """(ratings,) stars by the plain means that every model is compared with."""
    seen, owners = asked.seen_of_tenths, asked.owners
    items, stars = asked.dataset.item_indices[asked.rows], seen.ratings.astype(np.float64)
    everybody = stars.mean()

    def mean(of: NDArray[Any], values: Floats, n: int, prior: float) -> Floats:
        counts = np.bincount(of, minlength=n) + prior
        return np.bincount(of, values, n) / np.where(counts > 0, counts, 1)

    who = seen.owner
    user, item = (
        mean(who, stars - everybody, seen.n_users, 0),
        mean(seen.item_indices, stars - everybody, seen.n_items, 0),
    )
    of_items = mean(seen.item_indices, stars - everybody, seen.n_items, 5)
    of_users = mean(who, stars - everybody - of_items[seen.item_indices], seen.n_users, 10)
    both = np.clip(everybody + of_users[owners] + of_items[items], stars.min(), stars.max())
    return {"user mean": everybody + user[owners], "item mean": everybody + item[items], "user + item": both}


def _yes_rates(said: list[Floats], parts: list[Offers], touched: bool) -> Floats:
    """(cases,) shares of yes to the items that were taken later, or to the others."""
    pairs = [(yes >= 0.5, part.touched == touched) for yes, part in zip(said, parts, strict=True)]
    return np.concatenate([(yes & asked).sum(1) / asked.sum(1) for yes, asked in pairs])


def _level(stars: NDArray[Any], levels: Floats) -> Ints:
    found: Ints = np.abs(np.asarray(stars, np.float64)[:, None] - levels).argmin(1)
    return found


def _popularity_deciles(asked: Asked) -> Ints:
    """(items,) by tenths of the log: 0 for the most popular items, which together have a tenth of all rows."""
    counts = np.bincount(asked.seen_of_lists.item_indices, minlength=asked.dataset.n_items)
    down = np.argsort(-counts, kind="stable")
    found: Ints = np.empty(len(counts), np.int64)
    before = counts[down].cumsum() - counts[down]
    found[down] = np.minimum(_DECILES * before // max(1, counts.sum()), _DECILES - 1)
    return found


def _picked(asked: Asked, answers: Answers) -> Ints:
    """(lists,) the item that the model takes of each list, drawn by its probabilities."""
    rng = np.random.default_rng((asked.seed, _PICKS))
    place = (answers.log_choice + rng.gumbel(size=answers.log_choice.shape)).argmax(1)
    found: Ints = asked.lists.candidates[np.arange(len(place)), place].astype(np.int64)
    return found


def _distance(
    key: str,
    name: str,
    unit: Unit,
    columns: Columns,
    bins: Any,
    real: Ints,
    users: Ints,
    distance: Any,
    n: int,
    seed: int,
) -> Measure:
    found: dict[str, Estimate | float] = {}
    for column, answers in columns.items():
        found[column], found["floor"] = measures.beside_floor(bins(answers), real, users, distance, n, seed)
    return plain(key, name, unit, **{MODEL: found[MODEL], FLOOR: found[FLOOR], "floor": found["floor"]})
