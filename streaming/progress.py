"""What the stream says of the versions served and of the learner, while it flows.

Both scored each slate before anybody learned from it, so the numbers are honest (progressive validation).

Axes: R rows of the window, T objectives.
"""

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ranker.config import Config
from ranker.join import Example
from ranker.metrics import auc

ROWS = 20_000


class Progress:
    """The last rows of closed slates with two predictions each: the one that was served and the learner's own.

    Args:
        rows: how many are kept.
    """

    def __init__(self, config: Config, *, rows: int = ROWS) -> None:
        self._names = [objective.name for objective in config.objectives]
        self._binary = [objective.kind == "binary" for objective in config.objectives]
        shape = (rows, len(self._names))
        self._labels_RT = np.zeros(shape, np.float32)
        self._mask_RT = np.zeros(shape, np.bool_)
        self._served_RT = np.full(shape, np.nan, np.float32)
        self._learner_RT = np.full(shape, np.nan, np.float32)
        self._next = 0

    def add(self, example: Example, predicted_NT: NDArray[np.float32] | None) -> None:
        """Take up a closed slate; predictions may be missing."""
        rows = len(self._labels_RT)
        places = np.arange(self._next, self._next + len(example.items)) % rows
        self._labels_RT[places] = example.labels_NT
        self._mask_RT[places] = example.mask_NT > 0
        self._served_RT[places] = np.nan if example.served_NT is None else example.served_NT
        self._learner_RT[places] = np.nan if predicted_NT is None else predicted_NT
        self._next = (self._next + len(example.items)) % rows

    def served(self) -> dict[str, float]:
        """AUC by objective of what was served; objectives without both classes are left out."""
        return self._auc(self._served_RT)

    def learner(self) -> dict[str, float]:
        """AUC by objective of the learner's predictions, made when each slate was shown."""
        return self._auc(self._learner_RT)

    def _auc(self, chances_RT: NDArray[np.float32]) -> dict[str, float]:
        known_RT = self._mask_RT & np.isfinite(chances_RT)
        found = {}
        for place, name in enumerate(self._names):
            known_R = known_RT[:, place]
            labels_R = self._labels_RT[known_R, place]
            if self._binary[place] and 0 < labels_R.sum() < len(labels_R):
                found[name] = auc(labels_R, chances_RT[known_R, place])
        return found


class Rate:
    """Events per second over the last few seconds of the clock."""

    def __init__(self, clock: Callable[[], float], *, seconds: float = 5.0) -> None:
        self._clock, self._seconds = clock, seconds
        self._seen = deque([(clock(), 0)])

    def add(self, events: int) -> float:
        """Count these; returns the rate now."""
        now = self._clock()
        self._seen.append((now, events))
        while len(self._seen) > 2 and self._seen[0][0] < now - self._seconds:
            self._seen.popleft()
        passed = now - self._seen[0][0]
        return sum(events for _, events in list(self._seen)[1:]) / passed if passed > 0 else 0.0
