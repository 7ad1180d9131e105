"""The protocol of the paper's section 5: who is tested, on which candidates, and who is trained on.

The paper leaves readings open that are worth up to ten points of NDCG@10. Each is a field of `Reading`, with a
default and the reason for it, and every table prints the reading it was made under.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from starec_env.cases import Cases, read_cases
from starec_env.data import prepare
from starec_env.data.splits import (
    Ints,
    earlier,
    read_users,
    rows_only,
    sample,
    stops_before,
    target_rows,
    windows_only,
    without_empty_users,
)
from starec_env.data.ties import file_rows
from starec_env.errors import InvalidOption, check_choice, unknown
from starec_env.metrics import Relevant
from starec_env.replay.env import list_of_ids
from starec_env.replay.stream import Negatives, Stream
from starec_env.types import Dataset, Id
from starec_eval.baselines.scorer import TrainOn


@dataclass(frozen=True)
class Reading:
    """One reading of what the paper leaves open (5.1.1, 5.1.2)."""

    negatives: Negatives = "history"
    """What a user's negatives exclude: all items the user ever met, because an item taken earlier is no negative;
    only the truncated sequence; or only the target. The last two cost learned methods 2-4 points, since items that the
    user liked earlier then stand among the negatives."""
    sequences: Literal["all", "liked"] = "all"
    """Whether sequences hold all ratings, because a dislike is feedback too (4.1.3), or only those above 3 (item-kNN
    loses 4 points)."""
    targets: Literal["liked", "all"] = "liked"
    """Whether the target is the last liked item, because NDCG rewards what the user wants, or the last of all, as the
    words of 5.1.2 say (1-3 points less)."""
    relevant: Relevant = "liked"
    """Whether a disliked target is left unscored, because ranking it first would be no success, or scored like any
    other: "taken" is what the words of 5.1.2 say, where the item interacted with is the positive. Of half of ML-1M's
    targets of all kinds 40 % are disliked; scoring them costs Pop 5 points, learned methods less than half a point."""
    universe: Literal["filtered", "catalogue"] = "filtered"
    """Whether negatives come from the items that pass the 10-interaction filter, as the positives do, or from the
    whole catalogue, where popularity alone tells many of them (3-6 points more)."""
    time_ties: Literal["auto", "file", "shuffled"] = "auto"
    """Order of one user's rows of equal time (77 % of ML-1M's): as the data set was loaded, which is the file's order
    unless that follows item ids, and then a seeded one, because an order by id tells which item comes next; always
    the file's; or shuffled by the protocol's seed, which is worth up to 2 points."""
    training: Literal["all", "past"] = "all"
    """What is learned from: everything, as leave-one-out has it (5.1.1), so that counts hold the future of other users,
    what they did later than the target; or only what was done before the earliest test target. With "past", test users
    are sampled from those whose target lies in the later half of time, so that a past is left. On the same test users
    the future is worth, in NDCG@10 of Pop, item-kNN and Markov, 1.4, 2.6 and 2.0 points on half of ML-1M, and 14, 23
    and 23 on ml-latest-small, where training then ends in 2004 and targets are of up to 2016."""
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
    "paper": Reading(negatives="target", targets="all", relevant="taken"),
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
        train_users: Their ids instead, or a file of them (`read_users`). Test users are then sampled from the others,
            unless the reading is transductive.
        repetitions: Candidate lists a user.
        n_candidates: Length of a list.
        candidates: A candidates file to use instead of drawing (`read_cases`); its users are the test users.

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
    ) -> None:
        if isinstance(reading, str):
            check_choice("reading", reading, list(READINGS))
            reading = READINGS[reading]
        if repetitions < 1:
            raise InvalidOption(f"repetitions={repetitions}: wanted at least 1")
        self.loaded, self.reading, self.seed, self.n_candidates = dataset, reading, seed, n_candidates
        self.dataset, self._passed_from = sequences(dataset, reading, seed, full_catalogue=candidates is not None)
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
        stream = Stream(
            dataset,
            n_candidates=self.n_candidates,
            targets=reading.targets,
            turns=1,
            min_history=reading.min_history,
            negatives=reading.negatives,
        )
        self.notes += stream.notes
        tested = self._test_users(stream, users, given)
        index = stream.begin[tested]
        rows, parts = stream.rows[index], []
        for repetition in range(repetitions):
            stream.seed = _seed_of(self.seed, repetition)
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
            others = np.setdiff1d(np.arange(self.dataset.n_users), self.cases.users)
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
    within = order * 0 if base.nanoseconds is None else base.nanoseconds
    if reading.time_ties == "shuffled":
        order = np.lexsort((np.random.default_rng(seed).permutation(order), within, base.timestamps, owner))
    elif reading.time_ties == "file":
        order = file_rows(base)
    order = order[np.argsort(2 * owner + passed[order], kind="stable")]
    lengths = np.bincount(owner[passed], minlength=base.n_users)
    cut = base.with_rows(order, window=base.indptr[1:] - np.minimum(lengths, reading.max_length))
    return cut, base.indptr[1:] - lengths


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
