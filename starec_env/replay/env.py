"""The Gymnasium environment: one user's feedback stream an episode."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from inspect import signature
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple, Never, TypedDict

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from starec_env.data import load_dataset, prepare
from starec_env.errors import InvalidOption, check_whole, unknown
from starec_env.replay.render import RENDER_MODES, check_render_mode, describe, picture
from starec_env.replay.rewards import position_reward
from starec_env.replay.spaces import Rankings, check_ranking
from starec_env.replay.stream import Reward, Stream, verdict
from starec_env.types import Dataset, Feedback, Id, Indices, Turn

Observation = dict[str, Any]
Split = Literal["train", "test"]
Targets = Literal["liked", "all"]


class EnvOptions(TypedDict, total=False):
    """What both environments are made with beside the data set; `UserFeedbackEnv` says what each option means."""

    n_candidates: int
    split: Split
    targets: Targets
    turns: int | None
    min_history: int
    users: Sequence[Id] | None
    seed: int
    reward: Reward
    max_history: int
    data_dir: str | Path | None


class UserFeedbackEnv(gymnasium.Env[Observation, NDArray[np.int64]]):
    """Rank candidates for a real user, turn after turn, and learn what the user really did.

    ## Description
    An episode replays one user's feedback stream (paper 4.1). At each turn the environment shows what the user has
    done so far and some candidate items: the one the user really took next, and negatives that the user never
    interacted with. The agent orders them; the environment answers with the user's true behaviour and goes on to the
    next turn, the history now grown by the truth and by whatever disliked interactions lay between.

    ## Action Space
    `Rankings(n_candidates)`: distinct candidate positions (0-based), best first, as a list, a tuple or an integer
    array. It may be partial: a true item that is left out has no rank. Anything else raises InvalidRanking.

    ## Observation Space
    A `Dict` of numbers; texts are looked up in the catalogue (`dataset.items[index]`).

    | key          | space                         | meaning                                                     |
    |--------------|-------------------------------|-------------------------------------------------------------|
    | "user"       | `Discrete(users)`             | 0-based index of the user                                   |
    | "history"    | `Box(int32, (H,))`            | catalogue indices of the last H interactions, oldest first  |
    | "feedback"   | `Box(int8, (H,))`             | for each of them 1 liked, 0 disliked                        |
    | "candidates" | `Box(int32, (n_candidates,))` | catalogue indices; all -1 when the stream has ended         |

    "history" and "feedback" are padded by -1 on the right. H is `max_history`, or the length of the longest sequence if
    that is less. No two observations share memory.

    ## Information
    | key        | value                                                                                          |
    |------------|------------------------------------------------------------------------------------------------|
    | "query"    | a Query: all that a ranker may see, as objects with titles; None when the stream has ended      |
    | "feedback" | a Feedback on the action just taken: what the user really did; None after reset                 |
    | "turn"     | 0-based number of the turn asked, in the user's whole stream; one past the last when it ended   |
    | "user_id"  | the data set's own id of the user                                                               |

    It pickles without the data set: a history of 40 interactions and 20 candidates with titles take about 3 KB, a
    longer one 20 to 50 bytes an interaction more.

    ## Starting State
    `reset(options={"user_id": 42})` starts that user's stream; without it the next user's in a random order that the
    seed decides, each user once before any comes again. `reset(seed=s)` decides that order anew, begins it, and also
    decides candidates: they are a pure function of (seed, user, turn), whatever was stepped before. Until then, the
    constructor's `seed` stands.

    ## Rewards
    `reward(rank)` of the true item's 1-based rank, None if it wasn't ranked; by default the paper's position reward
    (4.2.2): +1 at rank 1, +0.5 to 5, 0 to 10, -0.5 to 20, -1 beyond or missing. A disliked target earns 0
    wherever it is ranked.

    ## Episode End
    Terminates after the user's last turn; never truncates.

    ## Other Libraries
    Most libraries for reinforcement learning know no rankings, and no network makes sense of items' indices:
    `starec_env.wrappers` has actions and observations as plain boxes and discrete choices.

    ## Arguments
    ```python
    gymnasium.make("starec/UserFeedback-v0", dataset="ml-latest-small", n_candidates=20, split="train")
    ```

    Args:
        dataset: A name that `load_dataset` knows, prepared with `prepare`'s defaults and loaded once a process; or a
            Dataset, which is used as it is.
        n_candidates: Items to rank at a turn.
        split: "train" stops before each user's held-out last turn, so that nothing learned here has seen what is
            tested; "test" goes on to it.
        targets: "all" asks for every interaction in order, so that an agent learns from what the user disliked too
            (4.1.3); "liked" for liked ones alone.
        turns: Keep only the last so many turns of each user; None keeps all.
        min_history: Interactions before the first turn.
        users: Ids of the users to go through, e.g. those kept for training; None takes all who have a turn.
        seed: A non-negative integer; decides users' order and candidates until `reset` is given another.
        reward: What a rank is worth; a pure function.
        max_history: Most interactions in "history".
        data_dir: Where the files of a named data set lie, if not in the place `load_dataset` looks.
        render_mode: "ansi" makes `render()` return the turn as text, "rgb_array" as a picture, an array of shape
            (height, width, 3) and type uint8, which needs Pillow (the "report" extra); "human" prints each turn.

    Raises:
        UnknownName: If an option, data set or user doesn't exist; the message names the nearest that does.
        InvalidOption: If an option's value can't be used.
        MissingExtra: If pictures are asked for and Pillow isn't installed.

    ## References
    STARec, arXiv 2508.18812: sections 4.1 (streams and feedback), 4.2.2 (reward), 5.1.1 (held-out turns, negatives).

    ## Version History
    * v0: The first.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 1}

    def __init__(
        self,
        dataset: Dataset | str = "ml-latest-small",
        *,
        n_candidates: int = 20,
        split: Split = "train",
        targets: Targets = "all",
        turns: int | None = None,
        min_history: int = 5,
        users: Sequence[Id] | None = None,
        seed: int = 0,
        reward: Reward = position_reward,
        max_history: int = 40,
        data_dir: str | Path | None = None,
        render_mode: str | None = None,
        **others: Never,
    ) -> None:
        check_options(others, render_mode)
        for name, value in (("n_candidates", n_candidates), ("max_history", max_history)):
            check_whole(name, value)
        for name, value in (("min_history", min_history), ("seed", seed)):
            check_whole(name, value, least=0)
        if turns is not None:
            check_whole("turns", turns)
        if not callable(reward):
            raise InvalidOption(f"reward is a {type(reward).__name__}: give a function of the rank, None if not ranked")
        self.dataset = open_dataset(dataset, data_dir)
        self.stream = Stream(
            self.dataset,
            n_candidates=n_candidates,
            seed=int(seed),
            split=split,
            targets=targets,
            turns=turns,
            min_history=min_history,
        )
        self.users = self.stream.users if users is None else np.unique(users_with_turns(self.stream, users))
        """(n,) 0-based indices of the users that a reset goes through, ascending."""
        self.width = min(self.dataset.longest, max_history)
        """Columns of the observed history."""
        self.observation_space = _observation_space(self.stream, self.width)
        self.action_space = Rankings(n_candidates)
        self.render_mode = render_mode
        self.reward = reward
        self._n = n_candidates
        self._order: NDArray[np.int64] | None = None
        self._ahead: list[_Episode] = []
        self._episode: _Episode | None = None
        self._last: tuple[Feedback, float] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start the stream of the user that `options={"user_id": ...}` names, or of the next one in the seeded order.

        Raises:
            UnknownName: If there is no such option or user.
            InvalidOption: If the user has no turn.
        """
        user_id = reset_option(options, "user_id")
        named = None if user_id is None else user_with_turns(self.stream, user_id)
        if seed is None and self._order is None:
            seed = self.stream.seed
        super().reset(seed=seed)
        if seed is not None:
            self.stream.seed = seed
            self._order = self.np_random.permutation(self.users)
            self._ahead, self._visited, self._stride = [], 0, 1
        self._episode = self._next_episode(named)
        self._at, self._last = 0, None
        return self._answer(self._episode)

    def step(
        self, action: NDArray[np.int64] | list[int] | tuple[int, ...]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Rank the candidates; see the class for what comes back.

        Raises:
            InvalidRanking: If the action isn't a ranking; the turn still stands.
            gymnasium.error.ResetNeeded: If the stream has ended, or none was begun.
        """
        if self._episode is None or self._at >= len(self._episode.turns):
            raise ResetNeeded(
                "there is no turn to answer, as the user's stream has ended or none was begun: call reset()"
            )
        episode, turn = self._episode, self._episode.turns[self._at]
        order = check_ranking(action, self._n)
        rank = order.index(turn.target) + 1 if turn.target in order else None
        self._last = verdict(turn, rank, self.reward)
        self._at += 1
        observation, info = self._answer(episode)
        return observation, self._last[1], self._at == len(episode.turns), False, info

    def render(self) -> str | NDArray[np.uint8] | None:
        """The turn as text a person can read, or a picture of it; printed in mode "human"."""
        if self.render_mode is None:
            gymnasium.logger.warn(f"nothing to render: make the environment with a render_mode of {RENDER_MODES}")
            return None
        if self._episode is None:
            raise ResetNeeded("there is no turn to render: call reset() first")
        user, turns = int(self._episode.user), self._episode.turns
        query = turns[self._at].query if self._at < len(turns) else None
        text = describe(self.dataset, user, turns[0].number + self._at, query, self._last)
        if self.render_mode == "human":
            print(text)
            return None
        return text if self.render_mode == "ansi" else picture(text, self._n)

    def _next_episode(self, named: int | None) -> "_Episode":
        if named is not None:
            return _lay_out(self.stream, np.array([named]), self.width)[0]
        if not self._ahead:
            # More users at once the more are asked for, as laying out many costs little more than laying out one.
            assert self._order is not None
            users = self._order.take(np.arange(self._visited, self._visited + self._stride), mode="wrap")
            self._ahead = _lay_out(self.stream, users, self.width)[::-1]
            self._visited, self._stride = self._visited + self._stride, min(32, 2 * self._stride)
        return self._ahead.pop()

    def _answer(self, episode: "_Episode") -> tuple[Observation, dict[str, Any]]:
        at = self._at
        turn = episode.turns[at] if at < len(episode.turns) else None
        observation = {
            "user": episode.user,
            "history": episode.histories[at].copy(),
            "feedback": episode.liked[at].copy(),
            "candidates": turn.query.candidates.indices.copy() if turn else np.full(self._n, -1, np.int32),
        }
        info = {
            "query": turn.query if turn else None,
            "feedback": self._last[0] if self._last else None,
            "turn": episode.turns[0].number + at,
            "user_id": episode.turns[0].query.user.id,
        }
        if self.render_mode == "human":
            self.render()
        return observation, info


