"""People whose tastes are known, so that satisfaction can be told from clicks.

`Audience` is half real: its truth is the part of MovieLens's ratings that no first model may see; only its eye (the
examination curve) is made up. `Population` is synthetic throughout: every preference is known, so that it can judge
whatever a service picks from a whole catalogue. Both know no service: they ask, are shown a slate, and react with
events; `visit` closes that loop over two callables.

Position bias is the examination hypothesis of craswell2008experimental: who does not look cannot click.
Axes: U users, N items, K taste dimensions, C categories, P positions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ranker import events
from ranker.datasets import MovieLens
from ranker.errors import ConfigError
from ranker.events import Event, Field

Rank = Callable[[str, Sequence[str]], tuple[str, Sequence[str]]]
"""(user, items) -> (ranking id, items in shown order)."""
Observe = Callable[[Event], object]

TOP = 10
"""satisfaction looks at this many first positions"""


def examination(positions: int = 100, *, decay: float = 0.5) -> NDArray[np.float64]:
    """The chance that each position is looked at: (1 + position) ** -decay.

    Example:
        >>> examination(4, decay=1.0).round(2).tolist()
        [1.0, 0.5, 0.33, 0.25]
    """
    return np.asarray((1.0 + np.arange(positions)) ** -decay)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What one visit wants ranked; `items` is empty where the service is to choose from its catalogue."""

    user: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """What came of one visit.

    Attributes:
        events: the reactions, in time order.
        satisfaction: by truth, not clicks: share of the first ten positions that she likes.
        oracle: the same for the best possible order, `chance` the expectation of a random one.
        fresh: share of the first ten that this person was never shown before.
    """

    user: str
    events: tuple[Event, ...]
    satisfaction: float
    oracle: float
    chance: float
    fresh: float
    group: str = ""


class Crowd(Protocol):
    """Either kind of people."""

    def ask(self) -> Ask:
        """The next visit's request."""
        ...

    def react(self, ask: Ask, shown: Sequence[str], *, ranking: str, now: int) -> Visit:
        """What she does with the slate `ranking` shown to her at `now` (ms)."""
        ...


def visit(crowd: Crowd, rank: Rank, observe: Observe, *, now: int) -> Visit:
    """One whole visit: ask, be shown a slate, react; every reaction goes to `observe`."""
    ask = crowd.ask()
    ranking, shown = rank(ask.user, ask.items)
    found = crowd.react(ask, shown, ranking=ranking, now=now)
    for event in found.events:
        observe(event)
    return found


@dataclass
class Satisfaction:
    """Running means over visits, from the truth.

    Example:
        >>> running = Satisfaction()
        >>> running.add(Visit(user="u", events=(), satisfaction=0.5, oracle=1.0, chance=0.25, fresh=1.0))
        >>> running.mean, round(running.regained, 2)
        (0.5, 0.33)
    """

    visits: int = 0
    total: float = 0.0
    oracle: float = 0.0
    chance: float = 0.0
    fresh_visits: int = 0
    fresh_total: float = 0.0
    groups: dict[str, tuple[int, float]] = field(default_factory=dict)

    def add(self, visit: Visit) -> None:
        """Count one visit."""
        self.visits += 1
        self.total += visit.satisfaction
        self.oracle += visit.oracle
        self.chance += visit.chance
        if visit.fresh == 1:
            self.fresh_visits += 1
            self.fresh_total += visit.satisfaction
        count, total = self.groups.get(visit.group, (0, 0.0))
        self.groups[visit.group] = count + 1, total + visit.satisfaction

    @property
    def mean(self) -> float:
        """Mean satisfaction; nan before the first visit."""
        return self.total / self.visits if self.visits else float("nan")

    @property
    def fresh(self) -> float:
        """Mean satisfaction over visits that showed nothing she had been shown before; nan without any."""
        return self.fresh_total / self.fresh_visits if self.fresh_visits else float("nan")

    @property
    def regained(self) -> float:
        """Where the mean lies between a random order (0) and the best possible one (1)."""
        room = self.oracle - self.chance
        return (self.total - self.chance) / room if room > 0 else float("nan")


