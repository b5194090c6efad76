"""What fairness costs the learner: events a second of the plain learner and of the Pareto-fair one, in one run.

    python -m benchmarks.fair [--visits 600] [--ratings 8000] [--runs 3] [--out fair.json]

Both learn the same events in turns, from the same weights, in the steps that the trainer takes: join, score what was
shown, learn. The fair one balances people by gender (all known from the start, so every step is a fair one), takes
comparisons again from its reservoirs and asks two frozen teachers. `ratio` is fair over plain by processor time, of the
medians; wall time stands beside it.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from rich.console import Console
from rich.table import Table

from benchmarks.streaming import MOVIELENS, VISIT_MS, Stopwatch, live
from ranker import config as declared
from ranker.config import Config
from ranker.datasets import movielens
from ranker.events import Event
from ranker.join import Example, Joiner
from ranker.learner import Learner
from ranker.simulation import Audience
from ranker.teachers import Teachers, named
from services.cli import count

#: records and rows of a step, as the trainer's pace has them when it is behind
RECORDS, ROWS = 4000, 2048
FIELD, GROUPS = "gender", ("F", "M")


def learner_of(config: Config, method: str, plain: Learner | None = None) -> Learner:
    """A learner by a method; the fair one has two copies of `plain` as teachers."""
    fairness = structs.replace(config.fairness, method=method, field=FIELD)
    found = Learner(structs.replace(config, fairness=fairness))
    if plain is not None:
        weights = plain.weights()
        found.model.load_state_dict(weights)
        if method == "pareto":
            tensors = {key: value for name in GROUPS for key, value in named(name, weights).items()}
            found.teachers = Teachers(config, tensors)
    return found


def learn(learner: Learner, events: Sequence[Event]) -> dict[str, float]:
    """Events a second through join, score and learn."""
    joiner = Joiner(learner.config, opening=True, pairs=True)
    learner.know(joiner)
    watch = Stopwatch()
    for start in range(0, len(events), RECORDS):
        examples: list[Example] = []
        for event in events[start : start + RECORDS]:
            examples += joiner.push(event)
        learner.foresee([example for example in examples if example.opening], joiner.catalogue)
        some: list[Example] = []
        rows = 0
        for example in examples:
            some.append(example)
            rows += 0 if example.opening or example.closing else len(example.items)
            if rows >= ROWS:
                learner.learn(some, joiner.catalogue)
                some, rows = [], 0
        learner.learn(some, joiner.catalogue)
    return watch.rates(len(events))


def bench(config: Config, streams: dict[str, list[Event]], runs: int, say: Console) -> list[dict[str, Any]]:
    """One row per stream and method, medians over the runs, and the ratio."""
    rows: list[dict[str, Any]] = []
    for stream, events in streams.items():
        plain = learner_of(config, "erm")
        learn(plain, events)  # warm, and the teachers
        found: dict[str, list[dict[str, float]]] = {"erm": [], "pareto": []}
        for run in range(runs):
            for method, several in found.items():
                several.append(learn(learner_of(config, method, plain), events))
                say.print(f"{stream}, run {run + 1} of {runs}: {method} {several[-1]['events_cpu_s']:,.0f} events/s")
        medians = {
            method: {name: statistics.median(one[name] for one in several) for name in several[0]}
            for method, several in found.items()
        }
        for method, figures in medians.items():
            ratio = figures["events_cpu_s"] / medians["erm"]["events_cpu_s"]
            facts = {"arm": method, "stream": stream, "events": len(events), "runs": runs}
            rows.append(
                {**facts, **{name: round(value, 1) for name, value in figures.items()}, "ratio": round(ratio, 3)}
            )
    return rows


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visits", type=count, default=600, help="slates of the live stream")
    parser.add_argument("--ratings", type=count, default=8000, help="events of the ratings stream")
    parser.add_argument("--runs", type=count, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config, data = declared.load(MOVIELENS), movielens()
    known = len(data.films) + len(data.people)
    start = int(time.time() * 1000) - given.visits * VISIT_MS
    visits = live(Audience(data), config, given.visits, start=start)
    streams = {
        "ratings": list(islice(data.events(), known + given.ratings)),
        "live": list(chain(islice(data.events(), known), visits)),
    }
    rows = bench(config, streams, given.runs, Console(stderr=True, highlight=False))
    table = Table("method", "stream", "events", "events_s", "events_cpu_s", "ratio", title="through the learner")
    for row in rows:
        table.add_row(*(str(row[name]) for name in ("arm", "stream", "events", "events_s", "events_cpu_s", "ratio")))
    Console(width=120, highlight=False).print(table)
    if given.out:
        given.out.write_text(json.dumps({"name": "fair", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
