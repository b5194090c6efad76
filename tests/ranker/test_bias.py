import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ranker.bias import PLACES, BiasTower, bucket


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
