import io
from pathlib import Path

from rich.console import Console

from services import live, status


def test_the_line_is_gathered_from_what_each_process_says(tmp_path: Path) -> None:
    folder = tmp_path / "status"
    status.write(folder, "profiles", {"events": 100, "lag": 2, "trouble": ""})
    status.write(folder, "trainer", {"events": 90, "lag": 7, "version": "v2", "auc": {"click": 0.7125}})
    status.write(folder, "monitor", {"events": 95, "lag": 0, "ndcg": {"gender F": 0.5}, "trouble": "store is away"})
    status.write(
        folder,
        "audience",
        {
            "audience": "simulated",
            "satisfaction": 0.71,
            "first": 0.7,
            "chance": 0.5,
            "oracle": 1.0,
            "version": "v2",
            "versions": {"v1": {}, "v2": {}},
            "answers": {"200": 11, "503": 1},
            "p50_ms": 3.14,
        },
    )
    assert live.line(live.gather(tmp_path), 12.0) == (
        "12 events/s · lag 7 · v2 · AUC click .713 · NDCG gender F .500 · "
        "satisfaction .710 (v1 .700, random .500, best 1.000; simulated) · 11 of 12 answers 200, p50 3.1 ms · "
        "monitor: store is away"
    )


def test_the_pace_is_that_of_the_last_seconds(tmp_path: Path) -> None:
    out = io.StringIO()
    shown = live.Line(Console(file=out, width=200))
    for events in (None, 50, 100):
        shown.show({"events": events, "lag": {}, "auc": {}, "ndcg": {}})
    first, *_, last = out.getvalue().splitlines()
    assert first == "0 events/s · lag unknown, no loop has reported"
    assert int(last.split()[0]) > 100


def test_a_process_that_says_nothing_for_long_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "status"
    status.write(folder, "trainer", {"lag": 0})
    path = folder / "trainer.json"
    path.write_text(path.read_text().replace('"at":', '"at":1,"was":'))
    assert live.gather(tmp_path)["silent"] == ["trainer"]
    assert live.line(live.gather(tmp_path), 0.0).endswith("silent: trainer")
