import doctest
import importlib

import pytest

from benchmarks.report import machine, markdown, median_rows, stamp, this_command


@pytest.mark.parametrize("name", ["report", "streaming", "freshness", "soak", "__main__"])
def test_the_examples_of_every_benchmark_hold(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"benchmarks.{name}")).failed == 0


def test_medians_are_taken_of_figures_alone_and_reach_into_tables_within() -> None:
    runs = [
        [{"arm": "rank", "scale": "small", "cpu_ms": cpu, "held": True, "stages_ms": {"score": 2 * cpu}}]
        for cpu in (1.0, 5.0, 2.0)
    ]
    expected = {"arm": "rank", "scale": "small", "cpu_ms": 2.0, "held": True, "stages_ms": {"score": 4.0}}
    assert median_rows(runs) == [expected]


def test_runs_of_different_length_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        median_rows([[{"arm": "a"}, {"arm": "b"}], [{"arm": "a"}]])


def test_a_figure_missing_in_one_run_does_not_harm_the_median_of_the_others() -> None:
    assert median_rows([[{"p50_ms": 1.0}], [{}], [{"p50_ms": 3.0}]]) == [{"p50_ms": 2.0}]


def test_large_figures_are_written_in_full_and_small_ones_with_three_digits() -> None:
    assert (
        markdown([{"arm": "x", "a": 123456.7, "b": 0.012345, "c": 7}]).splitlines()[-1]
        == "| x | 123,457 | 0.0123 | 7 |"
    )


def test_the_stamp_names_commit_and_machine() -> None:
    found = machine()
    words = stamp(found)
    assert found["commit"] in words
    assert f"{found['cores']} cores" in words


def test_a_command_is_told_without_where_it_wrote_to() -> None:
    words = ["--seconds", "60", "--out", "somewhere", "--", "--port", "8099"]
    assert this_command("benchmarks.soak", words) == "python -m benchmarks.soak --seconds 60 -- --port 8099"
