import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ranker.errors import RequestError
from ranker.questions import (
    Asked,
    answers_factor,
    as_asked,
    choose_temper,
    entropy,
    gains,
    log_posterior,
    next_question,
    reductions,
    surprise,
)
from ranker.taste import Factor, fuse, predictive_loss


def random_case(seed, answers=6, k=3):
    rng = np.random.default_rng(seed)
    asked = Asked(
        differences_AK=rng.normal(size=(answers, k)),
        offsets_A=rng.normal(size=answers),
        share_A=rng.choice([0, 0.5, 1], answers),
        weight_A=rng.uniform(0, 1, answers),
    )
    root = rng.normal(size=(k, k))
    precision = (root @ root.T + np.eye(k)).astype(np.float32)
    prior = Factor(precision, (precision @ rng.normal(size=k)).astype(np.float32))
    return prior, asked, rng.normal(size=k)


@pytest.mark.parametrize("seed", range(5))
def test_gradient_and_hessian_are_those_of_autograd(seed):
    prior, asked, z = random_case(seed)

    def value(point):
        margin = torch.tensor(asked.offsets_A) + torch.tensor(asked.differences_AK) @ point
        share = torch.tensor(asked.share_A)
        fit = share * torch.nn.functional.logsigmoid(margin) + (1 - share) * torch.nn.functional.logsigmoid(-margin)
        precision = torch.tensor(prior.precision, dtype=torch.float64)
        information = torch.tensor(prior.information, dtype=torch.float64)
        return torch.tensor(asked.weight_A) @ fit + information @ point - 0.5 * point @ precision @ point

    point = torch.tensor(z, requires_grad=True)
    got, gradient, precision = log_posterior(z, prior, asked)
    assert got == pytest.approx(value(point).item())
    np.testing.assert_allclose(gradient, torch.autograd.grad(value(point), point)[0].numpy(), atol=1e-9)
    hessian = torch.autograd.functional.hessian(value, point)
    np.testing.assert_allclose(precision, -hessian.numpy(), atol=1e-9)


@given(st.integers(0, 10_000), st.integers(0, 30))
def test_prior_and_factor_fuse_to_the_posterior_mode_and_variance_never_grows(seed, answers):
    prior, asked, _ = random_case(seed, answers)
    taste = fuse(prior, [answers_factor(prior, asked)])
    _, gradient, _ = log_posterior(taste.mean_K.astype(np.float64), prior, asked)
    np.testing.assert_allclose(gradient, 0, atol=5e-3)
    grown = np.linalg.inv(prior.precision.astype(np.float64)) - np.linalg.inv(taste.precision_K.astype(np.float64))
    assert np.linalg.eigvalsh(grown).min() > -1e-5


