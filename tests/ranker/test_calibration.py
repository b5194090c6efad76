from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from experiments.optimum import Problem, gain, solve
from ranker.calibration import STEPS, Wish, personal, rerank, settled, to_target
from ranker.catalogue import Catalogue, Item
from ranker.config import Calibration, Config, Graded, Objective
from ranker.divergence import DIVERGENCES, attention, miscalibration, shares
from ranker.errors import RequestError
from ranker.evidence import EMPTY, Act, Evidence, Mean
from ranker.interests import HALF_LIFE_MS, profile, worth

LIKE = Objective(name="like", event="like")
DISMISS = Objective(name="dismiss", event="dismiss", weight=-2.0)
STARS = Objective(name="good", event="good", graded=Graded(event="rate", at_least=4.0))


def catalogue() -> Catalogue:
    known = Catalogue(Config(objectives=(LIKE,), interests="genres"))
    known.put(Item("a", {"genres": ["drama"]}))
    known.put(Item("b", {"genres": ["comedy", "drama"]}))
    known.put(Item("c", {}))
    return known


def objective_value(rows, utility, interests, target, strength, *, smoothing=0.01) -> float:
    """The set function that greedy climbs, written from its definition."""
    spread = utility.max() - utility.min()
    scaled = (utility - utility.min()) / spread if spread else utility * 0
    slots = len(rows)
    shown = interests[list(rows)].sum(0) / slots
    wanted = target > 0
    held = (1 - smoothing) * shown[wanted] + smoothing * target[wanted]
    return (1 - strength) * scaled[list(rows)].mean() + strength * float(target[wanted] @ np.log(held))


def small_case(seed: int, items: int = 8, categories: int = 4):
    draw = np.random.default_rng(seed)
    interests = draw.random((items, categories)) * (draw.random((items, categories)) < 0.5)
    totals = interests.sum(1, keepdims=True)
    interests = np.divide(interests, totals, out=np.zeros_like(interests), where=totals > 0)
    return draw.random(items), interests, draw.dirichlet(np.ones(categories))


def test_a_profile_is_the_share_of_each_category_in_the_positive_acts():
    evidence = Evidence(history=(Act("a", "like", 1), Act("b", "like", 1), Act("c", "like", 1)))
    known = catalogue()
    assert known.categories == ["drama", "comedy"]
    assert profile(evidence, known, 5, objectives=(LIKE,)) == pytest.approx([0.75, 0.25])


def test_only_positive_acts_count_and_only_up_to_now():
    acts = (Act("a", "like", 1), Act("b", "dismiss", 1), Act("b", "view", 2), Act("b", "like", 9))
    assert profile(Evidence(history=acts), catalogue(), 5, objectives=(LIKE, DISMISS)) == pytest.approx([1, 0])


def test_an_act_of_one_half_life_ago_counts_half():
    acts = (Act("b", "like", 0), Act("a", "like", HALF_LIFE_MS))
    assert profile(Evidence(history=acts), catalogue(), 2 * HALF_LIFE_MS) == pytest.approx([1.25 / 1.5, 0.25 / 1.5])


def test_no_history_gives_no_profile_and_the_population_fills_in_where_it_is_given():
    assert not profile(EMPTY, catalogue(), 5).any()
    filled = profile(EMPTY, catalogue(), 5, population_C=np.array([0.5, 0.5]))
    assert filled == pytest.approx([0.5, 0.5])
    one = Evidence(history=(Act("a", "like", 1),))
    mixed = profile(one, catalogue(), 5, population_C=np.array([0.0, 1.0]), pseudo_acts=3.0)
    assert mixed == pytest.approx([0.25, 0.75])


def test_acts_on_unknown_items_are_left_out():
    assert not profile(Evidence(history=(Act("zz", "like", 1),)), catalogue(), 5).any()


def test_what_an_act_is_worth_follows_the_objectives():
    means = Evidence(means={"watch": Mean(2, 20.0), "rate": Mean(2, 6.0)})
    watch = Objective(name="watch", event="watch", kind="value", weight=0.5)
    above = Objective(name="above", event="rate", threshold="user-mean")
    low = Objective(name="low", event="x", weight=-1.0, graded=Graded(event="rate", at_most=2.0))
    assert worth(Act("a", "rate", 0, 4.0), means, (STARS,)) == 1
    assert worth(Act("a", "rate", 0, 3.5), means, (STARS,)) == 0
    assert worth(Act("a", "rate", 0, None), means, (STARS,)) == 0
    assert worth(Act("a", "watch", 0, 11.0), means, (watch,)) == 0.5
    assert worth(Act("a", "watch", 0, 10.0), means, (watch,)) == 0
    assert worth(Act("a", "rate", 0, 3.5), means, (above,)) == 1
    assert worth(Act("a", "rate", 0, 3.5), EMPTY, (above,)) == 0
    assert worth(Act("a", "rate", 0, 1.0), means, (above, low)) == 0
    assert worth(Act("a", "dismiss", 0), means, (DISMISS,)) == 0


