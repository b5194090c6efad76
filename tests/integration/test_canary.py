"""A bad version is planted, tried on a part of a live audience, and withdrawn by itself: nobody's request fails.

Replica, signatures, registry, monitor and its thread are the real ones; log and store are in memory, and the people's
clock runs faster than ours, so that the seconds a slate waits for its feedback need not be waited for.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from ranker import config as declared
from ranker.config import Canary, Config, Learning
from ranker.decisions import Decision
from ranker.events import Event, encode, key_of
from ranker.gate import Verdict
from ranker.golden import Golden, made_up
from ranker.join import Joiner
from ranker.learner import Learner, train
from ranker.registry import Registry
from ranker.simulation import Population, Tastes, visit
from services import api
from services.outbox import Outbox
from services.replica import Replica
from services.settings import Settings
from services.telemetry import ApiTelemetry
from services.tokens import Signer, Tokens
from streaming.canary import Watch
from streaming.log import Address, Record
from streaming.monitor import Monitor
from tests.services.conftest import FakeChanges, FakeLog, FakeStore

WINDOW_S, STEP_S = 600.0, 0.5
#: parameters whose sign turns an order round and leaves the base rates as they are
TURNED = ("experts.heads_TH", "direct_TF", "wide_VT", "phi")


def configuration() -> Config:
    synthetic = declared.load(Path(__file__).parents[2] / "deploy" / "synthetic.toml")
    rule = Canary(ladder=(0.3, 0.6), slates=60, window=WINDOW_S, tolerance=0.1)
    return msgspec.structs.replace(synthetic, canary=rule, learning=Learning(minimum_group=10))


class Tail:
    """The log in memory, read from its beginning as a Reader reads."""

    log, trouble = "fake-log", ""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events, self.at, self.covered = events, 0, dict[str, dict[int, int]]()

    def poll(self, max_records: int = 2000, timeout: float = 0.5) -> list[Record]:
        time.sleep(0.01)
        first, self.at = self.at, min(len(self.events), self.at + max_records)
        some = self.events[first : self.at]
        return [Record(0, first + n, one.time, key_of(one).encode(), encode(one)) for n, one in enumerate(some)]

    def positions(self) -> dict[int, int]:
        return {0: self.at}

    def seek(self, positions: Mapping[int, int]) -> None:
        self.at = positions.get(0, self.at)

    def lag(self) -> int:
        return len(self.events) - self.at

    def commit(self, positions: Mapping[int, int] | None = None) -> None:
        pass

    def close(self) -> None:
        pass


class Windows:
    def put_window(self, start: int, value: bytes, *, name: str = "fairness") -> None:
        pass


class Town:
    """A service, its monitor, and the people who visit it."""

    def __init__(self, folder: Path) -> None:
        self.config, self.now = configuration(), time.time()
        self.people = Population(Tastes(users=80, items=60, spread=0.3, sharpness=4.0))
        settings = Settings(config=self.config, state=str(folder), evidence_wait=0.05, log_wait=1.0)
        self.registry, self.tokens = Registry(settings.registry_dir), Tokens.open(settings.token_dir)
        self.store = FakeStore()
        self.log = FakeLog(self.store)
        self.good, self.bad = self._versions()
        self.registry.promote(self.good, Verdict("pass"), who="test")
        self.replica = Replica(
            settings,
            registry=self.registry,
            reads=self.store,
            changes=FakeChanges(self.store),
            outbox=Outbox(lambda: self.log, limit=1000),
            tokens=self.tokens,
            signer=Signer(settings.token_dir),
            telemetry=ApiTelemetry(api.PATHS, "api-test"),
            clock=lambda: self.now,
        )
        self.app = api.build(self.replica, started=True)
        self.answers, self.versions = Counter[int](), Counter[str]()
        self._loop = asyncio.new_event_loop()

    def _versions(self) -> tuple[str, str]:
        """One that learned what the people like, and the same turned round: sound, finite, with its golden scores."""
        learner, joiner = Learner(self.config), Joiner(self.config)
        for _ in train(self.people.events(ratings=60), learner, joiner):
            pass
        self.store.items = list(joiner.catalogue.items)
        right = learner.weights()
        wrong = {name: -weight if name in TURNED else weight for name, weight in right.items()}
        found = []
        for weights in (right, wrong):
            golden = Golden.record(self.config, weights, joiner.catalogue, made_up(self.config, joiner.catalogue, 1))
            found.append(self.registry.save(weights, self.config, metrics={}, golden=golden, parent=None))
        return found[0], found[1]

    def visit(self) -> None:
        """Somebody comes, is shown a slate, and reacts."""
        reactions: list[Event] = []
        visit(self.people, self._rank, reactions.append, now=int(self.now * 1000))
        self.now += STEP_S
        if reactions:
            self._send("/v1/feedback", b"\n".join(encode(one) for one in reactions))

    def _rank(self, user: str, items: Sequence[str]) -> tuple[str, Sequence[str]]:
        answer = self._send("/v1/recommend", msgspec.json.encode({"user": user, "limit": 10, "exclude_seen": False}))
        self.versions[answer["version"]] += 1
        return answer["ranking"], [item["id"] for item in answer["items"]]

    def _send(self, path: str, body: bytes) -> Any:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://plurank") as client:
                token = {"Authorization": f"Bearer {self.tokens['admin']}"}
                return await client.post(path, content=body, headers=token)

        answer = self._loop.run_until_complete(send())
        self.answers[answer.status_code] += 1
        return answer.json()

    def close(self) -> None:
        self.replica.close()
        self._loop.close()


@contextmanager
def watched(town: Town, folder: Path) -> Iterator[None]:
    """A monitor of its own thread follows the log."""
    stop = threading.Event()
    monitor = Monitor(
        town.config,
        Address(brokers="127.0.0.1:1"),
        Windows(),
        folder,
        settle_s=0.1,
        reader=lambda _: Tail(town.log.events),
        clock=lambda: town.now,
        canary=Watch(town.config, town.registry),
    )
    thread = threading.Thread(target=lambda: list(monitor.run(stop)))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    made = Town(tmp_path)
    made.replica.start()
    yield made
    made.close()


def test_a_bad_version_is_withdrawn_from_a_live_audience_within_its_window(town: Town, tmp_path: Path) -> None:
    town.visit()
    began = town.now
    town.registry.canary(town.bad, 0.3, who="test")
    with watched(town, tmp_path / "monitor"):
        while _last(town).action != "withdraw" and town.now - began < WINDOW_S:
            town.visit()
    decision = _last(town)
    assert (decision.action, decision.version, decision.who) == ("withdraw", town.bad, "monitor"), decision
    assert town.now - began < WINDOW_S
    # shown to harm against the version in use, or worse than knowing nothing but the base rate
    told = ("gain of", "log_loss of", "the base rate alone has")
    assert decision.reasons
    assert all(any(part in reason for part in told) for reason in decision.reasons), decision.reasons
    assert decision.measures["slates:canary"] > 0
    assert town.versions[town.bad] >= 10
    before = town.versions[town.bad]
    deadline = time.monotonic() + 2
    while town.replica.serving_of("p0")[0].version != town.good or town.replica._beside is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for _ in range(30):
        town.visit()
    assert town.versions[town.bad] == before
    assert set(town.answers) == {200}


def _last(town: Town) -> Decision:
    return town.registry.decisions(last=1)[0]
