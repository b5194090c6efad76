"""POST /v1/rank over HTTP: latency at 1 and at 16 connections for 100 and 500 candidates, and requests a second.

    python -m benchmarks.http [--config deploy/movielens.toml] [--seconds 10] [--out http.json]

The service runs as `plurank up` runs it: Ray Serve, HAProxy, two replicas, embedded broker and store, profiles. The
client is this process: bare connections, requests made beforehand, kept alive, each sending its next request when the
answer is there; the arms take turns. The catalogue is synthetic (MovieLens-sized), users have full histories, the
weights are untrained: none of these changes the work done. Slates have 20 places and are logged like any other.

The peer is GET /healthz on the same connections: what proxy, Serve and FastAPI cost without any ranking. `inside` is
what the replica says the ranking took, evidence included. `processor` is the processor time of HAProxy and the replicas
per request, logging of the slates included; it tells more than the clock does on a machine that others use.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.latency import CATEGORIES, HISTORY, ITEMS, synthetic
from ranker import config as declared
from ranker import evidence
from ranker.catalogue import Catalogue, Item
from ranker.config import Config
from ranker.errors import PlurankError, RequestError
from ranker.events import Event, Field, Interaction
from ranker.events import Item as ItemEvent
from ranker.gate import Verdict
from ranker.golden import Case, Golden
from ranker.model import Model
from ranker.registry import Registry
from services import embedded
from services.cli import amount
from services.client import Client
from services.settings import Settings
from services.supervisor import descendants
from services.tokens import Tokens
from services.up import write_settings
from streaming import log
from streaming.log import Writer
from streaming.replay import replay

USERS, PLACES, LAPS = 200, 20, 5
ROOT = Path(__file__).parents[1]
READY_S = 240.0


@dataclass
class Load:
    """What one run of the client met."""

    milliseconds: list[float] = field(default_factory=list)
    inside_ms: list[float] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0.0
    processor_s: float = 0.0

    def add(self, part: "Load") -> None:
        """Take up what another run met."""
        self.milliseconds += part.milliseconds
        self.inside_ms += part.inside_ms
        self.failed += part.failed
        self.seconds += part.seconds
        self.processor_s += part.processor_s

    def row(self, arm: str, connections: int) -> dict[str, Any]:
        """The figures, in milliseconds and requests a second."""
        p50, p99 = np.percentile(self.milliseconds, [50, 99]).tolist()
        inside = float(np.median(self.inside_ms)) if self.inside_ms else None
        return {
            "arm": arm,
            "connections": connections,
            "requests": len(self.milliseconds),
            "failed": self.failed,
            "p50_ms": p50,
            "p99_ms": p99,
            "inside_p50_ms": inside,
            "per_second": len(self.milliseconds) / self.seconds,
            "processor_ms": self.processor_s * 1000 / len(self.milliseconds),
        }


async def load(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Load:
    """Send the requests in turn over so many connections for so many seconds."""
    found, begun = Load(), time.perf_counter()
    await asyncio.gather(
        *(_connected(port, _Connection(requests, found, begun + seconds, 13 * n)) for n in range(connections))
    )
    found.seconds = time.perf_counter() - begun
    return found


async def _connected(port: int, one: "_Connection") -> None:
    while time.perf_counter() < one.until:  # again where HAProxy, given another configuration, has closed it
        one.closed = asyncio.get_running_loop().create_future()
        await asyncio.get_running_loop().create_connection(lambda: one, "127.0.0.1", port)
        await one.closed


class _Connection(asyncio.Protocol):
    """Sends its next request when the answer is there. Streams would add a tenth to what is measured."""

    def __init__(self, requests: Sequence[bytes], found: Load, until: float, start: int) -> None:
        self.until, self._requests, self._found, self._place = until, requests, found, start
        self.closed: asyncio.Future[None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)

    def _send(self) -> None:
        self._answer = b""
        self._begun = time.perf_counter()
        self._transport.write(self._requests[self._place % len(self._requests)])

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, _, body = self._answer.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if len(head) == len(self._answer) or len(body) < (int(length[1]) if length else 0):
            return
        found, now = self._found, time.perf_counter()
        found.milliseconds.append((now - self._begun) * 1000)
        if not head.startswith(b"HTTP/1.1 200"):
            found.failed += 1
        elif self._place % 16 == 0 and (timings := msgspec.json.decode(body).get("timings_ms")):
            found.inside_ms.append(timings["total"])
        self._place += 1
        if now < self.until and b"connection: close" not in head.lower():
            self._send()
        else:
            self._transport.close()


def request(method: str, path: str, token: str, body: Any = None) -> bytes:
    """The bytes of one HTTP request."""
    raw = b"" if body is None else msgspec.json.encode(body)
    head = f"{method} {path} HTTP/1.1\r\nHost: plurank\r\nAuthorization: Bearer {token}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw


def history(config: Config, draw: np.random.Generator) -> Iterator[Event]:
    """Items with fields, and people with a full history."""
    now = int(time.time() * 1000)
    for n in range(ITEMS):
        fields = [Field(name, value) for name, value in synthetic(config.fields.item, draw).items()]
        yield ItemEvent(id=f"item-{n}", timestamp=now - 10**9, item=f"i{n}", fields=fields)
    kind = config.objectives[0].event
    for user in range(USERS):
        for n in range(HISTORY):
            item = f"i{draw.integers(ITEMS)}"
            yield Interaction(id=f"{user}-{n}", timestamp=now - 10**8 + n, user=f"u{user}", item=item, type=kind)


@contextlib.contextmanager
def service(config: Config, folder: Path) -> Iterator[tuple[Settings, int]]:
    """The whole of it, with all events of `history` folded, and the service's process."""
    with contextlib.ExitStack() as stack:
        broker, store = embedded.Broker(), embedded.Valkey()
        for server in (broker, store):
            server.start()
            stack.callback(server.stop)
        address = broker.address("http-benchmark")
        log.create(address)
        settings = Settings(
            config=config,
            brokers=address.brokers,
            topic=address.topic,
            segmented=address.segmented,
            store=store.url,
            state=str(folder),
            port=embedded.free_port(),
        )
        _version(settings)
        file = write_settings(settings, folder / "plurank.toml")
        children = [_child(part, file, folder / f"{part}.out") for part in ("profiles", "service")]
        for child in children:
            stack.callback(_ended, child)
        writer = Writer(address)
        replay(history(config, np.random.default_rng(0)), writer)
        writer.close()
        _wait(settings)
        yield settings, children[1].pid


