"""From feedback to evidence that can be read, and from a positive to weights that are served.

    python -m benchmarks.freshness [--seconds 90] [--publish S] [--out freshness.json]

The audience of `up` (simulated eyes on real ratings) visits a replica in this process at ten visits a second, on the
embedded broker and store; profiles and trainer are the processes that `up` starts, with the configured interval
between versions. A first version is trained on the history, as `up` does, and the measuring begins once the gate has
let two later ones pass. No HTTP and no Ray: their share is in benchmarks/http.py.

evidence: sending a visit's feedback -> the store holds it. weights: sending a feedback with a click or a like -> the
replica has loaded, checked and assigned a version whose learner had taken that record (the trainer's journal says
which step took it, the version's manifest the step it was saved after). swap is its last part: from the moment a
version was written to the moment it is served.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ranker import config as declared
from ranker.config import Config
from ranker.datasets import movielens
from ranker.errors import DataError
from ranker.events import Event, Interaction
from ranker.registry import Registry
from ranker.simulation import Audience
from services import api, intake, offline, status
from services.cli import amount
from services.embedded import Broker, Valkey
from services.messages import RankRequest
from services.outbox import Outbox
from services.replica import Replica
from services.settings import Settings
from services.supervisor import Supervisor
from services.telemetry import ApiTelemetry
from services.tokens import Signer, Tokens
from services.up import write_settings
from streaming import log
from streaming.checkpoint import Step
from streaming.log import Token, Writer
from streaming.replay import replay
from streaming.store import AsyncStore, Store

MOVIELENS = Path(__file__).parents[1] / "deploy" / "movielens.toml"
LOOPS = ("profiles", "trainer")
POSITIVE = ("click", "like")
#: between two looks whether a write can be read
LOOK_S = 0.002


@dataclass
class Delays:
    """What was measured, and the positives that no served version has learned yet."""

    evidence_s: list[float] = field(default_factory=list)
    weights_s: list[float] = field(default_factory=list)
    swap_s: list[float] = field(default_factory=list)
    waiting: list[tuple[float, list[Token]]] = field(default_factory=list)
    versions: int = 0
    warmup_s: float = 0.0

    def served(self, step: int, taken: Mapping[tuple[str, int], Sequence[tuple[int, int]]], now: float) -> None:
        """A version saved after `step` is served: settle the positives that it has learned.

        Args:
            taken: by log and partition, pairs of (offset the step began before, step), in order.

        Example:
            >>> delays = Delays(waiting=[(1.0, [Token("l", 0, 4)]), (2.0, [Token("l", 0, 9)])])
            >>> delays.served(1, {("l", 0): [(5, 1), (12, 2)]}, now=4.5)
            >>> delays.weights_s, len(delays.waiting)
            ([3.5], 1)
        """
        left = []
        for sent, tokens in self.waiting:
            if all(_step_of(token, taken) <= step for token in tokens):
                self.weights_s.append(now - sent)
            else:
                left.append((sent, tokens))
        self.waiting = left


def _step_of(token: Token, taken: Mapping[tuple[str, int], Sequence[tuple[int, int]]]) -> float:
    """The step that took the record; infinite while none has."""
    steps = taken.get((token.log, token.partition), ())
    return next((step for end, step in steps if token.offset < end), float("inf"))


def steps_of(journal: Path) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """By log and partition: (end of the range, step) of every step in the journal now."""
    decode = msgspec.json.Decoder(Step).decode
    steps: dict[int, Step] = {}
    for path in journal.glob("*.jsonl"):
        with suppress(FileNotFoundError):  # rolled off meanwhile
            for line in path.read_bytes().splitlines():
                with suppress(msgspec.DecodeError):  # being written
                    steps |= {step.number: step for step in [decode(line)]}
    found: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for _, step in sorted(steps.items()):
        for partition, (_, end) in step.ranges.items():
            found.setdefault((step.log, partition), []).append((end, step.number))
    return found


@contextmanager
def running(config: Config, people: Audience, state: Path) -> Iterator[tuple[Settings, Supervisor]]:
    """Broker, store, profiles and trainer, with the audience's history read; ended at the end of the block."""
    broker, valkey, supervisor = Broker(), Valkey(), Supervisor(state / "log")
    try:
        broker.start()
        valkey.start()
        settings = Settings(config=config, state=str(state), brokers=broker.url, store=valkey.url, segmented=True)
        path = write_settings(settings, state / "plurank.toml")
        log.create(broker.address())
        writer = Writer(broker.address())
        replay(people.events(), writer)
        writer.close()
        registry = Registry(settings.registry_dir)
        quiet = Console(stderr=True, quiet=True)
        offline.first_version(config, people.events, registry, quiet, epochs=2, data="the audience's history")
        for loop in LOOPS:
            command = [sys.executable, "-m", "services.cli", "run", loop, "--child", "--config", str(path)]
            supervisor.start(loop, command, {**os.environ, "OMP_NUM_THREADS": "1"})
        _drained(state, supervisor)
        yield settings, supervisor
    finally:
        supervisor.stop(LOOPS, within=8.0)
        broker.stop()
        valkey.stop()


