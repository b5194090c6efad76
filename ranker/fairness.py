"""Group unfairness as ratios of additive sums, published so that no single request reveals anybody's group.

Every number a group is judged by is a quotient of two sums over its slates (or impressions), so sums of shards, of
windows and of restarts add up, and a gap is the difference of two quotients. What may be seen of the sums is decided
here too, once, for metrics, store and API alike: see `GroupSums.publish`.

Axes: N items of a slate, T objectives, B probability bins.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from msgspec import msgpack
from numpy.typing import NDArray

from ranker import calibration, metrics
from ranker.catalogue import Catalogue
from ranker.config import Config
from ranker.errors import CheckpointError
from ranker.join import Example

#: (arm, group field, group value); the field "all" with the value "all" is everybody
Label = tuple[str, str, str]
#: slates of the served version, of a canary beside it, and slates that plurank did not serve
ARMS = ("current", "canary", "external")
ALL, OTHER, UNKNOWN = "all", "other", "unknown"
#: NDCG is taken over this many places
PLACES = 10
#: fixed edges, so that bins of different shards add up; closer where click rates lie
EDGES = np.array([0.01, 0.02, 0.04, 0.07, 0.12, 0.2, 0.35, 0.5, 0.75])
BINS = len(EDGES) + 1


@dataclass(slots=True, eq=False)
class Tally:
    """The sums of one group. Tallies add.

    Attributes:
        counts_T4: per objective: impressions whose label is known, outcomes (sum of labels), NDCG summed over
            slates, and the number of slates with a positive, over which NDCG is defined.
        bins_TB3: per objective and bin of predicted probability: rows, predicted (sum), outcomes (sum).
        slates: how many.
        miscalibration: C_KL summed over the slates of users with a profile.
        profiled: the number of those slates.
    """

    counts_T4: NDArray[np.float64]
    bins_TB3: NDArray[np.float64]
    slates: int = 0
    miscalibration: float = 0.0
    profiled: int = 0

    @classmethod
    def empty(cls, objectives: int) -> "Tally":
        """Nothing yet."""
        return cls(np.zeros((objectives, 4)), np.zeros((objectives, BINS, 3)))

    def add(self, other: "Tally") -> None:
        """Take in the other's sums."""
        self.counts_T4 += other.counts_T4
        self.bins_TB3 += other.bins_TB3
        self.slates += other.slates
        self.miscalibration += other.miscalibration
        self.profiled += other.profiled

    def pack(self) -> list[Any]:
        """As plain data, for msgpack."""
        counts, bins = self.counts_T4.ravel().tolist(), self.bins_TB3.ravel().tolist()
        return [counts, bins, self.slates, self.miscalibration, self.profiled]

    @classmethod
    def unpack(cls, raw: list[Any]) -> "Tally":
        """Out of `pack`."""
        counts, bins, slates, total, profiled = raw
        objectives = len(counts) // 4
        return cls(
            np.array(counts).reshape(objectives, 4),
            np.array(bins).reshape(objectives, BINS, 3),
            slates,
            total,
            profiled,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What may be said of one group and objective. Every ratio is None where its denominator is 0.

    Attributes:
        impressions: shown items whose label is known.
        outcomes: sum of their labels; for binary objectives the number of positives.
        scored: impressions whose served probability was logged.
        predicted: sum of those probabilities.
        rate: outcomes / impressions: CTR for a click objective.
        calibration_error: sum over bins of |predicted - outcomes| / scored.
        bias: (predicted - outcomes) / scored: above 0, the group is promised more than it gets.
        ndcg: mean NDCG@10 of the order served, over `ranked`, the slates with at least one positive.
        miscalibration: mean C_KL(profile, slate), over the `profiled` slates; the same for every objective.
    """

    arm: str
    field: str
    group: str
    objective: str
    slates: int
    impressions: float
    outcomes: float
    scored: float
    predicted: float
    ndcg_sum: float
    ranked: float
    miscalibration_sum: float
    profiled: int
    rate: float | None
    calibration_error: float | None
    bias: float | None
    ndcg: float | None
    miscalibration: float | None


@dataclass(slots=True, eq=False)
class _Cell:
    """Sums of the users who share all group values, with up to `minimum` of them by hash."""

    tally: Tally
    users: set[bytes] = field(default_factory=set)


class GroupSums:
    """Sums per (arm, group field, group value), of closed slates, and the rule of what may be seen of them.

    Sums wait in cells, one for each combination of group values. `publish` moves whole cells into the published
    sums, and only such cells that every label it touches gains at least `minimum` distinct users by the same step.
    A value that fewer than `minimum` users ever had counts as `other`, under the same rule. Since a cell that has to
    wait waits for all labels at once, the groups of every field add up to the same total, and no difference of
    published numbers isolates fewer than `minimum` people.

    Memory is bounded: at most `cells` cells of `minimum` hashes, and `values` values per field; what comes beyond
    counts as `other`. Users are kept as 8-byte hashes, and no more of them than the rule needs.

    Args:
        minimum: distinct users; config.learning.minimum_group unless given.

    Attributes:
        published: by label, cumulative.
    """

    def __init__(self, config: Config, *, minimum: int | None = None, cells: int = 4096, values: int = 64) -> None:
        self.config = config
        self.minimum = config.learning.minimum_group if minimum is None else minimum
        self.published: dict[Label, Tally] = {}
        self._most_cells, self._most_values = cells, values
        self._objectives = len(config.objectives)
        self._cells: dict[tuple[str, ...], _Cell] = {}
        self._seen: dict[str, dict[str, set[bytes]]] = {name: {} for name in config.groups}

    @property
    def withheld(self) -> int:
        """Slates that wait for more people."""
        return sum(cell.tally.slates for cell in self._cells.values())

    def add(self, example: Example, groups: Mapping[str, str], catalogue: Catalogue) -> None:
        """Count one closed slate; examples that are not `closing` are passed over.

        Args:
            groups: the user's group labels by field; a field without one counts as `unknown`.
        """
        if not example.closing or not example.ranking:
            return
        user = blake2b(example.user.encode(), digest_size=8).digest()
        key = (_arm(example), *(self._value(name, groups.get(name, UNKNOWN), user) for name in self.config.groups))
        if key not in self._cells and len(self._cells) >= self._most_cells:
            key = (key[0], *(OTHER for _ in self.config.groups))
        cell = self._cells.setdefault(key, _Cell(Tally.empty(self._objectives)))
        if len(cell.users) < self.minimum:
            cell.users.add(user)
        cell.tally.add(tally(example, catalogue, self.config))

    def publish(self) -> dict[Label, Tally]:
        """Move what may be seen into `published`; returns the increment by label, {} where nothing may."""
        ready = dict(self._cells)
        while ready:
            users: dict[Label, set[bytes]] = {}
            for key, cell in ready.items():
                for label in self._labels(key):
                    users.setdefault(label, set()).update(cell.users)
            small = {label for label, known in users.items() if len(known) < self.minimum}
            if not small:
                break
            ready = {key: cell for key, cell in ready.items() if small.isdisjoint(self._labels(key))}
        increment: dict[Label, Tally] = {}
        for key, cell in ready.items():
            for label in self._labels(key):
                increment.setdefault(label, Tally.empty(self._objectives)).add(cell.tally)
            del self._cells[key]
        add(self.published, increment, self._objectives)
        return increment

    def merge(self, other: "GroupSums") -> None:
        """Take in another shard's sums, published and waiting."""
        add(self.published, other.published, self._objectives)
        for name, values in other._seen.items():
            for value, users in values.items():
                for user in users:
                    self._value(name, value, user)
        for key, theirs in other._cells.items():
            cell = self._cells.setdefault(key, _Cell(Tally.empty(self._objectives)))
            cell.tally.add(theirs.tally)
            cell.users.update(sorted(theirs.users)[: max(0, self.minimum - len(cell.users))])

    def forget(self, user: str) -> None:
        """Drop the user's hash. Sums that she entered stay: they are counts of many."""
        mark = blake2b(user.encode(), digest_size=8).digest()
        for cell in self._cells.values():
            cell.users.discard(mark)
        for values in self._seen.values():
            for users in values.values():
                users.discard(mark)

    def rows(self) -> list[Row]:
        """What may be seen, cumulative: one row per label and objective, sorted."""
        return rows(self.published, self.config)

    def state(self) -> bytes:
        """Everything, as msgpack; equal sums give equal bytes."""
        seen = {name: {v: sorted(u) for v, u in sorted(values.items())} for name, values in self._seen.items()}
        cells = [[list(k), c.tally.pack(), sorted(c.users)] for k, c in sorted(self._cells.items())]
        done = [[list(label), one.pack()] for label, one in sorted(self.published.items())]
        names = [objective.name for objective in self.config.objectives]
        return msgpack.encode([names, list(self.config.groups), seen, cells, done])

    def load(self, raw: bytes) -> None:
        """Out of `state`.

        Raises:
            CheckpointError: the sums were kept for other objectives or groups.
        """
        names, groups, seen, cells, done = msgpack.decode(raw)
        expected = [[objective.name for objective in self.config.objectives], list(self.config.groups)]
        if [names, groups] != expected:
            raise CheckpointError("group sums", [names, groups], f"they do not fit {expected}; delete the checkpoint")
        self._seen = {name: {value: set(users) for value, users in values.items()} for name, values in seen.items()}
        self._cells = {tuple(key): _Cell(Tally.unpack(one), set(users)) for key, one, users in cells}
        self.published = {(arm, name, value): Tally.unpack(one) for (arm, name, value), one in done}

    def _value(self, name: str, value: str, user: bytes) -> str:
        """The value that this user's slates are kept under, having counted the user toward its minimum."""
        values = self._seen[name]
        if value not in values:
            if len(values) >= self._most_values:
                fewest = min(values, key=lambda known: len(values[known]))
                if len(values[fewest]) >= self.minimum:
                    return OTHER
                del values[fewest]  # so that made-up values cannot keep real ones out for good
            values[value] = set()
        if len(values[value]) < self.minimum:
            values[value].add(user)
        return value

    def _labels(self, key: tuple[str, ...]) -> list[Label]:
        arm, *values = key
        labels = [(arm, ALL, ALL)]
        for name, value in zip(self.config.groups, values, strict=True):
            large = len(self._seen[name].get(value, ())) >= self.minimum
            labels.append((arm, name, value if large else OTHER))
        return labels


def tally(example: Example, catalogue: Catalogue, config: Config) -> Tally:
    """The sums of one closed slate."""
    one = Tally.empty(len(config.objectives))
    one.slates = 1
    known_NT = example.mask_NT > 0
    labels_NT = np.where(known_NT, example.labels_NT, 0.0)
    ordered = bool((example.positions >= 0).all())
    for t in range(len(config.objectives)):
        one.counts_T4[t, :2] = known_NT[:, t].sum(), labels_NT[:, t].sum()
        gain = metrics.ndcg(np.maximum(labels_NT[:, t], 0), -example.positions, PLACES) if ordered else float("nan")
        if np.isfinite(gain):
            one.counts_T4[t, 2:] = gain, 1
    if example.served_NT is not None:
        scored_NT = known_NT & np.isfinite(example.served_NT)
        objective = np.nonzero(scored_NT)[1]
        served = example.served_NT[scored_NT].astype(np.float64)
        entries = np.stack([np.ones(len(served)), served, labels_NT[scored_NT]], axis=1)
        np.add.at(one.bins_TB3, (objective, np.searchsorted(EDGES, served, side="right")), entries)
    target_C = calibration.profile(example.evidence, catalogue, example.time, objectives=config.objectives)
    rows_N = catalogue.find(example.items)
    shown_C = calibration.shares(catalogue.interests_NC[rows_N[rows_N >= 0], : target_C.size])
    if target_C.any() and shown_C.any():
        one.miscalibration = calibration.miscalibration(target_C, shown_C, config.calibration.smoothing)
        one.profiled = 1
    return one


def add(total: dict[Label, Tally], increment: Mapping[Label, Tally], objectives: int) -> None:
    """Add an increment to sums by label, in place."""
    for label, one in increment.items():
        total.setdefault(label, Tally.empty(objectives)).add(one)


def rows(tallies: Mapping[Label, Tally], config: Config) -> list[Row]:
    """The ratios of these sums, one row per label and objective, sorted by label."""
    found = []
    for (arm, name, group), one in sorted(tallies.items()):
        for t, objective in enumerate(config.objectives):
            impressions, outcomes, ndcg, ranked = one.counts_T4[t].tolist()
            scored, predicted, happened = one.bins_TB3[t].sum(0).tolist()
            error = float(np.abs(one.bins_TB3[t, :, 1] - one.bins_TB3[t, :, 2]).sum())
            found.append(
                Row(
                    arm=arm,
                    field=name,
                    group=group,
                    objective=objective.name,
                    slates=one.slates,
                    impressions=impressions,
                    outcomes=outcomes,
                    scored=scored,
                    predicted=predicted,
                    ndcg_sum=ndcg,
                    ranked=ranked,
                    miscalibration_sum=one.miscalibration,
                    profiled=one.profiled,
                    rate=_ratio(outcomes, impressions),
                    calibration_error=_ratio(error, scored),
                    bias=_ratio(predicted - happened, scored),
                    ndcg=_ratio(ndcg, ranked),
                    miscalibration=_ratio(one.miscalibration, one.profiled),
                )
            )
    return found


def gap(found: Iterable[Row], measure: str, *, field: str, objective: str, arm: str = "current") -> float | None:
    """The largest value of a ratio among a field's published groups less the smallest; None below two groups.

    Example:
        >>> gap([], "ndcg", field="gender", objective="click") is None
        True
    """
    chosen = [row for row in found if (row.field, row.objective, row.arm) == (field, objective, arm)]
    values = [value for value in (getattr(row, measure) for row in chosen) if value is not None]
    return max(values) - min(values) if len(values) > 1 else None


def _arm(example: Example) -> str:
    if example.version is None:
        return "external"
    return "canary" if example.arm == "canary" else "current"


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
