from itertools import pairwise

import numpy as np
import pytest

from ranker import spread, tally
from ranker.config import Config, Learning, Objective
from ranker.fairness import OTHER
from ranker.spread import Estimate, Gap, Period
from ranker.tally import ALL, Label

CONFIG = Config(
    objectives=(Objective(name="click", event="click"),), groups=("gender",), learning=Learning(minimum_group=3)
)
ALL_OF: Label = ("current", ALL, ALL)


def person(foretold: float, pairs: float = 20, *, support: float | None = None, clicks: float = 2) -> np.ndarray:
    sums_V = tally.empty(1)
    one = tally.sums(sums_V)
    one.counts_TC[0] = 20, clicks, foretold / pairs, 1, pairs, foretold
    one.bins_TB3[0, 9] = 20, 3, clicks
    one.whole_W[:5] = 1, 0.3, 1, 0.6, 1
    if support is not None:
        one.whole_W[5:] = support, 1
    return sums_V


def judged(people: dict[str, list[np.ndarray]], minimum: int = 3, **more) -> Period:
    released = {
        (ALL_OF, ("current", "gender", group)): {f"{group[0]}{n:07}".encode(): one for n, one in enumerate(several)}
        for group, several in people.items()
    }
    return spread.period(
        released,
        CONFIG,
        start=1,
        end=2,
        versions={"current": ["v1"]},
        minimum=minimum,
        generator=np.random.default_rng(0),
        **more,
    )


def gap(found: Period, measure: str) -> Gap:
    (one,) = [one for one in found.gaps if one.measure == measure]
    return one


def test_group_figures_are_quotients_of_their_peoples_sums():
    found = judged({"f": [person(8), person(10), person(12)], "m": [person(18)] * 5})
    women = next(one for one in found.groups if one.group == "f")
    assert (women.people, women.slates, found.people) == (3, 3, 8)
    accuracy = women.objectives["click"]["accuracy"]
    assert accuracy.value == 0.5
    assert 0.4 <= accuracy.low < 0.5 < accuracy.high <= 0.6
    assert women.objectives["click"]["rate"] == Estimate(0.1, 0.1, 0.1)
    assert women.objectives["click"]["bias"].value == pytest.approx(0.05)
    assert women.of_slates == {"miscalibration": Estimate(0.3, 0.3, 0.3), "exposure": Estimate(0.6, 0.6, 0.6)}
    everybody = next(one for one in found.groups if one.field == ALL)
    assert everybody.objectives["click"]["accuracy"].value == 0.75


def test_a_gap_names_its_groups_and_says_when_it_may_be_chance():
    apart = gap(
        judged({"f": [person(8), person(10), person(12)], "m": [person(18), person(17), person(19)]}), "accuracy"
    )
    assert (apart.best, apart.worst, apart.gap.value, apart.worst_value.value) == ("m", "f", 0.4, 0.5)
    assert apart.gap.low > 0.2
    assert apart.ratio.value == pytest.approx(0.5 / 0.9, abs=1e-3)
    draw = np.random.default_rng(1)
    same = {group: [person(draw.integers(5, 20)) for _ in range(40)] for group in "fm"}
    assert gap(judged(same), "accuracy").gap.low < 0


def test_of_errors_the_worst_group_is_the_one_with_more_of_it_on_either_side():
    found = gap(judged({"f": [person(10, clicks=6)] * 3, "m": [person(10, clicks=2)] * 3}), "bias")
    assert (found.worst, found.worst_value.value, found.best) == ("f", -0.15, "m")
    assert (found.gap.value, found.ratio.value) == (0.1, pytest.approx(1 / 3, abs=1e-4))


def test_the_inequality_among_people_waits_for_its_own_minimum():
    few = judged({"f": [person(n, support=n / 20) for n in range(1, 20)]})
    (one,) = few.inequality
    assert (one.people, one.mean.value, one.spearman_support.value) == (19, 0.5, 1.0)
    assert one.cvar10 == Estimate(None, None, None)
    (many,) = judged({"f": [person(n % 20) for n in range(60)]}).inequality
    assert many.cvar10.value == pytest.approx(np.mean([0, 0, 0, 1, 1, 1]) / 20)
    assert many.spearman_support.value is None
    assert judged({"f": [person(1, pairs=spread.PAIRS - 1)] * 9}).inequality == []


def test_a_group_without_enough_people_is_not_told_of():
    found = judged({"f": [person(5)] * 4, OTHER: [person(5)] * 2})
    assert {one.group for one in found.groups} == {ALL, "f"}
    assert found.gaps == []


def test_someone_who_changed_groups_counts_for_both_and_once_for_all():
    mark = b"somebody"
    released = {
        (ALL_OF, ("current", "gender", "f")): {mark: person(10), b"fffffff1": person(10), b"fffffff2": person(10)},
        (ALL_OF, ("current", "gender", "m")): {mark: person(20), b"mmmmmmm1": person(10), b"mmmmmmm2": person(10)},
    }
    found = spread.period(released, CONFIG, start=1, end=2, versions={}, minimum=3, generator=np.random.default_rng(0))
    assert {one.group: one.people for one in found.groups} == {ALL: 5, "f": 3, "m": 3}
    (people,) = found.inequality
    assert people.mean.value == pytest.approx((4 * 0.5 + 0.75) / 5)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    covered, draw = 0, np.random.default_rng(5)
    for _ in range(100):
        people = [person(draw.binomial(20, draw.beta(6, 3))) for _ in range(80)]
        accuracy = judged({"f": people}, rounds=200).groups[0].objectives["click"]["accuracy"]
        covered += accuracy.low <= 2 / 3 <= accuracy.high
    assert 88 <= covered <= 100


def test_more_people_make_narrower_intervals():
    draw = np.random.default_rng(2)
    people = [person(draw.integers(0, 21)) for _ in range(400)]
    widths = []
    for n in (25, 100, 400):
        accuracy = judged({"f": people[:n]}).groups[0].objectives["click"]["accuracy"]
        widths.append(accuracy.high - accuracy.low)
    assert all(later < 0.7 * earlier for earlier, later in pairwise(widths))
