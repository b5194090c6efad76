"""A version is tried on a part of the people: who gets it, and what the two arms' closed slates say of it.

People are drawn by a hash of their id and the canary's, so every replica draws the same, a larger share keeps those
it had, and the next canary meets others. What is compared is what people did: gain (the utility of their acts), and log
loss of the probabilities served, overall and by group, between people and not slate by slate. Intervals hold at every
look together (`ranker/gate.py`). Promotion and growth ask for different things: a step up the ladder for enough slates
without harm shown, promotion for harm beyond the tolerance excluded. What is shown to harm, or is not shown to be
harmless within its window, is withdrawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct

from ranker.config import Config
from ranker.gate import OVERALL, Gate, Judged, Sums, Test, Verdict
from ranker.join import Example

CURRENT, CANARY = "current", "canary"
#: slates of either arm that are looked at, the latest ones
WINDOW = 20_000
_WHOLE = 1 << 64


def drawn(user: str, version: str, share: float) -> bool:
    """Whether this user is served the canary of this version.

    Example:
        >>> few = {n for n in range(1000) if drawn(f"u{n}", "v2", 0.1)}
        >>> 80 < len(few) < 120, few <= {n for n in range(1000) if drawn(f"u{n}", "v2", 0.3)}
        (True, True)
    """
    body = f"{version}\0{user}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(body, digest_size=8).digest()) < share * _WHOLE


@dataclass(frozen=True)
class Step:
    """What is to be done with the canary; `share` is the next rung where it grows."""

    action: Literal["hold", "grow", "withdraw", "promote"]
    verdict: Verdict
    share: float = 0.0


class _State(Struct, array_like=True):
    current: str
    canary: str
    began: int
    since: int
    fresh: int
    arms: dict[str, bytes]


class Trial:
    """One canary beside one served version: the closed slates of both since it began.

    Args:
        current, canary: the versions.
        began: ms since the epoch at which the canary began; earlier slates do not count.
        minimum: a group with fewer distinct users in either arm is not tested.

    Attributes:
        since: ms at which it got its present share.
        fresh: slates of the canary since then.
    """

    def __init__(self, config: Config, current: str, canary: str, *, began: int, minimum: int | None = None) -> None:
        self.config, self.current, self.canary, self.began = config, current, canary, began
        self.since, self.fresh = began, 0
        self.arms = {arm: Sums(config, window=WINDOW) for arm in (CURRENT, CANARY)}
        rule = config.canary
        group = config.learning.minimum_group if minimum is None else minimum
        self.gate = Gate(tolerance=rule.tolerance, slates=rule.slates, full=rule.slates, group=group)

    def add(self, example: Example, groups: Mapping[str, str]) -> None:
        """Count one closed slate, if it belongs to either arm."""
        version = self.canary if example.arm == CANARY else self.current
        if example.version != version or example.served_NT is None or example.time < self.began:
            return
        arm = CANARY if example.arm == CANARY else CURRENT
        self.arms[arm].add(example, example.served_NT, groups, utility_N=example.score_N)
        self.fresh += arm == CANARY and example.time >= self.since

    def forget(self, user: str) -> None:
        """Drop the user's slates."""
        for sums in self.arms.values():
            for ranking in [name for name, judged in sums.slates.items() if judged.user == user]:
                del sums.slates[ranking]

    def grown(self, since: int) -> None:
        """The canary got another share at this moment, ms."""
        if since != self.since:
            self.since, self.fresh = since, 0

    def judge(self, share: float, now: int) -> Step:
        """What to do at this share and event time (ms)."""
        new, old = self.arms[CANARY], self.arms[CURRENT]
        rule, gate = self.config.canary, self.gate
        sizes = {"slates:canary": float(len(new)), "slates:current": float(len(old)), "share": share}
        ruin = gate.catastrophes(new)
        if ruin:
            return Step("withdraw", Verdict("refuse", tuple(ruin), sizes))
        tests = self._tests()
        error = 1 - gate.level
        measures, harms, doubts = dict(sizes), list[str](), list[str]()
        for test in tests:
            if test.judged(error / len(tests), rule.tolerance, rule.slates) == "shown":
                harms.append(test.said(error / len(tests), rule.slates))
            overall = test.name.endswith(f":{OVERALL}")
            # a group is too small for the tolerance: what its slates can exclude of equal arms with 80 % power
            margin = rule.tolerance if overall else max(rule.tolerance, gate.excludable(test, rule.slates, len(tests)))
            if test.judged(error, margin, rule.slates) != "excluded":
                doubts.append(f"{test.said(error, rule.slates)}: harm beyond {margin:.1%} is not excluded")
            measures |= {f"{test.name}:change": test.sign * test.harm, f"{test.name}:error": test.spread}
        if harms:
            return Step("withdraw", Verdict("refuse", tuple(harms), measures))
        seconds = (now - self.began) / 1000
        higher = [rung for rung in rule.ladder if rung > share]
        if self.fresh >= rule.slates:
            if higher:
                told = f"no harm is shown on {len(new)} slates of the canary"
                return Step("grow", Verdict("hold", (told,), measures), higher[0])
            if tests and not doubts:
                told = f"harm beyond {rule.tolerance:.0%} is excluded on {len(new)} slates of the canary"
                return Step("promote", Verdict("pass", (told,), measures))
        if seconds > rule.window:
            told = f"it was not shown to be harmless within {rule.window:g} s, on {len(new)} slates of the canary"
            return Step("withdraw", Verdict("hold", (told, *doubts), measures))
        told = f"{self.fresh} of {rule.slates} slates at this share"
        return Step("hold", Verdict("hold", (told, *doubts), measures))

    def _tests(self) -> list[Test]:
        members: dict[str, tuple[list[Judged], list[Judged]]] = {}
        for place, arm in enumerate((CANARY, CURRENT)):
            for judged in self.arms[arm].slates.values():
                for group in (OVERALL, *judged.groups):
                    members.setdefault(group, ([], []))[place].append(judged)
        tests = []
        for group, both in sorted(members.items()):
            users = [len({judged.user for judged in own}) for own in both]
            if min(users) < self.gate.group:
                continue
            slates = min(map(len, both))
            gain, loss = (
                [_by_user([(one.user, *values(one)) for one in own]) for own in both] for values in (_gain, _loss)
            )
            acts = float(np.mean([one.acts for one in both[1]]))
            if acts > 0:
                tests.append(Test.unpaired(f"gain:{group}", -1, gain[0], gain[1], slates, scale=acts))
            if all(own[:, 1].sum() > 0 for own in loss) and loss[1][:, 0].sum() > 0:
                tests.append(Test.unpaired(f"log_loss:{group}", 1, loss[0], loss[1], slates))
        return tests

    def state(self) -> bytes:
        """Everything, as msgpack."""
        arms = {arm: sums.state() for arm, sums in self.arms.items()}
        return msgspec.msgpack.encode(_State(self.current, self.canary, self.began, self.since, self.fresh, arms))

    @classmethod
    def load(cls, config: Config, raw: bytes, *, minimum: int | None = None) -> "Trial":
        """The trial out of `state`."""
        state = msgspec.msgpack.decode(raw, type=_State)
        trial = cls(config, state.current, state.canary, began=state.began, minimum=minimum)
        trial.since, trial.fresh = state.since, state.fresh
        for arm, kept in state.arms.items():
            trial.arms[arm].load(kept)
        return trial


def _gain(judged: Judged) -> tuple[float, float]:
    return judged.gain, 1.0


def _loss(judged: Judged) -> tuple[float, float]:
    return sum(judged.loss_T), float(sum(judged.rows_T))


def _by_user(rows: list[tuple[str, float, float]]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Sums and counts of each user, (U, 2)."""
    found: dict[str, list[float]] = {}
    for user, value, count in rows:
        mine = found.setdefault(user, [0.0, 0.0])
        mine[0] += value
        mine[1] += count
    return np.array(list(found.values()), np.float64)