@given(st.integers(0, 10_000), st.integers(1, 20))
def test_sources_fuse_in_any_order_and_every_answer_counts_once(seed, answers):
    prior, asked, _ = random_case(seed, answers)
    rng = np.random.default_rng(seed)
    history = Factor(rng.uniform(0, 3, 3).astype(np.float32), rng.normal(size=3).astype(np.float32))
    words = Factor(rng.uniform(0, 1, 3).astype(np.float32), rng.normal(size=3).astype(np.float32))
    tastes = []
    for sources in ([history, words], [words, history]):
        before = fuse(prior, sources)
        known = Factor(before.precision_K, before.precision_K @ before.mean_K)
        told = answers_factor(known, asked)
        tastes += [fuse(prior, [*sources, told]), fuse(known, [told])]
    for taste in tastes[1:]:
        np.testing.assert_allclose(taste.mean_K, tastes[0].mean_K, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(taste.precision_K, tastes[0].precision_K, rtol=1e-3, atol=1e-3)
    p = 1 / (1 + np.exp(-asked.offsets_A - asked.differences_AK @ tastes[0].mean_K))
    once = (asked.differences_AK.T * (asked.weight_A * p * (1 - p))) @ asked.differences_AK
    gaussian = prior.precision + np.diag(history.precision + words.precision)
    np.testing.assert_allclose(tastes[0].precision_K - gaussian, once, rtol=1e-2, atol=1e-2)


def test_no_answers_add_nothing():
    prior, asked, _ = random_case(0, 0)
    factor = answers_factor(prior, asked)
    assert not factor.precision.any()
    assert not factor.information.any()


def test_order_of_answers_does_not_matter():
    prior, asked, _ = random_case(3, 8)
    turned = Asked(
        differences_AK=asked.differences_AK[::-1],
        offsets_A=asked.offsets_A[::-1],
        share_A=asked.share_A[::-1],
        weight_A=asked.weight_A[::-1],
    )
    np.testing.assert_allclose(
        answers_factor(prior, asked).information, answers_factor(prior, turned).information, rtol=1e-4, atol=1e-5
    )


def test_swapping_a_pair_and_its_answer_says_the_same():
    prior, asked, _ = random_case(4, 5)
    swapped = Asked(
        differences_AK=-asked.differences_AK,
        offsets_A=-asked.offsets_A,
        share_A=1 - asked.share_A,
        weight_A=asked.weight_A,
    )
    for one, other in zip(answers_factor(prior, asked), answers_factor(prior, swapped), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_weightless_answer_is_no_answer_and_a_skip_is_left_out():
    features, intercept = np.eye(3), np.zeros(3)
    asked = as_asked([(0, 1), (1, 2)], ["preferred", "skip"], features, intercept, [0.0, 1.0])
    assert len(asked.weight_A) == 1
    prior = Factor(np.ones(3, np.float32), np.zeros(3, np.float32))
    assert not answers_factor(prior, asked).information.any()


def test_separable_answers_and_large_margins_stay_finite():
    prior = Factor(np.full(2, 1e-3, np.float32), np.zeros(2, np.float32))
    asked = Asked(
        differences_AK=np.array([[1e3, 0], [1e3, 1]] * 50),
        offsets_A=np.zeros(100),
        share_A=np.ones(100),
        weight_A=np.ones(100),
    )
    factor = answers_factor(prior, asked)
    assert np.isfinite(factor.precision).all()
    assert np.isfinite(factor.information).all()
    with pytest.raises(RequestError, match="not finite"):
        answers_factor(
            prior,
            Asked(
                differences_AK=np.full((1, 2), np.inf),
                offsets_A=np.zeros(1),
                share_A=np.ones(1),
                weight_A=np.ones(1),
            ),
        )


def test_the_gain_is_the_growth_of_the_log_determinant():
    rng = np.random.default_rng(0)
    pool, intercept, mean = rng.normal(size=(5, 3)), rng.normal(size=5), rng.normal(size=3)
    precision = np.eye(3) * 2
    found = gains(mean, precision, pool, intercept)
    v = pool[1] - pool[4]
    margin = intercept[1] - intercept[4] + v @ mean
    p = 1 / (1 + np.exp(-margin))
    after = precision + p * (1 - p) * np.outer(v, v)
    assert found[1, 4] == pytest.approx(entropy(precision) - entropy(after))
    np.testing.assert_allclose(found, found.T)


def test_the_reduction_is_the_fall_of_the_mean_variance_of_utilities():
    rng = np.random.default_rng(0)
    pool, intercept, mean, ranked = (
        rng.normal(size=(5, 3)),
        rng.normal(size=5),
        rng.normal(size=3),
        rng.normal(size=(9, 3)),
    )
    precision, aim = np.diag([1.0, 2, 3]), np.cov(ranked.T, bias=True)
    found = reductions(mean, precision, pool, intercept, aim)
    v = pool[2] - pool[3]
    p = 1 / (1 + np.exp(intercept[3] - intercept[2] - v @ mean))
    before, after = np.linalg.inv(precision), np.linalg.inv(precision + p * (1 - p) * np.outer(v, v))
    around = ranked - ranked.mean(0)
    assert found[2, 3] == pytest.approx(np.mean([item @ (before - after) @ item for item in around]))
    np.testing.assert_allclose(found, found.T)
    assert not np.diag(found).any()


def test_a_question_is_about_what_the_ranked_items_differ_in():
    pool, aim = np.array([[2.0, 0], [-2, 0], [0, 1], [0, -1]]), np.diag([0.01, 1.0])
    found = [next_question(np.zeros(2), np.eye(2), pool, np.zeros(4), aim_KK=matter) for matter in (aim, np.eye(2))]
    assert [{question.one, question.other} for question in found] == [{2, 3}, {0, 1}]
    assert found[0].gain == pytest.approx(0.5 * np.log(1 + 0.25 * 4))
    assert next_question(np.zeros(2), np.eye(2), pool[:1], np.zeros(1)) is None


def test_the_next_question_is_along_the_most_uncertain_direction():
    pool = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    question = next_question(np.zeros(2), np.diag([100.0, 1.0]), pool, np.zeros(4))
    assert {question.one, question.other} == {2, 3}


def test_no_pair_is_asked_twice_and_the_pool_runs_dry():
    rng = np.random.default_rng(1)
    pool, asked = rng.normal(size=(5, 2)), []
    while question := next_question(np.zeros(2), np.eye(2), pool, np.zeros(5), asked):
        asked.append((question.one, question.other))
    assert len({frozenset(pair) for pair in asked}) == len(asked) == 10


def test_adaptive_questions_learn_a_known_taste_faster_than_random_ones():
    rng = np.random.default_rng(2)
    wins = []
    for _ in range(20):
        pool, truth, intercept = rng.normal(size=(40, 6)), rng.normal(size=6) * 2, np.zeros(40)
        prior = Factor(np.ones(6, np.float32), np.zeros(6, np.float32))
        accuracy = {}
        for kind in ("adaptive", "random"):
            pairs, taste = [], fuse(prior)
            for _ in range(10):
                question = next_question(
                    taste.mean_K,
                    np.diag(np.ones(6)) if taste.precision_K.ndim == 1 else taste.precision_K,
                    pool,
                    intercept,
                    pairs,
                )
                pair = (question.one, question.other) if kind == "adaptive" else tuple(rng.choice(40, 2, replace=False))
                pairs.append(pair if (pool[pair[0]] - pool[pair[1]]) @ truth > 0 else pair[::-1])
                asked = as_asked(pairs, ["preferred"] * len(pairs), pool, intercept)
                taste = fuse(prior, [answers_factor(prior, asked)])
            unseen = rng.normal(size=(500, 6))
            accuracy[kind] = np.mean((unseen @ truth > 0) == (unseen @ taste.mean_K > 0))
        wins.append(accuracy["adaptive"] - accuracy["random"])
    assert np.mean(wins) > 0.02


def history_case(seed, believed, people=60, k=3):
    """People whose histories tell the truth with variance 1/2, though they claim the precision `believed`."""
    rng = np.random.default_rng(seed)
    prior = Factor(np.ones(k, np.float32), np.zeros(k, np.float32))
    histories, answers, held = [], [], []
    for _ in range(people):
        z = rng.normal(size=k)
        shown = z + rng.normal(size=k) * np.sqrt(0.5)
        histories.append(Factor(np.full(k, believed, np.float32), (believed * shown).astype(np.float32)))
        for parts, count in ((answers, 8), (held, 40)):
            apart = 2 * rng.normal(size=(count, k))
            share = (rng.random(count) < 1 / (1 + np.exp(-apart @ z))).astype(float)
            parts.append(Asked(differences_AK=apart, offsets_A=np.zeros(count), share_A=share, weight_A=np.ones(count)))
    return prior, histories, answers, held


def test_an_honest_history_is_believed_and_an_overconfident_one_tempered():
    honest, losses = choose_temper(*history_case(0, 2.0))
    assert honest.scale == 1
    assert len(losses) == 10
    boastful, losses = choose_temper(*history_case(0, 40.0))
    assert boastful.residual_K is not None or boastful.scale < 0.5
    assert losses[boastful] == min(losses.values()) < losses[next(iter(losses))]


def test_surprise_is_the_predictive_loss_of_the_taste():
    _, asked, z = random_case(1, 7)
    precision = np.diag([1.0, 2, 3])
    variance = (asked.differences_AK**2 / np.array([1.0, 2, 3])).sum(1)
    parts = (asked.offsets_A + asked.differences_AK @ z, variance, asked.share_A, asked.weight_A)
    assert surprise(z, precision, asked) == pytest.approx(predictive_loss(*map(torch.from_numpy, parts)).item())
