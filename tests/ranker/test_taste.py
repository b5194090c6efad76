import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from ranker.taste import (
    Factor,
    History,
    Temper,
    active_units,
    divergence,
    fuse,
    predictive_loss,
    swap_guidance,
    tempered,
)

K = 4
positive = arrays(np.float32, K, elements=st.floats(0, 100, width=32))
any_sign = arrays(np.float32, K, elements=st.floats(-100, 100, width=32))
PRIOR = Factor(np.full(K, 2, np.float32), np.full(K, 1, np.float32))


def history() -> History:
    found = History(6, K, torch.Generator().manual_seed(0))
    with torch.no_grad():
        found.prior_mean_K.copy_(torch.linspace(-1, 1, K))
        found.prior_log_precision_K.copy_(torch.linspace(0, 1, K))
    return found


def acts(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)).relu()


def test_no_evidence_leaves_the_prior():
    taste = fuse(PRIOR)
    assert taste.mean_K.tolist() == [0.5] * K
    assert taste.precision_K.tolist() == [2.0] * K


def test_one_factor_pulls_the_mean_by_its_precision():
    taste = fuse(PRIOR, [Factor(np.full(K, 2, np.float32), np.full(K, 3, np.float32))], {"history": 1})
    assert taste.mean_K.tolist() == [1.0] * K
    assert taste.sources == {"history": 1}


def test_a_full_factor_fuses_with_diagonal_ones():
    full = Factor(np.eye(K, dtype=np.float32) + 0.5, np.ones(K, np.float32))
    taste = fuse(PRIOR, [full])
    wanted = np.linalg.solve(2 * np.eye(K) + full.precision, np.full(K, 2.0))
    assert taste.precision_K.shape == (K, K)
    assert taste.mean_K == pytest.approx(wanted, abs=1e-6)
    diagonal = Factor(np.diag([1.0, 2, 3, 4]).astype(np.float32), np.ones(K, np.float32))
    plain = fuse(PRIOR, [Factor(np.diag(diagonal.precision).copy(), diagonal.information)])
    assert fuse(PRIOR, [diagonal]).mean_K == pytest.approx(plain.mean_K)


@given(st.lists(st.tuples(positive, any_sign), max_size=5))
def test_factors_fuse_in_any_order_and_never_widen(factors):
    parts = [Factor(precision, information) for precision, information in factors]
    forward, backward = fuse(PRIOR, parts), fuse(PRIOR, parts[::-1])
    assert forward.mean_K == pytest.approx(backward.mean_K, rel=1e-3, abs=1e-3)
    assert (forward.precision_K >= PRIOR.precision).all()
    assert np.isfinite(forward.mean_K).all()


def test_fusing_changes_no_input():
    before = [part.copy() for part in PRIOR]
    fuse(PRIOR, [Factor(np.ones(K, np.float32), np.ones(K, np.float32))])
    assert all((now == then).all() for now, then in zip(PRIOR, before, strict=True))


def test_an_empty_history_is_the_learned_prior_exactly():
    encoder = history()
    mean_SK, precision_SK = encoder(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64), 3)
    assert torch.allclose(mean_SK, encoder.prior_mean_K.expand(3, -1))
    assert torch.equal(precision_SK, encoder.prior_log_precision_K.exp().expand(3, -1))


@given(st.permutations(range(7)))
def test_the_order_of_acts_does_not_matter(order):
    encoder, hidden, slates = history(), acts(7), torch.zeros(7, dtype=torch.int64)
    mean, precision = encoder(hidden, slates, 1)
    other_mean, other_precision = encoder(hidden[list(order)], slates, 1)
    assert torch.allclose(mean, other_mean, atol=1e-5)
    assert torch.allclose(precision, other_precision, atol=1e-5)


@given(st.integers(0, 20), st.integers(0, 100))
def test_precision_grows_with_every_act(count, seed):
    encoder, hidden = history(), acts(count + 1, seed)
    fewer = encoder(hidden[:count], torch.zeros(count, dtype=torch.int64), 1)[1]
    more = encoder(hidden, torch.zeros(count + 1, dtype=torch.int64), 1)[1]
    assert (more >= fewer).all()


def test_users_do_not_leak_into_each_other():
    encoder, hidden = history(), acts(6)
    together = encoder(hidden, torch.tensor([0, 0, 2, 2, 2, 2]), 3)
    alone = encoder(hidden[2:], torch.zeros(4, dtype=torch.int64), 1)
    assert torch.allclose(together[0][2], alone[0][0], atol=1e-6)
    assert torch.allclose(together[0][1], encoder.prior_mean_K)


ONE = torch.ones(1)


@pytest.mark.parametrize("margin", [-5.0, -1.0, 0.0, 0.5, 5.0])
@pytest.mark.parametrize("variance", [0.0, 0.3, 2.0, 10.0])
def test_the_predictive_loss_is_the_logistic_integrated_over_the_taste(margin, variance):
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    exact = (weights / (1 + np.exp(-margin - np.sqrt(variance) * nodes))).sum() / weights.sum()
    loss = predictive_loss(torch.tensor([margin]), torch.tensor([variance]), ONE, ONE)
    assert np.exp(-loss.item()) == pytest.approx(exact, abs=0.02)


