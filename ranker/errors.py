"""Every deliberate error of plurank: one picklable tree.

An error names the thing, the value that was wrong and the remedy, so that whoever reads it can act.
"""

from typing import Any


class PlurankError(Exception):
    """The root of all deliberate errors.

    Args:
        thing: what is wrong, as the user knows it ("objectives[0].wait", "candidate list").
        value: the offending value, kept as it came.
        remedy: what to do about it, a full clause.

    Example:
        >>> str(PlurankError("limit", 0, "ask for 1 or more items"))
        'limit: 0 is not usable; ask for 1 or more items'
    """

    problem = "is not usable"
    status = 500

    def __init__(self, thing: str, value: Any = None, remedy: str = "") -> None:
        super().__init__(thing, value, remedy)
        self.thing, self.value, self.remedy = thing, value, remedy

    def __str__(self) -> str:
        shown = repr(self.value)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        return f"{self.thing}: {shown} {self.problem}" + (f"; {self.remedy}" if self.remedy else "")


class ConfigError(PlurankError):
    """The configuration cannot mean what it says."""


class EventError(PlurankError):
    """A record is not an event of the contract; it belongs in the dead-letter topic."""

    problem = "is not a valid event"
    status = 422


class DataError(PlurankError):
    """A data set or event file is missing, damaged or unsuited."""


class RequestError(PlurankError):
    """A caller's request cannot be answered as it stands."""

    status = 422


class AuthError(RequestError):
    """No token, a wrong token (401) or a token without the needed scope (403)."""

    status = 401
    problem = "is not allowed"


class NotFound(RequestError):
    """What was asked for does not exist here."""

    status = 404
    problem = "was not found"


class RegistryError(PlurankError):
    """A version is missing, damaged, or the registry's pointer moved meanwhile."""

    status = 409


class PromotionRefused(RegistryError):
    """The verdict does not allow this version to be served."""

    problem = "may not be promoted"


class LogUnavailable(PlurankError):
    """The event log (Kafka) cannot be reached or refused a write."""

    status = 503
    problem = "is unavailable"


class StoreUnavailable(PlurankError):
    """The evidence store (Valkey) cannot be reached."""

    status = 503
    problem = "is unavailable"


class CheckpointError(PlurankError):
    """A checkpoint or journal is damaged or belongs to another log."""
