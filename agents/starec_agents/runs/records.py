"""What a run writes beside its steps: the candidates before, the metrics after."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from starec_agents.runs.lines import Outcome
from starec_agents.runs.reading import read_index
from starec_agents.runs.store import RunStore, temporary, write_tables, write_text, writing
from starec_env.errors import RunError
from starec_env.metrics import METRICS, estimate, scored
from starec_env.types import Dataset, Id, Turn

_USERS_AT_ONCE = 1_000


class Turns(Protocol):
    """Where a population's turns come from; `Stream` has it, and so has the evaluation's protocol."""

    @property
    def users(self) -> NDArray[np.integer]:
        """0-based indices of the users who have a turn."""
        ...

    def turns(self, user: int) -> list[Turn]:
        """A user's turns in order, with rising numbers."""
        ...


Plan = dict[Id, "array[int]"]
"""The turns' numbers of each user of a run."""


def write_candidates(store: RunStore, dataset: Dataset, stream: Turns, users: Sequence[int]) -> Plan:
    """Save what every user will be shown: `candidates.parquet`, and the items' titles and more in `items.parquet`.

    run.json gets their `candidates_hash` (16 hex digits over users, turns, targets and candidates in order), `n_turns`
    and the stream's notes.

    Raises:
        RunError: A resumed run showed others, or the folder can't be written.
    """
    with writing(store.out):
        with temporary(store.out / "candidates.parquet") as path:
            plan, shown, digest = _write_candidates(path, dataset, stream, users)
            n_turns, notes = sum(map(len, plan.values())), list(getattr(stream, "notes", ()))
            store.confirm({"candidates_hash": digest, "n_turns": n_turns, "notes": notes})
        _write_items(store.out / "items.parquet", dataset, shown)
    return plan


def _write_candidates(
    path: Path, dataset: Dataset, stream: Turns, users: Sequence[int]
) -> tuple[Plan, NDArray[np.bool_], str]:
    """Write the table of turns; returns the plan, which items are shown, and the hash."""
    import pyarrow as pa

    user_type, id_type = _id_types(dataset)
    item_ids = _column([item.id for item in dataset.items], id_type)
    schema = pa.schema(
        [
            ("repetition", pa.int32()),
            ("user_id", user_type),
            ("turn", pa.int32()),
            ("history", pa.list_(id_type)),
            ("history_liked", pa.list_(pa.bool_())),
            ("target", id_type),
            ("candidates", pa.list_(id_type)),
        ]
    )
    shown = np.zeros(dataset.n_items, bool)
    digest = blake2b(digest_size=8)
    plan: Plan = {}

    def tables() -> Iterator[Any]:
        for first in range(0, len(users), _USERS_AT_ONCE):
            turns = [turn for user in users[first : first + _USERS_AT_ONCE] for turn in stream.turns(user)]
            queries = [turn.query for turn in turns]
            histories, history_ends = _joined([query.history.item_indices for query in queries])
            candidates, candidate_ends = _joined([query.candidates.indices for query in queries])
            liked, _ = _joined([query.history.liked for query in queries])
            targets = candidates[candidate_ends[:-1] + [turn.target for turn in turns]]

            def ids(indices: NDArray[np.integer]) -> Any:
                return item_ids.take(_column(indices, pa.int32()))

            columns = [
                _column(np.zeros(len(turns)), pa.int32()),
                _column([query.user.id for query in queries], user_type),
                _column([turn.number for turn in turns], pa.int32()),
                pa.ListArray.from_arrays(_column(history_ends, pa.int32()), ids(histories)),
                pa.ListArray.from_arrays(_column(history_ends, pa.int32()), _column(liked, pa.bool_())),
                ids(targets),
                pa.ListArray.from_arrays(_column(candidate_ends, pa.int32()), ids(candidates)),
            ]
            shown[histories] = shown[candidates] = True
            digest.update(repr([columns[place].to_pylist() for place in (1, 2, 5, 6)]).encode())
            for turn in turns:
                plan.setdefault(turn.query.user.id, array("i")).append(turn.number)
            yield pa.Table.from_arrays(columns, schema=schema)

    write_tables(path, tables(), schema)
    return plan, shown, digest.hexdigest()


def _write_items(path: Path, dataset: Dataset, shown: NDArray[np.bool_]) -> None:
    import pyarrow as pa

    items = [dataset.items[i] for i in np.flatnonzero(shown).tolist()]
    names = [name for item in items for name in item.attributes]
    values = [value for item in items for value in item.attributes.values()]
    ends = np.cumsum([0, *(len(item.attributes) for item in items)])
    text, (_, id_type) = pa.string(), _id_types(dataset)
    columns = [
        _column([item.id for item in items], id_type),
        _column([item.title for item in items], text),
        pa.MapArray.from_arrays(_column(ends, pa.int32()), _column(names, text), _column(values, text)),
    ]
    schema = pa.schema([("id", id_type), ("title", text), ("attributes", pa.map_(text, text))])
    with temporary(path) as new:
        write_tables(new, [pa.Table.from_arrays(columns, schema=schema)], schema)


