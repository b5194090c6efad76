import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker import tally
from ranker.catalogue import Catalogue, Item
from ranker.config import Config, Objective
from ranker.evidence import EMPTY, Act, Evidence
from ranker.metrics import auc
from ranker.slates import Example

CONFIG = Config(
    objectives=(Objective(name="click", event="click"), Objective(name="like", event="like")), interests="genres"
)
KNOWN = Catalogue(CONFIG)
KNOWN.put(Item("a", {"genres": ["drama"]}))
KNOWN.put(Item("b", {"genres": ["comedy"]}))


def example(clicks=(0, 1), *, served=None, evidence=EMPTY) -> Example:
    labels = np.stack([np.array(clicks), np.zeros(len(clicks))], 1).astype(np.float32)
    return Example(
        ranking="r",
        user="u",
        time=100,
        evidence=evidence,
        request={},
        items=("a", "b", "c", "d")[: len(clicks)],
        positions=np.arange(len(clicks), dtype=np.int32),
        labels_NT=labels,
        mask_NT=np.ones_like(labels),
        served_NT=None if served is None else np.array([served, served], np.float32).T,
        closing=True,
    )


def sums(one: Example, **more) -> tally.Sums:
    return tally.sums(tally.of(one, KNOWN, CONFIG, **more))


def test_one_slates_sums_are_counted_exactly():
    evidence = Evidence(history=(Act("a", "click", 1), Act("a", "click", 2)))
    one = sums(example((0, 1), served=(0.3, 0.2), evidence=evidence), support=0.7)
    assert one.counts_TC[0].tolist() == pytest.approx([2, 1, 1 / np.log2(3), 1, 1, 0])
    assert one.counts_TC[1].tolist() == [2, 0, 0, 0, 0, 0]
    assert one.bins_TB3[0].sum(0).tolist() == pytest.approx([2, 0.5, 1])
    seen = 1 / (1 + 1 / np.log2(3))  # all she wants is drama, which stands first of two
    assert one.whole_W.tolist() == pytest.approx([1, np.log(1 / (0.99 * 0.5 + 0.01)), 1, seen, 1, 0.7, 1])


def test_a_perfect_order_has_ndcg_one_and_unknown_positions_have_neither_ndcg_nor_exposure():
    assert sums(example((1, 0))).counts_TC[0, 2:4].tolist() == [1, 1]
    unknown = example((1, 0), evidence=Evidence(history=(Act("a", "click", 1),)))
    unknown.positions[0] = -1
    one = sums(unknown)
    assert one.counts_TC[0, 2:4].tolist() == [0, 0]
    assert (one.of_slates("profiled"), one.of_slates("exposed")) == (1, 0)


def test_labels_that_are_not_known_are_neither_impressions_nor_pairs():
    partly = example((1, 1, 0), served=(0.5, 0.5, 0.5))
    partly.mask_NT[0, 0] = 0
    one = sums(partly)
    assert one.counts_TC[0, :2].tolist() == [2, 1]
    assert one.counts_TC[0, 4:].tolist() == [1, 0.5]
    assert one.bins_TB3[0].sum(0).tolist() == [2, 1, 1]


def test_tallies_add_and_measures_are_quotients_of_them():
    one, other = (tally.of(example((0, 1), served=served), KNOWN, CONFIG) for served in ((0.1, 0.6), (0.6, 0.1)))
    found = tally.measures(np.stack([one, other, one + other]))
    assert found["accuracy"][:, 0].tolist() == [1, 0, 0.5]
    assert found["auc"][:, 0].tolist() == [1, 0, 0.5]
    assert found["rate"][:, 0].tolist() == [0.5, 0.5, 0.5]
    assert found["bias"][:, 0].tolist() == pytest.approx([-0.15] * 3)
    assert np.isnan(found["accuracy"][:, 1]).all()
    assert np.isnan(found["miscalibration"]).all()


@given(st.lists(st.tuples(st.floats(0.001, 0.999), st.booleans()), min_size=2, max_size=200))
@settings(max_examples=60)
def test_the_auc_of_bins_is_that_of_the_rows_to_within_the_error_it_states(rows):
    chances, clicks = zip(*rows, strict=True)
    total = sum(
        tally.of(example((int(click),), served=(chance,)), KNOWN, CONFIG)
        for chance, click in zip(chances, clicks, strict=True)
    )
    exact = auc(clicks, np.float32(chances))
    (binned, _), (error, _) = tally.measures(total)["auc"], tally.auc_error(total)
    assert np.isnan(binned) == np.isnan(exact)
    if not np.isnan(exact):
        assert abs(binned - exact) <= error + 1e-9
