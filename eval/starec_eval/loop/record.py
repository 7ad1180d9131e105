"""The record of a loop: what it is of, and a file a recommender and round, each whole or absent.

run.json                       the settings, which resuming compares
NAME/round-001.parquet         a row a slate: who, the step, the slate, what was looked at, taken, rated
NAME/visits-001.jsonl          for users who are asked one by one: a line a finished visit, with what they go on from
loop.json, .md, .html, .svg    what came of it
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from starec_agents.runs.config import DataConfig, check_same
from starec_agents.runs.store import temporary, write_text, writing
from starec_env.errors import RunError
from starec_env.recommend.responses import NOTHING, Responses
from starec_env.types import Id

Ints = NDArray[np.int64]

RUN, FORMAT = "run.json", 1


class LoopConfig(BaseModel):
    """All that changes what a loop records; a resumed one must have the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    starec: str = version("starec")
    format: int = FORMAT
    loop: bool = True
    dataset: DataConfig
    recommenders: dict[str, str]
    """How each is made, by name."""
    against: str
    """The recommender, named in advance, that all others are compared with."""
    user: str
    responder: dict[str, Any]
    """What the simulated users say of themselves."""
    rounds: int
    users: int
    users_hash: str
    slate_size: int
    horizon: int
    seed: int


def open_folder(out: Path, config: LoopConfig, resume: bool, data: Mapping[str, Any] | None) -> None:
    """Make a folder ready for a loop of these settings.

    Args:
        out: The folder; made if need be.
        config: The settings.
        resume: Go on with a loop that is there.
        data: How the data set is loaded again, as `DataSpec` has it; recorded, not compared.

    Raises:
        RunError: The folder can't be written, holds a loop and `resume` is False, or holds something else.
    """
    path, settings = out / RUN, config.model_dump(mode="json")
    check_folder(out, resume)
    if not path.exists():
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({**settings, "data": data}, indent=1, ensure_ascii=False) + "\n")
        return
    check_same(settings, read_run(out), out)


