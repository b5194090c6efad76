import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.inequality import inequality
from ranker.metrics import UNFAIRNESS, resamples, unfairness


def test_three_people_counted_once_and_one_of_them_twice():
    found = inequality(np.array([0.9, 0.1, 0.5]), np.array([0.7, 0.2, 0.3]), np.array([[1.0, 1, 1], [0, 2, 1]]))
    assert found["std"].tolist() == pytest.approx([np.std([0.9, 0.1, 0.5]), np.std([0.1, 0.1, 0.5])])
    assert found["cvar10"].tolist() == pytest.approx([0.1, 0.1])
    assert found["spearman_support"].tolist() == pytest.approx([1, 1])


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), min_size=2, max_size=40), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_every_round_equals_the_definition_over_people_repeated(people, seed):
    accuracy_U, support_U = (np.array(column) / 8 for column in zip(*people, strict=True))
    counts_RU = resamples(len(people), 5, np.random.default_rng(seed))
    found = inequality(accuracy_U, support_U, counts_RU)
    for name, measure in UNFAIRNESS.items():
        for counts_U, value in zip(counts_RU.astype(int), found[name], strict=True):
            repeated = np.repeat(accuracy_U, counts_U), np.repeat(support_U, counts_U)
            assert value == pytest.approx(measure(*repeated), abs=1e-7, nan_ok=True), name


def test_people_without_a_support_rate_are_left_out_of_its_correlation_only():
    support_U = np.array([0.1, np.nan, 0.3, 0.2])
    found = inequality(np.array([0.1, 0.9, 0.3, 0.2]), support_U, np.ones((1, 4)))
    assert found["spearman_support"][0] == pytest.approx(1)
    assert found["cvar10"][0] == 0.1


def test_intervals_are_those_of_scipys_bootstrap_to_within_chance():
    draw = np.random.default_rng(3)
    accuracy_U, support_U = draw.beta(5, 2, 300), draw.random(300)
    rounds = inequality(accuracy_U, support_U, resamples(300, 1000, draw))
    for name, one in unfairness(accuracy_U, support_U, generator=draw, rounds=1000).items():
        low, high = np.quantile(rounds[name], [0.025, 0.975])
        assert (low, high) == pytest.approx((one.low, one.high), abs=0.15 * (one.high - one.low)), name
