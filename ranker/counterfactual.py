"""What another policy would have earned, from slates that were logged with their propensities.

Item-position model (li2018offline): what an item earns at a place depends on neither the rest of the slate nor on who
chose it. So a row's weight is P_target(this item at this place) / P_log(the same), and a slate's value is a sum over
places. IPS, SNIPS (swaminathan2015self, normalised place by place) and doubly robust (dudik2011doubly).

Axes: R logged rows (one item at one place of one slate), S slates, P places. Weights are w, rewards r.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ranker.errors import DataError, RequestError

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Logged:
    """Rows of logged slates, with what the target policy would have done there.

    Attributes:
        slate_R: which slate, any whole numbers; rows of one slate are not independent, slates are.
        place_R: 0-based.
        reward_R: what was earned there, clicks for example.
        propensity_R: P(this item at this place | request) under the logging policy; nan where it was not logged.
        chance_R: the same under the target policy.
        predicted_R: a model's reward of this item at this place; for doubly robust, with `expected_R`.
        expected_R: the model's reward of what the target shows at this place, in expectation over its choice.
    """

    slate_R: NDArray[np.int64]
    place_R: NDArray[np.int64]
    reward_R: Floats
    propensity_R: Floats
    chance_R: Floats
    predicted_R: Floats | None = None
    expected_R: Floats | None = None

    @property
    def weight_R(self) -> Floats:
        """Importance weights, before any clipping."""
        return self.chance_R / self.propensity_R


@dataclass(frozen=True, kw_only=True)
class Demands:
    """From when on two policies are too far apart for the log to tell.

    Attributes:
        effective: rows that the weighted ones must be worth at least, (sum w)^2 / sum w^2.
        largest: share of all weight that one row may have.
        support: how far the mean weight at a place may be from 1, beyond three standard errors.
    """

    effective: float = 100.0
    largest: float = 0.1
    support: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much of the log speaks of the target policy.

    Attributes:
        rows: all of them; `weighted` those with a weight above 0.
        effective: (sum w)^2 / sum w^2, the rows that an unweighted log would need to tell as much.
        largest: the largest weight's share of all weight.
        weight: the largest weight.
        mean_P: mean weight by place. It is 1 where the log shows all that the target would.
        reasons: why no value is told; empty where one is.
    """

    rows: int
    weighted: int
    effective: float
    largest: float
    weight: float
    mean_P: tuple[float, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Value:
    """A policy's value per slate by one estimator, with its interval."""

    estimator: str
    mean: float
    low: float
    high: float
    slates: int


@dataclass(frozen=True, kw_only=True)
class Valuation:
    """What the target policy would have earned per slate, and what the logging policy did earn.

    Attributes:
        values: ips, snips and, where the log has a model's predictions, doubly-robust (and direct: the model alone,
            whose interval knows nothing of the model's error).
        on_policy: the plain mean of what was logged.
        clipped: share of rows whose weight was cut.
    """

    values: dict[str, Value]
    on_policy: Value
    overlap: Overlap
    clip: float | None = None
    clipped: float = field(default=0.0)


def place_weights(examination_P: Floats, gains_P: Floats | None = None) -> Floats:
    """What a click at each place is worth, (P,): gain / examination.

    A click at a place that few look at stands for more people who would have wanted the item. With the gains of a
    discounted sum (the default, 1 / log2(2 + place)) the value is DCG under the position-based model; with gains equal
    to the examination it is plain clicks.

    Raises:
        RequestError: an examination is not in (0, 1].
    """
    examined_P = np.asarray(examination_P, np.float64)
    if not ((examined_P > 0) & (examined_P <= 1)).all():
        raise RequestError("examination", examined_P.tolist(), "name chances above 0, up to 1, relative to a sure look")
    gained_P = 1 / np.log2(2.0 + np.arange(len(examined_P))) if gains_P is None else np.asarray(gains_P, np.float64)
    return np.asarray(gained_P / examined_P)


def overlap_of(logged: Logged, demands: Demands | None = None) -> Overlap:
    """How far the log can speak of the target.

    Raises:
        DataError: a propensity is missing or no probability, or there are no rows.
    """
    demands = demands or Demands()
    rows = len(logged.reward_R)
    if rows == 0:
        raise DataError("logged slates", "no rows", "name a log with rankings and feedback to them")
    missing = int(np.isnan(logged.propensity_R).sum())
    if missing:
        remedy = "log P(item at this position | request) with every item shown, or drop these slates (plurank logs it)"
        raise DataError("propensity", f"{missing:,} of {rows:,} rows have none", remedy)
    wrong = logged.propensity_R[(logged.propensity_R <= 0) | (logged.propensity_R > 1 + 1e-9)]
    if len(wrong):
        raise DataError("propensity", float(wrong[0]), "a propensity is a chance above 0, at most 1")
    weight_R = logged.weight_R
    total, places = float(weight_R.sum()), int(logged.place_R.max()) + 1
    effective = total**2 / float((weight_R**2).sum()) if total > 0 else 0.0
    largest = float(weight_R.max()) / total if total > 0 else 1.0
    count_P = np.bincount(logged.place_R, minlength=places)
    held_P = count_P > 0
    mean_P = np.bincount(logged.place_R, weight_R, places)[held_P] / count_P[held_P]
    square_P = np.bincount(logged.place_R, weight_R**2, places)[held_P] / count_P[held_P]
    error_P = np.sqrt(np.maximum(square_P - mean_P**2, 0) / count_P[held_P])
    reasons = []
    off_P = np.abs(mean_P - 1) - 3 * error_P > demands.support
    if off_P.any():
        worst = int(np.flatnonzero(off_P)[np.abs(mean_P - 1)[off_P].argmax()])
        place, mean = int(np.flatnonzero(held_P)[worst]), float(mean_P[worst])
        why = "the target shows what the log never does" if mean < 1 else "the propensities are not those of this log"
        reasons.append(f"support: the weights at place {place} average {mean:.2f} where 1 is expected; {why}")
    if effective < demands.effective:
        reasons.append(
            f"effective sample size: {rows:,} rows are worth {effective:.1f}, at least {demands.effective:g} are needed"
        )
    if largest > demands.largest:
        reasons.append(f"largest weight: one row holds {largest:.0%} of all weight, {demands.largest:.0%} is the most")
    return Overlap(
        rows=rows,
        weighted=int((weight_R > 0).sum()),
        effective=effective,
        largest=largest,
        weight=float(weight_R.max()),
        mean_P=tuple(mean_P.tolist()),
        reasons=tuple(reasons),
    )


def valuate(
    logged: Logged,
    *,
    worth_P: Floats | None = None,
    clip: float | None = None,
    level: float = 0.95,
    demands: Demands | None = None,
) -> Valuation:
    """The target's value per slate by every estimator the log allows, with normal intervals over slates.

    IPS: mean over slates of sum w r. SNIPS: at each place sum w r / sum w, times how many rows of that place a slate
    has. Doubly robust: mean over slates of sum expected + w (r - predicted). SNIPS is linearised for its interval.

    Args:
        worth_P: what a reward at each place counts (`place_weights`); 1 everywhere without it.
        clip: weights above are cut to it. That trades variance for a bias towards 0 (IPS) or towards the model
            (doubly robust), which the intervals do not know.

    Raises:
        DataError: propensities are missing, or the overlap fails `demands`; the message says how.
    """
    overlap = overlap_of(logged, demands)
    if overlap.reasons:
        why = "; ".join(overlap.reasons)
        remedy = f"{why}. Explore more, or value a policy that is closer to the one that logged"
        raise DataError("overlap of the two policies", f"{overlap.weighted:,} of {overlap.rows:,} rows", remedy)
    if clip is not None and not clip > 0:
        raise RequestError("clip", clip, "cut weights at a number above 0")
    _, slate_R = np.unique(logged.slate_R, return_inverse=True)
    slates = int(slate_R.max()) + 1
    worth_R = np.ones(len(slate_R)) if worth_P is None else np.asarray(worth_P, np.float64)[logged.place_R]
    reward_R = logged.reward_R * worth_R
    raw_R = logged.weight_R
    weight_R = raw_R if clip is None else np.minimum(raw_R, clip)

    def valued(name: str, terms_R: Floats) -> Value:
        return _interval(name, np.bincount(slate_R, terms_R, slates).astype(np.float64), level)

    count_P = np.bincount(logged.place_R)
    total_P = np.bincount(logged.place_R, weight_R)
    ratio_P = np.divide(
        np.bincount(logged.place_R, weight_R * reward_R), total_P, out=np.zeros(len(count_P)), where=total_P > 0
    )
    mean_P = np.divide(total_P, count_P, out=np.ones(len(count_P)), where=total_P > 0)
    ratio_R, mean_R = ratio_P[logged.place_R], mean_P[logged.place_R]
    values = [
        valued("ips", weight_R * reward_R),
        valued("snips", ratio_R + weight_R * (reward_R - ratio_R) / mean_R),
    ]
    if logged.predicted_R is not None and logged.expected_R is not None:
        expected_R, predicted_R = logged.expected_R * worth_R, logged.predicted_R * worth_R
        values.append(valued("doubly-robust", expected_R + weight_R * (reward_R - predicted_R)))
        values.append(valued("direct", expected_R))
    return Valuation(
        values={value.estimator: value for value in values},
        on_policy=valued("on-policy", reward_R),
        overlap=overlap,
        clip=clip,
        clipped=float((raw_R > weight_R).mean()),
    )


def _interval(name: str, value_S: Floats, level: float) -> Value:
    n, mean = len(value_S), float(value_S.mean())
    reach = (
        float(stats.t.ppf((1 + level) / 2, n - 1)) * float(value_S.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    )
    return Value(estimator=name, mean=mean, low=mean - reach, high=mean + reach, slates=n)
