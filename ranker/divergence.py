"""How far the interests that a slate shows are from those that a person has: C_KL and its kin.

Axes: N items, C categories (interests), M slates, S places.
"""

import functools
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from ranker.config import Divergence

Floats = NDArray[np.floating]
Array = NDArray[np.float64]

DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)


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
    p_C = np.asarray(target_C, np.float64)
    q_MC = (1 - smoothing) * np.asarray(shown_MC, np.float64) + smoothing * p_C
    if divergence == "kl":
        wanted = p_C > 0
        p_C = p_C[wanted]
        found = float(p_C @ np.log(p_C)) - np.log(q_MC[:, wanted]) @ p_C
    elif divergence == "hellinger":
        found = np.sqrt(np.maximum(0, 1 - np.sqrt(p_C * q_MC).sum(1)))
    else:
        half_MC = (p_C + q_MC) / 2
        found = (xlogy(p_C, p_C).sum() + xlogy(q_MC, q_MC).sum(1)) / 2 - xlogy(half_MC, half_MC).sum(1)
    return np.asarray(np.maximum(0, found), np.float64)


def miscalibration(target_C: Floats, shown_C: Floats, smoothing: float = 0.01, divergence: Divergence = "kl") -> float:
    """`divergences` of one slate: C_KL(p, q) by default.

    Example:
        >>> miscalibration(np.array([0.5, 0.5]), np.array([0.5, 0.5]))
        0.0
        >>> round(miscalibration(np.array([0.5, 0.5]), np.array([1.0, 0.0])), 3)
        1.959
    """
    return float(divergences(target_C, np.asarray(shown_C)[None], smoothing, divergence)[0])
