"""Preference support: how many OTHER people share one's side of a comparison, and where a minority begins.

Axes: P labelled pairs, U users.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from ranker.errors import RequestError

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

#: groups of one support cannot be narrower than this variance
NARROW = 1e-6


def support(pairs_P2: Rows, users_P: Rows, *, expected_P: ArrayLike = 0.5, strength: float = 2.0) -> Array:
    """Preference support rate of each labelled pair, (P,): the share of OTHER raters who take the same side.

    Shrunk: (n_same + strength . expected) / (n + strength). The person's own votes never count for herself, or
    everybody would support what nobody else has rated.

    Args:
        pairs_P2: rows (preferred, over) of the catalogue.
        users_P: who said so.
        expected_P: the share expected before any rater was heard; a pooled model's probability of the label where
            pairs seldom recur, else 1/2.
        strength: how many raters the expectation counts for.

    Source: the support rate of pafo2026; leaving oneself out and shrinkage are ours (strength 2 around 1/2 is the
    rule of succession).

    Example:
        >>> support(np.array([[0, 1], [0, 1], [1, 0]]), np.array([0, 1, 2])).round(3).tolist()
        [0.5, 0.5, 0.25]
    """
    if not strength > 0:
        raise RequestError("strength", strength, "give how many raters the expectation counts for, above 0")
    low_P2 = np.sort(pairs_P2, axis=1)
    _, pair_P = np.unique(low_P2, axis=0, return_inverse=True)
    up_P = (pairs_P2[:, 0] == low_P2[:, 0]).astype(np.float64)
    votes = 1 + int(pair_P.max(initial=-1))
    _, own_P = np.unique(np.stack([pair_P, users_P]), axis=1, return_inverse=True)
    for_P, all_P = (
        np.bincount(pair_P, weight_P, votes)[pair_P] - np.bincount(own_P, weight_P)[own_P]
        for weight_P in (up_P, np.ones(len(up_P)))
    )
    same_P = np.where(up_P > 0, for_P, all_P - for_P)
    found: Array = (same_P + strength * np.asarray(expected_P, np.float64)) / (all_P + strength)
    return found


def user_support(support_P: Array, users_P: Rows, users: int) -> Array:
    """The mean support of each user's labels, (U,); nan for one without any."""
    counts_U = np.bincount(users_P, minlength=users)
    with np.errstate(invalid="ignore"):
        found: Array = np.bincount(users_P, support_P, users) / counts_U
    return found


def boundary(support_U: Array, *, rounds: int = 100) -> float:
    """The support below which a user belongs to the minority: where two normal components of one variance are equally
    likely.

    A fixed bound of 1/2 would cut through whichever group straddles it; two components find the valley. Users without
    support (nan) are passed over. It is -inf, so that nobody is minority, where one component is empty or the lower
    one holds half of the people or more.

    Source: EM for a mixture of two normals (Dempster et al. 1977), from the extreme twentieths; the choice is ours.

    Example:
        >>> 0.3 < boundary(np.array([0.7] * 8 + [0.3] * 2)) < 0.7, boundary(np.array([0.7, 0.7]))
        (True, -inf)
    """
    values = support_U[~np.isnan(support_U)]
    if len(values) < 2 or np.ptp(values) == 0:
        return -math.inf
    low, high = (float(end) for end in np.quantile(values, [0.05, 0.95]))
    low, high = (low, high) if high > low else (float(values.min()), float(values.max()))
    variance, share = max(float(values.var()) / 4, NARROW), 0.5
    edge = (low + high) / 2
    for _ in range(rounds):
        # the log odds of the lower component; a shared variance makes them linear, and the edge is their zero
        slope = (high - low) / variance
        lower = expit(slope * (edge - values))
        weight = float(lower.sum())
        if not (1e-6 < weight < len(values) - 1e-6 and slope > 0):
            return -math.inf
        low, high = float(lower @ values / weight), float((1 - lower) @ values / (len(values) - weight))
        spread = lower @ (values - low) ** 2 + (1 - lower) @ (values - high) ** 2
        variance, share = max(float(spread) / len(values), NARROW), weight / len(values)
        if not high > low:
            return -math.inf
        edge = (low + high) / 2 + math.log(share / (1 - share)) * variance / (high - low)
    return edge if 0 < (values < edge).mean() < 0.5 else -math.inf
