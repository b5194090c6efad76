"""One replica: the version it serves, the items it knows, and what it does for a request. Knows neither HTTP nor Ray.

A thread follows the registry's pointer and the catalogue. A new version is read, checked and given the catalogue
beside the event loop; then one reference is assigned, so a request meets the old version or the new, never a mixture,
and none waits. The version before is kept in memory. A canary beside the current version is loaded in the same way,
and serves those that `ranker.canary.drawn` says; one that cannot be loaded is withdrawn, and nobody is served by it.
"""

import gc
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from ranker import events
from ranker.canary import CANARY, CURRENT, drawn
from ranker.catalogue import Catalogue, Item
from ranker.config import Config
from ranker.epoch import Epoch
from ranker.errors import PlurankError, RegistryError, StoreUnavailable
from ranker.events import Event, Field, Ranking, Shown
from ranker.evidence import EMPTY, Evidence
from ranker.inference import Inference
from ranker.interview import Interview
from ranker.pipeline import Pipeline, Request, Slate, warm
from ranker.registry import Pointer, Registry
from ranker.wording import Encode
from services import intake
from services.figures import Figures, Watches
from services.messages import FeedbackAnswer, RankAnswer, Ranked, RankRequest, RecommendRequest, Removed, named
from services.outbox import Outbox
from services.settings import Settings
from services.telemetry import ApiTelemetry
from services.tokens import Scope, Signer, Tokens
from services.versions import Versions
from streaming.log import Token
from streaming.store import Changes, Stored

log = logging.getLogger("plurank.replica")

#: a served slate of more places than this is logged with its first places only
LOGGED_PLACES = 1000
#: items taken into the catalogue between two requests
CHUNK = 256
#: seconds in which the store is not asked again after it failed
STORE_REST_S = 1.0
#: seconds between attempts to load a version that was found damaged
RELOAD_S = 5.0
SLOW_POLL_S = 5.0

#: why an answer is degraded
MISSING = {
    "store": "the evidence store is out of reach, so this is the population's taste",
    "late": "the write of the evidence token does not count yet",
    "log": "the log is out of reach, so this slate cannot be learned from",
}


class Reads(Watches, Protocol):
    """The part of streaming.store.AsyncStore that requests need."""

    async def evidence(self, user: str) -> Stored | None:
        """The user's record."""
        ...

    async def wait_for(self, token: Token, timeout: float = 0.5) -> bool:
        """Whether the store holds the write within the timeout."""
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


class Changing(Protocol):
    """The part of streaming.store.Store that follows the catalogue."""

    def catalogue_changes(self, since: str = "") -> Changes:
        """What changed since the mark."""
        ...

    def register_target(self, process: str, address: str) -> None:
        """Announce where this process serves its metrics."""
        ...

    def unregister_target(self, process: str, address: str) -> None:
        """Withdraw the announcement."""
        ...

    def close(self) -> None:
        """Hang up."""
        ...


@dataclass(frozen=True, slots=True)
class Beside:
    """The canary in use, and the share of the users that it serves."""

    serving: "Serving"
    share: float


@dataclass(frozen=True, slots=True)
class Serving:
    """A version in use."""

    version: str
    config: Config
    pipeline: Pipeline
    interview: Interview

    def attach(self, catalogue: Catalogue) -> None:
        """Take up what is new in the catalogue."""
        self.pipeline.inference.attach(catalogue)
        self.interview.refresh()


