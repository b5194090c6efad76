"""What `plurank train --method` does to each group: the service's own model, held-out figures by group.

    plurank experiment fair [--cosine -0.7] [--minority 0.15] [--field taste_group] [--methods pareto reweight ...]
    plurank experiment fair --events ml-100k --field support

Without --events, a synthetic population of two taste groups grades random items. The last fifth of the log by time is
held out; the plain model is learned once a seed, each method's beside it on the same seed, and both meet the held-out
part as a service would (ranker/fair.py). The `pareto` experiment judges a small model against noise-free truth instead.

Arms: a method and a group, for example `pareto, g1`.
Metrics: differences to the plain model over the group's people: accuracy of comparisons, NDCG@10, loss of the
objectives; `served` where the plain model stands in whenever the no-harm rule refuses the method's. `taken` is how
often it does not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np
from msgspec.structs import replace
from rich.console import Console

from experiments import report
from experiments.report import Result, Row
from ranker import fair
from ranker.balance import Known
from ranker.config import Config, Method, parse
from ranker.errors import DataError, RequestError
from ranker.events import Event, Interaction
from ranker.fair import MEASURES, Line
from ranker.heldout import Splitter
from ranker.simulation import Population, Tastes
from services.cli import count

SUMMARY = "What each method of `plurank train` does to each group, held out."
CRITERION = (
    "pareto: no group's accuracy or NDCG@10 falls on average, and the smallest group's accuracy rises over seeds"
)
METHODS: tuple[Method, ...] = ("reweight", "group-dro", "maxmin", "self-distil", "pareto")
HELD, ROWS = 0.2, 512
SHOWN = ("accuracy", "ndcg@10", "loss")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is learned: a synthetic population where `events` is None."""

    methods: tuple[Method, ...] = METHODS
    field: str = "taste_group"
    events: str | None = None
    cosine: float = -0.7
    minority: float = 0.15
    users: int = 600
    items: int = 200
    ratings: int = 40
    passes: int = 2


def graded(setting: Setting, seed: int) -> list[Event]:
    """A population's likes and dismissals as grades 5 and 1, so that they compare items."""
    shares = (1 - setting.minority, setting.minority)
    tastes = Tastes(users=setting.users, items=setting.items, shares=shares, cosine=setting.cosine, seed=seed)
    return [
        replace(event, type="rate", value=5.0 if event.type == "like" else 1.0)
        if isinstance(event, Interaction)
        else event
        for event in Population(tastes).events(ratings=setting.ratings)
    ]


def synthetic(field: str, minimum: int = 10) -> Config:
    """The configuration of `graded`."""
    return parse(
        {
            "objectives": [
                {"name": "like", "event": "like", "graded": {"event": "rate", "at_least": 4}},
                {"name": "dismiss", "event": "dismiss", "weight": -1.0, "graded": {"event": "rate", "at_most": 2}},
            ],
            "fields": {"item": {"genres": "categories"}},
            "groups": ["taste_group"],
            "scale": "tiny",
            "learning": {"minimum_group": minimum},
            "fairness": {"field": field},
        }
    )


def one(setting: Setting, seed: int) -> dict[str, tuple[bool, tuple[Line, ...]]]:
    """One seed: whether each method's model would be saved, and both models by group."""
    if setting.events is None:
        config, events = synthetic(setting.field), graded(setting, seed)
    else:
        from services import offline

        names = [setting.events]
        config, events = (
            offline.configuration_of(names, None, Console(stderr=True)),
            list(offline.open_log(names)()),
        )
        if setting.field not in config.group_fields:
            raise DataError("--field", setting.field, f"name one of {', '.join(config.group_fields)}")
        config = replace(config, fairness=replace(config.fairness, field=setting.field))
    config = replace(config, learning=replace(config.learning, seed=seed))
    splitter = Splitter(lambda: events, "time", HELD)

    def part(later: bool) -> Iterable[Event]:
        held = splitter.mark()
        return (event for event in events if held(event) is later)

    early, late = partial(part, False), partial(part, True)
    plain, joiner = fair.course(config, early, passes=setting.passes, rows=ROWS)
    joined, people = joiner.state(), Known(joiner.groups, joiner.evidence)
    before = fair.judge(plain, joined, late, setting.field)
    names = sorted({group for group, _ in before})
    found: dict[str, tuple[bool, tuple[Line, ...]]] = {}
    for method in setting.methods:
        chosen = replace(config, fairness=replace(config.fairness, method=method))
        model = fair.counterpart(
            chosen, plain, early, people, names, passes=setting.passes, rows=ROWS, say=lambda _: None
        )
        taken, _, lines = fair.choose(
            model,
            plain,
            before,
            lambda one: fair.judge(one, joined, late, setting.field),
            tolerance=config.fairness.tolerance,
        )
        found[method] = taken, lines
    return found


