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
    """

    mean_K: NDArray[np.float32]
    precision_K: NDArray[np.float32]
    sources: Mapping[str, int] = field(default_factory=dict)
    acted: frozenset[str] = frozenset()


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
        prior_K, mean_K = self.prior()
        # two products rather than one that is cut: softplus is 7 times as slow on a slice of a wider array
        to_precision, to_mean = self.out.chunk(2)
        precision_bias, mean_bias = self.out_bias.chunk(2)
        precision_AK = functional.softplus(functional.linear(hidden_AH, to_precision, precision_bias))
        mean_AK = functional.linear(hidden_AH, to_mean, mean_bias)
        none_SK = precision_AK.new_zeros(slates, len(prior_K))
        precision_SK = none_SK.index_add(0, slate_A, precision_AK) + prior_K
        information_SK = none_SK.index_add(0, slate_A, precision_AK * mean_AK) + prior_K * mean_K
        return information_SK / precision_SK, precision_SK
