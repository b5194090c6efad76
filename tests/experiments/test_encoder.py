import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import encoder
from experiments.encoder import Encoder, Recipe, evidence_of
from experiments.grades import Grades

RECIPE = Recipe(dimensions=3, hidden=8, users=4, targets=6)


def population(users: int = 12, items: int = 15, graded: int = 10, seed: int = 0) -> Grades:
    rng = np.random.default_rng(seed)
    rows = [rng.choice(items, graded, replace=False) for _ in range(users)]
    return Grades("few", [str(item) for item in range(items)], rows, [rng.normal(size=graded) for _ in rows])


def small(seed: int = 0, **changed: object) -> Encoder:
    recipe = Recipe(**{"dimensions": 3, "hidden": 8, **changed})  # type: ignore[arg-type]
    return Encoder(5, recipe, torch.Generator().manual_seed(seed))


def marked(users: int, sizes: list[int]) -> encoder.Table:
    """Features that say whose and which item it is."""
    own = [np.array([[user, place, 0] for place in range(sizes[user])], np.float32) for user in range(users)]
    values = [np.arange(sizes[user], dtype=np.float64) for user in range(users)]
    return encoder.table(values, own)


def test_a_users_own_grade_is_not_in_the_features_she_is_learned_from() -> None:
    known, users = population(), np.arange(12)
    plain = encoder.features(known, users, 2, ridge=2.0, rounds=0)
    assert plain.items_IF.shape == (15, 3)
    value_of = lambda user: (known.values[user] - known.values[user].mean()) / known.values[user].std()  # noqa: E731
    others = [value_of(user)[known.items[user] == 4] for user in users if user != 3]
    if 4 in known.items[3]:
        place = known.items[3].tolist().index(4)
        told = np.concatenate(others)
        assert plain.own[3][place, -1] == pytest.approx(told.sum() / (len(told) + 5), rel=1e-4)
    assert not np.allclose(plain.own[3], plain.items_IF[known.items[3]])


def test_leaving_one_out_in_closed_form_is_fitting_without_it() -> None:
    rng = np.random.default_rng(0)
    rows, target = rng.normal(size=(9, 2)), rng.normal(size=9)
    group = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1])
    found, inverse = encoder._ridge(rows, group, target, 2, 1.5)
    pull = inverse[0] @ rows[2]
    closed = found[0] - pull * (target[2] - rows[2] @ found[0]) / (1 - pull @ rows[2])
    without = np.delete(np.arange(5), 2)
    normal = rows[without].T @ rows[without] + 1.5 * np.eye(2)
    assert closed == pytest.approx(np.linalg.solve(normal, rows[without].T @ target[without]))


@settings(max_examples=30)
@given(st.integers(0, 1000))
def test_what_is_predicted_is_no_part_of_the_evidence_nor_are_pairs_part_of_the_history(seed: int) -> None:
    batch = encoder.draw(marked(5, [12, 3, 30, 20, 7]), RECIPE, 0.0, np.random.default_rng(seed))

    def things(features: torch.Tensor) -> set[tuple[float, ...]]:
        return {tuple(row) for row in features.reshape(-1, 3).tolist()}

    asked, lived = things(batch.evidence.pairs_P2F), things(batch.evidence.items_AF)
    assert not things(batch.targets_P2F) & (asked | lived)
    assert not asked & lived
    assert (batch.targets_P2F[:, 0, 1] > batch.targets_P2F[:, 1, 1]).all()
    owner = batch.targets_P2F[:, 0, 0]
    assert (owner == batch.targets_P2F[:, 1, 0]).all()
    assert batch.evidence.users == 4


def test_no_evidence_is_the_prior_and_order_does_not_matter() -> None:
    model, rng = small(), np.random.default_rng(0)
    pairs = rng.normal(size=(6, 2, 5)).astype(np.float32)
    nothing = model.tastes(evidence_of([pairs[:0]], width=5))
    prior_K, prior_mean_K = model.history.prior()
    assert torch.equal(nothing[1][0], prior_K)
    assert torch.equal(nothing[0][0], prior_mean_K)
    there, back = (model.tastes(evidence_of([order], width=5)) for order in (pairs, pairs[::-1].copy()))
    assert torch.allclose(there[0], back[0], atol=1e-5)
    assert (there[1] >= prior_K).all()


def test_items_and_pairs_of_one_person_are_one_posterior() -> None:
    model, rng = small(), np.random.default_rng(1)
    pairs, items = rng.normal(size=(4, 2, 5)).astype(np.float32), rng.normal(size=(3, 5)).astype(np.float32)
    both = model.tastes(evidence_of([pairs], [(items, np.ones(3))], width=5))[1]
    alone = [
        model.tastes(evidence_of([pairs], width=5))[1],
        model.tastes(evidence_of(None, [(items, np.ones(3))], width=5))[1],
    ]
    assert torch.allclose(both, alone[0] + alone[1] - model.history.prior()[0], atol=1e-5)


@pytest.mark.parametrize("conditioning", ["product", "film"])
def test_swapping_a_comparison_turns_its_margin(conditioning: str) -> None:
    model, rng = small(conditioning=conditioning), np.random.default_rng(2)
    tastes = model.tastes(evidence_of([rng.normal(size=(4, 2, 5)).astype(np.float32)], width=5))
    asked, user = torch.randn(7, 2, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(7, dtype=torch.int64)
    margin, variance = model.margins(tastes, asked, user)
    turned, same = model.margins(tastes, asked.flip(1), user)
    assert torch.allclose(margin, -turned, atol=1e-5)
    assert torch.equal(variance, same)


def test_swap_guidance_and_film_reach_the_objective() -> None:
    batch = encoder.draw(marked(5, [12, 9, 30, 20, 17]), RECIPE, 0.0, np.random.default_rng(3))
    losses = []
    for swap, conditioning in ((0.0, "product"), (1.0, "product"), (0.0, "film")):
        recipe = Recipe(dimensions=3, hidden=8, swap=swap, conditioning=conditioning)  # type: ignore[arg-type]
        model = Encoder(3, recipe, torch.Generator().manual_seed(0))
        losses.append(encoder.objective(model, batch, torch.Generator().manual_seed(0)).item())
    assert losses[1] > losses[0]
    assert np.isfinite(losses).all()
    assert losses[2] != losses[0]


def test_training_repeats_itself_for_a_seed() -> None:
    graded = marked(6, [12, 9, 30, 20, 17, 11])
    recipe = Recipe(dimensions=3, hidden=8, users=4, steps=3)
    one, other = (encoder.train(graded, recipe, seed=5) for _ in range(2))
    assert torch.equal(one.map_KF, other.map_KF)
    assert not one.map_KF.requires_grad
