"""What each group counts for in a learning step, which comparisons are taken again, and what teachers say of them.

Groups are those of one field (`config.balanced_field`). A group's rows weigh its target share over its actual one, so
the mean weight is 1 and the step keeps its size. Targets: equal (reweight), by Group-DRO's rule (group-dro), nearly all
to whichever group fares worst (maxmin). A group too small to be named, or of too few rows so far, is left out: its rows
count as in plain learning, never for nothing.

With `pareto` only comparisons are balanced, to the square root of the share: those of groups that a batch holds too few
of come again from a reservoir of recent ones, and frozen teachers supervise them (ranker/pareto.py): one for each
group, that read more of a person than the learner does. No teacher speaks of the objectives' rows: what one group would
gain by weight another would pay for, so they all count alike.

Axes: E examples of a batch, G groups.
"""

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from msgspec import Struct, msgpack, structs
from numpy.typing import NDArray

from ranker.config import Config
from ranker.evidence import EMPTY, Answer, Evidence, Words
from ranker.pareto import power_shares, robust_shares
from ranker.slates import Compared, Example

#: rows of a group, in a hundred steps, before it is weighed
ROWS = 200.0
#: comparisons kept of each group, and groups of which some are kept
KEPT, GROUPS = 256, 16
#: a row counts at most so many times
MOST = 10.0
#: how fast the mass and the losses of the groups follow
FOLLOW = 0.01
#: Group-DRO's step, the published one: at .05 a few hundred steps gave all the weight to one group in turn
ASCENT = 0.01
#: max-min's share of the usual step, so that a batch without the worst group still teaches
REST = 0.1
#: of each group at least one in so many of a batch's comparisons is taken again where teachers supervise
AGAIN = 16
#: the power of a group's share by which it counts; others are Group-DRO's and max-min's
POWERS = {"reweight": 0.0, "pareto": 0.5}
#: the key of a teacher for everybody
EVERYBODY = "*"


class Labels(Protocol):
    """Who belongs to which group: ranker.groups.Groups."""

    def of(self, user: str) -> dict[str, str]:
        """Field to value; groups too small to be named are left out."""
        ...


class People(Protocol):
    """Whom the examples come from, as known by now: ranker.join.Joiner."""

    @property
    def groups(self) -> Labels:
        """Their groups."""
        ...

    @property
    def evidence(self) -> Mapping[str, Evidence]:
        """What is known of each."""
        ...


@dataclass
class Known:
    """People as they were known at one moment."""

    groups: Labels
    evidence: Mapping[str, Evidence] = field(default_factory=dict)


class _Pair(Struct, array_like=True):
    user: str
    time: int
    evidence: Evidence
    items: tuple[str, ...]
    pairs: tuple[tuple[int, int, float, Answer | None, float], ...]


class _State(Struct, array_like=True):
    mass: dict[str, float]
    loss: dict[str, float]
    share: dict[str, float]
    steps: int


