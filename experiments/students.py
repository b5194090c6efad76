"""Small models that read a few comparisons of a person and predict her others; those of all seeds train side by side.

A student gives a taste from comparisons in any order: z = V LeakyReLU(H mean LeakyReLU(E(phi_p - phi_o))) + b, and
r(item) = z . phi(item). It is given no group. The students of S seeds are stacked, since so small a model spends its
time on overhead: AdamW works by element and the loss is a sum over seeds, so each learns as it would alone.

Axes: S seeds, U users, B users of a batch, P comparisons of a user (the first C are context), K base rewards, W width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from experiments.grades import Array, Rows
from experiments.personas import Bools, World
from ranker.pareto import Standing

RATE, BATCH, DECAY, WIDTH, LATENT = 1e-2, 64, 1e-2, 64, 16

Weights = dict[str, Tensor]
Randoms = list[np.random.Generator]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """The worlds of all seeds: comparisons of the people trained on, chosen on and unseen (S, U, P, K)."""

    seeds: tuple[int, ...]
    worlds: tuple[World, ...]
    train_SUPK: Tensor
    valid_SUPK: Tensor
    test_SUPK: Tensor
    phi_SIK: Tensor
    context: int

    def __len__(self) -> int:
        return len(self.worlds)

    @property
    def everyone(self) -> list[Rows]:
        """All people trained on, of each seed."""
        return [np.arange(self.train_SUPK.shape[1])] * len(self)


def stacked(worlds: Sequence[World], seeds: Sequence[int]) -> Stack:
    """Worlds side by side; all have the same numbers of people."""
    parts = [torch.stack([world.parts[place].apart_UPK for world in worlds]) for place in range(3)]
    return Stack(
        seeds=tuple(seeds),
        worlds=tuple(worlds),
        train_SUPK=parts[0],
        valid_SUPK=parts[1],
        test_SUPK=parts[2],
        phi_SIK=torch.stack([world.phi_IK for world in worlds]),
        context=worlds[0].context,
    )


class Students(nn.Module):
    """One student for each seed, whose first weights are that seed's alone."""

    def __init__(self, k: int, seeds: Sequence[int]) -> None:
        super().__init__()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def layer(fan: int, out: int) -> tuple[nn.Parameter, nn.Parameter]:
            reach = fan**-0.5
            weight, bias = (
                torch.stack([torch.empty(rows, out).uniform_(-reach, reach, generator=each) for each in generators])
                for rows in (fan, 1)
            )
            return nn.Parameter(weight), nn.Parameter(bias)

        self.embed, self.embed_bias = layer(k, WIDTH)
        self.hidden, self.hidden_bias = layer(WIDTH, WIDTH)
        self.latent, self.latent_bias = layer(WIDTH, LATENT)
        self.reward, self.reward_bias = layer(LATENT, k)

    def embedded(self, apart_SBPK: Tensor) -> Tensor:
        """Each comparison by itself, (S, B, P, W)."""
        s, b, p, k = apart_SBPK.shape
        flat_SNW = torch.baddbmm(self.embed_bias, apart_SBPK.reshape(s, b * p, k), self.embed)
        return functional.leaky_relu(flat_SNW).view(s, b, p, -1)

    def taste(self, mean_SBW: Tensor) -> Tensor:
        """Weights over base rewards, (S, B, K)."""
        hidden = functional.leaky_relu(torch.baddbmm(self.hidden_bias, mean_SBW, self.hidden))
        latent = torch.baddbmm(self.latent_bias, hidden, self.latent)
        return torch.baddbmm(self.reward_bias, latent, self.reward)

    def read(self, context_SBCK: Tensor) -> Tensor:
        """The taste after these comparisons, (S, B, K)."""
        return self.taste(self.embedded(context_SBCK).mean(2))

    def margins(self, context_SBCK: Tensor, judged_SBPK: Tensor) -> Tensor:
        """Margins of the judged comparisons after the context, (S, B, P)."""
        return (self.read(context_SBCK)[:, :, None] * judged_SBPK).sum(3)

    def margins_beside(self, apart_SBPK: Tensor) -> Tensor:
        """The margin of every comparison after all the others of the same person, never after itself, (S, B, P)."""
        s, b, p, _ = apart_SBPK.shape
        each = self.embedded(apart_SBPK)
        others = (each.sum(2, keepdim=True) - each) / (p - 1)
        return (self.taste(others.reshape(s, b * p, -1)).view(s, b, p, -1) * apart_SBPK).sum(3)

    def predicted(self, apart_SBPK: Tensor, context: int, *, whole: bool = False) -> Tensor:
        """Margins of all comparisons but the first `context`; with `whole` each after all the others."""
        if whole:
            return self.margins_beside(apart_SBPK)[:, :, context:]
        return self.margins(apart_SBPK[:, :, :context], apart_SBPK[:, :, context:])


def randoms(seeds: Sequence[int], *salt: int) -> Randoms:
    """A generator for each seed, so that what a seed draws does not depend on its neighbours."""
    return [np.random.default_rng((seed, *salt)) for seed in seeds]


def rows_of(groups: Sequence[Rows], size: int, rng: Randoms) -> Tensor:
    """People of each seed's group, without repetition where it has enough, (S, size)."""
    chosen = [each.choice(group, size, replace=len(group) < size) for group, each in zip(groups, rng, strict=True)]
    return torch.from_numpy(np.stack(chosen))


