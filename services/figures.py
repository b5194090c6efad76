"""What the deployment measured, for those who watch it: the monitor's windows and every process's metrics."""

import asyncio
import http.client
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from ranker.decisions import Decision
from ranker.errors import RequestError, StoreUnavailable
from ranker.spread import Period
from services.messages import FairnessAnswer, Target
from services.telemetry import Telemetry, merge_text
from streaming.monitor import PERIODS, TOTAL, Window

#: /v1/fairness goes back so many hours unless asked for another number, and so many at most
HOURS, MOST_HOURS = 1.0, 24.0
#: what /v1/fairness measures, for who reads it without the manual; docs/fairness.md has the limits
MEASURES = {
    "accuracy": "of two items of a slate, one chosen and one not: how often the chosen one had the higher probability",
    "auc": "the same over all items shown to the group, not only within a slate",
    "ndcg": "how far up in the order served the chosen items stood, 1 is at the top",
    "rate": "outcomes per item shown; groups may want different things, so a gap is no harm by itself",
    "bias": "foretold less happened, per item shown; above 0 the group is promised more than it gets",
    "calibration_error": "how far foretold and happened rates differ in bins of probability; small groups have more",
    "miscalibration": "how far (C_KL, nats) a slate's categories are from those of the person's history",
    "exposure": "share of the attention that goes where the person's interests are, 1 is all of it",
    "gap": "the best group less the worst; where low to high holds 0 it may be chance",
    "ratio": "the smaller of the two over the larger, 1 is equal",
    "std, gini, jain": "how unequal people's own accuracy is: 0, 0 and 1 where all are served alike",
    "cvar10": "mean accuracy of the worst-served tenth of the people",
    "spearman_support": "whether who shares the majority's preferences is served better: 0 is no, 1 is always",
}


class Watches(Protocol):
    """The part of streaming.store.AsyncStore that is needed here."""

    async def windows(self, since: int = 0, *, name: str = "fairness") -> list[tuple[int, bytes]]:
        """The monitor's windows."""
        ...

    async def targets(self) -> dict[str, str]:
        """Where each process serves its metrics."""
        ...


class Figures:
    """Reads them from the store and from the processes.

    Args:
        token: the one that processes show their metrics to.
        clock: seconds since the epoch.
        decisions: the latest of the registry.
    """

    def __init__(
        self,
        reads: Watches,
        telemetry: Telemetry,
        token: str,
        clock: Callable[[], float],
        decisions: Callable[[], Sequence[Decision]] = tuple,
    ) -> None:
        self._reads, self._telemetry, self._token, self._clock = reads, telemetry, token, clock
        self._decisions = decisions

    async def fairness(self, hours: str | None = None) -> FairnessAnswer:
        """The latest period, and periods and windows of the last hours, oldest first; the latest decisions.

        Raises:
            RequestError: hours are no number from 0 to 24.
            StoreUnavailable: the store is away.
        """
        since = int((self._clock() - 3600 * _hours(hours)) * 1000)
        total, found = await self._reads.windows(name=TOTAL), await self._reads.windows(since)
        periods = [_period(raw) for _, raw in await self._reads.windows(name=PERIODS)]
        return FairnessAnswer(
            measures=MEASURES,
            latest=periods[-1] if periods else None,
            decisions=list(await asyncio.to_thread(self._decisions)),
            periods=[period for period in periods if period.start >= since],
            windows=[_window(raw) for _, raw in found],
            total=_window(total[-1][1]) if total else None,
        )

    async def targets(self) -> list[Target]:
        """What Prometheus is to scrape.

        Raises:
            StoreUnavailable: the store is away.
        """
        found = await self._reads.targets()
        return [Target(targets=[at], labels={"process": process}) for process, at in sorted(found.items())]

    async def exposition(self) -> str:
        """The metrics of every process that can be reached, on one page."""
        try:
            found = await self._reads.targets()
        except StoreUnavailable:
            found = {}
        others = {process: at for process, at in found.items() if process != self._telemetry.process}
        pages = await asyncio.gather(*(asyncio.to_thread(_page, at, self._token) for at in others.values()))
        texts = {process: page for process, page in zip(others, pages, strict=True) if page is not None}
        return merge_text({self._telemetry.process: self._telemetry.text(), **texts})


_window = msgspec.json.Decoder(Window).decode
_period = msgspec.json.Decoder(Period).decode


def _hours(asked: str | None) -> float:
    try:
        hours = HOURS if asked is None else float(asked)
    except ValueError:
        hours = -1.0
    if not 0 < hours <= MOST_HOURS:
        raise RequestError("hours", asked, f"send a number of hours, up to {MOST_HOURS:g}")
    return hours


def _page(address: str, token: str) -> str | None:
    """The metrics page of another process, None where it does not answer in time."""
    connection = http.client.HTTPConnection(address, timeout=1.0)
    try:
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.read().decode() if answer.status == 200 else None
    except (OSError, http.client.HTTPException, UnicodeDecodeError):
        return None
    finally:
        connection.close()
