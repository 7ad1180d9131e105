"""Time a step of the environment beside CartPole's, both through Gymnasium, in the same run.

    python eval/benchmarks/env_step.py                            # ml-latest-small
    python eval/benchmarks/env_step.py --dataset ml-1m --data-dir DIR
    python eval/benchmarks/env_step.py --users 1000000            # generated, to see memory and the large-data path
    python eval/benchmarks/env_step.py --async 8                  # Gymnasium's sync and async vectors of 8, too

Steps, resets and autoresets are all counted, the making of actions is not. Times are of CPU, medians over short rounds
that the two environments take in turn, so that a busy machine slows both. For Gymnasium's vectors, which are a process
an environment in mode "async", they are of the clock.
"""

import argparse
import resource
from collections.abc import Callable
from statistics import median
from time import perf_counter, process_time
from typing import Any

import gymnasium
import numpy as np

import starec_env  # noqa: F401 - registers the environment
from starec_env.types import Dataset, Item

ENV = "starec/UserFeedback-v0"


def step_single(env: gymnasium.Env[Any, Any], actions: list[Any]) -> Callable[[], float]:
    """CPU seconds a step over all the actions, resets included."""

    def round_() -> float:
        start = process_time()
        env.reset()
        for action in actions:
            *_, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return (process_time() - start) / len(actions)

    env.reset(seed=0)
    return round_


def step_many(
    envs: gymnasium.vector.VectorEnv[Any, Any, Any], actions: list[Any], clock: Callable[[], float] = process_time
) -> Callable[[], float]:
    """Seconds a step of one environment over all the actions, autoresets included."""

    def round_() -> float:
        start = clock()
        for action in actions:
            envs.step(action)
        return (clock() - start) / len(actions) / envs.num_envs

    envs.reset(seed=0)
    return round_


def generated(n_users: int, n_items: int = 50_000, length: int = 40) -> Dataset:
    """A data set of random interactions of any size."""
    rng = np.random.default_rng(0)
    stride = rng.integers(1, n_items // length, n_users)
    rows = (rng.integers(0, n_items, n_users)[:, None] + stride[:, None] * np.arange(length)) % n_items
    return Dataset(
        name="generated",
        domain="item",
        items=[Item(i, f"Item {i}") for i in range(n_items)],
        user_ids=np.arange(n_users),
        indptr=np.arange(n_users + 1) * length,
        item_indices=rows.astype(np.int32).ravel(),
        ratings=rng.integers(1, 6, rows.size).astype(np.float32),
        timestamps=np.zeros(rows.size, np.int64),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-latest-small")
    parser.add_argument("--data-dir")
    parser.add_argument("--users", type=int, help="generate a data set of so many users instead")
    parser.add_argument("--envs", type=int, default=1024)
    parser.add_argument(
        "--async", type=int, dest="processes", help="compare Gymnasium's sync and async vectors of so many"
    )
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    name = generated(options.users) if options.users else options.dataset
    ours: dict[str, Any] = {"dataset": name, "data_dir": options.data_dir}
    rng = np.random.default_rng(0)
    single = gymnasium.make(ENV, **ours)
    dataset, stream = single.unwrapped.dataset, single.unwrapped.stream
    print(f"{dataset!r}, {np.mean(stream.end - stream.begin):.1f} turns an episode")
    permutations = [rng.permutation(20).tolist() for _ in range(2000)]
    pushes = rng.integers(0, 2, 2000).tolist()
    compare(
        "one", step_single(single, permutations), step_single(gymnasium.make("CartPole-v1"), pushes), options.rounds
    )
    mode = {"num_envs": options.envs, "vectorization_mode": "vector_entry_point"}
    many, poles = gymnasium.make_vec(ENV, **mode, **ours), gymnasium.make_vec("CartPole-v1", **mode)
    orders = [rng.permuted(np.tile(np.arange(20), (options.envs, 1)), axis=1) for _ in range(50)]
    sides = [rng.integers(0, 2, options.envs) for _ in range(50)]
    compare(f"{options.envs} at once", step_many(many, orders), step_many(poles, sides), options.rounds)
    if options.processes:
        compare_modes(options.processes, options.rounds, {ENV: ours, "CartPole-v1": {}})
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def compare(what: str, ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> None:
    """Print both times, and the ratio of their medians."""
    times = [(ours() * 1e6, theirs() * 1e6) for _ in range(rounds)]
    mine, cartpole = (median(column) for column in zip(*times, strict=True))
    print(f"{what:>14}: {mine:6.2f} us a step, CartPole {cartpole:5.2f} us, ratio {mine / cartpole:.2f}")


def compare_modes(n: int, rounds: int, kinds: dict[str, dict[str, Any]]) -> None:
    """Print the steps a second of Gymnasium's sync and async vectors of each kind of environment."""
    for kind, settings in kinds.items():
        modes = [gymnasium.make_vec(kind, n, vectorization_mode=mode, **settings) for mode in ("sync", "async")]
        actions = [modes[0].action_space.sample() for _ in range(100)]
        sync, processes = (step_many(envs, actions, perf_counter) for envs in modes)
        times = [(sync(), processes()) for _ in range(rounds)]
        each, apart = (1 / median(column) for column in zip(*times, strict=True))
        print(f"{n} of {kind}: sync {each:,.0f} steps/s, async {apart:,.0f} steps/s, ratio {apart / each:.2f}")
        for envs in modes:
            envs.close()


if __name__ == "__main__":
    main()
