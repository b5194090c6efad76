import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ranker.bias import PLACES, BiasTower, bucket, framing


def tower(biased: list[bool] | None = None) -> BiasTower:
    found = BiasTower([True, False] if biased is None else biased, rows=64)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return found.eval()


def codes(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), -1)


def test_an_unknown_position_is_the_missing_embedding_whatever_the_device():
    logits_RT = tower()(torch.tensor([-1, -1]), codes([5], [-1]))
    assert logits_RT.abs().max() == 0


def test_an_unbiased_objective_gets_nothing():
    logits_RT = tower()(torch.arange(4), codes([1], [2], [3], [-1]))
    assert logits_RT[:, 1].abs().max() == 0
    assert logits_RT[:, 0].abs().min() > 0


def test_place_and_device_add_up():
    bias = tower()
    alone, both = bias(torch.tensor([2, 2]), codes([-1], [9]))[:, 0].tolist()
    assert alone == pytest.approx(bias.place_PT[2, 0].item())
    assert both != pytest.approx(alone)
    assert bias(torch.tensor([2]), codes([9, 9]))[0, 0].item() - both == pytest.approx(both - alone, abs=1e-5)


def test_dropout_replaces_about_a_tenth_by_the_missing_embedding_and_only_in_training():
    bias, generator = tower(), torch.Generator().manual_seed(0)
    places, none = torch.zeros(5000, dtype=torch.int64), codes(*[[]] * 5000)
    assert (bias(places, none, generator)[:, 0] != 0).all()
    dropped = (bias.train()(places, none, generator)[:, 0] == 0).float().mean()
    assert 0.08 < dropped < 0.12
    assert (bias(places, none)[:, 0] != 0).all()


