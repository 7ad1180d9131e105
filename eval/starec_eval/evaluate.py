"""Run rankers through a protocol's cases, whatever they are: scorers at once, agents concurrently and resumably."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from typing import Protocol as Typed

import numpy as np
from numpy.typing import NDArray

from starec_env.cases import Cases
from starec_env.data.cut import catalogue_only
from starec_env.errors import InvalidOption, RunError, StarecError
from starec_env.types import Dataset, ParseReport, Query, Ranker, Ranking
from starec_eval.journal import Journal
from starec_eval.protocol import Protocol
from starec_eval.rankers.recorded import LLMRanker
from starec_eval.rankers.scorer import Scorer, check_scores, ranks_of
from starec_eval.table import Results, Scored

Report = Callable[[str, int, int], None]
"""Called with progress: method, cases done, cases in all."""


class AsyncRanker(Typed):
    """A ranker that is awaited. It may also have `abegin(protocol)`, awaited first, and `aclose()`, awaited last."""

    async def arank(self, query: Query) -> Ranking:
        """Rank the candidates of a query, best first."""
        ...


AnyRanker = Ranker | AsyncRanker | LLMRanker


def evaluate(
    rankers: Iterable[AnyRanker | tuple[str, AnyRanker]],
    protocol: Protocol,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    concurrency: int = 64,
    cache: str | Path | None = None,
    report: Report | None = None,
) -> Results:
    """Fit and evaluate rankers on one protocol; works inside a running event loop too.

    Args:
        rankers: Scorers, LLM rankers, or anything with `rank(query)` or an async `arank(query)`; a pair gives it a
            name.
        protocol: Says who is trained on, and holds the cases.
        out: A folder that keeps each method's ranks as they come, so that a killed run can go on.
        resume: Take what `out` has; without it, ranks that are there are an error.
        concurrency: Cases of an async ranker in flight.
        cache: A folder of fits by data and settings, so that a second table takes those of the first.
        report: Called as cases finish.

    Returns:
        A row a method. A method that fails has its error in its row, and the others go on.

    Raises:
        RunError: `out` holds ranks of other settings, or of any and `resume` is False.
        InvalidOption: A model's card says that it was trained on users who are to be tested.
    """
    named = [ranker if isinstance(ranker, tuple) else (_name(ranker), ranker) for ranker in rankers]
    for _, ranker in named:
        if isinstance(ranker, LLMRanker):
            ranker.refuse_trained(protocol)
    run = _Run(
        protocol,
        Path(out) if out else None,
        resume,
        concurrency,
        Path(cache) if cache else None,
        report or (lambda *_: None),
    )
    return Results(protocol.describe(), protocol.cases, [run.method(name, ranker) for name, ranker in named])


@dataclass
class _Run:
    protocol: Protocol
    out: Path | None
    resume: bool
    concurrency: int
    cache: Path | None
    report: Report

    def method(self, name: str, ranker: AnyRanker) -> Scored:
        begun = time.perf_counter()
        log = _Log(self.out, name, self._settings(name, ranker), self.resume, len(self.protocol.cases))
        try:
            if not log.complete:
                try:
                    self._rank(name, ranker, log)
                finally:
                    log.seconds += time.perf_counter() - begun
            return Scored(name, log.ranks, log.seconds, log.violations(self.protocol.cases), prompts=log.prompts)
        except Exception as error:
            text = str(error) if isinstance(error, StarecError) else f"{type(error).__name__}: {error}"
            return Scored(name, np.full(len(log.ranks), np.nan), log.seconds, error=text)
        finally:
            log.close()

    def _settings(self, name: str, ranker: AnyRanker) -> Mapping[str, Any]:
        shown = repr(ranker) if isinstance(ranker, Scorer) else str(getattr(ranker, "settings", type(ranker).__name__))
        return {**self.protocol.describe(), "method": name, "settings": shown}

    def _rank(self, name: str, ranker: AnyRanker, log: _Log) -> None:
        cases = self.protocol.cases
        if isinstance(ranker, Scorer):
            ranker.fitted(self._training(ranker), self.cache)
            log.all(score_ranks(ranker, cases))
        elif isinstance(ranker, LLMRanker):
            _run_async(lambda: self._rank_recorded(name, ranker, log))
        elif isinstance(ranker, Ranker) and not hasattr(ranker, "arank"):
            for case in log.todo:
                log.add(case, ranker.rank(cases.query(case)), cases)
                self.report(name, log.done, len(cases))
        elif hasattr(ranker, "arank"):
            _run_async(lambda: self._rank_async(name, ranker, log))
        else:
            raise InvalidOption(
                f"{name} is a {type(ranker).__name__}, which can't rank: give it rank(query) or an async arank(query) "
                "that returns a Ranking"
            )

    def _training(self, scorer: Scorer) -> Dataset:
        if not scorer.learns:
            return catalogue_only(self.protocol.dataset)
        return self.protocol.training(scorer.train or self.protocol.reading.popularity)

    async def _rank_recorded(self, name: str, ranker: LLMRanker, log: _Log) -> None:
        def report(done: int, total: int) -> None:
            self.report(name, done, total)

        with nullcontext(self.out) if self.out else TemporaryDirectory() as folder:
            out = Path(folder) / "runs" / file_name(name)
            found, log.prompts = await ranker.rank_cases(
                self.protocol, out, concurrency=self.concurrency, report=report
            )
        for case, ranking in sorted(found.items()):
            log.add(case, ranking, self.protocol.cases)

    async def _rank_async(self, name: str, ranker: Any, log: _Log) -> None:
        cases, failed, waiting = self.protocol.cases, [], iter(log.todo)

        async def work() -> None:
            for case in waiting:
                try:
                    log.add(case, await ranker.arank(cases.query(case)), cases)
                except StarecError as error:
                    failed.append(f"user {cases.user_ids[case]!r}: {error}")
                self.report(name, log.done, len(cases))

        try:
            if begin := getattr(ranker, "abegin", None):
                await begin(self.protocol)
            await asyncio.gather(*(work() for _ in range(self.concurrency)))
        finally:
            if close := getattr(ranker, "aclose", None):
                await close()
        if failed:
            raise RunError(f"{len(failed):,} of {len(cases):,} cases failed, the first: {failed[0]}")


def file_name(method: str) -> str:
    """A method's name as the name of a file."""
    name = "".join(char if char.isalnum() or char in "-._@+ ()" else "_" for char in method)
    return name if name.strip(". ") else f"_{len(name)}"  # "", "." and ".." are other folders


