"""Declared fields -> rows of one hashed embedding table (Weinberger et al. 2009).

Everything that has a name shares one table: item ids, item, user and request fields, kinds of acts. The first half
of the table belongs to item ids and starts at zero, so that an id never seen is neutral and its features speak; each
id holds two rows, so that a chance collision weighs half.

Axes: V table rows, A acts, F numbers.
"""

import hashlib
import math
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ranker import inputs
from ranker.catalogue import Catalogue, Item
from ranker.config import Config, FieldKinds
from ranker.events import Value
from ranker.evidence import Act, Evidence, Mean

#: words of a text that count; a longer text is cut
WORDS = 256
#: names kept in memory before the cache of row numbers starts anew
CACHED = 1_000_000
_EXACT = frozenset(range(-99, 100))
#: acts that a line keeps before those first read of it, and that a slate may add to it
SPARE = 4


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What `config.scale` sets: V table rows, D features, K taste, S shared, E experts, H hidden, and the acts read."""

    V: int
    D: int
    K: int
    S: int
    E: int
    H: int
    encoder: int
    acts: int


SIZES = {
    "tiny": Sizes(V=2**12, D=8, K=8, S=32, E=2, H=16, encoder=16, acts=20),
    "small": Sizes(V=2**16, D=32, K=16, S=128, E=4, H=64, encoder=32, acts=50),
    "full": Sizes(V=2**20, D=64, K=32, S=256, E=8, H=128, encoder=64, acts=100),
}


#: an act's type and value
Kind = tuple[str, float | None]


class Bag(NamedTuple):
    """One thing as table rows with weights, and its numbers (log-scaled, signed)."""

    rows: NDArray[np.int64]
    weights: NDArray[np.float32]
    numbers: NDArray[np.float32]


class Flat(NamedTuple):
    """Many bags laid end to end; `lengths` says how many rows each has, `numbers` has one line each."""

    rows: NDArray[np.int64]
    weights: NDArray[np.float32]
    lengths: NDArray[np.int64]
    numbers: NDArray[np.float32]


class Bags:
    """Bags by place, flat in memory, so that a batch of them is one gather. Memory doubles as it grows."""

    def __init__(self, numbers: int) -> None:
        self._starts = np.zeros(64, np.int64)
        self._lengths = np.zeros(64, np.int64)
        self._numbers = np.zeros((64, numbers), np.float32)
        self._rows = np.zeros(512, np.int64)
        self._weights = np.zeros(512, np.float32)
        self._used = 0

    def put(self, place: int, bag: Bag) -> None:
        """Store the bag at the place; a replaced bag's memory is left behind until the flat arrays next double."""
        while place >= len(self._starts):
            size = len(self._starts)
            self._starts = np.pad(self._starts, (0, size))
            self._lengths = np.pad(self._lengths, (0, size))
            self._numbers = np.pad(self._numbers, ((0, size), (0, 0)))
        count = len(bag.rows)
        if self._used + count > len(self._rows):
            self._repack(count)
        start = self._used
        self._rows[start : start + count] = bag.rows
        self._weights[start : start + count] = bag.weights
        self._used += count
        self._starts[place], self._lengths[place], self._numbers[place] = start, count, bag.numbers

    def take(self, places: NDArray[np.int64]) -> Flat:
        """The bags at the places."""
        lengths = self._lengths[places]
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        index = np.arange(total) + np.repeat(self._starts[places] - ends + lengths, lengths)
        return Flat(self._rows[index], self._weights[index], lengths, self._numbers[places])

    def _repack(self, count: int) -> None:
        live = self.take(np.arange(len(self._starts)))
        self._starts = np.cumsum(live.lengths) - live.lengths
        self._used = len(live.rows)
        size = len(self._rows)
        while size < 2 * (self._used + count):
            size *= 2
        self._rows = np.pad(live.rows, (0, size - self._used))
        self._weights = np.pad(live.weights, (0, size - self._used))


