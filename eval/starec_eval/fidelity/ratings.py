"""How it is rated, and whether the user is kinder than real ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.metrics import Estimate
from starec_eval.fidelity.answers import Columns, Floats, each
from starec_eval.fidelity.asked import RATIOS, Asked, Offers
from starec_eval.fidelity.card import REAL, Measure, Section, aucs, errors_of, measured, plain
from starec_eval.fidelity.measures import pooled, root
from starec_eval.fidelity.offers import YES

_USER_PRIOR, _ITEM_PRIOR = 10.0, 5.0

_ABOUT = (
    "Stars of each user's last tenth of rows, {rows:,} of {users:,} users, each from all that came before it. "
    "`popularity` says a user's mean so far; `user mean`, `item mean` and `user + item` are of what the model was "
    "fitted on (the last with means drawn towards 0 as if 10 and 5 rows more were average). RMSE, MAE and errors weigh "
    "rows alike; standard errors are over users. AUC tells liked from not liked rows."
)
_ABOUT_KINDNESS = (
    "Language models as users tend to please. On rows that people rated there is a truth: expected stars less real "
    "ones. Of the {untouched:,} items that users never touched there is none, and people rate what they expect to "
    "like, so stars given there should be lower than the real ones of touched items and the yes-rate low; how much "
    "lower the log can't say (exposure bias)."
)


def ratings(asked: Asked, columns: Columns) -> Section:
    """Stars and likes of held-out rows."""
    stars, liked = asked.dataset.ratings[asked.rows].astype(np.float64), asked.dataset.liked[asked.rows]
    owners, groups, plain_means = asked.owners, asked.groups, _means(asked)
    said, likes = each(columns, lambda a: a.rated[0]), each(columns, lambda a: a.rated[1])
    gaps = {column: of - stars for column, of in {**said, **plain_means}.items()}
    squares = {column: gap**2 for column, gap in gaps.items()}
    sizes = {column: np.abs(gap) for column, gap in gaps.items()}
    pairs = {column: (p, liked) for column, p in likes.items()}
    found = [
        measured("rmse", "RMSE", "stars", squares, owners, groups, _rmse),
        measured("mae", "MAE", "stars", sizes, owners, groups, pooled),
        aucs("like_auc", "AUC of likes", liked, {**likes, **plain_means}, owners),
        measured("like_rate", "like rate", "percent", {**likes, REAL: liked}, owners, groups, pooled),
        errors_of("like_ece", "calibration error of likes", pairs, owners, asked.seed),
    ]
    about = _ABOUT.format(rows=len(stars), users=len(np.unique(owners)))
    return Section(key="ratings", title="How it is rated", about=about, measures=found)


def _rmse(squares: NDArray[Any], users: NDArray[Any]) -> Estimate:
    return root(pooled(squares, users))


def _means(asked: Asked) -> dict[str, Floats]:
    """(ratings,) stars by the plain means that every model is compared with."""
    seen, owners, items = asked.seen_of_tenths, asked.owners, asked.dataset.item_indices[asked.rows]
    stars = seen.ratings.astype(np.float64)
    rest, who = stars - stars.mean(), seen.owner
    user, item = _mean(who, rest, seen.n_users), _mean(seen.item_indices, rest, seen.n_items)
    of_items = _mean(seen.item_indices, rest, seen.n_items, _ITEM_PRIOR)
    of_users = _mean(who, rest - of_items[seen.item_indices], seen.n_users, _USER_PRIOR)
    both = np.clip(stars.mean() + of_users[owners] + of_items[items], stars.min(), stars.max())
    return {"user mean": stars.mean() + user[owners], "item mean": stars.mean() + item[items], "user + item": both}


def _mean(of: NDArray[Any], values: Floats, n: int, prior: float = 0.0) -> Floats:
    """(n,) means by group, with so many rows of 0 added; 0 where there are none."""
    counts = np.bincount(of, minlength=n) + prior
    found: Floats = np.bincount(of, values, n) / np.where(counts > 0, counts, 1)
    return found


def agreeableness(asked: Asked, columns: Columns) -> Section:
    """Stars and yes beyond what real users gave."""
    stars, owners = asked.dataset.ratings[asked.rows].astype(np.float64), asked.owners
    _, rows, users = asked.untouched
    surplus = each(columns, lambda a: a.rated[0] - stars)
    drawn = each(columns, lambda a: a.drawn - stars)
    unmet = each(columns, lambda a: pooled(a.untouched, users))
    found = [
        measured("surplus", "stars above the real ones", "stars", surplus, owners, asked.groups, pooled),
        measured("drawn_surplus", "drawn stars above them", "stars", drawn, owners, asked.groups, pooled),
        plain("untouched_stars", "stars of items never touched", "stars", **unmet, real_touched=pooled(stars, owners)),
        *(_yes(asked, columns) if asked.offers[RATIOS[-1]] else []),
    ]
    about = _ABOUT_KINDNESS.format(untouched=len(rows))
    return Section(key="agreeableness", title="Agreeableness", about=about, measures=found)


def _yes(asked: Asked, columns: Columns) -> list[Measure]:
    parts = asked.offers[RATIOS[-1]]
    users = np.concatenate([part.cases.users for part in parts])
    said = each(columns, lambda a: a.accepts(RATIOS[-1]))
    never, later = ({c: _share(yes, parts, touched) for c, yes in said.items()} for touched in (False, True))
    return [
        measured("yes_untouched", "yes to items never touched", "percent", never, users),
        measured("yes_touched", "yes to items taken later", "percent", later, users),
    ]


def _share(said: list[Floats], parts: list[Offers], touched: bool) -> Floats:
    """(cases,) shares of yes to the items that were taken later, or to the others."""
    pairs = [(yes >= YES, part.touched == touched) for yes, part in zip(said, parts, strict=True)]
    return np.concatenate([(yes & asked).sum(1) / asked.sum(1) for yes, asked in pairs])
