"""The protocol of the paper's section 5: who is tested, on which candidates, and who is trained on.

The paper leaves readings open that are worth up to ten points of NDCG@10. Each is a field of `Reading`, with a
default and the reason for it, and every table prints the reading it was made under.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from starec_env.data import prepare
from starec_env.errors import InvalidOption, check_choice, unknown
from starec_env.replay.stream import Seen, Stream
from starec_env.types import Dataset, Id
from starec_eval.baselines.scorer import TrainOn
from starec_eval.cases import Cases, Ints, read_cases


@dataclass(frozen=True)
class Reading:
    """One reading of what the paper leaves open (5.1.1, 5.1.2)."""

    negatives: Literal["history", "truncated", "target"] = "history"
    """What a user's negatives exclude: all items the user ever met, because an item taken earlier is no negative;
    only the truncated sequence; or only the target. The last two cost learned methods 2-4 points, since items that the
    user liked earlier then stand among the negatives."""
    sequences: Literal["all", "liked"] = "all"
    """Whether sequences hold all ratings, because a dislike is feedback too (4.1.3), or only those above 3 (item-kNN
    loses 4 points)."""
    targets: Literal["liked", "all"] = "liked"
    """Whether the target is the last liked item, because NDCG rewards what the user wants, or the last of all, as the
    words of 5.1.2 say (1-3 points less)."""
    universe: Literal["filtered", "catalogue"] = "filtered"
    """Whether negatives come from the items that pass the 10-interaction filter, as the positives do, or from the
    whole catalogue, where popularity alone tells many of them (3-6 points more)."""
    time_ties: Literal["file", "shuffled"] = "file"
    """Order of one user's equal timestamps (77 % of ML-1M's rows): the file's, because others can have it again, or
    shuffled by the seed, which is worth up to 2 points."""
    transductive: bool = False
    """Whether the sampled training set takes in the test users' interactions before their targets (2 points more).
    Not by default, because agents trained on sampled users meet test users as strangers. "full" always does."""
    popularity: TrainOn = "full"
    """Whom Pop counts: all users ("The Pop model ... undergoes training on the complete dataset", 5.1.3) or the
    sample. A test user's own target never counts, in either."""
    full: Literal["whole", "truncated"] = "whole"
    """Whether "full" trains on users' whole histories, because Table 3 counts all 1,000,209 interactions for it, or on
    their truncated sequences (1-3 points less for sequence models, 1-2 more for Pop)."""
    min_interactions: int = 10
    """The filter of users and items (5.1.1)."""
    max_length: int = 40
    """Sequences are cut to the last so many (5.1.1)."""
    min_history: int = 5
    """A target has at least so many interactions before it, as a turn of the environment does."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if choices := [choice for choice in get_args(hint) if isinstance(choice, str)]:
                check_choice(name, getattr(self, name), choices)

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self).items())

    def with_settings(self, pairs: Sequence[str]) -> Reading:
        """Another reading with some settings changed, each given as "name=value".

        Raises:
            InvalidOption: A value is none of the setting's.
            UnknownName: There is no such setting.
        """
        changed: dict[str, Any] = {}
        for name, _, value in (pair.partition("=") for pair in pairs):
            if name not in asdict(self):
                raise unknown("setting of a reading", name, asdict(self))
            kind = type(getattr(self, name))
            try:
                changed[name] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
            except (KeyError, ValueError):
                raise InvalidOption(
                    f"{name}={value!r}: wanted {'true or false' if kind is bool else 'a number'}"
                ) from None
        return replace(self, **changed)


READINGS: Mapping[str, Reading] = {
    "default": Reading(),
    "paper": Reading(negatives="target", targets="all"),
}
"""Readings by name. "paper" is the one nearest to Table 4; docs/evaluation.md shows how near."""

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
        train_users: Their ids instead, or a file with an id a line.
        repetitions: Candidate lists a user.
        n_candidates: Length of a list.
        candidates: A candidates file to use instead of drawing (`read_cases`); its users are the test users.

    Raises:
        DataError: The filter leaves nobody, or a file is wrong.
        InvalidOption: A number is out of range, or a named test user has no target.
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
    ) -> None:
        if isinstance(reading, str):
            check_choice("reading", reading, list(READINGS))
            reading = READINGS[reading]
        if repetitions < 1:
            raise InvalidOption(f"repetitions={repetitions}: wanted at least 1")
        self.loaded, self.reading, self.seed, self.n_candidates = dataset, reading, seed, n_candidates
        self.dataset, self._passed_from = sequences(dataset, reading, seed, full_catalogue=candidates is not None)
        if candidates is None:
            stream = self._stream(seed)
            self.cases = self._draw(self._test_users(stream, users), repetitions)
        else:
            self.cases = read_cases(candidates, self.dataset, n_candidates=n_candidates)
        self.train_users = self._train_users(train_users, n_train)
        self._trained: dict[str, Dataset] = {}

    def _stream(self, seed: int) -> Stream:
        reading, dataset = self.reading, self.dataset
        stream = Stream(
            dataset,
            n_candidates=self.n_candidates,
            seed=seed,
            targets=reading.targets,
            turns=1,
            min_history=reading.min_history,
        )
        if reading.negatives == "truncated":
            stream.seen = Seen(_rows_only(dataset, dataset.starts, dataset.indptr[1:]))
        elif reading.negatives == "target":
            first = np.where(stream.end > stream.begin, stream.rows.take(stream.begin, mode="clip"), 0)
            stream.seen = Seen(_rows_only(dataset, first, first + (stream.end > stream.begin)))
        return stream

    def _test_users(self, stream: Stream, users: int | Sequence[Id] | None) -> Ints:
        able = stream.users
        if users is None:
            users = min(1000, max(1, len(able) // 2))
        if isinstance(users, int):
            if not 1 <= users <= len(able):
                raise InvalidOption(f"users={users}: {len(able):,} users of {self.dataset.name} have a target")
            return np.sort(_sample(able, users, self.seed, _TEST))
        chosen = np.array([self.dataset.user_index(user) for user in users], np.int64)
        if len(unable := np.setdiff1d(chosen, able)):
            raise InvalidOption(
                f"user {self.dataset.user(int(unable[0])).id!r} has no target: no {self.reading.targets} interaction "
                f"with {self.reading.min_history} others before it in the sequence; leave the user out"
            )
        return np.unique(chosen)

    def _draw(self, users: Ints, repetitions: int) -> Cases:
        parts = []
        for repetition in range(repetitions):
            stream = self._stream(_seed_of(self.seed, repetition))
            index = stream.begin[users]
            shown, places = stream.candidates(users, index)
            rows = stream.rows[index]
            parts.append((np.full(len(users), repetition), stream.numbers(users, index), rows, places, shown))
        repetition_, turns, rows, places, shown = (np.concatenate(part) for part in zip(*parts, strict=True))
        users = np.tile(users, repetitions)
        return Cases(self.dataset, repetition_, users, turns, self.dataset.starts[users], rows, places, shown)

    def _train_users(self, given: str | Path | Sequence[Id] | None, n_train: int) -> Ints:
        if given is None:
            others = np.setdiff1d(np.arange(self.dataset.n_users), self.cases.users)
            return np.sort(_sample(others, min(n_train, len(others)), self.seed, _TRAIN))
        if isinstance(given, str | Path):
            given = Path(given).read_text(encoding="utf-8").split()
        return np.unique(np.array([self.dataset.user_index(user) for user in given], np.int64))

    @cached_property
    def stops(self) -> Ints:
        """(users,) the row before which each user's training interactions end: the first target, or the very end.

        A test user whose target isn't in the data set (of a foreign file) has no training interactions at all.
        """
        dataset, cases = self.dataset, self.cases
        stops = dataset.indptr[1:].copy()
        keys = dataset.owner * dataset.n_items + dataset.item_indices
        order = np.argsort(keys, kind="stable")
        wanted = cases.users * dataset.n_items + cases.target_items
        at = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(order) - 1)]
        np.minimum.at(stops, cases.users, np.where(keys[at] == wanted, at, dataset.starts[cases.users]))
        return stops

    def training(self, on: TrainOn) -> Dataset:
        """Sequences to learn from, none of which holds a test user's target or anything later.

        Args:
            on: "sample": the sampled training users, and if `transductive` the test users before their targets.
                "full": every user, test users before their targets; whole histories if the reading says so.

        Raises:
            InvalidOption: Nobody is left to train on.
        """
        if on not in self._trained:
            chosen = np.full(self.dataset.n_users, on == "full")
            chosen[self.train_users] = True
            if self.reading.transductive:
                chosen[self.cases.users] = True
            whole = on == "full" and self.reading.full == "whole"
            first = self._passed_from if whole else self.dataset.starts
            stops = np.where(chosen, np.maximum(self.stops, first), first)
            kept = _rows_only(self.dataset, first, stops)
            if not kept.n_interactions:
                raise InvalidOption(f"no user is left to train on ({on}): test fewer users, or give train_users")
            self._trained[on] = _without_empty_users(kept)
        return self._trained[on]

    @cached_property
    def counts(self) -> list[dict[str, Any]]:
        """Table 3's columns: of the data set as loaded, after filter and truncation, and of the training sample."""
        rows = [_counts("loaded", self.loaded), _counts("prepared", _window_only(self.dataset))]
        if len(self.train_users):
            rows.append(_counts("sample", self.training("sample")))
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
        }


