"""What other users' behaviour and the catalogue say of a candidate, without ever seeing the answer.

The evidence of the rule-based teacher: who else took these items together, how popular they are, and what genres
and years they share. It is counted on training users alone; a training user's own stream is taken
out of the counts before that user is judged, or the counts would give the answer away.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.cases import PAD
from starec_env.data.cut import rows_only
from starec_env.errors import TrainingError
from starec_env.pairs import PairCounts
from starec_env.replay.stream import Stream
from starec_env.types import Dataset, Id, Item, Query, Ranking

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]

FEATURES = ("taken together", "taken nearby", "popular", "kinds shared", "kinds shared lately", "years alike")

_WINDOW, _SHRINKAGE, _DECAY, _YEARS = 10, 20.0, 0.8, 8.0
_YEAR = re.compile(r"\((\d{4})\)\s*$")
_KINDS = ("genres", "genre", "categories", "category")


@dataclass(frozen=True, eq=False)
class Batch:
    """Queries side by side, as catalogue indices."""

    users: Ints
    """(n,) user index in the evidence's data set; PAD for a stranger."""
    history: Ints
    """(n, longest), oldest first, the newest in the last column, PAD before the oldest."""
    liked: NDArray[np.bool_]
    """(n, longest)."""
    candidates: Ints
    """(n, candidates)."""


