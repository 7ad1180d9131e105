"""Counts of item pairs: exact, and in little memory."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from support import make_dataset

from starec_env import pairs
from starec_env.data import from_frame
from starec_env.pairs import PairCounts
from starec_env.types import Dataset

EVERYTHING = np.arange(60)


def uneven(seed: int = 0) -> Dataset:
    """Users of 0 to 25 rows, in which a few items stand more than once."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 26, 40)
    items = rng.zipf(1.5, lengths.sum()) % 60
    return replace(
        make_dataset(n_users=40, n_items=60, length=1),
        indptr=np.append(0, lengths.cumsum()),
        item_indices=items.astype(np.int32),
        ratings=np.ones(len(items), np.float32),
        timestamps=np.arange(len(items)),
        demographics=None,
    )


def brute_force(dataset: Dataset, window: int) -> np.ndarray:
    """(items, items) each two rows of a user at most `window` apart, by two loops."""
    counts = np.zeros((60, 60), int)
    for first, stop in zip(dataset.indptr[:-1], dataset.indptr[1:], strict=True):
        row = dataset.item_indices[first:stop].tolist()
        for place, a in enumerate(row):
            for b in row[place + 1 : place + 1 + window]:
                counts[min(a, b), max(a, b)] += 1
    return np.maximum(counts, counts.T)


@pytest.mark.parametrize("window", [0, 1, 3, 100, None])
@pytest.mark.parametrize("block", [1, 2**16])
def test_counts_are_those_of_a_double_loop(monkeypatch: pytest.MonkeyPatch, window: int | None, block: int) -> None:
    monkeypatch.setattr(pairs, "_BLOCK", block)
    dataset = uneven()
    expected = brute_force(dataset, 1000 if window is None else window)
    found = PairCounts.of(dataset, window)
    assert (found(EVERYTHING[:, None], EVERYTHING[None, :]) == expected).all()


def test_an_index_that_pads_is_near_nothing() -> None:
    found = PairCounts.of(uneven(), 5)
    assert not found(np.array([-1, 3, -1]), np.array([2, -1, -1])).any()


def test_what_is_near_an_item_is_its_row_and_its_column() -> None:
    dataset = uneven(1)
    expected, found = brute_force(dataset, 4), PairCounts.of(dataset, 4)
    for item in range(60):
        items, counts = found.near(item)
        assert items.tolist() == np.flatnonzero(expected[item]).tolist()
        assert counts.tolist() == expected[item][items].tolist()


def test_counts_beyond_sixteen_bits_are_kept() -> None:
    n = 70_000
    dataset = replace(
        make_dataset(n_users=1, n_items=2, length=1),
        indptr=np.array([0, n]),
        item_indices=np.tile(np.array([0, 1], np.int32), n // 2),
    )
    assert PairCounts.of(dataset, 1)(np.array([0]), np.array([1])).tolist() == [n - 1]


def test_nobodys_pairs_are_none() -> None:
    empty = replace(uneven(), indptr=np.zeros(41, np.int64), item_indices=np.empty(0, np.int32))
    found = PairCounts.of(empty, 5)
    assert not found(EVERYTHING[:, None], EVERYTHING).any() and not len(found.near(3)[0])


def test_counting_peaks_below_a_hundred_bytes_an_interaction_and_thrice_what_it_keeps() -> None:
    rng, n = np.random.default_rng(0), 300_000
    items = rng.zipf(1.2, 3 * n)
    users = rng.integers(0, n // 100, n)
    dataset = from_frame({"user_id": users, "item_id": items[items < 20_000][:n], "timestamp": np.arange(n)})
    tracemalloc.start()
    try:
        kept = PairCounts.of(dataset, 40)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(kept.highs) > 1_000_000
    assert peak < 3 * held and peak < 100 * dataset.n_interactions
