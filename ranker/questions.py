"""Answers to "which of these two?" -> a posterior, and the next best question (PReF, Shenfeld et al. 2025).

With the base rewards fixed, a person's weights are a logistic regression on differences of base rewards: convex, so
Newton's method finds the posterior mode and its exact curvature (Laplace). The answers are fitted on top of all
Gaussian sources at once, so the order of evidence does not matter.

Axes: A answers, K base rewards, P items of the question pool.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit

from ranker.errors import RequestError
from ranker.taste import Factor, Temper, fuse, tempered

Array = NDArray[np.float64]

#: Newton stops when no weight moves by more than this
STILL = 1e-9
ROUNDS = 50


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Asked:
    """Answered comparisons as numbers.

    Attributes:
        differences_AK: base rewards of the one minus those of the other.
        offsets_A: the same for the population intercepts: what everybody prefers anyway.
        share_A: 1 the first was preferred, 0 the second, 1/2 "both" or "neither".
        weight_A: how far each answer is to be believed, 0 to 1 (ranker/reliability.py).
    """

    differences_AK: Array
    offsets_A: Array
    share_A: Array
    weight_A: Array


@dataclass(frozen=True, kw_only=True)
class Question:
    """Two items to compare, by row, and what the answer is expected to tell, in nats."""

    one: int
    other: int
    gain: float
    again: bool = False


def log_posterior(z_K: Array, prior: Factor, asked: Asked) -> tuple[float, Array, Array]:
    """The log posterior up to a constant, its gradient and its negative Hessian (the precision) at z.

    Shapes: z_K (K,); gradient (K,); precision (K, K).
    Source: Bradley-Terry likelihood; PReF section 3.3 with a Gaussian prior in place of its L2 penalty.
    """
    precision_KK = _full(prior.precision)
    information_K = prior.information.astype(np.float64)
    margin_A = asked.offsets_A + asked.differences_AK @ z_K
    likelihood = asked.share_A * log_expit(margin_A) + (1 - asked.share_A) * log_expit(-margin_A)
    value = asked.weight_A @ likelihood + information_K @ z_K - 0.5 * z_K @ precision_KK @ z_K
    p_A = expit(margin_A)
    gradient_K = asked.differences_AK.T @ (asked.weight_A * (asked.share_A - p_A)) + information_K - precision_KK @ z_K
    curvature_A = asked.weight_A * p_A * (1 - p_A)
    hessian_KK = precision_KK + (asked.differences_AK.T * curvature_A) @ asked.differences_AK
    return float(value), gradient_K, hessian_KK


def answers_factor(prior: Factor, asked: Asked) -> Factor:
    """What the answers add to `prior` (all other sources, fused): prior + factor is the Laplace posterior.

    Raises:
        RequestError: a difference or an offset is not finite.
    """
    if not (np.isfinite(asked.differences_AK).all() and np.isfinite(asked.offsets_A).all()):
        raise RequestError("answers", "not finite", "compare items whose features are finite numbers")
    before_KK = _full(prior.precision)
    if not len(asked.weight_A):
        return Factor(np.zeros_like(before_KK, np.float32), np.zeros(len(before_KK), np.float32))
    z_K: Array = np.linalg.solve(before_KK, prior.information.astype(np.float64)).astype(np.float64)
    value, gradient_K, precision_KK = log_posterior(z_K, prior, asked)
    for _ in range(ROUNDS):
        step_K = np.linalg.solve(precision_KK, gradient_K)
        size = 1.0
        while True:  # concave, so a short enough step always gains; the full one nearly always does
            moved_K: Array = (z_K + size * step_K).astype(np.float64)
            after, gradient_K, precision_KK = log_posterior(moved_K, prior, asked)
            if after >= value - 1e-12 or size < 1e-6:
                break
            size /= 2
        z_K, value = moved_K, after
        if np.abs(size * step_K).max() < STILL:
            break
    information_K = precision_KK @ z_K - prior.information
    return Factor((precision_KK - before_KK).astype(np.float32), information_K.astype(np.float32))


def gains(mean_K: Array, precision_KK: Array, pool_PK: Array, intercept_P: Array) -> NDArray[np.float64]:
    """Expected information of every pair of the pool, nats, (P, P) symmetric with a zero diagonal.

    Source: D-optimal design, 1/2 log det of the posterior precision after the answer: 1/2 log(1 + s'(m) v'M^-1 v) with
    m the expected margin. PReF's code squares s'; this is the exact determinant.
    """
    covariance_KK: Array = np.linalg.inv(_full(precision_KK)).astype(np.float64)
    found: Array = 0.5 * np.log1p(_weights(mean_K, pool_PK, intercept_P) * _spread(pool_PK, covariance_KK))
    return found


def reductions(mean_K: Array, precision_KK: Array, pool_PK: Array, intercept_P: Array, aim_KK: Array) -> Array:
    """By how much each pair's answer is expected to lower the variance of utilities, (P, P), symmetric, zero diagonal.

    Args:
        aim_KK: covariance of the base rewards of the items that will be ranked.

    Source: I-optimal design (V-optimal; Atkinson, Donev and Tobias 2007): the trace of aim times the fall of the
    posterior covariance, s' v'S aim S v / (1 + s' v'S v) with S the covariance now. It asks about what the items
    differ in, where D-optimal design asks about every base reward alike.
    """
    covariance_KK: Array = np.linalg.inv(_full(precision_KK)).astype(np.float64)
    weight_PP = _weights(mean_K, pool_PK, intercept_P)
    told_PP = _spread(pool_PK, covariance_KK @ aim_KK @ covariance_KK)
    found: Array = weight_PP * told_PP / (1 + weight_PP * _spread(pool_PK, covariance_KK))
    return found


def _weights(mean_K: Array, pool_PK: Array, intercept_P: Array) -> Array:
    """s' of every pair's expected margin: how much an answer weighs."""
    utility_P = intercept_P + pool_PK @ mean_K
    p_PP = expit(utility_P[:, None] - utility_P[None, :])
    found: Array = p_PP * (1 - p_PP)
    return found


def _spread(pool_PK: Array, form_KK: Array) -> Array:
    """v' form v of every pair's difference v."""
    gram_PP = pool_PK @ form_KK @ pool_PK.T
    own_P = np.diag(gram_PP)
    found: Array = np.maximum(own_P[:, None] + own_P[None, :] - gram_PP - gram_PP.T, 0)
    np.fill_diagonal(found, 0)
    return found


def next_question(
    mean_K: Array,
    precision_KK: Array,
    pool_PK: Array,
    intercept_P: Array,
    asked: Collection[tuple[int, int]] = (),
    *,
    most: int = 2,
    aim_KK: Array | None = None,
) -> Question | None:
    """The pair that tells most about the items' utilities, never one already asked; None where no pair is left.

    Args:
        asked: pairs of rows already compared, in either order.
        most: no item stands in more questions than this while others are left, so that questions stay diverse.
        aim_KK: covariance of the base rewards of the items that will be ranked; the pool's where it is not given.
    """
    if len(pool_PK) < 2:
        return None
    aim_KK = np.cov(pool_PK.T).reshape(len(mean_K), -1) if aim_KK is None else aim_KK
    found = reductions(mean_K, precision_KK, pool_PK, intercept_P, aim_KK)
    for one, other in asked:
        found[one, other] = found[other, one] = -1
    worn = [row for row, times in _times(asked).items() if times >= most]
    fresh = found.copy()
    fresh[worn] = fresh[:, worn] = -1
    if fresh.max(initial=-1) > 0:
        found = fresh
    place = int(found.argmax())
    if found.flat[place] <= 0:
        return None
    rows = np.array(divmod(place, found.shape[1]))
    gain = gains(mean_K, precision_KK, pool_PK[rows], intercept_P[rows])[0, 1]
    return Question(one=int(rows[0]), other=int(rows[1]), gain=float(gain))


def choose_temper(
    prior: Factor,
    histories: Sequence[Factor],
    answers: Sequence[Asked],
    held: Sequence[Asked],
    *,
    scales: Sequence[float] = (1.0, 0.7, 0.5, 0.35, 0.25, 0.1),
    residuals: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
) -> tuple[Temper, dict[Temper, float]]:
    """How far histories are to be believed beside answers: what predicts validation people's other comparisons best.

    Args:
        histories: each person's behaviour factor, diagonal.
        answers: her answers, about other items than the history.
        held: comparisons to predict, of neither.
        scales: precision scalars to try; 1 is none.
        residuals: residual variances to try, as shares of the prior's.

    Returns: the choice, and the loss of everything tried in nats a comparison.
    """
    tried = [Temper(scale=scale) for scale in scales]
    tried += [Temper(residual_K=(share / prior.precision).astype(np.float32)) for share in residuals]
    losses = dict.fromkeys(tried, 0.0)
    for temper in tried:
        for history, asked, unseen in zip(histories, answers, held, strict=True):
            before = fuse(prior, [tempered(prior, history, temper)])
            known = Factor(before.precision_K, before.precision_K * before.mean_K)
            taste = fuse(known, [answers_factor(known, asked)])
            losses[temper] += surprise(taste.mean_K.astype(np.float64), taste.precision_K.astype(np.float64), unseen)
    losses = {temper: loss / max(len(held), 1) for temper, loss in losses.items()}
    return min(losses, key=losses.__getitem__), losses


def surprise(mean_K: Array, precision_KK: Array, held: Asked) -> float:
    """What a taste fails to predict of comparisons, nats each (a weighted mean; `taste.predictive_loss` in numpy)."""
    margin_A = held.offsets_A + held.differences_AK @ mean_K
    solved_KA = np.linalg.solve(_full(precision_KK), held.differences_AK.T)
    shrunk_A = margin_A / np.sqrt(1 + math.pi / 8 * (held.differences_AK * solved_KA.T).sum(1))
    loss_A = -held.share_A * log_expit(shrunk_A) - (1 - held.share_A) * log_expit(-shrunk_A)
    return float(held.weight_A @ loss_A / max(held.weight_A.sum(), 1e-12))


def entropy(precision_KK: Array) -> float:
    """Differential entropy of the posterior, nats: what is still unknown."""
    _, log_det = np.linalg.slogdet(_full(precision_KK))
    return float(0.5 * (len(precision_KK) * math.log(2 * math.pi * math.e) - log_det))


def as_asked(
    pairs: Sequence[tuple[int, int]],
    outcomes: Sequence[str],
    features_PK: Array,
    intercept_P: Array,
    weights: Sequence[float] | None = None,
) -> Asked:
    """Pairs (preferred, over) by row and their outcomes as numbers; a "skip" says nothing and is left out."""
    kept = [place for place, outcome in enumerate(outcomes) if outcome != "skip"]
    one = np.array([pairs[place][0] for place in kept], np.int64)
    other = np.array([pairs[place][1] for place in kept], np.int64)
    return Asked(
        differences_AK=features_PK[one].astype(np.float64) - features_PK[other],
        offsets_A=intercept_P[one].astype(np.float64) - intercept_P[other],
        share_A=np.array([1.0 if outcomes[place] == "preferred" else 0.5 for place in kept]),
        weight_A=np.array([1.0 if weights is None else weights[place] for place in kept]),
    )


def _times(asked: Collection[tuple[int, int]]) -> dict[int, int]:
    times: dict[int, int] = {}
    for pair in asked:
        for row in pair:
            times[row] = times.get(row, 0) + 1
    return times


def _full(precision: NDArray[np.floating]) -> Array:
    return (np.diag(precision) if precision.ndim == 1 else precision).astype(np.float64)
