"""A replica on fakes: a real registry in a temporary folder, a store and a log in memory."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import httpx
import msgspec
import pytest
import torch

from ranker import config as declared
from ranker import events, evidence
from ranker.catalogue import Catalogue, Item
from ranker.config import Config
from ranker.errors import LogUnavailable, StoreUnavailable
from ranker.events import Event
from ranker.evidence import Evidence
from ranker.gate import Verdict
from ranker.golden import Case, Golden
from ranker.model import Model
from ranker.registry import Registry
from services import api
from services.outbox import Outbox
from services.replica import Replica
from services.settings import Settings
from services.telemetry import ApiTelemetry
from services.tokens import Scope, Signer, Tokens
from streaming.log import Token
from streaming.store import Changes, Stored

NOW_MS = 1_700_000_000_000


class FakeStore:
    """A store whose evidence is what the test put in, or what the log brought."""

    def __init__(self) -> None:
        self.users: dict[str, Evidence] = {}
        self.items: list[Item] = []
        self.offsets: dict[tuple[str, int], int] = {}
        self.waited: list[Token] = []
        self.away = False
        self.asked = 0
        self.announced: dict[str, str] = {}
        self.kept: dict[str, list[tuple[int, bytes]]] = {}

    async def evidence(self, user: str) -> Stored | None:
        self._here()
        return Stored(evidence=self.users[user]) if user in self.users else None

    async def wait_for(self, token: Token, timeout: float = 0.5) -> bool:
        self._here()
        self.waited.append(token)
        return self.offsets.get((token.log, token.partition), 0) > token.offset

    async def windows(self, since: int = 0, *, name: str = "fairness") -> list[tuple[int, bytes]]:
        self._here()
        return self.kept.get(name, [])

    async def targets(self) -> dict[str, str]:
        self._here()
        return dict(self.announced)

    async def close(self) -> None:
        pass

    def _here(self) -> None:
        self.asked += 1
        if self.away:
            raise StoreUnavailable("store", "away", "wait")


class FakeChanges:
    """The catalogue's side of the same store."""

    def __init__(self, store: FakeStore) -> None:
        self.store = store

    def catalogue_changes(self, since: str = "") -> Changes:
        if self.store.away:
            raise StoreUnavailable("store", "away", "wait")
        items = self.store.items
        return Changes(str(len(items)), items[int(since or 0) :], False)

    def register_target(self, process: str, address: str) -> None:
        self.store.announced[process] = address

    def unregister_target(self, process: str, address: str) -> None:
        self.store.announced.pop(process, None)

    def close(self) -> None:
        pass


class FakeLog:
    """A log in memory that folds feedback into the store as profiles would."""

    log = "fake-log"

    def __init__(self, store: FakeStore) -> None:
        self.store, self.events, self.away, self.slow = store, list[Event](), False, False

    def append(self, event: Event) -> "Future[tuple[int, int]]":
        future: Future[tuple[int, int]] = Future()
        if self.away:
            future.set_exception(LogUnavailable("event log", "away", "wait"))
        elif not self.slow:
            assert events.decode(events.encode(event)) == event
            self.events.append(event)
            if not isinstance(event, events.Item):
                before = self.store.users.get(event.user, evidence.EMPTY)
                self.store.users[event.user] = evidence.fold(before, event)
            future.set_result((0, len(self.events) - 1))
            self.store.offsets[self.log, 0] = len(self.events)
        return future

    @property
    def said(self) -> list[Event]:
        """All but the served slates, which come in their own time."""
        return [event for event in self.events if not isinstance(event, events.Ranking)]

    def close(self) -> None:
        pass


class Service:
    """A replica on fakes and an HTTP client for it."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.settings = Settings(config=config, state=str(folder), evidence_wait=0.05, log_wait=1.0, queue_limit=50)
        self.registry = Registry(self.settings.registry_dir)
        self.store = FakeStore()
        self.log = FakeLog(self.store)
        self.tokens = Tokens.open(self.settings.token_dir)
        self.replica = Replica(
            self.settings,
            registry=self.registry,
            reads=self.store,
            changes=FakeChanges(self.store),
            outbox=Outbox(lambda: self.log, limit=self.settings.queue_limit),
            tokens=self.tokens,
            signer=Signer(self.settings.token_dir),
            telemetry=ApiTelemetry(api.PATHS, "api-test"),
            clock=lambda: NOW_MS / 1000,
        )
        self.app = api.build(self.replica, started=True)

    def version(self, seed: int = 0) -> str:
        """Save a version with random weights and promote it."""
        config = self.settings.config
        weights = Model(config, torch.Generator().manual_seed(seed)).state_dict()
        cases = [Case(evidence.EMPTY, {}, ["i0", "i1"], NOW_MS)]
        catalogue = Catalogue(config)
        for item in ITEMS:
            catalogue.put(item)
        golden = Golden.record(config, weights, catalogue, cases)
        version = self.registry.save(weights, config, metrics={"auc": 0.5}, golden=golden, parent=None)
        self.registry.promote(version, Verdict("pass"), who="test")
        return version

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        scope: Scope | None = "admin",
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """One request; a body that is not bytes is sent as JSON."""
        content = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        sent = {"Authorization": f"Bearer {self.tokens[scope]}"} if scope else {}

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://plurank") as client:
                return await client.request(method, path, content=content, headers=sent | (headers or {}))

        return asyncio.run(send())

    def settle(self, done: Callable[[], bool], timeout: float = 2.0) -> None:
        """Wait until something that another thread does is done."""
        deadline = time.monotonic() + timeout
        while not done():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.005)


GENRES = ("comedy", "drama", "horror")
ITEMS = [Item(f"i{n}", {"genres": [GENRES[n % 3]]}, NOW_MS - n) for n in range(12)]


@pytest.fixture(scope="session")
def config() -> Config:
    return declared.parse(
        {
            "scale": "tiny",
            "interests": "genres",
            "groups": ["gender"],
            "fields": {"item": {"genres": "categories"}, "request": {"device": "category"}},
            "objectives": [
                {"name": "click", "event": "click", "biased": True},
                {"name": "like", "event": "like", "weight": 2.0},
            ],
        }
    )


@pytest.fixture
def empty(tmp_path: Path, config: Config) -> Iterator[Service]:
    """A service before its first version."""
    service = Service(tmp_path, config)
    service.store.items = list(ITEMS)
    service.replica.start()
    yield service
    service.replica.close()


@pytest.fixture
def service(empty: Service) -> Service:
    """A service with one version and twelve items."""
    empty.version()
    empty.settle(lambda: empty.call("GET", "/readyz").status_code == 200)
    return empty
