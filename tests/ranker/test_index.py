import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.index import FEW, Among, Index


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


LARGE = Index(vectors(2 * FEW), flat=50)


def found(index: Index, query: np.ndarray, count: int, **how: object) -> list[int]:
    return index.search(query, count, **how)[0].tolist()


def test_the_nearest_of_three_is_found_first():
    index = Index(np.array([[1, 0], [0, 1], [1, 1]], np.float32))
    rows, scores = index.search(np.array([1.0, 2.0]), 2)
    assert rows.tolist() == [2, 1]
    assert scores.tolist() == [3.0, 2.0]


def test_an_empty_index_finds_nothing():
    assert found(Index(np.zeros((0, 4), np.float32)), np.ones(4), 5) == []
    assert found(Index(vectors(3)), np.ones(4), 0) == []
    assert found(Index(vectors(1)).remove(np.array([0])), np.ones(4), 5) == []


def test_more_than_there_is_gives_all_there_is():
    assert sorted(found(Index(vectors(3)), np.ones(4), 50)) == [0, 1, 2]


@given(st.integers(1, 40), st.integers(1, 10), st.integers(0, 1000))
def test_one_list_is_searched_exactly(count, wanted, seed):
    lines, query = vectors(count, seed), vectors(1, seed + 1)[0]
    best = np.argsort(-(lines @ query), kind="stable")[:wanted]
    assert lines[found(Index(lines), query, wanted)] @ query == pytest.approx(lines[best] @ query, abs=1e-4)


def test_changes_leave_the_old_index_as_it_was():
    first = Index(vectors(3))
    query = np.array([1.0, 0, 0, 0])
    before = found(first, query, 3)
    second = first.put(np.array([1, 9]), np.array([[50, 0, 0, 0], [100, 0, 0, 0]], np.float32))
    third = second.remove(np.array([9, 77]))
    assert found(second, query, 2) == [9, 1]
    assert found(third, query, 1) == [1]
    assert found(first, query, 3) == before
    assert (len(first), len(second), len(third)) == (3, 4, 3)
    assert (first.loose, second.loose, third.loose) == (0, 3, 4)
    assert third.rows.tolist() == [0, 1, 2]
    assert third.vectors(np.array([1])).tolist() == [[50, 0, 0, 0]]


changes = st.lists(
    st.tuples(st.booleans(), st.lists(st.integers(0, 70), min_size=1, max_size=8)), min_size=1, max_size=8
)


@given(changes, st.sampled_from([10, 1000]), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_after_any_changes_it_finds_what_is_there(steps, flat, seed):
    lines, draw = vectors(50, seed), np.random.default_rng(seed + 100)
    index, held = Index(lines, flat=flat), dict(enumerate(lines))
    for adds, rows in steps:
        if adds:
            new = draw.normal(size=(len(rows), 4)).astype(np.float32)
            index = index.put(np.array(rows), new)
            held.update(zip(rows, new, strict=True))
        else:
            index = index.remove(np.array(rows))
            for row in rows:
                held.pop(row, None)
    query = draw.normal(size=4).astype(np.float32)
    wanted = sorted(held, key=lambda row: -float(held[row] @ query))[:7]
    allowed = draw.random(71) < 0.5
    for one in (index, index.rebuilt()):
        assert len(one) == len(held)
        assert one.rows.tolist() == sorted(held)
        assert found(one, query, 7, share=1.0) == wanted
        assert (
            found(one, query, 7, among=Among.of(allowed), share=1.0)
            == [row for row in sorted(held, key=lambda row: -float(held[row] @ query)) if allowed[row]][:7]
        )
    assert index.rebuilt().loose == 0


@given(st.integers(0, 99), st.integers(1, 300), st.floats(0.001, 1), st.booleans())
@settings(max_examples=25, deadline=None)
def test_never_fewer_than_asked_while_candidates_exist(seed, wanted, kept, many):
    draw = np.random.default_rng(seed)
    index = LARGE if many else Index(vectors(300, seed), flat=50)
    allowed = draw.random(len(index)) < kept
    rows, scores = index.search(draw.normal(size=4), wanted, among=Among.of(allowed), share=0.01)
    assert len(rows) == min(wanted, allowed.sum())
    assert allowed[rows].all()
    assert len(set(rows.tolist())) == len(rows)
    assert (np.diff(scores) <= 0).all()


def test_lists_find_nearly_all_and_their_whole_finds_all():
    draw = np.random.default_rng(0)
    lines = (draw.normal(size=(12, 8))[draw.integers(12, size=30_000)] + draw.normal(size=(30_000, 8)) / 3).astype(
        np.float32
    )
    index, exact = Index(lines, flat=1000), Index(lines)
    shares = []
    for query in draw.normal(size=(20, 8)):
        best = found(exact, query, 100)
        assert found(index, query, 100, share=1.0) == best
        shares.append(len({*found(index, query, 100)} & {*best}) / 100)
    assert len(index.lists) > 100
    assert np.mean(shares) > 0.9
    few = np.zeros(30_000, np.bool_)
    few[::9] = True
    query = draw.normal(size=8)
    assert found(index, query, 50, among=Among.of(few)) == found(exact, query, 50, among=Among.of(few))
    for step, count, least in ((7, 150, 1.0), (3, 100, 0.95)):  # one by one where lists would have to be read whole
        some = Among.of(np.arange(30_000) % step == 0)
        assert len(some.rows) > FEW
        shares = [
            np.isin(found(exact, query, count, among=some), found(index, query, count, among=some)).mean()
            for query in draw.normal(size=(10, 8))
        ]
        assert np.mean(shares) >= least


def test_a_threshold_from_a_sample_loses_none_of_the_best():
    lines = vectors(60_000)
    query = vectors(1, 7)[0]
    scores = lines @ query
    assert found(Index(lines), query, 500) == np.lexsort((np.arange(60_000), -scores))[:500].tolist()
