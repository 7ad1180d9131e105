"""A graph that is driven from outside: a foreign loop samples the answers; graph, memory and prompts run unchanged.

    episode = play_turns(turns, partial(UserAgent, graph=planner))
    request = episode.start()
    while request is not None:
        request = episode.answer(sample(request.messages))
    episode.rewards

The graph asks a chat model that parks each request until its answer comes; `start` and `answer` return the next one.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from starec_agents.agent import UserAgent, wait_for
from starec_agents.llm import ChatModel, Completion, Message
from starec_agents.llm.base import TASK
from starec_agents.runs.rollout import Agent, take_turn
from starec_agents.runs.steps import Step
from starec_env.errors import InvalidOption
from starec_env.replay.stream import feedback_on
from starec_env.types import Candidates, History, Id, Indices, Query, Turn

if TYPE_CHECKING:
    from starec_env.recommend.env import RecommendEnv

_T = TypeVar("_T")
Earn = Callable[[float], object]


@dataclass(frozen=True)
class Request:
    """What a node of a graph asks its model."""

    task: str
    """What for: "rank", "reflect", or as a graph's own node names it."""
    messages: tuple[Message, ...]
    """The whole prompt: a memory that was rewritten is in it, and nothing of earlier requests."""
    sampling: Mapping[str, Any]
    """The agent's sampling options, with the `schema` of an answer that must be JSON; see ChatModel."""


