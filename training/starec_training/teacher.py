"""A teacher's answers by rejection sampling (4.2.1): several fresh samples of a prompt, the best that passes is kept.

The teacher never hears the outcome. Where every sample of a prompt is flawed, it is asked again ("prompt error +
rethink") with the fault named in words that are the same whatever the target is, and without its earlier answer, so
that not even the order it gave narrows the target down. The row keeps the prompt without the remark.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from starec_agents.llm import ChatModel, Completion, Message
from starec_agents.tasks import profile_format
from starec_env.errors import EndpointError, InvalidOption, TrainingError
from starec_env.metrics import ndcg
from starec_training.dataset import Row, Rows, Task, whole_thought
from starec_training.judge import Judgement, Thought, judge
from starec_training.screening import MISRANKED, UNHELPFUL, Flaw, Screening, flaw_of

SAMPLES = 4
"""Answers to a prompt at a time; the paper says "diverse reasoning samples" without a number."""
RETHINKS = 2
"""Most times that a prompt is asked again with its fault named; the paper says "iteratively"."""
LEAST_FAILURES = 8
"""Prompts in a row whose requests all failed that end the work, or as many as are in flight."""

_NOTHING_TO_GAIN = Flaw("nothing to gain", "")


@dataclass(frozen=True)
class Sample:
    """One answer to a prompt, judged."""

    text: str
    flaw: Flaw | None
    score: float
    """NDCG@10 of a ranking, or a memory update's gain in it over the old profile; 0 where the form is flawed."""
    round: int = 0
    """How often the prompt's fault had been named before: 0 is the prompt as the student has it."""


class TaskReport(BaseModel):
    """What sampling and screening did to one task's prompts."""

    prompts: int = 0
    passed: int = 0
    """The answer of the population's own run passed."""
    resampled: int = 0
    """Gained by other samples of the same prompt."""
    rethought: list[int] = []
    """Gained after the fault was named once, twice, ..."""
    samples: int = 0
    """Answers looked at."""
    flaws: dict[str, int] = {}
    """Of those answers."""
    lost: dict[str, int] = {}
    """Prompts without a row, by the last answer's flaw."""

    @property
    def kept(self) -> int:
        """Rows."""
        return self.passed + self.resampled + sum(self.rethought)

    def __str__(self) -> str:
        rounds = [("another sample", self.resampled), *((f"rethink {n}", k) for n, k in enumerate(self.rethought, 1))]
        gained = ", ".join(f"{count} by {how}" for how, count in rounds if count) or "none"
        flaws = ", ".join(f"{kind} {count}" for kind, count in Counter(self.flaws).most_common()) or "none"
        share = 100 * (self.kept - self.passed) / self.kept if self.kept else 0.0
        return (
            f"{self.kept} of {self.prompts} prompts kept ({self.samples} samples); {self.passed} passed at once; "
            f"gained: {gained} ({share:.0f} % of the rows); flaws of all samples: {flaws}"
        )


class TeachReport(BaseModel):
    """How many prompts got a row, why samples failed, what more samples gained, and what the thoughts give away."""

    tasks: dict[str, TaskReport] = {}
    judge: Judgement | None = None

    def add(self, task: Task, samples: Sequence[Sample], kept: Sample | None, failure: str | None = None) -> None:
        """Count a prompt, its samples in the order they came, and which of them is kept."""
        report = self.tasks.setdefault(task, TaskReport())
        report.prompts += 1
        report.samples += len(samples)
        flaws = [sample.flaw.kind for sample in samples if sample.flaw]
        report.flaws = dict(Counter(report.flaws) + Counter(flaws))
        if kept is None:
            report.lost = dict(Counter(report.lost) + Counter([failure or flaws[-1]]))
        elif samples[0].flaw is None:
            report.passed += 1
        elif kept.round == 0:
            report.resampled += 1
        else:
            report.rethought += [0] * (kept.round - len(report.rethought))
            report.rethought[kept.round - 1] += 1

    def __str__(self) -> str:
        lines = [f"{task}: {report}" for task, report in self.tasks.items()]
        return "\n".join([*lines, *([str(self.judge)] if self.judge else [])])


