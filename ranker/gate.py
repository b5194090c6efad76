"""May this version be served? A candidate and the served version, judged on the same slates, yield a Verdict.

Both scored each slate before anybody learned from it. What counts are paired differences per slate, overall and in
every group of enough people, as intervals that hold at every look together and not at one (waudbysmith2024time): the
same window is looked at again and again. Absence of evidence is no pass. Of each (group, measure), harm is

- shown: the interval lies above 0 and reaches beyond the margin. One is enough to refuse.
- excluded: the interval ends within the margin. Needed of all to pass.
- open: anything else, which is a hold.

The margin is the tolerance, or for a small group what a full window could exclude of it; the verdict names it.
Catastrophes refuse at once, however few the slates.

Many promotions, each within its margin, may cost a group much in sum. So the candidate is also compared with an anchor,
an older version that stays the same across promotions, on the latest slates of each group however long ago they were.

Axes: N items of a slate, T objectives, U users.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtrit

from ranker.config import Config
from ranker.join import Example
from ranker.metrics import log_losses, ndcg

OVERALL = "overall"
#: a gain counts at most so many times for the place it was earned at
CLIP = 10.0
MEASURES = ("log_loss", "ndcg@10")
Decision = Literal["pass", "hold", "refuse"]


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, why, and the numbers it looked at.

    Only "pass" lets a version be promoted; "hold" means too little data to tell, "refuse" means harm.
    """

    decision: Decision
    reasons: tuple[str, ...] = ()
    measures: dict[str, float] = field(default_factory=dict)


class Judged(Struct, frozen=True, array_like=True, gc=False):
    """One slate under one version: per objective summed losses, rows and positives; order quality; health.

    `gain` is the utility of what people did, `acts` the same with every weight taken as positive: a scale above 0.
    """

    user: str
    groups: tuple[str, ...]
    loss_T: tuple[float, ...]
    rows_T: tuple[int, ...]
    positives_T: tuple[float, ...]
    ndcg: float | None
    spread: float | None
    finite: bool
    gain: float = 0.0
    acts: float = 0.0


class Sums:
    """What one version did on a sliding window of closed slates, by ranking id so that two windows can be paired.

    Args:
        window: how many slates are kept, the latest ones.
    """

    def __init__(self, config: Config, *, window: int = 5000) -> None:
        self.config, self.window = config, window
        self.slates: OrderedDict[str, Judged] = OrderedDict()
        self._binary = [place for place, objective in enumerate(config.objectives) if objective.kind == "binary"]
        self._weight_T = np.array([objective.weight for objective in config.objectives])

    def __len__(self) -> int:
        return len(self.slates)

    def add(
        self,
        example: Example,
        probabilities_NT: ArrayLike,
        groups: Mapping[str, str] | None = None,
        *,
        utility_N: ArrayLike | None = None,
    ) -> Judged:
        """Judge one closed slate, as `judged` does, and count it."""
        found = self.judged(example, probabilities_NT, groups, utility_N=utility_N)
        self.slates[example.ranking] = found
        while len(self.slates) > self.window:
            self.slates.popitem(last=False)
        return found

    def judged(
        self,
        example: Example,
        probabilities_NT: ArrayLike,
        groups: Mapping[str, str] | None = None,
        *,
        utility_N: ArrayLike | None = None,
    ) -> Judged:
        """Judge one closed slate by what the version predicted for it before it was learned.

        Clicks fall where people look, so plain gains would favour whichever version chose the places. Each gain counts
        by the inverse of what its place is worth, for all versions by the same curve: the learner's as the slate
        opened (joachims2017unbiased).

        Args:
            probabilities_NT: at the shown positions, the position tower included.
            groups: the user's group labels, field to value.
            utility_N: what the version ranked by, tower-free; without it, the probabilities' weighted sum.
        """
        chance_NT = np.asarray(probabilities_NT, np.float64)
        labels_NT, mask_NT = np.asarray(example.labels_NT, np.float64), np.asarray(example.mask_NT, np.float64)
        finite = bool(np.isfinite(chance_NT).all())
        safe_NT = chance_NT if finite else np.nan_to_num(chance_NT, nan=0.5, posinf=1.0, neginf=0.0)
        chosen = self._binary
        mask_Nt, labels_Nt = mask_NT[:, chosen], labels_NT[:, chosen]
        loss_Nt = log_losses(labels_Nt, safe_NT[:, chosen]) * mask_Nt
        score_N = safe_NT @ self._weight_T if utility_N is None else np.asarray(utility_N, np.float64)
        if not np.isfinite(score_N).all():
            score_N = np.nan_to_num(score_N)
        known_NT = weighed_NT = labels_NT * mask_NT
        if example.foreseen is not None:
            weighed_NT = known_NT / np.maximum(np.asarray(example.foreseen.worth_NT, np.float64), 1 / CLIP)
        earned_N = known_NT @ self._weight_T
        gain_N, counted_N = np.maximum(earned_N, 0), np.maximum(weighed_NT @ self._weight_T, 0)
        order = ndcg(gain_N, score_N, counted_N=counted_N) if len(gain_N) > 1 else float("nan")
        return Judged(
            user=example.user,
            groups=tuple(f"{name}={value}" for name, value in sorted((groups or {}).items())),
            loss_T=tuple(loss_Nt.sum(0).tolist()),
            rows_T=tuple(mask_Nt.sum(0).astype(int).tolist()),
            positives_T=tuple((labels_Nt * mask_Nt).sum(0).tolist()),
            ndcg=None if np.isnan(order) else order,
            spread=float(score_N.max() - score_N.min()) if len(score_N) > 1 else None,
            finite=finite,
            gain=float(earned_N.sum()),
            acts=float(np.abs(known_NT * self._weight_T).sum()),
        )

    def clear(self) -> None:
        """Forget the window, as after a promotion: the next version is compared with a new one."""
        self.slates.clear()

    def state(self) -> bytes:
        """The window as bytes, for the trainer's checkpoint."""
        return msgspec.msgpack.encode(list(self.slates.items()))

    def load(self, raw: bytes) -> None:
        """The window out of `state`."""
        self.slates = OrderedDict(msgspec.msgpack.decode(raw, type=list[tuple[str, Judged]]))


