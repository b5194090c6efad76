"""An amortised encoder of tastes and the base rewards it reads, trained on prediction (VPL, Poddar et al. 2024).

The encoder is the service's `History`: an act is a graded item or a compared pair, each adds to one Gaussian. The base
rewards are a linear map of features of the items (free embeddings fell below a pooled model): factors of the training
users' grades, with the user's own grade left out while she is learned from, or else the encoder learns to read that.
Each step draws people, cuts each one's graded items into evidence and held-out items, and learns to predict
comparisons of the latter.

Axes: U users of a batch, M places of a user's drawn items, P pairs, A acts, N grades of all users, I items, K base
rewards, F features (the last is what everybody prefers), H hidden.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from experiments.grades import Array, Grades, Rows, differ
from ranker.taste import History, divergence, predictive_loss, swap_guidance

#: context pairs and graded items of a training user's evidence
CONTEXTS = (0, 0, 1, 2, 4, 8, 14, 20)
HISTORIES = (0, 0, 0, 5, 10, 20, 50)
#: scale of the items' tags beside their factors
TAGS = 0.3

Floats = NDArray[np.float32]
Conditioning = Literal["product", "film"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a taste is learned.

    Attributes:
        dimensions: K.
        conditioning: utility b + z.phi, or FiLM: z shifts and scales a hidden layer over the item.
        steps: of `users` users each.
        kl: weight of the divergence from the prior, with `free` nats per dimension at no charge.
        swap: weight of SPL's swap guidance.
        targets: held-out comparisons per user and step.
    """

    dimensions: int = 8
    hidden: int = 64
    conditioning: Conditioning = "product"
    steps: int = 800
    users: int = 128
    rate: float = 5e-3
    kl: float = 1e-4
    free: float = 0.05
    swap: float = 0.0
    targets: int = 40


class Evidence(NamedTuple):
    """What users said, by features: pairs (P, 2, F) preferred and over, acts (A, F) with grades, and whose each is."""

    pairs_P2F: Tensor
    pair_user_P: Tensor
    items_AF: Tensor
    values_A: Tensor
    item_user_A: Tensor
    users: int


