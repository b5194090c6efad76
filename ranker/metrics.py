"""Ranking, calibration and diversity numbers, each with its source; scikit-learn's definitions where it has them.

Axes: N items or rows, U users (or slates), R bootstrap rounds, B bins, C categories. Keys in docs/references.bib.
"""

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy
from scipy.stats import DegenerateDataWarning, bootstrap, rankdata

Floats = NDArray[np.float64]
#: probabilities are kept this far from 0 and 1 before a logarithm
EDGE = 1e-7


def ndcg(gains_N: ArrayLike, scores_N: ArrayLike, k: int = 10, *, counted_N: ArrayLike | None = None) -> float:
    """Normalised discounted cumulative gain of the first k places; nan where nothing has a gain.

    Linear gains, discount 1/log2(place + 1); tied scores share the mean discount of their places, so that an order
    in which the items were listed can never leak in. Equals `sklearn.metrics.ndcg_score`, some ten times faster.

    Args:
        counted_N: gains weighed for how likely they were to be seen. They replace the gains above the bar, not below: a
            norm of weighed gains would undo the weight of a slate's only gain.

    Source: jarvelin2002cumulated; ties mcsherry2008computing.

    Example:
        >>> ndcg([0, 1, 0], [0.1, 0.9, 0.2]), round(ndcg([1, 0], [0.5, 0.5]), 4)
        (1.0, 0.8155)
    """
    gains, scores = np.asarray(gains_N, np.float64), np.asarray(scores_N, np.float64)
    discounts = _discounts(len(gains), k)
    best = float(np.sort(gains)[::-1] @ discounts)
    if not best > 0:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    fresh = ordered[1:] != ordered[:-1]
    if not fresh.all():
        starts = np.append(0, np.flatnonzero(fresh) + 1)
        sizes = np.diff(np.append(starts, len(gains)))
        discounts = np.repeat(np.add.reduceat(discounts, starts) / sizes, sizes)
    counted = gains if counted_N is None else np.asarray(counted_N, np.float64)
    return float(counted[order] @ discounts) / best


@lru_cache(1024)
def _discounts(n: int, k: int) -> Floats:
    discounts = 1 / np.log2(np.arange(2, n + 2, dtype=np.float64))
    discounts[k:] = 0
    discounts.setflags(write=False)
    return discounts


def auc(labels_N: ArrayLike, scores_N: ArrayLike) -> float:
    """Area under the ROC curve: P(a positive scores above a negative), ties half; nan with one class only.

    The Mann-Whitney form of `sklearn.metrics.roc_auc_score`, without its input checks.

    Source: fawcett2006introduction.

    Example:
        >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        0.75
    """
    labels = np.asarray(labels_N) > 0
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(np.asarray(scores_N, np.float64))
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


class PooledAuc:
    """AUC of a stream in constant memory: counts per bin of the logit; windows and shards add up.

    A pair that falls into one bin counts half, as a tie does; with 4,096 bins of width 0.006 over logits in
    [-12, 12] the error stays under 1e-3.

    Example:
        >>> a, b = PooledAuc(), PooledAuc()
        >>> a.add([0, 1], [0.2, 0.6]); b.add([0, 1], [0.7, 0.9])
        >>> (a + b).value
        0.75
    """

    def __init__(self, bins: int = 4096) -> None:
        self.counts_2B = np.zeros((2, bins), np.int64)

    def add(self, labels_N: ArrayLike, probabilities_N: ArrayLike) -> None:
        """Count rows; labels above 0 are positives."""
        chance = np.clip(np.asarray(probabilities_N, np.float64), EDGE, 1 - EDGE)
        bins = self.counts_2B.shape[1]
        place = np.clip((np.log(chance / (1 - chance)) + 12) * (bins / 24), 0, bins - 1).astype(np.int64)
        np.add.at(self.counts_2B, ((np.asarray(labels_N) > 0).astype(np.int64), place), 1)

    def __add__(self, other: "PooledAuc") -> "PooledAuc":
        both = PooledAuc(self.counts_2B.shape[1])
        both.counts_2B = self.counts_2B + other.counts_2B
        return both

    @property
    def value(self) -> float:
        """The AUC so far; nan before both classes were seen."""
        negatives, positives = self.counts_2B.astype(np.float64)
        pairs = negatives.sum() * positives.sum()
        below = np.cumsum(negatives) - negatives / 2
        return float(positives @ below / pairs) if pairs else float("nan")


def log_losses(labels_N: ArrayLike, probabilities_N: ArrayLike) -> Floats:
    """Negative log likelihood of each binary label, in nats; labels may be shares in [0, 1].

    Example:
        >>> log_losses([1, 0], [0.5, 0.5]).round(4).tolist()
        [0.6931, 0.6931]
    """
    labels = np.asarray(labels_N, np.float64)
    chance = np.clip(np.asarray(probabilities_N, np.float64), EDGE, 1 - EDGE)
    return np.asarray(-(xlogy(labels, chance) + xlogy(1 - labels, 1 - chance)))


