import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from experiments import pareto, personas, report
from experiments.grades import Grades
from experiments.pareto import Arm, Effort, Plain, Student, Taught
from experiments.personas import World
from ranker.errors import DataError
from ranker.pareto import Standing, boundary, distilled_loss


def catalogue(items: int = 120) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(items, 9))


def small(seed: int = 0, **options: float) -> World:
    return personas.personas(catalogue(), seed, people=(192, 80, 60), **options)


SHORT = Effort(epochs=6, tuning=2)


def judged(model: Student, world: World) -> Plain:
    return Plain(model, pareto.standing(model, world.valid, world.valid.minority_U, world.context))


def test_a_population_has_the_shares_the_noise_and_the_cosine_that_were_asked_for() -> None:
    world = personas.personas(catalogue(), 3, minority=0.2, cosine=-0.7, people=(400, 50, 50))
    assert [part.minority_U.mean() for part in world.parts] == pytest.approx([0.2] * 3)
    directions = personas._directions(9, -0.7, np.random.default_rng(3))
    assert np.linalg.norm(directions, axis=1) == pytest.approx([1, 1])
    assert directions[0] @ directions[1] == pytest.approx(-0.7)
    assert world.train.apart_UPK.shape == (400, 28, 9)
    assert world.test.apart_UPK.shape == (50, 8 + personas.JUDGED, 9)


def test_a_persona_contradicts_her_taste_as_often_as_the_noise_says_and_is_judged_without_it() -> None:
    world = personas.personas(catalogue(), 5, people=(600, 10, 300))
    # a taste fitted to many noise-free comparisons of one person tells her right ones, up to the noise
    wrong = []
    for apart_PK in world.test.apart_UPK.numpy():
        taste_K = apart_PK[8:].mean(0)
        wrong.append((apart_PK[:8] @ taste_K < 0).mean())
    assert np.mean(wrong) == pytest.approx(personas.NOISE, abs=0.06)


def test_the_same_seed_gives_the_same_people() -> None:
    one, again, other = small(1), small(1), small(2)
    assert torch.equal(one.train.apart_UPK, again.train.apart_UPK)
    assert not torch.equal(one.train.apart_UPK, other.train.apart_UPK)


def test_rows_and_base_rewards_of_a_comparison_agree() -> None:
    world = small()
    preferred, over = torch.from_numpy(world.train.pairs_UP2).unbind(2)
    assert torch.allclose(world.train.apart_UPK, world.phi_IK[preferred] - world.phi_IK[over], atol=1e-5)


def test_the_minority_has_less_support_and_is_mostly_found_by_it() -> None:
    world = personas.personas(catalogue(), 4, minority=0.2, people=(400, 80, 200))
    support = personas.supports(world)
    assert [len(each) for each in support] == [400, 80, 200]
    for each, part in zip(support, world.parts, strict=True):
        assert each[part.minority_U].mean() < each[~part.minority_U].mean() - 0.1
    found = support[0] < boundary(support[0])
    assert (found == world.train.minority_U).mean() > 0.9


def test_a_margin_beside_the_others_never_reads_its_own_comparison() -> None:
    world, model = small(), Student(9, 0)
    apart = world.train.apart_UPK[:3]
    turned = apart.clone()
    turned[:, 4] = -turned[:, 4]
    before, after = model.margins_beside(apart), model.margins_beside(turned)
    assert torch.allclose(before[:, 4], -after[:, 4], atol=1e-5)
    assert not torch.allclose(before[:, 5], after[:, 5], atol=1e-5)


def test_a_student_reads_its_context_in_any_order() -> None:
    world, model = small(), Student(9, 0)
    context, judge = world.train.apart_UPK[:4, :8], world.train.apart_UPK[:4, 8:]
    assert torch.allclose(model.margins(context, judge), model.margins(context.flip(1), judge), atol=1e-5)


def test_redrawn_orders_keep_every_comparison_of_every_person() -> None:
    orders = pareto._orders(torch.zeros(3, 6, 9), np.random.default_rng(0))
    assert orders.sort(1).values.tolist() == [list(range(6))] * 3
    assert len({tuple(order) for order in orders.tolist()}) > 1


class Witness(Student):
    """Has no opinion, and remembers what it was last asked."""

    judged: torch.Tensor

    def margins(self, context_BCK: torch.Tensor, judged_BPK: torch.Tensor) -> torch.Tensor:
        self.judged = judged_BPK
        return torch.zeros(judged_BPK.shape[:2])


def test_a_teachers_margin_stays_with_its_comparison_when_contexts_are_redrawn() -> None:
    world, student = small(), Witness(9, 0)
    taste = torch.randn(192, 9, generator=torch.Generator().manual_seed(1))
    margins = (world.train.apart_UPK * taste[:, None]).sum(2)
    arm = dataclasses.replace(pareto.PARETO, answered=0.0, redrawn=True)
    losses = pareto._distilled(student, world, arm, Taught(margins, taste), np.random.default_rng(0))
    found = losses(np.arange(5))
    moved = (student.judged * taste[:5, None]).sum(2)
    assert torch.allclose(found, distilled_loss(torch.zeros(5, 20), moved).mean(1), atol=1e-5)


