"""How each arm of the `pareto` experiment trains, and which model it serves in the end.

Axes: S seeds, U users, B users of a batch (half of either group), P comparisons of a user, G groups (majority and
minority).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from experiments import students, teachers
from experiments.grades import Array, Rows
from experiments.personas import Bools
from experiments.students import BATCH, RATE, Best, Randoms, Stack, Students, plainly
from experiments.teachers import TUNING_RATE, Taught
from ranker import pareto
from ranker.pareto import Standing

#: of pareto: power of the shares, and of a student that did harm; chosen on development seeds (docs/experiments.md)
POWER, BACK, MADE_UP, SLOW = 0.4, 0.8, 0.8, 2e-3
#: of group-dro's weights; maxmin's first guess of its second cluster, and how often it assigns
DRO_STEP, HARDEST, TURNS = 0.05, 0.25, 3
TOLERANCE = 0.005


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What all arms share: epochs of training from scratch and of fine-tuning, and the teachers' rounds."""

    epochs: int = 80
    tuning: int = 20
    rounds: int = teachers.ROUNDS


@dataclass(frozen=True, kw_only=True)
class Arm:
    """How one arm trains.

    Attributes:
        power: of a group's share, which its loss counts for.
        step: `shares` (fixed), `dro` or `min-norm`.
        teachers: None, `groups`, `everybody`, or `copies` (of the plain model, tuned on a group).
        privileged: whether teachers read a person's whole history, or the student's context alone.
        made_up: share of the loss that is on people whom the teachers make up.
        guarded: whether the no-harm rule decides between the student, the student moved back towards the majority, and
            the plain model; where not, a student of teachers is served as it is in the end, and any other as it was
            at the lowest balanced validation loss.
        redrawn: whether it is drawn anew in every batch which of a person's comparisons are context.
    """

    power: float = POWER
    step: str = "shares"
    teachers: str | None = None
    privileged: bool = True
    gated: bool = True
    made_up: float = 0.0
    guarded: bool = False
    redrawn: bool = True


PARETO = Arm(teachers="groups", made_up=MADE_UP, guarded=True)
ARMS = {
    "reweight": Arm(power=0.0),
    "sqrt-reweight": Arm(power=0.5),
    "sqrt-fixed": Arm(power=0.5, redrawn=False),
    "group-dro": Arm(step="dro"),
    "self-distil": replace(PARETO, teachers="everybody"),
    "pareto": PARETO,
}
ABLATIONS = {
    "no-gate": replace(PARETO, gated=False),
    "min-norm": replace(PARETO, step="min-norm"),
    "no-privilege": replace(PARETO, privileged=False),
    "no-people": replace(PARETO, made_up=0.0),
    "copies": replace(PARETO, teachers="copies"),
    "no-teachers": Arm(guarded=True),
    "no-rule": replace(PARETO, guarded=False),
}


@dataclass(frozen=True, eq=False)
class Plain:
    """The plain models and how each does on validation."""

    model: Students
    standings: Sequence[Standing]


@dataclass(frozen=True, eq=False)
class Ruling:
    """What the no-harm rule did: changes of accuracy on validation against the plain model, of each group.

    Attributes:
        offered_SEG: of the student and of the student moved back (E).
        served_SG: of what is served, 0 where that is the plain model.
        plain_S: where it is.
    """

    offered_SEG: Array
    served_SG: Array
    plain_S: Bools


def taught(
    stack: Stack, arm: Arm, minority: Sequence[Bools], judges: Sequence[Bools], *, plain: Students, effort: Effort
) -> Taught | None:
    """What the arm's teachers say.

    Args:
        minority, judges: who of the people trained on and chosen on is of the minority.
    """
    if arm.teachers is None:
        return None
    two, judged = ([(~own_U, own_U) for own_U in own] for own in (minority, judges))
    if arm.teachers == "copies":
        return teachers.copies(plain, stack, two, judged, epochs=effort.tuning)
    groups: Sequence[Sequence[Bools]] = two
    if arm.teachers == "everybody":
        groups = [(np.ones_like(own_U),) for own_U in minority]
    read = stack.train_SUPK.shape[2] if arm.privileged else stack.context
    return teachers.teach(stack, groups, students.randoms(stack.seeds, 9), read=read, rounds=effort.rounds)


