"""A made-up world for `echo-chamber`: people whose interests drift toward what they look at, and a model of them.

The model has the true base rewards and intercepts, so the taste is all that is fitted: the Laplace posterior of
`ranker.questions` over her last 100 acts. What it learns is the population's prior (empirical Bayes).

Axes: U users, N items, S places, C categories, K base rewards (categories and style).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ranker.events import Interaction
from ranker.evidence import EMPTY, Evidence, fold
from ranker.inference import Scores
from ranker.questions import Asked, answers_factor
from ranker.simulation import examination
from ranker.taste import Factor, Taste, fuse

Array = NDArray[np.float64]

DAY_MS = 86_400_000
START_MS = 1_700_000_000_000
#: an item that is liked half of the time lies this far above one of no interest and no merit
RESERVE = 2.2
#: of what she looks at and does not like, so much is dismissed, and the rest leaves no trace
BOTHERED = 0.2


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The world. Two groups of people, four fifths of them in the first, share part of their interests.

    Attributes:
        keen: by how much the logit of liking grows from no interest to all interest in a category.
        drift: how far the interests move, in a day, toward those of what was looked at.
        past: reactions to random items before the first day, one a day.
    """

    users: int = 30
    items: int = 1500
    fresh: int = 100
    places: int = 10
    months: int = 6
    days: int = 30
    categories: int = 12
    styles: int = 4
    keen: float = 6.0
    drift: float = 0.01
    past: int = 60