class Evidence:
    """Collaborative evidence from training users, and the weights to rank by it.

    Args:
        dataset: A prepared data set; its catalogue is the one that queries come from.
        users: Ids of the training users. Only the rows of their windows are counted.
        seed: Of the turns that the weights are fitted to.
        fit_turns: Most turns to fit the weights to. The weights, one for each of `FEATURES`, are fitted to what
            training users took (a conditional logit), each judged by counts without the user's own stream.

    Raises:
        TrainingError: No training user has a turn.
    """

    def __init__(self, dataset: Dataset, users: Collection[Id], *, seed: int = 0, fit_turns: int = 4000) -> None:
        self.dataset = dataset
        self.trained = np.array(sorted(dataset.user_index(user) for user in users), np.int64)
        if not len(self.trained):
            raise TrainingError("the rule-based teacher needs training users to learn from: give their ids")
        stops = dataset.starts.copy()
        stops[self.trained] = dataset.indptr[self.trained + 1]
        seen = rows_only(dataset, dataset.starts, stops)
        owner = seen.owner
        place = np.arange(len(owner)) - seen.indptr[owner]
        self.counts = np.bincount(seen.item_indices, minlength=dataset.n_items)
        """(items,) how many training users took each item."""
        self._together, self._nearby = PairCounts.of(seen), PairCounts.of(seen, _WINDOW)
        keys = owner * dataset.n_items + seen.item_indices
        order = np.argsort(keys, kind="stable")
        self._own_keys, self._own_places = keys[order], place[order]
        self.scale, self.weights = np.ones(len(FEATURES)), np.ones(len(FEATURES))
        self._fit(seed, fit_turns)

    # What each query's own user contributed to the counts -----------------------------------------------------------

    def places(self, users: Ints, items: Ints) -> Ints:
        """(n, k) places of items in the streams of the training users they are asked for; PAD where not in it."""
        keys = np.where(items == PAD, PAD, users[:, None].astype(np.int64) * self.dataset.n_items + items)
        at = np.searchsorted(self._own_keys, keys).clip(max=len(self._own_keys) - 1)
        found: Ints = np.where((self._own_keys[at] == keys) & (users[:, None] >= 0), self._own_places[at], PAD)
        return found

    def together(self, users: Ints, a: Ints, b: Ints) -> Ints:
        """(n, len(a), len(b)) how many *other* training users took both items, of (n, a) and (n, b) indices."""
        mine, yours = self.places(users, a)[:, :, None], self.places(users, b)[:, None, :]
        counts: Ints = self._together(a[:, :, None], b[:, None, :]) - ((mine >= 0) & (yours >= 0))
        return counts

    def features(self, batch: Batch) -> Floats:
        """(n, candidates, features) what speaks for each candidate, in the order of FEATURES."""
        history, candidates = batch.history, batch.candidates
        known = history != PAD
        age = np.arange(history.shape[1])[::-1]
        weight = np.where(known, _DECAY**age, 0.0)[:, None, :]
        mine, yours = self.places(batch.users, candidates), self.places(batch.users, history)
        popular = self.counts[candidates] - (mine >= 0)
        base = self.counts[history.clip(0)] - (yours >= 0)
        both = (mine >= 0)[:, :, None] & (yours >= 0)[:, None, :]
        near = both & (abs(mine[:, :, None] - yours[:, None, :]) <= _WINDOW)
        pairs = candidates[:, :, None], history[:, None, :]
        cosine = (self._together(*pairs) - both) / (
            np.sqrt(popular[:, :, None].clip(0) * base[:, None, :].clip(0)) + _SHRINKAGE
        )
        chain = (self._nearby(*pairs) - near) / (base[:, None, :] + _SHRINKAGE)
        liked = np.where(known & batch.liked, 1.0, 0.0)
        lately = liked * _DECAY**age
        years = self.years[candidates][:, :, None], self.years[history.clip(0)][:, None, :]
        alike = np.nan_to_num(np.exp(-abs(years[0] - years[1]) / _YEARS))
        return np.stack(
            [
                np.log1p(100 * (cosine * weight).sum(-1)),
                np.log1p(100 * (chain * weight).sum(-1)),
                np.log1p(popular),
                self._kinds_shared(candidates, history, liked),
                self._kinds_shared(candidates, history, lately),
                (alike * weight).sum(-1) / weight.sum(-1).clip(1e-9),
            ],
            axis=-1,
        )

    def _kinds_shared(self, candidates: Ints, history: Ints, weight: Floats) -> Floats:
        profile = (self.kinds[history.clip(0)] * weight[:, :, None]).sum(1)
        profile = profile / np.linalg.norm(profile, axis=-1, keepdims=True).clip(1e-9) - self._mean_kind
        shared: Floats = np.einsum("nck,nk->nc", self.kinds[candidates], profile)
        return shared

    @cached_property
    def years(self) -> Floats:
        """(items,) year of each item, NaN where unknown."""
        return np.array([_year(item) for item in self.dataset.items])

    @cached_property
    def kind_names(self) -> list[str]:
        """The genres or categories of the catalogue."""
        return sorted({kind for item in self.dataset.items for kind in genres_of(item)})

    @cached_property
    def kinds(self) -> Floats:
        """(items, kinds) unit vectors of each item's genres or categories; 0 where it has none."""
        column = {kind: place for place, kind in enumerate(self.kind_names)}
        table = np.zeros((self.dataset.n_items, max(1, len(column))))
        for row, item in enumerate(self.dataset.items):
            table[row, [column[kind] for kind in genres_of(item)]] = 1.0
        unit: Floats = table / np.linalg.norm(table, axis=1, keepdims=True).clip(1.0)
        return unit

    @cached_property
    def _mean_kind(self) -> Floats:
        mean: Floats = self.kinds.mean(0)
        return mean

    # Ranking by it --------------------------------------------------------------------------------------------------

    def scores(self, batch: Batch) -> Floats:
        """(n, candidates) the higher, the likelier taken next."""
        found: Floats = self.features(batch) / self.scale @ self.weights
        return found

    def rank(self, query: Query) -> Ranking:
        """Rank a query's candidates: the evidence alone is a Ranker, beside the agents taught by it."""
        order = np.argsort(-self.scores(self.batch([query]))[0], kind="stable")
        return Ranking(order=tuple(order.tolist()))

    def batch(self, queries: list[Query]) -> Batch:
        """Queries of one length of candidates as a batch."""
        longest = max(1, *(len(query.history) for query in queries))
        history = np.full((len(queries), longest), PAD, np.int64)
        liked = np.zeros((len(queries), longest), bool)
        for row, query in enumerate(queries):
            if n := len(query.history):
                history[row, -n:], liked[row, -n:] = query.history.item_indices, query.history.liked
        candidates = np.stack([query.candidates.indices for query in queries])
        return Batch(np.array([self._user(query.user.id) for query in queries]), history, liked, candidates)

    def _user(self, user_id: Id) -> int:
        index = self._index.get(user_id, PAD)
        return index

    @cached_property
    def _index(self) -> dict[Id, int]:
        return {self.dataset.user(user).id: user for user in self.trained.tolist()}

    def only(self, features: Collection[str], *, seed: int = 0, fit_turns: int = 4000) -> Evidence:
        """The same counts, but a ranking that sees some of `FEATURES` alone, its weights fitted anew."""
        found = copy(self)
        found._fit(seed, fit_turns, features)
        return found

    def _fit(self, seed: int, most: int, features: Collection[str] = FEATURES) -> None:
        stream = Stream(self.dataset, seed=seed ^ 0x7EAC4, min_history=5)
        able = np.intersect1d(stream.users, self.trained)
        pairs = [(user, at) for user in able.tolist() for at in range(int(stream.begin[user]), int(stream.end[user]))]
        if not pairs:
            raise TrainingError("no training user has a turn to fit the rule-based teacher to: give more users")
        chosen = np.random.default_rng(seed).permutation(len(pairs))[:most]
        users, index = np.array(pairs)[chosen].T
        candidates, targets = stream.candidates(users, index)
        history, liked = stream.histories(users, stream.rows[index], self.dataset.longest)
        history, liked = _right_aligned(history), _right_aligned(liked)
        x = self.features(Batch(users, history, liked == 1, candidates))
        self.scale = x.std((0, 1)).clip(1e-9)
        seen = [place for place, name in enumerate(FEATURES) if name in features]
        self.weights = np.zeros(len(FEATURES))
        self.weights[seen] = _conditional_logit((x / self.scale)[..., seen], targets)

    def neighbours(self, user: int, item: int) -> tuple[Ints, Ints]:
        """Items that other training users took together with `item`, most often first, and how often."""
        items, counts = self._together.near(item)
        row = np.array([user])
        own = (self.places(row, items[None])[0] >= 0) & (self.places(row, np.array([[item]]))[0] >= 0)
        counts = counts - own
        order = np.argsort(-counts / np.sqrt(self.counts[items] + _SHRINKAGE), kind="stable")
        order = order[counts[order] > 1]
        return items[order], counts[order]


