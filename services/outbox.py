"""What a replica writes to the log: feedback, which its sender waits for, and served slates, which nobody waits for.

Slates wait in a bounded queue until the broker has them; a write that fails is tried again with the same id. What
finds the queue full is dropped, counted, and said in the answer, so that memory stays bounded while a broker is away.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from ranker.errors import EventError, LogUnavailable
from ranker.events import Event

Place = tuple[int, int]
RETRY_S = 0.5
#: slates are taken up this often: waking a thread for each would cost the request the interpreter before its answer
TICK_S = 0.02
THREADS = 8


class Appends(Protocol):
    """The part of streaming.log.Writer that is needed here."""

    @property
    def log(self) -> str:
        """The identity of the log."""
        ...

    def append(self, event: Event) -> "Future[Place]":
        """Append; the future holds (partition, offset)."""
        ...

    def close(self) -> None:
        """Flush and hang up."""
        ...


class Outbox:
    """Owns the writer: connects it, writes feedback, sends slates after it.

    Args:
        connect: makes the writer; LogUnavailable where there is no broker yet.
        limit: slates that may wait.
    """

    def __init__(self, connect: Callable[[], Appends], *, limit: int) -> None:
        self._connect, self._limit = connect, limit
        self._writer: Appends | None = None
        self._waiting: deque[Callable[[], Event]] = deque()
        self._open = 0
        self._change = threading.Condition()
        self._stop, self._failed = threading.Event(), False
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="feedback")
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self.dropped = 0
        self.sent = 0

    def start(self) -> None:
        """Connect and begin to send."""
        self._thread.start()

    def close(self, timeout: float = 5.0) -> int:
        """Wait for what is on its way, hang up; returns how many slates did not get through."""
        deadline = time.monotonic() + timeout
        with self._change:
            while self._open and (left := deadline - time.monotonic()) > 0 and self._writer is not None:
                self._change.wait(left)
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._thread.is_alive():
            self._thread.join(timeout)
        if self._writer is not None:
            self._writer.close()
        return self._open

    @property
    def log(self) -> str | None:
        """The identity of the log, None before the first connection."""
        return None if self._writer is None else self._writer.log

    @property
    def open(self) -> int:
        """Slates that the broker does not have yet."""
        return self._open

    def offer(self, make: Callable[[], Event]) -> bool:
        """Send a slate soon; False where the queue is full. `make` runs later, off the request's time."""
        with self._change:
            if self._open >= self._limit or self._stop.is_set():
                self.dropped += 1
                return False
            self._open += 1
            self._waiting.append(make)
        return True

    async def write(self, events: Sequence[Event], timeout: float) -> list[Place]:
        """Write the events and wait until the broker has all of them.

        Raises:
            LogUnavailable: no broker, or not within the timeout; some may be written, ids make a repeat harmless.
        """
        writer = self._writer
        if writer is None:
            raise _away("not connected")
        if not events:
            return []
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                # append may block while the broker's metadata is unknown, so it has threads of its own
                futures = await loop.run_in_executor(self._pool, lambda: [writer.append(event) for event in events])
                await _all(futures, loop)
        except TimeoutError:
            raise _away(f"no acknowledgement within {timeout} s") from None
        return [future.result() for future in futures]

    def _run(self) -> None:
        while not self._stop.is_set() and self._writer is None:
            try:
                self._writer = self._connect()
            except LogUnavailable:
                self._stop.wait(RETRY_S)
        while not self._stop.wait(TICK_S):
            with self._change:
                makes, self._waiting = self._waiting, deque()
            if self._failed:
                self._failed = False
                time.sleep(RETRY_S)
            for make in makes:
                self._send(make())

    def _send(self, event: Event) -> None:
        assert self._writer is not None
        try:
            self._writer.append(event).add_done_callback(lambda future: self._done(event, future))
        except EventError:  # larger than a record may be; trying again will not help
            self._settle(sent=False)

    def _done(self, event: Event, future: "Future[Place]") -> None:
        error = future.exception()
        if isinstance(error, LogUnavailable) and not self._stop.is_set():
            with self._change:
                self._failed = True
                self._waiting.append(lambda: event)
        else:
            self._settle(sent=error is None)

    def _settle(self, *, sent: bool) -> None:
        with self._change:
            self._open -= 1
            self.sent += sent
            self.dropped += not sent
            self._change.notify_all()


async def _all(futures: "Sequence[Future[Place]]", loop: asyncio.AbstractEventLoop) -> None:
    """Wait for many futures of other threads with a single wake-up of the loop."""
    done, left, lock = loop.create_future(), len(futures), threading.Lock()

    def settle() -> None:
        if not done.done():
            done.set_result(None)

    def one(_: "Future[Place]") -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last and not loop.is_closed():
            loop.call_soon_threadsafe(settle)

    for future in futures:
        future.add_done_callback(one)
    await done


def _away(reason: str) -> LogUnavailable:
    return LogUnavailable(
        "event log", reason, "send the same events again in a moment; their ids make repeats harmless"
    )
