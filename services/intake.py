"""Feedback comes in: each event decoded, admitted, verified, and kept apart from those that are refused.

What each scope may send: `feedback` interactions, comparisons and summaries; `ingest` every event. Slates from
elsewhere are external: they carry neither our ids nor a version, so they can never decide a promotion.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ranker import events
from ranker.errors import EventError, RequestError
from ranker.events import Comparison, Event, Interaction, Ranking, Summary
from services.messages import EventResult, malformed, plain
from services.tokens import SERVED, Scope, Signer
from streaming.log import Token

#: a Kafka broker refuses larger records by default
MAX_EVENT = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Intake:
    """The events of one body that may be written, and what became of each by its place."""

    admitted: list[Event]
    results: list[EventResult]

    @property
    def refused(self) -> int:
        """How many events may not be written."""
        return len(self.results) - len(self.admitted)


def take(body: bytes, *, signer: Signer, scopes: frozenset[Scope], tenant: str | None, now_ms: int) -> Intake:
    """Decode and check every event of a body; a bad one does not harm its neighbours.

    Raises:
        EventError: the body holds no event.
        RequestError: 400, it is one event or one array and not JSON.
    """
    parts = _parts(body)
    admitted: list[Event] = []
    results = []
    for index, part in enumerate(parts):
        try:
            event = events.decode(part)
            _verify(event, len(part), signer, scopes)
            admitted.append(events.admit(event, now_ms=now_ms, tenant=tenant))
            results.append(EventResult(index=index, status="accepted", id=event.id))
        except EventError as error:
            if len(parts) == 1:
                _insist_on_json(part)
            reason = f"{error.thing}: {plain(error.value)} {error.problem}"
            results.append(
                EventResult(index=index, status="refused", reason=reason, thing=error.thing, remedy=error.remedy)
            )
    return Intake(admitted=admitted, results=results)


def _parts(body: bytes) -> list[bytes]:
    try:
        parts = events.split_batch(body)
    except EventError:
        if body.strip():
            _insist_on_json(body)
        raise
    if not parts:
        raise EventError("body", "an empty array", "send one event, a JSON array of events, or JSON lines")
    return parts


def _verify(event: Event, size: int, signer: Signer, scopes: frozenset[Scope]) -> None:
    if size > MAX_EVENT:
        raise EventError("event", f"{size} bytes", f"send events of at most {MAX_EVENT} bytes")
    if "ingest" not in scopes and not isinstance(event, Interaction | Comparison | Summary):
        kind = type(event).__name__.lower()
        raise EventError("event", kind, f"{kind} events need a token with the ingest scope")
    if isinstance(event, Ranking) and (event.id.startswith(SERVED) or event.version or event.arm):
        told = event.id if event.id.startswith(SERVED) else (event.version or event.arm)
        raise EventError(
            "ranking", told, "slates that plurank served are logged by itself; send others without its id, version, arm"
        )
    if isinstance(event, Interaction) and event.ranking is not None and event.ranking.startswith(SERVED):
        signer.verify(event.ranking, event.user)


def _insist_on_json(part: bytes) -> None:
    try:
        msgspec.json.decode(part)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(part, str(error)) from None


def evidence_token(log: str, places: Sequence[tuple[int, int]]) -> str:
    """An opaque token for writes at these (partition, offset) places of the log.

    Example:
        >>> read_token(evidence_token("a log", [(0, 4), (1, 2), (0, 7)]))
        [Token(log='a log', partition=0, offset=7), Token(log='a log', partition=1, offset=2)]
    """
    last: dict[int, int] = {}
    for partition, offset in places:
        last[partition] = max(offset, last.get(partition, -1))
    return base64.urlsafe_b64encode(msgspec.msgpack.encode((log, last))).rstrip(b"=").decode()


def read_token(token: str) -> list[Token]:
    """The last write of each partition, out of a token.

    Raises:
        RequestError: it is not one of ours.
    """
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        log, last = msgspec.msgpack.decode(raw, type=tuple[str, dict[int, int]])
    except (ValueError, msgspec.MsgspecError):
        raise RequestError("evidence_token", token, "send the evidence_token of a feedback answer unchanged") from None
    return [Token(log, partition, offset) for partition, offset in last.items()]
