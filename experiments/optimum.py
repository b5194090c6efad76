"""The exact optimum of the calibrated rerank, by mixed-integer programming: what greedy is measured against.

Maximise (1 - lambda) mean(s) + lambda sum_g gain_g(q_g) over sets of S candidates. Each gain is concave in a share that
is linear in the choice, so it is bounded from above by its tangents. The program over those is solved, tangents are
added where its answer lies, and so on until bound and value meet: an outer approximation (duran1986outer), exact also
for items of several categories. The programs are solved by HiGHS (huangfu2018parallelizing) through scipy.

Axes: N candidates, C categories, S places, X tangents.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array
from scipy.special import xlogy

from ranker.config import Divergence

Array = NDArray[np.float64]
Floats = NDArray[np.floating]
#: places' worth of a category at which its gain has a tangent from the start
TANGENTS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 14.0)
#: where a share may be 0 its slope is taken beside it
LEAST = 1e-9


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """A best set: its rows, its value, and what no set can exceed (the same, but for the solver's tolerance)."""

    rows: NDArray[np.int64]
    value: float
    bound: float


def gain(q: Array, p: Array, divergence: Divergence = "kl") -> Array:
    """What the smoothed shares of the categories are worth, each on its own: minus the divergence, up to a constant."""
    if divergence == "kl":
        return np.asarray(xlogy(p, q), np.float64)
    if divergence == "hellinger":
        return np.asarray(np.sqrt(p * q), np.float64)
    return np.asarray((xlogy(p + q, (p + q) / 2) - xlogy(q, q)) / 2, np.float64)


def slope(q: Array, p: Array, divergence: Divergence = "kl") -> Array:
    """The derivative of `gain` by q, where q > 0."""
    if divergence == "kl":
        return np.asarray(p / q, np.float64)
    if divergence == "hellinger":
        return np.asarray(np.sqrt(p / q) / 2, np.float64)
    return np.asarray(np.log((p + q) / (2 * q)) / 2, np.float64)


class Problem:
    """One slate to choose; the arguments are those of `ranker.calibration.rerank`."""

    def __init__(
        self,
        utility_N: Floats,
        interests_NC: Floats,
        target_C: Floats,
        *,
        slots: int,
        strength: float,
        smoothing: float = 0.01,
        divergence: Divergence = "kl",
    ) -> None:
        utility = np.asarray(utility_N, np.float64)
        spread = utility.max() - utility.min()
        scaled_N = (utility - utility.min()) / spread if spread > 0 else np.zeros(len(utility))
        self.slots, self.strength, self.smoothing, self.divergence = slots, strength, smoothing, divergence
        self.scaled_N = (1 - strength) / slots * scaled_N
        self.p_C = np.asarray(target_C, np.float64) / float(np.sum(target_C))
        self.share_NC = (1 - smoothing) / slots * np.asarray(interests_NC, np.float64)

    def shares(self, rows: NDArray[np.int64]) -> Array:
        """The smoothed shares of these rows, (C,)."""
        return np.asarray(self.share_NC[rows].sum(0) + self.smoothing * self.p_C, np.float64)

    def value(self, rows: NDArray[np.int64]) -> float:
        """What is maximised, written from its definition."""
        gains_C = gain(self.shares(rows), self.p_C, self.divergence)
        return float(self.scaled_N[rows].sum() + self.strength * gains_C.sum())

    def tangents(self, at_X: Array, column_X: NDArray[np.int64]) -> LinearConstraint:
        """A category's gain, the variable after those of the items, lies below its tangent at each point."""
        items, categories = self.share_NC.shape
        p_X = self.p_C[column_X]
        slope_X, gain_X = slope(at_X, p_X, self.divergence), gain(at_X, p_X, self.divergence)
        lines = np.zeros((len(at_X), items + categories))
        lines[:, :items] = -slope_X[:, None] * self.share_NC[:, column_X].T
        lines[np.arange(len(at_X)), items + column_X] = 1
        return LinearConstraint(csr_array(lines), -np.inf, gain_X + slope_X * (self.smoothing * p_X - at_X))


def solve(problem: Problem, *, tolerance: float = 1e-7, rounds: int = 40, seconds: float = 20.0) -> Optimum:
    """A best set, to within `tolerance` of the bound unless the rounds, or the seconds of a round, run out."""
    items, categories = problem.share_NC.shape
    start = [n for n in TANGENTS if n <= problem.slots]
    column_X = np.repeat(np.arange(categories), len(start))
    at_X = problem.smoothing * problem.p_C[column_X]
    at_X += np.tile(start, categories) * (1 - problem.smoothing) / problem.slots
    whole = np.repeat([1.0, 0.0], [items, categories])
    count = LinearConstraint(csr_array(whole[None]), problem.slots, problem.slots)
    bounds = Bounds(np.where(whole > 0, 0.0, -np.inf), np.where(whole > 0, 1.0, np.inf))
    best, bound = np.argsort(-problem.scaled_N, kind="stable")[: problem.slots], np.inf
    for _ in range(rounds):
        found = milp(
            -np.concatenate([problem.scaled_N, np.full(categories, problem.strength)]),
            integrality=whole,
            bounds=bounds,
            constraints=[count, problem.tangents(np.maximum(at_X, LEAST), column_X)],
            options={"mip_rel_gap": 1e-9, "time_limit": seconds},
        )
        if found.x is None:
            break
        rows = np.flatnonzero(found.x[:items] > 0.5)
        bound = min(bound, -float(found.mip_dual_bound))
        if problem.value(rows) > problem.value(best):
            best = rows
        if bound - problem.value(best) <= tolerance:
            break
        at_X = np.concatenate([at_X, problem.shares(rows)])
        column_X = np.concatenate([column_X, np.arange(categories)])
    return Optimum(rows=best, value=problem.value(best), bound=bound)
