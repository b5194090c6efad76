"""A real Prometheus (Debian's) discovers two telemetry processes over HTTP and scrapes them with the token."""

import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from ranker.fairness import Row
from services.telemetry import ApiTelemetry, MonitorTelemetry

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-this-test"


def tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install --no-install-recommends prometheus")
    return found


class Targets(BaseHTTPRequestHandler):
    """The service discovery of `GET /v1/metrics/targets`, token checked."""

    found: ClassVar[list[dict[str, object]]] = []

    def do_GET(self) -> None:
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}" and self.path == "/v1/metrics/targets"
        body = json.dumps(self.found if allowed else {}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def targets() -> Iterator[str]:
    row = Row(
        arm="current",
        field="gender",
        group="f",
        objective="click",
        slates=4,
        impressions=40.0,
        outcomes=6.0,
        scored=40.0,
        predicted=5.5,
        ndcg_sum=2.5,
        ranked=4.0,
        miscalibration_sum=1.5,
        profiled=3,
        rate=0.15,
        calibration_error=0.01,
        bias=-0.0125,
        ndcg=0.625,
        miscalibration=0.5,
    )
    api, monitor = ApiTelemetry(["/v1/rank"], "api-0"), MonitorTelemetry()
    api.request_served("/v1/rank", 200, 0.002)
    api.using("v1")
    monitor.monitored([row], events=5)
    Targets.found = [
        {"targets": [f"127.0.0.1:{telemetry.serve(TOKEN)}"], "labels": {"process": telemetry.process}}
        for telemetry in (api, monitor)
    ]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Targets)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    api.close()
    monitor.close()


def configured(folder: Path, targets: str) -> Path:
    """The shipped file, with this test's address and token, and in a hurry."""
    token = folder / "metrics.token"
    token.write_text(TOKEN)
    text = (ROOT / "deploy" / "prometheus.yaml").read_text()
    for old, new in (
        ("/etc/plurank/metrics.token", str(token)),
        ("127.0.0.1:8000", targets),
        ("scrape_interval: 5s", "scrape_interval: 500ms"),
        ("refresh_interval: 10s", "refresh_interval: 1s"),
    ):
        assert old in text
        text = text.replace(old, new)
    path = folder / "prometheus.yaml"
    path.write_text(text)
    return path


def query(at: str, expression: str) -> dict[str, float]:
    asked = f"http://{at}/api/v1/query?query={urllib.parse.quote(expression)}"
    try:
        with urllib.request.urlopen(asked, timeout=2) as answer:
            found = json.load(answer)["data"]["result"]
    except OSError:
        return {}
    return {one["metric"].get("process", ""): float(one["value"][1]) for one in found}


def test_the_shipped_configuration_passes_promtool(tmp_path):
    path = configured(tmp_path, "127.0.0.1:1")
    done = subprocess.run([tool("promtool"), "check", "config", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.integration
def test_prometheus_finds_and_scrapes_every_process(tmp_path, targets, free_port):
    at = f"127.0.0.1:{free_port}"
    command = [tool("prometheus"), f"--config.file={configured(tmp_path, targets)}", f"--web.listen-address={at}"]
    command += [f"--storage.tsdb.path={tmp_path / 'data'}", "--log.level=warn"]
    with (tmp_path / "prometheus.log").open("w") as log, subprocess.Popen(command, stderr=log) as prometheus:
        try:
            deadline = time.monotonic() + 60
            while len(query(at, "up == 1")) < 2:
                assert prometheus.poll() is None, (tmp_path / "prometheus.log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "prometheus.log").read_text()
                time.sleep(0.3)
            assert query(at, "up") == {"api-0": 1, "monitor": 1}
            assert query(at, 'plurank_requests_total{route="/v1/rank",status="200"}') == {"api-0": 1}
            assert query(at, 'plurank_version_info{version="v1"}') == {"api-0": 1}
            ctr = "sum by (process, group) (plurank_group_outcomes_total / plurank_group_impressions_total)"
            assert query(at, ctr) == {"monitor": pytest.approx(0.15)}
            ndcg = "plurank_group_ndcg_ratio_total / plurank_group_ranked_slates_total"
            assert query(at, ndcg) == {"monitor": pytest.approx(0.625)}
        finally:
            prometheus.terminate()
