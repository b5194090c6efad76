"""The calibrated rerank alone: 500 candidates, 20 slots, 18 categories of which an item has one to three.

    python -m benchmarks.calibration [--rounds 500] [--candidates 500] [--out calibration.json]

One thread. `sort` is the peer: the same slate in the order of utility, without any calibration.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks.latency import CATEGORIES, measure
from ranker.calibration import rerank, to_target
from ranker.divergence import DIVERGENCES
from services.cli import count

SLOTS, STRENGTH = 20, 0.3


def bench(rounds: int, candidates: int) -> list[dict[str, Any]]:
    """One row per arm; each round has candidates and a profile of its own."""
    draw = np.random.default_rng(0)
    interests_NC = np.zeros((candidates, CATEGORIES), np.float32)
    for line in interests_NC:
        line[draw.choice(CATEGORIES, draw.integers(1, 4), replace=False)] = 1
    interests_NC /= interests_NC.sum(1, keepdims=True)
    cases = [
        (draw.random(candidates).astype(np.float32), interests_NC[draw.permutation(candidates)], target_C)
        for target_C in draw.dirichlet(np.ones(CATEGORIES), 64)
    ]

    def sort(utility_N: NDArray[np.float32], *_: object) -> NDArray[np.int64]:
        return np.argsort(-utility_N, kind="stable")[:SLOTS]

    calm = partial(rerank, slots=SLOTS, strength=STRENGTH)
    arms: dict[str, Callable[..., Any]] = {
        "sort": sort,
        **{divergence: partial(calm, divergence=divergence) for divergence in DIVERGENCES},
        "kl, floor": partial(calm, floor=True),
        "kl, two pinned": partial(calm, pinned=(7, 3)),
        "kl, half in greedy order": partial(calm, order=0.5),
        "kl, lambda to a target of .05": partial(to_target, slots=SLOTS, target=0.05),
    }

    def one(n: int, arm: Callable[..., Any]) -> Any:
        return arm(*cases[n % len(cases)])

    return [{"arm": name, **measure(partial(one, arm=arm), rounds)[0]} for name, arm in arms.items()]


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=count, default=500)
    parser.add_argument("--candidates", type=count, default=500)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with threadpool_limits(1):
        rows = bench(given.rounds, given.candidates)
    table = Table(title=f"{given.candidates} candidates, {SLOTS} slots, {CATEGORIES} categories, one thread")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=100).print(table)
    if given.out:
        given.out.write_text(json.dumps({"name": "calibration", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
