"""What the report card asks of agents, and their calibration, which is fitted by asking the same of validation users.

Each answer is given by a new agent that knows the user's history before the case and nothing else.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from starec_agents.agent import UserAgent, wait_for
from starec_agents.calibration import (
    FEWEST,
    Calibration,
    StarsLine,
    fit_choice,
    fit_stars,
    leaving_rate,
    rank_score,
    ranks,
    shrunk_mean,
)
from starec_agents.responder import RANKED, AgentResponder, Through, all_of, levels_of, visit_after
from starec_agents.tasks import Response
from starec_env.cases import Cases
from starec_env.errors import EndpointError, InvalidOption
from starec_env.metrics import Relevant
from starec_env.replay.stream import Seen, Stream, sample_negatives
from starec_env.types import Candidates, Dataset, History, Id, Query, Ranking, Turn

Floats = NDArray[np.float64]
_T = TypeVar("_T")

_AT_ONCE = 256
"""Agents that are asked at once; the client bounds the requests in flight further."""
_FAILED_IN_A_ROW = 8
_MOST_RANKED = 200


class AgentModel:
    """An agent as the card's `UserModel`.

    Args:
        responder: The agents, with their calibration.
        seed: Of the items that a rated item is ranked among.
        report: Called with answers had and wanted.

    Attributes:
        problems: What was wrong with answers, and how often. An answer that can't be read says nothing: all candidates
            are alike, none is accepted, and a rating is the user's usual one.
    """

    def __init__(
        self, responder: AgentResponder, *, seed: int = 0, report: Callable[[int, int], None] | None = None
    ) -> None:
        if responder.calibration is None:
            raise InvalidOption("a card of agents needs a calibration: fit one with starec_agents.calibrate()")
        self.responder, self.calibration = responder, responder.calibration
        self.asker, self.seed = _Asker(self._agent, report), seed
        self._asked: tuple[Any, tuple[Floats, Floats, StarsLine | None]] | None = None
        if responder.through == "ranking":  # others leave when they say so, before a recommender
            self.sitting_lengths = self._sitting_lengths

    most_candidates = _MOST_RANKED

    def _agent(self, query: Query) -> UserAgent:
        agent = self.responder.agent()
        self.responder.begin(agent, query)
        return agent

    @property
    def problems(self) -> Counter[str]:
        """See the class."""
        return self.asker.problems

    def log_choice(self, cases: Cases, relevant: Relevant = "liked") -> Floats:
        """(cases, n) log-probabilities that each candidate comes next: of liked items, which stand for all.

        Raises:
            InvalidOption: There are more candidates than an agent can rank.
        """
        z = self._utilities([cases.query(case) for case in range(len(cases))])
        found: Floats = z - np.logaddexp.reduce(z, axis=1)[:, None]
        return found

    def accepts(self, cases: Cases) -> Floats:
        """(cases, n) 1 where the agent would take the candidate if it were shown alone, else 0: a request for each.

        An agent that only ranks ranks it among items that the user hasn't met.
        """
        n = cases.candidates.shape[1]
        places = [(case, place) for case in range(len(cases)) for place in range(n)]
        singles = [_narrowed(cases.query(case), place, cases.source) for case, place in places]
        if self.responder.through == "response":
            answers = self.asker.respond(singles, self.responder.levels, taken=False)
            yes = [answer is not None and answer.taken is not None for answer in answers]
        else:
            ranked = self._among_others(cases.source, singles, cases.users.repeat(n), cases.turns.repeat(n))
            yes = [bool(ranking.order) and self._takes(ranking, at) for ranking, at in ranked]
        return np.array(yes, np.float64).reshape(len(cases), n)

    def _takes(self, ranking: Ranking, at: int) -> bool:
        z = self.calibration.utilities(ranking, RANKED)
        return bool(self.calibration.take(z[[at]], np.delete(z, at)) > 0.5)

    def rate(self, dataset: Dataset, rows: NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
        """Mean stars and probability of a like, (n,) each, of rows of the data set, knowing what came before each."""
        own, raw, line = self._said(dataset, rows)
        if line is None:
            mean = np.where(np.isnan(raw), own, raw)
            return mean, (mean > dataset.liked_above).astype(np.float64)
        return line.mean(own, raw), line.likes(own, raw, dataset.liked_above)

    def draw_stars(self, dataset: Dataset, rows: NDArray[np.integer[Any]], seed: int) -> Floats:
        """(n,) ratings of the same rows as the agent would give them."""
        own, raw, line = self._said(dataset, rows)
        if line is None:
            return np.where(np.isnan(raw), own, raw)
        noise = np.random.default_rng(seed).standard_normal(len(rows))
        return np.array([line.given(*said) for said in zip(own, raw, noise, strict=True)])

    def _said(self, dataset: Dataset, rows: NDArray[np.integer[Any]]) -> tuple[Floats, Floats, StarsLine | None]:
        """(n,) the users' means, and what the agent says of the rows' items; asked once for `rate` and `draw_stars`."""
        key = dataset.hash, np.asarray(rows).tobytes()
        if self._asked is None or self._asked[0] != key:
            self._asked = key, self._ask(dataset, rows)
        return self._asked[1]

    def _ask(self, dataset: Dataset, rows: NDArray[np.integer[Any]]) -> tuple[Floats, Floats, StarsLine | None]:
        users = np.searchsorted(dataset.indptr, rows, side="right") - 1
        queries = [_before(dataset, int(user), int(row)) for user, row in zip(users, rows, strict=True)]
        own = np.array([self.calibration.own_mean(query.history.ratings) for query in queries])
        if self.responder.through == "response":
            line, raw = self.calibration.by_response, self.asker.stars(queries, self.responder.levels)
        else:
            line, ranked = self.calibration.by_ranking, self._among_others(dataset, queries, users, rows)
            raw = np.array([rank_score(each, RANKED)[at] if each.order else math.nan for each, at in ranked])
        return own, raw if line is None else np.where(np.isnan(raw), line.typical, raw), line

    def _sitting_lengths(self, n: int, seed: int) -> NDArray[np.int64]:
        """(n,) steps of a visit, whose end is as likely after each."""
        return np.random.default_rng(seed).geometric(self.calibration.leave, n)

    def _utilities(self, queries: Sequence[Query]) -> Floats:
        n = max((len(query.candidates) for query in queries), default=0)
        if n > _MOST_RANKED:
            raise InvalidOption(f"{n:,} candidates: an agent ranks {_MOST_RANKED} at most, in one prompt")
        rankings = self.asker.rank(queries)
        pairs = zip(queries, rankings, strict=True)
        return np.stack([self.calibration.utilities(ranking, len(query.candidates)) for query, ranking in pairs])

    def _among_others(
        self,
        dataset: Dataset,
        queries: Sequence[Query],
        users: NDArray[np.integer[Any]],
        numbers: NDArray[np.integer[Any]],
    ) -> list[tuple[Ranking, int]]:
        """Rankings of each query's one candidate among items that the user never met there, and its position."""
        asked = users.astype(np.int64), numbers.astype(np.int64)
        others = sample_negatives(self.seed, *asked, RANKED, Seen(dataset))
        items = np.array([query.candidates.indices[0] for query in queries])
        rng = np.random.default_rng(self.seed)
        lists, places = [], rng.integers(RANKED, size=len(queries)).tolist()
        for item, row, place in zip(items, others, places, strict=True):
            lists.append(np.insert(row[row != item][: RANKED - 1], place, item).astype(np.int32))
        rankings = self.asker.rank(
            [_showing(query, shown, dataset) for query, shown in zip(queries, lists, strict=True)]
        )
        return list(zip(rankings, places, strict=True))


