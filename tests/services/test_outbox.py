"""services/outbox.py: nothing lost while the broker is away, memory bounded, losses counted."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from ranker.errors import EventError, LogUnavailable
from ranker.events import Event, Forget
from services.outbox import Outbox, Place


class Log:
    """A log that can be told to fail."""

    log = "log"

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.fails: Exception | None = None
        self.closed = False

    def append(self, event: Event) -> "Future[Place]":
        future: Future[Place] = Future()
        if isinstance(self.fails, EventError):
            raise self.fails
        if self.fails is not None:
            future.set_exception(self.fails)
        else:
            self.events.append(event)
            future.set_result((0, len(self.events) - 1))
        return future

    def close(self) -> None:
        self.closed = True


def event(n: int) -> Event:
    return Forget(id=f"f{n}", timestamp=n, user="u")


def settle(outbox: Outbox, timeout: float = 3.0) -> None:
    deadline = time.monotonic() + timeout
    while outbox.open:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def outbox(log: Log) -> Iterator[Outbox]:
    made = Outbox(lambda: log, limit=5)
    made.start()
    yield made
    made.close(0.5)


def test_slates_arrive_in_order(outbox: Outbox, log: Log) -> None:
    assert all(outbox.offer(lambda n=n: event(n)) for n in range(5))
    settle(outbox)
    assert [one.id for one in log.events] == [f"f{n}" for n in range(5)]
    assert (outbox.sent, outbox.dropped) == (5, 0)


def test_a_full_queue_refuses_and_counts(outbox: Outbox, log: Log) -> None:
    log.fails = LogUnavailable("log", "away", "wait")
    assert [outbox.offer(lambda n=n: event(n)) for n in range(7)] == [True] * 5 + [False] * 2
    time.sleep(0.1)
    log.fails = None
    settle(outbox)
    assert {one.id for one in log.events} == {f"f{n}" for n in range(5)}
    assert (outbox.sent, outbox.dropped) == (5, 2)


def test_a_slate_that_no_record_can_hold_is_dropped_alone(outbox: Outbox, log: Log) -> None:
    log.fails = EventError("event", "9 MB", "send less")
    outbox.offer(lambda: event(0))
    settle(outbox)
    log.fails = None
    outbox.offer(lambda: event(1))
    settle(outbox)
    assert [one.id for one in log.events] == ["f1"]
    assert (outbox.sent, outbox.dropped) == (1, 1)


def test_a_broker_that_comes_later_gets_what_waited(log: Log) -> None:
    tries = 0

    def connect() -> Log:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise LogUnavailable("log", "away", "wait")
        return log

    outbox = Outbox(connect, limit=5)
    outbox.start()
    outbox.offer(lambda: event(0))
    with pytest.raises(LogUnavailable, match="not connected"):
        asyncio.run(outbox.write([event(1)], 1.0))
    settle(outbox)
    assert asyncio.run(outbox.write([event(1), event(2)], 1.0)) == [(0, 1), (0, 2)]
    assert asyncio.run(outbox.write([], 1.0)) == []
    assert outbox.close() == 0
    assert log.closed


def test_close_says_what_did_not_get_through(log: Log) -> None:
    log.fails = LogUnavailable("log", "away", "wait")
    outbox = Outbox(lambda: log, limit=5)
    outbox.start()
    for n in range(3):
        outbox.offer(lambda n=n: event(n))
    assert outbox.close(0.2) == 3
    assert not outbox.offer(lambda: event(9))
