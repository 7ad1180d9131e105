"""Early warnings: each of the paper's failure signs, and no alarm without cause."""

from typing import Any

import pytest

from starec_training.callbacks import symptoms


def log(**series: tuple[float, float]) -> list[dict[str, Any]]:
    """Twenty logged steps that go evenly from one value to another."""
    return [{name: a + (b - a) * n / 19 for name, (a, b) in series.items()} for n in range(20)]


def test_a_healthy_log_raises_no_alarm() -> None:
    healthy = log(reward=(-0.2, 0.4), kl=(0, 0.01), **{"rank/valid": (0.9, 0.95), "rank/ndcg@10": (0.5, 0.6)})
    assert symptoms([*healthy, {"eval_loss": 2.0}, {"eval_loss": 1.8}, {"eval_loss": 1.7}]) == {}
    assert symptoms([]) == {}
    assert symptoms([{"reward": 1.0, "rewards/memory/mean": None}]) == {}


@pytest.mark.parametrize(
    ("seen", "symptom"),
    [
        ([{"eval_loss": 1.0}, {"loss": 0.1}, {"eval_loss": 1.2}, {"eval_loss": 1.3}], "SFT overfit"),
        (log(reward=(0.0, 0.6), **{"rank/valid": (1.0, 0.5)}), "reward hacking"),
        (log(reward=(0.0, 0.6), **{"rank/ndcg@10": (0.6, 0.5)}), "reward hacking"),
        (log(**{"memory/usable": (1.0, 0.6)}), "memory drift"),
        (log(**{"memory/characters": (200.0, 900.0)}), "memory drift"),
        (log(frac_reward_zero_std=(0.5, 1.0)), "zero-variance groups"),
        (log(**{"completions/clipped_ratio": (0.0, 0.8)}), "clipped answers"),
    ],
)
def test_each_failure_sign_is_told(seen: list[dict[str, Any]], symptom: str) -> None:
    assert list(symptoms(seen)) == [symptom]


def test_groups_of_one_reward_alarm_only_where_they_are_lost() -> None:
    assert symptoms(log(frac_reward_zero_std=(0.5, 1.0)), groups=False) == {}
