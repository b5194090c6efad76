"""What the trainer writes so that a crash changes nothing: a journal of its steps and checkpoints of its state.

    checkpoints/<step>/   learner.safetensors, one file per part (joiner, windows, ...), manifest.json with sha256
    journal/<step>.jsonl  the steps taken after the checkpoint of that number, one line each

A step's offset ranges are synced to the journal before anything is learned from it. After a crash the newest whole
checkpoint is loaded and the journal's steps are taken again with the same batches, which gives the same bits.
"""

import fcntl
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ranker import durable
from ranker.errors import CheckpointError
from streaming.log import Record

KEEP = 2
LEARNER, MANIFEST = "learner.safetensors", "manifest.json"
Offsets = dict[int, int]


class Step(Struct, frozen=True, kw_only=True):
    """One step of the trainer: which records of which log it took.

    Attributes:
        ranges: [first, next) offset by partition.
        idle: partitions that held nothing unread for a while, so their slates may close by the others' time.
    """

    number: int
    log: str
    ranges: dict[int, tuple[int, int]]
    idle: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All of a trainer's state after a step.

    Attributes:
        log: identity of the log being read.
        offsets: next offset by partition, for this log and for earlier ones that may be carried over.
        learner: weights, optimiser, random state.
        parts: everything else, as bytes.
        facts: small things to be read by people and programs, such as the version the weights descend from.
    """

    step: int
    log: str
    offsets: dict[str, Offsets]
    learner: Mapping[str, Tensor]
    parts: Mapping[str, bytes] = field(default_factory=dict)
    facts: Mapping[str, str | None] = field(default_factory=dict)


class _Manifest(Struct, frozen=True, kw_only=True):
    step: int
    log: str
    offsets: dict[str, Offsets]
    files: dict[str, str]
    facts: dict[str, str | None]


class Checkpoints:
    """The checkpoints under one folder, the newest `keep` of them."""

    def __init__(self, root: Path, *, keep: int = KEEP) -> None:
        self.root, self.keep = Path(root), keep

    def save(self, checkpoint: Checkpoint) -> None:
        """Write it whole or not at all, then drop what is too old."""
        files = {
            LEARNER: save_tensors({name: value.detach().contiguous() for name, value in checkpoint.learner.items()}),
            **checkpoint.parts,
        }
        manifest = _Manifest(
            step=checkpoint.step,
            log=checkpoint.log,
            offsets=checkpoint.offsets,
            files={name: durable.digest(body) for name, body in files.items()},
            facts=dict(checkpoint.facts),
        )
        self.root.mkdir(parents=True, exist_ok=True)
        durable.sweep(self.root)
        path = self.root / f"{checkpoint.step:012d}"
        if path.exists():  # the same step saved again, after the learner was set to another version
            durable.remove_folder(path)
        durable.create_folder(path, {**files, MANIFEST: _sealed(manifest)})
        for step in self.steps()[: -self.keep]:
            durable.remove_folder(self.root / f"{step:012d}")

    def steps(self) -> list[int]:
        """The steps of the checkpoints there are, oldest first."""
        if not self.root.exists():
            return []
        return sorted(int(path.name) for path in self.root.iterdir() if path.name.isdigit())

    def load(self, step: int) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        folder = self.root / f"{step:012d}"
        try:
            manifest = _opened((folder / MANIFEST).read_bytes())
            files = {name: (folder / name).read_bytes() for name in manifest.files}
        except (OSError, msgspec.MsgspecError) as error:
            raise CheckpointError(f"checkpoint {step}", str(error), "it cannot be read; remove its folder") from None
        for name, body in files.items():
            if durable.digest(body) != manifest.files[name]:
                raise CheckpointError(f"checkpoint {step}/{name}", "sha256 differs", "it is damaged; remove its folder")
        try:
            learner: dict[str, Tensor] = load_tensors(files.pop(LEARNER))
        except (SafetensorError, KeyError) as error:
            raise CheckpointError(f"checkpoint {step}/{LEARNER}", str(error), "remove its folder") from None
        return Checkpoint(
            step=manifest.step,
            log=manifest.log,
            offsets=manifest.offsets,
            learner=learner,
            parts=files,
            facts=manifest.facts,
        )

    def offsets(self, step: int) -> dict[str, Offsets]:
        """Where a checkpoint stands in each log, without reading the rest of it."""
        return _opened((self.root / f"{step:012d}" / MANIFEST).read_bytes()).offsets

    def latest(self, warn: Callable[[CheckpointError], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole; None where there never was one.

        Args:
            warn: told about each damaged one that was passed over.

        Raises:
            CheckpointError: there are some, and all are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.load(step)
            except CheckpointError as error:
                if step == steps[0]:
                    raise
                warn(error)
        return None


class Journal:
    """The steps that were begun, in files that each start after a checkpoint. Held by one process at a time.

    Raises:
        CheckpointError: another trainer holds it.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = (self.root / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise CheckpointError(str(self.root), "in use", "end the other trainer on this state folder") from None
        steps = self._files()
        self._path = self.root / f"{steps[-1] if steps else 0:012d}.jsonl"
        if self._path.exists():
            _mend(self._path)
        self._file = self._path.open("ab")
        durable.sync_folder(self.root)

    def append(self, step: Step) -> None:
        """Write the step and sync: after this it will be taken, by this process or by the next."""
        self._file.write(msgspec.json.encode(step) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def steps(self, after: int) -> list[Step]:
        """The steps after this number, in order.

        Raises:
            CheckpointError: a line is damaged or a step is missing.
        """
        found: list[Step] = []
        for start in self._files():
            path = self.root / f"{start:012d}.jsonl"
            for place, line in enumerate(path.read_bytes().splitlines()):
                try:
                    step = msgspec.json.decode(line, type=Step)
                except msgspec.MsgspecError as error:
                    raise CheckpointError(f"journal {path.name}:{place + 1}", str(error), _FRESH) from None
                if step.number > after:
                    found.append(step)
        numbers = [step.number for step in found]
        if numbers != list(range(after + 1, after + 1 + len(found))):
            raise CheckpointError("journal", numbers[:5], f"steps after {after} are missing; {_FRESH}")
        return found

    def roll(self, step: int, oldest: int) -> None:
        """Begin a new file after the checkpoint of `step`; files that no checkpoint from `oldest` on needs go."""
        self._file.close()
        self._path = self.root / f"{step:012d}.jsonl"
        self._file = self._path.open("ab")
        durable.sync_folder(self.root)
        files = self._files()
        for start, following in pairwise(files):
            if following <= oldest:
                (self.root / f"{start:012d}.jsonl").unlink()

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()
        self._lock.close()

    def _files(self) -> list[int]:
        return sorted(int(path.stem) for path in self.root.glob("*.jsonl"))


class Source(Protocol):
    """What is read: streaming.log.Reader, or a list in a test."""

    covered: dict[str, Offsets]

    @property
    def log(self) -> str:
        """Identity of the log being read."""
        ...

    def poll(self, max_records: int = ..., timeout: float = ...) -> list[Record]:
        """What came next, in order within each partition."""
        ...

    def positions(self) -> Offsets:
        """The offset that is read next, by partition."""
        ...

    def seek(self, positions: Mapping[int, int]) -> None:
        """Go on from these offsets."""
        ...

    def lag(self) -> int:
        """Records that are not read yet."""
        ...

    def commit(self, positions: Mapping[int, int] | None = ...) -> None:
        """Show others how far reading is safe to be taken as done."""
        ...


def replayed(source: Source, offsets: Offsets, steps: Iterable[Step]) -> Iterator[tuple[Step, list[Record]]]:
    """Each journalled step with exactly its records; the source is left at the end of the last one.

    Args:
        offsets: where the checkpoint before the steps stands.

    Raises:
        CheckpointError: the log was made anew meanwhile, or the steps do not follow on the checkpoint.
    """
    ends, held = dict(offsets), dict[int, deque[Record]]()
    source.seek(ends)
    for step in steps:
        taken: list[Record] = []
        for partition, (start, end) in step.ranges.items():
            if start != ends.get(partition, 0):
                raise CheckpointError(f"journal step {step.number}", start, f"partition {partition} jumps; {_FRESH}")
            while source.positions().get(partition, 0) < end:
                for record in source.poll(timeout=0.5):
                    held.setdefault(record.partition, deque()).append(record)
                if source.log != step.log:
                    raise CheckpointError("log", source.log, f"the journal belongs to {step.log}, which is gone")
            own = held.get(partition, deque())
            while own and own[0].offset < end:
                taken.append(own.popleft())
            ends[partition] = end
        yield step, taken
    source.seek(ends)


_FRESH = "move the journal away: what was learned since the last checkpoint is then read from the log again"


def _sealed(manifest: _Manifest) -> bytes:
    body = msgspec.json.encode(manifest)
    return msgspec.json.encode({"sha256": durable.digest(body), "manifest": msgspec.Raw(body)})


class _Sealed(Struct):
    sha256: str
    manifest: msgspec.Raw


def _opened(raw: bytes) -> _Manifest:
    sealed = msgspec.json.decode(raw, type=_Sealed)
    body = bytes(sealed.manifest)
    if durable.digest(body) != sealed.sha256:
        raise msgspec.ValidationError(f"{MANIFEST}: sha256 differs")
    return msgspec.json.decode(body, type=_Manifest)


def _mend(path: Path) -> None:
    """Cut off a last line that a crash tore: its step was never begun."""
    body = path.read_bytes()
    whole = body.rfind(b"\n") + 1
    if whole < len(body):
        with path.open("rb+") as file:
            file.truncate(whole)
            file.flush()
            os.fsync(file.fileno())
