"""What a baseline is: something that scores candidates; ranks follow from scores by one rule."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, ClassVar, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from starec_env import ranks
from starec_env.cases import PAD, Batch
from starec_env.errors import InvalidOption, StarecWarning
from starec_env.reading import TrainOn as TrainOn
from starec_env.types import Dataset, Id, Indices, Query, Ranking

Scores = NDArray[Any]
State = Mapping[str, NDArray[Any]]


@dataclass(kw_only=True, eq=False, repr=False)
class Scorer:
    """Base of the baselines: `fit` on training sequences, then `scores` of candidates; also a `Ranker`.

    Subclasses are dataclasses whose fields are the method's settings.
    """

    name: ClassVar[str]
    learns: ClassVar[bool] = True
    """Whether `fit` reads interactions; one that doesn't is given a data set without any."""
    train: TrainOn | None = "sample"
    """Which users the protocol fits it on: the sampled training users, or all (Table 4's "full"). None: those that
    the reading's `popularity` names."""
    seed: int = 0
    """Breaks ties, and drives what is random in training."""
    _fitted_on: Dataset | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def label(self) -> str:
        """The method's name in tables, e.g. "sasrec-full"."""
        return f"{self.name}-full" if self.train == "full" else self.name

    def fit(self, train: Dataset) -> Self:
        """Learn from the sequences of a data set, none of which holds a test user's target. Returns self."""
        return self

    def fitted(self, train: Dataset, cache: Path | None = None) -> Self:
        """Fit unless it was fitted on this very data set already, here or in an earlier process.

        Args:
            train: As `fit` takes it.
            cache: A folder of earlier fits, by data and settings; only methods that have a `state` are kept there.
        """
        if self._fitted_on is train:
            return self
        path = cache / f"{self.label}-{self._key(train)}.npz" if cache else None
        if path is None or not self._restored(train, path):
            self.fit(train)
            if path and (state := self.state()):
                _save(path, state)
        self._fitted_on = train
        return self

    def state(self) -> State:
        """What `fit` learned, as arrays by name; empty where it is quicker to fit again."""
        return {}

    def restore(self, train: Dataset, state: State) -> None:
        """Become what `fit` made, from its `state`."""
        raise NotImplementedError

    def _restored(self, train: Dataset, path: Path) -> bool:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                self.restore(train, dict(arrays))
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, RuntimeError, BadZipFile) as error:
            warnings.warn(f"{path} can't be used ({error}): {self.label} is fitted again", StarecWarning, stacklevel=3)
            return False
        return True

    def _key(self, train: Dataset) -> str:
        made = f"{type(self).__module__} {self!r} {train.hash} {version('starec')}"
        return blake2b(made.encode(), digest_size=8).hexdigest()

    def scores(self, batch: Batch) -> Scores:
        """(queries, n) scores of the candidates, higher is better; any finite numbers, infinities included."""
        raise NotImplementedError

    def every_score(self, users: Sequence[Id], history: Indices, n_items: int) -> Scores:
        """(queries, n_items) scores of the whole catalogue: `scores` of it, where a method has no quicker way.

        Args:
            users: (queries,) ids.
            history: (queries, longest) as in `Batch`.
            n_items: Items in the catalogue.
        """
        every = np.broadcast_to(np.arange(n_items, dtype=np.int32), (len(users), n_items))
        return self.scores(Batch(users, history, every))

    def rank(self, query: Query) -> Ranking:
        """Rank one query's candidates by score, ties broken by the seed."""
        batch = Batch.of(query)
        scores = check_scores(self.scores(batch), batch, self.label)
        order = np.lexsort((_ties(batch, self.seed)[0], -scores[0]))
        return Ranking(order=tuple(order.tolist()))


def _save(path: Path, state: State) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
        np.savez(file, allow_pickle=False, **state)
    Path(file.name).replace(path)


def check_scores(scores: Scores, batch: Batch, method: str) -> Scores:
    """Return the scores; raises InvalidOption naming user and method if one is NaN or the shape is wrong."""
    return _checked(scores, batch.candidates.shape, batch.users, method)


def check_every_score(scores: Scores, users: Sequence[Id], n_items: int, method: str) -> Scores:
    """The same of `Scorer.every_score`."""
    return _checked(scores, (len(users), n_items), users, method)


def _checked(scores: Scores, shape: tuple[int, ...], users: Sequence[Id], method: str) -> Scores:
    if scores.shape != shape:
        raise InvalidOption(f"{method} gave scores of shape {scores.shape}, wanted {shape}")
    if np.isnan(scores).any():
        row = int(np.isnan(scores).any(axis=1).argmax())
        raise InvalidOption(f"{method} gave user {users[row]!r} a NaN score: nothing can be ranked by it")
    return scores


def ranks_of(scores: Scores, targets: NDArray[np.integer], batch: Batch, seed: int) -> NDArray[np.float64]:
    """1-based ranks of the targets when candidates are sorted by score, ties broken by the seed.

    Args:
        scores: (queries, n) from `check_scores`.
        targets: (queries,) 0-based candidate positions.
        batch: The queries.
        seed: Of the ties.
    """
    return ranks.ranks_of(scores, targets, _ties(batch, seed)).astype(np.float64)


def _ties(batch: Batch, seed: int) -> NDArray[np.uint64]:
    return ranks.tie_keys(batch.users, (batch.history != PAD).sum(axis=1), batch.candidates.shape[1], seed)