def run(*, setting: Setting | None = None, seeds: Sequence[int] = (0, 1, 2)) -> Result:
    """All seeds, as many at a time as there are processors."""
    setting = setting or Setting()
    done = report.each_seed(partial(one, setting), seeds)
    groups = sorted({line.group for line in done[0][setting.methods[0]][1]})
    rows: list[Row] = []

    def over(arm: str, metric: str, values: Sequence[float]) -> None:
        rows.append(report.over_seeds(arm, metric, values))

    def value(found: dict[str, tuple[bool, tuple[Line, ...]]], method: str, group: str, measure: str) -> Line | None:
        return next((one for one in found[method][1] if (one.group, one.measure) == (group, measure)), None)

    for group in groups:
        for measure in (name for name in MEASURES if name in SHOWN):
            lines = [value(found, setting.methods[0], group, measure) for found in done]
            over(f"plain, {group}", f"{measure} itself", [line.plain for line in lines if line])
            for method in setting.methods:
                lines = [value(found, method, group, measure) for found in done]
                change = [line.fair - line.plain for line in lines if line]
                over(f"{method}, {group}", measure, change)
                taken = [found[method][0] for found, line in zip(done, lines, strict=True) if line]
                over(f"{method}, {group}", f"{measure} served", np.where(taken, change, 0.0).tolist())
    for method in setting.methods:
        over(f"{method}, {groups[0]}", "taken", [float(found[method][0]) for found in done])
    last = setting.methods[-1]
    sizes = {group: line.users for group in groups if (line := value(done[0], last, group, "accuracy"))}
    smallest = min(sizes, key=lambda group: sizes[group], default="")
    means = {(row.arm, row.metric): row for row in rows}
    return Result(
        name="fair",
        data=setting.events
        or f"synthetic, cosine {setting.cosine:g}, {setting.minority:.0%} minority, by {setting.field}",
        seeds=tuple(seeds),
        rows=tuple(rows),
        criterion=CRITERION.replace("pareto", last),
        holds=all(means[f"{last}, {group}", measure].mean >= 0 for group in sizes for measure in SHOWN[:2])
        and bool(smallest)
        and means[f"{last}, {smallest}", "accuracy"].low > 0,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    parser = report.arguments("fair", SUMMARY)
    parser.add_argument(
        "--field", default="taste_group", help="the group field that is balanced (default: taste_group)"
    )
    parser.add_argument("--methods", nargs="+", choices=get_args(Method)[1:], default=list(METHODS), metavar="M")
    parser.add_argument("--cosine", type=float, default=-0.7, help="between the two tastes (default: -.7)")
    parser.add_argument("--minority", type=float, default=0.15, metavar="S", help="share of the people (default: .15)")
    parser.add_argument("--passes", type=count, default=2, metavar="N", help="over the learning part (default: 2)")
    options = parser.parse_args(arguments)
    if not 0 < options.minority < 1:
        raise RequestError("--minority", options.minority, "give a share between 0 and 1")
    if options.events and len(options.events) > 1:
        raise RequestError("--events", len(options.events), "name one log, or ml-100k")
    setting = Setting(
        methods=tuple(options.methods),
        field=options.field,
        events=str(options.events[0]) if options.events else None,
        cosine=options.cosine,
        minority=options.minority,
        passes=options.passes,
    )
    report.publish(run(setting=setting, seeds=report.seeds_of(options)), options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
