import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.clusters import clustered, one_list


def heaps(count: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(5, 4))[draw.integers(5, size=count)] * 5 + draw.normal(size=(count, 4))).astype(
        np.float32
    )


def test_two_far_heaps_become_two_lists():
    vectors = np.array([[0, 0], [9, 9], [0, 1], [9, 8]], np.float32)
    lists = clustered(vectors, lists=2)
    found = [
        set(lists.order_N[start:stop].tolist()) for start, stop in zip(lists.starts, lists.starts[1:], strict=False)
    ]
    assert sorted(found, key=min) == [{0, 2}, {1, 3}]
    assert np.argmax(lists.promise(np.array([1, 1], np.float32))) == found.index({1, 3})
    assert lists.reach_L.tolist() == [0.5, 0.5]


def test_of_lists_with_one_mean_the_wider_promises_more():
    vectors = np.array([[-3, 1], [3, 1], [0, -9]], np.float32)
    lists = clustered(vectors, lists=2)
    wide = int(np.argmax(lists.reach_L))
    assert np.argmax(lists.promise(np.array([1, 0], np.float32))) == wide


@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=20)
def test_every_vector_lies_in_one_list(count, lists, seed):
    vectors = heaps(count, seed)
    found = clustered(vectors, lists=lists, seed=seed)
    assert sorted(found.order_N.tolist()) == list(range(count))
    assert found.starts[0] == 0
    assert found.starts[-1] == count
    assert (np.diff(found.starts) >= 0).all()


def test_a_seed_gives_the_same_lists():
    one, other = clustered(heaps(200), seed=3), clustered(heaps(200), seed=3)
    assert (one.order_N == other.order_N).all()
    assert one_list(heaps(3)).order_N.tolist() == [0, 1, 2]
