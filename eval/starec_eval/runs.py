"""Score baselines on the turns of a finished run, beside the agent's own row."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from starec_agents.store import read_run, read_steps
from starec_env.errors import RunError
from starec_env.types import Dataset
from starec_eval.evaluate import AnyRanker, Report, evaluate, judged
from starec_eval.protocol import Protocol, Reading
from starec_eval.table import Results, Scored


def evaluate_run(
    run: str | Path, dataset: Dataset, rankers: Iterable[AnyRanker], *, report: Report | None = None
) -> Results:
    """The agent of a `starec simulate` run and some rankers on exactly the same turns and candidates.

    Rankers learn from the rest of the data set and from the run's users before their first turn of the run, so no
    evaluated target, nor anything later, was seen in training. Turns that the run didn't finish are left out for all.

    Args:
        run: The run's folder.
        dataset: The data set it ran on, prepared as it was then.
        rankers: What to compare it with; scorers are fitted.
        report: Told of progress.

    Raises:
        RunError: The folder holds no run, or no finished step.
    """
    folder = Path(run)
    about = read_run(folder)
    steps = {(str(step.user_id), step.turn): step for step in read_steps(folder)}
    protocol = Protocol(
        dataset,
        Reading(min_interactions=1, max_length=dataset.longest, transductive=True),
        seed=about["seed"],
        n_train=dataset.n_users,
        candidates=folder / "candidates.parquet",
        n_candidates=2,
    )
    cases, _ = protocol.cases, protocol.stops  # training ends before the run's first turn, finished or not
    keys = [(str(user), turn) for user, turn in zip(cases.user_ids, cases.turns.tolist(), strict=True)]
    finished = np.array([key in steps for key in keys])
    if not finished.any():
        raise RunError(f"{folder} has no finished step to compare with")
    protocol.cases = cases.select(finished)
    mine = [steps[key] for key, there in zip(keys, finished, strict=True) if there]
    results = evaluate(rankers, protocol, report=report)
    results.methods.insert(0, _agent_row(about, mine, results))
    results.against = results.methods[0].method
    notes = [*protocol.notes, _note(about, len(cases) - len(mine))]
    if about["dataset"]["hash"] != dataset.hash:
        notes.append(f"the data set isn't the run's: hash {dataset.hash}, the run's was {about['dataset']['hash']}")
    results.settings = {**results.settings, "notes": notes, "run": str(folder)}
    return results


def _agent_row(about: dict[str, Any], steps: list[Any], results: Results) -> Scored:
    n = results.cases.candidates.shape[1]
    found = [judged(step.ranking, step.target, n) for step in steps]
    ranks = np.array([np.nan if rank is None else rank for rank, _ in found], dtype=np.float64)
    violations = [
        f"user {step.user_id!r}, turn {step.turn}: {'; '.join(problems)}"
        for step, (_, problems) in zip(steps, found, strict=True)
        if any(not problem.startswith("tied") for problem in problems)
    ]
    seconds = sum(session.get("wall_s", 0.0) for session in about["sessions"])
    return Scored(f"{about.get('graph', 'agent')} ({about.get('model', '?')})", ranks, seconds, violations)


def _note(about: dict[str, Any], left_out: int) -> str:
    turns = "all turns" if about.get("turns") is None else f"the last {about['turns']} turns"
    text = f"the run: {turns} of each user, seed {about['seed']}; training ends before each user's first of them"
    return f"{text}; {left_out:,} unfinished turns left out" if left_out else text
