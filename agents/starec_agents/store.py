"""A run on disk: one appended line a finished step, which is also the checkpoint.

A run's folder holds `run.json` (what it is), `candidates.parquet` and `items.parquet` (what was shown),
`steps.jsonl` (a line a finished step), `failures.jsonl` (users that could not go on), and at the end
`metrics.json` and `trajectories.parquet`. A killed run leaves complete lines and at most one torn one.

Worker processes write a file each, `steps-00000.jsonl` and so on, and the end of the run merges them. Until then, and
after a kill, the run's steps are the lines of all these files together; a later file's line stands for an earlier's.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from starec_env.errors import RunError
from starec_env.types import Id, Memory, Step, Trajectory


class Failure(BaseModel):
    """A user that could not go on: recorded, and done again by a resumed run."""

    user_id: Id
    turn: int | None
    """0-based number of the turn that failed; None when the user failed before the first."""
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """Which steps a file holds: 16 bytes a step and about 150 a user."""

    path: Path
    places: dict[Id, array[int]] = field(default_factory=dict)
    """By user: a turn's number and the byte where its line begins, and so on alternately."""

    def only(self, users: Iterable[Id]) -> Recorded:
        """The part that concerns some users."""
        return Recorded(self.path, {user: self.places[user] for user in users if user in self.places})


