"""From a ranking to an answer, and from an agent's stars to its user's: fitted on real users' held-out interactions.

A ranking has no zero: it says which item of a slate comes first, not whether anybody wants it. So the slate is ranked
together with some items that the user never met, drawn uniformly, and is worth taking from as far as it beats these.

    z_j        = -t log rank_j
    P(take)    = sigmoid(slope (log mean of exp z over the slate - log mean of exp z over the others)
                         + length log(items of the slate) - outside)
    P(j|take)  = exp z_j / sum of exp z over the slate
    stars      = the level of the scale between whose cuts falls
                 intercept + own (the user's mean rating) + raw (what the agent said) + noise
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy.special import ndtr, ndtri

from starec_env.errors import DataError, InvalidOption
from starec_env.recommend.calibrate import SITTING
from starec_env.types import Ranking

Floats = NDArray[np.float64]

_SHRUNK = 5.0
"""So many ratings of the mean rating are added to a user's own before their mean is taken."""
FEWEST = 20
"""Interactions that a fit needs."""
_DECLARED = 0.1
_RIDGE = 1e-4
_QUANTILES = 51


class StarsLine(BaseModel):
    """Real stars as a line in the user's mean rating and in what an agent said, by least squares, put on the scale."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    intercept: float
    own: float
    """Weight of the user's mean rating."""
    raw: float
    """Weight of what the agent said: its stars, or -log(rank / candidates)."""
    typical: float
    """What agents said on average; stands for what can't be read."""
    noise: float = Field(ge=0)
    """Standard deviation of what is left."""
    levels: tuple[float, ...]
    """The ratings of the scale, ascending."""
    cuts: tuple[float, ...]
    """Where one level ends and the next begins, so that each is given as often as in the data."""
    n: int
    """Ratings that it was fitted on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.cuts) != len(self.levels) - 1 or list(self.cuts) != sorted(self.cuts):
            raise ValueError(f"{len(self.cuts)} cuts for {len(self.levels)} levels: wanted one less, ascending")
        return self

    def mean(self, own: Any, raw: Any) -> Any:
        """Expected stars, within the scale; arguments are numbers or arrays."""
        return np.clip(self.intercept + self.own * own + self.raw * raw, self.levels[0], self.levels[-1])

    def given(self, own: float, raw: float, deviation: float) -> float:
        """The level that is given, with a standard normal number for the noise."""
        value = self.intercept + self.own * own + self.raw * raw + self.noise * deviation
        return self.levels[int(np.searchsorted(self.cuts, value))]

    def likes(self, own: Floats, raw: Floats, liked_above: float) -> Floats:
        """(n,) probability that the level given is above `liked_above`."""
        above = int(np.searchsorted(self.levels, liked_above, side="right"))
        cut = [-np.inf, *self.cuts, np.inf][above]
        values = self.intercept + self.own * own + self.raw * raw
        found: Floats = ndtr((values - cut) / max(self.noise, 1e-3))
        return found


class Calibration(BaseModel):
    """How an agent's rankings and stars become what its users would do; a small JSON file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(ge=0)
    """t above: 0 makes all items alike."""
    slope: float
    length: float
    outside: float
    leave: float = Field(ge=0, le=1)
    """Probability of leaving after a slate, where the agent can't say; see `leaving_rate`. What displeases has no part
    in it: logs of ratings don't show it."""
    mean_rating: float
    """Of the data that it was fitted on."""
    n: int
    """Liked interactions that the choice was fitted on."""
    by_ranking: StarsLine
    """Stars where the agent only ranks."""
    by_response: StarsLine | None = None
    """Stars where the agent gives some; None leaves them as they are."""
    made_from: dict[str, Any] = {}
    """Data set, users and model, for people."""

    def utilities(self, ranking: Ranking, n: int) -> Floats:
        """(n,) z of n candidates; those that aren't ranked share the mean of the places left."""
        return -self.temperature * np.log(ranks(ranking, n))

    def take(self, slate: Floats, others: Floats) -> Any:
        """(...) probability that something is taken, by the utilities of (..., k) items shown and (..., m) others."""
        speaks_for = self.slope * advantage(slate, others) + self.length * np.log(slate.shape[-1])
        return 1 / (1 + np.exp(self.outside - speaks_for))

    def own_mean(self, ratings: NDArray[np.float32]) -> float:
        """A user's mean rating, drawn to the data's mean where they are few."""
        return shrunk_mean(ratings, self.mean_rating)

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(self.model_dump(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a file that `save` wrote.

        Raises:
            DataError: There is none, or it holds something else.
        """
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path} can't be read as a calibration of agents: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise DataError(f"{path} is no calibration of agents: {where}: {first['msg']}") from None


def shrunk_mean(ratings: NDArray[np.float32], mean: float) -> float:
    """The mean of ratings and of a few more of the value `mean`."""
    return float((ratings.sum(dtype=np.float64) + _SHRUNK * mean) / (len(ratings) + _SHRUNK))


def ranks(ranking: Ranking, n: int) -> Floats:
    """(n,) 1-based ranks of n candidates; those that aren't ranked share the mean of the places left."""
    found = np.full(n, (len(ranking.order) + 1 + n) / 2)
    found[list(ranking.order)] = np.arange(1, len(ranking.order) + 1)
    return found


def rank_score(ranking: Ranking, n: int) -> Floats:
    """(n,) what a ranking says of each candidate: -log(rank / n), 0 for the last."""
    return -np.log(ranks(ranking, n) / n)


def advantage(slate: Floats, others: Floats) -> Any:
    """(...) log of the slate's mean odds over those of the others; arguments (..., k) and (..., m)."""
    return _log_mean(slate) - _log_mean(others)


def _log_mean(z: Floats) -> Any:
    return np.logaddexp.reduce(z, axis=-1) - np.log(z.shape[-1])


def fit_choice(
    found: Floats, targets: NDArray[np.integer[Any]], seed: int = 0
) -> tuple[float, tuple[float, float, float]]:
    """Fit the temperature by likelihood, and then slope, length and outside.

    Whether anything is taken can't be known from logs, which don't say what was shown: it is declared that half of the
    slates, of whatever length, hold what the user took next. Each case gives two: the target and some other candidates,
    and as many candidates without the target; the rest are the others.

    Args:
        found: (cases, n) 1-based ranks of the candidates.
        targets: (cases,) 0-based position of what was taken.
        seed: Of the slates, whose lengths are uniform from 1 to n - 5.
    """
    from scipy.optimize import minimize, minimize_scalar

    cases = len(found)
    if cases < FEWEST:
        raise InvalidOption(f"{cases} liked interactions are too few to calibrate on: wanted at least {FEWEST}")
    logs = np.log(found)
    right = logs[np.arange(cases), targets]

    def loss(t: float) -> float:
        return float(np.mean(t * right + np.logaddexp.reduce(-t * logs, axis=1)))

    t = float(minimize_scalar(loss, bounds=(0, 20), method="bounded").x)
    better, lengths, took = _slates(-t * logs, targets, seed)

    def off(p: Floats) -> float:
        wrong = np.where(took, -1, 1) * (p[0] * better + p[1] * np.log(lengths) - p[2])
        return float(np.logaddexp(0, wrong).mean() + _RIDGE * (p**2).sum())  # chance rankings would leave them free

    slope, length, outside = minimize(off, [1.0, 0.0, 1.0], bounds=[(0, None), (None, None), (None, None)]).x
    return t, (float(slope), float(length), float(outside))


def _slates(z: Floats, targets: NDArray[np.integer[Any]], seed: int) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """(2 x cases,) advantages of slates with and without the target, their lengths, and which they are."""
    rng = np.random.default_rng(seed)
    n = z.shape[1]
    found = []
    for row, target in zip(z, targets.tolist(), strict=True):
        rest, k = rng.permutation(np.delete(row, target)), int(rng.integers(1, n - 4))
        with_it = np.append(rest[1:k], row[target])
        found += [(advantage(with_it, rest[k:]), k, True), (advantage(rest[:k], rest[k:]), k, False)]
    better, lengths, took = map(np.array, zip(*found, strict=True))
    return better, lengths, took


def fit_stars(own: Floats, raw: Floats, ratings: Floats) -> StarsLine:
    """Fit a line by least squares, and cuts by the shares of the ratings.

    Args:
        own: (n,) the users' mean ratings before.
        raw: (n,) what the agent said.
        ratings: (n,) what the users really rated.
    """
    n = len(ratings)
    if n < FEWEST:
        raise InvalidOption(f"{n} ratings are too few to calibrate stars on: wanted at least {FEWEST}")
    columns = np.stack([np.ones_like(own), own, raw], axis=1)
    weights, *_ = np.linalg.lstsq(columns, ratings, rcond=None)
    noise = float(np.sqrt(np.mean((ratings - columns @ weights) ** 2)))
    drawn = (columns @ weights)[:, None] + noise * ndtri((np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    levels, counts = np.unique(ratings, return_counts=True)
    cuts = np.quantile(drawn, counts.cumsum()[:-1] / n)
    intercept, of_own, of_raw = map(float, weights)
    return StarsLine(
        intercept=intercept,
        own=of_own,
        raw=of_raw,
        typical=float(raw.mean()),
        noise=noise,
        levels=tuple(levels.tolist()),
        cuts=tuple(cuts.tolist()),
        n=n,
    )


def leaving_rate(timestamps: Sequence[NDArray[np.int64]]) -> float:
    """Sittings over interactions; 0.1, declared, where most sittings have one interaction, so that times say nothing.

    Args:
        timestamps: (interactions,) seconds of each user, ascending.
    """
    sittings = sum(1 + int((np.diff(times) > SITTING).sum()) for times in timestamps if len(times))
    rate = sittings / max(1, sum(map(len, timestamps)))
    return rate if 0 < rate < 0.5 else _DECLARED
