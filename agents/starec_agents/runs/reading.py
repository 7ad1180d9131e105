"""Reading a run's folder: where its steps lie, and the steps, trajectories and failures themselves."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from starec_agents.runs.lines import (
    Before,
    Outcome,
    check_of,
    head_of,
    prompt_key,
    prompts_of,
    read_line,
    read_outcome,
    start_check,
)
from starec_agents.runs.steps import Step, Trajectory
from starec_env.errors import RunError
from starec_env.types import Id

FORMAT = 3
"""Of the record; 1 had whole steps as lines, 2 events as text. Both can be read."""


class Failure(BaseModel):
    """A user that could not go on: recorded, and done again by a resumed run."""

    user_id: Id
    turn: int | None
    """0-based number of the turn that failed; None when the user failed before the first."""
    kind: str
    message: str
    type: str = ""
    """The exception's class."""
    traceback: str = ""
    """Where it was raised; the last 4,000 characters."""
    calls: int = 0
    """Answers to requests for the failed turn, which were had and lost."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Tokens that those cost."""


@dataclass
class Index:
    """Where a run's steps are: 32 bytes a step and some 200 a user.

    Attributes:
        start: What the first lines of all users build on; None in a record of the first format.
        files: Files of steps, oldest first.
        prompts: The system prompts by key.
        places: By user, in order of turns: turn, number of file, the byte where the line begins, its check, and so on.
        strict: Whether a step whose system prompt is lost counts as one that can't be read.
    """

    start: int | None
    files: list[Path] = field(default_factory=list)
    prompts: dict[str, str] = field(default_factory=dict)
    places: dict[Id, array[int]] = field(default_factory=dict)
    strict: bool = True

    def add_file(self, path: Path) -> None:
        """Go on with the lines of this file."""
        self.files.append(path.resolve())
        self.prompts |= read_prompts(path)

    def add(self, line: bytes, place: int) -> bool:
        """Take a line of the last file into the index, at this byte; False if it isn't a step that can be read.

        It is in place of the step that was recorded of the same turn before, and of those after that.
        """
        if (key := head_of(line)) is None:
            return False
        user, turn = key
        places = self.places.get(user)
        end = 0 if places is None else len(places)
        while end and places is not None and places[end - 4] >= turn:
            end -= 4
        check: int | None = 0
        if self.start is not None:
            check = check_of(line, places[end - 1] if places and end else self.start)
        if check is None or (self.strict and not prompts_of(line) <= self.prompts.keys()):
            return False
        if places is None:
            places = self.places[user] = array("q")
        del places[end:]
        places.extend((turn, len(self.files) - 1, place, check))
        return True

    def only(self, users: Iterable[Id]) -> Index:
        """The part that concerns some users."""
        places = {user: self.places[user] for user in users if user in self.places}
        return Index(self.start, self.files, self.prompts, places)

    def turns(self, user: Id) -> array[int]:
        """The turns of a user that are recorded."""
        return self.places.get(user, array("q"))[::4]

    @property
    def n_steps(self) -> int:
        """Steps in all."""
        return sum(map(len, self.places.values())) // 4

    def steps(self, user: Id, most: int | None = None) -> Iterator[tuple[Step, Before]]:
        """A user's steps in order, and what is to be built on each.

        Raises:
            RunError: One can't be read.
        """
        before = Before(self.start or 0)
        for line, where in _lines_at(self.files, self.places.get(user, array("q")), most):
            try:
                if self.start is None:
                    step = Step.model_validate_json(line)
                else:
                    step, before = read_line(line, before, self.prompts)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise _unreadable(where, error) from None
            yield step, before

    def outcomes(self, user: Id) -> Iterator[Outcome]:
        """What metrics need of a user's steps; raises as `steps` does."""
        for line, where in _lines_at(self.files, self.places.get(user, array("q"))):
            try:
                yield read_outcome(line)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise _unreadable(where, error) from None


def _lines_at(files: Sequence[Path], places: array[int], most: int | None = None) -> Iterator[tuple[bytes, str]]:
    file: BinaryIO | None = None
    opened = -1
    try:
        for number, start in islice(zip(places[1::4], places[2::4], strict=True), most):
            if opened != number:
                if file:
                    file.close()
                file, opened = open(files[number], "rb"), number
            assert file
            file.seek(start)
            yield file.readline(), f"{files[number]}, byte {start:,}"
    finally:
        if file:
            file.close()


