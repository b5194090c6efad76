"""Echo chamber: six months in a closed loop with people whose tastes drift toward what they look at.

    plurank experiment echo-chamber [--seeds 8] [--plot] [--frontier] [--novelty 0.1 --gap 0.15 --limit 0.1]

Every slate comes out of the service's own request path (`ranker.pipeline`: profile, calibrated rerank, guard,
exploration) over evidence that is folded by `ranker.evidence`. Simplified is the model (`experiments.drifting`): base
rewards and intercepts are the true ones, learning a month's data is learning the population's prior anew, and there is
one objective.

The people are made up: what each likes is a share of interests and a style, so satisfaction is known; the interests
move by `Recipe.drift` a day toward those of what she looked at. That tastes follow exposure is an assumption, and the
worst case for personalisation; it is not a finding. After chaney2018algorithmic, whose Jaccard index is `homogeneity`.

Axes: U users, N candidates of a day, S places, C categories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from pathlib import Path

import numpy as np
from msgspec import structs

from experiments import report
from experiments.drifting import DAY_MS, START_MS, Array, Given, People, Recipe, learned
from experiments.report import COLOURS, Result, Row
from ranker import events
from ranker.catalogue import Catalogue, Item
from ranker.config import Calibration, Config, Exploration, Guard, Inputs, Objective, Serving
from ranker.errors import DataError
from ranker.evidence import EMPTY, Evidence, fold
from ranker.metrics import entropy, gini
from ranker.pipeline import Pipeline, Request, _Known
from ranker.taste import Factor
from services.cli import share

SUMMARY = "Closed loop over six months with drifting tastes: what pooled, personal and guarded slates do to people."
METRICS = ("drift", "homogeneity", "diversity", "gini", "sycophancy_gap", "satisfaction")
ARMS = ("pooled", "personal", "unguarded", "plurank")
#: the arm whose long-term self is the truth: what a guard could do that knew her interests of the first day
TOLD = "told"
#: the guard's bounds in the arms of `--frontier`, beside those of `plurank`
FRONTIER = {
    "drift .2": Guard(gap=1.0, drift=0.2, novelty=0.0),
    "drift .1": Guard(gap=1.0, drift=0.1, novelty=0.0),
    "drift 0": Guard(gap=1.0, drift=0.0, novelty=0.0),
    "drift .2, novelty .1": Guard(gap=0.15, drift=0.2, novelty=0.1),
    "drift .1, novelty .2": Guard(gap=0.15, drift=0.1, novelty=0.2),
    "drift 0, novelty .3": Guard(gap=0.1, drift=0.0, novelty=0.3),
    TOLD: Guard(gap=1.0, drift=0.0, novelty=0.0),
}


def declared(guard: Guard) -> Config:
    """The deployment: the service's defaults but for the slate's length."""
    return Config(
        objectives=(Objective(name="like", event="like"),),
        fields=Inputs(item={"genres": "categories"}),
        interests="genres",
        serving=Serving(slate=10),
        guard=guard,
    )


def manners(guard: Guard) -> dict[str, Config]:
    """How each arm makes its slates; the pooled one also reads no evidence."""
    plurank = declared(guard)
    plain = structs.replace(
        plurank,
        calibration=Calibration(strength=0.0),
        serving=structs.replace(plurank.serving, swap=0.0),
        exploration=Exploration(slot=0.0),
        guard=Guard(on=False),
    )
    return {
        "pooled": plain,
        "personal": plain,
        "unguarded": structs.replace(plurank, guard=Guard(on=False)),
        "plurank": plurank,
    }


@dataclass
class Month:
    """Sums over a month's slates."""

    seen_UC: Array
    alike: list[float] = field(default_factory=list)
    gini: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    satisfied: list[float] = field(default_factory=list)
    as_before: list[float] = field(default_factory=list)
    over: int = 0
    kinds: dict[str, int] = field(default_factory=dict)

    def measured(self, people: People) -> dict[str, float]:
        """The month in numbers.

        drift is the total variation between her interests now and on the first day; homogeneity the Jaccard index of
        two people's slates of a day; diversity the entropy (nats) of the interests of what one person was shown;
        gini that of the items' exposure on a day; as_before is satisfaction by her first day's interests; over_share
        the share of slates whose gap the guard left over its bound, which not even the population's slate may keep.
        """
        slates = len(self.satisfied)
        apart_U = 0.5 * np.abs(people.interest_UC - people.start_UC).sum(1)
        found = {
            "drift": float(apart_U.mean()),
            "homogeneity": float(np.mean(self.alike)),
            "diversity": float(np.mean([entropy(seen_C) for seen_C in self.seen_UC])),
            "gini": float(np.mean(self.gini)),
            "sycophancy_gap": float(np.mean(self.gap)),
            "satisfaction": float(np.mean(self.satisfied)),
            "as_before": float(np.mean(self.as_before)),
            "over_share": self.over / slates,
            "minority_satisfaction": float(
                np.reshape(self.satisfied, (-1, len(people.group_U)))[:, people.group_U == 1].mean()
            ),
        }
        return found | {f"{kind}_share": count / slates for kind, count in self.kinds.items()}


