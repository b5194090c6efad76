"""How often the gate is wrong, how much data it needs, and where a chain of small losses ends, simulated.

Slates of ten items whose chances are known. All versions know them up to noise of their own; a better one has less of
it, a worse one more, for one group of people or for all, so much that mean NDCG@10 falls by a given share; a poisoned
one has the labels of the group the wrong way round. Every candidate is judged by `ranker.gate.Gate` as the trainer
does, again and again while its window fills, so errors are counted over all looks of a window and not at one.

A promotion is false where the candidate's true loss, in any measure of any group, is beyond the margin that the verdict
itself states for it. Windows are drawn from a pool of slates, so the truth is the pool's mean and not an estimate.

Axes: S slates of the pool, N items, R courses, n slates of a group.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from experiments import report
from experiments.report import Result, Row, over_seeds
from ranker.config import Config, Objective
from ranker.gate import OVERALL, Anchor, Gate, Judged, Pair, Sums, Verdict, reach_of
from ranker.metrics import log_losses
from services.cli import count

Array = NDArray[np.float64]

SUMMARY = "false refusals and promotions of the gate, its power over loss and window, and where a creeping chain stops"
CONFIG = Config(objectives=(Objective(name="click", event="click"),))
#: slates whose figures windows draw from; items of each; noise of the served version's utility
POOL, ITEMS, NOISE = 3000, 10, 0.09
#: share of the people in the group that is harmed, people of a window, and slates between two looks
SHARE, PEOPLE, EVERY = 0.2, 400, 50
#: noise of the better candidate against the served version's, and losses of the group's NDCG
BETTER, LOSSES = 2 / 3, (0.02, 0.05, 0.1)
#: losses as multiples of the margin that the verdict states, of the group and of all
BEYOND = (1.0, 1.1, 1.25)
WINDOWS = (500, 1000, 2000)
#: slates of the group at which power is told
SIZES = (100, 200, 400, 800, 1300, 2000, 4000)
#: chains: what a promotion costs the group and gains all others, and promotions
CHAINS = {"equal": (0.0, 0.0, 20), "creeping": (0.015, 0.0, 20), "creeping slowly": (0.004, 0.004, 40)}
#: windows that a candidate of a chain gets to pass, and slates between two looks
TRIES, PACE = 5, 100
#: a chain that is held to an anchor must stop before the group has lost so much
MOST = 0.12


class Pool:
    """NDCG@10 and log loss of the same slates under the served version and under candidates, made when asked for.

    Attributes:
        order, loss: (S,) by name of the version.
    """

    def __init__(self, seed: int, slates: int = POOL) -> None:
        self._seed = seed
        generator = np.random.default_rng([seed, 1])
        self._chance_SN = generator.beta(1, 4, (slates, ITEMS))
        self._label_SN = (generator.random((slates, ITEMS)) < self._chance_SN).astype(np.float64)
        served_SN = generator.normal(size=(slates, ITEMS))
        self._slip_SN = generator.normal(size=(slates, ITEMS))
        self.order = {"served": self._order(NOISE, served_SN)}
        self.loss = {"served": self._loss(NOISE, served_SN)}
        self.mean = float(np.nanmean(self.order["served"]))
        same = self._fitting(0.0, self._slip_SN)
        self.order["equal"], loss_S = self._order(same, self._slip_SN), self._loss(same, self._slip_SN)
        # equal on this pool too, not only in expectation
        self.loss["equal"] = loss_S * self.loss["served"].mean() / loss_S.mean()
        self.order["better"] = self._order(BETTER * same, self._slip_SN)
        self.loss["better"] = self._loss(BETTER * same, self._slip_SN)
        flipped_SN = 1 - self._chance_SN
        self.order["poisoned"] = self._order(0.0, flipped_SN, flipped_SN)
        self.loss["poisoned"] = log_losses(self._label_SN, np.clip(flipped_SN, 0.01, 0.99)).sum(1)

    def __len__(self) -> int:
        return len(self._label_SN)

    def losing(self, share: float, *, own: int | None = None) -> str:
        """The name of a candidate whose NDCG is lower by this share, with the slips of all such, or of its own."""
        name = worse(share) if own is None else f"version {own} {share:.4f}"
        if name not in self.order:
            slip_SN, self.loss[name] = self._slip_SN, self.loss["equal"]
            if own is not None:
                slip_SN = np.random.default_rng([self._seed, 3, own]).normal(size=slip_SN.shape)
                loss_S = self._loss(NOISE, slip_SN)
                self.loss[name] = loss_S * self.loss["served"].mean() / loss_S.mean()
            self.order[name] = self._order(self._fitting(share, slip_SN), slip_SN)
        return name

    def harm(self, name: str, measure: str) -> float:
        """How much worse the candidate is than the served version, relatively and exactly."""
        if measure == "log_loss":
            return float(self.loss[name].mean() / self.loss["served"].mean() - 1)
        return float(1 - np.nanmean(self.order[name]) / self.mean)

    def _order(self, noise: float, slip_SN: Array, chance_SN: Array | None = None) -> Array:
        score_SN = (self._chance_SN if chance_SN is None else chance_SN) + noise * slip_SN
        discount_N = 1 / np.log2(np.arange(ITEMS) + 2)
        best_S = -np.sort(-self._label_SN) @ discount_N
        found_S = np.take_along_axis(self._label_SN, np.argsort(-score_SN), 1) @ discount_N
        return np.where(best_S > 0, found_S / best_S.clip(discount_N[-1]), np.nan)

    def _loss(self, noise: float, slip_SN: Array) -> Array:
        chance_SN = np.clip(self._chance_SN + noise * slip_SN, 0.01, 0.99)
        return np.asarray(log_losses(self._label_SN, chance_SN).sum(1), np.float64)

    def _fitting(self, share: float, slip_SN: Array) -> float:
        """The noise that costs this share, by bisection."""
        low, high = 0.0, 1.0
        for _ in range(14):
            middle = (low + high) / 2
            more = np.nanmean(self._order(middle, slip_SN)) < self.mean * (1 - share)
            low, high = (low, middle) if more else (middle, high)
        return (low + high) / 2


def worse(share: float) -> str:
    """The name of a candidate that loses this share of its NDCG."""
    return f"-{share:.1%}"


@dataclass(frozen=True, kw_only=True)
class Course:
    """What became of one candidate while its window filled, at any of its looks.

    Attributes:
        false: it passed with a loss beyond a margin that the verdict stated.
        loose: it passed with a loss of all people beyond the tolerance.
        margins: what the last verdict stated, by group, of NDCG.
    """

    refused: bool
    passed: bool
    false: bool
    loose: bool
    margins: dict[str, float]


class Window:
    """Slates of the pool, drawn for random people, as one candidate and the served version are judged on them."""

    def __init__(self, pool: Pool, few: str, most: str, size: int, generator: np.random.Generator) -> None:
        self.pool, self.few, self.most = pool, few, most
        self.rows = generator.integers(len(pool), size=size).tolist()
        self.users = generator.integers(PEOPLE, size=size).tolist()
        self.new, self.old = Sums(CONFIG, window=size), Sums(CONFIG, window=size)

    def judged(self, place: int, few: str, most: str) -> Judged:
        """The slate at this place under a version that has these names for the few and for most."""
        row, user = self.rows[place], self.users[place]
        name = few if user < SHARE * PEOPLE else most
        order = float(self.pool.order[name][row])
        return Judged(
            user=f"u{user}",
            groups=(f"group={'few' if user < SHARE * PEOPLE else 'most'}",),
            loss_T=(float(self.pool.loss[name][row]),),
            rows_T=(ITEMS,),
            positives_T=(0.2 * ITEMS,),
            ndcg=None if np.isnan(order) else order,
            spread=1.0,
            finite=True,
        )

    def fill(self, end: int, served: tuple[str, str] = ("served", "served"), anchor: Anchor | None = None) -> None:
        """Show slates up to this one; the anchor is the version "served"."""
        for place in range(len(self.new), end):
            new = self.judged(place, self.few, self.most)
            self.new.slates[f"r{place}"] = new
            self.old.slates[f"r{place}"] = self.judged(place, *served)
            if anchor is not None:
                old = self.judged(place, *named(anchor))
                anchor.add(f"{id(self)}-{place}", Pair.of(new, old))

    def truth(self, name: str) -> float:
        """The true harm of one test, "measure:group"."""
        measure, _, group = name.partition(":")
        few, most = (self.pool.harm(one, measure) for one in (self.few, self.most))
        return {OVERALL: SHARE * few + (1 - SHARE) * most, "group=few": few, "group=most": most}[group]

    def false(self, verdict: Verdict) -> bool:
        """Whether the truth is beyond a margin that the verdict states."""
        margins = {name: value for name, value in verdict.measures.items() if name.endswith(":margin")}
        return any(self.truth(name.removesuffix(":margin")) > margin for name, margin in margins.items())


def named(anchor: Anchor) -> tuple[str, str]:
    """The names of the anchor's version, for the few and for most."""
    few, _, most = str(anchor.version).partition("|")
    return few, most


