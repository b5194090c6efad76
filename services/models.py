"""`plurank models`: the versions in the registry, and which one is served."""

import getpass
import time
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Column, Table

from ranker.config import Config
from ranker.errors import NotFound, RequestError
from ranker.gate import Verdict
from ranker.inference import Inference
from ranker.registry import Registry

#: so many of a decision's reasons are printed
REASONS = 3


def models(
    root: Path,
    action: str,
    version: str | None,
    console: Console,
    *,
    force: bool = False,
    share: float | None = None,
    last: int | None = None,
) -> Any:
    """One action on the registry under `root`; returns what `--json` prints.

    Args:
        share: of the users that a canary serves; the first of the version's own ladder unless given.
        last: how many decisions are listed, all of them unless given.

    Raises:
        RegistryError: the version is missing or damaged, or may not be served.
        RequestError: no version was named where one is needed.
    """
    if not root.exists():
        raise NotFound("registry", str(root), "name one with --registry, or make one with `plurank train` or `up`")
    registry = Registry(root)
    if action == "list":
        return _list(registry, console)
    if action == "decisions":
        return _decisions(registry, last, console)
    if action in ("show", "promote", "canary") and version is None:
        raise RequestError("version", version, f"name one: plurank models {action} VERSION")
    if action == "show":
        return _show(registry, str(version), console)
    who = f"{getpass.getuser()} (command line)"
    if action == "promote":
        pointer = registry.promote(str(version), _verdict(registry, str(version)), force=force, who=who)
    elif action == "rollback":
        pointer = registry.rollback(who=who, to=version)
    elif action == "canary":
        pointer = registry.canary(str(version), share or registry.first_share(str(version)), who=who)
    elif action == "withdraw":
        pointer = registry.withdraw(who=who, reasons=("by hand",))
    else:
        pointer = registry.release(who=who)
    held = ", held until `plurank models release`" if pointer.held else ""
    tried = f", {pointer.canary} to {pointer.share:.0%} of the users" if pointer.canary else ""
    console.print(f"served now: {pointer.version}{tried} (generation {pointer.generation}{held})")
    return msgspec.to_builtins(pointer)


def _verdict(registry: Registry, version: str) -> Verdict:
    """The last verdict recorded for the version; without one, a hold that only --force overrules."""
    for decision in reversed(registry.decisions()):
        if decision.version == version and decision.decision in ("pass", "hold", "refuse"):
            return Verdict(decision=decision.decision, reasons=decision.reasons, measures=decision.measures)  # type: ignore[arg-type]
    return Verdict(decision="hold", reasons=("no verdict was recorded; --force overrules",), measures={})


def _list(registry: Registry, console: Console) -> Any:
    pointer = registry.current()
    version_column = Column("version", min_width=18, no_wrap=True)  # it is copied from here
    versions = registry.versions()
    measured = _aucs(registry.manifest(versions[-1]).metrics) if versions else {}
    table = Table(version_column, "made", "from", "state", " ".join(["AUC", *measured]), box=SIMPLE)
    rows = []
    for version in versions:
        manifest = registry.manifest(version)
        state = []
        if pointer is not None:
            state += ["served"] * (version == pointer.version) + ["previous"] * (version == pointer.previous)
            state += ["pinned"] * (version in pointer.pinned) + ["held"] * (pointer.held and version == pointer.version)
            state += [f"canary {pointer.share:.0%}"] * (version == pointer.canary)
        state += ["forced"] * bool(registry.forced(version))
        rows.append({"version": version, "created": manifest.created, "parent": manifest.parent, "state": state})
        rows[-1]["metrics"] = manifest.metrics
        parent = (manifest.parent or "").partition("-")[0]
        aucs = " ".join(f"{value:.3f}".lstrip("0") for value in _aucs(manifest.metrics).values())
        table.add_row(version, _when(manifest.created), parent, " ".join(state), aucs)
    console.print(table)
    return {"versions": rows, "pointer": msgspec.to_builtins(pointer)}


def _decisions(registry: Registry, last: int | None, console: Console) -> Any:
    found = registry.decisions(last)
    for one in found:
        # a candidate that was not promoted: too little data is no refusal
        what = one.decision if one.action == "refuse" and one.decision else one.action
        verdict = f", {one.decision}" if one.decision and one.decision != what else ""
        said = f"{_when(one.time)}  {what:8}  [bold]{escape(one.version)}[/bold]  by {escape(one.who)}{verdict}"
        console.print(said, highlight=False)
        more = len(one.reasons) - REASONS
        for reason in [*one.reasons[:REASONS], *([f"and {more} more, which --json shows"] if more > 0 else [])]:
            console.print(Padding(escape(reason), (0, 0, 0, 16)), highlight=False)
    return {"decisions": [msgspec.to_builtins(one) for one in found]}


def _show(registry: Registry, version: str, console: Console) -> Any:
    loaded = registry.load(version)
    found = msgspec.to_builtins(loaded.manifest)
    found["forced"] = [msgspec.to_builtins(d) for d in registry.forced(version)]
    found["decisions"] = [msgspec.to_builtins(d) for d in registry.decisions() if d.version == version]
    console.print(f"{version}: sound; made {_when(loaded.manifest.created)} from {loaded.manifest.parent or 'nothing'}")
    table = Table("tensor", "shape", "numbers")
    for name, weight in loaded.weights.items():
        table.add_row(name, "x".join(map(str, weight.shape)), f"{weight.numel():,}")
    console.print(table)
    found["examination"] = curves = Inference(loaded.config, loaded.weights).curves()
    if curves:
        table = Table("examination", *(str(place + 1) for place in range(len(next(iter(curves.values()))))))
        for name, curve in curves.items():
            table.add_row(name, *(f"{ratio:.2f}" for ratio in curve))
        console.print(table, _identified(loaded.config))
    for decision in found["decisions"]:
        reasons = "; ".join(decision.get("reasons", ()))
        console.print(f"{_when(decision['time'])} {decision['action']} by {decision['who']} {reasons}")
    return found


def _identified(config: Config) -> str:
    """What the curve rests on: without items at several places, merit and place are one number."""
    known = "Known only as far as items were seen at several places, by swaps or because they stood elsewhere again"
    swap = config.serving.swap
    if swap > 0:
        return f"{known}; here {swap:.0%} of served slates have a swap (serving.swap)."
    return f"{known}; here no slate has a swap (serving.swap = 0), so it rests on repeated items alone."


def _when(milliseconds: int) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(milliseconds / 1000))


def _aucs(metrics: dict[str, Any]) -> dict[str, float]:
    found = metrics.get("learner")
    return found if isinstance(found, dict) else {}
