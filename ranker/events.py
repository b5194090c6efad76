"""The log's contract: seven events, JSON, one object a line.

Metarank's item, user, ranking and interaction events are accepted unchanged; `position`, `propensity`,
`value`, `comparison`, `summary` and `forget` are ours, for debiasing, tastes and fairness. Unknown extra keys
are ignored, everything else that does not fit is an EventError with a reason.

Units: timestamps are milliseconds since the epoch; positions count from 0.
"""

import time
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ranker.errors import EventError

Identifier = Annotated[str, Meta(min_length=1, max_length=512)]
Timestamp = int | float | Annotated[str, Meta(min_length=1, max_length=32)]
Value = str | int | float | bool | None | list[str | int | float | bool]

#: an event further ahead of the clock than this is refused: it would close every open join
FUTURE_MS = 60_000
#: 10,000 candidates is the largest slate a request may name
MAX_ITEMS = 10_000


class Field(Struct, frozen=True, gc=False):
    """One named value of an item, a user, a request or a condition."""

    name: Identifier
    value: Value


class Shown(Struct, frozen=True, omit_defaults=True):
    """One item of a ranking: where it stood and with which probability.

    `position` absent means list order; null means unknown, so it is never used for debiasing.
    `probabilities` are the serving version's, one per objective in the order of the configuration.
    """

    id: Identifier
    fields: list[Field] = []
    label: float | None = None
    position: Annotated[int, Meta(ge=0, le=100000)] | UnsetType | None = UNSET
    propensity: Annotated[float, Meta(gt=0, le=1)] | None = None
    score: float | None = None
    probabilities: list[float] | None = None


class _Event(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="event"):
    id: Identifier
    timestamp: Timestamp
    fields: list[Field] = []
    tenant: str | None = None

    @property
    def time(self) -> int:
        """The event's time in ms since the epoch, as an integer."""
        return int(self.timestamp)


class Item(_Event, frozen=True, kw_only=True, tag="item"):
    """What an item is: later fields replace earlier ones of the same name."""

    item: Identifier


class User(_Event, frozen=True, kw_only=True, tag="user"):
    """What is known about a user, group labels included (they never reach serving)."""

    user: Identifier


class Ranking(_Event, frozen=True, kw_only=True, tag="ranking"):
    """A slate that was shown. `version` is set on the slates plurank served."""

    user: Identifier
    items: Annotated[list[Shown], Meta(min_length=1, max_length=MAX_ITEMS)]
    session: str | None = None
    version: str | None = None
    arm: str | None = None


class Interaction(_Event, frozen=True, kw_only=True, tag="interaction"):
    """Something a user did with an item; `value` is a grade, seconds watched, percent scrolled, ..."""

    user: Identifier
    item: Identifier
    type: Identifier
    session: str | None = None
    ranking: str | None = None
    value: float | None = None


class Comparison(_Event, frozen=True, kw_only=True, tag="comparison"):
    """An answer to "which of these two?"; the fields hold the condition it was asked under."""

    user: Identifier
    preferred: Identifier
    over: Identifier
    outcome: Literal["preferred", "both", "neither", "skip"] = "preferred"
    question: str | None = None
    retracts: str | None = None


class Summary(_Event, frozen=True, kw_only=True, tag="summary"):
    """What a user wrote about her own taste; it replaces what she wrote before."""

    user: Identifier
    likes: list[str] = []
    avoids: list[str] = []
    struck: list[str] = []


class Forget(_Event, frozen=True, kw_only=True, tag="forget"):
    """Remove this person from every view of the log."""

    user: Identifier


#: the field of an item event that takes the item out of what is recommended, or brings it back
WITHDRAWN = "withdrawn"

Event = Item | User | Ranking | Interaction | Comparison | Summary | Forget

_decoder = msgspec.json.Decoder(Event)
_batch_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_encoder = msgspec.json.Encoder()


def decode(raw: bytes | memoryview) -> Event:
    """Read one event.

    Raises:
        EventError: not JSON, an unknown event, a wrong type, a missing id, a number out of range.

    Example:
        >>> decode(b'{"event":"forget","id":"f1","timestamp":"1599391467000","user":"u1"}').time
        1599391467000
    """
    try:
        event: Event = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        shown = bytes(raw[:80]).decode("utf-8", "replace")
        raise EventError("event", shown, str(error)) from None
    stamp = event.timestamp
    if type(stamp) is not int:
        try:
            number = int(float(stamp)) if type(stamp) is not str or "." in stamp else int(stamp)
        except (ValueError, OverflowError):
            raise EventError("timestamp", stamp, "send milliseconds since the epoch as a number") from None
        msgspec.structs.force_setattr(event, "timestamp", number)
        stamp = number
    if stamp < 0:
        raise EventError("timestamp", stamp, "send milliseconds since the epoch, 0 or later")
    return event


def encode(event: Event) -> bytes:
    """The event as one line of JSON, without the line end."""
    return _encoder.encode(event)


def split_batch(body: bytes) -> list[bytes]:
    """The single events of a body: one object, a JSON array, or JSON lines.

    Raises:
        EventError: the body is empty or an array that does not parse.
    """
    body = body.strip()
    if not body:
        raise EventError("body", "", "send one event, a JSON array of events, or JSON lines")
    if body[:1] == b"[":
        try:
            return [bytes(raw) for raw in _batch_decoder.decode(body)]
        except msgspec.MsgspecError as error:
            raise EventError("body", body[:80].decode("utf-8", "replace"), str(error)) from None
    if body[:1] == b"{":
        try:
            msgspec.json.decode(body, type=msgspec.Raw)
            return [body]
        except msgspec.MsgspecError:
            pass
    return [line for line in body.splitlines() if line.strip()]


def admit(event: Event, *, now_ms: int | None = None, tenant: str | None = None) -> Event:
    """Refuse what is well formed but may not enter this log: the far future, foreign tenants, items half withdrawn.

    Raises:
        EventError: with the reason.
    """
    now = int(time.time() * 1000) if now_ms is None else now_ms
    if event.time > now + FUTURE_MS:
        raise EventError("timestamp", event.timestamp, f"it is over {FUTURE_MS // 1000} s ahead of the clock")
    if event.tenant is not None and tenant is not None and event.tenant != tenant:
        raise EventError("tenant", event.tenant, f"this log belongs to {tenant!r}")
    if isinstance(event, Item):
        for field in event.fields:
            if field.name == WITHDRAWN and not isinstance(field.value, bool):
                raise EventError(WITHDRAWN, field.value, "send true to stop recommending the item, false to go on")
    return event


def key_of(event: Event) -> str:
    """The log's partition key: the user, or the item for item events."""
    return event.item if isinstance(event, Item) else event.user


def positions_of(ranking: Ranking) -> list[int]:
    """0-based position of each shown item, -1 where unknown."""
    return [
        place if item.position is UNSET else (-1 if item.position is None else item.position)
        for place, item in enumerate(ranking.items)
    ]


def fields_of(fields: list[Field]) -> dict[str, Value]:
    """Fields as a mapping; the last of equal names wins."""
    return {field.name: field.value for field in fields}


def schema() -> dict[str, Any]:
    """The contract as JSON Schema (2020-12), published at docs/events.schema.json and GET /v1/schema."""
    (root,), definitions = msgspec.json.schema_components([Event], ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "plurank event",
        **root,
        "$defs": definitions,
    }


if __name__ == "__main__":
    print(msgspec.json.format(msgspec.json.encode(schema()), indent=2).decode())
