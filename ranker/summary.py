"""A short summary that a person can read and edit, drawn by a learned policy (PLUS, nam2026learning, in small).

The policy scores every phrase from how the person's history stands to it and draws a few without replacement
(Plackett-Luce). In training the conditioned ranker sees nothing but those phrases; phrases and ranker are trained in
turns, the reward is the log-likelihood of held-out comparisons. In the service the drawn phrases explain; only what
the person wrote or struck is evidence (`words_factor`, `masked`), so that nothing counts twice.

Everything is measured along the phrase's direction, scaled so that the population's spread along it is 1.

Axes: C candidates (a tag with a sign), V tags, K base rewards, A acts, F inputs, P comparisons, U users, M draws,
S phrases of a draw.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ranker.config import Objective
from ranker.evidence import Act, Evidence, Words
from ranker.interests import HALF_LIFE_MS, worth
from ranker.taste import Factor
from ranker.vocabulary import KINDS, Phrase, Sign, Tags, Vocabulary

Array = NDArray[np.float64]
Turn = Literal["policy", "meaning"]
SIGNS: tuple[Sign, Sign] = ("likes", "avoids")
#: phrases of a summary
PHRASES = 5
#: what a written phrase moves at least, in spreads of the population, whatever else is known
EDIT = 1.0
#: what was struck with its sign is moved this far beyond where the population stands, in spreads
BEYOND = 0.5
#: written phrases that count
WRITTEN = 32
#: inputs that differ from candidate to candidate, before the one-hot of the kind
INPUTS = 10
HIDDEN = 16


class Candidates(NamedTuple):
    """What could be said of one person: the tag and sign of each phrase, and the policy's inputs.

    Shapes: columns_C, signs_C (0 likes, 1 avoids), inputs_CF.
    """

    columns_C: NDArray[np.int64]
    signs_C: NDArray[np.int64]
    inputs_CF: NDArray[np.float32]


class Space(NamedTuple):
    """The tags' directions in units of the population's spread, by version and vocabulary.

    Compute it once per version and vocabulary.

    Shapes: unit_VK with u' Sigma0 u = 1 (0 where a tag points nowhere), spread_V in units of utility, neutral_V = u.m0,
    precision_KK and information_K of the prior.
    """

    unit_VK: Array
    spread_V: Array
    neutral_V: Array
    precision_KK: Array
    information_K: Array

    @classmethod
    def of(cls, directions_VK: NDArray[np.floating], prior: Factor) -> "Space":
        """Directions as the population sees them."""
        precision_KK = full(prior.precision)
        information_K = prior.information.astype(np.float64)
        directions_VK = np.asarray(directions_VK, np.float64)
        spread_V: Array = np.sqrt((directions_VK * np.linalg.solve(precision_KK, directions_VK.T).T).sum(1))
        known_V = spread_V > 1e-9
        unit_VK = np.where(known_V[:, None], directions_VK / np.where(known_V, spread_V, 1)[:, None], 0)
        neutral_V = unit_VK @ np.linalg.solve(precision_KK, information_K)
        return cls(unit_VK, spread_V, neutral_V, precision_KK, information_K)

    @property
    def prior(self) -> Factor:
        """The population's prior."""
        return Factor(self.precision_KK.astype(np.float32), self.information_K.astype(np.float32))

    @property
    def mean_K(self) -> Array:
        """The population's mean."""
        found: Array = np.linalg.solve(self.precision_KK, self.information_K).astype(np.float64)
        return found


def appraise(evidence: Evidence, objectives: Sequence[Objective], keep: int = 100) -> tuple[tuple[Act, ...], Array]:
    """The last acts, and what each says of its item: 1 liked, -1 not liked, 0 neither.

    Liked is what `interests.worth` values. Not liked is an act that fulfils an objective of negative weight, or whose
    value falls short of the objective that reads it.
    """
    acts = evidence.history[-keep:]
    known: dict[tuple[str, float | None], float] = {}
    against = tuple(replace(one, weight=-one.weight) for one in objectives if one.weight < 0)
    valued = frozenset(one.event for one in objectives if one.threshold is not None or one.kind == "value") | frozenset(
        one.graded.event for one in objectives if one.graded is not None
    )
    found = np.empty(len(acts))
    for place, act in enumerate(acts):
        kind = (act.type, act.value)
        said = known.get(kind)
        if said is None:
            if against and worth(act, evidence, against) > 0:
                said = -1.0
            elif worth(act, evidence, objectives) > 0:
                said = 1.0
            else:
                said = -1.0 if act.type in valued and act.value is not None else 0.0
            known[kind] = said
        found[place] = said
    return acts, found


