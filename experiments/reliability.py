"""Answers believed as far as they deserve beat answers believed alike (ghafouri2026annotation).

A simulated population whose classes are known. Each person has a taste over base rewards; about each kind of item she
is genuine, has no attitude, or answers as the question is put (by an item's place, by picking what stands first, each
person to her own degree). Half of the pairs are asked again with order and wording changed. Every weighting of the
answers is judged twice on people whose classes nobody knows, by pairs never asked and their true tastes: with the true
base rewards (`accuracy`: only the person's own posterior feels the weights) and with base rewards and intercepts that
were learned from other people's weighted answers (`learned`). Class shares and pulls are fitted on those others.
`odd_belief` is how far genuine answers of people with unusual tastes are believed, over those of everybody else: a
weighting that takes disagreement for carelessness falls below 1.

Axes: U people, A answers of a person, Q questions, I items, K base rewards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from experiments import report
from experiments.report import Result, Row, over_seeds
from ranker.errors import RequestError
from ranker.evidence import Answer
from ranker.questions import Asked, answers_factor
from ranker.reliability import GENUINE, Population, answer_weights, class_posteriors, fit_population
from ranker.taste import Factor, fuse
from services.cli import count

Array = NDArray[np.float64]
Weigh = Callable[[Sequence[Answer]], Array]

SUMMARY = "answers weighted by how far they are to be believed, against unweighted ones and two older weightings"
ARMS = ("unweighted", "test-retest", "dawid-skene", "em-alone", "em", "oracle")
RIVALS = ("unweighted", "test-retest", "dawid-skene")
#: shares of genuine, non-attitude and constructed among (person, kind of item)
MIXES = {"half": (0.5, 0.25, 0.25), "framed": (0.4, 0.1, 0.5), "careless": (0.4, 0.5, 0.1), "genuine": (1.0, 0.0, 0.0)}
MIXED = ("half", "framed", "careless")
#: a population, its questions (the same for everybody, so that Dawid and Skene have something to share)
KINDS, ITEMS, QUESTIONS, K = 3, 20, 30, 5
#: standard deviation of a margin by taste and by what everybody prefers, in log odds
TASTE, COMMON = 2.75, 1.0
#: mean and spread of a constructed answer's pull: to the item shown first, and to picking what stands first
PULL, PULL_SPREAD = (1.5, 1.0), 0.7
#: pairs that accuracy is measured on, and people of those trained on that class shares are fitted on
JUDGED, FITTED = 600, 60
#: how often base rewards and beliefs take turns
TURNS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """Items with base rewards and intercepts, people with tastes, classes by kind of item, and answers."""

    phi_IK: Array
    intercept_I: Array
    tastes_UK: Array
    classes_UK: NDArray[np.int64]
    people: list[list[Answer]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Base:
    """Base rewards and intercepts of the items, true or learned; tastes are standard normal in both."""

    phi_IK: Array
    intercept_I: Array

    def margins(self, answers: Sequence[Answer]) -> tuple[Array, Array]:
        """Differences of base rewards (A, K) and of intercepts (A,), preferred minus over."""
        one_A, other_A = rows(answers)
        return self.phi_IK[one_A] - self.phi_IK[other_A], self.intercept_I[one_A] - self.intercept_I[other_A]

    def taste(self, answers: Sequence[Answer], weight_A: Array) -> Array:
        """The mean of the person's Laplace posterior, (K,)."""
        differences_AK, offsets_A = self.margins(answers)
        asked = Asked(
            differences_AK=differences_AK, offsets_A=offsets_A, share_A=np.ones(len(answers)), weight_A=weight_A
        )
        prior = Factor(np.ones(K, np.float32), np.zeros(K, np.float32))
        return fuse(prior, [answers_factor(prior, asked)]).mean_K.astype(np.float64)


def kind_of(answer: Answer) -> int:
    """The kind of item that an answer is about."""
    return int(answer.preferred) // ITEMS


