"""What candidates and acts say besides their items, each in one compiled pass: ages, counts, values.

Ages are worked out here for learning and for serving, so both read the same.
Axes: N candidates, R rows of a catalogue, A acts, F counted inputs.
"""

import math

import numpy as np
from numpy.typing import NDArray

from ranker.compiled import compiled

HOUR_MS = 3_600_000.0
#: hours over which the freshness of an item or an act fades, one input each, besides log hours
FADES = np.array([1.0, 6.0, 24.0, 168.0], np.float32)
AGES = 1 + len(FADES)
#: inputs of an act besides its item and its kind: its age, and its value against the user's own mean
ACTS = AGES + 1
#: impressions at the population's rate that every item's counts start with
PRIOR = 5.0

Floats = NDArray[np.float32]
Times = NDArray[np.int64]


def ages(now: Times | int, then: Times) -> Floats:
    """Age inputs: log hours, and how much of it is left after fading over FADES hours.

    Shapes: (n,) and (n,), or one `now` for all -> (n, AGES). Units: ms. What lies in the future is new.
    """
    return _ages(_times(now), then)


def acts(now: Times | int, times_A: Times, values_A: NDArray[np.float64], means_A: NDArray[np.float64]) -> Floats:
    """The dense inputs of acts: age, and value above the user's own mean (0 where there is none).

    Shapes: (A,) each, or one `now` for all -> (A, ACTS). Units: ms.
    """
    return _acts(_times(now), times_A, values_A, means_A)


def _times(now: Times | int) -> Times:
    return now if isinstance(now, np.ndarray) else np.array([now], np.int64)


@compiled
def _ages(now: Times, then: Times) -> Floats:
    found = np.empty((len(then), AGES), np.float32)
    for n in range(len(then)):
        _age(now[min(n, len(now) - 1)], then[n], found[n])
    return found


@compiled
def _acts(now: Times, times_A: Times, values_A: NDArray[np.float64], means_A: NDArray[np.float64]) -> Floats:
    found = np.empty((len(times_A), ACTS), np.float32)
    for a in range(len(times_A)):
        _age(now[min(a, len(now) - 1)], times_A[a], found[a])
        over = values_A[a] - means_A[a]  # a value may be as large as a float gets
        far = min(math.log1p(abs(over)), 10.0)
        found[a, -1] = 0.0 if math.isnan(over) else math.copysign(far, over)
    return found


@compiled
def _age(now: int, then: int, found: Floats) -> None:
    hours = np.float32(max(now - then, 0) / HOUR_MS)
    found[0] = math.log(np.float32(1) + hours) / np.float32(8)
    for fade in range(len(FADES)):
        found[1 + fade] = math.exp(hours / -FADES[fade])


@compiled
def _count(found_F: Floats, fade_F: Floats, lift_F: Floats, inputs_F: Floats) -> None:
    """`Counters.read` of what was found, by what `Counters.fading` says of the time."""
    width, one, four, prior = len(fade_F), np.float32(1), np.float32(4), np.float32(PRIOR)
    for f in range(width):
        shown, worked = found_F[f] * fade_F[f], found_F[width + f] * lift_F[f]
        inputs_F[f] = math.log((worked + prior) / (shown + prior))
        inputs_F[width + f] = math.log(one + shown) / four


@compiled
def gathered(
    first_RS: Floats, tail_RX: Floats, born_R: Times, rows_N: NDArray[np.int64]
) -> tuple[Floats, Floats, Times]:
    """The kept item side of these rows."""
    count = len(rows_N)
    first_NS, born_N = np.empty((count, first_RS.shape[1]), np.float32), np.empty(count, np.int64)
    tail_NX = np.empty((count, tail_RX.shape[1]), np.float32)
    for n in range(count):
        row = rows_N[n]
        first_NS[n], tail_NX[n], born_N[n] = first_RS[row], tail_RX[row], born_R[row]
    return first_NS, tail_NX, born_N


@compiled
def within(rows_N: NDArray[np.int64], attached: int) -> bool:
    """Whether all rows are attached."""
    found = True
    for row in rows_N:
        found = found and 0 <= row < attached
    return found


@compiled
def laid_out(
    tail_NX: Floats,
    born_N: Times,
    rows_N: NDArray[np.int64],
    acted_A: NDArray[np.int64],
    extra_M: NDArray[np.bool_],
    now: int,
    fade_F: Floats,
    lift_F: Floats,
    base: int,
    counted: int,
) -> Floats:
    """[phi, ages, whether acted on, counts, 1] of catalogue rows and then of extra items.

    Args:
        tail_NX: [phi (`base` columns), ..., counts from column `counted` on].
        acted_A: sorted rows that the user acted on; `extra_M` says it of the extra items.
    """
    rows, wide = len(rows_N), 2 * len(fade_F)
    x_NX = np.empty((len(tail_NX), base + AGES + 1 + wide + 1), np.float32)
    for n in range(len(tail_NX)):
        x_NX[n, :base] = tail_NX[n, :base]
        _age(now, born_N[n], x_NX[n, base : base + AGES])
        if n < rows:
            place = np.searchsorted(acted_A, rows_N[n])
            x_NX[n, base + AGES] = place < len(acted_A) and acted_A[place] == rows_N[n]
        else:
            x_NX[n, base + AGES] = extra_M[n - rows]
        _count(tail_NX[n, counted:], fade_F, lift_F, x_NX[n, base + AGES + 1 : -1])
        x_NX[n, -1] = 1
    return x_NX
