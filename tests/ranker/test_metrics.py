"""Metrics: exact values, then agreement with scikit-learn on anything."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import spearmanr

from ranker import metrics

LABELS = hnp.arrays(np.int64, st.integers(2, 40), elements=st.integers(0, 1))
SMALL = st.integers(0, 4).map(lambda number: number / 4)


def test_ndcg_of_a_known_slate() -> None:
    gains = [0, 2, 1]
    expected = (1 / np.log2(2) * 1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3))
    assert metrics.ndcg(gains, [0.1, 0.5, 0.9]) == pytest.approx(expected)


def test_ndcg_counts_only_the_first_k_places() -> None:
    assert metrics.ndcg([0, 0, 1], [3, 2, 1], k=2) == 0


def test_ndcg_without_a_gain_is_unknown() -> None:
    assert np.isnan(metrics.ndcg([0, 0], [1, 2]))
    assert np.isnan(metrics.ndcg([], []))


@given(st.lists(st.tuples(SMALL, SMALL), min_size=2, max_size=30), st.integers(1, 12))
def test_ndcg_agrees_with_scikit_learn_on_ties_too(pairs: list[tuple[float, float]], k: int) -> None:
    gains, scores = np.array(pairs).T
    found = metrics.ndcg(gains, scores, k)
    if gains.max() > 0:
        assert found == pytest.approx(sklearn.metrics.ndcg_score([gains], [scores], k=k))


@given(LABELS, st.data())
def test_auc_agrees_with_scikit_learn(labels: np.ndarray, data: st.DataObject) -> None:
    scores = data.draw(hnp.arrays(np.float64, len(labels), elements=SMALL))
    if 0 < labels.sum() < len(labels):
        assert metrics.auc(labels, scores) == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores))
    else:
        assert np.isnan(metrics.auc(labels, scores))


def test_pooled_auc_is_close_to_the_exact_one_and_adds_up() -> None:
    generator = np.random.default_rng(1)
    chance = generator.beta(1, 8, 5000)
    labels = generator.random(5000) < chance
    one, left, right = metrics.PooledAuc(), metrics.PooledAuc(), metrics.PooledAuc()
    one.add(labels, chance)
    left.add(labels[:100], chance[:100])
    right.add(labels[100:], chance[100:])
    assert one.value == pytest.approx(metrics.auc(labels, chance), abs=1e-3)
    assert (left + right).value == one.value


def test_pooled_auc_of_nothing_is_unknown() -> None:
    assert np.isnan(metrics.PooledAuc().value)


@given(LABELS, st.data())
def test_log_loss_agrees_with_scikit_learn(labels: np.ndarray, data: st.DataObject) -> None:
    chance = data.draw(hnp.arrays(np.float64, len(labels), elements=st.floats(0.01, 0.99)))
    assert metrics.log_loss(labels, chance) == pytest.approx(sklearn.metrics.log_loss(labels, chance, labels=[0, 1]))


def test_log_loss_of_a_sure_mistake_is_large_but_finite() -> None:
    assert 10 < metrics.log_loss([1], [0.0]) < 20


def test_calibration_error_of_true_chances_is_small_and_of_shifted_ones_is_the_shift() -> None:
    generator = np.random.default_rng(2)
    chance = generator.uniform(0.1, 0.6, 20_000)
    labels = generator.random(20_000) < chance
    assert metrics.calibration_error(labels, chance) < 0.02
    assert metrics.calibration_error(labels, chance + 0.3) == pytest.approx(0.3, abs=0.02)


@given(LABELS, st.data())
def test_calibration_error_lies_between_zero_and_one_and_above_the_mean_gap(
    labels: np.ndarray, data: st.DataObject
) -> None:
    chance = data.draw(hnp.arrays(np.float64, len(labels), elements=SMALL))
    error = metrics.calibration_error(labels, chance)
    assert abs(labels.mean() - chance.mean()) - 1e-9 <= error <= 1


@given(hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 100)))
def test_gini_stays_in_range_whatever_the_order(exposure: np.ndarray) -> None:
    found = metrics.gini(exposure)
    assert -1e-9 <= found < 1
    assert found == pytest.approx(metrics.gini(exposure[::-1]))


@given(st.integers(1, 20))
def test_entropy_of_equal_shares_is_the_log_of_their_number(count: int) -> None:
    assert metrics.entropy(np.full(count, 3.0)) == pytest.approx(np.log(count))


def test_empty_things_have_no_diversity() -> None:
    assert metrics.entropy([]) == 0
    assert metrics.gini([]) == 0
    assert metrics.coverage([], 0) == 0
    assert metrics.jaccard([], []) == 1


def test_interval_of_the_mean_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        found = metrics.mean_interval(generator.normal(size=60), generator=generator, rounds=300)
        hits += found.low <= 0 <= found.high
    assert 180 <= hits <= 200


def test_interval_of_nothing_is_unknown() -> None:
    assert metrics.mean_interval([np.nan], generator=np.random.default_rng(0)).n == 0


def test_interval_of_the_auc_is_wider_when_rows_come_from_few_users() -> None:
    generator = np.random.default_rng(4)
    labels = np.tile([0, 1], 200)
    scores = labels * 0.2 + generator.random(400)
    many = metrics.auc_interval(labels, scores, np.arange(400) // 2, generator=np.random.default_rng(0))
    few = metrics.auc_interval(labels, scores, np.arange(400) // 100, generator=np.random.default_rng(0))
    assert many.mean == few.mean == pytest.approx(metrics.auc(labels, scores))
    assert many.low < many.mean < many.high
    assert (many.n, few.n) == (200, 4)


def test_interval_of_the_auc_of_one_class_is_unknown() -> None:
    assert np.isnan(metrics.auc_interval([1, 1], [0, 1], [0, 1], generator=np.random.default_rng(0)).mean)
    assert np.isnan(metrics.auc_interval([], [], [], generator=np.random.default_rng(0)).mean)


def test_jain_is_1_where_all_are_served_alike_and_one_over_all_where_one_has_everything() -> None:
    assert metrics.jain([0.7, 0.7, 0.7]) == pytest.approx(1)
    assert metrics.jain([0, 0, 0, 2]) == pytest.approx(0.25)
    assert np.isnan(metrics.jain([0, 0]))


def test_the_worst_tenth_are_the_users_served_worst() -> None:
    assert metrics.worst_mean(np.arange(20)) == pytest.approx(0.5)
    assert metrics.worst_mean([3, 1, 2]) == 1
    assert np.isnan(metrics.worst_mean([]))


@given(st.lists(st.tuples(SMALL, SMALL), min_size=2, max_size=30))
def test_rank_correlation_agrees_with_scipy_on_ties_too(pairs: list[tuple[float, float]]) -> None:
    one, other = np.array(pairs).T
    if np.ptp(one) and np.ptp(other):
        assert metrics.rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    else:
        assert np.isnan(metrics.rank_correlation(one, other))


@given(hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0.125, 1)), st.floats(0.5, 4))
def test_unfairness_is_relative_where_it_says_so_and_bounded(accuracy: np.ndarray, scale: float) -> None:
    for measure in (metrics.jain, metrics.gini):
        assert measure(scale * accuracy) == pytest.approx(measure(accuracy), abs=1e-9)
    assert 1 / len(accuracy) - 1e-9 <= metrics.jain(accuracy) <= 1 + 1e-9
    assert accuracy.min() - 1e-9 <= metrics.worst_mean(accuracy) <= accuracy.mean() + 1e-9


def test_users_served_alike_are_served_fairly() -> None:
    found = metrics.unfairness([0.75] * 10, np.arange(10), generator=np.random.default_rng(0), rounds=20)
    assert (found["std"].high, found["gini"].high) == pytest.approx((0, 0))
    assert (found["jain"].low, found["cvar10"].low) == pytest.approx((1, 0.75))
    assert np.isnan(found["spearman_support"].mean)


def test_the_interval_of_unfairness_covers_the_truth_about_as_often_as_it_says() -> None:
    generator, hits = np.random.default_rng(5), 0
    for _ in range(60):
        accuracy = generator.normal(0.75, 0.1, 200)
        found = metrics.unfairness(accuracy, generator.random(200), generator=generator, rounds=100)
        hits += found["spearman_support"].low <= 0 <= found["spearman_support"].high
    assert hits >= 51


def test_users_without_a_number_are_left_out_and_one_user_says_nothing() -> None:
    found = metrics.unfairness([0.5, np.nan, 0.7], [0.1, 0.2, np.nan], generator=np.random.default_rng(0), rounds=5)
    assert {interval.n for interval in found.values()} == {1}
    assert np.isnan([interval.mean for interval in found.values()]).all()
