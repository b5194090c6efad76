"""The trainer killed at random moments: it must end with the bits that its journal gives without any interruption."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ranker.events import Event, Field, Forget, Interaction, Item, Ranking, Shown, User, encode
from streaming.log import Address, Writer

ROOT = Path(__file__).resolve().parents[2]
KILLS, SLATES = 8, 1500
#: ends, with a digest of everything it holds, once it stands at the given offsets; without them it goes on
CHILD = """
import hashlib, json, sys, threading
from pathlib import Path
from ranker import config
from ranker.registry import Registry
from streaming.log import Address, Reader
from streaming.trainer import Pace, Trainer
brokers, topic, folder, ends = sys.argv[1:]
ends = {int(partition): end for partition, end in json.loads(ends).items()}
settings = config.parse({
    "objectives": [
        {"name": "click", "event": "click", "wait": 20, "biased": True},
        {"name": "read", "event": "dwell", "threshold": 30, "wait": 60},
        {"name": "seconds", "event": "dwell", "kind": "value", "wait": 60},
    ],
    "fields": {"item": {"genre": "category"}, "user": {"age": "number"}},
    "scale": "tiny",
    "learning": {"publish": 2},
})
reader = Reader(Address(brokers=brokers, topic=topic, segmented=True), group="trainer")
pace = Pace(records=60, rows=100, gather=0, checkpoint=0.2, keep=10**6)
root, stop = Path(folder), threading.Event()
trainer = Trainer(settings, reader, Registry(root / "registry"), root / "state", pace=pace)
replayed = 0
for report in trainer.run(stop):
    replayed += report.replaying
    if ends and all(reader.positions()[partition] == end for partition, end in ends.items()):
        stop.set()
digest = hashlib.sha256(trainer.joiner.state() + trainer.candidate.state() + trainer.current.state())
for name, value in sorted(trainer.learner.state().items()):
    digest.update(name.encode() + value.numpy().tobytes())
print(json.dumps([digest.hexdigest(), report.step, replayed]))
"""


def stream(rng: random.Random) -> list[tuple[bytes, bytes]]:
    """Slates with feedback, some of it late, early or doubled; users who go; records that are no events."""
    start = int(time.time() * 1000) - 10_000_000
    made: list[tuple[int, Event]] = [
        (start, Item(id=f"item{n}", timestamp=start, item=f"i{n}", fields=[Field("genre", "abc"[n % 3])]))
        for n in range(80)
    ]
    for number in range(SLATES):
        time_ms, user = start + number * 1000, f"u{rng.randrange(50)}"
        shown = rng.sample(range(80), 6)
        chances = [0.3, 0.2, 10.0]
        slate = Ranking(
            id=f"r{number}",
            timestamp=time_ms,
            user=user,
            items=[Shown(f"i{n}", probabilities=chances) for n in shown],
            version="v" if number % 2 else None,
        )
        made.append((time_ms, slate))
        if number % 10 == 0:
            made.append(
                (time_ms, User(id=f"user{number}", timestamp=time_ms, user=user, fields=[Field("age", number)]))
            )
        for n in shown:
            if rng.random() < 0.4:
                kind, value = rng.choice((("click", None), ("dwell", rng.random() * 60)))
                came = max(0, time_ms + rng.choice((-100, 500, 5000, 40_000)))
                act = Interaction(
                    id=f"r{number}-{n}",
                    timestamp=came,
                    user=user,
                    item=f"i{n}",
                    type=kind,
                    ranking=f"r{number}",
                    value=value,
                )
                made += [(came, act)] * (2 if rng.random() < 0.1 else 1)
        if rng.random() < 0.01:
            made.append((time_ms, Forget(id=f"forget{number}", timestamp=time_ms, user=user)))
    made.sort(key=lambda pair: pair[0])
    records = [((e.item if isinstance(e, Item) else e.user).encode(), encode(e)) for _, e in made]
    for _ in range(20):
        records.insert(rng.randrange(len(records)), (b"u1", b"{broken"))
    return records


def steps(folder: Path) -> int:
    """How many steps the journal holds."""
    return sum(path.read_bytes().count(b"\n") for path in (folder / "state" / "journal").glob("*.jsonl"))


@pytest.mark.integration
@pytest.mark.timeout(600)  # ten processes that import torch
def test_weights_after_kills_at_random_moments_are_bit_identical_to_the_journal_taken_in_one_go(
    address: Address, tmp_path: Path
) -> None:
    rng = random.Random(11)
    writer = Writer(address)
    ends: dict[int, int] = {}
    for place in [writer.put(key, value) for key, value in stream(rng)]:
        partition, offset = place.result(60)
        ends[partition] = max(ends.get(partition, 0), offset + 1)
    writer.close()

    def child(folder: Path, until: dict[int, int]) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", CHILD, address.brokers, address.topic, str(folder), json.dumps(until)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=environment)

    def result(folder: Path) -> tuple[str, int, int]:
        output, _ = child(folder, ends).communicate(timeout=300)
        digest, step, replayed = json.loads(output)
        return digest, step, replayed

    killed = tmp_path / "killed"
    killed_at = [0]
    for _ in range(KILLS):
        life = child(killed, {})
        goal, deadline = killed_at[-1] + rng.randint(1, 4), time.monotonic() + 180
        while steps(killed) < goal and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.1)
        life.send_signal(signal.SIGKILL)
        life.communicate()
        killed_at.append(steps(killed))
    assert killed_at == sorted(set(killed_at)), "every life must have taken steps"
    digest, step, _ = result(killed)
    assert killed_at[-1] < step, "the last kill must come before the end"

    calm = tmp_path / "calm"
    shutil.copytree(killed / "state" / "journal", calm / "state" / "journal")
    shutil.copytree(killed / "state" / "checkpoints" / f"{0:012d}", calm / "state" / "checkpoints" / f"{0:012d}")
    assert result(calm) == (digest, step, step)
