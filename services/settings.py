"""Where a deployment's parts stand: the `[service]` table of plurank.toml, then PLURANK_... of the environment.

Every key of the file has a name in the environment: `[service] port` is PLURANK_PORT, `[serving] slate` is
PLURANK_SERVING__SLATE, `scale` is PLURANK_SCALE. Misspelt keys and misspelt names are refused with the nearest valid
one, so that a deployment never runs on a default that it believes it has overridden.
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from ranker import config as declared
from ranker.config import Config
from ranker.errors import ConfigError

if TYPE_CHECKING:
    from streaming.log import Address

PREFIX = "PLURANK_"
#: names that are read elsewhere, before or beside the settings
_ELSEWHERE = ("CONFIG", "CACHE", "URL", "TOKEN")
#: tables of the declaration whose single keys may be set from the environment
_TABLES: dict[str, type[Struct]] = {
    "calibration": declared.Calibration,
    "serving": declared.Serving,
    "learning": declared.Learning,
    "canary": declared.Canary,
}

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=60)]
Count = Annotated[int, Meta(ge=1)]


class Service(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[service]` table as it may be written.

    Attributes:
        brokers: host:port of the Kafka brokers, separated by commas.
        kafka: further client settings, such as security_protocol and sasl_mechanism.
        segmented: the log is rolled from topic to topic (the embedded broker).
        store: the URL of Valkey or Redis.
        state: the folder for checkpoints, journals and, unless set apart, versions and tokens.
        registry: the folder of the versions; empty for `registry` under `state`.
        tokens: the folder of the tokens and signing keys; empty for `tokens` under `state`.
        replicas: copies of the model that answer requests.
        telemetry: the address on which each process serves its metrics to Prometheus.
        body_limit: bytes of the largest request body.
        queue_limit: served slates that may wait for the log before further ones are dropped (and counted).
        evidence_wait: seconds that a read with an evidence token waits for its write.
        log_wait: seconds that a write waits for the broker.
        pointer_poll, catalogue_poll: seconds between looks for a new version and for new items.
    """

    brokers: str = "127.0.0.1:9092"
    topic: str = "plurank.events"
    partitions: Annotated[int, Meta(ge=1, le=1024)] = 4
    kafka: dict[str, str | int | float | bool] = {}
    segmented: bool = False
    store: str = "valkey://127.0.0.1:6379/0"
    state: str = "var"
    registry: str = ""
    tokens: str = ""
    host: str = "127.0.0.1"
    port: Port = 8080
    replicas: Annotated[int, Meta(ge=1, le=256)] = 2
    telemetry: str = "127.0.0.1"
    body_limit: Count = 8 * 1024 * 1024
    queue_limit: Count = 10_000
    evidence_wait: Annotated[float, Meta(ge=0, le=10)] = 0.5
    log_wait: Seconds = 5.0
    pointer_poll: Seconds = 0.2
    catalogue_poll: Seconds = 1.0


class Settings(Service, frozen=True, kw_only=True):
    """The declaration and the places of one deployment, checked."""

    config: Config

    @property
    def log(self) -> "Address":
        """The address of the event log."""
        from streaming.log import (
            Address,
            parse_brokers,
        )  # the Kafka client takes long to import; most commands do without

        return Address(
            brokers=parse_brokers(self.brokers),
            topic=self.topic,
            partitions=self.partitions,
            security=self.kafka,
            segmented=self.segmented,
        )

    @property
    def state_dir(self) -> Path:
        """The state folder, absolute."""
        return Path(self.state).expanduser().absolute()

    @property
    def registry_dir(self) -> Path:
        """The folder of the versions, absolute."""
        return Path(self.registry).expanduser().absolute() if self.registry else self.state_dir / "registry"

    @property
    def token_dir(self) -> Path:
        """The folder of the tokens and signing keys, absolute."""
        return Path(self.tokens).expanduser().absolute() if self.tokens else self.state_dir / "tokens"


def load(
    path: Path | str | None = None, environ: Mapping[str, str] | None = None, config: Config | None = None
) -> Settings:
    """The settings out of a file and the environment, which wins.

    Args:
        path: a plurank.toml; without it the one PLURANK_CONFIG names, else the one in this folder.
        environ: the environment; nothing is taken from it where it is None.
        config: a declaration that is already known (inferred from a log, say); the file's own is then passed over and
            there need not be a file.

    Raises:
        ConfigError: no file, a misspelt key or name, an impossible value.
    """
    environ = environ or {}
    named = path or environ.get(PREFIX + "CONFIG")
    source = str(named or "plurank.toml")
    data = {} if config is not None and named is None and not Path(source).exists() else declared.read_toml(source)
    table = data.pop("service", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{source}: service", table, "write it as a table, [service]")
    if config is not None:
        data = msgspec.to_builtins(config)
    _overlay(data, table, environ)
    service = declared.convert({"service": table}, _File, source).service
    known = {name: getattr(service, name) for name in Service.__struct_fields__}
    return Settings(config=declared.parse(data, source=source), **known)


class _File(Struct, forbid_unknown_fields=True):
    service: Service


def _overlay(data: dict[str, Any], table: dict[str, Any], environ: Mapping[str, str]) -> None:
    places = _places()
    for name, text in environ.items():
        if not name.startswith(PREFIX) or name.removeprefix(PREFIX) in _ELSEWHERE:
            continue
        if name not in places:
            valid = [*places, *(PREFIX + other for other in _ELSEWHERE)]
            near = difflib.get_close_matches(name, valid, 1, 0.7)
            hint = f"did you mean {near[0]}?" if near else "valid names are " + ", ".join(sorted(valid))
            raise ConfigError(f"environment: {name}", text, hint)
        owner, key, kind = places[name]
        value = text if _textual(kind) else _value(text)
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise ConfigError(f"environment: {name}", text, str(error)) from None
        target = table if owner == "service" else (data.setdefault(owner, {}) if owner else data)
        target[key] = value


def _places() -> dict[str, tuple[str, str, Any]]:
    """Each name of the environment -> (table, key, type)."""
    found = {PREFIX + f.name.upper(): ("service", f.name, f.type) for f in msgspec.structs.fields(Service)}
    for field in msgspec.structs.fields(Config):
        if field.name in _TABLES:
            for inner in msgspec.structs.fields(_TABLES[field.name]):
                name = f"{PREFIX}{field.name.upper()}__{inner.name.upper()}"
                found[name] = (field.name, inner.name, inner.type)
        elif field.name not in ("objectives", "fields"):
            found[PREFIX + field.name.upper()] = ("", field.name, field.type)
    return found


def _textual(kind: Any) -> bool:
    inner = [part for part in get_args(kind) if part is not type(None)]
    return kind is str or get_origin(kind) is Literal or (bool(inner) and all(part is str for part in inner))


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
