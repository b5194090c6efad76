"""A ranker that learns from the clicks on its own slates, with and without the position tower and exploration.

Round 0 is an editor's list: everybody is shown the same items, popular with the majority, in one order. Then in each
round the ranker orders all items for whoever comes, people click what they look at (examination falls with the place)
and like, and the ranker is fitted anew to all clicks on its own slates so far. The ranker is a small stand-in for the
service's, which needs far more slates than a loop of rounds on one core has: logit = b_i + (w + w_u) . x_i with known
item features x and Gaussian priors, beside `ranker.bias.BiasTower`; exploration is `ranker.exploration` itself.

Axes: U users, N items, K features, P places, R rows shown, S slates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from experiments import report
from experiments.report import Result, Row
from ranker.bias import BiasTower
from ranker.exploration import explore, odds_of
from ranker.simulation import Population, Tastes, examination

Floats = NDArray[np.float64]
SUMMARY = "serve, click, learn from one's own clicks: exposure, utility and minority interests by round"
ARMS = ("no-tower", "tower", "tower-exploration")
#: how the tower-exploration arm explores: more than the service's defaults, for it has hundreds of slates, not millions
SLOT, UNIFORM, SWAP, DRAWS = 0.3, 0.5, 0.2, 16
PLACES = 10
#: spreads of an item's own logit, of what all want and of what one wants, and the fit
OWN, COMMON, PERSONAL, STEPS, RATE = 1.0, 1.0, 1.0, 150, 0.05


@dataclass(frozen=True, kw_only=True)
class World:
    """How large the loop is. Examination falls as (1 + place) ** -decay."""

    users: int = 150
    items: int = 120
    rounds: int = 8
    slates: int = 400
    decay: float = 1.5
    minority: float = 0.2


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """What the ranker believes: utilities of everybody for everything, and how sure it is of each person's wants."""

    utility_UN: Floats
    spread_UK: Floats


def fit(
    features_NK: Floats, user_R: NDArray[np.int64], item_R: NDArray[np.int64], place_R: NDArray[np.int64],
    click_R: NDArray[np.bool_], *, users: int, tower: bool,
) -> Fit:  # fmt: skip
    """The most likely weights given all rows so far; the tower is left out of what it ranks by.

    The spread of a person's wants is that of a Laplace approximation with a diagonal precision.
    """
    items, dimensions = features_NK.shape
    x_NK = torch.from_numpy(features_NK).float()
    users_R, items_R, places_R = (torch.from_numpy(part) for part in (user_R, item_R, place_R))
    clicks_R, no_codes = torch.from_numpy(click_R).float(), torch.zeros(PLACES, 0, dtype=torch.int64)
    own_N, common_K = torch.zeros(items, requires_grad=True), torch.zeros(dimensions, requires_grad=True)
    personal_UK, middle = torch.zeros(users, dimensions, requires_grad=True), torch.zeros(1, requires_grad=True)
    bias = BiasTower([tower], rows=1, dropout=0.0).eval()
    adam = torch.optim.Adam([own_N, common_K, personal_UK, middle, bias.place_PT], lr=RATE)

    def logits() -> torch.Tensor:
        return middle + own_N[items_R] + ((common_K + personal_UK[users_R]) * x_NK[items_R]).sum(1)

    for _ in range(STEPS):
        tower_R = bias(torch.arange(PLACES), no_codes)[:, 0][places_R]
        loss = functional.binary_cross_entropy_with_logits(logits() + tower_R, clicks_R, reduction="sum")
        priors = ((own_N, OWN), (common_K, COMMON), (personal_UK, PERSONAL))
        loss = loss + sum((part**2).sum() / (2 * spread**2) for part, spread in priors)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    with torch.no_grad():
        chance_R = torch.sigmoid(logits() + bias(torch.arange(PLACES), no_codes)[:, 0][places_R])
        told_RK = (chance_R * (1 - chance_R))[:, None] * x_NK[items_R] ** 2
        precision_UK = torch.zeros(users, dimensions).index_add(0, users_R, told_RK) + PERSONAL**-2
        utility_UN = own_N + (common_K + personal_UK) @ x_NK.T
    return Fit(utility_UN=utility_UN.double().numpy(), spread_UK=precision_UK.double().numpy() ** -0.5)


