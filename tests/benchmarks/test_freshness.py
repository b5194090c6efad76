from pathlib import Path

import msgspec

from benchmarks.freshness import Delays, steps_of
from streaming.checkpoint import Step
from streaming.log import Token


def test_a_positive_waits_until_every_write_of_it_was_learned() -> None:
    delays = Delays(waiting=[(0.0, [Token("l", 0, 4), Token("l", 1, 9)])])
    taken = {("l", 0): [(5, 1)], ("l", 1): [(3, 1), (10, 2)]}
    delays.served(1, taken, now=1.0)
    assert delays.weights_s == []
    delays.served(2, taken, now=3.0)
    assert delays.weights_s == [3.0]
    assert delays.waiting == []


def test_a_write_that_no_step_took_yet_stays() -> None:
    delays = Delays(waiting=[(0.0, [Token("l", 0, 4)])])
    delays.served(100, {("l", 0): [(4, 1)], ("other", 0): [(9, 2)]}, now=1.0)
    assert len(delays.waiting) == 1


def test_the_steps_of_all_journal_files_are_in_order_and_a_line_being_written_is_passed_over(tmp_path: Path) -> None:
    lines = [msgspec.json.encode(Step(number=n, log="l", ranges={0: (n, n + 1)})) for n in (1, 2, 3)]
    (tmp_path / "0.jsonl").write_bytes(lines[0] + b"\n")
    (tmp_path / "1.jsonl").write_bytes(lines[1] + b"\n" + lines[2] + b"\n" + lines[0][:10])
    assert steps_of(tmp_path) == {("l", 0): [(2, 1), (3, 2), (4, 3)]}
