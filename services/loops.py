"""One process of a deployment: a loop, with its metrics announced, its status kept, and a soft end on SIGTERM.

The loops themselves yield reports and know neither Prometheus nor files; here is the edge that passes them on.
"""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event as Flag
from typing import Any

from ranker.config import Config
from ranker.errors import StoreUnavailable
from ranker.fairness import Row
from services import settings as settings_file
from services import status
from services.settings import Settings
from services.supervisor import die_with_parent
from services.telemetry import MonitorTelemetry, ProfilesTelemetry, Telemetry, TrainerTelemetry
from services.tokens import Tokens
from streaming.store import Store

log = logging.getLogger("plurank")
ANNOUNCE_S = 5.0


def run(part: str, path: Path | None, *, child: bool = False, data: str = "", visits: float = 10.0) -> None:
    """Run one part until SIGTERM or Ctrl-C.

    Args:
        child: end when the parent does.
        data, visits: of the audience: where it comes from, and how many visits it pays a second.
    """
    if child:
        die_with_parent()
    stop = Flag()
    stopped_by_signals(stop)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for wordy in ("kafka", "faiss"):
        logging.getLogger(wordy).setLevel(logging.WARNING)
    settings = settings_file.load(path, os.environ)
    if part in PATIENT:
        os.nice(5)
    if part == "service":
        from services import app

        app.run(settings, stop)
    elif part == "audience":
        _audience(settings, stop, data, visits)
    else:
        _PARTS[part](settings, stop)


def stopped_by_signals(stop: Flag) -> None:
    """Let SIGTERM and Ctrl-C set the flag.

    Through a pipe, for a handler runs in the middle of whatever this thread does, and where that is `stop.wait`, or the
    handler of a signal before, `stop.set` would wait for ever for the lock that is held underneath it.
    """
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)

    def set_it() -> None:
        os.read(ours, 1)
        stop.set()

    def tell(*_: object) -> None:
        with contextlib.suppress(BlockingIOError):  # told often enough
            os.write(theirs, b".")

    threading.Thread(target=set_it, name="signals", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, tell)


#: parts that give way to those that people wait for
PATIENT = ("trainer", "monitor")


