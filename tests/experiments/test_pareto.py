import json

import numpy as np
import pytest

from experiments import pareto, personas, report, tradeoff
from experiments.arms import ABLATIONS, ARMS, Effort
from experiments.grades import Grades
from experiments.pareto import SETTINGS
from experiments.report import Result, over_seeds
from ranker.errors import DataError, RequestError
from ranker.events import Event, Field, User

NAMES = {"majority_accuracy", "minority_accuracy", "std", "gini", "jain", "cvar10", "spearman_support"}
HASTE = Effort(epochs=1, tuning=1, rounds=2)


def graded(users: int = 260, items: int = 60) -> Grades:
    rng = np.random.default_rng(11)
    each = [rng.permutation(items)[:40] for _ in range(users)]
    taste, phi = rng.normal(size=(users, 3)), rng.normal(size=(items, 3))
    values = [phi[mine] @ taste[user] + rng.normal(size=40) for user, mine in enumerate(each)]
    names = tuple(str(user) for user in range(users))
    return Grades("made-up", [str(item) for item in range(items)], each, values, users=names)


def test_every_arm_is_measured_with_its_difference_to_the_plain_model() -> None:
    result = pareto.simulated(graded(), [0], settings=["20%"], people=(128, 60, 40), effort=HASTE)
    for arm in {*ARMS, *ABLATIONS, "maxmin", "erm-fixed"}:
        for metric in NAMES:
            apart = result.row(arm, metric).mean - result.row("erm", metric).mean
            assert result.row(f"{arm} - erm", metric).mean == pytest.approx(apart, abs=1e-9)
    for arm in ("pareto", "self-distil", "no-teachers"):
        if result.row(arm, "served_plain").mean == 1:
            assert result.row(f"{arm} - erm", "minority_accuracy").mean == 0
    assert not result.holds  # one epoch teaches nobody
    assert "falls short" in result.criterion
    assert json.loads(report.to_json(result))["name"] == "pareto"


def rows(gain: float, fall: float, over_square: float) -> list[report.Row]:
    found = []
    for other, minority, majority in (("erm", gain, -fall), ("sqrt-reweight", over_square, 0.01)):
        found += [
            over_seeds(f"pareto - {other}", "minority_accuracy", [minority]),
            over_seeds(f"pareto - {other}", "majority_accuracy", [majority]),
        ]
    return [
        *found,
        over_seeds("pareto - erm", "cvar10", [0.01]),
        over_seeds("pareto - erm", "spearman_support", [0.01]),
    ]


def test_a_claim_that_the_intervals_do_not_bear_out_is_named() -> None:
    assert pareto.short(rows(0.031, 0.004, 0.011), {"": SETTINGS["10%"]}) == []
    assert pareto.short(rows(0.029, 0.004, 0.011), {"": SETTINGS["10%"]}) == ["gain"]
    missed = pareto.short(rows(0.031, 0.006, 0.009), {"": SETTINGS["10%"]})
    assert missed == ["no harm", "minority over square root"]
    assert pareto.short(rows(0.031, 0.0, 0.011), {"": SETTINGS["cosine-.7"]}) == ["spearman"]


def test_a_logs_users_are_judged_in_groups_found_by_support() -> None:
    result = pareto.logged(graded(), [0, 1], effort=HASTE)
    assert 0 <= result.row("erm", "minority_share").mean < 0.7
    for arm in ("pareto", "self-distil"):
        assert result.row(arm, "served_plain").n == 2
        assert result.row(arm, "harmful_served").high == 0


def test_a_logs_declared_groups_are_the_most_common_value_and_all_others() -> None:
    users = [str(user) for user in range(40)]
    told = [value for value, count in (("often", 25), ("seldom", 10), ("never", 5)) for _ in range(count)]
    events: list[Event] = [
        User(id=user, timestamp=1, user=user, fields=(Field("active", value),))
        for user, value in zip(users, told, strict=True)
    ]
    assert personas.declared(events, users, "active").tolist() == [False] * 25 + [True] * 15
    with pytest.raises(DataError, match="name a field"):
        personas.declared(events, users, "age")


def test_a_logs_people_are_split_and_no_item_is_both_context_and_judged() -> None:
    minority = np.arange(260) % 3 == 0
    world = personas.logged(graded(), 0, minority_U=minority)
    assert [len(part) for part in world.parts] == [130, 52, 78]
    assert sum(part.minority_U.sum() for part in world.parts) == minority.sum()
    for rows_P2 in world.train.pairs_UP2:
        assert not set(rows_P2[:8].ravel()) & set(rows_P2[8:].ravel())


def test_people_whose_support_is_measured_had_no_part_in_the_base_rewards() -> None:
    assert [len(part) for part in personas.logged(graded(), 0).parts] == [104, 39, 52]


def test_a_log_of_few_people_is_refused() -> None:
    with pytest.raises(DataError, match="200 users"):
        personas.logged(graded(users=60), 0)


def test_the_picture_has_a_panel_for_every_setting_and_a_dot_for_every_arm() -> None:
    found = [
        over_seeds(f"{arm} - erm", f"{group}_accuracy{suffix}", [0.01, 0.02])
        for arm in tradeoff.SHOWN
        for group in ("majority", "minority")
        for suffix in ("", ":20%")
    ]
    result = Result(name="pareto", data="a < b", seeds=(0, 1), rows=tuple(found), criterion="c", holds=True)
    drawn = tradeoff.drawing(result, ["10%", "20%"])
    assert drawn.count("<circle") == 2 * len(tradeoff.SHOWN) + len(tradeoff.SHOWN)
    assert ">10%<" in drawn
    assert "a &lt; b" in drawn


def test_a_picture_of_a_log_is_refused_before_anything_runs() -> None:
    with pytest.raises(RequestError, match="leave one"):
        pareto.main(["--plot", "--events", "missing.jsonl"])
