"""`plurank train`, `evaluate` and `replay`: event files in, versions, tables and a fuller log out."""

import getpass
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ranker import config as configuration
from ranker import datasets, simulation
from ranker.config import Config
from ranker.errors import DataError, EventError
from ranker.events import Event
from services.settings import Settings

# what needs torch is imported where it is used: `up` reads logs and configurations by this file and stays small
if TYPE_CHECKING:
    from torch import Tensor

    from ranker.catalogue import Catalogue
    from ranker.heldout import Split
    from ranker.learner import Learner
    from ranker.registry import Registry

MOVIELENS, SYNTHETIC = "ml-100k", "synthetic"
#: data sets known by name, and the configuration of each
NAMED = {MOVIELENS: "movielens.toml", SYNTHETIC: "synthetic.toml"}
#: past likes and dismissals of each synthetic person
RATINGS = 20
ROOT = Path(__file__).resolve().parent.parent
Log = Callable[[], Iterable[Event]]


class Rejected:
    """Lines that are no events: counted, the first one kept, so that one bad line does not end a long run."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""

    def __call__(self, path: Path, line: int, raw: bytes, error: EventError) -> None:
        """Note one line."""
        self.count += 1
        self.first = self.first or f"{path.name}:{line}: {error}"

    def say(self, console: Console) -> None:
        """Tell about them, if there were any."""
        if self.count:
            console.print(f"[yellow]{self.count:,} lines were passed over, the first is {self.first}[/]")


def open_log(names: Sequence[str], reject: datasets.Reject | None = None) -> Log:
    """A function that opens the named log at its start: `ml-100k`, `synthetic`, or event files.

    Raises:
        DataError: a file is missing, or ml-100k cannot be had.
    """
    if list(names) == [MOVIELENS]:
        movielens = datasets.movielens()
        return movielens.events
    if list(names) == [SYNTHETIC]:
        return lambda: simulation.Population().events(ratings=RATINGS)
    paths = [Path(name) for name in names]
    for path in paths:
        if not path.is_file():
            raise DataError(str(path), "no such file", f"name event files, {MOVIELENS} or {SYNTHETIC}")
    return lambda: datasets.read(paths, reject=reject)


def configuration_of(names: Sequence[str], path: Path | None, console: Console) -> Config:
    """The named configuration, MovieLens's own, or the one the log implies, which is then printed."""
    if path is not None:
        return configuration.load(path)
    if len(names) == 1 and names[0] in NAMED:
        return configuration.load(ROOT / "deploy" / NAMED[names[0]])
    found = datasets.infer([Path(name) for name in names], reject=lambda *_: None)
    console.print(f"configuration, inferred from {names[0]} (pass --config to have another):")
    console.print_json(msgspec.json.encode(found).decode())
    return found


def train(
    names: Sequence[str],
    path: Path | None,
    registry: Path,
    console: Console,
    *,
    epochs: int = 1,
    seed: int | None = None,
    method: str = "erm",
) -> dict[str, Any]:
    """Train on event files in their order and save a version; it is served at once where none was served before.

    Args:
        method: erm is the plain model; the others train a fair one beside it and save the better (ranker/fair.py).
    """
    from ranker.registry import Registry

    rejected = Rejected()
    log = open_log(names, rejected)
    config = configuration_of(names, path, console)
    if seed is not None:
        config = msgspec.structs.replace(config, learning=msgspec.structs.replace(config.learning, seed=seed))
    first = first_version if method == "erm" else partial(fair_version, method=method)
    version, facts = first(config, log, Registry(registry), console, epochs=epochs, data=", ".join(names))
    rejected.say(console)
    return {"version": version, "registry": str(registry), "rejected": rejected.count, **facts}


