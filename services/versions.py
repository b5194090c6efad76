"""The registry as the service shows it: which versions there are, and moving the pointer by hand."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import cast

import msgspec

from ranker.errors import NotFound, RegistryError
from ranker.gate import Decision, Verdict
from ranker.registry import Pointer, Registry
from services.messages import CanaryRequest, ModelsAnswer, ModelSummary, PointerAnswer, PromoteRequest


class Versions:
    """Reads and moves the pointer, off the event loop.

    Args:
        serving: the version that this replica serves, None before the first.
    """

    def __init__(self, registry: Registry, serving: Callable[[], str | None]) -> None:
        self._registry, self._serving = registry, serving

    async def models(self) -> ModelsAnswer:
        """The registry as it is now."""
        return await asyncio.to_thread(self._models)

    def _models(self) -> ModelsAnswer:
        pointer = self._registry.current()
        versions = []
        for version in reversed(self._registry.versions()):
            try:
                manifest = self._registry.manifest(version)
            except RegistryError:  # damaged, or pruned meanwhile
                continue
            versions.append(
                ModelSummary(
                    version=version,
                    current=pointer is not None and pointer.version == version,
                    previous=pointer is not None and pointer.previous == version,
                    canary=pointer is not None and pointer.canary == version,
                    forced=bool(self._registry.forced(version)),
                    created=manifest.created,
                    parent=manifest.parent,
                    metrics=manifest.metrics,
                )
            )
        return ModelsAnswer(
            current=None if pointer is None else pointer.version,
            previous=None if pointer is None else pointer.previous,
            generation=None if pointer is None else pointer.generation,
            held=pointer is not None and pointer.held,
            canary=None if pointer is None else pointer.canary,
            share=0.0 if pointer is None else pointer.share,
            serving=self._serving(),
            versions=versions,
            decisions=[msgspec.to_builtins(decision) for decision in self._registry.decisions(20)],
        )

    async def promote(self, version: str, order: PromoteRequest) -> PointerAnswer:
        """Move the pointer to this version.

        Raises:
            NotFound: there is no such version.
            PromotionRefused: its verdict does not pass and nobody forces it.
            RegistryError: it is damaged, or the pointer moved meanwhile.
        """
        self._insist(version)
        verdict = await asyncio.to_thread(self._verdict, version)
        moved = await asyncio.to_thread(
            self._registry.promote, version, verdict, generation=order.generation, force=order.force, who="api"
        )
        return _pointer(moved)

    async def rollback(self, version: str) -> PointerAnswer:
        """Move the pointer back to this version and hold it there.

        Raises:
            NotFound: there is no such version.
            RegistryError: it is damaged.
        """
        self._insist(version)
        return _pointer(await asyncio.to_thread(self._registry.rollback, who="api", to=version))

    async def canary(self, version: str, order: CanaryRequest) -> PointerAnswer:
        """Try this version on a share of the users.

        Raises:
            NotFound: there is no such version.
            PromotionRefused: a rollback holds the pointer.
            RegistryError: it is damaged or served already, another canary runs, or the pointer moved meanwhile.
        """
        self._insist(version)
        return _pointer(await asyncio.to_thread(self._canary, version, order))

    def _canary(self, version: str, order: CanaryRequest) -> Pointer:
        share = order.share or self._registry.first_share(version)
        return self._registry.canary(version, share, generation=order.generation, who="api")

    async def withdraw(self, version: str) -> PointerAnswer:
        """End the trial of this version.

        Raises:
            NotFound: it is not the canary.
            RegistryError: the pointer moved meanwhile.
        """
        pointer = await asyncio.to_thread(self._registry.current)
        if pointer is None or pointer.canary != version:
            raise NotFound("canary", version, "GET /v1/models names the canary, if there is one")
        ended = partial(self._registry.withdraw, who="api", reasons=("by hand",), generation=pointer.generation)
        return _pointer(await asyncio.to_thread(ended))

    def _insist(self, version: str) -> None:
        if version not in self._registry.versions():
            raise NotFound("version", version, "GET /v1/models lists the versions there are")

    def _verdict(self, version: str) -> Verdict:
        """The latest verdict that was recorded on this version."""
        for decision in reversed(self._registry.decisions()):
            if decision.version == version and decision.decision in ("pass", "hold", "refuse"):
                return Verdict(cast(Decision, decision.decision), decision.reasons, decision.measures)
        return Verdict("hold", ('nobody has judged this version; send {"force": true} to serve it all the same',))


def _pointer(pointer: Pointer) -> PointerAnswer:
    return PointerAnswer(
        version=pointer.version,
        previous=pointer.previous,
        generation=pointer.generation,
        held=pointer.held,
        canary=pointer.canary,
        share=pointer.share,
    )
