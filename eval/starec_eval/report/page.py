"""`starec report`: one HTML file that needs no network, with tables, figures and every user's timeline."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import click

from starec_env.errors import MissingExtra
from starec_eval.report.data import Run, find_runs
from starec_eval.report.figures import FigureData, svg
from starec_eval.report.summary import claims_table, results_tables, run_figures, runs_table
from starec_eval.report.tables import TableData, marked
from starec_eval.report.timelines import timeline_chunks

SECTION5, LOOP = "section5.json", "loop.json"
"""Tables and figures that `starec eval --config` and `starec loop` leave for a report."""
CARD = "card.json"
"""What `starec fidelity` leaves."""


def write_report(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    price_in: float = 0.0,
    price_out: float = 0.0,
    timelines: bool = True,
) -> Path:
    """Write a report on some runs, evaluations, loops and report cards, or folders that hold several.

    Args:
        runs: Their folders.
        out: The HTML file.
        price_in: Of a million prompt tokens, in any unit; with `price_out`, adds what a user costs.
        price_out: Of a million completion tokens.
        timelines: Whether to show users' timelines.

    Raises:
        RunError: A folder holds nothing to report.
        MissingExtra: jinja2, matplotlib or pandas isn't installed.
    """
    if not all(map(find_spec, ("jinja2", "matplotlib", "pandas"))):
        raise MissingExtra("writing a report", "report")
    folders = [Path(run) for run in runs]
    found = find_runs(folders)
    tables, figures = _gather(folders, found, price_in, price_out)
    title = "starec: " + ", ".join(folder.resolve().name for folder in folders)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page_html(title, tables, figures, found, timelines), encoding="utf-8", errors="replace")
    return path


def page_html(
    title: str, tables: Sequence[TableData], figures: Sequence[FigureData], runs: Sequence[Run], timelines: bool = True
) -> str:
    """The whole page. It unpacks timelines one chunk at a time; its content security policy allows no other script."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("starec_eval", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["marked"] = lambda cell: Markup(marked(cell, "<strong>{}</strong>", "<u>{}</u>", escape))
    environment.filters["svg"] = lambda figure: Markup(svg(figure))
    script = _file("page.js")
    index, chunks = timeline_chunks([run for run in runs if not run.is_sampled] if timelines else [])
    return environment.get_template("page.html").render(
        title=title,
        style=Markup(_file("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(sha256(script.encode()).digest()).decode(),
        tables=tables,
        figures=figures,
        runs=runs,
        index=index,
        chunks=chunks,
    )


def _gather(
    folders: Sequence[Path], found: Sequence[Run], price_in: float, price_out: float
) -> tuple[list[TableData], list[FigureData]]:
    tables, figures = [], []
    for path in (path for folder in folders for name in (SECTION5, LOOP) for path in sorted(folder.rglob(name))):
        whole = json.loads(path.read_text(encoding="utf-8"))
        tables += [TableData(**table) for table in whole["tables"]]
        figures += [FigureData.from_json(figure) for figure in whole["figures"]]
    tables += [card_table(path) for folder in folders for path in sorted(folder.rglob(CARD))]
    for table, figure in results_tables(folders):
        tables.append(table)
        figures.append(figure)
    sampled, runs = [run for run in found if run.is_sampled], [run for run in found if not run.is_sampled]
    tables += [runs_table(runs, price_in, price_out), claims_table(runs)]
    figures += run_figures(runs, sampled)
    return [table for table in tables if table.rows], [figure for figure in figures if any(figure.series.values())]


def card_table(path: Path) -> TableData:
    """The main figures of a report card; the import is late because the card's own page is made by this module."""
    from starec_eval.fidelity.card import Card
    from starec_eval.fidelity.page import summary

    return summary(Card.read(path))


def _file(name: str) -> str:
    return files("starec_eval").joinpath("report", name).read_text(encoding="utf-8")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The file  [default: RUN/report.html]")
@click.option("--price-in", type=click.FloatRange(min=0), default=0.0, help="Of a million prompt tokens.")
@click.option("--price-out", type=click.FloatRange(min=0), default=0.0, help="Of a million completion tokens.")
@click.option("--timelines/--no-timelines", default=True, show_default=True, help="Show users' timelines.")
def report(runs: tuple[Path, ...], out: Path | None, price_in: float, price_out: float, timelines: bool) -> None:
    """Write one HTML file on RUNS: folders of starec simulate, eval, loop and fidelity, or folders that hold several.

    Example: starec report runs/first
    """
    target = out or runs[0] / "report.html"
    path = write_report(runs, target, price_in=price_in, price_out=price_out, timelines=timelines)
    click.echo(f"written to {path}: {path.stat().st_size / 1e6:.1f} MB, opens in any browser, needs no network")
