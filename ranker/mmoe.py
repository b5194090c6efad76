"""Multi-gate mixture of experts (Ma et al. 2018; as in Zhao et al. 2019): experts shared, a gate per objective.

Axes: R rows, S shared inputs, E experts, H hidden units of an expert, T objectives.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

#: gate logits are cut here instead of subtracting the maximum: exp stays finite and one pass over memory is saved
CUT = 30.0


def mixed(votes_RET: Tensor, gates_RET: Tensor, seen_RE: Tensor | None = None) -> Tensor:
    """Votes weighted by the softmax of the gates over the experts, by clamp, exp and one division at the end.

    Shapes: (R, E, T), (R, E, T), (R, E) -> (R, T); `seen` leaves experts out and the others share what is left.

    On 2 cores `torch.softmax` over 8 experts cost as much as the experts themselves. Differs from softmax only
    where a logit lies beyond +-CUT.
    """
    shares_RET = gates_RET.clamp(-CUT, CUT).exp()
    if seen_RE is not None:
        shares_RET = shares_RET * seen_RE[:, :, None]
    return (votes_RET * shares_RET).sum(1) / shares_RET.sum(1)


class MMoE(nn.Module):
    """All experts and all gates in one matrix product, then one linear head per objective.

    The head is applied to each expert before mixing, which is the same sum in another order and cheaper.

    Args:
        dropout: chance that a row does not see an expert, in training; the others' shares are renormalised, against
            gates that collapse onto one expert (Zhao et al. 2019, section 5: 10 %).
    """

    def __init__(
        self,
        inputs: int,
        experts: int,
        hidden: int,
        objectives: int,
        generator: torch.Generator,
        *,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.experts, self.objectives, self.dropout = experts, objectives, dropout
        self.split = (experts * hidden, experts * objectives)
        self.weight = nn.Parameter(
            torch.cat(
                [
                    torch.randn(self.split[0], inputs, generator=generator) * math.sqrt(2 / inputs),
                    torch.randn(self.split[1], inputs, generator=generator) * 0.1 / math.sqrt(inputs),
                ]
            )
        )
        self.bias = nn.Parameter(torch.zeros(sum(self.split)))
        self.heads_TH = nn.Parameter(torch.randn(objectives, hidden, generator=generator) / math.sqrt(hidden))
        self.heads_T = nn.Parameter(torch.zeros(objectives))

    def forward(self, x_RS: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One logit per objective, (R, T).

        Args:
            generator: draws the expert dropout while training; none is dropped without it.
        """
        rows = len(x_RS)
        hidden, gates = functional.linear(x_RS, self.weight, self.bias).split_with_sizes(self.split, 1)
        votes_RET = functional.linear(hidden.relu().reshape(rows, self.experts, -1), self.heads_TH)
        seen_RE = None
        if self.training and generator is not None:
            seen_RE = torch.rand(rows, self.experts, generator=generator) >= self.dropout
            seen_RE = seen_RE | ~seen_RE.any(1, keepdim=True)
        return mixed(votes_RET, gates.reshape(rows, self.experts, self.objectives), seen_RE) + self.heads_T