class _Parked:
    """A chat model that parks its requests."""

    model = "outside"

    def __init__(self) -> None:
        self.asked: asyncio.Queue[Request | None] = asyncio.Queue()
        self.answers: deque[asyncio.Future[Completion]] = deque()

    async def complete(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        answer: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        self.asked.put_nowait(Request(TASK.get(), tuple(messages), sampling))
        return await answer


class Session(Generic[_T]):
    """Work that asks a chat model, whose requests are handed out one after another and answered from outside.

    `start` and `answer` are for synchronous code, in a notebook too; `astart` and `aanswer` are the same in an event
    loop, and a session stays with one kind. Requests that are made at once, by parallel branches, come in turn.
    One that is dropped before its end is given up, as by `close`, if its work doesn't refer to it.

    Args:
        work: Begins the work with the model that it shall ask.

    Attributes:
        request: The request that waits for an answer; None before the first and after the last.
    """

    def __init__(self, work: Callable[[ChatModel], Coroutine[Any, Any, _T]]) -> None:
        self._work, self._llm = work, _Parked()
        self._task: asyncio.Task[_T] | None = None
        self.request: Request | None = None

    async def astart(self) -> Request | None:
        """Begin; returns the first request, or None if the work ended without any.

        Raises:
            InvalidOption: It has begun already.
            Exception: Whatever the work raises.
        """
        if self._task is not None:
            raise InvalidOption("this session has begun: make another to begin anew")
        asked = self._llm.asked
        self._task = asyncio.ensure_future(self._work(self._llm))
        self._task.add_done_callback(lambda _: asked.put_nowait(None))
        weakref.finalize(self, _cancel, self._task)
        return await self._next()

    async def aanswer(self, answer: str | Completion) -> Request | None:
        """Answer the request that was returned last; returns the next one, or None when the work has ended.

        Raises:
            InvalidOption: No request waits for an answer.
            Exception: Whatever the work raises.
        """
        if not self._llm.answers or self.ended:
            raise InvalidOption(f"no request waits for an answer: {'it has ended' if self._task else 'call start()'}")
        completion = Completion(text=answer, finish_reason="stop") if isinstance(answer, str) else answer
        self._llm.answers.popleft().set_result(completion)
        return await self._next()

    async def aclose(self) -> None:
        """Give up what has not ended, and wait until it is gone."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def start(self) -> Request | None:
        """`astart` from synchronous code."""
        return wait_for(self.astart())

    def answer(self, answer: str | Completion) -> Request | None:
        """`aanswer` from synchronous code."""
        return wait_for(self.aanswer(answer))

    def close(self) -> None:
        """`aclose` from synchronous code."""
        wait_for(self.aclose())

    @property
    def ended(self) -> bool:
        """Whether the work has ended."""
        return self._task is not None and self._task.done()

    @property
    def result(self) -> _T:
        """What the work returned.

        Raises:
            InvalidOption: It has not ended.
        """
        if self._task is None or not self._task.done():
            raise InvalidOption("there is no result yet: answer requests until None comes")
        return self._task.result()

    async def _next(self) -> Request | None:
        self.request = await self._llm.asked.get()
        if self.request is None:
            assert self._task
            self._task.result()
        return self.request


def _cancel(task: asyncio.Task[Any]) -> None:
    if not task.done() and not task.get_loop().is_closed():
        task.get_loop().call_soon_threadsafe(task.cancel)


class Episode(Session[None]):
    """Work that earns rewards: `play_turns` and `play_visit` make such. `play` does it with a chat model that answers.

    Args:
        work: Begins the work with the model that it shall ask, and calls its other argument with each reward.
        length: How many rewards there can be.
        missing: What counts for each that isn't earned.

    Attributes:
        rewards: There as soon as they are earned: the reflection on a ranking is asked after its reward.
    """

    def __init__(
        self, work: Callable[[ChatModel, Earn], Coroutine[Any, Any, None]], length: int, missing: float
    ) -> None:
        self.rewards: list[float] = []
        self.length, self.missing = length, missing
        earn = self.rewards.append
        super().__init__(lambda llm: work(llm, earn))

    @property
    def mean_reward(self) -> float:
        """The mean over the whole length."""
        return (sum(self.rewards) + self.missing * (self.length - len(self.rewards))) / self.length

    async def play(self, llm: ChatModel) -> None:
        """Do the work with a model that answers, once."""
        await self._work(llm)


def play_turns(
    turns: Sequence[Turn],
    agent: Callable[[ChatModel], Agent] = UserAgent,
    *,
    learn_last: bool = True,
    on_step: Callable[[Step], object] = id,
) -> Episode:
    """A user's turns: the agent ranks, is rewarded (paper 4.2.2), and learns from what the user did.

    Args:
        turns: The user's turns in order.
        agent: Makes the agent, given its model.
        learn_last: Whether the agent learns from the last turn too.
        on_step: Called with each turn's step as it ends.

    Returns:
        The episode; a turn without a ranking counts -1, as a ranking without the target does.
    """

    async def work(llm: ChatModel, earn: Earn) -> None:
        user = agent(llm)
        for turn in turns:
            on_step(await take_turn(user, turn, learn_last or turn is not turns[-1], earn))

    return Episode(work, len(turns), -1.0)


def play_visit(
    env: RecommendEnv,
    user_id: Id,
    agent: Callable[[ChatModel], Agent] = UserAgent,
    *,
    n_candidates: int = 20,
    seed: int = 0,
) -> Episode:
    """A visit of starec/Recommend-v0 with the agent as the recommender of one user.

    At each step it ranks items that the user hasn't met, drawn by popularity; the first of them are the slate, and it
    learns from what the simulated user takes. What it knows of the user it writes into its memory, as a user agent.

    Args:
        env: The environment, which the episode alone uses.
        user_id: Who comes.
        agent: Makes the agent, given its model.
        n_candidates: Items to rank at a step; at least a slate.
        seed: Of the items and of the user's answers.

    Returns:
        The episode; its rewards are the environment's, and a step after the user left counts 0.
    """
    if n_candidates < env.slate_size:
        raise InvalidOption(f"n_candidates={n_candidates}: wanted at least a slate of {env.slate_size}")

    async def work(llm: ChatModel, earn: Earn) -> None:
        recommender, over = agent(llm), False
        env.reset(seed=seed, options={"user_id": user_id})
        index = env.dataset.user_index(user_id)
        history = History(env.dataset, index, int(env.dataset.starts[index]), int(env.responder.stops[index]))
        while not over:
            shown = _retrieved(env, n_candidates, (seed, index, len(history)))
            query = Query(env.dataset.user(index), history, Candidates(env.dataset.items, shown), env.dataset.domain)
            ranking = await recommender.arank(query)
            order = [*ranking.order, *(place for place in range(len(shown)) if place not in ranking.order)]
            _, reward, left, late, info = env.step(shown[order[: env.slate_size]])
            earn(reward)
            over = left or late
            if info["item"] >= 0:
                place, liked = shown.tolist().index(info["item"]), info["rewards"]["likes"] > 0
                stars = info["rewards"]["stars"]
                history = history.extended([info["item"]], [stars], [liked], [history.timestamps[-1] + 1])
                await recommender.alearn(feedback_on(query.candidates[place].id, ranking.rank_of(place), liked, stars))

    return Episode(work, env.horizon, 0.0)


def _retrieved(env: RecommendEnv, n: int, seed: tuple[int, ...]) -> Indices:
    """Catalogue indices of up to n items that may be shown and aren't met, drawn by how many users took them."""
    weights = np.bincount(env.dataset.item_indices, minlength=env.dataset.n_items) * env.action_masks()
    n = min(n, int(np.count_nonzero(weights)))
    drawn = np.random.default_rng(seed).choice(len(weights), n, replace=False, p=weights / weights.sum())
    return drawn.astype(np.int32)