class Pair(Struct, frozen=True, array_like=True, gc=False):
    """One slate under two versions, (new, old): what the comparison needs of it."""

    user: str
    groups: tuple[str, ...]
    loss: tuple[float, float]
    ndcg: tuple[float | None, float | None]

    @classmethod
    def of(cls, new: Judged, old: Judged) -> "Pair":
        """Out of the same slate judged twice."""
        return cls(new.user, new.groups, (sum(new.loss_T), sum(old.loss_T)), (new.ndcg, old.ndcg))


class Anchor:
    """An older version and what it and the learner made of the same slates: the latest `full` of each group.

    Args:
        full: slates kept of each group, and overall; a slate goes when no group needs it.
        most: slates kept at all.

    Attributes:
        version: whose predictions the old ones are; None while there is none.
    """

    def __init__(self, *, full: int = 1000, most: int = 50_000) -> None:
        self.full, self.most = full, most
        self.version: str | None = None
        self.pairs: OrderedDict[str, Pair] = OrderedDict()
        self._lines: dict[str, deque[str]] = {}
        self._needed: Counter[str] = Counter()

    def settle(self, version: str | None) -> None:
        """Another version is the anchor from now on; nothing is known of it yet."""
        self.version = version
        self._keep({})

    def add(self, ranking: str, pair: Pair) -> None:
        """Count one slate; a second one of the same id is passed over."""
        if ranking in self.pairs:
            return
        self.pairs[ranking] = pair
        for group in (OVERALL, *pair.groups):
            line = self._lines.setdefault(group, deque())
            line.append(ranking)
            self._needed[ranking] += 1
            if len(line) > self.full:
                self._release(line)
        while len(self.pairs) > self.most:
            oldest = next(iter(self.pairs))
            for line in [line for line in self._lines.values() if line and line[0] == oldest]:
                self._release(line)

    def kept(self, group: str) -> int:
        """How many slates of the group are kept for it."""
        return len(self._lines.get(group, ()))

    def forget(self, user: str) -> None:
        """Drop the user's slates."""
        if any(pair.user == user for pair in self.pairs.values()):
            self._keep({ranking: pair for ranking, pair in self.pairs.items() if pair.user != user})

    def _release(self, line: deque[str]) -> None:
        ranking = line.popleft()
        self._needed[ranking] -= 1
        if not self._needed[ranking]:
            del self._needed[ranking], self.pairs[ranking]

    def _keep(self, pairs: Mapping[str, Pair]) -> None:
        self.pairs, self._lines, self._needed = OrderedDict(), {}, Counter()
        for ranking, pair in pairs.items():
            self.add(ranking, pair)

    def state(self) -> bytes:
        """The version and its slates as bytes, for the trainer's checkpoint."""
        return msgspec.msgpack.encode((self.version, list(self.pairs.items())))

    def load(self, raw: bytes) -> None:
        """The anchor out of `state`."""
        self.version, pairs = msgspec.msgpack.decode(raw, type=tuple[str | None, list[tuple[str, Pair]]])
        self._keep(dict(pairs))


