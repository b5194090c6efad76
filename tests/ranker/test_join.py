from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ranker import config, evidence
from ranker.config import Config
from ranker.errors import ConfigError
from ranker.events import Event, Field, Forget, Interaction, Item, Ranking, Shown, User
from ranker.join import KEEP, Example, Joiner, _as_of
from ranker.slates import Foreseen

CONFIG = config.parse(
    {
        "objectives": [
            {"name": "click", "event": "click", "wait": 10},
            {"name": "dwell", "event": "dwell", "threshold": 30, "wait": 100},
            {"name": "seconds", "event": "dwell", "kind": "value", "wait": 100},
            {
                "name": "like",
                "event": "like",
                "wait": 10,
                "graded": {"event": "rate", "at_least": "user-mean"},
            },
        ],
        "groups": ["gender"],
    }
)
CLICK, DWELL, SECONDS, LIKE = range(4)


def slate(name: str = "r1", time: int = 1000, user: str = "u", items: Iterable[str] = "abc", **more: object) -> Ranking:
    return Ranking(id=name, timestamp=time, user=user, items=[Shown(i) for i in items], **more)  # type: ignore[arg-type]


def act(kind: str, item: str, time: int, *, name: str = "", user: str = "u", **more: object) -> Interaction:
    ranking = more.pop("ranking", "r1")
    return Interaction(
        id=name or f"{kind}-{item}-{time}-{ranking}",
        timestamp=time,
        user=user,
        item=item,
        type=kind,
        ranking=ranking,  # type: ignore[arg-type]
        **more,  # type: ignore[arg-type]
    )


def push(joiner: Joiner, *happened: Event) -> list[Example]:
    return [example for event in happened for example in joiner.push(event)]


def cells(examples: Iterable[Example]) -> list[tuple[str, str, int, float]]:
    return [
        (example.ranking, item, int(place), float(example.labels_NT[row, place]))
        for example in examples
        if not example.closing and not example.opening
        for row, item in enumerate(example.items)
        for place in np.flatnonzero(example.mask_NT[row])
    ]


