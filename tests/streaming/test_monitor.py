import random
import threading
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from ranker import events
from ranker.config import Config, Learning, Objective
from ranker.errors import CheckpointError, StoreUnavailable
from ranker.events import Event, Field, Forget, Interaction, Item, Ranking, Shown, User
from ranker.fairness import Row
from ranker.spread import Period
from streaming.log import Address, Record, Writer
from streaming.monitor import PERIODS, TOTAL, Monitor, Window
from streaming.store import Store

CONFIG = Config(
    objectives=(Objective(name="click", event="click", wait=10.0),),
    interests="genres",
    groups=("gender",),
    learning=Learning(minimum_group=3),
)
NOWHERE = Address(brokers="127.0.0.1:1")


class Log:
    """A log in memory, read as a Reader reads; `then` is called after each poll."""

    def __init__(self, records: list[Record], name: str = "log-1", then=lambda: None, batch: int = 10**9) -> None:
        self.records, self.name, self.then, self.batch = records, name, then, batch
        self.at = dict.fromkeys({record.partition for record in records} or {0}, 0)
        self.covered: dict[str, dict[int, int]] = {}
        self.trouble = ""
        self.asked: list[dict[int, int]] = []

    @property
    def log(self) -> str:
        return self.name

    def poll(self, max_records: int = 2000, timeout: float = 0.5) -> list[Record]:
        left = [record for record in self.records if record.offset >= self.at[record.partition]][: self.batch]
        for record in left:
            self.at[record.partition] = record.offset + 1
        self.then()
        return left

    def positions(self) -> dict[int, int]:
        return dict(self.at)

    def seek(self, positions: Mapping[int, int]) -> None:
        self.asked.append(dict(positions))
        self.at.update(positions)

    def lag(self) -> int:
        return 1

    def commit(self, positions: Mapping[int, int] | None = None) -> None:
        pass

    def close(self) -> None:
        pass


class Kept:
    """A store's windows in memory."""

    def __init__(self) -> None:
        self.windows: dict[tuple[str, int], Window] = {}
        self.periods: list[Period] = []
        self.away = False

    def put_window(self, start: int, value: bytes, *, name: str = "fairness") -> None:
        if self.away:
            raise StoreUnavailable("store", "away", "start it")
        if name == PERIODS:
            self.periods.append(msgspec.json.decode(value, type=Period))
        else:
            self.windows[name, start] = msgspec.json.decode(value, type=Window)


def traffic(users: int = 8, slates: int = 3) -> list[Event]:
    found: list[Event] = [
        Item(id=f"it{n}", timestamp=1, item=f"i{n}", fields=[Field("genres", ["drama" if n else "noir"])])
        for n in range(3)
    ]
    for n in range(users):
        found.append(User(id=f"us{n}", timestamp=2, user=f"u{n}", fields=[Field("gender", "fm"[n % 2])]))
    time = 1000
    for slate in range(slates):
        for n in range(users):
            time += 100
            shown = [Shown(f"i{m}", probabilities=[0.2]) for m in range(3)]
            name = f"r{slate}-{n}"
            found.append(Ranking(id=name, timestamp=time, user=f"u{n}", items=shown, version=f"v{slate}"))
            found.append(
                Interaction(
                    id=f"c{slate}-{n}",
                    timestamp=time + 5,
                    user=f"u{n}",
                    item=f"i{(n + slate) % 3}",
                    type="click",
                    ranking=name,
                )
            )
    found.append(User(id="late", timestamp=10**6, user="u0"))
    found.append(Interaction(id="end", timestamp=10**6, user="u0", item="i0", type="view"))
    return found


def records(found: list[Event]) -> list[Record]:
    return [Record(0, n, event.time, b"", events.encode(event)) for n, event in enumerate(found)]


def monitor(folder: Path, log: Log, kept: Kept, **options) -> Monitor:
    options = {"settle_s": 0.0, "report_s": 0.0, "clock": lambda: 100.0, **options}
    return Monitor(CONFIG, NOWHERE, kept, folder, reader=lambda _: log, **options)


def run(folder: Path, log: Log, kept: Kept, polls: int = 3, **options) -> list:
    stop, left = threading.Event(), [polls]

    def count() -> None:
        left[0] -= 1
        if left[0] <= 0:
            stop.set()

    log.then = count
    return list(monitor(folder, log, kept, **options).run(stop))


def click(rows: list[Row] | tuple[Row, ...], field: str = "all", group: str = "all") -> Row:
    (row,) = [row for row in rows if (row.field, row.group) == (field, group)]
    return row


