"""The Gymnasium environment of a recommender: simulated users look at its slates, take, rate, tire and leave."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, Literal, Never, TypedDict

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from starec_env.dataset import Dataset, Id
from starec_env.errors import InvalidOption, check_choice, check_whole, unknown
from starec_env.recommend.responses import NOTHING, Responder, Responses, check_responder
from starec_env.recommend.sessions import REWARDS, Sessions, observation_space
from starec_env.recommend.slates import Slates
from starec_env.recommend.traits import Traits, traits_of
from starec_env.recommend.twin import twin_of
from starec_env.replay.env import Rotation, list_of_ids, open_dataset, reset_option
from starec_env.replay.render import RENDER_MODES, check_render_mode, describe_visit, picture

Reward = Literal["clicks", "likes", "stars", "stay", "return"]
Observation = dict[str, Any]


class RecommendOptions(TypedDict, total=False):
    """What both environments are made with beside the data set; `RecommendEnv` says what each option means."""

    slate_size: int
    horizon: int
    responder: Responder | Literal["twin"]
    reward: Reward
    users: Sequence[Id] | None
    candidates: Sequence[Id] | NDArray[np.bool_] | None
    max_history: int
    seed: int
    data_dir: str | Path | None


class RecommendEnv(gymnasium.Env[Observation, NDArray[np.int64]]):
    """Recommend items to a simulated user, slate after slate, until the user leaves.

    ## Description
    An episode is one visit of one user, who knows what the user of the log knew (all interactions before the held-out
    last liked one). At each step the recommender shows a slate; the user looks at the first places of it, takes one
    item or none, rates what was taken, and leaves or stays. By default the user is the statistical twin fitted on the
    data set; `responder` puts others in its place. How far to trust them, their card says (`starec fidelity`).

    ## Action Space
    `Slates(n_items, slate_size)`: distinct 0-based catalogue indices, best place first; with `slate_size=1` an index
    alone does. An item that the user has met may be shown; the twin never takes one. Anything else raises InvalidSlate,
    and the step can be taken again.

    ## Observation Space
    A `Dict` of what a recommender could know, in numbers; texts are looked up in the catalogue.

    | key       | space                   | meaning                                                      |
    |-----------|-------------------------|--------------------------------------------------------------|
    | "user"    | `Discrete(users)`       | 0-based index of the user                                    |
    | "history" | `Box(int32, (H,))`      | catalogue indices of the last H interactions, oldest first   |
    | "ratings" | `Box(float32, (H,))`    | the rating of each, 0 where there is none                    |
    | "places"  | `Box(int32, (H,))`      | 0-based place from which each was taken; -1 before the visit |
    | "ages"    | `Box(int32, (H,))`      | how many steps ago each was taken; -1 before the visit       |
    | "slate"   | `Box(int64, (k,))`      | the slate shown last; -1 before the first                    |
    | "taken"   | `Discrete(k + 1, -1)`   | the place taken from it; -1 for none                         |
    | "step"    | `Discrete(horizon + 1)` | slates shown in this visit                                   |

    "history" is padded by -1 on the right, and the columns beside it. H is `max_history`.

    ## Information
    | key            | value                                                                                |
    |----------------|--------------------------------------------------------------------------------------|
    | "user_id"      | the data set's own id of the user                                                    |
    | "demographics" | what the data set says of the user, as text                                          |
    | "traits"       | activity, pickiness, conformity and diversity as ranks among the users, 0 to 1       |
    | "item"         | after a step: catalogue index of the item taken, -1 for none                         |
    | "seen"         | after a step: (k,) whether the user looked at each place                             |
    | "rewards"      | after a step: all rewards by name                                                    |
    | "left"         | after a step: whether the user left                                                  |
    | "said"         | after a step: what the user told the recommender, where users say anything           |
    | "problem"      | after a step: what was wrong with an agent's answer, "" for nothing                  |

    ## Starting State
    `reset(options={"user_id": 42})` begins a visit of that user; without it of the next one in a random order that the
    seed decides, each once before any comes again. Every visit begins with the data set's history. All that is drawn is
    a function of the seed, the user, how often the user has come since the seed was set, and the step.

    ## Rewards
    "clicks" 1 for an item taken; "likes" 1 for one that is liked; "stars" the rating given, 0 for none; "stay" 1 unless
    the user leaves after the step, so that the sum is the visit's length less one; "return" 1 at the visit's end
    if the user comes back within a day. Of that the log says how many sittings another one follows within a day, users'
    last ones aside, which makes too many; that a good mood at the end makes it likelier is declared, not fitted. Agents
    and the log don't say it: then it is NaN at the end, and can't be the reward.

    ## Episode End
    Terminates when the user leaves; truncates after `horizon` steps.

    ## Arguments
    ```python
    gymnasium.make("starec/Recommend-v0", dataset="ml-latest-small", slate_size=10, reward="likes")
    ```

    Args:
        dataset: A name that `load_dataset` knows, prepared with `prepare`'s defaults; or a Dataset, as it is.
        slate_size: Items of a slate, k.
        horizon: Most steps of a visit.
        responder: "twin", or any `Responder` of this data set, whose `dataset` is then taken if none is given.
        reward: The name of a reward.
        users: Ids of the users who come; None: all.
        candidates: Ids of the items that may be shown, or a mask of shape (n_items,); None: all.
        max_history: H.
        seed: A non-negative integer; decides users' order and answers until `reset` is given another.
        data_dir: Where the files of a named data set lie, if not in the place `load_dataset` looks.
        render_mode: "ansi" makes `render()` return the visit as text, "rgb_array" as a picture, which needs Pillow (the
            "report" extra); "human" prints each step.

    Raises:
        UnknownName: An option, reward, user or item doesn't exist; with the nearest that does.
        InvalidOption: A value can't be used: fewer items may be shown than a slate has, or the responder is of other
            data.
        MissingExtra: Pictures are asked for and Pillow isn't installed.

    ## References
    Slates, an outside option and a user who tires are as in RecSim (Ie et al. 2019, arXiv 1909.04847); the twin's own
    model is described in `starec_env.recommend.twin`.

    ## Version History
    * v0: The first.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 1}

    def __init__(
        self,
        dataset: Dataset | str = "ml-latest-small",
        *,
        slate_size: int = 10,
        horizon: int = 50,
        responder: Responder | Literal["twin"] = "twin",
        reward: Reward = "likes",
        users: Sequence[Id] | None = None,
        candidates: Sequence[Id] | NDArray[np.bool_] | None = None,
        max_history: int = 40,
        seed: int = 0,
        data_dir: str | Path | None = None,
        render_mode: str | None = None,
        **others: Never,
    ) -> None:
        for name in others:
            raise unknown("environment option", name, [*signature(RecommendEnv).parameters][:-1])
        check_render_mode(render_mode)
        sizes = {"slate_size": slate_size, "horizon": horizon, "max_history": max_history}
        for name, value in sizes.items():
            check_whole(name, value)
        check_whole("seed", seed, 0)
        check_choice("reward", reward, [*REWARDS])
        self.dataset = open_dataset(dataset, data_dir)
        self.responder = _responder(responder, self.dataset)
        if reward == "return" and not hasattr(self.responder.open(1), "returns"):
            raise InvalidOption(
                f"reward='return' needs users who come back or don't, as the twin's do: {self.responder!r} doesn't say"
            )
        self.users = np.arange(self.dataset.n_users) if users is None else users_of(self.dataset, users)
        self.allowed = _allowed(self.dataset, candidates, slate_size)
        self.slate_size, self.horizon, self.reward, self.seed = slate_size, horizon, reward, seed
        self.max_history, self.render_mode = max_history, render_mode
        self._slates = self.action_space = Slates(self.dataset.n_items, slate_size, self.allowed)
        self.observation_space = observation_space(self.dataset, max_history, slate_size, horizon)
        self._rotation: Rotation | None = None
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin a visit.

        Args:
            seed: Decides the users' order and their answers anew.
            options: {"user_id": ...} names the user.

        Raises:
            UnknownName: There is no such option or user.
        """
        user_id = reset_option(options, "user_id")
        named = None if user_id is None else self.dataset.user_index(user_id)
        if seed is None and self._rotation is None:
            seed = self.seed
        super().reset(seed=seed)
        if seed is not None:
            self._sessions = self.sessions(1, seed)
            self._rotation = Rotation(self.np_random, self.users)
            self._visits = np.zeros(self.dataset.n_users, np.int64)
        assert self._rotation
        self._begin(int(self._rotation.take(_ROW)[0]) if named is None else named)
        return self._answer(None)

    @cached_property
    def traits(self) -> Traits:
        """What kind of user each is, by the rows that a recommender knows at the beginning."""
        return traits_of(self.dataset, self.responder.stops)

    def sessions(self, n: int, seed: int) -> Sessions:
        """Room for n users under a seed."""
        return Sessions(self.responder, n, seed, self.max_history, self.slate_size)

    def _begin(self, user: int) -> None:
        self._user, self._taken, self._over = user, list[int](), False
        self._sessions.begin(_ROW, np.array([user]), self._visits[[user]])
        self._visits[user] += 1
        known = self.dataset.user(user)
        traits = {name: float(ranks[user]) for name, ranks in vars(self.traits).items()}
        self._about: dict[str, Any] = {
            "user_id": known.id,
            "demographics": dict(known.demographics),
            "traits": traits,
        }

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Show a slate; see the class for what comes back.

        Raises:
            InvalidSlate: The action isn't a slate; the step can be taken again.
            gymnasium.error.ResetNeeded: The visit has ended, or none was begun.
        """
        if self._over:
            raise ResetNeeded("there is nobody to recommend to, as the user has left or none came: call reset()")
        given = self._sessions.show(_ROW, self._slates.check(action))
        left, late = bool(given.left[0]), bool(self._sessions.step[0] >= self.horizon)
        self._over = left or late
        observation, info = self._answer(given)
        if info["item"] >= 0:
            self._taken.append(info["item"])
        return observation, info["rewards"][self.reward], left, late and not left, info

    def _answer(self, given: Responses | None) -> tuple[Observation, dict[str, Any]]:
        observation = {name: column[0] for name, column in self._sessions.observe().items()}
        about = self._about
        info: dict[str, Any] = about | {name: about[name].copy() for name in ("demographics", "traits")}
        if given is not None:
            place, paid = int(given.taken[0]), self._sessions.rewards(given, _OVER[int(self._over)])
            info |= {
                "item": NOTHING if place < 0 else int(observation["slate"][place]),
                "seen": given.seen[0],
                "rewards": dict(zip(REWARDS, paid[:, 0].tolist(), strict=True)),
                "left": bool(given.left[0]),
                "said": given.said[0] if given.said else "",
                "problem": given.problems[0] if given.problems else "",
            }
        self._last = observation, info
        if self.render_mode == "human":
            self.render()
        return observation, info

    def action_masks(self) -> NDArray[np.bool_]:
        """(n_items,) whether each item may be shown and isn't met yet; raises ResetNeeded before the first visit."""
        if self._rotation is None:
            raise ResetNeeded("nobody has met anything yet: call reset() first")
        fresh = np.ones(self.dataset.n_items, np.bool_) if self.allowed is None else self.allowed.copy()
        fresh[self.dataset.item_indices[self.dataset.indptr[self._user] : self.responder.stops[self._user]]] = False
        fresh[self._taken] = False
        return fresh

    def render(self) -> str | NDArray[np.uint8] | None:
        """The last step as text a person can read, or a picture of it; printed in mode "human"."""
        if self.render_mode is None:
            gymnasium.logger.warn(f"nothing to render: make the environment with a render_mode of {RENDER_MODES}")
            return None
        if self._rotation is None:
            raise ResetNeeded("there is no visit to render: call reset() first")
        text = describe_visit(self.dataset, *self._last)
        if self.render_mode == "human":
            print(text)
            return None
        return text if self.render_mode == "ansi" else picture(text, self.slate_size)


