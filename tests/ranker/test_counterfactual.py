import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.counterfactual import Demands, Logged, place_weights, valuate
from ranker.errors import DataError, RequestError

ANY = Demands(effective=0, largest=1, support=10)


def small(**changes):
    rows = {
        "slate_R": [0, 0, 1, 1],
        "place_R": [0, 1, 0, 1],
        "reward_R": [1, 0, 0, 1],
        "propensity_R": [0.5, 0.5, 0.5, 0.25],
        "chance_R": [1, 1, 0, 0.5],
        "predicted_R": [0.5, 0.5, 0.5, 0.5],
        "expected_R": [0.75, 0.25, 0.75, 0.25],
        **changes,
    }
    return Logged(**{name: None if v is None else np.array(v, None if "_R" not in name else np.int64 if name in
                  ("slate_R", "place_R") else np.float64) for name, v in rows.items()})  # fmt: skip


def simulated(seed, *, slates=600, items=5, places=3, sharpness=1.0, model=0.1):
    """Slates out of two Plackett-Luce-like policies that choose each place on its own; the truth is summed exactly."""
    rng = np.random.default_rng(seed)
    worth_PI = rng.uniform(0.05, 0.6, (places, items))
    log_PI, target_PI = (rng.dirichlet(np.full(items, spread), places) for spread in (6.0, 6.0 / sharpness))
    log_PI = 0.7 * log_PI + 0.3 / items
    place_R = np.tile(np.arange(places), slates)
    cut_R = rng.random(len(place_R))
    item_R = (cut_R[:, None] > np.cumsum(log_PI, 1)[place_R]).sum(1).clip(max=items - 1)
    guess_PI = worth_PI + model * rng.normal(size=worth_PI.shape)
    logged = Logged(
        slate_R=np.repeat(np.arange(slates), places),
        place_R=place_R,
        reward_R=(rng.random(len(place_R)) < worth_PI[place_R, item_R]).astype(float),
        propensity_R=log_PI[place_R, item_R],
        chance_R=target_PI[place_R, item_R],
        predicted_R=guess_PI[place_R, item_R],
        expected_R=(target_PI * guess_PI).sum(1)[place_R],
    )
    return logged, float((target_PI * worth_PI).sum())


def test_four_rows_are_weighed_by_hand():
    found = valuate(small(), demands=ANY)
    assert found.values["ips"].mean == pytest.approx((2 * 1 + 2 * 0 + 0 * 0 + 2 * 1) / 2)
    assert found.values["snips"].mean == pytest.approx(2 / 2 + 2 / 4)
    assert found.values["doubly-robust"].mean == pytest.approx((2 * 1.0 + 2 * 0.5 + 2 * -0.5 + 0 + 2 * 0.5) / 2)
    assert found.values["direct"].mean == 1
    assert found.on_policy.mean == 1
    assert found.overlap.effective == pytest.approx(36 / 12)


def test_the_logging_policy_itself_is_worth_what_it_earned():
    logged, _ = simulated(1)
    same = dataclasses.replace(logged, chance_R=logged.propensity_R)
    found = valuate(same)
    for name in ("ips", "snips"):
        assert dataclasses.replace(found.values[name], estimator="") == dataclasses.replace(
            found.on_policy, estimator=""
        )
    assert found.overlap.effective == len(logged.reward_R)


def test_clipping_cuts_weights_and_says_how_many():
    found = valuate(small(), clip=1.0, demands=ANY)
    assert found.values["ips"].mean == 1.0
    assert found.clipped == 0.75
    with pytest.raises(RequestError, match="clip"):
        valuate(small(), clip=0.0, demands=ANY)


def test_a_click_where_few_look_counts_for_more():
    worth_P = place_weights(np.array([1.0, 0.5]), np.array([1.0, 1.0]))
    assert worth_P.tolist() == [1, 2]
    found = valuate(small(), worth_P=worth_P, demands=ANY)
    assert found.values["ips"].mean == pytest.approx((2 * 1 + 2 * 2) / 2)
    assert place_weights(np.array([1.0, 0.5]), np.array([1.0, 0.5])).tolist() == [1, 1]
    with pytest.raises(RequestError, match="examination"):
        place_weights(np.array([1.0, 0.0]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"propensity_R": [0.5, np.nan, 0.5, np.nan]}, "2 of 4 rows have none"),
        ({"propensity_R": [0.5, 0.0, 0.5, 0.5]}, "a propensity is a chance"),
        ({name: [] for name in ("slate_R", "place_R", "reward_R", "propensity_R", "chance_R")}, "no rows"),
    ],
)
def test_a_log_without_usable_propensities_is_refused(changes, reason):
    with pytest.raises(DataError, match=reason):
        valuate(small(**changes), demands=ANY)


def test_policies_that_never_meet_are_refused_with_all_reasons():
    logged, _ = simulated(2)
    apart = dataclasses.replace(logged, chance_R=np.where(np.arange(len(logged.place_R)) < 2, 0.9, 0.0))
    with pytest.raises(DataError, match=r"support: .* average 0\.0.*effective sample size.*largest weight"):
        valuate(apart)


def test_propensities_of_another_log_are_refused():
    logged, _ = simulated(3)
    with pytest.raises(DataError, match="the propensities are not those of this log"):
        valuate(dataclasses.replace(logged, propensity_R=logged.propensity_R / 2))


@given(st.integers(0, 10**6))
@settings(max_examples=15)
def test_a_perfect_model_or_perfect_weights_are_enough_for_doubly_robust(seed):
    logged, truth = simulated(seed, slates=2000, model=0.0)
    wrong = dataclasses.replace(logged, chance_R=logged.chance_R * 0 + logged.propensity_R)
    value = valuate(wrong, demands=ANY).values["doubly-robust"]  # wrong weights, right model
    assert abs(value.mean - truth) < 5 * (value.high - value.low) / 3.92
    spoilt = dataclasses.replace(logged, expected_R=logged.expected_R * 0, predicted_R=logged.expected_R * 0)
    values = valuate(spoilt, demands=ANY).values
    assert values["doubly-robust"].mean == pytest.approx(values["ips"].mean)


def test_intervals_hold_the_truth_as_often_as_they_say():
    inside = dict.fromkeys(("ips", "snips", "doubly-robust"), 0)
    for seed in range(600):
        logged, truth = simulated(seed, slates=400)
        for name in inside:
            value = valuate(logged, demands=ANY).values[name]
            inside[name] += value.low <= truth <= value.high
    for count in inside.values():
        assert abs(count / 600 - 0.95) < 0.03