def test_the_chosen_set_is_the_best_one_of_a_tiny_case():
    utility = np.array([0.9, 0.8, 0.7, 0.1])
    interests = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    target = np.array([0.5, 0.5])
    assert rerank(utility, interests, target, slots=2, strength=0.9).tolist() == [0, 3]
    best = max(combinations(range(4), 2), key=lambda rows: objective_value(rows, utility, interests, target, 0.9))
    assert best == (0, 3)


def test_lambda_zero_is_the_order_of_utility():
    utility, interests, target = small_case(1)
    chosen = rerank(utility, interests, target, slots=5, strength=0.0)
    assert chosen.tolist() == np.argsort(-utility)[:5].tolist()


def test_lambda_one_calibrates_best_and_lets_utility_break_ties():
    utility = np.array([0.1, 0.2, 0.9, 0.8])
    interests = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    chosen = rerank(utility, interests, np.array([0.5, 0.5]), slots=2, strength=1.0)
    assert chosen.tolist() == [2, 1]


def test_without_a_profile_or_with_places_for_all_the_order_is_that_of_utility():
    utility, interests, target = small_case(2)
    best = np.argsort(-utility)
    assert rerank(utility, interests, target * 0, slots=3, strength=0.5).tolist() == best[:3].tolist()
    assert rerank(utility, interests, target, slots=99, strength=0.5).tolist() == best.tolist()
    assert rerank(utility, interests[:, :0], target[:0], slots=3, strength=0.5).tolist() == best[:3].tolist()


def test_candidates_without_categories_may_be_chosen_for_their_utility():
    utility = np.array([1.0, 0.2, 0.1])
    interests = np.array([[0.0, 0], [1, 0], [0, 1]])
    target = np.array([0.5, 0.5])
    assert 0 in rerank(utility, interests, target, slots=2, strength=0.1)
    assert 0 not in rerank(utility, interests, target, slots=2, strength=0.9)


def test_equal_utilities_leave_the_choice_to_calibration():
    interests = np.array([[1.0, 0], [1, 0], [0, 1]])
    assert rerank(np.ones(3), interests, np.array([0.5, 0.5]), slots=2, strength=0.3).tolist() == [0, 2]


def test_scores_are_scaled_so_that_their_unit_does_not_matter():
    utility, interests, target = small_case(3, items=12)
    once = rerank(utility, interests, target, slots=4, strength=0.5)
    assert rerank(1000 * utility - 7, interests, target, slots=4, strength=0.5).tolist() == once.tolist()


@given(st.integers(0, 10**6), st.floats(0.05, 1.0))
@settings(max_examples=60)
def test_greedy_reaches_at_least_its_guaranteed_share_of_the_optimum(seed, strength):
    utility, interests, target = small_case(seed)
    slots = 3

    def gain(rows):  # over the empty set, whose log terms are log(alpha p)
        empty = strength * float(target @ np.log(0.01 * target))
        return objective_value(rows, utility, interests, target, strength) - empty

    optimum = max(gain(rows) for rows in combinations(range(len(utility)), slots))
    reached = gain(rerank(utility, interests, target, slots=slots, strength=strength))
    assert (1 - 1 / np.e) * optimum - 1e-9 <= reached <= optimum + 1e-9


def plainly(utility, interests, target, *, slots, strength, divergence, pinned=(), floor=False):
    """Greedy written from its definition, without any increments: the rows as they are picked."""
    order = np.argsort(-utility, kind="stable").tolist()
    scaled = (utility - utility.min()) / np.ptp(utility)
    held, owed = interests > 0, np.floor(slots * target + 1e-9)
    owed = np.minimum(owed, held.sum(0)) if floor else owed * 0
    picked = list(pinned)
    while len(picked) < slots:
        due = np.maximum(0, owed - held[picked].sum(0))
        left = [n for n in order if n not in picked]
        if due.sum() >= slots - len(picked):
            left = [n for n in left if held[n, due > 0].any()] or left

        def value(n):
            shown = 0.99 * interests[[*picked, n]].sum(0) / slots + 0.01 * target
            return (1 - strength) * scaled[n] / slots + strength * gain(shown, target, divergence).sum()

        values = np.array([value(n) for n in left])
        picked.append(left[int((values >= values.max() - 1e-12).argmax())])
    return picked


