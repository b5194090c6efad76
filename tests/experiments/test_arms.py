import copy
import dataclasses

import numpy as np
import pytest
import torch

from experiments import arms, personas, students, teachers
from experiments.arms import PARETO, Arm, Effort, Plain
from experiments.personas import Bools, World
from experiments.students import Stack, Students
from ranker.pareto import Standing, boundary

HASTE = Effort(epochs=2, tuning=2, rounds=3)


def catalogue(items: int = 120) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(items, 9))


def small(seed: int = 0, **options: float) -> World:
    return personas.personas(catalogue(), seed, people=(192, 80, 60), **options)


def stack(*seeds: int) -> Stack:
    return students.stacked([small(seed) for seed in seeds], seeds)


def members(worlds: Stack) -> tuple[list[Bools], list[Bools]]:
    return [world.train.minority_U for world in worlds.worlds], [world.valid.minority_U for world in worlds.worlds]


def everybody(worlds: Stack) -> list[Bools]:
    return [np.ones(80, np.bool_)] * len(worlds)


def test_a_population_has_the_shares_and_the_cosine_that_were_asked_for() -> None:
    world = personas.personas(catalogue(), 3, minority=0.2, cosine=-0.7, people=(400, 50, 50))
    assert [part.minority_U.mean() for part in world.parts] == pytest.approx([0.2] * 3)
    directions = personas._directions(9, -0.7, np.random.default_rng(3))
    assert directions[0] @ directions[1] == pytest.approx(-0.7)
    assert world.test.apart_UPK.shape == (50, 8 + personas.JUDGED, 9)


def test_a_persona_contradicts_her_taste_as_often_as_the_noise_says_and_is_judged_without_it() -> None:
    world = personas.personas(catalogue(), 5, people=(600, 10, 300))
    # a taste fitted to many noise-free comparisons of one person tells her right ones, up to the noise
    wrong = [(apart[:8] @ apart[8:].mean(0) < 0).mean() for apart in world.test.apart_UPK.numpy()]
    assert np.mean(wrong) == pytest.approx(personas.NOISE, abs=0.06)


def test_rows_and_base_rewards_of_a_comparison_agree() -> None:
    world = small()
    preferred, over = torch.from_numpy(world.train.pairs_UP2).unbind(2)
    assert torch.allclose(world.train.apart_UPK, world.phi_IK[preferred] - world.phi_IK[over], atol=1e-5)


def test_the_minority_has_less_support_and_is_mostly_found_by_it() -> None:
    world = personas.personas(catalogue(), 4, minority=0.2, people=(400, 80, 200))
    support = personas.supports(world)
    for each, part in zip(support, world.parts, strict=True):
        assert each[part.minority_U].mean() < each[~part.minority_U].mean() - 0.1
    assert ((support[0] < boundary(support[0])) == world.train.minority_U).mean() > 0.9


def test_a_margin_beside_the_others_never_reads_its_own_comparison() -> None:
    model, apart = Students(9, [0]), stack(0).train_SUPK[:, :3]
    turned = apart.clone()
    turned[:, :, 4] = -turned[:, :, 4]
    before, after = model.margins_beside(apart), model.margins_beside(turned)
    assert torch.allclose(before[:, :, 4], -after[:, :, 4], atol=1e-5)
    assert not torch.allclose(before[:, :, 5], after[:, :, 5], atol=1e-5)


def test_a_student_reads_its_context_in_any_order() -> None:
    model, apart = Students(9, [0, 1]), stack(0, 1).train_SUPK[:, :4]
    assert torch.allclose(
        model.margins(apart[:, :, :8], apart), model.margins(apart[:, :, :8].flip(2), apart), atol=1e-5
    )


def test_redrawn_orders_keep_every_comparison_of_every_person() -> None:
    orders = students.orders(torch.zeros(2, 3), 6, students.randoms([0, 1]))
    assert orders.sort(2).values.tolist() == [[list(range(6))] * 3] * 2
    assert not torch.equal(orders[0], orders[1])


def test_a_seed_learns_beside_others_what_it_learns_alone() -> None:
    alone, beside = stack(1), stack(0, 1)
    right = []
    for own in (alone, beside):
        model = Students(9, own.seeds)
        students.plainly(model, own, own.everyone, everybody(own), epochs=3, redrawn=True)
        right.append(students.by_person(model, own.test_SUPK, 8)[0][-1])
    assert np.abs(right[0] - right[1]).mean() < 0.005
    untrained = students.by_person(Students(9, [1]), alone.test_SUPK, 8)[0]
    assert right[0].mean() > untrained.mean() + 0.1


