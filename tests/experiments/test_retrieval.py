import json
from pathlib import Path

import numpy as np
import pytest

from experiments import retrieval
from ranker import config, datasets
from ranker.index import Index

CONFIG = config.parse(
    {
        "objectives": [{"name": "like", "event": "rate", "threshold": 4}],
        "fields": {"item": {"genres": "categories"}},
        "interests": "genres",
        "scale": "tiny",
    }
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve people who like two genres, mostly one of them."""
    draw, lines = np.random.default_rng(0), []
    for item in range(60):
        genres = [{"name": "genres", "value": ["abc"[item % 3]]}]
        lines.append({"event": "item", "id": f"i{item}", "timestamp": 1, "item": f"i{item}", "fields": genres})
    for user in range(12):
        for place, item in enumerate(draw.permutation(60)[:40].tolist()):
            value = 5 if item % 3 == user % 3 or (item % 3 == (user + 1) % 3 and item % 4 == 0) else 1
            rated = {"event": "interaction", "type": "rate", "user": f"u{user}", "item": f"i{item}", "value": value}
            lines.append({**rated, "id": f"{user}-{place}", "timestamp": 1000 * place + user})
    path = tmp_path_factory.mktemp("log") / "small.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_places_go_to_each_query_in_turn() -> None:
    index = Index(np.array([[3, 0], [2, 0], [0, 3], [1, 1]], np.float32))
    one, other = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    found = retrieval._by_modes(index, [(1, other), (9, one)], 3, np.array([0]))
    assert found.tolist() == [2, 1, 3]


def test_what_is_held_out_depends_on_seed_user_and_item_alone(log: Path) -> None:
    events = list(datasets.read([log]))
    held = [{event.id for event in events if retrieval.is_held(event, seed)} for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]
    assert 40 < len(held[0]) < 160


def test_all_arms_are_measured_on_people_who_did_not_choose(log: Path) -> None:
    result = retrieval.run([log], config=CONFIG, seeds=(0,), passes=1)
    for arm in ("single", "interests", "tastes", "clusters"):
        found = [result.row(arm, f"{metric}@{n}").mean for metric in ("recall", "minority_recall") for n in (50, 200)]
        assert all(0 <= mean <= 1 for mean in found)
        assert found[1] >= found[0]
        assert found[1] == 1  # 200 candidates are all there are
    assert result.row("tastes - single", "minority_recall@200").mean == 0
