"""Frozen teachers: models of one group each, asked for margins only; they read more of a person than the learner does.

Axes: P comparisons.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ranker.balance import EVERYBODY, People, privileged
from ranker.batch import collate
from ranker.catalogue import Catalogue
from ranker.config import Config
from ranker.errors import CheckpointError
from ranker.features import Encoder
from ranker.model import Model
from ranker.reliability import Population
from ranker.slates import Example

#: a margin does not depend on these, and they are most of a small model
LEFT_OUT = "counters."


class Teachers:
    """One model for each group, by the group's name; EVERYBODY teaches all.

    Args:
        tensors: `tensors` of other teachers, or `named` weights.

    Raises:
        CheckpointError: they belong to another configuration.
    """

    def __init__(self, config: Config, tensors: Mapping[str, Tensor]) -> None:
        self._encoder = Encoder(config)
        self.models: dict[str, Model] = {}
        for name in sorted({key.partition("@")[2] for key in tensors}):
            model = Model(config, torch.Generator())
            own = {key.partition("@")[0]: tensor for key, tensor in tensors.items() if key.partition("@")[2] == name}
            rest = {key: tensor for key, tensor in model.state_dict().items() if key.startswith(LEFT_OUT)}
            try:
                model.load_state_dict({**own, **rest})
            except RuntimeError as error:
                raise CheckpointError(f"teacher {name!r}", str(error)[:200], "train teachers anew") from None
            self.models[name] = model.eval()

    def tensors(self) -> dict[str, Tensor]:
        """What a version carries: every teacher's weights, named `weight@group`."""
        return {
            key: tensor
            for name, model in self.models.items()
            for key, tensor in named(name, model.state_dict()).items()
        }

    def margins(
        self,
        examples: Sequence[Example],
        names: Sequence[str | None],
        people: People,
        catalogue: Catalogue,
        population: Population,
    ) -> Tensor:
        """The own group's teacher's margin of each comparison, (P,) in the order of the examples; nan without one.

        Args:
            names: the group of each example's person.
            people: what is known of them by now, which a teacher may read, but for what they did with the items
                compared.
        """
        found = torch.full((sum(len(one.pairs) for one in examples),), torch.nan)
        ends = torch.tensor([0, *(len(one.pairs) for one in examples)]).cumsum(0).tolist()
        for name, model in self.models.items():
            own = [p for p, one in enumerate(examples) if one.pairs and name in (names[p], EVERYBODY)]
            if not own:
                continue
            asked = [privileged(examples[place], people.evidence.get(examples[place].user)) for place in own]
            with torch.no_grad():
                margin_P = model.margins(collate(asked, catalogue, self._encoder, population))
            places = [p for place in own for p in range(ends[place], ends[place + 1])]
            found[torch.tensor(places)] = margin_P
        return found


def named(name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a model's weights as those of the teacher of this group."""
    return {f"{key}@{name}": tensor.clone() for key, tensor in weights.items() if not key.startswith(LEFT_OUT)}
