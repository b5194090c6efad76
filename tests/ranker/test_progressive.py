"""Progressive evaluation: scored before learned, every arm on the same slates, counters that fade."""

import numpy as np
import pytest

from ranker import events, progressive
from ranker.catalogue import Catalogue
from ranker.config import parse
from ranker.events import Event, Shown
from ranker.evidence import EMPTY
from ranker.join import Example
from ranker.learner import Learner

CONFIG = parse(
    {
        "scale": "tiny",
        "objectives": [
            {"name": "click", "event": "click", "wait": 10},
            {"name": "read", "event": "dwell", "threshold": 30, "wait": 20},
        ],
    }
)


def log(rankings: int = 400, users: int = 30, seed: int = 0) -> list[Event]:
    """Six items a slate, a slate each 5 s; items whose number divides by three are clicked, and half of those read."""
    generator = np.random.default_rng(seed)
    found: list[Event] = []
    for number in range(rankings):
        shown = [f"i{i}" for i in generator.permutation(30)[:6]]
        user, now = f"u{generator.integers(users)}", 5000 * number
        found.append(events.Ranking(id=f"r{number}", timestamp=now, user=user, items=[Shown(i) for i in shown]))
        for item in shown:
            if int(item[1:]) % 3 == 0 and generator.random() < 0.8:
                found.append(did(f"r{number}", user, item, now + 1000, kind="click"))
                if int(item[1:]) % 2 == 0:
                    found.append(did(f"r{number}", user, item, now + 9000, kind="dwell", value=60.0))
    return sorted(found, key=lambda event: event.time)


def did(ranking: str, user: str, item: str, time: int, *, kind: str, value: float | None = None) -> Event:
    name = f"{ranking}-{item}-{kind}"
    return events.Interaction(id=name, timestamp=time, user=user, item=item, type=kind, ranking=ranking, value=value)


def labelled(item: str, time: int, label: float) -> Example:
    one = np.full((1, 2), label, np.float32)
    return Example(
        ranking=f"{item}{time}", user="u", time=time, evidence=EMPTY, request={}, items=(item,),
        positions=np.zeros(1, np.int32), labels_NT=one, mask_NT=np.ones_like(one),
    )  # fmt: skip


def test_the_learner_and_the_counter_find_what_is_clicked_and_both_are_measured_on_the_same_users() -> None:
    own = log()
    rows = list(progressive.evaluate(CONFIG, lambda: own, chunk=32))
    found = {(row.arm, row.metric): row for row in rows if row.part == "warm"}
    assert found["full", "auc:click"].mean > 0.8
    assert found["counter", "auc:click"].mean > 0.8
    assert found["full", "ndcg@10"].n == found["counter", "ndcg@10"].n
    assert ("single-task", "auc:read") not in found
    assert 0 <= found["full", "ece:click"].mean < 0.3
    assert found["full", "log_loss:click"].low <= found["full", "log_loss:click"].mean


def test_what_a_slate_is_scored_by_was_learned_before_it_was_shown() -> None:
    """With shuffled labels nothing can be known ahead: whoever finds skill has looked."""
    generator = np.random.default_rng(1)
    own: list[Event] = []
    for number in range(300):
        shown = [f"n{number}-{i}" for i in range(6)]
        own.append(events.Ranking(id=f"r{number}", timestamp=5000 * number, user="u", items=[Shown(i) for i in shown]))
        own.append(did(f"r{number}", "u", shown[generator.integers(6)], 5000 * number + 100, kind="click"))
    rows = list(progressive.evaluate(CONFIG, lambda: own, chunk=16))
    for row in rows:
        if row.metric == "auc:click":
            assert row.mean == pytest.approx(0.5, abs=0.08)


def test_a_version_is_scored_without_learning() -> None:
    own = log(100)
    weights = Learner(CONFIG).weights()
    rows = list(progressive.evaluate(CONFIG, lambda: own, weights))
    assert {row.arm for row in rows} == {"version", "counter", "version - counter"}


def test_the_counter_starts_at_the_overall_rate_and_fades_back_to_it() -> None:
    counter, catalogue = progressive.Counter(CONFIG), Catalogue(CONFIG)
    counter.learn(
        [labelled("good", n, 1.0) for n in range(20)] + [labelled("bad", n, 0.0) for n in range(20)], catalogue
    )
    now, later = (
        counter.predict([labelled(item, time, 0.0) for item in ("good", "bad", "new")], catalogue)
        for time in (20, 20 + 40 * int(progressive.HALF_LIFE_MS))
    )
    assert now[0][0, 0] > now[2][0, 0] > now[1][0, 0]
    assert now[2][0, 0] == pytest.approx(0.5, abs=0.01)
    assert later[0][0, 0] == pytest.approx(0.5, abs=0.01)


def test_old_slates_are_dropped_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = progressive._Kept()
    monkeypatch.setattr(progressive, "MOST", 3)
    for number in range(5):
        kept.add(0, True, labelled(f"i{number}", 0, 1.0), {"a": np.zeros((1, 2))})
    assert (kept.rows, kept.dropped) == (3, 2)
    assert len(kept.chances["a"]) == len(kept.labels) == 3
