import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from ranker.errors import DataError
from ranker.evidence import Answer
from ranker.reliability import (
    CONSTRUCTED,
    GENUINE,
    NON_ATTITUDE,
    Population,
    answer_weights,
    class_posteriors,
    fit_population,
)

USUAL = Population.default()


def answer(preferred, over, *, first=None, wording="rather", outcome="preferred", number=0):
    condition = {"shown_first": first, "wording": wording} if first else {}
    return Answer(f"a{number}", preferred, over, number, outcome=outcome, condition=condition)


def population(seed, *, people=200, pairs=14, again=7, mix=(0.5, 0.25, 0.25), pull=(2.0, 0.0), spread=2.5):
    """People of one class each, their answers, and the true margin of each answer as given."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(3, people, p=mix)
    found, margins = [], []
    for kind in classes:
        mine, true = [], []
        for pair in range(pairs):
            margin, first, wording = rng.normal(0, spread), rng.choice([-1, 1]), rng.choice([-1, 1])
            for _ in range(2 if pair < again else 1):
                lean = (margin, 0, np.dot(pull, [first, first * wording]))[kind]
                one, other = (f"p{pair}", f"q{pair}") if rng.random() < expit(lean) else (f"q{pair}", f"p{pair}")
                shown, asked = f"{'p' if first > 0 else 'q'}{pair}", "rather" if wording > 0 else "skip"
                mine.append(answer(one, other, first=shown, wording=asked, number=len(mine)))
                true.append(margin if one[0] == "p" else -margin)
                first, wording = -first, -wording
        found.append(mine)
        margins.append(np.array(true))
    return classes, found, margins


def test_one_answer_under_an_unknown_condition_says_nothing_of_its_class():
    assert answer_weights([answer("a", "b")], USUAL) == pytest.approx([0.8])


def test_two_answers_to_a_pair_weigh_as_the_integral_over_its_margin_says():
    agree = quad(lambda m: norm.pdf(m, 0, 2) * expit(m) ** 2, -20, 20)[0]
    differ = quad(lambda m: norm.pdf(m, 0, 2) * expit(m) * expit(-m), -20, 20)[0]
    same = answer_weights([answer("a", "b"), answer("a", "b")], USUAL)
    apart = answer_weights([answer("a", "b"), answer("b", "a")], USUAL)
    assert same == pytest.approx(0.8 * agree / (0.8 * agree + 0.05), rel=1e-3)
    assert apart == pytest.approx(0.8 * differ / (0.8 * differ + 0.05), rel=1e-3)
    assert apart[0] < 0.8 < same[0]


def test_who_always_takes_what_is_shown_first_is_not_believed():
    shown = [answer(f"p{n}", f"q{n}", first=f"p{n}") for n in range(10)]
    turned = [answer(f"p{n}", f"q{n}", first=f"p{n}" if n % 2 else f"q{n}") for n in range(10)]
    assert answer_weights(shown, USUAL)[0] < 0.15
    assert answer_weights(turned, USUAL)[0] > 0.8


def test_who_clicks_the_first_whatever_is_asked_looks_consistent_and_is_caught_all_the_same():
    # order and wording both change at the second asking, so the click prefers the same item again
    clicks = []
    for pair in range(8):
        clicks.append(answer(f"p{pair}", f"q{pair}", first=f"p{pair}", wording="rather"))
        clicks.append(answer(f"p{pair}", f"q{pair}", first=f"q{pair}", wording="skip"))
    assert class_posteriors(clicks, USUAL)[None][CONSTRUCTED] > 0.7


def test_who_contradicts_what_the_model_is_sure_of_is_believed_less():
    answers = [answer(f"p{n}", f"q{n}") for n in range(6)]
    sure, doubt = np.full(6, 3.0), np.full(6, 0.5)
    for_it, against = answer_weights(answers, USUAL, sure, doubt), answer_weights(answers, USUAL, -sure, doubt)
    assert against[0] < 0.1
    assert for_it[0] > 0.9


def test_answers_about_different_pairs_bear_each_other_out_through_the_covariance():
    answers = [answer(f"p{n}", f"q{n}") for n in range(8)]
    one_taste, none = np.full((8, 8), 6.0), np.diag(np.full(8, 6.0))
    together, apart = (answer_weights(answers, USUAL, np.zeros(8), doubt)[0] for doubt in (one_taste, none))
    assert apart == pytest.approx(0.8, abs=0.02)
    assert together > 0.95


def test_the_filtered_evidence_is_close_to_the_integral():
    rng = np.random.default_rng(0)
    differences_AK = rng.normal(size=(6, 2))
    answers = [answer(f"p{n}", f"q{n}", number=n) for n in range(6)]
    covariance_AA = differences_AK @ differences_AK.T * 4
    draws = rng.normal(size=(400_000, 2)) * 2 @ differences_AK.T + rng.normal(size=(400_000, 6)) * USUAL.own
    exact = expit(draws).prod(1).mean()
    weight = answer_weights(answers, USUAL, np.zeros(6), covariance_AA)[0]
    rest = 0.2 * 0.5**6  # without a condition, constructed answers are coins too
    assert weight == pytest.approx(0.8 * exact / (0.8 * exact + rest), abs=0.02)


def test_skips_say_nothing_and_a_tie_is_half_an_answer_each_way():
    said = [answer("a", "b"), answer("a", "b")]
    skipped = [*said, answer("b", "a", outcome="skip")]
    assert answer_weights(skipped, USUAL).tolist() == [*answer_weights(said, USUAL), 0.0]
    tied = answer_weights([*said, answer("b", "a", outcome="both")], USUAL)[0]
    against = answer_weights([*said, answer("b", "a")], USUAL)[0]
    assert against < tied < answer_weights(said, USUAL)[0]
    assert answer_weights([answer("a", "b", outcome="neither")], USUAL) == pytest.approx([0.8])


def test_no_answers_give_no_weights():
    assert answer_weights([], USUAL).shape == (0,)
    assert answer_weights([answer("a", "b", outcome="skip")], USUAL).tolist() == [0.0]
    assert class_posteriors([], USUAL) == {}
    assert fit_population([]).to_array().tolist() == USUAL.to_array().tolist()


def test_each_kind_of_item_has_a_class_of_its_own():
    sure = [answer(f"film{n}", f"film_{n}", number=n) for n in range(5) for _ in range(2)]
    torn = [answer(*names) for n in range(5) for names in ((f"song{n}", f"song_{n}"), (f"song_{n}", f"song{n}"))]
    found = class_posteriors([*sure, *torn], USUAL, kind=lambda a: a.preferred[:4])
    assert found["film"][GENUINE] > 0.9
    assert found["song"][GENUINE] < 0.3
    weights = answer_weights([*sure, *torn], USUAL, kind=lambda a: a.preferred[:4])
    assert weights[:10] == pytest.approx(found["film"][GENUINE])
    assert weights[10:] == pytest.approx(found["song"][GENUINE])


@pytest.mark.parametrize("mix", [(0.6, 0.2, 0.2), (0.3, 0.5, 0.2), (0.4, 0.1, 0.5)])
def test_the_classes_of_a_known_population_are_recovered_without_a_model(mix):
    classes, people, _ = population(0, mix=mix)
    found = fit_population(people)
    posteriors = np.stack([class_posteriors(mine, found)[None] for mine in people])
    for kind in (GENUINE, NON_ATTITUDE, CONSTRUCTED):
        assert roc_auc_score(classes == kind, posteriors[:, kind]) > 0.85
    np.testing.assert_allclose(found.shares_3, np.bincount(classes, minlength=3) / len(classes), atol=0.13)
    assert found.pull_F == pytest.approx([2, 0], abs=0.4)


def test_a_model_that_knows_the_margins_finds_them_better_than_one_that_does_not():
    classes, people, margins = population(1, again=0)
    doubts = [np.full(len(mine), 0.5) for mine in people]
    blind = fit_population(people)
    seeing = fit_population(people, margins=margins, spreads=doubts, rounds=15)
    by_answers = [answer_weights(mine, blind)[0] for mine in people]
    by_model = [answer_weights(*rest)[0] for rest in zip(people, [seeing] * len(people), margins, doubts, strict=True)]
    assert roc_auc_score(classes == GENUINE, by_model) > 0.97 > roc_auc_score(classes == GENUINE, by_answers) + 0.05
    np.testing.assert_allclose(seeing.shares_3, np.bincount(classes, minlength=3) / len(classes), atol=0.08)


def test_where_everyone_is_genuine_everyone_is_believed():
    _, people, margins = population(2, mix=(1, 0, 0))
    doubts = [np.full(len(mine), 0.5) for mine in people]
    found = fit_population(people, margins=margins, spreads=doubts, rounds=15)
    weights = [answer_weights(*one) for one in zip(people, [found] * len(people), margins, doubts, strict=True)]
    assert np.mean(np.concatenate(weights)) > 0.97


def test_a_few_people_hardly_move_the_population():
    torn = [answer("a", "b"), answer("b", "a")]
    found = fit_population([torn])
    assert np.abs(found.shares_3 - USUAL.shares_3).max() < 0.1
    np.testing.assert_allclose(found.pull_F, USUAL.pull_F, atol=1e-6)


def test_fitting_repeats_exactly_and_starts_where_it_is_told():
    _, people, _ = population(3, people=30)
    one, other = (fit_population(people).to_array() for _ in range(2))
    np.testing.assert_array_equal(one, other)
    again = fit_population(people, start=Population.from_array(one))
    assert math.isfinite(again.spread)


def test_nine_numbers_hold_a_population():
    numbers = USUAL.to_array()
    assert (numbers.shape, numbers.dtype) == ((9,), np.float32)
    np.testing.assert_allclose(Population.from_array(numbers).to_array(), numbers, rtol=1e-6)


@pytest.mark.parametrize("numbers", [np.zeros(8), np.full(9, np.nan), np.full(9, -1.0)])
def test_other_numbers_are_no_population(numbers):
    with pytest.raises(DataError, match="reliability"):
        Population.from_array(numbers)


names = st.integers(0, 5).map(str)
some = st.builds(
    answer,
    names,
    names,
    first=st.one_of(st.none(), names),
    wording=st.sampled_from(["rather", "skip", "", 3, ["skip"]]),
    outcome=st.sampled_from(["preferred", "both", "neither", "skip"]),
)


@given(st.lists(some, max_size=12), st.integers(0, 2**32 - 1), st.booleans())
@example([answer("0", "1" if n == 1 else "0") for n in range(5)], 1487, False)  # a margin far out
def test_weights_are_probabilities_and_names_do_not_matter(answers, seed, joint):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(len(answers), 3)) * 10.0 ** rng.uniform(-3, 3)
    margins, spreads = rng.normal(size=len(answers)) * 10, root @ root.T if joint else np.abs(root[:, 0])
    weights = answer_weights(answers, USUAL, margins, spreads)
    assert weights.shape == (len(answers),)
    assert ((weights >= 0) & (weights <= 1)).all()
    turned = [
        answer(
            *(f"{9 - int(name)}" for name in (a.preferred, a.over)),
            first=f"{9 - int(a.condition['shown_first'])}" if a.condition else None,
            wording=a.condition.get("wording", ""),
            outcome=a.outcome,
        )
        for a in answers
    ]
    np.testing.assert_allclose(answer_weights(turned, USUAL, margins, spreads), weights, atol=1e-6)


@given(st.lists(some, max_size=12), st.randoms())
def test_without_a_model_the_order_of_answers_does_not_matter(answers, random):
    order = list(range(len(answers)))
    random.shuffle(order)
    weights = answer_weights(answers, USUAL)
    np.testing.assert_allclose(answer_weights([answers[n] for n in order], USUAL), weights[order], atol=1e-9)
