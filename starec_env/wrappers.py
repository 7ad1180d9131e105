"""Wrappers that make `starec/UserFeedback-v0` what libraries for reinforcement learning train on: plain spaces.

    env = gymnasium.make("starec/UserFeedback-v0")
    env = PickOne(ItemFeatures(env))  # Discrete actions, flat float32 observations
    PPO("MlpPolicy", env).learn(100_000)

The environment's own action is a ranking, and its observation names items by number; no network can do much with
either. An action wrapper turns what a policy gives into a ranking (`ScoreActions`, `PickOne`, `SlateActions`), and
`ItemFeatures` puts what is known of the items in the place of their numbers. Each can be used without the other.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from starec_env.errors import InvalidOption, InvalidRanking, check_whole
from starec_env.replay.env import Observation, list_of_ids
from starec_env.replay.spaces import Rankings
from starec_env.replay.stream import Stream
from starec_env.types import Dataset, Id

Features = NDArray[np.float32]
_Env = gymnasium.Env[Any, Any]
_ROUNDING = np.float32(1e-3)


class ScoreActions(gymnasium.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """An action scores every candidate; the ranking is theirs from the highest score down.

    The action space is `Box(-1, 1, (n_candidates,), float32)`. Candidates with equal scores rank in the order shown.
    Scores outside the box are taken as they are, since only their order counts.

    Args:
        env: An environment whose actions are rankings.

    Raises:
        InvalidOption: If the environment's actions aren't rankings.
        InvalidRanking: In `step`, if the action isn't `n_candidates` numbers, or one of them is NaN.
    """

    def __init__(self, env: _Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(one_at_a_time(env))
        self._n = _candidates(env)
        self.action_space = spaces.Box(-1, 1, (self._n,), np.float32)

    def action(self, action: Any) -> NDArray[np.int64]:
        """The ranking that the scores give."""
        scores = np.asarray(action)
        if scores.shape != (self._n,) or scores.dtype.kind not in "fiu" or np.isnan(scores).any():
            raise InvalidRanking(
                f"{_shown(action)} are no scores: wanted {self._n} numbers, one for each candidate, none of them NaN"
            )
        return np.argsort(-scores.astype(np.float64), kind="stable")


class PickOne(gymnasium.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """An action picks one candidate, which is then the whole ranking.

    The action space is `Discrete(n_candidates)`. As the others aren't ranked, the position reward is +1 for the item
    that the user took and -1 for any other: were they ranked in the order shown, chance would add its noise to it.

    `action_masks()` is what sb3-contrib's MaskablePPO asks for; every candidate may be picked.

    Args:
        env: An environment whose actions are rankings.

    Raises:
        InvalidOption: If the environment's actions aren't rankings.
        InvalidRanking: In `step`, if the action isn't a candidate's 0-based position.
    """

    def __init__(self, env: _Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(one_at_a_time(env))
        self._n = _candidates(env)
        self.action_space = spaces.Discrete(self._n)

    def action(self, action: Any) -> list[int]:
        """The ranking that holds the picked position alone."""
        return [_position(action, self._n)]

    def action_masks(self) -> NDArray[np.bool_]:
        """(n_candidates,) whether each may be picked: all may."""
        return np.ones(self._n, np.bool_)


class SlateActions(gymnasium.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """An action fills a slate of k places, best first; candidates that aren't on it aren't ranked.

    The action space is `MultiDiscrete([n_candidates] * k)`. A policy chooses each place apart and may choose a
    candidate twice: it then takes the first of its places, and the slate is that much shorter.

    Args:
        env: An environment whose actions are rankings.
        k: Places, 1 to n_candidates.

    Raises:
        InvalidOption: If the environment's actions aren't rankings, or k is out of its range.
        InvalidRanking: In `step`, if the action isn't k candidate positions.
    """

    def __init__(self, env: _Env, k: int) -> None:
        RecordConstructorArgs.__init__(self, k=k)
        super().__init__(one_at_a_time(env))
        self._n, self._k = _candidates(env), k
        check_whole("k", k, least=0)
        if not 1 <= k <= self._n:
            raise InvalidOption(f"k is {k}: a slate has 1 to {self._n} places, as there are {self._n} candidates")
        self.action_space = spaces.MultiDiscrete([self._n] * k)

    def action(self, action: Any) -> list[int]:
        """The ranking of the slate's distinct candidates."""
        places = np.asarray(action)
        if places.shape != (self._k,):
            raise InvalidRanking(f"{_shown(action)} is no slate: wanted {self._k} positions from 0 to {self._n - 1}")
        return [*dict.fromkeys(_position(place, self._n) for place in places)]


