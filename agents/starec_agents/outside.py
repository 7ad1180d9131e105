"""A graph that is driven from outside: a foreign loop samples the answers; graph, memory and prompts run unchanged.

    episode = Episode(turns, partial(UserAgent, graph=planner))
    request = episode.start()
    while request is not None:
        request = episode.answer(sample(request.messages))
    episode.steps, episode.rewards

The graph asks a chat model that parks each request until its answer comes; `start` and `answer` return the next one.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from starec_agents.agent import UserAgent, wait_for  # noqa: PLC2701
from starec_agents.llm import ChatModel, Completion, Message
from starec_agents.llm.base import TASK
from starec_agents.runs.rollout import Agent, take_turn
from starec_agents.runs.steps import Step
from starec_env.errors import InvalidOption
from starec_env.types import Turn

_T = TypeVar("_T")


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


class Episode(Session[list[Step]]):
    """A user's turns with an agent whose model is asked outside; or, by `play`, with a chat model.

    Args:
        turns: The user's turns in order.
        agent: Makes the agent, given its model.
        learn_last: Whether the agent learns from the last turn too.

    Attributes:
        rewards: A ranking's reward each (paper 4.2.2), there as soon as it is judged: the reflection on it is asked
            after that.
        steps: Turns that have ended.
    """

    def __init__(
        self, turns: Sequence[Turn], agent: Callable[[ChatModel], Agent] = UserAgent, *, learn_last: bool = True
    ) -> None:
        self.rewards: list[float] = []
        self.steps: list[Step] = []
        self._n = len(turns)
        super().__init__(partial(_play, agent, turns, learn_last, self.steps, self.rewards.append))

    @property
    def mean_reward(self) -> float:
        """The mean over all turns; one without a ranking counts -1, as a ranking without the target does."""
        return (sum(self.rewards) - self._n + len(self.rewards)) / self._n

    async def play(self, llm: ChatModel) -> list[Step]:
        """Go through the turns with a model that answers, once."""
        return await self._work(llm)


async def _play(
    agent: Callable[[ChatModel], Agent],
    turns: Sequence[Turn],
    learn_last: bool,
    steps: list[Step],
    rewarded: Callable[[float], object],
    llm: ChatModel,
) -> list[Step]:
    user = agent(llm)
    for turn in turns:
        steps.append(await take_turn(user, turn, learn_last or turn is not turns[-1], rewarded))
    return steps
