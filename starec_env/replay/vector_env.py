"""Many users' streams stepped at once: `UserFeedbackEnv`'s turns and rewards as arrays."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from starec_env.errors import InvalidOption, unknown
from starec_env.replay.env import (
    check_options,
    describe,
    history_width,
    observation_space,
    open_dataset,
    user_with_turns,
)
from starec_env.replay.rewards import LIKED_CUTOFF, position_reward
from starec_env.replay.spaces import Rankings, ranks_of
from starec_env.replay.stream import Reward, Stream
from starec_env.types import Candidates, Dataset, Feedback, History, Id, Query

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


class UserFeedbackVectorEnv(VectorEnv[dict[str, Any], Any, NDArray[Any]]):
    """`num_envs` users' streams at once, made of arrays only; the same turns and rewards as `UserFeedbackEnv`.

    `gymnasium.make_vec("starec/UserFeedback-v0", num_envs=N, vectorization_mode="vector_entry_point")`; the other
    arguments, the errors, and what an observation holds are `UserFeedbackEnv`'s.

    Actions are an integer array of shape (N, n_candidates), short rankings padded by -1 on the right, or a sequence of
    N rankings. Observations are those of the single environment with a leading axis of N.

    Environment i takes the users i, i + N, i + 2N, ... of the order that a single environment of the same seed takes
    one by one, and begins again when the order ends. `reset(options={"user_ids": [...]})` names the N users to begin
    with. After a stream's end the next step ignores that environment's action, gives reward 0 and begins its next
    user (Gymnasium's NEXT_STEP autoreset).

    `info` holds arrays of shape (N,), each `key` with a mask `_key` of the environments that have it: "turn" and
    "user_id" as in the single environment; and after a step, "target" (catalogue index of what the user really took),
    "rank" (its 1-based rank, 0 when it wasn't ranked) and "liked". `query(i)` and `feedback(i)` make the objects that
    the single environment's info has.

    Rewards are read from a table of all ranks, filled once: `reward` must be a pure function.
    """

    metadata = {"render_modes": ["ansi"], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        dataset: Dataset | str = "ml-latest-small",
        *,
        n_candidates: int = 20,
        split: str = "train",
        targets: str = "liked",
        turns: int | None = None,
        min_history: int = 5,
        seed: int = 0,
        reward: Reward = position_reward,
        max_history: int = 40,
        data_dir: str | Path | None = None,
        render_mode: str | None = None,
        **others: Any,
    ) -> None:
        check_options(others, render_mode, self.metadata["render_modes"])
        if num_envs < 1:
            raise InvalidOption(f"num_envs is {num_envs}: it must be at least 1")
        self.num_envs, self.render_mode = num_envs, render_mode
        self.dataset = open_dataset(dataset, data_dir)
        self.stream = Stream(
            self.dataset,
            n_candidates=n_candidates,
            seed=seed,
            split=split,
            targets=targets,
            turns=turns,
            min_history=min_history,
        )
        self._width = history_width(self.dataset, max_history)
        self.single_observation_space = observation_space(self.stream, self._width)
        self.single_action_space = Rankings(n_candidates)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._worth = np.array([reward(rank or None) for rank in range(n_candidates + 1)], np.float64)
        self._each = np.arange(num_envs)
        self._order: Ints | None = None
        self._visits = self._each

    @cached_property
    def observation_space(self) -> Space[Any]:  # type: ignore[override]
        """The observations' space; made when asked for, as its bounds take 800 bytes an environment."""
        return batch_space(self.single_observation_space, self.num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin a stream in every environment.

        Args:
            seed: One non-negative integer for all: decides the users' order and the candidates.
            options: {"user_ids": [...]} names the users, one for each environment.

        Raises:
            UnknownName: If there is no such option or user.
            InvalidOption: If a user has no turn, or the users named aren't `num_envs`.
        """
        if seed is None and self._order is None:
            seed = self.stream.seed
        super().reset(seed=seed)
        if seed is not None:
            self.stream.seed = seed
            self._order, self._visits = self.np_random.permutation(self.stream.users), self._each.copy()
        named = self._named(options or {})
        self._users = np.zeros(self.num_envs, np.int64)
        self._turn = np.zeros(self.num_envs, np.int64)
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._judged = np.zeros(self.num_envs, np.bool_)
        self._begin(self._each, self._next_users(self._each) if named is None else named)
        return self._observe(), self._info()

    def step(self, actions: Any) -> tuple[dict[str, Any], NDArray[np.float64], Flags, Flags, dict[str, Any]]:
        """Rank the candidates in every environment; see the class for what comes back.

        Raises:
            InvalidRanking: If an action isn't a ranking (the message says whose); every turn still stands.
            gymnasium.error.ResetNeeded: If `reset` was never called.
        """
        if self._order is None:
            raise ResetNeeded("there is no turn to answer: call reset() first")
        starting = self._ended
        ranks = ranks_of(actions, self.stream.n_candidates, self.num_envs, ignore=starting)
        rows = self.stream.rows[self._turn - starting]
        self._target = self.dataset.item_indices[rows]
        self._liked = self.stream.liked[rows] == 1
        self._rank = ranks[self._each, self._places]
        self._judged = ~starting
        self._reward = np.where(self._liked & self._judged, self._worth[self._rank], 0.0)
        self._turn = self._turn + self._judged
        self._ended = self._judged & (self._turn == self.stream.end[self._users])
        again = np.flatnonzero(starting)
        self._begin(again, self._next_users(again))
        return self._observe(), self._reward.copy(), self._ended.copy(), np.zeros_like(self._ended), self._info()

    def query(self, i: int) -> Query | None:
        """What environment i asks now; None when its stream has ended."""
        if self._ended[i]:
            return None
        user = int(self._users[i])
        return Query(
            self.dataset.user(user),
            History(self.dataset, user, int(self.dataset.starts[user]), int(self.stream.rows[self._turn[i]])),
            Candidates(self.dataset.items, self._candidates[i]),
            self.dataset.domain,
        )

    def feedback(self, i: int) -> Feedback | None:
        """What environment i answered to the action just taken; None when it has only begun a stream."""
        if not self._judged[i]:
            return None
        rank = int(self._rank[i]) or None
        return Feedback(
            item_id=self.dataset.items[self._target[i]].id,
            rank=rank,
            predicted_liked=rank is not None and rank <= LIKED_CUTOFF,
            liked=bool(self._liked[i]),
        )

    def render(self) -> tuple[str, ...] | None:
        """Every environment's turn as text, in mode "ansi"."""
        if self.render_mode is None:
            return None
        numbers = self._numbers()
        return tuple(
            describe(self.dataset, int(self._users[i]), int(numbers[i]), self.query(i), self._verdict(i))
            for i in range(self.num_envs)
        )

    def _verdict(self, i: int) -> tuple[Feedback, float] | None:
        feedback = self.feedback(i)
        return (feedback, float(self._reward[i])) if feedback else None

    def _named(self, options: dict[str, Any]) -> Ints | None:
        for option in options:
            if option != "user_ids":
                raise unknown("reset option", option, ["user_ids"])
        ids: Sequence[Id] | None = options.get("user_ids")
        if ids is None:
            return None
        if len(ids) != self.num_envs:
            raise InvalidOption(f"user_ids names {len(ids)} users for {self.num_envs} environments: name one for each")
        return np.array([user_with_turns(self.stream, user_id) for user_id in ids])

    def _next_users(self, envs: Ints) -> Ints:
        assert self._order is not None
        users = self._order[self._visits[envs] % len(self._order)]
        self._visits[envs] += self.num_envs
        return users

    def _begin(self, envs: Ints, users: Ints) -> None:
        self._users[envs] = users
        self._turn[envs] = self.stream.begin[users]

    def _numbers(self) -> Ints:
        return self.stream.numbers(self._users, self._turn)

    def _observe(self) -> dict[str, Any]:
        # An ended stream's index points past its turns: it shows the history up to its last target, and no candidates.
        stream, live = self.stream, np.flatnonzero(~self._ended)
        self._candidates = np.full((self.num_envs, stream.n_candidates), -1, np.int32)
        self._places = np.zeros(self.num_envs, np.int64)
        self._candidates[live], self._places[live] = stream.candidates(self._users[live], self._turn[live])
        stops = stream.rows[self._turn - self._ended] + self._ended
        history, feedback = stream.histories(self._users, stops, self._width)
        return {
            "user": self._users.copy(),
            "history": history,
            "feedback": feedback,
            "candidates": self._candidates.copy(),
        }

    def _info(self) -> dict[str, Any]:
        everyone = np.ones(self.num_envs, np.bool_)
        columns = {"turn": (self._numbers(), everyone), "user_id": (self.dataset.user_ids[self._users], everyone)}
        if self._judged.any():
            answered = {"target": self._target, "rank": self._rank, "liked": self._liked}
            columns |= {key: (column, self._judged) for key, column in answered.items()}
        return {
            name: array.copy()
            for key, (column, mask) in columns.items()
            for name, array in ((key, column), (f"_{key}", mask))
        }
