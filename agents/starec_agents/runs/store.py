"""A run on disk: one appended line a finished step, which is also the checkpoint.

A run's folder holds `run.json` (its `RunConfig`, and its sessions), `users.json` (whom it runs), `candidates.parquet`
and `items.parquet` (what was shown), `steps.jsonl` (a line a finished step) with `prompts.jsonl` (its system prompts),
`failures.jsonl` (users that could not go on), and at the end `metrics.json`. A killed run leaves complete lines and at
most one torn one.

Worker processes write a file each, `steps-00000.jsonl` and so on, and the files stay as they are: readers put the steps
in order of user and turn. What a line holds is in `lines`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from starec_agents.runs.config import check_same, hash_of
from starec_agents.runs.lines import (
    Before,
    Outcome,
    UnknownMemory,
    check_of,
    head_of,
    prompt_key,
    prompts_of,
    read_line,
    read_outcome,
    start_check,
    write_line,
)
from starec_agents.runs.steps import Step, Trajectory
from starec_env.errors import RunError
from starec_env.types import Id

try:
    import fcntl
except ImportError:  # Windows: runs can be read there
    fcntl = None  # type: ignore[assignment]

FORMAT = 3
"""Of the record; 1 had whole steps as lines, 2 events as text. Both can be read."""
_log = logging.getLogger(__name__)


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
        self.prompts |= _read_prompts(path)

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
                yield Outcome.of(Step.model_validate_json(line)) if self.start is None else read_outcome(line)
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


class Shard:
    """A file of steps that is being written.

    Args:
        path: Where the lines go; it is there.
        recorded: What is on record of its users.

    Raises:
        RunError: The file can't be written.
    """

    def __init__(self, path: Path, recorded: Index) -> None:
        self.path, self._recorded = path, recorded
        self._keys: dict[str, str] = {}
        with writing(path):
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def user(self, user_id: Id, turns: Sequence[int]) -> UserRecord:
        """What is on record of a user, to be gone on with; raises RunError where that can't be done here."""
        recorded = self._recorded.turns(user_id)
        count = next((n for n, turn in enumerate(turns) if recorded[n : n + 1] != array("q", [turn])), len(turns))
        before = Before(self._recorded.start or 0)
        for _, after in self._recorded.steps(user_id, count):
            before = after
        if isinstance(before.memory, UnknownMemory):
            raise RunError(
                f"{self.path.parent}: the memory of user {user_id!r} is of a class that isn't imported here: import "
                "its module before resuming"
            )
        return UserRecord(self, count, before)

    def write(self, data: bytes) -> None:
        """Append a line: one write."""
        _append(self._file, self.path, data)

    def prompt(self, text: str) -> str:
        """Record a system prompt, once; returns its key."""
        if text not in self._keys:
            key = prompt_key(text)
            path = _prompts_path(self.path)
            with writing(path):
                file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            line = json.dumps({"key": key, "text": text}, ensure_ascii=False).encode("utf-8", errors="replace")
            try:
                _append(file, path, b"\n" * bool(os.fstat(file).st_size) + line + b"\n")  # the last may be torn
            finally:
                os.close(file)
            self._keys[text] = key
        return self._keys[text]

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class UserRecord:
    """The record of one user while the user is run.

    Attributes:
        done: How many of the turns are recorded.
        memory: The memory after the last of them; None before the first.
        state: The graph's own state then.
    """

    __slots__ = ("_before", "_shard", "done", "memory", "state")

    def __init__(self, shard: Shard, done: int, before: Before) -> None:
        self._shard, self.done, self._before = shard, done, before
        self.memory = before.memory if done else None
        self.state = before.state

    def append(self, step: Step) -> None:
        """Record the next finished step."""
        line, before = write_line(step, self._before, self._shard.prompt)
        self._shard.write(line)
        self._before = before


def _append(file: int, path: Path, data: bytes) -> None:
    with writing(path):
        while data:
            data = data[os.write(file, data) :]


def check_folder(out: Path, settings: Mapping[str, Any], resume: bool) -> dict[str, Any] | None:
    """The run.json of a folder that a run of these settings can begin or go on in; None where there is none yet.

    Raises:
        RunError: The folder holds a run and `resume` is False, or holds another run, or steps of an unknown one.
    """
    if not (out / "run.json").exists():
        found = [file.name for file in _step_files(out) if file.exists() and file.stat().st_size]
        if found:
            raise RunError(
                f"{out} holds steps ({found[0]}) but no run.json that says of what run: choose another folder, "
                "or move them away"
            )
        return None
    if not resume:
        raise RunError(f"{out} holds a run already: pass resume=True (--resume) or choose another folder")
    run = read_run(out)
    if run.get("format") != FORMAT:
        raise RunError(
            f"{out} was recorded by starec {run.get('starec')} in format {run.get('format', 1)}, and this version "
            f"writes format {FORMAT}: it can be read (starec show), but not gone on with: choose another folder"
        )
    check_same(settings, run, out, urls=False)
    return run


