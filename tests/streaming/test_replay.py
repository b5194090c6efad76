import threading
import time
from collections.abc import Iterator

import pytest

from ranker.errors import LogUnavailable
from ranker.events import Event, Interaction, decode
from services.embedded import Broker
from streaming.log import Address, Reader, Writer
from streaming.replay import Progress, replay

pytestmark = pytest.mark.integration


def stream(count: int, gap_ms: int = 1) -> Iterator[Event]:
    for number in range(count):
        yield Interaction(id=f"e{number}", timestamp=1000 + number * gap_ms, user=f"u{number % 9}", item="i", type="t")


def read(address: Address, count: int) -> dict[str, int]:
    reader, found = Reader(address), {}
    until = time.monotonic() + 10
    while len(found) < count and time.monotonic() < until:
        for record in reader.poll(timeout=0.3):
            event = decode(record.value)
            found[event.id] = event.time
    reader.close()
    return found


def test_as_fast_as_possible_all_events_arrive_with_their_times(address: Address) -> None:
    writer, seen = Writer(address), list[Progress]()
    done = replay(stream(2000), writer, progress=seen.append)
    assert (done.events, done.time) == (2000, 2999)
    assert seen[-1] == done
    assert read(address, 2000) == {f"e{n}": 1000 + n for n in range(2000)}
    writer.close()


def test_a_speed_keeps_the_recorded_pace(address: Address) -> None:
    writer = Writer(address)
    done = replay(stream(11, gap_ms=1000), writer, speed=20.0)
    assert 0.5 <= done.seconds < 1.5
    writer.close()


def test_times_shifted_to_now_are_the_moments_of_sending(address: Address) -> None:
    writer, began = Writer(address), time.time() * 1000
    replay(stream(5, gap_ms=1000), writer, speed=20.0, shift_to_now=True)
    times = list(dict(sorted(read(address, 5).items())).values())
    assert [round((when - began) / 50) for when in times] == [0, 1, 2, 3, 4]
    writer.close()


def test_it_stops_when_told(address: Address) -> None:
    writer, stop = Writer(address), threading.Event()
    threading.Timer(0.3, stop.set).start()
    done = replay(stream(100, gap_ms=60_000), writer, speed=1.0, stop=stop)
    assert done.events == 1
    assert done.seconds < 2
    writer.close()


def test_a_broker_that_stays_away_ends_it() -> None:
    broker = Broker()
    broker.start()
    address = broker.address("short")
    from streaming import log

    log.create(address)
    writer = Writer(address, timeout_s=2.0)
    replay(stream(3), writer)
    broker.stop()
    with pytest.raises(LogUnavailable, match="check that the broker runs"):
        replay(stream(3), writer)
    writer.close()
