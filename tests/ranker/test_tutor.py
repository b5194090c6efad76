"""Lessons in summing up: they move nothing but the summary, go on bit for bit, and raise the reward."""

import numpy as np
import torch

from ranker.batch import collate
from ranker.catalogue import Catalogue
from ranker.config import parse
from ranker.events import Field, Interaction, Item
from ranker.join import Joiner
from ranker.learner import Learner, train
from ranker.tutor import EVERY

CONFIG = parse(
    {
        "objectives": [{"name": "like", "event": "rate", "graded": {"event": "rate", "at_least": 4}}],
        "fields": {"item": {"genre": "category"}},
        "interests": "genre",
        "scale": "tiny",
    }
)
GENRES = ("noir", "farce", "opera", "western")


def log(people: int = 40, grades: int = 24, seed: int = 0) -> list[Item | Interaction]:
    """Everybody loves one genre and is lukewarm about the rest."""
    rng = np.random.default_rng(seed)
    found: list[Item | Interaction] = [
        Item(id=f"i{n}", timestamp=0, item=f"i{n}", fields=[Field("genre", GENRES[n % 4])]) for n in range(80)
    ]
    for number in range(people * grades):
        user, item = number % people, int(rng.integers(80))
        value = float(rng.integers(4, 6) if item % 4 == user % 4 else rng.integers(1, 4))
        found.append(
            Interaction(
                id=f"e{number}", timestamp=1000 + number, user=f"u{user}", item=f"i{item}", type="rate", value=value
            )
        )
    return found


def taught(learner: Learner, passes: int = 1, rows: int = 24) -> None:
    for _ in range(passes):
        for _ in train(log(), learner, Joiner(CONFIG, pairs=True), rows=rows):
            pass


def test_lessons_on_the_same_people_raise_what_their_summaries_foretell_and_move_nothing_else() -> None:
    learner, joiner = Learner(CONFIG), Joiner(CONFIG, pairs=True)
    found = [example for event in log() for example in joiner.push(event) if example.pairs][-60:]
    for _ in range(60):
        learner.learn(found, joiner.catalogue)
    others = {name: t.clone() for name, t in learner.weights().items() if not name.startswith("summary.")}
    learner.model.eval()
    batch = collate(found, joiner.catalogue, learner.encoder)
    with torch.no_grad():
        out = learner.model(batch)
    gains = []
    for _ in range(30):
        learner.tutor.teach(found, batch, out, joiner.catalogue, learner.encoder)
        gains.append(learner.tutor.gain)
    assert np.mean(gains[-10:]) > np.mean(gains[:10])
    assert all(torch.equal(learner.weights()[name], tensor) for name, tensor in others.items())


def test_a_learner_goes_on_with_its_lessons_bit_for_bit() -> None:
    one = Learner(CONFIG)
    taught(one)
    assert int(one.state()["kept.steps"]) >= EVERY
    other = Learner(CONFIG)
    other.load(one.state())
    taught(one)
    taught(other)
    for name, tensor in one.state().items():
        assert torch.equal(tensor, other.state()[name]), name


def test_without_tags_nothing_is_taught() -> None:
    bare = parse({"objectives": [{"name": "like", "event": "rate", "threshold": 4}], "scale": "tiny"})
    learner = Learner(bare)
    before = {name: tensor.clone() for name, tensor in learner.model.summary.state_dict().items()}
    for _ in train(log(), learner, Joiner(bare, pairs=True), rows=24):
        pass
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.model.summary.state_dict().items())
    assert learner.learn([], Catalogue(bare)).rows == 0
