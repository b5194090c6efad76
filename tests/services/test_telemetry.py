import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ranker.errors import DataError
from ranker.fairness import Row
from ranker.report import TasteReport
from ranker.spread import Estimate, GroupFigures, Inequality, Period
from services.telemetry import ApiTelemetry, MonitorTelemetry, ProfilesTelemetry, TrainerTelemetry, merge_text


def row(group: str, objective: str, slates: int = 4) -> Row:
    return Row(
        arm="current",
        field="gender",
        group=group,
        objective=objective,
        slates=slates,
        impressions=40.0,
        outcomes=6.0,
        scored=40.0,
        predicted=5.5,
        pairs=200.0,
        foretold=150.0,
        ndcg_sum=2.5,
        ranked=4.0,
        miscalibration_sum=1.5,
        profiled=3,
        exposure_sum=1.8,
        exposed=3,
        rate=0.15,
        accuracy=0.75,
        auc=0.7,
        calibration_error=0.01,
        bias=-0.0125,
        ndcg=0.625,
        miscalibration=0.5,
        exposure=0.6,
    )


def scrape(port: int, token: str | None, path: str = "/metrics") -> tuple[int, str, str]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["WWW-Authenticate"] or "", error.read().decode()


def values(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_process_shows_its_counts_over_http_to_the_bearer_of_the_token():
    api = ApiTelemetry(["/v1/rank"], "api-0")
    port = api.serve("secret")
    try:
        api.request_served("/v1/rank", 200, 0.0021)
        status, kind, text = scrape(port, "secret")
        assert status == 200
        assert kind.startswith("text/plain")
        found = values(text)
        assert found["plurank_requests_total", "/v1/rank", "200"] == 1
        assert found["plurank_request_seconds_bucket", "/v1/rank", "0.002"] == 0
        assert found["plurank_request_seconds_bucket", "/v1/rank", "0.003"] == 1
    finally:
        api.close()


def test_what_an_index_finds_is_all_until_one_is_shared():
    api = ApiTelemetry([])
    assert values(api.text())["plurank_index_recall_ratio",] == 1
    api.recalled(0.8)
    assert values(api.text())["plurank_index_recall_ratio",] == 0.8


@pytest.mark.parametrize("token", [None, "", "wrong", "secret2", "sécret"])
def test_without_the_right_token_nothing_is_shown(token):
    profiles = ProfilesTelemetry()
    port = profiles.serve("secret")
    try:
        quoted = None if token is None else token.encode().decode("latin-1")
        status, challenge, text = scrape(port, quoted)
        assert (status, challenge) == (401, "Bearer")
        assert "plurank_" not in text
    finally:
        profiles.close()


def test_other_paths_are_not_found_and_a_closed_process_answers_no_more():
    profiles = ProfilesTelemetry()
    port = profiles.serve("secret")
    assert scrape(port, "secret", "/")[0] == 404
    profiles.close()
    with pytest.raises(urllib.error.URLError):
        scrape(port, "secret")
    profiles.close()


def test_routes_that_are_not_known_count_as_other():
    api = ApiTelemetry(["/v1/rank"])
    for n in range(100):
        api.request_served(f"/probe/{n}", 404, 0.001)
    found = values(api.text())
    assert found["plurank_requests_total", "404", "other"] == 100
    assert sum(name[0] == "plurank_requests_total" for name in found) == 1


def test_stages_feedback_and_swaps_are_counted():
    api = ApiTelemetry([])
    api.slate_made({"score": 1.5, "total": 2.5}, interventions=["novelty"])
    api.feedback_taken(3, 1)
    api.degraded("no evidence")
    api.using("v1")
    api.using("v2")
    found = values(api.text())
    assert found["plurank_stage_seconds_sum", "score"] == pytest.approx(0.0015)
    assert (
        found["plurank_guard_interventions_total", "novelty"],
        found["plurank_guard_interventions_total", "blend"],
    ) == (1, 0)
    assert found["plurank_feedback_events_total", "accepted"] == 3
    assert found["plurank_feedback_events_total", "rejected"] == 1
    assert found["plurank_degraded_answers_total", "no evidence"] == 1
    assert found["plurank_version_swaps_total",] == 2
    assert found["plurank_version_info", "current", "v2"] == 1
    assert ("plurank_version_info", "current", "v1") not in found


def test_the_examination_curve_of_the_version_in_use_replaces_the_one_before():
    api = ApiTelemetry([])
    api.examined({"click": [1.0, 0.6], "like": [1.0, 0.8]})
    api.examined({"click": [1.0, 0.5]})
    found = values(api.text())
    curve = {name: value for name, value in found.items() if name[0] == "plurank_examination_ratio"}
    assert sorted(curve.values()) == [0.5, 1.0]
    assert curve["plurank_examination_ratio", "1", "click"] == 0.5


def test_a_canary_stands_beside_the_current_version_with_its_own_age():
    api = ApiTelemetry([])
    api.using("v1", created=5000)
    api.trying(0.1, "v2", created=7000)
    api.trying(0.2, "v2", created=7000)
    found = values(api.text())
    assert found["plurank_version_info", "current", "v1"] == found["plurank_version_info", "canary", "v2"] == 1
    assert found["plurank_version_created_seconds", "current"] == 5
    assert found["plurank_version_created_seconds", "canary"] == 7
    assert found["plurank_version_swaps_total",] == 2
    api.trying(0.0)
    found = values(api.text())
    assert ("plurank_version_info", "canary", "v2") not in found
    assert ("plurank_version_created_seconds", "canary") not in found
    assert found["plurank_canary_share_ratio",] == 0


def test_a_loop_that_waits_says_so_until_it_goes_on():
    monitor = MonitorTelemetry(weights={"click": 1.0, "dismiss": -0.5})
    monitor.monitored([], waiting=True)
    assert values(monitor.text())["plurank_loop_waiting",] == 1
    monitor.monitored([])
    found = values(monitor.text())
    assert found["plurank_loop_waiting",] == 0
    assert found["plurank_objective_weight_ratio", "dismiss"] == -0.5


def test_the_latest_period_is_shown_with_its_bounds_and_no_number_where_there_is_none():
    none = Estimate(None, None, None)
    accuracy = Estimate(0.7, 0.65, 0.75)
    group = GroupFigures(
        arm="current",
        field="age",
        group="old",
        people=30,
        slates=90,
        of_slates={},
        objectives={"click": {"accuracy": accuracy, "auc": none, "calibration_error": Estimate(0.02, 0.01, 0.03)}},
    )
    people = Inequality(
        arm="current",
        objective="click",
        people=30,
        mean=accuracy,
        std=Estimate(0.1, 0.08, 0.12),
        gini=none,
        jain=none,
        cvar10=none,
        spearman_support=none,
    )
    monitor = MonitorTelemetry()
    period = Period(start=1, end=9000, versions={}, people=30, groups=[group], gaps=[], inequality=[people])
    monitor.monitored([], period=period)
    found = values(monitor.text())
    shown = {name[0] for name in found}
    assert "plurank_period_auc_ratio" not in shown
    assert found[("plurank_period_accuracy_ratio", *sorted(["current", "age", "old", "click", "low"]))] == 0.65
    assert found[("plurank_people_inequality_ratio", *sorted(["current", "click", "std", "high"]))] == 0.12
    assert found["plurank_period_end_seconds",] == 9


def test_the_trainer_shows_where_it_stands():
    trainer = TrainerTelemetry()
    trainer.learned(events=10, rows=30, lag=5, loss={"click": 0.3}, auc={"click": 0.7})
    trainer.learned(events=5, rows=1, nonfinite=1, auc={"click": 0.71})
    trainer.judged("pass")
    found = values(trainer.text())
    assert found["plurank_learned_events_total",] == 15
    assert found["plurank_learned_rows_total",] == 31
    assert found["plurank_nonfinite_steps_total",] == 1
    assert found["plurank_progressive_auc_ratio", "click"] == 0.71
    assert found["plurank_training_loss_nats", "click"] == 0.3
    assert found["plurank_log_lag_records",] == 5
    assert found["plurank_candidate_versions_total", "pass"] == 1


def test_the_trainer_shows_what_tastes_are_worth_once_there_are_comparisons():
    trainer = TrainerTelemetry()
    nothing = TasteReport(pairs=0, loss=0, pooled=0, conditioned=0, divergence=0, active=(0, 0))
    trainer.tasted(nothing)
    assert ("plurank_comparison_accuracy_ratio", "prior") not in values(trainer.text())
    trainer.tasted(replace(nothing, pairs=9, pooled=0.6, conditioned=0.7, divergence=1.5, active=(1.0, 0.5)))
    found = values(trainer.text())
    assert found["plurank_comparison_accuracy_ratio", "context"] == 0.7
    assert found["plurank_comparison_accuracy_ratio", "prior"] == 0.6
    assert found["plurank_taste_active_ratio", "0.05"] == 0.5
    assert found["plurank_taste_divergence_nats",] == 1.5


def test_group_sums_are_shown_as_counters_by_objective_and_by_group():
    monitor = MonitorTelemetry()
    monitor.monitored([row("f", "click"), row("f", "like"), row("m", "click")], events=7, lag=0, withheld=2)
    found = values(monitor.text())
    assert found["plurank_group_slates_total", "current", "f", "gender"] == 4
    assert found["plurank_group_impressions_total", "click", "current", "f", "gender"] == 40
    assert found["plurank_group_predicted_outcomes_total", "current", "f", "gender", "like"] == 5.5
    assert found["plurank_group_ndcg_ratio_total", "click", "current", "gender", "m"] == 2.5
    assert found["plurank_group_miscalibration_nats_total", "current", "gender", "m"] == 1.5
    assert found["plurank_withheld_slates",] == 2
    monitor.monitored([row("f", "click", slates=9)])
    assert values(monitor.text())["plurank_group_slates_total", "current", "f", "gender"] == 9


def test_every_name_follows_the_house_form_and_no_creation_times_are_shown():
    monitor = MonitorTelemetry()
    monitor.monitored([row("f", "click")])
    trainer = TrainerTelemetry()
    trainer.learned(events=1)
    for telemetry in (ApiTelemetry([]), trainer, ProfilesTelemetry(), monitor):
        for family in text_string_to_metric_families(telemetry.text()):
            assert family.name.startswith("plurank_")
            assert not family.name.endswith("_created")
            assert family.documentation


def test_merging_keeps_every_series_and_adds_the_process():
    api, profiles = ApiTelemetry(["/v1/rank"], "api-0"), ProfilesTelemetry()
    api.request_served("/v1/rank", 200, 0.001)
    api.using('v"1\\\n')
    profiles.folded(events=3, lag=2, delay_s=0.02)
    monitor = MonitorTelemetry()
    monitor.monitored([], lag=9)
    merged = merge_text({t.process: t.text() for t in (api, profiles, monitor)})
    found = values(merged)
    assert found["plurank_requests_total", "/v1/rank", "200", "api-0"] == 1
    assert found["plurank_log_lag_records", "profiles"] == 2
    assert found["plurank_log_lag_records", "monitor"] == 9
    assert found["plurank_evidence_delay_seconds_count", "profiles"] == 1
    assert found["plurank_version_info", "api-0", "current", 'v"1\\\n'] == 1
    assert merged.count("# TYPE plurank_log_lag_records gauge") == 1


def test_a_page_that_is_none_is_named():
    with pytest.raises(DataError, match="api-7"):
        merge_text({"api-7": "<html>{"})
