"""Many users' streams stepped at once: `UserFeedbackEnv`'s turns and rewards as arrays."""

from functools import cached_property
from typing import Any, Unpack

import numpy as np
from gymnasium import Space
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from starec_env.errors import check_whole
from starec_env.replay.env import (
    EnvOptions,
    Rotation,
    UserFeedbackEnv,
    check_options,
    one_for_each,
    reset_option,
    users_with_turns,
)
from starec_env.replay.render import RENDER_MODES, describe, picture
from starec_env.replay.rewards import LIKED_CUTOFF
from starec_env.replay.spaces import ranks_of
from starec_env.replay.stream import Stream, feedback_on
from starec_env.types import Candidates, Dataset, Feedback, History, Indices, Query

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
_MOST_BYTES = 64 * 2**20


class UserFeedbackVectorEnv(VectorEnv[dict[str, Any], Any, NDArray[Any]]):
    """`num_envs` users' streams at once, made of arrays only; the same turns and rewards as `UserFeedbackEnv`.

    `gymnasium.make_vec("starec/UserFeedback-v0", num_envs=N, vectorization_mode="vector_entry_point")`; the options,
    the errors, and what an observation holds are `UserFeedbackEnv`'s.

    ## Action Space
    An integer array of shape (N, n_candidates), short rankings padded by -1 on the right, or a sequence of N rankings.

    ## Observation Space
    That of the single environment with a leading axis of N.

    ## Information
    Arrays of shape (N,), each `key` with a mask `_key` of the environments that have it.

    | key               | value                                                                           |
    |-------------------|---------------------------------------------------------------------------------|
    | "turn", "user_id" | as in the single environment                                                    |
    | "target"          | after a step: catalogue index of what the user really took                      |
    | "rank"            | after a step: its 1-based rank, 0 when it wasn't ranked                         |
    | "predicted_liked" | after a step: whether that rank predicted a like, as in a Feedback              |
    | "liked"           | after a step: whether the user liked it                                         |
    | "query"           | with `queries=True`: the Query, None when the stream has ended                  |

    `query(i)` and `feedback(i)` make the objects that the single environment's info has.

    ## Starting State
    `reset(seed=s)` with one seed for all: environment i takes the users i, i + N, i + 2N, ... of the order in which a
    single environment of seed s takes them, and begins again when the order ends. A pass through the users meets each
    once, whatever N is, and candidates are those of seed s.

    Gymnasium's own vectors of single environments ("sync", "async") give environment i the seed s + i instead, and it
    doesn't know N: each goes through all the users in an order and with candidates of its own, so beyond environment 0
    they show other users. For the same turns in all modes name the users (`options={"user_ids": [...]}` here, one for
    each; `options={"user_id": ...}` there) and give all the same seed (`seed=[s] * N` there).

    ## Episode End
    After a stream's end the next step ignores that environment's action, gives reward 0 and begins its next user
    (Gymnasium's NEXT_STEP autoreset).

    Args:
        num_envs: N.
        dataset: As in the single environment, like all further options.
        queries: Put queries as objects into `info`, which takes longer than the step itself.
        render_mode: "ansi" or "rgb_array" makes `render()` return every environment's turn.
        options: See `UserFeedbackEnv`. Rewards are read from a table of all ranks, filled once.
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
        queries: bool = False,
        render_mode: str | None = None,
        **options: Unpack[EnvOptions],
    ) -> None:
        check_options({}, render_mode, self.metadata["render_modes"])
        check_whole("num_envs", num_envs)
        single = UserFeedbackEnv(dataset, **options)
        self.dataset, self.stream, self.users = single.dataset, single.stream, single.users
        self.num_envs, self.render_mode, self.queries = num_envs, render_mode, queries
        self._width, self._n = single.width, self.stream.n_candidates
        self.single_observation_space, self.single_action_space = single.observation_space, single.action_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._worth = np.array([single.reward(rank or None) for rank in range(self._n + 1)], np.float64)
        self._shown = _Shown(self.stream)
        self._each = np.arange(num_envs)
        self._rotation: Rotation | None = None

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
        user_ids = reset_option(options, "user_ids")
        users = None if user_ids is None else one_for_each(users_with_turns(self.stream, user_ids), self.num_envs)
        if seed is None and self._rotation is None:
            seed = self.stream.seed
        super().reset(seed=seed)
        if seed is not None:
            self.stream.seed = seed
            self._rotation = Rotation(self.np_random, self.users, self.num_envs)
            self._shown = _Shown(self.stream)
        self._users = np.zeros(self.num_envs, np.int64)
        self._turn = np.zeros(self.num_envs, np.int64)
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._judged = np.zeros(self.num_envs, np.bool_)
        self._begin(self._each, users)
        return self._observe(), self._info()

    def step(self, actions: Any) -> tuple[dict[str, Any], NDArray[np.float64], Flags, Flags, dict[str, Any]]:
        """Rank the candidates in every environment; see the class for what comes back.

        Raises:
            InvalidRanking: If an action isn't a ranking (the message says whose); every turn still stands.
            gymnasium.error.ResetNeeded: If `reset` was never called.
        """
        self._needs_reset("answer")
        starting = self._ended
        ranks = ranks_of(actions, self._n, self.num_envs, ignore=starting)
        rows = self.stream.rows[self._turn - starting]
        self._target = self.dataset.item_indices[rows]
        self._liked, self._rating = self.dataset.liked[rows], self.dataset.ratings[rows]
        self._rank = ranks[self._each, self._places]
        self._judged = ~starting
        self._reward = np.where(self._liked & self._judged, self._worth[self._rank], 0.0)
        self._turn = self._turn + self._judged
        self._ended = self._judged & (self._turn == self.stream.end[self._users])
        again = np.flatnonzero(starting)
        self._begin(again)
        return self._observe(), self._reward.copy(), self._ended.copy(), np.zeros_like(self._ended), self._info()

    def query(self, i: int) -> Query | None:
        """What environment i asks now; None when its stream has ended."""
        self._needs_reset("query")
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
        self._needs_reset("answer")
        if not self._judged[i]:
            return None
        item, rank = self.dataset.items[self._target[i]], int(self._rank[i]) or None
        return feedback_on(item.id, rank, bool(self._liked[i]), float(self._rating[i]))

    def render(self) -> tuple[Any, ...] | None:
        """Every environment's turn, as text or as a picture."""
        if self.render_mode is None:
            return None
        self._needs_reset("render")
        numbers = self._numbers()
        texts = [
            describe(
                self.dataset,
                int(self._users[i]),
                int(numbers[i]),
                self.query(i),
                (feedback, float(self._reward[i])) if (feedback := self.feedback(i)) else None,
            )
            for i in range(self.num_envs)
        ]
        return tuple(texts if self.render_mode == "ansi" else [picture(text, self._n) for text in texts])

    def _needs_reset(self, what: str) -> None:
        if self._rotation is None:
            raise ResetNeeded(f"there is no turn to {what}: call reset() first")

    def _begin(self, envs: Ints, users: Ints | None = None) -> None:
        assert self._rotation
        users = self._rotation.take(envs) if users is None else users
        self._users[envs] = users
        self._turn[envs] = self.stream.begin[users]

    def _numbers(self) -> Ints:
        return self.stream.numbers(self._users, self._turn)

    def _observe(self) -> dict[str, Any]:
        # An ended stream's index points past its turns: it shows the history up to its last target, and no candidates.
        stream, ended = self.stream, self._ended
        last = self._turn - ended
        self._candidates, self._places = self._shown.at(self._users, last)
        self._candidates[ended] = -1
        history, feedback = stream.histories(self._users, stream.rows[last] + ended, self._width)
        return {
            "user": self._users.copy(),
            "history": history,
            "feedback": feedback,
            "candidates": self._candidates.copy(),
        }

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"turn": self._numbers(), "user_id": self.dataset.user_ids[self._users]}
        if self.queries:
            info["query"] = np.fromiter(map(self.query, range(self.num_envs)), object, self.num_envs)
        info |= {f"_{key}": np.ones(self.num_envs, np.bool_) for key in info}
        if self._judged.any():
            predicted = (self._rank > 0) & (self._rank <= LIKED_CUTOFF)
            columns: tuple[NDArray[Any], ...] = (self._target, self._rank, predicted, self._liked)
            for key, column in zip(("target", "rank", "predicted_liked", "liked"), columns, strict=True):
                info[key], info[f"_{key}"] = column.copy(), self._judged.copy()
        return info


class _Shown:
    """The candidates of a stream's turns under one seed, each turn's made once where they all find room."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        n_turns = len(stream.rows) if len(stream.rows) * 4 * stream.n_candidates <= _MOST_BYTES else 0
        self._candidates = np.empty((n_turns, stream.n_candidates), np.int32)
        self._places = np.full(n_turns, -1, np.int64)

    def at(self, users: Ints, index: Ints) -> tuple[Indices, Ints]:
        """`Stream.candidates`; no row of the result is shared with another call's."""
        if not len(self._places):
            return self._stream.candidates(users, index)
        places = self._places[index]
        if (new := np.flatnonzero(places < 0)).size:
            turns = index[new]
            self._candidates[turns], self._places[turns] = self._stream.candidates(users[new], turns)
            places = self._places[index]
        return self._candidates[index], places
