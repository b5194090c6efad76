"""What can be said of items in words: tags over the declared fields, kept current with the catalogue.

A tag is a value that enough items carry: a category, a decade or the older quarter, well or little known, short or
long, a word of a text. Tags are read from the fields alone, so they mean the same in every version of the model, and a
key such as "genres=Drama" can be stored as evidence. Without a text encoder the tags of a text are its distinctive
words and not clusters: a cluster of hashed words has no name that a person could read, and its key would not last.

Axes: N items, V tags, K base rewards, M tags of all items end to end.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress, islice
from operator import is_not
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ranker.catalogue import Catalogue, Item
from ranker.config import Config
from ranker.events import Value

Sign = Literal["likes", "avoids"]
#: what a tag is about, one input of the policy each
KINDS = ("category", "era", "band", "popularity", "length", "text")
#: tags in all, and of one field
MOST, PER_FIELD = 256, 128
#: different names remembered; names beyond are left out
NAMES = 1_000_000
#: words of a text that can become tags
WORDS = 64
#: a tag's direction is trusted half at this many items
SHRINK = 8.0
#: parts of the items that are called older, low or short, and newer, high or long
LOW, HIGH = 0.25, 0.75
#: shares of the acts-ordered catalogue that are called little known and well known
LITTLE, WELL = 0.5, 0.9
#: pseudo-field of the counts of acts
POPULARITY = "popularity"
_LENGTHS = ("length", "duration", "runtime", "minutes", "seconds")
_ERAS = ("year", "decade", "released", "release_year")
_WORD = re.compile(r"[^\W\d_]{4,}")
_COMMON = frozenset(
    "about after again also because been before being between could does doing down each from have having here into "
    "itself just more most only other over same should some such than that their them then there these they this "
    "those through under until very want were what when where which while whom will with would your said says goes "
    "asked came back well like know".split()
)


@dataclass(frozen=True, slots=True, order=True)
class Phrase:
    """One thing said about a person: she likes, or avoids, the items that carry a tag.

    Example:
        >>> Phrase.of("avoids", "genres=Film-Noir"), Phrase("likes", "year", "1990s").key
        (Phrase(sign='avoids', field='genres', value='Film-Noir'), 'year=1990s')
    """

    sign: Sign
    field: str
    value: str

    @classmethod
    def of(cls, sign: Sign, key: str) -> "Phrase":
        """The phrase of a tag's key."""
        name, _, value = key.partition("=")
        return cls(sign, name, value)

    @property
    def key(self) -> str:
        """The tag's key, as `evidence.Words` holds it in likes and avoids."""
        return f"{self.field}={self.value}"

    @property
    def signed(self) -> str:
        """The key with its sign, as `evidence.Words` may hold it in struck ("likes genres=Drama")."""
        return f"{self.sign} {self.key}"