class RunStore:
    """The folder of a run that is being written; held by one process at a time.

    Args:
        out: The folder; made if need be.
        settings: What makes this run itself, as `RunConfig.record` has it. A resumed run must match it.
        resume: Go on with a run that is there. Without it, a folder that holds a run is an error.
        data: How the data set is loaded again, as `DataSpec` has it. It is recorded but not compared: files may have
            moved, and the data set's hash in `settings` says whether they are the same.
        users: Ids of the users in the order that readers give them.

    Attributes:
        recorded: Where the steps are that were on disk when the run was opened, or were adopted since.
        damaged: Lines that couldn't be read on resuming, as "FILE line NUMBER"; they were moved to steps.damaged.
        failures: Users that can't go on, in this session.

    Raises:
        RunError: The folder can't be written, is in use, holds a run and `resume` is False, or holds another run.
    """

    def __init__(
        self,
        out: str | Path,
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
        data: Mapping[str, Any] | None = None,
        users: Sequence[Id] = (),
    ) -> None:
        self.out = Path(out)
        self._settings = settings
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        self._failed = -1
        try:
            self._take_lock()
            self.damaged: list[str] = []
            self.failures: dict[Id, Failure] = {}
            with writing(self.out):
                self._open_run(resume, data, users)
                self._failed = os.open(self.out / "failures.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                os.ftruncate(self._failed, 0)
        except BaseException:
            self._let_go()
            raise

    def _take_lock(self) -> None:
        try:
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 200, 0).decode(errors="replace").strip() or "unknown"
            raise RunError(f"{self.out} is in use by process {holder}: wait for it, or choose another folder") from None
        except OSError as error:
            _log.warning("%s can't be locked (%s): see that no other process uses it", self.out, error.strerror)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)

    def _let_go(self) -> None:
        for file in (self._lock, self._failed):
            if file >= 0:
                os.close(file)

    def _open_run(self, resume: bool, data: Mapping[str, Any] | None, users: Sequence[Id]) -> None:
        found = check_folder(self.out, self._settings, resume)
        self.run: dict[str, Any] = found or {}
        if found is None:
            self._open_new(users)
        else:
            self._reopen()
        if data is not None or "data" not in self.run:
            self.run["data"] = data
        self.run["sessions"].append({"started": time.time()})
        self._write_run()

    def _open_new(self, users: Sequence[Id]) -> None:
        made = {"format": FORMAT, "id": uuid4().hex, "settings_hash": hash_of(self._settings), "sessions": []}
        self.run = {**self._settings, **made}
        self.recorded = _new_index(self.run)
        write_text(self.out / "users.json", json.dumps(list(users), ensure_ascii=False) + "\n")
        self.steps_path.touch()
        self.recorded.add_file(self.steps_path)

    def _reopen(self) -> None:
        self.recorded = _new_index(self.run)
        self.steps_path.touch()
        for path in _step_files(self.out):
            self._index(path)
        for session in self.run["sessions"]:
            if "wall_s" not in session:  # that session was killed
                last = max(path.stat().st_mtime for path in self.recorded.files)
                session["wall_s"] = max(0.0, last - session["started"])

    @property
    def steps_path(self) -> Path:
        """Where the first lines go."""
        return self.out / "steps.jsonl"

    def _write_run(self) -> None:
        write_text(self.out / "run.json", json.dumps(self.run, indent=1, ensure_ascii=False) + "\n")

    def _index(self, path: Path) -> None:
        """Index a file's complete lines, cut a torn last one, and set aside what can't be read."""
        self.recorded.add_file(path)
        good: list[tuple[int, int]] = []
        stop = kept = damaged = 0  # where the next line begins: in the file as it is, and without the damaged lines
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                start, stop = stop, stop + len(line)
                if not line.endswith(b"\n"):
                    break
                if self.recorded.add(line, kept):
                    good.append((start, stop))
                    kept += len(line)
                else:
                    damaged += 1
                    self.damaged.append(f"{path.name} line {number}")
                    with open(self.out / "steps.damaged", "ab") as aside:
                        aside.write(line)
        if damaged:
            _rewrite(path, good)
        elif kept < stop:
            os.truncate(path, kept)

    def new_shard(self) -> Path:
        """A file of steps that doesn't exist yet, for a worker to write."""
        self.check_place()
        last = _step_files(self.out)[-1].stem
        number = int(last.partition("-")[2] or -1) + 1
        path = self.out / f"steps-{number:05}.jsonl"
        with writing(path):
            path.touch(exist_ok=False)
        return path.resolve()

    def own_shard(self) -> Path:
        """The file for the steps of this process: the last, so that later lines are in later files."""
        return self.steps_path.resolve() if len(_step_files(self.out)) == 1 else self.new_shard()

    def adopt(self, shard: Path) -> int:
        """Count what a dead worker wrote as recorded; returns how many steps that is."""
        before = self.recorded.n_steps
        self._index(shard)
        return self.recorded.n_steps - before

    def fail(self, failure: Failure) -> None:
        """Record a user that can't go on."""
        self.failures[failure.user_id] = failure
        _append(self._failed, self.out / "failures.jsonl", (failure.model_dump_json() + "\n").encode())

    def confirm(self, candidates: Mapping[str, Any]) -> None:
        """Record what is shown, or see that it is what the run showed before, and on the same servers if any is asked.

        Raises:
            RunError: It isn't, they aren't, or the folder is no longer this run's.
        """
        self.check_place()
        was, now = self.run.get("candidates_hash"), candidates["candidates_hash"]
        if was not in (None, now):
            raise RunError(
                f"{self.out} holds another run: its candidates_hash differ (candidates_hash was {was!r}, is {now!r}): "
                "the turns or candidates are others; resume with the same stream, or choose another folder"
            )
        if self.recorded.n_steps < candidates["n_turns"]:
            check_same(self._settings, self.run, self.out)
        self.run.update(candidates)
        with writing(self.out):
            self._write_run()

    def check_place(self) -> None:
        """Raise RunError if the folder is no longer this run's: moved, removed, replaced or taken over."""
        try:
            there, ours = os.stat(self.out / ".lock"), os.fstat(self._lock)
            same = (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
            same = same and read_run(self.out).get("id") == self.run["id"]
        except (OSError, RunError):
            same = False
        if not same:
            raise RunError(
                f"{self.out} was moved, removed or replaced while this run wrote in it: what is there now was left as "
                "it is; the steps so far are where the folder went, and resume=True (--resume) goes on there"
            )

    def close(self, **fields: Any) -> None:
        """End the session: note its wall time and any further fields in run.json, and give the folder free."""
        session = self.run["sessions"][-1]
        session["wall_s"] = time.time() - session["started"]
        self.run.update(fields)
        try:
            self.check_place()
            self._write_run()
        except (OSError, RunError) as error:  # the steps are what counts
            _log.warning("%s was not brought up to date: %s", self.out / "run.json", error)
        self._let_go()

    @property
    def wall_s(self) -> float:
        """Seconds spent on this run so far, over all its sessions."""
        past = sum(session.get("wall_s", 0.0) for session in self.run["sessions"][:-1])
        return float(past + time.time() - self.run["sessions"][-1]["started"])


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


def _new_index(run: Mapping[str, Any]) -> Index:
    return Index(start_check(str(run.get("settings_hash"))) if run.get("format") in (2, FORMAT) else None)


def read_index(out: str | Path) -> Index:
    """Where a run's steps are; a torn last line of a file is left out.

    Raises:
        RunError: The folder holds no run, or a line in the middle can't be read.
    """
    folder = Path(out)
    run = read_run(folder)
    index = _new_index(run)
    index.strict = False
    for path in _step_files(folder):
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
    for user in _in_order(Path(out), index):
        for step, _ in index.steps(user):
            yield step


def _in_order(out: Path, index: Index) -> list[Id]:
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
    for user_id in _in_order(Path(out), index):
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


def _step_files(out: Path) -> list[Path]:
    """The files that hold a run's steps: `steps.jsonl`, which needn't exist, and the workers', oldest first."""
    return [out / "steps.jsonl", *sorted(out.glob("steps-*.jsonl"))]


def _prompts_path(steps: Path) -> Path:
    return steps.with_name(steps.name.replace("steps", "prompts"))


def _read_prompts(steps: Path) -> dict[str, str]:
    path = _prompts_path(steps)
    prompts = {}
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            record = from_json(line)
            if prompt_key(record["text"]) == record["key"]:
                prompts[record["key"]] = record["text"]
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
        ):  # torn or damaged: steps that name it are done again
            continue
    return prompts


def _rewrite(path: Path, spans: Iterable[tuple[int, int]]) -> None:
    """Leave these byte ranges alone in a file; a kill leaves the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    with open(path, "rb") as old, open(temporary, "wb") as new:
        for start, stop in spans:
            old.seek(start)
            new.write(old.read(stop - start))
        new.flush()
        os.fsync(new.fileno())
    os.replace(temporary, path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into a RunError that says how to go on."""
    try:
        yield
    except OSError as error:
        what = "make room there and go on with resume=True (--resume), or choose another folder with out="
        raise RunError(f"can't write to {path}: {error.strerror or error}; {what}") from None


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill, meets the old text or the new one and nothing between."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Where to write a file that shall appear when it is complete; nothing stays if it can't be completed."""
    new = path.with_name(path.name + ".tmp")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def write_tables(path: Path, tables: Iterable[Any], schema: Any) -> None:
    """Write Arrow tables to a Parquet file, one at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
