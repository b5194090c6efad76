import os
from pathlib import Path

from services import status


def test_the_last_status_of_each_process_is_read_back(tmp_path: Path) -> None:
    status.write(tmp_path, "trainer", {"events": 1})
    status.write(tmp_path, "trainer", {"events": 2})
    status.write(tmp_path, "profiles", {"lag": 0})
    found = status.read(tmp_path)
    assert (found["trainer"]["events"], found["profiles"]["lag"]) == (2, 0)
    assert found["trainer"]["pid"] == os.getpid()


def test_a_damaged_status_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "monitor.json").write_text("{")
    assert status.read(tmp_path) == {}
    assert status.read(tmp_path / "nowhere") == {}
