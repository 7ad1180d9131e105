"""The statistical user: what is taken, how it is rated and when a user leaves, fitted on a log.

    utility    z_j = t (bias_j + items_j . x) + a near_j          x: decayed sums of what was taken; near: `Followers`
    whether    P(take) = sigma(slope log sum_j exp z_j - size log k - level |x|^2 - outside)    j: a slate's k items
    which      P(j | take) = exp z_j / sum exp z
    stars      the level between whose cuts mean + beta mood + sd normal falls          mean, sd: `Stars`
    next liked P(j) ~ exp(z_j) P(like_j): what held-out targets are, which are taken and liked

A user is a history: nothing is kept of one but the parameters of the items that were taken and rated, so that a
simulated user goes on as a real one would. What is measured is what steps.
"""

from __future__ import annotations

import sys
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Self, get_type_hints
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp, ndtr

from starec_env.data import cache_dir
from starec_env.dataset import Dataset
from starec_env.errors import DataError, StarecWarning, check_whole
from starec_env.recommend.calibrate import Calibration, returning
from starec_env.recommend.choice import Choice
from starec_env.recommend.followers import RECENT, Followers
from starec_env.recommend.responses import Visits, check_stops
from starec_env.recommend.stars import Raters, Stars

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Report = Callable[[str, int, int], None]
"""Called with what is being fitted, steps done and in all."""
F = np.float32

_VERSION = 1
BUNDLED = Path(__file__).parent / "bundled" / "ml-latest-small.npz"
"""Of ml-latest-small as `prepare` leaves it."""
_MANY = 200_000
_MOOD_ROWS = 100
"""Rows of a history that a mood is made of; all before them weigh less than 1 %."""


@dataclass(frozen=True)
class States:
    """What the twin knows of n users: a function of their histories alone.

    Attributes:
        sums: (n, decays, r) decayed sums of what was taken, `Choice.states`.
        recent: (n, 3) catalogue indices of the last items, newest first, -1 where there is none.
        raters: What their ratings say of them.
        mood: (n,) decayed mean of the stars that they gave more than was expected.
    """

    sums: Floats
    recent: Ints
    raters: Raters
    mood: Floats

    def __len__(self) -> int:
        return len(self.sums)

    def __getitem__(self, rows: NDArray[Any] | slice) -> States:
        return States(self.sums[rows], self.recent[rows], self.raters[rows], self.mood[rows])


