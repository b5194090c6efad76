"""The last step before the slate: now and then one place goes to an item drawn by Thompson sampling, then one swap.

Both draws are enumerated, so that the propensity that is logged, P(this item at this place | request), is exact and a
later policy can be valued from the log (ranker/counterfactual.py). The swap makes position bias identifiable.

Axes: S places of the slate, M candidates (the slate in its order, then the others that may enter), W places that may be
drawn, D posterior draws, N scored candidates, K base rewards, B sets of variates. Source: thompson1933likelihood;
radlinski2006minimally for swaps of neighbours.
"""

import random
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import spotrf, strtrs

from ranker.compiled import compiled
from ranker.config import Exploration
from ranker.taste import Taste

Floats = NDArray[np.floating]
#: sets of variates: which one is used depends on the user alone, so that a request has one set of posterior draws
BANK = 64
_NO_WINS = np.zeros((1, 0), np.int64)


class Drawn(NamedTuple):
    """What was drawn, and how likely each item was to stand where it stands.

    Attributes:
        order_S: rows in the order to show.
        propensity_S: P(this item at this place | request), over the slot draw and the swap together.
        swapped: the upper place of the exchanged pair, None where none was.
        slot: the place that was drawn anew, None where none was; its item may be the one that stood there.
    """

    order_S: NDArray[np.int64]
    propensity_S: NDArray[np.float64]
    swapped: int | None
    slot: int | None = None

    def below(self, first_S: NDArray[np.int64]) -> "Drawn":
        """The same under places that are not explored: what stands there stood there for certain."""
        pins = len(first_S)
        return Drawn(
            np.concatenate([first_S, self.order_S]),
            np.concatenate([np.ones(pins), self.propensity_S]),
            None if self.swapped is None else self.swapped + pins,
            None if self.slot is None else self.slot + pins,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Odds:
    """What a place would be given if it were drawn: q = (1 - e) x wins among the posterior draws + e x uniform.

    Candidates are numbered 0..M-1: the slate in its order, then those beyond it. Place k chooses among all that do not
    stand above it, k..M-1.

    Attributes:
        wins_DW: in each draw the best candidate for each place.
        size: M.
        uniform: e.
    """

    wins_DW: NDArray[np.int64]
    size: int
    uniform: float

    def draw(self, slot: int, draws: random.Random) -> int:
        """A candidate for this place."""
        if draws.random() < self.uniform:
            return draws.randrange(slot, self.size)
        return int(self.wins_DW[draws.randrange(len(self.wins_DW)), slot])


def odds_of(utility_DM: Floats, window: int, uniform: float) -> Odds:
    """The best candidate of every draw for each of the first `window` places; ties go to the one that stands higher.

    Example:
        >>> odds_of(np.array([[3.0, 1.0, 2.0]]), 2, 0.0).wins_DW.tolist()
        [[0, 2]]
    """
    return Odds(wins_DW=_wins(utility_DM, window), size=utility_DM.shape[1], uniform=uniform)


@compiled
def _wins(utility_DM: Floats, window: int) -> NDArray[np.int64]:
    draws, size = utility_DM.shape
    wins_DW = np.empty((draws, window), np.int64)
    for d in range(draws):
        best = size - 1
        for m in range(size - 2, -1, -1):
            if m < window - 1:
                wins_DW[d, m + 1] = best
            if utility_DM[d, m] >= utility_DM[d, best]:
                best = m
        if window > 0:
            wins_DW[d, 0] = best
    return wins_DW


def explore(
    order_S: NDArray[np.int64],
    swap: float,
    seed: int,
    *,
    share: float = 0.0,
    odds: Odds | None = None,
    beyond: NDArray[np.int64] | None = None,
) -> Drawn:
    """Draw one place anew with probability `share`, then swap one adjacent pair with probability `swap`.

    The place is any of the first W, each as likely; its item is drawn from `odds`. Drawn from lower down it moves up
    and pushes those between down by one; drawn from beyond the slate it pushes the last one out. What stands above the
    place, and below where the item came from, is not touched. Then each adjacent pair is as likely to be exchanged.

    Args:
        order_S: rows in the order that would be shown without exploration.
        seed: of this request; the same seed draws the same.
        odds: of the candidates [order_S, beyond]; without it no place is drawn.
        beyond: rows beyond the slate that may enter it.

    Example:
        >>> explore(np.array([7, 8, 9]), 0.0, seed=1)[:3]
        (array([7, 8, 9]), array([1., 1., 1.]), None)
    """
    places = len(order_S)
    swap = swap if places > 1 else 0.0
    share = share if odds is not None and odds.size > 1 else 0.0
    if swap <= 0 and share <= 0:
        return Drawn(order_S, np.ones(places), None)
    draws = random.Random(seed)
    number_S = np.arange(places)
    slot = swapped = None
    if odds is not None and draws.random() < share:
        slot = draws.randrange(odds.wins_DW.shape[1])
        drawn = odds.draw(slot, draws)
        number_S[slot + 1 : drawn + 1] = number_S[slot : min(drawn, places - 1)]
        number_S[slot] = drawn
    if swap > 0 and draws.random() < swap:
        swapped = draws.randrange(places - 1)
        number_S[[swapped, swapped + 1]] = number_S[[swapped + 1, swapped]]
    moved = slot is not None or swapped is not None
    wins_DW, size, uniform = (odds.wins_DW, odds.size, odds.uniform) if odds is not None else (_NO_WINS, places, 0.0)
    propensity_S = _chances(number_S, float(swap), float(share), wins_DW, size, float(uniform))
    if moved:
        outside = number_S >= places
        shown_S = order_S[np.where(outside, 0, number_S)]
        if outside.any() and beyond is not None:
            shown_S[outside] = beyond[number_S[outside] - places]
        order_S = shown_S
    return Drawn(order_S, propensity_S, swapped, slot)


@compiled
def _chances(
    number_S: NDArray[np.int64], swap: float, share: float, wins_DW: NDArray[np.int64], size: int, uniform: float
) -> NDArray[np.float64]:
    """P(candidate number_S[p] at place p) over all that could have been drawn.

    After the slot draw a slate's item m stands at m, at m + 1 (pushed), or at k < m (drawn up); one from beyond only
    where it was drawn. The swap then mixes each place with its neighbours.
    """
    places, (draws, window) = len(number_S), wins_DW.shape
    each, rate = swap / max(places - 1, 1), share / max(window, 1)
    # of each of the slate's items: drawn for any place, and for its own
    drawn_S, own_S = np.zeros(places), np.zeros(places)
    for d in range(draws):
        for k in range(window):
            if wins_DW[d, k] < places:
                drawn_S[wins_DW[d, k]] += rate * (1 - uniform) / draws
    evenly = 0.0
    for m in range(places):
        if m < window:
            own_S[m] = rate * _chance(wins_DW, m, m, size, uniform)
            evenly += rate * uniform / (size - m)
        drawn_S[m] += evenly
    # pushed by a draw for a place at or above it, which went to what stands below; the last one out of the slate
    pushed_S, found_S, above = np.zeros(places), np.empty(places), 0.0
    for m in range(places - 1):
        above += drawn_S[m]
        pushed_S[m] = rate * min(m + 1, window) - above
    for p in range(places):
        found_S[p] = 0.0
        for place in range(max(p - 1, 0), min(p + 2, places)):
            m, there = number_S[p], 0.0
            if place < min(m, window):
                there = rate * _chance(wins_DW, place, m, size, uniform)
            elif place == m:
                pushed = pushed_S[m] if m < places - 1 else rate * min(places, window) - above - drawn_S[m]
                there = 1 - pushed - drawn_S[m] + own_S[m]
            elif place == m + 1:
                there = pushed_S[m]
            neighbours = min(p, 1) + min(places - 1 - p, 1)
            found_S[p] += there * (1 - each * neighbours if place == p else each)
    return found_S


@compiled
def _chance(wins_DW: NDArray[np.int64], slot: int, candidate: int, size: int, uniform: float) -> float:
    """q of the place for a candidate that does not stand above it."""
    wins = 0
    for d in range(len(wins_DW)):
        if wins_DW[d, slot] == candidate:
            wins += 1
    return wins * (1 - uniform) / len(wins_DW) + uniform / (size - slot)


class Explorer:
    """Explores for one version. The variates are drawn once; a user always gets the same set of them.

    So the posterior draws belong to the request and not to its chance, and the propensity given the request is exact.
    """

    def __init__(self, config: Exploration, dimensions: int) -> None:
        self.config = config
        half_BDK = np.random.default_rng(0).standard_normal((BANK, (config.draws + 1) // 2, dimensions), np.float32)
        bank_BDK = np.concatenate([half_BDK, -half_BDK], 1)[:, : config.draws]
        self._bank_BKD = np.ascontiguousarray(bank_BDK.transpose(0, 2, 1))

    def explore(
        self,
        order_S: NDArray[np.int64],
        swap: float,
        seed: int,
        *,
        user: str,
        taste: Taste,
        phi_NK: Floats,
        reward_N: Floats,
        utility_N: Floats,
        window: int,
        allowed_N: NDArray[np.bool_] | None = None,
    ) -> Drawn:
        """Explore a slate of scored candidates.

        A posterior draw z changes a candidate's base reward by (z - mean) . phi; its served utility moves with that
        by the slope of utility over reward among these candidates, so that the mean taste gives the served utilities.

        Args:
            order_S: rows of the candidates, in order.
            utility_N: what the slate was ordered by; what is not finite never enters.
            window: so many first places may be drawn.
            allowed_N: what may enter the slate from beyond it; all candidates without it.
        """
        window = min(window, len(order_S))
        if self.config.slot <= 0 or window <= 0:
            return explore(order_S, swap, seed)
        everything_N = np.zeros(0, np.bool_) if allowed_N is None else allowed_N
        moved_KD = self._moved(user, taste)
        wins_DW, beyond = _drawn(order_S, utility_N, reward_N, phi_NK, moved_KD, everything_N, window)
        odds = Odds(wins_DW=wins_DW, size=len(order_S) + len(beyond), uniform=self.config.uniform)
        return explore(order_S, swap, seed, share=self.config.slot, odds=odds, beyond=beyond)

    def _moved(self, user: str, taste: Taste) -> NDArray[np.float32]:
        """Draws from the posterior, less its mean, (K, D)."""
        variates_KD: NDArray[np.float32] = self._bank_BKD[zlib.crc32(user.encode()) % BANK]
        precision = taste.precision_K
        if precision.ndim == 1:
            return np.asarray(variates_KD / np.sqrt(precision)[:, None], np.float32)
        # precision = L L', so L'^-1 x has the covariance precision^-1; LAPACK itself, for numpy's checks take longer
        lower_KK, _ = spotrf(precision, lower=1)
        moved_KD, _ = strtrs(lower_KK, variates_KD, lower=1, trans=1)
        return np.ascontiguousarray(moved_KD, np.float32)


@compiled
def _drawn(
    order_S: NDArray[np.int64],
    utility_N: Floats,
    reward_N: Floats,
    phi_NK: Floats,
    moved_KD: Floats,
    allowed_N: NDArray[np.bool_],
    window: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The wins of every posterior draw, and the rows that may enter from beyond the slate.

    In a draw utilities are moved by its reward times how much utility rises with reward among these candidates, at
    least 0.

    Args:
        allowed_N: what may enter; everything where it is empty.
    """
    enters_N = np.isfinite(utility_N)
    if len(allowed_N):
        enters_N &= allowed_N
    enters_N[order_S] = False
    beyond = np.flatnonzero(enters_N)
    rows_M = np.concatenate((order_S, beyond))
    (dimensions, draws), rows = moved_KD.shape, len(rows_M)
    mean, spread, both = 0.0, 0.0, 0.0
    for row in rows_M:
        mean += reward_N[row] / rows
    for row in rows_M:
        apart = reward_N[row] - mean
        spread += apart * apart
        both += apart * utility_N[row]
    slope = max(both / spread, 0.0) if spread > 1e-12 else 0.0
    found_DM, reward_D = np.empty((draws, rows), np.float32), np.empty(draws, np.float32)
    for m in range(rows):
        reward_D[:] = 0
        for k in range(dimensions):
            for d in range(draws):
                reward_D[d] += phi_NK[rows_M[m], k] * moved_KD[k, d]
        for d in range(draws):
            found_DM[d, m] = utility_N[rows_M[m]] + slope * reward_D[d]
    return _wins(found_DM, window), beyond
