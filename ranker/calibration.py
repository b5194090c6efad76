"""Calibrated rerank: a slate holds a person's interests in proportion (Steck, RecSys 2018; key steck2018calibrated).

How far a slate is from the interests can be said as Kullback-Leibler ("kl", C_KL), Jensen-Shannon or Hellinger. All
three are sums over categories of a concave gain, so one greedy pass serves them, and a MILP can be exact
(experiments/optimum.py). How they are measured stands in ranker/divergence.py, what the interests are in
ranker/interests.py.

Axes: N candidates, C categories (interests), S places.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from ranker.compiled import compiled
from ranker.config import Calibration, Divergence
from ranker.divergence import KINDS, miscalibration
from ranker.errors import RequestError

Floats = NDArray[np.floating]
Array = NDArray[np.float64]

#: lambda is solved for to within one step of this many
STEPS = 64
#: gains that are worked out once for all candidates
LEVELS = 16


class Wish(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a request wants its slate calibrated; what it leaves out is as configured.

    Lambda is set by `strength`, alone or as what a personal one grows to, or by `target`.
    """

    strength: (
        Annotated[float, Meta(ge=0, le=1, description="Lambda: 0 is utility alone, 1 proportion alone.")] | None
    ) = None
    personal: Annotated[
        bool, Meta(description="Lambda grows to the configured strength with what is known of the user.")
    ] = False
    target: (
        Annotated[
            float, Meta(ge=0, description="Take the smallest lambda whose slate is miscalibrated by at most this.")
        ]
        | None
    ) = None
    order: (
        Annotated[
            float, Meta(ge=0, le=1, description="0 shows the set in order of utility, 1 lets minorities stand higher.")
        ]
        | None
    ) = None


def settled(defaults: Calibration, asked: "float | str | Wish | None") -> Calibration:
    """The configuration as a request changes it: a number is lambda, "personal" a personal one, a Wish says more.

    Raises:
        RequestError: a number out of range, another word, or two things that set lambda.

    Example:
        >>> settled(Calibration(target=0.1), 0.5).target is None
        True
        >>> settled(Calibration(), Wish(order=1.0)).order
        1.0
    """
    if asked is None:
        return defaults
    if isinstance(asked, str):
        if asked != "personal":
            raise RequestError("calibration", asked, 'send a number from 0 to 1, "personal" or an object')
        asked = Wish(personal=True)
    if not isinstance(asked, Wish):
        return replace(defaults, strength=_share("calibration", asked), personal=False, target=None)
    if asked.target is not None and (asked.personal or asked.strength is not None):
        raise RequestError(
            "calibration.target", asked.target, "send it without strength and personal, which set lambda"
        )
    changed: dict[str, Any] = {}
    if asked.target is not None:
        if not 0 <= asked.target < math.inf:
            raise RequestError("calibration.target", asked.target, "send a miscalibration from 0 up")
        changed.update(target=asked.target, personal=False)
    elif asked.personal or asked.strength is not None:
        changed.update(target=None, personal=asked.personal)
    if asked.strength is not None:
        changed["strength"] = _share("calibration.strength", asked.strength)
    if asked.order is not None:
        changed["order"] = _share("calibration.order", asked.order)
    return replace(defaults, **changed)


