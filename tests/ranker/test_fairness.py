from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker import tally
from ranker.catalogue import Catalogue, Item
from ranker.config import SUPPORT, Config, Fairness, Learning, Objective
from ranker.errors import CheckpointError
from ranker.evidence import EMPTY
from ranker.fairness import OTHER, GroupSums, Row, gap
from ranker.join import Example
from ranker.tally import ALL

CONFIG = Config(
    objectives=(Objective(name="click", event="click"), Objective(name="like", event="like")),
    interests="genres",
    groups=("gender", "age"),
    learning=Learning(minimum_group=3),
    fairness=Fairness(discover=False),
)
ALONE = Config(objectives=CONFIG.objectives, learning=Learning(minimum_group=2), fairness=CONFIG.fairness)


def catalogue() -> Catalogue:
    known = Catalogue(CONFIG)
    known.put(Item("a", {"genres": ["drama"]}))
    known.put(Item("b", {"genres": ["comedy"]}))
    return known


def example(user: str = "u", *, clicks=(0, 1), served=None, closing=True, version="v1", evidence=EMPTY) -> Example:
    labels = np.stack([np.array(clicks), np.zeros(len(clicks))], 1).astype(np.float32)
    return Example(
        ranking="r",
        user=user,
        time=100,
        evidence=evidence,
        request={},
        items=("a", "b", "c")[: len(clicks)],
        positions=np.arange(len(clicks), dtype=np.int32),
        labels_NT=labels,
        mask_NT=np.ones_like(labels),
        served_NT=None if served is None else np.array([served, served], np.float32).T,
        version=version,
        closing=closing,
    )


def labels_of(sums: GroupSums) -> set[tuple[str, str]]:
    return {(field, value) for _, field, value in sums.published}


def slates_of(sums_V) -> float:
    return tally.sums(sums_V).of_slates("slates")


def find(rows: list[Row], field: str, group: str, objective: str = "click", arm: str = "current") -> Row:
    (row,) = [r for r in rows if (r.field, r.group, r.objective, r.arm) == (field, group, objective, arm)]
    return row


def test_ratios_are_quotients_of_the_sums():
    sums = GroupSums(ALONE)
    sums.add(example("u1", clicks=(0, 1), served=(0.3, 0.3)), {}, catalogue())
    sums.add(example("u2", clicks=(1, 0), served=(0.6, 0.3)), {}, catalogue())
    sums.publish()
    row = find(sums.rows(), ALL, ALL)
    assert (row.slates, row.impressions, row.outcomes, row.scored) == (2, 4, 2, 4)
    assert row.rate == 0.5
    assert row.predicted == pytest.approx(1.5)
    assert row.bias == pytest.approx(-0.125)
    # the three .3 share a bin: .9 against 1 outcome
    assert row.calibration_error == pytest.approx((0.1 + 0.4) / 4)
    assert (row.pairs, row.foretold, row.accuracy) == (2, 1.5, 0.75)
    assert row.auc == pytest.approx((1.0 + 0.5) / 2)
    assert row.ndcg == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert row.miscalibration is None
    like = find(sums.rows(), ALL, ALL, "like")
    assert (like.rate, like.ndcg) == (0, None)


def test_only_closing_examples_count():
    sums = GroupSums(ALONE)
    sums.add(example(closing=False), {}, catalogue())
    assert sums.withheld == 0


def test_nothing_is_seen_before_enough_people_stand_behind_it():
    sums = GroupSums(ALONE)
    for _ in range(50):
        sums.add(example("alone"), {}, catalogue())
    assert sums.publish() == {}
    assert (sums.rows(), sums.withheld) == ([], 50)
    sums.add(example("second"), {}, catalogue())
    sums.publish()
    assert find(sums.rows(), ALL, ALL).slates == 51


