"""The echo-chamber guard: personalisation stays within stated bounds, and every time it is held back the slate says so.

Three bounds, each of which can be lifted (config.Guard): how far the slate's worth to this person may lie above its
worth to the population (the sycophancy gap), how far her interests of late may lie from her long-term ones (drift),
and how many places are at least outside of her dominant interests (novelty). Nothing is ever removed: places change
their items, so a slate is as long as it would have been. There is no chance in it: the same request gets the same.

The caution is that of barreto2025capturing's closing remarks; gap and blending are ours, after the guardrail that a
fully personal reward calls for. Axes: N candidates, S places, C categories (interests).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ranker.config import Guard

Floats = NDArray[np.floating]
Rows = NDArray[np.int64]
Rerank = Callable[[NDArray[np.float32]], Rows]
"""utility of the candidates -> the slate's rows in order"""

#: halvings of the blend's weight, which is found to 1/64
HALVINGS = 6
#: reranks before the order becomes the population's altogether; a second one is rare
TURNS = 4


class Intervention(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """What the guard changed in a slate, why, and by how much.

    Attributes:
        numbers: blend: gap_before, gap_after, bound, weight; drift: distance_before, distance_after, bound;
            novelty: asked, put_in (places).
        put_in: items that came into the slate for novelty's sake, `taken_out` those whose places they took.
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
        utility_N: what they are ordered by; blended where the guard blended.
        gap: the sycophancy gap of the first `window` places.
    """

    order_S: Rows
    utility_N: NDArray[np.float32]
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
    return float((np.asarray(personal_N, np.float64) - population_N).mean())


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
    policy: Guard,
    order_S: Rows,
    utility_N: NDArray[np.float32],
    candidates: Candidates,
    *,
    target_C: Floats,
    window: int,
    rerank: Rerank,
) -> Guarded:
    """Hold the first `window` places of a slate to the policy's novelty and gap; the rest follows as it was.

    Where the gap is over its bound the utility is blended toward the population's order, (1 - w) u + w v with v
    P(preferred | population) on u's mean and spread, and the slate is made again by `rerank`. The weight w is the
    smallest, to 1/64, for which the blended utility's own first places keep the bound less what rerank and novelty
    added the last time; so what is returned keeps the bound, or w = 1. Where all candidates are shown there is no
    other choice to make, and nothing is blended.

    Args:
        order_S: what `rerank` makes of the utility as it is.
        target_C: the interests that were asked for, zeros where nothing is known: then nothing is new or old to her.

    Rows whose utility is not finite never enter.
    """
    novel, put_in, taken_out = _renewed(policy, order_S, utility_N, candidates, target_C=target_C, window=window)
    personal_N, population_N = candidates.personal_N, candidates.population_N
    gap_before = gap = _gap(novel, candidates, window)
    interventions: list[Intervention] = []
    finite_N = np.isfinite(utility_N)
    if gap > policy.gap and window < int(finite_N.sum()):
        other_N = _on_scale(population_N, utility_N, finite_N)
        apart_N = np.where(finite_N, np.asarray(personal_N, np.float64) - population_N, 0.0)

        own_N = np.where(finite_N, utility_N, 0.0)

        def blended(weight: float) -> NDArray[np.float32]:
            mixed_N = np.where(finite_N, (1 - weight) * own_N + weight * other_N, -np.inf)
            return mixed_N.astype(np.float32)

        def plain(weight: float) -> float:
            return float(apart_N[np.argpartition(-blended(weight), window - 1)[:window]].mean())

        aim, weight = policy.gap - (gap - plain(0.0)), 0.0
        for turn in range(TURNS):
            weight = 1.0 if turn == TURNS - 1 else _smallest(plain, aim, weight)
            utility = blended(weight)
            novel, put_in, taken_out = _renewed(
                policy, rerank(utility), utility, candidates, target_C=target_C, window=window
            )
            gap = _gap(novel, candidates, window)
            if gap <= policy.gap or weight == 1:
                break
            aim -= gap - policy.gap
        utility_N = utility
        interventions.append(_blend(gap_before, gap, policy.gap, weight))
    if put_in:
        places = int(policy.novelty * window + 1e-9)
        interventions.append(_novelty(places, put_in, taken_out, candidates))
    return Guarded(order_S=novel, utility_N=utility_N, gap=gap, interventions=tuple(interventions))


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


