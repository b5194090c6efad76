"""Held-out evaluation of logs without rankings: learn from a part, rank each user's held-out labelled items.

Two splits. `time`: everything before one moment is for learning, as a service would have known it; few users have
both history and held-out items, and they are told apart from those who are new (warm, cold). `user`: the last share
of each user's own interactions is held out; all users are warm, at the price that others' later ratings are learned.

Axes: N items, T objectives, U users.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray

from ranker import metrics
from ranker.average import Average
from ranker.baselines import Ease, Triples, mean_utility, popularity
from ranker.catalogue import Catalogue
from ranker.config import Config
from ranker.counters import uncount
from ranker.errors import DataError
from ranker.events import Event, Interaction, Item, User
from ranker.evidence import EMPTY, Evidence
from ranker.gate import utility
from ranker.inference import Inference
from ranker.join import Joiner
from ranker.learner import Learner, train
from ranker.report import Row

Log = Callable[[], Iterable[Event]]
"""The log from its start; called once for each pass."""
Split = Literal["time", "user"]
Floats = NDArray[np.float64]
Weights = Mapping[str, torch.Tensor]
RIDGES = (20.0, 100.0, 300.0, 1000.0)


class Splitter:
    """Says which interactions are held out; a fresh `mark` is needed for each pass over the log."""

    def __init__(self, log: Log, split: Split, share: float) -> None:
        self.split = split
        times = array("q")
        self._counts: Counter[str] = Counter()
        for event in log():
            if isinstance(event, Interaction):
                times.append(event.time)
                self._counts[event.user] += 1
        if not times:
            raise DataError("the log", "no interaction", "name a log that holds interaction events")
        self.cut = int(np.quantile(np.frombuffer(times, np.int64), 1 - share, method="higher"))
        self._share = share

    def mark(self) -> Callable[[Event], bool]:
        """A function that tells held-out events in one pass; item and user events never are."""
        if self.split == "time":
            return lambda event: event.time >= self.cut and not isinstance(event, Item | User)
        place: Counter[str] = Counter()

        def held(event: Event) -> bool:
            if not isinstance(event, Interaction):
                return False
            place[event.user] += 1
            return place[event.user] > self._counts[event.user] * (1 - self._share)

        return held


@dataclass(frozen=True, kw_only=True)
class Case:
    """One user's held-out items, with what was known of her before."""

    user: str
    evidence: Evidence
    now: int
    items: tuple[str, ...]
    labels_NT: NDArray[np.float32]
    mask_NT: NDArray[np.float32]

    @property
    def warm(self) -> bool:
        """Whether she has history in the learning part."""
        return bool(self.evidence.history)


def single(config: Config) -> tuple[Config, int]:
    """The configuration of the single-task model without a tower, and which objective it keeps: the first liked one."""
    places = [p for p, o in enumerate(config.objectives) if o.kind == "binary" and o.weight > 0] or [0]
    chosen = structs.replace(config.objectives[places[0]], biased=False)
    return structs.replace(config, objectives=(chosen,)), places[0]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A log, split: cases to rank, and the triples of the learning part with their codes."""

    cases: list[Case]
    seen: Triples
    users: dict[str, int]
    items: dict[str, int]
    catalogue: Catalogue


def divide(config: Config, log: Log, splitter: Splitter) -> Parts:
    """Join the log once without learning: the learning part's triples, then the held-out cases."""
    held, joiner = splitter.mark(), Joiner(config)
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    triples: dict[tuple[int, int], float] = {}
    for event in log():
        if held(event):
            continue
        for example in joiner.push(event):
            code = users.setdefault(example.user, len(users))
            gains_N = utility(config, example.labels_NT * example.mask_NT)
            for item, gain in zip(example.items, gains_N, strict=True):
                triples[code, items.setdefault(item, len(items))] = float(gain)
    keys = np.array(list(triples), np.int64).reshape(-1, 2)
    seen = Triples(
        users_N=keys[:, 0],
        items_N=keys[:, 1],
        utility_N=np.fromiter(triples.values(), np.float64, len(triples)),
        users=len(users),
        items=len(items),
    )
    before = dict(joiner.evidence)
    found: dict[str, dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]] = {}
    first: dict[str, int] = {}
    held = splitter.mark()
    for event in log():
        for example in joiner.push(event) if held(event) else ():
            first.setdefault(example.user, example.time)
            labelled = found.setdefault(example.user, {})
            for place, item in enumerate(example.items):
                labels, mask = labelled.get(item, (0, 0))
                now_known = example.mask_NT[place] > 0
                labelled[item] = (np.where(now_known, example.labels_NT[place], labels), np.maximum(mask, now_known))
    cases = [
        Case(
            user=user,
            evidence=before.get(user, EMPTY),
            now=splitter.cut if splitter.split == "time" else first[user],
            items=tuple(labelled),
            labels_NT=np.array([labels for labels, _ in labelled.values()], np.float32),
            mask_NT=np.array([mask for _, mask in labelled.values()], np.float32),
        )
        for user, labelled in found.items()
        if len(labelled) > 1
    ]
    return Parts(cases=cases, seen=seen, users=users, items=items, catalogue=joiner.catalogue)


