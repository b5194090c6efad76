"""Event files as streams, the configuration that a log implies, and MovieLens-100K out of a package.

MovieLens-100K (harper2015movielens) lies in the wheel of RecBole (zhao2021recbole) on the Python index. Its licence
does not allow passing it on, so it is fetched, checked and cached on the user's machine, never stored here.
"""

import gzip
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ranker import config as configuration
from ranker import events
from ranker.config import Config, FieldKind, FieldKinds, Threshold
from ranker.errors import DataError, EventError
from ranker.events import Event, Field, Value

Reject = Callable[[Path, int, bytes, EventError], None]

WHEEL = "recbole==1.2.1"
WHEEL_FILE = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
FOLDER = "recbole/dataset_example/ml-100k/ml-100k"
#: upper ends of the age bands that GroupLens itself uses
AGES = ((17, "under 18"), (24, "18-24"), (34, "25-34"), (44, "35-44"), (49, "45-49"), (55, "50-55"), (200, "56+"))


def read(paths: Iterable[Path | str], *, reject: Reject | None = None) -> Iterator[Event]:
    """Stream the events of .jsonl and .jsonl.gz files, one after the other; never loaded whole.

    Args:
        reject: called with (path, line number, line, error) for each line that is no event; without it such a
            line is an error.

    Raises:
        DataError: a file cannot be read or is damaged, or a line is no event and there is no `reject`.
    """
    for path in map(Path, paths):
        for number, line in enumerate(_lines(path), 1):
            if not line.strip():
                continue
            try:
                event = events.decode(line)
            except EventError as error:
                if reject is None:
                    remedy = f"mend or remove the line ({error.thing}: {error.remedy})"
                    raise DataError(f"{path}:{number}", error.value, remedy) from None
                reject(path, number, line, error)
                continue
            yield event


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as lines:
            yield from lines
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(str(path), str(error), "the gzip file is damaged or cut off; fetch it again") from None
    except OSError as error:
        raise DataError(str(path), error.strerror or str(error), "name an event file that can be read") from None


@dataclass
class _Seen:
    """What was seen of one named field or interaction type, in bounded memory."""

    count: int = 0
    lists: int = 0
    numbers: int = 0
    words: int = 0
    values: set[Value | tuple[object, ...]] = field(default_factory=set)

    def add(self, value: Value) -> None:
        if value is None:
            return
        self.count += 1
        self.lists += isinstance(value, list)
        self.numbers += isinstance(value, int | float) and not isinstance(value, bool)
        self.words += len(value.split()) if isinstance(value, str) else 0
        if len(self.values) <= 1000:
            self.values.add(tuple(value) if isinstance(value, list) else value)

    @property
    def kind(self) -> FieldKind:
        if self.lists:
            return "categories"
        if self.numbers and self.numbers == self.count:
            return "number"
        return "text" if self.words > 2 * self.count else "category"


#: types that say "not this"; their objectives count against an item
AGAINST = frozenset({"dismiss", "hate", "dislike", "hide", "skip", "report", "block", "unlike", "thumbs_down"})


