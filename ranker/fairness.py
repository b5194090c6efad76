"""Group unfairness as ratios of additive sums, published so that no single request reveals anybody's group.

Every number a group is judged by is a quotient of sums over its slates (ranker/tally.py), so sums of shards, of windows
and of restarts add up, and a gap is the difference of two quotients. What may be seen of the sums is decided here,
once, for metrics, store and API alike: see `GroupSums.publish`. Sums of single people, from which intervals and the
inequality among people come (ranker/spread.py), are released by the same step, and only aggregates of them ever leave.

Axes: V sums of a tally.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from msgspec import msgpack

from ranker import tally
from ranker.catalogue import Catalogue
from ranker.config import Config
from ranker.errors import CheckpointError
from ranker.slates import Example
from ranker.tally import ALL, Floats, Label

#: slates of the served version, of a canary beside it, and slates that plurank did not serve
ARMS = ("current", "canary", "external")
OTHER, UNKNOWN = "other", "unknown"
#: single people's sums that are kept at once; beyond, slates still count for their groups
MOST = 10_000

#: what was released of each person, by the labels that she counts for
Released = dict[tuple[Label, ...], dict[bytes, Floats]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What may be said of one group and objective. Every ratio is None where its denominator is 0.

    Attributes:
        impressions: shown items whose label is known.
        outcomes: sum of their labels; for binary objectives the number of positives.
        scored: impressions whose served probability was logged.
        predicted: sum of those probabilities.
        pairs: of two items of one slate with different outcomes; `foretold` of them in the order that came true.
        rate: outcomes / impressions: CTR for a click objective.
        accuracy: foretold / pairs.
        auc: of the logged probabilities over all rows of the group, from bins of them (`tally.auc_error`).
        calibration_error: sum over bins of |predicted - outcomes| / scored.
        bias: (predicted - outcomes) / scored: above 0, the group is promised more than it gets.
        ndcg: mean NDCG@10 of the order served, over `ranked`, the slates with at least one positive.
        miscalibration: mean C_KL(profile, slate), over the `profiled` slates; the same for every objective.
        exposure: mean share of attention that goes where the person's interests are, over the `exposed` slates.
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
    pairs: float
    foretold: float
    ndcg_sum: float
    ranked: float
    miscalibration_sum: float
    profiled: int
    exposure_sum: float
    exposed: int
    rate: float | None
    accuracy: float | None
    auc: float | None
    calibration_error: float | None
    bias: float | None
    ndcg: float | None
    miscalibration: float | None
    exposure: float | None


@dataclass(slots=True, eq=False)
class _Cell:
    """Sums of the people who share all group values, and of each of them; None where there was no room for hers."""

    sums_V: Floats
    users: dict[bytes, Floats | None] = field(default_factory=dict)

    @property
    def slates(self) -> int:
        return round(float(tally.sums(self.sums_V).of_slates("slates")))


class GroupSums:
    """Sums per (arm, group field, group value), of closed slates, and the rule of what may be seen of them.

    Sums wait in cells, one for each combination of group values. `publish` moves whole cells into the published
    sums, and only such cells that every label it touches gains at least `minimum` distinct users by the same step.
    A value that fewer than `minimum` users ever had counts as `other`, under the same rule. Since a cell that has to
    wait waits for all labels at once, the groups of every field add up to the same total, and no difference of
    published numbers isolates fewer than `minimum` people. The sums of its people move in the same step into
    `released`, so what is told of people covers exactly the slates that what is told of groups covers.

    Memory is bounded: at most `cells` cells, `values` values per field and `people` people's sums; what comes beyond
    counts as `other`, or for its groups only. Users are kept as 8-byte hashes.

    Args:
        minimum: distinct users; config.learning.minimum_group unless given.

    Attributes:
        published: by label, cumulative.
        released: people's sums, published since they were last `drain`ed.
    """

    def __init__(
        self,
        config: Config,
        *,
        minimum: int | None = None,
        cells: int = 4096,
        values: int = 64,
        people: int = MOST,
    ) -> None:
        self.config, self.fields = config, config.group_fields
        self.minimum = config.learning.minimum_group if minimum is None else minimum
        self.published: dict[Label, Floats] = {}
        self.released: Released = {}
        self._most_cells, self._most_values, self._most_people = cells, values, people
        self._objectives = len(config.objectives)
        self._cells: dict[tuple[str, ...], _Cell] = {}
        self._seen: dict[str, dict[str, set[bytes]]] = {name: {} for name in self.fields}
        self._kept = 0

    @property
    def withheld(self) -> int:
        """Slates that wait for more people."""
        return sum(cell.slates for cell in self._cells.values())

    @property
    def full(self) -> bool:
        """Whether there is no room for another person's sums."""
        return self._kept >= self._most_people

    @property
    def people(self) -> int:
        """Distinct people among the released."""
        return len({user for users in self.released.values() for user in users})

    def add(
        self, example: Example, groups: Mapping[str, str], catalogue: Catalogue, *, support: float | None = None
    ) -> None:
        """Count one closed slate; examples that are not `closing` are passed over.

        Args:
            groups: the user's group labels by field; a field without one counts as `unknown`.
            support: her preference support rate, where it is known.
        """
        if not example.closing or not example.ranking:
            return
        user = _mark(example.user)
        key = (arm_of(example), *(self._value(name, groups.get(name, UNKNOWN), user) for name in self.fields))
        if key not in self._cells and len(self._cells) >= self._most_cells:
            key = (key[0], *(OTHER for _ in self.fields))
        cell = self._cells.setdefault(key, _Cell(tally.empty(self._objectives)))
        one_V = tally.of(example, catalogue, self.config, support=support)
        cell.sums_V += one_V
        mine = cell.users.get(user)
        if mine is not None:
            mine += one_V
        elif user not in cell.users:
            if not self.full:
                cell.users[user] = one_V
                self._kept += 1
            elif len(cell.users) < self.minimum:
                cell.users[user] = None

    def publish(self) -> dict[Label, Floats]:
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
        increment: dict[Label, Floats] = {}
        for key, cell in ready.items():
            labels = self._labels(key)
            for label in labels:
                increment.setdefault(label, tally.empty(self._objectives))
                increment[label] += cell.sums_V
            self._release(labels, cell)
            del self._cells[key]
        add(self.published, increment)
        return increment

    def drain(self) -> Released:
        """Hand over the released people's sums and forget them."""
        found, self.released = self.released, {}
        self._kept -= sum(len(users) for users in found.values())
        return found

    def merge(self, other: "GroupSums") -> None:
        """Take in another shard's sums, published and waiting."""
        add(self.published, other.published)
        for name, values in other._seen.items():
            for value, users in values.items():
                for user in users:
                    self._value(name, value, user)
        for key, theirs in other._cells.items():
            cell = self._cells.setdefault(key, _Cell(tally.empty(self._objectives)))
            cell.sums_V += theirs.sums_V
            self._meet(cell.users, theirs.users)
        for labels, people in other.released.items():
            both: dict[bytes, Floats | None] = dict(self.released.get(labels, {}))
            self._meet(both, people)
            self.released[labels] = {user: sums_V for user, sums_V in both.items() if sums_V is not None}

    def forget(self, user: str) -> None:
        """Drop the user's hash and her own sums. Sums that she entered stay: they are counts of many."""
        mark = _mark(user)
        holders: list[dict[bytes, Any]] = [*(cell.users for cell in self._cells.values()), *self.released.values()]
        for users in holders:
            self._kept -= users.pop(mark, None) is not None
        for values in self._seen.values():
            for known in values.values():
                known.discard(mark)

    def rows(self) -> list[Row]:
        """What may be seen, cumulative: one row per label and objective, sorted."""
        return rows(self.published, self.config)

    def state(self) -> bytes:
        """Everything, as msgpack; equal sums give equal bytes."""
        seen = {name: {v: sorted(u) for v, u in sorted(values.items())} for name, values in self._seen.items()}
        cells = [[list(k), c.sums_V.tobytes(), _packed(c.users)] for k, c in sorted(self._cells.items())]
        done = [[list(label), one.tobytes()] for label, one in sorted(self.published.items())]
        released = [[[list(label) for label in k], _packed(users)] for k, users in sorted(self.released.items())]
        return msgpack.encode([self._form(), seen, cells, done, released])

    def load(self, raw: bytes) -> None:
        """Out of `state`.

        Raises:
            CheckpointError: the sums were kept for other objectives or groups, or by another version of plurank.
        """
        form, *rest = msgpack.decode(raw)
        if form != self._form():
            raise CheckpointError("group sums", form, f"they do not fit {self._form()}; delete the checkpoint")
        seen, cells, done, released = rest
        self._seen = {name: {value: set(users) for value, users in values.items()} for name, values in seen.items()}
        self._cells = {tuple(key): _Cell(_sums(one), _unpacked(users)) for key, one, users in cells}
        self.published = {(arm, name, value): _sums(one) for (arm, name, value), one in done}
        self.released = {
            tuple((arm, name, value) for arm, name, value in labels): {
                user: sums_V for user, sums_V in _unpacked(users).items() if sums_V is not None
            }
            for labels, users in released
        }
        self._kept = sum(len(users) for users in self.released.values())
        self._kept += sum(one is not None for cell in self._cells.values() for one in cell.users.values())

    def _form(self) -> list[Any]:
        names = [objective.name for objective in self.config.objectives]
        return [names, list(self.fields), tally.size(len(names))]

    def _release(self, labels: tuple[Label, ...], cell: _Cell) -> None:
        people = self.released.setdefault(labels, {})
        for user, sums_V in cell.users.items():
            if sums_V is None:
                continue
            known = people.get(user)
            people[user] = sums_V if known is None else known + sums_V
            self._kept -= known is not None

    def _meet(self, mine: dict[bytes, Floats | None], theirs: Mapping[bytes, Floats | None]) -> None:
        """Another shard's people join those of the same labels, as far as there is room for their sums."""
        for user, sums_V in theirs.items():
            known = mine.get(user)
            if known is not None and sums_V is not None:
                mine[user] = known + sums_V
            elif user not in mine:
                mine[user] = None if self.full else sums_V
                self._kept += mine[user] is not None

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

    def _labels(self, key: tuple[str, ...]) -> tuple[Label, ...]:
        arm, *values = key
        labels = [(arm, ALL, ALL)]
        for name, value in zip(self.fields, values, strict=True):
            large = len(self._seen[name].get(value, ())) >= self.minimum
            labels.append((arm, name, value if large else OTHER))
        return tuple(labels)