def first_version(
    config: Config,
    log: Log,
    registry: "Registry",
    console: Console,
    *,
    epochs: int,
    data: str,
    total: int | None = None,
) -> tuple[str, dict[str, Any]]:
    """Learn from a log, save the version, and promote it where nothing is served yet.

    No pass finds the counts of the one before; of several, the last one's weights are averaged (`ranker/average.py`).

    Returns:
        The version and what the training was.
    """
    from ranker.average import Average
    from ranker.counters import uncount
    from ranker.join import Joiner
    from ranker.learner import Learner, train

    learner, average = Learner(config), Average()
    joiner = Joiner(config)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        seen = skipped = 0
        for epoch in range(epochs):
            task = progress.add_task(f"learning, pass {epoch + 1} of {epochs}", total=total or seen or None)
            seen = 0

            def counted(task: Any = task) -> Iterator[Event]:
                nonlocal seen
                for event in log():
                    seen += 1
                    if seen % 256 == 0:
                        progress.update(task, completed=seen)
                    yield event
                progress.update(task, completed=seen, total=seen)

            joiner = Joiner(config, opening=True, pairs=True)
            uncount(learner.model.state_dict())
            for step in train(counted(), learner, joiner):
                skipped += not step.finite
                if 0 < epoch == epochs - 1:
                    average.add(learner.model)
    if not seen:
        raise DataError(data, "no events", "name a log that holds events")
    facts = {"data": data, "events": seen, "epochs": epochs, "items": len(joiner.catalogue), "skipped": skipped}
    weights = average.weights(learner.weights())
    version = _saved(registry, learner, weights, joiner.catalogue, console, config=config, now=joiner.now, facts=facts)
    return version, facts


def fair_version(
    config: Config, log: Log, registry: "Registry", console: Console, *, epochs: int, data: str, method: str
) -> tuple[str, dict[str, Any]]:
    """Learn a plain model and one by `method`, tell how each group fares, and save whichever may be served.

    Returns:
        The version and what the training was; under "fairness" both models' held-out measures by group.
    """
    from ranker import fair

    chosen = msgspec.structs.replace(config, fairness=msgspec.structs.replace(config.fairness, method=method))
    with console.status("learning") as line:
        found = fair.fit(chosen, log, passes=epochs, say=line.update)
    table = Table("group", "measure", "users", "plain", method, "difference", title=f"held out: {data}")
    for one in found.lines:
        lead = f"{one.difference.mean:+.4f} [{one.difference.low:+.4f}, {one.difference.high:+.4f}]"
        table.add_row(one.group, one.measure, str(one.users), f"{one.plain:.4f}", f"{one.fair:.4f}", lead)
    if found.lines:
        console.print(table)
    served = method if found.fair else "plain"
    console.print(f"the {served} model is saved: {found.reason}")
    plain = [msgspec.to_builtins(one) for one in found.lines]
    fairness = {"method": method, "saved": served, "reason": found.reason, "groups": plain}
    facts: dict[str, Any] = {"data": data, "epochs": epochs, "items": len(found.catalogue), "fairness": fairness}
    weights = found.learner.weights()
    version = _saved(
        registry, found.learner, weights, found.catalogue, console, config=config, now=found.now, facts=facts
    )
    return version, facts


def _saved(
    registry: "Registry",
    learner: "Learner",
    weights: "Mapping[str, Tensor]",
    catalogue: "Catalogue",
    console: Console,
    *,
    config: Config,
    now: int,
    facts: dict[str, Any],
) -> str:
    """Save a version that was trained here; it is served at once where nothing is served yet.

    It ships the learner's state: a trainer that began with new step sizes would forget a part of what was learned.
    """
    from ranker.gate import Verdict
    from ranker.golden import Golden, made_up
    from ranker.learner import beside

    golden = Golden.record(config, weights, catalogue, made_up(config, catalogue, now))
    teachers = None if learner.teachers is None else learner.teachers.tensors()
    version = registry.save(
        weights,
        config,
        metrics={"training": facts},
        golden=golden,
        parent=None,
        state=beside(learner.state()),
        teachers=teachers,
    )
    if registry.current() is None:
        registry.promote(version, Verdict("pass", ("nothing was served before",)), who=f"{getpass.getuser()} (train)")
        console.print(f"saved and promoted {version}")
    else:
        console.print(f"saved {version}; `plurank models promote {version} --force` serves it")
    return version