class Announced:
    """A process's metrics on a port of its own, announced in the store as long as it lives."""

    def __init__(self, telemetry: Telemetry, settings: Settings) -> None:
        port = telemetry.serve(Tokens.open(settings.token_dir)["metrics"], host=settings.telemetry)
        self.telemetry, self._address = telemetry, f"{settings.telemetry}:{port}"
        self._store, self._stop = Store(settings.store), Flag()
        self._thread = threading.Thread(target=self._repeat, name="announce", daemon=True)
        self._thread.start()

    def _repeat(self) -> None:
        while not self._stop.is_set():
            try:
                self._store.register_target(self.telemetry.process, self._address, ttl=3 * ANNOUNCE_S)
            except StoreUnavailable as error:
                log.warning("metrics are not announced: %s", error)
            self._stop.wait(ANNOUNCE_S)

    def close(self) -> None:
        """Withdraw the announcement and stop serving."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(StoreUnavailable):
            self._store.unregister_target(self.telemetry.process, self._address)
        self.telemetry.close()


def _follow(name: str, settings: Settings, reports: Iterable[Any], facts_of: Callable[[Any], dict[str, Any]]) -> None:
    """Keep the status up to date with the reports, once a second or when something is wrong."""
    folder, events, trouble = settings.state_dir / "status", 0, ""
    for report in reports:
        events += getattr(report, "events", 0) or getattr(report, "records", 0)
        said = getattr(report, "trouble", "")
        if said and said != trouble:
            log.warning("%s", said)
        trouble = said
        status.write(folder, name, {"events": events, "trouble": trouble, **facts_of(report)})


def _profiles(settings: Settings, stop: Flag) -> None:
    from streaming.profiles import ProfileReport, Profiles

    telemetry = ProfilesTelemetry()
    announced = Announced(telemetry, settings)

    def facts(report: ProfileReport) -> dict[str, Any]:
        telemetry.folded(
            events=report.events,
            dead=report.rejected,
            lag=report.lag,
            delay_s=report.delay,
            waiting=bool(report.trouble),
        )
        return {"lag": report.lag, "rejected": report.rejected}

    try:
        loop = Profiles(settings.config, settings.log, Store(settings.store))
        _follow("profiles", settings, loop.run(stop), facts)
    finally:
        announced.close()


def _monitor(settings: Settings, stop: Flag) -> None:
    from ranker.registry import Registry
    from streaming.canary import Watch
    from streaming.monitor import Monitor, MonitorReport

    telemetry = MonitorTelemetry(weights={one.name: one.weight for one in settings.config.objectives})
    announced = Announced(telemetry, settings)
    slates = 0

    def facts(report: MonitorReport) -> dict[str, Any]:
        nonlocal slates
        slates += report.slates
        telemetry.monitored(
            report.rows,
            events=report.events,
            lag=report.lag,
            withheld=report.withheld,
            period=report.period,
            waiting=bool(report.trouble),
        )
        return {"lag": report.lag, "slates": slates, "ndcg": ndcg_by_group(report.rows, settings.config)}

    try:
        watch = Watch(settings.config, Registry(settings.registry_dir))
        folder = settings.state_dir / "monitor"
        loop = Monitor(settings.config, settings.log, Store(settings.store), folder, canary=watch)
        _follow("monitor", settings, loop.run(stop), facts)
    finally:
        announced.close()


def ndcg_by_group(rows: Iterable[Row], config: Config) -> dict[str, float]:
    """NDCG@10 of the first objective for each published group of the first group field, "field group" -> value."""
    if not config.groups:
        return {}
    return {
        f"{row.field} {row.group}": row.ndcg
        for row in rows
        if row.field == config.groups[0] and row.objective == config.objectives[0].name and row.ndcg is not None
    }


def _audience(settings: Settings, stop: Flag, data: str, visits: float) -> None:
    from services.audience import Visitors, crowd
    from services.client import Client

    tokens, url = Tokens.open(settings.token_dir), f"http://{settings.host}:{settings.port}"
    clients = Client(url, tokens["rank"]), Client(url, tokens["feedback"])
    people, about = crowd(data)
    visitors = Visitors(people, *clients, about=about, rate=visits)
    told = 0.0
    for diary in visitors.run(stop):
        if (now := time.monotonic()) - told > 0.5:
            told = now
            status.write(settings.state_dir / "status", "audience", diary.facts())
    status.write(settings.state_dir / "status", "audience", visitors.diary.facts())


def _trainer(settings: Settings, stop: Flag) -> None:
    from ranker.registry import Registry
    from streaming.log import Reader
    from streaming.trainer import GROUP, Report, Trainer

    telemetry = TrainerTelemetry()
    announced = Announced(telemetry, settings)
    promoted = judged = 0
    last: Report | None = None

    def facts(report: Report) -> dict[str, Any]:
        nonlocal promoted, judged, last
        for notice in report.notices:
            log.info("%s", notice)
        telemetry.learned(
            events=report.records,
            rows=report.rows,
            nonfinite=report.skipped,
            lag=report.lag,
            loss=report.losses,
            auc=report.served,
            waiting=bool(reader.trouble),
        )
        if report.tastes is not None:
            telemetry.tasted(report.tastes)
        if report.published is not None and report.verdict is not None:
            judged, promoted, last = judged + 1, promoted + report.promoted, report
            telemetry.judged(report.verdict.decision)
            log.info("%s: %s %s", report.published, report.verdict.decision, "; ".join(report.verdict.reasons))
        if report.version is not None and report.promoted:
            telemetry.using(report.version)
        verdict = {} if last is None or last.verdict is None else {"verdict": last.verdict.decision}
        return {
            "lag": report.lag,
            "version": report.version,
            "auc": report.served,
            "auc_learner": report.learner,
            "judged": judged,
            "promoted": promoted,
            "pending": report.pending,
            "replaying": report.replaying,
            **verdict,
        }

    reader = Reader(settings.log, group=GROUP)
    try:
        trainer = Trainer(settings.config, reader, Registry(settings.registry_dir), settings.state_dir / "trainer")
        try:
            _follow("trainer", settings, trainer.run(stop), facts)
        finally:
            trainer.close()
    finally:
        reader.close()
        announced.close()


_PARTS: dict[str, Callable[[Settings, Flag], None]] = {
    "profiles": _profiles,
    "monitor": _monitor,
    "trainer": _trainer,
}
