"""The event log, and the only door to Kafka.

A log is a topic, keyed by user (items by item). Its identity is the topic id that the broker drew when it was
created, so it changes when a memory-only broker lost its memory or when someone made the topic anew.

A *segmented* log (the embedded broker, whose fetches slow with the number of batches) goes on in other topics, named
`topic.number.since`: writers look each second and change over by the clock of their one machine, at `since`. Offsets
stay one rising number per partition: segment << 36 | offset in the segment. A seal, one control record at the end of
each partition, sends readers on. `streaming/archive.py` rolls and retires segments.
"""

import base64
import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, MessageSizeTooLargeError, RetriableError, TopicAlreadyExistsError

from ranker import events
from ranker.errors import ConfigError, EventError, LogUnavailable
from ranker.events import Event

SEGMENT_BITS = 36
_INSIDE = (1 << SEGMENT_BITS) - 1
#: a segment is announced so long before it begins
ANNOUNCE_S = 3.0
#: the segment before it is sealed so long after; what is acknowledged later may lie behind the seal
GRACE_S = 0.15
WATCH_S = 1.0
DEAD_LETTERS = "plurank.dead-letter"
DEAD_LETTER_MS = 7 * 24 * 3600 * 1000
SEAL, ORIGIN = "plurank-seal", "plurank-origin"
MAX_RECORD = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a log is.

    Attributes:
        brokers: host:port, comma-separated.
        security: kafka-python settings such as security_protocol and sasl_mechanism.
        segmented: the log is rolled (embedded broker only).
        fetch_wait_ms: how long a broker may hold an empty fetch. Tansu looks for news only at its end: 500 gave
            130 ms from append to read, 100 gave 25 ms.
    """

    brokers: str
    topic: str = "plurank.events"
    partitions: int = 4
    replication: int = -1
    security: Mapping[str, Any] = field(default_factory=dict)
    segmented: bool = False
    fetch_wait_ms: int = 100

    def servers(self) -> dict[str, Any]:
        """The settings every client starts from."""
        return {
            "bootstrap_servers": self.brokers.split(","),
            "bootstrap_timeout_ms": 5000,
            "reconnect_backoff_max_ms": 1000,
            **self.security,
        }


class Token(NamedTuple):
    """Where a write landed; as text it is an evidence token."""

    log: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.log}.{self.partition}.{self.offset}"

    @classmethod
    def parse(cls, text: str) -> "Token":
        """The token out of its text.

        Raises:
            ValueError: it is not one.

        Example:
            >>> Token.parse("0f-3a.2.17")
            Token(log='0f-3a', partition=2, offset=17)
        """
        log, partition, offset = text.rsplit(".", 2)
        return cls(log, int(partition), int(offset))


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it was read; `origins` are its tokens in earlier logs that it was carried over from."""

    partition: int
    offset: int
    timestamp: int
    key: bytes
    value: bytes
    origins: tuple[Token, ...] = ()

    def event(self, tenant: str | None) -> Event:
        """The event in it, if the log of this tenant may hold it by the time that it was taken: always the same answer.

        Raises:
            EventError: with the reason.
        """
        return events.admit(events.decode(self.value), now_ms=self.timestamp, tenant=tenant)


class Segment(NamedTuple):
    """One topic of a segmented log; `since` is when writers change over to it (s since the epoch)."""

    number: int
    topic: str
    since: float


@dataclass(frozen=True, slots=True)
class Layout:
    """A log as the broker holds it now; an unsegmented one has a single segment, number 0."""

    log: str
    partitions: int
    segments: tuple[Segment, ...]

    def find(self, offset: int) -> Segment | None:
        """The segment that holds the offset, None where it was retired."""
        return next((segment for segment in self.segments if segment.number == offset >> SEGMENT_BITS), None)

    def current(self, now: float) -> Segment:
        """The segment that is written to at this time."""
        return [segment for segment in self.segments if segment.since <= now][-1]


def identity(address: Address) -> str:
    """The identity of the log.

    Raises:
        LogUnavailable: no broker, or no such topic.
    """
    with Admin(address) as admin:
        return admin.layout().log


def create(address: Address, *, retention_ms: int | None = None) -> str:
    """Create the log and its dead-letter topic where they are missing; returns the log's identity.

    Raises:
        LogUnavailable: no broker, or it refuses.
    """
    with Admin(address) as admin:
        admin.create(address.topic, retention_ms)
        admin.create(DEAD_LETTERS, DEAD_LETTER_MS, 1)
        return admin.layout().log


