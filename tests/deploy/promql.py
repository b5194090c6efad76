"""What PromQL expressions read, held against what the processes show."""

import re
from functools import cache

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.conftest import ROOT
from tests.deploy.day import Day

#: what Prometheus itself puts on every series, and the series that it makes
TARGET = {"job", "instance", "process"}
OWN = {"up": TARGET, "ALERTS": {"alertname", "alertstate", "severity"}}
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\d[\w.]*|[A-Za-z_:][\w:]*|[^\s\w]')
_SETS = ("and", "or", "unless", "offset", "bool", "inf", "nan")
_GROUPING = ("by", "without", "on", "ignoring", "group_left", "group_right")


def names(expression: str) -> tuple[dict[str, set[str]], set[str]]:
    """What a PromQL expression reads: metrics with the labels they are matched by, and labels it groups or joins by.

    Example:
        >>> names('sum by (arm) (rate(a_total{group="f"}[5m])) / on (arm) b:c')
        ({'a_total': {'group'}, 'b:c': set()}, {'arm'})
    """
    metrics: dict[str, set[str]] = {}
    grouping: set[str] = set()
    tokens = [*_TOKEN.findall(expression), ""]
    inside, metric, at = "", "", 0
    while at < len(tokens) - 1:
        token, after = tokens[at], tokens[at + 1]
        word = token[0].isalpha() or token[0] in "_:"
        if token in "})":
            inside = ""
        elif token == "{":
            inside = token
        elif word and inside == "{":
            metrics.setdefault(metric, set()).add(token)
        elif word and inside == "by":
            grouping.add(token)
        elif token in _GROUPING:
            inside, at = ("by", at + 1) if after == "(" else ("", at)
        elif word and after not in ("(", *_GROUPING) and token not in _SETS:
            metric = token
            metrics.setdefault(metric, set())
        at += 1
    return metrics, grouping


@cache
def exposed() -> dict[str, set[str]]:
    """Labels by metric of everything that the telemetry of all roles shows."""
    day = Day()
    for bad in (False, True):
        day.pass_by(10, bad=bad)
    return {
        sample.name: set(sample.labels)
        for role in day.roles
        for family in text_string_to_metric_families(role.text())
        for sample in family.samples
    }


@cache
def recorded() -> dict[str, str]:
    """Expressions of the recording rules by name."""
    groups = yaml.safe_load((ROOT / "deploy" / "rules.yaml").read_text())["groups"]
    return {rule["record"]: rule["expr"] for group in groups for rule in group["rules"] if "record" in rule}


def labels_of(metric: str) -> set[str] | None:
    """The labels that a metric can have; None where nothing shows or records it."""
    if metric in OWN:
        return OWN[metric]
    if metric in recorded():
        found = [labels_of(name) for name in names(recorded()[metric])[0]]
        return set().union(*(labels for labels in found if labels))
    return exposed()[metric] | TARGET if metric in exposed() else None


def unknown(expression: str) -> list[str]:
    """Metrics and labels of an expression that nothing shows."""
    metrics, grouping = names(expression)
    known = {metric: labels_of(metric) for metric in metrics}
    missing = [metric for metric, labels in known.items() if labels is None]
    for metric, matched in metrics.items():
        missing += [f"{metric}{{{label}}}" for label in sorted(matched - (known[metric] or matched))]
    anywhere = set().union(*(labels or set() for labels in known.values())) | {"le"}
    return missing + sorted(grouping - anywhere)
