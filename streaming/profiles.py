"""Profiles: the log's events become evidence and catalogue in the store, within a quarter of a second.

One batch of one partition at a time: decode, fold in memory, apply together with the partition's next offset.
Killed at any moment, it goes on where the store stands, and the evidence ends bit-identical.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from threading import Event as Signal
from typing import TypeVar

import msgspec

from ranker import catalogue, events, evidence
from ranker.catalogue import Item
from ranker.config import Config
from ranker.errors import EventError, LogUnavailable, StoreUnavailable
from ranker.events import Event, Forget, Interaction, Ranking
from streaming.log import Address, DeadLetters, Reader, Record
from streaming.store import Store, Stored

GROUP = "plurank-profiles"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileReport:
    """What was done since the last report.

    Attributes:
        events: records applied, `rejected` those set aside as dead letters.
        lag: records in the log that are not applied yet.
        seconds: since the last report.
        delay: seconds from the broker's clock to the store for the slowest record, None where there was none.
        trouble: what is being waited for, empty where nothing is.
    """

    events: int
    rejected: int
    lag: int
    seconds: float
    delay: float | None = None
    trouble: str = ""


class Profiles:
    """The loop from log to store.

    Args:
        cache: users (and items) kept in memory between batches; 1,000 full histories are about 20 MB.
        report_s: seconds between reports.
    """

    def __init__(
        self,
        config: Config,
        address: Address,
        store: Store,
        *,
        batch: int = 2000,
        cache: int = 5000,
        report_s: float = 1.0,
    ) -> None:
        self.config, self.address, self.store = config, address, store
        self._batch, self._cache, self._report_s = batch, cache, report_s
        self._groups = frozenset(config.groups)
        self._forget()

    def run(self, stop: Signal) -> Iterator[ProfileReport]:
        """Follow the log until `stop` is set; a log or store that is away is waited for, not an end."""
        pause = 0.1
        while not stop.is_set():
            try:
                for report in self._follow(stop):
                    pause = 0.1
                    yield report
            except (LogUnavailable, StoreUnavailable) as error:
                yield ProfileReport(events=0, rejected=0, lag=0, seconds=pause, trouble=str(error))
                stop.wait(pause)
                pause = min(2 * pause, 2.0)

    def _follow(self, stop: Signal) -> Iterator[ProfileReport]:
        reader = Reader(self.address, group=GROUP)
        try:
            letters = DeadLetters(self.address)
            try:
                yield from self._loop(reader, letters, stop)
            finally:
                letters.close()
        finally:
            reader.close()

    def _loop(self, reader: Reader, letters: DeadLetters, stop: Signal) -> Iterator[ProfileReport]:
        log, done, rejected, since = "", 0, 0, time.monotonic()
        delays: list[float] = []
        while not stop.is_set():
            if reader.log != log:  # the first time, and when the log was made anew
                log, at = reader.log, self._begin(reader)
            for partition, part in groupby(reader.poll(self._batch, 0.25), lambda record: record.partition):
                if reader.log != log:
                    break
                records = list(part)
                bad = self._apply(log, at, partition, records, letters)
                if bad is None:  # the store is elsewhere: read again from where it is
                    at = self._begin(reader)
                    break
                done, rejected = done + len(records) - bad, rejected + bad
                delays.append(max(0.0, time.time() - records[0].timestamp / 1000))
            if (seconds := time.monotonic() - since) >= self._report_s:
                reader.commit(at)
                delay = max(delays, default=None)
                yield ProfileReport(
                    events=done,
                    rejected=rejected,
                    lag=reader.lag(),
                    seconds=seconds,
                    delay=delay,
                    trouble=reader.trouble,
                )
                done, rejected, since = 0, 0, time.monotonic()
                delays.clear()
        reader.commit(at)
        yield ProfileReport(events=done, rejected=rejected, lag=reader.lag(), seconds=time.monotonic() - since)

    def _begin(self, reader: Reader) -> dict[int, int]:
        self._forget()
        at = self.store.resume(reader.log, list(reader.positions()))
        reader.covered = self.store.covered()
        reader.seek(at)
        return at

    def _forget(self) -> None:
        self._users: OrderedDict[str, Stored] = OrderedDict()
        self._items: OrderedDict[str, Item] = OrderedDict()

    def _apply(
        self, log: str, at: dict[int, int], partition: int, records: Sequence[Record], letters: DeadLetters
    ) -> int | None:
        """Fold and store one partition's records; returns how many were rejected, None where the store moved."""
        good, rejected = self._admitted(log, records, letters)
        users = self._fold_users(log, partition, good)
        items, seen = self._fold_items([event for _, event in good])
        following = records[-1].offset + 1
        done, _ = self.store.apply_batch(
            log,
            partition,
            first=at[partition],
            following=following,
            users=users,
            items={item: self._items[item].fields for item in items},
            seen={item: self._items[item].first_seen for item in seen},
        )
        if not done:
            return None
        at[partition] = following
        for cached in (self._users, self._items):
            while len(cached) > self._cache:
                cached.popitem(last=False)
        return rejected

    def _admitted(
        self, log: str, records: Sequence[Record], letters: DeadLetters
    ) -> tuple[list[tuple[int, Event]], int]:
        good: list[tuple[int, Event]] = []
        for record in records:
            try:
                event = record.event(self.config.tenant)
            except EventError as error:
                letters.put(record, str(error), log=log)
            else:
                good.append((record.offset, event))
        if len(good) < len(records):
            letters.flush()
        return good, len(records) - len(good)

    def _fold_users(self, log: str, partition: int, good: Sequence[tuple[int, Event]]) -> dict[str, Stored]:
        named = [(offset, event) for offset, event in good if not isinstance(event, events.Item | Ranking)]
        self._load(self._users, [events.key_of(event) for _, event in named], self._known_users)
        changed: dict[str, Stored] = {}
        for offset, event in named:
            user = events.key_of(event)
            before = self._users.get(user, Stored())
            if event.time <= before.forgotten:
                continue
            after = evidence.fold(before.evidence, event, groups=self._groups)
            if after is before.evidence and not isinstance(event, Forget):
                continue
            forgotten = max(before.forgotten, event.time if isinstance(event, Forget) else -1)
            self._users[user] = changed[user] = Stored(log, partition, offset, after, forgotten)
        return changed

    def _fold_items(self, good: Sequence[Event]) -> tuple[set[str], set[str]]:
        """Fold items described and shown into the cache; returns whose fields and whose first time changed."""
        described = [event for event in good if isinstance(event, events.Item)]
        shown: dict[str, int] = {}
        for event in good:
            for item in _mentioned(event):
                shown[item] = min(event.time, shown.get(item, event.time))
        self._load(self._items, [*(event.item for event in described), *shown], self.store.items)
        fields: set[str] = set()
        seen: set[str] = set()
        for event in described:
            before = self._items.get(event.item)
            self._items[event.item] = after = catalogue.fold(before, event)
            fields.add(event.item)
            if before is None or after.first_seen < before.first_seen:
                seen.add(event.item)
        for item, when in shown.items():
            known = self._items.get(item)
            if known is None or when < known.first_seen:
                self._items[item] = msgspec.structs.replace(known or Item(item), first_seen=when)
                seen.add(item)
        return fields, seen

    def _known_users(self, users: Sequence[str]) -> dict[str, Stored]:
        found = zip(users, self.store.evidences(users), strict=True)
        return {user: stored for user, stored in found if stored is not None}

    @staticmethod
    def _load(
        cached: "OrderedDict[str, T]", wanted: Sequence[str], read: "Callable[[Sequence[str]], dict[str, T]]"
    ) -> None:
        missing = []
        for name in dict.fromkeys(wanted):
            if name in cached:
                cached.move_to_end(name)
            else:
                missing.append(name)
        cached.update(read(missing))


def _mentioned(event: Event) -> Sequence[str]:
    """Items that an event shows to be there, though it does not describe them."""
    if isinstance(event, Ranking):
        return [item.id for item in event.items]
    if isinstance(event, Interaction) and event.ranking is None:
        return (event.item,)
    return ()
