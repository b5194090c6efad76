"""Inputs kept with a version, and the probabilities they must give wherever it is loaded.

Weights can be whole and still score wrongly: another library, another processor, code that moved on. So the writer
keeps a few users and items with what it computed for them, and whoever loads the version computes them again.

Axes: N candidates of a case, T objectives.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec import Struct, msgpack
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor

from ranker.catalogue import Catalogue, Item
from ranker.config import Config
from ranker.errors import RegistryError
from ranker.events import Value
from ranker.evidence import NOTHING, Act, Evidence
from ranker.inference import Inference

#: the same weights may differ by this much (absolute, and relative for values): bf16 here, float32 there
TOLERANCE = 0.02
CASES, ITEMS, ACTS = 4, 16, 20


class Case(Struct, frozen=True, array_like=True):
    """One user with candidates: indexes into the golden's items."""

    evidence: Evidence
    request: dict[str, Value]
    items: list[str]
    now: int


class _Inputs(Struct, frozen=True, array_like=True):
    items: list[Item]
    cases: list[Case]


@dataclass(frozen=True, eq=False)
class Golden:
    """A few cases over a small catalogue, and their probabilities, one (N, T) array a case."""

    items: tuple[Item, ...]
    cases: tuple[Case, ...]
    probabilities: tuple[NDArray[np.float32], ...]

    @classmethod
    def record(
        cls, config: Config, weights: Mapping[str, Tensor], catalogue: Catalogue, cases: Iterable[Case]
    ) -> "Golden":
        """Score the first few cases, cut to a few items and acts, with these weights."""
        kept = [
            msgspec.structs.replace(
                case,
                items=case.items[:ITEMS],
                evidence=msgspec.structs.replace(
                    case.evidence, history=case.evidence.history[-ACTS:], recent=(), past=NOTHING
                ),
            )
            for case in list(cases)[:CASES]
        ]
        named = dict.fromkeys(
            name for case in kept for name in (*case.items, *(act.item for act in case.evidence.history))
        )
        items = tuple(catalogue.get(name) or Item(name) for name in named)
        inference = Inference(config, weights)
        return cls(items, tuple(kept), tuple(_scores(config, inference, items, kept)))

    def check(self, config: Config, inference: Inference) -> None:
        """Compute the cases again with an Inference nothing has been attached to yet.

        Raises:
            RegistryError: a probability differs by more than TOLERANCE, or is not finite.
        """
        found = _scores(config, inference, self.items, self.cases)
        for place, (now_NT, then_NT) in enumerate(zip(found, self.probabilities, strict=True)):
            same_NT = np.isclose(now_NT, then_NT, rtol=TOLERANCE, atol=TOLERANCE)
            if not same_NT.all():
                worst = float(np.abs(now_NT - then_NT).max())
                raise RegistryError(
                    f"golden case {place}",
                    worst,
                    f"it may differ by {TOLERANCE}: this plurank does not compute what the writer computed; "
                    "load the version with the plurank named in its manifest",
                )

    def encode(self) -> bytes:
        """As the bytes of a safetensors file: `inputs` is msgpack, `case0`... the probabilities."""
        inputs = np.frombuffer(msgpack.encode(_Inputs(list(self.items), list(self.cases))), np.uint8)
        scores = {f"case{place}": np.ascontiguousarray(one) for place, one in enumerate(self.probabilities)}
        raw: bytes = save({"inputs": inputs, **scores})
        return raw

    @classmethod
    def decode(cls, raw: bytes) -> "Golden":
        """What `encode` wrote. Damage shows as SafetensorError, msgspec's errors or KeyError."""
        tensors: dict[str, NDArray[np.float32]] = load(raw)
        inputs = msgpack.decode(tensors["inputs"].tobytes(), type=_Inputs)
        scores = tuple(tensors[f"case{place}"] for place in range(len(inputs.cases)))
        return cls(tuple(inputs.items), tuple(inputs.cases), scores)


def made_up(config: Config, catalogue: Catalogue, now: int, seed: int = 0) -> list[Case]:
    """Cases of invented users over real items: a version outlives a person's wish to be forgotten."""
    draw = random.Random(seed)
    names = [item.id for item in catalogue.items]
    kinds = [objective.event for objective in config.objectives]
    cases = []
    for place in range(CASES if names else 0):
        acts = [Act(draw.choice(names), draw.choice(kinds), now - 1000 * n) for n in range(4 * place, 0, -1)]
        cases.append(Case(Evidence(history=tuple(acts)), {}, draw.sample(names, min(ITEMS, len(names))), now))
    return cases


def _scores(
    config: Config, inference: Inference, items: Iterable[Item], cases: Iterable[Case]
) -> list[NDArray[np.float32]]:
    catalogue = Catalogue(config)
    for item in items:
        catalogue.put(item)
    inference.attach(catalogue)
    return [
        inference.score(
            inference.taste(case.evidence, case.now),
            user=case.evidence.fields,
            request=case.request,
            rows=catalogue.find(case.items),
            now=case.now,
        ).probabilities_NT
        for case in cases
    ]