class Encoder:
    """(field, value) -> rows of the table, by a seeded hash that is the same in every process.

    Categories are weighted to sum to 1 per field, the words of a text by 1/sqrt(count). A number comes twice: as an
    input of its own and as two neighbouring bins of its logarithm, weighted by closeness, so that the model may bend.

    Example:
        >>> from ranker.config import parse
        >>> objectives = [{"name": "click", "event": "click"}]
        >>> config = parse({"objectives": objectives, "fields": {"item": {"tag": "category"}}})
        >>> bag = Encoder(config).item(Item("i1", {"tag": "noir"}))
        >>> len(bag.rows), round(float(bag.weights[-1]), 2)
        (3, 1.0)
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.sizes = SIZES[config.scale]
        self._salt = str(config.learning.seed).encode()[:16]
        self._cache: dict[str, int] = {}
        self._words = re.compile(r"\w+")
        self._stores: WeakKeyDictionary[Catalogue, _Store] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._bags: dict[Any, Bag] = {}
        self._kinds: dict[Kind, Bag] = {}
        self.numbers = {
            side: [name for name, kind in fields.items() if kind == "number"]
            for side, fields in (
                ("item", config.fields.item),
                ("user", config.fields.user),
                ("request", config.fields.request),
            )
        }
        self.context = [name for name, kind in config.fields.request.items() if kind == "category"]

    def item(self, item: Item) -> Bag:
        """Id rows first, then the rows of the fields."""
        half, share = self.sizes.V // 2, math.sqrt(0.5)
        rows, weights = [self._hash(f"id0\0{item.id}") % half, self._hash(f"id1\0{item.id}") % half], [share, share]
        return self._bag("item", self.config.fields.item, item.fields, rows, weights)

    def user(self, fields: Mapping[str, Value]) -> Bag:
        """The declared user fields."""
        return self._remembered("user", self.config.fields.user, fields)

    def request(self, fields: Mapping[str, Value]) -> Bag:
        """The declared fields of a ranking."""
        return self._remembered("request", self.config.fields.request, fields)

    def act(self, act: Act) -> Bag:
        """The kind of an act: its type, and its value to two digits. Its item and its age enter elsewhere."""
        rows, weights = [self._row(f"act\0{act.type}")], [1.0]
        if act.value is None or not math.isfinite(act.value):
            return _bag(rows, weights, [0.0])
        rows.append(self._row(f"act\0{act.type}\0{act.value:.2g}"))
        return _bag(rows, [*weights, 1.0], [_scaled(act.value)])

    def device(self, fields: Mapping[str, Value]) -> list[int]:
        """Codes of the request's categories, for the position tower; -1 where a field is absent."""
        return [
            -1 if (value := fields.get(name)) is None else self._hash(f"context\0{name}\0{_name(value)}") & 0xFFFFFFFF
            for name in self.context
        ]

    def kinds(self, kinds: Iterable[Kind]) -> Flat:
        """The bags of kinds of acts."""
        known = self._kinds
        if len(known) > CACHED // 100:
            known.clear()
        return lay_out(
            [known.get(kind) or known.setdefault(kind, self.act(Act("", kind[0], 0, kind[1]))) for kind in kinds], 1
        )

    def items(self, catalogue: Catalogue, rows: NDArray[np.int64]) -> Flat:
        """The bags of catalogue rows, kept from call to call; an item that was replaced is encoded anew."""
        with self._lock:
            store = self._stores.get(catalogue)
            if store is None:
                store = self._stores[catalogue] = _Store(Bags(len(self.numbers["item"])), [])
            seen, items = store.seen, catalogue.items
            if len(seen) < len(items):
                seen.extend([None] * (len(items) - len(seen)))
            for row in rows.tolist():
                item = items[row]
                if seen[row] is not item:
                    store.bags.put(row, self.item(item))
                    seen[row] = item
            return store.bags.take(rows)

    def _remembered(self, side: str, kinds: FieldKinds, fields: Mapping[str, Value]) -> Bag:
        key = (side, *fields.items())
        try:
            bag = self._bags.get(key)
        except TypeError:  # a list among the values
            return self._bag(side, kinds, fields, [], [])
        if bag is None:
            if len(self._bags) >= CACHED // 100:
                self._bags.clear()
            bag = self._bags[key] = self._bag(side, kinds, fields, [], [])
        return bag

    def _bag(
        self, side: str, kinds: FieldKinds, fields: Mapping[str, Value], rows: list[int], weights: list[float]
    ) -> Bag:
        numbers = []
        for field, kind in kinds.items():
            value = fields.get(field)
            if kind == "number":
                number = _number(value)
                numbers.append(0.0 if number is None else _scaled(number))
                if number is not None:
                    place = 8 * _scaled(number)
                    low = math.floor(place)
                    rows += [self._row(f"{side}\0{field}\0{low}"), self._row(f"{side}\0{field}\0{low + 1}")]
                    weights += [low + 1 - place, place - low]
                continue
            if value is None or value in ("", []):
                continue
            if kind == "text":
                text = " ".join(map(_name, value)) if isinstance(value, list) else _name(value)
                names = [
                    match.group() for _, match in zip(range(WORDS), self._words.finditer(text.lower()), strict=False)
                ]
                weight = 1 / math.sqrt(len(names) or 1)
            else:
                names = [_name(v) for v in value] if isinstance(value, list) else [_name(value)]
                weight = 1 / len(names)
            rows += [self._row(f"{side}\0{field}\0{name}") for name in names]
            weights += [weight] * len(names)
        return _bag(rows, weights, numbers)

    def _row(self, name: str) -> int:
        half = self.sizes.V // 2
        return half + self._hash(name) % half

    def _hash(self, name: str) -> int:
        found = self._cache.get(name)
        if found is None:
            if len(self._cache) >= CACHED:
                self._cache.clear()
            raw = name.encode("utf-8", "surrogatepass")
            found = int.from_bytes(hashlib.blake2b(raw, digest_size=8, salt=self._salt).digest(), "little")
            self._cache[name] = found
        return found


