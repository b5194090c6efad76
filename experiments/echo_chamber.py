"""Echo chamber: six months in a closed loop with people whose tastes drift toward what they look at.

    plurank experiment echo-chamber [--seeds 5] [--plot] [--novelty 0.2 --gap 0.15 --limit 0.1]

Every slate comes out of the service's own request path (`ranker.pipeline`: profile, calibrated rerank, guard,
exploration) over evidence that is folded by `ranker.evidence`, and every taste is the Laplace posterior of
`ranker.questions` over her last 100 acts. Simplified is the model: base rewards and intercepts are the true ones,
learning a month's data is learning the population's prior anew (empirical Bayes), and there is one objective.

The people are made up: what each likes is a share of interests and a style, so satisfaction is known; the interests
move by `Recipe.drift` a day toward those of what she looked at. That tastes follow exposure is an assumption, and the
worst case for personalisation; it is not a finding. After chaney2018algorithmic, whose Jaccard index is `homogeneity`.

Axes: U users, N candidates of a day, S places, C categories, K base rewards (categories and style).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from pathlib import Path

import numpy as np
from msgspec import structs
from numpy.typing import NDArray
from scipy.special import expit

from experiments import report
from experiments.report import COLOURS, Result, Row
from ranker import events
from ranker.catalogue import Catalogue, Item
from ranker.config import Calibration, Config, Exploration, Guard, Inputs, Objective, Serving
from ranker.errors import DataError
from ranker.evidence import EMPTY, Act, Evidence, fold
from ranker.inference import Scores
from ranker.metrics import entropy, gini
from ranker.pipeline import Pipeline, Request
from ranker.questions import Asked, answers_factor
from ranker.simulation import examination
from ranker.taste import Factor, Taste, fuse

Array = NDArray[np.float64]

SUMMARY = "Closed loop over six months with drifting tastes: what pooled, personal and guarded slates do to people."
METRICS = ("drift", "homogeneity", "diversity", "gini", "sycophancy_gap", "satisfaction")
ARMS = ("pooled", "personal", "unguarded", "plurank")
DAY_MS = 86_400_000
START_MS = 1_700_000_000_000
#: an item that is liked half of the time lies this far above one of no interest and no merit
RESERVE = 2.2
#: of what she looks at and does not like, so much is dismissed, and the rest leaves no trace
BOTHERED = 0.2


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The world. Two groups of people, four fifths of them in the first, share part of their interests.

    Attributes:
        keen: by how much the logit of liking grows from no interest to all interest in a category.
        drift: how far the interests move, in a day, toward those of what was looked at.
        past: reactions to random items before the first day, one a day.
    """

    users: int = 30
    items: int = 1500
    fresh: int = 100
    places: int = 10
    months: int = 6
    days: int = 30
    categories: int = 12
    styles: int = 4
    keen: float = 6.0
    drift: float = 0.01
    past: int = 60


