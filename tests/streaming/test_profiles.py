import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from ranker import config, events, evidence
from ranker.events import Event, Field, Forget, Interaction, Item, Ranking, Shown, User
from ranker.evidence import EMPTY
from services.embedded import Broker, Valkey
from streaming import log
from streaming.log import Address, Token, Writer
from streaming.profiles import ProfileReport, Profiles
from streaming.store import Store

pytestmark = pytest.mark.integration

CONFIG = config.parse({"objectives": [{"name": "click", "event": "click"}], "groups": ["region"], "tenant": "here"})
NOW = int(time.time() * 1000)


def click(number: int, user: str = "u", **more: object) -> Interaction:
    return Interaction(id=f"e{number}", timestamp=NOW + number, user=user, item=f"i{number}", type="click", **more)  # type: ignore[arg-type]


class Running:
    """A profiles loop in a thread, and its reports."""

    def __init__(self, address: Address, store: Store) -> None:
        self.reports: list[ProfileReport] = []
        self.store, self.writer = store, Writer(address)
        self._stop = threading.Event()
        loop = Profiles(CONFIG, address, store, report_s=0.1)
        self._thread = threading.Thread(target=lambda: self.reports.extend(loop.run(self._stop)))
        self._thread.start()

    def write(self, *written: Event) -> None:
        """Append and wait until all of it is in the store."""
        flying = [self.writer.append(event) for event in written]
        self.read([future.result(20) for future in flying])

    def read(self, places: list[tuple[int, int]]) -> None:
        for place in places:
            assert self.store.wait_for(Token(self.writer.log, *place), timeout=20), "the loop did not get there"

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        self.writer.close()


@pytest.fixture
def running(address: Address, store: Store) -> Iterator[Running]:
    loop = Running(address, store)
    yield loop
    loop.end()


