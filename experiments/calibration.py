"""Slates in proportion: what the calibrated rerank gives, and what it costs.

    plurank experiment calibration [--events FILE...] [--base ease|plurank] [--validation] [--seeds 3] [--plot]

Each user's last interactions are held out, another share of them by seed. A base ranker (EASE, or plurank's own model)
picks her 200 best items outside of her history; of these the rerank makes a slate of 20. The slate is compared with her
profile as it is served, and with what she came to like. `--validation` does the same inside of the learning part:
settings are chosen there.

Arms: `lambda-X`; `default` as shipped; all else as in it, `personal`, `target` (half of the miscalibration of
lambda 0), `floor`, the other divergences, and `order-X`; `exact`, a MILP for a sample of people, and `greedy` for the
same sample.
Metrics: minority_exposure is how much of what her least interests are due they have of the slate, sum min(q, p) / sum p
over the smallest that together hold a fifth of her profile. coverage is of the catalogue, by all slates. halved is the
miscalibration over that of lambda-0, kept the same of NDCG@10. gap is the optimum less greedy in what both maximise,
gain what greedy reaches of the optimum's lead over plain order.

Axes: U users, N candidates, C categories, S places of the slate.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from experiments import report
from experiments.optimum import Problem, solve
from experiments.report import Result, Row
from ranker import config as declared
from ranker import datasets, metrics
from ranker.baselines import Ease, Triples
from ranker.calibration import personal, rerank, to_target
from ranker.catalogue import Catalogue
from ranker.config import Calibration, Config
from ranker.counters import uncount
from ranker.divergence import attention, divergences
from ranker.errors import DataError
from ranker.events import Event, Interaction, Item, Ranking
from ranker.evidence import EMPTY, Act, Evidence, fold
from ranker.heldout import RIDGES, Splitter, learned
from ranker.inference import Inference
from ranker.interests import effective_acts, population, profile, worth
from services.cli import count

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
Scores = Callable[[int], Array]
"""The scores of all items for the person at a place."""
Base = Literal["ease", "plurank"]

CANDIDATES, SLATE = 200, 20
#: held-out share of each user's interactions, by seed
HELD = (0.2, 0.25, 0.15, 0.3, 0.1)
LAMBDAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
ORDERS = (0.25, 0.5, 0.75, 1.0)
#: how many people's optimum is found, per seed
EXACT = 40
SUMMARY = "Slates in proportion to interests: what the calibrated rerank gives, and what it costs."
CRITERION = "at the default setting miscalibration at most half of lambda 0's, NDCG@10 at least 98 % of its"


@dataclass(frozen=True, kw_only=True)
class Log:
    """An event log: its items, and each user's interactions in their order."""

    name: str
    config: Config
    catalogue: Catalogue
    acts: dict[str, list[Interaction]]
    events: Callable[[], Iterable[Event]]


@dataclass(frozen=True, kw_only=True)
class Person:
    """One user: what is known of her; `seen` and `future`, what she liked afterwards, are rows of the catalogue."""

    user: str
    evidence: Evidence
    now: int
    seen: Rows
    worth: Array
    future: Rows


@dataclass(frozen=True, kw_only=True)
class Case:
    """A slate to make: candidates by falling utility. target_C is the profile as served, `acts` what it rests on."""

    user: str
    rows: Rows
    utility_N: Array
    interests_NC: NDArray[np.float32]
    target_C: Array
    acts: float
    future: Rows


def load(paths: Sequence[Path] | None, config: Path | None = None) -> Log:
    """The log, or MovieLens-100K without one; interests are the configured ones, else the first field of lists.

    Raises:
        DataError: no item has a category.
    """
    events: Callable[[], Iterable[Event]]
    if paths is None:
        own = declared.load(config or Path(__file__).parents[1] / "deploy" / "movielens.toml")
        name, events = "MovieLens-100K", partial(datasets.movielens().events)
    else:
        own = datasets.infer(paths) if config is None else declared.load(config)
        name, events = report.data_name(paths), partial(datasets.read, paths)
    if not own.interest_fields:
        lists = [field for field, kind in own.fields.item.items() if kind == "categories"]
        own = replace(own, interests=next(iter(lists), None))
    own = replace(own, calibration=Calibration())  # as shipped, whatever the file says
    catalogue = Catalogue(own)
    acts: dict[str, list[Interaction]] = {}
    for event in events():
        if isinstance(event, Item):
            catalogue.fold(event)
        elif isinstance(event, Ranking):
            catalogue.see((shown.id for shown in event.items), event.time)
        elif isinstance(event, Interaction):
            catalogue.see((event.item,), event.time)
            acts.setdefault(event.user, []).append(event)
    if not catalogue.categories:
        raise DataError(name, "no item has a category", "name a log whose items have one, or its field in --config")
    return Log(name=name, config=own, catalogue=catalogue, acts=acts, events=events)


