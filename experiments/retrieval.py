"""A share of the candidates for each interest brings minority interests to the reranker.

A fifth of everybody's interactions, drawn by the seed, is held out; what is learned of the rest retrieves N candidates
that the person has not seen, and recall is the share of her held-out likes among them: of all, and of her least
popular interest, the one with the smallest share of her profile among those that a held-out like has. How much is drawn
by interest is chosen on one half of the people (the same in every seed) and reported on the other.

Arms: `single`, the best by one taste; `interests`, a share by interest, all by that taste; `tastes`, each interest by
the taste of its own acts; `clusters`, a share by each of k clusters of the liked items' base rewards, by the taste of
their acts, as several heads do. `stale-E`: how many of the best N by fresh vectors are found when vectors are as they
were E events earlier, for an index lives longer than a version.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from experiments import report
from experiments.report import Result, Row
from ranker import config as declared
from ranker import datasets
from ranker.average import Average
from ranker.config import Config
from ranker.counters import uncount
from ranker.events import Event, Interaction
from ranker.evidence import Act, Evidence
from ranker.index import Index
from ranker.inference import Inference
from ranker.interests import profile, worth
from ranker.join import Joiner
from ranker.learner import Learner, train
from ranker.retrieval import draw
from ranker.taste import Taste
from services import cli

SUMMARY = "recall of held-out likes among the candidates, overall and for the least popular interest"
#: candidates; MovieLens has 1,682 films, so these are 3 to 12 %
COUNTS = (50, 100, 200)
SHARES = (0.3, 0.5, 0.7, 0.9)
CLUSTERS = (2, 3, 4)
#: events by which vectors are older than the tastes that search them
AGES = (5_000, 20_000, 60_000)
#: people with fewer acts than this have nothing to retrieve by
LEAST = 5
HELD_OUT = 0.2
Log = Callable[[], Iterable[Event]]
Rows = NDArray[np.int64]
Weights = dict[str, torch.Tensor]
#: arm and setting -> the recalls of each person, overall and for her least popular interest
Found = dict[tuple[str, float, int], list[tuple[float, float]]]


class Person(NamedTuple):
    """What is known of one person, and what she will like."""

    evidence: Evidence
    seen: Rows
    likes: Rows
    least: int
    target_C: NDArray[np.float64]


def is_held(event: Event, seed: int) -> bool:
    """Whether an interaction is held out, by a hash of who did it to what."""
    if not isinstance(event, Interaction):
        return False
    return zlib.crc32(f"{seed}\0{event.user}\0{event.item}".encode()) % 1000 < 1000 * HELD_OUT


def learned(config: Config, log: Log, seed: int, passes: int) -> tuple[Weights, dict[int, Weights]]:
    """The weights as `plurank train` would ship them, without counts; and the learner's own, by age in events."""
    learner, average = Learner(config), Average()
    total = sum(not is_held(event, seed) and isinstance(event, Interaction) for event in log())
    kept: dict[int, Weights] = {}
    for number in range(passes):
        uncount(learner.model.state_dict())
        place = 0

        def told(last: bool = number == passes - 1) -> Iterable[Event]:
            nonlocal place
            for event in log():
                if is_held(event, seed):
                    continue
                if isinstance(event, Interaction):
                    place += 1
                    if last and total - place in AGES:
                        kept[total - place] = {n: t.clone() for n, t in learner.weights().items()}
                yield event

        for _ in train(told(), learner, Joiner(config, pairs=True), rows=512):
            if number == passes - 1:
                average.add(learner.model)
    kept[0] = learner.weights()
    weights = average.weights(kept[0])
    uncount(weights)
    return weights, kept


def people(config: Config, log: Log, seed: int) -> tuple[Joiner, list[tuple[str, Person]]]:
    """Everybody with enough acts and a held-out like in one of her interests."""
    joiner = Joiner(config)
    held: dict[str, list[Interaction]] = {}
    seen: dict[str, set[int]] = {}
    for event in log():
        if is_held(event, seed) and isinstance(event, Interaction):
            held.setdefault(event.user, []).append(event)
            continue
        joiner.push(event)
        if isinstance(event, Interaction) and (row := joiner.catalogue.rows.get(event.item)) is not None:
            seen.setdefault(event.user, set()).add(row)
    catalogue, found = joiner.catalogue, []
    interests_NC = catalogue.interests_NC
    for user, later in held.items():
        evidence = joiner.evidence.get(user)
        if evidence is None or len(seen.get(user, ())) < LEAST:
            continue
        likes = [
            row
            for event in later
            if (row := catalogue.rows.get(event.item)) is not None and row not in seen[user]
            if worth(Act(event.item, event.type, event.time, event.value), evidence, config.objectives) > 0
        ]
        rows = np.array(sorted(set(likes)), np.int64)
        target_C = profile(evidence, catalogue, evidence.updated, objectives=config.objectives)
        of_likes = np.flatnonzero((interests_NC[rows] > 0).any(0) & (target_C > 0)) if len(rows) else rows
        if len(of_likes):
            least = int(of_likes[np.argmin(target_C[of_likes])])
            known = np.array(sorted(seen[user]), np.int64)
            found.append((user, Person(evidence, known, rows, least, target_C)))
    return joiner, found


