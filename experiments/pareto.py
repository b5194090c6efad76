"""Nobody is harmed by a fairer model, and the minority is served better (pafo2026; reconstruction, `ranker/pareto.py`).

Personas over MovieLens: a majority and a minority whose tastes point elsewhere. A model reads 8 comparisons of a person
and predicts her others; it is given no group. Each arm trains the same small model with the same number of steps, and
is judged on people never seen, by their noise-free taste. Differences are paired by seed.

- `erm` is the plain model. Which 8 of a person's comparisons are context is drawn anew in every batch, which is worth
  3 points to the minority without any fairness; `erm-fixed` and `sqrt-fixed` do without, as METHODS measured.
- `reweight`, `sqrt-reweight`: groups weighed alike, or by the square root of their share; `group-dro`: by their losses.
- `maxmin`: two models, each person assigned to the one that fits her best, an unseen person by her context.
- `pareto`: a teacher for each group reads whole histories; the student learns from labels, from the teachers' margins
  where they have the label's sign, and from people whom the teachers make up (`experiments/teachers.py`). Groups weigh
  by share^POWER; the no-harm rule decides what is served. `self-distil`: the same with one teacher for everybody.
- Ablations: `no-gate`, `min-norm` (in place of fixed weights), `no-privilege` (teachers read 8 comparisons),
  `no-people` (made up ones), `copies` (teachers are copies of the plain model, tuned on a group), `no-teachers`,
  `no-rule`.

Axes: S seeds, U users, I items, K base rewards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

from experiments import arms, grades, personas, report, students, tradeoff
from experiments.arms import ABLATIONS, ARMS, TOLERANCE, Arm, Effort, Plain, Ruling
from experiments.grades import Array, Grades
from experiments.personas import Bools, World
from experiments.report import Result, Row, over_seeds
from experiments.students import Stack, Students, plainly
from ranker import config as configuration
from ranker import datasets, metrics, pareto
from ranker.errors import RequestError

SUMMARY = "what fair training does to a majority and a minority, against the plain model"
#: whose interests are looked after where support shows one group only
LEAST_SUPPORTED = 0.2
#: seeds that train side by side in one process
BESIDE = 8

ACCURACIES = ("majority_accuracy", "minority_accuracy")

Values = dict[tuple[str, str], list[float]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A population, what training and the no-harm rule know of its groups, and what is claimed of it (points / 100).

    Attributes:
        gain: of the minority over the plain model, at least.
        fall: of the majority, at most.
        even: whether CVaR10 is to rise and Spearman with support to fall.
    """

    minority: float = 0.1
    cosine: float = -0.3
    found: bool = False
    gain: float = 0.03
    fall: float = 0.005
    even: bool = False


SETTINGS = {
    "10%": Setting(),
    "20%": Setting(minority=0.2, gain=0.02, fall=0.003, even=True),
    "cosine-.7": Setting(cosine=-0.7, even=True),
    "found": Setting(found=True, gain=0.02, fall=0.006),
}


@dataclass(frozen=True, eq=False)
class Measured:
    """One setting and its seeds.

    Attributes:
        right: accuracies of unseen people by arm, (S, U).
        minority, support: of those people.
        rulings: what the no-harm rule did, by guarded arm.
    """

    right: dict[str, Array]
    minority: list[Bools]
    support: list[Array]
    rulings: dict[str, Ruling]


def measure(stack: Stack, chosen: dict[str, Arm], *, effort: Effort, found: bool = False) -> Measured:
    """Train every arm and judge it on unseen people.

    Args:
        found: whether training and the no-harm rule go by groups discovered from support; the unseen people are judged
            by the declared ones where there are any.
    """
    train, valid, judged, support = zip(*(_groups(world, found) for world in stack.worlds), strict=True)
    everybody = [np.ones_like(own_U) for own_U in valid]
    k = stack.train_SUPK.shape[3]
    erm, fixed = (
        plainly(Students(k, stack.seeds), stack, stack.everyone, everybody, epochs=effort.epochs, redrawn=redrawn)
        for redrawn in (True, False)
    )
    plain = Plain(erm, students.standings(erm, stack.valid_SUPK, valid, stack.context))
    right = {
        name: students.by_person(model, stack.test_SUPK, stack.context)[0]
        for name, model in (("erm", erm), ("erm-fixed", fixed))
    }
    rulings: dict[str, Ruling] = {}
    taught = {}
    for name, arm in chosen.items():
        key = (arm.teachers, arm.privileged)
        if key not in taught:
            taught[key] = arms.taught(stack, arm, train, valid, plain=erm, effort=effort)
        model, ruling = arms.train(stack, arm, train, valid, plain=plain, known=taught[key], effort=effort)
        right[name] = students.by_person(model, stack.test_SUPK, stack.context)[0]
        if ruling is not None:
            rulings[name] = ruling
    right["maxmin"] = arms.maxmin(stack, erm, effort)
    return Measured(right, list(judged), list(support), rulings)