def _gap(order_S: Rows, candidates: Candidates, window: int) -> float:
    shown = order_S[:window]
    return sycophancy_gap(candidates.personal_N[shown], candidates.population_N[shown])


def _on_scale(population_N: Floats, utility_N: Floats, finite_N: NDArray[np.bool_]) -> Floats:
    """The population's order in units of this request's utilities."""
    known, other = np.asarray(utility_N, np.float64)[finite_N], np.asarray(population_N, np.float64)[finite_N]
    spread = other.std()
    scale = known.std() / spread if spread > 0 else 0.0
    return np.asarray(known.mean() + scale * (np.asarray(population_N, np.float64) - other.mean()))


def _smallest(plain: Callable[[float], float], aim: float, least: float) -> float:
    """The smallest weight above `least` for which `plain` is at most `aim`, by halving; 1 where none is."""
    steps = 1 << HALVINGS
    low, high = int(least * steps), steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if plain(middle / steps) <= aim else (middle, high)
    return high / steps


def _renewed(
    policy: Guard, order_S: Rows, utility_N: Floats, candidates: Candidates, *, target_C: Floats, window: int
) -> tuple[Rows, list[int], list[int]]:
    """The order with enough novel items in its window, those put in, and those whose places they took.

    Novel is what has interests, less than half of them among the dominant ones. The best novel candidates take the
    last places that familiar items hold; an interest that is not dominant keeps what its share entitles it to.
    """
    shown = order_S[:window]
    asked = int(policy.novelty * len(shown) + 1e-9)
    if not asked or not np.any(target_C):
        return order_S, [], []
    interests_NC, familiar_C = candidates.interests_NC, dominant(target_C, policy.dominant)
    shown_SC = interests_NC[shown]
    novel_S = _novel(shown_SC, familiar_C)
    lack = asked - int(novel_S.sum())
    if lack <= 0:
        return order_S, [], []
    waiting_N = _novel(interests_NC, familiar_C) & np.isfinite(utility_N)
    if candidates.open_N is not None:
        waiting_N &= candidates.open_N
    waiting_N[shown] = False
    waiting = np.flatnonzero(waiting_N)
    waiting = waiting[np.argsort(-utility_N[waiting], kind="stable")[:lack]]
    free_S = ~novel_S if candidates.fixed_N is None else ~novel_S & ~candidates.fixed_N[shown]
    entitled_C = np.where(familiar_C, 0.0, np.floor(len(shown) * np.asarray(target_C) + 1e-9))
    order_S, held_C = order_S.copy(), shown_SC.sum(0, dtype=np.float64)
    put_in, taken_out = [], []
    for row in waiting.tolist():
        stays_SC = held_C - shown_SC >= np.minimum(held_C, entitled_C) - 1e-6
        places = np.flatnonzero(free_S & stays_SC.all(1))
        if not len(places):
            break
        place = int(places[-1])
        leaves = int(order_S[place])
        order_S[window:][order_S[window:] == row] = leaves  # all are placed: the two change places
        order_S[place] = row
        free_S[place] = False
        held_C += interests_NC[row] - interests_NC[leaves]
        put_in.append(row)
        taken_out.append(leaves)
    return order_S, put_in, taken_out


def _novel(interests_NC: Floats, familiar_C: NDArray[np.bool_]) -> NDArray[np.bool_]:
    total_N = interests_NC.sum(1)
    found_N: NDArray[np.bool_] = (interests_NC @ familiar_C.astype(interests_NC.dtype) < 0.5 * total_N) & (total_N > 0)
    return found_N


def _blend(before: float, after: float, bound: float, weight: float) -> Intervention:
    reason = (
        f"the slate was worth {before:.2f} more to her than to the population and may be {bound:.2f}: "
        f"the order is {weight:.0%} the population's"
    )
    numbers = {"gap_before": before, "gap_after": after, "bound": bound, "weight": weight}
    return Intervention(kind="blend", reason=reason, numbers=numbers)


def _novelty(places: int, put_in: list[int], taken_out: list[int], candidates: Candidates) -> Intervention:
    count = len(put_in)
    return Intervention(
        kind="novelty",
        reason=f"{places} places are asked to lie outside of her dominant interests: {count} put in",
        numbers={"asked": float(places), "put_in": float(count)},
        put_in=tuple(candidates.ids[row] for row in put_in),
        taken_out=tuple(candidates.ids[row] for row in taken_out),
    )
