"""What a run writes beside its steps: the candidates before, the metrics and the flat table after."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from starec_agents.store import RunStore, read_steps, tabled, write_parquet, write_text
from starec_env.metrics import METRICS, estimate, scored
from starec_env.types import Dataset, Id, Step, Turn

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


def write_candidates(out: Path, dataset: Dataset, stream: Turns, users: Sequence[int]) -> dict[str, Any]:
    """Save what every user will be shown: `candidates.parquet`, and the items' titles and more in `items.parquet`.

    Returns:
        `candidates_hash` (16 hex digits over users, turns, targets and candidates in order) and `n_turns`.
    """
    import pyarrow as pa

    user_type, id_type = _id_types(dataset)
    item_ids = pa.array([item.id for item in dataset.items], id_type)
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
    count = 0

    def tables() -> Iterator[Any]:
        nonlocal count
        for first in range(0, len(users), _USERS_AT_ONCE):
            turns = [turn for user in users[first : first + _USERS_AT_ONCE] for turn in stream.turns(user)]
            queries = [turn.query for turn in turns]
            histories, history_ends = _joined([query.history.item_indices for query in queries])
            candidates, candidate_ends = _joined([query.candidates.indices for query in queries])
            liked, _ = _joined([query.history.liked for query in queries])
            starts = candidate_ends[:-1]
            columns = [
                pa.array(np.zeros(len(turns), np.int32)),
                pa.array([query.user.id for query in queries], user_type),
                pa.array([turn.number for turn in turns], pa.int32()),
                pa.ListArray.from_arrays(history_ends, item_ids.take(pa.array(histories))),
                pa.ListArray.from_arrays(history_ends, pa.array(liked)),
                item_ids.take(pa.array(candidates[starts + [turn.target for turn in turns]])),
                pa.ListArray.from_arrays(candidate_ends, item_ids.take(pa.array(candidates))),
            ]
            shown[histories] = shown[candidates] = True
            digest.update(repr([columns[place].to_pylist() for place in (1, 2, 5, 6)]).encode())
            count += len(turns)
            yield pa.Table.from_arrays(columns, schema=schema)

    write_parquet(out / "candidates.parquet", tables(), schema)
    items = (dataset.items[i] for i in np.flatnonzero(shown).tolist())
    told = ({"id": item.id, "title": item.title, "attributes": list(item.attributes.items())} for item in items)
    text = pa.string()
    about = pa.schema([("id", id_type), ("title", text), ("attributes", pa.map_(text, text))])
    write_parquet(out / "items.parquet", tabled(told, about), about)
    return {"candidates_hash": digest.hexdigest(), "n_turns": count}


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


def finish(store: RunStore, dataset: Dataset, users: Sequence[int]) -> dict[str, Any]:
    """Sort the steps, and write `metrics.json` and `trajectories.parquet`; returns the metrics."""
    store.sort_steps({dataset.user(user).id: place for place, user in enumerate(users)})
    tally = Tally()
    schema = _trajectory_schema(*_id_types(dataset))
    write_parquet(store.out / "trajectories.parquet", tabled(map(tally.add, read_steps(store.out)), schema), schema)
    metrics = {**tally.metrics(), "failures": len(store.failures), "wall_s": round(store.wall_s, 3)}
    write_text(store.out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    return metrics


class Tally:
    """Counts of steps that are added one by one, and their metrics: means over users of their liked targets' values."""

    def __init__(self) -> None:
        self._users: dict[Id, int] = {}
        self._owner, self._ranks, self._liked = array("q"), array("d"), array("b")
        self._valid = self._profiles = self._valid_profiles = self._prompt = self._completion = 0
        self._problems: dict[str, Counter[str]] = {"rankings": Counter(), "profiles": Counter()}

    def add(self, step: Step) -> dict[str, Any]:
        """Count a step and return its flat row for the table."""
        self._owner.append(self._users.setdefault(step.user_id, len(self._users)))
        self._ranks.append(np.nan if step.feedback.rank is None else step.feedback.rank)
        self._liked.append(step.feedback.liked)
        self._valid += step.ranking.valid
        updates = [call.report for call in step.calls if call.report]
        self._profiles += len(updates)
        self._valid_profiles += sum(report.valid for report in updates)
        self._problems["rankings"].update(step.ranking.report.kinds)
        self._problems["profiles"].update(kind for report in updates for kind in report.kinds)
        prompt = sum(call.usage.prompt_tokens for call in step.calls)
        completion = sum(call.usage.completion_tokens for call in step.calls)
        self._prompt += prompt
        self._completion += completion
        return {
            "user_id": step.user_id,
            "turn": step.turn,
            "candidates": step.candidates,
            "target": step.candidates[step.target],
            "order": [step.candidates[position] for position in step.ranking.order],
            "rank": step.feedback.rank,
            "liked": step.feedback.liked,
            "predicted_liked": step.feedback.predicted_liked,
            "reward": step.reward,
            "problems": step.ranking.problems,
            "answer": step.ranking.text,
            "profile_before": step.memory_before.profile,
            "profile": step.memory.profile,
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "latency": sum(call.latency for call in step.calls),
        }

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


def _trajectory_schema(user_type: Any, id_type: Any) -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    return pa.schema(
        [
            ("user_id", user_type),
            ("turn", pa.int32()),
            ("candidates", pa.list_(id_type)),
            ("target", id_type),
            ("order", pa.list_(id_type)),
            ("rank", pa.int32()),
            ("liked", pa.bool_()),
            ("predicted_liked", pa.bool_()),
            ("reward", pa.float64()),
            ("problems", pa.list_(text)),
            ("answer", text),
            ("profile_before", text),
            ("profile", text),
            ("prompt_tokens", number),
            ("completion_tokens", number),
            ("latency", pa.float64()),
        ]
    )
