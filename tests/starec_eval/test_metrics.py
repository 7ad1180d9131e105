"""Metrics of one positive, and their errors over users."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from starec_env.errors import InvalidOption, StarecWarning
from starec_env.scoring import CUTOFFS
from starec_env.scoring import ndcg as ndcg_of_one
from starec_eval import metrics


def test_ndcg_agrees_with_scikit_learn_on_a_thousand_random_cases():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        n, k = int(rng.integers(2, 40)), int(rng.integers(1, 45))
        scores, target = rng.random(n), int(rng.integers(n))
        rank = 1 + (scores > scores[target]).sum()
        truth = (np.arange(n) == target).astype(int)
        assert metrics.ndcg(rank, k) == pytest.approx(ndcg_score([truth], [scores], k=k))


def test_the_vectorised_ndcg_is_the_one_the_environment_uses():
    ranks = [1, 2, 5, 20, 21, None]
    for k in CUTOFFS:
        assert metrics.ndcg(ranks, k).tolist() == pytest.approx([ndcg_of_one(rank, k) for rank in ranks])


def test_a_missing_positive_scores_zero_in_every_metric():
    for metric in metrics.METRICS.values():
        assert metric([None, np.nan]).tolist() == [0.0, 0.0]


def test_hit_rate_and_reciprocal_rank_of_known_ranks():
    assert metrics.hit_rate([1, 5, 6, np.nan], 5).tolist() == [1, 1, 0, 0]
    assert metrics.reciprocal_rank([1, 4, np.nan]).tolist() == [1, 0.25, 0]


@pytest.mark.parametrize("ranks", [[0], [-3, 1]])
def test_a_rank_below_one_is_refused(ranks):
    with pytest.raises(InvalidOption, match="1-based"):
        metrics.ndcg(ranks, 5)


def test_a_cutoff_below_one_is_refused():
    with pytest.raises(InvalidOption, match="at least 1"):
        metrics.hit_rate([1], 0)


def test_the_error_counts_users_and_not_their_repetitions():
    users = np.repeat(np.arange(100), 3)
    once = np.random.default_rng(1).random(100)
    mean, se = metrics.mean_and_se(np.repeat(once, 3), users)
    assert mean == pytest.approx(once.mean())
    assert se == pytest.approx(once.std(ddof=1) / 10)


def test_users_with_unequal_numbers_of_cases_weigh_the_same():
    mean, _ = metrics.mean_and_se([1, 1, 1, 0], ["a", "a", "a", "b"])
    assert mean == 0.5


def test_one_user_has_no_standard_error():
    assert np.isnan(metrics.mean_and_se([1.0, 0.5], [7, 7])[1])


def test_the_bootstrap_interval_covers_a_real_gap_and_its_error_is_the_paired_one():
    rng = np.random.default_rng(2)
    ease, users = rng.random(400), np.arange(400)
    better = ease + 0.05 + rng.normal(0, 0.1, 400)
    found = metrics.paired_difference(better, ease, users)
    assert found.settled and found.low < 0.05 < found.high
    assert found.se == pytest.approx((better - ease).std(ddof=1) / 20)
    assert (found.high - found.low) / 3.92 == pytest.approx(found.se, rel=0.1)
    assert found == metrics.paired_difference(better, ease, users)


def test_a_claimed_gap_smaller_than_its_error_is_warned_of():
    rng = np.random.default_rng(3)
    values = rng.random(50)
    noise = metrics.paired_difference(values, values + rng.normal(0, 0.3, 50), np.arange(50))
    with pytest.warns(StarecWarning, match="ease over pop.*smaller than its error"):
        noise.check("ease over pop")
    metrics.paired_difference(values + 1, values, np.arange(50)).check("a settled gap")