def candidates(
    tags: Tags,
    rows_A: NDArray[np.int64],
    said_A: Array,
    times_A: NDArray[np.int64],
    *,
    space: Space,
    taste_K: NDArray[np.floating] | None = None,
) -> Candidates:
    """The phrases that this history could support, and how it stands to each.

    A phrase needs an act behind it; what a person was never seen near can also be avoided where acts on it were due.

    Args:
        rows_A: catalogue rows of the acts, -1 where unknown.
        said_A: 1 liked, -1 not liked, 0 neither.
        times_A: ms; ages count from the newest act.
        taste_K: mean of the taste that this history supports.
    """
    size = len(tags)
    columns, lengths = tags.of_rows(rows_A)
    recent_A = np.exp2((times_A - times_A.max()) / HALF_LIFE_MS) if len(times_A) else np.zeros(0)
    liked_A, disliked_A = (said_A > 0).astype(np.float64), (said_A < 0).astype(np.float64)

    def summed(weight_A: Array) -> Array:
        found: Array = np.bincount(columns, weights=np.repeat(weight_A, lengths), minlength=size).astype(np.float64)
        return found

    acts_V, liked_V, disliked_V = summed(np.ones(len(rows_A))), summed(liked_A), summed(disliked_A)
    graded_V = liked_V + disliked_V
    rate = (liked_A.sum() + 1) / (liked_A.sum() + disliked_A.sum() + 2)
    lift_V = np.log((liked_V + 2 * rate) / (graded_V + 2) / rate)
    surprise_V = (liked_V - graded_V * rate) / np.sqrt(graded_V * rate * (1 - rate) + 1)
    fresh_V = summed(recent_A * (liked_A - rate * (liked_A + disliked_A))) / np.sqrt(
        summed(recent_A) * rate * (1 - rate) + 1
    )
    due_V = (rows_A >= 0).sum() * tags.share_V
    drawn_V = np.log((acts_V + 1) / (due_V + 1))
    moved_V = np.zeros(size) if taste_K is None else space.unit_VK @ taste_K - space.neutral_V
    scale = float(space.spread_V.mean()) or 1.0 if size else 1.0
    gain_V = moved_V * space.spread_V / scale
    likes = np.flatnonzero(((liked_V > 0) | ((graded_V == 0) & (acts_V > 0))) & (space.spread_V > 0))
    avoids = np.flatnonzero(((disliked_V > 0) | (due_V > 3 * (acts_V + 1))) & (space.spread_V > 0))
    columns_C = np.concatenate([likes, avoids])
    sign_C = np.repeat([1.0, -1.0], [len(likes), len(avoids)])
    inputs_CF = np.zeros((len(columns_C), INPUTS + len(KINDS)), np.float32)
    signed = (lift_V, surprise_V / 2, fresh_V / 2, drawn_V, moved_V, gain_V)
    for place, value_V in enumerate(signed):
        inputs_CF[:, place] = sign_C * np.clip(value_V, -4, 4)[columns_C]
    behind_V = np.concatenate([liked_V[likes], disliked_V[avoids]])
    inputs_CF[:, 6] = np.log1p(acts_V[columns_C]) / 3
    inputs_CF[:, 7] = np.log1p(behind_V) / 3
    inputs_CF[:, 8] = sign_C < 0
    inputs_CF[:, 9] = np.log(space.spread_V[columns_C] / scale)
    inputs_CF[np.arange(len(columns_C)), INPUTS + tags.kinds_V[columns_C]] = 1
    return Candidates(columns_C, (sign_C < 0).astype(np.int64), inputs_CF)