class ItemFeatures(gymnasium.ObservationWrapper[Features, Any, Any], RecordConstructorArgs):
    """Observations of numbers that describe the candidates and the user's taste, in the place of items' indices.

    The observation is a flat `Box` of float32: for each candidate, in the order shown, its d features, its popularity
    and its likeness to the user's profile; then the profile, d numbers. `split(observation)` takes it apart.

    * Features: `item_features(dataset)` (genres and year), or any matrix of one row an item.
    * Popularity: log(1 + count), standardised over the catalogue. Counted are the `train_users`' interactions before
      their held-out last turn, and never those of the user who is asked, as the target's own would tell it.
    * Profile: the mean of the features of the items in "history" that the user liked, an item's weight being
      `decay` to the power of how many liked ones came after it; zeros where none was liked.
    * Likeness: the cosine between profile and features, both less the catalogue's mean; 0 where there is no profile.

    When a stream has ended there are no candidates, and their numbers are 0.

    Args:
        env: A `starec/UserFeedback-v0`, wrapped or not, whose observations are still its own.
        features: (n_items, d) numbers; None takes `item_features`.
        train_users: Ids of the users whose interactions count as popularity; None takes all.
        decay: 1 weighs all liked items alike; at 0.8 only about the last five count.

    Raises:
        InvalidOption: If the observations are others, the matrix hasn't a row an item, a value isn't finite, or decay
            isn't above 0 and at most 1.
        UnknownName: If there is no such user.
    """

    def __init__(
        self,
        env: _Env,
        features: Features | None = None,
        train_users: Sequence[Id] | None = None,
        decay: float = 1.0,
    ) -> None:
        RecordConstructorArgs.__init__(self, features=features, train_users=train_users, decay=decay)
        super().__init__(one_at_a_time(env))
        if not isinstance(env.observation_space, spaces.Dict) or "candidates" not in env.observation_space.keys():
            raise InvalidOption(
                f"the environment's observations are {env.observation_space}: this wrapper needs those of "
                "starec/UserFeedback-v0, so put it round that before any other that changes observations"
            )
        stream = env.get_wrapper_attr("stream")
        self._popularity = _Popularity(stream, train_users)
        matrix = item_features(stream.dataset) if features is None else _checked(features, stream.dataset)
        # Index -1, which pads, finds the last row: zeros.
        self._features = np.vstack([matrix, np.zeros_like(matrix[:1])])
        centred = self._features - matrix.mean(axis=0)
        centred[-1] = 0
        self._directions = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
        self._mean = matrix.mean(axis=0)
        if not 0 < decay <= 1:
            raise InvalidOption(f"decay is {decay}: it must be above 0 and at most 1")
        self._decay, self._n, self.n_features = decay, stream.n_candidates, matrix.shape[1]
        bounds = zip(self._features.min(axis=0), self._features.max(axis=0), strict=True)
        columns = [*bounds, self._popularity.bounds, (-1.0, 1.0)]
        low, high = np.transpose([*columns * self._n, *columns[:-2]]).astype(np.float32)
        self.observation_space = spaces.Box(low - _ROUNDING, high + _ROUNDING, dtype=np.float32)

    def observation(self, observation: Observation) -> Features:
        """The flat features of an observation."""
        candidates = observation["candidates"]
        profile, direction = self._profile(observation["history"][observation["feedback"] == 1])
        parts = self._features[candidates], self._popularity.of(observation["user"], candidates)
        likeness = self._directions[candidates] @ direction
        shown = np.column_stack([*parts, likeness])
        return np.concatenate([shown.ravel(), profile]).astype(np.float32, copy=False)

    def split(self, observation: Features) -> tuple[Features, Features]:
        """The candidates' numbers, shape (..., n_candidates, d + 2), and the profile, shape (..., d)."""
        d = self.n_features
        shown = observation[..., :-d].reshape(*observation.shape[:-1], self._n, d + 2)
        return shown, observation[..., -d:]

    def _profile(self, liked: NDArray[np.int32]) -> tuple[Features, Features]:
        if not len(liked):
            return np.zeros_like(self._mean), np.zeros_like(self._mean)
        weights = self._decay ** np.arange(len(liked) - 1, -1, -1, dtype=np.float32)
        profile = weights @ self._features[liked] / weights.sum()
        direction = profile - self._mean
        return profile, direction / max(float(np.linalg.norm(direction)), 1e-9)