def genres_of(item: Item) -> list[str]:
    """An item's genres or categories, each once."""
    text = next((item.attributes[name] for name in _KINDS if name in item.attributes), "")
    return list(dict.fromkeys(part.strip() for part in re.split(r"[|,/;]", text) if part.strip()))


kinds_of = genres_of
"""Its name of the first edition; kept for one release."""


def _year(item: Item) -> float:
    written = item.attributes.get("year") or "".join(_YEAR.findall(item.title))
    return float(written) if written.isdecimal() else float("nan")


def _right_aligned(rows: NDArray[Any]) -> NDArray[Any]:
    # Stream pads on the right; age counts from the newest, in the last column.
    padding = (rows == PAD).sum(1)
    columns = (np.arange(rows.shape[1]) - padding[:, None]) % rows.shape[1]
    return np.take_along_axis(rows, columns, 1)


def _conditional_logit(x: Floats, targets: Ints, ridge: float = 1.0, steps: int = 25) -> Floats:
    """Weights that make the targets likeliest among their candidates, by Newton's method.

    Args:
        x: (n, candidates, features).
        targets: (n,) positions.
        ridge: Keeps weights small where features say the same.
        steps: Most iterations.
    """
    weights = np.zeros(x.shape[-1])
    taken = x[np.arange(len(x)), targets]
    for _ in range(steps):
        score = x @ weights
        p = np.exp(score - score.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        mean = np.einsum("nc,ncf->nf", p, x)
        gradient = (taken - mean).sum(0) - ridge * weights
        centred = x - mean[:, None]
        hessian = np.einsum("nc,ncf,ncg->fg", p, centred, centred) + ridge * np.eye(len(weights))
        step = np.linalg.solve(hessian, gradient)
        weights = weights + step
        if abs(step).max() < 1e-6:
            break
    return weights