def teach(rows: Rows, llm: ChatModel | None = None, screening: Screening | None = None, **options: Any) -> Any:
    """Screen a teacher's rows and have it answer again where they are flawed; `ateach` has the options.

    From a notebook or other running event loop, `await ateach(...)` instead.
    """
    return asyncio.run(ateach(rows, llm, screening, **options))


async def ateach(
    rows: Rows,
    llm: ChatModel | None = None,
    screening: Screening | None = None,
    *,
    samples: int = SAMPLES,
    rethinks: int = RETHINKS,
    concurrency: int = 64,
    seed: int = 0,
    on_prompt: Callable[[], object] = lambda: None,
    **sampling: Any,
) -> tuple[Rows, TeachReport]:
    """Turn a teacher's answers into rows that teach.

    Args:
        rows: From a population that the teacher ran (`run_rows`); their answers are each prompt's first sample.
        llm: The teacher. With None the first samples are all there are, and memory updates are judged by form alone.
        screening: What a sample must be.
        samples: Fresh answers at a time, the recorded one included; of those that pass, the best is kept.
        rethinks: Most times that a prompt is asked again with its fault named.
        concurrency: Prompts in work.
        seed: Of the requests, which all differ in it: a client that keeps answers (`OpenAIChat(cache_dir=...)`) then
            makes a killed run cheap to repeat.
        on_prompt: Called when a prompt is done.
        sampling: Goes with the teacher's requests.

    Returns:
        The rows, in order, with `round`, `score` and `flaws` of the samples before in their lineage; and the report.

    Raises:
        TrainingError: The requests of `concurrency` prompts (at least LEAST_FAILURES) in a row all failed.
    """
    if samples < 1 or rethinks < 0 or concurrency < 1:
        raise InvalidOption(f"samples={samples}, rethinks={rethinks}, concurrency={concurrency}: wanted >= 1, 0 and 1")
    teacher = _Teacher(llm, screening or Screening(), samples, rethinks if llm else 0, seed, sampling)
    gate, failures = asyncio.Semaphore(concurrency), list[EndpointError]()
    most = max(LEAST_FAILURES, concurrency)

    async def one(row: Row) -> tuple[list[Sample], str | None]:
        async with gate:
            try:
                tried, failure = await teacher.samples_of(row), None
                if len(tried) > 1:
                    failures.clear()
            except EndpointError as error:
                tried, failure = [], f"endpoint: {error.kind}"
                failures.append(error)
            if len(failures) >= most:
                raise _gone(failures)
        on_prompt()
        return tried, failure

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(row)) for row in rows]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    if failures and len(failures) == len(rows):
        raise _gone(failures)
    return _chosen(rows, [task.result() for task in tasks])


def _gone(failures: Sequence[EndpointError]) -> TrainingError:
    return TrainingError(
        f"the requests of {len(failures):,} prompts in a row failed, the last: {failures[-1]}. What was answered is "
        "kept: give the same command again when the endpoint works"
    )


def _chosen(rows: Rows, found: Sequence[tuple[list[Sample], str | None]]) -> tuple[Rows, TeachReport]:
    kept, report, thoughts = Rows(dropped=Counter(rows.dropped)), TeachReport(), list[Thought]()
    for row, (samples, failure) in zip(rows, found, strict=True):
        best = _best(samples)
        report.add(row.task, samples, best, failure)
        thoughts += _thoughts(row, samples)
        if best is None:
            kept.dropped[f"screened: {failure or (samples[-1].flaw or _NOTHING_TO_GAIN).kind}"] += 1
        else:
            flaws = [sample.flaw.kind for sample in samples if sample.flaw]
            lineage = {**row.lineage, "cut_off": False, "round": best.round, "score": best.score, "flaws": flaws}
            kept.rows.append(row.model_copy(update={"completion": best.text, "lineage": lineage}))
    report.judge = judge(thoughts, kept)
    return kept, report


def _best(samples: Sequence[Sample]) -> Sample | None:
    return max((sample for sample in samples if sample.flaw is None), key=lambda sample: sample.score, default=None)


