"""What kind of user each is, from the log: activity, pickiness, conformity and diversity, after Agent4Rec's traits.

Agent4Rec (arXiv 2310.10108) has activity, conformity and diversity; pickiness is ours. Each is a rank among the users,
from 0 to 1, since their units mean nothing side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starec_env.dataset import Dataset

Floats = NDArray[np.float64]

_PRIOR = 5.0
"""So many average ratings or likes count beside a user's or an item's own."""


@dataclass(frozen=True)
class Traits:
    """Ranks of users, each (n_users,): the share of the others below, ties and users without rows in the middle."""

    activity: Floats
    """By how many items the user took."""
    pickiness: Floats
    """By how few of them were liked."""
    conformity: Floats
    """By how near the ratings are to what others gave the same items, each user's own level left out."""
    diversity: Floats
    """By how many kinds of items were taken, and how evenly: the entropy of genres, categories or artists."""


def traits_of(dataset: Dataset, stops: NDArray[np.int64] | None = None) -> Traits:
    """The traits of a data set's users.

    Args:
        dataset: Whose rows; those before the users' windows count too.
        stops: (n_users,) the row before which each user's rows end that count; None: all do.
    """
    owner = dataset.owner
    known = np.arange(len(owner)) < (dataset.indptr[1:] if stops is None else stops)[owner]
    owner, items = owner[known], dataset.item_indices[known]
    ratings, liked = dataset.ratings[known].astype(np.float64), dataset.liked[known]
    n = np.bincount(owner, minlength=dataset.n_users).astype(np.float64)
    likes = np.bincount(owner, liked, dataset.n_users)
    share = (likes + _PRIOR * _mean(liked)) / (n + _PRIOR)
    there = n > 0
    return Traits(
        activity=_ranks(n, there),
        pickiness=_ranks(-share, there),
        conformity=_ranks(-_strangeness(owner, items, ratings, dataset), there),
        diversity=_ranks(_entropy(owner, items, dataset), there),
    )


def _strangeness(owner: NDArray[np.int64], items: NDArray[np.int32], ratings: Floats, dataset: Dataset) -> Floats:
    """(n_users,) mean square of what ratings differ by from what others gave the items, levels of users left out."""
    n = np.bincount(owner, minlength=dataset.n_users)
    level = np.bincount(owner, ratings, dataset.n_users) / np.maximum(n, 1)
    own = ratings - level[owner]
    total, counts = np.bincount(items, own, dataset.n_items), np.bincount(items, minlength=dataset.n_items)
    others = (total[items] - own) / (counts[items] - 1 + _PRIOR)
    typical = _mean((own - others) ** 2)
    squares = np.bincount(owner, (own - others) ** 2, dataset.n_users)
    found: Floats = (squares + _PRIOR * typical) / (n + _PRIOR)
    return found


def _entropy(owner: NDArray[np.int64], items: NDArray[np.int32], dataset: Dataset) -> Floats:
    """(n_users,) entropy of the kinds of what was taken, corrected for how few rows there are."""
    kinds: dict[str, int] = {}
    of_items = [
        [kinds.setdefault(kind, len(kinds)) for kind in _kinds(dict(item.attributes))] for item in dataset.items
    ]
    lengths = np.array([len(of) for of in of_items], np.int64)
    flat = np.array([kind for of in of_items for kind in of], np.int64)
    first = np.append(0, lengths.cumsum())
    rows = lengths[items]
    users = np.repeat(owner, rows)
    within = np.arange(rows.sum()) - np.repeat(rows.cumsum() - rows, rows)
    at = np.repeat(first[items], rows) + within
    table = np.zeros((dataset.n_users, max(1, len(kinds))))
    np.add.at(table, (users, flat[at]), 1)
    total = table.sum(1, keepdims=True)
    shares = table / np.maximum(total, 1)
    plain = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(1)
    seen = (table > 0).sum(1)
    found: Floats = plain + (seen - 1) / (2 * np.maximum(total[:, 0], 1))  # Miller and Madow: few rows look narrow
    return found


def _kinds(attributes: dict[str, str]) -> list[str]:
    """An item's kinds, by the first of the attributes that tells any."""
    for name in ("genres", "genre", "categories", "category", "artist", "brand"):
        if text := attributes.get(name):
            return [part.strip() for part in text.replace("|", ",").replace("/", ",").split(",") if part.strip()]
    return []


def _mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _ranks(values: Floats, there: NDArray[np.bool_]) -> Floats:
    """The share of the users there who are below, half of those alike; 0.5 for the others."""
    found = np.full(len(values), 0.5)
    known = np.sort(values[there])
    mine = values[there]
    below, upto = np.searchsorted(known, mine), np.searchsorted(known, mine, side="right")
    found[there] = (below + upto) / (2 * max(1, len(known)))
    return found