class _Asker:
    """Asks new agents, many at once; what fails is counted, and given up when all else fails too."""

    def __init__(self, agent: Callable[[Query], UserAgent], report: Callable[[int, int], None] | None) -> None:
        self.agent, self.report = agent, report
        self.problems: Counter[str] = Counter()
        self._failed_in_a_row = 0

    def rank(self, queries: Sequence[Query]) -> list[Ranking]:
        """A ranking of each query; an empty one where there was no answer."""
        found = self._all(self.agent(query).arank(query) for query in queries)
        self.problems.update(kind for ranking in found if ranking for kind in ranking.report.kinds)
        return [ranking or Ranking(order=()) for ranking in found]

    def respond(self, queries: Sequence[Query], levels: tuple[float, ...], *, taken: bool) -> list[Response | None]:
        """A response to each query's candidates; None where there was no answer."""
        visits = [visit_after(query.history.ratings, levels, taken=taken) for query in queries]
        found = self._all(self.agent(asked[0]).arespond(*asked) for asked in zip(queries, visits, strict=True))
        answers = [answer if isinstance(answer, Response) else None for answer in found]
        self.problems.update(kind for answer in answers if answer for kind in answer.report.kinds)
        return answers

    def stars(self, queries: Sequence[Query], levels: tuple[float, ...]) -> Floats:
        """(n,) stars of the one candidate, which the user has taken; NaN where there was no usable answer."""
        answers = self.respond(queries, levels, taken=True)
        return np.array([math.nan if a is None or a.stars is None else a.stars for a in answers])

    def _all(self, asked: Iterable[Coroutine[Any, Any, _T]]) -> list[_T | None]:
        return wait_for(self._gathered(list(asked)))

    async def _gathered(self, asked: Sequence[Coroutine[Any, Any, _T]]) -> list[_T | None]:
        gate, done = asyncio.Semaphore(_AT_ONCE), 0

        async def one(work: Coroutine[Any, Any, _T]) -> _T | None:
            nonlocal done
            async with gate:
                found = await self._tried(work)
            done += 1
            if self.report:
                self.report(done, len(asked))
            return found

        try:
            return await all_of([one(work) for work in asked])
        finally:
            for work in asked:
                work.close()  # those that an error left unasked

    async def _tried(self, work: Coroutine[Any, Any, _T]) -> _T | None:
        try:
            found = await work
        except EndpointError as error:
            self._failed_in_a_row += 1
            self.problems[f"no answer: {error.kind}"] += 1
            if self._failed_in_a_row >= _FAILED_IN_A_ROW:
                raise
            return None
        self._failed_in_a_row = 0
        return found


