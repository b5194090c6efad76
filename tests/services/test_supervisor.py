import os
import signal
import sys
import time
from pathlib import Path

import pytest

from services import supervisor
from services.supervisor import Supervisor

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
]


def until(true, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def test_a_child_that_dies_is_started_again_after_its_back_off(tmp_path: Path) -> None:
    parent = Supervisor(tmp_path)
    child = parent.start("sleeper", SLEEPER)
    first = child.process.pid
    os.kill(first, signal.SIGKILL)
    until(lambda: parent.tend() == ["sleeper"])
    until(lambda: (parent.tend(), child.alive)[1])
    assert child.process.pid != first
    assert (child.deaths, child.code) == (1, -signal.SIGKILL)
    assert parent.stop(["sleeper"], within=5) == []
    assert not child.alive


def test_the_wait_doubles_with_each_early_death_up_to_the_bound(tmp_path: Path) -> None:
    parent = Supervisor(tmp_path)
    child = parent.start("brief", [sys.executable, "-c", "raise SystemExit(3)"])
    waits = []
    for _ in range(8):
        until(lambda: parent.tend() == ["brief"])
        waits.append(child.wait)
        child.retry = 0.0
        parent.tend()
    assert waits[:3] == [1.0, 2.0, 4.0]
    assert waits[-1] == supervisor.BACKOFF[1]
    assert child.code == 3
    parent.stop(["brief"], within=1)


def test_a_child_that_ignores_the_term_signal_is_killed_when_time_is_up(tmp_path: Path) -> None:
    parent = Supervisor(tmp_path)
    child = parent.start("deaf", DEAF)
    until(lambda: b"deaf" in child.log.read_bytes())
    begun = time.monotonic()
    assert parent.stop(["deaf"], within=0.3) == ["deaf"]
    assert 0.3 <= time.monotonic() - begun < 2
    assert not child.alive


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_an_orphan_in_a_session_of_its_own_is_swept(tmp_path: Path) -> None:
    spawn = f"import subprocess; print(subprocess.Popen({SLEEPER!r}, start_new_session=True).pid, flush=True)"
    script = f"""
import sys, time
from pathlib import Path
from services.supervisor import Supervisor, sweep
parent = Supervisor(Path({str(tmp_path)!r}))
child = parent.start("mother", [sys.executable, "-c", {spawn!r}])
child.process.wait()
orphan = int(child.log.read_text())
parent.stop(["mother"], within=1)
print(orphan, *sweep())
"""
    out = subprocess_output(script)
    orphan, *swept = map(int, out.split())
    assert swept == [orphan]
    assert not Path(f"/proc/{orphan}").exists()


def subprocess_output(script: str) -> str:
    import subprocess

    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
