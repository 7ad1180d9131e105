"""starec in other libraries' loops: verifiers, OpenEnv, inspect_ai, TRL. Each module needs its library alone."""

from __future__ import annotations

from functools import lru_cache, partial
from random import Random
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from starec_agents.agent import UserAgent
from starec_agents.commands import load_graph
from starec_agents.outside import Episode, Request, play_turns, play_visit
from starec_env.data.splits import sample
from starec_env.errors import InvalidOption
from starec_env.recommend.env import RecommendEnv
from starec_env.recommend.twin import Twin, twin_of
from starec_env.replay.env import open_dataset, user_with_turns
from starec_env.replay.stream import Stream
from starec_env.types import Id


class Episodes(BaseModel):
    """Which episodes there are, and by which agent they are played: what each adapter's options are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env: Literal["rank", "recommend"] = "rank"
    """"rank": a user's turns (`play_turns`); "recommend": a user's visit to the agent as recommender (`play_visit`)."""
    dataset: str = "ml-latest-small"
    """A name that `load_dataset` knows."""
    users: int | None = Field(default=None, ge=1)
    """How many users, sampled by `seed`; None for all who have a turn."""
    turns: int | None = Field(default=3, ge=1)
    """The last so many turns of each user; or the most slates of a visit."""
    split: Literal["train", "test"] = "train"
    """"test" goes on to each user's held-out last turn."""
    seed: int = 0
    n_candidates: int = 20
    slate_size: int = 5
    agent: str = "starec"
    """The graph, as `starec simulate --agent` names it: a ready one, or MODULE:FUNCTION."""
    answer_format: str = "paper"
    """"paper", "labels" or "scores"."""

    @property
    def user_ids(self) -> list[Id]:
        """The data set's own ids of the users."""
        stream = self._stream
        n = len(stream.users) if self.users is None else min(self.users, len(stream.users))
        return [stream.dataset.user(int(user)).id for user in sample(stream.users, n, self.seed)]

    def episode(self, user_id: Id) -> Episode:
        """That user's episode, with an agent that is new to the user.

        Raises:
            UnknownName: There is no such user, or no such agent.
        """
        stream = self._stream
        user = user_with_turns(stream, user_id)
        agent = partial(UserAgent, graph=load_graph(self.agent), answer_format=self.answer_format)
        if self.env == "rank":
            return play_turns(stream.turns(user), agent)
        twin, horizon = _twin(self.dataset), self.turns or 50
        env = RecommendEnv(twin.dataset, responder=twin, slate_size=self.slate_size, horizon=horizon)
        return play_visit(env, user_id, agent, n_candidates=self.n_candidates, seed=self.seed)

    @property
    def _stream(self) -> Stream:
        return _open(self.dataset, self.turns, self.split, self.seed, self.n_candidates)


class Player:
    """One episode after another, for frameworks that reset an environment and hand answers to it.

    Attributes:
        episode: The last that was begun; None before the first.
    """

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes
        self.episode: Episode | None = None

    def reset(self, user_id: Id | None = None, seed: int | None = None) -> Request | None:
        """Give up what goes on, and begin that user's episode, or one of a user drawn by the seed, if there is one.

        Returns:
            The first request.
        """
        self.episode = self.episodes.episode(
            Random(seed).choice(self.episodes.user_ids) if user_id is None else user_id
        )
        return self.episode.start()

    def answer(self, text: str) -> tuple[Request | None, float]:
        """Answer the request that waits.

        Returns:
            The next request, None at the end; and what the answer earned: 0 unless it was a ranking.

        Raises:
            InvalidOption: None waits.
        """
        if self.episode is None:
            raise InvalidOption("there is no prompt to answer: reset first")
        judged = len(self.episode.rewards)
        request = self.episode.answer(text)
        return request, sum(self.episode.rewards[judged:])


@lru_cache(maxsize=4)
def _open(dataset: str, turns: int | None, split: Literal["train", "test"], seed: int, n_candidates: int) -> Stream:
    return Stream(open_dataset(dataset, None), turns=turns, split=split, seed=seed, n_candidates=n_candidates)


@lru_cache(maxsize=4)
def _twin(dataset: str) -> Twin:
    return twin_of(open_dataset(dataset, None))
