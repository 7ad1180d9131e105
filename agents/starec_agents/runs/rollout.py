"""Users on their way through their streams: the loop that a run does itself, or each of its workers on a share."""

from __future__ import annotations

import asyncio
import gc
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from starec_agents.agent import all_of
from starec_agents.llm.base import Call
from starec_agents.memory import Memory
from starec_agents.runs.lines import encodable
from starec_agents.runs.reading import Failure, Index
from starec_agents.runs.records import Turns
from starec_agents.runs.steps import Step
from starec_agents.runs.store import Shard, UserRecord
from starec_env.errors import EndpointError, RunError
from starec_env.replay.stream import judge
from starec_env.types import Feedback, Id, Query, Ranking, Turn

_REPORT_EVERY_S = 0.2
_MOST_MESSAGE, _MOST_TRACEBACK = 2_000, 4_000


class Agent(Protocol):
    """What a population needs of an agent; `UserAgent` has it, and so may any class of yours.

    One with more to keep than its memory may have a property `own_state`, a mapping of JSON types: it is recorded after
    each turn, and set on an agent that goes on with a recorded user.
    """

    memory: Memory | None
    """None until the first ranking."""
    calls: list[Call]
    """Requests made for the current turn."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What makes the agent itself: at least "model" and "graph"; recorded, and compared on resuming."""
        ...

    async def arank(self, query: Query) -> Ranking:
        """Rank the candidates (fast thinking)."""
        ...

    async def alearn(self, feedback: Feedback) -> Memory:
        """Learn from what the user really did (slow thinking); returns the new memory."""
        ...


@dataclass(slots=True)
class News:
    """What has happened since the last news."""

    steps: int = 0
    tokens: int = 0
    users: int = 0
    """Users that are done or have failed."""
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Share:
    """The users that one process runs, and what it has to know of them."""

    users: Sequence[int]
    """0-based indices, in the order they are begun."""
    path: Path
    """The file of steps that it writes."""
    recorded: Index
    """What is on record of them."""
    memories: Mapping[Id, Memory] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """Runs users, `concurrency` at a time, each at its own pace; a user that fails leaves the others alone."""

    stream: Turns
    agent: Callable[[], Agent]
    concurrency: int
    learn_last: bool = True
    on_step: Callable[[Step], object] | None = None

    async def run(self, share: Share, tell: Callable[[News], object]) -> None:
        """Run a share's users and write their steps.

        Args:
            share: The users.
            tell: Called with the news a few times a second, and at the end.

        Raises:
            RunError: A step can't be written, or `concurrency` users (at least 8) in a row failed.
        """
        run = _Run(self, share, tell)
        waiting = iter(share.users)
        try:
            with _rarer_collection():
                await all_of(run.lane(waiting) for _ in range(min(self.concurrency, len(share.users))))
        finally:
            run.shard.close()
            tell(run.news)


