"""The last step before the slate: now and then one place goes to an item drawn by Thompson sampling, then one swap.

Both draws are enumerated, so that the propensity that is logged, P(this item at this place | request), is exact and a
later policy can be valued from the log (ranker/counterfactual.py). The swap makes position bias identifiable.

Axes: S places of the slate, M candidates (the slate in its order, then the others that may enter), W places that may be
drawn, D posterior draws, N scored candidates, K base rewards, B sets of variates. Source: thompson1933likelihood;
radlinski2006minimally for swaps of neighbours.
"""

import functools
import random
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import spotrf, strtrs

from ranker.config import Exploration
from ranker.taste import Taste

Floats = NDArray[np.floating]
#: sets of variates: which one is used depends on the user alone, so that a request has one set of posterior draws
BANK = 64
#: a place's neighbour above, itself, its neighbour below
_AROUND = np.array([[-1], [0], [1]])


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

    def total(self, places: int) -> NDArray[np.float64]:
        """For each of the slate's own items q, summed over the places that may be given to it, (S,)."""
        draws, window = self.wins_DW.shape
        wins_S = np.bincount(np.minimum(self.wins_DW, places).ravel(), minlength=places + 1)[:places]
        evenly_S = np.zeros(places)
        evenly_S[:window] = self.uniform / np.arange(self.size, self.size - window, -1)
        found: NDArray[np.float64] = wins_S * ((1 - self.uniform) / draws) + np.cumsum(evenly_S)
        return found

    def of(self, slots: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        """q of each place for the candidate beside it, which must not stand above the place."""
        wins = (self.wins_DW[:, slots] == candidates).sum(0)
        found: NDArray[np.float64] = wins * ((1 - self.uniform) / len(self.wins_DW))
        return found + self.uniform / (self.size - slots)

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
    size = utility_DM.shape[1]
    below_DX = np.empty((len(utility_DM), window + 1), utility_DM.dtype)  # the best beyond, then places upwards
    if size > window:
        tail_D = utility_DM[:, window:].argmax(1) + window
        below_DX[:, 0] = utility_DM[np.arange(len(tail_D)), tail_D]
    else:
        tail_D = np.full(len(utility_DM), size - 1)
        below_DX[:, 0] = -np.inf
    below_DX[:, 1:] = utility_DM[:, window - 1 :: -1]
    # from below upwards: a candidate that is no worse than all below it wins for its place and those above it, until
    # a better one comes
    best_DW = np.maximum.accumulate(below_DX, 1)[:, -2::-1]
    wins_DW = np.where(utility_DM[:, :window] >= best_DW, np.arange(window), tail_D[:, None])
    wins_DW = np.minimum.accumulate(wins_DW[:, ::-1], 1)[:, ::-1]
    return Odds(wins_DW=wins_DW, size=size, uniform=uniform)


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
    propensity_S = _chances(number_S, swap, share, odds, moved=moved)
    if moved:
        outside = number_S >= places
        shown_S = order_S[np.where(outside, 0, number_S)]
        if outside.any() and beyond is not None:
            shown_S[outside] = beyond[number_S[outside] - places]
        order_S = shown_S
    return Drawn(order_S, propensity_S, swapped, slot)


def _chances(
    number_S: NDArray[np.int64], swap: float, share: float, odds: Odds | None, *, moved: bool
) -> NDArray[np.float64]:
    """P(candidate number_S[p] at place p) over all that could have been drawn.

    After the slot draw a slate's item m stands at m, at m + 1 (pushed), or at k < m (drawn up); one from beyond only
    where it was drawn. The swap then mixes each place with its neighbours.
    """
    places = len(number_S)
    each = swap / (places - 1) if swap > 0 else 0.0
    if share <= 0 or odds is None:
        chance_S: NDArray[np.float64] = np.where(number_S == np.arange(places), 1 - 2 * each, each)
        for end in (0, places - 1):
            if number_S[end] == end:
                chance_S[end] += each
        return chance_S
    window = odds.wins_DW.shape[1]
    if not moved:  # what most slates come to
        return _unmoved(places, window, odds.size, odds.uniform, share=share, each=each).chances(odds.wins_DW)
    rate, number_M = share / window, np.arange(places)
    total_S = rate * odds.total(places)
    kept_W = rate * odds.of(number_M[:window], number_M[:window])
    # m is pushed when a place at or above it is drawn and given to what stands below m
    push_S = share - np.cumsum(total_S) - rate * np.maximum(window - 1 - number_M, 0)
    stay_S = 1 - push_S - total_S
    stay_S[:window] += kept_W
    push_S[-1] = 0  # out of the slate
    neighbours_S = np.full(places, 2.0)
    neighbours_S[[0, -1]] = min(places - 1, 1)
    # one more candidate, that from beyond: it stands nowhere unless it was drawn
    stay_X, push_X = np.append(stay_S, 0), np.append(push_S, 0)
    m_S, place_3S = np.minimum(number_S, places), number_M + _AROUND
    up_3S = (place_3S >= 0) & (place_3S < np.minimum(m_S, window))
    at_3S = (place_3S == m_S) * stay_X[m_S] + (place_3S == m_S + 1) * push_X[m_S]
    at_3S += up_3S * rate * odds.of(np.where(up_3S, place_3S, 0), number_S)
    found: NDArray[np.float64] = (1 - each * neighbours_S) * at_3S[1] + each * (at_3S[0] + at_3S[2])
    return found


class _Unmoved(NamedTuple):
    """What `_chances` comes to for a slate that stands as it did, laid out once for all slates of a shape.

    All of it is linear in how often each candidate won each place; the rest depends on the shape alone.
    """

    rest_S: NDArray[np.float64]
    own_S: NDArray[np.float64]
    above_S: NDArray[np.float64]
    cell_W: NDArray[np.int64]
    a_win: float
    each: float

    def chances(self, wins_DW: NDArray[np.int64]) -> NDArray[np.float64]:
        """P(item m at place m), (S,)."""
        (draws, window), places = wins_DW.shape, len(self.rest_S)
        # a line for each place, a column for each of the slate's items and one for all beyond
        counts_X = np.bincount((np.minimum(wins_DW, places) + self.cell_W).ravel(), minlength=window * (places + 1))
        wins_S = counts_X.reshape(window, places + 1).sum(0)[:places]
        moved_S: NDArray[np.float64] = self.above_S * wins_S.cumsum()
        moved_S -= self.own_S * wins_S
        moved_S[:window] += self.own_S[:window] * counts_X[:: places + 2][:window]
        neighbour_X = counts_X[1 :: places + 2][: min(window, places - 1)]
        moved_S[1 : len(neighbour_X) + 1] += self.each * neighbour_X
        moved_S *= self.a_win / draws
        moved_S += self.rest_S
        return moved_S


@functools.lru_cache(maxsize=256)
def _unmoved(places: int, window: int, size: int, uniform: float, *, share: float, each: float) -> _Unmoved:
    rate, number_S = share / window, np.arange(places)
    evenly_W = rate * uniform / (size - number_S[:window])
    total_S = np.zeros(places)
    total_S[:window] = evenly_W
    total_S = total_S.cumsum()
    push_S = share - total_S.cumsum() - rate * np.maximum(window - 1 - number_S, 0)
    own_S = 1 - each * np.full(places, 2.0)
    own_S[[0, -1]] = 1 - each * min(places - 1, 1)
    above_S = own_S - each
    above_S[-1] = own_S[-1]  # pushed out of the slate, and so not there to be exchanged
    rest_S = own_S * (1 - total_S) - above_S * push_S
    rest_S[:window] += own_S[:window] * evenly_W
    rest_S[1 : min(window, places - 1) + 1] += each * evenly_W[: places - 1]
    cell_W = np.arange(window) * (places + 1)
    return _Unmoved(rest_S, own_S, above_S, cell_W, rate * (1 - uniform), each)


class Explorer:
    """Explores for one version. The variates are drawn once; a user always gets the same set of them.

    So the posterior draws belong to the request and not to its chance, and the propensity given the request is exact.
    """

    def __init__(self, config: Exploration, dimensions: int) -> None:
        self.config = config
        half_BDK = np.random.default_rng(0).standard_normal((BANK, (config.draws + 1) // 2, dimensions), np.float32)
        self._bank_BDK = np.concatenate([half_BDK, -half_BDK], 1)[:, : config.draws]

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
        enters_N = np.isfinite(utility_N) if allowed_N is None else allowed_N & np.isfinite(utility_N)
        enters_N[order_S] = False
        beyond = np.flatnonzero(enters_N)
        rows_M = np.concatenate([order_S, beyond])
        utility_M, reward_M = utility_N[rows_M], reward_N[rows_M]
        moved_DK = self._moved(user, taste) * np.float32(_slope(utility_M, reward_M))
        utility_DM = moved_DK @ phi_NK[rows_M].T
        utility_DM += utility_M
        odds = odds_of(utility_DM, window, self.config.uniform)
        return explore(order_S, swap, seed, share=self.config.slot, odds=odds, beyond=beyond)

    def _moved(self, user: str, taste: Taste) -> NDArray[np.float32]:
        """Draws from the posterior, less its mean, (D, K)."""
        variates_DK: NDArray[np.float32] = self._bank_BDK[zlib.crc32(user.encode()) % BANK]
        precision = taste.precision_K
        if precision.ndim == 1:
            return np.asarray(variates_DK / np.sqrt(precision), np.float32)
        # precision = L L', so L'^-1 x has the covariance precision^-1; LAPACK itself, for numpy's checks take longer
        lower_KK, _ = spotrf(precision, lower=1)
        moved_KD, _ = strtrs(lower_KK, variates_DK.T, lower=1, trans=1)
        return np.asarray(moved_KD.T, np.float32)


def _slope(utility_M: Floats, reward_M: Floats) -> float:
    """By how much utility rises with the base reward among these candidates, at least 0."""
    apart_M = reward_M - np.add.reduce(reward_M) / len(reward_M)
    spread = float(apart_M @ apart_M)
    return max(float(apart_M @ utility_M) / spread, 0.0) if spread > 1e-12 else 0.0
