import math

import numpy as np
import pytest

from experiments import echo_chamber
from experiments.drifting import Given, People, Recipe
from experiments.echo_chamber import METRICS
from ranker.catalogue import Catalogue, Item
from ranker.config import Guard
from ranker.evidence import EMPTY, Act, Evidence
from ranker.taste import Factor

TINY = Recipe(users=5, items=60, fresh=20, places=4, months=2, days=2, categories=6, styles=2, past=10)


def prior(people: People) -> Factor:
    wide = np.full(people.phi_NK.shape[1], 0.25, np.float32)
    return Factor(wide, 0 * wide)


def test_interests_drift_toward_what_is_looked_at_and_stay_shares():
    people = People(TINY, 0)
    rows = np.flatnonzero(people.shares_NC[:, 0] == 1)[:4]
    before = people.interest_UC[0].copy()
    for _ in range(300):
        people.react(0, rows)
    assert people.interest_UC.sum(1) == pytest.approx(1)
    assert people.interest_UC[0, 0] > 0.5 * (1 + before[0])
    assert people.start_UC[0].tolist() == before.tolist()


def test_a_taste_follows_what_she_did():
    people = People(TINY, 0)
    given = Given(people, prior(people))
    some = np.flatnonzero(people.shares_NC[:, 0] == 1)
    acts = tuple(Act(f"i{row}", "like", n) for n, row in enumerate(some))
    fan = given.taste(Evidence(history=acts), 0)
    assert fan.mean_K[0] == max(fan.mean_K[:6])
    assert given.taste(EMPTY, 0).mean_K.tolist() == [0.0] * 8
    assert given.gap(Evidence(history=acts), some) > 0
    assert given.gap(EMPTY, some) == 0


def test_the_loop_measures_every_arm_by_month_and_repeats():
    found = echo_chamber.run(seeds=(3,), recipe=TINY, guard=Guard(gap=0.0, novelty=0.5))
    arms = ("pooled", "personal", "unguarded", "plurank")
    for arm in arms:
        for metric in METRICS:
            assert math.isfinite(found.row(arm, metric).mean)
            assert found.row(arm, metric).mean == found.row(arm, f"{metric}, month 2").mean
    assert found.row("pooled", "homogeneity").mean == 1  # everybody is shown the same
    assert found.row("personal", "homogeneity").mean < 1
    assert found.row("plurank", "blend_share").mean > 0
    assert "over 0.00" in found.criterion
    assert echo_chamber.run(seeds=(3,), recipe=TINY, guard=Guard(gap=0.0, novelty=0.5)) == found


def test_who_is_told_the_truth_holds_people_to_it():
    people = People(TINY, 0)
    catalogue = Catalogue(echo_chamber.declared(Guard()))
    catalogue.put(Item("i0", {"genres": ["c4", "c2", "c0", "c1", "c3", "c5"]}))
    pipeline = echo_chamber.Told(
        echo_chamber.declared(Guard()), Given(people, prior(people)), catalogue, "told", people.start_UC
    )
    found_C = pipeline.known("u3", EMPTY, 0).interests_C
    assert dict(zip(catalogue.categories, found_C.tolist(), strict=True)) == {
        f"c{c}": share for c, share in enumerate(people.start_UC[3].tolist())
    }


def told(**changed: float) -> list[dict[str, list[dict[str, float]]]]:
    """Two seeds in which every bound is kept, but for what is changed of plurank."""
    month = dict.fromkeys((*METRICS, "as_before"), 0.5) | {"over_share": 0.0}
    kept = month | {"drift": 0.4, "homogeneity": 0.2, "diversity": 0.6, "satisfaction": 0.48}
    life = {"pooled": [month] * 2, "personal": [month] * 2, "unguarded": [month] * 2, "plurank": [kept, kept | changed]}
    return [life | {"other": [kept | {"drift": 0.3}] * 2}] * 2


def test_the_verdict_takes_every_stated_bound():
    found = echo_chamber.result(told(), (1, 2), TINY, Guard())
    assert found.holds
    assert found.row("plurank", "drift over unguarded").mean == pytest.approx(0.8)
    assert found.row("other", "drift over unguarded").mean == pytest.approx(0.6)
    for broken in (
        {"drift": 0.49},
        {"homogeneity": 0.3},
        {"diversity": 0.5},
        {"over_share": 0.02},
        {"satisfaction": 0.44},
        {"as_before": 0.48},
    ):
        assert not echo_chamber.result(told(**broken), (1, 2), TINY, Guard()).holds, broken


def test_the_picture_has_a_line_for_every_arm_and_metric():
    found = echo_chamber.run(seeds=(1,), recipe=TINY)
    svg = echo_chamber.drawn(found, TINY)
    assert svg.count('stroke-width="2"') == 4 * len(METRICS)
    assert all(f">{metric}<" in svg for metric in METRICS)
    assert "nan" not in svg
