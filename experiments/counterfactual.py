"""Other policies valued from logged slates: intervals hold the truth as often as they say (li2018offline).

Simulated: people click by a position-based model on slates that `ranker.exploration` explored, so the propensities are
the service's own, and the truth of the target (the slate with two neighbours exchanged) is summed exactly. Real: the
Open Bandit logs (saito2021open), random and Thompson sampling, each valued from the other's log.

Axes: P places, I items, R rows.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from experiments import report
from experiments.report import Result, Row
from ranker import openbandit
from ranker.counterfactual import Demands, Logged, Valuation, valuate
from ranker.errors import DataError
from ranker.exploration import explore, odds_of
from ranker.simulation import examination
from services.cli import count

Floats = NDArray[np.float64]
SUMMARY = (
    "IPS, SNIPS and doubly robust: interval coverage in simulation, agreement with the on-policy mean on Open Bandit"
)
ESTIMATORS = ("ips", "snips", "doubly-robust")
#: how often a slate is drawn anew and how often a pair is swapped: far more than is served, so that 400 slates tell
SLOT, SWAP = 0.5, 0.5
PLACES, ITEMS = 4, 7
#: the sign of intervals that are honest: within so many of .95
NEAR = 0.03


def simulated(rng: np.random.Generator, slates: int) -> tuple[Logged, float]:
    """One log of explored slates, and what the target is worth by summation.

    The model of the reward that doubly robust gets is off by a tenth and a random fifth of the truth.
    """
    click_IP = rng.uniform(0.1, 0.9, (ITEMS, 1)) * examination(PLACES, decay=0.7)
    order_P, beyond = np.arange(PLACES), np.arange(PLACES, ITEMS)
    odds = odds_of(rng.normal(size=(16, ITEMS)) + np.linspace(1, 0, ITEMS), PLACES, 0.2)
    upper = int(rng.integers(PLACES - 1))
    target_P = order_P.copy()
    target_P[[upper, upper + 1]] = target_P[[upper + 1, upper]]
    drawn = [
        explore(order_P, SWAP, int(seed), share=SLOT, odds=odds, beyond=beyond)
        for seed in rng.integers(2**40, size=slates)
    ]
    item_R, place_R = np.concatenate([one.order_S for one in drawn]), np.tile(order_P, slates)
    guess_IP = click_IP * (1.1 + 0.2 * rng.normal(size=click_IP.shape))
    logged = Logged(
        slate_R=np.repeat(np.arange(slates), PLACES),
        place_R=place_R,
        reward_R=(rng.random(len(item_R)) < click_IP[item_R, place_R]).astype(np.float64),
        propensity_R=np.concatenate([one.propensity_S for one in drawn]),
        chance_R=(target_P[place_R] == item_R).astype(np.float64),
        predicted_R=guess_IP[item_R, place_R],
        expected_R=guess_IP[target_P[place_R], place_R],
    )
    return logged, float(click_IP[target_P, order_P].sum())


def one(seed: int, *, logs: int, slates: int) -> dict[tuple[str, str], float]:
    """One seed: how often the truth lies inside, mean error and width relative to the truth, over so many logs."""
    rng = np.random.default_rng(seed)
    inside, error, width = ({name: 0.0 for name in ESTIMATORS} for _ in range(3))  # noqa: C420
    plain = 0.0
    for _ in range(logs):
        logged, truth = simulated(rng, slates)
        found = valuate(logged, demands=Demands(effective=0, largest=1, support=1))
        for name in ESTIMATORS:
            value = found.values[name]
            inside[name] += (value.low <= truth <= value.high) / logs
            error[name] += (value.mean / truth - 1) / logs
            width[name] += (value.high - value.low) / 2 / truth / logs
        plain += (found.on_policy.low <= truth <= found.on_policy.high) / logs
    measured = {"coverage": inside, "error": error, "half_width": width}
    rows = {(name, metric): values[name] for metric, values in measured.items() for name in ESTIMATORS}
    return rows | {("on-policy mean", "coverage"): plain}


def crossed(campaign: openbandit.Campaign) -> dict[str, tuple[Valuation | str, Floats]]:
    """Each policy valued from the other's log, or why not, and the clicks that it earned itself.

    Raises:
        DataError: the logs cannot be had.
    """
    random, bts = openbandit.bandit("random", campaign), openbandit.bandit("bts", campaign)
    items = int(max(random.item_R.max(), bts.item_R.max())) + 1
    even_PI = np.full((3, items), 1 / items)
    found: dict[str, tuple[Valuation | str, Floats]] = {}
    for name, log, target_PI, own in (
        ("bts from random", random, bts.shares(items), bts),
        ("random from bts", bts, even_PI, random),
    ):
        try:
            found[f"{campaign}: {name}"] = valuate(openbandit.logged(log, target_PI)), own.click_R
        except DataError as error:
            found[f"{campaign}: {name}"] = str(error), own.click_R
    return found


def open_bandit() -> tuple[list[Row], list[bool], str]:
    """Rows of all campaigns in clicks per thousand, whether each estimate agrees, and what could not be told.

    They agree where the difference from the on-policy mean is within both intervals together: that mean is one
    sample of 10,000, too.
    """
    rows, agree, refused = [], [], []
    try:
        found = {name: value for campaign in openbandit.CAMPAIGNS for name, value in crossed(campaign).items()}
    except DataError as error:
        return [], [], f"without Open Bandit ({error})"
    for metric, (valuation, clicks_R) in found.items():
        rows.append(
            _per_thousand("on-policy mean", metric, clicks_R.mean(), 1.96 * clicks_R.std() / len(clicks_R) ** 0.5)
        )
        own = rows[-1]
        if isinstance(valuation, str):
            refused.append(metric)
            continue
        for name in ESTIMATORS:
            value = valuation.values[name]
            rows.append(_per_thousand(name, metric, value.mean, value.high - value.mean))
            reach = float(np.hypot(rows[-1].high - rows[-1].mean, own.high - own.mean))
            agree.append(abs(rows[-1].mean - own.mean) <= reach)
    return rows, agree, "Open Bandit; refused: " + (", ".join(refused) or "nothing")


def _per_thousand(arm: str, metric: str, mean: float, reach: float) -> Row:
    return Row(arm=arm, metric=metric, mean=1e3 * mean, low=1e3 * (mean - reach), high=1e3 * (mean + reach), n=10_000)


def run(*, seeds: Sequence[int] = range(5), logs: int = 400, slates: int = 400, real: bool = True) -> Result:
    """All seeds of the simulation, and Open Bandit where it can be had."""
    done = report.each_seed(partial(one, logs=logs, slates=slates), seeds)
    rows = [report.over_seeds(arm, metric, [found[arm, metric] for found in done]) for arm, metric in done[0]]
    covered = [abs(row.mean - 0.95) < NEAR for row in rows if row.metric == "coverage" and row.arm in ESTIMATORS]
    others, agree, said = open_bandit() if real else ([], [], "simulation alone")
    return Result(
        name="counterfactual",
        data=f"simulated slates; {said}",
        seeds=tuple(seeds),
        rows=(*rows, *others),
        criterion="95 % intervals of all three hold the truth within 3 points of that; every value told on Open Bandit "
        "agrees with the on-policy mean",
        holds=all(covered) and all(agree),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    parser = report.arguments("counterfactual", SUMMARY, seeds=5)
    parser.add_argument("--logs", type=count, default=400, metavar="N", help="simulated logs of each seed")
    options = parser.parse_args(arguments)
    report.publish(run(seeds=report.seeds_of(options), logs=options.logs), options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
