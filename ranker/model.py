"""The composition: item tower, taste, experts, a wide linear term and the bias tower (zhao2019recommending).

`Model` is the training form, `ranker.inference.Inference` the fast form of the same weights. Both read

    phi, b  = item tower               z = taste              r = b + z . phi
    x       = [phi, z, z * phi, r, item, user, request, row]
    logits  = MMoE(relu(first(x))) + wide(item) + direct(row) (+ tower, biased objectives, training only)

where `row` says of a shown item: its age, whether the user acted on it before, and its decayed counts.

Axes: V table rows, D features, K taste, S shared inputs of the experts, T objectives, F inputs of a row; I items of a
batch, R shown rows, U slates, A acts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional

from ranker.batch import Batch
from ranker.bias import BiasTower, framing
from ranker.comparisons import SHARES
from ranker.config import Config
from ranker.counters import COUNTS, Counters
from ranker.evidence import Answer
from ranker.features import Encoder
from ranker.inputs import ACTS, AGES
from ranker.mmoe import MMoE
from ranker.questions import Asked, answers_factor
from ranker.reliability import Population, answer_weights
from ranker.summary import Policy
from ranker.taste import Factor, History, Temper, fuse, tempered

#: variance, in units of the prior's, by which the encoder is wrong however long a history: chosen among none, scalars
#: and residuals by the surprise of validation people (docs/experiments.md, taste)
DOUBT = 0.3


class _Bags(torch.autograd.Function):
    """Weighted sums of table rows. torch's own backward sorts; one transposed sparse product is 8 times as fast."""

    @staticmethod
    def forward(ctx: Any, table_VD: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
        ctx.bags = rows, starts, weights, len(table_VD)
        return functional.embedding_bag(rows, table_VD, starts, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        rows, starts, weights, size = ctx.bags
        ends = np.append(starts.numpy(), len(rows))
        bags = csr_array((weights.numpy(), rows.numpy(), ends), shape=(len(starts), size))
        return torch.from_numpy(bags.T @ grad.numpy()), None, None, None


class _Taken(torch.autograd.Function):
    """Rows of a small table, each many times. torch's own backward is twice as slow as one sparse product."""

    @staticmethod
    def forward(ctx: Any, table_ID: Tensor, rows_A: Tensor) -> Tensor:
        ctx.rows = rows_A, len(table_ID)
        return table_ID.index_select(0, rows_A)

    @staticmethod
    def backward(ctx: Any, grad_AD: Tensor) -> tuple[Tensor, None]:
        rows_A, size = ctx.rows
        ones_A, starts = np.ones(len(rows_A), np.float32), np.arange(len(rows_A) + 1)
        taken = csr_array((ones_A, rows_A.numpy(), starts), shape=(len(rows_A), size))
        return torch.from_numpy(taken.T @ grad_AD.numpy()), None


def _taken(table_ID: Tensor, rows_A: Tensor) -> Tensor:
    found: Tensor = _Taken.apply(table_ID, rows_A)  # type: ignore[no-untyped-call]
    return found


def _bags(table_VD: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    found: Tensor = _Bags.apply(table_VD, rows, starts, weights)  # type: ignore[no-untyped-call]
    return found


class Rows(NamedTuple):
    """The table rows that a batch touches, as leaves of the graph: their gradients stay small and dense."""

    table_VD: Tensor
    wide_VT: Tensor


class _Read(NamedTuple):
    """Items, users and requests embedded; base rewards with intercepts; the history's taste, and the one with answers
    as mean, precision and covariances."""

    item_ID: Tensor
    user_UD: Tensor
    request_UD: Tensor
    base: tuple[Tensor, Tensor]
    context_UK: Tensor
    taste: tuple[Tensor, Tensor, dict[int, Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """What the model says of a batch.

    Attributes:
        logits_RT: tower-free.
        tower_RT: to be added where a probability at the shown place is meant; zero for unbiased objectives.
        utility_R: r(u, i).
        mean_UK: the tastes.
        context_UK, precision_UK: mean and precision that the history alone gives, before any answers.
        phi_IK, intercept_I: base rewards of the batch's items, for sampled losses.
        margin_P, variance_P: of each comparison's r, by the taste.
        framing_P: what the framing tower adds to the margin; zero where the condition is unknown.
        pooled_P: the margin that the prior gives, without gradient: what everybody is thought to prefer.
    """

    logits_RT: Tensor
    tower_RT: Tensor
    utility_R: Tensor
    mean_UK: Tensor
    precision_UK: Tensor
    context_UK: Tensor
    phi_IK: Tensor
    intercept_I: Tensor
    margin_P: Tensor
    variance_P: Tensor
    framing_P: Tensor
    pooled_P: Tensor


class Model(nn.Module):
    """The training form.

    Args:
        generator: draws the first weights, then the dropout masks; its state belongs to a checkpoint.
    """

    def __init__(self, config: Config, generator: torch.Generator) -> None:
        super().__init__()
        encoder = Encoder(config)
        sizes = self.sizes = encoder.sizes
        self.generator = generator
        objectives = len(config.objectives)

        def dense(outputs: int, inputs: int, gain: float = 1.0, fan: int | None = None) -> nn.Parameter:
            scale = gain / math.sqrt(fan or max(inputs, 1))
            return nn.Parameter(torch.randn(outputs, inputs, generator=generator) * scale)

        table_VD = torch.randn(sizes.V, sizes.D, generator=generator) * 0.3
        table_VD[: sizes.V // 2] = 0
        self.table_VD = nn.Parameter(table_VD)
        self.wide_VT = nn.Parameter(torch.zeros(sizes.V, objectives))
        self.numbers = nn.ParameterDict({side: dense(sizes.D, len(names)) for side, names in encoder.numbers.items()})
        self.kind_numbers = dense(sizes.D, 1)
        self.phi = dense(sizes.K + 1, sizes.D)
        self.phi_bias = nn.Parameter(torch.zeros(sizes.K + 1))
        self.act_item = dense(sizes.encoder, sizes.D)
        self.act_kind = dense(sizes.encoder, sizes.D)
        self.act_inputs = dense(sizes.encoder, ACTS)
        self.act_bias = nn.Parameter(torch.zeros(sizes.encoder))
        self.history = History(sizes.encoder, sizes.K, generator)
        self.counters = Counters(sizes.V // 2, objectives)
        self.first = dense(sizes.S, sum(parts(sizes.K, sizes.D, objectives)), math.sqrt(2))
        self.direct_TF = nn.Parameter(torch.zeros(objectives, row_inputs(objectives)))
        # before anything is learned, an objective's log lifts, averaged, add to its logit: a decayed counter
        lifts_TLT = torch.eye(objectives)[:, None].repeat(1, COUNTS // 2, 1) * (2 / COUNTS)
        self.direct_TF.data[:, AGES + 1 : AGES + 1 + COUNTS * objectives // 2] = lifts_TLT.flatten(1)
        self.first_bias = nn.Parameter(torch.zeros(sizes.S))
        self.experts = MMoE(sizes.S, sizes.E, sizes.H, objectives, generator)
        self.tower = BiasTower([objective.biased for objective in config.objectives])
        # order and words of a question move an answer as a position moves a click
        self.framing = BiasTower([True], rows=256)
        #: learns in lessons of its own (ranker/tutor.py)
        self.summary = Policy(generator)
        self.register_buffer("reliability", torch.from_numpy(Population.default().to_array()))
        # a value objective is learned in units of its own spread: value = offset + scale * logit
        self.register_buffer("offset_T", torch.zeros(objectives))
        self.register_buffer("scale_T", torch.ones(objectives))
        self.register_buffer("typical_T", torch.zeros(objectives))

    def dense(self) -> list[nn.Parameter]:
        """Every parameter except the two tables, which are learned row by row, and those of the summary."""
        rest = ("table_VD", "wide_VT", "summary.")
        return [p for name, p in self.named_parameters() if not name.startswith(rest)]

    def gather(self, batch: Batch) -> Rows:
        """The rows this batch needs, detached from the tables: learn on these, then write them back."""
        touched_V = batch.touched_V
        return Rows(
            self.table_VD.detach().index_select(0, touched_V).requires_grad_(),
            self.wide_VT.detach().index_select(0, touched_V).requires_grad_(),
        )

    def forward(self, batch: Batch, rows: Rows | None = None, counts_RF: Tensor | None = None) -> Output:
        """Logits, tower, utilities and tastes.

        Args:
            rows: from `gather`; without it gradients flow into the whole tables.
            counts_RF: what the counters said when the rows were shown; without it, what they say now.
        """
        table_VD, wide_VT = rows or (self.table_VD[batch.touched_V], self.wide_VT[batch.touched_V])
        read = self._read(batch, table_VD)
        item_ID, user_UD, request_UD, phi_IK, intercept_I = read.item_ID, read.user_UD, read.request_UD, *read.base
        context_UK, (mean_UK, precision_UK, _) = read.context_UK, read.taste

        to_phi, to_z, to_zphi, to_r, to_item, to_user, to_request, to_row = self.first.split_with_sizes(
            parts(self.sizes.K, self.sizes.D, len(self.direct_TF)), 1
        )
        first_IS = phi_IK @ to_phi.T + item_ID @ to_item.T
        first_US = mean_UK @ to_z.T + user_UD @ to_user.T + request_UD @ to_request.T + self.first_bias
        row_item_R, row_slate_R = batch.row_item_R, batch.row_slate_R
        zphi_RK = mean_UK.index_select(0, row_slate_R) * phi_IK.index_select(0, row_item_R)
        utility_R = zphi_RK.sum(1) + intercept_I[row_item_R]
        if counts_RF is None:
            counts_RF = self.counters(keys_of(batch)[row_item_R], batch.times_U[row_slate_R])
        row_RF = torch.cat([batch.row_ages, batch.acted_R[:, None], counts_RF], 1)
        shared_RS = (
            first_IS.index_select(0, row_item_R)
            + first_US.index_select(0, row_slate_R)
            + torch.cat([zphi_RK, utility_R[:, None], row_RF], 1) @ torch.cat([to_zphi, to_r, to_row], 1).T
        ).relu()
        ends = int(batch.bag_starts[batch.items]) if batch.items < len(batch.bag_starts) else len(batch.bag_rows)
        wide_IT = _bags(wide_VT, batch.bag_rows[:ends], batch.bag_starts[: batch.items], batch.bag_weights[:ends])
        draws = self.generator if self.training else None
        logits_RT = self.experts(shared_RS, draws) + wide_IT.index_select(0, row_item_R) + row_RF @ self.direct_TF.T
        if self.training:
            self._note(logits_RT.detach())
        margin_P, variance_P, pooled_P = self._compare(batch, read)
        return Output(
            logits_RT=logits_RT,
            tower_RT=self.tower(batch.positions_R, batch.devices[row_slate_R], draws),
            utility_R=utility_R,
            mean_UK=mean_UK,
            precision_UK=precision_UK,
            context_UK=context_UK,
            phi_IK=phi_IK,
            intercept_I=intercept_I,
            margin_P=margin_P,
            variance_P=variance_P,
            framing_P=framing(self.framing, batch.pair_first_P, batch.pair_wording_P, draws),
            pooled_P=pooled_P,
        )

    def margins(self, batch: Batch) -> Tensor:
        """The margin of each comparison by the taste, (P,), as `forward` gives it, without the rest."""
        return self._compare(batch, self._read(batch, self.table_VD[batch.touched_V]))[0]

    def _read(self, batch: Batch, table_VD: Tensor) -> "_Read":
        embedded = _bags(table_VD, batch.bag_rows, batch.bag_starts, batch.bag_weights)
        item_ID, user_UD, request_UD, kind_CD = embedded.split_with_sizes(
            [batch.items, batch.slates, batch.slates, batch.kinds]
        )
        item_ID = item_ID + batch.item_numbers @ self.numbers["item"].T
        user_UD = user_UD + batch.user_numbers @ self.numbers["user"].T
        request_UD = request_UD + batch.request_numbers @ self.numbers["request"].T
        kind_CD = kind_CD + batch.kind_numbers @ self.kind_numbers.T

        base_IK1 = functional.linear(item_ID, self.phi, self.phi_bias)
        phi_IK, intercept_I = base_IK1[:, :-1], base_IK1[:, -1]
        kind_CH = functional.linear(kind_CD, self.act_kind, self.act_bias)
        # a product, not a sum: what an act says of a taste is its item, turned by how much she cared for it
        # laid out anew: the gradient of a view of few columns is a product 7 times as slow
        to_gate = self.act_inputs.T.contiguous()
        gate_AH = torch.addmm(_taken(kind_CH, batch.act_kind_A), batch.act_inputs, to_gate)
        hidden_AH = _taken(item_ID @ self.act_item.T, batch.act_item_A) * gate_AH
        one_M = hidden_AH.new_ones(len(batch.read_M))
        context_UK, precision_UK = self.history.posterior(
            *(_bags(part_AK, batch.read_M, batch.read_starts_S, one_M) for part_AK in self.history.factors(hidden_AH))
        )
        mean_UK, covariances = self._answers(batch, context_UK, precision_UK, phi_IK, intercept_I)
        return _Read(
            item_ID, user_UD, request_UD, (phi_IK, intercept_I), context_UK, (mean_UK, precision_UK, covariances)
        )

    def _answers(
        self, batch: Batch, mean_UK: Tensor, precision_UK: Tensor, phi_IK: Tensor, intercept_I: Tensor
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The tastes with the answers given before, and the covariance (K, K) of those who gave any.

        Answers are taken as given: no gradient flows through their fit, only through what it starts from.
        """
        if not batch.answered:
            return mean_UK, {}
        shift_UK, covariances = torch.zeros_like(mean_UK), {}
        with torch.no_grad():
            means, precisions = mean_UK.numpy(), precision_UK.numpy()
            phi, intercept = phi_IK.numpy(), intercept_I.numpy()
            population = Population.from_array(self.get_buffer("reliability").numpy())
            prior_K, prior_mean_K = (part.numpy() for part in self.history.prior())
            prior = Factor(prior_K, prior_K * prior_mean_K)
            for slate, one_A, other_A, answers in batch.answered:
                before = beside_answers(prior, Factor(precisions[slate], precisions[slate] * means[slate]))
                differences_AK, offsets_A = phi[one_A] - phi[other_A], intercept[one_A] - intercept[other_A]
                after = fuse(before, [answers_of(answers, differences_AK, offsets_A, before, population)])
                shift_UK[slate] = torch.from_numpy(after.mean_K - means[slate])
                covariances[slate] = torch.from_numpy(np.linalg.inv(after.precision_K))
        return mean_UK + shift_UK, covariances

    def _compare(self, batch: Batch, read: "_Read") -> tuple[Tensor, Tensor, Tensor]:
        """Margin and variance of each comparison under its user's taste, and the margin under the prior alone."""
        (phi_IK, intercept_I), (mean_UK, precision_UK, covariances) = read.base, read.taste
        one_P, other_P = batch.row_item_R[batch.pair_one_P], batch.row_item_R[batch.pair_other_P]
        user_P = batch.row_slate_R[batch.pair_one_P]
        difference_PK, offset_P = phi_IK[one_P] - phi_IK[other_P], intercept_I[one_P] - intercept_I[other_P]
        margin_P = (difference_PK * mean_UK[user_P]).sum(1) + offset_P
        variance_P = (difference_PK.square() / precision_UK[user_P]).sum(1)
        if covariances:
            answered_P = torch.tensor([user in covariances for user in user_P.tolist()], dtype=torch.bool)
            if answered_P.any():
                own_PKK = torch.stack([covariances[user] for user in user_P[answered_P].tolist()])
                own_PK = difference_PK[answered_P]
                exact = torch.einsum("pk,pkl,pl->p", own_PK, own_PKK, own_PK)
                variance_P = variance_P.masked_scatter(answered_P, exact)
        with torch.no_grad():
            pooled_P = difference_PK @ self.history.prior_mean_K + offset_P
        return margin_P, variance_P, pooled_P

    def _note(self, logits_RT: Tensor) -> None:
        if len(logits_RT):
            self.get_buffer("typical_T").lerp_(logits_RT.mean(0), 0.01)


def beside_answers(prior: Factor, known: Factor) -> Factor:
    """Prior and history as they count beside answers: the same mean, held less firmly (DOUBT).

    Shapes: (K,) each; `known` is the fused posterior, not the factor alone.
    """
    history = Factor(known.precision - prior.precision, known.information - prior.information)
    weaker = tempered(prior, history, Temper(residual_K=DOUBT / prior.precision))
    return Factor(prior.precision + weaker.precision, prior.information + weaker.information)


def answers_of(
    answers: Sequence[Answer],
    differences_AK: NDArray[np.floating],
    offsets_A: NDArray[np.floating],
    before: Factor,
    population: Population,
) -> Factor:
    """What answers add to `before`, each believed as far as it fits what all else says of this person.

    Shapes: differences of base rewards (A, K) and of intercepts (A,), preferred less over.
    """
    wide_AK, wide_A = (np.asarray(part, np.float64) for part in (differences_AK, offsets_A))
    precision_KK = np.diag(before.precision) if before.precision.ndim == 1 else before.precision
    covariance_KK = np.linalg.inv(precision_KK.astype(np.float64))
    margins_A = wide_A + wide_AK @ (covariance_KK @ before.information)
    doubt_AA = wide_AK @ covariance_KK @ wide_AK.T
    asked = Asked(
        differences_AK=wide_AK,
        offsets_A=wide_A,
        share_A=np.array([SHARES[answer.outcome] for answer in answers]),
        weight_A=answer_weights(answers, population, margins_A, doubt_AA),
    )
    return answers_factor(before, asked)


def row_inputs(objectives: int) -> int:
    """F: the width of [age, acted, counts]."""
    return AGES + 1 + COUNTS * objectives


def parts(K: int, D: int, objectives: int) -> list[int]:
    """Widths of x = [phi, z, z * phi, r, item, user, request, row]."""
    return [K, K, K, 1, D, D, D, row_inputs(objectives)]


def keys_of(batch: Batch) -> Tensor:
    """The two id rows of each item of the batch, (I, 2): the first two of its bag."""
    starts_I = batch.bag_starts[: batch.items, None]
    return batch.touched_V[batch.bag_rows[starts_I + torch.arange(2)]]
