from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import grades
from experiments.grades import Grades
from ranker import events
from ranker.errors import DataError
from ranker.events import Event, Field, Interaction, Item, Ranking, Shown


def population(users: int = 120, items: int = 30, graded: int = 20, seed: int = 0) -> Grades:
    """Two opposite groups over items that one axis tells apart."""
    rng = np.random.default_rng(seed)
    axis_I = np.linspace(-2, 2, items)
    rows = [rng.choice(items, graded, replace=False) for _ in range(users)]
    values = [axis_I[mine] * (1 if user % 2 else -1) for user, mine in enumerate(rows)]
    return Grades("two groups", [str(item) for item in range(items)], rows, values)


def log(users: int = 50) -> list[Event]:
    found: list[Event] = []
    for user in range(users):
        shown = [Shown(id=f"i{item}") for item in range(4)]
        found.append(Ranking(id=f"r{user}", timestamp=1, user=f"u{user}", items=shown))
        for item, kind, value in (("i1", "click", None), ("i2", "hate", None), ("i3", "watch", 30.0)):
            found.append(
                Interaction(
                    id=f"{kind}{user}",
                    timestamp=2,
                    user=f"u{user}",
                    item=item,
                    type=kind,
                    value=value,
                    ranking=f"r{user}",
                )
            )
        found.append(Interaction(id=f"s{user}", timestamp=3, user=f"u{user}", item="i4", type="rate", value=4.0))
    return found


def written(folder: Path, found: list[Event]) -> Path:
    path = folder / "log.jsonl"
    path.write_bytes(b"\n".join(events.encode(event) for event in found))
    return path


def test_shown_is_0_acted_on_1_refused_minus_1_and_a_value_outside_a_ranking_is_itself(tmp_path: Path) -> None:
    found = grades.load([written(tmp_path, log())], least=5)
    assert len(found) == 50
    assert found.name == "log.jsonl"
    assert dict(zip([found.names[row] for row in found.items[7]], found.values[7], strict=True)) == {
        "i0": 0.0,
        "i1": 1.0,
        "i2": -1.0,
        "i3": 0.0,
        "i4": 4.0,
    }


def test_list_fields_of_items_become_tags_and_rare_ones_are_left_out(tmp_path: Path) -> None:
    kinds = {"i0": ["a", "b"], "i1": ["a"], "i2": []}
    items: list[Event] = [
        Item(id=name, timestamp=0, item=name, fields=[Field("genres", list(tags)), Field("title", "x")])
        for name, tags in kinds.items()
    ]
    found = grades.load([written(tmp_path, items + log())], least=5)
    assert found.tags is not None
    assert found.tags.shape == (5, 2)
    assert found.tags.mean(0) == pytest.approx([0, 0])
    assert (found.tags[[found.names.index("i0"), found.names.index("i1")], 0] > 0).all()
    assert grades.load([written(tmp_path, log())], least=5).tags is None


def test_grades_closer_than_a_twentieth_of_the_scale_are_no_preference() -> None:
    items, values = np.arange(3), np.array([0.0, 0.5, 1.5])
    found = grades.comparisons(items, values, 9, np.random.default_rng(0), apart=1.0)
    assert sorted(map(tuple, found.tolist())) == [(2, 0), (2, 1)]


def test_the_interval_widens_with_users_who_differ_and_with_seeds_that_do() -> None:
    rng = np.random.default_rng(0)
    same = grades.nested("a", "accuracy", [rng.normal(0, 0.1, 200) for _ in range(5)])
    spread = grades.nested("a", "accuracy", [rng.normal(place, 0.1, 200) for place in range(5)])
    assert same.high - same.low < 0.03
    assert spread.high - spread.low > 1
    assert same.n == 1000


def test_a_log_of_too_few_graders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="49 users"):
        grades.load([written(tmp_path, log(49))], least=5)
    assert len(grades.load([written(tmp_path, log(60))], least=5, most=55)) == 55


@given(st.integers(2, 500), st.integers(0, 100))
def test_nobody_is_on_both_sides_of_a_split(users: int, seed: int) -> None:
    train, test = grades.split(users, seed)
    assert sorted([*train, *test]) == list(range(users))


@given(st.integers(0, 1000), st.integers(1, 200))
def test_comparisons_are_distinct_and_the_better_graded_item_is_preferred(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    items, values = rng.permutation(40)[:12], rng.integers(0, 3, 12).astype(float)
    value = dict(zip(items.tolist(), values, strict=True))
    found = grades.comparisons(items, values, count, rng).tolist()
    assert all(value[better] > value[worse] for better, worse in found)
    assert len({tuple(pair) for pair in found}) == len(found)
    unequal = sum(values[one] != values[other] for one in range(12) for other in range(one))
    assert len(found) == min(count, unequal)


@settings(max_examples=30)
@given(st.integers(0, 1000))
def test_training_pairs_are_of_their_own_user_and_never_ties(seed: int) -> None:
    known = population(6, seed=seed)
    users = np.array([4, 1, 5])
    who, pairs = grades.many(known, users, 10, np.random.default_rng(seed))
    for place, (better, worse) in zip(who.tolist(), pairs.tolist(), strict=True):
        mine = dict(zip(known.items[users[place]].tolist(), known.values[users[place]], strict=True))
        assert mine[better] > mine[worse]


def test_fitted_base_rewards_explain_people_who_disagree() -> None:
    known = population()
    base = grades.fit(known, np.arange(120), k=2, pairs=20, epochs=40)
    axis = np.linspace(-2, 2, 30)
    loadings = np.array([abs(np.corrcoef(axis, base.phi_IK[:, place])[0, 1]) for place in range(2)])
    assert loadings.max() > 0.9
    assert np.abs(base.intercept_I).max() < np.abs(base.phi_IK).max()
    assert np.linalg.eigvalsh(base.prior.precision).min() > 0


def test_the_same_seed_fits_the_same_base_rewards() -> None:
    known = population(60)
    one, other = (grades.fit(known, np.arange(60), k=2, pairs=5, epochs=3, seed=3) for _ in range(2))
    assert np.array_equal(one.phi_IK, other.phi_IK)
    assert one.utilities(np.ones(2)).shape == (30,)