class Encoder(nn.Module):
    """Base rewards of items out of their features, and tastes out of evidence.

    Args:
        features: F.
        centre, spread: mean and standard deviation of grades.
    """

    def __init__(
        self, features: int, recipe: Recipe, generator: torch.Generator, *, centre: float = 0.0, spread: float = 1.0
    ) -> None:
        super().__init__()
        k, h, f = recipe.dimensions, recipe.hidden, features - 1

        def dense(outputs: int, inputs: int, gain: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(outputs, inputs, generator=generator) * gain / math.sqrt(inputs))

        self.recipe, self.centre, self.spread = recipe, centre, spread
        start_KF = torch.randn(k, f, generator=generator) * 0.1 / math.sqrt(f)
        start_KF[: min(k, f), : min(k, f)] += torch.eye(min(k, f))
        self.map_KF = nn.Parameter(start_KF)
        self.everybody = nn.Parameter(torch.ones(()))
        self.pair = dense(h, k + 1)
        self.item = dense(h, k + 1)
        self.grade = dense(h, 3)
        self.history = History(h, k, generator)
        if recipe.conditioning == "film":
            self.film_in, self.film_bias = dense(h, k), nn.Parameter(torch.zeros(h))
            self.scale, self.shift = dense(h, k), dense(h, k)
            self.film_out = dense(1, h)

    def base(self, features: Tensor) -> Tensor:
        """[phi, b] of items, (..., K + 1)."""
        return torch.cat([features[..., :-1] @ self.map_KF.T, self.everybody * features[..., -1:]], -1)

    def tastes(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Posterior mean and precision, (U, K) each."""
        apart_PH = functional.linear(self.base(evidence.pairs_P2F[:, 0] - evidence.pairs_P2F[:, 1]), self.pair)
        over_A = (evidence.values_A - self.centre) / self.spread
        count_U = torch.bincount(evidence.item_user_A, minlength=evidence.users).clamp_min(1)
        mean_U = torch.zeros(evidence.users).index_add(0, evidence.item_user_A, over_A) / count_U
        inputs_A3 = torch.stack([over_A, mean_U[evidence.item_user_A], torch.ones_like(over_A)], 1)
        acts_AH = functional.linear(self.base(evidence.items_AF), self.item) * (inputs_A3 @ self.grade.T)
        hidden_AH = torch.cat([apart_PH.relu(), acts_AH])
        user_A = torch.cat([evidence.pair_user_P, evidence.item_user_A])
        found: tuple[Tensor, Tensor] = self.history(hidden_AH, user_A, evidence.users)
        return found

    def margins(
        self,
        tastes: tuple[Tensor, Tensor],
        pairs_P2F: Tensor,
        user_P: Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Expected utility differences and their variances (zero where FiLM draws one z, or takes the mean)."""
        mean_UK, precision_UK = tastes
        if self.recipe.conditioning == "film":
            z_UK = mean_UK
            if generator is not None:
                z_UK = mean_UK + torch.randn(mean_UK.shape, generator=generator) * precision_UK.rsqrt()
            one_P, other_P = (self._film(self.base(pairs_P2F[:, side]), z_UK, user_P) for side in (0, 1))
            return one_P - other_P, torch.zeros_like(one_P)
        apart_PK, offset_P = self.base(pairs_P2F[:, 0] - pairs_P2F[:, 1]).split_with_sizes([mean_UK.shape[1], 1], 1)
        margin_P = offset_P[:, 0] + (mean_UK.index_select(0, user_P) * apart_PK).sum(1)
        return margin_P, (apart_PK.square() / precision_UK.index_select(0, user_P)).sum(1)

    def _film(self, base_PK1: Tensor, z_UK: Tensor, user_P: Tensor) -> Tensor:
        """SPL's decoder: a hidden layer scaled by 1 + tanh / 2 and shifted by tanh / 2 of the taste."""
        scale_PH = 1 + 0.5 * torch.tanh(z_UK @ self.scale.T).index_select(0, user_P)
        shift_PH = 0.5 * torch.tanh(z_UK @ self.shift.T).index_select(0, user_P)
        hidden_PH = functional.leaky_relu(functional.linear(base_PK1[:, :-1], self.film_in, self.film_bias), 0.2)
        more_P1 = functional.linear(functional.leaky_relu(scale_PH * hidden_PH + shift_PH, 0.2), self.film_out)
        return base_PK1[:, -1] + more_P1[:, 0]


class Features(NamedTuple):
    """Features of items (I, F), and of each training user's graded items with her own grade left out (n, F)."""

    items_IF: Floats
    own: list[Floats]


def features(known: Grades, users: Rows, width: int, *, ridge: float = 40.0, rounds: int = 4) -> Features:
    """Factors of the users' standardised grades by alternating least squares, tags, and the items' shrunken means.

    Args:
        width: factors; the items' tags follow them, and last the mean.
        ridge: how strongly factors of rarely graded items are pulled to zero.

    Source: ALS (Hu, Koren and Volinsky 2008) from a truncated SVD; a user is left out of an item's factors in closed
    form (ridge regression's leave-one-out), so that a training user's features hold nothing she said, as a newcomer's.
    """
    user_N = np.repeat(np.arange(len(users)), [len(known.items[user]) for user in users])
    item_N = np.concatenate([known.items[user] for user in users])
    value_N = np.concatenate([(v - v.mean()) / v.std() for v in (known.values[user] for user in users)])
    items = len(known.names)
    total_I = np.bincount(item_N, value_N, items)
    count_I = np.bincount(item_N, minlength=items)
    mean_I = total_I / (count_I + 5)
    left_N = value_N - mean_I[item_N]
    grid_UI = np.zeros((len(users), items), np.float32)
    grid_UI[user_N, item_N] = left_N
    user_UF = np.linalg.svd(grid_UI, full_matrices=False)[0][:, :width].astype(np.float64)
    for _ in range(rounds):
        user_UF = user_UF @ np.linalg.inv(np.linalg.cholesky(user_UF.T @ user_UF / len(users))).T
        item_IF, _ = _ridge(user_UF[user_N], item_N, left_N, items, ridge)
        user_UF, _ = _ridge(item_IF[item_N], user_N, left_N, len(users), 1.0)
    user_UF = user_UF @ np.linalg.inv(np.linalg.cholesky(user_UF.T @ user_UF / len(users))).T
    item_IF, inverse_IFF = _ridge(user_UF[user_N], item_N, left_N, items, ridge)
    pull_NF = np.einsum("nfg,ng->nf", inverse_IFF[item_N], user_UF[user_N])
    leverage_N = (pull_NF * user_UF[user_N]).sum(1)
    error_N = left_N - (item_IF[item_N] * user_UF[user_N]).sum(1)
    own_NF = item_IF[item_N] - pull_NF * (error_N / (1 - leverage_N))[:, None]
    own_mean_N = (total_I[item_N] - value_N) / (count_I[item_N] + 4)
    cuts = np.cumsum([len(known.items[user]) for user in users])[:-1]
    tags_IC = np.zeros((items, 0)) if known.tags is None else TAGS * known.tags
    own = np.split(np.column_stack([own_NF, tags_IC[item_N], own_mean_N]).astype(np.float32), cuts)
    return Features(np.column_stack([item_IF, tags_IC, mean_I]).astype(np.float32), own)


def _ridge(rows_NF: Array, group_N: Rows, target_N: Array, groups: int, ridge: float) -> tuple[Array, Array]:
    """A ridge regression for each group: coefficients (G, F) and the inverses of their normal matrices (G, F, F)."""
    order = np.argsort(group_N, kind="stable")
    ends = np.searchsorted(group_N[order], np.arange(groups + 1))
    width = rows_NF.shape[1]
    normal_GFF = np.broadcast_to(ridge * np.eye(width), (groups, width, width)).copy()
    told_GF = np.zeros((groups, width))
    for group in range(groups):
        mine = order[ends[group] : ends[group + 1]]
        normal_GFF[group] += rows_NF[mine].T @ rows_NF[mine]
        told_GF[group] = rows_NF[mine].T @ target_N[mine]
    inverse_GFF: Array = np.linalg.inv(normal_GFF).astype(np.float64)
    return np.einsum("gfe,ge->gf", inverse_GFF, told_GF), inverse_GFF


class Table(NamedTuple):
    """Graded items of users as one table: rows of `features_NF` (U, M), -1 where there are no more, grades (U, M)."""

    rows_UM: Rows
    values_UM: Floats
    features_NF: Tensor


def table(values: Sequence[Array], own: Sequence[Floats]) -> Table:
    """The table of users' grades and the features of what they graded."""
    sizes_U = np.array([len(mine) for mine in values])
    place_UM = np.arange(sizes_U.max())[None, :]
    known_UM = place_UM < sizes_U[:, None]
    rows_UM = np.where(known_UM, (np.cumsum(sizes_U) - sizes_U)[:, None] + place_UM, -1)
    values_UM = np.zeros(rows_UM.shape, np.float32)
    values_UM[known_UM] = np.concatenate(values)
    return Table(rows_UM, values_UM, torch.from_numpy(np.concatenate(own)))


class Batch(NamedTuple):
    """Evidence, and the comparisons to predict from it: (P, 2, F) and whose each is."""

    evidence: Evidence
    targets_P2F: Tensor
    target_user_P: Tensor


def draw(graded: Table, recipe: Recipe, apart: float, rng: np.random.Generator) -> Batch:
    """People in random order, their graded items in random order: held-out ones, then pairs', then the history's."""
    chosen_U = rng.permutation(len(graded.rows_UM))[: recipe.users]
    rows_UM = graded.rows_UM[chosen_U]
    known_UM = rows_UM >= 0
    order_UM = np.argsort(np.where(known_UM, rng.random(rows_UM.shape, np.float32), 2), 1)
    rows_UM = np.take_along_axis(rows_UM, order_UM, 1)
    values_UM = np.take_along_axis(graded.values_UM[chosen_U], order_UM, 1)
    size_U = known_UM.sum(1)
    held_U, asked_U = np.ceil(0.35 * size_U).astype(int), np.ceil(0.65 * size_U).astype(int)
    drawn = Table(rows_UM, values_UM, graded.features_NF)
    targets_P2F, target_user_P = _pairs(drawn, (0 * held_U, held_U), np.full(len(chosen_U), recipe.targets), apart, rng)
    pairs_P2F, pair_user_P = _pairs(drawn, (held_U, asked_U), rng.choice(CONTEXTS, len(chosen_U)), apart, rng)
    last_U = np.minimum(asked_U + rng.choice(HISTORIES, len(chosen_U)), size_U)
    place_M = np.arange(rows_UM.shape[1])
    acts_UM = (place_M >= asked_U[:, None]) & (place_M < last_U[:, None])
    evidence = Evidence(
        pairs_P2F,
        pair_user_P,
        graded.features_NF[torch.from_numpy(rows_UM[acts_UM])],
        torch.from_numpy(values_UM[acts_UM]),
        torch.from_numpy(np.nonzero(acts_UM)[0]),
        len(chosen_U),
    )
    return Batch(evidence, targets_P2F, target_user_P)


def _pairs(
    drawn: Table, zone_2U: tuple[Rows, Rows], count_U: Rows, apart: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Up to so many comparisons of each user's items between two places, with repetition."""
    first_U, end_U = zone_2U
    who_P = np.repeat(np.arange(len(count_U)), count_U)
    one_P, other_P = first_U[who_P] + (rng.random((2, len(who_P))) * (end_U - first_U)[who_P]).astype(np.int64)
    one_value, other_value = drawn.values_UM[who_P, one_P], drawn.values_UM[who_P, other_P]
    kept = differ(one_value, other_value, apart)
    better = np.where(one_value > other_value, one_P, other_P)
    worse = np.where(one_value > other_value, other_P, one_P)
    rows_P2 = np.stack([drawn.rows_UM[who_P, better], drawn.rows_UM[who_P, worse]], 1)[kept]
    return drawn.features_NF[torch.from_numpy(rows_P2)], torch.from_numpy(who_P[kept])


def train(graded: Table, recipe: Recipe, *, apart: float = 0.0, seed: int = 0) -> Encoder:
    """The encoder of these users' comparisons."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    values = graded.values_UM[graded.rows_UM >= 0]
    width = graded.features_NF.shape[1]
    encoder = Encoder(width, recipe, generator, centre=float(values.mean()), spread=float(values.std()) + 1e-6)
    optimiser = torch.optim.Adam(encoder.parameters(), recipe.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=recipe.steps, pct_start=0.1)
    for _ in range(recipe.steps):
        loss = objective(encoder, draw(graded, recipe, apart, rng), generator)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(encoder.parameters(), 5.0)
        optimiser.step()
        schedule.step()
    return encoder.eval().requires_grad_(False)


def objective(encoder: Encoder, batch: Batch, generator: torch.Generator) -> Tensor:
    """Predictive loss of the held-out comparisons + KL + swap guidance (of users who compared anything)."""
    recipe, evidence = encoder.recipe, batch.evidence
    mean_UK, precision_UK = encoder.tastes(evidence)
    margin_P, variance_P = encoder.margins((mean_UK, precision_UK), batch.targets_P2F, batch.target_user_P, generator)
    one_P = torch.ones_like(margin_P)
    prior_K, prior_mean_K = encoder.history.prior()
    kl_U = divergence(mean_UK, precision_UK, prior_K, prior_mean_K, free=recipe.free)
    loss = predictive_loss(margin_P, variance_P, one_P, one_P) + recipe.kl * kl_U.mean()
    if recipe.swap:
        turned = evidence._replace(
            pairs_P2F=evidence.pairs_P2F.flip(1), values_A=2 * encoder.centre - evidence.values_A
        )
        swapped_UK, swapped_precision_UK = encoder.tastes(turned)
        told_U = torch.bincount(evidence.pair_user_P, minlength=evidence.users) > 0
        guidance_U = swap_guidance(
            mean_UK - prior_mean_K, precision_UK, swapped_UK - prior_mean_K, swapped_precision_UK
        )
        loss = loss + recipe.swap * (guidance_U * told_U).mean()
    return loss


def evidence_of(
    pairs: Sequence[Floats] | None = None, acts: Sequence[tuple[Floats, Array]] | None = None, *, width: int
) -> Evidence:
    """Evidence of several users: each one's (preferred, over) pairs (P, 2, F), or graded items (A, F), or both."""
    users = len(pairs if pairs is not None else acts or ())
    pairs = [np.zeros((0, 2, width), np.float32)] * users if pairs is None else pairs
    acts = [(np.zeros((0, width), np.float32), np.zeros(0))] * users if acts is None else acts
    return Evidence(
        torch.from_numpy(np.concatenate(pairs)),
        torch.from_numpy(np.repeat(np.arange(users), [len(mine) for mine in pairs])),
        torch.from_numpy(np.concatenate([items for items, _ in acts])),
        torch.from_numpy(np.concatenate([values for _, values in acts]).astype(np.float32)),
        torch.from_numpy(np.repeat(np.arange(users), [len(items) for items, _ in acts])),
        users,
    )
