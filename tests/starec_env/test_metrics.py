"""Metrics of one positive, and their errors over users."""

from math import log2

import numpy as np
import pytest
from scipy.stats import permutation_test
from sklearn.metrics import ndcg_score

from starec_env import metrics
from starec_env.errors import InvalidOption, StarecWarning


def test_ndcg_agrees_with_scikit_learn_on_a_thousand_random_cases():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        n, k = int(rng.integers(2, 40)), int(rng.integers(1, 45))
        scores, target = rng.random(n), int(rng.integers(n))
        rank = 1 + (scores > scores[target]).sum()
        truth = (np.arange(n) == target).astype(int)
        assert metrics.ndcg(rank, k) == pytest.approx(ndcg_score([truth], [scores], k=k))


def test_ndcg_of_one_relevant_item_is_its_discount():
    assert metrics.ndcg([1, 2, 3, 10], 10).tolist() == pytest.approx([1, 1 / log2(3), 0.5, 1 / log2(11)])
    assert metrics.ndcg(6, 5) == metrics.ndcg(None, 20) == 0


def test_ndcg_of_a_random_order_of_twenty_is_the_known_floor():
    floors = [metrics.ndcg(np.arange(1, 21), k).mean() for k in metrics.CUTOFFS]
    assert [round(100 * floor, 1) for floor in floors] == [5.0, 14.7, 22.7, 35.2]


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
    assert found.significant and found.low < 0.05 < found.high and found.p == 1 / 10_000
    assert found.se == pytest.approx((better - ease).std(ddof=1) / 20)
    assert (found.high - found.low) / 3.92 == pytest.approx(found.se, rel=0.1)
    assert found == metrics.paired_difference(better, ease, users)


def test_the_interval_of_several_trainings_holds_what_trainings_differ_by_too() -> None:
    rng, interval = np.random.default_rng(0), metrics.interval
    users = rng.normal(size=400)
    assert interval(np.stack([users] * 5)) == pytest.approx(interval(users))  # trainings that agree add nothing
    covered = of_users_alone = 0
    for draw in range(100):
        values = rng.normal(size=(8, 1)) + rng.normal(size=200) + rng.normal(size=(8, 200))
        (low, high), (lower, higher) = interval(values, 500, draw), interval(values.mean(0), 500, draw)
        covered, of_users_alone = covered + (low <= 0 <= high), of_users_alone + (lower <= 0 <= higher)
    assert covered > 75 and of_users_alone < 40  # 83 expected of 8 trainings, by their 7/8 of a variance of 7 degrees


def test_trainings_may_have_users_of_their_own() -> None:
    rng = np.random.default_rng(1)
    values = np.array([[0.0, 0.5, np.nan, np.nan], [np.nan, np.nan, 1.0, 1.0]])
    drawn = metrics.resampled_means(values, 4000)
    assert {0.0, 1.0} < set(drawn[~np.isnan(drawn)]) and np.isnan(drawn).any()  # some draw only users it hasn't
    assert np.nanmean(drawn) == pytest.approx(0.625, abs=0.02)
    assert np.isnan(metrics.difference(np.full((2, 3), np.nan)).gap) and metrics.difference(values).users == 4
    covered = 0
    for _ in range(100):
        apart = np.full((6, 300), np.nan)
        for row, seed in enumerate(rng.normal(0, 0.05, 6)):
            apart[row, 50 * row : 50 * (row + 1)] = rng.normal(seed, 1, 50)
        low, high = metrics.interval(apart, 500)
        covered += low <= 0 <= high
    assert covered >= 93  # users' variance is in both levels


def test_the_p_value_of_several_trainings_is_rarely_small_without_a_gap_and_always_with_one() -> None:
    rng = np.random.default_rng(4)
    gaps = [rng.normal(size=100) + rng.normal(size=(4, 100)) for _ in range(100)]
    assert sum(metrics.difference(gap, samples=500).p < 0.05 for gap in gaps) <= 10
    assert max(metrics.difference(gap + 1, samples=500).p for gap in gaps[:20]) < 0.05
    assert metrics.difference(np.stack([gaps[0][0]] * 3)).se == pytest.approx(gaps[0][0].std(ddof=1) / 10, rel=0.05)


