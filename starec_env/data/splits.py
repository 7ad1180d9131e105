"""Who trains, who is chosen by, and who is tested: decided once, in one file that every command reads."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from starec_env.data.cut import Ints
from starec_env.data.spec import DataSpec
from starec_env.errors import DataError, InvalidOption, RunError
from starec_env.reading import Reading
from starec_env.replay.stream import Stream
from starec_env.types import Dataset, Id


class Split(BaseModel):
    """Ids of users by what they are for, of which data, under which reading; no user is in two parts.

    The teacher, SFT, RL, the baselines and the evaluation take the same file (`--split-file`), so that nobody who is
    tested was trained on, whatever command drew users last (paper 5.1.1: 1,000 users train, 1,000 are tested).

    Examples:
        >>> split = make_split(DataSpec(), test=100, validation=50, train=200)
        >>> len(split.train), len(split.validation), len(split.test)
        (200, 50, 100)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: tuple[Id, ...]
    validation: tuple[Id, ...] = ()
    """For choosing settings and checkpoints."""
    test: tuple[Id, ...] = ()
    """Looked at once, when all is chosen."""
    dataset: str = ""
    """The data set's name; "" where nobody said."""
    data: dict[str, Any] | None = None
    """A `DataSpec` that loads it; None for a table in memory."""
    reading: Reading = Reading()
    """Which of its rows are sequences, and which turns are asked for."""
    data_hash: str = ""
    """`Dataset.hash` of its prepared rows; "" where nobody said."""

    @model_validator(mode="after")
    def _parts_are_disjoint(self) -> Self:
        parts = {name: set(map(str, getattr(self, name))) for name in ("train", "validation", "test")}
        for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
            if both := parts[one] & parts[other]:
                raise ValueError(f"{len(both):,} users are in {one} and in {other}, the first {min(both)}")
        return self

    @classmethod
    def of(cls, dataset: Dataset, reading: Reading | None = None, **parts: Sequence[Id]) -> Self:
        """A split of users chosen elsewhere.

        Args:
            dataset: As prepared.
            reading: That it was prepared under.
            parts: Ids under `train`, `validation` and `test`.
        """
        named = {name: tuple(ids) for name, ids in parts.items()}
        source = None if dataset.source is None else dict(dataset.source)
        about = {"dataset": dataset.name, "data": source, "data_hash": dataset.hash}
        return cls(**named, **about, reading=reading or Reading())  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a split file, or the split in the card of a trained model (`starec.json`).

        Raises:
            DataError: It isn't there, or is neither.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
            return cls.model_validate(found.get("split", found))
        except (OSError, ValueError, AttributeError) as error:
            part = error.errors()[0] if isinstance(error, ValidationError) else None
            why = f"{'.'.join(map(str, part['loc']))}: {part['msg']}" if part else str(error)
            raise DataError(
                f"{path} is no split file ({why}): `starec data split` makes one, and a trained model's starec.json "
                "holds one"
            ) from None

    def save(self, path: str | Path) -> None:
        """Write the file; one that is there must say the same.

        Raises:
            RunError: There is another split: whom it names may have been trained on already.
        """
        path = Path(path)
        if path.exists() and Split.load(path) != self:
            raise RunError(f"{path} is another split: a split is made once; choose another name or remove the file")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json() + "\n", encoding="utf-8")

    @cached_property
    def hash(self) -> str:
        """16 hex digits over data, reading and all ids: equal hashes, the same split."""
        compared = self.model_dump(mode="json", exclude={"data"})  # where the files lie is no part of it
        return blake2b(json.dumps(compared, sort_keys=True).encode(), digest_size=8).hexdigest()

    def spec(self, moved: DataSpec | None = None) -> DataSpec:
        """How its data are loaded.

        Args:
            moved: Says where the files are now (`dataset`, `data_dir`, `items`), if they aren't where they were.

        Raises:
            InvalidOption: It was made of a table in memory, and `moved` doesn't say how to read that.
        """
        if self.data is None:
            if moved is None:
                raise InvalidOption("the split was made of a table in memory: give the data set with it")
            return moved
        places = {name: getattr(moved, name) for name in moved.model_fields_set & _PLACES} if moved else {}
        return DataSpec.of(**{**self.data, **places})

    def load_dataset(self, moved: DataSpec | None = None) -> Dataset:
        """Its data, prepared under its reading; raises as `spec` and `check`, and DataError if files aren't there."""
        dataset = self.reading.prepare(self.spec(moved).read())
        self.check(dataset)
        return dataset

    def check(self, dataset: Dataset) -> None:
        """Make sure that prepared data are those that the split is of.

        Raises:
            DataError: They aren't; says what differs.
        """
        if dataset.hash == self.data_hash:
            return
        raise DataError(
            f"the split is of other data: of {self.dataset or 'data that it does not name'}, hash "
            f"{self.data_hash or 'unknown'}, prepared under {self.reading}; this is {dataset.name}, "
            f"{dataset.n_users:,} users, {dataset.n_interactions:,} interactions, hash {dataset.hash}. Give the data "
            "set as it was, or make a new split and train anew"
        )


