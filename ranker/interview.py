"""The next question for a person: which two items, in which order and wording, and when enough is known (PReF).

A question is drawn from a pool of items that people know and that differ in their interests, and is the pair whose
answer is expected to tell most about this person. Every few questions an earlier pair comes again with order and
wording changed: what moves with the condition, or at random, was no opinion (ranker/reliability.py).

Axes: N catalogue rows, P items of the pool, C categories (interests), K base rewards.
"""

import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ranker import questions
from ranker.catalogue import Catalogue
from ranker.comparisons import said
from ranker.evidence import Answer, Evidence
from ranker.inference import Inference
from ranker.reliability import answer_weights
from ranker.taste import Factor, Taste

Wording = Literal["rather", "skip"]
WORDINGS: dict[Wording, str] = {
    "rather": "Which of these two would you rather have?",
    "skip": "Which of these two would you rather skip?",
}

#: items that questions are drawn from; a choice among them costs about a millisecond
POOL = 64
#: so many of the best known items compete for each place of the pool
WIDER = 4
#: items that are looked at for a description before those without one are taken too
LOOKED_AT = 4096
#: items whose base rewards say what the answers are for
SPREAD = 4096
#: the pool is chosen anew when the catalogue has grown by more than this share
FEW = 0.01
#: every so many-th question is an earlier pair again
REPEAT = 5
#: share of new questions that are asked in the second wording
SECOND = 0.25
#: effective answers that are enough (PReF: ten questions)
ANSWERS = 10.0
#: nats; where the best question is expected to tell less than this, enough is known. A choice, tuned on nothing: on
#: MovieLens-100K a newcomer's first question tells .35, her tenth .19, the first one after 50 acts .06
GAIN = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A question as it is to be put.

    Attributes:
        number: counted from 1, skipped ones included.
        items: the two ids, the one to show first in front.
        again: an earlier pair on purpose, with order and wording changed.
        gain: what the answer is expected to tell, in nats.
    """

    number: int
    items: tuple[str, str]
    wording: Wording
    again: bool
    gain: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far the interview is.

    Attributes:
        answers: given, without those skipped.
        effective: what they amount to, each counted as far as it is believed.
        uncertainty: what is left of the population's, as the ratio of standard deviations (geometric mean over the
            base rewards): 1 where nothing is known of the person, whatever her evidence is.
        enough: whether to stop.
        reason: why, or why not, in words.
    """

    answers: int
    effective: float
    uncertainty: float
    enough: bool
    reason: str


def pool_of(catalogue: Catalogue, known_N: NDArray[np.floating], *, size: int = POOL) -> NDArray[np.int64]:
    """Rows of items that people know and can tell apart, best known first within each interest.

    The best known are taken in turn from all interests, an item standing for the rarest of its own. Among equally
    known items the older row comes first; items without any description come last.

    Args:
        known_N: how well each row is known: impressions, or zeros where nothing was counted.

    Shapes: known_N (N,); returns up to (size,) distinct rows.

    Example:
        >>> from ranker.catalogue import Item
        >>> from ranker.config import parse
        >>> like = {"name": "like", "event": "like"}
        >>> config = {"objectives": [like], "interests": "tags", "fields": {"item": {"tags": "categories"}}}
        >>> catalogue = Catalogue(parse(config))
        >>> rows = [catalogue.put(Item(f"i{n}", {"tags": ["noir" if n < 3 else "farce"]})) for n in range(6)]
        >>> pool_of(catalogue, np.array([9, 8, 7, 1, 3, 2]), size=4).tolist()
        [0, 4, 1, 5]
    """
    items = catalogue.items
    order_N = np.argsort(-known_N, kind="stable")
    described = [row for row in order_N[:LOOKED_AT].tolist() if _described(items[row].fields)]
    wide_W = np.array(described[: WIDER * size], np.int64)
    if len(wide_W) < 2:
        wide_W = order_N[: WIDER * size].astype(np.int64)
    held_WC = catalogue.interests_NC[wide_W] > 0
    if held_WC.shape[1] == 0:
        return wide_W[:size]
    # the rarest of an item's interests; -1 where it has none
    rarest_W = np.where(held_WC, held_WC.sum(0), np.iinfo(np.int64).max).argmin(1)
    rarest_W = np.where(held_WC.any(1), rarest_W, -1)
    seen: Counter[int] = Counter()
    turn_W = np.empty(len(wide_W), np.int64)
    for place, category in enumerate(rarest_W.tolist()):
        turn_W[place] = seen[category]
        seen[category] += 1
    return wide_W[np.argsort(turn_W, kind="stable")[:size]]


def _described(fields: dict[str, object]) -> bool:
    return any(value not in (None, "", []) for value in fields.values())


