"""Evaluation picks the protocol that the log allows, and MovieLens holds what the docs say."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from ranker import config, datasets, evaluation, events, heldout
from ranker.baselines import popularity
from ranker.config import parse
from ranker.counters import uncount
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
def test_on_movielens_the_full_model_beats_popularity_over_people_with_history() -> None:
    """The shipped configuration, all ratings, one pass as `plurank train` does by default, the last fifth of each user.

    Measured with training seeds 0 to 4: the lead in NDCG@10 is .037 to .040, its lower bounds over 908 users .026 to
    .029. The bounds below leave more than half of that for other machines and for changes that mean no harm; a change
    that falls under them has cost something. Nothing about the setting was searched for.
    """
    try:
        movielens = datasets.movielens()
    except DataError as error:
        pytest.skip(f"MovieLens-100K cannot be had here: {error}")
    shipped = config.load(Path(__file__).parents[2] / "deploy" / "movielens.toml")
    splitter = heldout.Splitter(movielens.events, "user", 0.2)
    parts = heldout.divide(shipped, movielens.events, splitter)
    weights = heldout.learned(shipped, movielens.events, splitter, passes=1)
    uncount(weights)
    full = heldout.by_model(shipped, weights, parts.catalogue, range(len(shipped.objectives)))
    popular = heldout.by_item(parts, popularity(parts.seen))
    rows = heldout.compare(shipped, parts.cases, {"full": [full], "popularity": [popular]}, seed=0)
    lead = next(row for row in rows if (row.arm, row.metric) == ("full - popularity", "ndcg@10"))
    assert lead.n > 900
    assert lead.mean > 0.015
    assert lead.low > 0.005
