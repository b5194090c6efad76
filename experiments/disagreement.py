"""One reward cannot serve people who disagree: 51-49 (barreto2025capturing, siththaranjan2024distributional).

Three parts. Where 51 of 100 people prefer one of two things, a pooled Bradley-Terry model can satisfy 51 of them; a
model that knows a few answers of each person satisfies all. The Borda experiment of the hidden-context paper: the
expected utility rises with a, but beyond .8 half of the people get nothing, and the utility that a pooled model learns
falls there, for it learns how often something wins. And a real log: pooled against conditional accuracy on people never
trained on, by how evenly the people trained on split on the pair.

Axes: U users, I items, P comparisons, K base rewards.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional

from experiments import grades, report
from experiments.grades import Base, Grades, Rows
from experiments.report import Result, Row, over_seeds
from ranker.questions import answers_factor, as_asked
from ranker.taste import Factor, fuse
from services.cli import count

Array = NDArray[np.float64]

SUMMARY = "a pooled reward against one that knows a few answers of each person, where people disagree"
#: share of people who prefer the first of two things
MAJORITY = 0.51
#: a made-up log: people and items of two styles, each graded by everybody; share of grades that are slips
PEOPLE, STYLED, SLIPS = 400, 20, 0.05
#: answers of a person that the conditional model knows: in the made-up log, and in a real one
FEW, CONTEXT = 8, 20
#: ends of the majority's share of a pair, as the people trained on split; how many of them must have judged it
BANDS = ((0.5, 0.55), (0.55, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 1.0))
JUDGES = 10
#: the metric of all pairs, however people split
ALL = "accuracy"
#: the arm of differences, and the metric of how much greater the gain is in the first band than in the last
GAIN, EVEN_LEAD = "conditional - pooled", "gain, first band over last"
#: dimensions and penalty of the base rewards, one of which is chosen on a share of the people set aside for it
ASIDE = 0.15
SIZES = ((8, 0.002), (8, 0.1), (4, 0.1), (4, 0.5))
#: a user counts in a band with so many pairs or more
LEAST = 5
#: where the hidden context begins in the Borda experiment, and how far around it the step is measured
CLIFF, AROUND = 0.8, 0.05


def split(seed: int, *, among: int = PEOPLE) -> dict[tuple[str, str], float]:
    """51 against 49: the pooled model of one pair, and a model conditional on FEW answers of unseen people.

    The pooled margin is the mode of the same logistic posterior that answers go through, under a flat prior. Base
    rewards of the conditional model are learned from the comparisons of other people; nothing says what styles are.
    """
    people = 10_000
    first = round(MAJORITY * people)
    flat = Factor(np.full(1, 1e-9, np.float32), np.zeros(1, np.float32))
    said = [(0, 1)] * first + [(1, 0)] * (people - first)
    asked = as_asked(said, ["preferred"] * people, np.array([[1.0], [0.0]]), np.zeros(2))
    margin = float(fuse(flat, [answers_factor(flat, asked)]).mean_K[0])
    chance = float(expit(margin))
    shares = (MAJORITY, 1 - MAJORITY)
    known, wants_U = styled(seed, among)
    train, test = grades.split(len(known), seed)
    base = grades.fit(known, train, k=2, seed=seed)
    rng = np.random.default_rng(seed)
    served = [_served(known, base, int(user), float(wants_U[user]), rng) for user in test]
    return {
        ("pooled-argmax", "satisfied"): shares[0] if margin > 0 else shares[1],
        ("pooled-proportional", "satisfied"): shares[0] * chance + shares[1] * (1 - chance),
        ("conditional", "satisfied"): float(np.mean(served)),
        ("pooled-argmax", "margin"): margin,
    }


def styled(seed: int, people: int) -> tuple[Grades, Array]:
    """Grades of items of two styles by people of whom 51 % want the first; who wants what, (U,)."""
    rng = np.random.default_rng(seed)
    wants_U = rng.permutation(np.where(np.arange(people) < MAJORITY * people, 1.0, -1.0))
    style_I = np.repeat([1.0, -1.0], STYLED)
    values = [np.where(rng.random(2 * STYLED) < SLIPS, -want, want) * style_I for want in wants_U]
    names = [f"{style}{place}" for style in "ab" for place in range(STYLED)]
    return Grades("51-49", names, [np.arange(2 * STYLED)] * people, values), wants_U


def _served(known: Grades, base: Base, user: int, wants: float, rng: np.random.Generator) -> float:
    """Share of pairs, one of each style, of which the person is given the one of the style she wants."""
    context = grades.comparisons(known.items[user], known.values[user], FEW, rng)
    own_I = conditional(base, context)
    gap_II = own_I[:STYLED, None] - own_I[None, STYLED:]
    asked_P2 = np.sort(context, axis=1)
    mixed = (asked_P2[:, 0] < STYLED) & (asked_P2[:, 1] >= STYLED)
    gap_II[asked_P2[mixed, 0], asked_P2[mixed, 1] - STYLED] = np.nan  # judged on pairs she was not asked about
    return float(np.nanmean(np.where(np.isnan(gap_II), np.nan, gap_II * wants > 0)))


def conditional(base: Base, context_P2: Rows) -> Array:
    """Every item's utility to a person who gave these answers (preferred, over), (I,)."""
    pairs = [(int(one), int(other)) for one, other in context_P2]
    asked = as_asked(pairs, ["preferred"] * len(pairs), base.phi_IK, base.intercept_I)
    return base.utilities(fuse(base.prior, [answers_factor(base.prior, asked)]).mean_K.astype(np.float64))


