"""`plurank train --method`: a plain model, a fair one beside it, and which of the two is served.

A RECONSTRUCTION of pafo2026, of which the abstract alone is public (ranker/pareto.py says what is known).

The last part of the log by time is held out. A plain model learns the rest; then, by method: the same model anew with
groups weighed (reweight, group-dro), with people sorted by which of two models explains them and the worse served first
(maxmin), with the plain model's own margins as targets (self-distil), or (pareto) with those of one teacher for each
group, fine-tuned from the plain model on its own group and reading all that is known of a person but what she did with
the items compared. Both models, and the one half way between them, meet the held-out part as a service would: evidence
grows, weights stand still. The fair one, or the one half way, is taken only if no group falls below the plain model
beyond the tolerance and the groups' mean loss is lower; else the plain one is. That one then learns the held-out part.

Axes: U users.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from msgspec import structs

from ranker import metrics
from ranker.average import Average
from ranker.balance import EVERYBODY, Known, Labels, People, privileged
from ranker.catalogue import Catalogue
from ranker.config import Config
from ranker.counters import uncount
from ranker.errors import DataError
from ranker.events import Event
from ranker.gate import utility
from ranker.groups import Groups
from ranker.heldout import Log, Splitter
from ranker.join import Example, Joiner
from ranker.learner import COMPARISON, Learner, train
from ranker.pareto import Standing, accepted, harmless
from ranker.slates import Foreseen
from ranker.teachers import Teachers, named

Say = Callable[[str], object]
T = TypeVar("T")
#: the last part of the log, by time, on which both models are judged
HELD = 0.1
#: a teacher learns at this part of the plain model's rates
GENTLE = 0.3
#: comparisons of a teacher's step, and examples judged at once
BATCH = 256
#: rounds of sorting people by which of two models explains them better
ROUNDS = 2
#: how far the models that are judged lie from the plain one towards the method's, in weights: both start from one seed
#: and take the same examples in the same order, so what lies between them is a model too
TOWARDS = (1.0, 0.5)
MEASURES = ("accuracy", "pair loss", "loss", "ndcg@10")


@dataclass
class Tally:
    """What one model did for one person in one group, on held-out data."""

    pairs: int = 0
    right: float = 0.0
    pair_loss: float = 0.0
    rows: int = 0
    loss: float = 0.0
    orders: list[float] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def measures(self) -> tuple[float, ...]:
        """As MEASURES names them; nan where there was nothing to tell it from."""
        orders = (
            [*self.orders, metrics.ndcg(np.array(self.gains), np.array(self.scores))] if self.gains else self.orders
        )
        known = [order for order in orders if np.isfinite(order)]
        return (
            self.right / self.pairs if self.pairs else np.nan,
            self.pair_loss / self.pairs if self.pairs else np.nan,
            self.loss / self.rows if self.rows else np.nan,
            float(np.mean(known)) if known else np.nan,
        )


Judged = dict[tuple[str, str], Tally]
"""By group and user."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One measure of one group: plain model, fair model, and their difference over the group's users."""

    group: str
    measure: str
    users: int
    plain: float
    fair: float
    difference: metrics.Interval


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What came out.

    Attributes:
        learner: of the model to serve, having learned the whole log.
        fair: whether it is the method's.
        reason: why, in words.
        lines: both models, by group.
    """

    learner: Learner
    catalogue: Catalogue
    now: int
    fair: bool
    reason: str
    lines: tuple[Line, ...]


def course(
    config: Config,
    log: Log,
    *,
    passes: int,
    rows: int,
    people: People | None = None,
    prepare: Callable[[Learner], object] = lambda _: None,
) -> tuple[Learner, Joiner]:
    """A new learner that went through a log so often, the last of several passes averaged, and the last pass's join."""
    learner, average = Learner(config), Average()
    joiner = Joiner(config)
    prepare(learner)
    for number in range(passes):
        uncount(learner.model.state_dict())
        joiner = Joiner(config, opening=True, pairs=True)
        for _ in train(log(), learner, joiner, rows=rows, people=people):
            if 0 < number == passes - 1:
                average.add(learner.model)
    learner.model.load_state_dict(average.weights(learner.weights()))
    return learner, joiner


def compared(config: Config, log: Log) -> Iterator[tuple[Example, Catalogue]]:
    """The comparisons of a log, and its closed slates, which hold some."""
    joiner = Joiner(config, pairs=True)
    for event in log():
        for example in joiner.push(event):
            if example.pairs or example.closing:
                yield example, joiner.catalogue
    for example in joiner.flush():
        if example.closing:
            yield example, joiner.catalogue


