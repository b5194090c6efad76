"""The items that are known: a view of the log's item events and of the items its rankings showed.

Each item keeps its latest fields and the time it was first seen, so that its age can be a feature even where a
log has no item events. Rows are stable: an item keeps its row for the life of the catalogue.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from ranker import events
from ranker.config import Config
from ranker.events import Value


class Item(Struct, frozen=True, array_like=True):
    """One item: id, fields, and when it was first seen (ms since the epoch)."""

    id: str
    fields: dict[str, Value] = {}
    first_seen: int = 0


def fold(item: Item | None, event: events.Item) -> Item:
    """The item after its event: later fields win, the first time seen stays the earliest.

    Example:
        >>> fold(None, events.Item(id="e", timestamp=7, item="i1")).first_seen
        7
    """
    before = item or Item(event.item, {}, event.time)
    return Item(event.item, {**before.fields, **events.fields_of(event.fields)}, min(before.first_seen, event.time))


class Catalogue:
    """Items in memory, by row, with their interests as a matrix.

    Where several fields hold interests, a category is called `field=value`, and the fields that an item has share it
    evenly, so that each field is calibrated alike however many categories it names.

    Shapes: interests_NC float32, each row the item's share per category (sums to 1, or 0 where it has none).
    """

    def __init__(self, config: Config) -> None:
        self._interest = config.interests
        self.items: list[Item] = []
        self.rows: dict[str, int] = {}
        self.categories: list[str] = []
        self._columns: dict[str, int] = {}
        self._interests = np.zeros((64, 8), np.float32)
        self._members: list[_Rows] = []
        self._left: list[set[int]] = []

    def __len__(self) -> int:
        return len(self.items)

    def get(self, item: str) -> Item | None:
        """The item, or None where it was never seen."""
        row = self.rows.get(item)
        return None if row is None else self.items[row]

    def put(self, item: Item) -> int:
        """Add or replace the item; returns its row."""
        row = self.rows.get(item.id)
        replaced = row is not None
        if row is None:
            row = len(self.items)
            self.rows[item.id] = row
            self.items.append(item)
            if row >= len(self._interests):
                self._interests = np.pad(self._interests, ((0, row), (0, 0)))
        else:
            self.items[row] = item
        named = shared_categories(item.fields, self._interest)
        for category in named:
            if category not in self._columns:
                self._columns[category] = len(self.categories)
                self.categories.append(category)
        columns = [self._columns[category] for category in named]
        while len(self._members) < len(self.categories):
            self._members.append(_Rows())
            self._left.append(set())
        before = set(np.flatnonzero(self._interests[row]).tolist()) if replaced else set()
        for column in before.difference(columns):
            self._left[column].add(row)
        for column in columns:
            if column >= self._interests.shape[1]:
                self._interests = np.pad(self._interests, ((0, 0), (0, column)))
            if column in before:
                continue
            if row in self._left[column]:
                self._left[column].discard(row)
            else:
                self._members[column].append(row)
        self._interests[row] = 0
        if columns:
            self._interests[row, columns] = list(named.values())
        return row

    def fold(self, event: events.Item) -> int:
        """Apply an item event; returns the item's row."""
        return self.put(fold(self.get(event.item), event))

    def see(self, ids: Iterable[str], time: int) -> None:
        """Take up items that a ranking showed; the first time an item was seen is the earliest, in any order."""
        for item in ids:
            row = self.rows.get(item)
            if row is None:
                self.put(Item(item, {}, time))
            elif time < self.items[row].first_seen:
                self.items[row] = Item(item, self.items[row].fields, time)

    def restore(self, items: Iterable[Item], categories: Iterable[str]) -> None:
        """Take up the items and categories of another catalogue, in its order, so that rows and columns agree."""
        for category in categories:
            self._columns[category] = len(self.categories)
            self.categories.append(category)
        for item in items:
            self.put(item)

    def find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of the ids, -1 where unknown."""
        return np.fromiter(map(self.rows.get, ids, repeat(-1)), np.int64, len(ids))

    def members(self, column: int) -> NDArray[np.int32]:
        """The rows whose items have a share in the category, without a look at the others; each once.

        Example:
            >>> from ranker.config import parse
            >>> like = {"name": "like", "event": "like"}
            >>> config = {"objectives": [like], "interests": "tag", "fields": {"item": {"tag": "category"}}}
            >>> catalogue = Catalogue(parse(config))
            >>> rows = [catalogue.put(Item(f"i{n}", {"tag": tag})) for n, tag in enumerate(["noir", "farce", "noir"])]
            >>> row = catalogue.put(Item("i0", {"tag": "farce"}))
            >>> catalogue.members(0).tolist(), catalogue.members(1).tolist()
            ([2], [1, 0])
            >>> row = catalogue.put(Item("i0", {"tag": "noir"}))
            >>> catalogue.members(0).tolist(), catalogue.members(1).tolist()
            ([0, 2], [1])
        """
        if column >= len(self._members):
            return np.zeros(0, np.int32)
        found = self._members[column].read()
        return found[self._interests[found, column] > 0] if self._left[column] else found

    @property
    def interests_NC(self) -> NDArray[np.float32]:
        """Share of each category in each item; a view, by row."""
        return self._interests[: len(self.items), : len(self.categories)]

    def interests_of(self, fields: Mapping[str, Value]) -> NDArray[np.float32]:
        """Interest shares (C,) of fields that came with a request; unknown categories are left out."""
        shares = np.zeros(len(self.categories), np.float32)
        for category, share in shared_categories(fields, self._interest).items():
            if category in self._columns:
                shares[self._columns[category]] = share
        total = shares.sum()
        return shares / total if total > 0 else shares


class _Rows:
    """Rows end to end; what was read stays as it is while others are added."""

    def __init__(self) -> None:
        self._rows, self._count = np.zeros(8, np.int32), 0

    def append(self, row: int) -> None:
        if self._count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[self._count] = row
        self._count += 1

    def read(self) -> NDArray[np.int32]:
        count = self._count  # before the rows: these only grow
        return self._rows[:count]


def shared_categories(fields: Mapping[str, Value], interests: str | tuple[str, ...] | None) -> dict[str, float]:
    """The categories that the interest fields of an item name, each once, with their shares of the item.

    Example:
        >>> shared_categories({"genres": ["war", "noir"]}, "genres")
        {'war': 0.5, 'noir': 0.5}
        >>> shared_categories({"genres": ["war", "noir"], "era": "40s"}, ("genres", "era"))
        {'genres=war': 0.25, 'genres=noir': 0.25, 'era=40s': 0.5}
    """
    if interests is None:
        return {}
    several = not isinstance(interests, str)
    chosen = (interests,) if isinstance(interests, str) else interests
    named = {field: categories_of(fields.get(field)) for field in chosen}
    held = [field for field, categories in named.items() if categories]
    return {
        f"{field}={category}" if several else category: 1 / (len(held) * len(named[field]))
        for field in held
        for category in named[field]
    }


def categories_of(value: Value) -> list[str]:
    """The categories that a field's value names, each once."""
    if value is None or value == "":
        return []
    return list(dict.fromkeys(str(v) for v in (value if isinstance(value, list) else [value])))
