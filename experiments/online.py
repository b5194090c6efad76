"""Online beats frozen: the fresher the served copy, the better it ranks (Monolith, Liu et al. 2022, section 4).

A log is replayed in event time. One learner learns without pause; copies of it that are refreshed every N seconds
score each slate when it is shown, before anything of it is learned. Clicks arrive at their time, negatives after
their objective's wait. `frozen` stops after the first third, `counter` is a decayed rate per item. AUC is pooled over
all rows of the last two thirds. Rates, waits and half-lives were chosen on the first third only.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from experiments import report
from experiments.report import Result, Row
from ranker import config as configuration
from ranker.config import Config
from ranker.datasets import infer, read
from ranker.errors import DataError, RequestError
from ranker.events import Event, Field, Ranking
from ranker.join import Example, Joiner
from ranker.learner import Learner
from ranker.metrics import auc, resamples

Floats = NDArray[np.float32]
SUMMARY = "served copies refreshed every N seconds of event time, against frozen ones and a decayed counter"
#: seconds of event time between refreshes; the first is also the learner's own step
INTERVALS = (60, 600, 3600, 6 * 3600)
#: thresholds and waits of the usual news signals, where no configuration is given
SIGNALS = {"click": (None, 60.0), "dwell": (30.0, 300.0), "scroll": (80.0, 60.0)}
#: the counter's half-life (s), its prior in impressions, and the rate it starts from
HALF_LIFE, PRIOR, RATE = 4 * 3600.0, 5.0, 0.09
#: the request field that `--slate-size` adds
SIZE = "slate_size"


def settings(paths: Sequence[Path], given: Path | None = None, *, sized: bool = False) -> Config:
    """The configuration named, or the one the log implies with the thresholds of SIGNALS."""
    found = configuration.load(given) if given is not None else infer(paths)
    if sized:
        request = {**found.fields.request, SIZE: "number"}
        found = replace(found, fields=replace(found.fields, request=request))
    if given is not None:
        return found
    objectives = tuple(
        replace(o, threshold=SIGNALS[o.event][0], wait=SIGNALS[o.event][1]) if o.event in SIGNALS else o
        for o in found.objectives
    )
    return replace(found, objectives=objectives)


def ordered(events: Iterable[Event]) -> Iterator[Event]:
    """A log whose rankings are in order, with all its events in order: later ones are held back until their time."""
    held: list[tuple[int, int, Event]] = []
    numbers = count()
    for event in events:
        heapq.heappush(held, (event.time, next(numbers), event))
        while isinstance(event, Ranking) and held[0][0] < event.time:
            yield heapq.heappop(held)[2]
    while held:
        yield heapq.heappop(held)[2]


def with_size(event: Event) -> Event:
    """The event; a ranking says as a request field of how many items it is."""
    if not isinstance(event, Ranking):
        return event
    return replace(event, fields=[*event.fields, Field(SIZE, len(event.items))])


class Counter:
    """A decayed rate per item and objective: what arrives counts at once."""

    def __init__(self, objectives: int) -> None:
        self._sums: defaultdict[str, tuple[float, Floats]] = defaultdict(
            lambda: (0.0, np.zeros((2, objectives), np.float32))
        )

    def rates(self, items: Sequence[str], now: int) -> Floats:
        """Outcomes per impression (N, T)."""
        sums_N2T = np.stack([self._at(item, now) for item in items])
        found: Floats = (sums_N2T[:, 1] + PRIOR * RATE) / (sums_N2T[:, 0] + PRIOR)
        return found

    def add(self, item: str, now: int, *, shown: float = 0.0, worked_T: Floats | float = 0.0) -> None:
        """Count an impression or outcomes."""
        sums_2T = self._at(item, now).copy()
        sums_2T[0] += shown
        sums_2T[1] += worked_T
        self._sums[item] = (float(now), sums_2T)

    def _at(self, item: str, now: int) -> Floats:
        then, sums_2T = self._sums[item]
        return sums_2T * np.float32(0.5 ** ((now - then) / (1000 * HALF_LIFE)))


@dataclass
class Shown:
    """A slate, what each arm said of it, and its labels as they arrive."""

    user: str
    items: tuple[str, ...]
    chances: dict[str, Floats]
    labels_NT: Floats


@dataclass(frozen=True)
class Scored:
    """The measured rows of one replay: users_R, labels_RT, and every arm's chances (R, T)."""

    users_R: NDArray[np.str_]
    labels_RT: Floats
    chances: dict[str, Floats]


