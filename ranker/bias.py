"""What moves a label besides taste: the shallow tower of zhao2019recommending, dropped at serving.

A context (where an item stood, on which device; which of two stood first, how the question was worded) adds to the
logit of the biased objectives in training. Axes: R rows, C codes, P places, T objectives.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

#: places below this have a row each, deeper ones share rows by the doubling: position bias is smooth down there
NEAR = 48
PLACES = NEAR + 4 * 12


class BiasTower(nn.Module):
    """An additive logit for a place, and for the place together with each code of the context.

    The missing embedding is zero and stays zero: an additive tower is known only up to a constant, and this choice
    makes the tower-free logit the one for "position unknown", so that `absent` and `missing` are the same thing.

    Args:
        biased: one flag per objective; the others get exactly zero.
        rows: hashed rows for pairs of place and code.
        dropout: share of training rows whose context is replaced by the missing embedding (10 % in the paper).

    Source: Zhao et al. 2019, section 4.2. Differs: one additive table per place and per place x device instead of a
    small network, so that the curve can be read off; the missing embedding is fixed.
    """

    def __init__(self, biased: list[bool], *, rows: int = 4096, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = dropout
        self.place_PT = nn.Parameter(torch.zeros(PLACES, len(biased)))
        self.cross_RT = nn.Parameter(torch.zeros(rows, len(biased)))
        self.biased_T: Tensor
        self.usual_PT: Tensor
        self.register_buffer("biased_T", torch.tensor(biased, dtype=torch.float32), persistent=False)
        # what the tower usually says at a place, over the contexts that are met there: the curve to read
        self.register_buffer("usual_PT", torch.zeros(PLACES, len(biased)))

    def forward(self, positions_R: Tensor, codes_RC: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The tower's logits (R, T).

        Shapes: positions (R,), -1 unknown; codes (R, C), -1 absent.

        Args:
            generator: draws the feature dropout while training; none is dropped without it.
        """
        known_R = positions_R >= 0
        if self.training and generator is not None:
            known_R = known_R & (torch.rand(len(known_R), generator=generator) >= self.dropout)
        places_R = bucket(positions_R)
        logits_RT = self.place_PT[places_R]
        for codes_R in codes_RC.unbind(1):
            cross_R = (codes_R * PLACES + places_R) * 2654435761 % (2**32) * len(self.cross_RT) // 2**32
            logits_RT = logits_RT + self.cross_RT[cross_R] * (codes_R >= 0)[:, None]
        logits_RT = logits_RT * known_R[:, None] * self.biased_T
        if self.training:
            self._note(places_R[known_R], logits_RT.detach()[known_R])
        return logits_RT

    def examination(self, logits_T: Tensor, depth: int = 50) -> NDArray[np.float64]:
        """How likely a place is acted on, against the first place, all else equal: (depth, T), 1 at place 0.

        Identifiable only where items were seen at several places, by swaps (ranker/exploration.py) or because they
        stood elsewhere in another slate: where each keeps its place, its merit and the place's bias are one number.

        Args:
            logits_T: tower-free logits at which the curve is read, usually those of a typical impression.
        """
        chance_PT = torch.sigmoid(logits_T + self.usual_PT[bucket(torch.arange(depth))])
        found: NDArray[np.float64] = (chance_PT / chance_PT[:1]).double().numpy()
        return found

    def _note(self, places_R: Tensor, logits_RT: Tensor) -> None:
        sums_PT = torch.zeros_like(self.usual_PT).index_add(0, places_R, logits_RT)
        mean_PT = sums_PT / torch.bincount(places_R, minlength=PLACES)[:, None]
        self.usual_PT.copy_(torch.where(mean_PT.isfinite(), torch.lerp(self.usual_PT, mean_PT, 0.1), self.usual_PT))


def framing(tower: BiasTower, first_R: Tensor, wording_R: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """What the way of asking adds to the logit of "preferred over the other one", (R,); 0 where it is unknown.

    Each of the two items stood at a place, first or second, under a wording: preferred minus other of the tower's
    logits. So the pair's logit is its margin of utility plus this, and the margin is learned without the framing.

    Shapes: first_R (R,), 0 where the preferred item was shown first, 1 where second, -1 unknown; wording_R (R,) a code
    of the words, -1 unknown.

    Args:
        tower: of a single objective, which is biased.
        generator: draws the feature dropout while training, of both places together; none is dropped without it.

    Source: the shallow tower of Zhao et al. 2019 on another context; the constructed answers of ghafouri2026annotation
    are those that follow it.
    """
    if tower.training and generator is not None:
        kept_R = torch.rand(len(first_R), generator=generator) >= tower.dropout
        first_R = torch.where(kept_R, first_R, -1)
    other_R = torch.where(first_R >= 0, 1 - first_R, -1)
    codes_R1 = wording_R[:, None]
    moved_R1: Tensor = tower(first_R, codes_R1) - tower(other_R, codes_R1)
    return moved_R1[:, 0]


def bucket(positions_R: Tensor) -> Tensor:
    """Rows of the place table: one each below NEAR, four per doubling beyond.

    Example:
        >>> bucket(torch.tensor([-1, 0, 47, 48, 60, 100_000])).tolist()
        [0, 0, 47, 48, 49, 92]
    """
    deep_R = NEAR + (4 * torch.log2(positions_R.clamp(min=NEAR) / NEAR)).long()
    return torch.where(positions_R < NEAR, positions_R.clamp(min=0), deep_R.clamp(max=PLACES - 1))
