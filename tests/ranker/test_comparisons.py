"""Comparisons: what is derived from answers, grades and slates, by which rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.comparisons import answered, graded, place, said, skipped, wording
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


def test_what_was_skipped_above_a_click_loses_to_it():
    found = skipped(slate([[0, 0], [1, 0], [0, 0]]), WEIGHTS)
    assert found.items == ("i0", "i1")
    assert [(found.items[pair.one], found.items[pair.other]) for pair in found.pairs] == [("i1", "i0")]
    assert not found.mask_NT.any()
    assert not found.closing
    assert (found.positions == -1).all()


def test_a_click_at_the_top_skipped_nothing():
    assert skipped(slate([[1, 0], [0, 0]]), WEIGHTS) is None
    assert skipped(slate([[0, 0], [0, 0]]), WEIGHTS) is None
    assert skipped(slate([[0, 1], [0, 1]]), WEIGHTS) is None


def test_without_positions_any_row_may_have_been_skipped():
    found = skipped(slate([[1, 0], [0, 0]], positions=[-1, -1]), WEIGHTS)
    assert found.items == ("i0", "i1")


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=12))
def test_the_better_half_of_any_pair_earned_more_and_stood_lower(labels):
    example = slate([list(label) for label in labels])
    found = skipped(example, WEIGHTS)
    for pair in found.pairs if found else ():
        one, other = (example.items.index(found.items[row]) for row in (pair.one, pair.other))
        gains = example.labels_NT @ WEIGHTS
        assert gains[one] > 0
        assert gains[one] > gains[other]
        assert other < one


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
