"""What is stored about a user: version-free evidence, from which every version derives its own taste.

`fold` is pure and serves profiles and trainer alike, so both hold the same evidence after the same events.
Group labels are dropped here: nothing downstream of the evidence can see them. State is bounded per user: of the acts
that the history has no place for, a sample stays (`Past`).
"""

from bisect import bisect_left, bisect_right
from functools import lru_cache
from hashlib import blake2b
from math import log2

import msgspec
from msgspec import Struct

from ranker.events import Comparison, Event, Forget, Interaction, Summary, User, Value, fields_of

HISTORY = 100
ANSWERS = 200
RECENT = 64
PAST = 64
#: an older act counts half as much after this time, in ms
LIFE_MS = 365 * 86_400_000


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


class Past(Struct, frozen=True, array_like=True, gc=False):
    """A sample of the acts that are older than the history, to weigh what it leaves out.

    A priority sample: an act's expiry is its time and a lifetime drawn from its own name, and the PAST latest stay. One
    that counts as if it were done at `floor`, where it was done earlier, stands for those that did not stay, so that
    weighed by 0.5 ** (age / LIFE_MS) any sum over the sample estimates, without bias, the same over all of them.

    Attributes:
        acts: by expiry, the next to go first.
        floor: the latest expiry among those that did not stay, in ms; 0 where all did.

    Source: duffield2007priority, with weights that double each LIFE_MS.
    """

    acts: tuple[Act, ...] = ()
    floor: int = 0


NOTHING = Past()


class Evidence(Struct, frozen=True, array_like=True, gc=False):
    """All that is kept of one user, oldest first; `recent` holds the last event ids, for dedup."""

    fields: dict[str, Value] = {}
    history: tuple[Act, ...] = ()
    answers: tuple[Answer, ...] = ()
    words: Words = Words()
    means: dict[str, Mean] = {}
    recent: tuple[str, ...] = ()
    updated: int = 0
    past: Past = NOTHING

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
    words, means, past = evidence.words, evidence.means, evidence.past
    if isinstance(event, Interaction):
        act = Act(event.item, event.type, event.time, event.value)
        history = _placed(history, act)
        if len(history) > HISTORY:
            history, past = history[1:], _sampled(past, history[0])
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
        past,
    )


@lru_cache(2**16)
def expiry(act: Act) -> int:
    """When an older act is let go, in ms: its time, and a lifetime that halves in chance each LIFE_MS."""
    named = blake2b(f"{act.item}\0{act.type}\0{act.time}".encode(), digest_size=4).digest()
    return act.time - int(LIFE_MS * log2((int.from_bytes(named) + 0.5) / 2**32))


def _placed(history: tuple[Act, ...], act: Act) -> tuple[Act, ...]:
    if not history or history[-1].time <= act.time:
        return (*history, act)
    place = bisect_right(history, act.time, key=lambda other: other.time)
    return (*history[:place], act, *history[place:])


def _sampled(past: Past, act: Act) -> Past:
    ends = expiry(act)
    full = len(past.acts) >= PAST
    if full and ends <= expiry(past.acts[0]):
        return past if ends <= past.floor else Past(past.acts, ends)
    place = bisect_left(past.acts, ends, key=expiry)
    acts = (*past.acts[:place], act, *past.acts[place:])
    return Past(acts[1:], expiry(acts[0])) if full else Past(acts, past.floor)
