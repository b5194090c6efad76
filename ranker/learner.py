"""One learning step: what examples teach the model, and by which rules its weights move (Zhao et al. 2019).

Dense weights move by AdamW (loshchilov2019decoupled), table rows by row-wise Adagrad (duchi2011adaptive) and only where
a batch touches them. Beside the objectives the base utility r learns to retrieve: a sampled softmax over the items of
the batch, corrected for how often an item is drawn (yi2019sampling), and agreement with the served utility. A step
whose loss or gradient is not finite moves no weight and counts nothing.

Axes: R rows, T objectives, I items of a batch, P positives, C items that compete, V table rows, F count inputs.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress

import numpy as np
import torch
from msgspec import msgpack, structs
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ranker.balance import AGAIN, Balance, People
from ranker.batch import Batch, collate
from ranker.catalogue import Catalogue
from ranker.comparisons import chosen, gains
from ranker.config import Config
from ranker.errors import CheckpointError
from ranker.events import Event
from ranker.evidence import EMPTY, Answer
from ranker.features import Encoder
from ranker.join import Example, Joiner
from ranker.model import Model, Output, Rows, keys_of
from ranker.pareto import copied_loss
from ranker.reliability import Population, fit_population
from ranker.report import ACTIVE, TasteReport
from ranker.slates import Foreseen
from ranker.taste import active_units, divergence, predictive_loss
from ranker.teachers import Teachers
from ranker.tutor import EVERY, Tutor

#: gradients are cut to this norm; their usual norm is below 1
LARGEST = 10.0
#: how far the base utility's two losses count beside the objectives
RETRIEVAL, AGREEMENT = 0.1, 0.02
#: how far comparisons count beside the objectives, and the divergence of tastes beside the comparisons
COMPARISON, DIVERGENCE = 0.5, 1e-3
#: how far a teacher's margin counts beside the label
DISTILLED = 3.0
#: names of a state that hold people's comparisons, and teachers
RESERVOIR, TEACHER = "people.reservoir", "teacher."
#: nats per axis that a taste may differ from the prior for nothing, so that it does not collapse onto it
FREE = 0.05
#: how fast the report on tastes follows
FOLLOW = 0.02
#: towers are tables of single logits: at the dense rate a place would take a thousand steps to its bias
TOWERS = 10.0
#: what a row's sum of squared gradients starts from, so that its first gradient is not a full step
FIRST = 5.0
#: labelled rows of a batch for which the configured rate is meant
ROWS = 1024
#: steps over which a new learner goes from the whole rate to its batch's
NEW = 300.0
#: share of the labelled slates that are learned as a newcomer's
NEWCOMERS = 0.03
#: catalogue items drawn as negatives of a positive that no ranking surrounds
DRAWN = 4
#: positives of a batch that enter the sampled softmax
POSITIVES = 512
#: slates whose counts, as they were when the slate was shown, are kept until it closes
NOTES = 100_000
#: values after which the scale of a value objective is settled
SETTLED = 2_000
#: how fast the mean gap between two batches with an item follows (yi2019sampling, alpha)
GAP_RATE = 0.05
#: an impression counts as at most so many, and at least one of so many, unbiased ones
WORTH = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one step did.

    Attributes:
        examples, rows: how many were learned; closing and opening examples are not among them.
        losses: mean loss per objective over its labelled rows; nan where it had none.
        retrieval: mean loss of the sampled softmax; nan without positives.
        norm: of the whole gradient, before it is cut.
        finite: False where the step was skipped because loss or gradient were not finite.
    """

    examples: int
    rows: int
    losses: dict[str, float]
    retrieval: float
    norm: float
    finite: bool


