"""Does `plurank up` stay flat? Its figures every half minute for an hour, and the last quarter beside the first.

    python -m benchmarks.soak [--seconds 3600] [--every 30] [--out benchmarks/soak] [up's options after --]
    python -m benchmarks.soak --attach DIR ...      an `up` that runs on this state folder; it is left running

It starts `up` in a temporary folder and ends it by its own id; `up` also ends by itself a little later, should this
process be killed. What is read: the status files of the loops and the audience, /proc for memory and for processor
time (`processors`: seconds of it a second, over all processes of `up`), and a light probe of its own: one /v1/rank a
second for ten items, by people who never click (about one row in fifty that is learned).
Writes OUT.csv, one line a sample, and OUT.json, the summary. Exit status 1 where something did not stay flat.
"""

import argparse
import csv
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.report import machine, this_command
from ranker.errors import DataError, PlurankError
from services import live, settings, status
from services.cli import amount
from services.client import Client
from services.embedded import free_port
from services.supervisor import Supervisor, descendants, sweep
from services.tokens import Tokens

READY_S, STOP_S = 600.0, 30.0
PROBE_S = 1.0
#: ids of MovieLens's films; elsewhere they are items never seen, which can be ranked as well
FILMS, PROBES = 1682, 50
#: what a process is called here, by a word of its command line; the first match wins
ROLES = {
    "ServeReplica": "replica",
    "ServeController": "serve-controller",
    "ProxyActor": "serve-proxy",
    "HAProxyManager": "serve-haproxy",
    "services.cli run ": "",
    "services.cli up": "up",
    "haproxy": "haproxy",
    "raylet": "raylet",
    "gcs_server": "ray-gcs",
    "valkey": "store",
    "broker": "broker",
    "plurank up": "up",
    "ray": "ray-other",
}
#: last quarter over first quarter: (least, most) that counts as flat
FLAT = {
    "events_s": (0.8, 1.25),
    "processors": (0.0, 1.25),
    "rss_mb": (0.0, 1.1),
    "p50_ms": (0.0, 1.25),
    "audience_p50_ms": (0.0, 1.25),
    "audience_p99_ms": (0.0, 1.5),
    "satisfaction": (0.97, float("inf")),
}
#: a lag below this many events is none: a second's worth
NO_LAG = 100


def role(command: str) -> str:
    """What a process does, out of its command line.

    Example:
        >>> role("python -m services.cli run trainer --child"), role("ray::ServeReplica:plurank"), role("sh")
        ('trainer', 'replica', 'other')
    """
    for word, name in ROLES.items():
        if word in command:
            return name or command.partition(word)[2].split()[0]
    return "other"


