import time
from concurrent.futures import Future
from pathlib import Path
from unittest.mock import Mock

import pytest
from kafka.errors import KafkaError

from ranker.errors import ConfigError, EventError, LogUnavailable
from ranker.events import Interaction, decode
from services.embedded import Broker, free_port
from streaming import log
from streaming.log import SEGMENT_BITS, Address, Admin, DeadLetters, Reader, Record, Token, Writer

integration = pytest.mark.integration


def click(number: int, user: str = "u") -> Interaction:
    return Interaction(id=f"e{number}", timestamp=1000 + number, user=user, item=f"i{number}", type="click")


def drain(reader: Reader, count: int, seconds: float = 10.0) -> list[Record]:
    records: list[Record] = []
    until = time.monotonic() + seconds
    while len(records) < count and time.monotonic() < until:
        records += reader.poll(timeout=0.3)
    return records


def test_a_token_survives_its_text() -> None:
    token = Token("0190-af", 3, 5 << SEGMENT_BITS | 17)
    assert Token.parse(str(token)) == token


@pytest.mark.parametrize("text", ["", "x", "log.1", "log.a.2", "log.1.b"])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Token.parse(text)


def test_brokers_are_host_and_port() -> None:
    assert log.parse_brokers("kafka://a:1,b:2/") == "a:1,b:2"
    for wrong in ("localhost", ":9092", "a:b", "a:1,,b:2"):
        with pytest.raises(ConfigError, match="host:port"):
            log.parse_brokers(wrong)


def test_a_broker_that_is_away_is_named_with_the_remedy() -> None:
    address = Address(brokers=f"127.0.0.1:{free_port()}")
    with pytest.raises(LogUnavailable, match=r"event log plurank.events at 127.0.0.1:\d+.*check that the broker runs"):
        log.identity(address)


@integration
def test_a_missing_topic_is_named(broker: Broker) -> None:
    with pytest.raises(LogUnavailable, match="nowhere"):
        log.identity(broker.address("nowhere"))


@integration
def test_creating_a_log_twice_keeps_its_identity(address: Address) -> None:
    assert log.create(address) == log.create(address) == log.identity(address)


@integration
def test_another_log_has_another_identity_even_under_the_same_name(address: Address) -> None:
    before = log.identity(address)
    with Admin(address) as admin:
        admin.delete(address.topic)
    assert log.create(address) != before


@integration
def test_events_come_back_in_order_with_the_places_their_writer_was_told(address: Address) -> None:
    writer, reader = Writer(address), Reader(address)
    told = [writer.append(click(n, f"u{n % 7}")) for n in range(200)]
    places = [future.result(10) for future in told]
    records = drain(reader, 200)
    assert sorted((r.partition, r.offset) for r in records) == sorted(places)
    by_place = {(r.partition, r.offset): decode(r.value) for r in records}
    assert [by_place[place] for place in places] == [click(n, f"u{n % 7}") for n in range(200)]
    for partition in range(4):
        offsets = [r.offset for r in records if r.partition == partition]
        assert offsets == list(range(len(offsets)))
    assert reader.lag() == reader.remaining() == 0
    assert sum(reader.positions().values()) == 200
    writer.close()
    reader.close()


@integration
def test_a_key_goes_to_the_same_partition_from_every_writer(address: Address) -> None:
    places = []
    for _ in range(2):
        writer = Writer(address, linger_ms=0)
        futures = [writer.append(click(n, f"user-{n}")) for n in range(32)]
        places.append([future.result(10)[0] for future in futures])
        writer.close()
    assert places[0] == places[1]
    assert len(set(places[0])) == 4


@integration
def test_reading_starts_where_it_is_told_and_can_go_back(address: Address) -> None:
    writer = Writer(address)
    partition = {writer.append(click(n)).result(10)[0] for n in range(10)}.pop()
    reader = Reader(address, {partition: 7})
    assert [r.offset for r in drain(reader, 3)] == [7, 8, 9]
    reader.seek({partition: 2})
    assert [r.offset for r in drain(reader, 8)] == list(range(2, 10))
    reader.close()
    writer.close()


@integration
def test_committed_progress_can_be_seen(address: Address) -> None:
    writer, reader = Writer(address), Reader(address, group="a-group")
    writer.append(click(1)).result(10)
    drain(reader, 1)
    reader.commit()
    with Admin(address) as admin:
        assert admin.committed("a-group", admin.layout()) == reader.positions()
        assert admin.committed("another-group", admin.layout()) == {}
    reader.close()
    writer.close()


@integration
def test_records_carried_over_are_passed_over_by_who_had_them(address: Address) -> None:
    writer = Writer(address)
    for offset in range(4):
        writer.put(b"u", b"%d" % offset, origins=[Token("old", 2, offset)]).result(10)
    writer.put(b"u", b"new").result(10)
    had, fresh = Reader(address, covered={"old": {2: 3}}), Reader(address)
    assert [r.value for r in drain(had, 2)] == [b"3", b"new"]
    assert [(r.value, r.origins) for r in drain(fresh, 5)][1] == (b"1", (Token("old", 2, 1),))
    assert had.positions() == fresh.positions()
    for end in (had, fresh, writer):
        end.close()