def teacher(plain: Learner, log: Log, people: People, own: Callable[[str], bool]) -> Learner:
    """The plain model fine-tuned on the comparisons of some people, with all that is known of them by now."""
    config = _with(plain.config, "erm")
    gentle = structs.replace(
        config.learning, rate=GENTLE * config.learning.rate, row_rate=GENTLE * config.learning.row_rate
    )
    found = Learner(structs.replace(config, learning=gentle))
    found.load(plain.state())
    waiting: list[Example] = []
    catalogue = Catalogue(config)
    for example, catalogue in compared(config, log):
        if not own(example.user):
            continue
        waiting.append(privileged(example, people.evidence.get(example.user)))
        if len(waiting) >= BATCH:
            found.learn(waiting, catalogue)
            waiting = []
    if waiting:
        found.learn(waiting, catalogue)
    return found


@dataclass
class Sorted(Labels):
    """People sorted into two sides of a field by which of two models explains them better."""

    name: str
    side: dict[str, str]

    def of(self, user: str) -> dict[str, str]:
        """The side, where it is known."""
        return {self.name: self.side[user]} if user in self.side else {}


def sort_people(plain: Learner, log: Log, people: Known, label: str, say: Say) -> Sorted:
    """Hard EM over two models (maxmin, chakraborty2024maxmin): each person to the model of lower loss, each refit.

    It begins with the half of lower and of higher preference support, or by names where that is not discovered.
    """
    groups, users = people.groups, sorted(people.evidence)
    known = {user: groups.support(user) for user in users} if isinstance(groups, Groups) else {}
    middle = float(np.median([one for one in known.values() if one is not None] or [0.0]))
    side = {}
    for user in users:
        support = known.get(user)
        below = zlib.crc32(user.encode()) % 2 == 0 if support is None else support < middle
        side[user] = "low" if below else "high"
    for number in range(ROUNDS):
        say(f"two models, round {number + 1} of {ROUNDS}")
        losses: dict[str, dict[str, float]] = {}
        for name in ("low", "high"):
            own = {user for user, one in side.items() if one == name}
            losses[name] = _losses(teacher(plain, log, Known(groups), own.__contains__), log)
        heard = losses["low"].keys() & losses["high"].keys()
        side |= {user: "low" if losses["low"][user] < losses["high"][user] else "high" for user in heard}
    return Sorted(label, side)


def _losses(learner: Learner, log: Log) -> dict[str, float]:
    """Summed loss of each person's comparisons; closed slates are left out."""
    found: Counter[str] = Counter()
    for examples, catalogue in _batched((e, c) for e, c in compared(learner.config, log) if e.pairs):
        margins_P = learner.foretell(examples, catalogue)
        for user, loss in zip(_users(examples), np.logaddexp(0, -margins_P).tolist(), strict=True):
            found[user] += loss
    return dict(found)


def judge(learner: Learner, joined: bytes, log: Log, label: str) -> Judged:
    """What a model, as it stands, does on events that come after what the join has seen, by group and person.

    A person's group is what was known of her just before; people of no group are left out.
    """
    config = learner.config
    joiner = Joiner(config, pairs=True)
    joiner.load(joined)
    found: Judged = {}

    def labelled() -> Iterator[tuple[Example, str]]:
        for event in log():
            user = getattr(event, "user", None)
            before = joiner.groups.of(user).get(label) if user is not None else None
            for example in joiner.push(event):
                group = before if example.user == user else joiner.groups.of(example.user).get(label)
                if group is not None:
                    yield example, group
        for example in joiner.flush():
            if (group := joiner.groups.of(example.user).get(label)) is not None:
                yield example, group

    for some, _ in _batched((pair, joiner.catalogue) for pair in labelled()):
        examples, groups = [example for example, _ in some], [group for _, group in some]
        tallies = [found.setdefault((g, e.user), Tally()) for e, g in zip(examples, groups, strict=True)]
        for example, tally, known in zip(examples, tallies, learner.foresee(examples, joiner.catalogue), strict=True):
            if not example.pairs:
                _add(config, tally, example, known)
        pairs = [place for place, example in enumerate(examples) if example.pairs]
        margins_P = learner.foretell([examples[place] for place in pairs], joiner.catalogue)
        owners = [tallies[place] for place in pairs for _ in examples[place].pairs]
        clear = [pair.share > 0.5 for place in pairs for pair in examples[place].pairs]
        for tally, margin, counts in zip(owners, margins_P.tolist(), clear, strict=True):
            if counts:
                tally.pairs += 1
                tally.right += 0.5 if margin == 0 else float(margin > 0)
                tally.pair_loss += float(np.logaddexp(0, -margin))
    return found


