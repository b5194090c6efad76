"""The trainer with groups balanced: exact over a restart, teachers passed on, nobody's history in a version."""

import shutil
from pathlib import Path

from msgspec import structs

from ranker import config
from ranker.catalogue import Catalogue
from ranker.events import Comparison, Forget
from ranker.gate import Verdict
from ranker.golden import Golden, made_up
from ranker.learner import RESERVOIR, Learner
from ranker.registry import Registry
from ranker.teachers import named
from streaming.trainer import Trainer
from tests.streaming.test_trainer import CONFIG, PACE, Log, Ticks, bits, happenings, publish, run

FAIR = structs.replace(CONFIG, fairness=config.Fairness(method="pareto", field="gender"))


def log(*more: Forget) -> Log:
    """Slates, and after each some answers, so that there are comparisons of both groups."""
    found: list[object] = []
    for number, event in enumerate(happenings(50)):
        found.append(event)
        if number > 60 and number % 3 == 0:
            pair = (f"i{number % 20}", f"i{(number * 7 + 1) % 20}")
            found.append(
                Comparison(
                    id=f"c{number}", timestamp=event.time, user=f"u{number % 7}", preferred=pair[0], over=pair[1]
                )
            )
    return Log([*found, *more])  # type: ignore[list-item]


def trainer(source: Log, folder: Path, **more: object) -> Trainer:
    return Trainer(FAIR, source, Registry(folder / "registry"), folder / "state", **{"pace": PACE, **more})  # type: ignore[arg-type]


def taught(folder: Path) -> str:
    """A version with two teachers is served."""
    registry, learner = Registry(folder / "registry"), Learner(FAIR)
    weights = learner.weights()
    teachers = {key: value for name in "FM" for key, value in named(name, weights).items()}
    golden = Golden.record(FAIR, weights, Catalogue(FAIR), made_up(FAIR, Catalogue(FAIR), 1))
    version = registry.save(weights, FAIR, metrics={}, golden=golden, parent=None, teachers=teachers)
    registry.promote(version, Verdict("pass", ("a test",)), who="test")
    return version


def test_a_trainer_that_balances_groups_and_has_teachers_goes_on_bit_for_bit_after_a_stop(tmp_path: Path) -> None:
    version = taught(tmp_path)
    source = log()
    one = trainer(source, tmp_path)
    reports = one.run(source.stop)
    for _ in range(12):
        next(reports)
    reports.close()  # type: ignore[attr-defined]
    one.close()
    source = log()
    one = trainer(source, tmp_path)
    run(one, source)
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "registry", again / "registry")
    shutil.copytree(tmp_path / "state" / "journal", again / "state" / "journal")
    first = Path("state") / "checkpoints" / f"{0:012d}"
    shutil.copytree(tmp_path / first, again / first)
    source = log()
    whole = trainer(source, again)
    assert all(report.replaying for report in run(whole, source) if report.records)
    assert whole._base == one._base == version
    assert list(whole.learner.teachers.models) == ["F", "M"]  # type: ignore[attr-defined]
    assert len(whole.learner.state()[RESERVOIR]) > 1000
    assert bits(whole) == bits(one)


def test_a_version_passes_teachers_on_and_holds_nobodys_comparisons(tmp_path: Path) -> None:
    first = taught(tmp_path)
    source, clock = log(), Ticks()
    one = trainer(source, tmp_path, clock=clock)
    report = publish(one, source, clock)
    version = report.published or ""
    assert version not in ("", first)
    state, teachers = one.registry.state(version), one.registry.teachers(version)
    assert state is not None
    assert "fair" in state
    assert not any(key.startswith(("people.", "teacher.", "model.")) for key in state)
    assert teachers is not None
    assert teachers.keys() == one.registry.teachers(first).keys()  # type: ignore[union-attr]


def test_who_is_forgotten_is_in_no_reservoir(tmp_path: Path) -> None:
    source = log(Forget(id="f", timestamp=10**6, user="u1"))
    one = trainer(source, tmp_path)
    run(one, source)
    kept = one.learner.state()[RESERVOIR].numpy().tobytes()
    assert b"u2" in kept
    assert b"u1" not in kept
