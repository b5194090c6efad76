"""`plurank up` as a person runs it: one command, a pasted curl, Ctrl-C, and the same again on what it left."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ranker.registry import Registry
from services import embedded, live
from services.client import Client
from services.tokens import Tokens
from tests.deploy.conftest import prometheus, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

READY_S, LEARN_S, STOP_S = 150.0, 120.0, 8.0
PLURANK = [sys.executable, "-m", "services.cli"]
MARK = "E2E_RUN"


class Up:
    """A running `plurank up --data synthetic`."""

    def __init__(self, state: Path, port: int) -> None:
        self.state, self.port, self.mark = state, port, uuid.uuid4().hex
        self.url = f"http://127.0.0.1:{port}"
        self.output = state.parent / f"{self.mark}.out"
        command = [*PLURANK, "up", "--data", "synthetic", "--state", str(state), "--port", str(port), "--json"]
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, MARK: self.mark, "COLUMNS": "200"}
            )

    def until(self, true: Callable[[], Any], seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := true()):
            assert self.process.poll() is None, f"up ended early:\n{self.said()}"
            assert time.monotonic() < deadline, f"not within {seconds:g} s:\n{self.said()[-3000:]}{self.logs()}"
            time.sleep(0.1)
        return found

    def said(self) -> str:
        return self.output.read_text("utf-8")

    def logs(self) -> str:
        found = sorted((self.state / "log").glob("*.log"))
        return "".join(f"\n== {path.name}\n{path.read_text('utf-8', 'replace')[-1500:]}" for path in found)

    def ready(self) -> list[str]:
        """Wait for the first ranked answer; returns the words of the curl that is shown."""
        self.until(lambda: "audience " in self.said(), READY_S)
        return shlex.split(next(line for line in self.said().splitlines() if line.startswith("curl ")))

    def promoted(self) -> int:
        return sum(decision.action == "promote" for decision in Registry(self.state / "registry").decisions())

    def stop(self, number: int) -> float:
        begun = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(30)
        return time.monotonic() - begun

    def left(self) -> list[str]:
        """Processes that carry this run's mark."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found


@contextlib.contextmanager
def running(state: Path, port: int) -> Iterator[Up]:
    up = Up(state, port)
    try:
        yield up
    finally:
        if up.process.poll() is None:
            up.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                up.process.wait(20)
            up.process.kill()
            up.process.wait()


def test_up_ranks_learns_promotes_and_ends_and_goes_on_from_what_it_left(
    isolated: Callable[[Callable[[], None]], None], tmp_path: Path, free_port: int
) -> None:
    state = tmp_path / "var"

    def first() -> None:
        with running(state, free_port) as up:
            curl = up.ready()
            answer = paste(curl)
            assert [item["position"] for item in answer["items"]] == list(range(10))
            assert answer["degraded"] is False
            up.until(lambda: up.promoted() >= 3, LEARN_S)
            up.until(lambda: live.gather(state)["version"] != Registry(state / "registry").versions()[0], 30)
            facts = live.gather(state)
            assert set(facts["answers"]) == {"200"}
            assert facts["audience"] == "people, items and clicks are all synthetic"
            assert {"profiles", "trainer", "monitor"} <= set(facts["lag"])
            assert all(part in up.said() for part in ("events/s", "lag", "AUC like", "NDCG taste_group"))
            command_line_talks_to_it(state)
            every_process_shows_its_metrics(state, up.url)
            a_prometheus_finds_and_scrapes_them_all(tmp_path, up)
            taken = up.stop(signal.SIGINT)
            ends(up, taken)

    def second() -> None:
        versions = Registry(state / "registry").versions()
        with running(state, free_port) as up:
            up.ready()
            assert "had not worked off are in it again" in up.said()
            assert "history " not in up.said()
            assert "model     v0" in up.said()
            up.until(lambda: Registry(state / "registry").versions()[-1] not in versions, LEARN_S)
            done = subprocess.run([*PLURANK, "down", "--state", str(state)], check=False, capture_output=True)
            assert done.returncode == 0
            up.process.wait(5)
            ends(up, 0.0)

    isolated(first)
    isolated(second)