def replay(
    config: Config, events: Iterable[Event], *, rankings: int, intervals: Sequence[int] = INTERVALS, before: int = 0
) -> Scored:
    """One seed of all arms.

    Args:
        rankings: how many the log holds; the frozen arm stops after a third of them.
        before: measure the second half of so many first rankings, for choosing settings; 0 measures the last two
            thirds of all.
    """
    joiner = Joiner(config, opening=True, pairs=True)
    learner = Learner(config)
    copies = {f"sync-{n}": Learner(config) for n in intervals[1:]} | {"frozen": Learner(config)}
    unscored: dict[str, list[Example]] = {arm: [] for arm in copies}
    counter = Counter(len(config.objectives))
    slates: dict[str, Shown] = {}
    waiting: list[Example] = []
    tick, opened = 0, 0

    def score(arm: str, scorer: Learner, examples: list[Example]) -> None:
        for start in range(0, len(examples), 256):
            few = examples[start : start + 256]
            for example, chances_NT in zip(few, scorer.predict(few, joiner.catalogue), strict=True):
                slates[example.ranking].chances[arm] = chances_NT

    def refresh(arm: str) -> None:
        """What the copy was asked since its last refresh is scored with what it held, all at once."""
        score(arm, copies[arm], unscored[arm])
        unscored[arm].clear()
        copies[arm].model.load_state_dict(learner.model.state_dict())

    def settle() -> None:
        nonlocal opened
        opening = [example for example in waiting if example.opening]
        score(f"sync-{intervals[0]}", learner, opening)
        for asked in unscored.values():
            asked.extend(opening)
        if waiting:
            learner.learn(waiting, joiner.catalogue)
            waiting.clear()
        earlier, opened = opened, opened + len(opening)
        if earlier < rankings // 3 <= opened:
            refresh("frozen")

    for event in ordered(events):
        now = event.time // (1000 * intervals[0])
        if now > tick:
            settle()
            for n in intervals[1:]:
                if now * intervals[0] // n > tick * intervals[0] // n:
                    refresh(f"sync-{n}")
            tick = now
        waiting.extend(joined := joiner.push(event))
        _observe(joined, counter, slates)
    settle()
    for arm in copies:
        refresh(arm)
    waiting.extend(joined := joiner.flush())
    _observe(joined, counter, slates)
    kept = list(slates.values())[before // 2 : before] if before else list(slates.values())[rankings // 3 :]
    if not kept:
        raise DataError("rankings", len(slates), "name a log with at least three rankings")
    return Scored(
        np.concatenate([[slate.user] * len(slate.items) for slate in kept]),
        np.concatenate([slate.labels_NT for slate in kept]),
        {arm: np.concatenate([slate.chances[arm] for slate in kept]) for arm in kept[0].chances},
    )


def _observe(joined: Sequence[Example], counter: Counter, slates: dict[str, Shown]) -> None:
    """Hand what was joined to the counter and to the slates' labels."""
    for example in joined:
        if example.opening:
            rates_NT = counter.rates(example.items, example.time)
            slates[example.ranking] = Shown(
                example.user, example.items, {"counter": rates_NT}, np.zeros_like(example.labels_NT)
            )
            for item in example.items:
                counter.add(item, example.time, shown=1.0)
        elif example.ranking in slates and not example.closing:
            slate = slates[example.ranking]
            worked_NT = example.labels_NT * example.mask_NT
            for row in np.flatnonzero(worked_NT.any(1)):
                slate.labels_NT[slate.items.index(example.items[row])] += worked_NT[row]
                counter.add(example.items[row], example.time, worked_T=worked_NT[row])


def gain(scored: Scored, arm: str, over: str, *, seed: int = 0, rounds: int = 200) -> Row:
    """AUC of the first objective above another arm's, with an interval from resampling whole users."""
    names, user_R = np.unique(scored.users_R, return_inverse=True)
    labels_R = scored.labels_RT[:, 0] > 0
    arms = [scored.chances[name][:, 0] for name in (arm, over)]

    def apart(weights_R: NDArray[np.float64] | None) -> float:
        one, other = (float(roc_auc_score(labels_R, chances_R, sample_weight=weights_R)) for chances_R in arms)
        return one - other

    draws_BU = resamples(len(names), rounds, np.random.default_rng(seed))
    low, high = np.quantile([apart(counts_U[user_R]) for counts_U in draws_BU], [0.025, 0.975])
    return Row(arm=arm, metric=f"gain over {over}", mean=apart(None), low=float(low), high=float(high), n=len(names))


def one(
    config: Config,
    paths: Sequence[Path],
    seed: int,
    *,
    rankings: int,
    intervals: Sequence[int],
    gains_of: int,
    sized: bool,
) -> tuple[dict[tuple[str, str], float], list[Row]]:
    """One seed: AUC by arm and objective and, for the seed `gains_of`, the gains with their intervals over users."""
    torch.set_num_threads(1)
    config = replace(config, learning=replace(config.learning, seed=seed))
    events = map(with_size, read(paths)) if sized else read(paths)
    scored = replay(config, events, rankings=rankings, intervals=intervals)
    found = {
        (arm, f"auc:{objective.name}"): auc(scored.labels_RT[:, place], chances_RT[:, place])
        for arm, chances_RT in scored.chances.items()
        for place, objective in enumerate(config.objectives)
        if objective.kind == "binary"
    }
    fresh = f"sync-{intervals[0]}"
    return found, [gain(scored, fresh, over, seed=seed) for over in ("counter", "frozen")] if seed == gains_of else []


def run(
    paths: Sequence[Path],
    *,
    config: Config | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    intervals: Sequence[int] = INTERVALS,
    sized: bool = False,
) -> Result:
    """All seeds, as many at a time as there are processors.

    Raises:
        DataError: the log holds no rankings.
    """
    rankings = sum(isinstance(event, Ranking) for event in read(paths))
    if rankings < 3:
        raise DataError(report.data_name(paths), f"{rankings} rankings", "name a log of slates and their feedback")
    config = config or settings(paths, sized=sized)
    single = partial(one, config, paths, rankings=rankings, intervals=intervals, gains_of=seeds[0], sized=sized)
    done = report.each_seed(single, seeds)
    arms = ["frozen", "counter", *(f"sync-{n}" for n in sorted(intervals, reverse=True))]
    metrics = [f"auc:{o.name}" for o in config.objectives if o.kind == "binary"]
    rows = [
        report.over_seeds(arm, metric, [found[arm, metric] for found, _ in done]) for metric in metrics for arm in arms
    ]
    gains = done[0][1]
    first = {row.arm: row for row in rows if row.metric == metrics[0]}
    fresh, stale = first[arms[-1]], first[arms[2]]
    return Result(
        name="online",
        data=report.data_name(paths),
        seeds=tuple(seeds),
        rows=(*rows, *gains),
        criterion=f"{metrics[0]}: {fresh.arm} above {stale.arm} above frozen over seeds, and {fresh.arm} above counter "
        "and frozen over users",
        holds=fresh.low > stale.high and stale.low > first["frozen"].high and all(row.low > 0 for row in gains),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    parser = report.arguments("online", SUMMARY)
    parser.add_argument(
        "--intervals", nargs="+", type=int, default=INTERVALS, metavar="N", help="seconds between refreshes, rising"
    )
    parser.add_argument("--slate-size", action="store_true", help="the request says how many items it asks to rank")
    options = parser.parse_args(arguments)
    if not options.events:
        raise DataError("--events", None, "name an event log with rankings")
    config = settings(options.events, options.config, sized=options.slate_size)
    seeds = report.seeds_of(options)
    intervals = sorted(set(options.intervals))
    if intervals[0] < 1:
        raise RequestError("--intervals", intervals[0], "name whole seconds above 0")
    result = run(options.events, config=config, seeds=seeds, intervals=intervals, sized=options.slate_size)
    report.publish(result, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
