"""Ranks from scores, and the order of equal scores."""

import numpy as np

from starec_env.ranks import ranks_of, tie_keys


def test_a_rank_counts_higher_scores_and_equal_ones_of_a_lower_key() -> None:
    scores = np.array([[3.0, 5.0, 5.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    ties = np.array([[0, 3, 1, 2], [3, 2, 1, 0]])
    found = [ranks_of(scores, np.full(2, place), ties).tolist() for place in range(4)]
    assert found == [[3, 4], [2, 3], [1, 2], [4, 1]]


def test_scores_of_any_shape_share_an_order_of_ties() -> None:
    scores = np.zeros((2, 3, 4))
    assert (ranks_of(scores, np.full((2, 3), 2), np.arange(4)) == 3).all()


def test_infinite_scores_are_ranked_and_nan_keys_never_arise() -> None:
    scores = np.array([[-np.inf, np.inf, 0.0]])
    assert [int(ranks_of(scores, np.array([place]), np.arange(3))[0]) for place in range(3)] == [3, 1, 2]


def test_tie_keys_depend_on_user_history_and_seed_alone() -> None:
    keys = tie_keys(["a", "b", "a"], np.array([3, 3, 3]), 20, 0)
    assert (keys[0] == keys[2]).all() and (keys[0] != keys[1]).all()
    assert (tie_keys(["a"], np.array([4]), 20, 0)[0] != keys[0]).all()
    assert (tie_keys(["a"], np.array([3]), 20, 1)[0] != keys[0]).all()
    assert (tie_keys(["a"], np.array([3]), 5, 0)[0] == keys[0, :5]).all()
