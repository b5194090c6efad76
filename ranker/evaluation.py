"""How good is a ranking? Any event log -> Report, and the promotion gate -> Verdict.

Logs with rankings are evaluated progressively (`ranker/progressive.py`): each slate is scored before it is learned.
Logs without are split (`ranker/heldout.py`): each user's held-out labelled items are ranked.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from ranker import datasets, heldout, progressive
from ranker.config import Config
from ranker.errors import RequestError
from ranker.events import Event, Ranking
from ranker.gate import Gate, Sums, Verdict
from ranker.metrics import Interval
from ranker.report import Report, Row

__all__ = ["Gate", "Report", "Row", "Sums", "Verdict", "evaluate", "evaluate_log"]

Protocol = Literal["auto", "progressive", "time", "user"]
Log = Callable[[], Iterable[Event]]

PROTOCOLS = {
    "progressive": "each slate scored when shown, learned and judged when its waits had passed; first third unmeasured",
    "time": "learned from the first 80 % of the time-ordered labels; each user's later labelled items ranked",
    "user": "learned from the first 80 % of each user's labels; the rest of each user's labelled items ranked",
}


def evaluate(
    paths: Sequence[Path | str],
    config: Config,
    weights: Mapping[str, torch.Tensor] | None = None,
    *,
    seed: int = 0,
    seeds: int = 1,
    protocol: Protocol = "auto",
    passes: int = 4,
    reject: datasets.Reject | None = None,
    progress: Callable[[str], object] | None = None,
) -> Report:
    """Evaluate on event files; see `evaluate_log`."""
    return evaluate_log(
        lambda: datasets.read(paths, reject=reject),
        config,
        weights,
        data=", ".join(Path(path).name for path in paths),
        seed=seed,
        seeds=seeds,
        protocol=protocol,
        passes=passes,
        progress=progress,
    )


def evaluate_log(
    log: Log,
    config: Config,
    weights: Mapping[str, torch.Tensor] | None = None,
    *,
    data: str,
    seed: int = 0,
    seeds: int = 1,
    protocol: Protocol = "auto",
    passes: int = 4,
    progress: Callable[[str], object] | None = None,
) -> Report:
    """Evaluate on any log; without `weights` a model is learned from the log itself.

    Args:
        log: opens the log at its start; called for every pass.
        weights: a version to judge as it is. It should not have learned from this log.
        seed, seeds: the first training seed, and how many; more than one also give their spread.
        protocol: "auto" is progressive where the log has rankings, else "time".
        passes: over the learning part, for the held-out protocols.
        progress: called with a line about what is going on.

    Raises:
        DataError: the log cannot be read, or has nothing to evaluate on.
        RequestError: no seed, or several for a version, which does not learn.
    """
    if seeds < 1:
        raise RequestError("seeds", seeds, "learn with 1 or more")
    if weights is not None and seeds > 1:
        raise RequestError("seeds", seeds, "a version is judged as it is, it does not learn anew")
    began = time.monotonic()
    chosen: Protocol = protocol
    if chosen == "auto":
        chosen = "progressive" if any(isinstance(event, Ranking) for event in islice(log(), 100_000)) else "time"
    rows: Iterator[Row]
    if chosen == "progressive":
        rows = _over_seeds(
            [*progressive.evaluate(config, log, weights, seed=number, progress=progress)]
            for number in range(seed, seed + seeds)
        )
    else:
        rows = heldout.evaluate(
            config, log, weights, split=chosen, passes=passes, seed=seed, seeds=seeds, progress=progress
        )
    notes = [
        "Intervals: 95 %, bootstrap over users; `a - b` is the paired difference.",
        "An item's gain is the utility of its labels (weighted sum of the objectives) where positive.",
    ]
    if seeds > 1:
        notes.append(f"Means over {seeds} training seeds; `sd` is the standard deviation over them, not over users.")
    if weights is not None:
        notes.append("The version is judged as it is; if it learned from this log, its numbers flatter it.")
    return Report(
        data=data,
        protocol=PROTOCOLS[chosen],
        seed=seed,
        rows=tuple(rows),
        notes=tuple(notes),
        seconds=time.monotonic() - began,
    )


def _over_seeds(runs: Iterable[Sequence[Row]]) -> Iterator[Row]:
    """The rows of several seeds as one: means and bounds averaged, and for NDCG how far the seeds lie apart."""
    for same in zip(*runs, strict=True):
        found = heldout.averaged([Interval(row.mean, row.low, row.high, row.n) for row in same])
        yield replace(same[0], mean=found.mean, low=found.low, high=found.high)
        if len(same) > 1 and same[0].metric == "ndcg@10":
            spread = statistics.stdev(row.mean for row in same)
            yield replace(same[0], metric="ndcg@10 sd", mean=spread, low=math.nan, high=math.nan, n=len(same))
