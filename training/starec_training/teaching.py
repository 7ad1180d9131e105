"""`starec train teach` as a function: a teacher runs as a population, its answers are screened, rows are written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starec_agents.runs.config import check_same
from starec_agents.runs.population import arun_population
from starec_agents.runs.store import write_text
from starec_env.data.splits import Split
from starec_env.replay.stream import Stream
from starec_env.types import Dataset, Id
from starec_training.dataset import Rows, run_rows, save_report, with_turns, write_rows
from starec_training.screening import Screening
from starec_training.teacher import TeachReport, ateach

BEAT_S = 60.0
"""Seconds between two lines on how an LLM teacher is doing."""


def claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Make a folder this teacher's own, or go on with it.

    Raises:
        RunError: It holds rows of other settings; says which differ.
    """
    check_claim(out, settings)
    path = out / "teach.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(settings, indent=1) + "\n")


def check_claim(out: Path, settings: Mapping[str, Any]) -> None:
    """As `claim`, but writes nothing."""
    path = out / "teach.json"
    if path.exists():
        check_same(settings, json.loads(path.read_text(encoding="utf-8")), out)


def turns_of(
    dataset: Dataset, split: Split, *, turns: int | None, n_candidates: int, seed: int
) -> tuple[Stream, list[Id], dict[str, Any]]:
    """What a teacher steps: the stream, the training users that have a turn in it, and the settings that a run keeps.

    Args:
        dataset: The split's, as prepared.
        split: Who trains, under which reading.
        turns: The last so many turns of each user; None for all.
        n_candidates: Items to rank.
        seed: Of the negatives.
    """
    options: dict[str, Any] = {"n_candidates": n_candidates, "seed": seed, "split": "train", "turns": turns}
    stream = Stream(dataset, **options, **split.reading.stream)
    options |= {"targets": split.reading.targets, "min_history": split.reading.min_history}
    return stream, with_turns(dataset, split.train, **options, negatives=split.reading.negatives), options


async def teach_population(
    dataset: Dataset,
    split: Split,
    agent: Callable[[], Any],
    out: Path,
    *,
    llm: Any = None,
    turns: int | None = None,
    n_candidates: int = 20,
    follow_ups: int = 1,
    seed: int = 0,
    concurrency: int = 64,
    screening: Screening | None = None,
    samples: int = 1,
    rethinks: int = 0,
    say: Callable[[str], object] = print,
    beat_s: float = BEAT_S,
) -> tuple[Rows, TeachReport]:
    """Run a teacher over the split's training users and write OUT/rows.jsonl and OUT/report.json.

    Args:
        dataset: The split's, as prepared.
        split: Its training users are stepped, under its reading; its hash is in each row's lineage.
        agent: Makes the teacher's agents.
        out: The folder; a killed call goes on there.
        llm: The teacher's client, None for a teacher without one.
        turns: The last so many turns of each user.
        n_candidates: Items to rank.
        follow_ups: Next turns by which a memory update is judged.
        seed: Of negatives and requests.
        concurrency: Users, then prompts, in work.
        screening: What a sample must be.
        samples: As `ateach`.
        rethinks: As `ateach`.
        say: Is given the lines on progress.
        beat_s: Seconds between them.
    """
    stream, users, options = turns_of(dataset, split, turns=turns, n_candidates=n_candidates, seed=seed)
    run, done = out / "population", [0, 0]

    def one_more() -> None:
        done[0] += 1

    async with heartbeat(llm, lambda: f"{done[0]:,} of {done[1]:,} prompts screened" if done[1] else "", say, beat_s):
        await arun_population(
            dataset, agent, out=run, users=users, stream=stream, resume=(run / "run.json").exists(),
            concurrency=concurrency, **options,
        )  # fmt: skip
        heldout = [*split.validation, *split.test]
        found = run_rows(run, dataset, heldout=heldout, follow_ups=follow_ups, stream=stream)
        done[1] = len(found)
        rows, report = await ateach(
            found, llm, screening, samples=samples, rethinks=rethinks, seed=seed, concurrency=concurrency,
            on_prompt=one_more,
        )  # fmt: skip
    rows.rows = [row.model_copy(update={"lineage": {**row.lineage, "split": split.hash}}) for row in rows]
    write_rows(out / "rows.jsonl", rows)
    save_report(out / "report.json", {**report.model_dump(), "dropped": dict(rows.dropped), "split": split.hash})
    return rows, report


@asynccontextmanager
async def heartbeat(
    llm: Any, doing: Callable[[], str], say: Callable[[str], object], every_s: float = BEAT_S
) -> AsyncIterator[None]:
    """Say now and then how a client is doing while something else goes on, above all if no answer comes.

    Args:
        llm: An `OpenAIChat`; None says nothing.
        doing: What is done so far, "" where another shows it.
        say: Is given each line.
        every_s: Seconds between lines.
    """

    async def beat() -> None:
        answers = silent = 0
        while True:
            await asyncio.sleep(every_s)
            now = sum(llm.models.values()) + llm.cache_hits
            silent, answers = (silent + 1 if now == answers else 0), now
            if silent:
                say(
                    f"no answer from {llm!r} for {silent * every_s:,.0f} s: {llm.in_flight:,} requests wait, each "
                    f"for at most {llm.endpoint.timeout_s:,.0f} s, {llm.retries:,} were sent again"
                )
            elif doing():
                say(f"{doing()}, {now:,} answers, {llm.in_flight:,} requests wait")

    task = asyncio.create_task(beat()) if llm is not None else None
    try:
        yield
    finally:
        if task:
            task.cancel()
