"""Versions of the weights on disk: immutable, verified, one pointer to the one that is served.

    versions/<id>/weights.safetensors   what Inference takes
                  golden.safetensors    inputs and the probabilities they must give
                  learner.safetensors   the rest of the learner's state, so that it can go on from here; optional
                  manifest.json         sha256 of both, tensors, configuration, metrics, parent, index epoch
                  forced.json           only where somebody promoted it against its verdict
    current.json                        the Pointer
    decisions.jsonl                     every promotion, refusal, canary step, rollback and release, with its reasons;
                                        older ones in decisions-<number>.jsonl.gz

A version is written to a temporary folder, synced and renamed, so it is whole or absent; its id ends in a digest of
its manifest. The pointer is replaced by atomic rename under a lock and carries a generation, so that two deciders
cannot overwrite each other unseen. Nothing is ever unpickled.
"""

import contextlib
import fcntl
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ranker import config as configuration
from ranker import durable
from ranker.config import Config
from ranker.decisions import Decision, Decisions
from ranker.errors import PromotionRefused, RegistryError
from ranker.gate import Verdict
from ranker.golden import Golden

KEEP = 20
WEIGHTS, GOLDEN, LEARNER = "weights.safetensors", "golden.safetensors", "learner.safetensors"
TEACHERS = "teachers.safetensors"
MANIFEST, FORCED = "manifest.json", "forced.json"
RESTORE = "restore the folder from a backup, or promote or roll back to another version"
NO_CANARY: dict[str, Any] = {"canary": None, "share": 0.0, "began": 0, "since": 0}


class Manifest(Struct, frozen=True, kw_only=True):
    """What a version says of itself.

    Attributes:
        created: ms since the epoch.
        files: sha256 by file name.
        tensors: shape by name, as written.
        index_epoch: the version whose item vectors the retrieval index holds; an index lives longer than weights.
    """

    id: str
    parent: str | None
    created: int
    plurank: str
    files: dict[str, str]
    tensors: dict[str, list[int]]
    config: dict[str, Any]
    metrics: dict[str, Any]
    index_epoch: str | None = None


class Pointer(Struct, frozen=True, kw_only=True):
    """What is served. `canary` is a second version that `share` of the users get.

    Attributes:
        began, since: ms since the epoch at which the canary began, and got its present share; 0 without one.
    """

    version: str
    generation: int
    held: bool = False
    trail: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()
    canary: str | None = None
    share: float = 0.0
    began: int = 0
    since: int = 0
    changed: int = 0

    @property
    def previous(self) -> str | None:
        """The version that was served before this one."""
        return self.trail[-1] if self.trail else None


@dataclass(frozen=True)
class Version:
    """A version in memory, its files checked."""

    id: str
    weights: dict[str, Tensor]
    config: Config
    manifest: Manifest
    golden: Golden


