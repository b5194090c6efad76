import math
import threading

import msgspec
import numpy as np
import pytest
import torch
from msgspec import structs

from ranker.catalogue import Catalogue, Item
from ranker.config import Calibration, Config, Exploration, Guard, Inputs, Objective, Preference, Serving
from ranker.errors import RequestError
from ranker.events import Interaction
from ranker.evidence import EMPTY, Act, Answer, Evidence, Past, fold
from ranker.inference import Inference
from ranker.model import Model
from ranker.pipeline import MOMENT_MS, Pipeline, Request

GENRES = ["action", "comedy", "drama", "noir"]
CONFIG = Config(
    objectives=(
        Objective(name="click", event="click", biased=True),
        Objective(name="like", event="like", weight=2.0),
        Objective(name="dismiss", event="dismiss", weight=-1.0),
    ),
    fields=Inputs(item={"genres": "categories", "year": "number"}, request={"device": "category"}),
    interests="genres",
    scale="tiny",
    serving=Serving(slate=10, candidates=30, swap=0.0),
    preference=Preference(weight=0.0),
    guard=Guard(on=False),
)
NOW = 1_700_000_000_000


def make(config: Config = CONFIG, items: int = 60) -> Pipeline:
    catalogue = Catalogue(config)
    for n in range(items):
        catalogue.put(Item(f"i{n}", {"genres": [GENRES[n % 4]], "year": 1950.0 + n}, NOW - 1000 * n))
    model = Model(config, torch.Generator().manual_seed(3))
    inference = Inference(config, model.state_dict())
    inference.attach(catalogue)
    return Pipeline(config, inference, catalogue, "v1")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return make()


def history(*items: str) -> Evidence:
    return Evidence(history=tuple(Act(item, "like", NOW - 1000 + n) for n, item in enumerate(items)))


FAN = history("i3", "i7", "i11", "i15")


def test_the_slate_is_ordered_by_the_weighted_sum_of_the_probabilities(pipeline):
    slate = pipeline.rank(Request(user="u", items=["i1", "i2", "i3", "i4"], now=NOW))
    assert sorted(item.id for item in slate.items) == ["i1", "i2", "i3", "i4"]
    assert [item.position for item in slate.items] == [0, 1, 2, 3]
    for item in slate.items:
        click, like, dismiss = item.probabilities
        assert item.utility == pytest.approx(click + 2 * like - dismiss, abs=1e-6)
    utilities = [item.utility for item in slate.items]
    assert utilities == sorted(utilities, reverse=True)
    assert (slate.version, slate.removed, slate.swapped) == ("v1", (), None)
    assert list(slate.timings_ms) == ["taste", "candidates", "score", "calibrate", "guard", "explore", "slate", "total"]
    assert slate.timings_ms["total"] == pytest.approx(sum(list(slate.timings_ms.values())[:-1]))


def test_weights_of_a_request_replace_those_they_name(pipeline):
    slate = pipeline.rank(Request(user="u", items=["i1", "i2"], now=NOW, weights={"dismiss": -5.0}))
    assert slate.weights == {"click": 1.0, "like": 2.0, "dismiss": -5.0, "preference": 0.0}
    item = slate.items[0]
    assert item.utility == pytest.approx(item.probabilities[0] + 2 * item.probabilities[1] - 5 * item.probabilities[2])


def test_the_base_utility_counts_as_much_as_asked(pipeline):
    slate = pipeline.rank(
        Request(user="u", items=["i1", "i2", "i3"], now=NOW, explain=True, weights={"preference": 3.0})
    )
    for item in slate.items:
        click, like, dismiss = item.probabilities
        assert item.utility == pytest.approx(click + 2 * like - dismiss + 3 * item.preference, abs=1e-6)
    by_reward = sorted(slate.items, key=lambda item: item.reward)
    assert [item.id for item in by_reward] == [item.id for item in sorted(slate.items, key=lambda i: i.preference)]


