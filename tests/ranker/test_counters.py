import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ranker.counters import BASE, PRIOR, Counters, uncount
from ranker.inputs import AGES, laid_out

HOUR = 3_600_000
KEYS = torch.tensor([[0, 1], [2, 3]])


def counted(counters: Counters, keys: list[list[int]], times: list[int], worked: list[float]) -> Counters:
    ones = torch.ones(len(times), counters.objectives)
    counters.count(torch.tensor(keys), torch.tensor(times), ones, torch.tensor(worked)[:, None] * ones)
    return counters


def test_one_of_two_impressions_worked() -> None:
    counters = counted(Counters(4, 1, (3600.0,)), [[0, 1], [0, 1]], [0, 0], [1.0, 0.0])
    lift, amount = counters(KEYS[:1], torch.tensor([0]))[0].tolist()
    base = (1 + BASE) / (2 + 1)
    assert lift == pytest.approx(float(torch.log(torch.tensor((1 / base + PRIOR) / (2 + PRIOR)))))
    assert amount == pytest.approx(float(torch.log1p(torch.tensor(2.0))) / 4)


def test_a_count_halves_in_a_half_life() -> None:
    counters = counted(Counters(4, 1, (3600.0,)), [[0, 1]], [0], [0.0])
    amount = counters(KEYS[:1], torch.tensor([HOUR]))[0, 1]
    assert float(amount) == pytest.approx(float(torch.log1p(torch.tensor(0.5))) / 4)


def served(counters: Counters, keys: torch.Tensor, now: int) -> torch.Tensor:
    """What serving reads of the same counts."""
    found_NF, none = counters.find(keys).numpy(), np.zeros(0, np.int64)
    born_N, rows_N, fading = np.full(len(keys), now), np.arange(len(keys)), counters.fading(now)
    x_NX = laid_out(found_NF, born_N, rows_N, none, none > 0, now, *fading, 0, 0)
    return torch.from_numpy(x_NX[:, AGES + 1 : -1].copy())


def test_a_count_read_before_it_was_counted_is_not_blown_up() -> None:
    counters = counted(Counters(4, 1, (3600.0,)), [[2, 3], [0, 1]], [0, 10 * HOUR], [0.0, 0.0])
    one = float(torch.log1p(torch.tensor(1.0))) / 4
    for now in (0, 9 * HOUR, 10 * HOUR):
        assert float(counters(KEYS[:1], torch.tensor([now]))[0, 1]) == pytest.approx(one)
        assert float(served(counters, KEYS[:1], now)[0, 1]) == pytest.approx(one)


def test_an_item_that_shares_one_row_keeps_its_smaller_count() -> None:
    counters = counted(Counters(4, 1, (3600.0,)), [[0, 1], [1, 2], [1, 2]], [0, 0, 0], [0.0, 1.0, 1.0])
    amount = counters(KEYS[:1], torch.tensor([0]))[0, 1]
    assert float(amount) == pytest.approx(float(torch.log1p(torch.tensor(1.0))) / 4)


def test_each_objective_has_its_own_counts() -> None:
    counters = Counters(4, 2, (3600.0,))
    worked = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    counters.count(KEYS, torch.tensor([0, 0]), torch.tensor([[1.0, 1.0], [1.0, 1.0]]), worked)
    first, second = counters(KEYS, torch.tensor([0]))[0, :2].tolist()
    assert first > 0 >= second


@given(st.permutations(range(5)))
def test_the_order_of_arrival_does_not_matter(order: list[int]) -> None:
    times = [0, HOUR // 2, HOUR, 90 * HOUR, 91 * HOUR]
    sorted_, shuffled = Counters(4, 1, (3600.0,)), Counters(4, 1, (3600.0,))
    for place in range(5):
        counted(sorted_, [[0, 1]], [times[place]], [place % 2])
        counted(shuffled, [[0, 1]], [times[order[place]]], [order[place] % 2])
    now = torch.tensor([92 * HOUR])
    torch.testing.assert_close(sorted_(KEYS[:1], now), shuffled(KEYS[:1], now), rtol=1e-4, atol=1e-5)


@given(st.lists(st.integers(0, 10**14), min_size=1, max_size=6), st.integers(0, 10**14))
def test_inputs_are_finite_at_any_times_and_no_more_is_read_than_was_counted(times: list[int], now: int) -> None:
    counters = Counters(4, 1)
    for time in times:
        counted(counters, [[0, 1]], [time], [1.0])
    inputs = counters(KEYS, torch.tensor([now]))
    assert torch.isfinite(inputs).all()
    assert float(inputs[0, 2:].max()) <= float(torch.log1p(torch.tensor(float(len(times))))) / 4 + 1e-6
    torch.testing.assert_close(inputs, served(counters, KEYS, now), rtol=1e-4, atol=1e-5)


def test_serving_reads_what_training_reads() -> None:
    counters = counted(Counters(4, 1), [[0, 1], [2, 3]], [0, HOUR], [1.0, 0.0])
    trained = counters(KEYS, torch.tensor([2 * HOUR]))
    torch.testing.assert_close(trained, served(counters, KEYS, 2 * HOUR), rtol=1e-5, atol=1e-6)


def test_counts_are_cleared_to_those_of_a_fresh_module_and_nothing_else_is() -> None:
    counters, fresh = counted(Counters(4, 1), [[0, 1]], [HOUR], [1.0]), Counters(4, 1)
    weights = {f"counters.{name}": tensor for name, tensor in counters.state_dict().items()} | {"phi": torch.ones(2)}
    uncount(weights)
    assert weights["phi"].tolist() == [1.0, 1.0]
    assert all(tensor.equal(counters.state_dict()[name]) for name, tensor in fresh.state_dict().items())
