from pathlib import Path

import pytest

from ranker import config
from ranker.errors import ConfigError

CLICK = {"name": "click", "event": "click"}


def test_the_smallest_configuration_is_one_objective():
    parsed = config.parse({"objectives": [CLICK]})
    assert parsed.objectives[0].wait == 60
    assert parsed.scale == "small"


@pytest.mark.parametrize(
    ("change", "thing", "remedy"),
    [
        ({"objctives": []}, "objctives", "did you mean 'objectives'?"),
        ({"objectives": []}, "objectives", "length >= 1"),
        ({"objectives": [{**CLICK, "wieght": 2}]}, r"objectives\[0\].wieght", "did you mean 'weight'?"),
        ({"objectives": [{**CLICK, "wait": 0}]}, r"objectives\[0\].wait", "> 0"),
        ({"objectives": [{**CLICK, "name": "Click!"}]}, r"objectives\[0\].name", "lower-case"),
        ({"objectives": [CLICK, CLICK]}, r"objectives\[0\].name", "its own name"),
        ({"objectives": [{**CLICK, "graded": {"event": "rate"}}]}, r"objectives\[0\].graded", "exactly one"),
        ({"objectives": [{**CLICK, "kind": "value", "threshold": 3.0}]}, r"objectives\[0\].threshold", "drop it"),
        ({"objectives": [{**CLICK, "weight": float("inf")}]}, r"objectives\[0\].weight", "finite"),
        ({"preference": {"weight": float("nan")}}, "preference.weight", "finite"),
        ({"canary": {"ladder": [0.5, 0.1]}}, "canary.ladder", "larger than the one before"),
        ({"calibration": {"strenght": 1.0}}, "calibration.strenght", "did you mean 'strength'?"),
        ({"calibration": {"strength": 1.5}}, "calibration.strength", "<= 1"),
        ({"calibration": {"divergence": "kld"}}, "calibration.divergence", "kld"),
        ({"calibration": {"target": 0.1, "personal": True}}, "calibration.target", "either sets lambda"),
        ({"interests": ["genres", "genre"], "fields": {"item": {"genres": "categories"}}}, "interests", "did you mean"),
        ({"interests": ["genres", "genres"], "fields": {"item": {"genres": "categories"}}}, "interests", "once"),
        ({"scale": "huge"}, "scale", "Invalid enum value"),
        ({"fields": {"item": {"title": "txet"}}}, "fields.item", "Invalid enum value"),
        ({"interests": "genre", "fields": {"item": {"genres": "categories"}}}, "interests", "did you mean 'genres'?"),
        ({"groups": ["sex"], "fields": {"user": {"sex": "category"}}}, "groups", "never be an input"),
    ],
)
def test_a_slip_is_refused_with_file_key_and_remedy(change, thing, remedy):
    with pytest.raises(ConfigError, match=rf"^plurank.toml: {thing}") as caught:
        config.parse({"objectives": [CLICK], **change}, source="plurank.toml")
    assert remedy in caught.value.remedy


def test_files_that_are_missing_or_not_toml_are_named(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        config.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml.*mend the TOML"):
        config.load(tmp_path / "bad.toml")


def test_the_shipped_configurations_load():
    shipped = sorted((Path(__file__).parents[2] / "deploy").glob("*.toml"))
    assert shipped
    for path in shipped:
        assert config.load(path).objectives
