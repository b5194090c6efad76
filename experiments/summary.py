"""A learned summary conditions better than an untrained one, and that better than none (PLUS, nam2026learning).

Half of what each person graded is her history, comparisons among the rest are held out. A summary of at most five
phrases is drawn from the history, and the ranker sees nothing else of it. `untrained` takes the tags whose liking
surprises most, `learned` a policy trained by the log-likelihood of held-out comparisons; what a phrase means is trained
for either. `posterior` reads the whole history (Laplace). All people measured were never trained on.

`edit_direction` is the blind test: a random phrase is added to a person's summary, or a random one of its phrases
struck, beside her whole history, and the mean rank of the items that carry the tag has to move the stated way.

Axes: U users, A acts, P comparisons, K base rewards, I items.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from scipy.stats import rankdata

from experiments import grades as graded
from experiments import report
from experiments.grades import Base, Grades
from experiments.report import Result, Row
from ranker import config as configuration
from ranker import datasets, summary, wording
from ranker.catalogue import Catalogue, Item
from ranker.config import Objective
from ranker.errors import DataError
from ranker.events import Item as ItemEvent
from ranker.events import fields_of
from ranker.evidence import Act, Evidence, Mean, Words
from ranker.questions import answers_factor, as_asked
from ranker.summary import Lesson, Policy, Space, Summariser
from ranker.taste import Factor
from ranker.vocabulary import Tags, Vocabulary
from services.cli import count

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
SUMMARY = "readable summaries as the only condition of the ranker: none, untrained and learned, against the posterior"
ARMS = ("none", "untrained", "learned", "posterior")
#: comparisons held out of each person, those her history is read as, and how often a training history is drawn anew
HELD, READ, ANEW = 100, 100, 8
#: acts of a history that are read
HISTORY = 100
PEOPLE = 32
#: how much of a history's comparisons is believed: chosen among these on training users
TEMPERS = (0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True, kw_only=True)
class World:
    """The log's grades and the tags of its items, rows agreeing."""

    grades: Grades
    vocabulary: Vocabulary

    @property
    def tags(self) -> Tags:
        """The tags."""
        return self.vocabulary.tags