class People:
    """Who they are, what there is, and what they do with a slate; `interest_UC` is what drifts."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        r = self.recipe = recipe
        build, self._generator = np.random.default_rng(seed).spawn(2)
        common_GC = np.zeros((2, r.categories))
        common_GC[0, :3], common_GC[1, 3:5] = (0.5, 0.3, 0.2), 0.5
        self.group_U = (np.arange(r.users) >= round(0.8 * r.users)).astype(np.int64)
        own_UC = build.dirichlet(np.full(r.categories, 0.25), r.users)
        self.interest_UC = 0.5 * common_GC[self.group_U] + 0.5 * own_UC
        self.style_UX = build.normal(scale=0.7, size=(r.users, r.styles))
        shares_NC = np.zeros((r.items, r.categories))
        for share_C in shares_NC:
            share_C[build.choice(r.categories, build.integers(1, 3), replace=False)] = 1
        self.shares_NC = shares_NC / shares_NC.sum(1, keepdims=True)
        self.phi_NK = np.column_stack([self.shares_NC, build.normal(scale=0.5, size=(r.items, r.styles))])
        self.merit_N = build.normal(scale=0.5, size=r.items)
        self.start_UC = self.interest_UC.copy()
        self.look_S = examination(r.places, decay=1.0)

    def likes(self, user: int, rows: NDArray[np.int64], interest_C: Array | None = None) -> Array:
        """The true chance that she likes each item, by her interests now or by those given."""
        interest_C = self.interest_UC[user] if interest_C is None else interest_C
        taste_K = np.concatenate([self.recipe.keen * interest_C, self.style_UX[user]])
        return np.asarray(expit(self.merit_N[rows] + self.phi_NK[rows] @ taste_K - RESERVE))

    def react(self, user: int, rows: NDArray[np.int64]) -> list[tuple[int, str]]:
        """What she does with a slate, and her interests move toward what she looked at."""
        looked, felt, bothered = self._generator.random((3, len(rows)))
        seen_S = looked < self.look_S[: len(rows)]
        liked_S = felt < self.likes(user, rows)
        done = [
            (int(row), "like" if liked else "dismiss")
            for row, seen, liked, cares in zip(rows, seen_S, liked_S, bothered < BOTHERED, strict=True)
            if seen and (liked or cares)
        ]
        if seen_S.any():
            mean_C = self.shares_NC[rows[seen_S]].mean(0)
            self.interest_UC[user] += self.recipe.drift * (mean_C - self.interest_UC[user])
        return done

    def past(self) -> list[Evidence]:
        """Reactions to one random item a day before the first day."""
        found = []
        for user in range(self.recipe.users):
            rows = self._generator.integers(self.recipe.items, size=self.recipe.past)
            liked_H = self._generator.random(len(rows)) < self.likes(user, rows)
            kept_H = liked_H | (self._generator.random(len(rows)) < BOTHERED)
            evidence = EMPTY
            for day, (row, liked) in enumerate(zip(rows.tolist(), liked_H, strict=True)):
                if kept_H[day]:
                    time, kind = START_MS - (len(rows) - day) * DAY_MS, "like" if liked else "dismiss"
                    act = Interaction(id=f"past-{day}", timestamp=time, user=f"u{user}", item=f"i{row}", type=kind)
                    evidence = fold(evidence, act)
            found.append(evidence)
        return found

    def today(self) -> NDArray[np.int64]:
        """What there is to show on a day, the same for all."""
        return np.sort(self._generator.choice(self.recipe.items, self.recipe.fresh, replace=False))


@dataclass(frozen=True)
class _Sizes:
    K: int


class Given:
    """What the pipeline asks of a model, with base rewards given: the taste is fitted, nothing else is learned."""

    def __init__(self, people: People, prior: Factor) -> None:
        self._people, self.prior = people, prior
        self.attached, self.sizes = people.recipe.items, _Sizes(people.phi_NK.shape[1])
        self.population_C = np.full(people.recipe.categories, 1 / people.recipe.categories)  # as items are drawn
        self._typical_K, self._typical = people.phi_NK.mean(0), float(people.merit_N.mean())
        self._kept: dict[int, tuple[Evidence, Taste]] = {}

    def masked(self, evidence: Evidence) -> Evidence:
        """Nobody strikes anything here."""
        return evidence

    def taste(self, evidence: Evidence, now: int) -> Taste:
        """The Laplace posterior over the acts: liked, or dismissed, against the reserve.

        A dismissal leaves a trace once in 1 / BOTHERED times, so the odds of a like among traces are that much higher.
        """
        kept = self._kept.get(id(evidence))
        if kept is not None and kept[0] is evidence:
            return kept[1]
        found = fuse(self.prior)
        if evidence.history:
            rows = np.array([int(act.item[1:]) for act in evidence.history])
            asked = Asked(
                differences_AK=self._people.phi_NK[rows],
                offsets_A=self._people.merit_N[rows] - RESERVE - np.log(BOTHERED),
                share_A=np.array([float(act.type == "like") for act in evidence.history]),
                weight_A=np.ones(len(rows)),
            )
            found = fuse(self.prior, [answers_factor(self.prior, asked)], {"history": len(rows)})
        if len(self._kept) > 2 * self._people.recipe.users:
            self._kept.clear()
        self._kept[id(evidence)] = evidence, found
        return found

    def score(self, taste: Taste, *, rows: NDArray[np.int64], **_: object) -> Scores:
        """r = b + z . phi, and the chance of a like."""
        phi_NK = self._people.phi_NK[rows].astype(np.float32)
        reward_N = (phi_NK @ taste.mean_K + self._people.merit_N[rows]).astype(np.float32)
        logits_N1 = reward_N[:, None] - np.float32(RESERVE)
        return Scores(probabilities_NT=expit(logits_N1), logits_NT=logits_N1, utility_N=reward_N, phi_NK=phi_NK)

    def preferred(self, taste: Taste, utility_N: NDArray[np.float32]) -> NDArray[np.float32]:
        """P(preferred to a typical item)."""
        found: NDArray[np.float32] = expit(utility_N - np.float32(self._typical_K @ taste.mean_K + self._typical))
        return found

    def probabilities_at(self, logits_NT: NDArray[np.float32], *_: object) -> NDArray[np.float32]:
        """No tower: the chance of a like of what is looked at."""
        found: NDArray[np.float32] = expit(logits_NT)
        return found

    def gap(self, evidence: Evidence, rows: NDArray[np.int64]) -> float:
        """The sycophancy gap of a slate, whoever made it."""
        hers, anyones = self.taste(evidence, 0), fuse(self.prior)
        chances = [
            self.preferred(taste, self.score(taste, rows=rows).utility_N).astype(np.float64)
            for taste in (hers, anyones)
        ]
        return float((chances[0] - chances[1]).mean())


def learned(people: People, known: Sequence[Evidence], prior: Factor, rounds: int = 3) -> Factor:
    """The population's prior by empirical Bayes: the mean of all tastes, and their spread on each axis."""
    for _ in range(rounds):
        given = Given(people, prior)
        tastes = [given.taste(evidence, 0) for evidence in known]
        mean_UK = np.stack([taste.mean_K for taste in tastes]).astype(np.float64)
        within_UK = np.stack(
            [
                1 / taste.precision_K if taste.precision_K.ndim == 1 else np.diag(np.linalg.inv(taste.precision_K))
                for taste in tastes
            ]
        )
        precision_K = 1 / (mean_UK.var(0) + within_UK.mean(0))
        prior = Factor(precision_K.astype(np.float32), (precision_K * mean_UK.mean(0)).astype(np.float32))
    return prior
