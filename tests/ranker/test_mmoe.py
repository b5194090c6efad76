import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ranker.mmoe import CUT, MMoE, folding, mixed


def experts(seed: int = 0, dropout: float = 0.1) -> MMoE:
    return MMoE(5, 3, 4, 2, torch.Generator().manual_seed(seed), dropout=dropout)


def spelt_out(model: MMoE, x_RS: torch.Tensor) -> torch.Tensor:
    width = model.split[0]
    hidden_REH = (x_RS @ model.weight[:width].T + model.bias[:width]).relu().view(len(x_RS), 3, 4)
    gates_RET = (x_RS @ model.weight[width:].T + model.bias[width:]).view(len(x_RS), 3, 2)
    shares_RET = torch.softmax(gates_RET, 1)
    mixed_RTH = torch.einsum("reh,ret->rth", hidden_REH, shares_RET)
    return torch.einsum("rth,th->rt", mixed_RTH, model.heads_TH) + model.heads_T


def test_two_experts_mix_by_their_gates():
    votes, gates = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]])
    assert mixed(votes, gates, folding(2, 1)).item() == 2.0


def test_the_stacked_form_is_the_textbook_form():
    model, x_RS = experts(), torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(model(x_RS), spelt_out(model, x_RS), atol=1e-5)


@given(st.lists(st.floats(-CUT, CUT), min_size=4, max_size=4))
def test_gates_are_a_softmax_within_the_cut(gates):
    gates_RX = torch.tensor([gates])
    found = mixed(torch.eye(4).repeat(1, 1), gates_RX.repeat(4, 1), folding(4, 1))[:, 0]
    assert torch.allclose(found, torch.softmax(gates_RX[0], 0), atol=1e-6)


def test_gates_beyond_the_cut_stay_finite():
    found = mixed(torch.ones(1, 2), torch.tensor([[1e30, -1e30]]), folding(2, 1))
    assert found.item() == pytest.approx(1.0)


def test_expert_dropout_shares_out_what_is_left_and_never_drops_all():
    model = experts(dropout=0.999).train()
    x_RS = torch.randn(50, 5, generator=torch.Generator().manual_seed(1))
    found = model(x_RS, torch.Generator().manual_seed(2))
    assert found.isfinite().all()
    # nearly every row had all experts dropped, which keeps them all
    assert torch.isclose(found, model(x_RS), atol=1e-5).all(1).float().mean() > 0.9


def test_dropout_only_happens_in_training_with_a_generator():
    model, x_RS = experts(dropout=0.5), torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    plain = model.eval()(x_RS)
    assert torch.equal(plain, model(x_RS, torch.Generator()))
    assert torch.equal(plain, model.train()(x_RS))
    assert not torch.allclose(plain, model(x_RS, torch.Generator().manual_seed(2)))


def test_a_seed_gives_the_same_experts():
    assert all(torch.equal(a, b) for a, b in zip(experts(4).parameters(), experts(4).parameters(), strict=True))
    assert not torch.equal(experts(4).weight, experts(5).weight)


def test_every_parameter_learns():
    model = experts().train()
    model(torch.randn(30, 5, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
