"""The paper's preparation against a plain reference."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import make_dataset, shared_data

from starec_env import from_frame, load_dataset, prepare
from starec_env.errors import DataError, InvalidOption
from starec_env.types import Dataset

ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=60)


def triples(dataset: Dataset) -> list[tuple[object, object, int]]:
    users = np.repeat(dataset.user_ids, np.diff(dataset.indptr)).tolist()
    items = [dataset.items[i].id for i in dataset.item_indices]
    return list(zip(users, items, dataset.timestamps.tolist(), strict=True))


def reference(rows: list[tuple[int, int, int]], k: int) -> list[tuple[int, int, int]]:
    first: dict[tuple[int, int], tuple[int, int, int]] = {}
    for row in sorted(rows, key=lambda row: (row[0], row[2])):
        first.setdefault(row[:2], row)
    kept = list(first.values())
    while True:
        users, items = Counter(row[0] for row in kept), Counter(row[1] for row in kept)
        fewer = [row for row in kept if users[row[0]] >= k and items[row[1]] >= k]
        if len(fewer) == len(kept):
            return kept
        kept = fewer


@given(ROWS, st.integers(1, 4), st.integers(2, 5))
def test_prepare_equals_a_plain_reference(rows: list[tuple[int, int, int]], k: int, longest: int) -> None:
    dataset = from_frame(dict(zip(("user_id", "item_id", "timestamp"), zip(*rows, strict=True), strict=True)))
    wanted = reference(rows, k)
    if not wanted:
        with pytest.raises(DataError, match="lower min_interactions"):
            prepare(dataset, min_interactions=k)
        return
    prepared = prepare(dataset, min_interactions=k, max_length=longest)
    assert triples(prepared) == wanted
    assert {item.id for item in prepared.items} == {row[1] for row in wanted}
    assert prepared.window is not None
    lengths = np.diff(prepared.indptr)
    assert np.array_equal(prepared.indptr[1:] - prepared.starts, np.minimum(lengths, longest))
    assert prepared.longest <= longest


def test_preparing_twice_changes_nothing_but_the_notes() -> None:
    once = prepare(load_dataset("ml-latest-small"))
    assert prepare(once).hash == once.hash


def test_the_notes_say_what_was_dropped_and_cut() -> None:
    prepared = prepare(load_dataset("ml-latest-small"))
    assert "10-core: dropped 1 user, 6,821 items, 18,098 interactions" in prepared.notes
    assert any("446 users had more; 57,937 earlier interactions kept for exclusion only" in n for n in prepared.notes)


def test_demographics_stay_with_their_users() -> None:
    before = load_dataset("ml-1m", shared_data("ml-1m"))
    after = prepare(before, min_interactions=100)
    assert after.n_users < before.n_users
    for index in range(0, after.n_users, 100):
        assert after.user(index) == before.user(before.user_index(after.user(index).id))


def test_no_limit_keeps_whole_sequences() -> None:
    prepared = prepare(make_dataset(), min_interactions=1, max_length=None)
    assert prepared.longest == 14


@pytest.mark.parametrize("options", [{"min_interactions": 0}, {"max_length": 1}])
def test_numbers_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InvalidOption, match="wanted at least"):
        prepare(make_dataset(), **options)