class Shard:
    """A file of steps that is being written, and what earlier files hold of its users.

    Args:
        path: Where the lines go; made if need be.
        recorded: The earlier files, oldest first.

    Raises:
        RunError: The file can't be written.
    """

    def __init__(self, path: Path, recorded: Sequence[Recorded] = ()) -> None:
        self.path, self._recorded = path, recorded
        with writing(path):
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def done(self, user_id: Id, turns: Sequence[int]) -> tuple[int, Memory | None]:
        """How many of a user's turns are recorded without a gap, and the memory after the last of them.

        Steps recorded after a gap are done again, since they were made with a memory that is lost; the later
        record wins when the run completes.
        """
        at: dict[int, tuple[Path, int]] = {}
        for recorded in self._recorded:
            places = recorded.places.get(user_id, ())
            at |= {turn: (recorded.path, start) for turn, start in zip(places[::2], places[1::2], strict=True)}
        count = next((n for n, turn in enumerate(turns) if turn not in at), len(turns))
        if count == 0:
            return 0, None
        path, start = at[turns[count - 1]]
        with open(path, "rb") as file:
            file.seek(start)
            return count, Step.model_validate_json(file.readline()).memory

    def append(self, step: Step) -> None:
        """Record a finished step: one write of one line."""
        data = (step.model_dump_json() + "\n").encode("utf-8", errors="replace")
        with writing(self.path):
            while data:
                data = data[os.write(self._file, data) :]

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class RunStore:
    """The folder of a run that is being written; held by one process at a time.

    Args:
        out: The folder; made if need be.
        settings: What makes this run itself. A resumed run must match it, key by key.
        resume: Go on with a run that is there. Without it, a folder that holds a run is an error.
        data: How the data set is loaded again, as `DataSpec` has it. It is recorded but not compared: files may have
            moved, and the data set's hash in `settings` says whether they are the same.

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
    ) -> None:
        self.out = Path(out)
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        self._take_lock()
        self.recorded: list[Recorded] = []
        """What was on disk when the run was opened, or was adopted since; oldest file first."""
        self.damaged: list[str] = []
        """Lines that couldn't be read on resuming, as "FILE line NUMBER"; they were moved to steps.damaged."""
        self.failures: dict[Id, Failure] = {}
        try:
            with writing(self.out):
                self._open_run(settings, resume, data)
                self.steps_path.touch()
                write_text(self.out / "failures.jsonl", "")
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def steps_path(self) -> Path:
        """Where the lines go."""
        return self.out / "steps.jsonl"

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._lock, 64, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            raise RunError(f"{self.out} is in use by process {holder}: wait for it, or choose another folder") from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def _open_run(self, settings: Mapping[str, Any], resume: bool, data: Mapping[str, Any] | None) -> None:
        path = self.out / "run.json"
        if not path.exists():
            self.run: dict[str, Any] = {**settings, "sessions": []}
        elif not resume:
            raise RunError(f"{self.out} holds a run already: pass resume=True (--resume) or choose another folder")
        else:
            self.run = _read_run(self.out)
            wanted = json.loads(json.dumps(settings))
            different = [key for key in wanted if self.run.get(key) != wanted[key]]
            if different:
                key = different[0]
                raise RunError(
                    f"{self.out} holds another run: its {', '.join(different)} differ "
                    f"({key} was {self.run.get(key)!r}, is {wanted[key]!r}); resume with the same settings, "
                    "or choose another folder"
                )
            self.recorded = [self._index(path) for path in _step_files(self.out)]
            for session in self.run["sessions"]:
                if "wall_s" not in session and self.steps_path.exists():  # that session was killed
                    session["wall_s"] = max(0.0, self.steps_path.stat().st_mtime - session["started"])
        if data is not None or "data" not in self.run:
            self.run["data"] = data
        self.run["sessions"].append({"started": time.time()})
        self._write_run()

    def _write_run(self) -> None:
        write_text(self.out / "run.json", json.dumps(self.run, indent=1, ensure_ascii=False) + "\n")

    def _index(self, path: Path) -> Recorded:
        """Index a file's complete lines, cut a torn last one, and set aside what can't be read."""
        recorded = Recorded(path.resolve())
        good: list[tuple[int, int]] = []
        stop = kept = damaged = 0  # where the next line begins: in the file as it is, and without the damaged lines
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                start, stop = stop, stop + len(line)
                if not line.endswith(b"\n"):
                    break
                key = _key_of(line)
                if key is not None:
                    recorded.places.setdefault(key[0], array("q")).extend((key[1], kept))
                    good.append((start, stop))
                    kept += len(line)
                else:
                    damaged += 1
                    self.damaged.append(f"{path.name} line {number}")
                    with open(self.out / "steps.damaged", "ab") as aside:
                        aside.write(line)
        if damaged:
            _rewrite(path, ((path, *span) for span in good))
        elif kept < stop:
            os.truncate(path, kept)
        return recorded

    def new_shard(self) -> Path:
        """A file of steps that doesn't exist yet, for a worker to write."""
        last = _step_files(self.out)[-1].stem
        number = int(last.partition("-")[2] or -1) + 1
        path = self.out / f"steps-{number:05}.jsonl"
        with writing(path):
            path.touch(exist_ok=False)
        return path.resolve()

    def adopt(self, shard: Path) -> int:
        """Count what a dead worker wrote as recorded; returns how many steps that is."""
        self.recorded.append(self._index(shard))
        return sum(len(places) for places in self.recorded[-1].places.values()) // 2

    def fail(self, failure: Failure) -> None:
        """Record a user that can't go on."""
        self.failures[failure.user_id] = failure
        with writing(self.out), open(self.out / "failures.jsonl", "a", encoding="utf-8") as file:
            file.write(failure.model_dump_json() + "\n")

    def sort_steps(self, order: Mapping[Id, int]) -> None:
        """Merge all files of steps into one in order of user (by `order`) and turn, so that it doesn't tell the timing.

        Takes 40 bytes of memory a step.
        """
        files = _step_files(self.out)
        spans = array("q")
        for number, path in enumerate(files):
            stop = 0
            with open(path, "rb") as file:
                for line in file:
                    start, stop = stop, stop + len(line)
                    head = _HEAD.match(line)
                    if head and line.endswith(b"\n"):
                        spans.extend((order[from_json(head[1])], int(head[2]), number, start, stop))
        table = np.frombuffer(spans, np.int64).reshape(-1, 5)
        table = table[np.lexsort((table[:, 1], table[:, 0]))]  # stable: of two lines for one turn, the later is last
        last = np.append((table[1:, :2] != table[:-1, :2]).any(axis=1), np.ones(min(1, len(table)), bool))
        _rewrite(self.steps_path, ((files[number], start, stop) for _, _, number, start, stop in table[last]))
        for path in files[1:]:
            path.unlink()

    def close(self, **fields: Any) -> None:
        """End the session: note its wall time and any further fields in run.json, and give the folder free."""
        session = self.run["sessions"][-1]
        session["wall_s"] = time.time() - session["started"]
        self.run.update(fields)
        try:
            self._write_run()
        except OSError as error:  # the steps are what counts, and a full disk has been told of by them
            logging.getLogger(__name__).warning("%s was not brought up to date: %s", self.out / "run.json", error)
        os.close(self._lock)

    @property
    def wall_s(self) -> float:
        """Seconds spent on this run so far, over all its sessions."""
        past = sum(session.get("wall_s", 0.0) for session in self.run["sessions"][:-1])
        return float(past + time.time() - self.run["sessions"][-1]["started"])


def read_run(out: str | Path) -> dict[str, Any]:
    """A run's `run.json`; raises RunError when the folder holds none."""
    return _read_run(Path(out))