def rows(answers: Sequence[Answer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the preferred and of the other items."""
    return np.array([int(a.preferred) for a in answers]), np.array([int(a.over) for a in answers])


def world(seed: int, shares: tuple[float, float, float], *, people: int, pairs: int, again: int) -> World:
    """A population as the constants above describe it; each person answers `pairs` questions of each kind, and the
    first `again` of them a second time with order and wording changed."""
    rng = np.random.default_rng(seed)
    phi_IK = rng.normal(size=(KINDS * ITEMS, K)) * TASTE / np.sqrt(2 * K)
    intercept_I = rng.normal(size=KINDS * ITEMS) * COMMON / np.sqrt(2)
    asked = [[kind * ITEMS + rng.choice(ITEMS, 2, replace=False) for _ in range(QUESTIONS)] for kind in range(KINDS)]
    tastes_UK, classes_UK = rng.normal(size=(people, K)), rng.choice(3, (people, KINDS), p=shares)
    found = []
    for user in range(people):
        answers: list[Answer] = []
        for kind in range(KINDS):
            pull_2 = rng.normal(PULL, PULL_SPREAD)
            for place, question in enumerate(rng.choice(QUESTIONS, pairs, replace=False)):
                one, other = asked[kind][question]
                margin = intercept_I[one] - intercept_I[other] + (phi_IK[one] - phi_IK[other]) @ tastes_UK[user]
                first, wording = rng.choice([1, -1]), rng.choice([1, -1], p=[0.75, 0.25])
                for _ in range(2 if place < again else 1):
                    lean = (margin, 0.0, pull_2 @ [first, first * wording])[classes_UK[user, kind]]
                    preferred, over = (one, other) if rng.random() < expit(lean) else (other, one)
                    condition = {
                        "shown_first": str(one if first > 0 else other),
                        "wording": "rather" if wording > 0 else "skip",
                    }
                    answers.append(
                        Answer(f"{len(answers)}", str(preferred), str(over), len(answers), condition=dict(condition))
                    )
                    first, wording = -first, -wording
        found.append(answers)
    return World(phi_IK=phi_IK, intercept_I=intercept_I, tastes_UK=tastes_UK, classes_UK=classes_UK, people=found)


def learn(people: Sequence[Sequence[Answer]], weights: Sequence[Array], seed: int, *, steps: int = 250) -> Base:
    """Base rewards and intercepts by weighted Bradley-Terry over all answers, with the people's tastes beside."""
    one_A, other_A = map(torch.from_numpy, rows([answer for answers in people for answer in answers]))
    user_A = torch.from_numpy(np.repeat(np.arange(len(people)), [len(answers) for answers in people]))
    weight_A = torch.from_numpy(np.concatenate(weights)).float()
    generator = torch.Generator().manual_seed(seed)
    phi_IK = (torch.randn(KINDS * ITEMS, K, generator=generator) * 0.3).requires_grad_()
    tastes_UK = torch.randn(len(people), K, generator=generator).requires_grad_()
    intercept_I = torch.zeros(KINDS * ITEMS, requires_grad=True)
    adam = torch.optim.Adam([phi_IK, tastes_UK, intercept_I], 0.05)
    for _ in range(steps):
        apart_AK = phi_IK.index_select(0, one_A) - phi_IK.index_select(0, other_A)
        margin_A = intercept_I[one_A] - intercept_I[other_A] + (tastes_UK.index_select(0, user_A) * apart_AK).sum(1)
        penalty = sum(part.square().sum() for part in (phi_IK, tastes_UK, intercept_I)) / 2
        loss = penalty - (weight_A * functional.logsigmoid(margin_A)).sum()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return Base(phi_IK=phi_IK.detach().double().numpy(), intercept_I=intercept_I.detach().double().numpy())


def by_model(people: Sequence[Sequence[Answer]], base: Base) -> tuple[list[Array], list[Array]]:
    """What the base rewards expect of each answer without any answer: margins (A,) and their covariance (A, A)."""
    known = [base.margins(answers) for answers in people]
    return [offsets_A for _, offsets_A in known], [d_AK @ d_AK.T for d_AK, _ in known]


def fit_em(people: Sequence[Sequence[Answer]], base: Base, start: Population) -> Population:
    """Class shares and pulls in the light of the base rewards; a few dozen people are enough for nine numbers."""
    few = people[:FITTED]
    margins, spreads = by_model(few, base)
    return fit_population(few, margins=margins, spreads=spreads, kind=kind_of, start=start, rounds=8)


def weigh_em(population: Population, base: Base) -> Weigh:
    """The E step in the light of the base rewards."""

    def weigh(answers: Sequence[Answer]) -> Array:
        (margins,), (spreads,) = by_model([answers], base)
        return answer_weights(answers, population, margins, spreads, kind_of)

    return weigh


def retest_weights(answers: Sequence[Answer]) -> Array:
    """Baseline: (2p - 1)^2, p the share of re-asked pairs of a kind that were answered alike, smoothed by (1, 1)."""
    first: dict[frozenset[str], str] = {}
    alike = np.ones((KINDS, 2))
    for answer in answers:
        pair = frozenset((answer.preferred, answer.over))
        if pair in first:
            alike[kind_of(answer), int(first[pair] == answer.preferred)] += 1
        first.setdefault(pair, answer.preferred)
    same_K = alike[:, 1] / alike.sum(1)
    found: Array = ((2 * np.maximum(same_K, 0.5) - 1) ** 2)[[kind_of(answer) for answer in answers]]
    return found


def dawid_skene_weights(people: Sequence[Sequence[Answer]], *, rounds: int = 50) -> list[Array]:
    """Baseline: Dawid and Skene (1979), two coins a unit and one shared truth a question; (2a - 1)^2 of accuracy a.

    Who honestly disagrees with most people looks unreliable to it: it has no place for tastes.
    """
    told = [answer for answers in people for answer in answers]
    unit_A = np.repeat(np.arange(len(people)), [len(answers) for answers in people]) * KINDS
    unit_A += np.array([kind_of(answer) for answer in told])
    said_A = np.array([float(int(answer.preferred) < int(answer.over)) for answer in told])
    pairs = np.sort(np.stack(rows(told), 1), axis=1)
    question_A = np.unique(pairs, axis=0, return_inverse=True)[1].ravel()
    units, questions = len(people) * KINDS, int(question_A.max()) + 1
    truth_Q = np.bincount(question_A, said_A) / np.bincount(question_A)
    accuracy_U2 = np.zeros((units, 2))
    for _ in range(rounds):
        for truth in (0, 1):
            belief_A = truth_Q[question_A] if truth else 1 - truth_Q[question_A]
            right_U = np.bincount(unit_A, belief_A * (said_A if truth else 1 - said_A), minlength=units)
            accuracy_U2[:, truth] = (right_U + 2) / (np.bincount(unit_A, belief_A, minlength=units) + 3)
        hit_A2, miss_A2 = np.log(accuracy_U2)[unit_A], np.log1p(-accuracy_U2)[unit_A]
        odds_A = said_A * (hit_A2[:, 1] - miss_A2[:, 0]) + (1 - said_A) * (miss_A2[:, 1] - hit_A2[:, 0])
        prior = np.clip(truth_Q.mean(), 0.01, 0.99)
        truth_Q = expit(np.log(prior / (1 - prior)) + np.bincount(question_A, odds_A, minlength=questions))
    weight_A = ((2 * np.maximum(accuracy_U2.mean(1), 0.5) - 1) ** 2)[unit_A]
    return np.split(weight_A, np.cumsum([len(answers) for answers in people])[:-1])


def accuracy(base: Base, truth: World, people: slice, weights: Sequence[Array], seed: int) -> float:
    """Share of pairs never asked, within a kind, that the people's posteriors order as their true tastes do."""
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, ITEMS, (2, JUDGED)) + ITEMS * rng.integers(0, KINDS, JUDGED)
    met = {frozenset((a.preferred, a.over)) for answers in truth.people for a in answers}
    fresh = [a != b and frozenset((str(a), str(b))) not in met for a, b in zip(one, other, strict=True)]
    one, other = one[fresh], other[fresh]
    tastes_UK = np.stack([base.taste(*asked) for asked in zip(truth.people[people], weights, strict=True)])
    found_UI = tastes_UK @ base.phi_IK.T + base.intercept_I
    true_UI = truth.tastes_UK[people] @ truth.phi_IK.T + truth.intercept_I
    return float(np.mean((found_UI[:, one] > found_UI[:, other]) == (true_UI[:, one] > true_UI[:, other])))


def once(
    seed: int, mix: str, *, trained: int = 600, judged: int = 200, pairs: int = 10, again: int = 5, turns: int = TURNS
) -> dict[tuple[str, str], float]:
    """One population of one mix: every arm's accuracy with true and with learned base rewards, and what EM found."""
    truth = world(seed, MIXES[mix], people=trained + judged, pairs=pairs, again=again)
    train, unseen = truth.people[:trained], truth.people[trained:]
    true_base = Base(phi_IK=truth.phi_IK, intercept_I=truth.intercept_I)
    alone = fit_population(train, kind=kind_of)
    seeing = fit_em(train, true_base, Population.default())
    genuine_UK = (truth.classes_UK == GENUINE).astype(np.float64)
    oracle = [
        genuine_K[[kind_of(a) for a in answers]] for genuine_K, answers in zip(genuine_UK, truth.people, strict=True)
    ]
    every: dict[str, list[Array]] = {
        "unweighted": [np.ones(len(answers)) for answers in truth.people],
        "test-retest": [retest_weights(answers) for answers in truth.people],
        "dawid-skene": dawid_skene_weights(truth.people),
        "em-alone": [answer_weights(answers, alone, kind=kind_of) for answers in truth.people],
        "oracle": oracle,
    }
    last = slice(trained, None)
    weights = {arm: given[last] for arm, given in every.items()}
    weights["em"] = list(map(weigh_em(seeing, true_base), unseen))
    found = {(arm, "accuracy"): accuracy(true_base, truth, last, weights[arm], seed) for arm in ARMS}
    for arm, given in every.items():
        base = learn(train, given[:trained], seed)
        found[arm, "learned"] = accuracy(base, truth, last, given[last], seed)
        if arm == "em-alone":
            start = base
    base, population = start, alone
    for _ in range(turns):  # base rewards and beliefs in turns
        population = fit_em(train, base, population)
        base = learn(train, list(map(weigh_em(population, base), train)), seed)
    population = fit_em(train, base, population)
    found["em", "learned"] = accuracy(base, truth, last, list(map(weigh_em(population, base), unseen)), seed)
    for metric in ("accuracy", "learned"):
        for rival in RIVALS:
            found[f"em - {rival}", metric] = found["em", metric] - found[rival, metric]
    odd_U = unusual(truth)[last]
    for arm in ("test-retest", "dawid-skene", "em-alone", "em"):
        found[arm, "odd_belief"] = _belief(weights[arm], oracle[last], odd_U) / _belief(
            weights[arm], oracle[last], ~odd_U
        )
    if mix in MIXED:
        unit_U = genuine_UK[last].ravel()
        for arm, fitted, seen in (("em-alone", alone, None), ("em", seeing, true_base)):
            chance_U = np.concatenate([_genuine(answers, fitted, seen) for answers in unseen])
            found[arm, "class_auc"] = float(roc_auc_score(unit_U, chance_U))
            for metric, name in (("accuracy", "gap_closed"), ("learned", "learned_gap_closed")):
                gap = found["oracle", metric] - found["unweighted", metric]
                found[arm, name] = (found[arm, metric] - found["unweighted", metric]) / gap
    return found


def unusual(truth: World) -> NDArray[np.bool_]:
    """The quarter of the people whose true utilities go least with what everybody prefers, (U,)."""
    utility_UI = truth.tastes_UK @ truth.phi_IK.T + truth.intercept_I
    alike_U = np.array([np.corrcoef(utility_I, truth.intercept_I)[0, 1] for utility_I in utility_UI])
    found: NDArray[np.bool_] = alike_U < np.quantile(alike_U, 0.25)
    return found


def _belief(weights: Sequence[Array], genuine: Sequence[Array], who_U: NDArray[np.bool_]) -> float:
    """Mean weight of these people's genuine answers."""
    kept = [w_A[g_A > 0] for w_A, g_A, mine in zip(weights, genuine, who_U, strict=True) if mine]
    return float(np.concatenate(kept).mean())


def _genuine(answers: Sequence[Answer], population: Population, base: Base | None) -> Array:
    margins, spreads = (found[0] for found in by_model([answers], base)) if base is not None else (None, None)
    found = class_posteriors(answers, population, margins, spreads, kind_of)
    return np.array([found[kind][GENUINE] for kind in range(KINDS)])


def run(
    seeds: Sequence[int],
    *,
    mixes: Sequence[str] = tuple(MIXES),
    trained: int = 600,
    judged: int = 200,
    pairs: int = 10,
    again: int = 5,
) -> Result:
    """Every arm at every mix of classes; the claim can hold only where all of MIXES are run.

    Raises:
        RequestError: fewer than two pairs a kind, more asked again than asked, or too few people.
    """
    if not 0 <= again <= pairs or not 2 <= pairs <= QUESTIONS:
        raise RequestError("--pairs, --again", (pairs, again), f"ask 2 to {QUESTIONS} pairs and again at most as many")
    if trained < 20 or judged < 10:
        raise RequestError("people", (trained, judged), "train on 20 people or more and judge 10 or more")
    torch.set_num_threads(1)
    values: dict[tuple[str, str], list[float]] = {}
    for seed in seeds:
        for mix in mixes:
            measured = once(seed, mix, trained=trained, judged=judged, pairs=pairs, again=again)
            for (arm, metric), value in measured.items():
                values.setdefault((arm, f"{metric}:{mix}"), []).append(value)
                if mix in MIXED:
                    values.setdefault((arm, metric), []).append(value)
    for (arm, metric), each in values.items():
        if ":" not in metric:  # the three mixes of a seed count as one measurement
            values[arm, metric] = np.reshape(each, (len(seeds), -1)).mean(1).tolist()
    found = tuple(over_seeds(arm, metric, each) for (arm, metric), each in sorted(values.items(), key=_order))
    return Result(
        name="reliability",
        data=f"simulation, {KINDS} kinds x ({pairs} pairs + {again} again) a person",
        seeds=tuple(seeds),
        rows=found,
        criterion="at each mix EM closes 60 % of the gap from unweighted to oracle or more and beats unweighted, "
        "test-retest and Dawid-Skene, with true and with learned base rewards; where everyone is genuine it loses "
        "less than .2 point",
        holds=set(mixes) == set(MIXES) and _holds({(row.arm, row.metric): row for row in found}),
    )


def _order(entry: tuple[tuple[str, str], list[float]]) -> tuple[int, int]:
    (arm, metric), _ = entry
    names = ("accuracy", "gap_closed", "class_auc", "learned", "learned_gap_closed", "odd_belief")
    name, _, mix = metric.partition(":")
    mixes = ("", *MIXES)
    return (names.index(name) + len(names) * mixes.index(mix), ARMS.index(arm) if arm in ARMS else len(ARMS))


def _holds(rows: dict[tuple[str, str], Row]) -> bool:
    closes = all(
        rows["em", f"{gap}:{mix}"].mean >= 0.6 for gap in ("gap_closed", "learned_gap_closed") for mix in MIXED
    )
    beats = all(
        rows[f"em - {rival}", f"{metric}:{mix}"].low > 0
        for rival in RIVALS
        for metric in ("accuracy", "learned")
        for mix in MIXED
    )
    harmless = all(rows["em - unweighted", f"{metric}:genuine"].low > -0.002 for metric in ("accuracy", "learned"))
    return closes and beats and harmless


def drawn(row: Row) -> bool:
    """Whether the picture shows it: the arms over all mixes."""
    return row.arm in ARMS and ":" not in row.metric and "gap" not in row.metric


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    parser = report.arguments("reliability", SUMMARY, seeds=5)
    parser.add_argument("--pairs", type=count, default=10, metavar="N", help="pairs asked of each kind (default 10)")
    parser.add_argument("--again", type=int, default=5, metavar="N", help="of which asked again (default 5)")
    parser.add_argument("--trained", type=count, default=600, metavar="N", help="people learned from (default 600)")
    parser.add_argument("--judged", type=count, default=200, metavar="N", help="unseen people judged (default 200)")
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=tuple(MIXES), help="only these mixes of classes")
    options = parser.parse_args(arguments)
    if options.events:
        raise RequestError("--events", options.events[0].name, "leave it out: no log knows its people's classes")
    sizes = {name: getattr(options, name) for name in ("mixes", "trained", "judged", "pairs", "again")}
    report.publish(run(report.seeds_of(options), **sizes), options, draw=drawn)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