def test_a_taste_is_kept_until_evidence_or_time_moves_on(pipeline):
    once = fold(EMPTY, Interaction(id="e1", timestamp=NOW, user="u", item="i3", type="click"))
    first, profile_C, *_ = pipeline.known("u", once, NOW)
    assert pipeline.known("u", once, NOW + 1)[0] is first
    assert profile_C.sum() == pytest.approx(1)
    # an act within the moment counts at once, in the interests too
    just = fold(EMPTY, Interaction(id="e3", timestamp=NOW + 7, user="w", item="i3", type="click"))
    assert pipeline.known("w", just, NOW + 9)[1].sum() == pytest.approx(1)
    twice = fold(once, Interaction(id="e2", timestamp=NOW, user="u", item="i7", type="click"))
    assert (pipeline.known("u", twice, NOW)[0].mean_K != first.mean_K).any()
    assert pipeline.known("v", once, NOW)[0] is not first
    assert pipeline.known("u", once, NOW + MOMENT_MS)[0] is not first
    assert pipeline.known("u", once, NOW + 5)[0].mean_K.tolist() == make().known("u", once, NOW + 9)[0].mean_K.tolist()


def test_answers_move_the_slate_and_are_counted(pipeline):
    items = ["i1", "i2", "i3", "i4"]
    before = pipeline.rank(Request(user="u", items=items, now=NOW, weights={"preference": 5.0}))
    last = before.items[-1].id
    answers = tuple(Answer(f"a{n}", last, other.id, NOW) for n, other in enumerate(before.items[:-1]))
    asked = Request(user="u", items=items, now=NOW, weights={"preference": 5.0})
    after = pipeline.rank(asked, Evidence(answers=answers))
    assert after.evidence == {"history": 0, "answers": 3, "words": 0}
    assert [item.id for item in after.items].index(last) < 3


