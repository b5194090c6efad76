"""The fast inference form of a version: the item side is computed when an item arrives, the user side per request.

Axes: D features, K taste, S shared inputs of the experts, T objectives, F inputs of a row, A acts; N candidates.
"""

import math
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from operator import is_not

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor
from torch.nn import functional

from ranker.bias import BiasTower
from ranker.catalogue import Catalogue, Item
from ranker.comparisons import said
from ranker.compiled import compiled
from ranker.config import Config
from ranker.counters import Counters, Fading
from ranker.epoch import Epoch, Told, withdrawn
from ranker.errors import RegistryError
from ranker.events import Value
from ranker.evidence import Act, Answer, Evidence
from ranker.features import Acts, Bag, Encoder, Flat, Kind, act_inputs, acts_of, lay_out
from ranker.index import FLAT, Index
from ranker.inputs import Floats, gathered, laid_out, within
from ranker.interests import population
from ranker.mmoe import CUT, folding, mixed
from ranker.model import Model, answers_of, beside_answers, parts
from ranker.reliability import Population
from ranker.retrieval import Drawn, draw
from ranker.summary import Space, Summariser, masked, words_factor
from ranker.taste import Factor, Taste, fuse
from ranker.vocabulary import Tags, Vocabulary

#: up to this many items the item side is kept for every version; beyond, it is computed for the rows that are scored,
#: for a version comes every few seconds and a million items cost seconds and gigabytes
CACHED_ITEMS = FLAT
#: rows of a larger catalogue that stand for it where a mean over the items is meant
SAMPLE = 65_536
#: a larger catalogue's tags and means are made anew when it has grown by more than this share
GROWN = 0.01
CHUNK = 16_384
#: from so many hidden units of all experts together bfloat16 pays: 1,024 units, 256 inputs, 500 rows on one core with
#: AMX took 0.3 ms against 1.8; 256 units, 128 inputs saved 0.1 ms, not worth the digits
WIDE = 1024
#: counts fade over hours, so they are read as of the last full second
COUNTED_MS = 1000
#: kinds of acts kept per version before that cache starts anew
KINDS = 4096
#: slates, by their places and devices, whose tower is kept per version
SLATES = 256


#: the item side of some items: their part of the first layer, [phi, b, wide term, counts], their part of an act
Sided = tuple[Floats, Floats, Floats]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scores:
    """What one user's candidates get, in the order of the rows and then the extra items.

    Attributes:
        probabilities_NT: tower-free; the predicted value for value objectives.
        logits_NT: tower-free.
        utility_N: r(u, i), the bilinear base utility.
        phi_NK: the candidates' base rewards.
    """

    probabilities_NT: NDArray[np.float32]
    logits_NT: NDArray[np.float32]
    utility_N: NDArray[np.float32]
    phi_NK: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """The item side of everything, by catalogue row.

    Attributes:
        whole: whether every row is kept; if not, the first four are empty and `index` is not used (see `Epoch`).
        first_NS: its part of the first layer.
        tail_NX: [phi, b, wide term, counts].
        typical_K1: the mean of [phi, b] over the items.
        population_C: shares of the categories in the impressions that the version counted.
        act_NH: its part of an act's hidden layer.
    """

    seen: list[Item]
    first_NS: Floats
    tail_NX: Floats
    act_NH: Floats
    born_N: NDArray[np.int64]
    whole: bool
    index: Index
    typical_K1: NDArray[np.float32]
    tags: Tags
    space: Space
    population_C: NDArray[np.float64]


