"""What a deployment declares about its data: fields, interests, groups, objectives, and one size dial.

Read from plurank.toml. Misspelt keys and impossible values are refused with the file, the key and the nearest
valid key. Group fields are labels for training and monitoring and can never be inputs.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

from ranker.errors import ConfigError

StructType = TypeVar("StructType", bound=Struct)
FieldKind = Literal["category", "categories", "number", "text"]
FieldKinds = dict[str, FieldKind]
Threshold = float | Literal["user-mean"]
Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Divergence = Literal["kl", "jensen-shannon", "hellinger"]


#: what the base utility is called among the objectives of a request and an answer
PREFERENCE = "preference"
#: the group field that is discovered: majority or minority by preference support (ranker/groups.py)
SUPPORT = "support"
Method = Literal["erm", "reweight", "group-dro", "maxmin", "self-distil", "pareto"]


class Graded(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Grades that label an objective without a ranking: stars, for example. Exactly one bound is set."""

    event: str
    at_least: Threshold | None = None
    at_most: Threshold | None = None


class Objective(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing to predict for an impression.

    Attributes:
        event: the interaction type that fulfils it.
        kind: `binary` (did it happen, with at least `threshold` where one is set) or `value` (how much).
        weight: its share of the served utility; negative for what should be avoided.
        wait: seconds of event time after which a missing positive counts as a negative.
        biased: the position tower explains a part of it.
        graded: grades, outside of rankings, that label it as well.
    """

    name: str
    event: str
    kind: Literal["binary", "value"] = "binary"
    threshold: Threshold | None = None
    weight: float = 1.0
    wait: Positive = 60.0
    biased: bool = False
    graded: Graded | None = None


class Calibration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Defaults of the calibrated rerank (Steck 2018), which a request may replace.

    Attributes:
        strength: lambda, from 0 (utility alone) to 1 (proportion alone).
        personal: lambda grows from 0 to `strength` with what is known of the person, see `confidence`.
        target: the smallest lambda is solved for that brings the miscalibration down to this; `strength` is unused.
        confidence: effective acts at which a personal lambda is half of `strength`.
        order: 0 shows the chosen set in the order of utility, 1 in that of the greedy choice, where minorities stand
            higher; in between, places are blended.
        divergence: what miscalibration is measured in.
        smoothing: alpha, the part of the profile that the slate's shares are mixed with.
        floor: an interest of share p gets at least floor(slate x p) places while candidates hold it.
        pseudo_acts: acts at the population's shares that a history is filled up with.
        half_life: seconds after which an act counts half in the profile.
    """

    strength: Share = 0.3
    personal: bool = False
    target: Annotated[float, Meta(ge=0)] | None = None
    confidence: Positive = 10.0
    order: Share = 0.0
    divergence: Divergence = "kl"
    smoothing: Annotated[float, Meta(gt=0, lt=1)] = 0.01
    floor: bool = False
    pseudo_acts: Annotated[float, Meta(ge=0)] = 0.0
    half_life: Positive = 30 * 86_400.0


class Preference(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base utility r = b + z . phi as one more part of the served utility.

    Attributes:
        weight: of P(preferred to a typical item) beside the objectives; "preference" in a request's weights.
    """

    weight: float = 0.5


class Serving(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a slate is made."""

    slate: Annotated[int, Meta(ge=1, le=1000)] = 20
    candidates: Annotated[int, Meta(ge=1, le=10_000)] = 500
    swap: Share = 0.05
    """share of served slates in which one adjacent pair is swapped, so that position bias stays identifiable"""


class Guard(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of personalisation (ranker/guard.py). What a bound costs is in docs/experiments.md, echo-chamber.

    Attributes:
        on: false lifts all bounds.
        gap: how far P(preferred to a typical item), over a slate, may lie above the population's; 1 lifts it.
        drift: how far the interests asked for may lie from the person's long-term ones, in total variation; 1 lifts it.
            A hundred acts are known to about .1, so less than that holds back mostly what is chance.
        novelty: at least this share of the slate, in whole places, lies outside of the dominant interests; 0 lifts it.
        dominant: the interests that hold this share of a profile, largest first, are its dominant ones.
    """

    on: bool = True
    gap: Share = 0.15
    drift: Share = 0.1
    novelty: Share = 0.1
    dominant: Annotated[float, Meta(gt=0, le=1)] = 0.8


class Exploration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """In a share of slates one place is drawn anew (ranker/exploration.py); swaps are `serving.swap`.

    Attributes:
        slot: share of slates in which it is done.
        uniform: of that, the share drawn uniformly from all that may enter; the rest by `draws` posterior draws.
    """

    slot: Share = 0.02
    uniform: Share = 0.1
    draws: Annotated[int, Meta(ge=1, le=256)] = 16


class Retrieval(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How candidates are found among the catalogue (ranker/retrieval.py).

    Attributes:
        share: of the candidates that is drawn by interest of the person's profile; the rest by utility alone.
        tastes: each interest is searched with the taste that its own acts speak for.
        epoch: above 100,000 items so many versions share one index before it is built anew (ranker/epoch.py).
    """

    share: Share = 0.7
    tastes: bool = True
    epoch: Annotated[int, Meta(ge=1)] = 24


class Canary(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a version is tried on a part of the users (`ranker/canary.py`).

    Attributes:
        trials: whether the trainer's passing candidates are tried before they are promoted.
        ladder: shares of the users, one after the other; after the last the version is promoted.
        slates: closed slates of the canary before each next step.
        window: seconds of event time after which a canary that is not shown to be harmless is withdrawn.
        tolerance: relative harm (of gain or log loss) that must be excluded before it is promoted.
    """

    trials: bool = False
    ladder: Annotated[tuple[Annotated[float, Meta(gt=0, lt=1)], ...], Meta(min_length=1)] = (0.05, 0.2, 0.5)
    slates: Annotated[int, Meta(ge=20)] = 300
    window: Positive = 3600.0
    tolerance: Positive = 0.05


class Learning(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The learner's rates; `seed` makes a run repeatable."""

    rate: Positive = 2e-3
    row_rate: Positive = 0.1
    publish: Positive = 5.0
    """seconds between candidate versions"""
    minimum_group: Annotated[int, Meta(ge=1)] = 20
    """a group with fewer distinct users than this is withheld everywhere"""
    seed: int = 0


class Inputs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The declared input fields of items, users and requests, and their kinds."""

    item: FieldKinds = {}
    user: FieldKinds = {}
    request: FieldKinds = {}


class Fairness(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Groups in training and judgement (ranker/groups.py, ranker/fair.py); serving never sees them.

    Attributes:
        method: of the online learner. `plurank train --method` chooses the first version's.
        field: the group field that is balanced; without it the first declared one, else `support`.
        discover: also tell majority and minority apart by preference support.
        tolerance: how far a group may fall below the plain model on held-out data, as a share of 1.
    """

    method: Method = "erm"
    field: str | None = None
    discover: bool = True
    tolerance: Share = 0.005


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole declaration. See docs/architecture.md for an annotated example."""

    objectives: Annotated[tuple[Objective, ...], Meta(min_length=1, max_length=16)]
    name: str = "plurank"
    fields: Inputs = Inputs()
    interests: str | tuple[str, ...] | None = None
    """the item fields that hold its categories"""
    groups: tuple[str, ...] = ()
    scale: Literal["tiny", "small", "full"] = "small"
    tenant: str | None = None
    preference: Preference = Preference()
    calibration: Calibration = Calibration()
    serving: Serving = Serving()
    retrieval: Retrieval = Retrieval()
    guard: Guard = Guard()
    exploration: Exploration = Exploration()
    learning: Learning = Learning()
    canary: Canary = Canary()
    fairness: Fairness = Fairness()

    @property
    def group_fields(self) -> tuple[str, ...]:
        """The group fields that are judged and published: the declared ones, and `support` where it is discovered."""
        return (*self.groups, SUPPORT) if self.fairness.discover else self.groups

    @property
    def balanced_field(self) -> str | None:
        """The group field that training balances; None where there is none."""
        return self.fairness.field or next(iter(self.group_fields), None)

    @property
    def interest_fields(self) -> tuple[str, ...]:
        """The fields that `interests` names: none, one or several."""
        named = self.interests
        return () if named is None else (named,) if isinstance(named, str) else named


def parse(data: dict[str, Any], *, source: str = "configuration") -> Config:
    """A checked Config from plain data.

    Raises:
        ConfigError: names the source, the key and, where it looks like a slip, the nearest valid key.
    """
    config = convert(data, Config, source)
    _check(config, source)
    return config


def load(path: Path | str) -> Config:
    """Read a plurank.toml; the `[service]` table belongs to services/settings.py and is passed over."""
    data = read_toml(path)
    data.pop("service", None)
    return parse(data, source=str(path))


def read_toml(path: Path | str) -> dict[str, Any]:
    """A TOML file as plain data.

    Raises:
        ConfigError: it is not there or does not parse.
    """
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(str(path), error.strerror, "name a plurank.toml that can be read") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), str(error), "mend the TOML") from None


def convert(data: Any, kind: type[StructType], source: str) -> StructType:
    """`data` as `kind`, its errors as a ConfigError with the key's path and the nearest valid key."""
    try:
        found = msgspec.convert(data, kind, strict=True)
    except msgspec.ValidationError as error:
        text = str(error)
        path = re.search(r"at `\$\.?(.*?)`", text)
        key = path.group(1) if path else ""
        unknown = re.search(r"unknown field `(.*?)`", text)
        if unknown is None:
            raise ConfigError(
                f"{source}: {key or 'top level'}", _at(data, key), text.split(" - at", maxsplit=1)[0]
            ) from None
        owner = _struct_at(kind, key)
        names = sorted(owner.__struct_fields__)
        near = difflib.get_close_matches(unknown.group(1), names, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else "valid keys are " + ", ".join(names)
        where = f"{key}.{unknown.group(1)}" if key else unknown.group(1)
        raise ConfigError(f"{source}: {where}", unknown.group(1), hint) from None
    for key, value in _numbers(msgspec.to_builtins(found)):
        if not math.isfinite(value):
            raise ConfigError(f"{source}: {key}", value, "give a finite number")
    return found


def _numbers(data: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every float of plain data, with its path."""
    if isinstance(data, float):
        yield key, data
    elif isinstance(data, dict):
        for name, value in data.items():
            yield from _numbers(value, f"{key}.{name}" if key else str(name))
    elif isinstance(data, list | tuple):
        for place, value in enumerate(data):
            yield from _numbers(value, f"{key}[{place}]")


def _struct_at(kind: type[Struct], key: str) -> type[Struct]:
    for part in re.findall(r"[a-z_]+", key):
        hints = {field.name: field.type for field in msgspec.structs.fields(kind)}
        found = _structs(hints.get(part))
        if found:
            kind = found[0]
    return kind


def _structs(hint: Any) -> list[type[Struct]]:
    if isinstance(hint, type) and issubclass(hint, Struct):
        return [hint]
    return [found for argument in get_args(hint) for found in _structs(argument)]


def _at(data: Any, key: str) -> Any:
    for part in re.findall(r"[^.\[\]]+", key):
        try:
            data = data[int(part)] if part.isdigit() else data[part]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _check(config: Config, source: str) -> None:
    inputs = {**config.fields.item, **config.fields.user, **config.fields.request}
    for group in config.groups:
        if group in inputs:
            raise ConfigError(f"{source}: groups", group, "a group label can never be an input; drop one of the two")
    if config.fairness.discover and SUPPORT in config.groups:
        raise ConfigError(f"{source}: groups", SUPPORT, "this field is discovered; rename it or set fairness.discover")
    field = config.fairness.field
    if field is not None and field not in config.group_fields:
        near = difflib.get_close_matches(field, config.group_fields, 1, 0.5)
        known = ", ".join(config.group_fields) or "none"
        hint = f"did you mean {near[0]!r}?" if near else f"declare it under groups; declared are {known}"
        raise ConfigError(f"{source}: fairness.field", field, hint)
    for interest in config.interest_fields:
        if config.fields.item.get(interest) not in ("category", "categories"):
            near = difflib.get_close_matches(interest, config.fields.item, 1, 0.5)
            raise ConfigError(
                f"{source}: interests",
                interest,
                f"did you mean {near[0]!r}?" if near else "declare it under [fields.item] as category or categories",
            )
        if config.interest_fields.count(interest) > 1:
            raise ConfigError(f"{source}: interests", interest, "name each field once")
    if config.calibration.personal and config.calibration.target is not None:
        raise ConfigError(
            f"{source}: calibration.target", config.calibration.target, "drop it, or drop personal: either sets lambda"
        )
    ladder = config.canary.ladder
    if any(low >= high for low, high in pairwise(ladder)):
        raise ConfigError(f"{source}: canary.ladder", list(ladder), "let each share be larger than the one before")
    names = [objective.name for objective in config.objectives]
    for place, objective in enumerate(config.objectives):
        where = f"{source}: objectives[{place}]"
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", objective.name):
            raise ConfigError(f"{where}.name", objective.name, "use a lower-case word: letters, digits, underscores")
        if objective.name == PREFERENCE:
            raise ConfigError(f"{where}.name", objective.name, "this name means the base utility; use another")
        if names.count(objective.name) > 1:
            raise ConfigError(f"{where}.name", objective.name, "give every objective its own name")
        if objective.kind == "value" and objective.threshold is not None:
            raise ConfigError(f"{where}.threshold", objective.threshold, "a value objective has none; drop it")
        graded = objective.graded
        if graded is not None and (graded.at_least is None) == (graded.at_most is None):
            raise ConfigError(f"{where}.graded", graded.event, "set exactly one of at_least and at_most")
