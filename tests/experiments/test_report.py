import argparse
import json
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import report
from experiments.report import Result, Row
from ranker.errors import RequestError

RESULT = Result(
    name="online",
    data="log <1>",
    seeds=(0, 1),
    rows=(
        Row(arm="frozen", metric="auc:click", mean=0.6, low=0.58, high=0.62, n=2),
        Row(arm="sync-10", metric="auc:click", mean=0.7, low=0.69, high=0.71, n=2),
        Row(arm="sync-10", metric="auc:dwell", mean=float("nan"), low=float("nan"), high=float("nan"), n=0),
    ),
    criterion="sync-10 beats frozen",
    holds=True,
)


def test_two_seeds_give_the_t_interval() -> None:
    row = report.over_seeds("a", "m", [0.0, 1.0])
    assert row.mean == 0.5
    assert row.high - row.mean == pytest.approx(12.706 * 0.5, rel=1e-3)


def test_one_seed_has_no_width() -> None:
    row = report.over_seeds("a", "m", [0.25])
    assert (row.low, row.mean, row.high, row.n) == (0.25, 0.25, 0.25, 1)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_the_interval_holds_its_mean(values: list[float]) -> None:
    row = report.over_seeds("a", "m", values)
    assert row.low <= row.mean <= row.high


def test_json_is_strict_and_names_the_contract() -> None:
    found = json.loads(report.to_json(RESULT), parse_constant=pytest.fail)
    assert set(found) == {"name", "data", "seeds", "rows", "criterion", "holds"}
    assert set(found["rows"][0]) == {"arm", "metric", "mean", "low", "high", "n"}
    assert found["rows"][2]["mean"] is None


def test_the_picture_is_xml_with_a_dot_for_each_finite_row() -> None:
    root = ElementTree.fromstring(report.svg(RESULT))
    assert sum(element.tag.endswith("circle") for element in root.iter()) == 2


def test_publish_prints_one_json_line_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(json=True, plot=True)
    report.publish(RESULT, options, folder=tmp_path)
    assert json.loads(capsys.readouterr().out)["holds"] is True
    assert (tmp_path / "online.svg").is_file()


def test_the_picture_may_leave_rows_out(tmp_path: Path) -> None:
    options = argparse.Namespace(json=False, plot=True)
    report.publish(RESULT, options, folder=tmp_path, draw=lambda row: row.arm == "sync-10")
    drawn = (tmp_path / "online.svg").read_text()
    assert "sync-10 0.7" in drawn
    assert "frozen 0.6" not in drawn


def test_publish_prints_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    report.publish(RESULT, argparse.Namespace(json=False, plot=False))
    out = capsys.readouterr().out
    assert "0.7000 ± 0.0100" in out
    assert "holds" in out


def test_seeds_count_from_the_first() -> None:
    parser = report.arguments("online", "")
    assert report.seeds_of(parser.parse_args(["--seed", "4", "--seeds", "2"])) == (4, 5)
    with pytest.raises(RequestError, match="at least one"):
        report.seeds_of(parser.parse_args(["--seeds", "0"]))


def test_a_row_is_found_by_arm_and_metric() -> None:
    assert RESULT.row("frozen", "auc:click").mean == 0.6
    with pytest.raises(RequestError, match="measures"):
        RESULT.row("frozen", "nothing")


def test_many_metrics_stand_below_each_other():
    rows = tuple(report.over_seeds("arm", f"metric{n}", [0.1 * n]) for n in range(9))
    shown = report.table(Result(name="x", data="d", seeds=(0,), rows=rows, criterion="c", holds=True))
    assert [column.header for column in shown.columns] == ["metric", "arm", "mean"]
    assert shown.row_count == 9


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("feedback_loop", ["--rounds", "0"]),
        ("feedback_loop", ["--slates", "0"]),
        ("gate", ["--courses", "0"]),
        ("gate", ["--chains", "-1"]),
        ("gate", ["--windows", "1000", "0"]),
        ("echo_chamber", ["--novelty", "2"]),
        ("echo_chamber", ["--gap", "nan"]),
    ],
)
def test_an_option_out_of_range_is_refused_before_anything_runs(
    name: str, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        import_module(f"experiments.{name}").main(given)
    assert f"{given[0]}: {given[-1]} is not usable; " in capsys.readouterr().err
