import json
from pathlib import Path

import numpy as np
import pytest

from experiments import position
from ranker.errors import DataError
from ranker.simulation import examination


def test_two_documents_are_harvested_by_hand():
    shown = np.array([[10.0, 30.0], [40.0, 20.0], [50.0, 0.0]])
    clicks = np.array([[5.0, 6.0], [4.0, 1.0], [50.0, 0.0]])
    # the third was never at the second place; the others weigh 10 and 20
    wanted = (10 * 0.2 + 20 * 0.05) / (10 * 0.5 + 20 * 0.1)
    assert position.harvested(np.stack([shown, clicks])).tolist() == pytest.approx([1, wanted])


def test_without_a_document_at_both_places_nothing_can_be_harvested():
    shown = np.diag([5.0, 5.0, 5.0])
    assert position.harvested(np.stack([shown, shown / 2]))[0] == 1
    assert np.isnan(position.harvested(np.stack([shown, shown / 2]))[1:]).all()


@pytest.fixture(scope="module")
def exact() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts that are exactly what a position-based model expects, rounded to nothing."""
    rng = np.random.default_rng(0)
    truth_P, merit_Q = examination(6, decay=0.7), rng.uniform(0.1, 0.9, 40)
    shown_QP = rng.integers(200, 2000, (40, 6)).astype(float)
    return np.stack([shown_QP, shown_QP * merit_Q[:, None] * truth_P]), truth_P, merit_Q


def test_the_position_based_model_is_found_by_em(exact):
    counts, truth, _ = exact
    chance = position.by_em(counts, 1.0)
    assert chance[0] / chance[0, 0] == pytest.approx(truth, abs=0.02)


def test_the_harvested_curve_is_the_true_one_on_exact_counts(exact):
    counts, truth, _ = exact
    assert position.harvested(counts) == pytest.approx(truth)


def test_the_tower_s_marginal_curve_follows_and_too_much_dropout_distorts_it(exact):
    counts, truth, _ = exact
    chance, logits = position.by_tower(counts, 1.0, 0.0)
    curve = position.marginal(chance, counts)
    assert np.abs(curve - truth).mean() < 0.05
    assert np.all(np.diff(logits) < 0)


def test_too_much_dropout_lets_documents_take_over_what_is_the_place_s(exact):
    _, truth, merit = exact
    # the better a document the higher it stands: then dropped places leave their bias to the documents
    rank = np.argsort(np.argsort(-merit)) * 6 // 40
    shown = np.round(2000 * np.exp(-np.abs(np.arange(6) - rank[:, None]) * 2.0)) + 5
    counts = np.stack([shown, shown * merit[:, None] * truth])
    little, much = (position.marginal(position.by_tower(counts, 2.0, rate)[0], counts) for rate in (0.0, 0.6))
    assert np.abs(little - truth).mean() < 0.05
    assert np.abs(much - truth).mean() > 2 * np.abs(little - truth).mean()


def test_clicks_are_read_off_any_log_with_positions(tmp_path: Path):
    about = {"timestamp": 1, "user": "u"}
    unknown = [{"id": "b", "position": 0}, {"id": "a", "position": None}]
    lines = [
        {"event": "ranking", "id": "r1", "items": [{"id": "a"}, {"id": "b"}], **about},
        {"event": "ranking", "id": "r2", "items": unknown, **about},
        {"event": "interaction", "id": "c1", "type": "click", "item": "b", "ranking": "r1", **about},
        {"event": "interaction", "id": "c2", "type": "like", "item": "a", "ranking": "r1", **about},
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(json.dumps(line) for line in lines))
    clicks = position.load([log])
    assert clicks.counts().tolist() == [[[1, 0], [1, 1]], [[0, 0], [0, 1]]]
    with pytest.raises(DataError, match="of type buy"):
        position.load([log], kind="buy")


def test_every_arm_is_measured_and_the_criterion_is_judged():
    result = position.run(seeds=[0], clicks=position.made_up(rankings=1500, queries=5))
    for arm in ("rank-ctr", "document", "pbm-em", "tower"):
        assert result.row(arm, "log_likelihood").mean < 0
        assert result.row(arm, "perplexity").mean > 1
    assert result.row("tower", "examination_correlation").mean > 0.9
    assert "documents at several places" in result.data