class Learner:
    """Model, optimiser and random state, moved on one batch at a time.

    Example:
        >>> from ranker.config import parse
        >>> learner = Learner(parse({"objectives": [{"name": "click", "event": "click"}], "scale": "tiny"}))
        >>> learner.learn([], Catalogue(learner.config)).rows
        0
    """

    def __init__(self, config: Config) -> None:
        self.config, self.encoder = config, Encoder(config)
        generator = torch.Generator().manual_seed(config.learning.seed)
        self.model = Model(config, generator)
        self._dense = self.model.dense()
        towers = [*self.model.tower.parameters(), *self.model.framing.parameters()]
        others = [p for p in self._dense if all(p is not other for other in towers)]
        self._adam = torch.optim.AdamW([{"params": others}, {"params": towers}], weight_decay=1e-4, fused=True)
        self.tutor = Tutor(config, self.model)
        self._notes: OrderedDict[str, _Note] = OrderedDict()
        V, T = self.model.wide_VT.shape
        largest = max(abs(objective.weight) for objective in config.objectives) or 1.0
        self._weight_T = torch.tensor([objective.weight for objective in config.objectives])
        # an objective that weighs nothing by default is still learned: a request may give it weight
        self._share_T = 0.5 + 0.5 * self._weight_T.abs() / largest
        self._value_T = torch.tensor([objective.kind == "value" for objective in config.objectives])
        self._gain_T = gains(config)
        self._balance = None if config.fairness.method == "erm" else Balance(config)
        self._people: People | None = None
        self.teachers: Teachers | None = None
        #: whether teachers are asked about every comparison, and not only those that come again
        self.advise_all = False
        self._alone_T = [o.kind == "binary" and o.threshold is None and o.graded is None for o in config.objectives]
        #: everything that `state` keeps besides weights, optimiser, random state and notes
        self._kept = {
            "squares_table": torch.full((V,), FIRST),
            "squares_wide": torch.full((V,), FIRST),
            "usual": torch.zeros(()),
            "values": torch.zeros(3, T, dtype=torch.float64),
            "steps": torch.zeros((), dtype=torch.int64),
            "taste": torch.zeros(5 + len(ACTIVE), dtype=torch.float64),
            "last": torch.zeros(V // 2, dtype=torch.int64),
            "gap": torch.full((V // 2,), 100.0),
        }

    def know(self, people: People) -> None:
        """From whom the examples come: without it groups are not balanced. Serving has no such thing."""
        self._people = people

    def forget(self, user: str) -> None:
        """Drop what is kept of this person's examples."""
        if self._balance is not None:
            self._balance.forget(user)

    def predict(self, examples: Sequence[Example], catalogue: Catalogue) -> list[NDArray[np.float32]]:
        """The model's (N, T) for each example as it is now: probabilities, tower included at the places shown."""
        return [found.chances_NT for found in self.foresee(examples, catalogue)]

    def foresee(self, examples: Sequence[Example], catalogue: Catalogue) -> list[Foreseen]:
        """What the model says of each example as it is now: at the places shown, and apart from them."""
        if not examples:
            return []
        self.model.eval()
        population = Population.from_array(self.model.get_buffer("reliability").numpy())
        with torch.no_grad():
            out = self.model(collate(examples, catalogue, self.encoder, population))
            free_RT, at_place_RT = self._chances(out.logits_RT), self._chances(out.logits_RT + out.tower_RT)
            # the batch's items stand for the catalogue's typical one
            typical_U = out.mean_UK @ out.phi_IK.mean(0) + out.intercept_I.mean()
            own_R = np.repeat(np.arange(len(examples)), [len(example.items) for example in examples])
            preferred_R = torch.sigmoid(out.utility_R - typical_U[own_R])
            utility_R = free_RT @ self._weight_T + self.config.preference.weight * preferred_R
        parts = at_place_RT, self._worth(out).where(~self._value_T, 1.0), utility_R
        ends = np.cumsum([len(example.items) for example in examples])[:-1]
        return [Foreseen(*some) for some in zip(*(np.split(part.numpy(), ends) for part in parts), strict=True)]

    def foretell(self, examples: Sequence[Example], catalogue: Catalogue) -> NDArray[np.float64]:
        """The margin of each comparison of the examples by the taste as it is read now, (P,)."""
        examples = [example for example in examples if example.pairs]
        if not examples:
            return np.zeros(0)
        self.model.eval()
        population = Population.from_array(self.model.get_buffer("reliability").numpy())
        with torch.no_grad():
            margin_P = self.model.margins(collate(examples, catalogue, self.encoder, population))
        found: NDArray[np.float64] = margin_P.double().numpy()
        return found

    def _chances(self, logits_RT: Tensor) -> Tensor:
        values_RT = self.model.get_buffer("offset_T") + self.model.get_buffer("scale_T") * logits_RT
        return torch.where(self._value_T, values_RT, torch.sigmoid(logits_RT))

    @staticmethod
    def _worth(out: Output) -> Tensor:
        """What an impression at its place counts, against one at an unknown place."""
        chance_RT, at_place_RT = torch.sigmoid(out.logits_RT), torch.sigmoid(out.logits_RT + out.tower_RT)
        return (at_place_RT / chance_RT.clamp(min=1e-6)).clamp(1 / WORTH, WORTH)

    def learn(self, examples: Sequence[Example], catalogue: Catalogue) -> StepReport:
        """One step on what is learnable among the examples.

        Closing examples are passed over. Opening examples teach nothing, but what the counters say of their items is
        noted: when their labels come, the model learns from what it would have seen when the slate was shown.
        """
        self._note(examples, catalogue)
        taught = _labelled([e for e in examples if not (e.opening or e.closing)])
        pairs = [e for e in examples if e.pairs]
        closed = [e for e in examples if e.closing]
        worths = self._worths(closed)
        pairs += [p for e, w in zip(closed, worths, strict=True) if (p := chosen(e, self._gain_T, w)) is not None]
        report = self._step(taught, pairs, catalogue) if taught or pairs else _nothing(self.config)
        for example in examples:
            if example.closing:
                self._notes.pop(example.ranking, None)
        return report

    def _worths(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """What each row's place is worth by the tower, in odds, (N, T) of each example."""
        if not examples:
            return []
        positions_R = torch.from_numpy(np.concatenate([e.positions for e in examples]).astype(np.int64))
        sizes = [len(e.items) for e in examples]
        codes_UC = np.array([self.encoder.device(e.request) for e in examples], np.int64).reshape(len(examples), -1)
        self.model.eval()
        with torch.no_grad():
            tower_RT = self.model.tower(positions_R, torch.from_numpy(np.repeat(codes_UC, sizes, 0)))
            worth_RT = tower_RT.exp().clamp(1 / WORTH, WORTH).numpy()
        return np.split(worth_RT, np.cumsum(sizes)[:-1])

    def believe(self, people: Iterable[Sequence[Answer]]) -> None:
        """Find out anew what reliable answers look like in this population (ranker/reliability.py)."""
        numbers = self.model.get_buffer("reliability")
        numbers.copy_(torch.from_numpy(fit_population(people).to_array()))

    @property
    def tastes(self) -> TasteReport:
        """What tastes are worth by now."""
        pairs, loss, pooled, conditioned, divergence, *active = self._kept["taste"].tolist()
        return TasteReport(
            pairs=int(pairs),
            loss=loss,
            pooled=pooled,
            conditioned=conditioned,
            divergence=divergence,
            active=tuple(active),
        )

    def weights(self) -> dict[str, Tensor]:
        """What a version ships: a copy of the model's weights and counts, as `Inference` takes them."""
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def state(self) -> dict[str, Tensor]:
        """Everything that learning depends on; `load` gives a learner that goes on bit for bit like this one.

        What holds parts of people's histories is named RESERVOIR and belongs into checkpoints, never into a version.
        """
        found = {f"model.{name}": tensor for name, tensor in self.weights().items()}
        found |= {f"kept.{name}": tensor.clone() for name, tensor in self._kept.items()}
        for place, parameter in enumerate(self._dense):
            for name, tensor in self._adam.state.get(parameter, {}).items():
                found[f"adam.{place}.{name}"] = tensor.clone()
        found |= {f"tutor.{name}": tensor for name, tensor in self.tutor.state().items()}
        notes = [(name, note.items, note.counts_NF.tobytes()) for name, note in self._notes.items()]
        if self._balance is not None:
            found["fair"] = _bytes(self._balance.state())
            found[RESERVOIR] = _bytes(self._balance.people())
        if self.teachers is not None:
            found |= {f"{TEACHER}{name}": tensor for name, tensor in self.teachers.tensors().items()}
        found["notes"] = _bytes(msgpack.encode(notes))
        found["random"] = self.model.generator.get_state()
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave.

        Raises:
            CheckpointError: the state belongs to another configuration.
        """
        model = {name[6:]: tensor for name, tensor in state.items() if name.startswith("model.")}
        own = self.model.state_dict()
        wrong = [name for name in own if name not in model or model[name].shape != own[name].shape]
        missing = [name for name in ("notes", "random", *(f"kept.{n}" for n in self._kept)) if name not in state]
        if wrong or missing:
            raise CheckpointError("learner state", (wrong + missing)[0], "it was written for another configuration")
        self.model.load_state_dict(model)
        self._kept = {name: state[f"kept.{name}"].clone() for name in self._kept}
        self._adam.state.clear()
        for place, parameter in enumerate(self._dense):
            own_state = {n: state[f"adam.{place}.{n}"].clone() for n in ADAM if f"adam.{place}.{n}" in state}
            if own_state:
                self._adam.state[parameter] = own_state
        self.tutor.load({name[6:]: tensor for name, tensor in state.items() if name.startswith("tutor.")})
        width = self.model.counters.inputs
        self._notes = OrderedDict(
            (name, _Note(tuple(items), np.frombuffer(raw, np.float32).reshape(-1, width)))
            for name, items, raw in msgpack.decode(
                state["notes"].numpy().tobytes(), type=list[tuple[str, list[str], bytes]]
            )
        )
        self.model.generator.set_state(state["random"])
        if self._balance is not None and "fair" in state:
            reservoir = state.get(RESERVOIR)
            people = self._balance.people() if reservoir is None else reservoir.numpy().tobytes()
            self._balance.load(state["fair"].numpy().tobytes(), people)
        frozen = {name[len(TEACHER) :]: tensor for name, tensor in state.items() if name.startswith(TEACHER)}
        self.teachers = Teachers(self.config, frozen) if frozen else None

    # -- one step ----------------------------------------------------------------------------------------------

    def _step(self, taught: list[Example], pairs: list[Example], catalogue: Catalogue) -> StepReport:
        count = sum(len(example.items) for example in taught)
        population = Population.from_array(self.model.get_buffer("reliability").numpy())
        labelled = [*self._unknown(taught), *self._drawn(taught, catalogue)]
        plan = self._plan(labelled, pairs, catalogue, population)
        examples = [*labelled, *pairs, *plan.again]
        batch = collate(examples, catalogue, self.encoder, population)
        rows = self.model.gather(batch)
        self.model.train()
        # the forward pass keeps running means in these; the counts are large and move only below
        before = {n: b.clone() for n, b in self.model.named_buffers() if not n.startswith("counters.")}
        out: Output = self.model(batch, rows, self._counts(taught, batch))
        self._settle(batch)
        usual = self._usual(batch)
        loss, losses_T = self._objectives(out, batch, usual, plan)
        retrieval, positives = self._retrieve(out, batch)
        loss = loss + RETRIEVAL * retrieval / usual + AGREEMENT * self._agree(out)
        loss = loss + COMPARISON * self._prefer(out, batch, plan) / usual
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        grads = [g for p in (*self._dense, *rows) if (g := p.grad) is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        finite = bool(np.isfinite(norm)) and bool(torch.isfinite(loss))
        if finite:
            torch._foreach_mul_(grads, min(1.0, LARGEST / (norm + 1e-12)))
            for group, pace in zip(self._adam.param_groups, (1.0, TOWERS), strict=True):
                group["lr"] = pace * self._rate(usual)
            self._adam.step()
            self._descend(batch, rows, usual)
            self._count(out, batch, count)
            if self._balance is not None and self._balance.repeats and plan.names:
                self._balance.keep(pairs, plan.names[len(labelled) : len(labelled) + len(pairs)])
            if pairs and int(self._kept["steps"]) % EVERY == 0:
                self.tutor.teach(examples, batch, out, catalogue, self.encoder)
        else:
            for name, tensor in before.items():
                self.model.get_buffer(name).copy_(tensor)
        return StepReport(
            examples=len(taught),
            rows=count,
            losses={o.name: v for o, v in zip(self.config.objectives, losses_T, strict=True)},
            retrieval=float(retrieval.detach()) / positives if positives else float("nan"),
            norm=norm,
            finite=finite,
        )

    def _plan(
        self, labelled: list[Example], pairs: list[Example], catalogue: Catalogue, population: Population
    ) -> "_Plan":
        """How the groups of a batch are balanced: weights, comparisons that come again, what teachers say."""
        balance, people = self._balance, self._people
        if balance is None or people is None:
            return _Plan()
        own = [*labelled, *pairs]
        names, targets = balance.names(own, people), balance.targets()
        balance.observe(names, [len(one.pairs) or int((one.mask_NT > 0).any(1).sum()) for one in own])
        if not targets:
            return _Plan(names=names)
        weight_E, again = balance.weigh(names, targets), list[Example]()
        if balance.repeats:
            compared = names[len(labelled) :]
            least = 0 if self.teachers is None else -(-len(pairs) // AGAIN)
            again, weight_C = balance.again(compared, targets, least=least)
            names += balance.names(again, people)
            weight_E = np.concatenate([weight_E[: len(labelled)], weight_C])
        teacher_P = None
        if self.teachers is not None:
            first = len(labelled) if self.advise_all else len(own)
            margin_P = self.teachers.margins([*own, *again][first:], names[first:], people, catalogue, population)
            silent = sum(len(one.pairs) for one in pairs) if not self.advise_all else 0
            teacher_P = torch.cat([torch.full((silent,), torch.nan), margin_P])
        return _Plan(again, names, torch.from_numpy(weight_E), teacher_P, sum(len(one.pairs) for one in pairs))

    def _objectives(self, out: Output, batch: Batch, usual: float, plan: "_Plan") -> tuple[Tensor, list[float]]:
        """Cross entropy, or Huber in units of the value's spread; summed over rows and divided by the usual number.

        A batch's own number would let the few positives that arrive together weigh as much as the many negatives
        that are known later, and so tilt every probability.
        """
        logits_RT = out.logits_RT + out.tower_RT
        known_RT = batch.mask_RT > 0
        offset_T, scale_T = self.model.get_buffer("offset_T"), self.model.get_buffer("scale_T")
        # a masked label may be anything, so it is replaced before it is used: 0 times nan is nan
        labels_RT = torch.where(known_RT, batch.labels_RT, 0.0)
        losses_RT = functional.binary_cross_entropy_with_logits(
            logits_RT, torch.where(self._value_T, 0.0, labels_RT), reduction="none"
        )
        if self._value_T.any():
            units_RT = torch.where(known_RT, (labels_RT - offset_T) / scale_T, 0.0)
            huber_RT = functional.huber_loss(logits_RT, units_RT, reduction="none")
            losses_RT = torch.where(self._value_T, huber_RT, losses_RT)
        sums_T = (losses_RT * batch.mask_RT).sum(0)
        means_T = (sums_T.detach() / batch.mask_RT.sum(0)).tolist()
        if plan.weight_E is None:
            return (sums_T * self._share_T).sum() / usual, means_T
        losses_R = (losses_RT * batch.mask_RT) @ self._share_T
        self._heard(losses_R.detach(), batch, plan.names)
        return (losses_R * plan.weight_E[batch.row_slate_R]).sum() / usual, means_T

    def _heard(self, losses_R: Tensor, batch: Batch, names: list[str | None]) -> None:
        """Tell the balance how each group fared, before any weights."""
        if self._balance is not None and self._balance.follows_losses:
            known_R = (batch.mask_RT > 0).any(1).float()
            sums_E, rows_E = (
                torch.zeros(len(names)).index_add_(0, batch.row_slate_R, own_R) for own_R in (losses_R, known_R)
            )
            self._balance.heard(names, sums_E.numpy(), rows_E.numpy())

    def _retrieve(self, out: Output, batch: Batch) -> tuple[Tensor, int]:
        """Sampled softmax of r over the batch's shown items, for rows that fulfilled what is wanted; summed.

        Source: Yi et al. 2019, eq. 5 and algorithm 2; hashed by the item's first id row. Differs: items that the
        same user fulfilled as well are left out of the competition.
        """
        wanted_T = (self._weight_T > 0) & ~self._value_T
        hit_R = ((batch.labels_RT > 0) & (batch.mask_RT > 0) & wanted_T).any(1)
        at_P = hit_R.nonzero()[:POSITIVES, 0]
        steps, last, gap = (self._kept[name] for name in ("steps", "last", "gap"))
        steps += 1
        items_C, place_R = torch.unique(batch.row_item_R, return_inverse=True)
        keys_C = keys_of(batch)[items_C, 0]
        gap[keys_C] += GAP_RATE * ((steps - last[keys_C]).float() - gap[keys_C])
        last[keys_C] = steps
        if not len(at_P) or len(items_C) < 2:
            return out.utility_R.new_zeros(()), 0
        user_P = batch.row_slate_R[at_P]
        r_PC = out.mean_UK[user_P] @ out.phi_IK[items_C].T + out.intercept_I[items_C]
        r_PC = r_PC + gap[keys_C].clamp(min=1).log()
        also_UC = torch.zeros(batch.slates, len(items_C), dtype=torch.bool)
        also_UC[batch.row_slate_R[hit_R], place_R[hit_R]] = True
        own_PC = functional.one_hot(place_R[at_P], len(items_C)).bool()
        r_PC = r_PC.masked_fill(also_UC[user_P] & ~own_PC, -torch.inf)
        return functional.cross_entropy(r_PC, place_R[at_P], reduction="sum"), len(at_P)

    def _prefer(self, out: Output, batch: Batch, plan: "_Plan") -> Tensor:
        """Bradley-Terry on differences of r, the taste integrated out, and the tastes' divergence; summed over pairs.

        Source: VPL (Poddar et al. 2024) trained on prediction: every comparison lies outside the context that its
        taste was read from. The framing tower takes what order and wording did to an answer.
        """
        if not len(batch.pair_share_P):
            return out.utility_R.new_zeros(())
        weight_P = batch.pair_weight_P
        if plan.weight_E is not None:
            weight_P = weight_P * plan.weight_E[batch.row_slate_R[batch.pair_one_P]]
        loss = predictive_loss(out.margin_P + out.framing_P, out.variance_P, batch.pair_share_P, weight_P)
        users_U = torch.unique(batch.row_slate_R[batch.pair_one_P])
        divergence_U = divergence(
            out.context_UK[users_U], out.precision_UK[users_U], *self.model.history.prior(), free=FREE
        )
        # what is learned once more says nothing of how well tastes foretell
        own = len(weight_P) if plan.own is None else plan.own
        self._report(out, batch, (loss.detach(), divergence_U.detach().mean()), users_U, own)
        total = loss * weight_P.sum() + DIVERGENCE * divergence_U.mean() * len(weight_P)
        if plan.teacher_P is None:
            return total
        # ties have no sign that a teacher could agree with
        heeded_P = plan.teacher_P.isfinite() & (batch.pair_share_P > 0.5)
        copied_P = copied_loss(out.margin_P, torch.where(heeded_P, plan.teacher_P, 0.0))
        return total + DISTILLED * (weight_P * copied_P).sum()

    def _report(self, out: Output, batch: Batch, losses: tuple[Tensor, Tensor], users_U: Tensor, own: int) -> None:
        """Move the running report on tastes by the first `own` comparisons; ties say nothing about accuracy."""
        loss, divergence = losses
        with torch.no_grad():
            clear_P = batch.pair_share_P != 0.5
            clear_P[own:] = False
            if not clear_P.any() or not torch.isfinite(loss):
                return
            right = [(margin_P[clear_P] > 0).double().mean() for margin_P in (out.pooled_P, out.margin_P)]
            means_UK = out.context_UK[users_U]
            active = [torch.tensor(active_units(means_UK, least)) for least in ACTIVE]
            found = torch.stack([t.double() for t in (loss, *right, divergence, *active)])
            kept = self._kept["taste"]
            # a plain mean at first, so that the first steps do not count for long
            rate = max(FOLLOW, float(clear_P.sum() / (kept[0] + clear_P.sum()))) if kept[0] < 2000 else FOLLOW
            kept[1:] = torch.where(found.isfinite(), kept[1:] + rate * (found - kept[1:]), kept[1:])
            kept[0] += own

    def _agree(self, out: Output) -> Tensor:
        """One minus the correlation of r with the served utility over the rows: free of scale, so r keeps its own."""
        with torch.no_grad():
            chances_RT = torch.where(self._value_T, out.logits_RT, torch.sigmoid(out.logits_RT))
            served_R = chances_RT @ self._weight_T
            served_R = served_R - served_R.mean()
        if len(served_R) < 8 or not float(served_R.std()) > 1e-6:
            return served_R.new_zeros(())
        own_R = out.utility_R - out.utility_R.mean()
        agreement: Tensor = functional.cosine_similarity(own_R, served_R, dim=0, eps=1e-4)
        return 1 - agreement

    def _descend(self, batch: Batch, rows: Rows, usual: float) -> None:
        """Row-wise Adagrad on the touched rows only: one sum of squares per row.

        A row's gradient is taken as a sum over its own occurrences, whatever the size of the batch.
        """
        touched_V, rate = batch.touched_V, self.config.learning.row_rate
        with torch.no_grad():
            for name, table, leaf in (
                ("squares_table", self.model.table_VD, rows.table_VD),
                ("squares_wide", self.model.wide_VT, rows.wide_VT),
            ):
                grad = leaf.grad
                if grad is None:
                    continue
                grad, squares = grad * usual, self._kept[name]
                sums_V = squares[touched_V] + grad.square().mean(1)
                squares[touched_V] = sums_V
                table[touched_V] = leaf - rate * grad / (sums_V.sqrt() + 1e-4)[:, None]

    # -- counts ------------------------------------------------------------------------------------------------

    def _note(self, examples: Sequence[Example], catalogue: Catalogue) -> None:
        shown = [e for e in examples if e.opening and min(catalogue.rows.get(item, -1) for item in e.items) >= 0]
        if not shown:
            return
        rows = np.concatenate([catalogue.find(example.items) for example in shown])
        bags = self.encoder.items(catalogue, rows)
        starts = np.cumsum(bags.lengths) - bags.lengths
        keys_R2 = torch.from_numpy(bags.rows[starts[:, None] + np.arange(2)])
        sizes = [len(example.items) for example in shown]
        times_R = torch.tensor([example.time for example in shown]).repeat_interleave(torch.tensor(sizes))
        parts = np.split(self.model.counters(keys_R2, times_R).numpy(), np.cumsum(sizes)[:-1])
        for example, counts_NF in zip(shown, parts, strict=True):
            self._notes[example.ranking] = _Note(example.items, counts_NF)
            if len(self._notes) > NOTES:
                self._notes.popitem(last=False)

    def _counts(self, taught: Sequence[Example], batch: Batch) -> Tensor:
        """What the counters said when each row was shown, or say now where that was not noted."""
        keys_R2 = keys_of(batch)[batch.row_item_R]
        counts_RF: Tensor = self.model.counters(keys_R2, batch.times_U[batch.row_slate_R])
        start, rows, places = 0, list[int](), list[int]()
        noted: dict[str, int] = {}  # where the counts of each slate that was noted begin, end to end
        parts: list[NDArray[np.float32]] = []
        total = 0
        for example in taught:
            end = start + len(example.items)
            note = self._notes.get(example.ranking)
            if note is not None:
                first = noted.setdefault(example.ranking, total)
                if first == total:
                    parts.append(note.counts_NF)
                    total += len(note.items)
                rows += range(start, end)
                if len(note.items) == len(example.items):
                    places += range(first, first + len(note.items))
                else:
                    places += [first + note.items.index(item) for item in example.items]
            start = end
        if rows:
            counts_RF.numpy()[rows] = np.concatenate(parts)[places]
        return counts_RF

    def _count(self, out: Output, batch: Batch, rows: int) -> None:
        """Count what was learned; an impression is worth what its place is worth, against an unknown place."""
        with torch.no_grad():
            worth_RT = self._worth(out)
            known_RT = batch.mask_RT[:rows] > 0
            self.model.counters.count(
                keys_of(batch)[batch.row_item_R[:rows]],
                batch.times_U[batch.row_slate_R[:rows]],
                torch.where(known_RT, worth_RT[:rows], 0.0),
                (known_RT & (batch.labels_RT[:rows] > 0)).float(),
            )

    # -- small parts -------------------------------------------------------------------------------------------

    def _unknown(self, taught: Sequence[Example]) -> list[Example]:
        """The examples, a few of them as if nothing were known of the person yet.

        Where everybody who comes is known, a newcomer lies outside of what is learned from: after 40 minutes of such a
        stream a click that happened once in five times was foretold once in a thousand.
        """
        drawn = (torch.rand(len(taught), generator=self.model.generator) < NEWCOMERS).tolist()
        return [
            replace(example, evidence=structs.replace(EMPTY, fields=example.evidence.fields)) if new else example
            for example, new in zip(taught, drawn, strict=True)
        ]

    def _drawn(self, taught: Sequence[Example], catalogue: Catalogue) -> list[Example]:
        """Catalogue items as negatives for positives that came without a ranking and that nothing else contrasts."""
        alone = [
            (example, [t for t, alone in enumerate(self._alone_T) if alone and example.mask_NT[0, t] > 0])
            for example in taught
            if not example.ranking
        ]
        alone = [(example, places) for example, places in alone if places]
        if not alone or len(catalogue) < 2:
            return []
        drawn = torch.randint(len(catalogue), (len(alone), DRAWN), generator=self.model.generator).tolist()
        found = []
        for (example, places), rows in zip(alone, drawn, strict=True):
            items = tuple(item for row in rows if (item := catalogue.items[row].id) not in example.items)
            if not items:
                continue
            mask_NT = np.zeros((len(items), example.mask_NT.shape[1]), np.float32)
            mask_NT[:, places] = 1
            unknown = np.full(len(items), -1, np.int32)
            found.append(
                replace(example, items=items, positions=unknown, labels_NT=0 * mask_NT, mask_NT=mask_NT, inline={})
            )
        return found

    def _rate(self, usual: float) -> float:
        """The dense rate: with the square root of the batch (malladi2022sdes), but whole while everything is new."""
        share, new = min(1.0, usual / ROWS) ** 0.5, math.exp(-float(self._kept["steps"]) / NEW)
        return float(self.config.learning.rate * (share + (1 - share) * new))

    def _usual(self, batch: Batch) -> float:
        """The usual number of labelled rows in a batch, a slow mean."""
        usual = self._kept["usual"]
        count = float((batch.mask_RT > 0).any(1).sum())
        usual.copy_(usual + 0.01 * (count - usual) if float(usual) else torch.tensor(count))
        return max(float(usual), 1.0)

    def _settle(self, batch: Batch) -> None:
        """Offset and scale of value objectives, from the first SETTLED finite values of each."""
        if not self._value_T.any():
            return
        count_T, mean_T, spread_T = self._kept["values"]
        for place in self._value_T.nonzero()[:, 0].tolist():
            column = batch.labels_RT[:, place][batch.mask_RT[:, place] > 0].double()
            column = column[torch.isfinite(column)]
            if not len(column) or float(count_T[place]) >= SETTLED:
                continue
            total = count_T[place] + len(column)
            away = column.mean() - mean_T[place]
            spread_T[place] += (column - column.mean()).square().sum()
            spread_T[place] += away**2 * count_T[place] * len(column) / total
            mean_T[place] += away * len(column) / total
            count_T[place] = total
            self.model.get_buffer("offset_T")[place] = float(mean_T[place])
            self.model.get_buffer("scale_T")[place] = max(float((spread_T[place] / total).sqrt()), 1e-3)


#: what AdamW keeps for a parameter
ADAM = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, eq=False)
class _Note:
    """What the counters said of a slate's items when it was shown."""

    items: tuple[str, ...]
    counts_NF: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """How a step treats groups; plainly without `weight_E`.

    Attributes:
        again: comparisons that are learned once more.
        names, weight_E: the group and the weight of each example of the batch, those of `again` last.
        teacher_P: margins of the teachers; nan where none was asked.
        own: comparisons that come for the first time; None for all.
    """

    again: list[Example] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    weight_E: Tensor | None = None
    teacher_P: Tensor | None = None
    own: int | None = None


def _labelled(examples: Sequence[Example]) -> list[Example]:
    """Those of which some label is known."""
    if not examples:
        return []
    known_R = np.concatenate([example.mask_NT for example in examples]).any(1)
    known_R = np.append(0, np.cumsum(known_R))
    known_E = np.diff(known_R[np.cumsum([len(example.items) for example in examples])], prepend=0) > 0
    return [*compress(examples, known_E.tolist())]


def _bytes(raw: bytes) -> Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


def _nothing(config: Config) -> StepReport:
    losses = {objective.name: float("nan") for objective in config.objectives}
    return StepReport(examples=0, rows=0, losses=losses, retrieval=float("nan"), norm=0.0, finite=True)


def beside(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a version ships of `Learner.state` besides weights and teachers; nobody's comparisons are in it."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(("model.", RESERVOIR, TEACHER))}


def train(
    events: Iterable[Event], learner: Learner, joiner: Joiner, *, rows: int = 2048, people: People | None = None
) -> Iterator[StepReport]:
    """Learn a log in its order, a step each time about `rows` rows became learnable; closes every slate at its end.

    The log is streamed, of any size. For several passes call it again with a new joiner and after
    `counters.uncount`, or the counts of one pass would tell the next its labels.

    Args:
        joiner: with `opening`, counts are as they were when a slate was shown, as they are in serving.
        people: whose groups are balanced; by default as the joiner knows them at the time.
    """
    waiting: list[Example] = []
    count = 0
    learner.know(people or joiner)
    for event in events:
        for example in joiner.push(event):
            waiting.append(example)
            count += 0 if example.opening or example.closing else len(example.items)
        if count >= rows:
            yield learner.learn(waiting, joiner.catalogue)
            waiting, count = [], 0
    waiting += joiner.flush()
    if waiting:
        yield learner.learn(waiting, joiner.catalogue)
