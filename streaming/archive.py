"""Keeps an embedded log short and what it held: rolls it to new segments, archives it, carries it over a restart.

Tansu lists all batches of a partition at every fetch, cannot delete records, and forgets everything at its end. So
a keeper follows the log. It writes events to JSON-lines files (an event log like any other), announces a new
segment before the current one grows long, seals the old one when writers have changed over, and deletes it when all
groups are past it. What some group has not committed yet is kept in memory and, at the end or when the broker dies,
written to a file that the next log begins with; records name where they lay before, so that groups which had them
pass them over.
"""

import base64
import contextlib
import gzip
import os
import shutil
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ranker import durable, events
from ranker.errors import EventError, LogUnavailable
from streaming.log import (
    ANNOUNCE_S,
    GRACE_S,
    SEGMENT_BITS,
    Address,
    Admin,
    Layout,
    Reader,
    Record,
    Segment,
    Token,
    Writer,
    seal,
)

#: a fetch took 10 ms longer at 20,000 batches, 30 ms at 40,000
ROLL_BATCHES = 20_000
#: four writers that send a batch every 20 ms
BATCHES_PER_S = 200.0
UNDRAINED = "undrained.jsonl"
#: a tick that is so close to a change-over waits for it, so that readers never wait for the next tick
SEAL_WAIT_S = 1.4
#: seconds in which the end must be reached
FINISH_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class KeeperReport:
    """The log as its keeper sees it: segments held, batches in the newest (estimate), records some group lacks."""

    segments: int
    batches: int
    undrained: int


class Keeper:
    """Follows an embedded log and keeps it short; call `tick` about once a second.

    Args:
        groups: the groups that must have committed past a segment before it is deleted.
        batches: a segment of about so many batches is rolled.
        announce_s: how long before a segment begins it is announced.

    Raises:
        LogUnavailable: no broker, or the log is missing.
    """

    def __init__(
        self,
        address: Address,
        directory: Path,
        groups: Sequence[str],
        *,
        batches: int = ROLL_BATCHES,
        announce_s: float = ANNOUNCE_S,
    ) -> None:
        self.address, self.directory, self._groups = address, directory, tuple(groups)
        self._limit, self._announce_s = batches, announce_s
        directory.mkdir(parents=True, exist_ok=True)
        self._admin, self._reader = Admin(address), Reader(address)
        self._held: deque[Record] = deque()
        self._drained: dict[int, int] = {}
        self._batches, self._ticked = 0.0, time.monotonic()
        self._next: tuple[Segment, Segment] | None = None
        self._log = self._reader.log

    def tick(self) -> KeeperReport:
        """Read what is new, archive it, and roll or delete segments where it is time.

        Raises:
            LogUnavailable: the broker is away.
        """
        self._follow(0.2)
        self._trim()
        layout = self._admin.layout()
        self._roll(layout)
        past = [*self._drained.values(), *self._reader.positions().values()]
        for segment in layout.segments[1:-1]:  # the first one carries the log's identity and stays
            if all(at >> SEGMENT_BITS > segment.number for at in past):
                self._admin.delete(segment.topic)
        return KeeperReport(segments=len(layout.segments), batches=int(self._batches), undrained=len(self._held))

    def finish(self, *, broker_alive: bool = True) -> int:
        """Write down what some group has not committed, for `restore`; returns how many records. Hangs up."""
        if broker_alive:
            with contextlib.suppress(LogUnavailable):
                until = time.monotonic() + FINISH_S
                while self._reader.remaining() > 0 and time.monotonic() < until:
                    self._follow(0.1)
                self._trim()
        held, partial = self.directory / UNDRAINED, self.directory / (UNDRAINED + ".part")
        with partial.open("wb") as file:
            for record in self._held:
                here = Token(self._log, record.partition, record.offset)
                line = {
                    "origins": [str(token) for token in (*record.origins, here)],
                    "key": base64.b64encode(record.key).decode(),
                    "value": base64.b64encode(record.value).decode(),
                }
                file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        partial.rename(held)
        durable.sync_folder(self.directory)
        self._reader.close()
        self._admin.close()
        return len(self._held)

    def _follow(self, timeout: float) -> int:
        count, until = 0, time.monotonic() + 2.0
        lines: dict[int, list[bytes]] = {}
        by_second = dict.fromkeys(self._reader.positions(), 0)
        while records := self._reader.poll(5000, timeout):
            for record in records:
                self._held.append(record)
                by_second[record.partition] += 1
                if not record.origins and _is_event(record.value):
                    lines.setdefault(record.offset >> SEGMENT_BITS, []).append(record.value)
            count += len(records)
            if time.monotonic() > until:
                break
        now = time.monotonic()
        most = BATCHES_PER_S * (now - self._ticked)
        self._batches += sum(min(found, most) for found in by_second.values())
        self._ticked = now
        for segment, values in lines.items():
            with self._archive(segment).open("ab") as file:
                file.write(b"\n".join(values) + b"\n")
        return count

    def _archive(self, segment: int) -> Path:
        return self.directory / f"events-{self._log}-{segment:05d}.jsonl"

    def _trim(self) -> None:
        layout = self._admin.layout()
        at = [self._admin.committed(group, layout) for group in self._groups]
        partitions = range(layout.partitions)
        self._drained = {p: min((group.get(p, 0) for group in at), default=0) for p in partitions}
        kept = deque(r for r in self._held if r.offset >= self._drained.get(r.partition, 0))
        self._held = kept

    def _roll(self, layout: Layout) -> None:
        now, newest = time.time(), layout.segments[-1]
        if self._next is None and self._batches >= self._limit:
            self._next = (newest, self._admin.announce(newest.number + 1, now + self._announce_s))
            self._batches = 0.0
        elif self._next is not None and self._next[1].since - now < SEAL_WAIT_S:
            ended, begun = self._next
            seal(self.address, ended, layout.partitions, at=begun.since + GRACE_S)
            self._next = None
            _compress(self._archive(ended.number - 1))


def restore(address: Address, directory: Path) -> int:
    """Begin a new log with what the last one held undrained; returns how many records.

    Raises:
        LogUnavailable: the broker did not take them; the file stays.
    """
    held = directory / UNDRAINED
    if not held.exists():
        return 0
    writer, sent = Writer(address), []
    try:
        with held.open("rb") as file:
            for line in file:
                kept = msgspec.json.decode(line)
                origins = [Token.parse(text) for text in kept["origins"]]
                key, value = base64.b64decode(kept["key"]), base64.b64decode(kept["value"])
                sent.append(writer.put(key, value, origins=origins))
        writer.flush(60.0)
        for future in sent:
            future.result(0)
    finally:
        writer.close()
    held.unlink()
    return len(sent)


def _is_event(value: bytes) -> bool:
    try:
        events.decode(value)
    except EventError:
        return False
    return b"\n" not in value


def _compress(plain: Path) -> None:
    if plain.exists():
        packed = plain.with_name(plain.name + ".gz")
        with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=1) as sink:
            shutil.copyfileobj(source, sink)
        plain.unlink()
