"""The retrieval index of a large catalogue, which lives longer than a version of the weights.

Versions come every few seconds; embedding a million items and building their lists takes longer. So the versions of an
epoch share one index: the vectors of the version that began it, and of whichever version was in use when an item came
later. A person's taste and the scores of what is found are always of the fresh weights; what the older vectors cost is
measured (`recall`). A new epoch goes on answering from the index of the one before until its own is built.

What is built, is built in a thread of its own, and one reference is assigned: a reader meets the index before or the
one after. Axes: N items, R catalogue rows, X coordinates [phi, b].
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import is_not

import numpy as np

from ranker.catalogue import Item
from ranker.events import WITHDRAWN
from ranker.index import FLAT, Floats, Index, Rows

#: it is built anew when this share of its lines is loose
LOOSE = 0.05
#: and not for fewer than these
FEW = 4096
#: queries kept for measuring recall, and rows it is measured on
QUERIES, SAMPLE = 8, 65_536


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What a version says of items.

    Attributes:
        vectors_NX: [phi, b].
        shown_N: how often each was shown lately, see `Inference.impressions`.
    """

    vectors_NX: Floats
    shown_N: Floats


Tell = Callable[[Rows], Told]


def withdrawn(item: Item) -> bool:
    """Whether an item event took it out of what is recommended, until another one brings it back.

    Example:
        >>> withdrawn(Item("a", {"withdrawn": True})), withdrawn(Item("a"))
        (True, False)
    """
    return item.fields.get(WITHDRAWN) is True


class Epoch:
    """One index for all versions of an epoch.

    Args:
        version: the version whose vectors it begins with.
        before: what answers until its own index is built.
        flat: up to so many items it is built on the spot, in one list.
    """

    def __init__(self, version: str = "", *, before: "Epoch | None" = None, flat: int = FLAT) -> None:
        self.version, self._flat = version, flat
        self.index: Index | None = None
        self.born_N, self.shown_N = np.zeros(0, np.int64), np.zeros(0, np.float32)
        self.builds = self._changes = 0
        self._seen: list[Item] = []
        self._before = before
        self._since: list[Rows] | None = None
        self._thread: threading.Thread | None = None
        self._trouble: BaseException | None = None
        self._lock = threading.Lock()
        self._queries: deque[Floats] = deque(maxlen=QUERIES)

    @classmethod
    def of(cls, version: str, using: "Epoch | None" = None) -> "Epoch":
        """The epoch that this version began: the one in use where it did, else a new one."""
        if using is not None and using.version == version:
            return using
        # one without an index has nothing to answer with, and would be kept in memory for nothing
        return cls(version, before=None if using is None or using.index is None else using)

    def take(self, items: Sequence[Item], tell: Tell) -> int:
        """Take up new, replaced and withdrawn items; versions may call it in turn, the first one tells.

        Returns:
            How many calls found something to take up.

        Raises:
            BaseException: what ended the thread that was building; the index before stays in use.
        """
        with self._lock:
            trouble, self._trouble = self._trouble, None
            if trouble is not None:
                raise trouble
            seen = self._seen
            changed = [*compress(range(len(seen)), map(is_not, items, seen)), *range(len(seen), len(items))]
            if not changed and self.index is not None:
                return self._changes
            rows = np.array(changed, np.int64)
            grown = len(items) - len(self.born_N)
            self.born_N = np.pad(self.born_N, (0, grown))
            self.born_N[rows] = [items[row].first_seen for row in changed]
            self.shown_N = np.pad(self.shown_N, (0, grown))
            self._seen = list(items)
            gone = rows[[withdrawn(items[row]) for row in changed]] if changed else rows
            rows = np.setdiff1d(rows, gone)
            before, self._before = self._before, None
            if self.index is None and before is not None and before.index is not None:
                self.index = before.index
                fresh = rows[~self.index.holds(rows)]
                self._put(fresh, tell(fresh))
                shared = min(len(before.shown_N), len(items))
                self.shown_N[:shared] = before.shown_N[:shared]
                self.index = self.index.remove(gone)
                self._build(lambda: self._told(rows, tell), rows)
            elif self.index is None:
                told = tell(rows)
                self.shown_N[rows] = told.shown_N
                # until the lists are built every item is looked at: slower, and exact
                self.index = Index(told.vectors_NX, rows, flat=max(self._flat, len(rows)))
                if len(rows) > self._flat:
                    self._build(lambda: told.vectors_NX, rows)
            else:
                self._put(rows, tell(rows))
                self.index = self.index.remove(gone)
                if self.index.loose > max(FEW, LOOSE * len(self.index)) and self._thread is None:
                    held, kept = self.index, self.index.rows
                    self._build(lambda: held.vectors(kept), kept)
            self._changes += 1
            return self._changes

    def wait(self, timeout: float | None = None) -> None:
        """Until what is being built is in use."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def asked(self, query_X: Floats) -> None:
        """Remember a query, for `recall`."""
        self._queries.append(query_X)

    def recall(self, tell: Tell, count: int) -> float | None:
        """The share of what is best by fresh vectors that the index finds, over the last queries; None before any.

        Of an even sample of the rows the best are taken, as many as fall to it of `count`, and looked for among the
        `count` that the index finds: embedding every row would take seconds.
        """
        index, queries = self.index, list(self._queries)
        if index is None or not queries or not len(index):
            return None
        rows = index.rows
        rows = rows[:: max(1, len(rows) // SAMPLE)]
        fresh_SX, best = tell(rows).vectors_NX, max(1, round(count * len(rows) / len(index)))
        shares = []
        for query_X in queries:
            wanted = rows[np.argsort(-(fresh_SX @ query_X), kind="stable")[:best]]
            shares.append(np.isin(wanted, index.search(query_X, count)[0]).mean())
        return float(np.mean(shares))

    def _put(self, rows: Rows, told: Told) -> None:
        assert self.index is not None
        if len(rows):
            self.index = self.index.put(rows, told.vectors_NX)
            self.shown_N[rows] = told.shown_N
            if self._since is not None:
                self._since.append(rows)

    def _told(self, rows: Rows, tell: Tell) -> Floats:
        told = tell(rows)
        with self._lock:
            self.shown_N[rows] = told.shown_N
        return told.vectors_NX

    def _build(self, vectors: Callable[[], Floats], rows: Rows) -> None:
        self._since = []

        def build() -> None:
            try:
                built = Index(vectors(), rows, flat=self._flat)
                with self._lock:
                    assert self.index is not None
                    for later in self._since or ():
                        held = later[self.index.holds(later)]
                        built = built.put(held, self.index.vectors(held))
                    kept = built.rows
                    self.index = built.remove(kept[~self.index.holds(kept)])  # what was withdrawn meanwhile
                    self.builds += 1
            except BaseException as error:
                self._trouble = error
            finally:
                self._since = self._thread = None

        self._thread = threading.Thread(target=build, name="index-build", daemon=True)
        self._thread.start()
