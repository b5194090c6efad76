import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from experiments import online
from experiments.online import Counter
from ranker import events
from ranker.config import parse
from ranker.errors import DataError
from ranker.events import Event, Interaction, Ranking, Shown

CONFIG = parse(
    {"objectives": [{"name": "click", "event": "click", "wait": 30}], "scale": "tiny", "learning": {"rate": 0.02}}
)
SLATES = 150


def click(place: int, item: str, time: int) -> Interaction:
    return Interaction(
        id=f"c{place}{item}", timestamp=time, user=f"u{place % 7}", item=item, type="click", ranking=f"r{place}"
    )


def log(slates: int = SLATES, seed: int = 0) -> list[Event]:
    """Every 20 s a slate of 6 of 24 items; a few are hot, and which ones changes every 25 slates."""
    generator = np.random.default_rng(seed)
    found: list[Event] = []
    for place in range(slates):
        hot = place // 25 * 4
        items = [f"i{item}" for item in generator.choice(24, 6, replace=False)]
        now = 20_000 * (place + 1)
        shown = [Shown(id=item, position=None) for item in items]
        found.append(Ranking(id=f"r{place}", timestamp=now, user=f"u{place % 7}", items=shown))
        for item in items:
            if (int(item[1:]) - hot) % 24 < 4 and generator.random() < 0.8:
                found.append(click(place, item, now + 2000))
    return found


@pytest.fixture(scope="module")
def replayed() -> online.Scored:
    return online.replay(CONFIG, log(), rankings=SLATES, intervals=(20, 600))


def test_every_arm_scores_every_row_of_the_last_two_thirds(replayed: online.Scored) -> None:
    assert set(replayed.chances) == {"frozen", "counter", "sync-20", "sync-600"}
    assert len(replayed.labels_RT) == 6 * (SLATES - SLATES // 3)
    assert all(len(chances) == len(replayed.labels_RT) for chances in replayed.chances.values())


def test_the_fresh_copy_follows_what_is_hot_and_the_frozen_one_does_not(replayed: online.Scored) -> None:
    found = {arm: online.auc(replayed.labels_RT[:, 0], chances[:, 0]) for arm, chances in replayed.chances.items()}
    assert found["sync-20"] > found["sync-600"] > found["frozen"]
    assert found["sync-20"] > 0.6


def test_nothing_from_the_future_enters_a_score(replayed: online.Scored) -> None:
    changed = [e if e.time < 20_000 * 101 or isinstance(e, Ranking) else replace(e, item="i0") for e in log()]
    other = online.replay(CONFIG, changed, rankings=SLATES, intervals=(20, 600))
    before = 6 * 50
    for arm, chances in replayed.chances.items():
        np.testing.assert_array_equal(chances[:before], other.chances[arm][:before])


def test_a_click_counts_from_its_time_on() -> None:
    counter = Counter(1)
    counter.add("i", 0, shown=1.0)
    assert counter.rates(["i"], 0)[0, 0] == pytest.approx(5 * 0.09 / 6)
    counter.add("i", 1000, worked_T=1.0)
    assert counter.rates(["i"], 1000)[0, 0] == pytest.approx((1 + 0.45) / 6, rel=1e-3)
    later = counter.rates(["i"], 4 * 3600 * 1000 + 1000)[0, 0]
    assert later == pytest.approx((0.5 + 0.45) / 5.5, rel=1e-3)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30)), max_size=20))
def test_events_come_in_order_of_time(steps: list[tuple[int, int]]) -> None:
    found: list[Event] = []
    now = 0
    for place, (gap, late) in enumerate(steps):
        now += gap
        found += [
            Ranking(id=f"r{place}", timestamp=now, user="u", items=[Shown(id="i")]),
            click(place, "i", now + late),
        ]
    times = [event.time for event in online.ordered(found)]
    assert times == sorted(times)
    assert len(times) == len(found)


def test_a_ranking_may_say_how_long_it_is() -> None:
    ranking = next(e for e in log(1) if isinstance(e, Ranking))
    assert events.fields_of(online.with_size(ranking).fields) == {"slate_size": 6}


def test_the_command_ends_with_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, settings_ = tmp_path / "log.jsonl", tmp_path / "plurank.toml"
    path.write_bytes(b"\n".join(map(events.encode, log(60))))
    settings_.write_text('scale = "tiny"\n[[objectives]]\nname = "click"\nevent = "click"\nwait = 30\n')
    arguments = [
        "--events",
        str(path),
        "--config",
        str(settings_),
        "--seeds",
        "1",
        "--intervals",
        "20",
        "300",
        "--json",
    ]
    assert online.main(arguments) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["arm"] for row in found["rows"][:4]] == ["frozen", "counter", "sync-300", "sync-20"]
    assert found["data"] == "log.jsonl"


def test_a_log_without_rankings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(events.encode(click(0, "i", 1)))
    with pytest.raises(DataError, match="slates"):
        online.run([path], config=CONFIG, seeds=[0])
