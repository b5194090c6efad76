"""Events a second through profiles and through the trainer, beside a loop that only reads and decodes.

    python -m benchmarks.streaming [--visits 4000] [--ratings 50000] [--runs 3] [--out streaming.json]
    python -m benchmarks.streaming --events FILE... [--config FILE] [--limit 100000]

The loops are the real ones, on the embedded broker and store, each run on an untouched state of its own. Two streams:
`ratings` are MovieLens-100K's, one interaction each; `live` is what `up` writes: the films and people, then slates of
30 to 60 films with what the version predicted (here: made up), and the clicks of an audience (simulated eyes on real
ratings). A slate counts as one event and brings a row for each film. Wall and processor time both, because the
machine may be shared; processor time is that of the loop's process, without the broker's and the store's.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from threading import Event as Flag
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ranker import config as declared
from ranker import datasets, events
from ranker.config import Config
from ranker.datasets import movielens
from ranker.events import Event, Ranking, Shown
from ranker.registry import Registry
from ranker.simulation import Audience, visit
from services.cli import count
from services.embedded import Broker, Valkey
from streaming import log
from streaming.log import Address, Reader, Writer
from streaming.profiles import Profiles
from streaming.store import Store
from streaming.trainer import GROUP, Trainer

MOVIELENS = Path(__file__).parents[1] / "deploy" / "movielens.toml"
#: between two visits, ms; the pace at which `up` lets its audience come
VISIT_MS = 100
#: a run that has not come to the end of its log by then has failed
PATIENCE_S = 300.0


def live(people: Audience, config: Config, visits: int, *, start: int, seed: int = 0) -> Iterator[Event]:
    """Slates in the order they were asked for, with made-up predictions, each followed by its reactions.

    Units: `start` in ms since the epoch; the pace is VISIT_MS.
    """
    draw = np.random.default_rng(seed)
    for number in range(visits):
        found: list[Event] = []
        now = start + number * VISIT_MS

        def rank(user: str, items: Sequence[str], now: int = now, found: list[Event] = found) -> tuple[str, list[str]]:
            chances_NT = draw.uniform(0.02, 0.6, (len(items), len(config.objectives))).tolist()
            shown = [Shown(item, probabilities=row) for item, row in zip(items, chances_NT, strict=True)]
            slate = Ranking(id=f"slate-{now}", timestamp=now, user=user, items=shown, version="v000001-benchmark")
            found.append(slate)
            return slate.id, list(items)

        visit(people, rank, found.append, now=now)
        yield from found


def fill(address: Address, stream: Iterable[Event]) -> dict[int, int]:
    """Write a stream to a new log; returns the end of each partition."""
    log.create(address)
    writer, ends = Writer(address), dict.fromkeys(range(address.partitions), 0)
    try:
        for sent in [writer.append(event) for event in stream]:
            partition, offset = sent.result(PATIENCE_S)
            ends[partition] = max(ends[partition], offset + 1)
    finally:
        writer.close()
    return ends


class Stopwatch:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def rates(self, records: int, rows: int = 0) -> dict[str, float]:
        """Per second what was done since then."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        found = {"events_s": records / wall, "events_cpu_s": records / cpu}
        return found | ({"rows_s": rows / wall, "rows_cpu_s": rows / cpu} if rows else {})


def read(address: Address, ends: dict[int, int]) -> dict[str, float]:
    """The peer: what a loop that only reads and decodes gets out of this log."""
    reader, count = Reader(address), 0
    try:
        watch = Stopwatch()
        while reader.positions() != ends:
            for record in reader.poll(4000, 0.2):
                events.admit(events.decode(record.value))
                count += 1
        return watch.rates(count)
    finally:
        reader.close()


def profiles(config: Config, address: Address, ends: dict[int, int], store: Store) -> dict[str, float]:
    """The profiles loop from its first batch in the store to its last."""
    stop, identity = Flag(), log.identity(address)
    places = list(ends)
    deadline = time.monotonic() + PATIENCE_S
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: deque(Profiles(config, address, store).run(stop), 0))
        watch, first, done = Stopwatch(), 0, 0
        try:
            while done < sum(ends.values()) and not running.done() and time.monotonic() < deadline:
                time.sleep(0.01)
                done = sum(store.resume(identity, places).values())
                if not first and done:
                    watch, first = Stopwatch(), done
            return watch.rates(done - first)
        finally:
            stop.set()
            running.result()


