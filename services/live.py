"""The live line of `plurank up`: what its processes say of themselves, gathered into one line a second."""

import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from services import status

STALE_S = 10.0
#: the pace is that of so many seconds
PACE_S = 5


def gather(state: Path) -> dict[str, Any]:
    """The figures of all processes as plain data."""
    found = status.read(state / "status")
    trainer, profiles, monitor = (found.get(name, {}) for name in ("trainer", "profiles", "monitor"))
    audience = found.get("audience", {})
    now = time.time()
    return {
        "events": profiles.get("events"),
        "lag": {name: facts["lag"] for name, facts in found.items() if "lag" in facts},
        "version": audience.get("version") or trainer.get("version"),
        "promoted": trainer.get("promoted"),
        "auc": trainer.get("auc", {}),
        "ndcg": monitor.get("ndcg", {}),
        "satisfaction": audience.get("satisfaction"),
        "first": audience.get("first"),
        "first_version": next(iter(audience.get("versions", {})), None),
        "chance": audience.get("chance"),
        "oracle": audience.get("oracle"),
        "audience": audience.get("audience"),
        "visits": audience.get("visits"),
        "answers": audience.get("answers", {}),
        "p50_ms": audience.get("p50_ms"),
        "p99_ms": audience.get("p99_ms"),
        "trouble": {name: facts["trouble"] for name, facts in found.items() if facts.get("trouble")},
        "silent": [name for name, facts in found.items() if now - facts["at"] > STALE_S],
    }


class Line:
    """Writes the line, once a second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seen: deque[tuple[float, int]] = deque(maxlen=PACE_S + 1)

    def show(self, facts: Mapping[str, Any]) -> None:
        """Write it."""
        self._seen.append((time.monotonic(), facts["events"] or 0))
        (before, first), (now, last) = self._seen[0], self._seen[-1]
        pace = max(0.0, (last - first) / (now - before)) if now > before else 0.0
        self._console.print(line(facts, pace), markup=False, soft_wrap=True)


def line(facts: Mapping[str, Any], pace: float) -> str:
    """The line in words.

    Example:
        >>> line({"lag": {"trainer": 3}, "version": "v7", "auc": {"click": 0.7}, "ndcg": {"gender F": 0.5}}, 12.3)
        '12 events/s · lag 3 · v7 · AUC click .700 · NDCG gender F .500'
        >>> line({"lag": {}, "auc": {}, "ndcg": {}}, 0)
        '0 events/s · lag unknown, no loop has reported'
    """
    lag = f"lag {max(facts['lag'].values())}" if facts["lag"] else "lag unknown, no loop has reported"
    parts = [f"{pace:.0f} events/s", lag]
    if facts.get("version"):
        parts.append(facts["version"])
    if auc := {name: value for name, value in facts["auc"].items() if value is not None}:
        parts.append("AUC " + " ".join(f"{name} {_share(value)}" for name, value in auc.items()))
    if ndcg := {name: value for name, value in facts["ndcg"].items() if value is not None}:
        parts.append("NDCG " + " ".join(f"{name} {_share(value)}" for name, value in ndcg.items()))
    if facts.get("satisfaction") is not None:
        parts.append(
            f"satisfaction {_share(facts['satisfaction'])} ({facts['first_version']} {_share(facts['first'])}, random "
            f"{_share(facts['chance'])}, best {_share(facts['oracle'])}; {facts['audience']})"
        )
    if facts.get("answers"):
        good, total = facts["answers"].get("200", 0), sum(facts["answers"].values())
        parts.append(f"{good:,} of {total:,} answers 200, p50 {facts['p50_ms'] or 0:.1f} ms")
    parts += [f"{name}: {words}" for name, words in facts.get("trouble", {}).items()]
    if facts.get("silent"):
        parts.append("silent: " + ", ".join(facts["silent"]))
    return " · ".join(parts)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".removeprefix("0")
