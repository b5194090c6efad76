"""`plurank up`: everything on this machine, from the broker to an audience; and `serve`, the same loops without it.

The audience's clicks are simulated, the ratings they come from are real. Ctrl-C ends in order: the audience first,
then the service, then the loops once they have read what is there, then what held it all.
"""

import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console

from ranker import config as configuration
from ranker.config import Config
from ranker.datasets import movielens
from ranker.errors import ConfigError, PlurankError, RegistryError
from ranker.events import Event
from ranker.simulation import Audience
from services import audience, live, offline, status
from services.client import Client
from services.embedded import Broker, Valkey
from services.settings import Settings
from services.supervisor import Supervisor, die_with_parent, sweep
from services.tokens import Tokens
from streaming import log
from streaming.log import Writer
from streaming.profiles import GROUP as PROFILES
from streaming.replay import replay

# torch is kept out of this process, which only looks after the others: 300 MB, and half as much again in training
if TYPE_CHECKING:
    from ranker.registry import Registry

#: the loops' consumer groups; two by their names, for their modules load torch
GROUPS = (PROFILES, "plurank-trainer", "plurank-monitor")
#: seconds a stop may take in all, and what of them the loops get to read what is there
STOP_S, DRAIN_S = 7.0, 1.5
READY_S = 120.0
SETTINGS, PID = "plurank.toml", "up.pid"
#: this file says that the loops hold the history; without it, their folders are views of a log that is gone
HISTORY = "history.read"
VIEWS = ("store", "broker", "trainer", "monitor")
LOOPS = ("profiles", "trainer", "monitor")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `plurank up` was asked for."""

    data: tuple[str, ...] = (offline.MOVIELENS,)
    state: Path = Path("var")
    config: Path | None = None
    port: int = 8080
    replicas: int = 2
    scale: str | None = None
    visits: float = 10.0
    seconds: float | None = None


@dataclass
class _Running:
    """What has been started so far, so that it can be ended from wherever it stopped."""

    supervisor: Supervisor
    settings: Settings
    console: Console
    broker: Broker | None = None
    store: Valkey | None = None
    timings: dict[str, float] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Print it as it is: no markup, no line breaks of the console's own."""
        self.console.print(text, markup=False, soft_wrap=True)


class _Learning:
    """The process that learns the first version, and that knows before which one is served; its memory ends with it.

    It leads a session of its own, so that a Ctrl-C reaches only `up`, and writes where `up` writes.

    Attributes:
        served: the version that is served already, if any.

    Raises:
        ConfigError: that version is of another kind than what is asked for.
    """

    def __init__(self, plan: Plan, settings: Settings, console: Console) -> None:
        self._pipe, theirs = Pipe()
        command = [sys.executable, "-m", "services.cli", "run", "first", "--child", "--pipe", str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
        )
        theirs.close()
        try:
            self.served = self._ask((plan, settings, console.stderr))
        except BaseException:
            self.close()
            raise

    def learn(self) -> None:
        """Learn the first version and promote it."""
        self.served = self._ask("learn")

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe.close()

    def _ask(self, message: object) -> str | None:
        try:
            self._pipe.send(message)
            found: str | PlurankError | None = self._pipe.recv()
        except (EOFError, OSError):
            raise RegistryError("first version", None, "the process that learns it ended, see above") from None
        if isinstance(found, PlurankError):
            raise found
        return found


