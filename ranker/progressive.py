"""Progressive evaluation of logs with rankings: each slate is scored when it is shown, learned when its labels come.

Predictions are made with what had been learned before the slate was shown, and judged when all its waits have
passed in event time (delayed progressive validation), so that nothing from the future helps. Rows are kept for exact
AUC with intervals over users, the latest `MOST` of them.

Axes: N items of a slate, T objectives.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Protocol

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray

from ranker import metrics
from ranker.catalogue import Catalogue
from ranker.config import Config
from ranker.events import Event
from ranker.gate import utility
from ranker.heldout import single
from ranker.inference import Inference
from ranker.join import Example, Joiner
from ranker.learner import Learner
from ranker.report import Row

Floats = NDArray[np.float64]
#: labelled rows that are kept for the metrics
MOST = 3_000_000
#: half-life and prior of the click counter (METHODS: 4 h, 5 impressions)
HALF_LIFE_MS, PRIOR = 4 * 3_600_000.0, 5.0


def narrow(example: Example, objective: int) -> Example:
    """The example with the labels of one objective only."""
    one = slice(objective, objective + 1)
    return replace(
        example, labels_NT=example.labels_NT[:, one], mask_NT=example.mask_NT[:, one], served_NT=None, foreseen=None
    )


class Arm(Protocol):
    """Something that scores slates and may learn."""

    def predict(self, examples: list[Example], catalogue: Catalogue) -> list[Floats]:
        """Chances (N, T) at the shown positions; nan for objectives it does not know."""
        ...

    def learn(self, examples: list[Example], catalogue: Catalogue) -> None:
        """Learn labelled rows, in their order."""
        ...


class Online:
    """The learner: score, then learn. `objective` keeps one objective only."""

    def __init__(self, config: Config, objectives: int, objective: int | None = None) -> None:
        self._learner, self._all, self._one = Learner(config), objectives, objective

    def predict(self, examples: list[Example], catalogue: Catalogue) -> list[Floats]:
        """Pre-update chances."""
        if self._one is None:
            return [np.asarray(found, np.float64) for found in self._learner.predict(examples, catalogue)]
        chosen = [narrow(example, self._one) for example in examples]
        out = []
        for found in self._learner.predict(chosen, catalogue):
            chances_NT = np.full((len(found), self._all), np.nan)
            chances_NT[:, self._one] = found[:, 0]
            out.append(chances_NT)
        return out

    def learn(self, examples: list[Example], catalogue: Catalogue) -> None:
        """One step."""
        chosen = examples if self._one is None else [narrow(example, self._one) for example in examples]
        if chosen:
            self._learner.learn(chosen, catalogue)


class Fixed:
    """A version as it is: scores at the shown positions, never learns."""

    def __init__(self, config: Config, weights: Mapping[str, torch.Tensor]) -> None:
        self._inference = Inference(config, weights)

    def predict(self, examples: list[Example], catalogue: Catalogue) -> list[Floats]:
        """The served chances, with the position tower where a position is known."""
        self._inference.attach(catalogue)
        out = []
        for example in examples:
            taste = self._inference.taste(example.evidence, example.time)
            scores = self._inference.score(
                taste,
                user=example.evidence.fields,
                request=example.request,
                rows=catalogue.find(example.items),
                now=example.time,
            )
            shown = self._inference.probabilities_at(scores.logits_NT, example.positions, example.request)
            out.append(np.asarray(shown, np.float64))
        return out

    def learn(self, examples: list[Example], catalogue: Catalogue) -> None:
        """Nothing."""


class Counter:
    """The decayed rate of each item and objective: what a dashboard would rank by.

    Rate = (outcomes + PRIOR x overall rate) / (impressions + PRIOR), both halved every HALF_LIFE_MS of event time.
    """

    def __init__(self, config: Config) -> None:
        self._objectives = len(config.objectives)
        self._sums: dict[str, tuple[float, Floats]] = {}
        self._total_2T = np.full((2, self._objectives), 1e-3)

    def predict(self, examples: list[Example], catalogue: Catalogue) -> list[Floats]:
        """The items' rates as of each slate's time."""
        return [np.array([self._rate(item, example.time) for item in example.items]) for example in examples]

    def _rate(self, item: str, now: int) -> Floats:
        then, sums_2T = self._sums.get(item, (now, np.zeros((2, self._objectives))))
        fade = 0.5 ** (max(now - then, 0) / HALF_LIFE_MS)
        overall_T = self._total_2T[0] / self._total_2T[1]
        return np.asarray((sums_2T[0] * fade + PRIOR * overall_T) / (sums_2T[1] * fade + PRIOR))

    def learn(self, examples: list[Example], catalogue: Catalogue) -> None:
        """Count labels as they become known; closing slates repeat them."""
        for example in examples:
            if example.closing or example.opening:
                continue
            for item, labels_T, mask_T in zip(example.items, example.labels_NT > 0, example.mask_NT, strict=True):
                add_2T = np.stack([labels_T * mask_T, mask_T]).astype(np.float64)
                then, sums_2T = self._sums.get(item, (example.time, np.zeros((2, self._objectives))))
                fade = 0.5 ** ((example.time - then) / HALF_LIFE_MS) if example.time > then else 1.0
                self._sums[item] = max(then, example.time), sums_2T * fade + add_2T
                self._total_2T += add_2T


@dataclass
class _Kept:
    """Closed slates of the measured part with every arm's chances."""

    users: deque[NDArray[np.int64]] = field(default_factory=deque)
    labels: deque[NDArray[np.float32]] = field(default_factory=deque)
    masks: deque[NDArray[np.float32]] = field(default_factory=deque)
    warm: deque[bool] = field(default_factory=deque)
    chances: dict[str, deque[NDArray[np.float32]]] = field(default_factory=dict)
    rows: int = 0
    dropped: int = 0

    def add(self, user: int, warm: bool, example: Example, chances: Mapping[str, Floats]) -> None:
        self.users.append(np.full(len(example.items), user))
        self.labels.append(example.labels_NT)
        self.masks.append(example.mask_NT)
        self.warm.append(warm)
        for arm, found in chances.items():
            self.chances.setdefault(arm, deque()).append(found.astype(np.float32))
        self.rows += len(example.items)
        while self.rows > MOST:
            self.rows -= len(self.users.popleft())
            self.dropped += 1
            for rest in (self.labels, self.masks, self.warm, *self.chances.values()):
                rest.popleft()  # type: ignore[attr-defined]


