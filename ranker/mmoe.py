"""Multi-gate mixture of experts (ma2018modeling, zhao2019recommending): experts shared, a gate per objective.

Axes: R rows, S shared inputs, E experts, H hidden units of an expert, T objectives, X = E * T.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

#: gate logits are cut here instead of subtracting the maximum: exp stays finite and one pass over memory is saved
CUT = 30.0


def mixed(votes_RX: Tensor, gates_RX: Tensor, fold_XT: Tensor, seen_RX: Tensor | None = None) -> Tensor:
    """Votes weighted by the softmax of the gates over the experts.

    By clamp, exp and one division at the end; sums over experts are products with 0 and 1. On 2 cores `torch.softmax`
    over 8 experts cost as much as the experts themselves. Differs from softmax only where a logit lies beyond +-CUT.

    Shapes: votes, gates (R, X) where X is every expert with every objective; fold (X, T) from `folding`; `seen`
    leaves experts out and the others share what is left.
    """
    shares_RX = gates_RX.clamp(-CUT, CUT).exp()
    if seen_RX is not None:
        shares_RX = shares_RX * seen_RX
    found: Tensor = ((votes_RX * shares_RX) @ fold_XT) / (shares_RX @ fold_XT)
    return found


def folding(experts: int, objectives: int) -> Tensor:
    """The matrix that sums over experts, (experts * objectives, objectives)."""
    return torch.eye(objectives).repeat(experts, 1)


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
        votes_RX = functional.linear(hidden.relu().reshape(rows, self.experts, -1), self.heads_TH).flatten(1)
        seen_RX = None
        if self.training and generator is not None:
            seen_RE = torch.rand(rows, self.experts, generator=generator) >= self.dropout
            seen_RE = seen_RE | ~seen_RE.any(1, keepdim=True)
            seen_RX = seen_RE.repeat_interleave(self.objectives, 1)
        return mixed(votes_RX, gates, folding(self.experts, self.objectives), seen_RX) + self.heads_T