def first(pipe: Connection) -> None:
    """The other end of `_Learning`: says which version is served; where there is none, learns one when told to."""
    from ranker.registry import Registry

    die_with_parent()
    with contextlib.suppress(EOFError):
        plan, settings, stderr = pipe.recv()
        try:
            registry = Registry(settings.registry_dir)
            fits(settings.config, registry)
            pointer = registry.current()
            pipe.send(pointer and pointer.version)
            if pointer is not None:
                return
            pipe.recv()
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a progress bar gives the cursor back
            history, total = _history(plan)
            version, _ = offline.first_version(
                settings.config,
                history,
                registry,
                Console(stderr=stderr, highlight=False),
                epochs=2 if settings.config.scale != "tiny" else 1,
                data=", ".join(plan.data),
                total=total,
            )
            pipe.send(version)
        except PlurankError as error:
            pipe.send(error)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def up(plan: Plan, console: Console) -> dict[str, Any]:
    """Start everything, show one line a second until told to stop, end everything.

    Raises:
        PlurankError: a part cannot be had or does not come up.
    """
    begun = time.monotonic()
    plan.state.mkdir(parents=True, exist_ok=True)
    with alone(plan.state), _interruptible():
        config = offline.configuration_of(plan.data, plan.config, console)
        if plan.scale:
            config = msgspec.structs.replace(config, scale=plan.scale)
        state = str(plan.state.absolute())
        settings = Settings(config=config, state=state, port=plan.port, replicas=plan.replicas)
        learning = _Learning(plan, settings, console)
        running = _Running(Supervisor(plan.state / "log"), settings, console)
        facts: dict[str, Any] = {}
        try:
            with contextlib.closing(learning):
                _start(plan, running, learning, begun)
            facts = _watch(running, plan.seconds)
        except KeyboardInterrupt:
            facts = live.gather(settings.state_dir)
        finally:
            _deaf()
            facts["stopped_in"] = _stop(running)
        facts["timings"] = running.timings
        return facts


def _start(plan: Plan, running: _Running, learning: _Learning, begun: float) -> None:
    supervisor = running.supervisor
    state = running.settings.state_dir
    for old in (state / "status").glob("*.json"):
        old.unlink()
    settled = (state / HISTORY).exists()
    if not settled:  # a first start that was cut off: the log is gone, so its half-read views begin anew as well
        for view in VIEWS:
            shutil.rmtree(state / view, ignore_errors=True)
    running.store = Valkey(state / "store")
    running.store.start()
    running.say(f"store     Valkey on {running.store.url}")
    running.broker = Broker(state / "broker", groups=GROUPS)
    carried = running.broker.start()
    running.settings = settings = msgspec.structs.replace(
        running.settings, brokers=running.broker.url, store=running.store.url, segmented=True
    )
    running.say(f"log       Tansu on {running.broker.url}, in memory, kept short in {state / 'broker'}")
    if carried:
        running.say(f"          {carried:,} events that the last run had not worked off are in it again")
    path = write_settings(settings, state / SETTINGS)
    tokens = Tokens.open(settings.token_dir)
    _run(supervisor, "service", path)
    running.say(f"service   Ray Serve, {settings.replicas} replicas behind HAProxy on port {settings.port}")
    _run(supervisor, "profiles", path)
    _run(supervisor, "monitor", path)

    history, _ = _history(plan)
    if not settled:
        sent = _send(history(), settings)
        running.say(f"history   {sent:,} events into the log")
    if learning.served is None:
        learning.learn()
    else:
        running.say(f"model     {learning.served} out of {settings.registry_dir}")
    _run(supervisor, "trainer", path)
    running.say("loops     profiles, trainer, monitor; their words are in " + str(supervisor.logs))
    running.timings["started"] = time.monotonic() - begun

    url = f"http://{settings.host}:{settings.port}"
    user, items = example(history())
    with Client(url, tokens["rank"]) as client:
        _ready(client, running)
        running.timings["ready"] = time.monotonic() - begun
        answer = client.call("POST", "/v1/rank", {"user": user, "items": items})
    running.timings["first_answer"] = time.monotonic() - begun
    first = ", ".join(item["id"] for item in answer["items"])
    running.say(
        f"\n{url} ranked its first slate {running.timings['first_answer']:.0f} s after the start: {first}\n"
        f"API at {url}/docs; one token for each scope in {settings.token_dir} (mode 600)\n"
        f"token to rank: {tokens['rank']}\n\n"
        f"try it:\n\n{curl(url, tokens['rank'], user, items)}\n"
    )
    if about := audience.ABOUT.get(" ".join(plan.data)):
        _run(supervisor, "audience", path, "--data", *plan.data, "--visits", str(plan.visits))
        running.say(f"audience  {about}\n")
    else:
        running.say("audience  none: there is no truth to simulate one from; `plurank replay` sends events\n")


