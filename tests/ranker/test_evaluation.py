"""Evaluation picks the protocol that the log allows, and MovieLens holds what the docs say."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from ranker import config, datasets, evaluation, events
from ranker.config import parse
from ranker.errors import DataError, RequestError
from ranker.events import Shown

CONFIG = parse({"scale": "tiny", "objectives": [{"name": "rate", "event": "rate", "threshold": 4.0, "wait": 5}]})


def write(path: Path, *, slates: bool) -> Path:
    generator = np.random.default_rng(0)
    lines = []
    for number in range(300):
        user, item, now = f"u{number % 10}", f"i{generator.integers(20)}", number * 1000
        ranking = f"r{number}" if slates else None
        if slates:
            shown = [Shown(item), Shown("other")]
            lines.append(events.encode(events.Ranking(id=f"r{number}", timestamp=now, user=user, items=shown)))
        act = events.Interaction(
            id=f"e{number}", timestamp=now + 1, user=user, item=item, type="rate", ranking=ranking,
            value=float(generator.integers(1, 6)),
        )  # fmt: skip
        lines.append(events.encode(act))
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    return path


def test_a_log_with_rankings_is_evaluated_progressively_and_one_without_is_split(tmp_path: Path) -> None:
    with_slates = evaluation.evaluate([write(tmp_path / "a.jsonl.gz", slates=True)], CONFIG)
    without = evaluation.evaluate([write(tmp_path / "b.jsonl.gz", slates=False)], CONFIG, passes=1)
    assert with_slates.protocol == evaluation.PROTOCOLS["progressive"]
    assert without.protocol == evaluation.PROTOCOLS["time"]
    assert with_slates.data == "a.jsonl.gz"
    assert "warm" in without.parts
    assert without.seconds > 0


def test_progress_is_told(tmp_path: Path) -> None:
    lines: list[str] = []
    evaluation.evaluate([write(tmp_path / "b.jsonl", slates=False)], CONFIG, passes=1, progress=lines.append)
    assert any("pass 1 of 1" in line for line in lines)


def test_several_seeds_are_averaged_and_their_spread_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.gz", slates=True)
    runs = [evaluation.evaluate([path], CONFIG, seed=seed) for seed in (3, 4)]
    both = evaluation.evaluate([path], CONFIG, seed=3, seeds=2)
    apart = [run.find("full", "ndcg@10", "warm").mean for run in runs]
    assert both.find("full", "ndcg@10", "warm").mean == pytest.approx(np.mean(apart))
    assert both.find("full", "ndcg@10 sd", "warm").mean == pytest.approx(np.std(apart, ddof=1))
    assert both.find("full", "ndcg@10 sd", "warm").n == 2
    assert any("2 training seeds" in note for note in both.notes)


def test_a_version_has_no_seeds_and_nothing_is_learned_with_none(tmp_path: Path) -> None:
    path = write(tmp_path / "b.jsonl", slates=False)
    with pytest.raises(RequestError, match="1 or more"):
        evaluation.evaluate([path], CONFIG, seeds=0)
    with pytest.raises(RequestError, match="does not learn"):
        evaluation.evaluate([path], CONFIG, {}, seeds=2)


def test_a_missing_log_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        evaluation.evaluate([tmp_path / "none.jsonl"], CONFIG)


@pytest.mark.data
def test_on_movielens_the_full_model_beats_popularity_over_warm_users() -> None:
    try:
        movielens = datasets.movielens()
    except DataError as error:
        pytest.skip(f"MovieLens-100K cannot be had here: {error}")
    shipped = config.load(Path(__file__).parents[2] / "deploy" / "movielens.toml")
    found = evaluation.evaluate_log(lambda: movielens.events(np.arange(50_000)), shipped, data="ml-100k", passes=2)
    lead = found.find("full - popularity", "ndcg@10", "warm")
    assert lead is not None
    assert lead.low > 0