def course(pool: Pool, few: str, most: str, size: int, generator: np.random.Generator, *, every: int = EVERY) -> Course:
    """Fill one window with slates of the pool and let the gate look every so often until it passes or refuses."""
    gate, window = Gate(full=size), Window(pool, few, most, size, generator)
    verdict = Verdict("hold")
    for end in range(gate.slates, size + 1, every):
        window.fill(end)
        verdict = gate.judge(window.new, window.old)
        if verdict.decision != "hold":
            break
    passed = verdict.decision == "pass"
    margins = {group: verdict.measures.get(f"ndcg@10:{group}:margin", np.nan) for group in (OVERALL, "group=few")}
    return Course(
        refused=verdict.decision == "refuse",
        passed=passed,
        false=passed and window.false(verdict),
        loose=passed and max(window.truth(f"{one}:{OVERALL}") for one in ("log_loss", "ndcg@10")) > gate.tolerance,
        margins=margins,
    )


def stated(
    pool: Pool, names: tuple[str, str], size: int, every: int, generator: np.random.Generator
) -> dict[str, float]:
    """The mean margin of NDCG by group that verdicts on this candidate state last."""
    some = [course(pool, *names, size, generator, every=every).margins for _ in range(10)]
    return {group: float(np.nanmean([one[group] for one in some])) for group in some[0]}


