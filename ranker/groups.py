"""Who belongs to which group: declared in user events, and discovered by how many others share a person's preferences.

Groups serve training and judgement. Serving folds evidence only (ranker/evidence.py drops labels), so a score cannot
depend on what is kept here. `Groups` is a view of the log in a namespace of its own: the same events in the same order
give the same labels, bit for bit, and what is kept of a person goes when she is forgotten.

The discovered field is `support`. A comparison's support is the share of OTHER people who take the same side. Pairs
seldom recur, so it is told from a rating of each item, as the comparisons heard before left it; a comparison whose
items few have compared says little, and counts little. A person's support is the mean over her comparisons, and who
lies below the valley between the two components of the population (ranker/support.py) is of the minority.

A value that fewer than `learning.minimum_group` people have is withheld: `Groups.of` does not name it.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping

import numpy as np
from msgspec import MsgspecError, Struct, msgpack

from ranker import events
from ranker.config import SUPPORT, Config
from ranker.errors import CheckpointError
from ranker.events import User
from ranker.support import boundary

MAJORITY, MINORITY = "majority", "minority"
#: raters of an item for whom the mean support stands in: half of the say is theirs once so many were heard
RATERS = 4.0
#: comparisons of a person for which the population's mean stands in
OWN = 3.0
#: comparisons before a person is put in either group
LEAST = 5
#: a person's later comparisons count as if she had made so many, and the population's likewise
WINDOW, OVERALL = 200, 20_000
#: the first step of an item's rating, in nats; it falls with the root of its comparisons, down to the last
STEP, LAST_STEP = 1.2, 0.05
#: comparisons between two looks for the valley, and people who are looked at
REFIT, LOOKED_AT = 1000, 5000


class _Person(Struct, array_like=True, gc=False):
    """Comparisons, and of those the sum of weights and of weighted excess over the mean support."""

    count: int = 0
    weight: float = 0.0
    excess: float = 0.0


class _State(Struct, array_like=True):
    declared: list[tuple[str, dict[str, str]]]
    ratings: list[tuple[str, float, int]]
    people: list[tuple[str, _Person]]
    mean: float
    heard: int
    edge: float | None


class Groups(Mapping[str, dict[str, str]]):
    """The groups of the people of a log. As a mapping: the declared labels as they are, for their own keeper only.

    Bounded: whoever keeps this forgets those whose evidence it drops, and more than `users` are never kept.

    Args:
        users, items: at most so many people's supports, and so many items' ratings, the latest ones.

    Example:
        >>> from ranker.config import parse
        >>> from ranker.events import Field, User
        >>> toml = {"objectives": [{"name": "click", "event": "click"}], "groups": ["age"]}
        >>> groups = Groups(parse(toml | {"learning": {"minimum_group": 2}}))
        >>> for user in ("ada", "bob"):
        ...     groups.declare(User(id=user, timestamp=1, user=user, fields=[Field("age", "old")]))
        >>> groups.of("ada"), groups.of("eve")
        ({'age': 'old'}, {})
    """

    def __init__(self, config: Config, *, users: int = 200_000, items: int = 100_000) -> None:
        self._fields, self._discover = frozenset(config.groups), config.fairness.discover
        self._least, self._users, self._items = config.learning.minimum_group, users, items
        self._declared: dict[str, dict[str, str]] = {}
        self._sizes: Counter[tuple[str, str]] = Counter()
        self._ratings: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._people: OrderedDict[str, _Person] = OrderedDict()
        self._mean, self._heard, self._edge = 0.5, 0, -math.inf

    def __getitem__(self, user: str) -> dict[str, str]:
        return self._declared[user]

    def __iter__(self) -> Iterator[str]:
        return iter(self._declared)

    def __len__(self) -> int:
        return len(self._declared)

    def of(self, user: str) -> dict[str, str]:
        """Field to value of the groups this person belongs to; groups under the minimum size are not named."""
        found = {
            name: value
            for name, value in self._declared.get(user, {}).items()
            if self._sizes[name, value] >= self._least
        }
        if math.isfinite(self._edge) and (support := self.support(user)) is not None:
            found[SUPPORT] = MINORITY if support < self._edge else MAJORITY
        return found

    def support(self, user: str) -> float | None:
        """The mean preference support rate of this person's comparisons; None before LEAST of them.

        Her own earlier comparisons are among those heard, each as one voice of many; what she says is judged first.
        Shrunk to the population's mean where she made few, or few have compared the same items.
        """
        person = self._people.get(user)
        if person is None or person.count < LEAST:
            return None
        return self._mean + person.excess / (person.weight + OWN)

    def declare(self, event: User) -> None:
        """Take labels out of a user event; null removes one."""
        for name, value in events.fields_of(event.fields).items():
            if name not in self._fields:
                continue
            mine = self._declared.get(event.user, {})
            if (before := mine.get(name)) is not None:
                self._sizes[name, before] -= 1
            if value is None:
                mine.pop(name, None)
            else:
                text = str(value).lower() if isinstance(value, bool) else str(value)
                self._declared.setdefault(event.user, mine)[name] = text
                self._sizes[name, text] += 1

    def compare(self, user: str, preferred: str, over: str) -> None:
        """Hear a comparison: first what support it has among those heard before, then what it says of the items."""
        if not self._discover or preferred == over:
            return
        (first, rated_first), (second, rated_second) = (self._ratings.get(one, (0.0, 0)) for one in (preferred, over))
        support = 1 / (1 + math.exp(second - first))
        raters = min(rated_first, rated_second)
        weight = raters / (raters + RATERS)
        person = self._people.setdefault(user, _Person())
        self._people.move_to_end(user)
        fade = 1.0 if person.count < WINDOW else 1 - 1 / WINDOW
        person.count += 1
        person.weight = fade * person.weight + weight
        # in excess of the mean at the time: ratings that have yet to settle make nobody a minority
        person.excess = fade * person.excess + weight * (support - self._mean)
        self._heard += 1
        self._mean += weight * (support - self._mean) / min(self._heard, OVERALL)
        surprise = 1 - support
        for item, rating, rated, sign in ((preferred, first, rated_first, 1), (over, second, rated_second, -1)):
            step = max(STEP / math.sqrt(1 + rated), LAST_STEP)
            self._ratings[item] = rating + sign * step * surprise, rated + 1
            self._ratings.move_to_end(item)
        for kept, most in ((self._ratings, self._items), (self._people, self._users)):
            while len(kept) > most:
                kept.popitem(last=False)
        if self._heard % REFIT == 0:
            self._look()

    def forget(self, user: str) -> None:
        """Drop everything kept of this person. What she said of items stays in their ratings, as one voice of many."""
        for name, value in self._declared.pop(user, {}).items():
            self._sizes[name, value] -= 1
        self._people.pop(user, None)

    def _look(self) -> None:
        """Find the valley anew; where either side would hold fewer than the minimum, there are no two groups."""
        known = [support for user in self._people if (support := self.support(user)) is not None]
        supports = np.array(known[:: 1 + len(known) // LOOKED_AT])
        edge = boundary(supports)
        lower = int((np.array(known) < edge).sum())
        self._edge = edge if min(lower, len(known) - lower) >= self._least else -math.inf

    def state(self) -> bytes:
        """Everything, as msgpack; `load` gives groups that go on exactly like these."""
        return msgpack.encode(
            _State(
                declared=list(self._declared.items()),
                ratings=[(item, rating, rated) for item, (rating, rated) in self._ratings.items()],
                people=list(self._people.items()),
                mean=self._mean,
                heard=self._heard,
                edge=self._edge if math.isfinite(self._edge) else None,
            )
        )

    def load(self, raw: bytes) -> None:
        """Take up what `state` wrote; labels of fields that are no longer declared are left out.

        Raises:
            CheckpointError: these are not the bytes of a state.
        """
        try:
            state = msgpack.decode(raw, type=_State)
        except MsgspecError as error:
            raise CheckpointError("groups", len(raw), f"{error}; move the checkpoint away and start anew") from None
        self._declared = {
            user: kept
            for user, labels in state.declared
            if (kept := {name: value for name, value in labels.items() if name in self._fields})
        }
        self._sizes = Counter(pair for labels in self._declared.values() for pair in labels.items())
        self._ratings = OrderedDict((item, (rating, rated)) for item, rating, rated in state.ratings)
        self._people = OrderedDict(state.people)
        self._mean, self._heard = state.mean, state.heard
        self._edge = -math.inf if state.edge is None else state.edge
