"""Behaviour and a few comparisons tell what a person wants (VPL, Poddar et al. 2024).

First VPL's own setting, regenerated: two and four groups of people who order four kinds of things differently, with
kinds on which all agree. Then a log: people who were never trained on, whose graded items are cut at random into
held-out ones, ones that comparisons are drawn from, and a history; accuracy is that on comparisons of held-out items.
How strongly priors hold and how far a history is believed beside answers is chosen on validation people.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments import encoder, grades, report
from experiments.encoder import Encoder, Floats, Recipe, Table, evidence_of
from experiments.grades import Array, Grades, Rows
from experiments.report import Result
from ranker.questions import Asked, answers_factor, choose_temper, surprise
from ranker.taste import Factor, Taste, Temper, active_units, divergence, fuse, tempered

SUMMARY = "accuracy on held-out comparisons of unseen users by what is known of them"
CONTEXTS = (2, 8, 20)
#: a short history, which the product is of: as many grades as answers
FEW = 8
#: held-out comparisons of a person, and the longest history
HELD_OUT, HISTORY = 150, 50
#: factors that base rewards are a linear map of
FEATURES = 8
#: the prior of the exact posterior is the learned one or an empirical-Bayes one, times one of these
SCALES = (0.5, 1.0, 2.0)
#: cuts of validation people that choices rest on
VALIDATED = 600
#: variances above which a dimension counts as active
THRESHOLDS = {"active_units": 0.005, "active_units_0.1": 0.1}

#: accuracy that 8 context pairs must exceed in two and in four groups
FLOORS = {2: 0.95, 4: 0.90}
#: how far the encoder's accuracy may be below the exact posterior's
NEAR = -0.003
#: how far a long history with answers may be below the better of the two
HARMLESS = -0.002
RECIPE = Recipe()

Hits = dict[str, Array]
Facts = dict[tuple[str, str], float]


@dataclass(frozen=True)
class Person:
    """What is known of a person, by features: comparisons to predict and to learn from (P, 2, F), graded items."""

    held: Floats
    pairs: Floats
    items: Floats
    values: Array


def person(features_NF: Floats, values: Array, apart: float, rng: np.random.Generator) -> Person:
    """A person's items, cut: 35 % held out, 30 % to be compared, the rest (of the most recent 50) her history."""
    order = rng.permutation(len(values))
    first, second = (int(np.ceil(share * len(order))) for share in (0.35, 0.65))
    held, asked, lived = order[:first], order[first:second], np.sort(order[second:])[-HISTORY:]

    def compared(rows: Rows, count: int) -> Floats:
        return features_NF[grades.comparisons(rows, values[rows], count, rng, apart=apart)]

    return Person(compared(held, HELD_OUT), compared(asked, CONTEXTS[-1]), features_NF[lived], values[lived])


@dataclass(frozen=True)
class Exact:
    """The same base rewards under the exact (Laplace) posterior: [phi, b] = features @ base, and its prior."""

    base_FK1: Array
    prior: Factor

    def asked(self, pairs: Floats) -> Asked:
        """Comparisons (preferred, over) as numbers."""
        apart_PK1 = (pairs[:, 0] - pairs[:, 1]).astype(np.float64) @ self.base_FK1
        one_P = np.ones(len(pairs))
        return Asked(differences_AK=apart_PK1[:, :-1], offsets_A=apart_PK1[:, -1], share_A=one_P, weight_A=one_P)

    def posterior(self, pairs: Floats, prior: Factor | None = None) -> Taste:
        """The exact posterior of these comparisons."""
        prior = prior or self.prior
        return fuse(prior, [answers_factor(prior, self.asked(pairs))])

    def accuracy(self, taste: Taste, held: Floats) -> float:
        """Share of comparisons that the taste's mean gets right; an undecided one counts half."""
        asked = self.asked(held)
        margin_A = asked.offsets_A + asked.differences_AK @ taste.mean_K.astype(np.float64)
        return float(np.mean(0.5 * np.sign(margin_A) + 0.5))


def learned_prior(found: Encoder) -> Factor:
    """The encoder's population prior."""
    precision_K, mean_K = (part.numpy() for part in found.history.prior())
    return Factor(precision_K, precision_K * mean_K)


