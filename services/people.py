"""What one person asks and says: questions and answers, her taste in words, and being forgotten.

Everything she says travels as an event through the log, as behaviour does; nothing about her is kept here.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Sequence
from typing import NamedTuple, cast

import msgspec
from msgspec import UNSET

from ranker import interview
from ranker.catalogue import Catalogue, Item
from ranker.errors import NotFound, RequestError, StoreUnavailable
from ranker.events import Comparison, Field, Forget, Summary
from ranker.evidence import Evidence, fold
from ranker.portrait import Direction, End, label, leanings, portrait
from ranker.summary import PHRASES, phrases_of, struck_key
from ranker.vocabulary import Tags, Vocabulary
from ranker.wording import name_of, render
from services import asking
from services.asking import Asked
from services.dialogue import (
    AnswersAnswer,
    AnswersRequest,
    Choice,
    Compared,
    EndOf,
    ForgetAnswer,
    Given,
    Interviewed,
    Leaning,
    Question,
    QuestionAnswer,
    Said,
    Source,
    SummaryAnswer,
    SummaryRequest,
    Taken,
    TasteAnswer,
)
from services.replica import Replica, Serving
from services.words import hear

#: what keeps something about a person, and what a forget takes from it
VIEWS = (
    "store: history, answers, words and fields",
    "learner: evidence, group labels, slates that wait for feedback, and predictions being judged",
    "monitor: the slates remembered of her, in sums not yet published",
)
#: how choices read; under the wording "skip" a person points at what she does not want
_BOTH = {"rather": ("Both", "Neither"), "skip": ("Neither, I like both", "Both")}


class _Speech(NamedTuple):
    """What phrases are drawn from: the tags of one moment, while a vocabulary's own may move on."""

    tags: Tags
    catalogue: Catalogue


