"""The monitor: closed slates of the log become group sums, published so that nobody's group can be read off them.

Reader -> Joiner -> closed slates -> GroupSums. Every few seconds the loop *settles*: it publishes what may be seen,
keeps sums, join and offsets together in one file, and only then shows them, so that what was once shown is never
taken back by a crash, nor counted twice.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Signal
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from ranker import durable, events, fairness
from ranker.config import Config
from ranker.errors import CheckpointError, ConfigError, EventError, LogUnavailable, StoreUnavailable
from ranker.events import Forget
from ranker.fairness import GroupSums, Label, Row, Tally
from ranker.join import Joiner
from streaming.log import Address, Reader, Record

GROUP = "plurank-monitor"
CHECKPOINT = "monitor.msgpack"
#: name under which the store keeps the sums since the beginning, as one window at 0
TOTAL = "fairness-total"
#: settling may take this share of the time at most: large states are kept less often
SHARE = 0.05
UNPUT = 1440
#: earlier logs whose offsets are kept, and versions that a window names
LOGS, VERSIONS = 16, 32


class Source(Protocol):
    """What the monitor asks of a Reader."""

    covered: dict[str, dict[int, int]]

    @property
    def log(self) -> str:
        """Identity of the log."""

    def poll(self, max_records: int = ..., timeout: float = ...) -> list[Record]:
        """What came next."""

    def positions(self) -> dict[int, int]:
        """What is read next."""

    def seek(self, positions: Mapping[int, int]) -> None:
        """Go on from there."""

    def lag(self) -> int:
        """Records not read yet."""

    def commit(self, positions: Mapping[int, int] | None = None) -> None:
        """Show how far it is."""

    def close(self) -> None:
        """Hang up."""


class Windows(Protocol):
    """What the monitor asks of a Store."""

    def put_window(self, start: int, value: bytes, *, name: str = ...) -> None:
        """Keep a window."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorReport:
    """What was done since the last report.

    Attributes:
        events: records read, `slates` closed by them.
        rows: the published sums since the beginning, with their ratios.
        withheld: slates that wait for more people.
        lag: records not read yet.
        trouble: what is being waited for, empty where nothing is.
    """

    events: int
    slates: int
    rows: tuple[Row, ...]
    withheld: int
    lag: int
    seconds: float
    trouble: str = ""


class Window(Struct, frozen=True, kw_only=True):
    """What the store holds of one window, as JSON: `windows()` of the store, `GET /v1/fairness`.

    Units: start and end in ms since the epoch, wall clock; 0 stands for the beginning.
    """

    start: int
    end: int
    versions: list[str]
    withheld: int
    rows: list[Row]


class _State(Struct, array_like=True):
    log: str
    offsets: dict[int, int]
    covered: dict[str, dict[int, int]]
    joiner: bytes
    sums: bytes
    start: int
    window: list[tuple[Label, list[Any]]]
    versions: list[str]
    unput: dict[int, bytes]


