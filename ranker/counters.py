"""How often each item was shown and how often that worked, decaying with event time (zhang2007coec).

Gradients move an item by a step per impression; a count moves it at once. Clicks are set against expected clicks:
an impression counts for as much as its position is worth, so position bias does not enter. The counts are buffers of
the model, so a version ships them and serving reads what training read.

Counting is by forward decay (cormode2009forward): what happens at time t is stored scaled by 2^((t - landmark) /
half-life), so that nothing has to be touched as time passes, and events out of order count as they should. Nothing is
read as of a time before the latest that was counted: there the decay would be a growth. Each item has two hashed rows
and the smaller count is believed, as in a count-min sketch.

Axes: V rows, L half-lives, T objectives, R rows of a batch, F inputs = 2 L T.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ranker.inputs import PRIOR

#: seconds: what is hot now, and what the last hours say
HALF_LIVES = (1800.0, 4 * 3600.0)
#: inputs per objective: a lift and an amount for each half-life
COUNTS = 2 * len(HALF_LIVES)
#: an outcome this often is assumed before anything was seen
BASE = 0.05
#: half-lives after which the landmark moves, well inside the range of float32
SPAN = 40.0


class Fading(NamedTuple):
    """How the counts of one module are read at one time; the rest of it is per item.

    Attributes:
        fade_F: what is left of an impression.
        lift_F: the same of an outcome, over the population's rate.
    """

    fade_F: NDArray[np.float32]
    lift_F: NDArray[np.float32]


class Counters(nn.Module):
    """Decayed impressions and outcomes by item.

    The outcome is the label of a binary objective; of a value objective, whether the value is above 0.

    Example:
        >>> counters = Counters(8, 1)
        >>> keys_R2, now_R = torch.tensor([[0, 1], [2, 3]]), torch.tensor([0, 0])
        >>> counters.count(keys_R2, now_R, torch.ones(2, 1), torch.tensor([[1.0], [0.0]]))
        >>> lift_R = counters(keys_R2, now_R)[:, 0]
        >>> bool(lift_R[0] > 0 > lift_R[1])
        True
    """

    def __init__(self, rows: int, objectives: int, half_lives: tuple[float, ...] = HALF_LIVES) -> None:
        super().__init__()
        self.half_lives_L = torch.tensor(half_lives, dtype=torch.float64) * 1000
        self.objectives = objectives
        self.counts_VF: Tensor
        self.totals_F: Tensor
        self.landmark_L: Tensor
        self.latest: Tensor
        width = len(half_lives) * objectives
        self.register_buffer("counts_VF", torch.zeros(rows, 2 * width))
        self.register_buffer("totals_F", torch.zeros(2 * width))
        self.register_buffer("landmark_L", torch.full((len(half_lives),), -1, dtype=torch.int64))
        self.register_buffer("latest", torch.full((), -1, dtype=torch.int64))

    @property
    def inputs(self) -> int:
        """F: how many inputs a row has."""
        return self.counts_VF.shape[1]

    def forward(self, keys_R2: Tensor, now_R: Tensor) -> Tensor:
        """The inputs of items at a time (R, F): log lift over the population's rate, then log impressions.

        Units: ms; now_R may be (1,) for one time for all. A time before the latest counted one is taken as that one.
        """
        return self.read(self.find(keys_R2), now_R)

    def find(self, keys_R2: Tensor) -> Tensor:
        """The counts of items as they are stored (R, F)."""
        first_RF, second_RF = (self.counts_VF.index_select(0, keys_R) for keys_R in keys_R2.unbind(1))
        return torch.minimum(first_RF, second_RF)

    def read(self, found_RF: Tensor, now_R: Tensor) -> Tensor:
        """The inputs, from counts that were found."""
        fade_RF = self._fade(torch.maximum(now_R, self.latest), -1)
        shown, worked = (found_RF * fade_RF).chunk(2, 1)
        all_shown, all_worked = (self.totals_F * fade_RF).chunk(2, 1)
        base = (all_worked + BASE) / (all_shown + 1)
        lift = torch.log((worked / base + PRIOR) / (shown + PRIOR))
        return torch.cat([lift, torch.log1p(shown) / 4], 1)

    def fading(self, now: int) -> Fading:
        """What reads these counts as of one time, ms, as they are now."""
        lives_L, landmark_L = self.half_lives_L.numpy(), self.landmark_L.numpy()
        fade_L = np.exp2(np.maximum((landmark_L - max(now, int(self.latest))) / lives_L, -2 * SPAN)).astype(np.float32)
        fade_F = np.repeat(fade_L, self.objectives)
        all_shown, all_worked = np.split(self.totals_F.numpy(), 2)
        lift_F = fade_F * (all_shown * fade_F + 1) / (all_worked * fade_F + BASE)
        return Fading(fade_F, lift_F.astype(np.float32))

    def count(self, keys_R2: Tensor, now_R: Tensor, shown_RT: Tensor, worked_RT: Tensor) -> None:
        """Add impressions (as expected outcomes relative to an unbiased position) and outcomes, in place."""
        if not len(now_R):
            return
        latest = int(now_R.max())
        if int(self.landmark_L[0]) < 0:
            self.landmark_L.fill_(latest)
        self._move(latest)
        self.latest.clamp_(min=latest)
        added_RF = torch.cat([shown_RT, worked_RT], 1).float()
        lives = len(self.half_lives_L)
        added_RF = added_RF.view(-1, 2, 1, self.objectives).expand(-1, -1, lives, -1).reshape(len(now_R), -1)
        added_RF = added_RF * self._fade(now_R, 1)
        for keys_R in keys_R2.unbind(1):
            self.counts_VF.index_add_(0, keys_R, added_RF)
        self.totals_F += added_RF.sum(0)

    def _fade(self, now_R: Tensor, sign: int) -> Tensor:
        """2^(sign (now - landmark) / half-life), once for each input: (R, F)."""
        spans_RL = (now_R[:, None] - self.landmark_L).double() / self.half_lives_L
        fade_RL = torch.exp2(sign * spans_RL.clamp(-2 * SPAN, 2 * SPAN)).float()
        return fade_RL.repeat_interleave(self.objectives, 1).repeat(1, 2)

    def _move(self, latest: int) -> None:
        """Bring the landmark of a half-life forward before its scale would leave the range of float32."""
        late_L = (latest - self.landmark_L).double() / self.half_lives_L > SPAN
        if bool(late_L.any()):
            fade_F = self._fade(torch.tensor([latest]), -1)[0]
            late_F = late_L.repeat_interleave(self.objectives).repeat(2)
            fade_F = torch.where(late_F, fade_F, torch.ones_like(fade_F))
            self.counts_VF *= fade_F
            self.totals_F *= fade_F
            self.landmark_L[late_L] = latest


def uncount(weights: Mapping[str, Tensor]) -> None:
    """Clear the counts among a model's weights, in place: a second pass over a log would be told its answers by them.

    Args:
        weights: `Model.state_dict()`, or what a version ships.
    """
    for name, tensor in weights.items():
        if name.startswith("counters."):
            tensor.fill_(-1 if tensor.dtype == torch.int64 else 0)