_PLACES = {"dataset", "data_dir", "items"}
_FILTER = ("min_interactions", "max_length")


def make_split(
    data: DataSpec | Dataset,
    reading: Reading | None = None,
    *,
    test: int,
    validation: int = 0,
    train: int | None = None,
    seed: int = 0,
) -> Split:
    """Draw a split: first who is tested, of those who have a held-out turn, then the others.

    Args:
        data: How the data are loaded, or the data as loaded.
        reading: Decides who has a turn. Its `time_ties` can't be "shuffled": the rows would be others by each seed.
        test: How many are tested.
        validation: How many are for validation.
        train: Most users to train on, of everybody else; None for all.
        seed: Decides who.

    Raises:
        InvalidOption: There are too few users.
        DataError: The data can't be read.
    """
    reading = reading or Reading()
    if reading.time_ties == "shuffled":
        raise InvalidOption("time_ties=shuffled orders rows by each table's seed: make the split with auto or file")
    loaded = data.read() if isinstance(data, DataSpec) else data
    dataset = reading.prepare(loaded)
    able = Stream(dataset, turns=1, **reading.stream).users
    tested = split_users(dataset.user_ids[able].tolist(), test=test, validation=validation, seed=seed)
    there = dataset.user_ids[dataset.indptr[1:] > dataset.starts].tolist()
    others = apart_from(there, (*tested.test, *tested.validation))
    trained = [others[place] for place in np.random.default_rng((seed, 1)).permutation(len(others))[:train].tolist()]
    source = loaded.source and {**loaded.source, **{name: getattr(reading, name) for name in _FILTER}}
    split = Split.of(dataset, reading, train=trained, validation=tested.validation, test=tested.test)
    return split.model_copy(update={"data": source})


def sample(users: Ints, n: int, seed: int | Sequence[int]) -> Ints:
    """N of some users, drawn without replacement, in random order; all of them where n is as many or more."""
    chosen: Ints = np.random.default_rng(seed).permutation(users)[:n]
    return chosen


def split_users(users: Sequence[Id], *, test: int, validation: int = 0, seed: int = 0) -> Split:
    """Split users at random.

    Args:
        users: Their ids.
        test: How many are tested.
        validation: How many are for validation.
        seed: Decides who.

    Returns:
        The parts, each in the random order; who is neither tested nor for validation trains.

    Raises:
        InvalidOption: Nobody is left to train on.
    """
    if test + validation >= len(users):
        raise InvalidOption(
            f"{test:,} test and {validation:,} validation users of {len(users):,}: nobody is left to train on"
        )
    order = [users[place] for place in np.random.default_rng(seed).permutation(len(users)).tolist()]
    tested, chosen_by = order[:test], order[test : test + validation]
    return Split(train=tuple(order[test + validation :]), validation=tuple(chosen_by), test=tuple(tested))


def apart_from(users: Sequence[Id], heldout: Collection[Id]) -> list[Id]:
    """The users that are not held out, in their order; ids as text and as numbers are the same."""
    apart = {str(user) for user in heldout}
    return [user for user in users if str(user) not in apart]


def read_users(path: str | Path, *, alone: str = "heldout") -> dict[str, list[Id]]:
    """Training and held-out users of a file.

    Args:
        path: A split file, a JSON with the keys "train" and "heldout", a text file with an id a line, or a candidates
            file (Parquet, with a column `user_id`).
        alone: What a file that names users of one kind names: "heldout" or "train".

    Returns:
        Ids under "train" and "heldout".

    Raises:
        DataError: The file can't be read, or is none of these.
    """
    path = Path(path)
    try:
        if path.suffix == ".json":
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
            if "heldout" in found:
                return {"train": found["train"], "heldout": found["heldout"]}
            split = Split.model_validate(found.get("split", found))
            return {"train": list(split.train), "heldout": [*split.validation, *split.test]}
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            column = pq.read_table(path, columns=["user_id"])["user_id"]
            return {"train": [], "heldout": [], alone: list(dict.fromkeys(column.to_pylist()))}
        return {"train": [], "heldout": [], alone: list(path.read_text(encoding="utf-8-sig").split())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = str(error).partition("\n")[0]
        raise DataError(
            f"{path} is no file of users ({why}): wanted a split file, a JSON with train and heldout, a text file with "
            "an id a line, or a candidates.parquet"
        ) from None
