"""What a rank is worth."""

from math import log2

import pytest

from starec_env.scoring import CUTOFFS, ndcg, position_reward


@pytest.mark.parametrize(
    ("rank", "reward"),
    [(1, 1), (2, 0.5), (5, 0.5), (6, 0), (10, 0), (11, -0.5), (20, -0.5), (21, -1), (None, -1)],
)
def test_the_position_reward_is_the_papers(rank: int | None, reward: float) -> None:
    assert position_reward(rank) == reward


def test_ndcg_of_one_relevant_item_is_its_discount() -> None:
    assert [ndcg(rank, 10) for rank in (1, 2, 3, 10)] == [1, 1 / log2(3), 0.5, 1 / log2(11)]


def test_ndcg_beyond_the_cutoff_and_of_a_missing_positive_is_zero() -> None:
    assert ndcg(6, 5) == ndcg(None, 20) == 0


def test_ndcg_of_a_random_order_of_twenty_is_the_known_floor() -> None:
    floors = [sum(ndcg(rank, k) for rank in range(1, 21)) / 20 for k in CUTOFFS]
    assert [round(100 * floor, 1) for floor in floors] == [5.0, 14.7, 22.7, 35.2]


def test_a_cutoff_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ndcg(1, 0)
