"""What one slate adds to the sums that groups and people are judged by, and the measures that are quotients of them.

A tally is one flat vector of sums, so tallies of slates, people, groups, shards and bootstrap rounds add up by adding
arrays, and every measure is computed for all of them at once. docs/fairness.md defines each measure and its limits.

Axes: N items of a slate, T objectives, B probability bins, V sums of a tally, ... any number of tallies.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranker import divergence, interests, metrics
from ranker.catalogue import Catalogue
from ranker.config import Config
from ranker.slates import Example

Floats = NDArray[np.float64]
#: (arm, group field, group value); the field "all" with the value "all" is everybody
Label = tuple[str, str, str]
ALL = "all"

#: NDCG is taken over this many places
PLACES = 10
#: fixed edges, so that bins of different shards add up: even in the logit, from .003 to .97
EDGES = 1 / (1 + np.exp(-np.linspace(-5.75, 3.5, 19)))
BINS = len(EDGES) + 1
#: per objective, besides the bins
COUNTS = ("impressions", "outcomes", "ndcg", "ranked", "pairs", "foretold")
#: per slate
WHOLE = ("slates", "miscalibration", "profiled", "exposure", "exposed", "support", "supported")
#: how a measure is read: more of it is better (1), worse (-1), or neither (0)
BETTER = {
    "accuracy": 1,
    "auc": 1,
    "ndcg": 1,
    "rate": 0,
    "bias": -1,
    "calibration_error": -1,
    "miscalibration": -1,
    "exposure": 1,
}
#: the measures that are of slates and not of an objective
OF_SLATES = ("miscalibration", "exposure")


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Tallies by name, as views into their array; adding to one of them adds to the tally.

    Attributes:
        counts_TC: (..., T, 6), by COUNTS: impressions whose label is known; outcomes (sum of labels); NDCG summed over
            slates and the number of slates where it is defined; pairs of a slate's items whose outcomes differ, and
            those of them that the logged prediction had in that order, ties half.
        bins_TB3: (..., T, B, 3), per bin of logged prediction: rows, predicted (sum), outcomes (sum).
        whole_W: (..., 7), by WHOLE: slates; C_KL summed over the slates of people with a profile, and their number;
            exposure summed, and the slates where it is defined; support rates summed, and the slates of people whose
            rate is known.
    """

    counts_TC: Floats
    bins_TB3: Floats
    whole_W: Floats

    def count(self, name: str) -> Floats:
        """One of COUNTS, (..., T)."""
        return self.counts_TC[..., COUNTS.index(name)]

    def of_slates(self, name: str) -> Floats:
        """One of WHOLE, (...)."""
        return self.whole_W[..., WHOLE.index(name)]


def size(objectives: int) -> int:
    """V, how many sums a tally has."""
    return objectives * (len(COUNTS) + 3 * BINS) + len(WHOLE)


def empty(objectives: int) -> Floats:
    """Nothing yet."""
    return np.zeros(size(objectives))


def sums(tally_V: Floats) -> Sums:
    """A tally's sums by name; `tally_V` may have leading axes."""
    objectives = (tally_V.shape[-1] - len(WHOLE)) // (len(COUNTS) + 3 * BINS)
    cut = objectives * len(COUNTS)
    lead = tally_V.shape[:-1]
    return Sums(
        tally_V[..., :cut].reshape(*lead, objectives, len(COUNTS)),
        tally_V[..., cut : -len(WHOLE)].reshape(*lead, objectives, BINS, 3),
        tally_V[..., -len(WHOLE) :],
    )


