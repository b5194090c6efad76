import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ranker.calibration import rerank as calibrated
from ranker.config import Guard
from ranker.guard import Candidates, Guarded, capped, dominant, protect, sycophancy_gap

#: three dramas that she loves, a comedy and two documentaries that the others prefer
IDS = ["d1", "d2", "d3", "c1", "o1", "o2"]
GENRES = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 2, 2]]
PERSONAL = np.array([0.9, 0.9, 0.8, 0.5, 0.4, 0.3], np.float32)
POPULATION = np.array([0.3, 0.3, 0.3, 0.5, 0.8, 0.7], np.float32)
FAN = np.array([1.0, 0.0, 0.0])
LIFTED = Guard(gap=math.inf, drift=1.0, novelty=0.0)


def by_utility(utility: np.ndarray) -> np.ndarray:
    order = np.argsort(-utility, kind="stable")
    return order[np.isfinite(utility[order])]


def guarded(policy: Guard, *, window: int = 2, target: np.ndarray = FAN, **others) -> Guarded:
    candidates = Candidates(ids=IDS, personal_N=PERSONAL, population_N=POPULATION, interests_NC=GENRES, **others)
    return protect(policy, by_utility(PERSONAL)[:window], PERSONAL, candidates, target_C=target, window=window)


def test_the_gap_is_what_the_slate_is_worth_more_to_her_than_to_the_population():
    assert sycophancy_gap(PERSONAL[:2], POPULATION[:2]) == pytest.approx(0.6)
    assert sycophancy_gap(POPULATION, POPULATION) == 0
    assert sycophancy_gap(PERSONAL[:0], POPULATION[:0]) == 0


def test_a_slate_within_its_bounds_is_left_as_it_is():
    found = guarded(Guard(gap=0.6001, novelty=0.4))
    assert found.order_S.tolist() == [0, 1]
    assert (found.interventions, found.gap) == ((), pytest.approx(0.6))


def test_a_gap_over_its_bound_is_blended_back_by_the_smallest_weight():
    found = guarded(Guard(gap=0.25, novelty=0.0))
    assert [IDS[row] for row in found.order_S] == ["d1", "o1"]
    (blend,) = found.interventions
    assert (blend.kind, blend.put_in, blend.taken_out) == ("blend", ("o1",), ("d2",))
    assert blend.numbers["gap_before"] == pytest.approx(0.6)
    assert found.gap == blend.numbers["gap_after"] == pytest.approx(0.1)
    # u and v on u's spread cross where the documentary passes the second drama
    other = PERSONAL.mean() + PERSONAL.std() / POPULATION.std() * (POPULATION - POPULATION.mean())
    crossing = (PERSONAL[1] - PERSONAL[4]) / (PERSONAL[1] - PERSONAL[4] + other[4] - other[1])
    assert blend.numbers["weight"] - 1 / 64 <= crossing <= blend.numbers["weight"]
    assert "0.60 more" in blend.reason
    assert "may be 0.25" in blend.reason


def test_no_more_is_exchanged_than_the_bound_asks_for():
    # the blended order would hold o1, c1 and o2; the slate need only give up its last drama to keep the bound
    found = guarded(Guard(gap=0.3, novelty=0.0), window=3)
    assert [IDS[row] for row in found.order_S] == ["d1", "d2", "o1"]
    assert found.gap == pytest.approx((0.6 + 0.6 - 0.4) / 3)


def test_a_bound_that_nothing_can_keep_ends_in_the_populations_order():
    found = guarded(Guard(gap=0.0, novelty=0.0), window=5)
    assert found.interventions[0].numbers["weight"] == 1
    assert POPULATION[found.order_S].sum() == pytest.approx(np.sort(POPULATION)[1:].sum())


def test_where_all_candidates_are_shown_nothing_is_blended():
    found = guarded(Guard(gap=0.0, novelty=0.0), window=6)
    assert (found.order_S.tolist(), found.interventions) == (by_utility(PERSONAL).tolist(), ())


def test_novelty_puts_the_best_item_outside_the_dominant_interests_in_the_last_place():
    found = guarded(Guard(gap=math.inf, novelty=0.5))
    assert [IDS[row] for row in found.order_S] == ["d1", "c1"]
    (novelty,) = found.interventions
    assert (novelty.kind, novelty.put_in, novelty.taken_out) == ("novelty", ("c1",), ("d2",))
    assert novelty.numbers == {"asked": 1.0, "put_in": 1.0}


