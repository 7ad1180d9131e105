"""`starec data list|fetch|check|split`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import click
import numpy as np

from starec_env.completion import names_completer
from starec_env.data import NAMES, cached, prepare
from starec_env.data.fetch import fetch as fetch_files
from starec_env.data.options import data_options, reading_options, refuse
from starec_env.data.spec import DataSpec
from starec_env.data.splits import make_split
from starec_env.errors import DataError
from starec_env.reading import Reading
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

_MOST_VALUES = 10
"""Different ratings that are shown one by one."""
_A_YEAR_S = 366 * 86_400


@click.group()
def data() -> None:
    """Data sets: what there is, downloads, and a look at a folder's contents.

    Example: starec data list
    """


@data.command("list")
def list_() -> None:
    """List the data sets and where each is on this machine.

    Example: starec data list
    """
    for name in NAMES:
        click.echo(f"{name:16} {_ABOUT[name]}\n{'':16} {_place(name)}")
    click.echo(f"{'FILE':16} interactions of your own: CSV, TSV, JSON lines or Parquet\n{'':16} give --dataset FILE")


def _place(name: str) -> str:
    if name in ("amazon", "recbole"):
        return "give --data-dir"
    try:
        return f"bundled: {cached(name)}" if name == "ml-latest-small" else f"here: {cached(name)}"
    except DataError:
        return f"not here: starec data fetch {name}"


@data.command()
@click.argument("name", shell_complete=names_completer(NAMES))
@click.option("--mirror", help="Take the files from this address instead of the official host.")
def fetch(name: str, mirror: str | None) -> None:
    """Download a data set from its official place into the cache folder (STAREC_CACHE).

    Example: starec data fetch ml-1m
    """
    click.echo(f"{name} is at {fetch_files(name, mirror=mirror, report=click.echo)}")


@data.command()
@click.argument("name", required=False, metavar="[NAME|FILE]", shell_complete=names_completer(NAMES, files=True))
@data_options
def check(name: str | None, data: DataSpec) -> None:
    """Load a data set and print its counts (the paper's Table 3), as loaded and as prepared, and what was met.

    Example: starec data check mine.csv --columns user=u,item=i,rating=r,time=t --items titles.csv --liked-above 6
    """
    if name is not None:
        refuse(["dataset"], f"beside {name}")
        data = DataSpec.of(**{**data.model_dump(), "dataset": name})
    loaded = data.read()
    click.echo(f"{'':24}{'users':>10}{'items':>10}{'interactions':>14}{'sparsity':>10}")
    click.echo(_counts("as loaded", loaded))
    for line in (_scale(loaded), _dates(loaded), *loaded.notes):
        click.echo(f"  {line}")
    prepared = prepare(loaded, min_interactions=data.min_interactions or 1, max_length=data.max_length)
    click.echo(_counts(f"{data.min_interactions}-core", prepared))
    click.echo(_counts(f"last {data.max_length}", prepared, int((prepared.indptr[1:] - prepared.starts).sum())))
    for line in (_liked(prepared), *prepared.notes[len(loaded.notes) :]):
        click.echo(f"  {line}")


@data.command()
@data_options
@reading_options
@click.option("--test", type=click.IntRange(min=1), required=True, help="Users to test, of those with a held-out turn.")
@click.option("--validation", type=click.IntRange(min=0), default=0, show_default=True, help="Users to choose by.")
@click.option("--train", type=click.IntRange(min=1), help="Most users to train on  [default: all the others]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("split.json"), show_default=True)
def split(
    data: DataSpec, reading: Reading, test: int, validation: int, train: int | None, seed: int, out: Path
) -> None:
    """Decide once who trains, who is chosen by and who is tested: a file for --split-file of every other command.

    Example: starec data split --dataset ml-1m --test 1000 --validation 200 --train 1000 --out split.json
    """
    made = make_split(data, reading, test=test, validation=validation, train=train, seed=seed)
    made.save(out)
    parts = f"{len(made.train):,} users train, {len(made.validation):,} validate, {len(made.test):,} are tested"
    click.echo(f"{out}: {parts}; {made.dataset}, data {made.data_hash}, split {made.hash}")


def _counts(label: str, dataset: Dataset, interactions: int | None = None) -> str:
    n = dataset.n_interactions if interactions is None else interactions
    sparsity = 1 - n / (dataset.n_users * dataset.n_items)
    return f"{label:24}{dataset.n_users:>10,}{dataset.n_items:>10,}{n:>14,}{sparsity:>10.2%}"


def _scale(dataset: Dataset) -> str:
    """The ratings' histogram: each value that occurs, or ten equal ranges where there are more than ten."""
    values, counts = np.unique(dataset.ratings, return_counts=True)
    labels = [f"{value:g}" for value in values]
    if len(values) > _MOST_VALUES:
        counts, edges = np.histogram(dataset.ratings, bins=_MOST_VALUES)
        labels = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    shares = (f"{label}: {n / dataset.n_interactions:.1%}" for label, n in zip(labels, counts, strict=True))
    return f"ratings {', '.join(shares)}; {_liked(dataset)}"


def _liked(dataset: Dataset) -> str:
    return f"{dataset.liked.mean():.1%} liked (above {dataset.liked_above:g})"


def _dates(dataset: Dataset) -> str:
    first, last = int(dataset.timestamps.min()), int(dataset.timestamps.max())
    if last < _A_YEAR_S:
        return f"times {first:,} to {last:,}: no dates"
    days = (np.datetime64(moment, "s").astype("datetime64[D]") for moment in (first, last))
    return "times {} to {}".format(*days)