class _Episode(NamedTuple):
    user: np.int64
    turns: list[Turn]
    histories: Indices
    """(turns + 1, width), as are the likes: the last is what stands when the stream has ended."""
    liked: NDArray[np.int8]


def _lay_out(stream: Stream, users: NDArray[np.int64], width: int) -> list[_Episode]:
    turns = stream.turns_of(users)
    lengths = [len(mine) + 1 for mine in turns]
    bounds = np.cumsum(lengths)
    index = np.arange(bounds[-1]) + np.repeat(stream.end[users] + 1 - bounds, lengths)
    ended = np.repeat(stream.end[users], lengths) == index
    histories, liked = stream.histories(np.repeat(users, lengths), stream.rows[index - ended] + ended, width)
    cuts = [slice(stop - n, stop) for stop, n in zip(bounds.tolist(), lengths, strict=True)]
    return [
        _Episode(user, mine, histories[cut], liked[cut]) for user, mine, cut in zip(users, turns, cuts, strict=True)
    ]


def open_dataset(dataset: Dataset | str, data_dir: str | Path | None) -> Dataset:
    """The data set itself, or the one of that name, loaded and prepared once a process."""
    if isinstance(dataset, Dataset):
        return dataset
    if isinstance(dataset, str):
        return _load(dataset, data_dir)
    raise InvalidOption(f"dataset is a {type(dataset).__name__}: give a data set's name, or a Dataset")


