"""What came of a loop, over rounds: what users did, and what became of the catalogue, with errors over users."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType

from starec_agents.runs.store import temporary, write_text
from starec_env.metrics import Difference, Estimate, entropy, estimate, gini, holm, paired_difference
from starec_env.recommend.responses import NOTHING
from starec_env.types import Dataset
from starec_eval.fidelity.measures import jackknifed
from starec_eval.loop.record import Answers, LoopConfig
from starec_eval.report.figures import FigureData, picture
from starec_eval.report.page import LOOP
from starec_eval.report.tables import TableData

Floats = NDArray[np.float64]

GENRES = ("genres", "genre", "categories", "category")
"""Attributes that may say an item's genres; the first that any item has does."""


@dataclass(frozen=True)
class Measure:
    """A quantity of a visit or of a round."""

    name: str
    about: str
    digits: int = 2
    percent: bool = False


MEASURES = {
    "clicks": Measure("clicks", "items taken in a visit"),
    "likes": Measure("likes", "items taken and liked in a visit"),
    "stars": Measure("stars", "mean rating of what a user took"),
    "slates": Measure("slates", "slates shown in a visit: its length", 1),
    "exits": Measure("exits, %", "visits that the user ended before the horizon", 1, True),
    "coverage": Measure("coverage, %", "share of the catalogue that anybody was shown in the round", 1, True),
    "gini": Measure(
        "Gini", "how unequally often the catalogue's items were shown in the round: 0 equally, 1 one alone"
    ),
    "genres": Measure("genre bits", "entropy of the genres of a visit's first slate, of the same size for everybody"),
}
"""By key; all but coverage and Gini are means over users."""
_OF_CATALOGUE: dict[str, Callable[[Any], float]] = {"coverage": lambda counts: float((counts > 0).mean()), "gini": gini}
_COMPARED = ("clicks", "likes", "slates")
_CHANGING = ("clicks", "likes", "slates", "coverage", "gini", "genres")
_DRAWN = ("clicks", "likes", "slates", "coverage", "genres", "stars")


