"""Replay: an event file onto the log, at the pace it was recorded, faster, or as fast as the broker takes it."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Event as Signal

import msgspec

from ranker.events import Event
from streaming.log import Writer

#: events in flight at most: bounds memory, and keeps Ctrl-C short
WINDOW = 5000


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a replay is: events acknowledged, the recorded time of the last one (ms), and seconds since it began."""

    events: int
    time: int
    seconds: float


def replay(
    stream: Iterable[Event],
    writer: Writer,
    *,
    speed: float = 0.0,
    shift_to_now: bool = False,
    stop: Signal | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Append all events in their order; returns when the last one is acknowledged.

    Args:
        speed: 1 keeps the recorded pace, 10 is ten times as fast, 0 as fast as possible.
        shift_to_now: stamp each event with the moment it is due, so that recorded gaps shrink by `speed`; without
            it times are kept (an old time is fine, one far ahead of the clock is refused by the loops).
        progress: called about twice a second.

    Raises:
        LogUnavailable: the broker stayed away longer than the writer waits.
    """
    began, done, last = time.monotonic(), 0, 0
    reported = began
    flying: deque[Future[tuple[int, int]]] = deque()
    first: int | None = None
    for event in stream:
        if first is None:
            first = event.time
        due = began + ((event.time - first) / 1000 / speed if speed > 0 else 0.0)
        while (wait := due - time.monotonic()) > 0 and not (stop is not None and stop.is_set()):
            time.sleep(min(wait, 0.1))
        if stop is not None and stop.is_set():
            break
        last = event.time
        if shift_to_now:
            event = msgspec.structs.replace(event, timestamp=int(time.time() * 1000))  # noqa: PLW2901
        flying.append(writer.append(event))
        while flying and (flying[0].done() or len(flying) > WINDOW):
            flying.popleft().result()
            done += 1
        if (now := time.monotonic()) - reported > 0.5:
            reported = now
            progress(Progress(events=done, time=last, seconds=now - began))
    for future in flying:
        future.result()
        done += 1
    final = Progress(events=done, time=last, seconds=time.monotonic() - began)
    progress(final)
    return final
