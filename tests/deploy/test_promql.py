"""The reader of expressions sees what is not there."""

import pytest

from tests.deploy.day import Day
from tests.deploy.promql import exposed, names, unknown


def test_metrics_matched_labels_and_grouping_are_told_apart():
    expression = 'max by (arm) (rate(a_total{group="f", arm!="on"}[5m] offset 1h)) / on (arm) group_left () b:c{} > 0.2'
    assert names(expression) == ({"a_total": {"group", "arm"}, "b:c": set()}, {"arm"})


@pytest.mark.parametrize(
    ("expression", "missing"),
    [
        ("sum(rate(plurank_group_slates_total[5m]))", []),
        ("plurank_group_slate_total", ["plurank_group_slate_total"]),
        ('plurank_group_slates_total{objective="click"}', ["plurank_group_slates_total{objective}"]),
        ("sum by (objective) (plurank_group_slates_total)", ["objective"]),
        ("sum by (objective) (plurank_group_outcomes_total)", []),
        ("plurank:group_ndcg:mean2h", ["plurank:group_ndcg:mean2h"]),
        ('plurank:group_miscalibration:gap1h{objective="click"}', ["plurank:group_miscalibration:gap1h{objective}"]),
    ],
)
def test_a_metric_or_label_that_nothing_shows_is_named(expression, missing):
    assert unknown(expression) == missing


def test_the_day_shows_every_metric_that_telemetry_has():
    roles = Day().roles
    families = {family.name for role in roles for family in role.registry.collect()}
    # counters and histograms show samples under their family's name with an ending
    shown = {name for family in families for name in exposed() if name.startswith(family)}
    assert {family for family in families if not any(name.startswith(family) for name in shown)} == set()
