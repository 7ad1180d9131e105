"""What a rank earns."""

import pytest

from starec_env.replay.rewards import position_reward


@pytest.mark.parametrize(
    ("rank", "reward"),
    [(1, 1), (2, 0.5), (5, 0.5), (6, 0), (10, 0), (11, -0.5), (20, -0.5), (21, -1), (None, -1)],
)
def test_the_position_reward_is_the_papers(rank: int | None, reward: float) -> None:
    assert position_reward(rank) == reward
