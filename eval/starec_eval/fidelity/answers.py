"""A user model's answers to what a card asks, each asked for once and when it is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from starec_env.cases import Cases
from starec_env.data.cut import Ints
from starec_env.dataset import Dataset
from starec_env.errors import InvalidOption
from starec_env.metrics import Relevant
from starec_env.ranks import ranks_of, tie_keys
from starec_env.recommend.model import UserModel, UserModelMaker
from starec_eval.fidelity.asked import Asked, cases_of

Floats = NDArray[np.float64]
T = TypeVar("T")

_CELLS = 2_000_000
_LEAST = float(np.log(1e-6))
_LEVELS = 20
_LARGE = 1e9
_DRAWS = 0x4452


class Answers:
    """What a user model, fitted once for the lists and once for the last tenths, says.

    Args:
        maker: Makes it from what it may see.
        asked: The questions.

    Attributes:
        seconds: By "lists" and "tenths": how long it took to make.
    """

    def __init__(self, maker: UserModelMaker, asked: Asked) -> None:
        self.maker, self.asked, self.seconds = maker, asked, dict[str, float]()
        self._accepts: dict[int, list[Floats]] = {}

    @cached_property
    def of_lists(self) -> UserModel:
        """Made from what may be seen before the held-out lists."""
        return self._made("lists", self.asked.seen_of_lists)

    @cached_property
    def of_tenths(self) -> UserModel:
        """Made from what may be seen before the held-out tenths."""
        return self._made("tenths", self.asked.seen_of_tenths)

    def _made(self, name: str, seen: Dataset) -> UserModel:
        begun = perf_counter()
        model = self.maker(seen, self.asked.seed)
        self.seconds[name] = perf_counter() - begun
        if lacks := [name for name in ("log_choice", "accepts", "rate") if not hasattr(model, name)]:
            raise InvalidOption(
                f"the user model's maker gave a {type(model).__name__}, which lacks {', '.join(lacks)}: wanted what "
                "starec_env.recommend.model.UserModel has"
            )
        return model

    @cached_property
    def log_choice(self) -> Floats:
        """(lists, n) of the protocol's lists."""
        return log_choice(self.of_lists, self.asked.lists)

    @cached_property
    def ranks(self) -> Floats:
        """(lists,) 1-based ranks of the real targets."""
        lists = self.asked.lists
        keys = tie_keys(lists.user_ids, lists.stop - lists.first, lists.candidates.shape[1], self.asked.seed)
        return ranks_of(self.log_choice, lists.targets, keys).astype(np.float64)

    @cached_property
    def log_likelihood(self) -> Floats:
        """(lists,) of the real targets; none below that of one in a million."""
        return np.maximum(self.log_choice[np.arange(len(self.log_choice)), self.asked.lists.targets], _LEAST)

    def accepts(self, ratio: int) -> list[Floats]:
        """(cases, n) yes-probabilities of each of `Asked.offers`."""
        if ratio not in self._accepts:
            self._accepts[ratio] = [self._yes(offers.cases) for offers in self.asked.offers[ratio]]
        return self._accepts[ratio]

    def _yes(self, cases: Cases) -> Floats:
        return _checked(self.of_tenths.accepts(cases), cases.candidates.shape, "accepts", 0, 1)

    @cached_property
    def rated(self) -> tuple[Floats, Floats]:
        """(ratings,) expected stars and (ratings,) chances of a like, of the held-out tenths."""
        return rate(self.of_tenths, self.asked.log, self.asked.rows)

    @cached_property
    def drawn(self) -> Floats:
        """(ratings,) stars as the model would give them: its own draws, or its expected stars put on the scale."""
        model: Any = self.of_tenths
        if hasattr(model, "draw_stars"):
            seed = int(np.random.SeedSequence([self.asked.seed, _DRAWS]).generate_state(1)[0])
            said = model.draw_stars(self.asked.log, self.asked.rows, seed)
            return _checked(said, self.asked.rows.shape, "draw_stars", -_LARGE, _LARGE)
        levels = levels_of(self.asked.dataset)
        found: Floats = levels[np.abs(self.rated[0][:, None] - levels).argmin(1)]
        return found

    def sitting_lengths(self, n: int) -> Floats:
        """(n,) lengths of sittings that the model draws; it has a method of that name."""
        model: Any = self.of_tenths
        return _checked(model.sitting_lengths(n, self.asked.seed), (n,), "sitting_lengths", 1, _LARGE)

    @property
    def draws(self) -> bool:
        """Whether `drawn` are the model's own draws."""
        return hasattr(self.of_tenths, "draw_stars")

    @property
    def most_candidates(self) -> int:
        """How many candidates the model can be asked about at once."""
        return int(getattr(self.of_lists, "most_candidates", self.asked.dataset.n_items))

    @property
    def problems(self) -> dict[str, int]:
        """What was wrong with the answers of the models made so far, and how often."""
        made = [self.__dict__[name] for name in ("of_lists", "of_tenths") if name in self.__dict__]
        return dict(sum((Counter(getattr(model, "problems", {})) for model in made), Counter[str]()))

    @cached_property
    def untouched(self) -> Floats:
        """(users,) expected stars of an item that each never touched."""
        dataset, rows, _ = self.asked.untouched
        return rate(self.of_tenths, dataset, rows)[0]


