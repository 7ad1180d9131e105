"""Data sets: loaders for published formats, tables in memory, and the paper's preparation."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from starec_env.data.amazon import load_amazon
from starec_env.data.frame import from_frame
from starec_env.data.movielens import load_ml_1m, load_ml_100k, load_ml_csv
from starec_env.data.preparation import prepare
from starec_env.data.recbole import load_recbole
from starec_env.errors import DataError, unknown
from starec_env.types import Dataset

__all__ = ["NAMES", "cache_dir", "cached", "from_frame", "load_dataset", "prepare"]

_BUNDLED = Path(__file__).parent / "bundled" / "ml-latest-small.zip"
_MOVIES: dict[str, Callable[..., Dataset]] = {
    "ml-latest-small": load_ml_csv,
    "ml-1m": load_ml_1m,
    "ml-100k": load_ml_100k,
}
_ANY: dict[str, Callable[..., Dataset]] = {
    "amazon": load_amazon,
    "amazon-cds-2014": load_amazon,
    "amazon-cds-2018": load_amazon,
    "amazon-cds-2023": load_amazon,
    "recbole": load_recbole,
}
NAMES = (*_MOVIES, *_ANY)
"""The names that `load_dataset` knows."""


def load_dataset(
    name: str, path: str | Path | None = None, *, domain: str | None = None, liked_above: float | None = None
) -> Dataset:
    """Load a data set by name, whole; `prepare` then filters it as the paper does.

    Args:
        name: "ml-latest-small" (bundled; with a path, ratings.csv and movies.csv of any MovieLens edition),
            "ml-1m", "ml-100k", "amazon" (any category of 2014, 2018 or 2023), "amazon-cds-2014", "amazon-cds-2018",
            "amazon-cds-2023", or "recbole" (atomic files).
        path: Its folder, zip or file. None takes the bundled files, or what `starec data fetch NAME` has put into
            the cache folder; "amazon" and "recbole" need a path.
        domain: What an item is called in prompts, "movie", "music", "item" or any other noun. None decides by the
            format: "movie" for MovieLens, else a guess from the names of files and folders.
        liked_above: Ratings above this are likes. None means 3, which fits the 1 to 5 stars of MovieLens and Amazon; of
            atomic files with a `label` of 0 or 1, None means 0.

    Returns:
        The data set; `notes` says what was met in the files.

    Raises:
        UnknownName: No data set of that name.
        DataError: The files aren't there, or not what they should be.
        InvalidOption: `liked_above` isn't a finite number.

    Examples:
        >>> load_dataset("ml-latest-small")
        Dataset('ml-latest-small', 671 users, 9,066 items, 100,004 interactions)
    """
    from starec_env.data.spec import DataSpec  # which imports this module

    if name not in NAMES:
        raise unknown("data set", name, NAMES)
    place = cached(name) if path is None else Path(path).expanduser()
    if name in _ANY:
        dataset = _ANY[name](name, place, domain, liked_above=liked_above)
    else:
        dataset = _MOVIES[name](name, place, liked_above=liked_above)
    source = DataSpec(
        dataset=name,
        data_dir=None if path is None else str(path),
        domain=domain,
        liked_above=liked_above,
        min_interactions=None,
        max_length=None,
    )
    return replace(dataset, domain=domain or dataset.domain, source=source.model_dump())


def cached(name: str) -> Path:
    """Where the files of a data set lie that needs no path.

    Raises:
        DataError: They aren't there; the message says how to get them.
    """
    if name == "ml-latest-small":
        return _BUNDLED
    if name in ("amazon", "recbole"):
        raise DataError(f"{name!r} is a format: say where its files are, load_dataset({name!r}, path=...)")
    folder = cache_dir() / "datasets" / name
    place = folder / f"{name}.zip" if name.startswith("ml-") else folder
    if not place.exists():
        raise DataError(
            f"{name} isn't in {folder}: run `starec data fetch {name}`, or give path= (--data-dir), where its files are"
        )
    return place


def cache_dir() -> Path:
    """The folder for downloads: $STAREC_CACHE, or "starec" in the platform's user cache folder."""
    if given := os.environ.get("STAREC_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "starec" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "starec"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "starec"
