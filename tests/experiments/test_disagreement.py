import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments import disagreement
from experiments.disagreement import ALL, agreement, band, borda, pooled, real, split, wins
from experiments.grades import Grades
from ranker import events
from ranker.events import Interaction


def two_camps(people: int = 120, items: int = 30, seed: int = 0) -> Grades:
    """Half of the people like the first items and half the last; everybody agrees on a third of quality."""
    rng = np.random.default_rng(seed)
    side_I, quality_I = np.linspace(1, -1, items), rng.normal(size=items)
    found = []
    for user in range(people):
        camp = 1 if user % 2 else -1
        found.append(np.round(2 * (1.5 * camp * side_I + quality_I + 0.3 * rng.normal(size=items))))
    return Grades("camps", [str(i) for i in range(items)], [np.arange(items)] * people, found)


def test_a_pooled_reward_satisfies_51_or_half_and_a_conditional_one_all() -> None:
    found = split(0, among=120)
    assert found["pooled-argmax", "satisfied"] == 0.51
    assert found["pooled-argmax", "margin"] == pytest.approx(math.log(0.51 / 0.49), abs=1e-5)
    assert found["pooled-proportional", "satisfied"] == pytest.approx(0.51**2 + 0.49**2, abs=1e-6)
    assert found["conditional", "satisfied"] > 0.99


def test_how_often_something_wins_is_what_drawing_rivals_says() -> None:
    rng = np.random.default_rng(0)

    def utility(a: np.ndarray) -> np.ndarray:
        return np.where(a < 0.8, a, 2 * a * rng.integers(0, 2, a.shape))

    for a in (0.1, 0.79, 0.81, 0.95):
        mine, theirs = utility(np.full(200_000, a)), utility(rng.random(200_000))
        drawn = np.mean((mine > theirs) + 0.5 * (mine == theirs))
        assert wins(np.array([a]))[0] == pytest.approx(drawn, abs=0.005)


def test_the_learned_utility_falls_where_the_expected_one_rises() -> None:
    found = borda(0, steps=250, batch=512, width=64)
    assert found["pooled-argmax", "step"] < -0.5 < 0 < found["truth", "step"]
    assert found["pooled-argmax", "borda_rank_correlation"] > 0.9 > found["truth", "borda_rank_correlation"]


def test_agreement_is_the_majoritys_share_of_those_who_judged() -> None:
    values = [np.array([1.0, 0.0]), np.array([2.0, 1.0]), np.array([0.0, 1.0]), np.array([1.0, 1.0])] * 5
    known = Grades("made up", ["a", "b"], [np.arange(2)] * 20, values)
    share = agreement(known, np.arange(20))
    assert share(np.array([[0, 1], [1, 0]])) == pytest.approx([2 / 3, 2 / 3])
    assert np.isnan(agreement(known, np.arange(12))(np.array([[0, 1]]))).all()


def test_no_item_is_both_told_and_judged() -> None:
    known = two_camps()
    context, held = disagreement.drawn(known, 3, np.random.default_rng(0))
    assert not set(context.ravel().tolist()) & set(held.ravel().tolist())
    assert len(context) == disagreement.CONTEXT


def test_the_pooled_model_orders_what_everybody_agrees_on() -> None:
    known = two_camps()
    utility_I = pooled(known, np.arange(120), 0)
    means_I = np.mean(known.values, axis=0)
    assert np.corrcoef(utility_I, means_I)[0, 1] > 0.95


def test_knowing_the_camp_helps_most_where_the_camps_split_evenly() -> None:
    found = real(two_camps(), 0)
    gain = {name: np.nanmean(each["conditional"] - each["pooled-argmax"]) for name, each in found.items()}
    assert gain[band(0.5, 0.55)] > 0.2
    assert gain[band(0.8, 1.0)] < 0.15
    assert len(found[ALL]["conditional"]) == len(disagreement.parts(120, 0)[2])


def test_who_is_judged_is_never_trained_on_nor_used_to_choose_at_any_seed() -> None:
    asides = [set(disagreement.parts(100, seed)[0].tolist()) for seed in range(5)]
    assert all(aside == asides[0] for aside in asides)
    for seed in range(5):
        aside, train, test = (set(part.tolist()) for part in disagreement.parts(100, seed))
        assert len(aside) + len(train) + len(test) == len(aside | train | test) == 100


def test_the_size_is_chosen_without_those_judged() -> None:
    known, turned = two_camps(people=80), two_camps(people=80)
    for user in disagreement.parts(80, 0)[2]:
        turned.values[user][:] = turned.values[user][::-1]
    assert disagreement.chosen(known, 0) == disagreement.chosen(turned, 0)


def test_the_command_reads_any_log_and_ends_with_one_json_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, known = tmp_path / "log.jsonl", two_camps(people=60, items=20)
    rates = [
        Interaction(id=f"{user}-{item}", timestamp=item, user=f"u{user}", item=f"i{item}", type="rate", value=value)
        for user, values in enumerate(known.values)
        for item, value in enumerate(values.tolist())
    ]
    path.write_bytes(b"\n".join(map(events.encode, rates)))
    assert disagreement.main(["--events", str(path), "--seeds", "1", "--users", "18", "--steps", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {row["arm"] for row in found["rows"]} >= {"pooled-argmax", "pooled-proportional", "conditional"}
    assert "log.jsonl" in found["data"]
