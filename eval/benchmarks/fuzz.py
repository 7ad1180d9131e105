"""Hostile inputs by the million: answers to parse and to run on, damaged data sets and records, actions to step.

    python eval/benchmarks/fuzz.py [--parsers 1000000] [--others 20000] [--runs 4000]

What must hold for each is in tests/fuzz_targets.py. An input that breaks it is printed before the script fails; one
that takes more than ten seconds counts as a hang. Shown are the inputs a second, the slowest, and the peak of memory.
"""

import argparse
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from fuzz_targets import (  # noqa: E402
    FILES,
    check_loader,
    check_parsers,
    check_record,
    check_run,
    check_step,
    random_text,
    whole_record,
)  # fmt: skip
from support import make_dataset  # noqa: E402

from starec_env.replay.env import UserFeedbackEnv  # noqa: E402

HANG_S = 10


def fuzz(name: str, n: int, check: Callable[[random.Random], object]) -> None:
    started, slowest = time.perf_counter(), 0.0
    for number in range(n):
        began = time.perf_counter()
        signal.alarm(HANG_S)
        try:
            check(random.Random(f"{name} {number}"))
        except BaseException:
            print(f"{name}: input {number} breaks it", flush=True)
            raise
        slowest = max(slowest, time.perf_counter() - began)
    signal.alarm(0)
    took, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name}: {n:,} inputs, {n / took:,.0f}/s, slowest {1000 * slowest:.0f} ms, peak {peak:.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parsers", type=int, default=1_000_000)
    parser.add_argument("--others", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=4_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            place = Path(folder, name)
            place.mkdir()
            fuzz(f"loader {name}", args.others, lambda rng, name=name, place=place: check_loader(name, place, rng))  # type: ignore[misc]
        place = Path(folder, "run")
        files = whole_record(place)
        fuzz("record", args.others, lambda rng: check_record(files, place, rng))
        fuzz("run", args.runs, lambda rng: check_run(Path(folder, "runs"), rng))
    env = UserFeedbackEnv(make_dataset())
    fuzz("step", args.others, lambda rng: check_step(env, rng))
    fuzz("parsers", args.parsers, lambda rng: check_parsers(random_text(rng)))


if __name__ == "__main__":
    main()
