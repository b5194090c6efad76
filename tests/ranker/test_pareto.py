"""Pareto-fair training: exact small cases, then properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional

from ranker import pareto
from ranker.errors import RequestError
from ranker.pareto import Standing

FINITE = st.floats(-5, 5, width=32)
VECTORS = st.tuples(*[hnp.arrays(np.float32, 3, elements=FINITE)] * 2)
SHARES = st.floats(0, 1)


def test_support_counts_the_other_raters_of_the_pair_whichever_way_round_it_was_asked() -> None:
    pairs = np.array([[4, 7], [7, 4], [4, 7], [4, 7], [1, 2]])
    users = np.array([0, 1, 2, 3, 0])
    # of each one's three fellow raters 2, 0, 2, 2 agree; nobody else has seen the last pair
    expected = [(2 + 1) / 5, (0 + 1) / 5, (2 + 1) / 5, (2 + 1) / 5, 1 / 2]
    assert pareto.support(pairs, users) == pytest.approx(expected)


def test_ones_own_repeated_votes_are_no_support() -> None:
    pairs = np.array([[0, 1], [0, 1], [0, 1]])
    assert pareto.support(pairs, np.zeros(3, np.int64)) == pytest.approx([0.5] * 3)


def test_an_unseen_pair_has_the_support_that_was_expected() -> None:
    found = pareto.support(np.array([[0, 1], [2, 3]]), np.array([0, 1]), expected_P=[0.9, 0.2])
    assert found == pytest.approx([0.9, 0.2])


def test_support_without_shrinkage_is_refused() -> None:
    with pytest.raises(RequestError, match="strength"):
        pareto.support(np.array([[0, 1]]), np.array([0]), strength=0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 4)), min_size=1, max_size=30))
def test_support_lies_strictly_between_0_and_1_and_that_of_the_two_sides_adds_up(
    rated: list[tuple[int, int, int]],
) -> None:
    pairs = np.array([[one, (one + apart) % 4] for one, apart, _ in rated])
    users = np.array([user for *_, user in rated])
    found = pareto.support(pairs, users)
    assert ((found > 0) & (found < 1)).all()
    turned = pareto.support(np.concatenate([pairs[:1, ::-1], pairs[1:]]), users)
    assert found[0] + turned[0] == pytest.approx(1)


def test_users_without_labels_have_no_support_and_find_no_minority() -> None:
    mean = pareto.user_support(np.array([0.2, 0.4, 0.9]), np.array([0, 0, 2]), 3)
    assert mean == pytest.approx([0.3, np.nan, 0.9], nan_ok=True)
    assert pareto.boundary(np.array([np.nan, np.nan])) == -math.inf


def test_a_tenth_is_found_again_by_its_support() -> None:
    rng = np.random.default_rng(0)
    minority = np.arange(500) < 50
    support = np.where(minority, rng.normal(0.42, 0.04, 500), rng.normal(0.7, 0.04, 500))
    assert ((support < pareto.boundary(support)) == minority).mean() > 0.99


def test_where_all_are_alike_nobody_is_a_minority() -> None:
    assert pareto.boundary(np.full(20, 0.6)) == -math.inf


@given(hnp.arrays(np.float64, st.integers(2, 40), elements=st.floats(0, 1)))
def test_a_minority_is_less_than_half(support: np.ndarray) -> None:
    edge = pareto.boundary(support)
    assert not math.isnan(edge)
    assert edge == -math.inf or 0 < (support < edge).mean() < 0.5


def test_the_gate_is_open_where_the_teacher_has_the_labels_sign() -> None:
    assert pareto.gate(torch.tensor([2.0, 0.0, -1.0])).tolist() == [1, 0, 0]
    assert pareto.gate(torch.tensor([2.0, 0.1]), least=0.5).tolist() == [1, 0]
    assert pareto.gate(torch.tensor([-9.0]), least=-math.inf).tolist() == [1]


def test_a_closed_gate_leaves_the_labels_loss_and_an_open_one_adds_the_teachers() -> None:
    margins = torch.tensor([0.3, 0.3])
    loss = pareto.distilled_loss(margins, torch.tensor([-2.0, 2.0]), strength=3)
    chance, target = 1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(-2))
    copied = -target * math.log(chance) - (1 - target) * math.log(1 - chance)
    assert loss.tolist() == pytest.approx([-math.log(chance), -math.log(chance) + 3 * copied])


def test_the_teacher_gets_no_gradient_and_the_student_is_drawn_to_a_soft_margin() -> None:
    teacher = torch.tensor([1.0], requires_grad=True)
    student = torch.tensor([1.0], requires_grad=True)
    loss = pareto.distilled_loss(student, teacher, strength=3) - pareto.distilled_loss(student, teacher, strength=0)
    loss.sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.item() == pytest.approx(0, abs=1e-6)


@given(VECTORS)
def test_min_norm_agrees_with_a_grid_search(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = map(torch.from_numpy, vectors)
    share = pareto.min_norm(one, other)
    grid = torch.linspace(0, 1, 201)[:, None]
    best = (grid * one + (1 - grid) * other).norm(dim=1).min().item()
    mixed = share * one + (1 - share) * other
    assert mixed.norm().item() <= best + 1e-4


@given(VECTORS)
def test_a_min_norm_step_raises_neither_loss(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = map(torch.from_numpy, vectors)
    share = pareto.min_norm(one, other)
    mixed = share * one + (1 - share) * other
    assert min(float(mixed @ one), float(mixed @ other)) >= -1e-3


def test_min_norm_of_equal_gradients_is_even() -> None:
    assert pareto.min_norm(torch.ones(3), torch.ones(3)) == 0.5


def test_shares_of_losses_are_those_of_their_normalised_gradients() -> None:
    weight = torch.tensor([1.0, 1.0], requires_grad=True)
    # gradients (2, 0) and (0, 1) over losses 2 and 1 are of one length: half each, hence 1/2 over 2 and 1/2 over 1
    losses = [2 * weight[0], weight[1]]
    assert pareto.min_norm_shares(losses, [weight]) == pytest.approx((1 / 3, 2 / 3))
    (losses[0] + losses[1]).backward()  # the graph was kept
    assert weight.grad is not None


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=5), SHARES)
def test_shares_add_up_and_a_group_of_nobody_has_none(counts: list[int], power: float) -> None:
    found = pareto.power_shares(counts, power)
    assert found.sum() == pytest.approx(1.0 if any(counts) else 0.0)
    assert all(share == 0 for share, count in zip(found, counts, strict=True) if not count)


def test_power_1_is_plain_training_and_power_0_weighs_groups_alike() -> None:
    assert pareto.power_shares([80, 20], 1).tolist() == pytest.approx([0.8, 0.2])
    assert pareto.power_shares([80, 20], 0).tolist() == pytest.approx([0.5, 0.5])
    assert pareto.power_shares([80, 20]).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_group_dro_turns_to_the_group_that_loses_more() -> None:
    found = pareto.robust_shares(np.array([0.5, 0.5]), [0.0, math.log(3)], step=1.0)
    assert found == pytest.approx([0.25, 0.75])


@given(SHARES, st.floats(0, 1e4), st.floats(0, 1e4))
def test_group_dro_stays_a_distribution_under_any_loss(share: float, one: float, other: float) -> None:
    found = pareto.robust_shares(np.array([share, 1 - share]), [one, other], step=0.1)
    assert np.isfinite(found).all()
    assert found.sum() == pytest.approx(1)


PLAIN = Standing(accuracy_G=(0.8, 0.6), loss_G=(0.4, 0.7))


def test_a_checkpoint_may_fall_by_the_tolerance_and_no_more() -> None:
    within, beyond = (Standing(accuracy_G=(0.8 - fall, 0.9), loss_G=(0.4, 0.1)) for fall in (0.0049, 0.0051))
    assert pareto.harmless(within, PLAIN)
    assert not pareto.harmless(beyond, PLAIN)
    assert pareto.accepted([beyond, within], PLAIN) == 1


def test_the_plain_model_is_served_where_every_checkpoint_harms_a_group() -> None:
    for_one, for_other = (
        Standing(accuracy_G=(0.9, 0.5), loss_G=(0.1, 0.1)),
        Standing(accuracy_G=(0.7, 0.9), loss_G=(0.1, 0.1)),
    )
    assert pareto.accepted([for_one, for_other], PLAIN) is None


def test_the_plain_model_is_served_where_nothing_is_gained() -> None:
    assert pareto.accepted([PLAIN], PLAIN) is None
    assert pareto.accepted([], PLAIN) is None


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_checkpoint_that_is_not_finite_is_never_served(broken: float) -> None:
    assert pareto.accepted([Standing(accuracy_G=(0.9, 0.9), loss_G=(broken, 0.1))], PLAIN) is None
    assert not pareto.harmless(Standing(accuracy_G=(math.nan, 0.9), loss_G=(0.1, 0.1)), PLAIN)


STANDINGS = st.builds(
    lambda a, b, c, d: Standing(accuracy_G=(a, b), loss_G=(c, d)), SHARES, SHARES, st.floats(0, 3), st.floats(0, 3)
)


@given(st.lists(STANDINGS, max_size=6), STANDINGS)
def test_whatever_is_served_harms_no_group(candidates: list[Standing], plain: Standing) -> None:
    chosen = pareto.accepted(candidates, plain)
    if chosen is not None:
        assert pareto.harmless(candidates[chosen], plain)
        assert sum(candidates[chosen].loss_G) < sum(plain.loss_G)


def test_two_groups_that_want_opposites_are_left_where_neither_can_gain() -> None:
    taste = torch.tensor([0.1], requires_grad=True)
    losses = [functional.softplus(-taste).sum(), functional.softplus(taste).sum()]
    shares = pareto.min_norm_shares(losses, [taste])
    (shares[0] * losses[0] + shares[1] * losses[1]).backward()
    assert taste.grad is not None
    assert taste.grad.item() == pytest.approx(0, abs=1e-6)
