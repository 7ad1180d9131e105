"""Readings of what the paper's section 5 leaves open, which training and evaluation share.

Each choice moves up to ten points of NDCG@10. Each is a field of `Reading`, with a default and the reason for it,
and every table prints the reading it was made under.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from starec_env.data import prepare
from starec_env.data.cut import Ints
from starec_env.data.ties import file_rows
from starec_env.errors import InvalidOption, check_choice, unknown
from starec_env.metrics import Relevant
from starec_env.replay.stream import Negatives
from starec_env.types import Dataset

TrainOn = Literal["sample", "full"]
"""Whom a method learns from: the sampled training users, or everybody."""


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
    the file's; or shuffled by the protocol's seed, which moves up to 2 points."""
    training: Literal["all", "past"] = "all"
    """What is learned from: everything, as leave-one-out has it (5.1.1), so that counts hold the future of other users,
    what they did later than the target; or only what was done before the earliest test target. With "past", test users
    are sampled from those whose target lies in the later half of time, so that a past is left. On the same test users
    the future adds, in NDCG@10 of Pop, item-kNN and Markov, 1.4, 2.6 and 2.0 points on half of ML-1M, and 14, 23
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
    """Sequences are cut to so many (5.1.1)."""
    min_length: int = 1
    """Users with a shorter sequence are left out. Table 3 counts 40,000 interactions of 1,000 users, so all of them
    have 40; Figure 2a's groups of less active users contradict that, so it isn't the default."""
    keep: Literal["last", "first"] = "last"
    """Which interactions of a longer history are the sequence: 5.1.1 says only that it is cut. Of 1,000 users with 40
    on half of ML-1M the last have 2,842 to 2,864 different items and the first 2,595 to 2,616; Table 3 counts 2,739."""
    min_history: int = 5
    """A target has at least so many interactions before it, as a turn of the environment does."""
    lists: Literal["new", "same"] = "new"
    """Whether each repetition draws negatives and order anew, or asks the same list again: "all test instances are
    executed three times" (5.1.2) says neither."""
    warmup: int = 10
    """Turns that agents learn from before the held-out one, at most; the paper doesn't say how many it simulates. With
    w of them a user costs 2 w + 3 calls. Methods that learn from turns are refused at 0: they would be "rank-only"."""
    memory: Literal["history", "empty"] = "history"
    """What agents know before their first turn: demographics and the latest interactions in a few sentences, without
    asking a model; or nothing. The paper leaves the start open."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if choices := [choice for choice in get_args(hint) if isinstance(choice, str)]:
                check_choice(name, getattr(self, name), choices)
        if not 1 <= self.min_length <= self.max_length:
            raise InvalidOption(f"min_length={self.min_length}: wanted 1 to max_length, which is {self.max_length}")

    def __str__(self) -> str:
        return ", ".join(self.settings)

    @property
    def settings(self) -> list[str]:
        """Its fields, each as "name=value"."""
        return [f"{name}={value}" for name, value in asdict(self).items()]

    @property
    def stream(self) -> dict[str, Any]:
        """The options of a `Stream` whose turns are this reading's."""
        return {"targets": self.targets, "min_history": self.min_history, "negatives": self.negatives}

    def prepare(self, dataset: Dataset) -> Dataset:
        """The rows that are sequences, of a data set as loaded; where `prepare` alone makes them, it is what is used.

        Raises:
            DataError: Nobody is left.
        """
        if replace(self, **_PREPARED) == self:
            return prepare(dataset, min_interactions=self.min_interactions, max_length=self.max_length)
        return replace(sequences(dataset, self)[0], source=None)

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


_PREPARED: dict[str, Any] = {
    **{"sequences": "all", "universe": "filtered", "time_ties": "auto", "keep": "last", "min_length": 1}
}

READINGS: Mapping[str, Reading] = {
    "default": Reading(),
    "paper": Reading(negatives="target", targets="all", relevant="taken"),
}
"""Readings by name. "paper" is the one nearest to Table 4; docs/results.md shows how near."""


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
    rank = np.empty(len(order), np.int64)  # of a row among those of its user that passed
    before = passed[order].cumsum()
    rank[order] = before - np.append(0, before)[base.indptr[:-1]][owner]
    if reading.keep == "first":
        passed &= rank <= reading.max_length
    passed &= (np.bincount(owner[passed], minlength=base.n_users) >= reading.min_length)[owner]
    order = order[np.argsort(2 * owner + passed[order], kind="stable")]
    lengths = np.bincount(owner[passed], minlength=base.n_users)
    cut = base.with_rows(order, window=base.indptr[1:] - np.minimum(lengths, reading.max_length))
    return cut, base.indptr[1:] - lengths
