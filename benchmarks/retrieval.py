"""Candidates out of a large catalogue: the index beside brute force, and what a version swap costs.

    python -m benchmarks.retrieval [--items 1000000] [--queries 200] [--no-swap] [--out retrieval.json]

One thread. The catalogue is synthetic and clustered: 30 interests of Zipf popularity, 40 styles in each, an item of one
to three interests lies at their mean plus a style and noise (16 base rewards and an intercept); a person has two to
four interests and the taste of a style in each. Peers in the same run: faiss's flat index, which is exact, and faiss's
own inverted file, reading about as large a share of its lists. `least` is the least popular of a person's interests,
`held` how many of the 500 candidates are in it.
The swap part puts as many items with two categories each through a catalogue and the inference form of a model with
random weights: times and memory do not depend on what was learned.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from ranker import config as declared
from ranker.catalogue import Catalogue, Item
from ranker.clusters import ROUNDS
from ranker.clusters import SAMPLE as LEARNED
from ranker.config import Config, Retrieval
from ranker.epoch import Epoch
from ranker.events import Value
from ranker.evidence import Act, Evidence
from ranker.index import Index
from ranker.inference import Inference
from ranker.model import Model
from ranker.pipeline import Pipeline, Request, warm
from ranker.retrieval import draw
from services.cli import count

COUNT, K, INTERESTS, STYLES = 500, 16, 30, 40
SEEN = 60
NOW = 1_700_000_000_000
#: of its lists that faiss's inverted file reads: about what the index reads
SHARE = 0.07
Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Person:
    """What is wanted: of all, of each interest, and which interest is the least popular."""

    query_X: Floats
    own: dict[int, Floats]
    target_C: NDArray[np.float64]
    least: int
    seen: list[int]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class World:
    """A catalogue's vectors and interests, and the people."""

    lines_NX: Floats
    interests_NC: Floats
    members: list[NDArray[np.int32]]
    people: list[Person]


def world(items: int, people: int, seed: int = 0) -> World:
    """The synthetic catalogue of the docstring above."""
    rng = np.random.default_rng(seed)
    popular_C = 1 / np.arange(1, INTERESTS + 1)
    popular_C /= popular_C.sum()
    centre_CK = rng.normal(size=(INTERESTS, K)).astype(np.float32)
    style_CSK = centre_CK[:, None] + 0.6 * rng.normal(size=(INTERESTS, STYLES, K)).astype(np.float32)
    lines_NX, interests_NC = np.empty((items, K + 1), np.float32), np.zeros((items, INTERESTS), np.float32)
    for start in range(0, items, 100_000):
        rows = np.arange(start, min(items, start + 100_000))
        main_N = rng.choice(INTERESTS, len(rows), p=popular_C)
        others_N2 = rng.choice(INTERESTS, (len(rows), 2), p=popular_C)
        shown_N3 = np.column_stack([main_N, others_N2])
        held_N3 = np.column_stack([np.ones(len(rows), np.bool_), rng.random((len(rows), 2)) < 0.4])
        for place in range(3):
            interests_NC[rows[held_N3[:, place]], shown_N3[held_N3[:, place], place]] = 1
        mean_NK = interests_NC[rows] @ centre_CK / interests_NC[rows].sum(1, keepdims=True)
        style_NK = (style_CSK - centre_CK[:, None])[main_N, rng.integers(STYLES, size=len(rows))]
        lines_NX[rows, :K] = 0.5 * (mean_NK + style_NK + 0.5 * rng.normal(size=(len(rows), K)))
        lines_NX[rows, K] = 0.5 * rng.normal(size=len(rows)) - 1
    interests_NC /= interests_NC.sum(1, keepdims=True)
    found = []
    for _ in range(people):
        some = rng.choice(INTERESTS, rng.integers(2, 5), replace=False, p=popular_C)
        share = rng.dirichlet(np.ones(len(some)))
        wanted_IK = 0.7 * style_CSK[some, rng.integers(STYLES, size=len(some))]
        target_C = np.zeros(INTERESTS)
        target_C[some] = share
        found.append(
            Person(
                query_X=_query(share @ wanted_IK),
                own={int(c): _query(line_K) for c, line_K in zip(some, wanted_IK, strict=True)},
                target_C=target_C,
                least=int(some.max()),
                seen=rng.integers(items, size=SEEN).tolist(),
            )
        )
    members = [np.flatnonzero(interests_NC[:, c]).astype(np.int32) for c in range(INTERESTS)]
    return World(lines_NX=lines_NX, interests_NC=interests_NC, members=members, people=found)


