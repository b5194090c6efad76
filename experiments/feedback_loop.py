"""A ranker that learns from the clicks on its own slates, with and without the position tower and exploration.

Round 0 is an editor's list, one for all and popular with the majority; or, in the rows marked "fair", random slates. In
each round the ranker orders all items for whoever comes, people click what they look at (examination falls with the
place) and like, and the ranker goes on learning from all clicks so far. The ranker is a small stand-in for the
service's: logit = b_i + (w + w_u) . x_i with known item features x and Gaussian priors, beside
`ranker.bias.BiasTower`; exploration is the service's own `ranker.exploration.Explorer`. With `--ranker learner` the
loop is closed with the service's own learner and request path instead (`experiments.closed_loop`).

Axes: U users, N items, K features, P places, R rows shown, S slates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from experiments import report
from experiments.report import Result, Row
from ranker.bias import BiasTower
from ranker.config import Exploration
from ranker.errors import RequestError
from ranker.exploration import Explorer
from ranker.metrics import gini
from ranker.simulation import Population, Tastes, examination
from ranker.taste import Taste
from services.cli import count

Floats = NDArray[np.float64]
SUMMARY = "serve, click, learn from one's own clicks: exposure, utility and minority interests by round"
ARMS = ("no-tower", "tower", "tower-exploration")
#: how the tower-exploration arm explores: more than the service's defaults, for it has hundreds of slates, not millions
SLOT, UNIFORM, SWAP = 0.3, 0.5, 0.2
PLACES = 10
#: what the rows of each start are marked with
FAIR = " (fair)"
MARKS: dict[str, Literal["editor", "fair"]] = {"": "editor", FAIR: "fair"}
JUDGED = ("gini", "utility", "minority_exposure")
#: spreads of an item's own logit, of what all want and of what one wants, and the fit
OWN, COMMON, PERSONAL, STEPS, RATE = 1.0, 1.0, 1.0, 100, 0.05


@dataclass(frozen=True, kw_only=True)
class World:
    """How large the loop is. Examination falls as (1 + place) ** -decay.

    Attributes:
        again: what she acted on may be shown to her again; the stand-in always does.
    """

    users: int = 600
    items: int = 300
    categories: int = 24
    rounds: int = 10
    slates: int = 1800
    decay: float = 1.5
    minority: float = 0.2
    start: Literal["editor", "fair"] = "editor"
    again: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """What the ranker believes: utilities of everybody for everything, what each wants, and how sure that is."""

    utility_UN: Floats
    wants_UK: Floats
    precision_UK: Floats


class Ranker:
    """The stand-in: logit = middle + b_i + (w + w_u) . x_i, and the product's tower, which is left out of ranking."""

    def __init__(self, features_NK: Floats, *, users: int, tower: bool) -> None:
        items, dimensions = features_NK.shape
        self._x_NK = torch.from_numpy(features_NK).float()
        self._bias = BiasTower([tower], rows=1, dropout=0.0).eval()
        self._middle, self._own_N = torch.zeros(1, requires_grad=True), torch.zeros(items, requires_grad=True)
        self._common_K = torch.zeros(dimensions, requires_grad=True)
        self._personal_UK = torch.zeros(users, dimensions, requires_grad=True)

    def fit(
        self, user_R: NDArray[np.int64], item_R: NDArray[np.int64], place_R: NDArray[np.int64],
        click_R: NDArray[np.bool_],
    ) -> Fit:  # fmt: skip
        """The most likely weights given these rows, from where the last fit ended.

        The precision of a person's wants is that of a Laplace approximation, its diagonal.
        """
        items, users = len(self._own_N), len(self._personal_UK)
        cell_R = torch.from_numpy(user_R * items + item_R)
        places_R, clicks_R = torch.from_numpy(place_R), torch.from_numpy(click_R).float()
        weights = [self._own_N, self._common_K, self._personal_UK]
        adam = torch.optim.Adam([*weights, self._middle, self._bias.place_PT], lr=RATE)

        def logits() -> tuple[torch.Tensor, torch.Tensor]:
            utility_UN = self._own_N + (self._common_K + self._personal_UK) @ self._x_NK.T
            tower_P = self._bias(torch.arange(PLACES), torch.zeros(PLACES, 0, dtype=torch.int64))[:, 0]
            return utility_UN, self._middle + utility_UN.flatten()[cell_R] + tower_P[places_R]

        for _ in range(STEPS):
            loss = functional.binary_cross_entropy_with_logits(logits()[1], clicks_R, reduction="sum")
            priors = zip(weights, (OWN, COMMON, PERSONAL), strict=True)
            loss = loss + sum((part**2).sum() / (2 * spread**2) for part, spread in priors)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
        with torch.no_grad():
            utility_UN, logits_R = logits()
            chance_R = torch.sigmoid(logits_R)
            told_UN = torch.zeros(users * items).index_add(0, cell_R, chance_R * (1 - chance_R)).view(users, items)
            precision_UK = told_UN @ self._x_NK**2 + PERSONAL**-2
            wants_UK = self._common_K + self._personal_UK
        return Fit(
            utility_UN=utility_UN.double().numpy(),
            wants_UK=wants_UK.double().numpy(),
            precision_UK=precision_UK.double().numpy(),
        )


