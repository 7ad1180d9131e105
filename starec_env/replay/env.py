"""The Gymnasium environment: one user's feedback stream an episode."""

from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from starec_env.data import load_dataset, prepare
from starec_env.errors import InvalidOption, check_choice, unknown
from starec_env.replay.rewards import position_reward
from starec_env.replay.spaces import Rankings, check_ranking
from starec_env.replay.stream import Reward, Stream, verdict
from starec_env.types import Dataset, Feedback, Id, Indices, Query, Turn

Observation = dict[str, Any]


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

    `info` holds "query" (a Query, all that a ranker may see; None when the stream has ended), "feedback" (a Feedback
    on the action just taken; None after reset), "turn" (0-based number of the turn asked, in the user's whole stream;
    one past the last when it has ended) and "user_id" (the data set's own id).

    ## Starting State
    `reset(options={"user_id": 42})` starts that user's stream; without it the next user's in a random order that the
    seed decides, each user once before any comes again. `reset(seed=s)` decides that order anew, begins it, and also
    decides candidates: they are a pure function of (seed, user, turn), whatever was stepped before. Until then, the
    constructor's `seed` stands.

    ## Rewards
    `reward(rank)` of the true item's 1-based rank, None if it wasn't ranked; by default the paper's position reward
    (4.2.2): +1 at rank 1, +0.5 to 5, 0 to 10, -0.5 to 20, -1 beyond or missing. A disliked target (only with
    `targets="all"`) earns 0.

    ## Episode End
    Terminates after the user's last turn; never truncates.

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
        targets: "liked" asks for liked interactions only; "all" for disliked ones too.
        turns: Keep only the last so many turns of each user; None keeps all.
        min_history: Interactions before the first turn.
        seed: Decides users' order and candidates until `reset` is given another.
        reward: What a rank is worth; a pure function.
        max_history: Most interactions in "history".
        data_dir: Where the files of a named data set lie, if not in the place `load_dataset` looks.
        render_mode: "ansi" makes `render()` return the turn as text; "human" prints each turn.

    Raises:
        UnknownName: If an option, data set or user doesn't exist; the message names the nearest that does.
        InvalidOption: If an option's value can't be used.
    """

    metadata = {"render_modes": ["ansi", "human"], "render_fps": 1}

    def __init__(
        self,
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
        self.observation_space = observation_space(self.stream, self._width)
        self.action_space = Rankings(n_candidates)
        self.render_mode = render_mode
        self._reward = reward
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
        if seed is None and self._order is None:
            seed = self.stream.seed
        super().reset(seed=seed)
        if seed is not None:
            self.stream.seed = seed
            self._order = self.np_random.permutation(self.stream.users)
            self._ahead, self._visited, self._stride = [], 0, 1
        self._episode = self._next_episode(options or {})
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
        self._last = verdict(turn, rank, self._reward)
        self._at += 1
        observation, info = self._answer(episode)
        return observation, self._last[1], self._at == len(episode.turns), False, info

    def render(self) -> str | None:
        """The turn as text a person can read: returned in mode "ansi", printed in mode "human"."""
        if self.render_mode is None:
            gymnasium.logger.warn('nothing to render: make the environment with render_mode="ansi" or "human"')
            return None
        if self._episode is None:
            raise ResetNeeded("there is no turn to render: call reset() first")
        user, turns = int(self._episode.user), self._episode.turns
        query = turns[self._at].query if self._at < len(turns) else None
        text = describe(self.dataset, user, turns[0].number + self._at, query, self._last)
        if self.render_mode == "ansi":
            return text
        print(text)
        return None

    def _next_episode(self, options: dict[str, Any]) -> "_Episode":
        for option in options:
            if option != "user_id":
                raise unknown("reset option", option, ["user_id"])
        if "user_id" in options:
            return _lay_out(self.stream, np.array([user_with_turns(self.stream, options["user_id"])]), self._width)[0]
        if not self._ahead:
            # More users at once the more are asked for, as laying out many costs little more than laying out one.
            assert self._order is not None
            users = self._order.take(np.arange(self._visited, self._visited + self._stride), mode="wrap")
            self._ahead = _lay_out(self.stream, users, self._width)[::-1]
            self._visited, self._stride = self._visited + self._stride, min(16, 2 * self._stride)
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
    cuts = bounds[:-1]
    return [*map(_Episode, users, turns, np.split(histories, cuts), np.split(liked, cuts))]


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


def history_width(dataset: Dataset, max_history: int) -> int:
    """Columns of the observed history; raises InvalidOption if max_history is below 1."""
    if max_history < 1:
        raise InvalidOption(f"max_history is {max_history}: it must be at least 1")
    return min(dataset.longest, max_history)


def observation_space(stream: Stream, width: int) -> spaces.Dict:
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


def check_options(others: dict[str, Any], render_mode: str | None, render_modes: list[str]) -> None:
    """Raise UnknownName for an option that the environment doesn't have, and InvalidOption for a render mode."""
    known = [name for name in signature(UserFeedbackEnv).parameters if name != "others"]
    for name in others:
        raise unknown("environment option", name, known)
    if render_mode is not None:
        check_choice("render_mode", render_mode, render_modes)


def user_with_turns(stream: Stream, user_id: Id) -> int:
    """The index of a user that a stream can step; raises UnknownName, or InvalidOption if the user has no turn."""
    user = stream.dataset.user_index(user_id)
    stream.require(np.array([user]))
    return user


def describe(
    dataset: Dataset, user: int, number: int, query: Query | None, last: tuple[Feedback, float] | None, recent: int = 5
) -> str:
    """A turn as text.

    Args:
        dataset: Where titles come from.
        user: 0-based index of the user.
        number: Of the turn, from 0.
        query: What is asked; None when the stream has ended.
        last: Feedback and reward of the ranking before, if there was one.
        recent: How many interactions of the history to show.
    """
    lines = [f"User {dataset.user(user).id}, turn {number}" if query else f"User {dataset.user(user).id}"]
    if last:
        feedback, reward = last
        title = dataset.items[dataset.item_index(feedback.item_id)].title
        place = f"ranked {feedback.rank}" if feedback.rank else "not ranked"
        lines += [f"Just {_taste(feedback.liked)} {title}, which was {place} (reward {reward:+g})"]
    if not query:
        return "\n".join([*lines, "The stream has ended."])
    history = query.history
    lines += [f"History, the last {min(recent, len(history))} of {len(history)}:"] if history else ["No history."]
    items = dataset.items
    lines += [
        f"  {_taste(past.liked):>8}  {items[dataset.item_index(past.item_id)].title}" for past in history[-recent:]
    ]
    lines += ["Candidates:", *(f"  {position:>8}  {item.title}" for position, item in enumerate(query.candidates))]
    return "\n".join(lines)


def _taste(liked: bool) -> str:
    return "liked" if liked else "disliked"
