"""What a deployment declares about its data: fields, interests, groups, objectives, and one size dial.

Read from plurank.toml. Misspelt keys and impossible values are refused with the file, the key and the nearest
valid key. Group fields are labels for training and monitoring and can never be inputs.
"""

import difflib
import re
import tomllib
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


#: what the base utility is called among the objectives of a request and an answer
PREFERENCE = "preference"


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
    """Defaults of the calibrated rerank (Steck 2018): `strength` is lambda, `smoothing` alpha."""

    strength: Share = 0.3
    smoothing: Annotated[float, Meta(gt=0, lt=1)] = 0.01


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


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole declaration. See docs/architecture.md for an annotated example."""

    objectives: Annotated[tuple[Objective, ...], Meta(min_length=1, max_length=16)]
    name: str = "plurank"
    fields: Inputs = Inputs()
    interests: str | None = None
    groups: tuple[str, ...] = ()
    scale: Literal["tiny", "small", "full"] = "small"
    tenant: str | None = None
    preference: Preference = Preference()
    calibration: Calibration = Calibration()
    serving: Serving = Serving()
    learning: Learning = Learning()


_KEYS: dict[str, type[Struct]] = {
    "preference": Preference,
    "calibration": Calibration,
    "serving": Serving,
    "learning": Learning,
    "fields": Inputs,
    "objectives": Objective,
    "graded": Graded,
}


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
        return msgspec.convert(data, kind, strict=True)
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
    if config.interests is not None and config.fields.item.get(config.interests) not in ("category", "categories"):
        near = difflib.get_close_matches(config.interests, config.fields.item, 1, 0.5)
        raise ConfigError(
            f"{source}: interests",
            config.interests,
            f"did you mean {near[0]!r}?" if near else "declare it under [fields.item] as category or categories",
        )
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