def infer(paths: Iterable[Path | str], *, limit: int = 500_000, reject: Reject | None = None) -> Config:
    """The configuration that a log implies, from its first `limit` events.

    Interaction types become objectives: a type with values is fulfilled from 4 up on a 1-5 scale and above the
    user's own mean otherwise; types such as dismiss or hate count against. The first list field of items named
    genres or categories is the interests. User fields of at most 20 values are groups, and so no inputs. Waits
    cover the delay of 99 % of the interactions with a ranking; position bias is assumed where positions are known.

    Raises:
        DataError: the files cannot be read or hold no interaction.
    """
    paths = list(paths)
    fields: dict[str, OrderedDict[str, _Seen]] = {kind: OrderedDict() for kind in ("item", "user", "ranking")}
    types: Counter[str] = Counter()
    scales: dict[str, tuple[float, float]] = {}
    shown_at: OrderedDict[str, int] = OrderedDict()
    delays: dict[str, list[int]] = {}
    positioned = False
    for place, event in enumerate(read(paths, reject=reject)):
        if place >= limit:
            break
        if isinstance(event, events.Interaction):
            types[event.type] += 1
            if event.value is not None:
                low, high = scales.get(event.type, (event.value, event.value))
                scales[event.type] = min(low, event.value), max(high, event.value)
            known = delays.setdefault(event.type, [])
            if event.ranking is not None and event.ranking in shown_at and len(known) < 10_000:
                known.append(event.time - shown_at[event.ranking])
        elif isinstance(event, events.Item | events.User | events.Ranking):
            kind = "item" if isinstance(event, events.Item) else "user" if isinstance(event, events.User) else "ranking"
            for name, value in events.fields_of(event.fields).items():
                fields[kind].setdefault(name, _Seen()).add(value)
        if isinstance(event, events.Ranking):
            positioned |= len(event.items) > 1 and any(position >= 0 for position in events.positions_of(event))
            shown_at[event.id] = event.time
            if len(shown_at) > 100_000:
                shown_at.popitem(last=False)
            for shown in event.items:
                for name, value in events.fields_of(shown.fields).items():
                    fields["item"].setdefault(name, _Seen()).add(value)
    if not types:
        raise DataError(", ".join(map(str, paths)), "no interaction", "name a log that holds interaction events")
    groups = tuple(n for n, seen in fields["user"].items() if not seen.lists and 1 < len(seen.values) <= 20)
    kinds = {kind: _kinds(found, drop=groups if kind == "user" else ()) for kind, found in fields.items()}
    interests = [n for n, k in kinds["item"].items() if k == "categories" and n.lower() in ("genres", "categories")]
    if not interests:  # a single category a news article or product stands in serves as well
        interests = [n for n, k in kinds["item"].items() if k == "category" and n.lower() in ("genre", "category")]
    objectives = [
        {
            "name": name,
            "event": kind,
            "threshold": _threshold(scales.get(kind)),
            "weight": -1.0 if kind.lower() in AGAINST else 1.0,
            "wait": _wait(delays[kind]),
            "biased": positioned,
        }
        for name, kind in _named(kind for kind, _ in types.most_common(16)).items()
    ]
    inputs = {"item": kinds["item"], "user": kinds["user"], "request": kinds["ranking"]}
    name = Path(paths[0]).name.split(".")[0]
    return configuration.parse(
        {
            "name": name,
            "fields": inputs,
            "interests": next(iter(interests), None),
            "groups": groups,
            "objectives": objectives,
        },
        source=f"inferred from {Path(paths[0]).name}",
    )


def _kinds(found: dict[str, _Seen], drop: tuple[str, ...]) -> FieldKinds:
    return {name: seen.kind for name, seen in found.items() if seen.count and name not in drop}


def _threshold(scale: tuple[float, float] | None) -> Threshold | None:
    if scale is None or scale[0] == scale[1]:
        return None
    low, high = scale
    return 4.0 if low >= 0.5 and 4 < high <= 5 else "user-mean"


def _wait(delays: list[int]) -> float:
    """Seconds; a power of two so that a few more events do not change the answer."""
    if not delays:
        return 60.0
    return float(2.0 ** np.clip(np.ceil(np.log2(max(np.quantile(delays, 0.99) / 1000, 1))), 0, 17))


def _named(kinds: Iterable[str]) -> dict[str, str]:
    """Objective names (lower-case words) for interaction types, each its own."""
    names: dict[str, str] = {}
    for kind in kinds:
        word = "".join(c if c.isascii() and c.isalnum() else "_" for c in kind.lower()).strip("_")[:28] or "event"
        word = word if word[0].isalpha() else f"e_{word}"
        place = 2
        base = word
        while word in names:
            word, place = f"{base}_{place}", place + 1
        names[word] = kind
    return names