def same(ours: list[Example], theirs: list[Example]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for name in Example.__dataclass_fields__:
            a, b = getattr(one, name), getattr(other, name)
            if isinstance(a, np.ndarray):
                np.testing.assert_array_equal(a, b)
            else:
                assert a == b, name


def test_a_positive_is_learned_on_arrival_and_the_negatives_when_the_wait_has_passed() -> None:
    joiner = Joiner(CONFIG)
    assert push(joiner, slate()) == []
    assert cells(push(joiner, act("click", "b", 2000))) == [("r1", "b", CLICK, 1)]
    assert push(joiner, act("click", "x", 11_000, ranking=None, user="v"))[:-1] == []
    closed = joiner.push(act("click", "x", 11_001, ranking=None, user="v"))
    assert sorted(cells(closed[:1])) == sorted(
        [("r1", "a", CLICK, 0), ("r1", "c", CLICK, 0), *[("r1", item, LIKE, 0.0) for item in "abc"]]
    )
    full = joiner.flush()[-1]
    assert full.closing
    assert full.labels_NT[:, CLICK].tolist() == [0, 1, 0]
    assert full.mask_NT.all()


def test_a_positive_after_its_wait_gets_one_corrective_row() -> None:
    joiner = Joiner(CONFIG)
    push(joiner, slate(), slate("r2", 12_000, "v"))
    assert cells(push(joiner, act("click", "a", 13_000))) == [("r1", "a", CLICK, 1)]
    assert push(joiner, act("click", "a", 13_500)) == []
    assert next(e for e in joiner.flush() if e.closing and e.ranking == "r1").labels_NT[0, CLICK] == 1


def test_a_value_is_learned_at_its_wait_with_the_largest_value_seen() -> None:
    joiner = Joiner(CONFIG)
    rows = push(joiner, slate(), act("dwell", "a", 2000, value=12.0), act("dwell", "a", 3000, value=40.0))
    assert cells(rows) == [("r1", "a", DWELL, 1)]
    assert ("r1", "a", SECONDS, 40.0) in cells(joiner.flush())


def test_feedback_before_its_ranking_waits_for_it_and_stays_out_of_the_snapshot() -> None:
    joiner = Joiner(CONFIG)
    before = act("rate", "z", 500, ranking=None, value=3.0)
    assert push(joiner, before, act("click", "a", 1000), act("dwell", "c", 1500, value=50.0)) == []
    assert cells(push(joiner, slate())) == [("r1", "a", CLICK, 1), ("r1", "c", DWELL, 1)]
    closing = joiner.flush()[-1]
    assert [a.item for a in closing.evidence.history] == ["z"]
    assert closing.evidence.mean("rate") == 3
    assert closing.evidence.mean("dwell") is None
    assert closing.evidence.updated <= closing.time


def test_of_the_older_acts_too_only_what_lay_before_a_slate_is_its_evidence() -> None:
    known = evidence.EMPTY
    for number in range(evidence.HISTORY + 40):
        known = evidence.fold(known, act("view", f"{number}", 10 * number))
    assert {older.time for older in _as_of(known, 200, []).past.acts} == {10 * number for number in range(21)}
    assert _as_of(known, 2000, []) is known


def test_grades_outside_of_rankings_are_judged_by_the_mean_before_them() -> None:
    joiner = Joiner(CONFIG)
    grades = [
        act("rate", item, time, ranking=None, value=v) for item, time, v in [("a", 1, 3), ("b", 2, 4), ("c", 3, 3)]
    ]
    examples = push(joiner, *grades)
    assert cells(examples) == [("", "b", LIKE, 1), ("", "c", LIKE, 0)]
    assert [len(e.evidence.history) for e in examples] == [1, 2]
    assert examples[0].positions.tolist() == [-1]


def test_foreign_items_users_and_unknown_slates_label_nothing_and_are_counted() -> None:
    joiner = Joiner(CONFIG)
    foreign = [act("click", "x", 1001), act("click", "a", 1002, user="v"), act("click", "a", 1003, ranking="never")]
    assert push(joiner, slate(), *foreign) == []
    assert joiner.ignored == 2
    push(joiner, act("click", "q", 200_000, ranking=None), act("click", "q", 200_001, ranking="nor this"))
    assert joiner.ignored == 3


def test_served_probabilities_positions_arm_and_inline_fields_come_along() -> None:
    joiner = Joiner(CONFIG)
    shown = [
        Shown("a", [Field("price", 3.0)], position=4, probabilities=[0.1, 0.2, 0.3, 0.4]),
        Shown("b", position=None, probabilities=[0.5, 0.6, 0.7, 0.8]),
    ]
    joiner.push(Ranking(id="r1", timestamp=1000, user="u", items=shown, version="v7", arm="current"))
    closing = joiner.flush()[-1]
    assert closing.positions.tolist() == [4, -1]
    assert closing.served_NT is not None
    np.testing.assert_allclose(closing.served_NT[1], [0.5, 0.6, 0.7, 0.8])
    assert (closing.version, closing.arm, closing.inline) == ("v7", "current", {"a": {"price": 3.0}})


def test_a_prediction_noted_at_the_opening_comes_back_at_the_closing() -> None:
    joiner = Joiner(CONFIG, opening=True)
    (opening,) = push(joiner, slate())
    assert opening.opening
    assert not opening.mask_NT.any()
    chances_NT = np.full((3, 4), 0.25, np.float32)
    joiner.note("r1", Foreseen(chances_NT, 2 * chances_NT, np.arange(3, dtype=np.float32)))
    resumed = Joiner(CONFIG)
    resumed.load(joiner.state())
    for one in (joiner, resumed):
        foreseen = one.flush()[-1].foreseen
        assert foreseen is not None
        assert (foreseen.chances_NT == 0.25).all()
        assert (foreseen.worth_NT == 0.5).all()
        assert foreseen.utility_N.tolist() == [0, 1, 2]


def test_groups_are_labels_beside_the_evidence_and_never_in_it() -> None:
    joiner = Joiner(CONFIG)
    joiner.push(User(id="e", timestamp=1, user="u", fields=[Field("gender", "F"), Field("age", 30)]))
    assert joiner.groups == {"u": {"gender": "F"}}
    assert joiner.evidence["u"].fields == {"age": 30}


def test_forget_removes_a_person_everywhere_and_older_events_do_not_bring_her_back() -> None:
    joiner = Joiner(CONFIG)
    push(
        joiner,
        User(id="e", timestamp=1, user="u", fields=[Field("gender", "F")]),
        slate(),
        slate("r2", user="v"),
        act("click", "a", 1001, ranking="later"),
        Forget(id="f", timestamp=5000, user="u"),
        act("click", "a", 4000),
        slate("later", 3000),
    )
    assert b"u" not in [user.encode() for user in joiner.evidence]
    assert "u" not in joiner.groups
    assert {example.user for example in joiner.flush()} == {"v"}
    assert push(joiner, act("click", "a", 6000, ranking=None)) != []


def test_a_partition_that_is_ahead_does_not_close_the_slates_of_one_that_is_behind() -> None:
    joiner = Joiner(CONFIG)
    joiner.push(slate(), 0)
    assert joiner.push(slate("r2", 10**9, "v"), 1) == []
    assert cells(joiner.push(act("click", "a", 2000), 0)) == [("r1", "a", CLICK, 1)]
    assert joiner.now == 10**9
    assert [e.ranking for e in joiner.catch_up() if e.closing] == ["r1"]


def test_catalogue_imports_do_not_move_the_clock() -> None:
    joiner = Joiner(CONFIG)
    push(joiner, slate(), Item(id="i", timestamp=10**12, item="a"))
    assert joiner.now == 1000


def test_users_and_slates_are_bounded_and_closed_slates_leave_after_a_while() -> None:
    joiner = Joiner(CONFIG, users=2, slates=3)
    push(joiner, *[act("click", "a", n, user=f"u{n}", ranking=None) for n in range(5)])
    assert list(joiner.evidence) == ["u3", "u4"]
    push(joiner, *[slate(f"r{n}", 1000 + n) for n in range(5)])
    assert (joiner.pending, joiner.dropped) == (3, 2)
    assert sum(example.closing for example in push(joiner, slate("far", 1000 + KEEP * 100_000 + 100))) == 3
    assert joiner.pending == 1


def test_a_state_of_other_objectives_is_refused() -> None:
    other = config.parse({"objectives": [{"name": "buy", "event": "buy"}]})
    with pytest.raises(ConfigError, match="start a new one"):
        Joiner(other).load(Joiner(CONFIG).state())


NUMERIC = config.parse(
    {
        "objectives": [
            {"name": "click", "event": "click", "wait": 10},
            {"name": "dwell", "event": "dwell", "threshold": 30, "wait": 10},
            {"name": "seconds", "event": "dwell", "kind": "value", "wait": 10},
        ]
    }
)

acts = st.builds(
    lambda kind, item, time, value: act(kind, item, time, value=value),
    st.sampled_from(["click", "dwell"]),
    st.sampled_from("abcx"),
    st.integers(1000, 11_000),
    st.one_of(st.none(), st.floats(0, 100, width=32)),
)


def closing_labels(examples: list[Example]) -> list[list[float]]:
    (closing,) = [example for example in examples if example.closing]
    return closing.labels_NT.tolist()


@given(st.lists(acts, max_size=12, unique_by=lambda a: a.id), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_duplicates_and_reordering_within_the_wait_give_the_same_closing_labels(happened, random) -> None:  # type: ignore[no-untyped-def]
    plain, shuffled = Joiner(NUMERIC), Joiner(NUMERIC)
    expected = closing_labels(push(plain, slate(), *happened) + plain.flush())
    again: list[Event] = [slate(), *happened, *happened[:3], slate()]
    random.shuffle(again)
    assert closing_labels(push(shuffled, *again) + shuffled.flush()) == expected


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """A small log: slates, feedback that may be late, early, doubled or foreign, users, forgets."""
    happened: list[Event] = []
    for number in range(draw(st.integers(1, 6))):
        user, time = draw(st.sampled_from("uv")), draw(st.integers(0, 300_000))
        name = f"r{number}"
        happened.append(slate(name, time, user, draw(st.sampled_from(["abc", "bd", "a"]))))
        for _ in range(draw(st.integers(0, 5))):
            kind, item = draw(st.sampled_from(["click", "dwell", "like"])), draw(st.sampled_from("abd"))
            late = draw(st.integers(-2000, 150_000))
            value = draw(st.sampled_from([None, 10.0, 50.0]))
            happened.append(act(kind, item, max(0, time + late), user=user, ranking=name, value=value))
    if draw(st.booleans()):
        happened.append(Forget(id="f", timestamp=draw(st.integers(0, 300_000)), user="u"))
    happened.sort(key=lambda event: (event.time, event.id))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(happened) - 1))
        happened.insert(draw(st.integers(0, len(happened))), happened[place])
    return happened