def test_a_claimed_gap_whose_interval_holds_zero_is_warned_of():
    rng = np.random.default_rng(3)
    values = rng.random(50)
    noise = metrics.paired_difference(values, values + rng.normal(0, 0.3, 50), np.arange(50))
    with pytest.warns(StarecWarning, match="ease over pop: the gap of .* is not significant: .* holds zero"):
        noise.check("ease over pop")
    metrics.paired_difference(values + 1, values, np.arange(50)).check("a significant gap")


def test_a_disliked_target_has_no_value_and_a_user_of_no_other_drops_out():
    ranks, users = [1, 1, 2, 1], [7, 7, 8, 9]
    values = metrics.scored(metrics.ndcg(ranks, 10), [True, False, True, False])
    assert np.isnan(values).tolist() == [False, True, False, True]
    found = metrics.estimate("", values, users)
    assert (found.mean, found.n) == ((1 + 1 / log2(3)) / 2, 2)
    assert np.isnan(metrics.per_user(values, users)).tolist() == [False, False, True]
    assert metrics.scored(metrics.ndcg(ranks, 10), [False] * 4, "taken").tolist() == metrics.ndcg(ranks, 10).tolist()
    only = metrics.paired_difference(values, np.zeros(4), users)
    assert (only.users, only.gap) == (2, found.mean)


def test_metrics_of_nobody_are_nan():
    assert np.isnan(metrics.mean_and_se([], [])).all()
    nobody = metrics.paired_difference([], [], [])
    assert nobody.users == 0 and np.isnan([nobody.gap, nobody.se, nobody.low, nobody.high, nobody.p]).all()
    assert not nobody.significant
    assert metrics.paired_difference([np.nan], [1.0], [3]).users == 0


def test_the_p_value_of_few_users_is_the_share_of_all_sign_patterns():
    assert metrics.sign_flip_p(np.ones(5)) == 2 / 32
    assert metrics.sign_flip_p(np.array([1.0, 2.0, -0.5])) == 4 / 8
    assert metrics.sign_flip_p(np.zeros(3)) == 1
    gaps = np.random.default_rng(0).normal(0.4, 1, 11)
    exact = permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert metrics.sign_flip_p(gaps) == pytest.approx(exact)


def test_the_p_value_of_many_users_is_that_of_random_sign_patterns_and_never_zero():
    rng = np.random.default_rng(1)
    for mean in (0.0, 0.2, 0.4):
        gaps = rng.normal(mean, 1, 60)
        expected = permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=9999, rng=2).pvalue
        assert metrics.sign_flip_p(gaps) == pytest.approx(expected, abs=0.015)
    assert metrics.sign_flip_p(np.ones(500), samples=999) == 1 / 1000


def test_of_equal_methods_one_in_twenty_is_called_different_at_five_percent():
    rng = np.random.default_rng(4)
    found = [metrics.sign_flip_p(rng.normal(0, 1, 30), samples=199) <= 0.05 for _ in range(1000)]
    assert np.mean(found) == pytest.approx(0.05, abs=0.02)


def test_holm_multiplies_the_smallest_by_all_and_never_falls():
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert metrics.holm([]).tolist() == []


def test_holm_leaves_out_what_was_not_compared():
    found = metrics.holm([0.02, np.nan, 0.03])
    assert found[[0, 2]].tolist() == pytest.approx([0.04, 0.04]) and np.isnan(found[1])


def test_values_of_unlike_lengths_are_refused_and_never_repeated() -> None:
    with pytest.raises(InvalidOption, match="on the same cases"):
        metrics.paired_difference([1.0, 0.0], [1.0], [1, 2])
    with pytest.raises(InvalidOption, match="one for each"):
        metrics.per_user([1.0, 0.0], [1, 2, 3])
