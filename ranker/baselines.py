"""Rankers that are hard to beat for how little they know: popularity, mean utility, and EASE.

All learn from the same triples: who, what, and the utility of its labels (the objectives' weighted sum).
Axes: U users, I items, N triples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Triples:
    """What the training part of a log says; codes count from 0.

    Shapes: users_N, items_N int64 codes; utility_N float64.
    """

    users_N: NDArray[np.int64]
    items_N: NDArray[np.int64]
    utility_N: Floats
    users: int
    items: int

    @property
    def liked_N(self) -> NDArray[np.bool_]:
        """Triples that speak for the item."""
        return self.utility_N > 0


def popularity(seen: Triples) -> Floats:
    """How often each item was liked."""
    return np.bincount(seen.items_N[seen.liked_N], minlength=seen.items).astype(np.float64)


def mean_utility(seen: Triples, *, prior: float = 5.0) -> Floats:
    """Each item's mean utility, shrunk towards the overall mean by `prior` pseudo-ratings.

    Example:
        >>> codes = np.array([0, 0, 1])
        >>> seen = Triples(users_N=codes, items_N=codes, utility_N=np.array([1.0, 1.0, 0.0]), users=2, items=2)
        >>> mean_utility(seen, prior=1.0).round(2).tolist()
        [0.89, 0.33]
    """
    overall = float(seen.utility_N.mean()) if len(seen.utility_N) else 0.0
    total = np.bincount(seen.items_N, seen.utility_N, minlength=seen.items)
    return np.asarray((total + prior * overall) / (np.bincount(seen.items_N, minlength=seen.items) + prior))


class Ease:
    """EASE: the item-item linear model with zero diagonal, in closed form.

    B = I - P diag(1/diag(P)), P = (X'X + l2 I)^-1; a user's scores are x B.

    Args:
        l2: the ridge.
        centred: False for the paper's form, X = 1 where the user liked the item. True for a stronger one on graded
            logs: X = utility minus the means of item and user, and the item's mean utility added to the scores.
        most: items beyond the most frequent ones keep no weights; the inverse grows with the cube.

    Source: steck2019embarrassingly, eq. 8.
    """

    def __init__(self, seen: Triples, *, l2: float, centred: bool = False, most: int = 6000) -> None:
        counts_I = np.bincount(seen.items_N, minlength=seen.items)
        self._kept = np.sort(np.argsort(-counts_I, kind="stable")[:most])
        column_I = np.full(seen.items, -1)
        column_I[self._kept] = np.arange(len(self._kept))
        take_N = (column_I[seen.items_N] >= 0) & (seen.liked_N | centred)
        values_N = np.ones(len(seen.users_N))
        self.base_I = np.zeros(seen.items)
        if centred:
            self.base_I = mean_utility(seen)
            rest_N = seen.utility_N - self.base_I[seen.items_N]
            counts_U = np.bincount(seen.users_N, minlength=seen.users)
            user_U = np.bincount(seen.users_N, rest_N, minlength=seen.users) / (counts_U + 5)
            values_N = rest_N - user_U[seen.users_N]
        self.x_UI = np.zeros((seen.users, len(self._kept)), np.float32)
        self.x_UI[seen.users_N[take_N], column_I[seen.items_N[take_N]]] = values_N[take_N]
        gram_II = (self.x_UI.T @ self.x_UI).astype(np.float64)
        gram_II[np.diag_indices_from(gram_II)] += l2
        inverse_II = np.linalg.inv(gram_II)
        self.weights_II = inverse_II / -np.diag(inverse_II)
        np.fill_diagonal(self.weights_II, 0)

    def scores(self, user: int) -> Floats:
        """Scores of all items (I,) for a user's code; a user without history gets the same for all (or the means)."""
        scores_I = self.base_I.copy()
        if user >= 0:
            scores_I[self._kept] += self.x_UI[user] @ self.weights_II
        return scores_I