def _groups(world: World, found: bool) -> tuple[Bools, Bools, Bools, Array]:
    """Who is minority of the people trained on, chosen on and unseen, and the support of the unseen."""
    support = personas.supports(world)
    groups = [part.minority_U for part in world.parts]
    if found:
        edge = pareto.boundary(support[0])
        edge = edge if np.isfinite(edge) else float(np.quantile(support[0], LEAST_SUPPORTED))
        groups = [each < edge for each in support]
    judged = world.test.minority_U if world.test.minority_U.any() else groups[2]
    return groups[0], groups[1], judged, support[2]


def summarised(accuracy_U: Array, minority_U: Bools, support_U: Array) -> dict[str, float]:
    """The experiment's metrics of one arm and seed."""
    groups = (~minority_U, minority_U)
    found = {name: students.mean_of(accuracy_U, own_U) for name, own_U in zip(ACCURACIES, groups, strict=True)}
    return found | {name: of(accuracy_U, support_U) for name, of in metrics.UNFAIRNESS.items()}


def collected(measured: Measured, suffix: str = "") -> Values:
    """Each seed's numbers, and their differences to the plain model and to square-root reweighting."""
    values: Values = {}
    seeds = zip(measured.minority, measured.support, strict=True)
    for seed, (minority_U, support_U) in enumerate(seeds):
        each = {arm: summarised(own_SU[seed], minority_U, support_U) for arm, own_SU in measured.right.items()}
        for arm, numbers in each.items():
            for metric, value in numbers.items():
                values.setdefault((arm, metric + suffix), []).append(value)
            for other in ("erm", "sqrt-reweight", "erm-fixed", "sqrt-fixed"):
                if arm == other or other not in each or (other != "erm" and arm != "pareto"):
                    continue
                for metric, value in numbers.items():
                    values.setdefault((f"{arm} - {other}", metric + suffix), []).append(value - each[other][metric])
        for arm, ruling in measured.rulings.items():
            for metric, value in _ruled(ruling, seed, each[arm], each["erm"]).items():
                values.setdefault((arm, metric + suffix), []).append(value)
        values.setdefault(("erm", "minority_share" + suffix), []).append(float(minority_U.mean()))
    return values


def _ruled(ruling: Ruling, seed: int, own: dict[str, float], plain: dict[str, float]) -> dict[str, float]:
    """What the no-harm rule did in one seed. `harmful`: a group falls by more than the tolerance on validation, by the
    student before the rule (`_student`), by what is served (`_served`), and among unseen people by that (`_unseen`)."""
    served_G = ruling.served_SG[seed]
    unseen_G = np.array([own[name] - plain[name] for name in ACCURACIES])
    falls = {"student": ruling.offered_SEG[seed, 0], "served": served_G, "unseen": unseen_G}
    # not "any below": what is not a number counts as harm
    harmful = {f"harmful_{name}": float(not (fall_G >= -TOLERANCE).all()) for name, fall_G in falls.items()}
    validated = {f"{name}_validated": value for name, value in zip(ACCURACIES, served_G.tolist(), strict=True)}
    return {"served_plain": float(ruling.plain_S[seed])} | harmful | validated


def run(
    paths: Sequence[Path] | None,
    *,
    seeds: Sequence[int],
    settings: Sequence[str] = tuple(SETTINGS),
    effort: Effort | None = None,
    groups: Sequence[str] | None = None,
) -> Result:
    """Every arm at every setting, ablations at the first only; with a log its users, in declared groups or found ones.

    Args:
        groups: fields of users that are group labels, of which the first is taken; inferred from the log without them.

    Raises:
        DataError: the log holds too few people with comparisons, or MovieLens cannot be fetched.
    """
    known = grades.load(paths)
    if paths is None:
        return simulated(known, seeds, settings=settings, effort=effort)
    fields = tuple(groups) if groups is not None else datasets.infer(paths).groups
    if not fields:
        return logged(known, seeds, effort=effort)
    minority_U = personas.declared(datasets.read(paths), known.users, fields[0])
    return logged(known, seeds, effort=effort, minority_U=minority_U, field=fields[0])


