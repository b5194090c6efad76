import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import Probe, Recorder, memory, processor_s, role, summary
from services import status
from services.client import Client


def sample(**changed: Any) -> dict[str, Any]:
    flat = {"events_s": 40.0, "lag": 3, "rss_mb": 900.0, "p50_ms": 3.0, "satisfaction": 0.7, "errors": 0, "restarts": 0}
    return {**flat, "version": "v1", **changed}


def hour(**last: Any) -> list[dict[str, Any]]:
    """Eight samples, the second half of which is different."""
    return [sample() for _ in range(4)] + [sample(version="v2", **last) for _ in range(4)]


def test_an_hour_that_stays_as_it_began_is_flat() -> None:
    found = summary(hour())
    assert found["flat"]
    assert found["figures"]["rss_mb"] == {"first": 900.0, "last": 900.0, "ratio": 1.0}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rss_mb": 1000.0}, "rss_mb: 1.11 times the first quarter"),
        ({"events_s": 20.0}, "events_s: 0.5 times the first quarter"),
        ({"p50_ms": 4.0}, "p50_ms: 1.33 times the first quarter"),
        ({"satisfaction": 0.6}, "satisfaction: 0.857 times the first quarter"),
        ({"lag": 5000}, "lag: 5000 in the last quarter"),
        ({"errors": 2}, "2 answers were not 200"),
        ({"restarts": 1}, "1 restarts of a loop"),
    ],
)
def test_what_did_not_stay_flat_is_named(changed: dict[str, Any], said: str) -> None:
    assert summary(hour(**changed))["failed"] == [said]


def test_an_hour_without_a_new_version_is_a_failure() -> None:
    assert summary([sample() for _ in range(8)])["failed"] == ["no new version was served"]


def test_samples_without_a_figure_are_passed_over() -> None:
    found = summary([sample(p50_ms=None), sample(p50_ms=2.0), sample(p50_ms=None)])
    assert found["figures"]["p50_ms"] == {"first": None, "last": None, "ratio": None}


def test_a_lag_that_was_none_has_no_ratio() -> None:
    assert summary([sample(lag=0)] * 2)["figures"]["lag"] == {"first": 0, "last": 0, "ratio": None}


def test_processes_have_their_roles_for_names() -> None:
    assert role("/x/python3 -m services.cli run monitor --child --config y") == "monitor"
    assert role("ray::ServeReplica:plurank:plurank.initialize") == "replica"
    assert role("/x/python /x/plurank up --data ml-100k") == role("python -m services.cli up --seconds 9") == "up"


def test_memory_counts_this_process_and_passes_over_one_that_is_gone() -> None:
    found = memory([os.getpid(), 2**22 + 1])
    assert 10 < sum(found.values()) < 100_000


def test_processor_time_is_told_between_two_samples_and_not_before(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, os.getpid(), Probe(Client("http://127.0.0.1:9")))
    assert recorder.sample()["processors"] is None
    assert recorder.sample()["processors"] >= 0
    assert processor_s([os.getpid()])[os.getpid()] > 0


def test_a_sample_tells_events_a_second_between_the_loops_own_reports(tmp_path: Path) -> None:
    folder = tmp_path / "status"
    recorder = Recorder(tmp_path, os.getpid(), Probe(Client("http://127.0.0.1:9")))
    status.write(folder, "profiles", {"events": 100, "lag": 0})
    recorder.sample()
    before = status.read(folder)["profiles"]["at"]
    status.write(folder, "profiles", {"events": 150, "lag": 7})
    passed = status.read(folder)["profiles"]["at"] - before
    found = recorder.sample()
    assert found["lag"] == 7
    assert found["events_s"] == pytest.approx(50 / passed, rel=0.01)


def test_a_loop_that_was_started_again_is_counted(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, os.getpid(), Probe(Client("http://127.0.0.1:9")))
    status.write(tmp_path / "status", "trainer", {"lag": 0})
    assert recorder.sample()["restarts"] == 0
    recorder.pids["trainer"] += 1
    assert recorder.sample()["restarts"] == 1


def test_answers_other_than_200_are_errors_whoever_got_them(tmp_path: Path) -> None:
    probe = Probe(Client("http://127.0.0.1:9"))
    probe.answers.update({"200": 5, "none": 1})
    status.write(tmp_path / "status", "audience", {"answers": {"200": 10, "503": 2}})
    found = Recorder(tmp_path, os.getpid(), probe).sample()
    assert (found["answers"], found["errors"]) == (18, 3)
