"""experiments/calibration.py on a tiny log with two tastes and films nobody sees."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import calibration
from experiments.calibration import Case, measured
from ranker.errors import DataError

GENRES = ["war", "noir", "farce"]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 people who like mostly one genre of three; 90 items, the first of each genre the most popular."""
    draw = np.random.default_rng(0)
    lines = [
        {"event": "item", "id": f"e{n}", "timestamp": 1000, "item": f"i{n}", "fields": [{"name": "genres", "value": g}]}
        for n in range(90)
        for g in [[GENRES[n % 3]]]
    ]
    time = 2000
    for user in range(60):
        weights = np.array([(0.7 if n % 3 == user % 2 else 0.15) / (1 + n // 3) for n in range(90)])
        for n in draw.choice(90, 24, replace=False, p=weights / weights.sum()).tolist():
            time += 1000
            like = {"event": "interaction", "id": f"a{time}", "timestamp": time, "type": "like"}
            lines.append({**like, "user": f"u{user}", "item": f"i{n}"})
    path = tmp_path_factory.mktemp("log") / "tiny.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    return path


def test_a_slate_is_measured_as_written_down():
    case = Case(
        user="u",
        rows=np.array([10, 11, 12, 13]),
        utility_N=np.array([4.0, 3, 2, 1]),
        interests_NC=np.array([[1, 0], [1, 0], [0, 1], [1, 0]], np.float32),
        target_C=np.array([0.85, 0.15]),
        acts=9.0,
        future=np.array([11, 99]),
    )
    found = measured(case, np.array([0, 1]))
    assert found["minority_exposure"] == 0
    assert found["ndcg@10"] == pytest.approx((1 / np.log2(3)) / (1 + 1 / np.log2(3)))
    mixed, last = measured(case, np.array([2, 0])), measured(case, np.array([0, 2]))
    assert mixed["minority_exposure"] == 1
    assert mixed["miscalibration"] == pytest.approx(last["miscalibration"])
    assert mixed["exposure_miscalibration"] > last["exposure_miscalibration"] > 0


def test_every_arm_is_measured_and_calibration_falls_along_the_sweep(log):
    result = calibration.run([log], seeds=(0, 1), exact=3)
    far = [result.row(f"lambda-{x:g}", "miscalibration").mean for x in calibration.LAMBDAS]
    assert far[0] > 2 * far[-1]
    assert (np.diff(far) < 0.02).all()
    assert result.row("target", "halved").mean <= 0.5
    assert result.row("default", "halved").mean == pytest.approx(
        result.row("lambda-0.3", "miscalibration").mean / far[0]
    )
    assert result.row("order-1", "exposure_miscalibration").mean < result.row("default", "exposure_miscalibration").mean
    assert result.row("order-1", "miscalibration").mean == pytest.approx(result.row("default", "miscalibration").mean)
    assert result.row("greedy", "gap").low >= -1e-6
    assert result.row("greedy", "gain").mean > 0.6
    assert 0 < result.row("default", "coverage").mean <= 1


def test_validation_sees_nothing_of_what_is_held_out(log):
    whole = calibration.load([log])
    share = calibration.HELD[0]
    inner = calibration.earlier(whole, share)
    held = {user: {act.id for act in acts[int(len(acts) * (1 - share)) :]} for user, acts in whole.acts.items()}
    assert all(len(ids) == 5 for ids in held.values())
    assert not any({act.id for act in acts} & held[user] for user, acts in inner.acts.items())
    assert not {event.id for event in inner.events()} & set().union(*held.values())


def test_a_log_without_categories_is_refused(tmp_path):
    path = tmp_path / "bare.jsonl"
    path.write_text('{"event": "interaction", "id": "a", "timestamp": 1, "user": "u", "item": "i", "type": "like"}\n')
    with pytest.raises(DataError, match="no item has a category"):
        calibration.run([path], seeds=(0,))