def sequences(
    dataset: Dataset, reading: Reading, seed: int = 0, *, full_catalogue: bool = False
) -> tuple[Dataset, Ints]:
    """A data set whose windows are the sequences that a reading means; other rows precede them and only exclude.

    Args:
        dataset: As loaded or prepared.
        reading: Decides filter, order, contents and length of the sequences, and the universe.
        seed: Of shuffled time ties.
        full_catalogue: Keep all users and items, e.g. for candidates drawn elsewhere.

    Returns:
        The data set, and (users,) the row from which each user's history, not yet truncated, begins.
    """
    filtered = prepare(dataset, min_interactions=reading.min_interactions, max_length=None)
    base = dataset if full_catalogue or reading.universe == "catalogue" else filtered
    owner = base.owner
    passed = np.isin([item.id for item in base.items], [item.id for item in filtered.items])[base.item_indices]
    passed &= np.isin(base.user_ids, filtered.user_ids)[owner]
    if reading.sequences == "liked":
        passed &= base.liked
    order = np.arange(base.n_interactions)
    if reading.time_ties == "shuffled":
        order = np.lexsort((np.random.default_rng(seed).permutation(order), base.timestamps, owner))
    order = order[np.argsort(2 * owner + passed[order], kind="stable")]
    lengths = np.bincount(owner[passed], minlength=base.n_users)
    cut = base.with_rows(order, window=base.indptr[1:] - np.minimum(lengths, reading.max_length))
    return cut, base.indptr[1:] - lengths


def _rows_only(dataset: Dataset, first: NDArray[np.integer], stop: NDArray[np.integer]) -> Dataset:
    # The data set with only the rows first[u]:stop[u] of each user.
    lengths = stop - first
    indptr = np.append(0, lengths.cumsum())
    rows = np.arange(indptr[-1]) - np.repeat(indptr[:-1] - first, lengths)
    return dataset.with_rows(rows, indptr=indptr, window=None)


def _window_only(dataset: Dataset) -> Dataset:
    return _rows_only(dataset, dataset.starts, dataset.indptr[1:])


def _without_empty_users(dataset: Dataset) -> Dataset:
    there = np.flatnonzero(np.diff(dataset.indptr))
    people = dataset.demographics
    return replace(
        dataset,
        user_ids=dataset.user_ids[there],
        indptr=np.append(0, np.diff(dataset.indptr)[there].cumsum()),
        demographics=None if people is None else [people[user] for user in there.tolist()],
    )


def _sample(users: Ints, n: int, seed: int, purpose: int) -> Ints:
    chosen: Ints = np.random.default_rng([seed, purpose]).permutation(users)[:n]
    return chosen


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
