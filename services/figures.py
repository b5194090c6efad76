"""What the deployment measured, for those who watch it: the monitor's windows and every process's metrics."""

import asyncio
import http.client
from collections.abc import Callable
from typing import Protocol

import msgspec

from ranker.errors import StoreUnavailable
from services.messages import FairnessAnswer, Target
from services.telemetry import Telemetry, merge_text
from streaming.monitor import TOTAL, Window

#: /v1/fairness shows so many seconds
WINDOWS_S = 24 * 3600


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
    """

    def __init__(self, reads: Watches, telemetry: Telemetry, token: str, clock: Callable[[], float]) -> None:
        self._reads, self._telemetry, self._token, self._clock = reads, telemetry, token, clock

    async def fairness(self) -> FairnessAnswer:
        """The monitor's sums in all and by window of the last day, oldest first.

        Raises:
            StoreUnavailable: the store is away.
        """
        since = int((self._clock() - WINDOWS_S) * 1000)
        total, found = await self._reads.windows(name=TOTAL), await self._reads.windows(since)
        return FairnessAnswer(
            total=_window(total[-1][1]) if total else None, windows=[_window(raw) for _, raw in found]
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
