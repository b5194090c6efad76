import numpy as np
import pytest
from msgspec.structs import replace

from experiments import summary
from experiments.grades import Grades
from ranker.catalogue import Catalogue, Item
from ranker.config import parse
from ranker.evidence import Words
from ranker.taste import Factor
from ranker.vocabulary import Vocabulary

GENRES = ("Comedy", "Drama", "Horror", "Jazz")


def world(users: int = 120, items: int = 60, seed: int = 0) -> summary.World:
    """People who like two of four genres and grade accordingly."""
    rng = np.random.default_rng(seed)
    config = parse({"objectives": [{"name": "rate", "event": "rate"}], "fields": {"item": {"genre": "category"}}})
    kinds = rng.integers(0, len(GENRES), items)
    catalogue = Catalogue(config)
    for place, kind in enumerate(kinds):
        catalogue.put(Item(f"i{place}", {"genre": GENRES[kind]}))
    rows, values = [], []
    for _ in range(users):
        liked = rng.choice(len(GENRES), 2, replace=False)
        mine = rng.choice(items, 30, replace=False)
        rows.append(mine)
        values.append(np.isin(kinds[mine], liked) * 2.0 + rng.integers(0, 2, 30))
    vocabulary = Vocabulary(config, catalogue)
    vocabulary.update()
    return summary.World(
        grades=Grades("made", [f"i{place}" for place in range(items)], rows, values), vocabulary=vocabulary
    )


@pytest.fixture(scope="module")
def found() -> summary.Found:
    return summary.one(world(), seed=0, k=3, rounds=10, anew=2)


def test_where_genres_are_all_a_learned_summary_finds_nearly_what_the_posterior_does(found):
    means = {arm: float(right.mean()) for arm, right in found.accuracy.items()}
    assert set(means) == set(summary.ARMS)
    assert means["learned"] > means["none"] + 0.1
    assert means["learned"] > means["posterior"] - 0.03


def test_edits_move_what_they_name(found):
    assert found.edits["edit_direction"].mean() >= 0.95
    assert len(found.edits["added"]) + len(found.edits["struck"]) == len(found.edits["edit_direction"])


def test_an_example_reads_as_sentences(found):
    assert found.example
    assert all(sentence.startswith("You ") and sentence.endswith(".") for sentence in found.example)


def test_a_seed_repeats_itself():
    small = world(60)
    first, second = (summary.one(small, seed=1, k=2, rounds=1, anew=1) for _ in range(2))
    for arm in summary.ARMS:
        np.testing.assert_array_equal(first.accuracy[arm], second.accuracy[arm])


def test_gains_are_over_persons_where_there_is_one_seed_and_over_seeds_otherwise():
    def one(right: list[float]) -> summary.Found:
        return summary.Found(accuracy={"none": np.array([0.5, 0.5]), "learned": np.array(right)}, edits={}, example=[])

    assert summary.gain([one([0.6, 0.8])], "learned", "none").n == 2
    row = summary.gain([one([0.6, 0.8]), one([0.7, 0.7]), one([0.6, 0.6])], "learned", "none")
    assert (row.n, row.mean) == (3, pytest.approx((0.2 + 0.2 + 0.1) / 3))


def test_history_and_held_out_comparisons_share_no_item():
    small = world(60)
    prior = Factor(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    base = summary.Base(np.random.default_rng(0).normal(size=(60, 2)), np.zeros(60), prior)
    space = summary.Space.of(small.tags.directions(base.phi_IK), prior)
    model = summary.Model(world=small, base=base, space=space, temper=0.3)
    one = summary.person(model, 0, np.random.default_rng(0))
    seen = {act.item for act in one.evidence.history}
    assert len(seen) == 15
    rest = sorted(set(small.grades.items[0].tolist()) - {int(item[1:]) for item in seen})
    apart = base.phi_IK[rest][:, None] - base.phi_IK[rest][None]
    known = {tuple(row) for row in apart.reshape(-1, 2).round(9)}
    assert all(tuple(row) in known for row in one.lesson.differences_PK.round(9))


def test_nothing_of_a_masked_history_is_read():
    small = world(60)
    prior = Factor(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    base = summary.Base(np.random.default_rng(0).normal(size=(60, 2)), np.zeros(60), prior)
    model = summary.Model(
        world=small, base=base, space=summary.Space.of(small.tags.directions(base.phi_IK), prior), temper=1.0
    )
    one = summary.person(model, 0, np.random.default_rng(0))
    struck = replace(one.evidence, words=Words(struck=tuple(f"genre={genre}" for genre in GENRES)))
    assert not summary.read(model, summary.summary.masked(struck, small.vocabulary)).precision.any()