def _drained(state: Path, supervisor: Supervisor, within: float = 180.0) -> None:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        found = status.read(state / "status")
        if all(found.get(loop, {}).get("lag") == 0 and found[loop]["events"] for loop in LOOPS):
            return
        if dead := [loop for loop in LOOPS if not supervisor.children[loop].alive]:
            tail = (supervisor.logs / f"{dead[0]}.log").read_text("utf-8", "replace")[-2000:]
            raise DataError(f"the {dead[0]} loop", tail, "it ended; mend what its last words say")
        time.sleep(0.1)
    raise DataError("history", f"not read within {within:.0f} s", "run it on a machine that has more time")


async def visits(people: Audience, replica: Replica, delays: Delays, *, warmup: float, seconds: float) -> int:
    """Let the audience come at ten visits a second, first until the gate lets a second version pass (not longer than
    `warmup`), then for `seconds`, which fill `delays`; returns the visits.
    """
    reads = AsyncStore(replica.settings.store)
    begun, pending, count = time.monotonic(), set[asyncio.Task[None]](), 0
    journal = replica.settings.state_dir / "trainer" / "journal"
    watching = asyncio.create_task(_watch(replica, delays, journal))
    end = float("inf")

    async def settle(sent: float, tokens: list[Token], *, positive: bool) -> None:
        for token in tokens:
            while not await reads.wait_for(token, 0.0):
                await asyncio.sleep(LOOK_S)
        delays.evidence_s.append(time.monotonic() - sent)
        if positive:
            delays.waiting.append((sent, tokens))

    try:
        while (now := time.monotonic()) < end:
            if end == float("inf") and (delays.versions >= 2 or now > begun + warmup):
                delays.warmup_s, end = now - begun, now + seconds
            ask = people.ask()
            slate = await replica.rank(RankRequest(user=ask.user, items=list(ask.items), limit=len(ask.items)))
            found = people.react(ask, [item.id for item in slate.items], ranking=slate.ranking, now=_now())
            count += 1
            if found.events:
                sent = time.monotonic()
                answer = await replica.feedback(msgspec.json.encode(found.events), frozenset({"feedback"}))
                if answer.evidence_token and end < float("inf"):
                    tokens = intake.read_token(answer.evidence_token)
                    task = asyncio.create_task(settle(sent, tokens, positive=_positive(found.events)))
                    pending.add(task)
                    task.add_done_callback(pending.discard)
            await asyncio.sleep(max(0.0, begun + count / 10 - time.monotonic()))
        await asyncio.wait_for(asyncio.gather(*pending), 30)
        last = end + 3 * replica.settings.config.learning.publish + 10
        while delays.waiting and time.monotonic() < last:  # their versions are on the way
            await asyncio.sleep(0.1)
    finally:
        watching.cancel()
        await reads.close()
    return count


def _positive(reactions: Sequence[Event]) -> bool:
    return any(isinstance(event, Interaction) and event.type in POSITIVE for event in reactions)


def _now() -> int:
    return int(time.time() * 1000)


