"""Time a recommender's environment: one user beside CartPole and RecSim's environments, and thousands of users at once.

    python eval/benchmarks/recommend.py                                       # ml-latest-small
    python eval/benchmarks/recommend.py --dataset ml-1m --data-dir DIR
    python eval/benchmarks/recommend.py --recsim .venv-recsim                 # makes that environment if it isn't there

Slates are drawn at random, of 10 items; RecSim chooses 10 among its 20 documents. Steps and resets are counted, the
making of actions is not. Times are of CPU, medians over short rounds in which all take turns, so that a busy machine
slows all alike; the last two lines are of the clock, one process a core. SARDINE isn't on PyPI, so it isn't here.
"""

import argparse
import os
import subprocess
import venv
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import gymnasium
import numpy as np
from env_step import step_many, step_single

import starec_env  # noqa: F401 - registers the environment

ENV, K, DOCUMENTS = "starec/Recommend-v0", 10, 20
RECSIM = ("long_term_satisfaction", "interest_evolution", "interest_exploration")
PACKAGES = (
    "recsim-no-tf==0.2.3",
    "gym==0.26.2",
    "gym-notices==0.1.0",
    "cloudpickle==3.1.3",
    "absl-py==2.5.1",
    "gin-config==0.5.0",
    "numpy==1.26.4",
    "scipy==1.17.1",
    "six==1.17.0",
)
"""RecSim without TensorFlow, whose own list of requirements no longer installs."""
_THEIRS = f"""
import sys
from time import process_time
import numpy as np
from recsim.environments import {", ".join(RECSIM)}

made = {{}}
for module in ({", ".join(RECSIM)}):
    options = dict(slate_size={K}, num_candidates={DOCUMENTS}, resample_documents=True, seed=0)
    made[module.__name__.split(".")[-1]] = module.create_environment(options)
rng = np.random.default_rng(0)
slates = [rng.choice({DOCUMENTS}, {K}, replace=False) for _ in range(300)]
print("ready", flush=True)
for line in sys.stdin:
    env, start = made[line.strip()], process_time()
    env.reset()
    for slate in slates:
        if env.step(slate)[2]:
            env.reset()
    print((process_time() - start) / len(slates), flush=True)
"""


def recsim(folder: Path) -> Callable[[str], Callable[[], float]]:
    """CPU seconds a step of RecSim's environments, each round asked of a process in an environment of its own."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES], check=True)
    process = subprocess.Popen(
        [python, "-c", _THEIRS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    )
    assert process.stdin and process.stdout
    if "ready" not in (said := process.stdout.readline()):
        raise SystemExit(f"RecSim doesn't start in {folder}: {said!r}; delete the folder to install it anew")

    def asked(name: str) -> float:
        assert process.stdin and process.stdout
        print(name, file=process.stdin, flush=True)
        return float(process.stdout.readline())

    return lambda name: lambda: asked(name)


def responses(responder: Any, n: int) -> Callable[[], float]:
    """CPU seconds an answer, without the environment: what a loop over rounds of recommending spends."""
    rng, visits = np.random.default_rng(0), responder.open(n, 0)
    rows, users = np.arange(n), rng.integers(responder.dataset.n_users, size=n)
    slates = [rng.integers(responder.dataset.n_items, size=(n, K)) for _ in range(8)]
    came = np.zeros(n, np.int64)
    visits.begin(rows, users, came)

    def round_() -> float:
        start = process_time()
        for slate in slates:
            left = np.flatnonzero(visits.respond(rows, slate).left)
            came[left] += 1
            visits.begin(left, users[left], came[left], anew=True)
        return (process_time() - start) / len(slates) / n

    return round_


def slates_for(n: int, n_items: int, many: int) -> list[Any]:
    """Random slates for n environments at once."""
    rng = np.random.default_rng(0)
    return [rng.permuted(np.tile(np.arange(n_items), (n, 1)), axis=1)[:, :K] for _ in range(many)]


def alone(options: dict[str, Any], rounds: int, folder: Path | None) -> Any:
    """Print CPU times a step of one environment of each kind; returns ours."""
    env, rng = gymnasium.make(ENV, **options), np.random.default_rng(0)
    kinds = {
        ENV: step_single(env, [slates[0] for slates in slates_for(1, env.unwrapped.dataset.n_items, 500)]),
        "CartPole-v1": step_single(gymnasium.make("CartPole-v1"), rng.integers(0, 2, 2000).tolist()),
    }
    if folder:
        theirs = recsim(folder)
        kinds |= {f"RecSim's {name}": theirs(name) for name in RECSIM}
    times = [[step() * 1e6 for step in kinds.values()] for _ in range(rounds)]
    middle = dict(zip(kinds, map(median, zip(*times, strict=True)), strict=True))
    for name, micros in middle.items():
        print(f"{name:>34}: {micros:6.1f} us a step, {micros / middle['CartPole-v1']:5.1f} times CartPole's")
    return env


def vector(env: Any, n: int) -> Callable[[], float]:
    """CPU seconds a user-step of the vector environment of n users, over eight steps."""
    inner = env.unwrapped
    options = {"dataset": inner.dataset, "responder": inner.responder, "slate_size": K}
    many = gymnasium.make_vec(ENV, n, vectorization_mode="vector_entry_point", **options)
    return step_many(many, slates_for(n, inner.dataset.n_items, 8))


def together(env: Any, n: int, rounds: int) -> None:
    """Print millions of user-steps a CPU second at n users."""
    stepped, answered = vector(env, n), responses(env.unwrapped.responder, n)
    times = [(stepped() * 1e6, answered() * 1e6) for _ in range(rounds)]
    mine, bare = (median(column) for column in zip(*times, strict=True))
    print(f"{n:>6} users: {1 / mine:.2f} M user-steps a CPU second, answers alone {1 / bare:.2f} M")


def by_the_clock(what: str, round_: Callable[[], float], n: int, rounds: int) -> None:
    """Print millions a second of one process a core, of what n users do eight times a round."""
    cores, start = len(os.sched_getaffinity(0)), perf_counter()
    context = get_context("fork")
    workers = [context.Process(target=lambda: [round_() for _ in range(rounds)]) for _ in range(cores)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rate = cores * rounds * 8 * n / (perf_counter() - start) / 1e6
    busy = f"{os.getloadavg()[0]:.0f}"
    print(f"{cores} processes of {n} users: {rate:.2f} M {what} a second by the clock, at a load of {busy}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-latest-small")
    parser.add_argument("--data-dir")
    parser.add_argument("--recsim", type=Path, help="folder of RecSim's own environment of Python")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    env = alone({"dataset": options.dataset, "data_dir": options.data_dir}, options.rounds, options.recsim)
    for n in (256, 1024, 4096):
        together(env, n, options.rounds)
    by_the_clock("answers", responses(env.unwrapped.responder, 4096), 4096, options.rounds)
    by_the_clock("user-steps", vector(env, 4096), 4096, options.rounds)


if __name__ == "__main__":
    main()