def _add(config: Config, tally: Tally, example: Example, known: Foreseen) -> None:
    """Rows that became known add to the loss; a closed slate, or rows without one, to the order."""
    labels_NT = np.where(example.mask_NT > 0, example.labels_NT, 0.0)
    gain_N = np.clip(utility(config, labels_NT), 0, None)
    if example.closing:
        tally.orders.append(metrics.ndcg(gain_N, known.utility_N) if len(gain_N) > 1 else np.nan)
        return
    if not example.ranking:
        tally.gains += gain_N.tolist()
        tally.scores += known.utility_N.tolist()
    for place, objective in enumerate(config.objectives):
        known_N = example.mask_NT[:, place] > 0
        if objective.kind == "binary" and known_N.any():
            chance_N = known.chances_NT[known_N, place].astype(np.float64)
            tally.loss += float(metrics.log_losses(labels_NT[known_N, place], chance_N).sum())
            tally.rows += int(known_N.sum())


def lines_of(plain: Judged, fair: Judged, *, seed: int = 0) -> tuple[Line, ...]:
    """Both models by group and measure: means over the users of either, and the mean of their differences."""
    found = []
    for group in sorted({group for group, _ in plain}):
        users = sorted(user for name, user in plain if name == group)
        plain_UM = np.array([plain[group, user].measures() for user in users])
        fair_UM = np.array([fair[group, user].measures() for user in users])
        for place, measure in enumerate(MEASURES):
            both_U2 = np.stack([plain_UM[:, place], fair_UM[:, place]], 1)
            both_U2 = both_U2[np.isfinite(both_U2).all(1)]
            if not len(both_U2):
                continue
            difference = metrics.mean_interval(both_U2 @ [-1.0, 1.0], generator=np.random.default_rng(seed))
            means = both_U2.mean(0).tolist()
            found.append(
                Line(
                    group=group,
                    measure=measure,
                    users=len(both_U2),
                    plain=means[0],
                    fair=means[1],
                    difference=difference,
                )
            )
    return tuple(found)


def decide(lines: Sequence[Line], *, tolerance: float) -> tuple[bool, str]:
    """Whether the fair model is taken, and why: no group may fall in accuracy or order, and the mean loss must."""

    def standing(model: str, measure: str) -> Standing:
        value = {(line.group, line.measure): getattr(line, model) for line in lines}
        groups = sorted({line.group for line in lines})
        right = tuple(value[group, measure] for group in groups if (group, measure) in value)
        loss = tuple(
            value.get((group, "loss"), 0.0) + COMPARISON * value.get((group, "pair loss"), 0.0)
            for group in groups
            if (group, measure) in value
        )
        return Standing(accuracy_G=right, loss_G=loss)

    if len({line.group for line in lines}) < 2:
        return False, "fewer than two groups were seen in the held-out part"
    for measure in ("accuracy", "ndcg@10"):
        fair, plain = standing("fair", measure), standing("plain", measure)
        if not harmless(fair, plain, tolerance=tolerance):
            return False, f"a group would fall by more than {tolerance:g} of {measure}"
    measure = "accuracy" if any(line.measure == "accuracy" for line in lines) else "ndcg@10"
    if accepted([standing("fair", measure)], standing("plain", measure), tolerance=tolerance) is None:
        return False, "the groups' mean held-out loss is no lower than the plain model's"
    return True, "no group falls, and the groups' mean held-out loss is lower"


def choose(
    fair: Learner, plain: Learner, before: Judged, judged: Callable[[Learner], Judged], *, tolerance: float
) -> tuple[bool, str, tuple[Line, ...]]:
    """Judge the method's model and what lies between it and the plain one (TOWARDS), and leave `fair` with the better.

    Args:
        before: what the plain model does.
        judged: what a model does, as `judge` says.

    Returns:
        Whether it is taken, why, and how it compares: of those that may be taken that of the lowest loss, summed over
        groups; where none may, the method's own.
    """
    ends = fair.weights(), plain.weights()
    names = [name for name, _ in fair.model.named_parameters()]
    found = []
    for share in TOWARDS:
        mixed = {name: torch.lerp(ends[1][name], ends[0][name], share) for name in names}
        fair.model.load_state_dict(ends[0] | mixed)
        lines = lines_of(before, judged(fair))
        found.append((*decide(lines, tolerance=tolerance), lines, fair.weights()))
    best = min(found, key=lambda one: (not one[0], _loss(one[2]) if one[0] else 0.0))
    taken, reason, lines, weights = best
    fair.model.load_state_dict(weights)
    return taken, reason, lines


