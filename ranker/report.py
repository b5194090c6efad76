"""What was found: an evaluation, as rows of arm, metric and part with intervals, and what tastes are worth."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

#: an axis of taste is called active where its mean varies over people by more than this
ACTIVE = (0.005, 0.05)


@dataclass(frozen=True, kw_only=True, slots=True)
class TasteReport:
    """What tastes are worth by now, as running means over comparisons scored before they were learned.

    Attributes:
        pairs: comparisons so far.
        loss: of the comparisons, nats.
        pooled, conditioned: share of comparisons that the prior alone and the taste get right.
        divergence: of the tastes from the prior, nats.
        active: share of the axes that vary over people, for each threshold of ACTIVE. It can be fooled, by a model
            whose axes vary without saying anything; `gain` cannot.
    """

    pairs: int
    loss: float
    pooled: float
    conditioned: float
    divergence: float
    active: tuple[float, ...]

    @property
    def gain(self) -> float:
        """Accuracy that the context gained over everybody's taste."""
        return self.conditioned - self.pooled


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One arm's metric on one part of the users: its mean with a 95 % interval over n users."""

    arm: str
    metric: str
    mean: float
    low: float
    high: float
    n: int
    part: str = "all"


@dataclass(frozen=True, kw_only=True)
class Report:
    """An evaluation.

    Attributes:
        protocol: what was learned from and what was ranked, in a sentence.
        notes: what a reader should know before believing the numbers.
    """

    data: str
    protocol: str
    seed: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def find(self, arm: str, metric: str, part: str = "all") -> Row | None:
        """The row, or None where it was not measured."""
        wanted = (arm, metric, part)
        return next((row for row in self.rows if (row.arm, row.metric, row.part) == wanted), None)

    def table(self, part: str) -> tuple[list[str], list[list[str]]]:
        """Header and lines of one part: arms down, metrics across.

        Example:
            >>> row = Row(arm="full", metric="auc:click", mean=0.7, low=0.65, high=0.75, n=9)
            >>> Report(data="d", protocol="p", seed=0, rows=(row,)).table("all")
            (['arm', 'auc:click', 'n'], [['full', '0.700 (0.650 to 0.750)', '9']])
        """
        own = [row for row in self.rows if row.part == part]
        names = list(dict.fromkeys(row.metric for row in own))
        found = {(row.arm, row.metric): row for row in own}
        lines = []
        for arm in dict.fromkeys(row.arm for row in own):
            cells = [_cell(found.get((arm, name))) for name in names]
            lines.append([arm, *cells, str(max(row.n for row in own if row.arm == arm))])
        return ["arm", *names, "n"], lines

    @property
    def parts(self) -> list[str]:
        """The parts that were measured apart, in order."""
        return list(dict.fromkeys(row.part for row in self.rows))

    def plain(self) -> dict[str, Any]:
        """As data for `--json`; nan becomes None."""
        data: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(asdict(self)))
        return data

    def markdown(self) -> str:
        """All tables, for the docs."""
        blocks: list[str] = []
        for part in self.parts:
            header, lines = self.table(part)
            blocks.append(f"**{part}**\n\n" + "\n".join(_line(cells) for cells in _framed(header, lines)))
        return "\n\n".join(blocks)


def _cell(row: Row | None) -> str:
    if row is None or math.isnan(row.mean):
        return ""
    return f"{row.mean:.3f}" + ("" if math.isnan(row.low) else f" ({row.low:.3f} to {row.high:.3f})")


def _framed(header: list[str], lines: list[list[str]]) -> Iterable[list[str]]:
    return [header, ["---"] * len(header), *lines]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
