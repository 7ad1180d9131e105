"""What users answer to slates, and the protocol of everything that answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from starec_env.dataset import Dataset
from starec_env.errors import InvalidOption

NOTHING = -1
"""Stands where nothing was taken."""


@dataclass(frozen=True)
class Responses:
    """What n users answered to a slate of k items each."""

    seen: NDArray[np.bool_]
    """(n, k) whether the user looked at the place."""
    taken: NDArray[np.int64]
    """(n,) 0-based place of the item taken; NOTHING where none was."""
    stars: NDArray[np.float32]
    """(n,) rating of the item taken, on the data set's scale; NaN where none was given."""
    liked: NDArray[np.bool_]
    """(n,) whether the item taken was liked; False where none was taken."""
    left: NDArray[np.bool_]
    """(n,) whether the user left after this answer."""
    said: tuple[str, ...] = ()
    """(n,) what the user told the recommender, "" for nothing; empty where users say nothing."""
    problems: tuple[str, ...] = ()
    """(n,) what was wrong with the answer, "" for nothing; such an answer takes nothing. Empty where all is well."""


class Visits(Protocol):
    """The users who are before a recommender now, one a row; each row goes from visit to visit.

    Every draw is a pure function of (seed, user, visit, step).
    """

    def begin(
        self, rows: NDArray[np.integer[Any]], users: NDArray[np.integer[Any]], visits: NDArray[Any], anew: bool = False
    ) -> None:
        """Put users at rows, at the beginning of a visit.

        Args:
            rows: (m,) 0-based rows.
            users: (m,) 0-based users of the data set.
            visits: (m,) number of each user's visit.
            anew: Whether all begin with the data set's history; else a user who was last at that row goes on with what
                the visits before added to it.
        """
        ...

    def respond(self, rows: NDArray[np.integer[Any]], slates: NDArray[np.integer[Any]]) -> Responses:
        """Show (m, k) distinct catalogue indices to the users at (m,) rows; their states move on."""
        ...

    async def arespond(self, rows: NDArray[np.integer[Any]], slates: NDArray[np.integer[Any]]) -> Responses:
        """The same, without blocking others while a model answers."""
        ...


class Returns(Visits, Protocol):
    """Visits of users who come back, or don't; those of the statistical models."""

    def returns(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """(m,) whether the users at (m,) rows, whose visits end now, come back within a day."""
        ...


class Follows(Visits, Protocol):
    """Visits in which others may answer some of the slates, as `Mixed` by steps asks: those of all our users are."""

    def follow(self, rows: NDArray[np.integer[Any]], slates: NDArray[np.integer[Any]], given: Responses) -> None:
        """Go on as if these had been one's own answers to (m, k) slates at (m,) rows."""
        ...

    async def afollow(self, rows: NDArray[np.integer[Any]], slates: NDArray[np.integer[Any]], given: Responses) -> None:
        """The same, without blocking others while a model answers."""
        ...


class Responder(Protocol):
    """A population of simulated users: the twin, agents, a log, or a mixture."""

    @property
    def dataset(self) -> Dataset:
        """Whose users and catalogue are meant."""
        ...

    @property
    def stops(self) -> NDArray[np.int64]:
        """(n_users,) the row of the data set before which each user's history ends, to go on from there."""
        ...

    def open(self, n: int, seed: int = 0) -> Visits:
        """Room for n users at once."""
        ...


def check_responder(responder: object) -> None:
    """Raise InvalidOption unless it has what a `Responder` has, and its stops are rows of its users."""
    lacks = [name for name in ("dataset", "stops", "open") if not hasattr(responder, name)]
    if lacks:
        raise InvalidOption(
            f"a {type(responder).__name__} is no responder, it lacks {', '.join(lacks)}: wanted open(n, seed), dataset "
            "and stops, see starec_env.recommend.responses.Responder"
        )
    check_stops(responder.dataset, responder.stops)  # type: ignore[attr-defined]


def check_stops(dataset: Dataset, stops: Any) -> NDArray[np.int64]:
    """(n_users,) rows of the data set, each of which ends what is known of one user, as integers.

    Raises:
        InvalidOption: They aren't one a user, or one isn't from the user's first row to the one after the last.
    """
    found = np.asarray(stops)
    if found.shape != (dataset.n_users,) or found.dtype.kind not in "iu":
        raise InvalidOption(
            f"stops has shape {found.shape} and type {found.dtype}: wanted a row for each of {dataset.n_users:,} users"
        )
    outside = (found < dataset.indptr[:-1]) | (found > dataset.indptr[1:])
    if outside.any():
        user = int(outside.argmax())
        raise InvalidOption(
            f"stops has {found[user]} for user {dataset.user(user).id!r}: wanted a row of the data set from "
            f"{dataset.indptr[user]} to {dataset.indptr[user + 1]}, which are that user's"
        )
    return found.astype(np.int64, copy=False)