def evaluate(
    names: Sequence[str],
    path: Path | None,
    registry: Path,
    console: Console,
    *,
    version: str | None = None,
    split: "Split | None" = None,
    seed: int = 0,
    seeds: int = 1,
) -> dict[str, Any]:
    """Compare a version, or a model learned from the earlier part, with baselines on what was held out.

    Args:
        split: how to hold out; None is slate by slate where the log has rankings, else by time.
        seed, seeds: the first training seed, and how many.
    """
    from ranker import evaluation
    from ranker.registry import Registry

    rejected = Rejected()
    log = open_log(names, rejected)
    weights = None
    if version is not None:
        loaded = Registry(registry).load(version)
        weights, config = loaded.weights, configuration.load(path) if path else loaded.config
    else:
        config = configuration_of(names, path, console)
    data = ", ".join(Path(name).name for name in names)
    with console.status("evaluating") as line:
        report = evaluation.evaluate_log(
            log, config, weights, data=data, seed=seed, seeds=seeds, protocol=split or "auto", progress=line.update
        )
    for part in report.parts:
        header, lines = report.table(part)
        table = Table(*header, title=f"{report.data}: {part}", title_justify="left")
        for cells in lines:
            table.add_row(*cells)
        console.print(table)
    console.print(report.protocol, *report.notes, sep="\n")
    rejected.say(console)
    return {**report.plain(), "rejected": rejected.count}


def counterfactual(
    names: Sequence[str],
    path: Path | None,
    registry: Path,
    console: Console,
    *,
    version: str,
    objective: str | None = None,
    clip: float | None = None,
) -> dict[str, Any]:
    """What a version would have earned on the log's slates, by their propensities; refused where they cannot tell."""
    from ranker.counterfactual import valuate
    from ranker.registry import Registry
    from ranker.valuation import reconsidered

    rejected = Rejected()
    log = open_log(names, rejected)
    loaded = Registry(registry).load(version)
    config = configuration.load(path) if path else loaded.config
    with console.status("ranking the log's slates anew"):
        found = valuate(reconsidered(config, log, loaded.weights, objective=objective), clip=clip)
    title = f"{', '.join(Path(name).name for name in names)}: {objective or 'reward'} per slate, had {version} ranked"
    table = Table("estimator", "value", "95 %", title=title, title_justify="left")
    for value in (found.on_policy, *found.values.values()):
        table.add_row(value.estimator, f"{value.mean:.4f}", f"{value.low:.4f} to {value.high:.4f}")
    console.print(table)
    overlap = found.overlap
    console.print(f"{overlap.rows:,} rows are worth {overlap.effective:,.0f}; largest weight {overlap.weight:.1f}")
    rejected.say(console)
    return {**msgspec.to_builtins(found), "version": version, "rejected": rejected.count}


def replay(
    paths: Sequence[Path], settings: Settings, console: Console, *, speed: float | None = None
) -> dict[str, Any]:
    """Send event files to the log."""
    from streaming.log import Writer
    from streaming.replay import replay as run

    rejected = Rejected()
    log = open_log([str(path) for path in paths], rejected)
    writer = Writer(settings.log)
    try:
        with console.status("sending") as line:

            def show(progress: Any) -> None:
                pace = progress.events / max(progress.seconds, 1e-9)
                line.update(f"{progress.events:,} events, {pace:,.0f} a second")

            done = run(log(), writer, speed=speed or 0.0, shift_to_now=speed is not None, progress=show)
    finally:
        writer.close()
    rejected.say(console)
    console.print(f"{done.events:,} events in {done.seconds:.1f} s to {settings.topic} at {settings.brokers}")
    return {"events": done.events, "seconds": done.seconds, "rejected": rejected.count}