def test_small_groups_fold_into_other():
    sums = GroupSums(CONFIG)
    for n in range(3):
        sums.add(example(f"f{n}"), {"gender": "f", "age": "young"}, catalogue())
    for n, gender in enumerate(["x", "y", "z"]):
        sums.add(example(f"o{n}"), {"gender": gender, "age": "young"}, catalogue())
    sums.publish()
    assert labels_of(sums) == {(ALL, ALL), ("gender", "f"), ("gender", OTHER), ("age", "young")}
    assert find(sums.rows(), "gender", OTHER).slates == 3


def test_a_small_remainder_is_withheld_from_the_totals_too_so_that_no_difference_reveals_it():
    sums = GroupSums(CONFIG)
    for n in range(6):
        sums.add(example(f"f{n}"), {"gender": "f", "age": "young"}, catalogue())
    sums.add(example("only"), {"gender": "x", "age": "young"}, catalogue())
    sums.publish()
    assert labels_of(sums) == {(ALL, ALL), ("gender", "f"), ("age", "young")}
    assert find(sums.rows(), ALL, ALL).slates == find(sums.rows(), "age", "young").slates == 6
    assert sums.withheld == 1


def test_a_published_group_waits_for_its_minimum_again_in_every_increment():
    sums = GroupSums(CONFIG)
    for n in range(3):
        sums.add(example(f"f{n}"), {"gender": "f", "age": "young"}, catalogue())
        sums.add(example(f"m{n}"), {"gender": "m", "age": "young"}, catalogue())
    sums.publish()
    for n in range(3):
        sums.add(example(f"m{n}"), {"gender": "m", "age": "young"}, catalogue())
    sums.add(example("f0"), {"gender": "f", "age": "young"}, catalogue())
    assert ("current", "gender", "f") not in sums.publish()
    assert find(sums.rows(), "gender", "f").slates == 3
    assert find(sums.rows(), "gender", "m").slates == 6
    assert find(sums.rows(), ALL, ALL).slates == 9


def test_users_without_a_label_are_unknown_and_external_slates_stand_apart():
    sums = GroupSums(CONFIG)
    for n in range(3):
        sums.add(example(f"u{n}", version=None), {}, catalogue())
    sums.publish()
    assert set(sums.published) == {
        ("external", ALL, ALL),
        ("external", "gender", "unknown"),
        ("external", "age", "unknown"),
    }


@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from("fmx"), st.sampled_from("yo"), st.booleans()), max_size=80)
)
@settings(max_examples=60)
def test_every_published_increment_covers_the_minimum_and_all_fields_add_up(slates):
    sums, people, counted = GroupSums(CONFIG), catalogue(), 0
    pending: dict[tuple[str, ...], set[str]] = {}
    for user, gender, age, publish in slates:
        # a person's group is her own: the label follows from the name
        name = f"{gender}{age}{user}"
        sums.add(example(name), {"gender": gender, "age": age}, people)
        pending.setdefault((gender, age), set()).add(name)
        if not publish:
            continue
        increment = sums.publish()
        counted += slates_of(increment[("current", ALL, ALL)]) if increment else 0
        held = set(sums._cells)
        moved = {cell: users for cell, users in pending.items() if ("current", *cell) not in held}
        for _, field, value in increment:
            if field in (ALL,) or value == OTHER:
                continue
            place = CONFIG.groups.index(field)
            behind = {user for cell, users in moved.items() if cell[place] == value for user in users}
            assert len(behind) >= 3
        for cell in moved:
            del pending[cell]
        for field in CONFIG.groups:
            total = sum(slates_of(one) for (_, name, _), one in sums.published.items() if name == field)
            assert total == counted
    assert counted + sums.withheld == len(slates)


def test_shards_add_up():
    one, two, whole = GroupSums(CONFIG), GroupSums(CONFIG), GroupSums(CONFIG)
    for n in range(12):
        groups = {"gender": "fm"[n % 2], "age": "young"}
        (one if n % 3 else two).add(example(f"u{n}", served=(0.1, 0.4)), groups, catalogue())
        whole.add(example(f"u{n}", served=(0.1, 0.4)), groups, catalogue())
    one.merge(two)
    one.publish()
    whole.publish()
    for merged, together in zip(one.rows(), whole.rows(), strict=True):
        assert asdict(merged) == pytest.approx(asdict(together))


