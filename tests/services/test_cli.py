import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ranker import events
from ranker.simulation import Population, Tastes
from services.cli import main, parser


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    population = Population(Tastes(users=10, items=20, seed=1))
    path.write_bytes(b"\n".join(events.encode(event) for event in population.events(ratings=6)))
    return path


def test_json_is_one_object_on_the_last_line_and_alone_on_stdout(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--events", str(log), "--registry", str(tmp_path / "r"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert json.loads(out)["events"] == 10 + 20 + 10 * 6
    assert "promoted" in err


def test_without_json_there_is_a_table_for_people(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["train", "--events", str(log), "--registry", str(tmp_path / "r")])
    capsys.readouterr()
    assert main(["models", "list", "--registry", str(tmp_path / "r")]) == 0
    assert "served" in capsys.readouterr().out


def test_a_deliberate_error_is_one_line_on_stderr_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--events", "nowhere.jsonl"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("plurank: nowhere.jsonl: 'no such file' is not usable; name event files, ml-100k or synthetic\n")


def test_an_error_with_json_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "v1", "--registry", "nowhere", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["error"] == "NotFound"
    assert "nowhere" in found["detail"]


def test_asking_a_service_that_does_not_run_says_how_to_start_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLURANK_TOKEN", "t")
    assert main(["rank", "--user", "u", "--items", "a,b", "--url", "http://127.0.0.1:1"]) == 2
    assert "start it with `plurank up`" in capsys.readouterr().err


def test_an_unknown_experiment_is_refused_with_the_ones_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "onlin"]) == 2
    error = capsys.readouterr().err
    assert "there are: " in error
    assert "online" in error
    assert "report" not in error


def test_an_experiments_own_error_is_one_line_too(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "disagreement", "--seeds", "0", "--json"]) == 2
    assert capfd.readouterr().err == "plurank: --seeds: 0 is not usable; ask for at least one seed\n"


@pytest.mark.parametrize("given", [["train", "--epochs", "0", "--events", "x"], ["up", "--seconds", "-3"]])
def test_a_number_that_cannot_be_meant_is_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(given)
    assert "is not usable; " in capsys.readouterr().err


def test_down_where_nothing_runs_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["down", "--state", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"ended": False}


def test_doctor_fails_with_status_1_where_something_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.toml").write_text("objectives = []\n")
    assert main(["doctor", "--config", str(tmp_path / "bad.toml"), "--state", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["broken"] == 1


def test_the_help_names_every_command_but_the_inner_one() -> None:
    text = parser().format_help()
    for command in ("up", "serve", "train", "evaluate", "replay", "rank", "recommend", "models", "doctor", "down"):
        assert f"\n    {command}" in text
    assert "experiment" in text


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "evaluate", "--events", "nowhere"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def shuffled(path: Path, slates: int, *, propensity: float | None) -> Path:
    """Slates of three in random order; "a" is liked most and "c" least, and each place is looked at half as often."""
    draw, items = np.random.default_rng(0), ["a", "b", "c"]
    found: list[events.Event] = [events.Item(id=f"i-{name}", timestamp=1, item=name) for name in items]
    for n in range(slates):
        order, time = [items[k] for k in draw.permutation(3)], 10**9 + 20_000 * n
        shown = [events.Shown(id=name, position=place, propensity=propensity) for place, name in enumerate(order)]
        found.append(events.Ranking(id=f"r{n}", timestamp=time, user=f"u{n}", items=shown))
        found += [
            events.Interaction(
                id=f"r{n}-{name}", timestamp=time + 1, user=f"u{n}", item=name, type="click", ranking=f"r{n}"
            )
            for place, name in enumerate(order)
            if draw.random() < {"a": 0.9, "b": 0.4, "c": 0.05}[name] * 0.5**place
        ]
    path.write_bytes(b"\n".join(events.encode(event) for event in found))
    return path


def test_a_version_is_valued_from_logged_propensities_and_refused_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, settings, registry = tmp_path / "log.jsonl", tmp_path / "plurank.toml", ["--registry", str(tmp_path / "r")]
    settings.write_text('scale = "tiny"\n[[objectives]]\nname = "click"\nevent = "click"\nbiased = true\n')
    shuffled(log, 250, propensity=1 / 3)
    main(["train", "--events", str(log), "--config", str(settings), "--epochs", "10", *registry, "--json"])
    version = json.loads(capsys.readouterr().out)["version"]
    asked = ["evaluate", "--counterfactual", "--events", str(log), "--version", version, *registry]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["overlap"]["rows"], found["on_policy"]["slates"]) == (version, 750, 250)
    best = 0.9 + 0.5 * 0.4 + 0.25 * 0.05  # a, b, c, which the version has learned
    for estimator in ("ips", "snips", "doubly-robust"):
        told = found["values"][estimator]
        assert told["low"] < best < told["high"]
        assert told["mean"] > found["on_policy"]["high"]
    shuffled(log, 10, propensity=None)
    assert main([*asked, "--objective", "like"]) == 2
    assert "the binary objectives are click" in capsys.readouterr().err
    assert main(asked) == 2
    told = capsys.readouterr().err
    assert "propensity: '30 of 30 rows have none' is not usable; log P(item at this position | request)" in told
    assert main([arg for arg in asked if arg not in {"--version", version}]) == 2
    assert "name the version that --counterfactual is about" in capsys.readouterr().err
