"""Calibration through the whole request path: what a request may ask of it, what is pinned and what is left out."""

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from ranker.calibration import Wish
from ranker.catalogue import Catalogue, Item
from ranker.config import Calibration, Config, Exploration, Guard, Inputs, Objective, Preference, Serving
from ranker.divergence import attention, miscalibration, shares
from ranker.errors import RequestError
from ranker.evidence import Act, Evidence, Words
from ranker.inference import Inference
from ranker.model import Model
from ranker.pipeline import Pipeline, Request, Slate

GENRES = ["action", "comedy", "drama", "noir"]
NOW = 1_700_000_000_000
CONFIG = Config(
    objectives=(Objective(name="like", event="like"),),
    fields=Inputs(item={"genres": "categories", "era": "category"}),
    interests="genres",
    scale="tiny",
    serving=Serving(slate=10, candidates=30, swap=0.0),
    exploration=Exploration(slot=0.0),
    guard=Guard(on=False),
    preference=Preference(weight=0.0),
)
ITEMS = [f"i{n}" for n in range(40)]
FAN = Evidence(history=tuple(Act(item, "like", NOW - 1000) for item in ("i3", "i7", "i11", "i0")))


def make(config: Config = CONFIG) -> Pipeline:
    catalogue = Catalogue(config)
    for n in range(60):
        catalogue.put(Item(f"i{n}", {"genres": [GENRES[n % 4]], "era": "old" if n % 2 else "new"}, NOW - n))
    inference = Inference(config, Model(config, torch.Generator().manual_seed(3)).state_dict())
    inference.attach(catalogue)
    return Pipeline(config, inference, catalogue, "v1")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return make()


def ids(slate: Slate) -> list[str]:
    return [item.id for item in slate.items]


def test_a_slate_says_how_it_stands_to_the_profile_as_chosen_and_as_looked_at(pipeline):
    slate = pipeline.rank(Request(user="u", items=ITEMS, now=NOW, limit=10, explain=True), FAN)
    profile_C = np.array([slate.profile.get(genre, 0) for genre in GENRES])
    interests = np.array([[item.interests.get(genre, 0) for genre in GENRES] for item in slate.items])
    assert slate.miscalibration == pytest.approx(miscalibration(profile_C, shares(interests)), abs=1e-6)
    seen = miscalibration(profile_C, shares(interests, attention(10)))
    assert slate.exposure_miscalibration == pytest.approx(seen, abs=1e-6)
    assert slate.strength == Calibration().strength


def test_order_lets_the_minority_be_seen_without_changing_who_is_in(pipeline):
    plain, mixed = (
        pipeline.rank(Request(user="u", items=ITEMS, now=NOW, limit=10, calibration=Wish(strength=0.9, order=x)), FAN)
        for x in (0.0, 1.0)
    )
    assert set(ids(plain)) == set(ids(mixed))
    assert mixed.miscalibration == pytest.approx(plain.miscalibration)
    assert mixed.exposure_miscalibration < plain.exposure_miscalibration


def test_a_target_is_met_and_the_slate_says_with_which_lambda(pipeline):
    slate = pipeline.rank(Request(user="u", items=ITEMS, now=NOW, limit=10, calibration=Wish(target=0.05)), FAN)
    assert slate.miscalibration <= 0.05 < slate.miscalibration_before
    assert 0 < slate.strength < 1


def test_a_personal_lambda_is_smaller_where_little_is_known(pipeline):
    little = Evidence(history=FAN.history[:1])
    found = [
        pipeline.rank(Request(user="u", items=ITEMS, now=NOW, calibration="personal"), evidence).strength
        for evidence in (little, FAN)
    ]
    assert found == pytest.approx([0.3 * 1 / 11, 0.3 * 4 / 14])


def test_pinned_items_stand_first_and_certainly_and_are_explored_by_nothing():
    pipeline = make(replace(CONFIG, serving=Serving(slate=10, candidates=30, swap=1.0)))
    for seed in range(10):
        request = Request(user="u", items=ITEMS, now=NOW, limit=10, pinned=("i9", "i2", "i9"), seed=seed)
        slate = pipeline.rank(request, FAN)
        assert ids(slate)[:2] == ["i9", "i2"]
        assert [item.propensity for item in slate.items[:2]] == [1, 1]
        assert slate.swapped >= 2
        assert len(set(ids(slate))) == 10