@given(
    st.integers(0, 10**6),
    st.fixed_dictionaries(
        {
            "slots": st.integers(3, 12),
            "strength": st.floats(0.01, 1),
            "divergence": st.sampled_from(DIVERGENCES),
            "pinned": st.lists(st.integers(0, 15), max_size=3, unique=True),
            "floor": st.booleans(),
        }
    ),
)
@settings(max_examples=100)
def test_the_incremental_terms_pick_what_plain_greedy_picks(seed, how):
    utility, interests, target = small_case(seed, items=11, categories=6)
    twice = np.arange(16) % 11  # some candidates are each other's equal: the first one is taken
    utility, interests, target[seed % 6] = utility[twice], interests[twice], 0.0  # one category is not wanted
    target /= target.sum()
    picked = plainly(utility, interests, target, **how)
    assert rerank(utility, interests, target, **how, order=1.0).tolist() == picked
    shown = rerank(utility, interests, target, **how).tolist()
    pins = len(how["pinned"])
    place = np.argsort(-utility, kind="stable").tolist().index
    assert shown == [*picked[:pins], *sorted(picked[pins:], key=place)]


@given(arrays(np.float64, 5, elements=st.floats(0, 1)), arrays(np.float64, 5, elements=st.floats(0, 1)))
def test_miscalibration_is_never_negative_and_zero_only_where_shares_are_equal(p, q):
    if not p.sum() or not q.sum():
        return
    p, q = p / p.sum(), q / q.sum()
    found = miscalibration(p, q)
    assert found >= 0
    assert miscalibration(p, p) == pytest.approx(0, abs=1e-12)
    if np.abs(p - q).max() > 1e-3:
        assert found > 0


def test_a_missing_category_costs_no_more_than_its_smoothing_allows():
    assert miscalibration(np.array([1.0, 0]), np.array([0, 1.0]), 0.01) == pytest.approx(-np.log(0.01))


def test_shares_weigh_the_items_and_pass_over_those_without_categories():
    interests = np.array([[1.0, 0], [0, 1], [0, 0]])
    assert shares(interests) == pytest.approx([0.5, 0.5])
    assert shares(interests, np.array([3.0, 1, 9])) == pytest.approx([0.75, 0.25])
    assert not shares(interests[2:]).any()


def test_nothing_that_is_given_is_changed():
    utility, interests, target = small_case(5)
    before = utility.copy(), interests.copy(), target.copy()
    rerank(utility, interests, target, slots=4, strength=0.7)
    assert all(np.array_equal(a, b) for a, b in zip(before, (utility, interests, target), strict=True))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("seed", range(4))
def test_greedy_comes_close_to_the_exact_optimum_in_every_divergence(seed, divergence):
    utility, interests, target = small_case(seed, items=40, categories=6)
    problem = Problem(utility, interests, target, slots=8, strength=0.5, divergence=divergence)
    best = solve(problem)
    assert best.bound - best.value < 1e-6
    reached = problem.value(rerank(utility, interests, target, slots=8, strength=0.5, divergence=divergence))
    empty = problem.value(np.zeros(0, np.int64))
    assert reached <= best.value + 1e-9
    assert reached - empty >= 0.97 * (best.value - empty)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_set_for_a_divergence_is_closer_in_it_than_plain_order(divergence):
    utility, interests, target = small_case(11, items=60, categories=6)
    near, plain = (
        miscalibration(
            target, shares(interests[rerank(utility, interests, target, slots=10, strength=s, divergence=divergence)])
        )
        for s in (0.9, 0.0)
    )
    assert near < plain


def test_a_floor_gives_a_small_interest_the_place_that_it_is_due():
    utility = np.array([0.9, 0.8, 0.7, 0.6, 0.1])
    interests = np.array([[1.0, 0], [1, 0], [1, 0], [1, 0], [0, 1]])
    target = np.array([0.7, 0.3])
    assert 4 not in rerank(utility, interests, target, slots=4, strength=0.01)
    assert 4 in rerank(utility, interests, target, slots=4, strength=0.01, floor=True)


@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.01, 1), st.sampled_from(DIVERGENCES))
@settings(max_examples=60)
def test_every_interest_has_at_least_the_whole_places_that_it_is_due_while_candidates_hold_it(
    seed, slots, strength, divergence
):
    utility, interests, target = small_case(seed, items=20, categories=5)
    chosen = rerank(utility, interests, target, slots=slots, strength=strength, divergence=divergence, floor=True)
    held, there = (interests[chosen] > 0).sum(0), (interests > 0).sum(0)
    assert (held >= np.minimum(np.floor(slots * target), there)).all()
    assert len(set(chosen.tolist())) == slots