@pytest.mark.parametrize(
    ("request_", "thing"),
    [
        (Request(user="u", items=["i1"], weights={"clicks": 1.0}), "weights"),
        (Request(user="u", items=["i1"], weights={"click": math.nan}), "weights.click"),
        (Request(user="u", items=["i1"], calibration=1.5), "calibration"),
        (Request(user="u", items=["i1"], calibration=math.nan), "calibration"),
        (Request(user="u", items=["i1"], limit=0), "limit"),
        (Request(user="u", limit=-1), "limit"),
        (Request(user="u", items=[]), "items"),
        (Request(user="u", items=["i"] * 10_001), "items"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_by_name(pipeline, request_, thing):
    with pytest.raises(RequestError) as caught:
        pipeline.rank(request_)
    assert caught.value.thing == thing
    assert caught.value.remedy


def test_an_unknown_objective_is_answered_with_the_valid_ones(pipeline):
    with pytest.raises(RequestError, match="click, like, dismiss"):
        pipeline.rank(Request(user="u", items=["i1"], weights={"clicks": 1.0}))


def test_the_first_of_equal_candidates_counts_and_the_slate_says_so(pipeline):
    slate = pipeline.rank(Request(user="u", items=["i1", "i2", "i1"], now=NOW))
    assert [item.id for item in slate.items].count("i1") == 1
    assert slate.removed == (("i1", "duplicate: its first place among the candidates counts"),)


def test_unknown_items_and_unknown_users_are_ranked(pipeline):
    slate = pipeline.rank(Request(user="nobody", items=["i1", "never-seen", "never-seen-2"], now=NOW))
    assert len(slate.items) == 3
    assert slate.evidence == {"history": 0, "answers": 0, "words": 0}
    assert slate.miscalibration is None
    by_id = {item.id: item.utility for item in slate.items}
    assert by_id["never-seen"] == pytest.approx(by_id["never-seen-2"], abs=0.05)


def test_fields_that_come_with_a_candidate_are_used(pipeline):
    bare = pipeline.rank(Request(user="u", items=["i9", "new"], now=NOW))
    told = pipeline.rank(
        Request(user="u", items=[Item("i9", {"year": 5.0}), Item("new", {"genres": ["noir"]})], now=NOW)
    )
    before, after = ({item.id: item.utility for item in slate.items} for slate in (bare, told))
    assert before["i9"] != after["i9"]
    assert before["new"] != after["new"]


def test_fields_that_say_nothing_new_change_nothing(pipeline):
    bare = pipeline.rank(Request(user="u", items=["i9", "i8"], now=NOW))
    told = pipeline.rank(Request(user="u", items=[Item("i9", {"year": 1959.0}), Item("i8")], now=NOW))
    assert bare.items == told.items


def test_an_item_that_is_known_but_not_embedded_yet_is_ranked():
    pipeline = make()
    pipeline.catalogue.put(Item("late", {"genres": ["noir"], "year": 1990.0}, NOW))
    before = pipeline.rank(Request(user="u", items=["late", "i1"], now=NOW))
    pipeline.inference.attach(pipeline.catalogue)
    after = pipeline.rank(Request(user="u", items=["late", "i1"], now=NOW))
    utilities = [{item.id: item.utility for item in slate.items} for slate in (before, after)]
    assert utilities[0] == pytest.approx(utilities[1], abs=1e-5)


def test_a_candidates_score_does_not_depend_on_the_others(pipeline):
    many = pipeline.rank(Request(user="u", items=[f"i{n}" for n in range(50)], now=NOW), FAN)
    few = pipeline.rank(Request(user="u", items=["i4", "i30"], now=NOW), FAN)
    utilities = {item.id: item.utility for item in many.items}
    assert {item.id: item.utility for item in few.items} == pytest.approx(
        {"i4": utilities["i4"], "i30": utilities["i30"]}, abs=1e-5
    )


def test_without_a_limit_all_candidates_are_placed_and_a_limit_cuts(pipeline):
    items = [f"i{n}" for n in range(40)]
    assert len(pipeline.rank(Request(user="u", items=items, now=NOW), FAN).items) == 40
    limited = pipeline.rank(Request(user="u", items=items, now=NOW, limit=7), FAN)
    assert len(limited.items) == 7
    assert len(pipeline.rank(Request(user="u", items=items[:3], now=NOW, limit=7), FAN).items) == 3


def test_calibration_brings_the_first_places_closer_to_the_profile(pipeline):
    items = [f"i{n}" for n in range(40)]
    plain = pipeline.rank(Request(user="u", items=items, now=NOW, calibration=0.0), FAN)
    calibrated = pipeline.rank(Request(user="u", items=items, now=NOW, calibration=0.9), FAN)
    assert plain.miscalibration == plain.miscalibration_before == calibrated.miscalibration_before
    assert calibrated.miscalibration < plain.miscalibration
    first = [item.utility for item in calibrated.items[:10]]
    rest = [item.utility for item in calibrated.items[10:]]
    assert first == sorted(first, reverse=True)
    assert rest == sorted(rest, reverse=True)
    assert {item.id for item in calibrated.items} == set(items)


def test_recommend_leaves_out_what_is_in_the_history(pipeline):
    slate = pipeline.rank(Request(user="u", now=NOW), FAN)
    assert len(slate.items) == 10
    assert not {act.item for act in FAN.history} & {item.id for item in slate.items}
    everything = pipeline.rank(Request(user="u", now=NOW, limit=200, exclude_seen=False), FAN)
    assert len(everything.items) == 60
    without = pipeline.rank(Request(user="u", now=NOW, limit=200), FAN)
    assert len(without.items) == 56
    assert ("i3", "already in the history") in without.removed


def test_recommending_from_an_empty_catalogue_gives_an_empty_slate():
    assert make(items=0).rank(Request(user="u", now=NOW), EMPTY).items == ()


def test_explain_adds_reward_interests_and_profile(pipeline):
    slate = pipeline.rank(Request(user="u", items=["i1", "i2", "odd"], now=NOW, explain=True), FAN)
    interests = {item.id: item.interests for item in slate.items}
    assert interests == {"i1": {"comedy": 1.0}, "i2": {"drama": 1.0}, "odd": {}}
    assert all(item.reward is not None for item in slate.items)
    assert slate.profile == {"noir": pytest.approx(1.0)}
    plain = pipeline.rank(Request(user="u", items=["i1", "i2", "odd"], now=NOW), FAN)
    assert plain.profile is None
    assert plain.items[0].reward is None


def test_logged_probabilities_are_those_at_the_position_served(pipeline):
    slate = pipeline.rank(Request(user="u", items=["i1", "i2"], now=NOW, fields={"device": "phone"}))
    for item in slate.items:
        logits = np.log(np.array(item.probabilities) / (1 - np.array(item.probabilities)))[None].astype(np.float32)
        wanted = pipeline.inference.probabilities_at(logits, np.array([item.position]), {"device": "phone"})
        assert item.expected == pytest.approx(wanted[0].tolist(), abs=1e-5)


def test_the_same_seed_gives_the_same_slate():
    pipeline = make(Config(objectives=CONFIG.objectives, scale="tiny", serving=Serving(swap=0.5)))
    for seed in range(20):
        request = Request(user="u", items=[f"i{n}" for n in range(6)], now=NOW, seed=seed)
        assert pipeline.rank(request).items == pipeline.rank(request).items


def test_a_swap_exchanges_neighbours_and_keeps_propensities_with_their_places():
    still = Exploration(slot=0.0)
    pipeline = make(Config(objectives=CONFIG.objectives, scale="tiny", serving=Serving(swap=1.0), exploration=still))
    slate = pipeline.rank(Request(user="u", items=[f"i{n}" for n in range(5)], now=NOW, seed=4))
    assert slate.swapped is not None
    upper, lower = slate.items[slate.swapped], slate.items[slate.swapped + 1]
    assert upper.utility <= lower.utility
    assert upper.propensity == lower.propensity == 0.25
    assert [item.position for item in slate.items] == [0, 1, 2, 3, 4]


def test_a_place_drawn_anew_is_told_with_its_exact_chance():
    config = msgspec.structs.replace(CONFIG, exploration=Exploration(slot=1.0, uniform=1.0))
    pipeline, plain = make(config), make(msgspec.structs.replace(CONFIG, exploration=Exploration(slot=0.0)))
    given = [f"i{n}" for n in range(25)]
    usual = [item.id for item in plain.rank(Request(user="u", items=given, limit=10, now=NOW)).items]
    came = set()
    for seed in range(60):
        slate = pipeline.rank(Request(user="u", items=given, limit=10, now=NOW, seed=seed))
        assert slate.explored is not None
        shown = [item.id for item in slate.items]
        assert shown[: slate.explored] == usual[: slate.explored]
        drawn = slate.items[slate.explored]
        came.add(drawn.id)
        if drawn.id not in usual:
            assert drawn.propensity == pytest.approx(1 / 10 / (25 - slate.explored))
            assert shown == [*usual[: slate.explored], drawn.id, *usual[slate.explored : -1]]
    assert len(came) > 15


def test_calibration_can_be_switched_off_by_configuration():
    config = Config(
        objectives=CONFIG.objectives,
        fields=CONFIG.fields,
        interests="genres",
        scale="tiny",
        calibration=Calibration(strength=0.0),
        serving=CONFIG.serving,
        guard=CONFIG.guard,
    )
    slate = make(config).rank(Request(user="u", items=[f"i{n}" for n in range(40)], now=NOW), FAN)
    utilities = [item.utility for item in slate.items]
    assert utilities == sorted(utilities, reverse=True)


def test_slates_are_made_while_another_thread_adds_items():
    pipeline = make(items=4)
    stop, trouble = threading.Event(), []

    def serve() -> None:
        seed = 0
        while not stop.is_set():
            seed += 1
            newest = f"i{len(pipeline.catalogue) - 1}"
            request = Request(user="u", items=["i1", "i2", newest] if seed % 2 else None, now=NOW, seed=seed)
            try:
                assert pipeline.rank(request, history("i1", newest)).items
            except Exception as error:
                trouble.append(error)
                return

    server = threading.Thread(target=serve)
    server.start()
    for n in range(4, 200):
        pipeline.catalogue.put(Item(f"i{n}", {"genres": [f"genre {n // 8}"], "year": 1990.0}, NOW))
        if n % 10 == 0:
            pipeline.inference.attach(pipeline.catalogue)
    stop.set()
    server.join()
    assert trouble == []


def guarded(**bounds) -> Pipeline:
    config = structs.replace(CONFIG, preference=Preference(weight=3.0), guard=Guard(**bounds))
    return make(config)


def test_a_guarded_slate_keeps_its_bounds_and_says_what_was_done():
    whole, items = guarded(on=False), [f"i{n}" for n in range(60)]
    request = Request(user="u", items=items, limit=10, now=NOW, calibration=0.0)
    free = whole.rank(request, FAN)
    assert (free.interventions, free.sycophancy_gap) == ((), None)
    lifted = guarded(gap=math.inf, drift=1.0, novelty=0.0).rank(request, FAN)
    assert [item.id for item in lifted.items] == [item.id for item in free.items]
    assert lifted.interventions == ()
    least = guarded(gap=0.0, novelty=0.0).rank(request, FAN).sycophancy_gap
    bound = (lifted.sycophancy_gap + least) / 2
    held = guarded(gap=bound, novelty=0.0).rank(request, FAN)
    assert len(held.items) == 10
    assert held.sycophancy_gap <= bound
    (blend,) = held.interventions
    assert blend.kind == "blend"
    assert blend.numbers["gap_before"] == pytest.approx(lifted.sycophancy_gap)
    shown = {item.id for item in held.items}
    assert set(blend.put_in) == shown - {item.id for item in free.items}
    assert "guard" in held.timings_ms


def test_the_population_that_a_gap_is_measured_against_is_the_taste_of_somebody_unknown():
    pipeline = guarded(gap=math.inf, novelty=0.0)
    items = [f"i{n}" for n in range(60)]
    unknown = {item.id: item.preference for item in pipeline.rank(Request(user="v", items=items, now=NOW)).items}
    slate = pipeline.rank(Request(user="u", items=items, now=NOW), FAN)
    first = slate.items[:10]
    gap = sum(item.preference - unknown[item.id] for item in first) / 10
    assert slate.sycophancy_gap == pytest.approx(gap, abs=1e-6)
    assert pipeline.rank(Request(user="v", items=items, now=NOW)).sycophancy_gap == 0


def test_a_fan_meets_something_else_and_pins_stay():
    pipeline = guarded(gap=math.inf, novelty=0.2)
    request = Request(user="u", items=[f"i{n}" for n in range(60)], limit=10, now=NOW, calibration=1.0, pinned=["i3"])
    slate = pipeline.rank(request, FAN)
    other = [item.id for item in slate.items if GENRES[int(item.id[1:]) % 4] != "noir"]
    (novelty,) = slate.interventions
    assert (novelty.kind, sorted(novelty.put_in)) == ("novelty", sorted(other))
    assert len(other) == 2
    assert slate.items[0].id == "i3"
    without = pipeline.rank(structs.replace(request, guard=False), FAN)
    assert (without.interventions, without.sycophancy_gap) == ((), None)
    assert all(GENRES[int(item.id[1:]) % 4] == "noir" for item in without.items)


def test_interests_of_late_are_held_near_the_long_term_ones():
    day = 86_400_000
    old = [Act(f"i{4 * n}", "like", NOW - 200 * day + n) for n in range(5)]
    new = [Act(f"i{4 * n + 3}", "like", NOW - day + n) for n in range(5)]
    evidence = Evidence(history=(*old, *new))
    request = Request(user="u", items=[f"i{n}" for n in range(60)], now=NOW, explain=True)
    free = guarded(drift=1.0, novelty=0.0).rank(request, evidence)
    held = guarded(drift=0.2, novelty=0.0).rank(request, evidence)
    assert free.profile["noir"] == pytest.approx(0.99, abs=0.01)
    long = 1 / (1 + 0.5 ** (199 / 365))
    assert held.profile == pytest.approx({"noir": long + 0.2, "action": 0.8 - long})
    (drift,) = held.interventions
    assert drift.kind == "drift"
    assert drift.numbers["distance_before"] == pytest.approx(free.profile["noir"] - long)
    lifted = guarded(drift=0.2, novelty=0.0).rank(structs.replace(request, guard=False), evidence)
    assert lifted.profile == pytest.approx(free.profile)
    assert guarded(drift=0.2, novelty=0.0).rank(request, Evidence(history=tuple(new))).interventions == ()
    # a history of one day, and what was done before it
    older = Evidence(history=tuple(new), past=Past(tuple(old)))
    assert guarded(drift=0.2, novelty=0.0).rank(request, older).profile == pytest.approx(held.profile)