def memory(pids: Sequence[int]) -> dict[str, float]:
    """Resident MB by role; several of a role are numbered by age.

    Pages that processes share are counted in each, so the sum is an upper bound.
    """
    found: dict[str, list[float]] = {}
    page = os.sysconf("SC_PAGE_SIZE") / 2**20
    for pid in sorted(pids):
        with suppress(OSError, ValueError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            if command:
                found.setdefault(role(command), []).append(pages * page)
    sizes: dict[str, float] = {}
    for name, some in found.items():
        if len(some) == 1 or "other" in name:
            sizes[name] = sum(some)
        else:
            sizes |= {f"{name}-{number}": size for number, size in enumerate(some, 1)}
    return sizes


def processor_s(pids: Sequence[int]) -> dict[int, float]:
    """Seconds of processor time that each process has used so far."""
    found = {}
    for pid in pids:
        with suppress(OSError, ValueError, IndexError):
            user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            found[pid] = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return found


@dataclass
class Probe:
    """A client of its own that ranks ten items now and then."""

    client: Client
    milliseconds: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Ask until stopped."""
        draw = random.Random(0)
        while not self._stop.wait(PROBE_S):
            items = [str(1 + n) for n in draw.sample(range(FILMS), 10)]
            body = {"user": f"soak-{draw.randrange(PROBES)}", "items": items}
            try:
                answer = self.client.send("POST", "/v1/rank", body)
            except PlurankError:
                self.answers["none"] += 1
            else:
                self.answers[str(answer.status)] += 1
                self.milliseconds.append(answer.milliseconds)

    def stop(self) -> None:
        """Stop asking."""
        self._stop.set()

    def take(self) -> tuple[float | None, float | None]:
        """p50 and p99 since the last look, ms."""
        taken, self.milliseconds = self.milliseconds, []
        return (statistics.median(taken), float(np.percentile(taken, 99))) if taken else (None, None)


@dataclass
class Recorder:
    """Turns what `up` says of itself into one flat line a sample."""

    state: Path
    pid: int
    probe: Probe
    begun: float = field(default_factory=time.monotonic)
    before: dict[str, float] = field(default_factory=dict)
    used: tuple[float, dict[int, float]] = (0.0, {})
    pids: dict[str, int] = field(default_factory=dict)
    restarts: int = 0

    def sample(self) -> dict[str, Any]:
        """One line."""
        now, facts, told = time.monotonic(), live.gather(self.state), status.read(self.state / "status")
        for name, said in told.items():
            self.restarts += self.pids.setdefault(name, said["pid"]) != said["pid"]
            self.pids[name] = said["pid"]
        bad = sum(count for code, count in facts["answers"].items() if code != "200")
        bad += sum(count for code, count in self.probe.answers.items() if code != "200")
        # seconds between the loop's own two reports, not between our two looks
        counts = {"events": float(facts["events"] or 0), "at": told.get("profiles", {}).get("at", 0.0)}
        passed = counts["at"] - self.before.get("at", counts["at"])
        gained = counts["events"] - self.before.get("events", 0.0)
        self.before = counts
        p50, p99 = self.probe.take()
        pids = [self.pid, *descendants(self.pid)]
        processes, (last, before), used = memory(pids), self.used, processor_s(pids)
        self.used = now, used
        # what a new process used before is not of this window, but it is little
        processor = (
            sum(seconds - before.get(pid, 0.0) for pid, seconds in used.items()) / (now - last) if last else None
        )
        return {
            "seconds": round(now - self.begun, 1),
            "events_s": round(gained / passed, 2) if passed > 0 and gained >= 0 else None,
            "processors": _rounded(processor),
            "lag": max(facts["lag"].values(), default=0),
            "p50_ms": _rounded(p50),
            "p99_ms": _rounded(p99),
            "audience_p50_ms": _rounded(facts["p50_ms"]),
            "audience_p99_ms": _rounded(facts["p99_ms"]),
            "satisfaction": _rounded(facts["satisfaction"], 4),
            "promoted": facts["promoted"],
            "version": facts["version"],
            "answers": sum(facts["answers"].values()) + sum(self.probe.answers.values()),
            "errors": bad,
            "restarts": self.restarts,
            "trouble": "; ".join(f"{name}: {words}" for name, words in facts["trouble"].items()) or None,
            "load": round(os.getloadavg()[0], 1),
            "state_mb": round(sum(_sizes(self.state)) / 2**20, 1),
            "rss_mb": round(sum(processes.values()), 1),
            **{f"rss_{name}": round(size, 1) for name, size in sorted(processes.items())},
        }


def _sizes(folder: Path) -> Iterator[int]:
    # walk, unlike rglob, bears folders that go meanwhile
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                yield (Path(at) / name).lstat().st_size


def _rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(value, digits)


def summary(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of the first and the last quarter, their ratio, and whether it all stayed flat."""
    size = max(1, len(samples) // 4)
    figures: dict[str, dict[str, float | None]] = {}
    failed: list[str] = []
    names = dict.fromkeys(name for sample in samples for name, value in sample.items() if _plain(value))
    for name in names:
        if name in ("seconds", "promoted", "answers", "errors", "restarts"):
            continue
        first, last = _middle(samples[:size], name), _middle(samples[-size:], name)
        ratio = last / first if first and last is not None else None
        figures[name] = {"first": first, "last": last, "ratio": _rounded(ratio, 3)}
        low, high = FLAT.get(name, (0.0, float("inf")))
        if ratio is not None and not low <= ratio <= high:
            failed.append(f"{name}: {ratio:.3g} times the first quarter")
    if (figures.get("lag", {}).get("last") or 0) > NO_LAG:
        failed.append(f"lag: {figures['lag']['last']:g} in the last quarter")
    last_sample = samples[-1]
    failed += [f"{last_sample['errors']} answers were not 200"] if last_sample.get("errors") else []
    failed += [f"{last_sample['restarts']} restarts of a loop"] if last_sample.get("restarts") else []
    if len(samples) >= 8 and len({sample.get("version") for sample in samples}) == 1:
        failed.append("no new version was served")
    return {"samples": len(samples), "quarter": size, "figures": figures, "failed": failed, "flat": not failed}


def _plain(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _middle(samples: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [sample[name] for sample in samples if _plain(sample.get(name))]
    return statistics.median(values) if values else None


@contextmanager
def started(seconds: float, options: Sequence[str], say: Console) -> Iterator[tuple[Path, int]]:
    """`plurank up` in a temporary folder; its state folder and process id."""
    with tempfile.TemporaryDirectory(prefix="plurank-soak-") as place:
        state, supervisor = Path(place) / "state", Supervisor(Path(place))
        command = [sys.executable, "-m", "services.cli", "up", "--state", str(state), "--seconds", str(seconds)]
        command += [*([] if "--port" in options else ["--port", str(free_port())]), *options]
        say.print(" ".join(command[1:]), soft_wrap=True)
        child = supervisor.start("up", command)
        assert child.process is not None
        try:
            deadline = time.monotonic() + READY_S
            while not _serves(state):
                if not child.alive or time.monotonic() > deadline:
                    tail = child.log.read_text("utf-8", "replace")[-2000:]
                    raise DataError("up", tail, "it did not get to serve; its last words are above")
                time.sleep(0.5)
            yield state, child.process.pid
        finally:
            supervisor.stop(["up"], within=STOP_S)
            sweep()


def _serves(state: Path) -> bool:
    """Whether the trainer, the last to be started before the audience, runs and the service is ready."""
    if "trainer" not in status.read(state / "status"):
        return False
    where = settings.load(state / "plurank.toml")
    with suppress(PlurankError):
        return Client(f"http://{where.host}:{where.port}").send("GET", "/readyz").status == 200
    return False


def _alive(pid: int) -> bool:
    """Whether the process runs; a zombie has no command line."""
    with suppress(OSError):
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    return False


def record(recorder: Recorder, *, seconds: float, every: float, warmup: float, out: Path) -> list[dict[str, Any]]:
    """Sample until the time is up or `up` is gone; each line is in the file at once."""
    path = out.with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    time.sleep(warmup)
    recorder.sample()
    recorder.begun = time.monotonic()
    samples: list[dict[str, Any]] = []
    while recorder.begun + seconds > time.monotonic() and _alive(recorder.pid):
        time.sleep(max(0.0, recorder.begun + (len(samples) + 1) * every - time.monotonic()))
        samples.append(recorder.sample())
        names = dict.fromkeys(name for sample in samples for name in sample)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(samples)
    return samples


def show(found: Mapping[str, Any], console: Console) -> None:
    """The summary as a table."""
    table = Table("", "first quarter", "last quarter", "ratio", title=f"{found['samples']} samples, medians")
    for name, figure in found["figures"].items():
        table.add_row(name, *("" if value is None else f"{value:,.4g}" for value in figure.values()))
    console.print(table)
    console.print("flat" if found["flat"] else "not flat: " + "; ".join(found["failed"]))


def main() -> int:
    """Run it; 0 where everything stayed flat, 1 where not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=amount, default=3600.0)
    parser.add_argument("--every", type=amount, default=30.0)
    parser.add_argument("--warmup", type=amount, default=60.0, help="seconds of service before the first sample")
    parser.add_argument("--attach", type=Path, metavar="DIR", help="state folder of an `up` that runs already")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("soak"), help="without its suffix")
    parser.add_argument("up", nargs="*", help="options for `plurank up`, after --")
    given = parser.parse_args()
    facts = machine()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=140, highlight=False)
    bound = given.seconds + given.warmup + 120
    running: AbstractContextManager[tuple[Path, int]] = started(bound, given.up, console)
    if given.attach:
        running = nullcontext((given.attach, int((given.attach / "up.pid").read_text())))
    with running as (state, pid):
        where = settings.load(state / "plurank.toml")
        client = Client(f"http://{where.host}:{where.port}", Tokens.open(where.token_dir)["rank"])
        probe = Probe(client)
        thread = threading.Thread(target=probe.run, daemon=True)
        thread.start()
        try:
            recorder = Recorder(state, pid, probe)
            samples = record(recorder, seconds=given.seconds, every=given.every, warmup=given.warmup, out=given.out)
            stayed = _alive(pid)
        finally:
            probe.stop()
            thread.join(15)
    if not samples:
        console.print("no samples: `up` ended before the first one")
        return 1
    found: dict[str, Any] = {
        "name": "soak",
        "command": this_command("benchmarks.soak"),
        "machine": facts,
        "final": samples[-1],
    }
    found |= summary(samples)
    if not stayed:
        found |= {"failed": [*found["failed"], "`up` ended by itself"], "flat": False}
    given.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    show(found, console)
    return 0 if found["flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