def trainer(config: Config, address: Address, ends: dict[int, int], folder: Path) -> dict[str, float]:
    """The trainer from its first step to its last, with what it publishes meanwhile; then its checkpoint."""
    stop, reader = Flag(), Reader(address, group=GROUP)
    loop = Trainer(config, reader, Registry(folder / "registry"), folder / "state")
    try:
        reports = loop.run(stop)
        while next(reports).published is not None:  # the first weights, served before anything is read
            pass
        watch, records, rows = Stopwatch(), 0, 0
        for report in reports:
            records, rows = records + report.records, rows + report.rows
            if reader.positions() == ends:
                break
        found = watch.rates(records, rows)
        saving = time.perf_counter()
        stop.set()
        deque(reports, 0)
        return found | {"checkpoint_s": time.perf_counter() - saving}
    finally:
        loop.close()
        reader.close()


def median(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each figure over the runs.

    Example:
        >>> median([{"events_s": 3.0}, {"events_s": 1.0}, {"events_s": 2.0}])
        {'events_s': 2.0}
    """
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def bench(streams: dict[str, tuple[Config, Callable[[], Iterable[Event]]]], runs: int, say: Console) -> list[Any]:
    """One row per stream and loop, medians over the runs."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="plurank-benchmark-") as place:
        broker, valkey = Broker(), Valkey()
        try:
            broker.start()
            valkey.start()
            for stream, (config, made) in streams.items():
                address = broker.address(f"benchmark.{stream}")
                ends = fill(address, made())
                found: dict[str, list[dict[str, float]]] = {"read and decode": [], "profiles": [], "trainer": []}
                for run in range(runs):
                    say.print(f"{stream}: {sum(ends.values()):,} events, run {run + 1} of {runs}")
                    store = Store(valkey.url, space=f"{stream}{run}")
                    found["read and decode"].append(read(address, ends))
                    found["profiles"].append(profiles(config, address, ends, store))
                    found["trainer"].append(trainer(config, address, ends, Path(place) / f"{stream}{run}"))
                    store.clear()
                    store.close()
                facts = {"stream": stream, "scale": config.scale, "events": sum(ends.values()), "runs": runs}
                for loop, several in found.items():
                    figures = {name: round(value, 2) for name, value in median(several).items()}
                    rows.append({"arm": loop, **facts, **figures})
        finally:
            broker.stop()
            valkey.stop()
    return rows


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """The table for people."""
    names = ("stream", "events", "events_s", "events_cpu_s", "rows_s", "rows_cpu_s", "checkpoint_s")
    table = Table("arm", *names, title="through the loops (cpu: per second of processor time)")
    for row in rows:
        cells = (row.get(name, "") for name in names)
        table.add_row(row["arm"], *(f"{cell:,.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    console.print(table)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", nargs="+", type=Path, metavar="FILE", help="this log instead of MovieLens")
    parser.add_argument("--config", type=Path, metavar="FILE")
    parser.add_argument("--limit", type=count, default=100_000, help="events taken of --events")
    parser.add_argument("--visits", type=count, default=4000, help="slates of the live stream")
    parser.add_argument("--ratings", type=count, default=50_000, help="events of the ratings stream")
    parser.add_argument("--runs", type=count, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=140, highlight=False)
    streams: dict[str, tuple[Config, Callable[[], Iterable[Event]]]]
    if given.events:
        config = declared.load(given.config) if given.config else datasets.infer(given.events)
        name = given.events[0].name.split(".")[0]
        streams = {name: (config, lambda: islice(datasets.read(given.events), given.limit))}
    else:
        config, data = declared.load(given.config or MOVIELENS), movielens()
        start = int(time.time() * 1000) - given.visits * VISIT_MS
        streams = {
            "ratings": (config, lambda: islice(data.events(), given.ratings)),
            "live": (
                config,
                lambda: chain(
                    islice(data.events(), len(data.films) + len(data.people)),
                    live(Audience(data), config, given.visits, start=start),
                ),
            ),
        }
    rows = bench(streams, given.runs, Console(stderr=True, highlight=False))
    show(rows, console)
    if given.out:
        given.out.write_text(json.dumps({"name": "streaming", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
