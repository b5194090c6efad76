from collections.abc import Iterator

import numpy as np
import pytest
import torch
from msgspec import structs

from ranker import fair
from ranker.balance import Known
from ranker.config import Config, Method, parse
from ranker.errors import DataError
from ranker.events import Event, Interaction
from ranker.fair import Line, decide, fit, judge
from ranker.heldout import Splitter
from ranker.join import Joiner
from ranker.learner import Learner, train
from ranker.metrics import Interval
from ranker.simulation import Population, Tastes


def config(method: Method = "erm", *, tolerance: float = 0.005, minimum: int = 5, **more: object) -> Config:
    return parse(
        {
            "objectives": [
                {"name": "like", "event": "like", "graded": {"event": "rate", "at_least": 4}},
                {"name": "dismiss", "event": "dismiss", "weight": -1.0, "graded": {"event": "rate", "at_most": 2}},
            ],
            "fields": {"item": {"genres": "categories"}},
            "groups": ["taste_group"],
            "scale": "tiny",
            "learning": {"minimum_group": minimum},
            "fairness": {"method": method, "tolerance": tolerance, **more},
        }
    )


def log() -> Iterator[Event]:
    """A population of two opposed tastes, 15 of 60 in the smaller group, who grade what they see."""
    people = Population(Tastes(users=60, items=40, shares=(0.75, 0.25), cosine=-0.7, seed=4))
    for event in people.events(ratings=12):
        if isinstance(event, Interaction):
            yield structs.replace(event, type="rate", value=5.0 if event.type == "like" else 1.0)
        else:
            yield event


@pytest.fixture(scope="module")
def plain() -> tuple[Learner, Known]:
    learner, joiner = fair.course(config(), log, passes=1, rows=128)
    return learner, Known(joiner.groups, joiner.evidence)


def line(group: str, measure: str, plain: float, other: float) -> Line:
    return Line(
        group=group, measure=measure, users=9, plain=plain, fair=other, difference=Interval(other - plain, 0, 0, 9)
    )


def table(**changes: float) -> list[Line]:
    """Two groups whose fair model is better in every measure, but for the named changes."""
    found = []
    for group in ("few", "many"):
        for measure, plain, better in (("accuracy", 0.6, 0.7), ("loss", 0.5, 0.4), ("pair loss", 0.6, 0.5)):
            found.append(line(group, measure, plain, changes.get(f"{group} {measure}", better)))
        found.append(line(group, "ndcg@10", 0.8, changes.get(f"{group} ndcg@10", 0.81)))
    return found


@pytest.mark.parametrize(
    ("changes", "taken", "why"),
    [
        ({}, True, "no group falls"),
        ({"few accuracy": 0.594}, False, "0.005 of accuracy"),
        ({"few accuracy": 0.596}, True, "no group falls"),
        ({"many ndcg@10": 0.79}, False, "0.005 of ndcg@10"),
        ({"few loss": 0.7}, False, "no lower"),
        ({"few accuracy": float("nan")}, False, "accuracy"),
    ],
)
def test_a_fair_model_is_taken_only_if_no_group_falls_and_the_mean_loss_does(
    changes: dict[str, float], taken: bool, why: str
) -> None:
    found, reason = decide(table(**changes), tolerance=0.005)
    assert found is taken
    assert why in reason


def test_nothing_is_taken_on_the_word_of_one_group() -> None:
    assert not decide([one for one in table() if one.group == "few"], tolerance=0.005)[0]
    assert not decide([], tolerance=0.005)[0]