def add(total: dict[Label, Floats], increment: Mapping[Label, Floats]) -> None:
    """Add an increment to sums by label, in place."""
    for label, one_V in increment.items():
        known = total.get(label)
        total[label] = one_V.copy() if known is None else known + one_V


def rows(tallies: Mapping[Label, Floats], config: Config) -> list[Row]:
    """The ratios of these sums, one row per label and objective, sorted by label."""
    found = []
    for (arm, name, group), one_V in sorted(tallies.items()):
        one, ratios = tally.sums(one_V), tally.measures(one_V)
        scored_T3 = one.bins_TB3.sum(1)
        for t, objective in enumerate(config.objectives):
            impressions, outcomes, ndcg, ranked, pairs, foretold = one.counts_TC[t].tolist()
            slates, miscalibration, profiled, exposure, exposed, *_ = one.whole_W.tolist()
            found.append(
                Row(
                    arm=arm,
                    field=name,
                    group=group,
                    objective=objective.name,
                    slates=round(slates),
                    impressions=impressions,
                    outcomes=outcomes,
                    scored=float(scored_T3[t, 0]),
                    predicted=float(scored_T3[t, 1]),
                    pairs=pairs,
                    foretold=foretold,
                    ndcg_sum=ndcg,
                    ranked=ranked,
                    miscalibration_sum=miscalibration,
                    profiled=round(profiled),
                    exposure_sum=exposure,
                    exposed=round(exposed),
                    **{measure: _number(values_T, t) for measure, values_T in ratios.items()},
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


def arm_of(example: Example) -> str:
    """Which of ARMS served this slate."""
    if example.version is None:
        return "external"
    return "canary" if example.arm == "canary" else "current"


def _mark(user: str) -> bytes:
    return blake2b(user.encode(), digest_size=8).digest()


def _number(values_T: Floats, t: int) -> float | None:
    value = float(values_T[t] if values_T.ndim else values_T)
    return None if np.isnan(value) else value


def _sums(raw: bytes) -> Floats:
    return np.frombuffer(raw).copy()


def _packed(users: Mapping[bytes, Floats | None]) -> list[Any]:
    """People's sums at rest. Most of a person's are 0, so only the others are kept."""
    kept: list[Any] = []
    for user, sums_V in sorted(users.items()):
        if sums_V is None:
            kept.append([user])
        else:
            places = np.flatnonzero(sums_V).astype(np.uint16)
            kept.append([user, len(sums_V), places.tobytes(), sums_V[places].tobytes()])
    return kept


def _unpacked(raw: list[Any]) -> dict[bytes, Floats | None]:
    users: dict[bytes, Floats | None] = {}
    for user, *rest in raw:
        users[user] = None
        if rest:
            length, places, values = rest
            sums_V = np.zeros(length)
            sums_V[np.frombuffer(places, np.uint16)] = np.frombuffer(values)
            users[user] = sums_V
    return users
