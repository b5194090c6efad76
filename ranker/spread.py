"""How each group and each person fared in one period, with bootstrap intervals over people (efron1979bootstrap).

A round draws people with replacement, each with all that she did, since slates of one person resemble each other. All
measures are quotients of sums, so a round is one matrix product of counts and people's sums. Groups of a field are
drawn together, so a gap's interval knows what its two sides share. docs/fairness.md defines the measures.

Axes: E entries (a person in one combination of groups), U people, R rounds, V sums of a tally, T objectives.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from ranker import tally
from ranker.config import Config
from ranker.inequality import WORST, inequality
from ranker.tally import ALL, BETTER, OF_SLATES, Floats, Label

LEVEL = 0.95
ROUNDS = 300
#: a person's accuracy counts from so many pairs on; below, it is chance
PAIRS = 10


class Estimate(Struct, frozen=True):
    """A number and its 95 % bootstrap interval over people; None where nothing is known."""

    value: float | None
    low: float | None
    high: float | None


class GroupFigures(Struct, frozen=True, kw_only=True):
    """One group: how many people and slates, and each measure, those of an objective by its name."""

    arm: str
    field: str
    group: str
    people: int
    slates: int
    of_slates: dict[str, Estimate]
    objectives: dict[str, dict[str, Estimate]]


class Gap(Struct, frozen=True, kw_only=True):
    """The best and the worst group of a field by one measure.

    `gap` is |best - worst|, `ratio` the smaller of the two over the larger. Their intervals are of these two groups, so
    a gap whose interval reaches below 0, or a ratio whose reaches above 1, may be chance.
    """

    arm: str
    field: str
    measure: str
    objective: str | None
    best: str
    worst: str
    worst_value: Estimate
    gap: Estimate
    ratio: Estimate


class Inequality(Struct, frozen=True, kw_only=True):
    """How unequal people's own accuracy is, over those with enough pairs of one objective.

    `cvar10` (mean of the worst-served tenth) is withheld until a tenth of them is the minimum of a group.
    """

    arm: str
    objective: str
    people: int
    mean: Estimate
    std: Estimate
    gini: Estimate
    jain: Estimate
    cvar10: Estimate
    spearman_support: Estimate


class Period(Struct, frozen=True, kw_only=True):
    """A stretch of time that was judged once, when it was over. Units: ms since the epoch.

    Attributes:
        versions: that served its slates, by arm.
        people: distinct, over all arms.
    """

    start: int
    end: int
    versions: dict[str, list[str]]
    people: int
    groups: list[GroupFigures]
    gaps: list[Gap]
    inequality: list[Inequality]


@dataclass(frozen=True, slots=True, eq=False)
class _Arm:
    """The people of one arm: each entry's sums, whose they are, and its labels."""

    sums_EV: Floats
    user_E: NDArray[np.int64]
    labels: list[tuple[Label, ...]]
    people: int


def period(
    released: Mapping[tuple[Label, ...], Mapping[bytes, Floats]],
    config: Config,
    *,
    start: int,
    end: int,
    versions: Mapping[str, list[str]],
    minimum: int,
    generator: np.random.Generator,
    rounds: int = ROUNDS,
) -> Period:
    """Judge what was released of people (`GroupSums.drain`), each label of at least `minimum` of them.

    Units: `start` and `end` in ms since the epoch.
    """
    groups: list[GroupFigures] = []
    gaps: list[Gap] = []
    unequal: list[Inequality] = []
    for arm, own in _arms(released):
        counts_RU = np.concatenate([np.ones((1, own.people)), _draws(own.people, rounds, generator)])
        found: dict[str, dict[str, dict[str, Floats]]] = {}
        for label in sorted({label for labels in own.labels for label in labels}):
            mine = np.array([label in labels for labels in own.labels])
            people = len(np.unique(own.user_E[mine]))
            if people < minimum:  # can only be where sums of single people were dropped for lack of room
                continue
            sums_RV = _products(counts_RU[:, own.user_E[mine]], own.sums_EV[mine])
            ratios = tally.measures(sums_RV)
            found.setdefault(label[1], {})[label[2]] = ratios
            slates = round(float(tally.sums(sums_RV[0]).of_slates("slates")))
            groups.append(_figures(label, people, slates, ratios, config))
        for field, several in found.items():
            if field != ALL:
                gaps += _gaps(arm, field, several, config)
        unequal += _inequality(arm, own, counts_RU, config, minimum)
    everybody = {user for people in released.values() for user in people}
    return Period(
        start=start,
        end=end,
        versions={arm: list(names) for arm, names in versions.items()},
        people=len(everybody),
        groups=groups,
        gaps=gaps,
        inequality=unequal,
    )


def _draws(people: int, rounds: int, generator: np.random.Generator) -> Floats:
    """How often each person is drawn in each round: `metrics.resamples` by other draws, in half the time."""
    drawn_RU = generator.integers(0, people, (rounds, people)) + people * np.arange(rounds)[:, None]
    return np.bincount(drawn_RU.ravel(), minlength=rounds * people).reshape(rounds, people).astype(np.float64)


