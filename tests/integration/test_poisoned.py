"""The gate and a learner that is really poisoned: one group's labels are the wrong way round while it learns.

The loop is the trainer's, in memory; what is shown is what an earlier version ranked, and the people are simulated.
Each learner starts from that version and sees the same log; what differs is what it learns from it.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from ranker import config
from ranker.catalogue import Catalogue
from ranker.events import Event, Ranking, Shown
from ranker.gate import Verdict
from ranker.golden import Golden, made_up
from ranker.join import Example, Joiner
from ranker.learner import Learner, StepReport, beside, train
from ranker.registry import Registry
from ranker.simulation import Population, Tastes
from streaming.log import Record
from streaming.trainer import Pace, Trainer
from tests.streaming.test_trainer import Log, Ticks, publish

CONFIG = config.parse(
    {
        "objectives": [{"name": "click", "event": "click", "wait": 10, "biased": True}],
        "fields": {"item": {"genres": "categories"}},
        "interests": "genres",
        "groups": ["taste_group"],
        "scale": "tiny",
        "learning": {"publish": 1000, "minimum_group": 10},
    }
)
POISONED, BEFORE, AFTER, ITEMS, TOGETHER = "taste_group=g1", 30, 500, 10, 10


Served = tuple["World", Registry, list[Event]]


class Idle(Learner):
    """A copy of what is served: it learns nothing."""

    def learn(self, examples: Sequence[Example], catalogue: Catalogue) -> StepReport:
        return replace(super().learn([], catalogue), rows=1)


class Poisoned(Learner):
    """Takes what one group clicked for what it did not, and the other way round."""

    def __init__(self, group: set[str]) -> None:
        super().__init__(CONFIG)
        self.group = group

    def learn(self, examples: Sequence[Example], catalogue: Catalogue) -> StepReport:
        flipped = [replace(e, labels_NT=1 - e.labels_NT) if e.user in self.group else e for e in examples]
        return super().learn(flipped, catalogue)


class World:
    """People, and slates of ten items each that a version ranked for them."""

    def __init__(self, seed: int) -> None:
        tastes = Tastes(users=80, items=60, shares=(0.6, 0.4), cosine=-0.5, sharpness=4.0, seed=seed)
        self.people = Population(tastes)
        self.generator, self.now = np.random.default_rng([seed, 1]), 10**6
        self.before: list[Event] = [*self.people.events(start=1)]
        self.group = {u for u, g in zip(self.people.users, self.people.group_U, strict=True) if g == 1}

    def slates(self, count: int, server: Learner | None, joiner: Joiner, version: str | None) -> list[Event]:
        """So many visits, a few at a time; without a server in random order."""
        found: list[Event] = []
        for _ in range(count // TOGETHER):
            asks, slates = [self.people.ask() for _ in range(TOGETHER)], list[Ranking]()
            for ask in asks:
                self.now += 1000
                items = [Shown(str(i)) for i in self.generator.choice(self.people.items, ITEMS, replace=False)]
                slates.append(Ranking(id=f"r{self.now}", timestamp=self.now, user=ask.user, items=items))
            if server is not None:
                slates = ranked(slates, server, joiner, version)
            for ask, slate in zip(asks, slates, strict=True):
                shown = [one.id for one in slate.items]
                acts = self.people.react(ask, shown, ranking=slate.id, now=int(slate.timestamp)).events
                found += [slate, *acts]
                for act in acts if server is not None else ():
                    joiner.push(act)
        return found


def ranked(slates: Sequence[Ranking], server: Learner, joiner: Joiner, version: str | None) -> list[Ranking]:
    """The slates as this version orders them, with what it predicts at these places."""
    asked = [example for slate in slates for example in joiner.push(slate) if example.opening]
    placed = [
        replace(example, items=tuple(example.items[n] for n in np.argsort(-seen.utility_N)))
        for example, seen in zip(asked, server.foresee(asked, joiner.catalogue), strict=True)
    ]
    found = []
    for slate, example, seen in zip(slates, placed, server.foresee(placed, joiner.catalogue), strict=True):
        shown = [
            Shown(item, probabilities=chances_T.tolist(), score=float(utility))
            for item, chances_T, utility in zip(example.items, seen.chances_NT, seen.utility_N, strict=True)
        ]
        found.append(structs.replace(slate, items=shown, version=version))
    return found


class Portions(Log):
    """Read in larger portions."""

    def poll(self, max_records: int = 50, timeout: float = 0) -> list[Record]:
        return [record for _ in range(2) for record in super(Portions, self).poll(max_records, timeout)]


@pytest.fixture(scope="module", params=[0, 1])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A version that learned a little is served; the log holds the slates it ranked, and what people did."""
    made, registry = World(request.param), Registry(tmp_path_factory.mktemp("registry"))
    server, joiner = Learner(CONFIG), Joiner(CONFIG, opening=True, pairs=True)
    past = [*made.before, *made.slates(BEFORE, None, joiner, None)]
    for _ in train(past, server, joiner, rows=256):
        pass
    weights, catalogue = server.weights(), joiner.catalogue
    golden = Golden.record(CONFIG, weights, catalogue, made_up(CONFIG, catalogue, made.now))
    version = registry.save(weights, CONFIG, metrics={}, golden=golden, parent=None, state=beside(server.state()))
    registry.promote(version, Verdict("pass"), who="test")
    return made, registry, [*past, *made.slates(AFTER, server, joiner, version)]


def verdict(world: Served, learner: Learner, folder: Path) -> Verdict:
    """What the gate says of this learner after the log."""
    shutil.copytree(world[1].root, folder / "registry")
    log, clock = Portions(world[2]), Ticks()
    one = Trainer(
        CONFIG, log, Registry(folder / "registry"), folder / "state", learner=learner, clock=clock, pace=Pace(gather=0)
    )
    found = publish(one, log, clock).verdict
    assert found is not None
    return found


def test_labels_of_one_group_turned_round_are_refused_and_the_group_is_named(world: Served, tmp_path: Path) -> None:
    found = verdict(world, Poisoned(world[0].group), tmp_path)
    assert found.decision == "refuse"
    assert any(POISONED in reason for reason in found.reasons), found.reasons


def test_more_honest_data_passes(world: Served, tmp_path: Path) -> None:
    found = verdict(world, Learner(CONFIG), tmp_path)
    assert found.decision == "pass", found.reasons


def test_an_equal_copy_is_not_refused(world: Served, tmp_path: Path) -> None:
    found = verdict(world, Idle(CONFIG), tmp_path)
    assert found.decision != "refuse", found.reasons
    assert abs(found.measures["log_loss:overall:change"]) < 1e-3
