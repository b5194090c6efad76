import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from ranker import events
from ranker.config import Calibration
from ranker.errors import ConfigError, DataError, RegistryError
from ranker.registry import Registry
from ranker.simulation import Population, Tastes
from services import settings as settings_file
from services import up
from services.offline import configuration_of, first_version
from services.settings import Settings
from streaming import monitor, profiles, trainer


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.mark.parametrize("data", ["ml-100k", "synthetic"])
def test_the_settings_that_up_writes_are_read_back_equal(tmp_path: Path, data: str) -> None:
    config = configuration_of([data], None, quiet())
    settings = Settings(config=config, state=str(tmp_path), port=1234, brokers="127.0.0.1:5", segmented=True)
    assert settings_file.load(up.write_settings(settings, tmp_path / "plurank.toml")) == settings


def test_the_example_curl_survives_the_shell() -> None:
    words = shlex.split(up.curl("http://127.0.0.1:8080", "t-o_k", "o'hara", ["50", "a b"]))
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:8080/v1/rank"]
    assert "Authorization: Bearer t-o_k" in words
    assert json.loads(words[-1]) == {"user": "o'hara", "items": ["50", "a b"]}


def test_the_first_request_is_about_people_and_items_of_the_log() -> None:
    population = Population(Tastes(users=20, items=30, seed=0))
    user, items = up.example(population.events(ratings=3))
    assert user in population.users
    assert len(items) == len(set(items)) == 10
    assert set(items) <= set(population.items)


def test_two_ups_on_one_state_folder_do_not_meet(tmp_path: Path) -> None:
    holder = f"""
import time
from pathlib import Path
from services.up import alone
with alone(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert (tmp_path / up.PID).read_text() == str(other.pid)
        with pytest.raises(ConfigError, match="`plurank down` ends that"), up.alone(tmp_path):
            pass
        other.kill()
    with up.alone(tmp_path):
        assert (tmp_path / up.PID).read_text() == str(os.getpid())
    assert not (tmp_path / up.PID).exists()


def test_a_state_of_another_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    console, registry = quiet(), Registry(tmp_path / "registry")
    synthetic = configuration_of(["synthetic"], None, console)
    up.fits(synthetic, registry)
    people = Population(Tastes(users=5, items=8, seed=0))
    first_version(synthetic, lambda: people.events(ratings=2), registry, console, epochs=1, data="synthetic")
    up.fits(synthetic, registry)
    up.fits(msgspec.structs.replace(synthetic, calibration=Calibration(strength=0.9)), registry)
    with pytest.raises(ConfigError, match=r"scale: 'small'.*holds a model with 'tiny'; name another folder"):
        up.fits(msgspec.structs.replace(synthetic, scale="small"), registry)
    with pytest.raises(ConfigError, match="another folder with --state"):
        up.fits(configuration_of(["ml-100k"], None, console), registry)


def test_the_groups_are_those_of_the_loops() -> None:
    assert (profiles.GROUP, trainer.GROUP, monitor.GROUP) == up.GROUPS


def test_up_itself_loads_no_torch() -> None:
    heavy = "import sys, services.up, services.cli; print([name for name in ('torch', 'faiss') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_first_version_is_learned_in_a_process_of_its_own_that_ends(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    people = Population(Tastes(users=5, items=8, seed=0))
    log.write_bytes(b"\n".join(events.encode(event) for event in people.events(ratings=2)))
    plan = up.Plan(data=(str(log),), state=tmp_path)
    settings = Settings(config=configuration_of(["synthetic"], None, quiet()), state=str(tmp_path))
    with contextlib.closing(up._Learning(plan, settings, quiet())) as learning:
        assert learning.served is None
        learning.learn()
        assert learning.served == Registry(settings.registry_dir).current().version
    assert learning._process.returncode is not None
    other = msgspec.structs.replace(settings, config=msgspec.structs.replace(settings.config, scale="small"))
    with pytest.raises(ConfigError, match="another folder with --state"):
        up._Learning(plan, other, quiet())


def test_what_hinders_the_first_version_is_told_as_it_is_and_a_process_that_ended_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    settings = Settings(config=configuration_of(["synthetic"], None, quiet()), state=str(tmp_path))
    plan = up.Plan(data=(str(tmp_path / "empty.jsonl"),), state=tmp_path)
    with contextlib.closing(up._Learning(plan, settings, quiet())) as learning:
        with pytest.raises(DataError, match="no events"):
            learning.learn()
        with pytest.raises(RegistryError, match="ended, see above"):
            learning.learn()