class Audience:
    """MovieLens's people, whose hidden ratings are the truth; their eyes are synthetic.

    Each person's ratings are split once, at random, into history, which the first model may train on, and truth.
    A visit asks for an order of some of the person's truth items. She looks at positions by the examination curve,
    clicks what she looks at and rated 4 or 5, likes what she rated 5 and dismisses what she rated 1 or 2.

    Args:
        movielens: the ratings.
        history: share of each person's ratings that goes to the history.
        items: fewest and most candidates of a visit; people with fewer truth items rank all they have.
        curve: examination by position; beyond its end nothing is looked at.

    Attributes:
        history_rows, truth_rows: rows of the ratings.
    """

    def __init__(
        self,
        movielens: MovieLens,
        *,
        seed: int = 0,
        history: float = 0.5,
        items: tuple[int, int] = (30, 60),
        curve: NDArray[np.float64] | None = None,
    ) -> None:
        if not 0 < history < 1:
            raise ConfigError("history", history, "give a share between 0 and 1")
        self._movielens, self._items = movielens, items
        self.curve = examination() if curve is None else curve
        split, self._generator = np.random.default_rng(seed).spawn(2)
        place_N = split.permutation(len(movielens))
        user_N = np.unique(movielens.users_N, return_inverse=True)[1]
        order = np.lexsort((place_N, user_N))
        counts_U = np.bincount(user_N)
        within_N = np.empty(len(order), np.int64)
        within_N[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts_U) - counts_U, counts_U)
        held_N = within_N >= np.ceil(counts_U[user_N] * history)
        self.history_rows, self.truth_rows = np.flatnonzero(~held_N), np.flatnonzero(held_N)
        self._truth: dict[str, dict[str, float]] = {}
        for row in self.truth_rows:
            rated = self._truth.setdefault(str(movielens.users_N[row]), {})
            rated[str(movielens.items_N[row])] = float(movielens.values_N[row])
        self.users = sorted(user for user, rated in self._truth.items() if len(rated) >= TOP)
        self._shown: dict[str, set[str]] = {}

    def events(self) -> Iterator[Event]:
        """What the first model may know: films, people and the history's ratings, in time order."""
        return self._movielens.events(self.history_rows)

    def ask(self) -> Ask:
        """A random person with a random choice of her truth items, in random order."""
        user = self.users[int(self._generator.integers(len(self.users)))]
        rated = sorted(self._truth[user])
        count = min(int(self._generator.integers(self._items[0], self._items[1] + 1)), len(rated))
        return Ask(user=user, items=tuple(str(i) for i in self._generator.permutation(rated)[:count]))

    def react(self, ask: Ask, shown: Sequence[str], *, ranking: str, now: int) -> Visit:
        """What she does with the slate; reactions follow each other by 100 ms, well within the shortest wait."""
        rated = self._truth[ask.user]
        curve_P = np.zeros(len(shown))
        curve_P[: len(self.curve)] = self.curve[: len(shown)]
        found: list[Event] = []
        for place in np.flatnonzero(self._generator.random(len(shown)) < curve_P).tolist():
            grade = rated.get(shown[place], 3.0)
            kinds = ["click"] * (grade >= 4) + ["like"] * (grade >= 5) + ["dismiss"] * (grade <= 2)
            for kind in kinds:
                found.append(_reaction(ask.user, shown[place], kind, ranking, now + 100 * (len(found) + 1)))
        liked = [rated.get(item, 0.0) >= 4 for item in shown[:TOP]]
        good = sum(rated[item] >= 4 for item in ask.items)
        known = self._shown.setdefault(ask.user, set())
        fresh = np.mean([item not in known for item in shown[:TOP]]) if shown else 1.0
        known.update(shown)
        return Visit(
            user=ask.user,
            events=tuple(found),
            satisfaction=float(np.mean(liked)) if liked else 0.0,
            oracle=min(good, TOP) / min(len(ask.items), TOP),
            chance=good / len(ask.items),
            fresh=float(fresh),
        )


def _reaction(user: str, item: str, kind: str, ranking: str, time: int) -> Event:
    return events.Interaction(
        id=f"{ranking}-{item}-{kind}", timestamp=time, user=user, item=item, type=kind, ranking=ranking
    )


@dataclass(frozen=True, kw_only=True)
class Tastes:
    """The make-up of a synthetic population.

    Attributes:
        shares: how the people divide into taste groups, largest first, for example (0.9, 0.1).
        cosine: between the taste directions of any two groups (-1 opposed .. 1 equal).
        spread: how far people stray from their group's direction.
        sharpness: scale of the logit; larger means more decided people.
        noise: share of reactions that are the opposite of what she feels.
    """

    users: int = 1000
    items: int = 1000
    categories: int = 8
    dimensions: int = 8
    shares: tuple[float, ...] = (0.8, 0.2)
    cosine: float = -0.3
    spread: float = 0.5
    sharpness: float = 2.0
    noise: float = 0.05
    seed: int = 0