def earlier(log: Log, share: float) -> Log:
    """The learning part alone."""
    splitter = Splitter(log.events, "user", share)

    def events() -> Iterable[Event]:
        held = splitter.mark()
        return (event for event in log.events() if not held(event))

    acts = {user: acts[: _kept(len(acts), share)] for user, acts in log.acts.items()}
    return Log(name=log.name, config=log.config, catalogue=log.catalogue, acts=acts, events=events)


def people(log: Log, share: float) -> list[Person]:
    """Everybody of whom something is known, their last interactions held out."""
    found = []
    for user, acts in log.acts.items():
        cut = _kept(len(acts), share)
        if not cut:
            continue
        evidence = EMPTY
        for act in acts[:cut]:
            evidence = fold(evidence, act)
        worths = [_worth(act, evidence, log.config) for act in acts]
        rows = log.catalogue.find([act.item for act in acts])
        liked = rows[cut:][np.array(worths[cut:]) > 0]
        found.append(
            Person(
                user=user,
                evidence=evidence,
                now=max(act.time for act in acts[:cut]),
                seen=rows[:cut],
                worth=np.array(worths[:cut]),
                future=np.setdiff1d(liked, rows[:cut]),
            )
        )
    return found


def _kept(count: int, share: float) -> int:
    """How many interactions are learned from, as ranker/heldout.py counts."""
    return int(count * (1 - share))


def _worth(act: Interaction, evidence: Evidence, config: Config) -> float:
    return worth(Act(act.item, act.type, act.time, act.value), evidence, config.objectives)


def by_ease(log: Log, known: Sequence[Person], l2: float) -> Scores:
    """EASE on what was liked."""
    triples = Triples(
        users_N=np.repeat(np.arange(len(known)), [len(person.seen) for person in known]),
        items_N=np.concatenate([person.seen for person in known]),
        utility_N=np.concatenate([person.worth for person in known]),
        users=len(known),
        items=len(log.catalogue),
    )
    return Ease(triples, l2=l2).scores


def best_ridge(log: Log, share: float) -> float:
    """EASE's ridge, by NDCG@10 inside of the learning part."""
    inner = earlier(log, share)
    known = people(inner, share)

    def quality(l2: float) -> float:
        made = cases(inner, known, by_ease(inner, known, l2))
        return float(np.mean([measured(one, np.arange(SLATE))["ndcg@10"] for one in made]))

    return max(RIDGES, key=quality)


def by_model(log: Log, known: Sequence[Person], share: float, *, seed: int, passes: int) -> Scores:
    """The utility that plurank's own model would serve, learned on the learning part."""
    config = replace(log.config, learning=replace(log.config.learning, seed=seed))
    weights = learned(config, log.events, Splitter(log.events, "user", share), passes=passes)
    uncount(weights)  # asked at each user's own time; counts as of the log's end would tell her the future
    inference = Inference(config, weights)
    inference.attach(log.catalogue)
    weight_T = np.array([objective.weight for objective in config.objectives])
    everything = np.arange(len(log.catalogue))

    def score(place: int) -> Array:
        person = known[place]
        taste = inference.taste(person.evidence, person.now)
        found = inference.score(taste, user={}, request={}, rows=everything, now=person.now)
        preferred_N = inference.preferred(taste, found.utility_N)
        return np.asarray(found.probabilities_NT @ weight_T + config.preference.weight * preferred_N, np.float64)

    return score


def cases(log: Log, known: Sequence[Person], score: Scores) -> list[Case]:
    """The slates to make: for people with interests, and with something that they liked afterwards."""
    shipped, interests_NC = log.config.calibration, log.catalogue.interests_NC
    seen = np.concatenate([person.seen for person in known])
    everybody_C = population(interests_NC, np.bincount(seen, minlength=len(interests_NC)).astype(np.float32))
    asked: dict[str, Any] = {"objectives": log.config.objectives, "half_life": shipped.half_life * 1000}
    found = []
    for place, person in enumerate(known):
        acts = effective_acts(person.evidence, log.catalogue, person.now, **asked)
        prior: dict[str, Any] = {"population_C": everybody_C, "pseudo_acts": shipped.pseudo_acts}
        target_C = profile(person.evidence, log.catalogue, person.now, **asked, **prior)
        if not acts or not len(person.future) or not target_C.any():
            continue
        utility_N = np.array(score(place), np.float64)
        utility_N[person.seen] = -np.inf
        rows = np.argsort(-utility_N, kind="stable")[: min(CANDIDATES, int(np.isfinite(utility_N).sum()))]
        if len(rows) < SLATE:
            continue
        found.append(
            Case(
                user=person.user,
                rows=rows,
                utility_N=utility_N[rows],
                interests_NC=interests_NC[rows],
                target_C=target_C,
                acts=acts,
                future=person.future,
            )
        )
    return found