def of(example: Example, catalogue: Catalogue, config: Config, *, support: float | None = None) -> Floats:
    """The tally of one closed slate.

    Exposure is how much of the attention goes where her interests are: the overlap of what she asks for with what is
    shown, each place counted by how much it is looked at.

    Args:
        support: the person's preference support rate, None where it is not known.
    """
    tally_V = empty(len(config.objectives))
    one = sums(tally_V)
    known_NT = example.mask_NT > 0
    labels_NT = np.where(known_NT, example.labels_NT, 0.0)
    ordered = bool((example.positions >= 0).all())
    one.counts_TC[:, 0], one.counts_TC[:, 1] = known_NT.sum(0), labels_NT.sum(0)
    differ_T = labels_NT.max(0, initial=0.0) > 0
    for t in np.flatnonzero(differ_T).tolist():
        gain = metrics.ndcg(np.maximum(labels_NT[:, t], 0), -example.positions, PLACES) if ordered else float("nan")
        if np.isfinite(gain):
            one.counts_TC[t, 2:4] = gain, 1
    if example.served_NT is not None:
        scored_NT = known_NT & np.isfinite(example.served_NT)
        row, objective = np.nonzero(scored_NT)
        served = example.served_NT[row, objective].astype(np.float64)
        place = objective * BINS + np.searchsorted(EDGES, served, side="right")
        cells = len(config.objectives) * BINS
        one.bins_TB3[..., 0] = np.bincount(place, minlength=cells).reshape(-1, BINS)
        one.bins_TB3[..., 1] = np.bincount(place, served, cells).reshape(-1, BINS)
        one.bins_TB3[..., 2] = np.bincount(place, labels_NT[row, objective], cells).reshape(-1, BINS)
        for t in np.flatnonzero(differ_T).tolist():
            kept = scored_NT[:, t]
            one.counts_TC[t, 4:] = _foretold(labels_NT[kept, t], example.served_NT[kept, t])
    whole = one.whole_W
    whole[0] = 1
    if support is not None:
        whole[5:] = support, 1
    target_C = interests.profile(example.evidence, catalogue, example.time, objectives=config.objectives)
    if target_C.any():
        rows_N = catalogue.find(example.items)
        known_N = rows_N >= 0
        interests_NC = catalogue.interests_NC[rows_N[known_N], : target_C.size]
        shown_C = divergence.shares(interests_NC)
        if shown_C.any():
            whole[1:3] = divergence.miscalibration(target_C, shown_C, config.calibration.smoothing), 1
            if ordered:
                looked_N = 1 / np.log2(example.positions[known_N] + 2.0)  # jarvelin2002cumulated's discount
                seen_C = divergence.shares(interests_NC, looked_N)
                whole[3:5] = np.minimum(target_C, seen_C).sum(), 1
    return tally_V


def _foretold(labels_N: Floats, served_N: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Pairs whose labels differ, and those that the predictions order alike, ties half."""
    higher_NN = labels_N[:, None] > labels_N
    pairs = np.count_nonzero(higher_NN)
    above_NN = served_N[:, None] > served_N
    level_NN = served_N[:, None] == served_N
    return float(pairs), np.count_nonzero(higher_NN & above_NN) + np.count_nonzero(higher_NN & level_NN) / 2


def measures(tallies_V: Floats) -> dict[str, Floats]:
    """Every measure of each tally, by the names of BETTER; nan where its denominator is 0.

    Shapes: tallies_V (..., V); those of an objective (..., T), those OF_SLATES (...).
    """
    one = sums(tallies_V)
    rows_TB, predicted_TB, outcomes_TB = (one.bins_TB3[..., k] for k in range(3))
    scored_T = rows_TB.sum(-1)
    rest_TB = rows_TB - outcomes_TB
    below_TB = np.cumsum(rest_TB, -1) - rest_TB / 2
    happened_T = outcomes_TB.sum(-1)
    return {
        "accuracy": ratio(one.count("foretold"), one.count("pairs")),
        "auc": ratio((outcomes_TB * below_TB).sum(-1), happened_T * rest_TB.sum(-1)),
        "ndcg": ratio(one.count("ndcg"), one.count("ranked")),
        "rate": ratio(one.count("outcomes"), one.count("impressions")),
        "bias": ratio(predicted_TB.sum(-1) - happened_T, scored_T),
        "calibration_error": ratio(np.abs(predicted_TB - outcomes_TB).sum(-1), scored_T),
        "miscalibration": ratio(one.of_slates("miscalibration"), one.of_slates("profiled")),
        "exposure": ratio(one.of_slates("exposure"), one.of_slates("exposed")),
    }


def auc_error(tally_V: Floats) -> Floats:
    """The most by which the AUC of bins can differ from that of the rows, (..., T): half the pairs within one bin."""
    bins_TB3 = sums(tally_V).bins_TB3
    outcomes_TB, rest_TB = bins_TB3[..., 2], bins_TB3[..., 0] - bins_TB3[..., 2]
    return ratio((outcomes_TB * rest_TB).sum(-1) / 2, outcomes_TB.sum(-1) * rest_TB.sum(-1))


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Their quotient, nan where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(denominator > 0, numerator / denominator, np.nan))
