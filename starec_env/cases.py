"""What is ranked: cases of a user, a history, a target and candidates, as arrays and as one Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from starec_env.data.cut import Ints, target_rows
from starec_env.errors import DataError
from starec_env.types import Candidates, Dataset, History, Id, Indices, Query

if TYPE_CHECKING:
    import pyarrow as pa

PAD = -1
"""Stands where a history is shorter than the longest one in its batch."""

COLUMNS = ("repetition", "user_id", "history", "target", "candidates")
"""Of a candidates file; `turn` may be there too. Ids are as in the data set's own files, histories oldest first,
candidates in the order shown."""


@dataclass(frozen=True)
class Batch:
    """Queries as arrays: all that a scorer may see of them."""

    users: Sequence[Id]
    history: Indices
    """(queries, longest) catalogue indices, newest last, PAD on the left."""
    candidates: Indices
    """(queries, n) catalogue indices in the order shown."""

    @classmethod
    def of(cls, query: Query) -> Batch:
        """A batch of one query."""
        return cls((query.user.id,), query.history.item_indices[None, :], query.candidates.indices[None, :])

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.users[rows], self.history[rows], self.candidates[rows])

    def __len__(self) -> int:
        return len(self.candidates)

    def distinct_histories(self) -> tuple[Indices, NDArray[np.intp]]:
        """The different histories, and (queries,) each query's place among them: repetitions share one."""
        histories, place = np.unique(self.history, axis=0, return_inverse=True)
        return histories, place.ravel()

    @property
    def ages(self) -> Ints:
        """(longest,) how many interactions ago each history column is: 0 for the newest."""
        return np.arange(self.history.shape[1])[::-1]


@dataclass(frozen=True, eq=False)
class Cases:
    """The cases of a protocol. A user's own are told apart by repetition, and by turn where there are several."""

    source: Dataset
    """Whose catalogue and user indices are meant, and whose rows `first` to `stop` are the histories."""
    repetition: Ints
    """(cases,)."""
    users: Ints
    """(cases,) user indices."""
    turns: Ints
    """(cases,) the turn's 0-based number in the user's stream; 0 where the file doesn't say."""
    first: Ints
    stop: Ints
    """(cases,) the history's rows are `first:stop`."""
    targets: Ints
    """(cases,) 0-based position of the target among the candidates."""
    candidates: Indices
    """(cases, n) catalogue indices in the order shown."""
    liked: NDArray[np.bool_]
    """(cases,) whether the user liked the target; True where the data set doesn't know."""

    def __len__(self) -> int:
        return len(self.users)

    def select(self, rows: NDArray[Any]) -> Cases:
        """The cases at an index array or mask."""
        names = ("repetition", "users", "turns", "first", "stop", "targets", "candidates", "liked")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    @cached_property
    def user_ids(self) -> list[Id]:
        """(cases,) user ids."""
        ids: list[Id] = self.source.user_ids[self.users].tolist()
        return ids

    @cached_property
    def target_items(self) -> Indices:
        """(cases,) catalogue indices of the targets."""
        items: Indices = self.candidates[np.arange(len(self)), self.targets]
        return items

    def batch(self) -> Batch:
        """All cases as one batch."""
        longest = int((self.stop - self.first).max(initial=0))
        rows = self.stop[:, None] - longest + np.arange(longest)
        inside = rows >= self.first[:, None]
        history = np.where(inside, self.source.item_indices.take(rows, mode="clip"), PAD).astype(np.int32)
        return Batch(self.user_ids, history, self.candidates)

    def query(self, case: int) -> Query:
        """One case as a ranker sees it."""
        user = int(self.users[case])
        return Query(
            self.source.user(user),
            History(self.source, user, int(self.first[case]), int(self.stop[case])),
            Candidates(self.source.items, self.candidates[case]),
            self.source.domain,
        )

    @cached_property
    def table(self) -> pa.Table:
        """The cases as the columns of a candidates file."""
        import pyarrow as pa

        items = pa.array([item.id for item in self.source.items])
        lengths = self.stop - self.first
        ends = lengths.cumsum()
        rows = np.arange(lengths.sum()) - np.repeat(ends - lengths - self.first, lengths)
        n = self.candidates.shape[1]
        return pa.table(
            {
                "repetition": pa.array(self.repetition, pa.int32()),
                "user_id": pa.array(self.user_ids),
                "turn": pa.array(self.turns, pa.int32()),
                "history": _lists(items.take(pa.array(self.source.item_indices[rows])), np.append(0, ends)),
                "target": items.take(pa.array(self.target_items)),
                "candidates": _lists(items.take(pa.array(self.candidates.ravel())), np.arange(len(self) + 1) * n),
            }
        )

    @cached_property
    def hash(self) -> str:
        """16 hex digits over users, histories, targets and candidates in order: equal hashes, equal task."""
        import pyarrow.compute as pc

        digest = blake2b(digest_size=8)
        for name in COLUMNS:
            column = self.table[name].combine_chunks()
            if name in ("history", "candidates"):
                digest.update(pc.list_value_length(column).to_numpy().astype("<i4").tobytes())
                column = column.flatten()
            digest.update("\0".join(map(str, column.to_pylist())).encode())
        return digest.hexdigest()

    def write(self, path: str | Path) -> None:
        """Save as a candidates file."""
        import pyarrow.parquet as pq

        pq.write_table(self.table.replace_schema_metadata({"starec_hash": self.hash}), path, compression="zstd")