@given(logs())
@settings(max_examples=150)
def test_every_cell_is_learned_once_plus_at_most_one_correction_upward(happened: list[Event]) -> None:
    # the service stamps a forget no earlier than anything known of the person; a repeat of what is newer counts as new
    forgets = [(place, event.time) for place, event in enumerate(happened) if isinstance(event, Forget)]
    assume(all(before.time <= time for place, time in forgets for before in happened[:place]))
    joiner = Joiner(CONFIG)
    examples = push(joiner, *happened) + joiner.flush()
    learned: dict[tuple[str, str, int], list[float]] = {}
    for ranking, item, place, label in cells(examples):
        learned.setdefault((ranking, item, place), []).append(label)
    assert all(len(labels) <= 2 and labels == sorted(set(labels)) for labels in learned.values())
    for example in examples:
        if example.closing:
            for item in example.items:
                for place in range(4):
                    assert learned[example.ranking, item, place]
    assert max(Counter(e.ranking for e in examples if e.closing).values(), default=1) == 1
    assert joiner.pending == 0


@given(logs())
@settings(max_examples=100)
def test_no_snapshot_holds_anything_from_after_its_slate(happened: list[Event]) -> None:
    joiner = Joiner(CONFIG)
    for example in push(joiner, *happened) + joiner.flush():
        assert all(a.time <= example.time for a in example.evidence.history)
        assert example.evidence.updated <= example.time