def test_whoever_is_unknown_has_nothing_old_and_nothing_new():
    assert guarded(Guard(gap=math.inf, novelty=1.0), target=np.zeros(3)).interventions == ()


def test_pinned_items_keep_their_places_and_closed_ones_stay_out():
    pinned = np.array([False, True, False, False, False, False])
    found = guarded(Guard(gap=math.inf, novelty=0.5), fixed_N=pinned)
    assert [IDS[row] for row in found.order_S] == ["c1", "d2"]
    closed = np.array([True, True, True, False, True, False])
    found = guarded(Guard(gap=math.inf, novelty=1.0), open_N=closed)
    assert [IDS[row] for row in found.order_S] == ["d1", "o1"]


def test_an_interest_that_is_not_dominant_keeps_its_places():
    # half drama, half comedy films: one of two places is the comedy's by right, and they hold it
    interests = np.array([[0.6, 0.4, 0], [0.6, 0.4, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]], np.float32)
    candidates = Candidates(ids=IDS, personal_N=PERSONAL, population_N=POPULATION, interests_NC=interests)
    policy, target = Guard(gap=math.inf, novelty=0.5, dominant=0.5), np.array([0.6, 0.4, 0.0])
    found = protect(policy, np.array([2, 0, 1, 3]), PERSONAL, candidates, target_C=target, window=4)
    assert [IDS[row] for row in found.order_S] == ["o1", "d1", "d2", "c1"]


def test_where_all_are_placed_what_is_put_in_changes_places():
    candidates = Candidates(ids=IDS, personal_N=PERSONAL, population_N=POPULATION, interests_NC=GENRES)
    policy = Guard(gap=math.inf, novelty=0.5)
    found = protect(policy, np.arange(6), PERSONAL, candidates, target_C=FAN, window=2)
    assert [IDS[row] for row in found.order_S] == ["d1", "c1", "d3", "d2", "o1", "o2"]


def test_dominant_interests_are_the_fewest_that_hold_the_share():
    assert dominant(np.array([0.5, 0.3, 0.2]), 0.8).tolist() == [True, True, False]
    assert dominant(np.array([0.5, 0.3, 0.2]), 0.81).tolist() == [True, True, True]
    assert dominant(np.array([0.25, 0.25, 0.5]), 0.6).tolist() == [True, False, True]
    assert dominant(np.zeros(0), 0.8).tolist() == []


def test_a_profile_is_held_at_the_bound_from_its_long_term_self():
    held, drift = capped(np.array([1.0, 0.0, 0.0]), np.array([0.4, 0.4, 0.2]), 0.3)
    assert held == pytest.approx([0.7, 0.2, 0.1])
    assert drift is not None
    assert drift.numbers == pytest.approx({"distance_before": 0.6, "distance_after": 0.3, "bound": 0.3})
    for recent, long, bound in ((FAN, FAN, 0.0), (FAN, 0 * FAN, 0.1), (0 * FAN, FAN, 0.1), (FAN, FAN[::-1], 1.0)):
        held, drift = capped(recent, long, bound)
        assert (held.tolist(), drift) == (recent.tolist(), None)


@given(
    recent=st.lists(st.floats(0.01, 1), min_size=4, max_size=4),
    long=st.lists(st.floats(0.01, 1), min_size=4, max_size=4),
    bound=st.floats(0, 1),
)
def test_a_capped_profile_is_a_profile_within_the_bound_and_stays_there(recent, long, bound):
    recent_C, long_C = np.array(recent) / sum(recent), np.array(long) / sum(long)
    held_C, drift = capped(recent_C, long_C, bound)
    assert held_C.sum() == pytest.approx(1)
    assert (held_C >= -1e-12).all()
    distance = 0.5 * np.abs(held_C - long_C).sum()
    assert distance <= bound + 1e-9
    assert drift is not None or held_C.tolist() == recent_C.tolist()
    again_C, _ = capped(held_C, long_C, bound)
    assert again_C == pytest.approx(held_C, abs=1e-9)


def case_of(seed, count, window, *, other=0.0, missing=0.0, known=1, whole=False):
    generator = np.random.default_rng(seed)
    interests = generator.random((count, 5)) * (generator.random((count, 5)) < 0.4)
    totals = interests.sum(1, keepdims=True)
    interests = np.divide(interests, totals, out=np.zeros_like(interests), where=totals > 0).astype(np.float32)
    personal, population, noise = generator.random((3, count)).astype(np.float32)
    utility = (personal + other * noise).astype(np.float32)
    utility[generator.random(count) < missing] = np.nan
    target = generator.dirichlet(np.full(5, 0.3)) * known
    candidates = Candidates(
        ids=[f"i{row}" for row in range(count)], personal_N=personal, population_N=population, interests_NC=interests
    )
    return candidates, utility, target, window, whole