def evaluate(
    config: Config,
    log: Callable[[], Iterable[Event]],
    weights: Mapping[str, torch.Tensor] | None = None,
    *,
    skip: float = 1 / 3,
    chunk: int = 256,
    seed: int = 0,
    progress: Callable[[str], object] | None = None,
) -> Iterator[Row]:
    """The rows of a progressive comparison on the last part of a log.

    Args:
        weights: of one version: it is scored as it is; without it the learner goes through the log, full and
            single-task.
        skip: share of the rankings that warm everything up and is not measured.
        chunk: events between two learning steps; all arms wait alike.
    """
    say = progress or (lambda _: None)
    config = structs.replace(config, learning=structs.replace(config.learning, seed=seed))
    arms: dict[str, Arm] = {}
    if weights is not None:
        arms["version"] = Fixed(config, weights)
    else:
        alone, objective = single(config)
        arms["full"] = Online(config, len(config.objectives))
        arms["single-task"] = Online(alone, len(config.objectives), objective)
    arms["counter"] = Counter(config)
    total = sum(getattr(event, "items", None) is not None for event in log())
    joiner, kept = Joiner(config, opening=True, pairs=True), _Kept()
    predicted: dict[str, dict[str, Floats]] = {}
    warm: dict[str, bool] = {}
    codes: dict[str, int] = {}
    waiting: list[Example] = []
    opened = 0
    for number, event in enumerate(chain(log(), (None,)), 1):
        waiting += joiner.flush() if event is None else joiner.push(event)
        if number % chunk and event is not None:
            continue
        opening = [example for example in waiting if example.opening]
        for arm, ranker in arms.items():
            for example, chances in zip(opening, ranker.predict(opening, joiner.catalogue), strict=True):
                predicted.setdefault(example.ranking, {})[arm] = chances
        for example in opening:
            opened += 1
            warm[example.ranking] = opened > skip * total and bool(example.evidence.history)
            if opened <= skip * total:
                predicted[example.ranking] = {}
        for example in waiting:
            if example.closing and (found := predicted.pop(example.ranking, None)):
                user = codes.setdefault(example.user, len(codes))
                kept.add(user, warm.pop(example.ranking), example, found)
        for ranker in arms.values():
            ranker.learn(
                [e for e in waiting if not e.opening and (isinstance(ranker, Counter) or not e.closing)],
                joiner.catalogue,
            )
        waiting = []
        if number % (chunk * 40) == 0:
            say(f"{opened} of {total} rankings")
    yield from _rows(config, kept, list(arms), seed)