class Population:
    """People and items that never were; the whole preference matrix is known.

    Items lie around the direction of their category in a K-dimensional space, people around the direction of their
    taste group; she likes an item with probability sigmoid(sharpness * (taste . item + quality)). A visit asks for a
    recommendation from the whole catalogue. She clicks what she looks at and likes, and dismisses a part of the rest.

    Shapes: likes_UN: probability that user u likes item i.
    """

    def __init__(self, tastes: Tastes | None = None, *, curve: NDArray[np.float64] | None = None) -> None:
        self.tastes = t = tastes or Tastes()
        if abs(sum(t.shares) - 1) > 1e-6 or min(t.shares) < 0:
            raise ConfigError("shares", t.shares, "give shares that are not negative and sum to 1")
        groups = len(t.shares)
        if not -1 / max(groups - 1, 1) - 1e-9 <= t.cosine <= 1:
            raise ConfigError("cosine", t.cosine, f"{groups} directions can be no further apart than -1/(groups - 1)")
        if t.dimensions < groups:
            raise ConfigError("dimensions", t.dimensions, f"{groups} taste groups need as many dimensions")
        build, self._generator = np.random.default_rng(t.seed).spawn(2)
        self.curve = examination() if curve is None else curve
        gram = np.full((groups, groups), t.cosine) + (1 - t.cosine) * np.eye(groups)
        values, vectors = np.linalg.eigh(gram)
        basis, _ = np.linalg.qr(build.normal(size=(t.dimensions, groups)))
        self.directions_GK = (vectors * np.sqrt(np.clip(values, 0, None))) @ basis.T
        self.group_U = np.repeat(np.arange(groups), _apportioned(t.users, t.shares))
        stray_UK = build.normal(scale=t.spread / np.sqrt(t.dimensions), size=(t.users, t.dimensions))
        self.taste_UK = self.directions_GK[self.group_U] + stray_UK
        centre_CK = build.normal(size=(t.categories, t.dimensions))
        centre_CK /= np.linalg.norm(centre_CK, axis=1, keepdims=True)
        self.category_N = build.integers(t.categories, size=t.items)
        stray_NK = build.normal(scale=0.5 / np.sqrt(t.dimensions), size=(t.items, t.dimensions))
        self.item_NK = centre_CK[self.category_N] + stray_NK
        quality_N = build.normal(scale=0.3, size=t.items) - 0.5
        self.likes_UN = 1 / (1 + np.exp(-t.sharpness * (self.taste_UK @ self.item_NK.T + quality_N)))
        self.users = [f"p{place}" for place in range(t.users)]
        self.items = [f"s{place}" for place in range(t.items)]
        self._rows = {item: place for place, item in enumerate(self.items)}
        self._places = {user: place for place, user in enumerate(self.users)}
        self._shown: dict[str, set[str]] = {}

    def events(self, *, ratings: int = 0, start: int = 0) -> Iterator[Event]:
        """Items, people, and `ratings` random likes and dismissals of each person, one millisecond apart."""
        for place, item in enumerate(self.items):
            named = [Field("genres", [f"c{self.category_N[place]}"])]
            yield events.Item(id=f"item-{item}", timestamp=start, item=item, fields=named)
        for place, user in enumerate(self.users):
            group = [Field("taste_group", f"g{self.group_U[place]}")]
            yield events.User(id=f"user-{user}", timestamp=start, user=user, fields=group)
        order = self._generator.permutation(np.repeat(np.arange(len(self.users)), ratings))
        for number, place in enumerate(order):
            row = int(self._generator.integers(len(self.items)))
            kind = "like" if self._generator.random() < self.likes_UN[place, row] else "dismiss"
            yield events.Interaction(
                id=f"past-{number}", timestamp=start + number, user=self.users[place], item=self.items[row], type=kind
            )

    def ask(self) -> Ask:
        """A random person; the service chooses the items."""
        return Ask(user=self.users[int(self._generator.integers(len(self.users)))])

    def react(self, ask: Ask, shown: Sequence[str], *, ranking: str, now: int) -> Visit:
        """What she does with the slate; satisfaction is the mean true probability of liking the first ten."""
        place = self._places[ask.user]
        likes_N = self.likes_UN[place]
        rows = [self._rows[item] for item in shown]
        curve_P = np.zeros(len(rows))
        curve_P[: len(self.curve)] = self.curve[: len(rows)]
        looked, felt, slipped, bothers = self._generator.random((4, len(rows)))
        found: list[Event] = []
        for position in np.flatnonzero(looked < curve_P).tolist():
            liked = (felt[position] < likes_N[rows[position]]) != (slipped[position] < self.tastes.noise)
            kinds = ["click", "like"] if liked else ["dismiss"] if bothers[position] < 0.3 else []
            for kind in kinds:
                found.append(_reaction(ask.user, shown[position], kind, ranking, now + 100 * (len(found) + 1)))
        known = self._shown.setdefault(ask.user, set())
        fresh = np.mean([item not in known for item in shown[:TOP]]) if rows else 1.0
        known.update(shown)
        top = max(min(len(rows), TOP), 1)
        return Visit(
            user=ask.user,
            events=tuple(found),
            satisfaction=float(likes_N[rows[:TOP]].mean()) if rows else 0.0,
            oracle=float(np.sort(likes_N)[::-1][:top].mean()),
            chance=float(likes_N.mean()),
            fresh=float(fresh),
            group=f"g{self.group_U[place]}",
        )


def _apportioned(total: int, shares: Sequence[float]) -> NDArray[np.int64]:
    """`total` in whole people by share, the largest remainders rounded up."""
    exact = np.asarray(shares) * total
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts
