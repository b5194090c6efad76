import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker.config import Config, parse
from ranker.errors import CheckpointError, ConfigError
from ranker.events import Comparison, Field, Forget, Interaction, Item, Ranking, Shown, User
from ranker.groups import LEAST, MAJORITY, MINORITY, REFIT, Groups
from ranker.join import Joiner
from ranker.metrics import auc


def config(minimum: int = 2, **fairness: object) -> Config:
    return parse(
        {
            "objectives": [{"name": "click", "event": "click", "wait": 1}],
            "groups": ["age"],
            "learning": {"minimum_group": minimum},
            "fairness": fairness,
        }
    )


def told(user: str, **labels: str | None) -> User:
    return User(id=f"{user}{labels}", timestamp=1, user=user, fields=[Field(*pair) for pair in labels.items()])


def people(groups: Groups, *, users: int = 200, minority: int = 40, each: int = 24, seed: int = 0) -> np.ndarray:
    """Many who mostly prefer low numbers, and some who mostly prefer high ones; who is of the minority."""
    draws = np.random.default_rng(seed)
    rare = np.arange(users) < minority
    for user in draws.permutation(np.repeat(np.arange(users), each)).tolist():
        low, high = sorted(draws.choice(30, 2, replace=False).tolist())
        flip = (draws.random() < 0.15) != rare[user]
        groups.compare(f"u{user}", f"i{high if flip else low}", f"i{low if flip else high}")
    return rare


def test_a_value_is_named_once_enough_people_have_it_and_no_longer_when_they_left() -> None:
    groups = Groups(config(2))
    groups.declare(told("ada", age="old"))
    assert groups.of("ada") == {}
    groups.declare(told("bob", age="old"))
    assert groups.of("ada") == groups.of("bob") == {"age": "old"}
    groups.declare(told("bob", age="young"))
    assert groups.of("ada") == {}
    groups.declare(told("bob", age=None))
    groups.declare(told("bob", age="old"))
    assert groups.of("ada") == {"age": "old"}
    groups.forget("bob")
    assert (groups.of("ada"), groups.of("bob"), "bob" in groups) == ({}, {}, False)


def test_undeclared_fields_are_no_groups_and_true_is_a_word() -> None:
    groups = Groups(config(1))
    groups.declare(User(id="e", timestamp=1, user="ada", fields=[Field("age", True), Field("city", "Lyon")]))
    assert groups.of("ada") == {"age": "true"}


def test_who_prefers_what_few_prefer_is_of_the_minority() -> None:
    groups = Groups(config())
    rare = people(groups)
    found = np.array([groups.of(f"u{user}").get("support") == MINORITY for user in range(len(rare))])
    supports = np.array([groups.support(f"u{user}") for user in range(len(rare))], np.float64)
    assert auc(rare.astype(float), -supports) > 0.98
    assert (found & rare).sum() >= 0.85 * rare.sum()
    assert (found & ~rare).sum() <= 0.02 * (~rare).sum()
    assert {groups.of(f"u{user}")["support"] for user in range(len(rare))} == {MAJORITY, MINORITY}


def test_a_minority_under_the_minimum_size_is_not_told_apart() -> None:
    groups = Groups(config(41))
    people(groups)
    assert groups.of("u0") == groups.of("u100") == {}
    assert groups.support("u0") is not None


def test_few_comparisons_tell_nothing_and_what_nobody_else_rated_tells_little() -> None:
    groups = Groups(config())
    for number in range(LEAST - 1):
        groups.compare("ada", f"a{number}", f"b{number}")
    assert groups.support("ada") is None
    groups.compare("ada", "a", "b")
    assert groups.support("ada") == 0.5


def test_without_discovery_there_is_no_support() -> None:
    groups = Groups(config(discover=False))
    people(groups)
    assert groups.support("u0") is None
    assert groups.of("u0") == {}


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(0, 3 * REFIT))
def test_groups_taken_up_from_a_state_go_on_bit_for_bit(seed: int, split: int) -> None:
    draws = np.random.default_rng(seed)
    said = [(f"u{u}", f"i{a}", f"i{b}") for u, a, b in draws.integers(0, 12, (3 * REFIT, 3)).tolist()]
    whole, half = Groups(config(), items=8, users=10), Groups(config(), items=8, users=10)
    for one in said:
        whole.compare(*one)
    half.declare(told("u1", age="old"))
    whole.declare(told("u1", age="old"))
    for one in said[:split]:
        half.compare(*one)
    later = Groups(config(), items=8, users=10)
    later.load(half.state())
    assert later.state() == half.state()
    for one in said[split:]:
        later.compare(*one)
    assert later.state() == whole.state()


def test_a_damaged_state_is_refused_and_undeclared_fields_are_left_out() -> None:
    groups = Groups(config(1))
    groups.declare(told("ada", age="old"))
    with pytest.raises(CheckpointError, match="groups"):
        Groups(config()).load(groups.state()[:-3])
    other = Groups(parse({"objectives": [{"name": "click", "event": "click"}]}))
    other.load(groups.state())
    assert dict(other) == {}


def heard(joiner: Joiner) -> list[str]:
    """Items in the order in which they were last compared."""
    return list(joiner.groups._ratings)


def test_answers_grades_and_closed_slates_are_comparisons() -> None:
    joiner = Joiner(config())
    for number in range(4):
        joiner.push(Item(id=f"n{number}", timestamp=0, item=f"i{number}"))
    joiner.push(Comparison(id="c1", timestamp=1, user="u", preferred="i0", over="i1"))
    assert heard(joiner) == ["i0", "i1"]
    joiner.push(Comparison(id="c2", timestamp=1, user="u", preferred="i2", over="i3", outcome="both"))
    assert heard(joiner) == ["i0", "i1"]
    for number, grade in ((2, 5.0), (3, 1.0)):
        joiner.push(Interaction(id=f"g{number}", timestamp=2, user="u", item=f"i{number}", type="rate", value=grade))
    assert heard(joiner) == ["i0", "i1", "i2", "i3"]
    joiner.push(Ranking(id="r", timestamp=10, user="u", items=[Shown("i0"), Shown("i1")]))
    joiner.push(Interaction(id="k", timestamp=11, user="u", item="i1", type="click", ranking="r"))
    joiner.flush()
    assert heard(joiner) == ["i2", "i3", "i1", "i0"]


def test_a_repeated_event_is_heard_once_and_a_forgotten_person_is_gone() -> None:
    joiner = Joiner(config())
    for _ in range(2):
        joiner.push(Comparison(id="c1", timestamp=1, user="u", preferred="i0", over="i1"))
    assert joiner.groups._people["u"].count == 1
    joiner.push(Forget(id="f", timestamp=5, user="u"))
    assert "u" not in joiner.groups._people


def test_a_balanced_field_must_be_a_group_and_support_cannot_be_declared_beside_the_discovered_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'age'"):
        config(field="aeg")
    with pytest.raises(ConfigError, match="discovered"):
        parse({"objectives": [{"name": "c", "event": "c"}], "groups": ["support"]})
    assert config().balanced_field == "age"
    assert config(field="support").balanced_field == "support"
    assert config().group_fields == ("age", "support")
    assert config(discover=False).group_fields == ("age",)