def fits(config: Config, registry: "Registry") -> None:
    """See to it that the state goes on with the same kind of model; weights and rates may change between starts.

    Raises:
        ConfigError: the version served has other fields, objectives or another size.
    """
    pointer = registry.current()
    if pointer is None:
        return
    served = configuration.parse(registry.manifest(pointer.version).config, source=pointer.version)
    for name, one, other in (
        ("scale", served.scale, config.scale),
        ("fields", served.fields, config.fields),
        ("interests", served.interests, config.interests),
        ("objectives", [o.name for o in served.objectives], [o.name for o in config.objectives]),
    ):
        if one != other:
            remedy = (
                f"{registry.root.parent} holds a model with {one!r}; name another folder with --state, or remove it"
            )
            raise ConfigError(name, other, remedy)


def curl(url: str, token: str, user: str, items: Sequence[str]) -> str:
    """A command that works when pasted."""
    body = shlex.quote(msgspec.json.encode({"user": user, "items": list(items)}).decode())
    return f"curl -s {url}/v1/rank -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' -d {body}"


def serve(settings: Settings, parts: Sequence[str], path: Path | None, console: Console) -> dict[str, Any]:
    """Run the service and its loops on the Kafka, Valkey and Ray of the settings until told to stop.

    Raises:
        LogUnavailable: the log cannot be reached or made.
    """
    with _interruptible():
        running = _Running(Supervisor(settings.state_dir / "log"), settings, console)
        facts: dict[str, Any] = {}
        try:
            log.create(settings.log)
            for part in parts:
                _run(running.supervisor, part, path)
            running.say(f"{', '.join(parts)} on {settings.brokers}; words are in {running.supervisor.logs}")
            facts = _watch(running, None)
        except KeyboardInterrupt:
            facts = live.gather(settings.state_dir)
        finally:
            _deaf()
            facts["stopped_in"] = _stop(running)
        return facts


def down(state: Path, console: Console) -> dict[str, Any]:
    """End the `up` that runs on this state folder and wait for it."""
    try:
        pid = int((state / PID).read_text())
        os.kill(pid, signal.SIGTERM)
    except (OSError, ValueError):
        console.print(f"nothing runs on {state}")
        return {"ended": False}
    begun = time.monotonic()
    while time.monotonic() - begun < 2 * STOP_S:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    console.print(f"ended in {time.monotonic() - begun:.1f} s")
    return {"ended": True, "seconds": time.monotonic() - begun}


def write_settings(settings: Settings, path: Path) -> Path:
    """Write the settings as a plurank.toml that every child, and `plurank rank` beside them, reads."""
    import tomli_w

    data = _without_none(msgspec.to_builtins(settings))
    config = data.pop("config")
    part = path.with_suffix(".part")
    part.write_text(
        "# written by `plurank up`; it is written anew each time\n" + tomli_w.dumps({**config, "service": data})
    )
    part.replace(path)
    return path


def _without_none(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _without_none(value) for name, value in data.items() if value is not None}
    return [_without_none(value) for value in data] if isinstance(data, list | tuple) else data


def _run(supervisor: Supervisor, part: str, path: Path | None, *more: str) -> None:
    """Start one part as a child that reads the given configuration and nothing of our environment's."""
    env = {name: value for name, value in os.environ.items() if path is None or not name.startswith("PLURANK_")}
    named = [] if path is None else ["--config", str(path.absolute())]
    command = [sys.executable, "-m", "services.cli", "run", part, "--child", *named, *more]
    supervisor.start(part, command, env)


def _history(plan: Plan) -> tuple[offline.Log, int | None]:
    """What the first model may know, and how many events that is where it is known."""
    if plan.data != (offline.MOVIELENS,):
        return offline.open_log(plan.data, lambda *_: None), None
    data = movielens()
    people = Audience(data)
    return people.events, len(data.films) + len(data.people) + len(people.history_rows)


def example(events: Iterable[Event]) -> tuple[str, list[str]]:
    """A person and ten items of the log, for the first request."""
    from ranker.events import Interaction, Ranking

    user, items = "somebody", dict[str, None]()
    for event in events:
        if isinstance(event, Interaction):
            user = event.user
            items[event.item] = None
        elif isinstance(event, Ranking):
            user = event.user
            items |= dict.fromkeys(shown.id for shown in event.items)
        if len(items) >= 10:
            break
    return user, list(items)[:10]


def _send(history: Iterable[Event], settings: Settings) -> int:
    writer = Writer(settings.log)
    try:
        done = replay(history, writer)
    finally:
        writer.close()
    return done.events


