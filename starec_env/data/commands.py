"""`starec data list|fetch|check`."""

from __future__ import annotations

import click

from starec_env.data import NAMES, cached, load_dataset, prepare
from starec_env.data.fetch import fetch as fetch_files
from starec_env.errors import DataError
from starec_env.types import Dataset

_ABOUT = {
    "ml-latest-small": "671 users, 100,004 ratings of 9,066 movies (2016); no commercial use without permission",
    "ml-1m": "6,040 users, 1,000,209 ratings of 3,883 movies; not to be passed on",
    "ml-100k": "943 users, 100,000 ratings of 1,682 movies; not to be passed on",
    "amazon": "any category of the Amazon reviews of 2014, 2018 or 2023",
    "amazon-cds-2014": "CDs and Vinyl: 5-core reviews, and metadata",
    "amazon-cds-2018": "CDs and Vinyl: 5-core reviews, and metadata",
    "amazon-cds-2023": "CDs and Vinyl: 5-core ratings, and metadata",
    "recbole": "RecBole's atomic files (.inter, .item, .user)",
}


@click.group()
def data() -> None:
    """Data sets: what there is, downloads, and a look at a folder's contents.

    Example: starec data list
    """


@data.command("list")
def list_() -> None:
    r"""List the data sets and where each is on this machine.

    \b
    Example:
      starec data list
    """
    for name in NAMES:
        click.echo(f"{name:16} {_ABOUT[name]}\n{'':16} {_place(name)}")


def _place(name: str) -> str:
    if name in ("amazon", "recbole"):
        return "give --data-dir"
    try:
        return f"bundled: {cached(name)}" if name == "ml-latest-small" else f"here: {cached(name)}"
    except DataError:
        return f"not here: starec data fetch {name}"


@data.command()
@click.argument("name")
@click.option("--mirror", help="Take the files from this address instead of the official host.")
def fetch(name: str, mirror: str | None) -> None:
    r"""Download a data set from its official place into the cache folder (STAREC_CACHE).

    \b
    Example:
      starec data fetch ml-1m
    """
    click.echo(f"{name} is at {fetch_files(name, mirror=mirror, report=click.echo)}")


@data.command()
@click.argument("name", default="ml-latest-small")
@click.option("--data-dir", help="The data set's folder, zip or file; without it the bundled or fetched files.")
@click.option("--min-interactions", default=10, show_default=True, help="Fewest interactions of a user and an item.")
@click.option("--max-length", default=40, show_default=True, help="Length of the longest sequence.")
def check(name: str, data_dir: str | None, min_interactions: int, max_length: int) -> None:
    r"""Load a data set and print its counts (the paper's Table 3), as loaded and as prepared, and what was met.

    \b
    Examples:
      starec data check ml-latest-small
      starec data check ml-1m --data-dir ~/Downloads/ml-1m.zip
    """
    loaded = load_dataset(name, data_dir)
    click.echo(f"{'':24}{'users':>10}{'items':>10}{'interactions':>14}{'sparsity':>10}")
    click.echo(_counts("as loaded", loaded))
    for note in loaded.notes:
        click.echo(f"  {note}")
    prepared = prepare(loaded, min_interactions=min_interactions, max_length=max_length)
    click.echo(_counts(f"{min_interactions}-core", prepared))
    click.echo(_counts(f"last {max_length}", prepared, int((prepared.indptr[1:] - prepared.starts).sum())))
    for note in prepared.notes[len(loaded.notes) :]:
        click.echo(f"  {note}")


def _counts(label: str, dataset: Dataset, interactions: int | None = None) -> str:
    n = dataset.n_interactions if interactions is None else interactions
    sparsity = 1 - n / (dataset.n_users * dataset.n_items)
    return f"{label:24}{dataset.n_users:>10,}{dataset.n_items:>10,}{n:>14,}{sparsity:>10.2%}"
