from pathlib import Path

import pytest

from ranker.decisions import Decision, Decisions


def decision(n: int) -> Decision:
    return Decision(time=n, action="refuse", version=f"v{n:06d}", who="trainer", measures={"loss": n + 1 / 3})


@pytest.fixture
def kept(tmp_path: Path) -> Decisions:
    kept = Decisions(tmp_path, full=1000)
    for n in range(100):
        kept.append(decision(n))
    return kept


def test_full_files_are_compressed_and_nothing_is_lost(kept: Decisions, tmp_path: Path) -> None:
    assert [one.time for one in kept.read()] == list(range(100))
    assert len(list(tmp_path.glob("decisions-*.jsonl.gz"))) > 3
    assert sum(path.stat().st_size for path in tmp_path.glob("decisions.jsonl")) < 1000


@pytest.mark.parametrize("last", [0, 1, 7, 8, 50, 100, 1000])
def test_the_latest_are_found_across_files(kept: Decisions, last: int) -> None:
    assert [one.time for one in kept.read(last)] == list(range(100))[max(0, 100 - last) :]


def test_a_torn_line_is_passed_over_and_spoils_no_other(kept: Decisions, tmp_path: Path) -> None:
    with (tmp_path / "decisions.jsonl").open("ab") as file:
        file.write(b'{"time": 1')
    kept.append(decision(100))
    assert [one.time for one in kept.read(2)][-1] == 100
    assert [one.time for one in kept.read()] == list(range(101))


def test_measures_are_kept_to_five_digits(kept: Decisions) -> None:
    assert kept.read(1)[0].measures == {"loss": 99.333}


def test_nothing_decided_is_an_empty_list(tmp_path: Path) -> None:
    assert Decisions(tmp_path / "nowhere").read() == []