def test_closed_slates_become_published_group_sums(tmp_path):
    kept = Kept()
    reports = run(tmp_path, Log(records(traffic())), kept)
    rows = reports[-1].rows
    assert click(rows).slates == 24
    assert (click(rows).impressions, click(rows).outcomes, click(rows).rate) == (72, 24, pytest.approx(1 / 3))
    assert click(rows).predicted == pytest.approx(72 * 0.2, rel=1e-6)
    assert {row.group for row in rows if row.field == "gender"} == {"f", "m"}
    assert click(rows, "gender", "f").slates == 12
    assert click(rows).profiled == 16
    assert sum(report.events for report in reports) == len(traffic())
    assert sum(report.slates for report in reports) == 24
    window = kept.windows["fairness", 60_000]
    assert window.versions == {"current": ["v0", "v1", "v2"]}
    assert click(window.rows) == click(rows)
    assert click(kept.windows[TOTAL, 0].rows) == click(rows)


def test_ndcg_is_taken_over_the_order_as_served(tmp_path):
    shown = [Shown("i0", position=2), Shown("i1", position=0), Shown("i2", position=1)]
    found: list[Event] = []
    for n in range(3):
        found.append(Ranking(id=f"r{n}", timestamp=10, user=f"u{n}", items=shown, version="v"))
        found.append(Interaction(id=f"c{n}", timestamp=20, user=f"u{n}", item="i1", type="click", ranking=f"r{n}"))
    found.append(Interaction(id="end", timestamp=10**6, user="u0", item="i0", type="view"))
    assert click(run(tmp_path, Log(records(found)), Kept())[-1].rows).ndcg == 1.0


def test_records_that_are_no_events_are_passed_over(tmp_path):
    bad = [Record(0, 0, 0, b"", b"{"), Record(0, 1, 0, b"", b'{"event":"item"}')]
    rest = [msgspec.structs.replace(e) for e in traffic()]
    log = Log(bad + [Record(0, n + 2, e.time, b"", events.encode(e)) for n, e in enumerate(rest)])
    assert click(run(tmp_path, log, Kept())[-1].rows).slates == 24


def test_what_is_far_ahead_of_the_time_the_log_took_it_is_passed_over_whenever_it_is_read(tmp_path):
    ahead = round(time.time() * 1000) + 10 * events.FUTURE_MS
    taken = [Record(0, n, ahead, b"", events.encode(Item(id=f"e{n}", timestamp=ahead, item=f"i{n}"))) for n in range(2)]
    early = Record(0, 2, ahead, b"", events.encode(Item(id="e2", timestamp=ahead + events.FUTURE_MS + 1, item="i2")))
    follows = monitor(tmp_path, Log([]), Kept())
    follows.take([*taken, early])
    assert set(follows.joiner.catalogue.rows) == {"i0", "i1"}


def test_killed_at_any_moment_it_ends_with_the_sums_of_an_uninterrupted_run(tmp_path):
    log = records(traffic(slates=6))
    whole = Kept()
    run(tmp_path / "whole", Log(log, batch=7), whole, polls=60)
    for seed in range(15):
        draw = random.Random(seed)
        folder, kept = tmp_path / f"{seed}", Kept()
        for _ in range(4):  # a kill: the monitor is dropped between two polls, having settled or not
            killed = monitor(folder, Log(log), kept)
            at = killed._offsets.get(0, 0)
            for _ in range(draw.randrange(4)):
                few = log[at : at + 7]
                killed.take(few)
                at += len(few)
                killed._log, killed._offsets = "log-1", {0: at}
                if draw.random() < 0.5:
                    killed.settle()
        run(folder, Log(log, batch=7), kept, polls=60)
        assert click(kept.windows[TOTAL, 0].rows) == click(whole.windows[TOTAL, 0].rows)
        assert kept.windows["fairness", 60_000].rows == whole.windows["fairness", 60_000].rows


def test_after_a_restart_it_goes_on_where_its_file_stands(tmp_path):
    log = Log(records(traffic()))
    first = run(tmp_path, log, Kept())[-1]
    again = Log(records(traffic()))
    reports = run(tmp_path, again, Kept())
    assert again.asked == [{0: len(traffic())}]
    assert sum(report.events for report in reports) == 0
    assert click(reports[-1].rows) == click(first.rows)


def test_a_log_made_anew_is_read_from_its_beginning_past_what_was_carried_over(tmp_path):
    run(tmp_path, Log(records(traffic())), Kept())
    fresh = Log(records(traffic(users=3)), name="log-2")
    monitor(tmp_path, fresh, Kept())
    run(tmp_path, fresh, Kept())
    assert fresh.asked == [{0: 0}]
    assert fresh.covered == {"log-1": {0: len(traffic())}}


def test_a_log_that_changes_while_it_is_read_is_read_again_from_its_beginning(tmp_path):
    log = Log(records(traffic()), batch=5)
    stop, polls = threading.Event(), [0]

    def change() -> None:
        polls[0] += 1
        if polls[0] == 3:
            log.name = "log-2"
        if polls[0] == 60:
            stop.set()

    log.then = change
    *_, last = monitor(tmp_path, log, Kept()).run(stop)
    assert log.asked == [{0: 0}, {0: 0}]
    assert log.covered == {"log-1": {0: 10}}
    assert click(last.rows).slates == 24


