"""Slates meet what people did with them: each event in, the labelled rows that became learnable out.

A positive is learned when it arrives, a negative when its objective's `wait` has passed in event time, and a
positive later than that gets one corrective row; so every (slate, item, objective) is learned once, or twice
where the first label proved wrong. Value objectives are learned at their wait, with the largest value seen.
Joins close by event time, never by wall clock, so that a replay is exact. Each partition of the log has its own
clock, because a backlog is not read evenly: a user's ranking and feedback share a partition, and another
partition that is hours ahead may not turn feedback that is still unread into negatives. Only rankings and
interactions move a clock: catalogue imports carry the time of the import.

State is bounded: users are kept least-recently-used, a slate for KEEP times the longest wait.

Axes: N items of a slate, T objectives.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np
from msgspec import Struct, msgpack
from msgspec.structs import replace

from ranker import comparisons, events
from ranker.catalogue import Catalogue, Item
from ranker.config import Config, Threshold
from ranker.errors import ConfigError
from ranker.events import Comparison, Event, Forget, Interaction, Ranking, User
from ranker.evidence import EMPTY, Evidence, Mean, fold
from ranker.groups import Groups
from ranker.slates import BLANK, Example, Foreseen, Mark, Packed, Slate

__all__ = ["KEEP", "Example", "Joiner"]

#: a slate is forgotten after this many times the longest wait; later feedback to it is ignored
KEEP = 4


class _Held(Struct, array_like=True):
    """Feedback that came before its ranking; `marks` are (objective, label)."""

    user: str
    item: str
    time: int
    partition: int
    type: str
    value: float | None
    marks: list[Mark]


class _State(Struct, array_like=True):
    objectives: list[str]
    items: list[Item]
    categories: list[str]
    pool: list[Evidence]
    users: list[tuple[str, int]]
    groups: bytes
    forgotten: list[tuple[str, int]]
    slates: list[Packed]
    held: list[tuple[str, list[_Held]]]
    clocks: dict[int, int]
    due: dict[int, list[tuple[int, int, str]]]
    number: int
    counts: tuple[int, int, int]


class Joiner:
    """Folds a log into evidence, catalogue and groups, and joins slates with their feedback.

    Args:
        users: how many users' evidence is kept.
        slates: how many slates are kept at most, whatever their waits.
        opening: also return an `opening` example for each new slate, for predictions before any learning.
        pairs: also return comparisons: answers, and grades against earlier ones (ranker/comparisons.py).

    Attributes:
        now: the largest time of a ranking or interaction so far, ms.
        ignored: feedback that labels nothing: foreign items, users or slates, or too late.
        duplicates: events seen before.
        dropped: slates given up because there were more than `slates`.
    """

    def __init__(
        self, config: Config, *, users: int = 200_000, slates: int = 200_000, opening: bool = False, pairs: bool = False
    ) -> None:
        self.config = config
        self.catalogue = Catalogue(config)
        self.evidence: OrderedDict[str, Evidence] = OrderedDict()
        self.groups = Groups(config)
        self.ignored = self.duplicates = self.dropped = 0
        self._users, self._most, self._opening, self._pairs = users, slates, opening, pairs
        self._group_fields, self._discover = frozenset(config.groups), config.fairness.discover
        self._objectives, self._gain_T = len(config.objectives), comparisons.gains(config)
        waits = [round(objective.wait * 1000) for objective in config.objectives]
        self._stages = sorted(set(waits))
        self._closing = [np.array([wait == stage for wait in waits]) for stage in self._stages]
        self._values = np.array([objective.kind == "value" for objective in config.objectives])
        self._keep = KEEP * self._stages[-1]
        self._forgotten: OrderedDict[str, int] = OrderedDict()
        self._slates: OrderedDict[str, Slate] = OrderedDict()
        self._held: OrderedDict[str, list[_Held]] = OrderedDict()
        self._clocks: dict[int, int] = {}
        self._due: dict[int, list[tuple[int, int, str]]] = {}
        self._number = 0

    @property
    def now(self) -> int:
        """The event-time watermark over all partitions, ms; 0 before the first event."""
        return max(self._clocks.values(), default=0)

    @property
    def pending(self) -> int:
        """Slates that are kept now."""
        return len(self._slates)

    def push(self, event: Event, partition: int = 0) -> list[Example]:
        """Fold one event; returns what became learnable by it, in a fixed order."""
        if isinstance(event, events.Item):
            self.catalogue.fold(event)
            return []
        user, time = event.user, event.time
        if isinstance(event, Forget):
            self._forget(user, time)
            return []
        if time <= self._forgotten.get(user, -1):
            self.ignored += 1
            return []
        out: list[Example] = []
        if isinstance(event, Ranking):
            self._advance(time, partition, out)
            self._open(event, time, partition, out)
            return out
        before = self.evidence.get(user, EMPTY)
        after = fold(before, event, groups=self._group_fields)
        if after is before:
            self.duplicates += 1
            return out
        self._keep_user(user, after)
        if isinstance(event, Interaction):
            self._advance(time, partition, out)
            self._feedback(event, time, partition, before, out)
            if event.ranking is None:
                known = _as_of(before, time, [])
                pair = comparisons.graded(event, known, self._objectives) if self._pairs else None
                if self._discover:
                    # the same two items, where nothing lies in the future
                    shared = self._pairs and known is before
                    sides = pair and pair.items if shared else comparisons.sides(event, before)
                    if sides:
                        self.groups.compare(user, sides[0], sides[1])
                self._compared(pair, out)
        elif isinstance(event, Comparison):
            self.catalogue.see((event.preferred, event.over), time)
            if event.outcome == "preferred" and event.retracts is None:
                self.groups.compare(user, event.preferred, event.over)
            if self._pairs:
                self._compared(comparisons.answered(event, _as_of(before, time, []), self._objectives), out)
        elif isinstance(event, User):
            self.groups.declare(event)
        return out

    def catch_up(self, partitions: Iterable[int] | None = None) -> list[Example]:
        """Bring idle partitions' clocks (by default all) to `now`, when they are known to hold nothing unread."""
        out: list[Example] = []
        now = self.now
        for partition in sorted(self._clocks.keys() if partitions is None else self._clocks.keys() & set(partitions)):
            self._advance(now, partition, out)
        return out

    def flush(self) -> list[Example]:
        """The end of a finite log: closes every slate as if all waits had passed."""
        out: list[Example] = []
        for partition in sorted(self._due):
            self._close(partition, None, out)
        self._held.clear()
        return out

    def note(self, ranking: str, foreseen: Foreseen) -> None:
        """Keep a prediction made when the slate opened; its closing example will carry it."""
        slate = self._slates.get(ranking)
        if slate is not None:
            slate.foreseen = Foreseen(*(part.astype(np.float32) for part in foreseen))

    def _keep_user(self, user: str, evidence: Evidence) -> None:
        self.evidence[user] = evidence
        self.evidence.move_to_end(user)
        if len(self.evidence) > self._users:
            oldest, _ = self.evidence.popitem(last=False)
            self.groups.forget(oldest)

    def _forget(self, user: str, time: int) -> None:
        self.evidence.pop(user, None)
        self.groups.forget(user)
        for ranking in [name for name, slate in self._slates.items() if slate.user == user]:
            del self._slates[ranking]
        for ranking, held in list(self._held.items()):
            kept = [one for one in held if one.user != user]
            if kept:
                self._held[ranking] = kept
            else:
                del self._held[ranking]
        self._forgotten[user] = max(time, self._forgotten.pop(user, 0))
        if len(self._forgotten) > self._users:
            self._forgotten.popitem(last=False)

    # -- slates ------------------------------------------------------------------------------------------------

    def _open(self, event: Ranking, time: int, partition: int, out: list[Example]) -> None:
        if event.id in self._slates:
            self.duplicates += 1
            return
        if self._clocks[partition] > time + self._keep:
            self.ignored += 1
            return
        catalogue = self.catalogue
        names = [shown.id for shown in event.items]
        catalogue.see(names, time)
        # the catalogue's own strings, so that a million impressions do not hold a million copies of an id
        rows, known = catalogue.rows, catalogue.items
        items = tuple([known[rows[name]].id for name in names])
        held = self._held.pop(event.id, [])
        evidence = self.evidence.get(event.user, EMPTY)
        if evidence is not EMPTY:
            self.evidence.move_to_end(event.user)
        self._number += 1
        own = [one for one in held if one.user == event.user]
        slate = Slate.opened(event, self._number, items, _as_of(evidence, time, own), self._objectives)
        self._slates[event.id] = slate
        if len(self._slates) > self._most:
            self._slates.popitem(last=False)
            self.dropped += 1
        if self._opening:
            out.append(slate.example(np.zeros(slate.status_NT.shape, np.bool_), opening=True))
        for one in held:
            self._apply(slate, one.user, one.item, one.marks, out)
        heapq.heappush(self._due.setdefault(partition, []), (time + self._stages[0], slate.number, slate.ranking))
        self._close(partition, self._clocks[partition], out)

    def _advance(self, time: int, partition: int, out: list[Example]) -> None:
        if time > self._clocks.get(partition, -1):
            self._clocks[partition] = time
            self._close(partition, time, out)

    def _close(self, partition: int, clock: int | None, out: list[Example]) -> None:
        """Close what is due before the clock; None closes everything."""
        due = self._due.get(partition, [])
        while due and (clock is None or due[0][0] < clock):
            _, number, ranking = heapq.heappop(due)
            slate = self._slates.get(ranking)
            if slate is None or slate.number != number:
                continue
            if slate.stage == len(self._stages):
                del self._slates[ranking]
                continue
            mask_NT = slate.close(self._closing[slate.stage])
            rows_N = mask_NT.any(1)
            if rows_N.any():
                out.append(slate.example(mask_NT, None if rows_N.all() else np.flatnonzero(rows_N)))
            if slate.stage == len(self._stages):
                closed = slate.example(slate.status_NT != BLANK, closing=True)
                if self._discover:
                    for one, other in comparisons.choices(closed, self._gain_T):
                        self.groups.compare(closed.user, closed.items[one], closed.items[other])
                out.append(closed)
            last = slate.stage == len(self._stages)
            after = self._keep if last else self._stages[slate.stage]
            heapq.heappush(due, (slate.time + after, number, ranking))

    # -- feedback ----------------------------------------------------------------------------------------------

    def _feedback(self, event: Interaction, time: int, partition: int, before: Evidence, out: list[Example]) -> None:
        marks = self._marks(event, before)
        if event.ranking is None:
            self.catalogue.see((event.item,), time)
            known = [(objective, label) for objective, label in marks if label is not None]
            if known:
                out.append(self._direct(event, time, before, known))
            return
        slate = self._slates.get(event.ranking)
        if slate is not None:
            self._apply(slate, event.user, event.item, marks, out)
            return
        held = _Held(event.user, event.item, time, partition, event.type, event.value, marks)
        self._held.setdefault(event.ranking, []).append(held)
        while self._held:
            oldest = next(iter(self._held.values()))[0]
            past = self._clocks[oldest.partition] > oldest.time + self._stages[-1]
            if not past and len(self._held) <= self._most:
                break
            self.ignored += len(self._held.popitem(last=False)[1])

    def _marks(self, event: Interaction, before: Evidence) -> list[Mark]:
        """What the interaction says of each objective; None where it cannot be known (no mean of the user yet)."""
        marks: list[Mark] = []
        for place, objective in enumerate(self.config.objectives):
            if objective.event == event.type:
                if objective.kind == "value":
                    if event.value is not None:
                        marks.append((place, event.value))
                elif objective.threshold is None:
                    marks.append((place, 1.0))
                elif event.value is not None:
                    marks.append((place, _reaches(event.value, objective.threshold, before, event.type)))
            graded = objective.graded
            if graded is not None and graded.event == event.type and event.ranking is None and event.value is not None:
                if graded.at_least is not None:
                    marks.append((place, _reaches(event.value, graded.at_least, before, event.type)))
                elif graded.at_most is not None:
                    marks.append((place, _reaches(event.value, graded.at_most, before, event.type, most=True)))
        return marks

    def _apply(self, slate: Slate, user: str, item: str, marks: Sequence[Mark], out: list[Example]) -> None:
        """Enter feedback into its slate; what it makes known is learned at once."""
        try:
            row = slate.items.index(item) if slate.user == user else -1
        except ValueError:
            row = -1
        if row < 0:
            self.ignored += 1
            return
        mask_NT = slate.mark(row, marks, self._values)
        if mask_NT is not None:
            out.append(slate.example(mask_NT, slice(row, row + 1)))

    def _direct(self, event: Interaction, time: int, before: Evidence, known: list[tuple[int, float]]) -> Example:
        labels_NT = np.zeros((1, self._objectives), np.float32)
        mask_NT = np.zeros((1, self._objectives), np.float32)
        for place, label in known:
            labels_NT[0, place], mask_NT[0, place] = label, 1
        return Example(
            ranking="",
            user=event.user,
            time=time,
            evidence=_as_of(before, time, []),
            request=events.fields_of(event.fields),
            items=(event.item,),
            positions=comparisons.UNPLACED[:1],
            labels_NT=labels_NT,
            mask_NT=mask_NT,
        )

    def _compared(self, found: Example | None, out: list[Example]) -> None:
        if found is not None:
            out.append(found)

    # -- state -------------------------------------------------------------------------------------------------

    def state(self) -> bytes:
        """Everything, as msgpack; `load` gives a joiner that goes on exactly like this one."""
        pool: dict[int, tuple[int, Evidence]] = {}

        def pooled(evidence: Evidence) -> int:
            return pool.setdefault(id(evidence), (len(pool), evidence))[0]

        users = [(user, pooled(evidence)) for user, evidence in self.evidence.items()]
        slates = [slate.pack(pooled(slate.evidence)) for slate in self._slates.values()]
        return msgpack.encode(
            _State(
                objectives=[objective.name for objective in self.config.objectives],
                items=self.catalogue.items,
                categories=self.catalogue.categories,
                pool=[evidence for _, evidence in pool.values()],
                users=users,
                groups=self.groups.state(),
                forgotten=list(self._forgotten.items()),
                slates=slates,
                held=list(self._held.items()),
                clocks=self._clocks,
                due=self._due,
                number=self._number,
                counts=(self.ignored, self.duplicates, self.dropped),
            )
        )

    def load(self, raw: bytes) -> None:
        """Take up what `state` wrote.

        Raises:
            ConfigError: the state was written for other objectives.
        """
        state = msgpack.decode(raw, type=_State)
        names = [objective.name for objective in self.config.objectives]
        if state.objectives != names:
            raise ConfigError("objectives", names, f"the state was written for {state.objectives}; start a new one")
        self.catalogue = Catalogue(self.config)
        self.catalogue.restore(state.items, state.categories)
        # the one object of all who have none: else equal states would differ in their bytes
        pool = [EMPTY if evidence == EMPTY else evidence for evidence in state.pool]
        self.evidence = OrderedDict((user, pool[place]) for user, place in state.users)
        self.groups.load(state.groups)
        self._forgotten = OrderedDict(state.forgotten)
        shared = {item.id: item.id for item in state.items}
        self._slates = OrderedDict(
            (packed.ranking, Slate.unpack(packed, pool[packed.evidence], len(names), shared)) for packed in state.slates
        )
        self._held = OrderedDict(state.held)
        self._clocks, self._due, self._number = state.clocks, state.due, state.number
        self.ignored, self.duplicates, self.dropped = state.counts


