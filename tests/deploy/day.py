"""A day of plurank as Prometheus sees it, out of the telemetry that the processes ship with."""

from collections.abc import Iterator, Mapping
from typing import Any

from ranker.fairness import Row
from ranker.report import TasteReport
from services.replica import MISSING
from services.telemetry import ApiTelemetry, MonitorTelemetry, ProfilesTelemetry, Telemetry, TrainerTelemetry

STAGES = ("taste", "candidates", "score", "calibrate", "guard", "explore", "slate", "total")
#: the day turns bad so many seconds before now
BAD_S = 3600


class Day:
    """The telemetry of all roles, driven through a good day with a bad last hour in which every alert has its reason.

    In it group f of gender gets half its NDCG and twice the promised rate, age 18 stops to click, age 50 is gone, the
    canary is worse than the current version, the learner's taste collapses, and the service fails one request in ten.
    """

    def __init__(self) -> None:
        self.api = ApiTelemetry(["/v1/rank", "/v1/feedback"], "api-1")
        self.profiles, self.trainer, self.monitor = ProfilesTelemetry(), TrainerTelemetry(), MonitorTelemetry()
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
        self.api.using("v1")
        self.api.slate_made(dict.fromkeys(STAGES, 1.5))
        for reason in MISSING:
            self.api.degraded(reason)
        self.api.feedback_taken(n, 3)
        self.api.slates_logged(logged=n, dropped=2 if bad else 0, waiting=4)
        lag = 100_000 if bad else 20
        self.profiles.folded(events=2 * n, dead=n if bad else 0, lag=lag, delay_s=0.02)
        loss, auc = {"click": 0.4, "dismiss": 0.2}, {"click": 0.7, "dismiss": 0.6}
        self.trainer.learned(events=2 * n, rows=10 * n, nonfinite=int(bad), lag=lag, loss=loss, auc=auc)
        active, context = ((0.0, 0.0), 0.612) if bad else ((0.9, 0.5), 0.68)
        tastes = TasteReport(pairs=9, loss=0.6, pooled=0.61, conditioned=context, divergence=0.3, active=active)
        self.trainer.tasted(tastes)
        for decision in ("pass", "hold", "refuse"):
            self.trainer.judged(decision)
        self.monitor.monitored(list(self.rows(n, bad)), events=2 * n, lag=lag, withheld=7)

    def rows(self, n: int, bad: bool) -> Iterator[Row]:
        """The published sums after n more slates."""
        groups = (
            ("all", "all", 1.0),
            ("gender", "f", 0.4),
            ("gender", "m", 0.6),
            ("age", "18", 0.5),
            ("age", "50", 0.5),
        )
        for arm, size in (("current", 0.8), ("canary", 0.1), ("external", 0.1)):
            for field, group, share in groups:
                slates = 0 if bad and group == "50" else n * size * share
                for objective, rate in (("click", 0.2), ("dismiss", 0.05)):
                    ndcg = 0.6 * (0.5 if bad and group == "f" else 1.0) * (0.9 if arm == "canary" else 1.0)
                    happened = rate * (0.05 if bad and group == "18" else 1.0)
                    new = {
                        "slates": slates,
                        "impressions": 10 * slates,
                        "outcomes": 10 * slates * happened,
                        "scored": 10 * slates,
                        "predicted": 10 * slates * rate * (2 if bad and group == "f" else 1),
                        "ranked": slates / 2,
                        "ndcg_sum": ndcg * slates / 2,
                        "profiled": slates / 2,
                        "miscalibration_sum": 0.2 * (2 if group == "f" else 1) * slates / 2,
                    }
                    sums = self.sums.setdefault((arm, field, group, objective), dict.fromkeys(new, 0.0))
                    for name, value in new.items():
                        sums[name] += value
                    ratios: dict[str, Any] = dict.fromkeys(
                        ("rate", "calibration_error", "bias", "ndcg", "miscalibration")
                    )
                    yield Row(arm=arm, field=field, group=group, objective=objective, **{**sums, **ratios})


def openmetrics(text: str, target: Mapping[str, str], seconds: float) -> Iterator[str]:
    """A page of metrics as scraped from this target at this time, for `promtool tsdb create-blocks-from`."""
    labels = ",".join(f'{name}="{value}"' for name, value in target.items())
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            known, _, inside = name.partition("{")
            yield f"{known}{{{labels}{',' + inside if inside else '}'} {value} {seconds:.3f}\n"
