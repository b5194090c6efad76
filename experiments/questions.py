"""Ten well-chosen questions tell more than ten random ones (PReF, Shenfeld et al. 2025).

People who were never trained on answer with their own grades; the accuracy is that on pairs held out beforehand and
never asked. Only pairs of which a person has a preference can be asked, in every arm alike. How strongly the prior
holds is chosen on validation people, out of those trained on. A second data set, total orders of few items by tastes
that share nothing, is where people disagree most.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from experiments import grades, report
from experiments.grades import Array, Base, Grades, Rows
from experiments.report import Result, Row
from ranker.questions import answers_factor, as_asked, next_question
from ranker.taste import Factor, Taste, fuse
from services.cli import count

SUMMARY = "accuracy on unasked pairs of unseen users after random and after adaptive questions"
STEPS = (5, 10, 20)
KINDS = ("random", "adaptive")
ARMS = ("pooled", *(f"{kind}-{step}" for kind in KINDS for step in STEPS))
#: pairs held out of each person, and the graded items that questions are drawn from
HELD_OUT, POOL = 150, 100
#: base rewards, and the prior precisions that validation chooses from, as multiples of the fitted one
DIMENSIONS, SCALES = 16, (0.25, 0.5, 1.0, 2.0)
#: what is claimed: adaptive-10 above random-10 on total orders, and how far it may be below random-20
LEAD, NEAR = 0.04, -0.01
#: a total order of so many items, by a taste of so many base rewards
ORDERED, AXES, SPREAD = 20, 6, 1.5

Hits = dict[str, list[float]]


def interviewed(known: Grades, base: Base, users: Rows, seed: int, kinds: Sequence[str] = KINDS) -> Hits:
    """Each person's accuracy by arm."""
    rng = np.random.default_rng(seed)
    hits: Hits = {}
    for user in users:
        chosen = rng.permutation(len(known.items[user]))[:POOL]
        items, values = known.items[user][chosen], known.values[user][chosen]
        places = np.arange(len(items))
        pairs = len(items) * (len(items) - 1) // 2
        held = grades.comparisons(places, values, min(HELD_OUT, pairs // 2), rng, apart=known.apart)
        open_PP = grades.differ(values[:, None], values[None, :], known.apart)
        open_PP[held[:, 0], held[:, 1]] = open_PP[held[:, 1], held[:, 0]] = False
        mine = Base(base.phi_IK[items], base.intercept_I[items], base.prior)
        hits.setdefault("pooled", []).append(_accuracy(mine, fuse(base.prior), held))
        for kind in kinds:
            for step, taste in _interview(mine, values, open_PP, rng, adaptive=kind == "adaptive"):
                hits.setdefault(f"{kind}-{step}", []).append(_accuracy(mine, taste, held))
    return hits


def _interview(
    mine: Base, values: Array, open_PP: NDArray[np.bool_], rng: np.random.Generator, *, adaptive: bool
) -> list[tuple[int, Taste]]:
    """The taste after each of STEPS questions; where no pair is left to ask, what was known by then."""
    pool_PK, intercept_P = mine.phi_IK, mine.intercept_I
    left = np.argwhere(np.triu(open_PP))
    drawn = [(one, other) for one, other in rng.permutation(left)[: STEPS[-1]].tolist()]
    closed = [(one, other) for one, other in np.argwhere(np.triu(~open_PP, 1)).tolist()]
    pairs: list[tuple[int, int]] = []
    taste, found = fuse(mine.prior), []
    for step in range(1, STEPS[-1] + 1):
        if step <= len(left):
            if adaptive:
                mean_K, precision_KK = taste.mean_K.astype(np.float64), taste.precision_K.astype(np.float64)
                asked = next_question(mean_K, precision_KK, pool_PK, intercept_P, [*closed, *pairs], most=len(left))
                if asked is None:
                    break
                one, other = asked.one, asked.other
            else:
                one, other = drawn[step - 1]
            pairs.append((one, other) if values[one] > values[other] else (other, one))
        if adaptive or step in STEPS:
            answers = as_asked(pairs, ["preferred"] * len(pairs), pool_PK, intercept_P)
            taste = fuse(mine.prior, [answers_factor(mine.prior, answers)])
        if step in STEPS:
            found.append((step, taste))
    return found


def _accuracy(mine: Base, taste: Taste, held: Rows) -> float:
    margin_P = np.subtract(*mine.utilities(taste.mean_K.astype(np.float64))[held.T])
    return float(np.mean(0.5 * np.sign(margin_P) + 0.5))


def fitted(known: Grades, users: Rows, seed: int, *, checked: int = 150) -> Base:
    """Base rewards of these users, with the prior's scale chosen on a tenth of them that the fit did not see.

    The scale is that of the highest accuracy, averaged over all arms with questions.
    """
    train, validation = grades.split(len(users), seed, test=0.1)
    base = grades.fit(known, users[train], k=DIMENSIONS, seed=seed, decay=0.05)

    def told(scale: float) -> float:
        hits = interviewed(known, scaled(base, scale), users[validation][:checked], seed)
        return float(np.mean([np.mean(hits[arm]) for arm in ARMS]))

    return scaled(base, max(SCALES, key=told))


def scaled(base: Base, scale: float) -> Base:
    """The same base rewards under a prior that holds `scale` times as strongly."""
    precision, information = (np.float32(scale) * part for part in base.prior)
    return Base(base.phi_IK, base.intercept_I, Factor(precision, information))


def total_orders(seed: int, *, users: int = 300) -> tuple[Grades, Base]:
    """People who each hold a total order of few items by a taste of their own, with nothing in common."""
    rng = np.random.default_rng(seed)
    phi_IK, z_UK = rng.normal(size=(ORDERED, AXES)), SPREAD * rng.normal(size=(users, AXES))
    known = Grades(
        f"total orders of {ORDERED} items",
        [str(item) for item in range(ORDERED)],
        [np.arange(ORDERED)] * users,
        [np.argsort(np.argsort(phi_IK @ z_K)).astype(np.float64) for z_K in z_UK],
    )
    prior = Factor(np.full(AXES, SPREAD**-2, np.float32), np.zeros(AXES, np.float32))
    return known, Base(phi_IK, np.zeros(ORDERED), prior)


def one(known: Grades, seed: int, *, users: int) -> tuple[Hits, Hits]:
    """One seed on the log, and on total orders."""
    torch.set_num_threads(1)
    train, test = grades.split(len(known), seed)
    base = fitted(known, train, seed)
    orders, exact = total_orders(seed, users=users)
    return interviewed(known, base, test[:users], seed), interviewed(orders, exact, np.arange(users), seed)


def run(paths: Sequence[Path] | None, *, seeds: Sequence[int] = range(5), users: int = 300) -> Result:
    """All seeds, as many at a time as there are processors.

    Args:
        users: unseen people interviewed per seed.

    Raises:
        DataError: nothing in the log can be compared.
    """
    known = grades.load(paths)
    done = report.each_seed(partial(one, known, users=users), seeds)
    return result(known, done, seeds)


def result(known: Grades, done: Sequence[tuple[Hits, Hits]], seeds: Sequence[int]) -> Result:
    """All seeds as rows, with intervals over seeds and users, and the verdict."""
    rows = [*_rows("accuracy", [log for log, _ in done]), *_rows("accuracy_total_orders", [two for _, two in done])]
    found = {(row.arm, row.metric): row for row in rows}
    disagree = found["pooled", "accuracy"].mean < 0.7
    beats = not disagree or found["adaptive-10", "gain over random-10"].low > 0
    near = found["adaptive-10", "gain over random-20"].low > NEAR
    return Result(
        name="questions",
        data=known.name,
        seeds=tuple(seeds),
        rows=tuple(rows),
        criterion="10 adaptive questions beat 10 random ones where pooled is under .7, by 4 points on total orders, "
        "and come within a point of 20 random ones",
        holds=beats and near and found["adaptive-10", "gain_total_orders over random-10"].low >= LEAD,
    )


def _rows(metric: str, seeds: Sequence[Hits]) -> list[Row]:
    rows = [grades.nested(arm, metric, [np.array(hits[arm]) for hits in seeds]) for arm in ARMS]
    for less in ("random-10", "random-20"):
        gaps = [np.subtract(hits["adaptive-10"], hits[less]) for hits in seeds]
        rows.append(grades.nested("adaptive-10", f"{metric.replace('accuracy', 'gain')} over {less}", gaps))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    parser = report.arguments("questions", SUMMARY, seeds=5)
    parser.add_argument("--users", type=count, default=300, metavar="N", help="unseen users per seed (default 300)")
    options = parser.parse_args(arguments)
    report.publish(run(options.events, seeds=report.seeds_of(options), users=options.users), options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
