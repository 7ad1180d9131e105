"""Wrappers of `starec/Recommend-v0`: plain action spaces, and feedback as it comes in practice.

    env = gymnasium.make("starec/Recommend-v0", slate_size=1)
    env = MissingFeedback(PickItem(env), chance=0.5)  # Discrete actions; half of the ratings are never given

What a wrapper changes is what the recommender sees and is rewarded for; `info["rewards"]` keeps the truth. Many wrapped
environments are made by `make_vec(..., vectorization_mode="sync", wrappers=[...])`; the native vector form is refused.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from starec_env.errors import InvalidOption, InvalidSlate, check_whole
from starec_env.recommend.env import Observation, RecommendEnv
from starec_env.wrappers import one_at_a_time

_Env = gymnasium.Env[Any, Any]
_FEEDBACK = ("history", "ratings", "places", "ages", "slate", "taken")
"""What an observation has of the user's answers."""


def _inner(env: _Env) -> RecommendEnv:
    inner = env.unwrapped
    if not isinstance(inner, RecommendEnv):
        raise InvalidOption(f"{env} doesn't recommend: this wraps starec/Recommend-v0")
    return inner


class TopK(gymnasium.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """An action scores the whole catalogue; the slate is of the highest scores that may be shown and aren't met yet.

    The action space is `Box(-1, 1, (n_items,), float32)`; scores outside are taken as they are. Equal scores go in the
    catalogue's order.

    Raises:
        InvalidSlate: In `step`, if the action isn't n_items numbers, or one is NaN.
    """

    def __init__(self, env: _Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(one_at_a_time(env))
        self._n, self._k = _inner(env).dataset.n_items, _inner(env).slate_size
        self.action_space = spaces.Box(-1, 1, (self._n,), np.float32)

    def action(self, action: Any) -> NDArray[np.int64]:
        """The slate that the scores give."""
        scores = np.asarray(action)
        if scores.shape != (self._n,) or scores.dtype.kind not in "fiu" or np.isnan(scores).any():
            raise InvalidSlate(f"an array of shape {scores.shape} is no scores: wanted {self._n} numbers, none NaN")
        may = np.flatnonzero(_inner(self).action_masks())
        if len(may) < self._k:
            raise InvalidSlate(
                f"{len(may)} items are left to show, for a slate of {self._k}: the user has met the rest"
            )
        return may[np.argsort(-scores[may].astype(np.float64), kind="stable")[: self._k]]


class PickItem(gymnasium.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """An action is one item's catalogue index, of an environment with `slate_size=1`: `Discrete(n_items)`.

    `action_masks()` is what sb3-contrib's MaskablePPO asks for: items that may be shown and aren't met yet.
    """

    def __init__(self, env: _Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(one_at_a_time(env))
        if _inner(env).slate_size != 1:
            raise InvalidOption(f"slate_size is {_inner(env).slate_size}: one item is picked where it is 1")
        self.action_space = spaces.Discrete(_inner(env).dataset.n_items)

    def action(self, action: Any) -> Any:
        """The action as it is, which is a slate of one item; the environment refuses what is no index."""
        return action

    def action_masks(self) -> NDArray[np.bool_]:
        """(n_items,) whether each may be picked."""
        return _inner(self).action_masks()


class DelayedFeedback(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """What the user does is known some steps later: in the observation, and as the reward.

    The last step of a visit pays all rewards that are still due, so that returns stay as they are.

    Args:
        env: The environment.
        steps: How many.
    """

    def __init__(self, env: _Env, steps: int) -> None:
        check_whole("steps", steps, 0)
        RecordConstructorArgs.__init__(self, steps=steps)
        super().__init__(one_at_a_time(env))
        _inner(env)
        self._late = steps

    def reset(self, **options: Any) -> tuple[Observation, dict[str, Any]]:
        """Begin a visit."""
        observation, info = super().reset(**options)
        self._observed, self._due = deque([observation] * (self._late + 1), self._late + 1), deque[float]()
        return observation, info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Show a slate."""
        observation, reward, left, late, info = super().step(action)
        self._observed.append(observation)
        self._due.append(float(reward))
        old = {name: self._observed[0][name] for name in _FEEDBACK}
        if left or late:
            paid = sum(self._due)
        else:
            paid = self._due.popleft() if len(self._due) > self._late else 0.0
        return {**observation, **old}, paid, left, late, info


class _Ratings(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Changes the ratings that the recommender gets; `info["reported"]` is the last one, NaN where there is none."""

    def __init__(self, env: _Env, seed: int, **options: Any) -> None:
        RecordConstructorArgs.__init__(self, seed=seed, **options)
        super().__init__(one_at_a_time(env))
        _refuse_inside(env, DelayedFeedback, "what is rewarded late would be rewarded at once", type(self).__name__)
        self._data, self._reward = _inner(env).dataset, _inner(env).reward
        self._rng, self._said = np.random.default_rng(seed), dict[int, float]()
        self._levels = np.unique(self._data.ratings)

    def reset(self, *, seed: int | None = None, **options: Any) -> tuple[Observation, dict[str, Any]]:
        """Begin a visit."""
        if seed is not None:
            self._rng = np.random.default_rng((seed, 1))
        self._said = {}
        return super().reset(seed=seed, **options)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Show a slate."""
        observation, reward, left, late, info = super().step(action)
        info["reported"] = np.nan
        if (item := info["item"]) >= 0:
            given = info["rewards"]["stars"]
            rated = given != 0 or 0 in self._levels  # who gave no stars is shown by a 0, and reports none either
            found = info["reported"] = self._report(given) if rated else np.nan
            stars = self._said[item] = 0.0 if np.isnan(found) else found
            reward = {"stars": stars, "likes": float(stars > self._data.liked_above)}.get(self._reward, float(reward))
        if self._said:
            ratings = observation["ratings"].copy()
            taken_here = observation["places"] >= 0
            for place in np.flatnonzero(taken_here).tolist():
                ratings[place] = self._said[int(observation["history"][place])]
            observation = {**observation, "ratings": ratings}
        return observation, float(reward), left, late, info

    def _report(self, stars: float) -> float:
        raise NotImplementedError


class NoisyFeedback(_Ratings):
    """With some chance a rating is another level of the scale, any with equal chance.

    Args:
        env: The environment.
        chance: 0 to 1.
        seed: Of the noise, until `reset` is given one.
    """

    def __init__(self, env: _Env, chance: float, seed: int = 0) -> None:
        super().__init__(env, seed, chance=_share("chance", chance))
        self._chance = chance

    def _report(self, stars: float) -> float:
        return float(self._rng.choice(self._levels)) if self._rng.random() < self._chance else stars


class MissingFeedback(_Ratings):
    """With some chance what was taken is never rated: the rating is 0, and neither stars nor a like are rewarded.

    Args:
        env: The environment.
        chance: 0 to 1.
        seed: Of what is missing, until `reset` is given one.
    """

    def __init__(self, env: _Env, chance: float, seed: int = 0) -> None:
        super().__init__(env, seed, chance=_share("chance", chance))
        self._chance = chance

    def _report(self, stars: float) -> float:
        return np.nan if self._rng.random() < self._chance else stars


class BiasedFeedback(_Ratings):
    """Ratings are shifted, and put on the nearest level of the scale: users who are too kind, or too strict.

    Args:
        env: The environment.
        shift: Stars.
        seed: Without effect; every wrapper of ratings has one.
    """

    def __init__(self, env: _Env, shift: float, seed: int = 0) -> None:
        super().__init__(env, seed, shift=shift)
        self._shift = shift

    def _report(self, stars: float) -> float:
        return float(self._levels[np.abs(self._levels - (stars + self._shift)).argmin()])


class Drift(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Tastes change at once: from a visit on, users take a share of the items for one another.

    Shown item i, a user answers as to the item that i was exchanged with. What users did before the drift stays as it
    was; a recommender that learned from it is wrong about those items afterwards.

    Args:
        env: The environment.
        visits: Visits before the drift.
        share: Of the items that are exchanged, 0 to 1.
        seed: Of which.
    """

    def __init__(self, env: _Env, visits: int, share: float = 0.5, seed: int = 0) -> None:
        check_whole("visits", visits, 0)
        RecordConstructorArgs.__init__(self, visits=visits, share=_share("share", share), seed=seed)
        super().__init__(one_at_a_time(env))
        _refuse_inside(env, TopK, "scores of the catalogue name no items to exchange", "Drift")
        n, rng = _inner(env).dataset.n_items, np.random.default_rng(seed)
        moved = rng.permutation(n)[: int(share * n)]
        self._answered_as, self._shown_as = np.arange(n), np.arange(n)
        self._answered_as[np.sort(moved)] = moved
        self._shown_as[self._answered_as] = np.arange(n)
        self._left = visits + 1

    def reset(self, **options: Any) -> tuple[Observation, dict[str, Any]]:
        """Begin a visit."""
        self._left = max(0, self._left - 1)
        return super().reset(**options)

    @property
    def drifted(self) -> bool:
        """Whether tastes have changed."""
        return self._left == 0

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Show a slate."""
        swaps = self.drifted and self.env.action_space.contains(action)  # of others the step says what is wrong
        observation, reward, left, late, info = super().step(self._answered_as[np.asarray(action)] if swaps else action)
        if not swaps:
            return observation, float(reward), left, late, info
        history, here = observation["history"].copy(), observation["places"] >= 0
        history[here] = self._shown_as[history[here]]
        if info["item"] >= 0:
            info["item"] = int(self._shown_as[info["item"]])
        shown = self._shown_as[observation["slate"]]
        return {**observation, "history": history, "slate": shown}, float(reward), left, late, info


def _refuse_inside(env: _Env, kind: type[_Env], why: str, name: str) -> None:
    """Raise InvalidOption if an environment is wrapped by a kind of wrapper already."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, kind):
            raise InvalidOption(f"{kind.__name__} is inside {name}, where {why}: put {kind.__name__} around {name}")
        env = env.env


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise InvalidOption(f"{name}={value}: wanted a number from 0 to 1")
    return value