def test_the_state_goes_round_and_goes_on_alike():
    sums = GroupSums(CONFIG)
    for n in range(7):
        sums.add(example(f"u{n % 5}"), {"gender": "fm"[n % 2], "age": "young"}, catalogue())
        if n == 5:
            sums.publish()
    twin = GroupSums(CONFIG)
    twin.load(sums.state())
    assert twin.state() == sums.state()
    for one in (sums, twin):
        one.add(example("u9"), {"gender": "f", "age": "old"}, catalogue())
        one.publish()
    assert twin.state() == sums.state()
    with pytest.raises(CheckpointError, match="gender"):
        GroupSums(ALONE).load(sums.state())


def test_memory_stays_bounded_and_made_up_values_do_not_keep_real_ones_out():
    sums = GroupSums(CONFIG, cells=16, values=8)
    for n in range(300):
        sums.add(example(f"u{n}"), {"gender": f"made-up-{n}", "age": f"{n}"}, catalogue())
    assert len(sums._cells) <= 17
    assert all(len(values) <= 8 for values in sums._seen.values())
    for n in range(3):
        sums.add(example(f"f{n}"), {"gender": "f", "age": "young"}, catalogue())
    sums.publish()
    assert sums._seen["gender"]["f"]
    assert sums.withheld == 0


def test_forgetting_takes_a_person_out_of_what_is_remembered():
    sums = GroupSums(CONFIG)
    sums.add(example("gone"), {"gender": "f"}, catalogue())
    before = sums.state()
    sums.forget("gone")
    assert sums.state() != before
    assert not any(cell.users for cell in sums._cells.values())
    assert sums._kept == 0


def test_peoples_own_sums_are_released_by_the_step_that_publishes_their_groups_and_add_up_to_them():
    sums = GroupSums(CONFIG)
    for n in range(8):
        groups = {"gender": "f" if n < 6 else "m", "age": "young"}
        for _ in range(2):
            sums.add(example(f"u{n}", served=(0.1, 0.4)), groups, catalogue())
    sums.publish()
    assert (sums.people, sums.withheld) == (6, 4)
    for label, total_V in sums.published.items():
        own = [one_V for labels, people in sums.released.items() if label in labels for one_V in people.values()]
        assert sum(own).tolist() == pytest.approx(total_V.tolist())
    released = sums.drain()
    assert sum(len(people) for people in released.values()) == 6
    assert (sums.people, sums._kept) == (0, 2)


def test_where_there_is_no_room_for_more_people_their_slates_still_count():
    sums = GroupSums(CONFIG, people=2)
    for n in range(5):
        sums.add(example(f"u{n}"), {"gender": "f", "age": "young"}, catalogue())
    sums.publish()
    assert sums.full
    assert find(sums.rows(), ALL, ALL).slates == 5
    assert sums.people == 2


def test_the_discovered_field_is_published_under_the_same_minimum_as_declared_ones():
    sums = GroupSums(Config(objectives=CONFIG.objectives, groups=("age",), learning=CONFIG.learning))
    for n in range(6):
        sums.add(example(f"u{n}"), {"age": "young", SUPPORT: "minority" if n < 2 else "majority"}, catalogue())
    sums.publish()
    assert labels_of(sums) == {(ALL, ALL), ("age", "young"), (SUPPORT, "majority")}
    assert find(sums.rows(), ALL, ALL).slates == 4


def test_a_gap_is_the_largest_less_the_smallest_group():
    sums = GroupSums(CONFIG)
    for n in range(3):
        sums.add(example(f"f{n}", clicks=(1, 0)), {"gender": "f", "age": "young"}, catalogue())
        sums.add(example(f"m{n}", clicks=(0, 1)), {"gender": "m", "age": "young"}, catalogue())
    sums.publish()
    found = sums.rows()
    assert gap(found, "ndcg", field="gender", objective="click") == pytest.approx(1 - 1 / np.log2(3))
    assert gap(found, "rate", field="gender", objective="click") == 0
    assert gap(found, "ndcg", field="age", objective="click") is None