class Policy(nn.Module):
    """How good each phrase is to say, and how much each says. Its size does not depend on the vocabulary.

    Attributes:
        level: what a phrase says about the taste along its direction, in spreads, by sign and kind.
        trust: the logarithm of how precisely it says so.
    """

    def __init__(self, generator: torch.Generator, hidden: int = HIDDEN) -> None:
        super().__init__()
        inputs = INPUTS + len(KINDS)
        self.direct = nn.Parameter(torch.zeros(inputs))
        with torch.no_grad():  # what surprises and what the taste bears out come first; training departs from there
            self.direct[1] = self.direct[5] = 1.0
            self.direct[8] = -0.5
        self.hidden = nn.Parameter(torch.randn(hidden, inputs, generator=generator) / math.sqrt(inputs))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.out = nn.Parameter(torch.zeros(hidden))
        self.level = nn.Parameter(torch.zeros(len(SIGNS), len(KINDS)))
        self.trust = nn.Parameter(torch.zeros(len(SIGNS), len(KINDS)))

    def forward(self, inputs_UCF: Tensor) -> Tensor:
        """Scores of the candidates, (U, C)."""
        hidden = torch.tanh(functional.linear(inputs_UCF, self.hidden, self.hidden_bias))
        return inputs_UCF @ self.direct + hidden @ self.out

    def speaking(self) -> list[nn.Parameter]:
        """What is trained by policy gradient."""
        return [self.direct, self.hidden, self.hidden_bias, self.out]

    def meaning(self) -> list[nn.Parameter]:
        """What is trained by likelihood: how much a phrase says."""
        return [self.level, self.trust]


class Summariser:
    """The policy as numpy, for serving: made once per version.

    Args:
        weights: a Policy's state, on its own or below `prefix` in a version's weights.
    """

    def __init__(self, weights: Mapping[str, Tensor], prefix: str = "") -> None:
        w = {name: weights[prefix + name].detach().double().numpy() for name in _NAMES}
        self._direct_F, self._hidden_FH, self._bias_H, self._out_H = (
            w["direct"],
            np.ascontiguousarray(w["hidden"].T),
            w["hidden_bias"],
            w["out"],
        )
        self.level_2Q: Array = np.logaddexp(0, w["level"])
        self.trust_2Q: Array = np.exp(w["trust"])

    def scores(self, inputs_CF: NDArray[np.floating]) -> Array:
        """Scores of the candidates, (C,)."""
        found: Array = inputs_CF @ self._direct_F + np.tanh(inputs_CF @ self._hidden_FH + self._bias_H) @ self._out_H
        return found


_NAMES = ("direct", "hidden", "hidden_bias", "out", "level", "trust")


def phrases_of(
    evidence: Evidence,
    vocabulary: Vocabulary,
    summariser: Summariser,
    space: Space,
    taste_K: NDArray[np.floating] | None = None,
    *,
    objectives: Sequence[Objective] = (),
    most: int = PHRASES,
    keep: int = 100,
) -> list[Phrase]:
    """The summary of a person: what she wrote first, then the best phrases of her history, `most` in all.

    Struck phrases are never drawn, nor is a tag twice. What she wrote is shown whole, even where it is more.

    Args:
        evidence: as `masked` returns it.
        taste_K: the mean of her taste; phrases that it contradicts are not drawn.
    """
    tags, words = vocabulary.tags, evidence.words
    written = [Phrase.of("likes", key) for key in words.likes] + [Phrase.of("avoids", key) for key in words.avoids]
    taken = {phrase.key for phrase in written}
    found = list(dict.fromkeys(written))
    acts, said_A = appraise(evidence, objectives, keep)
    if len(found) >= most or not acts or not len(tags):
        return found
    rows_A = vocabulary.catalogue.find([act.item for act in acts])
    times_A = np.array([act.time for act in acts], np.int64)
    could = candidates(tags, rows_A, said_A, times_A, space=space, taste_K=taste_K)
    struck = {struck_key(key) for key in words.struck}
    borne_out = could.inputs_CF[:, 4] >= 0
    # equal scores are told apart by their tag's place, so that the same evidence always gives the same summary
    for place in np.lexsort((could.columns_C, -summariser.scores(could.inputs_CF))).tolist():
        sign, key = SIGNS[could.signs_C[place]], tags.keys[could.columns_C[place]]
        if key in taken or not borne_out[place] or (None, key) in struck or (sign, key) in struck:
            continue
        taken.add(key)
        found.append(Phrase.of(sign, key))
        if len(found) >= most:
            break
    return found


def struck_key(text: str) -> tuple[Sign | None, str]:
    """Sign and key of a struck phrase; without a sign, whatever was said of the tag is struck.

    Example:
        >>> struck_key("avoids genres=Horror"), struck_key("genres=Horror")
        (('avoids', 'genres=Horror'), (None, 'genres=Horror'))
    """
    for sign in SIGNS:
        if text.startswith(f"{sign} "):
            return sign, text[len(sign) + 1 :]
    return None, text