@dataclass(frozen=True, eq=False)
class Twin:
    """A fitted user model of one data set.

    Attributes:
        choice: What is taken.
        stars: How it is rated.
        calibration: Of both.
        dataset: Whose users and catalogue are meant.
        stops: (n_users,) the row before which each user's rows end that the fit saw; simulated users go on from there.
    """

    choice: Choice
    stars: Stars
    calibration: Calibration
    dataset: Dataset
    stops: Ints

    def __deepcopy__(self, memo: object) -> Self:
        return self  # it never changes, and Gymnasium copies an environment's arguments with its spec

    def __repr__(self) -> str:
        return f"Twin of {self.dataset!r}"

    @property
    def data_hash(self) -> str:
        """`Dataset.hash` of the data that it was fitted on."""
        return self.dataset.hash

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        *,
        stops: Ints | None = None,
        rank: int | None = None,
        seed: int = 0,
        report: Report | None = None,
    ) -> Self:
        """Fit all parts.

        Items' parameters are fitted on the rows that may be seen, but for the last liked item, and the last tenth, of
        half of the users, which calibrate.

        Args:
            dataset: As prepared; rows before the users' windows are learned from too.
            stops: (n_users,) the row before which each user's rows end that may be seen. None: the user's last liked
                item and what follows it are not, so that the twin knows nothing of any leave-one-out target.
            rank: Length of the items' vectors; None: 48, and 32 of less than 200,000 rows.
            seed: Of all that is drawn.
            report: Called as it goes on.

        Raises:
            DataError: There is too little to fit or to calibrate.
            InvalidOption: A number is out of range, or `stops` isn't one of each user's rows.
        """
        from starec_env.recommend.fit import fit_parts

        check_whole("seed", seed, 0)
        if rank is not None:
            check_whole("rank", rank)
        stops = last_liked(dataset, dataset.indptr[1:]) if stops is None else check_stops(dataset, stops)
        rank = rank or (48 if dataset.n_interactions >= _MANY else 32)
        return cls(*fit_parts(dataset, stops, rank, seed, report), dataset, stops)

    def save(self, path: str | Path) -> None:
        """Write the parameters as an .npz file, vectors as float16, which is how the fit leaves them."""
        arrays = {
            f"{part}.{name}": _as_saved(part, value)
            for part in _PARTS
            for name, value in vars(getattr(self, part)).items()
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=Path(path).parent, suffix=".npz", delete=False) as file:
            about = {"version": np.array(_VERSION), "data_hash": np.array(self.data_hash)}
            stops = (self.stops - self.dataset.indptr[:-1]).astype(np.int32)
            np.savez_compressed(file, allow_pickle=False, **about, stops=stops, **arrays)
        Path(file.name).replace(path)

    @classmethod
    def load(cls, path: str | Path, dataset: Dataset) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: It isn't such a file, or was fitted on other data.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            _check_about(path, arrays, dataset)
            parts = {name: _restored(kind, name, arrays) for name, kind in _PARTS.items()}
            made = cls(**parts, dataset=dataset, stops=dataset.indptr[:-1] + arrays["stops"])
            _check_shapes(made)
            _check_numbers(made)
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
            raise DataError(f"{path} is no twin that can be read ({error}): fit it again, `Twin.fit`") from None
        return made

    @cached_property
    def followers(self) -> Followers:
        """Which items soon follow which in the rows that the fit saw."""
        users, items, _ = seen(self.dataset, self.stops)
        return Followers.of(users, items, self.dataset.n_items)

    @cached_property
    def start(self) -> States:
        """States of all users of the data set at `stops`."""
        return self.states_at(self.dataset, np.arange(self.dataset.n_users), self.stops)

    @cached_property
    def returning(self) -> float:
        """Share of sittings that another follows within a day; see `calibrate.returning`."""
        users, _, rows = seen(self.dataset, self.stops)
        return returning(users, self.dataset.timestamps[rows])

    def states(self, owners: Ints, items: Ints, ratings: Floats, n: int) -> States:
        """States after histories laid end to end.

        Args:
            owners: (rows,) 0-based state of each row, ascending.
            items: (rows,) catalogue indices, oldest first.
            ratings: (rows,).
            n: How many states; one without rows is of a user of whom nothing is known.
        """
        raters = self.stars.raters(owners, items, ratings, n)
        age = np.searchsorted(owners, owners, side="right") - 1 - np.arange(len(owners))
        recent = np.full((n, RECENT), -1)
        last = age < RECENT
        recent[owners[last], age[last]] = items[last]
        lately = age < _MOOD_ROWS
        surprise = ratings[lately] - self.stars.mean_rows(raters, owners[lately], items[lately])
        decay = self.calibration.mood_decay
        mood = np.bincount(owners[lately], (1 - decay) * decay ** age[lately] * surprise, n).astype(F)
        return States(self.choice.states(owners, items, n), recent, raters, mood)

    def states_at(self, dataset: Dataset, users: NDArray[np.integer[Any]], stops: NDArray[np.integer[Any]]) -> States:
        """(n,) states of users of a data set with this catalogue after all their rows before (n,) rows."""
        first = dataset.indptr[users]
        owners, rows = spans(first, np.maximum(stops, first))
        return self.states(owners, dataset.item_indices[rows].astype(np.int64), dataset.ratings[rows], len(users))

    def utilities(self, states: States, candidates: NDArray[np.integer[Any]]) -> Floats:
        """(n, k) utilities z of (n, k) candidates; what was met is for the caller to leave out."""
        raw = self.choice.utilities(states.sums, candidates)
        near = self.followers.near(states.recent, candidates)
        found: Floats = F(self.calibration.temperature) * raw + F(self.calibration.near) * near
        return found

    def reluctance(self, states: States, k: int) -> Floats:
        """(n,) what speaks against taking any item of a slate of k: outside + size log k + level |x|^2."""
        x, known = states.sums.sum(1), self.calibration
        constant = F(known.outside + known.size * np.log(k))
        found: Floats = constant + F(known.level) * np.einsum("nr,nr->n", x, x)
        return found

    def p_take(self, states: States, utilities: Floats) -> Floats:
        """(n,) chances that an item of a slate with (n, k) utilities is taken."""
        inclusive = logsumexp(utilities, axis=1)
        found: Floats = expit(F(self.calibration.slope) * inclusive - self.reluctance(states, utilities.shape[1]))
        return found

    def mean_stars(self, states: States, candidates: NDArray[np.integer[Any]]) -> Floats:
        """(n, k) expected ratings."""
        means, deviations = self.ratings(states, candidates)
        levels, cuts = self.calibration.levels, self.calibration.cuts
        steps = np.diff(levels)[:, None, None] * ndtr((means - cuts[:, None, None]) / deviations)
        found: Floats = (levels[0] + steps.sum(0)).astype(F)
        return found

    def p_like(self, states: States, candidates: NDArray[np.integer[Any]]) -> Floats:
        """(n, k) chances that a candidate, if taken, is liked."""
        means, deviations = self.ratings(states, candidates)
        found: Floats = ndtr((means - F(self.calibration.like_cut)) / deviations)
        return found

    def ratings(self, states: States, candidates: NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
        """(n, k) means and deviations of ratings before they are put on the scale."""
        moved = F(self.calibration.mood_stars) * states.mood[:, None]
        return self.stars.mean(states.raters, candidates) + moved, self.stars.deviation(states.raters, candidates)

    def log_like(self, states: States, candidates: NDArray[np.integer[Any]]) -> Floats:
        """(n, k) logs of `p_like`, none below the log of one in a million."""
        found: Floats = np.log(np.maximum(self.p_like(states, candidates), F(1e-6)))
        return found

    def log_choice(self, states: States, candidates: NDArray[np.integer[Any]]) -> Floats:
        """(n, k) log-probabilities that a candidate is the next liked item, given that one of them is."""
        scores = self.utilities(states, candidates) + self.log_like(states, candidates)
        found: Floats = scores - logsumexp(scores, axis=1, keepdims=True)
        return found

    def open(self, n: int, seed: int = 0) -> Visits:
        """Room for n users at once; they go on from `stops`."""
        from starec_env.recommend.visits import TwinVisits

        return TwinVisits(self, n, seed)


def twin_of(dataset: Dataset, report: Report | None = None) -> Twin:
    """The twin of a data set: the bundled one, or the one in the cache folder, or fitted now and kept there.

    Bundled is that of ml-latest-small as `prepare` leaves it, made by `Twin.fit(dataset).save(...)`. A kept one that
    can't be read is fitted again, with a warning.

    Args:
        dataset: As prepared.
        report: Called while it is fitted; None prints to standard error.

    Raises:
        DataError: There is too little to fit.
    """
    if _is_of(BUNDLED, dataset):
        return Twin.load(BUNDLED, dataset)
    path = cache_dir() / "twins" / f"{dataset.hash}-{_VERSION}.npz"
    if path.exists():
        try:
            return Twin.load(path, dataset)
        except DataError as error:
            warnings.warn(f"{error}; it is fitted anew now", StarecWarning, stacklevel=2)
    twin = Twin.fit(dataset, report=report or _Lines(dataset, path))
    twin.save(path)
    return twin


class _Lines:
    """Progress of a fit on standard error, a line a part."""

    def __init__(self, dataset: Dataset, path: Path) -> None:
        self._what = ""
        print(f"fitting a twin of {dataset!r}, once: it is kept as {path}", file=sys.stderr)

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self._what = what
            print(f"  {what}: {total:,} steps", file=sys.stderr)


def _is_of(path: Path, dataset: Dataset) -> bool:
    with np.load(path, allow_pickle=False) as file:
        return str(file["data_hash"]) == dataset.hash and int(file["version"]) == _VERSION


def last_liked(dataset: Dataset, stops: Ints) -> Ints:
    """(users,) the last liked row of each user before (users,) rows; of who liked nothing, the last row."""
    rows = np.where(dataset.liked, np.arange(dataset.n_interactions), -1)
    rows = np.maximum.accumulate(np.append(-1, rows))[stops]
    first = dataset.indptr[:-1]
    return np.where(rows >= first, rows, np.maximum(stops - 1, first))


def spans(first: NDArray[np.integer[Any]], stops: NDArray[np.integer[Any]]) -> tuple[Ints, Ints]:
    """Spans of rows laid end to end: (rows,) which span each row is of, and the rows."""
    lengths = stops - first
    owners = np.repeat(np.arange(len(first)), lengths)
    return owners, np.arange(len(owners)) - (lengths.cumsum() - lengths - first)[owners]


def seen(dataset: Dataset, stops: Ints) -> tuple[Ints, Ints, Ints]:
    """Users, items and numbers of the rows before each user's stop."""
    users, rows = spans(dataset.indptr[:-1], stops)
    return users, dataset.item_indices[rows].astype(np.int64), rows


_PARTS: dict[str, type[Any]] = {"choice": Choice, "stars": Stars, "calibration": Calibration}


def _as_saved(part: str, value: Any) -> NDArray[Any]:
    array = np.asarray(value)
    return array.astype(np.float16) if array.dtype == F and part != "calibration" else array


def _restored(kind: type[Any], part: str, arrays: dict[str, NDArray[Any]]) -> Any:
    """A part from its arrays: those of vectors as float32 again, those of no dimension as plain numbers."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        value = arrays[f"{part}.{name}"]
        if hint in (float, bool):
            found[name] = hint(value)
        else:
            found[name] = tuple(value.tolist()) if hint == tuple[float, ...] else value.astype(F)
    return kind(**found)


def _check_about(path: str | Path, arrays: dict[str, NDArray[Any]], dataset: Dataset) -> None:
    if int(arrays["version"]) != _VERSION:
        raise ValueError(f"it is of version {arrays['version']}, wanted {_VERSION}")
    if str(arrays["data_hash"]) != dataset.hash:
        raise DataError(
            f"{path} is a twin of other data, hash {arrays['data_hash']}: {dataset.name} as prepared here has "
            f"{dataset.hash}; fit its own, `twin_of(dataset)`"
        )


def _check_shapes(twin: Twin) -> None:
    """Raise ValueError unless all parts are of one catalogue and finite."""
    choice, stars, n, users = twin.choice, twin.stars, twin.dataset.n_items, twin.dataset.n_users
    rank, width = choice.items.shape[-1], stars.vectors.shape[-1]
    shapes: dict[str, tuple[NDArray[Any], tuple[int, ...]]] = {
        "choice.items": (choice.items, (n, rank)),
        "choice.bias": (choice.bias, (n,)),
        "choice.taken": (choice.taken, (n, len(choice.decays), rank)),
        "stars.items": (stars.items, (n,)),
        "stars.vectors": (stars.vectors, (n, width)),
        "stars.spread": (stars.spread, (n,)),
        "stars.prior": (stars.prior, (width + 2, width + 1)),
        "calibration.cuts": (twin.calibration.cuts, (len(twin.calibration.levels) - 1,)),
        "stops": (twin.stops, (users,)),
    }
    for name, (found, wanted) in shapes.items():
        if found.shape != wanted:
            raise ValueError(f"{name} has shape {found.shape}, wanted {wanted}")
    check_stops(twin.dataset, twin.stops)


def _check_numbers(twin: Twin) -> None:
    """Raise ValueError unless all are finite, and within what they mean."""
    known, stars = twin.calibration, twin.stars
    for part in _PARTS:
        for name, value in vars(getattr(twin, part)).items():
            if not np.isfinite(np.asarray(value)).all():
                raise ValueError(f"{part}.{name} isn't all finite")
    wrong = {
        "stars.noise": stars.noise <= 0,
        "stars.spread": (stars.spread < 0).any(),
        "choice.decays": not all(0 <= decay <= 1 for decay in twin.choice.decays),
        "calibration.leave": not known.leave.size or (known.leave < 0).any() or (known.leave > 1).any(),
        "calibration.look": not 0 < known.look <= 1,
        "calibration.mood_decay": not 0 <= known.mood_decay < 1,
        "calibration.levels": (np.diff(known.levels) <= 0).any(),
        "calibration.cuts": (np.diff(known.cuts) < 0).any(),
        "calibration.liked_above": known.liked_above != twin.dataset.liked_above,
    }
    if names := [name for name, is_wrong in wrong.items() if is_wrong]:
        raise ValueError(f"{', '.join(names)} can't be those of a twin")
