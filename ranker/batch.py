"""Examples -> the training tensors of one batch: each item embedded once, however often it is shown or remembered.

Axes: V table rows touched, I items, S slates, R shown rows, A acts, C kinds of acts, F numbers, T objectives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ranker.catalogue import Catalogue, Item
from ranker.comparisons import place, said, wording
from ranker.evidence import Answer
from ranker.features import Bag, Encoder, Flat, Kind, act_inputs, lay_out, readings, unique
from ranker.inputs import ages
from ranker.reliability import Population, answer_weights
from ranker.slates import Example


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The training tensors of some examples. Bags are laid out as items, users, requests, kinds of acts.

    Shapes: `bag_rows` index into `touched_V`; `*_numbers` have a line for each bag of their kind; `act_*_A` hold the
    item and kind of each act as it is read at one time, `read_M` which of them each slate reads, from `read_starts_S`
    on; `row_*_R` hold the item and slate of each shown row. `acted_R`: the user's acts include the item.
    `times_U`: when each slate was shown, ms. `pair_one_P` and `pair_other_P` are rows; `pair_first_P` is 0 where
    the one was shown first when asked about, 1 where second, `pair_wording_P` says in which words (-1 unknown).
    """

    touched_V: Tensor
    bag_rows: Tensor
    bag_weights: Tensor
    bag_starts: Tensor
    items: int
    slates: int
    kinds: int
    item_numbers: Tensor
    user_numbers: Tensor
    request_numbers: Tensor
    kind_numbers: Tensor
    act_item_A: Tensor
    act_kind_A: Tensor
    act_inputs: Tensor
    read_M: Tensor
    read_starts_S: Tensor
    row_item_R: Tensor
    row_slate_R: Tensor
    row_ages: Tensor
    acted_R: Tensor
    times_U: Tensor
    positions_R: Tensor
    devices: Tensor
    labels_RT: Tensor
    mask_RT: Tensor
    answered: tuple["Answered", ...]
    pair_one_P: Tensor
    pair_other_P: Tensor
    pair_share_P: Tensor
    pair_weight_P: Tensor
    pair_first_P: Tensor
    pair_wording_P: Tensor


class Answered(NamedTuple):
    """A slate's earlier answers, and the batch's items that each compared."""

    slate: int
    one_A: NDArray[np.int64]
    other_A: NDArray[np.int64]
    answers: Sequence[Answer]


def collate(
    examples: Sequence[Example], catalogue: Catalogue, encoder: Encoder, population: Population | None = None
) -> Batch:
    """The examples as one batch: each item embedded once, however often it is shown or remembered.

    Args:
        population: by which a new answer is believed; the default population where it is None.

    An item that the catalogue does not hold, or whose fields came with the ranking, is encoded on the spot.
    """
    keep = encoder.sizes.acts
    evidences = [example.evidence for example in examples]
    row_counts = np.array([len(example.items) for example in examples], np.int64)
    times = np.array([example.time for example in examples], np.int64)
    slates = np.arange(len(examples))
    acts = readings([example.user for example in examples], evidences, times.tolist(), keep)
    read_slate, row_slate = np.repeat(slates, acts.lengths_S), np.repeat(slates, row_counts)

    population = population or Population.default()
    told = [said(example.evidence) for example in examples]
    asked = [(answer.preferred, answer.over) for answers in told for answer in answers]
    shown, acted = len(row_slate), len(acts.items)
    named = [*chain.from_iterable(e.items for e in examples), *acts.items, *chain.from_iterable(asked)]
    find = catalogue.rows.get
    places = np.array([find(item, -1) for item in named], np.int64)
    strangers: list[Item] = []
    if places.size and (places.min() < 0 or any(example.inline for example in examples)):
        since = np.concatenate([times[row_slate], acts.times_U, np.repeat([a.time for t in told for a in t], 2)])
        strangers = _place_strangers(examples, catalogue, named, since=since, row_slate=row_slate, places=places)
    known, index = unique(places, len(catalogue) + len(strangers))
    in_catalogue = known[known < len(catalogue)]
    item_bags = _joined(encoder.items(catalogue, in_catalogue), [encoder.item(stranger) for stranger in strangers])
    row_item, acted_item, asked_A2 = index[:shown], index[shown : shown + acted], index[shown + acted :].reshape(-1, 2)

    # in order of appearance, so that a batch does not depend on what the encoder has seen before
    kinds: dict[Kind, int] = {}
    act_kind = np.array([kinds.setdefault(kind, len(kinds)) for kind in acts.kinds], np.int64)[acts.act_A]
    act_item = acted_item[acts.act_A]
    user_bags = lay_out([encoder.user(example.evidence.fields) for example in examples])
    request_bags = lay_out([encoder.request(example.request) for example in examples])
    bags = (item_bags, user_bags, request_bags, encoder.kinds(kinds))
    lengths = np.concatenate([bag.lengths for bag in bags])
    touched, bag_rows = unique(np.concatenate([bag.rows for bag in bags]), encoder.sizes.V)

    born = np.array(
        [catalogue.items[row].first_seen for row in in_catalogue.tolist()] + [item.first_seen for item in strangers],
        np.int64,
    )
    devices = np.array([encoder.device(example.request) for example in examples], np.int64)
    return Batch(
        touched_V=torch.from_numpy(touched),
        bag_rows=torch.from_numpy(bag_rows),
        bag_weights=torch.from_numpy(np.concatenate([bag.weights for bag in bags])),
        bag_starts=torch.from_numpy(np.cumsum(lengths) - lengths),
        items=len(item_bags.lengths),
        slates=len(examples),
        kinds=len(kinds),
        item_numbers=torch.from_numpy(item_bags.numbers),
        user_numbers=torch.from_numpy(user_bags.numbers),
        request_numbers=torch.from_numpy(request_bags.numbers),
        kind_numbers=torch.from_numpy(bags[3].numbers),
        act_item_A=torch.from_numpy(act_item),
        act_kind_A=torch.from_numpy(act_kind),
        act_inputs=torch.from_numpy(act_inputs(acts, acts.now_A)),
        read_M=torch.from_numpy(acts.read_M),
        read_starts_S=torch.from_numpy(np.cumsum(acts.lengths_S) - acts.lengths_S),
        row_item_R=torch.from_numpy(row_item),
        row_slate_R=torch.from_numpy(row_slate),
        row_ages=torch.from_numpy(ages(times[row_slate], born[row_item])),
        acted_R=torch.from_numpy(
            _acted(read_slate, act_item[acts.read_M], row_slate, row_item, len(item_bags.lengths))
        ),
        times_U=torch.from_numpy(times),
        positions_R=torch.from_numpy(np.concatenate([e.positions for e in examples]).astype(np.int64)),
        devices=torch.from_numpy(devices.reshape(len(examples), len(encoder.context))),
        labels_RT=torch.from_numpy(np.concatenate([e.labels_NT for e in examples])),
        mask_RT=torch.from_numpy(np.concatenate([e.mask_NT for e in examples])),
        answered=_answered(told, asked_A2),
        **_pairs(examples, row_counts, population),
    )


