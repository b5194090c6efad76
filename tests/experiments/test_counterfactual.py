import numpy as np
import pytest

from experiments import counterfactual
from ranker.counterfactual import Demands, valuate


def test_the_truth_of_the_target_is_what_many_slates_come_to():
    logged, truth = counterfactual.simulated(np.random.default_rng(1), 6000)
    found = valuate(logged, demands=Demands(effective=0, largest=1, support=1))
    for name in counterfactual.ESTIMATORS:
        assert abs(found.values[name].mean - truth) < 0.1 * truth
    assert np.mean(found.overlap.mean_P) == pytest.approx(1, abs=0.1)


def test_coverage_is_judged_with_every_estimator():
    result = counterfactual.run(seeds=[0], logs=20, slates=300, real=False)
    covered = [row for row in result.rows if row.metric == "coverage"]
    assert [row.arm for row in covered] == [*counterfactual.ESTIMATORS, "on-policy mean"]
    assert all(0.6 < row.mean <= 1 for row in covered[:3])
    assert result.holds == all(abs(row.mean - 0.95) < 0.03 for row in covered[:3])
