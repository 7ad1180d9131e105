"""Tables as plain data, in the terminal, Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
