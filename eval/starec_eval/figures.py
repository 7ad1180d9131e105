"""Tables and figures as plain data, and a figure drawn as SVG that follows its page's colours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import StringIO
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape as rich_escape
from rich.table import Table
from rich.text import Text

from starec_env.errors import MissingExtra
from starec_eval.analysis import Estimate

_SERIES = [f"#0a0b{number:02x}" for number in range(6)]
_TEXT, _FAINT = "#0a0c00", "#0a0c01"
_PAGE_COLOURS = {
    **{colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES)},
    _TEXT: "currentColor",
    _FAINT: "var(--faint)",
}
"""Stand-ins in the drawing, and what the page puts for them; so one drawing serves light and dark."""
_MARKERS, _LINES = "os^Dvp", ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "starec",
    "font.size": 9,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _FAINT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "grid.color": _FAINT,
    "grid.linewidth": 0.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class TableData:
    """A table of texts, in which `**cell**` is the best of its column and `__cell__` the second."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def to_markdown(self) -> str:
        """As Markdown, with its notes."""
        lines = ["| " + " | ".join(self.head) + " |", "|---" + "|---:" * (len(self.head) - 1) + "|"]
        lines += ["| " + " | ".join(marked(cell, "**{}**", "<u>{}</u>") for cell in row) + " |" for row in self.rows]
        return "\n".join([f"{self.title}:", "", *lines, "", *(f"- {note}" for note in self.notes), ""])

    def to_latex(self) -> str:
        """As a booktabs table, best bold and second underlined."""
        rows = [[marked(cell, r"\textbf{{{}}}", r"\underline{{{}}}", _tex) for cell in row] for row in self.rows]
        lines = [" & ".join(row) + r" \\" for row in rows]
        head = " & ".join(map(_tex, self.head)) + r" \\"
        begin = rf"\begin{{tabular}}{{l{'r' * (len(self.head) - 1)}}}"
        body = [begin, r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", ""]
        return "\n".join([f"% {self.title}", *(f"% {note}" for note in self.notes), *body])

    def __rich__(self) -> RenderableType:
        table = Table(title=Text(self.title))
        for number, name in enumerate(self.head):
            table.add_column(Text(name), justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*(marked(rich_escape(cell), "[bold]{}[/bold]", "[underline]{}[/underline]") for cell in row))
        return Group(table, *(Text(note) for note in self.notes))


def score_cells(rows: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """A column of a table from rows of `Results.rows`: percent ± standard error, best and second marked."""
    places = sorted({row[metric] for row in rows if row[metric] is not None}, reverse=True)
    cells = []
    for row in rows:
        value, se = row[metric], row.get(f"{metric}_se")
        lacking = "failed" if row.get("error") else "none scored"
        text = lacking if value is None else f"{value:.1f}" if se is None else f"{value:.1f} ± {se:.1f}"
        mark = {0: "**", 1: "__"}.get(places.index(value), "") if value is not None else ""
        cells.append(f"{mark}{text}{mark}")
    return cells


def score_point(label: str, row: Mapping[str, Any], metric: str = "ndcg@10") -> Estimate:
    """A row's metric as a point of a figure."""
    se = row[f"{metric}_se"]
    return Estimate(label, row[metric], float("nan") if se is None else se, row["users"])


def marked(cell: str, best: str, second: str, plain: Callable[[str], str] = str) -> str:
    """A cell's text in the format for the best or the second, if it is marked as such."""
    for mark, form in (("**", best), ("__", second)):
        if len(cell) > 4 and cell.startswith(mark) and cell.endswith(mark):
            return form.format(plain(cell[2:-2]))
    return plain(cell)


def _tex(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash ")).replace("±", r"$\pm$")


@dataclass(frozen=True)
class FigureData:
    """A figure's numbers: estimates by series, along labels."""

    title: str
    note: str
    """What is seen, and how to read it."""
    x: str
    y: str
    series: Mapping[str, Sequence[Estimate]]
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


def svg(figure: FigureData) -> str:
    """Draw a figure with error bars of one standard error.

    Series differ by marker and line as well as by colour. Text stays text, so it can be read out, found and scaled.

    Raises:
        MissingExtra: matplotlib isn't installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise MissingExtra("drawing a report", "report") from None
    labels = figure.labels
    with matplotlib.rc_context(_STYLE):
        names = [*figure.series, *figure.lines] if len(figure.series) + len(figure.lines) > 1 else []
        columns = 2 if max(map(len, names), default=0) < 24 else 1
        rows = -(-len(names) // columns)
        lying = figure.bars and len(figure.series) == 1 and len(labels) > 6
        canvas = Figure(figsize=(4.4, 0.6 + 0.2 * len(labels) if lying else 2.7 + 0.17 * rows), layout="constrained")
        axes = canvas.subplots()
        if lying:
            _draw_lying(axes, figure, labels)
            return _saved(canvas)
        for number, (name, points) in enumerate(figure.series.items()):
            _draw(axes, figure, number, name, points, labels)
        for number, (name, level) in enumerate(figure.lines.items()):
            axes.axhline(level, color=_TEXT, linewidth=1, linestyle=_LINES[number % 6], label=_plain(name))
        axes.set_xlabel(_plain(figure.x))
        axes.set_ylabel(_plain(figure.y))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if figure.bars or not all(map(_is_number, labels)):
            lean = max(map(len, labels), default=0) * len(labels) > 40
            axes.set_xticks(
                range(len(labels)), _short(labels), rotation=35 if lean else 0, ha="right" if lean else "center"
            )
        elif len(labels) <= 8:
            axes.set_xticks(list(map(float, labels)))
        if names:
            canvas.legend(loc="outside upper left", ncols=columns, fontsize=8)
        return _saved(canvas)


def _draw_lying(axes: Any, figure: FigureData, labels: list[str]) -> None:
    # Many named bars of one series have room for their names beside each other's.
    (points,) = figure.series.values()
    errors = [point.se if point.se == point.se else 0.0 for point in points]
    axes.barh(range(len(points)), [p.mean for p in points], 0.7, xerr=errors, color=_SERIES[0], ecolor=_TEXT, capsize=2)
    axes.set_yticks(range(len(labels)), _short(labels))
    axes.invert_yaxis()
    axes.set_xlabel(_plain(figure.y))
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _short(labels: Sequence[str]) -> list[str]:
    return [_plain(label if len(label) < 25 else label[:24] + "…") for label in labels]


def _saved(canvas: Any) -> str:
    drawn = StringIO()
    canvas.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(drawn.getvalue())


def _draw(axes: Any, figure: FigureData, number: int, name: str, points: Sequence[Estimate], labels: list[str]) -> None:
    colour, many = _SERIES[number % 6], len(figure.series)
    numeric = not figure.bars and all(map(_is_number, labels))
    places = [float(point.label) if numeric else float(labels.index(point.label)) for point in points]
    means: Any = [point.mean for point in points]
    known = [point.se for point in points if point.se == point.se]
    errors = [point.se if point.se == point.se else 0.0 for point in points] if known else None
    if figure.bars:
        width = 0.8 / many
        shifted = [place + (number - (many - 1) / 2) * width for place in places]
        style: dict[str, Any] = {"color": colour, "ecolor": _TEXT, "capsize": 2, "hatch": "//" if number >= 6 else None}
        axes.bar(shifted, means, width * 0.9, yerr=errors, label=_plain(name), **style)
    else:
        style = {"marker": _MARKERS[number % 6], "markersize": 4, "linestyle": _LINES[number % 6], "linewidth": 1.3}
        axes.errorbar(places, means, errors, color=colour, elinewidth=0.7, capsize=2, label=_plain(name), **style)


def _for_page(drawing: str) -> str:
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', drawing, count=1)
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"<style.*?</style>", "", drawing, flags=re.DOTALL)  # inline, it would hold for the whole page
    drawing = re.sub(r" font-family: [^;]*;", "", drawing)
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)  # several drawings of a page would share them
    for stand_in, colour in _PAGE_COLOURS.items():
        drawing = drawing.replace(stand_in, colour)
    return drawing


def _plain(text: str) -> str:
    return f"\u200b{text}" if text.startswith("_") else text  # matplotlib leaves out labels that begin with one


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
