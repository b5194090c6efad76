"""How often the gate is wrong, and how much data it needs: equal, better, worse and poisoned candidates, simulated.

Slates of ten items whose chances are known. Both versions know them up to noise of their own; a better one has less of
it, a worse one more in one group of people, so much that the group's mean NDCG@10 falls by a given share; a poisoned
one has the labels of the group the wrong way round. Every candidate is judged by `ranker.gate.Gate` as the trainer
does, again and again while its window fills, so errors are counted over all looks of a window and not at one.

Axes: S slates of the pool, N items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from experiments import report
from experiments.report import Result, Row, over_seeds
from ranker.config import Config, Objective
from ranker.gate import Gate, Judged, Sums
from ranker.metrics import log_losses, ndcg

Array = NDArray[np.float64]

SUMMARY = "false refusals and promotions of the gate, and its power over loss and window"
CONFIG = Config(objectives=(Objective(name="click", event="click"),))
#: slates whose figures windows draw from; items of each; noise of the served version's utility
POOL, ITEMS, NOISE = 3000, 10, 0.09
#: share of the people in the group that is harmed, people of a window, and slates between two looks
SHARE, PEOPLE, EVERY = 0.2, 400, 50
#: noise of the better candidate against the served version's, and losses of the group's NDCG
BETTER, LOSSES = 2 / 3, (0.02, 0.05, 0.1)
WINDOWS = (500, 1000, 2000, 6500)


@dataclass(frozen=True)
class Pool:
    """NDCG@10 and log loss of each slate under the served version and under each kind of candidate."""

    order: dict[str, Array]
    loss: dict[str, Array]


def pool(seed: int, slates: int = POOL) -> Pool:
    """Slates judged under every version; of worse ones the noise is found that costs the wanted share of NDCG."""
    generator = np.random.default_rng([seed, 1])
    chance_SN = generator.beta(1, 4, (slates, ITEMS))
    label_SN = (generator.random((slates, ITEMS)) < chance_SN).astype(np.float64)
    # the same slip of each item at every size, so that more noise is never better by luck
    slip_SN = generator.normal(size=(slates, ITEMS))

    def order(noise: float, slips: Array) -> Array:
        scores_SN = chance_SN + noise * slips
        return np.array([ndcg(label_N, score_N) for label_N, score_N in zip(label_SN, scores_SN, strict=True)])

    def loss(noise: float, slips: Array) -> Array:
        return np.asarray(log_losses(label_SN, np.clip(chance_SN + noise * slips, 0.01, 0.99)).sum(1), np.float64)

    def fitting(wanted: float) -> float:
        """The noise at which the mean NDCG is this, by bisection."""
        low, high = 0.0, 2.0
        for _ in range(14):
            middle = (low + high) / 2
            low, high = (low, middle) if np.nanmean(order(middle, slip_SN)) < wanted else (middle, high)
        return low

    served_SN = generator.normal(size=(slates, ITEMS))
    orders, losses = {"served": order(NOISE, served_SN)}, {"served": loss(NOISE, served_SN)}
    mean = float(np.nanmean(orders["served"]))
    same = fitting(mean)
    orders["equal"], losses["equal"] = order(same, slip_SN), loss(same, slip_SN)
    # equal on this pool too, not only in expectation
    losses["equal"] *= losses["served"].mean() / losses["equal"].mean()
    orders["better"], losses["better"] = order(BETTER * same, slip_SN), loss(BETTER * same, slip_SN)
    for share in LOSSES:
        orders[worse(share)], losses[worse(share)] = order(fitting(mean * (1 - share)), slip_SN), losses["equal"]
    flipped_SN = 1 - chance_SN
    orders["poisoned"] = np.array([ndcg(a, b) for a, b in zip(label_SN, flipped_SN, strict=True)])
    losses["poisoned"] = log_losses(label_SN, np.clip(flipped_SN, 0.01, 0.99)).sum(1)
    return Pool(orders, losses)


def worse(share: float) -> str:
    """The name of a candidate whose group loses this share of its NDCG."""
    return f"group -{share:.0%}"


@dataclass(frozen=True, kw_only=True)
class Course:
    """What became of one candidate while its window filled.

    Attributes:
        refused, passed: at any of its looks, as long as neither had happened.
    """

    refused: bool
    passed: bool


def course(found: Pool, kind: str, window: int, generator: np.random.Generator, *, every: int = EVERY) -> Course:
    """Fill one window with slates of the pool and let the gate look every so often until it passes or refuses."""
    gate = Gate(full=window)
    row_S = generator.integers(len(found.order["served"]), size=window)
    user_S = generator.integers(PEOPLE, size=window)
    judged: dict[str, list[Judged]] = {"new": [], "old": []}
    for row, user in zip(row_S.tolist(), user_S.tolist(), strict=True):
        harmed = user < SHARE * PEOPLE
        mine = kind if harmed or kind in ("equal", "better") else "equal"
        for side, version in (("new", mine), ("old", "served")):
            order = float(found.order[version][row])
            judged[side].append(
                Judged(
                    user=f"u{user}",
                    groups=(f"group={'few' if harmed else 'most'}",),
                    loss_T=(float(found.loss[version][row]),),
                    rows_T=(ITEMS,),
                    positives_T=(0.2 * ITEMS,),
                    ndcg=None if np.isnan(order) else order,
                    spread=1.0,
                    finite=True,
                )
            )
    for end in range(gate.slates, window + 1, every):
        new, old = Sums(CONFIG, window=window), Sums(CONFIG, window=window)
        for side, sums in (("new", new), ("old", old)):
            sums.slates.update((f"r{place}", one) for place, one in enumerate(judged[side][:end]))
        decision = gate.judge(new, old).decision
        if decision != "hold":
            return Course(refused=decision == "refuse", passed=decision == "pass")
    return Course(refused=False, passed=False)


def single(seed: int, *, windows: Sequence[int], courses: int, slates: int) -> dict[tuple[str, str], float]:
    """Shares over one seed's courses: (kind, "passed | 1000") -> share."""
    found, shares = pool(seed, slates), dict[tuple[str, str], float]()
    for window in windows:
        for place, kind in enumerate(("equal", "better", *map(worse, LOSSES), "poisoned")):
            generator = np.random.default_rng([seed, 2, window, place])
            every = max(EVERY, window // 20)
            all_of = [course(found, kind, window, generator, every=every) for _ in range(courses)]
            shares[kind, f"passed | {window}"] = float(np.mean([one.passed for one in all_of]))
            shares[kind, f"refused | {window}"] = float(np.mean([one.refused for one in all_of]))
    return shares


def run(
    *, seeds: Sequence[int] = (0,), windows: Sequence[int] = WINDOWS, courses: int = 60, slates: int = POOL
) -> Result:
    """All seeds as rows: for each kind of candidate and window, how many were refused and how many passed."""
    each = report.each_seed(partial(single, windows=tuple(windows), courses=courses, slates=slates), seeds)
    rows = [over_seeds(kind, metric, [one[kind, metric] for one in each]) for kind, metric in each[0]]
    return Result(
        name="gate",
        data=f"simulated slates, {courses} candidates a seed, group of {SHARE:.0%}",
        seeds=tuple(seeds),
        rows=tuple(rows),
        criterion="over all looks of a window, under 5 % of equal candidates are refused, under 5 % of those that cost "
        "a group 5 % or more of its NDCG are promoted from 1,000 slates on, none that is poisoned; better ones pass",
        holds=_holds(rows, windows),
    )


def _holds(rows: Sequence[Row], windows: Sequence[int]) -> bool:
    found = {(row.arm, row.metric): row.mean for row in rows}
    large = [window for window in windows if window >= 1000] or [max(windows)]
    return (
        all(found["equal", f"refused | {window}"] < 0.05 for window in windows)
        and all(found["poisoned", f"refused | {window}"] == 1 for window in windows)
        and all(found[worse(loss), f"passed | {window}"] < 0.05 for window in large for loss in LOSSES[1:])
        and all(found["better", f"passed | {window}"] > 0.8 for window in large)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    parser = report.arguments("gate", SUMMARY, seeds=5)
    parser.add_argument("--courses", type=int, default=60, metavar="N", help="candidates of each kind a seed")
    parser.add_argument("--windows", type=int, nargs="+", default=WINDOWS, metavar="N", help="slates of a window")
    options = parser.parse_args(arguments)
    result = run(seeds=report.seeds_of(options), windows=options.windows, courses=options.courses)
    report.publish(result, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
