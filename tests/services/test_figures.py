"""services/figures.py through HTTP: the monitor's windows, and the metrics of every process."""

import msgspec
import pytest

from tests.services.conftest import Service
from tests.services.test_api import RANK


def test_metrics_name_the_process_and_count_by_route(service: Service) -> None:
    service.call("POST", "/v1/rank", RANK)
    service.call("POST", "/v1/rank", b"{")
    text = service.call("GET", "/metrics", scope="metrics").text
    assert 'plurank_requests_total{process="api-test",route="/v1/rank",status="200"} 1.0' in text
    assert 'plurank_requests_total{process="api-test",route="/v1/rank",status="400"} 1.0' in text
    service.settle(lambda: bool(service.store.announced))
    (target,) = service.call("GET", "/v1/metrics/targets", scope="metrics").json()
    assert target["labels"] == {"process": "api-test"}
    assert target["targets"] == [service.store.announced["api-test"]]


def test_fairness_shows_periods_windows_and_decisions(service: Service) -> None:
    empty = service.call("GET", "/v1/fairness", scope="metrics").json()
    assert (empty["latest"], empty["total"], empty["periods"], empty["windows"]) == (None, None, [], [])
    assert [one["action"] for one in empty["decisions"]] == ["promote"]
    now = int(service.replica.clock() * 1000)
    window = {"start": now, "end": now, "versions": {"current": ["v1"]}, "withheld": 3, "rows": []}
    known, none = [0.5, 0.4, 0.6], [None, None, None]
    gap = {
        "arm": "current",
        "field": "gender",
        "measure": "accuracy",
        "objective": "click",
        "best": "m",
        "worst": "f",
        **{name: dict(zip(("value", "low", "high"), known, strict=True)) for name in ("worst_value", "gap", "ratio")},
    }
    estimate = dict(zip(("value", "low", "high"), none, strict=True))
    group = {
        "arm": "current",
        "field": "gender",
        "group": "f",
        "people": 30,
        "slates": 40,
        "of_slates": {"exposure": estimate},
        "objectives": {"click": {"auc": estimate}},
    }
    early, late = (
        {
            "start": now - age * 60_000,
            "end": now,
            "versions": {"current": ["v1"], "canary": ["v2"]},
            "people": 60,
            "groups": [group],
            "gaps": [gap],
            "inequality": [],
        }
        for age in (90, 30)
    )
    service.store.kept = {
        "fairness": [(now, msgspec.json.encode(window))],
        "fairness-total": [(0, msgspec.json.encode(window))],
        "fairness-periods": [(one["start"], msgspec.json.encode(one)) for one in (early, late)],
    }
    found = service.call("GET", "/v1/fairness", scope="metrics").json()
    assert (found["latest"], found["periods"], found["windows"], found["total"]) == (late, [late], [window], window)
    words = {*gap, *group["of_slates"], *group["objectives"]["click"]}
    assert {"gap", "ratio", "exposure", "auc"} <= words & set(found["measures"])
    assert service.call("GET", "/v1/fairness?hours=2", scope="metrics").json()["periods"] == [early, late]


@pytest.mark.parametrize("query", ["hours=0", "hours=25", "hours=nan", "hours=soon", "since=4"])
def test_hours_that_mean_nothing_are_refused(service: Service, query: str) -> None:
    answer = service.call("GET", f"/v1/fairness?{query}", scope="metrics")
    assert answer.status_code == 422
    assert answer.json()["thing"] in ("hours", "query")
