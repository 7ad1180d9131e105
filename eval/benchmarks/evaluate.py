"""How long the protocol and the baselines take: python eval/benchmarks/evaluate.py [--neural].

Budgets: candidates for 6,040 users x 3 under two seconds, ranking 1,000 users x 3 repetitions of a score matrix under
a second, the count-based rankers in seconds, BPR under 30 s, GRU4Rec and SASRec under 3 minutes each, on two cores.
The data are synthetic with ML-1M's shape (6,040 users, 3,706 items, a million ratings, Zipf popularity), so that it
runs anywhere; training takes 1,000 users x 40.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_env.data import prepare
from starec_env.metrics import METRICS, mean_and_se
from starec_env.replay.stream import Stream
from starec_env.types import Dataset, Item
from starec_eval.evaluate import score_ranks
from starec_eval.protocol import Protocol
from starec_eval.rankers import BASELINES
from starec_eval.rankers.scorer import check_scores, ranks_of

USERS, ITEMS, ROWS = 6040, 3706, 1_000_209
NEURAL = ("bpr", "gru4rec", "sasrec")


def synthetic() -> Dataset:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.55, 1.0, USERS), 20, 2000)
    lengths = np.maximum((lengths * ROWS / lengths.sum()).astype(int), 20)
    weights = 1.0 / np.arange(5, ITEMS + 5)
    rows = [rng.choice(ITEMS, n, replace=False, p=weights / weights.sum()) for n in lengths]
    return Dataset(
        name="synthetic",
        domain="movie",
        items=[Item(i, f"Film {i}") for i in range(ITEMS)],
        user_ids=np.arange(USERS),
        indptr=np.append(0, lengths.cumsum()),
        item_indices=np.concatenate(rows).astype(np.int32),
        ratings=rng.integers(1, 6, lengths.sum()).astype(np.float32),
        timestamps=np.arange(lengths.sum()),
    )


def timed(what: str, work: Callable[[], Any]) -> Any:
    begun, cpu = time.perf_counter(), time.process_time()
    result = work()
    print(f"{what:58s} {time.perf_counter() - begun:8.2f} s, {time.process_time() - cpu:8.2f} s of CPU", flush=True)
    return result


def score_matrix(protocol: Protocol, matrix: NDArray[np.float64]) -> None:
    batch = protocol.cases.batch()
    scores = check_scores(matrix[protocol.cases.users[:, None], batch.candidates], batch, "matrix")
    ranks = ranks_of(scores, protocol.cases.targets, batch, seed=0)
    for metric in METRICS.values():
        mean_and_se(metric(ranks), protocol.cases.users)


def main() -> None:
    dataset = synthetic()
    print(dataset)
    most = len(Stream(prepare(dataset)).users)
    everyone = timed(f"protocol: filter, sequences, {most:,} users x 3", lambda: Protocol(dataset, users=most))
    users = np.unique(everyone.cases.users)
    timed(f"  of which candidates of {most:,} users x 3", lambda: everyone._draw(users, 3))
    timed("  and their hash", lambda: everyone.cases.hash)
    protocol = timed("protocol: 1,000 test and 1,000 training users", lambda: Protocol(dataset))
    matrix = np.random.default_rng(1).random((USERS, ITEMS))
    timed("score matrix, 1,000 users x 3, all metrics and errors", lambda: score_matrix(protocol, matrix))
    for name, make in BASELINES.items():
        if name not in NEURAL or "--neural" in sys.argv:
            train = protocol.training("sample")
            scorer = timed(f"{name}: fit on 1,000 users x 40", lambda make=make, train=train: make().fit(train))
            timed(f"{name}: rank 1,000 users x 3", lambda scorer=scorer: score_ranks(scorer, protocol.cases))


if __name__ == "__main__":
    main()
