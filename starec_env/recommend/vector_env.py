"""Many visits stepped at once: `RecommendEnv`'s answers and rewards as arrays."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Unpack

import numpy as np
from gymnasium import Space
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from starec_env.dataset import Dataset
from starec_env.errors import check_whole
from starec_env.recommend.env import RecommendEnv, RecommendOptions, users_of
from starec_env.recommend.responses import NOTHING, Responses
from starec_env.recommend.sessions import REWARDS, Sessions
from starec_env.recommend.slates import Slates
from starec_env.replay.env import Rotation, one_for_each, reset_option
from starec_env.replay.render import RENDER_MODES, check_render_mode, describe_visit, picture

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


class RecommendVectorEnv(VectorEnv[dict[str, Any], Any, NDArray[Any]]):
    """`num_envs` visits at once, made of arrays only; the same answers and rewards as `RecommendEnv`.

    `gymnasium.make_vec("starec/Recommend-v0", num_envs=N, vectorization_mode="vector_entry_point")`; the options, the
    errors, and what an observation holds are `RecommendEnv`'s.

    ## Action Space
    An integer array of shape (N, slate_size).

    ## Information
    Arrays with a first axis of N, each `key` with a mask `_key` of the environments that have it: "user_id" and each
    trait by its name, and after a step "item" (-1 for none), "seen", "left", each reward by its name, and "said" and
    "problem" where users write.

    ## Starting State
    `reset(seed=s)` with one seed for all: environment i takes the users i, i + N, i + 2N, ... of the order in which a
    single environment of seed s takes them. `options={"user_ids": [...]}` names one for each.

    ## Episode End
    After a visit's end the next step ignores that environment's action, gives reward 0 and begins its next user's
    (Gymnasium's NEXT_STEP autoreset).

    Args:
        num_envs: N.
        dataset: As in the single environment, like all further options.
        render_mode: "ansi" or "rgb_array" makes `render()` return every environment's visit.
        options: See `RecommendEnv`.
    """

    metadata = {
        "render_modes": [mode for mode in RENDER_MODES if mode != "human"],
        "render_fps": 1,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        dataset: Dataset | str = "ml-latest-small",
        *,
        render_mode: str | None = None,
        **options: Unpack[RecommendOptions],
    ) -> None:
        check_render_mode(render_mode, self.metadata["render_modes"])
        check_whole("num_envs", num_envs)
        self._single = RecommendEnv(dataset, **options)
        self.dataset, self.num_envs, self.render_mode = self._single.dataset, num_envs, render_mode
        self.single_observation_space = self._single.observation_space
        self.single_action_space = self._single.action_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._each = np.arange(num_envs)
        self._rotation: Rotation | None = None

    @cached_property
    def observation_space(self) -> Space[Any]:  # type: ignore[override]
        """The observations' space; made when asked for."""
        return batch_space(self.single_observation_space, self.num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin a visit in every environment.

        Args:
            seed: One non-negative integer for all: decides the users' order and their answers.
            options: {"user_ids": [...]} names the users, one for each environment.

        Raises:
            UnknownName: There is no such option or user.
            InvalidOption: The users named aren't `num_envs`.
        """
        user_ids = reset_option(options, "user_ids")
        users = None if user_ids is None else one_for_each(users_of(self.dataset, user_ids), self.num_envs)
        if seed is None and self._rotation is None:
            seed = self._single.seed
        super().reset(seed=seed)
        if seed is not None:
            self._sessions: Sessions = self._single.sessions(self.num_envs, seed)
            self._rotation = Rotation(self.np_random, self._single.users, self.num_envs)
            self._visits = np.zeros(self.dataset.n_users, np.int64)
        self._begin(self._each, users)
        self._over = np.zeros(self.num_envs, np.bool_)
        return self._answer(None, self._over)

    def step(self, actions: Any) -> tuple[dict[str, Any], NDArray[np.float64], Flags, Flags, dict[str, Any]]:
        """Show a slate in every environment; see the class for what comes back.

        Raises:
            InvalidSlate: An action isn't a slate (the message says whose); the step can be taken again.
            gymnasium.error.ResetNeeded: `reset` was never called.
        """
        if self._rotation is None:
            raise ResetNeeded("there is nobody to recommend to: call reset() first")
        over = self._over
        assert isinstance(self.action_space, Slates)
        slates = self.action_space.check(actions, skip=over)
        rows = np.flatnonzero(~over) if over.any() else self._each
        given = self._sessions.show(rows, slates[rows])
        again = np.flatnonzero(over)
        self._begin(again)
        given = given if len(rows) == self.num_envs else _spread(given, rows, self.num_envs)
        late = (self._sessions.step >= self._single.horizon) & ~over & ~given.left
        self._over = given.left | late
        observation, info = self._answer(given, ~over)
        return observation, info[self._single.reward].copy(), given.left.copy(), late, info

    def render(self) -> tuple[Any, ...] | None:
        """Every environment's last step, as text or as a picture."""
        if self.render_mode is None:
            return None
        if self._rotation is None:
            raise ResetNeeded("there is no visit to render: call reset() first")
        observation, info = self._last
        texts = []
        for i in range(self.num_envs):
            mine = {name: column[i] for name, column in observation.items()}
            known = {
                name: info[name][i] for name in ("user_id", "left", *REWARDS) if name in info and info[f"_{name}"][i]
            }
            known |= {"rewards": {name: known[name] for name in REWARDS}} if "left" in known else {}
            texts.append(describe_visit(self.dataset, mine, known))
        return tuple(texts if self.render_mode == "ansi" else [picture(t, self._single.slate_size) for t in texts])

    def _begin(self, envs: Ints, users: Ints | None = None) -> None:
        assert self._rotation
        users = self._rotation.take(envs) if users is None else users
        visits = self._visits[users]
        order = np.argsort(users, kind="stable")  # a user may come to several environments at once
        ordered = users[order]
        visits[order] += np.arange(len(users)) - np.searchsorted(ordered, ordered)
        np.add.at(self._visits, users, 1)
        self._sessions.begin(envs, users, visits)

    def _answer(self, given: Responses | None, stepped: Flags) -> tuple[dict[str, Any], dict[str, Any]]:
        observation = self._sessions.observe()
        known = {"user_id": self.dataset.user_ids, **vars(self._single.traits)}
        info: dict[str, Any] = {name: column[observation["user"]] for name, column in known.items()}
        info |= {f"_{name}": np.ones(self.num_envs, np.bool_) for name in known}
        if given is not None:
            places = np.maximum(given.taken, 0)
            items = np.where(given.taken >= 0, observation["slate"][self._each, places], NOTHING)
            found: dict[str, Any] = {"item": items, "seen": given.seen, "left": given.left}
            found |= dict(zip(REWARDS, np.where(stepped, self._sessions.rewards(given, self._over), 0.0), strict=True))
            found |= {name: np.array(texts, object) for name, texts in _texts(given) if texts}
            info |= found | {f"_{name}": stepped.copy() for name in found}
        self._last = observation, info
        return observation, info


def _texts(given: Responses) -> list[tuple[str, tuple[str, ...]]]:
    return [("said", given.said), ("problem", given.problems)]


def _spread(given: Responses, rows: Ints, n: int) -> Responses:
    """Answers at some rows as answers at all of n, nothing at the others."""

    def spread(values: NDArray[Any], fill: Any) -> NDArray[Any]:
        full = np.full((n, *values.shape[1:]), fill, values.dtype)
        full[rows] = values
        return full

    said, problems = (tuple(spread(np.array(texts, object), "")) if texts else () for _, texts in _texts(given))
    return Responses(
        spread(given.seen, False),
        spread(given.taken, NOTHING),
        spread(given.stars, np.nan),
        spread(given.liked, False),
        spread(given.left, False),
        said,
        problems,
    )