def wins(a: Array) -> Array:
    """Exact chance to be preferred to a random rival in the Borda experiment (ties count half).

    Example:
        >>> wins(np.array([0.79, 0.81, 0.9])).round(4).tolist()
        [0.89, 0.4775, 0.5]
    """
    rich = CLIFF + (1 - CLIFF) * (0.5 + 0.5 * (a - CLIFF) / (1 - CLIFF))
    broke = (1 - CLIFF) / 4
    return np.where(a < CLIFF, a + (1 - CLIFF) / 2, (rich + broke) / 2)


def borda(seed: int, *, steps: int = 1000, batch: int = 1024, width: int = 128) -> dict[tuple[str, str], float]:
    """a ~ U(0, 1), of utility a below .8 and of 2a or 0 with even odds beyond: what a pooled model learns of it.

    Source: Siththaranjan et al. 2024, section 3.3. Differs: three layers of 128 in place of four of 512, batches of
    1,024 in place of 2,048, and a step size that falls, so that a seed takes seconds.
    """
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 1),
    )  # fmt: skip
    with torch.no_grad():
        for part in model:
            if isinstance(part, nn.Linear):
                reach = part.in_features**-0.5
                part.weight.uniform_(-reach * 3**0.5, reach * 3**0.5, generator=generator)
                part.bias.uniform_(-reach, reach, generator=generator)
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        a = torch.rand(2, batch, generator=generator)
        lucky = torch.randint(0, 2, (2, batch), generator=generator)
        utility = torch.where(a < CLIFF, a, 2 * a * lucky)
        share = (torch.sign(utility[0] - utility[1]) + 1) / 2
        learned = model((2 * a - 1)[..., None])[..., 0]
        loss = functional.binary_cross_entropy_with_logits(learned[0] - learned[1], share)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
    grid = np.linspace(0, 1, 401)
    with torch.no_grad():
        found = model(torch.from_numpy(2 * grid - 1).float()[:, None])[:, 0].double().numpy()
    return {
        ("pooled-argmax", "step"): _step(found, grid),
        ("truth", "step"): _step(grid, grid),
        ("pooled-argmax", "borda_rank_correlation"): float(spearmanr(found, wins(grid)).statistic),
        ("truth", "borda_rank_correlation"): float(spearmanr(grid, wins(grid)).statistic),
    }


def _step(utility: Array, grid: Array) -> float:
    """Mean just above the cliff minus mean just below it."""
    above, below = ((grid - CLIFF) * side for side in (1, -1))
    return float(utility[(above > 0.01) & (above < AROUND)].mean() - utility[(below > 0.01) & (below < AROUND)].mean())