class Stage:
    """People, an editor's list and what is measured: what all arms of a seed meet alike, whoever ranks.

    Attributes:
        look_P: the chance that a place is looked at.
        minor_N: what the minority likes more than the majority does.
    """

    def __init__(self, seed: int, world: World) -> None:
        tastes = Tastes(
            users=world.users,
            items=world.items,
            categories=world.categories,
            shares=(1 - world.minority, world.minority),
            cosine=-0.5,
            sharpness=4.0,
            noise=0.0,
            seed=seed,
        )
        self.world, self.look_P = world, examination(PLACES, decay=world.decay)
        self.people = Population(tastes, curve=self.look_P)
        likes_GN = np.stack([self.people.likes_UN[self.people.group_U == g].mean(0) for g in range(2)])
        self.minor_N = likes_GN[1] > likes_GN[0]
        noise_N = np.random.default_rng(seed + 2000).normal(scale=0.1, size=world.items)
        self.editor_P = np.argsort(-(likes_GN[0] + noise_N))[:PLACES]

    def measured(self, shown_SP: NDArray[np.int64], user_S: NDArray[np.int64]) -> dict[str, float]:
        """Gini of exposure over items, mean true chance to like what is looked at, and what minority people see.

        Exposure is by examination: a place that few look at exposes little.
        """
        look_P = self.look_P / self.look_P.sum()
        exposure_N = np.zeros(self.world.items)
        np.add.at(exposure_N, shown_SP, np.broadcast_to(look_P, shown_SP.shape))
        likes_SP = np.take_along_axis(self.people.likes_UN[user_S], shown_SP, 1)
        own_SP = self.minor_N[shown_SP]
        minority_S = self.people.group_U[user_S] == 1
        return {
            "gini": gini(exposure_N),
            "utility": float((likes_SP @ look_P).mean()),
            "minority_exposure": float((own_SP[minority_S] @ look_P).mean()),
            "minority_utility": float((likes_SP[minority_S] @ look_P).mean()),
        }

    def oracle(self) -> dict[str, float]:
        """The same of slates that hold what each likes best, everybody once."""
        best_UP = np.argsort(-self.people.likes_UN, axis=1)[:, :PLACES]
        return self.measured(best_UP, np.arange(self.world.users))


class Loop(Stage):
    """One arm of one seed; all arms of a seed meet the same people in the same order."""

    def __init__(self, arm: str, seed: int, world: World) -> None:
        super().__init__(seed, world)
        self.arm = arm
        self._visits, self._eyes, self._draws = np.random.default_rng(seed + 1000).spawn(3)
        self._ranker = Ranker(self.people.item_NK, users=world.users, tower=arm != "no-tower")
        self._explorer = Explorer(Exploration(slot=SLOT, uniform=UNIFORM), self.people.item_NK.shape[1])
        self._rows: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]] = []

    def round(self, first: bool = False) -> dict[str, float]:
        """Serve a round to random people, and say what was shown."""
        user_S = self._visits.integers(self.world.users, size=self.world.slates)
        if first and self.world.start == "editor":
            shown_SP = np.tile(self.editor_P, (len(user_S), 1))
        elif first:
            shown_SP = np.argsort(self._visits.random((len(user_S), self.world.items)), axis=1)[:, :PLACES]
        else:
            believed = self._fitted()
            order_UP = np.argsort(-believed.utility_UN, axis=1)[:, :PLACES]
            shown_SP = order_UP[user_S]
            if self.arm == "tower-exploration":
                shown_SP = np.stack([self._explored(believed, user, order_UP[user]) for user in user_S.tolist()])
        looks_SP = self._eyes.random(shown_SP.shape) < self.look_P
        likes_SP = self._eyes.random(shown_SP.shape) < np.take_along_axis(self.people.likes_UN[user_S], shown_SP, 1)
        self._rows.append((user_S, shown_SP, looks_SP & likes_SP))
        return self.measured(shown_SP, user_S)

    def _fitted(self) -> Fit:
        user_S, shown_SP, click_SP = (np.concatenate(part) for part in zip(*self._rows, strict=True))
        return self._ranker.fit(
            np.repeat(user_S, PLACES), shown_SP.ravel(), np.tile(np.arange(PLACES), len(user_S)), click_SP.ravel()
        )

    def _explored(self, believed: Fit, user: int, order_P: NDArray[np.int64]) -> NDArray[np.int64]:
        utility_N = believed.utility_UN[user]
        taste = Taste(
            mean_K=believed.wants_UK[user].astype(np.float32),
            precision_K=believed.precision_UK[user].astype(np.float32),
        )
        return self._explorer.explore(
            order_P,
            SWAP,
            int(self._draws.integers(2**40)),
            user=f"u{user}",
            taste=taste,
            phi_NK=self.people.item_NK,
            reward_N=utility_N,
            utility_N=utility_N,
            window=PLACES,
        ).order_S


Found = dict[tuple[str, str], list[float]]
"""By arm and metric, a value for each round."""


