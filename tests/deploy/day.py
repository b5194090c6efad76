"""A day of plurank as Prometheus sees it, out of the telemetry that the processes ship with."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from ranker.fairness import Row
from ranker.report import TasteReport
from ranker.spread import Estimate, Gap, GroupFigures, Inequality, Period
from ranker.tally import BETTER
from services.replica import MISSING
from services.telemetry import ApiTelemetry, MonitorTelemetry, ProfilesTelemetry, Telemetry, TrainerTelemetry

STAGES = ("taste", "candidates", "score", "calibrate", "guard", "explore", "slate", "total")
#: the day turns bad so many seconds before now
BAD_S = 3600
OBJECTIVES = {"click": 0.2, "dismiss": 0.05}
GROUPS = (
    ("all", "all", 1.0),
    ("gender", "f", 0.4),
    ("gender", "m", 0.6),
    ("age", "18", 0.5),
    ("age", "50", 0.5),
)


class Day:
    """The telemetry of all roles, driven through a good day with a bad last hour in which every alert has its reason.

    In it group f of gender gets half its NDCG and twice the promised rate, age 18 stops to click, age 50 is gone, the
    canary is worse than the current version, the learner's taste collapses, loops wait for the broker, the version
    served is ten hours old, and the service fails one request in ten.
    """

    def __init__(self) -> None:
        self.api = ApiTelemetry(["/v1/rank", "/v1/feedback"], "api-1")
        self.profiles, self.trainer = ProfilesTelemetry(), TrainerTelemetry()
        self.monitor = MonitorTelemetry(weights={"click": 1.0, "dismiss": -0.5})
        self.made = int((time.time() - 36_000) * 1000)
        self.sums: dict[tuple[str, str, str, str], dict[str, float]] = {}
        self.trainer.using("v2")

    @property
    def roles(self) -> tuple[Telemetry, ...]:
        """One of each."""
        return self.api, self.profiles, self.trainer, self.monitor

    def pass_by(self, seconds: float, *, bad: bool) -> None:
        """Count what happens in so much time, in thirty slates of ten items a second."""
        n = round(30 * seconds)
        for answer in range(10):
            self.api.request_served("/v1/rank", 503 if bad and not answer else 200, 0.004)
        self.api.using("v1", created=self.made)
        self.api.examined({"click": [1.0, 0.7, 0.5]})
        self.api.trying(0.1, "v2", created=self.made)
        for arm in ("current", "canary"):
            self.api.slate_made(dict.fromkeys(STAGES, 1.5), arm)
        for reason in MISSING:
            self.api.degraded(reason)
        self.api.feedback_taken(n, 3)
        self.api.slates_logged(logged=n, dropped=2 if bad else 0, waiting=4)
        lag = 100_000 if bad else 20
        self.profiles.folded(events=2 * n, dead=n if bad else 0, lag=lag, delay_s=0.02, waiting=bad)
        loss, auc = {"click": 0.4, "dismiss": 0.2}, {"click": 0.7, "dismiss": 0.6}
        self.trainer.learned(events=2 * n, rows=10 * n, nonfinite=int(bad), lag=lag, loss=loss, auc=auc, waiting=bad)
        active, context = ((0.0, 0.0), 0.612) if bad else ((0.9, 0.5), 0.68)
        tastes = TasteReport(pairs=9, loss=0.6, pooled=0.61, conditioned=context, divergence=0.3, active=active)
        self.trainer.tasted(tastes)
        for decision in ("pass", "hold", "refuse"):
            self.trainer.judged(decision)
        rows, period = list(self.rows(n, bad)), judged(bad)
        self.monitor.monitored(rows, events=2 * n, lag=lag, withheld=7, period=period, waiting=bad)

    def rows(self, n: int, bad: bool) -> Iterator[Row]:
        """The published sums after n more slates."""
        for arm, size in (("current", 0.8), ("canary", 0.1), ("external", 0.1)):
            for field, group, share in GROUPS:
                slates = 0 if bad and group == "50" else n * size * share
                for objective, rate in OBJECTIVES.items():
                    ndcg = 0.6 * (0.5 if bad and group == "f" else 1.0) * (0.9 if arm == "canary" else 1.0)
                    happened = rate * (0.05 if bad and group == "18" else 1.0)
                    new = {
                        "slates": slates,
                        "impressions": 10 * slates,
                        "outcomes": 10 * slates * happened,
                        "scored": 10 * slates,
                        "predicted": 10 * slates * rate * (2 if bad and group == "f" else 1),
                        "pairs": 20 * slates,
                        "foretold": 20 * slates * (0.55 if bad and group == "f" else 0.7),
                        "ranked": slates / 2,
                        "ndcg_sum": ndcg * slates / 2,
                        "profiled": slates / 2,
                        "miscalibration_sum": 0.2 * (2 if group == "f" else 1) * slates / 2,
                        "exposed": slates / 2,
                        "exposure_sum": 0.6 * slates / 2,
                    }
                    sums = self.sums.setdefault((arm, field, group, objective), dict.fromkeys(new, 0.0))
                    for name, value in new.items():
                        sums[name] += value
                    ratios: dict[str, Any] = dict.fromkeys(BETTER)
                    yield Row(arm=arm, field=field, group=group, objective=objective, **{**sums, **ratios})


def judged(bad: bool) -> Period:
    """The latest period: group f's probabilities are off in bins once the day is bad."""

    def about(value: float) -> Estimate:
        return Estimate(value, value - 0.02, value + 0.02)

    arms = ("current", "canary")
    figures = [
        GroupFigures(
            arm=arm,
            field=field,
            group=group,
            people=100,
            slates=400,
            of_slates={},
            objectives={
                name: {
                    "accuracy": about(0.7),
                    "auc": about(0.6 if group == "f" else 0.7),
                    "calibration_error": about(0.2 if bad and group == "f" else 0.01),
                }
                for name in OBJECTIVES
            },
        )
        for arm in arms
        for field, group, _ in GROUPS
    ]
    gaps = [
        Gap(
            arm="current",
            field="gender",
            measure="auc",
            objective="click",
            best="m",
            worst="f",
            worst_value=about(0.6),
            gap=about(0.1),
            ratio=about(0.86),
        )
    ]
    unequal = [
        Inequality(
            arm=arm,
            objective=name,
            people=200,
            mean=about(0.7),
            std=about(0.1),
            gini=about(0.1),
            jain=about(0.9),
            cvar10=about(0.5),
            spearman_support=about(0.2),
        )
        for arm in arms
        for name in OBJECTIVES
    ]
    return Period(start=0, end=1000, versions={}, people=200, groups=figures, gaps=gaps, inequality=unequal)


def openmetrics(text: str, target: Mapping[str, str], seconds: float) -> Iterator[str]:
    """A page of metrics as scraped from this target at this time, for `promtool tsdb create-blocks-from`."""
    labels = ",".join(f'{name}="{value}"' for name, value in target.items())
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            known, _, inside = name.partition("{")
            yield f"{known}{{{labels}{',' + inside if inside else '}'} {value} {seconds:.3f}\n"
