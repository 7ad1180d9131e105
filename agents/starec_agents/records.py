"""What a run writes beside its steps: the candidates before, the metrics and the flat table after."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from starec_agents.store import RunStore, read_steps, write_parquet, write_text
from starec_env.scoring import CUTOFFS, ndcg
from starec_env.types import LIKED_ABOVE, Dataset, Id, Step, Turn


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
    shown = np.zeros(dataset.n_items, bool)
    digest = blake2b(digest_size=8)
    count = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal count
        for user in users:
            for turn in stream.turns(user):
                query = turn.query
                row = {
                    "repetition": 0,
                    "user_id": query.user.id,
                    "turn": turn.number,
                    "history": [item.id for item in query.history.items],
                    "history_liked": (query.history.ratings > LIKED_ABOVE).tolist(),
                    "target": turn.target_item.id,
                    "candidates": [item.id for item in query.candidates],
                }
                shown[query.history.item_indices] = shown[query.candidates.indices] = True
                digest.update(repr([row[key] for key in ("user_id", "turn", "target", "candidates")]).encode())
                count += 1
                yield row

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
    write_parquet(out / "candidates.parquet", rows(), schema)
    items = (dataset.items[i] for i in np.flatnonzero(shown).tolist())
    told = ({"id": item.id, "title": item.title, "attributes": list(item.attributes.items())} for item in items)
    text = pa.string()
    write_parquet(
        out / "items.parquet", told, pa.schema([("id", id_type), ("title", text), ("attributes", pa.map_(text, text))])
    )
    return {"candidates_hash": digest.hexdigest(), "n_turns": count}


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
    rows = map(tally.add, read_steps(store.out))
    write_parquet(store.out / "trajectories.parquet", rows, _trajectory_schema(*_id_types(dataset)))
    metrics = {**tally.metrics(), "failures": len(store.failures), "wall_s": round(store.wall_s, 3)}
    write_text(store.out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    return metrics


class Tally:
    """Metrics of the steps added so far. NDCG is averaged within each user, then over users."""

    def __init__(self) -> None:
        self._ranks: dict[Id, list[int | None]] = defaultdict(list)
        self._valid = self._steps = self._prompt = self._completion = 0

    def add(self, step: Step) -> dict[str, Any]:
        """Count a step and return its flat row for the table."""
        self._ranks[step.user_id].append(step.feedback.rank)
        self._steps += 1
        self._valid += step.ranking.valid
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
        """NDCG@k in 0..1 with standard errors over users (None below two users), and counts."""
        result: dict[str, Any] = {}
        for k in CUTOFFS:
            means = np.array([np.mean([ndcg(rank, k) for rank in ranks]) for ranks in self._ranks.values()])
            result[f"ndcg@{k}"] = float(means.mean()) if len(means) else None
            result[f"ndcg@{k}_se"] = float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None
        return result | {
            "valid_share": self._valid / self._steps if self._steps else None,
            "users": len(self._ranks),
            "steps": self._steps,
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
