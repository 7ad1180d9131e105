"""The space of rankings, and what is no ranking."""

from typing import Any

import numpy as np
import pytest
from gymnasium.error import InvalidAction
from gymnasium.spaces.utils import flatdim
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from hypothesis import given, settings
from hypothesis import strategies as st

from starec_env.errors import InvalidRanking
from starec_env.replay.spaces import Rankings, check_ranking, ranks_of


def test_samples_are_full_permutations_that_the_seed_repeats() -> None:
    space, twin = Rankings(20, seed=3), Rankings(20, seed=3)
    samples = [space.sample() for _ in range(50)]
    assert all(sorted(sample.tolist()) == list(range(20)) and sample in space for sample in samples)
    assert [twin.sample().tolist() for _ in range(50)] == [sample.tolist() for sample in samples]
    assert len({tuple(sample) for sample in samples}) == 50


def test_a_masked_sample_ranks_only_what_the_mask_allows() -> None:
    mask = np.array([1, 0, 1, 0, 1], np.int8)
    assert sorted(Rankings(5, seed=0).sample(mask=mask).tolist()) == [0, 2, 4]
    rows = Rankings(5, seed=0, rows=2).sample(mask=mask)
    assert sorted(rows[0].tolist()) == [-1, -1, 0, 2, 4]
    assert rows in Rankings(5, rows=2)


def test_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="mask"):
        Rankings(5).sample(probability=np.full(5, 0.2))


@pytest.mark.parametrize("ranking", [[], [4], (1, 0), [0, 1, 2, 3, 4], np.array([3, 2]), [np.int64(1), 2]])
def test_partial_and_full_rankings_belong_to_the_space(ranking: Any) -> None:
    assert ranking in Rankings(5)
    assert check_ranking(ranking, 5) == list(ranking)


@pytest.mark.parametrize(
    ("action", "why"),
    [
        ([1, 1], "position 1 is in it more than once"),
        ([0, 5], "there is no position 5"),
        ([-1], "there is no position -1"),
        ([0, 1, 2, 3, 4, 0], "more than once"),
        ([0.0, 1.0], "0.0 in it is a float"),
        ([True], "True in it is a bool"),
        (["0"], "'0' in it is a str"),
        ([[0, 1]], "is a list"),
        (3, "it is a int"),
        (None, "it is a NoneType"),
        ("0 1 2", "it is a str"),
        ({0, 1}, "it is a set"),
        (np.array([0.0, 1.0]), "type float64"),
        (np.array([[0, 1]]), "shape (1, 2)"),
        (np.array([True, False]), "type bool"),
    ],
)
def test_an_action_that_is_no_ranking_is_refused_with_the_reason(action: Any, why: str) -> None:
    assert action not in Rankings(5)
    with pytest.raises(InvalidRanking) as caught:
        check_ranking(action, 5)
    assert why in str(caught.value)
    assert "wanted at most 5 distinct positions from 0 to 4" in str(caught.value)
    assert isinstance(caught.value, InvalidAction)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner) | st.dictionaries(st.integers(), inner, max_size=2),
)


@given(action=anything | st.lists(st.integers(-2, 6), max_size=8), n=st.integers(1, 5))
@settings(deadline=None)
def test_whatever_the_action_it_is_a_ranking_or_invalid(action: Any, n: int) -> None:
    try:
        order = check_ranking(action, n)
    except InvalidRanking:
        ranked = isinstance(action, (list, tuple)) and all(type(p) is int and 0 <= p < n for p in action)
        assert not ranked or len(set(action)) < len(action)
    else:
        assert len(set(order)) == len(order) <= n
        assert all(type(position) is int and 0 <= position < n for position in order)


@given(st.lists(st.lists(st.integers(-2, 5), min_size=4, max_size=4), min_size=1, max_size=4))
@settings(deadline=None)
def test_many_rankings_are_judged_as_each_would_be(rows: list[list[int]]) -> None:
    def ranking(row: list[int]) -> list[int]:
        while row and row[-1] == -1:
            row = row[:-1]
        return check_ranking(row, 4)

    try:
        ranks = ranks_of(np.array(rows), 4, len(rows))
    except InvalidRanking as error:
        broken = int(str(error).split(":")[0].removeprefix("environment "))
        for row in rows[:broken]:
            ranking(row)
        with pytest.raises(InvalidRanking):
            ranking(rows[broken])
    else:
        for row, ranked in zip(rows, ranks.tolist(), strict=True):
            order = ranking(row)
            assert ranked[:4] == [order.index(p) + 1 if p in order else 0 for p in range(4)]


def test_many_rankings_may_be_lists_of_any_length() -> None:
    ranks = ranks_of([[2, 0], (), np.array([1])], 3, 3)
    assert ranks[:, :3].tolist() == [[2, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_ignored_rows_may_hold_anything() -> None:
    ranks = ranks_of(np.array([[7, 7, -5], [2, 1, 0]]), 3, 2, ignore=np.array([True, False]))
    assert ranks[:, :3].tolist() == [[0, 0, 0], [3, 2, 1]]


@pytest.mark.parametrize("actions", [np.zeros((2, 4)), np.zeros((3, 4), int), np.zeros((2, 5), int), [[0]], 7, "ab"])
def test_many_rankings_of_the_wrong_shape_or_type_are_refused(actions: Any) -> None:
    assert actions not in Rankings(4, rows=2)
    with pytest.raises(InvalidRanking):
        ranks_of(actions, 4, 2)


def test_gymnasiums_vector_tools_take_the_space() -> None:
    space = Rankings(4, seed=1)
    batch = batch_space(space, 3)
    assert batch == Rankings(4, rows=3) != space == Rankings(4)
    sample = batch.sample()
    assert sample.shape == batch.shape == (3, 4)
    assert sample in batch
    padded = np.array([[1, 0, -1, -1], [2, 3, 0, 1], [-1, -1, -1, -1]])
    orders = list(iterate(batch, padded))
    assert [order.tolist() for order in orders] == [[1, 0], [2, 3, 0, 1], []]
    assert np.array_equal(concatenate(space, orders, create_empty_array(space, 3)), padded)


def test_the_space_survives_json_and_says_that_it_cannot_be_flattened() -> None:
    space = Rankings(4)
    samples = [space.sample(), np.array([2])]
    back = space.from_jsonable(space.to_jsonable(samples))
    assert all(np.array_equal(a, b) for a, b in zip(samples, back, strict=True))
    with pytest.raises(ValueError, match="cannot be flattened"):
        flatdim(space)
    assert repr(space) == "Rankings(4)"
