"""THE LEARNING PATH: poll -> journal -> decode -> join -> predict -> learn -> report; then publish, then checkpoint.

Each slate is scored when it is shown, before anything is learned from it, so the metrics and the gate's verdicts are
honest. What is learned depends on the journal alone: the clock decides only when to publish and when to checkpoint.
Killed at any moment, the trainer loads the last checkpoint and takes the journal's steps again, with the same
batches, and arrives at the same bits.
"""

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex
from threading import Event as Signal
from typing import Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ranker.balance import People
from ranker.canary import CANARY
from ranker.catalogue import Catalogue
from ranker.config import Config
from ranker.errors import CheckpointError, EventError, PromotionRefused, RegistryError
from ranker.events import Event, Forget
from ranker.evidence import Answer
from ranker.gate import Anchor, Gate, Judged, Pair, Sums, Verdict
from ranker.golden import Golden, made_up
from ranker.join import Example, Joiner
from ranker.learner import TEACHER, Learner, StepReport, beside
from ranker.registry import Registry
from ranker.report import TasteReport
from ranker.slates import Foreseen
from streaming.checkpoint import Checkpoint, Checkpoints, Journal, Offsets, Source, Step, replayed
from streaming.log import Record
from streaming.progress import Progress, Rate

GROUP = "plurank-trainer"
#: earlier logs whose offsets are kept, for records that are carried over
LOGS = 8
#: steps between two looks at what reliable answers are like
RELIABILITY = 256
#: slates that plurank did not serve, taken into the candidate's window per step
OTHERS = 50
#: of NDCG: what equal versions differ by in favour of the one that chose the places, as simulated
FAVOUR = 0.01
#: one in so many slates is scored by the anchor too while the trainer is behind
SPARSE = 8
#: places whose worth is followed; those beyond count as the last
PLACES = 100


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How much at a time, and how often.

    Attributes:
        records: at most so many in a step: when behind, a step is full; live, it holds what there is.
        rows: labelled rows of one learning step.
        gather: seconds between two steps while there is little to read.
        checkpoint: seconds between checkpoints; more where one takes long.
        silent: seconds without a record after which a partition that holds nothing unread counts as idle.
        idle: seconds between reports while nothing comes.
        slates: window of the gate.
        keep: checkpoints kept.
    """

    records: int = 4000
    rows: int = 2048
    gather: float = 0.2
    checkpoint: float = 30.0
    silent: float = 5.0
    idle: float = 1.0
    slates: int = 1000
    keep: int = 2


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the trainer did since its last report.

    Attributes:
        records, rejected, rows: read, not events of the contract, learned.
        losses: mean by objective of what was learned.
        skipped: steps refused because loss or gradient were not finite.
        tastes: what tastes are worth by now, over comparisons scored before they were learned.
        served, learner: progressive AUC by objective, of the served versions and of the learner.
        version: the version the learner's weights descend from.
        lag: records not read yet; `rate` events per second; `pending` open slates; `now` event time in ms.
        published: the version that was saved, with its `verdict`.
        replaying: the step was taken before and is taken again.
        notices: what a person should know: damage passed over, another log, another version taken up.
    """

    step: int
    records: int = 0
    rejected: int = 0
    rows: int = 0
    losses: Mapping[str, float] = field(default_factory=dict)
    skipped: int = 0
    tastes: TasteReport | None = None
    served: Mapping[str, float] = field(default_factory=dict)
    learner: Mapping[str, float] = field(default_factory=dict)
    version: str | None = None
    lag: int = 0
    rate: float = 0.0
    pending: int = 0
    now: int = 0
    seconds: float = 0.0
    published: str | None = None
    promoted: bool = False
    verdict: Verdict | None = None
    replaying: bool = False
    notices: tuple[str, ...] = ()


