"""A newcomer through HTTP, Kafka and Valkey: ten questions, a summary, one phrase struck; then she is forgotten.

The service runs in this process behind a real HTTP server; broker, store and profiles are those that `plurank up` runs.
"""

import contextlib
import itertools
import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn

from ranker import config as declared
from ranker import events, evidence, learner
from ranker.events import Comparison, Event, Field, Interaction
from ranker.gate import Verdict
from ranker.golden import Case, Golden
from ranker.join import Joiner
from ranker.registry import Registry
from services import api
from services.client import Client
from services.embedded import Broker, Valkey
from services.intake import read_token
from services.outbox import Outbox
from services.replica import Replica
from services.settings import Settings
from services.telemetry import ApiTelemetry
from services.tokens import Signer, Tokens
from streaming import log
from streaming.log import Reader, Writer
from streaming.profiles import Profiles
from streaming.store import AsyncStore, Store

pytestmark = pytest.mark.integration

GENRES = ("comedy", "drama", "horror", "western")
IDS = [f"i{n}" for n in range(40)]
CONFIG = declared.parse(
    {
        "scale": "tiny",
        "interests": "genres",
        "fields": {"item": {"genres": "categories"}},
        "groups": ["region"],
        "objectives": [{"name": "like", "event": "like"}],
        "serving": {"swap": 0.0},
    }
)
STEP_S = 1.0


def genre_of(item: str) -> str:
    return GENRES[int(item[1:]) % 4]


def described() -> list[events.Item]:
    named = {item: [Field("genres", [genre_of(item)]), Field("title", f"Film {item}")] for item in IDS}
    return [events.Item(id=f"e-{item}", timestamp=1, item=item, fields=fields) for item, fields in named.items()]


def happenings() -> Iterator[Event]:
    """People who love one genre each compare its films with others."""
    rng, now = random.Random(0), 1000
    yield from described()
    for _, person in itertools.product(range(15), range(24)):
        now += 1
        loved = [item for item in IDS if genre_of(item) == GENRES[person % 4]]
        preferred, over = rng.choice(loved), rng.choice([item for item in IDS if item not in loved])
        yield Comparison(id=f"c{now}", timestamp=now, user=f"p{person}", preferred=preferred, over=over)
        yield Interaction(id=f"l{now}", timestamp=now, user=f"p{person}", item=preferred, type="like")


@dataclass
class Running:
    """The service, and what it stands on."""

    settings: Settings
    store: Store
    client: Client
    profiles: threading.Thread

    def rank(self, user: str, token: str | None = None) -> dict[str, Any]:
        """All items in order, with their rewards."""
        body = {"user": user, "items": IDS, "explain": True, "evidence_token": token}
        found: dict[str, Any] = self.client.call("POST", "/v1/rank", {k: v for k, v in body.items() if v is not None})
        assert not found["degraded"], found["reason"]
        return found


