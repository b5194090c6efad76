import numpy as np
import pytest

from ranker.events import Field, Ranking, Shown
from ranker.evidence import EMPTY
from ranker.slates import BLANK, CORRECTED, LEARNED, OPEN, SEEN, Slate

VALUES_T = np.array([False, True])
CLICK_T = np.array([True, False])


@pytest.fixture
def slate() -> Slate:
    shown = [Shown("a", probabilities=[0.1, 2.0]), Shown("b", position=None, probabilities=[0.2, 3.0])]
    ranking = Ranking(id="r", timestamp=5, user="u", items=shown, fields=[Field("device", "tv")], version="v")
    return Slate.opened(ranking, 7, ("a", "b"), EMPTY, 2)


def test_a_positive_is_known_once_and_its_repetition_tells_nothing(slate: Slate) -> None:
    known_NT = slate.mark(1, [(0, 1.0)], VALUES_T)
    assert known_NT is not None
    assert known_NT.tolist() == [[False, False], [True, False]]
    assert slate.mark(1, [(0, 1.0)], VALUES_T) is None
    assert slate.status_NT.tolist() == [[OPEN, OPEN], [LEARNED, OPEN]]


def test_a_value_grows_until_its_wait_has_passed(slate: Slate) -> None:
    for value in (-3.0, 8.0, 2.0):
        assert slate.mark(0, [(1, value)], VALUES_T) is None
    assert slate.status_NT[0, 1] == SEEN
    assert slate.close(VALUES_T).tolist() == [[False, True], [False, True]]
    assert slate.labels_NT[:, 1].tolist() == [8, 0]


def test_what_was_learned_as_a_negative_is_corrected_once(slate: Slate) -> None:
    slate.close(CLICK_T)
    assert slate.mark(0, [(0, 1.0)], VALUES_T) is not None
    assert slate.status_NT[0, 0] == CORRECTED
    assert slate.mark(0, [(0, 1.0)], VALUES_T) is None


def test_what_cannot_be_known_stays_out_of_the_labels_until_it_can(slate: Slate) -> None:
    slate.mark(0, [(0, None)], VALUES_T)
    assert slate.status_NT[0, 0] == BLANK
    assert slate.close(CLICK_T).tolist() == [[False, False], [True, False]]
    assert slate.mark(0, [(0, 1.0)], VALUES_T) is not None


def test_a_packed_slate_comes_back_whole_and_an_example_does_not_change_with_it(slate: Slate) -> None:
    slate.mark(0, [(0, 1.0), (1, 4.0)], VALUES_T)
    again = Slate.unpack(slate.pack(0), EMPTY, 2, {})
    for name in Slate.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(slate, name))
    example = slate.example(np.ones((2, 2), np.bool_), np.array([1]))
    slate.mark(1, [(0, 1.0)], VALUES_T)
    assert (example.items, example.positions.tolist(), example.labels_NT.tolist()) == (("b",), [-1], [[0, 0]])
    assert example.served_NT is not None
    np.testing.assert_allclose(example.served_NT, [[0.2, 3.0]])
    assert example.request == {"device": "tv"}


def test_chances_are_taken_only_where_every_item_has_one_per_objective() -> None:
    ranking = Ranking(id="r", timestamp=5, user="u", items=[Shown("a", probabilities=[0.1, 0.2]), Shown("b")])
    assert Slate.opened(ranking, 1, ("a", "b"), EMPTY, 2).served_NT is None