_ROW = np.zeros(1, np.int64)
_OVER = np.array([[False], [True]])


def _responder(responder: Any, dataset: Dataset) -> Responder:
    if isinstance(responder, str):
        check_choice("responder", responder, ["twin"])
        return twin_of(dataset)
    check_responder(responder)
    if responder.dataset.hash != dataset.hash:
        raise InvalidOption(
            f"the responder's users are those of {responder.dataset!r} (hash {responder.dataset.hash}), not of "
            f"{dataset!r} (hash {dataset.hash}): fit one on this data set, or give that one as dataset="
        )
    found: Responder = responder
    return found


def users_of(dataset: Dataset, users: Any) -> NDArray[np.int64]:
    """0-based indices of users given by their ids."""
    return np.array([dataset.user_index(user_id) for user_id in list_of_ids(users)])


def _allowed(dataset: Dataset, candidates: Any, slate_size: int) -> NDArray[np.bool_] | None:
    if candidates is None:
        mask = np.ones(dataset.n_items, np.bool_)
    elif isinstance(candidates, np.ndarray) and candidates.dtype == np.bool_:
        if candidates.shape != (dataset.n_items,):
            raise InvalidOption(f"candidates is a mask of shape {candidates.shape}: wanted ({dataset.n_items},)")
        mask = candidates.copy()
    else:
        mask = np.zeros(dataset.n_items, np.bool_)
        mask[[dataset.item_index(item_id) for item_id in list_of_ids(candidates)]] = True
    if mask.sum() < slate_size:
        raise InvalidOption(f"slate_size is {slate_size}, but only {mask.sum()} items may be shown: lower it")
    return None if candidates is None else mask