def exact_of(found: Encoder, train: Sequence[Person], validation: Sequence[Person]) -> Exact:
    """The exact posterior under the learned prior, or that of the training people's own posteriors (empirical Bayes).

    Which, and how strongly it holds, is what predicts validation people best after 8 comparisons.
    """
    width = found.map_KF.shape[1] + 1
    base_FK1 = found.base(torch.eye(width)).double().numpy()
    learned = learned_prior(found)
    exact = Exact(base_FK1, learned)
    for _ in range(3):
        tastes = [exact.posterior(one.pairs) for one in train]
        means_UK = np.stack([taste.mean_K for taste in tastes]).astype(np.float64)
        within_KK = np.mean([np.linalg.inv(full(taste)) for taste in tastes], 0)
        precision_KK = np.linalg.inv(np.cov(means_UK.T) + within_KK)
        information_K = precision_KK @ means_UK.mean(0)
        exact = Exact(base_FK1, Factor(precision_KK.astype(np.float32), information_K.astype(np.float32)))
    tried = [
        Exact(base_FK1, Factor(np.float32(scale) * prior.precision, np.float32(scale) * prior.information))
        for prior in (learned, exact.prior)
        for scale in SCALES
    ]

    def loss(one: Exact) -> float:
        told = [(one.posterior(each.pairs[:8]), each) for each in validation]
        losses = [surprise(taste.mean_K.astype(float), full(taste), one.asked(each.held)) for taste, each in told]
        return float(np.mean(losses))

    return min(tried, key=loss)


def full(taste: Taste) -> Array:
    """The precision as a matrix."""
    precision = taste.precision_K.astype(np.float64)
    return np.diag(precision) if precision.ndim == 1 else precision


def history_factors(found: Encoder, people: Sequence[Person]) -> list[Factor]:
    """What each one's history adds to the learned prior."""
    acts = [(one.items, one.values) for one in people]
    mean_UK, precision_UK = found.tastes(evidence_of(acts=acts, width=found.map_KF.shape[1] + 1))
    prior = learned_prior(found)
    information_UK = (mean_UK * precision_UK).numpy() - prior.information
    return [Factor(*parts) for parts in zip(precision_UK.numpy() - prior.precision, information_UK, strict=True)]


def amortised(found: Encoder, people: Sequence[Person], count: int | None) -> tuple[Array, Tensor, Tensor]:
    """Each person's accuracy with so many context pairs, or (None) with her history; and all means and precisions."""
    pairs = [one.pairs[: count or 0] for one in people]
    acts = [(one.items, one.values) for one in people] if count is None else None
    tastes = found.tastes(evidence_of(pairs, acts, width=found.map_KF.shape[1] + 1))
    held_P2F = torch.from_numpy(np.concatenate([one.held for one in people]))
    user_P = torch.from_numpy(np.repeat(np.arange(len(people)), [len(one.held) for one in people]))
    margin_P, _ = found.margins(tastes, held_P2F, user_P)
    right_P = 0.5 * torch.sign(margin_P) + 0.5
    total_U = torch.zeros(len(people)).index_add(0, user_P, right_P)
    return (total_U / torch.bincount(user_P)).double().numpy(), *tastes


def pooled(people: Sequence[Person]) -> Array:
    """Accuracy of what everybody prefers: the items' mean grades in units of each user's spread."""
    right = [np.sign(one.held[:, 0, -1] - one.held[:, 1, -1]) for one in people]
    return np.array([0.5 * mine.mean() + 0.5 for mine in right])


@dataclass(frozen=True)
class Cut:
    """The training people's table, a sample of them, and people to validate and to test on."""

    graded: Table
    train: list[Person]
    validation: list[Person]
    test: list[Person]


