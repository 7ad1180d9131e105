"""Figures as plain data, drawn as SVG."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import StringIO
from math import isnan
from typing import Any

from starec_env.metrics import Estimate
from starec_eval.report.tables import TableData

_TEXT, _FAINT = "#1d2430", "#c5cbd6"
_COLOURS = ("#0062a3", "#c2410c", "#047857", "#a21caf", "#7c5a00", "#475569")
_MARKERS, _DASHES = "os^DvpX", ("-", "--", ":", "-.", (0, (5, 1)))
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _FAINT,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "grid.color": _FAINT,
    "grid.linewidth": 0.4,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "errorbar.capsize": 2,
    "legend.fontsize": 8,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class FigureData:
    """A figure's numbers: estimates by series, along labels."""

    title: str
    note: str
    """What is shown, and how to read it."""
    x: str
    y: str
    series: Mapping[str, Sequence[Estimate]]
    """A series keeps the colour of its place; an empty one is not drawn."""
    bars: bool = False
    """For labels that are no quantity."""
    lines: Mapping[str, float] = field(default_factory=dict)
    """Levels to compare with."""

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FigureData:
        """What `to_json` gave."""
        series = {name: [Estimate(**point) for point in points] for name, points in data["series"].items()}
        return cls(**{**data, "series": series})

    @property
    def labels(self) -> list[str]:
        """All labels; numbers sorted, others in the order met."""
        found = list(dict.fromkeys(point.label for points in self.series.values() for point in points))
        return sorted(found, key=float) if all(map(_is_number, found)) else found

    @property
    def numbers(self) -> TableData:
        """All that the figure shows, as a table: mean ± standard error (users)."""
        found = {name: {point.label: point for point in points} for name, points in self.series.items() if points}
        rows = [[label, *(_cell(points.get(label)) for points in found.values())] for label in self.labels]
        rows += [[name, f"{level:.3g}", *[""] * (len(found) - 1)] for name, level in self.lines.items()]
        return TableData(f"{self.title}, in numbers", [self.x or "group", *found], rows)


def score_point(label: str, row: Mapping[str, Any], metric: str = "ndcg@10") -> Estimate:
    """A metric of one of `Results.rows` as a point of a figure."""
    se = row[f"{metric}_se"]
    return Estimate(label, row[metric], float("nan") if se is None else se, row["users"])


def svg(figure: FigureData) -> str:
    """Draw a figure with error bars of one standard error, on a light ground or, inverted, on a dark one.

    Series differ by marker and line as well as by colour. Text stays text, so it can be read out, found and scaled.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = [name for name, points in [*figure.series.items(), *figure.lines.items()] if points != []]
    columns = 2 if max(map(len, names), default=0) < 24 else 1
    horizontal = figure.bars and len(figure.series) == 1 and sum(map(len, figure.labels)) > 40
    height = 0.6 + 0.2 * len(figure.labels) if horizontal else 2.7 + 0.17 * -(-len(names) // columns)
    with rc_context(_STYLE | {"svg.hashsalt": figure.title}):
        canvas = Figure(figsize=(4.4, height), layout="constrained")
        axes = canvas.subplots()
        if horizontal:
            _draw_bars(axes, figure, axes.barh, axes.set_yticks)
            axes.invert_yaxis()
        elif figure.bars:
            _draw_bars(axes, figure, axes.bar, axes.set_xticks)
        else:
            _draw_lines(axes, figure)
        axes.set(**{"xlabel" if horizontal else "ylabel": _plain(figure.y)})
        axes.grid(axis="x" if horizontal else "y")
        if len(figure.series) + len(figure.lines) > 1:
            canvas.legend(loc="outside upper left", ncols=columns)
        drawn = StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        canvas.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    inline = drawn.getvalue()[drawn.getvalue().index("<svg") :]
    return re.sub(r'<g id="[^"]*"', "<g", inline)  # the figures of a page would share them


def picture(figures: Sequence[FigureData], columns: int = 3) -> str:
    """Draw figures of quantities as one SVG file on a white ground, with one legend; their series are the same."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = -(-len(figures) // columns)
    with rc_context(_STYLE | {"svg.hashsalt": figures[0].title}):
        canvas = Figure(figsize=(3.2 * columns, 2.3 * rows + 0.5), layout="constrained")
        places = canvas.subplots(rows, columns, squeeze=False).ravel()
        for axes, figure in zip(places, figures, strict=False):
            _draw_lines(axes, figure)
            axes.set(ylabel=_plain(figure.y))
            axes.grid(axis="y")
        for axes in places[len(figures) :]:
            axes.remove()
        canvas.legend(*places[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(figures[0].series))
        drawn = StringIO()
        canvas.savefig(drawn, format="svg", metadata=dict.fromkeys(("Creator", "Date")))
    return drawn.getvalue()


def _draw_bars(axes: Any, figure: FigureData, draw: Any, set_ticks: Any) -> None:
    labels, drawn = figure.labels, [name for name, points in figure.series.items() if points]
    width, errors = 0.8 / len(drawn), "xerr" if draw == axes.barh else "yerr"
    for number, (name, points) in enumerate(figure.series.items()):
        if points:
            shift = (drawn.index(name) - (len(drawn) - 1) / 2) * width
            places = [labels.index(point.label) + shift for point in points]
            style = {"color": _COLOURS[number % 6], "ecolor": _TEXT, "hatch": "//" if number >= 6 else None}
            draw(
                places, [p.mean for p in points], width * 0.9, label=_plain(name), **{errors: _errors(points)}, **style
            )
    set_ticks(range(len(labels)), [_plain(label if len(label) < 25 else label[:24] + "…") for label in labels])


def _draw_lines(axes: Any, figure: FigureData) -> None:
    from matplotlib.ticker import MaxNLocator

    for number, (name, points) in enumerate(figure.series.items()):
        if points:
            style = {"color": _COLOURS[number % 6], "marker": _MARKERS[number % 7], "linestyle": _DASHES[number % 5]}
            places, means = [float(point.label) for point in points], [point.mean for point in points]
            axes.errorbar(places, means, _errors(points), elinewidth=0.7, label=_plain(name), **style)
    for number, (name, level) in enumerate(figure.lines.items()):
        axes.axhline(level, color=_TEXT, linewidth=1, linestyle=_DASHES[number % 5], label=_plain(name))
    axes.set_xlabel(_plain(figure.x))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(figure.labels) <= 8:
        axes.set_xticks(list(map(float, figure.labels)))


def _errors(points: Sequence[Estimate]) -> list[float] | None:
    return None if all(isnan(p.se) for p in points) else [0.0 if isnan(p.se) else p.se for p in points]


def _cell(point: Estimate | None) -> str:
    if point is None or isnan(point.mean):
        return "-"
    return f"{point.mean:.3g}" + ("" if isnan(point.se) else f" ± {point.se:.2g}") + f" ({point.n})"


def _plain(text: str) -> str:
    return f"\u200b{text}" if text.startswith("_") else text  # matplotlib leaves out labels that begin with one


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
