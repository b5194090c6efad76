"""What each process of `plurank up` is doing, as one small file a process: the live line and `doctor` read them."""

import os
import time
from pathlib import Path
from typing import Any

import msgspec


def write(folder: Path, name: str, facts: dict[str, Any]) -> None:
    """Replace the process's status, in one step, stamped with the time and the process id."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{name}.{os.getpid()}"
    part.write_bytes(msgspec.json.encode({**facts, "at": time.time(), "pid": os.getpid()}))
    part.replace(folder / f"{name}.json")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The status of every process that wrote one, by name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("[a-z]*.json")):
        try:
            found[path.stem] = msgspec.json.decode(path.read_bytes())
        except (OSError, msgspec.DecodeError):
            continue
    return found