def _reaches(value: float, threshold: Threshold, before: Evidence, kind: str, *, most: bool = False) -> float | None:
    """1 where the value reaches the threshold, else 0; for "user-mean" where it lies beyond the user's own mean."""
    if threshold == "user-mean":
        mean = before.mean(kind)
        if mean is None:
            return None
        return float(value < mean if most else value > mean)
    return float(value <= threshold if most else value >= threshold)


def _as_of(evidence: Evidence, time: int, held: Iterable[_Held]) -> Evidence:
    """The evidence without what lies after `time` or belongs to the slate itself (read before its ranking)."""
    own = [(one.item, one.type, one.time, one.value) for one in held]
    if evidence.updated <= time and not own:
        return evidence
    kept, means = [], dict(evidence.means)
    for act in evidence.history:
        if act.time <= time and (act.item, act.type, act.time, act.value) not in own:
            kept.append(act)
        elif act.value is not None and act.type in means:
            mean = means[act.type]
            means[act.type] = Mean(mean.count - 1, mean.total - act.value)
    return replace(
        evidence,
        history=tuple(kept),
        answers=tuple(answer for answer in evidence.answers if answer.time <= time),
        means=means,
        updated=min(evidence.updated, time),
        past=replace(evidence.past, acts=tuple(act for act in evidence.past.acts if act.time <= time)),
    )
