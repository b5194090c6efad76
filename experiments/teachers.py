"""What a teacher of a group knows of its people, and the people it makes up for the student to learn from.

A teacher reads a person's whole history, the student a few comparisons of it. The teacher of a group is a hierarchical
Bradley-Terry model: tastes of the group's people are normal, z ~ N(mu, Sigma), and are weighed by all 28 comparisons of
each. It keeps draws from every person's posterior, not one best guess: a guess is shrunken, and a population made of
guesses is narrower than the people are, which costs the student more than it gains (docs/experiments.md). Group
labels enter here alone.

Axes: U users, P comparisons of a user, N draws, K base rewards; S seeds, B users of a batch, C context.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn import functional

from experiments.grades import Array
from experiments.personas import Bools
from experiments.students import Randoms, Stack, Students, of_rows, plainly

#: rounds of expectation and maximisation, draws a person, how much wider than the Laplace posterior they are drawn
ROUNDS, DRAWS, WIDER = 40, 32, 1.2
#: the prior of a group's covariance: so many people of this variance
UNSEEN, VARIANCE = 5.0, 0.05
#: of a copy of the plain model that is tuned on one group
TUNING_RATE = 3e-3


@dataclass(frozen=True, eq=False)
class Taught:
    """What the teachers say of the people trained on: margins (S, U, P), and tastes that each may have (S, U, N, K)."""

    margins_SUP: Tensor
    tastes_SUNK: Tensor


def mode(apart_UPK: Array, mean_K: Array, spread_KK: Array, *, rounds: int = 6) -> tuple[Array, Array]:
    """Each person's most likely taste under a normal prior, (U, K), and its Laplace covariance, (U, K, K).

    Source: logistic regression by the bound of jaakkola2000bayesian, which never overshoots, then Newton's steps, of
    length 1.5 at most.
    """
    precision_KK = np.linalg.inv(spread_KK)
    found_UK = np.repeat(mean_K[None], len(apart_UPK), 0)
    for place in range(2 * rounds):
        margin_UP = np.einsum("upk,uk->up", apart_UPK, found_UK)
        if place < rounds:
            size_UP = np.abs(margin_UP) + 1e-6
            curve_UP = np.tanh(size_UP / 2) / (2 * size_UP)
            hessian = np.einsum("up,upk,upj->ukj", curve_UP, apart_UPK, apart_UPK, optimize=True) + precision_KK
            found_UK = np.linalg.solve(hessian, (precision_KK @ mean_K + apart_UPK.sum(1) / 2)[..., None])[..., 0]
            continue
        wrong_UP = expit(-margin_UP)
        slope_UK = np.einsum("up,upk->uk", wrong_UP, apart_UPK) - (found_UK - mean_K) @ precision_KK
        curve_UP = wrong_UP * (1 - wrong_UP)
        hessian = np.einsum("up,upk,upj->ukj", curve_UP, apart_UPK, apart_UPK, optimize=True) + precision_KK
        step_UK = np.linalg.solve(hessian, slope_UK[..., None])[..., 0]
        length_U1 = np.linalg.norm(step_UK, axis=1, keepdims=True)
        found_UK = found_UK + step_UK * np.minimum(1, 1.5 / np.maximum(length_U1, 1e-12))
    return found_UK, np.linalg.inv(hessian)


def population(apart_UPK: Array, rng: np.random.Generator, *, rounds: int = ROUNDS) -> tuple[Array, Array, Array]:
    """A group's mean taste (K,), covariance (K, K), and draws from the posterior of each of its people, (U, N, K).

    Laplace moments alone would find a third of the variance missing, hence importance weights.

    Source: Monte Carlo EM (wei1990monte), by importance sampling from each person's Laplace posterior.
    """
    users, _, k = apart_UPK.shape
    mean_K, spread_KK = np.zeros(k), 0.3 * np.eye(k)
    for turn in range(rounds):
        if turn % 4 == 0 or turn > rounds - 3:
            mode_UK, around_UKK = mode(apart_UPK, mean_K, spread_KK, rounds=3)
            root_UKK = WIDER * np.linalg.cholesky(around_UKK)
        half = rng.normal(size=(users, DRAWS // 2, k))
        noise_UNK = np.concatenate([half, -half], 1)
        tastes_UNK = mode_UK[:, None] + noise_UNK @ root_UKK.transpose(0, 2, 1)
        likely_UN = -np.logaddexp(0, -tastes_UNK @ apart_UPK.transpose(0, 2, 1)).sum(2)
        away_UNK = tastes_UNK - mean_K
        prior_UN = -np.einsum("unk,unk->un", away_UNK @ np.linalg.inv(spread_KK), away_UNK) / 2
        log_UN = likely_UN + prior_UN + np.square(noise_UNK).sum(2) / 2
        weight_UN = np.exp(log_UN - log_UN.max(1, keepdims=True))
        weight_UN /= weight_UN.sum(1, keepdims=True)
        mean_K = np.einsum("un,unk->k", weight_UN, tastes_UNK) / users
        away_UNK = tastes_UNK - mean_K
        square_KK = (weight_UN[..., None] * away_UNK).reshape(-1, k).T @ away_UNK.reshape(-1, k)
        spread_KK = (square_KK + UNSEEN * VARIANCE * np.eye(k)) / (users + UNSEEN)
    return mean_K, spread_KK, _resampled(tastes_UNK, weight_UN, rng)


def _resampled(tastes_UNK: Array, weight_UN: Array, rng: np.random.Generator) -> Array:
    """Draws of one weight: systematic resampling."""
    count = weight_UN.shape[1]
    edges_UN = weight_UN.cumsum(1) / weight_UN.sum(1, keepdims=True)
    at_UN = (np.arange(count) + rng.random((len(weight_UN), 1))) / count
    chosen_UN = np.minimum((at_UN[:, :, None] > edges_UN[:, None, :]).sum(2), count - 1)
    found: Array = np.take_along_axis(tastes_UNK, chosen_UN[..., None], 1)
    return found


def teach(stack: Stack, groups: Sequence[Sequence[Bools]], rng: Randoms, *, read: int, rounds: int = ROUNDS) -> Taught:
    """A teacher for each group of each seed, asked about its own people.

    Args:
        groups: of each seed, who of the people trained on belongs to which; empty ones have no teacher.
        read: how many of a person's comparisons the teacher reads.
    """
    seeds, users, _, k = stack.train_SUPK.shape
    tastes = np.zeros((seeds, users, DRAWS, k), np.float32)
    for seed, (own, each) in enumerate(zip(groups, rng, strict=True)):
        for group_U in (group_U for group_U in own if group_U.any()):
            known = stack.train_SUPK[seed, torch.from_numpy(group_U), :read].double().numpy()
            tastes[seed, group_U] = population(known, each, rounds=rounds)[2]
    tastes_SUNK = torch.from_numpy(tastes)
    return Taught((stack.train_SUPK * tastes_SUNK.mean(2)[:, :, None]).sum(3), tastes_SUNK)


def copies(
    plain: Students, stack: Stack, groups: Sequence[Sequence[Bools]], judges: Sequence[Sequence[Bools]], *, epochs: int
) -> Taught:
    """Teachers as METHODS had them: copies of the plain model, tuned on a group, that read all other comparisons."""
    margins_SUP = torch.zeros(stack.train_SUPK.shape[:3])
    tastes_SUNK = torch.zeros(*stack.train_SUPK.shape[:2], 1, stack.train_SUPK.shape[3])
    for place in range(2):
        teacher = Students(stack.train_SUPK.shape[3], stack.seeds)
        teacher.load_state_dict(plain.state_dict())
        own = torch.from_numpy(np.stack([each[place] for each in groups]))
        members = [np.flatnonzero(each[place]) for each in groups]
        judged = [each[place] for each in judges]
        plainly(teacher, stack, members, judged, epochs=epochs, rate=TUNING_RATE, whole=True, salt=place + 1)
        with torch.no_grad():
            margins_SUP[own] = teacher.margins_beside(stack.train_SUPK)[own]
            tastes_SUNK[own] = teacher.read(stack.train_SUPK)[own][:, None]
    return Taught(margins_SUP, tastes_SUNK)


def made_up(
    model: Students, phi_SIK: Tensor, taught: Taught, rows_SB: Tensor, rng: Randoms, *, context: int, judged: int = 20
) -> Tensor:
    """Loss on people made up after these, (S, B): someone of a taste that the person may have answers `context` random
    pairs, slips included, and the student is to find the chances of her answers to others.
    """
    count, b = taught.tastes_SUNK.shape[2], rows_SB.shape[1]
    items = phi_SIK.shape[1]
    which = torch.from_numpy(np.stack([each.integers(count, size=b) for each in rng]))
    pairs = torch.from_numpy(np.stack([each.integers(items, size=(b, context + judged, 2)) for each in rng]))
    luck = torch.from_numpy(np.stack([each.random((b, context), np.float32) for each in rng]))
    seed_S1 = torch.arange(len(rows_SB))[:, None]
    taste_SBK = taught.tastes_SUNK[seed_S1, rows_SB, which]
    one, other = pairs.unbind(3)
    apart = phi_SIK[seed_S1[..., None], one] - phi_SIK[seed_S1[..., None], other]
    chance = torch.sigmoid((apart * taste_SBK[:, :, None]).sum(3))
    sign = (luck < chance[:, :, :context]).to(apart.dtype) * 2 - 1
    margins = model.margins(apart[:, :, :context] * sign[..., None], apart[:, :, context:])
    return functional.binary_cross_entropy_with_logits(margins, chance[:, :, context:], reduction="none").mean(2)


def known_of(taught: Taught, rows_SB: Tensor, order_SBP: Tensor | None) -> Tensor:
    """Teachers' margins of these people's comparisons, in that order, (S, B, P)."""
    margins = of_rows(taught.margins_SUP, rows_SB)
    return margins if order_SBP is None else torch.gather(margins, 2, order_SBP)
