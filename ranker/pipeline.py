"""THE REQUEST PATH: evidence -> taste -> candidates -> score -> calibrated set -> guard -> exploration -> Slate.

Pure and synchronous: what it needs is in memory, and the Slate it returns explains itself. Exploration stays last, so
that its propensities are those of the slate.

Axes: N candidates, C categories (interests), T objectives, S places of the slate.
"""

import difflib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ranker import calibration, guard
from ranker.calibration import Wish
from ranker.catalogue import Catalogue, Item
from ranker.config import PREFERENCE, Calibration, Config, Exploration, Guard
from ranker.divergence import slate_divergences
from ranker.errors import RequestError
from ranker.events import MAX_ITEMS, Value
from ranker.evidence import EMPTY, Evidence
from ranker.exploration import Explorer
from ranker.index import Index
from ranker.interests import effective_acts, profile, selves
from ranker.summary import profiled
from ranker.taste import Factor, Taste, fuse

if TYPE_CHECKING:
    from ranker.inference import Inference, Scores

#: people whose tastes are kept, and how long these stand: acts fade over an hour and more
PEOPLE, MOMENT_MS = 10_000, 10_000


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request to rank the given items, or to recommend from the catalogue where `items` is None.

    Attributes:
        limit: places of the slate. Without it, all given items are placed, and config.serving.slate are recommended.
        weights: by objective name, "preference" for the base utility; what it does not name keeps its weight.
        calibration: lambda of the calibrated rerank, 0 to 1, "personal", or a Wish; None for what is configured.
        pinned: items that stand first in any case, as given. Of given items, or of the catalogue to recommend from.
        excluded: items that are taken out of the candidates.
        fields: the request's fields (device, place, ...).
        now: ms since the epoch.
        seed: drawn from the ranking id, so that a slate's exploration can be repeated.
        exclude_seen: recommend nothing that is already in the history (given items are never excluded).
        categories: recommend only items that have one of these; all of them without any.
        fresh_since: recommend only items first seen at this time (ms) or later.
        guard: false lifts the guard's bounds for this request; who may ask for that is the caller's concern.
    """

    user: str
    items: Sequence[str | Item] | None = None
    limit: int | None = None
    weights: Mapping[str, float] | None = None
    calibration: float | str | Wish | None = None
    pinned: Sequence[str] = ()
    excluded: Sequence[str] = ()
    fields: dict[str, Value] = msgspec.field(default_factory=dict)
    now: int = 0
    explain: bool = False
    seed: int = 0
    exclude_seen: bool = True
    categories: Sequence[str] = ()
    fresh_since: int | None = None
    guard: bool = True


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


class Slate(msgspec.Struct, frozen=True, kw_only=True):
    """What to show, and why.

    Attributes:
        weights: of the objectives, as used, in the order of `Placed.probabilities`, and of the preference.
        timings_ms: by stage, in the order of the stages, with `total`.
        removed: (item, reason) of every candidate that was taken out before scoring or for its score.
        evidence: how much of each source the taste rests on.
        miscalibration: how far the calibrated places are from the profile, None where the user has none (C_KL, or in
            the configured divergence).
        miscalibration_before: the same in plain utility order.
        exposure_miscalibration: the same as shown, each place weighed by how much it is looked at, for a minority item
            that always stands last is not served.
        strength: lambda, as used.
        profile: the interests asked for, where `explain` was asked.
        swapped: the upper position of the exchanged pair, where exploration exchanged one.
        explored: the position that exploration drew anew, where it drew one.
        interventions: what the guard changed, and why.
        sycophancy_gap: of the calibrated places as the guard left them; None where it was not asked.
    """

    version: str
    items: tuple[Placed, ...]
    weights: dict[str, float]
    timings_ms: dict[str, float]
    removed: tuple[tuple[str, str], ...]
    evidence: dict[str, int]
    miscalibration: float | None
    miscalibration_before: float | None
    exposure_miscalibration: float | None = None
    strength: float = 0.0
    profile: dict[str, float] | None = None
    swapped: int | None = None
    explored: int | None = None
    interventions: tuple[guard.Intervention, ...] = ()
    sycophancy_gap: float | None = None


@dataclass(frozen=True, slots=True)
class _Pool:
    """Candidates in scoring order: catalogue rows first, then the items that came with fields of their own."""

    ids: list[str]
    rows: NDArray[np.int64]
    extra: list[Item]
    removed: list[tuple[str, str]]


class _Known(NamedTuple):
    """What a version makes of a person's evidence.

    Attributes:
        interests_C: those to hold, zeros where nothing is known.
        wanted_C: the same before the guard held them near the long-term ones; `drift` says how far it did.
    """

    taste: Taste
    interests_C: NDArray[np.float64]
    wanted_C: NDArray[np.float64]
    drift: guard.Intervention | None


class _Chosen(NamedTuple):
    """What the rerank chose, by rows of the pool.

    Attributes:
        order_S: the slate, in order.
        before_S: what plain utility would show in the calibrated places.
        interests_NC: of all candidates.
        strength: lambda, as used.
        pins: so many of the first places are pinned.
        free_N: what exploration may draw; all of them without it.
    """

    order_S: NDArray[np.int64]
    before_S: NDArray[np.int64]
    interests_NC: NDArray[np.float32]
    strength: float = 0.0
    pins: int = 0
    free_N: NDArray[np.bool_] | None = None


class Pipeline:
    """Ranks for one version. Keeps nothing but what it derived of people, so replicas and threads may share it.

    Args:
        inference: has `catalogue` attached.
        version: id of the weights, repeated in every Slate.
    """

    def __init__(self, config: Config, inference: "Inference", catalogue: Catalogue, version: str) -> None:
        self.config, self.inference, self.catalogue, self.version = config, inference, catalogue, version
        self._known: OrderedDict[tuple[str, str, int, int, int], _Known] = OrderedDict()
        self._lock = threading.Lock()
        self._anyone = fuse(inference.prior)
        self.explorer = Explorer(config.exploration, inference.sizes.K)
        self._weights = {objective.name: objective.weight for objective in config.objectives}
        self._weights[PREFERENCE] = config.preference.weight

    def rank(self, request: Request, evidence: Evidence = EMPTY) -> Slate:
        """One slate for one request.

        Raises:
            RequestError: an unknown objective, a weight, lambda or limit out of range, no or too many candidates.
        """
        watch = _Watch()
        weights = self._weights_of(request)
        manner = self._manner(request, evidence)

        known, guarded = self.known(request.user, evidence, request.now), request.guard and self.config.guard.on
        taste, target_C = known.taste, known.interests_C if guarded else known.wanted_C
        watch.lap("taste")
        pool = (
            self._given(request) if request.items is not None else self._retrieved(request, evidence, taste, target_C)
        )
        if request.pinned or request.excluded:
            pool = self._settled(request, pool)
        watch.lap("candidates")
        scores = self.inference.score(
            taste, user=evidence.fields, request=request.fields, rows=pool.rows, extra=pool.extra, now=request.now
        )
        weights_W = np.fromiter(weights.values(), np.float32, len(weights))
        preferred_N = self.inference.preferred(taste, scores.utility_N)
        utility_N = scores.probabilities_NT @ weights_W[:-1] + weights_W[-1] * preferred_N
        watch.lap("score")
        chosen = self._ordered(request, target_C, pool, utility_N, manner)
        watch.lap("calibrate")
        safe = None
        if guarded:
            safe = self._guarded(taste, target_C, pool, scores, preferred_N, utility_N=utility_N, chosen=chosen)
            chosen = chosen._replace(order_S=safe.order_S)
        watch.lap("guard")
        drawn = self.explorer.explore(
            chosen.order_S[chosen.pins :],  # what is pinned stays where it is
            self.config.serving.swap,
            request.seed,
            user=request.user,
            taste=taste,
            phi_NK=scores.phi_NK,
            reward_N=scores.utility_N,
            utility_N=utility_N,
            window=self.config.serving.slate - chosen.pins,
            allowed_N=chosen.free_N,
        )
        if chosen.pins:
            drawn = drawn.below(chosen.order_S[: chosen.pins])
        watch.lap("explore")
        shown = self._miscalibrated(target_C, chosen, drawn.order_S)
        placed = self._placed(
            request,
            pool,
            scores,
            preferred_N,
            utility_N=utility_N,
            order_S=drawn.order_S,
            propensity_S=drawn.propensity_S,
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
            exposure_miscalibration=shown[2],
            strength=chosen.strength,
            profile=self._named(target_C) if request.explain else None,
            swapped=drawn.swapped,
            explored=drawn.slot,
            interventions=() if safe is None else (*([known.drift] if known.drift else []), *safe.interventions),
            sycophancy_gap=None if safe is None else safe.gap,
        )

    def known(self, user: str, evidence: Evidence, now: int) -> _Known:
        """The user's taste by this version and her interests, kept until new evidence comes.

        Ages are as of the last full MOMENT_MS, or her newest event where that is later, so both depend on user,
        evidence and moment, never on what was asked before.
        """
        if not evidence.recent:
            return _Known(self.inference.taste(evidence, now), *self._profile(evidence, now))
        # every folded event leaves its id, so the last one names the state; the words' own time goes with it
        key = (user, evidence.recent[-1], evidence.updated, now // MOMENT_MS, self.inference.attached)
        with self._lock:
            kept = self._known.get(key)
            if kept is not None:
                self._known.move_to_end(key)
                return kept
        now = max(now - now % MOMENT_MS, evidence.updated)  # an act of this moment counts
        found = _Known(self.inference.taste(evidence, now), *self._profile(evidence, now))
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

    def _manner(self, request: Request, evidence: Evidence) -> Calibration:
        """How to calibrate; a personal lambda is made out of what is known of the person."""
        manner = calibration.settled(self.config.calibration, request.calibration)
        if not manner.personal:
            return manner
        acts = effective_acts(
            self.inference.masked(evidence),
            self.catalogue,
            request.now,
            objectives=self.config.objectives,
            half_life=manner.half_life * 1000,
        )
        return replace(manner, strength=calibration.personal(manner.strength, acts, manner.confidence))

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
            found = list(map(self.catalogue.rows.get, given, repeat(-1)))
            if min(found) >= 0 and max(found) < attached:
                return _Pool(list(given), np.array(found), [], [])
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

    def _retrieved(self, request: Request, evidence: Evidence, taste: Taste, target_C: NDArray[np.float64]) -> _Pool:
        """Candidates out of the catalogue: of each interest a share, the rest by utility (ranker/retrieval.py)."""
        how, seen = self.config.retrieval, {act.item for act in evidence.history} if request.exclude_seen else set()
        tastes = {}
        if how.share > 0 and how.tastes and target_C.any():
            tastes = self.inference.tastes(taste, evidence, request.now, np.flatnonzero(target_C))
        barred = self.catalogue.find([*seen, *request.excluded])
        drawn = self.inference.retrieve(
            taste,
            max(self.config.serving.candidates, self._limit_of(request, 0)),
            target_C=target_C,
            tastes=tastes,
            share=how.share,
            among=self._filtered(request),
            without=barred[barred >= 0].tolist(),
        )
        names = [self.catalogue.items[row].id for row in drawn.passed.tolist()]
        excluded = frozenset(request.excluded)
        removed = [
            (name, "excluded by the request" if name in excluded else "already in the history") for name in names
        ]
        return _Pool([self.catalogue.items[row].id for row in drawn.rows.tolist()], drawn.rows, [], removed)

    def _filtered(self, request: Request) -> NDArray[np.bool_] | None:
        """What the request's categories and freshness leave of the catalogue; None where it asks for neither."""
        if not request.categories and request.fresh_since is None:
            return None
        allowed_R = np.ones(self.inference.attached, np.bool_)
        if request.categories:
            allowed_R[:] = False
            known = self.catalogue.categories
            for name in request.categories:
                if name not in known:
                    near = difflib.get_close_matches(name, known, 1, 0.5)
                    hint = f"did you mean {near[0]!r}?" if near else f"there are {len(known)}: " + ", ".join(known[:20])
                    raise RequestError("categories", name, hint if known else "no item has a category yet")
                rows = self.catalogue.members(known.index(name))
                allowed_R[rows[rows < len(allowed_R)]] = True
        if request.fresh_since is not None:
            allowed_R &= self.inference.fresh(request.fresh_since)
        return allowed_R

    def _settled(self, request: Request, pool: _Pool) -> _Pool:
        """The candidates without those that the request excludes, and with those that it pins."""
        pinned, excluded = dict.fromkeys(request.pinned), frozenset(request.excluded)
        for item in pinned:
            if item in excluded:
                raise RequestError("pinned", item, "pin it or exclude it, not both")
        most = min(self._limit_of(request, len(pool.ids)), self.config.serving.slate)
        if len(pinned) > most:
            raise RequestError("pinned", len(pinned), f"pin at most {most}, the places that are calibrated")
        held = set(pool.ids)
        rows, extra = pool.rows, pool.extra
        if any(item in held for item in excluded):
            keep_N = np.array([item not in excluded for item in pool.ids])
            pool.removed.extend((item, "excluded by the request") for item in pool.ids if item in excluded)
            extra = [item for item, keep in zip(extra, keep_N[len(rows) :].tolist(), strict=True) if keep]
            rows = rows[keep_N[: len(rows)]]
        added = [item for item in pinned if item not in held]
        for item in added:
            if request.items is not None:
                raise RequestError("pinned", item, "name it among the items, too")
            if self.catalogue.get(item) is None:
                raise RequestError("pinned", item, "pin items of the catalogue; post an item event for a new one")
        found = self.catalogue.find(added)
        rows = np.concatenate([rows, found[found < self.inference.attached]])
        items = self.catalogue.items
        extra = [*extra, *(items[row] for row in found[found >= self.inference.attached].tolist())]
        ids = [items[row].id for row in rows.tolist()] + [item.id for item in extra]
        return _Pool(ids, rows, extra, pool.removed)

    def _ordered(
        self,
        request: Request,
        target_C: NDArray[np.float64],
        pool: _Pool,
        utility_N: NDArray[np.float32],
        manner: Calibration,
    ) -> "_Chosen":
        """The slate's rows in order.

        The first config.serving.slate places are the calibrated set; places beyond them follow in utility order.
        """
        order_N = calibration.falling(utility_N)
        if len(order_N) < len(utility_N):
            lost = np.flatnonzero(~np.isfinite(utility_N)).tolist()
            pool.removed.extend((pool.ids[n], "its score is not finite") for n in lost)
        places = min(self._limit_of(request, len(order_N)), len(order_N))
        window = min(places, self.config.serving.slate)
        interests_NC = self._interests(pool, target_C.size)
        pins: list[int] = []
        if request.pinned:
            place = {pool.ids[n]: rank for rank, n in enumerate(order_N.tolist())}
            pins = [place[item] for item in dict.fromkeys(request.pinned) if item in place]
        if window == 0 or not (target_C.any() or pins):
            return _Chosen(order_N[:places], order_N[:window], interests_NC)
        arguments: dict[str, Any] = {
            "slots": window,
            "smoothing": manner.smoothing,
            "divergence": manner.divergence,
            "pinned": pins,
            "floor": manner.floor,
            "order": manner.order,
        }
        strength, candidates = manner.strength, (utility_N[order_N], interests_NC[order_N], target_C)
        if manner.target is None:
            picked = calibration.rerank(*candidates, strength=strength, **arguments)
        else:
            picked, strength = calibration.to_target(*candidates, target=manner.target, **arguments)
        order_S, free_N = order_N[picked], None
        if places > window:
            order_S = np.concatenate([order_S, np.delete(order_N, picked)[: places - window]])
        if pins:
            free_N = np.ones(len(utility_N), np.bool_)
            free_N[order_N[pins]] = False
        return _Chosen(order_S, order_N[:window], interests_NC, strength, len(pins), free_N)

    def _miscalibrated(
        self, target_C: NDArray[np.float64], chosen: "_Chosen", order_S: NDArray[np.int64]
    ) -> tuple[float | None, float | None, float | None]:
        """How far the calibrated places are from the profile in order of utility, as shown, and as looked at."""
        places = len(chosen.before_S)
        if not target_C.any() or places == 0:
            return None, None, None
        declared = self.config.calibration
        return slate_divergences(
            target_C,
            chosen.interests_NC,
            chosen.before_S,
            order_S[:places],
            smoothing=declared.smoothing,
            divergence=declared.divergence,
        )

    def _profile(
        self, evidence: Evidence, now: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], guard.Intervention | None]:
        """The interests to hold: those of the history that was not struck, held near her long-term ones, and what the
        user wrote; the same as they are of late; and how far they were held back.
        """
        known, declared, policy = self.inference.masked(evidence), self.config.calibration, self.config.guard
        asked: dict[str, Any] = {
            "objectives": self.config.objectives,
            "half_life": declared.half_life * 1000,
            # of whom nothing is known has no interests to hold, not the population's
            "population_C": self.inference.population_C if declared.pseudo_acts and known.history else None,
            "pseudo_acts": declared.pseudo_acts,
        }
        drift = None
        # without older acts, fading moves shares by no more than the oldest has faded
        faded = 1 - 0.5 ** (_span(known) / declared.half_life) if known.history else 0.0
        if policy.on and (known.past.acts or faded > policy.drift):
            recent_C, long_C = selves(known, self.catalogue, now, **asked)
            held_C, drift = guard.capped(recent_C, long_C, policy.drift)
        else:
            held_C = recent_C = profile(known, self.catalogue, now, **asked)
        words = evidence.words
        if not (words.likes or words.avoids):
            return held_C, recent_C, drift
        field = self.config.interests if isinstance(self.config.interests, str) else None
        named = self.catalogue.categories
        return profiled(held_C, named, words, field), profiled(recent_C, named, words, field), drift

    def _guarded(
        self,
        taste: Taste,
        target_C: NDArray[np.float64],
        pool: _Pool,
        scores: "Scores",
        preferred_N: NDArray[np.float32],
        *,
        utility_N: NDArray[np.float32],
        chosen: _Chosen,
    ) -> guard.Guarded:
        """The calibrated places within the guard's bounds; pinned items stay."""
        # r of the population's taste: what hers makes of each candidate, less what sets her taste apart
        anyones_N = scores.utility_N - scores.phi_NK @ (taste.mean_K - self._anyone.mean_K)
        fixed_N = None
        if chosen.pins:
            fixed_N = np.zeros(len(utility_N), np.bool_)
            fixed_N[chosen.order_S[: chosen.pins]] = True
        candidates = guard.Candidates(
            ids=pool.ids,
            personal_N=preferred_N,
            population_N=self.inference.preferred(self._anyone, anyones_N),
            interests_NC=chosen.interests_NC,
            fixed_N=fixed_N,
        )
        return guard.protect(
            self.config.guard,
            chosen.order_S,
            utility_N,
            candidates,
            target_C=target_C,
            window=self.config.serving.slate,
        )

    def _interests(self, pool: _Pool, categories: int) -> NDArray[np.float32]:
        known_NC = self.catalogue.interests_NC[pool.rows][:, :categories]
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


