"""Reports: what is found, shown and left blank."""

import json

import pytest

from ranker.report import Report, Row


def row(arm: str, metric: str, mean: float, part: str = "all") -> Row:
    return Row(arm=arm, metric=metric, mean=mean, low=mean - 0.1, high=mean + 0.1, n=3, part=part)


@pytest.fixture
def report() -> Report:
    bare = Row(arm="b", metric="x", mean=0.125, low=float("nan"), high=float("nan"), n=3, part="warm")
    rows = (row("a", "x", 0.5, "warm"), bare, row("b", "y", float("nan"), "warm"), row("a", "x", 0.25, "cold"))
    return Report(data="log", protocol="some", seed=1, rows=rows)


def test_rows_are_found_by_arm_metric_and_part(report: Report) -> None:
    assert report.find("a", "x", "cold") is report.rows[3]
    assert report.find("a", "x") is None


def test_tables_leave_blank_what_was_not_measured(report: Report) -> None:
    header, lines = report.table("warm")
    assert header == ["arm", "x", "y", "n"]
    assert lines == [["a", "0.500 (0.400 to 0.600)", "", "3"], ["b", "0.125", "", "3"]]
    assert report.parts == ["warm", "cold"]


def test_markdown_has_a_table_for_each_part(report: Report) -> None:
    text = report.markdown()
    assert text.count("| arm |") == 2
    assert "**cold**" in text


def test_plain_data_is_strict_json(report: Report) -> None:
    data = json.loads(json.dumps(report.plain(), allow_nan=False))
    assert data["rows"][2]["mean"] is None
