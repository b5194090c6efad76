"""People of a majority and a minority who compare items: simulated personas over a real catalogue, or a log's users.

A persona is a taste over base rewards (an item's quality and its factors): her group's direction plus a sparse mixture
of base rewards of her own (Dirichlet), of unit length, times one scale for everybody, which is set so that a given
share of the answers contradicts the taste. Every comparison is kept as base rewards of the preferred item minus those
of the other, so that a right margin is above 0.

Axes: U users, P comparisons of a user (the first C are context), K base rewards, I items.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor
from torch.nn import functional

from experiments import grades
from experiments.grades import Array, Grades, Rows
from ranker import pareto
from ranker.errors import DataError
from ranker.events import Event, User

FACTORS = 8
#: items with fewer grades have no dependable factors
RATED = 20
#: training, validation and unseen people, and the comparisons of each beside the context
PEOPLE, LABELS, JUDGED = (1000, 400, 600), 20, 200
#: share of answers against the persona's own taste
NOISE = 0.18
#: length of a persona's own mixture beside her group's direction of length 1, and how sparse it is
OWN, SPARSE = 0.5, 0.3
#: how many raters a pooled model's probability counts for in a support rate
STRENGTH = 4.0

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Some of the people: their comparisons (U, P, K), the rows compared (U, P, 2), and who is of the minority."""

    apart_UPK: Tensor
    pairs_UP2: Rows
    minority_U: Bools

    def __len__(self) -> int:
        return len(self.minority_U)


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """People to train on, to choose on, and never seen; the catalogue's base rewards; how many pairs are context."""

    train: Part
    valid: Part
    test: Part
    phi_IK: Tensor
    context: int

    @property
    def parts(self) -> tuple[Part, Part, Part]:
        """All three."""
        return self.train, self.valid, self.test


def base_rewards(known: Grades, users: Rows) -> Array:
    """Quality and FACTORS factors of the items these users graded, standardised, (I, 1 + FACTORS)."""
    phi_IF, _, quality_I = grades.factors(known, users, FACTORS)
    phi_IK = torch.cat([quality_I[:, None], phi_IF], 1).double().numpy()
    found: Array = (phi_IK - phi_IK.mean(0)) / (phi_IK.std(0) + 1e-9)
    return found


def catalogue(known: Grades) -> Array:
    """Base rewards of the items with RATED grades or more, (I, 1 + FACTORS)."""
    phi_IK = base_rewards(known, np.arange(len(known)))
    kept_IK = phi_IK[np.bincount(np.concatenate(known.items), minlength=len(phi_IK)) >= RATED]
    found: Array = (kept_IK - kept_IK.mean(0)) / kept_IK.std(0)
    return found


def personas(
    phi_IK: Array,
    seed: int,
    *,
    minority: float = 0.1,
    cosine: float = -0.3,
    context: int = 8,
    people: tuple[int, int, int] = PEOPLE,
) -> World:
    """Personas of two groups whose directions have this cosine; unseen people are judged by their noise-free taste."""
    rng = np.random.default_rng(seed)
    directions_2K = _directions(phi_IK.shape[1], cosine, rng)
    parts, scale = [], None
    for place, count in enumerate(people):
        minority_U = rng.permutation(np.arange(count) < round(minority * count))
        taste_UK = _unit(directions_2K[minority_U.astype(int)] + OWN * _own(count, phi_IK.shape[1], rng))
        scale = _scale(phi_IK, taste_UK, rng) if scale is None else scale
        judged = place == 2
        pairs_UP2 = _pairs(len(phi_IK), count, context + (JUDGED if judged else LABELS), rng)
        apart_UPK = phi_IK[pairs_UP2[..., 0]] - phi_IK[pairs_UP2[..., 1]]
        margin_UP = scale * (apart_UPK * taste_UK[:, None]).sum(2)
        said_UP = rng.random(margin_UP.shape) < expit(margin_UP)
        if judged:
            said_UP[:, context:] = margin_UP[:, context:] > 0
        parts.append(
            Part(
                apart_UPK=torch.from_numpy(np.where(said_UP[..., None], apart_UPK, -apart_UPK)).float(),
                pairs_UP2=np.where(said_UP[..., None], pairs_UP2, pairs_UP2[..., ::-1]),
                minority_U=minority_U,
            )
        )
    train, valid, test = parts
    return World(train=train, valid=valid, test=test, phi_IK=torch.from_numpy(phi_IK).float(), context=context)