def _arms(released: Mapping[tuple[Label, ...], Mapping[bytes, Floats]]) -> Iterator[tuple[str, _Arm]]:
    by_arm: dict[str, list[tuple[tuple[Label, ...], bytes, Floats]]] = {}
    for labels, people in sorted(released.items()):
        by_arm.setdefault(labels[0][0], []).extend((labels, user, one_V) for user, one_V in sorted(people.items()))
    for arm, entries in sorted(by_arm.items()):
        if entries:
            labels_E, users_E, sums_E = zip(*entries, strict=True)
            names, user_E = np.unique(
                np.array([int.from_bytes(user) for user in users_E], np.uint64), return_inverse=True
            )
            yield arm, _Arm(np.stack(sums_E), user_E, list(labels_E), len(names))


def _products(counts_RE: Floats, sums_EV: Floats) -> Floats:
    """counts @ sums, without the sums that are 0 for everybody: most bins are empty."""
    some_V = sums_EV.any(0)
    sums_RV = np.zeros((len(counts_RE), sums_EV.shape[1]))
    sums_RV[:, some_V] = counts_RE @ sums_EV[:, some_V]
    return sums_RV


def _figures(label: Label, people: int, slates: int, ratios: Mapping[str, Floats], config: Config) -> GroupFigures:
    arm, field, group = label
    return GroupFigures(
        arm=arm,
        field=field,
        group=group,
        people=people,
        slates=slates,
        of_slates={name: estimate(ratios[name]) for name in OF_SLATES},
        objectives={
            objective.name: {name: estimate(ratios[name][:, t]) for name in BETTER if name not in OF_SLATES}
            for t, objective in enumerate(config.objectives)
        },
    )


def _gaps(arm: str, field: str, groups: Mapping[str, Mapping[str, Floats]], config: Config) -> Iterator[Gap]:
    for measure, better in BETTER.items():
        for t, objective in [(None, None)] if measure in OF_SLATES else enumerate(config.objectives):
            values = {
                group: ratios[measure] if t is None else ratios[measure][:, t] for group, ratios in groups.items()
            }
            values = {group: values_R for group, values_R in values.items() if not np.isnan(values_R[0])}
            if len(values) < 2:
                continue
            # a bias is as bad below 0 as above; of what is neither good nor bad, more is named the best
            rank = {
                group: float(abs(values_R[0]) if measure == "bias" else values_R[0]) * (better or 1)
                for group, values_R in values.items()
            }
            best, worst = max(rank, key=lambda group: rank[group]), min(rank, key=lambda group: rank[group])
            best_R, worst_R = values[best], values[worst]
            if measure == "bias":
                best_R, worst_R = np.abs(best_R), np.abs(worst_R)
            up, down = (worst_R, best_R) if better < 0 else (best_R, worst_R)
            yield Gap(
                arm=arm,
                field=field,
                measure=measure,
                objective=None if objective is None else objective.name,
                best=best,
                worst=worst,
                worst_value=estimate(values[worst]),
                gap=estimate(up - down),
                ratio=estimate(tally.ratio(down, up)),
            )


def _inequality(arm: str, own: _Arm, counts_RU: Floats, config: Config, minimum: int) -> Iterator[Inequality]:
    sums_UV = np.zeros((own.people, own.sums_EV.shape[1]))
    np.add.at(sums_UV, own.user_E, own.sums_EV)
    one = tally.sums(sums_UV)
    support_U = tally.ratio(one.of_slates("support"), one.of_slates("supported"))
    for t, objective in enumerate(config.objectives):
        pairs_U = one.count("pairs")[:, t]
        kept = pairs_U >= PAIRS
        n = int(kept.sum())
        if n < max(minimum, 2):
            continue
        accuracy_U, counts = one.count("foretold")[kept, t] / pairs_U[kept], counts_RU[:, kept]
        found = {name: estimate(values_R) for name, values_R in inequality(accuracy_U, support_U[kept], counts).items()}
        if WORST * n < minimum:  # the worst-served tenth is a group too
            found["cvar10"] = Estimate(None, None, None)
        mean_R = tally.ratio(counts @ accuracy_U, counts.sum(1))
        yield Inequality(arm=arm, objective=objective.name, people=n, mean=estimate(mean_R), **found)


def estimate(values_R: Floats) -> Estimate:
    """The first value with the percentiles of the rest, the rounds; rounds without a value are left out.

    Example:
        >>> estimate(np.array([0.5, 0.4, 0.6, np.nan]))
        Estimate(value=0.5, low=0.405, high=0.595)
    """
    told_R = values_R[1:][~np.isnan(values_R[1:])]
    if np.isnan(values_R[0]) or not told_R.size:
        return Estimate(None, None, None)
    low, high = np.quantile(told_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(*(float(f"{number:.4g}") for number in (values_R[0], low, high)))
