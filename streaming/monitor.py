"""The monitor: closed slates of the log become group sums, published so that nobody's group can be read off them.

Reader -> Joiner -> closed slates -> GroupSums. Every few seconds the loop *settles*: it publishes what may be seen,
keeps sums, join and offsets together in one file, and only then shows them, so that what was once shown is never
taken back by a crash, nor counted twice.

Sums are shown by window, as they grow. What takes single people's sums, intervals and the inequality among people, is
shown once per *period*, when it is over: a few minutes, or longer where few people come. A period is made of whole
windows and of just the slates they showed, so neither says anything of a person that the other does not.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Signal
from typing import Protocol

import msgspec
import numpy as np
from msgspec import Struct

from ranker import durable, fairness, spread
from ranker.config import Config
from ranker.errors import CheckpointError, ConfigError, EventError, LogUnavailable, StoreUnavailable
from ranker.events import Forget
from ranker.fairness import GroupSums, Row
from ranker.join import Joiner
from ranker.spread import Period
from ranker.tally import Floats, Label
from streaming.canary import Watch
from streaming.log import Address, Reader, Record

GROUP = "plurank-monitor"
CHECKPOINT = "monitor.msgpack"
#: name under which the store keeps the sums since the beginning, as one window at 0
TOTAL = "fairness-total"
#: and those of windows and periods, by where they begin
WINDOWS, PERIODS = "fairness", "fairness-periods"
#: settling may take this share of the time at most: large states are kept less often
SHARE = 0.05
UNPUT = 1440
#: a period waits for so many times the minimum of people, so that a tenth of them can be told of, and so long at most
CROWD, LONGEST_S = 10, 86_400
#: earlier logs whose offsets are kept, and versions that a window names
LOGS, VERSIONS = 16, 32


class Source(Protocol):
    """What the monitor asks of a Reader."""

    covered: dict[str, dict[int, int]]
    trouble: str

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
        period: the latest that is over.
        trouble: what is being waited for, empty where nothing is.
    """

    events: int
    slates: int
    rows: tuple[Row, ...]
    period: Period | None
    withheld: int
    lag: int
    seconds: float
    trouble: str = ""


class Window(Struct, frozen=True, kw_only=True):
    """What the store holds of one window, as JSON: `windows()` of the store, `GET /v1/fairness`.

    `versions` served its slates, by arm; `withheld` slates waited for more people when it was written.

    Units: start and end in ms since the epoch, wall clock; 0 stands for the beginning.
    """

    start: int
    end: int
    versions: dict[str, list[str]]
    withheld: int
    rows: list[Row]


class _State(Struct, array_like=True):
    log: str
    offsets: dict[int, int]
    covered: dict[str, dict[int, int]]
    joiner: bytes
    sums: bytes
    start: int
    window: list[tuple[Label, bytes]]
    versions: list[list[str]]
    since: int
    served: list[list[str]]
    period: bytes
    unput: list[tuple[str, int, bytes]]
    trial: bytes = b""