@integration
def test_an_event_too_large_for_a_record_is_refused_before_it_is_sent(address: Address) -> None:
    writer = Writer(address)
    with pytest.raises(EventError, match="at most 1000000 bytes"):
        writer.put(b"u", b"x" * 1_000_001)
    assert writer.put(b"u", b"x" * 1_000_000).result(10)[1] == 0
    writer.close()


@integration
def test_dead_letters_hold_reason_place_and_the_raw_bytes(address: Address) -> None:
    letters = DeadLetters(address)
    letters.put(Record(3, 17, 0, b"u", b"\xff\x00 not json"), "no event", log="L")
    letters.flush()
    letters.close()
    mine = [letter for letter in log.dead_letters(address) if letter.topic == address.topic]
    assert [(x.reason, x.log, x.partition, x.offset, x.raw) for x in mine] == [
        ("no event", "L", 3, 17, b"\xff\x00 not json")
    ]


@integration
def test_readers_and_writers_follow_the_log_into_its_next_segment(address: Address) -> None:
    writer, reader = Writer(address), Reader(address)
    places = [writer.append(click(n, f"u{n}")).result(10) for n in range(20)]
    with Admin(address) as admin:
        first, following = admin.layout().segments[0], admin.announce(1, time.time() + 1.5)
    while time.time() < following.since:
        places.append(writer.append(click(len(places), f"u{len(places)}")).result(10))
    assert {offset >> SEGMENT_BITS for _, offset in places[:-1]} == {0}
    log.seal(address, first, 4, at=following.since + log.GRACE_S)
    places += [writer.append(click(100 + n, f"u{n}")).result(10) for n in range(20)]
    assert {offset >> SEGMENT_BITS for _, offset in places[-20:]} == {1}
    records = drain(reader, len(places))
    assert sorted((r.partition, r.offset) for r in records) == sorted(places)
    for partition in range(4):
        offsets = [r.offset for r in records if r.partition == partition]
        assert offsets == sorted(offsets)
    assert min(reader.positions().values()) >= 1 << SEGMENT_BITS
    assert reader.lag() == reader.remaining() == 0
    reader.close()
    writer.close()


@integration
def test_a_write_that_may_lie_behind_a_seal_is_written_again(address: Address) -> None:
    writer = Writer(address, lease_s=-1.0)  # trusts no look at the segments: every write waits for the next look
    reader = Reader(address)
    assert writer.append(click(0)).result(10)[1] == 0
    with Admin(address) as admin:
        first, following = admin.layout().segments[0], admin.announce(1, time.time())
    log.seal(address, first, 4, at=following.since)
    partition, offset = writer.append(click(1)).result(10)
    records = drain(reader, 2)
    assert [(r.partition, r.offset) for r in records] == [(partition, 0), (partition, offset)]
    assert offset == 1 << SEGMENT_BITS
    reader.close()
    writer.close()


def spoil(writer: Writer) -> None:
    """What any refusal that is not for want of time does to kafka-python's producer: it never sends again."""
    for producer in writer._now[1].values():
        producer._transaction_manager.transition_to_fatal_error(KafkaError("spoilt"))


@integration
def test_a_producer_that_gave_up_is_replaced(address: Address) -> None:
    writer = Writer(address)
    assert writer.append(click(0)).result(10)[1] == 0
    spoil(writer)
    assert writer.append(click(1)).result(10)[1] == 1
    assert writer.append(click(2)).result(10)[1] == 2
    writer.close()


@integration
def test_an_event_waits_while_nobody_can_tell_what_became_of_the_log(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, hasty = Writer(address), Writer(address, timeout_s=2.0)
    away = LogUnavailable("event log", "x", "wait")
    with monkeypatch.context() as patch:
        for each in (writer, hasty):
            patch.setattr(each._admin, "layout", Mock(side_effect=away))
            spoil(each)
        waiting, failing = writer.append(click(0)), hasty.append(click(1))
        with pytest.raises(LogUnavailable, match=r"spoilt.*send the event again with the same id"):
            failing.result(10)
        assert not waiting.done()
    assert waiting.result(10)[1] == 0
    writer.close()
    hasty.close()


@integration
def test_a_broker_that_dies_and_comes_back_empty_is_survived_and_noticed(tmp_path: Path) -> None:
    server = Broker(tmp_path)
    server.start()
    address = server.address()
    before = log.create(address)
    writer, reader = Writer(address), Reader(address)
    writer.append(click(1)).result(10)
    assert len(drain(reader, 1)) == 1
    server.stop()
    assert (reader.poll(timeout=0.3), reader.lag()) == ([], 0)
    assert address.brokers in reader.trouble
    waiting: Future[tuple[int, int]] = writer.append(click(2))
    server.start()
    time.sleep(2.5)  # it answers before the log is there again
    after = log.create(address)
    assert after != before
    waiting.result(20)
    until = time.monotonic() + 10
    while writer.log != after and time.monotonic() < until:
        time.sleep(0.05)
    writer.append(click(3)).result(10)
    records = drain(reader, 2)
    assert reader.log == writer.log == after
    assert reader.trouble == ""
    assert {decode(r.value).id for r in records} >= {"e3"}
    assert min(r.offset for r in records) == 0
    writer.close()
    reader.close()
    server.stop()
