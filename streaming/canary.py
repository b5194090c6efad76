"""The hand on the pointer while a canary runs: follows the registry, and does what `ranker/canary.py` says.

Part of the monitor, which reads both arms' slates anyway. Every move names the generation of the pointer that it was
decided on, so of two monitors, or of one that was killed and decides again, only one acts.
"""

import logging
from collections.abc import Mapping

import msgspec

from ranker.canary import Step, Trial
from ranker.config import Config
from ranker.errors import CheckpointError, RegistryError
from ranker.join import Example
from ranker.registry import Pointer, Registry

log = logging.getLogger("plurank.canary")

WHO = "monitor"


class Watch:
    """The trial that the pointer asks for, if any, and the moves that follow from it."""

    def __init__(self, config: Config, registry: Registry) -> None:
        self.config, self.registry = config, registry
        self.trial: Trial | None = None
        self._pointer: Pointer | None = None

    def follow(self) -> None:
        """Begin, go on with or drop the trial, as the pointer says; costs a stat while it stays."""
        try:
            pointer = self.registry.current()
        except RegistryError as error:
            log.error("the canary is not watched: %s", error)
            return
        self._pointer = pointer
        if pointer is None or pointer.canary is None:
            self.trial = None
            return
        asked = (pointer.version, pointer.canary, pointer.began)
        if self.trial is None or (self.trial.current, self.trial.canary, self.trial.began) != asked:
            self.trial = Trial(self.config, pointer.version, pointer.canary, began=pointer.began)
        self.trial.grown(pointer.since)

    def add(self, example: Example, groups: Mapping[str, str]) -> None:
        """Count one closed slate."""
        if self.trial is not None:
            self.trial.add(example, groups)

    def forget(self, user: str) -> None:
        """Drop the user's slates."""
        if self.trial is not None:
            self.trial.forget(user)

    def judge(self, now: int) -> Step | None:
        """Move the pointer if the slates so far say so; returns what was done, None where nothing was.

        Args:
            now: event time, ms.
        """
        pointer, trial = self._pointer, self.trial
        if trial is None or pointer is None:
            return None
        step = trial.judge(pointer.share, now)
        if step.action == "hold":
            return None
        verdict, generation = step.verdict, pointer.generation
        try:
            if step.action == "grow":
                self.registry.canary(trial.canary, step.share, who=WHO, generation=generation, verdict=verdict)
            elif step.action == "promote":
                self.registry.promote(trial.canary, verdict, generation=generation, who=WHO)
            else:
                self.registry.withdraw(who=WHO, reasons=verdict.reasons, generation=generation, verdict=verdict)
        except RegistryError as error:  # somebody else moved it, or the version is damaged: a replica withdraws it
            log.warning("%s was not done: %s", step.action, error)
            return None
        log.info("canary %s: %s; %s", trial.canary, step.action, "; ".join(verdict.reasons))
        self.follow()
        return step

    def state(self) -> bytes:
        """The trial, for the monitor's checkpoint; empty without one."""
        return b"" if self.trial is None else self.trial.state()

    def load(self, raw: bytes) -> None:
        """The trial out of `state`; whether it still runs, `follow` finds out.

        Raises:
            CheckpointError: it is damaged.
        """
        try:
            self.trial = Trial.load(self.config, raw) if raw else None
        except msgspec.MsgspecError as error:
            raise CheckpointError("canary trial", str(error), "delete the checkpoint; the trial begins anew") from None
