"""`starec report`: one HTML file that needs no network, with tables, figures and every user's story."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import click

from starec_eval.figures import FigureData, TableData, marked, svg
from starec_eval.stories import story_chunks
from starec_eval.told import Told, contradiction_table, find_runs, results_tables, run_figures, runs_table

SECTION5 = "section5.json"
"""What `starec eval --config` leaves for a report: its tables and figures."""

_NUMBER = re.compile(r"[*_]*[-+]?\d")


def write_report(
    runs: Sequence[str | Path], out: str | Path, *, price_in: float = 0.0, price_out: float = 0.0, stories: bool = True
) -> Path:
    """Write a report on some runs, evaluations or folders that hold several.

    Args:
        runs: Their folders.
        out: The HTML file.
        price_in: Of a million prompt tokens, in any unit; with `price_out`, adds what a user costs.
        price_out: Of a million completion tokens.
        stories: Whether to tell users' stories.

    Raises:
        RunError: A folder holds nothing to report.
        MissingExtra: matplotlib isn't installed.
    """
    folders = [Path(run) for run in runs]
    told = find_runs(folders)
    tables, figures = _gather(folders, told, price_in, price_out)
    title = "starec: " + ", ".join(folder.resolve().name for folder in folders)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = page_html(title, tables, figures, told, stories)
    path.write_text(text, encoding="utf-8", errors="replace")
    return path


def page_html(
    title: str, tables: Sequence[TableData], figures: Sequence[FigureData], runs: Sequence[Told], stories: bool = True
) -> str:
    """The whole page. Stories are unpacked by the page one chunk at a time; a policy keeps any other script out."""
    script = _file("report.js")
    index, chunks = story_chunks([run for run in runs if not run.is_sampled] if stories else [])
    return Template(_file("report.html")).substitute(
        title=escape(title),
        style=_file("report.css"),
        hash=base64.b64encode(sha256(script.encode()).digest()).decode(),
        about="".join(map(_about, runs)),
        tables="".join(map(table_html, tables)),
        figures="".join(map(figure_html, figures)),
        index=index,
        chunks="".join(f'<script type="application/gzip" id="chunk-{n}">{c}</script>\n' for n, c in enumerate(chunks)),
        script=script,
    )


def _gather(
    folders: Sequence[Path], told: Sequence[Told], price_in: float, price_out: float
) -> tuple[list[TableData], list[FigureData]]:
    tables, figures = [], []
    for path in (path for folder in folders for path in sorted(folder.rglob(SECTION5))):
        whole = json.loads(path.read_text(encoding="utf-8"))
        tables += [TableData(**table) for table in whole["tables"]]
        figures += [FigureData.from_json(figure) for figure in whole["figures"]]
    for table, figure in results_tables(folders):
        tables.append(table)
        figures.append(figure)
    if told:
        tables += [runs_table(told, price_in, price_out), contradiction_table(told)]
        figures += run_figures(told)
    return [table for table in tables if table.rows], [figure for figure in figures if any(figure.series.values())]


def table_html(table: TableData) -> str:
    """A table as HTML; `**cell**` is the best and `__cell__` the second."""
    columns = list(zip(*table.rows, strict=True))
    kinds = ["" if any(map(_NUMBER.match, column)) else ' class="text"' for column in columns]
    head = "".join(f'<th scope="col"{kind}>{escape(text)}</th>' for kind, text in zip(kinds, table.head, strict=True))
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(
            f"<td{kind}>{marked(cell, '<strong>{}</strong>', '<u>{}</u>', escape)}</td>"
            for kind, cell in zip(kinds[1:], cells, strict=True)
        )
        + "</tr>\n"
        for first, *cells in table.rows
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    title = escape(table.title)
    return (
        f'<section><h3>{title}</h3>\n<div class="wide" tabindex="0" role="region" aria-label="{title}, scrollable">'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>"
        f"{f'<ul class=notes>{notes}</ul>' if notes else ''}</section>\n"
    )


def figure_html(figure: FigureData) -> str:
    """A figure as HTML, with its numbers in a table for those who don't see it."""
    head = [figure.x or "group", *figure.series]
    found = {name: {point.label: point for point in points} for name, points in figure.series.items()}
    rows = [[label, *(_number(found[name].get(label)) for name in figure.series)] for label in figure.labels]
    rows += [[name, f"{level:.3g}"] for name, level in figure.lines.items()]
    numbers = table_html(TableData(f"{figure.title}, in numbers", head, rows))
    return (
        f'<figure><h3>{escape(figure.title)}</h3><div role="img" aria-label="{escape(figure.title)}: '
        f'{escape(figure.note)} The numbers follow in a table.">{svg(figure)}</div>'
        f"<figcaption>{escape(figure.note)}</figcaption><details><summary>In numbers</summary>{numbers}</details>"
        "</figure>\n"
    )


def _number(point: Any) -> str:
    if point is None or point.mean != point.mean:
        return "-"
    return f"{point.mean:.3g}" + (f" ± {point.se:.2g}" if point.se == point.se else "") + f" ({point.n})"


def _about(run: Told) -> str:
    return f"<dt>{escape(run.name)}</dt><dd>{'; '.join(_facts(run))}</dd>\n"


def _facts(run: Told) -> Iterator[str]:
    about = run.about
    yield f"agent {escape(str(about.get('graph')))}, model {escape(str(about.get('model')))}"
    data = about["dataset"]
    yield f"{data['n_users']:,} users, {data['n_items']:,} items, {data['n_interactions']:,} interactions"
    yield f"seed {about.get('seed')}, candidates {escape(str(about.get('candidates_hash')))}"
    yield f"data {escape(str(data.get('hash')))}, starec {escape(str(about.get('starec')))}"
    if about.get("reading"):
        yield f"reading: {escape(about['reading'])}"


def _file(name: str) -> str:
    return files("starec_eval").joinpath("page", name).read_text(encoding="utf-8")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The file  [default: RUN/report.html]")
@click.option("--price-in", type=click.FloatRange(min=0), default=0.0, help="Of a million prompt tokens.")
@click.option("--price-out", type=click.FloatRange(min=0), default=0.0, help="Of a million completion tokens.")
@click.option("--stories/--no-stories", default=True, show_default=True, help="Tell users' stories.")
def report(runs: tuple[Path, ...], out: Path | None, price_in: float, price_out: float, stories: bool) -> None:
    """Write one HTML file on RUNS: runs of starec simulate, folders of starec eval, or folders that hold several.

    Example: starec report runs/first
    """
    target = out or runs[0] / "report.html"
    path = write_report(runs, target, price_in=price_in, price_out=price_out, stories=stories)
    click.echo(f"written to {path}: {path.stat().st_size / 1e6:.1f} MB, opens in any browser, needs no network")