def cut(known: Grades, seed: int, *, width: int = FEATURES, ridge: float = 40.0, sample: int = 600) -> Cut:
    """70 % of users to train, of which 15 % to validate, 30 % to test: judged are those with enough grades.

    Where validation people are few, each is cut several times.
    """
    rng = np.random.default_rng(seed)
    seen, test = grades.split(len(known), seed)
    train, validation = (seen[part] for part in grades.split(len(seen), seed, test=0.15))
    items_IF, own = encoder.features(known, train, width, ridge=ridge)
    graded = encoder.table([known.values[user] for user in train], own)
    often = np.repeat(validation, max(1, VALIDATED // len(validation)))
    found = [
        [person(own[row], known.values[user], known.apart, rng) for row, user in enumerate(train[:sample])],
        [person(items_IF[known.items[user]], known.values[user], known.apart, rng) for user in often],
        [person(items_IF[known.items[user]], known.values[user], known.apart, rng) for user in test],
    ]
    least = (8, 8, CONTEXTS[-1])
    return Cut(graded, *([one for one in part if _enough(one, n)] for part, n in zip(found, least, strict=True)))


def _enough(one: Person, least: int) -> bool:
    """Whether there are so many comparisons and graded items: of test people as many as the arms are named after."""
    return len(one.held) > 0 and min(len(one.pairs), len(one.items)) >= least


def measured(known: Grades, seed: int, recipe: Recipe, *, width: int = FEATURES) -> tuple[Hits, Facts]:
    """Every arm's accuracy by test user, and what is known of the encoder itself."""
    people = cut(known, seed, width=width)
    found = encoder.train(people.graded, recipe, apart=known.apart, seed=seed)
    hits = {"pooled": pooled(people.test)}
    for count in CONTEXTS:
        hits[f"context-{count}"] = amortised(found, people.test, count)[0]
    hits["history"], mean_UK, precision_UK = amortised(found, people.test, None)
    prior_K, prior_mean_K = found.history.prior()
    facts: Facts = {("history", name): active_units(mean_UK, level) for name, level in THRESHOLDS.items()}
    facts["history", "kl"] = float(divergence(mean_UK, precision_UK, prior_K, prior_mean_K).mean())
    hits["nothing"] = amortised(found, people.test, 0)[0]
    exact = exact_of(found, people.train, people.validation)
    for count in CONTEXTS[1:]:
        tastes = [exact.posterior(one.pairs[:count]) for one in people.test]
        hits[f"laplace-{count}"] = np.array(
            [exact.accuracy(taste, one.held) for taste, one in zip(tastes, people.test, strict=True)]
        )
    short = Cut(
        people.graded, *([recent(one, FEW) for one in part] for part in (people.train, people.validation, people.test))
    )
    hits[f"history-{FEW}"] = amortised(found, short.test, None)[0]
    hits["product-long"], _ = product(found, exact, people)
    hits["product"], temper = product(found, exact, short)
    facts["product", "temper_scale"] = temper.scale
    if temper.residual_K is not None:
        facts["product", "temper_residual"] = float((temper.residual_K * prior_K.numpy()).mean())
    for name, changed in (
        ("film", replace(recipe, conditioning="film")),
        ("swap-guided", replace(recipe, swap=0.01)),
    ):
        other = encoder.train(people.graded, changed, apart=known.apart, seed=seed)
        hits[f"{name}-8"] = amortised(other, people.test, 8)[0]
        hits[f"{name}-history"], mean_UK, _ = amortised(other, people.test, None)
        facts[f"{name}-history", "active_units"] = active_units(mean_UK, THRESHOLDS["active_units"])
    return hits, facts


#: kinds of things and how often each is met; with two groups half of all comparisons are between dogs and cats
KINDS = {2: (0.1, 0.4, 0.4, 0.1), 4: (0.25, 0.25, 0.25, 0.25)}
#: how each group grades the kinds: birds best and rabbits worst for all, or each group another favourite
ORDERS = {2: ((3, 2, 1, 0), (3, 1, 2, 0)), 4: ((3, 2, 1, 0), (0, 3, 2, 1), (1, 0, 3, 2), (2, 1, 0, 3))}


def groups(count: int, seed: int, *, users: int = 600, things: int = 400) -> Cut:
    """VPL's pets, regenerated: people of so many groups grade things by their kind; features are noisy embeddings.

    The last fifth of the things is graded by the last third of the people alone: unseen people, unseen things.
    """
    rng = np.random.default_rng(seed)
    kind_I = rng.choice(4, things, p=KINDS[count])
    embedded_IF = rng.normal(size=(4, 16))[kind_I] + 0.5 * rng.normal(size=(things, 16))
    features_IF = np.column_stack([embedded_IF, np.zeros(things)]).astype(np.float32)
    orders_GK = np.array(ORDERS[count], np.float64)
    first, seen = 2 * users // 3, 4 * things // 5
    rows = [rng.choice(seen, 40, False) for _ in range(first)]
    unseen = [seen + rng.choice(things - seen, 40, False) for _ in range(users - first)]
    values = [orders_GK[user % count][kind_I[mine]] for user, mine in enumerate([*rows, *unseen])]
    test = [person(features_IF[mine], values[first + place], 0.0, rng) for place, mine in enumerate(unseen)]
    return Cut(encoder.table(values[:first], [features_IF[mine] for mine in rows]), [], [], test)


def of_groups(count: int, seed: int, *, steps: int = 400, users: int = 600) -> Hits:
    """Accuracy of unseen people of so many groups, by context."""
    people = groups(count, seed, users=users)
    found = encoder.train(people.graded, Recipe(dimensions=6, steps=steps, rate=1e-2), seed=seed)
    return {f"context-{shown}": amortised(found, people.test, shown)[0] for shown in (0, *CONTEXTS)}


def recent(one: Person, count: int) -> Person:
    """The person with only her latest grades for a history."""
    return replace(one, items=one.items[-count:], values=one.values[-count:])


def product(found: Encoder, exact: Exact, people: Cut) -> tuple[Array, Temper]:
    """History times 8 answers about other items, the history tempered as validation people (as little known) ask."""
    prior = learned_prior(found)
    asked = [exact.asked(one.pairs[:8]) for one in people.validation]
    held = [exact.asked(one.held) for one in people.validation]
    temper, _ = choose_temper(prior, history_factors(found, people.validation), asked, held)
    accuracy = []
    for one, history in zip(people.test, history_factors(found, people.test), strict=True):
        before = fuse(prior, [tempered(prior, history, temper)])
        known = Factor(before.precision_K, before.precision_K * before.mean_K)
        accuracy.append(exact.accuracy(exact.posterior(one.pairs[:8], known), one.held))
    return np.array(accuracy), temper


@dataclass(frozen=True)
class Found:
    """One seed: accuracy by arm and user on the log and in two and four groups, and facts about the encoder."""

    log: Hits
    groups: dict[int, Hits]
    facts: Facts


def one(known: Grades, seed: int, *, recipe: Recipe, grouped: bool) -> Found:
    """One seed of the log and, where asked, of the groups."""
    torch.set_num_threads(1)
    log, facts = measured(known, seed, recipe)
    return Found(log, {count: of_groups(count, seed) for count in ORDERS} if grouped else {}, facts)


def run(paths: Sequence[Path] | None, *, seeds: Sequence[int] = range(5), recipe: Recipe = RECIPE) -> Result:
    """All seeds, as many at a time as there are processors; the groups only where no log is named.

    Raises:
        DataError: nothing in the log can be compared.
    """
    known = grades.load(paths)
    done = report.each_seed(partial(one, known, recipe=recipe, grouped=paths is None), seeds)
    return result(known, done, seeds)


def result(known: Grades, done: Sequence[Found], seeds: Sequence[int]) -> Result:
    """All seeds as rows, with intervals over seeds and users, and the verdict."""
    rows = [grades.nested(arm, "accuracy", [found.log[arm] for found in done]) for arm in done[0].log]

    def better(*arms: str) -> str:
        return max(arms, key=lambda arm: np.mean([found.log[arm].mean() for found in done]))

    gaps = [
        ("context-8", "pooled"),
        ("history", "pooled"),
        ("context-8", "laplace-8"),
        ("context-20", "laplace-20"),
        ("product", better(f"history-{FEW}", "laplace-8")),
        ("product-long", better("history", "laplace-8")),
    ]
    rows += [
        grades.nested(arm, f"gain over {less}", [found.log[arm] - found.log[less] for found in done])
        for arm, less in gaps
    ]
    rows += [
        grades.nested(arm, f"accuracy_{count}_groups", [found.groups[count][arm] for found in done])
        for count in done[0].groups
        for arm in done[0].groups[count]
    ]
    for arm, fact in sorted({name for found in done for name in found.facts}):
        rows.append(report.over_seeds(arm, fact, [found.facts.get((arm, fact), 0.0) for found in done]))
    by_name = {(row.arm, row.metric): row for row in rows}
    gains = [by_name[arm, f"gain over {less}"] for arm, less in gaps if less == "pooled" or arm == "product"]
    long = next(row for row in rows if row.arm == "product-long" and row.metric.startswith("gain"))
    near = [by_name[f"context-{count}", f"gain over laplace-{count}"].mean > NEAR for count in CONTEXTS[1:]]
    recovered = [by_name["context-8", f"accuracy_{count}_groups"].low > FLOORS[count] for count in done[0].groups]
    return Result(
        name="taste",
        data=known.name,
        seeds=tuple(seeds),
        rows=tuple(rows),
        criterion="8 pairs recover two groups (.95) and four (.90); 8 pairs and a history beat pooled on new people; "
        "the encoder is within .3 point of the exact posterior; 8 grades with 8 answers beat the better of both, and "
        "a long history with 8 answers is at most .2 point below it",
        holds=all(gain.low > 0 for gain in gains) and all(near) and all(recovered) and long.low > HARMLESS,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    options = report.arguments("taste", SUMMARY, seeds=5).parse_args(arguments)
    report.publish(run(options.events, seeds=report.seeds_of(options)), options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
