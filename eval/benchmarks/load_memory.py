"""How much memory, and time, 25 million ratings take to load and prepare: from ratings.csv, and from arrays.

Usage: `python eval/benchmarks/load_memory.py [ROWS]`. The ratings are made up in the shape of MovieLens 25M: 162,541
users and 59,047 films, rows by user and then film, and a fifth of them in the second of the row before. Each route runs
in a process of its own, on one core, which prints its CPU time and its peak of resident memory.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

import numpy as np

ROWS, USERS, FILMS = 25_000_000, 162_541, 59_047  # the number of films is prime
NAMES = ("userId", "movieId", "rating", "timestamp")


def generate(folder: Path, rows: int) -> None:
    """Write ratings.csv, movies.csv and an .npy file for each column."""
    import pyarrow as pa
    from pyarrow import csv

    rng = np.random.default_rng(0)
    users = np.sort(rng.integers(0, max(USERS * rows // ROWS, 1), rows, dtype=np.int32))
    place = np.arange(rows) - np.searchsorted(users, users)
    films = ((users * 7919 + place * (users % 31 + 1)) % FILMS).astype(np.int32)
    order = np.argsort(users.astype(np.int64) * FILMS + films)
    films = films[order]
    times = 800_000_000 + rng.integers(0, 8 * 10**8, rows)
    times[1:][rng.random(rows - 1) < 0.2] = -1
    times = times[np.maximum.accumulate(np.where(times < 0, 0, np.arange(rows)))]
    ratings = rng.integers(1, 11, rows) / 2
    columns = dict(zip(NAMES, (users.astype(np.int64) + 1, films.astype(np.int64) + 1, ratings, times), strict=True))
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
    csv.write_csv(pa.table(columns), folder / "ratings.csv", csv.WriteOptions(quoting_header="none"))
    films_text = "".join(f"{film},Film {film} ({1950 + film % 70}),Drama|Comedy\n" for film in range(1, FILMS + 1))
    (folder / "movies.csv").write_text(f"movieId,title,genres\n{films_text}")


def load(route: str, folder: Path) -> None:
    """Load and prepare by one route, and print what it took."""
    from starec_env import from_frame, load_dataset, prepare

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    columns = {name: np.load(folder / f"{name}.npy") for name in NAMES} if route == "arrays" else {}
    start = time.process_time()
    if route == "arrays":
        user, item, rating, when = NAMES
        dataset = from_frame(columns, user=user, item=item, rating=rating, timestamp=when)
    else:
        dataset = load_dataset("ml-latest-small", folder)
    loaded, at_load = time.process_time(), peak()
    prepared = prepare(dataset)
    done = time.process_time() - loaded
    print(f"{route}: load {loaded - start:.1f} s, peak {at_load:.2f} GiB; prepare {done:.1f} s, peak {peak():.2f} GiB")
    print(f"  {prepared!r}", *dataset.notes, sep="\n  ", flush=True)


def peak() -> float:
    """The process's peak of resident memory in GiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts the parent's memory at the fork too
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    return getrusage(RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        for step in ("generate", "csv", "arrays"):
            subprocess.run([sys.executable, __file__, step, name, str(rows)], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["generate"]:
        generate(Path(sys.argv[2]), int(sys.argv[3]))
    elif len(sys.argv) == 4:
        load(sys.argv[1], Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) == 2 else ROWS)
