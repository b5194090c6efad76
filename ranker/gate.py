"""May this version be served? A candidate and the served version, judged on the same slates, yield a Verdict.

Both scored each slate before anybody learned from it. What counts are paired differences per slate, overall and in
every group that is large enough to be told apart from chance. First form: a candidate passes when enough slates are
there and none of the intervals shows harm beyond the tolerance; catastrophes refuse at once, however few the slates.

Axes: N items of a slate, T objectives, U users.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from ranker.config import Config
from ranker.join import Example
from ranker.metrics import log_losses, ndcg

OVERALL = "overall"
#: a gain counts at most so many times for the place it was earned at
CLIP = 10.0
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
    """One slate under one version: per objective summed losses, rows and positives; order quality; health."""

    user: str
    groups: tuple[str, ...]
    loss_T: tuple[float, ...]
    rows_T: tuple[int, ...]
    positives_T: tuple[float, ...]
    ndcg: float | None
    spread: float | None
    finite: bool


class Sums:
    """What one version did on a sliding window of closed slates, by ranking id so that two windows can be paired.

    Args:
        window: how many slates are kept, the latest ones.
    """

    def __init__(self, config: Config, *, window: int = 5000) -> None:
        self.config, self.window = config, window
        self.slates: OrderedDict[str, Judged] = OrderedDict()
        self._binary = [place for place, objective in enumerate(config.objectives) if objective.kind == "binary"]

    def __len__(self) -> int:
        return len(self.slates)

    def add(
        self,
        example: Example,
        probabilities_NT: ArrayLike,
        groups: Mapping[str, str] | None = None,
        *,
        utility_N: ArrayLike | None = None,
    ) -> None:
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
        safe_NT = np.nan_to_num(chance_NT, nan=0.5, posinf=1.0, neginf=0.0)
        chosen = self._binary
        mask_Nt = mask_NT[:, chosen]
        loss_Nt = log_losses(labels_NT[:, chosen], np.clip(safe_NT[:, chosen], 0, 1)) * mask_Nt
        score_N = np.nan_to_num(
            utility(self.config, safe_NT) if utility_N is None else np.asarray(utility_N, np.float64)
        )
        worth_NT = np.ones_like(mask_NT) if example.foreseen is None else example.foreseen.worth_NT
        known_NT = labels_NT * mask_NT
        weighed_NT = known_NT / np.maximum(np.asarray(worth_NT, np.float64), 1 / CLIP)
        gain_N, counted_N = (np.clip(utility(self.config, some_NT), 0, None) for some_NT in (known_NT, weighed_NT))
        order = ndcg(gain_N, score_N, counted_N=counted_N) if len(gain_N) > 1 else float("nan")
        self.slates[example.ranking] = Judged(
            user=example.user,
            groups=tuple(f"{name}={value}" for name, value in sorted((groups or {}).items())),
            loss_T=tuple(loss_Nt.sum(0).tolist()),
            rows_T=tuple(mask_Nt.sum(0).astype(int).tolist()),
            positives_T=tuple((labels_NT[:, chosen] * mask_Nt).sum(0).tolist()),
            ndcg=None if np.isnan(order) else order,
            spread=float(np.ptp(score_N)) if len(score_N) > 1 else None,
            finite=finite,
        )
        while len(self.slates) > self.window:
            self.slates.popitem(last=False)

    def clear(self) -> None:
        """Forget the window, as after a promotion: the next version is compared with a new one."""
        self.slates.clear()

    def state(self) -> bytes:
        """The window as bytes, for the trainer's checkpoint."""
        return msgspec.msgpack.encode(list(self.slates.items()))

    def load(self, raw: bytes) -> None:
        """The window out of `state`."""
        self.slates = OrderedDict(msgspec.msgpack.decode(raw, type=list[tuple[str, Judged]]))


