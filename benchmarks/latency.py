"""In-process latency of the whole pipeline, beside the bare matrix products of the same shapes.

    python -m benchmarks.latency [--config deploy/movielens.toml] [--rounds 300] [--out latency.json]

One thread. The catalogue is synthetic (MovieLens-sized), the weights are untrained: neither changes the work done.
`gemm` is what no implementation could go below: the products per candidate and per act, into given memory. `cold` has
128 MiB swept through the caches before each request: what a replica meets that slept a moment on a shared machine.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import structs
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from ranker import config as declared
from ranker import guard
from ranker.calibration import rerank
from ranker.catalogue import Catalogue, Item
from ranker.config import Config, FieldKinds, Guard
from ranker.events import Value
from ranker.evidence import Act, Answer, Evidence
from ranker.features import SIZES
from ranker.inference import Inference
from ranker.inputs import AGES
from ranker.model import Model
from ranker.pipeline import Pipeline, Request, Slate
from services.cli import count

NOW = 1_700_000_000_000
ITEMS, CATEGORIES, HISTORY, ANSWERS = 1682, 18, 100, 20


def synthetic(kinds: FieldKinds, draw: np.random.Generator) -> dict[str, Value]:
    """Plausible fields of the declared kinds: 18 categories of which an item has one to three."""
    made: dict[str, Value] = {}
    for name, kind in kinds.items():
        if kind == "number":
            made[name] = float(draw.integers(1930, 1999))
        elif kind == "text":
            made[name] = " ".join(f"word{n}" for n in draw.integers(0, 3000, 4))
        else:
            found = [f"{name}{n}" for n in draw.choice(CATEGORIES, draw.integers(1, 4), replace=False)]
            made[name] = list(found) if kind == "categories" else found[0]
    return made


def prepare(config: Config) -> tuple[Pipeline, Evidence]:
    """A pipeline over the synthetic catalogue, and a user with a full history."""
    draw = np.random.default_rng(0)
    catalogue = Catalogue(config)
    for n in range(ITEMS):
        catalogue.put(Item(f"i{n}", synthetic(config.fields.item, draw), NOW - 10**9))
    inference = Inference(config, Model(config, torch.Generator().manual_seed(0)).state_dict())
    inference.attach(catalogue)
    kind = config.objectives[0].event
    acts = tuple(Act(f"i{draw.integers(ITEMS)}", kind, NOW - 10**8 + n) for n in range(HISTORY))
    evidence = Evidence(fields=synthetic(config.fields.user, draw), history=acts)
    return Pipeline(config, inference, catalogue, "benchmark"), evidence


def products(config: Config, candidates: int) -> Callable[[int], None]:
    """The matrix products of a request: history encoder, first layer, experts with gates, heads."""
    sizes, objectives = SIZES[config.scale], len(config.objectives)
    acts = min(HISTORY, sizes.acts)
    shapes = [
        (acts, sizes.encoder, 2 * sizes.K),
        (candidates, sizes.K + AGES + 1, sizes.S),
        (candidates, sizes.S, sizes.E * sizes.H + objectives * sizes.E),
        (candidates * sizes.E, sizes.H, objectives),
    ]
    matrices = [(torch.randn(n, k), torch.randn(k, m), torch.empty(n, m)) for n, k, m in shapes]

    def multiply(_: int) -> None:
        for left, right, out in matrices:
            torch.mm(left, right, out=out)

    return multiply


def measure(
    call: Callable[[int], Any], rounds: int, before: Callable[[], Any] = lambda: None
) -> tuple[dict[str, float], list[Any]]:
    """p50 and p99 of the wall time and p50 of the processor's, ms, after a warm-up; and what the calls returned.

    Where the machine is shared, the processor's time is the one that repeats.
    """
    wall, cpu, results = [], [], []
    for n in range(rounds + rounds // 5):
        before()
        start, begun = time.perf_counter(), time.thread_time()
        result = call(n)
        cpu.append((time.thread_time() - begun) * 1000)
        wall.append((time.perf_counter() - start) * 1000)
        results.append(result)
    wall, cpu, results = (found[rounds // 5 :] for found in (wall, cpu, results))
    found = {"p50_ms": np.median(wall), "p99_ms": np.percentile(wall, 99), "cpu_ms": np.median(cpu)}
    return {name: round(float(value), 4) for name, value in found.items()}, results


def bench(config: Config, rounds: int) -> list[dict[str, Any]]:
    """One row per arm."""
    pipeline, evidence = prepare(config)
    draw = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    memory = np.ones(128 * 2**20 // 4, np.float32)

    def sweep() -> None:
        np.add(memory, 1, out=memory)

    states = [("", lambda: None), (", cold", sweep)]
    for candidates in (100, 500):
        with torch.inference_mode():
            floor, _ = measure(products(config, candidates), rounds)
        rows.append({"arm": f"gemm {candidates}", **floor})
        for limit in (config.serving.slate, None):
            names = [[f"i{i}" for i in draw.choice(ITEMS, candidates, replace=False)] for _ in range(2 * rounds)]

            def rank(n: int, limit: int | None = limit, names: list[list[str]] = names) -> Slate:
                return pipeline.rank(Request(user="u", items=names[n], limit=limit, now=NOW, seed=n), evidence)

            for state, before in states if limit else states[:1]:
                spent, slates = measure(rank, rounds, before)
                stages = {
                    s: round(float(np.median([x.timings_ms[s] for x in slates])), 4) for s in slates[0].timings_ms
                }
                ratio = round(spent["cpu_ms"] / floor["cpu_ms"], 2)
                arm = f"rank {candidates}, " + (f"{limit} places" if limit else "all placed") + state
                rows.append({"arm": arm, **spent, "over_gemm": ratio, "stages_ms": stages})
    spent, _ = measure(lambda n: pipeline.rank(Request(user="u", now=NOW, seed=n), evidence), rounds)
    rows.append({"arm": f"recommend {config.serving.slate} of {ITEMS}", **spent})
    pairs = [draw.choice(ITEMS, 2, replace=False) for _ in range(ANSWERS)]
    asked: dict[str, Value] = {"shown_first": "i0", "wording": "rather"}
    answers = tuple(Answer(f"a{n}", f"i{a}", f"i{b}", NOW - n, condition=asked) for n, (a, b) in enumerate(pairs))
    told = structs.replace(evidence, answers=answers)
    spent, _ = measure(lambda _: pipeline.inference.taste(told, NOW), rounds)
    rows.append({"arm": f"taste of {len(evidence.history)} acts and {ANSWERS} answers", **spent})
    interests_NC = np.zeros((500, CATEGORIES), np.float32)
    for line in interests_NC:
        line[draw.choice(CATEGORIES, draw.integers(1, 4), replace=False)] = 1
    interests_NC /= interests_NC.sum(1, keepdims=True)
    utility_N, target_C = draw.random(500).astype(np.float32), draw.dirichlet(np.ones(CATEGORIES))
    spent, _ = measure(lambda _: rerank(utility_N, interests_NC, target_C, slots=20, strength=0.5), rounds)
    rows.append({"arm": "rerank alone: 500 candidates, 20 slots, 18 categories", **spent})
    order_S = rerank(utility_N, interests_NC, target_C, slots=20, strength=0.5)
    judged = guard.Candidates(
        ids=[f"i{n}" for n in range(500)],
        personal_N=utility_N,
        population_N=draw.random(500).astype(np.float32),
        interests_NC=interests_NC,
    )
    for name, policy in (
        ("nothing to do", Guard(gap=1.0, novelty=0.0)),
        ("blends and puts new items in", Guard(gap=0.1, novelty=0.3)),
    ):

        def protect(_: int, policy: Guard = policy) -> guard.Guarded:
            return guard.protect(policy, order_S, utility_N, judged, target_C=target_C, window=20)

        spent, _ = measure(protect, rounds)
        rows.append({"arm": f"guard alone: 500 candidates, 20 places, {name}", **spent})
    return rows


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[1] / "deploy" / "movielens.toml")
    parser.add_argument("--rounds", type=count, default=300)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = declared.load(given.config)
    with threadpool_limits(1):
        rows = bench(config, given.rounds)
    table = Table(title=f"in process, one thread, scale {config.scale}")
    for column in ("arm", "p50 ms", "p99 ms", "cpu ms", "x GEMM", "stages (p50 ms)"):
        table.add_column(column)
    for row in rows:
        stages = ", ".join(f"{stage} {spent:.2f}" for stage, spent in row.get("stages_ms", {}).items())
        ratio = str(row.get("over_gemm", ""))
        times = (f"{row[name]:.3f}" for name in ("p50_ms", "p99_ms", "cpu_ms"))
        table.add_row(row["arm"], *times, ratio, stages)
    Console(width=140).print(table)
    if given.out:
        given.out.write_text(json.dumps({"name": "latency", "scale": config.scale, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