class Interview:
    """Asks for one version. The pool follows the catalogue by `refresh`; readers see the pool before or the one after.

    Args:
        inference: has `catalogue` attached.
    """

    def __init__(self, inference: Inference, catalogue: Catalogue) -> None:
        self._inference, self._catalogue = inference, catalogue
        self.pool_P: NDArray[np.int64] = np.zeros(0, np.int64)
        self._aim_KK: NDArray[np.float64] | None = None
        self._chosen_of = 0
        self.refresh()

    def refresh(self) -> None:
        """Choose the pool anew, after `Inference.attach` has taken up items; not for a few, they are hardly known."""
        new = self._inference.attached - self._chosen_of
        if new > FEW * self._chosen_of or (new and len(self.pool_P) < POOL):
            self.pool_P = pool_of(self._catalogue, self._inference.impressions())
            self._chosen_of = self._inference.attached
            some = np.linspace(0, self._chosen_of - 1, min(self._chosen_of, SPREAD)).astype(np.int64)
            phi_NK = self._inference.base(some)[0].astype(np.float64)
            self._aim_KK = np.atleast_2d(np.cov(phi_NK.T)) if len(some) > 1 else None

    def next(self, user: str, evidence: Evidence, now: int) -> tuple[Turn | None, Progress]:
        """The next question, and how far the interview is; no question where no pair is left to ask.

        The same person with the same evidence is asked the same question.

        Units: now in ms.
        """
        taste = self._inference.taste(evidence, now)
        number = len(evidence.answers) + 1
        turn = self._repeat(taste, evidence.answers, number) if number % REPEAT == 0 else None
        best = self._best(user, taste, evidence.answers, number)
        return turn or best, self._progress(taste, said(evidence), best)

    def _best(self, user: str, taste: Taste, answers: tuple[Answer, ...], number: int) -> Turn | None:
        pool_P = self.pool_P
        items = self._catalogue.items
        places = {items[row].id: place for place, row in enumerate(pool_P.tolist())}
        asked = [
            (places[answer.preferred], places[answer.over])
            for answer in answers
            if answer.preferred in places and answer.over in places
        ]
        phi_PK, intercept_P = self._inference.base(pool_P)
        found = questions.next_question(
            taste.mean_K.astype(np.float64),
            taste.precision_K.astype(np.float64),
            phi_PK.astype(np.float64),
            intercept_P.astype(np.float64),
            asked,
            aim_KK=self._aim_KK,
        )
        if found is None:
            return None
        one, other = (items[pool_P[place]].id for place in sorted((found.one, found.other)))
        draw = random.Random(f"{user}\0{number}\0{one}\0{other}")
        pair = (one, other) if draw.random() < 0.5 else (other, one)
        wording: Wording = "skip" if draw.random() < SECOND else "rather"
        return Turn(number=number, items=pair, wording=wording, again=False, gain=found.gain)

    def _repeat(self, taste: Taste, answers: tuple[Answer, ...], number: int) -> Turn | None:
        """The earliest answered pair that was asked once, the other way round and in the other wording."""
        times = Counter(frozenset((answer.preferred, answer.over)) for answer in answers)
        for answer in answers:
            pair = (answer.preferred, answer.over)
            rows_2 = self._catalogue.find(pair)
            if answer.outcome == "skip" or times[frozenset(pair)] > 1 or len(set(pair)) < 2:
                continue
            if rows_2.min() < 0 or rows_2.max() >= self._inference.attached:
                continue
            before = answer.condition.get("shown_first", pair[0])
            wording: Wording = "rather" if answer.condition.get("wording") == "skip" else "skip"
            phi_2K, intercept_2 = (part.astype(np.float64) for part in self._inference.base(rows_2))
            gain = questions.gains(
                taste.mean_K.astype(np.float64), taste.precision_K.astype(np.float64), phi_2K, intercept_2
            )[0, 1]
            shown = (pair[1], pair[0]) if before == pair[0] else pair
            return Turn(number=number, items=shown, wording=wording, again=True, gain=float(gain))
        return None

    def _progress(self, taste: Taste, given: tuple[Answer, ...], best: Turn | None) -> Progress:
        effective = float(answer_weights(given, self._inference.population).sum())
        if best is None:
            enough, reason = True, "no pair is left to ask"
        elif effective >= ANSWERS:
            enough, reason = True, f"{effective:.1f} effective answers are in, {ANSWERS:.0f} are enough"
        elif best.gain < GAIN:
            enough, reason = True, f"the best question left would tell {best.gain:.4f} nats, less than {GAIN}"
        else:
            enough, reason = False, f"the best question left is expected to tell {best.gain:.3f} nats"
        return Progress(
            answers=len(given),
            effective=effective,
            uncertainty=uncertainty(taste, self._inference.prior),
            enough=enough,
            reason=reason,
        )


def uncertainty(taste: Taste, prior: Factor) -> float:
    """What is left of the population's uncertainty, the geometric mean ratio of standard deviations; 1 is all of it.

    Example:
        >>> one = np.ones(2, np.float32)
        >>> uncertainty(Taste(mean_K=0 * one, precision_K=4 * one), Factor(one, 0 * one))
        0.5
    """
    after = questions.entropy(taste.precision_K.astype(np.float64))
    before = questions.entropy(prior.precision.astype(np.float64))
    return math.exp((after - before) / len(taste.mean_K))
