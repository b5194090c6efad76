import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ranker.errors import LogUnavailable
from ranker.events import Interaction
from services import embedded
from services.embedded import Broker, Valkey
from streaming import log
from streaming.log import Reader, Writer
from streaming.store import Store

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.integration


def gone(pid: int, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # ended, though nobody has collected it yet
            return True
        time.sleep(0.02)
    return False


def test_they_start_and_end_within_a_second_each() -> None:
    broker, store = Broker(), Valkey()
    began = time.monotonic()
    broker.start()
    store.start()
    assert broker.alive()
    assert store.alive()
    pids = (broker.pid, store.pid)
    broker.stop()
    store.stop()
    assert time.monotonic() - began < 4
    assert not broker.alive()
    assert all(pid is not None and gone(pid) for pid in pids)


def test_they_listen_on_loopback_only() -> None:
    broker, store = Broker(), Valkey()
    broker.start()
    store.start()
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    ports = {int(url.split(":")[-1].split("/")[0]) for url in (broker.url, store.url)}
    hosts = [line.split()[1].split(":") for line in listening if line.split()[3] == "0A"]
    assert {host for host, port in hosts if int(port, 16) in ports} == {"0100007F"}
    broker.stop()
    store.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_they_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import time; from services.embedded import Broker, Valkey\n"
        "b, v = Broker(), Valkey(); b.start(); v.start(); print(b.pid, v.pid, flush=True); time.sleep(60)"
    )
    here = {**os.environ, "TMPDIR": str(tmp_path)}  # what is killed leaves its folders
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=here, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert all(gone(pid) for pid in pids)


def test_a_port_that_is_taken_is_told_before_anything_is_started(valkey_server: Valkey) -> None:
    taken = int(valkey_server.url.rsplit(":", 1)[1].split("/")[0])
    rival = Broker(port=taken)
    with pytest.raises(LogUnavailable, match="another process listens there"):
        rival.start()
    assert not rival.alive()


def test_a_free_port_can_be_bound() -> None:
    assert 1024 < embedded.free_port() < 65536


def test_what_was_not_drained_is_there_again_at_the_next_start(tmp_path: Path) -> None:
    broker = Broker(tmp_path, groups=["profiles"])
    assert broker.start() == 0
    writer = Writer(broker.address())
    events = [Interaction(id=f"e{n}", timestamp=n, user=f"u{n}", item="i", type="t") for n in range(30)]
    for future in [writer.append(event) for event in events]:
        future.result(10)
    writer.close()
    before = log.identity(broker.address())
    began = time.monotonic()
    assert broker.stop() == 30
    assert time.monotonic() - began < 4

    broker = Broker(tmp_path, groups=["profiles"])
    assert broker.start() == 30
    reader = Reader(broker.address(), group="profiles")
    assert reader.log != before
    records = []
    while len(records) < 30:
        records += reader.poll(timeout=1.0)
    assert {record.origins[0].log for record in records} == {before}
    reader.commit()
    reader.close()
    assert broker.stop() == 0


def test_a_broker_that_was_killed_is_started_again_with_what_its_keeper_had_read(tmp_path: Path) -> None:
    broker = Broker(tmp_path, groups=["profiles"])
    broker.start()
    writer = Writer(broker.address())
    place = broker.url
    writer.append(Interaction(id="e1", timestamp=1, user="u", item="i", type="t")).result(10)
    deadline = time.monotonic() + 10
    while (broker.report is None or broker.report.undrained < 1) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    while broker.alive():
        time.sleep(0.01)
    assert broker.restart() == 1
    assert broker.url == place
    writer.append(Interaction(id="e2", timestamp=2, user="u", item="i", type="t")).result(20)
    writer.close()
    broker.stop()


def test_a_store_without_a_directory_keeps_nothing() -> None:
    server = Valkey()
    server.start()
    store = Store(server.url)
    store.resume("L", [0])
    store.close()
    server.stop()
    server.start()
    store = Store(server.url)
    assert store.covered() == {}
    store.close()
    server.stop()
