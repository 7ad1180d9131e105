"""One model on several servers: each request goes to the least loaded healthy one."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starec_agents.llm import Completion, Message
from starec_agents.openai_chat import FIRST_WAIT_S, OpenAIChat
from starec_env.errors import EndpointError, InvalidOption
from starec_env.types import Endpoint

ILL_AFTER = 3
"""Faults in a row after which a server gets no more requests but one now and then, to see if it is well again."""
LONGEST_WAIT_S = 10.0
"""Longest wait before an ill server is asked again."""

_PASSING = ("connection", "timeout", "rate_limit", "server", "bad_answer")
_log = logging.getLogger(__name__)


@dataclass
class _Server:
    llm: OpenAIChat
    load: int = 0
    """Requests it was given and hasn't answered, those in its client's queue included."""
    faults: int = 0
    """In a row; once it is ill, only those of requests that were to find out if it still is."""
    tried: bool = False
    """Whether such a request is on its way."""
    again_at: float = 0.0
    """When the next may be sent."""

    @property
    def ill(self) -> bool:
        return self.faults >= ILL_AFTER


class Balanced:
    """A ChatModel over several OpenAI-compatible servers of the same model.

    A request that meets a fault that can pass goes to another server at once. A server that failed three times in a row
    is left alone, and asked by single requests after growing waits until one is answered. While all are ill, calls
    wait; when each has been asked twice `max_retries` times in vain (about a minute by default), they fail.

    Args:
        endpoints: The servers. A request is tried on as many as there are, and `max_retries` (the first one's) times
            more, after growing waits.

    Raises:
        InvalidOption: There is none, or they don't serve the same model.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        if not endpoints or len({endpoint.model for endpoint in endpoints}) > 1:
            raise InvalidOption("balancing needs one endpoint or more, all of the same model")
        self.endpoints = list(endpoints)
        self.endpoint = endpoints[0]
        once = [endpoint.model_copy(update={"max_retries": 0}) for endpoint in endpoints]
        self._servers = [_Server(OpenAIChat(endpoint)) for endpoint in once]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.endpoints,)

    async def complete(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        """Answer a prompt; see ChatModel."""
        fault = EndpointError("no server is well", kind="connection")
        for attempt in range(self.endpoint.max_retries + len(self._servers)):
            if (again := attempt - len(self._servers)) >= 0:
                await asyncio.sleep(_wait(again))
            server = await self._choose(fault)
            server.load += 1
            trial, server.tried = server.ill, server.ill
            try:
                answer = await server.llm.complete(messages, **sampling)
            except EndpointError as error:
                if error.kind not in _PASSING:
                    raise
                fault = error
                if trial or not server.ill:
                    self._note_fault(server)
            else:
                if server.ill:
                    _log.warning("%r answers again", server.llm)
                server.faults = 0
                return answer
            finally:
                server.load -= 1
                server.tried = server.tried and not trial
        raise fault

    async def _choose(self, fault: EndpointError) -> _Server:
        """The least loaded server that is well, or an ill one that is due to be tried; waits while there is neither."""
        while True:
            now = asyncio.get_running_loop().time()
            due = [server for server in self._servers if server.ill and not server.tried and now >= server.again_at]
            well = [server for server in self._servers if not server.ill]
            if due or well:
                return min(due or well, key=lambda server: server.load)
            if all(server.faults >= ILL_AFTER + 2 * self.endpoint.max_retries for server in self._servers):
                raise EndpointError(f"all {len(self._servers)} servers fail, one so: {fault}", fault.kind)
            await asyncio.sleep(FIRST_WAIT_S / 5)

    def _note_fault(self, server: _Server) -> None:
        server.faults += 1
        if server.ill:
            server.again_at = asyncio.get_running_loop().time() + _wait(server.faults - ILL_AFTER)
        if server.faults == ILL_AFTER:
            _log.warning("%r failed %d times in a row: it gets no more until it answers", server.llm, ILL_AFTER)

    async def check(self) -> list[str]:
        """Ask every server for its models; raises EndpointError if none answers."""
        found = await asyncio.gather(*(server.llm.check() for server in self._servers), return_exceptions=True)
        if errors := [error for error in found if isinstance(error, BaseException)]:
            if len(errors) == len(found):
                raise errors[0]
            _log.warning("%d of %d servers don't answer: %s", len(errors), len(found), errors[0])
        return [name for names in found if isinstance(names, list) for name in names]

    async def aclose(self) -> None:
        """Close the running event loop's clients."""
        for server in self._servers:
            await server.llm.aclose()

    async def __aenter__(self) -> Balanced:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


def _wait(number: int) -> float:
    return min(FIRST_WAIT_S * 2.0**number, LONGEST_WAIT_S) * random.uniform(0.75, 1.25)