def test_a_hierarchical_teacher_finds_the_mean_and_the_width_of_tastes() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([2.0, -1.0, 0.0])
    tastes = truth + rng.normal(size=(500, 3)) * [0.9, 0.3, 0.6]
    apart = rng.normal(size=(500, 40, 3))
    said = rng.random((500, 40)) < 1 / (1 + np.exp(-(apart * tastes[:, None]).sum(2)))
    mean, spread, draws = teachers.population(np.where(said[..., None], apart, -apart), rng, rounds=30)
    assert mean == pytest.approx(truth, abs=0.2)
    assert np.sqrt(np.diag(spread)) == pytest.approx([0.9, 0.3, 0.6], abs=0.2)
    # a person's draws lie about her own taste, not about the group's
    assert np.corrcoef(draws.mean(1)[:, 0], tastes[:, 0])[0, 1] > 0.6


def test_teachers_without_privilege_read_the_context_alone() -> None:
    own = stack(0)
    turned = dataclasses.replace(own, train_SUPK=torch.cat([own.train_SUPK[:, :, :8], -own.train_SUPK[:, :, 8:]], 2))
    groups = [[minority, ~minority] for minority in members(own)[0]]
    found = [
        teachers.teach(each, groups, students.randoms([0]), read=read, rounds=2).tastes_SUNK
        for each, read in ((own, 8), (turned, 8), (own, 28))
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


class Witness(Students):
    """Has no opinion, and remembers what it was last asked."""

    context: torch.Tensor

    def margins(self, context_SBCK: torch.Tensor, judged_SBPK: torch.Tensor) -> torch.Tensor:
        self.context = context_SBCK
        return torch.zeros(judged_SBPK.shape[:3])


def test_made_up_people_answer_as_the_taste_says() -> None:
    taste = torch.tensor([80.0] + [0.0] * 8).expand(1, 5, 2, 9)
    taught, student = teachers.Taught(torch.zeros(1, 5, 28), taste), Witness(9, [0])
    phi = torch.from_numpy(catalogue()).float()[None]
    teachers.made_up(student, phi, taught, torch.arange(5)[None], students.randoms([0]), context=40)
    assert (student.context[..., 0] > -0.1).all()


def test_a_teachers_margin_stays_with_its_comparison_when_contexts_are_redrawn() -> None:
    own = stack(0)
    taste = torch.randn(1, 192, 9, generator=torch.Generator().manual_seed(1))
    taught = teachers.Taught((own.train_SUPK * taste[:, :, None]).sum(3), taste[:, :, None])
    rows = torch.tensor([[3, 1, 4]])
    order = students.orders(rows, 28, students.randoms([0]))
    moved = students.reordered(students.of_rows(own.train_SUPK, rows), order)
    expected = (moved * students.of_rows(taste, rows)[:, :, None]).sum(3)
    assert torch.allclose(teachers.known_of(taught, rows, order), expected, atol=1e-5)


def test_where_both_ends_harm_a_group_the_plain_model_is_served_for_that_seed_alone() -> None:
    own = stack(0, 1)
    model = Students(9, [7, 8])
    perfect, hopeless = (Standing(accuracy_G=(each,) * 2, loss_G=(9 * (1 - each),) * 2) for each in (1.0, 0.0))
    plain = Plain(model, [perfect, hopeless])
    served, ruling = arms.train(own, Arm(guarded=True), *members(own), plain=plain, known=None, effort=HASTE)
    assert ruling is not None
    assert ruling.plain_S.tolist() == [True, False]
    # the first seed's students would have harmed both groups; what is served in their place harms neither
    assert (ruling.offered_SEG[0] < -0.005).all()
    assert ruling.served_SG[0].tolist() == [0, 0]
    assert any(np.array_equal(ruling.served_SG[1], end_G) for end_G in ruling.offered_SEG[1])
    same = [torch.equal(served.embed[seed], model.embed[seed]) for seed in (0, 1)]
    assert same == [True, False]


@pytest.mark.parametrize(("step", "how"), [("shares", "groups"), ("dro", "everybody"), ("min-norm", "copies")])
def test_an_arm_leaves_the_plain_model_as_it_is(step: str, how: str) -> None:
    own, plain = stack(0), Students(9, [0])
    before = copy.deepcopy(plain.state_dict())
    arm = dataclasses.replace(PARETO, step=step, teachers=how, guarded=False)
    known = arms.taught(own, arm, *members(own), plain=plain, effort=HASTE)
    assert known is not None
    assert known.tastes_SUNK.isfinite().all()
    model, _ = arms.train(own, arm, *members(own), plain=Plain(plain, []), known=known, effort=HASTE)
    assert not torch.equal(model.embed, plain.embed)
    assert all(torch.equal(before[name], weight) for name, weight in plain.state_dict().items())