def _ready(client: Client, running: _Running) -> None:
    """Wait until every replica serves a version: so many answers in a row that none can have been passed by.

    Raises:
        RegistryError: it does not within READY_S.
    """
    deadline = time.monotonic() + READY_S
    reason, good = "no answer", 0
    with running.console.status("waiting for the service"):
        while time.monotonic() < deadline:
            running.supervisor.tend()
            with contextlib.suppress(PlurankError):
                answer = client.send("GET", "/readyz")
                good = good + 1 if answer.status == 200 else 0
                if good >= 4 * running.settings.replicas:
                    return
                reason = f"{answer.status}"
            time.sleep(0.02 if good else 0.1)
    where = running.supervisor.logs / "service.log"
    raise RegistryError("service", reason, f"it did not get ready within {READY_S:.0f} s; read {where}")


def _watch(running: _Running, seconds: float | None) -> dict[str, Any]:
    """Show the live line and look after the children until interrupted or the time is up."""
    state, begun, line = running.settings.state_dir, time.monotonic(), live.Line(running.console)
    while seconds is None or time.monotonic() - begun < seconds:
        time.sleep(1.0)
        for name in running.supervisor.tend():
            child = running.supervisor.children[name]
            running.say(f"{name} ended ({child.code}); again in {child.wait:g} s; see {child.log}")
        _mend(running)
        facts = live.gather(state)
        facts["restarts"] = sum(child.deaths for child in running.supervisor.children.values())
        line.show(facts)
        if facts["lag"].keys() >= set(LOOPS) and not any(facts["lag"].values()):
            (state / HISTORY).touch()
    return live.gather(state)


def _mend(running: _Running) -> None:
    """Start an embedded broker or store that died again, on the same port."""
    if running.store is not None and not running.store.alive():
        running.say("the store ended; it is started again from its file")
        running.store.stop()
        running.store.start()
    if running.broker is not None and not running.broker.alive():
        carried = running.broker.restart()
        running.say(f"the broker ended, and its log with it; the new log begins with {carried:,} undrained events")


def _stop(running: _Running) -> float:
    """End everything in order; returns the seconds it took."""
    begun = time.monotonic()

    def left() -> float:
        return max(2.0, STOP_S - (time.monotonic() - begun))

    supervisor, state = running.supervisor, running.settings.state_dir
    running.say("stopping: no new visits")
    killed = supervisor.stop(["audience"], within=1.5)
    serving = threading.Thread(target=lambda: killed.extend(supervisor.stop(["service"], within=left() - 0.5)))
    serving.start()
    _drain(supervisor, state, begun + DRAIN_S)
    killed += supervisor.stop(LOOPS, within=left() - 1.5)
    serving.join(left() - 1.0)
    if running.broker is not None and (kept := running.broker.stop()):
        running.say(f"{kept:,} events are kept for the next start")
    serving.join()
    if running.store is not None:
        running.store.stop()
    swept = sweep()
    taken = time.monotonic() - begun
    words = f", killed {', '.join(killed)}" if killed else ""
    words += f", {len(swept)} processes were left and swept" if swept else ""
    running.say(f"ended in {taken:.1f} s{words}")
    return taken


def _drain(supervisor: Supervisor, state: Path, deadline: float) -> None:
    """Wait until the loops say that they have read everything, not longer than the deadline."""
    loops = [name for name in LOOPS if name in supervisor.children]
    asked = time.time()
    while time.monotonic() < deadline:
        found = status.read(state / "status")
        if all(found.get(name, {}).get("lag") == 0 and found[name]["at"] > asked for name in loops):
            return
        time.sleep(0.05)


@contextlib.contextmanager
def alone(state: Path) -> Iterator[None]:
    """Hold the state folder; `down` finds the process by what is written there.

    Raises:
        ConfigError: another process holds it.
    """
    with (state / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError("state folder", str(state), "another `up` runs on it; `plurank down` ends that") from None
        (state / PID).write_text(str(os.getpid()))
        try:
            yield
        finally:
            (state / PID).unlink(missing_ok=True)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM is taken like Ctrl-C; both handlers are put back at the end."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _deaf() -> None:
    """A second Ctrl-C does not disturb the ending, which is bounded in time."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