@dataclass(frozen=True, kw_only=True)
class Model:
    """Base rewards of the world's items, its tags as they see them, and how far a history is believed."""

    world: World
    base: Base
    space: Space
    temper: float

    @property
    def tags(self) -> Tags:
        """The tags."""
        return self.world.tags

    def fused(self, *factors: Factor) -> Factor:
        """The prior and the factors, added."""
        precision, information = summary.full(self.base.prior.precision), self.base.prior.information
        for factor in factors:
            precision, information = precision + factor.precision, information + factor.information
        return Factor(precision.astype(np.float32), information.astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Person:
    """One person: what she did, the taste that this supports on top of the prior, and her held-out comparisons."""

    evidence: Evidence
    history: Factor
    lesson: Lesson


def load(paths: Sequence[Path] | None, given: Path | None = None, *, people: int = 2000) -> World:
    """Grades and tagged items.

    Args:
        people: the first so many users of the log are read.

    Raises:
        DataError: the items of the log carry nothing that can be said in words.
    """
    found = graded.load(paths, most=people)
    stream = datasets.movielens().events() if paths is None else datasets.read(paths)
    items = {event.item: event for event in stream if isinstance(event, ItemEvent)}
    if given is not None:
        config = configuration.load(given)
    elif paths is not None:
        config = datasets.infer(paths)
    else:
        fields = {"title": "text", "genres": "categories", "year": "number"}
        rate = {"name": "rate", "event": "rate", "threshold": "user-mean"}
        config = configuration.parse({"objectives": [rate], "interests": "genres", "fields": {"item": fields}})
    catalogue = Catalogue(config)
    for name in found.names:
        catalogue.put(Item(name, fields_of(items[name].fields) if name in items else {}))
    vocabulary = Vocabulary(config, catalogue)
    acts_I = np.bincount(np.concatenate(found.items), minlength=len(found.names))
    vocabulary.update(acts_I.astype(np.float64))
    if len(vocabulary.tags) < 3:
        raise DataError(found.name, list(vocabulary.tags.keys), "name a log whose item events carry categories or text")
    return World(grades=found, vocabulary=vocabulary)


#: how the experiment reads an act: liked where it is graded above the person's own mean
OBJECTIVES = (Objective(name="grade", event="grade", threshold="user-mean"),)


def person(model: Model, user: int, rng: np.random.Generator) -> Person:
    """A random half of what the user graded as her history, and comparisons among the rest."""
    items, values = model.world.grades.items[user], model.world.grades.values[user]
    order = rng.permutation(len(items))
    cut = len(order) // 2
    seen, rest = np.sort(order[:cut])[-HISTORY:], order[cut:]
    acts = tuple(
        Act(model.world.grades.names[items[place]], "grade", time, float(values[place]))
        for time, place in enumerate(seen)
    )
    evidence = Evidence(history=acts, means={"grade": Mean(len(seen), float(values[seen].sum()))})
    pairs_P2 = graded.comparisons(items[rest], values[rest], HELD, rng)
    factor = read(model, evidence)
    found = lesson(model, evidence, factor, pairs_P2)
    return Person(evidence=evidence, history=factor, lesson=found)


def read(model: Model, evidence: Evidence) -> Factor:
    """What a history says of the taste: the Laplace factor of comparisons among its items.

    An item is compared more than once, so a comparison weighs what there are items for it, times the model's temper.
    """
    rows_A = model.world.vocabulary.catalogue.find([act.item for act in evidence.history])
    values_A = np.array([act.value for act in evidence.history], np.float64)
    pairs = graded.comparisons(rows_A, values_A, READ, np.random.default_rng(0)).tolist() if len(rows_A) > 1 else []
    weights = [model.temper * min(1.0, len(rows_A) / len(pairs))] * len(pairs) if pairs else []
    asked = as_asked(pairs, ["preferred"] * len(pairs), model.base.phi_IK, model.base.intercept_I, weights)
    return answers_factor(model.base.prior, asked)


def tempered(model: Model, users: Rows, seed: int) -> Model:
    """The model with the temper under which the histories of these users foretell their held-out comparisons best."""

    def likelihood(temper: float) -> float:
        rng = np.random.default_rng(seed)
        trial = Model(world=model.world, base=model.base, space=model.space, temper=temper)
        people = [person(trial, user, rng) for user in users.tolist()]
        kept = [one for one in people if len(one.lesson.candidates.columns_C) and len(one.lesson.offsets_P)]
        means_UK = torch.from_numpy(np.stack([mean_of(model.fused(one.history)) for one in kept])).float()
        return float(summary.rewards(summary.batched([one.lesson for one in kept]), means_UK[:, None]).mean())

    best = max(TEMPERS, key=likelihood)
    return Model(world=model.world, base=model.base, space=model.space, temper=best)


def lesson(model: Model, evidence: Evidence, history: Factor, pairs_P2: Rows) -> Lesson:
    """The candidates of a history beside held-out comparisons."""
    acts, said_A = summary.appraise(evidence, OBJECTIVES)
    could = summary.candidates(
        model.tags,
        model.world.vocabulary.catalogue.find([act.item for act in acts]),
        said_A,
        np.array([act.time for act in acts], np.int64),
        space=model.space,
        taste_K=mean_of(model.fused(history)),
    )
    better, worse = pairs_P2.T
    return Lesson(
        could,
        model.base.phi_IK[better] - model.base.phi_IK[worse],
        model.base.intercept_I[better] - model.base.intercept_I[worse],
    )


def mean_of(factor: Factor) -> Array:
    """The mean of a fused factor."""
    return np.asarray(np.linalg.solve(summary.full(factor.precision), factor.information), np.float64)


def surprise(inputs_UCF: torch.Tensor) -> torch.Tensor:
    """The untrained score: by how many standard errors the tag is liked more (or less) than her rate implies."""
    return inputs_UCF[..., 1]


def train(policy: Policy, lessons: Sequence[Lesson], model: Model, *, seed: int, learn: bool, rounds: int) -> None:
    """Train what phrases mean and, where `learn`, the policy, in turns."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    steps = rounds * (len(lessons) // PEOPLE + 1)
    speaking, meaning = torch.optim.Adam(policy.speaking(), lr=0.02), torch.optim.Adam(policy.meaning(), lr=0.05)
    fades = [torch.optim.lr_scheduler.LinearLR(one, 1.0, 0.05, steps // (1 + learn)) for one in (speaking, meaning)]
    for step in range(steps):
        speaks = learn and step % 2 == 1
        summary.improve(
            policy,
            [lessons[place] for place in rng.choice(len(lessons), PEOPLE)],
            model.tags,
            model.space,
            optimiser=speaking if speaks else meaning,
            generator=generator,
            turn="policy" if speaks else "meaning",
            scorer=None if learn else surprise,
        )
        fades[0 if speaks else 1].step()


@torch.inference_mode()
def accuracy(lessons: Sequence[Lesson], z_UK: torch.Tensor) -> Array:
    """Each person's share of held-out comparisons that come out right under her taste, (U,)."""
    batch = summary.batched(lessons)
    margin_UP = torch.einsum("uk,upk->up", z_UK.float(), batch.differences_UPK) + batch.offsets_UP
    right_UP = (margin_UP > 0).float() + 0.5 * (margin_UP == 0)
    found: Array = (right_UP * batch.share_UP).sum(1).double().numpy()
    return found


@torch.inference_mode()
def summarised(
    policy: Policy, lessons: Sequence[Lesson], model: Model, scorer: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The tastes that the best phrases alone support, (U, K)."""
    batch = summary.batched(lessons)
    chosen, _, real = summary.draw(scorer(batch.inputs_UCF), batch, summary.PHRASES, 1, None)
    return summary.told(policy, batch, chosen, real, tags=model.tags, space=model.space)[:, 0]


def edits(model: Model, summariser: Summariser, person: Person, rng: np.random.Generator) -> tuple[bool, bool | None]:
    """Whether adding a random phrase, and striking a random one of the summary, moved its items the stated way.

    The person has already written up to two other phrases, at random.
    """
    tags, useful = model.tags, np.flatnonzero(model.space.spread_V > 0)
    columns = rng.choice(useful, min(3, len(useful)), replace=False)
    signs = rng.integers(0, 2, len(columns))
    said = [(tags.keys[column], int(sign)) for column, sign in zip(columns, signs, strict=True)]
    before = said[: rng.integers(0, len(said))]

    def ranks(words: Words) -> Array:
        kept = summary.masked(replace(person.evidence, words=words), model.world.vocabulary)
        known = model.fused(read(model, kept))
        z_K = mean_of(model.fused(read(model, kept), summary.words_factor(words, tags, summariser, model.space, known)))
        found: Array = rankdata(-model.base.utilities(z_K))
        return found

    def moved(key: str, sign: int, words: Words, edited: Words) -> bool:
        inside = tags.matrix_NV[:, [tags.columns[key]]].toarray()[:, 0] > 0
        was, now = (float(ranks(one)[inside].mean()) for one in (words, edited))
        first = (inside.sum() + 1) / 2  # where they all come first; from there they cannot move up, nor down from last
        end = first if sign == 0 else len(inside) + 1 - first
        return now == was if was == end else (now < was) == (sign == 0) and now != was

    words = words_of(before)
    key, sign = said[-1]
    added = moved(key, sign, words, words_of([*before, (key, sign)]))
    drawn = [
        phrase
        for phrase in summary.phrases_of(
            person.evidence,
            model.world.vocabulary,
            summariser,
            model.space,
            mean_of(model.fused(person.history)),
            objectives=OBJECTIVES,
        )
        if phrase.key not in {key for key, _ in before}
    ]
    if not drawn:
        return added, None
    phrase = drawn[rng.integers(len(drawn))]
    struck = moved(phrase.key, int(phrase.sign == "likes"), words, replace(words, struck=(phrase.signed,)))
    return added, struck


def words_of(said: Sequence[tuple[str, int]]) -> Words:
    """Written phrases as evidence."""
    return Words(tuple(key for key, sign in said if not sign), tuple(key for key, sign in said if sign))


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one seed measured: accuracy by arm and person, edits by kind, and what the learned policy says."""

    accuracy: dict[str, Array]
    edits: dict[str, Array]
    example: list[str]


def one(world: World, seed: int, *, k: int = 4, rounds: int = 10, anew: int = ANEW) -> Found:
    """One seed.

    Base rewards, policy and measurement have people of their own: base rewards flatter those they were fitted to, and a
    policy trained on these would trust them too far.
    """
    torch.set_num_threads(1)
    known, unseen = graded.split(len(world.grades), seed)
    fitted, taught = np.split(known, [len(known) * 5 // 7])
    base = graded.fit(world.grades, fitted, k=k, seed=seed)
    space = Space.of(world.tags.directions(base.phi_IK), base.prior)
    model = tempered(Model(world=world, base=base, space=space, temper=1.0), taught, seed)
    rng = np.random.default_rng([seed, 1])
    lessons = [person(model, user, rng).lesson for _ in range(anew) for user in taught.tolist()]
    people = [person(model, user, rng) for user in unseen.tolist()]
    people = [one for one in people if len(one.lesson.candidates.columns_C) and len(one.lesson.offsets_P)]
    tested = [one.lesson for one in people]
    right = {"none": accuracy(tested, torch.from_numpy(space.mean_K).expand(len(tested), -1))}
    for arm, learn in (("untrained", False), ("learned", True)):
        policy = Policy(torch.Generator().manual_seed(seed))
        train(policy, lessons, model, seed=seed, learn=learn, rounds=rounds)
        right[arm] = accuracy(tested, summarised(policy, tested, model, policy if learn else surprise))
    means_UK = np.stack([mean_of(model.fused(one.history)) for one in people])
    right["posterior"] = accuracy(tested, torch.from_numpy(means_UK))
    summariser = Summariser(policy.state_dict())
    done = [edits(model, summariser, one, rng) for one in people]
    struck = np.array([one for _, one in done if one is not None], np.float64)
    added = np.array([one for one, _ in done], np.float64)
    example = summary.phrases_of(
        people[0].evidence, world.vocabulary, summariser, space, means_UK[0], objectives=OBJECTIVES
    )
    return Found(
        accuracy=right,
        edits={"edit_direction": np.concatenate([added, struck]), "added": added, "struck": struck},
        example=wording.render(example, world.tags),
    )


def run(
    paths: Sequence[Path] | None = None,
    *,
    config: Path | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    k: int = 4,
    rounds: int = 10,
    people: int = 2000,
) -> Result:
    """All seeds, as many at a time as there are processors.

    Raises:
        DataError: the log has too few graders, or its items carry nothing that can be said in words.
    """
    world = load(paths, config, people=people)
    done = report.each_seed(partial(one, world, k=k, rounds=rounds), seeds)
    rows = [report.over_seeds(arm, "accuracy", [found.accuracy[arm].mean() for found in done]) for arm in ARMS]
    gains = [
        gain(done, arm, over)
        for arm, over in (
            ("untrained", "none"),
            ("learned", "untrained"),
            ("learned", "none"),
            ("learned", "posterior"),
        )
    ]
    moved = [
        report.over_seeds("learned", metric, [found.edits[metric].mean() for found in done])
        for metric in ("edit_direction", "added", "struck")
    ]
    return Result(
        name="summary",
        data=world.grades.name,
        seeds=tuple(seeds),
        rows=(*rows, *gains, *moved),
        criterion="accuracy: learned above untrained above none, each gain's interval above 0; "
        "edit_direction of learned at least .95",
        holds=gains[0].low > 0 and gains[1].low > 0 and moved[0].low >= 0.95,
    )


def gain(done: Sequence[Found], arm: str, over: str) -> Row:
    """How much more accurate an arm is than another: for each person, by seed; the interval is over seeds.

    A single seed has no interval over seeds: there it is over persons.
    """
    by_seed = [found.accuracy[arm] - found.accuracy[over] for found in done]
    values = by_seed[0] if len(by_seed) == 1 else [one.mean() for one in by_seed]
    return report.over_seeds(arm, f"gain over {over}", values)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when the experiment ran, whatever it found."""
    parser = report.arguments("summary", SUMMARY, seeds=5)
    parser.add_argument("--base", type=count, default=4, metavar="K", help="base rewards (default 4)")
    parser.add_argument("--people", type=count, default=2000, metavar="N", help="users read, the first of the log")
    options = parser.parse_args(arguments)
    seeds = report.seeds_of(options)
    result = run(options.events, config=options.config, seeds=seeds, k=options.base, people=options.people)
    report.publish(result, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