def _loss(lines: Sequence[Line]) -> float:
    factor = {"loss": 1.0, "pair loss": COMPARISON}
    return sum(factor.get(line.measure, 0.0) * line.fair for line in lines)


def fit(config: Config, log: Log, *, passes: int = 1, rows: int = 2048, held: float = HELD, say: Say = print) -> Fitted:
    """Train by `config.fairness.method`, judge, and continue with the better one.

    Raises:
        DataError: the log has no interactions, or the configuration no group field.
    """
    method, label = config.fairness.method, config.balanced_field
    if label is None:
        raise DataError("groups", "no group field", "declare groups, or set fairness.discover")
    splitter = Splitter(log, "time", held)

    def early() -> Iterable[Event]:
        later = splitter.mark()
        return (event for event in log() if not later(event))

    def late() -> Iterable[Event]:
        later = splitter.mark()
        return (event for event in log() if later(event))

    say("the plain model")
    plain, joiner = course(_with(config, "erm"), early, passes=passes, rows=rows)
    joined, people = joiner.state(), Known(joiner.groups, joiner.evidence)
    sizes = Counter(people.groups.of(user).get(label) for user in people.evidence)
    large = sorted(str(name) for name, size in sizes.items() if name and size >= config.learning.minimum_group)
    fair = None
    if len(large) >= 2:
        fair = counterpart(config, plain, early, people, large, passes=passes, rows=rows, say=say)
    say("judging all on the held-out part")
    lines: tuple[Line, ...] = ()
    taken, reason = False, f"there are no two groups of {config.learning.minimum_group} people or more by {label}"
    if fair is not None:
        before = judge(plain, joined, late, label)
        taken, reason, lines = choose(
            fair, plain, before, lambda one: judge(one, joined, late, label), tolerance=config.fairness.tolerance
        )
    learner = fair if fair is not None and taken else plain
    say("the held-out part is learned too")
    joiner = Joiner(config, opening=True, pairs=True)
    joiner.load(joined)
    learner.advise_all = False
    for _ in train(late(), learner, joiner, rows=rows):
        pass
    return Fitted(
        learner=learner,
        catalogue=joiner.catalogue,
        now=joiner.now,
        fair=taken,
        reason=f"{method}: {reason}",
        lines=lines,
    )


def counterpart(
    config: Config, plain: Learner, log: Log, people: Known, large: Sequence[str], *, passes: int, rows: int, say: Say
) -> Learner:
    """The method's model, from new weights."""
    method, label = config.fairness.method, str(config.balanced_field)
    tensors: dict[str, torch.Tensor] = {}
    if method == "maxmin":
        people = Known(sort_people(plain, log, people, label, say), people.evidence)
    elif method == "self-distil":
        tensors = named(EVERYBODY, plain.weights())
    elif method == "pareto":
        for name in large:
            say(f"the teacher of {label}={name}")
            own = {user for user in people.evidence if people.groups.of(user).get(label) == name}
            tensors |= named(name, teacher(plain, log, people, own.__contains__).weights())

    def prepare(learner: Learner) -> None:
        learner.teachers = Teachers(config, tensors) if tensors else None
        learner.advise_all = True

    say(f"the fair model: {method}")
    return course(config, log, passes=passes, rows=rows, people=people, prepare=prepare)[0]


def _with(config: Config, method: str) -> Config:
    return structs.replace(config, fairness=structs.replace(config.fairness, method=method))


def _users(examples: Sequence[Example]) -> list[str]:
    """Whose each comparison is."""
    return [example.user for example in examples for _ in example.pairs]


def _batched(pairs: Iterable[tuple[T, Catalogue]]) -> Iterator[tuple[list[T], Catalogue]]:
    """Lists of BATCH, each with the catalogue that came last."""
    waiting: list[T] = []
    last: Catalogue | None = None
    for one, last in pairs:
        waiting.append(one)
        if len(waiting) >= BATCH:
            yield waiting, last
            waiting = []
    if waiting and last is not None:
        yield waiting, last
