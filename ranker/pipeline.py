"""THE REQUEST PATH: evidence -> taste -> candidates -> score -> calibrated set -> exploration -> Slate.

Pure and synchronous: what it needs is in memory, and the Slate it returns explains itself. The guard takes its
place between the calibrated set and exploration, which stays last so that its propensities are those of the slate.

Axes: N candidates, C categories (interests), T objectives, S places of the slate.
"""

import math
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ranker import calibration
from ranker.catalogue import Catalogue, Item
from ranker.config import PREFERENCE, Config
from ranker.errors import RequestError
from ranker.events import MAX_ITEMS, Value
from ranker.evidence import EMPTY, Evidence
from ranker.summary import profiled

if TYPE_CHECKING:
    from ranker.inference import Inference, Scores
    from ranker.taste import Taste

#: people whose tastes are kept, and how long these stand: acts fade over an hour and more
PEOPLE, MOMENT_MS = 10_000, 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request to rank the given items, or to recommend from the catalogue where `items` is None.

    Attributes:
        limit: places of the slate. Without it, all given items are placed, and config.serving.slate are recommended.
        weights: by objective name, "preference" for the base utility; what it does not name keeps its weight.
        calibration: lambda of the calibrated rerank, 0 to 1; None for the configured one.
        fields: the request's fields (device, place, ...).
        now: ms since the epoch.
        seed: drawn from the ranking id, so that a slate's exploration can be repeated.
        exclude_seen: recommend nothing that is already in the history (given items are never excluded).
    """

    user: str
    items: Sequence[str | Item] | None = None
    limit: int | None = None
    weights: Mapping[str, float] | None = None
    calibration: float | None = None
    fields: dict[str, Value] = field(default_factory=dict)
    now: int = 0
    explain: bool = False
    seed: int = 0
    exclude_seen: bool = True


class Placed(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """One item in its place. A Struct, because 500 of them are made in a request.

    Attributes:
        utility: sum over objectives of weight x probability: what the slate is ordered by.
        probabilities: one per objective, as if nothing but the item mattered (no position tower).
        preference: the chance that the user prefers it to a typical item of the catalogue.
        expected: one per objective, at this very position: what to log, and what calibration error is about.
        propensity: P(this item at this position | request), over the exploration's draw.
        reward: the base utility r(u, i) of the taste, where `explain` was asked.
        interests: the item's share of each category, where `explain` was asked.
    """

    id: str
    position: int
    utility: float
    probabilities: tuple[float, ...]
    preference: float
    expected: tuple[float, ...]
    propensity: float
    reward: float | None = None
    interests: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Slate:
    """What to show, and why.

    Attributes:
        weights: of the objectives, as used, in the order of `Placed.probabilities`, and of the preference.
        timings_ms: by stage, in the order of the stages, with `total`.
        removed: (item, reason) of every candidate that was taken out before scoring or for its score.
        evidence: how much of each source the taste rests on.
        miscalibration: C_KL of the calibrated places, None where the user has no profile.
        miscalibration_before: the same in plain utility order.
        profile: the interests asked for, where `explain` was asked.
        swapped: the upper position of the exchanged pair, where exploration exchanged one.
    """

    version: str
    items: tuple[Placed, ...]
    weights: dict[str, float]
    timings_ms: dict[str, float]
    removed: tuple[tuple[str, str], ...]
    evidence: dict[str, int]
    miscalibration: float | None
    miscalibration_before: float | None
    profile: dict[str, float] | None = None
    swapped: int | None = None


@dataclass(frozen=True, slots=True)
class _Pool:
    """Candidates in scoring order: catalogue rows first, then the items that came with fields of their own."""

    ids: list[str]
    rows: NDArray[np.int64]
    extra: list[Item]
    removed: list[tuple[str, str]]


class Pipeline:
    """Ranks for one version. Keeps nothing but what it derived of people, so replicas and threads may share it.

    Args:
        inference: has `catalogue` attached.
        version: id of the weights, repeated in every Slate.
    """

    def __init__(self, config: Config, inference: "Inference", catalogue: Catalogue, version: str) -> None:
        self.config, self.inference, self.catalogue, self.version = config, inference, catalogue, version
        self._known: OrderedDict[tuple[str, str, int, int, int], tuple[Taste, NDArray[np.float64]]] = OrderedDict()
        self._lock = threading.Lock()
        self._weights = {objective.name: objective.weight for objective in config.objectives}
        self._weights[PREFERENCE] = config.preference.weight

    def rank(self, request: Request, evidence: Evidence = EMPTY) -> Slate:
        """One slate for one request.

        Raises:
            RequestError: an unknown objective, a weight, lambda or limit out of range, no or too many candidates.
        """
        watch = _Watch()
        weights = self._weights_of(request)
        strength = self._strength_of(request)

        taste, target_C = self.known(request.user, evidence, request.now)
        watch.lap("taste")
        pool = self._given(request) if request.items is not None else self._retrieved(request, evidence, taste)
        watch.lap("candidates")
        scores = self.inference.score(
            taste, user=evidence.fields, request=request.fields, rows=pool.rows, extra=pool.extra, now=request.now
        )
        *weights_T, weight = np.fromiter(weights.values(), np.float32)
        preferred_N = self.inference.preferred(taste, scores.utility_N)
        utility_N = scores.probabilities_NT @ np.array(weights_T) + weight * preferred_N
        watch.lap("score")
        order_S, shown = self._ordered(request, target_C, pool, utility_N, strength)
        watch.lap("calibrate")
        order_S, propensity_S, swapped = explore(order_S, self.config.serving.swap, request.seed)
        watch.lap("explore")
        placed = self._placed(
            request, pool, scores, preferred_N, utility_N=utility_N, order_S=order_S, propensity_S=propensity_S
        )
        watch.lap("slate")

        return Slate(
            version=self.version,
            items=placed,
            weights=weights,
            timings_ms=watch.laps_ms,
            removed=tuple(pool.removed),
            evidence=dict(taste.sources),
            miscalibration_before=shown[0],
            miscalibration=shown[1],
            profile=self._named(target_C) if request.explain else None,
            swapped=swapped,
        )

    def known(self, user: str, evidence: Evidence, now: int) -> "tuple[Taste, NDArray[np.float64]]":
        """The user's taste by this version and her interests, kept until new evidence comes.

        Ages are as of the last full MOMENT_MS, or her newest event where that is later, so both depend on user,
        evidence and moment, never on what was asked before.

        Shapes: interests (C,), zeros where nothing is known.
        """
        if not evidence.recent:
            return self.inference.taste(evidence, now), self._profile(evidence, now)
        # every folded event leaves its id, so the last one names the state; the words' own time goes with it
        key = (user, evidence.recent[-1], evidence.updated, now // MOMENT_MS, self.inference.attached)
        with self._lock:
            kept = self._known.get(key)
            if kept is not None:
                self._known.move_to_end(key)
                return kept
        now = max(now - now % MOMENT_MS, evidence.updated)  # an act of this moment counts
        found = self.inference.taste(evidence, now), self._profile(evidence, now)
        with self._lock:
            self._known[key] = found
            if len(self._known) > PEOPLE:
                self._known.popitem(last=False)
        return found

    def _weights_of(self, request: Request) -> dict[str, float]:
        for name, weight in (request.weights or {}).items():
            if name not in self._weights:
                raise RequestError("weights", name, "the objectives are " + ", ".join(self._weights))
            if not math.isfinite(weight):
                raise RequestError(f"weights.{name}", weight, "send a finite number")
        return {**self._weights, **(request.weights or {})}

    def _strength_of(self, request: Request) -> float:
        strength = self.config.calibration.strength if request.calibration is None else request.calibration
        if not 0 <= strength <= 1:
            raise RequestError("calibration", strength, "send a number from 0 (utility) to 1 (calibration)")
        return strength

    def _limit_of(self, request: Request, candidates: int) -> int:
        if request.limit is None:
            return self.config.serving.slate if request.items is None else candidates
        if request.limit < 1:
            raise RequestError("limit", request.limit, "ask for 1 or more items, or leave it out")
        return request.limit

    def _given(self, request: Request) -> _Pool:
        given: Sequence[Any] = request.items or ()
        if not 1 <= len(given) <= MAX_ITEMS:
            raise RequestError("items", len(given), f"name 1 to {MAX_ITEMS:,} candidates")
        attached, items = self.inference.attached, self.catalogue.items
        if set(map(type, given)) == {str} and len(set(given)) == len(given):
            # the common case, without a loop over the entries
            rows = np.fromiter(map(self.catalogue.rows.get, given, repeat(-1)), np.int64, len(given))
            if rows.min() >= 0 and rows.max() < attached:
                return _Pool(list(given), rows, [], [])
        known: dict[str, int] = {}
        extra: dict[str, Item] = {}
        removed = []
        for entry in given:
            name = entry if isinstance(entry, str) else entry.id
            if name in known or name in extra:
                removed.append((name, "duplicate: its first place among the candidates counts"))
                continue
            row = self.catalogue.rows.get(name, -1)
            item = items[row] if 0 <= row < len(items) else Item(name, {}, request.now)
            if not isinstance(entry, str) and any(item.fields.get(k) != v for k, v in entry.fields.items()):
                extra[name] = Item(name, {**item.fields, **entry.fields}, item.first_seen)
            elif 0 <= row < attached:
                known[name] = row
            else:  # never seen, or not embedded yet: ranked by what is known about it
                extra[name] = item
        rows = np.fromiter(known.values(), np.int64, len(known))
        return _Pool([*known, *extra], rows, list(extra.values()), removed)

    def _retrieved(self, request: Request, evidence: Evidence, taste: "Taste") -> _Pool:
        seen = list({act.item for act in evidence.history}) if request.exclude_seen else []
        wanted = max(self.config.serving.candidates, self._limit_of(request, 0))
        found = self.inference.retrieve(taste, wanted + len(seen))
        seen_N = np.isin(found, self.catalogue.find(seen))
        items, rows = self.catalogue.items, found[~seen_N][:wanted]
        removed = [(items[row].id, "already in the history") for row in found[seen_N].tolist()]
        return _Pool([items[row].id for row in rows.tolist()], rows, [], removed)

    def _ordered(
        self,
        request: Request,
        target_C: NDArray[np.float64],
        pool: _Pool,
        utility_N: NDArray[np.float32],
        strength: float,
    ) -> tuple[NDArray[np.int64], tuple[float | None, float | None]]:
        """The slate's rows in order, and C_KL before and after.

        The first config.serving.slate places are the calibrated set; places beyond them follow in utility order.
        """
        finite_N = np.isfinite(utility_N)
        if not finite_N.all():
            pool.removed.extend((pool.ids[n], "its score is not finite") for n in np.flatnonzero(~finite_N))
            utility_N = np.where(finite_N, utility_N, -np.inf)
        order_N = np.argsort(-utility_N, kind="stable")[: int(finite_N.sum())]
        places = min(self._limit_of(request, len(order_N)), len(order_N))
        window = min(places, self.config.serving.slate)
        if not target_C.any() or window == 0:
            return order_N[:places], (None, None)
        interests_NC = self._interests(pool, target_C.size)
        alpha = self.config.calibration.smoothing
        picked = calibration.rerank(
            utility_N[order_N],
            interests_NC[order_N],
            target_C,
            slots=window,
            strength=strength,
            smoothing=alpha,
        )
        first_S = order_N[picked]
        shown = [
            calibration.miscalibration(target_C, calibration.shares(interests_NC[rows]), alpha)
            for rows in (order_N[:window], first_S)
        ]
        if places > window:
            first_S = np.concatenate([first_S, np.delete(order_N, picked)[: places - window]])
        return first_S, (shown[0], shown[1])

    def _profile(self, evidence: Evidence, now: int) -> NDArray[np.float64]:
        """The interests to hold: those of the history that was not struck, and what the user wrote."""
        known, objectives = self.inference.masked(evidence), self.config.objectives
        target_C = calibration.profile(known, self.catalogue, now, objectives=objectives)
        if not (evidence.words.likes or evidence.words.avoids):
            return target_C
        return profiled(target_C, self.catalogue.categories, evidence.words, self.config.interests)

    def _interests(self, pool: _Pool, categories: int) -> NDArray[np.float32]:
        known_NC = self.catalogue.interests_NC[pool.rows, :categories]
        if not pool.extra:
            return known_NC
        extra_NC = [self.catalogue.interests_of(item.fields)[:categories] for item in pool.extra]
        return np.concatenate([known_NC, np.stack(extra_NC)])

    def _placed(
        self,
        request: Request,
        pool: _Pool,
        scores: "Scores",
        preferred_N: NDArray[np.float32],
        *,
        utility_N: NDArray[np.float32],
        order_S: NDArray[np.int64],
        propensity_S: NDArray[np.float64],
    ) -> tuple[Placed, ...]:
        places = np.arange(len(order_S), dtype=np.int32)
        expected_ST = self.inference.probabilities_at(scores.logits_NT[order_S], places, request.fields)
        columns = (
            places.tolist(),
            order_S.tolist(),
            utility_N[order_S].tolist(),
            map(tuple, scores.probabilities_NT[order_S].tolist()),
            preferred_N[order_S].tolist(),
            map(tuple, expected_ST.tolist()),
            propensity_S.tolist(),
        )
        placed = tuple(
            Placed(
                id=pool.ids[n],
                position=place,
                utility=utility,
                probabilities=probabilities,
                preference=preference,
                expected=expected,
                propensity=propensity,
            )
            for place, n, utility, probabilities, preference, expected, propensity in zip(*columns, strict=True)
        )
        if not request.explain or not placed:
            return placed
        interests_SC = self._interests(pool, len(self.catalogue.categories))[order_S]
        reward_S = scores.utility_N[order_S].tolist()
        return tuple(
            msgspec.structs.replace(item, reward=reward, interests=self._named(interests_C))
            for item, reward, interests_C in zip(placed, reward_S, interests_SC, strict=True)
        )

    def _named(self, share_C: NDArray[np.floating]) -> dict[str, float]:
        return {self.catalogue.categories[c]: float(share_C[c]) for c in np.flatnonzero(share_C)}


def explore(
    order_S: NDArray[np.int64], swap: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], int | None]:
    """With probability `swap`, exchange one adjacent pair, each pair being as likely as the others.

    So the same item is seen at two positions now and then, which is what makes position bias identifiable.

    Returns: the order drawn, P(item at this position | request) for every place of it over all draws, and the
    upper position of the exchanged pair or None.

    Shapes: order_S (S,), propensity (S,).

    Example:
        >>> explore(np.array([7, 8, 9]), 0.0, seed=1)
        (array([7, 8, 9]), array([1., 1., 1.]), None)
    """
    places = len(order_S)
    if places < 2 or swap <= 0:
        return order_S, np.ones(places), None
    each = swap / (places - 1)
    stay_S = np.full(places, 1 - 2 * each)
    stay_S[[0, -1]] = 1 - each
    draw = random.Random(seed)
    if draw.random() >= swap:
        return order_S, stay_S, None
    upper = draw.randrange(places - 1)
    order_S = order_S.copy()
    order_S[[upper, upper + 1]] = order_S[[upper + 1, upper]]
    stay_S[[upper, upper + 1]] = each
    return order_S, stay_S, upper


class _Watch:
    """Wall time by stage, in milliseconds."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._laps[stage] = (now - self._last) * 1000
        self._last = now

    @property
    def laps_ms(self) -> dict[str, float]:
        return {**self._laps, "total": (self._last - self._start) * 1000}
