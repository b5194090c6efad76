"""How far the interests that a slate shows are from those that a person has: C_KL and its kin.

Axes: N items, C categories (interests), M slates, S places.
"""

import functools
import math
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ranker.compiled import compiled
from ranker.config import Divergence

Floats = NDArray[np.floating]
Array = NDArray[np.float64]

DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)
#: what compiled functions know them by
KINDS: dict[Divergence, int] = {"kl": 0, "hellinger": 1, "jensen-shannon": 2}


def shares(interests_NC: Floats, weights_N: Floats | None = None) -> Array:
    """q(g|u): the share of each category among the shown items that have one; zeros where none has.

    Shapes: interests_NC (N, C), weights_N (N,); returns (C,).
    Source: Steck (2018), eq. 3; items without a category are left out of the denominator.
    """
    shown_C = interests_NC.sum(0, dtype=np.float64) if weights_N is None else weights_N @ interests_NC
    total = shown_C.sum()
    return shown_C / total if total > 0 else np.asarray(shown_C, np.float64)


@functools.lru_cache(maxsize=256)
def attention(places: int) -> Array:
    """How much each place is looked at, 1 / log2(place + 2) with the first place 0: NDCG's discount.

    Shapes: returns (S,), which cannot be written to.
    """
    found: Array = 1 / np.log2(np.arange(2, places + 2))
    found.flags.writeable = False
    return found


def divergences(
    target_C: Floats, shown_MC: Floats, smoothing: float = 0.01, divergence: Divergence = "kl"
) -> NDArray[np.float64]:
    """How far the shown shares of M slates are from the wanted ones; 0 exactly where they are equal.

    q is smoothed to (1 - alpha) q + alpha p, so that under C_KL a missing category costs much but not infinitely much.

    Units: nats for "kl" (0 to -log alpha) and "jensen-shannon" (0 to log 2); Hellinger's distance lies in 0 to 1.
    Source: Steck (2018), eqs. 4-5; lin1991divergence; hellinger1909neue; for slates: dasilva2021exploiting.
    """
    p_C, lined_MC = np.asarray(target_C, np.float64), np.ascontiguousarray(shown_MC, np.float64)
    return _apart_of(p_C, lined_MC, smoothing, KINDS[divergence])


def miscalibration(target_C: Floats, shown_C: Floats, smoothing: float = 0.01, divergence: Divergence = "kl") -> float:
    """`divergences` of one slate: C_KL(p, q) by default.

    Example:
        >>> miscalibration(np.array([0.5, 0.5]), np.array([0.5, 0.5]))
        0.0
        >>> round(miscalibration(np.array([0.5, 0.5]), np.array([1.0, 0.0])), 3)
        1.959
    """
    return float(divergences(target_C, np.asarray(shown_C)[None], smoothing, divergence)[0])


def slate_divergences(
    target_C: Floats,
    interests_NC: Floats,
    before_S: NDArray[np.int64],
    shown_S: NDArray[np.int64],
    *,
    smoothing: float = 0.01,
    divergence: Divergence = "kl",
) -> tuple[float, float, float]:
    """`divergences` of a slate as it was, as it is shown, and as it is looked at: each place weighed by `attention`.

    Args:
        before_S, shown_S: rows of `interests_NC`, as many.
    """
    return _slate(
        np.asarray(target_C, np.float64),
        np.ascontiguousarray(interests_NC),
        before_S,
        shown_S,
        attention(len(shown_S)),
        smoothing,
        KINDS[divergence],
    )


@compiled
def _slate(
    p_C: Array,
    interests_NC: Floats,
    before_S: NDArray[np.int64],
    shown_S: NDArray[np.int64],
    worth_S: Array,
    smoothing: float,
    kind: int,
) -> tuple[float, float, float]:
    shown_3C = np.zeros((3, len(p_C)))
    for place in range(len(shown_S)):
        for c in range(len(p_C)):
            share = interests_NC[shown_S[place], c]
            shown_3C[0, c] += interests_NC[before_S[place], c]
            shown_3C[1, c] += share
            shown_3C[2, c] += worth_S[place] * share
    for m in range(3):
        total = shown_3C[m].sum()
        if total > 0:
            shown_3C[m] /= total
    before, shown, seen = _apart_of(p_C, shown_3C, smoothing, kind)
    return before, shown, seen


@compiled
def _apart(p_C: Array, shown_C: Array, smoothing: float, kind: int) -> float:
    """`divergences` of one slate, by the number of the divergence in KINDS."""
    found = 1.0 if kind == 1 else 0.0
    for p, shown in zip(p_C, shown_C):  # noqa: B905 (numba knows no strict)
        q = (1 - smoothing) * shown + smoothing * p
        if kind == 0:
            if p > 0:
                found += p * math.log(p / q)
        elif kind == 1:
            found -= math.sqrt(p * q)
        elif p + q > 0:
            half = (p + q) / 2
            found -= half * math.log(half)
            if p > 0:
                found += p * math.log(p) / 2
            if q > 0:
                found += q * math.log(q) / 2
    found = max(0.0, found)
    return math.sqrt(found) if kind == 1 else found


@compiled
def _apart_of(p_C: Array, shown_MC: Array, smoothing: float, kind: int) -> Array:
    found_M = np.empty(len(shown_MC))
    for m in range(len(shown_MC)):
        found_M[m] = _apart(p_C, shown_MC[m], smoothing, kind)
    return found_M