def _child(part: str, file: Path, out: Path) -> "subprocess.Popen[bytes]":
    env = {name: value for name, value in os.environ.items() if not name.startswith("PLURANK_")}
    command = [sys.executable, "-m", "services.cli", "run", part, "--child", "--config", str(file)]
    with out.open("wb") as words:
        return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=words, stderr=words, cwd=ROOT)


def _ended(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _version(settings: Settings) -> None:
    config, registry = settings.config, Registry(settings.registry_dir)
    weights = Model(config, torch.Generator().manual_seed(0)).state_dict()
    catalogue = Catalogue(config)
    catalogue.put(Item("i0"))
    golden = Golden.record(config, weights, catalogue, [Case(evidence.EMPTY, {}, ["i0"], 0)])
    version = registry.save(weights, config, metrics={}, golden=golden, parent=None)
    registry.promote(version, Verdict("pass", ("untrained, for a benchmark",)), who="benchmark")


def _wait(settings: Settings) -> None:
    """Wait until every replica knows the items and the people.

    Raises:
        RequestError: it takes too long.
    """
    deadline, good = time.monotonic() + READY_S, 0
    with ThreadPoolExecutor(2 * settings.replicas) as pool:  # the second replica is asked while the first is at work
        while good < 10:
            full = all(pool.map(_knows, [settings] * 2 * settings.replicas))
            good = good + 1 if full else 0
            if time.monotonic() > deadline:
                raise RequestError("service", settings.port, f"it is not ready within {READY_S:.0f} s")
            time.sleep(0 if full else 0.3)


def _knows(settings: Settings) -> bool:
    url, token = f"http://127.0.0.1:{settings.port}", Tokens.open(settings.token_dir)["admin"]
    body = {"user": f"u{USERS - 1}", "limit": ITEMS - HISTORY}
    with contextlib.suppress(PlurankError), contextlib.closing(Client(url, token)) as client:
        answer = client.call("POST", "/v1/recommend", body)
        return len(answer["items"]) >= ITEMS - HISTORY and answer["evidence"]["history"] > 0
    return False


def processor_s(pid: int) -> float:
    """Processor time that proxy and replicas below a process have used so far (Linux)."""
    ticks = 0
    for one in descendants(pid):
        with contextlib.suppress(OSError):
            if re.search(rb"ServeReplica|bin/haproxy", Path(f"/proc/{one}/cmdline").read_bytes()):
                words = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
                ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(settings: Settings, pid: int, seconds: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every arm at 1 and at 16 connections."""
    draw, token = np.random.default_rng(1), Tokens.open(settings.token_dir)["rank"]
    arms = {"healthz": [request("GET", "/healthz", token)]}
    for count in (100, 500):
        bodies = [
            {
                "user": f"u{draw.integers(USERS)}",
                "items": [f"i{n}" for n in draw.choice(ITEMS, count, replace=False)],
                "limit": PLACES,
            }
            for _ in range(400)
        ]
        arms[f"rank {count}"] = [request("POST", "/v1/rank", token, body) for body in bodies]
    found = {(arm, connections): Load() for arm in arms for connections in (1, 16)}
    for lap in range(LAPS):  # by turns, for others use the machine too, and not evenly
        for (arm, connections), sum_ in found.items():
            asyncio.run(load(settings.port, arms[arm], connections, 1.0))
            say(f"{arm}, {connections} connections, lap {lap + 1} of {LAPS}")
            before = processor_s(pid)
            part = asyncio.run(load(settings.port, arms[arm], connections, seconds / LAPS))
            part.processor_s = processor_s(pid) - before
            sum_.add(part)
    return [sum_.row(arm, connections) for (arm, connections), sum_ in found.items()]


def main() -> None:
    """Measure and print."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--config", type=Path, default=ROOT / "deploy" / "movielens.toml")
    top.add_argument("--seconds", type=amount, default=10.0, help="of each arm at each number of connections, in laps")
    top.add_argument("--out", type=Path)
    given = top.parse_args()
    config, console = declared.load(given.config), Console(width=120)
    with (
        tempfile.TemporaryDirectory(prefix="plurank-http-") as folder,
        console.status("starting") as status,
        service(config, Path(folder)) as (settings, pid),
    ):
        rows = measure(settings, pid, given.seconds, status.update)
    table = Table(
        title=f"/v1/rank over HTTP, scale {config.scale}, {CATEGORIES} categories, {settings.replicas} replicas, "
        f"{os.cpu_count()} cores shared with the client, load {os.getloadavg()[0]:.1f}"
    )
    for name in (
        "arm",
        "connections",
        "p50 ms",
        "p99 ms",
        "inside p50 ms",
        "processor ms",
        "requests/s",
        "requests",
        "failed",
    ):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for row in rows:
        inside = "" if row["inside_p50_ms"] is None else f"{row['inside_p50_ms']:.2f}"
        table.add_row(
            row["arm"],
            str(row["connections"]),
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            inside,
            f"{row['processor_ms']:.2f}",
            f"{row['per_second']:.0f}",
            str(row["requests"]),
            str(row["failed"]),
        )
    console.print(table)
    if given.out:
        result = {"name": "http", "scale": config.scale, "load": os.getloadavg()[0], "rows": rows}
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