@pytest.fixture(scope="module")
def running(broker: Broker, valkey_server: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("newcomer")
    address = broker.address("newcomer")
    log.create(address)
    url = valkey_server.url.rsplit("/", 1)[0] + "/6"  # apart from the key spaces of other tests
    settings = Settings(
        config=CONFIG, brokers=address.brokers, topic=address.topic, segmented=address.segmented,
        store=url, state=str(folder),
    )  # fmt: skip
    student, joiner = learner.Learner(CONFIG), Joiner(CONFIG)
    for _ in learner.train(happenings(), student, joiner, rows=128):
        pass
    registry, weights = Registry(settings.registry_dir), student.weights()
    golden = Golden.record(CONFIG, weights, joiner.catalogue, [Case(evidence.EMPTY, {}, IDS[:4], 5)])
    registry.promote(
        registry.save(weights, CONFIG, metrics={}, golden=golden, parent=None), Verdict("pass"), who="test"
    )
    tokens, store, stop = Tokens.open(settings.token_dir), Store(url), threading.Event()
    replica = Replica(
        settings,
        registry=registry,
        reads=AsyncStore(url),
        changes=Store(url),
        outbox=Outbox(lambda: Writer(settings.log), limit=100),
        tokens=tokens,
        signer=Signer(settings.token_dir),
        telemetry=ApiTelemetry(api.PATHS, "api-newcomer"),
    )
    profiles = threading.Thread(target=lambda: list(Profiles(CONFIG, address, store).run(stop)), daemon=True)
    profiles.start()
    server = uvicorn.Server(uvicorn.Config(api.build(replica), port=0, log_level="warning", ws="none"))
    serving = threading.Thread(target=server.run, daemon=True)
    serving.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with contextlib.closing(Client(f"http://127.0.0.1:{port}", tokens["admin"])) as client:
            until(lambda: client.send("POST", "/v1/feedback", described()).status == 200)
            until(lambda: len(client.call("POST", "/v1/recommend", {"user": "x", "limit": 40})["items"]) == len(IDS))
            yield Running(settings, store, client, profiles)
    finally:
        server.should_exit = True
        serving.join(20)
        stop.set()
        profiles.join(20)
        store.close()


def until(true: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def place_of(answer: dict[str, Any], genre: str) -> float:
    """The mean place of a genre's films."""
    return statistics.fmean(item["position"] for item in answer["items"] if genre_of(item["id"]) == genre)


def rewards_of(answer: dict[str, Any]) -> dict[str, float]:
    return {item["id"]: item["reward"] for item in answer["items"]}


def answer_for(question: dict[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """What somebody would answer who likes the genres in this order."""
    one, other = question["items"]
    places = [order.index(genre_of(item["id"])) for item in (one, other)]
    if places[0] == places[1]:
        return {"question": question["id"], "outcome": "both"}
    return {"question": question["id"], "preferred": (one if places[0] < places[1] else other)["id"]}


def test_ten_answers_and_a_struck_phrase_move_the_ranking_at_each_step(running: Running) -> None:
    client = running.client
    start = ranking = running.rank("nell")
    order = sorted(GENRES, key=lambda genre: -place_of(start, genre))  # against what most people like
    assert set(start["evidence"].values()) == {0}
    body, took = client.call("GET", "/v1/users/nell/question"), []
    for number in range(1, 11):
        answer = answer_for(body["question"], order)
        names = [item["id"] for item in body["question"]["items"]]
        begun = time.monotonic()
        body = client.call("POST", "/v1/users/nell/answers", {"answers": [answer]})
        after = running.rank("nell", body["evidence_token"])
        took.append(time.monotonic() - begun)
        assert after["evidence"]["answers"] == number
        if "preferred" in answer:
            other = next(name for name in names if name != answer["preferred"])
            was, now = rewards_of(ranking), rewards_of(after)
            assert now[answer["preferred"]] - now[other] > was[answer["preferred"]] - was[other]
        ranking = after
    assert place_of(ranking, order[0]) < place_of(start, order[0]) - 10
    assert place_of(ranking, order[-1]) > place_of(start, order[-1]) + 10
    assert body["progress"]["answers"] == 10

    summary = client.call("GET", "/v1/users/nell/summary")
    liked = [one["key"] for one in summary["phrases"] if one["sign"] == "likes"]
    assert f"genres={order[0]}" in liked, summary
    assert order[0] in " ".join(summary["sentences"])
    begun = time.monotonic()
    struck = client.call("PUT", "/v1/users/nell/summary", {"struck": [order[0]]})
    after = running.rank("nell", struck["evidence_token"])
    took.append(time.monotonic() - begun)
    assert struck["struck"] == [f"genres={order[0]}"]
    assert f"genres={order[0]}" not in {one["key"] for one in struck["phrases"]}
    assert place_of(after, order[0]) > place_of(ranking, order[0])
    assert max(took) < STEP_S, took
    told = client.call("GET", "/v1/users/nell/taste")
    assert told["uncertainty"] < 1
    print(f"a step took {statistics.median(took) * 1000:.0f} ms in the middle, {max(took) * 1000:.0f} ms at most")


def test_words_move_the_ranking_the_stated_way(running: Running) -> None:
    start = running.rank("wilma")
    written = running.client.call("PUT", "/v1/users/wilma/summary", {"text": "more westerns, no drama, less xyzzy"})
    assert {(one["sign"], one["key"]) for one in written["understood"]} == {
        ("likes", "genres=western"),
        ("avoids", "genres=drama"),
    }
    assert written["not_understood"] == ["xyzzy"]
    after = running.rank("wilma", written["evidence_token"])
    assert after["evidence"]["words"] == 2
    assert place_of(after, "western") < place_of(start, "western")
    assert place_of(after, "drama") > place_of(start, "drama")


def test_a_history_is_told_and_what_is_struck_of_it_no_longer_counts(running: Running) -> None:
    client, now = running.client, int(time.time() * 1000)
    start = running.rank("hugo")
    genre = max(GENRES, key=lambda one: place_of(start, one))
    liked = [item for item in IDS if genre_of(item) == genre][:6]
    acts = [
        {"event": "interaction", "id": f"h{n}", "timestamp": now, "user": "hugo", "item": item, "type": "like"}
        for n, item in enumerate(liked)
    ]
    token = client.call("POST", "/v1/feedback", acts)["evidence_token"]
    known = running.rank("hugo", token)
    assert place_of(known, genre) < place_of(start, genre)
    told = client.call("GET", f"/v1/users/hugo/summary?evidence_token={token}")
    assert (f"genres={genre}", "likes", "history") in {
        (one["key"], one["sign"], one["source"]) for one in told["phrases"]
    }
    struck = client.call("PUT", "/v1/users/hugo/summary", {"struck": [f"likes genres={genre}"]})
    after = running.rank("hugo", struck["evidence_token"])
    assert after["evidence"] == {"history": 0, "answers": 0, "words": 1}
    assert place_of(after, genre) > place_of(known, genre)


def test_a_forgotten_person_is_a_newcomer_whatever_is_read_again(running: Running) -> None:
    client = running.client
    newcomer = rewards_of(running.rank("finn"))
    now = int(time.time() * 1000)
    acts = [
        {"event": "interaction", "id": f"f{n}", "timestamp": now, "user": "finn", "item": f"i{4 * n}", "type": "like"}
        for n in range(5)
    ]
    client.call("POST", "/v1/feedback", acts)
    region = [{"name": "region", "value": "north"}]
    client.call(
        "POST", "/v1/feedback", {"event": "user", "id": "fu", "timestamp": now, "user": "finn", "fields": region}
    )
    body = client.call("GET", "/v1/users/finn/question")
    answer = answer_for(body["question"], GENRES)
    client.call("POST", "/v1/users/finn/answers", {"answers": [answer]})
    token = client.call("PUT", "/v1/users/finn/summary", {"likes": ["comedy"]})["evidence_token"]
    known = running.rank("finn", token)
    assert known["evidence"] == {"history": 5, "answers": 1, "words": 1}
    assert rewards_of(known) != newcomer

    begun = time.monotonic()
    gone = client.call("DELETE", "/v1/users/finn")
    after = running.rank("finn", gone["evidence_token"])
    assert time.monotonic() - begun < STEP_S
    assert gone["removed"] == {"history": 5, "answers": 1, "words": 1, "fields": 0}
    assert set(after["evidence"].values()) == {0}
    assert rewards_of(after) == pytest.approx(newcomer)
    assert client.call("GET", "/v1/users/finn/question")["progress"]["answers"] == 0

    # her old events again, as a file that is replayed would bring them
    again = client.call("POST", "/v1/feedback", [{**act, "id": f"again-{act['id']}"} for act in acts])
    assert set(running.rank("finn", again["evidence_token"])["evidence"].values()) == {0}

    # the log from its beginning, into a store and a learner that know nothing yet
    space = Store(running.settings.store, space="again")
    stop, joiner = threading.Event(), Joiner(CONFIG)
    loop = threading.Thread(target=lambda: list(Profiles(CONFIG, running.settings.log, space).run(stop)), daemon=True)
    loop.start()
    try:
        until(lambda: space.holds(read_token(again["evidence_token"])[0]))
        stored = space.evidence("finn")
        assert stored is not None
        assert stored.evidence == evidence.EMPTY
    finally:
        stop.set()
        loop.join(20)
        space.clear()
        space.close()
    reader, last = Reader(running.settings.log), read_token(again["evidence_token"])[0]
    with contextlib.closing(reader):
        while reader.positions()[last.partition] <= last.offset:
            for record in reader.poll():
                joiner.push(events.decode(record.value), record.partition)
    assert "finn" not in joiner.evidence
    assert "finn" not in joiner.groups


def test_a_person_who_is_unknown_is_forgotten_too(running: Running) -> None:
    assert running.client.call("DELETE", "/v1/users/nobody")["removed"] == {
        "history": 0, "answers": 0, "words": 0, "fields": 0,
    }  # fmt: skip