class Registry:
    """The versions under one folder, and the pointer to the one that is served.

    Args:
        root: the folder; made at the first write. It must be on a file system with atomic rename and flock.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._versions = self.root / "versions"
        self._pointer = self.root / "current.json"
        self._decisions = Decisions(self.root)
        self._seen: tuple[tuple[int, int, int], Pointer] | None = None

    # -- versions ----------------------------------------------------------------------------------------------

    def save(
        self,
        weights: Mapping[str, Tensor],
        config: Config,
        *,
        metrics: Mapping[str, Any],
        golden: Golden,
        parent: str | None,
        index_epoch: str | None = None,
        state: Mapping[str, Tensor] | None = None,
        teachers: Mapping[str, Tensor] | None = None,
    ) -> str:
        """Write a new version; returns its id. Nothing is served by this.

        Args:
            state: what the learner needs besides the weights to go on from here after a rollback.
            teachers: frozen models that supervise whoever learns on from here (ranker/teachers.py).

        Raises:
            RegistryError: a weight is not finite.
        """
        unsound = _not_finite(weights)
        if unsound:
            raise RegistryError(f"weights: {unsound}", "not finite", "the learner diverged; go back to a checkpoint")
        files = {WEIGHTS: _encoded(weights), GOLDEN: golden.encode()}
        if state is not None:
            files[LEARNER] = _encoded(state)
        if teachers:
            files[TEACHERS] = _encoded(teachers)
        manifest = Manifest(
            id="",
            parent=parent,
            created=_now(),
            plurank=_package(),
            files={name: durable.digest(body) for name, body in files.items()},
            tensors={name: list(weight.shape) for name, weight in weights.items()},
            config=msgspec.to_builtins(config),
            metrics=dict(metrics),
            index_epoch=index_epoch,
        )
        with self._locked():
            number = max((_number(path.name) for path in self._folders()), default=0) + 1
            manifest = msgspec.structs.replace(manifest, id=f"v{number:06d}")
            manifest = msgspec.structs.replace(manifest, id=f"v{number:06d}-{_digest(manifest)}")
            files[MANIFEST] = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
            durable.create_folder(self._versions / manifest.id, files)
        return manifest.id

    def epoch(self, parent: str | None, versions: int) -> str | None:
        """The index epoch that the next version belongs to; None where it begins one.

        Args:
            parent: the version it grows from.
            versions: an epoch ends when the next version is so many later than the one that began it.

        Raises:
            RegistryError: there is no such parent.
        """
        if parent is None:
            return None
        began = self.manifest(parent).index_epoch or parent
        number = max(map(_number, (path.name for path in self._folders())), default=0) + 1
        return began if number - _number(began) < versions else None

    def load(self, version: str) -> Version:
        """Read a version and check everything that can be checked without running it.

        Raises:
            RegistryError: it is missing, a file is damaged, a shape differs, a weight is not finite.
        """
        manifest = self.manifest(version)
        bodies = {name: self._checked(manifest, name) for name in (WEIGHTS, GOLDEN)}
        try:
            weights: dict[str, Tensor] = load_tensors(bodies[WEIGHTS])
            golden = Golden.decode(bodies[GOLDEN])
        except (SafetensorError, msgspec.MsgspecError, KeyError, ValueError) as error:
            raise RegistryError(f"{version}", str(error), RESTORE) from None
        shapes = {name: list(weight.shape) for name, weight in weights.items()}
        if shapes != manifest.tensors:
            wrong = sorted(name for name in shapes.keys() ^ manifest.tensors.keys()) or sorted(
                name for name in shapes if shapes[name] != manifest.tensors[name]
            )
            raise RegistryError(f"{version}/{WEIGHTS}", wrong, f"its tensors are not those of the manifest; {RESTORE}")
        unsound = _not_finite(weights)
        if unsound:
            raise RegistryError(f"{version}/{WEIGHTS}: {unsound}", "not finite", RESTORE)
        config = configuration.parse(manifest.config, source=f"{version}/{MANIFEST}")
        return Version(version, weights, config, manifest, golden)

    def state(self, version: str) -> dict[str, Tensor] | None:
        """The rest of the learner's state as of this version; None where it was saved without.

        Raises:
            RegistryError: it is damaged.
        """
        return self._rest(version, LEARNER)

    def teachers(self, version: str) -> dict[str, Tensor] | None:
        """The frozen teachers that this version carries; None where it has none.

        Raises:
            RegistryError: they are damaged.
        """
        return self._rest(version, TEACHERS)

    def _rest(self, version: str, name: str) -> dict[str, Tensor] | None:
        manifest = self.manifest(version)
        if name not in manifest.files:
            return None
        try:
            found: dict[str, Tensor] = load_tensors(self._checked(manifest, name))
        except SafetensorError as error:
            raise RegistryError(f"{version}/{name}", str(error), RESTORE) from None
        return found

    def manifest(self, version: str) -> Manifest:
        """The manifest of a version.

        Raises:
            RegistryError: there is no such version, or its manifest is not the one it was saved with.
        """
        if not version or "/" in version or version.startswith("."):
            raise RegistryError("version", version, "name one that `plurank models list` shows")
        if not (self._versions / version).is_dir():
            raise RegistryError("version", version, "there is none of this name; `plurank models list` shows them")
        body = _read(self._versions / version / MANIFEST)
        try:
            manifest = msgspec.json.decode(body, type=Manifest)
        except msgspec.MsgspecError as error:
            raise RegistryError(f"{version}/{MANIFEST}", str(error), RESTORE) from None
        bare = msgspec.structs.replace(manifest, id=version.partition("-")[0])
        if manifest.id != version or not version.endswith("-" + _digest(bare)):
            raise RegistryError(f"{version}/{MANIFEST}", manifest.id, f"the manifest was changed; {RESTORE}")
        return manifest

    def versions(self) -> list[str]:
        """The ids of all versions, oldest first."""
        return sorted((path.name for path in self._folders()), key=_number)

    def forced(self, version: str) -> list[Decision]:
        """The promotions of this version that went against its verdict."""
        path = self._versions / version / FORCED
        return msgspec.json.decode(path.read_bytes(), type=list[Decision]) if path.exists() else []

    def prune(self, keep: int = KEEP, *, besides: Iterable[str] = ()) -> list[str]:
        """Remove all but the newest `keep`, the live, the previous, the pinned and `besides`; returns what went."""
        with self._locked():
            pointer = self.current()
            kept = {*self.versions()[-keep:], *besides}
            if pointer is not None:
                kept |= {pointer.version, *pointer.pinned, *filter(None, (pointer.previous, pointer.canary))}
            gone = [version for version in self.versions() if version not in kept]
            for version in gone:
                durable.remove_folder(self._versions / version)
            durable.sweep(self._versions)
        return gone

    # -- the pointer -------------------------------------------------------------------------------------------

    def current(self) -> Pointer | None:
        """What is served; None before the first promotion. Costs a stat while nothing changes.

        Raises:
            RegistryError: the pointer cannot be read.
        """
        try:
            status = self._pointer.stat()
        except FileNotFoundError:
            return None
        mark = (status.st_ino, status.st_mtime_ns, status.st_size)
        seen = self._seen
        if seen is not None and seen[0] == mark:
            return seen[1]
        try:
            pointer = msgspec.json.decode(self._pointer.read_bytes(), type=Pointer)
        except (OSError, msgspec.MsgspecError) as error:
            raise RegistryError(str(self._pointer), str(error), "roll back to a version by name") from None
        self._seen = (mark, pointer)
        return pointer

    def promote(
        self, version: str, verdict: Verdict, *, generation: int | None = None, force: bool = False, who: str
    ) -> Pointer:
        """Serve this version, if its verdict passes, or by force, which leaves a mark for good.

        Args:
            generation: the pointer's generation the verdict was made against; refused if it moved since.

        Raises:
            PromotionRefused: the verdict does not pass, or a rollback holds the pointer.
            RegistryError: the version is damaged, or the pointer moved meanwhile.
        """
        self.load(version)
        with self._locked():
            pointer = self.current()
            if pointer is not None and generation is not None and pointer.generation != generation:
                raise RegistryError("generation", generation, f"the pointer is at {pointer.generation}; judge again")
            held = pointer is not None and pointer.held
            if not force and (held or verdict.decision != "pass"):
                reasons = ("a rollback holds the pointer", *verdict.reasons) if held else verdict.reasons
                self._record("refuse", version, who, verdict=verdict, pointer=pointer, reasons=reasons)
                remedy = "`plurank models release` ends the hold" if held else "; ".join(reasons)
                raise PromotionRefused(version, "held" if held else verdict.decision, remedy)
            before = () if pointer is None or pointer.version == version else (*pointer.trail, pointer.version)
            moved = self._move(pointer, version=version, trail=before[-KEEP:], **NO_CANARY)
            if pointer is not None and pointer.canary not in (None, version):
                self._record("withdraw", pointer.canary, who, pointer=moved, reasons=(f"{version} is served instead",))
            action = "promote" if verdict.decision == "pass" and not held else "force"
            decision = self._record(action, version, who, verdict=verdict, pointer=moved, reasons=verdict.reasons)
            if action == "force":
                marks = [*self.forced(version), decision]
                durable.replace_file(self._versions / version / FORCED, msgspec.json.encode(marks))
        return moved

    def rollback(self, *, who: str, to: str | None = None) -> Pointer:
        """Serve the version before, or `to`, and hold the pointer there until `release`.

        Raises:
            RegistryError: there is nothing to go back to, or it is damaged.
        """
        with self._locked():
            pointer = self.current()
            trail = () if pointer is None else pointer.trail
            if to is None:
                there = set(self.versions())
                while trail and trail[-1] not in there:
                    trail = trail[:-1]
                if not trail:
                    raise RegistryError("previous version", None, "name a version to serve")
                to, trail = trail[-1], trail[:-1]
            elif to in trail:
                trail = trail[: trail.index(to)]
            self.load(to)
            moved = self._move(pointer, version=to, trail=trail, held=True, **NO_CANARY)
            if pointer is not None and pointer.canary is not None:
                self._record("withdraw", pointer.canary, who, pointer=moved, reasons=(f"a rollback to {to}",))
            reasons = (f"from {pointer.version}",) if pointer else ()
            self._record("rollback", to, who, pointer=moved, reasons=reasons)
        return moved

    def canary(
        self, version: str, share: float, *, who: str, generation: int | None = None, verdict: Verdict | None = None
    ) -> Pointer:
        """Serve this version to a share of the users beside the current one, or change the share of the one that runs.

        It needs no passing verdict, for it is how one is come by: `ranker/canary.py` compares the two.

        Args:
            generation: the pointer's generation that this was decided on; refused if it moved since.
            verdict: what was found so far, kept with the decision.

        Raises:
            PromotionRefused: a rollback holds the pointer.
            RegistryError: nothing is served yet, the version is served to all, another canary runs, the share is no
                share, the version is damaged, or the pointer moved meanwhile.
        """
        if not 0 < share < 1:
            raise RegistryError("share", share, "give one above 0 and below 1, or promote the version")
        self.load(version)
        with self._locked():
            pointer = self._decided(generation)
            if pointer.held:
                raise PromotionRefused(version, "held", "`plurank models release` ends the hold of the rollback")
            if version == pointer.version:
                raise RegistryError("canary", version, "it is served to everybody already; name another version")
            if pointer.canary not in (None, version):
                raise RegistryError("canary", version, f"{pointer.canary} is one; withdraw it first")
            now = _now()
            moved = self._move(pointer, canary=version, share=share, began=pointer.began or now, since=now)
            action = "canary" if pointer.canary is None else "grow" if share > pointer.share else "shrink"
            told = () if verdict is None else verdict.reasons
            reasons = (f"{share:.0%} of the users", *told)
            self._record(action, version, who, verdict=verdict, pointer=moved, reasons=reasons)
        return moved

    def first_share(self, version: str) -> float:
        """The share on which the version's own configuration begins a trial.

        Raises:
            RegistryError: there is no such version, or its manifest was changed.
        """
        return configuration.parse(self.manifest(version).config, source=f"{version}/{MANIFEST}").canary.ladder[0]

    def withdraw(
        self, *, who: str, reasons: tuple[str, ...] = (), generation: int | None = None, verdict: Verdict | None = None
    ) -> Pointer:
        """End the canary: all are served the current version again.

        Raises:
            RegistryError: there is no canary, or the pointer moved meanwhile.
        """
        with self._locked():
            pointer = self._decided(generation)
            if pointer.canary is None:
                raise RegistryError("canary", None, "there is none to withdraw")
            moved = self._move(pointer, **NO_CANARY)
            self._record("withdraw", pointer.canary, who, verdict=verdict, pointer=moved, reasons=reasons)
        return moved

    def release(self, *, who: str) -> Pointer:
        """End the hold of a rollback.

        Raises:
            RegistryError: nothing is served yet.
        """
        with self._locked():
            pointer = self._served()
            moved = self._move(pointer, held=False)
            self._record("release", moved.version, who, pointer=moved)
        return moved

    def pin(self, version: str, *, who: str, pinned: bool = True) -> Pointer:
        """Keep a version whatever `prune` does, or no longer.

        Raises:
            RegistryError: there is no such version, or nothing is served yet.
        """
        self.manifest(version)
        with self._locked():
            pointer = self._served()
            others = tuple(other for other in pointer.pinned if other != version)
            moved = self._move(pointer, pinned=(*others, version) if pinned else others)
            self._record("pin" if pinned else "unpin", version, who, pointer=moved)
        return moved

    def decisions(self, last: int | None = None) -> list[Decision]:
        """What was decided, oldest first; a line torn by a crash is passed over."""
        return self._decisions.read(last)

    # -- files -------------------------------------------------------------------------------------------------

    def _decided(self, generation: int | None) -> Pointer:
        """The pointer, if it is where it was when this was decided."""
        pointer = self._served()
        if generation is not None and pointer.generation != generation:
            raise RegistryError("generation", generation, f"the pointer is at {pointer.generation}; judge again")
        return pointer

    def _served(self) -> Pointer:
        pointer = self.current()
        if pointer is None:
            raise RegistryError("current version", None, "promote a version first")
        return pointer

    def _move(self, pointer: Pointer | None, **changes: Any) -> Pointer:
        if pointer is None:
            moved = Pointer(generation=1, changed=_now(), **changes)
        else:
            moved = msgspec.structs.replace(pointer, generation=pointer.generation + 1, changed=_now(), **changes)
        durable.replace_file(self._pointer, msgspec.json.encode(moved))
        return moved

    def _record(
        self,
        action: str,
        version: str,
        who: str,
        *,
        verdict: Verdict | None = None,
        pointer: Pointer | None,
        reasons: tuple[str, ...] = (),
    ) -> Decision:
        decision = Decision(
            time=_now(),
            action=action,
            version=version,
            who=who,
            generation=None if pointer is None else pointer.generation,
            decision=None if verdict is None else verdict.decision,
            reasons=tuple(reasons),
            measures={} if verdict is None else dict(verdict.measures),
        )
        self._decisions.append(decision)
        return decision

    def _checked(self, manifest: Manifest, name: str) -> bytes:
        body = _read(self._versions / manifest.id / name)
        found = durable.digest(body)
        if found != manifest.files.get(name):
            raise RegistryError(f"{manifest.id}/{name}", f"sha256 {found[:12]}", f"the file was changed; {RESTORE}")
        return body

    def _folders(self) -> list[Path]:
        if not self._versions.exists():
            return []
        return [path for path in self._versions.iterdir() if path.is_dir() and not path.name.startswith(".")]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._versions.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RegistryError(f"{path.parent.name}/{path.name}", error.strerror, RESTORE) from None


def _encoded(tensors: Mapping[str, Tensor]) -> bytes:
    raw: bytes = save_tensors({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
    return raw


def _not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds an infinity or a NaN."""
    return next((name for name, weight in weights.items() if not bool(torch.isfinite(weight).all())), None)


def _number(version: str) -> int:
    digits = version.removeprefix("v").partition("-")[0]
    return int(digits) if digits.isdigit() else 0


def _digest(manifest: Manifest) -> str:
    return durable.digest(msgspec.json.encode(manifest))[:10]


def _now() -> int:
    return int(time.time() * 1000)


def _package() -> str:
    try:
        return package_version("plurank")
    except PackageNotFoundError:
        return "unknown"