class _Store(NamedTuple):
    bags: Bags
    seen: list[Item | None]


def _bag(rows: list[int], weights: list[float], numbers: list[float]) -> Bag:
    return Bag(np.array(rows, np.int64), np.array(weights, np.float32), np.array(numbers, np.float32))


def _name(value: Value) -> str:
    """Equal values have one name: 1, 1.0 and true are the same category."""
    return str(int(value)) if isinstance(value, float | bool) and value == value // 1 else str(value)


def _number(value: Value) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _scaled(number: float) -> float:
    return math.copysign(min(math.log1p(abs(number)) / 4, 10.0), number)


class Acts(NamedTuple):
    """Acts of one or more users, end to end: what each was, when, and how it compares with its user's mean.

    `kinds` are type and value, the value to two digits so that there are few kinds; `values` and `means` are NaN
    where there are none.
    """

    items: list[str]
    kinds: list[Kind]
    times: NDArray[np.int64]
    values: NDArray[np.float64]
    means: NDArray[np.float64]


def acts_of(evidences: Sequence[Evidence], keep: int) -> Acts:
    """The last `keep` acts of each.

    Example:
        >>> history = (Act("i", "dwell", 7, 123.4), Act("j", "click", 8))
        >>> acts_of([Evidence(history=history)], 10).kinds
        [('dwell', 120.0), ('click', None)]
    """
    acts = [act for evidence in evidences for act in evidence.history[-keep:]]
    kinds, values = _kinds_of(acts)
    means = np.full(len(acts), np.nan)
    if not np.isnan(values).all():
        start = 0
        for evidence in evidences:
            stop = start + min(keep, len(evidence.history))
            if evidence.means:
                known = {kind: mean.total / mean.count for kind, mean in evidence.means.items() if mean.count}
                means[start:stop] = np.array([known.get(act.type) for act in acts[start:stop]], np.float64)
            start = stop
    return Acts([act.item for act in acts], kinds, np.array([act.time for act in acts], np.int64), values, means)


def _kinds_of(acts: Sequence[Act]) -> tuple[list[Kind], NDArray[np.float64]]:
    values: list[float | None] = [act.value for act in acts]
    rounded = [value if value is None or value in _EXACT else _rounded(value) for value in values]
    return list(zip([act.type for act in acts], rounded, strict=True)), np.array(values, np.float64)


