"""How far to believe an answer: genuine, a non-attitude, or constructed by how it was asked (ghafouri2026annotation).

Consistency under one framing proves nothing, so some pairs are asked again with order and wording changed. A person's
answers about one kind of item form a unit of one class. *Genuine* answers follow a margin that each pair has for this
person, whatever the condition; a *non-attitude* is a coin; *constructed* answers follow the condition. EM over many
people finds how common the classes are and what they look like (`fit_population`, the trainer now and then); its
E step for one person gives each answer its weight, P(its unit is genuine), in training and in the Laplace posterior.

The label model is ours: the paper names the classes and gives no estimator.

Axes: A answers, P pairs of a unit, U units (person x kind of item), F = 2 features of a condition, G quadrature nodes.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit

from ranker.errors import DataError
from ranker.evidence import Answer

GENUINE, NON_ATTITUDE, CONSTRUCTED = range(3)
#: the wordings of a question: which one rather, or which one to skip
WORDINGS = {"rather": 1.0, "skip": -1.0}

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Kind = Callable[[Answer], Hashable]

#: units that the default population counts for while a new one is fitted
INERTIA = 4.0
#: how often the kinds of one person are gone through, each seen in the light of the others
TURNS = 3


def _nodes(count: int, axes: int) -> tuple[Array, Array]:
    """Gauss-Hermite nodes (G, axes) of a standard normal, and their log masses (G,)."""
    at, mass = np.polynomial.hermite_e.hermegauss(count)
    return np.array(list(product(at, repeat=axes))), np.log(
        list(map(math.prod, product(mass / mass.sum(), repeat=axes)))
    )


_MARGINS_G, _MARGIN_MASS_G = (found.ravel() for found in _nodes(15, 1))
_PULLS_GF, _PULL_MASS_G = _nodes(5, 2)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Population:
    """What answers look like in a population, for all people together.

    Attributes:
        shares_3: how common the classes are.
        pull_F: how a constructed answer leans, in log odds: to the item shown first whatever is asked, and to picking
            the first one shown as the answer, which prefers it where "rather" is asked and the other one under "skip".
        pull_spread_F: standard deviation of these over people.
        spread: standard deviation of a genuine margin of which nothing is known, in log odds.
        own: standard deviation of a genuine margin around what the model expects, beyond the model's own doubt.
    """

    shares_3: Array
    pull_F: Array
    pull_spread_F: Array
    spread: float
    own: float

    @classmethod
    def default(cls) -> "Population":
        """Before anything was fitted: most answers are genuine."""
        return cls(
            shares_3=np.array([0.8, 0.1, 0.1]),
            pull_F=np.array([1.0, 0.0]),
            pull_spread_F=np.array([1.0, 1.0]),
            spread=2.0,
            own=0.5,
        )

    def to_array(self) -> NDArray[np.float32]:
        """Nine float32, as a version ships them."""
        return np.concatenate(
            [self.shares_3, self.pull_F, self.pull_spread_F, [self.spread, self.own]], dtype=np.float32
        )

    @classmethod
    def from_array(cls, numbers: NDArray[np.floating]) -> "Population":
        """The population out of `to_array`.

        Raises:
            DataError: not nine finite numbers, or shares and spreads that cannot be.
        """
        found = np.asarray(numbers, np.float64)
        if found.shape != (9,) or not np.isfinite(found).all() or (found[[0, 1, 2, 5, 6, 7, 8]] < 0).any():
            raise DataError("reliability", numbers, "give the nine numbers of Population.to_array")
        shares_3 = np.maximum(found[:3], 1e-6)
        return cls(
            shares_3=shares_3 / shares_3.sum(),
            pull_F=found[3:5],
            pull_spread_F=found[5:7],
            spread=float(found[7]),
            own=float(found[8]),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Said:
    """Answers as numbers, each pair in one orientation; skips are left out."""

    kept_A: Index
    unit_A: Index
    pair_A: Index
    sign_A: Array  # +1 where the preferred item is the pair's first
    said_A: Array  # 1 the pair's first, 0 its other, 1/2 both or neither
    condition_AF: Array
    unit_P: Index
    first_P: Index  # the first answer about the pair
    units: int


def answer_weights(
    answers: Sequence[Answer],
    population: Population,
    margins: Array | None = None,
    spreads: Array | None = None,
    kind: Kind | None = None,
) -> Array:
    """How far to believe each answer of one person: P(genuine) of its unit, in [0, 1]; 0 for a skip.

    Args:
        margins: what the model expects of preferred minus over, in log odds, from everything but these answers (the
            prior and the history); None where it knows nothing.
        spreads: its doubt: a standard deviation for each answer or, better, the covariance of the margins
            (differences . covariance of the taste . differences'), so that answers about different pairs can bear
            each other out.
        kind: the kind of item an answer is about; without it a person is one unit.

    Shapes: margins (A,), spreads (A,) or (A, A), weights (A,).
    """
    said = _read([answers], kind)
    weights_A = np.zeros(len(answers))
    if said.units:
        doubt = [(margins, spreads)] if margins is not None and spreads is not None else None
        weights_A[said.kept_A] = _classes(said, population, doubt)[0][said.unit_A, GENUINE]
    return weights_A


def class_posteriors(
    answers: Sequence[Answer],
    population: Population,
    margins: Array | None = None,
    spreads: Array | None = None,
    kind: Kind | None = None,
) -> dict[Hashable, Array]:
    """P(genuine), P(non-attitude), P(constructed) of each kind of item that the person answered about."""
    said = _read([answers], kind)
    if not said.units:
        return {}
    doubt = [(margins, spreads)] if margins is not None and spreads is not None else None
    classes_U3 = _classes(said, population, doubt)[0]
    kinds = [kind(answers[place]) if kind else None for place in said.kept_A]
    return {
        kinds[place]: classes_U3[unit] for unit, place in zip(*np.unique(said.unit_A, return_index=True), strict=True)
    }


def fit_population(
    people: Iterable[Sequence[Answer]],
    *,
    margins: Sequence[Array] | None = None,
    spreads: Sequence[Array] | None = None,
    kind: Kind | None = None,
    start: Population | None = None,
    rounds: int = 40,
) -> Population:
    """EM over many people's answers; deterministic. Margins and spreads as for `answer_weights`, one of each a person.

    The shares have a Dirichlet prior and the pull a Gaussian one, worth INERTIA units of the start, so that a few
    people decide nothing. The scale of the margins (`spread`, or `own` where there are margins) climbs by trial.
    """
    start = start or Population.default()
    asked = list(people)
    said = _read(asked, kind)
    if not said.units:
        return start
    doubt = list(zip(margins, spreads, strict=True)) if margins is not None and spreads is not None else None
    scale = "own" if doubt else "spread"
    now, step, weight_A = start, 1.3, None
    for _ in range(rounds):
        classes_U3, pull_UG, genuine_U = _classes(said, now, doubt, weight_A)
        weight_A = classes_U3[said.unit_A, GENUINE]
        moved = _moved(now, start, classes_U3, pull_UG)
        trial = replace(now, **{scale: max(getattr(now, scale), 0.05) * step})
        if classes_U3[:, GENUINE] @ (_genuine(said, trial, doubt, weight_A) - genuine_U) > 0:
            moved = replace(moved, **{scale: getattr(trial, scale)})
        else:
            step = 1 / step if step > 1 else 1 + (1 / step - 1) / 2
        still = np.abs(moved.to_array() - now.to_array()).max() < 1e-3
        now = moved
        if still and abs(step - 1) < 0.1:
            break
    return now


def _moved(now: Population, start: Population, classes_U3: Array, pull_UG: Array) -> Population:
    """The M step for the shares and the pull."""
    shares_3 = classes_U3.sum(0) + INERTIA * start.shares_3
    nodes_GF = now.pull_F + now.pull_spread_F * _PULLS_GF
    mass_G = classes_U3[:, CONSTRUCTED] @ pull_UG
    total = mass_G.sum() + INERTIA
    pull_F = (mass_G @ nodes_GF + INERTIA * start.pull_F) / total
    square_F = mass_G @ (nodes_GF - pull_F) ** 2 + INERTIA * (start.pull_spread_F**2 + (start.pull_F - pull_F) ** 2)
    return replace(
        now, shares_3=shares_3 / shares_3.sum(), pull_F=pull_F, pull_spread_F=np.maximum(np.sqrt(square_F / total), 0.1)
    )


def _read(people: Sequence[Sequence[Answer]], kind: Kind | None) -> _Said:
    units: dict[Hashable, int] = {}
    pairs: dict[Hashable, int] = {}
    rows: list[tuple[int, int, int, float, float, float, float]] = []
    firsts: list[int] = []
    place = -1
    for person, answers in enumerate(people):
        for answer in answers:
            place += 1
            preferred, over = answer.preferred, answer.over
            if answer.outcome == "skip" or preferred == over:
                continue
            unit = units.setdefault((person, kind(answer) if kind else None), len(units))
            sign = 1.0 if preferred < over else -1.0
            key = (unit, preferred, over) if sign > 0 else (unit, over, preferred)
            if key not in pairs:
                pairs[key] = len(pairs)
                firsts.append(len(rows))
            shown = answer.condition.get("shown_first")
            first = sign if shown == preferred else -sign if shown == over else 0.0
            worded = answer.condition.get("wording")
            asked = WORDINGS.get(worded, 0.0) if isinstance(worded, str) else 0.0
            said = 0.5 * (1 + sign) if answer.outcome == "preferred" else 0.5
            rows.append((place, unit, pairs[key], sign, said, first, first * asked))
    table = np.array(rows, np.float64).reshape(-1, 7)
    whole = table[:, :3].astype(np.int64)
    first_P = np.array(firsts, np.int64)
    return _Said(
        kept_A=whole[:, 0],
        unit_A=whole[:, 1],
        pair_A=whole[:, 2],
        sign_A=table[:, 3],
        said_A=table[:, 4],
        condition_AF=table[:, 5:],
        unit_P=whole[first_P, 1],
        first_P=first_P,
        units=len(units),
    )


Doubt = list[tuple[Array, Array]] | None


def _classes(
    said: _Said, population: Population, doubt: Doubt, weight_A: Array | None = None
) -> tuple[Array, Array, Array]:
    """The E step: class posteriors (U, 3), each unit's pull over its nodes (U, G), genuine log evidence (U,)."""
    tilt_AG = said.condition_AF @ (population.pull_F + population.pull_spread_F * _PULLS_GF).T
    pull_UG = np.zeros((said.units, len(_PULL_MASS_G))) + _PULL_MASS_G
    np.add.at(pull_UG, said.unit_A, log_expit(-tilt_AG) + said.said_A[:, None] * tilt_AG)
    constructed_U = np.logaddexp.reduce(pull_UG, axis=1)
    coin_U = np.bincount(said.unit_A, minlength=said.units) * math.log(0.5)

    def posteriors(genuine_U: Array) -> Array:
        log_U3 = np.log(population.shares_3) + np.stack([genuine_U, coin_U, constructed_U], 1)
        found: Array = np.exp(log_U3 - np.logaddexp.reduce(log_U3, axis=1, keepdims=True))
        return found

    turns = 1
    if weight_A is None:
        weight_A = np.ones(len(said.unit_A))
        if doubt is not None and said.units > 1:
            weight_A, turns = posteriors(_alone(said, population.spread))[said.unit_A, GENUINE], TURNS
    for _ in range(turns):
        genuine_U = _genuine(said, population, doubt, weight_A)
        classes_U3 = posteriors(genuine_U)
        weight_A = classes_U3[said.unit_A, GENUINE]
    return classes_U3, np.exp(pull_UG - constructed_U[:, None]), genuine_U


def _genuine(said: _Said, population: Population, doubt: Doubt, weight_A: Array) -> Array:
    """Log probability of each unit's answers if genuine, (U,), given the person's others as far as believed."""
    if doubt is None:
        return _alone(said, population.spread)
    found_U = np.zeros(said.units)
    ends = np.cumsum([len(margins) for margins, _ in doubt])
    for (margins, spreads), end in zip(doubt, ends, strict=True):
        start = end - len(margins)
        low, high = np.searchsorted(said.kept_A, (start, end))
        if low == high:
            continue
        mine_P = slice(*np.searchsorted(said.first_P, (low, high)))
        first_P = said.first_P[mine_P]
        at_P, sign_P = said.kept_A[first_P] - start, said.sign_A[first_P]
        mean_P = sign_P * margins[at_P]
        covariance_PP = (
            sign_P[:, None] * sign_P * spreads[np.ix_(at_P, at_P)] if spreads.ndim == 2 else np.diag(spreads[at_P] ** 2)
        )
        covariance_PP.flat[:: len(mean_P) + 1] += population.own**2
        pair_A = (said.pair_A[low:high] - said.pair_A[low:high].min()).tolist()
        said_A, believed_A = said.said_A[low:high].tolist(), weight_A[low:high].tolist()
        for unit in np.unique(said.unit_A[low:high]).tolist():
            mine = np.flatnonzero(said.unit_A[low:high] == unit).tolist()
            others = np.flatnonzero((said.unit_A[low:high] != unit) & (weight_A[low:high] > 1e-3)).tolist()
            filtered = _Margins(mean_P, covariance_PP)
            for place in others:
                filtered.hear(pair_A[place], said_A[place], believed_A[place])
            found_U[unit] = sum(filtered.hear(pair_A[place], said_A[place]) for place in mine)
    return found_U


def _alone(said: _Said, spread: float) -> Array:
    """The same where nothing is known of the margins, so that those of different pairs are independent: quadrature."""
    asked_P1 = np.bincount(said.pair_A)[:, None]
    first_P1 = np.bincount(said.pair_A, said.said_A)[:, None]
    tied_P1 = np.bincount(said.pair_A, said.said_A == 0.5)[:, None]
    margin_G = spread * _MARGINS_G
    log_PG = asked_P1 * log_expit(-margin_G) + first_P1 * margin_G + _MARGIN_MASS_G
    log_P = np.logaddexp.reduce(log_PG, axis=1)
    if tied_P1.any():  # a tie alone is no sign of any class: what was not tied is judged by what the ties leave open
        tied_PG = tied_P1 * (log_expit(-margin_G) + margin_G / 2) + _MARGIN_MASS_G
        log_P -= np.logaddexp.reduce(tied_PG, axis=1) - tied_P1[:, 0] * math.log(0.5)
    found: Array = np.bincount(said.unit_P, log_P, minlength=said.units).astype(np.float64, copy=False)
    return found


class _Margins:
    """A person's jointly Gaussian margins, which follow her answers by assumed density filtering.

    Source: Minka 2001, with MacKay's approximation of the logistic-normal integral.
    """

    def __init__(self, mean_P: Array, covariance_PP: Array) -> None:
        self._mean_P, self._covariance_PP = mean_P.copy(), covariance_PP.copy()

    def hear(self, pair: int, said: float, weight: float = 1.0) -> float:
        """Move by an answer that is believed so far; its log probability before it was heard."""
        row_P = self._covariance_PP[pair]
        shrink = 1 / math.sqrt(1 + math.pi / 8 * max(float(row_P[pair]), 0.0))
        logit = min(max(shrink * float(self._mean_P[pair]), -30.0), 30.0)
        chance = 1 / (1 + math.exp(-logit))
        self._mean_P += (weight * (said - chance) * shrink) * row_P
        self._covariance_PP -= ((weight * chance * (1 - chance) * shrink**2) * row_P)[:, None] * row_P
        return said * logit - math.log1p(math.exp(logit))  # 1 - chance has no digits left where the margin is large