class Replica:
    """What answers requests. Everything outside of it comes through the constructor.

    Args:
        reads: the store for requests, on the event loop.
        changes: the store for the catalogue, in this replica's thread.
        clock: seconds since the epoch.
        sentences: loads a sentence encoder, so that free text is understood by meaning too; in a thread of its own.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        registry: Registry,
        reads: Reads,
        changes: Changing,
        outbox: Outbox,
        tokens: Tokens,
        signer: Signer,
        telemetry: ApiTelemetry,
        clock: Callable[[], float] = time.time,
        sentences: Callable[[], Encode] | None = None,
    ) -> None:
        self.settings, self.registry, self.reads, self.changes = settings, registry, reads, changes
        self.outbox, self.tokens, self.signer, self.clock = outbox, tokens, signer, clock
        self.telemetry = telemetry
        self._address = ""
        self.catalogue = Catalogue(settings.config)
        self.catalogue_lock = threading.Lock()
        self.versions = Versions(registry, lambda: None if self._serving is None else self._serving.version)
        self.figures = Figures(reads, telemetry, tokens["metrics"], clock, partial(registry.decisions, 20))
        self.encode: Encode | None = None
        self._sentences = sentences
        self._mark = ""
        self._serving: Serving | None = None
        self._before: Serving | None = None
        self._beside: Beside | None = None
        self._trouble = ""
        self._refused: tuple[str, float] = ("", 0.0)
        self._refused_canary: tuple[str, float] = ("", 0.0)
        self._store_rest = 0.0
        self._counted = (0, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="replica-follow", daemon=True)

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load what there is, then follow it."""
        self.outbox.start()
        warm()
        host = self.settings.telemetry
        self._address = f"{host}:{self.telemetry.serve(self.tokens['metrics'], host=host)}"
        self.follow_catalogue()
        self.follow_pointer()
        # what is loaded by now stays: the collector need not walk it beside the requests
        gc.collect()
        gc.freeze()
        self._thread.start()
        if self._sentences is not None:
            threading.Thread(target=self._learn_to_read, name="replica-sentences", daemon=True).start()

    def _learn_to_read(self) -> None:
        assert self._sentences is not None
        try:
            encode = self._sentences()
            encode(["warm"])
        except Exception:
            log.exception("free text is understood by names alone")
        else:
            self.encode = encode

    def close(self) -> None:
        """Stop following, send what waits, hang up."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
        lost = self.outbox.close()
        if lost:
            log.warning("%d served slates did not reach the log", lost)
        with suppress(StoreUnavailable):
            self.changes.unregister_target(self.telemetry.process, self._address)
        self.telemetry.close()
        self.changes.close()

    @property
    def serving(self) -> Serving:
        """The version in use.

        Raises:
            RegistryError: 503, there is none yet.
        """
        serving = self._serving
        if serving is None:
            error = RegistryError(
                "version", None, self._trouble or "train and promote one: `plurank up` or `plurank train`"
            )
            error.problem = "is served yet" if not self._trouble else "can be served"
            error.status = 503
            raise error
        return serving

    def serving_of(self, user: str) -> tuple[Serving, str]:
        """What this user is served, and the arm: the canary for those who are drawn, else the version in use.

        Raises:
            RegistryError: 503, there is none yet.
        """
        beside = self._beside
        if beside is not None and drawn(user, beside.serving.version, beside.share):
            return beside.serving, CANARY
        return self.serving, CURRENT

    def _follow(self) -> None:
        catalogue_at = slow_at = 0.0
        while not self._stop.wait(self.settings.pointer_poll):
            try:
                self.follow_pointer()
                self._count_slates()
                now = time.monotonic()
                if now >= catalogue_at:
                    self.follow_catalogue()
                    catalogue_at = now + self.settings.catalogue_poll
                if now >= slow_at:
                    self._announce()
                    self.signer.refresh()
                    slow_at = now + SLOW_POLL_S
            except Exception:
                log.exception("following the registry and the catalogue goes on after an error")

    def _count_slates(self) -> None:
        sent, dropped = self.outbox.sent, self.outbox.dropped
        before, self._counted = self._counted, (sent, dropped)
        self.telemetry.slates_logged(logged=sent - before[0], dropped=dropped - before[1], waiting=self.outbox.open)

    def _announce(self) -> None:
        with suppress(StoreUnavailable):
            self.changes.register_target(self.telemetry.process, self._address)

    def follow_pointer(self) -> None:
        """Serve what the pointer names; a damaged version is refused and the one in use stays."""
        pointer = None
        try:
            pointer = self.registry.current()
            if pointer is not None:
                self._follow_version(pointer)
                self._follow_canary(pointer)
        except RegistryError as error:
            self._trouble = str(error)
            if pointer is not None:
                self._refused = (pointer.version, time.monotonic() + RELOAD_S)
            log.error("not served: %s", error)

    def _follow_version(self, pointer: Pointer) -> None:
        if self._serving is not None and pointer.version == self._serving.version:
            return
        version, until = self._refused
        if version == pointer.version and time.monotonic() < until:
            return
        self._before, self._serving = self._serving, self._load(pointer.version)
        self._trouble = ""
        self.telemetry.using(pointer.version, created=self.registry.manifest(pointer.version).created)
        self.telemetry.examined(self._serving.pipeline.inference.curves())
        recall = self._serving.pipeline.inference.recall(self.settings.config.serving.candidates)
        if recall is not None:
            self.telemetry.recalled(recall)

    def _follow_canary(self, pointer: Pointer) -> None:
        """Serve the pointer's canary to its share beside the version in use; withdraw it where it cannot be loaded."""
        beside, version = self._beside, pointer.canary
        if beside is not None and beside.serving.version != version:
            beside = self._beside = None
            self.telemetry.trying(0.0)
        if version is None or (beside is not None and beside.share == pointer.share):
            return
        refused, until = self._refused_canary
        if refused == version and time.monotonic() < until:
            return
        try:
            serving = self._load(version) if beside is None else beside.serving
        except PlurankError as error:
            self._refused_canary = (version, time.monotonic() + RELOAD_S)
            log.error("the canary is withdrawn: %s", error)
            with suppress(PlurankError, OSError):  # another replica was first, or this one may not write there
                self.registry.withdraw(who=self.telemetry.process, reasons=(str(error),), generation=pointer.generation)
            return
        self._beside = Beside(serving, pointer.share)
        created = self.registry.manifest(serving.version).created
        self.telemetry.trying(pointer.share, serving.version, created=created)

    def _load(self, version: str) -> Serving:
        known = (self._before, None if self._beside is None else self._beside.serving)
        for kept in known:
            if kept is not None and kept.version == version:  # a rollback, or a canary that passed: still in memory
                kept.attach(self.catalogue)
                return kept
        found = self.registry.load(version)
        # what is known of the items' fields is the same in every version of one configuration
        using = None if self._serving is None else self._serving.pipeline.inference
        same = using if using is not None and using.config == found.config else None
        inference = Inference(
            found.config,
            found.weights,
            encoder=None if same is None else same.encoder,
            vocabulary=None if same is None else same.vocabulary,
            epoch=Epoch.of(found.manifest.index_epoch or version, None if same is None else same.epoch),
        )
        found.golden.check(found.config, inference)
        inference.attach(self.catalogue)
        pipeline = Pipeline(found.config, inference, self.catalogue, version)
        return Serving(version, found.config, pipeline, Interview(inference, self.catalogue))

    def follow_catalogue(self) -> None:
        """Take up the items that changed since the last look and embed them.

        Where the store lost its memory, what is known here stays: profiles fill it again from the log.
        """
        try:
            changed = self.changes.catalogue_changes(self._mark)
        except StoreUnavailable as error:
            log.warning("the catalogue stays as it is: %s", error)
            return
        for start in range(0, len(changed.items), CHUNK):
            with self.catalogue_lock:
                for item in changed.items[start : start + CHUNK]:
                    self.catalogue.put(item)
        if changed.items and self._serving is not None:
            self._serving.attach(self.catalogue)
        if changed.items and (beside := self._beside) is not None:
            beside.serving.attach(self.catalogue)
        self._mark = changed.mark

    # -- ranking -----------------------------------------------------------------------------------------------

    async def rank(self, message: RankRequest | RecommendRequest) -> RankAnswer:
        """One slate; what is out of reach makes it degraded, not failed.

        Raises:
            RequestError: the request cannot be answered as it stands.
            RegistryError: 503, no version yet.
        """
        begun = time.perf_counter()
        serving, arm = self.serving_of(message.user)
        evidence, missing = await self.evidence(message.user, message.evidence_token)
        read_ms = (time.perf_counter() - begun) * 1000
        now = int(self.clock() * 1000)
        ranking = self.signer.sign(message.user, serving.version, now)
        request = self._request(message, now, ranking)
        with self.catalogue_lock:
            slate = serving.pipeline.rank(request, evidence)
        # an empty slate, from a catalogue that holds nothing yet, is nothing to learn from
        if slate.items and not self.outbox.offer(
            partial(_event, ranking, message, request, slate, arm=arm, tenant=self.settings.config.tenant)
        ):
            missing = (*missing, "log")
        reason = self.reason(missing)
        self.telemetry.slate_made(slate.timings_ms, arm, [one.kind for one in slate.interventions])
        names = [objective.name for objective in serving.config.objectives]
        return RankAnswer(
            ranking=ranking,
            version=slate.version,
            arm=arm,
            user=message.user,
            items=[
                Ranked(
                    id=item.id,
                    position=item.position,
                    score=item.utility,
                    probabilities=dict(zip(names, item.probabilities, strict=True)),
                    preference=item.preference,
                    propensity=item.propensity,
                    reward=item.reward,
                    interests=item.interests,
                )
                for item in slate.items
            ],
            degraded=bool(missing),
            reason=reason,
            evidence=slate.evidence,
            miscalibration=slate.miscalibration,
            removed=[Removed(*removed) for removed in slate.removed],
            interventions=list(slate.interventions),
            timings_ms={"evidence": read_ms, **slate.timings_ms, "total": (time.perf_counter() - begun) * 1000},
            weights=slate.weights if message.explain else None,
            miscalibration_before=slate.miscalibration_before if message.explain else None,
            exposure_miscalibration=slate.exposure_miscalibration if message.explain else None,
            strength=slate.strength if message.explain else None,
            sycophancy_gap=slate.sycophancy_gap if message.explain else None,
            profile=slate.profile,
        )

    def reason(self, missing: Sequence[str]) -> str | None:
        """Why an answer is degraded, in words, and counted; None where nothing is missing."""
        for what in missing:
            self.telemetry.degraded(what)
        return "; ".join(MISSING[what] for what in missing) or None

    def _request(self, message: RankRequest | RecommendRequest, now: int, ranking: str) -> Request:
        items: Sequence[str | Item] | None = None
        exclude_seen, categories, fresh_since = True, list[str](), None
        if isinstance(message, RankRequest):
            items = [one if isinstance(one, str) else Item(one.id, named(one.fields), now) for one in message.items]
        else:
            exclude_seen, categories, fresh_since = message.exclude_seen, message.categories, message.fresh_since
        return Request(
            user=message.user,
            items=items,
            limit=message.limit,
            weights=message.weights,
            calibration=message.calibration,
            pinned=message.pinned,
            excluded=message.excluded,
            fields=named(message.fields),
            now=now,
            explain=message.explain,
            seed=seed_of(ranking),
            exclude_seen=exclude_seen,
            categories=categories,
            fresh_since=fresh_since,
            guard=message.guard,
        )

    async def evidence(self, user: str, token: str | None) -> tuple[Evidence, tuple[str, ...]]:
        """The user's evidence, and what is missing of it (keys of MISSING).

        Args:
            token: of a write that should count.

        Raises:
            RequestError: the token is not one of ours.
        """
        places = intake.read_token(token) if token is not None else []
        if time.monotonic() < self._store_rest:
            return EMPTY, ("store",)
        try:
            reached = await self._reached(places)
            stored = await self.reads.evidence(user)
        except StoreUnavailable:
            self._store_rest = time.monotonic() + STORE_REST_S
            return EMPTY, ("store",)
        return (EMPTY if stored is None else stored.evidence), (() if reached else ("late",))

    async def _reached(self, places: Sequence[Token]) -> bool:
        deadline = time.monotonic() + self.settings.evidence_wait
        for place in places:
            if not await self.reads.wait_for(place, max(0.0, deadline - time.monotonic())):
                return False
        return True

    # -- feedback ----------------------------------------------------------------------------------------------

    async def feedback(self, body: bytes, scopes: frozenset[Scope]) -> FeedbackAnswer:
        """Write the valid events of a body; the answer says what became of each.

        Raises:
            RequestError: 400, the body is not JSON.
            EventError: there is no event in it.
            LogUnavailable: the broker did not take them.
        """
        taken = intake.take(
            body,
            signer=self.signer,
            scopes=scopes,
            tenant=self.settings.config.tenant,
            now_ms=int(self.clock() * 1000),
        )
        self.telemetry.feedback_taken(len(taken.admitted), taken.refused)
        return FeedbackAnswer(
            accepted=len(taken.admitted),
            refused=taken.refused,
            evidence_token=await self.write(taken.admitted),
            results=taken.results,
        )

    async def write(self, written: Sequence[Event]) -> str | None:
        """Write events and wait until the broker has them; returns their evidence token, None where there are none.

        Raises:
            LogUnavailable: the broker did not take them.
        """
        if not written:
            return None
        places = await self.outbox.write(written, self.settings.log_wait)
        return intake.evidence_token(self.outbox.log or "", places)


def seed_of(ranking: str) -> int:
    """The seed of a slate's exploration, out of its id, so that the draw can be repeated."""
    return int.from_bytes(hashlib.blake2b(ranking.encode(), digest_size=8).digest())


def _event(
    ranking: str,
    message: RankRequest | RecommendRequest,
    request: Request,
    slate: Slate,
    *,
    arm: str,
    tenant: str | None,
) -> Ranking:
    """The served slate as the event that the learner reads."""
    inline = {item.id: item.fields for item in request.items or () if isinstance(item, Item)}
    return Ranking(
        id=ranking,
        timestamp=request.now,
        user=request.user,
        session=message.session,
        version=slate.version,
        arm=arm,
        tenant=tenant,
        fields=_fields(request.fields),
        items=[
            Shown(
                id=item.id,
                fields=_fields(inline.get(item.id, {})),
                propensity=item.propensity,
                score=item.utility,
                probabilities=list(item.expected),
            )
            for item in slate.items[:LOGGED_PLACES]
        ],
    )


def _fields(fields: Mapping[str, events.Value]) -> list[Field]:
    return [Field(name, value) for name, value in fields.items()]
