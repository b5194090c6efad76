"""The moves of a canary's pointer: each is made once, whoever watches, and by whoever was not overtaken."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ranker.errors import CheckpointError
from ranker.evidence import EMPTY
from ranker.gate import Verdict
from ranker.golden import Case, Golden
from ranker.registry import Registry
from streaming.canary import Watch
from tests.ranker.test_canary import CONFIG, slate


@pytest.fixture
def kept(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path)
    golden = Golden((), (Case(EMPTY, {}, ["a"], 9),), (np.ones((1, 1), np.float32),))
    for value in range(3):
        registry.save({"w": torch.full((2,), float(value))}, CONFIG, metrics={}, golden=golden, parent=None)
    registry.promote(registry.versions()[0], Verdict("pass"), who="test")
    return registry


def watch(kept: Registry, liked: float, *, slates: int = 300, first: int = 0) -> Watch:
    """One that has seen both arms' slates, the canary earning `liked` where the current version earns .3."""
    one = Watch(CONFIG, kept)
    one.follow()
    pointer = kept.current()
    assert pointer is not None
    now = max(pointer.since, 1) + 1
    for number in range(first, first + slates):
        for arm, version, chance in (("current", pointer.version, 0.3), ("canary", pointer.canary, liked)):
            example = slate(number, f"{arm}{number % 60}", arm, chance, time=now)
            one.add(replace(example, version=version), {})
    return one


def test_of_two_monitors_that_find_the_same_only_one_acts(kept: Registry) -> None:
    first, second, _ = kept.versions()
    kept.canary(second, 0.1, who="test")
    both = [watch(kept, 0.1), watch(kept, 0.1)]
    steps = [one.judge(10_000) for one in both]
    assert [step and step.action for step in steps] == ["withdraw", None]
    assert [decision.action for decision in kept.decisions()] == ["promote", "canary", "withdraw"]
    assert kept.decisions()[-1].reasons
    pointer = kept.current()
    assert pointer is not None
    assert (pointer.version, pointer.canary) == (first, None)


def test_a_good_canary_climbs_and_is_promoted_with_its_measures(kept: Registry) -> None:
    _, second, _ = kept.versions()
    kept.canary(second, 0.1, who="test")
    one = watch(kept, 0.3)
    step = one.judge(10_000)
    assert (step and step.action, kept.decisions()[-1].action) == ("grow", "grow")
    assert one.judge(10_000) is None  # its slates at the new share are still to come
    step = watch(kept, 0.3, slates=600).judge(10_000)
    assert step is not None
    assert step.action == "promote"
    pointer = kept.current()
    assert pointer is not None
    assert (pointer.version, pointer.canary) == (second, None)
    assert kept.decisions()[-1].measures["slates:canary"] == 600


def test_a_trial_is_dropped_with_its_canary_and_begun_anew_with_the_next(kept: Registry) -> None:
    first, second, third = kept.versions()
    kept.canary(second, 0.1, who="test")
    one = watch(kept, 0.1)
    kept.withdraw(who="ada")
    assert one.judge(10_000) is None  # overtaken
    one.follow()
    assert one.trial is None
    assert one.state() == b""
    kept.canary(third, 0.1, who="ada")
    one.follow()
    assert one.trial is not None
    assert (one.trial.current, one.trial.canary, one.trial.fresh) == (first, third, 0)


def test_a_trial_goes_on_after_a_restart_and_a_damaged_one_is_refused(kept: Registry) -> None:
    kept.canary(kept.versions()[1], 0.1, who="test")
    one = watch(kept, 0.3, slates=40)
    again = Watch(CONFIG, kept)
    again.load(one.state())
    again.follow()
    assert again.state() == one.state()
    with pytest.raises(CheckpointError, match="trial"):
        again.load(b"torn")