def masked(evidence: Evidence, vocabulary: Vocabulary) -> Evidence:
    """The evidence without the acts behind struck phrases: every act on an item that carries a struck tag.

    The same object where nothing is struck. Answers stay, for they are the person's own statements.
    """
    struck = {struck_key(key)[1] for key in evidence.words.struck}
    if not struck or not evidence.history:
        return evidence
    acts = (*evidence.history, *evidence.past.acts)
    gone = vocabulary.carriers([act.item for act in acts], struck).tolist()
    if True not in gone:
        return evidence
    kept = list(zip(acts, gone, strict=True))
    history, past = kept[: len(evidence.history)], kept[len(evidence.history) :]
    return replace(
        evidence,
        history=tuple(act for act, away in history if not away),
        past=replace(evidence.past, acts=tuple(act for act, away in past if not away)),
    )


def words_factor(words: Words, tags: Tags, summariser: Summariser, space: Space, before: Factor) -> Factor:
    """What the person wrote or struck adds to `before`: the prior and all other sources, their factors summed.

    A written phrase moves the items that carry the tag, taken together, the stated way by at least EDIT spreads of the
    population, however long the history and whatever else was written. A phrase struck with its sign moves them back to
    where the population stands and a little beyond, one struck without to where it stands. Each is an observation of
    the taste along the phrase's direction, so the posterior narrows too. Unknown tags say nothing. At most WRITTEN
    phrases count, those written last, so the move is bounded.

    Shapes: returns (K, K) and (K,).
    """
    size = len(space.information_K)
    precision_KK, information_K = np.zeros((size, size)), np.zeros(size)
    said = [(0, key) for key in words.likes] + [(1, key) for key in words.avoids]
    written = {key: sign for sign, key in said}
    known = [(sign, key) for key, sign in written.items() if key in tags.columns][-WRITTEN:]
    struck = {key for key in (struck_key(text)[1] for text in words.struck) if key in tags.columns} - written.keys()
    gone = sorted(struck)[-WRITTEN:]
    if not known and not gone:
        return Factor(precision_KK.astype(np.float32), information_K.astype(np.float32))
    before_KK = full(before.precision)
    columns = np.array([tags.columns[key] for key in [key for _, key in known] + gone], np.int64)
    unit_XK = space.unit_VK[columns]
    across_XK = np.linalg.solve(before_KK, unit_XK.T).T
    mean_K = np.linalg.solve(before_KK, before.information.astype(np.float64))
    spread_X = np.maximum((across_XK * unit_XK).sum(1), 1e-9)
    stands_X = unit_XK @ mean_K
    for place, (sign, _) in enumerate(known):
        unit_K, column = unit_XK[place], columns[place]
        trust = float(summariser.trust_2Q[sign, tags.kinds_V[column]])
        level = float(summariser.level_2Q[sign, tags.kinds_V[column]])
        push = max(trust * level, EDIT * (1 / float(spread_X[place]) + trust)) * (1 - 2 * sign)
        precision_KK += trust * np.outer(unit_K, unit_K)
        information_K += (trust * float(stands_X[place]) + push) * unit_K
    sides: dict[Sign | None, int] = {"likes": 1, "avoids": -1, None: 0}
    signs = {key: sides[sign] for sign, key in map(struck_key, words.struck)}
    for place, key in enumerate(gone, len(known)):
        unit_K, column, side = unit_XK[place], columns[place], signs[key]
        over = float(stands_X[place] - space.neutral_V[column])
        shift = -over if side == 0 else -side * max(0.0, side * over + BEYOND)
        trust = float(summariser.trust_2Q[int(side < 0), tags.kinds_V[column]])
        push = shift * (1 / float(spread_X[place]) + trust)
        precision_KK += trust * np.outer(unit_K, unit_K)
        information_K += (trust * float(stands_X[place]) + push) * unit_K
    return Factor(precision_KK.astype(np.float32), information_K.astype(np.float32))