@dataclass
class LoopResults:
    """Measures by recommender and round; printing it prints the tables."""

    config: LoopConfig
    dataset: Dataset
    users: NDArray[np.int64]
    answers: Mapping[str, Sequence[Answers]]
    """A round's answers each, by recommender."""

    @cached_property
    def values(self) -> dict[str, dict[str, Floats]]:
        """(rounds, users) values by recommender and measure, nan where a user has none."""
        return {name: self._values(rounds) for name, rounds in self.answers.items()}

    def _values(self, rounds: Sequence[Answers]) -> dict[str, Floats]:
        found = [visit_values(answers, len(self.users), self._kinds) for answers in rounds]
        return {key: np.stack([values[key] for values in found]) for key in found[0]}

    @cached_property
    def _kinds(self) -> NDArray[np.float64] | None:
        return genre_table(self.dataset)

    @cached_property
    def rounds(self) -> dict[str, list[dict[str, Estimate]]]:
        """Each round's measures, by recommender; an estimate's label is the round's number, 1-based."""
        return {name: [self._round(name, at) for at in range(self.config.rounds)] for name in self.answers}

    def _round(self, name: str, at: int) -> dict[str, Estimate]:
        everyone = np.arange(len(self.users))
        found = {key: estimate(at + 1, values[at], everyone) for key, values in self.values[name].items()}
        found |= self._of_catalogue(str(at + 1), [self.answers[name][at]])
        return {key: found[key] for key in MEASURES if key in found}

    def _of_catalogue(self, label: str, rounds: Sequence[Answers]) -> dict[str, Estimate]:
        """Catalogue measures, in the mean over some rounds; the users who are left out for errors are so in all."""

        def mean(of: Callable[[Any], float], kept: NDArray[np.intp]) -> float:
            return float(np.mean([of(self._shown(answers, kept)) for answers in rounds]))

        everyone = np.arange(len(self.users))
        return {key: jackknifed(partial(mean, of), everyone, label) for key, of in _OF_CATALOGUE.items()}

    def _shown(self, answers: Answers, kept: NDArray[np.intp]) -> NDArray[np.int64]:
        """(n_items,) how often each item was shown to the users kept."""
        among = np.isin(np.arange(len(self.users)), kept)
        shown = answers.slate[among[answers.row]].ravel()
        return np.bincount(shown, minlength=self.dataset.n_items)

    @cached_property
    def overall(self) -> dict[str, dict[str, Estimate]]:
        """Means over all rounds, by recommender: of a user's visits, then over users; of the catalogue's rounds."""
        return {name: self._overall(name) for name in self.answers}

    def _overall(self, name: str) -> dict[str, Estimate]:
        owners = np.tile(np.arange(len(self.users)), self.config.rounds)
        found = {key: estimate(name, values.ravel(), owners) for key, values in self.values[name].items()}
        found |= self._of_catalogue(name, self.answers[name])
        return {key: found[key] for key in MEASURES if key in found}

    @cached_property
    def differences(self) -> dict[str, dict[str, tuple[Difference, float]]]:
        """How far each other recommender is above the reference, by measure, with Holm's p-value over all of these.

        Paired over users, whose visits of all rounds are averaged first.
        """
        others = [name for name in self.answers if name != self.config.against]
        owners = np.tile(np.arange(len(self.users)), self.config.rounds)
        reference = self.values[self.config.against]
        found = {
            (name, key): paired_difference(self.values[name][key].ravel(), reference[key].ravel(), owners)
            for name in others
            for key in _COMPARED
        }
        adjusted = holm([difference.p for difference in found.values()])
        pairs = {pair: (found[pair], float(p)) for pair, p in zip(found, adjusted, strict=True)}
        return {name: {key: pairs[name, key] for key in _COMPARED} for name in others}

    def tables(self) -> list[TableData]:
        """Means over rounds, first and last round, and differences to the reference."""
        found = [self._means()]
        if self.config.rounds > 1:
            found.append(self._change())
        return [*found, self._compared()] if self.differences else found

    def _means(self) -> TableData:
        keys = list(next(iter(self.overall.values())))
        rows = [[name, *(cell(key, found[key]) for key in keys)] for name, found in self.overall.items()]
        config = self.config
        rounds = "one round" if config.rounds == 1 else f"means of {config.rounds} rounds"
        title = f"Closed loop on {config.dataset.name}: {rounds} ± standard error over users"
        notes = [
            f"users: {config.user}, {config.users:,}; slates of {config.slate_size}, at most {config.horizon} a visit; "
            f"seed {config.seed}",
            *(f"{MEASURES[key].name}: {MEASURES[key].about}" for key in keys),
        ]
        return TableData(title, ["recommender", *(MEASURES[key].name for key in keys)], rows, notes)

    def _change(self) -> TableData:
        keys = [key for key in next(iter(self.overall.values())) if key in _CHANGING]
        rows = [
            [name, *(f"{cell(key, rounds[0][key], False)} → {cell(key, rounds[-1][key], False)}" for key in keys)]
            for name, rounds in self.rounds.items()
        ]
        return TableData("First round → last round", ["recommender", *(MEASURES[key].name for key in keys)], rows)

    def _compared(self) -> TableData:
        head = ["recommender", *(f"{MEASURES[key].name}: difference, p" for key in _COMPARED)]
        rows = [[name, *(_difference(*found[key]) for key in _COMPARED)] for name, found in self.differences.items()]
        note = "A visit's, paired over users, over all rounds; p by sign flips, corrected by Holm over this table."
        return TableData(f"Compared with {self.config.against}", head, rows, [note])

    def figures(self) -> list[FigureData]:
        """Measures over rounds, a series a recommender; and how far likes are from the reference's, paired."""
        found = {key: self._figure(key) for key in _DRAWN if key in next(iter(self.overall.values()))}
        above = [self._likes_above()] if len(self.answers) > 1 else []
        return [found.pop("clicks"), found.pop("likes"), *above, *found.values()]

    def _likes_above(self) -> FigureData:
        likes, against = {name: values["likes"] for name, values in self.values.items()}, self.config.against
        everyone = np.arange(len(self.users))
        series = {
            name: [
                estimate(at + 1, mine - other, everyone)
                for at, (mine, other) in enumerate(zip(found, likes[against], strict=True))
            ]
            for name, found in likes.items()
            if name != against
        }
        note = f"Likes in a visit less {against}'s with the same user, so that errors are of the difference."
        lines = {against: 0.0}
        return FigureData(
            f"Closed loop: likes above {against}",
            note,
            "round",
            "likes above",
            {**dict.fromkeys(likes, ()), **series},
            lines=lines,
        )

    def _figure(self, key: str) -> FigureData:
        about = MEASURES[key]
        scale = 100 if about.percent else 1
        series = {
            name: [Estimate(e.label, e.mean * scale, e.se * scale, e.n) for e in (found[key] for found in rounds)]
            for name, rounds in self.rounds.items()
        }
        note = f"{about.about[0].upper()}{about.about[1:]}."
        return FigureData(f"Closed loop: {about.name.removesuffix(', %')}", note, "round", about.name, series)

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON types."""
        plain = {name: [_plain(found) for found in rounds] for name, rounds in self.rounds.items()}
        differences = {
            name: {key: {**asdict(difference), "holm_p": p} for key, (difference, p) in found.items()}
            for name, found in self.differences.items()
        }
        return {
            "settings": self.config.model_dump(mode="json"),
            "rounds": plain,
            "overall": {name: _plain(found) for name, found in self.overall.items()},
            "differences": differences,
            "tables": [asdict(table) for table in self.tables()],
            "figures": [figure.to_json() for figure in self.figures()],
        }

    def write(self, out: Path) -> None:
        """Write loop.json."""
        write_text(out / LOOP, json.dumps(self.to_json(), indent=1) + "\n")

    def write_pages(self, out: Path) -> list[str]:
        """Write loop.html and loop.svg where what a report needs is installed; returns their names."""
        if not all(map(find_spec, ("jinja2", "matplotlib"))):
            return []
        from starec_eval.report.page import page_html

        title = f"starec: closed loop on {self.config.dataset.name}"
        pages = {
            "loop.html": page_html(title, self.tables(), self.figures(), [], timelines=False),
            "loop.svg": picture(self.figures()[:6]),
        }
        for name, text in pages.items():
            with temporary(out / name) as new:
                new.write_text(text, encoding="utf-8", errors="replace")
        return list(pages)

    def __rich__(self) -> RenderableType:
        return Group(*self.tables())


def visit_values(answers: Answers, n: int, kinds: NDArray[np.float64] | None) -> dict[str, Floats]:
    """(n,) values of each user's visit in one round.

    Args:
        answers: The round's.
        n: Users.
        kinds: (n_items, genres) from `genre_table`; None for none.
    """
    row, took = answers.row, answers.taken != NOTHING

    def total(values: NDArray[Any]) -> Floats:
        return np.bincount(row, weights=values, minlength=n).astype(np.float64)

    rated = ~np.isnan(answers.stars)
    clicks, ratings = total(took), total(rated)
    stars = np.full(n, np.nan)
    np.divide(total(np.where(rated, answers.stars, 0)), ratings, out=stars, where=ratings > 0)
    found = {"clicks": clicks, "likes": total(answers.liked), "stars": stars}
    found |= {"slates": np.bincount(row, minlength=n).astype(float), "exits": total(answers.left)}
    if kinds is not None:
        first = answers.at(answers.step == 0)
        bits = np.full(n, np.nan)
        bits[first.row] = entropy(kinds[first.slate].sum(axis=1))
        found["genres"] = bits
    return found


def genre_table(dataset: Dataset) -> NDArray[np.float64] | None:
    """(n_items, genres) an item's weight in each of its genres, which add up to 1; None where no item has any."""
    attribute = next((name for name in GENRES if any(name in item.attributes for item in dataset.items)), None)
    if attribute is None:
        return None
    genres = [
        [part for part in re.split(r"\s*[|,;>]\s*", item.attributes.get(attribute, "")) if part]
        for item in dataset.items
    ]
    names = {name: place for place, name in enumerate(sorted({name for own in genres for name in own}))}
    table = np.zeros((dataset.n_items, len(names)))
    for item, own in enumerate(genres):
        for name in own:
            table[item, names[name]] += 1 / len(own)
    return table


def cell(key: str, found: Estimate, error: bool = True) -> str:
    """An estimate as a table shows it."""
    about = MEASURES[key]
    scale = 100 if about.percent else 1
    if np.isnan(found.mean):
        return "-"
    text = f"{scale * found.mean:.{about.digits}f}"
    return f"{text} ± {scale * found.se:.{about.digits}f}" if error and not np.isnan(found.se) else text


def _difference(found: Difference, p: float) -> str:
    return f"{found.gap:+.2f} ± {found.se:.2f}, p {p:.2g}"


def _plain(found: Mapping[str, Estimate]) -> dict[str, Any]:
    numbers = {key: {"mean": one.mean, "se": one.se, "n": one.n} for key, one in found.items()}
    return {
        key: {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in one.items()}
        for key, one in numbers.items()
    }