Scorer = Callable[[Case], tuple[Floats, Floats | None]]
"""(case) -> utility (N,) to rank by, and chances (N, T) where the arm has one per objective (nan: not that one)."""


def by_item(parts: Parts, scores_I: Floats) -> Scorer:
    """An arm whose score is the item's alone; items never seen get the lowest."""
    lowest = float(scores_I.min()) if len(scores_I) else 0.0

    def score(case: Case) -> tuple[Floats, None]:
        codes = [parts.items.get(item, -1) for item in case.items]
        return np.array([scores_I[code] if code >= 0 else lowest for code in codes]), None

    return score


def by_ease(parts: Parts, ease: Ease) -> Scorer:
    """An arm of EASE's scores; items never seen get 0, or the overall mean where scores are centred."""

    def score(case: Case) -> tuple[Floats, None]:
        scores_I = ease.scores(parts.users.get(case.user, -1))
        rest = float(ease.base_I.mean()) if len(ease.base_I) else 0.0
        codes = [parts.items.get(item, -1) for item in case.items]
        return np.array([scores_I[code] if code >= 0 else rest for code in codes]), None

    return score


def by_model(config: Config, weights: Weights, catalogue: Catalogue, objectives: Sequence[int]) -> Scorer:
    """An arm of the served form of a model: tower-free chances, utility as it is served.

    Args:
        objectives: which of the log's objectives the model's own are, in order.
    """
    inference = Inference(config, weights)
    inference.attach(catalogue)

    def score(case: Case) -> tuple[Floats, Floats]:
        taste = inference.taste(case.evidence, case.now)
        scores = inference.score(
            taste, user=case.evidence.fields, request={}, rows=catalogue.find(case.items), now=case.now
        )
        chances_NT = np.full(case.labels_NT.shape, np.nan)
        chances_NT[:, list(objectives)] = scores.probabilities_NT
        preferred_N = inference.preferred(taste, scores.utility_N)
        return utility(config, scores.probabilities_NT) + config.preference.weight * preferred_N, chances_NT

    return score


def ridge(config: Config, parts: Parts, *, centred: bool) -> float:
    """EASE's ridge, chosen on the last tenth of each warm user's learning part; never on the held-out one."""
    seen = parts.seen
    order = np.arange(len(seen.users_N))
    rank_N = np.zeros(len(order))
    counts = np.bincount(seen.users_N, minlength=seen.users)
    by_user = np.lexsort((order, seen.users_N))
    rank_N[by_user] = order - np.repeat(np.cumsum(counts) - counts, counts)
    held_N = rank_N >= 0.9 * counts[seen.users_N]
    kept = replace(
        seen, users_N=seen.users_N[~held_N], items_N=seen.items_N[~held_N], utility_N=seen.utility_N[~held_N]
    )
    rows: dict[int, list[int]] = {}
    for row in np.flatnonzero(held_N).tolist():
        rows.setdefault(int(seen.users_N[row]), []).append(row)

    def quality(l2: float) -> float:
        ease = Ease(kept, l2=l2, centred=centred)
        found = [
            metrics.ndcg(np.clip(seen.utility_N[own], 0, None), ease.scores(user)[seen.items_N[own]])
            for user, own in rows.items()
            if len(own) > 1
        ]
        return float(np.nanmean(found)) if found and not np.isnan(found).all() else 0.0

    return max(RIDGES, key=quality)


def compare(config: Config, cases: Sequence[Case], arms: Mapping[str, Sequence[Scorer]], *, seed: int) -> Iterator[Row]:
    """NDCG@10 and AUC per objective of each arm, by part (warm, cold), and the first arm's lead over each other.

    The gain of an item is the utility of its labels where positive. A baseline's one score stands for each
    objective, turned round for objectives that count against an item.

    Args:
        arms: one scorer for each training seed. A user's NDCG is the mean over them; `ndcg@10 sd` is how far the
            means over users lie apart from seed to seed, for a lead with both arms of the same seed.
        seed: of the bootstrap.
    """
    scored = {arm: [[score(case) for case in cases] for score in scorers] for arm, scorers in arms.items()}
    first = next(iter(arms))
    for part in ("warm", "cold"):
        chosen = [place for place, case in enumerate(cases) if case.warm == (part == "warm")]
        if not chosen:
            continue
        users_N = np.concatenate([np.full(len(cases[place].items), place) for place in chosen])
        labels_NT = np.concatenate([cases[place].labels_NT for place in chosen])
        mask_NT = np.concatenate([cases[place].mask_NT for place in chosen]) > 0
        orders: dict[str, Floats] = {}
        for arm, runs in scored.items():
            orders[arm] = np.array(
                [[_order(config, cases[place], found[place][0]) for place in chosen] for found in runs]
            )
            yield from _ordered(arm, part, orders[arm], seed)
            for place, objective in enumerate(config.objectives):
                if objective.kind != "binary":
                    continue
                known_N = mask_NT[:, place]
                intervals = []
                for found in runs:
                    columns = [_column(*found[own], place, objective.weight) for own in chosen]
                    score_N = np.concatenate(columns)
                    if np.isnan(score_N).any():
                        break
                    intervals.append(
                        metrics.auc_interval(
                            labels_NT[known_N, place], score_N[known_N], users_N[known_N], generator=_generator(seed)
                        )
                    )
                else:
                    yield _row(arm, f"auc:{objective.name}", part, averaged(intervals))
        for arm in list(arms)[1:]:
            yield from _ordered(f"{first} - {arm}", part, orders[first] - orders[arm], seed)


