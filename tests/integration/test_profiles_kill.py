"""Profiles killed at random moments: the store must end as if nothing had happened."""

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import valkey

from ranker import config
from ranker.events import Comparison, Event, Field, Forget, Interaction, Item, Ranking, Shown, Summary, User, encode
from streaming.log import Address, Writer
from streaming.profiles import Profiles
from streaming.store import Store

ROOT = Path(__file__).resolve().parents[2]
KILLS, EVENTS = 5, 5000
CHILD = """
import sys, threading
from ranker import config
from streaming.log import Address
from streaming.profiles import Profiles
from streaming.store import Store
brokers, topic, url, space = sys.argv[1:]
settings = config.parse({"objectives": [{"name": "click", "event": "click"}]})
address = Address(brokers=brokers, topic=topic, segmented=True)
for _ in Profiles(settings, address, Store(url, space=space), batch=40, cache=30).run(threading.Event()):
    pass
"""


def stream(rng: random.Random) -> list[tuple[bytes, Event | bytes]]:
    """Events of every kind, some twice, some late, some no events at all."""
    now = int(time.time() * 1000) - 10_000_000
    made: list[tuple[bytes, Event | bytes]] = []
    for number in range(EVENTS):
        user, item = f"u{rng.randrange(60)}", f"i{rng.randrange(200)}"
        named = {"id": f"e{number}", "timestamp": now + number - rng.choice((0, 0, 0, 500))}
        kind = rng.random()
        event: Event
        if kind < 0.70:
            event = Interaction(**named, user=user, item=item, type="click", value=rng.random())  # type: ignore[arg-type]
        elif kind < 0.78:
            event = Item(**named, item=item, fields=[Field("genre", [rng.choice("abc")]), Field(rng.choice("xyz"), 1)])  # type: ignore[arg-type]
        elif kind < 0.86:
            event = Ranking(**named, user=user, items=[Shown(f"i{n}") for n in rng.sample(range(300), 5)])  # type: ignore[arg-type]
        elif kind < 0.92:
            event = Comparison(**named, user=user, preferred=item, over="i0")  # type: ignore[arg-type]
        elif kind < 0.95:
            event = Summary(**named, user=user, likes=[item])  # type: ignore[arg-type]
        elif kind < 0.99:
            event = User(**named, user=user, fields=[Field("age", number)])  # type: ignore[arg-type]
        else:
            event = Forget(**named, user=user)  # type: ignore[arg-type]
        key = (event.item if isinstance(event, Item) else event.user).encode()
        made += [(key, event)] * (2 if rng.random() < 0.05 else 1)
        if rng.random() < 0.01:
            made.append((key, b"{broken"))
    return made


def contents(client: "valkey.Valkey", space: str) -> dict[str, object]:
    """Every byte of users, items and offsets; the change list is not compared, its order is a matter of batches."""
    found: dict[str, object] = {}
    prefix = f"{{{space}}}:"
    for raw in client.scan_iter(prefix + "*"):
        name = raw.decode().removeprefix(prefix)
        if name.startswith("user:"):
            found[name] = client.get(raw)
        elif name.startswith("resume:") or name in ("items", "seen"):
            found[name] = client.hgetall(raw)
    return found


@pytest.mark.integration
def test_evidence_after_kills_at_random_moments_is_bit_identical_to_an_uninterrupted_run(
    address: Address, store: Store
) -> None:
    rng = random.Random(7)
    writer = Writer(address)
    made = stream(rng)
    places = [writer.put(key, event if isinstance(event, bytes) else encode(event)) for key, event in made]
    ends: dict[int, int] = {}
    for partition, offset in (place.result(20) for place in places):
        ends[partition] = max(ends.get(partition, 0), offset + 1)
    writer.close()
    log_id = writer.log

    def done(client: Store) -> int:
        return sum(client.resume(log_id, range(4)).values())

    killed_at = []
    for kill in range(1, KILLS + 1):
        goal = len(made) * kill // (KILLS + 1) + rng.randrange(50)
        command = [sys.executable, "-c", CHILD, address.brokers, address.topic, store.url, store.keys.space]
        child = subprocess.Popen(command, cwd=ROOT)
        deadline = time.monotonic() + 30
        while done(store) < goal and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        killed_at.append(done(store))
    assert killed_at == sorted(set(killed_at)), "every life must have done some work"
    assert killed_at[-1] < len(made), "the last kill must come before the end"

    settings = config.parse({"objectives": [{"name": "click", "event": "click"}]})
    calm = Store(store.url, space=store.keys.space + "-calm")
    for target in (store, calm):
        stop = threading.Event()
        for _ in Profiles(settings, address, target, report_s=0.05).run(stop):
            if done(target) == len(made):
                stop.set()
    client = valkey.Valkey.from_url(store.url)
    after, expected = contents(client, store.keys.space), contents(client, calm.keys.space)
    assert len(expected) > 60
    assert after == expected
    client.close()
    calm.clear()
    calm.close()