def _thoughts(row: Row, samples: Sequence[Sample]) -> list[Thought]:
    """What the judge compares: samples of prompts that were asked with and without a remark, whole in form."""
    if not any(sample.round for sample in samples):
        return []
    whole = [sample for sample in samples if sample.flaw in (None, MISRANKED, UNHELPFUL)]
    said = [(row.model_copy(update={"completion": sample.text}), sample.round > 0) for sample in whole]
    return [Thought.of(answer, told) for answer, told in said]


@dataclass(frozen=True)
class _Teacher:
    llm: ChatModel | None
    screening: Screening
    samples: int
    rethinks: int
    seed: int
    sampling: dict[str, Any]

    async def samples_of(self, row: Row) -> list[Sample]:
        """All samples of a row's prompt, round by round until one passes; the recorded answer comes first."""
        old = await self.follow_up_score(row, None)
        if old == 1.0:
            return [Sample(row.completion, _NOTHING_TO_GAIN, 0.0)]
        tried = [await self.judged(row, row.completion, bool(row.lineage.get("cut_off")), old, 0)]
        if self.llm is None or tried[0].score >= 1.0 - (old or 0.0):  # which can't be bettered
            return tried
        tried += await self.round(row, row.prompt, old, 0)
        for number in range(1, self.rethinks + 1):
            if _best(tried):
                break
            flaws = Counter(sample.flaw for sample in tried if sample.flaw and sample.round == number - 1)
            tried += await self.round(row, with_remark(row, flaws.most_common(1)[0][0]), old, number)
        return tried

    async def round(self, row: Row, prompt: Sequence[Message], old: float | None, number: int) -> list[Sample]:
        """Fresh samples of a prompt; those whose requests failed are left out.

        Raises:
            EndpointError: All of them failed.
        """
        first = self.seed + number * self.samples
        seeds = range(first + (number == 0), first + self.samples)  # the recorded answer is the first of round 0
        found = await asyncio.gather(*(self.ask(prompt, seed) for seed in seeds), return_exceptions=True)
        if faults := [each for each in found if isinstance(each, BaseException)]:
            if len(faults) == len(found) or not all(isinstance(fault, EndpointError) for fault in faults):
                raise faults[0]
        answers = [each for each in found if isinstance(each, Completion)]
        return [await self.judged(row, whole_thought(each.answer), each.cut_off, old, number) for each in answers]

    async def ask(self, prompt: Sequence[Message], seed: int) -> Completion:
        assert self.llm
        return await self.llm.complete(prompt, seed=seed, **self.sampling)

    async def judged(self, row: Row, text: str, cut_off: bool, old: float | None, number: int) -> Sample:
        """A sample with its flaw and score, given the score of the old profile's follow-up rankings."""
        if flaw := flaw_of(row, text, cut_off, self.screening):
            return Sample(text, flaw, 0.0, number)
        if row.task == "rank":
            score = float(ndcg(row.snapshot.shown.rank(text, row.snapshot.answer_format), 10))
            return Sample(text, None if score >= self.screening.min_ndcg else MISRANKED, score, number)
        profile = profile_format(row.snapshot.answer_format).parse(text).text
        new = await self.follow_up_score(row, profile)
        gain = 0.0 if old is None or new is None else new - old
        helps = old is None or gain > self.screening.min_gain
        return Sample(text, None if helps else UNHELPFUL, gain, number)

    async def follow_up_score(self, row: Row, profile: str | None) -> float | None:
        """NDCG@10 of the rankings that follow a memory update, averaged; None where there is nobody to ask.

        Args:
            row: Of a memory update.
            profile: The new one; None for the old one. The same lists, the same seed.
        """
        if self.llm is None or row.task == "rank":
            return None
        snapshot = row.snapshot
        prompts = snapshot.follow_up_prompts(profile)
        answers = await asyncio.gather(*(self.ask(prompt, self.seed) for prompt in prompts))
        ranks = [
            case.rank(answer.answer, snapshot.answer_format, answer.cut_off)
            for case, answer in zip(snapshot.follow_ups, answers, strict=True)
        ]
        return float(ndcg(ranks, 10).mean())


def with_remark(row: Row, flaw: Flaw) -> list[Message]:
    """A row's prompt with a fault named at its end: what is asked when a prompt's samples were all flawed."""
    *before, last = row.prompt
    return [*before, {**last, "content": f"{last['content']}\n\n{flaw.feedback} Answer in the same format."}]