class _Popularity:
    """How many other users met an item in training."""

    def __init__(self, stream: Stream, users: Sequence[Id] | None) -> None:
        dataset = stream.dataset
        self._n_items, owner = dataset.n_items, dataset.owner
        stops = np.where(stream.held_out < 0, dataset.indptr[1:], stream.held_out)
        known = np.arange(dataset.n_interactions) < stops[owner]
        if users is not None:
            known &= np.isin(owner, [dataset.user_index(user) for user in list_of_ids(users)])
        self._keys = np.sort(owner[known] * self._n_items + dataset.item_indices[known])
        self._counts = np.bincount(dataset.item_indices[known], minlength=self._n_items)
        logs = np.log1p(self._counts)
        self._centre, self._scale = float(logs.mean()), float(logs.std()) or 1.0

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the most that `of` can give; 0, of what is no item, among them."""
        none, most = -self._centre / self._scale, (np.log1p(self._counts.max()) - self._centre) / self._scale
        return min(none, 0.0), max(most, 0.0)

    def of(self, user: int, items: NDArray[np.int32]) -> Features:
        """(n,) popularity of some items among the users other than this one; 0 for index -1."""
        keys = int(user) * self._n_items + items.astype(np.int64)
        own = self._keys.take(np.searchsorted(self._keys, keys), mode="clip") == keys if len(self._keys) else 0
        logs = np.log1p(self._counts[items] - own)
        return np.where(items < 0, 0, (logs - self._centre) / self._scale).astype(np.float32)


def one_at_a_time(env: Any) -> _Env:
    """The environment; raises InvalidOption for one of many users at once, which no wrapper of ours can change."""
    if isinstance(env, VectorEnv):
        raise InvalidOption(
            f"{type(env).__name__} steps many users at once, and this wrapper changes one user's environment: give "
            'it to make_vec with wrappers=[...] and vectorization_mode="sync" or "async", which wrap each'
        )
    return env  # type: ignore[no-any-return]


def item_features(dataset: Dataset) -> Features:
    """What the catalogue says of its items, as numbers.

    Args:
        dataset: Whose items; their attributes "genres" (comma-separated) and "year" are read.

    Returns:
        Shape (n_items, genres + 1), float32: 1 for each genre that an item has, in alphabetical order, else 0; then
        the year, standardised over the catalogue, 0 where an item has none.
    """
    named = [{name.strip() for name in item.attributes.get("genres", "").split(",")} - {""} for item in dataset.items]
    genres = sorted(set().union(*named))
    years = np.array([_year(item.attributes.get("year", "")) for item in dataset.items])
    known = ~np.isnan(years)
    if known.any():
        years = (years - years[known].mean()) / (years[known].std() or 1.0)
    columns = [[genre in mine for mine in named] for genre in genres]
    return np.column_stack([*columns, np.nan_to_num(years)]).astype(np.float32)


def _year(text: str) -> float:
    return float(text) if text.isdecimal() and len(text) == 4 else np.nan


def _checked(features: Any, dataset: Dataset) -> Features:
    matrix = np.asarray(features, np.float32)
    if matrix.ndim != 2 or len(matrix) != dataset.n_items or not matrix.shape[1]:
        raise InvalidOption(
            f"features have the shape {matrix.shape}: wanted one row for each of the {dataset.n_items:,} items"
        )
    if not np.isfinite(matrix).all():
        raise InvalidOption("features hold NaN or infinity: replace them, e.g. by numpy.nan_to_num")
    return matrix


def _candidates(env: _Env) -> int:
    if not isinstance(env.action_space, Rankings):
        raise InvalidOption(
            f"the environment's actions are {env.action_space}: this wrapper needs Rankings, so put it round "
            "starec/UserFeedback-v0 before any other that changes actions"
        )
    return env.action_space.n


def _position(given: Any, n: int) -> int:
    if not np.issubdtype(np.asarray(given).dtype, np.integer) or np.ndim(given) or not 0 <= given < n:
        raise InvalidRanking(f"{_shown(given)} is no candidate's position: wanted a whole number from 0 to {n - 1}")
    return int(given)


def _shown(given: Any) -> str:
    text = " ".join(repr(given).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
