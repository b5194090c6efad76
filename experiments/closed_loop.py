"""`feedback-loop --ranker learner`: the same loop with the service's own parts, deployed as deploy/synthetic.toml says.

In each round one version serves whoever comes (`ranker.pipeline`: profile, calibrated rerank, guard, exploration),
people look, click, like and dismiss (`ranker.simulation.Population`), the events go through `ranker.join` into
`ranker.learner`, which learns each label once, and what it then has is the next round's version. Nothing is known
before the first slate but the catalogue. Arms differ in `biased`, without which an objective has no position tower, and
in `serving.swap` and `exploration.slot`. Items may be shown again, as songs are; with `--unseen` what she acted on is
not, as `/v1/recommend` does it, and more people come less often, or they would run out of 300 items.

Axes: N items, P places, S slates of a round.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from msgspec import structs

from experiments import report
from experiments.feedback_loop import JUDGED, PLACES, SLOT, SWAP, UNIFORM, Found, Stage, World
from experiments.report import Result, Row
from ranker import config as declared
from ranker.config import Config
from ranker.events import Event, Ranking, Shown
from ranker.evidence import EMPTY
from ranker.inference import Inference
from ranker.join import Example, Joiner
from ranker.learner import Learner
from ranker.pipeline import Pipeline, Request

#: the arms: is there a tower, is there exploration
ARMS = {
    "no-tower": (False, False),
    "exploration": (False, True),
    "tower": (True, False),
    "tower-exploration": (True, True),
}
PAIRS = (
    ("tower", "no-tower"),
    ("tower-exploration", "exploration"),
    ("tower-exploration", "no-tower"),
    ("exploration", "no-tower"),
    ("tower-exploration", "tower"),
)
METRICS = (*JUDGED, "minority_utility")
WORLD = World(users=400, slates=1000)
UNSEEN = World(users=1500, slates=1000, again=False)
#: labelled rows of a learning step; ms between two visits
ROWS, APART_MS = 512, 6000
START_MS = 1_700_000_000_000
DEPLOYED = Path(__file__).resolve().parent.parent / "deploy" / "synthetic.toml"


def configured(arm: str, seed: int) -> Config:
    """The deployment of an arm."""
    tower, explores = ARMS[arm]
    config = declared.load(DEPLOYED)
    return structs.replace(
        config,
        objectives=tuple(structs.replace(one, biased=tower) for one in config.objectives),
        serving=structs.replace(config.serving, slate=PLACES, swap=SWAP if explores else 0.0),
        exploration=structs.replace(config.exploration, slot=SLOT if explores else 0.0, uniform=UNIFORM),
        learning=structs.replace(config.learning, seed=seed),
    )


class Service(Stage):
    """One arm of one seed; all arms of a seed meet the same people in the same order."""

    def __init__(self, arm: str, seed: int, world: World = WORLD) -> None:
        super().__init__(seed, world)
        self.config = configured(arm, seed)
        self.learner, self.joiner = Learner(self.config), Joiner(self.config, opening=True, pairs=True)
        self._random, self._now, self._visits = np.random.default_rng(seed + 1000), START_MS, 0
        self._waiting: list[Example] = []
        self._items = {item: n for n, item in enumerate(self.people.items)}
        self._users = {user: n for n, user in enumerate(self.people.users)}
        for event in self.people.events(start=START_MS):
            self._take(event)

    def round(self, first: bool = False) -> dict[str, float]:
        """Serve a round to random people, learn from what they did, and say what was shown."""
        inference = Inference(self.config, self.learner.weights())
        inference.attach(self.joiner.catalogue)
        pipeline = Pipeline(self.config, inference, self.joiner.catalogue, "served")
        shown_SP = np.empty((self.world.slates, PLACES), np.int64)
        user_S = np.empty(self.world.slates, np.int64)
        for slate in range(self.world.slates):
            self._visits, self._now = self._visits + 1, self._now + APART_MS
            ask, name = self.people.ask(), f"r{self._visits}"
            shown = self._first() if first else self._served(pipeline, ask.user)
            self._take(Ranking(id=name, timestamp=self._now, user=ask.user, items=shown))
            ids = [one.id for one in shown]
            for event in self.people.react(ask, ids, ranking=name, now=self._now).events:
                self._take(event)
            shown_SP[slate], user_S[slate] = [self._items[one] for one in ids], self._users[ask.user]
        self._learn()
        return self.measured(shown_SP, user_S)

    def curve(self) -> list[float]:
        """How likely a place is acted on by the tower, first objective, against the first place."""
        found: list[float] = Inference(self.config, self.learner.weights()).examination(PLACES)[:, 0].tolist()
        return found

    def _first(self) -> list[Shown]:
        fair_N = self._random.permutation(self.world.items)
        rows = self.editor_P if self.world.start == "editor" else fair_N[:PLACES]
        return [Shown(self.people.items[row]) for row in rows.tolist()]

    def _served(self, pipeline: Pipeline, user: str) -> list[Shown]:
        request = Request(user=user, now=self._now, seed=self._visits, exclude_seen=not self.world.again)
        slate = pipeline.rank(request, self.joiner.evidence.get(user, EMPTY))
        return [Shown(one.id, propensity=one.propensity, probabilities=list(one.expected)) for one in slate.items]

    def _take(self, event: Event) -> None:
        self._waiting += self.joiner.push(event)

    def _learn(self) -> None:
        """All that is known by now, in its order, a step each time ROWS rows became known."""
        part: list[Example] = []
        rows = 0
        for example in self._waiting:
            part.append(example)
            rows += 0 if example.opening or example.closing else len(example.items)
            if rows >= ROWS:
                self.learner.learn(part, self.joiner.catalogue)
                part, rows = [], 0
        self.learner.learn(part, self.joiner.catalogue)
        self._waiting = []


def one(seed: int, *, world: World) -> Found:
    """One seed of all arms: every metric by round, that of the first log before them, and the curves learned."""
    torch.set_num_threads(1)
    found: Found = {}
    for arm in ARMS:
        service = Service(arm, seed, world)
        for number in range(world.rounds + 1):
            for metric, value in service.round(first=number == 0).items():
                found.setdefault((arm, metric), []).append(value)
        if ARMS[arm][0]:
            for place, value in enumerate(service.curve()):
                found[arm, f"examination of place {place + 1}"] = [value]
    for metric, value in service.oracle().items():
        found["oracle", metric] = [value]
    return found


def run(*, seeds: Sequence[int] = range(6), world: World = WORLD) -> Result:
    """All seeds."""
    return result(report.each_seed(partial(one, world=world), seeds), seeds, world)


def result(done: Sequence[Found], seeds: Sequence[int], world: World) -> Result:
    """The rows of the last round carry the metric's name, those before its name and the round.

    "over" is paired by seed: an arm's last round, or the mean of all its own, against another's; or its last round
    against its first own ranking.
    """
    rows: list[Row] = []
    for arm, metric in done[0]:
        rounds = np.array([found[arm, metric] for found in done])
        rows.append(report.over_seeds(arm, metric, rounds[:, -1]))
        if arm != "oracle" and metric in METRICS:
            rows += [
                report.over_seeds(arm, f"{metric}, round {number}", rounds[:, number]) for number in range(world.rounds)
            ]
    told: list[Row] = []
    for metric in METRICS:
        for arm, less in PAIRS:
            change = [found[arm, metric][-1] - found[less, metric][-1] for found in done]
            told.append(report.over_seeds(arm, f"{metric} over {less}", change))
            change = [fmean(found[arm, metric][1:]) - fmean(found[less, metric][1:]) for found in done]
            told.append(report.over_seeds(arm, f"{metric} over {less}, all own rounds", change))
        for arm in ARMS:
            change = [found[arm, metric][-1] - found[arm, metric][1] for found in done]
            told.append(report.over_seeds(arm, f"{metric}, last over first", change))
    by = {(row.arm, row.metric): row for row in told}
    degenerates = by["no-tower", "gini, last over first"].low > 0 or by["no-tower", "utility, last over first"].high < 0
    better = all(
        by[arm, f"utility over {less}"].low > 0 and by[arm, f"minority_utility over {less}"].low > 0
        for arm, less in PAIRS[:2]
    )
    return Result(
        name="feedback-loop",
        data=f"{world.users} simulated people, {world.items} items, {world.rounds} rounds of {world.slates} slates, "
        "plurank's own learner and pipeline",
        seeds=tuple(seeds),
        rows=(*rows, *told),
        criterion="without the tower, concentration rises or utility falls from the first own ranking to the last; and "
        "in the last round true utility, of all and of the minority, is higher with the tower than without, with "
        "exploration and without it",
        holds=degenerates and better,
    )
