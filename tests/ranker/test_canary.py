"""Two arms: who is drawn, and when the canary grows, is withdrawn, is promoted."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.canary import Trial, drawn
from ranker.config import Canary, Config, Learning, Objective
from ranker.evidence import EMPTY
from ranker.join import Example

RULE = Canary(ladder=(0.1, 0.5), slates=100, window=1000.0, tolerance=0.15)
CONFIG = Config(
    objectives=(Objective(name="click", event="click"), Objective(name="hate", event="hate", weight=-1.0)),
    learning=Learning(minimum_group=10),
    canary=RULE,
)


def slate(number: int, user: str, arm: str, liked: float, *, time: int = 10_000, told: float = 0.3) -> Example:
    """Ten places; the served version foretold `told`, she clicks with the chance `liked` and hates the rest rarely."""
    generator = np.random.default_rng([number, arm == "canary"])
    labels_NT = np.stack([generator.random(10) < liked, generator.random(10) < 0.05], 1).astype(np.float32)
    chances_NT = np.stack([told + np.linspace(0, 0.02, 10), np.full(10, 0.05)], 1).astype(np.float32)
    return Example(
        ranking=f"{arm}{number}",
        user=user,
        time=time,
        evidence=EMPTY,
        request={},
        items=tuple(f"i{n}" for n in range(10)),
        positions=np.arange(10, dtype=np.int32),
        labels_NT=labels_NT,
        mask_NT=np.ones_like(labels_NT),
        served_NT=chances_NT,
        score_N=chances_NT @ np.array([1, -1], np.float32),
        version={"canary": "new", "current": "old"}.get(arm),
        arm=arm,
        closing=True,
    )


def trial(liked: float, slates: int = 300, *, few: float | None = None, config: Config = CONFIG) -> Trial:
    """Both arms' slates; the current version earns .3, the canary `liked`, and `few` from one person in four."""
    one = Trial(config, "old", "new", began=5000)
    for number in range(slates):
        user = number % 60
        groups = {"sex": "f" if user % 4 == 0 else "m"}
        mine = few if few is not None and user % 4 == 0 else liked
        one.add(slate(number, f"u{user}", "current", 0.3), groups)
        one.add(slate(number, f"v{user}", "canary", mine), groups)
    return one


@given(st.text(max_size=20), st.text(min_size=1, max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_only_adds_people(user: str, version: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert drawn(user, version, high) or not drawn(user, version, low)
    assert not drawn(user, version, 0.0)


def test_shares_are_met_and_another_canary_draws_others() -> None:
    users = [f"u{n}" for n in range(4000)]
    first, second = ({user for user in users if drawn(user, version, 0.2)} for version in ("v2", "v3"))
    assert abs(len(first) / 4000 - 0.2) < 0.03
    assert abs(len(first & second) / len(first) - 0.2) < 0.06


def test_a_canary_that_earns_as_much_climbs_the_ladder_and_is_promoted() -> None:
    one = trial(0.3)
    step = one.judge(0.1, 10_000)
    assert (step.action, step.share) == ("grow", 0.5)
    one.grown(20_000)
    assert one.judge(0.5, 30_000).action == "hold"
    for number in range(1000, 1200):
        one.add(slate(number, f"v{number % 60}", "canary", 0.3, time=25_000), {})
        one.add(slate(number, f"u{number % 60}", "current", 0.3, time=25_000), {})
    step = one.judge(0.5, 30_000)
    assert (step.action, step.verdict.decision) == ("promote", "pass")
    assert step.verdict.measures["slates:canary"] == 500


def test_a_canary_that_earns_less_is_withdrawn_and_the_reason_says_by_how_much() -> None:
    step = trial(0.15).judge(0.1, 10_000)
    assert step.action == "withdraw"
    assert step.verdict.decision == "refuse"
    assert any("gain of overall fell by" in reason for reason in step.verdict.reasons)
    assert step.verdict.measures["gain:overall:change"] < -0.3


def test_a_canary_that_harms_one_group_is_withdrawn_for_that_group() -> None:
    step = trial(0.32, 600, few=0.1).judge(0.1, 10_000)
    assert step.action == "withdraw"
    assert any("sex=f" in reason for reason in step.verdict.reasons)
    assert not any("sex=m" in reason for reason in step.verdict.reasons)


def test_equal_arms_are_not_withdrawn_for_harm() -> None:
    users = {seed: Trial(CONFIG, "old", "new", began=0) for seed in range(10)}
    for seed, one in users.items():
        for number in range(200):
            one.add(slate(number + 1000 * seed, f"u{number % 50}", "current", 0.3), {"sex": "fm"[number % 2]})
            one.add(slate(number + 1000 * seed, f"v{number % 50}", "canary", 0.3), {"sex": "fm"[number % 2]})
            if number % 20 == 19:
                assert one.judge(0.1, 10_000).action in ("hold", "grow")


def test_probabilities_that_are_far_off_withdraw_it_at_once() -> None:
    one = Trial(CONFIG, "old", "new", began=0)
    for number in range(25):
        one.add(slate(number, f"v{number}", "canary", 0.02, told=0.95), {})
    step = one.judge(0.1, 10_000)
    assert step.action == "withdraw"
    assert "base rate" in step.verdict.reasons[0]


def test_what_is_not_shown_to_be_harmless_within_the_window_is_withdrawn() -> None:
    one = trial(0.3, 30)
    assert one.judge(0.1, 1_004_000).action == "hold"
    step = one.judge(0.1, 1_006_000)
    assert step.action == "withdraw"
    assert "within 1000 s" in step.verdict.reasons[0]


def test_slates_of_other_versions_arms_and_times_do_not_count() -> None:
    one = Trial(CONFIG, "old", "new", began=5000)
    good = slate(0, "u", "canary", 0.3)
    for other in (
        replace(good, version="older"),
        replace(good, arm="current"),
        replace(good, time=4000),
        replace(good, served_NT=None),
        replace(good, version=None, arm=None),
    ):
        one.add(other, {})
    assert [len(sums) for sums in one.arms.values()] == [0, 0]
    one.add(good, {})
    one.add(replace(good, ranking="x", arm=None, version="old"), {})
    assert [len(sums) for sums in one.arms.values()] == [1, 1]
    one.forget("u")
    assert [len(sums) for sums in one.arms.values()] == [0, 0]


def test_a_trial_goes_on_after_a_restart() -> None:
    one = trial(0.3, 120)
    one.grown(8000)
    again = Trial.load(CONFIG, one.state())
    assert again.state() == one.state()
    assert (again.since, again.fresh) == (8000, 0)
    assert again.judge(0.1, 10_000) == one.judge(0.1, 10_000)
    with pytest.raises(msgspec.MsgspecError):
        Trial.load(CONFIG, b"torn")
