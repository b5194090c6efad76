import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ranker.batch import collate
from ranker.catalogue import Catalogue, Item
from ranker.config import Config, parse
from ranker.evidence import Act, Evidence, Mean, pack, unpack
from ranker.features import SIZES, WORDS, Acts, Bag, Bags, Encoder, act_inputs, acts_of, lay_out, readings
from ranker.inputs import AGES, ages
from ranker.join import Example

HOUR = 3_600_000
KINDS = {"genre": "categories", "studio": "category", "title": "text", "price": "number"}


def config(seed: int = 0, **fields: dict[str, str]) -> Config:
    inputs = {"item": KINDS, "user": {"age": "category"}, "request": {"device": "category", "hour": "number"}}
    return parse(
        {
            "objectives": [{"name": "click", "event": "click", "biased": True}, {"name": "like", "event": "like"}],
            "fields": {**inputs, **fields},
            "scale": "tiny",
            "learning": {"seed": seed},
        }
    )


def example(items: tuple[str, ...] = ("a", "b"), history: tuple[Act, ...] = (), **more: object) -> Example:
    count = len(items)
    made = Example(
        ranking="r",
        user="u",
        time=10 * HOUR,
        evidence=Evidence({"age": 20}, history),
        request={"device": "tv"},
        items=items,
        positions=np.arange(count, dtype=np.int32),
        labels_NT=np.zeros((count, 2), np.float32),
        mask_NT=np.ones((count, 2), np.float32),
    )
    return replace(made, **more)  # type: ignore[arg-type]


def catalogue(*items: Item) -> Catalogue:
    found = Catalogue(config())
    for item in items:
        found.put(item)
    return found


def same(one: Bag, other: Bag) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# -- rows of the table ---------------------------------------------------------------------------------------------


def test_rows_are_the_same_in_every_process():
    bag = Encoder(config()).item(Item("i1", {"genre": ["noir"]}))
    assert bag.rows.tolist() == [1768, 1178, 3423]


def test_ids_and_fields_have_their_own_halves():
    bag = Encoder(config()).item(Item("i1", {"genre": ["noir", "war"], "title": "a b"}))
    half = SIZES["tiny"].V // 2
    assert (bag.rows[:2] < half).all()
    assert (bag.rows[2:] >= half).all()


def test_categories_share_one_and_words_are_sqrt_normalised():
    bag = Encoder(config()).item(Item("i1", {"genre": ["noir", "war"], "title": "The the BOAT sails"}))
    assert bag.weights.tolist() == pytest.approx([0.5**0.5] * 2 + [0.5, 0.5] + [0.5] * 4)
    the, again = bag.rows[4], bag.rows[5]
    assert the == again


def test_a_number_lies_between_two_bins_and_is_signed():
    encoder = Encoder(config())
    dear, cheap = (encoder.item(Item("i", {"price": price})) for price in (20.0, -20.0))
    assert dear.weights[2:].sum() == pytest.approx(1)
    assert dear.numbers[0] == -cheap.numbers[0] > 0
    near = encoder.item(Item("i", {"price": 20.5}))
    assert np.array_equal(near.rows, dear.rows)
    assert not np.array_equal(near.weights, dear.weights)


def test_the_seed_changes_the_rows():
    assert not same(Encoder(config()).item(Item("i1")), Encoder(config(seed=1)).item(Item("i1")))


def test_equal_values_are_one_category():
    encoder = Encoder(config())
    bags = [encoder.user({"age": value}) for value in (1, 1.0, True, "1")]
    assert all(same(bags[0], bag) for bag in bags)


def test_an_undeclared_field_is_not_an_input():
    encoder = Encoder(config())
    assert same(encoder.user({"age": 3}), encoder.user({"age": 3, "gender": "f"}))


def test_missing_and_empty_values_leave_no_rows():
    encoder = Encoder(config())
    empty = encoder.item(Item("i", {"genre": [], "studio": "", "title": None, "price": None}))
    assert same(empty, encoder.item(Item("i")))
    assert len(empty.rows) == 2


def test_a_long_text_is_cut():
    bag = Encoder(config()).item(Item("i", {"title": "word " * 10_000}))
    assert len(bag.rows) == 2 + WORDS


value = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)


@given(st.dictionaries(st.sampled_from([*KINDS, "other"]), value | st.lists(value, max_size=4)))
def test_any_fields_give_finite_bags_within_the_table(fields):
    bag = Encoder(config()).item(Item("i", fields))
    assert np.isfinite(bag.weights).all()
    assert np.isfinite(bag.numbers).all()
    assert len(bag.rows) == len(bag.weights)
    assert ((bag.rows >= 0) & (bag.rows < SIZES["tiny"].V)).all()


