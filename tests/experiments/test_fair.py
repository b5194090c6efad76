import json

import pytest

from experiments import fair
from experiments.fair import Setting
from ranker.errors import RequestError

TINY = Setting(methods=("reweight", "pareto"), users=50, items=30, ratings=12, minority=0.3, passes=1)


def test_every_method_is_compared_with_the_plain_model_by_group() -> None:
    result = fair.run(setting=TINY, seeds=(0,))
    found = {(row.arm, row.metric) for row in result.rows}
    assert {(f"{method}, {group}", "accuracy") for method in TINY.methods for group in ("g0", "g1")} <= found
    assert ("plain, g1", "accuracy itself") in found
    assert result.row("pareto, g0", "taken").mean in (0, 1)
    assert "pareto" in result.criterion


def test_impossible_wishes_are_refused() -> None:
    with pytest.raises(RequestError, match="--minority"):
        fair.main(["--minority", "1.5"])
    with pytest.raises(RequestError, match="one log"):
        fair.main(["--events", "a", "b"])


def test_the_same_seed_makes_the_same_log_of_grades() -> None:
    one, same, other = (fair.graded(TINY, seed) for seed in (1, 1, 2))
    assert one == same != other
    values = [getattr(event, "value", None) for event in one]
    assert {value for value in values if value is not None} == {1.0, 5.0}
    assert json.dumps(values)
