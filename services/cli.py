"""The command line. Tables and progress for people; with --json one object on the last line for machines.

With --json everything for people goes to stderr. A deliberate error is one line on stderr and exit status 2.
"""

import argparse
import contextlib
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, get_args

import msgspec
from rich.console import Console

from ranker.config import Method
from ranker.errors import PlurankError, RequestError

Handler = Callable[[argparse.Namespace, Console], Any]
#: of `plurank models`
ACTIONS = ("list", "show", "promote", "rollback", "release", "canary", "withdraw", "decisions")
PARTS = ("service", "trainer", "profiles", "monitor")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = parser().parse_args(argv)
    # the products here are small: a second thread spent three times the processor time and won nothing
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console = Console(stderr=args.json, highlight=False)
    try:
        found = args.handler(args, console)
    except PlurankError as error:
        print(f"plurank: {error}", file=sys.stderr)
        if args.json:
            _print({"error": type(error).__name__, "detail": str(error)})
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    if args.json and found is not None:
        _print(found)
    return found.get("exit", 0) if isinstance(found, dict) else 0


def program() -> None:
    """The `plurank` program: `main`, and out at once.

    All is closed and on disk by then, and taking torch and its threads down took a second of processor time, which
    counted five times in the ending of `up`.
    """
    status = main()
    logging.shutdown()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _print(found: Any) -> None:
    print(msgspec.json.encode(found).decode(), flush=True)