@given(st.lists(st.integers(0, 9), max_size=30))
def test_bags_by_place_give_back_what_was_put_last(places):
    encoder, bags, last = Encoder(config()), Bags(1), {}
    for turn, place in enumerate(places):
        last[place] = encoder.item(Item(f"i{turn}", {"title": "w " * (turn * 7 % 60), "price": turn}))
        bags.put(place, last[place])
    if not last:
        return
    taken, wanted = bags.take(np.array(list(last))), lay_out(list(last.values()))
    assert all(np.array_equal(a, b) for a, b in zip(taken, wanted, strict=True))


# -- time and acts -------------------------------------------------------------------------------------------------


def test_age_is_log_hours_and_what_is_left_of_freshness():
    found = ages(10 * HOUR, np.array([10 * HOUR, 9 * HOUR, 99 * HOUR]))
    assert found.shape == (3, AGES)
    assert found[0].tolist() == [0, 1, 1, 1, 1]
    assert found[1, :2] == pytest.approx([np.log(2) / 8, np.exp(-1)])
    assert np.array_equal(found[2], found[0])


def test_a_value_counts_against_the_users_own_mean():
    history = (Act("i", "rate", 0, 5.0), Act("i", "rate", 0, 1.0), Act("i", "click", 0))
    acts = acts_of([Evidence({}, history, means={"rate": Mean(2, 6.0)})], 10)
    over = act_inputs(acts, 0)[:, -1]
    assert over.tolist() == pytest.approx([np.log(3), -np.log(3), 0])


def test_only_the_last_acts_count():
    history = tuple(Act(f"i{n}", "click", n) for n in range(9))
    assert acts_of([Evidence({}, history), Evidence(), Evidence({}, history[:2])], 3).items == [
        "i6",
        "i7",
        "i8",
        "i0",
        "i1",
    ]


ACT_LISTS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2)), max_size=9)


@given(st.lists(st.tuples(st.sampled_from("uv"), ACT_LISTS, st.integers(0, 1)), max_size=6), st.integers(1, 5))
def test_what_slates_share_is_what_each_would_have_read_alone(slates, keep):
    evidences = [Evidence(history=tuple(Act(item, "click", time) for item, time in acts)) for _, acts, _ in slates]
    found = readings([user for user, _, _ in slates], evidences, [time for _, _, time in slates], keep)
    ends = np.cumsum(found.lengths_S)
    for (_, _, time), evidence, end, length in zip(slates, evidences, ends, found.lengths_S, strict=True):
        own = found.read_M[end - length : end]
        alone = acts_of([evidence], keep)
        assert [found.items[place] for place in found.act_A[own]] == alone.items
        assert [found.kinds[place] for place in found.act_A[own]] == alone.kinds
        assert found.times[own].tolist() == alone.times.tolist()
        assert (found.now_A[own] == time).all()
    # nothing is laid out that nobody reads
    assert np.array_equal(np.unique(found.read_M), np.arange(len(found.act_A)))
    assert np.array_equal(np.unique(found.act_A), np.arange(len(found.items)))


def test_a_person_s_slates_read_her_acts_once_and_the_object_does_not_matter():
    acts = tuple(Act(f"i{n}", "rate", n, float(n % 5)) for n in range(30))
    means = {"rate": Mean(30, 70.0)}
    whole = Evidence(history=acts, means=means)
    for copied in (False, True):
        less = [Evidence(history=acts[:out] + acts[out + 1 :], means=dict(means)) for out in (0, 12, 28, 29)]
        slates = [whole, *less]
        if copied:
            slates = [unpack(pack(evidence)) for evidence in slates]
        found = readings(["u"] * 5, slates, [40] * 5, 20)
        assert len(found.items) == len(found.act_A) == 21
        alone = acts_of(slates, 20)
        assert np.array_equal(found.means[found.read_M], alone.means)
        assert np.array_equal(found.values[found.read_M], alone.values)
    # another time, or another mean, is another reading of the same act
    assert len(readings(["u", "u"], [whole, whole], [40, 41], 20).act_A) == 40
    other = Evidence(history=acts, means={"rate": Mean(31, 70.0)})
    assert len(readings(["u", "u"], [whole, other], [40, 40], 20).act_A) == 40


@given(st.floats(allow_nan=False), st.floats(allow_nan=False), st.integers(-(2**60), 2**60))
def test_extreme_acts_stay_finite(given_value, total, time):
    evidence = Evidence({}, (Act("i", "rate", time, given_value),), means={"rate": Mean(1, total)})
    acts: Acts = acts_of([evidence], 5)
    assert np.isfinite(act_inputs(acts, 2**60)).all()
    encoder = Encoder(config())
    assert np.isfinite(encoder.kinds(acts.kinds).numbers).all()


