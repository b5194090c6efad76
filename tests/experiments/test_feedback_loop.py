from dataclasses import replace

import numpy as np
import pytest

from experiments import feedback_loop
from experiments.feedback_loop import Loop, Ranker, World

SMALL = World(users=12, items=24, rounds=1, slates=40)


def test_the_tower_takes_the_place_s_part_and_leaves_the_items_theirs():
    rng = np.random.default_rng(0)
    item_R, click_R = rng.integers(2, size=3000), np.zeros(3000, bool)
    # the worse item stands first nine times in ten, and few look at the second place
    place_R = np.where(rng.random(3000) < 0.9, item_R, 1 - item_R)
    click_R = rng.random(3000) < np.array([0.4, 0.6])[item_R] * np.array([1.0, 0.3])[place_R]
    for tower in (False, True):
        found = Ranker(np.zeros((2, 3)), users=1, tower=tower).fit(np.zeros(3000, int), item_R, place_R, click_R)
        assert (found.utility_UN[0, 1] > found.utility_UN[0, 0]) is np.bool_(tower)


def test_a_person_is_known_better_the_more_she_was_shown():
    features = np.ones((2, 1))
    rows = np.zeros(50, int)
    found = Ranker(features, users=2, tower=True).fit(rows, rows, rows, rows == 1)
    assert found.precision_UK[0, 0] > found.precision_UK[1, 0] == pytest.approx(feedback_loop.PERSONAL**-2)


def test_the_first_log_is_the_same_for_all_arms_and_an_editor_s_is_one_list():
    fair = [Loop(arm, 1, replace(SMALL, start="fair")).round(first=True) for arm in feedback_loop.ARMS]
    assert fair[0] == fair[1] == fair[2]
    found = [Loop(arm, 1, SMALL).round(first=True) for arm in feedback_loop.ARMS]
    assert found[0] == found[1] == found[2]
    assert fair[0]["gini"] < found[0]["gini"] > 1 - feedback_loop.PLACES / SMALL.items - 1e-9


def test_a_round_is_repeated_exactly_and_no_slate_beats_the_oracle():
    runs = []
    for _ in range(2):
        loop = Loop("tower-exploration", 2, SMALL)
        runs.append([loop.round(first=True), loop.round()])
        assert runs[-1][1]["utility"] < loop.oracle()["utility"]
    assert runs[0] == runs[1]


def test_every_arm_is_measured_by_round():
    result = feedback_loop.run(seeds=[0], world=SMALL)
    for arm in feedback_loop.ARMS:
        for metric in ("gini", "utility", "minority_exposure"):
            assert 0 <= result.row(arm, metric).mean <= 1
            assert 0 <= result.row(arm, f"{metric} (fair), round 0").mean <= 1
            course = result.row(arm, f"{metric} (fair), last over first")
            assert course.mean == 0  # the first own ranking is the last one
    assert result.row("oracle", "utility").mean > 0