def until(true: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_the_store_holds_what_folding_the_events_gives(running: Running, store: Store) -> None:
    written = [click(n, f"u{n % 5}", value=float(n)) for n in range(300)]
    running.write(*written)
    for user in range(5):
        expected = EMPTY
        for event in written[user::5]:
            expected = evidence.fold(expected, event)
        stored = store.evidence(f"u{user}")
        assert stored is not None
        assert evidence.pack(stored.evidence) == evidence.pack(expected)
        assert stored.log == running.writer.log


def test_evidence_is_there_within_a_quarter_of_a_second(running: Running, store: Store) -> None:
    running.write(click(0))
    seconds = []
    for number in range(1, 21):
        began = time.monotonic()
        running.write(click(number))
        seconds.append(time.monotonic() - began)
    assert sorted(seconds)[10] < 0.25


def test_group_labels_never_reach_the_store(running: Running, store: Store) -> None:
    fields = [Field("region", "north"), Field("age", 7)]
    running.write(User(id="e", timestamp=NOW, user="u", fields=fields))
    stored = store.evidence("u")
    assert stored is not None
    assert stored.evidence.fields == {"age": 7}


def test_an_event_sent_twice_counts_once(running: Running, store: Store) -> None:
    running.write(click(1), click(1), click(2))
    stored = store.evidence("u")
    assert stored is not None
    assert [act.item for act in stored.evidence.history] == ["i1", "i2"]


def test_the_catalogue_holds_items_described_shown_and_clicked(running: Running, store: Store) -> None:
    running.write(
        Item(id="e1", timestamp=NOW + 50, item="described", fields=[Field("genre", ["a"]), Field("year", 1)]),
        Item(id="e2", timestamp=NOW + 60, item="described", fields=[Field("year", 2)]),
        Ranking(id="r", timestamp=NOW + 10, user="u", items=[Shown("described"), Shown("shown")]),
        click(7),
        click(8, ranking="r"),
    )
    found = {item.id: (item.fields, item.first_seen) for item in store.catalogue_changes().items}
    assert found == {
        "described": ({"genre": ["a"], "year": 2}, NOW + 10),
        "shown": ({}, NOW + 10),
        "i7": ({}, NOW + 7),
    }


def test_a_forgotten_user_is_gone_and_a_late_old_event_does_not_bring_her_back(running: Running, store: Store) -> None:
    running.write(click(1), click(2), Forget(id="f", timestamp=NOW + 10, user="u"), click(3))
    stored = store.evidence("u")
    assert stored is not None
    assert (stored.evidence, stored.forgotten) == (EMPTY, NOW + 10)
    running.write(click(11))  # she came back
    stored = store.evidence("u")
    assert stored is not None
    assert [act.item for act in stored.evidence.history] == ["i11"]


def test_bad_records_are_set_aside_with_reason_and_place_and_harm_nothing(
    running: Running, store: Store, address: Address
) -> None:
    bad = {
        b"{": "truncated",
        b"\xff\xfe": "malformed",
        b"": "truncated",
        b"[]": "Expected `object`, got `array`",
        b'{"event":"interaction","id":"x","timestamp":1,"user":"u","item":"i","type":7}': "Expected `str`",
        b'{"event":"interaction","id":"x","timestamp":1,"user":"u","item":"i","type":"t","value":NaN}': "malformed",
        b'{"event":"interaction","id":"x","timestamp":1,"user":"u","item":"i","type":"t","value":1e999}': "range",
        b'{"event":"ranking","id":"x","timestamp":1,"user":"u","items":[]}': "length >= 1",
        b'{"event":"other","id":"x","timestamp":1}': "Invalid value 'other'",
        events.encode(click(10**12)): "ahead of the clock",
        events.encode(click(1, tenant="elsewhere")): "belongs to 'here'",
    }
    flying = [running.writer.put(b"u", raw) for raw in bad]
    places = [future.result(10) for future in flying]
    running.read(places)
    running.write(click(1))
    letters = [letter for letter in log.dead_letters(address) if letter.topic == address.topic]
    assert [(letter.partition, letter.offset, letter.raw) for letter in letters] == [
        (*place, raw) for place, raw in zip(places, bad, strict=True)
    ]
    for letter, reason in zip(letters, bad.values(), strict=True):
        assert reason in letter.reason
        assert letter.log == running.writer.log
    stored = store.evidence("u")
    assert stored is not None
    assert [act.item for act in stored.evidence.history] == ["i1"]
    until(lambda: sum(report.rejected for report in running.reports) == len(bad))


def test_what_was_too_far_ahead_is_refused_at_a_later_reading_too(
    running: Running, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "time", Mock(time=lambda: time.time() + 3600))
    running.write(click(10**6), click(1))
    stored = store.evidence("u")
    assert stored is not None
    assert [act.item for act in stored.evidence.history] == ["i1"]


def test_an_emptied_store_is_filled_again_from_the_log(running: Running, store: Store) -> None:
    running.write(click(1), click(2))
    before = store.evidence("u")
    store.clear()
    running.write(click(3, "other"))
    until(lambda: store.evidence("u") is not None)
    assert store.evidence("u") == before


def test_two_loops_on_one_log_still_count_each_event_once(running: Running, address: Address, store: Store) -> None:
    rival = Running(address, store)
    written = [click(n, f"u{n % 3}") for n in range(600)]
    for start in range(0, 600, 60):
        running.write(*written[start : start + 60])
    for user in range(3):
        expected = EMPTY
        for event in written[user::3]:
            expected = evidence.fold(expected, event)
        stored = store.evidence(f"u{user}")
        assert stored is not None
        assert stored.evidence == expected
    rival.end()


def test_a_store_and_a_broker_that_go_away_are_waited_for(tmp_path: Path) -> None:
    broker, valkey = Broker(tmp_path / "broker"), Valkey(tmp_path / "store")
    broker.start()
    valkey.start()
    log.create(broker.address())
    store = Store(valkey.url)
    running = Running(broker.address(), store)
    running.write(click(1))
    valkey.stop()
    place = running.writer.append(click(2)).result(10)
    until(lambda: any("store" in report.trouble for report in running.reports))
    valkey.start()
    running.read([place])
    broker.stop()
    time.sleep(0.5)
    broker.start()
    log.create(broker.address())
    until(lambda: running.writer.log == log.identity(broker.address()))
    running.write(click(3))  # a new log: read from its beginning, and what was known is kept
    stored = store.evidence("u")
    assert stored is not None
    assert [act.item for act in stored.evidence.history] == ["i1", "i2", "i3"]
    running.end()
    store.close()
    valkey.stop()
    broker.stop()