class Readings(NamedTuple):
    """Acts of many slates: each act once for all slates that read it at the same time, beside the same means.

    Attributes:
        items, kinds, times_U: of the distinct acts U.
        act_A: which of them each reading is of.
        times, values, means: as in `Acts`, of each reading.
        now_A: when it was read, ms.
        read_M, lengths_S: which readings each slate holds, oldest act first, slate by slate, and how many.
    """

    items: list[str]
    kinds: list[Kind]
    times_U: NDArray[np.int64]
    act_A: NDArray[np.int64]
    times: NDArray[np.int64]
    values: NDArray[np.float64]
    means: NDArray[np.float64]
    now_A: NDArray[np.int64]
    read_M: NDArray[np.int64]
    lengths_S: NDArray[np.int64]


def readings(users: Sequence[str], evidences: Sequence[Evidence], times: Sequence[int], keep: int) -> Readings:
    """The last `keep` acts of each slate's evidence, as of its time.

    A person's slates read nearly the same history again and again: her acts are laid out in a line, and what a slate
    reads is a stretch of it, from which one act may be left out. What is shared depends on what the histories hold
    and not on which objects they are, so that a learner that was restarted shares the same.

    Example:
        >>> acts = tuple(Act(f"i{n}", "click", n) for n in range(4))
        >>> whole, less = Evidence(history=acts), Evidence(history=(acts[0], *acts[2:]))
        >>> found = readings(["u", "u"], [whole, less], [9, 9], 3)
        >>> found.items, found.read_M.tolist(), found.lengths_S.tolist()
        (['i0', 'i1', 'i2', 'i3'], [1, 2, 3, 0, 2, 3], [3, 3])
    """
    lines: list[_Line] = []
    of_user: dict[str, _Line] = {}
    #: line, time and means -> place in `seen`
    groups: dict[tuple[int, int, tuple[tuple[str, Mean], ...]], int] = {}
    seen: list[tuple[int, int, Evidence]] = []
    found: list[tuple[int, int, int, int]] = []
    for user, evidence, time in zip(users, evidences, times, strict=True):
        if not evidence.history:
            found.append((0, 0, 0, 0))
            continue
        line = of_user.get(user)
        stretch = None if line is None else line.stretch(evidence.history, keep)
        if line is None or stretch is None:
            line = of_user[user] = _Line(len(lines), evidence.history[-keep - SPARE :])
            lines.append(line)
            stop = len(line.acts)
            stretch = max(0, stop - keep), stop, stop
        key = line.number, time, tuple(evidence.means.items())
        group = groups.get(key)
        if group is None:
            group = groups[key] = len(seen)
            seen.append((line.number, time, evidence))
        found.append((group, *stretch))
    return _laid_out(lines, seen, np.array(found, np.int64).reshape(-1, 4))


class _Line:
    """A person's acts, as far as the slates of a batch read them."""

    def __init__(self, number: int, acts: tuple[Act, ...]) -> None:
        self.number, self.acts = number, acts
        self._place = {act: place for place, act in enumerate(acts)}
        self._last: tuple[tuple[Act, ...], tuple[int, int, int]] = (), (0, 0, 0)

    def stretch(self, history: tuple[Act, ...], keep: int) -> tuple[int, int, int] | None:
        """Where the last `keep` acts of a history lie: begin, end, and the place left out (the end where none is).

        None where they do not lie in the line and do not continue it.
        """
        if history is self._last[0]:
            return self._last[1]
        end = self._place.get(history[-1], -1) + 1
        if not end:
            ahead = [more for more in range(1, min(len(history), SPARE + 1)) if history[-1 - more] == self.acts[-1]]
            if not ahead:
                return None
            later = history[-ahead[0] :]
            self._place |= {act: place for place, act in enumerate(later, len(self.acts))}
            self.acts += later
            end = len(self.acts)
        tail = history[-keep:]
        begin, out = end - len(tail), end
        if begin < 0 or self.acts[begin:end] != tail:
            begin -= 1
            wide, low, high = self.acts[max(begin, 0) : end], 0, len(tail)
            while low < high:  # the first place where they differ
                middle = (low + high + 1) // 2
                low, high = (middle, high) if wide[low:middle] == tail[low:middle] else (low, middle - 1)
            if begin < 0 or wide[low + 1 :] != tail[low:]:
                return None
            out = begin + low
        self._last = history, (begin, end, out)
        return self._last[1]