class Told(Pipeline):
    """Holds everybody to her interests of the first day, which only the simulation knows."""

    def __init__(self, config: Config, given: Given, catalogue: Catalogue, version: str, start_UC: Array) -> None:
        super().__init__(config, given, catalogue, version)  # type: ignore[arg-type]  # what rank() asks of it
        self._start_UC = start_UC[:, [int(name[1:]) for name in catalogue.categories]]

    def known(self, user: str, evidence: Evidence, now: int) -> _Known:
        """Her taste as it is, and the truth."""
        return super().known(user, evidence, now)._replace(interests_C=self._start_UC[int(user[1:])])


def lived(recipe: Recipe, seed: int, arm: str, config: Config) -> list[dict[str, float]]:
    """One arm's months; people, items and each day's candidates are the same for all arms of a seed."""
    people = People(recipe, seed)
    config = structs.replace(config, serving=structs.replace(config.serving, slate=recipe.places))
    catalogue = Catalogue(config)
    for row, share_C in enumerate(people.shares_NC):
        catalogue.put(Item(f"i{row}", {"genres": [f"c{c}" for c in np.flatnonzero(share_C)]}, START_MS))
    known = people.past()
    wide = np.full(people.phi_NK.shape[1], 0.25, np.float32)
    prior, found, now = Factor(wide, 0 * wide), [], START_MS
    for _ in range(recipe.months):
        prior = learned(people, known, prior)  # a month's learning
        given = Given(people, prior)
        if arm == TOLD:
            pipeline: Pipeline = Told(config, given, catalogue, arm, people.start_UC)
        else:
            pipeline = Pipeline(config, given, catalogue, arm)  # type: ignore[arg-type]  # what rank() asks of it
        month = Month(np.zeros((recipe.users, recipe.categories)))
        for _ in range(recipe.days):
            _day(people, known, pipeline, given, month, now=now, pooled=arm == "pooled")
            now += DAY_MS
        found.append(month.measured(people))
    return found


def _day(
    people: People, known: list[Evidence], pipeline: Pipeline, given: Given, month: Month, *, now: int, pooled: bool
) -> None:
    rows = people.today()
    names = [f"i{row}" for row in rows.tolist()]
    exposure_N, shown_UN = np.zeros(len(rows)), np.zeros((len(known), len(rows)))
    for user, evidence in enumerate(known):
        request = Request(
            user=f"u{user}", items=names, limit=people.recipe.places, now=now, seed=hash((user, now)) & 0xFFFFFFFF
        )
        slate = pipeline.rank(request, EMPTY if pooled else evidence)
        shown = np.array([int(item.id[1:]) for item in slate.items])
        look_S = people.look_S / people.look_S.sum()
        month.satisfied.append(float(look_S @ people.likes(user, shown)))
        month.as_before.append(float(look_S @ people.likes(user, shown, people.start_UC[user])))
        month.gap.append(given.gap(evidence, shown))
        month.over += (slate.sycophancy_gap or 0.0) > pipeline.config.guard.gap + 1e-9
        month.seen_UC[user] += look_S @ people.shares_NC[shown]
        for one in slate.interventions:
            month.kinds[one.kind] = month.kinds.get(one.kind, 0) + 1
        places = np.searchsorted(rows, shown)
        exposure_N[places] += look_S
        shown_UN[user, places] = 1
        for number, (row, kind) in enumerate(people.react(user, shown)):
            act = events.Interaction(
                id=f"{now}-{number}", timestamp=now + number, user=f"u{user}", item=f"i{row}", type=kind
            )
            known[user] = fold(known[user], act)
    both_UU = shown_UN @ shown_UN.T
    size_U = shown_UN.sum(1)
    upper = np.triu_indices(len(known), 1)
    month.alike.append(float((both_UU / (size_U[:, None] + size_U - both_UU))[upper].mean()))
    month.gini.append(gini(exposure_N))


Lives = Mapping[str, list[dict[str, float]]]


