"""The service on Ray Serve: the only door to Ray. Each replica holds the model; HAProxy spreads requests over them.

Ray reads its settings from the environment when it is imported, so it is imported where it is started. A version is
never handed to Serve: replicas find it in the registry (`services/replica.py`), because redeploying takes replicas
out of routing and dropped connections when that was measured.
"""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event as Flag
from typing import Any

from ranker.errors import ConfigError
from services.settings import Settings

log = logging.getLogger("plurank.app")

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
    # the end of the service: HAProxy's defaults would take half a minute
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "2",
}


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
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # HAProxy's admin socket obeys whoever can open it: its folder is ours alone, and short enough for a socket's name
    private = Path(tempfile.mkdtemp(prefix="plurank-"))
    try:
        os.environ |= _haproxy(private)
        import ray
        from ray import serve

        _connect(ray, settings)
        try:
            serve.start(http_options={"host": settings.host, "port": settings.port})
            _deploy(serve, settings)
            yield
        finally:
            serve.shutdown()
            ray.shutdown()
    finally:
        shutil.rmtree(private, ignore_errors=True)


def build(settings: Settings) -> Any:
    """The application of one replica, on the real log, store and registry."""
    import torch

    from ranker.registry import Registry
    from services import api
    from services.outbox import Outbox
    from services.replica import Replica
    from services.telemetry import ApiTelemetry
    from services.tokens import Signer, Tokens
    from streaming.log import Writer
    from streaming.store import AsyncStore, Store

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
    )
    return api.build(replica)


def _builder(settings: Settings) -> Callable[[], Any]:
    def builder() -> Any:
        return build(settings)

    return builder


def _connect(ray: Any, settings: Settings) -> None:
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
        return
    ray.init(
        num_cpus=settings.replicas,
        include_dashboard=False,
        object_store_memory=80 * 1024 * 1024,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )


def _deploy(serve: Any, settings: Settings) -> None:
    deployment = serve.deployment(
        serve.ingress(_builder(settings))(),
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
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
    }