def log_loss(labels_N: ArrayLike, probabilities_N: ArrayLike) -> float:
    """Mean of `log_losses`; nan without rows. Equals `sklearn.metrics.log_loss` away from 0 and 1."""
    losses = log_losses(labels_N, probabilities_N)
    return float(losses.mean()) if losses.size else float("nan")


def calibration_error(labels_N: ArrayLike, probabilities_N: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: |mean label - mean probability| per bin, weighted by the bin's rows.

    Equal-mass bins: with click rates of a few percent, the paper's equal-width bins would put nearly all rows into
    the first one. Rows of equal probability always share a bin.

    Source: naeini2015obtaining, eq. 1 (bins differ, see above).

    Example:
        >>> calibration_error([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5]), calibration_error([1, 1], [0.25, 0.75], bins=2)
        (0.0, 0.5)
    """
    labels, chance = np.asarray(labels_N, np.float64), np.asarray(probabilities_N, np.float64)
    if not labels.size:
        return float("nan")
    edges = np.unique(np.quantile(chance, np.linspace(0, 1, bins + 1)[1:-1]))
    place_N = np.searchsorted(edges, chance, side="left")
    gaps_B = np.bincount(place_N, labels - chance)
    return float(np.abs(gaps_B).sum() / labels.size)


def gini(exposure_N: ArrayLike) -> float:
    """Inequality of exposure over all N items, zeros included: 0 all equal, towards 1 one item has all.

    Source: gini1912variabilita, in the sorted-rank form.

    Example:
        >>> gini([1, 1, 1, 1]), gini([0, 0, 0, 1])
        (0.0, 0.75)
    """
    exposure = np.sort(np.asarray(exposure_N, np.float64))
    total, n = exposure.sum(), len(exposure)
    if not total > 0:
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ exposure / (n * total))


def coverage(shown: Collection[object], catalogue: int) -> float:
    """Share of the catalogue that was shown at all.

    Example:
        >>> coverage(["a", "b", "a"], 4)
        0.5
    """
    return len(set(shown)) / catalogue if catalogue else 0.0


def entropy(shares_C: ArrayLike) -> float:
    """Shannon entropy in nats of a distribution, or of counts, over categories.

    Example:
        >>> round(entropy([2, 2]), 4), entropy([5, 0])
        (0.6931, 0.0)
    """
    shares = np.asarray(shares_C, np.float64)
    total = shares.sum()
    if not total > 0:
        return 0.0
    return abs(float(-xlogy(shares / total, shares / total).sum()))


def jaccard(left: Collection[object], right: Collection[object]) -> float:
    """Overlap of two sets: shared over all; two empty sets are equal.

    Example:
        >>> jaccard("ab", "bc")
        0.3333333333333333
    """
    a, b = set(left), set(right)
    return len(a & b) / len(a | b) if a | b else 1.0


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its bounds and the number of users (or slates) behind it."""

    mean: float
    low: float
    high: float
    n: int


def jain(values_U: ArrayLike) -> float:
    """Jain's index of equal shares, (sum a)^2 / (U sum a^2): 1 all equal, 1/U one has all; nan where nobody has any.

    Source: jain1984quantitative.

    Example:
        >>> jain([0.5, 0.5]), jain([1, 0, 0, 0])
        (1.0, 0.25)
    """
    values = np.asarray(values_U, np.float64)
    squares = float(values @ values)
    return float(values.sum()) ** 2 / (len(values) * squares) if squares > 0 else float("nan")


def worst_mean(values_U: ArrayLike, share: float = 0.1) -> float:
    """CVaR: the mean over the worst-served share of users, whole users only and at least one; nan without users.

    Source: rockafellar2000optimization.

    Example:
        >>> worst_mean([0.9, 0.1, 0.5, 0.7], 0.5)
        0.3
    """
    values = np.sort(np.asarray(values_U, np.float64))
    return float(values[: max(1, round(share * len(values)))].mean()) if values.size else float("nan")


def rank_correlation(one_U: ArrayLike, other_U: ArrayLike) -> float:
    """Spearman's: Pearson's correlation of the mean ranks; nan where either never varies.

    Equals `scipy.stats.spearmanr` without its warning on constants and without its p-value.

    Example:
        >>> round(rank_correlation([1, 2, 3], [10, 20, 15]), 6)
        0.5
    """
    ranks_2U = np.stack([rankdata(np.asarray(values, np.float64)) for values in (one_U, other_U)])
    apart_2U = ranks_2U - ranks_2U.mean(1, keepdims=True)
    lengths = np.sqrt((apart_2U**2).sum(1))
    return float(apart_2U[0] @ apart_2U[1] / lengths.prod()) if lengths.all() else float("nan")


#: how unequally users are served: of each one's accuracy (U,) and of how many share her preferences (U,)
UNFAIRNESS: dict[str, Callable[[Floats, Floats], float]] = {
    "std": lambda accuracy_U, _: float(accuracy_U.std()),
    "gini": lambda accuracy_U, _: gini(accuracy_U),
    "jain": lambda accuracy_U, _: jain(accuracy_U),
    "cvar10": lambda accuracy_U, _: worst_mean(accuracy_U),
    "spearman_support": rank_correlation,
}


def unfairness(
    accuracy_U: ArrayLike,
    support_U: ArrayLike,
    *,
    generator: np.random.Generator,
    level: float = 0.95,
    rounds: int = 1000,
) -> dict[str, Interval]:
    """User-level unfairness, by the names of UNFAIRNESS, each with a percentile bootstrap interval over users.

    Args:
        accuracy_U: one number of how well each user is served, above 0 the better; users without one (nan) are left
            out.
        support_U: of each user's preferences, see `ranker.pareto.user_support`.

    Source: efron1979bootstrap, by `scipy.stats.bootstrap`; users are drawn with their support.

    Example:
        >>> found = unfairness([0.5, 0.7, 0.9], [0.1, 0.2, 0.3], generator=np.random.default_rng(0), rounds=50)
        >>> round(found["spearman_support"].mean, 6), found["cvar10"].mean, found["cvar10"].n
        (1.0, 0.5, 3)
    """
    accuracy, support = np.asarray(accuracy_U, np.float64), np.asarray(support_U, np.float64)
    known = ~np.isnan(accuracy) & ~np.isnan(support)
    accuracy, support = accuracy[known], support[known]
    found = {}
    for name, measure in UNFAIRNESS.items():
        whole, low, high = (float("nan"),) * 3
        if len(accuracy) > 1:
            whole = measure(accuracy, support)
            with warnings.catch_warnings():  # a round that drew one user only has no correlation, and is left out
                warnings.simplefilter("ignore", DegenerateDataWarning)
                drawn = bootstrap(
                    (accuracy, support), measure, paired=True, vectorized=False, n_resamples=rounds,
                    method="percentile", rng=generator,
                ).bootstrap_distribution  # fmt: skip
            told = drawn[~np.isnan(drawn)]
            if told.size:
                low, high = (float(end) for end in np.quantile(told, [(1 - level) / 2, (1 + level) / 2]))
        found[name] = Interval(whole, low, high, len(accuracy))
    return found


def resamples(n: int, rounds: int, generator: np.random.Generator) -> Floats:
    """How often each of n users is drawn in each bootstrap round.

    Shapes: counts_RU, each row sums to n.
    """
    return generator.multinomial(n, np.full(n, 1 / n), size=rounds).astype(np.float64) if n else np.zeros((rounds, 0))


def mean_interval(
    values_U: ArrayLike, *, generator: np.random.Generator, level: float = 0.95, rounds: int = 1000
) -> Interval:
    """The mean over users with its percentile bootstrap interval; nan values are left out.

    `scipy.stats.bootstrap` of the mean, as one matrix product over multinomial counts.

    Source: efron1979bootstrap.

    Example:
        >>> found = mean_interval([0.0, 1.0, np.nan], generator=np.random.default_rng(0))
        >>> found.mean, found.low, found.high, found.n
        (0.5, 0.0, 1.0, 2)
    """
    values = np.asarray(values_U, np.float64)
    values = values[~np.isnan(values)]
    if not values.size:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    means_R = resamples(len(values), rounds, generator) @ values / len(values)
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def auc_interval(
    labels_N: ArrayLike,
    scores_N: ArrayLike,
    users_N: ArrayLike,
    *,
    generator: np.random.Generator,
    level: float = 0.95,
    rounds: int = 300,
) -> Interval:
    """Pooled AUC over all rows, with an interval from resampling whole users (their rows belong together).

    Rows are sorted once; a round is a weighted Mann-Whitney count over the sorted rows.

    Example:
        >>> found = auc_interval([0, 1, 0, 1], [0.1, 0.2, 0.1, 0.9], ["a", "a", "b", "b"],
        ...     generator=np.random.default_rng(0))
        >>> found.mean, found.low, found.n
        (1.0, 1.0, 2)
    """
    labels, scores = np.asarray(labels_N) > 0, np.asarray(scores_N, np.float64)
    names, user_N = np.unique(np.asarray(users_N), return_inverse=True)
    whole = auc(labels, scores)
    order = np.argsort(scores, kind="stable")
    labels, user_N = labels[order], user_N[order]
    ties = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    found = []
    for counts_U in resamples(len(names), rounds, generator):
        weight_N = counts_U[user_N]
        if not len(ties):
            break
        positive = np.add.reduceat(weight_N * labels, ties)
        negative = np.add.reduceat(weight_N * ~labels, ties)
        pairs = positive.sum() * negative.sum()
        if pairs:
            found.append(positive @ (np.cumsum(negative) - negative / 2) / pairs)
    if np.isnan(whole) or not found:
        return Interval(float("nan"), float("nan"), float("nan"), len(names))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(whole, float(low), float(high), len(names))