def test_windows_are_written_when_the_store_is_back(tmp_path):
    kept = Kept()
    kept.away = True
    one = monitor(tmp_path, Log([]), kept, clock=iter([100.0, 200.0, 210.0]).__next__)
    one.take(records(traffic()))
    assert "away" in one.settle()
    one.take([])
    assert "away" in one.settle()
    kept.away = False
    assert one.settle() == ""
    assert {start for name, start in kept.windows if name == "fairness"} == {60_000, 180_000}
    assert click(kept.windows["fairness", 60_000].rows).slates == 24
    assert kept.windows["fairness", 180_000].rows == []


def test_a_log_that_does_not_answer_is_told_of_though_nothing_seems_to_wait(tmp_path):
    log = Log([])
    log.trouble = "event log: away"
    assert {report.trouble for report in run(tmp_path, log, Kept())[:-1]} == {"event log: away"}


def minutes(*starts: float):
    """A clock that is asked once a settling."""
    return iter([60.0 * start for start in starts]).__next__


VERSIONS = ["v0", "v1", "v2", "v3", "v4", "v5"]


def test_a_period_is_judged_once_it_is_over_and_covers_just_what_its_windows_showed(tmp_path):
    kept = Kept()
    one = monitor(tmp_path, Log([]), kept, clock=minutes(1, 2, 7, 8), period_s=300.0)
    one.take(records(traffic(users=40, slates=6)))
    one.settle()
    one.settle()
    assert kept.periods == []
    one.settle()
    (period,) = kept.periods
    assert (period.start, period.end, period.versions) == (60_000, 420_000, {"current": VERSIONS})
    assert period.people == 40
    shown = click(kept.windows["fairness", 60_000].rows, "gender", "f")
    (women,) = [group for group in period.groups if group.group == "f"]
    assert (women.slates, women.people) == (shown.slates, 20)
    assert women.objectives["click"]["rate"].value == pytest.approx(shown.rate, abs=1e-4)
    (people,) = period.inequality
    assert people.cvar10.value is not None
    one.settle()
    assert len(kept.periods) == 1


def test_a_period_waits_for_enough_people_and_goes_round_a_restart(tmp_path):
    kept = Kept()
    one = monitor(tmp_path, Log([]), kept, clock=minutes(1, 10), period_s=300.0)
    half = traffic(users=40)
    for few in (half[:60], half[60:]):
        one.take(records(few))
        one.settle()
    assert kept.periods == []
    again = monitor(tmp_path, Log([]), kept, clock=minutes(11, 12), period_s=300.0)
    again.settle()
    (period,) = kept.periods
    assert (period.start, period.people) == (60_000, 40)
    twin = monitor(tmp_path, Log([]), kept, clock=minutes(12, 13))
    assert twin._period == period


def test_a_forgotten_person_is_dropped_from_join_and_sums(tmp_path):
    one = monitor(tmp_path, Log([]), Kept())
    one.take(records(traffic(users=1, slates=1)[:-2]))
    one.take(records([Forget(id="f", timestamp=10**6, user="u0")]))
    assert len(one.joiner.groups) == 0
    assert one.joiner.pending == 0


def test_a_damaged_file_or_one_for_other_groups_is_refused_with_its_name(tmp_path):
    run(tmp_path, Log(records(traffic())), Kept())
    with pytest.raises(CheckpointError, match="gender"):
        Monitor(Config(objectives=CONFIG.objectives, groups=("age",)), NOWHERE, Kept(), tmp_path)
    (tmp_path / "monitor.msgpack").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"monitor\.msgpack"):
        monitor(tmp_path, Log([]), Kept())


@pytest.mark.integration
def test_it_follows_a_real_log_and_writes_windows_to_a_real_store(tmp_path, address, store: Store):
    writer = Writer(address)
    for event in traffic():
        writer.append(event)
    writer.flush()
    stop, reports = threading.Event(), []
    loop = Monitor(CONFIG, address, store, tmp_path, settle_s=0.2, report_s=0.1)
    deadline = time.monotonic() + 30
    for report in loop.run(stop):
        reports.append(report)
        published = [row.slates for row in report.rows if row.field == "all"]
        if published == [24] or time.monotonic() > deadline:
            stop.set()
    writer.close()
    assert click(reports[-1].rows).slates == 24
    (_, raw), *_ = store.windows(0)
    assert msgspec.json.decode(raw, type=Window).versions
    ((start, raw),) = store.windows(0, name=TOTAL)
    assert start == 0
    assert click(msgspec.json.decode(raw, type=Window).rows).slates == 24
    assert all(a.lag >= 0 for a, _ in pairwise(reports))
