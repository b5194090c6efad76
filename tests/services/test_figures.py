"""services/figures.py through HTTP: the monitor's windows, and the metrics of every process."""

import msgspec

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


def test_fairness_shows_the_monitors_windows(service: Service) -> None:
    window = {"start": 5, "end": 6, "versions": ["v1"], "withheld": 3, "rows": []}
    assert service.call("GET", "/v1/fairness", scope="metrics").json() == {"total": None, "windows": []}
    service.store.kept = {
        "fairness": [(5, msgspec.json.encode(window))],
        "fairness-total": [(0, msgspec.json.encode(window))],
    }
    assert service.call("GET", "/v1/fairness", scope="metrics").json() == {"total": window, "windows": [window]}
