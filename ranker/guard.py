"""The echo-chamber guard: personalisation stays within stated bounds, and every time it is held back the slate says so.

Three bounds, each of which can be lifted (config.Guard): how far the slate's worth to this person may lie above its
worth to the population (the sycophancy gap), how far the interests asked for may lie from her long-term ones (drift),
and how many places are at least outside of her dominant interests (novelty). Nothing is ever removed: places change
their items, so a slate is as long as it would have been. There is no chance in it: the same request gets the same.

That a fully personal reward may trap people is the caution of barreto2025capturing; gap, blending and bounds are ours.
Axes: N candidates, S places, C categories (interests), R candidates that may enter or leave.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ranker.compiled import compiled
from ranker.config import Guard

Floats = NDArray[np.floating]
Array = NDArray[np.float64]
Rows = NDArray[np.int64]

#: halvings of the blend's weight, which is found to 1/64
HALVINGS = 6


class Intervention(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """What the guard changed in a slate, why, and by how much.

    Attributes:
        numbers: blend: gap_before, gap_after, bound, weight; drift: distance_before, distance_after, bound;
            novelty: asked, put_in (places).
        put_in: items that came into the first places, `taken_out` those whose places they took.
    """

    kind: Literal["blend", "drift", "novelty"]
    reason: str
    numbers: dict[str, float]
    put_in: tuple[str, ...] = ()
    taken_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidates:
    """What the guard needs to know of the candidates; nothing of it is changed.

    Attributes:
        personal_N: P(preferred to a typical item) by her own taste.
        population_N: the same by the taste of somebody of whom nothing is known.
        interests_NC: each one's share of each category.
        fixed_N: candidates whose places may not be taken, None where there are none.
        open_N: candidates that may be put in, None where all may.
    """

    ids: Sequence[str]
    personal_N: Floats
    population_N: Floats
    interests_NC: Floats
    fixed_N: NDArray[np.bool_] | None = None
    open_N: NDArray[np.bool_] | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Guarded:
    """The slate after the guard.

    Attributes:
        order_S: the rows to show, as many as before.
        gap: the sycophancy gap of its first `window` places.
    """

    order_S: Rows
    gap: float
    interventions: tuple[Intervention, ...] = ()


def sycophancy_gap(personal_N: Floats, population_N: Floats) -> float:
    """How much better the shown items are for her than for the population, -1 to 1; 0 where nothing is known of her.

    It is the mean over them of P(preferred to a typical item | her taste) less the same for the population's taste,
    so it is bounded and means the same for decided and undecided people.

    Source: the mean of r_user - r_population over the slate, with each r squashed against a typical item.

    Example:
        >>> sycophancy_gap(np.array([0.9, 0.7]), np.array([0.5, 0.7]))
        0.2
    """
    if not len(personal_N):
        return 0.0
    return float(np.add.reduce(np.asarray(personal_N, np.float64) - population_N)) / len(personal_N)


def capped(recent_C: Floats, long_C: Floats, bound: float) -> tuple[NDArray[np.float64], Intervention | None]:
    """The recent interests, no further than `bound` from the long-term ones (total variation, 0 to 1).

    What lies beyond is pulled back along the line between both, so the mixture keeps its direction; where either is
    empty nothing is known to hold on to.

    Example:
        >>> capped(np.array([1.0, 0.0]), np.array([0.5, 0.5]), 0.25)[0].tolist()
        [0.75, 0.25]
    """
    asked_C: NDArray[np.float64] = np.asarray(recent_C, np.float64)
    distance = 0.5 * float(np.abs(asked_C - long_C).sum())
    if distance <= bound + 1e-12 or not asked_C.any() or not np.any(long_C):
        return asked_C, None
    held_C: NDArray[np.float64] = long_C + (asked_C - long_C) * (bound / distance)
    return held_C, Intervention(
        kind="drift",
        reason=f"her interests of late are {distance:.2f} from her long-term ones and may be {bound:.2f}: held there",
        numbers={"distance_before": distance, "distance_after": bound, "bound": bound},
    )


def protect(
    policy: Guard, order_S: Rows, utility_N: Floats, candidates: Candidates, *, target_C: Floats, window: int
) -> Guarded:
    """Hold the first `window` places of a slate to the policy's novelty and gap; the rest follows as it was.

    Novelty: what has interests, less than half of them among the dominant ones, is new. Where there is too little of
    it the best new candidates take familiar places, evenly down the slate (an item that always stands last is not
    served), without taking from interests that are not dominant what their share entitles them to.

    Gap: where it is over its bound, candidates are ordered by (1 - w) u + w v, with u the utility and v P(preferred |
    population) on u's mean and spread, and w is the smallest weight, to 1/64, at which the best of that order keep the
    bound. Toward that order the slate is led one exchange after the other, the worst going first, only until it keeps
    the bound; so it does, or w = 1 and all is the population's that may change. For a utility that is the preference
    alone, u - w (u - v) is the Lagrangian of "most utility within the bound", so w is its multiplier.

    Both by turns until neither can do more: a slate within its bounds stays as it is when it is guarded again.

    Args:
        order_S: rows in the order that would be shown.
        utility_N: what is not finite never enters.
        target_C: the interests that were asked for, zeros where nothing is known: then nothing is new or old to her.
    """
    window = min(window, len(order_S))
    nothing_N = np.zeros(0, np.bool_)
    fixed_N = nothing_N if candidates.fixed_N is None else candidates.fixed_N
    open_N = nothing_N if candidates.open_N is None else candidates.open_N
    worth_N = np.asarray(utility_N, np.float64)
    apart_N = np.asarray(candidates.personal_N, np.float64) - candidates.population_N
    done: list[Intervention] = []
    asked = int(policy.novelty * window + 1e-9) if target_C.any() else 0
    # what a blend puts in may make room for more that is new, and that widen the gap: each turn but the first adds some
    for turn in range(asked + 1):
        needed_S = np.zeros(window, np.bool_)
        if asked:
            interests_NC, wanted_C = np.ascontiguousarray(candidates.interests_NC), np.asarray(target_C, np.float64)
            order_S, rows_2K = _renewed(
                order_S, worth_N, interests_NC, wanted_C, float(policy.dominant), fixed_N, open_N, needed_S, asked
            )
            if len(rows_2K[0]):
                done.append(_novelty(asked, rows_2K, candidates.ids))
            elif turn:
                break
        before = gap = _mean(apart_N, order_S, window)
        if gap <= policy.gap:
            break
        population_N = np.asarray(candidates.population_N, np.float64)
        order_S, rows_2K, weight = _blended(
            float(policy.gap), order_S, worth_N, apart_N, population_N, fixed_N, open_N, needed_S
        )
        if not len(rows_2K[0]):
            break
        gap = _mean(apart_N, order_S, window)
        done.append(_blend(before, gap, policy.gap, weight=weight, changed=rows_2K, ids=candidates.ids))
    return Guarded(order_S=order_S, gap=gap, interventions=tuple(done))


@compiled
def dominant(target_C: Floats, share: float) -> NDArray[np.bool_]:
    """The fewest interests that hold `share` of the profile together, largest first.

    Example:
        >>> dominant(np.array([0.1, 0.6, 0.3]), 0.8).tolist()
        [False, True, True]
    """
    found_C, held, wanted = np.zeros(len(target_C), np.bool_), 0.0, share * target_C.sum() - 1e-12
    for _ in range(len(target_C)):
        largest = -1
        for c in range(len(target_C)):
            if not found_C[c] and (largest < 0 or target_C[c] > target_C[largest]):
                largest = c
        found_C[largest] = True
        held += target_C[largest]
        if held >= wanted:
            break
    return found_C


@compiled
def _mean(apart_N: Array, order_S: Rows, window: int) -> float:
    """The `sycophancy_gap` of the first places."""
    total = 0.0
    for row in order_S[:window]:
        total += apart_N[row]
    return total / max(window, 1)


@compiled
def _is(mask_N: NDArray[np.bool_], row: int, otherwise: bool) -> bool:
    """What the mask says of the row; an empty one says `otherwise` of all."""
    return mask_N[row] if len(mask_N) else otherwise


@compiled
def _renewed(
    order_S: Rows,
    utility_N: Array,
    interests_NC: Floats,
    target_C: Array,
    share: float,
    fixed_N: NDArray[np.bool_],
    open_N: NDArray[np.bool_],
    needed_S: NDArray[np.bool_],
    asked: int,
) -> tuple[Rows, Rows]:
    """The order with enough novelty, and the (out, in) rows of what was exchanged.

    Args:
        needed_S: is told the places that novelty needs.
    """
    window, (items, categories) = len(needed_S), interests_NC.shape
    familiar_C = dominant(target_C, share)
    entitled_C = np.where(familiar_C, 0.0, np.floor(window * target_C + 1e-9))
    new_S, held_C, shown_N, lack = np.zeros(window, np.bool_), np.zeros(categories), np.zeros(items, np.bool_), asked
    for place in range(window):
        row = order_S[place]
        shown_N[row], new_S[place] = True, _new(interests_NC, row, familiar_C)
        for c in range(categories):
            held_C[c] += interests_NC[row, c]
        if new_S[place] and lack > 0:
            needed_S[place] = True
            lack -= 1
    # the best of what is new and waits, best first
    waiting_K, waiting = np.empty(max(lack, 0), np.int64), 0
    if lack > 0:
        for row in range(items):
            if shown_N[row] or not math.isfinite(utility_N[row]) or not _is(open_N, row, True):
                continue
            if _new(interests_NC, row, familiar_C):
                waiting = _placed(utility_N, waiting_K, waiting, row)
    places_K, count = np.empty(waiting, np.int64), 0
    for row in waiting_K[:waiting]:
        even, nearest = (count + 1) * window / (lack + 1), -1
        for place in range(window):
            out = order_S[place]
            if new_S[place] or needed_S[place] or _is(fixed_N, out, False):
                continue
            if nearest >= 0 and not abs(place - even) < abs(nearest - even):
                continue
            stays = True
            for c in range(categories):
                stays = stays and held_C[c] - interests_NC[out, c] >= min(held_C[c], entitled_C[c]) - 1e-6
            if stays:
                nearest = place
        if nearest < 0:
            break
        places_K[count] = nearest
        needed_S[nearest] = True
        count += 1
        for c in range(categories):
            held_C[c] += interests_NC[row, c] - interests_NC[order_S[nearest], c]
    return _exchanged(order_S, places_K[:count], waiting_K[:count], window)


@compiled
def _blended(
    bound: float,
    order_S: Rows,
    utility_N: Array,
    apart_N: Array,
    population_N: Array,
    fixed_N: NDArray[np.bool_],
    open_N: NDArray[np.bool_],
    needed_S: NDArray[np.bool_],
) -> tuple[Rows, Rows, float]:
    """The order within the bound, the (out, in) rows of what was exchanged, and the weight."""
    window, items = len(needed_S), len(utility_N)
    place_N, may_N, most, free = np.full(items, -1), np.empty(items, np.bool_), bound * window, 0
    for row in range(items):
        may_N[row] = math.isfinite(utility_N[row]) and _is(open_N, row, True)
    for place in range(window):
        row = order_S[place]
        place_N[row], may_N[row] = place, not (needed_S[place] or _is(fixed_N, row, False))
        if may_N[row]:
            free += 1
        else:
            most -= apart_N[row]
    rows_R = np.flatnonzero(may_N)
    if not 0 < free < len(rows_R):
        return order_S, np.zeros((2, 0), np.int64), 0.0
    own_R, apart_R = utility_N[rows_R], apart_N[rows_R]
    # the population's preferences in units of this request's utilities
    mean, other_R = own_R.mean(), population_N[rows_R]
    other_R = other_R - other_R.mean()
    spread, scale = (other_R * other_R).sum(), 0.0
    if spread > 0:
        scale = math.sqrt(((own_R - mean) ** 2).sum() / spread)
    loss_R = own_R - (mean + scale * other_R)
    low, high, steps = 0, 1 << HALVINGS, 1 << HALVINGS
    wanted_R = _best(own_R - loss_R, free)
    while high - low > 1:
        middle = (low + high) // 2
        best_R, total = _best(own_R - middle / steps * loss_R, free), 0.0
        for r in range(len(rows_R)):
            if best_R[r]:
                total += apart_R[r]
        if total <= most:
            high, wanted_R = middle, best_R
        else:
            low = middle
    weight = high / steps
    value_R = own_R - weight * loss_R
    held_R = place_N[rows_R] >= 0
    goes, comes = np.flatnonzero(held_R & ~wanted_R), np.flatnonzero(wanted_R & ~held_R)
    goes = goes[np.argsort(value_R[goes], kind="mergesort")]
    comes = comes[np.argsort(-value_R[comes], kind="mergesort")]
    # one exchange after the other until it keeps the bound; the last is that of the best, so where they do one does
    total, count = 0.0, 0
    for r in range(len(rows_R)):
        if held_R[r]:
            total += apart_R[r]
    while count < len(goes):
        total += apart_R[comes[count]] - apart_R[goes[count]]
        count += 1
        if total <= most:
            break
    places_K = np.sort(place_N[rows_R[goes[:count]]])
    order_S, changed_2K = _exchanged(order_S, places_K, rows_R[comes[:count]], window)
    return order_S, changed_2K, weight


@compiled
def _best(value_R: Array, count: int) -> NDArray[np.bool_]:
    """Which are the `count` largest; of equals the first."""
    best_F, held = np.empty(count, np.int64), 0
    for r in range(len(value_R)):
        held = _placed(value_R, best_F, held, r)
    found_R = np.zeros(len(value_R), np.bool_)
    found_R[best_F] = True
    return found_R


@compiled
def _placed(value_N: Array, best_K: Rows, held: int, row: int) -> int:
    """Put the row among the best K, best first and of equals the first, if it is one; returns how many there are."""
    if held == len(best_K) and not value_N[row] > value_N[best_K[-1]]:
        return held
    held = min(held + 1, len(best_K))
    place = held - 1
    while place > 0 and value_N[row] > value_N[best_K[place - 1]]:
        best_K[place] = best_K[place - 1]
        place -= 1
    best_K[place] = row
    return held


@compiled
def _exchanged(order_S: Rows, places_K: Rows, rows_K: Rows, window: int) -> tuple[Rows, Rows]:
    """The order with the rows at the places, and (out, in); where a row stood below the window, the two change."""
    moved_S, changed_2K = order_S.copy(), np.empty((2, len(rows_K)), np.int64)
    for k in range(len(rows_K)):
        changed_2K[0, k], changed_2K[1, k] = order_S[places_K[k]], rows_K[k]
        for place in range(window, len(order_S)):
            if order_S[place] == rows_K[k]:
                moved_S[place] = order_S[places_K[k]]
        moved_S[places_K[k]] = rows_K[k]
    return moved_S, changed_2K


@compiled
def _new(interests_NC: Floats, row: int, familiar_C: NDArray[np.bool_]) -> bool:
    """More of it lies outside the familiar than inside; so no item without interests is new."""
    outside = 0.0
    for c in range(len(familiar_C)):
        outside += -interests_NC[row, c] if familiar_C[c] else interests_NC[row, c]
    return outside > 0


def _blend(
    before: float, after: float, bound: float, *, weight: float, changed: Rows, ids: Sequence[str]
) -> Intervention:
    return Intervention(
        kind="blend",
        reason=f"the slate was worth {before:.2f} more to her than to the population and may be {bound:.2f}: "
        f"{len(changed[0])} places follow an order that is {weight:.0%} the population's",
        numbers={"gap_before": before, "gap_after": after, "bound": bound, "weight": weight},
        taken_out=tuple(ids[row] for row in changed[0].tolist()),
        put_in=tuple(ids[row] for row in changed[1].tolist()),
    )


def _novelty(asked: int, changed: Rows, ids: Sequence[str]) -> Intervention:
    return Intervention(
        kind="novelty",
        reason=f"{asked} places are asked to lie outside of her dominant interests: {len(changed[0])} put in",
        numbers={"asked": float(asked), "put_in": float(len(changed[0]))},
        taken_out=tuple(ids[row] for row in changed[0].tolist()),
        put_in=tuple(ids[row] for row in changed[1].tolist()),
    )
