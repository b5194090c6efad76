"""The audience and the population: what they click, and what satisfaction means."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranker import events
from ranker.datasets import MovieLens
from ranker.errors import ConfigError
from ranker.simulation import Audience, Population, Satisfaction, Tastes, examination, visit


def ratings(users: int = 6, films: int = 40) -> MovieLens:
    """Everybody rated every film; film f of user u got 1 + (f + u) % 5 stars."""
    user_N, film_N = (grid.ravel() for grid in np.meshgrid(np.arange(users), np.arange(films), indexing="ij"))
    return MovieLens(
        films={str(f): {"title": f"film {f}", "genres": ["Drama"]} for f in range(films)},
        people={str(u): {"gender": "F"} for u in range(users)},
        users_N=user_N.astype(str),
        items_N=film_N.astype(str),
        values_N=1.0 + (user_N + film_N) % 5,
        times_N=np.arange(users * films, dtype=np.int64),
    )


def test_history_and_truth_part_each_persons_ratings_once() -> None:
    audience = Audience(ratings(), seed=3, history=0.5)
    assert sorted([*audience.history_rows, *audience.truth_rows]) == list(range(240))
    assert Counter(ratings().users_N[audience.truth_rows].tolist()) == {str(u): 20 for u in range(6)}
    again = Audience(ratings(), seed=3, history=0.5)
    assert np.array_equal(audience.history_rows, again.history_rows)
    rates = [event for event in audience.events() if isinstance(event, events.Interaction)]
    assert len(rates) == len(audience.history_rows)


def test_who_looks_everywhere_clicks_all_fours_likes_fives_and_dismisses_low_ones() -> None:
    data = ratings()
    stars = {(u, i): v for u, i, v in zip(data.users_N.tolist(), data.items_N.tolist(), data.values_N, strict=True)}
    audience = Audience(data, curve=np.ones(100))
    ask = audience.ask()
    found = audience.react(ask, ask.items, ranking="r1", now=1000)
    expected = {(i, "click") for i in ask.items if stars[ask.user, i] >= 4}
    expected |= {(i, "like") for i in ask.items if stars[ask.user, i] == 5}
    expected |= {(i, "dismiss") for i in ask.items if stars[ask.user, i] <= 2}
    acts = [event for event in found.events if isinstance(event, events.Interaction)]
    assert {(act.item, act.type) for act in acts} == expected
    assert {act.ranking for act in acts} == {"r1"}
    assert len({act.id for act in acts}) == len(acts)
    assert [act.time for act in acts] == sorted(act.time for act in acts)
    assert acts[0].time > 1000


def test_who_looks_nowhere_does_nothing_but_may_be_satisfied() -> None:
    data = ratings()
    audience = Audience(data, curve=np.zeros(1))
    ask = audience.ask()
    best = sorted(ask.items, key=lambda item: -((int(item) + int(ask.user)) % 5))
    found = audience.react(ask, best, ranking="r", now=0)
    assert found.events == ()
    assert found.satisfaction == found.oracle > found.chance
    assert found.fresh == 1
    assert audience.react(ask, best, ranking="r2", now=1).fresh == 0


def test_examination_falls_with_the_position() -> None:
    audience = Audience(ratings(), curve=examination(20, decay=1.0))
    clicks: Counter[int] = Counter()

    def rank(user: str, items: Sequence[str]) -> tuple[str, Sequence[str]]:
        return f"r{rank_calls.pop()}", items

    rank_calls = list(range(3000))
    for now in range(3000):
        ask = audience.ask()
        shown = [item for item in ask.items if (int(item) + int(ask.user)) % 5 >= 3]
        for event in audience.react(ask, shown, ranking=f"r{now}", now=now).events:
            assert isinstance(event, events.Interaction)
            clicks[shown.index(event.item)] += event.type == "click"
    assert clicks[0] == 3000
    assert clicks[3] / 3000 == pytest.approx(0.25, abs=0.03)


def test_a_visit_asks_ranks_and_hands_over_every_reaction() -> None:
    audience, seen = Audience(ratings()), []

    def rank(user: str, items: Sequence[str]) -> tuple[str, Sequence[str]]:
        assert 10 <= len(items) <= 60
        return "r", list(reversed(items))

    found = visit(audience, rank, seen.append, now=5)
    assert tuple(seen) == found.events


def test_items_the_service_made_up_please_nobody() -> None:
    audience = Audience(ratings(), curve=np.ones(100))
    found = audience.react(audience.ask(), ["strange"] * 3, ranking="r", now=0)
    assert found.satisfaction == 0
    assert not found.events


def test_an_empty_slate_satisfies_nobody() -> None:
    audience = Audience(ratings())
    assert audience.react(audience.ask(), [], ranking="r", now=0).satisfaction == 0


@pytest.mark.parametrize("history", [0.0, 1.0])
def test_a_split_without_history_or_truth_is_refused(history: float) -> None:
    with pytest.raises(ConfigError, match="share between 0 and 1"):
        Audience(ratings(), history=history)


def test_satisfaction_tells_chance_from_skill() -> None:
    audience, random, best = Audience(ratings()), Satisfaction(), Satisfaction()
    for now in range(300):
        ask = audience.ask()
        random.add(audience.react(ask, ask.items, ranking=f"r{now}", now=now))
        order = sorted(ask.items, key=lambda item: -((int(item) + int(ask.user)) % 5))
        best.add(audience.react(ask, order, ranking=f"b{now}", now=now))
    assert random.regained == pytest.approx(0, abs=0.1)
    assert best.regained == pytest.approx(1)


def test_an_empty_tally_is_unknown() -> None:
    assert np.isnan(Satisfaction().mean)
    assert np.isnan(Satisfaction().fresh)
    assert np.isnan(Satisfaction().regained)


@settings(max_examples=20)
@given(st.integers(2, 4), st.floats(0, 1), st.integers(0, 5))
def test_taste_groups_have_the_cosine_and_the_shares_they_were_given(groups: int, position: float, seed: int) -> None:
    low = -1 / (groups - 1)
    cosine = low + (0.99 - low) * position
    shares = tuple([1 - 0.1 * (groups - 1)] + [0.1] * (groups - 1))
    people = Population(Tastes(users=50, items=20, shares=shares, cosine=cosine, seed=seed))
    unit = people.directions_GK / np.linalg.norm(people.directions_GK, axis=1, keepdims=True)
    off = (unit @ unit.T)[~np.eye(groups, dtype=bool)]
    assert off == pytest.approx(np.full(len(off), cosine), abs=1e-6)
    assert np.bincount(people.group_U).tolist() == [50 - 5 * (groups - 1)] + [5] * (groups - 1)


def test_the_best_for_the_majority_serves_the_minority_less() -> None:
    people = Population(Tastes(users=400, items=300, shares=(0.9, 0.1), cosine=-0.7, seed=1))
    best = [people.items[row] for row in np.argsort(-people.likes_UN.mean(0))[:20]]
    tally = Satisfaction()
    for now in range(500):
        tally.add(visit(people, lambda user, items, now=now: (f"r{now}", best), lambda event: None, now=now))
    means = {group: total / count for group, (count, total) in tally.groups.items()}
    assert means["g0"] > means["g1"] + 0.2
    assert 0 < tally.regained < 1


def test_a_population_that_looks_everywhere_and_never_slips_clicks_as_often_as_it_likes() -> None:
    people = Population(Tastes(users=50, items=100, noise=0.0, seed=2), curve=np.ones(100))
    expected = clicks = 0.0
    for now in range(200):
        ask = people.ask()
        found = people.react(ask, people.items, ranking=f"r{now}", now=now)
        expected += people.likes_UN[people.users.index(ask.user)].sum()
        clicks += sum(isinstance(event, events.Interaction) and event.type == "click" for event in found.events)
    assert clicks == pytest.approx(expected, rel=0.05)


def test_a_population_can_tell_its_past_and_its_groups() -> None:
    people = Population(Tastes(users=10, items=30, seed=0))
    found = list(people.events(ratings=3, start=100))
    assert Counter(type(event).__name__ for event in found) == {"Item": 30, "User": 10, "Interaction": 30}
    assert all(event.time >= 100 for event in found)


@pytest.mark.parametrize(
    ("tastes", "wrong"),
    [
        (Tastes(shares=(0.5, 0.1)), "shares"),
        (Tastes(shares=(0.4, 0.3, 0.3), cosine=-0.9), "cosine"),
        (Tastes(dimensions=1), "dimensions"),
    ],
)
def test_impossible_populations_are_refused(tastes: Tastes, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        Population(tastes)