def recalls(
    inference: Inference, joiner: Joiner, person: Person, index: Index
) -> Mapping[tuple[str, float, int], tuple[float, float]]:
    """One person's recalls, by arm, setting and number of candidates."""
    interests_NC, now = joiner.catalogue.interests_NC, person.evidence.updated
    taste = inference.taste(person.evidence, now)
    own = inference.tastes(taste, person.evidence, now, np.flatnonzero(person.target_C))
    query_X = _query(taste.mean_K)
    minor = person.likes[interests_NC[person.likes, person.least] > 0]
    pick = partial(
        draw, index, query_X, interests_NC=interests_NC, members=joiner.catalogue.members, without=person.seen.tolist()
    )
    found: dict[tuple[str, float, int], tuple[float, float]] = {}

    def note(arm: str, setting: float, count: int, rows: Rows) -> None:
        found[arm, setting, count] = (
            float(np.isin(person.likes, rows).mean()),
            float(np.isin(minor, rows).mean()),
        )

    modes = {k: _modes(inference, joiner, person, taste, k) for k in CLUSTERS}
    for count in COUNTS:
        note("single", 0.0, count, pick(count, target_C=person.target_C, share=0.0).rows)
        for share in SHARES:
            note("interests", share, count, pick(count, target_C=person.target_C, share=share).rows)
            tastes = {c: _query(mean_K) for c, mean_K in own.items()}
            note("tastes", share, count, pick(count, target_C=person.target_C, share=share, own=tastes).rows)
        for k, share in product(CLUSTERS, SHARES):
            parts = [(round(share * count * weight), mode_X) for weight, mode_X in modes[k]]
            note("clusters", k + share, count, _by_modes(index, [*parts, (count, query_X)], count, person.seen))
    return found


def _modes(
    inference: Inference, joiner: Joiner, person: Person, taste: Taste, k: int
) -> list[tuple[float, NDArray[np.float32]]]:
    """Share and query of each cluster of what she liked; the acts that like nothing count in each."""
    evidence, objectives = person.evidence, inference.config.objectives
    acts = evidence.history
    liked = [a for a in range(len(acts)) if worth(acts[a], evidence, objectives) > 0]
    rows = joiner.catalogue.find([acts[a].item for a in liked])
    if len(liked) < 2 * k:
        return [(1.0, _query(taste.mean_K))]
    phi_AK, _ = inference.base(rows)
    place_A = KMeans(k, n_init=1, random_state=0).fit_predict(phi_AK)
    found = []
    for mode in range(k):
        out = {liked[n] for n in np.flatnonzero(place_A != mode).tolist()}
        some = replace(evidence, history=tuple(act for a, act in enumerate(acts) if a not in out))
        mean_K = inference.taste(some, evidence.updated).mean_K
        found.append((float((place_A == mode).mean()), _query(mean_K)))
    return found


def _by_modes(index: Index, modes: Sequence[tuple[int, NDArray[np.float32]]], count: int, seen: Rows) -> Rows:
    """So many places for each query in turn, `count` in all."""
    taken, drawn = set(seen.tolist()), list[int]()
    for places, mode_X in modes:
        rows, _ = index.search(mode_X, count + len(taken))
        new = [row for row in rows.tolist() if row not in taken][: min(places, count - len(drawn))]
        drawn += new
        taken.update(new)
    return np.array(drawn, np.int64)


