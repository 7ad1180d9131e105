"""Agents as users before a recommender: what answers slates where `starec_env.recommend` asks for a `Responder`.

An agent answers by the third half of its graph, one request a slate. One that only ranks (a graph without that half, or
a model that was never taught it, as starec-nano) answers by its ranking, through a `Calibration`. Either reflects once,
when its visit has ended. What is drawn is a pure function of (seed, user, visit, step).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from starec_agents._visitor import Given, Visitor, apart, recorded, together, without_prompts
from starec_agents.agent import UserAgent, all_of, wait_for
from starec_agents.calibration import Calibration, StarsLine, rank_score
from starec_agents.memory import Memory
from starec_agents.tasks import Visit, start_memory
from starec_env.errors import EndpointError, InvalidOption, RunError, StarecError, check_choice
from starec_env.recommend.responses import Responses
from starec_env.replay.stream import Seen, feedback_on, sample_negatives
from starec_env.types import Dataset, History, Query, Ranking, SlateFeedback

Through = Literal["response", "ranking"]
"""What an agent answers by."""

RANKED = 20
"""Items that an agent ranks at once where it answers by its ranking: the slate and others, at least half as many."""

_FAILED_IN_A_ROW = 8
_MOST_LEVELS = 20
_FOR_ALL = {"auth", "not_found"}
"""Kinds of failure that no other user would be spared."""
_OUTAGES = {"connection", "server", "timeout", "rate_limit"}
"""Kinds that many in a row have when the server is gone, after all retries of the client."""


class AgentResponder:
    """A population of agents that answer slates; fulfils `Responder`.

    Args:
        agent: Makes a new agent: `UserAgent.factory(llm, ...)`.
        dataset: Whose users they are; what is in it they have done before their first visit.
        through: "response" asks the agent for an answer; "ranking" draws one from its ranking.
        calibration: Needed for "ranking"; with "response" its `by_response`, if it has one, maps the stars.
        reflects: Whether agents learn from a visit at its end.
        stops: (n_users,) the row of the data set before which each user's history ends; None: all rows count.
        traits: A sentence about a user, by 0-based index, for the memory to begin with; None for none.

    Raises:
        InvalidOption: `through` needs a calibration and there is none, or it is of another scale.
    """

    def __init__(
        self,
        agent: Callable[[], UserAgent],
        dataset: Dataset,
        *,
        through: Through = "response",
        calibration: Calibration | None = None,
        reflects: bool = True,
        stops: NDArray[np.int64] | None = None,
        traits: Callable[[int], str] | None = None,
    ) -> None:
        check_choice("through", through, get_args(Through))
        if through == "ranking" and calibration is None:
            raise InvalidOption("through='ranking' needs a calibration: fit one with starec_agents.calibrate()")
        self.agent, self.dataset, self.through = agent, dataset, through
        self.calibration, self.reflects, self.traits = calibration, reflects, traits
        self.stops = dataset.indptr[1:] if stops is None else stops
        self.levels = _levels(dataset, calibration)
        self.met = Seen(dataset) if through == "ranking" else None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What makes these users themselves, as JSON types, for a record that is compared on resuming."""
        agent = self.agent()
        context = agent.context
        return {
            **agent.settings,
            "through": self.through,
            "calibration": self.calibration and self.calibration.model_dump(mode="json"),
            "reflects": self.reflects,
            "traits": self.traits is not None,
            "visit_prompts": context.prompts.visit_fingerprint(context.answer_format, context.max_history),
        }

    def begin(self, agent: UserAgent, query: Query) -> None:
        """Have a new agent's memory begin with the traits of the query's user, where traits are wanted."""
        if self.traits:
            start = agent.memory or start_memory(query)
            said = self.traits(self.dataset.user_index(query.user.id))
            agent.memory = start.updated(profile=f"{start.profile} {said}".strip())

    def open(self, n: int, seed: int = 0) -> AgentVisits:
        """Room for n users at once."""
        if n < 1:
            raise InvalidOption(f"n={n}: wanted room for at least one user")
        return AgentVisits(self, n, seed)


