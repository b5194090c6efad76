"""What every experiment shares: its arguments, its intervals, and its result as JSON, table and picture.

`run(...)` of an experiment returns a Result; `publish` prints it and, where asked, draws it. The criterion is judged
with the intervals: a claim holds only where they say so.
"""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from html import escape
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy import stats

from ranker.errors import DataError, RequestError
from ranker.metrics import Interval

Found = TypeVar("Found")

#: colours that stay apart for colour-blind readers (Okabe and Ito)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")

#: more metrics than this do not fit a terminal's width
ACROSS = 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm's metric: its mean with a 95 % interval over n seeds or users."""

    arm: str
    metric: str
    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """An experiment's outcome; `criterion` is the claim in words, `holds` whether the intervals bear it out."""

    name: str
    data: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    criterion: str
    holds: bool

    def row(self, arm: str, metric: str) -> Row:
        """The row of an arm and a metric.

        Raises:
            RequestError: there is none.
        """
        for row in self.rows:
            if (row.arm, row.metric) == (arm, metric):
                return row
        raise RequestError(
            "row", (arm, metric), f"{self.name} measures {sorted({(r.arm, r.metric) for r in self.rows})}"
        )


def over_seeds(arm: str, metric: str, values: ArrayLike, *, level: float = 0.95) -> Row:
    """The mean over seeds with Student's t interval; a single seed has no interval (low = high = mean).

    Example:
        >>> row = over_seeds("a", "auc", [0.6, 0.7, 0.8])
        >>> round(row.mean, 3), round(row.low, 3), round(row.high, 3), row.n
        (0.7, 0.452, 0.948, 3)
    """
    found = np.asarray(values, np.float64)
    mean, n = float(found.mean()), len(found)
    spread = float(found.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    reach = float(stats.t.ppf((1 + level) / 2, n - 1)) * spread if n > 1 else 0.0
    return Row(arm=arm, metric=metric, mean=mean, low=mean - reach, high=mean + reach, n=n)


def from_interval(arm: str, metric: str, interval: Interval) -> Row:
    """A row out of one of the bootstrap intervals of `ranker.metrics`."""
    return Row(arm=arm, metric=metric, mean=interval.mean, low=interval.low, high=interval.high, n=interval.n)


def arguments(name: str, summary: str, *, seeds: int = 3) -> argparse.ArgumentParser:
    """The parser that all experiments start from; an experiment adds its own options to it."""
    parser = argparse.ArgumentParser(prog=f"plurank experiment {name}", description=summary)
    parser.add_argument("--events", nargs="+", type=Path, metavar="FILE", help="event log, .jsonl or .jsonl.gz")
    parser.add_argument("--config", type=Path, metavar="TOML", help="configuration; inferred from the log if absent")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the first seed")
    parser.add_argument("--seeds", type=int, default=seeds, metavar="N", help=f"how many seeds (default {seeds})")
    parser.add_argument("--json", action="store_true", help="print one JSON object last, for machines")
    parser.add_argument("--plot", action="store_true", help="also write docs/experiments/<name>.svg")
    return parser


def seeds_of(options: argparse.Namespace) -> tuple[int, ...]:
    """The seeds that the options ask for.

    Raises:
        RequestError: fewer than one seed.
    """
    if options.seeds < 1:
        raise RequestError("--seeds", options.seeds, "ask for at least one seed")
    return tuple(range(options.seed, options.seed + options.seeds))


def each_seed(single: Callable[[int], Found], seeds: Sequence[int]) -> list[Found]:
    """What every seed finds, in order, as many at a time as there are processors; one alone stays in this process."""
    if len(seeds) == 1:
        return [single(seeds[0])]
    with (
        Progress(console=Console(stderr=True), transient=True) as progress,
        ProcessPoolExecutor(min(len(seeds), os.cpu_count() or 1), get_context("spawn")) as pool,
    ):
        return list(progress.track(pool.map(single, seeds), total=len(seeds), description="seeds"))


def data_name(paths: Sequence[Path]) -> str:
    """The data's name in a result: file names without folders."""
    return ", ".join(path.name for path in paths)


def publish(
    result: Result,
    options: argparse.Namespace,
    *,
    folder: Path = Path("docs/experiments"),
    draw: Callable[[Row], bool] | None = None,
) -> None:
    """Print the result as a table, or as one JSON object with `--json`; draw it with `--plot`.

    Args:
        draw: which rows the picture shows, all of them without it.

    Raises:
        DataError: the picture cannot be written.
    """
    if options.plot:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shown = tuple(row for row in result.rows if draw is None or draw(row))
            (folder / f"{result.name}.svg").write_text(svg(replace(result, rows=shown)), "utf-8")
        except OSError as error:
            raise DataError(str(folder), error.strerror, "run --plot where docs/experiments can be written") from None
    if options.json:
        print(to_json(result))
        return
    console = Console()
    console.print(table(result))
    console.print(f"{result.criterion}: [bold]{'holds' if result.holds else 'does not hold'}[/bold]")


def to_json(result: Result) -> str:
    """The result on one line of strict JSON (a number that is not finite becomes null)."""
    return msgspec.json.encode(asdict(result)).decode()


def table(result: Result) -> Table:
    """Arms down, metrics across (one below the other where they are many), as mean and half-width of the interval."""
    arms, metrics = _order(result)
    found = {(row.arm, row.metric): row for row in result.rows}
    shown = Table(title=f"{result.name} on {result.data}, seeds {', '.join(map(str, result.seeds))}")
    if len(metrics) > ACROSS:
        for name in ("metric", "arm", "mean"):
            shown.add_column(name, justify="right" if name == "mean" else "left")
        for metric in metrics:
            for arm in arms:
                if (arm, metric) in found:
                    shown.add_row(metric, arm, _cell(found[arm, metric]))
            shown.add_section()
        return shown
    shown.add_column("arm")
    for metric in metrics:
        shown.add_column(metric, justify="right")
    for arm in arms:
        shown.add_row(arm, *(_cell(found.get((arm, metric))) for metric in metrics))
    return shown


def svg(result: Result) -> str:
    """The result as a drawing: a panel for each metric, ACROSS side by side, a dot with its interval for each arm."""
    arms, metrics = _order(result)
    found = {(row.arm, row.metric): row for row in result.rows}
    left, panel, line, top = 150, 250, 22, 64
    bands = [metrics[start : start + ACROSS] for start in range(0, len(metrics), ACROSS)]
    # a band names only the arms that it has something of
    drawn = [[arm for arm in arms if any((arm, metric) in found for metric in band)] for band in bands]
    heights = [line * len(own) + 74 for own in drawn]
    width, height = left + panel * min(len(metrics), ACROSS) + 10, 24 + sum(heights)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12" role="img"><title>{escape(result.name)}: {escape(result.criterion)}</title>'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<text x="10" y="20" font-size="14" font-weight="bold">{escape(result.name)}</text>'
        f'<text x="{left}" y="20" fill="#555">{escape(result.data)}, {len(result.seeds)} seeds</text>'
    ]
    for band, own, below in zip(bands, drawn, [0, *np.cumsum(heights).tolist()], strict=False):
        y = top + below
        parts += [
            f'<text x="{left - 12}" y="{y + line * place + 16}" text-anchor="end">{escape(arm)}</text>'
            for place, arm in enumerate(own)
        ]
        for column, metric in enumerate(band):
            rows = [(place, found[arm, metric]) for place, arm in enumerate(own) if (arm, metric) in found]
            parts += _panel(metric, rows, x=left + panel * column, y=y, width=panel - 30, line=line, count=len(own))
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    metric: str, rows: Sequence[tuple[int, Row]], *, x: float, y: float, width: float, line: float, count: int
) -> list[str]:
    ends = [end for _, row in rows for end in (row.low, row.high, row.mean) if math.isfinite(end)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    margin = 0.08 * (high - low) or 0.05
    low, high = low - margin, high + margin

    def across(value: float) -> float:
        return x + width * (value - low) / (high - low)

    bottom = y + line * count + 6
    parts = [
        f'<text x="{x + width / 2}" y="{y - 14}" text-anchor="middle" font-weight="bold">{escape(metric)}</text>',
        f'<path d="M{x} {y} V{bottom} H{x + width}" fill="none" stroke="#999"/>',
    ]
    for share in (0.1, 0.5, 0.9):
        value = low + share * (high - low)
        parts.append(
            f'<path d="M{across(value):.1f} {y} V{bottom}" stroke="#eee"/><text x="{across(value):.1f}" '
            f'y="{bottom + 16}" text-anchor="middle" fill="#555">{value:.3f}</text>'
        )
    for place, row in rows:
        if not math.isfinite(row.mean):
            continue
        colour, height = COLOURS[place % len(COLOURS)], y + line * place + 12
        if math.isfinite(row.low) and math.isfinite(row.high):
            parts.append(
                f'<path d="M{across(row.low):.1f} {height} H{across(row.high):.1f}" stroke="{colour}" '
                'stroke-width="2"/>'
            )
        parts.append(
            f'<circle cx="{across(row.mean):.1f}" cy="{height}" r="4" fill="{colour}"><title>{escape(row.arm)} '
            f"{row.mean:.4f} [{row.low:.4f}, {row.high:.4f}]</title></circle>"
        )
    return parts


def _order(result: Result) -> tuple[list[str], list[str]]:
    arms = list(dict.fromkeys(row.arm for row in result.rows))
    return arms, list(dict.fromkeys(row.metric for row in result.rows))


def _cell(row: Row | None) -> str:
    if row is None or not math.isfinite(row.mean):
        return "-"
    return f"{row.mean:.4f} ± {(row.high - row.low) / 2:.4f}"