def check_folder(out: Path, resume: bool) -> None:
    """Raise RunError for a file, a folder with rounds of nobody knows what, or one with a loop that is not resumed."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file: choose a folder")
    if not (out / RUN).exists():
        if list(out.glob("*/round-*.parquet")):
            raise RunError(f"{out} has rounds but no {RUN} that says of what loop: choose another folder")
    elif not resume:
        raise RunError(f"{out} holds a run already: pass resume=True (--resume) or choose another folder")


def read_run(out: Path) -> dict[str, Any]:
    """run.json; raises RunError where it can't be read."""
    try:
        found = json.loads((out / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{out / RUN} can't be read ({error}): choose another folder") from None
    if not isinstance(found, dict):
        raise RunError(f"{out / RUN} holds no settings, a {type(found).__name__}: choose another folder")
    return found


@dataclass(frozen=True)
class Answers:
    """What was answered to m slates, a row each, ordered by step and row of the user."""

    row: Ints
    """(m,) place among the loop's users."""
    step: Ints
    """(m,) 0-based, within the visit."""
    slate: Ints
    """(m, k) catalogue indices."""
    seen: NDArray[np.bool_]
    """(m, k)."""
    taken: Ints
    stars: NDArray[np.float32]
    liked: NDArray[np.bool_]
    left: NDArray[np.bool_]
    said: NDArray[Any]
    """(m,) text, "" for nothing."""
    problem: NDArray[Any]
    """(m,) text, "" for nothing."""

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def of(cls, rows: Ints, step: int, slates: Ints, given: Responses) -> Self:
        """What the users at rows answered at one step."""
        nothing = np.full(len(rows), "", object)
        said, problems = ([_recordable(text) for text in texts] for texts in (given.said, given.problems))
        texts = [np.array(text, object) if text else nothing for text in (said, problems)]
        steps = np.full(len(rows), step)
        return cls(rows, steps, slates, given.seen, given.taken, given.stars, given.liked, given.left, *texts)

    @classmethod
    def together(cls, parts: Sequence[Answers]) -> Self:
        """Several as one, ordered."""
        names = [field.name for field in fields(cls)]
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        order = np.lexsort((columns["row"], columns["step"]))
        return cls(**{name: column[order] for name, column in columns.items()})

    def at(self, rows: NDArray[Any]) -> Self:
        """Those at an index array or mask."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def by_step(self) -> Iterator[Answers]:
        """Those of each step."""
        for step in np.unique(self.step).tolist():
            yield self.at(self.step == step)

    def responses(self) -> Responses:
        """As a responder gave them."""
        texts = tuple(self.said.tolist()), tuple(self.problem.tolist())
        return Responses(self.seen, self.taken, self.stars, self.liked, self.left, *texts)

    def to_json(self) -> dict[str, Any]:
        """As JSON types, a column a field."""
        columns = {field.name: getattr(self, field.name).tolist() for field in fields(self)}
        return {**columns, "stars": [None if np.isnan(value) else value for value in columns["stars"]]}

    @classmethod
    def from_json(cls, columns: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        stars = [np.nan if value is None else value for value in columns["stars"]]
        return cls(**{name: np.array(column, _KINDS[name]) for name, column in {**columns, "stars": stars}.items()})

    def write(self, path: Path, users: Sequence[Id]) -> None:
        """Save as Parquet, whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {name: pa.array(list(columns.pop(name))) for name in ("slate", "seen")}
        plain = {name: pa.array(column) for name, column in columns.items()}
        ids = pa.array([users[row] for row in self.row.tolist()])
        table = pa.table({"user_id": ids, **plain, **lists})
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary(path) as new:
                pq.write_table(table, new, compression="zstd")

    @classmethod
    def read(cls, path: Path, users: Sequence[Id], k: int, n_items: int) -> Self:
        """What `write` wrote of a loop with these users, slates of k and so many items; RunError where it isn't."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            found = cls(**{name: _column(table[name], kind) for name, kind in _KINDS.items()})
            found._check(table["user_id"].to_pylist(), users, k, n_items)
            return found
        except (OSError, KeyError, ValueError, pa.ArrowInvalid) as error:
            raise RunError(
                f"{path} can't be read as a round's record ({error}): delete it to have it made again"
            ) from None

    def _check(self, named: Sequence[Id], users: Sequence[Id], k: int, n_items: int) -> None:
        """Raise ValueError unless these are whole visits of all users, with places and items that there are."""
        known, shape = np.arange(len(users)), (len(self), k)
        if self.slate.shape != shape or self.seen.shape != shape:
            raise ValueError(f"slates have shape {self.slate.shape}, wanted {shape}")
        if not np.array_equal(np.sort(self.row[self.step == 0]), known) or not np.isin(self.row, known).all():
            raise ValueError("it isn't of a visit of each user")
        if list(named) != [users[row] for row in self.row.tolist()]:
            raise ValueError("it is of other users")
        if ((self.slate < 0) | (self.slate >= n_items)).any() or ((self.taken < NOTHING) | (self.taken >= k)).any():
            raise ValueError("it has items or places that there aren't")


def _recordable(text: str) -> str:
    """A text as files can hold it: halves of a character, which a model may write, are question marks."""
    return text.encode(errors="replace").decode()


_KINDS: dict[str, Any] = {
    **dict.fromkeys(("row", "step", "slate", "taken"), np.int64),
    **dict.fromkeys(("seen", "liked", "left"), np.bool_),
    "stars": np.float32,
    **dict.fromkeys(("said", "problem"), object),
}


def _column(column: Any, kind: Any) -> NDArray[Any]:
    found = column.to_pylist()
    return np.array(found, kind)


class Journal:
    """Finished visits of one round whose users are asked one by one: a line each, appended.

    Args:
        path: The file; a torn last line, of a kill, is cut off.
        users: Ids of the loop's users, by row.

    Raises:
        RunError: A line isn't of a visit of one of them.
    """

    def __init__(self, path: Path, users: Sequence[Id]) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = path.read_bytes() if path.exists() else b""
            kept = whole[: whole.rfind(b"\n") + 1]
            if len(kept) < len(whole):
                os.truncate(path, len(kept))
        try:
            self.lines = [json.loads(line) for line in kept.splitlines()]
            for line in self.lines:
                if users[line["row"]] != line["user"] or not (line["answers"] and line["snapshot"]):
                    raise ValueError(f"a line is of user {line['user']!r}")
            if len({line["row"] for line in self.lines}) < len(self.lines):
                raise ValueError("a user is in it twice")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise RunError(f"{path} can't be read ({error}): delete it, and the round is made again") from None

    def add(self, line: Mapping[str, Any]) -> None:
        """Record a finished visit."""
        with writing(self.path), open(self.path, "ab") as file:
            file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", errors="replace") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(dict(line))
