"""Finished runs on their own turns: each run's agent a row, beside rankers that are given the same lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_agents.runs.reading import read_run, read_steps
from starec_agents.runs.steps import Step
from starec_agents.serving.card import ModelCard, find_card, say_seen
from starec_env.data import NAMES
from starec_env.data.spec import DataSpec
from starec_env.data.ties import as_recorded
from starec_env.errors import InvalidOption, RunError
from starec_env.types import Dataset, Id
from starec_eval.evaluate import AnyRanker, Report, evaluate, judged
from starec_eval.protocol import Protocol, Reading
from starec_eval.table import Results, Scored

_MAKES_LISTS = ("seed", "n_candidates", "targets", "split", "min_history")
"""What in a run's record decides which lists its users were shown."""

Key = tuple[str, int]
"""A user's id as text, and the turn's number."""


@dataclass(frozen=True)
class FinishedRun:
    """A run's folder and what it says; the steps are read when they are first asked for."""

    label: str
    """The folder's name, with as much of the path before it as the others need."""
    folder: Path
    about: Mapping[str, Any]
    """`run.json`."""
    row: str
    """Its name in tables."""
    card: ModelCard | None = None
    """Of its model, where it is known."""

    @cached_property
    def steps(self) -> dict[Key, Step]:
        """Finished steps by user and turn, without their prompts."""
        steps = (step.model_copy(update={"calls": ()}) for step in read_steps(self.folder))
        return {(str(step.user_id), step.turn): step for step in steps}


def open_runs(folders: Sequence[str | Path], model_card: str | Path | None = None) -> list[FinishedRun]:
    """Runs in the order given, each with a label of its own.

    Args:
        folders: Of the runs.
        model_card: The folder of their model, for its card, where the model's name isn't that.

    Raises:
        RunError: A folder holds no run.
        InvalidOption: One is given twice.
    """
    places = [Path(folder).resolve() for folder in folders]
    if again := {place for place in places if places.count(place) > 1}:
        raise InvalidOption(f"the run {min(again)} is given twice: give it once")
    found = []
    for folder, label in zip(folders, _labels(places), strict=True):
        about = read_run(folder)
        row = f"{about.get('graph', 'agent')} ({about.get('model', '?')})"
        card = find_card(model_card, about.get("model"))
        found.append(FinishedRun(label, Path(folder), about, f"{label}: {row}" if len(places) > 1 else row, card))
    return found


def _labels(places: Sequence[Path]) -> list[str]:
    most = max(len(place.parts) for place in places)
    named = [["/".join(place.parts[-n:]) for place in places] for n in range(1, most + 1)]
    return next(labels for labels in named if len(set(labels)) == len(labels))


def run_spec(run: FinishedRun) -> DataSpec | None:
    """How a run's data set is loaded and prepared again; None where it was a table in memory.

    Raises:
        RunError: It can't be: the record is damaged, or the run is a part of an evaluation.
    """
    source, name = run.about.get("data"), run.about["dataset"]["name"]
    if "protocol" in run.about:
        raise RunError(
            f"{run.folder} is a part of an evaluation, whose table is in its folder: see it by starec report"
        )
    if source is None and "data" not in run.about and name in NAMES:  # recorded before runs remembered their data
        source = {"dataset": name}
    try:
        return None if source is None else DataSpec.of(**source)
    except (InvalidOption, TypeError) as error:
        raise RunError(f"{run.folder / 'run.json'} doesn't say what its data are ({error})") from None


def evaluate_run(
    run: str | Path, dataset: Dataset, rankers: Iterable[AnyRanker], *, report: Report | None = None
) -> Results:
    """The agent of one run and some rankers on the run's turns; see `evaluate_runs`."""
    return evaluate_runs(open_runs([run]), dataset, rankers, report=report)


