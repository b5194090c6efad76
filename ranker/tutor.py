"""Teaches a model to sum people up, in turns: which phrases to draw, and what they mean (PLUS, nam2026learning).

Now and then a batch's people become lessons: each history as the phrases it could support, and her comparisons, which
lie outside of it. The policy is moved by policy gradient, the meaning of phrases by likelihood (ranker/summary.py).
Nothing here moves the base rewards or the tastes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ranker.batch import Batch
from ranker.catalogue import Catalogue
from ranker.config import Config
from ranker.features import Encoder
from ranker.model import Model, Output
from ranker.slates import Example
from ranker.summary import Lesson, Space, Turn, appraise, candidates, improve
from ranker.taste import Factor
from ranker.vocabulary import Vocabulary

#: steps of the learner between two lessons, and turns of each lesson
EVERY, TURNS = 32, 2
#: fewer people than this teach nothing; more are left out
LEAST, MOST = 8, 32
#: acts below which a history is too short to be summed up
ACTS = 5
#: tags' directions are read off so many items, the first of the catalogue
ITEMS = 20_000
RATES: dict[Turn, float] = {"policy": 1e-2, "meaning": 5e-2}
KEPT = ("step", "exp_avg", "exp_avg_sq")


class Tutor:
    """The lessons of one learner; its state belongs to the learner's."""

    def __init__(self, config: Config, model: Model) -> None:
        self.config, self.model = config, model
        self._own = {"policy": model.summary.speaking(), "meaning": model.summary.meaning()}
        self._optimisers = {turn: torch.optim.Adam(own, lr=RATES[turn]) for turn, own in self._turns()}  # type: ignore[index]
        self._vocabulary: Vocabulary | None = None
        #: reward over no summary at all, nats a comparison, in the last lesson
        self.gain = float("nan")

    def teach(
        self, examples: Sequence[Example], batch: Batch, out: Output, catalogue: Catalogue, encoder: Encoder
    ) -> None:
        """One lesson, from the comparisons of a batch.

        Args:
            examples: those the batch was made of, in its order.
        """
        people = [place for place, one in enumerate(examples) if one.pairs and len(one.evidence.history) >= ACTS]
        if len(people) < LEAST:
            return
        if self._vocabulary is None or self._vocabulary.catalogue is not catalogue:
            self._vocabulary = Vocabulary(self.config, catalogue)
        self._vocabulary.update()
        tags = self._vocabulary.tags
        if not len(tags):
            return
        phi_NK, prior = self._base(catalogue, encoder), self._prior()
        space = Space.of(tags.directions(phi_NK), prior)
        lessons = [self._lesson(examples[place], place, batch, out, space) for place in people[:MOST]]
        for turn, optimiser in self._optimisers.items():
            for _ in range(TURNS):
                found = improve(
                    self.model.summary,
                    lessons,
                    tags,
                    space,
                    optimiser=optimiser,
                    generator=self.model.generator,
                    turn=turn,  # type: ignore[arg-type]
                )
        if found:
            self.gain = found["reward"] - found["baseline"]

    def state(self) -> dict[str, Tensor]:
        """What the optimisers remember."""
        return {
            f"{turn}.{place}.{name}": tensor.clone()
            for turn, own in self._turns()
            for place, parameter in enumerate(own)
            for name, tensor in self._optimisers[turn].state.get(parameter, {}).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        for turn, own in self._turns():
            remembered = self._optimisers[turn].state
            remembered.clear()
            for place, parameter in enumerate(own):
                found = {name: state[key].clone() for name in KEPT if (key := f"{turn}.{place}.{name}") in state}
                if found:
                    remembered[parameter] = found

    def _turns(self) -> list[tuple[str, list[torch.nn.Parameter]]]:
        return list(self._own.items())

    def _prior(self) -> Factor:
        precision_K, mean_K = (part.detach().numpy() for part in self.model.history.prior())
        return Factor(precision_K, precision_K * mean_K)

    @torch.no_grad()
    def _base(self, catalogue: Catalogue, encoder: Encoder) -> NDArray[np.float32]:
        bags = encoder.items(catalogue, np.arange(min(len(catalogue), ITEMS)))
        starts = torch.from_numpy(np.cumsum(bags.lengths) - bags.lengths)
        rows, weights = torch.from_numpy(bags.rows), torch.from_numpy(bags.weights)
        item_ND = functional.embedding_bag(rows, self.model.table_VD, starts, mode="sum", per_sample_weights=weights)
        item_ND = item_ND + torch.from_numpy(bags.numbers) @ self.model.numbers["item"].T
        found: NDArray[np.float32] = functional.linear(item_ND, self.model.phi, self.model.phi_bias)[:, :-1].numpy()
        return found

    def _lesson(self, example: Example, place: int, batch: Batch, out: Output, space: Space) -> Lesson:
        assert self._vocabulary is not None
        acts, said_A = appraise(example.evidence, self.config.objectives)
        could = candidates(
            self._vocabulary.tags,
            self._vocabulary.catalogue.find([act.item for act in acts]),
            said_A,
            np.array([act.time for act in acts], np.int64),
            space=space,
            taste_K=out.context_UK[place].detach().numpy(),
        )
        own_P = (batch.row_slate_R[batch.pair_one_P] == place) & (batch.pair_share_P == 1)
        one_P, other_P = (batch.row_item_R[rows_P[own_P]].numpy() for rows_P in (batch.pair_one_P, batch.pair_other_P))
        phi_IK, intercept_I = out.phi_IK.detach().numpy(), out.intercept_I.detach().numpy()
        return Lesson(could, phi_IK[one_P] - phi_IK[other_P], intercept_I[one_P] - intercept_I[other_P])
