"""ranker/portrait.py: a taste told by the items and interests at its ends."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ranker import config as declared
from ranker.catalogue import Catalogue, Item
from ranker.portrait import DIRECTIONS, ITEMS, label, portrait
from ranker.taste import Factor, Taste

GENRES = ("comedy", "drama", "horror")


@dataclass
class Base:
    """The part of an Inference that a portrait reads: two axes, the first from comedy to horror."""

    phi_NK: NDArray[np.float32]
    prior: Factor

    def base(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.phi_NK[rows], np.zeros(len(rows), np.float32)


def shelf(items: int = 12, axes: int = 2) -> tuple[Base, Catalogue]:
    catalogue = Catalogue(
        declared.parse(
            {
                "interests": "genres",
                "fields": {"item": {"genres": "categories"}},
                "objectives": [{"name": "like", "event": "like"}],
            }
        )
    )
    phi_NK = np.zeros((items, axes), np.float32)
    for n in range(items):
        catalogue.put(Item(f"i{n}", {"genres": [GENRES[n % 3]], "title": f"Film {n}"}))
        phi_NK[n] = 0.1 * ((n * np.arange(1, axes + 1)) % 5 - 2)
        phi_NK[n, 0] = (1, 0, -1)[n % 3] + 0.01 * n
    one = np.ones(axes, np.float32)
    return Base(phi_NK, Factor(one, 0 * one)), catalogue


def told(mean: list[float], precision: NDArray[np.float32] | None = None):
    base, catalogue = shelf(axes=len(mean))
    kept = np.full(len(mean), 4, np.float32) if precision is None else precision
    taste = Taste(mean_K=np.array(mean, np.float32), precision_K=kept, sources={"answers": 7})
    return portrait(taste, base, catalogue, np.arange(12))


def test_what_she_wants_more_stands_at_the_wanted_end() -> None:
    found = told([2.0, 0.0])
    assert found.overall is not None
    for direction in (found.overall, found.directions[0]):
        assert direction.wanted.items == ("i9", "i6", "i3", "i0")
        assert direction.wanted.interests == ("comedy",)
        assert direction.unwanted.interests == ("horror",)
        assert direction.certainty > 0.99
    assert (found.overall.axis, found.directions[0].axis) == (None, 0)
    assert found.directions[0].sentence == (
        "Wants more of comedy (such as Film 9, Film 6) and less of horror (such as Film 2, Film 5) than most people."
    )
    assert found.sources == {"answers": 7}


def test_the_other_way_round_the_ends_change_places() -> None:
    one, other = told([1.0, 0.0]).directions[0], told([-1.0, 0.0]).directions[0]
    assert (one.wanted, one.unwanted) == (other.unwanted, other.wanted)
    assert one.shift == pytest.approx(other.shift)


def test_of_a_newcomer_nothing_is_claimed() -> None:
    found = told([0.0, 0.0], np.ones(2, np.float32))
    assert found.overall is None
    assert [direction.shift for direction in found.directions] == [0.0, 0.0]
    assert {direction.certainty for direction in found.directions} == {0.5}
    assert all("nothing is known" in direction.sentence for direction in found.directions)
    assert found.directions[0].spread > found.directions[1].spread  # what would matter most comes first


def test_a_catalogue_of_nothing_has_no_directions() -> None:
    base, catalogue = shelf()
    taste = Taste(mean_K=np.ones(2, np.float32), precision_K=np.ones(2, np.float32))
    found = portrait(taste, base, catalogue, np.zeros(0, np.int64))
    assert (found.overall, found.directions) == (None, ())


def test_an_item_is_called_by_its_first_name_and_never_at_length() -> None:
    assert label(Item("7", {"headline": "News", "name": " A  name "})) == "A name"
    assert label(Item("7", {"title": "", "text": 5})) == "7"
    assert len(label(Item("7", {"text": "word " * 100}))) == 80


@settings(max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.integers(0, 10))
def test_a_portrait_is_finite_and_in_order(mean: list[float], seed: int) -> None:
    root = np.random.default_rng(seed).normal(size=(len(mean), len(mean)))
    precision = (root @ root.T + np.eye(len(mean))).astype(np.float32)
    found = told(mean, precision)
    shifts = [direction.shift for direction in found.directions]
    assert shifts == sorted(shifts, reverse=True)
    assert len(shifts) == min(DIRECTIONS, len(mean))
    for direction in found.directions:
        assert np.isfinite([direction.shift, direction.spread, direction.certainty]).all()
        assert 0.5 <= direction.certainty <= 1
        assert len(direction.wanted.items) == ITEMS