def of_rows(values_SU: Tensor, rows_SB: Tensor) -> Tensor:
    """Those people's values, (S, B, ...)."""
    return values_SU[torch.arange(len(rows_SB))[:, None], rows_SB]


def orders(rows_SB: Tensor, comparisons: int, rng: Randoms) -> Tensor:
    """An order of the comparisons for each person, (S, B, P)."""
    drawn = np.stack([each.random((rows_SB.shape[1], comparisons), np.float32) for each in rng])
    return torch.from_numpy(drawn).argsort(2)


def reordered(apart_SBPK: Tensor, order_SBP: Tensor) -> Tensor:
    """The comparisons in that order, so that others are context."""
    return torch.gather(apart_SBPK, 2, order_SBP[..., None].expand_as(apart_SBPK))


def by_person(model: Students, apart_SUPK: Tensor, context: int, *, whole: bool = False) -> tuple[Array, Array]:
    """Each person's accuracy and loss in nats a comparison, (S, U) both."""
    with torch.no_grad():
        margins = model.predicted(apart_SUPK, context, whole=whole)
    lost: NDArray[np.float64] = functional.softplus(-margins).mean(2).double().numpy()
    right: NDArray[np.float64] = (margins > 0).double().mean(2).numpy()
    return right, lost


def mean_of(values_U: Array, group_U: Bools) -> float:
    """The mean of a group; nan for a group of nobody, which the no-harm rule takes for harm."""
    return float(values_U[group_U].mean()) if group_U.any() else float("nan")


def standings(model: Students, apart_SUPK: Tensor, minority: Sequence[Bools], context: int) -> list[Standing]:
    """How each seed's model predicts the labels of its majority and its minority.

    Every comparison is context once and judged else, so that chance enters the no-harm rule as little as it can.
    """
    turns = range(0, apart_SUPK.shape[2], context)
    each = [by_person(model, apart_SUPK.roll(-turn, 2), context) for turn in turns]
    right_SU, lost_SU = (np.mean(values, 0) for values in zip(*each, strict=True))
    found = []
    for right_U, lost_U, minority_U in zip(right_SU, lost_SU, minority, strict=True):
        groups = (~minority_U, minority_U)
        found.append(
            Standing(
                accuracy_G=tuple(mean_of(right_U, group_U) for group_U in groups),
                loss_G=tuple(mean_of(lost_U, group_U) for group_U in groups),
            )
        )
    return found


def weights_of(model: Students) -> Weights:
    """A copy of all seeds' weights."""
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def descend(model: Students, loss: Callable[[], Tensor], *, epochs: int, steps: int, rate: float) -> Iterator[None]:
    """Minimise the sum over seeds with AdamW on a one-cycle schedule; pauses after every epoch."""
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * steps)
    for _ in range(epochs):
        for _ in range(steps):
            found = loss()
            optimiser.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        yield


class Best:
    """Keeps each seed's weights of the lowest value so far."""

    def __init__(self, model: Students) -> None:
        self.model, self.kept = model, weights_of(model)
        self.lowest_S = np.full(len(model.embed), np.inf)

    def offer(self, value_S: Array) -> None:
        """The value of the weights as they are now; one that is not finite is never kept."""
        now = self.model.state_dict()
        for place in np.flatnonzero(value_S < self.lowest_S):
            self.lowest_S[place] = value_S[place]
            for name, weight in self.kept.items():
                weight[place] = now[name][place]

    def restore(self) -> Students:
        """The model with the kept weights."""
        self.model.load_state_dict(self.kept)
        return self.model


def plainly(
    model: Students,
    stack: Stack,
    members: Sequence[Rows],
    judges: Sequence[Bools],
    *,
    epochs: int,
    rate: float = RATE,
    whole: bool = False,
    redrawn: bool = False,
    salt: int = 0,
) -> Students:
    """Train on these people alike and keep the weights of the lowest loss on the validation people `judges`.

    Args:
        members: of each seed; where there are none its student learns from everybody.
        redrawn: draw anew in every batch which of a person's comparisons are context.
    """
    rng = randoms(stack.seeds, salt)
    members = [own if len(own) else everyone for own, everyone in zip(members, stack.everyone, strict=True)]
    judges = [own if own.any() else np.ones_like(own) for own in judges]
    people = round(float(np.mean([len(own) for own in members])))
    size = min(BATCH, people)
    queue: list[Tensor] = []

    def loss() -> Tensor:
        if not queue:
            own = [np.resize(each.permutation(mine), people) for mine, each in zip(members, rng, strict=True)]
            shuffled_SU = torch.from_numpy(np.stack(own))
            queue.extend(shuffled_SU[:, start : start + size] for start in range(0, people - size + 1, size))
        rows_SB = queue.pop()
        apart = of_rows(stack.train_SUPK, rows_SB)
        if redrawn:
            apart = reordered(apart, orders(rows_SB, apart.shape[2], rng))
        return functional.softplus(-model.predicted(apart, stack.context, whole=whole)).mean((1, 2)).sum()

    best = Best(model)
    for _ in descend(model, loss, epochs=epochs, steps=people // size, rate=rate):
        _, lost_SU = by_person(model, stack.valid_SUPK, stack.context, whole=whole)
        best.offer(np.array([lost_U[judge].mean() for lost_U, judge in zip(lost_SU, judges, strict=True)]))
    return best.restore()