def pooled(known: Grades, users: Rows, seed: int, *, pairs: int = 60, epochs: int = 60) -> Array:
    """Every item's utility to everybody, (I,): Bradley-Terry alone, on as many comparisons as `grades.fit` draws."""
    rng = np.random.default_rng(seed)
    intercept_I = torch.zeros(len(known.names), requires_grad=True)
    adam = torch.optim.Adam([intercept_I], 0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 0.1, total_steps=epochs)
    for _ in range(epochs):
        better, worse = torch.from_numpy(grades.many(known, users, pairs, rng)[1]).unbind(1)
        loss = -functional.logsigmoid(intercept_I[better] - intercept_I[worse]).sum() + intercept_I.square().sum() / 2
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
    return intercept_I.detach().double().numpy()


def agreement(known: Grades, users: Rows) -> Callable[[Rows], Array]:
    """The majority's share of each pair (P, 2) among these users, (P,); NaN where fewer than JUDGES judged it."""
    table_IU = np.full((len(known.names), len(users)), np.nan, np.float32)
    for place, user in enumerate(users):
        table_IU[known.items[user], place] = known.values[user]

    def share(pairs_P2: Rows) -> Array:
        gap_PU = table_IU[pairs_P2[:, 0]] - table_IU[pairs_P2[:, 1]]
        apart = max(known.apart, 1e-6)
        for_P, against_P = (gap_PU >= apart).sum(1), (gap_PU <= -apart).sum(1)
        judges_P = for_P + against_P
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Array = np.where(judges_P >= JUDGES, np.maximum(for_P, against_P) / judges_P, np.nan)
        return found

    return share


def drawn(known: Grades, user: int, rng: np.random.Generator, pairs: int = 200) -> tuple[Rows, Rows]:
    """CONTEXT pairs to condition on and `pairs` to judge, from two halves of the user's items: none is in both."""
    halves = np.array_split(rng.permutation(len(known.items[user])), 2)
    context, held = (
        grades.comparisons(known.items[user][half], known.values[user][half], count, rng, apart=known.apart)
        for half, count in zip(halves, (CONTEXT, pairs), strict=True)
    )
    return context, held


def parts(users: int, seed: int) -> tuple[Rows, Rows, Rows]:
    """Users to choose settings on (the same at every seed), to train on, and to judge."""
    order = np.random.default_rng(51).permutation(users)
    aside, others = np.split(order, [round(ASIDE * users)])
    train, test = grades.split(len(others), seed)
    return aside, others[train], others[test]


def chosen(known: Grades, seed: int, *, users: int = 300) -> tuple[int, float]:
    """The one of SIZES whose base rewards predict best for the people set aside, who are never judged."""
    aside, train, _ = parts(len(known), seed)
    right: list[float] = []
    for k, decay in SIZES:
        base, rng = grades.fit(known, train, k=k, decay=decay, seed=seed), np.random.default_rng(seed)
        each = []
        for user in aside[:users]:
            context, held = drawn(known, int(user), rng)
            if len(held):
                own_I = conditional(base, context)
                each.append(np.mean(own_I[held[:, 0]] > own_I[held[:, 1]]))
        right.append(float(np.mean(each)) if each else 0.0)
    return SIZES[int(np.argmax(right))]


def real(
    known: Grades, seed: int, *, users: int = 500, size: tuple[int, float] = SIZES[0]
) -> dict[str, dict[str, Array]]:
    """Each unseen user's accuracy under both models, over all pairs and by band of agreement, (users,).

    NaN where fewer than LEAST of the user's pairs are in the band.
    """
    _, train, test = parts(len(known), seed)
    base = grades.fit(known, train, k=size[0], decay=size[1], seed=seed)
    pooled_I = pooled(known, train, seed)
    share = agreement(known, train)
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in (ALL, *(band(*ends) for ends in BANDS))}
    for user in test[:users]:
        context, held = drawn(known, int(user), rng)
        if not len(held):
            continue
        own_I = conditional(base, context)
        right_2P = np.stack([each_I[held[:, 0]] > each_I[held[:, 1]] for each_I in (pooled_I, own_I)])
        found[ALL].append((float(right_2P[0].mean()), float(right_2P[1].mean())))
        share_P = share(held)
        for low, high in BANDS:
            here_P = (share_P >= low) & ((share_P < high) | (high == 1.0))
            right_2 = right_2P[:, here_P].mean(1) if here_P.sum() >= LEAST else (np.nan, np.nan)
            found[band(low, high)].append((float(right_2[0]), float(right_2[1])))
    arms = ("pooled-argmax", "conditional")
    return {name: dict(zip(arms, np.array(each).reshape(-1, 2).T, strict=True)) for name, each in found.items()}


