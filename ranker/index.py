"""Candidates by utility: the items with the largest r(u, i) = z . phi_i + b_i, as an inner product in faiss.

An Index is a value: adding, replacing and removing give a new one, so a reader never meets a half-made change.
Axes: N items, X coordinates [phi, b].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray


class Index:
    """Exact search over the rows of a catalogue.

    A flat index answers below about 100,000 items within a millisecond or two and is rebuilt in about as much; beyond,
    `make` should train an inverted file.

    Args:
        vectors_NX: one line per item.
        rows: the catalogue row of each line; by default the line number.
        make: vectors -> a faiss index that holds them.

    Example:
        >>> Index(np.eye(3, dtype=np.float32)).search(np.array([0.0, 2.0, 1.0]), 2).tolist()
        [1, 2]
    """

    def __init__(
        self,
        vectors_NX: NDArray[np.float32],
        rows: NDArray[np.int64] | None = None,
        *,
        make: Callable[[NDArray[np.float32]], Any] | None = None,
    ) -> None:
        self._vectors_NX = np.ascontiguousarray(vectors_NX, np.float32)
        self._rows = np.arange(len(vectors_NX)) if rows is None else rows
        self._make = make or _flat
        self._faiss = self._make(self._vectors_NX)

    def __len__(self) -> int:
        return len(self._rows)

    def search(self, query_X: NDArray[np.floating], count: int) -> NDArray[np.int64]:
        """Catalogue rows by falling inner product, at most `count`."""
        count = min(count, len(self))
        if count <= 0:
            return np.zeros(0, np.int64)
        _, lines = self._faiss.search(np.asarray(query_X, np.float32)[None], count)
        found: NDArray[np.int64] = self._rows[lines[0][lines[0] >= 0]]
        return found

    def put(self, rows: NDArray[np.int64], vectors_NX: NDArray[np.float32]) -> Index:
        """With these rows added, or replaced where they were there."""
        kept = ~np.isin(self._rows, rows)
        return Index(
            np.concatenate([self._vectors_NX[kept], np.asarray(vectors_NX, np.float32)]),
            np.concatenate([self._rows[kept], rows]),
            make=self._make,
        )

    def remove(self, rows: NDArray[np.int64]) -> Index:
        """Without these rows; rows that were not there are passed over."""
        kept = ~np.isin(self._rows, rows)
        return Index(self._vectors_NX[kept], self._rows[kept], make=self._make)


def _flat(vectors_NX: NDArray[np.float32]) -> Any:
    index = faiss.IndexFlatIP(vectors_NX.shape[1])
    index.add(vectors_NX)
    return index
