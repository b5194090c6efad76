import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.index import Index
from ranker.retrieval import Drawn, draw

# ten items of category 0, better than all, then three of category 1, then two of both
LINES = np.array([[20 - n] for n in range(10)] + [[3], [2], [1]] + [[0], [-1]], np.float32)
INTERESTS = np.array([[1, 0]] * 10 + [[0, 1]] * 3 + [[0.5, 0.5]] * 2, np.float32)


def members(c: int) -> np.ndarray:
    return np.flatnonzero(INTERESTS[:, c] > 0)


def drawn(count: int, target: list[float], share: float, **how: object) -> Drawn:
    return draw(
        Index(LINES),
        np.ones(1, np.float32),
        count,
        interests_NC=INTERESTS,
        target_C=np.array(target),
        share=share,
        members=members,
        **how,
    )


def test_without_a_share_the_best_are_drawn():
    assert drawn(5, [0.6, 0.4], 0.0).rows.tolist() == [0, 1, 2, 3, 4]
    assert drawn(5, [0.0, 0.0], 1.0).rows.tolist() == [0, 1, 2, 3, 4]


def test_a_minority_interest_gets_its_share_and_the_smallest_is_served_first():
    assert drawn(5, [0.6, 0.4], 1.0).rows.tolist() == [10, 11, 0, 1, 2]
    assert drawn(10, [0.8, 0.2], 0.5).rows.tolist() == [10, 0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_an_interest_with_too_few_items_leaves_its_places_to_the_rest():
    assert sorted(drawn(12, [0.1, 0.9], 1.0).rows.tolist()) == [0, 1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14]


def test_an_interest_is_searched_with_its_own_taste():
    own = {1: -np.ones(1, np.float32)}
    assert drawn(4, [0.75, 0.25], 1.0, own=own).rows.tolist() == [14, 13, 0, 1]


def test_what_may_not_be_drawn_is_passed_over_and_named():
    found = drawn(5, [0.6, 0.4], 1.0, without=[0, 10])
    assert found.rows.tolist() == [11, 12, 1, 2, 3]
    assert found.passed.tolist() == [0]
    odd = np.arange(15) % 2 == 1
    assert drawn(5, [0.6, 0.4], 1.0, among=odd).rows.tolist() == [11, 13, 1, 3, 5]


@given(
    st.integers(0, 30),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sets(st.integers(0, 14)),
    st.sets(st.integers(0, 14)),
)
@settings(max_examples=60)
def test_never_fewer_than_asked_while_candidates_exist(count, share, first, barred, kept):
    allowed = np.zeros(15, np.bool_)
    allowed[list(kept)] = True
    found = drawn(count, [first, 1 - first], share, without=barred, among=allowed)
    free = kept - barred
    assert len(found.rows) == min(count, len(free))
    assert len(set(found.rows.tolist())) == len(found.rows)
    assert set(found.rows.tolist()) <= free
    assert set(found.passed.tolist()) <= barred
