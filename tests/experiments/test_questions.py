import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import questions, report
from experiments.questions import ARMS


@pytest.fixture(scope="module")
def orders() -> questions.Hits:
    known, base = questions.total_orders(0, users=25)
    return questions.interviewed(known, base, np.arange(25), 0)


def test_every_arm_judges_every_person_and_pooled_knows_nothing_of_tastes_that_share_nothing(
    orders: questions.Hits,
) -> None:
    assert set(orders) == set(ARMS)
    assert all(len(values) == 25 for values in orders.values())
    assert set(orders["pooled"]) == {0.5}


def test_more_questions_tell_more_and_chosen_ones_tell_more_than_random_ones(orders: questions.Hits) -> None:
    mean = {arm: np.mean(values) for arm, values in orders.items()}
    assert mean["random-5"] < mean["random-10"] < mean["random-20"]
    assert mean["adaptive-5"] < mean["adaptive-10"] < mean["adaptive-20"]
    assert mean["adaptive-10"] > mean["random-10"] + 0.02


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_no_pair_that_is_held_out_or_without_preference_is_asked_and_none_twice(seed: int) -> None:
    known, base = questions.total_orders(seed, users=1)
    values, rng = np.round(known.values[0] / 4), np.random.default_rng(seed)
    open_PP = values[:, None] != values[None, :]
    open_PP[3:, 3:] = False
    before = open_PP.copy()
    for adaptive in (True, False):
        found = questions._interview(base, values, open_PP, rng, adaptive=adaptive)
        assert [step for step, _ in found] == list(questions.STEPS)
    assert (open_PP == before).all()


def test_a_person_who_runs_out_of_pairs_keeps_what_was_known() -> None:
    known, base = questions.total_orders(1, users=1)
    open_PP = np.zeros((20, 20), bool)
    open_PP[0, 1] = open_PP[1, 0] = True
    rng = np.random.default_rng(0)
    adaptive, random = (
        questions._interview(base, known.values[0], open_PP, rng, adaptive=adaptive) for adaptive in (True, False)
    )
    assert adaptive[0][1].mean_K == pytest.approx(adaptive[2][1].mean_K)
    assert adaptive[2][1].mean_K == pytest.approx(random[2][1].mean_K)


def test_the_result_names_every_arm_with_intervals_over_users_and_seeds(orders: questions.Hits) -> None:
    known, _ = questions.total_orders(0, users=25)
    found = questions.result(known, [(orders, orders), (orders, orders)], (0, 1))
    for arm in ARMS:
        row = found.row(arm, "accuracy")
        assert row.low <= row.mean <= row.high
        assert row.n == 50
    gap = found.row("adaptive-10", "gain_total_orders over random-10")
    assert gap.mean == pytest.approx(np.mean(orders["adaptive-10"]) - np.mean(orders["random-10"]))
    assert report.to_json(found)


def test_a_prior_is_chosen_from_the_scales_on_people_who_are_not_tested() -> None:
    known, _ = questions.total_orders(2, users=40)
    base = questions.fitted(known, np.arange(40), 0, checked=4)
    assert base.phi_IK.shape == (20, questions.DIMENSIONS)
    doubled = questions.scaled(base, 2.0)
    assert doubled.prior.precision == pytest.approx(2 * base.prior.precision)
    assert doubled.phi_IK is base.phi_IK
