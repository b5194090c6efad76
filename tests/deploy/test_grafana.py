"""The dashboards of Grafana: their form, and that they read only what the processes show."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import ROOT
from tests.deploy.promql import unknown

GRAFANA = ROOT / "deploy" / "grafana"
BOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))
}
UNITS = {"cps", "eps", "none", "ops", "percentunit", "reqps", "s", "short", "suffix: nats"}
WINDOWS = ("5m", "1h", "1d")


def expressions(board: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Every (expression, legend) of a board by where it stands, with its variables filled in."""
    found = {}
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            for window in WINDOWS if "${window}" in target["expr"] else ("",):
                where = f"{board['uid']}: {panel['title']} {target['refId']} {window}".rstrip()
                found[where] = filled(target["expr"], window), target["legendFormat"]
    for note in board["annotations"]["list"]:
        found[f"{board['uid']}: {note['name']}"] = filled(note["expr"]), note["titleFormat"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"]).groups()
            found[f"{board['uid']}: ${variable['name']}"] = f"count by ({label}) ({series})", f"{{{{{label}}}}}"
    return found


def filled(expression: str, window: str = "") -> str:
    """As Grafana asks it."""
    values = {"${window}": window, "$__rate_interval": "1m", "$arm": "current", "$field": ".+", "$objective": ".+"}
    for name, value in values.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


EXPRESSIONS = {where: one for board in BOARDS.values() for where, one in expressions(board).items()}


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_a_panel_reads_only_what_the_processes_show(where):
    assert unknown(EXPRESSIONS[where][0]) == []


@pytest.mark.parametrize("name", ["service", "learning", "fairness"])
def test_a_board_asks_questions_row_by_row(name):
    board = BOARDS[name]
    assert board["uid"] == f"plurank-{name}"
    assert "id" not in board
    assert board["panels"][0]["type"] == "row"
    for panel in board["panels"]:
        if panel["type"] == "row":
            assert panel["title"].endswith("?")
        else:
            assert panel["description"].endswith((".", "%"))
            assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
            sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert all(source == {"type": "prometheus", "uid": "prometheus"} for source in sources)


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_panels_have_their_own_number_and_place(board):
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
    assert all(a["gridPos"]["y"] <= b["gridPos"]["y"] for a, b in pairwise(panels))


def test_the_window_that_a_reader_chooses_is_one_that_is_recorded():
    window = next(one for one in BOARDS["fairness"]["templating"]["list"] if one["name"] == "window")
    assert tuple(window["query"].split(",")) == WINDOWS
    assert [option["value"] for option in window["options"] if option["selected"]] == [window["current"]["value"]]


def test_provisioning_names_the_source_that_the_boards_ask():
    folder = GRAFANA / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert (source["uid"], source["type"]) == ("prometheus", "prometheus")
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus.yaml").read_text())
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "plurank.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    assert Path(provider["options"]["path"]).is_absolute()
