"""Calibrated rerank: a slate holds a person's interests in proportion (Steck, RecSys 2018; key steck2018calibrated).

How far a slate is from the interests can be said as Kullback-Leibler ("kl", C_KL), Jensen-Shannon or Hellinger. All
three are sums over categories of a concave gain, so one greedy pass serves them, and a MILP can be exact
(experiments/optimum.py). How they are measured stands in ranker/divergence.py, what the interests are in
ranker/interests.py.

Axes: N candidates, C categories (interests), S places.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from ranker.config import Calibration, Divergence
from ranker.divergence import miscalibration, shares
from ranker.errors import RequestError

Floats = NDArray[np.floating]
Array = NDArray[np.float64]

#: candidates are laid out in multiples of this
LANES = 16
#: lambda is solved for to within one step of this many
STEPS = 64


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
    greedy = _Greedy(
        utility_N,
        interests_NC,
        target_C,
        slots=slots,
        smoothing=smoothing,
        divergence=divergence,
        pinned=pinned,
        floor=floor,
    )
    return ordered(greedy.order_N, greedy.choose(strength), len(pinned), order)


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
    greedy = _Greedy(
        utility_N,
        interests_NC,
        target_C,
        slots=slots,
        smoothing=smoothing,
        divergence=divergence,
        pinned=pinned,
        floor=floor,
    )

    def found(step: int, known: Sequence[int] = ()) -> tuple[NDArray[np.int64], bool]:
        chosen = greedy.choose(step / STEPS, known)
        shown_C = shares(np.asarray(interests_NC)[greedy.order_N[chosen]])
        return chosen, miscalibration(target_C, shown_C, smoothing, divergence) <= target

    low, high = 0, STEPS
    chosen, reached = found(low)
    if not reached and np.asarray(target_C).any():
        below, (chosen, reached) = chosen, found(high)
        while reached and high - low > 1:
            middle = (low + high) // 2
            # a value is linear in lambda: what is best at both ends is best between them
            tried, reaches = found(middle, below[: int((below == chosen).argmin())].tolist())
            if reaches:
                chosen, high = tried, middle
            else:
                below, low = tried, middle
        low = high
    return ordered(greedy.order_N, chosen, len(pinned), order), low / STEPS


def ordered(order_N: NDArray[np.int64], chosen_S: NDArray[np.int64], pins: int, blend: float) -> NDArray[np.int64]:
    """The chosen candidates in the order to show them: by (1 - blend) x place by utility + blend x place in greedy.

    Args:
        order_N: all candidates by falling utility.
        chosen_S: places in that order, as greedy picked them; the first `pins` stay where they are.
    """
    free_S = chosen_S[pins:]
    if blend <= 0:
        free_S = np.sort(free_S)
    elif blend < 1:
        key_S = np.empty(len(free_S))
        key_S[np.argsort(free_S)] = (1 - blend) * np.arange(len(free_S))
        key_S += blend * np.arange(len(free_S))
        free_S = free_S[np.lexsort((free_S, key_S))]
    shown_N: NDArray[np.int64] = order_N[np.concatenate([chosen_S[:pins], free_S]) if pins else free_S]
    return shown_N


class _Greedy:
    """Candidates laid out once, to be chosen from at any lambda."""

    def __init__(
        self,
        utility_N: Floats,
        interests_NC: Floats,
        target_C: Floats,
        *,
        slots: int,
        smoothing: float,
        divergence: Divergence,
        pinned: Sequence[int],
        floor: bool,
    ) -> None:
        self.order_N = np.argsort(-utility_N, kind="stable")
        items = len(self.order_N)
        self.slots = min(slots, items)
        self.pins: list[int] = []
        if len(pinned):
            place_N = np.empty_like(self.order_N)
            place_N[self.order_N] = np.arange(items)
            self.pins = place_N[np.asarray(pinned, np.int64)].tolist()
        self._wanted = np.flatnonzero(target_C > 0)
        if self._wanted.size == 0 or self.slots == 0:
            return
        share_NC = np.asarray(interests_NC)[self.order_N]
        p_C = np.asarray(target_C, np.float64)[self._wanted]
        p_C = p_C / p_C.sum()
        scale = (1 - smoothing) / self.slots
        self._gain_NC = np.multiply(share_NC[:, self._wanted], scale, dtype=np.float64)
        self._start_C = smoothing * p_C
        self._held_C = self._start_C.copy()
        # rows are categories, so that those which a pick changes are contiguous; the last one is utility. Whole blocks
        # of lanes, for then equal candidates get equal sums and the earlier one is chosen
        gain_CN = np.zeros((len(p_C), -(-items // LANES) * LANES))
        gain_CN[:, :items] = self._gain_NC.T
        self._begun_CN = gain_CN + self._start_C[:, None]
        term, self._weight_C = _terms(divergence, p_C)
        term(self._begun_CN, self._begun_CN, p_C[:, None])
        self._term_CN = np.empty((len(p_C) + 1, gain_CN.shape[1]))
        self._rows = [(gain_N, self._held_C[c, ...], self._term_CN[c], p_C[c, ...]) for c, gain_N in enumerate(gain_CN)]
        self._term, self._gain_CN = term, gain_CN
        sorted_N = np.asarray(utility_N, np.float64)[self.order_N]
        span = sorted_N[0] - sorted_N[-1]
        self._scaled_N = (sorted_N - sorted_N[-1]) / (span * self.slots) if span > 0 else np.zeros(items)
        # Jensen-Shannon has a part that is linear in the shares, which is all of it for what is not wanted
        linear = scale * np.log(2) / 2
        self._linear_N = linear * share_NC.sum(1, dtype=np.float64) if divergence == "jensen-shannon" else 0.0
        self._owed = [0] * len(p_C)
        if floor:
            held_C = np.count_nonzero(self._gain_NC, axis=0)
            self._owed = np.minimum(np.floor(self.slots * p_C + 1e-9).astype(np.int64), held_C).tolist()

    def choose(self, strength: float, known: Sequence[int] = ()) -> NDArray[np.int64]:
        """Places in the order of utility, as they were picked, the pinned ones first.

        Args:
            known: the first picks, where they are known.
        """
        items = len(self.order_N)
        if strength <= 0 or self._wanted.size == 0 or self.slots == 0:
            rest = np.delete(np.arange(items), self.pins) if self.pins else np.arange(self.slots)
            return np.concatenate([np.array(self.pins, np.int64), rest])[: self.slots]
        gain_NC, term_CN, held_C, rows, term = self._gain_NC, self._term_CN, self._held_C, self._rows, self._term
        term_CN[:-1], held_C[:] = self._begun_CN, self._start_C
        free_N, weights, value_N = term_CN[-1], np.ones(len(term_CN)), np.empty(term_CN.shape[1])
        weights[:-1] = strength * self._weight_C
        free_N[:items] = (1 - strength) * self._scaled_N - strength * self._linear_N
        free_N[items:] = -np.inf
        owed, first, late, chosen = self._owed.copy(), known or self.pins, set[int](), list[int]()
        due, add = sum(owed), np.add
        for slot in range(self.slots):
            if slot < len(first):
                pick = first[slot]
            else:
                for c in late:  # no other category's term has changed
                    gain_N, held, term_N, p = rows[c]
                    term(add(gain_N, held, term_N), term_N, p)
                late.clear()
                weights.dot(term_CN, value_N)
                if due > 0 and due >= self.slots - slot:  # every place left is owed to an interest
                    open_N = (self._gain_CN[[count > 0 for count in owed]] > 0).any(0)
                    value_N[~open_N] = -np.inf
                pick = int(value_N.argmax())
            chosen.append(pick)
            free_N[pick] = -np.inf
            gain_C = gain_NC[pick]
            add(held_C, gain_C, held_C)
            holds = gain_C.nonzero()[0].tolist()
            late.update(holds)
            if due > 0:
                for c in holds:
                    if owed[c] > 0:
                        owed[c] -= 1
                        due -= 1
        return np.array(chosen, np.int64)


#: (smoothed shares, out, p): writes a category's gain, up to a factor, a constant and what is linear in the shares
_Term = Callable[[Array, Array, Array], object]


def _terms(divergence: Divergence, p_C: Array) -> tuple[_Term, Array]:
    """A category's gain as a function of its smoothed share, and what it is multiplied with."""
    if divergence == "kl":
        return (lambda q, out, _: np.log(q, out)), p_C
    if divergence == "hellinger":
        return (lambda q, out, _: np.sqrt(q, out)), np.sqrt(p_C)
    return _jensen_shannon, np.full_like(p_C, 0.5)


def _jensen_shannon(q: Array, out: Array, p: Array) -> None:
    both = p + q
    both *= np.log(both)
    np.multiply(q, np.log(q), out)
    np.subtract(both, out, out)
