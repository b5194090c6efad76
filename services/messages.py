"""What goes over HTTP: requests, answers and problems, with the words that OpenAPI shows for them.

msgspec reads and writes them on the request path; their JSON Schema is what /docs shows.
"""

import contextlib
import difflib
import json
import math
import re
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

from ranker.calibration import Wish
from ranker.decisions import Decision
from ranker.errors import PlurankError, RequestError
from ranker.events import MAX_ITEMS, Field, Identifier, Value
from ranker.guard import Intervention
from ranker.spread import Period
from streaming.monitor import Window

Kind = TypeVar("Kind", bound=Struct)
Fields = Annotated[
    dict[str, Value] | list[Field], Meta(description="Named values: an object, or a list of {name, value}.")
]
Limit = Annotated[int, Meta(ge=1, le=MAX_ITEMS, description="Places of the slate.")]
Weights = Annotated[
    dict[str, float],
    Meta(description="Weights of objectives in the utility; those not named keep their configured weight."),
]
Strength = Annotated[
    float, Meta(ge=0, le=1, description="Lambda of the calibrated rerank: 0 is utility alone, 1 proportion alone.")
]
Personal = Annotated[
    str,
    Meta(
        pattern="^personal$",
        description="`personal`: lambda by how much is known of the user, up to the configured strength.",
    ),
]
Pinned = Annotated[
    list[Identifier],
    Meta(description="Items that stand first in any case, in this order; exploration leaves them there."),
]
Excluded = Annotated[
    list[Identifier], Meta(max_length=MAX_ITEMS, description="Items that are taken out of the candidates.")
]
Since = Annotated[int, Meta(ge=0, description="Only items first seen at this time or later; ms since the epoch.")]
EvidenceToken = Annotated[
    str,
    Meta(max_length=4096, description="From the answer to a write: wait (at most 500 ms) until that write counts."),
]


Guarded = Annotated[
    bool, Meta(description="`false` lifts the echo-chamber guard's bounds for this request; needs the `admin` scope.")
]


class _Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    user: Identifier
    weights: Weights | None = None
    calibration: Strength | Personal | Wish | None = None
    pinned: Pinned = []
    excluded: Excluded = []
    guard: Guarded = True
    explain: bool = False
    fields: Fields = {}
    session: Identifier | None = None
    evidence_token: EvidenceToken | None = None


class Candidate(Struct, frozen=True, forbid_unknown_fields=True):
    """An item with fields of its own, for this request only."""

    id: Identifier
    fields: Fields = {}