def simulated(
    known: Grades,
    seeds: Sequence[int],
    *,
    settings: Sequence[str] = tuple(SETTINGS),
    people: tuple[int, int, int] = personas.PEOPLE,
    effort: Effort | None = None,
) -> Result:
    """Personas over the catalogue of these grades. Metrics of all settings but the first end in the setting's name."""
    phi_IK = personas.catalogue(known)
    blocks = [tuple(seeds[start : start + BESIDE]) for start in range(0, len(seeds), BESIDE)]
    tasks = list(product(enumerate(settings), blocks))
    single = partial(_simulated, phi_IK, tasks, people=people, effort=effort or Effort())
    values: Values = {}
    for each in report.each_seed(single, range(len(tasks))):
        for key, found in each.items():
            values.setdefault(key, []).extend(found)
    rows = _rows(values)
    claimed = {_suffix(place, name): SETTINGS[name] for place, name in enumerate(settings)}
    fair, plain = short(rows, claimed), short(rows, claimed, fixed=True)
    return Result(
        name="pareto",
        data=f"personas over {known.name}",
        seeds=tuple(seeds),
        rows=rows,
        criterion="by the whole interval: pareto's minority gains 3 points over the plain model (2 at 20 % and where "
        "groups are found) and its majority loses at most .5 (.3; .6); over square-root reweighting the minority gains "
        "1 point and the majority loses nothing; CVaR10 rises and Spearman with support falls at 20 % and cosine -.7"
        f" (falls short: {', '.join(fair) or 'nothing'}; against models of fixed contexts: "
        f"{', '.join(plain) or 'nothing'})",
        holds=not fair,
    )


def _simulated(
    phi_IK: Array,
    tasks: Sequence[tuple[tuple[int, str], tuple[int, ...]]],
    task: int,
    *,
    people: tuple[int, int, int],
    effort: Effort,
) -> Values:
    torch.set_num_threads(1)
    (place, name), seeds = tasks[task]
    setting = SETTINGS[name]
    worlds = [
        personas.personas(phi_IK, seed, minority=setting.minority, cosine=setting.cosine, people=people)
        for seed in seeds
    ]
    chosen = ARMS if place else ARMS | ABLATIONS
    measured = measure(students.stacked(worlds, seeds), chosen, effort=effort, found=setting.found)
    return collected(measured, _suffix(place, name))


def _suffix(place: int, name: str) -> str:
    return f":{name}" if place else ""


def logged(
    known: Grades,
    seeds: Sequence[int],
    *,
    effort: Effort | None = None,
    minority_U: Bools | None = None,
    field: str = "support",
) -> Result:
    """A log's users, in groups declared or found by support; the truth is their own comparisons, noise included."""
    torch.set_num_threads(1)
    worlds = [personas.logged(known, seed, minority_U=minority_U) for seed in seeds]
    stack = students.stacked(personas.alike(worlds), seeds)
    rows = _rows(collected(measure(stack, ARMS | ABLATIONS, effort=effort or Effort(), found=minority_U is None)))
    lows = [row.low for row in rows if row.arm == "pareto - erm" and row.metric in ACCURACIES]
    return Result(
        name="pareto",
        data=f"{known.name}, groups by {field}",
        seeds=tuple(seeds),
        rows=rows,
        criterion="under the no-harm rule no group of unseen people falls by more than .5 point, by the whole interval",
        holds=all(low >= -TOLERANCE for low in lows),
    )


def _rows(values: Values) -> tuple[Row, ...]:
    return tuple(over_seeds(arm, metric, each) for (arm, metric), each in values.items())


def short(rows: Sequence[Row], claimed: dict[str, Setting], *, fixed: bool = False) -> list[str]:
    """Which claims the intervals do not bear out, against models of redrawn or of fixed contexts."""
    found = {(row.arm, row.metric): row for row in rows}
    erm, square = ("erm-fixed", "sqrt-fixed") if fixed else ("erm", "sqrt-reweight")
    missed = []
    for suffix, setting in claimed.items():

        def low(metric: str, over: str, suffix: str = suffix) -> float:
            return found[f"pareto - {over}", metric + suffix].low

        claims = {
            "gain": low("minority_accuracy", erm) >= setting.gain,
            "no harm": low("majority_accuracy", erm) >= -setting.fall,
            "minority over square root": low("minority_accuracy", square) >= 0.01,
            "majority over square root": low("majority_accuracy", square) >= 0,
            "cvar10": not setting.even or low("cvar10", erm) > 0,
            "spearman": not setting.even or found[f"pareto - {erm}", "spearman_support" + suffix].high < 0,
        }
        missed += [f"{claim}{suffix}" for claim, holds in claims.items() if not holds]
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    parser = report.arguments("pareto", SUMMARY, seeds=5)
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=tuple(SETTINGS), help="only these; the first with ablations"
    )
    options = parser.parse_args(arguments)
    if options.plot and options.events:
        raise RequestError("--plot", "--events", "the picture shows the personas; leave one of the two out")
    groups = configuration.load(options.config).groups if options.config else None
    result = run(options.events, seeds=report.seeds_of(options), settings=options.settings, groups=groups)
    if options.plot:
        tradeoff.write(result, options.settings)
        options.plot = False
    report.publish(result, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