def score_ranks(scorer: Scorer, cases: Cases) -> NDArray[np.float64]:
    """(cases,) 1-based ranks of the targets by a fitted scorer, ties broken by its seed."""
    batch = cases.batch()
    scores = check_scores(scorer.scores(batch), batch, scorer.label)
    return ranks_of(scores, cases.targets, batch, scorer.seed)


def judged(ranking: Ranking, target: int, n: int) -> tuple[int | None, ParseReport]:
    """The target's 1-based rank in a ranking, None if missing, and what was wrong with the ranking.

    A ranking that repeats a position or names one that doesn't exist ranks nothing. What is missing is noted.
    """
    order = ranking.order
    if len(set(order)) < len(order) or any(not 0 <= position < n for position in order):
        return None, ranking.report.model_copy(update={"other": f"not a ranking of {n}: {list(order)}"})
    report = ranking.report
    if order or report.valid:
        report = report.model_copy(update={"missing": n - len(order)})
    return ranking.rank_of(target), report


class _Log:
    """A method's ranks, appended to `ranks/METHOD.jsonl` as they come: a line of settings, then a line a case.

    Closing adds a line with the seconds of all sessions together and a digest of all prompts.
    """

    def __init__(self, out: Path | None, name: str, settings: Mapping[str, Any], resume: bool, n: int) -> None:
        self.ranks = np.full(n, np.nan)
        self.finished = np.zeros(n, bool)
        self.seconds = 0.0
        self.prompts: str | None = None
        self._reports: dict[int, ParseReport] = {}
        self._journal: Journal | None = None
        if out is None:
            return
        path = out / "ranks" / f"{file_name(name)}.jsonl"
        if path.exists() and not resume:
            raise RunError(f"{out} holds ranks already: pass resume=True (--resume) or choose another folder")
        self._journal = Journal(path, settings)
        for line in self._journal.lines:
            if "seconds" in line:
                self.seconds, self.prompts = line["seconds"], line["prompts"] or self.prompts
            else:
                self._set(line["case"], line["rank"], ParseReport(**line.get("report", {})))

    @property
    def complete(self) -> bool:
        return bool(self.finished.all())

    @property
    def todo(self) -> list[int]:
        pending: list[int] = np.flatnonzero(~self.finished).tolist()
        return pending

    @property
    def done(self) -> int:
        return int(self.finished.sum())

    def add(self, case: int, ranking: object, cases: Cases) -> None:
        if not isinstance(ranking, Ranking):
            raise InvalidOption(
                f"the ranker returned a {type(ranking).__name__} for user {cases.user_ids[case]!r}: wanted "
                "starec_env.types.Ranking(order=...), candidate positions best first"
            )
        rank, report = judged(ranking, int(cases.targets[case]), cases.candidates.shape[1])
        self._set(case, rank, report)
        self._write({"case": case, "rank": rank, "report": report.model_dump(exclude_defaults=True)})

    def all(self, ranks: NDArray[np.float64]) -> None:
        self.ranks, self.finished = ranks, np.ones(len(ranks), bool)
        for case, rank in enumerate(ranks.tolist()):
            self._write({"case": case, "rank": int(rank), "report": {}})

    def _set(self, case: int, rank: int | None, report: ParseReport) -> None:
        self.ranks[case] = np.nan if rank is None else rank
        self.finished[case] = True
        if not report.valid:
            self._reports[case] = report

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._journal:
            self._journal.add(line)

    def violations(self, cases: Cases) -> list[str]:
        return [
            f"user {cases.user_ids[case]!r}, repetition {cases.repetition[case]}: {'; '.join(report.problems)}"
            for case, report in sorted(self._reports.items())
        ]

    def close(self) -> None:
        if self._journal:
            self._write({"seconds": self.seconds, "prompts": self.prompts})
            self._journal.close()


def _run_async(start: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await start()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(run())
        return
    with ThreadPoolExecutor(1) as pool:  # e.g. a notebook, whose loop is busy with us
        pool.submit(asyncio.run, run()).result()


def _name(ranker: AnyRanker) -> str:
    return ranker.label if isinstance(ranker, Scorer) else str(getattr(ranker, "name", type(ranker).__name__))