def averaged(found: Sequence[metrics.Interval]) -> metrics.Interval:
    """Means and bounds averaged over seeds; a little wider than the interval of the mean over seeds would be."""
    mean, low, high = (float(np.mean([getattr(one, name) for one in found])) for name in ("mean", "low", "high"))
    return metrics.Interval(mean, low, high, found[0].n)


def _ordered(arm: str, part: str, order_SU: Floats, seed: int) -> Iterator[Row]:
    """The mean over users with its interval, and the spread of that mean over S seeds where there are several."""
    yield _row(arm, "ndcg@10", part, metrics.mean_interval(order_SU.mean(0), generator=_generator(seed)))
    if len(order_SU) > 1:
        known_SU = order_SU[:, ~np.isnan(order_SU).any(0)]
        spread = float(known_SU.mean(1).std(ddof=1)) if known_SU.size else float("nan")
        yield _row(arm, "ndcg@10 sd", part, metrics.Interval(spread, float("nan"), float("nan"), len(order_SU)))


def _order(config: Config, case: Case, score_N: Floats) -> float:
    return metrics.ndcg(np.clip(utility(config, case.labels_NT * case.mask_NT), 0, None), score_N)


def _column(score_N: Floats, chances_NT: Floats | None, objective: int, weight: float) -> Floats:
    return np.sign(weight or 1.0) * score_N if chances_NT is None else chances_NT[:, objective]


def _row(arm: str, metric: str, part: str, found: metrics.Interval) -> Row:
    return Row(arm=arm, metric=metric, part=part, mean=found.mean, low=found.low, high=found.high, n=found.n)


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def evaluate(
    config: Config,
    log: Log,
    weights: Weights | None = None,
    *,
    split: Split = "time",
    share: float = 0.2,
    passes: int = 4,
    rows: int = 512,
    seed: int = 0,
    seeds: int = 1,
    progress: Callable[[str], object] | None = None,
) -> Iterator[Row]:
    """The rows of a held-out comparison; without `weights`, the full and the single-task model are learned first.

    Args:
        seed, seeds: the first training seed, and how many; each learns both models anew.
    """
    say = progress or (lambda _: None)
    splitter = Splitter(log, split, share)
    say("splitting the log")
    parts = divide(config, log, splitter)
    if not parts.cases:
        raise DataError("the log", "no user with two held-out labelled items", "name a longer log, or a larger share")
    arms: dict[str, list[Scorer]] = {}
    everything: Sequence[int] = range(len(config.objectives))
    if weights is not None:
        shipped = {name: tensor.clone() for name, tensor in weights.items()}
        if split == "user":
            uncount(shipped)
        arms["version"] = [by_model(config, shipped, parts.catalogue, everything)]
    else:
        alone, objective = single(config)
        for arm, shape, kept in (("full", config, everything), ("single-task", alone, [objective])):
            for number in range(seed, seed + seeds):
                own = structs.replace(shape, learning=structs.replace(shape.learning, seed=number))
                named = f"{arm}, seed {number}" if seeds > 1 else arm
                shipped = learned(own, log, splitter, passes=passes, rows=rows, say=say, name=named)
                if split == "user":
                    # asked at each user's own time; counts as of the log's end would tell her the future
                    uncount(shipped)
                arms.setdefault(arm, []).append(by_model(own, shipped, parts.catalogue, kept))
    say("baselines")
    arms["popularity"] = [by_item(parts, popularity(parts.seen))]
    arms["mean-utility"] = [by_item(parts, mean_utility(parts.seen))]
    for name, centred in (("ease", False), ("ease-centred", True)):
        arms[name] = [by_ease(parts, Ease(parts.seen, l2=ridge(config, parts, centred=centred), centred=centred))]
    say("scoring")
    yield from compare(config, parts.cases, arms, seed=seed)


def learned(
    config: Config,
    log: Log,
    splitter: Splitter,
    *,
    passes: int,
    rows: int = 512,
    say: Callable[[str], object] = lambda _: None,
    name: str = "full",
) -> dict[str, torch.Tensor]:
    """What a model that went through the learning part so many times would ship.

    As in `plurank train`: no pass finds the counts of the one before, and of several the last one is averaged.
    """
    learner, average = Learner(config), Average()
    for number in range(passes):
        say(f"{name}: pass {number + 1} of {passes}")
        uncount(learner.model.state_dict())
        held = splitter.mark()
        for _ in train((event for event in log() if not held(event)), learner, Joiner(config, pairs=True), rows=rows):
            if 0 < number == passes - 1:
                average.add(learner.model)
    return average.weights(learner.weights())