def _laid_out(
    lines: Sequence[_Line], seen: Sequence[tuple[int, int, Evidence]], found_S4: NDArray[np.int64]
) -> Readings:
    """Readings of the stretches of lines: group, begin, end and place left out of each slate."""
    acts = [act for line in lines for act in line.acts]
    group_S, begin_S, end_S, out_S = found_S4.T
    # of each group all that any of its slates reads
    some_S = end_S > 0
    begin_G, end_G = np.full(len(seen), len(acts)), np.zeros(len(seen), np.int64)
    np.minimum.at(begin_G, group_S[some_S], begin_S[some_S])
    np.maximum.at(end_G, group_S[some_S], end_S[some_S])
    first_L = np.cumsum([0, *(len(line.acts) for line in lines)])
    line_G = np.array([line for line, _, _ in seen], np.int64)
    now_G = np.array([time for _, time, _ in seen], np.int64)
    group_A, within_A, start_G = _ranges(end_G - begin_G)
    act_A = (first_L[line_G] + begin_G)[group_A] + within_A
    lengths_S = end_S - begin_S - (out_S < end_S)
    slate_M, within_M, _ = _ranges(lengths_S)
    within_M += within_M >= (out_S - begin_S)[slate_M]
    at_S = start_G[group_S] + begin_S - begin_G[group_S] if len(seen) else begin_S
    # only what is read stays
    kept_A, read_M = unique(within_M + at_S[slate_M], len(act_A))
    kept_U, act_A = unique(act_A[kept_A], len(acts))
    group_A, acts = group_A[kept_A], [acts[place] for place in kept_U.tolist()]
    kinds, values_U = _kinds_of(acts)
    times_U = np.array([act.time for act in acts], np.int64)
    values, means = values_U[act_A], np.full(len(act_A), np.nan)
    if not np.isnan(values).all():
        types: dict[str, int] = {}
        type_U = np.array([types.setdefault(kind, len(types)) for kind, _ in kinds], np.int64)
        mean_GT = np.full((len(seen), len(types)), np.nan)
        for group, (_, _, evidence) in enumerate(seen):
            for kind, mean in evidence.means.items():
                if mean.count and kind in types:
                    mean_GT[group, types[kind]] = mean.total / mean.count
        means = mean_GT[group_A, type_U[act_A]]
    return Readings(
        items=[act.item for act in acts],
        kinds=kinds,
        times_U=times_U,
        act_A=act_A,
        times=times_U[act_A],
        values=values,
        means=means,
        now_A=now_G[group_A],
        read_M=read_M,
        lengths_S=lengths_S,
    )


def unique(values: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """np.unique with inverse for small non-negative integers, without its sort."""
    mark = np.zeros(size, np.int64)
    mark[values] = 1
    found = np.flatnonzero(mark)
    mark[found] = np.arange(len(found))
    return found, mark[values]


def _ranges(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Ranges end to end: which one, the place within it, and where each starts."""
    starts = np.cumsum(lengths) - lengths
    which = np.repeat(np.arange(len(lengths)), lengths)
    return which, np.arange(len(which)) - starts[which], starts


def act_inputs(acts: Acts | Readings, now_A: NDArray[np.int64] | int) -> NDArray[np.float32]:
    """The dense inputs of acts, `inputs.acts`.

    Shapes: -> (A, ACTS).
    """
    return inputs.acts(now_A, acts.times, acts.values, acts.means)


def _rounded(value: float) -> float | None:
    return float(f"{value:.2g}") if math.isfinite(value) else None


def lay_out(bags: Sequence[Bag], numbers: int = 0) -> Flat:
    """Bags end to end; where there are none, `numbers` says how many numbers each would have."""
    if not bags:
        nothing = np.zeros(0, np.int64)
        return Flat(nothing, np.zeros(0, np.float32), nothing, np.zeros((0, numbers), np.float32))
    return Flat(
        np.concatenate([bag.rows for bag in bags]),
        np.concatenate([bag.weights for bag in bags]),
        np.array([len(bag.rows) for bag in bags], np.int64),
        np.stack([bag.numbers for bag in bags]),
    )
