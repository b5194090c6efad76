import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.index import Index


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def test_the_nearest_of_three_is_found_first():
    index = Index(np.array([[1, 0], [0, 1], [1, 1]], np.float32))
    assert index.search(np.array([1.0, 2.0]), 2).tolist() == [2, 1]


def test_an_empty_index_finds_nothing():
    assert Index(np.zeros((0, 4), np.float32)).search(np.ones(4), 5).tolist() == []
    assert Index(vectors(3)).search(np.ones(4), 0).tolist() == []


def test_more_than_there_is_gives_all_there_is():
    assert sorted(Index(vectors(3)).search(np.ones(4), 50).tolist()) == [0, 1, 2]


@given(st.integers(1, 40), st.integers(1, 10), st.integers(0, 1000))
def test_search_is_exact(count, wanted, seed):
    found, query = vectors(count, seed), vectors(1, seed + 1)[0]
    best = np.argsort(-(found @ query), kind="stable")[:wanted]
    assert found[Index(found).search(query, wanted)] @ query == pytest.approx(found[best] @ query, abs=1e-4)


def test_changes_leave_the_old_index_as_it_was():
    first = Index(vectors(3))
    query = np.array([1.0, 0, 0, 0])
    before = first.search(query, 3).tolist()
    second = first.put(np.array([1, 9]), np.array([[50, 0, 0, 0], [100, 0, 0, 0]], np.float32))
    third = second.remove(np.array([9, 77]))
    assert second.search(query, 2).tolist() == [9, 1]
    assert third.search(query, 1).tolist() == [1]
    assert first.search(query, 3).tolist() == before
    assert (len(first), len(second), len(third)) == (3, 4, 3)