@contextlib.contextmanager
def _translated(address: Address) -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        thing = f"event log {address.topic} at {address.brokers}"
        remedy = "check that the broker runs and that its address and credentials are right"
        raise LogUnavailable(thing, f"{type(error).__name__}: {error}", remedy) from error


def _probe(address: Address) -> None:
    """Fail at once where nobody listens: a kafka-python client would try for seconds and leak its sockets."""
    failure: OSError | None = None
    for broker in address.brokers.split(","):
        host, _, port = broker.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), 2.0).close()
        except OSError as error:
            failure = error
        else:
            return
    if failure is not None:
        raise failure


def _producer(address: Address, settings: Mapping[str, Any]) -> Any:
    with _translated(address):
        producer = KafkaProducer(acks="all", **settings, **address.servers())
    _creates_nothing(producer._metadata)
    return producer


def _creates_nothing(cluster: Any) -> None:
    """kafka-python 3.0.12 does not hand its setting of this name down, and Tansu creates whatever is asked for."""
    cluster.config["allow_auto_create_topics"] = False


class Admin:
    """Topics and committed offsets."""

    def __init__(self, address: Address) -> None:
        self.address = address
        with _translated(address):
            _probe(address)
            self._client = KafkaAdminClient(request_timeout_ms=5000, **address.servers())

    def __enter__(self) -> "Admin":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def layout(self) -> Layout:
        """The log's identity, partitions and segments.

        Raises:
            LogUnavailable: the broker is away or the topic is missing.
        """
        topic = self.address.topic
        with _translated(self.address):
            found = self._client.describe_topics(None if self.address.segmented else [topic])
        here = {t["name"]: t for t in found if t["error_code"] == 0 and t["partitions"]}
        root = here.get(topic)
        if root is None or root["topic_id"] is None:
            remedy = "run `plurank doctor`, or create the topic; topic ids need Kafka 2.8 or later"
            raise LogUnavailable(f"event log at {self.address.brokers}", topic, remedy)
        parts = [name.removeprefix(topic + ".").split(".") for name in here if name.startswith(topic + ".")]
        later = sorted((int(p[0]), p[1]) for p in parts if len(p) == 2 and all(part.isdecimal() for part in p))
        segments = [Segment(n, f"{topic}.{n}.{since}", int(since) / 1000) for n, since in later]
        return Layout(str(root["topic_id"]), len(root["partitions"]), (Segment(0, topic, 0.0), *segments))

    def announce(self, number: int, since: float) -> Segment:
        """Create a segment that writers change over to at `since` (s since the epoch)."""
        topic = f"{self.address.topic}.{number}.{int(since * 1000)}"
        self.create(topic)
        return Segment(number, topic, since)

    def create(self, topic: str, retention_ms: int | None = None, partitions: int | None = None) -> None:
        """Create a topic unless it is there; never compacted, because keys are users.

        Kafka stamps its records: the loops refuse events far ahead of that time, at every reading alike.
        """
        configs = {"cleanup.policy": "delete", "message.timestamp.type": "LogAppendTime"}
        if retention_ms is not None:
            configs["retention.ms"] = str(retention_ms)
        wanted = {
            "num_partitions": partitions or self.address.partitions,
            "replication_factor": self.address.replication,
            "configs": configs,
        }
        with _translated(self.address), contextlib.suppress(TopicAlreadyExistsError):
            self._client.create_topics({topic: wanted}, wait_for_metadata=True)

    def delete(self, topic: str) -> None:
        """Delete a topic."""
        with _translated(self.address):
            self._client.delete_topics([topic])

    def committed(self, group: str, layout: Layout) -> dict[int, int]:
        """The offsets a group committed, the furthest of each partition; empty where it committed none."""
        with _translated(self.address):
            found = self._client.list_group_offsets(group).get(group, {})
        furthest: dict[int, int] = {}
        for segment in layout.segments:
            for place, stored in found.items():
                if place.topic == segment.topic and stored.offset >= 0:
                    furthest[place.partition] = segment.number << SEGMENT_BITS | stored.offset
        return furthest


def seal(address: Address, segment: Segment, partitions: int, *, at: float) -> None:
    """Wait until `at` (s since the epoch) and end a segment: readers go on in the next one, which must be there.

    Raises:
        LogUnavailable: the broker is away; seal again, a second seal is never read.
    """
    producer = _producer(address, {"delivery_timeout_ms": 5000, "request_timeout_ms": 4000})
    with _translated(address):
        try:
            producer.partitions_for(segment.topic)
            time.sleep(max(0.0, at - time.time()))
            mark = [(SEAL, b"")]
            sent = [producer.send(segment.topic, b"", b"", mark, partition=place) for place in range(partitions)]
            for future in sent:
                future.get(5)
        finally:
            _end(producer, 1)


