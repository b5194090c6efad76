"""Comparisons out of any event log, and base rewards fitted to them: what the taste experiments share.

A log's grades become comparisons: of two items that a user graded differently, the better graded one is preferred. A
value outside a ranking is a grade itself (stars). With rankings, what was shown is 0, any interaction without a value
makes it 1, and one that says "not this" -1; the last word counts. Grades less than a twentieth of the scale apart are
no preference (on a slider of 20 points a tenth is noise). People are split, never pairs: those of the test part are
never trained on.

Axes: U users, I items, N grades, P comparisons, K base rewards.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from experiments import report
from experiments.report import Row
from ranker import datasets
from ranker.errors import DataError
from ranker.events import Interaction, Item, Ranking
from ranker.taste import Factor

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Grades:
    """Each user's graded items, oldest first.

    Attributes:
        items: by user, rows into `names`.
        values: their grades.
        apart: grades closer than this are no preference.
        tags: standardised categories of the items (I, C), from their list fields; None where the log has none.
        users: who graded, where known.
    """

    name: str
    names: list[str]
    items: list[Rows]
    values: list[Array]
    apart: float = 0.0
    tags: Array | None = None
    users: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class Base:
    """Base rewards phi_IK, the population's intercepts, and the prior over tastes."""

    phi_IK: Array
    intercept_I: Array
    prior: Factor

    def utilities(self, z_K: Array) -> Array:
        """r = b + z . phi for every item."""
        found: Array = self.intercept_I + self.phi_IK @ z_K
        return found


def load(paths: Sequence[Path] | None, *, least: int = 16, most: int = 5000) -> Grades:
    """Grades of the log, or of MovieLens-100K without one.

    Args:
        least: users with fewer grades, or whose grades are all equal, are left out.
        most: the first so many users of the log are read.

    Raises:
        DataError: fewer than 50 users are left.
    """
    stream = datasets.movielens().events() if paths is None else datasets.read(paths)
    graded: dict[str, dict[str, float]] = {}
    tagged: dict[str, set[str]] = {}
    for event in stream:
        if isinstance(event, Item):
            tagged[event.item] = {
                str(tag) for field in event.fields if isinstance(field.value, list) for tag in field.value
            }
        if not isinstance(event, Ranking | Interaction) or (event.user not in graded and len(graded) >= most):
            continue
        mine = graded.setdefault(event.user, {})
        if isinstance(event, Ranking):
            for shown in event.items:
                mine.setdefault(shown.id, 0.0)
        elif event.value is None:
            mine[event.item] = -1.0 if event.type.lower() in datasets.AGAINST else 1.0
        elif event.ranking is None:
            mine[event.item] = event.value
    rows: dict[str, int] = {}
    items, values, users = [], [], []
    for user, mine in graded.items():
        if len(mine) >= least and len(set(mine.values())) > 1:
            items.append(np.array([rows.setdefault(item, len(rows)) for item in mine], np.int64))
            values.append(np.array(list(mine.values())))
            users.append(user)
    name = "MovieLens-100K" if paths is None else report.data_name(paths)
    if len(items) < 50:
        raise DataError(name, f"{len(items)} users", f"name a log in which 50 users grade {least} or more items")
    everything = np.concatenate(values)
    apart = float(everything.max() - everything.min()) / 20
    tags = _tags([tagged.get(item, set()) for item in rows])
    return Grades(name, list(rows), items, values, apart, tags, tuple(users))


def _tags(tagged: Sequence[set[str]], *, least: float = 0.01) -> Array | None:
    """Tags of at least so large a share of the items, as columns of mean 0 and about unit spread."""
    counts = Counter(tag for mine in tagged for tag in mine)
    kept = sorted(tag for tag, count in counts.items() if count >= least * len(tagged))
    if not kept:
        return None
    found_IC = np.array([[tag in mine for tag in kept] for mine in tagged], np.float64)
    standard: Array = (found_IC - found_IC.mean(0)) / (found_IC.std(0) + 0.2)
    return standard


def split(users: int, seed: int, *, test: float = 0.3) -> tuple[Rows, Rows]:
    """Users trained on, and users never seen."""
    order = np.random.default_rng(seed).permutation(users)
    cut = round(users * (1 - test))
    return order[:cut], order[cut:]


def comparisons(items: Rows, values: Array, count: int, rng: np.random.Generator, *, apart: float = 0.0) -> Rows:
    """Up to `count` distinct random pairs (preferred, over) of items graded at least `apart` differently, (P, 2)."""
    one, other = np.triu_indices(len(items), 1)
    unequal = np.flatnonzero(differ(values[one], values[other], apart))
    chosen = rng.choice(unequal, min(count, len(unequal)), replace=False)
    one, other = one[chosen], other[chosen]
    swap = values[one] < values[other]
    return np.stack([np.where(swap, items[other], items[one]), np.where(swap, items[one], items[other])], 1)


def differ(one: Array, other: Array, apart: float) -> NDArray[np.bool_]:
    """Whether two grades are a preference."""
    gap = np.abs(one - other)
    return (gap > 0) & (gap >= apart)


