import gzip
import io
import json
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console

from ranker import events
from ranker.config import Config
from ranker.errors import ConfigError, DataError
from ranker.evaluation import PROTOCOLS
from ranker.registry import Registry
from ranker.simulation import Population, Tastes
from services import offline

PEOPLE = Tastes(users=30, items=40, seed=1)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl.gz"
    lines = [events.encode(event) for event in Population(PEOPLE).events(ratings=12)]
    path.write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))
    return path


def test_a_log_is_trained_on_and_the_first_version_is_served_at_once(tmp_path: Path, log: Path) -> None:
    console = quiet()
    found = offline.train([str(log)], None, tmp_path / "registry", console, seed=3)
    registry = Registry(tmp_path / "registry")
    version = registry.load(found["version"])
    assert registry.current().version == found["version"]
    assert version.config.learning.seed == 3
    assert {objective.name for objective in version.config.objectives} == {"like", "dismiss"}
    assert (found["events"], found["items"], found["rejected"]) == (30 + 40 + 30 * 12, 40, 0)
    assert "inferred from" in console.file.getvalue()


def test_a_second_version_is_saved_but_does_not_serve_unasked(tmp_path: Path, log: Path) -> None:
    first = offline.train([str(log)], None, tmp_path / "registry", quiet())["version"]
    second = offline.train([str(log)], None, tmp_path / "registry", quiet())["version"]
    registry = Registry(tmp_path / "registry")
    assert registry.versions() == [first, second]
    assert registry.current().version == first


def test_the_same_log_and_seed_give_the_same_weights(tmp_path: Path, log: Path) -> None:
    versions = [offline.train([str(log)], None, tmp_path / name, quiet(), seed=5)["version"] for name in "ab"]
    one, other = (Registry(tmp_path / name).load(v) for name, v in zip("ab", versions, strict=True))
    assert one.manifest.files["weights.safetensors"] == other.manifest.files["weights.safetensors"]


def test_a_second_pass_finds_and_leaves_no_counts_of_the_first(tmp_path: Path, log: Path) -> None:
    once, twice = (
        Registry(tmp_path / str(epochs)).load(
            offline.train([str(log)], None, tmp_path / str(epochs), quiet(), epochs=epochs)["version"]
        )
        for epochs in (1, 2)
    )
    counts = [name for name in once.weights if name.startswith("counters.")]
    assert once.weights["counters.totals_F"].any()
    assert all(once.weights[name].equal(twice.weights[name]) for name in counts)
    assert not once.weights["phi"].equal(twice.weights["phi"])


def test_lines_that_are_no_events_are_counted_and_do_not_end_the_training(tmp_path: Path, log: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(gzip.decompress(log.read_bytes()) + b'{"event": "interaction"}\nnot json\n')
    console = quiet()
    assert offline.train([str(bad)], None, tmp_path / "registry", console)["rejected"] == 2
    assert "2 lines were passed over, the first is bad.jsonl:431" in console.file.getvalue()


def test_a_log_is_evaluated_against_baselines(log: Path, tmp_path: Path) -> None:
    console = quiet()
    found = offline.evaluate([str(log)], None, tmp_path, console)
    arms = {row["arm"] for row in found["rows"]}
    assert {"full", "single-task", "popularity", "ease"} <= arms
    assert json.dumps(found, allow_nan=False)
    assert "popularity" in console.file.getvalue()


def test_the_split_and_the_seeds_of_an_evaluation_are_the_asked_ones(log: Path, tmp_path: Path) -> None:
    found = offline.evaluate([str(log)], None, tmp_path, quiet(), split="user", seeds=2)
    assert found["protocol"] == PROTOCOLS["user"]
    assert {"full", "single-task"} <= {row["arm"] for row in found["rows"] if row["metric"] == "ndcg@10 sd"}


def test_a_missing_file_is_named_with_what_would_do() -> None:
    with pytest.raises(DataError, match=r"nowhere.jsonl.*name event files, ml-100k or synthetic"):
        offline.open_log(["nowhere.jsonl"])


def test_an_empty_log_is_refused_rather_than_saved(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"")
    with pytest.raises(DataError):
        offline.train([str(empty)], None, tmp_path / "registry", quiet())
    assert not (tmp_path / "registry").exists()


@pytest.mark.parametrize("name", sorted(offline.NAMED))
def test_the_named_data_sets_bring_their_configuration(name: str) -> None:
    config = offline.configuration_of([name], None, quiet())
    assert isinstance(config, Config)
    assert config.groups


def test_a_misspelt_configuration_is_refused_with_the_nearest_key(tmp_path: Path) -> None:
    path = tmp_path / "plurank.toml"
    path.write_text('scail = "tiny"\n[[objectives]]\nname = "click"\nevent = "click"\n')
    with pytest.raises(ConfigError, match="did you mean 'scale'"):
        offline.configuration_of(["ml-100k"], path, quiet())


def test_a_fair_method_tells_how_each_group_fares_and_saves_what_harms_none(tmp_path: Path) -> None:
    log, settings = tmp_path / "graded.jsonl", tmp_path / "plurank.toml"
    settings.write_text(
        """
groups = ["taste_group"]
scale = "tiny"
learning = { minimum_group = 3 }

[[objectives]]
name = "like"
event = "like"
graded = { event = "rate", at_least = 4 }
"""
    )
    with log.open("wb") as out:
        for event in Population(PEOPLE).events(ratings=12):
            if isinstance(event, events.Interaction):
                event = replace(event, type="rate", value=5.0 if event.type == "like" else 1.0)  # noqa: PLW2901
            out.write(events.encode(event) + b"\n")
    console = quiet()
    found = offline.train([str(log)], settings, tmp_path / "registry", console, method="pareto")
    registry, told = Registry(tmp_path / "registry"), console.file.getvalue()
    assert "g0" in told
    assert "accuracy" in told
    saved = found["fairness"]["saved"]
    assert f"the {saved} model is saved: pareto: " in told
    assert (registry.teachers(found["version"]) is not None) is (saved == "pareto")
    assert registry.load(found["version"]).config.fairness.method == "erm"
    assert json.dumps(found["fairness"])
