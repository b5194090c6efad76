"""Candidates by utility: the items with the largest r(u, i) = z . phi_i + b_i, an inner product with [z, 1].

An Index is a value: adding, replacing and removing give a new one, so a reader never meets a half-made change. What was
built stays as it is, grouped in lists; what was put since lies beside it and every search reads it whole; what was
removed or replaced is passed over. `rebuilt` makes one built Index of all that. Up to FLAT items there is one list, so
search is exact; beyond, a search reads the lists that promise most (ranker/clusters.py).

Axes: N built lines, M lines put since, R catalogue rows, X coordinates [phi, b].
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ranker.clusters import Lists, clustered, one_list

#: up to so many items every one is looked at
FLAT = 100_000
#: the share of the items that are allowed which a search of lists reads
SHARE = 0.05
#: and how many times what is asked for, of what is allowed: lists do not know the filter
DEPTH = 12
#: so few allowed items are looked at one by one; and more, where lists would have to be read for as many lines
FEW = 4096
#: from so many scores on the best are sought among those above a sampled threshold
MANY = 20_000

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Among:
    """Rows that may be found.

    Attributes:
        rows: all of them, each once.
        has: which of given rows they are; quicker than looking them up.
    """

    rows: NDArray[np.integer]
    has: Callable[[Rows], NDArray[np.bool_]]

    @classmethod
    def of(cls, allowed_R: NDArray[np.bool_]) -> Among:
        """The rows whose entry is true; rows beyond the end are not among them."""

        def has(rows: Rows) -> NDArray[np.bool_]:
            found = rows < len(allowed_R)
            found[found] = allowed_R[rows[found]]
            return found

        return cls(np.flatnonzero(allowed_R), has)


class Index:
    """Rows of a catalogue by inner product.

    Args:
        vectors_NX: one line per item.
        rows: the catalogue row of each line, each once; by default the line number.
        flat: up to so many lines are kept in one list.
        seed: of the clustering.

    Example:
        >>> index = Index(np.eye(3, dtype=np.float32))
        >>> index.search(np.array([0.0, 2.0, 1.0]), 2)[0].tolist()
        [1, 2]
        >>> index.put(np.array([7]), np.array([[0, 9, 9]], np.float32)).search(np.array([0.0, 2.0, 1.0]), 2)[0].tolist()
        [7, 1]
    """

    def __init__(
        self, vectors_NX: NDArray[np.floating], rows: Rows | None = None, *, flat: int = FLAT, seed: int = 0
    ) -> None:
        vectors_NX = np.ascontiguousarray(vectors_NX, np.float32)
        rows = np.arange(len(vectors_NX)) if rows is None else np.asarray(rows, np.int64)
        self.flat = flat
        self.lists: Lists = one_list(vectors_NX) if len(vectors_NX) <= flat else clustered(vectors_NX, seed=seed)
        whole = len(self.lists) == 1
        self._lines_NX = vectors_NX if whole else vectors_NX[self.lists.order_N]
        self._rows_N = rows if whole else rows[self.lists.order_N]
        self._place_R = np.full(int(rows.max()) + 1 if len(rows) else 0, -1, np.int32)
        self._place_R[self._rows_N] = np.arange(len(rows), dtype=np.int32)
        self._rows_M, self._put_MX = np.zeros(0, np.int64), np.zeros((0, vectors_NX.shape[1]), np.float32)
        self._live = len(rows)

    def __len__(self) -> int:
        return self._live

    @property
    def loose(self) -> int:
        """Lines that were put, replaced or removed since it was built: what every search pays for."""
        return len(self._rows_M) + (len(self._rows_N) + len(self._rows_M) - self._live)

    @property
    def rows(self) -> Rows:
        """The rows it holds, rising."""
        return np.flatnonzero(self._place_R >= 0)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        arrays = (self._lines_NX, self._rows_N, self._place_R, self._rows_M, self._put_MX)
        return sum(array.nbytes for array in (*arrays, self.lists.centres_LX, self.lists.order_N))

    def vectors(self, rows: NDArray[np.integer]) -> Floats:
        """The lines of rows that it holds."""
        place, built = self._place_R[rows], len(self._rows_N)
        if not len(self._rows_M):
            built_NX: Floats = self._lines_NX[place]
            return built_NX
        found = np.empty((len(rows), self._lines_NX.shape[1]), np.float32)
        old = place < built
        found[old], found[~old] = self._lines_NX[place[old]], self._put_MX[place[~old] - built]
        return found

    def holds(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of the rows it holds."""
        found: NDArray[np.bool_] = rows < len(self._place_R)
        found[found] = self._place_R[rows[found]] >= 0
        return found

    def search(
        self,
        query_X: NDArray[np.floating],
        count: int,
        *,
        among: Among | None = None,
        share: float = SHARE,
        depth: int = DEPTH,
    ) -> tuple[Rows, Floats]:
        """Rows by falling inner product, and the products: `count`, or all that there are where they are fewer.

        Args:
            among: the rows that may be found; all of them without it.
            share: of what is allowed, how much is read at least; 1 is exact.
            depth: and how many times `count`, where only some rows may be found.

        Shapes: returns (n,) and (n,), n <= count.
        """
        query_X = np.ascontiguousarray(query_X, np.float32)
        count = min(count, len(self))
        if count <= 0:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        needed = max(count, round(share * len(self)))
        if among is not None:
            allowed = len(among.rows)
            needed = max(depth * count, round(share * allowed))
            # lists hold one allowed line in len(self) / allowed; a line on its own costs about twice one of a list
            if allowed <= FEW or 2 * allowed * allowed <= needed * len(self):
                return self.best(among.rows, query_X, count)
        probes = max(1, round(share * len(self.lists)))
        while True:
            rows, scores, enough = self._scan(query_X, probes, among, needed)
            if enough:
                return _best(rows, scores, count)
            probes = min(len(self.lists), 2 * probes)

    def best(self, rows: NDArray[np.integer], query_X: NDArray[np.floating], count: int) -> tuple[Rows, Floats]:
        """The best of these rows, exactly; rows that it does not hold are passed over."""
        held: Rows = rows[self.holds(rows)].astype(np.int64, copy=False)
        return _best(held, self.vectors(held) @ np.asarray(query_X, np.float32), count)

    def put(self, rows: Rows, vectors_MX: NDArray[np.floating]) -> Index:
        """With these rows added, or replaced where they were there; of a row named twice the last line counts."""
        rows = np.asarray(rows, np.int64)
        if not len(rows):
            return self
        new = copy.copy(self)
        size = max(len(self._place_R), int(rows.max()) + 1)
        new._place_R = np.full(size, -1, np.int32)
        new._place_R[: len(self._place_R)] = self._place_R
        start = len(self._rows_N) + len(self._rows_M)
        new._live = self._live + int((new._place_R[np.unique(rows)] < 0).sum())
        new._place_R[rows] = np.arange(start, start + len(rows), dtype=np.int32)
        new._rows_M = np.concatenate([self._rows_M, rows])
        new._put_MX = np.concatenate([self._put_MX, np.asarray(vectors_MX, np.float32)])
        return new

    def remove(self, rows: Rows) -> Index:
        """Without these rows; rows that were not there are passed over."""
        rows = np.unique(np.asarray(rows, np.int64))
        rows = rows[self.holds(rows)]
        if not len(rows):
            return self
        new = copy.copy(self)
        new._place_R = self._place_R.copy()
        new._place_R[rows] = -1
        new._live = self._live - len(rows)
        return new

    def rebuilt(self, *, seed: int = 0) -> Index:
        """The same rows and lines, built anew: nothing loose, and lists as the vectors lie now."""
        rows = self.rows
        return Index(self.vectors(rows), rows, flat=self.flat, seed=seed)

    def _scan(self, query_X: Floats, probes: int, among: Among | None, needed: int) -> tuple[Rows, Floats, bool]:
        """Live and allowed rows of the most promising lists and of what was put, with their products."""
        built, whole = len(self._rows_N), probes >= len(self.lists)
        parts = [slice(0, built)]
        if not whole:
            picked = self.lists.promising(query_X, probes)
            starts, stops = self.lists.starts[picked].tolist(), self.lists.starts[picked + 1].tolist()
            parts = [slice(*ends) for ends in zip(starts, stops, strict=True)]
        rows: Rows = np.concatenate([self._rows_N[part] for part in parts])
        scores: Floats = np.concatenate([self._lines_NX[part] @ query_X for part in parts])
        kept = None
        if self._live < built + len(self._rows_M):
            kept = self._place_R[rows] == np.concatenate([np.arange(part.start, part.stop) for part in parts])
        if among is not None:
            may = among.has(rows)
            kept = may if kept is None else kept & may
        if kept is not None:
            rows, scores = rows[kept], scores[kept]
        if len(self._rows_M):
            live = self._place_R[self._rows_M] == np.arange(built, built + len(self._rows_M))
            if among is not None:
                live &= among.has(self._rows_M)
            rows = np.concatenate([rows, self._rows_M[live]])
            scores = np.concatenate([scores, (self._put_MX @ query_X)[live]])
        return rows, scores, whole or len(rows) >= needed


def _best(rows: Rows, scores: Floats, count: int) -> tuple[Rows, Floats]:
    """The best by falling score; of equal scores the lower row first."""
    if len(scores) > max(MANY, 16 * count):
        # nearly all lie far below: a threshold from every 16th score leaves few to sort, and is checked
        sample = scores[::16]
        least = max(0, len(sample) - count // 8 - 32)
        above = np.flatnonzero(scores >= np.partition(sample, least)[least])
        if len(above) >= count:
            rows, scores = rows[above], scores[above]
    if len(scores) > count:
        kept = np.argpartition(scores, len(scores) - count)[len(scores) - count :]
        rows, scores = rows[kept], scores[kept]
    order = np.lexsort((rows, -scores))
    return rows[order], scores[order]
