"""A real Prometheus with a day behind it: every expression of the rules and dashboards has an answer."""

import math
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from services import embedded
from tests.deploy.conftest import announced, prometheus, tool, wait_for
from tests.deploy.day import BAD_S, Day, openmetrics
from tests.deploy.test_grafana import EXPRESSIONS
from tests.deploy.test_rules import GROUPS

pytestmark = pytest.mark.integration
DAY_S, STEP_S, CLOSE_S = 25 * 3600, 240, 20
#: of the process that was announced and is not there
GONE = "api-2"


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Prometheus' API, over 25 hours written as blocks and the scrapes of now."""
    folder, day, now = tmp_path_factory.mktemp("prometheus"), Day(), time.time()
    program = tool("promtool")
    with announced(day.roles, GONE) as (targets, found):
        page = folder / "day.om"
        with page.open("w") as file:
            age = DAY_S
            while age >= 0:
                step = STEP_S if age > BAD_S / 6 else CLOSE_S
                day.pass_by(step, bad=age < BAD_S)
                for role in day.roles:
                    target = {"job": "plurank", "process": role.process, "instance": found[role.process]}
                    file.writelines(openmetrics(role.text(), target, now - age))
                age -= step
            file.write("# EOF\n")
        command = [program, "tsdb", "create-blocks-from", "openmetrics", page, folder / "data"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        with prometheus(folder, targets, embedded.free_port()) as ask:
            wait_for(lambda: len(finite(ask, "up")) == 5, "every process was scraped")
            down = 'ALERTS{alertname="PlurankProcessDown"}'
            wait_for(lambda: {one["process"] for one in finite(ask, down)} == {GONE}, "only one is missed")
            names = {rule["record"] for rules in GROUPS.values() for rule in rules if "record" in rule}
            every = 'count by (__name__) ({__name__=~"plurank:.+"})'
            wait_for(lambda: {one["__name__"] for one in finite(ask, every)} >= names, "every rule was recorded")
            yield ask


def finite(ask: Callable[..., Any], expression: str) -> list[dict[str, str]]:
    """Labels of the series that the expression answers with, those of them that are numbers."""
    found = ask("query", query=expression)["result"]
    return [one["metric"] for one in found if math.isfinite(float(one["value"][1]))]


@pytest.mark.parametrize("group", GROUPS)
def test_every_rule_answers_and_every_alert_sees_the_bad_hour(ask, group):
    for rule in GROUPS[group]:
        assert finite(ask, rule["expr"]), rule
        assert finite(ask, rule.get("record") or f'ALERTS{{alertname="{rule["alert"]}"}}'), rule
    (found,) = [one for one in ask("rules")["groups"] if one["name"] == group]
    for rule in found["rules"]:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule["name"]
        assert rule.get("state") in (None, "pending", "firing"), rule["name"]


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_panel_answers_with_the_labels_of_its_legend(ask, where):
    expression, legend = EXPRESSIONS[where]
    series = finite(ask, expression)
    assert series
    for label in re.findall(r"{{(\w+)}}", legend):
        assert all(label in one for one in series), (label, series[0])


def test_the_bad_hour_is_seen_where_it_happened(ask):
    where = 'arm="current", objective="click"'
    assert {one["group"] for one in finite(ask, f"plurank:group_ndcg:mean1h{{{where}}} < 0.4")} == {"f"}
    assert {one["group"] for one in finite(ask, 'ALERTS{alertname="PlurankFeedbackDrought"}')} >= {"18"}
    assert {one["group"] for one in finite(ask, 'ALERTS{alertname="PlurankGroupSilent"}')} == {"50"}
