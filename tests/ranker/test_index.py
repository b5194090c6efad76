import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.index import BLOCK, FEW, Index


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


LARGE = Index(vectors(8192), flat=50)


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
@settings(max_examples=40)
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
        assert found(one, query, 7, exact=True) == wanted
        assert (
            found(one, query, 7, among=allowed, exact=True)
            == [row for row in sorted(held, key=lambda row: -float(held[row] @ query)) if allowed[row]][:7]
        )
    assert index.rebuilt().loose == 0


@given(st.integers(0, 99), st.integers(1, 300), st.floats(0.001, 1), st.booleans())
@settings(max_examples=25)
def test_never_fewer_than_asked_while_candidates_exist(seed, wanted, kept, many):
    draw = np.random.default_rng(seed)
    index = LARGE if many else Index(vectors(300, seed), flat=50)
    allowed = draw.random(len(index)) < kept
    rows, scores = index.search(draw.normal(size=4), wanted, among=allowed)
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
        assert found(index, query, 100, exact=True) == best
        shares.append(len({*found(index, query, 100)} & {*best}) / 100)
    assert len(index.lists) > 100
    assert np.mean(shares) > 0.9
    few = np.zeros(30_000, np.bool_)
    few[::9] = True
    query = draw.normal(size=8)
    assert found(index, query, 50, among=few) == found(exact, query, 50, among=few)
    for step in (7, 50):  # among lists that are read whole, and picked out of them
        some = np.arange(30_000) % step == 0
        assert (some.mean() <= FEW) == (step == 50)
        shares = [
            np.isin(found(exact, query, 100, among=some), found(index, query, 100, among=some)).mean()
            for query in draw.normal(size=(10, 8))
        ]
        assert np.mean(shares) > 0.97


@given(st.integers(1, 5 * BLOCK), st.integers(1, 200), st.integers(1, 9), st.integers(0, 999))
@settings(max_examples=40)
def test_of_equal_products_the_lower_row_is_found(count, wanted, width, seed):
    draw = np.random.default_rng(seed)
    lines = draw.integers(-1, 2, (count, width)).astype(np.float32)
    query, allowed = draw.integers(-1, 2, width).astype(np.float32), draw.random(count) < 0.7
    index = Index(lines, flat=count // 2)
    scores = lines @ query
    best = [row for row in np.lexsort((np.arange(count), -scores)).tolist() if allowed[row]][:wanted]
    assert found(index, query, wanted, among=allowed, exact=True) == best
    rows, products = index.search(query, wanted, part=index.parted(np.flatnonzero(allowed)), exact=True)
    assert rows.tolist() == best
    assert products.tolist() == scores[best].tolist()


def test_lists_are_read_no_further_than_they_promise():
    draw = np.random.default_rng(0)
    heaps = np.array([[100, 0], [0, 0], [-100, 0]], np.float32)
    index = Index(np.repeat(heaps, 300, 0) + draw.normal(size=(900, 2)).astype(np.float32), flat=3)
    query = np.array([1, 0], np.float32)
    best = found(index, query, 200)
    assert best == found(index, query, 200, exact=True)
    index._lines_NX[index._rows_N >= 300] += 1000  # where nothing is looked at any more
    assert found(index, query, 200) == best
    assert found(index, query, 200, exact=True) != best


@given(changes, st.sampled_from([10, 1000]), st.integers(0, 99))
@settings(max_examples=40)
def test_a_part_follows_what_is_put_and_removed(steps, flat, seed):
    draw = np.random.default_rng(seed)
    index, held = Index(vectors(50, seed), flat=flat), dict.fromkeys(range(50), False)
    share = np.zeros(71, np.float32)
    share[:50:2] = 1
    held.update((row, bool(share[row])) for row in held)
    query, before = draw.normal(size=4).astype(np.float32), []
    for adds, rows in steps:
        before.append(
            (index, {row for row in held if held[row]}, index.part(0, lambda _: np.flatnonzero(share), share))
        )
        if adds:
            share[rows] = draw.random(len(rows)) < 0.5
            index = index.put(np.array(rows), draw.normal(size=(len(rows), 4)))
            held.update((row, bool(share[row])) for row in rows)
        else:
            index = index.remove(np.array(rows))
            for row in rows:
                held.pop(row, None)
    before.append((index, {row for row in held if held[row]}, index.part(0, lambda _: np.flatnonzero(share), share)))
    for one, rows, part in before:
        assert set(found(one, query, 71, part=part)) == rows
    assert index.nbytes > Index(vectors(50, seed), flat=flat).nbytes


def test_many_lines_are_searched_exactly():
    lines = vectors(60_000)
    query = vectors(1, 7)[0]
    scores = lines @ query
    assert found(Index(lines), query, 500) == np.lexsort((np.arange(60_000), -scores))[:500].tolist()
