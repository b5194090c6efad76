"""ranker/divergence.py: how far a slate is from a profile."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon

from ranker.divergence import DIVERGENCES, attention, divergences, miscalibration, shares

SHARES = arrays(np.float64, 5, elements=st.floats(0, 1)).filter(lambda x: x.sum() > 0.01).map(lambda x: x / x.sum())


def test_hellinger_and_jensen_shannon_are_those_of_the_books():
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    assert miscalibration(p, q, 1e-12, "hellinger") == pytest.approx(
        np.linalg.norm(np.sqrt(p) - np.sqrt(q)) / np.sqrt(2)
    )
    assert miscalibration(p, q, 1e-12, "jensen-shannon") == pytest.approx(jensenshannon(p, q) ** 2)


def test_an_empty_slate_is_as_far_away_as_can_be_and_not_further():
    p = np.array([0.7, 0.3])
    assert miscalibration(p, np.zeros(2)) == pytest.approx(-np.log(0.01))
    assert miscalibration(p, np.zeros(2), divergence="hellinger") <= 1
    assert np.isfinite(miscalibration(p, np.zeros(2), divergence="jensen-shannon"))


def test_attention_is_the_discount_of_ndcg_and_weighs_the_places():
    assert attention(3) == pytest.approx([1, 1 / np.log2(3), 0.5])
    interests = np.array([[1.0, 0], [0, 1], [0, 1]])
    assert shares(interests, attention(3))[0] == pytest.approx(1 / (1 + 1 / np.log2(3) + 0.5))


@given(SHARES, arrays(np.float64, (3, 5), elements=st.floats(0, 1)), st.sampled_from(DIVERGENCES))
def test_many_slates_at_once_are_what_each_is_alone_never_negative_and_zero_at_the_profile(p, shown, divergence):
    together = divergences(p, shown, divergence=divergence)
    assert together == pytest.approx([miscalibration(p, one, divergence=divergence) for one in shown])
    assert (together >= 0).all()
    assert miscalibration(p, p, divergence=divergence) == pytest.approx(0, abs=1e-7)
