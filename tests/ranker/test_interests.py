"""ranker/interests.py beyond the profile (that is in test_calibration.py): how well it is known, the population."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.catalogue import Catalogue, Item
from ranker.config import Config, Objective
from ranker.events import Interaction
from ranker.evidence import EMPTY, HISTORY, LIFE_MS, Act, Evidence, Past, fold
from ranker.interests import HALF_LIFE_MS, effective_acts, population, profile, selves

LIKE = Objective(name="like", event="like")


def catalogue() -> Catalogue:
    known = Catalogue(Config(objectives=(LIKE,), interests="genres"))
    known.put(Item("a", {"genres": ["drama"]}))
    known.put(Item("b", {"genres": ["comedy"]}))
    return known


def test_acts_of_equal_weight_count_fully_and_faded_ones_little():
    now = 10 * HALF_LIFE_MS
    fresh = Evidence(history=(Act("a", "like", now), Act("b", "like", now), Act("zz", "like", now)))
    assert effective_acts(fresh, catalogue(), now) == pytest.approx(2)
    old = Evidence(history=(Act("a", "like", 0), Act("b", "like", now)))
    assert effective_acts(old, catalogue(), now) == pytest.approx(1, abs=0.01)
    assert effective_acts(EMPTY, catalogue(), now) == 0


def test_the_long_term_self_outlasts_the_history():
    evidence = EMPTY
    for n in range(4 * HISTORY):  # a year of drama and comedy in turn, then two months of comedy alone
        item = "b" if n >= 3 * HISTORY else "ab"[n % 2]
        step = LIFE_MS // 300 if n < 3 * HISTORY else LIFE_MS // 600
        click = Interaction(id=f"e{n}", timestamp=evidence.updated + step, user="u", item=item, type="like")
        evidence = fold(evidence, click)
    assert profile(evidence, catalogue(), evidence.updated).tolist() == [0, 1]
    weight = np.exp2(-((np.arange(300)[::-1] + 0.5) / 300 + 1 / 6))
    drama = weight[::2].sum() / (weight.sum() + 94)
    assert selves(evidence, catalogue(), evidence.updated)[1][0] == pytest.approx(drama, abs=0.08)


def test_what_stayed_of_the_past_counts_as_if_it_were_done_at_the_floor():
    now = 10 * LIFE_MS
    past = Past((Act("b", "like", now - 5 * LIFE_MS), Act("b", "like", now + 1)), floor=now - LIFE_MS)
    known = Evidence(history=(Act("a", "like", now),), past=past)
    assert selves(known, catalogue(), now)[1] == pytest.approx([2 / 3, 1 / 3])  # what lies ahead is left out
    assert selves(Evidence(history=known.history), catalogue(), now)[1].tolist() == [1, 0]
    assert selves(EMPTY, catalogue(), now)[1].tolist() == [0, 0]
    assert selves(known, catalogue(), now)[0].tolist() == profile(known, catalogue(), now).tolist()


@given(st.lists(st.integers(0, 5 * HALF_LIFE_MS), min_size=1, max_size=20))
def test_effective_acts_lie_between_one_and_their_number(times):
    history = tuple(Act("a", "like", time) for time in sorted(times))
    assert 1 - 1e-9 <= effective_acts(Evidence(history=history), catalogue(), max(times)) <= len(times) + 1e-9


def test_the_populations_shares_are_those_of_what_is_shown_or_of_the_catalogue():
    interests = np.array([[1.0, 0], [0, 1], [0, 1], [0, 0]], np.float32)
    assert population(interests, np.array([3.0, 1, 0, 9], np.float32)) == pytest.approx([0.75, 0.25])
    assert population(interests, np.zeros(4, np.float32)) == pytest.approx([1 / 3, 2 / 3])
    assert not population(interests[3:], np.ones(1, np.float32)).any()
    assert population(np.zeros((0, 2), np.float32), np.zeros(0, np.float32)).tolist() == [0, 0]


def test_a_population_that_knows_fewer_categories_adds_nothing_to_the_newer_ones():
    one = Evidence(history=(Act("b", "like", 1),))
    mixed = profile(one, catalogue(), 5, population_C=np.array([1.0]), pseudo_acts=1.0)
    assert mixed == pytest.approx([0.5, 0.5])
