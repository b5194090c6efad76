"""A user's taste as a Gaussian over base rewards, and its amortised encoder (VPL, poddar2024personalizing).

The prior is counted once and each source of evidence adds a factor: a precision and an information vector
(precision times mean). So sources fuse by addition, in any order, and more evidence never widens the Gaussian.
Axes: S slates (users at a time), A acts, K base rewards.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional


class Factor(NamedTuple):
    """What one source says: precision, (K,) where it is diagonal or (K, K), and information (K,) = precision . mean."""

    precision: NDArray[np.float32]
    information: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Taste:
    """The posterior over what the user wants of each base reward.

    Attributes:
        mean_K: what z stands for at serving.
        precision_K: (K,) where diagonal, (K, K) once a source says more than one axis at a time.
        sources: how many pieces of evidence each source held, {"history": 12}.
        acted: the items of the acts it rests on.
        acted_A: their rows in the catalogue, sorted; -1 for those that it did not hold.
    """

    mean_K: NDArray[np.float32]
    precision_K: NDArray[np.float32]
    sources: Mapping[str, int] = field(default_factory=dict)
    acted: frozenset[str] = frozenset()
    acted_A: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def fuse(prior: Factor, factors: Sequence[Factor] = (), sources: Mapping[str, int] | None = None) -> Taste:
    """The posterior: precisions add, informations add, mean = precision^-1 . information.

    Example:
        >>> one = np.ones(2, np.float32)
        >>> fuse(Factor(one, 0 * one), [Factor(3 * one, 4 * one)]).mean_K.tolist()
        [1.0, 1.0]
    """
    diagonal = prior.precision.ndim == 1 and all(factor.precision.ndim == 1 for factor in factors)
    precision, information = prior if diagonal else (_full(prior.precision), prior.information)
    for factor in factors:
        precision = precision + (factor.precision if diagonal else _full(factor.precision))
        information = information + factor.information
    mean: NDArray[np.float32] = information / precision if diagonal else np.linalg.solve(precision, information)
    return Taste(mean_K=mean, precision_K=precision, sources=dict(sources or {}))


def _full(precision: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.diag(precision) if precision.ndim == 1 else precision


class History(nn.Module):
    """The behaviour factor: each act adds a precision >= 0 and an information, both read off one hidden layer.

    Order does not enter except through the age of an act, which is one of its inputs; an empty history gives the
    learned prior exactly.

    Source: VPL's set encoder with a product of experts in place of attention and mean pooling, so that evidence
    accumulates. The variational objective belongs to the learner.
    """

    def __init__(self, hidden: int, dimensions: int, generator: torch.Generator) -> None:
        super().__init__()
        self.out = nn.Parameter(torch.randn(2 * dimensions, hidden, generator=generator) / math.sqrt(hidden))
        self.out_bias = nn.Parameter(torch.cat([torch.full((dimensions,), -2.0), torch.zeros(dimensions)]))
        self.prior_mean_K = nn.Parameter(torch.zeros(dimensions))
        self.prior_log_precision_K = nn.Parameter(torch.zeros(dimensions))

    def prior(self) -> tuple[Tensor, Tensor]:
        """Precision (K,) and mean (K,) of the population."""
        return self.prior_log_precision_K.exp(), self.prior_mean_K

    def forward(self, hidden_AH: Tensor, slate_A: Tensor, slates: int) -> tuple[Tensor, Tensor]:
        """Posterior mean and precision, (S, K) each, from the acts' hidden layer and the slate each belongs to."""
        precision_AK, information_AK = self.factors(hidden_AH)
        none_SK = precision_AK.new_zeros(slates, precision_AK.shape[1])
        return self.posterior(
            none_SK.index_add(0, slate_A, precision_AK), none_SK.index_add(0, slate_A, information_AK)
        )

    def factors(self, hidden_AH: Tensor) -> tuple[Tensor, Tensor]:
        """What each act adds, its precision and its information, (A, K) each."""
        # two products rather than one that is cut: softplus is 7 times as slow on a slice of a wider array
        to_precision, to_mean = self.out.chunk(2)
        precision_bias, mean_bias = self.out_bias.chunk(2)
        precision_AK = functional.softplus(functional.linear(hidden_AH, to_precision, precision_bias))
        mean_AK = functional.linear(hidden_AH, to_mean, mean_bias)
        return precision_AK, precision_AK * mean_AK

    def posterior(self, precision_SK: Tensor, information_SK: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and precision, (S, K) each, from the sums of each slate's factors."""
        prior_K, mean_K = self.prior()
        precision_SK = precision_SK + prior_K
        return (information_SK + prior_K * mean_K) / precision_SK, precision_SK


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Temper:
    """How far a history is believed beside answers; the default believes it as the encoder says.

    Attributes:
        scale: of the factor's precision and information, 0 to 1.
        residual_K: variance added to the posterior, for what the encoder is wrong about however long the history.
    """

    scale: float = 1.0
    residual_K: NDArray[np.float32] | None = None


def tempered(prior: Factor, factor: Factor, temper: Temper) -> Factor:
    """A diagonal factor, weakened: the mean that prior and factor fuse to moves no further from the prior's.

    With a residual variance R the posterior precision becomes 1 / (1 / precision + R), though never below the prior's:
    evidence does not widen.

    Example:
        >>> one = np.ones(1, np.float32)
        >>> tempered(Factor(one, 0 * one), Factor(3 * one, 4 * one), Temper(scale=0.5)).information.tolist()
        [2.0]
    """
    precision_K, information_K = temper.scale * factor.precision, temper.scale * factor.information
    if temper.residual_K is not None:
        whole_K = prior.precision + precision_K
        mean_K = (prior.information + information_K) / whole_K
        kept_K = np.maximum(1 / (1 / whole_K + temper.residual_K), prior.precision)
        precision_K, information_K = kept_K - prior.precision, kept_K * mean_K - prior.information
    return Factor(np.float32(1) * precision_K, np.float32(1) * information_K)


def predictive_loss(margin_P: Tensor, variance_P: Tensor, share_P: Tensor, weight_P: Tensor) -> Tensor:
    """What the taste fails to predict of comparisons outside its evidence, nats a comparison (a weighted mean).

    Args:
        margin_P: expected utility of the one minus that of the other, under the posterior.
        variance_P: of that margin, >= 0.
        share_P: 1 the one was preferred, 0 the other, 1/2 a tie.
        weight_P: how much each comparison counts, >= 0.

    Source: VPL's reconstruction term, taken on held-out pairs, with z integrated out by MacKay's approximation
    E sigmoid(m) = sigmoid(m / sqrt(1 + pi v / 8)) (MacKay 1992) in place of samples. It is within 0.02 of the
    integral for |m| <= 5 and v <= 10. A plain ELBO, which rewards repeating the evidence, collapsed to the prior.
    """
    shrunk_P: Tensor = margin_P / torch.sqrt(1 + math.pi / 8 * variance_P)
    loss_P = -share_P * functional.logsigmoid(shrunk_P) - (1 - share_P) * functional.logsigmoid(-shrunk_P)
    loss: Tensor = (weight_P * loss_P).sum() / weight_P.sum().clamp_min(1e-12)
    return loss


def divergence(
    mean_UK: Tensor, precision_UK: Tensor, prior_precision_K: Tensor, prior_mean_K: Tensor, *, free: float = 0.0
) -> Tensor:
    """KL of each taste from the prior, nats, (U,).

    Args:
        precision_UK: (U, K) where diagonal, else (U, K, K); the prior's likewise, (K,) or (K, K).
        free: nats that each dimension may use at no charge; of a full precision the total is spared `free` times K.

    Source: free bits (Kingma et al. 2016), here of each user's own KL and not of a batch's mean.
    """
    apart_UK = mean_UK - prior_mean_K
    if precision_UK.ndim == 2 and prior_precision_K.ndim == 1:
        ratio_UK = prior_precision_K / precision_UK
        kl_UK = 0.5 * (ratio_UK - 1 - ratio_UK.log() + prior_precision_K * apart_UK.square())
        charged_U: Tensor = kl_UK.clamp_min(free).sum(1)
        return charged_U
    precision_UKK = torch.diag_embed(precision_UK) if precision_UK.ndim == 2 else precision_UK
    prior_KK = torch.diag(prior_precision_K) if prior_precision_K.ndim == 1 else prior_precision_K
    spread_U = torch.linalg.solve(precision_UKK, prior_KK).diagonal(dim1=1, dim2=2).sum(1)
    moved_U = ((apart_UK @ prior_KK) * apart_UK).sum(1)
    grown_U = torch.logdet(precision_UKK) - torch.logdet(prior_KK)
    kl_U: Tensor = 0.5 * (spread_U + moved_U - mean_UK.shape[1] + grown_U)
    return kl_U.clamp_min(free * mean_UK.shape[1])


def active_units(mean_UK: Tensor, threshold: float) -> float:
    """The share of dimensions whose posterior mean varies between users by more than `threshold`.

    A collapsed posterior has none; but scale alone can lift it (a model that the context did not help was fully active
    at .005), so read it beside the accuracy gained by the context.

    Source: Burda et al. (2016), with SPL's threshold .005 (2603.12595) in place of .01.
    """
    if len(mean_UK) < 2:
        return 0.0
    return float((mean_UK.var(0) > threshold).float().mean())


def swap_guidance(mean_UK: Tensor, precision_UK: Tensor, swapped_UK: Tensor, swapped_precision_UK: Tensor) -> Tensor:
    """A penalty in [0, 1.1] for each user, (U,): 0 where the same comparisons answered the other way round give the
    opposite mean and the same uncertainty.

    Args:
        mean_UK: posterior means, less the prior's.
        swapped_UK: those of the same evidence with each preferred and over swapped.

    Source: SPL (2603.12595): (1 + cos(mean, swapped)) / 2 + .1 (1 - cos(log variance, swapped)) / 2. A mean of zero
    (no evidence) has cosine 0.
    """
    opposite_U = functional.cosine_similarity(mean_UK, swapped_UK, dim=1)
    alike_U = functional.cosine_similarity(precision_UK.log(), swapped_precision_UK.log(), dim=1)
    penalty_U: Tensor = (1 + opposite_U) / 2 + 0.1 * (1 - alike_U) / 2
    return penalty_U
