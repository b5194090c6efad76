"""How good is a ranking? Any event log -> Report, and the promotion gate -> Verdict.

Logs with rankings are evaluated progressively (`ranker/progressive.py`): each slate is scored before it is learned.
Logs without are split (`ranker/heldout.py`): each user's held-out labelled items are ranked.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from ranker import datasets, heldout, progressive
from ranker.config import Config
from ranker.events import Event, Ranking
from ranker.gate import Gate, Sums, Verdict
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
    protocol: Protocol = "auto",
    passes: int = 4,
    progress: Callable[[str], object] | None = None,
) -> Report:
    """Evaluate on any log; without `weights` a model is learned from the log itself.

    Args:
        log: opens the log at its start; called for every pass.
        weights: a version to judge as it is. It should not have learned from this log.
        protocol: "auto" is progressive where the log has rankings, else "time".
        passes: over the learning part, for the held-out protocols.
        progress: called with a line about what is going on.

    Raises:
        DataError: the log cannot be read, or has nothing to evaluate on.
    """
    began = time.monotonic()
    chosen: Protocol = protocol
    if chosen == "auto":
        chosen = "progressive" if any(isinstance(event, Ranking) for event in islice(log(), 100_000)) else "time"
    rows: Iterator[Row]
    if chosen == "progressive":
        rows = progressive.evaluate(config, log, weights, seed=seed, progress=progress)
    else:
        rows = heldout.evaluate(config, log, weights, split=chosen, passes=passes, seed=seed, progress=progress)
    notes = [
        "Intervals: 95 %, bootstrap over users; `a - b` is the paired difference.",
        "An item's gain is the utility of its labels (weighted sum of the objectives) where positive.",
    ]
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
