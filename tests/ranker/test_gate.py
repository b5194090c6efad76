"""The gate: harm is refused, too little data waits, equals pass, catastrophes act at once."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from ranker.config import Config, parse
from ranker.evidence import EMPTY
from ranker.gate import OVERALL, Anchor, Gate, Pair, Sums, Test, reach_of
from ranker.join import Example
from ranker.slates import Foreseen

CONFIG = parse(
    {"objectives": [{"name": "click", "event": "click"}, {"name": "hate", "event": "hate", "weight": -1.0}]},
)
Floats = NDArray[np.float64]


def example(ranking: str, user: str, labels_NT: Floats) -> Example:
    return Example(
        ranking=ranking,
        user=user,
        time=0,
        evidence=EMPTY,
        request={},
        items=tuple(f"i{n}" for n in range(len(labels_NT))),
        positions=np.arange(len(labels_NT), dtype=np.int32),
        labels_NT=labels_NT.astype(np.float32),
        mask_NT=np.ones_like(labels_NT, np.float32),
        closing=True,
    )


def windows(
    candidate: Callable[[str, Floats, np.random.Generator], Floats],
    *,
    slates: int = 400,
    users: int = 100,
    seed: int = 0,
    config: Config = CONFIG,
) -> tuple[Sums, Sums]:
    """Both windows over the same slates: the served version knows the chances up to noise; one user in five is f."""
    generator = np.random.default_rng(seed)
    new, old = Sums(config), Sums(config)
    for number in range(slates):
        user = int(generator.integers(users))
        group = "f" if user % 5 == 0 else "m"
        chance_NT = generator.beta(1, 4, (10, 2))
        labels_NT = (generator.random((10, 2)) < chance_NT).astype(np.float64)
        noisy_NT = np.clip(chance_NT + generator.normal(scale=0.05, size=(10, 2)), 0.01, 0.99)
        shown = example(f"r{number}", f"u{user}", labels_NT)
        old.add(shown, noisy_NT, {"sex": group})
        new.add(shown, candidate(group, chance_NT, generator), {"sex": group})
    return new, old


def equal(group: str, chance_NT: Floats, generator: np.random.Generator) -> Floats:
    return np.clip(chance_NT + generator.normal(scale=0.05, size=chance_NT.shape), 0.01, 0.99)


def better(group: str, chance_NT: Floats, generator: np.random.Generator) -> Floats:
    return chance_NT


def poisoned(group: str, chance_NT: Floats, generator: np.random.Generator) -> Floats:
    return 1 - chance_NT if group == "f" else chance_NT


def test_a_better_candidate_passes_and_the_numbers_say_so() -> None:
    verdict = Gate(full=400).judge(*windows(better))
    assert verdict.decision == "pass"
    assert verdict.measures[f"log_loss:{OVERALL}:change"] < 0
    assert verdict.measures["slates"] == 400


def test_a_candidate_poisoned_for_one_group_is_refused_and_the_group_is_named() -> None:
    verdict = Gate().judge(*windows(poisoned))
    assert verdict.decision == "refuse"
    assert any("sex=f" in reason for reason in verdict.reasons)
    assert not any("sex=m" in reason for reason in verdict.reasons)


def test_equal_candidates_are_never_refused_and_mostly_pass_on_a_full_window() -> None:
    decisions = [Gate(full=400).judge(*windows(equal, seed=seed)).decision for seed in range(10)]
    assert "refuse" not in decisions
    assert decisions.count("pass") >= 5


def test_what_is_only_not_shown_to_harm_is_held_and_the_verdict_says_what_is_missing() -> None:
    verdict = Gate(full=10_000).judge(*windows(equal, slates=250))
    assert verdict.decision == "hold"
    assert any("is not excluded" in reason and OVERALL in reason for reason in verdict.reasons)
    assert verdict.measures[f"ndcg@10:{OVERALL}:margin"] >= 0.02


def test_a_small_group_gets_a_wider_margin_and_the_verdict_names_it() -> None:
    measures = Gate(full=400).judge(*windows(better)).measures
    assert measures["ndcg@10:sex=f:margin"] > measures["ndcg@10:sex=m:margin"] > 0.02


def test_a_group_too_small_for_any_margin_is_no_hindrance_unless_harm_is_shown() -> None:
    rule = Gate(full=400, widest=0.03)
    verdict = rule.judge(*windows(better))
    assert verdict.decision == "pass"
    assert "ndcg@10:sex=f:margin" not in verdict.measures
    assert rule.judge(*windows(poisoned)).decision == "refuse"


def test_a_learner_that_went_wrong_late_is_refused_by_the_latest_slates() -> None:
    new, old = windows(better, slates=900, users=400)
    late, _ = windows(poisoned, slates=900, users=400)
    names = list(new.slates)
    new.slates.update({name: late.slates[name] for name in names[-150:]})
    verdict = Gate().judge(new, old)
    assert verdict.decision == "refuse"
    assert any("sex=f" in reason and "latest 200 slates" in reason for reason in verdict.reasons)


def test_a_loss_of_order_counts_beyond_what_choosing_the_places_is_worth() -> None:
    plain, fair = (Gate(full=400, favour=favour).judge(*windows(equal)).measures for favour in (0.0, 0.03))
    name = f"ndcg@10:{OVERALL}:change"
    assert fair[name] == pytest.approx(plain[name] + 0.03)
    assert Gate(full=400, favour=0.03).judge(*windows(poisoned)).decision == "refuse"


def test_harm_that_is_shown_to_be_small_is_taken_in_stride() -> None:
    little = Test("log_loss:overall", 1, 0.004, 0.0005, 10**6, 10**6)
    assert little.judged(0.05, 0.02, 200) == "excluded"
    assert Test("log_loss:overall", 1, 0.03, 0.005, 10**6, 10**6).judged(0.05, 0.02, 200) == "shown"
    assert Test("log_loss:overall", 1, 0.01, 0.02, 10**6, 10**6).judged(0.05, 0.02, 200) == "open"


def test_bounds_hold_at_every_look_of_a_walk_that_goes_nowhere() -> None:
    generator = np.random.default_rng(0)
    walks_RN = generator.normal(size=(400, 2000)).cumsum(1)
    looks = np.arange(100, 2001, 20)
    bounds = np.array([reach_of(float(n), 1e6, 0.05, 200) * np.sqrt(n) for n in looks])
    crossed = (walks_RN[:, looks - 1] > bounds).any(1).mean()
    assert crossed < 0.05
    assert (walks_RN[:, looks - 1] > 1.645 * np.sqrt(looks)).any(1).mean() > 0.15


def test_two_arms_of_different_people_are_compared_by_their_means() -> None:
    found = Test.unpaired("gain:overall", -1, [[2, 4], [3, 4]], [[5, 4], [5, 4]], 8)
    assert found.harm == pytest.approx(0.5)
    assert found.spread > 0
    assert Test.unpaired("gain:overall", -1, [[2, 4], [3, 4]], [[5, 4], [5, 4]], 8, scale=5.0).harm == pytest.approx(
        0.125
    )


def test_too_few_common_slates_are_a_hold() -> None:
    verdict = Gate().judge(*windows(poisoned, slates=15))
    assert verdict.decision == "hold"
    assert "15 slates" in verdict.reasons[0]


def test_slates_that_only_one_version_scored_do_not_count() -> None:
    new, old = windows(better, slates=300)
    for name in list(old.slates)[:150]:
        del old.slates[name]
    assert Gate().judge(new, old).decision == "hold"


def test_groups_with_few_users_are_not_tested() -> None:
    verdict = Gate(group=50).judge(*windows(poisoned, users=100))
    assert not any("sex=f" in name for name in verdict.measures)


def test_the_first_version_has_nothing_to_harm() -> None:
    new, _ = windows(equal, slates=1)
    assert Gate().judge(new, None).decision == "pass"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda g, c, r: np.full_like(c, np.nan), "not finite"),
        (lambda g, c, r: np.full_like(c, 0.2), "score the same"),
        (lambda g, c, r: np.clip(1 - c**4, 0.001, 0.999), "base rate"),
    ],
)
def test_catastrophes_are_refused_at_once(
    broken: Callable[[str, Floats, np.random.Generator], Floats], reason: str
) -> None:
    new, _ = windows(broken, slates=25)
    verdict = Gate().judge(new, None)
    assert verdict.decision == "refuse"
    assert any(reason in text for text in verdict.reasons)


def test_windows_slide_and_survive_a_restart() -> None:
    new, _ = windows(equal, slates=50)
    small = Sums(CONFIG, window=20)
    small.slates.update(new.slates)
    small.add(example("last", "u", np.eye(2)), np.eye(2) * 0.5 + 0.1)
    assert len(small) == 20
    assert list(small.slates)[-1] == "last"
    again = Sums(CONFIG)
    again.load(small.state())
    assert again.slates == small.slates
    assert again.state() == small.state()
    again.clear()
    assert len(again) == 0


def test_unknown_labels_do_not_enter_the_loss() -> None:
    shown = example("r", "u", np.array([[1.0, 0.0], [0.0, 0.0]]))
    shown.mask_NT[:, 1] = 0
    sums = Sums(CONFIG)
    sums.add(shown, np.array([[0.9, 0.9], [0.1, 0.9]]))
    judged = sums.slates["r"]
    assert judged.rows_T == (2, 0)
    assert judged.loss_T == pytest.approx((-2 * np.log(0.9), 0), abs=1e-6)
    assert judged.ndcg == 1


def looked_at(worth: bool, seed: int) -> tuple[float, str]:
    """Clicks fall where people look; the candidate is as good as the served version, but did not choose the places."""
    generator = np.random.default_rng(seed)
    new, old = Sums(CONFIG), Sums(CONFIG)
    seen_N = 1 / (1 + np.arange(10.0))
    for number in range(600):
        liking_N = generator.beta(2, 3, 10)
        served_N, other_N = (liking_N + generator.normal(scale=0.1, size=10) for _ in range(2))
        order = np.argsort(-served_N)
        labels_NT = np.zeros((10, 2))
        labels_NT[:, 0] = generator.random(10) < liking_N[order] * seen_N
        shown = example(f"r{number}", f"u{number % 150}", labels_NT)
        if worth:
            worth_NT = np.stack([seen_N, np.ones(10)], 1).astype(np.float32)
            shown = replace(shown, foreseen=Foreseen(worth_NT, worth_NT, worth_NT[:, 0]))
        chance_NT = np.stack([liking_N[order] * seen_N, np.full(10, 0.01)], 1)
        old.add(shown, chance_NT, utility_N=served_N[order])
        new.add(shown, chance_NT, utility_N=other_N[order])
    verdict = Gate().judge(new, old)
    return verdict.measures[f"ndcg@10:{OVERALL}:change"], verdict.decision


def test_whoever_chose_the_places_has_no_advantage() -> None:
    plain, fair = ([looked_at(worth, seed) for seed in range(5)] for worth in (False, True))
    assert all(decision == "refuse" for _, decision in plain)
    assert all(decision != "refuse" for _, decision in fair)
    assert abs(np.mean([change for change, _ in fair])) < 0.25 * abs(np.mean([change for change, _ in plain]))


def since(*, few: float = 0.0, most: float = 0.0, slates: int = 1500, full: int = 200, seed: int = 0) -> Anchor:
    """An anchor against which the few, a tenth of the people, and most have lost this share of both measures."""
    generator, anchor = np.random.default_rng(seed), Anchor(full=full)
    anchor.settle("v1")
    for number in range(slates):
        user = int(generator.integers(400))
        old, (group, lost) = float(generator.beta(4, 3)), ("f", few) if user % 10 == 0 else ("m", most)
        new, loss = (float(x + generator.normal(scale=0.05)) for x in ((1 - lost) * old, 2 * (1 + lost)))
        anchor.add(f"r{number}", Pair(f"u{user}", (f"sex={group}",), (loss, 2.0), (new, old)))
    return anchor


def test_log_loss_is_not_held_to_the_anchor() -> None:
    anchor = since()
    for name, pair in anchor.pairs.items():
        anchor.pairs[name] = Pair(pair.user, pair.groups, (3.0, 2.0), pair.ndcg)
    verdict = Gate(full=400).judge(*windows(better), anchor)
    assert verdict.decision == "pass"
    assert [name for name in verdict.measures if name.startswith("since:log_loss")] == []


def test_an_anchor_keeps_the_latest_slates_of_each_group_however_rare() -> None:
    anchor = Anchor(full=3)
    for number in range(20):
        group = "few" if number % 8 == 0 else "most"
        anchor.add(f"r{number}", Pair(f"u{number}", (group,), (1.0, 1.0), (1.0, 1.0)))
        anchor.add(f"r{number}", Pair("again", (group,), (1.0, 1.0), (1.0, 1.0)))
    assert list(anchor.pairs) == ["r0", "r8", "r16", "r17", "r18", "r19"]
    anchor.forget("u8")
    again = Anchor(full=3)
    again.load(anchor.state())
    for one in (anchor, again):
        one.add("r20", Pair("u20", ("few",), (1.0, 1.0), (1.0, 1.0)))
        assert list(one.pairs) == ["r0", "r16", "r17", "r18", "r19", "r20"]
        assert [one.kept(group) for group in ("few", "most", OVERALL)] == [3, 3, 3]
    assert anchor.state() == again.state()
    anchor.settle("v2")
    assert (anchor.version, len(anchor.pairs)) == ("v2", 0)


def test_an_anchor_never_keeps_more_than_it_may() -> None:
    anchor = Anchor(full=3, most=10)
    for number in range(50):
        anchor.add(f"r{number}", Pair("u", (f"g{number % 10}",), (1.0, 1.0), (1.0, 1.0)))
    assert list(anchor.pairs) == [f"r{number}" for number in range(40, 50)]
    assert anchor.kept("g0") == 1


def test_what_a_group_lost_since_the_anchor_is_refused_though_this_version_costs_little() -> None:
    new, old = windows(better)
    assert Gate(full=400).judge(new, old, since()).decision == "pass"
    verdict = Gate(full=400).judge(new, old, since(few=0.06))
    assert verdict.decision == "refuse"
    assert all(reason.startswith("since v1: ") and "of sex=f" in reason for reason in verdict.reasons)
    assert verdict.measures["since:ndcg@10:sex=f:change"] == pytest.approx(-0.06, abs=0.02)


def test_an_anchor_with_little_to_tell_says_nothing() -> None:
    assert Gate(full=400).judge(*windows(better), since(few=0.5, slates=150)).decision == "pass"


@pytest.mark.parametrize(
    ("anchor", "surpassed"),
    [
        (since(few=-0.05, most=-0.05, slates=3000), True),
        (since(few=-0.05, most=-0.05, slates=1500), False),  # too little is known of the few
        (since(few=0.03, most=-0.05, slates=3000), False),
        (since(slates=3000), False),
        (Anchor(), False),
    ],
)
def test_an_anchor_moves_when_a_gain_is_shown_and_on_full_windows_nobody_looks_worse(
    anchor: Anchor, surpassed: bool
) -> None:
    assert Gate().surpassed(anchor) is surpassed


def test_the_advantage_of_who_chose_the_places_is_not_the_anchors() -> None:
    anchor = since(few=-0.05, most=-0.05, slates=3000)
    name = "since:ndcg@10:overall:change"
    changes = [Gate(full=400, favour=favour).judge(*windows(better), anchor).measures[name] for favour in (0.0, 0.1)]
    assert changes[0] == changes[1]
    assert not Gate(favour=0.1).surpassed(anchor)