def logged(known: Grades, seed: int, *, minority_U: Bools | None = None, context: int = 8, most: int = 3000) -> World:
    """A log's users: context pairs from one half of a user's graded items, labels from the other.

    Where groups are to be found by support, base rewards come from a quarter of the people, who are in no part: of
    people to whom they were fitted the support would look higher than of unseen ones.

    Args:
        minority_U: who of the log's users is of the minority; None where that is to be found, and nobody is.

    Raises:
        DataError: fewer than 200 users have enough comparisons.
    """
    rng = np.random.default_rng(seed)
    compared: dict[int, Rows] = {}
    for user in rng.permutation(len(known)):
        halves = np.array_split(rng.permutation(len(known.items[user])), 2)
        drawn = [
            grades.comparisons(known.items[user][half], known.values[user][half], count, rng, apart=known.apart)
            for half, count in zip(halves, (context, LABELS), strict=True)
        ]
        if [len(each) for each in drawn] == [context, LABELS] and len(compared) < most:
            compared[int(user)] = np.concatenate(drawn)
    if len(compared) < 200:
        raise DataError(known.name, f"{len(compared)} users", "name a log in which 200 users have 28 comparisons")
    users = np.array(list(compared))
    parts_of = np.split(users, [round(share * len(users)) for share in (0.25, 0.65, 0.8)])
    if minority_U is not None:
        parts_of = [users[:0], *np.split(users, [round(share * len(users)) for share in (0.5, 0.7)])]
    phi_IK = base_rewards(known, parts_of[0] if len(parts_of[0]) else parts_of[1])
    parts = []
    for chosen in parts_of[1:]:
        pairs_UP2 = np.stack([compared[int(user)] for user in chosen])
        apart_UPK = torch.from_numpy(phi_IK[pairs_UP2[..., 0]] - phi_IK[pairs_UP2[..., 1]]).float()
        own_U = np.zeros(len(chosen), np.bool_) if minority_U is None else minority_U[chosen]
        parts.append(Part(apart_UPK=apart_UPK, pairs_UP2=pairs_UP2, minority_U=own_U))
    train, valid, test = parts
    return World(train=train, valid=valid, test=test, phi_IK=torch.from_numpy(phi_IK).float(), context=context)


def alike(worlds: Sequence[World]) -> list[World]:
    """The worlds with as many people in each part as the one that has fewest, so that they can stand side by side."""
    sizes = [min(len(world.parts[place]) for world in worlds) for place in range(3)]

    def cut(part: Part, size: int) -> Part:
        return Part(apart_UPK=part.apart_UPK[:size], pairs_UP2=part.pairs_UP2[:size], minority_U=part.minority_U[:size])

    parts = [[cut(part, size) for part, size in zip(world.parts, sizes, strict=True)] for world in worlds]
    return [replace(world, train=own[0], valid=own[1], test=own[2]) for world, own in zip(worlds, parts, strict=True)]


def declared(events: Iterable[Event], users: Sequence[str], field: str) -> Bools:
    """Who does not share the most common value of this field of users, (U,): the last word of each user counts.

    Raises:
        DataError: fewer than a twentieth of these users have another value.
    """
    values = {
        event.user: str(own.value)
        for event in events
        if isinstance(event, User)
        for own in event.fields
        if own.name == field
    }
    counts = Counter(values[user] for user in users if user in values)
    common = counts.most_common(1)[0][0] if counts else None
    found: Bools = np.array([user in values and values[user] != common for user in users])
    if found.mean() < 0.05:
        raise DataError(field, f"{int(found.sum())} users beside the most common value", "name a field that differs")
    return found


def supports(world: World) -> list[Array]:
    """Each part's users' support among the people trained on: that of all their comparisons, shrunk to what one pooled
    reward, fitted to the people trained on, expects."""
    pooled_K = _pooled(world.train.apart_UPK.flatten(0, 1))
    found = []
    for place, part in enumerate(world.parts):
        raters = [part] if place == 0 else [part, world.train]
        pairs_P2 = np.concatenate([each.pairs_UP2.reshape(-1, 2) for each in raters])
        sizes_U = np.concatenate([np.full(len(each), each.pairs_UP2.shape[1]) for each in raters])
        users_P = np.repeat(np.arange(len(sizes_U)), sizes_U)
        chance_P = np.concatenate([torch.sigmoid(each.apart_UPK @ pooled_K).flatten().numpy() for each in raters])
        support_P = pareto.support(pairs_P2, users_P, expected_P=chance_P, strength=STRENGTH)
        found.append(pareto.user_support(support_P, users_P, len(sizes_U))[: len(part)])
    return found


def _pooled(apart_PK: Tensor) -> Tensor:
    taste_K = torch.zeros(apart_PK.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([taste_K], max_iter=50)

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = functional.softplus(-(apart_PK @ taste_K)).mean() + 1e-4 * taste_K.square().sum()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return taste_K.detach()


def _directions(k: int, cosine: float, rng: np.random.Generator) -> Array:
    one_K = rng.dirichlet(np.ones(k)) * rng.choice([-1, 1], k)
    one_K[0] = abs(one_K[0])  # the majority likes quality
    one_K = _unit(one_K)
    across_K = rng.normal(size=k)
    across_K = _unit(across_K - across_K @ one_K * one_K)
    return np.stack([one_K, cosine * one_K + np.sqrt(1 - cosine**2) * across_K])


def _own(count: int, k: int, rng: np.random.Generator) -> Array:
    return _unit(rng.dirichlet(np.full(k, SPARSE), count) * rng.choice([-1, 1], (count, k)))


def _unit(vectors: Array) -> Array:
    found: Array = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return found


def _scale(phi_IK: Array, taste_UK: Array, rng: np.random.Generator) -> float:
    pairs_N2 = _pairs(len(phi_IK), 1, 20_000, rng)[0]
    who_N = rng.integers(len(taste_UK), size=len(pairs_N2))
    margin_N = np.abs(((phi_IK[pairs_N2[:, 0]] - phi_IK[pairs_N2[:, 1]]) * taste_UK[who_N]).sum(1))
    return float(brentq(lambda scale: expit(-scale * margin_N).mean() - NOISE, 0.0, 1e3))


def _pairs(items: int, users: int, count: int, rng: np.random.Generator) -> Rows:
    one_UP = rng.integers(items, size=(users, count))
    other_UP = (one_UP + rng.integers(1, items, size=(users, count))) % items
    return np.stack([one_UP, other_UP], 2)