class Inference:
    """The fast form: the item side is computed when an item arrives, the user side once per request.

    What is left per candidate is one [N, K] x [K, S] product, in which z * phi and r are folded, and the experts'.
    Readers may score from any thread while one other thread attaches. `prior` is the population's factor of a taste.

    Args:
        weights: `Model.state_dict()`, or what a version ships; kept as they are, so they may not change afterwards.
        encoder: to share the cache of encoded items between versions.
        vocabulary: to share the tags of a catalogue between versions.
        cached: up to so many items the item side is kept in memory; beyond, they are found by `epoch`'s index.
        epoch: to share the index of a large catalogue between versions.
        bf16: experts in bfloat16; by default where they are many (WIDE) and the CPU has AMX. Probabilities of
            binary objectives moved by less than 0.005 over random weights.

    Raises:
        RegistryError: a weight is missing or has another shape than the configuration asks for.
    """

    def __init__(
        self,
        config: Config,
        weights: Mapping[str, Tensor],
        *,
        encoder: Encoder | None = None,
        vocabulary: Vocabulary | None = None,
        cached: int = CACHED_ITEMS,
        epoch: Epoch | None = None,
        bf16: bool | None = None,
    ) -> None:
        self.config, self.encoder, self._cached = config, encoder or Encoder(config), cached
        self.epoch, self._changes = epoch or Epoch(), 0
        sizes = self.sizes = self.encoder.sizes
        with torch.device("meta"):
            wanted = Model(config, torch.Generator()).state_dict()
        for name, tensor in wanted.items():
            shape = tuple(weights[name].shape) if name in weights else None
            if shape != tuple(tensor.shape):
                raise RegistryError(f"weights[{name}]", shape, f"this configuration needs shape {tuple(tensor.shape)}")
        w = {name: weights[name].detach().to(tensor.dtype).contiguous() for name, tensor in wanted.items()}
        self._table_VD, self._wide_VT = w["table_VD"], w["wide_VT"]
        self._numbers = {side: w[f"numbers.{side}"].T.numpy() for side in ("item", "user", "request")}
        self._numbers["kind"] = w["kind_numbers"].T.numpy()
        self._phi, self._phi_bias = w["phi"], w["phi_bias"]
        self._act_item, self._act_kind = w["act_item"], w["act_kind"].T.numpy()
        self._act_inputs, self._act_bias = w["act_inputs"].T.numpy(), w["act_bias"].numpy()
        self._out, self._out_bias = w["history.out"].T.numpy(), w["history.out_bias"].numpy()
        prior_K = np.exp(w["history.prior_log_precision_K"].numpy())
        self.prior = Factor(prior_K, prior_K * w["history.prior_mean_K"].numpy())
        self.population = Population.from_array(w["reliability"].numpy())
        self.summariser = Summariser(w, "summary.")
        self.vocabulary: Vocabulary | None = None
        self._shared = vocabulary
        objectives = len(config.objectives)
        to_phi, to_z, to_zphi, to_r, to_item, to_user, to_request, to_row = (
            part.T.contiguous() for part in w["first"].split_with_sizes(parts(sizes.K, sizes.D, objectives), 1)
        )
        self._to_first, self._to_zphi_r = torch.cat([to_item, to_phi, to_r]), (to_zphi + to_r).numpy()
        self._to_taste, self._to_fields = to_z.numpy(), {"user": to_user.numpy(), "request": to_request.numpy()}
        # the request's product, K + F + 1 lines: z * phi and r, row, and 1 for the user side
        self._request_XS = torch.cat([torch.zeros(sizes.K, sizes.S), to_row, w["first_bias"][None]]).numpy()
        # beside it, the direct term and, where phi meets the taste, the utility: K + F + 1 lines too
        self._beside_XT = np.zeros((len(self._request_XS), objectives + 1), np.float32)
        self._beside_XT[sizes.K : -1, :objectives] = w["direct_TF"].T
        self._counters = Counters(sizes.V // 2, objectives)
        counted = {name.removeprefix("counters."): w[name] for name in w if name.startswith("counters.")}
        self._counters.load_state_dict(counted, assign=True)
        self._kept_fading: tuple[int, Fading] | None = None
        self._bare: dict[str, NDArray[np.float32]] = {}
        width = sizes.E * sizes.H
        self._experts, self._gates = w["experts.weight"].tensor_split([width])
        self._experts_bias, self._gates_bias = w["experts.bias"].tensor_split([width])
        self._heads_XT: Tensor = torch.block_diag(*[w["experts.heads_TH"].T] * sizes.E)  # type: ignore[no-untyped-call]
        self._heads_T, self._fold_XT = w["experts.heads_T"], folding(sizes.E, objectives)
        self._wide = width >= WIDE or bool(bf16)
        both_SX, bias_X = w["experts.weight"].T.contiguous(), w["experts.bias"]
        self._few = [part.numpy() for part in (both_SX, bias_X, self._heads_XT, self._heads_T)]
        if bf16 if bf16 is not None else width >= WIDE and torch.cpu._is_amx_tile_supported():
            self._experts, self._experts_bias = self._experts.bfloat16(), self._experts_bias.bfloat16()
            self._heads_XT = self._heads_XT.bfloat16()
        self._tower = BiasTower([objective.biased for objective in config.objectives])
        self._tower.load_state_dict({name: w[f"tower.{name}"] for name in self._tower.state_dict()})
        self._tower.eval()
        self._towers: dict[tuple[object, ...], NDArray[np.float32]] = {}
        self._offset_T, self._scale_T = w["offset_T"].numpy(), w["scale_T"].numpy()
        self._typical_T = w["typical_T"]
        self._values = [place for place, objective in enumerate(config.objectives) if objective.kind == "value"]
        self._kinds: tuple[dict[Kind, int], NDArray[np.float32]]
        self._kinds = {}, np.zeros((0, sizes.encoder), np.float32)
        self._lock = threading.Lock()
        self._catalogue: Catalogue | None = None
        self._side = self._empty(whole=True)

    @torch.inference_mode()
    def attach(self, catalogue: Catalogue) -> None:
        """Take up what is new or was replaced in the catalogue since the last call; a new catalogue starts anew.

        One thread at a time; others may score meanwhile, they see the state before or the one after.
        """
        side = self._side
        items = catalogue.items[: len(catalogue)]
        whole = len(items) <= self._cached
        if not whole:
            self._attach_large(catalogue, items)
            return
        if catalogue is not self._catalogue or not side.whole:
            side = self._empty(whole=True)
        seen = side.seen
        # items are never changed, only replaced; said without a loop, for this runs each second beside the requests
        changed = list(compress(range(len(seen)), map(is_not, items, seen)))
        rows = np.array([*changed, *range(len(seen), len(items))], np.int64)
        if len(rows) == 0 and catalogue is self._catalogue:
            return
        first_NS, tail_NX, act_NH, born_N = side.first_NS, side.tail_NX, side.act_NH, side.born_N
        # rows beyond what readers know may be written in place; rows they know may not
        if len(items) > len(born_N) or changed:
            size = max(64, len(born_N))
            while size < len(items):
                size *= 2
            first_NS, tail_NX, act_NH = (_grown(part, size) for part in (first_NS, tail_NX, act_NH))
            born_N = np.concatenate([born_N, np.zeros(size - len(born_N), np.int64)])
        for few in np.array_split(rows, max(1, len(rows) // CHUNK)):
            first_NS[few], tail_NX[few], act_NH[few] = self._embed(self.encoder.items(catalogue, few))
            born_N[few] = [items[row].first_seen for row in few.tolist()]
        base_NX = tail_NX[: len(items), : self.sizes.K + 1]
        typical_K1 = base_NX.mean(0) if len(items) else np.zeros(self.sizes.K + 1, np.float32)
        if self.vocabulary is None or self.vocabulary.catalogue is not catalogue:
            shared = self._shared if self._shared is not None and self._shared.catalogue is catalogue else None
            self.vocabulary = shared or Vocabulary(self.config, catalogue)
        gone_N = np.zeros(len(items), np.bool_)
        gone_N[: len(seen)] = ~side.index.holds(np.arange(len(seen)))
        gone_N[rows] = [withdrawn(items[row]) for row in rows.tolist()]
        known_N = self._shown(tail_NX[: len(items)])
        self.vocabulary.update(known_N if known_N.any() else None)
        tags = self.vocabulary.tags
        space = Space.of(tags.directions(base_NX[:, :-1]), self.prior)
        self._side = _Side(
            items,
            first_NS,
            tail_NX,
            act_NH,
            born_N,
            True,
            Index(base_NX).remove(np.flatnonzero(gone_N)),
            typical_K1,
            tags=tags,
            space=space,
            population_C=population(catalogue.interests_NC[: len(items)], known_N),
        )
        self._catalogue = catalogue

    @torch.inference_mode()
    def _attach_large(self, catalogue: Catalogue, items: list[Item]) -> None:
        """Of a large catalogue only a sample is embedded; the epoch's index is told of new items."""
        if self._catalogue is not None and catalogue is not self._catalogue and not self._side.whole:
            self.epoch = Epoch()
        begun = self.epoch.index is None

        @torch.inference_mode()
        def tell(rows: NDArray[np.int64]) -> Told:
            base_NX = np.empty((len(rows), self.sizes.K + 1), np.float32)
            shown_N = np.empty(len(rows), np.float32)
            for start in range(0, len(rows), CHUNK):
                few = slice(start, start + CHUNK)
                tail_NX = self._tail(self.encoder.items(catalogue, rows[few])).numpy()
                base_NX[few], shown_N[few] = tail_NX[:, : self.sizes.K + 1], self._shown(tail_NX)
            return Told(base_NX, shown_N)

        self.tell = tell
        changes, known = self.epoch.take(items, tell), self._changes
        index, interests_NC = self.epoch.index, catalogue.interests_NC
        assert index is not None
        for c in range(interests_NC.shape[1]):
            index.part(c, catalogue.members, interests_NC[:, c])  # in no request: 70 ms for a million items
        if changes == known and catalogue is self._catalogue and not self._side.whole:
            return
        self._changes = changes
        side, told = self._side, 0 if self.vocabulary is None else self.vocabulary.tags.items
        few = len(items) - told <= GROWN * len(items)
        if few and catalogue is self._catalogue and not side.whole:  # means over the catalogue stay what they are
            self._side = replace(side, seen=items, born_N=self.epoch.born_N)
            return
        rows_S = np.unique(np.linspace(0, len(items) - 1, SAMPLE).astype(np.int64))
        base_SX = tell(rows_S).vectors_NX
        if self.vocabulary is None or self.vocabulary.catalogue is not catalogue:
            shared = self._shared if self._shared is not None and self._shared.catalogue is catalogue else None
            self.vocabulary = shared or Vocabulary(self.config, catalogue)
        # the counts are as of the epoch: telling a million items' tags by them anew is for an epoch, not for a version
        known_N = self.epoch.shown_N
        if begun or self.vocabulary.tags.items < (1 - GROWN) * len(items):
            self.vocabulary.update(known_N if begun and known_N.any() else None)
        tags = self.vocabulary.tags
        space = Space.of(tags.directions(base_SX[:, :-1], rows_S), self.prior)
        empty = self._empty(whole=False)
        self._side = replace(
            empty,
            seen=items,
            born_N=self.epoch.born_N,
            typical_K1=base_SX.mean(0),
            tags=tags,
            space=space,
            population_C=population(catalogue.interests_NC[: len(items)], known_N),
        )
        self._catalogue = catalogue

    @property
    def attached(self) -> int:
        """Catalogue rows that can be scored: those below this number."""
        return len(self._side.seen)

    def taste(self, evidence: Evidence, now: int) -> Taste:
        """The taste that this evidence supports; the learned prior where there is none.

        Units: now in ms.
        """
        side, words = self._side, evidence.words
        evidence = self.masked(evidence)
        acts = acts_of([evidence], self.sizes.acts)
        rows_A = self._find(acts.items)
        factors, sources = self._factors(acts, rows_A, now), {"history": len(acts.items)}
        taste = fuse(self.prior, factors)
        answers = said(evidence)
        if answers:
            before = beside_answers(self.prior, Factor(taste.precision_K, _information(taste)))
            taste = fuse(before, [self._answered(before, answers)])
        written = len(words.likes) + len(words.avoids) + len(words.struck)
        if written:
            before = Factor(taste.precision_K, _information(taste))
            taste = fuse(before, [words_factor(words, side.tags, self.summariser, side.space, before)])
        return replace(
            taste,
            acted=frozenset(acts.items),
            acted_A=np.sort(rows_A),
            sources={**sources, "answers": len(answers), "words": written},
        )

    def masked(self, evidence: Evidence) -> Evidence:
        """The evidence without the acts behind struck phrases; the same object where nothing is struck."""
        return evidence if self.vocabulary is None else masked(evidence, self.vocabulary)

    @property
    def speech(self) -> tuple[Tags, Space]:
        """The tags and their directions in the space of base rewards, of the same moment."""
        side = self._side
        return side.tags, side.space

    def _factors(self, acts: Acts, rows_A: NDArray[np.int64], now: int) -> list[Factor]:
        """What the acts add to the prior."""
        if not acts.items:
            return []
        precision_AK, information_AK = self._by_act(acts, rows_A, now)
        return [Factor(precision_AK.sum(0), information_AK.sum(0))]

    def _by_act(self, acts: Acts, rows_A: NDArray[np.int64], now: int) -> tuple[Floats, Floats]:
        """What each act adds to the prior: precision and information, (A, K) each."""
        hidden_AH = self._acted_on(acts.items, rows_A)
        hidden_AH *= self._kinds_of(acts.kinds) + act_inputs(acts, now) @ self._act_inputs
        return _said(hidden_AH @ self._out, self._out_bias)

    def tastes(
        self, taste: Taste, evidence: Evidence, now: int, interests: NDArray[np.int64]
    ) -> dict[int, NDArray[np.float32]]:
        """What the person wants of each interest: her taste, moved to where the acts of this interest alone put it.

        A posterior of many acts has one mode, between the things that she likes; what she likes of one interest may lie
        elsewhere. Answers and words, which belong to no interest, count in each. Interests without an act are left out.

        Args:
            taste: of the same evidence.
            interests: columns of the catalogue's categories.

        Shapes: (K,) each.
        """
        evidence = self.masked(evidence)
        acts = acts_of([evidence], self.sizes.acts)
        if not acts.items or not len(interests) or self._catalogue is None:
            return {}
        rows_A = self._find(acts.items)
        held_IA = (self._catalogue.interests_NC[rows_A][:, interests] > 0).T & (rows_A >= 0)
        precision_AK, information_AK = self._by_act(acts, rows_A, now)
        alone_IK = (self.prior.information + held_IA @ information_AK) / (self.prior.precision + held_IA @ precision_AK)
        whole_K = (self.prior.information + information_AK.sum(0)) / (self.prior.precision + precision_AK.sum(0))
        acted: list[bool] = np.any(held_IA, axis=1).tolist()
        moved_IK = (taste.mean_K + alone_IK - whole_K).astype(np.float32)
        return {c: moved_K for c, moved_K, known in zip(interests.tolist(), moved_IK, acted, strict=True) if known}

    def base(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Base rewards phi (N, K) and population intercepts b (N,) of attached catalogue rows."""
        tail_NX = self._rows(self._side, rows)[1]
        return tail_NX[:, : self.sizes.K], tail_NX[:, self.sizes.K]

    @property
    def population_C(self) -> NDArray[np.float64]:
        """The population's interests: the categories' shares of what the version counted as shown lately.

        Shapes: (C,), as many as the catalogue had when it was attached.
        """
        return self._side.population_C

    def impressions(self) -> NDArray[np.float32]:
        """How often each attached row was shown lately, by the version's own counters (their longest half-life).

        Shapes: returns (N,). Only their order means anything: they are as of the counters' landmark.
        """
        side = self._side
        return self._shown(side.tail_NX[: len(side.seen)]) if side.whole else self.epoch.shown_N[: len(side.seen)]

    def preferred(self, taste: Taste, utility_N: NDArray[np.float32]) -> NDArray[np.float32]:
        """P(preferred to a typical item of the catalogue), a bounded form of r that is comparable between people.

        Source: VPL's reward scaling (SPO: the mean probability of beating random items), with the mean item in place
        of random ones.
        """
        typical_K1 = self._side.typical_K1
        found: NDArray[np.float32] = expit(utility_N - (typical_K1[:-1] @ taste.mean_K + typical_K1[-1]))
        return found

    def score(
        self,
        taste: Taste,
        *,
        user: Mapping[str, Value],
        request: Mapping[str, Value],
        rows: NDArray[np.int64],
        extra: Sequence[Item] = (),
        now: int,
    ) -> Scores:
        """Score catalogue rows, then extra items (which came with the request), for one user.

        Raises:
            IndexError: a row that no attached catalogue holds.
        """
        side, rows = self._side, np.asarray(rows, np.int64)
        K, objectives = self.sizes.K, len(self.config.objectives)
        if not within(rows, len(side.seen)):
            raise IndexError(f"rows reach from {rows.min()} to {rows.max()}, {len(side.seen)} items are attached")
        if side.whole:
            first_NS, tail_NX, born_N = gathered(side.first_NS, side.tail_NX, side.born_N, rows)
        else:
            (first_NS, tail_NX, _), born_N = self._rows(side, rows), side.born_N[rows]
        if extra:
            first, tail, _ = self._embed(lay_out([self.encoder.item(item) for item in extra]))
            first_NS, tail_NX = np.concatenate([first_NS, first]), np.concatenate([tail_NX, tail])
            born_N = np.concatenate([born_N, np.array([item.first_seen for item in extra], np.int64)])
        acted_M, wide_end = np.array([item.id in taste.acted for item in extra], np.bool_), K + 1 + objectives
        fading = self._fading(now - now % COUNTED_MS)
        x_NX = laid_out(tail_NX, born_N, rows, taste.acted_A, acted_M, now, *fading, K, wide_end)
        request_XS, beside_XT = self._user_side(taste, user, request)
        shared_NS = x_NX @ request_XS
        shared_NS += first_NS
        beside_NT = x_NX @ beside_XT
        beside_NT[:, :-1] += tail_NX[:, K + 1 : wide_end]
        logits_NT = self._mix(np.maximum(shared_NS, 0, out=shared_NS), beside_NT)
        return Scores(
            probabilities_NT=self._chances(logits_NT),
            logits_NT=logits_NT,
            utility_N=beside_NT[:, -1] + tail_NX[:, K],
            phi_NK=tail_NX[:, :K],
        )

    def probabilities_at(
        self, logits_NT: NDArray[np.float32], positions: NDArray[np.int32], request: Mapping[str, Value]
    ) -> NDArray[np.float32]:
        """Probabilities with the bias tower at the places where the items stood; -1 is unknown."""
        codes = self.encoder.device(request)
        # slates of one length on one device are most of what is asked
        key = (np.asarray(positions, np.int64).tobytes(), *codes)
        tower_NT = self._towers.get(key)
        if tower_NT is None:
            places = torch.from_numpy(np.asarray(positions, np.int64))
            with torch.inference_mode():
                devices = torch.tensor(codes, dtype=torch.int64).expand(len(positions), -1)
                tower_NT = self._tower(places, devices).numpy()
            if len(self._towers) >= SLATES:
                self._towers.clear()
            self._towers[key] = tower_NT
        return self._chances(logits_NT + tower_NT)

    def retrieve(
        self,
        taste: Taste,
        count: int,
        *,
        target_C: NDArray[np.floating] | None = None,
        tastes: Mapping[int, NDArray[np.float32]] | None = None,
        share: float = 0.0,
        among: NDArray[np.bool_] | None = None,
        without: Collection[int] = (),
    ) -> Drawn:
        """Catalogue rows of large r(u, i): without `target_C` by falling r(u, i), else by interest first.

        Args:
            tastes: what to search an interest with; the taste itself where it has no entry.
            share, among, without: see `retrieval.draw`.
        """
        catalogue, one = self._catalogue, np.ones(1, np.float32)
        known = catalogue is not None and target_C is not None
        side, query_X = self._side, np.append(taste.mean_K, one)
        index: Index | None = side.index
        if not side.whole:
            index = self.epoch.index
            self.epoch.asked(query_X)
        assert index is not None
        drawn = draw(
            index,
            query_X,
            count,
            interests_NC=catalogue.interests_NC if catalogue is not None else np.zeros((0, 0), np.float32),
            target_C=target_C if known and target_C is not None else np.zeros(0),
            share=share,
            own={c: np.append(mean_K, one) for c, mean_K in (tastes or {}).items()},
            members=catalogue.members if catalogue is not None else lambda _: np.zeros(0, np.int64),
            among=among,
            without=without,
        )
        # another version that shares the index may know newer items
        return drawn if side.whole else drawn._replace(rows=drawn.rows[drawn.rows < len(side.seen)])

    def recall(self, count: int) -> float | None:
        """What the shared index of a large catalogue finds of these weights' best; None where nothing is shared."""
        return None if self._side.whole else self.epoch.recall(self.tell, count)

    def fresh(self, since: int) -> NDArray[np.bool_]:
        """Which attached rows were first seen at this time (ms) or later."""
        side = self._side
        found: NDArray[np.bool_] = side.born_N[: len(side.seen)] >= since
        return found

    def examination(self, depth: int = 50) -> NDArray[np.float64]:
        """How likely each place is acted on against the first, per objective, for a typical impression: (depth, T)."""
        return self._tower.examination(self._typical_T, depth)

    def curves(self, depth: int = 20) -> dict[str, list[float]]:
        """The examination curve of each objective that has a tower, first place first."""
        found_PT = self.examination(depth)
        return {o.name: found_PT[:, place].tolist() for place, o in enumerate(self.config.objectives) if o.biased}

    def _empty(self, *, whole: bool) -> _Side:
        sizes, objectives = self.sizes, len(self.config.objectives)
        first_NS = np.zeros((0, sizes.S), np.float32)
        tail_NX = np.zeros((0, sizes.K + 1 + objectives + self._counters.inputs), np.float32)
        nothing = np.zeros((0, sizes.K + 1), np.float32)
        act_NH, born_N, typical_K1 = (
            np.zeros((0, sizes.encoder), np.float32),
            np.zeros(0, np.int64),
            np.zeros(sizes.K + 1, np.float32),
        )
        tags, space = Tags(), Space.of(np.zeros((0, sizes.K)), self.prior)
        return _Side(
            [],
            first_NS,
            tail_NX,
            act_NH,
            born_N,
            whole,
            Index(nothing),
            typical_K1,
            tags=tags,
            space=space,
            population_C=np.zeros(0),
        )

    def _shown(self, tail_NX: Floats) -> NDArray[np.float32]:
        # the counts' first half are impressions, the second outcomes; the longest half-life is last
        objectives = len(self.config.objectives)
        end = self.sizes.K + 1 + objectives + self._counters.inputs // 2
        found: NDArray[np.float32] = tail_NX[:, end - objectives : end].max(1, initial=0)
        return found

    def _fading(self, now: int) -> Fading:
        """What all counts are read with at this time, kept while it stands."""
        kept = self._kept_fading
        if kept is None or kept[0] != now:
            kept = self._kept_fading = now, self._counters.fading(now)
        return kept[1]

    def _user_side(
        self, taste: Taste, user: Mapping[str, Value], request: Mapping[str, Value]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the candidates' inputs are multiplied with: for the first layer, and beside the experts."""
        mean_K = np.asarray(taste.mean_K, np.float32)
        said_S = self._fields("user", user) + self._fields("request", request)
        return _folded(mean_K, said_S, self._to_taste, self._to_zphi_r, self._request_XS, self._beside_XT)

    def _answered(self, before: Factor, answers: Sequence[Answer]) -> Factor:
        """What answers add to everything else that is known."""
        K, names = self.sizes.K, [name for answer in answers for name in (answer.preferred, answer.over)]
        rows = self._find(names)
        known, side = rows >= 0, self._side
        base_NX = np.empty((len(names), K + 1), np.float32)
        base_NX[known] = self._rows(side, rows[known])[1][:, : K + 1]
        if not known.all():
            base_NX[~known] = self._strangers(names, known)[1][:, : K + 1]
        difference_AX = base_NX[::2] - base_NX[1::2]
        return answers_of(answers, difference_AX[:, :K], difference_AX[:, K], before, self.population)

    @torch.inference_mode()
    def _strangers(self, names: Sequence[str], known: NDArray[np.bool_]) -> Sided:
        """The item side of those that are not attached, by their id alone."""
        bags = [self.encoder.item(Item(name)) for name, there in zip(names, known.tolist(), strict=True) if not there]
        return self._embed(lay_out(bags))

    def _find(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Rows of the items, -1 for those that are not attached."""
        if self._catalogue is None:
            return np.full(len(names), -1, np.int64)
        attached, rows = self.attached, self._catalogue.find(names)
        if len(self._catalogue) > attached:
            rows[rows >= attached] = -1
        return rows

    def _acted_on(self, names: Sequence[str], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The item part of the acts' hidden layer, a fresh array; unknown items are embedded on the spot."""
        side, known = self._side, rows >= 0
        if side.whole and within(rows, len(side.seen)):
            return side.act_NH[rows]
        hidden_AH = np.empty((len(names), self.sizes.encoder), np.float32)
        hidden_AH[known] = side.act_NH[rows[known]] if side.whole else self._rows(side, rows[known])[2]
        if not known.all():
            hidden_AH[~known] = self._strangers(names, known)[2]
        return hidden_AH

    @torch.inference_mode()
    def _rows(self, side: _Side, rows: NDArray[np.int64]) -> Sided:
        """The item side of attached rows, as `_Side` keeps it: first layer, tail, act."""
        if side.whole:
            return side.first_NS[rows], side.tail_NX[rows], side.act_NH[rows]
        assert self._catalogue is not None
        if len(rows) == 0:
            return side.first_NS, side.tail_NX, side.act_NH
        return self._embed(self.encoder.items(self._catalogue, rows))

    @torch.inference_mode()
    def _embed(self, bags: Flat) -> Sided:
        """The item side of bags, as `_Side` keeps it."""
        item_ND = self._features(bags)
        tail_NX = self._tail(bags, item_ND)
        first_NS = self._first(item_ND, tail_NX[:, : self.sizes.K + 1])
        return first_NS.numpy(), tail_NX.numpy(), (item_ND @ self._act_item.T).numpy()

    def _features(self, bags: Flat) -> Tensor:
        item_ND = functional.embedding_bag(
            torch.from_numpy(bags.rows),
            self._table_VD,
            torch.from_numpy(np.cumsum(bags.lengths) - bags.lengths),
            mode="sum",
            per_sample_weights=torch.from_numpy(bags.weights),
        )
        return item_ND + torch.from_numpy(bags.numbers @ self._numbers["item"])

    def _tail(self, bags: Flat, item_ND: Tensor | None = None) -> Tensor:
        rows, weights = torch.from_numpy(bags.rows), torch.from_numpy(bags.weights)
        starts = torch.from_numpy(np.cumsum(bags.lengths) - bags.lengths)
        wide_NT = functional.embedding_bag(rows, self._wide_VT, starts, mode="sum", per_sample_weights=weights)
        base_NX = functional.linear(self._features(bags) if item_ND is None else item_ND, self._phi, self._phi_bias)
        counts_NF = self._counters.find(rows[starts[:, None] + torch.arange(2)])
        return torch.cat([base_NX, wide_NT, counts_NF], 1)

    def _first(self, item_ND: Tensor, base_NX: Tensor) -> Tensor:
        return torch.cat([item_ND, base_NX], 1) @ self._to_first

    def _mix(self, shared_NS: NDArray[np.float32], beside_NT: NDArray[np.float32]) -> NDArray[np.float32]:
        """The experts' votes, mixed by their gates, and what stands beside them: `mmoe.mixed` without torch where the
        experts are few.

        Shapes: shared_NS (N, S), beside_NT (N, T or more); returns (N, T).
        """
        if self._wide:
            with torch.inference_mode():
                shared = torch.from_numpy(shared_NS)
                gates = functional.linear(shared, self._gates, self._gates_bias)
                hidden = functional.linear(shared.to(self._experts.dtype), self._experts, self._experts_bias).relu_()
                votes = mixed((hidden @ self._heads_XT).float(), gates, self._fold_XT).add_(self._heads_T)
                found: NDArray[np.float32] = votes.numpy()
            found += beside_NT[:, : found.shape[1]]
            return found
        both_SX, bias_X, heads_XT, heads_T = self._few
        both_NX = shared_NS @ both_SX
        both_NX += bias_X
        hidden_NX = both_NX[:, : len(heads_XT)]
        votes_NX = np.maximum(hidden_NX, 0, out=hidden_NX) @ heads_XT
        return _mixed(votes_NX, both_NX, heads_T, beside_NT)

    def _chances(self, logits_NT: NDArray[np.float32]) -> NDArray[np.float32]:
        chances: NDArray[np.float32] = expit(logits_NT)
        for place in self._values:
            chances[:, place] = self._offset_T[place] + self._scale_T[place] * logits_NT[:, place]
        return chances

    def _fields(self, side: str, fields: Mapping[str, Value]) -> NDArray[np.float32]:
        """What the user's or the request's fields add to the first layer; most have none, which is kept."""
        found = None if fields else self._bare.get(side)
        if found is None:
            encode = self.encoder.user if side == "user" else self.encoder.request
            found = self._vector(side, encode(fields)) @ self._to_fields[side]
            if not fields:
                self._bare[side] = found
        return found

    def _vector(self, side: str, bag: Bag) -> NDArray[np.float32]:
        table_RD = self._table_VD.numpy()[bag.rows]
        vector: NDArray[np.float32] = bag.weights @ table_RD + bag.numbers @ self._numbers[side]
        return vector

    def _kinds_of(self, keys: Sequence[Kind]) -> NDArray[np.float32]:
        known, kinds_CH = self._kinds
        if any(key not in known for key in keys):
            with self._lock:
                known, kinds_CH = self._kinds if len(self._kinds[0]) < KINDS else ({}, self._kinds[1][:0])
                new = [key for key in dict.fromkeys(keys) if key not in known]
                bags = [self.encoder.act(Act("", kind, 0, value)) for kind, value in new]
                lines = [self._vector("kind", bag) @ self._act_kind + self._act_bias for bag in bags]
                known = {**known, **{key: len(known) + place for place, key in enumerate(new)}}
                kinds_CH = np.concatenate([kinds_CH, *(line[None] for line in lines)])
                self._kinds = known, kinds_CH
        found: NDArray[np.float32] = kinds_CH[[known[key] for key in keys]]
        return found


@compiled
def _said(out_AX: Floats, bias_X: Floats) -> tuple[Floats, Floats]:
    """Precision (softplus of the first half) and information (precision times mean, the second half) of each act."""
    acts, dimensions = len(out_AX), len(bias_X) // 2
    precision_AK, information_AK = np.empty((acts, dimensions), np.float32), np.empty((acts, dimensions), np.float32)
    for a in range(acts):
        for k in range(dimensions):
            raw = out_AX[a, k] + bias_X[k]
            precision = max(raw, np.float32(0)) + math.log(np.float32(1) + math.exp(-abs(raw)))
            precision_AK[a, k] = precision
            information_AK[a, k] = precision * (out_AX[a, dimensions + k] + bias_X[dimensions + k])
    return precision_AK, information_AK


@compiled
def _folded(
    mean_K: Floats, said_S: Floats, to_taste_KS: Floats, to_zphi_r_KS: Floats, request_XS: Floats, beside_XT: Floats
) -> tuple[Floats, Floats]:
    """The request's matrices with a person in them."""
    request_XS, beside_XT = request_XS.copy(), beside_XT.copy()
    request_XS[-1] += said_S
    for k in range(len(mean_K)):
        request_XS[k] = mean_K[k] * to_zphi_r_KS[k]
        request_XS[-1] += mean_K[k] * to_taste_KS[k]
        beside_XT[k, -1] = mean_K[k]
    return request_XS, beside_XT


@compiled
def _mixed(
    votes_NX: NDArray[np.float32],
    both_NX: NDArray[np.float32],
    heads_T: NDArray[np.float32],
    beside_NT: NDArray[np.float32],
) -> NDArray[np.float32]:
    """The votes weighted by the softmax of the gates, which are the last columns of `both_NX`, and what is added."""
    (rows, wide), objectives = votes_NX.shape, len(heads_T)
    found_NT, gates_NX = np.empty((rows, objectives), np.float32), both_NX[:, both_NX.shape[1] - wide :]
    cut = np.float32(CUT)
    for n in range(rows):
        for t in range(objectives):
            votes, shares = np.float32(0), np.float32(0)
            for x in range(t, wide, objectives):
                share = math.exp(max(-cut, min(cut, gates_NX[n, x])))
                votes += share * votes_NX[n, x]
                shares += share
            found_NT[n, t] = votes / shares + heads_T[t] + beside_NT[n, t]
    return found_NT


def _information(taste: Taste) -> NDArray[np.float32]:
    precision_K = taste.precision_K
    found: NDArray[np.float32] = precision_K * taste.mean_K if precision_K.ndim == 1 else precision_K @ taste.mean_K
    return found


def _grown(part: Floats, size: int) -> Floats:
    new = np.zeros((size, part.shape[1]), np.float32)
    new[: len(part)] = part
    return new
