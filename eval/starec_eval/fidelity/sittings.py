"""How long people stay."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.recommend.calibrate import SITTING
from starec_eval.fidelity import measures
from starec_eval.fidelity.answers import Columns
from starec_eval.fidelity.asked import Asked
from starec_eval.fidelity.card import MODEL, REAL, Measure, Section, plain

SEEN = "seen"
"""Column of what the model was fitted on."""
_DAY_SECONDS = 86_400
_DRAWN = 20_000
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_STEPS = ((1, 1), (2, 5), (6, 20), (21, 60), (61, 10**9))

_ABOUT = (
    "A sitting ends before a pause of {minutes} minutes. Quantiles are of {drawn:,} simulated sittings and of those in "
    "the rows that were seen; a log ends somewhere, which cuts sittings short. Leaving is asked of held-out tenths: "
    "after how many of the rows that were a sitting's first, second to fifth, .. did it end, and after how many should "
    "it have by the simulated sittings. In a closed loop leaving also depends on what is recommended, of which logs "
    "say nothing."
)


def sittings(asked: Asked, columns: Columns) -> Section | str:
    """Lengths and leaving, or why they can't be told."""
    model: Any = columns[MODEL].of_tenths
    if not (asked.dataset.timestamps % _DAY_SECONDS).any():
        return f"times of {asked.dataset.name} are whole days, so its sittings can't be told apart"
    if not hasattr(model, "sitting_lengths"):
        return "the user model doesn't say how long it stays (`sitting_lengths`)"
    made, seen = columns[MODEL].sitting_lengths(_DRAWN), asked.seen_of_tenths
    lengths = {MODEL: made, SEEN: measures.sitting_lengths(seen.owner, seen.timestamps)}
    found = [_quantile(q, lengths) for q in _QUANTILES] + _leaving(asked, made)
    about = _ABOUT.format(minutes=SITTING // 60, drawn=_DRAWN)
    return Section(key="sittings", title="Sittings", about=about, measures=found)


def _quantile(q: float, lengths: dict[str, NDArray[Any]]) -> Measure:
    values = {column: float(np.quantile(each, q)) for column, each in lengths.items()}
    return plain(f"sitting_q{100 * q:.0f}", f"{100 * q:.0f} % last no longer than", "rows", **values)


def _leaving(asked: Asked, made: NDArray[Any]) -> list[Measure]:
    """Chances to leave by step: real ones of held-out rows, the model's at the same steps, and those seen."""
    data, seen, held = asked.dataset, asked.seen_of_tenths, np.zeros(asked.dataset.n_interactions, np.bool_)
    held[asked.rows] = True
    steps, left = measures.sitting_steps(data.owner, data.timestamps)
    earlier, earlier_left = measures.sitting_steps(seen.owner, seen.timestamps)
    found = []
    for first, last in _STEPS:
        of = held & (steps >= first) & (steps <= last) & ~np.isnan(left)
        before = (earlier >= first) & (earlier <= last)
        chances = {
            MODEL: measures.pooled(measures.leaving_chances(made, steps[of]), data.owner[of]),
            REAL: measures.pooled(left[of], data.owner[of]),
            SEEN: measures.pooled(earlier_left[before], seen.owner[before]),
        }
        name = "the first" if last == 1 else f"steps {first} to {last}" if last < 10**9 else f"step {first} or later"
        found.append(plain(f"leave@{first}", f"leaves after {name}", "percent", **chances))
    return found
