"""How much CPU time a million ratings take to load and prepare on one core, in ML-1M's format and as ratings.csv.

Usage: `python eval/benchmarks/load_dataset.py [FOLDER]`. The ratings are made up in the shape of MovieLens 1M: 6,040
users and 3,706 films, rows by user, and a third of them in the second of the row before. With a folder they are also
written there, to load them with another version: `... FOLDER` again loads what is there.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from starec_env import load_dataset, prepare

ROWS, USERS, FILMS = 1_000_209, 6_040, 3_706


def generate(folder: Path) -> None:
    """Write the files of both formats."""
    rng = np.random.default_rng(0)
    users = np.sort(rng.integers(0, USERS, ROWS)) + 1
    first = np.searchsorted(users, users)
    films = (users * 7 + (np.arange(ROWS) - first) * 11) % FILMS + 1  # distinct for each user
    times = 970_000_000 + np.cumsum(rng.integers(0, 3, ROWS))
    columns = [column.tolist() for column in (users, films, rng.integers(1, 6, ROWS), times)]
    for name, separator, header in (("dat", "::", ""), ("csv", ",", "userId,movieId,rating,timestamp\n")):
        rows = "".join(f"{separator.join(map(str, row))}\n" for row in zip(*columns, strict=True))
        (folder / f"ratings.{name}").write_text(header + rows)
        titles = "".join(f"{film}{separator}Film {film} (1999){separator}Drama\n" for film in range(1, FILMS + 1))
        (folder / f"movies.{name}").write_text(("movieId,title,genres\n" if header else "") + titles)
    (folder / "users.dat").write_text("".join(f"{user}::F::25::7::55117\n" for user in range(1, USERS + 1)))


def measure(folder: Path) -> None:
    """Load each format three times."""
    for name in ("ml-1m", "ml-latest-small"):
        for attempt in (1, 2, 3):
            start = time.process_time()
            dataset = load_dataset(name, folder)
            loaded = time.process_time()
            prepare(dataset)
            took = f"load {loaded - start:.2f} s, prepare {time.process_time() - loaded:.2f} s of CPU"
            print(f"{name} {attempt}: {dataset.n_interactions:,} ratings: {took}", flush=True)


def main(folder: Path) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if not (folder / "ratings.csv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        generate(folder)
    measure(folder)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