def test_a_tie_counts_both_ways_and_a_weightless_comparison_not_at_all():
    margin, variance = torch.tensor([1.0, 1.0]), torch.zeros(2)
    share, weight = torch.tensor([1.0, 0.0]), torch.ones(2)
    tie = predictive_loss(margin[:1], variance[:1], ONE / 2, ONE)
    assert tie == pytest.approx(predictive_loss(margin, variance, share, weight))
    alone = predictive_loss(margin[:1], variance[:1], ONE, ONE)
    assert alone == pytest.approx(predictive_loss(margin, variance, share, torch.tensor([0.7, 0.0])))
    assert predictive_loss(margin[:0], variance[:0], share[:0], weight[:0]) == 0


@given(st.floats(0.1, 5), st.floats(0, 10), st.floats(0, 10))
def test_uncertainty_softens_what_is_predicted(margin, low, more):
    losses = [
        predictive_loss(torch.tensor([margin]), torch.tensor([variance]), ONE, ONE) for variance in (low, low + more)
    ]
    assert losses[0] <= losses[1] + 1e-6 <= np.log(2) + 1e-5


def random_gaussians(seed, users=5):
    draws = torch.Generator().manual_seed(seed)
    root = torch.randn(users, K, K, generator=draws)
    full = root @ root.mT + torch.eye(K)
    return torch.randn(users, K, generator=draws), full.diagonal(dim1=1, dim2=2).contiguous(), full


@pytest.mark.parametrize("seed", range(3))
def test_the_divergence_is_that_of_torch(seed):
    mean, diagonal, full = random_gaussians(seed)
    prior_mean, prior_diagonal, prior_full = (each[0] for each in random_gaussians(seed + 10))
    plain = divergence(mean, diagonal, prior_diagonal, prior_mean)
    wanted = kl_divergence(Normal(mean, diagonal.rsqrt()), Normal(prior_mean, prior_diagonal.rsqrt())).sum(1)
    assert torch.allclose(plain, wanted, atol=1e-4)
    assert torch.allclose(divergence(mean, torch.diag_embed(diagonal), prior_diagonal, prior_mean), plain, atol=1e-4)
    wanted = kl_divergence(
        MultivariateNormal(mean, precision_matrix=full), MultivariateNormal(prior_mean, precision_matrix=prior_full)
    )
    assert torch.allclose(divergence(mean, full, prior_full, prior_mean), wanted, rtol=1e-3, atol=1e-3)


@given(st.integers(0, 1000), st.floats(0, 3))
def test_free_bits_are_charged_at_most_once_and_the_prior_costs_nothing(seed, free):
    mean, diagonal, full = random_gaussians(seed)
    prior_mean, prior = torch.zeros(K), torch.ones(K)
    for precision in (diagonal, full):
        charged, plain = (divergence(mean, precision, prior, prior_mean, free=nats) for nats in (free, 0.0))
        assert (charged >= free * K - 1e-4).all()
        assert (charged >= plain - 1e-4).all()
        assert (charged <= plain + free * K + 1e-4).all()
    assert torch.allclose(divergence(torch.zeros(2, K), torch.ones(2, K), prior, prior_mean), torch.zeros(2))


def test_active_units_are_those_that_differ_between_users():
    mean = torch.tensor([[0.0, 1.0, 0.0], [0.2, 1.0, 4.0], [0.0, 1.0, -4.0]])
    assert active_units(mean, 0.005) == pytest.approx(2 / 3)
    assert active_units(mean, 1.0) == pytest.approx(1 / 3)
    assert active_units(mean[:1], 0.0) == 0


@given(st.integers(0, 1000))
def test_swap_guidance_is_nothing_for_opposite_means_of_equal_spread_and_bounded(seed):
    mean, diagonal, _ = random_gaussians(seed)
    other, other_diagonal, _ = random_gaussians(seed + 1)
    assert torch.allclose(swap_guidance(mean, diagonal, -mean, diagonal), torch.zeros(5), atol=1e-5)
    assert torch.allclose(swap_guidance(mean, diagonal, mean, diagonal), torch.ones(5), atol=1e-5)
    found = swap_guidance(mean, diagonal, other, other_diagonal)
    assert ((found >= 0) & (found <= 1.1)).all()


@given(positive, any_sign, st.floats(0, 1), arrays(np.float32, K, elements=st.floats(0, 10, width=32)))
def test_a_tempered_factor_says_less_and_still_never_widens(precision, information, scale, residual):
    factor = Factor(precision, information)
    plain = fuse(PRIOR, [factor])
    for temper in (Temper(scale=scale), Temper(residual_K=residual), Temper(scale=scale, residual_K=residual)):
        taste = fuse(PRIOR, [tempered(PRIOR, factor, temper)])
        assert (taste.precision_K >= PRIOR.precision * (1 - 1e-5)).all()
        assert (taste.precision_K <= plain.precision_K * (1 + 1e-5)).all()
    kept = fuse(PRIOR, [tempered(PRIOR, factor, Temper(residual_K=residual))])
    assert kept.mean_K == pytest.approx(plain.mean_K, rel=1e-3, abs=1e-3)
    untouched = tempered(PRIOR, factor, Temper())
    assert untouched.precision == pytest.approx(precision)
    assert untouched.information == pytest.approx(information)


def test_a_residual_variance_widens_the_posterior_by_itself():
    factor, residual = Factor(np.full(K, 6, np.float32), np.ones(K, np.float32)), np.full(K, 0.25, np.float32)
    taste = fuse(PRIOR, [tempered(PRIOR, factor, Temper(residual_K=residual))])
    assert 1 / taste.precision_K == pytest.approx([1 / 8 + 0.25] * K)
