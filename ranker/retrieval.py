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

from ranker.index import Among, Index, Rows

Floats = NDArray[np.floating]

#: the share of an interest's items that a search of a large catalogue reads, and how many times what is asked for: its
#: few places need fewer than all places
READ, DEPTH = 0.02, 8


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
    among: Among | None = None,
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
        among: the rows that may be drawn.
        without: rows that may not.

    Source: a share of the candidates by interest is one retrieval head for each taste (cen2020controllable,
    pal2020pinnersage) with declared interests in the place of learned clusters; on MovieLens-100K clusters of liked
    items did less (docs/experiments.md).
    """
    taken_N = np.zeros(len(interests_NC), np.bool_)
    barred = np.unique(np.fromiter(without, np.int64))
    barred = barred[barred < len(taken_N)]
    taken_N[barred] = True
    drawn = np.empty(count, np.int64)
    done = 0
    wanted_C = share * count * np.asarray(target_C, np.float64)
    for c in sorted(np.flatnonzero(wanted_C > 0).tolist(), key=wanted_C.__getitem__):
        share_N = interests_NC[:, c]
        share_D = share_N[drawn[:done]]
        need = wanted_C[c] - float(share_D.sum())
        if need <= 0 or done >= count:
            continue
        rows = members(c)
        if len(rows) and rows.max() >= len(taken_N):  # more came meanwhile; seldom, and to copy them all takes longer
            rows = rows[rows < len(taken_N)]
        if among is not None:
            rows = rows[among.has(rows.astype(np.int64))]
        some = share_N[rows[:256]]
        mean = max(float(some.sum()) / max(len(some), 1), 1e-3)
        # of the best, those that were drawn or are barred come in vain
        asked = math.ceil(need / mean * 1.5) + int(np.count_nonzero(share_D)) + int(np.count_nonzero(share_N[barred]))
        held = Among(rows, _having(share_N, among))
        found, _ = index.search(
            query_X if own is None else own.get(c, query_X), asked, among=held, share=READ, depth=DEPTH
        )
        new = found[~taken_N[found]]
        reached = int(np.searchsorted(np.cumsum(share_N[new]), need - 1e-6)) + 1
        new = new[: min(reached, count - done)]
        drawn[done : done + len(new)] = new
        done += len(new)
        taken_N[new] = True
    rest, _ = index.search(query_X, count + len(barred), among=among)
    left = rest[rest < len(taken_N)]
    left = left[~taken_N[left]][: count - done]
    drawn[done : done + len(left)] = left
    passed = rest[np.isin(rest, barred)] if len(barred) else rest[:0]
    return Drawn(drawn[: done + len(left)], passed)


def _having(share_N: Floats, among: Among | None) -> Callable[[Rows], NDArray[np.bool_]]:
    def has(rows: Rows) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = rows < len(share_N)
        found[found] = share_N[rows[found]] > 0
        return found if among is None else found & among.has(rows)

    return has
