"""The gate: harm is refused, too little data waits, equals pass, catastrophes act at once."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from ranker.config import Config, parse
from ranker.evidence import EMPTY
from ranker.gate import OVERALL, Gate, Sums
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
    verdict = Gate().judge(*windows(better))
    assert verdict.decision == "pass"
    assert verdict.measures[f"log_loss:{OVERALL}:change"] < 0
    assert verdict.measures["slates"] == 400


def test_a_candidate_poisoned_for_one_group_is_refused_and_the_group_is_named() -> None:
    verdict = Gate().judge(*windows(poisoned))
    assert verdict.decision == "refuse"
    assert any("sex=f" in reason for reason in verdict.reasons)
    assert not any("sex=m" in reason for reason in verdict.reasons)


def test_equal_candidates_are_refused_less_than_one_time_in_twenty() -> None:
    refused = sum(Gate().judge(*windows(equal, slates=200, seed=seed)).decision != "pass" for seed in range(20))
    assert refused <= 1


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
    assert all(decision == "pass" for _, decision in fair)
    assert abs(np.mean([change for change, _ in fair])) < 0.25 * abs(np.mean([change for change, _ in plain]))