class People:
    """Who they are, what there is, and what they do with a slate; `interest_UC` is what drifts."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        r = self.recipe = recipe
        build, self._generator = np.random.default_rng(seed).spawn(2)
        common_GC = np.zeros((2, r.categories))
        common_GC[0, :3], common_GC[1, 3:5] = (0.5, 0.3, 0.2), 0.5
        self.group_U = (np.arange(r.users) >= round(0.8 * r.users)).astype(np.int64)
        own_UC = build.dirichlet(np.full(r.categories, 0.25), r.users)
        self.interest_UC = 0.5 * common_GC[self.group_U] + 0.5 * own_UC
        self.style_UX = build.normal(scale=0.7, size=(r.users, r.styles))
        shares_NC = np.zeros((r.items, r.categories))
        for share_C in shares_NC:
            share_C[build.choice(r.categories, build.integers(1, 3), replace=False)] = 1
        self.shares_NC = shares_NC / shares_NC.sum(1, keepdims=True)
        self.phi_NK = np.column_stack([self.shares_NC, build.normal(scale=0.5, size=(r.items, r.styles))])
        self.merit_N = build.normal(scale=0.5, size=r.items)
        self.start_UC = self.interest_UC.copy()
        self.look_S = examination(r.places, decay=1.0)

    def likes(self, user: int, rows: NDArray[np.int64], interest_C: Array | None = None) -> Array:
        """The true chance that she likes each item, by her interests now or by those given."""
        interest_C = self.interest_UC[user] if interest_C is None else interest_C
        taste_K = np.concatenate([self.recipe.keen * interest_C, self.style_UX[user]])
        return np.asarray(expit(self.merit_N[rows] + self.phi_NK[rows] @ taste_K - RESERVE))

    def react(self, user: int, rows: NDArray[np.int64]) -> list[tuple[int, str]]:
        """What she does with a slate, and her interests move toward what she looked at."""
        looked, felt, bothered = self._generator.random((3, len(rows)))
        seen_S = looked < self.look_S[: len(rows)]
        liked_S = felt < self.likes(user, rows)
        done = [
            (int(row), "like" if liked else "dismiss")
            for row, seen, liked, cares in zip(rows, seen_S, liked_S, bothered < BOTHERED, strict=True)
            if seen and (liked or cares)
        ]
        if seen_S.any():
            mean_C = self.shares_NC[rows[seen_S]].mean(0)
            self.interest_UC[user] += self.recipe.drift * (mean_C - self.interest_UC[user])
        return done

    def past(self) -> list[Evidence]:
        """Reactions to one random item a day before the first day."""
        found = []
        for user in range(self.recipe.users):
            rows = self._generator.integers(self.recipe.items, size=self.recipe.past)
            liked_H = self._generator.random(len(rows)) < self.likes(user, rows)
            kept_H = liked_H | (self._generator.random(len(rows)) < BOTHERED)
            acts = [
                Act(f"i{row}", "like" if liked else "dismiss", START_MS - (len(rows) - day) * DAY_MS)
                for day, (row, liked, kept) in enumerate(zip(rows.tolist(), liked_H, kept_H, strict=True))
                if kept
            ]
            found.append(Evidence(history=tuple(acts), recent=("past",), updated=START_MS - DAY_MS))
        return found

    def today(self) -> NDArray[np.int64]:
        """What there is to show on a day, the same for all."""
        return np.sort(self._generator.choice(self.recipe.items, self.recipe.fresh, replace=False))


@dataclass(frozen=True)
class _Sizes:
    K: int


class Given:
    """What the pipeline asks of a model, with base rewards given: the taste is fitted, nothing else is learned."""

    def __init__(self, people: People, prior: Factor) -> None:
        self._people, self.prior = people, prior
        self.attached, self.sizes = people.recipe.items, _Sizes(people.phi_NK.shape[1])
        self.population_C = people.shares_NC.mean(0)
        self._typical_K, self._typical = people.phi_NK.mean(0), float(people.merit_N.mean())
        self._kept: dict[int, tuple[Evidence, Taste]] = {}

    def masked(self, evidence: Evidence) -> Evidence:
        """Nobody strikes anything here."""
        return evidence

    def taste(self, evidence: Evidence, now: int) -> Taste:
        """The Laplace posterior over the acts: liked, or dismissed, against the reserve.

        A dismissal leaves a trace once in 1 / BOTHERED times, so the odds of a like among traces are that much higher.
        """
        kept = self._kept.get(id(evidence))
        if kept is not None and kept[0] is evidence:
            return kept[1]
        found = fuse(self.prior)
        if evidence.history:
            rows = np.array([int(act.item[1:]) for act in evidence.history])
            asked = Asked(
                differences_AK=self._people.phi_NK[rows],
                offsets_A=self._people.merit_N[rows] - RESERVE - np.log(BOTHERED),
                share_A=np.array([float(act.type == "like") for act in evidence.history]),
                weight_A=np.ones(len(rows)),
            )
            found = fuse(self.prior, [answers_factor(self.prior, asked)], {"history": len(rows)})
        if len(self._kept) > 2 * self._people.recipe.users:
            self._kept.clear()
        self._kept[id(evidence)] = evidence, found
        return found

    def score(self, taste: Taste, *, rows: NDArray[np.int64], **_: object) -> Scores:
        """r = b + z . phi, and the chance of a like."""
        phi_NK = self._people.phi_NK[rows].astype(np.float32)
        reward_N = (phi_NK @ taste.mean_K + self._people.merit_N[rows]).astype(np.float32)
        logits_N1 = reward_N[:, None] - np.float32(RESERVE)
        return Scores(probabilities_NT=expit(logits_N1), logits_NT=logits_N1, utility_N=reward_N, phi_NK=phi_NK)

    def preferred(self, taste: Taste, utility_N: NDArray[np.float32]) -> NDArray[np.float32]:
        """P(preferred to a typical item)."""
        found: NDArray[np.float32] = expit(utility_N - np.float32(self._typical_K @ taste.mean_K + self._typical))
        return found

    def probabilities_at(self, logits_NT: NDArray[np.float32], *_: object) -> NDArray[np.float32]:
        """No tower: the chance of a like of what is looked at."""
        found: NDArray[np.float32] = expit(logits_NT)
        return found

    def gap(self, evidence: Evidence, rows: NDArray[np.int64]) -> float:
        """The sycophancy gap of a slate, whoever made it."""
        hers, anyones = self.taste(evidence, 0), fuse(self.prior)
        chances = [
            self.preferred(taste, self.score(taste, rows=rows).utility_N).astype(np.float64)
            for taste in (hers, anyones)
        ]
        return float((chances[0] - chances[1]).mean())


def learned(people: People, known: Sequence[Evidence], prior: Factor, rounds: int = 3) -> Factor:
    """The population's prior by empirical Bayes: the mean of all tastes, and their spread on each axis."""
    for _ in range(rounds):
        given = Given(people, prior)
        tastes = [given.taste(evidence, 0) for evidence in known]
        mean_UK = np.stack([taste.mean_K for taste in tastes]).astype(np.float64)
        within_UK = np.stack(
            [
                1 / taste.precision_K if taste.precision_K.ndim == 1 else np.diag(np.linalg.inv(taste.precision_K))
                for taste in tastes
            ]
        )
        precision_K = 1 / (mean_UK.var(0) + within_UK.mean(0))
        prior = Factor(precision_K.astype(np.float32), (precision_K * mean_UK.mean(0)).astype(np.float32))
    return prior


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
    kinds: dict[str, int] = field(default_factory=dict)

    def measured(self, people: People) -> dict[str, float]:
        """The month in numbers.

        drift is the total variation between her interests now and on the first day; homogeneity the Jaccard index of
        two people's slates of a day; diversity the entropy (nats) of the interests of what one person was shown;
        gini that of the items' exposure on a day; as_before is satisfaction by her first day's interests.
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
            "minority_satisfaction": float(
                np.reshape(self.satisfied, (-1, len(people.group_U)))[:, people.group_U == 1].mean()
            ),
        }
        return found | {f"{kind}_share": count / slates for kind, count in self.kinds.items()}


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
        pipeline = Pipeline(config, given, catalogue, arm)  # type: ignore[arg-type]  # what rank() asks of an Inference
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


#: what is stated of plurank's last month, chosen on seed 100: homogeneity against `pooled`, and the cost as lost
#: satisfaction of the moment; by her first day's interests nothing may be lost
ALIKE, COST, LOST = 0.5, 0.12, 0.02


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
            if metric in METRICS or any(values):
                rows.append(report.over_seeds(arm, metric, values))
    found = {(row.arm, row.metric): row for row in rows}
    checks = []
    if {"pooled", "personal", "unguarded", "plurank"} <= set(done[0]):
        rows += _compared(done)
        by = {(row.arm, row.metric): row for row in rows}
        checks = [
            by["plurank", "drift over unguarded"].high <= 1,
            by["plurank", "homogeneity over pooled"].high <= ALIKE,
            by["plurank", "diversity less unguarded"].low > 0,
            found["plurank", "sycophancy_gap"].high <= guard.gap,
            by["plurank", "cost against unguarded"].high <= COST,
            by["plurank", "cost as before"].high <= LOST,
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
        criterion="in the last month plurank drifts less than unguarded and shows each person more, its homogeneity is "
        f"at most {ALIKE:.0%} of the pooled arm's its gap at most {guard.gap:.2f}; that costs at most {COST:.0%} of "
        f"the satisfaction without the guard, and at most {LOST:.0%} by the interests of the first day",
        holds=bool(checks) and all(checks),
    )


def _compared(done: Sequence[Lives]) -> list[Row]:
    """Seed by seed, in the last month."""

    def last(arm: str, metric: str) -> Array:
        return np.array([life[arm][-1][metric] for life in done])

    made = {
        "drift over personal": last("plurank", "drift") / last("personal", "drift"),
        "drift over unguarded": last("plurank", "drift") / last("unguarded", "drift"),
        "homogeneity over pooled": last("plurank", "homogeneity") / last("pooled", "homogeneity"),
        "diversity less personal": last("plurank", "diversity") - last("personal", "diversity"),
        "diversity less unguarded": last("plurank", "diversity") - last("unguarded", "diversity"),
        "gap less unguarded": last("plurank", "sycophancy_gap") - last("unguarded", "sycophancy_gap"),
        "cost against unguarded": 1 - last("plurank", "satisfaction") / last("unguarded", "satisfaction"),
        "cost as before": 1 - last("plurank", "as_before") / last("unguarded", "as_before"),
        "cost against personal": 1 - last("plurank", "satisfaction") / last("personal", "satisfaction"),
    }
    return [report.over_seeds("plurank", name, values) for name, values in made.items()]


def drawn(found: Result, recipe: Recipe) -> str:
    """The months as lines with their intervals, a panel for each metric."""
    by, arms = {(row.arm, row.metric): row for row in found.rows}, list(dict.fromkeys(row.arm for row in found.rows))
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
    parser = report.arguments("echo-chamber", SUMMARY, seeds=5)
    default = Guard()
    parser.add_argument("--gap", type=float, default=default.gap, help="the guard's bound of the sycophancy gap")
    parser.add_argument("--limit", type=float, default=default.drift, help="the guard's bound of the profile's drift")
    parser.add_argument("--novelty", type=float, default=default.novelty, help="share of a slate that is to be new")
    parser.add_argument("--drift", type=float, default=Recipe.drift, help="how far interests move in a day")
    options = parser.parse_args(arguments)
    guard = structs.replace(default, gap=options.gap, drift=options.limit, novelty=options.novelty)
    recipe = Recipe(drift=options.drift)
    found = run(seeds=report.seeds_of(options), recipe=recipe, guard=guard)
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