def _rows(config: Config, kept: _Kept, arms: list[str], seed: int) -> Iterator[Row]:
    warm_S = np.array(kept.warm, bool)
    for part, chosen_S in (("warm", warm_S), ("cold", ~warm_S), ("all", np.ones(len(warm_S), bool))):
        slates = np.flatnonzero(chosen_S).tolist()
        if not slates or (part == "all" and (warm_S.all() or not warm_S.any())):
            continue
        users_N = np.concatenate([kept.users[s] for s in slates])
        labels_NT = np.concatenate([kept.labels[s] for s in slates])
        mask_NT = np.concatenate([kept.masks[s] for s in slates]) > 0
        orders: dict[str, Floats] = {}
        for arm in arms:
            chances = kept.chances[arm]
            chances_NT = np.concatenate([chances[s] for s in slates])
            orders[arm] = _order(config, kept, arm, slates)
            yield _row(arm, "ndcg@10", part, metrics.mean_interval(orders[arm], generator=np.random.default_rng(seed)))
            for place, objective in enumerate(config.objectives):
                known_N = mask_NT[:, place] & ~np.isnan(chances_NT[:, place])
                if objective.kind != "binary" or not known_N.any():
                    continue
                labels_N, chances_N = labels_NT[known_N, place], chances_NT[known_N, place].astype(np.float64)
                interval = metrics.auc_interval(
                    labels_N, chances_N, users_N[known_N], generator=np.random.default_rng(seed), rounds=100
                )
                yield _row(arm, f"auc:{objective.name}", part, interval)
                losses_N = metrics.log_losses(labels_N, chances_N)
                loss = metrics.mean_interval(
                    _by_user(losses_N, users_N[known_N]), generator=np.random.default_rng(seed)
                )
                yield _row(arm, f"log_loss:{objective.name}", part, loss)
                error = metrics.calibration_error(labels_N, chances_N)
                point = metrics.Interval(error, float("nan"), float("nan"), loss.n)
                yield _row(arm, f"ece:{objective.name}", part, point)
        for arm in arms[1:]:
            lead = metrics.mean_interval(orders[arms[0]] - orders[arm], generator=np.random.default_rng(seed))
            yield _row(f"{arms[0]} - {arm}", "ndcg@10", part, lead)


def _order(config: Config, kept: _Kept, arm: str, slates: list[int]) -> Floats:
    """NDCG@10 by user: the mean over her slates, so that no one counts more for coming often."""
    values, users = [], []
    for slate in slates:
        chances_NT = kept.chances[arm][slate].astype(np.float64)
        gain_N = np.clip(utility(config, kept.labels[slate] * kept.masks[slate]), 0, None)
        score_N = utility(config, np.where(np.isnan(chances_NT), 0, chances_NT))
        values.append(metrics.ndcg(gain_N, score_N) if len(gain_N) > 1 else float("nan"))
        users.append(int(kept.users[slate][0]))
    return _by_user(np.array(values), np.array(users))


def _by_user(values_N: Floats, users_N: NDArray[np.int64]) -> Floats:
    """Mean of what is not nan by user, in the order of their codes; nan for a user without any."""
    known_N = ~np.isnan(values_N)
    size = int(users_N.max()) + 1
    present_U = np.bincount(users_N, minlength=size) > 0
    totals_U = np.bincount(users_N[known_N], values_N[known_N], minlength=size)
    counts_U = np.bincount(users_N[known_N], minlength=size)
    with np.errstate(invalid="ignore"):
        return np.asarray((totals_U / counts_U)[present_U])


def _row(arm: str, metric: str, part: str, found: metrics.Interval) -> Row:
    return Row(arm=arm, metric=metric, part=part, mean=found.mean, low=found.low, high=found.high, n=found.n)