class Writer:
    """Appends events. Safe to share between threads; a broker that went away is waited for.

    Args:
        linger_ms: how long a batch waits for company: Tansu slows with the number of batches.
        timeout_s: an event that could not be written for so long fails with LogUnavailable.
        lease_s: how long a look at the segments is trusted.

    Raises:
        LogUnavailable: no broker could be reached at the start.
    """

    def __init__(
        self, address: Address, *, linger_ms: int = 20, timeout_s: float = 20.0, lease_s: float = ANNOUNCE_S
    ) -> None:
        self.address = address
        self._lease = lease_s
        self._settings = {
            "linger_ms": linger_ms,
            "batch_size": 256 * 1024,
            "max_request_size": 2 * MAX_RECORD,
            "max_block_ms": int(timeout_s * 1000),
            "request_timeout_ms": min(5000, int(timeout_s * 500)),
            "delivery_timeout_ms": int(timeout_s * 1000),
        }
        self._lock = threading.Lock()
        self._unsure: list[tuple[_Pending, Token]] = []
        self._failed: list[tuple[_Pending, BaseException]] = []
        self._spent: list[Any] = []
        self._timeout = timeout_s
        self._open: set[_Pending] = set()
        self._admin = Admin(address)
        self._checked = time.monotonic()
        self._now: tuple[Layout, dict[int, Any]] = (Layout("", 0, ()), {})
        self._turn(self._admin.layout())
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="log-writer-watch", daemon=True)
        self._watcher.start()

    @property
    def log(self) -> str:
        """The identity of the log that is written to now."""
        return self._now[0].log

    def append(self, event: Event) -> "Future[tuple[int, int]]":
        """Append the event; the future holds (partition, offset) once the broker has it, or LogUnavailable.

        Raises:
            EventError: it is larger than a record may be.
        """
        return self.put(events.key_of(event).encode(), events.encode(event))

    def put(self, key: bytes, value: bytes, *, origins: Sequence[Token] = ()) -> "Future[tuple[int, int]]":
        """Append a record as it is; `origins` say where it lay in earlier logs."""
        if len(value) > MAX_RECORD:
            raise EventError("event", f"{len(value)} bytes", f"send events of at most {MAX_RECORD} bytes")
        headers = [(ORIGIN, str(origin).encode()) for origin in origins]
        pending = _Pending(key, value, headers, Future(), time.monotonic() + self._timeout)
        with self._lock:
            self._open.add(pending)
        self._send(pending)
        return pending.future

    def flush(self, timeout: float = 10.0) -> None:
        """Wait until all that was appended is acknowledged.

        Raises:
            LogUnavailable: it is not within the timeout.
        """
        deadline = time.monotonic() + timeout
        with _translated(self.address):
            for producer in self._now[1].values():
                producer.flush(timeout)
        with self._lock:
            waiting = [pending.future for pending in self._open]
        for future in waiting:
            with contextlib.suppress(LogUnavailable), _translated(self.address):
                future.result(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """Flush for up to five seconds and hang up; what could not be written fails."""
        with contextlib.suppress(LogUnavailable):
            self.flush(5.0)
        self._stop.set()
        self._watcher.join()
        for producer in self._now[1].values():
            _end(producer, 1)
        self._admin.close()
        with self._lock:
            left, self._open, self._unsure = list(self._open), set(), []
        for pending in left:
            self._fail(pending, LogUnavailable("event log writer", "closed", "append before closing it"))

    def _send(self, pending: "_Pending") -> None:
        layout, producers = self._now
        segment = layout.current(time.time())
        producer = producers[segment.number]
        try:
            sent = producer.send(segment.topic, pending.value, pending.key, pending.headers)
        except (KafkaError, OSError) as error:
            self._lost(pending, producer, error)
            return
        sent.add_callback(self._acknowledged, pending, layout, segment)
        sent.add_errback(self._lost, pending, producer)

    def _acknowledged(self, pending: "_Pending", layout: Layout, segment: Segment, where: Any) -> None:
        place = Token(layout.log, where.partition, segment.number << SEGMENT_BITS | where.offset)
        if self._certain(place):
            self._done(pending, place)
        else:
            with self._lock:
                self._unsure.append((pending, place))  # the watcher decides after its next look

    def _certain(self, place: Token) -> bool:
        """Whether the place is surely before any seal: it was acknowledged, and no seal can be written before now."""
        if not self.address.segmented:
            return True
        layout, now = self._now[0], time.time()
        following = next((n for n in layout.segments if n.number > place.offset >> SEGMENT_BITS), None)
        if following is not None:
            return layout.log == place.log and now < following.since + GRACE_S
        return time.monotonic() - self._checked < self._lease

    def _done(self, pending: "_Pending", place: Token) -> None:
        with self._lock:
            self._open.discard(pending)
        if not pending.future.done():
            pending.future.set_result((place.partition, place.offset))

    def _lost(self, pending: "_Pending", producer: Any, error: BaseException) -> None:
        with self._lock:
            if not isinstance(error, RetriableError):
                self._spent.append(producer)  # what it was refused for may be its own: it may never write again
            if not isinstance(error, MessageSizeTooLargeError):
                self._failed.append((pending, error))  # the watcher sends it again while its time lasts
                return
        remedy = "raise message.max.bytes of the topic, or send smaller events"
        self._fail(pending, EventError("event", f"{len(pending.value)} bytes", remedy))

    def _fail(self, pending: "_Pending", error: Exception) -> None:
        with self._lock:
            self._open.discard(pending)
        if not pending.future.done():
            pending.future.set_exception(error)

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_S):
            began = time.monotonic()
            with self._lock:
                failed, self._failed = self._failed, []
                spent, self._spent = self._spent, []
            try:
                layout = self._admin.layout()
                self._turn(layout, spent)
                self._checked, away = began, False
            except LogUnavailable:
                away = True
            else:
                self._settle(layout)
            again = []
            for pending, error in failed:
                if time.monotonic() >= pending.until:
                    thing = f"event log {self.address.topic} at {self.address.brokers}"
                    remedy = "check that the broker runs; send the event again with the same id"
                    self._fail(pending, LogUnavailable(thing, f"{type(error).__name__}: {error}", remedy))
                elif away:  # nothing shows yet whether its producer is still good for this log
                    again.append((pending, error))
                else:
                    self._send(pending)
            if away:
                with self._lock:
                    self._failed += again
                    self._spent += spent

    def _settle(self, layout: Layout) -> None:
        """Decide on the acknowledgements that came too long after the last look, or too late for their segment."""
        with self._lock:
            unsure, self._unsure = self._unsure, []
        for pending, place in unsure:
            newest = layout.segments[-1].number
            if place.log == layout.log and place.offset >> SEGMENT_BITS == newest:
                self._done(pending, place)  # the look came after the acknowledgement and saw no later segment
            else:
                self._send(pending)  # twice in the log is harmless: ids are deduplicated

    def _turn(self, layout: Layout, spent: Sequence[Any] = ()) -> None:
        """One producer for the segment that is written to and one for each announced: it is ready when its time comes.

        A log made anew needs fresh ones, because its broker does not know the sequence numbers of the old ones; one
        that still knew a retired segment would ask for it for ever; and a spent one refuses whatever it is given.
        """
        known, before = self._now
        kept = {
            number: producer
            for number, producer in before.items()
            if known.log == layout.log and all(producer is not other for other in spent)
        }
        now = layout.current(time.time()).number
        ahead = [segment for segment in layout.segments if segment.number >= now]
        self._now = (layout, {n.number: kept[n.number] if n.number in kept else self._open_for(n) for n in ahead})
        for number, producer in before.items():
            if self._now[1].get(number) is not producer:
                _end(producer, 2)

    def _open_for(self, segment: Segment) -> Any:
        producer = _producer(self.address, self._settings)
        with _translated(self.address):
            producer.partitions_for(segment.topic)
        return producer