def parser() -> argparse.ArgumentParser:
    """The whole grammar."""
    top = argparse.ArgumentParser(
        prog="plurank", description="A ranking service that learns online and serves people who disagree."
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object on the last line of stdout")
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument(
        "--config", type=Path, metavar="FILE", help="plurank.toml (default: here, else the running up's)"
    )
    place.add_argument("--state", type=Path, default=Path("var"), metavar="DIR", help="state of `up` (default: var)")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, handler: Handler, about: str, *, parents: Sequence[argparse.ArgumentParser] = ()
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about, parents=[common, *parents])
        made.set_defaults(handler=handler)
        return made

    up = command("up", _up, "start everything on this machine: broker, store, service, trainer, audience")
    up.add_argument("--data", nargs="+", default=["ml-100k"], metavar="FILE", help="ml-100k, synthetic, or event files")
    up.add_argument("--config", type=Path, metavar="FILE", help="plurank.toml (default: the data's own)")
    up.add_argument("--state", type=Path, default=Path("var"), metavar="DIR", help="where state is kept (default: var)")
    up.add_argument("--port", type=int, default=8080, help="port of the service on loopback")
    up.add_argument("--replicas", type=count, default=2)
    up.add_argument("--scale", choices=("tiny", "small", "full"))
    up.add_argument("--visits", type=amount, default=10.0, metavar="N", help="visits of the audience a second")
    up.add_argument("--seconds", type=amount, metavar="S", help="end by itself after S seconds of service")

    serve = command("serve", _serve, "the service and its loops, on the Kafka, Valkey and Ray it is given")
    serve.add_argument("--config", type=Path, metavar="FILE", help="plurank.toml")
    serve.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help="some of: " + ", ".join(PARTS))

    train = command("train", _train, "train a version on event files, in time order")
    _events(train)
    train.add_argument(
        "--method",
        choices=get_args(Method),
        default="erm",
        help="erm: one plain model (default); the others save the fair model if it harms no group on the last tenth",
    )
    train.add_argument("--epochs", type=count, default=1)
    train.add_argument("--registry", type=Path, metavar="DIR", help="where versions are kept (default: var/registry)")
    train.add_argument("--seed", type=int)

    evaluate = command("evaluate", _evaluate, "compare versions and baselines on held-out events")
    _events(evaluate)
    evaluate.add_argument("--version", metavar="V", help="judge this version (default: train on the earlier part)")
    evaluate.add_argument(
        "--registry", type=Path, metavar="DIR", help="where versions are kept (default: var/registry)"
    )
    evaluate.add_argument(
        "--split",
        choices=("time", "user"),
        help="hold out all labels after one moment (time) or the last fifth of each user's (user); "
        "default: slate by slate where the log has rankings, else time",
    )
    evaluate.add_argument(
        "--counterfactual",
        action="store_true",
        help="what --version would have earned on the log's slates, by their propensities",
    )
    evaluate.add_argument("--objective", metavar="NAME", help="--counterfactual: whose label is earned")
    evaluate.add_argument("--clip", type=float, metavar="W", help="--counterfactual: cut weights above W")
    evaluate.add_argument("--seed", type=int, default=0, help="first training seed (default: 0)")
    evaluate.add_argument(
        "--seeds", type=count, default=1, metavar="N", help="learn with N seeds; tells their spread too (default: 1)"
    )

    replay = command("replay", _replay, "send event files to the log, in their own rhythm", parents=[place])
    replay.add_argument("--events", nargs="+", type=Path, required=True, metavar="FILE")
    replay.add_argument("--speed", type=float, metavar="X", help="X times as fast as recorded (default: at once)")

    for name, about in (("rank", "ask the service to order items"), ("recommend", "ask the service for items")):
        ask = command(name, _ask, about, parents=[place])
        ask.add_argument("--user", required=True, metavar="U")
        if name == "rank":
            ask.add_argument("--items", required=True, metavar="A,B,C")
        ask.add_argument("--limit", type=int)
        ask.add_argument("--explain", action="store_true")
        ask.add_argument("--url", help="address of the service (default: PLURANK_URL, else the configuration's)")

    models = command("models", _models, "list versions and say which one is served", parents=[place])
    models.add_argument("action", choices=ACTIONS, nargs="?", default="list")
    models.add_argument("version", nargs="?")
    models.add_argument("--registry", type=Path, metavar="DIR")
    models.add_argument("--force", action="store_true", help="promote against the verdict; it is recorded")
    models.add_argument("--share", type=float, metavar="S", help="of the users that a canary serves")
    models.add_argument("--last", type=count, metavar="N", help="how many decisions to list (default: all)")

    command("doctor", _doctor, "what is missing or misconfigured, and the mend", parents=[place])
    command("down", _down, "end the `up` that runs on this state", parents=[place])

    experiment = command("experiment", _experiment, "check one claim")
    experiment.add_argument("name")
    experiment.add_argument("rest", nargs=argparse.REMAINDER, help="options of the experiment")

    run = commands.add_parser("run", parents=[common])  # one process of `up` or `serve`; no help on purpose
    run.add_argument("part", choices=(*PARTS, "audience", "first"))
    run.add_argument("--config", type=Path)
    run.add_argument("--child", action="store_true")
    run.add_argument("--data", default="")
    run.add_argument("--visits", type=float, default=10.0)
    run.add_argument("--pipe", type=int)
    run.set_defaults(handler=_run)
    return top


def count(text: str) -> int:
    """A whole number of at least 1; the experiments' options are read by these, too."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not usable; ask for 1 or more")
    return number


def amount(text: str) -> float:
    """A number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not usable; give a number above 0")
    return number


