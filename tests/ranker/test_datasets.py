"""Event files, inferred configurations, and MovieLens out of its package."""

import gzip
import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from ranker import config, datasets, events
from ranker.errors import DataError, EventError


def line(event: str, id: str, timestamp: int = 1, fields: dict[str, object] | None = None, **rest: object) -> str:
    named = [{"name": name, "value": value} for name, value in (fields or {}).items()]
    return json.dumps({"event": event, "id": id, "timestamp": timestamp, "fields": named, **rest})


def did(id: str, kind: str, timestamp: int = 1, **rest: object) -> str:
    return line("interaction", id, timestamp, **{"user": "u", "item": "i1", "type": kind, **rest})


def write(path: Path, *lines: str) -> Path:
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture(scope="session")
def movielens() -> datasets.MovieLens:
    try:
        return datasets.movielens()
    except DataError as error:
        pytest.skip(f"MovieLens-100K cannot be had here: {error}")


def test_plain_and_packed_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", did("e1", "click", 1), "", did("e2", "click", 2))
    two = write(tmp_path / "b.jsonl.gz", did("e3", "click", 3))
    assert [event.id for event in datasets.read([one, two])] == ["e1", "e2", "e3"]


def test_a_bad_line_is_named_with_file_and_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", did("e1", "click", 1), "{not json}")
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        list(datasets.read([path]))


def test_bad_lines_can_be_handed_to_a_callback(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "{", did("e1", "click", 1), '{"event":"forget"}')
    found: list[tuple[int, bytes]] = []

    def reject(at: Path, number: int, line: bytes, error: EventError) -> None:
        found.append((number, line.strip()))

    assert [event.id for event in datasets.read([path], reject=reject)] == ["e1"]
    assert found == [(1, b"{"), (3, b'{"event":"forget"}')]


def test_a_missing_file_and_a_cut_off_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        list(datasets.read([tmp_path / "none.jsonl"]))
    cut = tmp_path / "cut.jsonl.gz"
    lines = "\n".join(did(f"e{n}", "click", n) for n in range(500))
    cut.write_bytes(gzip.compress(lines.encode())[:-20])
    with pytest.raises(DataError, match="damaged or cut off"):
        list(datasets.read([cut]))


def rankings(count: int, **position: object) -> list[str]:
    shown = [{"id": "i1", **position}, {"id": "i2", **position}]
    lines = []
    for n in range(count):
        lines.append(line("ranking", f"r{n}", n * 1000, {"device": "phone"}, user=f"u{n}", items=shown))
        lines.append(did(f"c{n}", "click", n * 1000 + 1500, user=f"u{n}", ranking=f"r{n}"))
    return lines


def test_interaction_types_become_objectives_with_waits_from_the_log(tmp_path: Path) -> None:
    lines = [*rankings(50), did("h", "hate")]
    found = datasets.infer([write(tmp_path / "log.jsonl", *lines)])
    click, hate = found.objectives
    assert (click.name, click.wait, click.biased, click.weight) == ("click", 2.0, True, 1.0)
    assert (hate.name, hate.weight) == ("hate", -1.0)
    assert found.fields.request == {"device": "category"}


def test_unknown_positions_mean_no_position_bias(tmp_path: Path) -> None:
    found = datasets.infer([write(tmp_path / "log.jsonl", *rankings(3, position=None))])
    assert not found.objectives[0].biased


@pytest.mark.parametrize(("values", "threshold"), [((1, 3, 5), 4.0), ((-10, 10), "user-mean"), ((2, 2), None)])
def test_rates_count_from_four_on_a_scale_of_five_else_from_the_users_mean(
    tmp_path: Path, values: tuple[float, ...], threshold: float | str | None
) -> None:
    lines = [did(f"e{n}", "rate", value=value) for n, value in enumerate(values)]
    assert datasets.infer([write(tmp_path / "log.jsonl", *lines)]).objectives[0].threshold == threshold


def test_small_user_fields_become_groups_and_others_inputs(tmp_path: Path) -> None:
    lines = [line("user", f"u{n}", fields={"sex": "fm"[n % 2], "postcode": f"p{n}"}, user=f"u{n}") for n in range(30)]
    lines += [line("item", "x", fields={"genres": ["a", "b"]}, item="i1")]
    lines += [did("c", "click")]
    found = datasets.infer([write(tmp_path / "log.jsonl", *lines)])
    assert found.groups == ("sex",)
    assert found.fields.user == {"postcode": "category"}
    assert found.interests == "genres"


def test_odd_type_names_become_distinct_objective_names(tmp_path: Path) -> None:
    kinds = ["Add to cart!", "add_to_cart", "2nd look"]
    lines = [did(f"e{n}", kind) for n, kind in enumerate(kinds)]
    found = datasets.infer([write(tmp_path / "log.jsonl", *lines)])
    assert {o.event: o.name for o in found.objectives} == {
        "Add to cart!": "add_to_cart",
        "add_to_cart": "add_to_cart_2",
        "2nd look": "e_2nd_look",
    }


def test_a_log_without_interactions_implies_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no interaction"):
        datasets.infer([write(tmp_path / "log.jsonl", line("forget", "f", user="u"))])


@pytest.mark.parametrize("name", ["movielens", "news"])
def test_shipped_configurations_are_valid(name: str) -> None:
    folder = Path(__file__).parents[2] / "deploy"
    assert config.load(folder / f"{name}.toml").name == name


def test_without_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DataError, match=r"pip download --no-deps recbole==1\.2\.1"):
        datasets.movielens(tmp_path / "cache")


def test_the_cache_follows_the_platforms_habit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert datasets.cache_folder() == tmp_path / "plurank"
    monkeypatch.delenv("XDG_CACHE_HOME")
    if sys.platform == "linux":
        assert datasets.cache_folder() == Path.home() / ".cache" / "plurank"


@pytest.mark.data
def test_movielens_has_its_known_numbers(movielens: datasets.MovieLens) -> None:
    assert (len(movielens), len(movielens.films), len(movielens.people)) == (100_000, 1682, 943)
    assert np.all(np.diff(movielens.times_N) >= 0)
    assert movielens.films["1"] == {"title": "Toy Story", "genres": ["Animation", "Children's", "Comedy"], "year": 1995}
    assert movielens.people["1"] == {"gender": "M", "age": "18-24", "occupation": "technician"}


@pytest.mark.data
def test_movielens_events_come_in_time_order_and_again_from_the_wire(movielens: datasets.MovieLens) -> None:
    found = list(movielens.events(np.arange(500)))
    assert len(found) == 1682 + 943 + 500
    assert all(a.time <= b.time for a, b in itertools.pairwise(found))
    assert [events.decode(events.encode(event)) for event in found[::50]] == found[::50]


@pytest.mark.data
@pytest.mark.usefixtures("movielens")
def test_a_damaged_cache_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(datasets.cache_folder() / datasets.WHEEL_FILE, tmp_path)
    assert len(datasets.movielens(tmp_path)) == 100_000
    (tmp_path / datasets.WHEEL_FILE).write_bytes(b"damaged")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DataError, match="needs the Python index"):
        datasets.movielens(tmp_path)