def slate(case: Case, how: Calibration) -> Rows:
    """The places among the candidates that are shown, in order, as ranker/pipeline.py chooses them."""
    asked: dict[str, Any] = {
        "slots": SLATE,
        "smoothing": how.smoothing,
        "divergence": how.divergence,
        "floor": how.floor,
        "order": how.order,
    }
    candidates = case.utility_N, case.interests_NC, case.target_C
    if how.target is not None:
        return to_target(*candidates, target=how.target, **asked)[0]
    strength = personal(how.strength, case.acts, how.confidence) if how.personal else how.strength
    return rerank(*candidates, strength=strength, **asked)


def measured(case: Case, shown: Rows) -> dict[str, float]:
    """What one slate is worth."""
    interests_SC, p_C = case.interests_NC[shown], case.target_C
    shares_2C = np.stack([interests_SC.sum(0, dtype=np.float64), attention(len(shown)) @ interests_SC])
    total_21 = shares_2C.sum(1, keepdims=True)
    shares_2C /= np.where(total_21 > 0, total_21, 1)
    far, far_seen = divergences(p_C, shares_2C).tolist()
    hits_S = np.isin(case.rows[shown], case.future)
    order_C = np.argsort(p_C, kind="stable")
    order_C = order_C[p_C[order_C] > 0]
    least = order_C[: max(1, int((p_C[order_C].cumsum() <= 0.2 + 1e-9).sum()))]
    gains = {
        f"ndcg@{k}": float(hits_S[:k] @ attention(len(hits_S[:k]))) / float(attention(min(k, len(case.future))).sum())
        for k in (10, 20)
    }
    return {
        "miscalibration": far,
        "exposure_miscalibration": far_seen,
        **gains,
        "minority_exposure": float(np.minimum(shares_2C[0, least], p_C[least]).sum() / p_C[least].sum()),
    }


def arms_of(shipped: Calibration, plain: float) -> dict[str, Calibration]:
    """Every arm's setting; `plain` is the mean miscalibration of the order of utility."""
    fixed = replace(shipped, personal=False, target=None)
    return {
        **{f"lambda-{x:g}": replace(fixed, strength=x) for x in LAMBDAS},
        "default": shipped,
        "personal": replace(fixed, personal=True),
        "target": replace(fixed, target=plain / 2),
        "floor": replace(shipped, floor=True),
        "jensen-shannon": replace(fixed, divergence="jensen-shannon"),
        "hellinger": replace(fixed, divergence="hellinger"),
        **{f"order-{x:g}": replace(shipped, order=x) for x in ORDERS},
    }


Found = dict[str, dict[str, Array]]
"""By arm and metric, a value for each slate (of coverage and the share of the gain, one)."""


def single(log: Log, seed: int, *, base: Base, passes: int, validation: bool, exact: int) -> tuple[Found, list[str]]:
    """One split: all arms' measures, and which user each slate is for."""
    share = HELD[seed % len(HELD)]
    own = earlier(log, share) if validation else log
    known = people(own, share)
    if base == "ease":
        score = by_ease(own, known, best_ridge(own, share))
    else:
        score = by_model(own, known, share, seed=seed, passes=passes)
    made = cases(own, known, score)
    if not made:
        raise DataError(log.name, "no user with interests and a later like", "name a log with longer histories")
    plain = float(np.mean([measured(one, np.arange(SLATE))["miscalibration"] for one in made]))
    found: Found = {}
    for arm, how in arms_of(own.config.calibration, plain).items():
        shown = [slate(one, how) for one in made]
        found[arm] = _columns(made, shown)
        items = {int(row) for one, places in zip(made, shown, strict=True) for row in one.rows[places]}
        found[arm]["coverage"] = np.array([len(items) / len(own.catalogue)])
    found |= optima(made, own.config.calibration, exact, np.random.default_rng(seed))
    return found, [one.user for one in made]


def optima(made: Sequence[Case], how: Calibration, sample: int, draw: np.random.Generator) -> Found:
    """Greedy against the optimum, for a sample of the slates; `gain` is the share of the best gain over plain order."""
    chosen = [made[place] for place in np.sort(draw.permutation(len(made))[:sample])]
    exact, greedy, gaps, gains = [], [], [], []
    for one in chosen:
        problem = Problem(
            one.utility_N,
            one.interests_NC,
            one.target_C,
            slots=SLATE,
            strength=how.strength,
            smoothing=how.smoothing,
            divergence=how.divergence,
        )
        best, quick = solve(problem), slate(one, replace(how, personal=False, target=None, floor=False, order=0.0))
        plain = problem.value(np.arange(SLATE))
        exact.append(np.sort(best.rows))
        greedy.append(quick)
        # by the bound, so that a solver out of time would not flatter greedy
        gaps.append(best.bound - problem.value(quick))
        gains.append((problem.value(quick) - plain) / (best.bound - plain) if best.bound > plain + 1e-6 else 1.0)
    return {
        "exact": _columns(chosen, exact),
        "greedy": {**_columns(chosen, greedy), "gap": np.array(gaps), "gain": np.array(gains)},
    }


