import numpy as np
import pytest

from experiments import gate
from experiments.gate import Pool, course, pool, worse


@pytest.fixture(scope="module")
def found() -> Pool:
    return pool(0, slates=500)


def test_losses_are_what_their_names_say(found: Pool) -> None:
    served = np.nanmean(found.order["served"])
    assert np.nanmean(found.order["equal"]) == pytest.approx(served, rel=0.004)
    assert found.loss["equal"].mean() == pytest.approx(found.loss["served"].mean())
    for share in gate.LOSSES:
        assert np.nanmean(found.order[worse(share)]) == pytest.approx(served * (1 - share), rel=0.004)
    assert np.nanmean(found.order["better"]) > served
    assert found.loss["better"].mean() < found.loss["served"].mean()
    assert np.nanmean(found.order["poisoned"]) < 0.7 * served


def test_a_poisoned_group_is_refused_and_a_better_candidate_passes(found: Pool) -> None:
    generator = np.random.default_rng(0)
    assert all(course(found, "poisoned", 400, generator, every=100).refused for _ in range(5))
    assert sum(course(found, "better", 600, generator, every=100).passed for _ in range(5)) >= 4
    assert not any(course(found, "equal", 400, generator, every=100).refused for _ in range(5))


def test_the_result_has_a_row_for_each_kind_and_window() -> None:
    result = gate.run(seeds=(0,), windows=(300,), courses=2, slates=300)
    assert {row.metric for row in result.rows} == {"passed | 300", "refused | 300"}
    assert {row.arm for row in result.rows} == {"equal", "better", "poisoned", *map(worse, gate.LOSSES)}
    assert result.row("poisoned", "refused | 300").mean == 1