class Loop:
    """One arm of one seed; all arms of a seed meet the same people in the same order.

    Attributes:
        minor_N: what the minority likes more than the majority does.
    """

    def __init__(self, arm: str, seed: int, world: World) -> None:
        shares = (1 - world.minority, world.minority)
        tastes = Tastes(users=world.users, items=world.items, shares=shares, cosine=-0.5, sharpness=4.0, seed=seed)
        self.arm, self.world, self.people = arm, world, Population(tastes)
        self.look_P = examination(PLACES, decay=world.decay)
        likes_GN = np.stack([self.people.likes_UN[self.people.group_U == g].mean(0) for g in range(2)])
        self.minor_N = likes_GN[1] > likes_GN[0]
        self._visits, self._eyes, self._draws = np.random.default_rng(seed + 1000).spawn(3)
        noise_N = np.random.default_rng(seed + 2000).normal(scale=0.1, size=world.items)
        self._editor_P = np.argsort(-(likes_GN[0] + noise_N))[:PLACES]
        self._rows: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]] = []

    def round(self, editor: bool = False) -> dict[str, float]:
        """Serve a round to random people, and say what was shown."""
        user_S = self._visits.integers(self.world.users, size=self.world.slates)
        if editor:
            shown_SP = np.tile(self._editor_P, (len(user_S), 1))
        else:
            believed = self._fitted()
            order_UN = np.argsort(-believed.utility_UN, axis=1)
            shown_SP = order_UN[user_S, :PLACES]
            if self.arm == "tower-exploration":
                shown_SP = np.stack([self._explored(believed, user, order_UN[user]) for user in user_S])
        looks_SP = self._eyes.random(shown_SP.shape) < self.look_P
        likes_SP = self._eyes.random(shown_SP.shape) < np.take_along_axis(self.people.likes_UN[user_S], shown_SP, 1)
        self._rows.append((user_S, shown_SP, looks_SP & likes_SP))
        return self._measured(shown_SP, user_S)

    def _fitted(self) -> Fit:
        user_S, shown_SP, click_SP = (np.concatenate(part) for part in zip(*self._rows, strict=True))
        return fit(
            self.people.item_NK,
            np.repeat(user_S, PLACES),
            shown_SP.ravel(),
            np.tile(np.arange(PLACES), len(user_S)),
            click_SP.ravel(),
            users=self.world.users,
            tower=self.arm != "no-tower",
        )

    def _explored(self, believed: Fit, user: int, order_N: NDArray[np.int64]) -> NDArray[np.int64]:
        variates_DK = self._draws.normal(size=(DRAWS, believed.spread_UK.shape[1]))
        moved_DN = (variates_DK * believed.spread_UK[user]) @ self.people.item_NK.T
        odds = odds_of((believed.utility_UN[user] + moved_DN)[:, order_N], PLACES, UNIFORM)
        seed = int(self._draws.integers(2**40))
        return explore(order_N[:PLACES], SWAP, seed, share=SLOT, odds=odds, beyond=order_N[PLACES:]).order_S

    def _measured(self, shown_SP: NDArray[np.int64], user_S: NDArray[np.int64]) -> dict[str, float]:
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
        return self._measured(best_UP, np.arange(self.world.users))


def gini(amount_N: Floats) -> float:
    """0 where all have the same, 1 where one has everything (of infinitely many).

    Example:
        >>> gini(np.ones(4)), gini(np.array([0.0, 0.0, 0.0, 1.0]))
        (0.0, 0.75)
    """
    ordered_N = np.sort(amount_N)
    n = len(ordered_N)
    return float(((2 * np.arange(1, n + 1) - n - 1) @ ordered_N) / (n * ordered_N.sum()))


def one(seed: int, *, world: World) -> dict[tuple[str, str], list[float]]:
    """One seed of all arms: every metric by round, the editor's round first."""
    torch.set_num_threads(1)
    found: dict[tuple[str, str], list[float]] = {}
    for arm in ARMS:
        loop = Loop(arm, seed, world)
        for number in range(world.rounds + 1):
            for metric, value in loop.round(editor=number == 0).items():
                found.setdefault((arm, metric), []).append(value)
    for metric, value in loop.oracle().items():
        found["oracle", metric] = [value]
    return found


def run(*, seeds: Sequence[int] = range(5), world: World | None = None) -> Result:
    """All seeds; the rows of the last round carry the metric's name, those before its name and the round."""
    world = world or World()
    done = report.each_seed(partial(one, world=world), seeds)
    rows: list[Row] = []
    for arm, metric in done[0]:
        rounds = np.array([found[arm, metric] for found in done])
        rows.append(report.over_seeds(arm, metric, rounds[:, -1]))
        if arm != "oracle" and metric in ("gini", "utility", "minority_exposure"):
            rows += [
                report.over_seeds(arm, f"{metric}, round {number}", rounds[:, number]) for number in range(world.rounds)
            ]
    gains = [
        report.over_seeds(arm, f"{metric} over {less}", [f[arm, metric][-1] - f[less, metric][-1] for f in done])
        for arm, less in (("tower", "no-tower"), ("tower-exploration", "no-tower"), ("tower-exploration", "tower"))
        for metric in ("gini", "utility", "minority_exposure")
    ]
    by_name = {(row.arm, row.metric): row for row in gains}
    best = "tower-exploration"
    return Result(
        name="feedback-loop",
        data=f"{world.users} simulated people, {world.items} items, {world.rounds} rounds of {world.slates} slates",
        seeds=tuple(seeds),
        rows=(*rows, *gains),
        criterion="in the last round, with tower and exploration, exposure is less concentrated and true utility and "
        "minority-interest exposure are higher than without the tower",
        holds=by_name[best, "gini over no-tower"].high < 0
        and by_name[best, "utility over no-tower"].low > 0
        and by_name[best, "minority_exposure over no-tower"].low > 0,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    parser = report.arguments("feedback-loop", SUMMARY, seeds=5)
    parser.add_argument("--rounds", type=int, default=World.rounds, metavar="N")
    parser.add_argument("--slates", type=int, default=World.slates, metavar="N", help="of a round")
    options = parser.parse_args(arguments)
    world = World(rounds=options.rounds, slates=options.slates)
    report.publish(run(seeds=report.seeds_of(options), world=world), options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