def profiled(
    target_C: NDArray[np.floating],
    categories: Sequence[str],
    words: Words,
    interest: str | None,
    *,
    share: float = 0.2,
) -> Array:
    """An interest profile that follows what was written: avoided categories leave it, liked ones hold `share` each.

    Liked categories together never hold more than .8, so that history keeps a say. Struck categories need nothing here:
    their acts are masked before the profile is made. `interest` is the field of the categories, None where they name
    it themselves, as `field=value`.

    Shapes: target_C sums to 1, or is all zeros where nothing is known; so does the result.
    """
    names = categories if interest is None else [f"{interest}={category}" for category in categories]
    place = {name: column for column, name in enumerate(names)}
    found = np.asarray(target_C, np.float64).copy()
    avoided = [place[key] for key in words.avoids if key in place]
    liked = [place[key] for key in dict.fromkeys(words.likes) if key in place and place[key] not in avoided]
    found[avoided] = 0
    if (total := found.sum()) > 0:
        found /= total
    if liked:
        least = min(share, 0.8 / len(liked))
        rest = found.copy()
        rest[liked] = 0
        wanted = np.maximum(found[liked], least)
        wanted *= min(1.0, max(0.8, float(found[liked].sum())) / wanted.sum())
        left = max(0.0, 1 - wanted.sum())
        rest = rest * (left / rest.sum()) if rest.sum() > 0 else rest
        rest[liked] = wanted if rest.sum() > 0 else wanted / wanted.sum()
        found = rest
    return found


class Lesson(NamedTuple):
    """One person's history as candidates, and comparisons outside of it.

    Shapes: differences_PK base rewards of the preferred less those of the other, offsets_P the same of the intercepts.
    """

    candidates: Candidates
    differences_PK: NDArray[np.floating]
    offsets_P: NDArray[np.floating]


class Batch(NamedTuple):
    """Lessons as padded tensors."""

    inputs_UCF: Tensor
    columns_UC: Tensor
    signs_UC: Tensor
    real_UC: Tensor
    differences_UPK: Tensor
    offsets_UP: Tensor
    share_UP: Tensor


def batched(lessons: Sequence[Lesson]) -> Batch:
    """Lessons of people with at least one candidate and one comparison, padded to the longest."""
    kept = [lesson for lesson in lessons if len(lesson.candidates.columns_C) and len(lesson.offsets_P)]
    users = len(kept)
    most = max((len(lesson.candidates.columns_C) for lesson in kept), default=1)
    pairs = max((len(lesson.offsets_P) for lesson in kept), default=1)
    size = kept[0].differences_PK.shape[1] if kept else 1
    inputs = np.zeros((users, most, INPUTS + len(KINDS)), np.float32)
    columns, signs = np.zeros((users, most), np.int64), np.zeros((users, most), np.int64)
    real = np.zeros((users, most), np.bool_)
    differences, offsets = np.zeros((users, pairs, size), np.float32), np.zeros((users, pairs), np.float32)
    share = np.zeros((users, pairs), np.float32)
    for place, (could, differences_PK, offsets_P) in enumerate(kept):
        count, asked = len(could.columns_C), len(offsets_P)
        inputs[place, :count], columns[place, :count] = could.inputs_CF, could.columns_C
        signs[place, :count], real[place, :count] = could.signs_C, True
        differences[place, :asked], offsets[place, :asked] = differences_PK, offsets_P
        share[place, :asked] = 1 / asked
    return Batch(*(torch.from_numpy(one) for one in (inputs, columns, signs, real, differences, offsets, share)))


