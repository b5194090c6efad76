"""Comparisons to learn base rewards from: answered, or derived from grades and clicks (PReF, shenfeld2025language).

The rules of derivation:
- *graded*: of two items that a person graded differently, the better graded is preferred; each new grade is compared
  with one earlier act of the same kind, and that act is taken out of the context, so nothing is its own evidence;
- *chosen*: what earned more is preferred to a row of its slate that earned less, drawn evenly from all of it, and
  counts by the inverse of what its place is worth (joachims2017unbiased). Comparing with skipped neighbours above alone
  (joachims2002optimizing) contradicts the served order each time: on a live run the taste then foretold .16 of them.

Axes: N items of a slate, T objectives.
"""

import zlib
from functools import cache
from itertools import chain

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ranker.config import Config
from ranker.events import Comparison, Interaction, fields_of
from ranker.evidence import Answer, Evidence
from ranker.slates import Compared, Example

#: what an answer is worth: 1 for what was preferred, one half where both or neither were
SHARES = {"preferred": 1.0, "both": 0.5, "neither": 0.5}
#: comparisons taken from one slate
MOST = 2
#: what was chosen counts at most so many times for the place where it stood
CLIP = 10.0
#: two rows that stand at no known place; cannot be written to
UNPLACED = np.broadcast_to(np.int32(-1), 2)


def answered(event: Comparison, evidence: Evidence, objectives: int) -> Example | None:
    """An answer as an example, in the light of all that was known before it; None where it says nothing."""
    if event.outcome not in SHARES or event.preferred == event.over:
        return None
    answer = Answer(
        event.id, event.preferred, event.over, event.time, event.outcome, event.question, fields_of(event.fields)
    )
    pair = Compared(0, 1, SHARES[event.outcome], answer)
    return _example(event, evidence, (event.preferred, event.over), objectives, pair)


def graded(event: Interaction, evidence: Evidence, objectives: int) -> Example | None:
    """A grade against an earlier one, which the event's own name draws; None where no other grade differs."""
    place = _contrast(event, evidence)
    if place is None:
        return None
    history, value = evidence.history, event.value or 0.0
    other = history[place]
    items = (event.item, other.item) if value > (other.value or 0.0) else (other.item, event.item)
    context = replace(evidence, history=history[:place] + history[place + 1 :])
    return _example(event, context, items, objectives, Compared(0, 1, 1.0))


def sides(event: Interaction, evidence: Evidence) -> tuple[str, str] | None:
    """The two items that `graded` compares, the preferred one first, without the rest of the example."""
    place = _contrast(event, evidence)
    if place is None:
        return None
    other = evidence.history[place]
    return (event.item, other.item) if (event.value or 0.0) > (other.value or 0.0) else (other.item, event.item)


def _contrast(event: Interaction, evidence: Evidence) -> int | None:
    """Place of the earlier act that a grade is compared with: the first that can be, from a drawn one on and around."""
    if event.value is None:
        return None
    history = evidence.history
    draw: int = zlib.crc32(f"{event.user}\0{event.item}".encode("utf-8", "surrogatepass"))
    first = draw % max(len(history), 1)
    for at in chain(range(first, len(history)), range(first)):
        other = history[at]
        if other.type != event.type or other.value is None or other.value == event.value or other.item == event.item:
            continue
        return at
    return None


def chosen(
    example: Example, weights_T: NDArray[np.floating], worth_NT: NDArray[np.floating] | None = None
) -> Example | None:
    """What earned more against other rows of its slate, from all its labels; None where nothing did.

    Args:
        weights_T: of the objectives; 0 for those that are not labels of a choice.
        worth_NT: how often less each row is acted on at its place than at an unknown one; 1 where it is not given.
    """
    known_NT = example.labels_NT * (example.mask_NT > 0)
    pairs = []
    for one, other in choices(example, weights_T):
        worth = 1.0 if worth_NT is None else float(worth_NT[one, (known_NT[one] > 0) & (weights_T > 0)].min())
        pairs.append((one, other, min(1 / max(worth, 1e-6), CLIP)))
    if not pairs:
        return None
    rows = sorted({row for one, other, _ in pairs for row in (one, other)})
    items = tuple(example.items[row] for row in rows)
    empty_NT = np.zeros((len(rows), example.labels_NT.shape[1]), np.float32)
    return Example(
        ranking=example.ranking,
        user=example.user,
        time=example.time,
        evidence=example.evidence,
        request=example.request,
        items=items,
        # where they stood is in the weight; a tower has no further say in what was preferred
        positions=np.full(len(rows), -1, np.int32),
        labels_NT=empty_NT,
        mask_NT=empty_NT,
        version=example.version,
        arm=example.arm,
        inline={name: example.inline[name] for name in items if name in example.inline},
        pairs=tuple(Compared(rows.index(one), rows.index(other), 1.0, weight=w) for one, other, w in pairs),
    )


def choices(example: Example, weights_T: NDArray[np.floating]) -> list[tuple[int, int]]:
    """Rows of a slate: those that earned most, each with one that earned less, which the ranking's name draws."""
    gain_N = (example.labels_NT * (example.mask_NT > 0)) @ np.asarray(weights_T, np.float32)
    if not gain_N.max(initial=0.0) > 0:
        return []
    found = []
    for one in np.argsort(-gain_N, kind="stable")[:MOST].tolist():
        others = np.flatnonzero(gain_N < gain_N[one])
        if gain_N[one] <= 0 or not len(others):
            break
        draw = zlib.crc32(f"{example.ranking}\0{one}".encode("utf-8", "surrogatepass"))
        found.append((one, int(others[draw % len(others)])))
    return found


def gains(config: Config) -> NDArray[np.float32]:
    """What makes a row of a slate preferred to another, (T,): the weights of the binary objectives."""
    weights = [one.weight if one.kind == "binary" else 0.0 for one in config.objectives]
    return np.array(weights, np.float32)


def place(answer: Answer) -> int:
    """Where the preferred item stood when the two were shown: 0 first, 1 second, -1 unknown."""
    first = answer.condition.get("shown_first")
    return 0 if first == answer.preferred else 1 if first == answer.over else -1


def wording(answer: Answer) -> int:
    """A code for the words in which it was asked, -1 where that is not known."""
    key = answer.condition.get("wording")
    return -1 if key is None else zlib.crc32(str(key).encode("utf-8", "surrogatepass"))


def said(evidence: Evidence) -> tuple[Answer, ...]:
    """The answers that say something: no skips, and two different items."""
    if not evidence.answers:
        return ()
    return tuple(one for one in evidence.answers if one.outcome in SHARES and one.preferred != one.over)


@cache
def _nothing(objectives: int) -> NDArray[np.float32]:
    """Labels of two rows of which none is known, one array for all."""
    empty_NT = np.zeros((2, objectives), np.float32)
    empty_NT.setflags(write=False)
    return empty_NT


def _example(
    event: Comparison | Interaction, evidence: Evidence, items: tuple[str, str], objectives: int, pair: Compared
) -> Example:
    empty_NT = _nothing(objectives)
    return Example(
        ranking="",
        user=event.user,
        time=event.time,
        evidence=evidence,
        request={},
        items=items,
        positions=UNPLACED,
        labels_NT=empty_NT,
        mask_NT=empty_NT,
        pairs=(pair,),
    )
