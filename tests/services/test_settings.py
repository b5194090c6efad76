"""services/settings.py: the file, the environment, and what both refuse."""

from pathlib import Path

import pytest

from ranker import config as declared
from ranker.errors import ConfigError
from services import settings

TOML = """
scale = "tiny"
[[objectives]]
name = "click"
event = "click"
[service]
port = 9000
state = "elsewhere"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "plurank.toml"
    path.write_text(TOML)
    return path


def test_the_file_is_read_and_the_rest_is_default(file: Path) -> None:
    found = settings.load(file)
    assert (found.port, found.host, found.replicas, found.config.scale) == (9000, "127.0.0.1", 2, "tiny")
    assert found.registry_dir == Path("elsewhere/registry").absolute()
    assert found.token_dir == Path("elsewhere/tokens").absolute()


def test_the_environment_wins_over_the_file(file: Path) -> None:
    environ = {
        "PLURANK_CONFIG": str(file),
        "PLURANK_PORT": "9001",
        "PLURANK_TOPIC": "7",
        "PLURANK_SCALE": "small",
        "PLURANK_SERVING__SLATE": "7",
        "PLURANK_LEARNING__RATE": "0.5",
        "PLURANK_KAFKA": '{security_protocol = "SSL"}',
        "PLURANK_GROUPS": '["gender"]',
        "HOME": "/root",
    }
    found = settings.load(environ=environ)
    assert (found.port, found.topic, found.config.scale, found.config.serving.slate) == (9001, "7", "small", 7)
    assert found.config.learning.rate == 0.5
    assert found.kafka == {"security_protocol": "SSL"}
    assert found.config.groups == ("gender",)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("PLURANK_PROT", "PLURANK_PORT"),
        ("PLURANK_SERVING__SLATES", "PLURANK_SERVING__SLATE"),
        ("PLURANK_VW_XYZ", "valid names"),
    ],
)
def test_a_misspelt_name_of_the_environment_is_refused_with_the_nearest(file: Path, name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=near) as caught:
        settings.load(file, {name: "1"})
    assert name in caught.value.thing


def test_an_impossible_value_of_the_environment_names_its_place(file: Path) -> None:
    with pytest.raises(ConfigError, match="environment: PLURANK_PORT"):
        settings.load(file, {"PLURANK_PORT": "many"})


def test_a_misspelt_key_of_the_file_is_refused_with_the_nearest(file: Path) -> None:
    file.write_text(TOML.replace("port =", "prot ="))
    with pytest.raises(ConfigError, match=r"service\.prot.*did you mean 'port'"):
        settings.load(file)


def test_a_known_declaration_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = declared.parse({"objectives": [{"name": "like", "event": "like"}]})
    found = settings.load(config=config, environ={"PLURANK_PORT": "0"})
    assert found.config == config
    assert found.port == 0


def test_no_file_and_no_declaration_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name a plurank"):
        settings.load(tmp_path / "none.toml")