def single(seed: int, *, recipe: Recipe, configs: Mapping[str, Config]) -> Lives:
    """All arms of one seed."""
    return {arm: lived(recipe, seed, arm, config) for arm, config in configs.items()}


#: what is stated of plurank's last month: drift against the pooled and the unguarded arm's (at most .95 of the latter's
#: was stated first and did not hold), homogeneity against the pooled arm's, the share of slates whose gap may lie over
#: its bound, and the cost as lost satisfaction, of the moment and by her first day's interests
DRIFT, MORE, ALIKE, OVER, COST, LOST = 0.9, 1.02, 0.5, 0.01, 0.1, 0.02


def run(
    *,
    seeds: Sequence[int] = range(5),
    recipe: Recipe | None = None,
    guard: Guard | None = None,
    configs: Mapping[str, Config] | None = None,
) -> Result:
    """All arms and seeds; the rows are of the last month, and of every month for the picture."""
    recipe, guard = recipe or Recipe(), guard or Guard()
    configs = configs or manners(guard)
    done = report.each_seed(partial(single, recipe=recipe, configs=configs), seeds)
    return result(done, seeds, recipe, guard)


def result(done: Sequence[Lives], seeds: Sequence[int], recipe: Recipe, guard: Guard) -> Result:
    """All seeds as rows with intervals over seeds, and the verdict."""
    rows: list[Row] = []
    names = list(dict.fromkeys(name for life in done for months in life.values() for name in months[-1]))
    for metric in names:
        for arm in done[0]:
            values = [life[arm][-1].get(metric, 0.0) for life in done]
            if metric in (*METRICS, "over_share") or any(values):
                rows.append(report.over_seeds(arm, metric, values))
    checks = []
    found = {(row.arm, row.metric): row for row in rows}
    if set(ARMS) <= set(done[0]):
        rows += [row for arm in done[0] if arm not in ARMS[:3] for row in _compared(done, arm)]
        by = {row.metric: row for row in rows if row.arm == "plurank"}
        checks = [
            by["drift over pooled"].high <= DRIFT,
            by["drift over unguarded"].high <= MORE,
            by["homogeneity over pooled"].high <= ALIKE,
            by["diversity less unguarded"].low > 0,
            found["plurank", "over_share"].high <= OVER,
            by["cost against unguarded"].high <= COST,
            by["cost as before"].high <= LOST,
        ]
    for month in range(recipe.months):
        rows += [
            report.over_seeds(arm, f"{metric}, month {month + 1}", [life[arm][month][metric] for life in done])
            for metric in METRICS
            for arm in done[0]
        ]
    return Result(
        name="echo-chamber",
        data=f"{recipe.users} made-up people, {recipe.months} months",
        seeds=tuple(seeds),
        rows=tuple(rows),
        criterion=f"in the last month plurank's drift is at most {DRIFT:.0%} of the pooled arm's and {MORE:.0%} of the "
        f"unguarded arm's, its homogeneity at most {ALIKE:.0%} of the pooled arm's, and each person is shown more than "
        f"without the guard; at most {OVER:.0%} of the slates are left with a gap over {guard.gap:.2f}; that costs at "
        f"most {COST:.0%} of the satisfaction without the guard, and at most {LOST:.0%} by the first day's interests",
        holds=bool(checks) and all(checks),
    )


def _compared(done: Sequence[Lives], arm: str) -> list[Row]:
    """One guarded arm, seed by seed, in the last month."""

    def last(arm: str, metric: str) -> Array:
        return np.array([life[arm][-1][metric] for life in done])

    made = {
        "drift over pooled": last(arm, "drift") / last("pooled", "drift"),
        "drift over unguarded": last(arm, "drift") / last("unguarded", "drift"),
        "drift over personal": last(arm, "drift") / last("personal", "drift"),
        "homogeneity over pooled": last(arm, "homogeneity") / last("pooled", "homogeneity"),
        "diversity less personal": last(arm, "diversity") - last("personal", "diversity"),
        "diversity less unguarded": last(arm, "diversity") - last("unguarded", "diversity"),
        "gap less unguarded": last(arm, "sycophancy_gap") - last("unguarded", "sycophancy_gap"),
        "cost against unguarded": 1 - last(arm, "satisfaction") / last("unguarded", "satisfaction"),
        "cost as before": 1 - last(arm, "as_before") / last("unguarded", "as_before"),
        "cost against personal": 1 - last(arm, "satisfaction") / last("personal", "satisfaction"),
    }
    return [report.over_seeds(arm, name, values) for name, values in made.items()]


