"""The only door to prometheus_client: what each process counts, and the loopback port where it shows it.

Names are `plurank_<noun>_<unit>[_total]`; labels come from small closed sets (objective, group, stage, arm, route),
the version is an info gauge. Group sums are shown as `ranker/fairness.py` published them, never before. Every process
serves its own registry on 127.0.0.1 to whoever brings the metrics token and registers the port in the store;
Prometheus scrapes all of them, and `merge_text` puts them on one page for people.
"""

import contextlib
import hmac
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from ranker.errors import DataError
from ranker.fairness import Row
from ranker.report import ACTIVE, TasteReport
from ranker.spread import Estimate, Period

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
#: a reader that is slower than this is cut off, so that it cannot keep a thread
PATIENCE_S = 10.0
#: measures of how unequal people's accuracy is, as `ranker.spread.Inequality` names them
INEQUALITY = ("mean", "std", "gini", "jain", "cvar10", "spearman_support")
#: so many counts wait at most to be entered
WAITING_COUNTS = 256
WAITING = "1 while the loop waits for broker or store; nothing then counts as lag"


class Telemetry:
    """The registry of one process; its roles below say what is counted.

    Args:
        role: what the process is.
        process: its own name, one among equal roles ("api-1"); the role unless given.
    """

    role: ClassVar[str]

    def __init__(self, process: str | None = None) -> None:
        self.process = process or self.role
        self.registry = CollectorRegistry(auto_describe=True)
        self._server: _Server | None = None
        self._info = self._gauge("plurank_version_info", "The model version in use: 1", "version", "arm")
        self._born = self._gauge("plurank_version_created_seconds", "When the version in use was made", "arm")
        self._used: dict[str, str] = {}

    def using(self, version: str, *, arm: str = "current", created: int | None = None) -> None:
        """Say which version this process works with now.

        Args:
            arm: "current", or "canary" for the one beside it.
            created: when it was made, ms since the epoch.
        """
        self.without(arm)
        self._used[arm] = version
        self._info.labels(version, arm).set(1)
        if created is not None:
            self._born.labels(arm).set(created / 1000)

    def without(self, arm: str) -> None:
        """Say that no version serves this arm any more."""
        if arm in self._used:
            self._info.remove(self._used.pop(arm), arm)
            with contextlib.suppress(KeyError):
                self._born.remove(arm)

    def text(self) -> str:
        """Everything counted so far, in Prometheus' text format."""
        return generate_latest(_Plain(self.registry)).decode()

    def serve(self, token: str, host: str = "127.0.0.1") -> int:
        """Show the registry at http://HOST:PORT/metrics to bearers of the token; returns the port, a free one."""
        self.close()
        self._server = _Server(self, token, host)
        threading.Thread(target=self._server.serve_forever, name="telemetry", daemon=True).start()
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving; the counts stay."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=SECONDS)


