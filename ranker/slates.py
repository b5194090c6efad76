"""One slate: what was shown to whom, and what is known of each row by now.

Axes: N items of a slate, T objectives.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from ranker import events
from ranker.events import Ranking, Value
from ranker.evidence import Answer, Evidence

OPEN, SEEN, BLANK, LEARNED, CORRECTED = range(5)
"""One label's life: nothing yet, a value that may still grow, unknowable, learned, learned again after a change."""
#: what an interaction says of an objective: its place, and the label, None where it cannot be known
Mark = tuple[int, float | None]


class Foreseen(NamedTuple):
    """What a learner predicted of a slate when it was shown, before anything was learned from it.

    Attributes:
        chances_NT: at the places shown, the position tower included; for value objectives the value.
        worth_NT: how often less the item is acted on at its place than at an unknown one (1 without a tower).
        utility_N: what it would have ranked by: tower-free, with the preference.
    """

    chances_NT: NDArray[np.float32]
    worth_NT: NDArray[np.float32]
    utility_N: NDArray[np.float32]


class Compared(NamedTuple):
    """Two rows of an example: how likely the one was preferred (1, or 1/2 for a tie), and the answer that says so.

    `weight` is how much it counts besides how far the answer is believed.
    """

    one: int
    other: int
    share: float
    answer: Answer | None = None
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Example:
    """One slate's labelled rows, or some of them.

    Attributes:
        ranking: the slate's id, "" where an interaction came without one.
        time: ms; when the slate was shown (or the interaction happened).
        evidence: the user as she was then.
        positions: (N,) 0-based, -1 where unknown.
        labels_NT: 0 or 1 for binary objectives, the value for value objectives.
        mask_NT: 1 where the label is known and is to be learned now.
        served_NT: the probabilities that the serving version logged.
        score_N: the utilities that the serving version logged.
        foreseen: what `Joiner.note` was told for this slate when it opened.
        opening: the slate was just shown: nothing is known, nothing to learn; the moment for an honest prediction.
        closing: all waits have passed: full labels, for metrics; its rows have been learned before.
        pairs: comparisons of its rows (ranker/comparisons.py), to be learned whatever the mask says.
    """

    ranking: str
    user: str
    time: int
    evidence: Evidence
    request: dict[str, Value]
    items: tuple[str, ...]
    positions: NDArray[np.int32]
    labels_NT: NDArray[np.float32]
    mask_NT: NDArray[np.float32]
    served_NT: NDArray[np.float32] | None = None
    score_N: NDArray[np.float32] | None = None
    foreseen: Foreseen | None = None
    version: str | None = None
    arm: str | None = None
    inline: dict[str, dict[str, Value]] = field(default_factory=dict)
    opening: bool = False
    closing: bool = False
    pairs: tuple[Compared, ...] = ()