def drawn(found: Result, recipe: Recipe) -> str:
    """The months as lines with their intervals, a panel for each metric."""
    by, arms = {(row.arm, row.metric): row for row in found.rows}, ARMS
    wide, high, left, top = 260, 190, 56, 92
    size = (3 * wide + 30, top + 2 * high + 10)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" font-family="sans-serif" '
        f'font-size="12" role="img"><title>echo-chamber: {escape(found.criterion)}</title>'
        f'<rect width="{size[0]}" height="{size[1]}" fill="white"/>'
        f'<text x="10" y="20" font-size="14" font-weight="bold">echo-chamber</text>'
        f'<text x="120" y="20" fill="#555">{escape(found.data)}, {len(found.seeds)} seeds, mean and 95 % interval by '
        "month</text>"
    ]
    for place, arm in enumerate(arms):
        x = 14 + 130 * place
        parts.append(
            f'<path d="M{x} 42 h22" stroke="{COLOURS[place]}" stroke-width="3"/>'
            f'<text x="{x + 28}" y="46">{escape(arm)}</text>'
        )
    for number, metric in enumerate(METRICS):
        x0, y0 = left + wide * (number % 3), top + high * (number // 3)
        across, down = wide - 76, high - 60
        rows = {arm: [by[arm, f"{metric}, month {m + 1}"] for m in range(recipe.months)] for arm in arms}
        ends = [end for line in rows.values() for row in line for end in (row.low, row.high)]
        low, span = min(ends), (max(ends) - min(ends)) or 1.0

        parts.append(
            f'<text x="{x0 + across / 2}" y="{y0 - 12}" text-anchor="middle" font-weight="bold">{metric}</text>'
            f'<path d="M{x0} {y0} V{y0 + down} H{x0 + across}" fill="none" stroke="#999"/>'
            f'<text x="{x0}" y="{y0 + down + 16}" text-anchor="middle" fill="#555">1</text>'
            f'<text x="{x0 + across}" y="{y0 + down + 16}" text-anchor="middle" fill="#555">{recipe.months}</text>'
        )
        parts += [
            f'<text x="{x0 - 6}" y="{y0 + down * (1 - share) + 4}" text-anchor="end" fill="#555">'
            f"{low + share * span:.2f}</text>"
            for share in (0.0, 0.5, 1.0)
        ]
        for place, (_, line) in enumerate(rows.items()):
            months_M = x0 + across * np.arange(recipe.months) / max(recipe.months - 1, 1)
            upper, lower, middle = (
                [
                    f"{x:.1f} {y0 + down * (1 - (value - low) / span):.1f}"
                    for x, value in zip(months_M, ends, strict=True)
                ]
                for ends in zip(*((row.high, row.low, row.mean) for row in line), strict=True)
            )
            parts.append(
                f'<path d="M{" L".join([*upper, *reversed(lower)])} Z" fill="{COLOURS[place]}" fill-opacity=".15"/>'
                f'<path d="M{" L".join(middle)}" fill="none" stroke="{COLOURS[place]}" stroke-width="2"/>'
            )
    return "\n".join([*parts, "</svg>", ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    parser = report.arguments("echo-chamber", SUMMARY, seeds=8)
    default = Guard()
    parser.add_argument("--gap", type=share, default=default.gap, help="the guard's bound of the sycophancy gap")
    parser.add_argument("--limit", type=share, default=default.drift, help="the guard's bound of the profile's drift")
    parser.add_argument("--novelty", type=share, default=default.novelty, help="share of a slate that is to be new")
    parser.add_argument("--drift", type=share, default=Recipe.drift, help="how far interests move in a day")
    parser.add_argument("--frontier", action="store_true", help="the guard in other strengths too: cost against drift")
    options = parser.parse_args(arguments)
    guard = structs.replace(default, gap=options.gap, drift=options.limit, novelty=options.novelty)
    recipe = Recipe(drift=options.drift)
    configs = manners(guard) | (
        {name: declared(bounds) for name, bounds in FRONTIER.items()} if options.frontier else {}
    )
    found = run(seeds=report.seeds_of(options), recipe=recipe, guard=guard, configs=configs)
    if options.plot:
        picture = Path("docs/experiments/echo-chamber.svg")
        try:
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_text(drawn(found, recipe), "utf-8")
        except OSError as error:
            raise DataError(str(picture), error.strerror, "run --plot where docs/experiments can be written") from None
    options.plot = False
    if not options.json:
        found = replace(found, rows=tuple(row for row in found.rows if ", month" not in row.metric))
    report.publish(found, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
