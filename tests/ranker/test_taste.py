import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ranker.taste import Factor, History, fuse

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
