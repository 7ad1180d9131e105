"""The statistical user: what is taken, how it is rated and when a user leaves, fitted on a log.

    utility    z_j = t (bias_j + items_j . x) + a near_j          x: decayed sums of what was taken; near: `Followers`
    whether    P(take) = sigma(slope log sum_j exp z_j - level |x|^2 - outside)         j: the items of a slate
    which      P(j | take) = exp z_j / sum exp z
    stars      the level between whose cuts mean + beta mood + sd normal falls          mean, sd: `Stars`
    next liked P(j) ~ exp(z_j) P(like_j): what held-out targets are, which are taken and liked

A user is a history: nothing is kept of one but the parameters of the items that were taken and rated, so that a
simulated user goes on as a real one would. What is measured is what steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from starec_env.dataset import Dataset
from starec_env.recommend.choice import Choice
from starec_env.recommend.followers import Followers
from starec_env.recommend.stars import Stars

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Report = Callable[[str, int, int], None]
"""Called with what is being fitted, steps done and in all."""
F = np.float32


@dataclass(frozen=True)
class Calibration:
    """The few numbers that turn scores into probabilities, fitted on interactions that the rest hasn't seen.

    Attributes:
        temperature: t, of utilities.
        near: a, the weight of what the last items add.
        outside: How much speaks for taking nothing.
        slope: What a slate's log sum of exp(utility) counts against that.
        level: What the state's squared length does: how high a user's utilities are for any item.
        look: Odds of a place in a slate relative to the place before it; declared, not fitted.
        mood_decay: What remains of a mood after a rating: mood <- decay mood + (1 - decay) (stars - mean).
        mood_stars: Stars that the next rating moves by for one star of mood.
        leave: (steps,) chance that a sitting ends after its first, second, .. step; the last holds for all later ones.
        leave_declared: Whether `leave` is declared, because the log's times can't tell; else it is the log's, with
            30 minutes between sittings.
        mood_leaves: Leaving's odds are exp(-mood_leaves * mood) as large; declared: logs of ratings show no such thing.
        levels: (levels,) the ratings of the scale, ascending.
        cuts: (levels - 1,) where one level ends and the next begins.
        liked_above: Ratings above this are likes.
    """

    temperature: float
    near: float
    outside: float
    slope: float
    level: float
    mood_decay: float
    mood_stars: float
    leave: Floats
    leave_declared: bool
    levels: Floats
    cuts: Floats
    liked_above: float
    look: float = 0.95
    mood_leaves: float = 0.4

    @property
    def like_cut(self) -> float:
        """What a rating before it is put on the scale must exceed to be a like."""
        above = int(np.searchsorted(self.levels, self.liked_above, side="right"))
        return float(np.concatenate([[-np.inf], self.cuts, [np.inf]])[above])

    def on_scale(self, values: Floats) -> Floats:
        """(...) the ratings of the scale that numbers before they are put on it become."""
        found: Floats = self.levels[np.searchsorted(self.cuts, values)]
        return found


@dataclass(frozen=True)
class States:
    """What the twin knows of n users: a function of their histories alone.

    Attributes:
        sums: (n, decays, r) decayed sums of what was taken, `Choice.states`.
        recent: (n, 3) catalogue indices of the last items, newest first, -1 where there is none.
        level: (n,) what each gives above the mean rating.
        vectors: (n, rank) of `Stars`.
        spread: (n,) how unsure level and vectors are.
    """

    sums: Floats
    recent: Ints
    level: Floats
    vectors: Floats
    spread: Floats

    def __len__(self) -> int:
        return len(self.sums)

    def __getitem__(self, rows: NDArray[Any] | slice) -> States:
        return States(self.sums[rows], self.recent[rows], self.level[rows], self.vectors[rows], self.spread[rows])


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

    @property
    def data_hash(self) -> str:
        """`Dataset.hash` of the data that it was fitted on."""
        return self.dataset.hash

    @classmethod
    def fit(
        cls, dataset: Dataset, *, stops: Ints | None = None, rank: int = 48, seed: int = 0, report: Report | None = None
    ) -> Self:
        """Fit all parts.

        Args:
            dataset: As prepared; rows before the users' windows are learned from too.
            stops: (n_users,) the row before which each user's rows end that may be seen. None: the user's last liked
                item and what follows it are not, so that the twin knows nothing of any leave-one-out target.
            rank: Length of the items' vectors.
            seed: Of all that is drawn.
            report: Called as it goes on.
        """
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write the parameters as an .npz file, vectors as float16, which is how the fit leaves them."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | Path, dataset: Dataset) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: It isn't such a file, or was fitted on other data.
        """
        raise NotImplementedError

    @cached_property
    def followers(self) -> Followers:
        """Which items soon follow which in the rows that the fit saw."""
        raise NotImplementedError

    @cached_property
    def start(self) -> States:
        """States of all users of the data set at `stops`."""
        return self.states_at(self.dataset, np.arange(self.dataset.n_users), self.stops)

    def states(self, owners: Ints, items: Ints, ratings: Floats, n: int) -> States:
        """States after histories laid end to end.

        Args:
            owners: (rows,) 0-based state of each row, ascending.
            items: (rows,) catalogue indices, oldest first.
            ratings: (rows,).
            n: How many states; one without rows is of a user of whom nothing is known.
        """
        raise NotImplementedError

    def states_at(self, dataset: Dataset, users: NDArray[np.integer[Any]], stops: NDArray[np.integer[Any]]) -> States:
        """(n,) states of users of a data set with this catalogue after all their rows before (n,) rows."""
        raise NotImplementedError

    def utilities(self, states: States, candidates: NDArray[np.integer[Any]]) -> Floats:
        """(n, k) utilities z of (n, k) candidates; what was met is for the caller to leave out."""
        raw = self.choice.utilities(states.sums, candidates)
        near = self.followers.near(states.recent, candidates)
        found: Floats = F(self.calibration.temperature) * raw + F(self.calibration.near) * near
        return found

    def reluctance(self, states: States) -> Floats:
        """(n,) what speaks against taking anything: outside + level |x|^2."""
        x = states.sums.sum(1)
        found: Floats = F(self.calibration.outside) + F(self.calibration.level) * np.einsum("nr,nr->n", x, x)
        return found

    def mean_stars(self, states: States, candidates: NDArray[np.integer[Any]], mood: Floats | None = None) -> Floats:
        """(n, k) expected ratings; mood (n,)."""
        raise NotImplementedError

    def p_like(self, states: States, candidates: NDArray[np.integer[Any]], mood: Floats | None = None) -> Floats:
        """(n, k) chances that a candidate, if taken, is liked."""
        raise NotImplementedError

    def log_choice(self, states: States, candidates: NDArray[np.integer[Any]]) -> Floats:
        """(n, k) log-probabilities that a candidate is the next liked item, given that one of them is."""
        scores = self.utilities(states, candidates) + np.log(self.p_like(states, candidates))
        scores -= scores.max(1, keepdims=True)
        found: Floats = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        return found


def twin_of(dataset: Dataset, report: Report | None = None) -> Twin:
    """The twin of a data set: the bundled one, or the one in the cache folder, or fitted now and kept there."""
    raise NotImplementedError
