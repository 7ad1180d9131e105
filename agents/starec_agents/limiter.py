"""How many requests may be in flight: a first-come-first-served pool whose limit follows what the endpoint bears."""

import asyncio
from collections import deque

from starec_env.errors import EndpointError

GROWTH = 1 / 8
"""Share of the limit that a full round of answers adds after the first cut; before it, a round doubles the limit."""
TOLERATED = 0.1
"""Share of recent requests that may be refused before the limit is cut.

Cutting at each refusal, as TCP does, holds a server that refuses one request in twenty for reasons of its own at three
in flight; so measured, 10,000 requests took three times as long.
"""
RAMP_S = 0.1
"""Until the first refusal the limit also doubles each time so long has passed while requests wait.

A server that refuses does so at once: there is no need to wait for its answers, which may take half a minute each.
"""
RECENT = 64
"""How many requests count as recent: the time constant of a moving average."""


class Pool:
    """Additive increase, multiplicative decrease, in the way of TCP: no storm, no fixed cap to guess.

    The limit starts at min(32, most), and doubles with each round of answers, or sooner (RAMP_S), until the first cut.
    It is halved when more than a tenth of the recent requests met congestion (429, 503, a time-out), once for all that
    were in flight then: one burst is one sign. It never grows while it isn't the bottleneck. A pool belongs to one
    event loop.

    Args:
        most: The limit's upper bound; 1 is the lower.
        limit: Where to start, e.g. what an earlier pool had learned.

    Attributes:
        limit: The limit now; its whole part counts.
        in_flight: Slots taken.
        answers: Requests answered so far.
    """

    def __init__(self, most: int, limit: float = 32.0) -> None:
        self.limit = min(float(most), limit)
        self.in_flight = 0
        self.answers = 0
        self._most = most
        self._cuts = 0
        self._refused = 0.0
        self._ramping = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._paused_until = 0.0
        self._down_until = 0.0
        self._down = EndpointError("")
        self._fruitless = -1

    async def acquire(self, *, again: bool = False) -> int:
        """Wait for a slot, first come first served.

        Args:
            again: A request that had a slot before goes ahead of those that had none: its call is the older.

        Returns:
            A ticket to be given back with `release`.

        Raises:
            EndpointError: The endpoint was declared down (see `give_up`).
        """
        now = asyncio.get_running_loop().time()
        if now < self._down_until:
            raise self._copy_of_down()
        if not self._waiting and self.in_flight < int(self.limit) and now >= self._paused_until:
            self.in_flight += 1
            return self._cuts
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if again:
            self._waiting.appendleft(slot)
        else:
            self._waiting.append(slot)
        self._ramp()
        try:
            await slot
        except asyncio.CancelledError:
            if slot.done() and not slot.cancelled() and slot.exception() is None:
                self.in_flight -= 1  # the slot was granted just before the cancellation: pass it on
                self._wake()
            raise
        return self._cuts

    def release(
        self, ticket: int, *, answered: bool = False, congested: bool = False, pause: float | None = None
    ) -> None:
        """Give a slot back.

        Args:
            ticket: What `acquire` returned.
            answered: The request was answered.
            congested: The endpoint showed that it is overloaded.
            pause: Seconds after which it wants to be asked again; if this makes the limit be cut, nobody asks before.
        """
        self.answers += answered
        if ticket == self._cuts and (answered or congested):
            self._refused += (congested - self._refused) / RECENT
        if answered and (self._waiting or self.in_flight >= int(self.limit)):
            self.limit = min(self._most, self.limit + (GROWTH if self._cuts else 1.0))
        elif congested and ticket == self._cuts and self._refused > TOLERATED:
            self._cut(pause)
        self.in_flight -= 1
        self._wake()

    def _ramp(self) -> None:
        if not (self._ramping or self._refused or self.limit >= self._most):
            self._ramping = True
            asyncio.get_running_loop().call_later(RAMP_S, self._double)

    def _double(self) -> None:
        self._ramping = False
        if self._waiting and not self._refused:
            self.limit = min(self._most, 2 * self.limit)
            self._wake()
            self._ramp()

    def _cut(self, pause: float | None) -> None:
        self.limit = max(1.0, self.limit / 2)
        self._cuts += 1
        self._refused = TOLERATED / 2  # halfway to the next: a server that still refuses is believed sooner
        if pause is not None:
            loop = asyncio.get_running_loop()
            self._paused_until = loop.time() + pause
            loop.call_later(pause, self._wake)

    def give_up(self, error: EndpointError, answers: int, seconds: float) -> None:
        """Note that a call has used up its retries; the second one that saw nobody answered declares the endpoint down.

        Then the queue fails at once, and so do all who come within `seconds`. Without this, each of a thousand waiting
        users would spend its own full patience on a dead endpoint. One such call may just have met its own poison.

        Args:
            error: What the call failed with.
            answers: The pool's `answers` when the call began.
            seconds: How long to leave the endpoint alone.
        """
        if answers != self.answers:
            return
        if self._fruitless == answers:
            self._down_until = asyncio.get_running_loop().time() + seconds
            self.fail_queue(error)
        self._fruitless = answers

    def fail_queue(self, error: EndpointError) -> None:
        """Raise an error in all who wait."""
        self._down = error
        while self._waiting:
            slot = self._waiting.popleft()
            if not slot.done():
                slot.set_exception(self._copy_of_down())

    def _copy_of_down(self) -> EndpointError:
        return EndpointError(str(self._down), self._down.kind)  # a raised exception collects its raiser's traceback

    def _wake(self) -> None:
        if not self._waiting or asyncio.get_running_loop().time() < self._paused_until:
            return
        while self._waiting and self.in_flight < int(self.limit):
            slot = self._waiting.popleft()
            if not slot.done():
                self.in_flight += 1
                slot.set_result(None)
