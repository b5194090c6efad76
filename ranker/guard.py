"""The echo-chamber guard: personalisation stays within stated bounds, and every time it is held back the slate says so.

Three bounds, each of which can be lifted (config.Guard): how far the slate's worth to this person may lie above its
worth to the population (the sycophancy gap), how far the interests asked for may lie from her long-term ones (drift),
and how many places are at least outside of her dominant interests (novelty). Nothing is ever removed: places change
their items, so a slate is as long as it would have been. There is no chance in it: the same request gets the same.

That a fully personal reward may trap people is the caution of barreto2025capturing; gap, blending and bounds are ours.
Axes: N candidates, S places, C categories (interests), R candidates that may enter or leave.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ranker.config import Guard

Floats = NDArray[np.floating]
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

    Args:
        order_S: rows in the order that would be shown.
        utility_N: what is not finite never enters.
        target_C: the interests that were asked for, zeros where nothing is known: then nothing is new or old to her.
    """
    window = min(window, len(order_S))
    order_S, changed, new = _renewed(policy, order_S, utility_N, candidates, target_C=target_C, window=window)
    done = [] if not len(changed) else [_novelty(int(policy.novelty * window + 1e-9), changed, candidates.ids)]
    before = gap = _gap(candidates, order_S[:window])
    if gap > policy.gap:
        fixed_S = np.zeros(window, np.bool_) if candidates.fixed_N is None else candidates.fixed_N[order_S[:window]]
        fixed_S[new] = True
        order_S, changed, weight = _blended(policy.gap, order_S, utility_N, candidates, fixed_S=fixed_S)
        gap = _gap(candidates, order_S[:window])
        if len(changed):
            done.append(_blend(before, gap, policy.gap, weight=weight, changed=changed, ids=candidates.ids))
    return Guarded(order_S=order_S, gap=gap, interventions=tuple(done))


def dominant(target_C: Floats, share: float) -> NDArray[np.bool_]:
    """The fewest interests that hold `share` of the profile together, largest first.

    Example:
        >>> dominant(np.array([0.1, 0.6, 0.3]), 0.8).tolist()
        [False, True, True]
    """
    order_C = np.argsort(-np.asarray(target_C, np.float64), kind="stable")
    held_C = np.cumsum(np.asarray(target_C, np.float64)[order_C])
    count = int(np.searchsorted(held_C, share * held_C[-1] - 1e-12)) + 1 if len(held_C) else 0
    found_C = np.zeros(len(order_C), np.bool_)
    found_C[order_C[:count]] = True
    return found_C


def _gap(candidates: Candidates, shown_S: Rows) -> float:
    return sycophancy_gap(candidates.personal_N[shown_S], candidates.population_N[shown_S])


def _renewed(
    policy: Guard, order_S: Rows, utility_N: Floats, candidates: Candidates, *, target_C: Floats, window: int
) -> tuple[Rows, Rows, list[int]]:
    """The order with enough novelty, the (out, in) rows of what was exchanged, and the places that novelty needs."""
    asked = int(policy.novelty * window + 1e-9)
    nothing = np.zeros((0, 2), np.int64)
    if not asked or not target_C.any():
        return order_S, nothing, []
    shown = order_S[:window]
    interests_NC, familiar_C = candidates.interests_NC, dominant(target_C, policy.dominant)
    shown_SC = interests_NC[shown]
    new_S = _new(shown_SC, familiar_C)
    needed = new_S.nonzero()[0][:asked].tolist()
    lack = asked - len(needed)
    if lack <= 0:
        return order_S, nothing, needed
    waiting_N = _new(interests_NC, familiar_C) & _may_enter(utility_N, candidates)
    waiting_N[shown] = False
    waiting = waiting_N.nonzero()[0]
    waiting = waiting[np.argsort(-utility_N[waiting], kind="stable")[:lack]]
    free_S = ~new_S if candidates.fixed_N is None else ~new_S & ~candidates.fixed_N[shown]
    entitled_C = np.where(familiar_C, 0.0, np.floor(window * target_C + 1e-9))
    held_C = shown_SC.sum(0, dtype=np.float64)
    leaves: list[int] = []
    for row in waiting.tolist():
        stays_S = (held_C - shown_SC >= np.minimum(held_C, entitled_C) - 1e-6).all(1)
        places = (free_S & stays_S).nonzero()[0]
        if not len(places):
            break
        even = (len(leaves) + 1) * window / (lack + 1)
        place = int(places[np.abs(places - even).argmin()])
        leaves.append(place)
        free_S[place] = False
        held_C += interests_NC[row] - shown_SC[place]
    put_in, places_K = waiting[: len(leaves)], np.array(leaves, np.int64)
    order_S, changed = _exchanged(order_S, places_K, put_in, window)
    return order_S, changed, [*needed, *leaves]


