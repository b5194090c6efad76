"""What was decided about versions, with the reasons: a file of JSON lines that only grows.

A candidate every few seconds with a number for each group is more than 100 MB a day, so what is old is compressed: a
full file becomes decisions-<number>.jsonl.gz, and reading goes back through these only as far as it is asked to.
"""

import contextlib
import gzip
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from ranker import durable

#: bytes of the file that is written to
FULL = 4 * 2**20
#: digits that a measure is kept with
DIGITS = 5


class Decision(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line: what was done with which version, by whom, and on what grounds."""

    time: int
    action: str
    version: str
    who: str
    generation: int | None = None
    decision: str | None = None
    reasons: tuple[str, ...] = ()
    measures: dict[str, float] = {}


class Decisions:
    """The record of one registry; whoever appends holds the registry's lock.

    Args:
        folder: that of the registry.
        full: bytes after which the file is compressed and a new one begun.
    """

    def __init__(self, folder: Path, *, full: int = FULL) -> None:
        self._folder, self._path, self._full = folder, folder / "decisions.jsonl", full

    def append(self, decision: Decision) -> None:
        """Add one, synced."""
        measures = {name: float(f"{value:.{DIGITS}g}") for name, value in decision.measures.items()}
        durable.append(self._path, msgspec.json.encode(msgspec.structs.replace(decision, measures=measures)))
        if self._path.stat().st_size >= self._full:
            number = 1 + max((_number(path) for path in self._older()), default=0)
            packed = self._folder / f"decisions-{number:06d}.jsonl.gz"
            # a crash between the two leaves the lines in both, and the next full file takes another number
            durable.replace_file(packed, gzip.compress(self._path.read_bytes()))
            self._path.unlink()

    def read(self, last: int | None = None) -> list[Decision]:
        """The latest `last`, or all, oldest first; a line torn by a crash is passed over."""
        found: list[Decision] = []
        for lines in self._files():
            left = None if last is None else last - len(found)
            if left is not None and left <= 0:
                break
            some = []
            for line in lines if left is None else lines[-left:]:
                with contextlib.suppress(msgspec.MsgspecError):
                    some.append(msgspec.json.decode(line, type=Decision))
            found = [*some, *found]
        return found

    def _files(self) -> Iterator[list[bytes]]:
        """The lines of each file, newest file first."""
        with contextlib.suppress(FileNotFoundError):
            yield self._path.read_bytes().splitlines()
        for path in sorted(self._older(), key=_number, reverse=True):
            yield gzip.decompress(path.read_bytes()).splitlines()

    def _older(self) -> list[Path]:
        return list(self._folder.glob("decisions-*.jsonl.gz"))


def _number(path: Path) -> int:
    return int(path.name.removeprefix("decisions-").partition(".")[0])