Columns = Mapping[str, Answers]
"""The user model's answers, and the popularity floor's, by column of the card."""


def each(columns: Columns, of: Callable[[Answers], T]) -> dict[str, T]:
    """Something of each column's answers."""
    return {column: of(answers) for column, answers in columns.items()}


def levels_of(dataset: Dataset) -> Floats:
    """(levels,) the ratings there are, at most 20 of them."""
    found = np.unique(dataset.ratings).astype(np.float64)
    return found if len(found) <= _LEVELS else np.unique(np.quantile(found, np.linspace(0, 1, _LEVELS)))


def log_choice(model: UserModel, cases: Cases, relevant: Relevant = "liked") -> Floats:
    """(cases, n) log-probabilities, checked; raises InvalidOption unless each row is a distribution."""
    said = _checked(model.log_choice(cases, relevant), cases.candidates.shape, "log_choice", -np.inf, 1e-6)
    total = np.exp(said).sum(1)
    if len(total) and np.abs(total - 1).max() > 1e-3:
        row = int(np.abs(total - 1).argmax())
        raise InvalidOption(
            f"log_choice gave user {cases.user_ids[row]!r} chances that sum to {total[row]:g}, wanted 1"
        )
    return said


def over_catalogue(model: UserModel, seen: Dataset, users: Ints, relevant: Relevant) -> Iterator[tuple[Ints, Floats]]:
    """Yield users and their (users, items) log-probabilities over the whole catalogue, in parts that fit in memory."""
    everything = np.arange(seen.n_items, dtype=np.int32)
    step = max(1, _CELLS // max(1, seen.n_items))
    for part in (users[at : at + step] for at in range(0, len(users), step)):
        candidates = np.broadcast_to(everything, (len(part), seen.n_items))
        yield part, log_choice(model, cases_of(seen, part, candidates), relevant)


def rate(model: UserModel, dataset: Dataset, rows: Ints) -> tuple[Floats, Floats]:
    """Expected stars and chances of a like, checked; raises InvalidOption unless all are numbers in range."""
    said = model.rate(dataset, rows)
    if not isinstance(said, tuple) or len(said) != 2:
        raise InvalidOption(f"rate of the user model gave {said!r:.100}, wanted expected ratings and chances of a like")
    stars, like = said
    low, high = (float(dataset.ratings.min()), float(dataset.ratings.max())) if len(rows) else (0.0, 0.0)
    return _checked(stars, rows.shape, "rate", low, high), _checked(like, rows.shape, "rate", 0, 1)


def _checked(given: Any, shape: tuple[int, ...], method: str, low: float, high: float) -> Floats:
    try:
        said = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise InvalidOption(
            f"{method} of the user model gave {given!r:.100}, wanted numbers of shape {shape}"
        ) from None
    if said.shape != shape:
        raise InvalidOption(f"{method} of the user model gave shape {said.shape}, wanted {shape}")
    if said.size and not (said.min() >= low - 1e-4 and said.max() <= high + 1e-4):  # nan is neither
        raise InvalidOption(
            f"{method} of the user model gave {said.min():g} to {said.max():g}, wanted numbers from {low:g} to {high:g}"
        )
    return said