def _share(thing: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise RequestError(thing, value, "send a number from 0 (utility) to 1 (calibration)")
    return value


def personal(strength: float, acts: float, confidence: float) -> float:
    """A person's own lambda: `strength` as far as her profile is known, half of it at `confidence` effective acts.

    Source: the idea of confidence-aware calibration (naghiaei2022confidence) and of personal weights
    (dasilva2021exploiting); the form, the reliability of a mean of n draws, is ours.

    Example:
        >>> [personal(0.6, acts, confidence=10.0) for acts in (0.0, 10.0)]
        [0.0, 0.3]
    """
    return strength * acts / (acts + confidence)


def rerank(
    utility_N: Floats,
    interests_NC: Floats,
    target_C: Floats,
    *,
    slots: int,
    strength: float,
    smoothing: float = 0.01,
    divergence: Divergence = "kl",
    pinned: Sequence[int] = (),
    floor: bool = False,
    order: float = 0.0,
) -> NDArray[np.int64]:
    """Choose `slots` candidates for utility and calibration together; return them in the order of utility.

    Greedy maximisation of (1 - lambda) mean(s) + lambda sum_g gain_g(q(g)), where s is the utility scaled to [0, 1]
    over the candidates (min-max), both the mean and q divide by `slots` from the first pick on, and gain_g is p log q~
    for C_KL, sqrt(p q~) for Hellinger (his distance squared, less 1) and the category's part of the negative
    Jensen-Shannon divergence; q~ = (1 - alpha) q + alpha p. So the objective is submodular, lambda means the same at
    every slate length, and for the first two it is monotone (greedy reaches 1 - 1/e of the best gain). A candidate
    without categories adds nothing to q. The set is greedy's, the order is utility's: greedy order cost 16 % of
    NDCG@10 on MovieLens-100K and utility order 0.2 % (docs/decisions.md).

    Args:
        strength: lambda; 0 is utility order alone, 1 calibration alone with utility breaking ties.
        smoothing: alpha.
        pinned: rows that are chosen in any case. They stand first, as given, and count as the interests they hold.
        floor: an interest of share p has at least floor(slots p) of the places, or as many as there are candidates
            that hold it. An item of several categories is a place of each. Pinned items come before it.
        order: 0 is the order of utility, 1 greedy's own, in which a minority stands higher (see `ordered`).

    Shapes: utility_N (N,), interests_NC (N, C), target_C (C,); returns (min(slots, N),) row numbers.
    Source: Steck (2018), eq. 6; differences: scaling of s, the fixed denominator (his eq. 9 in effect), the order.
    """
    given = _given(utility_N, interests_NC, target_C, pinned)
    return _reranked(*given, slots, float(smoothing), KINDS[divergence], floor, float(strength), float(order))


def to_target(
    utility_N: Floats,
    interests_NC: Floats,
    target_C: Floats,
    *,
    slots: int,
    target: float,
    smoothing: float = 0.01,
    divergence: Divergence = "kl",
    pinned: Sequence[int] = (),
    floor: bool = False,
    order: float = 0.0,
) -> tuple[NDArray[np.int64], float]:
    """The `rerank` with the smallest lambda whose slate is miscalibrated by at most `target`, and that lambda.

    Found by bisection: the lambda returned reaches the target and the one a STEPS-th below does not. Greedy need not
    be monotone in lambda, so a smaller one further below may reach it by chance. Where none does it is 1.

    Units: target as `divergences` gives it, in nats for "kl".
    """
    given = _given(utility_N, interests_NC, target_C, pinned)
    laid = _lay_out(*given, slots, float(smoothing), KINDS[divergence], floor)
    if not laid.wanted:
        return ordered(laid, _choose(laid, laid.pins_P, 0.0), float(order)), 0.0

    def found(step: int, known: NDArray[np.int64]) -> tuple[NDArray[np.int64], bool]:
        chosen = _choose(laid, known, step / STEPS)
        return chosen, miscalibration(p_C, _shown(laid, chosen), smoothing, divergence) <= target

    p_C, low, high = np.append(laid.p_C, 0.0), 0, STEPS
    chosen, reached = found(low, laid.pins_P)
    if not reached:
        below, (chosen, reached) = chosen, found(high, laid.pins_P)
        while reached and high - low > 1:
            middle = (low + high) // 2
            # a value is linear in lambda: what is best at both ends is best between them
            same = below[: int((below == chosen).argmin())]
            tried, reaches = found(middle, same if len(same) else laid.pins_P)
            if reaches:
                chosen, high = tried, middle
            else:
                below, low = tried, middle
        low = high
    return ordered(laid, chosen, float(order)), low / STEPS


def _given(
    utility_N: Floats, interests_NC: Floats, target_C: Floats, pinned: Sequence[int]
) -> tuple[Array, Floats, Array, NDArray[np.int64]]:
    """In the types that the compiled functions are compiled for."""
    return (
        np.asarray(utility_N, np.float64),
        np.ascontiguousarray(interests_NC),
        np.asarray(target_C, np.float64),
        np.asarray(pinned, np.int64),
    )


class _Laid(NamedTuple):
    """Candidates laid out once, to be chosen from at any lambda, in the order of utility.

    It says which candidate holds which wanted category, by candidate and by category; an entry is one category of one
    candidate.

    Attributes:
        order_N: the rows by falling utility; the other axes N go by it.
        scaled_N: utility, min-max, divided by the slots.
        pins_P: the pinned candidates.
        p_C: the target as shares.
        owed_C: places that an interest's floor asks for.
        wanted: whether there is a target.
        start_N: the candidate's first entry, and after the last candidate the number of entries.
        row_E, category_E: of each entry.
        share_E: how much of the candidate it is.
        gain_E: how much of the smoothed shares of a slate it makes.
        term_E: what it adds to the objective in an empty slate.
        level_E: which of `level_L` its gain is, -1 where there are too many: items hold halves and thirds, so what a
            category adds is worked out once for each of a few gains.
        first_C, entry_E: entry_E[first_C[c] : first_C[c + 1]] are the category's.
        linear_N: what a candidate adds that is linear in its shares.
        rest_N: its shares of what is not wanted.
    """

    order_N: NDArray[np.int64]
    scaled_N: Array
    pins_P: NDArray[np.int64]
    p_C: Array
    owed_C: NDArray[np.int64]
    wanted: bool
    slots: int
    smoothing: float
    kind: int
    start_N: NDArray[np.int64]
    row_E: NDArray[np.int64]
    category_E: NDArray[np.int64]
    share_E: Array
    gain_E: Array
    term_E: Array
    level_E: NDArray[np.int64]
    level_L: Array
    first_C: NDArray[np.int64]
    entry_E: NDArray[np.int64]
    linear_N: Array
    rest_N: Array


@compiled
def falling(utility_N: Floats) -> NDArray[np.int64]:
    """Rows by falling utility, of equals the first; those that are not finite are left out.

    Example:
        >>> falling(np.array([0.5, np.nan, 0.9])).tolist()
        [2, 0]
    """
    finite_M = np.flatnonzero(np.isfinite(utility_N))
    return finite_M[np.argsort(-utility_N[finite_M], kind="mergesort")]


@compiled
def _reranked(
    utility_N: Array,
    share_NC: Floats,
    target_C: Array,
    pinned_P: NDArray[np.int64],
    slots: int,
    smoothing: float,
    kind: int,
    floor: bool,
    strength: float,
    order: float,
) -> NDArray[np.int64]:
    laid = _lay_out(utility_N, share_NC, target_C, pinned_P, slots, smoothing, kind, floor)
    return ordered(laid, _choose(laid, laid.pins_P, strength), order)


@compiled
def ordered(laid: _Laid, chosen_S: NDArray[np.int64], blend: float) -> NDArray[np.int64]:
    """The rows of the chosen as they are shown: by (1 - blend) x place by utility + blend x place in greedy.

    Args:
        chosen_S: places in the order of utility, as greedy picked them; the pinned ones come first and stay there.
    """
    pins = len(laid.pins_P)
    free_F = chosen_S[pins:]
    best_F = np.argsort(free_F)
    key_F = (1 - blend) * np.arange(len(free_F)) + blend * best_F
    shown_S = chosen_S.copy()
    shown_S[pins:] = free_F[best_F[np.argsort(key_F, kind="mergesort")]]
    return laid.order_N[shown_S]


@compiled
def _gain(q: float, p: float, kind: int) -> float:
    """A category's part of the objective, up to a constant and what is linear in the shares."""
    if kind == 0:
        return p * math.log(q)
    if kind == 1:
        return math.sqrt(p * q)
    return 0.5 * ((p + q) * math.log(p + q) - q * math.log(q))


@compiled
def _lay_out(
    utility_N: Array,
    share_NC: Floats,
    target_C: Array,
    pinned_P: NDArray[np.int64],
    slots: int,
    smoothing: float,
    kind: int,
    floor: bool,
) -> _Laid:
    order_N, items, total = np.argsort(-utility_N, kind="mergesort"), len(utility_N), target_C.sum()
    slots, wanted = min(slots, items), total > 0 and min(slots, items) > 0
    place_N, scaled_N = np.empty(items, np.int64), np.zeros(items)
    place_N[order_N] = np.arange(items)
    span = utility_N[order_N[0]] - utility_N[order_N[-1]] if wanted else 0.0
    if span > 0:
        scaled_N[:] = (utility_N[order_N] - utility_N[order_N[-1]]) / (span * slots)
    p_C = target_C / total if wanted else target_C.copy()
    categories, scale = len(p_C), (1 - smoothing) / max(slots, 1)
    start_N, held_C = np.zeros(items + 1, np.int64), np.zeros(categories, np.int64)
    linear_N, rest_N = np.zeros(items), np.zeros(items)
    most = items * categories
    row_E, category_E = np.empty(most, np.int64), np.empty(most, np.int64)
    share_E, gain_E, term_E = np.empty(most), np.empty(most), np.empty(most)
    level_E, level_L, levels = np.empty(most, np.int64), np.empty(LEVELS), 0
    begun_C = np.zeros(categories)
    for c in range(categories):
        if p_C[c] > 0:
            begun_C[c] = _gain(smoothing * p_C[c], p_C[c], kind)
    # Jensen-Shannon has a part that is linear in the shares, which is all of it for what is not wanted
    linear = 0.5 * math.log(2.0) * scale if kind == 2 else 0.0
    entry = 0
    for n in range(items):
        row = order_N[n]
        for c in range(categories):
            share = share_NC[row, c]
            if share > 0:
                linear_N[n] -= linear * share
                if p_C[c] > 0:
                    row_E[entry], category_E[entry], share_E[entry], gain_E[entry] = n, c, share, scale * share
                    term_E[entry] = _gain(smoothing * p_C[c] + gain_E[entry], p_C[c], kind) - begun_C[c]
                    level = 0
                    while level < levels and level_L[level] != gain_E[entry]:
                        level += 1
                    if level == levels < LEVELS:
                        level_L[level] = gain_E[entry]
                        levels += 1
                    level_E[entry] = level if level < levels else -1
                    held_C[c] += 1
                    entry += 1
                else:
                    rest_N[n] += share
        start_N[n + 1] = entry
    first_C = np.zeros(categories + 1, np.int64)
    first_C[1:] = np.cumsum(held_C)
    entry_E, next_C = np.empty(entry, np.int64), first_C.copy()
    for e in range(entry):
        entry_E[next_C[category_E[e]]] = e
        next_C[category_E[e]] += 1
    owed_C = np.zeros(categories, np.int64)
    if floor and wanted:
        owed_C[:] = np.minimum(np.floor(slots * p_C + 1e-9), held_C)
    return _Laid(
        order_N,
        scaled_N,
        place_N[pinned_P],
        p_C,
        owed_C,
        wanted,
        slots,
        smoothing,
        kind,
        start_N,
        row_E[:entry],
        category_E[:entry],
        share_E[:entry],
        gain_E[:entry],
        term_E[:entry],
        level_E[:entry],
        level_L[:levels],
        first_C,
        entry_E,
        linear_N,
        rest_N,
    )


@compiled
def _choose(laid: _Laid, first_F: NDArray[np.int64], strength: float) -> NDArray[np.int64]:
    """Greedy picks, as places in the order of utility: after each, only what holds a category of the pick is worth
    something else.

    Args:
        first_F: the first picks: what is pinned, or more where more is known.
    """
    items, slots, p_C, kind = len(laid.order_N), laid.slots, laid.p_C, laid.kind
    chosen_S, free_N = np.empty(slots, np.int64), np.ones(items, np.bool_)
    if strength <= 0 or not laid.wanted:
        taken = min(len(first_F), slots)
        chosen_S[:taken] = first_F[:taken]
        free_N[first_F] = False
        chosen_S[taken:] = np.flatnonzero(free_N)[: slots - taken]
        return chosen_S
    term_E, held_C, owed_C = laid.term_E.copy(), laid.smoothing * p_C, laid.owed_C.copy()
    value_N = np.empty(items)
    added_L, due = np.empty(len(laid.level_L)), owed_C.sum()
    for n in range(items):
        value_N[n] = _value(laid, term_E, n, strength)
    for slot in range(slots):
        pick = -1
        if slot < len(first_F):
            pick = first_F[slot]
        else:
            best, strict = -np.inf, due > 0 and due >= slots - slot  # every place left is owed to an interest
            for n in range(items):
                if value_N[n] > best and (not strict or _owes(laid, owed_C, n)):
                    best, pick = value_N[n], n
        chosen_S[slot] = pick
        free_N[pick], value_N[pick] = False, -np.inf
        for entry in range(laid.start_N[pick], laid.start_N[pick + 1]):
            c = laid.category_E[entry]
            held_C[c] += laid.gain_E[entry]
            if owed_C[c] > 0:
                owed_C[c] -= 1
                due -= 1
            now = _gain(held_C[c], p_C[c], kind)
            for level in range(len(added_L)):
                added_L[level] = _gain(held_C[c] + laid.level_L[level], p_C[c], kind) - now
            for place in range(laid.first_C[c], laid.first_C[c + 1]):
                other = laid.entry_E[place]
                if free_N[laid.row_E[other]]:
                    level = laid.level_E[other]
                    own = added_L[level] if level >= 0 else _gain(held_C[c] + laid.gain_E[other], p_C[c], kind) - now
                    term_E[other] = own
        for entry in range(laid.start_N[pick], laid.start_N[pick + 1]):
            c = laid.category_E[entry]
            for place in range(laid.first_C[c], laid.first_C[c + 1]):
                n = laid.row_E[laid.entry_E[place]]
                if free_N[n]:
                    value_N[n] = _value(laid, term_E, n, strength)
    return chosen_S


@compiled
def _value(laid: _Laid, term_E: Array, n: int, strength: float) -> float:
    gain = laid.linear_N[n]
    for entry in range(laid.start_N[n], laid.start_N[n + 1]):
        gain += term_E[entry]
    value: float = (1 - strength) * laid.scaled_N[n] + strength * gain
    return value


@compiled
def _owes(laid: _Laid, owed_C: NDArray[np.int64], n: int) -> bool:
    """Whether the candidate holds an interest that is owed a place."""
    owed = 0
    for entry in range(laid.start_N[n], laid.start_N[n + 1]):
        owed += owed_C[laid.category_E[entry]]
    return owed > 0


@compiled
def _shown(laid: _Laid, chosen_S: NDArray[np.int64]) -> Array:
    """The shares of the chosen; what is not wanted is one category more."""
    shown_C = np.zeros(len(laid.p_C) + 1)
    for n in chosen_S:
        shown_C[-1] += laid.rest_N[n]
        for entry in range(laid.start_N[n], laid.start_N[n + 1]):
            shown_C[laid.category_E[entry]] += laid.share_E[entry]
    total = shown_C.sum()
    return shown_C / total if total > 0 else shown_C