@dataclass(slots=True, eq=False)
class Slate:
    """A slate that is open, or closed and still open to corrections."""

    number: int
    ranking: str
    user: str
    time: int
    evidence: Evidence
    request: dict[str, Value]
    items: tuple[str, ...]
    positions: NDArray[np.int32]
    labels_NT: NDArray[np.float32]
    status_NT: NDArray[np.uint8]
    served_NT: NDArray[np.float32] | None
    score_N: NDArray[np.float32] | None
    foreseen: Foreseen | None
    version: str | None
    arm: str | None
    inline: dict[str, dict[str, Value]]
    stage: int = 0

    @classmethod
    def opened(
        cls, event: Ranking, number: int, items: tuple[str, ...], evidence: Evidence, objectives: int
    ) -> "Slate":
        """A slate that was just shown to a user of this evidence."""
        shape = (len(items), objectives)
        return cls(
            number=number,
            ranking=event.id,
            user=event.user,
            time=event.time,
            evidence=evidence,
            request=events.fields_of(event.fields),
            items=items,
            positions=np.array(events.positions_of(event), np.int32),
            labels_NT=np.zeros(shape, np.float32),
            status_NT=np.zeros(shape, np.uint8),
            served_NT=_served(event, shape),
            score_N=_scores(event),
            foreseen=None,
            version=event.version,
            arm=event.arm,
            inline={shown.id: events.fields_of(shown.fields) for shown in event.items if shown.fields},
        )

    def mark(self, row: int, marks: Sequence[Mark], values_T: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        """Enter feedback on a row; returns the labels (N, T) it made known, None where there are none.

        Positives are known at once. Values are not, they may still grow until their wait has passed.
        """
        mask_NT: NDArray[np.bool_] | None = None
        for place, label in marks:
            status, known = int(self.status_NT[row, place]), float(self.labels_NT[row, place])
            if label is None:
                if status == OPEN:
                    self.status_NT[row, place] = BLANK
            elif values_T[place] and status in (OPEN, SEEN, BLANK):
                self.labels_NT[row, place] = label if status != SEEN else max(known, label)
                self.status_NT[row, place] = SEEN
            elif status in (OPEN, BLANK, LEARNED) and label > (known if values_T[place] else max(known, 0.5)):
                self.labels_NT[row, place] = label
                self.status_NT[row, place] = CORRECTED if status == LEARNED else LEARNED
                if mask_NT is None:
                    mask_NT = np.zeros(self.status_NT.shape, np.bool_)
                mask_NT[row, place] = True
        return mask_NT

    def close(self, objectives_T: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The wait of these objectives has passed; returns the labels (N, T) that this makes known."""
        mask_NT: NDArray[np.bool_] = ((self.status_NT == OPEN) | (self.status_NT == SEEN)) & objectives_T
        self.status_NT[mask_NT] = LEARNED
        self.stage += 1
        return mask_NT

    def example(
        self,
        mask_NT: NDArray[np.bool_],
        rows: NDArray[np.int64] | slice | None = None,
        *,
        opening: bool = False,
        closing: bool = False,
    ) -> Example:
        """Some rows (all by default) with the labels that the mask says are known now."""
        take = slice(None) if rows is None else rows
        items = self.items[take] if isinstance(take, slice) else tuple([self.items[row] for row in take])
        known = self.foreseen
        return Example(
            ranking=self.ranking,
            user=self.user,
            time=self.time,
            evidence=self.evidence,
            request=self.request,
            items=items,
            positions=self.positions[take],
            # copies: its own labels go on changing
            labels_NT=np.array(self.labels_NT[take]),
            mask_NT=mask_NT[take].astype(np.float32),
            served_NT=None if self.served_NT is None else self.served_NT[take],
            score_N=None if self.score_N is None else self.score_N[take],
            foreseen=None if known is None else Foreseen(known[0][take], known[1][take], known[2][take]),
            version=self.version,
            arm=self.arm,
            inline={name: self.inline[name] for name in items if name in self.inline} if self.inline else {},
            opening=opening,
            closing=closing,
        )

    def pack(self, evidence: int) -> "Packed":
        """At rest; `evidence` is its place in the pool."""
        return Packed(
            self.number,
            self.ranking,
            self.user,
            self.time,
            evidence,
            self.request,
            self.items,
            self.positions.tobytes(),
            self.labels_NT.tobytes(),
            self.status_NT.tobytes(),
            None if self.served_NT is None else self.served_NT.tobytes(),
            None if self.score_N is None else self.score_N.tobytes(),
            None if self.foreseen is None else tuple(part.tobytes() for part in self.foreseen),
            self.version,
            self.arm,
            self.inline,
            self.stage,
        )

    @classmethod
    def unpack(cls, packed: "Packed", evidence: Evidence, objectives: int, shared: dict[str, str]) -> "Slate":
        """The slate out of `pack`; `shared` holds the ids that are in memory already."""

        def table(raw: bytes, kind: type[np.generic]) -> NDArray[Any]:
            return np.frombuffer(raw, kind).reshape(-1, objectives).copy()

        return cls(
            number=packed.number,
            ranking=packed.ranking,
            user=packed.user,
            time=packed.time,
            evidence=evidence,
            request=packed.request,
            items=tuple(shared.get(item, item) for item in packed.items),
            positions=np.frombuffer(packed.positions, np.int32).copy(),
            labels_NT=table(packed.labels, np.float32),
            status_NT=table(packed.status, np.uint8),
            served_NT=None if packed.served is None else table(packed.served, np.float32),
            score_N=None if packed.score is None else np.frombuffer(packed.score, np.float32).copy(),
            foreseen=None
            if packed.foreseen is None
            else Foreseen(
                table(packed.foreseen[0], np.float32),
                table(packed.foreseen[1], np.float32),
                np.frombuffer(packed.foreseen[2], np.float32).copy(),
            ),
            version=packed.version,
            arm=packed.arm,
            inline=packed.inline,
            stage=packed.stage,
        )


class Packed(Struct, array_like=True):
    """A slate at rest; `evidence` is an index into the state's pool, since slates share snapshots."""

    number: int
    ranking: str
    user: str
    time: int
    evidence: int
    request: dict[str, Value]
    items: tuple[str, ...]
    positions: bytes
    labels: bytes
    status: bytes
    served: bytes | None
    score: bytes | None
    foreseen: tuple[bytes, ...] | None
    version: str | None
    arm: str | None
    inline: dict[str, dict[str, Value]]
    stage: int


def _served(event: Ranking, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """The logged probabilities, where every item carries one per objective."""
    rows = [shown.probabilities for shown in event.items]
    if any(row is None or len(row) != shape[1] for row in rows):
        return None
    return np.array(rows, np.float32).reshape(shape)


def _scores(event: Ranking) -> NDArray[np.float32] | None:
    """The logged utilities, where every item carries one."""
    scores = [shown.score for shown in event.items]
    return None if any(score is None for score in scores) else np.array(scores, np.float32)