def band(low: float, high: float) -> str:
    """The metric's name of a band of agreement."""
    return f"accuracy where {100 * low:.0f}-{100 * high:.0f} % agree"


def run(
    paths: Sequence[Path] | None, *, seeds: Sequence[int] = (0, 1, 2), users: int = 500, steps: int = 1000
) -> Result:
    """All three parts.

    Raises:
        DataError: the log holds too few people with grades.
    """
    torch.set_num_threads(1)
    known = grades.load(paths)
    values: dict[tuple[str, str], list[float]] = {}
    logs = []
    size = chosen(known, seeds[0])
    for seed in seeds:
        for key, value in (*split(seed).items(), *borda(seed, steps=steps).items()):
            values.setdefault(key, []).append(value)
        logs.append(real(known, seed, users=users, size=size))
    rows = [over_seeds(arm, metric, each) for (arm, metric), each in values.items()]
    for name in (ALL, *(band(*ends) for ends in BANDS)):
        for arm in ("pooled-argmax", "conditional"):
            rows += _over_users(arm, name, [log[name][arm] for log in logs])
        rows += _over_users(GAIN, name, [_gain(log[name]) for log in logs])
    even, agreed = band(*BANDS[0]), band(*BANDS[-1])
    rows += _over_users(GAIN, EVEN_LEAD, [_gain(log[even]) - _gain(log[agreed]) for log in logs])
    return Result(
        name="disagreement",
        data=f"simulations; {known.name} (K = {size[0]})",
        seeds=tuple(seeds),
        rows=tuple(rows),
        criterion="pooled satisfies .51 (argmax) and .5002 (proportional) with margin log(.51/.49), conditional more "
        "than .99; the learned utility falls at .8 where the expected one rises; on the log the conditional model "
        "gains where people split most evenly, and more than where they agree",
        holds=_holds({(row.arm, row.metric): row for row in rows}),
    )


def _gain(accuracy: dict[str, Array]) -> Array:
    return accuracy["conditional"] - accuracy["pooled-argmax"]


def _over_users(arm: str, metric: str, users_S: Sequence[Array]) -> list[Row]:
    """The row over those users who count, none where a seed has none."""
    counted = [mine[~np.isnan(mine)] for mine in users_S]
    return [grades.nested(arm, metric, counted)] if all(map(len, counted)) else []


def _holds(rows: dict[tuple[str, str], Row]) -> bool:
    one_reward = (
        abs(rows["pooled-argmax", "satisfied"].mean - MAJORITY) < 1e-9
        and abs(rows["pooled-proportional", "satisfied"].mean - 0.5002) < 1e-5
        and abs(rows["pooled-argmax", "margin"].mean - np.log(0.51 / 0.49)) < 1e-4
        and rows["conditional", "satisfied"].low > 0.99
    )
    falls = rows["pooled-argmax", "step"].high < 0 < rows["truth", "step"].low
    gains = [rows.get((GAIN, metric)) for metric in (band(*BANDS[0]), EVEN_LEAD)]
    return one_reward and falls and all(row is not None and row.low > 0 for row in gains)


def pictured(row: Row) -> bool:
    """Whether the picture shows it: who is satisfied, and accuracy by how evenly people split."""
    return row.metric == "satisfied" or (row.metric.startswith(ALL) and row.arm != GAIN)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    parser = report.arguments("disagreement", SUMMARY, seeds=5)
    parser.add_argument(
        "--users", type=count, default=500, metavar="N", help="unseen users judged a seed (default 500)"
    )
    parser.add_argument("--steps", type=count, default=1000, metavar="N", help="of the Borda experiment (default 1000)")
    options = parser.parse_args(arguments)
    seeds = report.seeds_of(options)
    result = run(options.events, seeds=seeds, users=options.users, steps=options.steps)
    report.publish(result, options, draw=pictured)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