def train(
    stack: Stack,
    arm: Arm,
    minority: Sequence[Bools],
    judges: Sequence[Bools],
    *,
    plain: Plain,
    known: Taught | None,
    effort: Effort,
) -> tuple[Students, Ruling | None]:
    """One model for everybody, trained from scratch on batches of which each group is half.

    Returns:
        Each seed's model that is served, and what the no-harm rule did where the arm is guarded.
    """
    model, rng = Students(stack.train_SUPK.shape[3], stack.seeds), students.randoms(stack.seeds)
    counts_SG = np.array([(len(own_U) - own_U.sum(), own_U.sum()) for own_U in minority])
    # a group of nobody has weight 0; its half of the batch is filled with everybody
    groups = [
        [np.flatnonzero(own_U == place) if (own_U == place).any() else np.arange(len(own_U)) for own_U in minority]
        for place in (0, 1)
    ]
    dro_SG = np.full((len(stack), 2), 0.5)
    power = arm.power

    def loss() -> Tensor:
        nonlocal dro_SG
        loss_SG = _losses(model, stack, arm, groups, known=known, rng=rng)
        if arm.step == "min-norm":
            share_SG = _min_norm(model, loss_SG)
        elif arm.step == "dro":
            found = loss_SG.detach().double().numpy()
            dro_SG = np.stack([pareto.robust_shares(*each, step=DRO_STEP) for each in zip(dro_SG, found, strict=True)])
            share_SG = dro_SG
        else:
            share_SG = np.stack([pareto.power_shares(count_G, power) for count_G in counts_SG])
        return (loss_SG * torch.from_numpy(share_SG).to(loss_SG.dtype)).sum()

    steps, best = max(1, stack.train_SUPK.shape[1] // BATCH), Best(model)
    for _ in students.descend(model, loss, epochs=effort.epochs, steps=steps, rate=RATE):
        if known is None and not arm.guarded:
            found = students.standings(model, stack.valid_SUPK, judges, stack.context)
            best.offer(np.array([np.nansum(each.loss_G) for each in found]))
    if not arm.guarded:
        return (model if known is not None else best.restore()), None
    ends = [students.weights_of(model)]
    judged = [students.standings(model, stack.valid_SUPK, judges, stack.context)]
    power = BACK
    for _ in students.descend(model, loss, epochs=max(1, effort.epochs // 5), steps=steps, rate=SLOW):
        pass
    ends.append(students.weights_of(model))
    judged.append(students.standings(model, stack.valid_SUPK, judges, stack.context))
    chosen = [
        pareto.accepted(own, theirs, tolerance=TOLERANCE)
        for own, theirs in zip(zip(*judged, strict=True), plain.standings, strict=True)
    ]
    ends.append(students.weights_of(plain.model))
    served = [2 if place is None else place for place in chosen]
    model.load_state_dict({name: torch.stack([ends[end][name][s] for s, end in enumerate(served)]) for name in ends[0]})
    return model, _ruling(judged, plain.standings, served)


def _ruling(judged: Sequence[Sequence[Standing]], plain: Sequence[Standing], served: Sequence[int]) -> Ruling:
    accuracy_ESG = np.array([[one.accuracy_G for one in end] for end in (*judged, plain)])
    change_SEG = (accuracy_ESG - accuracy_ESG[-1]).transpose(1, 0, 2)
    plain_S = np.array(served) == len(judged)
    served_SG = np.where(plain_S[:, None], 0.0, change_SEG[np.arange(len(served)), served])
    return Ruling(change_SEG[:, :-1], served_SG, plain_S)


def _losses(
    model: Students, stack: Stack, arm: Arm, groups: Sequence[Sequence[Rows]], *, known: Taught | None, rng: Randoms
) -> Tensor:
    """Each group's mean loss, (S, G): on real people, by labels and gated margins, and on made-up ones."""
    half, c = BATCH // 2, stack.context
    rows_SB = torch.cat([students.rows_of(group, half, rng) for group in groups], 1)
    apart, order = students.of_rows(stack.train_SUPK, rows_SB), None
    if arm.redrawn:
        order = students.orders(rows_SB, apart.shape[2], rng)
        apart = students.reordered(apart, order)
    margins = model.predicted(apart, c)
    if known is None:
        return _halves(functional.softplus(-margins).mean(2))
    least = 0.0 if arm.gated else -np.inf
    real = pareto.distilled_loss(margins, teachers.known_of(known, rows_SB, order)[:, :, c:], least=least).mean(2)
    if not arm.made_up:
        return _halves(real)
    after_SB = torch.cat([students.rows_of(group, BATCH, rng) for group in groups], 1)
    imagined = teachers.made_up(model, stack.phi_SIK, known, after_SB, rng, context=c)
    return (1 - arm.made_up) * _halves(real) + arm.made_up * _halves(imagined)


def _halves(loss_SB: Tensor) -> Tensor:
    return torch.stack([half.mean(1) for half in loss_SB.chunk(2, 1)], 1)


def _min_norm(model: Students, loss_SG: Tensor) -> Array:
    """Each seed's shares by the min-norm step on loss-normalised gradients of the last layer; see `ranker.pareto`."""
    shared = (model.reward, model.reward_bias)
    gradients = [
        torch.cat([part.flatten(1) for part in torch.autograd.grad(loss_S.sum(), shared, retain_graph=True)], 1)
        / loss_S.detach()[:, None]
        for loss_S in loss_SG.unbind(1)
    ]
    mix_S = np.array([pareto.min_norm(*pair) for pair in zip(*gradients, strict=True)])
    weight_SG = np.stack([mix_S, 1 - mix_S], 1) / np.maximum(loss_SG.detach().double().numpy(), 1e-12)
    found: Array = weight_SG / weight_SG.sum(1, keepdims=True)
    return found


def maxmin(stack: Stack, plain: Students, effort: Effort) -> Array:
    """Unseen people's accuracies under two models fitted by hard assignment, (S, U).

    Source: chakraborty2024maxmin; the second model's first guess, those whom the plain model fits worst, is ours.
    """
    known = (stack.train_SUPK, stack.valid_SUPK)
    losses = [_lost(plain, part) for part in known]
    edge_S1 = np.quantile(losses[0], 1 - HARDEST, axis=1, keepdims=True)
    second = [loss_SU > edge_S1 for loss_SU in losses]
    both = []
    for _ in range(2):
        both.append(Students(stack.train_SUPK.shape[3], stack.seeds))
        both[-1].load_state_dict(plain.state_dict())
    for turn in range(TURNS):
        for place, model in enumerate(both):
            members = [np.flatnonzero(own_U == place) for own_U in second[0]]
            judges = list(second[1] == place)
            options = {"epochs": effort.tuning, "rate": TUNING_RATE, "redrawn": True, "salt": 3 + 2 * turn + place}
            plainly(model, stack, members, judges, **options)  # type: ignore[arg-type]
        second = [_lost(both[1], part) < _lost(both[0], part) for part in known]
    context = stack.test_SUPK[:, :, : stack.context]
    right = [students.by_person(model, stack.test_SUPK, stack.context)[0] for model in both]
    return np.where(_lost(both[1], context) < _lost(both[0], context), right[1], right[0])


def _lost(model: Students, apart_SUPK: Tensor) -> Array:
    """What the model fails to predict of each person from her other comparisons, nats a comparison, (S, U)."""
    return students.by_person(model, apart_SUPK, 0, whole=True)[1]
