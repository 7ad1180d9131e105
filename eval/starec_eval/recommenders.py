"""What recommends in the closed loop: any ranker of ours as it is, or one's own.

A recommender learns from the data set as the loop has recorded it so far, and shows each user the items that it puts
first among those that the user hasn't met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from starec_env import ranks
from starec_env.cases import PAD
from starec_env.data.cut import catalogue_only, windows_only, without_empty_users
from starec_env.errors import InvalidOption, unknown
from starec_env.named import load_function
from starec_env.types import Candidates, Dataset, History, Id, Indices, Query, Ranker
from starec_eval.rankers import ASKING, BASELINES, Scorer, build
from starec_eval.rankers.scorer import check_every_score

_AT_ONCE = 1 << 18
"""Users times items that are scored together: what a network gathers for them stays under 100 MB."""


@dataclass(frozen=True)
class Request:
    """Users who want to be shown something, as a recommender knows them."""

    users: Sequence[Id]
    """(n,) ids."""
    history: Indices
    """(n, longest) catalogue indices of what each did, newest last, PAD on the left."""
    allowed: NDArray[np.bool_]
    """(n, n_items) whether each item may be shown: those that the user hasn't met, nor been shown in this visit."""
    past: Callable[[int], History]
    """The history of the user at one of the n rows, with ratings and times."""

    def __len__(self) -> int:
        return len(self.users)


@runtime_checkable
class Recommender(Protocol):
    """What shows slates; what it knows may depend on the data it was fitted on and on the request alone."""

    def fit(self, dataset: Dataset) -> object:
        """Learn from what is recorded so far; called before each round with the whole of it."""
        ...

    def recommend(self, asked: Request, k: int) -> NDArray[np.integer[Any]]:
        """(n, k) catalogue indices of distinct items that are allowed, best first."""
        ...


@dataclass
class ScorerRecommender:
    """Shows the items that a scorer puts first; equal scores are in an order that the seed and the data decide."""

    scorer: Scorer

    def fit(self, dataset: Dataset) -> ScorerRecommender:
        """Fit the scorer on all sequences."""
        train = windows_only(dataset) if self.scorer.learns else catalogue_only(dataset)
        self.scorer.fit(without_empty_users(train))
        self._seed = self.scorer.seed + dataset.n_interactions
        return self

    def recommend(self, asked: Request, k: int) -> NDArray[np.int64]:
        """The first k of each user's allowed items by score."""
        step = max(1, _AT_ONCE // asked.allowed.shape[1])
        parts = [self._first(asked, k, slice(at, at + step)) for at in range(0, len(asked), step)]
        return np.concatenate(parts)

    def _first(self, asked: Request, k: int, part: slice) -> NDArray[np.int64]:
        users, history, allowed = asked.users[part], asked.history[part], asked.allowed[part]
        n_items = allowed.shape[1]
        scores = check_every_score(self.scorer.every_score(users, history, n_items), users, n_items, self.scorer.label)
        ties = ranks.tie_keys(users, (history != PAD).sum(axis=1), n_items, self._seed)
        return first_of(np.where(allowed, scores, -np.inf), ties, k)


def first_of(scores: NDArray[Any], ties: NDArray[np.uint64], k: int) -> NDArray[np.int64]:
    """(n, k) places of the highest of (n, m) scores, best first; of equal ones the lower tie key comes first."""
    least = np.partition(scores, -k, axis=1)[:, -k, None]
    found = np.empty((len(scores), k), np.int64)
    for row, (mine, lowest, keys) in enumerate(zip(scores, least, ties, strict=True)):
        level = np.flatnonzero(mine == lowest)
        above = np.flatnonzero(mine > lowest)
        wanted = k - len(above)
        if len(level) > wanted:
            level = level[np.argpartition(keys[level], wanted - 1)[:wanted]]
        places = np.concatenate([above, level])
        found[row] = places[np.lexsort((keys[places], -mine[places]))]
    return found


@dataclass
class RankerRecommender:
    """Shows what a ranker ranks first among all that a user may be shown, one query a user."""

    ranker: Ranker

    def fit(self, dataset: Dataset) -> RankerRecommender:
        """Fit the ranker, if it can be."""
        self._dataset = dataset
        if fit := getattr(self.ranker, "fit", None):
            fit(dataset)
        return self

    def recommend(self, asked: Request, k: int) -> NDArray[np.int64]:
        """The first k of each ranking."""
        return np.stack([self._one(asked, row, k) for row in range(len(asked))])

    def _one(self, asked: Request, row: int, k: int) -> NDArray[np.int64]:
        data, user = self._dataset, asked.users[row]
        items = np.flatnonzero(asked.allowed[row]).astype(np.int32)
        candidates = Candidates(data.items, items)
        query = Query(data.user(data.user_index(user)), asked.past(row), candidates, data.domain)
        order = self.ranker.rank(query).order[:k]
        if len(order) < k:
            raise InvalidOption(f"it ranked {len(order)} of the {len(items)} items for user {user!r}: wanted {k}")
        return items[list(order)].astype(np.int64)


def build_recommenders(names: Iterable[str], seed: int = 0) -> dict[str, Recommender]:
    """Recommenders by name, in the order named.

    Args:
        names: Of `BASELINES`, or MODULE:FUNCTION: a function without parameters that returns a `Recommender`, a
            `Scorer` or a `Ranker`.
        seed: Of those of ours.

    Raises:
        UnknownName: With the nearest name that exists.
        InvalidOption: One can't recommend, or is named twice.
    """
    wanted = list(names)
    if again := {name for name in wanted if wanted.count(name) > 1}:
        raise InvalidOption(f"the recommender {min(again)} is named twice: name it once")
    return {name: _build(name, seed) for name in wanted}


def _build(name: str, seed: int) -> Recommender:
    if ":" in name:
        return _as_recommender(load_function(name, "--recommenders", ())(), name)
    if name in ASKING:
        raise InvalidOption(f"{name} asks a model to rank a list, and here that is the catalogue: it can't recommend")
    if name not in BASELINES:
        raise unknown("recommender", name, [*BASELINES, "MODULE:FUNCTION"])
    return ScorerRecommender(build([name], seed)[0])


def _as_recommender(made: object, name: str) -> Recommender:
    if isinstance(made, Scorer):
        return ScorerRecommender(made)
    if isinstance(made, Recommender):
        return made
    if isinstance(made, Ranker):
        return RankerRecommender(made)
    raise InvalidOption(
        f"--recommenders {name} returned a {type(made).__name__}: wanted fit(dataset) and recommend(asked, k) (see "
        "starec_eval.recommenders), a Scorer, or a Ranker"
    )
