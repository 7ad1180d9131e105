"""A teacher's answers, screened: flawed ones go back with the fault named, a bounded number of times (4.2.1).

Screening looks at form (a rationale, every candidate once, a profile that speaks of preferences) and at worth (NDCG of
the ranking, or of the ranking that follows a memory update). "Prompt error + rethink" then tells the teacher what was
wrong and asks again; the row keeps the first prompt, so a student learns the better answer without the hint.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from starec_agents.llm import ChatModel, Completion, Message
from starec_agents.tasks import profile_format, split_thought
from starec_agents.tasks.titles import item_title
from starec_env.errors import EndpointError, InvalidOption, TrainingError
from starec_env.metrics import ndcg
from starec_env.replay.rewards import LIKED_CUTOFF
from starec_training.dataset import Row, Rows, Task

_PREFERENCE = re.compile(
    r"\b(dis)?(like[sd]?|prefer\w*|enjoy\w*|loves?|favou?r\w*|interest\w*|tastes?|avoids?|fans? of|drawn to)\b", re.I
)
_HINTED = re.compile(
    r"\b(rethink|you (told|said|mentioned)|as (you|was) (told|noted|said)|(your|the) (hint|remark|correction)"
    r"|previous (answer|ranking)|(actually|in fact) (chose|went on|took))\b",
    re.I,
)


@dataclass(frozen=True)
class Screening:
    """What a sample must be to teach."""

    min_ndcg: float = float(ndcg(LIKED_CUTOFF, 10))
    """Least NDCG@10 of a ranking, and of the rankings after a memory update. The paper keeps "those with higher
    scores" and names no figure; this one is the fifth place, where the position reward is still positive."""
    rationale: bool | None = None
    """Whether a thought is asked of every answer; None: in the paper's format alone."""
    min_rationale: int = 5
    """Fewest words of a thought."""
    max_profile: int = 150
    """Most words of a profile; the prompt asks for at most 100."""


@dataclass(frozen=True)
class Flaw:
    """What is wrong with a sample, and what the teacher is told of it."""

    kind: str
    feedback: str


_CUT_OFF = Flaw("cut off", "Your answer was cut off before its end: keep it shorter.")


class TaskReport(BaseModel):
    """What screening and rethinking did to one task's samples."""

    samples: int = 0
    passed: int = 0
    """At the first attempt."""
    gained: list[int] = []
    """By the first rethink, the second, ..."""
    flaws: dict[str, int] = {}
    """Of first attempts."""
    lost: dict[str, int] = {}
    """Last flaw of samples that never passed."""


class TeachReport(BaseModel):
    """How many samples pass, why others fail, and what rethinking gained."""

    tasks: dict[str, TaskReport] = {}

    def add(self, task: Task, flaws: Sequence[str], passed: bool) -> None:
        """Count a sample by the flaws of its attempts, in order."""
        report = self.tasks.setdefault(task, TaskReport())
        report.samples += 1
        if not flaws:
            report.passed += 1
            return
        report.flaws[flaws[0]] = report.flaws.get(flaws[0], 0) + 1
        if passed:
            report.gained += [0] * (len(flaws) - len(report.gained))
            report.gained[len(flaws) - 1] += 1
        else:
            report.lost[flaws[-1]] = report.lost.get(flaws[-1], 0) + 1

    def __str__(self) -> str:
        lines = []
        for task, report in self.tasks.items():
            gained = ", ".join(f"{count} at rethink {n}" for n, count in enumerate(report.gained, 1)) or "none"
            flaws = ", ".join(f"{kind} {count}" for kind, count in Counter(report.flaws).most_common()) or "none"
            kept = report.passed + sum(report.gained)
            lines.append(
                f"{task}: {kept} of {report.samples} samples kept; {report.passed} passed at once; "
                f"gained by rethinking: {gained}; flaws of first answers: {flaws}"
            )
        return "\n".join(lines)


def teach(
    rows: Rows,
    llm: ChatModel | None = None,
    screening: Screening | None = None,
    *,
    rethinks: int = 2,
    concurrency: int = 64,
    **sampling: Any,
) -> tuple[Rows, TeachReport]:
    """Screen a teacher's rows and have it rethink the flawed ones; `ateach` is the same for a running event loop.

    Args:
        rows: From a population that the teacher ran (`run_rows`).
        llm: The teacher. With None nothing is rethought, and memory updates are judged by form alone.
        screening: What a sample must be.
        rethinks: Most times that a sample goes back.
        concurrency: Samples in flight.
        sampling: Goes with the teacher's requests. An `OpenAIChat` with a cache_dir makes a killed run cheap to repeat,
            and gives the follow-ups of the teacher's own updates from the population's run.

    Returns:
        The rows that passed, in order, with `attempt`, `flaws` and `rejected` (the answers that failed) in their
        lineage, and the report.

    Raises:
        TrainingError: The endpoint failed for every sample.
    """
    return asyncio.run(ateach(rows, llm, screening, rethinks=rethinks, concurrency=concurrency, **sampling))