def _answered(told: Sequence[Sequence[Answer]], asked_A2: NDArray[np.int64]) -> tuple[Answered, ...]:
    found, start = [], 0
    for slate, answers in enumerate(told):
        stop = start + len(answers)
        if answers:
            one_A, other_A = asked_A2[start:stop].T
            found.append(Answered(slate, one_A, other_A, answers))
        start = stop
    return tuple(found)


def _pairs(examples: Sequence[Example], row_counts: NDArray[np.int64], population: Population) -> dict[str, Tensor]:
    starts = (np.cumsum(row_counts) - row_counts).tolist()
    pairs = [(example, pair, start) for example, start in zip(examples, starts, strict=True) for pair in example.pairs]
    weights, stood, worded = [], [], []
    for example, pair, _ in pairs:
        answer = pair.answer
        told = () if answer is None else (*said(example.evidence), answer)
        weights.append(answer_weights(told, population)[-1] if told else pair.weight)
        stood.append(-1 if answer is None else place(answer))
        worded.append(-1 if answer is None else wording(answer))
    return {
        "pair_one_P": torch.tensor([start + pair.one for _, pair, start in pairs], dtype=torch.int64),
        "pair_other_P": torch.tensor([start + pair.other for _, pair, start in pairs], dtype=torch.int64),
        "pair_share_P": torch.tensor([pair.share for _, pair, _ in pairs], dtype=torch.float32),
        "pair_weight_P": torch.tensor(weights, dtype=torch.float32),
        "pair_first_P": torch.tensor(stood, dtype=torch.int64),
        "pair_wording_P": torch.tensor(worded, dtype=torch.int64),
    }


def _acted(
    act_slate: NDArray[np.int64],
    act_item: NDArray[np.int64],
    row_slate: NDArray[np.int64],
    row_item: NDArray[np.int64],
    items: int,
) -> NDArray[np.float32]:
    """1 for each shown row whose item is among the acts of its slate's user."""
    slates = int(row_slate.max(initial=0)) + 1
    found = np.isin(
        row_slate * items + row_item, act_slate * items + act_item, kind="table" if slates * items < 2**26 else None
    )
    return found.astype(np.float32)


def _place_strangers(
    examples: Sequence[Example],
    catalogue: Catalogue,
    named: Sequence[str],
    *,
    since: NDArray[np.int64],
    row_slate: NDArray[np.int64],
    places: NDArray[np.int64],
) -> list[Item]:
    """Give the items that are not as the catalogue has them places behind it, in place."""
    strangers: list[Item] = []
    numbers: dict[str, int] = {}
    inline = {
        row: examples[slate].inline[item]
        for row, (item, slate) in enumerate(zip(named, row_slate.tolist(), strict=False))
        if item in examples[slate].inline
    }
    for row, fields in inline.items():
        before = catalogue.get(named[row]) or Item(named[row], {}, int(since[row]))
        places[row] = len(catalogue) + len(strangers)
        strangers.append(Item(before.id, {**before.fields, **fields}, before.first_seen))
    for row in np.flatnonzero(places < 0).tolist():
        item = named[row]
        if item not in numbers:
            numbers[item] = len(catalogue) + len(strangers)
            strangers.append(Item(item, {}, int(since[row])))
        places[row] = numbers[item]
    return strangers


def _joined(flat: Flat, bags: Sequence[Bag]) -> Flat:
    if not bags:
        return flat
    more = lay_out(bags)
    return Flat(
        np.concatenate([flat.rows, more.rows]),
        np.concatenate([flat.weights, more.weights]),
        np.concatenate([flat.lengths, more.lengths]),
        np.concatenate([flat.numbers, more.numbers]),
    )