@given(logs(), st.data())
@settings(max_examples=100)
def test_a_joiner_loaded_at_any_point_goes_on_exactly_like_the_one_that_was_saved(
    happened: list[Event], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(happened)))
    whole, resumed = Joiner(CONFIG), Joiner(CONFIG)
    push(whole, *happened[:cut])
    resumed.load(whole.state())
    assert resumed.state() == whole.state()
    same(push(resumed, *happened[cut:]), push(whole, *happened[cut:]))
    assert resumed.state() == whole.state()
    same(resumed.flush(), whole.flush())
    assert resumed.state() == whole.state()
    assert all(evidence.pack(e) == evidence.pack(whole.evidence[u]) for u, e in resumed.evidence.items())


def test_catalogue_rows_and_columns_survive_the_state() -> None:
    named: Config = config.parse(
        {
            "objectives": [{"name": "click", "event": "click"}],
            "fields": {"item": {"genres": "categories"}},
            "interests": "genres",
        }
    )
    joiner, again = Joiner(named), Joiner(named)
    first = Item(id="1", timestamp=1, item="a", fields=[Field("genres", ["x", "y"])])
    push(joiner, first, Item(id="2", timestamp=2, item="a", fields=[Field("genres", ["z"])]), slate())
    again.load(joiner.state())
    assert again.catalogue.categories == ["x", "y", "z"]
    np.testing.assert_array_equal(again.catalogue.interests_NC, joiner.catalogue.interests_NC)