def candidates(pool: Pool, size: int, every: int, generator: np.random.Generator) -> dict[str, tuple[str, str]]:
    """Names of every kind of candidate for (the few, most); losses beyond the margins that this window states.

    More loss is more noise and so a wider margin: the loss that equals its own margin is come by in three rounds.
    """
    found = {"equal": ("equal", "equal"), "better": ("better", "better"), "poisoned": ("poisoned", "equal")}
    found |= {f"group {worse(loss)}": (pool.losing(loss), "equal") for loss in LOSSES}
    own = everybody = 0.0
    for _ in range(3):
        own = stated(pool, (pool.losing(own), "equal"), size, every, generator)["group=few"]
        everybody = stated(pool, (pool.losing(everybody),) * 2, size, every, generator)[OVERALL]
    for times in BEYOND:
        found[f"group {times:g} margins"] = pool.losing(times * own), "equal"
        found[f"all {times:g} margins"] = (pool.losing(times * everybody),) * 2
    return found


def power(pool: Pool, share: float, generator: np.random.Generator, *, courses: int) -> dict[str, Array]:
    """How often the loss of a group is shown by so many of its slates: "one look" or "all looks" -> (sizes,).

    One look is at the end and only at this group; all looks share the error with those before and, as in the gate,
    with the other tests of two groups.
    """
    gate, name = Gate(), pool.losing(share)
    row_Rn = generator.integers(len(pool), size=(courses, max(SIZES)))
    old_Rn, new_Rn = pool.order["served"][row_Rn], pool.order[name][row_Rn]
    known_Rn = ~np.isnan(old_Rn)
    old_Rn, change_Rn = np.where(known_Rn, old_Rn, 0), np.where(known_Rn, new_Rn - old_Rn, 0)
    count_Rn, old_sum_Rn, sum_Rn = known_Rn.cumsum(1), old_Rn.cumsum(1), change_Rn.cumsum(1)
    harm_Rn = -sum_Rn / old_sum_Rn.clip(1e-9)
    squares_Rn = (change_Rn**2).cumsum(1) + 2 * harm_Rn * (change_Rn * old_Rn).cumsum(1)
    spread_Rn = np.sqrt((squares_Rn + harm_Rn**2 * (old_Rn**2).cumsum(1)).clip(0)) / old_sum_Rn.clip(1e-9)

    def shown(looks: Sequence[int], reach: Callable[[float], float], margin: float) -> Array:
        place = np.array(looks) - 1
        reach_Rl = np.array([[reach(n)] for n in count_Rn[:, place].mean(0)]).T * spread_Rn[:, place]
        harm_Rl = harm_Rn[:, place]
        return np.asarray((harm_Rl > reach_Rl) & (harm_Rl + reach_Rl > margin))

    looks = range(40, max(SIZES) + 1, 20)
    ever_Rl = np.logical_or.accumulate(
        shown(looks, lambda n: reach_of(n, n, (1 - gate.level) / 12, gate.slates), gate.tolerance), 1
    )
    return {
        "one look": shown(SIZES, lambda _: 1.645, 0.0).mean(0),
        "all looks": ever_Rl[:, [looks.index(size) for size in SIZES]].mean(0),
    }


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What became of a chain of candidates: the group's true loss when it stopped, promotions, and what stopped it.

    Attributes:
        lost: share of the group's NDCG lost by the last version that was promoted.
        promoted, moved: promotions, and moves of the anchor.
        accused: share of the candidates that the anchor refused at least once.
    """

    lost: float
    promoted: int
    moved: int
    accused: float


def chain(
    pool: Pool, creep: float, gain: float, links: int, generator: np.random.Generator, *, anchored: bool
) -> Chain:
    """Candidates of which each costs the few `creep` of the version before, while all others gain `gain`.

    Each errs in its own way and has windows of 1,000 slates to pass; one that is not promoted by then ends the chain.
    """
    gate, anchor, promoted = Gate(), Anchor(), 0
    served, moved, accused = ("served", "served"), 0, set[int]()
    if anchored:
        anchor.settle("served|served")
    for link in range(1, links + 1):
        few, most = ((1 - creep) ** link, (1 + gain) ** link)
        candidate = pool.losing(1 - few, own=link), pool.losing(1 - most, own=link)
        passed = False
        for _ in range(TRIES):
            window = Window(pool, *candidate, gate.full, generator)
            for end in range(gate.slates, gate.full + 1, PACE):
                window.fill(end, served, anchor if anchored else None)
                verdict = gate.judge(window.new, window.old, anchor if anchored else None)
                if any(reason.startswith("since ") for reason in verdict.reasons):
                    accused.add(link)
                passed = verdict.decision == "pass"
                if verdict.decision != "hold":
                    break
            if passed:
                break
        if not passed:
            break
        served = candidate
        if anchored and gate.surpassed(anchor):
            anchor.settle("|".join(candidate))
            moved += 1
        promoted = link
    return Chain(
        lost=1 - (1 - creep) ** promoted,
        promoted=promoted,
        moved=moved,
        accused=len(accused) / min(promoted + 1, links),
    )


def single(
    seed: int, *, windows: Sequence[int], courses: int, chains: int, slates: int, links: int
) -> dict[tuple[str, str], float]:
    """Shares over one seed's courses: (kind, "passed | 1000") -> share."""
    pool, shares = Pool(seed, slates), dict[tuple[str, str], float]()
    for size in windows:
        every = max(EVERY, size // 20)
        kinds = candidates(pool, size, every, np.random.default_rng([seed, 4, size]))
        for place, (kind, (few, most)) in enumerate(kinds.items()):
            generator = np.random.default_rng([seed, 2, size, place])
            all_of = [course(pool, few, most, size, generator, every=every) for _ in range(courses)]
            for name in ("passed", "refused", "false", "loose"):
                shares[kind, f"{name} | {size}"] = float(np.mean([getattr(one, name) for one in all_of]))
            shares[kind, f"margin | {size}"] = float(np.nanmean([one.margins["group=few"] for one in all_of]))
    for loss in LOSSES:
        found = power(pool, loss, np.random.default_rng([seed, 5]), courses=10 * courses)
        for arm, share_n in found.items():
            for size, share in zip(SIZES, share_n.tolist(), strict=True):
                shares[f"{worse(loss)}, {arm}", f"shown | {size}"] = share
    for place, (kind, (creep, gain, length)) in enumerate(CHAINS.items()):
        for anchored in (False, True):
            generator = np.random.default_rng([seed, 6, place])
            every_one = [
                chain(pool, creep, gain, min(length, links), generator, anchored=anchored) for _ in range(chains)
            ]
            for name in ("lost", "promoted", "moved", "accused"):
                mean = float(np.mean([getattr(one, name) for one in every_one]))
                shares[f"chain {kind}, {'anchor' if anchored else 'no anchor'}", name] = mean
    return shares


def run(
    *,
    seeds: Sequence[int] = (0,),
    windows: Sequence[int] = WINDOWS,
    courses: int = 40,
    chains: int = 6,
    slates: int = POOL,
    links: int = 40,
) -> Result:
    """All seeds as rows: for each kind of candidate and window, how many were refused and how many passed."""
    one = partial(single, windows=tuple(windows), courses=courses, chains=chains, slates=slates, links=links)
    each = report.each_seed(one, seeds)
    rows = [over_seeds(kind, metric, [found[kind, metric] for found in each]) for kind, metric in each[0]]
    return Result(
        name="gate",
        data=f"simulated slates, {courses} candidates and {chains} chains a seed, group of {SHARE:.0%}",
        seeds=tuple(seeds),
        rows=tuple(rows),
        criterion="over all looks of a window, by the upper end of the interval: under 5 % of equal candidates are "
        "refused, and under 5 % of any kind pass with a true loss beyond the margin that their verdict states; none "
        "that is poisoned passes, four of five better ones do; an anchor refuses under 5 % of the "
        "candidates of equal chains, and with it chains that cost the group a little at each promotion end before "
        f"{MOST:.0%}",
        holds=_holds(rows, windows),
    )


def _holds(rows: Sequence[Row], windows: Sequence[int]) -> bool:
    found = {(row.arm, row.metric): row for row in rows}
    large = [window for window in windows if window >= 1000] or [max(windows)]
    creeping = [row for row in rows if row.arm.startswith("chain creeping") and row.arm.endswith(", anchor")]
    return (
        all(found["equal", f"refused | {window}"].high < 0.05 for window in windows)
        and all(row.high < 0.05 for row in rows if row.metric.startswith("false"))
        and all(found["poisoned", f"refused | {window}"].mean == 1 for window in windows)
        and all(found["better", f"passed | {window}"].low > 0.8 for window in large)
        and found["chain equal, anchor", "accused"].high < 0.05
        and all(row.high < MOST for row in creeping if row.metric == "lost")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    parser = report.arguments("gate", SUMMARY, seeds=5)
    parser.add_argument("--courses", type=count, default=40, metavar="N", help="candidates of each kind a seed")
    parser.add_argument("--chains", type=count, default=6, metavar="N", help="chains of each kind a seed")
    parser.add_argument("--windows", type=count, nargs="+", default=WINDOWS, metavar="N", help="slates of a window")
    options = parser.parse_args(arguments)
    result = run(
        seeds=report.seeds_of(options), windows=options.windows, courses=options.courses, chains=options.chains
    )
    report.publish(result, options, draw=lambda row: row.metric.startswith(("passed", "shown", "lost")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