def _read_run(out: Path) -> dict[str, Any]:
    try:
        run = json.loads((out / "run.json").read_text(encoding="utf-8"))
        if not isinstance(run, dict) or not isinstance(run.get("sessions"), list):
            raise ValueError("it isn't a run's description")
        if not all(isinstance(session, dict) and _are_times(session) for session in run["sessions"]):
            raise ValueError("its sessions aren't whole")
        return run
    except FileNotFoundError:
        raise RunError(f"{out} holds no run: it has no run.json") from None
    except ValueError as error:
        raise RunError(f"{out / 'run.json'} can't be read ({error}): start the run anew in another folder") from None


def _are_times(session: Mapping[str, Any]) -> bool:
    return isinstance(session.get("started"), float) and isinstance(session.get("wall_s", 0.0), float)


def read_steps(out: str | Path) -> Iterator[Step]:
    """The steps of a run, in the order of its files; a torn last line is left out.

    Raises:
        RunError: The folder holds no steps, or a line in the middle can't be read.
    """
    first, *shards = _step_files(Path(out))
    try:
        first.stat()
    except OSError as error:
        raise RunError(f"can't read {first}: {error.strerror}; is this a run's folder?") from None
    yield from chain.from_iterable(map(_read_file, (first, *shards)))


def _read_file(path: Path) -> Iterator[Step]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield Step.model_validate_json(line)
            except ValidationError as error:
                raise RunError(
                    f"{path}, line {number} can't be read ({error.errors()[0]['msg']}): resume the run to mend it"
                ) from None


def read_trajectories(out: str | Path) -> Iterator[Trajectory]:
    """The trajectories of a finished run, a user each."""
    run = read_run(out)
    for user_id, steps in groupby(read_steps(out), key=lambda step: step.user_id):
        try:
            about = {"model": run["model"], "graph": run["graph"], "seed": run["seed"]}
            yield Trajectory(user_id=user_id, steps=tuple(steps), **about)
        except (KeyError, ValidationError):
            raise RunError(f"{Path(out) / 'run.json'} doesn't say which model, graph and seed made the run") from None


def read_failures(out: str | Path) -> list[Failure]:
    """The users that failed in a run's last session."""
    path = Path(out) / "failures.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Failure.model_validate_json(line) for line in lines]


_HEAD = re.compile(rb'\{"user_id":(-?\d+|"(?:[^"\\]|\\.)*"),"turn":(\d+),')
"""How a step's line begins."""


def _key_of(line: bytes) -> tuple[Id, int] | None:
    """A step line's (user id, turn), or None when the line isn't a step."""
    if not _HEAD.match(line):
        return None
    try:
        record = from_json(line)
    except ValueError:
        return None
    return (record["user_id"], record["turn"]) if "memory" in record else None


def _step_files(out: Path) -> list[Path]:
    """The files that hold a run's steps: `steps.jsonl`, which needn't exist, and the workers', oldest first."""
    return [out / "steps.jsonl", *sorted(out.glob("steps-*.jsonl"))]


def _rewrite(path: Path, spans: Iterable[tuple[Path, int, int]]) -> None:
    """Make a file of these byte ranges of files, in this order; a kill leaves the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    files: dict[Path, BinaryIO] = {}
    try:
        with open(temporary, "wb") as new:
            for source, start, stop in spans:
                old = files.get(source) or files.setdefault(source, open(source, "rb"))
                old.seek(start)
                new.write(old.read(stop - start))
            new.flush()
            os.fsync(new.fileno())
        os.replace(temporary, path)
    finally:
        for file in files.values():
            file.close()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into a RunError that says how to go on."""
    try:
        yield
    except OSError as error:
        mend = "make room there and go on with resume=True (--resume), or choose another folder with out="
        raise RunError(f"can't write to {path}: {error.strerror or error}; {mend}") from None


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill, meets the old text or the new one and nothing between."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_parquet(path: Path, tables: Iterable[Any], schema: Any) -> None:
    """Write Arrow tables to a Parquet file, one at a time; the file appears when it is complete."""
    import pyarrow.parquet as pq

    temporary = path.with_name(path.name + ".tmp")
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
    os.replace(temporary, path)


def tabled(rows: Iterable[Mapping[str, Any]], schema: Any, chunk: int = 1_000) -> Iterator[Any]:
    """Arrow tables of a chunk of rows each."""
    import pyarrow as pa

    waiting = iter(rows)
    while batch := list(islice(waiting, chunk)):
        yield pa.Table.from_pylist(batch, schema=schema)