def _end(producer: Any, timeout: float) -> None:
    """Close it; what it cannot deliver any more fails in its own time."""
    with contextlib.suppress(KafkaError):
        producer.close(timeout=timeout)


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    future: "Future[tuple[int, int]]"
    until: float


class Reader:
    """Reads a log from given offsets, without a consumer group; a broker that went away is waited for.

    `log` changes when the log was made anew: reading then goes on at its beginning, and a caller compares `log`
    after each poll. A batch is handed out only after the identity was confirmed behind it, so that no record is
    ever counted to the wrong log.

    Args:
        start: next offset by partition; 0 where absent.
        group: name under which `commit` shows progress.
        covered: next offset by partition of earlier logs; records carried over from below them are passed over.

    Attributes:
        trouble: what the last poll waited for; empty where the broker answered. `lag` is 0 meanwhile.

    Raises:
        LogUnavailable: no broker, or no such topic.
    """

    def __init__(
        self,
        address: Address,
        start: Mapping[int, int] | None = None,
        *,
        group: str | None = None,
        covered: Mapping[str, Mapping[int, int]] | None = None,
    ) -> None:
        self.address = address
        self.covered = {log: dict(offsets) for log, offsets in (covered or {}).items()}
        self._settings = {
            "group_id": group,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "fetch_max_wait_ms": address.fetch_wait_ms,
            "max_partition_fetch_bytes": 2 * MAX_RECORD,
            "request_timeout_ms": 10_000,
            **address.servers(),
        }
        self.trouble = ""
        self._admin = Admin(address)
        try:
            self._layout = self._admin.layout()
            self._consumer = self._connect()
        except BaseException:
            self._admin.close()
            raise
        self._positions = {p: (start or {}).get(p, 0) for p in range(self._layout.partitions)}
        self._assign()

    @property
    def log(self) -> str:
        """The identity of the log that is read now."""
        return self._layout.log

    def poll(self, max_records: int = 2000, timeout: float = 0.5) -> list[Record]:
        """What came next, grouped by partition and in order within it; empty after the timeout.

        Units: timeout in seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                with _translated(self.address):
                    batches = self._consumer.poll(timeout_ms=int(left * 1000), max_records=max_records)
                layout = self._admin.layout()
            except LogUnavailable as error:
                self.trouble = str(error)
                time.sleep(min(left, 0.2))
                self._assign()
                if time.monotonic() >= deadline:
                    return []
                continue
            self.trouble = ""
            if layout.log != self.log:
                self._positions = dict.fromkeys(range(layout.partitions), 0)
                self._layout = layout
                self._assign()
                batches = {}
            self._layout = layout
            if any(layout.find(offset) is None for offset in self._positions.values()):
                self._assign()
                batches = {}
            records = self._take(batches)
            if records or time.monotonic() >= deadline:
                return records

    def positions(self) -> dict[int, int]:
        """The offset that is read next, by partition."""
        return dict(self._positions)

    def seek(self, positions: Mapping[int, int]) -> None:
        """Go on reading from these offsets."""
        self._positions.update(positions)
        self._assign()

    def lag(self) -> int:
        """Records not read yet as of the last fetch; cheap."""
        behind = 0
        for partition, offset in self._positions.items():
            end = self._consumer.highwater(self._place(partition))
            behind += max(0, end - (offset & _INSIDE)) if end is not None else 0
        return behind + self._ahead(1)

    def remaining(self) -> int:
        """Records not read yet, as the broker counts them now.

        Raises:
            LogUnavailable: the broker is away.
        """
        return max(0, self._ahead(0) - sum(offset & _INSIDE for offset in self._positions.values()))

    def _ahead(self, skip: int) -> int:
        """Records from each partition's current segment on, `skip` segments passed over."""
        places = [
            TopicPartition(segment.topic, partition)
            for partition, offset in self._positions.items()
            for segment in [n for n in self._layout.segments if n.number >= offset >> SEGMENT_BITS][skip:]
        ]
        ends = 0
        for place in places:  # one by one: kafka-python trips over a partition of Tansu that holds nothing yet
            with _translated(self.address), contextlib.suppress(KeyError):
                ends += self._consumer.end_offsets([place])[place]
        return ends

    def commit(self, positions: Mapping[int, int] | None = None) -> None:
        """Show the group how far it is, for lag display and retirement; failures are left to the next time."""
        offsets = {}
        for partition, offset in (positions or self._positions).items():
            if (segment := self._layout.find(offset)) is not None:
                offsets[TopicPartition(segment.topic, partition)] = OffsetAndMetadata(offset & _INSIDE, "", -1)
        with contextlib.suppress(KafkaError, OSError):
            self._consumer.commit(offsets, timeout_ms=2000)

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(KafkaError, OSError):
            self._consumer.close(autocommit=False, timeout_ms=1000)
        self._admin.close()

    def _connect(self) -> Any:
        with _translated(self.address):
            consumer = KafkaConsumer(**self._settings)
        _creates_nothing(consumer._cluster)
        return consumer

    def _place(self, partition: int) -> TopicPartition:
        segment = self._layout.find(self._positions[partition])
        return TopicPartition(segment.topic if segment else self.address.topic, partition)

    def _assign(self) -> None:
        for partition, offset in self._positions.items():
            if self._layout.find(offset) is None:  # retired: all who had to read it did; the next one follows
                later = [n.number for n in self._layout.segments if n.number > offset >> SEGMENT_BITS]
                self._positions[partition] = min(later, default=self._layout.segments[-1].number) << SEGMENT_BITS
        places = [self._place(partition) for partition in self._positions]
        with _translated(self.address):
            left = {place.topic for place in self._consumer.assignment()} - {place.topic for place in places}
            if left:  # a consumer never stops asking for topics it left
                old, self._consumer = self._consumer, self._connect()
                old.close(autocommit=False, timeout_ms=1000)
            self._consumer.assign(places)
            for partition, offset in self._positions.items():
                self._consumer.seek(self._place(partition), offset & _INSIDE)

    def _take(self, batches: Mapping[TopicPartition, Sequence[Any]]) -> list[Record]:
        records, sealed = [], False
        for place, found in batches.items():
            if not found or place != self._place(place.partition):
                continue
            segment = self._positions[place.partition] >> SEGMENT_BITS
            for raw in found:
                if raw.headers and raw.headers[0][0] == SEAL:
                    self._positions[place.partition] = segment + 1 << SEGMENT_BITS
                    sealed = True
                    break
                offset = segment << SEGMENT_BITS | raw.offset
                self._positions[place.partition] = offset + 1
                origins = tuple(Token.parse(value.decode()) for name, value in raw.headers or () if name == ORIGIN)
                if any(self.covered.get(o.log, {}).get(o.partition, 0) > o.offset for o in origins):
                    continue
                key, value = raw.key or b"", raw.value or b""
                records.append(Record(place.partition, offset, raw.timestamp, key, value, origins))
        if sealed:
            self._assign()
        return records


