"""Multi-gate mixture of experts (Ma et al. 2018; as in Zhao et al. 2019): experts shared, a gate per objective.

Axes: R rows, S shared inputs, E experts, H hidden units of an expert, T objectives.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

#: gate logits are cut here instead of subtracting the maximum: exp stays finite and one pass over memory is saved
CUT = 30.0


def normalised(gates: Tensor) -> Tensor:
    """Softmax over the last dimension by clamp, exp and divide.

    On 2 cores `torch.softmax` over 8 experts cost as much as the experts themselves. Differs from softmax only
    where a logit lies beyond +-CUT.
    """
    shares = gates.clamp(-CUT, CUT).exp()
    return shares / shares.sum(-1, keepdim=True)


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
        self.split = (experts * hidden, objectives * experts)
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
        hidden, gates = functional.linear(x_RS, self.weight, self.bias).split(self.split, 1)
        votes_RET = hidden.relu().view(len(x_RS), self.experts, -1) @ self.heads_TH.T
        shares_RTE = normalised(gates.view(len(x_RS), self.objectives, self.experts))
        if self.training and generator is not None:
            seen_RE = torch.rand(len(x_RS), self.experts, generator=generator) >= self.dropout
            seen_RE = seen_RE | ~seen_RE.any(1, keepdim=True)
            shares_RTE = shares_RTE * seen_RE[:, None]
            shares_RTE = shares_RTE / shares_RTE.sum(-1, keepdim=True)
        return (votes_RET * shares_RTE.transpose(1, 2)).sum(1) + self.heads_T
