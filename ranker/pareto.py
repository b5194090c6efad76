"""Pareto-fair training of one preference model for a majority and a minority (pafo2026; our RECONSTRUCTION).

Of the paper only the abstract is public: bias of personalised reward models varies with preference support rate;
group-specialised reward models for majority and minority preference groups; conditional margin-level supervision
distils them into one model that is given no group. Every formula below is ours, built to that description. A plain
model is trained first; a teacher for either group is fine-tuned from it and reads more of a person's evidence than
the student will; the student learns the labels and, where the teacher of the person's own group has the label's sign,
that teacher's margin too; the groups are weighed against each other; and what comes out is served only if neither
group falls below the plain model, else the plain model is served. Groups enter training and judgement, never serving.

All margins are in the label's direction: of the preferred item minus of the other, so that above 0 is right.

Axes: P labelled pairs, U users, G groups (two: majority, minority).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from ranker.support import boundary, support, user_support

Array = NDArray[np.float64]

__all__ = [
    "Standing",
    "accepted",
    "boundary",
    "copied_loss",
    "distilled_loss",
    "gate",
    "harmless",
    "min_norm",
    "min_norm_shares",
    "power_shares",
    "robust_shares",
    "support",
    "user_support",
]


def gate(teacher_P: Tensor, *, least: float = 0.0) -> Tensor:
    """1 where the teacher has the label's sign by more than `least`, else 0, (P,)."""
    return (teacher_P > least).to(teacher_P.dtype)


def distilled_loss(
    margin_P: Tensor, teacher_P: Tensor, *, strength: float = 3.0, temperature: float = 1.0, least: float = 0.0
) -> Tensor:
    """Bradley-Terry, and beside it the teacher's margin where the gate is open, nats a pair, (P,).

    -log sigmoid(D) + strength . gate(m) . BCE(sigmoid(D / T), sigmoid(m / T))

    Args:
        margin_P: the student's D.
        teacher_P: the own group's teacher's m; no gradient flows into it. Where it contradicts the label, only the
            label speaks.
        strength: 0 leaves the plain loss.
        least: margins up to here are no opinion; -inf opens the gate for good.

    Source: conditional margin supervision of pafo2026, whose form is unknown; this one is a soft label.
    """
    copied_P = copied_loss(margin_P, teacher_P, temperature=temperature, least=least)
    loss_P: Tensor = strength * copied_P - functional.logsigmoid(margin_P)
    return loss_P


def copied_loss(margin_P: Tensor, teacher_P: Tensor, *, temperature: float = 1.0, least: float = 0.0) -> Tensor:
    """What the teacher's margin adds to the loss of each pair, (P,): cross entropy to it, where its gate is open."""
    teacher_P = teacher_P.detach()
    target_P = torch.sigmoid(teacher_P / temperature)
    copied_P = functional.binary_cross_entropy_with_logits(margin_P / temperature, target_P, reduction="none")
    return gate(teacher_P, least=least) * copied_P


def min_norm(first: Tensor, second: Tensor) -> float:
    """The a in [0, 1] for which a . first + (1 - a) . second is shortest; 1/2 where the two are equal.

    The mixed vector has a non-negative product with both, so a small step along it raises neither loss; it is zero
    where no such step is left.

    Source: desideri2012multiple, the closed form for two tasks of sener2018multi, eq. 4.

    Example:
        >>> min_norm(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])), min_norm(torch.ones(1), 3 * torch.ones(1))
        (0.5, 1.0)
    """
    apart = (first - second).double()
    length = float(apart @ apart)
    if not length > 0:
        return 0.5
    return min(max(float(-apart @ second.double()) / length, 0.0), 1.0)


def min_norm_shares(losses_G: Sequence[Tensor], shared: Sequence[Tensor]) -> tuple[float, float]:
    """Shares of two group losses, adding up to 1, by the min-norm step on their gradients divided by their losses.

    Args:
        losses_G: scalars, positive, of one graph; the graph is kept for the one backward of the weighted loss.
        shared: the parameters of the last shared layer, which stand for all of them.

    Source: sener2018multi with the loss normalisation of their code; the gradient of a late layer in place of all,
    as their upper bound argues. The shares are rescaled to 1, so that a step's size is the optimiser's affair.
    """
    first, second = (
        torch.cat([part.flatten() for part in torch.autograd.grad(loss, shared, retain_graph=True)]) / loss.detach()
        for loss in losses_G
    )
    mix = min_norm(first, second)
    weights = [share / max(float(loss.detach()), 1e-12) for share, loss in zip((mix, 1 - mix), losses_G, strict=True)]
    return weights[0] / sum(weights), weights[1] / sum(weights)


def power_shares(counts_G: ArrayLike, power: float = 0.5) -> Array:
    """What each group's mean loss counts for: its share of the users to a power, adding up to 1, (G,).

    1 is plain training, 0 inverse-frequency reweighting, 1/2 (the square root) between the two. A group of nobody
    has weight 0 at every power.

    Example:
        >>> power_shares([900, 100]).round(3).tolist(), power_shares([900, 100], 0).tolist()
        ([0.75, 0.25], [0.5, 0.5])
    """
    counts_G = np.asarray(counts_G, np.float64)
    weight_G = np.where(counts_G > 0, np.maximum(counts_G, 1e-300) ** power, 0.0)
    found: Array = weight_G / max(float(weight_G.sum()), 1e-300)
    return found


def robust_shares(shares_G: Array, losses_G: ArrayLike, *, step: float) -> Array:
    """Group-DRO's weights after a batch: each is multiplied by exp(step . loss) and all are scaled to 1, (G,).

    Source: sagawa2020distributionally, algorithm 1.
    """
    logits_G = np.log(np.maximum(shares_G, 1e-300)) + step * np.asarray(losses_G, np.float64)
    raised_G = np.exp(logits_G - logits_G.max())
    found: Array = raised_G / raised_G.sum()
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How a model does on validation, by group.

    Attributes:
        accuracy_G: share of the labels it predicts.
        loss_G: nats a label.
    """

    accuracy_G: tuple[float, ...]
    loss_G: tuple[float, ...]


def harmless(candidate: Standing, plain: Standing, *, tolerance: float = 0.005) -> bool:
    """Whether no group falls below the plain model by more than the tolerance; a number that is not finite does."""
    return all(
        mine >= theirs - tolerance and math.isfinite(mine) and math.isfinite(loss)
        for mine, theirs, loss in zip(candidate.accuracy_G, plain.accuracy_G, candidate.loss_G, strict=True)
    )


def accepted(candidates: Sequence[Standing], plain: Standing, *, tolerance: float = 0.005) -> int | None:
    """The checkpoint to serve: of the harmless ones that of the lowest balanced loss; None for the plain model.

    The plain model is served where no checkpoint is harmless, or where none lowers the balanced loss.

    Example:
        >>> plain = Standing(accuracy_G=(0.8, 0.6), loss_G=(0.4, 0.7))
        >>> better = Standing(accuracy_G=(0.797, 0.65), loss_G=(0.4, 0.6))
        >>> harmful = Standing(accuracy_G=(0.7, 0.9), loss_G=(0.5, 0.2))
        >>> accepted([harmful, better], plain), accepted([harmful], plain)
        (1, None)
    """
    losses = [
        sum(one.loss_G) if harmless(one, plain, tolerance=tolerance) else math.inf for one in (*candidates, plain)
    ]
    best = min(range(len(losses)), key=lambda place: (losses[place], -place))
    return best if best < len(candidates) else None