def test_pins_need_no_profile_and_are_fetched_where_nothing_is_given(pipeline):
    slate = pipeline.rank(Request(user="nobody", now=NOW, pinned=("i59",)))
    assert ids(slate)[0] == "i59"
    assert len(slate.items) == 10
    utilities = [item.utility for item in slate.items[1:]]
    assert utilities == sorted(utilities, reverse=True)


def test_a_pin_that_was_put_but_not_embedded_yet_is_served():
    pipeline = make()
    pipeline.catalogue.put(Item("late", {"genres": ["noir"]}, NOW))
    assert ids(pipeline.rank(Request(user="u", now=NOW, pinned=("late",)), FAN))[0] == "late"


@pytest.mark.parametrize("items", [ITEMS, None])
def test_excluded_items_are_nowhere_and_named_among_the_removed(pipeline, items):
    before = ids(pipeline.rank(Request(user="u", items=items, now=NOW, limit=10), FAN))
    slate = pipeline.rank(Request(user="u", items=items, now=NOW, limit=10, excluded=before[:3]), FAN)
    assert not set(before[:3]) & set(ids(slate))
    assert {(item, "excluded by the request") for item in before[:3]} <= set(slate.removed)
    assert len(slate.items) == 10


def test_everything_may_be_excluded(pipeline):
    slate = pipeline.rank(Request(user="u", items=["i1", Item("new")], now=NOW, excluded=("i1", "new")), FAN)
    assert slate.items == ()
    assert slate.miscalibration is None


@pytest.mark.parametrize(
    ("asked", "thing"),
    [
        ({"items": ["i1"], "pinned": ["i2"]}, "pinned"),
        ({"pinned": ["unheard"]}, "pinned"),
        ({"items": ["i1"], "pinned": ["i1"], "excluded": ["i1"]}, "pinned"),
        ({"items": ITEMS, "pinned": ITEMS[:11]}, "pinned"),
        ({"items": ["i1"], "calibration": "private"}, "calibration"),
        ({"items": ["i1"], "calibration": Wish(target=-1.0)}, "calibration.target"),
    ],
)
def test_what_cannot_be_pinned_or_meant_is_refused_by_name(pipeline, asked, thing):
    with pytest.raises(RequestError) as caught:
        pipeline.rank(Request(user="u", now=NOW, **asked), FAN)
    assert caught.value.thing == thing
    assert caught.value.remedy


def test_a_history_is_filled_up_with_what_the_population_is_shown_and_no_history_is_not():
    pipeline = make(replace(CONFIG, calibration=Calibration(pseudo_acts=4.0)))
    shown = pipeline.rank(Request(user="u", items=ITEMS, now=NOW, explain=True), FAN).profile
    # untrained weights counted nothing, so the population is the catalogue: a quarter each
    assert shown == pytest.approx({"action": 2 / 8, "comedy": 1 / 8, "drama": 1 / 8, "noir": 4 / 8})
    assert pipeline.rank(Request(user="u", items=ITEMS, now=NOW, explain=True)).profile == {}


def test_the_configured_half_life_decides_how_fast_interests_fade():
    year = 365 * 86_400_000
    old = Evidence(history=(Act("i0", "like", NOW - year), Act("i1", "like", NOW)))
    for half_life, wanted in ((365 * 86_400.0, 1 / 3), (1e12, 0.5)):
        pipeline = make(replace(CONFIG, calibration=Calibration(half_life=half_life)))
        found = pipeline.rank(Request(user="u", items=ITEMS, now=NOW, explain=True), old).profile
        assert found["action"] == pytest.approx(wanted, abs=1e-3)


def test_several_fields_are_calibrated_at_once_and_words_name_either():
    pipeline = make(replace(CONFIG, interests=("genres", "era")))
    slate = pipeline.rank(Request(user="u", items=ITEMS, now=NOW, limit=10, explain=True, calibration=0.9), FAN)
    assert slate.profile == pytest.approx(
        {"genres=action": 1 / 8, "genres=noir": 3 / 8, "era=new": 1 / 8, "era=old": 3 / 8}
    )
    assert slate.miscalibration < slate.miscalibration_before
    told = Evidence(history=FAN.history, words=Words(avoids=("era=old",)))
    profile = pipeline.rank(Request(user="u", items=ITEMS, now=NOW, explain=True), told).profile
    assert "era=old" not in profile
    assert profile["era=new"] > 1 / 8
