"""A taste in words: what this person wants more or less than everybody, and how sure that is.

Base rewards have no names, so each is told by the items and interests at its two ends. Shifts are in units of the
utility (log odds of a comparison): how much more than the population she likes an item that stands one standard
deviation towards the wanted end.

Axes: N rows that people know, K base rewards, C categories (interests).
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from ranker.catalogue import Catalogue, Item
from ranker.inference import Inference
from ranker.summary import PHRASES, Space
from ranker.taste import Taste
from ranker.vocabulary import Phrase, Tags

Array = NDArray[np.float64]

#: fields that name an item to a person, the first that it has
NAMES = ("title", "name", "headline", "text")
#: characters of a name
LENGTH = 80
#: items at either end of a direction
ITEMS = 4
#: interests at either end, and how far from the middle they stand at least, in standard deviations
INTERESTS, APART = 3, 0.25
#: base rewards told
DIRECTIONS = 4
#: a phrase is said from this certainty on
SAID = 0.8
#: from each certainty on, a direction is told in these words
SURE = ((0.6, "Perhaps wants"), (0.8, "Probably wants"), (0.95, "Wants"))


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """One end of a direction: ids of the items there, and their interests."""

    items: tuple[str, ...]
    interests: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Direction:
    """One base reward, or all of them together (`axis` is None).

    Attributes:
        shift: how much more than the population she wants the one end, never negative; 0 where nothing is known.
        spread: one standard deviation of what is not known about it, in the same unit.
        certainty: how likely she does want this end more than the population does, .5 to 1.
    """

    axis: int | None
    wanted: End
    unwanted: End
    shift: float
    spread: float
    certainty: float
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Portrait:
    """A taste explained.

    Attributes:
        overall: all base rewards together, None where she is not known to differ from the population.
        directions: the strongest base rewards, those that move her most first.
        sources: pieces of evidence by source.
    """

    overall: Direction | None
    directions: tuple[Direction, ...]
    sources: Mapping[str, int]


def label(item: Item) -> str:
    """What a person calls the item: the first of its fields that names it, else its id.

    Example:
        >>> label(Item("50", {"title": "Star Wars", "year": 1977})), label(Item("51"))
        ('Star Wars', '51')
    """
    for name in NAMES:
        value = item.fields.get(name)
        if isinstance(value, str) and value.strip():
            text = " ".join(value.split())
            return text if len(text) <= LENGTH else text[: LENGTH - 3] + "..."
    return item.id


def portrait(taste: Taste, inference: Inference, catalogue: Catalogue, rows_N: NDArray[np.int64]) -> Portrait:
    """Explain a taste by these rows.

    Args:
        inference: has `catalogue` attached.
        rows_N: items that people know.
    """
    prior = inference.prior
    precision_KK = _full(taste.precision_K.astype(np.float64))
    covariance_KK: Array = np.linalg.inv(precision_KK).astype(np.float64)
    typical_K = np.linalg.solve(_full(prior.precision.astype(np.float64)), prior.information.astype(np.float64))
    change_K = taste.mean_K.astype(np.float64) - typical_K
    phi_NK = inference.base(rows_N)[0].astype(np.float64)
    teller = _Teller(catalogue, rows_N)
    size = float(np.linalg.norm(change_K))
    overall = None
    if size > 1e-6 and len(rows_N) > 1:
        overall = teller.tell(None, change_K / size, change_K, covariance_KK, phi_NK)
    axes = np.eye(len(change_K))
    told = (
        [teller.tell(k, axes[k], change_K, covariance_KK, phi_NK) for k in range(len(axes))] if len(rows_N) > 1 else []
    )
    told.sort(key=lambda direction: (-direction.shift, -direction.spread))
    return Portrait(
        overall=overall,
        directions=tuple(told[:DIRECTIONS]),
        sources=dict(taste.sources),
    )


def leanings(
    taste: Taste, tags: Tags, space: Space, *, taken: Collection[str] = (), most: int = PHRASES
) -> list[Phrase]:
    """Phrases that the taste bears out, whatever its evidence: what answers say of a person without a history.

    A tag is said where she leans towards or away from it, against the population, with a certainty of SAID; those that
    move her utilities most come first.

    Args:
        taken: keys that are said already, or not to be said.
        space: the tags' directions for the version of the taste.
    """
    if not len(tags):
        return []
    covariance_KK = np.linalg.inv(_full(taste.precision_K.astype(np.float64)))
    moved_V = space.unit_VK @ taste.mean_K.astype(np.float64) - space.neutral_V
    doubt_V = np.sqrt(np.einsum("vk,kl,vl->v", space.unit_VK, covariance_KK, space.unit_VK))
    sure_V = (space.spread_V > 0) & (ndtr(np.abs(moved_V) / np.maximum(doubt_V, 1e-12)) >= SAID)
    found: list[Phrase] = []
    for column in np.argsort(-np.abs(moved_V) * space.spread_V, kind="stable").tolist():
        if len(found) >= most:
            break
        if sure_V[column] and tags.keys[column] not in taken:
            found.append(Phrase.of("likes" if moved_V[column] > 0 else "avoids", tags.keys[column]))
    return found


class _Teller:
    """Says what stands at the ends of a direction."""

    def __init__(self, catalogue: Catalogue, rows_N: NDArray[np.int64]) -> None:
        self._items = [catalogue.items[row] for row in rows_N.tolist()]
        self._interests_NC = catalogue.interests_NC[rows_N].astype(np.float64)
        self._categories = catalogue.categories

    def tell(
        self, axis: int | None, weight_K: Array, change_K: Array, covariance_KK: Array, phi_NK: Array
    ) -> Direction:
        """One direction; `weight_K` has length 1."""
        value_N = phi_NK @ weight_K
        value_N = value_N - value_N.mean()
        scale = float(value_N.std())
        amount, spread = float(change_K @ weight_K), math.sqrt(float(weight_K @ covariance_KK @ weight_K))
        if amount < 0:
            value_N = -value_N
        wanted, unwanted = self._end(value_N, scale), self._end(-value_N, scale)
        certainty = float(ndtr(abs(amount) / spread))
        return Direction(
            axis=axis,
            wanted=wanted,
            unwanted=unwanted,
            shift=abs(amount) * scale,
            spread=spread * scale,
            certainty=certainty,
            sentence=self._sentence(wanted, unwanted, certainty),
        )

    def _end(self, value_N: Array, scale: float) -> End:
        order_N = np.argsort(-value_N, kind="stable")[:ITEMS]
        held_C = self._interests_NC.sum(0)
        interests: tuple[str, ...] = ()
        if held_C.any() and scale > 0:
            centre_C = (value_N @ self._interests_NC) / np.maximum(held_C, 1e-9) / scale
            centre_C = np.where(held_C > 0, centre_C, -np.inf)
            far = [c for c in np.argsort(-centre_C, kind="stable")[:INTERESTS].tolist() if centre_C[c] >= APART]
            interests = tuple(self._categories[c] for c in far)
        return End(items=tuple(self._items[n].id for n in order_N.tolist()), interests=interests)

    def _sentence(self, wanted: End, unwanted: End, certainty: float) -> str:
        names = {item.id: label(item) for item in self._items}

        def say(end: End) -> str:
            about = ", ".join(end.interests)
            like = ", ".join(names[item] for item in end.items[:2])
            return f"{about} (such as {like})" if about else f"items such as {like}"

        if certainty < SURE[0][0]:
            return f"Between {say(wanted)} and {say(unwanted)} nothing is known beyond what most people want."
        words = next(words for bound, words in reversed(SURE) if certainty >= bound)
        return f"{words} more of {say(wanted)} and less of {say(unwanted)} than most people."


def _full(precision: Array) -> Array:
    return np.diag(precision) if precision.ndim == 1 else precision
