"""Comparisons: what is derived from answers, grades and slates, by which rule."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.comparisons import CLIP, answered, chosen, graded, place, said, wording
from ranker.events import Comparison, Field, Interaction
from ranker.evidence import Act, Answer, Evidence
from ranker.slates import Compared, Example

WEIGHTS = np.array([1.0, -1.0])


def slate(labels: list[list[float]], positions: list[int] | None = None) -> Example:
    labels_NT = np.array(labels, np.float32)
    count = len(labels_NT)
    return Example(
        ranking="r1",
        user="u",
        time=5,
        evidence=Evidence(history=(Act("x", "click", 1),)),
        request={"device": "tv"},
        items=tuple(f"i{n}" for n in range(count)),
        positions=np.array(range(count) if positions is None else positions, np.int32),
        labels_NT=labels_NT,
        mask_NT=np.ones_like(labels_NT),
        closing=True,
    )


def test_an_answer_becomes_a_comparison_in_the_light_of_what_came_before():
    event = Comparison(id="a1", timestamp=7, user="u", preferred="i", over="j")
    before = Evidence(history=(Act("x", "click", 1),))
    found = answered(event, before, 2)
    assert (found.items, found.evidence, found.time) == (("i", "j"), before, 7)
    assert found.pairs == (Compared(0, 1, 1.0, Answer("a1", "i", "j", 7)),)
    assert not found.mask_NT.any()


@pytest.mark.parametrize(("outcome", "share"), [("both", 0.5), ("neither", 0.5), ("preferred", 1.0)])
def test_ties_are_half_answers(outcome, share):
    found = answered(Comparison(id="a", timestamp=7, user="u", preferred="i", over="j", outcome=outcome), Evidence(), 1)
    assert found.pairs[0].share == share


def test_a_skip_and_a_bare_retraction_say_nothing():
    assert (
        answered(Comparison(id="a", timestamp=7, user="u", preferred="i", over="j", outcome="skip"), Evidence(), 1)
        is None
    )
    assert (
        answered(Comparison(id="a", timestamp=7, user="u", preferred="i", over="i", retracts="b"), Evidence(), 1)
        is None
    )


def test_a_grade_is_compared_with_an_earlier_one_which_leaves_the_context():
    history = (Act("low", "rate", 1, 2.0), Act("same", "rate", 2, 4.0), Act("seen", "click", 3))
    event = Interaction(id="e", timestamp=9, user="u", item="new", type="rate", value=4.0)
    found = graded(event, Evidence(history=history), 2)
    assert found.items == ("new", "low")
    assert [act.item for act in found.evidence.history] == ["same", "seen"]
    worse = graded(
        event.__class__(id="e", timestamp=9, user="u", item="new", type="rate", value=1.0),
        Evidence(history=history[:1]),
        2,
    )
    assert worse.items == ("low", "new")


def test_equal_grades_and_acts_without_grades_compare_nothing():
    event = Interaction(id="e", timestamp=9, user="u", item="new", type="rate", value=4.0)
    assert graded(event, Evidence(history=(Act("same", "rate", 2, 4.0), Act("seen", "click", 3))), 2) is None
    assert graded(Interaction(id="e", timestamp=9, user="u", item="new", type="click"), Evidence(), 2) is None


def test_what_was_clicked_is_preferred_to_another_row_above_or_below() -> None:
    found = chosen(slate([[0, 0], [1, 0], [0, 0]]), WEIGHTS)
    (pair,) = found.pairs
    assert found.items[pair.one] == "i1"
    assert found.items[pair.other] in ("i0", "i2")
    assert pair.weight == 1
    assert not found.mask_NT.any()
    assert not found.closing
    assert (found.positions == -1).all()


def test_slates_in_which_nothing_was_wanted_or_all_alike_compare_nothing() -> None:
    assert chosen(slate([[0, 0], [0, 0]]), WEIGHTS) is None
    assert chosen(slate([[0, 1], [0, 1]]), WEIGHTS) is None
    assert chosen(slate([[1, 0], [1, 0]]), WEIGHTS) is None


def test_a_click_at_a_place_nobody_looks_at_counts_for_more_up_to_a_bound() -> None:
    worth_NT = np.array([[1.0, 1.0], [0.25, 1.0], [0.01, 1.0]])
    assert chosen(slate([[0, 0], [1, 0], [0, 0]]), WEIGHTS, worth_NT).pairs[0].weight == 4
    assert chosen(slate([[0, 0], [0, 0], [1, 0]]), WEIGHTS, worth_NT).pairs[0].weight == CLIP


def test_among_equals_neither_the_upper_nor_the_lower_place_is_preferred() -> None:
    """Everything is liked alike and clicked where people look: weighed comparisons say nothing about places."""
    rng = np.random.default_rng(0)
    seen_N = 1 / (1 + np.arange(8.0))
    upper = lower = 0.0
    for number in range(6000):
        labels = np.stack([rng.random(8) < 0.3 * seen_N, np.zeros(8)], 1)
        found = chosen(
            dataclasses.replace(slate(labels.tolist()), ranking=f"r{number}"), WEIGHTS, seen_N[:, None] * [1, 1]
        )
        for pair in found.pairs if found else ():
            one, other = (int(found.items[row][1:]) for row in (pair.one, pair.other))
            upper, lower = upper + pair.weight * (one < other), lower + pair.weight * (one > other)
    assert upper / (upper + lower) == pytest.approx(0.5, abs=0.04)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=12))
def test_the_better_half_of_any_pair_earned_more(labels):
    example = slate([list(label) for label in labels])
    found = chosen(example, WEIGHTS)
    for pair in found.pairs if found else ():
        one, other = (example.items.index(found.items[row]) for row in (pair.one, pair.other))
        gains = example.labels_NT @ WEIGHTS
        assert gains[one] > max(gains[other], 0)


def test_conditions_say_where_each_stood_and_in_which_words():
    told = Answer("a", "i", "j", 0, condition={"shown_first": "j", "wording": "skip"})
    assert place(told) == 1
    assert wording(told) == wording(Answer("b", "x", "y", 0, condition={"wording": "skip"})) >= 0
    assert place(Answer("a", "i", "j", 0)) == -1
    assert wording(Answer("a", "i", "j", 0)) == -1


def test_what_says_nothing_is_not_said():
    answers = (Answer("a", "i", "j", 0), Answer("b", "i", "j", 0, "skip"), Answer("c", "i", "i", 0))
    assert [one.id for one in said(Evidence(answers=answers))] == ["a"]


def test_events_carry_their_condition_into_the_comparison():
    fields = [Field("shown_first", "j"), Field("wording", "rather")]
    event = Comparison(id="a", timestamp=7, user="u", preferred="i", over="j", fields=fields)
    assert place(answered(event, Evidence(), 1).pairs[0].answer) == 1
