import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ranker.average import Average


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("counts", torch.zeros(2))


def walked(values: list[float], every: int) -> tuple[Tiny, Average]:
    model, average = Tiny(), Average(every=every)
    for value in values:
        with torch.no_grad():
            model.weight.fill_(value)
            model.counts.fill_(value)
        average.add(model)
    return model, average


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.integers(1, 5))
def test_parameters_are_averaged_over_every_so_many_steps_and_buffers_are_the_last(
    values: list[float], every: int
) -> None:
    model, average = walked(values, every)
    found = average.weights(model.state_dict())
    torch.testing.assert_close(found["weight"], torch.tensor(values[::every]).mean().expand(2), atol=1e-4, rtol=1e-4)
    assert found["counts"].equal(model.counts)


def test_the_model_is_left_as_it_is_and_what_was_given_out_stays() -> None:
    model, average = walked([1.0, 3.0], 1)
    found = average.weights(model.state_dict())
    average.add(model)
    assert model.weight.tolist() == [3.0, 3.0]
    assert found["weight"].tolist() == [2.0, 2.0]


def test_without_a_step_the_weights_are_those_that_are_there() -> None:
    model = Tiny()
    assert Average().weights(model.state_dict()).keys() == model.state_dict().keys()
