"""What is stored about a user: version-free evidence, from which every version derives its own taste.

`fold` is pure and serves profiles and trainer alike, so both hold the same evidence after the same events.
Group labels are dropped here: nothing downstream of the evidence can see them. State is bounded per user.
"""

from bisect import bisect_right

import msgspec
from msgspec import Struct

from ranker.events import Comparison, Event, Forget, Interaction, Summary, User, Value, fields_of

HISTORY = 100
ANSWERS = 200
RECENT = 64


class Act(Struct, frozen=True, array_like=True, gc=False):
    """One thing the user did: item, interaction type, time in ms, value if there was one."""

    item: str
    type: str
    time: int
    value: float | None = None


class Answer(Struct, frozen=True, array_like=True):
    """One answered comparison and the condition it was asked under."""

    id: str
    preferred: str
    over: str
    time: int
    outcome: str = "preferred"
    question: str | None = None
    condition: dict[str, Value] = {}


class Words(Struct, frozen=True, array_like=True):
    """What the user wrote about herself."""

    likes: tuple[str, ...] = ()
    avoids: tuple[str, ...] = ()
    struck: tuple[str, ...] = ()


class Mean(Struct, frozen=True, array_like=True, gc=False):
    """Running count and sum of the values of one interaction type (a user's own scale)."""

    count: int = 0
    total: float = 0.0


class Evidence(Struct, frozen=True, array_like=True):
    """All that is kept of one user, oldest first; `recent` holds the last event ids, for dedup."""

    fields: dict[str, Value] = {}
    history: tuple[Act, ...] = ()
    answers: tuple[Answer, ...] = ()
    words: Words = Words()
    means: dict[str, Mean] = {}
    recent: tuple[str, ...] = ()
    updated: int = 0

    def mean(self, kind: str) -> float | None:
        """The user's mean value of interactions of this type, None before the first."""
        mean = self.means.get(kind)
        return mean.total / mean.count if mean and mean.count else None


EMPTY = Evidence()

_packer = msgspec.msgpack.Encoder()
_unpacker = msgspec.msgpack.Decoder(Evidence)


def pack(evidence: Evidence) -> bytes:
    """The evidence as bytes; equal evidence gives equal bytes."""
    return _packer.encode(evidence)


def unpack(raw: bytes) -> Evidence:
    """The evidence out of `pack`."""
    return _unpacker.decode(raw)


def fold(evidence: Evidence, event: Event, *, groups: frozenset[str] = frozenset()) -> Evidence:
    """The evidence after the event; the same object where the event changes nothing.

    A repeated event id within the last RECENT of the user is ignored. Acts arriving out of order are placed by
    their own time. Items and rankings are no evidence about a user.

    Args:
        groups: names of group fields, which are dropped.

    Example:
        >>> from ranker.events import Interaction
        >>> click = Interaction(id="e1", timestamp=5, user="u", item="i", type="click")
        >>> once = fold(EMPTY, click)
        >>> once.history[0].item, fold(once, click) is once
        ('i', True)
    """
    if isinstance(event, Forget):
        return EMPTY
    if not isinstance(event, Interaction | Comparison | Summary | User) or event.id in evidence.recent:
        return evidence
    fields, history, answers = evidence.fields, evidence.history, evidence.answers
    words, means = evidence.words, evidence.means
    if isinstance(event, Interaction):
        act = Act(event.item, event.type, event.time, event.value)
        history = _placed(history, act)[-HISTORY:]
        if event.value is not None:
            mean = means.get(event.type, Mean())
            means = {**means, event.type: Mean(mean.count + 1, mean.total + event.value)}
    elif isinstance(event, Comparison):
        answers = tuple(a for a in answers if a.id != event.retracts)
        if event.retracts is None or event.preferred != event.over:
            answer = Answer(
                event.id,
                event.preferred,
                event.over,
                event.time,
                event.outcome,
                event.question,
                fields_of(event.fields),
            )
            answers = (*answers, answer)[-ANSWERS:]
    elif isinstance(event, Summary):
        words = Words(tuple(event.likes), tuple(event.avoids), tuple(event.struck))
    else:
        named = {k: v for k, v in fields_of(event.fields).items() if k not in groups}
        fields = {**fields, **named}
    return Evidence(
        fields,
        history,
        answers,
        words,
        means,
        (*evidence.recent, event.id)[-RECENT:],
        max(evidence.updated, event.time),
    )


def _placed(history: tuple[Act, ...], act: Act) -> tuple[Act, ...]:
    if not history or history[-1].time <= act.time:
        return (*history, act)
    place = bisect_right(history, act.time, key=lambda other: other.time)
    return (*history[:place], act, *history[place:])
