"""Writing a run to disk: one appended line a finished step, which is also the checkpoint.

A run's folder holds `run.json` (its `RunConfig`, and its sessions), `users.json` (whom it runs), `candidates.parquet`
and `items.parquet` (what was shown), `steps.jsonl` (a line a finished step) with `prompts.jsonl` (its system prompts),
`failures.jsonl` (users that could not go on), and at the end `metrics.json`. A killed run leaves complete lines and at
most one torn one.

Worker processes write a file each, `steps-00000.jsonl` and so on, and the files stay as they are: readers put the steps
in order of user and turn. What a line holds is in `lines`, and `reading` reads it all.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from starec_agents.runs.config import check_same, hash_of
from starec_agents.runs.lines import (
    Before,
    UnknownMemory,
    prompt_key,
    write_line,
)
from starec_agents.runs.reading import (
    FORMAT,
    Failure,
    Index,
    new_index,
    prompts_path,
    read_run,
    step_files,
)
from starec_agents.runs.reading import read_failures as read_failures  # as are the next two, old homes for a release
from starec_agents.runs.reading import read_steps as read_steps
from starec_agents.runs.reading import read_trajectories as read_trajectories
from starec_agents.runs.steps import Step
from starec_env.errors import RunError
from starec_env.types import Id

try:
    import fcntl
except ImportError:  # Windows: runs can be read there
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)


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
            path = prompts_path(self.path)
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
        found = [file.name for file in step_files(out) if file.exists() and file.stat().st_size]
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
        RunError: The folder can't be written, is in use, holds a run and `resume` is False, or holds another run; or
            this is Windows.
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
        if not hasattr(os, "pwrite"):
            raise RunError(f"a run can't be written on {sys.platform}, which lacks its locks and appends: use WSL")
        self.out = Path(out)
        self._settings = settings
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        self._failed = -1
        try:
            take_lock(self._lock, self.out)
            self.damaged: list[str] = []
            self.failures: dict[Id, Failure] = {}
            with writing(self.out):
                self._open_run(resume, data, users)
                self._failed = os.open(self.out / "failures.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                os.ftruncate(self._failed, 0)
        except BaseException:
            self._let_go()
            raise

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
        self.recorded = new_index(self.run)
        write_text(self.out / "users.json", json.dumps(list(users), ensure_ascii=False) + "\n")
        self.steps_path.touch()
        self.recorded.add_file(self.steps_path)

    def _reopen(self) -> None:
        self.recorded = new_index(self.run)
        self.steps_path.touch()
        for path in step_files(self.out):
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
        last = step_files(self.out)[-1].stem
        number = int(last.partition("-")[2] or -1) + 1
        path = self.out / f"steps-{number:05}.jsonl"
        with writing(path):
            path.touch(exist_ok=False)
        return path.resolve()

    def own_shard(self) -> Path:
        """The file for the steps of this process: the last, so that later lines are in later files."""
        return self.steps_path.resolve() if len(step_files(self.out)) == 1 else self.new_shard()

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


def take_lock(file: int, out: Path) -> None:
    """Lock an open file of a folder and note in it who has the lock; raises RunError if another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "unknown"
        raise RunError(f"{out} is in use by process {holder}: wait for it, or choose another folder") from None
    except OSError as error:
        _log.warning("%s can't be locked (%s): see that no other process uses it", out, error.strerror)
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """A folder, made if need be, that no other process writes to meanwhile; raises RunError if one does already."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        file = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if hasattr(os, "pwrite"):
            take_lock(file, out)
        yield
    finally:
        os.close(file)


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
