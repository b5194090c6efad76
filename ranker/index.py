"""Candidates by utility: the items with the largest r(u, i) = z . phi_i + b_i, an inner product with [z, 1].

An Index is a value: adding, replacing and removing give a new one, so a reader never meets a half-made change. What was
built stays as it is, grouped in lists; what was put since lies beside it and every search reads it whole; what was
removed or replaced is passed over. `rebuilt` makes one built Index of all that. Up to FLAT items there is one list, so
search is exact; beyond, lists are read in the order of what they promise (ranker/clusters.py), until the next one
promises less than the worst of what was found.

Axes: N built lines, M lines put since, R catalogue rows, L lists, P lines of a part, X coordinates [phi, b].
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ranker.clusters import Lists, clustered, one_list
from ranker.compiled import compiled

#: up to so many items every one is looked at
FLAT = 100_000
#: where no more than this share of the items may be found, they are picked out of the lists before any is looked at
FEW = 1 / 32
#: lines whose products are made together
BLOCK = 64
#: rows that stand for a part
SOME = 256

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]
Places = NDArray[np.int32]

_NONE = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some of an index's lines, list by list.

    Attributes:
        built_P: places of built lines, rising.
        starts: L + 1 places into `built_P`.
        put_P: of lines put since, rising.
        upto: it knows so many of those that were put.
        some: rows spread over it, to tell what it is like.
    """

    built_P: Places
    starts: NDArray[np.int64]
    put_P: Places
    upto: int
    some: Rows

    def __len__(self) -> int:
        return len(self.built_P) + len(self.put_P)


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
        self._rows_N: Places = (rows if whole else rows[self.lists.order_N]).astype(np.int32)
        self._place_R = np.full(int(rows.max()) + 1 if len(rows) else 0, -1, np.int32)
        self._place_R[self._rows_N] = np.arange(len(rows), dtype=np.int32)
        self._rows_M, self._put_MX = _NONE, np.zeros((0, vectors_NX.shape[1]), np.float32)
        self._parts: dict[int, Part] = {}
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
        arrays = [self._lines_NX, self._rows_N, self._place_R, self._rows_M, self._put_MX]
        arrays += [array for part in [*self._parts.values()] for array in (part.built_P, part.starts, part.put_P)]
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
        among: NDArray[np.bool_] | None = None,
        part: Part | None = None,
        exact: bool = False,
    ) -> tuple[Rows, Floats]:
        """Rows by falling inner product, and the products: `count`, or all that there are where they are fewer.

        Of equal products the lower row comes first.

        Args:
            among: by row, which may be found; rows beyond its end may not. All may without it.
            part: the lines that are looked at (see `part`); all of them without it.
            exact: read every list.

        Shapes: returns (n,) and (n,), n <= count.
        """
        query_X = np.ascontiguousarray(query_X, np.float32)
        count = min(count, len(self))
        if count <= 0:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        if part is None and among is not None and np.count_nonzero(among) <= FEW * len(self):
            part, among = self.parted(np.flatnonzero(among)), None
        best, rows = np.empty(count, np.float32), np.empty(count, np.int32)
        built, loose = len(self._rows_N), self.loose > 0
        place_R, may_R = self._place_R if loose else _NONE, np.zeros(0, np.bool_) if among is None else among
        promise_L = np.full(len(self.lists), np.inf, np.float32) if exact else self.lists.promise(query_X)
        starts, places_P = (self.lists.starts, _NONE) if part is None else (part.starts, part.built_P)
        how = part is not None, among is not None
        lines = self._lines_NX, self._rows_N
        size = _read(*lines, starts, places_P, promise_L, query_X, place_R, 0, may_R, *how, best, rows, 0)
        if len(self._rows_M):
            places_P = _NONE if part is None else part.put_P
            starts = np.array([0, len(self._rows_M) if part is None else len(places_P)])
            one_L = np.full(1, np.inf, np.float32)
            lines = self._put_MX, self._rows_M
            size = _read(*lines, starts, places_P, one_L, query_X, place_R, built, may_R, *how, best, rows, size)
        order = np.lexsort((rows[:size], -best[:size]))
        return rows[order].astype(np.int64), best[order]

    def parted(self, rows: NDArray[np.integer]) -> Part:
        """The lines of those of these rows that it holds; a row is named once."""
        places = self._place_R[rows[rows < len(self._place_R)]]
        places = np.sort(places[places >= 0])
        built = int(np.searchsorted(places, len(self._rows_N)))
        return Part(
            places[:built],
            np.searchsorted(places[:built], self.lists.starts),
            places[built:] - np.int32(len(self._rows_N)),
            len(self._rows_M),
            rows[:: len(rows) // SOME + 1].astype(np.int64),
        )

    def part(self, category: int, members: Callable[[int], NDArray[np.integer]], share_R: NDArray[np.floating]) -> Part:
        """The lines of a category, made once and kept: later calls only look at what was put since.

        Whose category changed without having been put again may be among them, or missing.

        Args:
            members: gives all rows that have a share in it.
            share_R: by row, the share.
        """
        found = self._parts.get(category)
        if found is None:
            found = self._parts[category] = self.parted(members(category))
        elif found.upto < len(self._rows_M):
            new = self._rows_M[found.upto :]
            fresh_P = found.upto + np.flatnonzero(share_R[new] > 0).astype(np.int32)
            put_P = np.concatenate([found.put_P, fresh_P])
            found = self._parts[category] = replace(found, put_P=put_P, upto=len(self._rows_M))
        return found

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
        new._rows_M, new._parts = np.concatenate([self._rows_M, rows.astype(np.int32)]), dict(self._parts)
        new._put_MX = np.concatenate([self._put_MX, np.asarray(vectors_MX, np.float32)])
        return new

    def remove(self, rows: Rows) -> Index:
        """Without these rows; rows that were not there are passed over."""
        rows = np.unique(np.asarray(rows, np.int64))
        rows = rows[self.holds(rows)]
        if not len(rows):
            return self
        new = copy.copy(self)
        new._place_R, new._parts = self._place_R.copy(), dict(self._parts)
        new._place_R[rows] = -1
        new._live = self._live - len(rows)
        return new

    def rebuilt(self, *, seed: int = 0) -> Index:
        """The same rows and lines, built anew: nothing loose, and lists as the vectors lie now."""
        rows = self.rows
        return Index(self.vectors(rows), rows, flat=self.flat, seed=seed)


@compiled
def _sink(keys: Floats, names: Places, size: int, at: int) -> None:
    """Let an entry of a heap sink to its place: above is the least key, of equal keys the highest name."""
    key, name = keys[at], names[at]
    while True:
        below = 2 * at + 1
        if below >= size:
            break
        right = below + 1
        if right < size and (keys[right] < keys[below] or (keys[right] == keys[below] and names[right] > names[below])):
            below = right
        if key < keys[below] or (key == keys[below] and name >= names[below]):
            break
        keys[at], names[at] = keys[below], names[below]
        at = below
    keys[at], names[at] = key, name


@compiled
def _read(
    lines_NX: Floats,
    rows_N: Places,
    starts: NDArray[np.int64],
    places_P: Places,
    promise_L: Floats,
    query_X: Floats,
    place_R: Places,
    before: int,
    may_R: NDArray[np.bool_],
    parted: bool,
    filtered: bool,
    best: Floats,
    rows: Places,
    size: int,
) -> int:
    """Read lists, the most promising first; once there are enough, while they promise no less than the worst found.

    Args:
        places_P: of the lines that are read, where `parted`; else all are.
        place_R: by row, the place of its live line; `before` less than in `lines_NX`. Empty where all live.
        may_R: by row, whether it may be found, where `filtered`.
        best, rows: the best products and their rows: the first `size`, which is returned; when full, a heap.
    """
    block, products = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.float32)
    wanted, lists, left = np.empty(len(promise_L), np.float32), np.empty(len(promise_L), np.int32), 0
    for one in range(len(promise_L)):
        if starts[one + 1] > starts[one]:
            wanted[left], lists[left] = -promise_L[one], one
            left += 1
    for one in range(left // 2 - 1, -1, -1):
        _sink(wanted, lists, left, one)
    worst = best[0] if size == len(best) else -np.inf
    at, stop, held, more = 0, 0, 0, True
    while more:
        if at == stop:
            more = left > 0 and -wanted[0] >= worst
            if more:
                at, stop = starts[lists[0]], starts[lists[0] + 1]
                left -= 1
                wanted[0], lists[0] = wanted[left], lists[left]
                _sink(wanted, lists, left, 0)
        take = min(stop - at, BLOCK - held)
        for one in range(take):
            block[held + one] = places_P[at + one] if parted else at + one
        at, held = at + take, held + take
        if more and held < BLOCK:
            continue
        _multiply(lines_NX, block[:held], query_X, products)
        for one in range(held):
            product = products[one]
            if product < worst:
                continue
            place = block[one]
            row = rows_N[place]
            if len(place_R) and place_R[row] != before + place:
                continue
            if filtered and (row >= len(may_R) or not may_R[row]):
                continue
            if size < len(best):
                best[size], rows[size] = product, row
                size += 1
                if size == len(best):
                    for entry in range(size // 2 - 1, -1, -1):
                        _sink(best, rows, size, entry)
                    worst = best[0]
            elif product > worst or row < rows[0]:
                best[0], rows[0] = product, row
                _sink(best, rows, size, 0)
                worst = best[0]
        held = 0
    return size


@compiled
def _multiply(lines_NX: Floats, places: Places, query_X: Floats, products: Floats) -> None:
    """The products of the lines at these places; each is summed in one order.

    Lines of a part lie apart in memory: to ask for the ends of all of them first took 18 ns a line in place of 50, four
    abreast 5 ns in place of 7.5 where they lie together.
    """
    last, count = len(query_X) - 1, len(places)
    for n in range(count):
        products[n] = lines_NX[places[n], 0] * query_X[0]
        if last > 0:
            products[n] += lines_NX[places[n], last] * query_X[last]
    for n in range(0, count - 3, 4):
        a, b, c, d = places[n], places[n + 1], places[n + 2], places[n + 3]
        s, t, u, v = products[n], products[n + 1], products[n + 2], products[n + 3]
        for x in range(1, last):
            s += lines_NX[a, x] * query_X[x]
            t += lines_NX[b, x] * query_X[x]
            u += lines_NX[c, x] * query_X[x]
            v += lines_NX[d, x] * query_X[x]
        products[n], products[n + 1], products[n + 2], products[n + 3] = s, t, u, v
    for n in range(count - count % 4, count):
        for x in range(1, last):
            products[n] += lines_NX[places[n], x] * query_X[x]
