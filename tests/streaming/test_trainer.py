import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from threading import Event as Signal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ranker import config, events
from ranker.catalogue import Catalogue
from ranker.errors import CheckpointError
from ranker.events import Field, Forget, Interaction, Item, Ranking, Shown, User
from ranker.gate import Gate, Pair, Verdict
from ranker.golden import Golden, made_up
from ranker.join import Example
from ranker.learner import Learner, StepReport
from ranker.registry import Registry
from ranker.slates import Foreseen
from streaming.log import Record
from streaming.trainer import Pace, Report, Trainer

CONFIG = config.parse(
    {
        "objectives": [
            {"name": "click", "event": "click", "wait": 10, "biased": True},
            {"name": "like", "event": "like", "wait": 30},
        ],
        "fields": {"item": {"genre": "category"}},
        "interests": "genre",
        "groups": ["gender"],
        "scale": "tiny",
        "learning": {"publish": 1000, "minimum_group": 2},
    }
)


class Log:
    """A log in memory: four partitions, read in uneven portions; ends the run when all is read."""

    def __init__(self, happened: Sequence[events.Event | bytes], *, log: str = "log-1", seed: int = 0) -> None:
        self.log, self.covered = log, dict[str, dict[int, int]]()
        self.records: list[list[Record]] = [[] for _ in range(4)]
        self.next = dict.fromkeys(range(4), 0)
        self.stop, self.random = Signal(), Random(seed)
        self.committed: dict[int, int] = {}
        for event in happened:
            self.append(event)

    def append(self, event: events.Event | bytes) -> None:
        raw = event if isinstance(event, bytes) else events.encode(event)
        key = b"" if isinstance(event, bytes) else events.key_of(event).encode()
        partition = sum(key) % 4
        time = 10**7 if isinstance(event, bytes) else event.time
        self.records[partition].append(Record(partition, len(self.records[partition]), time, key, raw))

    def poll(self, max_records: int = 50, timeout: float = 0) -> list[Record]:
        found: list[Record] = []
        for partition in range(4):
            at = self.next[partition]
            some = self.records[partition][at : at + self.random.randint(0, 12)]
            self.next[partition] += len(some)
            found += some
        if not found and not self.lag():
            self.stop.set()
        return found

    def positions(self) -> dict[int, int]:
        return dict(self.next)

    def seek(self, positions: Mapping[int, int]) -> None:
        self.next.update(positions)

    def lag(self) -> int:
        return sum(len(part) for part in self.records) - sum(self.next.values())

    def commit(self, positions: Mapping[int, int] | None = None) -> None:
        self.committed = dict(positions or {})