@contextmanager
def _rarer_collection() -> Iterator[None]:
    """Look for cyclic garbage after 10,000 new objects instead of 700, of which a graph makes a thousand a turn.

    Looking through the users in flight that often takes a fifth of a turn's CPU time.
    """
    before = gc.get_threshold()
    gc.set_threshold(10_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


async def close(agent: Callable[[], Agent]) -> None:
    """Close the models' clients, where they have one: they belong to one event loop, and that ends."""
    made = agent()
    for llm in (getattr(made, "llm", None), *getattr(made, "models", {}).values()):
        aclose = getattr(llm, "aclose", None)
        if aclose is not None:
            await aclose()


class _Run:
    def __init__(self, rollout: Rollout, share: Share, tell: Callable[[News], object]) -> None:
        self.rollout, self.share, self.tell = rollout, share, tell
        self.shard, self.news = Shard(share.path, share.recorded), News()
        self.reported, self.failed_in_a_row = time.monotonic(), 0

    @property
    def hopeless(self) -> bool:
        """Whether so many users in a row failed that the others would too."""
        return self.failed_in_a_row >= max(8, self.rollout.concurrency)

    async def lane(self, waiting: Iterator[int]) -> None:
        for user in waiting:
            await asyncio.sleep(0)  # a model that answers at once would never let other users, or Ctrl-C, through
            if self.hopeless:
                return
            await self.run_user(self.rollout.stream.turns(user))

    async def run_user(self, turns: Sequence[Turn]) -> None:
        user_id = turns[0].query.user.id
        record = self.shard.user(user_id, [turn.number for turn in turns])
        agent = self.rollout.agent()
        agent.memory = record.memory or self.share.memories.get(user_id)
        if record.state:
            agent.own_state = record.state  # type: ignore[attr-defined]  # what was recorded of it, it has
        turn = turns[0]
        try:
            for turn in turns[record.done :]:
                await asyncio.sleep(0)  # nor other users, or Ctrl-C, between two turns
                learns = self.rollout.learn_last or turn is not turns[-1]
                self.record(record, await take_turn(agent, turn, learns))
        except RunError:
            raise
        except Exception as error:
            self.fail(user_id, turn.number, error, agent.calls)
        self.news.users += 1
        self.tell_at_times()

    def record(self, record: UserRecord, step: Step) -> None:
        record.append(step)
        self.failed_in_a_row = 0
        self.news.steps += 1
        self.news.tokens += sum(call.usage.prompt_tokens + call.usage.completion_tokens for call in step.calls)
        if self.rollout.on_step:
            self.rollout.on_step(step)
        self.tell_at_times()

    def fail(self, user_id: Id, turn: int, error: Exception, calls: Sequence[Call]) -> None:
        failure = _failure(user_id, turn, error, calls)
        self.news.failures.append(failure)
        self.failed_in_a_row += 1
        if self.hopeless:
            raise RunError(
                f"{self.failed_in_a_row} users in a row failed, the last with: {failure.message}. What was done is "
                f"kept in {self.share.path.parent}; remove the cause and go on with resume=True (--resume)"
            )

    def tell_at_times(self) -> None:
        if time.monotonic() - self.reported > _REPORT_EVERY_S:
            news, self.news, self.reported = self.news, News(), time.monotonic()
            self.tell(news)


def _failure(user_id: Id, turn: int, error: Exception, calls: Sequence[Call]) -> Failure:
    name = type(error).__name__
    text = str(error) if isinstance(error, EndpointError) else f"{name}: {error}"
    trace = "".join(traceback.format_tb(error.__traceback__))
    return Failure(
        user_id=user_id,
        turn=turn,
        kind=error.kind if isinstance(error, EndpointError) else "agent",
        message=encodable(text[:_MOST_MESSAGE]),
        type=name,
        traceback=encodable(trace[-_MOST_TRACEBACK:]),
        calls=len(calls),
        prompt_tokens=sum(call.usage.prompt_tokens for call in calls),
        completion_tokens=sum(call.usage.completion_tokens for call in calls),
    )


async def take_turn(
    agent: Agent, turn: Turn, learns: bool = True, rewarded: Callable[[float], object] | None = None
) -> Step:
    """Have an agent rank, judge the ranking, and have the agent learn from the feedback.

    Args:
        agent: The agent.
        turn: The turn.
        learns: Whether the agent is given the feedback.
        rewarded: Called with the ranking's reward before the agent learns.
    """
    ranking = await agent.arank(turn.query)
    before = agent.memory or Memory()
    feedback, reward = judge(turn, ranking)
    if rewarded:
        rewarded(reward)
    after = await agent.alearn(feedback) if learns else before
    return Step(
        user_id=turn.query.user.id,
        turn=turn.number,
        candidates=tuple([item.id for item in turn.query.candidates]),
        target=turn.target,
        ranking=ranking,
        feedback=feedback,
        reward=reward,
        calls=tuple(agent.calls),
        memory_before=before,
        memory=after,
        state=getattr(agent, "own_state", {}),
    )
