"""Candidates of one person: the best by her taste, and of each of her interests a share by what it wants.

The items with the largest utility are those of her main interests, so a minority interest often does not reach the
reranker at all, and no rerank can bring it back. Here an interest of share p gets `share` times p of the candidates
before the rest go by utility alone, each interest searched with the taste that its own acts speak for.

Axes: C categories (interests), N catalogue rows, X coordinates [phi, b].
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranker.index import Among, Index, Rows

Floats = NDArray[np.floating]

#: the share of an interest's items that a search of a large catalogue reads: its few places need fewer than all places
READ = 0.02


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
    barred, drawn = frozenset(without), list[int]()
    taken = set(barred)
    wanted_C = share * count * np.asarray(target_C, np.float64)
    for c in sorted(np.flatnonzero(wanted_C > 0).tolist(), key=wanted_C.__getitem__):
        need = wanted_C[c] - (float(interests_NC[drawn, c].sum()) if drawn else 0.0)
        if need <= 0 or len(drawn) >= count:
            continue
        rows = members(c)
        rows = rows[rows < len(interests_NC)]  # another thread may have added items meanwhile
        if among is not None:
            rows = rows[among.has(rows.astype(np.int64))]
        held = Among(rows, _having(interests_NC, c, among))
        mean = float(interests_NC[rows[:256], c].mean()) if len(rows) else 1.0
        asked = int(np.ceil(need / max(mean, 1e-3) * 1.5)) + len(taken)
        found, _ = index.search(query_X if own is None else own.get(c, query_X), asked, among=held, share=READ)
        new = [row for row in found.tolist() if row not in taken]
        sums = np.cumsum(interests_NC[new, c]) if new else np.zeros(0)
        new = new[: min(int(np.searchsorted(sums, need - 1e-6)) + 1, count - len(drawn))]
        drawn += new
        taken.update(new)
    rest, _ = index.search(query_X, count + len(barred), among=among)
    if len(drawn) < count:
        left = [row for row in rest.tolist() if row not in taken]
        drawn += left[: count - len(drawn)]
    passed = [row for row in rest.tolist() if row in barred] if barred else []
    return Drawn(np.array(drawn, np.int64), np.array(passed, np.int64))


def _having(interests_NC: Floats, c: int, among: Among | None) -> Callable[[Rows], NDArray[np.bool_]]:
    def has(rows: Rows) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = rows < len(interests_NC)
        found[found] = interests_NC[rows[found], c] > 0
        return found if among is None else found & among.has(rows)

    return has