def paste(curl: list[str]) -> Any:
    """Run the shown command; without curl here, send what it says."""
    if shutil.which("curl"):
        return msgspec.json.decode(subprocess.run(curl, check=True, capture_output=True).stdout)
    url, token = curl[2].removesuffix("/v1/rank"), curl[4].removeprefix("Authorization: Bearer ")
    with Client(url, token) as client:
        return client.call("POST", "/v1/rank", json.loads(curl[-1]))


def command_line_talks_to_it(state: Path) -> None:
    def run(*words: str) -> Any:
        done = subprocess.run(
            [*PLURANK, *words, "--state", str(state), "--json"], check=False, capture_output=True, cwd=state
        )
        assert done.returncode == 0, done.stderr.decode()
        return msgspec.json.decode(done.stdout)

    assert [item["id"] for item in run("rank", "--user", "p1", "--items", "s1,s2")["items"]] != []
    assert len(run("recommend", "--user", "p1", "--limit", "5")["items"]) == 5
    assert run("models", "list")["pointer"]["version"]
    assert run("doctor")["broken"] == 0


def every_process_shows_its_metrics(state: Path, url: str) -> None:
    with Client(url, Tokens.open(state / "tokens")["metrics"]) as client:
        targets = client.call("GET", "/v1/metrics/targets")
        text = client.call("GET", "/metrics")
    roles = {word for target in targets for word in target["labels"].values()}
    assert {"trainer", "profiles", "monitor"} <= {role.split("-")[0] for role in roles}
    for name in ("plurank_learned_events_total", "plurank_folded_events_total", "plurank_group_impressions"):
        assert name in text


def a_prometheus_finds_and_scrapes_them_all(folder: Path, up: Up) -> None:
    """By the shipped configuration: discovery at the API, the token of the scope, every replica and loop."""
    token, port = Tokens.open(up.state / "tokens")["metrics"], embedded.free_port()

    def found(expression: str) -> dict[str, float]:
        series = ask("query", query=expression)["result"]
        return {one["metric"]["process"]: float(one["value"][1]) for one in series}

    with prometheus(folder, up.url.removeprefix("http://"), port, token) as ask:
        wait_for(lambda: len(found("up == 1")) == 5, "two replicas and three loops are scraped")
        assert {name.split("-")[0] for name in found("up")} == {"api", "profiles", "trainer", "monitor"}
        assert 0 not in found("up").values()
        assert sum(found("sum by (process) (plurank_requests_total)").values()) > 0
        assert found("plurank_learned_events_total")["trainer"] > 0
        assert found("plurank_folded_events_total")["profiles"] > 0
        assert len(found("max by (process) (plurank_version_info)")) >= 3  # replicas and trainer name a version


def ends(up: Up, taken: float) -> None:
    assert up.process.returncode == 0, up.said()[-2000:]
    # a machine that does other work at the same time is given more, in proportion to its load
    allowed = STOP_S * max(1.0, os.getloadavg()[0] / (2 * (os.cpu_count() or 1)))
    assert taken < allowed, up.said()[-2000:]
    assert up.left() == []
    facts = json.loads(up.said().splitlines()[-1])
    assert facts["stopped_in"] < STOP_S
    if allowed == STOP_S:
        assert "killed" not in up.said(), up.said()[-2000:]


def test_up_says_in_one_line_what_is_wrong_and_leaves_nothing_running(tmp_path: Path, free_port: int) -> None:
    mark = uuid.uuid4().hex
    done = subprocess.run(
        [*PLURANK, "up", "--data", "nowhere.jsonl", "--state", str(tmp_path), "--port", str(free_port)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, MARK: mark},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("plurank: nowhere.jsonl")
    assert done.stderr.count("\n") == 1
