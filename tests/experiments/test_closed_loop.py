from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from experiments import closed_loop, feedback_loop
from experiments.closed_loop import ARMS, WORLD, Service
from ranker.catalogue import Catalogue
from ranker.errors import RequestError
from ranker.events import Event, Ranking
from ranker.join import Example
from ranker.learner import Learner, StepReport

SMALL = replace(WORLD, users=12, items=24, rounds=1, slates=16)


class Heard(Service):
    """Keeps what went into the log."""

    def _take(self, event: Event) -> None:
        self.log = [*getattr(self, "log", []), event]
        super()._take(event)


def test_the_arms_differ_in_the_tower_and_in_exploration_alone() -> None:
    for arm, (tower, explores) in ARMS.items():
        config = closed_loop.configured(arm, 3)
        assert all(objective.biased is tower for objective in config.objectives)
        assert (config.serving.swap > 0, config.exploration.slot > 0) == (explores, explores)
        assert config.calibration == closed_loop.configured("tower", 3).calibration
        assert config.guard.on


def test_all_arms_meet_the_same_people_and_the_same_first_log() -> None:
    logs = []
    for arm in ARMS:
        service = Heard(arm, 1, SMALL)
        service.round(first=True)
        logs.append(service.log)
    assert logs[0] == logs[1] == logs[2] == logs[3]
    shown = {tuple(one.id for one in event.items) for event in logs[0] if isinstance(event, Ranking)}
    assert len(shown) == 1  # an editor's list is one for all


def test_own_slates_carry_propensities_and_are_explored_in_their_arm_only() -> None:
    for arm, explores in (("tower", False), ("tower-exploration", True)):
        service = Heard(arm, 1, SMALL)
        service.round(first=True)
        start = len(service.log)
        service.round()
        chances = [one.propensity for event in service.log[start:] if isinstance(event, Ranking) for one in event.items]
        assert len(chances) == SMALL.slates * feedback_loop.PLACES
        assert (min(chance or 0 for chance in chances) < 1) is explores


def test_what_she_acted_on_is_shown_again_only_where_that_is_asked_for() -> None:
    for again in (True, False):
        service = Heard("tower", 1, replace(SMALL, again=again))
        service.round(first=True)
        seen, repeats = service.joiner.evidence, 0
        acted = {user: {act.item for act in evidence.history} for user, evidence in seen.items()}
        start = len(service.log)
        service.round()
        for event in service.log[start:]:
            if isinstance(event, Ranking):
                repeats += len(acted.get(event.user, set()) & {one.id for one in event.items})
        assert (repeats > 0) is again


def test_a_round_ends_with_another_version_and_nothing_is_left_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    taught = 0
    learn = Learner.learn

    def counted(learner: Learner, examples: Sequence[Example], catalogue: Catalogue) -> StepReport:
        nonlocal taught
        report = learn(learner, examples, catalogue)
        taught += report.rows
        return report

    monkeypatch.setattr(Learner, "learn", counted)
    service = Service("tower", 2, SMALL)
    before = service.learner.weights()["table_VD"]
    service.round(first=True)
    assert taught >= (SMALL.slates - 1) * feedback_loop.PLACES  # the last slate still waits for its negatives
    assert not torch.equal(before, service.learner.weights()["table_VD"])
    once = taught
    service._learn()
    assert taught == once


def test_without_a_tower_no_place_is_told_from_another() -> None:
    for arm, flat in (("no-tower", True), ("tower", False)):
        service = Service(arm, 2, replace(SMALL, slates=120))
        service.round(first=True)
        assert (len(set(service.curve())) == 1) is flat


def test_a_seed_is_repeated_exactly_and_every_arm_is_measured_by_round() -> None:
    found = closed_loop.one(0, world=SMALL)
    assert found == closed_loop.one(0, world=SMALL)
    told = closed_loop.result([found], [0], SMALL)
    for arm in ARMS:
        for metric in closed_loop.METRICS:
            assert 0 <= told.row(arm, metric).mean <= 1
            assert 0 <= told.row(arm, f"{metric}, round 0").mean <= 1
            assert told.row(arm, f"{metric}, last over first").mean == 0  # the first own ranking is the last one
    assert told.row("tower", "examination of place 1").mean == 1
    assert told.row("oracle", "utility").mean >= max(told.row(arm, "utility").mean for arm in ARMS)


def test_the_picture_is_the_small_ranker_s() -> None:
    with pytest.raises(RequestError, match="leave one out"):
        feedback_loop.main(["--ranker", "learner", "--plot"])


def test_what_only_the_learner_s_loop_has_is_not_passed_over_without_it() -> None:
    with pytest.raises(RequestError, match="add --ranker learner"):
        feedback_loop.main(["--unseen"])
