"""The protocol of the paper's section 5: who is tested, on which candidates, and who is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np

from starec_env.cases import Cases, read_cases
from starec_env.data.cut import (
    Ints,
    earlier,
    rows_only,
    stops_before,
    target_rows,
    windows_only,
    without_empty_users,
)
from starec_env.data.splits import Split, read_users, sample
from starec_env.errors import InvalidOption, check_choice, check_whole
from starec_env.reading import READINGS as READINGS
from starec_env.reading import Reading as Reading
from starec_env.reading import TrainOn, sequences
from starec_env.replay.env import list_of_ids
from starec_env.replay.stream import Stream
from starec_env.types import Dataset, Id

_TEST, _TRAIN = 0x54455354, 0x545241494E


class Protocol:
    """Leave-one-out on saved candidates: 1 positive, 19 negatives, three repetitions (paper 5.1.2).

    Each repetition draws its own negatives and order. The first repetition's candidates are those that the
    environment shows at the held-out turn under the same seed.

    Args:
        dataset: A data set as loaded, or already prepared.
        reading: A `Reading`, or the name of one of `READINGS`.
        seed: Samples users, and drives negatives and orders.
        users: How many test users to sample, or their ids. None: 1,000, or half of those who can be tested where
            there are fewer than 2,000.
        n_train: Most training users to sample; they are never test users.
        train_users: Their ids instead, or a file of them (`read_users`). Test users are then sampled from the others,
            unless the reading is transductive.
        repetitions: Candidate lists a user.
        n_candidates: Length of a list.
        candidates: A candidates file to use instead of drawing (`read_cases`); its users are the test users.
        split: Says who is trained on and who is tested, instead of those, and the reading, unless one is given whole;
            test users of a candidates file still are the file's.
        part: Whom of the split to test: "test", or "validation" to choose models by.

    Attributes:
        cases: What is ranked.
        notes: Who was left out, and what else is unusual.

    Raises:
        DataError: The filter leaves nobody, or a file is wrong.
        InvalidOption: A number is out of range, a named test user has no target or too few possible negatives, or a
            user is named for training and for testing.
    """

    def __init__(
        self,
        dataset: Dataset,
        reading: Reading | str = "default",
        *,
        seed: int = 0,
        users: int | Sequence[Id] | None = None,
        n_train: int = 1000,
        train_users: str | Path | Sequence[Id] | None = None,
        repetitions: int = 3,
        n_candidates: int = 20,
        candidates: str | Path | None = None,
        split: Split | None = None,
        part: Literal["test", "validation"] = "test",
    ) -> None:
        if split is not None:
            reading = reading if isinstance(reading, Reading) else split.reading
            train_users = split.train
            users = getattr(split, part) if candidates is None else None
        if isinstance(reading, str):
            check_choice("reading", reading, list(READINGS))
            reading = READINGS[reading]
        check_whole("repetitions", repetitions)
        check_whole("seed", seed, 0)
        self.loaded, self.reading, self.seed, self.n_candidates = dataset, reading, seed, n_candidates
        self.dataset, self._passed_from = sequences(dataset, reading, seed, full_catalogue=candidates is not None)
        self.split, self.choosing = split, part == "validation"
        if split is not None and candidates is None:
            split.check(self.dataset)
        self.notes: list[str] = []
        given = None if train_users is None else self._given(train_users)
        if candidates is None:
            self.cases = self._draw(users, given, repetitions)
        else:
            if users is not None:
                raise InvalidOption("users has no effect with candidates, whose users are the test users: leave it out")
            self.cases = read_cases(candidates, self.dataset, n_candidates=n_candidates)
        self.train_users = self._train_users(given, n_train)
        self._trained: dict[str, Dataset] = {}

    def _draw(self, users: int | Sequence[Id] | None, given: Ints | None, repetitions: int) -> Cases:
        reading, dataset = self.reading, self.dataset
        stream = Stream(dataset, n_candidates=self.n_candidates, turns=1, **reading.stream)
        self.notes += stream.notes
        tested = self._test_users(stream, users, given)
        index = stream.begin[tested]
        rows, parts = stream.rows[index], []
        for repetition in range(repetitions):
            stream.seed = _seed_of(self.seed, repetition if reading.lists == "new" else 0)
            parts.append(stream.candidates(tested, index))
        shown, places = (np.concatenate(part) for part in zip(*parts, strict=True))
        rows, turns, who = (np.tile(part, repetitions) for part in (rows, stream.numbers(tested, index), tested))
        repeated = np.repeat(np.arange(repetitions), len(tested))
        return Cases(dataset, repeated, who, turns, dataset.starts[who], rows, places, shown, dataset.liked[rows])

    def _test_users(self, stream: Stream, users: int | Sequence[Id] | None, given: Ints | None) -> Ints:
        able = stream.users
        if users is not None and not isinstance(users, Integral):
            chosen = np.unique([self.dataset.user_index(user) for user in list_of_ids(users)])
            stream.require(chosen)
            return chosen
        if self.reading.training == "past":
            when = self.dataset.timestamps[stream.rows[stream.begin[able]]]
            able = able[when >= np.median(when)]
        if given is not None and not self.reading.transductive:
            able = np.setdiff1d(able, given)
        if not len(able):
            raise InvalidOption("nobody is left to test: every user who could be is among train_users; give fewer")
        if users is not None:
            check_whole("users", users)
        users = min(1000, max(1, len(able) // 2)) if users is None else int(users)
        if not 1 <= users <= len(able):
            raise InvalidOption(f"users={users}: {len(able):,} users of {self.dataset.name} can be tested")
        return np.sort(sample(able, users, (self.seed, _TEST)))

    def _given(self, train_users: str | Path | Sequence[Id]) -> Ints:
        if isinstance(train_users, str | Path):
            train_users = read_users(train_users, alone="train")["train"]
        ids = list_of_ids(train_users) if np.size(train_users) else []
        return np.unique(np.array([self.dataset.user_index(user) for user in ids], np.int64))

    def _train_users(self, given: Ints | None, n_train: int) -> Ints:
        if given is None:
            there = np.flatnonzero(self.dataset.indptr[1:] > self.dataset.starts)
            others = np.setdiff1d(there, self.cases.users)
            return np.sort(sample(others, min(n_train, len(others)), (self.seed, _TRAIN)))
        both = np.intersect1d(given, self.cases.users)
        if len(both) and not self.reading.transductive:
            raise InvalidOption(
                f"{len(both):,} of the training users are also test users, the first "
                f"{self.dataset.user(int(both[0])).id!r}: leave them out of either, or ask for it by the reading's "
                "transductive=True"
            )
        if len(both):
            self.notes.append(f"{len(both):,} of the training users are also test users, learned from up to the target")
        return given

    @cached_property
    def stops(self) -> Ints:
        """(users,) the row before which each user's training interactions end: the first target, or the very end.

        A test user whose target isn't in the data set (of a foreign file) has no training interactions at all. With
        the reading's `training="past"` they end before the earliest target of all test users, too.

        Raises:
            InvalidOption: The time of a target isn't known that "past" needs.
        """
        dataset, cases = self.dataset, self.cases
        targets = target_rows(dataset, cases.users, cases.target_items)
        stops = stops_before(dataset, cases.users, targets)
        if self.reading.training == "past":
            if (targets < 0).any():
                raise InvalidOption("training='past' needs the time of every target, and some aren't in the data set")
            past = earlier(dataset, targets)
            past[np.arange(len(past)) < self._passed_from[dataset.owner]] = False
            within = np.bincount(dataset.owner[past], minlength=dataset.n_users)
            stops = np.minimum(stops, self._passed_from + within)
        return stops

    def training(self, on: TrainOn) -> Dataset:
        """Sequences to learn from, none of which holds a test user's target or anything later.

        Args:
            on: "sample": the sampled training users, and if `transductive` the test users before their targets.
                "full": every user, test users before their targets; whole histories if the reading says so.

        Raises:
            InvalidOption: Nobody is left to train on.
        """
        if not self._rows_of(on).n_interactions:
            raise InvalidOption(f"no user is left to train on ({on}): test fewer users, or give train_users")
        return self._rows_of(on)

    def _rows_of(self, on: TrainOn) -> Dataset:
        if on not in self._trained:
            chosen = np.full(self.dataset.n_users, on == "full")
            chosen[self.train_users] = True
            if self.reading.transductive:
                chosen[self.cases.users] = True
            whole = on == "full" and self.reading.full == "whole"
            first = self._passed_from if whole else self.dataset.starts
            stops = np.where(chosen, np.maximum(self.stops, first), first)
            self._trained[on] = without_empty_users(rows_only(self.dataset, first, stops))
        return self._trained[on]

    @cached_property
    def counts(self) -> list[dict[str, Any]]:
        """Table 3's columns: of the data set as loaded, after filter and truncation, and of the training sample."""
        rows = [_counts("loaded", self.loaded), _counts("prepared", windows_only(self.dataset))]
        if (learned := self._rows_of("sample")).n_interactions:
            rows.append(_counts("sample", learned))
        return rows

    def describe(self) -> dict[str, Any]:
        """What identifies a table: data set, reading, seed, candidates and their hash."""
        return {
            "dataset": self.loaded.name,
            "dataset_hash": self.loaded.hash,
            "reading": asdict(self.reading),
            "seed": self.seed,
            "candidates": self.cases.hash,
            "n_candidates": int(self.cases.candidates.shape[1]),
            "cases": len(self.cases),
            "test_users": len(np.unique(self.cases.users)),
            "train_users": len(self.train_users),
            "counts": self.counts,
            "notes": list(self.notes),
            **({"split": self.split.hash, "tested": "validation" if self.choosing else "test"} if self.split else {}),
        }


def _seed_of(seed: int, repetition: int) -> int:
    # The first repetition keeps the seed, so that it shows what the environment shows.
    return seed if repetition == 0 else int(np.random.SeedSequence([seed, repetition]).generate_state(1, np.uint64)[0])


def _counts(name: str, dataset: Dataset) -> dict[str, Any]:
    users, items = dataset.n_users, len(np.unique(dataset.item_indices))
    rows = dataset.n_interactions
    return {
        "data": name,
        "users": users,
        "items": items,
        "interactions": rows,
        "sparsity": 1.0 - rows / (users * items) if users * items else float("nan"),
    }
