import io
import socket
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from services import up
from services.doctor import Finding, doctor, examine
from services.offline import configuration_of
from services.settings import Settings
from services.tokens import Tokens


def quiet() -> Console:
    return Console(file=io.StringIO(), width=300)


def by_thing(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.thing: finding for finding in findings}


@pytest.fixture
def written(tmp_path: Path, free_port: int) -> Path:
    """Settings as `up` leaves them behind: nothing runs at their addresses."""
    config = configuration_of(["synthetic"], None, quiet())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = taken.getsockname()[1]
    settings = Settings(
        config=config,
        state=str(tmp_path),
        port=free_port,
        brokers=f"127.0.0.1:{closed}",
        store=f"valkey://127.0.0.1:{closed}/0",
    )
    return up.write_settings(settings, tmp_path / "plurank.toml")


def test_on_a_fresh_machine_nothing_is_broken(tmp_path: Path) -> None:
    found = doctor(None, tmp_path / "var", quiet())
    assert (found["broken"], found["exit"]) == (0, 0)
    states = {finding["thing"]: finding["state"] for finding in found["findings"]}
    assert states["Python"] == states["packages"] == states["disk"] == "ok"
    assert msgspec.json.encode(found)


def test_an_up_that_does_not_run_is_a_note_but_a_missing_deployment_is_broken(written: Path) -> None:
    asleep = by_thing(list(examine(None, written.parent)))
    assert asleep["event log"].state == asleep["store"].state == "note"
    assert asleep["port"].state == "ok"
    awake = by_thing(list(examine(written, written.parent / "elsewhere")))
    assert awake["event log"].state == awake["store"].state == "broken"
    assert "check" in awake["store"].mend


def test_a_token_that_others_can_read_is_broken_and_the_mend_is_a_command(written: Path) -> None:
    folder = written.parent / "tokens"
    Tokens.open(folder)
    assert by_thing(list(examine(None, written.parent)))["tokens"].state == "ok"
    (folder / "rank.token").chmod(0o644)
    tokens = by_thing(list(examine(None, written.parent)))["tokens"]
    assert (tokens.state, tokens.mend) == ("broken", f"chmod 600 {folder}/*")
    assert "rank.token" in tokens.found


def test_a_port_that_another_program_holds_is_broken(written: Path) -> None:
    port = msgspec.toml.decode(written.read_text())["service"]["port"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        found = by_thing(list(examine(None, written.parent)))["port"]
    assert found.state == "broken"
    assert "set [service] port" in found.mend


def test_a_misspelt_configuration_is_found_with_the_nearest_key(written: Path) -> None:
    written.write_text(written.read_text().replace("replicas", "replicsa"))
    console = quiet()
    found = doctor(None, written.parent, console)
    assert found["exit"] == 1
    assert "did you mean 'replicas'?" in console.file.getvalue()
