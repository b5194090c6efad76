"""Child processes: started, started again when they die, and ended together within a bounded time.

Every child leads a session of its own, so that a Ctrl-C at the terminal reaches only the parent, which then ends
them in order. The parent adopts orphans (Linux), so that what a child left behind is found and ended too.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: seconds before a dead child is started again; doubles with each death up to the second figure
BACKOFF = (0.5, 15.0)
#: a child that lived this many seconds is taken for healthy: its next death starts at the shortest wait again
HEALTHY = 30.0

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36


@dataclass(kw_only=True)
class Child:
    """One child process and what became of it."""

    name: str
    command: Sequence[str]
    log: Path
    env: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    wait: float = BACKOFF[0]
    retry: float | None = None
    code: int | None = None

    def start(self) -> None:
        """Start it; its output is appended to its log."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.env),
                start_new_session=True,
            )
        self.started, self.retry = time.monotonic(), None

    @property
    def alive(self) -> bool:
        """Whether it runs now."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send the signal to the child and all of its group."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)


class Supervisor:
    """The children of one `plurank` process.

    Args:
        logs: the folder of their output, one file each.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.children: dict[str, Child] = {}
        logs.mkdir(parents=True, exist_ok=True)
        adopt_orphans()

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> Child:
        """Start a child and keep it running until `stop`."""
        log = self.logs / f"{name}.log"
        child = Child(name=name, command=command, log=log, env=os.environ if env is None else env)
        child.start()
        self.children[name] = child
        return child

    def tend(self) -> list[str]:
        """Start again what died and has waited; returns the names of those that were found dead just now."""
        now, found = time.monotonic(), []
        for child in self.children.values():
            if child.alive:
                continue
            if child.retry is None:
                child.code = child.process.poll() if child.process else None
                child.wait = BACKOFF[0] if now - child.started > HEALTHY else min(child.wait * 2, BACKOFF[1])
                child.retry, child.deaths = now + child.wait, child.deaths + 1
                found.append(child.name)
            elif now >= child.retry:
                child.start()
        return found

    def stop(self, names: Iterable[str], *, within: float) -> list[str]:
        """End the named children: SIGTERM, then SIGKILL when `within` seconds have passed.

        Returns:
            The names of those that had to be killed.
        """
        chosen = [child for name in names if (child := self.children.pop(name, None)) is not None]
        for child in chosen:
            if child.alive and child.process is not None:
                child.process.terminate()
        deadline = time.monotonic() + within
        while any(child.alive for child in chosen) and time.monotonic() < deadline:
            time.sleep(0.02)
        killed = [child.name for child in chosen if child.alive]
        for child in chosen:
            child.signal(signal.SIGKILL)  # also what a dead child left in its group
            if child.process is not None:
                child.process.wait()
        return killed


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies (Linux; elsewhere nothing)."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent dies (Linux; elsewhere nothing)."""
    _prctl(_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def descendants(pid: int | None = None) -> list[int]:
    """Processes below this one (Linux; elsewhere none), zombies left out."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                parents.setdefault(int(parent), []).append(int(entry.name))
    found, todo = [], [os.getpid() if pid is None else pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found += children
        todo += children
    return found


def sweep() -> list[int]:
    """Kill every process that is still below this one; returns their ids."""
    swept: list[int] = []
    for _ in range(50):
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = descendants()
        if not left:
            break
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        swept += [pid for pid in left if pid not in swept]
        time.sleep(0.02)
    return swept
