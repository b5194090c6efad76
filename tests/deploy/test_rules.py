"""The rules of Prometheus: promtool's checks, and that they read only what the processes show."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import ROOT, tool
from tests.deploy.promql import unknown

RULES = ROOT / "deploy" / "rules.yaml"
UNITS = Path(__file__).with_name("rules_test.yaml")
GROUPS: dict[str, list[dict[str, Any]]] = {
    group["name"]: group["rules"] for group in yaml.safe_load(RULES.read_text())["groups"]
}
ALERTS = [rule for rules in GROUPS.values() for rule in rules if "alert" in rule]
RECORDED = [rule for rules in GROUPS.values() for rule in rules if "record" in rule]


def promtool(*arguments: object) -> None:
    command = [tool("promtool"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=UNITS.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules_without_a_complaint():
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_every_alert_fires_and_is_silent_as_its_unit_tests_say():
    promtool("test", "rules", UNITS.name)


def test_every_alert_is_tested_once_firing_and_once_silent():
    firing, silent = set(), set()
    for test in yaml.safe_load(UNITS.read_text())["tests"]:
        for one in test.get("alert_rule_test", []):
            (firing if one["exp_alerts"] else silent).add(one["alertname"])
        for one in test.get("promql_expr_test", []):
            for name in re.findall(r'alertname="(\w+)"', one["expr"]):
                (firing if one["exp_samples"] else silent).add(name)
                # beside the alert that fires, each test has series for which it must not
                silent |= {name} if len(test["input_series"]) > len(one["exp_samples"]) > 0 else set()
    every = {alert["alert"] for alert in ALERTS}
    assert firing == every
    assert silent == every


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_what_happened_and_what_to_do(alert):
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(alert["annotations"]) == {"summary", "description", "remedy"}
    assert f"\n| `{alert['alert']}` |" in (ROOT / "docs" / "operations.md").read_text()


def test_the_windows_are_the_same_rules():
    def of(window: str) -> list[tuple[str, str]]:
        rules = GROUPS[f"plurank-groups-{window}"]
        return [tuple(re.sub(rf"{window}\b", "W", rule[key]) for key in ("record", "expr")) for rule in rules]

    assert of("5m") == of("1h") == of("1d")


@pytest.mark.parametrize("rule", RECORDED + ALERTS, ids=lambda rule: rule.get("record") or rule["alert"])
def test_a_rule_reads_only_what_the_processes_show(rule):
    assert unknown(rule["expr"]) == []
