"""What a simulated user predicts of real people, so that its fidelity can be measured on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from starec_env.cases import Cases
from starec_env.dataset import Dataset
from starec_env.metrics import Relevant

Floats = NDArray[np.floating[Any]]


class UserModel(Protocol):
    """A simulated user, asked what real users did; `starec fidelity` measures it.

    It was made by a `UserModelMaker`, from rows that end before everything it is asked about. What a user has done
    up to a question is given with the question: a case's rows `first:stop` of `cases.source`, or the user's rows of
    `dataset` before a row. Those rows may be simulated, or later than what it was fitted on, so they are read anew and
    not looked up in what it knows. User and catalogue indices are those of the data set that it was made from.
    """

    def log_choice(self, cases: Cases, relevant: Relevant = "liked") -> Floats:
        """Say which candidate comes next; nothing but `source`, `users`, `first`, `stop` and `candidates` is read.

        Args:
            cases: Users with histories, and candidates, up to the whole catalogue.
            relevant: "liked": which is the next item that the user likes; "taken": the next of any kind.

        Returns:
            (cases, n) log-probabilities; each row's exponentials sum to 1, and -inf means never.
        """
        ...

    def accepts(self, cases: Cases) -> Floats:
        """(cases, n) the probability that the user says yes to each candidate when asked; 0 or 1 where it decides."""
        ...

    def rate(self, dataset: Dataset, rows: NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
        """Say how users like items that they took, each from the user's earlier rows.

        Args:
            dataset: With the users and the catalogue that the model was made from.
            rows: (n,) ascending rows; of each, the owner and the item are given, the rating is not to be read.

        Returns:
            (n,) the expected ratings, on the data set's scale, and (n,) the probabilities that the item was liked.
        """
        ...


class DrawsStars(Protocol):
    """What a user model may have besides: ratings as it would give them, not their means."""

    def draw_stars(self, dataset: Dataset, rows: NDArray[np.integer[Any]], seed: int) -> Floats:
        """(n,) ratings on the scale, of what `UserModel.rate` is asked about; a function of the seed."""
        ...


class HasSittings(Protocol):
    """What a user model may have besides: how long it stays."""

    def sitting_lengths(self, n: int, seed: int) -> NDArray[np.integer[Any]]:
        """(n,) numbers of interactions between coming and leaving; a function of the seed."""
        ...


class AsksOthers(Protocol):
    """What a user model may have besides that asks another for its answers, as agents ask a language model."""

    most_candidates: int
    """How many candidates it can choose among; a model without it can choose from any catalogue."""
    problems: Mapping[str, int]
    """What was wrong with answers so far, and how often."""


UserModelMaker = Callable[[Dataset, int], UserModel]
"""Makes a model from a data set and a seed. The data set has all users and the whole catalogue, and only the rows that
the model may see; a user may have none."""