@dataclass(frozen=True, slots=True)
class Letter:
    """A rejected record: why, where it lay, and its bytes as they came."""

    reason: str
    topic: str
    log: str
    partition: int
    offset: int
    raw: bytes


class DeadLetters:
    """The topic of rejected records, kept for a week."""

    def __init__(self, address: Address) -> None:
        self.address = address
        with _translated(address):
            _probe(address)
        self._producer = _producer(
            address, {"linger_ms": 20, "batch_size": 128 * 1024, "max_request_size": 3 * MAX_RECORD}
        )
        self._sent: list[Any] = []

    def put(self, record: Record, reason: str, *, log: str = "") -> None:
        """Set a record aside; `flush` makes it certain."""
        letter = {
            "reason": reason,
            "topic": self.address.topic,
            "log": log,
            "partition": record.partition,
            "offset": record.offset,
            "raw": base64.b64encode(record.value).decode(),
        }
        with _translated(self.address):
            self._sent.append(self._producer.send(DEAD_LETTERS, msgspec.json.encode(letter), record.key or None))

    def flush(self, timeout: float = 10.0) -> None:
        """Wait until all are acknowledged.

        Raises:
            LogUnavailable: they are not within the timeout.
        """
        sent, self._sent = self._sent, []
        with _translated(self.address):
            self._producer.flush(timeout)
            for future in sent:
                future.get(timeout)

    def close(self) -> None:
        """Hang up."""
        self._producer.close(timeout=1)


def dead_letters(address: Address, *, timeout: float = 10.0) -> list[Letter]:
    """All letters that lie in the dead-letter topic now."""
    letters = []
    reader = Reader(dataclasses.replace(address, topic=DEAD_LETTERS, segmented=False))
    try:
        deadline = time.monotonic() + timeout
        while reader.remaining() > 0 and time.monotonic() < deadline:
            for record in reader.poll(timeout=0.5):
                letter = msgspec.json.decode(record.value)
                letters.append(Letter(**{**letter, "raw": base64.b64decode(letter["raw"])}))
    finally:
        reader.close()
    return letters


def parse_brokers(text: str) -> str:
    """`kafka://a:9092,b:9092` or `a:9092` as host:port, comma-separated.

    Raises:
        ConfigError: a part is not host:port.

    Example:
        >>> parse_brokers("kafka://127.0.0.1:9092")
        '127.0.0.1:9092'
    """
    brokers = text.removeprefix("kafka://").rstrip("/")
    for part in brokers.split(","):
        host, _, port = part.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError("log brokers", part, "write host:port, several separated by commas")
    return brokers