class Balance:
    """Weights, reservoirs and losses of the groups of one field."""

    def __init__(self, config: Config, *, kept: int = KEPT) -> None:
        self.method, self._field = config.fairness.method, config.balanced_field
        self._objectives, self._seed, self._kept = len(config.objectives), config.learning.seed, kept
        self._mass: dict[str, float] = {}
        self._loss: dict[str, float] = {}
        self._share: dict[str, float] = {}
        self._steps = 0
        self._reservoir: dict[str, list[Example]] = {}

    @property
    def repeats(self) -> bool:
        """Whether comparisons come again."""
        return self.method in ("pareto", "self-distil")

    @property
    def follows_losses(self) -> bool:
        """Whether the targets depend on how the groups fare."""
        return self.method in ("group-dro", "maxmin")

    def names(self, examples: Sequence[Example], people: People) -> list[str | None]:
        """The group of each example's person, by the balanced field; None where it is unknown or too small a group."""
        if self.method == "self-distil":
            return [EVERYBODY] * len(examples)
        if self._field is None:
            return [None] * len(examples)
        found = {user: people.groups.of(user).get(self._field) for user in {example.user for example in examples}}
        return [found[example.user] for example in examples]

    def observe(self, names: Sequence[str | None], sizes: Sequence[int]) -> None:
        """Note how many labelled rows or comparisons of each group there are in a batch."""
        count = Counter[str]()
        for name, size in zip(names, sizes, strict=True):
            if name is not None:
                count[name] += size
        for name in sorted({*self._mass, *count}):
            self._mass[name] = self._mass.get(name, 0.0) + FOLLOW * (count[name] - self._mass.get(name, 0.0))
            if name not in count and self._mass[name] < 1e-3:
                del self._mass[name]

    def targets(self) -> dict[str, float]:
        """What each group should count for, adding up to 1; of groups with too few rows nothing is said."""
        if self.method == "self-distil":
            return {EVERYBODY: 1.0}
        large = sorted(name for name, mass in self._mass.items() if mass >= ROWS * FOLLOW)
        if len(large) < 2:
            return {}
        if self.method == "maxmin":
            worst = max(large, key=lambda name: self._loss.get(name, 0.0))
            usual = power_shares([self._mass[name] for name in large], 1.0).tolist()
            return {name: REST * share + (1 - REST) * (name == worst) for name, share in zip(large, usual, strict=True)}
        if self.method == "group-dro":
            known = np.array([self._share.get(name, 1 / len(large)) for name in large])
            return dict(zip(large, (known / known.sum()).tolist(), strict=True))
        shares = power_shares([self._mass[name] for name in large], POWERS[self.method])
        return dict(zip(large, shares.tolist(), strict=True))

    def weigh(self, names: Sequence[str | None], targets: Mapping[str, float]) -> NDArray[np.float32]:
        """What each example's rows count for, (E,), by the usual shares of the groups; 1 on average over all rows."""
        if self.repeats:
            return np.ones(len(names), np.float32)
        total = sum(self._mass.get(name, 0.0) for name in targets)
        weight = {
            name: min(share * total / self._mass[name], MOST)
            for name, share in targets.items()
            if self._mass.get(name, 0.0) > 0
        }
        return np.array([1.0 if name is None else weight.get(name, 1.0) for name in names], np.float32)

    def heard(self, names: Sequence[str | None], losses_E: NDArray[np.floating], rows_E: NDArray[np.floating]) -> None:
        """Note how the groups fared in a step: summed losses and rows of each example."""
        for name in sorted({name for name in names if name is not None}):
            own = np.array([one == name for one in names])
            rows = float(rows_E[own].sum())
            loss = float(losses_E[own].sum()) / rows if rows else float("nan")
            if np.isfinite(loss):
                before = self._loss.get(name, loss)
                self._loss[name] = before + 5 * FOLLOW * (loss - before)
        known = sorted(self._loss)
        if self.method == "group-dro" and known:
            shares = np.array([self._share.get(name, 1 / len(known)) for name in known])
            raised = robust_shares(shares / shares.sum(), [self._loss[name] for name in known], step=ASCENT)
            self._share = dict(zip(known, raised.tolist(), strict=True))

    # -- comparisons that come again -----------------------------------------------------------------------------

    def again(
        self, names: Sequence[str | None], targets: Mapping[str, float], *, least: int = 0
    ) -> tuple[list[Example], NDArray[np.float32]]:
        """Comparisons from the reservoirs for groups that have too few in the batch, and what each group's count for.

        Args:
            names: the groups of the batch's own comparisons.
            least: of each group so many at least.

        Returns:
            Examples to add, and the weights of the batch's own and of the added ones, in this order.
        """
        self._steps += 1
        draws = np.random.default_rng((self._seed, self._steps))
        count = Counter(name for name in names if name is not None)
        total = sum(count[name] for name in targets)
        added: list[Example] = []
        added_names: list[str] = []
        for name, share in targets.items():
            reservoir = self._reservoir.get(name, [])
            wanted = max(round(share * total) - count[name], least if total else 0)
            wanted = min(wanted, len(reservoir), max(total // 2, least))
            if wanted > 0:
                added += [reservoir[place] for place in draws.choice(len(reservoir), wanted, replace=False).tolist()]
                added_names += [name] * wanted
                count[name] += wanted
        there = sum(share for name, share in targets.items() if count[name])
        weight = {
            name: min(share / there * total / count[name], MOST) for name, share in targets.items() if count[name]
        }
        both = [*names, *added_names]
        return added, np.array([1.0 if name is None else weight.get(name, 1.0) for name in both], np.float32)

    def keep(self, examples: Iterable[Example], names: Iterable[str | None]) -> None:
        """Take comparisons into the reservoirs; a full one drops whichever its own name draws, so recent ones stay."""
        for example, name in zip(examples, names, strict=True):
            if name is None or (name not in self._reservoir and len(self._reservoir) >= GROUPS):
                continue
            reservoir = self._reservoir.setdefault(name, [])
            if len(reservoir) < self._kept:
                reservoir.append(example)
            else:
                key = f"{example.user}\0{example.time}\0{example.items[0]}"
                reservoir[zlib.crc32(key.encode("utf-8", "surrogatepass")) % self._kept] = example

    def forget(self, user: str) -> None:
        """Drop this person's comparisons."""
        for name, reservoir in self._reservoir.items():
            self._reservoir[name] = [example for example in reservoir if example.user != user]

    # -- state -----------------------------------------------------------------------------------------------------

    def state(self) -> bytes:
        """Masses, losses and shares of the groups: nothing of a person."""
        return msgpack.encode(_State(self._mass, self._loss, self._share, self._steps))

    def people(self) -> bytes:
        """The reservoirs: kept with the learner's own checkpoint, never with a version."""
        found = {name: [_packed(example) for example in some] for name, some in self._reservoir.items()}
        return msgpack.encode(found)

    def load(self, raw: bytes, people: bytes | None = None) -> None:
        """Take up what `state` and `people` wrote; the reservoirs start empty without the latter."""
        state = msgpack.decode(raw, type=_State)
        self._mass, self._loss, self._share, self._steps = structs.astuple(state)
        found = {} if people is None else msgpack.decode(people, type=dict[str, list[_Pair]])
        self._reservoir = {name: [self._unpacked(one) for one in some] for name, some in found.items()}

    def _unpacked(self, pair: _Pair) -> Example:
        empty_NT = np.zeros((len(pair.items), self._objectives), np.float32)
        return Example(
            ranking="",
            user=pair.user,
            time=pair.time,
            evidence=EMPTY if pair.evidence == EMPTY else pair.evidence,
            request={},
            items=pair.items,
            positions=np.full(len(pair.items), -1, np.int32),
            labels_NT=empty_NT,
            mask_NT=empty_NT,
            pairs=tuple(Compared(*one) for one in pair.pairs),
        )


def _packed(example: Example) -> _Pair:
    pairs = tuple((one.one, one.other, one.share, one.answer, one.weight) for one in example.pairs)
    return _Pair(example.user, example.time, example.evidence, example.items, pairs)


def privileged(example: Example, known: Evidence | None) -> Example:
    """The example in the light of all that is known of the person by now, but for what she did with its own items.

    What came later is read as of its own time; her words tell nothing here, as in all training tastes.
    """
    if known is None or not known.updated:
        known = example.evidence
    own = set(example.items)
    evidence = structs.replace(
        known,
        history=tuple(act for act in known.history if act.item not in own),
        answers=tuple(one for one in known.answers if one.preferred not in own and one.over not in own),
        words=Words(),
    )
    return _at(example, evidence)


def _at(example: Example, evidence: Evidence) -> Example:
    return Example(
        ranking=example.ranking,
        user=example.user,
        time=max(example.time, evidence.updated),
        evidence=evidence,
        request=example.request,
        items=example.items,
        positions=example.positions,
        labels_NT=example.labels_NT,
        mask_NT=example.mask_NT,
        inline=example.inline,
        closing=example.closing,
        pairs=example.pairs,
    )
