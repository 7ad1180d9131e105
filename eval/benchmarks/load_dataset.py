"""How long a million ratings in ML-1M's format take to load and prepare, on one core.

Usage: `python eval/benchmarks/load_dataset.py PATH`, with the folder of ml-1m. Where its ratings.dat is the complete
one it is loaded as it is; of a subset the users are repeated under new ids until there are a million rows.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from shutil import copy

from starec_env import load_dataset, prepare

ROWS = 1_000_209


def main(folder: Path) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = (folder / "ratings.dat").read_text().splitlines(keepends=True)
    repeated = list(rows)
    while len(repeated) < ROWS:
        shift = 10_000 * (len(repeated) // len(rows))
        repeated += [f"{int(user) + shift}::{rest}" for user, _, rest in (row.partition("::") for row in rows)]
    with tempfile.TemporaryDirectory() as name:
        for file in ("movies.dat", "users.dat"):
            copy(folder / file, name)
        Path(name, "ratings.dat").write_text("".join(repeated[:ROWS]))
        for attempt in range(3):
            start = time.perf_counter()
            dataset = load_dataset("ml-1m", name)
            loaded = time.perf_counter()
            prepare(dataset)
            print(
                f"{attempt + 1}: {dataset}: load {loaded - start:.2f} s, prepare {time.perf_counter() - loaded:.2f} s"
            )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