@lru_cache(maxsize=4)
def _load(name: str, data_dir: str | Path | None) -> Dataset:
    return prepare(load_dataset(name, data_dir))


def _observation_space(stream: Stream, width: int) -> spaces.Dict:
    """The space of `UserFeedbackEnv`'s observations, with a history of `width` columns."""
    last = stream.dataset.n_items - 1
    return spaces.Dict(
        {
            "user": spaces.Discrete(stream.dataset.n_users),
            "history": spaces.Box(-1, last, (width,), np.int32),
            "feedback": spaces.Box(-1, 1, (width,), np.int8),
            "candidates": spaces.Box(-1, last, (stream.n_candidates,), np.int32),
        }
    )


def check_options(
    others: Mapping[str, Any], render_mode: str | None, render_modes: Sequence[str] = RENDER_MODES
) -> None:
    """Raise UnknownName for an option that the environment doesn't have, and InvalidOption for a render mode."""
    known = [name for name in signature(UserFeedbackEnv).parameters if name != "others"]
    for name in others:
        raise unknown("environment option", name, known)
    check_render_mode(render_mode, render_modes)


class Rotation:
    """Users in a random order, whom n environments take in turns: environment i the i-th, the (i + n)-th, and so on.

    When the order ends it begins again.
    """

    def __init__(self, rng: np.random.Generator, users: NDArray[np.int64], n: int = 1) -> None:
        self.order = rng.permutation(users)
        self._next = np.arange(n)

    def take(self, envs: NDArray[np.int64]) -> NDArray[np.int64]:
        """(m,) the next users of (m,) environments."""
        users = self.order[self._next[envs] % len(self.order)]
        self._next[envs] += len(self._next)
        return users