def calibrate(
    agent: Callable[[], UserAgent],
    dataset: Dataset,
    users: Sequence[Id],
    *,
    through: Through = "ranking",
    turns: int = 5,
    seed: int = 0,
    made_from: dict[str, Any] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Fit a calibration on the last interactions of some users, whom neither the model nor the tests should know.

    Args:
        agent: Makes a new agent.
        dataset: Whose users.
        users: Their ids.
        through: "response" fits the agent's own stars too, which is another request an interaction.
        turns: Interactions of each user.
        seed: Of negatives and of the cuts.
        made_from: Kept with it, for people.
        report: Called with answers had and wanted.

    Raises:
        UnknownName: The data set has no such user.
        InvalidOption: The users have too few interactions.
        EndpointError: Many requests in a row failed.
    """
    stream = Stream(dataset, n_candidates=RANKED, seed=seed, split="test", targets="all", turns=turns)
    indices = np.array([dataset.user_index(user) for user in users], np.int64)
    able = indices[np.isin(indices, stream.users)]
    asked = [turn for turns_of in stream.turns_of(able) for turn in turns_of]
    asker = _Asker(lambda query: agent(), report)
    rankings = asker.rank([turn.query for turn in asked])
    ranked = [(turn, ranks(ranking, RANKED)) for turn, ranking in zip(asked, rankings, strict=True) if ranking.order]
    liked = [(found, turn.target) for turn, found in ranked if turn.liked]
    found, targets = np.array([found for found, _ in liked]), np.array([target for _, target in liked], np.int64)
    temperature, (slope, length, outside) = fit_choice(found, targets, seed)
    mean = float(dataset.ratings.mean())
    scores = np.array([-math.log(found[turn.target] / RANKED) for turn, found in ranked])
    return Calibration(
        temperature=temperature,
        slope=slope,
        length=length,
        outside=outside,
        leave=leaving_rate([dataset.timestamps[dataset.starts[user] : dataset.indptr[user + 1]] for user in able]),
        mean_rating=mean,
        n=len(liked),
        by_ranking=_line([turn for turn, _ in ranked], scores, mean),
        by_response=_line_of_stars(asker, asked, dataset) if through == "response" else None,
        made_from=made_from or {},
    )


def _line_of_stars(asker: _Asker, turns: Sequence[Turn], dataset: Dataset) -> StarsLine:
    """The line of the stars that agents give what their users took."""
    raw = asker.stars([_narrowed(turn.query, turn.target, dataset) for turn in turns], levels_of(dataset))
    given = np.flatnonzero(~np.isnan(raw))
    if len(given) < FEWEST:
        wrong = ", ".join(f"{problem}: {n}" for problem, n in asker.problems.most_common(5))
        raise InvalidOption(
            f"the agents gave stars {len(given)} of {len(turns)} times, too few to calibrate them "
            f"({wrong or 'no users'}): ask a model that can, or leave stars as they are (--raw-stars)"
        )
    return _line([turns[place] for place in given.tolist()], raw[given], float(dataset.ratings.mean()))


def _line(turns: Sequence[Turn], raw: Floats, mean: float) -> StarsLine:
    own = np.array([shrunk_mean(turn.query.history.ratings, mean) for turn in turns])
    return fit_stars(own, raw, np.array([turn.rating for turn in turns], np.float64))


def _before(dataset: Dataset, user: int, row: int) -> Query:
    """A row's item as the one candidate, after what came before it."""
    history = History(dataset, user, int(dataset.starts[user]), row)
    return Query(dataset.user(user), history, Candidates(dataset.items, dataset.item_indices[[row]]), dataset.domain)


def _showing(query: Query, items: NDArray[np.int32], dataset: Dataset) -> Query:
    return replace(query, candidates=Candidates(dataset.items, items))


def _narrowed(query: Query, place: int, dataset: Dataset) -> Query:
    return _showing(query, query.candidates.indices[[place]], dataset)