def _query(line_K: NDArray[np.floating]) -> Floats:
    return np.append(line_K, 1).astype(np.float32)


def timed(call: Callable[[Person], Rows], people: Sequence[Person]) -> tuple[dict[str, float], list[Rows]]:
    """p50 and p99 of the wall time and p50 of the processor's, ms, after a warm-up; and what was found."""
    wall, cpu, found = [], [], []
    for person in people[: len(people) // 10]:
        call(person)
    for person in people:
        start, begun = time.perf_counter(), time.thread_time()
        found.append(call(person))
        cpu.append((time.thread_time() - begun) * 1000)
        wall.append((time.perf_counter() - start) * 1000)
    times = {"p50_ms": np.median(wall), "p99_ms": np.percentile(wall, 99), "cpu_ms": np.median(cpu)}
    return {name: round(float(value), 3) for name, value in times.items()}, found


def against(exact: Sequence[Rows], found: Sequence[Rows], known: World) -> dict[str, float]:
    """Recall of the exact answer, overall and of its items in the least popular interest, and how many are held."""
    overall, least, held = [], [], []
    for person, wanted, got in zip(known.people, exact, found, strict=True):
        own = wanted[known.interests_NC[wanted, person.least] > 0]
        overall.append(np.isin(wanted, got).mean())
        if len(own):
            least.append(np.isin(own, got).mean())
        held.append((known.interests_NC[got, person.least] > 0).sum())
    shares = {"recall@500": np.mean(overall), "recall_least": np.mean(least), "held": np.mean(held)}
    return {name: round(float(value), 4) for name, value in shares.items()}


def once(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and what it gave."""
    start = time.perf_counter()
    result = call()
    return round(time.perf_counter() - start, 4), result


def peers(known: World) -> tuple[list[dict[str, Any]], list[Rows]]:
    """Rows of faiss's flat index and its inverted file, and the exact answers."""
    lines_NX, flat = known.lines_NX, faiss.IndexFlatIP(K + 1)
    build_s, _ = once(lambda: flat.add(lines_NX))
    spent, exact = timed(lambda p: flat.search(p.query_X[None], COUNT)[1][0], known.people)
    row = {"arm": "faiss flat", **spent, **against(exact, exact, known), "build_s": build_s}
    lists = round(2 * len(lines_NX) ** 0.5)
    quantiser = faiss.IndexFlatIP(K + 1)
    inverted = faiss.IndexIVFFlat(quantiser, K + 1, lists, faiss.METRIC_INNER_PRODUCT)
    inverted.nprobe = max(1, round(SHARE * lists))
    inverted.cp.niter, inverted.cp.max_points_per_centroid = ROUNDS, LEARNED

    def learn() -> None:
        inverted.train(lines_NX)
        inverted.add(lines_NX)

    learn_s, _ = once(learn)
    spent, found = timed(lambda p: inverted.search(p.query_X[None], COUNT)[1][0], known.people)
    other = {"arm": "faiss inverted file", **spent, **against(exact, found, known), "build_s": learn_s}
    return [{**row, "mb": _mb(lines_NX)}, other], exact


def searching(known: World) -> list[dict[str, Any]]:
    """Rows of the index and its peers."""
    lines_NX, people = known.lines_NX, known.people
    rows, exact = peers(known)
    build_s, index = once(lambda: Index(lines_NX))
    spent, found = timed(lambda p: index.search(p.query_X, COUNT)[0], people)
    size = round(index.nbytes / 2**20, 1)
    rows.append({"arm": "index", **spent, **against(exact, found, known), "build_s": build_s, "mb": size})

    def by_interest(index: Index, share: float) -> Callable[[Person], Rows]:
        return lambda p: (
            draw(
                index,
                p.query_X,
                COUNT,
                interests_NC=known.interests_NC,
                target_C=p.target_C,
                share=share,
                own=p.own,
                members=known.members.__getitem__,
                without=p.seen,
            ).rows
        )

    share = Retrieval().share
    few, whole = people[:: max(1, len(people) // 50)], Index(lines_NX, flat=len(lines_NX))
    spent, found = timed(by_interest(index, share), people)
    some = World(lines_NX=lines_NX, interests_NC=known.interests_NC, members=known.members, people=few)
    flat_spent, exact_few = timed(by_interest(whole, share), few)
    found_few = [got for person, got in zip(people, found, strict=True) if any(person is one for one in few)]
    rows.append({"arm": f"by interest, share {share:g}, one list", **flat_spent, **against(exact_few, exact_few, some)})
    rows.append({"arm": f"by interest, share {share:g}", **spent, **against(exact_few, found_few, some)})
    rows += filtered(known, index)
    rows += changing(known, index)
    return rows


def filtered(known: World, index: Index) -> list[dict[str, Any]]:
    """Searches among a part of the items, the making of the filter included."""
    rows: list[dict[str, Any]] = []
    fresh_N = np.random.default_rng(3).random(len(known.lines_NX))
    few = known.people[:: max(1, len(known.people) // 50)]
    some = World(lines_NX=known.lines_NX, interests_NC=known.interests_NC, members=known.members, people=few)
    filters: dict[str, Callable[[Person], NDArray[np.bool_]]] = {
        "one category": lambda p: known.interests_NC[:, p.least] > 0,
        "the freshest tenth": lambda _: fresh_N > 0.9,
        "the freshest thousandth": lambda _: fresh_N > 0.999,
    }
    for arm, allowed in filters.items():

        def found_in(p: Person, exact: bool, allowed: Callable[[Person], NDArray[np.bool_]] = allowed) -> Rows:
            return index.search(p.query_X, COUNT, among=allowed(p), exact=exact)[0]

        exact = [found_in(p, True) for p in few]
        spent, found = timed(lambda p, search=found_in: search(p, False), few)  # type: ignore[misc]
        rows.append({"arm": f"index, {arm}", **spent, **against(exact, found, some)})
    return rows


def changing(known: World, index: Index) -> list[dict[str, Any]]:
    """What it costs to add and to remove; and a search beside what was put."""
    rng, size = np.random.default_rng(1), len(known.lines_NX)
    rows: list[dict[str, Any]] = []
    changed = index
    for many in (1, 1000):
        new = rng.normal(size=(many, K + 1)).astype(np.float32)
        changes: dict[str, Callable[[Index, int], Index]] = {
            "add": lambda i, n: i.put(np.arange(size, size + n), new[:n]),  # noqa: B023
            "replace": lambda i, n: i.put(rng.choice(size, n, replace=False), new[:n]),  # noqa: B023
            "remove": lambda i, n: i.remove(rng.choice(size, n, replace=False)),
        }
        for name, change in changes.items():
            wall_ms = []
            for _ in range(20):
                start = time.perf_counter()
                later = change(index, many)
                wall_ms.append((time.perf_counter() - start) * 1000)
            changed = change(changed, many)
            times = {"p50_ms": np.median(wall_ms), "p99_ms": np.percentile(wall_ms, 99)}
            rows.append({"arm": f"{name} {many:,}", **{key: round(float(value), 3) for key, value in times.items()}})
            assert len(later) >= size - many
    held = changed.rows
    exact = Index(changed.vectors(held), held, flat=len(held))
    wanted = [exact.search(p.query_X, COUNT)[0] for p in known.people]
    spent, found = timed(lambda p: changed.search(p.query_X, COUNT)[0], known.people)
    shares = [np.isin(w, got).mean() for w, got in zip(wanted, found, strict=True)]
    rows.append({"arm": "index after these", **spent, "recall@500": round(float(np.mean(shares)), 4)})
    build_s, _ = once(changed.rebuilt)
    return [*rows, {"arm": "built anew", "build_s": build_s}]


def swapping(items: int, config: Config) -> list[dict[str, Any]]:
    """What a new version costs beside a catalogue of so many items, and a request there."""
    rng, catalogue = np.random.default_rng(0), Catalogue(config)
    popular_C = 1 / np.arange(1, INTERESTS + 1)
    pairs: list[dict[str, Value]] = [
        {"genres": [f"g{c}" for c in pair]} for pair in rng.choice(INTERESTS, (5000, 2), p=popular_C / popular_C.sum())
    ]
    before = _rss()
    for n in range(items):
        catalogue.put(Item(f"i{n}", pairs[n % len(pairs)], NOW - n))
    gc.freeze()
    rows: list[dict[str, Any]] = [{"arm": "items in the catalogue", "rss_mb": _rss() - before}]

    def weights(seed: int) -> dict[str, torch.Tensor]:
        made = Model(config, torch.Generator().manual_seed(0)).state_dict()
        table_VD, moved = made["table_VD"], torch.Generator().manual_seed(seed)
        made["table_VD"] = 0.3 * torch.randn(table_VD.shape, generator=torch.Generator().manual_seed(0))
        made["table_VD"] += 0.01 * torch.randn(table_VD.shape, generator=moved)
        return made

    def step(arm: str, make: Callable[[], Inference]) -> Inference:
        start, held = time.perf_counter(), _rss()
        inference = make()
        inference.attach(catalogue)
        attach_s = round(time.perf_counter() - start, 3)
        build_s, _ = once(inference.epoch.wait)
        rows.append({"arm": arm, "attach_s": attach_s, "build_s": build_s, "rss_mb": _rss() - held})
        return inference

    first = step("first version, fields encoded", lambda: Inference(config, weights(1), epoch=Epoch("v1")))
    kept: dict[str, Any] = {"encoder": first.encoder, "vocabulary": first.vocabulary}
    later = step("next version of the epoch", lambda: Inference(config, weights(2), epoch=first.epoch, **kept))
    evidence = Evidence(history=tuple(Act(f"i{rng.integers(items)}", "click", NOW + n) for n in range(SEEN)))
    pipeline = Pipeline(config, later, catalogue, "v2")
    warm()
    wall: list[float] = []
    cpu: list[float] = []
    inside: list[dict[str, float]] = []
    for n in range(120):
        start, begun = time.perf_counter(), time.thread_time()
        slate = pipeline.rank(Request(user="u", now=NOW + 10**6, seed=n), evidence)
        cpu.append((time.thread_time() - begun) * 1000)
        wall.append((time.perf_counter() - start) * 1000)
        inside.append(slate.timings_ms)
    stages = {stage: round(float(np.median([one[stage] for one in inside])), 3) for stage in inside[0]}
    row: dict[str, Any] = {"arm": "recommend 20", "p50_ms": round(float(np.median(wall[20:])), 3)}
    row["p99_ms"], row["cpu_ms"] = (round(float(value), 3) for value in (np.percentile(wall, 99), np.median(cpu)))
    rows.append({**row, "stages_ms": stages})
    catalogue.put(Item("new", pairs[0], NOW))
    new_s, _ = once(lambda: later.attach(catalogue))
    rows.append({"arm": "one new item", "attach_s": new_s})
    step(
        "first version of an epoch",
        lambda: Inference(config, weights(3), epoch=Epoch("v3", before=first.epoch), **kept),
    )
    step("without epochs, every item kept", lambda: Inference(config, weights(4), cached=10**9, **kept))
    return rows


def _mb(array: NDArray[Any]) -> float:
    return round(array.nbytes / 2**20, 1)


def _rss() -> float:
    """Resident memory in MB."""
    return round(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20, 0)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=count, default=1_000_000)
    parser.add_argument("--queries", type=count, default=200)
    parser.add_argument("--config", type=Path, default=Path(__file__).parents[1] / "deploy" / "movielens.toml")
    parser.add_argument("--no-swap", action="store_true", help="the index alone")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        rows = searching(world(given.items, given.queries))
        gc.collect()
        if not given.no_swap:
            rows += swapping(given.items, declared.load(given.config))
    names = list(dict.fromkeys(name for row in rows for name in row if name != "stages_ms"))
    table = Table(*names, title=f"{given.items:,} items, one thread")
    for row in rows:
        table.add_row(*(str(row.get(name, "")) for name in names))
    Console(width=160).print(table)
    if given.out:
        given.out.write_text(json.dumps({"name": "retrieval", "items": given.items, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