@dataclass(frozen=True, slots=True)
class Band:
    """Items whose number lies in [low, high]."""

    column: int
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Tags:
    """The tags of a catalogue at one moment; never changed, so readers need no lock.

    Attributes:
        keys: the tags' keys, sorted; their places are the columns.
        kinds_V: what each is about, by its place in KINDS.
        counts_V: how many items carry it.
        share_V: the share of all acts that fall on it (of items, where acts are not counted).
        starts: items + 1 places into `columns_M`, which holds each item's tags end to end.
        bands: the bands of each number, for items that came with a request.
    """

    keys: tuple[str, ...] = ()
    kinds_V: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    counts_V: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    share_V: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    starts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    columns_M: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    bands: Mapping[str, tuple[Band, ...]] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def items(self) -> int:
        """How many catalogue rows are tagged."""
        return len(self.starts) - 1

    @cached_property
    def columns(self) -> dict[str, int]:
        """The column of each key."""
        return {key: column for column, key in enumerate(self.keys)}

    def of_rows(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Columns of the tags of catalogue rows, end to end, and how many each row has; -1 and new rows have none."""
        known = (rows >= 0) & (rows < self.items)
        safe = np.where(known, rows, 0) if self.items else np.zeros_like(rows)
        ends = np.append(self.starts, 0)
        lengths = np.where(known, ends[safe + 1] - self.starts[safe], 0)
        stops = np.cumsum(lengths)
        total = int(stops[-1]) if len(stops) else 0
        index = np.arange(total) + np.repeat(self.starts[safe] - stops + lengths, lengths)
        return self.columns_M[index], lengths

    def of(self, fields: Mapping[str, Value]) -> NDArray[np.int64]:
        """Columns of the tags of an item that came with a request; counts of acts are not known of it."""
        found = [column for name in _names(self.fields, fields) if (column := self.columns.get(name)) is not None]
        for name, number in _numbers(self.fields, fields).items():
            found += [band.column for band in self.bands.get(name, ()) if band.low <= number <= band.high]
        return np.unique(np.array(found, np.int64))

    @cached_property
    def matrix_NV(self) -> sparse.csr_array:
        """Which item carries which tag, 1 or absent."""
        ones = np.ones(len(self.columns_M), np.float32)
        return sparse.csr_array((ones, self.columns_M, self.starts), shape=(self.items, len(self)))

    def directions(self, phi_NK: NDArray[np.floating], rows: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Where each tag points in the space of base rewards: its items' mean less the mean of all, shrunk.

        A tag of n items counts n / (n + SHRINK), for the mean of few items is mostly their own.

        Args:
            rows: where given, the rows that `phi_NK` is of: a sample of the catalogue.

        Shapes: phi_NK the base rewards of catalogue rows, at least `items` of them; returns (V, K).
        """
        if rows is not None:
            phi_NK, rows = phi_NK[rows < self.items], rows[rows < self.items]
        phi_NK = np.asarray(phi_NK[: self.items], np.float64)
        if not len(self) or not len(phi_NK):
            return np.zeros((len(self), phi_NK.shape[1]))
        if rows is not None:
            matrix_NV = self.matrix_NV[rows]
        else:
            matrix_NV = self.matrix_NV if len(phi_NK) == self.items else self.matrix_NV[: len(phi_NK)]
        sums_VK = np.asarray(matrix_NV.T @ phi_NK, np.float64)
        count_V = np.maximum(np.asarray(matrix_NV.sum(0), np.float64), 1e-9)[:, None]
        found: NDArray[np.float64] = (sums_VK / count_V - phi_NK.mean(0)) * (count_V / (count_V + SHRINK))
        return found


class Vocabulary:
    """The tags of a catalogue, kept current by `update`; read them from `tags`, which is swapped in one assignment.

    What the tags are depends on the catalogue (and the counts of acts) alone, never on when `update` was called.

    Example:
        >>> from ranker.config import parse
        >>> objectives = [{"name": "click", "event": "click"}]
        >>> catalogue = Catalogue(config := parse({"objectives": objectives, "fields": {"item": {"tag": "category"}}}))
        >>> for name, tag in zip("abcdef", ["noir", "noir", "noir", "farce", "farce", "farce"]):
        ...     row = catalogue.put(Item(name, {"tag": tag}))
        >>> vocabulary = Vocabulary(config, catalogue)
        >>> vocabulary.update(), vocabulary.tags.keys, vocabulary.update()
        (True, ('tag=farce', 'tag=noir'), False)
    """

    def __init__(self, config: Config, catalogue: Catalogue, *, most: int = MOST, least: int = 3) -> None:
        self.catalogue = catalogue
        self.tags = Tags(fields=config.fields.item)
        self._fields = config.fields.item
        self._most, self._least = most, least
        self._seen: list[Item] = []
        self._counts_N: NDArray[np.floating] | None = None
        self._codes: dict[str, int] = {}
        self._flat = np.zeros(512, np.int64)
        self._used = 0
        self._starts, self._lengths = np.zeros(64, np.int64), np.zeros(64, np.int64)
        self._numeric = [name for name, kind in self._fields.items() if kind in ("number", "text")]
        self._numbers_FN = np.full((len(self._numeric), 64), np.nan)

    def update(self, counts_N: NDArray[np.floating] | None = None) -> bool:
        """Take up new and replaced items; whether anything changed. One thread at a time.

        Args:
            counts_N: acts on each catalogue row, for what is well known; kept until others are given.
        """
        items = self.catalogue.items[: len(self.catalogue)]
        seen = self._seen
        rows = [*compress(range(len(seen)), map(is_not, items, seen)), *range(len(seen), len(items))]
        if not rows and counts_N is None:
            return False
        for row in rows:
            self._put(row, items[row])
        self._seen = items
        self._counts_N = self._counts_N if counts_N is None else counts_N
        self.tags = self._settled(len(items), self._counts_N)
        return True

    def carriers(self, names: Sequence[str], keys: Iterable[str]) -> NDArray[np.bool_]:
        """Which of the items (by id) carry one of the keys, vocabulary or not; unknown items carry none."""
        rows = self.catalogue.find(names)
        wanted = set(keys)
        codes = {code for key in wanted if (code := self._codes.get(key)) is not None}
        columns = [column for key in wanted if (column := self.tags.columns.get(key)) is not None]
        found = np.zeros(len(names), np.bool_)
        tagged, lengths = self.tags.of_rows(rows)
        place = np.repeat(np.arange(len(names)), lengths)
        found[place[np.isin(tagged, columns)]] = True
        for place_, row in enumerate(rows.tolist()):
            if found[place_] or not 0 <= row < len(self._seen):
                continue
            start = self._starts[row]
            if codes and not codes.isdisjoint(self._flat[start : start + self._lengths[row]].tolist()):
                found[place_] = True
        return found

    def _put(self, row: int, item: Item) -> None:
        codes = []
        for name in _names(self._fields, item.fields):
            code = self._codes.get(name)
            if code is None:
                if len(self._codes) >= NAMES:
                    continue
                code = self._codes[name] = len(self._codes)
            codes.append(code)
        while row >= len(self._starts):
            size = len(self._starts)
            self._starts, self._lengths = np.pad(self._starts, (0, size)), np.pad(self._lengths, (0, size))
            self._numbers_FN = np.pad(self._numbers_FN, ((0, 0), (0, size)), constant_values=np.nan)
        if self._used + len(codes) > len(self._flat):
            self._repack(len(codes))
        self._starts[row], self._lengths[row] = self._used, len(codes)
        self._flat[self._used : self._used + len(codes)] = codes
        self._used += len(codes)
        numbers = _numbers(self._fields, item.fields)
        self._numbers_FN[:, row] = [numbers.get(name, np.nan) for name in self._numeric]

    def _repack(self, count: int) -> None:
        flat, _ = self._laid_out(len(self._starts))
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._used = len(flat)
        self._flat = np.pad(flat, (0, max(len(self._flat), self._used + 2 * count)))

    def _laid_out(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The codes of the first rows end to end, and the row of each."""
        lengths = self._lengths[:count]
        ends = np.cumsum(lengths)
        index = np.arange(int(ends[-1]) if count else 0) + np.repeat(self._starts[:count] - ends + lengths, lengths)
        return self._flat[index], np.repeat(np.arange(count), lengths)

    def _settled(self, count: int, counts_N: NDArray[np.floating] | None) -> Tags:
        acts_N = None if counts_N is None else _fitted(np.asarray(counts_N, np.float64), count)
        codes_M, rows_M = self._laid_out(count)
        found: list[tuple[str, int, NDArray[np.int64]]] = []
        bands: dict[str, list[tuple[str, float, float]]] = {}
        for place, name in enumerate(self._numeric):
            numbers_N = self._numbers_FN[place, :count]
            text = self._fields[name] == "text"
            for value, kind, low, high in _bands(name, text, numbers_N, self._least):
                inside = np.flatnonzero((numbers_N >= low) & (numbers_N <= high))
                if len(inside) >= self._least:
                    key = f"{name} length={value}" if text else f"{name}={value}"
                    found.append((key, kind, inside))
                    bands.setdefault(name, []).append((key, low, high))
        if acts_N is not None and count:
            little, well = np.quantile(acts_N, [LITTLE, WELL])
            if well > little:
                found.append((f"{POPULARITY}=little known", 3, np.flatnonzero(acts_N <= little)))
                found.append((f"{POPULARITY}=well known", 3, np.flatnonzero(acts_N >= well)))
        found = found[: self._most]
        chosen = self._chosen(np.bincount(codes_M, minlength=len(self._codes)), count, self._most - len(found))
        column_of = np.full(len(self._codes) + len(found), -1, np.int64)
        named = dict(chosen) | {key: len(self._codes) + place for place, (key, _, _) in enumerate(found)}
        keys = tuple(sorted(named))
        column_of[[named[key] for key in keys]] = np.arange(len(keys))
        columns_M = np.concatenate([column_of[codes_M], *(np.full(len(f[2]), column_of[named[f[0]]]) for f in found)])
        all_rows_M = np.concatenate([rows_M, *(inside for _, _, inside in found)])
        kept = columns_M >= 0
        columns_M, all_rows_M = columns_M[kept], all_rows_M[kept]
        order = np.lexsort((columns_M, all_rows_M))
        columns_M, all_rows_M = columns_M[order], all_rows_M[order]
        kinds = {key: kind for key, kind, _ in found}
        weight_M = np.ones(len(columns_M)) if acts_N is None else acts_N[all_rows_M]
        total = float(count if acts_N is None else acts_N.sum()) or 1.0
        columns = {key: column for column, key in enumerate(keys)}
        return Tags(
            keys=keys,
            kinds_V=np.array([kinds.get(key, self._kind(key)) for key in keys], np.int64),
            counts_V=np.bincount(columns_M, minlength=len(keys)),
            share_V=np.bincount(columns_M, weights=weight_M, minlength=len(keys)) / total,
            starts=np.concatenate([[0], np.cumsum(np.bincount(all_rows_M, minlength=count))]).astype(np.int64),
            columns_M=columns_M,
            bands={
                name: tuple(Band(columns[key], low, high) for key, low, high in ends if key in columns)
                for name, ends in bands.items()
            },
            fields=self._fields,
        )

    def _kind(self, key: str) -> int:
        return 5 if self._fields.get(key.partition("=")[0]) == "text" else 0

    def _chosen(self, carried: NDArray[np.int64], count: int, room: int) -> list[tuple[str, int]]:
        """The names that enough items carry, and not nearly all; the most carried where there are too many."""
        least = {"text": max(self._least, math.ceil(0.01 * count))}
        most = {"text": 0.1 * count}
        usual, nearly_all = max(self._least, math.ceil(0.002 * count)), 0.95 * count
        by_field: dict[str, list[tuple[int, str, int]]] = {}
        for key, code in self._codes.items():
            times = int(carried[code])
            name = key.partition("=")[0]
            kind = self._fields.get(name, "category")
            if least.get(kind, usual) <= times <= most.get(kind, nearly_all):
                by_field.setdefault(name, []).append((-times, key, code))
        best = [one for found in by_field.values() for one in sorted(found)[:PER_FIELD]]
        # words give way to what was declared as a category
        best.sort(key=lambda one: (self._kind(one[1]) == 5, one))
        return [(key, code) for _, key, code in best[: max(0, room)]]


def _names(kinds: Mapping[str, str], fields: Mapping[str, Value]) -> list[str]:
    """The keys that an item's categories and words name, each once."""
    found: dict[str, None] = {}
    for name, kind in kinds.items():
        value = fields.get(name)
        if value is None or kind == "number":
            continue
        if kind == "text":
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            words = dict.fromkeys(match.group() for match in _WORD.finditer(text.lower()))
            found.update((f"{name}={word}", None) for word in islice((w for w in words if w not in _COMMON), WORDS))
        else:
            found.update(
                (f"{name}={_plain(one)}", None) for one in (value if isinstance(value, list) else [value]) if one != ""
            )
    return list(found)


def _numbers(kinds: Mapping[str, str], fields: Mapping[str, Value]) -> dict[str, float]:
    """Numbers of an item, and how many words its texts have."""
    found = {}
    for name, kind in kinds.items():
        value = fields.get(name)
        if kind == "text" and value is not None:
            found[name] = float(len((" ".join(map(str, value)) if isinstance(value, list) else str(value)).split()))
        elif kind == "number" and isinstance(value, int | float | str):
            try:
                number = float(value)
            except ValueError:
                continue
            if math.isfinite(number):
                found[name] = number
    return found


def _bands(name: str, text: bool, numbers_N: NDArray[np.float64], least: int) -> list[tuple[str, int, float, float]]:
    """Value, kind and ends of the bands that a number's distribution offers."""
    numbers_N = numbers_N[np.isfinite(numbers_N)]
    if len(numbers_N) < 4 * least:
        return []
    low, middle, high = np.quantile(numbers_N, [LOW, 0.5, HIGH], method="nearest").tolist()
    years = not text and low > 1000 and high < 2200 and bool((numbers_N == np.round(numbers_N)).mean() > 0.99)
    if text and middle < 12:  # titles are all short
        return []
    if years or name.lower() in _ERAS:
        lower, upper, place = "older", "newer", 1
    elif text or any(word in name.lower() for word in _LENGTHS):
        lower, upper, place = "short", "long", 4
    else:
        lower, upper, place = "low", "high", 2
    found = []
    if low < middle or low < high:
        found.append((lower, place, -math.inf, low))
        found.append((upper, place, high if high > middle else math.nextafter(middle, math.inf), math.inf))
    if years:
        decades, carried = np.unique(numbers_N // 10, return_counts=True)
        found += [
            (f"{int(decade) * 10}s", 1, 10 * decade, 10 * decade + 9)
            for decade, times in zip(decades.tolist(), carried.tolist(), strict=True)
            if least <= times <= 0.95 * len(numbers_N)
        ]
    return found


def _fitted(counts_N: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.pad(counts_N[:count], (0, max(0, count - len(counts_N))))


def _plain(value: object) -> str:
    """Equal values have one name: 1, 1.0 and true are the same category."""
    return str(int(value)) if isinstance(value, float | bool) and value == value // 1 else str(value)
