"""What a person and the service say to each other: the messages of /v1/users/{id}, with the words OpenAPI shows."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from ranker.events import Identifier, Value
from services.messages import EvidenceToken

#: phrases of one kind, and characters of a text, that a summary may hold
PHRASES, TEXT = 64, 2000
#: answers of one request
ANSWERS = 100

Source = Literal["words", "history", "answers"]
Outcome = Literal["preferred", "both", "neither", "skip"]
Written = Annotated[list[Annotated[str, Meta(min_length=1, max_length=200)]], Meta(max_length=PHRASES)]
Degraded = Annotated[bool, Meta(description="Something was missing; `reason` says what.")]


class _Answer(Struct, frozen=True, kw_only=True):
    user: str
    version: str
    degraded: Degraded
    reason: str | None


# -- questions -------------------------------------------------------------------------------------------------


class Given(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One answer, or the `undo` of an earlier one by its id. Send a choice's `answer` as it stands.

    `preferred` is the item that the person would rather have, whatever the wording; it goes with that outcome alone.
    A second answer to the same question replaces the first.
    """

    question: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    outcome: Outcome = "preferred"
    preferred: Identifier | None = None
    undo: Identifier | None = None


class AnswersRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers in the order they were given. One that cannot be taken refuses the whole body, and none is written."""

    answers: Annotated[list[Given], Meta(min_length=1, max_length=ANSWERS)]
    evidence_token: EvidenceToken | None = None


class Compared(Struct, frozen=True, kw_only=True):
    """An item of a question: its id, what to call it, and its fields."""

    id: str
    text: str
    fields: dict[str, Value]


class Choice(Struct, frozen=True, kw_only=True):
    """What a person may choose, in words, and what to send for it."""

    text: str
    answer: Given


class Question(Struct, frozen=True, kw_only=True):
    """Two items to compare; show them in this order and in these words.

    `again` marks a pair that was asked before, now the other way round: so it shows how far answers can be believed.
    """

    id: str
    number: int
    text: str
    wording: Literal["rather", "skip"]
    items: list[Compared]
    choices: list[Choice]
    again: bool
    gain: Annotated[float, Meta(description="What the answer is expected to tell, in nats.")]


class Interviewed(Struct, frozen=True, kw_only=True):
    """How far the interview is: `enough` says to stop, `reason` why or why not."""

    answers: Annotated[int, Meta(description="Given so far, without those skipped.")]
    effective: Annotated[float, Meta(description="What they amount to, each counted as far as it is believed.")]
    uncertainty: Annotated[
        float, Meta(description="What is left of the population's, as a ratio of standard deviations; 1 is all.")
    ]
    enough: bool
    reason: str


class QuestionAnswer(_Answer, frozen=True, kw_only=True):
    """The next question; null where no pair is left to ask."""

    question: Question | None
    progress: Interviewed


class Taken(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one answer, by its place.

    `id` is what `undo` takes back. `known` was given before and is not counted twice; `replaces` names the earlier
    answer to the same question.
    """

    index: int
    status: Literal["accepted", "known", "undone"]
    id: str
    replaces: str | None = None


class AnswersAnswer(QuestionAnswer, frozen=True, kw_only=True):
    """The broker has the answers, and the next question counts them already.

    Bring `evidence_token` with the next request, to be sure that they count there too; null where nothing was new.
    """

    results: list[Taken]
    evidence_token: str | None


# -- words -----------------------------------------------------------------------------------------------------


class SummaryRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a person says of her taste. It replaces what she wrote before; what is left out is kept as it was.

    Phrases are keys ("genres=Drama") or plain words ("drama"); `struck` takes back phrases that were drawn from her
    history, with the history behind them. `text` is free: what is understood of it is added.
    """

    likes: Written | UnsetType = UNSET
    avoids: Written | UnsetType = UNSET
    struck: Written | UnsetType = UNSET
    text: Annotated[str, Meta(max_length=TEXT)] | UnsetType = UNSET
    evidence_token: EvidenceToken | None = None


class Said(Struct, frozen=True, kw_only=True):
    """One phrase: its key, its sign, what it is called, and what says so: her own words, her history or her answers."""

    key: str
    sign: Literal["likes", "avoids"]
    text: str
    source: Source


class Understood(Struct, frozen=True, kw_only=True):
    """A phrase that was read out of what she wrote: its key, its sign, and what it is called."""

    key: str
    sign: Literal["likes", "avoids"]
    text: str


class SummaryAnswer(_Answer, frozen=True, kw_only=True, omit_defaults=True):
    """A taste in plain sentences.

    After a write, `understood` echoes what was read out of the words, `not_understood` the words that said nothing
    to us, and `evidence_token` is to be brought with the next request.
    """

    sentences: list[str]
    phrases: list[Said]
    struck: list[str]
    evidence: Annotated[dict[str, int], Meta(description="How much of each source there is.")]
    understood: list[Understood] | None = None
    not_understood: list[str] | None = None
    evidence_token: str | None = None


# -- the taste -------------------------------------------------------------------------------------------------


class EndOf(Struct, frozen=True, kw_only=True):
    """One end of a direction: items that stand there, and their interests."""

    items: list[Compared]
    interests: list[str]


class Leaning(Struct, frozen=True, kw_only=True):
    """One base reward (`axis`), or all together (null): what the person wants more of than most people.

    `shift` is by how much, in log odds of a comparison, for an item one standard deviation towards the wanted end;
    `spread` one standard deviation of what is not known of it; `certainty` how likely the direction is right.
    """

    axis: int | None
    sentence: str
    wanted: EndOf
    unwanted: EndOf
    shift: float
    spread: float
    certainty: float


class TasteAnswer(_Answer, frozen=True, kw_only=True):
    """What is believed of a person's taste, against the population, and how surely."""

    overall: Leaning | None
    directions: list[Leaning]
    uncertainty: Annotated[
        float, Meta(description="What is left of the population's, as a ratio of standard deviations; 1 is all.")
    ]
    evidence: Annotated[dict[str, int], Meta(description="How much of each source the taste rests on.")]


class ForgetAnswer(Struct, frozen=True, kw_only=True):
    """A person was forgotten: the log has the order, and every view of it follows within a second.

    `removed` counts what the store held of her, null where it could not be asked. A replay does not bring her back;
    what the log itself holds goes with its retention.
    """

    user: str
    removed: dict[str, int] | None
    views: list[str]
    evidence_token: str