async def _watch(replica: Replica, delays: Delays, journal: Path) -> None:
    """Look which version is served, and keep the journal's steps, which are dropped after two checkpoints."""
    taken: dict[tuple[str, int], list[tuple[int, int]]] = {}
    version, read_at = replica.serving.version, 0.0
    while True:
        await asyncio.sleep(0.01)
        now = time.monotonic()
        changed = replica.serving.version != version
        if changed or now > read_at + 5:
            read_at = now
            for place, steps in steps_of(journal).items():
                known = taken.setdefault(place, [])
                known += [pair for pair in steps if not known or pair[1] > known[-1][1]]
        if changed:
            version = replica.serving.version
            delays.versions += 1
            manifest = replica.registry.manifest(version)
            step = manifest.metrics.get("step")
            delays.swap_s.append(time.time() - manifest.created / 1000)
            if step is not None:
                delays.served(step, taken, now)


def bench(config: Config, *, warmup: float, seconds: float) -> list[dict[str, Any]]:
    """One row per delay."""
    people, delays = Audience(movielens()), Delays()
    with tempfile.TemporaryDirectory(prefix="plurank-benchmark-") as place:
        state = Path(place)
        with running(config, people, state) as (settings, _):
            replica = Replica(
                settings,
                registry=Registry(settings.registry_dir),
                reads=AsyncStore(settings.store, timeout_s=0.5),
                changes=Store(settings.store),
                outbox=Outbox(lambda: Writer(settings.log), limit=settings.queue_limit),
                tokens=Tokens.open(settings.token_dir),
                signer=Signer(settings.token_dir),
                telemetry=ApiTelemetry(api.PATHS, "api-benchmark"),
            )
            replica.start()
            try:
                while replica.outbox.log is None:
                    time.sleep(0.05)
                count = asyncio.run(visits(people, replica, delays, warmup=warmup, seconds=seconds))
            finally:
                replica.close()
            decisions = [decision for decision in replica.registry.decisions() if decision.decision]
    judged = dict(Counter(str(decision.decision) for decision in decisions))
    harms = [harm for one in decisions if one.decision == "refuse" for harm in one.reasons]
    reasons = Counter(re.split(" (?:fell|rose) by ", harm)[0] for harm in harms)
    facts = {
        "publish_s": config.learning.publish,
        "visits": count,
        "warmup_s": round(delays.warmup_s, 1),
        "scale": config.scale,
    }
    told: dict[str, Any] = {"verdicts": judged} | ({"refused for": dict(reasons.most_common())} if reasons else {})
    rows = []
    for arm, measured in (("evidence", delays.evidence_s), ("weights", delays.weights_s), ("swap", delays.swap_s)):
        figures: dict[str, float] = {"n": len(measured), "unsettled": len(delays.waiting) if arm == "weights" else 0}
        if measured:
            p50, p99 = statistics.median(measured), float(np.percentile(measured, 99))
            figures |= {"p50_ms": round(1000 * p50, 1), "p99_ms": round(1000 * p99, 1)}
        rows.append({"arm": arm, **figures, **facts, **(told if arm == "weights" else {})})
    return rows


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=MOVIELENS)
    parser.add_argument("--publish", type=amount, metavar="S", help="seconds between versions (default: as configured)")
    parser.add_argument("--warmup", type=amount, default=180.0, help="longest wait for the second promotion")
    parser.add_argument("--seconds", type=amount, default=90.0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = declared.load(given.config)
    if given.publish:
        learning = msgspec.structs.replace(config.learning, publish=given.publish)
        config = msgspec.structs.replace(config, learning=learning)
    rows = bench(config, warmup=given.warmup, seconds=given.seconds)
    names = ("n", "p50_ms", "p99_ms", "unsettled", "publish_s", "warmup_s", "verdicts")
    table = Table("from feedback to", *names, title=f"{rows[0]['visits']} visits, ten a second")
    for row in rows:
        table.add_row(row["arm"], *(str(row.get(name, "")) for name in names))
    Console(width=120, highlight=False).print(table)
    if given.out:
        given.out.write_text(json.dumps({"name": "freshness", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