def one_for_each(users: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The users that a reset of n environments names; raises InvalidOption if they aren't as many."""
    if len(users) != n:
        raise InvalidOption(f"user_ids names {len(users)} users for {n} environments: name one for each")
    return users


def reset_option(options: Any, name: str) -> Any:
    """The value of the only option that a reset takes, None where it isn't given.

    Raises:
        InvalidOption: If the options are no dict.
        UnknownName: If there is another among them.
    """
    if options is None:
        return None
    if not isinstance(options, Mapping):
        raise InvalidOption(f"reset's options are a {type(options).__name__}: give a dict, e.g. {{{name!r}: ...}}")
    for option in options:
        if option != name:
            raise unknown("reset option", option, [name])
    if name in options and options[name] is None:
        raise InvalidOption(f"{name} is None: name one, or leave the option out")
    return options.get(name)


def user_with_turns(stream: Stream, user_id: Any) -> int:
    """The 0-based index of a user that a stream can step.

    Raises:
        UnknownName: If there is no such user.
        InvalidOption: If the user has no turn, or what names the user is no id.
    """
    if isinstance(user_id, bool) or not isinstance(user_id, (str, Integral)):
        raise InvalidOption(f"{user_id!r} is a {type(user_id).__name__}, no user's id: give an int or a string")
    user = stream.dataset.user_index(user_id if isinstance(user_id, str) else int(user_id))
    stream.require(np.array([user]))
    return user


def users_with_turns(stream: Stream, user_ids: Any) -> NDArray[np.int64]:
    """`user_with_turns` of several."""
    return np.array([user_with_turns(stream, user_id) for user_id in list_of_ids(user_ids)])


def list_of_ids(user_ids: Any) -> list[Any]:
    """Ids in a list, a tuple or an array, as a list; raises InvalidOption for anything else, or if there are none."""
    if isinstance(user_ids, str) or not isinstance(user_ids, (Sequence, np.ndarray)) or not len(user_ids):
        raise InvalidOption(f"{user_ids!r} are no users: give a list of ids")
    return user_ids.tolist() if isinstance(user_ids, np.ndarray) else [*user_ids]