def evaluate_runs(
    runs: Sequence[FinishedRun], dataset: Dataset, rankers: Iterable[AnyRanker], **options: Any
) -> Results:
    """The agents of `starec simulate` runs and some rankers on exactly the same turns and candidates.

    Turns are those that all runs finished. Rankers learn from the rest of the data set and from the runs' users before
    their first turn of any run, so no evaluated target, nor anything later, was seen in training.

    Args:
        runs: From `open_runs`; the notes give each other row's paired difference to the first.
        dataset: The data set they ran on, loaded and prepared as it was then.
        rankers: What to compare them with; scorers are fitted.
        options: Of `evaluate`: out, resume, concurrency, report.

    Raises:
        RunError: The data set isn't the runs', a run has no finished step, no turn is finished in all, or a turn's
            candidates differ between runs.
    """
    first = runs[0]
    dataset, reordered = _as_recorded(runs, dataset)
    protocol, planned_turns = shared_protocol(runs, dataset)
    shared = _keys(protocol.cases.user_ids, protocol.cases.turns)
    results = evaluate(rankers, protocol, **options)
    rows = [_agent_row(run, [run.steps[key] for key in shared], results.cases.candidates.shape[1]) for run in runs]
    results.methods[:0] = rows
    results.against = first.row
    notes = [
        *protocol.notes,
        *reordered,
        *(_note(run, planned, len(shared), len(runs)) for run, planned in zip(runs, planned_turns, strict=True)),
        *filter(None, (_seen(run) for run in runs)),
        "training ends before each user's first turn of the run" + ("s" if len(runs) > 1 else ""),
    ]
    results.settings = {**results.settings, "notes": notes, "runs": [str(run.folder) for run in runs]}
    return results


def shared_protocol(runs: Sequence[FinishedRun], dataset: Dataset) -> tuple[Protocol, list[int]]:
    """The protocol of the turns that all runs finished, and how many turns each run has in all.

    Raises:
        RunError: As `evaluate_runs` does.
    """
    for run in runs:
        _check_data(run, dataset)
    keys = _unseen(runs, _shared(runs))
    protocols = [_protocol(run, dataset) for run in runs]
    protocol = protocols[0]
    protocol.stops = np.minimum.reduce([each.stops for each in protocols])
    planned_turns = [len(each.cases) for each in protocols]
    left = np.array([key in keys for key in _keys(protocol.cases.user_ids, protocol.cases.turns)])
    protocol.cases = protocol.cases.select(left)
    return protocol, planned_turns


def _protocol(run: FinishedRun, dataset: Dataset) -> Protocol:
    return Protocol(
        dataset,
        Reading(
            targets=run.about.get("targets", "liked"),
            min_history=run.about.get("min_history", 5),
            min_interactions=1,
            max_length=dataset.longest,
            transductive=True,
        ),
        seed=run.about["seed"],
        n_train=dataset.n_users,
        candidates=run.folder / "candidates.parquet",
        n_candidates=2,
    )


def _keys(users: Sequence[Id], turns: NDArray[Any]) -> list[Key]:
    return [(str(user), turn) for user, turn in zip(users, turns.tolist(), strict=True)]


def _as_recorded(runs: Sequence[FinishedRun], dataset: Dataset) -> tuple[Dataset, list[str]]:
    """The data set, and a note if its equal times are in the file's order, as starec 0.1 had them in its runs."""
    hashes = [run.about["dataset"]["hash"] for run in runs]
    found = [as_recorded(dataset, recorded) for recorded in hashes]
    by_file = [run for run, data in zip(runs, found, strict=True) if data is not dataset]
    by_hash = [run for run, recorded in zip(runs, hashes, strict=True) if recorded == dataset.hash]
    if by_file and by_hash:
        raise RunError(
            f"{by_file[0].folder} has rows of equal time in the order of the file, as starec 0.1 had them, and "
            f"{by_hash[0].folder} in the order of a hash: their turns differ. Compare runs of one order, or run "
            f"{by_file[0].folder} anew"
        )
    return found[0], ["equal times are in the order of the file, as they were in the run"] if by_file else []