def _column(values: Sequence[Any] | NDArray[Any], kind: Any) -> Any:
    """An Arrow array of numbers, truth values or texts; `pa.array` imports pandas wherever that is installed."""
    import pyarrow as pa

    if pa.types.is_string(kind):
        texts = [text.encode(errors="replace") for text in values]
        parts: list[Any] = [np.cumsum([0, *map(len, texts)], dtype=np.int32), b"".join(texts)]
    elif pa.types.is_boolean(kind):
        parts = [np.packbits(values, bitorder="little")]
    else:
        parts = [np.ascontiguousarray(values, str(kind))]
    return pa.Array.from_buffers(kind, len(values), [None, *map(pa.py_buffer, parts)])


def _joined(arrays: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Arrays end to end, and where each begins, with the end of all."""
    ends = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    return np.concatenate(arrays), ends


def _id_types(dataset: Dataset) -> tuple[Any, Any]:
    """Arrow types of the data set's user ids and item ids."""
    import pyarrow as pa

    types = {True: pa.int64(), False: pa.string()}
    return types[isinstance(dataset.user(0).id, int)], types[isinstance(dataset.items[0].id, int)]


def read_titles(out: str | Path) -> dict[Id, str]:
    """Titles of the items that a run showed, by id."""
    import pyarrow.parquet as pq

    table = pq.read_table(Path(out) / "items.parquet")
    return dict(zip(table["id"].to_pylist(), table["title"].to_pylist(), strict=True))


def finish(store: RunStore, plan: Plan) -> dict[str, Any]:
    """See that all planned turns are there, and write `metrics.json`; returns the metrics.

    Raises:
        RunError: Turns lack of users that didn't fail, a line can't be read, or the folder is no longer this run's.
    """
    store.check_place()
    index = read_index(store.out)
    missing = {user: len(turns) - len(index.turns(user)) for user, turns in plan.items()}
    missing = {user: n for user, n in missing.items() if n}
    lost = {user: n for user, n in missing.items() if user not in store.failures}
    if lost or index.places.keys() - plan.keys():
        raise RunError(_not_whole(store.out, plan, lost, index.places.keys() - plan.keys()))
    tally = Tally()
    for user in plan:
        for outcome in index.outcomes(user):
            tally.add(user, outcome)
    metrics = {
        **tally.metrics(),
        "missing_steps": sum(missing.values()),
        "failures": len(store.failures),
        "wall_s": round(store.wall_s, 3),
    }
    store.check_place()
    write_text(store.out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    return metrics


def _not_whole(out: Path, plan: Plan, lost: Mapping[Id, int], foreign: Collection[Id]) -> str:
    if foreign:
        return f"{out} has steps of users that aren't in this run, e.g. {next(iter(foreign))!r}: choose another folder"
    some = ", ".join(f"user {user!r} lacks {n} of {len(plan[user])}" for user, n in list(lost.items())[:5])
    return (
        f"{out} is not whole: {sum(lost.values()):,} planned turns of {len(lost):,} users are not recorded ({some}"
        f"{', ...' if len(lost) > 5 else ''}), though no failure is: was it changed meanwhile? Go on with resume=True "
        "(--resume)"
    )


class Tally:
    """Counts of steps that are added one by one, and their metrics: means over users of their liked targets' values."""

    def __init__(self) -> None:
        self._users: dict[Id, int] = {}
        self._owner, self._ranks, self._liked = array("q"), array("d"), array("b")
        self._valid = self._profiles = self._valid_profiles = self._prompt = self._completion = 0
        self._problems: dict[str, Counter[str]] = {"rankings": Counter(), "profiles": Counter()}

    def add(self, user: Id, outcome: Outcome) -> None:
        """Count a user's step."""
        self._owner.append(self._users.setdefault(user, len(self._users)))
        self._ranks.append(np.nan if outcome.rank is None else outcome.rank)
        self._liked.append(outcome.liked)
        self._valid += outcome.report.valid
        self._profiles += len(outcome.updates)
        self._valid_profiles += sum(report.valid for report in outcome.updates)
        self._problems["rankings"].update(outcome.report.kinds)
        self._problems["profiles"].update(kind for report in outcome.updates for kind in report.kinds)
        self._prompt += outcome.prompt_tokens
        self._completion += outcome.completion_tokens

    def metrics(self) -> dict[str, Any]:
        """Each metric in 0..1 with its standard error over users (None below two users), and counts."""
        result: dict[str, Any] = {}
        for name, metric in METRICS.items():
            found = estimate(name, scored(metric(self._ranks), self._liked), self._owner)
            result[name] = found.mean if found.n else None
            result[f"{name}_se"] = found.se if found.n > 1 else None
        steps = len(self._ranks)
        return result | {
            "valid_share": self._valid / steps if steps else None,
            "valid_profiles": self._valid_profiles / self._profiles if self._profiles else None,
            "problems": {task: dict(sorted(kinds.items())) for task, kinds in self._problems.items()},
            "users": len(self._users),
            "scored_users": found.n,
            "steps": steps,
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
        }