# -- batches -------------------------------------------------------------------------------------------------------


def test_each_item_of_a_batch_is_embedded_once():
    known = catalogue(Item("a"), Item("b"), Item("c"))
    acts = (Act("a", "click", 1), Act("c", "rate", 2, 4.0), Act("a", "click", 3))
    batch = collate([example(("a", "b")), example(("b", "a"), acts)], known, Encoder(config()))
    assert (batch.items, batch.slates, batch.kinds) == (3, 2, 2)
    assert batch.row_item_R.tolist() == [0, 1, 1, 0]
    assert batch.row_slate_R.tolist() == [0, 0, 1, 1]
    assert batch.act_item_A.tolist() == [0, 2, 0]
    assert batch.act_kind_A.tolist() == [0, 1, 0]
    assert (batch.read_M.tolist(), batch.read_starts_S.tolist()) == ([0, 1, 2], [0, 0])
    assert batch.acted_R.tolist() == [0, 0, 0, 1]
    assert batch.positions_R.tolist() == [0, 1, 0, 1]


def test_bags_of_a_batch_point_to_the_rows_it_touches():
    encoder, known = Encoder(config()), catalogue(Item("a", {"genre": ["noir"]}), Item("b"))
    batch = collate([example()], known, encoder)
    starts = [*batch.bag_starts.tolist(), len(batch.bag_rows)]
    rows = [batch.touched_V[batch.bag_rows[a:b]].tolist() for a, b in itertools.pairwise(starts)]
    wanted = [encoder.item(Item("a", {"genre": ["noir"]})), encoder.item(Item("b"))]
    wanted += [encoder.user({"age": 20}), encoder.request({"device": "tv"})]
    assert rows == [bag.rows.tolist() for bag in wanted]
    assert batch.touched_V.unique().equal(batch.touched_V)


def test_items_the_catalogue_does_not_know_are_encoded_on_the_spot():
    encoder, known = Encoder(config()), catalogue(Item("a", {}, 9 * HOUR))
    batch = collate([example(("new", "a"), (Act("gone", "click", 1),))], known, encoder)
    assert batch.items == 3
    # a new item was first seen now, the old one an hour ago
    assert batch.row_ages[:, 0].tolist() == pytest.approx([0, np.log(2) / 8])


def test_fields_that_came_with_a_ranking_count_for_that_ranking_only():
    encoder, known = Encoder(config()), catalogue(Item("a", {"genre": ["noir"], "price": 3}), Item("b"))
    plain, inline = example(), example(inline={"a": {"price": 7}})
    batch = collate([plain, inline], known, encoder)
    assert batch.items == 3
    one, other = batch.row_item_R[0], batch.row_item_R[2]
    wanted = [encoder.item(Item("a", {"genre": ["noir"], "price": price})).numbers[0] for price in (3, 7)]
    assert batch.item_numbers[[one, other], 0].tolist() == pytest.approx(wanted)
    assert known.get("a") == Item("a", {"genre": ["noir"], "price": 3})


def test_a_replaced_item_is_encoded_anew():
    encoder, known = Encoder(config()), catalogue(Item("a", {"price": 3}), Item("b"))
    before = collate([example()], known, encoder).item_numbers.clone()
    known.put(Item("a", {"price": 900}))
    assert not torch.equal(collate([example()], known, encoder).item_numbers, before)


def test_a_batch_does_not_depend_on_what_the_encoder_saw_before():
    known = catalogue(Item("a"), Item("b"))
    acts = tuple(Act("a", kind, n, float(n)) for n, kind in enumerate(["rate", "click", "rate", "view"]))
    fresh, used = Encoder(config()), Encoder(config())
    collate([example(history=acts[::-1])], known, used)
    one, other = (collate([example(history=acts)], known, encoder) for encoder in (fresh, used))
    for name in one.__slots__:
        left, right = getattr(one, name), getattr(other, name)
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def test_nothing_declared_and_nothing_done_still_makes_a_batch():
    bare = config(item={}, user={}, request={})
    batch = collate([example()], Catalogue(bare), Encoder(bare))
    assert (batch.kinds, len(batch.act_item_A), batch.devices.shape) == (0, 0, (1, 0))


def test_collating_changes_no_input():
    known, given_example = catalogue(Item("a"), Item("b")), example(history=(Act("a", "click", 1),))
    before = [given_example.positions.copy(), given_example.labels_NT.copy(), given_example.mask_NT.copy()]
    batch = collate([given_example], known, Encoder(config()))
    batch.labels_RT.add_(1)
    after = [given_example.positions, given_example.labels_NT, given_example.mask_NT]
    assert all(np.array_equal(a, b) for a, b in zip(after, before, strict=True))
    assert len(known) == 2
