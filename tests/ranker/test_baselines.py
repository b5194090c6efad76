"""The baselines against what can be counted by hand, and EASE against its own definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.baselines import Ease, Triples, mean_utility, popularity


def triples(*rows: tuple[int, int, float], users: int = 0, items: int = 0) -> Triples:
    users_N, items_N, utility_N = (np.array(column) for column in zip(*rows, strict=True))
    return Triples(
        users_N=users_N.astype(np.int64),
        items_N=items_N.astype(np.int64),
        utility_N=utility_N.astype(np.float64),
        users=users or int(users_N.max()) + 1,
        items=items or int(items_N.max()) + 1,
    )


def blocks() -> Triples:
    """Two circles of people: the first likes items 0 to 3, the second items 4 to 7."""
    return triples(*((u, i + 4 * (u % 2), 1.0) for u in range(20) for i in range(4) if (u + i) % 5))


def test_popularity_counts_likes_only() -> None:
    assert popularity(triples((0, 0, 2.0), (1, 0, 1.0), (0, 1, 0.0), (1, 1, -1.0))).tolist() == [2, 0]


def test_mean_utility_shrinks_towards_the_overall_mean() -> None:
    found = mean_utility(triples((0, 0, 2.0), (1, 1, 0.0), (0, 1, 0.0), items=3), prior=1.0)
    overall = 2 / 3
    assert found == pytest.approx([(2 + overall) / 2, overall / 3, overall])


@pytest.mark.parametrize("centred", [False, True])
def test_ease_recommends_what_the_circle_likes(centred: bool) -> None:
    seen = blocks()
    if centred:  # a centred model learns from dislikes as well
        rows = [(u, i, 1.0 if (i < 4) == (u % 2 == 0) else -1.0) for u in range(20) for i in range(8) if (u + i) % 5]
        seen = triples(*rows)
    ease = Ease(seen, l2=1.0, centred=centred)
    assert ease.scores(0)[:4].min() > ease.scores(0)[4:].max()
    assert ease.scores(1)[:4].max() < ease.scores(1)[4:].min()


def test_ease_has_nothing_to_say_to_a_stranger() -> None:
    assert np.ptp(Ease(blocks(), l2=1.0).scores(-1)) == 0


@settings(max_examples=20)
@given(st.integers(0, 100), st.floats(0.5, 50))
def test_ease_minimises_its_loss_under_a_zero_diagonal(seed: int, l2: float) -> None:
    generator = np.random.default_rng(seed)
    rows = [(u, i, 1.0) for u in range(12) for i in range(5) if generator.random() < 0.5] + [(11, 4, 1.0)]
    ease = Ease(triples(*dict.fromkeys(rows), users=12, items=5), l2=l2)
    x_UI, best_II = ease.x_UI.astype(np.float64), ease.weights_II
    assert np.diag(best_II) == pytest.approx(np.zeros(5))

    def loss(weights_II: np.ndarray) -> float:
        return float(np.square(x_UI - x_UI @ weights_II).sum() + l2 * np.square(weights_II).sum())

    nudge_II = generator.normal(scale=0.01, size=(5, 5))
    np.fill_diagonal(nudge_II, 0)
    assert loss(best_II) <= loss(best_II + nudge_II) + 1e-9


def test_ease_leaves_rare_items_out_where_there_are_too_many() -> None:
    ease = Ease(blocks(), l2=1.0, most=6)
    assert len(ease.weights_II) == 6
    assert len(ease.scores(0)) == 8