def test_dropout_follows_its_generator():
    bias, places = tower().train(), torch.arange(40)
    first, again = (bias(places, codes(*[[]] * 40), torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)


def test_a_tower_learns_the_examination_curve_of_a_cascade_of_chances():
    truth = 1 / (1 + np.arange(8.0))
    draws = np.random.default_rng(0)
    places = torch.from_numpy(np.tile(np.arange(8), 4000))
    labels = torch.from_numpy((draws.random(len(places)) < 0.3 * truth[places.numpy()]).astype(np.float32))
    devices = torch.from_numpy(draws.integers(0, 2, (len(places), 1)))
    bias = BiasTower([True], dropout=0.0).train()
    base = torch.tensor([np.log(0.3 / 0.7)], dtype=torch.float32)
    adam = torch.optim.Adam(bias.parameters(), lr=0.1)
    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(base + bias(places, devices)[:, 0], labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
    curve = bias.examination(base, 8)[:, 0]
    assert curve[0] == 1
    assert np.abs(curve - truth).max() < 0.06


def test_deep_places_share_rows_and_stay_in_the_table():
    rows = bucket(torch.tensor([0, 1, 47, 48, 49, 95, 96, 100_000, 10**12]))
    assert rows.tolist()[:3] == [0, 1, 47]
    assert rows[3] == rows[4] == 48
    assert (rows.diff() >= 0).all()
    assert rows.max() < PLACES


@given(st.lists(st.tuples(st.integers(-1, 10**6), st.integers(-1, 2**32 - 1)), min_size=1, max_size=20))
def test_a_row_does_not_depend_on_its_neighbours(rows):
    bias = tower()
    positions, context = torch.tensor([p for p, _ in rows]), codes(*[[c] for _, c in rows])
    together = bias(positions, context)
    alone = torch.cat([bias(positions[n : n + 1], context[n : n + 1]) for n in range(len(rows))])
    assert torch.equal(together, alone)
    assert together.isfinite().all()


def test_the_framing_of_an_answer_is_that_of_its_places_and_turns_with_them():
    bias = tower([True])
    first_R, wording_R = torch.tensor([0, 1, 0, 1, -1]), torch.tensor([0, 0, -1, -1, 1])
    found_R = framing(bias, first_R, wording_R)
    assert found_R[0] == -found_R[1]
    assert found_R[2] == -found_R[3] == bias.place_PT[0, 0] - bias.place_PT[1, 0]
    assert found_R[0] != found_R[2]
    assert found_R[4] == 0


def test_framing_drops_both_places_of_an_answer_together():
    bias, generator = tower([True]).train(), torch.Generator().manual_seed(0)
    first_R, wording_R = torch.zeros(3000, dtype=torch.int64), torch.full((3000,), -1)
    found_R = framing(bias, first_R, wording_R, generator)
    whole = (bias.place_PT[0, 0] - bias.place_PT[1, 0]).item()
    assert set(found_R.tolist()) == {0.0, whole}
    assert 0.08 < (found_R == 0).float().mean() < 0.12


def asked(rng, answers=12_000, items=20, users=60):
    """Answers of known tastes where the better liked item tends to stand first, and first and wording move them."""
    quality_I, phi_I, z_U = rng.normal(size=items), rng.normal(size=items), rng.normal(size=users)
    user_R, one_R = rng.integers(0, users, answers), rng.integers(0, items, answers)
    other_R = (one_R + rng.integers(1, items, answers)) % items
    wording_R = rng.integers(-1, 2, answers)
    first_R = rng.random(answers) < 1 / (1 + np.exp(-2 * (quality_I[one_R] - quality_I[other_R])))
    # the first one gains .8; where "skip" is asked, picking it costs it 1.2
    lean_R = np.where(first_R, 1, -1) * np.select([wording_R == 1, wording_R == 0], [-0.4, 0.8], 0.6)
    margin_R = quality_I[one_R] - quality_I[other_R] + z_U[user_R] * (phi_I[one_R] - phi_I[other_R])
    won_R = rng.random(answers) < 1 / (1 + np.exp(-margin_R - lean_R))
    better, worse = np.where(won_R, one_R, other_R), np.where(won_R, other_R, one_R)
    place_R = np.where(won_R == first_R, 0, 1)
    rows = tuple(map(torch.from_numpy, (user_R, better, worse, place_R, wording_R)))
    return rows, quality_I, np.outer(z_U, phi_I)


def learned(rows, *, with_tower):
    user_R, better_R, worse_R, place_R, wording_R = rows
    generator = torch.Generator().manual_seed(0)
    bias = BiasTower([True], rows=256, dropout=0.0).train()
    quality_I = torch.zeros(20, requires_grad=True)
    phi_I, z_U = (torch.randn(n, generator=generator).requires_grad_() for n in (20, 60))
    adam = torch.optim.Adam([quality_I, phi_I, z_U, *bias.parameters()], lr=0.05)
    for _ in range(200):
        margin_R = quality_I[better_R] - quality_I[worse_R] + z_U[user_R] * (phi_I[better_R] - phi_I[worse_R])
        logit_R = margin_R + framing(bias, place_R, wording_R) if with_tower else margin_R
        prior = z_U.square().sum() + phi_I.square().sum() + quality_I.square().sum()
        loss = -torch.nn.functional.logsigmoid(logit_R).sum() + prior / 2
        adam.zero_grad()
        loss.backward()
        adam.step()
    return bias.eval(), quality_I.detach().numpy(), torch.outer(z_U, phi_I).detach().numpy()


def test_framing_recovers_first_shown_and_wording_and_the_tastes_without_them():
    rows, quality_I, tastes_UI = asked(np.random.default_rng(0))
    bias, with_I, with_UI = learned(rows, with_tower=True)
    _, without_I, _ = learned(rows, with_tower=False)
    first_R, wording_R = torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, -1])
    assert framing(bias, first_R, wording_R).tolist() == pytest.approx([0.8, -0.4, 0.6], abs=0.15)
    centred = [found - found.mean() for found in (quality_I, with_I, without_I)]
    error, naive = (np.abs(found - centred[0]).mean() for found in centred[1:])
    assert error < 0.1 < naive
    apart = [table - table.mean(1, keepdims=True) for table in (tastes_UI, with_UI)]
    assert np.corrcoef(apart[0].ravel(), apart[1].ravel())[0, 1] > 0.95