def test_teachers_answer_as_the_taste_says() -> None:
    taste = torch.tensor([[50.0] + [0.0] * 8])
    answered = pareto._answered(torch.from_numpy(catalogue()).float(), taste, 40, torch.Generator().manual_seed(0))
    assert (answered[0, :, 0] > -0.1).all()


def test_training_learns_and_is_repeatable() -> None:
    world = small()
    everyone, valid = np.arange(192), np.ones(80, np.bool_)
    model, again = (
        pareto.plainly(Student(9, 0), world, everyone, valid, rng=np.random.default_rng(0), epochs=6) for _ in range(2)
    )
    accuracy = pareto._accuracies(model, world)
    assert accuracy.mean() > pareto._accuracies(Student(9, 0), world).mean() + 0.1
    assert np.array_equal(accuracy, pareto._accuracies(again, world))


def test_where_every_checkpoint_harms_a_group_the_plain_model_is_served() -> None:
    world = small()
    model = Student(9, 0)
    groups = world.train.minority_U, world.valid.minority_U
    perfect = Plain(model, Standing(accuracy_G=(1.0, 1.0), loss_G=(0.0, 0.0)))
    arm = Arm(guarded=True)
    assert pareto.train(world, arm, *groups, plain=perfect, taught=None, seed=0, effort=SHORT) is model
    hopeless = Plain(model, Standing(accuracy_G=(0.0, 0.0), loss_G=(9.0, 9.0)))
    assert pareto.train(world, arm, *groups, plain=hopeless, taught=None, seed=0, effort=SHORT) is not model


@pytest.mark.parametrize("step", ["shares", "dro", "min-norm"])
def test_an_arm_leaves_the_plain_model_as_it_is_and_its_teachers_too(step: str) -> None:
    world, plain = small(), Student(9, 0)
    before = copy.deepcopy(plain.state_dict())
    groups = world.train.minority_U, world.valid.minority_U
    arm = dataclasses.replace(pareto.PARETO, step=step, guarded=False)
    taught = pareto.teach(plain, world, arm, *groups, seed=0, effort=SHORT)
    assert isinstance(taught, Taught)
    assert taught.margins_UP.isfinite().all()
    model = pareto.train(world, arm, *groups, plain=judged(plain, world), taught=taught, seed=0, effort=SHORT)
    assert model is not plain
    assert all(torch.equal(before[name], weight) for name, weight in plain.state_dict().items())
    assert not any(weight.requires_grad for weight in (taught.margins_UP, taught.taste_UK))


def test_a_teacher_without_privilege_reads_the_context_alone() -> None:
    world, plain = small(), Student(9, 0)
    groups = world.train.minority_U, world.valid.minority_U
    taught = pareto.teach(plain, world, Arm(teachers="everybody", privileged=False), *groups, seed=0, effort=SHORT)
    assert (taught.margins_UP[:, :8] == 0).all()
    assert (taught.margins_UP[:, 8:] != 0).any()


def test_every_arm_is_measured_with_its_difference_to_the_plain_model() -> None:
    effort = Effort(epochs=1, tuning=1)
    result = pareto.simulated(graded(), [0], settings=["20%"], people=(128, 60, 40), effort=effort)
    arms = {*pareto.ARMS, *pareto.ABLATIONS, "maxmin", "erm-redrawn"}
    names = {"majority_accuracy", "minority_accuracy", "std", "gini", "jain", "cvar10", "spearman_support"}
    for arm in arms:
        for metric in names:
            apart = result.row(arm, metric).mean - result.row("erm", metric).mean
            assert result.row(f"{arm} - erm", metric).mean == pytest.approx(apart, abs=1e-9)
    assert not result.holds  # one epoch teaches nobody
    assert json.loads(report.to_json(result))["name"] == "pareto"


def test_a_logs_users_are_judged_in_groups_found_by_support_and_not_harmed_beyond_the_plain_model() -> None:
    result = pareto.logged(graded(), [0], effort=Effort(epochs=1, tuning=1))
    assert 0 <= result.row("erm", "minority_share").mean < 0.5
    for arm in ("pareto", "self-distil", "no-teachers"):
        if result.row(arm, "served_plain").mean == 1:
            assert result.row(f"{arm} - erm", "majority_accuracy").mean == 0


def graded(users: int = 260, items: int = 60) -> Grades:
    rng = np.random.default_rng(11)
    each = [rng.permutation(items)[:40] for _ in range(users)]
    taste, phi = rng.normal(size=(users, 3)), rng.normal(size=(items, 3))
    values = [phi[mine] @ taste[user] + rng.normal(size=40) for user, mine in enumerate(each)]
    return Grades("made-up", [str(item) for item in range(items)], each, values)


def test_a_logs_people_are_split_and_no_item_is_both_context_and_judged() -> None:
    world = personas.logged(graded(), 0)
    assert [len(part) for part in world.parts] == [130, 52, 78]
    for rows in world.train.pairs_UP2:
        assert not set(rows[:8].ravel()) & set(rows[8:].ravel())


def test_a_log_of_few_people_is_refused() -> None:
    with pytest.raises(DataError, match="200 users"):
        personas.logged(graded(users=60), 0)