def _blended(
    bound: float, order_S: Rows, utility_N: Floats, candidates: Candidates, *, fixed_S: NDArray[np.bool_]
) -> tuple[Rows, Rows, float]:
    """The order within the bound, the (out, in) rows of what was exchanged, and the weight."""
    window = len(fixed_S)
    shown_S = order_S[:window]
    apart_N = np.asarray(candidates.personal_N, np.float64) - candidates.population_N
    may_N = _may_enter(utility_N, candidates)
    may_N[shown_S] = ~fixed_S
    rows_R = may_N.nonzero()[0]
    free = window - int(fixed_S.sum())
    if not 0 < free < len(rows_R):
        return order_S, np.zeros((0, 2), np.int64), 0.0
    own_R, apart_R = np.asarray(utility_N[rows_R], np.float64), apart_N[rows_R]
    loss_R = own_R - _on_scale(np.asarray(candidates.population_N[rows_R], np.float64), own_R)
    most = bound * window - float(apart_N[shown_S[fixed_S]].sum())

    def best(weight: float) -> Rows:
        return np.argpartition(weight * loss_R - own_R, free - 1)[:free]

    low, high, steps, kept_F = 0, 1 << HALVINGS, 1 << HALVINGS, None
    while high - low > 1:
        middle = (low + high) // 2
        best_F = best(middle / steps)
        if apart_R[best_F].sum() <= most:
            high, kept_F = middle, best_F
        else:
            low = middle
    weight = high / steps
    value_R = own_R - weight * loss_R
    held_R = np.zeros(len(rows_R), np.bool_)
    held_R[np.searchsorted(rows_R, shown_S[~fixed_S])] = True
    wanted_R = np.zeros(len(rows_R), np.bool_)
    wanted_R[best(weight) if kept_F is None else kept_F] = True
    goes, comes = (held_R & ~wanted_R).nonzero()[0], (wanted_R & ~held_R).nonzero()[0]
    goes = goes[np.argsort(value_R[goes], kind="stable")]
    comes = comes[np.argsort(-value_R[comes], kind="stable")]
    # the sum after each number of exchanges; the last is that of the best, so where they keep the bound one does
    sums_K = apart_R[held_R].sum() + np.cumsum(apart_R[comes] - apart_R[goes])
    kept = (sums_K <= most).nonzero()[0]
    count = int(kept[0]) + 1 if len(kept) else len(goes)
    place_N = dict(zip(shown_S.tolist(), range(window), strict=True))
    places_K = np.array([place_N[row] for row in rows_R[goes[:count]].tolist()], np.int64)
    order_S, changed = _exchanged(order_S, np.sort(places_K), rows_R[comes[:count]], window)
    return order_S, changed, weight


def _may_enter(utility_N: Floats, candidates: Candidates) -> NDArray[np.bool_]:
    finite_N: NDArray[np.bool_] = np.isfinite(utility_N)
    return finite_N if candidates.open_N is None else finite_N & candidates.open_N


def _on_scale(other_R: Floats, own_R: Floats) -> Floats:
    """The population's preferences in units of this request's utilities."""
    mean = np.add.reduce(own_R) / len(own_R)
    apart_R, own_R = other_R - np.add.reduce(other_R) / len(other_R), own_R - mean
    spread = apart_R @ apart_R
    scale = np.sqrt(own_R @ own_R / spread) if spread > 0 else 0.0
    return np.asarray(mean + scale * apart_R)


def _exchanged(order_S: Rows, places_K: Rows, rows_K: Rows, window: int) -> tuple[Rows, Rows]:
    """The order with the rows at the places, and (out, in); where a row stood below the window, the two change."""
    moved_S, leaves_K = order_S.copy(), order_S[places_K]
    if len(order_S) > window:
        for row, leaves in zip(rows_K.tolist(), leaves_K.tolist(), strict=True):
            moved_S[order_S == row] = leaves
    moved_S[places_K] = rows_K
    return moved_S, np.array([leaves_K, rows_K]).T


def _new(interests_NC: Floats, familiar_C: NDArray[np.bool_]) -> NDArray[np.bool_]:
    # more of it outside than inside, in one product: so no item without interests is new
    found_N: NDArray[np.bool_] = interests_NC @ (1 - 2 * familiar_C).astype(interests_NC.dtype) > 0
    return found_N


def _blend(
    before: float, after: float, bound: float, *, weight: float, changed: Rows, ids: Sequence[str]
) -> Intervention:
    return Intervention(
        kind="blend",
        reason=f"the slate was worth {before:.2f} more to her than to the population and may be {bound:.2f}: "
        f"{len(changed)} places follow an order that is {weight:.0%} the population's",
        numbers={"gap_before": before, "gap_after": after, "bound": bound, "weight": weight},
        taken_out=tuple(ids[row] for row in changed[:, 0].tolist()),
        put_in=tuple(ids[row] for row in changed[:, 1].tolist()),
    )


def _novelty(asked: int, changed: Rows, ids: Sequence[str]) -> Intervention:
    return Intervention(
        kind="novelty",
        reason=f"{asked} places are asked to lie outside of her dominant interests: {len(changed)} put in",
        numbers={"asked": float(asked), "put_in": float(len(changed))},
        taken_out=tuple(ids[row] for row in changed[:, 0].tolist()),
        put_in=tuple(ids[row] for row in changed[:, 1].tolist()),
    )