class Student(Protocol):
    """What learns: ranker.learner.Learner."""

    def foresee(self, examples: Sequence[Example], catalogue: Catalogue) -> list[Foreseen]:
        """What it says of each slate as things stand."""
        ...

    def learn(self, examples: Sequence[Example], catalogue: Catalogue) -> StepReport:
        """One step."""
        ...

    @property
    def tastes(self) -> TasteReport:
        """What tastes are worth."""
        ...

    def believe(self, people: Iterable[Sequence[Answer]]) -> None:
        """Find out anew what reliable answers look like."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """What a version ships."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything learning depends on: the weights under `model.`, and the rest."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        ...

    def know(self, people: People) -> None:
        """Balance the groups of these people, where the configuration says so."""
        ...

    def forget(self, user: str) -> None:
        """Drop what is kept of a person's examples."""
        ...


class Trainer:
    """The loop from the log to versions in the registry.

    Args:
        source: the log; a `Reader`.
        state: folder of journal and checkpoints, one trainer at a time.
        learner: by default a new one for the configuration.
        clock: seconds; decides when to publish and to checkpoint, never what is learned.
        initial: serve the first weights at once where nothing is served yet.

    Raises:
        CheckpointError: another trainer holds the state, or all of it is damaged.
    """

    def __init__(
        self,
        config: Config,
        source: Source,
        registry: Registry,
        state: Path,
        *,
        learner: Student | None = None,
        gate: Gate | None = None,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
        initial: bool = True,
    ) -> None:
        self.config, self.source, self.registry = config, source, registry
        self.learner: Student = learner or Learner(config)
        self.pace, self._clock, self._initial = pace or Pace(), clock, initial
        self.gate = gate or Gate(group=config.learning.minimum_group, full=self.pace.slates, favour=FAVOUR)
        self.joiner = Joiner(config, opening=True, pairs=True)
        self.learner.know(self.joiner)
        self.candidate = Sums(config, window=self.pace.slates)
        self.current = Sums(config, window=self.pace.slates)
        self.anchor = Anchor(full=self.pace.slates)
        self._frozen: Student | None = None  # the anchor's weights
        self._worth_PT = np.full((PLACES, len(config.objectives)), np.nan)
        self._progress, self._rate = Progress(config), Rate(clock)
        self._journal = Journal(Path(state) / "journal")
        self._checkpoints = Checkpoints(Path(state) / "checkpoints", keep=self.pace.keep)
        self._step = 0
        self._log = source.log
        self._offsets: dict[str, Offsets] = {self._log: source.positions()}
        #: the version the weights descend from, and a name for the unbroken line of learning since it was taken up
        self._base: str | None = None
        self._line = token_hex(8)
        self._measured: tuple[float, dict[str, float], dict[str, float]] = (float("-inf"), {}, {})
        self._learned = False
        self._heard: dict[int, float] = {}
        self._notices: list[str] = []
        self._polled = clock()
        self._published = self._saved = clock()
        self._patience = self.pace.checkpoint

    def run(self, stop: Signal) -> Iterator[Report]:
        """Learn until `stop` is set; yields a report after each step and each publication, and when idle for long."""
        yield from self._resume()
        told = self._clock()
        while not stop.is_set():
            records = self._poll(stop)
            if self.source.log != self._log:
                self._follow_log()
            if records:
                with _uncollected():
                    report = self._take(self._begin(), records)
                yield report
            if self._follow_pointer() or (not records and self._clock() - told >= self.pace.idle):
                yield self._report()
                told = self._clock()
            if self._clock() - self._published >= self.config.learning.publish:
                yield from self._publish()
            if self._clock() - self._saved >= self._patience:
                self._save()
        self._save()

    def close(self) -> None:
        """Let another trainer have the state folder."""
        self._journal.close()

    # -- one step ----------------------------------------------------------------------------------------------

    def _poll(self, stop: Signal) -> list[Record]:
        rest = self.pace.gather - (self._clock() - self._polled)
        if rest > 0:
            stop.wait(rest)
        records = self.source.poll(self.pace.records, self.pace.gather)
        # behind: no pause before the next poll
        self._polled = self._clock() if len(records) < self.pace.records / 4 else -1e9
        for record in records:
            self._heard[record.partition] = self._clock()
        return records

    def _begin(self) -> Step:
        """The step's ranges, synced to the journal before anything is learned from them."""
        before, after = self._offsets.setdefault(self._log, {}), self.source.positions()
        quiet = self._clock() - self.pace.silent
        idle = [p for p in after if self._heard.setdefault(p, self._clock()) < quiet] if not self.source.lag() else []
        step = Step(
            number=self._step + 1,
            log=self._log,
            ranges={p: (before.get(p, 0), end) for p, end in sorted(after.items()) if end != before.get(p, 0)},
            idle=tuple(sorted(idle)),
        )
        self._journal.append(step)
        return step

    def _take(self, step: Step, records: Sequence[Record], *, replaying: bool = False) -> Report:
        began = self._clock()
        examples: list[Example] = []
        rejected = 0
        for record in sorted(records, key=lambda record: (record.partition, record.offset)):
            event = self._event(record)
            if event is None:
                rejected += 1
                continue
            examples += self.joiner.push(event, record.partition)
            if isinstance(event, Forget):
                examples = [example for example in examples if example.user != event.user]
                self._forget(event.user)
        examples += self.joiner.catch_up(step.idle)
        self._rate.add(len(records))
        self._judge(examples, every=SPARSE if len(records) >= self.pace.records / 4 else 1)
        reports = [self.learner.learn(some, self.joiner.catalogue) for some in _portions(examples, self.pace.rows)]
        self._learned |= any(report.rows for report in reports)
        if step.number % RELIABILITY == 0:
            # by steps and not by the clock, so that a replay does the same
            self.learner.believe(evidence.answers for evidence in self.joiner.evidence.values() if evidence.answers)
        self._step = step.number
        self._offsets[self._log] |= {partition: end for partition, (_, end) in step.ranges.items()}
        self.source.covered[self._log] = dict(self._offsets[self._log])
        if not all(report.finite for report in reports):
            self._notices.append("a learning step was skipped: its loss or gradient was not finite")
        return replace(
            self._report(),
            records=len(records),
            rejected=rejected,
            rows=sum(report.rows for report in reports),
            losses=_mean_losses(reports),
            skipped=sum(not report.finite for report in reports),
            seconds=self._clock() - began,
            replaying=replaying,
        )

    def _event(self, record: Record) -> Event | None:
        """The record's event; None where it is bad. Profiles sets it aside as a dead letter, with the reason."""
        try:
            return record.event(self.config.tenant)
        except EventError:
            return None

    def _judge(self, examples: Sequence[Example], *, every: int) -> None:
        """Score the slates just shown, before learning, and compare the closed ones with what was served.

        Args:
            every: one in so many closed slates is scored by the anchor too.
        """
        shown = [example for example in examples if example.opening]
        predictions = dict(
            zip(
                [example.ranking for example in shown],
                self.learner.foresee(shown, self.joiner.catalogue) if shown else [],
                strict=True,
            )
        )
        for ranking, foreseen in predictions.items():
            self.joiner.note(ranking, foreseen)
        self._see_places(shown, predictions)
        closed = [example for example in examples if example.closing]
        judged: list[tuple[Example, Judged]] = []
        for place, example in enumerate(closed):
            # a slate may open and close in one step
            known = predictions.get(example.ranking) or example.foreseen
            if known is not None:  # by what its places are worth as known by now: both versions are judged alike
                known = known._replace(worth_NT=self._worth(example, known))
            example = replace(example, foreseen=known)  # noqa: PLW2901
            self._progress.add(example, None if known is None else known.chances_NT)
            # slates of others tell only of catastrophes: the last few of a step will do
            ours = example.served_NT is not None and example.version is not None and example.arm != CANARY
            groups = self.joiner.groups.of(example.user)
            if known is not None and (ours or place >= len(closed) - OTHERS):
                new = self.candidate.add(example, known.chances_NT, groups, utility_N=known.utility_N)
                if ours and crc32(example.ranking.encode()) % every == 0:
                    judged.append((example, new))
            if example.served_NT is not None and ours:
                self.current.add(example, example.served_NT, groups, utility_N=example.score_N)
        self._look_back(judged)

    def _look_back(self, judged: Sequence[tuple[Example, Judged]]) -> None:
        """Score the closed slates by the anchor too: it learns nothing, so it is as honest now as when they opened.

        What it served itself is left out: there the current window says the same, and it chose the places.
        """
        judged = [(example, new) for example, new in judged if example.version != self.anchor.version]
        if self._frozen is None or not judged:
            return
        found = self._frozen.foresee([example for example, _ in judged], self.joiner.catalogue)
        for (example, new), foreseen in zip(judged, found, strict=True):
            old = self.candidate.judged(example, foreseen.chances_NT, utility_N=foreseen.utility_N)
            self.anchor.add(example.ranking, Pair.of(new, old))

    def _settle(self, version: str | None, weights: Mapping[str, Tensor]) -> None:
        """This version is the anchor from now on; its weights stay as they are."""
        self.anchor.settle(version)
        self._freeze(weights)

    def _move_up(self, version: str, weights: Mapping[str, Tensor]) -> None:
        """Make a version that was just promoted the anchor, if there is none yet or it is time.

        The first weights, which know nothing, are never the anchor.
        """
        if self._frozen is None or self.gate.surpassed(self.anchor):
            self._settle(version, weights)
            self._save()  # slates scored by the former anchor cannot stand beside those that come

    def _freeze(self, weights: Mapping[str, Tensor]) -> None:
        self._frozen = frozen = Learner(self.config)
        frozen.load({**frozen.state(), **{f"model.{name}": value for name, value in weights.items()}})

    def _see_places(self, shown: Sequence[Example], predictions: Mapping[str, Foreseen]) -> None:
        """What each place is worth as of now: the mean over the step's new slates, kept where it says nothing new."""
        if not shown:
            return
        place_R = np.concatenate([example.positions for example in shown])
        worth_RT = np.concatenate([predictions[example.ranking].worth_NT for example in shown])
        known_R = (place_R >= 0) & (place_R < PLACES)
        count_P = np.bincount(place_R[known_R], minlength=PLACES)
        total_PT = np.stack([np.bincount(place_R[known_R], worth_T[known_R], PLACES) for worth_T in worth_RT.T], 1)
        self._worth_PT[count_P > 0] = total_PT[count_P > 0] / count_P[count_P > 0, None]

    def _worth(self, example: Example, foreseen: Foreseen) -> NDArray[np.float32]:
        place_N = np.minimum(example.positions, PLACES - 1)
        now_NT = self._worth_PT[place_N]
        return np.where((place_N >= 0)[:, None] & np.isfinite(now_NT), now_NT, foreseen.worth_NT).astype(np.float32)

    def _forget(self, user: str) -> None:
        self.learner.forget(user)
        for sums in (self.candidate, self.current):
            for ranking in [name for name, judged in sums.slates.items() if judged.user == user]:
                del sums.slates[ranking]
        self.anchor.forget(user)

    def _report(self) -> Report:
        notices, self._notices = tuple(self._notices), []
        if self._clock() - self._measured[0] >= 1:  # AUC over the window is for people: once a second will do
            self._measured = (self._clock(), self._progress.served(), self._progress.learner())
        return Report(
            step=self._step,
            served=self._measured[1],
            learner=self._measured[2],
            tastes=self.learner.tastes,
            version=self._base,
            lag=self.source.lag(),
            rate=self._rate.add(0),
            pending=self.joiner.pending,
            now=self.joiner.now,
            notices=notices,
        )

    # -- versions ----------------------------------------------------------------------------------------------

    def _publish(self) -> Iterator[Report]:
        """Save a candidate, judge it, and have it served, or tried on a part of the users, if the verdict passes."""
        self._published = self._clock()
        pointer = self.registry.current()
        if (pointer is not None and (pointer.held or not self._learned)) or (pointer is None and not self._initial):
            return
        report = self._report()
        weights, catalogue = self.learner.weights(), self.joiner.catalogue
        state = self.learner.state()
        teachers = {name[len(TEACHER) :]: value for name, value in state.items() if name.startswith(TEACHER)}
        try:
            version = self.registry.save(
                weights,
                self.config,
                metrics={"served": report.served, "learner": report.learner, "step": self._step, "line": self._line},
                golden=Golden.record(self.config, weights, catalogue, made_up(self.config, catalogue, report.now)),
                parent=self._base,
                index_epoch=self.registry.epoch(self._base, self.config.retrieval.epoch),
                state=beside(state),
                teachers=teachers,
            )
        except RegistryError as error:
            yield replace(report, notices=(*report.notices, str(error)))
            return
        self._learned = False
        if pointer is not None and pointer.version != self.anchor.version and self.registry.forced(pointer.version):
            # somebody wants it in spite of what was found: what comes next is held to it
            self._settle(pointer.version, self.registry.load(pointer.version).weights)
        verdict = self.gate.judge(self.candidate, None if pointer is None else self.current, self.anchor)
        if pointer is not None and pointer.canary is not None and verdict.decision == "pass":
            # another current version would begin the canary's comparison anew, again and again
            verdict = Verdict("hold", (f"{pointer.canary} is tried as a canary", *verdict.reasons), verdict.measures)
        promoted = False
        try:
            generation = None if pointer is None else pointer.generation
            if pointer is not None and self.config.canary.trials and verdict.decision == "pass":
                share = self.config.canary.ladder[0]
                self.registry.canary(version, share, who="trainer", generation=generation, verdict=verdict)
            else:
                self._base = self.registry.promote(version, verdict, generation=generation, who="trainer").version
                promoted = True
        except PromotionRefused:
            pass
        except RegistryError as error:  # the pointer moved meanwhile: the next candidate is judged anew
            self._notices.append(str(error))
        if promoted and pointer is not None:
            self._move_up(version, weights)
        self.registry.prune(besides=() if self.anchor.version is None else (self.anchor.version,))
        yield replace(report, version=self._base, published=version, verdict=verdict, promoted=promoted)

    def _follow_pointer(self) -> bool:
        """Take up the version served where it is not of this learner's line: rolled back to, or put there by hand."""
        pointer = self.registry.current()
        if pointer is None or pointer.version == self._base:
            return False
        mine = self.registry.manifest(pointer.version).metrics.get("line") == self._line
        version = self.registry.load(pointer.version)
        if mine and not pointer.held:  # a canary of this trainer that was promoted
            self._base = pointer.version
            if version.manifest.parent is not None:
                self._move_up(version.id, version.weights)
            return False
        # what a version ships besides its weights is missing where it was trained elsewhere: then the learner's own
        rest = self.registry.state(pointer.version) or {
            name: value for name, value in self.learner.state().items() if not name.startswith(("adam.", TEACHER))
        }
        rest |= {f"{TEACHER}{name}": value for name, value in (self.registry.teachers(pointer.version) or {}).items()}
        self.learner.load({**rest, **{f"model.{name}": value for name, value in version.weights.items()}})
        self._base, self._line = version.id, token_hex(8)
        self._learned = False
        self.candidate.clear()
        self._settle(version.id, version.weights)
        self._notices.append(f"learning goes on from {version.id}" + (", held by a rollback" if pointer.held else ""))
        self._save()
        return True

    # -- state -------------------------------------------------------------------------------------------------

    def _resume(self) -> Iterator[Report]:
        """Load the last whole checkpoint, take the journal's steps again, and see to it that something is served."""
        found = self._checkpoints.latest(lambda error: self._notices.append(str(error)))
        if found is None:
            if self._journal.steps(after=0):
                remedy = "restore the checkpoints, or remove the journal to read the log from its beginning"
                raise CheckpointError("checkpoints", None, f"there is a journal without them; {remedy}")
            self._save()
        else:
            self._load(found)
            steps = self._journal.steps(after=found.step)
            if self.source.log == found.log:
                for step, records in replayed(self.source, found.offsets.get(found.log, {}), steps):
                    yield self._take(step, records, replaying=True)
                self._heard.clear()
            else:
                self._step = steps[-1].number if steps else found.step
                if steps:
                    self._notices.append(f"{len(steps)} steps after the last checkpoint are lost with their log")
                self._follow_log()
        self._follow_pointer()
        if self.registry.current() is None:
            yield from self._publish()
        yield self._report()

    def _load(self, found: Checkpoint) -> None:
        self.learner.load(found.learner)
        self.joiner.load(found.parts["joiner"])
        self.candidate.load(found.parts["candidate"])
        self.current.load(found.parts["current"])
        if anchor := found.parts.get("anchor"):
            self.anchor.load(anchor)
        if self.anchor.version is not None:
            try:
                self._freeze(self.registry.load(self.anchor.version).weights)
            except RegistryError as error:
                self._notices.append(f"no anchor to hold candidates to: {error}")
                self.anchor.settle(None)
        if worth := found.parts.get("worth"):
            self._worth_PT = np.frombuffer(worth).reshape(self._worth_PT.shape).copy()
        self._step, self._log = found.step, found.log
        self._offsets = {log: dict(offsets) for log, offsets in found.offsets.items()}
        self.source.covered.update({log: dict(offsets) for log, offsets in found.offsets.items()})
        self._base, self._line = found.facts["base"], found.facts["line"] or self._line

    def _save(self) -> None:
        """A checkpoint; then a new journal file, and the group's offsets as of the oldest checkpoint kept."""
        began = self._clock()
        while len(self._offsets) > LOGS:
            self._offsets.pop(next(iter(self._offsets)))
        self._checkpoints.save(
            Checkpoint(
                step=self._step,
                log=self._log,
                offsets=self._offsets,
                learner=self.learner.state(),
                parts={
                    "joiner": self.joiner.state(),
                    "candidate": self.candidate.state(),
                    "current": self.current.state(),
                    "anchor": self.anchor.state(),
                    "worth": self._worth_PT.tobytes(),
                },
                facts={"base": self._base, "line": self._line},
            )
        )
        oldest = self._checkpoints.steps()[0]
        self._journal.roll(self._step, oldest)
        self.source.commit(self._checkpoints.offsets(oldest).get(self._log))
        self._saved = self._clock()
        self._patience = max(self.pace.checkpoint, 20 * (self._saved - began))

    def _follow_log(self) -> None:
        """The log was made anew: read it from its beginning, with everything that was learned kept.

        Records that it carries over from a log read before are passed over by the source.
        """
        self._notices.append(f"the log is new: {self.source.log} after {self._log}; what was learned is kept")
        self._log = self.source.log
        if at := self._offsets.setdefault(self._log, {}):
            self.source.seek(at)
        self._heard.clear()
        self._save()


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for cycles meanwhile: a step makes none, and every few hundred events one would begin.

    Full steps spent a fifth of their time on it: what a step holds is many containers, and all are searched.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _portions(examples: Sequence[Example], rows: int) -> Iterator[list[Example]]:
    """The examples in order, in portions of about so many rows to learn."""
    some: list[Example] = []
    count = 0
    for example in examples:
        some.append(example)
        count += 0 if example.opening or example.closing else len(example.items)
        if count >= rows:
            yield some
            some, count = [], 0
    if some:
        yield some


def _mean_losses(reports: Sequence[StepReport]) -> dict[str, float]:
    """Mean loss by objective over the reports that have one."""
    found: dict[str, list[float]] = {}
    for report in reports:
        for name, loss in report.losses.items():
            if np.isfinite(loss):
                found.setdefault(name, []).append(loss)
    return {name: float(np.mean(losses)) for name, losses in found.items()}