def warm() -> None:
    """Compile what requests run, or read what was compiled before: seconds once, then a fraction of one."""
    utility_N, interests_NC = np.array([0.9, 0.1, 0.5], np.float32), np.eye(3, dtype=np.float32)
    target_C = np.array([0.5, 0.3, 0.2])
    order_S = calibration.rerank(utility_N, interests_NC, target_C, slots=2, strength=0.5)
    calibration.to_target(utility_N, interests_NC, target_C, slots=2, target=0.0)
    candidates = guard.Candidates(
        ids="abc", personal_N=utility_N, population_N=np.zeros_like(utility_N), interests_NC=interests_NC
    )
    guard.protect(Guard(gap=0.0, novelty=0.5), order_S, utility_N, candidates, target_C=target_C, window=2)
    explorer, one_K = Explorer(Exploration(slot=0.5), 2), np.ones(2, np.float32)
    explorer.explore(
        calibration.falling(utility_N)[:2],
        0.5,
        0,
        user="",
        taste=fuse(Factor(one_K, one_K)),
        phi_NK=interests_NC[:, :2],
        reward_N=utility_N,
        utility_N=utility_N,
        window=2,
    )
    slate_divergences(target_C, interests_NC, order_S, order_S)
    Index(interests_NC).search(utility_N, 1)


def _span(evidence: Evidence) -> float:
    """Seconds between the first and the last act."""
    return (evidence.history[-1].time - evidence.history[0].time) / 1000


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
