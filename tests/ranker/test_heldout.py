"""Held-out evaluation: nothing from the held-out part is learned, and skill shows."""

from collections import Counter

import numpy as np
import pytest

from ranker import events, heldout
from ranker.baselines import popularity
from ranker.config import Config, parse
from ranker.errors import DataError
from ranker.events import Event
from ranker.learner import Learner

CONFIG = parse(
    {
        "scale": "tiny",
        "learning": {"rate": 0.01},
        "interests": "genres",
        "fields": {"item": {"genres": "categories"}},
        "objectives": [
            {"name": "click", "event": "click", "graded": {"event": "rate", "at_least": 4}, "biased": True},
            {"name": "dismiss", "event": "dismiss", "weight": -1, "graded": {"event": "rate", "at_most": 2}},
        ],
    }
)


def log(users: int = 40, films: int = 30, seed: int = 0) -> list[Event]:
    """Even users like even films and the others odd ones, 4 or 5 stars against 1 or 2; a rating a minute."""
    generator = np.random.default_rng(seed)
    found: list[Event] = [
        events.Item(
            id=f"f{f}", timestamp=0, item=f"f{f}", fields=[events.Field("genres", ["odd" if f % 2 else "even"])]
        )
        for f in range(films)
    ]
    pairs = [(u, f) for u in range(users) for f in generator.permutation(films)[: films * 2 // 3]]
    for number, place in enumerate(generator.permutation(len(pairs))):
        user, film = pairs[place]
        stars = float((4 if user % 2 == film % 2 else 1) + generator.integers(2))
        found.append(
            events.Interaction(
                id=f"r{number}",
                timestamp=60_000 * (number + 1),
                user=f"u{user}",
                item=f"f{film}",
                type="rate",
                value=stars,
            )
        )
    return found


def split(kind: heldout.Split, share: float = 0.2) -> tuple[list[Event], list[Event]]:
    own = log()
    held = heldout.Splitter(lambda: own, kind, share).mark()
    marked = [(event, held(event)) for event in own]
    return [event for event, away in marked if not away], [event for event, away in marked if away]


def test_a_time_split_holds_out_everything_after_one_moment() -> None:
    kept, away = split("time")
    assert max(event.time for event in kept) < min(event.time for event in away)
    assert len(away) == pytest.approx(0.2 * 800, abs=1)
    assert all(isinstance(event, events.Interaction) for event in away)


def test_a_user_split_holds_out_the_last_of_each_user() -> None:
    kept, away = split("user")
    counts = Counter(event.user for event in away if isinstance(event, events.Interaction))
    assert counts == {f"u{u}": 4 for u in range(40)}
    last = {event.user: event.time for event in kept if isinstance(event, events.Interaction)}
    assert all(event.time > last[event.user] for event in away if isinstance(event, events.Interaction))


@pytest.mark.parametrize("kind", ["time", "user"])
def test_cases_know_nothing_of_what_is_ranked(kind: heldout.Split) -> None:
    own = log()
    splitter = heldout.Splitter(lambda: own, kind, 0.2)
    parts = heldout.divide(CONFIG, lambda: own, splitter)
    assert parts.cases
    for case in parts.cases:
        assert not {act.item for act in case.evidence.history} & set(case.items)
        assert case.labels_NT.shape == case.mask_NT.shape == (len(case.items), 2)
        user = int(case.user[1:])
        liked = [int(item[1:]) % 2 == user % 2 for item in case.items]
        assert case.labels_NT[:, 0].astype(bool).tolist() == liked
    assert len(parts.seen.users_N) == 640


def test_the_single_task_model_keeps_the_first_wanted_objective_without_a_tower() -> None:
    alone, place = heldout.single(CONFIG)
    assert place == 0
    assert [(o.name, o.biased) for o in alone.objectives] == [("click", False)]


def test_a_log_without_interactions_or_without_pairs_is_refused() -> None:
    with pytest.raises(DataError, match="no interaction"):
        heldout.Splitter(lambda: log()[:3], "time", 0.2)
    few = log(users=1, films=3)
    with pytest.raises(DataError, match="two held-out"):
        list(heldout.evaluate(CONFIG, lambda: few))


@pytest.mark.parametrize("kind", ["time", "user"])
def test_a_model_that_learned_beats_popularity_on_people_who_disagree(kind: heldout.Split) -> None:
    own = log()
    rows = list(heldout.evaluate(CONFIG, lambda: own, split=kind, passes=5, rows=64))
    found = {(row.arm, row.metric): row for row in rows if row.part == "warm"}
    assert found["full", "ndcg@10"].mean > 0.9
    assert found["full - popularity", "ndcg@10"].low > 0
    assert found["full", "auc:click"].mean > 0.9
    assert found["full", "auc:dismiss"].mean > 0.9
    assert ("single-task", "auc:dismiss") not in found
    assert found["ease-centred", "ndcg@10"].mean > found["popularity", "ndcg@10"].mean
    assert all(row.low <= row.mean <= row.high for row in rows if row.mean == row.mean)


def test_a_given_version_is_judged_as_it_is() -> None:
    own = log()
    learner = Learner(CONFIG)
    rows = list(heldout.evaluate(CONFIG, lambda: own, learner.weights()))
    assert {row.arm for row in rows if " - " not in row.arm} == {
        "version", "popularity", "mean-utility", "ease", "ease-centred",
    }  # fmt: skip


def test_an_arm_by_item_gives_strangers_the_lowest_score() -> None:
    own = log()
    splitter = heldout.Splitter(lambda: own, "time", 0.2)
    parts = heldout.divide(CONFIG, lambda: own, splitter)
    case = parts.cases[0]
    strange = heldout.replace(case, items=("never seen", *case.items[1:]))
    scores_N, chances = heldout.by_item(parts, popularity(parts.seen))(strange)
    assert scores_N[0] == scores_N.min()
    assert chances is None


def test_config_is_not_changed_by_a_seed() -> None:
    before: Config = CONFIG
    own = log(users=10)
    list(heldout.evaluate(CONFIG, lambda: own, passes=1, seed=5))
    assert before == CONFIG
    assert CONFIG.learning.seed == 0


def test_seeds_are_learned_apart_and_their_spread_is_told() -> None:
    own = log(users=20)
    arms = [
        {(row.arm, row.metric): row for row in heldout.evaluate(CONFIG, lambda: own, passes=1, seed=seed, seeds=count)}
        for seed, count in ((0, 1), (1, 1), (0, 2))
    ]
    one, other, both = arms
    assert ("full", "ndcg@10 sd") not in one
    for arm in ("full", "single-task", "full - ease", "full - single-task"):
        apart = [found[arm, "ndcg@10"].mean for found in (one, other)]
        assert both[arm, "ndcg@10"].mean == pytest.approx(np.mean(apart))
        assert both[arm, "ndcg@10 sd"].mean == pytest.approx(np.std(apart, ddof=1))
        assert both[arm, "ndcg@10 sd"].n == 2
    assert both["full", "auc:click"].mean == pytest.approx(np.mean([f["full", "auc:click"].mean for f in (one, other)]))
    assert ("popularity", "ndcg@10 sd") not in both
