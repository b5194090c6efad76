"""Texts that the catalogue has never seen, such as several answers of a language model, ranked by a person's taste.

A text that is declared as one is read as a bag of hashed words: what was learned of its words from comparisons of other
texts is what it is ranked by. Half of the people here prefer answers that come to the point, half those that are kind.
"""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ranker import config as declared
from ranker import events, evidence, learner
from ranker.catalogue import Catalogue, Item
from ranker.config import Config
from ranker.events import Comparison, Event, Field
from ranker.gate import Verdict
from ranker.golden import Case, Golden
from ranker.join import Joiner
from ranker.model import Model
from tests.services.conftest import NOW_MS, Service

WORDS = {
    "terse": "yes no correct wrong done use run set remove add twice once".split(),
    "kind": "happy glad wonderful please thank welcome gladly hope lovely great delighted dear".split(),
}
TOPICS = "printer garden recipe invoice flight novel bicycle window contract holiday".split()
CANDIDATES = [
    {"id": "answer-1", "fields": {"text": "Run the printer setup once, remove the queue, done."}},
    {"id": "answer-2", "fields": {"text": "Thank you, dear! I would gladly help; I hope the printer is lovely again."}},
    {"id": "answer-3", "fields": {"text": "No. Wrong printer: use the other one, add it twice."}},
    {"id": "answer-4", "fields": {"text": "What a wonderful printer! Please be welcome, I am so happy and glad."}},
]
KIND, TERSE = {"answer-2", "answer-4"}, {"answer-1", "answer-3"}


def settings(kind: str = "text") -> Config:
    return declared.parse(
        {
            "scale": "tiny",
            "fields": {"item": {"text": kind} if kind else {}},
            "objectives": [{"name": "like", "event": "like"}],
            "serving": {"swap": 0.0},
        }
    )


def texts() -> dict[str, str]:
    """Thirty short answers in either manner."""
    rng = random.Random(0)
    found = {}
    for manner, number in itertools.product(WORDS, range(30)):
        words = [*rng.sample(WORDS[manner], 4), *rng.sample(TOPICS, 2)]
        rng.shuffle(words)
        found[f"{manner}-{number}"] = " ".join(words)
    return found


def happenings() -> Iterator[Event]:
    """Twenty people compare a terse answer with a kind one, twenty times each."""
    rng, time = random.Random(1), 1000
    for name, text in texts().items():
        yield events.Item(id=f"e-{name}", timestamp=1, item=name, fields=[Field("text", text)])
    for _, person in itertools.product(range(20), range(20)):
        time += 1
        terse, kind = f"terse-{rng.randrange(30)}", f"kind-{rng.randrange(30)}"
        preferred, over = (terse, kind) if person % 2 else (kind, terse)
        yield Comparison(id=f"c{time}", timestamp=time, user=f"p{person}", preferred=preferred, over=over)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    student, joiner = learner.Learner(settings()), Joiner(settings())
    for _ in learner.train(happenings(), student, joiner, rows=128):
        pass
    return dict(student.weights())


def serve(folder: Path, config: Config, weights: dict[str, torch.Tensor]) -> Service:
    service = Service(folder, config)
    service.store.items = [Item(name, {"text": text}, NOW_MS) for name, text in texts().items()]
    catalogue = Catalogue(config)
    for item in service.store.items:
        catalogue.put(item)
    case = Case(evidence.EMPTY, {}, ["kind-0", "terse-0"], NOW_MS)
    golden = Golden.record(config, weights, catalogue, [case])
    version = service.registry.save(weights, config, metrics={}, golden=golden, parent=None)
    service.registry.promote(version, Verdict("pass"), who="test")
    service.replica.start()
    service.settle(lambda: service.call("GET", "/readyz").status_code == 200)
    return service


def answer_all(service: Service, user: str, manner: str) -> str:
    """Eight questions, answered for one manner."""
    body = service.call("GET", f"/v1/users/{user}/question").json()
    for _ in range(8):
        items = body["question"]["items"]
        liked = [item["id"].startswith(manner) for item in items]
        answer = {"question": body["question"]["id"], "outcome": "both"}
        if liked[0] != liked[1]:
            answer |= {"outcome": "preferred", "preferred": items[liked.index(True)]["id"]}
        body = service.call("POST", f"/v1/users/{user}/answers", {"answers": [answer]}).json()
    return str(body["evidence_token"])


def test_answers_of_a_language_model_are_ranked_by_a_persons_taste(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    service = serve(tmp_path, settings(), weights)
    try:
        for user, manner, first in (("ann", "kind", KIND), ("bob", "terse", TERSE)):
            token = answer_all(service, user, manner)
            body = service.call("POST", "/v1/rank", {"user": user, "items": CANDIDATES, "evidence_token": token}).json()
            assert {item["id"] for item in body["items"][:2]} == first, user
            assert body["evidence"]["answers"] == 8
            assert body["degraded"] is False
        # a question shows the text itself
        shown = service.call("GET", "/v1/users/eve/question").json()["question"]["items"][0]
        assert shown["text"] == shown["fields"]["text"]
    finally:
        service.replica.close()


def test_a_text_that_is_not_declared_is_not_read(tmp_path: Path) -> None:
    for kind, different in (("text", True), ("", False)):
        config = settings(kind)
        weights = Model(config, torch.Generator().manual_seed(0)).state_dict()
        service = serve(tmp_path / f"kind-{kind}", config, weights)
        try:
            items = service.call("POST", "/v1/rank", {"user": "ann", "items": CANDIDATES}).json()["items"]
            assert (len({round(item["score"], 6) for item in items}) > 1) == different
        finally:
            service.replica.close()