async def ateach(
    rows: Rows,
    llm: ChatModel | None = None,
    screening: Screening | None = None,
    *,
    rethinks: int = 2,
    concurrency: int = 64,
    **sampling: Any,
) -> tuple[Rows, TeachReport]:
    """See `teach`."""
    if rethinks < 0 or concurrency < 1:
        raise InvalidOption(f"rethinks={rethinks}, concurrency={concurrency}: wanted at least 0 and 1")
    teacher = _Teacher(llm, screening or Screening(), rethinks if llm else 0, sampling)
    gate, faults = asyncio.Semaphore(concurrency), list[EndpointError]()

    async def one(row: Row) -> tuple[Row | None, list[str]]:
        async with gate:
            try:
                return await teacher.taught(row)
            except EndpointError as error:
                faults.append(error)
                return None, [f"endpoint: {error.kind}"]

    found = await asyncio.gather(*map(one, rows))
    if rows.rows and len(faults) == len(rows):
        raise TrainingError(f"the teacher's endpoint failed for all {len(rows):,} samples, the first: {faults[0]}")
    kept, report = Rows(dropped=Counter(rows.dropped)), TeachReport()
    for row, (better, flaws) in zip(rows, found, strict=True):
        report.add(row.task, flaws, better is not None)
        if better is not None:
            kept.rows.append(better)
        else:
            kept.dropped[f"screened: {flaws[-1]}"] += 1
    return kept, report


@dataclass(frozen=True)
class _Teacher:
    llm: ChatModel | None
    screening: Screening
    rethinks: int
    sampling: dict[str, Any]

    async def taught(self, row: Row) -> tuple[Row | None, list[str]]:
        """The row with the first answer that passes, or None, and the flaws of those that did not."""
        flaws, rejected = list[str](), list[str]()
        text, cut_off = row.completion, bool(row.lineage.get("cut_off"))
        while True:
            flaw = _CUT_OFF if cut_off else await self.flaw(row, text)
            if flaw is None and flaws and _HINTED.search(text):
                flaw = Flaw("mentions the hint", "Your answer speaks of my remark. Write it as if there had been none.")
            if flaw is None:
                lineage = {**row.lineage, "cut_off": False, "attempt": len(flaws), "flaws": flaws, "rejected": rejected}
                return row.model_copy(update={"completion": text, "lineage": lineage}), flaws
            flaws.append(flaw.kind)
            rejected.append(text)
            if self.llm is None or len(flaws) > self.rethinks:
                return None, flaws
            answer = await self._rethought(self.llm, row, text, flaw)
            text, cut_off = answer.answer, answer.cut_off

    async def _rethought(self, llm: ChatModel, row: Row, text: str, flaw: Flaw) -> Completion:
        asked: list[Message] = [
            *row.prompt,
            {"role": "assistant", "content": text},
            {"role": "user", "content": f"{flaw.feedback} Rethink, and answer again in full, in the same format."},
        ]
        return await llm.complete(asked, **self.sampling)

    async def flaw(self, row: Row, text: str) -> Flaw | None:
        """What is wrong with an answer; None if it may teach."""
        if missing := self._rationale_flaw(row, text):
            return missing
        return self._ranking_flaw(row, text) if row.task == "rank" else await self._update_flaw(row, text)

    def _rationale_flaw(self, row: Row, text: str) -> Flaw | None:
        answer, unfinished = split_thought(text)
        if unfinished:
            return Flaw("cut off", "Your thought was never closed by </think>, so there was no answer.")
        wanted = row.snapshot.answer_format == "paper" if self.screening.rationale is None else self.screening.rationale
        words = len(text.removesuffix(answer).replace("<think>", " ").replace("</think>", " ").split())
        if wanted and words < self.screening.min_rationale:
            return Flaw("no rationale", "You gave no reasons: first think, between <think> and </think>.")
        return None

    def _ranking_flaw(self, row: Row, text: str) -> Flaw | None:
        shown = row.snapshot.shown
        ranking = shown.parse(text, row.snapshot.answer_format)
        if not ranking.valid:
            problems = ", ".join(ranking.problems)
            return Flaw(
                ranking.report.kinds[0].replace("_", " "),
                f"Your ranking is not one of all {len(shown.candidates)} candidates ({problems}).",
            )
        rank = ranking.rank_of(shown.target)
        if ndcg(rank, 10) >= self.screening.min_ndcg:
            return None
        title = item_title(shown.candidates[shown.target])
        return Flaw(
            "misranked",
            f"You ranked {title} at place {rank}, but the user chose it next. Find in the user's profile and history "
            "what speaks for it, and what you overrated. Don't mention this remark.",
        )

    async def _update_flaw(self, row: Row, text: str) -> Flaw | None:
        profile = profile_format(row.snapshot.answer_format).parse(text).text
        if profile is None:
            return Flaw("no profile", "Your answer held no description in the format asked for.")
        if not _PREFERENCE.search(profile):
            return Flaw("no preference", "Your description says nothing of what the user likes or dislikes.")
        if len(profile.split()) > self.screening.max_profile:
            return Flaw("too long", f"Your description is longer than {self.screening.max_profile} words: at most 100.")
        if self.llm is None:
            return None
        snapshot = row.snapshot
        prompts = snapshot.follow_up_prompts(profile)
        answers = await asyncio.gather(*(self.llm.complete(prompt, **self.sampling) for prompt in prompts))
        ranks = [
            case.rank(answer.answer, snapshot.answer_format, answer.cut_off)
            for case, answer in zip(snapshot.follow_ups, answers, strict=True)
        ]
        if ndcg(ranks, 10).mean() >= self.screening.min_ndcg:
            return None
        # What came next stays unsaid: the update must not know the future.
        places = ", ".join("none" if rank is None else str(rank) for rank in ranks)
        return Flaw(
            "unhelpful",
            f"With your description, what the user chose next was ranked at place {places}. Describe the tastes that "
            "explain all of the user's choices, not the last one alone. Don't mention this remark.",
        )
