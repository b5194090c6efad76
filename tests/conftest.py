"""What tests share: one loopback broker and one store a session; each test uses its own topic and key space."""

import contextlib
import uuid
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from ranker.errors import PlurankError
from services import embedded
from services.embedded import Broker, Valkey
from streaming import log
from streaming.log import Address
from streaming.store import Store

# a busy machine is no defect: neither a slow example nor slow drawing fails a test
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    """kafka-python 3.0 leaves sockets whose connection was refused to the garbage collector."""
    config.addinivalue_line("filterwarnings", r"ignore:unclosed <socket.*laddr=..0\.0\.0\.0:ResourceWarning")


def pytest_unconfigure() -> None:
    """The same for the last of them, which pytest collects after it has dropped the filter above."""
    warnings.filterwarnings("ignore", r"unclosed <socket.*laddr=..0\.0\.0\.0", ResourceWarning)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A Tansu broker, started once a session."""
    server = Broker()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    """A Valkey server, started once a session."""
    server = Valkey()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def address(broker: Broker) -> Address:
    """A log of this test's own, with its topic created."""
    place = broker.address(f"test.{uuid.uuid4().hex[:12]}")
    log.create(place)
    return place


@pytest.fixture
def store(valkey_server: Valkey) -> Iterator[Store]:
    """A store with a key space of this test's own."""
    client = Store(valkey_server.url, space=f"test-{uuid.uuid4().hex[:12]}")
    yield client
    with contextlib.suppress(PlurankError):  # a test may have taken the server away
        client.clear()
    client.close()


@pytest.fixture
def free_port() -> int:
    """A loopback port that was free a moment ago."""
    return embedded.free_port()
