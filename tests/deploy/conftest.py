"""A Prometheus over the shipped configuration, and processes that it discovers and scrapes."""

import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from services.telemetry import Telemetry

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-this-test"


def tool(name: str) -> str:
    """Where Prometheus' program is; skips the test where it is not."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install --no-install-recommends prometheus")
    return found


class _Targets(BaseHTTPRequestHandler):
    """The service discovery of `GET /v1/metrics/targets`, token checked."""

    def __init__(self, found: Sequence[object], *args: Any) -> None:
        self.found = found
        super().__init__(*args)

    def do_GET(self) -> None:
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}" and self.path == "/v1/metrics/targets"
        body = json.dumps(self.found if allowed else {}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def announced(processes: Sequence[Telemetry], *gone: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Serve these processes and announce them, with `gone` ones that do not answer; the address, and theirs by name."""
    found = {process.process: f"127.0.0.1:{process.serve(TOKEN)}" for process in processes}
    found |= dict.fromkeys(gone, "127.0.0.1:1")
    targets = [{"targets": [at], "labels": {"process": process}} for process, at in found.items()]
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Targets, targets))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", found
    finally:
        server.shutdown()
        server.server_close()
        for process in processes:
            process.close()


def configured(folder: Path, targets: str, token: str = TOKEN) -> Path:
    """The shipped files, with this test's address and token, and in a hurry."""
    kept = folder / "metrics.token"
    kept.write_text(token)
    changes = {
        "prometheus.yaml": (
            ("/etc/plurank/metrics.token", str(kept)),
            ("127.0.0.1:8000", targets),
            ("scrape_interval: 5s", "scrape_interval: 500ms"),
            ("evaluation_interval: 15s", "evaluation_interval: 1s"),
            ("refresh_interval: 10s", "refresh_interval: 1s"),
        ),
        "rules.yaml": tuple((f"interval: {every}", "interval: 1s") for every in ("15s", "1m", "2m")),
    }
    for name, wanted in changes.items():
        text = (ROOT / "deploy" / name).read_text()
        for old, new in wanted:
            assert old in text
            text = text.replace(old, new)
        (folder / name).write_text(text)
    return folder / "prometheus.yaml"


@contextmanager
def prometheus(folder: Path, targets: str, port: int, token: str = TOKEN) -> Iterator[Callable[..., Any]]:
    """A Prometheus over the shipped configuration and the blocks in folder/data; asks its API."""
    at = f"127.0.0.1:{port}"
    command = [tool("prometheus"), f"--config.file={configured(folder, targets, token)}", f"--web.listen-address={at}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"]
    log = folder / "prometheus.log"
    with log.open("w") as file, subprocess.Popen(command, stderr=file) as process:

        def ask(path: str, **parameters: str) -> Any:
            assert process.poll() is None, log.read_text()
            try:
                asked = f"http://{at}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
                with urllib.request.urlopen(asked, timeout=10) as answer:
                    return json.load(answer)["data"]
            except urllib.error.HTTPError as error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None

        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"http://{at}/-/ready", timeout=2).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline, log.read_text()
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.1)
            yield ask
        finally:
            process.terminate()


def wait_for(found: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Until it is so."""
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
