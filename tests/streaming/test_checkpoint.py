from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from ranker.errors import CheckpointError
from streaming.checkpoint import Checkpoint, Checkpoints, Journal, Step, replayed
from streaming.log import Record


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        log="log-1",
        offsets={"log-1": {0: step * 10, 3: 7}, "log-0": {0: 99}},
        learner={"w": torch.full((2, 2), float(step)), "rng": torch.arange(4, dtype=torch.uint8)},
        parts={"joiner": b"state" * step},
        facts={"base": "v1", "none": None},
    )


def no_warning(error: CheckpointError) -> None:
    raise AssertionError(str(error))


def test_a_checkpoint_comes_back_as_it_was_saved_and_the_last_two_are_kept(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "checkpoints")
    assert kept.latest(no_warning) is None
    for step in (1, 2, 3):
        kept.save(checkpoint(step))
    assert kept.steps() == [2, 3]
    found = kept.latest(no_warning)
    assert found is not None
    assert (found.step, found.log, found.offsets, found.parts, found.facts) == (
        3,
        "log-1",
        {"log-1": {0: 30, 3: 7}, "log-0": {0: 99}},
        {"joiner": b"state" * 3},
        {"base": "v1", "none": None},
    )
    assert torch.equal(found.learner["w"], torch.full((2, 2), 3.0))


def test_the_same_step_may_be_saved_again(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(checkpoint(1))
    kept.save(checkpoint(1))
    assert kept.steps() == [1]


@pytest.mark.parametrize("name", ["learner.safetensors", "joiner", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_for_the_one_before(tmp_path: Path, name: str) -> None:
    kept = Checkpoints(tmp_path)
    kept.save(checkpoint(1))
    kept.save(checkpoint(2))
    path = tmp_path / f"{2:012d}" / name
    body = bytearray(path.read_bytes())
    body[-3] ^= 1
    path.write_bytes(bytes(body))
    warnings: list[CheckpointError] = []
    found = kept.latest(warnings.append)
    assert found is not None
    assert found.step == 1
    assert "checkpoint 2" in str(warnings[0])
    (tmp_path / f"{1:012d}" / name).unlink()
    with pytest.raises(CheckpointError, match="checkpoint 1"):
        kept.latest(warnings.append)


def test_what_an_interrupted_save_left_is_no_checkpoint(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path)
    (tmp_path / f".{7:012d}.new").mkdir()
    assert kept.latest(no_warning) is None
    kept.save(checkpoint(8))
    assert [path.name for path in tmp_path.iterdir()] == [f"{8:012d}"]


def steps(*numbers: int) -> list[Step]:
    return [Step(number=n, log="log-1", ranges={0: (n, n + 1), 1: (5, 9)}, idle=(2,)) for n in numbers]


def test_a_journal_returns_the_steps_after_a_checkpoint_across_its_files(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step in steps(1, 2, 3, 4, 5):
        journal.append(step)
        if step.number in (2, 4):
            journal.roll(step.number, oldest=0)
    journal.close()
    again = Journal(tmp_path)
    assert again.steps(after=3) == steps(4, 5)
    assert again.steps(after=5) == []
    again.roll(5, oldest=4)
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == [f"{n:012d}.jsonl" for n in (4, 5)]
    again.close()


def test_a_last_line_torn_by_a_crash_was_never_begun(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(steps(1)[0])
    journal.close()
    with (tmp_path / f"{0:012d}.jsonl").open("ab") as file:
        file.write(b'{"number":2,"lo')
    journal = Journal(tmp_path)
    assert journal.steps(after=0) == steps(1)
    journal.append(steps(2)[0])
    assert journal.steps(after=0) == steps(1, 2)
    journal.close()


def test_damage_inside_a_journal_and_missing_steps_are_errors_with_a_remedy(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step in steps(1, 3):
        journal.append(step)
    with pytest.raises(CheckpointError, match="missing"):
        journal.steps(after=0)
    path = tmp_path / f"{0:012d}.jsonl"
    path.write_bytes(b"x" + path.read_bytes())
    with pytest.raises(CheckpointError, match="move the journal away"):
        journal.steps(after=0)
    journal.close()


def test_a_second_trainer_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(CheckpointError, match="in use"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


class Log:
    """Two partitions in memory, read unevenly: at most three records a poll."""

    log = "log-1"

    def __init__(self) -> None:
        self.covered: dict[str, dict[int, int]] = {}
        self.records = [[Record(p, n, n, b"", b"%d" % n) for n in range(12)] for p in (0, 1)]
        self.next = {0: 0, 1: 0}
        self.turn = 0

    def poll(self, max_records: int = 3, timeout: float = 0) -> list[Record]:
        self.turn += 1
        partition = self.turn % 2
        found = self.records[partition][self.next[partition] :][: min(3, max_records)]
        self.next[partition] += len(found)
        return found

    def positions(self) -> dict[int, int]:
        return dict(self.next)

    def seek(self, positions: Mapping[int, int]) -> None:
        self.next.update(positions)

    def lag(self) -> int:
        return 0

    def commit(self, positions: Mapping[int, int] | None = None) -> None:
        pass


def test_replayed_steps_hold_exactly_their_records_and_leave_the_source_behind_the_last() -> None:
    journalled = [
        Step(number=1, log="log-1", ranges={1: (2, 5)}),
        Step(number=2, log="log-1", ranges={0: (0, 1), 1: (5, 6)}),
        Step(number=3, log="log-1", ranges={0: (1, 8)}),
    ]
    log = Log()
    found = [[(r.partition, r.offset) for r in records] for _, records in replayed(log, {1: 2}, journalled)]
    assert found == [[(1, 2), (1, 3), (1, 4)], [(0, 0), (1, 5)], [(0, n) for n in range(1, 8)]]
    assert log.positions() == {0: 8, 1: 6}


def test_a_journal_that_does_not_follow_on_its_checkpoint_or_belongs_to_a_lost_log_is_refused() -> None:
    with pytest.raises(CheckpointError, match="jumps"):
        list(replayed(Log(), {0: 1}, [Step(number=1, log="log-1", ranges={0: (2, 3)})]))
    with pytest.raises(CheckpointError, match="which is gone"):
        list(replayed(Log(), {}, [Step(number=1, log="log-0", ranges={0: (0, 3)})]))
