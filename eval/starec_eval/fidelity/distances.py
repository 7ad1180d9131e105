"""Distances of simulated from real histograms, beside real from real."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.data.cut import Ints
from starec_env.metrics import Estimate
from starec_eval.fidelity import measures
from starec_eval.fidelity.answers import Answers, Columns, Floats, each, levels_of
from starec_eval.fidelity.asked import Asked
from starec_eval.fidelity.card import Measure, Section, Unit, plain

_TENTHS = 10
_PICKS = 0x5049

_ABOUT = (
    "Distances of simulated histograms from real ones, beside those of real from real (`floor`): users are halved at "
    "random {halvings} times, what is simulated for one half against what the other really did. ± is the spread over "
    "halvings. Popularity is by tenths of what was taken in the log, of the item that the model takes from each "
    "held-out list."
)
_MEANS = " Stars of {columns} are means put on the scale, which spread less than draws."


@dataclass(frozen=True)
class _Bins:
    """What was simulated by column, and what was real, as numbers of bins."""

    made: Mapping[str, Ints]
    real: Ints
    users: Ints
    n: int
    seed: int

    def distance(self, key: str, name: str, unit: Unit, of: Any) -> Measure:
        found: dict[str, Estimate] = {}
        for column, made in self.made.items():
            found[column], floor = measures.beside_floor(made, self.real, self.users, of, self.n, self.seed)
        return plain(key, name, unit, **found, floor=floor)


def distances(asked: Asked, columns: Columns) -> Section:
    """Histograms of stars and of the popularity of what is chosen."""
    levels, tenths, lists = levels_of(asked.dataset), popularity_tenths(asked), asked.lists
    drawn = each(columns, lambda a: _nearest(a.drawn, levels))
    real = _nearest(asked.dataset.ratings[asked.rows], levels)
    stars = _Bins(drawn, real, asked.owners, len(levels), asked.seed)
    picked = each(columns, lambda a: tenths[_picked(a)])
    popularity = _Bins(picked, tenths[lists.target_items], lists.users, _TENTHS, asked.seed)
    found = [
        stars.distance("stars_tv", "stars, total variation", "percent", measures.total_variation),
        stars.distance("stars_emd", "stars, earth mover's", "stars", partial(measures.earth_mover, at=levels)),
        popularity.distance(
            "popularity_tv", "popularity of the chosen, total variation", "percent", measures.total_variation
        ),
    ]
    of_means = [column for column, answers in columns.items() if not answers.draws]
    about = _ABOUT.format(halvings=measures.HALVINGS)
    about += _MEANS.format(columns=" and ".join(of_means)) if of_means else ""
    return Section(key="distances", title="Distributions", about=about, measures=found)


def popularity_tenths(asked: Asked) -> Ints:
    """(items,) by tenths of the log: 0 for the most popular items, which together have a tenth of all rows."""
    counts = np.bincount(asked.seen_of_lists.item_indices, minlength=asked.dataset.n_items)
    down = np.argsort(-counts, kind="stable")
    before = counts[down].cumsum() - counts[down]
    found: Ints = np.empty(len(counts), np.int64)
    found[down] = np.minimum(_TENTHS * before // max(1, counts.sum()), _TENTHS - 1)
    return found


def _picked(answers: Answers) -> Ints:
    """(lists,) the item that the model takes of each list, drawn by its probabilities."""
    lists, rng = answers.asked.lists, np.random.default_rng((answers.asked.seed, _PICKS))
    place = (answers.log_choice + rng.gumbel(size=answers.log_choice.shape)).argmax(1)
    found: Ints = lists.candidates[np.arange(len(place)), place].astype(np.int64)
    return found


def _nearest(stars: NDArray[Any], levels: Floats) -> Ints:
    found: Ints = np.abs(np.asarray(stars, np.float64)[:, None] - levels).argmin(1)
    return found
