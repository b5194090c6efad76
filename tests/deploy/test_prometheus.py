"""A real Prometheus (Debian's) discovers the telemetry processes over HTTP and scrapes them with the token."""

import subprocess
from typing import Any

import pytest

from tests.deploy.conftest import announced, configured, prometheus, tool, wait_for
from tests.deploy.day import Day


def test_the_shipped_configuration_passes_promtool(tmp_path):
    path = configured(tmp_path, "127.0.0.1:1")
    done = subprocess.run([tool("promtool"), "check", "config", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.integration
def test_prometheus_finds_and_scrapes_every_process(tmp_path, free_port):
    day = Day()
    day.pass_by(10, bad=False)

    def query(expression: str) -> dict[str, float]:
        found: list[dict[str, Any]] = ask("query", query=expression)["result"]
        return {one["metric"].get("process", ""): float(one["value"][1]) for one in found}

    with announced(day.roles) as (targets, _), prometheus(tmp_path, targets, free_port) as ask:
        wait_for(lambda: len(query("up == 1")) == 4, "four processes up")
        assert query("up") == {"api-1": 1, "profiles": 1, "trainer": 1, "monitor": 1}
        assert query('plurank_requests_total{route="/v1/rank",status="200"}') == {"api-1": 10}
        assert query('plurank_version_info{version="v1",arm="current"}') == {"api-1": 1}
        assert query('plurank_period_auc_ratio{arm="current",group="f",objective="click",bound="low"}') == {
            "monitor": 0.58
        }
        group = '{arm="current",group="f",objective="click"}'
        ctr = f"plurank_group_outcomes_total{group} / plurank_group_impressions_total"
        assert query(ctr) == {"monitor": pytest.approx(0.2)}
        ndcg = f"plurank_group_ndcg_ratio_total{group} / plurank_group_ranked_slates_total"
        assert query(ndcg) == {"monitor": pytest.approx(0.6)}
