"""Position bias learned as an additive tower, against click models and against harvested swaps (zhao2019recommending).

Everything here depends on document and place alone, so a log is its counts by (document, place). Arms: click rate by
place, by document, the position-based model by EM (richardson2007predicting; EM as in chuklin2015click), and
`ranker.bias.BiasTower` beside a logit per document. Priors and the tower's feature dropout are chosen on a fifth of the
rankings, another fifth is the test.

The curve is identifiable only where documents are seen at several places: by swaps, or because a document stands
elsewhere in another slate. Where each keeps its place, its merit and the place's bias are one number.

Axes: C cells (one document at one place), Q documents, P places, R rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from experiments import report
from experiments.report import Result
from ranker.bias import BiasTower
from ranker.datasets import read
from ranker.errors import DataError
from ranker.events import Interaction, Ranking, positions_of
from ranker.simulation import examination

Floats = NDArray[np.float64]
SUMMARY = "position bias as a tower, against click models, and its curve against harvested swaps"
#: places that are looked at; what stands deeper is left out
DEPTH = 10
#: tried on validation: impressions that a prior counts, spreads of a document's logit, feature dropout
PRIORS, SPREADS, DROPOUTS = (1.0, 3.0, 10.0, 30.0), (0.5, 1.0, 2.0), (0.0, 0.05, 0.1, 0.2, 0.4)
STEPS, RATE, ITERATIONS = 300, 0.1, 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Clicks:
    """A click log as rows: of which ranking, which document, at which place, clicked or not.

    Attributes:
        truth_P: the examination curve where it is known, that is in simulation.
    """

    name: str
    ranking_R: NDArray[np.int64]
    document_R: NDArray[np.int64]
    place_R: NDArray[np.int64]
    click_R: NDArray[np.bool_]
    truth_P: Floats | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """How many documents and places."""
        return int(self.document_R.max()) + 1, int(self.place_R.max()) + 1

    def counts(self, keep_R: NDArray[np.bool_] | None = None) -> Floats:
        """Impressions and clicks, (2, Q, P), of these rows only."""
        keep_R = np.ones(len(self.place_R), np.bool_) if keep_R is None else keep_R
        found_2QP = np.zeros((2, *self.shape))
        where = self.document_R[keep_R], self.place_R[keep_R]
        np.add.at(found_2QP[0], where, 1.0)
        np.add.at(found_2QP[1], where, self.click_R[keep_R].astype(np.float64))
        return found_2QP


def load(paths: Sequence[Path], *, kind: str = "click", depth: int = DEPTH) -> Clicks:
    """The rankings of a log with known positions, and which items got an interaction of this type.

    Raises:
        DataError: no ranking says where its items stood, or none was clicked.
    """
    documents: dict[str, int] = {}
    rows: list[tuple[int, int, int]] = []
    at: dict[tuple[str, str], int] = {}
    clicked: set[int] = set()
    rankings = 0
    for event in read(paths):
        if isinstance(event, Ranking):
            for shown, place in zip(event.items, positions_of(event), strict=True):
                if 0 <= place < depth:
                    at[event.id, shown.id] = len(rows)
                    rows.append((rankings, documents.setdefault(shown.id, len(documents)), int(place)))
            rankings += 1
        elif isinstance(event, Interaction) and event.type == kind and event.ranking is not None:
            clicked.add(at.get((event.ranking, event.item), -1))
    clicked.discard(-1)
    if not rows or not clicked:
        found = f"{len(rows)} rows with positions, {len(clicked)} of type {kind}"
        raise DataError(report.data_name(paths), found, "name a log of slates with known positions and their clicks")
    ranking_R, document_R, place_R = np.array(rows).T
    click_R = np.zeros(len(rows), np.bool_)
    click_R[list(clicked)] = True
    name = report.data_name(paths)
    return Clicks(name=name, ranking_R=ranking_R, document_R=document_R, place_R=place_R, click_R=click_R)


def made_up(seed: int = 0, *, rankings: int = 12_000, queries: int = 30) -> Clicks:
    """Ten documents per query, ordered by what an engine of the day thinks of them, and clicks by a known curve.

    An engine's order changes now and then (so documents repeat at other places), and one adjacent pair in ten slates
    is swapped.
    """
    rng = np.random.default_rng(seed)
    merit_QN = rng.beta(1, 2, (queries, DEPTH))
    believed_EQN = np.log(merit_QN) + rng.normal(scale=0.7, size=(6, queries, DEPTH))
    order_EQP = np.argsort(-believed_EQN, axis=2)
    query_S = (queries * rng.random(rankings) ** 2).astype(int)
    order_SP = order_EQP[rng.integers(6, size=rankings), query_S]
    for slate in np.flatnonzero(rng.random(rankings) < 0.1):
        upper = int(rng.integers(DEPTH - 1))
        order_SP[slate, [upper, upper + 1]] = order_SP[slate, [upper + 1, upper]]
    truth_P = examination(DEPTH, decay=0.7)
    chance_SP = merit_QN[query_S[:, None], order_SP] * truth_P
    return Clicks(
        name="simulated clicks",
        ranking_R=np.repeat(np.arange(rankings), DEPTH),
        document_R=(query_S[:, None] * DEPTH + order_SP).ravel(),
        place_R=np.tile(np.arange(DEPTH), rankings),
        click_R=(rng.random(chance_SP.shape) < chance_SP).ravel(),
        truth_P=truth_P,
    )


def harvested(counts_2QP: Floats) -> Floats:
    """The examination curve from the same documents at neighbouring places, (P,).

    For places p and p + 1, over the documents seen at both: the click rate of each at p + 1 and at p, summed with
    weight min(impressions at p, impressions at p + 1), and the ratio of the two sums. The curve is the running product
    of the ratios, 1 at the first place; nan from where no document is seen at both on.

    Source: agarwal2019estimating's intervention harvesting, for neighbours only.

    Example:
        >>> harvested(np.array([[[10.0, 10.0]], [[8.0, 2.0]]])).tolist()
        [1.0, 0.25]
    """
    shown_QP, clicks_QP = counts_2QP
    curve = [1.0]
    for place in range(shown_QP.shape[1] - 1):
        both_Q = (shown_QP[:, place] > 0) & (shown_QP[:, place + 1] > 0)
        shown_B2, clicks_B2 = (counts_QP[both_Q, place : place + 2] for counts_QP in (shown_QP, clicks_QP))
        upper, lower = (shown_B2.min(1)[:, None] * clicks_B2 / shown_B2).sum(0)
        curve.append(curve[-1] * float(lower) / float(upper) if upper > 0 else math.nan)
    return np.array(curve)


def by_place(counts_2QP: Floats) -> Floats:
    """The click rate of each place, for every document."""
    shown_P, clicks_P = counts_2QP.sum(1)
    return np.asarray(np.broadcast_to((clicks_P + 0.5) / (shown_P + 1), counts_2QP.shape[1:]))


def by_document(counts_2QP: Floats, prior: float) -> Floats:
    """The click rate of each document, shrunk to that of all, at every place."""
    shown_Q, clicks_Q = counts_2QP.sum(2)
    rate_Q = (clicks_Q + prior * clicks_Q.sum() / shown_Q.sum()) / (shown_Q + prior)
    return np.asarray(np.broadcast_to(rate_Q[:, None], counts_2QP.shape[1:]))


def by_em(counts_2QP: Floats, prior: float) -> Floats:
    """P(click) = examination x attraction by EM; attractions have a Beta prior, .3 in so many impressions."""
    shown_QP, clicks_QP = counts_2QP
    look_P, attract_Q = np.linspace(0.9, 0.5, shown_QP.shape[1]), np.full(len(shown_QP), 0.3)
    for _ in range(ITERATIONS):
        missed_QP = shown_QP - clicks_QP
        nothing_QP = 1 - look_P * attract_Q[:, None]
        looked_QP = clicks_QP + missed_QP * look_P * (1 - attract_Q[:, None]) / nothing_QP
        drawn_QP = clicks_QP + missed_QP * (1 - look_P) * attract_Q[:, None] / nothing_QP
        look_P = (looked_QP.sum(0) / np.maximum(shown_QP.sum(0), 1)).clip(1e-6, 1 - 1e-6)
        attract_Q = ((drawn_QP.sum(1) + 0.3 * prior) / (shown_QP.sum(1) + prior)).clip(1e-6, 1 - 1e-6)
    return np.asarray(attract_Q[:, None] * look_P)


def by_tower(counts_2QP: Floats, spread: float, dropout: float) -> tuple[Floats, Floats]:
    """Click chances of a logit per document beside the tower, (Q, P), and the tower's logits (P,).

    Feature dropout enters as its expectation: each impression counts with its place and, for the dropped share, without
    (the tower's missing embedding), which for counts is what drawing it again and again comes to.
    """
    documents, places = counts_2QP.shape[1:]
    rows_C, places_C = (torch.from_numpy(part) for part in np.nonzero(counts_2QP[0]))
    shown_C, clicks_C = (torch.from_numpy(part).float()[rows_C, places_C] for part in counts_2QP)
    share_C, weight_C, no_codes = clicks_C / shown_C, shown_C / shown_C.sum(), torch.zeros(places, 0, dtype=torch.int64)
    overall = float(clicks_C.sum() / shown_C.sum())
    merit_Q = torch.zeros(documents, requires_grad=True)
    middle = torch.tensor(math.log(overall / (1 - overall)), requires_grad=True)
    tower = BiasTower([True], rows=1, dropout=dropout).eval()  # the draws are summed below
    adam = torch.optim.Adam([merit_Q, middle, tower.place_PT], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    for _ in range(STEPS):
        logit_C = middle + merit_Q[rows_C]
        tower_P = tower(torch.arange(places), no_codes)[:, 0]
        loss = (1 - dropout) * functional.binary_cross_entropy_with_logits(
            logit_C + tower_P[places_C], share_C, weight_C, reduction="sum"
        )
        loss = loss + dropout * functional.binary_cross_entropy_with_logits(logit_C, share_C, weight_C, reduction="sum")
        loss = loss + (merit_Q**2).sum() / (2 * spread**2 * shown_C.sum())
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
    with torch.no_grad():
        tower_P = tower(torch.arange(places), no_codes)[:, 0]
        chance_QP = torch.sigmoid(middle + merit_Q[:, None] + tower_P)
    return chance_QP.double().numpy(), tower_P.double().numpy()


def marginal(chance_QP: Floats, counts_2QP: Floats) -> Floats:
    """Average marginal click ratios to the first place, (P,): every impression of the log moved to each place."""
    moved_P = counts_2QP[0].sum(1) @ chance_QP
    return np.asarray(moved_P / moved_P[0])


def judged(chance_QP: Floats, counts_2QP: Floats) -> tuple[float, float]:
    """Mean log-likelihood of an impression (nats), and perplexity 2^(-mean log2), the mean over places."""
    shown_QP, clicks_QP = counts_2QP
    chance_QP = chance_QP.clip(1e-6, 1 - 1e-6)
    log_P = (clicks_QP * np.log(chance_QP) + (shown_QP - clicks_QP) * np.log(1 - chance_QP)).sum(0)
    return float(log_P.sum() / shown_QP.sum()), float(np.exp(-log_P / shown_QP.sum(0)).mean())


def one(clicks: Clicks, seed: int) -> dict[tuple[str, str], float]:
    """One seed: another division of the rankings into three fifths to learn, a fifth to choose, a fifth to test."""
    torch.set_num_threads(1)
    fifth_S = np.random.default_rng(seed).integers(5, size=int(clicks.ranking_R.max()) + 1)
    part_R = fifth_S[clicks.ranking_R]
    learn, choose, test = (clicks.counts(np.isin(part_R, part)) for part in ((0, 1, 2), (3,), (4,)))

    def worth(chance_QP: Floats) -> float:
        return judged(chance_QP, choose)[0]

    settings = [(spread, dropout) for spread in SPREADS for dropout in DROPOUTS]
    best = max(settings, key=lambda tried: worth(by_tower(learn, *tried)[0]))
    smooth, attraction = (max(PRIORS, key=lambda prior: worth(arm(learn, prior))) for arm in (by_document, by_em))
    # what was chosen learns from the fifth that chose it, too
    both = learn + choose
    arms = {
        "rank-ctr": by_place(both),
        "document": by_document(both, smooth),
        "pbm-em": by_em(both, attraction),
        "tower": by_tower(both, *best)[0],
    }
    found: dict[tuple[str, str], float] = {}
    for arm, chance_QP in arms.items():
        found[arm, "log_likelihood"], found[arm, "perplexity"] = judged(chance_QP, test)
    whole = clicks.counts()
    curves = {
        "tower": marginal(arms["tower"], both),
        "harvested": harvested(whole),
        # what harvesting would find if clicks followed the tower: the same documents, weighted alike
        "tower, harvested": harvested(np.stack([whole[0], whole[0] * arms["tower"]])),
        "pbm-em": arms["pbm-em"][0] / arms["pbm-em"][0, 0],
    }
    if clicks.truth_P is not None:
        curves["truth"] = clicks.truth_P
    for arm, other, suffix in (
        ("tower", "harvested", ""),
        ("tower, harvested", "harvested", ""),
        ("tower", "truth", "_truth"),
    ):
        if other in curves and np.isfinite(curves[other]).all():
            alike = float(np.corrcoef(curves[arm], curves[other])[0, 1])
            found[arm, f"examination_correlation{suffix}"] = alike
            found[arm, f"examination_mae{suffix}"] = float(np.abs(curves[arm] - curves[other]).mean())
    found["tower", "dropout"], found["tower", "spread"] = best[1], best[0]
    strong = max(DROPOUTS)
    distorted = marginal(by_tower(both, best[0], strong)[0], both)
    found[f"tower, dropout {strong:g}", "examination_mae"] = float(np.abs(distorted - curves["harvested"]).mean())
    for arm, curve_P in curves.items():
        found |= {(arm, f"place {place + 1}"): value for place, value in enumerate(curve_P.tolist())}
    return found


def run(
    paths: Sequence[Path] | None = None, *, seeds: Sequence[int] = range(5), clicks: Clicks | None = None
) -> Result:
    """All seeds, on a log's clicks or on simulated ones.

    Raises:
        DataError: the log has no clicks at known places.
    """
    clicks = clicks or (load(paths) if paths else made_up())
    shown_QP = clicks.counts()[0]
    moving = int(((shown_QP > 0).sum(1) > 1).sum())
    done = report.each_seed(partial(one, clicks), seeds)
    rows = [report.over_seeds(arm, metric, [found[arm, metric] for found in done]) for arm, metric in done[0]]
    by_name = {(row.arm, row.metric): row for row in rows}
    gains = [
        report.over_seeds(
            "tower",
            f"log_likelihood over {arm}",
            [found["tower", "log_likelihood"] - found[arm, "log_likelihood"] for found in done],
        )
        for arm in ("rank-ctr", "document", "pbm-em")
    ]
    alike = by_name.get(("tower", "examination_correlation")), by_name.get(("tower", "examination_mae"))
    near = alike[0] is not None and alike[1] is not None and alike[0].low > 0.98 and alike[1].high < 0.05
    return Result(
        name="position",
        data=f"{clicks.name}, {moving:,} of {len(shown_QP):,} documents at several places",
        seeds=tuple(seeds),
        rows=(*rows, *gains),
        criterion="held-out clicks are likelier by the tower than by place or document alone; its examination curve "
        "correlates over .98 with the harvested one and is within .05 of it on average",
        holds=near and all(gain.low > 0 for gain in gains[:2]),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    options = report.arguments("position", SUMMARY, seeds=5).parse_args(arguments)
    result = run(options.events, seeds=report.seeds_of(options))
    report.publish(result, options, draw=lambda row: row.metric not in ("dropout", "spread", "place 1"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