class Ticks:
    """A clock that a test moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


PACE = Pace(gather=0, checkpoint=10**9, keep=10**6, rows=64)


def happenings(slates: int = 60, *, served: float | None = None, version: str | None = None) -> Iterator[events.Event]:
    """Users like the items of one genre; slates name their version and the chances it gave where asked."""
    random = Random(5)
    for number in range(20):
        genre = [Field("genre", "ab"[number % 2])]
        yield Item(id=f"item{number}", timestamp=1, item=f"i{number}", fields=genre)
    for number in range(slates):
        time, user = 1000 + number * 1000, f"u{number % 7}"
        yield User(id=f"is-{user}", timestamp=time, user=user, fields=[Field("gender", "FM"[number % 2])])
        chosen = random.sample(range(20), 5)
        chances = None if served is None else [served, served]
        shown = [Shown(f"i{n}", probabilities=chances) for n in chosen]
        yield Ranking(id=f"r{number}", timestamp=time, user=user, items=shown, version=version)
        for n in chosen:
            if n % 2 == number % 7 % 2:
                kind = "click" if random.random() < 0.8 else "like"
                yield Interaction(
                    id=f"r{number}-{n}", timestamp=time + 500, user=user, item=f"i{n}", type=kind, ranking=f"r{number}"
                )


def trainer(log: Log, folder: Path, **more: object) -> Trainer:
    return Trainer(CONFIG, log, Registry(folder / "registry"), folder / "state", **{"pace": PACE, **more})  # type: ignore[arg-type]


def run(one: Trainer, log: Log) -> list[Report]:
    reports = list(one.run(log.stop))
    one.close()
    return reports


def bits(one: Trainer) -> tuple[dict[str, list[float]], bytes, bytes, bytes]:
    learner = {name: value.flatten().tolist() for name, value in one.learner.state().items()}
    return learner, one.joiner.state(), one.candidate.state(), one.current.state()


def test_it_learns_what_the_log_says_and_reports_it(tmp_path: Path) -> None:
    log = Log([*happenings(), b"not an event", b'{"event":"forget","id":"f","timestamp":99999999,"user":"u"}'])
    one = trainer(log, tmp_path)
    before = one.learner.weights()
    reports = run(one, log)
    assert sum(report.records for report in reports) == sum(len(part) for part in log.records)
    assert sum(report.rejected for report in reports) == 2
    assert sum(report.rows for report in reports) > 300
    assert any(not torch.equal(value, before[name]) for name, value in one.learner.weights().items())
    assert reports[-1].lag == 0
    assert set(next(report.losses for report in reports if report.losses)) <= {"click", "like"}


def test_the_first_weights_are_served_at_once_and_named_as_the_base(tmp_path: Path) -> None:
    log = Log([])
    one = trainer(log, tmp_path)
    reports = run(one, log)
    pointer = one.registry.current()
    assert pointer is not None
    assert reports[0].published == pointer.version == reports[-1].version
    log = Log([])
    other = trainer(log, tmp_path / "other", initial=False)
    assert run(other, log)[0].published is None
    assert other.registry.current() is None


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[object, ...]]:
    """A run that nothing interrupted: its folder, with all journals and the first checkpoint, and its final bits."""
    folder = tmp_path_factory.mktemp("finished")
    log = Log(list(happenings()))
    one = trainer(log, folder)
    run(one, log)
    return folder, bits(one)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_trainer_stopped_anywhere_many_times_ends_with_the_bits_of_its_journal(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], random: Random
) -> None:
    folder = tmp_path_factory.mktemp("killed")
    for attempt, cut in enumerate([*cuts, None]):
        log = Log(list(happenings()), seed=attempt)
        one = trainer(log, folder, pace=Pace(gather=0, checkpoint=random.choice([0, 10**9]), keep=10**6, rows=64))
        reports = one.run(log.stop)
        for _ in range(cut if cut is not None else 10**6):
            if next(reports, None) is None:
                break
        reports.close()  # type: ignore[attr-defined]
        one.close()
    again = tmp_path_factory.mktemp("again")
    shutil.copytree(folder / "state" / "journal", again / "state" / "journal")
    first = Path("state") / "checkpoints" / f"{0:012d}"
    shutil.copytree(folder / first, again / first)
    log = Log(list(happenings()), seed=99)
    whole = trainer(log, again)
    assert all(report.replaying for report in run(whole, log) if report.records)
    assert bits(whole) == bits(one)


def test_the_same_batches_give_the_same_bits_in_another_process_run(
    tmp_path: Path, finished: tuple[Path, tuple[object, ...]]
) -> None:
    log = Log(list(happenings()))
    one = trainer(log, tmp_path)
    run(one, log)
    assert bits(one) == finished[1]


def test_a_damaged_checkpoint_costs_a_notice_and_nothing_else(
    tmp_path: Path, finished: tuple[Path, tuple[object, ...]]
) -> None:
    folder, expected = finished
    shutil.copytree(folder, tmp_path / "copy")
    newest = sorted((tmp_path / "copy" / "state" / "checkpoints").iterdir())[-1]
    (newest / "joiner").write_bytes(b"damage")
    log = Log(list(happenings()))
    one = trainer(log, tmp_path / "copy")
    reports = run(one, log)
    assert any("joiner" in notice for report in reports for notice in report.notices)
    assert bits(one) == expected


def test_a_journal_without_any_checkpoint_is_refused_with_a_remedy(
    tmp_path: Path, finished: tuple[Path, tuple[object, ...]]
) -> None:
    shutil.copytree(finished[0] / "state" / "journal", tmp_path / "state" / "journal")
    log = Log([])
    one = trainer(log, tmp_path)
    with pytest.raises(CheckpointError, match="remove the journal"):
        run(one, log)
    one.close()


class Watched(Learner):
    """Compares its first predictions with those of a learner that never learned."""

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.first: list[tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]] = []

    def foresee(self, examples: Sequence[Example], catalogue: Catalogue) -> list[Foreseen]:
        assert all(example.opening for example in examples)
        found = super().foresee(examples, catalogue)
        self.first.append(([one.chances_NT for one in found], Learner(CONFIG).predict(examples, catalogue)))
        return found


def test_each_slate_is_scored_before_anything_is_learned_from_its_step(tmp_path: Path) -> None:
    log, learner = Log(list(happenings(30))), Watched()
    run(trainer(log, tmp_path, learner=learner), log)
    for found, untaught in zip(*learner.first[0], strict=True):
        np.testing.assert_array_equal(found, untaught)
    later = [np.abs(a - b).max() for both in learner.first[1:] for a, b in zip(*both, strict=True)]
    assert max(later) > 0


def test_a_log_made_anew_is_read_from_its_beginning_with_everything_kept(tmp_path: Path) -> None:
    log = Log(list(happenings(30)))
    one = trainer(log, tmp_path)
    run(one, log)
    learned = one.learner.weights()
    users = dict(one.joiner.evidence)
    new = Log([User(id="new", timestamp=10**6, user="u9")], log="log-2")
    two = trainer(new, tmp_path)
    reports = run(two, new)
    assert any("log-2 after log-1" in notice for report in reports for notice in report.notices)
    assert all(torch.equal(value, learned[name]) for name, value in two.learner.weights().items())
    assert {**users, "u9": two.joiner.evidence["u9"]} == dict(two.joiner.evidence)
    assert new.covered["log-1"] == log.positions()


def test_a_log_made_anew_while_it_is_read_is_noticed_between_two_steps(tmp_path: Path) -> None:
    log = Log(list(happenings(10)))
    one = trainer(log, tmp_path)
    reports = one.run(log.stop)
    for report in reports:
        if report.records:
            break
    fresh = Log([User(id="new", timestamp=10**6, user="u9")], log="log-2")
    log.log, log.records, log.next = fresh.log, fresh.records, fresh.next
    rest = list(reports)
    one.close()
    assert any("log-2" in notice for report in rest for notice in report.notices)
    assert "u9" in one.joiner.evidence


class Stubborn(Learner):
    """Thinks the world of everything."""

    def foresee(self, examples: Sequence[Example], catalogue: Catalogue) -> list[Foreseen]:
        wide = [np.full(example.labels_NT.shape, 0.9, np.float32) for example in examples]
        return [Foreseen(chances_NT, 0 * chances_NT + 1, chances_NT[:, 0]) for chances_NT in wide]


def served(tmp_path: Path, chance: float, learner: Learner | None = None) -> tuple[Trainer, Log, Ticks]:
    log, clock = Log([]), Ticks()
    gate = Gate(slates=30, group=3, urgent=10**6)
    one = trainer(log, tmp_path, clock=clock, gate=gate, learner=learner)
    next(one.run(log.stop))
    pointer = one.registry.current()
    assert pointer is not None
    for event in happenings(400, served=chance, version=pointer.version):
        log.append(event)
    return one, log, clock


def publish(one: Trainer, log: Log, clock: Ticks) -> Report:
    reports = []
    for report in one.run(log.stop):
        reports.append(report)
        clock.now += 1001 if log.lag() == 0 else 0
    one.close()
    return next(report for report in reversed(reports) if report.published)


def test_a_candidate_that_beats_what_was_served_is_promoted(tmp_path: Path) -> None:
    one, log, clock = served(tmp_path, 0.97)
    report = publish(one, log, clock)
    assert report.verdict is not None
    assert report.verdict.decision == "pass"
    assert report.promoted
    pointer = one.registry.current()
    assert pointer is not None
    assert pointer.version == report.published == one._base
    assert set(report.learner) == {"click", "like"}


def test_a_candidate_that_does_worse_is_saved_but_not_served(tmp_path: Path) -> None:
    one, log, clock = served(tmp_path, 0.2, Stubborn(CONFIG))
    report = publish(one, log, clock)
    assert report.verdict is not None
    assert (report.verdict.decision, report.promoted) == ("refuse", False)
    assert [decision.action for decision in one.registry.decisions()][-1] == "refuse"


def test_after_a_rollback_learning_goes_on_from_the_version_rolled_back_to(tmp_path: Path) -> None:
    one, log, clock = served(tmp_path, 0.97)
    publish(one, log, clock)
    first = one.registry.versions()[0]
    one.registry.rollback(who="ada", to=first)
    log = Log(list(happenings(400)))
    log.next = {partition: len(part) for partition, part in enumerate(log.records)}
    again = trainer(log, tmp_path)
    reports = run(again, log)
    assert any("held by a rollback" in notice for report in reports for notice in report.notices)
    weights = one.registry.load(first).weights
    assert all(torch.equal(value, weights[name]) for name, value in again.learner.weights().items())
    assert again._base == first
    log = Log(list(happenings(400)))
    assert not [n for report in run(trainer(log, tmp_path), log) for n in report.notices if "goes on" in n]


def test_a_new_trainer_without_state_starts_from_the_version_that_is_served(tmp_path: Path) -> None:
    one, log, clock = served(tmp_path, 0.97)
    report = publish(one, log, clock)
    shutil.rmtree(tmp_path / "state")
    log = Log([])
    fresh = trainer(log, tmp_path)
    run(fresh, log)
    assert fresh._base == report.published
    weights = one.registry.load(report.published or "").weights
    assert all(torch.equal(value, weights[name]) for name, value in fresh.learner.weights().items())


def test_forget_takes_a_person_out_of_join_and_windows(tmp_path: Path) -> None:
    log = Log([*happenings(60, served=0.5, version="v"), Forget(id="f", timestamp=10**6, user="u1")])
    one = trainer(log, tmp_path)
    run(one, log)
    users = {judged.user for sums in (one.candidate, one.current) for judged in sums.slates.values()}
    assert users >= {"u0", "u2"}
    assert "u1" not in users
    assert "u1" not in one.joiner.evidence
    assert b'"u1"' not in one.joiner.state()


def test_offsets_shown_to_others_are_those_of_the_oldest_checkpoint_kept(tmp_path: Path) -> None:
    log = Log(list(happenings(30)))
    one = trainer(log, tmp_path, pace=Pace(gather=0, checkpoint=0, keep=2, rows=64))
    run(one, log)
    oldest, newest = one._checkpoints.steps()
    assert oldest < newest
    assert log.committed == one._checkpoints.offsets(oldest)["log-1"]


def test_a_silent_partition_closes_its_slates_by_the_time_of_the_others(tmp_path: Path) -> None:
    log, clock = Log([]), Ticks()
    one = trainer(log, tmp_path, clock=clock)
    reports = one.run(log.stop)
    quiet = Ranking(id="quiet", timestamp=1000, user="a", items=[Shown("i1")])
    log.append(quiet)
    while one.joiner.pending == 0:
        next(reports)
    clock.now += 60
    log.append(Interaction(id="x", timestamp=10**6, user="b", item="i2", type="click"))
    rows = [report.rows for report in reports]
    one.close()
    assert sum(rows) >= 2 + 1


class Idle(Learner):
    """Says of every slate what it said from the first, though it reports to have learned."""

    def learn(self, examples: Sequence[Example], catalogue: Catalogue) -> StepReport:
        return replace(super().learn([], catalogue), rows=1)


def anchored(folder: Path, learner: Learner | None = None) -> Trainer:
    """A trainer that has a first version for its anchor, and nothing else yet."""
    log = Log([])
    one = trainer(log, folder, learner=learner or Learner(CONFIG))
    run(one, log)
    first = one.registry.versions()[0]
    one._settle(first, one.registry.load(first).weights)
    one._save()
    one.close()
    return one


def test_the_anchor_scores_closed_slates_as_they_were_when_they_opened(tmp_path: Path) -> None:
    first = anchored(tmp_path).anchor.version
    log = Log([*happenings(60, served=0.5, version="other")])
    one = trainer(log, tmp_path, learner=Idle(CONFIG))
    run(one, log)
    assert one.anchor.version == first
    assert set(one.anchor.pairs) == set(one.candidate.slates)
    assert len(one.anchor.pairs) > 20
    for pair in list(one.anchor.pairs.values())[8:]:  # the first were shown before their items were described
        assert pair.loss[0] == pytest.approx(pair.loss[1], rel=1e-4)
    assert any(pair.groups for pair in one.anchor.pairs.values())
    log = Log([*happenings(60, served=0.5, version="other"), Forget(id="f", timestamp=10**6, user="u1")])
    anchored(tmp_path / "forgotten")
    two = trainer(log, tmp_path / "forgotten", learner=Learner(CONFIG))
    run(two, log)
    assert {pair.user for pair in two.anchor.pairs.values()} == {f"u{n}" for n in (0, 2, 3, 4, 5, 6)}
    assert any(pair.loss[0] < 0.99 * pair.loss[1] for pair in two.anchor.pairs.values())


def test_slates_that_the_anchor_served_itself_are_left_to_the_window(tmp_path: Path) -> None:
    first = anchored(tmp_path).anchor.version
    log = Log([*happenings(60, served=0.5, version=first)])
    one = trainer(log, tmp_path)
    run(one, log)
    assert len(one.current) > 20
    assert len(one.anchor.pairs) == 0


@pytest.mark.parametrize("cuts", [(3,), (1, 6, 2)])
def test_an_anchor_and_its_window_come_back_after_a_crash_bit_for_bit(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    def happened() -> Log:
        return Log([*happenings(60, served=0.5, version="other")])

    for name in ("whole", "cut"):
        anchored(tmp_path / name)
    for cut in cuts:
        log = happened()
        one = trainer(log, tmp_path / "cut", pace=replace(PACE, checkpoint=0 if cut == 6 else 10**9))
        reports = one.run(log.stop)
        for _ in range(cut):
            next(reports)
        reports.close()  # type: ignore[attr-defined]
        one.close()
    log = happened()
    killed = trainer(log, tmp_path / "cut")
    run(killed, log)
    # the same steps in one go
    state = tmp_path / "whole" / "state"
    shutil.rmtree(state / "journal")
    shutil.copytree(tmp_path / "cut" / "state" / "journal", state / "journal")
    log = happened()
    whole = trainer(log, tmp_path / "whole")
    run(whole, log)
    assert len(whole.anchor.pairs) > 20
    assert whole.anchor.version is not None
    assert killed.anchor.state() == whole.anchor.state().replace(
        whole.anchor.version.encode(), str(killed.anchor.version).encode()
    )


def test_an_anchor_that_is_gone_is_told_and_done_without(tmp_path: Path) -> None:
    one = anchored(tmp_path)
    shutil.rmtree(one.registry.root / "versions" / str(one.anchor.version))
    shutil.rmtree(one.registry.root)
    log = Log([*happenings(30, served=0.5, version="other")])
    two = trainer(log, tmp_path)
    reports = run(two, log)
    assert any("no anchor" in notice for report in reports for notice in report.notices)
    assert two.anchor.version is None


def test_the_first_version_that_passes_is_the_anchor_and_comes_back(tmp_path: Path) -> None:
    one, log, clock = served(tmp_path, 0.97)
    assert one.anchor.version is None
    report = publish(one, log, clock)
    assert one.anchor.version == report.published
    again = trainer(log, tmp_path)
    list(again._resume())
    assert again.anchor.version == report.published
    again.close()


def test_a_group_that_lost_much_since_the_anchor_stops_a_candidate_that_would_pass(tmp_path: Path) -> None:
    one, log, clock = served(tmp_path, 0.97)
    first = one.registry.versions()[0]
    one._settle(first, one.registry.load(first).weights)
    for number in range(400):
        group = "FM"[number % 2]
        old, lost = 0.5 + 0.3 * (number % 3), 0.2 if group == "F" else 0.0
        pair = Pair(f"p{number % 50}", (f"gender={group}",), (1.0, 1.0), ((1 - lost) * old, old))
        one.anchor.add(f"past{number}", pair)
    one._save()
    report = publish(one, log, clock)
    assert report.verdict is not None
    assert (report.verdict.decision, report.promoted) == ("refuse", False)
    assert all(reason.startswith(f"since {first}: ndcg@10 of ") for reason in report.verdict.reasons)
    assert any("gender=F" in reason for reason in report.verdict.reasons)


def test_what_is_promoted_by_force_is_what_later_candidates_are_held_to(tmp_path: Path) -> None:
    one, log, clock = served(tmp_path, 0.97)
    first = one.registry.versions()[0]
    one.registry.promote(first, Verdict("refuse", ("harm",)), force=True, who="ada")
    publish(one, log, clock)
    assert one.anchor.version == first


def test_a_canary_of_this_trainer_that_was_promoted_is_an_anchor_but_the_first_weights_are_not(tmp_path: Path) -> None:
    log = Log([])
    one = trainer(log, tmp_path)
    run(one, log)
    first = one.registry.versions()[0]
    one._base = None  # as after a crash before the first checkpoint that knows it
    assert not one._follow_pointer()
    assert one.anchor.version is None
    weights, catalogue = one.learner.weights(), one.joiner.catalogue
    golden = Golden.record(CONFIG, weights, catalogue, made_up(CONFIG, catalogue, 1))
    version = one.registry.save(weights, CONFIG, metrics={"line": one._line}, golden=golden, parent=first)
    one.registry.promote(version, Verdict("pass"), who="monitor")
    assert not one._follow_pointer()
    one.close()
    assert one.anchor.version == one._base == version