@given(st.integers(0, 10**6), st.lists(st.integers(0, 11), max_size=4, unique=True), st.floats(0, 1), st.booleans())
@settings(max_examples=60)
def test_pinned_candidates_stand_first_as_given_and_the_others_calibrate_around_them(seed, pinned, strength, floor):
    utility, interests, target = small_case(seed, items=12)
    chosen = rerank(utility, interests, target, slots=6, strength=strength, pinned=pinned, floor=floor).tolist()
    assert chosen[: len(pinned)] == pinned
    assert len(set(chosen)) == 6
    rest = utility[chosen[len(pinned) :]]
    assert (np.diff(rest) <= 0).all()


def test_what_is_pinned_counts_as_the_interest_that_it_holds():
    utility = np.array([0.9, 0.8, 0.7, 0.6])
    interests = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    chosen = rerank(utility, interests, np.array([0.5, 0.5]), slots=2, strength=0.9, pinned=[3])
    assert chosen.tolist() == [3, 0]


def test_order_goes_from_that_of_utility_to_that_of_greedy_and_minorities_rise():
    utility = np.array([0.9, 0.8, 0.7, 0.6, 0.1])
    interests = np.array([[1.0, 0], [1, 0], [1, 0], [1, 0], [0, 1]])
    target = np.array([0.6, 0.4])
    ranks = {
        order: rerank(utility, interests, target, slots=4, strength=0.9, order=order).tolist() for order in (0, 0.5, 1)
    }
    assert ranks[0] == [0, 1, 2, 4]
    assert ranks[1].index(4) == 1
    assert all(set(found) == set(ranks[0]) for found in ranks.values())
    seen = {order: shares(interests[found], attention(4))[1] for order, found in ranks.items()}
    assert seen[0] < seen[0.5] <= seen[1]


def halved(reaches) -> float:
    """Plain bisection."""
    low, high = 0, STEPS
    if reaches(0.0) or not reaches(1.0):
        return 0.0 if reaches(0.0) else 1.0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle / STEPS) else (middle, high)
    return high / STEPS


@given(st.integers(0, 10**6), st.floats(0, 2))
@settings(max_examples=40)
def test_a_target_is_met_by_the_smallest_lambda_that_meets_it_within_a_step(seed, target):
    utility, interests, profile_C = small_case(seed, items=14)
    chosen, strength = to_target(utility, interests, profile_C, slots=5, target=target)

    def far(at):
        return miscalibration(profile_C, shares(interests[rerank(utility, interests, profile_C, slots=5, strength=at)]))

    assert chosen.tolist() == rerank(utility, interests, profile_C, slots=5, strength=strength).tolist()
    assert strength == halved(lambda at: far(at) <= target)
    if far(1.0) > target and far(0.0) > target:
        assert strength == 1
    else:
        assert far(strength) <= target
        assert strength == 0 or far(strength - 1 / STEPS) > target


def test_a_personal_lambda_grows_with_what_is_known():
    found = [personal(0.6, acts, 10.0) for acts in (0.0, 10.0, 1e9)]
    assert found == pytest.approx([0.0, 0.3, 0.6])


@pytest.mark.parametrize(
    ("asked", "strength", "is_personal", "target", "order"),
    [
        (None, 0.4, False, 0.1, 0.2),
        (0.9, 0.9, False, None, 0.2),
        ("personal", 0.4, True, None, 0.2),
        (Wish(target=0.3), 0.4, False, 0.3, 0.2),
        (Wish(order=1.0), 0.4, False, 0.1, 1.0),
        (Wish(strength=0.7, personal=True), 0.7, True, None, 0.2),
    ],
)
def test_a_request_replaces_what_it_names(asked, strength, is_personal, target, order):
    found = settled(Calibration(strength=0.4, target=0.1, order=0.2), asked)
    assert (found.strength, found.personal, found.target, found.order) == (strength, is_personal, target, order)


@pytest.mark.parametrize(
    ("asked", "thing"),
    [
        (1.5, "calibration"),
        (float("nan"), "calibration"),
        ("private", "calibration"),
        (Wish(strength=-0.1), "calibration.strength"),
        (Wish(order=2.0), "calibration.order"),
        (Wish(target=float("nan")), "calibration.target"),
        (Wish(target=0.1, strength=0.5), "calibration.target"),
        (Wish(target=0.1, personal=True), "calibration.target"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_by_name(asked, thing):
    with pytest.raises(RequestError) as caught:
        settled(Calibration(), asked)
    assert caught.value.thing == thing
    assert caught.value.remedy