def share(text: str) -> float:
    """A number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not usable; give a number from 0 to 1")
    return number


# argparse names them where the text is none
count.__name__ = amount.__name__ = share.__name__ = "number"


def _events(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--events", nargs="+", required=True, metavar="FILE", help=".jsonl or .jsonl.gz, ml-100k, synthetic"
    )
    made.add_argument("--config", type=Path, metavar="FILE", help="plurank.toml (default: inferred from the log)")


def _up(args: argparse.Namespace, console: Console) -> Any:
    from services import up

    plan = up.Plan(
        data=tuple(args.data),
        state=args.state,
        config=args.config,
        port=args.port,
        replicas=args.replicas,
        scale=args.scale,
        visits=args.visits,
        seconds=args.seconds,
    )
    return up.up(plan, console)


def _serve(args: argparse.Namespace, console: Console) -> Any:
    from services import settings, up

    return up.serve(settings.load(args.config, os.environ), tuple(args.only or PARTS), args.config, console)


def _run(args: argparse.Namespace, console: Console) -> Any:
    if args.part == "first":
        from services import up

        with Connection(args.pipe) as pipe:
            up.first(pipe)
    else:
        from services import loops

        loops.run(args.part, args.config, child=args.child, data=args.data, visits=args.visits)


def _train(args: argparse.Namespace, console: Console) -> Any:
    from services import offline

    return offline.train(
        args.events,
        args.config,
        args.registry or Path("var/registry"),
        console,
        epochs=args.epochs,
        seed=args.seed,
        method=args.method,
    )


def _evaluate(args: argparse.Namespace, console: Console) -> Any:
    from services import offline

    registry = args.registry or Path("var/registry")
    if args.counterfactual:
        if args.version is None:
            raise RequestError("--version", args.version, "name the version that --counterfactual is about")
        return offline.counterfactual(
            args.events,
            args.config,
            registry,
            console,
            version=args.version,
            objective=args.objective,
            clip=args.clip,
        )
    return offline.evaluate(
        args.events,
        args.config,
        registry,
        console,
        version=args.version,
        split=args.split,
        seed=args.seed,
        seeds=args.seeds,
    )


def _replay(args: argparse.Namespace, console: Console) -> Any:
    from services import offline

    return offline.replay(args.events, _settings(args), console, speed=args.speed)


def _doctor(args: argparse.Namespace, console: Console) -> Any:
    from services import doctor

    return doctor.doctor(args.config, args.state, console)


def _down(args: argparse.Namespace, console: Console) -> Any:
    from services import up

    return up.down(args.state, console)


def _experiment(args: argparse.Namespace, console: Console) -> Any:
    rest = [*args.rest, *(["--json"] if args.json and "--json" not in args.rest else [])]
    name = args.name.replace("-", "_")
    root = Path(__file__).resolve().parent.parent
    known = sorted(p.stem for p in (root / "experiments").glob("[a-z]*.py") if "__main__" in p.read_text())
    if name not in known:
        raise RequestError("experiment", args.name, "there are: " + ", ".join(known).replace("_", "-"))
    done = subprocess.run([sys.executable, "-m", "experiments", name, *rest], check=False)
    args.json = False  # the experiment printed its own
    return {"exit": done.returncode}


def _settings(args: argparse.Namespace) -> Any:
    """The settings of the named file, else of plurank.toml here, else of the `up` that ran on this state."""
    from services import settings

    path = args.config
    if path is None and "PLURANK_CONFIG" not in os.environ and not Path("plurank.toml").exists():
        running = args.state / "plurank.toml"
        path = running if running.exists() else None
    return settings.load(path, os.environ)


def _client(args: argparse.Namespace, scope: Any) -> Any:
    """A client for the running service, with the token of the scope."""
    from services.client import Client
    from services.tokens import Tokens

    url, token = getattr(args, "url", None) or os.environ.get("PLURANK_URL"), os.environ.get("PLURANK_TOKEN")
    if url is None or token is None:
        found = _settings(args)
        url = url or f"http://{found.host}:{found.port}"
        token = token or Tokens.open(found.token_dir)[scope]
    return Client(url, token)


def _ask(args: argparse.Namespace, console: Console) -> Any:
    from rich.table import Table

    body: dict[str, Any] = {"user": args.user, "explain": args.explain}
    if args.command == "rank":
        body["items"] = [item for item in args.items.split(",") if item]
    if args.limit is not None:
        body["limit"] = args.limit
    with _client(args, "rank") as client:
        found = client.call("POST", f"/v1/{args.command}", body)
    names = list(found["items"][0]["probabilities"]) if found["items"] else []
    table = Table("place", "item", "score", *names, title=f"{args.user}, by {found['version']}", title_justify="left")
    for item in found["items"]:
        chances = [f"{item['probabilities'][name]:.3f}" for name in names]
        table.add_row(str(item["position"] + 1), item["id"], f"{item['score']:.4f}", *chances)
    console.print(table)
    if found["degraded"]:
        console.print(f"degraded: {found['reason']}")
    return found


def _models(args: argparse.Namespace, console: Console) -> Any:
    from services import models

    root = args.registry or _settings(args).registry_dir
    return models.models(root, args.action, args.version, console, force=args.force, share=args.share, last=args.last)


if __name__ == "__main__":
    program()