def one(seed: int, *, world: World) -> Found:
    """One seed of all arms from both starts: every metric by round, that of the first log before them."""
    torch.set_num_threads(1)
    found: Found = {}
    for mark, start in MARKS.items():
        world = replace(world, start=start)
        for arm in ARMS:
            loop = Loop(arm, seed, world)
            for number in range(world.rounds + 1):
                for metric, value in loop.round(first=number == 0).items():
                    found.setdefault((arm, metric + mark), []).append(value)
    for metric, value in loop.oracle().items():
        found["oracle", metric] = [value]
    return found


def run(*, seeds: Sequence[int] = range(10), world: World | None = None) -> Result:
    """All seeds."""
    world = world or World()
    return result(report.each_seed(partial(one, world=world), seeds), seeds, world)


def result(done: Sequence[Found], seeds: Sequence[int], world: World) -> Result:
    """The rows of the last round carry the metric's name, those before its name and the round."""

    def paired(arm: str, name: str, one: tuple[str, str, int], other: tuple[str, str, int]) -> Row:
        return report.over_seeds(arm, name, [f[one[:2]][one[2]] - f[other[:2]][other[2]] for f in done])

    rows: list[Row] = []
    for arm, metric in done[0]:
        rounds = np.array([found[arm, metric] for found in done])
        rows.append(report.over_seeds(arm, metric, rounds[:, -1]))
        if arm != "oracle" and metric.removesuffix(FAIR) in JUDGED:
            rows += [
                report.over_seeds(arm, f"{metric}, round {number}", rounds[:, number]) for number in range(world.rounds)
            ]
    told = [
        paired(arm, f"{metric} over {less}", (arm, metric, -1), (less, metric, -1))
        for arm, less in (("tower", "no-tower"), ("tower-exploration", "no-tower"), ("tower-exploration", "tower"))
        for metric in (judged + mark for mark in MARKS for judged in JUDGED)
    ]
    told += [
        paired(arm, f"{metric}{FAIR}, last over first", (arm, metric + FAIR, -1), (arm, metric + FAIR, 1))
        for arm in ARMS
        for metric in JUDGED
    ]
    by = {(row.arm, row.metric): row for row in told}
    freed = all(
        by[arm, "gini over no-tower"].high < 0
        and by[arm, "utility over no-tower"].low > 0
        and by[arm, "minority_exposure over no-tower"].low > 0
        for arm in ARMS[1:]
    )
    degenerates = by["no-tower", f"gini{FAIR}, last over first"].low > 0 and all(
        by[arm, f"utility{FAIR} over no-tower"].low > 0 for arm in ARMS[1:]
    )
    keeps = (
        by["tower-exploration", f"gini{FAIR}, last over first"].low <= 0
        and by["tower-exploration", f"utility{FAIR}, last over first"].high >= 0
        and by["tower-exploration", f"minority_exposure{FAIR}, last over first"].high >= 0
    )
    return Result(
        name="feedback-loop",
        data=f"{world.users} simulated people, {world.items} items, {world.rounds} rounds of {world.slates} slates",
        seeds=tuple(seeds),
        rows=(*rows, *told),
        criterion="after an editor's list, with the tower, and with tower and exploration, the last round's exposure "
        "is less concentrated and its true utility and minority-interest exposure are higher than without. After a "
        "fair log, without the tower concentration rises from the first own ranking to the last and utility ends lower "
        "than with it; with tower and exploration concentration does not rise, and neither of the others falls",
        holds=freed and degenerates and keeps,
    )


def pictured(row: Row) -> bool:
    """Whether the picture shows it: what is judged in the last round, and in three before it."""
    name, _, number = row.metric.partition(", round ")
    return name.removesuffix(FAIR) in JUDGED and number in {"", "1", "3", "6"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    parser = report.arguments("feedback-loop", SUMMARY, seeds=10)
    parser.add_argument(
        "--ranker",
        choices=("small", "learner"),
        default="small",
        help="small: a stand-in, fitted to all clicks (default); learner: the service's own learner and pipeline",
    )
    parser.add_argument("--rounds", type=count, default=World.rounds, metavar="N")
    parser.add_argument("--slates", type=count, metavar="N", help="of a round (default 1800; learner 1000)")
    parser.add_argument("--unseen", action="store_true", help="learner: what she acted on is not shown to her again")
    options = parser.parse_args(arguments)
    seeds = report.seeds_of(options)
    if options.unseen and options.ranker != "learner":
        raise RequestError(
            "--unseen", f"--ranker {options.ranker}", "only the learner's loop has it; add --ranker learner"
        )
    if options.ranker == "learner":
        from experiments import closed_loop

        if options.plot:
            raise RequestError("--plot", "--ranker learner", "the picture shows the small ranker; leave one out")
        world = closed_loop.UNSEEN if options.unseen else closed_loop.WORLD
        world = replace(world, rounds=options.rounds, slates=options.slates or world.slates)
        report.publish(closed_loop.run(seeds=seeds, world=world), options)
    else:
        world = World(rounds=options.rounds, slates=options.slates or World.slates)
        report.publish(run(seeds=seeds, world=world), options, draw=pictured)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
