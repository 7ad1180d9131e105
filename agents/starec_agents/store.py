"""A run on disk: one appended line a finished step, which is also the checkpoint.

A run's folder holds `run.json` (what it is), `candidates.parquet` and `items.parquet` (what was shown),
`steps.jsonl` (a line a finished step), `failures.jsonl` (users that could not go on), and at the end
`metrics.json` and `trajectories.parquet`. A killed run leaves complete lines and at most one torn one.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from starec_env.errors import RunError
from starec_env.types import Id, Memory, Step, Trajectory


class Failure(BaseModel):
    """A user that could not go on: recorded, and done again by a resumed run."""

    user_id: Id
    turn: int | None
    """0-based number of the turn that failed; None when the user failed before the first."""
    kind: str
    message: str


class RunStore:
    """The folder of a run that is being written; held by one process at a time.

    Args:
        out: The folder; made if need be.
        settings: What makes this run itself. A resumed run must match it, key by key.
        resume: Go on with a run that is there. Without it, a folder that holds a run is an error.

    Raises:
        RunError: The folder can't be written, is in use, holds a run and `resume` is False, or holds another run.
    """

    def __init__(self, out: str | Path, settings: Mapping[str, Any], *, resume: bool = False) -> None:
        self.out = Path(out)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunError(f"can't write to {self.out}: {error.strerror}; choose another folder with out=") from None
        self._take_lock()
        self._offsets: dict[Id, dict[int, int]] = {}
        self.damaged: list[int] = []
        """1-based numbers of lines that couldn't be read on resuming; they were moved to steps.damaged."""
        try:
            self._open_run(settings, resume)
            self._steps = os.open(self.steps_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except BaseException:
            os.close(self._lock)
            raise
        self.failures: dict[Id, Failure] = {}
        write_text(self.out / "failures.jsonl", "")

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

    def _open_run(self, settings: Mapping[str, Any], resume: bool) -> None:
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
            self._index_steps()
            for session in self.run["sessions"]:
                if "wall_s" not in session and self.steps_path.exists():  # that session was killed
                    session["wall_s"] = max(0.0, self.steps_path.stat().st_mtime - session["started"])
        self.run["sessions"].append({"started": time.time()})
        self._write_run()

    def _write_run(self) -> None:
        write_text(self.out / "run.json", json.dumps(self.run, indent=1, ensure_ascii=False) + "\n")

    def _index_steps(self) -> None:
        """Index the complete lines, cut a torn last one, and set aside what can't be read."""
        if not self.steps_path.exists():
            return
        good: list[tuple[int, int]] = []
        stop = kept = 0  # where the next line begins: in the file as it is, and without the damaged lines
        with open(self.steps_path, "rb") as file:
            for number, line in enumerate(file, 1):
                start, stop = stop, stop + len(line)
                if not line.endswith(b"\n"):
                    break
                key = _key_of(line)
                if key is not None:
                    self._offsets.setdefault(key[0], {})[key[1]] = kept
                    good.append((start, stop))
                    kept += len(line)
                else:
                    self.damaged.append(number)
                    with open(self.out / "steps.damaged", "ab") as aside:
                        aside.write(line)
        if self.damaged:
            self._rewrite(good)
        elif kept < stop:
            os.truncate(self.steps_path, kept)

    def _rewrite(self, spans: Iterable[tuple[int, int]]) -> None:
        """Keep only these byte ranges of steps.jsonl, in this order."""
        temporary = self.steps_path.with_suffix(".tmp")
        with open(self.steps_path, "rb") as old, open(temporary, "wb") as new:
            for start, stop in spans:
                old.seek(start)
                new.write(old.read(stop - start))
            new.flush()
            os.fsync(new.fileno())
        os.replace(temporary, self.steps_path)

    def done(self, user_id: Id, turns: Sequence[int]) -> tuple[int, Memory | None]:
        """How many of a user's turns are recorded without a gap, and the memory after the last of them.

        Steps recorded after a gap are done again, since they were made with a memory that is lost; the later
        record wins when the run completes.
        """
        offsets = self._offsets.pop(user_id, {})
        count = next((n for n, turn in enumerate(turns) if turn not in offsets), len(turns))
        if count == 0:
            return 0, None
        with open(self.steps_path, "rb") as file:
            file.seek(offsets[turns[count - 1]])
            return count, Step.model_validate_json(file.readline()).memory

    def append(self, step: Step) -> None:
        """Record a finished step: one write of one line."""
        self._write(self._steps, step.model_dump_json() + "\n")

    def fail(self, failure: Failure) -> None:
        """Record a user that can't go on."""
        self.failures[failure.user_id] = failure
        with open(self.out / "failures.jsonl", "a", encoding="utf-8") as file:
            file.write(failure.model_dump_json() + "\n")

    def _write(self, descriptor: int, line: str) -> None:
        data = line.encode("utf-8", errors="replace")
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError as error:
            raise RunError(
                f"can't write to {self.steps_path}: {error.strerror}; make room and go on with resume=True (--resume)"
            ) from None

    def sort_steps(self, order: Mapping[Id, int]) -> None:
        """Put the lines in order of user (by `order`) and turn, so that the record doesn't tell the timing."""
        spans: dict[tuple[int, int], tuple[int, int]] = {}
        stop = 0
        with open(self.steps_path, "rb") as file:
            for line in file:
                start, stop = stop, stop + len(line)
                key = _key_of(line)
                if key is not None:
                    spans[order[key[0]], key[1]] = (start, stop)
        self._rewrite(spans[key] for key in sorted(spans))

    def close(self, **fields: Any) -> None:
        """End the session: note its wall time and any further fields in run.json, and give the folder free."""
        session = self.run["sessions"][-1]
        session["wall_s"] = time.time() - session["started"]
        self.run.update(fields)
        self._write_run()
        os.close(self._steps)
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
        return run
    except FileNotFoundError:
        raise RunError(f"{out} holds no run: it has no run.json") from None
    except ValueError as error:
        raise RunError(f"{out / 'run.json'} can't be read ({error}): start the run anew in another folder") from None


def read_steps(out: str | Path) -> Iterator[Step]:
    """The steps of a run, in the order of its file; a torn last line is left out.

    Raises:
        RunError: The folder holds no steps, or a line in the middle can't be read.
    """
    path = Path(out) / "steps.jsonl"
    try:
        file = open(path, "rb")
    except OSError as error:
        raise RunError(f"can't read {path}: {error.strerror}; is this a run's folder?") from None
    with file:
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
        yield Trajectory(user_id=user_id, steps=tuple(steps), model=run["model"], graph=run["graph"], seed=run["seed"])


def read_failures(out: str | Path) -> list[Failure]:
    """The users that failed in a run's last session."""
    path = Path(out) / "failures.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Failure.model_validate_json(line) for line in lines]


def _key_of(line: bytes) -> tuple[Id, int] | None:
    """A step line's (user id, turn), or None when the line isn't a step."""
    try:
        record = json.loads(line)
        user_id, turn = record["user_id"], record["turn"]
    except (ValueError, KeyError, TypeError):
        return None
    return (user_id, turn) if isinstance(user_id, int | str) and isinstance(turn, int) and "memory" in record else None


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill, meets the old text or the new one and nothing between."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], schema: Any, chunk: int = 10_000) -> None:
    """Write rows to a Parquet file in bounded memory; the file appears when it is complete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = path.with_name(path.name + ".tmp")
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        batch: list[Mapping[str, Any]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == chunk:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch.clear()
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    os.replace(temporary, path)