def read_cases(path: str | Path, dataset: Dataset, *, n_candidates: int = 20) -> Cases:
    """Load a candidates file made here or elsewhere, checking every row.

    Args:
        path: A Parquet file with `COLUMNS`; a `turn` column tells a user's cases of one repetition apart.
        dataset: The data set whose ids the file speaks. A history item's rating is looked up in it; one that the user
            didn't rate there counts as liked, and so does a target.
        n_candidates: Fewest candidates of a case; all cases must have equally many.

    Raises:
        DataError: The file can't be read, lacks a column or rows, or has an unknown id, too few or repeated
            candidates, a target that isn't among them, or a case twice. The message names row, user and cause.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} can't be read as a Parquet file: {error}") from None
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}: wanted {', '.join(COLUMNS)}")
    if not table.num_rows:
        raise DataError(f"{path} holds no case")
    return _Reader(Path(path), table, dataset, n_candidates).cases()


class _Reader:
    def __init__(self, path: Path, table: pa.Table, dataset: Dataset, n_candidates: int) -> None:
        self.path, self.table, self.dataset, self.n_candidates = path, table, dataset, n_candidates
        self.user_ids = table["user_id"].to_pylist()

    def cases(self) -> Cases:
        users = self._known("user_id", "user", self.dataset.user_ids.tolist())
        items = [item.id for item in self.dataset.items]
        history, lengths = self._lists("history", items)
        candidates, widths = self._lists("candidates", items)
        target = self._known("target", "target", items)
        self._refuse(widths < self.n_candidates, lambda row: f"{widths[row]} candidates, wanted {self.n_candidates}")
        self._refuse(widths != widths[0], lambda row: f"{widths[row]} candidates where the first row has {widths[0]}")
        shown = candidates.reshape(len(widths), -1).astype(np.int32)
        ordered = np.sort(shown, axis=1)
        repeats = ordered[:, 1:] == ordered[:, :-1]
        self._refuse(
            repeats.any(axis=1), lambda row: f"candidate {items[ordered[row, 1:][repeats[row]][0]]!r} is repeated"
        )
        hits = shown == target[:, None]
        self._refuse(~hits.any(axis=1), lambda row: f"target {items[target[row]]!r} is not among the candidates")
        repetition, turns = self._numbers("repetition"), self._numbers("turn")
        _, once = np.unique(np.stack([repetition, users, turns]), axis=1, return_index=True)
        again = np.ones(len(users), bool)
        again[once] = False
        self._refuse(again, lambda row: f"repetition {repetition[row]}, turn {turns[row]} is there twice")
        source, first, stop = _with_histories(self.dataset, users, history, lengths)
        rows = target_rows(self.dataset, users, target)
        liked = (rows < 0) | self.dataset.liked[rows]
        return Cases(source, repetition, users, turns, first, stop, hits.argmax(axis=1), shown, liked)

    def _numbers(self, name: str) -> Ints:
        if name not in self.table.column_names:
            return np.zeros(self.table.num_rows, np.int64)
        numbers: Ints = self.table[name].to_numpy().astype(np.int64)
        return numbers

    def _known(self, column: str, kind: str, known: Sequence[Id]) -> Ints:
        values = self.table[column].combine_chunks()
        found = _positions(values, known)
        self._refuse(found < 0, lambda row: f"{kind} {values[row].as_py()!r} is not in {self.dataset.name}")
        return found

    def _lists(self, column: str, known: Sequence[Id]) -> tuple[Ints, Ints]:
        import pyarrow.compute as pc

        lists = self.table[column].combine_chunks()
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = lists.flatten()
        found = _positions(flat, known)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        bad = np.flatnonzero(found < 0)
        if len(bad):
            item = flat[int(bad[0])].as_py()
            self._fail(int(owner[bad[0]]), f"item {item!r} of its {column} is not in {self.dataset.name}")
        return found, lengths

    def _refuse(self, wrong: NDArray[np.bool_], why: Any) -> None:
        if wrong.any():
            row = int(wrong.argmax())
            self._fail(row, why(row))

    def _fail(self, row: int, why: str) -> None:
        raise DataError(f"{self.path}, row {row + 1}: user {self.user_ids[row]!r}: {why}")


def _positions(values: pa.Array, known: Sequence[Id]) -> Ints:
    # Place of each value among the known ids, -1 where unknown; an id may be an int there and text here.
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.index_in(pc.cast(values, pa.string()), value_set=pc.cast(pa.array(known), pa.string()))
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]


def _with_histories(dataset: Dataset, users: Ints, items: Ints, lengths: Ints) -> tuple[Dataset, Ints, Ints]:
    # The data set with the file's histories for rows, those of one user side by side so that it stays in CSR order.
    owner = np.repeat(users, lengths)
    row = target_rows(dataset, owner, items)
    real = row >= 0
    into = np.argsort(owner, kind="stable")
    case_order = np.argsort(users, kind="stable")
    stop = np.empty(len(users), np.int64)
    stop[case_order] = lengths[case_order].cumsum()
    source = replace(
        dataset,
        indptr=np.append(0, np.bincount(owner, minlength=dataset.n_users).cumsum()),
        item_indices=items[into].astype(np.int32),
        ratings=np.where(real, dataset.ratings[row], dataset.liked_above + 1)[into].astype(np.float32),
        timestamps=np.where(real, dataset.timestamps[row], 0)[into],
        nanoseconds=None,
        file_order=None,
        window=None,
    )
    return source, stop - lengths, stop


def _lists(values: pa.Array, offsets: Ints) -> pa.Array:
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