def utility(config: Config, values_NT: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The served utility of predictions or labels: the objectives' weighted sum."""
    weights_T = np.array([objective.weight for objective in config.objectives])
    return np.asarray(values_NT @ weights_T, np.float64)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The rule that turns two windows into a Verdict.

    Attributes:
        tolerance: relative harm (of log loss or NDCG@10) that is taken in stride.
        level: confidence that all intervals together hold (Bonferroni over groups and measures).
        slates: fewer common slates than this are too little data.
        group: a group with fewer distinct users is not tested (`learning.minimum_group` of the configuration).
        ceiling: a log loss above this many times that of always predicting the base rate is a catastrophe.
        collapsed: share of slates whose items all score the same that counts as collapse.
        urgent: from this many slates on, catastrophes are believed.
    """

    tolerance: float = 0.02
    level: float = 0.95
    slates: int = 200
    group: int = 20
    ceiling: float = 3.0
    collapsed: float = 0.5
    urgent: int = 20

    def judge(self, candidate: Sums, current: Sums | None) -> Verdict:
        """Compare the windows; `current` is None while no version is served.

        Source: paired differences with users as clusters (linearised variance of a ratio), Student's t intervals.
        """
        ruin = self._catastrophes(candidate)
        if ruin:
            return Verdict("refuse", tuple(ruin), {"slates": float(len(candidate))})
        if current is None:
            return Verdict("pass", ("no version is served yet, so there is nothing to harm",))
        common = [name for name in candidate.slates if name in current.slates]
        if len(common) < self.slates:
            reason = f"{len(common)} slates were scored by both versions; {self.slates} are needed"
            return Verdict("hold", (reason,), {"slates": float(len(common))})
        pairs = [(candidate.slates[name], current.slates[name]) for name in common]
        tests = list(self._tests(pairs))
        level = 1 - (1 - self.level) / max(len(tests), 1)
        measures, harms = {"slates": float(len(common))}, []
        for group, measure, sign, pair_U in tests:
            change, low, high = _change(pair_U, level)
            name = f"{measure}:{group}"
            measures |= {f"{name}:change": change, f"{name}:low": low, f"{name}:high": high}
            harm = low if sign > 0 else -high
            if harm > self.tolerance:
                word = "rose" if sign > 0 else "fell"
                harms.append(f"{measure} of {group} {word} by {abs(change):.1%} ({low:+.1%} to {high:+.1%})")
        if harms:
            return Verdict("refuse", tuple(harms), measures)
        reason = f"no harm beyond {self.tolerance:.0%} shown on {len(common)} slates in {len(tests)} tests"
        return Verdict("pass", (reason,), measures)

    def _catastrophes(self, candidate: Sums) -> list[str]:
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

    def _tests(self, pairs: list[tuple[Judged, Judged]]) -> list[tuple[str, str, int, NDArray[np.float64]]]:
        """(group, measure, sign of harm, per user the sums of difference and of the current value)."""
        members: dict[str, dict[str, list[tuple[Judged, Judged]]]] = {}
        for new, old in pairs:
            for group in (OVERALL, *new.groups):
                members.setdefault(group, {}).setdefault(new.user, []).append((new, old))
        tests = []
        for group, users in sorted(members.items()):
            if len(users) < self.group:
                continue
            loss_U = [[(sum(new.loss_T), sum(old.loss_T)) for new, old in own] for own in users.values()]
            order_U = [
                [(new.ndcg, old.ndcg) for new, old in own if new.ndcg is not None and old.ndcg is not None]
                for own in users.values()
            ]
            for measure, sign, values_U in (("log_loss", 1, loss_U), ("ndcg@10", -1, order_U)):
                kept = [np.sum(own, axis=0) for own in values_U if own]
                if len(kept) >= self.group:
                    both_U2 = np.array(kept, np.float64)
                    tests.append((group, measure, sign, np.stack([both_U2[:, 0] - both_U2[:, 1], both_U2[:, 1]], 1)))
        return tests


def _change(pair_U2: NDArray[np.float64], level: float) -> tuple[float, float, float]:
    """Relative change sum(difference) / sum(current) with its interval; users are the independent units."""
    difference_U, current_U = pair_U2.T
    n, total = len(pair_U2), current_U.sum()
    if not total > 0:
        return 0.0, 0.0, 0.0
    change = difference_U.sum() / total
    spread = np.sqrt(n / (n - 1) * np.square(difference_U - change * current_U).sum()) / total
    reach = float(student.ppf((1 + level) / 2, n - 1)) * spread
    return float(change), float(change - reach), float(change + reach)