class Monitor:
    """The loop. One process; killed at any moment, it goes on where its file stands.

    Args:
        folder: keeps the checkpoint.
        window_s: length of a window in the store.
        settle_s: seconds between publications, at least.
        reader: opens the log.
        clock: wall time in seconds.
    """

    def __init__(
        self,
        config: Config,
        address: Address,
        store: Windows,
        folder: Path,
        *,
        window_s: float = 60.0,
        settle_s: float = 5.0,
        report_s: float = 1.0,
        batch: int = 2000,
        reader: Callable[[Address], Source] = lambda address: Reader(address, group=GROUP),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config, self.address, self.store = config, address, store
        self.joiner, self.sums = Joiner(config), GroupSums(config)
        self._path = folder / CHECKPOINT
        self._window_ms, self._settle_s, self._report_s = round(window_s * 1000), settle_s, report_s
        self._batch, self._open, self._clock = batch, reader, clock
        self._log, self._offsets = "", dict[int, int]()
        self._covered: dict[str, dict[int, int]] = {}
        self._start, self._window, self._versions = 0, dict[Label, Tally](), set[str]()
        self._fresh: set[str] = set()
        self._unput: dict[int, bytes] = {}
        self._rows: tuple[Row, ...] = ()
        self._events = self._slates = 0
        self._load()

    def run(self, stop: Signal) -> Iterator[MonitorReport]:
        """Follow the log until `stop` is set; a log or store that is away is waited for, not an end."""
        pause = 0.1
        while not stop.is_set():
            try:
                for report in self._follow(stop):
                    pause = 0.1
                    yield report
            except LogUnavailable as error:
                yield self._report(0, pause, str(error))
                stop.wait(pause)
                pause = min(2 * pause, 2.0)

    def _follow(self, stop: Signal) -> Iterator[MonitorReport]:
        reader = self._open(self.address)
        try:
            self._begin(reader)
            told = time.monotonic()
            due = told + self._settle_s
            while not stop.is_set():
                records = reader.poll(self._batch, 0.25)
                if reader.log != self._log:  # what it just handed out may have been carried over: read it again
                    self._begin(reader)
                    continue
                self.take(records, caught_up=not records and reader.lag() == 0)
                self._offsets = reader.positions()
                trouble = ""
                if (now := time.monotonic()) >= due:
                    trouble = self.settle()
                    reader.commit(self._offsets)
                    due = time.monotonic() + max(self._settle_s, (time.monotonic() - now) / SHARE)
                if trouble or (now := time.monotonic()) - told >= self._report_s:
                    yield self._report(reader.lag(), now - told, trouble)
                    told = now
            trouble = self.settle()
            reader.commit(self._offsets)
            yield self._report(reader.lag(), time.monotonic() - told, trouble)
        finally:
            reader.close()

    def take(self, records: Sequence[Record], *, caught_up: bool = False) -> None:
        """Join these records and count the slates they close; what is no event, the profiles loop reports."""
        examples = []
        for record in records:
            try:
                event = events.admit(events.decode(record.value), tenant=self.config.tenant)
            except EventError:
                continue
            if isinstance(event, Forget):
                self.sums.forget(event.user)
            examples += self.joiner.push(event, record.partition)
        if caught_up:  # quiet partitions close with the others
            examples += self.joiner.catch_up()
        for example in examples:
            if example.closing:
                self.sums.add(example, self.joiner.groups.get(example.user, {}), self.joiner.catalogue)
                self._slates += 1
                if example.version is not None and len(self._fresh) < VERSIONS:
                    self._fresh.add(example.version)
        self._events += len(records)

    def settle(self) -> str:
        """Publish, keep, and then show; returns what stood in the way of showing, which is tried again next time."""
        now = round(self._clock() * 1000)
        start = now // self._window_ms * self._window_ms
        increment = self.sums.publish()
        if start != self._start:
            self._start, self._window, self._versions = start, {}, set()
        self._versions, self._fresh = self._versions | self._fresh, set()
        fairness.add(self._window, increment, len(self.config.objectives))
        self._rows = tuple(self.sums.rows())
        self._unput[start] = self._encode(start, now, fairness.rows(self._window, self.config))
        while len(self._unput) > UNPUT:
            del self._unput[min(self._unput)]
        durable.replace_file(self._path, self._state())
        return self._put(now)

    def _put(self, now: int) -> str:
        try:
            for start in sorted(self._unput):
                self.store.put_window(start, self._unput[start])
                del self._unput[start]
            self.store.put_window(0, self._encode(0, now, list(self._rows)), name=TOTAL)
        except StoreUnavailable as error:
            return str(error)
        return ""

    def _encode(self, start: int, end: int, rows: list[Row]) -> bytes:
        window = Window(start=start, end=end, versions=sorted(self._versions), withheld=self.sums.withheld, rows=rows)
        return msgspec.json.encode(window)

    def _report(self, lag: int, seconds: float, trouble: str) -> MonitorReport:
        report = MonitorReport(
            events=self._events,
            slates=self._slates,
            rows=self._rows,
            withheld=self.sums.withheld,
            lag=lag,
            seconds=seconds,
            trouble=trouble,
        )
        self._events = self._slates = 0
        return report

    def _begin(self, reader: Source) -> None:
        """Go on in the log that was read before, or at the beginning of a new one, past what was carried over."""
        if reader.log != self._log:
            if self._log:
                self._covered[self._log] = self._offsets
            self._log, self._offsets = reader.log, self._covered.pop(reader.log, {})
            self._covered = dict(list(self._covered.items())[-LOGS:])
        reader.covered = self._covered
        reader.seek({partition: self._offsets.get(partition, 0) for partition in reader.positions()})
        self._offsets = reader.positions()

    def _state(self) -> bytes:
        return msgspec.msgpack.encode(
            _State(
                self._log,
                self._offsets,
                self._covered,
                self.joiner.state(),
                self.sums.state(),
                self._start,
                [(label, tally.pack()) for label, tally in sorted(self._window.items())],
                sorted(self._versions),
                self._unput,
            )
        )

    def _load(self) -> None:
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return
        try:
            state = msgspec.msgpack.decode(self._path.read_bytes(), type=_State)
            self.joiner.load(state.joiner)
            self.sums.load(state.sums)
        except (OSError, msgspec.MsgspecError, ConfigError) as error:
            raise CheckpointError(str(self._path), str(error), "move it away; the monitor then starts anew") from None
        self._log, self._offsets, self._covered = state.log, state.offsets, state.covered
        self._start, self._versions, self._unput = state.start, set(state.versions), state.unput
        self._window = {label: Tally.unpack(tally) for label, tally in state.window}
        self._rows = tuple(self.sums.rows())
