import numpy as np
import pytest

from experiments import encoder, report, taste
from experiments.encoder import Recipe
from experiments.grades import Grades


def two_sided(users: int = 60, items: int = 80, graded: int = 60) -> Grades:
    """People who like one end of one axis or the other."""
    rng = np.random.default_rng(0)
    axis_I = rng.normal(size=items)
    rows = [rng.choice(items, graded, replace=False) for _ in range(users)]
    values = [axis_I[mine] * (1 if user % 2 else -1) + 0.3 * rng.normal(size=graded) for user, mine in enumerate(rows)]
    return Grades("two sides", [str(item) for item in range(items)], rows, values)


RECIPE = Recipe(dimensions=3, hidden=16, steps=40, users=48, rate=0.03, kl=1e-4)


@pytest.fixture(scope="module")
def found() -> tuple[taste.Hits, taste.Facts]:
    return taste.measured(two_sided(), 0, RECIPE, width=2)


def test_context_history_and_the_exact_posterior_beat_pooled_where_people_disagree(
    found: tuple[taste.Hits, taste.Facts],
) -> None:
    hits, facts = found
    mean = {arm: values.mean() for arm, values in hits.items()}
    assert mean["pooled"] < 0.6
    assert min(mean["context-8"], mean["laplace-8"], mean["history"], mean["product"]) > 0.75
    assert mean["context-20"] > mean["context-2"]
    assert facts["history", "kl"] > 0
    assert 0 < facts["history", "active_units"] <= 1
    assert len({len(values) for values in hits.values()}) == 1


def test_eight_pairs_tell_which_of_two_groups_an_unseen_person_belongs_to() -> None:
    hits = taste.of_groups(2, 0, steps=60, users=150)
    assert hits["context-0"].mean() < 0.85
    assert hits["context-8"].mean() > 0.9


def test_unseen_people_of_the_groups_grade_unseen_things() -> None:
    people = taste.groups(4, 0, users=30)
    seen = {tuple(row) for row in people.graded.features_NF.tolist()}
    assert len(people.test) == 10
    assert not any(tuple(row) in seen for one in people.test for row in one.items.tolist())


def test_a_persons_parts_do_not_overlap() -> None:
    features = np.arange(60, dtype=np.float32)[:, None]
    one = taste.person(features, np.arange(60.0), 0.0, np.random.default_rng(0))
    held, asked, lived = (set(part.ravel().tolist()) for part in (one.held, one.pairs, one.items))
    assert len(held | asked | lived) == len(held) + len(asked) + len(lived)
    assert len(one.pairs) == 20
    assert len(one.items) == 21
    assert (one.held[:, 0] > one.held[:, 1]).all()


def test_the_result_names_every_arm_and_judges_by_intervals(found: tuple[taste.Hits, taste.Facts]) -> None:
    groups = {count: {f"context-{shown}": np.ones(3) for shown in (0, 2, 8, 20)} for count in (2, 4)}
    result = taste.result(two_sided(), [taste.Found(found[0], groups, found[1])], (0,))
    arms = {row.arm for row in result.rows if row.metric == "accuracy"}
    assert arms >= {"pooled", "context-2", "context-8", "context-20", "laplace-8", "laplace-20", "history", "product"}
    assert arms >= {"history-8", "product-long", "film-8", "swap-guided-8"}
    assert result.row("history", "active_units").n == 1
    assert report.to_json(result)


def test_the_learned_prior_is_what_no_evidence_leaves() -> None:
    people = taste.cut(two_sided(), 0, width=2)
    model = encoder.train(people.graded, Recipe(dimensions=3, hidden=16, steps=2))
    prior = taste.learned_prior(model)
    assert all(
        np.allclose(part, 0, atol=1e-4) for part in taste.history_factors(model, [one_without_history(people)])[0]
    )
    assert (prior.precision > 0).all()


def one_without_history(people: taste.Cut) -> taste.Person:
    one = people.test[0]
    return taste.Person(one.held, one.pairs, one.items[:0], one.values[:0])