def _check_data(run: FinishedRun, dataset: Dataset) -> None:
    was = run.about["dataset"]
    if was["hash"] == dataset.hash:
        return
    counts = ", ".join(f"{was.get(name, 0):,} {name.removeprefix('n_')}" for name in ("n_users", "n_interactions"))
    raise RunError(
        f"{run.folder} was made on other data: {was['name']}, {counts}, hash {was['hash']}, by starec "
        f"{run.about.get('starec')}; this is {dataset.name}, {dataset.n_users:,} users, {dataset.n_interactions:,} "
        f"interactions, hash {dataset.hash}. Give the files as they were (--dataset, --data-dir, --items say where "
        "they are now), prepared as they were; or run it anew"
    )


def _shared(runs: Sequence[FinishedRun]) -> set[Key]:
    """Turns that all runs finished, each with the same candidates and target in all."""
    for run in runs:
        if not run.steps:
            raise RunError(f"{run.folder} has no finished step to compare with")
    shared = set.intersection(*(set(run.steps) for run in runs))
    first = runs[0]
    if not shared:
        sizes = "; ".join(f"{run.label}: {_what(run)}" for run in runs)
        raise RunError(f"no turn is finished in all of the runs ({sizes}): give runs of the same users and turns")
    for other in runs[1:]:
        for key in sorted(shared):
            a, b = first.steps[key], other.steps[key]
            if (a.candidates, a.target) != (b.candidates, b.target):
                raise RunError(
                    f"user {a.user_id!r}, turn {a.turn} has other candidates in {other.label} than in {first.label}: "
                    f"{_difference(first, other)}"
                )
    return shared


def _what(run: FinishedRun) -> str:
    users = len({user for user, _ in run.steps})
    return f"{len(run.steps):,} turns of {users:,} users, seed {run.about.get('seed')}"


def _difference(first: FinishedRun, other: FinishedRun) -> str:
    pairs = {name: (first.about.get(name), other.about.get(name)) for name in _MAKES_LISTS}
    unlike = [f"{name} is {b!r} there and {a!r} here" for name, (a, b) in pairs.items() if a != b]
    return f"{', '.join(unlike) or 'their lists come from elsewhere'}; compare runs with the same {' and '.join(pairs)}"


def _agent_row(run: FinishedRun, steps: Sequence[Step], n: int) -> Scored:
    found = [judged(step.ranking, step.target, n) for step in steps]
    ranks = np.array([np.nan if rank is None else rank for rank, _ in found], dtype=np.float64)
    violations = [
        f"user {step.user_id!r}, turn {step.turn}: {'; '.join(report.problems)}"
        for step, (_, report) in zip(steps, found, strict=True)
        if not report.valid
    ]
    seconds = sum(session.get("wall_s", 0.0) for session in run.about["sessions"])
    return Scored(run.row, ranks, seconds, violations)


def _seen(run: FinishedRun) -> str | None:
    said = say_seen(run.card, run.about.get("model", ""), run.about["dataset"]["name"], {user for user, _ in run.steps})
    return said and f"{said}: they are left out"


def _unseen(runs: Sequence[FinishedRun], keys: set[Key]) -> set[Key]:
    """Turns of users whom no run's model was trained on or chosen by."""
    users = {user for user, _ in keys}
    seen = {user for run in runs if run.card for user in run.card.seen(run.about["dataset"]["name"], users)}
    if users and users <= seen:
        raise RunError(
            f"all {len(users):,} users of the run are among those that its model was trained on: run it on others "
            "(starec simulate --users-file heldout)"
        )
    return {key for key in keys if key[0] not in seen}


def _note(run: FinishedRun, planned: int, shared: int, of_runs: int) -> str:
    about = run.about
    turns = "all turns" if about.get("turns") is None else f"the last {about['turns']} turns"
    name = "the run" if of_runs == 1 else run.label
    text = f"{name}: {turns} of each user, seed {about['seed']}"
    if of_runs > 1:
        text += f"; {shared:,} of its {len(run.steps):,} finished turns ({shared / len(run.steps):.0%}) are in all runs"
    return f"{text}; {planned - len(run.steps):,} unfinished turns left out" if planned > len(run.steps) else text