def many(grades: Grades, users: Rows, count: int, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Random comparisons of many users at once, for training: which user (P,), by place, and (preferred, over) (P, 2).

    Draws `count` pairs of each, with repetition; those that are no preference are dropped.
    """
    sizes_U = np.array([len(grades.items[user]) for user in users])
    starts_U = np.cumsum(sizes_U) - sizes_U
    items_N = np.concatenate([grades.items[user] for user in users])
    values_N = np.concatenate([grades.values[user] for user in users])
    who_P = np.repeat(np.arange(len(users)), count)
    one_P, other_P = starts_U[who_P] + (rng.random((2, len(who_P))) * sizes_U[who_P]).astype(np.int64)
    better = values_N[one_P] > values_N[other_P]
    unequal = differ(values_N[one_P], values_N[other_P], grades.apart)
    preferred, over = np.where(better, one_P, other_P), np.where(better, other_P, one_P)
    return who_P[unequal], np.stack([items_N[preferred], items_N[over]], 1)[unequal]


def nested(arm: str, metric: str, users_S: Sequence[Array], *, seed: int = 0, rounds: int = 2000) -> Row:
    """The mean of a value per user (by seed) with a 95 % interval that resamples seeds, and users within them.

    Example:
        >>> row = nested("a", "accuracy", [np.array([0.5, 0.7]), np.array([0.6, 0.6])])
        >>> round(row.mean, 3), row.n, row.low < 0.6 < row.high
        (0.6, 4, True)
    """
    rng = np.random.default_rng(seed)
    means_BS = np.stack([mine[rng.integers(len(mine), size=(rounds, len(mine)))].mean(1) for mine in users_S], 1)
    drawn_B = np.take_along_axis(means_BS, rng.integers(len(users_S), size=means_BS.shape), 1).mean(1)
    low, high = np.quantile(drawn_B, [0.025, 0.975])
    mean = float(np.mean([mine.mean() for mine in users_S]))
    return Row(arm=arm, metric=metric, mean=mean, low=float(low), high=float(high), n=sum(map(len, users_S)))


def factors(grades: Grades, users: Rows, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Items (I, k) and users (U, k) by truncated SVD of the users' standardised grades, and the items' means (I,)."""
    table_UI = np.zeros((len(users), len(grades.names)), np.float32)
    for row, user in enumerate(users):
        mine = grades.values[user]
        table_UI[row, grades.items[user]] = (mine - mine.mean()) / mine.std()
    known_UI = table_UI != 0
    mean_I = table_UI.sum(0) / (known_UI.sum(0) + 5)
    left_UK, size_K, right_KI = np.linalg.svd(np.where(known_UI, table_UI - mean_I, 0), full_matrices=False)
    root_K = np.sqrt(size_K[:k])
    return (
        torch.from_numpy(right_KI[:k].T * root_K),
        torch.from_numpy(left_UK[:, :k] * root_K),
        torch.from_numpy(mean_I),
    )


def fit(
    grades: Grades,
    users: Rows,
    *,
    k: int = 8,
    seed: int = 0,
    pairs: int = 60,
    epochs: int = 60,
    decay: float = 2e-3,
) -> Base:
    """Base rewards by joint Bradley-Terry over the users' pairs, and an empirical-Bayes prior.

    Args:
        pairs: drawn anew of each user in every epoch.
        decay: penalty on the base rewards.

    Source: PReF (Shenfeld et al. 2025, section 3.2): start from an SVD, then maximise the likelihood of comparisons;
    here of centred grades, with free user weights under a Gaussian prior, and intercepts for what everybody prefers.
    """
    rng = np.random.default_rng(seed)
    phi_IK, z_UK, intercept_I = factors(grades, users, k)
    scale_K = z_UK.std(0) + 1e-6
    phi_IK, z_UK = (phi_IK * scale_K).requires_grad_(), (z_UK / scale_K).requires_grad_()
    intercept_I.requires_grad_()
    optimiser = torch.optim.Adam([phi_IK, z_UK, intercept_I], 0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.03, total_steps=epochs)
    for _ in range(epochs):
        who_P, drawn_P2 = map(torch.from_numpy, many(grades, users, pairs, rng))
        better, worse = drawn_P2.unbind(1)
        apart_PK = phi_IK.index_select(0, better) - phi_IK.index_select(0, worse)
        margin_P = intercept_I[better] - intercept_I[worse] + (z_UK.index_select(0, who_P) * apart_PK).sum(1)
        penalty = z_UK.square().sum() / 2 + decay * len(users) ** 0.5 * phi_IK.square().sum()
        loss = (penalty - functional.logsigmoid(margin_P).sum()) / len(users)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    z = z_UK.detach().double().numpy()
    precision_KK = np.linalg.inv(np.cov(z.T).reshape(k, k) + 1e-3 * np.eye(k))
    prior = Factor(precision_KK.astype(np.float32), (precision_KK @ z.mean(0)).astype(np.float32))
    return Base(phi_IK.detach().double().numpy(), intercept_I.detach().double().numpy(), prior)
