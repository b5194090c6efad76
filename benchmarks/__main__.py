"""`make bench`: every benchmark, and benchmarks/results.md out of what they say.

    python -m benchmarks [NAME...] [--runs 3] [--quick] [--out benchmarks/results.md]

Each runs in a process of its own. Those that do not repeat themselves run `--runs` times, and every figure is the
median. The hour of benchmarks/soak.py is not part of it; its last summary, benchmarks/soak.json, is shown as it is.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.report import command_of, machine, markdown, median_rows, stamp, this_command
from services.cli import count

HERE = Path(__file__).parent
#: a benchmark that takes longer is ended
PATIENCE_S = 1800.0


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One file of this folder.

    Attributes:
        title: what its table shows.
        about: what one must know to read it.
        repeats: it takes the medians of several runs by itself.
        quick: arguments for a fast look.
    """

    title: str
    about: str
    repeats: bool = False
    quick: tuple[str, ...] = ()


BENCHMARKS = {
    "latency": Benchmark(
        title="In process: one request through the whole pipeline",
        about="One thread. `gemm` is the peer: the bare matrix products of the same shapes; `over_gemm` is the ratio "
        "of processor times.",
        quick=("--rounds", "50"),
    ),
    "calibration": Benchmark(
        title="The calibrated rerank alone",
        about="500 candidates, 20 slots, 18 categories, one thread. `sort` is the peer: the same slate in the order of "
        "utility.",
        quick=("--rounds", "50"),
    ),
    "retrieval": Benchmark(
        title="Retrieval from 1,000,000 items",
        about="500 candidates out of a synthetic, clustered catalogue (see the file), one thread. Peers: `faiss flat`, "
        "which is exact, and faiss's inverted file, reading about as large a share of its lists. `recall_least`: of "
        "the exact answer's items in the least popular of a person's interests; `held`: how many of the 500 are in it. "
        "`by interest` is what `/v1/recommend` draws, against the same draw from one list, read whole. Then what a "
        "version costs beside as many items: `attach_s` before it can serve, `build_s` in a thread beside it, `rss_mb` "
        "more.",
        repeats=True,
        quick=("--items", "120000", "--queries", "40"),
    ),
    "http": Benchmark(
        title="Over HTTP: POST /v1/rank",
        about="Ray Serve, HAProxy and two replicas as `plurank up` runs them; the client shares the machine. `healthz` "
        "is the peer: the same path without any ranking.",
        quick=("--seconds", "1"),
    ),
    "streaming": Benchmark(
        title="Through profiles and trainer",
        about="Events a second, per second of wall time and of the process's processor time, on the embedded broker "
        "and store. `read and decode` is the peer: the same loop without the work. A slate of `live` counts as one "
        "event and brings a row for each of its 30 to 60 films.",
        repeats=True,
        quick=("--runs", "1", "--visits", "600", "--ratings", "8000"),
    ),
    "fair": Benchmark(
        title="What fairness costs the learner",
        about="The plain learner and the Pareto-fair one on the same events, in one run, without broker and store: "
        "join, score, learn. Balanced by gender, two frozen teachers. `ratio` is of events per processor second.",
        repeats=True,
        quick=("--runs", "1", "--visits", "200", "--ratings", "3000"),
    ),
    "freshness": Benchmark(
        title="From feedback to evidence and to served weights",
        about="Ten visits a second by MovieLens's audience (simulated eyes on real ratings). `weights` ends when a "
        "version that learned the positive is loaded, checked and served.",
        repeats=True,
        quick=("--seconds", "30"),
    ),
}


def run(name: str, arguments: Sequence[str], say: Console) -> list[dict[str, Any]]:
    """The rows of one run.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryDirectory(prefix="plurank-benchmark-") as place:
        out = Path(place) / "rows.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, "--out", str(out)]
        say.print(command_of(f"benchmarks.{name}", arguments))
        with subprocess.Popen(command, env={"OMP_NUM_THREADS": "1", **os.environ}, cwd=HERE.parent) as process:
            try:
                code = process.wait(PATIENCE_S)
            finally:
                if process.poll() is None:  # as by Ctrl-C: it ends what it started
                    process.send_signal(signal.SIGINT)
        if code or not out.exists():
            raise RuntimeError(f"benchmarks.{name} ended with {code}")
        rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
        return rows


def section(name: str, benchmark: Benchmark, rows: Sequence[dict[str, Any]], *, command: str, runs: int) -> str:
    """One benchmark's part of the page."""
    often = "" if runs == 1 else f" ({runs} runs, medians)"
    return f"## {benchmark.title}\n\n{benchmark.about}\n\n`{command}`{often}\n\n{markdown(rows)}\n"


def soak(path: Path) -> str:
    """The part of the last long run, if there was one."""
    if not path.exists():
        return ""
    found = json.loads(path.read_text())
    rows = [{"figure": name, **figure} for name, figure in found["figures"].items()]
    verdict = "Everything stayed flat." if found["flat"] else "Not flat: " + "; ".join(found["failed"]) + "."
    return (
        f"## Left running for {found['final']['seconds'] / 60:.0f} minutes\n\n"
        f"Medians of the first and the last quarter of {found['samples']} samples; resident memory in MB. {verdict}\n\n"
        f"`{found['command']}` on {stamp(found['machine'])}\n\n{markdown(rows)}\n"
    )


def main() -> int:
    """Run them and write the page; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name in BENCHMARKS if (HERE / f"{name}.py").exists()]
    parser.add_argument("names", nargs="*", metavar="NAME", help="some of: " + ", ".join(known))
    parser.add_argument("--runs", type=count, default=3)
    parser.add_argument("--quick", action="store_true", help="a fast look: short, one run each")
    parser.add_argument("--out", type=Path, default=HERE / "results.md")
    given = parser.parse_args()
    if unknown := set(given.names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    say, facts, begun = Console(stderr=True, highlight=False), machine(), time.monotonic()
    parts, failed = [], []
    for name in given.names or known:
        benchmark = BENCHMARKS[name]
        arguments = benchmark.quick if given.quick else ()
        runs = 1 if benchmark.repeats or given.quick else given.runs
        try:
            rows = median_rows([run(name, arguments, say) for _ in range(runs)])
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            failed.append(name)
            parts.append(f"## {benchmark.title}\n\nFailed: {error}\n")
        else:
            command = command_of(f"benchmarks.{name}", arguments)
            parts.append(section(name, benchmark, rows, command=command, runs=runs))
    minutes = (time.monotonic() - begun) / 60
    head = (
        f"# Speed\n\nWritten by `make bench` (`{this_command('benchmarks')}`) in {minutes:.0f} minutes. "
        f"{stamp(facts)}\n\n"
        "The clock of a machine that others use too says little: where "
        "a figure has processor time beside it, that is the one that repeats.\n"
    )
    given.out.write_text("\n".join(part for part in (head, *parts, soak(HERE / "soak.json")) if part))
    say.print(f"wrote {given.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
