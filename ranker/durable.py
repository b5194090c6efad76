"""Bytes that survive a crash: whole files and whole folders, synced and renamed into place.

After a rename the name shows either the old content or all of the new, whenever the power goes.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def digest(body: bytes) -> str:
    """sha256, in hexadecimal."""
    return hashlib.sha256(body).hexdigest()


def replace_file(path: Path, body: bytes) -> None:
    """Write the whole file or leave the old one. One writer at a time."""
    new = path.with_name(f".{path.name}.new")
    _write(new, body)
    new.replace(path)
    sync_folder(path.parent)


def create_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder with these files, whole or not at all. One writer at a time; `path` must not exist."""
    new = path.with_name(f".{path.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name, body in files.items():
        _write(new / name, body)
    sync_folder(new)
    new.rename(path)
    sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Take a folder away at once for readers, then delete it."""
    gone = path.with_name(f".{path.name}.gone")
    path.rename(gone)
    shutil.rmtree(gone)


def sweep(path: Path) -> None:
    """Delete what an interrupted write or removal left in this folder. Call it where no other writer can be."""
    for left in (*path.glob(".*.new"), *path.glob(".*.gone")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def append(path: Path, line: bytes) -> None:
    """Add one line and sync. A torn line that a crash left before it is ended first, so that it spoils nothing."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make renames in this folder last."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, body: bytes) -> None:
    with path.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