def _unreadable(where: str, error: Exception | str) -> RunError:
    reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return RunError(f"{where} can't be read ({reason[:200]}): resume the run to set it aside and do that turn again")


def read_run(out: str | Path) -> dict[str, Any]:
    """A run's `run.json`; raises RunError when the folder holds none."""
    path = Path(out) / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(run, dict) or not isinstance(run.get("sessions"), list):
            raise ValueError("it isn't a run's description")
        if not all(isinstance(session, dict) and _are_times(session) for session in run["sessions"]):
            raise ValueError("its sessions aren't whole")
        return run
    except FileNotFoundError:
        raise RunError(f"{out} holds no run: it has no run.json") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} can't be read ({error}): start the run anew in another folder") from None


def _are_times(session: Mapping[str, Any]) -> bool:
    return isinstance(session.get("started"), float) and isinstance(session.get("wall_s", 0.0), float)


def new_index(run: Mapping[str, Any]) -> Index:
    """An empty index, which checks each line after the one before it where the run's format has checks."""
    return Index(start_check(str(run.get("settings_hash"))) if run.get("format") in (2, FORMAT) else None)


def read_index(out: str | Path) -> Index:
    """Where a run's steps are; a torn last line of a file is left out.

    Raises:
        RunError: The folder holds no run, or a line in the middle can't be read.
    """
    folder = Path(out)
    run = read_run(folder)
    index = new_index(run)
    index.strict = False
    for path in step_files(folder):
        try:
            file = open(path, "rb")
        except OSError as error:
            raise RunError(f"can't read {path}: {error.strerror}; is this a run's folder?") from None
        index.add_file(path)
        start = 0
        with file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n") and not index.add(line, start):
                    raise _unreadable(f"{path}, line {number}", "it isn't what was written there")
                start += len(line)
    return index


def read_steps(out: str | Path) -> Iterator[Step]:
    """The steps of a run, users in the run's order and turns in theirs; of a running one, those that are there.

    Raises:
        RunError: The folder holds no run, or a line in the middle can't be read.
    """
    index = read_index(out)
    for user in in_order(Path(out), index):
        for step, _ in index.steps(user):
            yield step


def in_order(out: Path, index: Index) -> list[Id]:
    """The users of a run that have a step, in the run's order."""
    try:
        order = json.loads((out / "users.json").read_text(encoding="utf-8"))
        order = [user for user in order if user in index.places]
    except (OSError, ValueError, TypeError):
        order = []
    return [*dict.fromkeys([*order, *index.places])]


def read_trajectories(out: str | Path) -> Iterator[Trajectory]:
    """The trajectories of a run, a user each."""
    run = read_run(out)
    index = read_index(out)
    for user_id in in_order(Path(out), index):
        steps = tuple(step for step, _ in index.steps(user_id))
        try:
            yield Trajectory(user_id=user_id, steps=steps, model=run["model"], graph=run["graph"], seed=run["seed"])
        except (KeyError, ValidationError):
            raise RunError(f"{Path(out) / 'run.json'} doesn't say which model, graph and seed made the run") from None


def read_failures(out: str | Path) -> list[Failure]:
    """The users that failed in a run's last session; a torn last line is left out.

    Raises:
        RunError: A line can't be read.
    """
    path = Path(out) / "failures.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        return [Failure.model_validate_json(line) for line in lines]
    except ValidationError as error:
        raise RunError(f"{path} can't be read ({error.errors()[0]['msg']}): resume the run to write it anew") from None


def step_files(out: Path) -> list[Path]:
    """The files that hold a run's steps: `steps.jsonl`, which needn't exist, and the workers', oldest first."""
    return [out / "steps.jsonl", *sorted(out.glob("steps-*.jsonl"))]


def prompts_path(steps: Path) -> Path:
    """The file of the system prompts that a file of steps names."""
    return steps.with_name(steps.name.replace("steps", "prompts"))


def read_prompts(steps: Path) -> dict[str, str]:
    """The system prompts that a file of steps names, by key; torn and damaged ones are left out."""
    path = prompts_path(steps)
    prompts = {}
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            record = from_json(line)
            if prompt_key(record["text"]) == record["key"]:
                prompts[record["key"]] = record["text"]
        except (ValueError, TypeError, LookupError, AttributeError):
            continue  # torn or damaged: steps that name it are done again
    return prompts
