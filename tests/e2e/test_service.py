"""The service as it is run: Ray Serve and HAProxy in a process of its own, a real broker, store, log and profiles."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from ranker import config as declared
from ranker import events, evidence
from ranker.catalogue import Catalogue, Item
from ranker.errors import NotFound
from ranker.gate import Verdict
from ranker.golden import Case, Golden
from ranker.model import Model
from ranker.registry import Registry
from services import embedded
from services.client import Client
from services.embedded import Broker, Valkey
from services.supervisor import descendants
from services.tokens import Tokens
from streaming import log
from streaming.log import Address, Reader
from streaming.profiles import Profiles
from streaming.store import Store

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

START_S = 240.0
STOP_S = 8.0
GENRES = ("comedy", "drama", "horror")
ITEMS = [Item(f"i{n}", {"genres": [GENRES[n % 3]]}, 1) for n in range(30)]
IDS = [item.id for item in ITEMS]
CONFIG: dict[str, Any] = {
    "scale": "tiny",
    "interests": "genres",
    "fields": {"item": {"genres": "categories"}},
    "objectives": [{"name": "click", "event": "click", "biased": True}, {"name": "like", "event": "like"}],
}


@dataclass
class Running:
    """A service in a process of its own."""

    process: "subprocess.Popen[bytes]"
    url: str
    address: Address
    registry: Registry
    tokens: Tokens

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """A connection of its own, with the admin token."""
        with contextlib.closing(Client(self.url, self.tokens["admin"])) as client:
            yield client

    def version(self, seed: int) -> str:
        """Save a version and promote it."""
        config = declared.parse(CONFIG)
        weights = Model(config, torch.Generator().manual_seed(seed)).state_dict()
        catalogue = Catalogue(config)
        for item in ITEMS:
            catalogue.put(item)
        golden = Golden.record(config, weights, catalogue, [Case(evidence.EMPTY, {}, IDS[:4], 5)])
        version = self.registry.save(weights, config, metrics={}, golden=golden, parent=None)
        self.registry.promote(version, Verdict("pass"), who="test")
        return version


@pytest.fixture(scope="module")
def running(broker: Broker, valkey_server: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    address = broker.address("service-e2e")
    log.create(address)
    port = embedded.free_port()
    place = {"brokers": address.brokers, "topic": address.topic, "segmented": address.segmented, "port": port}
    file = folder / "plurank.toml"
    database = valkey_server.url.rsplit("/", 1)[0] + "/5"  # apart from the key spaces of other tests
    file.write_text(tomli_w.dumps({**CONFIG, "service": {**place, "store": database, "state": str(folder)}}))
    tokens = Tokens.open(folder / "tokens")
    registry = Registry(folder / "registry")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PLURANK_")}
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "run", "service", "--child", "--config", str(file)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
        )
    stop = threading.Event()
    store = Store(database)
    profiles = Profiles(declared.parse(CONFIG), address, store)
    thread = threading.Thread(target=lambda: list(profiles.run(stop)), daemon=True)
    thread.start()
    service = Running(process, f"http://127.0.0.1:{port}", address, registry, tokens)
    try:
        service.version(seed=0)
        _wait_ready(service, folder / "out")
        items = [
            events.Item(
                id=f"e-{one.id}", timestamp=1, item=one.id, fields=[events.Field("genres", one.fields["genres"])]
            )
            for one in ITEMS
        ]
        with service.client() as client:
            assert client.send("POST", "/v1/feedback", items).status == 200
        good, deadline = 0, time.monotonic() + START_S
        with ThreadPoolExecutor(4) as pool:  # both replicas look each second, and one at work leaves some to the other
            while good < 10 and time.monotonic() < deadline:
                good = good + 1 if all(pool.map(lambda _: len(_recommended(service)) == len(ITEMS), range(4))) else 0
                time.sleep(0.05)
        assert good == 10, "the replicas do not know the items"
        yield service
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()
        stop.set()
        thread.join(10)
        store.close()


def _recommended(service: Running) -> list[dict[str, object]]:
    with service.client() as client:
        found: list[dict[str, object]] = client.call("POST", "/v1/recommend", {"user": "new", "limit": 30})["items"]
        return found


def _wait_ready(service: Running, out: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(NotFound), service.client() as client:
            answer = client.send("GET", "/readyz")
            if answer.status == 200:
                return
            print(answer)  # shown where the test fails
        assert service.process.poll() is None, out.read_text()[-3000:]
        assert time.monotonic() < deadline, out.read_text()[-3000:]
        time.sleep(0.2)


def test_feedback_is_evidence_at_once_and_changes_the_next_ranking(running: Running) -> None:
    with running.client() as client:
        _react(client)


def _react(client: Client) -> None:
    before = client.call("POST", "/v1/rank", {"user": "ann", "items": IDS})
    assert (before["degraded"], before["evidence"]) == (False, {"history": 0, "answers": 0, "words": 0})
    clicks = [
        {"event": "interaction", "id": f"c{n}", "timestamp": int(time.time() * 1000), "user": "ann",
         "item": item, "type": "click", "ranking": before["ranking"]}
        for n, item in enumerate(("i1", "i4", "i7"))
    ]  # fmt: skip
    begun = time.monotonic()
    token = client.call("POST", "/v1/feedback", clicks)["evidence_token"]
    after = client.call("POST", "/v1/rank", {"user": "ann", "items": IDS, "evidence_token": token})
    assert time.monotonic() - begun < 1.0
    assert (after["degraded"], after["evidence"]) == (False, {"history": 3, "answers": 0, "words": 0})
    scores = [{item["id"]: item["score"] for item in answer["items"]} for answer in (before, after)]
    assert scores[0] != scores[1]
    assert after["miscalibration"] is not None


def test_what_was_served_is_in_the_log(running: Running) -> None:
    with running.client() as client:
        answer = client.call("POST", "/v1/rank", {"user": "logged", "items": IDS, "limit": 5})
    found = _logged(running.address, {answer["ranking"]})[answer["ranking"]]
    assert (found.version, [shown.id for shown in found.items]) == (
        answer["version"],
        [item["id"] for item in answer["items"]],
    )


def _logged(address: Address, wanted: set[str]) -> dict[str, events.Ranking]:
    """Those of the rankings that the log holds within ten seconds."""
    found: dict[str, events.Ranking] = {}
    reader, deadline = Reader(address), time.monotonic() + 10
    while found.keys() < wanted and time.monotonic() < deadline:
        for record in reader.poll():
            event = events.decode(record.value)
            if isinstance(event, events.Ranking) and event.id in wanted:
                found[event.id] = event
    reader.close()
    return found


def test_versions_change_under_load_and_every_answer_is_200(running: Running) -> None:
    stop, statuses, versions = threading.Event(), Counter[int](), set[str]()

    def load() -> None:
        with running.client() as client:
            while not stop.is_set():
                answer = client.send("POST", "/v1/rank", {"user": "bob", "items": IDS, "limit": 10})
                statuses[answer.status] += 1
                if answer.status == 200:
                    versions.add(answer.body["version"])

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        promoted = set()
        for seed in range(1, 6):
            promoted.add(version := running.version(seed))
            deadline = time.monotonic() + 20
            while version not in versions:
                assert time.monotonic() < deadline, f"{version} is not served"
                time.sleep(0.02)
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert set(statuses) == {200}, statuses
    assert versions >= promoted


def test_bad_requests_come_through_the_proxy_as_problems(running: Running) -> None:
    with running.client() as client:
        for body, status in (({"user": "ann", "items": []}, 422), ({"user": "ann", "items": ["a" * 9_000_000]}, 413)):
            answer = client.send("POST", "/v1/rank", body)
            assert (answer.status, answer.body["status"]) == (status, status)
            assert answer.body["remedy"]
        text = client.send("GET", "/metrics").body
        processes = {target["labels"]["process"] for target in client.call("GET", "/v1/metrics/targets")}
    assert text.count('status="413"') >= 1
    assert len(processes) == 2
    assert all(f'process="{process}"' in text for process in processes)
    with contextlib.closing(Client(running.url)) as stranger:
        assert stranger.send("POST", "/v1/rank", {"user": "ann", "items": ["a"]}).status == 401


def test_a_person_is_asked_heard_and_forgotten_through_the_proxy(running: Running) -> None:
    one = "/v1/users/nell%2F1"
    with running.client() as client:
        question = client.call("GET", f"{one}/question")["question"]
        body = client.call("POST", f"{one}/answers", {"answers": [question["choices"][0]["answer"]]})
        assert (body["user"], body["progress"]["answers"]) == ("nell/1", 1)
        read = f"{one}/question?evidence_token={body['evidence_token']}"
        assert client.call("GET", read)["question"]["items"] == body["question"]["items"]  # whichever replica answers
        words = client.call("PUT", f"{one}/summary", {"text": "no horror", "evidence_token": body["evidence_token"]})
        assert words["sentences"][-1] == "You avoid horror."
        told = client.call("GET", f"{one}/taste?evidence_token={words['evidence_token']}")
        assert (told["evidence"]["answers"], told["evidence"]["words"]) == (1, 1)
        gone = client.call("DELETE", one)
        after = {"user": "nell/1", "items": IDS, "evidence_token": gone["evidence_token"]}
        assert set(client.call("POST", "/v1/rank", after)["evidence"].values()) == {0}
        assert client.send("DELETE", "/v1/users/nell/1").status == 404


def test_nothing_listens_beyond_loopback(running: Running) -> None:
    found = [place for pid in descendants(running.process.pid) for place in _listening(pid)]
    assert len(found) > 5
    assert [place for place in found if not (place.startswith("127.") or place in ("::1", "::ffff:127.0.0.1"))] == []


def test_the_service_ends_within_its_time_and_loses_and_leaves_nothing(running: Running) -> None:
    below = descendants(running.process.pid)
    assert len(below) > 5
    with running.client() as client:
        served = {client.call("POST", "/v1/rank", {"user": "late", "items": IDS})["ranking"] for _ in range(20)}
    running.process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    running.process.wait(STOP_S)
    left = [pid for pid in below if Path(f"/proc/{pid}").exists() and _state(pid) not in "ZX"]
    while left and time.monotonic() - begun < STOP_S:
        time.sleep(0.1)
        left = [pid for pid in left if Path(f"/proc/{pid}").exists() and _state(pid) not in "ZX"]
    assert left == []
    assert _logged(running.address, served).keys() == served


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _listening(pid: int) -> list[str]:
    """Addresses on which this process listens (Linux)."""
    sockets = set()
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            sockets.add(os.readlink(link))
        except OSError:
            continue
    found = []
    for family, name in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                words = bytes.fromhex(local.split(":")[0])
                packed = b"".join(
                    struct.pack(">I", *struct.unpack("<I", words[n : n + 4])) for n in range(0, len(words), 4)
                )
                found.append(socket.inet_ntop(family, packed))
    return found