def draw(
    scores_UC: Tensor, batch: Batch, phrases: int, draws: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Summaries without replacement by Plackett-Luce; a tag is never both liked and avoided.

    Gumbel noise is drawn once and the largest left is taken each time, which is sampling without replacement. Without a
    generator the best are taken.

    Shapes: returns chosen (U, M, S) candidates, their log probabilities (U, M, S), and which of them are real.
    """
    users, count = scores_UC.shape
    left = batch.real_UC[:, None, :].expand(users, draws, count).clone()
    scores = scores_UC[:, None, :].expand(users, draws, count)
    noisy = scores.detach()
    if generator is not None:
        uniform = torch.rand(users, draws, count, generator=generator).clamp(1e-9, 1 - 1e-7)
        noisy = noisy - torch.log(-torch.log(uniform))
    columns = batch.columns_UC[:, None, :]
    chosen, chances, real = [], [], []
    for _ in range(min(phrases, count)):
        pick = noisy.masked_fill(~left, -math.inf).argmax(-1, keepdim=True)
        real.append(left.any(-1))
        log_UMC = scores.masked_fill(~left, -1e9).log_softmax(-1)
        chances.append(log_UMC.gather(-1, pick)[..., 0])
        chosen.append(pick[..., 0])
        left = left & (columns != columns.expand_as(left).gather(-1, pick))
    return torch.stack(chosen, -1), torch.stack(chances, -1), torch.stack(real, -1)


def told(policy: Policy, batch: Batch, chosen_UMS: Tensor, real_UMS: Tensor, *, tags: Tags, space: Space) -> Tensor:
    """The taste that nothing but the drawn phrases supports: mean (U, M, K) of the prior and the phrases' factors."""
    unit_VK, kinds_V = torch.from_numpy(space.unit_VK).float(), torch.from_numpy(tags.kinds_V)
    users, draws, _ = chosen_UMS.shape
    columns = batch.columns_UC[:, None, :].expand(users, draws, -1).gather(-1, chosen_UMS)
    signs = batch.signs_UC[:, None, :].expand(users, draws, -1).gather(-1, chosen_UMS)
    kinds = kinds_V[columns]
    trust = policy.trust.exp()[signs, kinds] * real_UMS
    level = functional.softplus(policy.level)[signs, kinds] * (1 - 2 * signs)
    unit = unit_VK[columns]
    prior_KK = torch.from_numpy(space.precision_KK).float()
    precision = prior_KK + torch.einsum("ums,umsk,umsl->umkl", trust, unit, unit)
    push = torch.einsum("ums,umsk->umk", trust * level, unit)
    found: Tensor = torch.linalg.solve(precision, push) + torch.from_numpy(space.mean_K).float()
    return found


def rewards(batch: Batch, z_UMK: Tensor) -> Tensor:
    """Mean log-likelihood of each person's held-out comparisons under each taste, (U, M)."""
    margin = torch.einsum("umk,upk->ump", z_UMK, batch.differences_UPK) + batch.offsets_UP[:, None]
    return (functional.logsigmoid(margin) * batch.share_UP[:, None]).sum(-1)


def improve(
    policy: Policy,
    lessons: Sequence[Lesson],
    tags: Tags,
    space: Space,
    *,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    turn: Turn,
    phrases: int = PHRASES,
    draws: int = 8,
    scorer: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """One step of training: REINFORCE with a leave-one-out baseline for the policy, likelihood for what phrases mean.

    The policy explores by drawing; what phrases mean is learned of the best ones, for those are served.

    Args:
        optimiser: of `policy.speaking()` or of `policy.meaning()`, as the turn is.
        scorer: scores the candidates in the policy's place, where only the meaning is to be learned.

    Returns:
        reward (nats per comparison), baseline (the same with no phrases) and spread of the rewards of one person.

    Source: PLUS alternates PPO and reward-model steps; here REINFORCE with the mean of the other draws as the baseline.
    """
    batch = batched(lessons)
    if not len(batch.inputs_UCF):
        return {}
    scores_UC = (scorer or policy)(batch.inputs_UCF)
    speaking = turn == "policy"
    chosen, chances, real = draw(scores_UC, batch, phrases, draws if speaking else 1, generator if speaking else None)
    reward_UM = rewards(batch, told(policy, batch, chosen, real, tags=tags, space=space))
    if speaking:
        others_UM = (reward_UM.sum(1, keepdim=True) - reward_UM) / (draws - 1)
        advantage_UM = (reward_UM - others_UM).detach()
        loss = -(advantage_UM * (chances * real).sum(-1)).mean()
    else:
        loss = -reward_UM.mean()
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    mean_K = torch.from_numpy(space.mean_K).float()
    return {
        "reward": float(reward_UM.detach().mean()),
        "baseline": float(rewards(batch, mean_K.expand(len(batch.inputs_UCF), 1, -1)).mean()),
        "spread": float(reward_UM.detach().std(1, correction=0).mean()),
    }


def full(precision: NDArray[np.floating]) -> Array:
    """A precision as a matrix."""
    return (np.diag(precision) if precision.ndim == 1 else precision).astype(np.float64)


def keys_of(phrases: Iterable[Phrase]) -> Words:
    """Phrases as the words of evidence."""
    phrases = list(phrases)
    likes, avoids = (tuple(p.key for p in phrases if p.sign == sign) for sign in SIGNS)
    return Words(likes, avoids)