def utility(config: Config, values_NT: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The served utility of predictions or labels: the objectives' weighted sum."""
    weights_T = np.array([objective.weight for objective in config.objectives])
    return np.asarray(values_NT @ weights_T, np.float64)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The rule that turns two windows into a Verdict.

    Attributes:
        tolerance: relative harm (of log loss or NDCG@10) that is taken in stride.
        level: confidence that all intervals together hold, at all looks: harm is shown with Bonferroni over groups and
            measures, since one refuses; it is excluded without, since all must be.
        slates: fewer common slates than this are too little data; harm is looked for in the latest so many as well, for
            a learner that went wrong late.
        full: slates of a full window; what a group's share of them can exclude of two equal versions is its margin.
        favour: share of NDCG by which the version that chose the places looks better than an equal one, in spite of
            the gains' weights; a candidate's loss counts beyond it.
        widest: a group whose margin would be above this is too small to be tested.
        group: a group with fewer distinct users is not tested (`learning.minimum_group` of the configuration).
        ceiling: a log loss above this many times that of always predicting the base rate is a catastrophe.
        collapsed: share of slates whose items all score the same that counts as collapse.
        urgent: from this many slates on, catastrophes are believed.
    """

    tolerance: float = 0.02
    level: float = 0.95
    slates: int = 200
    full: int = 1000
    favour: float = 0.0
    widest: float = 0.25
    group: int = 20
    ceiling: float = 3.0
    collapsed: float = 0.5
    urgent: int = 20

    def judge(self, candidate: Sums, current: Sums | None, anchor: Anchor | None = None) -> Verdict:
        """Compare the windows; `current` is None while no version is served.

        Harm against the `anchor` refuses as harm against the current version does, and is not needed to be excluded.

        Source: paired differences with users as clusters (linearised variance of a ratio); intervals of `reach`.
        """
        ruin = self.catastrophes(candidate)
        if ruin:
            return Verdict("refuse", tuple(ruin), {"slates": float(len(candidate))})
        if current is None:
            return Verdict("pass", ("no version is served yet, so there is nothing to harm",))
        common = [name for name in candidate.slates if name in current.slates]
        if len(common) < self.slates:
            reason = f"{len(common)} slates were scored by both versions; {self.slates} are needed"
            return Verdict("hold", (reason,), {"slates": float(len(common))})
        pairs = [Pair.of(candidate.slates[name], current.slates[name]) for name in common]
        whole = self._tests(pairs, len(pairs))
        latest = self._tests(pairs[-self.slates :], self.slates) if len(pairs) > self.slates else []
        share = (1 - self.level) / max(len(whole) + len(latest), 1)
        measures, harms, doubts = {"slates": float(len(common))}, list[str](), list[str]()
        for place, test in enumerate([*whole, *latest]):
            late = place >= len(whole)
            margin = max(self.tolerance, self.excludable(test, len(pairs), len(whole)))
            found = test.judged(share, margin if margin <= self.widest else self.tolerance, self.slates)
            if found == "shown":
                harms.append(test.said(share, self.slates) + (f" in the latest {self.slates} slates" if late else ""))
            if late:
                continue
            reach = test.spread * reach_of(test.slates, test.users, 1 - self.level, self.slates)
            measures |= {
                f"{test.name}:change": test.sign * test.harm,
                f"{test.name}:low": test.sign * test.harm - reach,
                f"{test.name}:high": test.sign * test.harm + reach,
            }
            if margin > self.widest:
                continue
            measures[f"{test.name}:margin"] = margin
            if test.judged(1 - self.level, margin, self.slates) != "excluded":
                doubts.append(f"{test.said(1 - self.level, self.slates)}: harm beyond {margin:.1%} is not excluded")
        if anchor is not None:
            lost, seen = self._since(anchor)
            harms, measures = harms + lost, measures | seen
        if harms:
            return Verdict("refuse", tuple(harms), measures)
        if doubts:
            return Verdict("hold", tuple(doubts), measures)
        margins = {name: value for name, value in measures.items() if name.endswith(":margin")}
        overall = max((value for name, value in margins.items() if f":{OVERALL}:" in name), default=self.tolerance)
        widest = max(margins.values(), default=overall)
        reason = f"harm beyond {overall:.1%} ({widest:.1%} in the smallest group) is excluded"
        return Verdict("pass", (f"{reason} on {len(common)} slates in {len(whole)} tests",), measures)

    def surpassed(self, anchor: Anchor) -> bool:
        """Whether the anchor has served its time: overall a gain is shown, and on full windows no group looks worse.

        What is merely held does not move it: versions that are equal but for chance would move it all the time, and
        with each move what a group loses within the error is forgotten.
        """
        if anchor.kept(OVERALL) < anchor.full:
            return False
        # the places were chosen by versions close to the candidate: that advantage is no gain
        tests = self._orders(anchor, -self.favour)
        return (
            any(test.judged(1 - self.level, 0.0, self.slates) == "excluded" for test in tests if OVERALL in test.name)
            and all(test.harm <= 0 for test in tests)
            and all(anchor.kept(test.name.partition(":")[2]) == anchor.full for test in tests)
        )

    def _since(self, anchor: Anchor) -> tuple[list[str], dict[str, float]]:
        """What is shown to be lost since the anchor, on the latest slates of each group."""
        if len(anchor.pairs) < self.slates:
            return [], {}
        tests = self._orders(anchor, 0.0)  # the anchor chose no places here
        share = (1 - self.level) / max(len(tests), 1)
        lost = [
            f"since {anchor.version}: {test.said(share, self.slates)}"
            for test in tests
            if test.judged(share, self.tolerance, self.slates) == "shown"
        ]
        return lost, {f"since:{test.name}:change": test.sign * test.harm for test in tests}

    def _orders(self, anchor: Anchor, favour: float) -> list["Test"]:
        """NDCG of every group since the anchor.

        Log loss is left to the window: on slates that versions close to the candidate placed, what they overrate is on
        top, and an older version's probabilities look better than they are (docs/decisions.md).
        """
        return replace(self, favour=favour)._tests(list(anchor.pairs.values()), anchor.full, measures=("ndcg@10",))

    def excludable(self, test: "Test", slates: int, tests: int) -> float:
        """The harm that a full window excludes of two equal versions, by this group's share of it.

        With 80 % power for all tests together: where there are many groups, each gets a wider margin, or equal
        versions, and many a better one, would hardly ever pass them all.
        """
        most = max(self.full / slates, 1.0)
        factor = reach_of(test.slates * most, test.users * most, 1 - self.level, self.slates)
        return float((factor + ndtri(1 - 0.2 / tests)) * test.spread / np.sqrt(most))

    def catastrophes(self, candidate: Sums) -> list[str]:
        """What needs no comparison: predictions that are not finite, have collapsed, or lose to the base rate."""
        found = []
        judged = list(candidate.slates.values())
        broken = sum(not one.finite for one in judged)
        if broken:
            found.append(f"predictions of {broken} slates are not finite")
        spreads = [one.spread for one in judged if one.spread is not None]
        flat = sum(spread < 1e-6 for spread in spreads)
        if len(spreads) >= self.urgent and flat > self.collapsed * len(spreads):
            found.append(f"all items score the same in {flat} of {len(spreads)} slates")
        if len(judged) >= self.urgent:
            loss_T, rows_T, positives_T = (
                np.array([getattr(one, name) for one in judged], np.float64).sum(0)
                for name in ("loss_T", "rows_T", "positives_T")
            )
            binary = [objective.name for objective in candidate.config.objectives if objective.kind == "binary"]
            for name, loss, rows, positives in zip(binary, loss_T, rows_T, positives_T, strict=True):
                # one pseudo-row per class: a window without positives has no entropy to compare with
                base = (positives + 1) / (rows + 2)
                entropy = -(base * np.log(base) + (1 - base) * np.log(1 - base))
                if rows and loss / rows > self.ceiling * entropy + 0.05:
                    found.append(f"log loss of {name} is {loss / rows:.3f}, the base rate alone has {entropy:.3f}")
        return found

    def _tests(self, pairs: Sequence[Pair], last: int, measures: Sequence[str] = MEASURES) -> list["Test"]:
        """These measures of every group of enough users, on its last so many slates."""
        places: dict[str, int] = {}
        user_N = np.array([places.setdefault(pair.user, len(places)) for pair in pairs])
        loss_N2 = np.array([pair.loss for pair in pairs])
        order_N2 = np.array([pair.ndcg for pair in pairs], np.float64)  # None becomes nan
        members: dict[str, list[int]] = {OVERALL: list(range(len(pairs)))}
        for place, pair in enumerate(pairs):
            for group in pair.groups:
                members.setdefault(group, []).append(place)
        return [
            test
            for group, rows in sorted(members.items())
            for measure, sign, value_N2 in (("log_loss", 1, loss_N2), ("ndcg@10", -1, order_N2))
            if measure in measures
            if (test := self._test(f"{measure}:{group}", sign, value_N2[rows[-last:]], user_N[rows[-last:]]))
        ]

    def _test(self, name: str, sign: int, value_n2: NDArray[np.float64], user_n: NDArray[np.int64]) -> "Test | None":
        """One measure of one group; None where it has too few users or nothing to lose."""
        known = ~np.isnan(value_n2).any(1)
        users, place_n = np.unique(user_n[known], return_inverse=True)
        if len(users) < self.group:
            return None
        new_U, old_U = (np.bincount(place_n, value_n2[known, side], len(users)) for side in (0, 1))
        if name.startswith("ndcg@10"):
            new_U = new_U + self.favour * old_U
        return Test.paired(name, sign, new_U, old_U, int(known.sum())) if old_U.sum() > 0 else None


@dataclass(frozen=True, slots=True)
class Test:
    """One measure of one group: how much worse the candidate is, relatively, and how sure that is.

    Attributes:
        sign: 1 where more of the measure is worse, -1 where less is.
        harm: relative change towards the worse; `spread` its standard error with users as the independent units.
    """

    __test__ = False  # not one of pytest's

    name: str
    sign: int
    harm: float
    spread: float
    users: int
    slates: int

    @classmethod
    def paired(cls, name: str, sign: int, new_U: ArrayLike, old_U: ArrayLike, slates: int) -> "Test":
        """Out of the sums of each user under both versions; `old_U` has a positive sum."""
        new, old = np.asarray(new_U, np.float64), np.asarray(old_U, np.float64)
        n, total = len(new), old.sum()
        change = (new - old).sum() / total
        spread = np.sqrt(n / max(n - 1, 1) * np.square(new - old - change * old).sum()) / total
        return cls(name, sign, float(sign * change), float(spread), n, slates)

    @classmethod
    def unpaired(
        cls, name: str, sign: int, new_U2: ArrayLike, old_U2: ArrayLike, slates: int, *, scale: float | None = None
    ) -> "Test":
        """Out of each user's (sum, count) under one version or the other.

        Args:
            scale: what the difference of the two means is relative to; without it, the old mean, whose own error then
                counts as well.
        """
        means, errors = [], []
        for pair in (new_U2, old_U2):
            sum_U, count_U = np.asarray(pair, np.float64).T
            mean = sum_U.sum() / count_U.sum()
            n = len(sum_U)
            errors.append(n / max(n - 1, 1) * np.square(sum_U - mean * count_U).sum() / count_U.sum() ** 2)
            means.append(mean)
        (new, old), (new_error, old_error) = means, errors
        ratio, by = (new / old, old) if scale is None else (1.0, scale)
        spread = np.sqrt(new_error + ratio**2 * old_error) / by
        users = min(len(np.asarray(new_U2)), len(np.asarray(old_U2)))
        return cls(name, sign, float(sign * (new - old) / by), float(spread), users, slates)

    def judged(self, error: float, margin: float, tuned: int) -> Literal["shown", "excluded", "open"]:
        """What the one-sided intervals of this error say of the harm."""
        reach = self.spread * reach_of(self.slates, self.users, error, tuned)
        if self.harm + reach <= margin:
            return "excluded"
        return "shown" if self.harm - reach > 0 else "open"

    def said(self, error: float, tuned: int) -> str:
        """The change in words."""
        reach = self.spread * reach_of(self.slates, self.users, error, tuned)
        measure, _, group = self.name.partition(":")
        change = self.sign * self.harm
        word = "rose" if change > 0 else "fell"
        return f"{measure} of {group} {word} by {abs(change):.1%} ({change - reach:+.1%} to {change + reach:+.1%})"


def reach_of(slates: float, users: float, error: float, tuned: float) -> float:
    """How many standard errors a one-sided bound lies away that is to hold at all looks together.

    For a single look with error .05 it would be 1.64; here it is 2.8 at `tuned` slates, where it is narrowest. Few
    users widen it as they do Student's t.

    Source: waudbysmith2024time, the one-sided asymptotic confidence sequence of the normal mixture. Differences: time
    is slates while the variance comes from users, and the window slides, so the guarantee is only as good as the
    simulation (`plurank experiment gate`) finds it.

    Example:
        >>> round(reach_of(200, 1e6, 0.05, 200), 2), round(reach_of(2000, 1e6, 0.05, 200), 2)
        (2.78, 3.01)
    """
    rho = (-2 * np.log(2 * error) + np.log(-2 * np.log(2 * error)) + 1) / tuned if error < 0.18 else 1 / tuned
    time = slates * rho
    factor = np.sqrt(2 * (time + 1) / time * np.log1p(np.sqrt(time + 1) / (2 * error)))
    return float(-stdtrit(max(users - 1, 1), ndtr(-factor)))