@final
class ApiTelemetry(Telemetry):
    """A replica that answers requests.

    Args:
        routes: the route templates; any other route counts as `other`.
    """

    role = "api"

    def __init__(self, routes: Iterable[str], process: str | None = None) -> None:
        super().__init__(process)
        self._waiting_counts: deque[Callable[[], None]] = deque()
        self.registry.register(_Settles(self._settle))  # before the others, so that it is asked first
        self._routes = frozenset(routes)
        self._requests = self._counter("plurank_requests_total", "Requests answered", "route", "status")
        self._seconds = self._histogram("plurank_request_seconds", "Time to the answer", "route")
        self._stages = self._histogram("plurank_stage_seconds", "Time in each stage of a slate", "stage")
        self._stage: dict[str, Histogram] = {}  # looking a label up costs as much as counting
        self._interventions = self._counter(
            "plurank_guard_interventions_total", "Slates that the guard changed, by what it did", "kind"
        )
        for kind in ("blend", "drift", "novelty"):
            self._interventions.labels(kind)
        self._degraded = self._counter("plurank_degraded_answers_total", "Answers with less than asked for", "reason")
        self._events = self._counter("plurank_feedback_events_total", "Events sent in", "outcome")
        self._swaps = self._counter("plurank_version_swaps_total", "Versions taken into service")
        self._examination = self._gauge(
            "plurank_examination_ratio",
            "How likely a place is acted on against the first, as the version in use learned it",
            "objective",
            "position",
        )
        self._slates = self._counter("plurank_served_slates_total", "Served slates by what became of them", "outcome")
        self._waiting = self._gauge("plurank_waiting_slates", "Served slates that the log does not have yet")
        self._arms = self._counter("plurank_arm_slates_total", "Slates made by arm: current or canary", "arm")
        self._share = self._gauge("plurank_canary_share_ratio", "Share of the users that a canary serves; 0 without")
        self._recall = self._gauge("plurank_index_recall_ratio", "Share of the best by fresh vectors that are found")
        self._recall.set(1)  # without a shared index every item is looked at

    def _later(self, count: Callable[[], None]) -> None:
        """Count when somebody looks, or many at a time: within a request the registry's code is cold and slow."""
        self._waiting_counts.append(count)
        if len(self._waiting_counts) >= WAITING_COUNTS:
            self._settle()

    def _settle(self) -> None:
        while True:
            try:
                count = self._waiting_counts.popleft()
            except IndexError:  # a scrape may have taken the last one
                return
            count()

    def request_served(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._later(partial(self._count_request, route, status, seconds))

    def _count_request(self, route: str, status: int, seconds: float) -> None:
        route = route if route in self._routes else "other"
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def trying(self, share: float, version: str | None = None, *, created: int | None = None) -> None:
        """Say that a canary serves this share of the users from now on; without a version that there is none."""
        self._share.set(share)
        if version is None:
            self.without("canary")
        elif self._used.get("canary") != version:
            self.using(version, arm="canary", created=created)

    def slate_made(
        self, timings_ms: Mapping[str, float], arm: str = "current", interventions: Iterable[str] = ()
    ) -> None:
        """Count the stages of one Slate, its arm, and the kinds of what the guard did to it."""
        self._later(partial(self._count_slate, timings_ms, arm, interventions))

    def _count_slate(self, timings_ms: Mapping[str, float], arm: str, interventions: Iterable[str]) -> None:
        self._arms.labels(arm).inc()
        for kind in interventions:
            self._interventions.labels(kind).inc()
        for stage, spent in timings_ms.items():
            child = self._stage.get(stage)
            if child is None:
                child = self._stage[stage] = self._stages.labels(stage)
            child.observe(spent / 1000)

    def degraded(self, reason: str) -> None:
        """Count an answer that is degraded; reasons are the service's own few words."""
        self._degraded.labels(reason).inc()

    def feedback_taken(self, accepted: int, rejected: int) -> None:
        """Count the events of one feedback body."""
        self._events.labels("accepted").inc(accepted)
        self._events.labels("rejected").inc(rejected)

    def slates_logged(self, *, logged: int, dropped: int, waiting: int) -> None:
        """Count served slates that reached the log or were lost since the last call, and those on their way."""
        self._slates.labels("logged").inc(logged)
        self._slates.labels("dropped").inc(dropped)
        self._waiting.set(waiting)

    def using(self, version: str, *, arm: str = "current", created: int | None = None) -> None:
        """Say which version this replica serves now, and count the swap."""
        super().using(version, arm=arm, created=created)
        self._swaps.inc()

    def recalled(self, recall: float) -> None:
        """Show what the index of a large catalogue, which is older than the version, finds of the version's best."""
        self._recall.set(recall)

    def examined(self, curves: Mapping[str, Iterable[float]]) -> None:
        """Show the examination curve of each biased objective, first place first, in place of those before."""
        self._examination.clear()
        for objective, curve in curves.items():
            for position, ratio in enumerate(curve):
                self._examination.labels(objective, str(position)).set(ratio)


@final
class TrainerTelemetry(Telemetry):
    """The learner's loop."""

    role = "trainer"

    def __init__(self, process: str | None = None) -> None:
        super().__init__(process)
        self._events = self._counter("plurank_learned_events_total", "Events read by the learner")
        self._rows = self._counter("plurank_learned_rows_total", "Labelled rows learned")
        self._skipped = self._counter("plurank_nonfinite_steps_total", "Steps refused for a non-finite loss")
        self._published = self._counter("plurank_candidate_versions_total", "Candidate versions judged", "decision")
        self._lag = self._gauge("plurank_log_lag_records", "Records not read yet")
        self._waiting = self._gauge("plurank_loop_waiting", WAITING)
        self._loss = self._gauge("plurank_training_loss_nats", "Loss of the latest steps", "objective")
        self._auc = self._gauge("plurank_progressive_auc_ratio", "AUC of scores given before learning", "objective")
        self._divergence = self._gauge("plurank_taste_divergence_nats", "Mean KL of tastes from the prior")
        self._active = self._gauge(
            "plurank_taste_active_ratio", "Axes of taste whose mean varies over people by more", "threshold"
        )
        # their difference is what context is worth, the number that a collapsed posterior cannot fool
        self._accuracy = self._gauge(
            "plurank_comparison_accuracy_ratio", "Comparisons foretold before they were learned", "source"
        )

    def learned(
        self,
        *,
        events: int = 0,
        rows: int = 0,
        nonfinite: int = 0,
        lag: int | None = None,
        loss: Mapping[str, float] | None = None,
        auc: Mapping[str, float] | None = None,
        waiting: bool = False,
    ) -> None:
        """Count one step: what is new since the last call, and where the loop stands now."""
        self._waiting.set(waiting)
        self._events.inc(events)
        self._rows.inc(rows)
        self._skipped.inc(nonfinite)
        if lag is not None:
            self._lag.set(lag)
        for gauge, values in ((self._loss, loss), (self._auc, auc)):
            for objective, value in (values or {}).items():
                gauge.labels(objective).set(value)

    def tasted(self, tastes: TasteReport) -> None:
        """Where tastes stand; nothing before the first comparison."""
        if not tastes.pairs:
            return
        self._divergence.set(tastes.divergence)
        self._accuracy.labels("prior").set(tastes.pooled)
        self._accuracy.labels("context").set(tastes.conditioned)
        for least, share in zip(ACTIVE, tastes.active, strict=True):
            self._active.labels(f"{least:g}").set(share)

    def judged(self, decision: str) -> None:
        """Count a candidate by its Verdict's decision."""
        self._published.labels(decision).inc()


@final
class ProfilesTelemetry(Telemetry):
    """The loop that folds events into the store."""

    role = "profiles"

    def __init__(self, process: str | None = None) -> None:
        super().__init__(process)
        self._events = self._counter("plurank_folded_events_total", "Events folded into evidence and catalogue")
        self._dead = self._counter("plurank_dead_letters_total", "Records that are no events")
        self._lag = self._gauge("plurank_log_lag_records", "Records not read yet")
        self._waiting = self._gauge("plurank_loop_waiting", WAITING)
        self._delay = self._histogram("plurank_evidence_delay_seconds", "Log to evidence, slowest record a second")

    def folded(
        self,
        *,
        events: int,
        dead: int = 0,
        lag: int | None = None,
        delay_s: float | None = None,
        waiting: bool = False,
    ) -> None:
        """Count one batch."""
        self._waiting.set(waiting)
        self._events.inc(events)
        self._dead.inc(dead)
        if lag is not None:
            self._lag.set(lag)
        if delay_s is not None:
            self._delay.observe(delay_s)


@final
class MonitorTelemetry(Telemetry):
    """The loop that keeps the group sums. Its counters are the published sums, so a restart does not reset them.

    Args:
        weights: of the objectives in the served utility, so that rules can tell what is wanted from what is not.
    """

    role = "monitor"

    def __init__(self, process: str | None = None, *, weights: Mapping[str, float] | None = None) -> None:
        super().__init__(process)
        self._events = self._counter("plurank_monitored_events_total", "Events read by the monitor")
        self._lag = self._gauge("plurank_log_lag_records", "Records not read yet")
        self._waiting = self._gauge("plurank_loop_waiting", WAITING)
        self._withheld = self._gauge("plurank_withheld_slates", "Slates that wait for more people of their groups")
        weight = self._gauge("plurank_objective_weight_ratio", "Weight in the served utility", "objective")
        for objective, value in (weights or {}).items():
            weight.labels(objective).set(value)
        self._groups, self._period = _Groups(), _Judged()
        self.registry.register(self._groups)
        self.registry.register(self._period)

    def monitored(
        self,
        rows: Sequence[Row],
        *,
        events: int = 0,
        lag: int | None = None,
        withheld: int = 0,
        period: Period | None = None,
        waiting: bool = False,
    ) -> None:
        """Show these published rows and this judged period from now on, and count the events since the last call."""
        self._groups.rows = tuple(rows)
        self._period.period = period
        self._events.inc(events)
        self._withheld.set(withheld)
        self._waiting.set(waiting)
        if lag is not None:
            self._lag.set(lag)


class _Groups:
    """Collector of the published group sums: {arm, field, group}, most of them by objective."""

    BY_GROUP: ClassVar = {
        "slates": ("plurank_group_slates", "Closed slates"),
        "profiled": ("plurank_group_profiled_slates", "Slates of users with an interest profile"),
        "miscalibration_sum": ("plurank_group_miscalibration_nats", "C_KL summed over the profiled slates"),
        "exposed": ("plurank_group_exposed_slates", "Slates of users with a profile whose places are known"),
        "exposure_sum": (
            "plurank_group_exposure_ratio",
            "Attention where interests are, summed over the exposed slates",
        ),
    }
    BY_OBJECTIVE: ClassVar = {
        "impressions": ("plurank_group_impressions", "Shown items whose label is known"),
        "outcomes": ("plurank_group_outcomes", "Sum of their labels"),
        "scored": ("plurank_group_scored_impressions", "Impressions whose probability was logged"),
        "predicted": ("plurank_group_predicted_outcomes", "Sum of the logged probabilities"),
        "pairs": ("plurank_group_pairs", "Pairs of a slate's items whose outcomes differ"),
        "foretold": ("plurank_group_foretold_pairs", "Those that the logged probabilities order alike, ties half"),
        "ranked": ("plurank_group_ranked_slates", "Slates with a positive outcome"),
        "ndcg_sum": ("plurank_group_ndcg_ratio", "NDCG@10 summed over the ranked slates"),
    }

    def __init__(self) -> None:
        self.rows: tuple[Row, ...] = ()

    def collect(self) -> Iterator[Metric]:
        rows = self.rows
        for attribute, (name, text) in self.BY_OBJECTIVE.items():
            family = CounterMetricFamily(name, text, labels=["arm", "field", "group", "objective"])
            for row in rows:
                family.add_metric([row.arm, row.field, row.group, row.objective], getattr(row, attribute))
            yield family
        first = {(row.arm, row.field, row.group): row for row in reversed(rows)}
        for attribute, (name, text) in self.BY_GROUP.items():
            family = CounterMetricFamily(name, text, labels=["arm", "field", "group"])
            for label, row in sorted(first.items()):
                family.add_metric(list(label), getattr(row, attribute))
            yield family

    def describe(self) -> list[Metric]:
        return []


class _Judged:
    """Collector of the latest judged period: what no sums can say, each with the bounds of its interval."""

    BY_GROUP: ClassVar = {
        "auc": ("plurank_period_auc_ratio", "AUC of the logged probabilities in the latest period"),
        "calibration_error": (
            "plurank_period_calibration_error_ratio",
            "Binned calibration error in the latest period",
        ),
        "accuracy": ("plurank_period_accuracy_ratio", "Pairs foretold in the latest period"),
    }

    def __init__(self) -> None:
        self.period: Period | None = None

    def collect(self) -> Iterator[Metric]:
        period = self.period
        labels = ["arm", "field", "group", "objective", "bound"]
        for measure, (name, text) in self.BY_GROUP.items():
            family = GaugeMetricFamily(name, text, labels=labels)
            for one in [] if period is None else period.groups:
                for objective, found in one.objectives.items():
                    _bounds(family, [one.arm, one.field, one.group, objective], found[measure])
            yield family
        gaps = GaugeMetricFamily(
            "plurank_period_gap_ratio",
            "Best less worst group in the latest period",
            labels=[*labels[:2], "measure", *labels[3:]],
        )
        unequal = GaugeMetricFamily(
            "plurank_people_inequality_ratio",
            "How unequal people's own accuracy was in the latest period",
            labels=["arm", "objective", "measure", "bound"],
        )
        people = GaugeMetricFamily(
            "plurank_period_people", "People whose accuracy was told", labels=["arm", "objective"]
        )
        ended = GaugeMetricFamily("plurank_period_end_seconds", "When the latest judged period ended")
        if period is not None:
            for gap in period.gaps:
                if gap.measure in self.BY_GROUP and gap.objective is not None:
                    _bounds(gaps, [gap.arm, gap.field, gap.measure, gap.objective], gap.gap)
            for told in period.inequality:
                people.add_metric([told.arm, told.objective], told.people)
                for measure in INEQUALITY:
                    _bounds(unequal, [told.arm, told.objective, measure], getattr(told, measure))
            ended.add_metric([], period.end / 1000)
        yield from (gaps, unequal, people, ended)

    def describe(self) -> list[Metric]:
        return []


def _bounds(family: GaugeMetricFamily, labels: list[str], found: Estimate) -> None:
    for bound in ("value", "low", "high"):
        value = getattr(found, bound)
        if value is not None:
            family.add_metric([*labels, bound], value)


class _Settles:
    """Collector of nothing, which enters what waits when the registry is read."""

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle

    def collect(self) -> Iterator[Metric]:
        self._settle()
        return iter(())

    def describe(self) -> list[Metric]:
        return []


class _Plain:
    """A registry without the creation times, which double the series and tell nothing here."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, telemetry: Telemetry, token: str, host: str) -> None:
        super().__init__((host, 0), _Handler)
        self.telemetry, self.expected = telemetry, b"Bearer " + token.encode()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that hangs up is no event."""


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE_S
    server_version, sys_version = "plurank", ""
    server: _Server

    def do_GET(self) -> None:
        given = (self.headers.get("Authorization") or "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self.server.expected):
            self._answer(401, b"send Authorization: Bearer with the metrics token\n", "text/plain; charset=utf-8")
        elif self.path.split("?")[0] != "/metrics":
            self._answer(404, b"the metrics are at /metrics\n", "text/plain; charset=utf-8")
        else:
            self._answer(200, self.server.telemetry.text().encode(), CONTENT_TYPE)

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a line."""


def merge_text(texts: Mapping[str, str]) -> str:
    """One page of the processes' pages, every series with the label `process`.

    Args:
        texts: text format by process name.

    Raises:
        DataError: a page is not in the text format.

    Example:
        >>> page = "# HELP plurank_x_total X\\n# TYPE plurank_x_total counter\\nplurank_x_total 1.0\\n"
        >>> print(merge_text({"api-0": page, "api-1": page}), end="")
        # HELP plurank_x_total X
        # TYPE plurank_x_total counter
        plurank_x_total{process="api-0"} 1.0
        plurank_x_total{process="api-1"} 1.0
    """
    families: dict[str, Metric] = {}
    for process, text in texts.items():
        try:
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                merged.samples += [s._replace(labels={**s.labels, "process": process}) for s in family.samples]
        except ValueError as error:
            raise DataError(f"metrics of {process}", str(error), "it is not in Prometheus' text format") from None
    return generate_latest(_Merged(families)).decode()


class _Merged:
    def __init__(self, families: Mapping[str, Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families[name] for name in sorted(self._families))