@dataclass(frozen=True, kw_only=True)
class MovieLens:
    """MovieLens-100K: 943 people, 1,682 films, 100,000 ratings from 1 to 5, in time order.

    Shapes: users_N, items_N (ids as in the files), values_N, times_N (ms since the epoch).
    """

    films: dict[str, dict[str, Value]]
    people: dict[str, dict[str, Value]]
    users_N: NDArray[np.str_]
    items_N: NDArray[np.str_]
    values_N: NDArray[np.float64]
    times_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.values_N)

    def events(self, rows: NDArray[np.int64] | None = None) -> Iterator[Event]:
        """All films and people, then the ratings (of these rows only) in time order."""
        start = int(self.times_N[0]) if len(self) else 0
        for film, named in self.films.items():
            yield events.Item(id=f"ml-item-{film}", timestamp=start, item=film, fields=_fields(named))
        for person, named in self.people.items():
            yield events.User(id=f"ml-user-{person}", timestamp=start, user=person, fields=_fields(named))
        yield from self.ratings(rows)

    def ratings(self, rows: NDArray[np.int64] | None = None) -> Iterator[Event]:
        """The ratings as `rate` interactions, in time order."""
        for row in range(len(self)) if rows is None else np.sort(rows):
            yield events.Interaction(
                id=f"ml-rate-{row}",
                timestamp=int(self.times_N[row]),
                user=str(self.users_N[row]),
                item=str(self.items_N[row]),
                type="rate",
                value=float(self.values_N[row]),
            )


def _fields(named: dict[str, Value]) -> list[Field]:
    return [Field(name, value) for name, value in named.items()]


def cache_folder() -> Path:
    """Where fetched data is kept: the platform's cache folder for this user, in `plurank`."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "plurank"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "plurank"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "plurank"
    return Path.home() / ".cache" / "plurank"


def movielens(cache: Path | None = None) -> MovieLens:
    """MovieLens-100K, fetched with pip on first use and read from the cache afterwards.

    Raises:
        DataError: it is not cached and cannot be fetched, or what came is not the named file.
    """
    wheel = packaged("MovieLens-100K", WHEEL, WHEEL_FILE, WHEEL_SHA256, cache)
    with zipfile.ZipFile(wheel) as archive:
        inter, item, user = (archive.read(f"{FOLDER}.{end}").decode("utf-8") for end in ("inter", "item", "user"))
    rows = [line.split("\t") for line in inter.splitlines()[1:]]
    times = np.array([float(row[3]) for row in rows])
    # raters often share a second: ties are ordered by user and item, so that the order is the same everywhere
    ids = np.array([[int(row[1]), int(row[0])] for row in rows])
    order = np.lexsort((ids[:, 0], ids[:, 1], times))
    return MovieLens(
        films={row[0]: _film(row) for row in (line.split("\t") for line in item.splitlines()[1:])},
        people={row[0]: _person(row) for row in (line.split("\t") for line in user.splitlines()[1:])},
        users_N=np.array([row[0] for row in rows])[order],
        items_N=np.array([row[1] for row in rows])[order],
        values_N=np.array([float(row[2]) for row in rows])[order],
        times_N=(times[order] * 1000).astype(np.int64),
    )


def _film(row: list[str]) -> dict[str, Value]:
    named: dict[str, Value] = {"title": row[1], "genres": [*row[3].split()]}
    if row[2].isdigit():
        named["year"] = int(row[2])
    return named


def _person(row: list[str]) -> dict[str, Value]:
    age = next(band for end, band in AGES if int(row[1]) <= end)
    return {"gender": row[2], "age": age, "occupation": row[3]}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def packaged(name: str, package: str, file: str, sha256: str, cache: Path | None = None) -> Path:
    """The wheel that a data set lies in, fetched with pip on first use and read from the cache afterwards.

    Args:
        name: what the data set is called in errors.
        package: as pip knows it, `name==version`.
        file: of the wheel; its whole sha256 is checked each time.

    Raises:
        DataError: it is not cached and cannot be fetched, or what came is not the named file.
    """
    wheel = (cache or cache_folder()) / file
    if wheel.is_file() and _sha256(wheel) == sha256:
        return wheel
    remedy = (
        f"it needs the Python index once: run `{Path(sys.executable).name} -m pip download --no-deps {package}` where "
        f"there is a network and put {file} into {wheel.parent}"
    )
    try:
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            command += ["--disable-pip-version-check", "--timeout", "20", "--retries", "2", "--dest", folder, package]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found = Path(folder) / file
            if done.returncode or not found.is_file():
                reason = (done.stderr.strip().splitlines() or ["pip brought no file"])[-1]
                raise DataError(name, reason, remedy)
            if _sha256(found) != sha256:
                raise DataError(name, _sha256(found), f"the file's sha256 should be {sha256}; {remedy}")
            found.replace(wheel)
    except OSError as error:
        raise DataError(name, str(error), f"make {wheel.parent} writable; {remedy}") from None
    return wheel
