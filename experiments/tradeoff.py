"""A picture of what each arm takes from the majority and gives to the minority, a panel for each setting.

Across: change of the majority against the plain model; upwards: of the minority; both in points, with intervals. What
lies in the upper right harms nobody.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from experiments.report import COLOURS, Result, Row
from ranker.errors import DataError

#: arms of every panel, in the order of the legend; grey ones were trained on fixed contexts
SHOWN = ("pareto", "self-distil", "sqrt-reweight", "reweight", "group-dro", "maxmin", "erm-fixed", "sqrt-fixed")
PANEL, HEIGHT, LEFT, TOP = 290, 300, 60, 74


def write(result: Result, settings: Sequence[str], folder: Path = Path("docs/experiments")) -> None:
    """Write docs/experiments/pareto.svg.

    Raises:
        DataError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{result.name}.svg").write_text(drawing(result, settings), "utf-8")
    except OSError as error:
        raise DataError(str(folder), error.strerror, "run --plot where docs/experiments can be written") from None


def drawing(result: Result, settings: Sequence[str]) -> str:
    """The picture as SVG; all panels share their axes."""
    found = {(row.arm, row.metric): row for row in result.rows}
    panels = []
    for place, name in enumerate(settings):
        suffix = f":{name}" if place else ""
        pairs = {
            arm: tuple(found[f"{arm} - erm", group + suffix] for group in ("majority_accuracy", "minority_accuracy"))
            for arm in SHOWN
            if (f"{arm} - erm", "majority_accuracy" + suffix) in found
        }
        panels.append((name, pairs))
    ends = [[*_ends(panel, 0), *_ends(panel, 1)] for panel in panels]
    across = (min(-1.0, *(each[0] for each in ends)) - 0.3, max(1.0, *(each[1] for each in ends)) + 0.3)
    upwards = (min(-1.0, *(each[2] for each in ends)) - 0.3, max(1.0, *(each[3] for each in ends)) + 0.3)
    width, height = LEFT + PANEL * len(panels) + 130, TOP + HEIGHT + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12" role="img"><title>{escape(result.name)}: {escape(result.criterion)}</title>'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<text x="10" y="20" font-size="14" font-weight="bold">{escape(result.name)}</text>'
        f'<text x="{LEFT}" y="20" fill="#555">{escape(result.data)}, {len(result.seeds)} seeds: change against '
        "the plain model (erm) in points, 95 % intervals</text>"
        f'<text x="{LEFT + PANEL * len(panels) / 2}" y="{height - 12}" text-anchor="middle">majority</text>'
        f'<text x="16" y="{TOP + HEIGHT / 2}" text-anchor="middle" '
        f'transform="rotate(-90 16 {TOP + HEIGHT / 2})">minority</text>'
    ]
    for place, (name, pairs) in enumerate(panels):
        parts += _panel(name, pairs, LEFT + PANEL * place, across, upwards)
    for place, arm in enumerate(SHOWN):
        y = TOP + 16 + 20 * place
        parts.append(
            f'<circle cx="{width - 118}" cy="{y - 4}" r="4" fill="{_colour(arm)}"/>'
            f'<text x="{width - 108}" y="{y}">{escape(arm)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _ends(panel: tuple[str, dict[str, tuple[Row, ...]]], axis: int) -> tuple[float, float]:
    rows = [pair[axis] for pair in panel[1].values()]
    return 100 * min((row.low for row in rows), default=0.0), 100 * max((row.high for row in rows), default=0.0)


def _panel(
    name: str,
    pairs: dict[str, tuple[Row, ...]],
    left: float,
    across: tuple[float, float],
    upwards: tuple[float, float],
) -> list[str]:
    width = PANEL - 30

    def x(points: float) -> float:
        return left + width * (points - across[0]) / (across[1] - across[0])

    def y(points: float) -> float:
        return TOP + HEIGHT * (1 - (points - upwards[0]) / (upwards[1] - upwards[0]))

    bottom = TOP + HEIGHT
    parts = [
        f'<text x="{left + width / 2}" y="{TOP - 14}" text-anchor="middle" font-weight="bold">{escape(name)}</text>',
        f'<path d="M{left} {TOP} V{bottom} H{left + width}" fill="none" stroke="#999"/>',
        f'<path d="M{x(0):.1f} {TOP} V{bottom} M{left} {y(0):.1f} H{left + width}" stroke="#bbb" '
        'stroke-dasharray="4 3"/>',
    ]
    for points in range(int(across[0]), int(across[1]) + 1):
        parts.append(f'<text x="{x(points):.1f}" y="{bottom + 16}" text-anchor="middle" fill="#555">{points:+d}</text>')
    for points in range(int(upwards[0]), int(upwards[1]) + 1, 2):
        parts.append(f'<text x="{left - 6}" y="{y(points) + 4:.1f}" text-anchor="end" fill="#555">{points:+d}</text>')
    for arm, (majority, minority) in reversed(pairs.items()):
        one, other = (tuple(100 * value for value in (row.low, row.mean, row.high)) for row in (majority, minority))
        parts.append(
            f'<path d="M{x(one[0]):.1f} {y(other[1]):.1f} H{x(one[2]):.1f} M{x(one[1]):.1f} {y(other[0]):.1f} '
            f'V{y(other[2]):.1f}" stroke="{_colour(arm)}" stroke-width="1.5" fill="none"/>'
            f'<circle cx="{x(one[1]):.1f}" cy="{y(other[1]):.1f}" r="{5 if arm == "pareto" else 4}" '
            f'fill="{_colour(arm)}"><title>{escape(arm)} {one[1]:+.2f} / {other[1]:+.2f}</title></circle>'
        )
    return parts


def _colour(arm: str) -> str:
    if arm.endswith("-fixed"):
        return "#777777" if arm == "erm-fixed" else "#aaaaaa"
    return COLOURS[SHOWN.index(arm) % len(COLOURS)]
