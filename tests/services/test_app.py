"""services/app.py without Ray: the parts that prepare it. The whole of it is in tests/e2e/test_service.py."""

import os
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from services import app

TEMPLATE = """frontend prometheus
    bind :9101
frontend http_frontend
    bind 127.0.0.1:8080
listen stats
  bind *:8404
"""


def test_haproxys_own_pages_are_kept_to_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    echo = tmp_path / "echo it"
    echo.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    echo.chmod(0o700)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(echo))
    settings = app._haproxy(tmp_path)
    wrapper = Path(settings["RAY_SERVE_HAPROXY_BINARY_PATH"])
    assert stat.S_IMODE(wrapper.stat().st_mode) == 0o700
    config = tmp_path / "haproxy.cfg"
    config.write_text(TEMPLATE)
    said = subprocess.run(
        [wrapper, "-db", "-f", config, "-sf", "17"], capture_output=True, text=True, check=True
    ).stdout
    assert said.split() == ["-db", "-f", str(config), "-sf", "17"]
    assert [line.split()[1] for line in config.read_text().splitlines() if "bind" in line] == [
        "127.0.0.1:9101",
        "127.0.0.1:8080",
        "127.0.0.1:8404",
    ]


def test_a_replica_that_has_nothing_to_do_is_asked_first_and_the_fallback_never_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/bin/true")
    wrapper, config = Path(app._haproxy(tmp_path)["RAY_SERVE_HAPROXY_BINARY_PATH"]), tmp_path / "haproxy.cfg"
    servers = ["server one 127.0.0.1:1 check observe layer4 error-limit 3", "server two 127.0.0.1:2 check"]
    fallback, default = "server last 127.0.0.1:3 check backup", "default-server fastinter 250ms inter 5s check"
    config.write_text("".join(f"    {line}\n" for line in (default, *servers, fallback)))
    subprocess.run([wrapper, "-f", config], check=True)
    assert [line.strip() for line in config.read_text().splitlines()] == [
        default,
        servers[0],
        "use-server one if { srv_conn(one) lt 1 }",
        servers[1],
        "use-server two if { srv_conn(two) lt 1 }",
        fallback,
    ]


def test_replicas_get_ports_that_are_free() -> None:
    ports = app._free_range()
    for port in ports[:3]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            assert app._taken(port)
    assert ports.start >= 20_000
    assert ports.stop <= 30_000


def test_signals_are_as_they_were_after_ray_took_them() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with app._own_signals():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == before


def test_nothing_of_ray_is_imported_before_it_is_started() -> None:
    code = "import sys; from services import app; sys.exit('ray' in sys.modules or 'fastapi' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run(["python", "-c", code], env=env, check=False).returncode == 0
