"""What a person's history asks for, in shares of categories: the target of the calibrated rerank.

Axes: N items, C categories (interests), H acts that count.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ranker.catalogue import Catalogue
from ranker.config import Objective
from ranker.evidence import LIFE_MS, Act, Evidence

Floats = NDArray[np.floating]

#: an act of this age counts half as much as the newest one
HALF_LIFE_MS = 30 * 86_400_000


def profile(
    evidence: Evidence,
    catalogue: Catalogue,
    now: int,
    *,
    objectives: Sequence[Objective] = (),
    half_life: float = HALF_LIFE_MS,
    population_C: Floats | None = None,
    pseudo_acts: float = 5.0,
) -> NDArray[np.float64]:
    """What the user's history asks for: p(g|u), the decayed share of each category in her positive acts.

    An act weighs the sum of the weights of the objectives that it fulfils (see `worth`), never less than 0, times
    0.5 ** (age / half_life). Ages count from her newest act, so that a long absence alone changes nothing.

    Args:
        now: ms since the epoch; acts after it are left out.
        objectives: what makes an act positive; without any, every act weighs 1.
        population_C: the population's shares, mixed in as `pseudo_acts` further acts. Categories beyond it, which are
            newer than the version that knew it, get nothing from it.

    Shapes: returns (C,), summing to 1, or all zeros where nothing is known.
    Units: half_life in ms.
    Source: steck2018calibrated, eq. 2, and the prior of his section 5 as pseudo acts; the weighting is ours.
    """
    interests_NC = catalogue.interests_NC  # once: another thread may be adding items
    kept = _positive(evidence, evidence.history, catalogue, now, objectives, known=len(interests_NC))
    return _shares(kept, interests_NC, half_life, population_C, pseudo_acts)


def selves(
    evidence: Evidence,
    catalogue: Catalogue,
    now: int,
    *,
    objectives: Sequence[Objective] = (),
    half_life: float = HALF_LIFE_MS,
    population_C: Floats | None = None,
    pseudo_acts: float = 5.0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Her `profile` of late, and the same over all that was ever done, fading by LIFE_MS: her long-term self.

    What has left the history is weighed by its sample (`evidence.Past`), so its shares are estimates.

    Shapes: (C,) each, summing to 1, or all zeros where nothing is known.
    """
    interests_NC, past = catalogue.interests_NC, evidence.past
    kept = _positive(evidence, evidence.history, catalogue, now, objectives, known=len(interests_NC))
    recent_C = _shares(kept, interests_NC, half_life, population_C, pseudo_acts)
    if past.acts:
        older = _positive(evidence, past.acts, catalogue, now, objectives, known=len(interests_NC))
        kept += [(row, max(time, past.floor), weight) for row, time, weight in older]
    return recent_C, _shares(kept, interests_NC, LIFE_MS, population_C, pseudo_acts)


def effective_acts(
    evidence: Evidence,
    catalogue: Catalogue,
    now: int,
    *,
    objectives: Sequence[Objective] = (),
    half_life: float = HALF_LIFE_MS,
) -> float:
    """How many equally weighed acts would know the profile as well: (sum w)^2 / sum w^2 over the acts that count.

    Source: kish1965survey, the effective sample size under unequal weights.

    Example:
        >>> from ranker.catalogue import Item
        >>> from ranker.config import Config
        >>> known = Catalogue(Config(objectives=(Objective(name="like", event="like"),), interests="genres"))
        >>> _ = known.put(Item("a", {"genres": ["drama"]}))
        >>> history = (Act("a", "like", 1), Act("a", "like", 1))
        >>> effective_acts(Evidence(history=history), known, 5)
        2.0
    """
    kept = _positive(evidence, evidence.history, catalogue, now, objectives, known=len(catalogue))
    _, weights_H = _decayed(kept, half_life)
    return float(weights_H.sum() ** 2 / (weights_H @ weights_H)) if weights_H.size else 0.0


def population(interests_NC: Floats, shown_N: Floats) -> NDArray[np.float64]:
    """The shares of the categories in what people are shown; in the catalogue itself where nothing was shown yet.

    Shapes: interests_NC (N, C), shown_N (N,) impressions in any unit; returns (C,), summing to 1 or all zeros.
    """
    weights_N = shown_N if shown_N.any() else np.ones(len(interests_NC), np.float32)
    shares_C = np.asarray(weights_N @ interests_NC, np.float64)
    total = shares_C.sum()
    return shares_C / total if total > 0 else shares_C


def worth(act: Act, evidence: Evidence, objectives: Sequence[Objective]) -> float:
    """How much an act speaks for its item: the weights of the objectives it fulfils, summed, and never negative.

    A `user-mean` bound and a `value` objective compare with the user's own mean of that interaction type, strictly.

    Example:
        >>> like = Objective(name="like", event="rate", threshold=4.0)
        >>> [worth(Act("i", "rate", 0, stars), Evidence(), (like,)) for stars in (5.0, 3.0)]
        [1.0, 0.0]
    """
    if not objectives:
        return 1.0
    total = 0.0
    for objective in objectives:
        graded = objective.graded
        if act.type == objective.event:
            least, most = objective.threshold, None
            if objective.kind == "value":
                least = "user-mean"
        elif graded is not None and act.type == graded.event:
            least, most = graded.at_least, graded.at_most
        else:
            continue
        if _reaches(act, evidence, least, 1.0) and _reaches(act, evidence, most, -1.0):
            total += objective.weight
    return max(0.0, total)


def _positive(
    evidence: Evidence,
    acts: Sequence[Act],
    catalogue: Catalogue,
    now: int,
    objectives: Sequence[Objective],
    *,
    known: int,
) -> list[tuple[int, int, float]]:
    """Row (below `known`), time and weight of the acts that count; each kind of act is weighed once."""
    rows = catalogue.rows
    weights: dict[tuple[str, float | None], float] = {}
    kept = []
    for act in acts:
        kind = (act.type, act.value)
        weight = weights.get(kind)
        if weight is None:
            weight = weights[kind] = worth(act, evidence, objectives)
        if weight > 0 and act.time <= now and 0 <= (row := rows.get(act.item, -1)) < known:
            kept.append((row, act.time, weight))
    return kept


def _shares(
    kept: Sequence[tuple[int, int, float]],
    interests_NC: NDArray[np.float32],
    half_life: float,
    population_C: Floats | None,
    pseudo_acts: float,
) -> NDArray[np.float64]:
    target_C = np.zeros(interests_NC.shape[1])
    rows_H, weights_H = _decayed(kept, half_life)
    if rows_H.size and target_C.size:
        target_C = weights_H @ interests_NC[rows_H]
    if population_C is not None:
        target_C[: population_C.size] += pseudo_acts * population_C[: target_C.size]
    total = target_C.sum()
    return target_C / total if total > 0 else target_C


def _decayed(kept: Sequence[tuple[int, int, float]], half_life: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if not kept:
        return np.zeros(0, np.int64), np.zeros(0)
    rows_H, times_H, weights_H = (np.array(column) for column in zip(*kept, strict=True))
    return rows_H, weights_H * np.exp2((times_H - times_H.max()) / half_life)


def _reaches(act: Act, evidence: Evidence, bound: float | str | None, sign: float) -> bool:
    if bound is None:
        return True
    if act.value is None:
        return False
    if isinstance(bound, str):
        mean = evidence.mean(act.type)
        return mean is not None and sign * act.value > sign * mean
    return sign * act.value >= sign * bound