def _columns(made: Sequence[Case], shown: Sequence[Rows]) -> dict[str, Array]:
    rows = [measured(one, places) for one, places in zip(made, shown, strict=True)]
    return {metric: np.array([row[metric] for row in rows]) for metric in rows[0]}


def run(
    paths: Sequence[Path] | None,
    *,
    config: Path | None = None,
    base: Base = "ease",
    seeds: Sequence[int] = (0, 1, 2),
    passes: int = 4,
    validation: bool = False,
    exact: int = EXACT,
) -> Result:
    """Measure every arm on every split; intervals are over users, each user's mean over the splits.

    Args:
        base: what the utilities are: EASE, or plurank's model after `passes` through the learning part.
        validation: inside of the learning part, for choosing settings.
        exact: for so many people a split the optimum is found.
    """
    log = load(paths, config)
    runs = [single(log, seed, base=base, passes=passes, validation=validation, exact=exact) for seed in seeds]
    rows: list[Row] = []
    for arm in runs[0][0]:
        for metric in runs[0][0][arm]:
            values = [found[arm][metric] for found, _ in runs]
            if len(values[0]) == len(runs[0][1]):
                averaged = _by_user([one for _, one in runs], values)
                rows.append(report.from_interval(arm, metric, metrics.mean_interval(averaged, generator=_draw())))
            elif metric == "coverage":
                rows.append(report.over_seeds(arm, metric, [float(one[0]) for one in values]))
            else:
                sample = metrics.mean_interval(np.concatenate(values), generator=_draw())
                rows.append(report.from_interval(arm, metric, sample))
    rows += ratios(runs)
    name = f"{log.name}, {base}" + (", validation" if validation else "")
    found = {(row.arm, row.metric): row for row in rows}
    holds = found["default", "halved"].high <= 0.5 and found["default", "kept"].low >= 0.98
    return Result(name="calibration", data=name, seeds=tuple(seeds), rows=tuple(rows), criterion=CRITERION, holds=holds)


def ratios(runs: Sequence[tuple[Found, list[str]]]) -> list[Row]:
    """Means over those of lambda 0, with an interval over users who are in both."""
    rows = []
    users = [one for _, one in runs]
    for arm in runs[0][0]:
        for name, metric in (("halved", "miscalibration"), ("kept", "ndcg@10"), ("kept@20", "ndcg@20")):
            if arm in {"lambda-0", "exact", "greedy"}:
                continue
            own = _by_user(users, [found[arm][metric] for found, _ in runs])
            plain = _by_user(users, [found["lambda-0"][metric] for found, _ in runs])
            weights_RU = metrics.resamples(len(own), 1000, _draw())
            low, high = np.quantile((weights_RU @ own) / (weights_RU @ plain), [0.025, 0.975])
            rows.append(
                Row(
                    arm=arm,
                    metric=name,
                    mean=float(own.mean() / plain.mean()),
                    low=float(low),
                    high=float(high),
                    n=len(own),
                )
            )
    return rows


def _by_user(users: Sequence[Sequence[str]], values: Sequence[Array]) -> Array:
    """Each user's mean over the splits that she is in."""
    _, code = np.unique(np.concatenate([np.asarray(one) for one in users]), return_inverse=True)
    return np.asarray(np.bincount(code, np.concatenate(values)) / np.bincount(code))


def _draw() -> np.random.Generator:
    return np.random.default_rng(0)


def pictured(row: Row) -> bool:
    """Whether the picture shows it: the sweeps of lambda and of order."""
    return row.arm.startswith(("lambda", "default", "order")) and row.metric != "kept@20"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    parser = report.arguments("calibration", SUMMARY)
    parser.add_argument("--base", choices=("ease", "plurank"), default="ease", help="whose utilities are reranked")
    parser.add_argument("--passes", type=count, default=4, help="of plurank's own model through the log (default 4)")
    parser.add_argument("--validation", action="store_true", help="inside of the learning part, to choose settings")
    options = parser.parse_args(arguments)
    result = run(
        options.events,
        config=options.config,
        base=options.base,
        seeds=report.seeds_of(options),
        passes=options.passes,
        validation=options.validation,
    )
    report.publish(result, options, draw=pictured)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