class AgentVisits:
    """Agents before a recommender, one a row; fulfils `Visits`.

    A row is independent of all others: `arespond` may be called for some rows while it still answers for others.
    A user whose request fails leaves, with the failure as its problem; the others go on.
    """

    def __init__(self, responder: AgentResponder, n: int, seed: int = 0) -> None:
        self.responder, self.seed = responder, seed
        self._rows: list[Visitor | None] = [None] * n
        self._failed_in_a_row = 0

    def begin(
        self, rows: NDArray[np.integer[Any]], users: NDArray[np.integer[Any]], visits: NDArray[Any], anew: bool = False
    ) -> None:
        """Put users at rows, at the beginning of a visit; see `Visits`. A new user has a new agent.

        A visit that was cut short is reflected on before the next one's first answer, or by `end`.
        """
        for row, user, visit in zip(rows.tolist(), users.tolist(), visits.tolist(), strict=True):
            there = self._rows[row]
            if there is None or there.user != user or anew:
                there = self._rows[row] = self._new(user)
            there.visit, there.page, there.left = int(visit), 0, False

    def respond(self, rows: NDArray[np.integer[Any]], slates: NDArray[np.integer[Any]]) -> Responses:
        """Show slates; see `Visits`."""
        return wait_for(self.arespond(rows, slates))

    async def arespond(self, rows: NDArray[np.integer[Any]], slates: NDArray[np.integer[Any]]) -> Responses:
        """Show slates, all rows at once; see `Visits`.

        Raises:
            InvalidOption: A slate isn't one, or nobody is at a row.
            EndpointError: The server refuses everybody: a wrong key, or a model that isn't there.
            RunError: Many users' requests failed in a row.
        """
        slates = np.atleast_2d(slates)
        check_slates(slates, self.responder.dataset.n_items)
        at = np.atleast_1d(rows).tolist()
        if len(at) != len(slates) or len(set(at)) < len(at):
            raise InvalidOption(f"rows {at} and {len(slates)} slates: wanted distinct rows, and a slate for each")
        visitors = [self._at(row) for row in at]
        pairs = zip(visitors, slates, strict=True)
        given = await all_of([self._answer(visitor, slate) for visitor, slate in pairs])
        return together(given, slates.shape[1])

    async def afollow(self, rows: NDArray[np.integer[Any]], slates: NDArray[np.integer[Any]], given: Responses) -> None:
        """Go on as if these had been the agents' own answers, for which nobody was asked; see `Follows`."""
        each = zip(np.atleast_1d(rows).tolist(), np.atleast_2d(slates), apart(given), strict=True)
        await all_of([self._follow(self._at(row), slate, one) for row, slate, one in each])

    def follow(self, rows: NDArray[np.integer[Any]], slates: NDArray[np.integer[Any]], given: Responses) -> None:
        """The same from synchronous code."""
        wait_for(self.afollow(rows, slates, given))

    async def aend(self, rows: NDArray[np.integer[Any]]) -> None:
        """Have users reflect whose visit was cut short."""
        await all_of([self._reflect(self._at(row)) for row in np.atleast_1d(rows).tolist()])

    def end(self, rows: NDArray[np.integer[Any]]) -> None:
        """The same from synchronous code."""
        wait_for(self.aend(rows))

    def record(self, rows: NDArray[np.integer[Any]], *, prompts: bool = False) -> list[list[dict[str, Any]]]:
        """What happened at rows since they were last recorded, as JSON types; each line is given once.

        A line has user, visit, step, slate (ids), what the environment saw of the answer (places are 0-based), raw
        stars, and the calls with the model's text and tokens; or the user's reflection, with its calls.

        Args:
            rows: Rows.
            prompts: Whether calls have their prompts.
        """
        found = []
        for row in np.atleast_1d(rows).tolist():
            visitor = self._at(row)
            lines, visitor.lines = visitor.lines, []
            found.append(lines if prompts else [without_prompts(line) for line in lines])
        return found

    def snapshot(self, rows: NDArray[np.integer[Any]]) -> list[dict[str, Any]]:
        """All that users at rows go on from, as JSON types."""
        return [self._at(row).snapshot() for row in np.atleast_1d(rows).tolist()]

    def restore(self, rows: NDArray[np.integer[Any]], states: Sequence[Mapping[str, Any]]) -> None:
        """Put users at rows who go on from their snapshots."""
        for row, state in zip(np.atleast_1d(rows).tolist(), states, strict=True):
            visitor = self._new(self.responder.dataset.user_index(state["user"]))
            visitor.restore(state, self.responder.dataset)
            self._rows[row] = visitor

    def _at(self, row: int) -> Visitor:
        visitor = self._rows[row] if 0 <= row < len(self._rows) else None
        if visitor is None:
            raise InvalidOption(f"nobody is at row {row} of {len(self._rows)}: begin() a visit there first")
        return visitor

    def _new(self, user: int) -> Visitor:
        responder = self.responder
        dataset, agent = responder.dataset, responder.agent()
        stop = int(responder.stops[user])
        first = min(int(dataset.starts[user]), stop)
        visitor = Visitor(user, dataset.user(user).id, agent, History(dataset, user, first, stop), stop - first)
        responder.begin(agent, visitor.query_of(dataset, np.array([], np.int32)))
        return visitor

    # Answering -------------------------------------------------------------------------------------------------------

    async def _answer(self, visitor: Visitor, slate: NDArray[np.integer[Any]]) -> Given:
        if visitor.page == 0:
            await self._reflect(visitor)
        visitor.query = visitor.query_of(self.responder.dataset, slate)
        through = self._by_response if self.responder.through == "response" else self._by_ranking
        rng = np.random.default_rng((self.seed, visitor.user, visitor.visit, visitor.page))
        try:
            given = await through(visitor, slate, rng)
        except Exception as error:
            given = self._failed(error)
        else:
            self._failed_in_a_row = 0
        visitor.move_on(self.responder.dataset, slate, given)
        if given.left and not given.problem:  # who could not be asked is asked to reflect before the next visit
            await self._reflect(visitor)
        return given

    async def _follow(self, visitor: Visitor, slate: NDArray[np.integer[Any]], given: Given) -> None:
        if visitor.page == 0:
            await self._reflect(visitor)
        visitor.query, visitor.agent.calls = visitor.query_of(self.responder.dataset, slate), []
        visitor.move_on(self.responder.dataset, slate, given)
        if given.left:
            await self._reflect(visitor)

    def _failed(self, error: Exception) -> Given:
        """The answer of a user who gave none; an error that all users would meet is raised."""
        kind = kind_of(error)
        if kind in _FOR_ALL or (isinstance(error, StarecError) and not isinstance(error, EndpointError)):
            raise error
        self._failed_in_a_row += 1
        most = _FAILED_IN_A_ROW if kind in _OUTAGES else max(_FAILED_IN_A_ROW, len(self._rows))
        if self._failed_in_a_row >= most:
            raise RunError(
                f"{self._failed_in_a_row} users in a row could not be asked, the last because of {kind}: {error}. Mend "
                "the cause and go on from the record"
            ) from error
        return Given(left=True, problem=f"no answer: {kind}")

    async def _by_response(self, visitor: Visitor, slate: NDArray[np.integer[Any]], rng: np.random.Generator) -> Given:
        assert visitor.query
        real = visitor.history.ratings[: visitor.real]
        visit = visit_after(real, self.responder.levels, page=visitor.page + 1, passed=visitor.passed)
        answer = await visitor.agent.arespond(visitor.query, visit)
        if isinstance(answer, Ranking):
            raise InvalidOption(
                f"graph {visitor.agent.graph_name!r} ranks slates and doesn't answer them: give it a branch for the "
                "state's 'visit' that sets 'response', or say through='ranking' and give a calibration"
            )
        if answer.taken is None or answer.stars is None:
            problem = ", ".join(answer.report.problems)
            return Given(answer.seen, left=answer.leaves, said=answer.says, problem=problem)
        calibration = self.responder.calibration
        line = None if calibration is None else calibration.by_response
        stars = self._stars(visitor, answer.stars, line, rng)
        return Given(answer.seen, answer.taken, stars, answer.stars, self._likes(stars), answer.leaves, answer.says)

    async def _by_ranking(self, visitor: Visitor, slate: NDArray[np.integer[Any]], rng: np.random.Generator) -> Given:
        calibration, dataset, k = self.responder.calibration, self.responder.dataset, len(slate)
        assert calibration
        shown = np.concatenate([slate, self._others(visitor, slate)])
        order = rng.permutation(len(shown))  # in the slate's order its items would win all ties against the others
        at = order.argsort()[:k]
        query = visitor.query_of(dataset, shown[order])
        ranking = await visitor.agent.arank(query)
        if not ranking.order:
            return Given(problem=", ".join(ranking.problems))
        z = calibration.utilities(ranking, len(shown))
        mine, others = z[at], np.delete(z, at)
        mine[np.isin(slate, visitor.history.item_indices)] = -np.inf  # what was met is never taken again
        wants, which, leaves = rng.random(3)
        seen, left = tuple(range(k)), bool(leaves < calibration.leave)
        if wants >= calibration.take(mine, others):
            return Given(seen, left=left)
        odds = np.exp(mine - mine.max())
        taken = int(np.searchsorted((odds / odds.sum()).cumsum()[:-1], which, side="right"))
        raw = float(rank_score(ranking, len(shown))[at[taken]])
        stars = self._stars(visitor, raw, calibration.by_ranking, rng)
        liked, item = self._likes(stars), dataset.items[int(slate[taken])]
        visitor.turn = query, ranking, feedback_on(item.id, ranking.rank_of(int(at[taken])), liked, stars)
        return Given(seen, taken, stars, raw, liked, left)

    def _others(self, visitor: Visitor, slate: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Items that the user has met neither really nor here, uniformly: what the slate is measured by."""
        wanted, never = max(RANKED - len(slate), len(slate) // 2, 1), self.responder.met
        assert never
        met = {*slate.tolist(), *visitor.history.item_indices[visitor.real :].tolist()}
        most = min(wanted + len(met), int(never.unseen[visitor.user]))
        key = np.array([visitor.visit * 2**20 + visitor.page])
        drawn = sample_negatives(self.seed, np.array([visitor.user]), key, most, never)[0]
        return np.array([item for item in drawn.tolist() if item not in met][:wanted])

    def _stars(self, visitor: Visitor, raw: float, line: StarsLine | None, rng: np.random.Generator) -> float:
        if line is None or self.responder.calibration is None:
            return raw
        own = self.responder.calibration.own_mean(visitor.history.ratings[: visitor.real])
        return line.given(own, raw, float(rng.standard_normal()))

    def _likes(self, stars: float) -> bool:
        return bool(np.float32(stars) > self.responder.dataset.liked_above)  # as the data's own ratings are compared

    # Moving on -------------------------------------------------------------------------------------------------------

    async def _reflect(self, visitor: Visitor) -> None:
        """Learn from the visit that has ended, if there was one and nothing was learned of it yet."""
        shown, visitor.shown = visitor.shown, []
        turn, visitor.turn = visitor.turn, None
        if not shown or not self.responder.reflects:
            return
        agent, problem = visitor.agent, ""
        before = len(agent.calls)
        try:
            if self.responder.through == "response":
                assert visitor.query
                feedback = SlateFeedback(shown=tuple(shown), left=visitor.left)
                await agent.alearn(feedback, (visitor.query, Ranking(order=())))
            elif turn:
                await agent.alearn(turn[2], turn[:2])
            else:
                return
        except Exception as error:  # the memory is as it was
            problem = f"no answer: {kind_of(error)}"
        memory = agent.memory or Memory()
        reflected = {"profile": memory.profile, "problem": problem, "calls": recorded(agent.calls[before:])}
        visitor.lines.append({**visitor.head, "reflection": reflected})


def kind_of(error: Exception) -> str:
    """What kind of failure an error is: an endpoint's kind, or the error's own name."""
    return error.kind if isinstance(error, EndpointError) else type(error).__name__


def levels_of(dataset: Dataset) -> tuple[float, ...]:
    """The ratings of a data set's scale, ascending; a scale of many is cut into steps."""
    levels = np.unique(dataset.ratings)
    if len(levels) > _MOST_LEVELS:
        levels = np.linspace(levels[0], levels[-1], _MOST_LEVELS // 2 + 1).round(3)
    return tuple(levels.tolist()) or (1.0,)


def _levels(dataset: Dataset, calibration: Calibration | None) -> tuple[float, ...]:
    """The scale: the calibration's, whose data may have had levels that these don't show."""
    found = levels_of(dataset)
    if calibration is None:
        return found
    known = calibration.by_ranking.levels
    if found[0] < known[0] or found[-1] > known[-1]:
        raise InvalidOption(
            f"{dataset.name} has ratings from {found[0]:g} to {found[-1]:g}, the calibration knows {known[0]:g} to "
            f"{known[-1]:g}: fit one on this data"
        )
    return known


def visit_after(ratings: NDArray[np.float32], levels: tuple[float, ...], **more: Any) -> Visit:
    """A visit of a user with these real ratings; more are further fields of `Visit`."""
    nearest = np.abs(ratings[:, None] - np.array(levels)).argmin(axis=1)
    return Visit(levels=levels, counts=tuple(np.bincount(nearest, minlength=len(levels)).tolist()), **more)


def check_slates(slates: NDArray[Any], n_items: int) -> None:
    """Refuse what isn't (m, k) distinct catalogue indices.

    Raises:
        InvalidOption: It isn't.
    """
    if slates.ndim != 2 or not slates.shape[1] or not np.issubdtype(slates.dtype, np.integer):
        raise InvalidOption(f"slates of shape {slates.shape} and type {slates.dtype}: wanted (m, k) catalogue indices")
    if (slates < 0).any() or (slates >= n_items).any():
        wrong = slates[(slates < 0) | (slates >= n_items)][0]
        raise InvalidOption(f"a slate has item {wrong}: the catalogue's indices are 0 to {n_items - 1}")
    ordered = np.sort(slates, axis=1)
    if (again := (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)).any():
        raise InvalidOption(f"slate {int(again.argmax())} repeats an item: {slates[again.argmax()].tolist()}")