@pytest.mark.parametrize(
    ("whole", "half", "share"),
    [
        ({"many accuracy": 0.5}, {}, 0.5),
        ({}, {"many accuracy": 0.5}, 1.0),
        ({"few loss": 0.42}, {}, 0.5),
        ({}, {"few loss": 0.42}, 1.0),
        ({"many accuracy": 0.5}, {"many accuracy": 0.5}, None),
    ],
)
def test_of_the_fair_model_and_the_one_half_way_the_better_harmless_one_is_taken(
    whole: dict[str, float], half: dict[str, float], share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, other = Learner(config()), Learner(config())
    with torch.no_grad():
        other.model.phi.add_(2.0)
    tables = iter([table(**whole), table(**half)])
    monkeypatch.setattr(fair, "lines_of", lambda *_: next(tables))
    taken, _, lines = fair.choose(other, plain, {}, lambda _: {}, tolerance=0.005)
    assert taken is (share is not None)
    assert torch.allclose(other.model.phi - plain.model.phi, torch.tensor(2.0 * (share or 1.0)))
    assert lines == table(**(half if share == 0.5 else whole))


def test_where_the_fair_model_is_not_taken_the_plain_one_goes_on_as_if_there_had_been_no_other() -> None:
    found = fit(config("pareto", minimum=16), log, rows=128, say=lambda _: None)
    plain, joiner = Learner(config(minimum=16)), Joiner(config(minimum=16), opening=True, pairs=True)
    splitter = Splitter(log, "time", fair.HELD)
    for later in (False, True):
        held = splitter.mark()
        for _ in train((event for event in log() if held(event) is later), plain, joiner, rows=128):
            pass
    assert (found.fair, found.lines) == (False, ())
    assert "no two groups of 16 people" in found.reason
    ours, theirs = found.learner.weights(), plain.weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert found.learner.teachers is None


def test_a_model_that_harms_no_group_beyond_the_tolerance_is_taken_with_its_teachers() -> None:
    found = fit(config("pareto", tolerance=0.5), log, rows=128, say=lambda _: None)
    assert found.fair, found.reason
    assert found.reason.startswith("pareto: ")
    assert {one.group for one in found.lines} == {"g0", "g1"}
    assert {one.measure for one in found.lines} == set(fair.MEASURES)
    assert list(found.learner.teachers.models) == ["g0", "g1"]  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["reweight", "group-dro", "maxmin", "self-distil", "pareto"])
def test_every_method_learns_another_model_than_the_plain_one(method: Method, plain: tuple[Learner, Known]) -> None:
    found = fair.counterpart(
        config(method), plain[0], log, plain[1], ["g0", "g1"], passes=1, rows=128, say=lambda _: None
    )
    assert not torch.equal(found.weights()["phi"], plain[0].weights()["phi"])
    assert (found.teachers is not None) is (method in ("self-distil", "pareto"))
    if method == "pareto":
        assert list(found.teachers.models) == ["g0", "g1"]  # type: ignore[union-attr]


def test_without_a_group_field_there_is_nothing_to_balance() -> None:
    alone = parse({"objectives": [{"name": "like", "event": "rate"}], "fairness": {"discover": False}})
    with pytest.raises(DataError, match="group field"):
        fit(alone, log)


def test_people_are_judged_by_their_group_as_known_before_and_by_every_row_once() -> None:
    joiner = Joiner(config(), pairs=True)
    events = list(log())
    for event in events[:-200]:
        joiner.push(event)
    found = judge(Learner(config()), joiner.state(), lambda: iter(events[-200:]), "taste_group")
    assert {group for group, _ in found} == {"g0", "g1"}
    assert sum(len(tally.gains) for tally in found.values()) == 200
    assert sum(tally.rows for tally in found.values()) == 400
    assert all(len(tally.gains) == len(tally.scores) for tally in found.values())
    large = config(minimum=10_000)
    assert judge(Learner(large), Joiner(large, pairs=True).state(), lambda: iter(events), "taste_group") == {}


def test_two_models_sort_people_by_which_explains_them_better(plain: tuple[Learner, Known]) -> None:
    found = fair.sort_people(plain[0], log, plain[1], "taste_group", lambda _: None)
    sides = np.array([found.of(user).get("taste_group") for user in plain[1].evidence])
    assert set(sides.tolist()) == {"low", "high"}
    assert found.of("nobody") == {}