class People:
    """Answers for one person at a time, on one replica."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._reading = asyncio.Lock()

    # -- questions ---------------------------------------------------------------------------------------------

    async def question(self, user: str, token: str | None) -> QuestionAnswer:
        """The next question to this person.

        Raises:
            RequestError: the token is not one of ours.
            RegistryError: 503, no version yet.
        """
        serving, _ = self._replica.serving_of(user)
        evidence, missing = await self._replica.evidence(user, token)
        question, progress = self._next(serving, user, evidence)
        return QuestionAnswer(
            user=user,
            version=serving.version,
            degraded=bool(missing),
            reason=self._replica.reason(missing),
            question=question,
            progress=progress,
        )

    async def answer(self, user: str, sent: AnswersRequest) -> AnswersAnswer:
        """Write the answers, and ask on.

        Raises:
            RequestError: an answer cannot be taken; nothing is written.
            NotFound: there is nothing to undo.
            StoreUnavailable: what an undo takes back cannot be looked up.
            LogUnavailable: the broker did not take them.
            RegistryError: 503, no version yet.
        """
        serving, _ = self._replica.serving_of(user)
        evidence, missing = await self._replica.evidence(user, sent.evidence_token)
        now = self._now()
        results: list[Taken] = []
        written: list[Comparison] = []
        for index, given in enumerate(sent.answers):
            taken, event = self._take(user, evidence, index, given, now, stored="store" not in missing)
            results.append(taken)
            if event is not None:
                written.append(event)
                evidence = fold(evidence, event)
        token = await self._replica.write(written)
        question, progress = self._next(serving, user, evidence)
        return AnswersAnswer(
            user=user,
            version=serving.version,
            degraded=bool(missing),
            reason=self._replica.reason(missing),
            question=question,
            progress=progress,
            results=results,
            evidence_token=token,
        )

    def _next(self, serving: Serving, user: str, evidence: Evidence) -> tuple[Question | None, Interviewed]:
        now = self._now()
        catalogue = self._replica.catalogue
        with self._replica.catalogue_lock:
            turn, progress = serving.interview.next(user, evidence, now)
            items = [] if turn is None else _compared(catalogue, turn.items)
        shown = Interviewed(**{name: getattr(progress, name) for name in Interviewed.__struct_fields__})
        if turn is None:
            return None, shown
        name = asking.ask(self._replica.signer, user, turn, now)
        question = Question(
            id=name,
            number=turn.number,
            text=asking.text(turn.wording),
            wording=turn.wording,
            items=items,
            choices=_choices(name, turn.wording, items),
            again=turn.again,
            gain=turn.gain,
        )
        return question, shown

    def _take(
        self, user: str, evidence: Evidence, index: int, given: Given, now: int, *, stored: bool
    ) -> tuple[Taken, Comparison | None]:
        """What becomes of one answer, and the event to write for it."""
        place = f"answers[{index}]"
        if (given.question is None) == (given.undo is None):
            value = None if given.question is None else given.undo
            raise RequestError(
                place, value, "send either the question's id with an answer, or undo with an answer's id"
            )
        if given.undo is not None:
            if not stored:
                raise StoreUnavailable(f"{place}.undo", given.undo, "it cannot be looked up just now; try again")
            return self._undo(user, evidence, index, given.undo, now)
        asked = asking.read(self._replica.signer, user, given.question or "", f"{place}.question")
        preferred, over = self._sides(place, asked, given)
        said = _says(preferred, over, given.outcome)
        before = [answer for answer in evidence.answers if {answer.preferred, answer.over} == asked.pair]
        # a pair may be answered once, and once more where it was asked again on purpose
        replaced = before[-1] if len(before) > asked.again else None
        if replaced is not None and _says(replaced.preferred, replaced.over, replaced.outcome) == said:
            return Taken(index=index, status="known", id=replaced.id), None
        event = Comparison(
            id=_answer_id(evidence, user, asked, said),
            timestamp=now,
            tenant=self._replica.settings.config.tenant,
            user=user,
            preferred=preferred,
            over=over,
            outcome=given.outcome,
            question=(given.question or "")[: asking.SHORT],
            retracts=None if replaced is None else replaced.id,
            fields=[Field("shown_first", asked.first), Field("wording", asked.wording)],
        )
        return Taken(index=index, status="accepted", id=event.id, replaces=event.retracts), event

    def _sides(self, place: str, asked: Asked, given: Given) -> tuple[str, str]:
        if given.outcome != "preferred":
            if given.preferred is not None:
                remedy = f"leave it out where the outcome is {given.outcome!r}, or send the outcome 'preferred'"
                raise RequestError(f"{place}.preferred", given.preferred, remedy)
            return asked.first, asked.second
        if given.preferred not in asked.pair:
            remedy = (
                f"send {asked.first!r} or {asked.second!r}, which were compared, or the outcome both, neither or skip"
            )
            raise RequestError(f"{place}.preferred", given.preferred, remedy)
        return given.preferred, asked.second if given.preferred == asked.first else asked.first

    def _undo(self, user: str, evidence: Evidence, index: int, undo: str, now: int) -> tuple[Taken, Comparison | None]:
        found = next((answer for answer in evidence.answers if answer.id == undo), None)
        if found is None:
            remedy = "send the id of an answer that counts, and the evidence_token that came with it"
            raise NotFound(f"answers[{index}].undo", undo, remedy)
        event = Comparison(
            id=_fresh(evidence, f"undo-{_digest(user, undo)}"),
            timestamp=now,
            tenant=self._replica.settings.config.tenant,
            user=user,
            preferred=found.preferred,
            over=found.preferred,  # an item against itself says nothing: what counts is what it retracts
            outcome="skip",
            retracts=undo,
        )
        return Taken(index=index, status="undone", id=undo), event

    # -- words -------------------------------------------------------------------------------------------------

    async def summary(self, user: str, token: str | None) -> SummaryAnswer:
        """This person's taste in plain sentences.

        Raises:
            RequestError: the token is not one of ours.
            RegistryError: 503, no version yet.
        """
        serving, _ = self._replica.serving_of(user)
        evidence, missing = await self._replica.evidence(user, token)
        return self._summary(serving, user, evidence, missing)

    async def rewrite(self, user: str, sent: SummaryRequest) -> SummaryAnswer:
        """Write what the person says of her taste.

        Raises:
            RequestError: it says nothing, or something unknown or contradictory; nothing is written.
            StoreUnavailable: what is to be kept of her earlier words cannot be looked up.
            LogUnavailable: the broker did not take it.
            RegistryError: 503, no version yet.
        """
        serving, _ = self._replica.serving_of(user)
        evidence, missing = await self._replica.evidence(user, sent.evidence_token)
        if "store" in missing and UNSET in (sent.likes, sent.avoids, sent.struck):
            remedy = "what was written before cannot be looked up just now; try again, or send likes, avoids and struck"
            raise StoreUnavailable("summary", None, remedy)
        tags, encode = serving.pipeline.inference.speech[0], self._replica.encode
        if encode is None:
            heard = hear(sent, evidence.words, tags)
        else:  # a sentence takes tens of milliseconds, a new vocabulary a second
            async with self._reading:
                heard = await asyncio.to_thread(hear, sent, evidence.words, tags, encode)
        token = None
        if missing or heard.words != evidence.words:  # what she said before may not be what we see
            event = Summary(
                id=_fresh(evidence, f"sum-{_digest(user, *map(repr, (heard.words, evidence.words)))}"),
                timestamp=self._now(),
                tenant=self._replica.settings.config.tenant,
                user=user,
                likes=list(heard.words.likes),
                avoids=list(heard.words.avoids),
                struck=list(heard.words.struck),
            )
            token = await self._replica.write([event])
            evidence = fold(evidence, event)
        answer = self._summary(serving, user, evidence, missing)
        return msgspec.structs.replace(
            answer, understood=heard.understood, not_understood=heard.unknown, evidence_token=token
        )

    def _summary(self, serving: Serving, user: str, evidence: Evidence, missing: Sequence[str]) -> SummaryAnswer:
        inference, words = serving.pipeline.inference, evidence.words
        tags, space = inference.speech
        with self._replica.catalogue_lock:
            taste = inference.taste(evidence, self._now())
            drawn = phrases_of(
                inference.masked(evidence),
                cast(Vocabulary, _Speech(tags, self._replica.catalogue)),
                inference.summariser,
                space,
                taste.mean_K,
                objectives=serving.config.objectives,
            )
        taken = {one.key for one in drawn} | {struck_key(text)[1] for text in words.struck}
        leaning = leanings(taste, tags, space, taken=taken, most=max(0, PHRASES - len(drawn)))
        written = {*words.likes, *words.avoids}
        said = [(one, "words" if one.key in written else "history") for one in drawn]
        said += [(one, "answers") for one in leaning]
        return SummaryAnswer(
            user=user,
            version=serving.version,
            degraded=bool(missing),
            reason=self._replica.reason(missing),
            sentences=render([one for one, _ in said], tags),
            phrases=[
                Said(key=one.key, sign=one.sign, text=name_of(one, tags), source=cast(Source, source))
                for one, source in said
            ],
            struck=list(words.struck),
            evidence=dict(taste.sources),
        )

    # -- the taste ---------------------------------------------------------------------------------------------

    async def taste(self, user: str, token: str | None) -> TasteAnswer:
        """What is believed of this person's taste.

        Raises:
            RequestError: the token is not one of ours.
            RegistryError: 503, no version yet.
        """
        serving, _ = self._replica.serving_of(user)
        evidence, missing = await self._replica.evidence(user, token)
        catalogue, inference = self._replica.catalogue, serving.pipeline.inference
        with self._replica.catalogue_lock:
            found = inference.taste(evidence, self._now())
            told = portrait(found, inference, catalogue, serving.interview.pool_P)
            overall = None if told.overall is None else _leaning(catalogue, told.overall)
            directions = [_leaning(catalogue, direction) for direction in told.directions]
        return TasteAnswer(
            user=user,
            version=serving.version,
            degraded=bool(missing),
            reason=self._replica.reason(missing),
            overall=overall,
            directions=directions,
            uncertainty=interview.uncertainty(found, inference.prior),
            evidence=dict(found.sources),
        )

    # -- being forgotten ---------------------------------------------------------------------------------------

    async def forget(self, user: str) -> ForgetAnswer:
        """Forget this person; also where nothing is known of her, for something may be on its way.

        Raises:
            LogUnavailable: the broker did not take the order.
        """
        evidence, missing = await self._replica.evidence(user, None)
        event = Forget(
            id=f"forget-{secrets.token_hex(12)}",
            # not before anything that is known of her, whose clock may be ahead of ours
            timestamp=max(self._now(), evidence.updated),
            tenant=self._replica.settings.config.tenant,
            user=user,
        )
        token = await self._replica.write([event])
        removed = {
            "history": len(evidence.history) + len(evidence.past.acts),
            "answers": len(evidence.answers),
            "words": len(evidence.words.likes) + len(evidence.words.avoids) + len(evidence.words.struck),
            "fields": len(evidence.fields),
        }
        return ForgetAnswer(
            user=user, removed=None if missing else removed, views=list(VIEWS), evidence_token=token or ""
        )

    def _now(self) -> int:
        return int(self._replica.clock() * 1000)


def _compared(catalogue: Catalogue, names: Sequence[str]) -> list[Compared]:
    found = [catalogue.get(name) or Item(name) for name in names]
    return [Compared(id=item.id, text=label(item), fields=item.fields) for item in found]


def _choices(question: str, wording: str, items: Sequence[Compared]) -> list[Choice]:
    """What a person may choose, each with the answer to send, so that nobody has to turn a wording round."""
    first, second = items
    wanted = (second, first) if wording == "skip" else (first, second)
    both, neither = _BOTH[wording]
    named = [
        Choice(text=shown.text, answer=Given(question=question, preferred=item.id))
        for shown, item in zip(items, wanted, strict=True)
    ]
    return [
        *named,
        Choice(text=both, answer=Given(question=question, outcome="both")),
        Choice(text=neither, answer=Given(question=question, outcome="neither")),
        Choice(text="I cannot say", answer=Given(question=question, outcome="skip")),
    ]


def _says(preferred: str, over: str, outcome: str) -> tuple[str, str, str]:
    """An answer's items and outcome, in no order where neither was preferred."""
    first, second = (preferred, over) if outcome == "preferred" else sorted((preferred, over))
    return first, second, outcome


def _answer_id(evidence: Evidence, user: str, asked: Asked, said: tuple[str, str, str]) -> str:
    """The same for the same answer, so that a repeated request counts once."""
    return _fresh(evidence, f"ans-{_digest(user, str(asked.again), *said)}")


def _fresh(evidence: Evidence, name: str) -> str:
    """The name, or where it has been used and undone the next one after it."""
    used = frozenset(evidence.recent)
    return next(one for one in (name, *(f"{name}-{n}" for n in range(1, len(used) + 2))) if one not in used)


def _digest(*parts: str) -> str:
    raw = msgspec.msgpack.encode(parts)
    return hashlib.blake2b(raw, digest_size=12).hexdigest()


def _leaning(catalogue: Catalogue, direction: Direction) -> Leaning:
    return Leaning(
        axis=direction.axis,
        sentence=direction.sentence,
        wanted=_end(catalogue, direction.wanted),
        unwanted=_end(catalogue, direction.unwanted),
        shift=direction.shift,
        spread=direction.spread,
        certainty=direction.certainty,
    )


def _end(catalogue: Catalogue, end: End) -> EndOf:
    return EndOf(items=_compared(catalogue, end.items), interests=list(end.interests))
