import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranker.events import Comparison, Field, Forget, Interaction, Summary, User
from ranker.evidence import ANSWERS, EMPTY, HISTORY, LIFE_MS, PAST, RECENT, Act, Evidence, expiry, fold, pack, unpack


def click(number, time=None, value=None):
    return Interaction(
        id=f"e{number}", timestamp=number if time is None else time, user="u", item=f"i{number}", type="c", value=value
    )


def folded(*given_events):
    evidence = EMPTY
    for event in given_events:
        evidence = fold(evidence, event)
    return evidence


def test_an_act_is_remembered_with_its_item_type_time_and_value():
    (act,) = folded(click(3, value=2.0)).history
    assert (act.item, act.type, act.time, act.value) == ("i3", "c", 3, 2.0)


def test_acts_that_arrive_late_are_placed_by_their_own_time():
    assert [act.item for act in folded(click(5), click(1), click(3)).history] == ["i1", "i3", "i5"]


@given(st.lists(st.integers(0, 20), max_size=30))
def test_a_repeated_event_changes_nothing(numbers):
    once = folded(*(click(n) for n in dict.fromkeys(numbers)))
    assert folded(*(click(n) for n in numbers)) == once


def test_state_is_bounded():
    evidence = folded(*(click(n) for n in range(HISTORY + 50)))
    assert len(evidence.history) == HISTORY
    assert (len(evidence.past.acts), evidence.past.floor) == (50, 0)
    assert evidence.history[-1].item == f"i{HISTORY + 49}"
    assert len(evidence.recent) == RECENT
    answers = [Comparison(id=str(n), timestamp=n, user="u", preferred="a", over="b") for n in range(ANSWERS + 5)]
    assert len(folded(*answers).answers) == ANSWERS


def test_of_older_acts_the_latest_to_expire_stay_and_the_floor_is_the_last_that_did_not():
    many = 5 * (HISTORY + PAST)
    evidence = folded(*(click(n, time=n * LIFE_MS // 100) for n in range(many)))
    older = sorted((Act(f"i{n}", "c", n * LIFE_MS // 100) for n in range(many - HISTORY)), key=expiry)
    assert list(evidence.past.acts) == older[-PAST:]
    assert evidence.past.floor == expiry(older[-PAST - 1])
    assert folded(*(click(n) for n in range(HISTORY))).past.acts == ()


def test_the_sample_weighs_as_much_as_what_it_stands_for():
    def mass(times):
        return np.exp2((np.asarray(times) - last) / LIFE_MS).sum()

    ratios = []
    for person in range(30):
        acts = [click(1000 * person + n, time=n * LIFE_MS // 400) for n in range(900)]
        evidence = folded(*acts)
        last = acts[-1].time
        sampled = mass([max(act.time, evidence.past.floor) for act in evidence.past.acts])
        ratios.append(sampled / mass([act.time for act in acts[:-HISTORY]]))
    assert np.mean(ratios) == pytest.approx(1, abs=0.07)  # each has a spread of about 1 / sqrt(PAST)


def test_evidence_of_before_there_was_a_sample_is_read():
    evidence = folded(click(1), click(2, value=3.0))
    shorter = msgspec.msgpack.encode(msgspec.msgpack.decode(pack(evidence))[:-1])
    assert unpack(shorter) == evidence


def test_group_labels_never_enter_the_evidence():
    user = User(id="1", timestamp=1, user="u", fields=[Field("gender", "f"), Field("city", "Lyon")])
    assert fold(EMPTY, user, groups=frozenset({"gender"})).fields == {"city": "Lyon"}


def test_a_retraction_takes_the_answer_back_and_may_replace_it():
    first = Comparison(id="a1", timestamp=1, user="u", preferred="x", over="y")
    again = Comparison(id="a2", timestamp=2, user="u", preferred="y", over="x", retracts="a1")
    assert [a.preferred for a in folded(first, again).answers] == ["y"]
    undo = Comparison(id="a3", timestamp=2, user="u", preferred="x", over="x", retracts="a1")
    assert folded(first, undo).answers == ()


def test_words_replace_words_and_means_follow_the_users_own_scale():
    evidence = folded(
        Summary(id="s1", timestamp=1, user="u", likes=["noir"]),
        Summary(id="s2", timestamp=2, user="u", avoids=["horror"]),
        click(3, value=2.0),
        click(4, value=4.0),
    )
    assert (evidence.words.likes, evidence.words.avoids) == ((), ("horror",))
    assert evidence.mean("c") == 3.0
    assert evidence.mean("other") is None


def test_forget_leaves_nothing():
    assert fold(folded(*(click(n) for n in range(HISTORY + 2))), Forget(id="f", timestamp=9, user="u")) == EMPTY


@given(st.lists(st.tuples(st.integers(0, 9), st.none() | st.floats(-5, 5)), max_size=20))
def test_packing_is_exact_and_canonical(acts):
    evidence = folded(*(click(n, value=v) for n, v in acts))
    assert unpack(pack(evidence)) == evidence
    assert pack(unpack(pack(evidence))) == pack(evidence)
    assert isinstance(unpack(pack(EMPTY)), Evidence)


def test_the_input_is_not_changed():
    before = folded(click(1, value=1.0))
    packed = pack(before)
    fold(before, click(2, value=5.0))
    assert pack(before) == packed
