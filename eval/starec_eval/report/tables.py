"""Tables as plain data, in the terminal, Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

_NUMBER = re.compile(r"[*_]*[-+]?\d")


@dataclass(frozen=True)
class TableData:
    """A table of texts, in which `**cell**` is the best of its column and `__cell__` the second."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers."""
        return [any(map(_NUMBER.match, column)) for column in zip(*self.rows, strict=True)]

    def without(self, column: str) -> TableData:
        """The table without a column."""
        kept = [at for at, name in enumerate(self.head) if name != column]
        rows = [[row[at] for at in kept] for row in self.rows]
        return replace(self, head=[self.head[at] for at in kept], rows=rows)

    def to_markdown(self) -> str:
        """As Markdown, with its notes."""
        rows = [[marked(cell, "**{}**", "<u>{}</u>", in_markdown) for cell in row] for row in self.rows]
        head, *lines = ("| " + " | ".join(row) + " |" for row in (list(map(in_markdown, self.head)), *rows))
        rule = "|---" + "|---:" * (len(self.head) - 1) + "|"
        notes = (f"- {in_markdown(note)}" for note in self.notes)
        return "\n".join([f"{in_markdown(self.title)}:", "", head, rule, *lines, "", *notes, ""])

    def to_latex(self) -> str:
        """As a booktabs table, best bold and second underlined."""
        rows = [[marked(cell, r"\textbf{{{}}}", r"\underline{{{}}}", _tex) for cell in row] for row in self.rows]
        lines = [" & ".join(row) + r" \\" for row in (list(map(_tex, self.head)), *rows)]
        begin = rf"\begin{{tabular}}{{l{'r' * (len(self.head) - 1)}}}"
        body = [begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}", ""]
        comments = (f"% {' '.join(text.split())}" for text in (self.title, *self.notes))
        return "\n".join([*comments, *body])

    def __rich__(self) -> RenderableType:
        table = Table(title=Text(self.title))
        for number, name in enumerate(self.head):
            table.add_column(Text(name), justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*(marked(escape(cell), "[bold]{}[/bold]", "[underline]{}[/underline]") for cell in row))
        return Group(table, *(Text(note) for note in self.notes))


def results_table(
    title: str, rows: Sequence[Mapping[str, Any]], shown: Iterable[str], notes: Sequence[str], *, invalid: bool = False
) -> TableData:
    """Rows of `Results.rows` as texts: method, metrics, seconds and, if asked for, the number of invalid rankings."""
    columns = {"method": [row["method"] for row in rows]}
    columns |= {name.upper(): score_cells(rows, name) for name in shown}
    columns["seconds"] = [f"{row['seconds']:,.1f}" for row in rows]
    if invalid:
        columns["invalid"] = [f"{row['violations']:,}" for row in rows]
    return TableData(title, list(columns), list(zip(*columns.values(), strict=True)), notes)


def score_cells(rows: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """A column of a table from rows of `Results.rows`: percent ± standard error, best and second marked.

    Rows with the ends of a 95 % interval, which those of several seeds have, show it in place of the error.
    """
    places = sorted({row[metric] for row in rows if row[metric] is not None}, reverse=True)
    cells = []
    for row in rows:
        value, se, low, high = (row.get(f"{metric}{of}") for of in ("", "_se", "_low", "_high"))
        if value is None:
            text = "failed" if row.get("error") else "none scored"
        elif low is not None:
            text = f"{value:.1f} ({low:.1f} to {high:.1f})"
        else:
            text = f"{value:.1f}" if se is None else f"{value:.1f} ± {se:.1f}"
        mark = {0: "**", 1: "__"}.get(places.index(value), "") if value is not None else ""
        cells.append(f"{mark}{text}{mark}")
    return cells


def marked(cell: str, best: str, second: str, plain: Callable[[str], str] = str) -> str:
    """A cell's text in the format for the best or the second, if it is marked as such."""
    for mark, form in (("**", best), ("__", second)):
        if len(cell) > 4 and cell.startswith(mark) and cell.endswith(mark):
            return form.format(plain(cell[2:-2]))
    return plain(cell)


def in_markdown(text: str) -> str:
    """A text within a line or a table's cell of Markdown: no cell, line or tag ends or begins in it."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _tex(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash ")).replace("±", r"$\pm$")