class RankRequest(_Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Put these items in order for this user; without `limit` all of them are placed."""

    items: Annotated[
        list[Identifier | Candidate],
        Meta(description=f"1 to {MAX_ITEMS} candidates; of equal ids the first counts.", examples=[["50", "181"]]),
    ]
    limit: Limit | None = None


class RecommendRequest(_Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Find items for this user in the whole catalogue."""

    limit: Limit | None = None
    exclude_seen: Annotated[bool, Meta(description="Leave out what the user has acted on.")] = True
    categories: Annotated[
        list[Identifier], Meta(max_length=1000, description="Only items that have one of these; of all without any.")
    ] = []
    fresh_since: Since | None = None


class Ranked(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One item in its place.

    `score` is the utility; `probabilities` are by objective and as if nothing but the item mattered (no position
    bias); `preference` is the chance that the user prefers it to a typical item; `propensity` is the chance that
    exploration put it here. `reward` and `interests` come with `explain`.
    """

    id: str
    position: int
    score: float
    probabilities: dict[str, float]
    preference: float
    propensity: float
    reward: float | None = None
    interests: dict[str, float] | None = None


class Removed(Struct, frozen=True):
    """A candidate that was taken out, and why."""

    id: str
    reason: str


class RankAnswer(Struct, frozen=True, kw_only=True):
    """A slate. Send feedback with its `ranking` id; `degraded` says that something was missing, `reason` what."""

    ranking: str
    version: str
    arm: Annotated[str, Meta(description="`canary` where this user is among those a new version is tried on.")]
    user: str
    items: list[Ranked]
    degraded: bool
    reason: str | None
    evidence: Annotated[dict[str, int], Meta(description="How much of each source the taste rests on.")]
    miscalibration: Annotated[
        float | None,
        Meta(description="How far the slate's interests are from the user's (C_KL); null without a history."),
    ]
    removed: list[Removed]
    interventions: Annotated[
        list[Intervention], Meta(description="What the echo-chamber guard changed, why and by how much.")
    ]
    timings_ms: dict[str, float]
    weights: dict[str, float] | None = None
    miscalibration_before: Annotated[
        float | None, Meta(description="The same in plain order of utility; with `explain`, as all that follows.")
    ] = None
    exposure_miscalibration: Annotated[
        float | None, Meta(description="The same, each place weighed by how much it is looked at: 1 / log2(place + 2).")
    ] = None
    strength: Annotated[float | None, Meta(description="Lambda of the calibrated rerank, as used.")] = None
    sycophancy_gap: Annotated[
        float | None,
        Meta(description="How much likelier this user is to prefer the slate's items than somebody unknown; -1 to 1."),
    ] = None
    profile: dict[str, float] | None = None


class EventResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one event of a feedback body, by its place there."""

    index: int
    status: Literal["accepted", "refused"]
    id: str | None = None
    reason: str | None = None
    thing: str | None = None
    remedy: str | None = None


class FeedbackAnswer(Struct, frozen=True, kw_only=True):
    """The broker has every accepted event. Bring `evidence_token` to /v1/rank to be sure that it counts there."""

    accepted: int
    refused: int
    evidence_token: str | None
    results: list[EventResult]


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error, after RFC 9457: what is wrong (`thing`), the offending `value`, and the `remedy`."""

    type: str
    title: str
    status: int
    detail: str
    thing: str
    value: Any = None
    remedy: str = ""
    results: list[EventResult] | None = None


class ModelSummary(Struct, frozen=True, kw_only=True):
    """One version: what it grew from, when, and the measures it was saved with.

    `forced` was promoted against its verdict at some time.
    """

    version: str
    current: bool
    previous: bool
    canary: bool
    forced: bool
    created: Annotated[int, Meta(description="ms since the epoch")]
    parent: str | None
    metrics: dict[str, Any]


class ModelsAnswer(Struct, frozen=True, kw_only=True):
    """The registry: its pointer, this replica's own version, all versions, and the latest decisions."""

    current: str | None
    previous: str | None
    generation: int | None
    held: bool
    canary: str | None
    share: Annotated[float, Meta(description="Of the users, that the canary serves.")]
    serving: str | None
    versions: list[ModelSummary]
    decisions: list[dict[str, Any]]


class PromoteRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Promotion by a person. `force` serves a version that no passing verdict allows; the decision log says so."""

    force: bool = False
    generation: Annotated[
        int | None, Meta(description="Refuse if the pointer has moved past this generation meanwhile.")
    ] = None


Rung = Annotated[
    float, Meta(gt=0, lt=1, description="Of the users; without it the first share of the version's own ladder.")
]


class CanaryRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Try a version on a share of the users, or change the share of the one that is tried."""

    share: Rung | None = None
    generation: Annotated[
        int | None, Meta(description="Refuse if the pointer has moved past this generation meanwhile.")
    ] = None


class PointerAnswer(Struct, frozen=True, kw_only=True):
    """Where the pointer is now; replicas follow within a quarter of a second."""

    version: str
    previous: str | None
    generation: int
    held: bool
    canary: str | None
    share: float


class FairnessAnswer(Struct, frozen=True, kw_only=True):
    """How each group and people at large are served, as far as the monitor published it. Small groups are withheld.

    Attributes:
        measures: what the words in the rest mean.
        latest: the latest stretch of time that was judged, with 95 % intervals over people; null before the first.
        decisions: the latest verdicts and moves of the pointer, with their reasons and measures, oldest first.
        periods: all judged stretches of the time asked for, oldest first.
        windows: sums and ratios by minute of the time asked for, oldest first; they go on where periods end.
        total: the same since the monitor's beginning.
    """

    measures: dict[str, str]
    latest: Period | None
    decisions: list[Decision]
    periods: list[Period]
    windows: list[Window]
    total: Window | None


class Target(Struct, frozen=True, kw_only=True):
    """Prometheus http_sd: where to scrape."""

    targets: list[str]
    labels: dict[str, str]


class Health(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Alive, or ready and with which version."""

    status: Literal["alive", "ready"]
    version: str | None = None


_KNOWN: dict[type[Struct], tuple[str, ...]] = {}


def read(body: bytes, decoder: "msgspec.json.Decoder[Kind]") -> Kind:
    """A request out of its body.

    Raises:
        RequestError: 400 where it is not JSON, 422 with place and nearest name where it is not this request.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explained(str(error), decoder.type, _loose(body)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(body, str(error)) from None


def malformed(body: bytes, reason: str) -> RequestError:
    """The 400 for what is not JSON at all."""
    problem = RequestError("body", body[:80].decode("utf-8", "replace"), f"send valid JSON: {reason}")
    problem.status = 400
    return problem


def _explained(text: str, kind: type[Struct], data: Any) -> RequestError:
    reason, _, path = text.partition(" - at ")
    place = path.strip("`").removeprefix("$").lstrip(".") or "body"
    unknown = re.search(r"unknown field `(.*?)`", text)
    if unknown is None:
        for key in re.findall(r"[^.\[\]]+", place.partition("[...]")[0]):
            with contextlib.suppress(LookupError, TypeError, ValueError):
                data = data[int(key) if isinstance(data, list) else key]
        return RequestError(place, data, reason[:1].lower() + reason[1:])
    fields = _struct_at(kind, place).__struct_fields__
    near = difflib.get_close_matches(unknown.group(1), fields, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else "valid keys are " + ", ".join(sorted(fields))
    return RequestError(place, unknown.group(1), hint)


def _struct_at(kind: type[Struct], place: str) -> type[Struct]:
    """The Struct that stands at a place such as `answers[0]`."""
    for name in re.findall(r"[a-z_]+", place):
        hints = [one.type for one in msgspec.structs.fields(kind) if one.name == name]
        while hints:
            hint = hints.pop()
            if isinstance(hint, type) and issubclass(hint, Struct):
                kind = hint
                break
            hints += get_args(hint)
    return kind


def _loose(body: bytes) -> Any:
    """The body as plain data, numbers beyond a float's range included, to quote from it.

    Raises:
        RequestError: 400, it is not JSON behind the place that did not fit.
    """
    try:
        return json.loads(body)
    except RecursionError:
        return body[:80].decode("utf-8", "replace")
    except ValueError as error:
        raise malformed(body, str(error)) from None


def named(fields: dict[str, Value] | list[Field]) -> dict[str, Value]:
    """Fields in either form as a mapping; the last of equal names wins."""
    return fields if isinstance(fields, dict) else {field.name: field.value for field in fields}


def nothing_taken(answer: FeedbackAnswer) -> Problem:
    """The 422 for a body of which no event was accepted: the first reason, and all of them."""
    first = answer.results[0]
    return Problem(
        type="urn:plurank:event-error",
        title="Event error",
        status=422,
        detail=first.reason or "",
        thing=first.thing or "event",
        remedy=first.remedy or "",
        results=answer.results,
    )


def problem_of(error: PlurankError) -> Problem:
    """The error as the document that goes over HTTP."""
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", type(error).__name__).lower()
    return Problem(
        type=f"urn:plurank:{words.replace(' ', '-')}",
        title=words.capitalize(),
        status=error.status,
        detail=str(error),
        thing=error.thing,
        value=plain(error.value),
        remedy=error.remedy,
    )


def plain(value: Any) -> Any:
    """A value that JSON can say, cut short: callers' values are quoted back, but not by the megabyte."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else text[:197] + "..."