def _query(mean_K: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.append(mean_K, np.float32(1)).astype(np.float32)


def staleness(
    config: Config, joiner: Joiner, known: Sequence[Person], kept: Mapping[int, Weights], count: int
) -> dict[int, float]:
    """By age, the share of the best by fresh vectors that older vectors find for tastes of the fresh weights."""
    indexes = {}
    rows = np.arange(len(joiner.catalogue))
    for age, weights in kept.items():
        inference = Inference(config, weights)
        inference.attach(joiner.catalogue)
        phi_NK, intercept_N = inference.base(rows)
        indexes[age] = Index(np.column_stack([phi_NK, intercept_N]))
        if age == 0:
            fresh = inference
    queries = [_query(fresh.taste(person.evidence, person.evidence.updated).mean_K) for person in known]
    best = [indexes[0].search(query_X, count)[0] for query_X in queries]
    return {
        age: float(np.mean([np.isin(b, index.search(q, count)[0]).mean() for b, q in zip(best, queries, strict=True)]))
        for age, index in indexes.items()
        if age
    }


def one(config: Config, paths: Sequence[Path], seed: int, *, passes: int) -> tuple[Found, Found, dict[int, float]]:
    """One seed: recalls on the people that choose and on those that are reported, and what age costs."""
    torch.set_num_threads(1)
    log = opened(paths)
    config = replace(config, learning=replace(config.learning, seed=seed))
    weights, kept = learned(config, log, seed, passes)
    joiner, known = people(config, log, seed)
    inference = Inference(config, weights)
    inference.attach(joiner.catalogue)
    phi_NK, intercept_N = inference.base(np.arange(len(joiner.catalogue)))
    index = Index(np.column_stack([phi_NK, intercept_N]))
    halves: tuple[Found, Found] = ({}, {})
    for user, person in known:
        for key, pair in recalls(inference, joiner, person, index).items():
            halves[zlib.crc32(user.encode()) % 2].setdefault(key, []).append(pair)
    return *halves, staleness(config, joiner, [person for _, person in known], kept, COUNTS[1])


def opened(paths: Sequence[Path]) -> Log:
    """The log, or MovieLens-100K without one."""
    if paths:
        return lambda: datasets.read(paths)
    movielens = datasets.movielens()
    return movielens.events


def run(
    paths: Sequence[Path] = (),
    *,
    config: Config | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    passes: int = 3,
) -> Result:
    """All seeds, as many at a time as there are processors."""
    if config is None:
        own = Path(__file__).parents[1] / "deploy" / "movielens.toml"
        config = datasets.infer(paths) if paths else declared.load(own)
    done = report.each_seed(partial(one, config, tuple(paths), passes=passes), seeds)
    middle = COUNTS[len(COUNTS) // 2]
    chosen: dict[str, float] = {}
    for arm in ("single", "interests", "tastes", "clusters"):
        quality = {
            setting: float(np.mean([np.mean(choosing[arm, setting, middle]) for choosing, _, _ in done]))
            for setting in sorted({setting for name, setting, _ in done[0][0] if name == arm})
        }
        chosen[arm] = max(quality, key=quality.__getitem__)
    rows: list[Row] = []
    for arm, setting in chosen.items():
        for count, (place, metric) in product(COUNTS, enumerate(("recall", "minority_recall"))):
            means = [np.mean([pair[place] for pair in told[arm, setting, count]]) for _, told, _ in done]
            rows.append(report.over_seeds(arm, f"{metric}@{count}", means))
            if arm != "single":
                gains = [
                    np.mean(
                        [
                            a[place] - b[place]
                            for a, b in zip(told[arm, setting, count], told["single", 0.0, count], strict=True)
                        ]
                    )
                    for _, told, _ in done
                ]
                rows.append(report.over_seeds(f"{arm} - single", f"{metric}@{count}", gains))
        rows.append(report.over_seeds(arm, "setting", [setting]))
    for age in done[0][2]:
        rows.append(report.over_seeds(f"stale-{age}", f"found@{middle}", [stale[age] for *_, stale in done]))
    leads = {row.metric: row for row in rows if row.arm == "tastes - single"}
    return Result(
        name="retrieval",
        data=report.data_name(paths) or "MovieLens-100K",
        seeds=tuple(seeds),
        rows=tuple(rows),
        criterion=f"tastes above single in minority_recall@{middle}, and not below it in recall@{middle}, over seeds",
        holds=leads[f"minority_recall@{middle}"].low > 0 and leads[f"recall@{middle}"].low > -0.005,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    parser = report.arguments("retrieval", SUMMARY, seeds=5)
    parser.add_argument("--passes", type=cli.count, default=3, metavar="N", help="over the learning part (default 3)")
    options = parser.parse_args(arguments)
    config = declared.load(options.config) if options.config else None
    result = run(options.events or (), config=config, seeds=report.seeds_of(options), passes=options.passes)
    report.publish(result, options, draw=lambda row: row.metric != "setting" and " - " not in row.arm)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
