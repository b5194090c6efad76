"""What a version would have earned on slates that others served, from a log with propensities (li2018offline).

The version ranks the items that each slate showed, for the person as she was then, and ranker/counterfactual.py weighs
what was logged. So the log must hold all that was to be ranked: slates of given items, all of them placed. Where the
service chose from its catalogue, only the order of what it chose is valued.

Axes: N items of a slate, T objectives, R logged rows.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from ranker.config import Config
from ranker.counterfactual import Logged
from ranker.errors import DataError, RequestError
from ranker.events import Event, Ranking
from ranker.inference import Inference
from ranker.join import Example, Joiner
from ranker.pipeline import Pipeline, Request

#: closed slates that are ranked at a time: between two of them new items are taken up
BATCH = 256


def reconsidered(
    config: Config,
    log: Callable[[], Iterable[Event]],
    weights: Mapping[str, torch.Tensor],
    *,
    objective: str | None = None,
) -> Logged:
    """The log's rows with what this version would have shown at each place, without exploration.

    Args:
        objective: whose label is the reward; the first binary one without it.

    Raises:
        RequestError: there is no such objective, or it is not binary.
        DataError: no slate has known positions.
    """
    binary = {o.name: place for place, o in enumerate(config.objectives) if o.kind == "binary"}
    objective = objective or next(iter(binary), "")
    if objective not in binary:
        raise RequestError("objective", objective, "the binary objectives are " + (", ".join(binary) or "none"))
    still = replace(
        config, serving=replace(config.serving, swap=0.0), exploration=replace(config.exploration, slot=0.0)
    )
    joiner, inference = Joiner(config), Inference(config, weights)
    pipeline = Pipeline(still, inference, joiner.catalogue, "")
    propensities: dict[str, dict[str, float | None]] = {}
    parts: list[NDArray[np.float64]] = []
    waiting: list[Example] = []

    def settle() -> None:
        inference.attach(joiner.catalogue)
        for example in waiting:
            logged = propensities.pop(example.ranking, {})
            if (example.positions >= 0).all() and len(example.items) > 1:
                rows = _rows(pipeline, example, logged, binary[objective])
                parts.append(np.column_stack([np.full(len(rows), len(parts)), rows]))
        waiting.clear()

    for event in log():
        if isinstance(event, Ranking):
            propensities[event.id] = {shown.id: shown.propensity for shown in event.items}
        waiting.extend(example for example in joiner.push(event) if example.closing)
        if len(waiting) >= BATCH:
            settle()
    waiting.extend(example for example in joiner.flush() if example.closing)
    settle()
    if not parts:
        raise DataError("rankings", "none with known positions", "name a log of slates that says where items stood")
    slate_R, place_R, reward_R, propensity_R, chance_R, predicted_R, expected_R = np.concatenate(parts).T
    return Logged(
        slate_R=slate_R.astype(np.int64),
        place_R=place_R.astype(np.int64),
        reward_R=reward_R,
        propensity_R=propensity_R,
        chance_R=chance_R,
        predicted_R=predicted_R,
        expected_R=expected_R,
    )


def _rows(
    pipeline: Pipeline, example: Example, logged: Mapping[str, float | None], objective: int
) -> NDArray[np.float64]:
    """Place, reward, propensity, chance, predicted and expected of each row of one slate."""
    request = Request(user=example.user, items=example.items, fields=example.request, now=example.time)
    slate = pipeline.rank(request, example.evidence)
    known = {placed.id: placed for placed in slate.items}
    if len(known) != len(example.items):
        return np.empty((0, 6))
    # the version's first item stands at the slate's first place, whatever its number
    order_N = np.argsort(example.positions, kind="stable")
    own_N = np.array([known[example.items[n]].position for n in order_N])
    chances_NT = np.array([known[example.items[n]].probabilities for n in order_N], np.float32).clip(1e-6, 1 - 1e-6)
    logits_NT, places_N = np.log(chances_NT / (1 - chances_NT)), example.positions[order_N]
    predicted_NT = pipeline.inference.probabilities_at(logits_NT, places_N, example.request)
    expected_NT = pipeline.inference.probabilities_at(logits_NT[np.argsort(own_N)], places_N, example.request)
    propensity_N = [np.nan if (p := logged.get(example.items[n])) is None else p for n in order_N]
    return np.column_stack(
        [
            places_N,
            example.labels_NT[order_N, objective],
            propensity_N,
            own_N == np.arange(len(own_N)),
            predicted_NT[:, objective],
            expected_NT[:, objective],
        ]
    ).astype(np.float64)