cases = st.builds(
    case_of,
    st.integers(0, 10_000),
    st.integers(1, 40),
    st.integers(1, 12),
    other=st.sampled_from([0.0, 0.5]),
    missing=st.sampled_from([0.0, 0.2]),
    known=st.sampled_from([0, 1, 1, 1]),
    whole=st.booleans(),
)


def applied(policy: Guard, case, order: np.ndarray | None = None) -> tuple[np.ndarray, Guarded]:
    candidates, utility, target, window, whole = case
    if order is None:
        order = by_utility(utility)
        slots = min(window, len(order))
        picked = calibrated(utility[order], candidates.interests_NC[order], target, slots=slots, strength=0.3)
        order = np.concatenate([order[picked], np.delete(order, picked) if whole else order[:0]])
    return order, protect(policy, order, utility, candidates, target_C=target, window=window)


policies = st.builds(
    Guard, gap=st.sampled_from([0.0, 0.05, 0.2, 0.5, math.inf]), novelty=st.floats(0, 1), dominant=st.floats(0.1, 1)
)


@settings(max_examples=120)
@example(case=case_of(9, 20, 6), policy=Guard(gap=0.05, novelty=1, dominant=0.5))  # a blend that makes room for novelty
@given(case=cases, policy=policies)
def test_a_guarded_slate_is_as_long_as_before_and_within_its_bounds(case, policy):
    candidates, utility, target, window, _ = case
    before, found = applied(policy, case)
    shown = found.order_S[:window]
    # never fewer, nothing twice, nothing that may not be shown
    assert len(set(found.order_S.tolist())) == len(found.order_S) == len(before)
    assert np.isfinite(utility[found.order_S]).all()
    assert found.gap == pytest.approx(sycophancy_gap(candidates.personal_N[shown], candidates.population_N[shown]))
    total = candidates.interests_NC.sum(1)
    familiar = dominant(target, policy.dominant)
    novel = (candidates.interests_NC @ familiar.astype(np.float32) < 0.5 * total) & (total > 0)
    waiting = np.isfinite(utility)
    waiting[shown] = False
    # the gap is kept, or all is the population's order but what novelty needs
    old = shown[~novel[shown]] if policy.novelty and target.any() else shown
    if found.gap > policy.gap and waiting.any() and len(old):
        assert candidates.population_N[waiting].max() <= candidates.population_N[old].min() + 1e-6
        assert all(one.numbers["weight"] == 1 for one in found.interventions[-1:] if one.kind == "blend")
    # enough is new, or no more could be put in without taking what others are entitled to
    asked = int(policy.novelty * len(shown) + 1e-9) if target.any() else 0
    waiting &= novel
    if novel[shown].sum() < asked and waiting.any():
        held = candidates.interests_NC[shown].sum(0, dtype=np.float64)
        entitled = np.where(familiar, 0, np.floor(len(shown) * target + 1e-9))
        for row in shown[~novel[shown]]:
            assert (held - candidates.interests_NC[row] < np.minimum(held, entitled) - 1e-7).any()


@settings(max_examples=60)
@example(case=case_of(9, 20, 6), policy=Guard(gap=0.05, novelty=1, dominant=0.5))  # a blend that makes room for novelty
@given(case=cases, policy=policies)
def test_the_guard_is_deterministic_idempotent_within_its_bounds_and_changes_nothing_it_was_given(case, policy):
    candidates, utility, target, _, _ = case
    kept = [part.copy() for part in (utility, target, candidates.personal_N, candidates.population_N)]
    _, first = applied(policy, case)
    _, second = applied(policy, case)
    for part, before in zip((utility, target, candidates.personal_N, candidates.population_N), kept, strict=True):
        np.testing.assert_array_equal(part, before)
    assert first.order_S.tolist() == second.order_S.tolist()
    assert first.interventions == second.interventions
    if first.gap <= policy.gap:  # where nothing can keep the bound, another choice of new items may come nearer
        _, again = applied(policy, case, first.order_S)
        assert again.order_S.tolist() == first.order_S.tolist()
        assert not again.interventions


@settings(max_examples=40)
@given(case=cases)
def test_lifted_bounds_change_nothing(case):
    before, found = applied(LIFTED, case)
    assert found.order_S.tolist() == before.tolist()
    assert found.interventions == ()
