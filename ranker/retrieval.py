"""Candidates of one person: the best by her taste, and of each of her interests a share by what it wants.

The items with the largest utility are those of her main interests, so a minority interest often does not reach the
reranker at all, and no rerank can bring it back. Here an interest of share p gets `share` times p of the candidates
before the rest go by utility alone, each interest searched with the taste that its own acts speak for.

Axes: C categories (interests), N catalogue rows, X coordinates [phi, b].
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranker.index import FEW, Index, Rows

Floats = NDArray[np.floating]


class Drawn(NamedTuple):
    """Candidates, and the rows among the best that were passed over because they may not be drawn."""

    rows: Rows
    passed: Rows


def draw(
    index: Index,
    query_X: Floats,
    count: int,
    *,
    interests_NC: Floats,
    target_C: Floats,
    share: float,
    own: Mapping[int, Floats] | None = None,
    members: Callable[[int], NDArray[np.integer]],
    among: NDArray[np.bool_] | None = None,
    without: Collection[int] = (),
) -> Drawn:
    """`count` rows, or all there are: first the best of each interest, the smallest interests first, then of all.

    An interest is served when the shares that the drawn items have in it add up to `share` x `count` x its own share of
    the profile, or when it has no more items. Items of several interests count in each.

    Args:
        target_C: the interests to hold; those without a share are not drawn for.
        share: of the candidates that is drawn by interest, 0 to 1.
        own: what an interest is searched with; without an entry, with `query_X`.
        members: the rows of a category.
        among: by row, which may be drawn; all of them without it.
        without: rows that may not.

    Source: a share of the candidates by interest is one retrieval head for each taste (cen2020controllable,
    pal2020pinnersage) with declared interests in the place of learned clusters; on MovieLens-100K clusters of liked
    items did less (docs/experiments.md).
    """
    size = len(interests_NC)
    barred = np.unique(np.fromiter(without, np.int64))
    barred = barred[barred < size]
    free_N = np.ones(size, np.bool_)
    few: Rows | None = None
    if among is not None:
        free_N[: len(among)], free_N[len(among) :] = among[:size], False
        if np.count_nonzero(free_N) <= FEW * len(index):
            few = np.flatnonzero(free_N)
            few_FC = interests_NC[few]
    free_N[barred] = False
    drawn = np.empty(count, np.int64)
    done = 0
    wanted_C = share * count * np.asarray(target_C, np.float64)
    for c in sorted(np.flatnonzero(wanted_C > 0).tolist(), key=wanted_C.__getitem__):
        share_N = interests_NC[:, c]
        need = wanted_C[c] - float(share_N[drawn[:done]].sum())
        if need <= 0 or done >= count:
            continue
        part = index.part(c, members, share_N) if few is None else index.parted(few[few_FC[:, c] > 0])
        some = share_N[part.some[part.some < size]]
        mean = max(float(some.sum()) / max(len(some), 1), 1e-3)
        asked = min(math.ceil(need / mean * 1.5), len(part))
        found, _ = index.search(query_X if own is None else own.get(c, query_X), asked, among=free_N, part=part)
        found = found[share_N[found] > 0]  # what a part knows may be older
        reached = int(np.searchsorted(np.cumsum(share_N[found]), need - 1e-6)) + 1
        new = found[: min(reached, count - done)]
        drawn[done : done + len(new)] = new
        done += len(new)
        free_N[new] = False
    rest, _ = index.search(query_X, count + len(barred), among=among)
    left = rest[rest < size]
    left = left[free_N[left]][: count - done]
    drawn[done : done + len(left)] = left
    passed = rest[np.isin(rest, barred)] if len(barred) else rest[:0]
    return Drawn(drawn[: done + len(left)], passed)
