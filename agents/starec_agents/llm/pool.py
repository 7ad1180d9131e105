"""How many requests may be in flight: one first-come-first-served queue over servers, each with a limit that adapts."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence

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


class NoServer(Exception):
    """Raised in those who wait for a place when no server is in use."""


class Limit:
    """How many requests one server bears: additive increase, multiplicative decrease, in the way of TCP.

    It starts at min(32, most), and doubles with each round of answers, or sooner (RAMP_S), until the first cut. It is
    halved when more than a tenth of the recent requests met congestion (429, 503, a time-out), once for all that were
    in flight then: one burst is one sign. It never grows while it isn't the bottleneck.

    Args:
        most: The upper bound; 1 is the lower.
        limit: Where to start, e.g. what was learned before.

    Attributes:
        limit: The limit now; its whole part counts.
        in_flight: Requests sent and not yet answered.
        usable: Whether the server is in use.
    """

    def __init__(self, most: int, limit: float = 32.0) -> None:
        self.limit = min(float(most), limit)
        self.most = most
        self.in_flight = 0
        self.usable = True
        self.cuts = 0
        self.refused = 0.0
        self.paused_until = 0.0
        self.last_taken = 0

    def free(self, now: float) -> bool:
        """Whether the server takes one more."""
        return self.usable and self.in_flight < int(self.limit) and now >= self.paused_until

    def note(self, ticket: int, answered: bool, congested: bool, busy: bool) -> bool:
        """Learn from a request that ended; returns whether the limit was cut."""
        if ticket == self.cuts and (answered or congested):
            self.refused += (congested - self.refused) / RECENT
        if answered and (busy or self.in_flight >= int(self.limit)):
            self.limit = min(self.most, self.limit + (GROWTH if self.cuts else 1.0))
        elif congested and ticket == self.cuts and self.refused > TOLERATED:
            self.limit = max(1.0, self.limit / 2)
            self.cuts += 1
            self.refused = TOLERATED / 2  # halfway to the next: a server that still refuses is believed sooner
            return True
        return False


class Pool:
    """Places for requests on any of the servers, given in the order of the calls; it belongs to one event loop.

    Args:
        limits: One a server.

    Attributes:
        answers: Requests answered so far.
    """

    def __init__(self, limits: Sequence[Limit]) -> None:
        self.limits = limits
        self.answers = 0
        self._taken = 0
        self._ramping = False
        self._waiting: deque[tuple[asyncio.Future[Limit], Collection[Limit]]] = deque()
        self._down_until = 0.0
        self._down = EndpointError("")
        self._fruitless = -1

    @property
    def in_flight(self) -> int:
        """Requests that the servers now work on."""
        return sum(limit.in_flight for limit in self.limits)

    async def acquire(self, *, again: bool = False, avoid: Collection[Limit] = ()) -> tuple[Limit, int]:
        """Wait for a place, first come first served; among servers that have one, the least busy is taken.

        Args:
            again: A request that had a place before goes ahead of those that had none: its call is the older.
            avoid: Servers to leave alone while there is another in use.

        Returns:
            The server's limit, and a ticket; both go back with `release`.

        Raises:
            EndpointError: The servers were declared down (see `give_up`).
            NoServer: None is in use.
        """
        loop = asyncio.get_running_loop()
        if (now := loop.time()) < self._down_until:
            raise self._copy_of_down()
        if not self._waiting and (limit := self._best(now, avoid)):
            return self._take(limit), limit.cuts
        if not any(limit.usable for limit in self.limits):
            raise NoServer
        place: asyncio.Future[Limit] = loop.create_future()
        if again:
            self._waiting.appendleft((place, avoid))
        else:
            self._waiting.append((place, avoid))
        self._wake()  # those ahead may wait for another server
        self._ramp()
        try:
            limit = await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                place.result().in_flight -= 1  # the place was given just before the cancellation: pass it on
                self._wake()
            raise
        return limit, limit.cuts

    def release(
        self, place: tuple[Limit, int], *, answered: bool = False, congested: bool = False, pause: float | None = None
    ) -> None:
        """Give a place back.

        Args:
            place: What `acquire` returned.
            answered: The request was answered.
            congested: The server showed that it is overloaded.
            pause: Seconds after which it wants to be asked again; if this makes its limit be cut, nobody asks before.
        """
        limit, ticket = place
        self.answers += answered
        if limit.note(ticket, answered, congested, bool(self._waiting)) and pause is not None:
            loop = asyncio.get_running_loop()
            limit.paused_until = loop.time() + pause
            loop.call_later(pause + 0.001, self._wake)
        limit.in_flight -= 1
        self._wake()

    def give_up(self, error: EndpointError, answers: int, seconds: float) -> None:
        """Note that a call has used up its retries; the second one that saw nobody answered declares the servers down.

        Then the queue fails at once, and so do all who come within `seconds`. Without this, each of a thousand waiting
        users would spend its own full patience on a dead endpoint. One such call may just have met its own poison.

        Args:
            error: What the call failed with.
            answers: The pool's `answers` when the call began.
            seconds: How long to leave the servers alone.
        """
        if answers != self.answers:
            return
        if self._fruitless == answers:
            self._down_until = asyncio.get_running_loop().time() + seconds
            self._down = error
            self.fail_queue(self._copy_of_down)
        self._fruitless = answers

    def fail_queue(self, error: Callable[[], Exception]) -> None:
        """Raise an error in all who wait, each its own: a raised exception collects its raiser's traceback."""
        while self._waiting:
            place, _ = self._waiting.popleft()
            if not place.done():
                place.set_exception(error())

    def use(self, limit: Limit, usable: bool) -> None:
        """Take a server into use, or out of it; without any, those who wait get NoServer."""
        limit.usable = usable
        if not any(limit.usable for limit in self.limits):
            self.fail_queue(NoServer)
        self._down_until = 0.0 if usable else self._down_until
        self._wake()

    def _copy_of_down(self) -> EndpointError:
        return EndpointError(str(self._down), self._down.kind)

    def _take(self, limit: Limit) -> Limit:
        self._taken += 1
        limit.last_taken = self._taken
        limit.in_flight += 1
        return limit

    def _best(self, now: float, avoid: Collection[Limit]) -> Limit | None:
        if len(self.limits) == 1:
            return self.limits[0] if self.limits[0].free(now) else None
        if avoid and any(limit.usable and limit not in avoid for limit in self.limits):
            free = [limit for limit in self.limits if limit not in avoid and limit.free(now)]
        else:
            free = [limit for limit in self.limits if limit.free(now)]
        return min(free, key=lambda limit: (limit.in_flight, limit.last_taken), default=None)

    def _wake(self) -> None:
        now = asyncio.get_running_loop().time()
        passed_over = []
        while self._waiting and any(limit.free(now) for limit in self.limits):
            place, avoid = self._waiting.popleft()
            if place.done():
                continue
            if limit := self._best(now, avoid):
                place.set_result(self._take(limit))
            else:
                passed_over.append((place, avoid))
        self._waiting.extendleft(reversed(passed_over))

    def _ramp(self) -> None:
        if not self._ramping and any(not (limit.refused or limit.limit >= limit.most) for limit in self.limits):
            self._ramping = True
            asyncio.get_running_loop().call_later(RAMP_S, self._double)

    def _double(self) -> None:
        self._ramping = False
        if not self._waiting:
            return
        for limit in self.limits:
            if not limit.refused:
                limit.limit = min(limit.most, 2 * limit.limit)
        self._wake()
        self._ramp()