class Monitor:
    """The loop. One process; killed at any moment, it goes on where its file stands.

    Args:
        folder: keeps the checkpoint.
        window_s: length of a window in the store.
        period_s: length of a period, at least, in whole windows.
        settle_s: seconds between publications, at least.
        reader: opens the log.
        clock: wall time in seconds.
        canary: watches over a canary on the same slates; without it they are only counted.
    """

    def __init__(
        self,
        config: Config,
        address: Address,
        store: Windows,
        folder: Path,
        *,
        window_s: float = 60.0,
        period_s: float = 300.0,
        settle_s: float = 5.0,
        report_s: float = 1.0,
        batch: int = 2000,
        reader: Callable[[Address], Source] = lambda address: Reader(address, group=GROUP),
        clock: Callable[[], float] = time.time,
        canary: Watch | None = None,
    ) -> None:
        self._canary = canary
        self.config, self.address, self.store = config, address, store
        self.joiner, self.sums = Joiner(config), GroupSums(config)
        self._path = folder / CHECKPOINT
        self._window_ms, self._settle_s, self._report_s = round(window_s * 1000), settle_s, report_s
        self._period_ms = round(period_s * 1000)
        self._batch, self._open, self._clock = batch, reader, clock
        self._log, self._offsets = "", dict[int, int]()
        self._covered: dict[str, dict[int, int]] = {}
        self._start, self._window, self._versions = 0, dict[Label, Floats](), set[tuple[str, str]]()
        self._fresh: set[tuple[str, str]] = set()
        self._since, self._served = 0, set[tuple[str, str]]()
        self._period: Period | None = None
        self._unput: dict[tuple[str, int], bytes] = {}
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
                trouble = reader.trouble
                if (now := time.monotonic()) >= due:
                    trouble = self.settle() or trouble
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
        if self._canary is not None:
            self._canary.follow()
        examples = []
        for record in records:
            try:
                event = record.event(self.config.tenant)
            except EventError:
                continue
            if isinstance(event, Forget):
                self.sums.forget(event.user)
                if self._canary is not None:
                    self._canary.forget(event.user)
            examples += self.joiner.push(event, record.partition)
        if caught_up:  # quiet partitions close with the others
            examples += self.joiner.catch_up()
        groups = self.joiner.groups
        for example in examples:
            if example.closing:
                user = example.user
                self.sums.add(example, groups.of(user), self.joiner.catalogue, support=groups.support(user))
                self._slates += 1
                if self._canary is not None:
                    self._canary.add(example, groups.of(user))
                if example.version is not None and len(self._fresh) < VERSIONS:
                    self._fresh.add((fairness.arm_of(example), example.version))
        self._events += len(records)

    def settle(self) -> str:
        """Publish, keep, and then show; returns what stood in the way of showing, which is tried again next time."""
        if self._canary is not None:
            self._canary.judge(self.joiner.now)
        now = round(self._clock() * 1000)
        start = now // self._window_ms * self._window_ms
        if start != self._start:
            self._end_period(start)
            self._start, self._window, self._versions = start, {}, set()
        fairness.add(self._window, self.sums.publish())
        self._versions, self._served, self._fresh = self._versions | self._fresh, self._served | self._fresh, set()
        self._rows = tuple(self.sums.rows())
        self._unput[WINDOWS, start] = self._encode(start, now, fairness.rows(self._window, self.config))
        while len(self._unput) > UNPUT:
            del self._unput[min(self._unput)]
        durable.replace_file(self._path, self._state())
        return self._put(now)

    def _end_period(self, now: int) -> None:
        """Judge the people of the windows so far, once they are enough and long enough, or too many to keep."""
        length, crowd = now - self._since, CROWD * self.sums.minimum
        if not self._since:
            self._since = now
            return
        if not self.sums.full and (
            length < self._period_ms or (self.sums.people < crowd and length < LONGEST_S * 1000)
        ):
            return
        released = self.sums.drain()
        if released:
            self._period = spread.period(
                released,
                self.config,
                start=self._since,
                end=now,
                versions=_by_arm(self._served),
                minimum=self.sums.minimum,
                generator=np.random.default_rng([self.config.learning.seed, self._since]),
            )
            self._unput[PERIODS, self._since] = msgspec.json.encode(self._period)
        self._since, self._served = now, set()

    def _put(self, now: int) -> str:
        try:
            for name, start in sorted(self._unput):
                self.store.put_window(start, self._unput[name, start], name=name)
                del self._unput[name, start]
            self.store.put_window(0, self._encode(0, now, list(self._rows)), name=TOTAL)
        except StoreUnavailable as error:
            return str(error)
        return ""

    def _encode(self, start: int, end: int, rows: list[Row]) -> bytes:
        versions = _by_arm(self._versions)
        window = Window(start=start, end=end, versions=versions, withheld=self.sums.withheld, rows=rows)
        return msgspec.json.encode(window)

    def _report(self, lag: int, seconds: float, trouble: str) -> MonitorReport:
        report = MonitorReport(
            events=self._events,
            slates=self._slates,
            rows=self._rows,
            period=self._period,
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
                [(label, sums_V.tobytes()) for label, sums_V in sorted(self._window.items())],
                [list(pair) for pair in sorted(self._versions)],
                self._since,
                [list(pair) for pair in sorted(self._served)],
                msgspec.json.encode(self._period),
                [(name, start, value) for (name, start), value in sorted(self._unput.items())],
                b"" if self._canary is None else self._canary.state(),
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
            if self._canary is not None:
                self._canary.load(state.trial)
        except (OSError, msgspec.MsgspecError, ConfigError) as error:
            raise CheckpointError(str(self._path), str(error), "move it away; the monitor then starts anew") from None
        self._log, self._offsets, self._covered = state.log, state.offsets, state.covered
        self._start, self._since = state.start, state.since
        self._versions, self._served = ({(arm, name) for arm, name in kept} for kept in (state.versions, state.served))
        self._unput = {(name, start): value for name, start, value in state.unput}
        self._window = {label: np.frombuffer(sums_V) for label, sums_V in state.window}
        self._period = msgspec.json.decode(state.period, type=Period | None)
        self._rows = tuple(self.sums.rows())


def _by_arm(served: set[tuple[str, str]]) -> dict[str, list[str]]:
    """Versions by the arm that they served, the latest few of each."""
    found: dict[str, list[str]] = {}
    for arm, version in sorted(served):
        found.setdefault(arm, []).append(version)
    return {arm: names[-VERSIONS:] for arm, names in found.items()}
